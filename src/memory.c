/* SPDX-License-Identifier: MIT */
/*
 * Host memory objects: the mapping and the descriptor behind guest memory, and
 * the stretches of address space that objects are placed in.
 *
 * Everything that can fail happens before an object exists. Taking one down
 * cannot be refused, whatever the host is short of.
 */
#include "memory.h"

#include <assert.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* memfd_create(2): the binary logarithm of the page size, from this bit on. */
#define MEMFD_HUGE_SHIFT 26

/*
 * Invariants: host is aligned to page_bytes and size is a positive multiple of
 * it; fd is -1 exactly for anonymous memory. own.map_base is NULL when the
 * object lies in a reservation of someone else's.
 */
struct gpas_memory {
	atomic_uint refs;
	enum gpas_memory_kind kind;
	bool shared; /* stores reach the descriptor */
	int fd;
	uint64_t fd_offset;
	uint64_t page_bytes;
	void *host;
	uint64_t size;
	struct reservation own;
	/* Huge pages only: how many 4 KiB pieces of each were retired. */
	uint32_t *retired_pieces;
};

/* ---- reservations -------------------------------------------------- */

#define INACCESSIBLE_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static void *address_at(uint64_t value)
{
	return gpas_hva_pointer(gpas_hva_at(value));
}

/*
 * Gives the ends of [base, base + size) that a reservation does not need back
 * to the process. Where the host refuses, which it may when it has to split a
 * mapping for it, the end stays part of the reservation.
 */
static void reservation_trim(struct reservation *r)
{
	uint64_t base = (uintptr_t)r->map_base;
	uint64_t end = base + r->map_size;
	uint64_t low = (uintptr_t)r->host - GPAS_PAGE_BYTES;
	uint64_t high = (uintptr_t)r->host + r->size + GPAS_PAGE_BYTES;

	if (base < low && munmap(address_at(base), low - base) == 0) {
		base = low;
	}
	if (high < end && munmap(address_at(high), end - high) == 0) {
		end = high;
	}
	r->map_base = address_at(base);
	r->map_size = end - base;
}

int reservation_create(uint64_t size, uint64_t gpa, struct reservation *ret)
{
	const uint64_t slack = 2 * GPAS_PAGE_BYTES + MEMORY_CONGRUENCE;
	struct reservation r = { .size = size };
	uint64_t first;

	assert(size != 0 && gpas_is_aligned(size | gpa, GPAS_PAGE_BYTES));
	if (size > SIZE_MAX - slack) {
		return -ENOMEM;
	}
	r.map_size = size + slack;
	r.map_base =
		mmap(NULL, r.map_size, PROT_NONE, INACCESSIBLE_FLAGS, -1, 0);
	if (r.map_base == MAP_FAILED) {
		return -ENOMEM;
	}
	/* The lowest address behind a guard page that is congruent to @gpa is
	 * less than MEMORY_CONGRUENCE away. */
	first = (uintptr_t)r.map_base + GPAS_PAGE_BYTES;
	first += (gpa - first) & (MEMORY_CONGRUENCE - 1);
	r.host = address_at(first);
	reservation_trim(&r);
	*ret = r;
	return 0;
}

void reservation_destroy(struct reservation *reservation)
{
	if (reservation->map_base != NULL) {
		munmap(reservation->map_base, reservation->map_size);
	}
	*reservation = (struct reservation){ 0 };
}

/*
 * Turns mapped addresses back into reserved ones; what was mapped there is
 * dropped. 0 or -errno, when the host has no mapping left to split this off.
 */
static int make_inaccessible(void *host, uint64_t size)
{
	void *map = mmap(host, size, PROT_NONE, INACCESSIBLE_FLAGS | MAP_FIXED,
			 -1, 0);

	return map == MAP_FAILED ? -errno : 0;
}

/* ---- the descriptor ------------------------------------------------ */

static int open_memfd(struct gpas_memory *m, unsigned flags)
{
	m->fd = memfd_create("gpas", MFD_CLOEXEC | flags);
	if (m->fd < 0) {
		return -errno;
	}
	m->shared = true;
	return ftruncate(m->fd, (off_t)m->size) != 0 ? -errno : 0;
}

/* mmap's errno as the library documents it: a sealed file says EPERM where one
 * not open for writing says EACCES, a file that no one can map says ENODEV, and
 * a process that locks all its memory is told EAGAIN at its limit. */
static int map_error(int error)
{
	switch (error) {
	case EPERM:
		return -EACCES;
	case ENODEV:
		return -EINVAL;
	case EAGAIN:
		return -ENOMEM;
	default:
		return -error;
	}
}

static int map_flags(const struct gpas_memory *m)
{
	if (m->shared) {
		return MAP_SHARED;
	}
	return MAP_PRIVATE | MAP_NORESERVE |
	       (m->kind == GPAS_MEMORY_ANON ? MAP_ANONYMOUS : 0);
}

/*
 * Maps the descriptor's first @size bytes anywhere, to learn whether it can be
 * done. At the final address that would be too late: the kernel may drop the
 * reservation there before it asks the file.
 */
static int try_mapping(const struct gpas_memory *m, uint64_t size)
{
	void *trial = mmap(NULL, size, PROT_READ | PROT_WRITE, map_flags(m),
			   m->fd, (off_t)m->fd_offset);

	if (trial == MAP_FAILED) {
		return map_error(errno);
	}
	munmap(trial, size);
	return 0;
}

static int open_hugetlb(struct gpas_memory *m)
{
	unsigned shift = (unsigned)__builtin_ctzll(m->page_bytes);
	int err;

	m->retired_pieces =
		calloc(m->size / m->page_bytes, sizeof(*m->retired_pieces));
	if (m->retired_pieces == NULL) {
		return -ENOMEM;
	}
	err = open_memfd(m, MFD_HUGETLB | shift << MEMFD_HUGE_SHIFT);
	/* A host without pages of this size has a pool of none. */
	if (err == -ENODEV || err == -ENOSYS) {
		return -ENOMEM;
	}
	/* The trial sets all the pages aside: a shared mapping reserves them
	 * for the file, not for itself, so that outlives it. */
	return err == 0 ? try_mapping(m, m->size) : err;
}

/* The bytes in the caller's file or block device. */
static int file_bytes(int fd, uint64_t *ret)
{
	struct stat st;

	if (fstat(fd, &st) != 0) {
		return -errno;
	}
	if (S_ISREG(st.st_mode)) {
		*ret = (uint64_t)st.st_size;
		return 0;
	}
	if (S_ISBLK(st.st_mode)) {
		return ioctl(fd, BLKGETSIZE64, ret) != 0 ? -errno : 0;
	}
	return -EINVAL;
}

static int open_file(struct gpas_memory *m,
		     const struct gpas_memory_params *params)
{
	uint64_t bytes;
	int err;

	m->fd = fcntl(params->fd, F_DUPFD_CLOEXEC, 0);
	if (m->fd < 0) {
		/* EINVAL would be about the lowest descriptor asked for, which
		 * RLIMIT_NOFILE = 0 forbids. */
		return errno == EINVAL ? -EMFILE : -errno;
	}
	err = file_bytes(m->fd, &bytes);
	if (err != 0) {
		return err;
	}
	if (bytes < m->size || params->fd_offset > bytes - m->size) {
		return -ENODATA;
	}
	m->fd_offset = params->fd_offset;
	m->shared = params->shared;
	return try_mapping(m, GPAS_PAGE_BYTES);
}

static int open_backing(struct gpas_memory *m,
			const struct gpas_memory_params *params)
{
	switch (m->kind) {
	case GPAS_MEMORY_MEMFD:
		return open_memfd(m, 0);
	case GPAS_MEMORY_HUGETLB:
		return open_hugetlb(m);
	case GPAS_MEMORY_FILE:
		return open_file(m, params);
	case GPAS_MEMORY_ANON:
	default:
		return 0;
	}
}

/* ---- the object ---------------------------------------------------- */

/* The unit in which memory of this kind is mapped; 0 for bad parameters. */
static uint64_t page_bytes_of(const struct gpas_memory_params *params)
{
	switch (params->kind) {
	case GPAS_MEMORY_ANON:
	case GPAS_MEMORY_MEMFD:
	case GPAS_MEMORY_FILE:
		return GPAS_PAGE_BYTES;
	case GPAS_MEMORY_HUGETLB:
		if (params->huge_shift == 30) {
			return UINT64_C(1) << 30;
		}
		return params->huge_shift == 0 || params->huge_shift == 21
			       ? UINT64_C(1) << 21
			       : 0;
	default:
		return 0;
	}
}

static bool params_are_valid(uint64_t size, uint64_t page_bytes,
			     const struct gpas_memory_params *params)
{
	if (page_bytes == 0 || size == 0 ||
	    !gpas_is_aligned(size, page_bytes)) {
		return false;
	}
	/* File offsets are signed. */
	return params->kind != GPAS_MEMORY_FILE ||
	       (gpas_is_aligned(params->fd_offset, GPAS_PAGE_BYTES) &&
		params->fd_offset <= INT64_MAX);
}

/* Finds the object its address. */
static int place(struct gpas_memory *m, void *fixed, uint64_t gpa)
{
	int err;

	if (fixed != NULL) {
		m->host = fixed;
		return 0;
	}
	err = reservation_create(m->size, gpa, &m->own);
	m->host = m->own.host;
	return err;
}

/*
 * Maps the object over its reserved addresses. A failure may have cost the
 * reservation, so the addresses are reserved again.
 */
static int map_object(struct gpas_memory *m)
{
	void *map = mmap(m->host, m->size, PROT_READ | PROT_WRITE,
			 map_flags(m) | MAP_FIXED, m->fd, (off_t)m->fd_offset);
	int err;

	if (map != MAP_FAILED) {
		return 0;
	}
	err = map_error(errno);
	(void)make_inaccessible(m->host, m->size);
	return err;
}

/* Undoes open_backing() and place(), as far as they came. */
static void release(struct gpas_memory *m)
{
	reservation_destroy(&m->own);
	if (m->fd >= 0) {
		close(m->fd);
	}
	free(m->retired_pieces);
	free(m);
}

static int build(struct gpas_memory *m, const struct gpas_memory_params *params,
		 void *fixed, uint64_t gpa)
{
	int err = open_backing(m, params);

	if (err == 0) {
		err = place(m, fixed, gpa);
	}
	return err == 0 ? map_object(m) : err;
}

int memory_create_at(uint64_t size, const struct gpas_memory_params *params,
		     void *fixed, uint64_t gpa, struct gpas_memory **ret)
{
	static const struct gpas_memory_params defaults;
	uint64_t at = fixed != NULL ? (uintptr_t)fixed : gpa;
	uint64_t page_bytes;
	struct gpas_memory *m;
	int err;

	params = params != NULL ? params : &defaults;
	page_bytes = page_bytes_of(params);
	if (!params_are_valid(size, page_bytes, params) ||
	    !gpas_is_aligned(at, page_bytes)) {
		return -EINVAL;
	}
	if (size > INT64_MAX) {
		return -ENOMEM;
	}
	m = calloc(1, sizeof(*m));
	if (m == NULL) {
		return -ENOMEM;
	}
	m->kind = params->kind;
	m->fd = -1;
	m->page_bytes = page_bytes;
	m->size = size;
	atomic_init(&m->refs, 1);
	err = build(m, params, fixed, gpa);
	if (err != 0) {
		release(m);
		return err;
	}
	*ret = m;
	return 0;
}

int gpas_memory_create(uint64_t size, const struct gpas_memory_params *params,
		       struct gpas_memory **ret)
{
	return memory_create_at(size, params, NULL, 0, ret);
}

struct gpas_memory *gpas_memory_get(struct gpas_memory *memory)
{
	atomic_fetch_add_explicit(&memory->refs, 1, memory_order_relaxed);
	return memory;
}

void gpas_memory_put(struct gpas_memory *memory)
{
	unsigned refs;

	if (memory == NULL) {
		return;
	}
	refs = atomic_fetch_sub_explicit(&memory->refs, 1,
					 memory_order_acq_rel);
	if (refs != 1) {
		return;
	}
	release(memory);
}

bool memory_belongs_to_others(const struct gpas_memory *memory)
{
	return memory->kind == GPAS_MEMORY_FILE && memory->shared;
}

uint64_t memory_page_bytes(const struct gpas_memory *memory)
{
	return memory->page_bytes;
}

void *gpas_memory_host(const struct gpas_memory *memory)
{
	return memory->host;
}

uint64_t gpas_memory_size(const struct gpas_memory *memory)
{
	return memory->size;
}

enum gpas_memory_kind gpas_memory_kind(const struct gpas_memory *memory)
{
	return memory->kind;
}

int gpas_memory_fd(const struct gpas_memory *memory, uint64_t *offset)
{
	if (offset != NULL) {
		*offset = memory->fd_offset;
	}
	return memory->fd;
}

/* ---- giving memory back -------------------------------------------- */

static bool is_within(const struct gpas_memory *m, uint64_t offset,
		      uint64_t size)
{
	return size != 0 && gpas_is_aligned(offset | size, m->page_bytes) &&
	       offset <= m->size && size <= m->size - offset;
}

static int punch_hole(const struct gpas_memory *m, uint64_t offset,
		      uint64_t size)
{
	int err = fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)(m->fd_offset + offset), (off_t)size);

	return err != 0 ? -errno : 0;
}

int gpas_memory_discard(struct gpas_memory *memory, uint64_t offset,
			uint64_t size)
{
	if (!is_within(memory, offset, size)) {
		return -EINVAL;
	}
	if (memory->shared) {
		return punch_hole(memory, offset, size);
	}
	if (madvise((char *)memory->host + offset, size, MADV_DONTNEED) != 0) {
		return -errno;
	}
	return 0;
}

/* Retires whole pages, of whatever size the object has. */
static void retire_pages(const struct gpas_memory *m, uint64_t offset,
			 uint64_t size)
{
	char *host = (char *)m->host + offset;

	/* A host that has no mapping left to split can still take the pages of
	 * private memory. */
	if (make_inaccessible(host, size) != 0 && !m->shared) {
		(void)madvise(host, size, MADV_DONTNEED);
	}
	/* Another process may hold the descriptor; without the hole its pages
	 * would stay. A file is the caller's and keeps its content. */
	if (m->kind == GPAS_MEMORY_MEMFD || m->kind == GPAS_MEMORY_HUGETLB) {
		(void)punch_hole(m, offset, size);
	}
}

/*
 * The host takes huge pages back whole. What is retired of one in pieces is
 * counted, and the page goes with the last piece.
 */
static void retire_pieces(struct gpas_memory *m, uint64_t offset, uint64_t size)
{
	const uint64_t end = offset + size;

	while (offset < end) {
		uint64_t page = gpas_align_down(offset, m->page_bytes);
		uint64_t left = page + m->page_bytes - offset;
		uint64_t bytes = left < end - offset ? left : end - offset;
		uint32_t *retired = &m->retired_pieces[page / m->page_bytes];

		*retired += (uint32_t)(bytes >> GPAS_PAGE_SHIFT);
		if (*retired == m->page_bytes >> GPAS_PAGE_SHIFT) {
			retire_pages(m, page, m->page_bytes);
		}
		offset += bytes;
	}
}

void memory_retire(struct gpas_memory *memory, uint64_t offset, uint64_t size)
{
	assert(offset <= memory->size && size <= memory->size - offset &&
	       gpas_is_aligned(offset | size, GPAS_PAGE_BYTES));
	if (memory->retired_pieces != NULL) {
		retire_pieces(memory, offset, size);
	} else {
		retire_pages(memory, offset, size);
	}
}

void memory_piecewise(struct gpas_memory *memory)
{
	(void)madvise(memory->host, memory->size, MADV_NOHUGEPAGE);
}
