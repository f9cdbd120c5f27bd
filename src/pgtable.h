/* SPDX-License-Identifier: MIT */
/*
 * Changes to a page table under a journal.
 *
 * Each call appends to the table's journal what it overwrites, before it
 * overwrites it. pt_undo() puts the old entries back and cannot fail;
 * pt_settle() makes the changes final and frees the table pages that dropped
 * out. Several calls may share one journal, and a call that fails is undone to
 * the mark taken before it, so any sequence is all-or-nothing at any grain.
 *
 * Readers may walk at any time without a lock: an entry is one atomic word, a
 * new table is complete before a release store links it, and no page that was
 * ever linked is freed before pt_settle(), which the owner calls only when no
 * reader can still be inside it.
 */
#ifndef GPAS_SRC_PGTABLE_H
#define GPAS_SRC_PGTABLE_H

#include <gpas/pgtable.h>

/*
 * The range inside which leaves may be merged into larger ones: the region
 * that the changed range belongs to. A leaf never belongs to two regions.
 */
struct pt_bounds {
	uint64_t start;
	uint64_t end;
};

/* A position in the journal. */
size_t pt_mark(const struct gpas_pgtable *table);

/* Puts back everything done since @mark, in reverse order. Never fails,
 * never allocates. The pages that drop out stay until pt_settle(). */
void pt_undo(struct gpas_pgtable *table, size_t mark);

/* Whether pt_settle() would free a page that a reader may be looking at. */
bool pt_has_garbage(const struct gpas_pgtable *table);

/* Makes everything in the journal final, frees the pages that dropped out and
 * empties the journal. The caller has waited for readers. Never fails. */
void pt_settle(struct gpas_pgtable *table);

/* Refills the reserve that one pt_unmap() outside a group may need.
 * 0 or -ENOMEM. */
int pt_reserve(struct gpas_pgtable *table);

/*
 * As the public calls, but under the journal: on failure the caller undoes to
 * its mark. Arguments are already validated by the *_check functions.
 */
int pt_map(struct gpas_pgtable *table, uint64_t start, uint64_t size,
	   uint64_t host, unsigned prot, enum gpas_memtype memtype,
	   struct pt_bounds bounds);
int pt_unmap(struct gpas_pgtable *table, uint64_t start, uint64_t size);
int pt_protect(struct gpas_pgtable *table, uint64_t start, uint64_t size,
	       unsigned prot, struct pt_bounds bounds);

/* Whether the format can express these; 0, -EINVAL or -EOPNOTSUPP. */
int pt_check_range(const struct gpas_pgtable *table, uint64_t start,
		   uint64_t size);
int pt_check_attr(const struct gpas_format *format, unsigned prot,
		  enum gpas_memtype memtype);
int pt_check_host(const struct gpas_format *format, uint64_t host,
		  uint64_t size);

/*
 * The leaf that maps @gpa, by a lock-free walk: the readers' way in. Returns
 * 0 or -ENOENT, as gpas_pgtable_query().
 */
int pt_lookup(const struct gpas_pgtable *table, uint64_t gpa,
	      struct gpas_extent *ret);

/* The first mapped address from @gpa on, or @end if there is none below it.
 * Lock-free. */
uint64_t pt_next_mapped(const struct gpas_pgtable *table, uint64_t gpa,
			uint64_t end);

/*
 * The extent at @gpa from @gpa on, at most @limit bytes long: start == @gpa
 * and host is the address of @gpa itself. Visits each leaf table once.
 * Returns 0 or -ENOENT. Lock-free.
 */
int pt_extent_at(const struct gpas_pgtable *table, uint64_t gpa, uint64_t limit,
		 struct gpas_extent *ret);

#endif
