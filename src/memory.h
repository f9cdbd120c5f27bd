/* SPDX-License-Identifier: MIT */
/*
 * What the rest of the library needs of host memory beyond gpas/memory.h:
 * address-space reservations, and objects placed inside one.
 */
#ifndef GPAS_SRC_MEMORY_H
#define GPAS_SRC_MEMORY_H

#include <gpas/memory.h>

/* Leaves of every size fit when GPA and HVA agree modulo this. */
#define MEMORY_CONGRUENCE (UINT64_C(1) << 30)

/*
 * A stretch of inaccessible, uncommitted address space (PROT_NONE, NORESERVE)
 * of @size usable bytes at @host, with a guard page before and behind.
 */
struct reservation {
	void *host;
	uint64_t size;
	void *map_base; /* what munmap gets */
	uint64_t map_size;
};

/* Reserves @size bytes whose address is congruent to @gpa modulo 1 GiB.
 * 0, or -ENOMEM. */
int reservation_create(uint64_t size, uint64_t gpa, struct reservation *ret);
void reservation_destroy(struct reservation *reservation);

/*
 * As gpas_memory_create(), with the object at @fixed, inside a reservation
 * that outlives it; its owner retires every part of it, and putting the last
 * reference leaves the range alone, since others may have moved in. With
 * @fixed NULL the object makes its own
 * reservation, congruent to @gpa modulo 1 GiB.
 */
int memory_create_at(uint64_t size, const struct gpas_memory_params *params,
		     void *fixed, uint64_t gpa, struct gpas_memory **ret);

/* Gives [offset, offset + size) back for good: no page stays, the range is
 * inaccessible from now on. Never fails visibly. */
void memory_retire(struct gpas_memory *memory, uint64_t offset, uint64_t size);

/* Whether the bytes are a file's of the caller's, shared with it. */
bool memory_belongs_to_others(const struct gpas_memory *memory);

/* The unit the object's memory comes in: 4 KiB, or a huge page. */
uint64_t memory_page_bytes(const struct gpas_memory *memory);

/* Advises the host that the range is filled piece by piece (no transparent
 * huge pages), so that presence is decided by the table alone. */
void memory_piecewise(struct gpas_memory *memory);

#endif
