/* SPDX-License-Identifier: MIT */
/*
 * Faults and lazy memory: what becomes of an access that found nothing, and
 * which part of a region a first touch makes present.
 */
#include "space.h"

#include <string.h>

/* Has the filler, if there is one, write the content of a piece of memory. A
 * piece that it left half written goes back to what it was. */
static int fill(const struct backing *backing, uint64_t gpa, uint64_t offset,
		uint64_t size)
{
	void *host = gpas_hva_pointer(gpas_hva_at(backing->host + offset));
	int err;

	if (backing->filler.fill == NULL) {
		return 0;
	}
	err = backing->filler.fill(backing->filler.ctx, gpas_gpa_at(gpa), host,
				   size);
	if (err != 0) {
		(void)gpas_memory_discard(backing->memory, offset, size);
	}
	return err;
}

/* Whether @size more bytes of @backing are within the budget. */
static bool fits_budget(const struct gpas *space, const struct backing *backing,
			uint64_t size)
{
	return space->budget == 0 || !is_charged(backing) ||
	       (size <= space->budget &&
		space->charged <= space->budget - size);
}

/* Puts @size bytes more on the budget's account, if they fit. */
static int charge(struct gpas *space, const struct backing *backing,
		  uint64_t size)
{
	if (!fits_budget(space, backing, size)) {
		space->short_of = size;
		return -ENOMEM;
	}
	if (space->budget != 0 && is_charged(backing)) {
		space->charged += size;
	}
	return 0;
}

/*
 * Provides memory of the space's own. It is noted, so that undoing leaves no
 * content behind; userfaultfd's pages are there for others to touch at once
 * and stay.
 */
static int provide_owned(struct gpas *space, struct region *region,
			 uint64_t start, uint64_t size)
{
	const struct backing *backing = region->backing;
	uint64_t offset = region->offset + (start - region->span.start);
	int err;

	if (backing->uffd) {
		return uffd_provide(space, backing, offset, size);
	}
	err = txn_expect_populate(space);
	if (err == 0) {
		err = fill(backing, start, offset, size);
	}
	if (err == 0) {
		txn_note_populate(space, region, start, start + size);
	}
	return err;
}

/* Provides [start, *end) of a region: where it is, perhaps less of it. */
static int provide(struct gpas *space, struct region *region, uint64_t start,
		   uint64_t *end, uint64_t *host)
{
	const struct backing *backing = region->backing;
	uint64_t offset = region->offset + (start - region->span.start);
	uint64_t size = *end - start;
	uint64_t given = size;
	void *at = NULL;
	int err;

	if (backing->kind == GPAS_REGION_ALLOC) {
		*host = backing->host + offset;
		return provide_owned(space, region, start, size);
	}
	if (backing->kind != GPAS_REGION_BACKEND) {
		*host = backing->host + offset;
		return 0;
	}
	err = txn_expect_populate(space);
	if (err == 0) {
		err = backing->ops.populate(backing->ops.ctx, offset, &given,
					    &at);
	}
	if (err != 0) {
		return err;
	}
	*host = gpas_hva_of(at).value;
	if (given == 0 || given > size || at == NULL ||
	    !gpas_is_aligned(given | *host, GPAS_PAGE_BYTES)) {
		space_log(space, GPAS_LOG_ERROR,
			  "backend %s: populate gave %#llx bytes at %p for a "
			  "request of %#llx: not whole pages of it",
			  backing->name, (unsigned long long)given, at,
			  (unsigned long long)size);
		return -EINVAL;
	}
	*end = start + given;
	txn_note_populate(space, region, start, *end);
	return pt_check_host(space->format, *host, given);
}

int populate_hole(struct gpas *space, struct region *region, uint64_t start,
		  uint64_t end)
{
	struct pt_bounds bounds = { region->span.start, region->span.end };
	int err = charge(space, region->backing, end - start);

	if (err != 0) {
		return err;
	}
	while (start < end) {
		uint64_t piece_end = end;
		uint64_t host;

		err = provide(space, region, start, &piece_end, &host);

		if (err == 0) {
			err = pt_map(space->table, start, piece_end - start,
				     host, region->prot,
				     region->backing->memtype, bounds);
		}
		if (err != 0) {
			return err;
		}
		start = piece_end;
	}
	return 0;
}

/* The same under the journal of slots and the count of bytes. */
static int populate_vacant(struct gpas *space, struct region *region,
			   uint64_t start, uint64_t end, uint64_t *populated)
{
	int err = populate_hole(space, region, start, end);

	if (err == 0) {
		err = txn_touch(space, start, end);
	}
	if (err == 0) {
		*populated += end - start;
	}
	return err;
}

int populate_range(struct gpas *space, struct region *region, uint64_t start,
		   uint64_t end, uint64_t *populated)
{
	uint64_t at = start;
	int err = 0;

	while (at < end && err == 0) {
		uint64_t hole_end = pt_next_mapped(space->table, at, end);
		struct gpas_extent extent;

		if (hole_end > at) {
			err = populate_vacant(space, region, at, hole_end,
					      populated);
		}
		at = hole_end;
		if (at < end &&
		    pt_extent_at(space->table, at, end - at, &extent) == 0) {
			at += extent.size;
		}
	}
	return err;
}

/* ---- What a first touch makes present ------------------------------ */

/*
 * The unit for a fault at @gpa. Faults that continue where the last one ended,
 * upwards or downwards, double it up to granule_max, so that n sequential
 * bytes take O(log n) changes; any other fault starts small again.
 */
static uint64_t choose_granule(const struct backing *backing, uint64_t gpa)
{
	uint64_t start = gpas_align_down(gpa, backing->granule);
	bool up = start == backing->fault_high;
	bool down = start + backing->granule == backing->fault_low;

	if (!up && !down) {
		return backing->granule;
	}
	return backing->granule_now < backing->granule_max
		       ? backing->granule_now * 2
		       : backing->granule_now;
}

/* The granule around @gpa, as far as it is in the region. */
static struct window granule_around(const struct region *region, uint64_t gpa,
				    uint64_t granule)
{
	uint64_t start = gpas_align_down(gpa, granule);
	struct window around = { start, start + granule };

	if (around.start < region->span.start) {
		around.start = region->span.start;
	}
	if (around.end > region->span.end) {
		around.end = region->span.end;
	}
	return around;
}

/* The absent stretch of @around that @gpa lies in. */
static struct window absent_around(const struct gpas *space,
				   struct window around, uint64_t gpa)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent extent;

	if (pt_next_mapped(space->table, around.start, around.end) ==
	    around.end) {
		return around;
	}
	gpas_pgtable_cursor_init(&cursor, space->table,
				 gpas_gpa_at(around.start),
				 gpas_gpa_at(around.end));
	while (gpas_pgtable_cursor_next(&cursor, &extent)) {
		if (extent.start.value > gpa) {
			around.end = extent.start.value;
			break;
		}
		around.start = extent.start.value + extent.size;
	}
	return around;
}

/* How far beyond a granule a fault reaches. */
struct reach {
	/* Not 0: slots are short. The unit is at least this, and every hole in
	 * it is filled, so that several slots become one. */
	uint64_t floor;
	/* The caller is about to access this many bytes. */
	uint64_t ahead;
	/* When the first attempt found something to do, if KVM is attached. */
	uint64_t begun;
};

/* The end of what to fill, so that @ahead bytes from @gpa on are in it, in
 * whole granules and as far as the region goes. */
static uint64_t end_ahead(const struct region *region, uint64_t end,
			  uint64_t gpa, uint64_t ahead)
{
	uint64_t granule = region->backing->granule;
	uint64_t wanted;

	if (ahead <= end - gpa) {
		return end;
	}
	if (ahead >= region->span.end - gpa ||
	    gpas_align_up(gpa + ahead, granule, &wanted) != 0 ||
	    wanted > region->span.end) {
		return region->span.end;
	}
	return wanted;
}

/*
 * Touches at random grow too, by density: once a thirty-second of an aligned
 * block of this size is present, the next touch in it takes the rest. Not where
 * presence has a price: content to be made, or a budget.
 */
#define DENSE_BYTES (UINT64_C(2) << 20)
#define DENSE_PART  32

static bool may_grow_dense(const struct gpas *space,
			   const struct backing *backing)
{
	return backing->granule_max >= DENSE_BYTES && !backing->uffd &&
	       backing->kind == GPAS_REGION_ALLOC &&
	       backing->filler.fill == NULL && space->budget == 0;
}

static uint64_t present_in(const struct gpas *space, struct window part)
{
	struct gpas_pgtable_cursor cursor;
	struct gpas_extent extent;
	uint64_t present = 0;

	gpas_pgtable_cursor_init(&cursor, space->table, gpas_gpa_at(part.start),
				 gpas_gpa_at(part.end));
	while (gpas_pgtable_cursor_next(&cursor, &extent)) {
		present += extent.size;
	}
	return present;
}

/* What a touch at @gpa makes present: @granule around it, or more. Parts of it
 * may be present already, unless @vacant says otherwise. */
static struct window unit_around(const struct gpas *space,
				 const struct region *region, uint64_t gpa,
				 uint64_t granule, bool *vacant)
{
	struct window block;

	*vacant = false;
	if (granule < DENSE_BYTES && may_grow_dense(space, region->backing)) {
		block = granule_around(region, gpa, DENSE_BYTES);
		if (present_in(space, block) * DENSE_PART >=
		    block.end - block.start) {
			return block;
		}
	}
	block = granule_around(region, gpa, granule);
	*vacant = true;
	return absent_around(space, block, gpa);
}

/* Makes the granule around @gpa present, and what @reach adds to it. */
static int populate_granule(struct gpas *space, struct region *region,
			    uint64_t gpa, const struct reach *reach,
			    uint64_t *populated)
{
	struct backing *backing = region->backing;
	uint64_t granule = choose_granule(backing, gpa);
	struct window unit;
	bool vacant = false;
	uint64_t end;
	int err;

	if (reach->floor > granule) {
		unit = granule_around(region, gpa, reach->floor);
		space->merge = true;
	} else {
		unit = unit_around(space, region, gpa, granule, &vacant);
	}
	end = end_ahead(region, unit.end, gpa, reach->ahead);
	vacant = vacant && end == unit.end;
	unit.end = end;
	if (!fits_budget(space, backing, unit.end - unit.start)) {
		granule = backing->granule;
		unit = granule_around(region, gpa, granule);
		unit = absent_around(space, unit, gpa);
		vacant = true;
	}
	err = (vacant ? populate_vacant : populate_range)(
		space, region, unit.start, unit.end, populated);
	if (err == 0) {
		backing->granule_now = granule;
		backing->fault_low = unit.start;
		backing->fault_high = unit.end;
	}
	return err;
}

/* ---- Faults -------------------------------------------------------- */

static void describe(const struct region *region, struct gpas_fault *fault)
{
	fault->had = region->prot;
	fault->region_start = gpas_gpa_at(region->span.start);
	fault->region_size = region->span.end - region->span.start;
	memcpy(fault->region_name, region->backing->name, GPAS_NAME_BYTES);
}

static enum gpas_fault_kind judge(const struct region *region, unsigned access)
{
	if (region == NULL) {
		return GPAS_FAULT_UNMAPPED;
	}
	if (region->backing->kind == GPAS_REGION_DEVICE) {
		return GPAS_FAULT_DEVICE;
	}
	if (region->prot == GPAS_PROT_NONE || (access & ~region->prot) != 0) {
		return GPAS_FAULT_DENIED;
	}
	return GPAS_FAULT_RESUME;
}

void resolve_claim(const struct region *region, uint64_t gpa,
		   struct resolution *ret)
{
	ret->claim = claim_get(region->backing->claim);
	ret->device_offset = region->offset + (gpa - region->span.start);
	ret->device_size =
		region->offset + (region->span.end - region->span.start);
}

/*
 * What becomes of the access in @ret->fault, under the lock. False: it is to
 * lazy memory that has to be made present first.
 */
static bool answer(const struct gpas *space, const struct region *region,
		   struct resolution *ret)
{
	struct gpas_fault *fault = &ret->fault;
	uint64_t gpa = fault->gpa.value;

	fault->kind = judge(region, fault->wanted);
	if (region != NULL) {
		describe(region, fault);
	}
	if (fault->kind == GPAS_FAULT_DEVICE) {
		resolve_claim(region, gpa, ret);
	}
	return fault->kind != GPAS_FAULT_RESUME ||
	       pt_next_mapped(space->table, gpa, gpa + 1) == gpa;
}

/* Under the lock: what did not fail. */
static void count_answer(struct gpas *space, const struct gpas_fault *fault)
{
	count_locked(&space->stats.faults[fault->kind], 1);
	if (fault->populated != 0) {
		count_locked(&space->stats.populations, 1);
		count_locked(&space->stats.populated, fault->populated);
	}
}

static void count_time(struct gpas *space, uint64_t ns)
{
	unsigned bucket = 0;

	while (bucket < GPAS_FAULT_TIME_BUCKETS - 1 &&
	       ns >= UINT64_C(1000) << bucket) {
		bucket++;
	}
	count(&space->stats.fault_time[bucket], 1);
}

/* One attempt to make @gpa present, as a transaction, if it has to be. The
 * outcome is in @ret; @short_of: the bytes that the budget lacks, if that is
 * why it failed. */
static int attempt(struct gpas *space, uint64_t gpa, struct reach *reach,
		   struct resolution *ret, uint64_t *short_of)
{
	bool locked = txn_lock(space);
	struct region *region = region_find(space, gpa);
	struct txn txn;
	int err;

	*short_of = 0;
	if (answer(space, region, ret)) {
		count_answer(space, &ret->fault);
		space_unlock(space, locked);
		return 0;
	}
	if (reach->begun == 0 && space->mirror != NULL) {
		reach->begun = clock_ns();
	}
	err = txn_begin(space, TXN_TAKE, locked, &txn);
	if (err != 0) {
		return err;
	}
	space->short_of = 0;
	err = populate_granule(space, region, gpa, reach,
			       &ret->fault.populated);
	err = txn_conclude(&txn, err);
	if (err == 0) {
		count_answer(space, &ret->fault);
	}
	if (err == -ENOMEM && !txn.grouped) {
		*short_of = space->short_of;
	}
	txn_unlock(&txn);
	return err;
}

/* Whether the embedder made room for @wanted bytes. No lock is held. */
static bool relieved(struct gpas *space, uint64_t wanted)
{
	if (space->pressure == NULL) {
		return false;
	}
	count(&space->stats.pressure, 1);
	return space->pressure(space->pressure_ctx, space, wanted) == 0;
}

/* The pressure callback may claim success this often without any. */
#define MAX_PRESSURE 4
/* With slots short: the first unit tried, by how much it grows, the last. */
#define MIN_FLOOR  (UINT64_C(2) << 20)
#define FLOOR_STEP 8
#define MAX_FLOOR  (UINT64_C(1) << 30)

/* The next larger unit to try. It stays, so that the faults to come do not run
 * into the limit each anew, until plenty of slots are free (mirror.c). */
static uint64_t raise_floor(struct gpas *space, uint64_t floor)
{
	floor = floor == 0 ? MIN_FLOOR : floor * FLOOR_STEP;
	atomic_store(&space->slot_floor, floor);
	space_log(space, GPAS_LOG_WARNING,
		  "memslots are short: making at least %llu KiB present at a "
		  "time",
		  (unsigned long long)(floor >> 10));
	return floor;
}

/*
 * Makes @gpa present, if it is in lazy memory. Where the budget is short the
 * embedder is asked; where memslots are, larger units are tried, which join
 * slots that are apart.
 */
static int make_present(struct gpas *space, uint64_t gpa, struct reach *reach,
			struct resolution *ret)
{
	unsigned wanted = ret->fault.wanted;
	unsigned asked = 0;

	for (;;) {
		uint64_t short_of;
		int err = attempt(space, gpa, reach, ret, &short_of);

		if (err == 0) {
			return 0;
		}
		if (err == -ENOSPC && reach->floor < MAX_FLOOR) {
			reach->floor = raise_floor(space, reach->floor);
		} else if (reach->ahead != 0) {
			reach->ahead = 0; /* less may be possible */
		} else if (short_of == 0 || asked++ == MAX_PRESSURE ||
			   !relieved(space, short_of)) {
			return err;
		}
		ret->fault = (struct gpas_fault){
			.gpa = { gpa },
			.wanted = wanted,
		};
	}
}

int fault_resolve(struct gpas *space, uint64_t gpa, unsigned access,
		  uint64_t ahead, struct resolution *ret)
{
	struct reach reach = {
		.floor = atomic_load(&space->slot_floor),
		.ahead = ahead,
	};
	int err;

	*ret = (struct resolution){
		.fault = { .gpa = { gpa }, .wanted = access },
	};
	err = make_present(space, gpa, &reach, ret);
	if (err == -ENOTRECOVERABLE) {
		return err;
	}
	if (err != 0) {
		ret->fault.kind = GPAS_FAULT_FAILED;
		ret->fault.error = err;
		ret->fault.populated = 0;
		count(&space->stats.faults[GPAS_FAULT_FAILED], 1);
	} else if (ret->fault.populated != 0 && reach.begun != 0) {
		count_time(space, clock_ns() - reach.begun);
	}
	return 0;
}

int gpas_fault(struct gpas *space, gpas_gpa gpa, unsigned access,
	       struct gpas_fault *ret)
{
	struct resolution resolution;
	int err;

	if ((access & ~(unsigned)GPAS_PROT_RWX) != 0 ||
	    gpa.value >> gpas_format_gpa_bits(space->format) != 0) {
		return -EINVAL;
	}
	err = fault_resolve(space, gpa.value, access, 0, &resolution);
	if (err == 0) {
		if (resolution.claim != NULL) {
			claim_put(resolution.claim);
		}
		*ret = resolution.fault;
	}
	return err;
}

static int populate_regions(struct gpas *space, uint64_t start, uint64_t end,
			    uint64_t *populated)
{
	uint64_t at = start;
	int err = 0;

	while (at < end && err == 0) {
		struct region *region = region_find(space, at);
		uint64_t to;

		if (region == NULL ||
		    region->backing->kind == GPAS_REGION_DEVICE) {
			return -ENOENT;
		}
		to = region->span.end < end ? region->span.end : end;
		err = populate_range(space, region, at, to, populated);
		at = to;
	}
	return err;
}

int gpas_populate(struct gpas *space, gpas_gpa start, uint64_t size)
{
	uint64_t populated = 0;
	struct txn txn;
	int err = space_check_range(space, start, size);

	if (err == 0) {
		err = txn_open(space, TXN_TAKE, &txn);
	}
	if (err != 0) {
		return err;
	}
	err = populate_regions(space, start.value, start.value + size,
			       &populated);
	err = txn_conclude(&txn, err);
	if (err == 0) {
		count_locked(&space->stats.populated, populated);
	}
	txn_unlock(&txn);
	return err;
}
