/* SPDX-License-Identifier: MIT */
/*
 * What readers cost: translation and access, by the plain calls and by views,
 * beside a bare walk of a table written by hand, a load, or memcpy.
 */
#include "bench_world.h"

#include <string.h>

#define ITERATIONS 200000
#define REGIONS	   30000

struct contest {
	const char *name;
	world_loop *run;
	world_loop *floor;
	const char *against;
	uint64_t set; /* bytes of GPAs used, a power of two; 0: regions */
	size_t block; /* bytes an access has; 0: a word */
	bool dependent;
	enum bench_target about;
	double target;
};

static void ready(const struct bench *bench, struct world *world,
		  const struct contest *contest)
{
	size_t block = contest->block != 0 ? contest->block : 8;
	unsigned iterations =
		block > 8 ? (unsigned)(64 * MIB / block) : ITERATIONS;

	world->mask = (contest->set - 1) & ~(uint64_t)(block - 1);
	world->block = block;
	world->dependent = contest->dependent;
	world->iterations = bench->quick ? iterations / 8 : iterations;
}

/* @world against @other, which may be the same. */
static void hold(struct bench *bench, struct world *world, struct world *other,
		 const struct contest *contest)
{
	struct bench_row row = {
		.name = contest->name,
		.unit = "ns",
		.against = contest->against,
		.about = contest->about,
		.target = contest->target,
	};

	ready(bench, world, contest);
	ready(bench, other, contest);
	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&row.figure, world_time(world, contest->run));
		series_add(&row.floor, world_time(other, contest->floor));
	}
	bench_report(bench, &row);
}

/* ---- Translation --------------------------------------------------------- */

/* Throughput, then latency: the next address waits for the last answer. */
static void hold_translation(struct bench *bench, struct world *world,
			     const char *what, world_loop *run, uint64_t set,
			     double target)
{
	char name[96];
	struct contest contest = {
		.name = name,
		.run = run,
		.floor = loop_walk_bare,
		.against = "bare walk",
		.set = set,
		.target = target,
	};

	(void)snprintf(name, sizeof(name), "%s", what);
	hold(bench, world, world, &contest);
	(void)snprintf(name, sizeof(name), "%s, each waiting", what);
	contest.dependent = true;
	hold(bench, world, world, &contest);
}

static void bench_translate(struct bench *bench)
{
	struct world world;

	world_open(&world, 1);
	world_map(bench, &world, false);
	hold_translation(bench, &world, "translate in 16 MiB of 4 KiB leaves",
			 loop_translate, 16 * MIB, 1.15);
	hold_translation(bench, &world, "translate in 1 GiB of 4 KiB leaves",
			 loop_translate, GIB, 1.15);
	hold_translation(bench, &world, "view translates in 1 MiB",
			 loop_translate_view, MIB, 0.7);
	hold_translation(bench, &world, "view translates in 16 MiB",
			 loop_translate_view, 16 * MIB, 0);
	world_close(&world);
}

static void bench_translate_large(struct bench *bench)
{
	static const struct contest many = {
		.name = "translate with the length, 30000 regions",
		.run = loop_translate_all,
		.floor = loop_walk_bare,
		.against = "bare walk",
		.target = 1.5,
	};
	char *host = bench_reserve(66 * GIB) + 2 * MIB;
	struct world world;

	world_open(&world, 2);
	bench_must(gpas_map_linear(world.space, gpas_gpa_at(0), 64 * GIB, host,
				   GPAS_PROT_RW, NULL),
		   "map");
	floor_map(&world.floor, 0, 64 * GIB, (uintptr_t)host, 21);
	hold_translation(bench, &world, "translate in 64 GiB of 2 MiB leaves",
			 loop_translate, 64 * GIB, 1.15);
	bench_must(gpas_clear(world.space), "clear");
	floor_clear(&world.floor);
	world_map_pages(&world, REGIONS, host);
	hold(bench, &world, &world, &many);
	world_close(&world);
}

/* ---- Access -------------------------------------------------------------- */

static const struct word_access {
	const char *name;
	world_loop *run;
	world_loop *floor;
} word_accesses[] = {
	{ "load a word", loop_load, loop_load_bare },
	{ "store a word", loop_store, loop_store_bare },
	{ "view loads a word", loop_load_view, loop_load_bare },
	{ "view stores a word", loop_store_view, loop_store_bare },
};

/* In one region and in many, to the floor; then many to one. */
static void hold_words(struct bench *bench, struct world worlds[2],
		       const struct word_access *access, uint64_t set)
{
	char name[96];
	struct contest contest = {
		.name = name,
		.run = access->run,
		.floor = access->floor,
		.against = "bare walk and access",
		.set = set,
		.target = 1.2,
	};

	for (unsigned i = 0; i < 2; i++) {
		(void)snprintf(name, sizeof(name), "%s in %s%s", access->name,
			       bench_bytes((double)set).text,
			       i == 0 ? "" : ", 1024 regions");
		hold(bench, &worlds[i], &worlds[i], &contest);
	}
	if (set == 16 * MIB) {
		contest.floor = access->run;
		contest.against = "in 1 region";
		contest.target = 1.1;
		hold(bench, &worlds[1], &worlds[0], &contest);
	}
}

static void bench_words(struct bench *bench)
{
	static const uint64_t sets[] = { 64 * KIB, 16 * MIB, GIB };
	struct world worlds[2];

	for (unsigned i = 0; i < 2; i++) {
		world_open(&worlds[i], 3 + i);
		world_map(bench, &worlds[i], i == 1);
	}
	for (size_t i = 0; i < ARRAY_COUNT(word_accesses); i++) {
		for (size_t j = 0; j < ARRAY_COUNT(sets); j++) {
			hold_words(bench, worlds, &word_accesses[i], sets[j]);
		}
	}
	world_close(&worlds[0]);
	world_close(&worlds[1]);
}

static void bench_blocks(struct bench *bench)
{
	static const struct word_access accesses[] = {
		{ "read", loop_read_blocks, loop_copy_out },
		{ "write", loop_write_blocks, loop_copy_in },
		{ "view reads", loop_read_view, loop_copy_out },
		{ "view writes", loop_write_view, loop_copy_in },
	};
	struct world world;
	char name[96];

	world_open(&world, 5);
	world_map(bench, &world, false);
	for (size_t i = 0; i < 2 * ARRAY_COUNT(accesses); i++) {
		const struct word_access *access = &accesses[i / 2];
		struct contest contest = {
			.name = name,
			.run = access->run,
			.floor = access->floor,
			.against = "memcpy",
			.set = 16 * MIB,
			.block = i % 2 == 0 ? 4 * KIB : MIB,
			.about = BENCH_SPEED,
			.target = 0.95,
		};

		(void)snprintf(name, sizeof(name), "%s %s at random in 16 MiB",
			       access->name, i % 2 == 0 ? "4 KiB" : "1 MiB");
		hold(bench, &world, &world, &contest);
	}
	world_close(&world);
}

void bench_reader(struct bench *bench)
{
	if (!bench_group(bench, "reader",
			 "Readers, one thread, random addresses")) {
		return;
	}
	bench_translate(bench);
	bench_translate_large(bench);
	bench_words(bench);
	bench_blocks(bench);
}
