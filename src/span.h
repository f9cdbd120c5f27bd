/* SPDX-License-Identifier: MIT */
/*
 * An ordered set of disjoint, non-empty ranges [start, end) of 64-bit numbers.
 *
 * Intrusive: the owner embeds a struct span and the set never allocates, so
 * insertion and removal cannot fail for lack of memory. Find, insert and
 * remove take O(log n); neighbours are one pointer away. The same set holds
 * regions, memslots, ports and registers: it knows nothing of any of them.
 */
#ifndef GPAS_SRC_SPAN_H
#define GPAS_SRC_SPAN_H

#include <stddef.h>
#include <stdint.h>

/*
 * Invariants while in a set: start < end; prev and next are the neighbours in
 * ascending order; child[0] holds only smaller and child[1] only larger spans.
 * The owner may move start or end in place as long as order and disjointness
 * are kept.
 */
struct span {
	uint64_t start;
	uint64_t end;
	struct span *child[2];
	struct span *prev;
	struct span *next;
	int height;
};

struct span_set {
	struct span *root;
	struct span *first;
	size_t count;
};

/* The span that contains @at, or NULL. */
struct span *span_find(const struct span_set *set, uint64_t at);

/* The first span that ends above @at: the one that contains @at or else the
 * next one. NULL when there is none. */
struct span *span_from(const struct span_set *set, uint64_t at);

/* Inserts @span. 0, or -EEXIST (nothing changed) when it overlaps another. */
int span_insert(struct span_set *set, struct span *span);

/* Removes @span, which is in the set. Its prev and next pointers are kept as
 * they were, so that a run of removed spans can still be followed. */
void span_remove(struct span_set *set, struct span *span);

/* Verifies order, disjointness, links and balance. 0 or -EUCLEAN. */
int span_check(const struct span_set *set);

#endif
