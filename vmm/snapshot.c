/* SPDX-License-Identifier: MIT */
/*
 * RAM in a file: byte n is what the guest has at guest-physical address n. The
 * file covers RAM only, and what is zero is a hole in it.
 *
 * Restoring reads nothing ahead. The file is mapped privately where it can be,
 * so that pages come from the page cache and only what the guest writes is
 * copied; behind userfaultfd, which serves no files, pages are read as they
 * are touched. Saving writes a new file beside the old one and then replaces
 * it, which may therefore be the one that was restored.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- Restoring ----------------------------------------------------------- */

static int complain(const char *path, const char *what)
{
	tell("%s: %s", path, what);
	return STATUS_BAD_GUEST;
}

int restore_open(struct restore *restore, const struct options *options)
{
	const char *path = options->restore;
	struct stat info;
	uint64_t size;

	restore->fd = -1;
	if (path == NULL) {
		return 0;
	}
	restore->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (restore->fd < 0 || fstat(restore->fd, &info) != 0) {
		return complain(path, strerror(errno));
	}
	if (!S_ISREG(info.st_mode)) {
		return complain(path, "is not a regular file");
	}
	size = (uint64_t)info.st_size;
	if (size <= options->restore_offset) {
		return complain(path, "holds nothing to restore there");
	}
	restore->content =
		(struct gpas_file_content){ .fd = restore->fd,
					    .offset = options->restore_offset };
	restore->size = size - options->restore_offset;
	if (!gpas_is_aligned(restore->size, GPAS_PAGE_BYTES)) {
		return complain(path, "does not end with a whole page of 4K");
	}
	return 0;
}

void restore_close(struct restore *restore)
{
	if (restore->fd >= 0) {
		close(restore->fd);
	}
}

void restore_params(struct restore *restore, gpas_gpa start,
		    struct gpas_map_params *params)
{
	if (params->mechanism == GPAS_LAZY_UFFD) {
		params->filler = (struct gpas_filler){ gpas_fill_from_file,
						       &restore->content };
		return;
	}
	params->memory.kind = GPAS_MEMORY_FILE;
	params->memory.fd = restore->fd;
	params->memory.fd_offset = restore->content.offset + start.value;
}

/* ---- Saving -------------------------------------------------------------- */

#define CHUNK_BYTES (UINT64_C(64) << 10)

/* A file in the making. */
struct save {
	struct vm *vm;
	int fd;
	uint64_t written; /* bytes that are not holes */
};

static bool is_zero(const uint8_t *bytes, uint64_t size)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0;
}

static int write_all(struct save *save, const uint8_t *bytes, uint64_t size,
		     uint64_t offset)
{
	uint64_t done = 0;

	while (done < size) {
		ssize_t part = pwrite(save->fd, bytes + done, size - done,
				      (off_t)(offset + done));

		if (part < 0 && errno != EINTR) {
			return -errno;
		}
		done += part > 0 ? (uint64_t)part : 0;
	}
	save->written += size;
	return 0;
}

/* Write whole pages to their place, but for those that are zero. */
static int write_pages(struct save *save, gpas_gpa gpa, const uint8_t *bytes,
		       uint64_t size)
{
	uint64_t at = 0;
	int error = 0;

	while (error == 0 && at < size) {
		uint64_t first = at;

		while (at < size && !is_zero(bytes + at, GPAS_PAGE_BYTES)) {
			at += GPAS_PAGE_BYTES;
		}
		error = write_all(save, bytes + first, at - first,
				  gpa.value + first);
		if (at < size) {
			at += GPAS_PAGE_BYTES;
		}
	}
	return error;
}

/* Write what the guest has in its memory. The kernel copies it first: if that
 * is a mapping of a file that has shrunk, this fails, where a look at it would
 * end the process. */
static int write_present(struct save *save, gpas_gpa gpa, gpas_hva host,
			 uint64_t size)
{
	uint8_t chunk[CHUNK_BYTES];
	uint64_t done = 0;
	int error = 0;

	while (error == 0 && done < size) {
		uint64_t part = size - done;
		struct iovec to = { .iov_base = chunk };
		struct iovec from = {
			.iov_base = (uint8_t *)gpas_hva_pointer(host) + done,
		};

		part = part < CHUNK_BYTES ? part : CHUNK_BYTES;
		to.iov_len = part;
		from.iov_len = part;
		if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) !=
		    (ssize_t)part) {
			return -EFAULT;
		}
		error = write_pages(save, gpas_gpa_at(gpa.value + done), chunk,
				    part);
		done += part;
	}
	return error;
}

/* Copy what is not present and was not touched: still as in the old file. */
static int copy_restored(struct save *save, struct gpas_range range)
{
	struct restore *restore = &save->vm->restore;
	struct gpas_range file = { { 0 }, { restore->size } };
	uint8_t chunk[CHUNK_BYTES];
	int error = 0;

	range = gpas_range_intersect(range, file);
	while (error == 0 && !gpas_range_is_empty(range)) {
		uint64_t size = gpas_range_size(range);
		off_t from =
			(off_t)(restore->content.offset + range.start.value);
		off_t data = lseek(restore->fd, from, SEEK_DATA);

		if (data < 0 && errno == ENXIO) {
			break; /* only a hole follows */
		}
		if (data > from) {
			uint64_t hole = gpas_align_down((uint64_t)(data - from),
							GPAS_PAGE_BYTES);

			if (hole >= size) {
				break;
			}
			range.start.value += hole;
			size -= hole;
		}
		size = size < CHUNK_BYTES ? size : CHUNK_BYTES;
		error = gpas_fill_from_file(&restore->content, range.start,
					    chunk, size);
		if (error == 0) {
			error = write_pages(save, range.start, chunk, size);
		}
		range.start.value += size;
	}
	return error;
}

static int save_region(struct save *save, const struct gpas_region *region)
{
	gpas_gpa at = region->start;
	gpas_gpa end = { region->start.value + region->size };
	int error = 0;

	while (error == 0 && at.value < end.value) {
		struct gpas_range gap = { at, end }, present = { end, end };
		struct gpas_extent extent;

		if (gpas_extent_next(save->vm->space, at, &extent) == 0 &&
		    extent.start.value < end.value) {
			gap.end = extent.start;
			present.start = extent.start;
			present.end.value = extent.start.value + extent.size;
		}
		if (present.end.value > end.value) {
			present.end = end;
		}
		error = copy_restored(save, gap);
		if (error == 0 && !gpas_range_is_empty(present)) {
			error = write_present(save, present.start, extent.host,
					      gpas_range_size(present));
		}
		at = present.end;
	}
	return error;
}

static int save_ram(struct save *save)
{
	struct vm *vm = save->vm;
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;
	int error = 0;

	if (ftruncate(save->fd, (off_t)vm->ram_end.value) != 0) {
		return -errno;
	}
	while (error == 0 && gpas_region_next(vm->space, at, &region) == 0) {
		if (strcmp(region.name, RAM_NAME) == 0) {
			error = save_region(save, &region);
		}
		at.value = region.start.value + region.size;
	}
	return error;
}

/* Write the new file at @path, a template of mkstemp(3), and put it in
 * @final's place. */
static int save_through(struct save *save, char *path, const char *final)
{
	int error;

	save->fd = mkstemp(path);
	if (save->fd < 0) {
		return -errno;
	}
	error = save_ram(save);
	if (close(save->fd) != 0 && error == 0) {
		error = -errno;
	}
	if (error == 0 && rename(path, final) != 0) {
		error = -errno;
	}
	if (error != 0) {
		unlink(path);
	}
	return error;
}

int snapshot_save(struct vm *vm)
{
	const char *final = vm->options->save;
	size_t room = strlen(final) + sizeof(".XXXXXX");
	struct save save = { .vm = vm };
	char *path = malloc(room);
	struct stat info;
	int error = -ENOMEM;

	if (stat(final, &info) == 0 && !S_ISREG(info.st_mode)) {
		error = -EEXIST;
	} else if (path != NULL) {
		snprintf(path, room, "%s.XXXXXX", final);
		error = save_through(&save, path, final);
	}
	free(path);
	if (error != 0) {
		tell("--save %s: %s", final,
		     error == -EEXIST ? "is there and no regular file"
				      : strerror(-error));
		return STATUS_HOST;
	}
	if (vm->options->verbose) {
		tell("saved %s of RAM in %s", size_text(save.written).text,
		     final);
	}
	return 0;
}
