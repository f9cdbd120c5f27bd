/* SPDX-License-Identifier: MIT */
/*
 * A guest-physical address space.
 *
 * Regions say what the VMM wants; a software nested page table says what is;
 * KVM memslots (kvm.h) are derived from the table. A space owns all three.
 *
 * Every changing call is all-or-nothing: on error nothing has changed, in the
 * regions, the table, the slots or the reference counts.
 *
 * Errors, the same everywhere: -EINVAL unaligned, empty, overflowing, outside
 * the space, or unknown flags; -EEXIST overlap; -ENOENT nothing there; -EACCES
 * permission; -ENOMEM; -ENOSPC no memslot left; -EOPNOTSUPP the format or the
 * kernel cannot express it; -EBUSY the change would need other vCPUs to pause
 * and the embedder gave no way to; -ENOTRECOVERABLE an earlier failed change
 * could not be undone (only gpas_clear, gpas_kvm_detach and gpas_destroy work
 * from then on).
 *
 * Concurrency: every function may be called from any thread unless it says
 * otherwise. Readers (translate, read, write, fill, iovec, atomics) never wait
 * for writers unless they have to populate lazy memory; writers serialise.
 * When unmap or protect returns, no reader uses the old translation any more.
 * From inside a callback that the library makes with its lock held (pause,
 * resume, populate, log), no function of the same space may be called. A signal
 * handler may translate, and access memory that is present. Readers rely on
 * membarrier(2): a process that denies it to itself (seccomp) has writers wait
 * a millisecond each for them.
 */
#ifndef GPAS_SPACE_H
#define GPAS_SPACE_H

#include <gpas/addr.h>
#include <gpas/device.h>
#include <gpas/memory.h>
#include <gpas/pgtable.h>

#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpas;

/* Names of regions and devices hold up to this many bytes with the NUL; longer
 * ones are cut. */
#define GPAS_NAME_BYTES 32

enum gpas_log_level {
	GPAS_LOG_ERROR = 0,
	GPAS_LOG_WARNING,
	GPAS_LOG_INFO,
	GPAS_LOG_DEBUG,
};

/* How to create a space. A zeroed structure with a size is a good default. */
struct gpas_params {
	gpas_gpa base;
	uint64_t size; /* bytes; 0: up to the end of the format's GPA width */
	enum gpas_format_id format;
	unsigned max_leaf_shift;		/* 12, 21, 30; 0 means 30 */
	const struct gpas_frame_ops *frame_ops; /* see pgtable.h */
	void *frame_ctx;
	/* Receives one line without a newline; NULL is silence. Called with or
	 * without the space's lock held, by any thread that is in a call. */
	void (*log)(void *ctx, enum gpas_log_level level, const char *line);
	void *log_ctx;
	enum gpas_log_level log_level; /* the most verbose level wanted */
	/*
	 * The most bytes of owned and backend memory that may be present at
	 * once; 0 is no limit. A fault that would exceed it calls pressure
	 * (may be NULL), without any lock held, with the bytes wanted: it may
	 * discard or unmap and return 0 to have the fault tried again, or an
	 * error. A fault that still does not fit, and a map call that does not,
	 * get -ENOMEM; nothing is lost and the access can be repeated later.
	 */
	uint64_t budget;
	int (*pressure)(void *ctx, struct gpas *space, uint64_t wanted);
	void *pressure_ctx;
};

/*
 * gpas_create - an empty space of [base, base + size).
 *
 * Errors: -EINVAL unaligned, or beyond the format's GPA width; -ENOMEM.
 */
GPAS_API int gpas_create(const struct gpas_params *params, struct gpas **ret);

/*
 * gpas_destroy - detach from KVM, remove every region and free the space.
 *
 * No other thread may be inside a call on the space. NULL is allowed.
 */
GPAS_API void gpas_destroy(struct gpas *space);

GPAS_API gpas_gpa gpas_base(const struct gpas *space);
GPAS_API gpas_gpa gpas_end(const struct gpas *space);
GPAS_API uint64_t gpas_size(const struct gpas *space);
GPAS_API const struct gpas_format *gpas_format(const struct gpas *space);

/* Whether every byte of the range lies between base and end. A range that
 * overflows is contained in nothing. */
GPAS_API bool gpas_contains_range(const struct gpas *space, gpas_gpa start,
				  uint64_t size);

/* The root of the nested page table, as gpas_pgtable_root(). */
GPAS_API gpas_hva gpas_page_table_root(const struct gpas *space);

/* ---- Mapping ------------------------------------------------------- */

/* How the first touch of lazy memory is noticed once KVM is attached. */
enum gpas_lazy {
	GPAS_LAZY_AUTO = 0, /* the first of the following that works */
	GPAS_LAZY_TRAP,	    /* a memslot that faults: KVM_EXIT_MEMORY_FAULT */
	GPAS_LAZY_ABSENT,   /* no memslot: KVM_EXIT_MMIO */
	GPAS_LAZY_UFFD, /* userfaultfd: no exit at all; asked for by region */
};

/*
 * Where the content of lazy memory comes from.
 *
 * fill writes all of [host, host + size), which stands for [gpa, gpa + size)
 * of the guest, before the guest or any reader can see it. Memory arrives
 * zeroed. It is called for every piece that becomes present, with the space's
 * lock held; a piece is any number of pages. An error reaches the fault's
 * record; what was written so far is dropped. It may be called again for the
 * same piece, and then finds what it wrote, when a later step of making it
 * present failed.
 */
struct gpas_filler {
	int (*fill)(void *ctx, gpas_gpa gpa, void *host, uint64_t size);
	void *ctx;
};

/* A file's bytes from @offset on, as the content of memory from @start on. */
struct gpas_file_content {
	int fd; /* readable, and not a pipe or socket; the caller's */
	uint64_t offset;
	gpas_gpa start;
};

/*
 * gpas_fill_from_file - a filler's function: what a file has, by pread(2).
 *
 * ctx is a struct gpas_file_content, which must outlive the mapping. It serves
 * every mechanism, userfaultfd among them, and files that cannot be mapped;
 * where GPAS_MEMORY_FILE will do, that copies less. The rest of the file's
 * last page is zero; pages wholly beyond its end are an error, as they are to
 * whoever touches them in a mapping of the file.
 *
 * Errors: -ENODATA beyond the file's end, -EINVAL below @start or beyond what
 * a file's offset can express, and pread's.
 */
GPAS_API int gpas_fill_from_file(void *ctx, gpas_gpa gpa, void *host,
				 uint64_t size);

/* What the mapping calls share; NULL or all zero is the default. */
struct gpas_map_params {
	const char *name; /* copied; NULL: a name after the kind of mapping */
	enum gpas_memtype memtype;
	/* Present only once touched. map_alloc and map_backend only. */
	bool lazy;
	/* Lazy: the unit of presence in bytes, a power of two from 4 KiB to
	 * 1 GiB; 0 means 64 KiB, or the huge page size. */
	uint64_t granule;
	/* Lazy: let the unit grow up to this many bytes (a power of two):
	 * sequential faults double it, and where an aligned 2 MiB are dense
	 * with touches, the next one takes the rest of them. 0 keeps the unit
	 * fixed. */
	uint64_t granule_max;
	/* map_alloc: what the memory is made of. */
	struct gpas_memory_params memory;
	/*
	 * map_alloc, lazy: GPAS_LAZY_UFFD has the region served through
	 * userfaultfd(2), whatever the other regions do; the others mean what
	 * attaching chose. The region is then one memslot from the start, its
	 * pages are missing until touched, and a thread that the space owns
	 * provides them, for vCPUs and for any other toucher. For ANON and
	 * MEMFD memory. Needs root, access to /dev/userfaultfd, or the sysctl
	 * vm.unprivileged_userfaultfd.
	 */
	enum gpas_lazy mechanism;
	/* map_alloc, lazy: its content; a NULL function means zeros, or the
	 * file's content for GPAS_MEMORY_FILE. A file at an offset, mapped
	 * privately and lazily, is how a snapshot is restored without copying
	 * it. Not for a shared file. */
	struct gpas_filler filler;
};

/*
 * gpas_map_linear - map the caller's memory at @host.
 *
 * @host is page-aligned and [host, host + size) stays mapped until the range
 * is unmapped: the space neither touches nor frees it.
 *
 * Errors: -EINVAL, -EEXIST, -ENOMEM, -EOPNOTSUPP, -ENOSPC, -EBUSY, or the
 * errno of an ioctl that KVM refused.
 */
GPAS_API int gpas_map_linear(struct gpas *space, gpas_gpa start, uint64_t size,
			     void *host, unsigned prot,
			     const struct gpas_map_params *params);

/*
 * gpas_map_alloc - map memory that the space owns: zeros, or a file's content.
 *
 * With params->lazy the call takes the same short time whatever the size, and
 * memory becomes present a granule at a time. Otherwise all of it is present;
 * the host still commits pages as they are touched.
 *
 * Errors: as gpas_map_linear, and those of gpas_memory_create.
 */
GPAS_API int gpas_map_alloc(struct gpas *space, gpas_gpa start, uint64_t size,
			    unsigned prot,
			    const struct gpas_map_params *params);

/*
 * gpas_map_memory - map @size bytes of a memory object from @offset on.
 *
 * The region holds a reference to the object; one object may be mapped at
 * several places. params->lazy must be false. Errors: as gpas_map_linear.
 */
GPAS_API int gpas_map_memory(struct gpas *space, gpas_gpa start, uint64_t size,
			     unsigned prot, struct gpas_memory *memory,
			     uint64_t offset,
			     const struct gpas_map_params *params);

/*
 * gpas_map_device - accesses to [start, start + size) call @device.
 *
 * Page-aligned like every region. Such a region has no leaf and no slot.
 * Errors: as gpas_map_linear; -EINVAL no access function, or unknown widths.
 */
GPAS_API int gpas_map_device(struct gpas *space, gpas_gpa start, uint64_t size,
			     const struct gpas_device *device);

/*
 * A backend of the embedder's: memory whose host address or content is not
 * known before it is needed. The structure is copied. Offsets count from the
 * start of the mapping. populate and retire are called with the space's lock
 * held.
 */
struct gpas_backend {
	void *ctx;
	/*
	 * Provide [offset, offset + *size), page-aligned: make it readable and
	 * writable for the host, with its content in place, and set *host to
	 * where it is, page-aligned. The call may lower *size to a smaller
	 * multiple of 4 KiB, not 0, and is then asked again for the rest. A
	 * fault asks for a granule or more, clipped to what is not present yet;
	 * an eager mapping asks for all of it. Returns 0, or -errno, which
	 * reaches the fault's record or the map call's caller.
	 */
	int (*populate)(void *ctx, uint64_t offset, uint64_t *size,
			void **host);
	/* [offset, offset + size) has left the mapping and nothing uses it any
	 * more, whether or not it was ever populated. May be NULL. */
	void (*retire)(void *ctx, uint64_t offset, uint64_t size);
	/* The last piece of the mapping is gone. Called without the lock. Not
	 * called when the map call itself fails. May be NULL. */
	void (*release)(void *ctx);
};

/*
 * gpas_map_backend - map memory that @backend provides.
 *
 * Errors: as gpas_map_linear; those of populate when not lazy (what was
 * provided has been retired again); -EINVAL no populate function.
 */
GPAS_API int gpas_map_backend(struct gpas *space, gpas_gpa start, uint64_t size,
			      unsigned prot, const struct gpas_backend *backend,
			      const struct gpas_map_params *params);

/*
 * gpas_unmap - remove every mapping in [start, start + size).
 *
 * Holes in the range are allowed; regions and blocks that straddle its ends
 * are split. Memory owned by the space is given back to the host.
 *
 * Errors: -EINVAL; -ENOSPC no slot for the pieces; -EBUSY; the errno of an
 * ioctl that KVM refused. What splitting needs is held in reserve and refilled
 * by the calls that map, so that outside begin/commit an unmap after one of
 * those does not fail for lack of memory.
 */
GPAS_API int gpas_unmap(struct gpas *space, gpas_gpa start, uint64_t size);

/* gpas_clear - remove every mapping; works even after -ENOTRECOVERABLE, and
 * then leaves the space usable again. Errors: as gpas_unmap. */
GPAS_API int gpas_clear(struct gpas *space);

/*
 * gpas_protect - give [start, start + size) the permission @prot.
 *
 * The whole range must be mapped, by regions that are not devices. What is
 * present stays present; GPAS_PROT_NONE keeps the content and refuses every
 * access until protected again.
 *
 * Errors: -EINVAL; -ENOENT a hole in the range, or a device; -EOPNOTSUPP;
 * -ENOMEM; -ENOSPC; -EBUSY; the errno of an ioctl.
 */
GPAS_API int gpas_protect(struct gpas *space, gpas_gpa start, uint64_t size,
			  unsigned prot);

/*
 * gpas_begin - open a group of changing calls.
 *
 * Holds the space's writer lock: other writers, and faults of vCPUs, wait.
 * The calling thread then makes any number of map, unmap and protect calls,
 * each of which succeeds or changes nothing, and ends the group with
 * gpas_commit() or gpas_abort(). KVM sees one difference, at commit. Readers
 * see each change as it is made. Errors: -EBUSY this thread has a group open;
 * -ENOTRECOVERABLE.
 */
GPAS_API int gpas_begin(struct gpas *space);

/*
 * gpas_commit - bring KVM in line with the group's changes and close it.
 *
 * On error every change of the group is undone. Errors: -EINVAL no group is
 * open on this thread; -ENOSPC; -EBUSY; -ENOMEM; the errno of an ioctl.
 */
GPAS_API int gpas_commit(struct gpas *space);

/* gpas_abort - undo the group's changes and close it. -EINVAL: none open. */
GPAS_API int gpas_abort(struct gpas *space);

/* ---- Asking -------------------------------------------------------- */

/*
 * The answer to gpas_translate. Valid until the range is unmapped or
 * protected; the caller sees to it that nobody does so while it uses host.
 */
struct gpas_translation {
	void *host;	     /* of the byte at the GPA asked for */
	uint64_t size;	     /* contiguous bytes from that GPA on */
	unsigned prot;	     /* what the mapping grants */
	unsigned leaf_shift; /* the leaf at the GPA: 12, 21 or 30 */
};

/*
 * gpas_translate - where the byte at @gpa is, and how much follows it.
 *
 * ret->size is how many bytes from @gpa on are contiguous in host memory with
 * one permission, at most @limit (give UINT64_MAX for all of it; a smaller
 * limit is cheaper). @access is a mask of gpas_prot that must all be granted;
 * 0 asks for nothing. Lazy memory is not populated.
 *
 * Errors: -ENOENT not present (unmapped, a device, or lazy and untouched);
 * -EACCES; -EINVAL limit 0.
 */
GPAS_API int gpas_translate(struct gpas *space, gpas_gpa gpa, unsigned access,
			    uint64_t limit, struct gpas_translation *ret);

/* How a guest sees a region. */
enum gpas_region_kind {
	GPAS_REGION_LINEAR = 0,
	GPAS_REGION_ALLOC,
	GPAS_REGION_MEMORY,
	GPAS_REGION_BACKEND,
	GPAS_REGION_DEVICE,
};

/* A copy of what the space knows about a region. */
struct gpas_region {
	gpas_gpa start;
	uint64_t size;
	unsigned prot;
	enum gpas_region_kind kind;
	enum gpas_memtype memtype;
	bool lazy;
	uint64_t granule;   /* bytes, 0 when not lazy */
	void *host;	    /* of start; NULL for devices and backends */
	int fd;		    /* behind the memory, or -1; owned by the space */
	uint64_t fd_offset; /* of start */
	uint64_t present;   /* bytes that have leaves */
	uint64_t leaves[3]; /* 4 KiB, 2 MiB, 1 GiB */
	uint64_t slots;	    /* memslots that lie in it, wholly or in part */
	uint64_t traps;	    /* and traps */
	char name[GPAS_NAME_BYTES];
};

/*
 * gpas_region_find - the region that contains @gpa. -ENOENT if none does.
 * gpas_region_next - the first region that ends above @gpa. To visit all,
 * start at the base and continue at start + size until -ENOENT.
 *
 * Counting present bytes, leaves and slots takes time in proportion to them.
 */
GPAS_API int gpas_region_find(struct gpas *space, gpas_gpa gpa,
			      struct gpas_region *ret);
GPAS_API int gpas_region_next(struct gpas *space, gpas_gpa gpa,
			      struct gpas_region *ret);

/*
 * gpas_extent_next - the first extent that ends above @gpa, whole from its
 * start or, if it contains @gpa, from @gpa on. -ENOENT at the end. Extents may
 * span regions.
 */
GPAS_API int gpas_extent_next(struct gpas *space, gpas_gpa gpa,
			      struct gpas_extent *ret);

/* ---- Accessing ----------------------------------------------------- */

/*
 * gpas_read, gpas_write, gpas_fill - copy out of, into, or set guest memory.
 *
 * They cross leaves and regions, need READ (WRITE for write and fill) on every
 * byte, and populate lazy memory. Bytes are copied in ascending order without
 * promise of atomicity; use the atomic calls for shared flags and indices.
 * @done (may be NULL) receives how many bytes were transferred, also on error:
 * unlike changes of the space, a transfer is not undone. @buffer must not be
 * missing memory of the space's own userfaultfd regions: whoever provides it
 * may have to wait for this call.
 *
 * Errors: -ENOENT unmapped or a device; -EACCES; -ENOMEM or a backend's errno
 * from populating; -EINVAL the range overflows.
 */
GPAS_API int gpas_read(struct gpas *space, gpas_gpa gpa, void *buffer,
		       size_t size, size_t *done);
GPAS_API int gpas_write(struct gpas *space, gpas_gpa gpa, const void *buffer,
			size_t size, size_t *done);
GPAS_API int gpas_fill(struct gpas *space, gpas_gpa gpa, uint8_t byte,
		       size_t size, size_t *done);

/*
 * gpas_iovec - describe [gpa, gpa + size) as host buffers.
 *
 * Populates lazy memory. Writes up to @max entries, *count says how many. The
 * caller keeps the range mapped while it uses them. Errors: as gpas_read, and
 * -E2BIG when @max entries do not reach the end (they are valid, and *count is
 * @max); on any other error *count is 0.
 */
GPAS_API int gpas_iovec(struct gpas *space, struct gpas_range range,
			unsigned access, struct iovec *vector, size_t max,
			size_t *count);

/*
 * gpas_load, gpas_store - atomic accesses of @width 1, 2, 4 or 8 bytes.
 *
 * Load has acquire and store release ordering, against guest and host threads
 * alike. @gpa is naturally aligned. Values are in host byte order.
 * gpas_compare_exchange replaces *@expected by @desired in one sequentially
 * consistent step; it returns 1 when it did and 0 when memory held something
 * else, which is then in *@expected. It needs READ and WRITE.
 *
 * Errors: -EINVAL width or alignment; the others as gpas_read.
 */
GPAS_API int gpas_load(struct gpas *space, gpas_gpa gpa, unsigned width,
		       uint64_t *value);
GPAS_API int gpas_store(struct gpas *space, gpas_gpa gpa, unsigned width,
			uint64_t value);
GPAS_API int gpas_compare_exchange(struct gpas *space, gpas_gpa gpa,
				   unsigned width, uint64_t *expected,
				   uint64_t desired);

/* ---- Views ------------------------------------------------------------- */

/*
 * A view: one thread's fast way to guest memory.
 *
 * It has at hand what a plain call first looks for: where this thread announces
 * itself, and what it remembers of the table. What the plain calls promise
 * holds for it too: it crosses regions, checks permission, populates lazy
 * memory, never waits for writers, and when unmap or protect has returned uses
 * no old translation. One thread at a time uses a view; any number of views of
 * a space may be open.
 */
struct gpas_view;

/* gpas_view_open - a view of @space for the calling thread. -ENOMEM. */
GPAS_API int gpas_view_open(struct gpas *space, struct gpas_view **ret);
/* Must come before gpas_destroy. NULL is allowed. */
GPAS_API void gpas_view_close(struct gpas_view *view);

/* As the plain calls of the same name. */
GPAS_API int gpas_view_translate(struct gpas_view *view, gpas_gpa gpa,
				 unsigned access, uint64_t limit,
				 struct gpas_translation *ret);
GPAS_API int gpas_view_read(struct gpas_view *view, gpas_gpa gpa, void *buffer,
			    size_t size, size_t *done);
GPAS_API int gpas_view_write(struct gpas_view *view, gpas_gpa gpa,
			     const void *buffer, size_t size, size_t *done);
GPAS_API int gpas_view_load(struct gpas_view *view, gpas_gpa gpa,
			    unsigned width, uint64_t *value);
GPAS_API int gpas_view_store(struct gpas_view *view, gpas_gpa gpa,
			     unsigned width, uint64_t value);

/* ---- Faults -------------------------------------------------------- */

enum gpas_fault_kind {
	GPAS_FAULT_RESUME = 0, /* present now, or it already was: try again */
	GPAS_FAULT_DEVICE,     /* a device region */
	GPAS_FAULT_DENIED,     /* mapped, without the permission */
	GPAS_FAULT_UNMAPPED,   /* no region */
	GPAS_FAULT_FAILED,     /* lazy memory could not be provided: error */
};
#define GPAS_FAULT_KIND_COUNT 5

/* What a fault found out. */
struct gpas_fault {
	enum gpas_fault_kind kind;
	gpas_gpa gpa;
	unsigned wanted;    /* gpas_prot mask; 0 when KVM did not say */
	unsigned had;	    /* the region's permission */
	uint64_t populated; /* bytes that became present */
	int error;	    /* FAILED: -errno */
	/* The region, where there is one. */
	gpas_gpa region_start;
	uint64_t region_size;
	char region_name[GPAS_NAME_BYTES];
};

/*
 * gpas_fault - resolve an access to @gpa that found no translation.
 *
 * Makes the granule around @gpa present where its region is lazy and allows
 * @access (a gpas_prot mask; 0 when unknown). Two vCPUs may fault on one
 * granule: the second is told to resume.
 *
 * Returns 0 with the outcome in @ret, or -EINVAL unknown access bits or a GPA
 * outside the format's width; -ENOTRECOVERABLE.
 */
GPAS_API int gpas_fault(struct gpas *space, gpas_gpa gpa, unsigned access,
			struct gpas_fault *ret);

/*
 * gpas_populate - make [start, start + size) present now.
 *
 * The whole range must be mapped, by regions that are not devices.
 * Errors: -EINVAL; -ENOENT; -ENOMEM; -ENOSPC; a backend's errno.
 */
GPAS_API int gpas_populate(struct gpas *space, gpas_gpa start, uint64_t size);

/* How to prefault; all zero is one thread and no callback. */
struct gpas_prefault_params {
	unsigned threads; /* 0 or 1: the calling thread alone; at most 64 */
	/* Called on the calling thread now and then, and at the end. Returning
	 * nonzero stops early with that value. */
	int (*progress)(void *ctx, uint64_t done, uint64_t total);
	void *progress_ctx;
};

/*
 * gpas_prefault - gpas_populate, and have the host commit the pages now.
 *
 * The range must not be unmapped meanwhile. Errors: as gpas_populate; -EFAULT
 * the host could not commit a page; what progress returned. Pages that were
 * committed stay. @params may be NULL.
 */
GPAS_API int gpas_prefault(struct gpas *space, gpas_gpa start, uint64_t size,
			   const struct gpas_prefault_params *params);

/*
 * gpas_discard - give the memory of [start, start + size) back to the host.
 *
 * Lazy regions become absent there and start over at the next touch, with
 * zeros, the file's content, or the filler's. Eager memory owned by the space
 * stays present and reads as zeros (as the file, for a private one). For a
 * shared file the bytes are punched out of it.
 *
 * The whole range must be mapped, by regions that own their memory or by lazy
 * backends (whose retire function is called). It does not wait for vCPUs.
 *
 * Errors (nothing has changed, except where the host refuses half-way):
 * -EINVAL; -ENOENT a hole in the range; -EOPNOTSUPP linear memory, a memory
 * object, a device or an eager backend in it, or a file that cannot be
 * punched; -EBUSY inside a group, or as gpas_unmap; -ENOSPC.
 */
GPAS_API int gpas_discard(struct gpas *space, gpas_gpa start, uint64_t size);

/* ---- Looking inside ------------------------------------------------ */

#define GPAS_FAULT_TIME_BUCKETS 12

/* Counters since creation, and gauges of the present state. */
struct gpas_stats {
	uint64_t regions;     /* gauge */
	uint64_t mapped;      /* gauge: bytes in regions, devices apart */
	uint64_t present;     /* gauge: bytes that have leaves */
	uint64_t table_pages; /* gauge */
	uint64_t leaves[3];   /* gauge: 4 KiB, 2 MiB, 1 GiB */
	uint64_t slots;	      /* gauge: memslots over memory */
	uint64_t traps;	      /* gauge: memslots that only fault */
	uint64_t faults[GPAS_FAULT_KIND_COUNT]; /* answers given, by kind */
	uint64_t populations; /* faults that made a granule present */
	uint64_t populated;   /* bytes made present by faults and accesses */
	uint64_t discards;    /* calls of gpas_discard that succeeded */
	uint64_t discarded;   /* bytes that they made absent or zero */
	uint64_t charged;     /* gauge: bytes counted against the budget */
	uint64_t pressure;    /* times the pressure callback was asked */
	/* Time that making lazy memory present took, per fault while KVM is
	 * attached: bucket i counts those below 2^i microseconds, the last one
	 * all others. */
	uint64_t fault_time[GPAS_FAULT_TIME_BUCKETS];
	uint64_t exits_mmio; /* KVM exits by how they came ... */
	uint64_t exits_memory_fault;
	uint64_t uffd_faults;	  /* touches that userfaultfd reported */
	uint64_t exits_fetch;	  /* ... fetches from absent memory */
	uint64_t lazy_mmio;	  /* MMIO exits that populated lazy memory */
	uint64_t unclaimed;	  /* accesses to nothing: read as all ones */
	uint64_t device_accesses; /* calls of devices, all kinds */
	uint64_t slot_adds;	  /* memslot ioctls */
	uint64_t slot_deletes;
	uint64_t pauses;
	uint64_t kvm_ns;     /* time in memslot ioctls */
	uint64_t handler_ns; /* time in gpas_kvm_handle_exit, ioctls included */
	uint64_t run_ns;     /* time in KVM_RUN through gpas_vcpu_run */
};

/* Takes the writer's lock; gauges cost a walk of the table. */
GPAS_API void gpas_stats(struct gpas *space, struct gpas_stats *ret);

/* What gpas_dump prints, as a mask. */
enum gpas_dump_what {
	GPAS_DUMP_REGIONS = 1,
	GPAS_DUMP_EXTENTS = 2,
	GPAS_DUMP_SLOTS = 4,
	GPAS_DUMP_ALL = 7,
};

/*
 * gpas_dump - describe the space as text, a line (without newline) a call.
 *
 * @line runs with the space's lock held.
 */
GPAS_API void gpas_dump(struct gpas *space, unsigned what,
			void (*line)(void *ctx, const char *text), void *ctx);

/*
 * gpas_check - verify every invariant of the space, in the regions, the table
 * and the slots. Returns 0, or -EUCLEAN after logging what is wrong. For
 * tests: takes time in proportion to everything there is.
 */
GPAS_API int gpas_check(struct gpas *space);

#ifdef __cplusplus
}
#endif

#endif
