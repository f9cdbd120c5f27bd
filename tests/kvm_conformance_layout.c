/* SPDX-License-Identifier: MIT */
#include "kvm_conformance.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The model ----------------------------------------------------------- */

struct page *page_at(struct conf *conf, uint64_t gpa)
{
	uint64_t index = (gpa - conf->arena) / PAGE;

	return gpa >= conf->arena && index < ARENA_PAGES ? &conf->pages[index]
							 : NULL;
}

const struct mapping *mapping_of(const struct conf *conf,
				 const struct page *page)
{
	return page == NULL || page->mapping == 0
		       ? NULL
		       : &conf->mappings[page->mapping];
}

static uint64_t offset_in(const struct conf *conf,
			  const struct mapping *mapping, uint64_t gpa)
{
	return gpa - conf->arena - mapping->first * PAGE;
}

uint8_t *host_of(struct conf *conf, uint64_t gpa)
{
	const struct mapping *mapping = mapping_of(conf, page_at(conf, gpa));

	return mapping->host + offset_in(conf, mapping, gpa);
}

uint64_t stub(uint32_t token)
{
	return UINT64_C(0xb8) | (uint64_t)token << 8 | UINT64_C(0x038948) << 40;
}

static uint32_t token_of(const struct mapping *mapping, uint64_t offset)
{
	return (uint32_t)((mapping - mapping->conf->mappings) << 16 ^
			  offset / PAGE ^ 0x5a000000);
}

uint8_t initial_byte(struct conf *conf, uint64_t gpa)
{
	const struct mapping *mapping = mapping_of(conf, page_at(conf, gpa));
	uint64_t offset = offset_in(conf, mapping, gpa);

	return mapping->kind != KIND_BACKEND
		       ? 0
		       : (uint8_t)(stub(token_of(mapping, offset)) >>
				   offset % 8 * 8);
}

uint8_t device_byte(const struct mapping *mapping, uint64_t offset)
{
	uint64_t id = (uint64_t)(mapping - mapping->conf->mappings);

	return (uint8_t)(offset * 29 + (offset >> 8) * 5 + id * 7 + 3);
}

/* Whether two neighbouring pages are of one region: of one map call, with one
 * permission. */
static bool same_region(const struct page *a, const struct page *b)
{
	return a->mapping == b->mapping && a->prot == b->prot;
}

/* The granule is aligned in GPA, and cut to the region and to the absent
 * stretch around the page. */
void model_populate(struct conf *conf, struct page *page)
{
	const struct mapping *mapping = mapping_of(conf, page);
	uint32_t granule = (uint32_t)(mapping->granule / PAGE);
	uint32_t index = (uint32_t)(page - conf->pages);
	/* The arena is aligned to more than any granule. */
	uint32_t low = index / granule * granule;
	uint32_t first = index;
	uint32_t end = index + 1;

	while (first > low && same_region(page, &conf->pages[first - 1]) &&
	       !conf->pages[first - 1].present) {
		first--;
	}
	while (end < low + granule && end < ARENA_PAGES &&
	       same_region(page, &conf->pages[end]) &&
	       !conf->pages[end].present) {
		end++;
	}
	for (uint32_t i = first; i < end; i++) {
		conf->pages[i].present = true;
	}
	conf->figures.populated_pages += end - first;
}

/* ---- Backends and devices ------------------------------------------------ */

static int backend_populate(void *ctx, uint64_t offset, uint64_t *size,
			    void **host)
{
	struct mapping *mapping = ctx;
	struct conf *conf = mapping->conf;

	/* Less than asked for, now and then: by the offset, as this may run
	 * beside draws on another thread. */
	if (*size > 4 * PAGE && offset / PAGE % 3 == 1) {
		*size = *size / PAGE / 2 * PAGE;
	}
	for (uint64_t at = offset; at < offset + *size; at += PAGE) {
		uint64_t *words = (uint64_t *)(mapping->host + at);
		uint64_t word = stub(token_of(mapping, at));

		if (mapping->filled[at / PAGE] != 0) {
			fail(conf, "backend: offset %#lx is provided twice",
			     (unsigned long)at);
		}
		mapping->filled[at / PAGE] = 1;
		for (unsigned i = 0; i < PAGE / 8; i++) {
			words[i] = word;
		}
	}
	*host = mapping->host + offset;
	return 0;
}

static void backend_retire(void *ctx, uint64_t offset, uint64_t size)
{
	struct mapping *mapping = ctx;

	memset(mapping->filled + offset / PAGE, 0, size / PAGE);
}

static void backend_release(void *ctx)
{
	struct mapping *mapping = ctx;

	free(mapping->filled);
	mapping->filled = NULL;
}

static int device_access(void *ctx, struct gpas_device_access *access)
{
	const struct mapping *mapping = ctx;
	struct conf *conf = mapping->conf;

	for (unsigned i = 0; !access->write && i < access->width; i++) {
		access->value |=
			(uint64_t)device_byte(mapping, access->offset + i)
			<< (8 * i);
	}
	if (!conf->spinning && conf->call_count < MAX_CALLS) {
		conf->calls[conf->call_count++] =
			(struct call){ mapping, *access };
	}
	__atomic_fetch_add(&conf->figures.device_calls, 1, __ATOMIC_RELAXED);
	return 0;
}

/* ---- Map calls ----------------------------------------------------------- */

/* What a format cannot say is refused: writing or, but for EPT, executing
 * without reading. */
static bool expressible(const struct conf *conf, unsigned prot)
{
	if (prot == GPAS_PROT_EXEC) {
		return conf->format != GPAS_FORMAT_NPT_4;
	}
	return (prot & GPAS_PROT_WRITE) == 0 || (prot & GPAS_PROT_READ) != 0;
}

static unsigned draw_prot(struct conf *conf)
{
	static const uint8_t prots[20] = {
		GPAS_PROT_RW,	GPAS_PROT_RW,	GPAS_PROT_RW,	GPAS_PROT_RW,
		GPAS_PROT_RW,	GPAS_PROT_RWX,	GPAS_PROT_RWX,	GPAS_PROT_RWX,
		GPAS_PROT_RWX,	GPAS_PROT_RX,	GPAS_PROT_RX,	GPAS_PROT_RX,
		GPAS_PROT_RX,	GPAS_PROT_READ, GPAS_PROT_READ, GPAS_PROT_READ,
		GPAS_PROT_READ, GPAS_PROT_NONE, GPAS_PROT_NONE, GPAS_PROT_EXEC,
	};

	return chance(conf, 1) ? GPAS_PROT_WRITE : prots[draw(conf, 20)];
}

static enum kind draw_kind(struct conf *conf)
{
	static const uint8_t kinds[16] = {
		KIND_LINEAR,  KIND_LINEAR,  KIND_LINEAR, KIND_LINEAR,
		KIND_LINEAR,  KIND_ALLOC,   KIND_ALLOC,	 KIND_ALLOC,
		KIND_ALLOC,   KIND_ALLOC,   KIND_OBJECT, KIND_BACKEND,
		KIND_BACKEND, KIND_BACKEND, KIND_DEVICE, KIND_DEVICE,
	};

	return kinds[draw(conf, 16)];
}

static gpas_gpa gpa_of(const struct conf *conf, uint32_t page)
{
	return gpas_gpa_at(conf->arena + page * PAGE);
}

/* Half of the linear regions share one offset, the others have their own. */
static int map_linear(struct conf *conf, struct mapping *mapping, unsigned prot)
{
	uint32_t page = mapping->first;

	if (chance(conf, 50)) {
		page = (uint32_t)draw(conf, ARENA_PAGES - mapping->pages + 1);
	}
	mapping->host = conf->linear_pool + page * PAGE;
	return gpas_map_linear(conf->space, gpa_of(conf, mapping->first),
			       mapping->pages * PAGE, mapping->host, prot,
			       NULL);
}

static void draw_lazy(struct conf *conf, struct mapping *mapping,
		      struct gpas_map_params *params)
{
	static const uint8_t shifts[8] = { 12, 13, 14, 16, 16, 0, 18, 21 };

	mapping->lazy = chance(conf, 65);
	if (mapping->lazy) {
		unsigned shift = shifts[draw(conf, 8)];

		params->lazy = true;
		params->granule = shift != 0 ? UINT64_C(1) << shift : 0;
		/* The documented default is 64 KiB. */
		mapping->granule = shift != 0 ? params->granule : 65536;
	}
}

static int map_alloc(struct conf *conf, struct mapping *mapping, unsigned prot)
{
	struct gpas_map_params params = { 0 };
	struct gpas_region region;
	int err;

	draw_lazy(conf, mapping, &params);
	if (chance(conf, 30)) {
		params.memory.kind = GPAS_MEMORY_MEMFD;
	}
	err = gpas_map_alloc(conf->space, gpa_of(conf, mapping->first),
			     mapping->pages * PAGE, prot, &params);
	if (err == 0 &&
	    gpas_region_find(conf->space, gpa_of(conf, mapping->first),
			     &region) == 0) {
		/* Only the library knows where its memory is. */
		mapping->host = region.host;
	}
	return err;
}

static int map_object(struct conf *conf, struct mapping *mapping, unsigned prot)
{
	uint64_t bytes = gpas_memory_size(conf->object);
	uint64_t offset;

	if (mapping->pages * PAGE > bytes) {
		mapping->pages = (uint32_t)(bytes / PAGE);
	}
	offset = draw(conf, bytes / PAGE - mapping->pages + 1) * PAGE;
	mapping->host = (uint8_t *)gpas_memory_host(conf->object) + offset;
	return gpas_map_memory(conf->space, gpa_of(conf, mapping->first),
			       mapping->pages * PAGE, prot, conf->object,
			       offset, NULL);
}

static int map_backend(struct conf *conf, struct mapping *mapping,
		       unsigned prot)
{
	struct gpas_map_params params = { 0 };
	struct gpas_backend backend = {
		.ctx = mapping,
		.populate = backend_populate,
		.retire = backend_retire,
		.release = backend_release,
	};
	int err;

	draw_lazy(conf, mapping, &params);
	mapping->host = conf->backend_pool + conf->backend_used;
	mapping->filled = calloc(mapping->pages, 1);
	err = gpas_map_backend(conf->space, gpa_of(conf, mapping->first),
			       mapping->pages * PAGE, prot, &backend, &params);
	if (err == 0) {
		conf->backend_used += mapping->pages * PAGE;
	} else {
		free(mapping->filled);
	}
	return err;
}

static int map_device(struct conf *conf, struct mapping *mapping)
{
	static const uint8_t widths[6] = { 0, 1, 4, 15, 12, 7 };
	struct gpas_device device = {
		.ctx = mapping,
		.access = device_access,
		.widths = widths[draw(conf, 6)],
	};

	mapping->widths = device.widths != 0 ? device.widths : 15;
	return gpas_map_device(conf->space, gpa_of(conf, mapping->first),
			       mapping->pages * PAGE, &device);
}

static int map_one(struct conf *conf, struct mapping *mapping, unsigned prot)
{
	switch (mapping->kind) {
	case KIND_LINEAR:
		return map_linear(conf, mapping, prot);
	case KIND_ALLOC:
		return map_alloc(conf, mapping, prot);
	case KIND_OBJECT:
		return map_object(conf, mapping, prot);
	case KIND_BACKEND:
		return map_backend(conf, mapping, prot);
	case KIND_DEVICE:
	default:
		return map_device(conf, mapping);
	}
}

static bool is_free(const struct conf *conf, uint32_t first, uint32_t pages)
{
	for (uint32_t i = first; i < first + pages; i++) {
		if (conf->pages[i].mapping != 0) {
			return false;
		}
	}
	return true;
}

static bool touches_stable(const struct conf *conf, uint32_t first,
			   uint32_t pages)
{
	for (uint32_t i = first; i < first + pages; i++) {
		if (conf->pages[i].stable) {
			return true;
		}
	}
	return false;
}

static const char *kind_name(enum kind kind)
{
	static const char *const names[KIND_COUNT] = { "linear", "alloc",
						       "object", "backend",
						       "device" };

	return names[kind];
}

static void expect(struct conf *conf, const char *what, int err, int expected)
{
	if (err != expected) {
		fail(conf, "%s: %d (%s), expected %d", what, err,
		     strerror(-err), expected);
	}
}

static void record_map(struct conf *conf, const struct mapping *mapping,
		       unsigned prot)
{
	for (uint32_t i = 0; i < mapping->pages; i++) {
		conf->pages[mapping->first + i] = (struct page){
			.mapping = (uint16_t)conf->mapping_count,
			.prot = (uint8_t)prot,
			.present =
				mapping->kind != KIND_DEVICE && !mapping->lazy,
		};
	}
	conf->mapping_count++;
	conf->figures.regions++;
}

static void map(struct conf *conf, uint32_t first, uint32_t pages)
{
	struct mapping *mapping = &conf->mappings[conf->mapping_count];
	unsigned prot = draw_prot(conf);
	int expected = 0;
	int err;

	if (conf->mapping_count == MAX_MAPPINGS) {
		return;
	}
	*mapping = (struct mapping){
		.conf = conf,
		.kind = draw_kind(conf),
		.first = first,
		.pages = pages,
	};
	err = map_one(conf, mapping, prot);
	trace(conf, "map %s %#lx +%#lx prot %x granule %#lx host %p: %d",
	      kind_name(mapping->kind),
	      (unsigned long)gpa_of(conf, first).value,
	      (unsigned long)(mapping->pages * PAGE), prot,
	      (unsigned long)mapping->granule, (void *)mapping->host, err);
	if (mapping->kind != KIND_DEVICE && !expressible(conf, prot)) {
		expected = -EOPNOTSUPP;
	} else if (!is_free(conf, first, mapping->pages)) {
		expected = -EEXIST;
	}
	expect(conf, "map", err, expected);
	if (err == 0) {
		record_map(conf, mapping, prot);
	}
}

/* Sizes from one page to two blocks; blocks are aligned. */
static uint32_t draw_size(struct conf *conf, uint32_t *first)
{
	unsigned roll = (unsigned)draw(conf, 100);
	uint32_t pages;

	if (roll < 30) {
		return 1;
	}
	if (roll < 75) {
		return 2 + (uint32_t)draw(conf, 30);
	}
	if (roll < 90) {
		return 32 + (uint32_t)draw(conf, 250);
	}
	pages = BLOCK_PAGES * (1 + (uint32_t)draw(conf, 2));
	*first = (*first + BLOCK_PAGES - 1) / BLOCK_PAGES * BLOCK_PAGES;
	return chance(conf, 70) ? pages : pages + (uint32_t)draw(conf, 9);
}

/* Whether memory covers the range wholly. */
static bool all_memory(const struct conf *conf, uint32_t first, uint32_t pages)
{
	for (uint32_t i = first; i < first + pages; i++) {
		const struct mapping *mapping =
			mapping_of(conf, &conf->pages[i]);

		if (mapping == NULL || mapping->kind == KIND_DEVICE) {
			return false;
		}
	}
	return true;
}

static void populate(struct conf *conf, uint32_t first, uint32_t pages)
{
	int err = gpas_populate(conf->space, gpa_of(conf, first), pages * PAGE);

	trace(conf, "populate %#lx +%#lx: %d",
	      (unsigned long)gpa_of(conf, first).value,
	      (unsigned long)(pages * PAGE), err);
	expect(conf, "populate", err,
	       all_memory(conf, first, pages) ? 0 : -ENOENT);
	for (uint32_t i = first; err == 0 && i < first + pages; i++) {
		conf->pages[i].present = true;
	}
}

/* Pages that are present amid absent ones, for granules to be cut at. */
static void populate_islands(struct conf *conf)
{
	for (unsigned i = 1; i < conf->mapping_count && !conf->failed; i++) {
		const struct mapping *mapping = &conf->mappings[i];

		if (mapping->lazy && chance(conf, 40)) {
			uint32_t at = (uint32_t)draw(conf, mapping->pages);
			uint32_t left = mapping->pages - at;

			populate(conf, mapping->first + at,
				 1 + (uint32_t)draw(conf, left < 4 ? left : 4));
		}
	}
}

void draw_layout(struct conf *conf)
{
	unsigned regions = 1 + (unsigned)draw(conf, MAX_REGIONS);
	uint32_t at = (uint32_t)draw(conf, 20) + 1;

	if (chance(conf, 25)) {
		regions = MAX_REGIONS;
	}
	conf->mapping_count = 1;
	while (regions-- > 0) {
		uint32_t pages;

		if (chance(conf, 35)) {
			at += 1 + (uint32_t)draw(conf, 9);
		}
		pages = draw_size(conf, &at);
		if (at + pages + 1 >= ARENA_PAGES) {
			break;
		}
		map(conf, at, pages);
		at += pages;
	}
	populate_islands(conf);
}

/* ---- Other calls --------------------------------------------------------- */

/* A range that begins near something. */
static void draw_range(struct conf *conf, uint32_t *first, uint32_t *pages)
{
	uint32_t at = (uint32_t)draw(conf, ARENA_PAGES - 2) + 1;

	if (conf->mapping_count > 1 && chance(conf, 90)) {
		const struct mapping *near =
			&conf->mappings[1 +
					draw(conf, conf->mapping_count - 1)];

		at = near->first + (uint32_t)draw(conf, near->pages);
		if (chance(conf, 30)) {
			at = near->first;
		}
	}
	*pages = draw_size(conf, &at);
	*first = at < ARENA_PAGES - 1 ? at : ARENA_PAGES - 2;
	if (*pages > ARENA_PAGES - 1 - *first) {
		*pages = ARENA_PAGES - 1 - *first;
	}
}

static void unmap(struct conf *conf, uint32_t first, uint32_t pages)
{
	int err = gpas_unmap(conf->space, gpa_of(conf, first), pages * PAGE);

	trace(conf, "unmap %#lx +%#lx: %d",
	      (unsigned long)gpa_of(conf, first).value,
	      (unsigned long)(pages * PAGE), err);
	expect(conf, "unmap", err, 0);
	for (uint32_t i = first; i < first + pages; i++) {
		conf->pages[i] = (struct page){ 0 };
	}
}

static void protect(struct conf *conf, uint32_t first, uint32_t pages)
{
	unsigned prot = draw_prot(conf);
	int expected = 0;
	int err = gpas_protect(conf->space, gpa_of(conf, first), pages * PAGE,
			       prot);

	trace(conf, "protect %#lx +%#lx prot %x: %d",
	      (unsigned long)gpa_of(conf, first).value,
	      (unsigned long)(pages * PAGE), prot, err);
	if (!expressible(conf, prot)) {
		expected = -EOPNOTSUPP;
	} else if (!all_memory(conf, first, pages)) {
		expected = -ENOENT;
	}
	expect(conf, "protect", err, expected);
	for (uint32_t i = first; err == 0 && i < first + pages; i++) {
		conf->pages[i].prot = (uint8_t)prot;
	}
}

/* The slot that holds the guest's code and page tables is cut and made whole:
 * with a vCPU running, one that is not paused for it ends in a triple fault. */
static void protect_low(struct conf *conf)
{
	static const uint8_t prots[4] = { GPAS_PROT_RWX, GPAS_PROT_RWX,
					  GPAS_PROT_READ, GPAS_PROT_NONE };
	uint64_t pages = (LOW_BYTES - TAIL_GPA) / PAGE;
	uint64_t first = draw(conf, pages);
	uint64_t count = 1 + draw(conf, pages - first);
	unsigned prot = prots[draw(conf, 4)];
	int err =
		gpas_protect(conf->space, gpas_gpa_at(TAIL_GPA + first * PAGE),
			     count * PAGE, prot);

	trace(conf, "protect %#lx +%#lx prot %x: %d",
	      (unsigned long)(TAIL_GPA + first * PAGE),
	      (unsigned long)(count * PAGE), prot, err);
	expect(conf, "protect", err, 0);
}

static void change_once(struct conf *conf)
{
	unsigned roll = (unsigned)draw(conf, 110);
	uint32_t first;
	uint32_t pages;

	draw_range(conf, &first, &pages);
	if (touches_stable(conf, first, pages)) {
		pages = 1;
		if (conf->pages[first].stable) {
			return;
		}
	}
	conf->figures.operations++;
	if (roll >= 100) {
		protect_low(conf);
	} else if (roll < 30) {
		unmap(conf, first, pages);
	} else if (roll < 60) {
		protect(conf, first, pages);
	} else if (roll < 70) {
		populate(conf, first, pages);
	} else {
		/* Mostly where there is room, so that most succeed. */
		while (chance(conf, 95) && !is_free(conf, first, pages) &&
		       pages > 1) {
			pages /= 2;
		}
		map(conf, first, pages);
	}
}

/* Calls of a group are undone with it, here by a copy. */
static void change_group(struct conf *conf)
{
	struct page *before = malloc(sizeof(conf->pages));
	bool abort = chance(conf, 30);
	unsigned count = 1 + (unsigned)draw(conf, 6);

	memcpy(before, conf->pages, sizeof(conf->pages));
	trace(conf, "begin");
	expect(conf, "begin", gpas_begin(conf->space), 0);
	while (count-- > 0 && !conf->failed) {
		change_once(conf);
	}
	trace(conf, abort ? "abort" : "commit");
	if (abort) {
		expect(conf, "abort", gpas_abort(conf->space), 0);
		memcpy(conf->pages, before, sizeof(conf->pages));
	} else {
		expect(conf, "commit", gpas_commit(conf->space), 0);
	}
	free(before);
}

void change_layout(struct conf *conf)
{
	unsigned count = 2 + (unsigned)draw(conf, 8);

	while (count-- > 0 && !conf->failed) {
		if (chance(conf, 25)) {
			change_group(conf);
		} else {
			change_once(conf);
		}
	}
}

/* ---- Comparing and showing ----------------------------------------------- */

static void verify_page(struct conf *conf, uint32_t index)
{
	const struct page *page = &conf->pages[index];
	gpas_gpa gpa = gpa_of(conf, index);
	struct gpas_translation at;
	int err = gpas_translate(conf->space, gpa, 0, PAGE, &at);

	if (err != (page->present ? 0 : -ENOENT)) {
		fail(conf, "translate %#lx: %d, but it is %s",
		     (unsigned long)gpa.value, err,
		     page->present ? "present" : "absent");
	} else if (err == 0 && (at.prot != page->prot ||
				at.host != host_of(conf, gpa.value))) {
		fail(conf, "translate %#lx: prot %x at %p, not %x at %p",
		     (unsigned long)gpa.value, at.prot, at.host, page->prot,
		     (void *)host_of(conf, gpa.value));
	}
}

/* Both ends of every run of pages that are alike. */
void verify_layout(struct conf *conf)
{
	for (uint32_t i = 0; i < ARENA_PAGES && !conf->failed; i++) {
		const struct page *page = &conf->pages[i];

		if (i == 0 || i == ARENA_PAGES - 1 ||
		    !same_region(page, page - 1) ||
		    !same_region(page, page + 1) ||
		    page->present != page[-1].present ||
		    page->present != page[1].present) {
			verify_page(conf, i);
		}
	}
	if (!conf->failed && gpas_check(conf->space) != 0) {
		fail(conf, "gpas_check");
	}
}

void learn_presence(struct conf *conf)
{
	for (uint32_t i = 0; i < ARENA_PAGES; i++) {
		struct page *page = &conf->pages[i];
		const struct mapping *mapping = mapping_of(conf, page);
		struct gpas_translation at;

		page->stable = false;
		if (mapping != NULL && mapping->lazy && !page->present) {
			page->present =
				gpas_translate(conf->space, gpa_of(conf, i), 0,
					       PAGE, &at) == 0;
		}
	}
}

static void print_line(void *ctx, const char *text)
{
	(void)ctx;
	(void)fprintf(stderr, "    %s\n", text);
}

void print_layout(const struct conf *conf)
{
	for (uint32_t i = 0; i < ARENA_PAGES; i++) {
		const struct page *page = &conf->pages[i];
		const struct mapping *mapping = mapping_of(conf, page);
		uint32_t first = i;

		if (mapping == NULL) {
			continue;
		}
		while (i + 1 < ARENA_PAGES && same_region(page, page + 1) &&
		       page->present == page[1].present) {
			i++;
			page++;
		}
		(void)fprintf(
			stderr,
			"    %#lx-%#lx #%u %s prot %x %s granule %#lx host "
			"%p\n",
			(unsigned long)gpa_of(conf, first).value,
			(unsigned long)gpa_of(conf, i + 1).value, page->mapping,
			kind_name(mapping->kind), page->prot,
			page->present ? "present" : "absent",
			(unsigned long)mapping->granule,
			(void *)(mapping->host == NULL
					 ? NULL
					 : mapping->host +
						   (first - mapping->first) *
							   PAGE));
	}
	if (conf->space != NULL) {
		gpas_dump(conf->space, GPAS_DUMP_ALL, print_line, NULL);
	}
}
