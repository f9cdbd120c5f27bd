/* SPDX-License-Identifier: MIT */
/*
 * Whether a file is a bzImage that the 64-bit boot protocol can start, judged
 * by its first bytes and its size alone. Offsets and bits are those of the
 * kernel's Documentation/arch/x86/boot.rst, "the real-mode kernel header".
 * Nothing of the file is believed: sums are made in 64 bits, after the
 * operands have been bounded.
 */
#include "pc.h"

#include <string.h>

#define HEADER_START	0x1f1
#define HEADER_MIN_END	0x264 /* init_size is the last field needed */
#define PROTOCOL_NEEDED 0x020c
#define LOADED_HIGH	0x01 /* loadflags: the code belongs at 1 MiB or above */
#define KERNEL_64	0x01 /* xloadflags: has the 64-bit entry point */
#define ENTRY_64_OFFSET 0x200
#define SECTOR_BYTES	512
#define PARAGRAPH_BYTES 16
#define MEMORY_LIMIT	PC_HOLE_START

const char bzimage_foreign[] = "it is neither a bzImage nor an ELF kernel";

static uint64_t field(const uint8_t *head, unsigned offset, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++) {
		value |= (uint64_t)head[offset + i] << 8 * i;
	}
	return value;
}

/* The header itself: does it say what we need to know? */
static const char *check_header(const uint8_t *head, size_t size,
				struct bzimage *image)
{
	uint64_t end;

	if (size < 0x206 || field(head, 0x1fe, 2) != 0xaa55 ||
	    memcmp(head + 0x202, "HdrS", 4) != 0) {
		return bzimage_foreign;
	}
	if (size < HEADER_MIN_END) {
		return "it is cut off within its header";
	}
	if (field(head, 0x206, 2) < PROTOCOL_NEEDED) {
		return "its boot protocol is older than 2.12 (Linux 3.8)";
	}
	/* The byte after the short jump's opcode: how far it jumps. */
	end = 0x202 + field(head, 0x201, 1);
	if (end < HEADER_MIN_END || end > BZIMAGE_HEAD_BYTES) {
		return "its header has an impossible length";
	}
	if (end > size) {
		return "it is cut off within its header";
	}
	if ((field(head, 0x211, 1) & LOADED_HIGH) == 0) {
		return "it is a zImage, to be loaded below 1 MiB";
	}
	if ((field(head, 0x236, 2) & KERNEL_64) == 0) {
		return "it has no 64-bit entry point";
	}
	image->header_bytes = (uint32_t)(end - HEADER_START);
	return NULL;
}

/* Where the code is in the file. */
static const char *check_code(const uint8_t *head, uint64_t file_bytes,
			      struct bzimage *image)
{
	uint64_t sectors = field(head, 0x1f1, 1);
	uint64_t claimed = field(head, 0x1f4, 4) * PARAGRAPH_BYTES;
	uint64_t offset = field(head, 0x248, 4);
	uint64_t length = field(head, 0x24c, 4);

	/* 0 stands for 4 (boot.rst, setup_sects). */
	image->code_offset = ((sectors == 0 ? 4 : sectors) + 1) * SECTOR_BYTES;
	if (image->code_offset >= file_bytes) {
		return "it is cut off before its code";
	}
	image->code_bytes = file_bytes - image->code_offset;
	if (image->code_bytes <= ENTRY_64_OFFSET) {
		return "it is cut off before its entry point";
	}
	/* The size is rounded up to whole paragraphs; signatures may follow. */
	if (claimed >= image->code_bytes + PARAGRAPH_BYTES) {
		return "it is cut off within its code";
	}
	if (claimed <= ENTRY_64_OFFSET) {
		return "its code is too small to be one";
	}
	if (offset + length > image->code_bytes) {
		return "its payload exceeds its code";
	}
	return NULL;
}

/* Where the code belongs in memory. */
static const char *check_memory(const uint8_t *head, struct bzimage *image)
{
	uint64_t alignment = field(head, 0x230, 4);
	uint64_t load = field(head, 0x258, 8);
	uint64_t size = field(head, 0x260, 4);

	if (alignment < GPAS_PAGE_BYTES || (alignment & (alignment - 1)) != 0) {
		return "its alignment is not a power of two of pages";
	}
	if (load < PC_HIGH_START || load >= MEMORY_LIMIT ||
	    !gpas_is_aligned(load, alignment)) {
		return "it prefers an impossible address";
	}
	if (size < image->code_bytes) {
		return "it claims to need less memory than it has code";
	}
	if (size > MEMORY_LIMIT - load) {
		return "it needs more memory than there is below 3 GiB";
	}
	image->load_gpa = load;
	image->memory_bytes = size;
	image->cmdline_max = (uint32_t)field(head, 0x238, 4);
	image->initrd_end = field(head, 0x22c, 4) + 1;
	return NULL;
}

const char *bzimage_check(const uint8_t *head, size_t size, uint64_t file_bytes,
			  struct bzimage *ret)
{
	struct bzimage image = { 0 };
	const char *why = check_header(head, size, &image);

	if (why == NULL) {
		why = check_code(head, file_bytes, &image);
	}
	if (why == NULL) {
		why = check_memory(head, &image);
	}
	if (why == NULL) {
		*ret = image;
	}
	return why;
}
