/* SPDX-License-Identifier: MIT */
/*
 * The devices of a space: ports and system registers by their own ordered
 * sets, guest-physical ranges by the region set; one dispatch for all.
 */
#include "space.h"

#include <string.h>

/* The numbers that an address kind other than GPA has. */
static uint64_t address_limit(enum gpas_address_kind kind)
{
	return kind == GPAS_ADDRESS_PORT ? UINT64_C(1) << 16
					 : UINT64_C(1) << 32;
}

static int check_claim(enum gpas_address_kind kind, uint64_t first,
		       uint64_t count)
{
	uint64_t limit;

	if (kind != GPAS_ADDRESS_PORT && kind != GPAS_ADDRESS_SYSREG) {
		return -EINVAL;
	}
	limit = address_limit(kind);
	return count != 0 && first < limit && count <= limit - first ? 0
								     : -EINVAL;
}

/* Tells KVM which registers to deliver, if that is what changed. */
static int claims_changed(struct gpas *space, enum gpas_address_kind kind)
{
	return kind == GPAS_ADDRESS_SYSREG ? kvm_deliver_sysregs(space) : 0;
}

static int insert_claim(struct gpas *space, enum gpas_address_kind kind,
			struct claim *claim)
{
	bool locked = space_lock(space);
	int err = span_insert(&space->claims[kind], &claim->span);

	if (err == 0) {
		err = claims_changed(space, kind);
		if (err != 0) {
			span_remove(&space->claims[kind], &claim->span);
		}
	}
	space_unlock(space, locked);
	return err;
}

int gpas_add_device(struct gpas *space, enum gpas_address_kind kind,
		    uint64_t first, uint64_t count,
		    const struct gpas_device *device)
{
	struct claim *claim;
	int err = check_claim(kind, first, count);

	if (err == 0) {
		err = claim_create(device, &claim);
	}
	if (err != 0) {
		return err;
	}
	claim->span.start = first;
	claim->span.end = first + count;
	err = insert_claim(space, kind, claim);
	if (err != 0) {
		claim->device.release = NULL;
		claim_put(claim);
	}
	return err;
}

int gpas_remove_device(struct gpas *space, enum gpas_address_kind kind,
		       uint64_t first)
{
	struct span *span;
	bool locked;

	if (check_claim(kind, first, 1) != 0) {
		return -EINVAL;
	}
	locked = space_lock(space);
	span = span_find(&space->claims[kind], first);
	if (span != NULL && span->start == first) {
		span_remove(&space->claims[kind], span);
		/* KVM going on delivering it does no harm: nobody claims it. */
		(void)claims_changed(space, kind);
	} else {
		span = NULL;
	}
	space_unlock(space, locked);
	if (span == NULL) {
		return -ENOENT;
	}
	claim_put((struct claim *)span);
	return 0;
}

/* Finds who claims @addr, with a reference, and where in the claim it is. */
static int find_claim(struct gpas *space, enum gpas_address_kind kind,
		      uint64_t addr, struct resolution *ret)
{
	bool locked = space_lock(space);

	*ret = (struct resolution){ 0 };
	if (kind == GPAS_ADDRESS_GPA) {
		struct region *region = region_find(space, addr);

		if (region != NULL &&
		    region->backing->kind == GPAS_REGION_DEVICE) {
			resolve_claim(region, addr, ret);
		}
	} else {
		struct span *span = span_find(&space->claims[kind], addr);

		if (span != NULL) {
			ret->claim = claim_get((struct claim *)span);
			ret->device_offset = addr - span->start;
			ret->device_size = span->end - span->start;
		}
	}
	space_unlock(space, locked);
	return ret->claim != NULL ? 0 : -ENOENT;
}

int dispatch_claim(struct gpas *space, struct resolution *found, void *data,
		   size_t size, bool write)
{
	int err = claim_access(found->claim, found->device_size,
			       found->device_offset, data, size, write);

	count(&space->stats.device_accesses, 1);
	claim_put(found->claim);
	found->claim = NULL;
	return err;
}

static int dispatch_register(struct gpas *space, struct resolution *found,
			     void *data, size_t size, bool write)
{
	uint64_t value = UINT64_MAX;
	int err = -EINVAL;

	if (size == sizeof(value)) {
		memcpy(&value, data, sizeof(value));
		err = claim_access_register(found->claim, found->device_size,
					    found->device_offset, &value,
					    write);
		count(&space->stats.device_accesses, 1);
	}
	if (!write) {
		memset(data, 0xff, size);
		memcpy(data, &value,
		       size < sizeof(value) ? size : sizeof(value));
	}
	claim_put(found->claim);
	found->claim = NULL;
	return err;
}

int gpas_device_dispatch(struct gpas *space, enum gpas_address_kind kind,
			 uint64_t addr, void *data, size_t size, bool write)
{
	struct resolution found;
	int err = (unsigned)kind < GPAS_ADDRESS_KIND_COUNT
			  ? find_claim(space, kind, addr, &found)
			  : -EINVAL;

	if (err == 0 && kind == GPAS_ADDRESS_SYSREG) {
		return dispatch_register(space, &found, data, size, write);
	}
	if (err == 0) {
		return dispatch_claim(space, &found, data, size, write);
	}
	if (!write) {
		memset(data, 0xff, size);
	}
	return err;
}
