/* SPDX-License-Identifier: MIT */
/* Views: a reader of one's own, known without looking for it. What takes longer
 * goes the way that plain calls go. */
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
	if (__builtin_expect(access <= GPAS_PROT_RWX && limit != 0 &&
				     translate_quickly(view->space,
						       &view->reader, gpa.value,
						       access, limit, ret),
			     1)) {
		return 0;
	}
	return translate_slowly(view->space, &view->reader, gpa.value, access,
				limit, ret);
}

int gpas_view_read(struct gpas_view *view, gpas_gpa gpa, void *buffer,
		   size_t size, size_t *done)
{
	const void *host = NULL;

	if (size - 1 < QUICK_BYTES) {
		host = reach_quickly(view->space, &view->reader, gpa.value,
				     GPAS_PROT_READ, size);
	}
	if (host == NULL) {
		return read_slowly(view->space, &view->reader, gpa, buffer,
				   size, done);
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

	if (size - 1 < QUICK_BYTES) {
		host = reach_quickly(view->space, &view->reader, gpa.value,
				     GPAS_PROT_WRITE, size);
	}
	if (host == NULL) {
		return write_slowly(view->space, &view->reader, gpa, buffer,
				    size, done);
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
	const void *host = NULL;

	if (check_atomic(gpa, width) == 0) {
		/* Aligned, so it ends in no other leaf than it begins in. */
		host = reach_quickly(view->space, &view->reader, gpa.value,
				     GPAS_PROT_READ, 0);
	}
	if (host == NULL) {
		return load_slowly(view->space, &view->reader, gpa, width,
				   value);
	}
	*value = load_atomic(host, width);
	reader_leave(&view->reader);
	return 0;
}

int gpas_view_store(struct gpas_view *view, gpas_gpa gpa, unsigned width,
		    uint64_t value)
{
	void *host = NULL;

	if (check_atomic(gpa, width) == 0) {
		host = reach_quickly(view->space, &view->reader, gpa.value,
				     GPAS_PROT_WRITE, 0);
	}
	if (host == NULL) {
		return store_slowly(view->space, &view->reader, gpa, width,
				    value);
	}
	store_atomic(host, width, value);
	reader_leave(&view->reader);
	return 0;
}
