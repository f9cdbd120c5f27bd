/* SPDX-License-Identifier: MIT */
/*
 * Views answer what the plain calls answer: after every kind of change, for
 * addresses that they have remembered, on random operations. Views beside
 * writers on other threads are in test_threads.c.
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

#define RW    GPAS_PROT_RW
#define PAGES 1200 /* across several 2 MiB */

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static struct gpas_view *view_of(struct gpas *space)
{
	struct gpas_view *view = NULL;

	assert_int_equal(gpas_view_open(space, &view), 0);
	assert_non_null(view);
	return view;
}

/* ---- the same answers --------------------------------------------------- */

static void same_translation(struct gpas *space, struct gpas_view *view,
			     uint64_t gpa, unsigned access, uint64_t limit)
{
	struct gpas_translation a = { 0 };
	struct gpas_translation b = { 0 };
	int err = gpas_view_translate(view, at(gpa), access, limit, &a);

	assert_int_equal(err,
			 gpas_translate(space, at(gpa), access, limit, &b));
	assert_ptr_equal(a.host, b.host);
	assert_int_equal(a.size, b.size);
	assert_int_equal(a.prot, b.prot);
	assert_int_equal(a.leaf_shift, b.leaf_shift);
}

static void same_load(struct gpas *space, struct gpas_view *view, uint64_t gpa,
		      unsigned width)
{
	uint64_t a = 1;
	uint64_t b = 1;

	assert_int_equal(gpas_view_load(view, at(gpa), width, &a),
			 gpas_load(space, at(gpa), width, &b));
	assert_int_equal(a, b);
}

static void same_read(struct gpas *space, struct gpas_view *view, uint64_t gpa,
		      size_t size)
{
	static uint8_t a[2 * GPAS_PAGE_BYTES];
	static uint8_t b[2 * GPAS_PAGE_BYTES];
	size_t a_done = 99;
	size_t b_done = 99;

	memset(a, 0, size);
	memset(b, 0, size);
	assert_int_equal(gpas_view_read(view, at(gpa), a, size, &a_done),
			 gpas_read(space, at(gpa), b, size, &b_done));
	assert_int_equal(a_done, b_done);
	assert_int_equal(memcmp(a, b, size), 0);
}

/* Writes by the view and reads by the space. */
static void same_write(struct gpas *space, struct gpas_view *view, uint64_t gpa,
		       uint64_t value, unsigned size)
{
	uint64_t seen = 0;
	size_t done = 99;
	int err = gpas_view_write(view, at(gpa), &value, size, &done);

	assert_int_equal(done == size, err == 0);
	if (err == 0) {
		assert_int_equal(gpas_read(space, at(gpa), &seen, size, NULL),
				 0);
		assert_int_equal(memcmp(&seen, &value, size), 0);
	} else {
		uint64_t word = value;

		assert_int_equal(gpas_write(space, at(gpa), &word, size, NULL),
				 err);
	}
	err = gpas_view_store(view, at(gpa & ~UINT64_C(7)), 8, value);
	if (err == 0) {
		assert_int_equal(
			gpas_load(space, at(gpa & ~UINT64_C(7)), 8, &seen), 0);
		assert_int_equal(seen, value);
	}
}

static void compare(struct gpas *space, struct gpas_view *view,
		    uint64_t *random)
{
	static const unsigned accesses[] = { 0, GPAS_PROT_READ, RW,
					     GPAS_PROT_EXEC, 8 };
	uint64_t gpa = next_random(random) % (PAGES * PAGE);
	unsigned access = accesses[next_random(random) % 5];
	uint64_t limit = next_random(random) % 3 == 0
				 ? UINT64_MAX
				 : next_random(random) % 6000;

	same_translation(space, view, gpa, access, limit);
	same_load(space, view, gpa, 1u << next_random(random) % 5);
	same_load(space, view, gpa & ~UINT64_C(7), 8);
	same_read(space, view, gpa, next_random(random) % 5000);
	if (next_random(random) % 4 == 0) {
		same_write(space, view, gpa, *random,
			   1 + (unsigned)(*random % 8));
	}
}

static void change(struct gpas *space, uint64_t *random)
{
	static const unsigned prots[] = { RW, RW, GPAS_PROT_READ,
					  GPAS_PROT_NONE, GPAS_PROT_RX };
	uint64_t start = next_random(random) % PAGES;
	uint64_t size = 1 + next_random(random) % (PAGES - start);
	struct gpas_map_params lazy = { .lazy = next_random(random) % 2 == 0 };

	size = next_random(random) % 4 == 0 ? size : 1 + size % 40;
	switch (next_random(random) % 8) {
	case 0:
	case 1:
		(void)gpas_unmap(space, at(start * PAGE), size * PAGE);
		break;
	case 2:
	case 3:
		(void)gpas_protect(space, at(start * PAGE), size * PAGE,
				   prots[next_random(random) % 5]);
		break;
	case 4:
		(void)gpas_discard(space, at(start * PAGE), size * PAGE);
		break;
	default:
		(void)gpas_map_alloc(space, at(start * PAGE), size * PAGE,
				     prots[next_random(random) % 5], &lazy);
		break;
	}
}

static void views_answer_as_the_space_does(void **state)
{
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_params params = {
			.size = GIB,
			.format = (enum gpas_format_id)id,
		};
		struct gpas *space = fixture_open(state, &params);
		struct gpas_view *views[2] = { view_of(space), view_of(space) };
		uint64_t random = id;

		for (unsigned n = 0; n < 400; n++) {
			unsigned group = next_random(&random) % 8;

			assert_int_equal(group < 2 ? gpas_begin(space) : 0, 0);
			for (unsigned i = 0; i < (group < 2 ? 4 : 1); i++) {
				change(space, &random);
			}
			assert_int_equal(group == 0 ? gpas_commit(space) : 0,
					 0);
			assert_int_equal(group == 1 ? gpas_abort(space) : 0, 0);
			for (unsigned i = 0; i < 40; i++) {
				compare(space, views[i % 2], &random);
			}
		}
		assert_int_equal(gpas_check(space), 0);
		gpas_view_close(views[0]);
		gpas_view_close(views[1]);
	}
}

/* ---- one by one --------------------------------------------------------- */

static void what_is_remembered_is_forgotten_in_time(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_view *view = view_of(space);
	struct gpas_memory *memory;
	uint64_t value = 0;

	assert_int_equal(gpas_memory_create(MIB, NULL, &memory), 0);
	assert_int_equal(gpas_map_linear(space, at(0), MIB,
					 gpas_memory_host(memory), RW, NULL),
			 0);
	assert_int_equal(gpas_view_store(view, at(8), 8, 5), 0);
	assert_int_equal(gpas_view_load(view, at(8), 8, &value), 0);
	assert_int_equal(value, 5);
	assert_int_equal(gpas_protect(space, at(0), MIB, GPAS_PROT_READ), 0);
	assert_int_equal(gpas_view_store(view, at(8), 8, 6), -EACCES);
	assert_int_equal(gpas_view_load(view, at(8), 8, &value), 0);
	assert_int_equal(gpas_protect(space, at(0), MIB, GPAS_PROT_NONE), 0);
	assert_int_equal(gpas_view_load(view, at(8), 8, &value), -EACCES);
	assert_int_equal(gpas_protect(space, at(0), MIB, RW), 0);
	assert_int_equal(gpas_view_store(view, at(8), 8, 7), 0);
	assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
	gpas_memory_put(memory); /* unmapped: a stale use crashes */
	assert_int_equal(gpas_view_load(view, at(8), 8, &value), -ENOENT);
	assert_int_equal(gpas_view_store(view, at(8), 8, 8), -ENOENT);
	gpas_view_close(view);
	gpas_view_close(NULL);
}

/* What a group populated is not there any more when it was aborted. */
static void an_abort_is_seen(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_view *view = view_of(space);
	struct gpas_translation t;
	uint64_t value = 0;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_populate(space, at(0), PAGE), 0);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_populate(space, at(PAGE), PAGE), 0);
	assert_int_equal(gpas_view_load(view, at(PAGE), 8, &value), 0);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(gpas_translate(space, at(PAGE), 0, 8, &t), -ENOENT);
	assert_int_equal(gpas_view_translate(view, at(PAGE), 0, 8, &t),
			 -ENOENT);
	gpas_view_close(view);
}

/* Inside a group readers see each change as it is made. */
static void a_group_is_seen_as_it_grows(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_view *view = view_of(space);
	uint64_t value = 0;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_view_store(view, at(0), 8, 3), 0);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
	assert_int_equal(gpas_load(space, at(0), 8, &value), -ENOENT);
	assert_int_equal(gpas_view_load(view, at(0), 8, &value), -ENOENT);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_load(space, at(0), 8, &value), 0);
	assert_int_equal(value, 0);
	assert_int_equal(gpas_view_load(view, at(0), 8, &value), 0);
	assert_int_equal(value, 0);
	assert_int_equal(gpas_commit(space), 0);
	gpas_view_close(view);
}

/* Addresses that a reader can only remember one of, by nodes of either level,
 * each with memory of its own. */
static void what_is_remembered_gives_way(void **state)
{
	static const uint64_t gpas[] = {
		0,
		PAGE,
		2 * MIB,
		GIB,
		GIB + PAGE,
		2 * GIB,
		64 * GIB,
		64 * GIB + PAGE,
		65 * GIB,
		128 * GIB + PAGE,
		4096 * GIB,
		4097 * GIB,
		128 * GIB,
		4096 * GIB + PAGE,
		64 * GIB + 2 * MIB,
	};
	struct gpas *space = fixture_space(state, 8 * TIB);
	struct gpas_view *view = view_of(space);
	uint64_t random = 5;

	for (size_t i = 0; i < ARRAY_COUNT(gpas); i++) {
		assert_int_equal(
			gpas_map_alloc(space, at(gpas[i]), PAGE, RW, NULL), 0);
		assert_int_equal(gpas_store(space, at(gpas[i]), 8, i + 1), 0);
	}
	for (unsigned n = 0; n < 2000; n++) {
		size_t i = next_random(&random) % ARRAY_COUNT(gpas);
		uint64_t value = 0;

		assert_int_equal(gpas_view_load(view, at(gpas[i]), 8, &value),
				 0);
		assert_int_equal(value, i + 1);
		assert_int_equal(gpas_load(space, at(gpas[i]), 8, &value), 0);
		assert_int_equal(value, i + 1);
		same_translation(space, view, gpas[i], RW, PAGE);
	}
	gpas_view_close(view);
}

/*
 * Views that sleep while so many epochs go by that what tells old from new
 * comes round. Each looks again a little later than the one before; one of them
 * just when it must not believe what it remembers.
 */
#define ROUND  (UINT64_C(1) << 20)
#define SLEEPY 64

static void a_view_that_slept_remembers_nothing(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_view *views[SLEEPY];
	uint64_t value = 0;

	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(64 * MIB), PAGE, RW, NULL),
			 0);
	for (unsigned i = 0; i < SLEEPY; i++) {
		views[i] = view_of(space);
		assert_int_equal(
			gpas_view_load(views[i], at(64 * MIB), 8, &value), 0);
	}
	/* What they remember was freed, and is used again elsewhere. */
	assert_int_equal(gpas_unmap(space, at(64 * MIB), 2 * MIB), 0);
	assert_int_equal(gpas_map_alloc(space, at(192 * MIB), PAGE, RW, NULL),
			 0);
	assert_int_equal(gpas_begin(space), 0);
	for (uint64_t n = 0; n < ROUND + SLEEPY / 2; n++) {
		/* Nothing is there, but each step of a group is a new epoch. */
		assert_int_equal(gpas_unmap(space, at(128 * MIB), PAGE), 0);
		if (n >= ROUND - SLEEPY / 2) {
			unsigned i = (unsigned)(n - (ROUND - SLEEPY / 2));

			assert_int_equal(gpas_view_load(views[i], at(64 * MIB),
							8, &value),
					 -ENOENT);
		}
	}
	assert_int_equal(gpas_commit(space), 0);
	for (unsigned i = 0; i < SLEEPY; i++) {
		gpas_view_close(views[i]);
	}
}

static void views_refuse_what_the_space_refuses(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_view *view = view_of(space);
	struct gpas_view *none = NULL;
	struct gpas_translation t;
	uint64_t value = 0;
	size_t done = 9;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_view_translate(view, at(0), 0, 0, &t), -EINVAL);
	assert_int_equal(gpas_view_translate(view, at(0), 8, 8, &t), -EINVAL);
	assert_int_equal(gpas_view_load(view, at(1), 2, &value), -EINVAL);
	assert_int_equal(gpas_view_load(view, at(0), 3, &value), -EINVAL);
	assert_int_equal(gpas_view_store(view, at(4), 8, 0), -EINVAL);
	assert_int_equal(gpas_view_read(view, at(UINT64_MAX), &value, 2, &done),
			 -EINVAL);
	assert_int_equal(done, 0);
	done = 9;
	assert_int_equal(gpas_view_write(view, at(MIB - 4), &value, 8, &done),
			 -ENOENT);
	assert_int_equal(done, 4);
	assert_int_equal(gpas_view_read(view, at(0), &value, 0, &done), 0);
	assert_int_equal(done, 0);
	/* An address beyond the format's width aliases nothing remembered. */
	assert_int_equal(gpas_view_load(view, at(0), 8, &value), 0);
	assert_int_equal(gpas_view_load(view, at(UINT64_C(1) << 48), 8, &value),
			 -ENOENT);
	assert_int_equal(gpas_view_load(view, at(UINT64_C(1) << 63), 8, &value),
			 -ENOENT);
	fail_nth(1);
	assert_int_equal(gpas_view_open(space, &none), -ENOMEM);
	assert_int_equal(fail_stop(), 1);
	assert_null(none);
	gpas_view_close(view);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(views_answer_as_the_space_does),
		fixture_test(what_is_remembered_is_forgotten_in_time),
		fixture_test(an_abort_is_seen),
		fixture_test(a_group_is_seen_as_it_grows),
		fixture_test(what_is_remembered_gives_way),
		fixture_test(a_view_that_slept_remembers_nothing),
		fixture_test(views_refuse_what_the_space_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
