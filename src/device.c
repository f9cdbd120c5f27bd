/* SPDX-License-Identifier: MIT */
/*
 * Claims: how long a device lives, and how an access of any size becomes
 * calls of the widths that the device has.
 */
#include "device.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void copy_name(struct claim *claim, const char *name)
{
	size_t length = strnlen(name, DEVICE_NAME_BYTES - 1);

	memcpy(claim->name, name, length);
	claim->name[length] = '\0';
	claim->device.name = claim->name;
}

int claim_create(const struct gpas_device *device, struct claim **ret)
{
	struct claim *claim;

	if (device == NULL || device->access == NULL ||
	    (device->widths & ~(unsigned)GPAS_WIDTH_ALL) != 0) {
		return -EINVAL;
	}
	claim = calloc(1, sizeof(*claim));
	if (claim == NULL) {
		return -ENOMEM;
	}
	claim->device = *device;
	if (claim->device.widths == 0) {
		claim->device.widths = GPAS_WIDTH_ALL;
	}
	copy_name(claim, device->name != NULL ? device->name : "device");
	atomic_init(&claim->refs, 1);
	*ret = claim;
	return 0;
}

struct claim *claim_get(struct claim *claim)
{
	atomic_fetch_add_explicit(&claim->refs, 1, memory_order_relaxed);
	return claim;
}

void claim_put(struct claim *claim)
{
	unsigned refs;

	if (claim == NULL) {
		return;
	}
	/* What other threads did under their references happens before the
	 * release callback. */
	refs = atomic_fetch_sub_explicit(&claim->refs, 1, memory_order_acq_rel);
	if (refs != 1) {
		return;
	}
	if (claim->device.release != NULL) {
		claim->device.release(claim->device.ctx);
	}
	free(claim);
}

/*
 * Whether an access can be cut into aligned pieces of the widths in the mask.
 *
 * Widths are powers of two, so every piece is a multiple of the narrowest one:
 * an access that this does not divide has no cut. One that it divides has one,
 * since the narrowest width fits wherever no wider one does.
 */
static bool is_divisible(unsigned widths, uint64_t offset, size_t size)
{
	unsigned narrowest = widths & (0u - widths);

	return gpas_is_aligned(offset, narrowest) &&
	       gpas_is_aligned(size, narrowest);
}

/* The widest piece at @offset; is_divisible() holds for what is left. */
static unsigned piece_width(unsigned widths, uint64_t offset, size_t left)
{
	unsigned width = GPAS_WIDTH_8;

	while ((widths & width) == 0 || width > left ||
	       !gpas_is_aligned(offset, width)) {
		width >>= 1;
	}
	return width;
}

static uint64_t load_little_endian(const uint8_t *bytes, unsigned width)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < width; i++) {
		value |= (uint64_t)bytes[i] << (8 * i);
	}
	return value;
}

static void store_little_endian(uint8_t *bytes, unsigned width, uint64_t value)
{
	for (unsigned i = 0; i < width; i++) {
		bytes[i] = (uint8_t)(value >> (8 * i));
	}
}

/* -ENOENT is the library's word for an address that nobody claims. */
static int call_device(const struct gpas_device *device,
		       struct gpas_device_access *access)
{
	int err = device->access(device->ctx, access);

	return err == -ENOENT ? -EIO : err;
}

/* One call of the device, for @width bytes at @offset. */
static int access_piece(const struct gpas_device *device, uint64_t offset,
			uint8_t *bytes, unsigned width, bool write)
{
	struct gpas_device_access access = {
		.offset = offset,
		.width = width,
		.write = write,
		.value = write ? load_little_endian(bytes, width) : 0,
	};
	int err = call_device(device, &access);

	if (err == 0 && !write) {
		store_little_endian(bytes, width, access.value);
	}
	return err;
}

static int access_pieces(const struct gpas_device *device, uint64_t offset,
			 uint8_t *bytes, size_t size, bool write)
{
	size_t done = 0;
	int err = 0;

	while (err == 0 && done < size) {
		unsigned width =
			piece_width(device->widths, offset + done, size - done);

		err = access_piece(device, offset + done, bytes + done, width,
				   write);
		done += width;
	}
	return err;
}

int claim_access(struct claim *claim, uint64_t range_size, uint64_t offset,
		 void *data, size_t size, bool write)
{
	const struct gpas_device *device = &claim->device;
	int err;

	/* Refused as a whole before the first call: a device never sees half
	 * of an access that cannot be finished. */
	if (size == 0 || offset > range_size || size > range_size - offset ||
	    !is_divisible(device->widths, offset, size)) {
		err = -EINVAL;
	} else {
		err = access_pieces(device, offset, data, size, write);
	}
	if (err != 0 && !write && size != 0) {
		memset(data, 0xff, size);
	}
	return err;
}

int claim_access_register(struct claim *claim, uint64_t count, uint64_t offset,
			  uint64_t *value, bool write)
{
	struct gpas_device_access access = {
		.offset = offset,
		.width = GPAS_WIDTH_8,
		.write = write,
		.value = write ? *value : 0,
	};
	int err = -EINVAL;

	if (offset < count && (claim->device.widths & GPAS_WIDTH_8) != 0) {
		err = call_device(&claim->device, &access);
	}
	if (!write) {
		*value = err == 0 ? access.value : UINT64_MAX;
	}
	return err;
}
