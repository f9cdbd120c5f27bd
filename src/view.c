/* SPDX-License-Identifier: MIT */
/*
 * Views: a reader slot and a small software TLB for one thread.
 *
 * A remembered translation is good as long as no writer has waited for readers
 * since: readers_wait() bumps the epoch before it waits, so a view that enters
 * afterwards sees the new epoch and forgets everything, and one that is inside
 * is waited for. Only accesses within a page are made here; the others, and
 * those that find nothing present, take the plain way.
 */
#include "atomic.h"
#include "space.h"

#include <stdlib.h>
#include <string.h>

/* Covers 1 MiB of 4 KiB pages, in 4 KiB of host memory. */
#define TLB_ENTRIES 256

/*
 * What a tag holds below the GPA of its page: the permission, and the level of
 * the leaf. No entry in use is EMPTY, since a page that is remembered grants
 * something.
 */
#define TAG_LEVEL_SHIFT 3
#define TAG_BITS	(GPAS_PAGE_BYTES - 1)
#define EMPTY		UINT64_C(0)

struct tlb_entry {
	uint64_t tag;
	uint64_t delta; /* what to add to a GPA for the host address */
};

struct gpas_view {
	struct reader_slot slot;
	struct gpas *space;
	unsigned epoch;
	struct tlb_entry tlb[TLB_ENTRIES];
};

int gpas_view_open(struct gpas *space, struct gpas_view **ret)
{
	struct gpas_view *view =
		aligned_alloc(alignof(struct gpas_view), sizeof(*view));
	bool locked;

	if (view == NULL) {
		return -ENOMEM;
	}
	memset(view, 0, sizeof(*view));
	view->space = space;
	locked = space_lock(space);
	view->epoch = atomic_load(&space->readers.epoch);
	readers_add_slot(&space->readers, &view->slot);
	space_unlock(space, locked);
	*ret = view;
	return 0;
}

void gpas_view_close(struct gpas_view *view)
{
	bool locked;

	if (view == NULL) {
		return;
	}
	locked = space_lock(view->space);
	readers_remove_slot(&view->space->readers, &view->slot);
	space_unlock(view->space, locked);
	free(view);
}

/* Enters, and forgets what has become old since the last time. */
static inline void enter(struct gpas_view *view)
{
	unsigned epoch;

	slot_enter(&view->slot);
	epoch = atomic_load_explicit(&view->space->readers.epoch,
				     memory_order_acquire);
	if (__builtin_expect(epoch != view->epoch, 0)) {
		memset(view->tlb, 0, sizeof(view->tlb));
		view->epoch = epoch;
	}
}

static inline void leave(struct gpas_view *view)
{
	slot_leave(&view->slot);
}

/* Walks the table and remembers the page. NULL: the plain way will tell. */
static void *find_slowly(struct gpas_view *view, uint64_t gpa, unsigned access,
			 struct tlb_entry *entry)
{
	struct gpas_extent leaf;

	if (pt_lookup(view->space->table, gpa, &leaf) != 0 ||
	    leaf.prot == GPAS_PROT_NONE) {
		return NULL;
	}
	entry->tag = gpas_align_down(gpa, GPAS_PAGE_BYTES) | leaf.prot |
		     (leaf.leaf_shift - GPAS_PAGE_SHIFT) / 9 << TAG_LEVEL_SHIFT;
	entry->delta = leaf.host.value - leaf.start.value;
	if ((access & ~leaf.prot) != 0) {
		return NULL;
	}
	return gpas_hva_pointer(gpas_hva_at(gpa + entry->delta));
}

static inline struct tlb_entry *entry_of(struct gpas_view *view, uint64_t gpa)
{
	return &view->tlb[(gpa >> GPAS_PAGE_SHIFT) % TLB_ENTRIES];
}

/* The host address of @gpa, or NULL. The caller has entered. */
static inline void *find(struct gpas_view *view, uint64_t gpa, unsigned access)
{
	struct tlb_entry *entry = entry_of(view, gpa);
	uint64_t page = gpas_align_down(gpa, GPAS_PAGE_BYTES);

	if ((entry->tag & ~TAG_BITS) == page && entry->tag != EMPTY &&
	    (access & ~entry->tag) == 0) {
		return gpas_hva_pointer(gpas_hva_at(gpa + entry->delta));
	}
	return find_slowly(view, gpa, access, entry);
}

static inline bool within_page(gpas_gpa gpa, uint64_t size)
{
	return size != 0 &&
	       size <= GPAS_PAGE_BYTES - gpa.value % GPAS_PAGE_BYTES;
}

int gpas_view_translate(struct gpas_view *view, gpas_gpa gpa, unsigned access,
			uint64_t limit, struct gpas_translation *ret)
{
	uint64_t tag;
	void *host;

	if (!within_page(gpa, limit) ||
	    (access & ~(unsigned)GPAS_PROT_RWX) != 0) {
		return gpas_translate(view->space, gpa, access, limit, ret);
	}
	enter(view);
	host = find(view, gpa.value, access);
	tag = entry_of(view, gpa.value)->tag;
	leave(view);
	if (host == NULL) {
		return gpas_translate(view->space, gpa, access, limit, ret);
	}
	ret->host = host;
	ret->size = limit;
	ret->prot = tag & GPAS_PROT_RWX;
	ret->leaf_shift =
		GPAS_PAGE_SHIFT + 9 * (unsigned)(tag >> TAG_LEVEL_SHIFT & 3);
	return 0;
}

int gpas_view_read(struct gpas_view *view, gpas_gpa gpa, void *buffer,
		   size_t size, size_t *done)
{
	void *host;

	if (!within_page(gpa, size)) {
		return gpas_read(view->space, gpa, buffer, size, done);
	}
	enter(view);
	host = find(view, gpa.value, GPAS_PROT_READ);
	if (host != NULL) {
		memcpy(buffer, host, size);
	}
	leave(view);
	if (host == NULL) {
		return gpas_read(view->space, gpa, buffer, size, done);
	}
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int gpas_view_write(struct gpas_view *view, gpas_gpa gpa, const void *buffer,
		    size_t size, size_t *done)
{
	void *host;

	if (!within_page(gpa, size)) {
		return gpas_write(view->space, gpa, buffer, size, done);
	}
	enter(view);
	host = find(view, gpa.value, GPAS_PROT_WRITE);
	if (host != NULL) {
		memcpy(host, buffer, size);
	}
	leave(view);
	if (host == NULL) {
		return gpas_write(view->space, gpa, buffer, size, done);
	}
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int gpas_view_load(struct gpas_view *view, gpas_gpa gpa, unsigned width,
		   uint64_t *value)
{
	const void *host;

	if (check_atomic(gpa, width) != 0) {
		return -EINVAL;
	}
	enter(view);
	host = find(view, gpa.value, GPAS_PROT_READ);
	if (host != NULL) {
		*value = load_atomic(host, width);
	}
	leave(view);
	return host != NULL ? 0 : gpas_load(view->space, gpa, width, value);
}

int gpas_view_store(struct gpas_view *view, gpas_gpa gpa, unsigned width,
		    uint64_t value)
{
	void *host;

	if (check_atomic(gpa, width) != 0) {
		return -EINVAL;
	}
	enter(view);
	host = find(view, gpa.value, GPAS_PROT_WRITE);
	if (host != NULL) {
		store_atomic(host, width, value);
	}
	leave(view);
	return host != NULL ? 0 : gpas_store(view->space, gpa, width, value);
}
