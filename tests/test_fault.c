/* SPDX-License-Identifier: MIT */
/*
 * Faults: what each becomes, what its record says, and which part of a lazy
 * region a first touch makes present.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define RW GPAS_PROT_RW

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static struct gpas_fault fault_at(struct gpas *space, uint64_t gpa,
				  unsigned access)
{
	struct gpas_fault fault;

	memset(&fault, 0xa5, sizeof(fault));
	assert_int_equal(gpas_fault(space, at(gpa), access, &fault), 0);
	assert_int_equal(fault.gpa.value, gpa);
	assert_int_equal(fault.wanted, access);
	return fault;
}

/* A fault that makes [start, end) present, which was not. */
static void assert_populates(struct gpas *space, uint64_t gpa, uint64_t start,
			     uint64_t end)
{
	struct gpas_stats before;
	struct gpas_stats after;
	struct gpas_fault fault;
	struct gpas_extent extent;

	gpas_stats(space, &before);
	fault = fault_at(space, gpa, GPAS_PROT_READ);
	gpas_stats(space, &after);
	assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
	assert_int_equal(fault.populated, end - start);
	assert_int_equal(after.present - before.present, end - start);
	assert_int_equal(after.populated - before.populated, end - start);
	for (uint64_t page = start; page < end; page += PAGE) {
		assert_int_equal(gpas_extent_next(space, at(page), &extent), 0);
		assert_int_equal(extent.start.value, page);
	}
	assert_int_equal(gpas_check(space), 0);
}

static uint64_t present_bytes(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.present;
}

static int no_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

/* ---- outcomes ----------------------------------------------------------- */

static void each_outcome_has_its_record(void **state)
{
	struct gpas_map_params lazy = {
		.lazy = true,
		.granule = 4 * PAGE,
		.name = "heap",
	};
	const struct gpas_device device = {
		.name = "uart",
		.access = no_access,
	};
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_fault fault;
	struct gpas_stats stats;

	assert_int_equal(gpas_map_alloc(space, at(MIB), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_map_device(space, at(4 * MIB), PAGE, &device), 0);

	fault = fault_at(space, MIB + 5 * PAGE + 3, GPAS_PROT_WRITE);
	assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
	assert_int_equal(fault.had, RW);
	assert_int_equal(fault.populated, 4 * PAGE);
	assert_int_equal(fault.error, 0);
	assert_int_equal(fault.region_start.value, MIB);
	assert_int_equal(fault.region_size, MIB);
	assert_string_equal(fault.region_name, "heap");

	fault = fault_at(space, MIB + 6 * PAGE, RW);
	assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
	assert_int_equal(fault.populated, 0);

	fault = fault_at(space, MIB, GPAS_PROT_EXEC);
	assert_int_equal(fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(fault.had, RW);
	assert_int_equal(fault.populated, 0);
	assert_string_equal(fault.region_name, "heap");

	fault = fault_at(space, 4 * MIB + 8, GPAS_PROT_WRITE);
	assert_int_equal(fault.kind, GPAS_FAULT_DEVICE);
	assert_int_equal(fault.region_start.value, 4 * MIB);
	assert_int_equal(fault.region_size, PAGE);
	assert_string_equal(fault.region_name, "uart");

	fault = fault_at(space, 4 * MIB + PAGE, GPAS_PROT_READ);
	assert_int_equal(fault.kind, GPAS_FAULT_UNMAPPED);
	assert_int_equal(fault.had, 0);
	assert_int_equal(fault.region_size, 0);
	assert_string_equal(fault.region_name, "");

	/* Outside the space, within the format's width. */
	fault = fault_at(space, 2 * GIB, 0);
	assert_int_equal(fault.kind, GPAS_FAULT_UNMAPPED);

	gpas_stats(space, &stats);
	assert_int_equal(stats.faults[GPAS_FAULT_RESUME], 2);
	assert_int_equal(stats.faults[GPAS_FAULT_DENIED], 1);
	assert_int_equal(stats.faults[GPAS_FAULT_DEVICE], 1);
	assert_int_equal(stats.faults[GPAS_FAULT_UNMAPPED], 2);
	assert_int_equal(stats.faults[GPAS_FAULT_FAILED], 0);
	assert_int_equal(stats.populations, 1);
}

static void nonsense_is_refused(void **state)
{
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_params params = {
			.size = GIB,
			.format = (enum gpas_format_id)id,
		};
		struct gpas *space = fixture_open(state, &params);
		unsigned bits = gpas_format_gpa_bits(gpas_format(space));
		struct gpas_fault fault = { .wanted = 77 };

		assert_int_equal(gpas_fault(space, at(0), 8, &fault), -EINVAL);
		assert_int_equal(gpas_fault(space, at(0), UINT32_MAX, &fault),
				 -EINVAL);
		assert_int_equal(
			gpas_fault(space, at(UINT64_C(1) << bits), 0, &fault),
			-EINVAL);
		assert_int_equal(gpas_fault(space, at(UINT64_MAX), 0, &fault),
				 -EINVAL);
		assert_int_equal(fault.wanted, 77);
		fault = fault_at(space, (UINT64_C(1) << bits) - 1, 0);
		assert_int_equal(fault.kind, GPAS_FAULT_UNMAPPED);
	}
}

/* A second fault finds the page, and never replaces it. */
static void a_second_fault_keeps_the_page(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_translation first;
	struct gpas_translation second;
	uint64_t value = 0;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	(void)fault_at(space, 100, GPAS_PROT_READ);
	assert_int_equal(gpas_translate(space, at(0), RW, PAGE, &first), 0);
	assert_int_equal(gpas_store(space, at(96), 8, 4711), 0);
	assert_int_equal(fault_at(space, 100, RW).populated, 0);
	assert_int_equal(fault_at(space, 100, RW).kind, GPAS_FAULT_RESUME);
	assert_int_equal(gpas_translate(space, at(0), RW, PAGE, &second), 0);
	assert_ptr_equal(first.host, second.host);
	assert_int_equal(gpas_load(space, at(96), 8, &value), 0);
	assert_int_equal(value, 4711);
}

static void a_failing_backend_is_reported(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 8 * PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct gpas_fault fault;
	struct gpas_stats stats;
	struct ledger ledger;

	ledger_open(&ledger, 64, 2);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 64 * PAGE, RW, &backend, &lazy),
		0);
	/* The third piece of the granule fails: nothing stays of the first. */
	ledger.fail_at = 3;
	ledger.error = -ENXIO;
	fault = fault_at(space, 9 * PAGE, RW);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENXIO);
	assert_int_equal(fault.populated, 0);
	assert_int_equal(present_bytes(space), 0);
	assert_true(ledger_pages_are(&ledger, 8, 12, 1, 1));
	/* What was not provided is not retired while it is still mapped. */
	assert_true(ledger_pages_are(&ledger, 12, 64, 0, 0));
	assert_int_equal(gpas_check(space), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.faults[GPAS_FAULT_FAILED], 1);
	assert_int_equal(stats.populated, 0);
	/* The next try succeeds. */
	assert_populates(space, 9 * PAGE, 8 * PAGE, 16 * PAGE);
	assert_int_equal(gpas_clear(space), 0);
	assert_true(ledger_pages_are(&ledger, 8, 12, 2, 2));
	assert_true(ledger_pages_are(&ledger, 12, 16, 1, 1));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

static void no_table_page_is_a_failed_fault(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct fixture *fixture = *state;
	struct gpas_fault fault;
	uint8_t byte;
	size_t done = 9;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	fixture->frames.exhausted = true;
	fault = fault_at(space, 0, RW);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENOMEM);
	assert_int_equal(gpas_read(space, at(0), &byte, 1, &done), -ENOMEM);
	assert_int_equal(done, 0);
	assert_int_equal(gpas_populate(space, at(0), MIB), -ENOMEM);
	assert_int_equal(present_bytes(space), 0);
	fixture->frames.exhausted = false;
	assert_populates(space, 0, 0, 64 * KIB);
}

/* ---- granules ----------------------------------------------------------- */

static void granules_have_the_size_asked_for(void **state)
{
	static const uint64_t granules[] = { 4 * KIB, 8 * KIB,	64 * KIB,
					     2 * MIB, 16 * MIB, GIB };
	for (size_t i = 0; i < ARRAY_COUNT(granules); i++) {
		struct gpas_map_params lazy = { .lazy = true };
		struct gpas *space = fixture_space(state, 4 * GIB);
		uint64_t granule = granules[i];
		struct gpas_region region;

		lazy.granule = granule;
		assert_int_equal(
			gpas_map_alloc(space, at(GIB), 2 * GIB, RW, &lazy), 0);
		assert_populates(space, GIB + granule - 1, GIB, GIB + granule);
		assert_populates(space, 3 * GIB - 1, 3 * GIB - granule,
				 3 * GIB);
		assert_int_equal(gpas_region_find(space, at(GIB), &region), 0);
		assert_int_equal(region.granule, granule);
		assert_true(region.lazy);
		assert_int_equal(region.present, 2 * granule);
	}
}

static void the_default_granule_is_64_kib(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_region region;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_region_find(space, at(0), &region), 0);
	assert_int_equal(region.granule, 64 * KIB);
	assert_populates(space, 100 * KIB, 64 * KIB, 128 * KIB);
}

static void granules_are_clipped_to_the_region(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = MIB };
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(
		gpas_map_alloc(space, at(MIB + 3 * PAGE), MIB, RW, &lazy), 0);
	assert_populates(space, MIB + 4 * PAGE, MIB + 3 * PAGE, 2 * MIB);
	assert_populates(space, 2 * MIB, 2 * MIB, 2 * MIB + 3 * PAGE);
	/* What a split has made of a region clips as well. */
	assert_int_equal(gpas_map_alloc(space, at(8 * MIB), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_unmap(space, at(8 * MIB + 10 * PAGE), PAGE), 0);
	assert_int_equal(gpas_protect(space, at(8 * MIB + 20 * PAGE), 10 * PAGE,
				      GPAS_PROT_READ),
			 0);
	assert_populates(space, 8 * MIB, 8 * MIB, 8 * MIB + 10 * PAGE);
	assert_populates(space, 8 * MIB + 15 * PAGE, 8 * MIB + 11 * PAGE,
			 8 * MIB + 20 * PAGE);
	assert_populates(space, 8 * MIB + 25 * PAGE, 8 * MIB + 20 * PAGE,
			 8 * MIB + 30 * PAGE);
	assert_populates(space, 9 * MIB - 1, 8 * MIB + 30 * PAGE, 9 * MIB);
}

static void granules_are_clipped_to_what_is_present(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = MIB };
	struct gpas *space = fixture_space(state, GIB);
	uint8_t page[GPAS_PAGE_BYTES];

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_populate(space, at(5 * PAGE), 2 * PAGE), 0);
	assert_int_equal(gpas_populate(space, at(20 * PAGE), PAGE), 0);
	assert_int_equal(gpas_fill(space, at(5 * PAGE), 1, 2 * PAGE, NULL), 0);
	assert_populates(space, 10 * PAGE, 7 * PAGE, 20 * PAGE);
	assert_populates(space, 4 * PAGE, 0, 5 * PAGE);
	assert_populates(space, 21 * PAGE, 21 * PAGE, MIB);
	assert_int_equal(gpas_read(space, at(6 * PAGE), page, PAGE, NULL), 0);
	assert_true(is_all(page, 1, PAGE));
}

/* A backend is asked granule by granule, for what is absent only, and never
 * twice for one page. */
static void backends_are_asked_once_for_a_page(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 8 * PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;
	uint64_t seed = 3;

	ledger_open(&ledger, 128, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_map_backend(space, at(3 * PAGE), 128 * PAGE, RW,
					  &backend, &lazy),
			 0);
	assert_int_equal(ledger.calls, 0);
	assert_int_equal(gpas_populate(space, at(10 * PAGE), PAGE), 0);
	assert_true(ledger_pages_are(&ledger, 7, 8, 1, 0));
	/* Page 13 of the space, in the granule [8, 16). */
	assert_populates(space, 13 * PAGE, 11 * PAGE, 16 * PAGE);
	assert_true(ledger_pages_are(&ledger, 7, 13, 1, 0));
	assert_true(ledger_pages_are(&ledger, 0, 7, 0, 0));
	for (unsigned n = 0; n < 2000; n++) {
		uint64_t page = next_random(&seed) % 128;
		uint8_t byte = 0;

		assert_int_equal(
			gpas_read(space, at((3 + page) * PAGE), &byte, 1, NULL),
			0);
		assert_int_equal(byte, ledger_byte(page));
	}
	assert_true(ledger_pages_are(&ledger, 0, 128, 1, 0));
	fixture_close(state);
	assert_true(ledger_pages_are(&ledger, 0, 128, 1, 1));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

/* Whether it was ever populated or not, what leaves is retired once. */
static void lazy_pieces_are_retired_once(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 16, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 16 * PAGE, RW, &backend, &lazy),
		0);
	assert_int_equal(gpas_populate(space, at(4 * PAGE), PAGE), 0);
	assert_int_equal(gpas_unmap(space, at(3 * PAGE), 3 * PAGE), 0);
	assert_true(ledger_pages_are(&ledger, 3, 4, 0, 1));
	assert_true(ledger_pages_are(&ledger, 4, 5, 1, 1));
	assert_true(ledger_pages_are(&ledger, 6, 16, 0, 0));
	assert_int_equal(gpas_unmap(space, at(0), 3 * PAGE), 0);
	assert_int_equal(ledger.releases, 0);
	assert_int_equal(gpas_unmap(space, at(6 * PAGE), 10 * PAGE), 0);
	assert_true(ledger_pages_are(&ledger, 5, 16, 0, 1));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

/* ---- growth ------------------------------------------------------------- */

/* Touches every page of 64 MiB in one direction; returns the faults. */
static unsigned sweep(void **state, uint64_t granule_max, bool up)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 64 * KIB };
	struct gpas *space = fixture_space(state, GIB);
	const uint64_t size = 64 * MIB;
	struct gpas_stats stats;

	lazy.granule_max = granule_max;
	assert_int_equal(gpas_map_alloc(space, at(128 * MIB), size, RW, &lazy),
			 0);
	for (uint64_t i = 0; i < size; i += PAGE) {
		uint64_t gpa = 128 * MIB + (up ? i : size - PAGE - i);
		uint64_t value = 1;

		assert_int_equal(gpas_load(space, at(gpa + 8), 8, &value), 0);
		assert_int_equal(value, 0);
	}
	gpas_stats(space, &stats);
	assert_int_equal(stats.present, size);
	assert_int_equal(stats.populated, size);
	assert_int_equal(stats.populations, stats.faults[GPAS_FAULT_RESUME]);
	assert_int_equal(gpas_check(space), 0);
	return (unsigned)stats.populations;
}

static void sequential_faults_grow_the_granule(void **state)
{
	unsigned up;
	unsigned down;

	assert_int_equal(sweep(state, 0, true), 1024);
	assert_int_equal(sweep(state, 64 * KIB, false), 1024);
	up = sweep(state, GIB, true);
	down = sweep(state, GIB, false);
	/* 64 KiB doubles into 64 MiB ten times. */
	assert_in_range(up, 5, 15);
	assert_in_range(down, 5, 15);
	/* Bounded: 1 MiB at a time once it has grown. */
	assert_in_range(sweep(state, MIB, true), 64, 64 + 8);
	assert_in_range(sweep(state, MIB, false), 64, 64 + 8);
}

static void scattered_faults_do_not_grow_the_granule(void **state)
{
	struct gpas_map_params lazy = {
		.lazy = true,
		.granule = 64 * KIB,
		.granule_max = 16 * MIB,
	};
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 512 * MIB, RW, &lazy), 0);
	for (uint64_t n = 0; n < 100; n++) {
		uint64_t gpa = n * 37 % 100 * 5 * MIB + 64 * KIB;

		assert_populates(space, gpa, gpa, gpa + 64 * KIB);
	}
	/* And one that has grown starts small again elsewhere. */
	assert_populates(space, 8 * MIB - 1, 8 * MIB - 64 * KIB, 8 * MIB);
	assert_populates(space, 8 * MIB, 8 * MIB, 8 * MIB + 128 * KIB);
	assert_populates(space, 511 * MIB, 511 * MIB, 511 * MIB + 64 * KIB);
}

/* Scattered, but dense: the rest of the aligned 2 MiB comes at once. */
static void dense_faults_take_the_rest(void **state)
{
	struct gpas_map_params lazy = {
		.lazy = true,
		.granule = 64 * KIB,
		.granule_max = 2 * MIB,
	};
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_fault fault;

	assert_int_equal(gpas_map_alloc(space, at(0), 16 * MIB, RW, &lazy), 0);
	assert_populates(space, 5 * MIB, 5 * MIB, 5 * MIB + 64 * KIB);
	assert_int_equal(gpas_fault(space, at(4 * MIB + 640 * KIB),
				    GPAS_PROT_READ, &fault),
			 0);
	assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
	assert_int_equal(fault.populated, 2 * MIB - 64 * KIB);
	assert_populates(space, 9 * MIB, 9 * MIB, 9 * MIB + 64 * KIB);
}

/* Growth never passes the region's end nor anything present. */
static void growth_is_clipped(void **state)
{
	struct gpas_map_params lazy = {
		.lazy = true,
		.granule = 4 * KIB,
		.granule_max = GIB,
	};
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_stats stats;
	uint64_t value;

	assert_int_equal(
		gpas_map_alloc(space, at(3 * PAGE), 100 * PAGE, RW, &lazy), 0);
	assert_int_equal(gpas_populate(space, at(40 * PAGE), 3 * PAGE), 0);
	assert_int_equal(
		gpas_protect(space, at(60 * PAGE), PAGE, GPAS_PROT_READ), 0);
	for (uint64_t page = 3; page < 103; page++) {
		assert_int_equal(gpas_load(space, at(page * PAGE), 8, &value),
				 0);
		assert_int_equal(gpas_check(space), 0);
	}
	gpas_stats(space, &stats);
	assert_int_equal(stats.present, 100 * PAGE);
	assert_int_equal(stats.populated, 100 * PAGE);
}

/* ---- populate ----------------------------------------------------------- */

static void populating_fills_the_holes(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas *space = fixture_space(state, 8 * GIB);
	struct gpas_stats stats;

	assert_int_equal(gpas_map_alloc(space, at(GIB), GIB, RW, &lazy), 0);
	assert_populates(space, GIB + 6 * PAGE, GIB + 4 * PAGE, GIB + 8 * PAGE);
	assert_populates(space, 2 * GIB - 1, 2 * GIB - 4 * PAGE, 2 * GIB);
	assert_int_equal(gpas_fill(space, at(GIB + 5 * PAGE), 7, PAGE, NULL),
			 0);
	assert_int_equal(gpas_populate(space, at(GIB + PAGE), PAGE), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.present, 9 * PAGE);
	assert_int_equal(gpas_populate(space, at(GIB), GIB), 0);
	gpas_stats(space, &stats);
	/* Filled piece by piece, it is one block in the end. */
	assert_int_equal(stats.leaves[2], 1);
	assert_int_equal(stats.leaves[0] + stats.leaves[1], 0);
	assert_int_equal(stats.populated, GIB);
	assert_int_equal(gpas_populate(space, at(GIB), GIB), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.populated, GIB);
}

static void populating_is_refused(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	const struct gpas_device device = { .access = no_access };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 16, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_map_device(space, at(MIB), PAGE, &device), 0);
	assert_int_equal(gpas_map_backend(space, at(MIB + PAGE), 16 * PAGE, RW,
					  &backend, &lazy),
			 0);
	assert_int_equal(gpas_populate(space, at(1), PAGE), -EINVAL);
	assert_int_equal(gpas_populate(space, at(0), 0), -EINVAL);
	assert_int_equal(gpas_populate(space, at(0), PAGE + 1), -EINVAL);
	assert_int_equal(gpas_populate(space, at(GIB), PAGE), -EINVAL);
	assert_int_equal(gpas_populate(space, at(0), MIB + PAGE), -ENOENT);
	assert_int_equal(gpas_populate(space, at(MIB), PAGE), -ENOENT);
	assert_int_equal(gpas_populate(space, at(8 * MIB), PAGE), -ENOENT);
	assert_int_equal(gpas_populate(space, at(MIB + 16 * PAGE), 2 * PAGE),
			 -ENOENT);
	/* All or nothing: the page before the hole is not present either. */
	assert_int_equal(present_bytes(space), 0);
	assert_true(ledger_pages_are(&ledger, 15, 16, 1, 1));
	ledger.calls = 0;
	ledger.fail_at = 8;
	ledger.error = -EREMOTEIO;
	assert_int_equal(gpas_populate(space, at(MIB + PAGE), 12 * PAGE),
			 -EREMOTEIO);
	assert_int_equal(present_bytes(space), 0);
	assert_true(ledger_pages_are(&ledger, 0, 7, 1, 1));
	assert_true(ledger_pages_are(&ledger, 7, 15, 0, 0));
	fixture_close(state);
	ledger_close(&ledger);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(each_outcome_has_its_record),
		fixture_test(nonsense_is_refused),
		fixture_test(a_second_fault_keeps_the_page),
		fixture_test(a_failing_backend_is_reported),
		fixture_test(no_table_page_is_a_failed_fault),
		fixture_test(granules_have_the_size_asked_for),
		fixture_test(the_default_granule_is_64_kib),
		fixture_test(granules_are_clipped_to_the_region),
		fixture_test(granules_are_clipped_to_what_is_present),
		fixture_test(backends_are_asked_once_for_a_page),
		fixture_test(lazy_pieces_are_retired_once),
		fixture_test(sequential_faults_grow_the_granule),
		fixture_test(scattered_faults_do_not_grow_the_granule),
		fixture_test(dense_faults_take_the_rest),
		fixture_test(growth_is_clipped),
		fixture_test(populating_fills_the_holes),
		fixture_test(populating_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
