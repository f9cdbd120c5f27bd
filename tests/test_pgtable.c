/* SPDX-License-Identifier: MIT */
/*
 * The page table: directed cases in every format, and random operations
 * compared with an array of pages. GPAS_SEED chooses the seed of the random
 * part. All tables take their pages from a counting allocator that can fail
 * and whose pages come full of rubbish.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pgtable.h"

#define PAGE	 UINT64_C(0x1000)
#define MIB	 UINT64_C(0x100000)
#define BLOCK	 (2 * MIB)
#define GIB	 UINT64_C(0x40000000)
#define HOST	 UINT64_C(0x00007f0000000000) /* a multiple of 1 GiB */
#define WB	 GPAS_MEM_WRITE_BACK
#define NO_LIMIT SIZE_MAX

/* Table pages in use, and how many more may be taken before it fails. */
struct heap {
	size_t live_pages;
	size_t left;
};

struct fixture {
	struct heap heap;
	struct gpas_pgtable *table;
	unsigned levels;
	unsigned root_pages;
	uint64_t gpa_end;
};

static void *heap_alloc(void *ctx, size_t pages)
{
	struct heap *heap = ctx;
	void *block;

	if (heap->left == 0) {
		return NULL;
	}
	if (heap->left != NO_LIMIT) {
		heap->left--;
	}
	block = aligned_alloc(pages * PAGE, pages * PAGE);
	if (block != NULL) {
		memset(block, 0xa5, pages * PAGE);
		heap->live_pages += pages;
	}
	return block;
}

static void heap_free(void *ctx, void *frame, size_t pages)
{
	struct heap *heap = ctx;

	heap->live_pages -= pages;
	free(frame);
}

static const struct gpas_frame_ops heap_ops = { heap_alloc, heap_free };

static void open_with(struct fixture *f, enum gpas_format_id id,
		      unsigned max_leaf_shift)
{
	const struct gpas_format *format = gpas_format_get(id);
	struct gpas_pgtable_params params = {
		.format = id,
		.max_leaf_shift = max_leaf_shift,
		.frame_ops = &heap_ops,
		.frame_ctx = &f->heap,
	};
	struct gpas_pgtable_stats stats;

	f->heap = (struct heap){ .left = NO_LIMIT };
	assert_int_equal(gpas_pgtable_create(&params, &f->table), 0);
	gpas_pgtable_stats(f->table, &stats);
	f->root_pages = (unsigned)stats.table_pages;
	f->levels = gpas_format_levels(format);
	f->gpa_end = UINT64_C(1) << gpas_format_gpa_bits(format);
}

static void shut(struct fixture *f)
{
	assert_int_equal(gpas_pgtable_check(f->table, true), 0);
	gpas_pgtable_destroy(f->table);
	assert_int_equal(f->heap.live_pages, 0);
}

static void for_each_format(void (*body)(struct fixture *))
{
	struct fixture f;

	for (int id = 1; id < GPAS_FORMAT_COUNT; id++) {
		open_with(&f, (enum gpas_format_id)id, 0);
		body(&f);
		shut(&f);
	}
}

static int map(struct fixture *f, uint64_t gpa, uint64_t size, uint64_t host)
{
	return gpas_pgtable_map(f->table, gpas_gpa_at(gpa), size,
				gpas_hva_at(host), GPAS_PROT_RW, WB);
}

static int unmap(struct fixture *f, uint64_t gpa, uint64_t size)
{
	return gpas_pgtable_unmap(f->table, gpas_gpa_at(gpa), size);
}

static int protect(struct fixture *f, uint64_t gpa, uint64_t size,
		   unsigned prot)
{
	return gpas_pgtable_protect(f->table, gpas_gpa_at(gpa), size, prot);
}

/* Leaves by level, and table pages besides the root's. */
static void expect_shape(struct fixture *f, uint64_t pages, uint64_t blocks,
			 uint64_t gigabytes, uint64_t tables)
{
	struct gpas_pgtable_stats stats;

	assert_int_equal(gpas_pgtable_check(f->table, true), 0);
	gpas_pgtable_stats(f->table, &stats);
	assert_int_equal(stats.leaves[0], pages);
	assert_int_equal(stats.leaves[1], blocks);
	assert_int_equal(stats.leaves[2], gigabytes);
	assert_int_equal(stats.table_pages - f->root_pages, tables);
}

static void expect_extent(struct fixture *f, struct gpas_pgtable_cursor *cursor,
			  uint64_t start, uint64_t size, uint64_t host,
			  unsigned prot)
{
	struct gpas_extent extent;

	(void)f;
	assert_true(gpas_pgtable_cursor_next(cursor, &extent));
	assert_int_equal(extent.start.value, start);
	assert_int_equal(extent.size, size);
	assert_int_equal(extent.host.value, host);
	assert_int_equal(extent.prot, prot);
}

static void expect_end(struct gpas_pgtable_cursor *cursor)
{
	struct gpas_extent extent;

	assert_false(gpas_pgtable_cursor_next(cursor, &extent));
	assert_false(gpas_pgtable_cursor_next(cursor, &extent));
}

static struct gpas_pgtable_cursor cursor_over(struct fixture *f, uint64_t start,
					      uint64_t end)
{
	struct gpas_pgtable_cursor cursor;

	gpas_pgtable_cursor_init(&cursor, f->table, gpas_gpa_at(start),
				 gpas_gpa_at(end));
	return cursor;
}

/* Directed tests. */

/* Nodes between the root and a leaf of this level. */
static uint64_t path(const struct fixture *f, unsigned level)
{
	return f->levels - 1 - level;
}

static void blocks_follow_alignment_body(struct fixture *f)
{
	/* Both addresses fit: one leaf of each size. */
	assert_int_equal(map(f, 0, GIB, HOST), 0);
	expect_shape(f, 0, 0, 1, path(f, 2));
	assert_int_equal(unmap(f, 0, GIB), 0);

	/* The host address allows 2 MiB only, then 4 KiB only. */
	assert_int_equal(map(f, 0, GIB, HOST + BLOCK), 0);
	expect_shape(f, 0, 512, 0, path(f, 1));
	assert_int_equal(unmap(f, 0, GIB), 0);
	assert_int_equal(map(f, 0, 2 * BLOCK, HOST + PAGE), 0);
	expect_shape(f, 1024, 0, 0, path(f, 1) + 2);
	assert_int_equal(unmap(f, 0, GIB), 0);

	/* A ragged range: pages, blocks, a gigabyte, blocks, pages. */
	assert_int_equal(map(f, GIB - BLOCK - PAGE, GIB + 2 * BLOCK + 2 * PAGE,
			     HOST + GIB - BLOCK - PAGE),
			 0);
	expect_shape(f, 2, 2, 1, path(f, 2) + 4);
	assert_int_equal(unmap(f, 0, 3 * GIB), 0);
	expect_shape(f, 0, 0, 0, 0);
}

static void blocks_follow_alignment(void **state)
{
	(void)state;
	for_each_format(blocks_follow_alignment_body);
}

static void leaf_size_is_bounded(void **state)
{
	struct fixture f;

	(void)state;
	open_with(&f, GPAS_FORMAT_EPT_4, 21);
	assert_int_equal(map(&f, 0, GIB, HOST), 0);
	expect_shape(&f, 0, 512, 0, 2);
	shut(&f);
	open_with(&f, GPAS_FORMAT_EPT_4, 12);
	assert_int_equal(map(&f, 0, BLOCK, HOST), 0);
	expect_shape(&f, 512, 0, 0, 3);
	shut(&f);
}

static void bad_params(void **state)
{
	struct gpas_pgtable_params params = { .max_leaf_shift = 13 };
	struct gpas_pgtable *table = NULL;

	(void)state;
	assert_int_equal(gpas_pgtable_create(&params, &table), -EINVAL);
	params.max_leaf_shift = 39;
	assert_int_equal(gpas_pgtable_create(&params, &table), -EINVAL);
	params.max_leaf_shift = 0;
	params.format = (enum gpas_format_id)GPAS_FORMAT_COUNT;
	assert_int_equal(gpas_pgtable_create(&params, &table), -EINVAL);
	assert_null(table);
	gpas_pgtable_destroy(NULL);
	assert_int_equal(gpas_pgtable_create(NULL, &table), 0);
	gpas_pgtable_destroy(table);
}

static void bad_ranges_body(struct fixture *f)
{
	const struct {
		uint64_t start;
		uint64_t size;
	} bad[] = {
		{ 0, 0 },
		{ 0x800, PAGE },
		{ 0, 0x800 },
		{ f->gpa_end, PAGE },
		{ f->gpa_end - PAGE, 2 * PAGE },
		{ PAGE, f->gpa_end },
		{ PAGE, UINT64_MAX & ~(PAGE - 1) },
		{ -PAGE, PAGE },
		{ UINT64_C(1) << 63, PAGE },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(map(f, bad[i].start, bad[i].size, HOST),
				 -EINVAL);
		assert_int_equal(unmap(f, bad[i].start, bad[i].size), -EINVAL);
		assert_int_equal(
			protect(f, bad[i].start, bad[i].size, GPAS_PROT_READ),
			-EINVAL);
	}
	/* The whole space is a fine range. */
	assert_int_equal(unmap(f, 0, f->gpa_end), 0);
	assert_int_equal(protect(f, 0, f->gpa_end, GPAS_PROT_READ), 0);
	expect_shape(f, 0, 0, 0, 0);
}

static void bad_ranges(void **state)
{
	(void)state;
	for_each_format(bad_ranges_body);
}

static void addresses_never_alias_body(struct fixture *f)
{
	struct gpas_extent extent;

	assert_int_equal(map(f, 0, PAGE, HOST), 0);
	assert_int_equal(map(f, f->gpa_end - PAGE, PAGE, HOST + PAGE), 0);
	for (unsigned bit = 12; bit < 64; bit++) {
		uint64_t gpa = UINT64_C(1) << bit;

		assert_int_equal(
			gpas_pgtable_query(f->table, gpas_gpa_at(gpa), &extent),
			-ENOENT);
		assert_int_equal(pt_extent_at(f->table, gpa, PAGE, &extent),
				 -ENOENT);
	}
	assert_int_equal(
		gpas_pgtable_query(f->table, gpas_gpa_at(UINT64_MAX), &extent),
		-ENOENT);
	assert_int_equal(gpas_pgtable_query(f->table,
					    gpas_gpa_at(f->gpa_end - 1),
					    &extent),
			 0);
	assert_int_equal(extent.host.value, HOST + PAGE);
}

static void addresses_never_alias(void **state)
{
	(void)state;
	for_each_format(addresses_never_alias_body);
}

static void overlap_is_refused_body(struct fixture *f)
{
	assert_int_equal(map(f, GIB, GIB, HOST), 0);
	assert_int_equal(map(f, GIB + 5 * PAGE, PAGE, HOST), -EEXIST);
	assert_int_equal(map(f, GIB + BLOCK, BLOCK, HOST), -EEXIST);
	assert_int_equal(map(f, 0, 3 * GIB, HOST), -EEXIST);
	assert_int_equal(map(f, 0, GIB + PAGE, HOST + PAGE), -EEXIST);
	assert_int_equal(map(f, 2 * GIB - PAGE, 2 * PAGE, HOST), -EEXIST);
	expect_shape(f, 0, 0, 1, path(f, 2));
	assert_int_equal(unmap(f, GIB + 7 * PAGE, GIB - 7 * PAGE), 0);
	assert_int_equal(map(f, GIB, BLOCK, HOST), -EEXIST);
	assert_int_equal(map(f, GIB, GIB, HOST), -EEXIST);
	expect_shape(f, 7, 0, 0, path(f, 0));
	assert_int_equal(unmap(f, GIB, GIB), 0);
}

static void overlap_is_refused(void **state)
{
	(void)state;
	for_each_format(overlap_is_refused_body);
}

static void unmap_splits_body(struct fixture *f)
{
	struct gpas_pgtable_cursor cursor;

	/* A page in the middle of a gigabyte. */
	assert_int_equal(map(f, 0, GIB, HOST), 0);
	assert_int_equal(unmap(f, GIB / 2 + PAGE, PAGE), 0);
	expect_shape(f, 511, 511, 0, path(f, 0));
	cursor = cursor_over(f, 0, UINT64_MAX);
	expect_extent(f, &cursor, 0, GIB / 2 + PAGE, HOST, GPAS_PROT_RW);
	expect_extent(f, &cursor, GIB / 2 + 2 * PAGE, GIB / 2 - 2 * PAGE,
		      HOST + GIB / 2 + 2 * PAGE, GPAS_PROT_RW);
	expect_end(&cursor);

	/* Put back, everything merges; with other memory, nothing does. */
	assert_int_equal(map(f, GIB / 2 + PAGE, PAGE, HOST), 0);
	expect_shape(f, 512, 511, 0, path(f, 0));
	assert_int_equal(unmap(f, GIB / 2 + PAGE, PAGE), 0);
	assert_int_equal(map(f, GIB / 2 + PAGE, PAGE, HOST + GIB / 2 + PAGE),
			 0);
	expect_shape(f, 0, 0, 1, path(f, 2));

	/* Both ends inside blocks of two gigabytes. */
	assert_int_equal(map(f, GIB, GIB, HOST + GIB), 0);
	assert_int_equal(unmap(f, GIB - PAGE, 2 * PAGE), 0);
	expect_shape(f, 1022, 1022, 0, path(f, 2) + 4);
	assert_int_equal(unmap(f, 0, 2 * GIB), 0);
	expect_shape(f, 0, 0, 0, 0);
}

static void unmap_splits(void **state)
{
	(void)state;
	for_each_format(unmap_splits_body);
}

static void empty_tables_go_body(struct fixture *f)
{
	uint64_t far = f->gpa_end - GIB;

	for (uint64_t i = 0; i < 4; i++) {
		assert_int_equal(
			map(f, far + i * PAGE, PAGE, HOST + 2 * i * PAGE), 0);
	}
	assert_int_equal(map(f, far + BLOCK, PAGE, HOST), 0);
	expect_shape(f, 5, 0, 0, path(f, 0) + 1);
	assert_int_equal(unmap(f, far + PAGE, 3 * PAGE), 0);
	expect_shape(f, 2, 0, 0, path(f, 0) + 1);
	assert_int_equal(unmap(f, far, PAGE), 0);
	expect_shape(f, 1, 0, 0, path(f, 0));
	/* A range that is wider than what is in it. */
	assert_int_equal(unmap(f, far - GIB + PAGE, 2 * GIB - 2 * PAGE), 0);
	expect_shape(f, 0, 0, 0, 0);
}

static void empty_tables_go(void **state)
{
	(void)state;
	for_each_format(empty_tables_go_body);
}

static void protect_splits_and_merges_body(struct fixture *f)
{
	struct gpas_pgtable_cursor cursor;
	uint64_t page = 3 * BLOCK + 17 * PAGE;

	assert_int_equal(map(f, 0, 2 * GIB, HOST), 0);
	/* The permission it has already: nothing to split. */
	assert_int_equal(protect(f, page, PAGE, GPAS_PROT_RW), 0);
	expect_shape(f, 0, 0, 2, path(f, 2));
	/* A whole block is not split further. */
	assert_int_equal(protect(f, BLOCK, BLOCK, GPAS_PROT_READ), 0);
	expect_shape(f, 0, 512, 1, path(f, 1));
	assert_int_equal(protect(f, page, PAGE, GPAS_PROT_NONE), 0);
	expect_shape(f, 512, 511, 1, path(f, 0));

	cursor = cursor_over(f, PAGE, 2 * GIB - PAGE);
	expect_extent(f, &cursor, PAGE, BLOCK - PAGE, HOST + PAGE,
		      GPAS_PROT_RW);
	expect_extent(f, &cursor, BLOCK, BLOCK, HOST + BLOCK, GPAS_PROT_READ);
	expect_extent(f, &cursor, 2 * BLOCK, page - 2 * BLOCK, HOST + 2 * BLOCK,
		      GPAS_PROT_RW);
	expect_extent(f, &cursor, page, PAGE, HOST + page, GPAS_PROT_NONE);
	expect_extent(f, &cursor, page + PAGE, 2 * GIB - page - 2 * PAGE,
		      HOST + page + PAGE, GPAS_PROT_RW);
	expect_end(&cursor);

	assert_int_equal(protect(f, 0, 2 * GIB, GPAS_PROT_NONE), 0);
	expect_shape(f, 0, 0, 2, path(f, 2));
	assert_int_equal(protect(f, 0, 2 * GIB, GPAS_PROT_RWX), 0);
	expect_shape(f, 0, 0, 2, path(f, 2));
	assert_int_equal(unmap(f, 0, 2 * GIB), 0);
}

static void protect_splits_and_merges(void **state)
{
	(void)state;
	for_each_format(protect_splits_and_merges_body);
}

static void protect_skips_holes_body(struct fixture *f)
{
	for (uint64_t i = 0; i < 8; i++) {
		assert_int_equal(
			map(f, GIB + 3 * i * PAGE, PAGE, HOST + 5 * i * PAGE),
			0);
	}
	assert_int_equal(map(f, 2 * GIB, BLOCK, HOST), 0);
	assert_int_equal(protect(f, 0, f->gpa_end, GPAS_PROT_RX), 0);
	expect_shape(f, 8, 1, 0, path(f, 0) + 1);
	for (uint64_t i = 0; i < 24; i++) {
		struct gpas_extent leaf;
		int error = gpas_pgtable_query(
			f->table, gpas_gpa_at(GIB + i * PAGE), &leaf);

		assert_int_equal(error, i % 3 == 0 ? 0 : -ENOENT);
		assert_true(error != 0 || leaf.prot == GPAS_PROT_RX);
	}
	assert_int_equal(unmap(f, 0, f->gpa_end), 0);
}

static void protect_skips_holes(void **state)
{
	(void)state;
	for_each_format(protect_skips_holes_body);
}

static void query_returns_the_whole_leaf_body(struct fixture *f)
{
	struct gpas_extent leaf;

	assert_int_equal(map(f, GIB, GIB, HOST), 0);
	assert_int_equal(
		gpas_pgtable_query(f->table, gpas_gpa_at(GIB + 12345), &leaf),
		0);
	assert_int_equal(leaf.start.value, GIB);
	assert_int_equal(leaf.size, GIB);
	assert_int_equal(leaf.host.value, HOST);
	assert_int_equal(leaf.prot, GPAS_PROT_RW);
	assert_int_equal(leaf.memtype, WB);
	assert_int_equal(leaf.leaf_shift, 30);
	assert_int_equal(
		gpas_pgtable_query(f->table, gpas_gpa_at(GIB - 1), &leaf),
		-ENOENT);
	assert_int_equal(
		gpas_pgtable_query(f->table, gpas_gpa_at(2 * GIB), &leaf),
		-ENOENT);

	assert_int_equal(unmap(f, GIB + PAGE, PAGE), 0);
	assert_int_equal(gpas_pgtable_query(f->table,
					    gpas_gpa_at(GIB + 2 * PAGE + 0xabc),
					    &leaf),
			 0);
	assert_int_equal(leaf.start.value, GIB + 2 * PAGE);
	assert_int_equal(leaf.leaf_shift, 12);
	assert_int_equal(gpas_pgtable_query(f->table,
					    gpas_gpa_at(GIB + BLOCK + 0xabc),
					    &leaf),
			 0);
	assert_int_equal(leaf.start.value, GIB + BLOCK);
	assert_int_equal(leaf.host.value, HOST + BLOCK);
	assert_int_equal(leaf.leaf_shift, 21);
	assert_int_equal(unmap(f, GIB, GIB), 0);
}

static void query_returns_the_whole_leaf(void **state)
{
	(void)state;
	for_each_format(query_returns_the_whole_leaf_body);
}

static void extent_at_is_clipped_body(struct fixture *f)
{
	struct gpas_extent extent;

	/* Pages, a block, pages: one extent over three leaf sizes. */
	assert_int_equal(
		map(f, GIB - PAGE, GIB + BLOCK + 2 * PAGE, HOST + GIB - PAGE),
		0);
	assert_int_equal(pt_extent_at(f->table, GIB - 5, UINT64_MAX, &extent),
			 0);
	assert_int_equal(extent.start.value, GIB - 5);
	assert_int_equal(extent.host.value, HOST + GIB - 5);
	assert_int_equal(extent.size, 5 + GIB + BLOCK + PAGE);
	assert_int_equal(extent.leaf_shift, 12);
	assert_int_equal(pt_extent_at(f->table, GIB - 5, 1, &extent), 0);
	assert_int_equal(extent.size, 1);
	assert_int_equal(pt_extent_at(f->table, GIB + 5, 2 * PAGE, &extent), 0);
	assert_int_equal(extent.size, 2 * PAGE);
	assert_int_equal(extent.host.value, HOST + GIB + 5);
	assert_int_equal(extent.leaf_shift, 30);
	assert_int_equal(pt_extent_at(f->table, GIB - PAGE - 1, PAGE, &extent),
			 -ENOENT);
	/* The neighbour's memory type differs: not one extent. */
	assert_int_equal(gpas_pgtable_map(f->table, gpas_gpa_at(GIB - 2 * PAGE),
					  PAGE,
					  gpas_hva_at(HOST + GIB - 2 * PAGE),
					  GPAS_PROT_RW, GPAS_MEM_UNCACHED),
			 0);
	assert_int_equal(pt_extent_at(f->table, GIB - 2 * PAGE, GIB, &extent),
			 0);
	assert_int_equal(extent.size, PAGE);
	assert_int_equal(extent.memtype, GPAS_MEM_UNCACHED);
	assert_int_equal(unmap(f, 0, 3 * GIB), 0);
}

static void extent_at_is_clipped(void **state)
{
	(void)state;
	for_each_format(extent_at_is_clipped_body);
}

static void cursor_reaches_the_top_body(struct fixture *f)
{
	struct gpas_pgtable_cursor cursor = cursor_over(f, 0, UINT64_MAX);

	expect_end(&cursor);
	assert_int_equal(map(f, f->gpa_end - 2 * GIB, 2 * GIB, HOST), 0);
	cursor = cursor_over(f, 0, UINT64_MAX);
	expect_extent(f, &cursor, f->gpa_end - 2 * GIB, 2 * GIB, HOST,
		      GPAS_PROT_RW);
	expect_end(&cursor);
	cursor = cursor_over(f, f->gpa_end, UINT64_MAX);
	expect_end(&cursor);
	cursor = cursor_over(f, f->gpa_end - PAGE, f->gpa_end - PAGE);
	expect_end(&cursor);
	cursor = cursor_over(f, 1, f->gpa_end - 2 * GIB + 3);
	expect_extent(f, &cursor, f->gpa_end - 2 * GIB, 3, HOST, GPAS_PROT_RW);
	expect_end(&cursor);
	assert_int_equal(unmap(f, f->gpa_end / 2, f->gpa_end / 2), 0);
}

static void cursor_reaches_the_top(void **state)
{
	(void)state;
	for_each_format(cursor_reaches_the_top_body);
}

/* Leaves stay inside the bounds that a change is given. */
static void merges_stay_within_bounds_body(struct fixture *f)
{
	struct pt_bounds left = { 0, BLOCK / 2 };
	struct pt_bounds right = { BLOCK / 2, GIB };
	struct pt_bounds both = { 0, GIB };

	assert_int_equal(
		pt_map(f->table, 0, BLOCK / 2, HOST, GPAS_PROT_RW, WB, left),
		0);
	assert_int_equal(pt_map(f->table, BLOCK / 2, GIB - BLOCK / 2,
				HOST + BLOCK / 2, GPAS_PROT_RW, WB, right),
			 0);
	assert_int_equal(gpas_pgtable_check(f->table, false), 0);
	assert_int_equal(gpas_pgtable_check(f->table, true), -EUCLEAN);
	assert_int_equal(
		pt_protect(f->table, 0, BLOCK / 2, GPAS_PROT_READ, left), 0);
	assert_int_equal(pt_protect(f->table, BLOCK / 2, GIB - BLOCK / 2,
				    GPAS_PROT_READ, right),
			 0);
	assert_int_equal(gpas_pgtable_check(f->table, true), -EUCLEAN);
	assert_int_equal(pt_protect(f->table, 0, PAGE, GPAS_PROT_RW, both), 0);
	assert_int_equal(pt_protect(f->table, 0, PAGE, GPAS_PROT_READ, both),
			 0);
	expect_shape(f, 0, 0, 1, path(f, 2));
	pt_undo(f->table, 0);
	pt_settle(f->table);
	expect_shape(f, 0, 0, 0, 0);
}

static void merges_stay_within_bounds(void **state)
{
	(void)state;
	for_each_format(merges_stay_within_bounds_body);
}

static void garbage_waits_for_settle_body(struct fixture *f)
{
	struct pt_bounds all = { 0, f->gpa_end };
	size_t mark = pt_mark(f->table);

	assert_false(pt_has_garbage(f->table));
	assert_int_equal(pt_map(f->table, 0, PAGE, HOST, GPAS_PROT_RW, WB, all),
			 0);
	assert_false(pt_has_garbage(f->table));
	/* What was linked and is undone may still be walked by a reader. */
	pt_undo(f->table, mark);
	assert_true(pt_has_garbage(f->table));
	expect_shape(f, 0, 0, 0, 0);
	pt_settle(f->table);
	assert_false(pt_has_garbage(f->table));

	assert_int_equal(map(f, 0, PAGE, HOST), 0);
	mark = pt_mark(f->table);
	assert_int_equal(pt_unmap(f->table, 0, PAGE), 0);
	assert_true(pt_has_garbage(f->table));
	expect_shape(f, 0, 0, 0, 0);
	pt_undo(f->table, mark);
	assert_false(pt_has_garbage(f->table));
	assert_int_equal(pt_mark(f->table), mark);
	expect_shape(f, 1, 0, 0, path(f, 0));
	assert_int_equal(unmap(f, 0, PAGE), 0);
}

static void garbage_waits_for_settle(void **state)
{
	(void)state;
	for_each_format(garbage_waits_for_settle_body);
}

/* The pool that a table has of its own: many chunks, all reused. */
static void own_pool(void **state)
{
	(void)state;
	for (int id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_pgtable_params params = {
			.format = (enum gpas_format_id)id,
		};
		struct fixture f;

		assert_int_equal(gpas_pgtable_create(&params, &f.table), 0);
		for (int round = 0; round < 3; round++) {
			assert_int_equal(map(&f, 0, 2 * GIB, HOST + PAGE), 0);
			assert_int_equal(gpas_pgtable_check(f.table, true), 0);
			assert_int_equal(unmap(&f, PAGE, 2 * GIB - PAGE), 0);
			assert_int_equal(unmap(&f, 0, PAGE), 0);
		}
		assert_int_equal(map(&f, 0, GIB, HOST + PAGE), 0);
		gpas_pgtable_destroy(f.table);
	}
}

/* An embedder's page that no entry can name counts as no memory. */
static void *misaligned_alloc(void *ctx, size_t pages)
{
	unsigned char *block = heap_alloc(ctx, pages + 1);

	return block == NULL ? NULL : block + 64;
}

static void misaligned_free(void *ctx, void *frame, size_t pages)
{
	heap_free(ctx, (unsigned char *)frame - 64, pages + 1);
}

static void misaligned_frames_are_refused(void **state)
{
	static const struct gpas_frame_ops ops = { misaligned_alloc,
						   misaligned_free };
	struct heap heap = { .left = NO_LIMIT };
	struct gpas_pgtable_params params = {
		.format = GPAS_FORMAT_EPT_4,
		.frame_ops = &ops,
		.frame_ctx = &heap,
	};
	struct gpas_pgtable *table;

	(void)state;
	assert_int_equal(gpas_pgtable_create(&params, &table), -ENOMEM);
	assert_int_equal(heap.live_pages, 0);
}

/* Failing memory. */

/* Everything that can be seen of a table, as one number. */
static uint64_t fingerprint(const struct fixture *f)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_pgtable_stats stats;
	struct gpas_extent extent;
	uint64_t hash = 0;

	gpas_pgtable_stats(f->table, &stats);
	hash = stats.table_pages * 31 + stats.leaves[0] * 37 +
	       stats.leaves[1] * 41 + stats.leaves[2] * 43;
	gpas_pgtable_cursor_init(&cursor, f->table, gpas_gpa_at(0),
				 gpas_gpa_at(UINT64_MAX));
	while (gpas_pgtable_cursor_next(&cursor, &extent)) {
		hash = hash * UINT64_C(6364136223846793005) +
		       (extent.start.value ^ extent.size << 7 ^
			extent.host.value << 1 ^ extent.prot ^
			(uint64_t)extent.memtype << 50 ^
			(uint64_t)extent.leaf_shift << 40);
	}
	return hash;
}

/* Runs @change with the first, second, ... taking of a page failing. */
static void fail_every_frame(struct fixture *f, int (*change)(struct fixture *))
{
	uint64_t before = fingerprint(f);
	size_t live;
	int error = -ENOMEM;

	assert_int_equal(pt_reserve(f->table), 0);
	live = f->heap.live_pages;
	for (size_t n = 0; error != 0; n++) {
		f->heap.left = n;
		error = change(f);
		f->heap.left = NO_LIMIT;
		if (error != 0) {
			assert_int_equal(error, -ENOMEM);
			assert_int_equal(fingerprint(f), before);
			assert_int_equal(f->heap.live_pages, live);
			assert_int_equal(gpas_pgtable_check(f->table, true), 0);
		}
		assert_true(n < 10000);
	}
	assert_int_equal(gpas_pgtable_check(f->table, true), 0);
}

static int map_ragged(struct fixture *f)
{
	return map(f, GIB - BLOCK - PAGE, GIB + 2 * BLOCK + 2 * PAGE,
		   HOST + GIB - BLOCK - PAGE);
}

static int map_unaligned(struct fixture *f)
{
	return map(f, 8 * GIB - 3 * BLOCK - PAGE, 6 * BLOCK + 2 * PAGE, HOST);
}

static int protect_ragged(struct fixture *f)
{
	return protect(f, GIB - BLOCK - PAGE, GIB + BLOCK + 2 * PAGE,
		       GPAS_PROT_READ);
}

static int protect_back(struct fixture *f)
{
	return protect(f, 0, 4 * GIB, GPAS_PROT_RW);
}

/* Enough records and copies for many pages of journal. */
static int protect_scattered(struct fixture *f)
{
	return protect(f, 16 * GIB, GIB, GPAS_PROT_NONE);
}

/* A group of several changes, of which all or none happen. */
static int change_group(struct fixture *f)
{
	struct pt_bounds all = { 0, f->gpa_end };
	size_t mark = pt_mark(f->table);
	int error = pt_unmap(f->table, GIB, BLOCK);

	if (error == 0) {
		error = pt_map(f->table, GIB, BLOCK, HOST + PAGE, GPAS_PROT_RW,
			       WB, all);
	}
	if (error == 0) {
		error = pt_protect(f->table, GIB + PAGE, GIB / 2,
				   GPAS_PROT_READ, all);
	}
	if (error == 0) {
		error = pt_unmap(f->table, 0, f->gpa_end);
	}
	if (error == 0) {
		error = pt_map(f->table, 0, PAGE, HOST, GPAS_PROT_RW, WB, all);
	}
	if (error != 0) {
		pt_undo(f->table, mark);
	}
	pt_settle(f->table);
	return error;
}

static void no_frame_changes_nothing_body(struct fixture *f)
{
	fail_every_frame(f, map_ragged);
	fail_every_frame(f, map_unaligned);
	fail_every_frame(f, protect_ragged);
	fail_every_frame(f, protect_back);
	for (uint64_t i = 0; i < 3000; i++) {
		assert_int_equal(map(f, 16 * GIB + i * PAGE, PAGE,
				     HOST + i * 7919 % 3001 * PAGE),
				 0);
	}
	fail_every_frame(f, protect_scattered);
	fail_every_frame(f, change_group);
	expect_shape(f, 1, 0, 0, path(f, 0));
}

static void no_frame_changes_nothing(void **state)
{
	(void)state;
	for_each_format(no_frame_changes_nothing_body);
}

static void no_frame_no_table(void **state)
{
	(void)state;
	for (int id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct heap heap = { 0 };
		struct gpas_pgtable_params params = {
			.format = (enum gpas_format_id)id,
			.frame_ops = &heap_ops,
			.frame_ctx = &heap,
		};
		struct gpas_pgtable *table = NULL;
		size_t n = 0;

		while (gpas_pgtable_create(&params, &table) != 0) {
			assert_int_equal(heap.live_pages, 0);
			assert_null(table);
			heap.left = ++n;
		}
		assert_true(n > 1);
		gpas_pgtable_destroy(table);
		assert_int_equal(heap.live_pages, 0);
	}
}

static uint64_t next_random(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random;
}

/*
 * Fills the node of @level at @base with leaves of hosts that follow no rule,
 * but for the entry at the edge, below which the same is done: the worst there
 * is to note for a range that cuts through the edge.
 */
static void fill_without_rule(struct fixture *f, unsigned level, uint64_t base,
			      size_t entries, size_t edge, uint64_t *random)
{
	uint64_t bytes = UINT64_C(1) << (12 + 9 * level);
	unsigned leaf_level = level < 2 ? level : 2;
	unsigned leaf_shift = 12 + 9 * leaf_level;

	for (size_t i = 0; i < entries; i++) {
		if (level > 0 && i == edge) {
			fill_without_rule(f, level - 1, base + i * bytes, 512,
					  edge == 0 ? 0 : 511, random);
			continue;
		}
		assert_int_equal(
			map(f, base + i * bytes, UINT64_C(1) << leaf_shift,
			    next_random(random) % 100000 << leaf_shift),
			0);
	}
}

/* The largest unmap there is, cutting through both ends, without memory. */
static void unmap_needs_no_memory_body(struct fixture *f)
{
	unsigned top = f->levels - 1;
	size_t entries = (size_t)f->root_pages * 512;
	uint64_t bytes = f->gpa_end / entries;
	uint64_t random = 88172645463325252;
	uint64_t before;

	fill_without_rule(f, top - 1, 0, 512, 0, &random);
	fill_without_rule(f, top - 1, f->gpa_end - bytes, 512, 511, &random);
	for (size_t i = 1; i + 1 < entries; i++) {
		assert_int_equal(map(f, i * bytes, GIB,
				     next_random(&random) % 100000 * GIB),
				 0);
	}
	before = fingerprint(f);
	f->heap.left = 0;
	assert_int_equal(pt_unmap(f->table, PAGE, f->gpa_end - 2 * PAGE), 0);
	expect_shape(f, 2, 0, 0, 2 * path(f, 0));
	pt_undo(f->table, 0);
	pt_settle(f->table);
	assert_int_equal(fingerprint(f), before);
	assert_int_equal(unmap(f, PAGE, f->gpa_end - 2 * PAGE), 0);
	f->heap.left = NO_LIMIT;
	expect_shape(f, 2, 0, 0, 2 * path(f, 0));
	assert_int_equal(unmap(f, 0, f->gpa_end), 0);
}

static void unmap_needs_no_memory(void **state)
{
	(void)state;
	for_each_format(unmap_needs_no_memory_body);
}

/* Splitting four times, without memory; what is freed is reserve again. */
static void unmap_splits_without_memory_body(struct fixture *f)
{
	assert_int_equal(map(f, 0, 4 * GIB, HOST), 0);
	f->heap.left = 0;
	assert_int_equal(unmap(f, PAGE, 4 * GIB - 2 * PAGE), 0);
	expect_shape(f, 2, 0, 0, path(f, 2) + 4);
	assert_int_equal(unmap(f, 0, 4 * GIB), 0);
	expect_shape(f, 0, 0, 0, 0);
	f->heap.left = NO_LIMIT;
}

static void unmap_splits_without_memory(void **state)
{
	(void)state;
	for_each_format(unmap_splits_without_memory_body);
}

/* Readers beside a writer. */

struct watch {
	const struct gpas_pgtable *table;
	bool stop;
	bool failed;
};

static void *watch_pages(void *arg)
{
	struct watch *watch = arg;
	uint64_t gpa = 0;

	while (!__atomic_load_n(&watch->stop, __ATOMIC_ACQUIRE)) {
		struct gpas_extent leaf;

		if (pt_lookup(watch->table, gpa, &leaf) != 0 ||
		    leaf.host.value + (gpa - leaf.start.value) != HOST + gpa) {
			watch->failed = true;
			break;
		}
		gpa = (gpa + 37 * PAGE) % (2 * BLOCK);
	}
	return NULL;
}

/* Splitting and merging under a reader's feet never shows it a hole. */
static void readers_see_no_hole_body(struct fixture *f)
{
	struct watch watch = { .table = f->table };
	pthread_t thread;

	assert_int_equal(map(f, 0, GIB, HOST), 0);
	assert_int_equal(pthread_create(&thread, NULL, watch_pages, &watch), 0);
	for (int i = 0; i < 200; i++) {
		struct pt_bounds all = { 0, f->gpa_end };
		size_t mark = pt_mark(f->table);

		assert_int_equal(
			pt_protect(f->table, BLOCK, PAGE, GPAS_PROT_READ, all),
			0);
		if (i % 2 == 0) {
			pt_undo(f->table, mark);
		} else {
			assert_int_equal(
				pt_protect(f->table, 0, GIB, GPAS_PROT_RW, all),
				0);
		}
	}
	__atomic_store_n(&watch.stop, true, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_false(watch.failed);
	assert_true(pt_has_garbage(f->table));
	pt_settle(f->table);
	expect_shape(f, 0, 0, 1, path(f, 2));
}

static void readers_see_no_hole(void **state)
{
	(void)state;
	for_each_format(readers_see_no_hole_body);
}

/*
 * The model: three windows of pages, at the bottom, across a multiple of
 * 1 GiB, and at the top of the space; each page is one word, zero if absent.
 */
#define WINDOW_PAGES ((size_t)2560)
#define WINDOWS	     3u
#define MAX_MARKS    6u
#define RUN_LENGTH   ((size_t)400)

enum op_kind {
	OP_MAP,
	OP_UNMAP,
	OP_PROTECT,
	OP_MARK,
	OP_UNDO,
	OP_SETTLE
};

struct op {
	enum op_kind kind;
	unsigned window;
	size_t first;
	size_t pages;
	uint64_t offset; /* host address minus GPA, before wrapping */
	unsigned prot;
	enum gpas_memtype memtype;
};

struct model {
	uint64_t pages[WINDOWS][WINDOW_PAGES];
};

struct run {
	struct fixture f;
	uint64_t base[WINDOWS];
	struct model now;
	struct model saved[MAX_MARKS];
	size_t marks[MAX_MARKS];
	unsigned mark_count;
};

static uint64_t model_page(uint64_t host, unsigned prot,
			   enum gpas_memtype memtype)
{
	return host | 0x800 | prot | (uint64_t)memtype << 3;
}

static size_t random_below(uint64_t *random, size_t bound)
{
	return (size_t)(next_random(random) >> 16) % bound;
}

/* Some ranges are whole blocks, most are small, a few are wide. */
static void random_range(struct op *op, uint64_t *random)
{
	size_t most;

	op->window = (unsigned)random_below(random, WINDOWS);
	op->first = random_below(random, WINDOW_PAGES);
	switch (random_below(random, 4)) {
	case 0:
		op->first &= ~(size_t)511;
		op->pages = 512 * (1 + random_below(random, 3));
		break;
	case 1:
		op->pages = 1 + random_below(random, 2 * 512);
		break;
	default:
		op->pages = 1 + random_below(random, 24);
	}
	most = WINDOW_PAGES - op->first;
	op->pages = op->pages < most ? op->pages : most;
}

static struct op random_op(const struct gpas_format *format, uint64_t *random)
{
	static const enum op_kind kinds[] = {
		OP_MAP,	    OP_MAP,	OP_MAP,	    OP_MAP,   OP_MAP,
		OP_MAP,	    OP_UNMAP,	OP_UNMAP,   OP_UNMAP, OP_PROTECT,
		OP_PROTECT, OP_PROTECT, OP_PROTECT, OP_MARK,  OP_MARK,
		OP_UNDO,    OP_SETTLE,
	};
	static const uint64_t offsets[] = {
		HOST, HOST, HOST, HOST, HOST + BLOCK, HOST + PAGE,
	};
	struct op op = {
		.kind = kinds[random_below(random, 17)],
		.offset = offsets[random_below(random, 6)],
	};

	random_range(&op, random);
	do {
		op.prot = random_below(random, 2) == 0
				  ? GPAS_PROT_RW
				  : (unsigned)random_below(random, 8);
		op.memtype =
			random_below(random, 6) == 0 ? GPAS_MEM_UNCACHED : WB;
	} while (pt_check_attr(format, op.prot, op.memtype) != 0);
	return op;
}

/* Applies the operation to the model, or tells why it must fail. */
static int model_apply(struct run *run, const struct op *op)
{
	uint64_t *pages = &run->now.pages[op->window][op->first];
	uint64_t gpa = run->base[op->window] + op->first * PAGE;

	for (size_t i = 0; op->kind == OP_MAP && i < op->pages; i++) {
		if (pages[i] != 0) {
			return -EEXIST;
		}
	}
	for (size_t i = 0; i < op->pages; i++) {
		uint64_t host = op->offset + (gpa + i * PAGE) % (64 * GIB);

		if (op->kind == OP_UNMAP) {
			pages[i] = 0;
		} else if (op->kind == OP_MAP) {
			pages[i] = model_page(host, op->prot, op->memtype);
		} else if (pages[i] != 0) {
			pages[i] = (pages[i] & ~UINT64_C(7)) | op->prot;
		}
	}
	return 0;
}

static int table_apply(struct run *run, const struct op *op)
{
	struct gpas_pgtable *table = run->f.table;
	struct pt_bounds all = { 0, run->f.gpa_end };
	uint64_t gpa = run->base[op->window] + op->first * PAGE;
	uint64_t size = op->pages * PAGE;

	switch (op->kind) {
	case OP_MAP:
		return pt_map(table, gpa, size, op->offset + gpa % (64 * GIB),
			      op->prot, op->memtype, all);
	case OP_UNMAP:
		return pt_unmap(table, gpa, size);
	default:
		return pt_protect(table, gpa, size, op->prot, all);
	}
}

/* Whether the extent is what the model says, page for page. */
static bool same_extent(const struct run *run, const struct gpas_extent *extent,
			size_t *ret_seen)
{
	unsigned window = 0;
	size_t first;
	size_t pages = (size_t)(extent->size / PAGE);

	while (window < WINDOWS &&
	       extent->start.value - run->base[window] >= WINDOW_PAGES * PAGE) {
		window++;
	}
	if (window == WINDOWS) {
		return false;
	}
	first = (size_t)((extent->start.value - run->base[window]) / PAGE);
	if (pages > WINDOW_PAGES - first) {
		return false;
	}
	for (size_t i = 0; i < pages; i++) {
		if (run->now.pages[window][first + i] !=
		    model_page(extent->host.value + i * PAGE, extent->prot,
			       extent->memtype)) {
			return false;
		}
	}
	*ret_seen += pages;
	return true;
}

/* Whether the two should have been one. */
static bool joins(const struct gpas_extent *a, const struct gpas_extent *b)
{
	return a->start.value + a->size == b->start.value &&
	       a->host.value + a->size == b->host.value && a->prot == b->prot &&
	       a->memtype == b->memtype;
}

/* Every extent is in the model, and the model has no page besides. */
static bool same_as_model(const struct run *run)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent extent;
	struct gpas_extent before = { .size = 0 };
	size_t seen = 0;
	size_t present = 0;

	gpas_pgtable_cursor_init(&cursor, run->f.table, gpas_gpa_at(0),
				 gpas_gpa_at(UINT64_MAX));
	while (gpas_pgtable_cursor_next(&cursor, &extent)) {
		if (!same_extent(run, &extent, &seen) ||
		    (before.size != 0 && joins(&before, &extent))) {
			return false;
		}
		before = extent;
	}
	for (size_t i = 0; i < WINDOWS * WINDOW_PAGES; i++) {
		present +=
			run->now.pages[i / WINDOW_PAGES][i % WINDOW_PAGES] != 0;
	}
	return seen == present && gpas_pgtable_check(run->f.table, true) == 0;
}

/* The page in the middle, through the lock-free lookup. */
static bool same_lookup(const struct run *run, const struct op *op)
{
	size_t index = op->first + op->pages / 2;
	uint64_t gpa = run->base[op->window] + index * PAGE;
	uint64_t page = run->now.pages[op->window][index];
	struct gpas_extent leaf;

	if (pt_lookup(run->f.table, gpa, &leaf) != 0) {
		return page == 0;
	}
	return page == model_page(leaf.host.value + (gpa - leaf.start.value),
				  leaf.prot, leaf.memtype);
}

static void undo_last_mark(struct run *run)
{
	run->mark_count--;
	pt_undo(run->f.table, run->marks[run->mark_count]);
	run->now = run->saved[run->mark_count];
}

/* One operation on both; false when they disagree. */
static bool step(struct run *run, const struct op *op)
{
	size_t mark = pt_mark(run->f.table);
	int error;

	switch (op->kind) {
	case OP_MARK:
		if (run->mark_count < MAX_MARKS) {
			run->saved[run->mark_count] = run->now;
			run->marks[run->mark_count++] = mark;
		}
		return true;
	case OP_UNDO:
		if (run->mark_count > 0) {
			undo_last_mark(run);
		}
		break;
	case OP_SETTLE:
		pt_settle(run->f.table);
		run->mark_count = 0;
		break;
	default:
		error = table_apply(run, op);
		if (error != model_apply(run, op)) {
			return false;
		}
		if (error != 0) {
			pt_undo(run->f.table, mark);
		}
	}
	return same_as_model(run) && same_lookup(run, op);
}

/* Ends the run as a random one ends: undone as far as marks go, settled. */
static bool finish(struct run *run, bool same)
{
	while (run->mark_count > 0) {
		undo_last_mark(run);
		same = same && same_as_model(run);
	}
	pt_settle(run->f.table);
	same = same && same_as_model(run) &&
	       unmap(&run->f, 0, run->f.gpa_end) == 0;
	gpas_pgtable_destroy(run->f.table);
	return same && run->f.heap.live_pages == 0;
}

/* All operations on a fresh table; false when something is wrong. */
static bool replay(enum gpas_format_id id, const struct op *ops, size_t count)
{
	struct run *run = calloc(1, sizeof(*run));
	bool same = true;

	assert_non_null(run);
	open_with(&run->f, id, 0);
	run->base[0] = 0;
	run->base[1] = GIB - WINDOW_PAGES / 2 * PAGE;
	run->base[2] = run->f.gpa_end - WINDOW_PAGES * PAGE;
	for (size_t i = 0; i < count && same; i++) {
		same = step(run, &ops[i]);
	}
	same = finish(run, same);
	free(run);
	return same;
}

/* Leaves out what is not needed for the failure, and prints the rest. */
static void print_shrunk(enum gpas_format_id id, struct op *ops, size_t count,
			 uint64_t seed)
{
	static const char *const names[] = { "map",  "unmap", "protect",
					     "mark", "undo",  "settle" };

	for (size_t i = count; i-- > 0;) {
		struct op without = ops[i];

		memmove(&ops[i], &ops[i + 1], (count - i - 1) * sizeof(*ops));
		if (!replay(id, ops, count - 1)) {
			count--;
			continue;
		}
		memmove(&ops[i + 1], &ops[i], (count - i - 1) * sizeof(*ops));
		ops[i] = without;
	}
	print_error("format %s, GPAS_SEED=%" PRIu64 "\n",
		    gpas_format_name(gpas_format_get(id)), seed);
	for (size_t i = 0; i < count; i++) {
		print_error("  %s window %u page %zu +%zu offset %#" PRIx64
			    " prot %u memtype %u\n",
			    names[ops[i].kind], ops[i].window, ops[i].first,
			    ops[i].pages, ops[i].offset, ops[i].prot,
			    (unsigned)ops[i].memtype);
	}
}

static void random_runs_match_the_model(void **state)
{
	const char *chosen = getenv("GPAS_SEED");
	uint64_t seed = chosen != NULL ? strtoull(chosen, NULL, 0) : 20250101;
	static struct op ops[RUN_LENGTH];

	(void)state;
	for (int i = 1; i < 3 * GPAS_FORMAT_COUNT; i++) {
		enum gpas_format_id id =
			(enum gpas_format_id)(1 + i % (GPAS_FORMAT_COUNT - 1));
		uint64_t random =
			(seed + (uint64_t)i) * UINT64_C(0x9e3779b97f4a7c15) | 1;

		for (size_t k = 0; k < RUN_LENGTH; k++) {
			ops[k] = random_op(gpas_format_get(id), &random);
		}
		if (!replay(id, ops, RUN_LENGTH)) {
			print_shrunk(id, ops, RUN_LENGTH, seed);
			fail();
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_follow_alignment),
		cmocka_unit_test(leaf_size_is_bounded),
		cmocka_unit_test(bad_params),
		cmocka_unit_test(bad_ranges),
		cmocka_unit_test(addresses_never_alias),
		cmocka_unit_test(overlap_is_refused),
		cmocka_unit_test(unmap_splits),
		cmocka_unit_test(empty_tables_go),
		cmocka_unit_test(protect_splits_and_merges),
		cmocka_unit_test(protect_skips_holes),
		cmocka_unit_test(query_returns_the_whole_leaf),
		cmocka_unit_test(extent_at_is_clipped),
		cmocka_unit_test(cursor_reaches_the_top),
		cmocka_unit_test(merges_stay_within_bounds),
		cmocka_unit_test(garbage_waits_for_settle),
		cmocka_unit_test(own_pool),
		cmocka_unit_test(misaligned_frames_are_refused),
		cmocka_unit_test(no_frame_changes_nothing),
		cmocka_unit_test(no_frame_no_table),
		cmocka_unit_test(unmap_needs_no_memory),
		cmocka_unit_test(unmap_splits_without_memory),
		cmocka_unit_test(readers_see_no_hole),
		cmocka_unit_test(random_runs_match_the_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
