/* SPDX-License-Identifier: MIT */
/*
 * Running out: every changing call with its 1st, 2nd, ... nth allocation,
 * mapping, descriptor or table page failing, until none does. After each
 * failure the space is as it was, and sound; and nothing leaks. Releasing
 * calls succeed with nothing to be had at all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define RW GPAS_PROT_RW

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* What the calls work on; opened afresh for every attempt. */
struct scene {
	struct gpas *space;
	struct gpas_memory *memory; /* 2 MiB of the test's */
	struct ledger ledger;	    /* 16 pages, 4 a piece, not mapped */
	struct ledger lazy;	    /* likewise, mapped lazily at 48 MiB */
	unsigned device_releases;
};

static int ignore_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	access->value = 0;
	return 0;
}

static void count_release(void *ctx)
{
	(*(unsigned *)ctx)++;
}

static struct gpas_device device_of(struct scene *s)
{
	struct gpas_device device = {
		.ctx = &s->device_releases,
		.access = ignore_access,
		.release = count_release,
	};

	return device;
}

/*
 * [0, 8M) eager, with read-only pages in [2M, 4M) at its middle; [16M, 32M)
 * lazy with one granule present; [48M, 48M + 64K) a lazy backend; a device.
 */
static void open_scene(void **state, struct scene *s, enum gpas_format_id id)
{
	struct gpas_params params = { .size = 4 * GIB, .format = id };
	struct gpas_map_params lazy = { .lazy = true, .granule = 16 * PAGE };
	struct gpas_device device;
	struct gpas_backend backend;

	memset(s, 0, sizeof(*s));
	s->space = fixture_open(state, &params);
	assert_int_equal(gpas_memory_create(2 * MIB, NULL, &s->memory), 0);
	ledger_open(&s->ledger, 16, 4);
	ledger_open(&s->lazy, 16, 4);
	device = device_of(s);
	backend = ledger_backend(&s->lazy);
	assert_int_equal(gpas_map_alloc(s->space, at(0), 8 * MIB, RW, NULL), 0);
	assert_int_equal(
		gpas_protect(s->space, at(3 * MIB), PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(
		gpas_map_alloc(s->space, at(16 * MIB), 16 * MIB, RW, &lazy), 0);
	assert_int_equal(gpas_fill(s->space, at(20 * MIB), 0x5c, 1, NULL), 0);
	assert_int_equal(gpas_map_backend(s->space, at(48 * MIB), 16 * PAGE, RW,
					  &backend, &lazy),
			 0);
	assert_int_equal(gpas_map_device(s->space, at(64 * MIB), PAGE, &device),
			 0);
	assert_int_equal(gpas_map_alloc(s->space, at(2 * GIB), GIB, RW, NULL),
			 0);
}

static void close_scene(void **state, struct scene *s)
{
	fixture_close(state);
	assert_true(s->device_releases >= 1);
	assert_int_equal(s->lazy.releases, 1);
	assert_false(ledger_is_held(&s->lazy));
	assert_false(ledger_is_held(&s->ledger));
	ledger_close(&s->lazy);
	ledger_close(&s->ledger);
	gpas_memory_put(s->memory);
}

/* ---- the calls ---------------------------------------------------------- */

static int map_linear(struct scene *s)
{
	return gpas_map_linear(s->space, at(100 * MIB + PAGE), 2 * MIB,
			       gpas_memory_host(s->memory), RW, NULL);
}

static int map_memory(struct scene *s)
{
	return gpas_map_memory(s->space, at(GIB - MIB), 2 * MIB, RW, s->memory,
			       0, NULL);
}

static int map_anon(struct scene *s)
{
	return gpas_map_alloc(s->space, at(GIB - MIB), 2 * MIB, RW, NULL);
}

static int map_memfd(struct scene *s)
{
	struct gpas_map_params params = {
		.memory = { .kind = GPAS_MEMORY_MEMFD },
	};

	return gpas_map_alloc(s->space, at(GIB - MIB), 2 * MIB, RW, &params);
}

static int map_file(struct scene *s)
{
	struct gpas_map_params params = {
		.lazy = true,
		.memory = { .kind = GPAS_MEMORY_FILE, .shared = true },
	};
	struct gpas_memory_params memfd = { .kind = GPAS_MEMORY_MEMFD };
	struct gpas_memory *file;
	int err = gpas_memory_create(MIB, &memfd, &file);

	if (err == 0) {
		params.memory.fd = gpas_memory_fd(file, NULL);
		err = gpas_map_alloc(s->space, at(GIB), MIB, RW, &params);
		gpas_memory_put(file);
	}
	return err;
}

static int map_lazy(struct scene *s)
{
	struct gpas_map_params params = { .lazy = true };

	return gpas_map_alloc(s->space, at(GIB), MIB, RW, &params);
}

static int map_device(struct scene *s)
{
	struct gpas_device device = device_of(s);

	return gpas_map_device(s->space, at(GIB), MIB, &device);
}

static int map_backend(struct scene *s)
{
	struct gpas_backend backend = ledger_backend(&s->ledger);

	return gpas_map_backend(s->space, at(GIB - 8 * PAGE), 16 * PAGE, RW,
				&backend, NULL);
}

static int unmap_middle(struct scene *s)
{
	return gpas_unmap(s->space, at(3 * MIB - PAGE), 3 * PAGE);
}

static int unmap_in_huge_block(struct scene *s)
{
	return gpas_unmap(s->space, at(2 * GIB + 5 * MIB + PAGE), PAGE);
}

static int unmap_across(struct scene *s)
{
	return gpas_unmap(s->space, at(7 * MIB + PAGE), 2 * GIB);
}

static int protect_page(struct scene *s)
{
	return gpas_protect(s->space, at(2 * GIB + PAGE), PAGE, GPAS_PROT_READ);
}

static int protect_all(struct scene *s)
{
	return gpas_protect(s->space, at(0), 8 * MIB, GPAS_PROT_RX);
}

static int populate(struct scene *s)
{
	return gpas_populate(s->space, at(16 * MIB), 16 * MIB);
}

static int populate_backend(struct scene *s)
{
	return gpas_populate(s->space, at(48 * MIB + PAGE), 12 * PAGE);
}

static int touch(struct scene *s)
{
	return gpas_fill(s->space, at(31 * MIB), 1, 1, NULL);
}

static int fault(struct scene *s)
{
	struct gpas_fault record;
	int err = gpas_fault(s->space, at(48 * MIB), RW, &record);

	return err != 0 ? err : record.error;
}

static int discard(struct scene *s)
{
	return gpas_discard(s->space, at(17 * MIB), 8 * MIB);
}

static int discard_in_granule(struct scene *s)
{
	return gpas_discard(s->space, at(20 * MIB + PAGE), PAGE);
}

static int prefault(struct scene *s)
{
	return gpas_prefault(s->space, at(16 * MIB), 16 * PAGE, NULL);
}

static int add_port(struct scene *s)
{
	struct gpas_device device = device_of(s);

	return gpas_add_device(s->space, GPAS_ADDRESS_PORT, 0x3f8, 8, &device);
}

static int clear(struct scene *s)
{
	return gpas_clear(s->space);
}

/* A group whose calls fail one by one is aborted by whoever opened it. */
static int group(struct scene *s)
{
	int err = gpas_begin(s->space);

	if (err != 0) {
		return err;
	}
	err = unmap_middle(s);
	err = err != 0 ? err : map_backend(s);
	err = err != 0 ? err : protect_page(s);
	err = err != 0 ? err : populate(s);
	err = err != 0 ? err : unmap_across(s);
	err = err != 0 ? err : map_anon(s);
	if (err == 0) {
		return gpas_commit(s->space);
	}
	(void)gpas_abort(s->space);
	return err;
}

struct call {
	const char *name;
	int (*call)(struct scene *s);
	bool releases; /* never fails for lack of memory */
};

static const struct call calls[] = {
	{ "map_linear", map_linear, false },
	{ "map_memory", map_memory, false },
	{ "map_anon", map_anon, false },
	{ "map_memfd", map_memfd, false },
	{ "map_file", map_file, false },
	{ "map_lazy", map_lazy, false },
	{ "map_device", map_device, false },
	{ "map_backend", map_backend, false },
	{ "unmap_middle", unmap_middle, true },
	{ "unmap_in_huge_block", unmap_in_huge_block, true },
	{ "unmap_across", unmap_across, true },
	{ "protect_page", protect_page, false },
	{ "protect_all", protect_all, false },
	{ "populate", populate, false },
	{ "populate_backend", populate_backend, false },
	{ "touch", touch, false },
	{ "fault", fault, false },
	{ "discard", discard, true },
	{ "discard_in_granule", discard_in_granule, true },
	{ "prefault", prefault, false },
	{ "add_port", add_port, false },
	{ "clear", clear, true },
	{ "group", group, false },
};

/* ---- one failing -------------------------------------------------------- */

/* Content that no failed call may have touched. */
static void check_content(struct scene *s)
{
	uint8_t byte = 0;

	assert_int_equal(gpas_read(s->space, at(20 * MIB), &byte, 1, NULL), 0);
	assert_int_equal(byte, 0x5c);
	assert_int_equal(gpas_read(s->space, at(2 * GIB), &byte, 1, NULL), 0);
	assert_int_equal(byte, 0);
}

/* One attempt, with the nth call failing. Whether there was an nth call. */
static bool attempt(void **state, const struct call *c, enum gpas_format_id id,
		    unsigned nth)
{
	static struct scene scene;
	char *before;
	char *after;
	bool failed;
	int err;

	open_scene(state, &scene, id);
	before = space_text(scene.space);
	fail_nth(nth);
	err = c->call(&scene);
	failed = fail_stop() != 0;
	after = space_text(scene.space);
	if (err != 0) {
		if (!failed || c->releases ||
		    (err != -ENOMEM && err != -EMFILE)) {
			print_error("%s, call %u: %d\n", c->name, nth, err);
			fail();
		}
		if (strcmp(before, after) != 0) {
			print_error("%s, call %u:\n%s\n%s\n", c->name, nth,
				    before, after);
			fail();
		}
		check_content(&scene);
		/* What a group had taken over is given back by its abort. */
		if (c->call != group && (scene.ledger.releases != 0 ||
					 scene.device_releases != 0)) {
			print_error("%s, call %u: released\n", c->name, nth);
			fail();
		}
		assert_false(ledger_is_held(&scene.ledger));
		assert_int_equal(gpas_check(scene.space), 0);
		/* And then it works. */
		err = c->call(&scene);
	}
	assert_int_equal(err, 0);
	assert_int_equal(gpas_check(scene.space), 0);
	close_scene(state, &scene);
	free(before);
	free(after);
	return failed;
}

static void each_failure_changes_nothing(void **state)
{
	static const enum gpas_format_id ids[] = { GPAS_FORMAT_EPT_4,
						   GPAS_FORMAT_SV39_X4,
						   GPAS_FORMAT_EPT_5 };

	for (size_t i = 0; i < ARRAY_COUNT(calls) * ARRAY_COUNT(ids); i++) {
		const struct call *c = &calls[i / ARRAY_COUNT(ids)];
		unsigned nth = 1;

		while (attempt(state, c, ids[i % ARRAY_COUNT(ids)], nth)) {
			nth++;
			assert_true(nth < 1000);
		}
	}
}

static bool create_attempt(void **state, enum gpas_format_id id, bool metered,
			   unsigned nth)
{
	struct fixture *fixture = *state;
	struct gpas_params params = {
		.size = GIB,
		.format = id,
		.frame_ops = metered ? &metered_frames : NULL,
		.frame_ctx = &fixture->frames,
	};
	struct gpas *space = NULL;
	bool failed;
	int err;

	fail_nth(nth);
	err = gpas_create(&params, &space);
	failed = fail_stop() != 0;
	if (err != 0) {
		assert_true(failed);
		assert_int_equal(err, -ENOMEM);
		assert_null(space);
	} else {
		/* Without its reservation a space works as well. */
		assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL),
				 0);
		assert_int_equal(gpas_fill(space, at(0), 1, MIB, NULL), 0);
		assert_int_equal(gpas_unmap(space, at(PAGE), PAGE), 0);
		assert_int_equal(
			gpas_map_alloc(space, at(PAGE), PAGE, RW, NULL), 0);
		assert_int_equal(gpas_check(space), 0);
		gpas_destroy(space);
	}
	assert_int_equal(fixture->frames.live, 0);
	assert_int_equal(fail_mapped_bytes(), fixture->mapped);
	return failed;
}

static void creation_fails_cleanly(void **state)
{
	for (unsigned n = 2; n < 2 * GPAS_FORMAT_COUNT; n++) {
		unsigned nth = 1;

		while (create_attempt(state, (enum gpas_format_id)(n / 2),
				      n % 2 == 0, nth)) {
			nth++;
			assert_true(nth < 1000);
		}
		assert_true(nth > 3);
	}
}

/* Pages that no entry could name count as none. */
static void *high_frame(void *ctx, size_t pages)
{
	*(unsigned *)ctx += (unsigned)pages;
	return gpas_hva_pointer(gpas_hva_at(UINT64_C(1) << 60));
}

static void keep_frame(void *ctx, void *frame, size_t pages)
{
	(void)frame;
	*(unsigned *)ctx -= (unsigned)pages;
}

static void unusable_table_pages_are_given_back(void **state)
{
	static const struct gpas_frame_ops ops = { high_frame, keep_frame };
	unsigned pages = 0;
	struct gpas_params params = {
		.size = GIB,
		.format = GPAS_FORMAT_ARM64_S2_40,
		.frame_ops = &ops,
		.frame_ctx = &pages,
	};
	struct gpas *space = NULL;

	(void)state;
	assert_int_equal(gpas_create(&params, &space), -ENOMEM);
	assert_null(space);
	assert_int_equal(pages, 0);
}

/* ---- all failing -------------------------------------------------------- */

static void releasing_takes_no_memory(void **state)
{
	struct fixture *fixture = *state;

	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		for (size_t i = 0; i < ARRAY_COUNT(calls); i++) {
			static struct scene scene;
			int err;

			if (!calls[i].releases) {
				continue;
			}
			open_scene(state, &scene, (enum gpas_format_id)id);
			fixture->frames.exhausted = true;
			fail_all();
			err = calls[i].call(&scene);
			(void)fail_stop();
			fixture->frames.exhausted = false;
			if (err != 0) {
				print_error("%s: %d\n", calls[i].name, err);
			}
			assert_int_equal(err, 0);
			close_scene(state, &scene);
		}
	}
}

/* With whole regions going, one call after the other. */
static void everything_can_be_released_without_memory(void **state)
{
	static struct scene scene;
	struct fixture *fixture = *state;
	int err = 0;

	open_scene(state, &scene, GPAS_FORMAT_NPT_4);
	assert_int_equal(gpas_populate(scene.space, at(16 * MIB), 16 * MIB), 0);
	fixture->frames.exhausted = true;
	fail_all();
	err = gpas_unmap(scene.space, at(16 * MIB), 16 * MIB);
	err = err != 0 ? err : gpas_unmap(scene.space, at(48 * MIB), 16 * PAGE);
	err = err != 0 ? err : gpas_unmap(scene.space, at(2 * GIB), GIB);
	err = err != 0 ? err : gpas_unmap(scene.space, at(0), 8 * MIB);
	err = err != 0 ? err : gpas_unmap(scene.space, at(64 * MIB), PAGE);
	(void)fail_stop();
	fixture->frames.exhausted = false;
	assert_int_equal(err, 0);
	close_scene(state, &scene);
}

/* A piece from each end of every region, and from every side of a block. */
static void ends_can_be_released_without_memory(void **state)
{
	static struct scene scene;
	struct fixture *fixture = *state;
	int err = 0;

	open_scene(state, &scene, GPAS_FORMAT_NPT_4);
	fixture->frames.exhausted = true;
	fail_all();
	for (uint64_t n = 0; n < 40 && err == 0; n++) {
		err = gpas_unmap(scene.space, at(2 * GIB + n * PAGE), PAGE);
	}
	(void)fail_stop();
	fixture->frames.exhausted = false;
	assert_int_equal(err, 0);
	close_scene(state, &scene);
}

/* Destroying a space with nothing to be had. */
static void destroying_takes_no_memory(void **state)
{
	static struct scene scene;
	struct fixture *fixture = *state;

	open_scene(state, &scene, GPAS_FORMAT_EPT_5);
	assert_int_equal(gpas_begin(scene.space), 0);
	assert_int_equal(unmap_middle(&scene), 0);
	assert_int_equal(map_backend(&scene), 0);
	fixture->frames.exhausted = true;
	fail_all();
	gpas_destroy(scene.space);
	(void)fail_stop();
	fixture->space = NULL;
	close_scene(state, &scene);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(each_failure_changes_nothing),
		fixture_test(creation_fails_cleanly),
		fixture_test(unusable_table_pages_are_given_back),
		fixture_test(releasing_takes_no_memory),
		fixture_test(everything_can_be_released_without_memory),
		fixture_test(ends_can_be_released_without_memory),
		fixture_test(destroying_takes_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
