/* SPDX-License-Identifier: MIT */
/*
 * What changes of a space cost without a VM: mapping, unmapping, protecting and
 * faulting, beside a table written by hand.
 */
#include "bench.h"
#include "bench_floor.h"

#define PAGE	 GPAS_PAGE_BYTES
#define REGIONS	 30000
#define SAMPLE	 2000
#define RW	 GPAS_PROT_RW
#define READ	 GPAS_PROT_READ
#define GRANULE	 (64 * KIB)
#define GRANULES (GIB / GRANULE)

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
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
			 const struct series *floor)
{
	char name[96];
	struct bench_row row = {
		.name = name,
		.unit = "ns/leaf",
		.against = "hand-written table",
		.figure = *figure,
		.floor = *floor,
	};

	if (verb[0] == 'u') {
		row.about = BENCH_FIGURE;
		row.target = sweep->targets[2];
	} else {
		row.target = sweep->targets[verb[0] == 'p'];
	}
	(void)snprintf(name, sizeof(name), "%s %llu GiB of %s leaves", verb,
		       (unsigned long long)(sweep->size / GIB), sweep->leaf);
	bench_report(bench, &row);
}

static void bench_sweep(struct bench *bench, const struct sweep *sweep,
			char *host)
{
	struct series figures[3] = { 0 };
	struct series floors[3] = { 0 };
	struct gpas *space = bench_space();
	double leaves = (double)(sweep->size >> sweep->shift);
	/* Congruent for leaves of this size and no larger ones. */
	char *from = host + (UINT64_C(1) << sweep->shift);
	struct floor floor;

	bench_must(floor_open(&floor, 1024), "the floor's tables");
	for (unsigned n = 0; n < bench->repetitions; n++) {
		double t[7];

		floor_clear(&floor);
		t[0] = bench_now();
		floor_map(&floor, 0, sweep->size, (uintptr_t)from,
			  sweep->shift);
		t[1] = bench_now();
		floor_protect(&floor, 0, sweep->size, sweep->shift);
		t[2] = bench_now();
		floor_unmap(&floor, 0, sweep->size, sweep->shift);
		t[3] = bench_now();
		bench_must(gpas_map_linear(space, at(0), sweep->size, from, RW,
					   NULL),
			   "map");
		t[4] = bench_now();
		bench_must(gpas_protect(space, at(0), sweep->size, READ),
			   "protect");
		t[5] = bench_now();
		bench_must(gpas_unmap(space, at(0), sweep->size), "unmap");
		t[6] = bench_now();
		for (unsigned i = 0; i < 3; i++) {
			series_add(&floors[i], (t[i + 1] - t[i]) / leaves);
			series_add(&figures[i], (t[i + 4] - t[i + 3]) / leaves);
		}
	}
	report_sweep(bench, sweep, "map", &figures[0], &floors[0]);
	report_sweep(bench, sweep, "protect", &figures[1], &floors[1]);
	report_sweep(bench, sweep, "unmap", &figures[2], &floors[2]);
	floor_close(&floor);
	gpas_destroy(space);
}

/* ---- One page among many ------------------------------------------------- */

static gpas_gpa region_at(unsigned i)
{
	return at((uint64_t)(i * 7919 % REGIONS) * 2 * PAGE);
}

static void report_one(struct bench *bench, const char *name, const char *unit,
		       const struct series *figure, const struct series *floor,
		       double target)
{
	struct bench_row row = {
		.name = name,
		.unit = unit,
		.figure = *figure,
		.against = "hand-written table",
		.floor = *floor,
		.about = BENCH_FIGURE,
		.target = target,
	};

	bench_report(bench, &row);
}

/* The three calls on SAMPLE regions from @from on; the times in @t. */
static void change_one(struct gpas *space, char *host, unsigned from, double *t)
{
	unsigned end = from + SAMPLE;

	t[0] = bench_now();
	for (unsigned i = from; i < end; i++) {
		(void)gpas_protect(space, region_at(i), PAGE, READ);
	}
	t[1] = bench_now();
	for (unsigned i = from; i < end; i++) {
		(void)gpas_unmap(space, region_at(i), PAGE);
	}
	t[2] = bench_now();
	for (unsigned i = from; i < end; i++) {
		(void)gpas_map_linear(space, region_at(i), PAGE, host, RW,
				      NULL);
	}
	t[3] = bench_now();
}

static void change_one_bare(struct floor *floor, char *host, unsigned from,
			    double *t)
{
	unsigned end = from + SAMPLE;

	t[0] = bench_now();
	for (unsigned i = from; i < end; i++) {
		floor_protect(floor, region_at(i).value, PAGE, 12);
	}
	t[1] = bench_now();
	for (unsigned i = from; i < end; i++) {
		uint64_t gpa = region_at(i).value;

		floor_table(floor, gpa, 12)[floor_index(gpa, 12)] = 0;
	}
	t[2] = bench_now();
	for (unsigned i = from; i < end; i++) {
		floor_map(floor, region_at(i).value, PAGE, (uintptr_t)host, 12);
	}
	t[3] = bench_now();
}

static void bench_one_of_many(struct bench *bench, char *host)
{
	static const char *const names[] = {
		"protect one page among 30000 regions",
		"unmap one page among 30000 regions",
		"map one page among 30000 regions",
	};
	struct gpas *space = bench_space();
	struct series figures[3] = { 0 };
	struct series floors[3] = { 0 };
	struct floor floor;
	double t[4];

	bench_must(floor_open(&floor, 1024), "the floor's tables");
	for (unsigned i = 0; i < REGIONS; i++) {
		bench_must(gpas_map_linear(space, region_at(i), PAGE, host, RW,
					   NULL),
			   "map");
		floor_map(&floor, region_at(i).value, PAGE, (uintptr_t)host,
			  12);
	}
	for (unsigned n = 0; n < bench->repetitions; n++) {
		change_one(space, host, n * SAMPLE, t);
		for (unsigned i = 0; i < 3; i++) {
			series_add(&figures[i], (t[i + 1] - t[i]) / SAMPLE);
		}
		change_one_bare(&floor, host, n * SAMPLE, t);
		for (unsigned i = 0; i < 3; i++) {
			series_add(&floors[i], (t[i + 1] - t[i]) / SAMPLE);
		}
	}
	for (unsigned i = 3; i-- > 0;) {
		report_one(bench, names[i], "ns", &figures[i], &floors[i], 300);
	}
	floor_close(&floor);
	gpas_destroy(space);
}

/* ---- Large, and lazy ----------------------------------------------------- */

static void bench_large(struct bench *bench, char *host)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = bench_space();
	struct series none = { 0 };
	struct series late = { 0 };
	struct series leaves = { 0 };
	struct series floors = { 0 };
	struct floor floor;
	double t[4];

	bench_must(floor_open(&floor, 16), "the floor's tables");
	for (unsigned n = 0; n < bench->repetitions; n++) {
		floor_clear(&floor);
		t[0] = bench_now();
		bench_must(gpas_map_alloc(space, at(2 * TIB), TIB, RW, &lazy),
			   "map");
		t[1] = bench_now();
		bench_must(gpas_map_linear(space, at(0), TIB, host, RW, NULL),
			   "map");
		t[2] = bench_now();
		floor_map(&floor, 0, TIB, (uintptr_t)host, 30);
		t[3] = bench_now();
		series_add(&late, (t[1] - t[0]) / 1000);
		series_add(&leaves, (t[2] - t[1]) / 1000);
		series_add(&floors, (t[3] - t[2]) / 1000);
		bench_must(gpas_clear(space), "clear");
	}
	report_one(bench, "map 1 TiB lazily", "us", &late, &none, 2);
	report_one(bench, "map 1 TiB as 1 GiB leaves", "us", &leaves, &floors,
		   10);
	floor_close(&floor);
	gpas_destroy(space);
}

static uint64_t granule_at(uint64_t i)
{
	return i * 7919 % GRANULES * GRANULE;
}

static double fault_all(struct gpas *space)
{
	double begun = bench_now();
	struct gpas_fault fault;

	for (uint64_t i = 0; i < GRANULES; i++) {
		(void)gpas_fault(space, at(granule_at(i)), RW, &fault);
	}
	return (bench_now() - begun) / (double)GRANULES;
}

/* Whatever is not there is mapped, a granule at a time. */
static double fault_all_bare(struct floor *floor, char *host)
{
	double begun = bench_now();

	for (uint64_t i = 0; i < GRANULES; i++) {
		uint64_t gpa = granule_at(i);

		if (floor_walk(floor, gpa) == 0) {
			floor_map(floor, gpa, GRANULE, (uintptr_t)host + gpa,
				  12);
		}
	}
	return (bench_now() - begun) / (double)GRANULES;
}

static void bench_faults(struct bench *bench, char *host)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct series figures[2] = { 0 };
	struct series floors[2] = { 0 };
	struct floor floor;

	bench_must(floor_open(&floor, 1024), "the floor's tables");
	for (unsigned n = 0; n < bench->repetitions; n++) {
		struct gpas *space = bench_space();

		bench_must(gpas_map_alloc(space, at(0), GIB, RW, &lazy), "map");
		floor_clear(&floor);
		for (unsigned i = 0; i < 2; i++) {
			series_add(&figures[i], fault_all(space));
			series_add(&floors[i], fault_all_bare(&floor, host));
		}
		gpas_destroy(space);
	}
	report_one(bench, "fault that makes 64 KiB present", "ns", &figures[0],
		   &floors[0], 150);
	report_one(bench, "fault that finds memory present", "ns", &figures[1],
		   &floors[1], 60);
	floor_close(&floor);
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
	host = bench_reserve(TIB + GIB);
	bench_sweep(bench, &small, host);
	bench_sweep(bench, &large, host);
	bench_one_of_many(bench, host);
	bench_large(bench, host);
	bench_faults(bench, host);
}
