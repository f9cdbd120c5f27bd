/* SPDX-License-Identifier: MIT */
/*
 * Views: a reader of one's own, known without looking for it. Only accesses
 * that one leaf answers are made here; the others, and those that find nothing
 * present, take the plain way.
 */
#include "atomic.h"
#include "reach.h"

#include <stdlib.h>
#include <string.h>

struct gpas_view {
	struct reader reader;
	struct gpas *space;
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
	readers_add(&space->readers, &view->reader);
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
	readers_remove(&view->space->readers, &view->reader);
	space_unlock(view->space, locked);
	free(view);
}

int gpas_view_translate(struct gpas_view *view, gpas_gpa gpa, unsigned access,
			uint64_t limit, struct gpas_translation *ret)
{
	struct gpas *space = view->space;

	if (limit == 0 || access > GPAS_PROT_RWX) {
		return -EINVAL;
	}
	if (__builtin_expect(translate_quickly(space, &view->reader, gpa.value,
					       access, limit, ret),
			     1) ||
	    translate_leaves(space, &view->reader, gpa.value, access, limit,
			     ret)) {
		return 0;
	}
	return gpas_translate(space, gpa, access, limit, ret);
}

/* The quick way, or the one that walks; NULL: the plain way. An aligned word
 * ends in no other leaf than it begins in: its size does not matter. */
static inline void *reach(struct gpas_view *view, uint64_t gpa, unsigned access,
			  uint64_t size)
{
	void *host =
		reach_quickly(view->space, &view->reader, gpa, access, size);

	if (__builtin_expect(host == NULL, 0)) {
		host = reach_leaf(view->space, &view->reader, gpa, access,
				  size);
	}
	return host;
}

int gpas_view_read(struct gpas_view *view, gpas_gpa gpa, void *buffer,
		   size_t size, size_t *done)
{
	const void *host = NULL;

	if (size - 1 < GPAS_PAGE_BYTES) {
		host = reach(view, gpa.value, GPAS_PROT_READ, size);
	}
	if (host == NULL) {
		return gpas_read(view->space, gpa, buffer, size, done);
	}
	memcpy(buffer, host, size);
	reader_leave(&view->reader);
	if (done != NULL) {
		*done = size;
	}
	return 0;
}

int gpas_view_write(struct gpas_view *view, gpas_gpa gpa, const void *buffer,
		    size_t size, size_t *done)
{
	void *host = NULL;

	if (size - 1 < GPAS_PAGE_BYTES) {
		host = reach(view, gpa.value, GPAS_PROT_WRITE, size);
	}
	if (host == NULL) {
		return gpas_write(view->space, gpa, buffer, size, done);
	}
	memcpy(host, buffer, size);
	reader_leave(&view->reader);
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
	host = reach(view, gpa.value, GPAS_PROT_READ, 0);
	if (host == NULL) {
		return gpas_load(view->space, gpa, width, value);
	}
	*value = load_atomic(host, width);
	reader_leave(&view->reader);
	return 0;
}

int gpas_view_store(struct gpas_view *view, gpas_gpa gpa, unsigned width,
		    uint64_t value)
{
	void *host;

	if (check_atomic(gpa, width) != 0) {
		return -EINVAL;
	}
	host = reach(view, gpa.value, GPAS_PROT_WRITE, 0);
	if (host == NULL) {
		return gpas_store(view->space, gpa, width, value);
	}
	store_atomic(host, width, value);
	reader_leave(&view->reader);
	return 0;
}
