/* SPDX-License-Identifier: MIT */
/*
 * Devices: addresses whose accesses are calls.
 *
 * A device occupies a range in one of three address kinds of a space:
 * guest-physical addresses (a device region, see gpas_map_device), I/O ports,
 * or system registers (x86: model-specific registers). Ranges of one kind
 * never overlap. One lookup and one dispatch serve all three.
 */
#ifndef GPAS_DEVICE_H
#define GPAS_DEVICE_H

#include <gpas/addr.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpas;

enum gpas_address_kind {
	GPAS_ADDRESS_GPA = 0,
	GPAS_ADDRESS_PORT,
	GPAS_ADDRESS_SYSREG,
};
#define GPAS_ADDRESS_KIND_COUNT 3

/* Access widths, in bytes, as a mask: the value of a width is its own bit. */
enum gpas_width {
	GPAS_WIDTH_1 = 1,
	GPAS_WIDTH_2 = 2,
	GPAS_WIDTH_4 = 4,
	GPAS_WIDTH_8 = 8,
	GPAS_WIDTH_ALL = 15,
};

/*
 * One access as a device sees it.
 * Invariant: width is one of the device's widths; offset is relative to the
 * start of the device's range and offset + width does not leave it.
 */
struct gpas_device_access {
	uint64_t offset;
	unsigned width;
	bool write;
	/* The value written (upper bytes zero), or where the device puts the
	 * value read (upper bytes are ignored). Host byte order. */
	uint64_t value;
};

/*
 * A device. The structure is copied when the device is added.
 *
 * access is called on the thread that handles the guest's exit, with no lock
 * of the space held: it may call any function of the space, and calls for
 * several vCPUs may run at once. A nonzero return is reported to the embedder;
 * a read then yields all ones.
 *
 * release (may be NULL) is called once, after the device was removed and the
 * last running access returned.
 */
struct gpas_device {
	const char *name; /* copied; NULL is "device" */
	unsigned widths;  /* mask of gpas_width; 0 means all four */
	void *ctx;
	int (*access)(void *ctx, struct gpas_device_access *access);
	void (*release)(void *ctx);
};

/*
 * gpas_add_device - claim [first, first + count) of ports or system registers.
 *
 * Errors (nothing has changed): -EINVAL a GPA (use gpas_map_device), count 0,
 * a port above 0xffff, a register number above 0xffffffff, no access function,
 * unknown widths; -EEXIST overlap; -ENOMEM; the errno of an ioctl when the
 * space is attached to a VM and KVM refuses to deliver the registers.
 */
GPAS_API int gpas_add_device(struct gpas *space, enum gpas_address_kind kind,
			     uint64_t first, uint64_t count,
			     const struct gpas_device *device);

/* gpas_remove_device - the inverse; @first as it was added. -ENOENT if no
 * range of that kind starts there. */
GPAS_API int gpas_remove_device(struct gpas *space, enum gpas_address_kind kind,
				uint64_t first);

/*
 * gpas_device_dispatch - carry out one access of @size bytes at @addr.
 *
 * @data holds the bytes to write, or receives the bytes read, in the guest's
 * (little-endian) order. An access whose size is not one of the device's
 * widths, or that is not naturally aligned, is carried out in aligned pieces
 * of the widths it has. A register access has size 8 and is one call of width
 * 8, which the device must have; its offset counts registers.
 *
 * Errors: -ENOENT nothing claims the address; -EINVAL the device has no width
 * small enough for a piece, or the access leaves its range; the device's own
 * error. On every error a read yields all ones.
 * Concurrency: any thread.
 */
GPAS_API int gpas_device_dispatch(struct gpas *space,
				  enum gpas_address_kind kind, uint64_t addr,
				  void *data, size_t size, bool write);

#ifdef __cplusplus
}
#endif

#endif
