/* SPDX-License-Identifier: MIT */
/*
 * A space's life, and the questions one can ask about it.
 */
#include "space.h"
#include "mirror.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Spaces up to this size keep all memory of theirs in one reservation, so that
 * neighbouring regions share one offset. A process has 128 TiB to spend. */
#define RESERVATION_MAX (UINT64_C(16) << 40)

uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) +
	       (uint64_t)now.tv_nsec;
}

void space_log(struct gpas *space, enum gpas_log_level level,
	       const char *format, ...)
{
	char line[256];
	va_list args;

	if (space->log == NULL || level > space->log_level) {
		return;
	}
	va_start(args, format);
	(void)vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	space->log(space->log_ctx, level, line);
}

void space_log_finding(struct gpas *space, const char *check,
		       const char *format, va_list args)
{
	char what[192];

	(void)vsnprintf(what, sizeof(what), format, args);
	space_log(space, GPAS_LOG_ERROR, "%s: %s", check, what);
}

/* ---- The lock ------------------------------------------------------ */

bool space_lock(struct gpas *space)
{
	if (space_owns_group(space)) {
		return false;
	}
	pthread_mutex_lock(&space->lock);
	return true;
}

void space_unlock(struct gpas *space, bool locked)
{
	if (locked) {
		pthread_mutex_unlock(&space->lock);
	}
}

/* ---- Life ---------------------------------------------------------- */

static int check_extent_of_space(const struct gpas_params *params,
				 const struct gpas_format *format,
				 uint64_t *size)
{
	uint64_t width = UINT64_C(1) << gpas_format_gpa_bits(format);

	*size = params->size;
	if (params->base.value >= width ||
	    !gpas_is_aligned(params->base.value | params->size,
			     GPAS_PAGE_BYTES)) {
		return -EINVAL;
	}
	if (params->size == 0) {
		*size = width - params->base.value;
	}
	return *size <= width - params->base.value ? 0 : -EINVAL;
}

static void space_fini(struct gpas *space)
{
	struct region *region;

	while ((region = space->spare) != NULL) {
		space->spare = region_of(region->span.next);
		free(region);
	}
	if (space->reservation.host != NULL) {
		reservation_destroy(&space->reservation);
	}
	gpas_pgtable_destroy(space->table);
	readers_fini(&space->readers);
	pthread_mutex_destroy(&space->lock);
	free(space->changes);
	free(space->windows);
	free(space);
}

static int space_init(struct gpas *space, const struct gpas_params *params,
		      uint64_t size)
{
	struct gpas_pgtable_params table = {
		.format = params->format,
		.max_leaf_shift = params->max_leaf_shift,
		.frame_ops = params->frame_ops,
		.frame_ctx = params->frame_ctx,
	};

	readers_init(&space->readers);
	space->base = params->base.value;
	space->end = params->base.value + size;
	space->max_leaf_shift =
		params->max_leaf_shift != 0 ? params->max_leaf_shift : 30;
	space->log = params->log;
	space->log_ctx = params->log_ctx;
	space->log_level = params->log_level;
	space->budget = params->budget;
	space->pressure = params->pressure;
	space->pressure_ctx = params->pressure_ctx;
	if (pthread_mutex_init(&space->lock, NULL) != 0) {
		return -ENOMEM;
	}
	if (size <= RESERVATION_MAX &&
	    reservation_create(size, space->base, &space->reservation) != 0) {
		/* Not fatal: each region then makes its own. */
		space->reservation.host = NULL;
	}
	return gpas_pgtable_create(&table, &space->table);
}

int gpas_create(const struct gpas_params *params, struct gpas **ret)
{
	const struct gpas_format *format;
	struct gpas *space;
	struct txn txn;
	uint64_t size;
	int err;

	if (params == NULL) {
		return -EINVAL;
	}
	format = gpas_format_get(params->format);
	if (format == NULL ||
	    check_extent_of_space(params, format, &size) != 0) {
		return -EINVAL;
	}
	space = aligned_alloc(alignof(struct gpas), sizeof(*space));
	if (space == NULL) {
		return -ENOMEM;
	}
	memset(space, 0, sizeof(*space));
	space->format = format;
	err = space_init(space, params, size);
	if (err == 0) {
		err = txn_open(space, TXN_TAKE, &txn); /* fills the reserve */
	}
	if (err == 0) {
		err = txn_close(&txn, 0);
	}
	if (err != 0) {
		space_fini(space);
		return err;
	}
	*ret = space;
	return 0;
}

void gpas_destroy(struct gpas *space)
{
	struct span *span;

	if (space == NULL) {
		return;
	}
	(void)gpas_abort(space);
	uffd_stop(space);
	if (gpas_kvm_detach(space) != -ENOENT && space->mirror != NULL) {
		/* KVM keeps slots it will not give up; the VM's end frees them.
		 */
		mirror_destroy(space->mirror);
		space->mirror = NULL;
	}
	(void)gpas_clear(space);
	for (int kind = 0; kind < GPAS_ADDRESS_KIND_COUNT; kind++) {
		while ((span = space->claims[kind].first) != NULL) {
			span_remove(&space->claims[kind], span);
			claim_put((struct claim *)span);
		}
	}
	space_fini(space);
}

/* ---- Plain facts --------------------------------------------------- */

gpas_gpa gpas_base(const struct gpas *space)
{
	return gpas_gpa_at(space->base);
}

gpas_gpa gpas_end(const struct gpas *space)
{
	return gpas_gpa_at(space->end);
}

uint64_t gpas_size(const struct gpas *space)
{
	return space->end - space->base;
}

const struct gpas_format *gpas_format(const struct gpas *space)
{
	return space->format;
}

bool gpas_contains_range(const struct gpas *space, gpas_gpa start,
			 uint64_t size)
{
	return start.value >= space->base && start.value <= space->end &&
	       size <= space->end - start.value;
}

gpas_hva gpas_page_table_root(const struct gpas *space)
{
	return gpas_pgtable_root(space->table);
}

int space_check_range(const struct gpas *space, gpas_gpa start, uint64_t size)
{
	return size != 0 &&
			       gpas_is_aligned(start.value | size,
					       GPAS_PAGE_BYTES) &&
			       gpas_contains_range(space, start, size)
		       ? 0
		       : -EINVAL;
}

/* ---- Regions and extents ------------------------------------------- */

static void count_present(const struct gpas *space, const struct region *region,
			  struct gpas_region *ret)
{
	uint64_t at = region->span.start;
	struct gpas_extent leaf;

	while (at < region->span.end) {
		struct gpas_pgtable_cursor cursor;

		if (gpas_pgtable_query(space->table, gpas_gpa_at(at), &leaf) ==
		    0) {
			ret->present += leaf.size;
			ret->leaves[(leaf.leaf_shift - 12) / 9]++;
			at = leaf.start.value + leaf.size;
			continue;
		}
		gpas_pgtable_cursor_init(&cursor, space->table, gpas_gpa_at(at),
					 gpas_gpa_at(region->span.end));
		if (!gpas_pgtable_cursor_next(&cursor, &leaf)) {
			break;
		}
		at = leaf.start.value;
	}
}

static void count_slots(const struct gpas *space, const struct region *region,
			struct gpas_region *ret)
{
	struct span *span;

	if (space->mirror == NULL) {
		return;
	}
	for (span = span_from(&space->mirror->slots, region->span.start);
	     span != NULL && span->start < region->span.end;
	     span = span->next) {
		if (slot_of(span)->trap) {
			ret->traps++;
		} else {
			ret->slots++;
		}
	}
}

static void describe_region(const struct gpas *space,
			    const struct region *region,
			    struct gpas_region *ret)
{
	const struct backing *backing = region->backing;

	*ret = (struct gpas_region){
		.start = { region->span.start },
		.size = region->span.end - region->span.start,
		.prot = region->prot,
		.kind = backing->kind,
		.memtype = backing->memtype,
		.lazy = backing->lazy,
		.granule = backing->lazy ? backing->granule : 0,
		.fd = -1,
	};
	memcpy(ret->name, backing->name, sizeof(ret->name));
	if (backing->host != 0) {
		ret->host = gpas_hva_pointer(
			gpas_hva_at(backing->host + region->offset));
	}
	if (backing->memory != NULL) {
		ret->fd = gpas_memory_fd(backing->memory, &ret->fd_offset);
	}
	if (ret->fd >= 0) {
		ret->fd_offset += backing->memory_offset + region->offset;
	}
	if (backing->kind != GPAS_REGION_DEVICE) {
		count_present(space, region, ret);
		count_slots(space, region, ret);
	}
}

static int query_region(struct gpas *space, gpas_gpa gpa, bool exact,
			struct gpas_region *ret)
{
	bool locked = space_lock(space);
	const struct region *region = exact ? region_find(space, gpa.value)
					    : region_from(space, gpa.value);

	if (region != NULL) {
		describe_region(space, region, ret);
	}
	space_unlock(space, locked);
	return region != NULL ? 0 : -ENOENT;
}

int gpas_region_find(struct gpas *space, gpas_gpa gpa, struct gpas_region *ret)
{
	return query_region(space, gpa, true, ret);
}

int gpas_region_next(struct gpas *space, gpas_gpa gpa, struct gpas_region *ret)
{
	return query_region(space, gpa, false, ret);
}

int gpas_extent_next(struct gpas *space, gpas_gpa gpa, struct gpas_extent *ret)
{
	struct gpas_pgtable_cursor cursor;
	bool locked = space_lock(space);
	bool found;

	gpas_pgtable_cursor_init(&cursor, space->table, gpa,
				 gpas_gpa_at(space->end));
	found = gpas_pgtable_cursor_next(&cursor, ret);
	space_unlock(space, locked);
	return found ? 0 : -ENOENT;
}

/* ---- Statistics ---------------------------------------------------- */

static void fill_gauges(const struct gpas *space, struct gpas_stats *ret)
{
	struct gpas_pgtable_stats table;
	struct span *span;

	gpas_pgtable_stats(space->table, &table);
	ret->table_pages = table.table_pages;
	for (int level = 0; level < 3; level++) {
		ret->leaves[level] = table.leaves[level];
		ret->present += table.leaves[level] << (12 + 9 * level);
	}
	ret->regions = space->regions.count;
	ret->charged = space->charged;
	for (span = space->regions.first; span != NULL; span = span->next) {
		if (region_of(span)->backing->kind != GPAS_REGION_DEVICE) {
			ret->mapped += span->end - span->start;
		}
	}
	if (space->mirror != NULL) {
		ret->traps = space->mirror->trap_count;
		ret->slots = space->mirror->slots.count - ret->traps;
	}
}

/* Counters are written by several threads: each word is read atomically. */
static void copy_counters(const struct gpas_stats *from, struct gpas_stats *to)
{
	const uint64_t *source = (const uint64_t *)from;
	uint64_t *target = (uint64_t *)to;

	_Static_assert(sizeof(*from) % sizeof(*source) == 0, "only counters");
	for (size_t i = 0; i < sizeof(*from) / sizeof(*source); i++) {
		target[i] = __atomic_load_n(&source[i], __ATOMIC_RELAXED);
	}
}

void gpas_stats(struct gpas *space, struct gpas_stats *ret)
{
	bool locked = space_lock(space);

	copy_counters(&space->stats, ret);
	fill_gauges(space, ret);
	space_unlock(space, locked);
}
