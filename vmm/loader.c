/* SPDX-License-Identifier: MIT */
/*
 * Loading a guest: an ELF64 executable, each of whose segments becomes a
 * region with the segment's own permission, or, without an ELF header, a flat
 * binary that is one region of read, write and execute.
 *
 * The file is the user's, not to be trusted: every offset and size in it is
 * checked before use, and what is wrong with it is said in one line.
 */
#include "vm.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct image {
	struct vm *vm;
	const char *path;
	uint8_t *bytes;
	uint64_t size;
};

/* Say what is wrong with the file; always STATUS_BAD_GUEST. */
__attribute__((format(printf, 2, 3))) static int complain(
	const struct image *image, const char *format, ...)
{
	char what[160];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	tell("%s: %s", image->path, what);
	return STATUS_BAD_GUEST;
}

/* ---- The file ------------------------------------------------------------ */

static int read_bytes(struct image *image, int fd)
{
	uint64_t done = 0;

	while (done < image->size) {
		ssize_t part =
			read(fd, image->bytes + done, image->size - done);

		if (part < 0 && errno == EINTR) {
			continue;
		}
		if (part < 0) {
			return complain(image, "%s", strerror(errno));
		}
		if (part == 0) {
			return complain(image, "the file shrank");
		}
		done += (uint64_t)part;
	}
	return 0;
}

static int read_open_file(struct image *image, int fd)
{
	struct stat info;

	if (fstat(fd, &info) != 0) {
		return complain(image, "%s", strerror(errno));
	}
	if (S_ISDIR(info.st_mode)) {
		return complain(image, "is a directory, not a guest");
	}
	if (!S_ISREG(info.st_mode)) {
		return complain(image, "is not a regular file");
	}
	if (info.st_size == 0) {
		return complain(image, "is empty");
	}
	image->size = (uint64_t)info.st_size;
	image->bytes = malloc(image->size);
	if (image->bytes == NULL) {
		return complain(image, "is too large to load");
	}
	return read_bytes(image, fd);
}

static int read_file(struct image *image)
{
	int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int status;

	if (fd < 0) {
		return complain(image, "%s", strerror(errno));
	}
	status = read_open_file(image, fd);
	close(fd);
	return status;
}

/* ---- Mapping ------------------------------------------------------------- */

/* Where a piece of the file goes. */
struct piece {
	gpas_gpa start; /* of the pages */
	uint64_t size;
	gpas_gpa address; /* of the content */
	const uint8_t *content;
	uint64_t content_bytes;
	unsigned prot;
	const char *name;
};

static bool in_ram(const struct vm *vm, gpas_gpa start, uint64_t size)
{
	const struct arch_layout *layout = &arch_layout;
	gpas_gpa low_start = layout->null_page;
	gpas_gpa low_end = layout->low_ram_end;
	struct gpas_range range;

	if (gpas_range_make(start, size, &range) != 0) {
		return false;
	}
	low_start.value += GPAS_PAGE_BYTES;
	if (vm->ram_end.value < low_end.value) {
		low_end = vm->ram_end;
	}
	return gpas_range_contains_range(
		       (struct gpas_range){ low_start, low_end }, range) ||
	       (vm->ram_end.value > layout->high_ram.value &&
		gpas_range_contains_range(
			(struct gpas_range){ layout->high_ram, vm->ram_end },
			range));
}

static int map_piece(const struct image *image, const struct piece *piece)
{
	struct gpas *space = image->vm->space;
	const struct gpas_map_params params = { .name = piece->name };
	unsigned long long address = piece->address.value;
	int error;

	if (!in_ram(image->vm, piece->start, piece->size)) {
		return complain(image,
				"%llu KiB at 0x%llx do not fit into the "
				"memory; is --mem too small?",
				(unsigned long long)piece->size / 1024,
				address);
	}
	/* Writable while the content is put there, then as it shall be. */
	error = gpas_map_alloc(space, piece->start, piece->size, GPAS_PROT_RW,
			       &params);
	if (error == -EEXIST) {
		return complain(image,
				"what loads at 0x%llx shares a page with "
				"something else",
				address);
	}
	if (error == 0) {
		error = gpas_write(space, piece->address, piece->content,
				   piece->content_bytes, NULL);
	}
	if (error == 0) {
		error = gpas_protect(space, piece->start, piece->size,
				     piece->prot);
	}
	if (error != 0) {
		return map_error(image->vm, image->path, error);
	}
	return 0;
}

static int load_flat(const struct image *image)
{
	struct piece piece = {
		.start = arch_layout.load_address,
		.address = arch_layout.load_address,
		.content = image->bytes,
		.content_bytes = image->size,
		.prot = GPAS_PROT_RWX,
		.name = "guest.flat",
	};

	if (gpas_align_up(image->size, GPAS_PAGE_BYTES, &piece.size) != 0) {
		return complain(image, "is too large");
	}
	image->vm->entry.start = arch_layout.load_address;
	return map_piece(image, &piece);
}

/* ---- ELF (System V ABI, chapter 4 and 5) --------------------------------- */

static int check_header(const struct image *image, const Elf64_Ehdr *header)
{
	uint64_t table_bytes = header->e_phnum * sizeof(Elf64_Phdr);

	if (header->e_ident[EI_CLASS] != ELFCLASS64 ||
	    header->e_ident[EI_DATA] != ELFDATA2LSB) {
		return complain(image, "is not a 64-bit little-endian ELF "
				       "file");
	}
	if (header->e_machine != arch_elf_machine) {
		return complain(image, "is for ELF machine %u, not for %s",
				header->e_machine, arch_name);
	}
	if (header->e_type != ET_EXEC) {
		return complain(image, "is not an executable linked to a "
				       "fixed address (ET_EXEC)");
	}
	if (header->e_phnum == 0 || header->e_phnum == PN_XNUM ||
	    header->e_phentsize != sizeof(Elf64_Phdr)) {
		return complain(image, "has no usable program headers");
	}
	if (header->e_phoff > image->size ||
	    table_bytes > image->size - header->e_phoff) {
		return complain(image, "is truncated: the program headers lie "
				       "beyond its end");
	}
	return 0;
}

static const char *segment_name(unsigned prot)
{
	switch (prot) {
	case GPAS_PROT_READ:
		return "guest.rodata";
	case GPAS_PROT_RW:
		return "guest.data";
	case GPAS_PROT_RX:
		return "guest.text";
	default:
		return "guest.rwx";
	}
}

static int segment_prot(const struct image *image, const Elf64_Phdr *segment,
			unsigned *ret)
{
	unsigned prot = 0;

	prot |= (segment->p_flags & PF_R) != 0 ? GPAS_PROT_READ : 0;
	prot |= (segment->p_flags & PF_W) != 0 ? GPAS_PROT_WRITE : 0;
	prot |= (segment->p_flags & PF_X) != 0 ? GPAS_PROT_EXEC : 0;
	if ((prot & GPAS_PROT_READ) == 0) {
		return complain(image,
				"the segment at 0x%llx is not readable (%s), "
				"which this machine cannot offer",
				(unsigned long long)segment->p_paddr,
				prot_text(prot));
	}
	*ret = prot;
	return 0;
}

static int load_segment(const struct image *image, const Elf64_Phdr *segment)
{
	struct piece piece = { .address = gpas_gpa_at(segment->p_paddr) };
	gpas_gpa end;
	uint64_t last;
	int status;

	if (segment->p_filesz > segment->p_memsz) {
		return complain(image, "a segment has more bytes in the file "
				       "than in memory");
	}
	if (segment->p_offset > image->size ||
	    segment->p_filesz > image->size - segment->p_offset) {
		return complain(image, "is truncated: a segment lies beyond "
				       "its end");
	}
	if (gpas_gpa_add(piece.address, segment->p_memsz, &end) != 0 ||
	    gpas_align_up(end.value, GPAS_PAGE_BYTES, &last) != 0) {
		return complain(image, "a segment's address overflows");
	}
	status = segment_prot(image, segment, &piece.prot);
	if (status != 0) {
		return status;
	}
	piece.start.value = gpas_align_down(segment->p_paddr, GPAS_PAGE_BYTES);
	piece.size = last - piece.start.value;
	piece.content = image->bytes + segment->p_offset;
	piece.content_bytes = segment->p_filesz;
	piece.name = segment_name(piece.prot);
	return map_piece(image, &piece);
}

/* The entry is a virtual address; the guest starts with every address mapped
 * to itself, so what counts is where the entry's bytes are loaded. */
static bool entry_in(const Elf64_Phdr *segment, uint64_t entry, gpas_gpa *ret)
{
	if (segment->p_type != PT_LOAD || (segment->p_flags & PF_X) == 0 ||
	    entry < segment->p_vaddr ||
	    entry - segment->p_vaddr >= segment->p_filesz) {
		return false;
	}
	ret->value = segment->p_paddr + (entry - segment->p_vaddr);
	return true;
}

static int load_elf(const struct image *image)
{
	Elf64_Ehdr header;
	bool has_entry = false;
	int status;

	if (image->size < sizeof(header)) {
		return complain(image, "is truncated: no whole ELF header");
	}
	memcpy(&header, image->bytes, sizeof(header));
	status = check_header(image, &header);
	for (unsigned i = 0; status == 0 && i < header.e_phnum; i++) {
		Elf64_Phdr segment;

		memcpy(&segment,
		       image->bytes + header.e_phoff + i * sizeof(segment),
		       sizeof(segment));
		if (segment.p_type == PT_INTERP) {
			return complain(image, "wants a dynamic linker; link "
					       "it statically");
		}
		has_entry |= entry_in(&segment, header.e_entry,
				      &image->vm->entry.start);
		if (segment.p_type == PT_LOAD && segment.p_memsz != 0) {
			status = load_segment(image, &segment);
		}
	}
	if (status == 0 && !has_entry) {
		return complain(image,
				"the entry 0x%llx is in no executable "
				"segment",
				(unsigned long long)header.e_entry);
	}
	return status;
}

int load_guest(struct vm *vm)
{
	struct image image = { .vm = vm, .path = vm->options->guest };
	int status = read_file(&image);

	if (status == 0) {
		bool is_elf = image.size >= SELFMAG &&
			      memcmp(image.bytes, ELFMAG, SELFMAG) == 0;

		status = is_elf ? load_elf(&image) : load_flat(&image);
	}
	free(image.bytes);
	return status;
}
