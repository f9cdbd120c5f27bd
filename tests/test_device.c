/* SPDX-License-Identifier: MIT */
/*
 * Claims: validation, lifetime, and how an access is cut into pieces, the
 * latter compared with a search for any cut at all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "device.h"

#define LOG_CALLS 64
#define RAM_BYTES 64

/* A device made of bytes that remembers how it was called. */
struct recorder {
	uint8_t ram[RAM_BYTES];
	struct gpas_device_access calls[LOG_CALLS];
	size_t call_count;
	size_t fail_at; /* 1: the first call; 0: none */
	int fail_with;
	uint64_t dirt; /* or-ed into the bytes above the width of a read */
	unsigned releases;
};

static int record(void *ctx, struct gpas_device_access *access)
{
	struct recorder *r = ctx;

	assert_true(r->call_count < LOG_CALLS);
	r->calls[r->call_count++] = *access;
	assert_true(access->offset + access->width <= RAM_BYTES);
	if (r->call_count == r->fail_at) {
		access->value = 0;
		return r->fail_with;
	}
	if (access->write) {
		memcpy(&r->ram[access->offset], &access->value, access->width);
		return 0;
	}
	assert_int_equal(access->value, 0);
	memcpy(&access->value, &r->ram[access->offset], access->width);
	if (access->width < 8) {
		access->value |= r->dirt << (8 * access->width);
	}
	return 0;
}

static void count_release(void *ctx)
{
	((struct recorder *)ctx)->releases++;
}

static struct gpas_device device_of(struct recorder *r, unsigned widths)
{
	struct gpas_device device = {
		.name = "recorder",
		.widths = widths,
		.ctx = r,
		.access = record,
		.release = count_release,
	};

	return device;
}

static struct claim *claim_of(struct recorder *r, unsigned widths)
{
	struct gpas_device device = device_of(r, widths);
	struct claim *claim = NULL;

	assert_int_equal(claim_create(&device, &claim), 0);
	assert_non_null(claim);
	return claim;
}

/* ---- creation and lifetime ---- */

static void creation_validates(void **state)
{
	struct recorder r = { 0 };
	struct claim *untouched = (struct claim *)&r;
	struct claim *claim = untouched;
	struct gpas_device device = device_of(&r, 16);

	(void)state;
	assert_int_equal(claim_create(&device, &claim), -EINVAL);
	device = device_of(&r, GPAS_WIDTH_ALL | 1u << 31);
	assert_int_equal(claim_create(&device, &claim), -EINVAL);
	device = device_of(&r, 0);
	device.access = NULL;
	assert_int_equal(claim_create(&device, &claim), -EINVAL);
	assert_int_equal(claim_create(NULL, &claim), -EINVAL);
	assert_ptr_equal(claim, untouched);
	assert_int_equal(r.releases, 0);
}

static void names_are_copied_and_cut(void **state)
{
	struct recorder r = { 0 };
	struct gpas_device device = device_of(&r, 0);
	char name[] = "0123456789abcdef0123456789abcdefXYZ";
	struct claim *claim;

	(void)state;
	device.name = name;
	assert_int_equal(claim_create(&device, &claim), 0);
	memset(name, '!', sizeof(name) - 1);
	assert_string_equal(claim->device.name,
			    "0123456789abcdef0123456789abcde");
	assert_ptr_equal(claim->device.name, claim->name);
	claim_put(claim);

	device.name = NULL;
	assert_int_equal(claim_create(&device, &claim), 0);
	assert_string_equal(claim->device.name, "device");
	claim_put(claim);
}

static void no_widths_means_all(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);

	(void)state;
	assert_int_equal(claim->device.widths, GPAS_WIDTH_ALL);
	claim_put(claim);
}

static void the_last_put_releases_once(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);

	(void)state;
	assert_ptr_equal(claim_get(claim), claim);
	claim_get(claim);
	claim_put(claim);
	claim_put(claim);
	assert_int_equal(r.releases, 0);
	claim_put(claim);
	assert_int_equal(r.releases, 1);
	claim_put(NULL);
}

static void release_is_optional(void **state)
{
	struct recorder r = { 0 };
	struct gpas_device device = device_of(&r, 0);
	struct claim *claim;

	(void)state;
	device.release = NULL;
	assert_int_equal(claim_create(&device, &claim), 0);
	claim_put(claim);
	assert_int_equal(r.releases, 0);
}

static void *get_and_put(void *ctx)
{
	struct claim *claim = ctx;

	for (int i = 0; i < 20000; i++) {
		claim_put(claim_get(claim));
	}
	claim_put(claim);
	return NULL;
}

static void references_are_counted_across_threads(void **state)
{
	enum {
		THREADS = 4
	};
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);
	pthread_t threads[THREADS];

	(void)state;
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_create(&threads[i], NULL, get_and_put,
						claim_get(claim)),
				 0);
	}
	claim_put(claim);
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	}
	assert_int_equal(r.releases, 1);
}

/* ---- accesses ---- */

static void a_write_arrives_in_little_endian_order(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[] = { 0x99, 0x11, 0x22, 0x33, 0x84 };

	(void)state;
	/* The data are not aligned; the offset is. */
	assert_int_equal(claim_access(claim, 64, 4, &data[1], 4, true), 0);
	assert_int_equal(r.call_count, 1);
	assert_int_equal(r.calls[0].offset, 4);
	assert_int_equal(r.calls[0].width, 4);
	assert_true(r.calls[0].write);
	assert_true(r.calls[0].value == 0x84332211);
	claim_put(claim);
}

static void eight_bytes_keep_every_bit(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, GPAS_WIDTH_8);
	uint8_t data[8] = { 1, 2, 3, 4, 5, 6, 7, 0x88 };
	uint8_t back[8] = { 0 };

	(void)state;
	assert_int_equal(claim_access(claim, 64, 8, data, 8, true), 0);
	assert_true(r.calls[0].value == UINT64_C(0x8807060504030201));
	assert_int_equal(claim_access(claim, 64, 8, back, 8, false), 0);
	assert_memory_equal(data, back, 8);
	claim_put(claim);
}

static void reads_ignore_what_is_above_the_width(void **state)
{
	struct recorder r = { .dirt = UINT64_MAX };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[4] = { 0xaa, 0xaa, 0xaa, 0xaa };

	(void)state;
	r.ram[2] = 0x12;
	assert_int_equal(claim_access(claim, 64, 2, &data[1], 1, false), 0);
	assert_int_equal(data[0], 0xaa);
	assert_int_equal(data[1], 0x12);
	assert_int_equal(data[2], 0xaa);
	assert_int_equal(claim_access(claim, 64, 2, data, 2, false), 0);
	assert_int_equal(data[1], 0);
	assert_int_equal(data[2], 0xaa);
	claim_put(claim);
}

static void odd_accesses_come_in_aligned_pieces(void **state)
{
	static const struct {
		uint64_t offset;
		unsigned width;
	} expected[] = { { 1, 1 }, { 2, 2 }, { 4, 4 }, { 8, 8 }, { 16, 1 } };
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[16];

	(void)state;
	for (size_t i = 0; i < sizeof(data); i++) {
		data[i] = (uint8_t)(i + 1);
	}
	assert_int_equal(claim_access(claim, 64, 1, data, 16, true), 0);
	assert_int_equal(r.call_count, 5);
	for (size_t i = 0; i < 5; i++) {
		assert_int_equal(r.calls[i].offset, expected[i].offset);
		assert_int_equal(r.calls[i].width, expected[i].width);
	}
	assert_memory_equal(&r.ram[1], data, sizeof(data));
	claim_put(claim);
}

static void narrow_devices_see_narrow_pieces(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, GPAS_WIDTH_1);
	uint8_t data[8] = { 8, 7, 6, 5, 4, 3, 2, 1 };

	(void)state;
	assert_int_equal(claim_access(claim, 8, 0, data, 8, true), 0);
	assert_int_equal(r.call_count, 8);
	assert_memory_equal(r.ram, data, 8);
	claim_put(claim);
}

static void what_has_no_cut_reaches_no_device(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, GPAS_WIDTH_4);
	uint8_t data[8] = { 0 };

	(void)state;
	assert_int_equal(claim_access(claim, 64, 0, data, 1, true), -EINVAL);
	assert_int_equal(claim_access(claim, 64, 2, data, 4, true), -EINVAL);
	/* The first piece would fit, the rest would not. */
	assert_int_equal(claim_access(claim, 64, 0, data, 6, true), -EINVAL);
	assert_int_equal(claim_access(claim, 64, 0, data, 6, false), -EINVAL);
	assert_int_equal(r.call_count, 0);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(data[i], i < 6 ? 0xff : 0);
	}
	claim_put(claim);
}

static void accesses_stay_in_the_range(void **state)
{
	struct recorder r = { 0 };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[8] = { 0 };

	(void)state;
	assert_int_equal(claim_access(claim, 8, 0, data, 8, true), 0);
	assert_int_equal(claim_access(claim, 8, 7, data, 2, true), -EINVAL);
	assert_int_equal(claim_access(claim, 8, 8, data, 1, true), -EINVAL);
	assert_int_equal(claim_access(claim, 8, 9, data, 1, true), -EINVAL);
	assert_int_equal(claim_access(claim, 8, UINT64_MAX, data, 2, true),
			 -EINVAL);
	assert_int_equal(claim_access(claim, 8, 0, data, 0, true), -EINVAL);
	assert_int_equal(claim_access(claim, 8, 0, data, 0, false), -EINVAL);
	assert_int_equal(r.call_count, 1);
	assert_int_equal(claim_access(claim, 8, 7, data, 2, false), -EINVAL);
	assert_int_equal(data[0], 0xff);
	assert_int_equal(data[1], 0xff);
	assert_int_equal(data[2], 0);
	claim_put(claim);
}

static void the_devices_error_is_passed_on(void **state)
{
	struct recorder r = { .fail_at = 2, .fail_with = -EIO };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };

	(void)state;
	/* 1 + 2 + 4: the second piece fails and the third is not tried. */
	assert_int_equal(claim_access(claim, 64, 1, data, 7, false), -EIO);
	assert_int_equal(r.call_count, 2);
	for (size_t i = 0; i < 7; i++) {
		assert_int_equal(data[i], 0xff);
	}
	assert_int_equal(data[7], 8);
	claim_put(claim);
}

static void a_failed_write_leaves_the_data(void **state)
{
	struct recorder r = { .fail_at = 1, .fail_with = 42 };
	struct claim *claim = claim_of(&r, 0);
	uint8_t data[4] = { 1, 2, 3, 4 };
	const uint8_t kept[4] = { 1, 2, 3, 4 };

	(void)state;
	assert_int_equal(claim_access(claim, 64, 0, data, 4, true), 42);
	assert_memory_equal(data, kept, 4);
	claim_put(claim);
}

/* Whether [offset, offset + size) has any cut into aligned widths. */
static bool has_cut(unsigned widths, uint64_t offset, size_t size)
{
	if (size == 0) {
		return true;
	}
	for (unsigned width = 1; width <= 8; width *= 2) {
		if ((widths & width) != 0 && width <= size &&
		    offset % width == 0 &&
		    has_cut(widths, offset + width, size - width)) {
			return true;
		}
	}
	return false;
}

/* The widest of the device's widths that fits is the one that must be used. */
static void assert_calls_are_widest(const struct recorder *r, unsigned widths,
				    uint64_t offset, size_t size)
{
	for (size_t i = 0; i < r->call_count; i++) {
		const struct gpas_device_access *call = &r->calls[i];

		assert_int_equal(call->offset, offset);
		assert_true((widths & call->width) != 0);
		assert_int_equal(offset % call->width, 0);
		for (unsigned w = call->width * 2; w <= 8; w *= 2) {
			assert_true((widths & w) == 0 || w > size ||
				    offset % w != 0);
		}
		offset += call->width;
		size -= call->width;
	}
	assert_int_equal(size, 0);
}

static void check_access(unsigned widths, uint64_t offset, size_t size)
{
	struct recorder r = { .dirt = 0x5a5a5a5a5a5a5a5a };
	struct claim *claim = claim_of(&r, widths);
	uint8_t data[24];

	for (size_t i = 0; i < RAM_BYTES; i++) {
		r.ram[i] = (uint8_t)(0x40 + i);
	}
	memset(data, 0, sizeof(data));
	if (has_cut(widths, offset, size)) {
		assert_int_equal(claim_access(claim, RAM_BYTES, offset, data,
					      size, false),
				 0);
		assert_memory_equal(data, &r.ram[offset], size);
		assert_calls_are_widest(&r, widths, offset, size);
	} else {
		assert_int_equal(claim_access(claim, RAM_BYTES, offset, data,
					      size, false),
				 -EINVAL);
		assert_int_equal(r.call_count, 0);
		assert_int_equal(data[0], 0xff);
		assert_int_equal(data[size - 1], 0xff);
	}
	assert_int_equal(data[size], 0);
	claim_put(claim);
}

static void every_small_access_is_cut_if_it_can_be(void **state)
{
	(void)state;
	for (unsigned widths = 1; widths <= GPAS_WIDTH_ALL; widths++) {
		for (uint64_t offset = 0; offset < 17; offset++) {
			for (size_t size = 1; size <= 20; size++) {
				check_access(widths, offset, size);
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(creation_validates),
		cmocka_unit_test(names_are_copied_and_cut),
		cmocka_unit_test(no_widths_means_all),
		cmocka_unit_test(the_last_put_releases_once),
		cmocka_unit_test(release_is_optional),
		cmocka_unit_test(references_are_counted_across_threads),
		cmocka_unit_test(a_write_arrives_in_little_endian_order),
		cmocka_unit_test(eight_bytes_keep_every_bit),
		cmocka_unit_test(reads_ignore_what_is_above_the_width),
		cmocka_unit_test(odd_accesses_come_in_aligned_pieces),
		cmocka_unit_test(narrow_devices_see_narrow_pieces),
		cmocka_unit_test(what_has_no_cut_reaches_no_device),
		cmocka_unit_test(accesses_stay_in_the_range),
		cmocka_unit_test(the_devices_error_is_passed_on),
		cmocka_unit_test(a_failed_write_leaves_the_data),
		cmocka_unit_test(every_small_access_is_cut_if_it_can_be),
	};

	return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
