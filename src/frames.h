/* SPDX-License-Identifier: MIT */
/*
 * Table pages: the embedder's operations, or a pool of our own behind the same
 * two calls. Pages have any content. Not thread-safe: the table's writer calls.
 */
#ifndef GPAS_SRC_FRAMES_H
#define GPAS_SRC_FRAMES_H

#include <gpas/pgtable.h>

/* Each chunk is twice the one before, so this many exceed any address space. */
#define FRAMES_MAX_CHUNKS 40u

/*
 * The pool maps chunks and hands out their pages in order; a page that comes
 * back goes onto a stack of pointers beside the pages. The pages are not
 * touched when they are freed: dropping a large tree costs one store a page.
 * Invariant: free_pages has room for every page of every chunk.
 */
struct frame_pool {
	void **free_pages;
	size_t free_count;
	unsigned char *fresh; /* what is left of the newest chunk */
	size_t fresh_pages;
	size_t populated_pages; /* so many of those are already backed */
	size_t total_pages;
	unsigned chunk_count;
	void *chunks[FRAMES_MAX_CHUNKS];
};

struct frames {
	struct gpas_frame_ops ops;
	void *ctx;
	uint64_t limit; /* no page may reach this address */
	struct frame_pool pool;
};

/*
 * @ops may be NULL: the pool. A block that is misaligned or reaches beyond
 * @host_bits bits of address is given back and counts as no memory: no entry
 * could name it.
 */
void frames_init(struct frames *frames, const struct gpas_frame_ops *ops,
		 void *ctx, unsigned host_bits);

/* Every block has been freed, or is the pool's. */
void frames_fini(struct frames *frames);

/* @pages is 1, 2 or 4; aligned to the whole block. NULL: no memory. */
void *frames_alloc(struct frames *frames, size_t pages);
void frames_free(struct frames *frames, void *frame, size_t pages);

#endif
