/* SPDX-License-Identifier: MIT */
/*
 * What a page table is made of, for the files that implement it: pgtable.c owns
 * it, pgchange.c changes it, pgjournal.c takes changes back, pgwalk.c reads it.
 *
 * A node is one page of 512 entries; the root may be several nodes that lie
 * side by side. The writer is the only one who stores, so it may load plainly.
 * Once a node is linked its entries are stored with pt_store(), because
 * readers load them with pt_load() at any time.
 */
#ifndef GPAS_SRC_PGNODE_H
#define GPAS_SRC_PGNODE_H

#include "format.h"
#include "frames.h"
#include "pgjournal.h"
#include "pgtable.h"

/*
 * Spare pages for one unmap in the worst case: one for each node in which it
 * clears some entries and keeps others. These are the root and, on the way to
 * either end of the range, one node of every level below it. Such a node is
 * made by splitting a leaf, or it was there and its old entries follow no rule
 * so that the journal copies them, a page for a page. The records themselves,
 * and what is lost at page ends, fit into the page that the journal keeps.
 */
#define PT_MAX_ROOT_PAGES 4u
#define PT_MAX_RESERVE	  (2 * (FORMAT_MAX_LEVELS - 1) + PT_MAX_ROOT_PAGES)

/*
 * Invariants: every entry is empty, a table or a leaf as its format defines
 * them; no leaf is above max_leaf_level; no node but the root is empty; every
 * node is pointed to by one entry, by the journal, or by neither if it is the
 * root.
 */
struct gpas_pgtable {
	/* By a set of permissions: holds for leaves that grant them all. */
	struct format_bits grants[GPAS_PROT_RWX + 1];
	uint64_t *root;
	uint64_t gpa_end; /* the first address the format cannot express */
	unsigned root_level;
	unsigned max_leaf_level;
	struct gpas_format format; /* a copy, beside what walks read with it */
	const struct gpas_format *public_format;
	struct journal journal;
	struct frames frames;
	void *reserve[PT_MAX_RESERVE];
	unsigned reserve_count;
	unsigned reserve_size;
	bool may_draw; /* a release is under way: it may use the reserve */
};

static inline uint64_t pt_load(const uint64_t *entry)
{
	return __atomic_load_n(entry, __ATOMIC_ACQUIRE);
}

static inline void pt_store(uint64_t *entry, uint64_t value)
{
	__atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

/* The node that a table entry points to. */
static inline uint64_t *pt_child(const struct gpas_format *format,
				 uint64_t entry)
{
	return (uint64_t *)(uintptr_t)format_address(format, entry);
}

static inline uint64_t pt_table_entry(const struct gpas_format *format,
				      const uint64_t *node)
{
	return format->table_bits |
	       format_encode_address(format, (uintptr_t)node);
}

/* The entries of a node of this level. */
static inline size_t pt_node_entries(const struct gpas_pgtable *table,
				     unsigned level)
{
	return level == table->root_level
		       ? FORMAT_NODE_ENTRIES * table->format.root_pages
		       : FORMAT_NODE_ENTRIES;
}

/* The place of @gpa's entry in its node. No address below gpa_end has bits
 * above the root's index. */
static inline size_t pt_index(const struct gpas_pgtable *table, uint64_t gpa,
			      unsigned level)
{
	size_t index = gpa >> format_shift(level);

	return level == table->root_level ? index
					  : index & (FORMAT_NODE_ENTRIES - 1);
}

/* Whether @count entries are first, first + step, first + 2 * step, ... */
bool pt_is_run(const uint64_t *entries, size_t count, uint64_t first,
	       uint64_t step);

/* Whether the full node of @level below the root could be one larger leaf. */
bool pt_is_mergeable(const struct gpas_pgtable *table, const uint64_t *node,
		     unsigned level);

/*
 * One page of any content, or NULL. From the reserve only while may_draw.
 * A page given back fills up the reserve first.
 */
void *pt_take_frame(struct gpas_pgtable *table);
void pt_give_frame(struct gpas_pgtable *table, void *frame);

/* Frees a node that no reader can reach, and all nodes below it. */
void pt_free_tree(struct gpas_pgtable *table, uint64_t *node, unsigned level);

#endif
