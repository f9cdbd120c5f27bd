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

/* The most that is copied the quick way. */
#define QUICK_BYTES GPAS_PAGE_BYTES

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

/* Answers from a leaf that has the permission that is remembered. False: it
 * does not grant @access, and *@ret is as it was. */
static inline bool translate_from(const struct gpas *space,
				  const struct reader *reader,
				  struct pt_found leaf, uint64_t gpa,
				  unsigned access, uint64_t size,
				  struct gpas_translation *ret)
{
	unsigned prot = reader->shortcuts.prot;

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

	found = __builtin_expect(found && leaf.entry != 0 &&
					 pt_has_prot(space->table,
						     &reader->shortcuts,
						     leaf.entry) &&
					 limit <= pt_left(leaf, gpa),
				 1) &&
		translate_from(space, reader, leaf, gpa, access, limit, ret);
	/* Not before: then a signal handler may use the reader, and what it
	 * remembers. */
	reader_leave(reader);
	return found;
}

/*
 * What the calls come to where that does not suffice: @reader forgets and walks
 * as it has to, and lazy memory is populated. Arguments may still be bad.
 * @reader may be NULL: this thread's, if it is to have one.
 */
int translate_slowly(struct gpas *space, struct reader *reader, uint64_t gpa,
		     unsigned access, uint64_t limit,
		     struct gpas_translation *ret);
int read_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		void *buffer, size_t size, size_t *done);
int write_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		 const void *buffer, size_t size, size_t *done);
int load_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		unsigned width, uint64_t *value);
int store_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		 unsigned width, uint64_t value);

#endif
