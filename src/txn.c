/* SPDX-License-Identifier: MIT */
/*
 * Transactions: changes of the region set and the table that either all
 * happen or leave no trace.
 *
 * A change is made at once and noted in a journal. When a call fails, its part
 * of the journal is undone; when the outermost call succeeds, the slots are
 * brought in line, and if that fails everything is undone. Nothing a reader
 * might still look at is freed before it has left: regions that dropped out
 * wait in the graveyard, table pages in the table's own journal.
 */
#include "mirror.h"
#include "space.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* One release call outside a group: two splits and a removal. */
#define RELEASE_CHANGES 4
#define SPARE_REGIONS	2

static void backing_release(struct backing *backing)
{
	gpas_memory_put(backing->memory);
	if (backing->claim != NULL) {
		claim_put(backing->claim);
	}
	if (backing->ops.release != NULL) {
		backing->ops.release(backing->ops.ctx);
	}
	free(backing);
}

void backing_put(struct backing *backing)
{
	if (atomic_fetch_sub(&backing->refs, 1) == 1) {
		backing_release(backing);
	}
}

void backing_expire(struct gpas *space, struct backing *backing)
{
	if (atomic_fetch_sub(&backing->refs, 1) == 1) {
		uffd_remove(space, backing);
		backing->next = space->expired;
		space->expired = backing;
	}
}

static void unlock_and_release(struct gpas *space)
{
	struct backing *backing = space->expired;
	struct backing *next;

	space->expired = NULL;
	pthread_mutex_unlock(&space->lock);
	for (; backing != NULL; backing = next) {
		next = backing->next;
		backing_release(backing);
	}
}

void txn_unlock(struct txn *txn)
{
	if (!txn->grouped) {
		unlock_and_release(txn->space);
	}
}

/* ---- Memory the journal needs -------------------------------------- */

/* Room for @more elements after @used; grows geometrically. */
static int ensure_room(void **array, size_t *capacity, size_t used, size_t more,
		       size_t element)
{
	size_t wanted = *capacity == 0 ? 16 : *capacity;
	void *grown;

	if (used + more <= *capacity) {
		return 0;
	}
	while (wanted < used + more) {
		wanted *= 2;
	}
	grown = realloc(*array, wanted * element);
	if (grown == NULL) {
		return -ENOMEM;
	}
	*array = grown;
	*capacity = wanted;
	return 0;
}

static int ensure_changes(struct gpas *space, size_t more)
{
	return ensure_room((void **)&space->changes, &space->change_capacity,
			   space->change_count, more, sizeof(struct change));
}

static int ensure_windows(struct gpas *space, size_t more)
{
	return ensure_room((void **)&space->windows, &space->window_capacity,
			   space->window_count, more, sizeof(struct window));
}

static void note(struct gpas *space, struct change change)
{
	space->changes[space->change_count++] = change;
}

/* Aligned, so that what a search reads of a region is in one cache line. */
static struct region *new_region(void)
{
	return aligned_alloc(alignof(struct region), sizeof(struct region));
}

/* Those that are not in reserve but merely at hand: as many as an eighth of
 * those in use, so that mapping and unmapping in turn does not allocate. */
static void give_spare(struct gpas *space, struct region *region)
{
	if (space->spare_count >= SPARE_REGIONS + space->regions.count / 8) {
		free(region);
		return;
	}
	region->span.next = space->spare != NULL ? &space->spare->span : NULL;
	space->spare = region;
	space->spare_count++;
}

static struct region *take_spare(struct gpas *space)
{
	struct region *region = space->spare;

	if (region == NULL) {
		return new_region();
	}
	space->spare = region_of(region->span.next);
	space->spare_count--;
	return region;
}

/* Fills every reserve that one release call may draw on. */
static int refill(struct gpas *space)
{
	while (space->spare_count < SPARE_REGIONS) {
		struct region *region = new_region();

		if (region == NULL) {
			return -ENOMEM;
		}
		give_spare(space, region);
	}
	if (ensure_changes(space, RELEASE_CHANGES) != 0 ||
	    ensure_windows(space, 1) != 0 || pt_reserve(space->table) != 0) {
		return -ENOMEM;
	}
	return space->mirror != NULL ? mirror_reserve(space->mirror) : 0;
}

/* ---- Steps on the region set --------------------------------------- */

int txn_touch(struct gpas *space, uint64_t start, uint64_t end)
{
	struct window *last;

	space->generation++;
	if (space->window_count > 0) {
		last = &space->windows[space->window_count - 1];
		if (start >= last->start && start <= last->end) {
			last->end = end > last->end ? end : last->end;
			return 0;
		}
	}
	if (ensure_windows(space, 1) != 0) {
		return -ENOMEM;
	}
	space->windows[space->window_count++] =
		(struct window){ .start = start, .end = end };
	return 0;
}

int txn_insert(struct gpas *space, struct backing *backing, uint64_t start,
	       uint64_t end, unsigned prot, struct region **ret)
{
	struct region *region;

	if (ensure_changes(space, 1) != 0) {
		return -ENOMEM;
	}
	region = space->spare_count > SPARE_REGIONS ? take_spare(space)
						    : new_region();
	if (region == NULL) {
		return -ENOMEM;
	}
	*region = (struct region){
		.span = { .start = start, .end = end },
		.backing = backing,
		.prot = prot,
	};
	if (span_insert(&space->regions, &region->span) != 0) {
		give_spare(space, region);
		return -EEXIST;
	}
	note(space, (struct change){ CHANGE_INSERT, .region = region });
	*ret = region;
	return 0;
}

/* Splits @left at @at, which is inside it. The part from @at on is next. */
static int split(struct gpas *space, struct region *left, uint64_t at)
{
	struct region *right;

	if (ensure_changes(space, 1) != 0) {
		return -ENOMEM;
	}
	right = take_spare(space);
	if (right == NULL) {
		return -ENOMEM;
	}
	*right = *left;
	right->span.start = at;
	right->offset += at - left->span.start;
	left->span.end = at;
	atomic_fetch_add(&left->backing->refs, 1);
	(void)span_insert(&space->regions, &right->span);
	note(space,
	     (struct change){ CHANGE_SPLIT, .region = left, .other = right });
	return 0;
}

/*
 * Makes @start and @end boundaries between regions. *@first is the first region
 * that ends above @start, or NULL; on return the first one from @start on.
 */
static int carve(struct gpas *space, struct region **first, uint64_t start,
		 uint64_t end)
{
	struct region *region = *first;
	int err = 0;

	if (region != NULL && region->span.start < start) {
		err = split(space, region, start);
		if (err != 0) {
			return err;
		}
		region = region_of(region->span.next);
	}
	*first = region;
	while (region != NULL && region->span.end <= end) {
		region = region_of(region->span.next);
	}
	if (region != NULL && region->span.start < end) {
		err = split(space, region, end);
	}
	return err;
}

int txn_remove(struct gpas *space, uint64_t start, uint64_t end)
{
	struct region *first = region_from(space, start);
	struct region *last = NULL;
	struct span *span;
	int err = carve(space, &first, start, end);

	if (err == 0) {
		err = ensure_changes(space, 1);
	}
	if (err != 0 || first == NULL || first->span.start >= end) {
		return err;
	}
	txn_discharge(space, start, end);
	/* A removed span keeps its next pointer, so the run stays linked. */
	for (span = &first->span; span != NULL && span->start < end;
	     span = span->next) {
		last = region_of(span);
		span_remove(&space->regions, span);
	}
	note(space,
	     (struct change){ CHANGE_REMOVE, .region = first, .other = last });
	space->wait_for_readers = true;
	space->reservation_busy = true;
	return 0;
}

static bool can_join(const struct region *left, const struct region *right)
{
	return left->span.end == right->span.start &&
	       left->backing == right->backing && left->prot == right->prot &&
	       left->offset + (left->span.end - left->span.start) ==
		       right->offset;
}

/* Joins what need not be apart from @left on, up to the region that begins at
 * @end. */
static int join_between(struct gpas *space, struct region *left, uint64_t end)
{
	struct region *right;

	while (left->span.next != NULL) {
		right = region_of(left->span.next);
		if (right->span.start > end) {
			break;
		}
		if (!can_join(left, right)) {
			left = right;
			continue;
		}
		if (ensure_changes(space, 1) != 0) {
			return -ENOMEM;
		}
		span_remove(&space->regions, &right->span);
		left->span.end = right->span.end;
		note(space, (struct change){ CHANGE_JOIN, .region = left,
					     .other = right });
	}
	return 0;
}

int txn_set_prot(struct gpas *space, struct region **first, uint64_t start,
		 uint64_t end, unsigned prot)
{
	struct region *region;
	int err = carve(space, first, start, end);

	if (err != 0) {
		return err;
	}
	for (region = *first; region != NULL && region->span.start < end;
	     region = region_of(region->span.next)) {
		if (ensure_changes(space, 1) != 0) {
			return -ENOMEM;
		}
		note(space, (struct change){ CHANGE_PROT, .region = region,
					     .prot = region->prot });
		region->prot = prot;
	}
	space->wait_for_readers = true;
	region = *first;
	if (region->span.prev != NULL) {
		region = region_of(region->span.prev);
	}
	err = join_between(space, region, end);
	/* The region from @start on may have become part of the one before. */
	*first = region->span.end > start ? region
					  : region_of(region->span.next);
	return err;
}

void txn_discharge(struct gpas *space, uint64_t start, uint64_t end)
{
	struct region *region = region_from(space, start);

	if (space->budget == 0) {
		return;
	}
	for (; region != NULL && region->span.start < end;
	     region = region_of(region->span.next)) {
		uint64_t at =
			region->span.start > start ? region->span.start : start;
		uint64_t to = region->span.end < end ? region->span.end : end;
		struct gpas_pgtable_cursor cursor;
		struct gpas_extent extent;

		if (!is_charged(region->backing)) {
			continue;
		}
		gpas_pgtable_cursor_init(&cursor, space->table, gpas_gpa_at(at),
					 gpas_gpa_at(to));
		while (gpas_pgtable_cursor_next(&cursor, &extent)) {
			space->charged -= extent.size;
		}
	}
}

int txn_expect_populate(struct gpas *space)
{
	return ensure_changes(space, 1);
}

void txn_note_populate(struct gpas *space, struct region *region,
		       uint64_t start, uint64_t end)
{
	note(space, (struct change){ CHANGE_POPULATE, .region = region,
				     .start = start, .end = end });
}

/* ---- Undo and burial ----------------------------------------------- */

static void bury(struct gpas *space, struct region *region)
{
	region->span.next =
		space->graveyard != NULL ? &space->graveyard->span : NULL;
	space->graveyard = region;
}

static void drop_node(struct gpas *space, struct region *region)
{
	backing_expire(space, region->backing);
	give_spare(space, region);
}

static void reinsert_run(struct gpas *space, struct region *first,
			 struct region *last)
{
	struct region *next;

	for (struct region *region = first;; region = next) {
		next = region_of(region->span.next);
		(void)span_insert(&space->regions, &region->span);
		if (region == last) {
			break;
		}
	}
}

/* Takes back what was provided for a part of a region that is absent again. */
static void take_back(const struct change *change)
{
	const struct region *region = change->region;
	struct backing *backing = region->backing;
	uint64_t offset = region->offset + change->start - region->span.start;
	uint64_t size = change->end - change->start;

	if (backing->kind == GPAS_REGION_BACKEND) {
		if (backing->ops.retire != NULL) {
			backing->ops.retire(backing->ops.ctx, offset, size);
		}
	} else if (backing->lazy &&
		   !memory_belongs_to_others(backing->memory)) {
		(void)gpas_memory_discard(backing->memory, offset, size);
	}
}

static void undo_change(struct gpas *space, const struct change *change)
{
	struct region *region = change->region;
	struct region *other = change->other;

	switch (change->kind) {
	case CHANGE_INSERT:
		span_remove(&space->regions, &region->span);
		region->undone = true;
		bury(space, region);
		space->wait_for_readers = true;
		space->reservation_busy = true;
		break;
	case CHANGE_REMOVE:
		reinsert_run(space, region, other);
		break;
	case CHANGE_SPLIT:
		span_remove(&space->regions, &other->span);
		region->span.end = other->span.end;
		drop_node(space, other);
		break;
	case CHANGE_JOIN:
		region->span.end = other->span.start;
		(void)span_insert(&space->regions, &other->span);
		break;
	case CHANGE_PROT:
		region->prot = change->prot;
		break;
	case CHANGE_POPULATE:
		/* The table was undone first. */
		readers_wait(&space->readers);
		take_back(change);
		break;
	}
}

static void undo_to(struct gpas *space, const struct txn *txn)
{
	if (pt_mark(space->table) != txn->table_mark) {
		/* Readers may have seen what is about to go. */
		space->wait_for_readers = true;
	}
	pt_undo(space->table, txn->table_mark);
	while (space->change_count > txn->change_mark) {
		undo_change(space, &space->changes[--space->change_count]);
	}
	space->window_count = txn->window_mark;
	space->charged = txn->charge_mark;
	space->generation++;
	readers_forget(&space->readers);
}

static void settle_change(struct gpas *space, const struct change *change)
{
	struct region *next;

	if (change->kind == CHANGE_JOIN) {
		drop_node(space, change->other);
	}
	if (change->kind != CHANGE_REMOVE) {
		return;
	}
	for (struct region *region = change->region;; region = next) {
		next = region_of(region->span.next);
		bury(space, region);
		if (region == change->other) {
			break;
		}
	}
}

/* Gives back what a region held. No reader and no slot uses it any more. */
static void retire(struct gpas *space, struct region *region)
{
	struct backing *backing = region->backing;
	uint64_t size = region->span.end - region->span.start;

	if (backing->kind == GPAS_REGION_ALLOC) {
		uffd_forget_failures(space, backing->host + region->offset,
				     size);
		memory_retire(backing->memory, region->offset, size);
	}
	if (backing->kind == GPAS_REGION_BACKEND && !region->undone &&
	    backing->ops.retire != NULL) {
		backing->ops.retire(backing->ops.ctx, region->offset, size);
	}
	backing_expire(space, backing);
}

/* Makes what is in the journal final and frees what dropped out. */
static void settle(struct gpas *space)
{
	struct region *region;

	for (size_t i = 0; i < space->change_count; i++) {
		settle_change(space, &space->changes[i]);
	}
	if (space->wait_for_readers || pt_has_garbage(space->table)) {
		readers_wait(&space->readers);
	}
	pt_settle(space->table);
	while ((region = space->graveyard) != NULL) {
		space->graveyard = region_of(region->span.next);
		retire(space, region);
		give_spare(space, region);
	}
	space->change_count = 0;
	space->window_count = 0;
	space->wait_for_readers = false;
	space->merge = false;
	space->reservation_busy = false;
	space->settled_charge = space->charged;
}

/* ---- Calls and groups ---------------------------------------------- */

/* How often a change looks again whether a vCPU still waits to enter. */
#define MAKE_WAY_TURNS 1000
/* A mutex is not fair: who changes slots back to back would keep vCPUs out. */
static void make_way(struct gpas *space)
{
	for (int turn = 0;
	     turn < MAKE_WAY_TURNS && atomic_load(&space->entering) != 0;
	     turn++) {
		sched_yield();
	}
}

bool txn_lock(struct gpas *space)
{
	if (space_owns_group(space)) {
		return false;
	}
	make_way(space);
	pthread_mutex_lock(&space->lock);
	return true;
}

int txn_begin(struct gpas *space, enum txn_mode mode, bool locked,
	      struct txn *txn)
{
	int err = 0;

	if (space->poisoned && mode != TXN_CLEAR) {
		err = -ENOTRECOVERABLE;
	} else if (refill(space) != 0 && mode == TXN_TAKE) {
		err = -ENOMEM;
	}
	if (err != 0) {
		space_unlock(space, locked);
		return err;
	}
	*txn = (struct txn){
		.space = space,
		.grouped = !locked,
		.change_mark = space->change_count,
		.table_mark = pt_mark(space->table),
		.window_mark = space->window_count,
		.charge_mark = space->charged,
	};
	return 0;
}

int txn_open(struct gpas *space, enum txn_mode mode, struct txn *txn)
{
	return txn_begin(space, mode, txn_lock(space), txn);
}

/* The transaction that began when the journal was empty. */
static struct txn everything(struct gpas *space)
{
	return (struct txn){
		.space = space,
		.charge_mark = space->settled_charge,
	};
}

/* Brings KVM in line with everything since the journal was empty. */
static int finish(struct gpas *space, bool merge)
{
	struct txn all = everything(space);
	int err = 0;

	if (space->mirror != NULL && space->window_count > 0) {
		err = mirror_update(space, merge);
	}
	if (err != 0) {
		undo_to(space, &all);
	}
	settle(space);
	return err;
}

int txn_conclude(struct txn *txn, int err)
{
	struct gpas *space = txn->space;

	if (err != 0) {
		undo_to(space, txn);
	}
	if (txn->grouped) {
		/* Seen at once, waited for at the group's end. */
		readers_forget(&space->readers);
		return err;
	}
	if (err != 0) {
		settle(space);
		return err;
	}
	return finish(space, false);
}

int txn_close(struct txn *txn, int err)
{
	err = txn_conclude(txn, err);
	txn_unlock(txn);
	return err;
}

int gpas_begin(struct gpas *space)
{
	struct txn txn;
	int err;

	if (space_owns_group(space)) {
		return -EBUSY;
	}
	err = txn_open(space, TXN_RELEASE, &txn);
	if (err == 0) {
		atomic_store_explicit(&space->group_owner,
				      (uintptr_t)pthread_self(),
				      memory_order_relaxed);
	}
	return err;
}

static int end_group(struct gpas *space, bool commit)
{
	struct txn all;
	int err = 0;

	if (!space_owns_group(space)) {
		return -EINVAL;
	}
	all = everything(space);
	if (commit) {
		err = finish(space, true);
	} else {
		undo_to(space, &all);
		settle(space);
	}
	atomic_store_explicit(&space->group_owner, 0, memory_order_relaxed);
	unlock_and_release(space);
	return err;
}

int gpas_commit(struct gpas *space)
{
	return end_group(space, true);
}

int gpas_abort(struct gpas *space)
{
	return end_group(space, false);
}
