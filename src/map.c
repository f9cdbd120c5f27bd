/* SPDX-License-Identifier: MIT */
/*
 * The calls that change what is mapped: each validates, makes a backing, and
 * hands the change to the transaction.
 */
#include "space.h"

#include <stdlib.h>
#include <string.h>

#define DEFAULT_GRANULE (UINT64_C(64) << 10)
#define MAX_GRANULE	(UINT64_C(1) << 30)

static const struct gpas_map_params no_params;

static const struct gpas_map_params *params_or_default(
	const struct gpas_map_params *params)
{
	return params != NULL ? params : &no_params;
}

/* ---- Validation ---------------------------------------------------- */

static bool is_power_of_two(uint64_t value)
{
	return value != 0 && (value & (value - 1)) == 0;
}

/* The smallest unit this kind of memory can become present in. */
static uint64_t granule_floor(const struct gpas_map_params *params)
{
	if (params->memory.kind != GPAS_MEMORY_HUGETLB) {
		return GPAS_PAGE_BYTES;
	}
	return UINT64_C(1) << (params->memory.huge_shift != 0
				       ? params->memory.huge_shift
				       : 21);
}

static uint64_t default_granule(const struct gpas_map_params *params)
{
	uint64_t floor = granule_floor(params);

	return floor > DEFAULT_GRANULE ? floor : DEFAULT_GRANULE;
}

static int check_granule(uint64_t granule, uint64_t floor)
{
	if (granule == 0) {
		return 0;
	}
	return is_power_of_two(granule) && granule >= floor &&
			       granule <= MAX_GRANULE
		       ? 0
		       : -EINVAL;
}

/* Eager memory has no granule, no mechanism and no filler. */
static int check_eager(const struct gpas_map_params *params)
{
	return params->granule == 0 && params->granule_max == 0 &&
			       params->mechanism == GPAS_LAZY_AUTO &&
			       params->filler.fill == NULL
		       ? 0
		       : -EINVAL;
}

static int check_lazy(const struct gpas_map_params *params, bool may_be_lazy)
{
	uint64_t granule = params->granule != 0 ? params->granule
						: default_granule(params);
	int err;

	if (!params->lazy) {
		return check_eager(params);
	}
	if (!may_be_lazy || params->mechanism > GPAS_LAZY_UFFD ||
	    (params->filler.fill != NULL && params->memory.shared)) {
		return -EINVAL;
	}
	if (params->mechanism == GPAS_LAZY_UFFD &&
	    params->memory.kind != GPAS_MEMORY_ANON &&
	    params->memory.kind != GPAS_MEMORY_MEMFD) {
		return -EOPNOTSUPP;
	}
	err = check_granule(params->granule, granule_floor(params));
	return err != 0 ? err : check_granule(params->granule_max, granule);
}

/* What every mapping call checks before it allocates anything. */
static int check_map(const struct gpas *space, gpas_gpa start, uint64_t size,
		     unsigned prot, const struct gpas_map_params *params)
{
	int err = space_check_range(space, start, size);

	if (err == 0 && params->memory.kind == GPAS_MEMORY_HUGETLB &&
	    params->memory.huge_shift != 0 && params->memory.huge_shift != 21 &&
	    params->memory.huge_shift != 30) {
		err = -EINVAL;
	}
	return err != 0 ? err
			: pt_check_attr(space->format, prot, params->memtype);
}

/* ---- Backings ------------------------------------------------------ */

static const char *kind_name(enum gpas_region_kind kind)
{
	static const char *const names[] = {
		[GPAS_REGION_LINEAR] = "linear",
		[GPAS_REGION_ALLOC] = "alloc",
		[GPAS_REGION_MEMORY] = "memory",
		[GPAS_REGION_BACKEND] = "backend",
		[GPAS_REGION_DEVICE] = "device",
	};

	return names[kind];
}

static int backing_create(enum gpas_region_kind kind,
			  const struct gpas_map_params *params,
			  struct backing **ret)
{
	struct backing *backing = calloc(1, sizeof(*backing));
	const char *name =
		params->name != NULL ? params->name : kind_name(kind);

	if (backing == NULL) {
		return -ENOMEM;
	}
	backing->refs = 1;
	backing->kind = kind;
	backing->memtype = params->memtype;
	backing->lazy = params->lazy;
	backing->granule = params->granule;
	if (params->granule == 0) {
		backing->granule = default_granule(params);
	}
	backing->granule_max = params->granule_max > backing->granule
				       ? params->granule_max
				       : backing->granule;
	backing->granule_now = backing->granule;
	backing->fault_low =
		UINT64_MAX; /* no fault yet: nothing continues it */
	backing->fault_high = UINT64_MAX;
	memcpy(backing->name, name, strnlen(name, GPAS_NAME_BYTES - 1));
	*ret = backing;
	return 0;
}

/*
 * Gives up a backing whose map call failed: what the caller handed over stays
 * the caller's, so no release function may run, now or when a group that still
 * remembers the backing ends.
 */
static void backing_reject(struct backing *backing)
{
	backing->ops.release = NULL;
	if (backing->claim != NULL) {
		backing->claim->device.release = NULL;
	}
	backing_put(backing);
}

static int insert(struct gpas *space, struct backing *backing, uint64_t start,
		  uint64_t end, unsigned prot)
{
	struct region *region;
	int err;

	atomic_fetch_add(&backing->refs, 1);
	err = txn_insert(space, backing, start, end, prot, &region);
	if (err != 0) {
		atomic_fetch_sub(&backing->refs, 1);
		return err;
	}
	if (backing->kind == GPAS_REGION_DEVICE) {
		return 0;
	}
	if (!backing->lazy) {
		err = populate_hole(space, region, start, end);
	}
	return err == 0 ? txn_touch(space, start, end) : err;
}

/*
 * Puts @backing at [start, start + size), present unless it is lazy. Takes
 * over the backing's only reference, also on error.
 */
static int insert_backing(struct gpas *space, struct backing *backing,
			  gpas_gpa start, uint64_t size, unsigned prot)
{
	struct txn txn;
	int err = txn_open(space, TXN_TAKE, &txn);

	if (err == 0) {
		err = insert(space, backing, start.value, start.value + size,
			     prot);
		err = txn_close(&txn, err);
	}
	if (err != 0) {
		backing_reject(backing);
	} else {
		backing_put(backing);
	}
	return err;
}

/* ---- The calls ----------------------------------------------------- */

int gpas_map_linear(struct gpas *space, gpas_gpa start, uint64_t size,
		    void *host, unsigned prot,
		    const struct gpas_map_params *params)
{
	gpas_hva hva = gpas_hva_of(host);
	struct backing *backing;
	int err;

	params = params_or_default(params);
	err = check_map(space, start, size, prot, params);
	if (err == 0) {
		err = check_lazy(params, false);
	}
	if (err == 0 && hva.value == 0) {
		err = -EINVAL;
	}
	if (err == 0) {
		err = pt_check_host(space->format, hva.value, size);
	}
	if (err == 0) {
		err = backing_create(GPAS_REGION_LINEAR, params, &backing);
	}
	if (err != 0) {
		return err;
	}
	backing->host = hva.value;
	return insert_backing(space, backing, start, size, prot);
}

/*
 * Makes the memory of an alloc region, in the space's reservation when it has
 * one and the place is free: neighbouring regions then share one offset.
 * Called under the lock, since the reservation is shared.
 */
static int create_memory(struct gpas *space, uint64_t start, uint64_t size,
			 const struct gpas_map_params *params,
			 struct gpas_memory **ret)
{
	void *fixed = NULL;

	/* Huge pages cannot make room for a neighbour page by page. */
	if (space->reservation.host != NULL && !space->reservation_busy &&
	    params->memory.kind != GPAS_MEMORY_HUGETLB) {
		fixed = (char *)space->reservation.host + (start - space->base);
	}
	return memory_create_at(size, &params->memory, fixed, start, ret);
}

static bool is_vacant(const struct gpas *space, uint64_t start, uint64_t size)
{
	const struct region *region = region_from(space, start);

	return region == NULL || region->span.start >= start + size;
}

/* Creates the memory and inserts the region, inside a transaction. */
static int insert_alloc(struct gpas *space, struct backing *backing,
			gpas_gpa start, uint64_t size, unsigned prot,
			const struct gpas_map_params *params)
{
	int err;

	if (!is_vacant(space, start.value, size)) {
		return -EEXIST;
	}
	err = create_memory(space, start.value, size, params, &backing->memory);
	if (err != 0) {
		return err;
	}
	backing->host = gpas_hva_of(gpas_memory_host(backing->memory)).value;
	backing->filler = params->filler;
	if (backing->lazy) {
		memory_piecewise(backing->memory);
	}
	err = pt_check_host(space->format, backing->host, size);
	if (err == 0 && params->mechanism == GPAS_LAZY_UFFD) {
		err = uffd_add(space, backing, start.value);
	}
	if (err == 0) {
		err = insert(space, backing, start.value, start.value + size,
			     prot);
	}
	if (err != 0 && atomic_load(&backing->refs) == 1) {
		/* No region was made that would retire it. */
		uffd_remove(space, backing);
		memory_retire(backing->memory, 0, size);
	}
	return err;
}

int gpas_map_alloc(struct gpas *space, gpas_gpa start, uint64_t size,
		   unsigned prot, const struct gpas_map_params *params)
{
	struct backing *backing;
	struct txn txn;
	int err;

	params = params_or_default(params);
	err = check_map(space, start, size, prot, params);
	if (err == 0) {
		err = check_lazy(params, true);
	}
	if (err == 0) {
		err = backing_create(GPAS_REGION_ALLOC, params, &backing);
	}
	if (err != 0) {
		return err;
	}
	err = txn_open(space, TXN_TAKE, &txn);
	if (err != 0) {
		backing_put(backing);
		return err;
	}
	err = insert_alloc(space, backing, start, size, prot, params);
	err = txn_conclude(&txn, err);
	backing_expire(space, backing);
	txn_unlock(&txn);
	return err;
}

int gpas_map_memory(struct gpas *space, gpas_gpa start, uint64_t size,
		    unsigned prot, struct gpas_memory *memory, uint64_t offset,
		    const struct gpas_map_params *params)
{
	struct backing *backing;
	uint64_t host;
	int err;

	params = params_or_default(params);
	err = check_map(space, start, size, prot, params);
	if (err == 0) {
		err = check_lazy(params, false);
	}
	if (err == 0 &&
	    (memory == NULL || !gpas_is_aligned(offset, GPAS_PAGE_BYTES) ||
	     offset > gpas_memory_size(memory) ||
	     size > gpas_memory_size(memory) - offset)) {
		err = -EINVAL;
	}
	if (err != 0) {
		return err;
	}
	host = gpas_hva_of(gpas_memory_host(memory)).value + offset;
	err = pt_check_host(space->format, host, size);
	if (err == 0) {
		err = backing_create(GPAS_REGION_MEMORY, params, &backing);
	}
	if (err != 0) {
		return err;
	}
	backing->host = host;
	backing->memory = gpas_memory_get(memory);
	backing->memory_offset = offset;
	return insert_backing(space, backing, start, size, prot);
}

int gpas_map_device(struct gpas *space, gpas_gpa start, uint64_t size,
		    const struct gpas_device *device)
{
	struct gpas_map_params params = { .memtype = GPAS_MEM_UNCACHED };
	struct backing *backing;
	int err = space_check_range(space, start, size);

	if (err != 0 || device == NULL) {
		return -EINVAL;
	}
	params.name = device->name;
	err = backing_create(GPAS_REGION_DEVICE, &params, &backing);
	if (err != 0) {
		return err;
	}
	err = claim_create(device, &backing->claim);
	if (err != 0) {
		backing_put(backing);
		return err;
	}
	return insert_backing(space, backing, start, size, GPAS_PROT_RW);
}

int gpas_map_backend(struct gpas *space, gpas_gpa start, uint64_t size,
		     unsigned prot, const struct gpas_backend *ops,
		     const struct gpas_map_params *params)
{
	struct backing *backing;
	int err;

	params = params_or_default(params);
	err = check_map(space, start, size, prot, params);
	if (err == 0) {
		err = check_lazy(params, true);
	}
	if (err == 0 && (ops == NULL || ops->populate == NULL)) {
		err = -EINVAL;
	}
	if (err == 0 && params->mechanism == GPAS_LAZY_UFFD) {
		err = -EOPNOTSUPP; /* whose memory it is, is not known */
	}
	if (err == 0) {
		err = backing_create(GPAS_REGION_BACKEND, params, &backing);
	}
	if (err != 0) {
		return err;
	}
	backing->ops = *ops;
	return insert_backing(space, backing, start, size, prot);
}

static int unmap(struct gpas *space, uint64_t start, uint64_t size,
		 enum txn_mode mode)
{
	struct txn txn;
	int err = txn_open(space, mode, &txn);

	if (err != 0) {
		return err;
	}
	err = txn_remove(space, start, start + size);
	if (err == 0) {
		err = pt_unmap(space->table, start, size);
	}
	if (err == 0) {
		err = txn_touch(space, start, start + size);
	}
	return txn_close(&txn, err);
}

int gpas_unmap(struct gpas *space, gpas_gpa start, uint64_t size)
{
	int err = space_check_range(space, start, size);

	return err != 0 ? err : unmap(space, start.value, size, TXN_RELEASE);
}

int gpas_clear(struct gpas *space)
{
	return unmap(space, space->base, space->end - space->base, TXN_CLEAR);
}

/* Whether regions that @prot can be given to cover the range wholly. */
static int check_protect(const struct gpas *space, const struct region *region,
			 uint64_t start, uint64_t end, unsigned prot)
{
	int err = 0;

	for (uint64_t at = start; at < end && err == 0;
	     at = region->span.end, region = region_of(region->span.next)) {
		if (region == NULL || region->span.start > at ||
		    region->backing->kind == GPAS_REGION_DEVICE) {
			return -ENOENT;
		}
		err = pt_check_attr(space->format, prot,
				    region->backing->memtype);
	}
	return err;
}

static int protect(struct gpas *space, uint64_t start, uint64_t end,
		   unsigned prot)
{
	struct region *region = region_find(space, start);
	int err = check_protect(space, region, start, end, prot);

	if (err == 0) {
		err = txn_set_prot(space, &region, start, end, prot);
	}
	for (; err == 0 && region != NULL && region->span.start < end;
	     region = region_of(region->span.next)) {
		uint64_t from = region->span.start;
		uint64_t to = region->span.end;
		struct pt_bounds bounds = { from, to };

		from = from > start ? from : start;
		to = to < end ? to : end;
		err = pt_protect(space->table, from, to - from, prot, bounds);
	}
	return err == 0 ? txn_touch(space, start, end) : err;
}

int gpas_protect(struct gpas *space, gpas_gpa start, uint64_t size,
		 unsigned prot)
{
	struct txn txn;
	int err = space_check_range(space, start, size);

	if (err == 0) {
		err = pt_check_attr(space->format, prot, GPAS_MEM_WRITE_BACK);
	}
	if (err == 0) {
		err = txn_open(space, TXN_TAKE, &txn);
	}
	if (err != 0) {
		return err;
	}
	err = protect(space, start.value, start.value + size, prot);
	return txn_close(&txn, err);
}
