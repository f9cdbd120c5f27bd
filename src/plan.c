/* SPDX-License-Identifier: MIT */
/*
 * The mirror's plan and diff: which slots the table asks for, and which must
 * go and come to get there.
 *
 * A plan is the list of pieces that should be covered: the table's readable
 * extents, and the absent parts of lazy regions as traps where traps are used.
 * It is a function of the table and the regions alone. The diff against the
 * installed slots keeps every slot that still lies inside one piece, deletes
 * the others, and covers each gap that remains with one new slot: no plan can
 * be reached with fewer ioctls, since a wrong slot cannot be changed in place
 * (KVM allows neither size, address nor READONLY to change) and every gap
 * needs a slot of its own. A merging diff instead replaces the slots of every
 * piece that fewer could cover.
 *
 * Only windows (ranges that changed) are looked at. Outside them an installed
 * slot is right by invariant, which is how the remainder of a slot that sticks
 * out of a window is known without reading the table there.
 */
#include "mirror.h"

#include <linux/kvm.h>
#include <stdlib.h>

/* ---- Plan: pieces that should be covered --------------------------- */

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

/* What should cover [start, end) of a lazy region where nothing is present. */
static struct piece absent_piece(const struct region *region, uint64_t start,
				 uint64_t end)
{
	const struct backing *backing = region->backing;
	struct piece piece = { .start = start, .end = end };

	if (!backing->uffd) {
		piece.trap = true;
		return piece;
	}
	/* A missing page faults in the host: the slot is there already. */
	piece.host =
		backing->host + region->offset + (start - region->span.start);
	if ((region->prot & GPAS_PROT_WRITE) == 0) {
		piece.flags = KVM_MEM_READONLY;
	}
	return piece;
}

/* Whether the absent parts of @region are covered by slots all the same. */
static bool covers_absent(const struct plan *plan, const struct region *region)
{
	return region->backing->lazy && (region->prot & GPAS_PROT_READ) != 0 &&
	       (plan->traps || region->backing->uffd);
}

/* The next lazy stretch of the hole [plan->at, hole_end) that is covered. */
static bool next_absent(struct plan *plan, uint64_t hole_end, struct piece *ret)
{
	const struct region *region = region_from(plan->space, plan->at);
	uint64_t start;
	uint64_t end;

	while (region != NULL && region->span.start < hole_end &&
	       !covers_absent(plan, region)) {
		region = region_of(region->span.next);
	}
	if (region == NULL || region->span.start >= hole_end) {
		return false;
	}
	start = region->span.start > plan->at ? region->span.start : plan->at;
	end = region->span.end < hole_end ? region->span.end : hole_end;
	*ret = absent_piece(region, start, end);
	return true;
}

/* The next piece, or false. Neighbours that one slot could cover may come as
 * two pieces: the diff joins them. */
static bool plan_next(struct plan *plan, struct piece *ret)
{
	while (plan->at < plan->end) {
		const struct gpas_extent *extent = &plan->extent;

		if (plan->at < extent->start.value) {
			if (next_absent(plan, extent->start.value, ret)) {
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

/* ---- Diff: which slots go ------------------------------------------ */

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

/* Dooms the slots of a window that no longer fit. */
static void doom_window(struct gpas *space, struct diff *diff,
			const struct window *window)
{
	struct span *span = span_from(&space->mirror->slots, window->start);

	for (; span != NULL && span->start < window->end; span = span->next) {
		uint64_t start = span->start > window->start ? span->start
							     : window->start;
		uint64_t end =
			span->end < window->end ? span->end : window->end;

		if (!still_right(space, slot_of(span), start, end)) {
			doom(diff, slot_of(span));
		}
	}
}

/* ---- Diff: which slots come ---------------------------------------- */

static int add_slot(struct mirror *mirror, struct diff *diff,
		    const struct piece *piece)
{
	struct slot *slot = mirror_take_node(mirror);

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

/* The largest slot of a piece's kind. */
static uint64_t slot_limit(const struct mirror *mirror,
			   const struct piece *piece)
{
	return piece->trap ? mirror->trap_chunk : SLOT_MAX_BYTES;
}

/* Lets no piece take more than this share of all slots as chunks of a trap, nor
 * all pieces together more than half. */
#define CHUNK_SHARE 4

static void fit_chunk(struct mirror *mirror, uint64_t size)
{
	uint64_t half = mirror->params.slot_count / 2;
	uint64_t left =
		half > mirror->slots.count ? half - mirror->slots.count : 0;
	uint64_t chunks = mirror->params.slot_count / CHUNK_SHARE + 1;

	chunks = chunks < left ? chunks : left;
	while (mirror->trap_chunk < mirror->trap_max &&
	       size / mirror->trap_chunk > chunks) {
		mirror->trap_chunk *= 2;
	}
}

/*
 * How much of [start, end), the rest of a trap that a fault has cut, the next
 * trap covers. Creating a trap can cost time in proportion to its size, so the
 * rest is cut buddy-wise: the next fault replaces a trap of about half the
 * size. Below a grain a smaller trap would save nothing, and when slots get
 * scarce they are worth more than the time.
 */
static uint64_t cut_size(const struct mirror *mirror, uint64_t start,
			 uint64_t end)
{
	uint64_t grain = mirror->trap_grain;
	uint64_t to_grain = grain - (start & (grain - 1));

	if (end - start <= grain ||
	    mirror->slots.count > mirror->params.slot_count / 2) {
		return end - start;
	}
	if (to_grain != grain) {
		return to_grain;
	}
	return buddy_size(start, end - (end & (grain - 1)));
}

/* How much of the gap from @start on one slot covers. Chunks are aligned. */
static uint64_t cover_size(const struct mirror *mirror, const struct piece *gap,
			   uint64_t start, bool cut)
{
	uint64_t limit = slot_limit(mirror, gap);
	uint64_t size = gap->end - start;

	if (!gap->trap) {
		return size < limit ? size : limit;
	}
	limit -= start & (limit - 1);
	size = cut ? cut_size(mirror, start, gap->end) : size;
	return size < limit ? size : limit;
}

/* Covers a gap: with as few slots as the limits allow, or as the rest of a
 * trap that is @cut. */
static int cover(struct mirror *mirror, struct diff *diff,
		 const struct piece *gap, bool cut)
{
	struct piece part = *gap;

	if (gap->trap) {
		fit_chunk(mirror, gap->end - gap->start);
	}
	while (part.start < gap->end) {
		uint64_t size = cover_size(mirror, gap, part.start, cut);
		int err;

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
		while (span != NULL && span->start < piece->end &&
		       slot_of(span)->doomed) {
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

/* Whether the slots that stay cover @piece without a gap, and no fewer could.
 */
static bool is_tiled(const struct mirror *mirror, const struct piece *piece)
{
	uint64_t limit = slot_limit(mirror, piece);
	/* Chunks of a trap begin at multiples of the limit. */
	uint64_t first = piece->trap ? piece->start & (limit - 1) : 0;
	uint64_t needed =
		(first + piece->end - piece->start + limit - 1) / limit;
	const struct span *span = span_from(&mirror->slots, piece->start);
	uint64_t at = piece->start;

	for (; span != NULL && span->start <= at && at < piece->end;
	     span = span->next) {
		if (((const struct slot *)span)->doomed || needed-- == 0) {
			return false;
		}
		at = span->end;
	}
	return at >= piece->end;
}

/* Dooms the slots of a piece that fewer could cover. */
static void doom_piece(const struct mirror *mirror, struct diff *diff,
		       const struct piece *piece)
{
	struct span *span = span_from(&mirror->slots, piece->start);

	if (is_tiled(mirror, piece)) {
		return;
	}
	for (; span != NULL && span->start < piece->end; span = span->next) {
		doom(diff, slot_of(span));
	}
}

static int coverage_flush(struct coverage *coverage)
{
	struct mirror *mirror = coverage->space->mirror;
	struct piece piece = coverage->pending;

	coverage->pending = (struct piece){ 0 };
	if (piece.end == piece.start) {
		return 0;
	}
	if (coverage->merge) {
		doom_piece(mirror, coverage->diff, &piece);
	}
	return cover_gaps(mirror, coverage->diff, &piece, coverage->merge);
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
void diff_drop(struct mirror *mirror, struct diff *diff)
{
	struct slot *slot;

	for (slot = diff->deletes; slot != NULL; slot = slot->link) {
		slot->doomed = false;
	}
	while ((slot = diff->adds) != NULL) {
		diff->adds = slot->link;
		mirror_give_node(mirror, slot);
	}
}

static void diff_init(struct diff *diff)
{
	*diff = (struct diff){ 0 };
	diff->deletes_end = &diff->deletes;
	diff->adds_end = &diff->adds;
}

/* Makes every slot that touches a window, or that it could be joined with, lie
 * in the window wholly. */
static void widen_windows(struct gpas *space)
{
	const struct span_set *slots = &space->mirror->slots;

	for (size_t i = 0; i < space->window_count; i++) {
		struct window *window = &space->windows[i];
		const struct span *span = NULL;

		if (window->start > 0) {
			span = span_find(slots, window->start - 1);
		}
		if (span != NULL) {
			window->start = span->start;
		}
		span = span_find(slots, window->end);
		if (span == NULL) {
			span = span_find(slots, window->end - 1);
		}
		if (span != NULL && span->end > window->end) {
			window->end = span->end;
		}
	}
}

int diff_make(struct gpas *space, bool merge, struct diff *diff)
{
	int err;

	diff_init(diff);
	normalise_windows(space);
	if (merge) {
		widen_windows(space);
		normalise_windows(space);
	}
	for (size_t i = 0; i < space->window_count; i++) {
		doom_window(space, diff, &space->windows[i]);
	}
	err = plan_adds(space, diff, merge);
	if (err != 0) {
		diff_drop(space->mirror, diff);
	}
	return err;
}
