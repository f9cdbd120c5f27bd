/* SPDX-License-Identifier: MIT */
/*
 * The mirror: plan, diff, commit.
 *
 * A plan is the list of pieces that should be covered: the table's readable
 * extents, and the absent parts of lazy regions as traps where traps are used.
 * It is a function of the table and the regions alone. The diff against the
 * installed slots keeps every slot that still lies inside one piece, deletes
 * the others, and covers each gap that remains with one new slot: no plan can
 * be reached with fewer ioctls, since a wrong slot cannot be changed in place
 * (KVM allows neither size, address nor READONLY to change) and every gap
 * needs a slot of its own.
 *
 * Only windows (ranges that changed) are looked at. Outside them an installed
 * slot is right by invariant, which is how the remainder of a slot that sticks
 * out of a window is known without reading the table there.
 */
#include "mirror.h"

#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Nodes held back for a release call: an unmap can cut one slot and one trap,
 * and a trap is re-covered by up to two per power of two. */
#define SPARE_SLOTS 96

/* ---- Nodes and numbers -----------------------------------------------------
 */

int mirror_reserve(struct mirror *mirror)
{
	while (mirror->spare_count < SPARE_SLOTS) {
		struct slot *slot = malloc(sizeof(*slot));

		if (slot == NULL) {
			return -ENOMEM;
		}
		slot->link = mirror->spare;
		mirror->spare = slot;
		mirror->spare_count++;
	}
	return 0;
}

static struct slot *take_node(struct mirror *mirror)
{
	struct slot *slot = mirror->spare;

	if (slot == NULL) {
		return malloc(sizeof(*slot));
	}
	mirror->spare = slot->link;
	mirror->spare_count--;
	return slot;
}

static void give_node(struct mirror *mirror, struct slot *slot)
{
	if (mirror->spare_count >= SPARE_SLOTS) {
		free(slot);
		return;
	}
	slot->link = mirror->spare;
	mirror->spare = slot;
	mirror->spare_count++;
}

/* A free slot number. The limit was checked: there is one. */
static uint32_t take_id(struct mirror *mirror)
{
	if (mirror->free_count > 0) {
		return mirror->free_ids[--mirror->free_count];
	}
	return mirror->next_id++;
}

static void give_id(struct mirror *mirror, uint32_t id)
{
	mirror->free_ids[mirror->free_count++] = id;
}

int mirror_create(const struct gpas_kvm_params *params,
		  const struct slot_ops *ops, void *ctx, enum gpas_lazy lazy,
		  struct mirror **ret)
{
	struct mirror *mirror = calloc(1, sizeof(*mirror));

	if (mirror == NULL) {
		return -ENOMEM;
	}
	mirror->ops = ops;
	mirror->ops_ctx = ctx;
	mirror->trap_files[0].fd = -1;
	mirror->trap_files[1].fd = -1;
	mirror->params = *params;
	mirror->lazy = lazy;
	mirror->next_id = params->slot_first;
	mirror->free_ids =
		malloc(params->slot_count * sizeof(*mirror->free_ids));
	if (mirror->free_ids == NULL || mirror_reserve(mirror) != 0) {
		mirror_destroy(mirror);
		return -ENOMEM;
	}
	*ret = mirror;
	return 0;
}

void mirror_destroy(struct mirror *mirror)
{
	struct slot *slot;
	struct span *span;

	while ((slot = mirror->spare) != NULL) {
		mirror->spare = slot->link;
		free(slot);
	}
	while ((span = mirror->slots.first) != NULL) {
		span_remove(&mirror->slots, span);
		free(slot_of(span));
	}
	if (mirror->trap_area.host != NULL) {
		reservation_destroy(&mirror->trap_area);
	}
	free(mirror->free_ids);
	free(mirror);
}

/* ---- Plan: pieces that should be covered ------------------------------------
 */

/* A range that should be covered by slots of one kind. */
struct piece {
	uint64_t start;
	uint64_t end;
	uint64_t host; /* of start; 0 for a trap */
	uint32_t flags;
	bool trap;
};

static struct piece piece_of_slot(const struct slot *slot, uint64_t start,
				  uint64_t end)
{
	return (struct piece){
		.start = start,
		.end = end,
		.host = slot->trap ? 0
				   : slot->host + (start - slot->span.start),
		.flags = slot->flags,
		.trap = slot->trap,
	};
}

/* Whether @b goes on where @a ends, as one slot could. */
static bool continues(const struct piece *a, const struct piece *b)
{
	return a->end == b->start && a->trap == b->trap &&
	       a->flags == b->flags &&
	       (a->trap || a->host + (a->end - a->start) == b->host);
}

/* Walks the pieces of [at, end) in ascending order. */
struct plan {
	const struct gpas *space;
	bool traps;
	uint64_t at;
	uint64_t end;
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent extent; /* the next one; size 0: none left */
};

static void next_extent(struct plan *plan)
{
	if (!gpas_pgtable_cursor_next(&plan->cursor, &plan->extent)) {
		plan->extent = (struct gpas_extent){ .start = { plan->end } };
	}
}

static void plan_init(struct plan *plan, const struct gpas *space,
		      uint64_t start, uint64_t end)
{
	plan->space = space;
	plan->traps = space->mirror->lazy == GPAS_LAZY_TRAP;
	plan->at = start;
	plan->end = end;
	gpas_pgtable_cursor_init(&plan->cursor, space->table,
				 gpas_gpa_at(start), gpas_gpa_at(end));
	next_extent(plan);
}

static bool wants_trap(const struct region *region)
{
	return region->backing->lazy && (region->prot & GPAS_PROT_READ) != 0;
}

/* The next lazy stretch of the hole [plan->at, hole_end), as a trap. */
static bool next_trap(struct plan *plan, uint64_t hole_end, struct piece *ret)
{
	const struct region *region = region_from(plan->space, plan->at);

	while (region != NULL && region->span.start < hole_end &&
	       !wants_trap(region)) {
		region = region_of(region->span.next);
	}
	if (!plan->traps || region == NULL || region->span.start >= hole_end) {
		return false;
	}
	*ret = (struct piece){ .trap = true };
	ret->start =
		region->span.start > plan->at ? region->span.start : plan->at;
	ret->end = region->span.end < hole_end ? region->span.end : hole_end;
	return true;
}

/* The next piece, or false. Neighbours that one slot could cover may come as
 * two pieces: the diff joins them. */
static bool plan_next(struct plan *plan, struct piece *ret)
{
	while (plan->at < plan->end) {
		const struct gpas_extent *extent = &plan->extent;

		if (plan->at < extent->start.value) {
			if (next_trap(plan, extent->start.value, ret)) {
				plan->at = ret->end;
				return true;
			}
			plan->at = extent->start.value;
			continue;
		}
		*ret = (struct piece){
			.start = extent->start.value,
			.end = extent->start.value + extent->size,
			.host = extent->host.value,
		};
		if ((extent->prot & GPAS_PROT_WRITE) == 0) {
			ret->flags = KVM_MEM_READONLY;
		}
		plan->at = ret->end;
		if ((extent->prot & GPAS_PROT_READ) != 0) {
			next_extent(plan);
			return true;
		}
		next_extent(plan);
	}
	return false;
}

/* ---- Diff: which slots go
 * ------------------------------------------------------ */

/* Whether [start, end) of @slot is covered by pieces that @slot serves. */
static bool still_right(const struct gpas *space, const struct slot *slot,
			uint64_t start, uint64_t end)
{
	struct piece mine = piece_of_slot(slot, start, start);
	struct piece piece;
	struct plan plan;

	plan_init(&plan, space, start, end);
	while (plan_next(&plan, &piece)) {
		if (!continues(&mine, &piece)) {
			return false;
		}
		mine.end = piece.end;
	}
	return mine.end == end;
}

static void doom(struct diff *diff, struct slot *slot)
{
	if (slot->doomed) {
		return;
	}
	slot->doomed = true;
	slot->link = NULL;
	*diff->deletes_end = slot;
	diff->deletes_end = &slot->link;
	diff->delete_count++;
}

static bool can_merge(const struct slot *left, const struct slot *right)
{
	struct piece a = piece_of_slot(left, left->span.start, left->span.end);
	struct piece b =
		piece_of_slot(right, right->span.start, right->span.end);

	return continues(&a, &b) &&
	       right->span.end - left->span.start <=
		       (a.trap ? TRAP_MAX_BYTES : SLOT_MAX_BYTES);
}

/* Dooms @slot and each neighbour that could be one slot with it. */
static void doom_to_merge(struct diff *diff, struct slot *slot)
{
	struct slot *before = slot_of(slot->span.prev);
	struct slot *after = slot_of(slot->span.next);

	if (before != NULL && can_merge(before, slot)) {
		doom(diff, before);
		doom(diff, slot);
	}
	if (after != NULL && can_merge(slot, after)) {
		doom(diff, slot);
		doom(diff, after);
	}
}

/* Dooms the slots of a window that no longer fit, and with @merge those that
 * could be one with a neighbour. */
static void doom_window(struct gpas *space, struct diff *diff,
			const struct window *window, bool merge)
{
	struct span *span = span_from(&space->mirror->slots, window->start);

	for (; span != NULL && span->start < window->end; span = span->next) {
		uint64_t start = span->start > window->start ? span->start
							     : window->start;
		uint64_t end =
			span->end < window->end ? span->end : window->end;

		if (!still_right(space, slot_of(span), start, end)) {
			doom(diff, slot_of(span));
		} else if (merge) {
			doom_to_merge(diff, slot_of(span));
		}
	}
}

/* ---- Diff: which slots come
 * ------------------------------------------------------ */

static int add_slot(struct mirror *mirror, struct diff *diff,
		    const struct piece *piece)
{
	struct slot *slot = take_node(mirror);

	if (slot == NULL) {
		return -ENOMEM;
	}
	*slot = (struct slot){
		.span = { .start = piece->start, .end = piece->end },
		.flags = piece->flags,
		.host = piece->host,
		.trap = piece->trap,
	};
	*diff->adds_end = slot;
	diff->adds_end = &slot->link;
	diff->add_count++;
	return 0;
}

/* The largest naturally aligned power of two that starts at @start and ends
 * by @end. Both are page-aligned, start < end. */
static uint64_t buddy_size(uint64_t start, uint64_t end)
{
	uint64_t size = UINT64_C(1) << (63 - __builtin_clzll(end - start));
	uint64_t alignment = start & -start;

	return start != 0 && alignment < size ? alignment : size;
}

/*
 * Covers a gap with as few slots as KVM's limits allow. The rest of a trap
 * that a fault has cut is covered buddy-wise instead: the next fault then
 * replaces a trap of about half the size, and creating a trap costs time in
 * proportion to its size where KVM shadows page tables.
 */
static int cover(struct mirror *mirror, struct diff *diff,
		 const struct piece *gap, bool cut)
{
	uint64_t limit = gap->trap ? TRAP_MAX_BYTES : SLOT_MAX_BYTES;
	struct piece part = *gap;

	while (part.start < gap->end) {
		uint64_t size = gap->end - part.start;
		int err;

		if (cut && gap->trap) {
			size = buddy_size(part.start, gap->end);
		}
		size = size < limit ? size : limit;
		part.end = part.start + size;
		err = add_slot(mirror, diff, &part);
		if (err != 0) {
			return err;
		}
		part.start = part.end;
		part.host += gap->trap ? 0 : size;
	}
	return 0;
}

/* Whether [start, end) touches a trap that is about to be deleted. */
static bool cuts_trap(const struct mirror *mirror, uint64_t start, uint64_t end)
{
	const struct span *span = span_from(&mirror->slots, start);

	for (; span != NULL && span->start < end; span = span->next) {
		const struct slot *slot = (const struct slot *)span;

		if (slot->trap && slot->doomed) {
			return true;
		}
	}
	return false;
}

/* Covers what the slots that stay leave open of @piece. */
static int cover_gaps(struct mirror *mirror, struct diff *diff,
		      const struct piece *piece, bool merge)
{
	struct span *span = span_from(&mirror->slots, piece->start);
	struct piece gap = *piece;
	int err = 0;

	while (err == 0 && gap.start < piece->end) {
		while (span != NULL && slot_of(span)->doomed) {
			span = span->next;
		}
		gap.end = piece->end;
		if (span != NULL && span->start < piece->end) {
			gap.end = span->start > gap.start ? span->start
							  : gap.start;
		}
		if (gap.end > gap.start) {
			err = cover(mirror, diff, &gap,
				    !merge && cuts_trap(mirror, gap.start,
							gap.end));
		}
		gap.start = span != NULL ? span->end : gap.end;
		gap.host = piece->trap
				   ? 0
				   : piece->host + (gap.start - piece->start);
		span = span != NULL ? span->next : NULL;
	}
	return err;
}

/* Joins pieces that come in ascending order and covers them. */
struct coverage {
	struct gpas *space;
	struct diff *diff;
	struct piece pending; /* empty: nothing yet */
	bool merge;
};

static int coverage_flush(struct coverage *coverage)
{
	int err = 0;

	if (coverage->pending.end > coverage->pending.start) {
		err = cover_gaps(coverage->space->mirror, coverage->diff,
				 &coverage->pending, coverage->merge);
	}
	coverage->pending = (struct piece){ 0 };
	return err;
}

static int coverage_add(struct coverage *coverage, const struct piece *piece)
{
	int err;

	if (piece->end <= piece->start) {
		return 0;
	}
	if (coverage->pending.end > coverage->pending.start &&
	    continues(&coverage->pending, piece)) {
		coverage->pending.end = piece->end;
		return 0;
	}
	err = coverage_flush(coverage);
	coverage->pending = *piece;
	return err;
}

/* The part [start, end) of the doomed slots there, which lies outside every
 * window and is therefore still as the slots say. */
static int cover_remainder(struct coverage *coverage, uint64_t start,
			   uint64_t end)
{
	struct span *span = span_from(&coverage->space->mirror->slots, start);
	int err = 0;

	for (; err == 0 && span != NULL && span->start < end;
	     span = span->next) {
		struct slot *slot = slot_of(span);
		uint64_t from = span->start > start ? span->start : start;
		uint64_t to = span->end < end ? span->end : end;

		if (slot->doomed) {
			struct piece piece = piece_of_slot(slot, from, to);

			err = coverage_add(coverage, &piece);
		}
	}
	return err;
}

static int cover_window(struct coverage *coverage, const struct window *window)
{
	struct piece piece;
	struct plan plan;
	int err = 0;

	plan_init(&plan, coverage->space, window->start, window->end);
	while (err == 0 && plan_next(&plan, &piece)) {
		err = coverage_add(coverage, &piece);
	}
	return err;
}

/* The doomed slots reach at most this far below and above the windows. */
static struct window hull_of(const struct gpas *space, const struct diff *diff)
{
	const struct window *last = &space->windows[space->window_count - 1];
	struct window hull = { space->windows[0].start, last->end };

	for (const struct slot *slot = diff->deletes; slot != NULL;
	     slot = slot->link) {
		if (slot->span.start < hull.start) {
			hull.start = slot->span.start;
		}
		if (slot->span.end > hull.end) {
			hull.end = slot->span.end;
		}
	}
	return hull;
}

static int plan_adds(struct gpas *space, struct diff *diff, bool merge)
{
	struct coverage coverage = {
		.space = space,
		.diff = diff,
		.merge = merge,
	};
	struct window hull = hull_of(space, diff);
	uint64_t at = hull.start;
	int err = 0;

	for (size_t i = 0; err == 0 && i < space->window_count; i++) {
		const struct window *window = &space->windows[i];

		err = cover_remainder(&coverage, at, window->start);
		if (err == 0) {
			err = cover_window(&coverage, window);
		}
		at = window->end;
	}
	if (err == 0) {
		err = cover_remainder(&coverage, at, hull.end);
	}
	if (err == 0) {
		err = coverage_flush(&coverage);
	}
	return err;
}

static int compare_windows(const void *a, const void *b)
{
	const struct window *left = (const struct window *)a;
	const struct window *right = (const struct window *)b;

	return left->start < right->start ? -1 : left->start > right->start;
}

/* Sorts the windows and makes them disjoint. */
static void normalise_windows(struct gpas *space)
{
	size_t kept = 0;

	if (space->window_count < 2) {
		return;
	}
	qsort(space->windows, space->window_count, sizeof(*space->windows),
	      compare_windows);
	for (size_t i = 1; i < space->window_count; i++) {
		struct window *last = &space->windows[kept];
		const struct window *next = &space->windows[i];

		if (next->start > last->end) {
			space->windows[++kept] = *next;
		} else if (next->end > last->end) {
			last->end = next->end;
		}
	}
	space->window_count = kept + 1;
}

/* Forgets a diff that was not carried out. */
static void diff_drop(struct mirror *mirror, struct diff *diff)
{
	struct slot *slot;

	for (slot = diff->deletes; slot != NULL; slot = slot->link) {
		slot->doomed = false;
	}
	while ((slot = diff->adds) != NULL) {
		diff->adds = slot->link;
		give_node(mirror, slot);
	}
}

static void diff_init(struct diff *diff)
{
	*diff = (struct diff){ 0 };
	diff->deletes_end = &diff->deletes;
	diff->adds_end = &diff->adds;
}

static int diff_make(struct gpas *space, bool merge, struct diff *diff)
{
	int err;

	diff_init(diff);
	for (size_t i = 0; i < space->window_count; i++) {
		doom_window(space, diff, &space->windows[i], merge);
	}
	err = plan_adds(space, diff, merge);
	if (err != 0) {
		diff_drop(space->mirror, diff);
	}
	return err;
}

/* ---- Commit
 * ------------------------------------------------------------------------ */

static int set_slot(struct gpas *space, const struct slot *slot, bool present,
		    bool again)
{
	struct mirror *mirror = space->mirror;
	struct slot_desc desc = { .id = slot->id, .again = again };
	uint64_t begun = clock_ns();
	int err;

	if (present) {
		desc.flags = slot->flags;
		desc.gpa = slot->span.start;
		desc.size = slot->span.end - slot->span.start;
		desc.host = slot->host;
		desc.trap = slot->trap;
	}
	err = mirror->ops->set(mirror->ops_ctx, &desc);
	count(&space->stats.kvm_ns, clock_ns() - begun);
	count(present ? &space->stats.slot_adds : &space->stats.slot_deletes,
	      1);
	if (err != 0) {
		space_log(
			space, GPAS_LOG_ERROR,
			"KVM refused to %s slot %u (GPA %#llx, %#llx bytes, "
			"flags %#x%s): %s",
			present ? "add" : "delete", slot->id,
			(unsigned long long)slot->span.start,
			(unsigned long long)(slot->span.end - slot->span.start),
			slot->flags, slot->trap ? ", trap" : "",
			strerror(-err));
	}
	return err;
}

static void poison(struct gpas *space)
{
	space->poisoned = true;
	space->mirror->lost = true;
	space_log(space, GPAS_LOG_ERROR,
		  "KVM refused to undo a failed change of its memslots: the "
		  "space accepts only clear, detach and destroy from now on");
}

/* Whether an errno says that this kernel or process gets no traps, rather
 * than that something went wrong this once. */
static bool refuses_traps(int err)
{
	return err == -EOPNOTSUPP || err == -EPERM || err == -ENODEV ||
	       err == -ENOSYS || err == -EMFILE || err == -ENFILE;
}

/* Carries out the diff's ioctls. On error those done are undone again. */
static int issue(struct gpas *space, struct diff *diff)
{
	struct slot *deleted = diff->deletes;
	struct slot *added = diff->adds;
	struct slot *slot;
	int err = 0;

	while (deleted != NULL &&
	       (err = set_slot(space, deleted, false, false)) == 0) {
		deleted = deleted->link;
	}
	while (err == 0 && added != NULL &&
	       (err = set_slot(space, added, true, false)) == 0) {
		added = added->link;
	}
	if (err == 0) {
		return 0;
	}
	if (added != NULL && added->trap && refuses_traps(err)) {
		space->mirror->traps_refused = true;
	}
	for (slot = diff->adds; slot != added; slot = slot->link) {
		if (set_slot(space, slot, false, false) != 0) {
			poison(space);
			return -ENOTRECOVERABLE;
		}
	}
	for (slot = diff->deletes; slot != deleted; slot = slot->link) {
		if (set_slot(space, slot, true, true) != 0) {
			poison(space);
			return -ENOTRECOVERABLE;
		}
	}
	return err;
}

static uint64_t trap_bytes(const struct slot *slot)
{
	uint64_t bytes = 0;

	for (; slot != NULL; slot = slot->link) {
		bytes += slot->trap ? slot->span.end - slot->span.start : 0;
	}
	return bytes;
}

/* Obtains what the diff's traps need, before any slot is touched. */
static int prepare_traps(struct mirror *mirror, const struct diff *diff)
{
	uint64_t adds = trap_bytes(diff->adds);
	uint64_t deletes = trap_bytes(diff->deletes);
	int err;

	if (mirror->ops->prepare == NULL || adds + deletes == 0) {
		return 0;
	}
	err = mirror->ops->prepare(mirror->ops_ctx, adds, deletes);
	mirror->traps_refused = refuses_traps(err);
	return err;
}

/* Prepares, issues and ends. */
static int carry_out(struct gpas *space, struct diff *diff)
{
	struct mirror *mirror = space->mirror;
	int err = prepare_traps(mirror, diff);

	if (err != 0) {
		return err;
	}
	err = issue(space, diff);
	if (mirror->ops->finish != NULL) {
		mirror->ops->finish(mirror->ops_ctx);
	}
	return err;
}

/* The numbers for the new slots; those of the slots that go may serve. */
static void number_adds(struct mirror *mirror, struct diff *diff)
{
	struct slot *reuse = diff->deletes;

	for (struct slot *slot = diff->adds; slot != NULL; slot = slot->link) {
		if (reuse != NULL) {
			slot->id = reuse->id;
			reuse = reuse->link;
		} else {
			slot->id = take_id(mirror);
		}
	}
}

/* Gives back the numbers that number_adds took beyond the reused ones. */
static void unnumber_adds(struct mirror *mirror, struct diff *diff)
{
	size_t reused = diff->delete_count;

	for (struct slot *slot = diff->adds; slot != NULL; slot = slot->link) {
		if (reused > 0) {
			reused--;
		} else {
			give_id(mirror, slot->id);
		}
	}
}

/* Publishes a diff that KVM accepted in the set of installed slots. */
static void diff_apply(struct mirror *mirror, struct diff *diff)
{
	size_t reused = diff->add_count;
	struct slot *next;

	for (struct slot *slot = diff->deletes; slot != NULL; slot = next) {
		next = slot->link;
		span_remove(&mirror->slots, &slot->span);
		mirror->trap_count -= slot->trap;
		if (reused > 0) {
			reused--;
		} else {
			give_id(mirror, slot->id);
		}
		give_node(mirror, slot);
	}
	for (struct slot *slot = diff->adds; slot != NULL; slot = next) {
		next = slot->link;
		(void)span_insert(&mirror->slots, &slot->span);
		mirror->trap_count += slot->trap;
	}
}

bool mirror_is_live(const struct mirror *mirror)
{
	const struct gpas_vcpu *vcpu;

	for (vcpu = mirror->vcpus; vcpu != NULL; vcpu = vcpu->next) {
		if (gpas_vcpu_running(vcpu)) {
			return true;
		}
	}
	return false;
}

/* Whether memory (or a trap) that is there before and after would be gone in
 * between: some new slot overlaps one that goes. */
static bool replaces(const struct mirror *mirror, const struct diff *diff)
{
	for (const struct slot *slot = diff->adds; slot != NULL;
	     slot = slot->link) {
		const struct span *span =
			span_from(&mirror->slots, slot->span.start);

		if (diff->deletes != NULL && span != NULL &&
		    span->start < slot->span.end) {
			return true;
		}
	}
	return false;
}

static void release_vcpus(struct gpas *space, bool paused)
{
	struct mirror *mirror = space->mirror;

	atomic_store(&mirror->replacing, 0);
	if (paused && mirror->params.resume != NULL) {
		mirror->params.resume(mirror->params.ctx);
	}
}

/* Sees to it that no vCPU runs until release_vcpus(). *@paused: whether the
 * embedder's callback was called. */
static int hold_vcpus(struct gpas *space, bool *paused)
{
	struct mirror *mirror = space->mirror;

	*paused = false;
	atomic_store(&mirror->replacing, 1);
	if (!mirror_is_live(mirror)) {
		return 0;
	}
	if (mirror->params.pause == NULL) {
		atomic_store(&mirror->replacing, 0);
		space_log(space, GPAS_LOG_ERROR,
			  "refused: the change replaces a memslot while a vCPU "
			  "runs, and no pause callback was given");
		return -EBUSY;
	}
	*paused = true;
	count(&space->stats.pauses, 1);
	mirror->params.pause(mirror->params.ctx);
	if (!mirror_is_live(mirror)) {
		return 0;
	}
	release_vcpus(space, true);
	space_log(space, GPAS_LOG_ERROR,
		  "refused: the pause callback returned while a vCPU runs");
	return -EBUSY;
}

static int commit(struct gpas *space, struct diff *diff)
{
	struct mirror *mirror = space->mirror;
	bool hold = replaces(mirror, diff);
	bool paused = false;
	int err = hold ? hold_vcpus(space, &paused) : 0;

	if (err != 0) {
		diff_drop(mirror, diff);
		return err;
	}
	number_adds(mirror, diff);
	err = carry_out(space, diff);
	if (err == 0) {
		diff_apply(mirror, diff);
	} else {
		unnumber_adds(mirror, diff);
		diff_drop(mirror, diff);
	}
	if (hold) {
		release_vcpus(space, paused);
	}
	return err;
}

static bool fits(const struct mirror *mirror, const struct diff *diff)
{
	return mirror->slots.count + diff->add_count - diff->delete_count <=
	       mirror->params.slot_count;
}

/* Replans with every window's slots merged, and if that is not enough with
 * the whole space as one window. */
static int diff_squeeze(struct gpas *space, struct diff *diff)
{
	int err;

	diff_drop(space->mirror, diff);
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
	err = diff_make(space, true, diff);
	if (err == 0 && !fits(space->mirror, diff)) {
		space_log(space, GPAS_LOG_ERROR,
			  "no memslot left: %zu in use, %zu more wanted, %u "
			  "allowed",
			  space->mirror->slots.count,
			  diff->add_count - diff->delete_count,
			  space->mirror->params.slot_count);
		diff_drop(space->mirror, diff);
		err = -ENOSPC;
	}
	return err;
}

/* Makes and carries out one diff. */
static int update(struct gpas *space, bool merge)
{
	struct diff diff;
	int err;

	normalise_windows(space);
	err = diff_make(space, merge && !mirror_is_live(space->mirror), &diff);
	if (err == 0 && !fits(space->mirror, &diff)) {
		err = diff_squeeze(space, &diff);
	}
	if (err == 0) {
		err = commit(space, &diff);
	}
	return err;
}

/* Lazy memory faults by absent slots from now on, everywhere. */
static void give_up_traps(struct gpas *space)
{
	struct mirror *mirror = space->mirror;

	mirror->traps_refused = false;
	mirror->lazy = GPAS_LAZY_ABSENT;
	(void)snprintf(mirror->lazy_reason, sizeof(mirror->lazy_reason),
		       "a trap slot was refused while running");
	space_log(space, GPAS_LOG_WARNING,
		  "%s: lazy memory faults by absent slots from now on",
		  mirror->lazy_reason);
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
}

int mirror_update(struct gpas *space, bool merge)
{
	struct mirror *mirror = space->mirror;
	int err;

	if (mirror->lost) {
		return mirror_remove_all(space);
	}
	err = update(space, merge);
	if (mirror->traps_refused && err != -ENOTRECOVERABLE) {
		give_up_traps(space);
		err = update(space, merge);
	}
	return err;
}

int mirror_attach(struct gpas *space, struct mirror *mirror)
{
	bool locked = space_lock(space);
	int err = 0;

	if (space->mirror != NULL || !locked) {
		err = -EBUSY;
	} else {
		space->mirror = mirror;
		space->windows[0] = (struct window){ space->base, space->end };
		space->window_count = 1;
		err = mirror_update(space, false);
		space->window_count = 0;
		if (err != 0) {
			space->mirror = NULL;
			space->poisoned = false;
		}
	}
	space_unlock(space, locked);
	return err;
}

/* With slots lost track of, every number that was ever used may be one. */
static void remove_lost(struct gpas *space)
{
	struct mirror *mirror = space->mirror;
	struct slot_desc desc = { 0 };

	for (uint32_t id = mirror->params.slot_first; id < mirror->next_id;
	     id++) {
		desc.id = id;
		/* -EINVAL says there was none. */
		(void)mirror->ops->set(mirror->ops_ctx, &desc);
	}
}

int mirror_remove_all(struct gpas *space)
{
	struct mirror *mirror = space->mirror;
	struct span *span;
	int first_error = 0;

	if (mirror->lost) {
		remove_lost(space);
	}
	while ((span = mirror->slots.first) != NULL) {
		struct slot *slot = slot_of(span);
		int err =
			mirror->lost ? 0 : set_slot(space, slot, false, false);

		first_error = first_error != 0 ? first_error : err;
		span_remove(&mirror->slots, span);
		free(slot);
	}
	mirror->trap_count = 0;
	mirror->free_count = 0;
	mirror->next_id = mirror->params.slot_first;
	mirror->lost = false;
	space->poisoned = false;
	return first_error;
}

int mirror_check(struct gpas *space)
{
	struct diff diff;
	bool wrong;

	/* Inside a group the slots lag behind on purpose. */
	if (space->mirror == NULL || space->mirror->lost ||
	    space->window_count != 0) {
		return 0;
	}
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
	wrong = diff_make(space, false, &diff) != 0;
	space->window_count = 0;
	if (!wrong) {
		wrong = diff.add_count != 0 || diff.delete_count != 0;
		diff_drop(space->mirror, &diff);
	}
	return wrong || span_check(&space->mirror->slots) != 0 ? -EUCLEAN : 0;
}
