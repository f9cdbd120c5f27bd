/* SPDX-License-Identifier: MIT */
/* Content for lazy memory: what a file has. */
#include "space.h"

#include <string.h>
#include <unistd.h>

/* Whether the file may end @done bytes into a piece of @size: within the last
 * page of it, the rest of which is then zero. */
static bool ends_in_last_page(uint64_t done, uint64_t size)
{
	return done > size - GPAS_PAGE_BYTES;
}

int gpas_fill_from_file(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	const struct gpas_file_content *content = ctx;
	uint64_t at = gpa.value - content->start.value;
	uint64_t done = 0;

	if (gpa.value < content->start.value ||
	    __builtin_add_overflow(at, content->offset, &at) ||
	    at > (uint64_t)INT64_MAX - size) {
		return -EINVAL;
	}
	while (done < size) {
		ssize_t part = pread(content->fd, (uint8_t *)host + done,
				     size - done, (off_t)(at + done));

		if (part < 0 && errno != EINTR) {
			return -errno;
		}
		if (part == 0 && !ends_in_last_page(done, size)) {
			return -ENODATA;
		}
		if (part == 0) {
			memset((uint8_t *)host + done, 0, size - done);
			return 0;
		}
		done += part > 0 ? (uint64_t)part : 0;
	}
	return 0;
}
