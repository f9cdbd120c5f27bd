/* SPDX-License-Identifier: MIT */
/*
 * Typed addresses, ranges, access permissions and memory types.
 *
 * A guest-physical address (GPA), a guest-virtual address (GVA) and a host
 * virtual address (HVA) are different structures, so the compiler refuses to
 * mix them up; each is one 64-bit word and travels in a register. Everything
 * here is pure arithmetic: no function allocates, fails silently or wraps.
 */
#ifndef GPAS_ADDR_H
#define GPAS_ADDR_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The library's functions are the only symbols it exports. */
#define GPAS_API __attribute__((visibility("default")))

/* The unit of every mapping: 4 KiB, on every host and for every guest. */
#define GPAS_PAGE_SHIFT 12u
#define GPAS_PAGE_BYTES (UINT64_C(1) << GPAS_PAGE_SHIFT)

/* A guest-physical address, in bytes. */
typedef struct {
	uint64_t value;
} gpas_gpa;

/* A guest-virtual address, in bytes: what a guest's instruction names. */
typedef struct {
	uint64_t value;
} gpas_gva;

/* A host virtual address, in bytes, of the calling process. */
typedef struct {
	uint64_t value;
} gpas_hva;

/*
 * A half-open range of guest-physical addresses.
 * Invariant: start <= end. An empty range has start == end.
 */
struct gpas_range {
	gpas_gpa start;
	gpas_gpa end;
};

/*
 * Permission bits of a mapping, and the kinds of access a guest makes.
 * GPAS_PROT_NONE is a mapping that keeps its memory and refuses every access.
 */
enum gpas_prot {
	GPAS_PROT_NONE = 0,
	GPAS_PROT_READ = 1,
	GPAS_PROT_WRITE = 2,
	GPAS_PROT_EXEC = 4,
	GPAS_PROT_RW = 3,
	GPAS_PROT_RX = 5,
	GPAS_PROT_RWX = 7,
};

/*
 * Cacheability of a mapping as the nested page table records it.
 * Zero is ordinary write-back memory. A format that has no encoding for one of
 * the others refuses it with -EOPNOTSUPP.
 */
enum gpas_memtype {
	GPAS_MEM_WRITE_BACK = 0,
	GPAS_MEM_WRITE_THROUGH,
	GPAS_MEM_WRITE_COMBINING, /* arm64, RISC-V: normal non-cacheable */
	GPAS_MEM_WRITE_PROTECTED,
	GPAS_MEM_UNCACHED, /* device or strongly ordered memory */
};
#define GPAS_MEMTYPE_COUNT 5

static inline gpas_gpa gpas_gpa_at(uint64_t value)
{
	gpas_gpa gpa = { value };

	return gpa;
}

static inline gpas_gva gpas_gva_at(uint64_t value)
{
	gpas_gva gva = { value };

	return gva;
}

static inline gpas_hva gpas_hva_at(uint64_t value)
{
	gpas_hva hva = { value };

	return hva;
}

/* The address of an object of this process, and back. */
static inline gpas_hva gpas_hva_of(const void *host)
{
	return gpas_hva_at((uint64_t)(uintptr_t)host);
}

static inline void *gpas_hva_pointer(gpas_hva hva)
{
	return (void *)(uintptr_t)hva.value;
}

/*
 * gpas_gpa_add - advance @gpa by @offset bytes.
 *
 * Returns 0 and writes @ret, or -EINVAL (@ret untouched) when the sum does not
 * fit into 64 bits.
 */
static inline int gpas_gpa_add(gpas_gpa gpa, uint64_t offset, gpas_gpa *ret)
{
	if (offset > UINT64_MAX - gpa.value) {
		return -EINVAL;
	}
	ret->value = gpa.value + offset;
	return 0;
}

/* Alignment to a power of two; @bytes is 1, 2, 4, ... 2^63. */
static inline bool gpas_is_aligned(uint64_t value, uint64_t bytes)
{
	return (value & (bytes - 1)) == 0;
}

static inline uint64_t gpas_align_down(uint64_t value, uint64_t bytes)
{
	return value & ~(bytes - 1);
}

/*
 * gpas_align_up - round @value up to a multiple of @bytes, a power of two.
 *
 * Returns 0 and writes @ret, or -EINVAL when the result exceeds 64 bits.
 */
static inline int gpas_align_up(uint64_t value, uint64_t bytes, uint64_t *ret)
{
	if (value > UINT64_MAX - (bytes - 1)) {
		return -EINVAL;
	}
	*ret = gpas_align_down(value + (bytes - 1), bytes);
	return 0;
}

/*
 * gpas_range_make - the range of @size bytes from @start on.
 *
 * @size may be 0. Returns 0 and writes @ret, or -EINVAL (@ret untouched) when
 * the end does not fit into 64 bits.
 */
static inline int gpas_range_make(gpas_gpa start, uint64_t size,
				  struct gpas_range *ret)
{
	gpas_gpa end;

	if (gpas_gpa_add(start, size, &end) != 0) {
		return -EINVAL;
	}
	ret->start = start;
	ret->end = end;
	return 0;
}

static inline uint64_t gpas_range_size(struct gpas_range range)
{
	return range.end.value - range.start.value;
}

static inline bool gpas_range_is_empty(struct gpas_range range)
{
	return range.start.value == range.end.value;
}

static inline bool gpas_range_contains(struct gpas_range range, gpas_gpa gpa)
{
	return range.start.value <= gpa.value && gpa.value < range.end.value;
}

/* Whether every byte of @inner is in @outer; an empty @inner must still lie
 * between the ends of @outer. */
static inline bool gpas_range_contains_range(struct gpas_range outer,
					     struct gpas_range inner)
{
	return outer.start.value <= inner.start.value &&
	       inner.end.value <= outer.end.value;
}

/* Whether some byte is in both; false when either is empty. */
static inline bool gpas_range_overlaps(struct gpas_range a, struct gpas_range b)
{
	return !gpas_range_is_empty(a) && !gpas_range_is_empty(b) &&
	       a.start.value < b.end.value && b.start.value < a.end.value;
}

/* The bytes that are in both; an empty range when there are none. */
static inline struct gpas_range gpas_range_intersect(struct gpas_range a,
						     struct gpas_range b)
{
	struct gpas_range both = a;

	if (both.start.value < b.start.value) {
		both.start = b.start;
	}
	if (both.end.value > b.end.value) {
		both.end = b.end;
	}
	if (both.end.value < both.start.value) {
		both.end = both.start;
	}
	return both;
}

#ifdef __cplusplus
}
#endif

#endif
