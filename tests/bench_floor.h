/* SPDX-License-Identifier: MIT */
/*
 * The floor: a four-level table written by hand for speed alone. No regions, no
 * locks, no checks, no undoing; entries as EPT has them.
 */
#ifndef GPAS_TESTS_BENCH_FLOOR_H
#define GPAS_TESTS_BENCH_FLOOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define FLOOR_FRAME UINT64_C(0x000ffffffffff000)
#define FLOOR_LARGE UINT64_C(0x80)
#define FLOOR_TABLE UINT64_C(0x07)
#define FLOOR_LEAF  UINT64_C(0x33)

/* Table pages come from a pool; the first is the root. */
struct floor {
	uint64_t *pool;
	size_t pages;
	size_t used;
};

static inline int floor_open(struct floor *floor, size_t pages)
{
	floor->pool = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	floor->pages = pages;
	floor->used = 1;
	return floor->pool == MAP_FAILED ? -1 : 0;
}

static inline void floor_close(struct floor *floor)
{
	munmap(floor->pool, floor->pages * 4096);
}

static inline void floor_clear(struct floor *floor)
{
	memset(floor->pool, 0, 4096);
	floor->used = 1;
}

static inline size_t floor_index(uint64_t gpa, unsigned shift)
{
	return gpa >> shift & 511;
}

/* The table of leaves of 2^shift bytes above @gpa, made on the way. */
static inline uint64_t *floor_table(struct floor *floor, uint64_t gpa,
				    unsigned shift)
{
	uint64_t *table = floor->pool;

	for (unsigned at = 39; at > shift; at -= 9) {
		uint64_t *entry = &table[floor_index(gpa, at)];

		if (*entry == 0) {
			table = floor->pool + 512 * floor->used++;
			memset(table, 0, 4096);
			*entry = (uintptr_t)table | FLOOR_TABLE;
		}
		table = (uint64_t *)(uintptr_t)(*entry & FLOOR_FRAME);
	}
	return table;
}

/* Maps with leaves of 2^shift bytes: one walk for each table of them. */
static inline void floor_map(struct floor *floor, uint64_t gpa, uint64_t size,
			     uint64_t host, unsigned shift)
{
	uint64_t end = gpa + size;
	uint64_t step = UINT64_C(1) << shift;
	uint64_t bits = FLOOR_LEAF | (shift > 12 ? FLOOR_LARGE : 0);

	while (gpa < end) {
		uint64_t *table = floor_table(floor, gpa, shift);
		size_t i = floor_index(gpa, shift);

		for (; i < 512 && gpa < end; i++, gpa += step, host += step) {
			table[i] = host | bits;
		}
	}
}

static inline void floor_protect(struct floor *floor, uint64_t gpa,
				 uint64_t size, unsigned shift)
{
	uint64_t end = gpa + size;
	uint64_t step = UINT64_C(1) << shift;

	while (gpa < end) {
		uint64_t *table = floor_table(floor, gpa, shift);

		for (size_t i = floor_index(gpa, shift); i < 512 && gpa < end;
		     i++, gpa += step) {
			table[i] ^= 2;
		}
	}
}

/* Forgets the tables of leaves of 2^shift bytes, which are all of the range's
 * own. */
static inline void floor_unmap(struct floor *floor, uint64_t gpa, uint64_t size,
			       unsigned shift)
{
	uint64_t end = gpa + size;
	uint64_t step = UINT64_C(512) << shift;

	while (gpa < end) {
		uint64_t *table = floor_table(floor, gpa, shift + 9);

		for (size_t i = floor_index(gpa, shift + 9);
		     i < 512 && gpa < end; i++, gpa += step) {
			table[i] = 0;
		}
	}
}

/* Where @gpa is in the host, or 0. */
static inline uint64_t floor_walk(const struct floor *floor, uint64_t gpa)
{
	const uint64_t *table = floor->pool;

	for (unsigned shift = 39;; shift -= 9) {
		uint64_t entry = __atomic_load_n(
			&table[floor_index(gpa, shift)], __ATOMIC_ACQUIRE);
		uint64_t within = (UINT64_C(1) << shift) - 1;

		if ((entry & 1) == 0) {
			return 0;
		}
		if (shift == 12 || (entry & FLOOR_LARGE) != 0) {
			return (entry & FLOOR_FRAME & ~within) | (gpa & within);
		}
		table = (const uint64_t *)(uintptr_t)(entry & FLOOR_FRAME);
	}
}

#endif
