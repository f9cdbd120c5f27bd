/* SPDX-License-Identifier: MIT */
/*
 * Readers: translation and access to guest memory, on any thread, without the
 * lock. A reader stays announced (readers.h) from the walk to the last byte it
 * touches, so what it found cannot be freed under it. Where nothing is present
 * it withdraws, lets the fault path populate, and looks again.
 */
#include "atomic.h"
#include "reach.h"

#include <string.h>

/* One announced stretch copies at most this much, so that a writer that waits
 * for readers waits microseconds, not for a whole gigabyte. */
#define CHUNK_BYTES (UINT64_C(256) << 10)

/* ---- Announcing -------------------------------------------------------- */

/* Announced by a reader of one's own, or else counted. */
struct announced {
	struct reader *reader;
	atomic_uint *ticket;
};

static void announce(struct gpas *space, struct announced *ret)
{
	ret->reader = reader_get(&space->readers);
	if (ret->reader == NULL) {
		ret->ticket = readers_enter(&space->readers);
	} else if (!reader_enter(ret->reader, &space->readers)) {
		(void)reader_renew(ret->reader, &space->readers);
	}
}

static void withdraw(const struct announced *announced)
{
	if (announced->reader != NULL) {
		reader_leave(announced->reader);
	} else {
		readers_leave(announced->ticket);
	}
}

/* ---- By one leaf --------------------------------------------------------- */

static inline struct pt_found find_leaf(const struct gpas *space,
					struct reader *reader, uint64_t gpa)
{
	struct pt_found found;

	if (!reader_enter(reader, &space->readers)) {
		(void)reader_renew(reader, &space->readers);
	}
	if (!pt_find_quickly(space->table, &reader->shortcuts, gpa, &found)) {
		found = pt_find(space->table, &reader->shortcuts, gpa);
	}
	return found;
}

static bool translate_leaves(const struct gpas *space, struct reader *reader,
			     uint64_t gpa, unsigned access, uint64_t limit,
			     struct gpas_translation *ret)
{
	struct pt_found leaf = find_leaf(space, reader, gpa);
	uint64_t size = 0;
	bool found = false;

	if (leaf.entry != 0) {
		size = pt_run_bytes(space->table, &reader->shortcuts, leaf, gpa,
				    limit);
	}
	if (size != 0) {
		if (!pt_has_prot(space->table, &reader->shortcuts,
				 leaf.entry)) {
			pt_note_prot(space->table, &reader->shortcuts,
				     leaf.entry);
		}
		found = translate_from(space, reader, leaf, gpa, access, size,
				       ret);
	}
	reader_leave(reader);
	return found;
}

static void *reach_leaf(const struct gpas *space, struct reader *reader,
			uint64_t gpa, unsigned access, uint64_t size)
{
	struct pt_found leaf = find_leaf(space, reader, gpa);

	if (!pt_grants(space->table, leaf.entry, access) ||
	    size > pt_left(leaf, gpa)) {
		reader_leave(reader);
		return NULL;
	}
	return pt_host(space->table, leaf, gpa);
}

/* ---- Translation --------------------------------------------------- */

static int translate_extent(struct gpas *space, uint64_t gpa, unsigned access,
			    uint64_t limit, struct gpas_translation *ret)
{
	struct gpas_extent extent;
	struct announced announced;
	int err;

	announce(space, &announced);
	err = pt_extent_at(space->table, gpa, limit, &extent);
	withdraw(&announced);
	if (err != 0) {
		return err;
	}
	if ((access & ~extent.prot) != 0) {
		return -EACCES;
	}
	ret->host = gpas_hva_pointer(extent.host);
	ret->size = extent.size;
	ret->prot = extent.prot;
	ret->leaf_shift = extent.leaf_shift;
	return 0;
}

int translate_slowly(struct gpas *space, struct reader *reader, uint64_t gpa,
		     unsigned access, uint64_t limit,
		     struct gpas_translation *ret)
{
	if (limit == 0 || access > GPAS_PROT_RWX) {
		return -EINVAL;
	}
	if (reader == NULL) {
		reader = reader_get(&space->readers);
	}
	if (reader != NULL &&
	    translate_leaves(space, reader, gpa, access, limit, ret)) {
		return 0;
	}
	return translate_extent(space, gpa, access, limit, ret);
}

int gpas_translate(struct gpas *space, gpas_gpa gpa, unsigned access,
		   uint64_t limit, struct gpas_translation *ret)
{
	struct reader *reader = reader_get_quickly(&space->readers);

	if (__builtin_expect(reader != NULL && access <= GPAS_PROT_RWX &&
				     limit - 1 < GPAS_PAGE_BYTES &&
				     translate_quickly(space, reader, gpa.value,
						       access, limit, ret),
			     1)) {
		return 0;
	}
	return translate_slowly(space, reader, gpa.value, access, limit, ret);
}

/* ---- Finding memory, populating where it is lazy ------------------- */

/* The errno that a fault's outcome is to an accessor; 0: look again. */
static int fault_error(const struct gpas_fault *fault)
{
	switch (fault->kind) {
	case GPAS_FAULT_RESUME:
		return 0;
	case GPAS_FAULT_DENIED:
		return -EACCES;
	case GPAS_FAULT_FAILED:
		return fault->error;
	case GPAS_FAULT_DEVICE:
	case GPAS_FAULT_UNMAPPED:
		break;
	}
	return -ENOENT;
}

static int populate_for(struct gpas *space, uint64_t gpa, unsigned access,
			uint64_t ahead)
{
	struct resolution resolution;
	int err = fault_resolve(space, gpa, access, ahead, &resolution);

	if (err != 0) {
		return err;
	}
	if (resolution.claim != NULL) {
		claim_put(resolution.claim);
	}
	return fault_error(&resolution.fault);
}

/*
 * Finds the memory at @gpa for @access: as much of the @size bytes from there
 * on as is contiguous, but at most CHUNK_BYTES. Populates it if need be. On
 * success the caller is announced as a reader and passes *announced to
 * withdraw() when it is done with the memory.
 */
static int reach(struct gpas *space, uint64_t gpa, unsigned access,
		 uint64_t size, struct gpas_extent *extent,
		 struct announced *announced)
{
	uint64_t limit = size < CHUNK_BYTES ? size : CHUNK_BYTES;

	for (;;) {
		int err;

		announce(space, announced);
		err = pt_extent_at(space->table, gpa, limit, extent);
		if (err == 0 && (access & ~extent->prot) == 0) {
			return 0;
		}
		withdraw(announced);
		if (err == 0) {
			return -EACCES;
		}
		err = populate_for(space, gpa, access, size);
		if (err != 0) {
			return err;
		}
	}
}

/* ---- Blocks of bytes ----------------------------------------------- */

enum transfer_kind {
	TRANSFER_READ,
	TRANSFER_WRITE,
	TRANSFER_FILL
};

struct transfer {
	enum transfer_kind kind;
	unsigned access;
	uint8_t *buffer; /* READ, WRITE */
	uint8_t byte;	 /* FILL */
};

static void transfer_piece(const struct transfer *transfer, uint64_t at,
			   void *host, size_t size)
{
	switch (transfer->kind) {
	case TRANSFER_READ:
		memcpy(transfer->buffer + at, host, size);
		break;
	case TRANSFER_WRITE:
		memcpy(host, transfer->buffer + at, size);
		break;
	case TRANSFER_FILL:
		memset(host, transfer->byte, size);
		break;
	}
}

static int transfer(struct gpas *space, gpas_gpa gpa, size_t size,
		    const struct transfer *transfer, size_t *done)
{
	uint64_t at = 0;
	int err = size > UINT64_MAX - gpa.value ? -EINVAL : 0;

	while (err == 0 && at < size) {
		struct gpas_extent extent;
		struct announced announced;

		err = reach(space, gpa.value + at, transfer->access, size - at,
			    &extent, &announced);
		if (err == 0) {
			transfer_piece(transfer, at,
				       gpas_hva_pointer(extent.host),
				       extent.size);
			withdraw(&announced);
			at += extent.size;
		}
	}
	if (done != NULL) {
		*done = at;
	}
	return err;
}

/* By one leaf if that has all of it, with @reader or else the thread's own. */
static int transfer_slowly(struct gpas *space, struct reader *reader,
			   gpas_gpa gpa, size_t size,
			   const struct transfer *job, size_t *done)
{
	void *host = NULL;

	if (reader == NULL) {
		reader = reader_get(&space->readers);
	}
	if (reader != NULL && size - 1 < CHUNK_BYTES) {
		host = reach_leaf(space, reader, gpa.value, job->access, size);
	}
	if (host == NULL) {
		return transfer(space, gpa, size, job, done);
	}
	transfer_piece(job, 0, host, size);
	reader_leave(reader);
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int read_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		void *buffer, size_t size, size_t *done)
{
	struct transfer read = {
		.kind = TRANSFER_READ,
		.access = GPAS_PROT_READ,
		.buffer = buffer,
	};

	return transfer_slowly(space, reader, gpa, size, &read, done);
}

int write_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		 const void *buffer, size_t size, size_t *done)
{
	struct transfer write = {
		.kind = TRANSFER_WRITE,
		.access = GPAS_PROT_WRITE,
		.buffer = (uint8_t *)(uintptr_t)buffer, /* only read from */
	};

	return transfer_slowly(space, reader, gpa, size, &write, done);
}

int gpas_read(struct gpas *space, gpas_gpa gpa, void *buffer, size_t size,
	      size_t *done)
{
	struct reader *reader = reader_get_quickly(&space->readers);
	const void *host = NULL;

	if (reader != NULL && size - 1 < QUICK_BYTES) {
		host = reach_quickly(space, reader, gpa.value, GPAS_PROT_READ,
				     size);
	}
	if (host == NULL) {
		return read_slowly(space, reader, gpa, buffer, size, done);
	}
	memcpy(buffer, host, size);
	reader_leave(reader);
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int gpas_write(struct gpas *space, gpas_gpa gpa, const void *buffer,
	       size_t size, size_t *done)
{
	struct reader *reader = reader_get_quickly(&space->readers);
	void *host = NULL;

	if (reader != NULL && size - 1 < QUICK_BYTES) {
		host = reach_quickly(space, reader, gpa.value, GPAS_PROT_WRITE,
				     size);
	}
	if (host == NULL) {
		return write_slowly(space, reader, gpa, buffer, size, done);
	}
	memcpy(host, buffer, size);
	reader_leave(reader);
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int gpas_fill(struct gpas *space, gpas_gpa gpa, uint8_t byte, size_t size,
	      size_t *done)
{
	struct transfer fill = {
		.kind = TRANSFER_FILL,
		.access = GPAS_PROT_WRITE,
		.byte = byte,
	};

	return transfer(space, gpa, size, &fill, done);
}

/* Appends a buffer, or lengthens the last one that it continues. False when
 * there is no entry left for it. */
static bool append_buffer(struct iovec *vector, size_t max, size_t *count,
			  void *host, size_t size)
{
	if (*count > 0) {
		struct iovec *last = &vector[*count - 1];

		if ((char *)last->iov_base + last->iov_len == host) {
			last->iov_len += size;
			return true;
		}
	}
	if (*count == max) {
		return false;
	}
	vector[(*count)++] =
		(struct iovec){ .iov_base = host, .iov_len = size };
	return true;
}

int gpas_iovec(struct gpas *space, struct gpas_range range, unsigned access,
	       struct iovec *vector, size_t max, size_t *count)
{
	uint64_t at = range.start.value;

	*count = 0;
	if (range.end.value < at || (access & ~(unsigned)GPAS_PROT_RWX) != 0) {
		return -EINVAL;
	}
	while (at < range.end.value) {
		struct gpas_extent extent;
		struct announced announced;
		int err = reach(space, at, access, range.end.value - at,
				&extent, &announced);

		if (err != 0) {
			*count = 0;
			return err;
		}
		withdraw(&announced);
		if (!append_buffer(vector, max, count,
				   gpas_hva_pointer(extent.host),
				   extent.size)) {
			return -E2BIG;
		}
		at += extent.size;
	}
	return 0;
}

/* ---- Atomic accesses ----------------------------------------------- */

/* One width of a compare-and-exchange: the built-in wants typed operands. */
#define COMPARE_EXCHANGE(type)                                              \
	static bool compare_exchange_##type(void *host, uint64_t *expected, \
					    uint64_t desired)               \
	{                                                                   \
		type seen = (type)*expected;                                \
		bool done = __atomic_compare_exchange_n(                    \
			(type *)host, &seen, (type)desired, false,          \
			__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                \
                                                                            \
		*expected = seen;                                           \
		return done;                                                \
	}
COMPARE_EXCHANGE(uint8_t)
COMPARE_EXCHANGE(uint16_t)
COMPARE_EXCHANGE(uint32_t)
COMPARE_EXCHANGE(uint64_t)

static bool compare_exchange(void *host, unsigned width, uint64_t *expected,
			     uint64_t desired)
{
	switch (width) {
	case 1:
		return compare_exchange_uint8_t(host, expected, desired);
	case 2:
		return compare_exchange_uint16_t(host, expected, desired);
	case 4:
		return compare_exchange_uint32_t(host, expected, desired);
	default:
		return compare_exchange_uint64_t(host, expected, desired);
	}
}

int load_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		unsigned width, uint64_t *value)
{
	struct announced announced = { .reader = reader };
	const void *host = NULL;
	struct gpas_extent extent;
	int err = check_atomic(gpa, width);

	if (reader == NULL) {
		reader = reader_get(&space->readers);
		announced.reader = reader;
	}
	if (err == 0 && reader != NULL) {
		host = reach_leaf(space, reader, gpa.value, GPAS_PROT_READ,
				  width);
	}
	if (err == 0 && host == NULL) {
		err = reach(space, gpa.value, GPAS_PROT_READ, width, &extent,
			    &announced);
		host = err == 0 ? gpas_hva_pointer(extent.host) : NULL;
	}
	if (err == 0) {
		*value = load_atomic(host, width);
		withdraw(&announced);
	}
	return err;
}

int gpas_load(struct gpas *space, gpas_gpa gpa, unsigned width, uint64_t *value)
{
	struct reader *reader = reader_get_quickly(&space->readers);
	const void *host = NULL;

	if (reader != NULL && check_atomic(gpa, width) == 0) {
		/* Aligned, so it ends in no other leaf than it begins in. */
		host = reach_quickly(space, reader, gpa.value, GPAS_PROT_READ,
				     0);
	}
	if (host == NULL) {
		return load_slowly(space, reader, gpa, width, value);
	}
	*value = load_atomic(host, width);
	reader_leave(reader);
	return 0;
}

int store_slowly(struct gpas *space, struct reader *reader, gpas_gpa gpa,
		 unsigned width, uint64_t value)
{
	struct announced announced = { .reader = reader };
	void *host = NULL;
	struct gpas_extent extent;
	int err = check_atomic(gpa, width);

	if (reader == NULL) {
		reader = reader_get(&space->readers);
		announced.reader = reader;
	}
	if (err == 0 && reader != NULL) {
		host = reach_leaf(space, reader, gpa.value, GPAS_PROT_WRITE,
				  width);
	}
	if (err == 0 && host == NULL) {
		err = reach(space, gpa.value, GPAS_PROT_WRITE, width, &extent,
			    &announced);
		host = err == 0 ? gpas_hva_pointer(extent.host) : NULL;
	}
	if (err == 0) {
		store_atomic(host, width, value);
		withdraw(&announced);
	}
	return err;
}

int gpas_store(struct gpas *space, gpas_gpa gpa, unsigned width, uint64_t value)
{
	struct reader *reader = reader_get_quickly(&space->readers);
	void *host = NULL;

	if (reader != NULL && check_atomic(gpa, width) == 0) {
		/* Aligned, so it ends in no other leaf than it begins in. */
		host = reach_quickly(space, reader, gpa.value, GPAS_PROT_WRITE,
				     0);
	}
	if (host == NULL) {
		return store_slowly(space, reader, gpa, width, value);
	}
	store_atomic(host, width, value);
	reader_leave(reader);
	return 0;
}

int gpas_compare_exchange(struct gpas *space, gpas_gpa gpa, unsigned width,
			  uint64_t *expected, uint64_t desired)
{
	struct gpas_extent extent;
	struct announced announced;
	bool replaced;
	int err = check_atomic(gpa, width);

	if (err == 0) {
		err = reach(space, gpa.value, GPAS_PROT_RW, width, &extent,
			    &announced);
	}
	if (err != 0) {
		return err;
	}
	replaced = compare_exchange(gpas_hva_pointer(extent.host), width,
				    expected, desired);
	withdraw(&announced);
	return replaced ? 1 : 0;
}
