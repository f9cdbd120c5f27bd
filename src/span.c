/* SPDX-License-Identifier: MIT */
/*
 * Disjoint ranges in order, as an AVL tree whose nodes the owners embed.
 *
 * A list threaded through the tree in ascending order makes a step to a
 * neighbour one load. Nodes carry no parent pointer: a change remembers the
 * links it came down by and mends heights on its way back up them.
 */
#include "span.h"

#include <errno.h>
#include <stdbool.h>

/*
 * An AVL tree of n nodes is less than 1.45 * log2(n + 2) high, and fewer than
 * 2^59 nodes fit into 64 bits of address space, so no path is longer.
 */
#define PATH_MAX_LINKS 88

/* The links from the root down to a place in the tree: link[0] is the root
 * pointer, and each further one is a child of the node before it. */
struct path {
	struct span **link[PATH_MAX_LINKS];
	size_t length;
};

static void path_push(struct path *path, struct span **link)
{
	path->link[path->length++] = link;
}

static int height_of(const struct span *node)
{
	return node != NULL ? node->height : 0;
}

static void update_height(struct span *node)
{
	int left = height_of(node->child[0]);
	int right = height_of(node->child[1]);

	node->height = (left > right ? left : right) + 1;
}

/* Lifts the child on @side into its parent's place and returns it. */
static struct span *rotate(struct span *node, int side)
{
	struct span *lifted = node->child[side];

	node->child[side] = lifted->child[!side];
	lifted->child[!side] = node;
	update_height(node);
	update_height(lifted);
	return lifted;
}

/* Restores the balance of a subtree whose own subtrees are balanced and differ
 * in height by two at most. Returns its root, with the right height. */
static struct span *rebalance(struct span *node)
{
	int lean = height_of(node->child[1]) - height_of(node->child[0]);
	int side = lean > 0;
	struct span *deep;

	if (lean >= -1 && lean <= 1) {
		update_height(node);
		return node;
	}
	deep = node->child[side];
	if (height_of(deep->child[!side]) > height_of(deep->child[side])) {
		node->child[side] = rotate(deep, !side);
	}
	return rotate(node, side);
}

/*
 * Mends every subtree that hangs on @path, the lowest first. A subtree that
 * comes out as high as its root says it was hides the change from those above.
 */
static void retrace(const struct path *path)
{
	size_t i = path->length;

	while (i-- > 0) {
		struct span **link = path->link[i];
		int before = (*link)->height;

		*link = rebalance(*link);
		if ((*link)->height == before) {
			return;
		}
	}
}

struct span *span_from(const struct span_set *set, uint64_t at)
{
	struct span *node = set->root;
	struct span *best = NULL;

	/* Every span left of the path ends at or below @at; of those seen that
	 * end above it, the last one seen is the lowest. Chance decides the
	 * side, so no branch is made of it; both children are on their way
	 * from memory while the comparison waits for this node's end. */
	while (node != NULL) {
		bool above = at < node->end;

		__builtin_prefetch(node->child[0]);
		__builtin_prefetch(node->child[1]);
		best = above ? node : best;
		node = node->child[!above];
	}
	return best;
}

struct span *span_find(const struct span_set *set, uint64_t at)
{
	struct span *span = span_from(set, at);

	return span != NULL && span->start <= at ? span : NULL;
}

static void list_insert(struct span_set *set, struct span *span)
{
	if (span->prev != NULL) {
		span->prev->next = span;
	} else {
		set->first = span;
	}
	if (span->next != NULL) {
		span->next->prev = span;
	}
	set->count++;
}

static void list_remove(struct span_set *set, struct span *span)
{
	if (span->prev != NULL) {
		span->prev->next = span->next;
	} else {
		set->first = span->next;
	}
	if (span->next != NULL) {
		span->next->prev = span->prev;
	}
	set->count--;
}

/*
 * The way to where a span that starts at @start belongs, to an empty link, and
 * its neighbours if it overlaps nothing. Chance decides the side here as well.
 */
static void find_place(struct span_set *set, uint64_t start, struct path *path,
		       struct span **ret_prev, struct span **ret_next)
{
	struct span **link = &set->root;
	struct span *prev = NULL;
	struct span *next = NULL;
	struct span *node;

	path->length = 0;
	while ((node = *link) != NULL) {
		bool below = start < node->end;

		__builtin_prefetch(node->child[0]);
		__builtin_prefetch(node->child[1]);
		path_push(path, link);
		next = below ? node : next;
		prev = below ? prev : node;
		link = &node->child[!below];
	}
	path_push(path, link);
	*ret_prev = prev;
	*ret_next = next;
}

int span_insert(struct span_set *set, struct span *span)
{
	struct path path;
	struct span *prev;
	struct span *next;

	/* Of all that end above its start, next is the lowest: if any overlaps
	 * it, that one does. */
	find_place(set, span->start, &path, &prev, &next);
	if (next != NULL && next->start < span->end) {
		return -EEXIST;
	}
	*path.link[--path.length] = span;
	span->child[0] = NULL;
	span->child[1] = NULL;
	span->height = 1;
	span->prev = prev;
	span->next = next;
	list_insert(set, span);
	retrace(&path);
	return 0;
}

/*
 * Puts the next span in the place of @span, which has two children and hangs
 * on the last link of @path. The path then leads to the gap that the next span
 * left behind, which is where heights begin to change.
 */
static void replace_by_next(struct path *path, struct span *span)
{
	struct span **place = path->link[path->length - 1];
	size_t below = path->length;
	struct span **link = &span->child[1];
	struct span *next = span->next;

	while (*link != next) {
		path_push(path, link);
		link = &(*link)->child[0];
	}
	*link = next->child[1];
	next->child[0] = span->child[0];
	next->child[1] = span->child[1];
	next->height = span->height;
	*place = next;
	if (path->length > below) {
		path->link[below] = &next->child[1];
	}
}

void span_remove(struct span_set *set, struct span *span)
{
	struct path path;
	struct span **link = &set->root;

	path.length = 0;
	while (*link != span) {
		path_push(&path, link);
		link = &(*link)->child[span->start > (*link)->start];
	}
	if (span->child[0] != NULL && span->child[1] != NULL) {
		path_push(&path, link);
		replace_by_next(&path, span);
	} else {
		*link = span->child[span->child[0] == NULL];
	}
	list_remove(set, span);
	retrace(&path);
}

/*
 * Checks the subtree on @node, whose spans must be the ones of the list from
 * *@expect on; moves *@expect behind them. Heights strictly fall on the way
 * down, so a tree with a cycle in it is found out instead of followed.
 */
static bool subtree_is_sound(const struct span *node, int height,
			     const struct span **expect)
{
	int left, right;

	if (node == NULL) {
		return height == 0;
	}
	left = height_of(node->child[0]);
	right = height_of(node->child[1]);
	if (node->height != height || left < 0 || right < 0 ||
	    height != (left > right ? left : right) + 1 || left - right > 1 ||
	    right - left > 1) {
		return false;
	}
	if (!subtree_is_sound(node->child[0], left, expect) ||
	    node != *expect) {
		return false;
	}
	*expect = node->next;
	return subtree_is_sound(node->child[1], right, expect);
}

/* Starts rise strictly along the list, so this ends even if links are bad. */
static bool list_is_sound(const struct span_set *set)
{
	const struct span *prev = NULL;
	const struct span *span;
	size_t count = 0;

	for (span = set->first; span != NULL; span = span->next) {
		if (span->start >= span->end || span->prev != prev ||
		    (prev != NULL && prev->end > span->start)) {
			return false;
		}
		prev = span;
		count++;
	}
	return count == set->count;
}

int span_check(const struct span_set *set)
{
	const struct span *expect = set->first;

	if (!list_is_sound(set) ||
	    !subtree_is_sound(set->root, height_of(set->root), &expect) ||
	    expect != NULL) {
		return -EUCLEAN;
	}
	return 0;
}
