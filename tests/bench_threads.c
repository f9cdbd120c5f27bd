/* SPDX-License-Identifier: MIT */
/*
 * Several readers at once, each on a CPU of its own as long as there are
 * enough, and readers beside a writer that never stops.
 */
#include "bench_world.h"

#include <pthread.h>
#include <stdatomic.h>

#define ITERATIONS 1000000
#define SET	   MIB
/* Where the writer works: beside what is read. */
#define ELSEWHERE (2 * TIB)

#define READERS_MAX 4

/*
 * Threads are made first and wait at a barrier, so that none is measured while
 * it is alone.
 */
struct team {
	const struct bench *bench;
	struct world *world;
	world_loop *run;
	unsigned count;
	bool disjoint; /* no two read the same page */
	pthread_barrier_t barrier;
};

struct reader {
	pthread_t thread;
	struct team *team;
	unsigned index;
	double begun;
	double ended;
};

static void *reader_main(void *arg)
{
	struct reader *reader = arg;
	struct team *team = reader->team;
	struct world world = *team->world;

	bench_pin(team->bench, reader->index);
	bench_must(gpas_view_open(world.space, &world.view), "a view");
	world.seed += reader->index;
	if (team->disjoint) {
		world.offset = reader->index * SET;
	}
	pthread_barrier_wait(&team->barrier);
	reader->begun = bench_now();
	(void)world_time(&world, team->run);
	reader->ended = bench_now();
	gpas_view_close(world.view);
	return NULL;
}

/* Nanoseconds that an access takes, of all readers together. */
static double read_together(struct team *team)
{
	struct reader readers[READERS_MAX];
	double begun = 0;
	double ended = 0;

	bench_must(pthread_barrier_init(&team->barrier, NULL, team->count),
		   "a barrier");
	for (unsigned i = 0; i < team->count; i++) {
		readers[i].team = team;
		readers[i].index = i;
		bench_must(pthread_create(&readers[i].thread, NULL, reader_main,
					  &readers[i]),
			   "a thread");
	}
	for (unsigned i = 0; i < team->count; i++) {
		pthread_join(readers[i].thread, NULL);
		begun = i == 0 || readers[i].begun < begun ? readers[i].begun
							   : begun;
		ended = readers[i].ended > ended ? readers[i].ended : ended;
	}
	pthread_barrier_destroy(&team->barrier);
	return (ended - begun) / team->world->iterations / team->count;
}

/* ---- Beside a writer ----------------------------------------------------- */

struct writer {
	pthread_t thread;
	const struct bench *bench;
	struct gpas *space;
	char *host;
	_Atomic(uint64_t) changes;
	_Atomic(bool) stop;
};

static void *writer_main(void *arg)
{
	struct writer *writer = arg;
	gpas_gpa start = gpas_gpa_at(ELSEWHERE);
	uint64_t size = 16 * GPAS_PAGE_BYTES;

	bench_pin(writer->bench, 1);
	while (!atomic_load(&writer->stop)) {
		bench_must(gpas_map_linear(writer->space, start, size,
					   writer->host, GPAS_PROT_RW, NULL),
			   "map");
		bench_must(gpas_unmap(writer->space, start, size), "unmap");
		atomic_fetch_add(&writer->changes, 2);
	}
	return NULL;
}

static double read_beside_writer(struct team *team)
{
	struct writer writer = {
		.bench = team->bench,
		.space = team->world->space,
		.host = team->world->host,
	};
	double figure;

	bench_must(pthread_create(&writer.thread, NULL, writer_main, &writer),
		   "a thread");
	while (atomic_load(&writer.changes) == 0) {
		sched_yield();
	}
	figure = read_together(team);
	atomic_store(&writer.stop, true);
	pthread_join(writer.thread, NULL);
	return figure;
}

/* ---- Rows and a curve ---------------------------------------------------- */

static void bench_pair(struct bench *bench, struct team *team, const char *what)
{
	struct bench_row rows[3] = { 0 };
	char names[3][96];

	if (CPU_COUNT(&bench->cpus) < 2) {
		bench_skip(bench, what, "there is one CPU");
		return;
	}
	for (unsigned n = 0; n < bench->repetitions; n++) {
		double alone;

		team->count = 1;
		team->disjoint = false;
		alone = read_together(team);
		series_add(&rows[2].figure, read_beside_writer(team));
		team->count = 2;
		series_add(&rows[0].figure, read_together(team));
		team->disjoint = true;
		series_add(&rows[1].figure, read_together(team));
		for (unsigned i = 0; i < 3; i++) {
			series_add(&rows[i].floor, alone);
		}
	}
	(void)snprintf(names[0], sizeof(names[0]),
		       "%s, two threads, same pages", what);
	(void)snprintf(names[1], sizeof(names[1]), "%s, two threads, disjoint",
		       what);
	(void)snprintf(names[2], sizeof(names[2]), "%s, beside a writer", what);
	for (unsigned i = 0; i < 3; i++) {
		rows[i].name = names[i];
		rows[i].unit = "ns";
		rows[i].against = "one thread alone";
		rows[i].about = BENCH_SPEED;
		/* The bare walk shows what the machine has to give. */
		if (team->run != loop_load_bare) {
			rows[i].target = i == 2 ? 0.9 : 1.9;
		}
		bench_report(bench, &rows[i]);
	}
}

static void bench_more(struct bench *bench, struct team *team, const char *what)
{
	struct bench_curve curve = {
		.plot = "threads",
		.name = what,
		.x = "threads",
		.unit = "ns",
	};

	bench_curve_begin(bench, &curve);
	for (team->count = 1; team->count <= READERS_MAX; team->count++) {
		struct series series = { 0 };

		for (unsigned n = 0; n < bench->repetitions; n++) {
			series_add(&series, read_together(team));
		}
		bench_point(bench, &curve, team->count, &series);
	}
	bench_curve_end(bench);
}

void bench_threads(struct bench *bench)
{
	static const struct {
		const char *name;
		world_loop *run;
	} ways[] = {
		{ "load", loop_load },
		{ "view loads", loop_load_view },
		{ "bare walk and load", loop_load_bare },
	};
	struct world world;

	if (!bench_group(bench, "threads",
			 "Readers at once, random words in 1 MiB")) {
		return;
	}
	world_open(&world, 6);
	world_map(bench, &world, false);
	world.mask = (SET - 1) & ~UINT64_C(7);
	world.iterations = bench->quick ? ITERATIONS / 10 : ITERATIONS;
	for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
		struct team team = {
			.bench = bench,
			.world = &world,
			.run = ways[i].run,
		};

		bench_pair(bench, &team, ways[i].name);
		team.disjoint = false;
		bench_more(bench, &team, ways[i].name);
	}
	world_close(&world);
}
