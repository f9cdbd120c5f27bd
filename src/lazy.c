/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory beyond the first touch: giving it back to the host, and having
 * the host commit it ahead of time.
 */
#include "space.h"

#include <sys/mman.h>

/* ---- Giving back --------------------------------------------------- */

/* The part of [start, end) that lies in @region. */
static struct window part_of(const struct region *region, uint64_t start,
			     uint64_t end)
{
	struct window part = { start, end };

	if (part.start < region->span.start) {
		part.start = region->span.start;
	}
	if (part.end > region->span.end) {
		part.end = region->span.end;
	}
	return part;
}

static int can_discard(const struct region *region, struct window part)
{
	const struct backing *backing = region->backing;

	if (backing->kind == GPAS_REGION_ALLOC) {
		uint64_t offset =
			region->offset + (part.start - region->span.start);

		return gpas_is_aligned(offset | (part.end - part.start),
				       memory_page_bytes(backing->memory))
			       ? 0
			       : -EINVAL;
	}
	return backing->kind == GPAS_REGION_BACKEND && backing->lazy
		       ? 0
		       : -EOPNOTSUPP;
}

static int check_discard(const struct gpas *space, uint64_t start, uint64_t end)
{
	const struct region *region = region_find(space, start);
	int err = 0;

	for (uint64_t at = start; err == 0 && at < end;
	     at = region->span.end, region = region_of(region->span.next)) {
		if (region == NULL || region->span.start > at) {
			return -ENOENT;
		}
		err = can_discard(region, part_of(region, start, end));
	}
	return err;
}

/* Takes the lazy parts of the range out of the table. */
static int make_absent(struct gpas *space, uint64_t start, uint64_t end)
{
	struct region *region = region_find(space, start);
	int err = check_discard(space, start, end);

	for (; err == 0 && region != NULL && region->span.start < end;
	     region = region_of(region->span.next)) {
		struct window part = part_of(region, start, end);

		if (region->backing->lazy) {
			txn_discharge(space, part.start, part.end);
			err = pt_unmap(space->table, part.start,
				       part.end - part.start);
		}
	}
	space->wait_for_readers = true;
	return err == 0 ? txn_touch(space, start, end) : err;
}

/* Gives the memory of the range back: no slot and no reader uses it, except
 * that of eager regions, which stays mapped and reads as zero. */
static int drop_memory(struct gpas *space, uint64_t start, uint64_t end)
{
	struct region *region = region_find(space, start);
	int first_error = 0;

	for (; region != NULL && region->span.start < end;
	     region = region_of(region->span.next)) {
		struct backing *backing = region->backing;
		struct window part = part_of(region, start, end);
		uint64_t size = part.end - part.start;
		uint64_t offset =
			region->offset + (part.start - region->span.start);
		int err = 0;

		if (backing->kind == GPAS_REGION_ALLOC) {
			uffd_forget_failures(space, backing->host + offset,
					     size);
			err = gpas_memory_discard(backing->memory, offset,
						  size);
		} else if (backing->ops.retire != NULL) {
			backing->ops.retire(backing->ops.ctx, offset, size);
		}
		first_error = first_error != 0 ? first_error : err;
	}
	return first_error;
}

int gpas_discard(struct gpas *space, gpas_gpa start, uint64_t size)
{
	uint64_t end = start.value + size;
	struct txn txn;
	int err = space_check_range(space, start, size);

	if (err == 0) {
		err = txn_open(space, TXN_RELEASE, &txn);
	}
	if (err != 0) {
		return err;
	}
	if (txn.grouped) {
		/* Content that is gone could not be brought back by abort. */
		return txn_close(&txn, -EBUSY);
	}
	err = txn_conclude(&txn, make_absent(space, start.value, end));
	if (err == 0) {
		err = drop_memory(space, start.value, end);
	}
	txn_unlock(&txn);
	if (err == 0) {
		count(&space->stats.discards, 1);
		count(&space->stats.discarded, size);
	}
	return err;
}

/* ---- Committing ahead of time -------------------------------------- */

/* How much one thread commits before it looks for more, and one progress step
 * covers at least. */
#define PREFAULT_BYTES	 (UINT64_C(4) << 20)
#define PREFAULT_THREADS 64

/* What the threads of one prefault share. */
struct prefault {
	struct gpas *space;
	uint64_t end;
	_Atomic(uint64_t) next; /* GPA of the next piece to take */
	_Atomic(uint64_t) done; /* bytes committed */
	_Atomic(int) err;	/* the first error, or a request to stop */
};

/* Has the host commit every page of @part. Kernels before 5.14 lack the advice:
 * then by hand, without changing a byte that a guest may be writing. */
static int commit_pages(const struct gpas_translation *part)
{
	int advice = (part->prot & GPAS_PROT_WRITE) != 0 ? MADV_POPULATE_WRITE
							 : MADV_POPULATE_READ;

	if (part->prot == GPAS_PROT_NONE ||
	    madvise(part->host, part->size, advice) == 0) {
		return 0;
	}
	if (errno != EINVAL) {
		return -EFAULT;
	}
	for (uint64_t at = 0; at < part->size; at += GPAS_PAGE_BYTES) {
		uint8_t *byte = (uint8_t *)part->host + at;

		if ((part->prot & GPAS_PROT_WRITE) != 0) {
			__atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
		} else {
			(void)__atomic_load_n(byte, __ATOMIC_RELAXED);
		}
	}
	return 0;
}

static int commit_piece(struct prefault *job, uint64_t at, uint64_t end)
{
	while (at < end) {
		struct gpas_translation part;
		int err = gpas_translate(job->space, gpas_gpa_at(at), 0,
					 end - at, &part);

		if (err == 0) {
			err = commit_pages(&part);
		}
		if (err != 0) {
			return err;
		}
		at += part.size;
	}
	return 0;
}

/* Takes and commits one piece. False when there is none left to take. */
static bool prefault_step(struct prefault *job)
{
	uint64_t at = atomic_fetch_add(&job->next, PREFAULT_BYTES);
	uint64_t end = at + PREFAULT_BYTES;
	int none = 0;
	int err;

	if (at >= job->end || atomic_load(&job->err) != 0) {
		return false;
	}
	end = end < job->end ? end : job->end;
	err = commit_piece(job, at, end);
	if (err != 0) {
		atomic_compare_exchange_strong(&job->err, &none, err);
		return false;
	}
	atomic_fetch_add(&job->done, end - at);
	return true;
}

static void *prefault_thread(void *arg)
{
	while (prefault_step(arg)) {
	}
	return NULL;
}

static void report(struct prefault *job, uint64_t total,
		   const struct gpas_prefault_params *params)
{
	int none = 0;
	int stop;

	if (params->progress == NULL) {
		return;
	}
	stop = params->progress(params->progress_ctx, atomic_load(&job->done),
				total);
	if (stop != 0) {
		atomic_compare_exchange_strong(&job->err, &none, stop);
	}
}

int gpas_prefault(struct gpas *space, gpas_gpa start, uint64_t size,
		  const struct gpas_prefault_params *params)
{
	static const struct gpas_prefault_params defaults;
	pthread_t threads[PREFAULT_THREADS];
	struct prefault job = { .space = space };
	unsigned started = 0;
	int err;

	params = params != NULL ? params : &defaults;
	if (params->threads > PREFAULT_THREADS) {
		return -EINVAL;
	}
	err = gpas_populate(space, start, size);
	if (err != 0) {
		return err;
	}
	job.end = start.value + size;
	atomic_init(&job.next, start.value);
	/* Fewer helpers than asked for only make it slower. */
	while (started + 1 < params->threads &&
	       pthread_create(&threads[started], NULL, prefault_thread, &job) ==
		       0) {
		started++;
	}
	while (prefault_step(&job)) {
		report(&job, size, params);
	}
	while (started > 0) {
		pthread_join(threads[--started], NULL);
	}
	report(&job, size, params);
	return atomic_load(&job.err);
}
