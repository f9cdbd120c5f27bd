/* SPDX-License-Identifier: MIT */
/*
 * A claim: one device at one range, reference-counted so that an access can
 * run without any lock while the device is being removed.
 */
#ifndef GPAS_SRC_DEVICE_H
#define GPAS_SRC_DEVICE_H

#include <gpas/device.h>

#include "span.h"

#include <stdatomic.h>

#define DEVICE_NAME_BYTES 32

struct claim {
	struct span span; /* ports and registers; unused for device regions */
	atomic_uint refs;
	struct gpas_device device; /* name points to the array below */
	char name[DEVICE_NAME_BYTES];
};

/* A claim with one reference, owned by the caller. -EINVAL, -ENOMEM. */
int claim_create(const struct gpas_device *device, struct claim **ret);
struct claim *claim_get(struct claim *claim);
void claim_put(struct claim *claim);

/*
 * Carries out one access of register number @offset of a range of @count: a
 * register is one address and 8 bytes, never cut into pieces.
 */
int claim_access_register(struct claim *claim, uint64_t count, uint64_t offset,
			  uint64_t *value, bool write);

/*
 * Carries out one access at @offset of a range of @range_size bytes, in
 * aligned pieces of the device's widths. See gpas_device_dispatch().
 */
int claim_access(struct claim *claim, uint64_t range_size, uint64_t offset,
		 void *data, size_t size, bool write);

#endif
