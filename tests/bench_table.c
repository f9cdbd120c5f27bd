/* SPDX-License-Identifier: MIT */
/*
 * What changes of a space cost without a VM: mapping, unmapping, protecting and
 * faulting, beside a table written by hand.
 */
#include "bench.h"
#include "bench_floor.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PAGE	 GPAS_PAGE_BYTES
#define REGIONS	 30000
#define SAMPLE	 2000
#define RW	 GPAS_PROT_RW
#define READ	 GPAS_PROT_READ
#define REPEATS	 9
#define GRANULES (GIB / (64 * KIB))

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static struct gpas *open_space(void)
{
	struct gpas_params params = { .size = 4 * TIB };
	struct gpas *space;

	bench_must(gpas_create(&params, &space), "a space");
	return space;
}

/* Address space that is never touched, from a multiple of 1 GiB on. */
static char *reserve(uint64_t size)
{
	char *host = mmap(NULL, size + GIB, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	bench_must(host == MAP_FAILED ? -errno : 0, "address space");
	return host + (GIB - (uintptr_t)host % GIB);
}

/* ---- Many leaves at once ------------------------------------------------- */

struct sweep {
	const char *leaf;
	uint64_t size;
	unsigned shift;
	double targets[3]; /* to map, protect, unmap */
};

static void report_sweep(struct bench *bench, const struct sweep *sweep,
			 const char *verb, const struct series *figure,
			 const struct series *floor, double target)
{
	char name[96];
	struct bench_row row = {
		.name = name,
		.unit = "ns/leaf",
		.figure = *figure,
		.target = target,
	};

	if (floor != NULL) {
		row.floor = *floor;
	}
	(void)snprintf(name, sizeof(name), "%s %llu GiB of %s leaves", verb,
		       (unsigned long long)(sweep->size / GIB), sweep->leaf);
	bench_report(bench, &row);
}

static void bench_sweep(struct bench *bench, const struct sweep *sweep,
			char *host)
{
	struct series figures[3] = { 0 };
	struct series floors[2] = { 0 };
	struct gpas *space = open_space();
	double leaves = (double)(sweep->size >> sweep->shift);
	/* Congruent for leaves of this size and no larger ones. */
	char *from = host + (UINT64_C(1) << sweep->shift);
	struct floor floor;

	bench_must(floor_open(&floor, 1024), "the floor's tables");
	for (unsigned n = 0; n < REPEATS; n++) {
		double t[6];

		floor_clear(&floor);
		t[0] = bench_now();
		floor_map(&floor, 0, sweep->size, (uintptr_t)from,
			  sweep->shift);
		t[1] = bench_now();
		floor_protect(&floor, 0, sweep->size, sweep->shift);
		t[2] = bench_now();
		bench_must(gpas_map_linear(space, at(0), sweep->size, from, RW,
					   NULL),
			   "map");
		t[3] = bench_now();
		bench_must(gpas_protect(space, at(0), sweep->size, READ),
			   "protect");
		t[4] = bench_now();
		bench_must(gpas_unmap(space, at(0), sweep->size), "unmap");
		t[5] = bench_now();
		series_add(&floors[0], (t[1] - t[0]) / leaves);
		series_add(&floors[1], (t[2] - t[1]) / leaves);
		for (unsigned i = 0; i < 3; i++) {
			series_add(&figures[i], (t[i + 3] - t[i + 2]) / leaves);
		}
	}
	report_sweep(bench, sweep, "map", &figures[0], &floors[0],
		     sweep->targets[0]);
	report_sweep(bench, sweep, "protect", &figures[1], &floors[1],
		     sweep->targets[1]);
	report_sweep(bench, sweep, "unmap", &figures[2], NULL,
		     sweep->targets[2]);
	floor_close(&floor);
	gpas_destroy(space);
}

/* ---- One page among many ------------------------------------------------- */

static gpas_gpa region_at(unsigned i)
{
	return at((uint64_t)(i * 7919 % REGIONS) * 2 * PAGE);
}

static void report_one(struct bench *bench, const char *name, const char *unit,
		       const struct series *figure, double target)
{
	struct bench_row row = {
		.name = name,
		.unit = unit,
		.figure = *figure,
		.target = target,
	};

	bench_report(bench, &row);
}

static void bench_one_of_many(struct bench *bench, char *host)
{
	struct gpas *space = open_space();
	struct series map = { 0 };
	struct series unmap = { 0 };
	struct series protect = { 0 };
	double t[4];

	for (unsigned i = 0; i < REGIONS; i++) {
		bench_must(gpas_map_linear(space, region_at(i), PAGE, host, RW,
					   NULL),
			   "map");
	}
	for (unsigned n = 0; n < REPEATS; n++) {
		unsigned from = n * SAMPLE;

		t[0] = bench_now();
		for (unsigned i = from; i < from + SAMPLE; i++) {
			(void)gpas_protect(space, region_at(i), PAGE, READ);
		}
		t[1] = bench_now();
		for (unsigned i = from; i < from + SAMPLE; i++) {
			(void)gpas_unmap(space, region_at(i), PAGE);
		}
		t[2] = bench_now();
		for (unsigned i = from; i < from + SAMPLE; i++) {
			(void)gpas_map_linear(space, region_at(i), PAGE, host,
					      RW, NULL);
		}
		t[3] = bench_now();
		series_add(&protect, (t[1] - t[0]) / SAMPLE);
		series_add(&unmap, (t[2] - t[1]) / SAMPLE);
		series_add(&map, (t[3] - t[2]) / SAMPLE);
	}
	report_one(bench, "map one page among 30000 regions", "ns", &map, 300);
	report_one(bench, "unmap one", "ns", &unmap, 300);
	report_one(bench, "protect one", "ns", &protect, 300);
	gpas_destroy(space);
}

/* ---- Large, and lazy ----------------------------------------------------- */

static void bench_large(struct bench *bench, char *host)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = open_space();
	struct series late = { 0 };
	struct series leaves = { 0 };
	double t[3];

	for (unsigned n = 0; n < REPEATS; n++) {
		t[0] = bench_now();
		bench_must(gpas_map_alloc(space, at(2 * TIB), TIB, RW, &lazy),
			   "map");
		t[1] = bench_now();
		bench_must(gpas_map_linear(space, at(0), TIB, host, RW, NULL),
			   "map");
		t[2] = bench_now();
		series_add(&late, (t[1] - t[0]) / 1000);
		series_add(&leaves, (t[2] - t[1]) / 1000);
		bench_must(gpas_clear(space), "clear");
	}
	report_one(bench, "map 1 TiB lazily", "us", &late, 2);
	report_one(bench, "map 1 TiB as 1 GiB leaves", "us", &leaves, 10);
	gpas_destroy(space);
}

static void fault_all(struct gpas *space)
{
	struct gpas_fault fault;

	for (uint64_t i = 0; i < GRANULES; i++) {
		(void)gpas_fault(space, at(i * 7919 % GRANULES * 64 * KIB), RW,
				 &fault);
	}
}

static void bench_faults(struct bench *bench)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct series fresh = { 0 };
	struct series again = { 0 };
	double t[3];

	for (unsigned n = 0; n < REPEATS; n++) {
		struct gpas *space = open_space();

		bench_must(gpas_map_alloc(space, at(0), GIB, RW, &lazy), "map");
		t[0] = bench_now();
		fault_all(space);
		t[1] = bench_now();
		fault_all(space);
		t[2] = bench_now();
		series_add(&fresh, (t[1] - t[0]) / (double)GRANULES);
		series_add(&again, (t[2] - t[1]) / (double)GRANULES);
		gpas_destroy(space);
	}
	report_one(bench, "fault: newly mapped, 64 KiB", "ns", &fresh, 150);
	report_one(bench, "fault: present already", "ns", &again, 60);
}

void bench_table(struct bench *bench)
{
	static const struct sweep small = {
		"4 KiB", GIB, 12, { 1.3, 1.3, 0.05 }
	};
	static const struct sweep large = {
		"2 MiB", 64 * GIB, 21, { 1.5, 0, 0 }
	};
	char *host;

	if (!bench_group(bench, "table", "Changing a space, no VM attached")) {
		return;
	}
	host = reserve(TIB + GIB);
	bench_sweep(bench, &small, host);
	bench_sweep(bench, &large, host);
	bench_one_of_many(bench, host);
	bench_large(bench, host);
	bench_faults(bench);
}
