/* SPDX-License-Identifier: MIT */
/* Table pages: checks what an embedder hands out, and keeps our own pool. */
#include "frames.h"

#include <stdlib.h>
#include <sys/mman.h>

/* The first chunk holds a small table and its reserve without being grown. */
#define FIRST_CHUNK_PAGES 64u

/* Pages are backed this many at a time: one system call instead of as many
 * page faults. Not done for the first chunk, most of which is never touched. */
#define POPULATE_PAGES 64u

/* Added in Linux 5.14; older headers do not know it. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static size_t chunk_pages(unsigned chunk)
{
	return (size_t)FIRST_CHUNK_PAGES << chunk;
}

static size_t pages_to_bytes(size_t pages)
{
	return pages << GPAS_PAGE_SHIFT;
}

static void push_free(struct frame_pool *pool, void *frame, size_t pages)
{
	for (size_t i = 0; i < pages; i++) {
		pool->free_pages[pool->free_count++] =
			(unsigned char *)frame + pages_to_bytes(i);
	}
}

/* Maps the next chunk; what was left of the last one becomes free pages. */
static bool grow(struct frame_pool *pool)
{
	size_t pages = chunk_pages(pool->chunk_count);
	size_t total = pool->total_pages + pages;
	void **stack;
	void *chunk;

	if (pool->chunk_count == FRAMES_MAX_CHUNKS) {
		return false;
	}
	stack = realloc(pool->free_pages, total * sizeof(*stack));
	if (stack == NULL) {
		return false;
	}
	pool->free_pages = stack;
	chunk = mmap(NULL, pages_to_bytes(pages), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (chunk == MAP_FAILED) {
		return false;
	}
	push_free(pool, pool->fresh, pool->fresh_pages);
	pool->chunks[pool->chunk_count++] = chunk;
	pool->total_pages = total;
	pool->fresh = chunk;
	pool->fresh_pages = pages;
	pool->populated_pages = pool->chunk_count == 1 ? pages : 0;
	return true;
}

/* Advisory: where the kernel cannot, pages are backed as they are touched. */
static void populate(struct frame_pool *pool)
{
	size_t pages = POPULATE_PAGES;

	if (pages > pool->fresh_pages) {
		pages = pool->fresh_pages;
	}
	(void)madvise(pool->fresh, pages_to_bytes(pages), MADV_POPULATE_WRITE);
	pool->populated_pages = pages;
}

static void *take_fresh(struct frame_pool *pool, size_t pages)
{
	void *frame = pool->fresh;

	if (pool->populated_pages < pages) {
		populate(pool);
	}
	pool->fresh += pages_to_bytes(pages);
	pool->fresh_pages -= pages;
	pool->populated_pages -= pages;
	return frame;
}

/* How many fresh pages to skip so that the next @pages are aligned. */
static size_t fresh_padding(const struct frame_pool *pool, size_t pages)
{
	size_t number = (uintptr_t)pool->fresh >> GPAS_PAGE_SHIFT;

	return -number & (pages - 1);
}

static void *pool_alloc(struct frame_pool *pool, size_t pages)
{
	size_t padding;

	if (pages == 1 && pool->free_count > 0) {
		return pool->free_pages[--pool->free_count];
	}
	if (pool->fresh_pages < fresh_padding(pool, pages) + pages &&
	    !grow(pool)) {
		return NULL;
	}
	padding = fresh_padding(pool, pages);
	if (padding > 0) {
		push_free(pool, take_fresh(pool, padding), padding);
	}
	return take_fresh(pool, pages);
}

static bool fits(const struct frames *frames, const void *frame, size_t pages)
{
	uint64_t address = (uintptr_t)frame;
	uint64_t bytes = pages_to_bytes(pages);

	return gpas_is_aligned(address, bytes) && address < frames->limit;
}

void frames_init(struct frames *frames, const struct gpas_frame_ops *ops,
		 void *ctx, unsigned host_bits)
{
	*frames = (struct frames){ .ctx = ctx };
	if (ops != NULL) {
		frames->ops = *ops;
	}
	frames->limit = UINT64_C(1) << host_bits;
}

void frames_fini(struct frames *frames)
{
	struct frame_pool *pool = &frames->pool;

	for (unsigned i = 0; i < pool->chunk_count; i++) {
		munmap(pool->chunks[i], pages_to_bytes(chunk_pages(i)));
	}
	free(pool->free_pages);
}

void *frames_alloc(struct frames *frames, size_t pages)
{
	void *frame;

	if (frames->ops.alloc == NULL) {
		frame = pool_alloc(&frames->pool, pages);
	} else {
		frame = frames->ops.alloc(frames->ctx, pages);
	}
	if (frame != NULL && !fits(frames, frame, pages)) {
		frames_free(frames, frame, pages);
		return NULL;
	}
	return frame;
}

void frames_free(struct frames *frames, void *frame, size_t pages)
{
	if (frames->ops.alloc == NULL) {
		push_free(&frames->pool, frame, pages);
	} else {
		frames->ops.free(frames->ctx, frame, pages);
	}
}
