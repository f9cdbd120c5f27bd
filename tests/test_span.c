/* SPDX-License-Identifier: MIT */
/*
 * The ordered set of ranges: directed cases, and random operations compared
 * with a sorted array. GPAS_SEED chooses the seed of the random part.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "span.h"

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct span make(uint64_t start, uint64_t end)
{
	struct span span = { .start = start, .end = end };

	return span;
}

static void empty_set_finds_nothing(void **state)
{
	struct span_set set = { 0 };

	(void)state;
	assert_null(span_find(&set, 0));
	assert_null(span_from(&set, 0));
	assert_null(span_from(&set, UINT64_MAX));
	assert_int_equal(span_check(&set), 0);
}

static void find_is_half_open(void **state)
{
	struct span_set set = { 0 };
	struct span a = make(10, 20);
	struct span b = make(20, 21);

	(void)state;
	assert_int_equal(span_insert(&set, &a), 0);
	assert_int_equal(span_insert(&set, &b), 0);
	assert_null(span_find(&set, 9));
	assert_ptr_equal(span_find(&set, 10), &a);
	assert_ptr_equal(span_find(&set, 19), &a);
	assert_ptr_equal(span_find(&set, 20), &b);
	assert_null(span_find(&set, 21));
}

static void from_gives_the_container_or_the_next(void **state)
{
	struct span_set set = { 0 };
	struct span a = make(10, 20);
	struct span b = make(30, 40);

	(void)state;
	assert_int_equal(span_insert(&set, &b), 0);
	assert_int_equal(span_insert(&set, &a), 0);
	assert_ptr_equal(span_from(&set, 0), &a);
	assert_ptr_equal(span_from(&set, 19), &a);
	assert_ptr_equal(span_from(&set, 20), &b);
	assert_ptr_equal(span_from(&set, 39), &b);
	assert_null(span_from(&set, 40));
}

static void the_ends_of_the_number_range_are_ordinary(void **state)
{
	struct span_set set = { 0 };
	struct span low = make(0, 1);
	struct span high = make(UINT64_MAX - 1, UINT64_MAX);

	(void)state;
	assert_int_equal(span_insert(&set, &high), 0);
	assert_int_equal(span_insert(&set, &low), 0);
	assert_ptr_equal(span_find(&set, 0), &low);
	assert_ptr_equal(span_find(&set, UINT64_MAX - 1), &high);
	assert_null(span_from(&set, UINT64_MAX));
	assert_ptr_equal(set.first, &low);
}

static void every_kind_of_overlap_is_refused(void **state)
{
	static const uint64_t bad[][2] = {
		{ 10, 20 }, { 5, 11 },	{ 19, 30 },
		{ 5, 30 },  { 12, 13 }, { 0, UINT64_MAX },
	};
	struct span_set set = { 0 };
	struct span a = make(10, 20);
	struct span before = make(1, 2);
	struct span after = make(40, 41);

	(void)state;
	assert_int_equal(span_insert(&set, &before), 0);
	assert_int_equal(span_insert(&set, &a), 0);
	assert_int_equal(span_insert(&set, &after), 0);
	for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
		struct span span = make(bad[i][0], bad[i][1]);
		struct span copy = span;

		assert_int_equal(span_insert(&set, &span), -EEXIST);
		assert_memory_equal(&span, &copy, sizeof(span));
		assert_int_equal(set.count, 3);
		assert_int_equal(span_check(&set), 0);
	}
}

static void removed_spans_can_still_be_followed(void **state)
{
	struct span_set set = { 0 };
	struct span spans[5];
	struct span *span;
	size_t followed = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_COUNT(spans); i++) {
		spans[i] = make(i * 10, i * 10 + 10);
		assert_int_equal(span_insert(&set, &spans[i]), 0);
	}
	for (size_t i = 1; i < 4; i++) {
		span_remove(&set, &spans[i]);
		assert_int_equal(span_check(&set), 0);
	}
	for (span = &spans[1]; span != &spans[4]; span = span->next) {
		followed++;
	}
	assert_int_equal(followed, 3);
	assert_ptr_equal(spans[1].prev, &spans[0]);
	assert_ptr_equal(spans[0].next, &spans[4]);
	assert_ptr_equal(spans[4].prev, &spans[0]);
}

static void ends_may_move_in_place(void **state)
{
	struct span_set set = { 0 };
	struct span a = make(10, 20);
	struct span b = make(30, 40);

	(void)state;
	assert_int_equal(span_insert(&set, &a), 0);
	assert_int_equal(span_insert(&set, &b), 0);
	a.end = 25;
	b.start = 25;
	assert_int_equal(span_check(&set), 0);
	assert_ptr_equal(span_find(&set, 24), &a);
	assert_ptr_equal(span_find(&set, 25), &b);
	span_remove(&set, &b);
	span_remove(&set, &a);
	assert_int_equal(set.count, 0);
}

/* n spans in one direction would be n high in a tree without balance. */
static void sorted_insertion_stays_shallow(void **state)
{
	enum {
		COUNT = 4096,
		HIGHEST = 17
	};
	struct span *spans = calloc(COUNT, sizeof(*spans));

	(void)state;
	assert_non_null(spans);
	for (int descending = 0; descending < 2; descending++) {
		struct span_set set = { 0 };

		for (size_t i = 0; i < COUNT; i++) {
			size_t at = descending ? COUNT - 1 - i : i;

			spans[at] = make(at, at + 1);
			assert_int_equal(span_insert(&set, &spans[at]), 0);
		}
		assert_int_equal(span_check(&set), 0);
		assert_true(set.root->height <= HIGHEST);
		for (size_t i = 0; i < COUNT; i++) {
			span_remove(&set, &spans[i]);
		}
		assert_null(set.root);
		assert_null(set.first);
		assert_int_equal(span_check(&set), 0);
	}
	free(spans);
}

/* Every order of inserting 6 spans times every order of removing them is
 * 518400 runs; all insertions times rotated removals reach each AVL case. */
static void permute(size_t *order, size_t fixed, size_t count,
		    void (*visit)(const size_t *order, size_t count))
{
	if (fixed == count) {
		visit(order, count);
		return;
	}
	for (size_t i = fixed; i < count; i++) {
		size_t kept = order[fixed];

		order[fixed] = order[i];
		order[i] = kept;
		permute(order, fixed + 1, count, visit);
		order[i] = order[fixed];
		order[fixed] = kept;
	}
}

static void build_and_take_down(const size_t *order, size_t count)
{
	struct span spans[7];

	for (size_t turn = 0; turn < count; turn++) {
		struct span_set set = { 0 };

		for (size_t i = 0; i < count; i++) {
			struct span *span = &spans[order[i]];

			*span = make(order[i] * 2, order[i] * 2 + 2);
			assert_int_equal(span_insert(&set, span), 0);
			assert_int_equal(span_check(&set), 0);
		}
		for (size_t i = 0; i < count; i++) {
			span_remove(&set, &spans[(i + turn) % count]);
			assert_int_equal(span_check(&set), 0);
		}
		assert_int_equal(set.count, 0);
	}
}

static void all_insertion_orders(void **state)
{
	size_t order[7] = { 0, 1, 2, 3, 4, 5, 6 };

	(void)state;
	permute(order, 0, ARRAY_COUNT(order), build_and_take_down);
}

static void check_notices_damage(void **state)
{
	struct span_set set = { 0 };
	struct span spans[3];
	struct span kept;

	(void)state;
	for (size_t i = 0; i < ARRAY_COUNT(spans); i++) {
		spans[i] = make(i * 10, i * 10 + 5);
		assert_int_equal(span_insert(&set, &spans[i]), 0);
	}
	kept = spans[1];
	spans[1].start = 4;
	assert_int_equal(span_check(&set), -EUCLEAN);
	spans[1] = kept;
	spans[1].end = spans[1].start;
	assert_int_equal(span_check(&set), -EUCLEAN);
	spans[1] = kept;
	spans[1].height = 3;
	assert_int_equal(span_check(&set), -EUCLEAN);
	spans[1] = kept;
	spans[1].child[0] = &spans[1];
	assert_int_equal(span_check(&set), -EUCLEAN);
	spans[1] = kept;
	spans[2].prev = &spans[0];
	assert_int_equal(span_check(&set), -EUCLEAN);
	spans[2].prev = &spans[1];
	set.count = 2;
	assert_int_equal(span_check(&set), -EUCLEAN);
	set.count = 3;
	assert_int_equal(span_check(&set), 0);
}

/* ---- the model: an array of pointers sorted by start ---- */

#define MODEL_SPANS 400

struct model {
	struct span_set set;
	struct span *sorted[MODEL_SPANS];
	size_t count;
	struct span pool[MODEL_SPANS];
	bool used[MODEL_SPANS];
	uint64_t random;
	uint64_t universe; /* numbers in play: small ones make crowds */
};

static uint64_t next_random(struct model *m)
{
	m->random ^= m->random << 13;
	m->random ^= m->random >> 7;
	m->random ^= m->random << 17;
	return m->random * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

/* The index of the first span that ends above @at; count if there is none. */
static size_t model_from(const struct model *m, uint64_t at)
{
	size_t i = 0;

	while (i < m->count && m->sorted[i]->end <= at) {
		i++;
	}
	return i;
}

static bool model_insert(struct model *m)
{
	size_t slot = next_random(m) % MODEL_SPANS;
	uint64_t start = next_random(m) % m->universe;
	uint64_t end = start + 1 + next_random(m) % 8;
	struct span *span = &m->pool[slot];
	size_t i = model_from(m, start);
	bool clash = i < m->count && m->sorted[i]->start < end;

	if (m->used[slot]) {
		return true;
	}
	*span = make(start, end);
	if (span_insert(&m->set, span) != (clash ? -EEXIST : 0)) {
		return false;
	}
	if (!clash) {
		memmove(&m->sorted[i + 1], &m->sorted[i],
			(m->count - i) * sizeof(m->sorted[0]));
		m->sorted[i] = span;
		m->used[slot] = true;
		m->count++;
	}
	return true;
}

static bool model_remove(struct model *m)
{
	size_t i;
	struct span *span;

	if (m->count == 0) {
		return true;
	}
	i = next_random(m) % m->count;
	span = m->sorted[i];
	span_remove(&m->set, span);
	m->used[span - m->pool] = false;
	m->count--;
	memmove(&m->sorted[i], &m->sorted[i + 1],
		(m->count - i) * sizeof(m->sorted[0]));
	return true;
}

/* Shrinks a span from either side, or grows it into the gap behind it. */
static bool model_move(struct model *m)
{
	size_t i;
	struct span *span;

	if (m->count == 0) {
		return true;
	}
	i = next_random(m) % m->count;
	span = m->sorted[i];
	switch (next_random(m) % 3) {
	case 0:
		span->start += (span->end - span->start) / 2;
		break;
	case 1:
		span->end -= (span->end - span->start) / 2;
		break;
	default:
		if (i + 1 < m->count) {
			span->end = m->sorted[i + 1]->start;
		}
		break;
	}
	return true;
}

static bool model_agrees(struct model *m)
{
	const struct span *span = m->set.first;

	if (span_check(&m->set) != 0 || m->set.count != m->count) {
		return false;
	}
	for (size_t i = 0; i < m->count; i++) {
		if (span != m->sorted[i]) {
			return false;
		}
		span = span->next;
	}
	for (int probe = 0; probe < 8; probe++) {
		uint64_t at = next_random(m) % (m->universe + 10);
		size_t i = model_from(m, at);
		struct span *from = i < m->count ? m->sorted[i] : NULL;
		bool inside = from != NULL && from->start <= at;

		if (span_from(&m->set, at) != from ||
		    span_find(&m->set, at) != (inside ? from : NULL)) {
			return false;
		}
	}
	return span == NULL;
}

/* Phases of mostly inserting and mostly removing alternate, so the tree both
 * grows to hundreds of spans and empties again. */
static bool model_run(uint64_t seed, size_t steps, size_t *failed)
{
	struct model *m = calloc(1, sizeof(*m));
	bool ok = m != NULL;

	assert_non_null(m);
	m->random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	m->universe = seed % 3 == 0 ? 60 : 4000;
	for (size_t step = 0; ok && step < steps; step++) {
		bool shrink = step / 600 % 2 != 0;
		uint64_t dice = next_random(m) % 10;

		if (dice == 0) {
			ok = model_move(m);
		} else if ((dice <= 7) != shrink) {
			ok = model_insert(m);
		} else {
			ok = model_remove(m);
		}
		ok = ok && model_agrees(m);
		*failed = step;
	}
	free(m);
	return ok;
}

static void random_operations_match_a_sorted_array(void **state)
{
	const char *given = getenv("GPAS_SEED");
	uint64_t first = given != NULL ? strtoull(given, NULL, 0) : 1;
	uint64_t last = given != NULL ? first : 24;

	(void)state;
	for (uint64_t seed = first; seed <= last; seed++) {
		size_t step = 0;

		if (!model_run(seed, 4000, &step)) {
			fail_msg("GPAS_SEED=%" PRIu64 " fails at step %zu",
				 seed, step);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_set_finds_nothing),
		cmocka_unit_test(find_is_half_open),
		cmocka_unit_test(from_gives_the_container_or_the_next),
		cmocka_unit_test(the_ends_of_the_number_range_are_ordinary),
		cmocka_unit_test(every_kind_of_overlap_is_refused),
		cmocka_unit_test(removed_spans_can_still_be_followed),
		cmocka_unit_test(ends_may_move_in_place),
		cmocka_unit_test(sorted_insertion_stays_shallow),
		cmocka_unit_test(all_insertion_orders),
		cmocka_unit_test(check_notices_damage),
		cmocka_unit_test(random_operations_match_a_sorted_array),
	};

	return cmocka_run_group_tests_name("span", tests, NULL, NULL);
}
