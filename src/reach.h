/* SPDX-License-Identifier: MIT */
/*
 * The quick way to guest memory, for plain calls and views alike: a reader at
 * hand, nothing to forget, and a leaf whose node is remembered. No function is
 * called on it, so whoever inlines it needs no stack. Where it does not lead
 * anywhere the caller goes another way.
 */
#ifndef GPAS_SRC_REACH_H
#define GPAS_SRC_REACH_H

#include "space.h"

/* Enters and finds the leaf at @gpa; false: there is no quick way. What is not
 * of this epoch may be freed: it is not even looked at. */
static inline bool enter_quickly(const struct gpas *space,
				 struct reader *reader, uint64_t gpa,
				 struct pt_found *ret)
{
	return __builtin_expect(reader_enter(reader, &space->readers) &&
					pt_find_quickly(space->table,
							&reader->shortcuts, gpa,
							ret),
				1);
}

/*
 * The host address of @gpa, if a leaf grants @access (which includes reading or
 * writing) to @size bytes from there on; the reader is inside then. NULL: it is
 * not.
 */
static inline void *reach_quickly(const struct gpas *space,
				  struct reader *reader, uint64_t gpa,
				  unsigned access, uint64_t size)
{
	struct pt_found leaf;

	if (__builtin_expect(
		    enter_quickly(space, reader, gpa, &leaf) &&
			    pt_grants(space->table, leaf.entry, access) &&
			    size <= pt_left(leaf, gpa),
		    1)) {
		return pt_host(space->table, leaf, gpa);
	}
	reader_leave(reader);
	return NULL;
}

/* Answers from the leaf. False: it does not suffice, and *@ret is as it was. */
static inline bool translate_from(const struct gpas *space,
				  struct reader *reader, struct pt_found leaf,
				  uint64_t gpa, unsigned access, uint64_t size,
				  struct gpas_translation *ret)
{
	unsigned prot = pt_prot(space->table, &reader->shortcuts, leaf.entry);

	if (__builtin_expect((access & ~prot) != 0, 0)) {
		return false;
	}
	ret->host = pt_host(space->table, leaf, gpa);
	ret->size = size;
	ret->prot = prot;
	ret->leaf_shift = leaf.shift;
	return true;
}

static inline bool translate_quickly(const struct gpas *space,
				     struct reader *reader, uint64_t gpa,
				     unsigned access, uint64_t limit,
				     struct gpas_translation *ret)
{
	struct pt_found leaf = { 0, 0 };
	bool found = enter_quickly(space, reader, gpa, &leaf);

	reader_leave(reader);
	return __builtin_expect(found && leaf.entry != 0 &&
					limit <= pt_left(leaf, gpa),
				1) &&
	       translate_from(space, reader, leaf, gpa, access, limit, ret);
}

/* These forget and walk where they have to. */
bool translate_leaves(const struct gpas *space, struct reader *reader,
		      uint64_t gpa, unsigned access, uint64_t limit,
		      struct gpas_translation *ret);
void *reach_leaf(const struct gpas *space, struct reader *reader, uint64_t gpa,
		 unsigned access, uint64_t size);

#endif
