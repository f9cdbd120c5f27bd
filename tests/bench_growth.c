/* SPDX-License-Identifier: MIT */
/*
 * How cost grows: with the number of regions, with the memory mapped, and, for
 * a fault, with the size of its region. No VM is attached.
 */
#include "bench_world.h"

#include <string.h>

#define PAGE	   GPAS_PAGE_BYTES
#define RW	   GPAS_PROT_RW
#define ITERATIONS 100000
#define CHANGES	   1000

/* ---- With regions -------------------------------------------------------- */

#define REGION_STEPS 6 /* 1, 10, ... 100 000 */
#define REGION_WAYS  5

static const char *const region_ways[REGION_WAYS] = {
	"translate",  "view translates", "bare walk",
	"map a page", "unmap a page",
};

static uint64_t power_of_ten(unsigned n)
{
	return n == 0 ? 1 : 10 * power_of_ten(n - 1);
}

/* Takes pages out of regions all over the world and puts them back. */
static void change(struct world *world, char *host, struct series *map,
		   struct series *unmap)
{
	unsigned count =
		world->regions < CHANGES ? (unsigned)world->regions : CHANGES;
	unsigned step = (unsigned)world->regions / count;
	double t[3] = { 0 };

	/* So many rounds that few regions are changed as often as many. */
	for (unsigned done = 0; done < CHANGES; done += count) {
		double begun = bench_now();

		for (uint64_t i = 0; i < count; i++) {
			(void)gpas_unmap(
				world->space,
				gpas_gpa_at(i * step << WORLD_REGION_SHIFT),
				PAGE);
		}
		t[0] += bench_now() - begun;
		begun = bench_now();
		for (uint64_t i = 0; i < count; i++) {
			(void)gpas_map_linear(
				world->space,
				gpas_gpa_at(i * step << WORLD_REGION_SHIFT),
				PAGE, host, RW, NULL);
		}
		t[1] += bench_now() - begun;
	}
	series_add(unmap, t[0] / CHANGES);
	series_add(map, t[1] / CHANGES);
}

static void measure_regions(const struct bench *bench, unsigned count,
			    char *host, struct series *ways)
{
	struct world world;

	world_open(&world, count);
	world_map_pages(&world, count, host);
	world.iterations = ITERATIONS;
	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&ways[0], world_time(&world, loop_translate));
		series_add(&ways[1], world_time(&world, loop_translate_view));
		series_add(&ways[2], world_time(&world, loop_walk_bare));
		change(&world, host, &ways[3], &ways[4]);
	}
	world_close(&world);
}

static void grow_regions(struct bench *bench)
{
	unsigned steps = bench->quick ? REGION_STEPS - 2 : REGION_STEPS;
	struct series series[REGION_STEPS][REGION_WAYS] = { 0 };
	char *host = bench_reserve(GIB);

	for (unsigned i = 0; i < steps; i++) {
		measure_regions(bench, (unsigned)power_of_ten(i), host,
				series[i]);
	}
	for (unsigned way = 0; way < REGION_WAYS; way++) {
		const struct bench_curve curve = {
			.plot = "regions",
			.name = region_ways[way],
			.x = "regions",
			.unit = "ns",
		};

		bench_curve_begin(bench, &curve);
		for (unsigned i = 0; i < steps; i++) {
			bench_point(bench, &curve, (double)power_of_ten(i),
				    &series[i][way]);
		}
		bench_curve_end(bench);
	}
}

/* ---- With memory --------------------------------------------------------- */

static const struct {
	const char *name;
	unsigned shift;
	uint64_t most;
	bool lazy;
} memory_ways[] = {
	{ "4 KiB leaves", 12, 16 * GIB, false },
	{ "2 MiB leaves", 21, TIB, false },
	{ "1 GiB leaves", 30, TIB, false },
	{ "lazily", 16, TIB, true },
};

static double map_once(struct gpas *space, uint64_t size, char *host)
{
	const struct gpas_map_params lazy = { .lazy = true };
	double begun = bench_now();

	if (host == NULL) {
		bench_must(
			gpas_map_alloc(space, gpas_gpa_at(0), size, RW, &lazy),
			"map");
	} else {
		bench_must(gpas_map_linear(space, gpas_gpa_at(0), size, host,
					   RW, NULL),
			   "map");
	}
	begun = bench_now() - begun;
	bench_must(gpas_clear(space), "clear");
	return begun / 1000;
}

static void grow_memory(struct bench *bench)
{
	char *host = bench_reserve(TIB + GIB);
	struct gpas *space = bench_space();

	for (size_t way = 0; way < ARRAY_COUNT(memory_ways); way++) {
		const struct bench_curve curve = {
			.plot = "memory",
			.name = memory_ways[way].name,
			.x = "bytes",
			.unit = "us",
		};
		unsigned shift = memory_ways[way].shift;
		/* Congruent for leaves of this size and no larger ones. */
		char *from = memory_ways[way].lazy ? NULL
			     : shift == 30	   ? host
						   : host + (1ull << shift);
		uint64_t most = bench->quick ? GIB : memory_ways[way].most;
		uint64_t size = MIB > 1ull << shift ? MIB : 1ull << shift;

		bench_curve_begin(bench, &curve);
		for (; size <= most; size *= size < GIB ? 8 : 4) {
			struct series series = { 0 };

			for (unsigned n = 0; n < bench->repetitions; n++) {
				series_add(&series,
					   map_once(space, size, from));
			}
			bench_point(bench, &curve, (double)size, &series);
		}
		bench_curve_end(bench);
	}
	gpas_destroy(space);
}

/* ---- Faults -------------------------------------------------------------- */

static double fault_anywhere(struct gpas *space, uint64_t size, unsigned count)
{
	uint64_t x = 1;
	double begun = bench_now();

	for (unsigned i = 0; i < count; i++) {
		struct gpas_fault fault;

		x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
		bench_must(gpas_fault(space, gpas_gpa_at(x >> 16 & (size - 1)),
				      RW, &fault),
			   "a fault");
	}
	return (bench_now() - begun) / count;
}

static void grow_faults(struct bench *bench)
{
	const struct gpas_map_params lazy = { .lazy = true };
	const struct bench_curve curve = {
		.plot = "faults",
		.name = "not attached, on average",
		.x = "bytes",
		.unit = "ns",
	};

	bench_curve_begin(bench, &curve);
	for (uint64_t size = 64 * MIB; size <= TIB; size *= 4) {
		struct series series = { 0 };

		for (unsigned n = 0; n < bench->repetitions; n++) {
			struct gpas *space = bench_space();

			bench_must(gpas_map_alloc(space, gpas_gpa_at(0), size,
						  RW, &lazy),
				   "map");
			series_add(&series, fault_anywhere(space, size, 512));
			gpas_destroy(space);
		}
		bench_point(bench, &curve, (double)size, &series);
	}
	bench_curve_end(bench);
}

void bench_growth(struct bench *bench)
{
	if (!bench_group(bench, "growth",
			 "How cost grows, no VM attached (minimums)")) {
		return;
	}
	grow_regions(bench);
	grow_memory(bench);
	grow_faults(bench);
}
