/* SPDX-License-Identifier: MIT */
/*
 * The journal: what changes to a table have overwritten, newest last.
 *
 * A record speaks of a run of entries in one node. Where the old entries were
 * an arithmetic progression, which includes empty runs and single entries, the
 * record is four words however long the run is; else it follows a copy of
 * them. The journal lives in table pages, so the one thing that can fail about
 * it is the taking of a page. pt_mark(), pt_undo(), pt_settle() and
 * pt_has_garbage() of pgtable.h are implemented here.
 */
#ifndef GPAS_SRC_PGJOURNAL_H
#define GPAS_SRC_PGJOURNAL_H

#include <gpas/pgtable.h>

struct journal_page;

/*
 * Invariants: there is a top page, if only an empty one; pages below it end
 * with a record; garbage counts the records that hold a node which dropped
 * out of the table and is still to be freed.
 */
struct journal {
	struct journal_page *top;
	size_t base; /* position of the top page's first word */
	size_t used; /* words used in the top page */
	size_t garbage;
};

/*
 * Each notes @count entries of a linked node of @level before they are
 * overwritten. A run longer than one may be overwritten only with values that
 * are not tables. 0 or -ENOMEM.
 */

/* The entries are first, first + step, ...; if more than one, none a table. */
int journal_run(struct gpas_pgtable *table, uint64_t *entries, size_t count,
		unsigned level, uint64_t step);

/* The entries are anything. */
int journal_any(struct gpas_pgtable *table, uint64_t *entries, size_t count,
		unsigned level);

/* An empty journal of one page, which it keeps: 0 or -ENOMEM. */
int journal_init(struct gpas_pgtable *table);

/* Settles and frees the page. Allowed when init failed or was not called. */
void journal_fini(struct gpas_pgtable *table);

#endif
