/* SPDX-License-Identifier: MIT */
/*
 * Host memory objects: what guest memory is made of.
 *
 * An object owns a stretch of this process's address space with an
 * inaccessible guard page at either end, and the file descriptor behind it
 * where there is one. It is reference-counted; its creator holds the first
 * reference and every region that maps it holds one more.
 *
 * Concurrency: get, put and the accessors may be called from any thread.
 */
#ifndef GPAS_MEMORY_H
#define GPAS_MEMORY_H

#include <gpas/addr.h>

#ifdef __cplusplus
extern "C" {
#endif

enum gpas_memory_kind {
	GPAS_MEMORY_ANON = 0, /* private, zero-filled, no fd */
	GPAS_MEMORY_MEMFD,    /* shared, zero-filled, fd can be handed on */
	GPAS_MEMORY_HUGETLB,  /* memfd of huge pages from the host's pool */
	GPAS_MEMORY_FILE,     /* a file of the caller's */
};

/* How to create an object; all zero is 4 KiB-paged anonymous memory. */
struct gpas_memory_params {
	enum gpas_memory_kind kind;
	/* HUGETLB: 21 or 30; 0 means 21. */
	unsigned huge_shift;
	/* FILE: an open file, duplicated by the call, and the page-aligned
	 * offset of the object's first byte in it. */
	int fd;
	uint64_t fd_offset;
	/* FILE: guest stores reach the file (MAP_SHARED) instead of staying
	 * private to this process. The file must be open for writing. */
	bool shared;
};

struct gpas_memory;

/*
 * gpas_memory_create - an object of @size bytes.
 *
 * @params may be NULL. The host address is page-aligned; objects of 2 MiB or
 * 1 GiB and more are aligned so that leaves of that size can map them. No host
 * memory is committed before it is touched, except huge pages, which are set
 * aside at once so that a guest cannot run the pool dry later.
 *
 * Errors: -EINVAL size 0, unaligned (to the huge page size for HUGETLB), a bad
 * kind or offset; -ENOMEM no address space, or no huge pages left in the
 * host's pool; -EBADF no such file; -ENODATA the file ends before
 * fd_offset + size; -EACCES not open for what was asked; -EMFILE.
 */
GPAS_API int gpas_memory_create(uint64_t size,
				const struct gpas_memory_params *params,
				struct gpas_memory **ret);

/* Takes and gives back a reference; the last put unmaps the memory and closes
 * the descriptor. put(NULL) does nothing. */
GPAS_API struct gpas_memory *gpas_memory_get(struct gpas_memory *memory);
GPAS_API void gpas_memory_put(struct gpas_memory *memory);

GPAS_API void *gpas_memory_host(const struct gpas_memory *memory);
GPAS_API uint64_t gpas_memory_size(const struct gpas_memory *memory);
GPAS_API enum gpas_memory_kind gpas_memory_kind(
	const struct gpas_memory *memory);

/*
 * gpas_memory_fd - the descriptor behind the object and the file offset of its
 * first byte (@offset may be NULL).
 *
 * The object keeps owning it: duplicate it to keep it longer. Returns -1 for
 * anonymous memory.
 */
GPAS_API int gpas_memory_fd(const struct gpas_memory *memory, uint64_t *offset);

/*
 * gpas_memory_discard - give the bytes [offset, offset + size) back to the
 * host; they read as zero (for a private file: as the file) afterwards.
 *
 * The mapping itself stays. Errors: -EINVAL unaligned or out of range (to the
 * huge page size for HUGETLB); -EOPNOTSUPP a shared file that cannot be
 * punched.
 */
GPAS_API int gpas_memory_discard(struct gpas_memory *memory, uint64_t offset,
				 uint64_t size);

#ifdef __cplusplus
}
#endif

#endif
