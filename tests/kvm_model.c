/* SPDX-License-Identifier: MIT */
#include "kvm_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE GPAS_PAGE_BYTES

/* xorshift64* */
uint64_t model_random(struct model *model, uint64_t below)
{
	model->random ^= model->random >> 12;
	model->random ^= model->random << 25;
	model->random ^= model->random >> 27;
	return ((model->random * UINT64_C(0x2545F4914F6CDD1D)) >> 16) % below;
}

void model_init(struct model *model, struct gpas *space, uint64_t base,
		uint64_t seed, const struct model_hooks *hooks)
{
	memset(model, 0, sizeof(*model));
	model->space = space;
	model->base = base;
	model->hooks = *hooks;
	model->seed = seed;
	model->random = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
	model->memory = mmap(NULL, MODEL_PAGES * PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (model->memory == MAP_FAILED) {
		abort();
	}
}

void model_fini(struct model *model)
{
	munmap(model->memory, MODEL_PAGES * PAGE);
}

/* ---- The report ---------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void note(struct model *model,
						       const char *format, ...)
{
	va_list args;

	if (model->steps == MODEL_STEPS) {
		model->steps = 0; /* a longer run keeps its end */
	}
	va_start(args, format);
	(void)vsnprintf(model->trace[model->steps++], sizeof(model->trace[0]),
			format, args);
	va_end(args);
}

__attribute__((format(printf, 2, 3))) static bool wrong(struct model *model,
							const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(model->wrong, sizeof(model->wrong), format, args);
	va_end(args);
	return false;
}

static void print_line(void *ctx, const char *line)
{
	(void)ctx;
	fprintf(stderr, "%s\n", line);
}

void model_report(const struct model *model)
{
	fprintf(stderr, "model, seed %llu:\n", (unsigned long long)model->seed);
	for (unsigned i = 0; i < model->steps; i++) {
		fprintf(stderr, "  %s\n", model->trace[i]);
	}
	gpas_dump(model->space, GPAS_DUMP_ALL, print_line, NULL);
	fprintf(stderr, "wrong: %s\n", model->wrong);
}

/* ---- What the array says ------------------------------------------------- */

/* A run of pages [first, first + count). */
struct run {
	unsigned first;
	unsigned count;
};

static struct run random_run(struct model *model)
{
	struct run run;
	unsigned most;

	run.first = (unsigned)model_random(model, MODEL_PAGES);
	most = MODEL_PAGES - run.first;
	if (most > 12 && model_random(model, 8) != 0) {
		most = 12;
	}
	run.count = 1 + (unsigned)model_random(model, most);
	return run;
}

static gpas_gpa gpa_of(const struct model *model, unsigned page)
{
	return gpas_gpa_at(model->base + page * PAGE);
}

static bool is_free(const struct model *model, struct run run)
{
	for (unsigned i = run.first; i < run.first + run.count; i++) {
		if (model->now.pages[i].backing != 0) {
			return false;
		}
	}
	return true;
}

/* Whether all of it is mapped, by other things than devices. */
static bool is_memory(const struct model *model, struct run run)
{
	for (unsigned i = run.first; i < run.first + run.count; i++) {
		const struct model_page *page = &model->now.pages[i];

		if (page->backing == 0 || page->device) {
			return false;
		}
	}
	return true;
}

/* Regions are maximal runs of one map call's pages with one permission. */
static struct run region_around(const struct model_state *state, unsigned page)
{
	const struct model_page *pages = state->pages;
	struct run run = { page, 1 };

	while (run.first > 0 &&
	       pages[run.first - 1].backing == pages[page].backing &&
	       pages[run.first - 1].prot == pages[page].prot) {
		run.first--;
		run.count++;
	}
	while (run.first + run.count < MODEL_PAGES &&
	       pages[run.first + run.count].backing == pages[page].backing &&
	       pages[run.first + run.count].prot == pages[page].prot) {
		run.count++;
	}
	return run;
}

/* The absent stretch around @page in its granule and region. */
static struct run hole_around(const struct model *model, unsigned page)
{
	const struct model_page *pages = model->now.pages;
	struct run region = region_around(&model->now, page);
	uint64_t gpa = gpa_of(model, page).value;
	uint64_t low = gpas_align_down(gpa, pages[page].granule);
	uint64_t high = low + pages[page].granule;
	struct run hole = { page, 1 };

	while (hole.first > region.first && !pages[hole.first - 1].present &&
	       gpa_of(model, hole.first - 1).value >= low) {
		hole.first--;
		hole.count++;
	}
	while (hole.first + hole.count < region.first + region.count &&
	       !pages[hole.first + hole.count].present &&
	       gpa_of(model, hole.first + hole.count).value < high) {
		hole.count++;
	}
	return hole;
}

/* Makes the pages of @run present and returns how many bytes were not. */
static uint64_t set_present(struct model_state *state, struct run run)
{
	uint64_t populated = 0;

	for (unsigned i = run.first; i < run.first + run.count; i++) {
		populated += state->pages[i].present ? 0 : PAGE;
		state->pages[i].present = true;
	}
	return populated;
}

/* ---- One call ------------------------------------------------------------ */

/* Compares a changing call's result; takes @after over when it succeeded. */
static bool settle(struct model *model, int expected, int err,
		   const struct model_state *after)
{
	note(model, "  -> %s", err == 0 ? "0" : strerror(-err));
	if (expected != 0) {
		return err == expected ||
		       wrong(model, "expected %s", strerror(-expected));
	}
	if (!model->grouped &&
	    !model->hooks.accepts(model->hooks.ctx, model, err, after)) {
		return model->wrong[0] == '\0'
			       ? wrong(model, "expected success")
			       : false;
	}
	if (model->grouped && err != 0) {
		return wrong(model, "failed in a group");
	}
	if (err == 0) {
		model->now = *after;
	}
	return true;
}

static unsigned random_prot(struct model *model)
{
	static const unsigned prots[] = {
		GPAS_PROT_RW,	GPAS_PROT_RW, GPAS_PROT_RWX,  GPAS_PROT_READ,
		GPAS_PROT_READ, GPAS_PROT_RX, GPAS_PROT_NONE,
	};

	return prots[model_random(model, sizeof(prots) / sizeof(prots[0]))];
}

static int access_nothing(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

/* Where the space put the memory of a map call that just succeeded. */
static uint64_t host_of(struct model *model, unsigned page)
{
	struct gpas_region region;

	if (gpas_region_find(model->space, gpa_of(model, page), &region) != 0) {
		return 0;
	}
	return gpas_hva_of(region.host).value +
	       (gpa_of(model, page).value - region.start.value);
}

/* What a map call asks for: @page is the first one. */
static bool map_as(struct model *model, struct run run, struct model_page page)
{
	struct model_state after = model->now;
	struct gpas_map_params params = {
		.lazy = page.lazy,
		.granule = page.granule,
	};
	struct gpas_device device = { .access = access_nothing };
	gpas_gpa start = gpa_of(model, run.first);
	uint64_t size = run.count * PAGE;
	int expected = is_free(model, run) ? 0 : -EEXIST;
	int err;

	page.backing = ++model->backings;
	if (page.device) {
		err = gpas_map_device(model->space, start, size, &device);
	} else if (page.host != 0) {
		err = gpas_map_linear(model->space, start, size,
				      gpas_hva_pointer(gpas_hva_at(page.host)),
				      page.prot, NULL);
	} else {
		err = gpas_map_alloc(model->space, start, size, page.prot,
				     &params);
		page.host = err == 0 ? host_of(model, run.first) : 0;
	}
	for (unsigned i = run.first; i < run.first + run.count; i++) {
		after.pages[i] = page;
		page.host += PAGE;
	}
	return settle(model, expected, err, &after);
}

static bool step_map(struct model *model)
{
	struct run run = random_run(model);
	struct model_page page = { .prot = random_prot(model),
				   .present = true };
	const char *what = "map eager";

	switch (model_random(model, 8)) {
	case 0:
		what = "map device";
		page = (struct model_page){ .prot = GPAS_PROT_RW,
					    .device = true };
		break;
	case 1:
	case 2:
		what = "map linear";
		page.host = gpas_hva_of(model->memory).value;
		page.host +=
			PAGE * model_random(model, MODEL_PAGES - run.count + 1);
		break;
	case 3:
		break;
	default:
		what = "map lazy";
		page.present = false;
		page.lazy = true;
		page.granule = PAGE << model_random(model, 5);
		break;
	}
	note(model, "%s page %u+%u prot %u granule %#llx", what, run.first,
	     run.count, page.prot, (unsigned long long)page.granule);
	return map_as(model, run, page);
}

static bool step_unmap(struct model *model)
{
	struct model_state after = model->now;
	struct run run = random_run(model);

	note(model, "unmap page %u+%u", run.first, run.count);
	memset(&after.pages[run.first], 0, run.count * sizeof(after.pages[0]));
	return settle(model, 0,
		      gpas_unmap(model->space, gpa_of(model, run.first),
				 run.count * PAGE),
		      &after);
}

static bool step_protect(struct model *model)
{
	struct model_state after = model->now;
	struct run run = random_run(model);
	unsigned prot = random_prot(model);

	note(model, "protect page %u+%u prot %u", run.first, run.count, prot);
	for (unsigned i = run.first; i < run.first + run.count; i++) {
		after.pages[i].prot = prot;
	}
	return settle(model, is_memory(model, run) ? 0 : -ENOENT,
		      gpas_protect(model->space, gpa_of(model, run.first),
				   run.count * PAGE, prot),
		      &after);
}

static bool step_populate(struct model *model)
{
	struct model_state after = model->now;
	struct run run = random_run(model);

	note(model, "populate page %u+%u", run.first, run.count);
	(void)set_present(&after, run);
	return settle(model, is_memory(model, run) ? 0 : -ENOENT,
		      gpas_populate(model->space, gpa_of(model, run.first),
				    run.count * PAGE),
		      &after);
}

static enum gpas_fault_kind judge(const struct model_page *page,
				  unsigned access)
{
	if (page->backing == 0) {
		return GPAS_FAULT_UNMAPPED;
	}
	if (page->device) {
		return GPAS_FAULT_DEVICE;
	}
	if (page->prot == GPAS_PROT_NONE || (access & ~page->prot) != 0) {
		return GPAS_FAULT_DENIED;
	}
	return GPAS_FAULT_RESUME;
}

/*
 * Where slots are short a fault may make more of its region present, since
 * fewer slots cover that. Takes over what it did; -1: nothing it may do.
 */
static int64_t adopt(const struct model *model, unsigned at,
		     struct model_state *after)
{
	struct run region = region_around(&model->now, at);
	struct gpas_translation found;
	int64_t populated = 0;

	for (unsigned i = region.first; i < region.first + region.count; i++) {
		struct model_page *page = &after->pages[i];
		bool present = gpas_translate(model->space, gpa_of(model, i), 0,
					      PAGE, &found) == 0;

		if (!present && (page->present || i == at)) {
			return -1;
		}
		populated += present && !page->present ? (int64_t)PAGE : 0;
		page->present = present;
	}
	return populated;
}

/* What a fault that populates leaves, and that it said how much that was. */
static bool settle_fault(struct model *model, unsigned at,
			 const struct gpas_fault *fault)
{
	struct model_state after = model->now;
	int64_t populated;

	if (!model->scarce) {
		populated =
			(int64_t)set_present(&after, hole_around(model, at));
	} else if (fault->kind == GPAS_FAULT_RESUME) {
		populated = adopt(model, at, &after);
	} else { /* nothing takes fewer slots than all of the region */
		populated = (int64_t)set_present(
			&after, region_around(&model->now, at));
	}
	if (fault->kind == GPAS_FAULT_FAILED) {
		return settle(model, 0, fault->error, &after);
	}
	if ((int64_t)fault->populated != populated) {
		return wrong(model, "populated %#llx, expected %#llx",
			     (unsigned long long)fault->populated,
			     (unsigned long long)populated);
	}
	return settle(model, 0, 0, &after);
}

static bool step_fault(struct model *model)
{
	static const unsigned accesses[] = { 0, 1, 2, 4 };
	unsigned at = (unsigned)model_random(model, MODEL_PAGES);
	unsigned access = accesses[model_random(model, 4)];
	const struct model_page *page = &model->now.pages[at];
	enum gpas_fault_kind kind = judge(page, access);
	uint64_t byte = model_random(model, PAGE);
	struct gpas_fault fault;
	int err;

	note(model, "fault page %u access %u", at, access);
	err = gpas_fault(model->space,
			 gpas_gpa_at(gpa_of(model, at).value + byte), access,
			 &fault);
	if (err != 0) {
		return wrong(model, "fault returned %d", err);
	}
	if (kind == GPAS_FAULT_RESUME && !page->present &&
	    (fault.kind == kind || fault.kind == GPAS_FAULT_FAILED)) {
		return settle_fault(model, at, &fault);
	}
	if (fault.kind != kind || fault.populated != 0) {
		return wrong(model, "fault kind %d, expected %d", fault.kind,
			     kind);
	}
	return settle(model, 0, 0, &model->now);
}

static bool step_group(struct model *model)
{
	struct model_state after = model->now;
	bool commit = model_random(model, 3) != 0;
	int err;

	if (!model->grouped) {
		note(model, "begin");
		err = gpas_begin(model->space);
		model->before_group = model->now;
		model->grouped = true;
		return err == 0 || wrong(model, "begin returned %d", err);
	}
	note(model, commit ? "commit" : "abort");
	model->grouped = false;
	model->now = model->before_group;
	if (!commit) {
		err = gpas_abort(model->space);
		return err == 0 || wrong(model, "abort returned %d", err);
	}
	return settle(model, 0, gpas_commit(model->space), &after);
}

/* ---- Comparing ----------------------------------------------------------- */

static bool check_page(struct model *model, unsigned at)
{
	const struct model_page *page = &model->now.pages[at];
	struct gpas_translation found;
	int err = gpas_translate(model->space, gpa_of(model, at), 0, PAGE,
				 &found);

	if (err != (page->present ? 0 : -ENOENT)) {
		return wrong(model, "page %u: translate returned %d", at, err);
	}
	if (err != 0) {
		return true;
	}
	if (found.prot != page->prot ||
	    gpas_hva_of(found.host).value != page->host || found.size != PAGE) {
		return wrong(model, "page %u: prot %u host %p size %#llx", at,
			     found.prot, found.host,
			     (unsigned long long)found.size);
	}
	return true;
}

/* Present memory of the space's own reads as zero at first, and then keeps
 * what was written. Inside a group nothing is written, so that undoing it
 * leaves no trace. */
static bool check_content(struct model *model, unsigned at)
{
	struct model_page *page = &model->now.pages[at];
	uint64_t *word = gpas_hva_pointer(gpas_hva_at(page->host));
	uint64_t low = gpas_hva_of(model->memory).value;

	if (!page->present ||
	    (page->host >= low && page->host - low < MODEL_PAGES * PAGE)) {
		return true;
	}
	if (*word != page->token) {
		return wrong(model, "page %u holds %#llx, expected %#llx", at,
			     (unsigned long long)*word,
			     (unsigned long long)page->token);
	}
	if (page->token == 0 && !model->grouped) {
		page->token = ++model->tokens;
		*word = page->token;
	}
	return true;
}

static bool check_region(struct model *model, unsigned first,
			 const struct gpas_region *region)
{
	struct run run = region_around(&model->now, first);
	const struct model_page *page = &model->now.pages[first];
	uint64_t present = 0;

	for (unsigned i = run.first; i < run.first + run.count; i++) {
		present += model->now.pages[i].present ? PAGE : 0;
	}
	if (region->start.value != gpa_of(model, first).value ||
	    region->size != run.count * PAGE || region->prot != page->prot ||
	    region->present != present || region->lazy != page->lazy) {
		return wrong(model,
			     "region at page %u: start %#llx size %#llx prot "
			     "%u present %#llx",
			     first, (unsigned long long)region->start.value,
			     (unsigned long long)region->size, region->prot,
			     (unsigned long long)region->present);
	}
	return true;
}

static bool check_regions(struct model *model)
{
	uint64_t end = gpa_of(model, MODEL_PAGES).value;
	unsigned at = 0;
	struct gpas_region region;

	while (at < MODEL_PAGES) {
		if (model->now.pages[at].backing == 0) {
			at++;
			continue;
		}
		if (gpas_region_next(model->space, gpa_of(model, at),
				     &region) != 0) {
			return wrong(model, "no region at page %u", at);
		}
		if (!check_region(model, at, &region)) {
			return false;
		}
		at += (unsigned)(region.size / PAGE);
	}
	for (at = 0; at < MODEL_PAGES; at++) {
		int err = gpas_region_find(model->space, gpa_of(model, at),
					   &region);

		if ((err == 0) != (model->now.pages[at].backing != 0)) {
			return wrong(model, "page %u: region_find %d", at, err);
		}
	}
	return gpas_region_next(model->space, gpas_gpa_at(end), &region) != 0 ||
	       wrong(model, "a region behind the model's pages");
}

static bool check(struct model *model)
{
	const char *what = NULL;

	for (unsigned at = 0; at < MODEL_PAGES; at++) {
		if (!check_page(model, at) || !check_content(model, at)) {
			return false;
		}
	}
	if (!check_regions(model)) {
		return false;
	}
	if (gpas_check(model->space) != 0) {
		return wrong(model, "gpas_check");
	}
	if (!model->grouped) {
		what = model->hooks.check(model->hooks.ctx, model);
	}
	return what == NULL || wrong(model, "%s", what);
}

bool model_step(struct model *model)
{
	uint64_t choice = model_random(model, 100);
	bool right;

	if (model->hooks.begin != NULL) {
		model->hooks.begin(model->hooks.ctx, model);
	}
	if (choice < (model->grouped ? 20 : 5)) {
		right = step_group(model);
	} else if (choice < 45) {
		right = step_map(model);
	} else if (choice < 58) {
		right = step_unmap(model);
	} else if (choice < 72) {
		right = step_protect(model);
	} else if (choice < 92) {
		right = step_fault(model);
	} else {
		right = step_populate(model);
	}
	return right && check(model);
}

bool model_close(struct model *model)
{
	if (!model->grouped) {
		return true;
	}
	note(model, "abort");
	model->grouped = false;
	model->now = model->before_group;
	return gpas_abort(model->space) == 0 && check(model);
}
