/* SPDX-License-Identifier: MIT */
/*
 * The walk as readers make it on their way to memory, inlined, and what one
 * reader remembers of the table: not leaves but nodes, so that little memory
 * goes a long way and what is found is always what the table says now.
 */
#ifndef GPAS_SRC_PGREAD_H
#define GPAS_SRC_PGREAD_H

#include "pgnode.h"

#include <string.h>

/* As many GiB of 4 KiB leaves as are remembered, if they lie side by side, and
 * as many GiB in which only the last step or two are left to be made. */
#define PT_LEAF_TABLES	  1u
#define PT_SHORTCUTS_LOW  (PT_LEAF_TABLES * FORMAT_NODE_ENTRIES)
#define PT_SHORTCUTS_HIGH 64u

#define PT_LOW_SHIFT  (GPAS_PAGE_SHIFT + FORMAT_INDEX_BITS)
#define PT_HIGH_SHIFT (GPAS_PAGE_SHIFT + 2 * FORMAT_INDEX_BITS)

/* The first address that a node covers, and the key below it. */
struct pt_shortcut {
	uint64_t tag;
	uint64_t *node;
};

/*
 * Nodes of level 0 and of level 1, each where its address says. Those whose
 * tag has another key than the present one count as forgotten; no tag has one
 * that is still to come. Once pt_forget() was called, key is not 0. It is less
 * than what a node of level 0 covers.
 */
struct pt_shortcuts {
	uint64_t key;
	uint64_t attr; /* of a leaf, besides its address: grants prot; or 0 */
	unsigned prot;
	uint64_t seen; /* the epoch that key stands for */
	struct pt_shortcut low[PT_SHORTCUTS_LOW];
	struct pt_shortcut high[PT_SHORTCUTS_HIGH];
};

/* Where a walk ended: an entry that is empty or a leaf, and what it covers. */
struct pt_found {
	uint64_t entry;
	unsigned shift;
};

/* Forgets everything; @epoch has grown since the last time. */
void pt_forget(struct pt_shortcuts *shortcuts, uint64_t epoch);

static inline uint64_t pt_tag(const struct pt_shortcuts *shortcuts,
			      uint64_t gpa, unsigned shift)
{
	return gpas_align_down(gpa, UINT64_C(1) << shift) | shortcuts->key;
}

static inline size_t pt_low_place(uint64_t gpa)
{
	return gpa >> PT_LOW_SHIFT & (PT_SHORTCUTS_LOW - 1);
}

static inline size_t pt_high_place(uint64_t gpa)
{
	return gpa >> PT_HIGH_SHIFT & (PT_SHORTCUTS_HIGH - 1);
}

/* Walks, from as far down as is remembered, and remembers. @gpa is any number.
 * No node that @shortcuts hold has been freed. */
struct pt_found pt_find(const struct gpas_pgtable *table,
			struct pt_shortcuts *shortcuts, uint64_t gpa);

/* The same without a walk: false if neither node is remembered, or only that
 * of level 1 and the leaf is below it. Calls nothing. */
static inline bool pt_find_quickly(const struct gpas_pgtable *table,
				   const struct pt_shortcuts *shortcuts,
				   uint64_t gpa, struct pt_found *ret)
{
	const struct pt_shortcut *low = &shortcuts->low[pt_low_place(gpa)];
	const struct pt_shortcut *high = &shortcuts->high[pt_high_place(gpa)];

	if (__builtin_expect(low->tag == pt_tag(shortcuts, gpa, PT_LOW_SHIFT),
			     1)) {
		ret->entry = pt_load(&low->node[gpa >> GPAS_PAGE_SHIFT &
						(FORMAT_NODE_ENTRIES - 1)]);
		ret->shift = GPAS_PAGE_SHIFT;
		return true;
	}
	if (high->tag != pt_tag(shortcuts, gpa, PT_HIGH_SHIFT)) {
		return false;
	}
	ret->entry = pt_load(
		&high->node[gpa >> PT_LOW_SHIFT & (FORMAT_NODE_ENTRIES - 1)]);
	ret->shift = PT_LOW_SHIFT;
	return !format_holds(table->format.table, ret->entry);
}

/* Whether a leaf, or an empty entry, grants all of @access, which includes
 * reading or writing. */
static inline bool pt_grants(const struct gpas_pgtable *table, uint64_t entry,
			     unsigned access)
{
	return format_holds(table->grants[access], entry);
}

/* Whether the leaf has the permission that shortcuts->prot says. Leaves of one
 * permission come in long runs, so the last one's is remembered. */
static inline bool pt_has_prot(const struct gpas_pgtable *table,
			       const struct pt_shortcuts *shortcuts,
			       uint64_t leaf)
{
	return (leaf & ~table->format.addr_mask) == shortcuts->attr;
}

static inline void pt_note_prot(const struct gpas_pgtable *table,
				struct pt_shortcuts *shortcuts, uint64_t leaf)
{
	shortcuts->prot = format_prot(&table->format, leaf);
	shortcuts->attr = leaf & ~table->format.addr_mask;
}

/* How many bytes there are from @gpa to the end of the leaf. */
static inline uint64_t pt_left(struct pt_found found, uint64_t gpa)
{
	uint64_t bytes = UINT64_C(1) << found.shift;

	return bytes - (gpa & (bytes - 1));
}

/*
 * How many bytes from @gpa on, at most @limit, are of one run that begins with
 * the leaf that was found. 0: the node that is remembered does not tell.
 */
static inline uint64_t pt_run_bytes(const struct gpas_pgtable *table,
				    const struct pt_shortcuts *shortcuts,
				    struct pt_found found, uint64_t gpa,
				    uint64_t limit)
{
	const uint64_t *node = shortcuts->low[pt_low_place(gpa)].node;
	size_t index = gpa >> GPAS_PAGE_SHIFT & (FORMAT_NODE_ENTRIES - 1);
	uint64_t step = format_step(&table->format, 0);
	uint64_t bytes = pt_left(found, gpa);
	uint64_t expected = found.entry;

	if (bytes < limit && found.shift != GPAS_PAGE_SHIFT) {
		return 0;
	}
	while (bytes < limit) {
		expected += step;
		if (++index == FORMAT_NODE_ENTRIES) {
			return 0;
		}
		if (pt_load(&node[index]) != expected) {
			return bytes;
		}
		bytes += GPAS_PAGE_BYTES;
	}
	return limit;
}

/* The host address of @gpa, in the leaf that was found. */
static inline void *pt_host(const struct gpas_pgtable *table,
			    struct pt_found found, uint64_t gpa)
{
	uint64_t within = gpa & ((UINT64_C(1) << found.shift) - 1);

	return gpas_hva_pointer(gpas_hva_at(
		format_address(&table->format, found.entry) + within));
}

#endif
