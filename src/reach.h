/* SPDX-License-Identifier: MIT */
/*
 * The quick way to guest memory, for plain calls and views alike: a reader at
 * hand, nothing to forget, and a 4 KiB leaf whose node is remembered. No
 * function is called on it, so whoever inlines it needs no stack. Where it does
 * not lead anywhere the caller goes another way.
 */
#ifndef GPAS_SRC_REACH_H
#define GPAS_SRC_REACH_H

#include "space.h"

/*
 * The host address of @gpa, if a page maps it that grants @access (which
 * includes reading or writing); the reader is inside then. NULL: it is not.
 */
static inline void *reach_page(const struct gpas *space, struct reader *reader,
			       uint64_t gpa, unsigned access)
{
	uint64_t leaf = 0;

	/* What is not of this epoch may be freed: it is not even looked at. */
	if (__builtin_expect(reader_enter(reader, &space->readers), 1)) {
		leaf = pt_find_page(&reader->shortcuts, gpa);
	}
	if (__builtin_expect(!pt_grants(space->table, leaf, access), 0)) {
		reader_leave(reader);
		return NULL;
	}
	return pt_host_in_page(space->table, leaf, gpa);
}

static inline bool is_within_page(uint64_t gpa, uint64_t size)
{
	return size <= GPAS_PAGE_BYTES - gpa % GPAS_PAGE_BYTES;
}

/* Translates from one page. False: *@ret is as it was. */
static inline bool translate_page(const struct gpas *space,
				  struct reader *reader, uint64_t gpa,
				  unsigned access, uint64_t limit,
				  struct gpas_translation *ret)
{
	uint64_t leaf = 0;
	unsigned prot;

	if (__builtin_expect(reader_enter(reader, &space->readers), 1)) {
		leaf = pt_find_page(&reader->shortcuts, gpa);
	}
	reader_leave(reader);
	if (__builtin_expect(leaf == 0, 0)) {
		return false;
	}
	prot = pt_prot(space->table, &reader->shortcuts, leaf);
	if (__builtin_expect((access & ~prot) != 0, 0)) {
		return false;
	}
	ret->host = pt_host_in_page(space->table, leaf, gpa);
	ret->size = limit;
	ret->prot = prot;
	ret->leaf_shift = GPAS_PAGE_SHIFT;
	return true;
}

/* The same from a leaf of any size, whatever has to be forgotten or walked. */
bool translate_leaf(const struct gpas *space, struct reader *reader,
		    uint64_t gpa, unsigned access, uint64_t limit,
		    struct gpas_translation *ret);

/* As reach_page, but from a leaf of any size that has @size bytes from there
 * on, and whatever has to be forgotten or walked. */
void *reach_leaf(const struct gpas *space, struct reader *reader, uint64_t gpa,
		 unsigned access, uint64_t size);

#endif
