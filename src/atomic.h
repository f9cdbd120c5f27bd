/* SPDX-License-Identifier: MIT */
/* Atomic accesses to guest memory of a width known at run time. */
#ifndef GPAS_SRC_ATOMIC_H
#define GPAS_SRC_ATOMIC_H

#include <gpas/addr.h>

/* 0 when @gpa is a place for an atomic access of @width bytes, or -EINVAL. */
static inline int check_atomic(gpas_gpa gpa, unsigned width)
{
	bool known = width == 1 || width == 2 || width == 4 || width == 8;

	return known && gpas_is_aligned(gpa.value, width) ? 0 : -EINVAL;
}

/* The widest first: it is by far the most frequent. */
static inline uint64_t load_atomic(const void *host, unsigned width)
{
	if (__builtin_expect(width == 8, 1)) {
		return __atomic_load_n((const uint64_t *)host,
				       __ATOMIC_ACQUIRE);
	}
	switch (width) {
	case 1:
		return __atomic_load_n((const uint8_t *)host, __ATOMIC_ACQUIRE);
	case 2:
		return __atomic_load_n((const uint16_t *)host,
				       __ATOMIC_ACQUIRE);
	default:
		return __atomic_load_n((const uint32_t *)host,
				       __ATOMIC_ACQUIRE);
	}
}

static inline void store_atomic(void *host, unsigned width, uint64_t value)
{
	if (__builtin_expect(width == 8, 1)) {
		__atomic_store_n((uint64_t *)host, value, __ATOMIC_RELEASE);
		return;
	}
	switch (width) {
	case 1:
		__atomic_store_n((uint8_t *)host, (uint8_t)value,
				 __ATOMIC_RELEASE);
		break;
	case 2:
		__atomic_store_n((uint16_t *)host, (uint16_t)value,
				 __ATOMIC_RELEASE);
		break;
	default:
		__atomic_store_n((uint32_t *)host, (uint32_t)value,
				 __ATOMIC_RELEASE);
		break;
	}
}

#endif
