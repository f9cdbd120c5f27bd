/* SPDX-License-Identifier: MIT */
/*
 * Threads: readers beside a writer whose memory is poisoned and unmapped the
 * moment gpas_unmap returns, several threads that touch one granule, writers
 * beside one another, and devices that are removed while they are in use.
 *
 * Meant to be run under ThreadSanitizer as well. GPAS_ROUNDS makes it longer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

#define RW	   GPAS_PROT_RW
#define THREADS	   4
#define AREAS	   8
#define AREA_BYTES (4 * MIB)
#define SLOT_BYTES 256
#define SLOTS_FROM 1024
#define MAGIC	   UINT64_C(0x6f6b6179)
#define POISON	   0xdd

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static uint64_t rounds(uint64_t otherwise)
{
	const char *text = getenv("GPAS_ROUNDS");

	if (text != NULL) {
		return strtoull(text, NULL, 0);
	}
	return SANITIZED ? otherwise / 4 : otherwise;
}

/* What all threads of a test share. */
struct stage {
	struct gpas *space;
	atomic_bool stop;
	/* The first thing that went wrong: a line of this file, and a value. */
	atomic_int wrong_line;
	_Atomic(uint64_t) wrong_value;
	atomic_uint next_thread;
	pthread_barrier_t barrier;
};

static void report(struct stage *stage, int line, uint64_t value)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&stage->wrong_line, &none, line)) {
		stage->wrong_value = value;
	}
	stage->stop = true;
}

static void start(pthread_t *threads, void *(*run)(void *), void *ctx)
{
	for (unsigned i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_create(&threads[i], NULL, run, ctx),
				 0);
	}
}

static void finish(struct stage *stage, pthread_t *threads)
{
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
	}
	if (stage->wrong_line != 0) {
		print_error("line %d: %#llx\n", (int)stage->wrong_line,
			    (unsigned long long)stage->wrong_value);
	}
	assert_int_equal(stage->wrong_line, 0);
	assert_int_equal(gpas_check(stage->space), 0);
}

static void open_stage(void **state, struct stage *stage, uint64_t size)
{
	struct fixture *fixture = *state;

	memset(stage, 0, sizeof(*stage));
	stage->space = fixture_space(state, size);
	fixture->threads = true;
}

/* ---- readers beside a writer -------------------------------------------- */

/* Word 0 of a page tells whose it is; each reader has its own slot. */
static bool is_fine(uint64_t word, uint64_t gpa)
{
	return word == 0 || word == (MAGIC ^ gpa);
}

static bool is_expected(int err)
{
	return err == 0 || err == -ENOENT || err == -EACCES;
}

static void check_result(struct stage *stage, int err, int line)
{
	if (!is_expected(err)) {
		report(stage, line, (uint64_t)err);
	}
}

/* Every other reader has a view. */
static void read_word(struct stage *stage, struct gpas_view *view,
		      uint64_t page)
{
	uint64_t word = 0;
	int err = view != NULL ? gpas_view_load(view, at(page), 8, &word)
			       : gpas_load(stage->space, at(page), 8, &word);

	check_result(stage, err, __LINE__);
	if (err == 0 && !is_fine(word, page)) {
		report(stage, __LINE__, word);
	}
}

/* Bytes of the reader's own: untouched, or what it wrote. */
static void use_slot(struct stage *stage, struct gpas_view *view, uint64_t page,
		     unsigned reader, uint64_t *random)
{
	uint8_t bytes[SLOT_BYTES];
	gpas_gpa slot = at(page + SLOTS_FROM + reader * SLOT_BYTES);
	int err;

	if (next_random(random) % 2 == 0) {
		memset(bytes, (int)reader + 1, sizeof(bytes));
		err = view != NULL ? gpas_view_write(view, slot, bytes,
						     sizeof(bytes), NULL)
				   : gpas_write(stage->space, slot, bytes,
						sizeof(bytes), NULL);
		check_result(stage, err, __LINE__);
		return;
	}
	err = view != NULL
		      ? gpas_view_read(view, slot, bytes, sizeof(bytes), NULL)
		      : gpas_read(stage->space, slot, bytes, sizeof(bytes),
				  NULL);
	check_result(stage, err, __LINE__);
	for (size_t i = 0; err == 0 && i < sizeof(bytes); i++) {
		if (bytes[i] != 0 && bytes[i] != reader + 1) {
			report(stage, __LINE__, bytes[i]);
			break;
		}
	}
}

static void ask(struct stage *stage, uint64_t page, uint64_t *random)
{
	struct gpas_translation t;
	struct gpas_extent extent;
	struct gpas_region region;
	struct gpas_stats stats;
	uint64_t expected = 0;
	int err = 0;

	switch (next_random(random) % 16) {
	case 0:
		gpas_stats(stage->space, &stats);
		break;
	case 1:
		err = gpas_region_next(stage->space, at(page), &region);
		break;
	case 2:
		err = gpas_extent_next(stage->space, at(page), &extent);
		break;
	case 3:
	case 4:
		/* Word 1 counts up and down, or stays. */
		err = gpas_compare_exchange(stage->space, at(page + 8), 8,
					    &expected, expected);
		err = err > 0 ? 0 : err;
		break;
	default:
		err = gpas_translate(stage->space, at(page), 0, UINT64_MAX, &t);
		if (err == 0 && (t.size == 0 || t.size % PAGE != 0)) {
			report(stage, __LINE__, t.size);
		}
		break;
	}
	check_result(stage, err, __LINE__);
}

static void *reader(void *ctx)
{
	struct stage *stage = ctx;
	unsigned number = stage->next_thread++;
	uint64_t random = number + 77;
	struct gpas_view *view = NULL;

	if (number % 2 == 0 && gpas_view_open(stage->space, &view) != 0) {
		report(stage, __LINE__, number);
	}
	while (!stage->stop) {
		uint64_t page = next_random(&random) %
				(AREAS * AREA_BYTES / PAGE) * PAGE;

		read_word(stage, view, page);
		use_slot(stage, view, page, number, &random);
		ask(stage, page, &random);
		/* Near it as well: a view remembers few pages. */
		page = page / (32 * PAGE) * (32 * PAGE);
		read_word(stage, view, page);
	}
	gpas_view_close(view);
	return NULL;
}

/* What the writer has in one area. */
struct area {
	struct gpas_memory *memory; /* linear: the test's own */
	bool mapped;
	unsigned prot;
	bool watched; /* read-only since the words were summed up */
	uint64_t sum;
};

static uint64_t sum_of(const struct area *area)
{
	const uint64_t *words = gpas_memory_host(area->memory);
	uint64_t sum = 0;

	for (uint64_t i = 0; i < AREA_BYTES / 8; i += 4) {
		sum = sum * 31 + words[i];
	}
	return sum;
}

static void map_area(struct stage *stage, struct area *area, uint64_t gpa,
		     uint64_t random)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 16 * PAGE };

	*area = (struct area){ .mapped = true, .prot = RW };
	if (random % 2 == 0) {
		lazy.lazy = random % 4 == 0;
		lazy.granule = lazy.lazy ? lazy.granule : 0;
		assert_int_equal(gpas_map_alloc(stage->space, at(gpa),
						AREA_BYTES, RW, &lazy),
				 0);
		return;
	}
	assert_int_equal(gpas_memory_create(AREA_BYTES, NULL, &area->memory),
			 0);
	for (uint64_t page = 0; page < AREA_BYTES; page += PAGE) {
		uint64_t *word = (uint64_t *)(void *)((char *)gpas_memory_host(
							      area->memory) +
						      page);

		*word = MAGIC ^ (gpa + page);
	}
	assert_int_equal(gpas_map_linear(stage->space, at(gpa), AREA_BYTES,
					 gpas_memory_host(area->memory), RW,
					 NULL),
			 0);
}

static void unmap_area(struct stage *stage, struct area *area, uint64_t gpa,
		       uint64_t random)
{
	uint64_t part = random / 8 % (AREA_BYTES / PAGE) * PAGE;

	/* In two steps, so that blocks are split under the readers. */
	if (random % 2 == 0 && part != 0) {
		assert_int_equal(gpas_unmap(stage->space, at(gpa), part), 0);
	}
	assert_int_equal(gpas_unmap(stage->space, at(gpa), AREA_BYTES), 0);
	if (area->memory != NULL) {
		/* No reader uses it any more: one that does sees poison or
		 * crashes. */
		memset(gpas_memory_host(area->memory), POISON, AREA_BYTES);
		gpas_memory_put(area->memory);
	}
	*area = (struct area){ 0 };
}

static void protect_area(struct stage *stage, struct area *area, uint64_t gpa,
			 uint64_t random)
{
	static const unsigned prots[] = { RW, GPAS_PROT_READ, GPAS_PROT_NONE,
					  RW };
	unsigned prot = prots[random % ARRAY_COUNT(prots)];

	/* When it was read-only no late store may have come through. */
	if (area->watched && sum_of(area) != area->sum) {
		report(stage, __LINE__, area->sum);
	}
	if (random / 4 % 2 == 0) {
		assert_int_equal(
			gpas_protect(stage->space,
				     at(gpa + random / 8 % 1024 * PAGE), PAGE,
				     GPAS_PROT_READ),
			0);
	}
	assert_int_equal(gpas_protect(stage->space, at(gpa), AREA_BYTES, prot),
			 0);
	area->prot = prot;
	area->watched = area->memory != NULL && prot == GPAS_PROT_READ;
	area->sum = area->watched ? sum_of(area) : 0;
}

static void change_area(struct stage *stage, struct area *area, uint64_t gpa,
			uint64_t random)
{
	if (!area->mapped) {
		map_area(stage, area, gpa, random / 16);
		return;
	}
	switch (random % 8) {
	case 0:
	case 1:
	case 2:
		unmap_area(stage, area, gpa, random / 16);
		break;
	case 3:
		assert_int_equal(
			gpas_populate(stage->space, at(gpa), AREA_BYTES), 0);
		break;
	case 4:
		if (area->memory == NULL) {
			assert_int_equal(
				gpas_discard(stage->space, at(gpa), AREA_BYTES),
				0);
		}
		break;
	default:
		protect_area(stage, area, gpa, random / 16);
		break;
	}
}

static void readers_never_see_what_is_gone(void **state)
{
	static struct stage stage;
	static struct area areas[AREAS];
	pthread_t threads[THREADS];
	uint64_t random = 4242;

	open_stage(state, &stage, AREAS * AREA_BYTES);
	memset(areas, 0, sizeof(areas));
	start(threads, reader, &stage);
	for (uint64_t n = rounds(1200); n > 0 && !stage.stop; n--) {
		unsigned i = next_random(&random) % AREAS;

		change_area(&stage, &areas[i], i * AREA_BYTES,
			    next_random(&random));
	}
	stage.stop = true;
	finish(&stage, threads);
	fixture_close(state);
	for (unsigned i = 0; i < AREAS; i++) {
		gpas_memory_put(areas[i].memory);
	}
}

/* The same with several changes at a time: memory may go after the commit. */
static void readers_never_see_what_a_group_removed(void **state)
{
	static struct stage stage;
	pthread_t threads[THREADS];
	uint64_t random = 99;
	struct area area = { 0 };

	open_stage(state, &stage, AREAS * AREA_BYTES);
	start(threads, reader, &stage);
	for (uint64_t n = rounds(300); n > 0 && !stage.stop; n--) {
		bool commit = next_random(&random) % 2 == 0;

		map_area(&stage, &area, 0, 1);
		assert_int_equal(gpas_begin(stage.space), 0);
		assert_int_equal(gpas_unmap(stage.space, at(PAGE), 2 * MIB), 0);
		assert_int_equal(
			gpas_map_alloc(stage.space, at(PAGE), MIB, RW, NULL),
			0);
		assert_int_equal(
			gpas_protect(stage.space, at(0), MIB, GPAS_PROT_READ),
			0);
		assert_int_equal(gpas_unmap(stage.space, at(0), AREA_BYTES), 0);
		assert_int_equal(commit ? gpas_commit(stage.space)
					: gpas_abort(stage.space),
				 0);
		unmap_area(&stage, &area, 0, 1);
	}
	stage.stop = true;
	finish(&stage, threads);
	fixture_close(state);
}

/* ---- one granule, several threads --------------------------------------- */

#define FAULT_PAGES 2048
#define GRANULE	    8

struct race {
	struct stage stage; /* first */
	struct ledger ledger;
};

static void *touch_together(void *ctx)
{
	struct race *race = ctx;
	struct gpas *space = race->stage.space;
	unsigned number = race->stage.next_thread++;

	for (uint64_t page = 0; page < FAULT_PAGES; page += GRANULE) {
		uint64_t mine = page + (number * 3 + page) % GRANULE;
		struct gpas_fault fault;
		uint8_t byte = 0;
		int err;

		pthread_barrier_wait(&race->stage.barrier);
		if (number % 2 == 0) {
			err = gpas_fault(space, at(mine * PAGE), RW, &fault);
			if (err != 0 || fault.kind != GPAS_FAULT_RESUME) {
				report(&race->stage, __LINE__, fault.kind);
			}
		}
		err = gpas_read(space, at(mine * PAGE), &byte, 1, NULL);
		if (err != 0 || byte != ledger_byte(mine)) {
			report(&race->stage, __LINE__, byte);
		}
	}
	return NULL;
}

static void a_granule_is_provided_once(void **state)
{
	struct gpas_map_params lazy = { .lazy = true,
					.granule = GRANULE * PAGE };
	static struct race race;
	struct gpas_backend backend;
	struct gpas_stats stats;
	pthread_t threads[THREADS];

	open_stage(state, &race.stage, GIB);
	ledger_open(&race.ledger, FAULT_PAGES, GRANULE);
	backend = ledger_backend(&race.ledger);
	assert_int_equal(gpas_map_backend(race.stage.space, at(0),
					  FAULT_PAGES * PAGE, RW, &backend,
					  &lazy),
			 0);
	assert_int_equal(
		pthread_barrier_init(&race.stage.barrier, NULL, THREADS), 0);
	start(threads, touch_together, &race);
	finish(&race.stage, threads);
	assert_int_equal(race.ledger.calls, FAULT_PAGES / GRANULE);
	assert_true(ledger_pages_are(&race.ledger, 0, FAULT_PAGES, 1, 0));
	gpas_stats(race.stage.space, &stats);
	assert_int_equal(stats.populations, FAULT_PAGES / GRANULE);
	assert_int_equal(stats.populated, FAULT_PAGES * PAGE);
	fixture_close(state);
	assert_int_equal(race.ledger.releases, 1);
	ledger_close(&race.ledger);
	pthread_barrier_destroy(&race.stage.barrier);
}

/* Every thread adds one to each counter in fresh memory: none is lost to a
 * page that was replaced or zeroed twice. */
static void *count_together(void *ctx)
{
	struct stage *stage = ctx;

	for (uint64_t page = 0; page < FAULT_PAGES; page++) {
		uint64_t old = 0;
		int done = 0;

		if (page % 64 == 0) {
			pthread_barrier_wait(&stage->barrier);
		}
		while (done == 0) {
			done = gpas_compare_exchange(stage->space,
						     at(page * PAGE), 8, &old,
						     old + 1);
		}
		if (done < 0) {
			report(stage, __LINE__, (uint64_t)done);
		}
	}
	return NULL;
}

static void first_touches_lose_no_store(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	static struct stage stage;
	pthread_t threads[THREADS];

	lazy.granule_max = 64 * PAGE;
	open_stage(state, &stage, GIB);
	assert_int_equal(gpas_map_alloc(stage.space, at(0), FAULT_PAGES * PAGE,
					RW, &lazy),
			 0);
	assert_int_equal(pthread_barrier_init(&stage.barrier, NULL, THREADS),
			 0);
	start(threads, count_together, &stage);
	finish(&stage, threads);
	for (uint64_t page = 0; page < FAULT_PAGES; page++) {
		uint64_t value = 0;

		assert_int_equal(
			gpas_load(stage.space, at(page * PAGE), 8, &value), 0);
		assert_int_equal(value, THREADS);
	}
	pthread_barrier_destroy(&stage.barrier);
}

/* ---- writers beside one another ----------------------------------------- */

static void *writer(void *ctx)
{
	struct stage *stage = ctx;
	unsigned number = stage->next_thread++;
	gpas_gpa mine = at(number * 8 * MIB);
	uint64_t random = number + 5;

	for (uint64_t n = rounds(1500); n > 0 && !stage->stop; n--) {
		struct gpas_map_params map = {
			.lazy = next_random(&random) % 2 == 0
		};
		bool grouped = next_random(&random) % 2 == 0;
		uint64_t value = 1;
		int err = grouped ? gpas_begin(stage->space) : 0;

		err |= gpas_map_alloc(stage->space, mine, 8 * MIB, RW, &map);
		err |= gpas_load(stage->space, at(mine.value + MIB), 8, &value);
		err |= gpas_store(stage->space, at(mine.value + MIB), 8, n);
		err |= gpas_protect(stage->space, at(mine.value + 2 * MIB), MIB,
				    GPAS_PROT_READ);
		err |= gpas_unmap(stage->space, at(mine.value + 3 * MIB), MIB);
		err |= grouped ? gpas_commit(stage->space) : 0;
		if (err != 0 || value != 0) {
			report(stage, __LINE__, (uint64_t)err);
			break;
		}
		err |= gpas_load(stage->space, at(mine.value + MIB), 8, &value);
		err |= gpas_unmap(stage->space, mine, 8 * MIB);
		if (err != 0 || value != n) {
			report(stage, __LINE__, value);
		}
	}
	return NULL;
}

static void writers_take_turns(void **state)
{
	static struct stage stage;
	pthread_t threads[THREADS];
	struct gpas_stats stats;

	open_stage(state, &stage, GIB);
	start(threads, writer, &stage);
	finish(&stage, threads);
	gpas_stats(stage.space, &stats);
	assert_int_equal(stats.regions, 0);
	assert_int_equal(stats.present, 0);
}

/* ---- devices ------------------------------------------------------------ */

struct shared_device {
	struct stage stage; /* first */
	atomic_bool alive;
	atomic_uint inside;
	atomic_uint calls;
};

static int device_access(void *ctx, struct gpas_device_access *access)
{
	struct shared_device *device = ctx;

	device->inside++;
	device->calls++;
	if (!device->alive) {
		report(&device->stage, __LINE__, access->offset);
	}
	sched_yield();
	access->value = 0;
	device->inside--;
	return 0;
}

static void device_release(void *ctx)
{
	struct shared_device *device = ctx;

	if (device->inside != 0) {
		report(&device->stage, __LINE__, device->inside);
	}
	device->alive = false;
}

static void *device_user(void *ctx)
{
	struct shared_device *device = ctx;
	uint64_t random = ++device->stage.next_thread;

	while (!device->stage.stop) {
		bool port = next_random(&random) % 2 == 0;
		uint32_t value = 0;
		int err = gpas_device_dispatch(device->stage.space,
					       port ? GPAS_ADDRESS_PORT
						    : GPAS_ADDRESS_GPA,
					       0x4000, &value, 4, false);

		if (err != 0 && (err != -ENOENT || value != UINT32_MAX)) {
			report(&device->stage, __LINE__, (uint64_t)err);
		}
	}
	return NULL;
}

static void devices_outlive_their_accesses(void **state)
{
	static struct shared_device shared;
	const struct gpas_device device = {
		.ctx = &shared,
		.access = device_access,
		.release = device_release,
	};
	pthread_t threads[THREADS];
	struct gpas *space;

	memset(&shared, 0, sizeof(shared));
	open_stage(state, &shared.stage, GIB);
	space = shared.stage.space;
	start(threads, device_user, &shared);
	for (uint64_t n = rounds(2000); n > 0 && !shared.stage.stop; n--) {
		shared.alive = true;
		if (n % 2 == 0) {
			assert_int_equal(gpas_map_device(space, at(0x4000),
							 PAGE, &device),
					 0);
			sched_yield();
			assert_int_equal(gpas_unmap(space, at(0x4000), PAGE),
					 0);
		} else {
			assert_int_equal(gpas_add_device(space,
							 GPAS_ADDRESS_PORT,
							 0x4000, 4, &device),
					 0);
			sched_yield();
			assert_int_equal(gpas_remove_device(space,
							    GPAS_ADDRESS_PORT,
							    0x4000),
					 0);
		}
		/* Released by whoever is the last to leave. */
		while (shared.alive && !shared.stage.stop) {
			sched_yield();
		}
	}
	shared.stage.stop = true;
	finish(&shared.stage, threads);
	assert_true(shared.calls > 0);
}

/* ---- more readers than have a place of their own ------------------------- */

#define CROWD 80
#define BUSY  8 /* of those that come last, and find no place */

struct crowd {
	struct stage stage;
	char *hosts[2];
	atomic_uint arrived;
};

/* All of the page is what one of the two holds while it is mapped. */
static void *read_in_a_crowd(void *ctx)
{
	struct crowd *crowd = ctx;
	struct stage *stage = &crowd->stage;
	unsigned number = stage->next_thread++;
	char page[PAGE];

	do {
		int err = gpas_read(stage->space, at(MIB), page, PAGE, NULL);

		check_result(stage, err, __LINE__);
		if (err == 0 && ((page[0] != 1 && page[0] != 2) ||
				 memcmp(page, page + 1, PAGE - 1) != 0)) {
			report(stage, __LINE__, (uint64_t)page[0]);
		}
		crowd->arrived++;
		if (number % CROWD < CROWD - BUSY) {
			(void)usleep(100);
		}
	} while (!stage->stop);
	return NULL;
}

/* Maps one page and the other in turn; what is not mapped is poisoned. */
static void change_under_a_crowd(struct crowd *crowd, unsigned turn)
{
	char *host = crowd->hosts[turn % 2];

	memset(host, (int)(turn % 2 + 1), PAGE);
	assert_int_equal(gpas_map_linear(crowd->stage.space, at(MIB), PAGE,
					 host, RW, NULL),
			 0);
	sched_yield();
	assert_int_equal(gpas_unmap(crowd->stage.space, at(MIB), PAGE), 0);
	memset(host, POISON, PAGE);
}

/* Twice, so that threads come after others that had places. */
static void a_crowd_of_readers_sees_nothing_that_is_gone(void **state)
{
	struct gpas_memory *memory;
	struct crowd crowd;
	pthread_t threads[CROWD];

	open_stage(state, &crowd.stage, GIB);
	assert_int_equal(gpas_memory_create(2 * PAGE, NULL, &memory), 0);
	crowd.hosts[0] = gpas_memory_host(memory);
	crowd.hosts[1] = crowd.hosts[0] + PAGE;
	for (unsigned wave = 0; wave < 2; wave++) {
		crowd.arrived = 0;
		crowd.stage.stop = false;
		for (unsigned i = 0; i < CROWD; i++) {
			assert_int_equal(pthread_create(&threads[i], NULL,
							read_in_a_crowd,
							&crowd),
					 0);
		}
		for (unsigned turn = 0;
		     turn < rounds(1000) || crowd.arrived < 2 * CROWD; turn++) {
			change_under_a_crowd(&crowd, turn);
		}
		crowd.stage.stop = true;
		for (unsigned i = 0; i < CROWD; i++) {
			pthread_join(threads[i], NULL);
		}
		assert_int_equal(crowd.stage.wrong_line, 0);
	}
	gpas_memory_put(memory);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(readers_never_see_what_is_gone),
		fixture_test(readers_never_see_what_a_group_removed),
		fixture_test(a_crowd_of_readers_sees_nothing_that_is_gone),
		fixture_test(a_granule_is_provided_once),
		fixture_test(first_touches_lose_no_store),
		fixture_test(writers_take_turns),
		fixture_test(devices_outlive_their_accesses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
