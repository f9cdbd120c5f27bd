/* SPDX-License-Identifier: MIT */
/*
 * The KVM mirror on a KVM that is an array: what each call costs in ioctls,
 * limits, groups, pausing, failing ioctls, the smallest difference by brute
 * force, and random calls against a model.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fake_kvm.h"
#include "kvm_model.h"

#define PAGE GPAS_PAGE_BYTES
#define KIB  (UINT64_C(1) << 10)
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)
#define TIB  (UINT64_C(1) << 40)

/* Linear memory that nobody touches needs no memory. */
#define HOST (UINT64_C(0x100000) << 20)

struct fixture {
	struct fake_kvm kvm;
	struct gpas *space;
	enum gpas_lazy lazy;
	struct gpas_kvm_params params;
	struct kvm_run *run;
	struct gpas_vcpu vcpu;
	bool has_vcpu;
	/* What pause does, and how often it and resume were called. */
	bool pause_fails;
	unsigned pauses;
	unsigned resumes;
	char last_error[256];
};

/* ---- The fixture --------------------------------------------------------- */

static void keep_error(void *ctx, enum gpas_log_level level, const char *line)
{
	struct fixture *f = ctx;

	(void)level;
	(void)snprintf(f->last_error, sizeof(f->last_error), "%s", line);
}

static void start(struct fixture *f, uint64_t size, enum gpas_lazy lazy)
{
	struct gpas_params params = {
		.size = size,
		.format = GPAS_FORMAT_EPT_4,
		.log = keep_error,
		.log_ctx = f,
	};

	memset(f, 0, sizeof(*f));
	f->lazy = lazy;
	f->params.lazy = lazy;
	fake_kvm_init(&f->kvm);
	assert_int_equal(gpas_create(&params, &f->space), 0);
	f->run = calloc(1, sizeof(*f->run));
	assert_non_null(f->run);
}

static void attach(struct fixture *f)
{
	assert_int_equal(fake_kvm_attach(&f->kvm, f->space, &f->params), 0);
	fake_kvm_mark(&f->kvm);
}

/* Invariants by the library's own check and by the fake's. */
static void verify(struct fixture *f)
{
	uint64_t at;
	const char *what = fake_kvm_verify(&f->kvm, f->space, f->lazy, &at);

	if (what != NULL) {
		fail_msg("slots at %#llx: %s", (unsigned long long)at, what);
	}
	if (gpas_check(f->space) != 0) {
		fail_msg("gpas_check: %s", f->last_error);
	}
}

static void finish(struct fixture *f)
{
	if (f->has_vcpu) {
		gpas_vcpu_fini(&f->vcpu);
	}
	fake_kvm_mark(&f->kvm);
	gpas_destroy(f->space);
	assert_int_equal(fake_kvm_slots(&f->kvm, NULL), 0);
	if (f->kvm.mistake != NULL) {
		fail_msg("%s", f->kvm.mistake);
	}
	fake_kvm_fini(&f->kvm);
	free(f->run);
}

/* The ioctls since the last mark were these; counts anew. */
#define assert_ioctls(f, add_count, delete_count)                   \
	do {                                                        \
		assert_int_equal((f)->kvm.adds, (add_count));       \
		assert_int_equal((f)->kvm.deletes, (delete_count)); \
		verify(f);                                          \
		fake_kvm_mark(&(f)->kvm);                           \
	} while (0)

static int try_map(struct fixture *f, uint64_t gpa, uint64_t size,
		   uint64_t host, unsigned prot)
{
	return gpas_map_linear(f->space, gpas_gpa_at(gpa), size,
			       gpas_hva_pointer(gpas_hva_at(host)), prot, NULL);
}

static void map(struct fixture *f, uint64_t gpa, uint64_t size, uint64_t host)
{
	assert_int_equal(try_map(f, gpa, size, host, GPAS_PROT_RW), 0);
}

static int try_lazy(struct fixture *f, uint64_t gpa, uint64_t size,
		    uint64_t granule)
{
	struct gpas_map_params params = { .lazy = true, .granule = granule };

	return gpas_map_alloc(f->space, gpas_gpa_at(gpa), size, GPAS_PROT_RW,
			      &params);
}

static void map_lazy(struct fixture *f, uint64_t gpa, uint64_t size,
		     uint64_t granule)
{
	assert_int_equal(try_lazy(f, gpa, size, granule), 0);
}

static int no_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

static int try_device(struct fixture *f, uint64_t gpa, uint64_t size)
{
	struct gpas_device device = { .access = no_access };

	return gpas_map_device(f->space, gpas_gpa_at(gpa), size, &device);
}

static int unmap(struct fixture *f, uint64_t gpa, uint64_t size)
{
	return gpas_unmap(f->space, gpas_gpa_at(gpa), size);
}

static int protect(struct fixture *f, uint64_t gpa, uint64_t size,
		   unsigned prot)
{
	return gpas_protect(f->space, gpas_gpa_at(gpa), size, prot);
}

/* The fault's error, or how many bytes it populated. */
static int64_t touch(struct fixture *f, uint64_t gpa, unsigned access)
{
	struct gpas_fault fault;
	int err = gpas_fault(f->space, gpas_gpa_at(gpa), access, &fault);

	if (err == 0 && fault.kind == GPAS_FAULT_FAILED) {
		err = fault.error;
	}
	if (err == 0) {
		assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
	}
	return err != 0 ? err : (int64_t)fault.populated;
}

static enum fake_kind kind_at(struct fixture *f, uint64_t gpa)
{
	uint64_t host;

	return fake_kvm_translate(&f->kvm, gpa, &host);
}

/* ---- vCPUs --------------------------------------------------------------- */

static void pause_vcpu(void *ctx)
{
	struct fixture *f = ctx;

	f->pauses++;
	if (!f->pause_fails) {
		f->vcpu.running = 0;
	}
}

static void resume_vcpu(void *ctx)
{
	struct fixture *f = ctx;

	f->resumes++;
	gpas_vcpu_enter(&f->vcpu);
}

static void use_callbacks(struct fixture *f)
{
	f->params.pause = pause_vcpu;
	f->params.resume = resume_vcpu;
	f->params.ctx = f;
}

static void start_vcpu(struct fixture *f)
{
	assert_int_equal(gpas_vcpu_init(&f->vcpu, f->space, -1, f->run), 0);
	f->has_vcpu = true;
	f->kvm.running = &f->vcpu.running;
	gpas_vcpu_enter(&f->vcpu);
	assert_true(gpas_vcpu_running(&f->vcpu));
}

/* ---- The state as text --------------------------------------------------- */

struct text {
	char *bytes;
	size_t used;
	size_t room;
};

__attribute__((format(printf, 2, 3))) static void add_text(struct text *text,
							   const char *format,
							   ...)
{
	va_list args;
	int length;

	if (text->room - text->used < 512) {
		text->room = text->room * 2 + 4096;
		text->bytes = realloc(text->bytes, text->room);
		assert_non_null(text->bytes);
	}
	va_start(args, format);
	length = vsnprintf(text->bytes + text->used, text->room - text->used,
			   format, args);
	va_end(args);
	assert_true(length >= 0 && (size_t)length < text->room - text->used);
	text->used += (size_t)length;
}

static void add_line(void *ctx, const char *line)
{
	add_text(ctx, "%s\n", line);
}

static void add_regions(struct text *text, struct gpas *space)
{
	struct gpas_region region;
	gpas_gpa at = gpas_base(space);

	while (gpas_region_next(space, at, &region) == 0) {
		add_text(text, "%llx+%llx %u kind %d lazy %d host %p %llx\n",
			 (unsigned long long)region.start.value,
			 (unsigned long long)region.size, region.prot,
			 region.kind, region.lazy, region.host,
			 (unsigned long long)region.present);
		at = gpas_gpa_at(region.start.value + region.size);
	}
}

/* Everything there is to see: regions, extents, slots, gauges. */
static char *state_of(struct fixture *f)
{
	struct text text = { 0 };
	struct gpas_stats s;

	gpas_dump(f->space, GPAS_DUMP_ALL, add_line, &text);
	add_regions(&text, f->space);
	gpas_stats(f->space, &s);
	add_text(&text, "%llu %llu %llu %llu %llu %llu %llu %llu %llu\n",
		 (unsigned long long)s.regions, (unsigned long long)s.mapped,
		 (unsigned long long)s.present,
		 (unsigned long long)s.table_pages,
		 (unsigned long long)s.leaves[0],
		 (unsigned long long)s.leaves[1],
		 (unsigned long long)s.leaves[2], (unsigned long long)s.slots,
		 (unsigned long long)s.traps);
	for (uint32_t id = 0; id < f->kvm.top; id++) {
		const struct slot_desc *slot = &f->kvm.slots[id];

		if (slot->size != 0) {
			add_text(&text, "#%u %llx+%llx %llx %u %d\n", id,
				 (unsigned long long)slot->gpa,
				 (unsigned long long)slot->size,
				 (unsigned long long)slot->host, slot->flags,
				 slot->trap);
		}
	}
	return text.bytes;
}

/* Compares and frees the earlier state. */
static void assert_unchanged(struct fixture *f, char *before)
{
	char *after = state_of(f);

	assert_string_equal(before, after);
	free(before);
	free(after);
	verify(f);
}

/* ---- What calls cost ----------------------------------------------------- */

static void attach_mirrors_what_is_mapped(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	map(&f, 0, MIB, HOST);
	map(&f, MIB, MIB, HOST + MIB);
	map_lazy(&f, 4 * MIB, MIB, 64 * KIB);
	assert_int_equal(try_device(&f, 8 * MIB, PAGE), 0);
	assert_int_equal(try_map(&f, 9 * MIB, PAGE, HOST, GPAS_PROT_READ), 0);
	assert_int_equal(touch(&f, 4 * MIB + 64 * KIB, 1), 64 * KIB);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(fake_kvm_attach(&f.kvm, f.space, &f.params), 0);
	/* Two neighbours in one; trap, granule, trap; the read-only page. */
	assert_ioctls(&f, 5, 0);
	assert_int_equal(kind_at(&f, 8 * MIB), FAKE_NONE);
	assert_int_equal(kind_at(&f, 9 * MIB), FAKE_READ_ONLY);
	assert_int_equal(kind_at(&f, 4 * MIB), FAKE_TRAP);
	assert_int_equal(fake_kvm_attach(&f.kvm, f.space, &f.params), -EBUSY);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(gpas_kvm_detach(f.space), 0);
	assert_int_equal(f.kvm.deletes, 5);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
	assert_int_equal(gpas_kvm_detach(f.space), -ENOENT);
	assert_int_equal(gpas_check(f.space), 0);
	attach(&f);
	verify(&f);
	finish(&f);
}

static void attach_waits_for_the_end_of_a_group(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	assert_int_equal(gpas_begin(f.space), 0);
	map(&f, 0, MIB, HOST);
	assert_int_equal(fake_kvm_attach(&f.kvm, f.space, &f.params), -EBUSY);
	assert_int_equal(f.kvm.calls, 0);
	assert_int_equal(gpas_commit(f.space), 0);
	attach(&f);
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(gpas_kvm_detach(f.space), -EBUSY);
	assert_int_equal(gpas_abort(f.space), 0);
	verify(&f);
	finish(&f);
}

static void eager_maps_cost_one_slot_each(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map(&f, MIB, MIB, HOST + MIB);
	assert_ioctls(&f, 1, 0);
	map(&f, 2 * MIB, MIB, HOST + 2 * MIB); /* could be one slot */
	assert_ioctls(&f, 1, 0);
	map(&f, 0, MIB, HOST);
	assert_ioctls(&f, 1, 0);
	map(&f, 3 * MIB, MIB, HOST); /* another offset */
	assert_ioctls(&f, 1, 0);
	assert_int_equal(try_device(&f, 5 * MIB, MIB), 0);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(try_map(&f, 6 * MIB, MIB, HOST, GPAS_PROT_NONE), 0);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(try_map(&f, 7 * MIB, MIB, HOST, GPAS_PROT_EXEC), 0);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 4);
	assert_int_equal(gpas_clear(f.space), 0);
	assert_ioctls(&f, 0, 4);
	finish(&f);
}

static void unmap_cuts_slots(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map(&f, 0, 16 * PAGE, HOST);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(unmap(&f, 4 * PAGE, 2 * PAGE), 0);
	assert_ioctls(&f, 2, 1);
	assert_int_equal(unmap(&f, 0, PAGE), 0);
	assert_ioctls(&f, 1, 1);
	assert_int_equal(unmap(&f, 15 * PAGE, 5 * PAGE), 0);
	assert_ioctls(&f, 1, 1);
	assert_int_equal(unmap(&f, 3 * PAGE, 4 * PAGE), 0); /* ends of both */
	assert_ioctls(&f, 2, 2);
	assert_int_equal(unmap(&f, 100 * PAGE, PAGE), 0); /* nothing there */
	assert_ioctls(&f, 0, 0);
	assert_int_equal(unmap(&f, 0, 7 * PAGE), 0);
	assert_ioctls(&f, 0, 1);
	finish(&f);
}

static void protect_replaces_only_what_changes(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map(&f, 0, 16 * PAGE, HOST);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(protect(&f, 4 * PAGE, PAGE, GPAS_PROT_READ), 0);
	assert_ioctls(&f, 3, 1);
	assert_int_equal(kind_at(&f, 4 * PAGE), FAKE_READ_ONLY);
	assert_int_equal(protect(&f, 4 * PAGE, PAGE, GPAS_PROT_RX), 0);
	assert_ioctls(&f, 0, 0); /* KVM sees no difference */
	assert_int_equal(protect(&f, 4 * PAGE, PAGE, GPAS_PROT_RW), 0);
	assert_ioctls(&f, 1, 1);
	assert_int_equal(protect(&f, 0, 16 * PAGE, GPAS_PROT_NONE), 0);
	assert_ioctls(&f, 0, 3);
	assert_int_equal(protect(&f, 0, 16 * PAGE, GPAS_PROT_RWX), 0);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(protect(&f, 0, 16 * PAGE, GPAS_PROT_EXEC), 0);
	assert_ioctls(&f, 0, 1);
	finish(&f);
}

static void absent_memory_gets_a_slot_a_granule(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map_lazy(&f, 0, 256 * MIB, 64 * KIB);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(touch(&f, 65 * KIB, 2), 64 * KIB);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(touch(&f, 64 * KIB, 1), 0);
	assert_int_equal(touch(&f, 0, 1), 64 * KIB);
	assert_ioctls(&f, 1, 0); /* beside its neighbour, not in its place */
	assert_int_equal(gpas_populate(f.space, gpas_gpa_at(0), MIB), 0);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(unmap(&f, 0, 256 * MIB), 0);
	assert_ioctls(&f, 0, 3);
	finish(&f);
}

/* A fault in the middle of a big trap leaves about log2 traps on either side,
 * and the next fault replaces only one of about half the size. */
static void traps_are_cut_buddy_wise(void **state)
{
	struct fixture f;
	uint64_t at = 77 * MIB + 64 * KIB;
	size_t traps;

	(void)state;
	start(&f, 4 * GIB, GPAS_LAZY_TRAP);
	attach(&f);
	map_lazy(&f, GIB, GIB, 64 * KIB);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(touch(&f, GIB + at, 2), 64 * KIB);
	assert_true(f.kvm.adds <= 1 + 2 * 14);
	assert_int_equal(f.kvm.deletes, 1);
	verify(&f);
	fake_kvm_mark(&f.kvm);
	fake_kvm_slots(&f.kvm, &traps);
	assert_in_range(traps, 2, 28);
	assert_int_equal(touch(&f, GIB + 900 * MIB, 2), 64 * KIB);
	assert_true(fake_kvm_find(&f.kvm, 2 * GIB - PAGE)->trap);
	assert_true(fake_kvm_find(&f.kvm, 2 * GIB - PAGE)->size <= 512 * MIB);
	assert_int_equal(f.kvm.deletes, 1);
	verify(&f);
	/* Without READ nobody may know of it, and back. */
	assert_int_equal(protect(&f, GIB, GIB, GPAS_PROT_NONE), 0);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(protect(&f, GIB, GIB, GPAS_PROT_READ), 0);
	assert_ioctls(&f, 5, 0); /* trap, granule, trap, granule, trap */
	assert_int_equal(unmap(&f, 0, 4 * GIB), 0);
	assert_ioctls(&f, 0, 5);
	finish(&f);
}

static void lazy_neighbours_share_a_trap(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	map_lazy(&f, 0, MIB, 0);
	map_lazy(&f, MIB, MIB, PAGE);
	attach(&f);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 1);
	assert_int_equal(unmap(&f, MIB, MIB), 0);
	assert_ioctls(&f, 1, 1);
	assert_int_equal(touch(&f, 0, 1), 64 * KIB);
	verify(&f);
	assert_int_equal(gpas_populate(f.space, gpas_gpa_at(0), MIB), 0);
	verify(&f);
	finish(&f);
}

static void sequential_faults_grow_the_granule(void **state)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = 64 * KIB,
		.granule_max = 4 * MIB,
	};
	struct fixture f;
	unsigned faults = 0;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(0), 64 * MIB,
					GPAS_PROT_RW, &params),
			 0);
	for (uint64_t at = 0; at < 64 * MIB; at += PAGE) {
		faults += touch(&f, at, 2) != 0;
	}
	assert_true(faults <= 7 + 16);
	assert_int_equal(f.kvm.adds, faults);
	verify(&f);
	finish(&f);
}

/* ---- Numbers and limits -------------------------------------------------- */

static void only_its_own_numbers_are_used(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	f.params.slot_first = 100;
	f.params.slot_count = 3;
	attach(&f);
	for (unsigned round = 0; round < 50; round++) {
		map(&f, 0, PAGE, HOST);
		map(&f, 2 * PAGE, 3 * PAGE, HOST);
		assert_int_equal(unmap(&f, 3 * PAGE, PAGE), 0);
		verify(&f);
		assert_int_equal(unmap(&f, 0, 8 * PAGE), 0);
	}
	assert_true(f.kvm.top <= 103);
	for (unsigned id = 0; id < 100; id++) {
		assert_int_equal(f.kvm.slots[id].size, 0);
	}
	finish(&f);
}

static void the_limit_is_checked_first(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	f.params.slot_count = 2;
	attach(&f);
	map(&f, 0, 4 * PAGE, HOST);
	map(&f, 8 * PAGE, 4 * PAGE, HOST);
	fake_kvm_mark(&f.kvm);
	before = state_of(&f);
	assert_int_equal(try_map(&f, 16 * PAGE, PAGE, HOST, GPAS_PROT_RW),
			 -ENOSPC);
	assert_int_equal(unmap(&f, PAGE, PAGE), -ENOSPC);
	assert_int_equal(protect(&f, PAGE, PAGE, GPAS_PROT_READ), -ENOSPC);
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(try_map(&f, 16 * PAGE, PAGE, HOST, GPAS_PROT_RW), 0);
	assert_int_equal(unmap(&f, 0, PAGE), 0);
	assert_int_equal(gpas_commit(f.space), -ENOSPC);
	assert_ioctls(&f, 0, 0);
	assert_unchanged(&f, before);
	/* With room made in the same group it fits. */
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(try_map(&f, 16 * PAGE, PAGE, HOST, GPAS_PROT_RW), 0);
	assert_int_equal(unmap(&f, 0, 4 * PAGE), 0);
	assert_int_equal(gpas_commit(f.space), 0);
	assert_ioctls(&f, 1, 1);
	finish(&f);
}

static void an_attach_that_does_not_fit_leaves_nothing(void **state)
{
	struct fixture f;
	struct gpas_kvm_info info;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	map(&f, 0, PAGE, HOST);
	map(&f, 2 * PAGE, PAGE, HOST);
	f.params.slot_count = 1;
	assert_int_equal(fake_kvm_attach(&f.kvm, f.space, &f.params), -ENOSPC);
	assert_int_equal(f.kvm.calls, 0);
	assert_int_equal(gpas_kvm_info(f.space, &info), -ENOENT);
	f.params.slot_count = 2;
	attach(&f);
	verify(&f);
	finish(&f);
}

static void slots_are_merged_when_they_run_short(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	f.params.slot_count = 4;
	attach(&f);
	map_lazy(&f, 0, 64 * MIB, 64 * KIB);
	for (uint64_t at = 0; at < 4 * MIB; at += 64 * KIB) {
		assert_int_equal(touch(&f, at, 2), 64 * KIB);
		verify(&f);
	}
	/* Downwards, and the gap between two. */
	assert_int_equal(touch(&f, 6 * MIB, 2), 64 * KIB);
	for (uint64_t at = 6 * MIB; at > 4 * MIB; at -= 64 * KIB) {
		assert_int_equal(touch(&f, at - 64 * KIB, 2), 64 * KIB);
		verify(&f);
	}
	finish(&f);
}

/* One slot is enough for memory with one offset, however it was mapped. */
static void the_new_memory_takes_part_in_merging(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	f.params.slot_count = 1;
	attach(&f);
	map(&f, 4 * PAGE, PAGE, HOST + 4 * PAGE);
	assert_int_equal(
		try_map(&f, 5 * PAGE, PAGE, HOST + 5 * PAGE, GPAS_PROT_RW), 0);
	verify(&f);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 1);
	assert_int_equal(
		try_map(&f, 3 * PAGE, PAGE, HOST + 3 * PAGE, GPAS_PROT_RW), 0);
	verify(&f);
	finish(&f);
}

static int populate_nowhere(void *ctx, uint64_t offset, uint64_t *size,
			    void **host)
{
	(void)ctx;
	(void)size;
	*host = gpas_hva_pointer(gpas_hva_at(HOST + offset));
	return 0;
}

static void pieces_keep_to_kvms_largest_slot(void **state)
{
	struct gpas_backend backend = { .populate = populate_nowhere };
	struct gpas_map_params lazy = { .lazy = true, .granule = MIB };
	struct fixture f;

	(void)state;
	start(&f, 64 * TIB, GPAS_LAZY_TRAP);
	attach(&f);
	map(&f, 0, 20 * TIB, HOST);
	assert_ioctls(&f, 3, 0);
	assert_int_equal(unmap(&f, 10 * TIB, PAGE), 0);
	assert_ioctls(&f, 2, 1);
	map(&f, 10 * TIB, PAGE, HOST + 10 * TIB);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(unmap(&f, 0, 64 * TIB), 0);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(gpas_map_backend(f.space, gpas_gpa_at(32 * TIB),
					  3 * TIB + MIB, GPAS_PROT_RW, &backend,
					  &lazy),
			 0);
	assert_ioctls(&f, 4, 0); /* traps of at most 1 TiB */
	assert_int_equal(touch(&f, 33 * TIB + 12345 * PAGE, 1), MIB);
	assert_int_equal(f.kvm.deletes, 1);
	assert_true(f.kvm.adds <= 1 + 2 * 20);
	verify(&f);
	finish(&f);
}

/* ---- Groups -------------------------------------------------------------- */

static void a_group_is_one_difference(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map(&f, 512 * MIB, PAGE, HOST);
	fake_kvm_mark(&f.kvm);
	before = state_of(&f);
	assert_int_equal(gpas_begin(f.space), 0);
	for (uint64_t i = 0; i < 10000; i++) {
		map(&f, 2 * i * PAGE, PAGE, HOST + 2 * i * PAGE);
	}
	assert_int_equal(f.kvm.calls, 0);
	assert_int_equal(gpas_abort(f.space), 0);
	assert_ioctls(&f, 0, 0);
	assert_unchanged(&f, before);
	assert_int_equal(gpas_begin(f.space), 0);
	for (uint64_t i = 0; i < 10000; i++) {
		map(&f, 2 * i * PAGE, PAGE, HOST + 2 * i * PAGE);
	}
	for (uint64_t i = 10000; i > 0; i--) {
		map(&f, (2 * i - 1) * PAGE, PAGE, HOST + (2 * i - 1) * PAGE);
	}
	assert_int_equal(f.kvm.calls, 0);
	assert_int_equal(gpas_commit(f.space), 0);
	assert_ioctls(&f, 1, 0);
	assert_int_equal(gpas_begin(f.space), 0);
	for (uint64_t i = 0; i < 10000; i += 2) {
		assert_int_equal(unmap(&f, i * PAGE, PAGE), 0);
	}
	assert_int_equal(gpas_commit(f.space), 0);
	assert_ioctls(&f, 5001 - 1, 1);
	finish(&f);
}

static void a_group_without_a_difference_costs_nothing(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	attach(&f);
	map(&f, 0, MIB, HOST);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(gpas_begin(f.space), -EBUSY);
	map(&f, 4 * MIB, MIB, HOST);
	assert_int_equal(unmap(&f, 4 * MIB, MIB), 0);
	assert_int_equal(protect(&f, 0, MIB, GPAS_PROT_READ), 0);
	assert_int_equal(protect(&f, 0, MIB, GPAS_PROT_RW), 0);
	assert_int_equal(unmap(&f, 16 * PAGE, PAGE), 0);
	map(&f, 16 * PAGE, PAGE, HOST + 16 * PAGE);
	assert_int_equal(gpas_commit(f.space), 0);
	assert_ioctls(&f, 0, 0);
	assert_int_equal(gpas_commit(f.space), -EINVAL);
	assert_int_equal(gpas_abort(f.space), -EINVAL);
	finish(&f);
}

/* ---- Pausing ------------------------------------------------------------- */

static void growing_and_removing_pause_nobody(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	use_callbacks(&f);
	attach(&f);
	start_vcpu(&f);
	map(&f, 0, 16 * PAGE, HOST);
	map(&f, 16 * PAGE, 16 * PAGE, HOST + 16 * PAGE);
	map_lazy(&f, MIB, MIB, 64 * KIB);
	assert_int_equal(touch(&f, MIB, 2), 64 * KIB);
	assert_int_equal(touch(&f, MIB + 64 * KIB, 2), 64 * KIB);
	assert_int_equal(unmap(&f, 0, 16 * PAGE), 0);
	assert_int_equal(protect(&f, 16 * PAGE, 16 * PAGE, GPAS_PROT_NONE), 0);
	/* In one group a slot goes and another comes elsewhere. */
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(unmap(&f, MIB, MIB), 0);
	map(&f, 4 * MIB, MIB, HOST);
	assert_int_equal(gpas_commit(f.space), 0);
	verify(&f);
	assert_int_equal(f.pauses, 0);
	assert_int_equal(f.resumes, 0);
	finish(&f);
}

static void replacing_pauses_once(void **state)
{
	struct fixture f;
	struct gpas_stats stats;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	use_callbacks(&f);
	attach(&f);
	start_vcpu(&f);
	map(&f, 0, 16 * PAGE, HOST);
	assert_int_equal(f.pauses, 0);
	assert_int_equal(unmap(&f, 4 * PAGE, PAGE), 0);
	assert_int_equal(f.pauses, 1);
	assert_int_equal(f.resumes, 1);
	assert_true(gpas_vcpu_running(&f.vcpu));
	assert_int_equal(protect(&f, 0, PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(f.pauses, 2);
	map_lazy(&f, MIB, MIB, 64 * KIB);
	assert_int_equal(f.pauses, 2);
	assert_int_equal(touch(&f, MIB, 2), 64 * KIB); /* replaces the trap */
	assert_int_equal(f.pauses, 3);
	assert_int_equal(f.resumes, 3);
	verify(&f);
	gpas_stats(f.space, &stats);
	assert_int_equal(stats.pauses, 3);
	/* A vCPU that does not run need not be asked. */
	f.vcpu.running = 0;
	assert_int_equal(touch(&f, MIB + 512 * KIB, 2), 64 * KIB);
	assert_int_equal(f.pauses, 3);
	finish(&f);
}

static void without_callbacks_replacing_is_refused(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	attach(&f);
	start_vcpu(&f);
	map(&f, 0, 16 * PAGE, HOST);
	map_lazy(&f, MIB, MIB, 64 * KIB);
	fake_kvm_mark(&f.kvm);
	before = state_of(&f);
	assert_int_equal(unmap(&f, 4 * PAGE, PAGE), -EBUSY);
	assert_non_null(strstr(f.last_error, "pause"));
	assert_int_equal(protect(&f, 0, PAGE, GPAS_PROT_READ), -EBUSY);
	assert_int_equal(touch(&f, MIB, 2), -EBUSY);
	assert_int_equal(gpas_populate(f.space, gpas_gpa_at(MIB), PAGE),
			 -EBUSY);
	assert_ioctls(&f, 0, 0);
	assert_unchanged(&f, before);
	/* What replaces nothing goes on. */
	map(&f, 16 * PAGE, PAGE, HOST);
	assert_int_equal(unmap(&f, 0, 16 * PAGE), 0);
	f.vcpu.running = 0;
	assert_int_equal(touch(&f, MIB, 2), 64 * KIB);
	verify(&f);
	finish(&f);
}

static void a_pause_that_does_not_pause_is_noticed(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	use_callbacks(&f);
	attach(&f);
	start_vcpu(&f);
	map(&f, 0, 16 * PAGE, HOST);
	f.pause_fails = true;
	before = state_of(&f);
	assert_int_equal(unmap(&f, 4 * PAGE, PAGE), -EBUSY);
	assert_int_equal(f.pauses, 1);
	assert_int_equal(f.resumes, 1);
	assert_unchanged(&f, before);
	finish(&f);
}

static void a_failed_replacement_resumes(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	use_callbacks(&f);
	attach(&f);
	start_vcpu(&f);
	map(&f, 0, 16 * PAGE, HOST);
	before = state_of(&f);
	fake_kvm_fail(&f.kvm, 2, -ENOMEM, false);
	assert_int_equal(unmap(&f, 4 * PAGE, PAGE), -ENOMEM);
	assert_int_equal(f.pauses, 1);
	assert_int_equal(f.resumes, 1);
	assert_true(gpas_vcpu_running(&f.vcpu));
	assert_unchanged(&f, before);
	finish(&f);
}

/* A vCPU's thread that enters and leaves all the time. */
struct runner {
	struct gpas_vcpu *vcpu;
	atomic_bool stop;
	atomic_ulong entries;
	int inside; /* atomic: surely in the guest */
};

static void *enter_and_leave(void *ctx)
{
	struct runner *r = ctx;

	while (!atomic_load(&r->stop)) {
		gpas_vcpu_enter(r->vcpu);
		__atomic_store_n(&r->inside, 1, __ATOMIC_SEQ_CST);
		atomic_fetch_add(&r->entries, 1);
		__atomic_store_n(&r->inside, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&r->vcpu->running, 0, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void wait_until_stopped(void *ctx)
{
	struct fixture *f = ctx;

	f->pauses++;
	while (gpas_vcpu_running(&f->vcpu)) {
	}
}

static void count_resume(void *ctx)
{
	((struct fixture *)ctx)->resumes++;
}

/* However the two meet, nothing is refused and no hole is seen. */
static void entering_races_with_replacing(void **state)
{
	struct fixture f;
	struct runner runner = { .vcpu = &f.vcpu };
	pthread_t thread;
	time_t end = time(NULL) + 2;
	int err = 0;

	(void)state;
	start(&f, GIB, GPAS_LAZY_ABSENT);
	f.params.pause = wait_until_stopped;
	f.params.resume = count_resume;
	f.params.ctx = &f;
	attach(&f);
	map(&f, 0, 16 * PAGE, HOST);
	start_vcpu(&f);
	f.kvm.running = &runner.inside;
	assert_int_equal(
		pthread_create(&thread, NULL, enter_and_leave, &runner), 0);
	for (unsigned i = 0; err == 0 && time(NULL) < end; i++) {
		fake_kvm_mark(&f.kvm);
		err = protect(&f, 0, PAGE,
			      i % 2 == 0 ? GPAS_PROT_READ : GPAS_PROT_RW);
	}
	atomic_store(&runner.stop, true);
	pthread_join(thread, NULL);
	assert_int_equal(err, 0);
	assert_int_equal(f.pauses, f.resumes);
	assert_true(runner.entries > 0);
	verify(&f);
	finish(&f);
}

/* ---- Failing ioctls ------------------------------------------------------ */

/* A layout with something of everything. */
static void lay_out(struct fixture *f)
{
	map(f, 0, 64 * PAGE, HOST);
	map(f, 64 * PAGE, 64 * PAGE, HOST + 64 * PAGE);
	assert_int_equal(
		try_map(f, 128 * PAGE, 64 * PAGE, HOST, GPAS_PROT_READ), 0);
	map_lazy(f, MIB, 4 * MIB, 64 * KIB);
	assert_int_equal(touch(f, MIB + 128 * KIB, 2), 64 * KIB);
	assert_int_equal(touch(f, 3 * MIB, 2), 64 * KIB);
	map_lazy(f, 5 * MIB, MIB, PAGE);
	assert_int_equal(try_device(f, 8 * MIB, 16 * PAGE), 0);
}

static int act_map(struct fixture *f)
{
	return try_map(f, 16 * MIB, MIB, HOST, GPAS_PROT_RW);
}

static int act_map_alloc(struct fixture *f)
{
	return gpas_map_alloc(f->space, gpas_gpa_at(16 * MIB), 4 * MIB,
			      GPAS_PROT_RW, NULL);
}

static int act_map_lazy(struct fixture *f)
{
	return try_lazy(f, 6 * MIB, MIB, PAGE);
}

static int act_unmap(struct fixture *f)
{
	return unmap(f, 32 * PAGE, 5 * MIB);
}

static int act_clear(struct fixture *f)
{
	return gpas_clear(f->space);
}

static int act_protect(struct fixture *f)
{
	return protect(f, 8 * PAGE, 128 * PAGE, GPAS_PROT_RX);
}

static int act_protect_lazy(struct fixture *f)
{
	return protect(f, 2 * MIB, 3 * MIB + 256 * KIB, GPAS_PROT_NONE);
}

static int act_fault(struct fixture *f)
{
	int64_t got = touch(f, 2 * MIB + 300 * KIB, 2);

	return got < 0 ? (int)got : 0;
}

static int act_populate(struct fixture *f)
{
	return gpas_populate(f->space, gpas_gpa_at(MIB), 5 * MIB);
}

static int act_group(struct fixture *f)
{
	assert_int_equal(gpas_begin(f->space), 0);
	assert_int_equal(act_map(f), 0);
	assert_int_equal(act_fault(f), 0);
	assert_int_equal(act_protect(f), 0);
	assert_int_equal(unmap(f, 0, PAGE), 0);
	assert_int_equal(unmap(f, 2 * MIB, PAGE), 0);
	map_lazy(f, 40 * MIB, MIB, 0);
	return gpas_commit(f->space);
}

static int (*const acts[])(struct fixture *) = {
	act_map,     act_map_alloc,    act_map_lazy, act_unmap,	   act_clear,
	act_protect, act_protect_lazy, act_fault,    act_populate, act_group,
};
#define ACT_COUNT (sizeof(acts) / sizeof(acts[0]))

static void write_marks(struct fixture *f, uint64_t value)
{
	assert_int_equal(
		gpas_store(f->space, gpas_gpa_at(MIB + 128 * KIB), 8, value),
		0);
	assert_int_equal(gpas_store(f->space, gpas_gpa_at(3 * MIB), 8, ~value),
			 0);
}

static void check_marks(struct fixture *f, uint64_t value)
{
	uint64_t got;

	assert_int_equal(
		gpas_load(f->space, gpas_gpa_at(MIB + 128 * KIB), 8, &got), 0);
	assert_int_equal(got, value);
	assert_int_equal(gpas_load(f->space, gpas_gpa_at(3 * MIB), 8, &got), 0);
	assert_int_equal(got, ~value);
}

/* Fails each ioctl of a call in turn, until it has none left. */
static void fail_each_ioctl(enum gpas_lazy lazy, int (*act)(struct fixture *))
{
	struct fixture f;
	uint64_t nth;

	start(&f, GIB, lazy);
	attach(&f);
	lay_out(&f);
	write_marks(&f, 0x1234);
	for (nth = 1; nth < 1000; nth++) {
		char *before = state_of(&f);
		int err;

		fake_kvm_fail(&f.kvm, nth, -ENOMEM, false);
		err = act(&f);
		if (!f.kvm.has_failed) {
			assert_int_equal(err, 0);
			free(before);
			break;
		}
		assert_int_equal(err, -ENOMEM);
		fake_kvm_mark(&f.kvm);
		assert_unchanged(&f, before);
		check_marks(&f, 0x1234);
	}
	assert_true(nth < 1000);
	verify(&f);
	finish(&f);
}

static void a_failing_ioctl_is_undone(void **state)
{
	(void)state;
	for (size_t i = 0; i < ACT_COUNT; i++) {
		fail_each_ioctl(GPAS_LAZY_ABSENT, acts[i]);
		fail_each_ioctl(GPAS_LAZY_TRAP, acts[i]);
	}
}

static void a_failing_attach_is_undone(void **state)
{
	struct fixture f;
	uint64_t nth;
	int err;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	lay_out(&f);
	for (nth = 1; nth < 100; nth++) {
		fake_kvm_fail(&f.kvm, nth, -ENOMEM, false);
		err = fake_kvm_attach(&f.kvm, f.space, &f.params);
		if (err == 0) {
			break;
		}
		assert_int_equal(err, -ENOMEM);
		assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
		assert_int_equal(gpas_kvm_detach(f.space), -ENOENT);
		assert_int_equal(gpas_check(f.space), 0);
	}
	assert_in_range(nth, 2, 99);
	fake_kvm_mark(&f.kvm);
	verify(&f);
	finish(&f);
}

/* Nothing but clear, detach and destroy works in such a space. */
static void assert_poisoned(struct fixture *f)
{
	assert_int_equal(act_map(f), -ENOTRECOVERABLE);
	assert_int_equal(act_map_lazy(f), -ENOTRECOVERABLE);
	assert_int_equal(act_unmap(f), -ENOTRECOVERABLE);
	assert_int_equal(act_protect(f), -ENOTRECOVERABLE);
	assert_int_equal(act_populate(f), -ENOTRECOVERABLE);
	assert_int_equal(act_fault(f), -ENOTRECOVERABLE);
	assert_int_equal(gpas_begin(f->space), -ENOTRECOVERABLE);
	check_marks(f, 0x77);
}

/* Fails the nth ioctl of a call and all later ones. False: it has none. */
static bool break_rollback(struct fixture *f, enum gpas_lazy lazy,
			   int (*act)(struct fixture *), uint64_t nth)
{
	char *before;
	int err;

	start(f, GIB, lazy);
	attach(f);
	lay_out(f);
	write_marks(f, 0x77);
	before = state_of(f);
	fake_kvm_fail(&f->kvm, nth, -ENOMEM, true);
	err = act(f);
	if (!f->kvm.has_failed) {
		assert_int_equal(err, 0);
		free(before);
		return false;
	}
	if (nth == 1) { /* nothing to undo */
		assert_int_equal(err, -ENOMEM);
		fake_kvm_mark(&f->kvm);
		assert_unchanged(f, before);
		return true;
	}
	assert_int_equal(err, -ENOTRECOVERABLE);
	assert_non_null(f->last_error);
	assert_poisoned(f);
	free(before);
	return true;
}

static void clear_recovers(enum gpas_lazy lazy, int (*act)(struct fixture *))
{
	bool more = true;

	for (uint64_t nth = 1; more; nth++) {
		struct fixture f;

		more = break_rollback(&f, lazy, act, nth);
		fake_kvm_mark(&f.kvm); /* KVM is well again */
		assert_int_equal(gpas_clear(f.space), 0);
		assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
		lay_out(&f);
		verify(&f);
		finish(&f);
	}
}

static void a_failing_rollback_is_owned_up_to(void **state)
{
	(void)state;
	for (size_t i = 0; i < ACT_COUNT; i++) {
		clear_recovers(GPAS_LAZY_ABSENT, acts[i]);
		clear_recovers(GPAS_LAZY_TRAP, acts[i]);
	}
}

static void a_poisoned_space_can_be_detached_or_destroyed(void **state)
{
	struct fixture f;

	(void)state;
	assert_true(break_rollback(&f, GPAS_LAZY_TRAP, act_unmap, 3));
	fake_kvm_mark(&f.kvm);
	assert_int_equal(gpas_kvm_detach(f.space), 0);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
	assert_int_equal(act_map(&f), 0);
	assert_int_equal(gpas_check(f.space), 0);
	attach(&f);
	verify(&f);
	finish(&f);
	assert_true(break_rollback(&f, GPAS_LAZY_TRAP, act_unmap, 3));
	finish(&f); /* finds no slot left */
}

/* While KVM goes on refusing, clear must not say that all is well. */
static void clear_does_not_pretend(void **state)
{
	struct fixture f;
	int err;

	(void)state;
	assert_true(break_rollback(&f, GPAS_LAZY_TRAP, act_unmap, 3));
	err = gpas_clear(f.space);
	assert_true(fake_kvm_slots(&f.kvm, NULL) > 0);
	assert_int_not_equal(err, 0);
	assert_int_equal(act_map(&f), -ENOTRECOVERABLE);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(gpas_clear(f.space), 0);
	assert_int_equal(fake_kvm_slots(&f.kvm, NULL), 0);
	assert_int_equal(act_map(&f), 0);
	verify(&f);
	finish(&f);
}

/* ---- Traps that are refused ---------------------------------------------- */

/* The ioctls of act_fault in trap mode until the first new trap. */
static uint64_t calls_until_trap(struct fixture *f)
{
	for (uint64_t nth = 1;; nth++) {
		char *before = state_of(f);

		fake_kvm_fail(&f->kvm, nth, -ENOMEM, false);
		assert_int_equal(act_fault(f), -ENOMEM);
		fake_kvm_mark(&f->kvm);
		assert_unchanged(f, before);
		if (strstr(f->last_error, "trap") != NULL &&
		    strstr(f->last_error, "add") != NULL) {
			return nth;
		}
	}
}

/* A fault while KVM grants no trap any more, refused early or late. */
static void refuse_traps(int error, bool early)
{
	struct gpas_kvm_info info;
	struct fixture f;
	size_t traps;

	start(&f, GIB, GPAS_LAZY_TRAP);
	attach(&f);
	lay_out(&f);
	if (early) {
		f.kvm.refuse_with = error;
	} else {
		fake_kvm_fail(&f.kvm, calls_until_trap(&f), error, false);
	}
	assert_int_equal(act_fault(&f), 0);
	fake_kvm_slots(&f.kvm, &traps);
	assert_int_equal(traps, 0);
	assert_int_equal(gpas_kvm_info(f.space, &info), 0);
	assert_int_equal(info.lazy, GPAS_LAZY_ABSENT);
	f.lazy = GPAS_LAZY_ABSENT;
	fake_kvm_mark(&f.kvm);
	verify(&f);
	assert_int_equal(act_map_lazy(&f), 0);
	assert_int_equal(act_populate(&f), 0);
	verify(&f);
	finish(&f);
}

static void refused_traps_make_way_for_absent_slots(void **state)
{
	static const int errors[] = { -EMFILE, -ENFILE, -EPERM, -EOPNOTSUPP };

	(void)state;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		refuse_traps(errors[i], false);
		refuse_traps(errors[i], true);
	}
}

/* What traps need is there before the first slot is touched, or is not. */
static void what_traps_need_comes_first(void **state)
{
	struct fixture f;
	char *before;

	(void)state;
	start(&f, GIB, GPAS_LAZY_TRAP);
	attach(&f);
	lay_out(&f);
	fake_kvm_mark(&f.kvm);
	before = state_of(&f);
	f.kvm.refuse_with = -ENOMEM;
	assert_int_equal(act_fault(&f), -ENOMEM);
	assert_int_equal(act_map_lazy(&f), -ENOMEM);
	assert_int_equal(unmap(&f, 2 * MIB, PAGE), -ENOMEM);
	assert_int_equal(f.kvm.calls, 0);
	assert_unchanged(&f, before);
	f.kvm.refuse_with = 0;
	assert_int_equal(act_map_lazy(&f), 0);
	verify(&f);
	finish(&f);
}

/* Giving up traps costs ioctls of its own, and each may fail: the call is
 * undone, and slots and table still agree whichever way memory faults now. */
static void giving_up_traps_may_fail(void **state)
{
	struct gpas_kvm_info info;
	struct fixture f;
	bool failed = true;

	(void)state;
	for (uint64_t nth = 1; failed && nth < 100; nth++) {
		uint64_t first;
		int err;

		start(&f, GIB, GPAS_LAZY_TRAP);
		attach(&f);
		lay_out(&f);
		first = calls_until_trap(&f);
		fake_kvm_fail(&f.kvm, first, -EMFILE, false);
		f.kvm.again_at = nth;
		f.kvm.again_with = -ENOMEM;
		err = act_fault(&f);
		failed = err != 0;
		fake_kvm_mark(&f.kvm);
		if (err == -ENOTRECOVERABLE) { /* the first undoing failed */
			assert_int_equal(gpas_clear(f.space), 0);
		} else {
			assert_int_equal(err, failed ? -ENOMEM : 0);
		}
		assert_int_equal(gpas_kvm_info(f.space, &info), 0);
		f.lazy = info.lazy;
		verify(&f);
		finish(&f);
	}
	assert_false(failed);
}

/* ---- The smallest difference, by brute force ----------------------------- */

#define SMALL_PAGES 8

struct cell {
	enum fake_kind kind;
	uint64_t host;
};

static void read_cells(struct fixture *f, struct cell *cells)
{
	for (unsigned i = 0; i < SMALL_PAGES; i++) {
		cells[i].host = 0;
		cells[i].kind =
			fake_kvm_translate(&f->kvm, i * PAGE, &cells[i].host);
	}
}

/* Whether page @i goes on where the one before it ends. */
static bool goes_on(const struct cell *cells, unsigned i)
{
	return i > 0 && cells[i].kind != FAKE_NONE &&
	       cells[i].kind == cells[i - 1].kind &&
	       (cells[i].kind == FAKE_TRAP ||
		cells[i].host == cells[i - 1].host + PAGE);
}

/* The slots it takes to cover what @kept (a mask of pages) leaves open. */
static unsigned count_gaps(const struct cell *cells, unsigned kept)
{
	unsigned gaps = 0;

	for (unsigned i = 0; i < SMALL_PAGES; i++) {
		bool open = cells[i].kind != FAKE_NONE && !(kept >> i & 1);
		bool joined = goes_on(cells, i) && !(kept >> (i - 1) & 1);

		gaps += open && !joined;
	}
	return gaps;
}

/* The pages of a slot that serves what @cells want there, or 0. */
static unsigned served(const struct slot_desc *slot, const struct cell *cells)
{
	unsigned pages = 0;

	for (uint64_t at = slot->gpa; at < slot->gpa + slot->size; at += PAGE) {
		const struct cell *cell = &cells[at / PAGE];
		enum fake_kind kind = (slot->flags & KVM_MEM_READONLY) != 0
					      ? FAKE_READ_ONLY
					      : FAKE_WRITABLE;

		if (slot->trap ? cell->kind != FAKE_TRAP
			       : cell->kind != kind ||
					 cell->host !=
						 slot->host + at - slot->gpa) {
			return 0;
		}
		pages |= 1u << (at / PAGE);
	}
	return pages;
}

/* The fewest ioctls that lead from @old to @cells: every set of slots that
 * could be kept is tried. */
static unsigned fewest_ioctls(const struct slot_desc *old, unsigned count,
			      const struct cell *cells)
{
	unsigned best = UINT32_MAX;

	for (unsigned keep = 0; keep < 1u << count; keep++) {
		unsigned ioctls = 0;
		unsigned kept = 0;
		bool possible = true;

		for (unsigned i = 0; i < count; i++) {
			unsigned pages = served(&old[i], cells);

			ioctls += !(keep >> i & 1);
			possible &= !(keep >> i & 1) || pages != 0;
			kept |= keep >> i & 1 ? pages : 0;
		}
		ioctls += count_gaps(cells, kept);
		if (possible && ioctls < best) {
			best = ioctls;
		}
	}
	return best;
}

static unsigned copy_slots(struct fixture *f, struct slot_desc *slots)
{
	unsigned count = 0;

	for (uint32_t id = 0; id < f->kvm.top; id++) {
		if (f->kvm.slots[id].size != 0) {
			assert_true(count < SMALL_PAGES);
			slots[count++] = f->kvm.slots[id];
		}
	}
	return count;
}

/* One random call on the first pages; its result may be an error. */
static int small_change(struct fixture *f, unsigned *random)
{
	static const unsigned prots[] = { GPAS_PROT_RW, GPAS_PROT_RW,
					  GPAS_PROT_READ, GPAS_PROT_NONE };
	unsigned first = (unsigned)rand_r(random) % SMALL_PAGES;
	unsigned count = 1 + (unsigned)rand_r(random) % (SMALL_PAGES - first);
	unsigned prot = prots[(unsigned)rand_r(random) % 4];
	uint64_t host = HOST + (rand_r(random) % 3 == 0 ? GIB : 0);

	switch ((unsigned)rand_r(random) % 5) {
	case 0:
		return unmap(f, first * PAGE, count * PAGE);
	case 1:
	case 2:
		return protect(f, first * PAGE, count * PAGE, prot);
	default:
		return try_map(f, first * PAGE, count * PAGE,
			       host + first * PAGE, prot);
	}
}

static void compare_with_fewest(struct fixture *f, unsigned seed)
{
	struct slot_desc old[SMALL_PAGES];
	struct cell cells[SMALL_PAGES];
	unsigned random = seed;

	for (unsigned step = 0; step < 40; step++) {
		unsigned count = copy_slots(f, old);
		unsigned changes = 1 + (unsigned)rand_r(&random) % 3;
		unsigned fewest;

		fake_kvm_mark(&f->kvm);
		assert_int_equal(gpas_begin(f->space), 0);
		for (unsigned i = 0; i < changes; i++) {
			(void)small_change(f, &random);
		}
		assert_int_equal(gpas_commit(f->space), 0);
		verify(f);
		read_cells(f, cells);
		fewest = fewest_ioctls(old, count, cells);
		if (f->kvm.calls != fewest) {
			fail_msg("seed %u, step %u: %llu ioctls, %u would do",
				 seed, step, (unsigned long long)f->kvm.calls,
				 fewest);
		}
	}
}

/* With a vCPU in the guest a commit merges nothing on the side. */
static void no_difference_is_larger_than_needed(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= 300; seed++) {
		struct fixture f;

		start(&f, MIB, GPAS_LAZY_ABSENT);
		use_callbacks(&f);
		attach(&f);
		start_vcpu(&f);
		compare_with_fewest(&f, seed);
		finish(&f);
	}
}

/* A call finds no slot only if there are too few for what it leaves, however
 * well they were merged. What it would leave is seen on a twin. */
static void compare_with_twin(struct fixture *f, struct fixture *twin,
			      unsigned seed)
{
	struct cell cells[SMALL_PAGES];
	unsigned random = seed;

	for (unsigned step = 0; step < 40; step++) {
		char *before = state_of(f);
		unsigned again = random;
		unsigned needed;
		int wanted;
		int err;

		assert_int_equal(gpas_begin(twin->space), 0);
		wanted = small_change(twin, &again);
		assert_int_equal(gpas_commit(twin->space), 0);
		read_cells(twin, cells);
		needed = count_gaps(cells, 0);
		fake_kvm_mark(&f->kvm);
		err = small_change(f, &random);
		if (wanted == 0 && needed > f->params.slot_count) {
			assert_int_equal(err, -ENOSPC);
			assert_int_equal(f->kvm.calls, 0);
			assert_unchanged(f, before);
			return; /* the two have parted */
		}
		free(before);
		if (err != wanted) {
			fail_msg("seed %u, step %u: %d, expected %d with %u of "
				 "%u slots",
				 seed, step, err, wanted, needed,
				 f->params.slot_count);
		}
		verify(f);
	}
}

static void no_slot_is_missed_that_merging_could_free(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= 600; seed++) {
		struct fixture f;
		struct fixture twin;

		start(&f, MIB, GPAS_LAZY_ABSENT);
		start(&twin, MIB, GPAS_LAZY_ABSENT);
		f.params.slot_count = 1 + seed % 4;
		attach(&f);
		attach(&twin);
		compare_with_twin(&f, &twin, seed);
		finish(&f);
		finish(&twin);
	}
}

/* ---- Random calls against the model -------------------------------------- */

struct random_run {
	struct fixture f;
	bool inject;
	const char *what;
};

static void begin_step(void *ctx, struct model *model)
{
	struct random_run *run = ctx;

	fake_kvm_mark(&run->f.kvm);
	if (run->inject && model_random(model, 4) == 0) {
		fake_kvm_fail(&run->f.kvm, 1 + model_random(model, 4), -ENOMEM,
			      false);
	}
	run->f.pauses = 0;
}

static enum fake_kind wanted_kind(const struct random_run *run,
				  const struct model_page *page)
{
	if (page->backing == 0 || page->device ||
	    (page->prot & GPAS_PROT_READ) == 0) {
		return FAKE_NONE;
	}
	if (!page->present) {
		return run->f.lazy == GPAS_LAZY_TRAP ? FAKE_TRAP : FAKE_NONE;
	}
	return (page->prot & GPAS_PROT_WRITE) != 0 ? FAKE_WRITABLE
						   : FAKE_READ_ONLY;
}

/* The slots that the model's pages need at least. */
static unsigned needed_slots(const struct random_run *run,
			     const struct model_state *state)
{
	unsigned needed = 0;

	for (unsigned i = 0; i < MODEL_PAGES; i++) {
		const struct model_page *page = &state->pages[i];
		enum fake_kind kind = wanted_kind(run, page);
		bool joined = i > 0 && wanted_kind(run, page - 1) == kind &&
			      (kind == FAKE_TRAP ||
			       page[-1].host + PAGE == page->host);

		needed += kind != FAKE_NONE && !joined;
	}
	return needed;
}

static bool fits(const struct random_run *run, const struct model_state *state)
{
	return needed_slots(run, state) <= run->f.kvm.count;
}

static bool accepts(void *ctx, struct model *model, int err,
		    const struct model_state *after)
{
	struct random_run *run = ctx;

	(void)model;
	if (err == 0) {
		return !run->f.kvm.has_failed && fits(run, after);
	}
	if (err == -ENOSPC) {
		return !fits(run, after) && run->f.kvm.calls == 0;
	}
	return run->f.kvm.has_failed && err == -ENOMEM;
}

static const char *check_slots(void *ctx, struct model *model)
{
	struct random_run *run = ctx;
	struct fixture *f = &run->f;
	uint64_t where;
	const char *what = fake_kvm_verify(&f->kvm, f->space, f->lazy, &where);

	for (unsigned i = 0; what == NULL && i < MODEL_PAGES; i++) {
		const struct model_page *page = &model->now.pages[i];
		uint64_t host = page->host;
		enum fake_kind kind = fake_kvm_translate(
			&f->kvm, model->base + i * PAGE, &host);

		if (kind != wanted_kind(run, page) || host != page->host) {
			what = "a page's slot";
		}
	}
	if (what == NULL &&
	    (f->pauses > 1 ||
	     (f->pauses == 1 && !f->kvm.was_replaced && !f->kvm.has_failed))) {
		what = "paused without need";
	}
	return what;
}

static void run_model(uint64_t seed, unsigned steps)
{
	static struct model model; /* too large for a stack */
	struct random_run run = { .inject = seed % 3 == 0 };
	struct model_hooks hooks = { begin_step, accepts, check_slots, &run };
	bool right = true;

	start(&run.f, GIB, seed % 2 == 0 ? GPAS_LAZY_TRAP : GPAS_LAZY_ABSENT);
	if (seed % 5 == 0) {
		run.f.params.slot_first = 3;
		run.f.params.slot_count = 4 + (uint32_t)seed % 7;
	}
	use_callbacks(&run.f);
	attach(&run.f);
	if (seed % 3 == 1) {
		run.f.space->mirror->trap_chunk = 8 * PAGE;
		run.f.space->mirror->trap_grain = 2 * PAGE;
	}
	if (seed % 4 < 2) {
		start_vcpu(&run.f);
	}
	/* Across a block's boundary, so that blocks and pages mix. */
	model_init(&model, run.f.space, 2 * MIB - MODEL_PAGES / 2 * PAGE, seed,
		   &hooks);
	model.scarce = run.f.params.slot_count != 0;
	for (unsigned i = 0; right && i < steps; i++) {
		right = model_step(&model);
	}
	right = right && model_close(&model);
	if (!right) {
		model_report(&model);
		fail_msg("seed %llu: %s (%s)", (unsigned long long)seed,
			 model.wrong, run.f.last_error);
	}
	finish(&run.f);
	model_fini(&model);
}

static void random_calls_agree_with_the_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 400; seed++) {
		run_model(seed, 60);
	}
}

/* MIRROR_SEED=n[,count]: the model alone, longer, from that seed on. */
static void random_calls_from_a_seed(void **state)
{
	char *end;
	uint64_t seed = strtoull(getenv("MIRROR_SEED"), &end, 0);
	uint64_t count = *end == ',' ? strtoull(end + 1, NULL, 0) : 1;

	(void)state;
	for (uint64_t i = 0; i < count; i++) {
		run_model(seed + i, MODEL_STEPS);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attach_mirrors_what_is_mapped),
		cmocka_unit_test(attach_waits_for_the_end_of_a_group),
		cmocka_unit_test(eager_maps_cost_one_slot_each),
		cmocka_unit_test(unmap_cuts_slots),
		cmocka_unit_test(protect_replaces_only_what_changes),
		cmocka_unit_test(absent_memory_gets_a_slot_a_granule),
		cmocka_unit_test(traps_are_cut_buddy_wise),
		cmocka_unit_test(lazy_neighbours_share_a_trap),
		cmocka_unit_test(sequential_faults_grow_the_granule),
		cmocka_unit_test(only_its_own_numbers_are_used),
		cmocka_unit_test(the_limit_is_checked_first),
		cmocka_unit_test(an_attach_that_does_not_fit_leaves_nothing),
		cmocka_unit_test(slots_are_merged_when_they_run_short),
		cmocka_unit_test(the_new_memory_takes_part_in_merging),
		cmocka_unit_test(pieces_keep_to_kvms_largest_slot),
		cmocka_unit_test(a_group_is_one_difference),
		cmocka_unit_test(a_group_without_a_difference_costs_nothing),
		cmocka_unit_test(growing_and_removing_pause_nobody),
		cmocka_unit_test(replacing_pauses_once),
		cmocka_unit_test(without_callbacks_replacing_is_refused),
		cmocka_unit_test(a_pause_that_does_not_pause_is_noticed),
		cmocka_unit_test(a_failed_replacement_resumes),
		cmocka_unit_test(entering_races_with_replacing),
		cmocka_unit_test(a_failing_ioctl_is_undone),
		cmocka_unit_test(a_failing_attach_is_undone),
		cmocka_unit_test(a_failing_rollback_is_owned_up_to),
		cmocka_unit_test(a_poisoned_space_can_be_detached_or_destroyed),
		cmocka_unit_test(clear_does_not_pretend),
		cmocka_unit_test(refused_traps_make_way_for_absent_slots),
		cmocka_unit_test(what_traps_need_comes_first),
		cmocka_unit_test(giving_up_traps_may_fail),
		cmocka_unit_test(no_difference_is_larger_than_needed),
		cmocka_unit_test(no_slot_is_missed_that_merging_could_free),
		cmocka_unit_test(random_calls_agree_with_the_model),
	};

	const struct CMUnitTest seeded[] = {
		cmocka_unit_test(random_calls_from_a_seed),
	};

	if (getenv("MIRROR_SEED") != NULL) {
		return cmocka_run_group_tests_name("mirror", seeded, NULL,
						   NULL);
	}
	return cmocka_run_group_tests_name("mirror", tests, NULL, NULL);
}
