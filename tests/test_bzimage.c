/* SPDX-License-Identifier: MIT */
/*
 * Which kernel files "gpas-vmm boot" accepts: a good header, the same with each
 * field wrong in turn, and random ones. Whatever is accepted must be safe to
 * act upon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../vmm/pc.h"

#define CODE_OFFSET (40u * 512)
#define FILE_BYTES  (UINT64_C(12) << 20)
#define CODE_BYTES  (FILE_BYTES - CODE_OFFSET)

static void set(uint8_t *head, unsigned offset, unsigned bytes, uint64_t value)
{
	for (unsigned i = 0; i < bytes; i++) {
		head[offset + i] = (uint8_t)(value >> 8 * i);
	}
}

/* What a kernel of today says of itself. */
static void make_good(uint8_t head[BZIMAGE_HEAD_BYTES])
{
	memset(head, 0, BZIMAGE_HEAD_BYTES);
	set(head, 0x1f1, 1, 39);		 /* setup_sects */
	set(head, 0x1f4, 4, CODE_BYTES / 16);	 /* syssize */
	set(head, 0x1fe, 2, 0xaa55);		 /* boot_flag */
	set(head, 0x200, 2, 0x6aeb);		 /* jump */
	memcpy(head + 0x202, "HdrS", 4);	 /* header */
	set(head, 0x206, 2, 0x020f);		 /* version */
	set(head, 0x211, 1, 1);			 /* loadflags */
	set(head, 0x22c, 4, 0x7fffffff);	 /* initrd_addr_max */
	set(head, 0x230, 4, 0x200000);		 /* kernel_alignment */
	set(head, 0x236, 2, 0x7f);		 /* xloadflags */
	set(head, 0x238, 4, 2047);		 /* cmdline_size */
	set(head, 0x248, 4, 0x2cc);		 /* payload_offset */
	set(head, 0x24c, 4, CODE_BYTES - 0x400); /* payload_length */
	set(head, 0x258, 8, 0x1000000);		 /* pref_address */
	set(head, 0x260, 4, 0x3000000);		 /* init_size */
}

static void accepts_a_kernel(void **state)
{
	uint8_t head[BZIMAGE_HEAD_BYTES];
	struct bzimage image;

	(void)state;
	make_good(head);
	assert_null(bzimage_check(head, sizeof(head), FILE_BYTES, &image));
	assert_int_equal(image.header_bytes, 0x26c - 0x1f1);
	assert_int_equal(image.code_offset, CODE_OFFSET);
	assert_int_equal(image.code_bytes, CODE_BYTES);
	assert_int_equal(image.load_gpa, 0x1000000);
	assert_int_equal(image.memory_bytes, 0x3000000);
	assert_int_equal(image.initrd_end, 0x80000000);
	assert_int_equal(image.cmdline_max, 2047);
}

static void accepts_what_follows_the_code(void **state)
{
	uint8_t head[BZIMAGE_HEAD_BYTES];
	struct bzimage image;

	(void)state;
	make_good(head);
	/* A signature at the end; sizes rounded up to paragraphs. */
	assert_null(
		bzimage_check(head, sizeof(head), FILE_BYTES + 4096, &image));
	assert_null(bzimage_check(head, sizeof(head), FILE_BYTES - 15, &image));
	/* No sector count stands for four. */
	set(head, 0x1f1, 1, 0);
	assert_null(bzimage_check(head, sizeof(head), FILE_BYTES, &image));
	assert_int_equal(image.code_offset, 5 * 512);
}

static void names_what_is_wrong(void **state)
{
	static const struct {
		unsigned offset, bytes;
		uint64_t value;
		const char *says;
	} cases[] = {
		{ 0x1f1, 1, 255, "cut off within its code" },
		{ 0x1f4, 4, CODE_BYTES / 16 + 1, "cut off within its code" },
		{ 0x1f4, 4, UINT32_MAX, "cut off within its code" },
		{ 0x1f4, 4, 0, "too small" },
		{ 0x1fe, 2, 0x55aa, "neither a bzImage nor" },
		{ 0x201, 1, 0, "impossible length" },
		{ 0x201, 1, 0x61, "impossible length" },
		{ 0x201, 1, 0x8f, "impossible length" },
		{ 0x201, 1, 0xff, "impossible length" },
		{ 0x202, 4, 0, "neither a bzImage nor" },
		{ 0x206, 2, 0x020b, "older than 2.12" },
		{ 0x206, 2, 0, "older than 2.12" },
		{ 0x211, 1, 0, "zImage" },
		{ 0x230, 4, 0, "alignment" },
		{ 0x230, 4, 0x300000, "alignment" },
		{ 0x230, 4, 0x800, "alignment" },
		{ 0x236, 2, 0x7e, "no 64-bit entry" },
		{ 0x248, 4, UINT32_MAX, "payload exceeds" },
		{ 0x24c, 4, UINT32_MAX, "payload exceeds" },
		{ 0x258, 8, 0, "impossible address" },
		{ 0x258, 8, 0x1000, "impossible address" },
		{ 0x258, 8, 0x1001000, "impossible address" },
		{ 0x258, 8, 0xc0000000, "impossible address" },
		{ 0x258, 8, UINT64_MAX - 0x1fffff, "impossible address" },
		{ 0x258, 8, 0xbfe00000, "more memory than there is" },
		{ 0x260, 4, 0, "less memory than it has code" },
		{ 0x260, 4, CODE_BYTES - 1, "less memory than it has code" },
		{ 0x260, 4, UINT32_MAX, "more memory than there is" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t head[BZIMAGE_HEAD_BYTES];
		struct bzimage image;
		const char *why;

		make_good(head);
		set(head, cases[i].offset, cases[i].bytes, cases[i].value);
		why = bzimage_check(head, sizeof(head), FILE_BYTES, &image);
		if (why == NULL || strstr(why, cases[i].says) == NULL) {
			fail_msg("field 0x%x = 0x%llx: \"%s\", not \"%s\"",
				 cases[i].offset,
				 (unsigned long long)cases[i].value,
				 why == NULL ? "accepted" : why, cases[i].says);
		}
	}
}

/* What is accepted lies inside the file, and inside low memory. */
static void check_safe(const struct bzimage *image, uint64_t file_bytes)
{
	assert_true(image->header_bytes <= BZIMAGE_HEAD_BYTES - 0x1f1);
	assert_true(image->code_offset < file_bytes);
	assert_int_equal(image->code_bytes, file_bytes - image->code_offset);
	assert_true(image->code_bytes > 0x200);
	assert_true(image->load_gpa >= PC_HIGH_START);
	assert_true(image->load_gpa < PC_HOLE_START);
	assert_true(image->memory_bytes >= image->code_bytes);
	assert_true(image->memory_bytes <= PC_HOLE_START - image->load_gpa);
	assert_true(image->initrd_end <= UINT64_C(1) << 32);
}

static void refuses_every_truncation(void **state)
{
	uint8_t head[BZIMAGE_HEAD_BYTES];
	struct bzimage image;

	(void)state;
	make_good(head);
	for (uint64_t size = 0; size < FILE_BYTES - 15;
	     size += size < 0x6000 ? 1 : 4093) {
		size_t known =
			size < sizeof(head) ? (size_t)size : sizeof(head);
		uint8_t *part = malloc(known + 1); /* so that ASan sees ends */

		memcpy(part, head, known);
		assert_non_null(bzimage_check(part, known, size, &image));
		free(part);
	}
}

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Single fields with all their edge values, then several at random. */
static void survives_random_headers(void **state)
{
	uint64_t seed = 0x2545f4914f6cdd1d;
	unsigned accepted = 0;

	(void)state;
	for (unsigned turn = 0; turn < 300000; turn++) {
		uint8_t head[BZIMAGE_HEAD_BYTES];
		uint64_t file_bytes = FILE_BYTES;
		struct bzimage image;

		make_good(head);
		for (unsigned i = 0; i <= turn % 4; i++) {
			unsigned at =
				0x1f1 + (unsigned)(next_random(&seed) % 0x78);
			uint64_t value = next_random(&seed);

			value >>= next_random(&seed) % 64;
			set(head, at, 1u << next_random(&seed) % 4, value);
		}
		if (turn % 7 == 0) {
			file_bytes = next_random(&seed) % (UINT64_C(1) << 40);
		}
		if (bzimage_check(head, sizeof(head), file_bytes, &image) ==
		    NULL) {
			check_safe(&image, file_bytes);
			accepted++;
		}
	}
	assert_true(accepted > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts_a_kernel),
		cmocka_unit_test(accepts_what_follows_the_code),
		cmocka_unit_test(names_what_is_wrong),
		cmocka_unit_test(refuses_every_truncation),
		cmocka_unit_test(survives_random_headers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
