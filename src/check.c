/* SPDX-License-Identifier: MIT */
/*
 * Looking inside: the invariants of DESIGN verified from scratch, and the
 * space described as text.
 */
#include "mirror.h"

#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>

/* ---- Invariants ---------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static int broken(struct gpas *space,
							const char *format, ...)
{
	va_list args;

	va_start(args, format);
	space_log_finding(space, "check", format, args);
	va_end(args);
	return -EUCLEAN;
}

/* Regions are page-aligned and inside the space (order and disjointness are
 * the set's own check), and say what their backing allows. */
static int check_regions(struct gpas *space)
{
	struct span *span;

	if (span_check(&space->regions) != 0) {
		return broken(space, "the region set is damaged");
	}
	for (span = space->regions.first; span != NULL; span = span->next) {
		const struct region *region = region_of(span);

		if (!gpas_is_aligned(span->start | span->end,
				     GPAS_PAGE_BYTES) ||
		    span->start < space->base || span->end > space->end) {
			return broken(space, "region at %#llx is misplaced",
				      (unsigned long long)span->start);
		}
		if (atomic_load(&region->backing->refs) == 0) {
			return broken(space, "region at %#llx: no reference",
				      (unsigned long long)span->start);
		}
	}
	return 0;
}

/* One leaf lies in one region, with its permission and its memory. */
static int check_leaf(struct gpas *space, const struct gpas_extent *leaf)
{
	uint64_t start = leaf->start.value;
	const struct region *region = region_find(space, start);
	const struct backing *backing;

	if (region == NULL || start + leaf->size > region->span.end) {
		return broken(space, "leaf at %#llx is not in one region",
			      (unsigned long long)start);
	}
	backing = region->backing;
	if (leaf->prot != region->prot || leaf->memtype != backing->memtype) {
		return broken(space, "leaf at %#llx: permission or type",
			      (unsigned long long)start);
	}
	if (backing->kind == GPAS_REGION_DEVICE) {
		return broken(space, "leaf at %#llx in a device region",
			      (unsigned long long)start);
	}
	if (backing->host != 0 &&
	    leaf->host.value != backing->host + region->offset +
					(start - region->span.start)) {
		return broken(space, "leaf at %#llx: wrong host address",
			      (unsigned long long)start);
	}
	return 0;
}

/*
 * Whether the leaves of the block around @start could be one larger leaf of
 * 1 << @shift bytes: all in one region, congruent, all present in a row.
 */
static bool could_merge(const struct gpas *space, uint64_t start,
			unsigned shift)
{
	uint64_t size = UINT64_C(1) << shift;
	const struct region *region = region_find(space, start);
	struct gpas_extent extent;

	return gpas_is_aligned(start, size) && region != NULL &&
	       start + size <= region->span.end &&
	       pt_extent_at(space->table, start, size, &extent) == 0 &&
	       extent.size >= size && extent.leaf_shift < shift &&
	       gpas_is_aligned(extent.host.value, size);
}

static int check_leaves(struct gpas *space)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent leaf = { 0 };
	uint64_t at = space->base;
	int err = 0;

	while (err == 0 && at < space->end) {
		if (gpas_pgtable_query(space->table, gpas_gpa_at(at), &leaf) !=
		    0) {
			gpas_pgtable_cursor_init(&cursor, space->table,
						 gpas_gpa_at(at),
						 gpas_gpa_at(space->end));
			if (!gpas_pgtable_cursor_next(&cursor, &leaf)) {
				break;
			}
			at = leaf.start.value;
			continue;
		}
		err = check_leaf(space, &leaf);
		for (unsigned shift = 21;
		     err == 0 && shift <= space->max_leaf_shift; shift += 9) {
			if (could_merge(space, at, shift)) {
				err = broken(space,
					     "leaves at %#llx are not merged",
					     (unsigned long long)at);
			}
		}
		at = leaf.start.value + leaf.size;
	}
	return err;
}

/* Eager regions have no holes. */
static int check_eager(struct gpas *space)
{
	struct span *span;

	for (span = space->regions.first; span != NULL; span = span->next) {
		const struct backing *backing = region_of(span)->backing;
		struct gpas_extent extent;
		uint64_t at = span->start;

		if (backing->lazy || backing->kind == GPAS_REGION_DEVICE) {
			continue;
		}
		while (at < span->end) {
			if (pt_extent_at(space->table, at, span->end - at,
					 &extent) != 0) {
				return broken(
					space, "hole at %#llx in eager %s",
					(unsigned long long)at, backing->name);
			}
			at += extent.size;
		}
	}
	return 0;
}

int gpas_check(struct gpas *space)
{
	bool locked = space_lock(space);
	int err = check_regions(space);

	if (err == 0 && gpas_pgtable_check(space->table, false) != 0) {
		err = broken(space, "the table is damaged");
	}
	if (err == 0) {
		err = check_leaves(space);
	}
	if (err == 0) {
		err = check_eager(space);
	}
	if (err == 0 && mirror_check(space) != 0) {
		err = broken(space, "the slots do not tile the extents");
	}
	for (int kind = 0; err == 0 && kind < GPAS_ADDRESS_KIND_COUNT; kind++) {
		if (span_check(&space->claims[kind]) != 0) {
			err = broken(space, "a claim set is damaged");
		}
	}
	space_unlock(space, locked);
	return err;
}

/* ---- Text ---------------------------------------------------------- */

struct dump {
	void (*line)(void *ctx, const char *text);
	void *ctx;
};

__attribute__((format(printf, 2, 3))) static void dump_line(
	const struct dump *dump, const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	dump->line(dump->ctx, text);
}

static const char *prot_name(unsigned prot)
{
	static const char *const names[] = { "---", "r--", "-w-", "rw-",
					     "--x", "r-x", "-wx", "rwx" };

	return names[prot & GPAS_PROT_RWX];
}

static void dump_regions(const struct gpas *space, const struct dump *dump)
{
	const struct span *span;

	dump_line(dump, "regions: %zu", space->regions.count);
	for (span = space->regions.first; span != NULL; span = span->next) {
		const struct region *region = (const struct region *)span;
		const struct backing *backing = region->backing;

		dump_line(dump, "  %012llx-%012llx %s %s%s",
			  (unsigned long long)span->start,
			  (unsigned long long)span->end,
			  backing->kind == GPAS_REGION_DEVICE
				  ? "dev"
				  : prot_name(region->prot),
			  backing->name, backing->lazy ? " (lazy)" : "");
	}
}

static void dump_extents(const struct gpas *space, const struct dump *dump)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent extent;

	dump_line(dump, "extents:");
	gpas_pgtable_cursor_init(&cursor, space->table,
				 gpas_gpa_at(space->base),
				 gpas_gpa_at(space->end));
	while (gpas_pgtable_cursor_next(&cursor, &extent)) {
		dump_line(
			dump, "  %012llx-%012llx %s at %#llx",
			(unsigned long long)extent.start.value,
			(unsigned long long)(extent.start.value + extent.size),
			prot_name(extent.prot),
			(unsigned long long)extent.host.value);
	}
}

static void dump_slots(const struct gpas *space, const struct dump *dump)
{
	const struct mirror *mirror = space->mirror;
	struct span *span;

	if (mirror == NULL) {
		dump_line(dump, "slots: not attached to KVM");
		return;
	}
	dump_line(dump, "slots: %zu, of them %zu traps", mirror->slots.count,
		  mirror->trap_count);
	for (span = mirror->slots.first; span != NULL; span = span->next) {
		const struct slot *slot = slot_of(span);

		dump_line(dump, "  %012llx-%012llx #%u %s",
			  (unsigned long long)span->start,
			  (unsigned long long)span->end, slot->id,
			  slot->trap ? "trap"
			  : (slot->flags & KVM_MEM_READONLY) != 0
				  ? "read-only"
				  : "read-write");
	}
}

void gpas_dump(struct gpas *space, unsigned what,
	       void (*line)(void *ctx, const char *text), void *ctx)
{
	struct dump dump = { line, ctx };
	bool locked = space_lock(space);

	if ((what & GPAS_DUMP_REGIONS) != 0) {
		dump_regions(space, &dump);
	}
	if ((what & GPAS_DUMP_EXTENTS) != 0) {
		dump_extents(space, &dump);
	}
	if ((what & GPAS_DUMP_SLOTS) != 0) {
		dump_slots(space, &dump);
	}
	space_unlock(space, locked);
}
