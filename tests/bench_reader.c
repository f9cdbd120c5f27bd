/* SPDX-License-Identifier: MIT */
/*
 * What readers cost: translation and access, by the plain calls and by views,
 * beside a bare walk of a table written by hand, a load, or memcpy; several
 * readers at once, and readers beside a writer.
 */
#include "bench.h"
#include "bench_floor.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	   GPAS_PAGE_BYTES
#define RW	   GPAS_PROT_RW
#define REPEATS	   9
#define ITERATIONS 400000
#define REGIONS	   30000
/* Where the writer works: beside what is read. */
#define ELSEWHERE (2 * TIB)

/* What the loops below run on. */
struct world {
	struct gpas *space;
	struct gpas_view *view;
	struct floor floor;
	char *host;
	uint64_t mask;	 /* of the GPAs that are used */
	uint64_t stride; /* REGIONS: bytes from one to the next; or 0 */
	bool dependent;	 /* the next address depends on the last answer */
	size_t block;
	unsigned iterations;
	char *buffer;
};

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* The next of a pseudo-random sequence of GPAs. */
static inline uint64_t next_gpa(const struct world *world, uint64_t *x)
{
	*x = *x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	if (world->stride != 0) {
		return (*x >> 33) % REGIONS * world->stride;
	}
	return *x >> 24 & world->mask;
}

/* Makes the next address wait for @answer, without changing it. */
static inline void depend(const struct world *world, uint64_t *x,
			  uint64_t answer)
{
	if (world->dependent) {
		__asm__("and $0, %0" : "+r"(answer));
		*x ^= answer;
	}
}

/* ---- Loops --------------------------------------------------------------- */

typedef uint64_t loop(struct world *world);

static uint64_t walk_bare(struct world *world)
{
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		uint64_t host = floor_walk(&world->floor, next_gpa(world, &x));

		sum += host;
		depend(world, &x, host);
	}
	return sum;
}

static uint64_t translate(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_translate(world->space, at(next_gpa(world, &x)),
				     GPAS_PROT_READ, 1, &found);
		sum += (uintptr_t)found.host;
		depend(world, &x, (uintptr_t)found.host);
	}
	return sum;
}

static uint64_t translate_all(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_translate(world->space, at(next_gpa(world, &x)),
				     GPAS_PROT_READ, UINT64_MAX, &found);
		sum += found.size;
	}
	return sum;
}

static uint64_t translate_view(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_translate(world->view, at(next_gpa(world, &x)),
					  GPAS_PROT_READ, 1, &found);
		sum += (uintptr_t)found.host;
		depend(world, &x, (uintptr_t)found.host);
	}
	return sum;
}

static uint64_t *bare_word(struct world *world, uint64_t *x)
{
	return (uint64_t *)(uintptr_t)floor_walk(&world->floor,
						 next_gpa(world, x));
}

static uint64_t load_bare(struct world *world)
{
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		sum += __atomic_load_n(bare_word(world, &x), __ATOMIC_ACQUIRE);
	}
	return sum;
}

static uint64_t store_bare(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		__atomic_store_n(bare_word(world, &x), x, __ATOMIC_RELEASE);
	}
	return x;
}

static uint64_t load(struct world *world)
{
	uint64_t value = 0;
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_load(world->space, at(next_gpa(world, &x)), 8,
				&value);
		sum += value;
	}
	return sum;
}

static uint64_t load_view(struct world *world)
{
	uint64_t value = 0;
	uint64_t x = 1;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_load(world->view, at(next_gpa(world, &x)), 8,
				     &value);
		sum += value;
	}
	return sum;
}

static uint64_t store(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_store(world->space, at(next_gpa(world, &x)), 8, x);
	}
	return x;
}

static uint64_t store_view(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_store(world->view, at(next_gpa(world, &x)), 8,
				      x);
	}
	return x;
}

static uint64_t copy_out(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		memcpy(world->buffer, world->host + next_gpa(world, &x),
		       world->block);
		__asm__ volatile("" ::"r"(world->buffer) : "memory");
	}
	return x;
}

static uint64_t copy_in(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		memcpy(world->host + next_gpa(world, &x), world->buffer,
		       world->block);
		__asm__ volatile("" ::"r"(world->host) : "memory");
	}
	return x;
}

static uint64_t read_blocks(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_read(world->space, at(next_gpa(world, &x)),
				world->buffer, world->block, NULL);
	}
	return x;
}

static uint64_t write_blocks(struct world *world)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_write(world->space, at(next_gpa(world, &x)),
				 world->buffer, world->block, NULL);
	}
	return x;
}

/* ---- Rows ---------------------------------------------------------------- */

static double time_of(struct world *world, loop *run)
{
	static volatile uint64_t sink;
	double begun = bench_now();

	sink = run(world);
	(void)sink;
	return (bench_now() - begun) / world->iterations;
}

struct contest {
	const char *name;
	loop *run;
	loop *floor;
	uint64_t set; /* bytes of GPAs used, a power of two; 0: regions */
	size_t block; /* bytes an access has; 0: a word */
	bool dependent;
	double target;
};

static void hold(struct bench *bench, struct world *world,
		 const struct contest *contest)
{
	struct bench_row row = {
		.name = contest->name,
		.unit = "ns",
		.target = contest->target,
	};
	size_t block = contest->block != 0 ? contest->block : 8;

	world->mask = (contest->set - 1) & ~(uint64_t)(block - 1);
	world->stride = contest->set == 0 ? 2 * PAGE : 0;
	world->block = block;
	world->dependent = contest->dependent;
	world->iterations =
		block > 8 ? (unsigned)(64 * MIB / block) : ITERATIONS;
	for (unsigned n = 0; n < REPEATS; n++) {
		series_add(&row.figure, time_of(world, contest->run));
		series_add(&row.floor, time_of(world, contest->floor));
	}
	bench_report(bench, &row);
}

static void open_world(struct world *world)
{
	struct gpas_params params = { .size = 4 * TIB };

	*world = (struct world){ 0 };
	bench_must(gpas_create(&params, &world->space), "a space");
	bench_must(gpas_view_open(world->space, &world->view), "a view");
	bench_must(floor_open(&world->floor, 1024), "the floor's tables");
	floor_clear(&world->floor);
}

static void close_world(struct world *world)
{
	gpas_view_close(world->view);
	gpas_destroy(world->space);
	floor_close(&world->floor);
	free(world->buffer);
}

/* 1 GiB of committed memory in 4 KiB leaves, mapped as @regions regions. */
static void map_committed(struct world *world, unsigned regions)
{
	uint64_t size = GIB / regions;
	char *host = mmap(NULL, 2 * GIB, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	bench_must(host == MAP_FAILED ? -errno : 0, "memory");
	/* One page off every larger leaf. */
	world->host = host + (2 * MIB - (uintptr_t)host % (2 * MIB)) + PAGE;
	(void)madvise(host, 2 * GIB, MADV_NOHUGEPAGE);
	for (uint64_t i = 0; i < GIB; i += PAGE) {
		world->host[i] = 1;
	}
	for (uint64_t gpa = 0; gpa < GIB; gpa += size) {
		bench_must(gpas_map_linear(world->space, at(gpa), size,
					   world->host + gpa, RW, NULL),
			   "map");
	}
	floor_map(&world->floor, 0, GIB, (uintptr_t)world->host, 12);
	world->buffer = aligned_alloc(PAGE, MIB);
	bench_must(world->buffer == NULL ? -ENOMEM : 0, "memory");
	memset(world->buffer, 1, MIB);
}

static void unmap_committed(struct world *world)
{
	uintptr_t host = (uintptr_t)world->host - PAGE;

	close_world(world);
	/* What lies before the alignment stays reserved, which is nothing. */
	munmap((void *)host, GIB + PAGE);
}

static void bench_translate(struct bench *bench)
{
	static const struct contest contests[] = {
		{ "translate, random in 16 MiB of 4 KiB leaves", translate,
		  walk_bare, 16 * MIB, 0, false, 1.15 },
		{ "  the next waits for the last", translate, walk_bare,
		  16 * MIB, 0, true, 1.15 },
		{ "translate, random in 1 GiB of 4 KiB leaves", translate,
		  walk_bare, GIB, 0, false, 1.15 },
		{ "  the next waits for the last", translate, walk_bare, GIB, 0,
		  true, 1.15 },
		{ "view translates, random in 1 MiB", translate_view, walk_bare,
		  MIB, 0, false, 0.7 },
		{ "  the next waits for the last", translate_view, walk_bare,
		  MIB, 0, true, 0.7 },
		{ "view translates, random in 16 MiB", translate_view,
		  walk_bare, 16 * MIB, 0, false, 0 },
	};
	struct world world;

	open_world(&world);
	map_committed(&world, 1);
	for (size_t i = 0; i < sizeof(contests) / sizeof(contests[0]); i++) {
		hold(bench, &world, &contests[i]);
	}
	unmap_committed(&world);
}

static void bench_translate_large(struct bench *bench)
{
	static const struct contest large = {
		"translate, random in 64 GiB of 2 MiB leaves",
		translate,
		walk_bare,
		64 * GIB,
		0,
		false,
		1.15
	};
	static const struct contest many = {
		"translate with the length, 30000 regions",
		translate_all,
		walk_bare,
		0,
		0,
		false,
		1.5
	};
	uint64_t size = 66 * GIB;
	char *host = mmap(NULL, size, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct world world;
	char *from;

	bench_must(host == MAP_FAILED ? -errno : 0, "address space");
	from = host + (GIB - (uintptr_t)host % GIB) + 2 * MIB;
	open_world(&world);
	bench_must(
		gpas_map_linear(world.space, at(0), 64 * GIB, from, RW, NULL),
		"map");
	floor_map(&world.floor, 0, 64 * GIB, (uintptr_t)from, 21);
	hold(bench, &world, &large);
	bench_must(gpas_clear(world.space), "clear");
	floor_clear(&world.floor);
	for (uint64_t i = 0; i < REGIONS; i++) {
		bench_must(gpas_map_linear(world.space, at(i * 2 * PAGE), PAGE,
					   from, RW, NULL),
			   "map");
		floor_map(&world.floor, i * 2 * PAGE, PAGE, (uintptr_t)from,
			  12);
	}
	hold(bench, &world, &many);
	close_world(&world);
	munmap(host, size);
}

static void bench_words(struct bench *bench, unsigned regions)
{
	static const struct contest contests[] = {
		{ "load a word in 64 KiB", load, load_bare, 64 * KIB, 0, false,
		  1.2 },
		{ "load a word in 16 MiB", load, load_bare, 16 * MIB, 0, false,
		  1.2 },
		{ "load a word in 1 GiB", load, load_bare, GIB, 0, false, 1.2 },
		{ "store a word in 16 MiB", store, store_bare, 16 * MIB, 0,
		  false, 1.2 },
		{ "view loads a word in 64 KiB", load_view, load_bare, 64 * KIB,
		  0, false, 1.2 },
		{ "view loads a word in 16 MiB", load_view, load_bare, 16 * MIB,
		  0, false, 1.2 },
		{ "view loads a word in 1 GiB", load_view, load_bare, GIB, 0,
		  false, 1.2 },
		{ "view stores a word in 16 MiB", store_view, store_bare,
		  16 * MIB, 0, false, 1.2 },
	};
	struct world world;

	open_world(&world);
	map_committed(&world, regions);
	for (size_t i = 0; i < sizeof(contests) / sizeof(contests[0]); i++) {
		struct contest contest = contests[i];
		char name[96];

		(void)snprintf(name, sizeof(name), "%s, %u region%s",
			       contest.name, regions, regions > 1 ? "s" : "");
		contest.name = name;
		hold(bench, &world, &contest);
	}
	unmap_committed(&world);
}

static void bench_blocks(struct bench *bench)
{
	static const struct contest contests[] = {
		{ "read 4 KiB (floor: memcpy)", read_blocks, copy_out, 16 * MIB,
		  4 * KIB, false, 1.05 },
		{ "write 4 KiB", write_blocks, copy_in, 16 * MIB, 4 * KIB,
		  false, 1.05 },
		{ "read 1 MiB", read_blocks, copy_out, 16 * MIB, MIB, false,
		  1.05 },
		{ "write 1 MiB", write_blocks, copy_in, 16 * MIB, MIB, false,
		  1.05 },
	};
	struct world world;

	open_world(&world);
	map_committed(&world, 1);
	for (size_t i = 0; i < sizeof(contests) / sizeof(contests[0]); i++) {
		hold(bench, &world, &contests[i]);
	}
	unmap_committed(&world);
}

/* ---- Threads ------------------------------------------------------------- */

struct reader {
	pthread_t thread;
	struct world world; /* a copy, with a view of its own */
	loop *run;
	double elapsed;
};

static void *reader_main(void *arg)
{
	struct reader *reader = arg;

	reader->elapsed = time_of(&reader->world, reader->run);
	return NULL;
}

/* Time an operation of @count readers at once takes, of all of them. */
static double read_together(struct world *world, loop *run, unsigned count)
{
	struct reader readers[2];
	double begun = bench_now();

	for (unsigned i = 0; i < count; i++) {
		readers[i].world = *world;
		readers[i].run = run;
		bench_must(gpas_view_open(world->space, &readers[i].world.view),
			   "a view");
		bench_must(pthread_create(&readers[i].thread, NULL, reader_main,
					  &readers[i]),
			   "a thread");
	}
	for (unsigned i = 0; i < count; i++) {
		pthread_join(readers[i].thread, NULL);
		gpas_view_close(readers[i].world.view);
	}
	return (bench_now() - begun) / world->iterations / count;
}

struct writer {
	pthread_t thread;
	struct gpas *space;
	char *host;
	_Atomic(bool) stop;
};

static void *writer_main(void *arg)
{
	struct writer *writer = arg;

	while (!atomic_load(&writer->stop)) {
		(void)gpas_map_linear(writer->space, at(ELSEWHERE), 16 * PAGE,
				      writer->host, RW, NULL);
		(void)gpas_unmap(writer->space, at(ELSEWHERE), 16 * PAGE);
	}
	return NULL;
}

static double read_beside_writer(struct world *world, loop *run)
{
	struct writer writer = { .space = world->space, .host = world->host };
	double elapsed;

	bench_must(pthread_create(&writer.thread, NULL, writer_main, &writer),
		   "a thread");
	elapsed = read_together(world, run, 1);
	atomic_store(&writer.stop, true);
	pthread_join(writer.thread, NULL);
	return elapsed;
}

static void bench_threads(struct bench *bench, const char *what, loop *run)
{
	struct bench_row two = { .unit = "ns", .target = 1 / 1.9 };
	struct bench_row beside = { .unit = "ns", .target = 1 / 0.9 };
	struct world world;
	char name[96];

	open_world(&world);
	map_committed(&world, 1);
	world.mask = (16 * MIB - 1) & ~UINT64_C(7);
	world.iterations = 10 * ITERATIONS;
	for (unsigned n = 0; n < REPEATS; n++) {
		double alone = read_together(&world, run, 1);

		series_add(&two.floor, alone);
		series_add(&beside.floor, alone);
		series_add(&two.figure, read_together(&world, run, 2));
		series_add(&beside.figure, read_beside_writer(&world, run));
	}
	(void)snprintf(name, sizeof(name), "%s, two threads (floor: one)",
		       what);
	two.name = name;
	bench_report(bench, &two);
	(void)snprintf(name, sizeof(name), "%s beside a writer (floor: alone)",
		       what);
	beside.name = name;
	bench_report(bench, &beside);
	unmap_committed(&world);
}

void bench_reader(struct bench *bench)
{
	if (!bench_group(bench, "reader", "Readers, a table of 4 KiB leaves")) {
		return;
	}
	bench_translate(bench);
	bench_translate_large(bench);
	bench_words(bench, 1);
	bench_words(bench, 1024);
	bench_blocks(bench);
	bench_threads(bench, "load", load);
	bench_threads(bench, "view loads", load_view);
}
