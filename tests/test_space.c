/* SPDX-License-Identifier: MIT */
/*
 * The space: what each changing call does and refuses, how regions, leaves and
 * host memory follow, groups, and the questions one can ask.
 *
 * Faults and lazy memory are in test_fault.c, accessors in test_access.c,
 * random operations in test_space_model.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fail.h"

#define RW  GPAS_PROT_RW
#define RWX GPAS_PROT_RWX

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* ---- helpers ------------------------------------------------------------ */

/* Memory of the test's own, congruent to 0 modulo its size's leaf. */
static struct gpas_memory *own_memory(uint64_t size)
{
	struct gpas_memory *memory;

	assert_int_equal(gpas_memory_create(size, NULL, &memory), 0);
	return memory;
}

static void assert_leaves(struct gpas *space, uint64_t small, uint64_t large,
			  uint64_t huge)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	assert_int_equal(stats.leaves[0], small);
	assert_int_equal(stats.leaves[1], large);
	assert_int_equal(stats.leaves[2], huge);
	assert_int_equal(stats.present,
			 small * PAGE + large * 2 * MIB + huge * GIB);
	assert_int_equal(gpas_check(space), 0);
}

static uint64_t table_pages(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.table_pages;
}

static void assert_region(struct gpas *space, uint64_t gpa, uint64_t start,
			  uint64_t size, unsigned prot)
{
	struct gpas_region region;

	assert_int_equal(gpas_region_find(space, at(gpa), &region), 0);
	assert_int_equal(region.start.value, start);
	assert_int_equal(region.size, size);
	assert_int_equal(region.prot, prot);
}

static void assert_hole(struct gpas *space, uint64_t gpa)
{
	struct gpas_translation translation;
	struct gpas_region region;

	assert_int_equal(gpas_region_find(space, at(gpa), &region), -ENOENT);
	assert_int_equal(gpas_translate(space, at(gpa), 0, 1, &translation),
			 -ENOENT);
}

static void *host_of(struct gpas *space, uint64_t gpa)
{
	struct gpas_translation translation;

	assert_int_equal(gpas_translate(space, at(gpa), 0, 1, &translation), 0);
	return translation.host;
}

static void assert_regions(struct gpas *space, uint64_t count)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	assert_int_equal(stats.regions, count);
	assert_int_equal(gpas_check(space), 0);
}

/* Runs a call that has to fail, and sees that nothing has changed. */
#define assert_refused(space, call, error)              \
	do {                                            \
		char *before_ = space_text(space);      \
		char *after_;                           \
                                                        \
		assert_int_equal(call, error);          \
		after_ = space_text(space);             \
		assert_string_equal(before_, after_);   \
		assert_int_equal(gpas_check(space), 0); \
		free(before_);                          \
		free(after_);                           \
	} while (0)

static int ignore_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	access->value = 0;
	return 0;
}

/* How often the device was released since counting_device(); the space may
 * outlive the test's function. */
static unsigned releases;

static void count_release(void *ctx)
{
	(*(unsigned *)ctx)++;
}

static struct gpas_device counting_device(void)
{
	struct gpas_device device = {
		.name = "counter",
		.ctx = &releases,
		.access = ignore_access,
		.release = count_release,
	};

	releases = 0;
	return device;
}

/* ---- creation ----------------------------------------------------------- */

static void creation_refuses_bad_parameters(void **state)
{
	static const struct gpas_params bad[] = {
		{ .base = { 1 }, .size = PAGE },
		{ .size = PAGE + 1 },
		{ .size = 1 },
		{ .base = { UINT64_C(1) << 48 }, .size = PAGE },
		{ .base = { UINT64_C(1) << 48 } },
		{ .size = (UINT64_C(1) << 48) + PAGE },
		{ .base = { PAGE }, .size = UINT64_C(1) << 48 },
		{ .base = { PAGE }, .size = UINT64_MAX - PAGE + 1 },
		{ .size = PAGE, .max_leaf_shift = 13 },
		{ .size = PAGE, .max_leaf_shift = 39 },
		{ .size = PAGE, .max_leaf_shift = 1 },
	};
	struct gpas_params params = { .size = PAGE };
	struct gpas *space = NULL;

	(void)state;
	assert_int_equal(gpas_create(NULL, &space), -EINVAL);
	for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
		params = bad[i];
		params.format = GPAS_FORMAT_EPT_4;
		assert_int_equal(gpas_create(&params, &space), -EINVAL);
	}
	params = (struct gpas_params){ .size = PAGE };
	params.format = (enum gpas_format_id)GPAS_FORMAT_COUNT;
	assert_int_equal(gpas_create(&params, &space), -EINVAL);
	params.format = (enum gpas_format_id) - 1;
	assert_int_equal(gpas_create(&params, &space), -EINVAL);
	assert_null(space);
	gpas_destroy(NULL);
}

/* One space of a format: its ends can be mapped, what is beyond cannot. */
static void check_span(void **state, enum gpas_format_id id, uint64_t base,
		       uint64_t size)
{
	struct gpas_params params = { .base = { base }, .format = id };
	uint64_t width = UINT64_C(1)
			 << gpas_format_gpa_bits(gpas_format_get(id));
	uint64_t end = size != 0 ? base + size : width;
	struct gpas_translation translation;
	struct gpas *space;

	params.size = size;
	space = fixture_open(state, &params);
	assert_int_equal(gpas_base(space).value, base);
	assert_int_equal(gpas_end(space).value, end);
	assert_int_equal(gpas_size(space), end - base);
	assert_ptr_equal(gpas_format(space), gpas_format_get(id));
	assert_true(gpas_page_table_root(space).value % PAGE == 0);
	assert_true(gpas_page_table_root(space).value != 0);

	assert_int_equal(gpas_map_alloc(space, at(end - PAGE), PAGE, RW, NULL),
			 0);
	if (end - base > PAGE) {
		assert_int_equal(
			gpas_map_alloc(space, at(base), PAGE, RW, NULL), 0);
	}
	assert_int_equal(gpas_fill(space, at(end - PAGE), 7, PAGE, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(end), PAGE, RW, NULL),
			 -EINVAL);
	assert_int_equal(gpas_map_alloc(space, at(base - PAGE), PAGE, RW, NULL),
			 -EINVAL);
	assert_int_equal(gpas_translate(space, at(end), 0, 1, &translation),
			 -ENOENT);
	/* An address beyond the format's width aliases nothing. */
	assert_int_equal(
		gpas_translate(space, at(base + width), 0, 1, &translation),
		-ENOENT);
	assert_int_equal(gpas_translate(space, at(end - PAGE + width), 0, 1,
					&translation),
			 -ENOENT);
	assert_int_equal(gpas_check(space), 0);
}

static void every_format_can_be_spanned(void **state)
{
	for (unsigned id = 0; id < GPAS_FORMAT_COUNT; id++) {
		enum gpas_format_id format = (enum gpas_format_id)id;
		unsigned bits = gpas_format_gpa_bits(gpas_format_get(format));
		uint64_t width = UINT64_C(1) << bits;

		check_span(state, format, 0, 0);
		check_span(state, format, 0, PAGE);
		check_span(state, format, 0, width);
		check_span(state, format, 0x10000, 0x10000);
		check_span(state, format, 3 * GIB + 5 * PAGE, GIB);
		check_span(state, format, width - PAGE, 0);
		check_span(state, format, width - PAGE, PAGE);
		check_span(state, format, width / 2 - PAGE, 2 * PAGE);
		check_span(state, format, width - GIB, GIB);
	}
}

static void containing_never_overflows(void **state)
{
	struct gpas_params params = {
		.base = { 0x10000 },
		.size = 0x10000,
		.format = GPAS_FORMAT_NPT_4,
	};
	struct gpas *space = fixture_open(state, &params);

	assert_true(gpas_contains_range(space, at(0x10000), 0x10000));
	assert_true(gpas_contains_range(space, at(0x1ffff), 1));
	assert_true(gpas_contains_range(space, at(0x18000), 0));
	assert_false(gpas_contains_range(space, at(0xffff), 1));
	assert_false(gpas_contains_range(space, at(0xffff), 2));
	assert_false(gpas_contains_range(space, at(0x10000), 0x10001));
	assert_false(gpas_contains_range(space, at(0x20000), 1));
	assert_false(gpas_contains_range(space, at(0x11000), UINT64_MAX));
	assert_false(gpas_contains_range(space, at(0x11000),
					 UINT64_MAX - 0x11000 + 1));
	assert_false(gpas_contains_range(space, at(UINT64_MAX), 1));
	assert_false(gpas_contains_range(space, at(UINT64_MAX), 2));
}

/* ---- linear ------------------------------------------------------------- */

static void linear_memory_uses_the_largest_leaves(void **state)
{
	struct gpas_memory *memory = own_memory(2 * GIB);
	char *host = gpas_memory_host(memory);
	struct gpas_translation translation;
	struct gpas *space = fixture_space(state, 8 * GIB);

	/* 1 page, 511 large ones with an end of 512 - 1 small, one huge. */
	assert_int_equal(gpas_map_linear(space, at(GIB - PAGE), GIB + PAGE,
					 host + GIB - PAGE, RW, NULL),
			 0);
	assert_leaves(space, 1, 0, 1);
	assert_int_equal(gpas_translate(space, at(GIB - PAGE), RW, UINT64_MAX,
					&translation),
			 0);
	assert_ptr_equal(translation.host, host + GIB - PAGE);
	assert_int_equal(translation.size, GIB + PAGE);
	assert_int_equal(translation.prot, RW);
	assert_int_equal(translation.leaf_shift, 12);
	assert_int_equal(gpas_translate(space, at(GIB + 5), RW, UINT64_MAX,
					&translation),
			 0);
	assert_ptr_equal(translation.host, host + GIB + 5);
	assert_int_equal(translation.size, GIB - 5);
	assert_int_equal(translation.leaf_shift, 30);

	/* Host addresses that are not congruent limit the leaves. */
	assert_int_equal(gpas_map_linear(space, at(4 * GIB), GIB,
					 host + 2 * MIB, RW, NULL),
			 0);
	assert_leaves(space, 1, 512, 1);
	assert_int_equal(gpas_unmap(space, at(4 * GIB), GIB), 0);
	assert_int_equal(gpas_map_linear(space, at(4 * GIB), 4 * MIB,
					 host + PAGE, RW, NULL),
			 0);
	assert_leaves(space, 1 + 1024, 0, 1);
	fixture_close(state);
	gpas_memory_put(memory);
}

static void leaf_sizes_can_be_limited(void **state)
{
	static const struct {
		unsigned shift;
		uint64_t small, large, huge;
	} cases[] = {
		{ 0, 0, 0, 1 },
		{ 30, 0, 0, 1 },
		{ 21, 0, 512, 0 },
		{ 12, 262144, 0, 0 },
	};
	struct gpas_memory *memory = own_memory(GIB);

	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		struct gpas_params params = {
			.size = 2 * GIB,
			.format = GPAS_FORMAT_SV39_X4,
			.max_leaf_shift = cases[i].shift,
		};
		struct gpas *space = fixture_open(state, &params);

		assert_int_equal(gpas_map_linear(space, at(GIB), GIB,
						 gpas_memory_host(memory), RWX,
						 NULL),
				 0);
		assert_leaves(space, cases[i].small, cases[i].large,
			      cases[i].huge);
	}
	fixture_close(state);
	gpas_memory_put(memory);
}

static void linear_mapping_is_refused(void **state)
{
	struct gpas_memory *memory = own_memory(MIB);
	char *host = gpas_memory_host(memory);
	struct gpas *space = fixture_space(state, GIB);
	const struct gpas_map_params lazy = { .lazy = true };
	const struct gpas_map_params granule = { .granule = PAGE };
	const struct gpas_map_params growing = { .granule_max = PAGE };
	const struct gpas_map_params type = {
		.memtype = (enum gpas_memtype)GPAS_MEMTYPE_COUNT
	};

	assert_int_equal(
		gpas_map_linear(space, at(0x8000), 0x4000, host, RW, NULL), 0);
#define REFUSED(gpa, size, where, prot, params, error)                      \
	assert_refused(                                                     \
		space,                                                      \
		gpas_map_linear(space, at(gpa), size, where, prot, params), \
		error)
	REFUSED(1, PAGE, host, RW, NULL, -EINVAL);
	REFUSED(0, PAGE + 1, host, RW, NULL, -EINVAL);
	REFUSED(0, 0, host, RW, NULL, -EINVAL);
	REFUSED(0, PAGE, host + 1, RW, NULL, -EINVAL);
	REFUSED(0, PAGE, NULL, RW, NULL, -EINVAL);
	REFUSED(GIB, PAGE, host, RW, NULL, -EINVAL);
	REFUSED(GIB - PAGE, 2 * PAGE, host, RW, NULL, -EINVAL);
	REFUSED(0, UINT64_MAX - PAGE + 1, host, RW, NULL, -EINVAL);
	REFUSED(PAGE, UINT64_MAX - PAGE + 1, host, RW, NULL, -EINVAL);
	REFUSED(0, PAGE, host, 8, NULL, -EINVAL);
	REFUSED(0, PAGE, host, UINT32_MAX, NULL, -EINVAL);
	REFUSED(0, PAGE, host, RW, &lazy, -EINVAL);
	REFUSED(0, PAGE, host, RW, &granule, -EINVAL);
	REFUSED(0, PAGE, host, RW, &growing, -EINVAL);
	REFUSED(0, PAGE, host, RW, &type, -EINVAL);
	REFUSED(0, 0x8000 + PAGE, host, RW, NULL, -EEXIST);
	REFUSED(0x8000, 0x4000, host, RW, NULL, -EEXIST);
	REFUSED(0x9000, PAGE, host, RW, NULL, -EEXIST);
	REFUSED(0xb000, 0x4000, host, RW, NULL, -EEXIST);
	REFUSED(0x0, MIB, host, RW, NULL, -EEXIST);
	REFUSED(0, PAGE, host, GPAS_PROT_WRITE, NULL, -EOPNOTSUPP);
	REFUSED(0, PAGE, host, GPAS_PROT_WRITE | GPAS_PROT_EXEC, NULL,
		-EOPNOTSUPP);
	REFUSED(0, PAGE, gpas_hva_pointer(gpas_hva_at(UINT64_C(1) << 52)), RW,
		NULL, -EOPNOTSUPP);
	REFUSED(0, PAGE, gpas_hva_pointer(gpas_hva_at(UINT64_MAX - PAGE + 1)),
		RW, NULL, -EINVAL);
#undef REFUSED
	assert_int_equal(gpas_map_linear(space, at(0), 0x8000, host, RW, NULL),
			 0);
	fixture_close(state);
	gpas_memory_put(memory);
}

/* What each format can say; the rest is an error, never rounded. */
static void formats_refuse_what_they_cannot_say(void **state)
{
	static const struct {
		enum gpas_format_id id;
		unsigned prots;	   /* bit n: enum gpas_prot n */
		unsigned memtypes; /* likewise */
	} cases[] = {
		{ GPAS_FORMAT_EPT_4, 0xbb, 0x1f },
		{ GPAS_FORMAT_EPT_5, 0xbb, 0x1f },
		{ GPAS_FORMAT_NPT_4, 0xab, 0x13 },
		{ GPAS_FORMAT_ARM64_S2_48, 0xaf, 0x17 },
		{ GPAS_FORMAT_ARM64_S2_40, 0xaf, 0x17 },
		{ GPAS_FORMAT_SV39_X4, 0xbb, 0x15 },
		{ GPAS_FORMAT_SV48_X4, 0xbb, 0x15 },
		{ GPAS_FORMAT_SV57_X4, 0xbb, 0x15 },
	};

	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		struct gpas_params params = { .size = MIB };
		struct gpas *space;

		params.format = cases[i].id;
		space = fixture_open(state, &params);
		for (unsigned n = 0; n < 8 * GPAS_MEMTYPE_COUNT; n++) {
			unsigned prot = n % 8;
			struct gpas_map_params map = {
				.memtype = (enum gpas_memtype)(n / 8)
			};
			bool can = (cases[i].prots >> prot & 1) &&
				   (cases[i].memtypes >> n / 8 & 1);
			int err = gpas_map_alloc(space, at(PAGE), PAGE, prot,
						 &map);

			assert_int_equal(err, can ? 0 : -EOPNOTSUPP);
			if (err == 0) {
				assert_region(space, PAGE, PAGE, PAGE, prot);
				assert_int_equal(gpas_check(space), 0);
				assert_int_equal(
					gpas_unmap(space, at(PAGE), PAGE), 0);
			}
		}
	}
}

static void extents_keep_the_memory_type(void **state)
{
	struct gpas_map_params map = { .memtype = GPAS_MEM_UNCACHED };
	struct gpas *space = fixture_space(state, MIB);
	struct gpas_extent extent;
	struct gpas_region region;

	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(PAGE), PAGE, RW, &map), 0);
	assert_int_equal(gpas_extent_next(space, at(0), &extent), 0);
	assert_int_equal(extent.size, PAGE);
	assert_int_equal(extent.memtype, GPAS_MEM_WRITE_BACK);
	assert_int_equal(gpas_extent_next(space, at(PAGE), &extent), 0);
	assert_int_equal(extent.memtype, GPAS_MEM_UNCACHED);
	assert_int_equal(gpas_region_find(space, at(PAGE), &region), 0);
	assert_int_equal(region.memtype, GPAS_MEM_UNCACHED);
	assert_int_equal(gpas_protect(space, at(PAGE), PAGE, GPAS_PROT_NONE),
			 0);
	assert_int_equal(gpas_extent_next(space, at(PAGE), &extent), 0);
	assert_int_equal(extent.memtype, GPAS_MEM_UNCACHED);
	assert_int_equal(extent.prot, GPAS_PROT_NONE);
}

static void the_caller_may_free_linear_memory_after_unmap(void **state)
{
	struct gpas_memory *memory = own_memory(2 * MIB);
	struct gpas *space = fixture_space(state, GIB);
	uint64_t value;

	assert_int_equal(gpas_map_linear(space, at(0), 2 * MIB,
					 gpas_memory_host(memory), RW, NULL),
			 0);
	assert_int_equal(gpas_store(space, at(8), 8, 42), 0);
	assert_int_equal(((uint64_t *)gpas_memory_host(memory))[1], 42);
	assert_int_equal(gpas_unmap(space, at(0), 2 * MIB), 0);
	/* The space neither touched nor freed it. */
	assert_int_equal(((uint64_t *)gpas_memory_host(memory))[1], 42);
	gpas_memory_put(memory);
	assert_int_equal(gpas_load(space, at(8), 8, &value), -ENOENT);
}

/* ---- alloc -------------------------------------------------------------- */

static int file_of(uint8_t byte, uint64_t size)
{
	char name[] = "/tmp/gpas-test-XXXXXX";
	int fd = mkstemp(name);
	uint8_t page[GPAS_PAGE_BYTES];

	assert_true(fd >= 0);
	unlink(name);
	memset(page, byte, sizeof(page));
	for (uint64_t done = 0; done < size; done += PAGE) {
		assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	}
	return fd;
}

static void anonymous_memory_is_zero_and_has_no_descriptor(void **state)
{
	struct gpas *space = fixture_space(state, 4 * GIB);
	struct gpas_region region;

	assert_int_equal(gpas_map_alloc(space, at(GIB), GIB, RW, NULL), 0);
	assert_leaves(space, 0, 0, 1);
	assert_int_equal(gpas_region_find(space, at(GIB + 12345), &region), 0);
	assert_int_equal(region.start.value, GIB);
	assert_int_equal(region.size, GIB);
	assert_int_equal(region.kind, GPAS_REGION_ALLOC);
	assert_int_equal(region.fd, -1);
	assert_int_equal(region.granule, 0);
	assert_int_equal(region.present, GIB);
	assert_int_equal(region.leaves[2], 1);
	assert_false(region.lazy);
	assert_string_equal(region.name, "alloc");
	assert_ptr_equal(region.host, host_of(space, GIB));
	assert_true(is_all(region.host, 0, 4 * MIB));
	assert_true(is_all((char *)region.host + GIB - MIB, 0, MIB));
}

static void neighbours_share_one_offset(void **state)
{
	struct gpas *space = fixture_space(state, 4 * GIB);
	struct gpas_extent extent;
	char *host;

	assert_int_equal(gpas_map_alloc(space, at(GIB), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(GIB + MIB), MIB, RW, NULL),
			 0);
	host = host_of(space, GIB);
	assert_int_equal((uintptr_t)host % GIB, 0);
	assert_int_equal(gpas_extent_next(space, at(0), &extent), 0);
	assert_int_equal(extent.start.value, GIB);
	assert_int_equal(extent.size, 2 * MIB);
	assert_ptr_equal(gpas_hva_pointer(extent.host), host);
	/* A leaf never belongs to two regions. */
	assert_leaves(space, 512, 0, 0);
}

static void memfd_memory_is_shared_through_its_descriptor(void **state)
{
	struct gpas_map_params map = { .name = "ram" };
	struct gpas *space = fixture_space(state, 4 * GIB);
	struct gpas_region region;
	uint64_t value = 0;

	map.memory.kind = GPAS_MEMORY_MEMFD;
	assert_int_equal(gpas_map_alloc(space, at(0), 4 * MIB, RW, &map), 0);
	assert_int_equal(gpas_store(space, at(3 * MIB), 8, 77), 0);
	/* Splitting regions keeps descriptor and offset right. */
	assert_int_equal(gpas_unmap(space, at(MIB), PAGE), 0);
	assert_int_equal(gpas_region_find(space, at(3 * MIB), &region), 0);
	assert_int_equal(region.start.value, MIB + PAGE);
	assert_int_equal(region.fd_offset, MIB + PAGE);
	assert_string_equal(region.name, "ram");
	assert_true(region.fd >= 0);
	assert_int_equal(pread(region.fd, &value, 8, (off_t)(3 * MIB)), 8);
	assert_int_equal(value, 77);
	/* What was unmapped went back to the host. */
	assert_int_equal(gpas_unmap(space, at(3 * MIB), PAGE), 0);
	assert_int_equal(pread(region.fd, &value, 8, (off_t)(3 * MIB)), 8);
	assert_int_equal(value, 0);
}

static void private_files_keep_stores_to_themselves(void **state)
{
	struct gpas_map_params map = { 0 };
	struct gpas *space = fixture_space(state, GIB);
	uint8_t byte = 0;
	int fd = file_of(0x5a, 4 * PAGE);

	map.memory.kind = GPAS_MEMORY_FILE;
	map.memory.fd = fd;
	map.memory.fd_offset = PAGE;
	assert_int_equal(gpas_map_alloc(space, at(0), 2 * PAGE, RW, &map), 0);
	assert_true(is_all(host_of(space, 0), 0x5a, 2 * PAGE));
	assert_int_equal(gpas_fill(space, at(0), 1, 2 * PAGE, NULL), 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)PAGE), 1);
	assert_int_equal(byte, 0x5a);
	close(fd);
}

static void shared_files_receive_stores_and_keep_them(void **state)
{
	struct gpas_map_params map = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_region region;
	uint8_t byte = 0;
	int fd = file_of(0x5a, 4 * PAGE);

	map.memory.kind = GPAS_MEMORY_FILE;
	map.memory.fd = fd;
	map.memory.fd_offset = PAGE;
	map.memory.shared = true;
	assert_int_equal(gpas_map_alloc(space, at(0), 2 * PAGE, RW, &map), 0);
	assert_int_equal(gpas_region_find(space, at(PAGE), &region), 0);
	assert_int_equal(region.fd_offset, PAGE);
	assert_int_equal(gpas_read(space, at(PAGE), &byte, 1, NULL), 0);
	assert_int_equal(byte, 0x5a);
	assert_int_equal(gpas_fill(space, at(PAGE), 1, PAGE, NULL), 0);
	assert_int_equal(gpas_unmap(space, at(0), 2 * PAGE), 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)(2 * PAGE)), 1);
	assert_int_equal(byte, 1);
	close(fd);
}

static void huge_pages_work_or_say_why_not(void **state)
{
	struct gpas_map_params map = { 0 };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_region region;
	int err;

	map.memory.kind = GPAS_MEMORY_HUGETLB;
	err = gpas_map_alloc(space, at(4 * MIB), 2 * MIB, RW, &map);
	if (err != 0) {
		assert_int_equal(err, -ENOMEM);
		assert_regions(space, 0);
		return;
	}
	assert_leaves(space, 0, 1, 0);
	assert_int_equal(gpas_region_find(space, at(4 * MIB), &region), 0);
	assert_true(region.fd >= 0);
	assert_true(is_all(region.host, 0, 2 * MIB));
	assert_int_equal(gpas_fill(space, at(4 * MIB), 9, 2 * MIB, NULL), 0);
	/* A part of a huge page makes room for something else. */
	assert_int_equal(gpas_unmap(space, at(5 * MIB), PAGE), 0);
	assert_int_equal(gpas_map_alloc(space, at(5 * MIB), PAGE, RW, NULL), 0);
	assert_true(is_all(host_of(space, 5 * MIB), 0, PAGE));
	assert_int_equal(gpas_fill(space, at(5 * MIB), 3, PAGE, NULL), 0);
	assert_true(is_all(host_of(space, 4 * MIB), 9, MIB));
	assert_int_equal(gpas_unmap(space, at(4 * MIB), MIB), 0);
	assert_int_equal(gpas_unmap(space, at(5 * MIB + PAGE), MIB - PAGE), 0);
	assert_true(is_all(host_of(space, 5 * MIB), 3, PAGE));
	assert_int_equal(gpas_check(space), 0);
}

static void alloc_mapping_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params map = { 0 };
	int fd = file_of(0, PAGE);
	int readable = open("/proc/self/exe", O_RDONLY);

	assert_int_equal(gpas_map_alloc(space, at(0x8000), PAGE, RW, NULL), 0);
#define REFUSED(gpa, size, prot, error)                                  \
	assert_refused(space,                                            \
		       gpas_map_alloc(space, at(gpa), size, prot, &map), \
		       error)
	REFUSED(1, PAGE, RW, -EINVAL);
	REFUSED(0, 0, RW, -EINVAL);
	REFUSED(GIB, PAGE, RW, -EINVAL);
	REFUSED(0, PAGE, 8, -EINVAL);
	REFUSED(0, PAGE, GPAS_PROT_WRITE, -EOPNOTSUPP);
	REFUSED(0x8000, PAGE, RW, -EEXIST);
	REFUSED(0, GIB, RW, -EEXIST);
	map.granule = PAGE;
	REFUSED(0, PAGE, RW, -EINVAL); /* not lazy */
	map.lazy = true;
	map.granule = 3 * PAGE;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.granule = PAGE / 2;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.granule = 2 * GIB;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.granule = 2 * PAGE;
	map.granule_max = PAGE;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.granule_max = 3 * PAGE;
	REFUSED(0, PAGE, RW, -EINVAL);
	map = (struct gpas_map_params){ 0 };
	map.memory.kind = (enum gpas_memory_kind)9;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.memory.kind = GPAS_MEMORY_FILE;
	map.memory.fd = -1;
	REFUSED(0, PAGE, RW, -EBADF);
	map.memory.fd = fd;
	REFUSED(0, 2 * PAGE, RW, -ENODATA);
	map.memory.fd_offset = 1;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.memory.fd_offset = PAGE;
	REFUSED(0, PAGE, RW, -ENODATA);
	map.memory.fd_offset = 0;
	map.memory.fd = readable;
	map.memory.shared = true;
	REFUSED(0, PAGE, RW, -EACCES);
	map = (struct gpas_map_params){ 0 };
	map.memory.kind = GPAS_MEMORY_HUGETLB;
	REFUSED(0, PAGE, RW, -EINVAL);
	map.memory.huge_shift = 22;
	REFUSED(4 * MIB, 4 * MIB, RW, -EINVAL);
	map.memory.huge_shift = 64;
	REFUSED(4 * MIB, 4 * MIB, RW, -EINVAL);
	map.memory.huge_shift = 200;
	map.lazy = true;
	REFUSED(4 * MIB, 4 * MIB, RW, -EINVAL);
#undef REFUSED
	close(fd);
	close(readable);
}

static void lazy_mapping_takes_no_table(void **state)
{
	static const enum gpas_format_id ids[] = { GPAS_FORMAT_EPT_4,
						   GPAS_FORMAT_EPT_5,
						   GPAS_FORMAT_SV57_X4,
						   GPAS_FORMAT_ARM64_S2_48 };
	const struct gpas_map_params map = { .lazy = true };
	const uint64_t size = THREAD_SANITIZED ? 64 * GIB : 64 * TIB;

	for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
		struct gpas_params params = { .format = ids[i] };
		struct gpas *space = fixture_open(state, &params);
		uint64_t before = table_pages(space);
		struct fixture *fixture = *state;
		long frames = fixture->frames.live;
		uint64_t value = 1;

		assert_int_equal(gpas_map_alloc(space, at(GIB), size, RW, &map),
				 0);
		assert_int_equal(table_pages(space), before);
		assert_int_equal(fixture->frames.live, frames);
		assert_leaves(space, 0, 0, 0);
		/* Its ends are there when they are touched. */
		assert_int_equal(gpas_load(space, at(GIB), 8, &value), 0);
		assert_int_equal(value, 0);
		assert_int_equal(gpas_store(space, at(GIB + size - 8), 8, 5),
				 0);
		assert_leaves(space, 32, 0, 0);
		/* Permission and removal cost what is present, not the size. */
		assert_int_equal(
			gpas_protect(space, at(GIB), size, GPAS_PROT_READ), 0);
		assert_int_equal(gpas_store(space, at(GIB + 65536), 8, 5),
				 -EACCES);
		assert_int_equal(
			gpas_unmap(space, at(GIB + PAGE), size - 2 * PAGE), 0);
		assert_leaves(space, 2, 0, 0);
		assert_int_equal(gpas_unmap(space, at(GIB), size), 0);
		assert_int_equal(table_pages(space), before);
	}
}

/* ---- memory objects ----------------------------------------------------- */

static void one_object_can_be_mapped_at_several_places(void **state)
{
	struct gpas_memory_params params = { .kind = GPAS_MEMORY_MEMFD };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_memory *memory;
	struct gpas_region region;
	uint64_t value = 0;

	assert_int_equal(gpas_memory_create(MIB, &params, &memory), 0);
	assert_int_equal(
		gpas_map_memory(space, at(0), MIB, RW, memory, 0, NULL), 0);
	assert_int_equal(gpas_map_memory(space, at(2 * MIB), MIB - 0x4000,
					 GPAS_PROT_READ, memory, 0x4000, NULL),
			 0);
	gpas_memory_put(memory); /* the regions keep it */
	assert_int_equal(gpas_store(space, at(0x5000), 4, 99), 0);
	assert_int_equal(gpas_load(space, at(2 * MIB + 0x1000), 4, &value), 0);
	assert_int_equal(value, 99);
	assert_int_equal(gpas_region_find(space, at(2 * MIB), &region), 0);
	assert_int_equal(region.kind, GPAS_REGION_MEMORY);
	assert_int_equal(region.fd_offset, 0x4000);
	assert_string_equal(region.name, "memory");
	assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
	/* Its content stays: it belongs to the object, not to the region. */
	assert_int_equal(gpas_load(space, at(2 * MIB + 0x1000), 4, &value), 0);
	assert_int_equal(value, 99);
	assert_int_equal(gpas_unmap(space, at(2 * MIB), PAGE), 0);
	assert_int_equal(gpas_region_find(space, at(2 * MIB + PAGE), &region),
			 0);
	assert_int_equal(region.fd_offset, 0x5000);
	assert_int_equal(gpas_load(space, at(2 * MIB + 0x1000), 4, &value), 0);
	assert_int_equal(value, 99);
}

static void object_mapping_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_memory *memory = own_memory(MIB);
	const struct gpas_map_params lazy = { .lazy = true };

	assert_int_equal(
		gpas_map_memory(space, at(0x8000), PAGE, RW, memory, 0, NULL),
		0);
#define REFUSED(gpa, size, prot, object, offset, params, error)            \
	assert_refused(space,                                              \
		       gpas_map_memory(space, at(gpa), size, prot, object, \
				       offset, params),                    \
		       error)
	REFUSED(0, PAGE, RW, NULL, 0, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, memory, 1, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, memory, MIB, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, memory, 2 * MIB, NULL, -EINVAL);
	REFUSED(0, 2 * PAGE, RW, memory, MIB - PAGE, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, memory, UINT64_MAX - PAGE + 1, NULL, -EINVAL);
	REFUSED(0, 0, RW, memory, 0, NULL, -EINVAL);
	REFUSED(1, PAGE, RW, memory, 0, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, memory, 0, &lazy, -EINVAL);
	REFUSED(0, PAGE, 9, memory, 0, NULL, -EINVAL);
	REFUSED(0, PAGE, GPAS_PROT_WRITE, memory, 0, NULL, -EOPNOTSUPP);
	REFUSED(0, MIB, RW, memory, 0, NULL, -EEXIST);
#undef REFUSED
	gpas_memory_put(memory);
}

/* ---- devices ------------------------------------------------------------ */

static void device_regions_have_no_leaf(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_translation translation;
	struct gpas_region region;
	struct gpas_device device = counting_device();
	uint8_t byte;

	assert_int_equal(gpas_map_device(space, at(0x10000), 0x4000, &device),
			 0);
	assert_leaves(space, 0, 0, 0);
	assert_int_equal(gpas_region_find(space, at(0x13fff), &region), 0);
	assert_int_equal(region.kind, GPAS_REGION_DEVICE);
	assert_int_equal(region.fd, -1);
	assert_null(region.host);
	assert_int_equal(region.present, 0);
	assert_string_equal(region.name, "counter");
	assert_int_equal(gpas_translate(space, at(0x10000), 0, 1, &translation),
			 -ENOENT);
	assert_int_equal(gpas_read(space, at(0x10000), &byte, 1, NULL),
			 -ENOENT);
	assert_refused(space, gpas_protect(space, at(0x10000), PAGE, RW),
		       -ENOENT);
	assert_refused(space, gpas_populate(space, at(0x10000), PAGE), -ENOENT);
	/* Cut in two, it is one device still. */
	assert_int_equal(gpas_unmap(space, at(0x11000), PAGE), 0);
	assert_regions(space, 2);
	assert_int_equal(releases, 0);
	assert_int_equal(gpas_unmap(space, at(0x10000), PAGE), 0);
	assert_int_equal(releases, 0);
	assert_int_equal(gpas_unmap(space, at(0x10000), 0x4000), 0);
	assert_int_equal(releases, 1);
}

static void device_mapping_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_device device = counting_device();
	struct gpas_device bad = device;

	assert_int_equal(gpas_map_alloc(space, at(0x8000), PAGE, RW, NULL), 0);
	assert_refused(space, gpas_map_device(space, at(1), PAGE, &device),
		       -EINVAL);
	assert_refused(space, gpas_map_device(space, at(0), 0, &device),
		       -EINVAL);
	assert_refused(space, gpas_map_device(space, at(GIB), PAGE, &device),
		       -EINVAL);
	assert_refused(space, gpas_map_device(space, at(0), PAGE, NULL),
		       -EINVAL);
	assert_refused(space, gpas_map_device(space, at(0), MIB, &device),
		       -EEXIST);
	bad.access = NULL;
	assert_refused(space, gpas_map_device(space, at(0), PAGE, &bad),
		       -EINVAL);
	bad = device;
	bad.widths = 16;
	assert_refused(space, gpas_map_device(space, at(0), PAGE, &bad),
		       -EINVAL);
	/* The device of a call that failed stays the caller's. */
	assert_int_equal(releases, 0);
}

static void long_names_are_cut(void **state)
{
	static const char name[] = "0123456789012345678901234567890123456789";
	struct gpas_map_params map = { .name = name };
	struct gpas_device device = counting_device();
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_region region;

	device.name = name;
	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, &map), 0);
	assert_int_equal(gpas_map_device(space, at(PAGE), PAGE, &device), 0);
	for (uint64_t gpa = 0; gpa <= PAGE; gpa += PAGE) {
		assert_int_equal(gpas_region_find(space, at(gpa), &region), 0);
		assert_int_equal(strlen(region.name), GPAS_NAME_BYTES - 1);
		assert_memory_equal(region.name, name, GPAS_NAME_BYTES - 1);
	}
}

/* ---- backends ----------------------------------------------------------- */

static void backends_may_scatter_their_memory(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_translation translation;
	struct gpas_backend backend;
	struct gpas_region region;
	struct ledger ledger;
	uint8_t bytes[2] = { 0 };

	ledger_open(&ledger, 16, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_map_backend(space, at(0x10000), 16 * PAGE, RW,
					  &backend, NULL),
			 0);
	assert_int_equal(ledger.calls, 16);
	assert_true(ledger_pages_are(&ledger, 0, 16, 1, 0));
	assert_leaves(space, 16, 0, 0);
	/* Frames that are apart are never taken for contiguous ones. */
	for (uint64_t page = 0; page < 16; page++) {
		assert_int_equal(gpas_translate(space,
						at(0x10000 + page * PAGE + 7),
						RW, UINT64_MAX, &translation),
				 0);
		assert_ptr_equal(translation.host,
				 (char *)ledger_host(&ledger, page) + 7);
		assert_int_equal(translation.size, PAGE - 7);
	}
	assert_int_equal(gpas_read(space, at(0x10fff), bytes, 2, NULL), 0);
	assert_int_equal(bytes[0], ledger_byte(0));
	assert_int_equal(bytes[1], ledger_byte(1));
	assert_int_equal(gpas_region_find(space, at(0x10000), &region), 0);
	assert_int_equal(region.kind, GPAS_REGION_BACKEND);
	assert_null(region.host);
	/* Pieces are retired as they leave, the backend once at the end. */
	assert_int_equal(gpas_unmap(space, at(0x12000), 3 * PAGE), 0);
	assert_true(ledger_pages_are(&ledger, 2, 5, 1, 1));
	assert_int_equal(ledger.releases, 0);
	assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
	assert_true(ledger_pages_are(&ledger, 0, 16, 1, 1));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

static void contiguous_pieces_of_a_backend_merge(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	/* Two pieces of 2 MiB in reverse order: two large leaves. */
	ledger_open(&ledger, 1024, 512);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 4 * MIB, RW, &backend, NULL), 0);
	assert_leaves(space, 0, 2, 0);
	assert_int_equal(gpas_clear(space), 0);
	assert_true(ledger_pages_are(&ledger, 0, 1024, 1, 1));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

/* A populate that fails half-way must not stay half mapped. */
static void a_backend_that_fails_half_way_leaves_nothing(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	for (unsigned nth = 1; nth <= 4; nth++) {
		ledger_open(&ledger, 16, 4);
		ledger.fail_at = nth;
		ledger.error = -EIO;
		backend = ledger_backend(&ledger);
		assert_refused(space,
			       gpas_map_backend(space, at(0x10000), 16 * PAGE,
						RW, &backend, NULL),
			       -EIO);
		assert_true(ledger_pages_are(&ledger, 0, (nth - 1) * 4, 1, 1));
		assert_int_equal(ledger.releases, 0);
		ledger_close(&ledger);
	}
}

/* The same inside a group, whose end must not call a backend that was never
 * taken over. */
static void a_backend_refused_in_a_group_is_not_called_later(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;
	unsigned retires;

	for (unsigned commit = 0; commit < 2; commit++) {
		ledger_open(&ledger, 16, 4);
		ledger.fail_at = 3;
		ledger.error = -EIO;
		backend = ledger_backend(&ledger);
		assert_int_equal(gpas_begin(space), 0);
		assert_int_equal(gpas_map_backend(space, at(0x10000), 16 * PAGE,
						  RW, &backend, NULL),
				 -EIO);
		assert_true(ledger_pages_are(&ledger, 0, 8, 1, 1));
		retires = ledger.retires;
		assert_int_equal(
			commit ? gpas_commit(space) : gpas_abort(space), 0);
		assert_int_equal(ledger.retires, retires);
		assert_int_equal(ledger.releases, 0);
		ledger_close(&ledger);
	}
}

struct odd_backend {
	uint64_t size; /* what populate says it gave */
	void *host;
};

static int odd_populate(void *ctx, uint64_t offset, uint64_t *size, void **host)
{
	const struct odd_backend *odd = ctx;

	(void)offset;
	*size = odd->size;
	*host = odd->host;
	return 0;
}

static void backends_that_break_their_contract_are_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_memory *memory = own_memory(MIB);
	char *host = gpas_memory_host(memory);
	struct fixture *fixture = *state;
	const struct odd_backend odd[] = {
		{ 0, host },
		{ PAGE / 2, host },
		{ 2 * PAGE + 1, host },
		{ 5 * PAGE, host },
		{ UINT64_MAX, host },
		{ PAGE, host + 1 },
		{ PAGE, NULL },
	};

	for (size_t i = 0; i < ARRAY_COUNT(odd); i++) {
		struct odd_backend copy = odd[i];
		struct gpas_backend backend = {
			.ctx = &copy,
			.populate = odd_populate,
		};

		fixture->log_lines = 0;
		assert_refused(space,
			       gpas_map_backend(space, at(0), 4 * PAGE, RW,
						&backend, NULL),
			       -EINVAL);
		assert_int_equal(fixture->log_lines, 1);
		assert_int_equal(fixture->log_level, GPAS_LOG_ERROR);
	}
	gpas_memory_put(memory);
}

static void backend_mapping_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct gpas_backend bad;
	struct ledger ledger;
	const struct gpas_map_params granule = { .granule = PAGE };

	ledger_open(&ledger, 16, 1);
	backend = ledger_backend(&ledger);
	bad = backend;
	bad.populate = NULL;
	assert_int_equal(gpas_map_alloc(space, at(0x8000), PAGE, RW, NULL), 0);
#define REFUSED(gpa, size, prot, which, params, error)                       \
	assert_refused(                                                      \
		space,                                                       \
		gpas_map_backend(space, at(gpa), size, prot, which, params), \
		error)
	REFUSED(0, PAGE, RW, NULL, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, &bad, NULL, -EINVAL);
	REFUSED(1, PAGE, RW, &backend, NULL, -EINVAL);
	REFUSED(0, 0, RW, &backend, NULL, -EINVAL);
	REFUSED(GIB, PAGE, RW, &backend, NULL, -EINVAL);
	REFUSED(0, PAGE, RW, &backend, &granule, -EINVAL);
	REFUSED(0, PAGE, GPAS_PROT_WRITE, &backend, NULL, -EOPNOTSUPP);
	REFUSED(0, 16 * PAGE, RW, &backend, NULL, -EEXIST);
#undef REFUSED
	assert_int_equal(ledger.calls + ledger.retires + ledger.releases, 0);
	ledger_close(&ledger);
}

/* ---- unmap -------------------------------------------------------------- */

static void unmapping_splits_regions_and_blocks(void **state)
{
	struct gpas *space = fixture_space(state, 8 * GIB);
	uint64_t empty = table_pages(space);
	char *host;

	assert_int_equal(gpas_map_alloc(space, at(GIB), 2 * GIB, RW, NULL), 0);
	assert_leaves(space, 0, 0, 2);
	host = host_of(space, GIB);
	memset(host + 5 * PAGE, 1, 3 * PAGE);
	/* A page inside a block takes that page only. */
	assert_int_equal(gpas_unmap(space, at(GIB + 6 * PAGE), PAGE), 0);
	assert_leaves(space, 511, 511, 1);
	assert_region(space, GIB, GIB, 6 * PAGE, RW);
	assert_region(space, GIB + 7 * PAGE, GIB + 7 * PAGE, 2 * GIB - 7 * PAGE,
		      RW);
	assert_hole(space, GIB + 6 * PAGE);
	assert_true(is_all(host + 5 * PAGE, 1, PAGE));
	assert_true(is_all(host + 7 * PAGE, 1, PAGE));
	/* Across a block's border, holes included. */
	assert_int_equal(gpas_unmap(space, at(2 * GIB - PAGE), 2 * PAGE), 0);
	assert_leaves(space, 511 + 511 + 511, 510 + 511, 0);
	assert_regions(space, 3);
	assert_int_equal(gpas_unmap(space, at(GIB + 4 * PAGE), 4 * PAGE), 0);
	assert_int_equal(gpas_unmap(space, at(0), 8 * GIB), 0);
	assert_regions(space, 0);
	/* No table outlives its last entry. */
	assert_int_equal(table_pages(space), empty);
	/* There is nothing left to remove, and that is no error. */
	assert_int_equal(gpas_unmap(space, at(0), 8 * GIB), 0);
}

static void unmapping_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_refused(space, gpas_unmap(space, at(1), PAGE), -EINVAL);
	assert_refused(space, gpas_unmap(space, at(0), 0), -EINVAL);
	assert_refused(space, gpas_unmap(space, at(0), PAGE - 1), -EINVAL);
	assert_refused(space, gpas_unmap(space, at(GIB), PAGE), -EINVAL);
	assert_refused(space, gpas_unmap(space, at(0), GIB + PAGE), -EINVAL);
	assert_refused(space, gpas_unmap(space, at(PAGE), UINT64_MAX - 4095),
		       -EINVAL);
}

static void what_is_mapped_again_is_zero(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };
	struct gpas *space = fixture_space(state, GIB);

	for (unsigned n = 0; n < 8; n++) {
		struct gpas_map_params map = { .lazy = (n & 2) != 0 };
		bool grouped = (n & 4) != 0;

		map.memory.kind = kinds[n & 1];
		assert_int_equal(
			gpas_map_alloc(space, at(0), 4 * MIB, RW, &map), 0);
		assert_int_equal(gpas_fill(space, at(0), 0xee, 4 * MIB, NULL),
				 0);
		assert_int_equal(grouped ? gpas_begin(space) : 0, 0);
		assert_int_equal(gpas_unmap(space, at(MIB), 2 * MIB), 0);
		assert_int_equal(
			gpas_map_alloc(space, at(MIB), 2 * MIB, RW, NULL), 0);
		assert_true(is_all(host_of(space, MIB), 0, 2 * MIB));
		assert_int_equal(grouped ? gpas_commit(space) : 0, 0);
		assert_true(is_all(host_of(space, MIB), 0, 2 * MIB));
		assert_true(is_all(host_of(space, 0), 0xee, MIB));
		assert_true(is_all(host_of(space, 3 * MIB), 0xee, MIB));
		assert_int_equal(gpas_check(space), 0);
		/* What moved in survives what is left of its predecessor. */
		assert_int_equal(gpas_fill(space, at(MIB), 0x11, 2 * MIB, NULL),
				 0);
		assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
		assert_int_equal(gpas_unmap(space, at(3 * MIB), MIB), 0);
		assert_true(is_all(host_of(space, MIB), 0x11, 2 * MIB));
		assert_int_equal(gpas_clear(space), 0);
	}
}

static void clearing_removes_everything(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_device device = counting_device();
	struct gpas_map_params map = { .lazy = true };

	assert_int_equal(gpas_clear(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(MIB), MIB, RW, &map), 0);
	assert_int_equal(gpas_map_device(space, at(GIB - PAGE), PAGE, &device),
			 0);
	assert_int_equal(gpas_clear(space), 0);
	assert_regions(space, 0);
	assert_leaves(space, 0, 0, 0);
	assert_int_equal(releases, 1);
	assert_int_equal(gpas_map_alloc(space, at(0), GIB, RW, NULL), 0);
}

/* ---- protect ------------------------------------------------------------ */

static void protecting_splits_and_joins(void **state)
{
	struct gpas *space = fixture_space(state, 4 * GIB);
	uint64_t tables;
	char *host;

	assert_int_equal(gpas_map_alloc(space, at(GIB), GIB, RW, NULL), 0);
	tables = table_pages(space);
	host = host_of(space, GIB);
	assert_int_equal(
		gpas_protect(space, at(GIB + PAGE), PAGE, GPAS_PROT_READ), 0);
	assert_regions(space, 3);
	assert_leaves(space, 512, 511, 0);
	assert_int_equal(table_pages(space), tables + 2);
	assert_region(space, GIB + PAGE, GIB + PAGE, PAGE, GPAS_PROT_READ);
	assert_int_equal(
		gpas_protect(space, at(GIB + 2 * PAGE), PAGE, GPAS_PROT_READ),
		0);
	assert_regions(space, 3);
	assert_region(space, GIB + PAGE, GIB + PAGE, 2 * PAGE, GPAS_PROT_READ);
	/* Over all of them: one region and one block again. */
	assert_int_equal(gpas_protect(space, at(GIB), GIB, GPAS_PROT_RX), 0);
	assert_regions(space, 1);
	assert_leaves(space, 0, 0, 1);
	assert_int_equal(table_pages(space), tables);
	assert_ptr_equal(host_of(space, GIB), host);
	/* Back from the middle outwards as well. */
	assert_int_equal(gpas_protect(space, at(GIB + 2 * MIB), 2 * MIB, RW),
			 0);
	assert_regions(space, 3);
	assert_leaves(space, 0, 512, 0);
	assert_int_equal(
		gpas_protect(space, at(GIB + 2 * MIB), 2 * MIB, GPAS_PROT_RX),
		0);
	assert_regions(space, 1);
	assert_leaves(space, 0, 0, 1);
	/* What it already has changes nothing. */
	assert_int_equal(
		gpas_protect(space, at(GIB + PAGE), 4 * MIB, GPAS_PROT_RX), 0);
	assert_regions(space, 1);
	assert_leaves(space, 0, 0, 1);
}

static void no_access_keeps_the_content(void **state)
{
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_params params = {
			.size = GIB,
			.format = (enum gpas_format_id)id,
		};
		struct gpas *space = fixture_open(state, &params);
		struct gpas_translation translation;
		uint64_t value = 0;

		assert_int_equal(
			gpas_map_alloc(space, at(0), 4 * MIB, RW, NULL), 0);
		assert_int_equal(gpas_store(space, at(2 * MIB), 8, 123), 0);
		assert_int_equal(gpas_protect(space, at(2 * MIB - PAGE),
					      2 * PAGE, GPAS_PROT_NONE),
				 0);
		assert_int_equal(
			gpas_translate(space, at(2 * MIB), 0, 1, &translation),
			0);
		assert_int_equal(translation.prot, GPAS_PROT_NONE);
		assert_int_equal(gpas_load(space, at(2 * MIB), 8, &value),
				 -EACCES);
		assert_int_equal(gpas_store(space, at(2 * MIB), 8, 1), -EACCES);
		assert_int_equal(gpas_read(space, at(2 * MIB - PAGE - 1),
					   &value, 2, NULL),
				 -EACCES);
		assert_regions(space, 3);
		assert_int_equal(
			gpas_protect(space, at(0), 4 * MIB, GPAS_PROT_READ), 0);
		assert_leaves(space, 0, 2, 0);
		assert_int_equal(gpas_load(space, at(2 * MIB), 8, &value), 0);
		assert_int_equal(value, 123);
		assert_int_equal(gpas_store(space, at(2 * MIB), 8, 1), -EACCES);
		/* Mapped with no permission from the start. */
		assert_int_equal(gpas_map_alloc(space, at(8 * MIB), 2 * MIB,
						GPAS_PROT_NONE, NULL),
				 0);
		assert_int_equal(gpas_load(space, at(8 * MIB), 8, &value),
				 -EACCES);
		assert_int_equal(gpas_protect(space, at(8 * MIB), PAGE, RW), 0);
		assert_int_equal(gpas_load(space, at(8 * MIB), 8, &value), 0);
		assert_int_equal(value, 0);
		assert_int_equal(gpas_check(space), 0);
	}
}

static void protecting_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_device device = counting_device();

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_device(space, at(MIB), PAGE, &device), 0);
	assert_int_equal(gpas_map_alloc(space, at(2 * MIB), MIB, RW, NULL), 0);
#define REFUSED(gpa, size, prot, error) \
	assert_refused(space, gpas_protect(space, at(gpa), size, prot), error)
	REFUSED(1, PAGE, RW, -EINVAL);
	REFUSED(0, 0, RW, -EINVAL);
	REFUSED(0, PAGE + 1, RW, -EINVAL);
	REFUSED(GIB, PAGE, RW, -EINVAL);
	REFUSED(0, PAGE, 8, -EINVAL);
	REFUSED(0, PAGE, GPAS_PROT_WRITE, -EOPNOTSUPP);
	REFUSED(0, MIB + PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(MIB, PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(MIB + PAGE, PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(2 * MIB - PAGE, 2 * PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(3 * MIB - PAGE, 2 * PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(512 * MIB, PAGE, GPAS_PROT_READ, -ENOENT);
	REFUSED(0, GIB, GPAS_PROT_READ, -ENOENT);
#undef REFUSED
	/* Across regions that touch it is one call. */
	assert_int_equal(
		gpas_map_alloc(space, at(3 * MIB), MIB, GPAS_PROT_RX, NULL), 0);
	assert_int_equal(
		gpas_protect(space, at(2 * MIB + PAGE), MIB, GPAS_PROT_READ),
		0);
	assert_region(space, 3 * MIB, 3 * MIB, PAGE, GPAS_PROT_READ);
	assert_region(space, 3 * MIB + PAGE, 3 * MIB + PAGE, MIB - PAGE,
		      GPAS_PROT_RX);
	assert_int_equal(gpas_check(space), 0);
}

/* ---- groups ------------------------------------------------------------- */

static void a_group_is_undone_as_a_whole(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas_memory *memory = own_memory(2 * MIB);
	struct gpas_device device = counting_device();
	char *before;
	char *after;

	assert_int_equal(gpas_map_alloc(space, at(0), 4 * MIB, RW, NULL), 0);
	assert_int_equal(gpas_fill(space, at(0), 0x42, 4 * MIB, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(8 * MIB), MIB, RW, &lazy), 0);
	before = space_text(space);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_unmap(space, at(MIB), PAGE), 0);
	assert_int_equal(gpas_protect(space, at(0), MIB, GPAS_PROT_NONE), 0);
	assert_int_equal(gpas_protect(space, at(0), MIB, RW), 0);
	assert_int_equal(gpas_protect(space, at(2 * MIB), MIB, GPAS_PROT_READ),
			 0);
	assert_int_equal(gpas_map_linear(space, at(16 * MIB), 2 * MIB,
					 gpas_memory_host(memory), RW, NULL),
			 0);
	assert_int_equal(gpas_unmap(space, at(0), 4 * MIB), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), 2 * MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_device(space, at(32 * MIB), PAGE, &device),
			 0);
	assert_int_equal(gpas_populate(space, at(8 * MIB), MIB), 0);
	assert_true(is_all(host_of(space, 0), 0, 2 * MIB));
	assert_int_equal(gpas_check(space), 0);
	assert_int_equal(gpas_abort(space), 0);
	after = space_text(space);
	assert_string_equal(before, after);
	assert_true(is_all(host_of(space, 0), 0x42, 4 * MIB));
	assert_leaves(space, 0, 2, 0);
	/* It had been taken over, so it is given back. */
	assert_int_equal(releases, 1);
	free(before);
	free(after);
	fixture_close(state);
	gpas_memory_put(memory);
}

static void a_failed_call_leaves_the_group_before_it(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct fixture *fixture = *state;

	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), 4 * MIB, RW, NULL), 0);
	assert_int_equal(gpas_unmap(space, at(MIB), MIB), 0);
	assert_refused(space,
		       gpas_protect(space, at(0), 4 * MIB, GPAS_PROT_READ),
		       -ENOENT);
	assert_refused(space, gpas_map_alloc(space, at(0), 2 * MIB, RW, NULL),
		       -EEXIST);
	fixture->frames.exhausted = true;
	assert_refused(space,
		       gpas_map_alloc(space, at(512 * MIB), PAGE, RW, NULL),
		       -ENOMEM);
	fixture->frames.exhausted = false;
	assert_int_equal(gpas_protect(space, at(0), MIB, GPAS_PROT_READ), 0);
	assert_int_equal(gpas_commit(space), 0);
	assert_region(space, 0, 0, MIB, GPAS_PROT_READ);
	assert_region(space, 2 * MIB, 2 * MIB, 2 * MIB, RW);
	assert_hole(space, MIB);
	assert_regions(space, 2);
}

static void groups_are_opened_and_closed_once(void **state)
{
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_commit(space), -EINVAL);
	assert_int_equal(gpas_abort(space), -EINVAL);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_begin(space), -EBUSY);
	assert_int_equal(gpas_commit(space), 0);
	assert_int_equal(gpas_commit(space), -EINVAL);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(gpas_abort(space), -EINVAL);
	/* Destroying aborts what is open. */
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
}

struct other_thread {
	struct gpas *space;
	atomic_int result;
	int commit_result;
};

static void *map_elsewhere(void *ctx)
{
	struct other_thread *other = ctx;

	other->commit_result = gpas_commit(other->space);
	other->result = gpas_map_alloc(other->space, at(MIB), MIB, RW, NULL);
	return NULL;
}

static void other_threads_wait_for_the_group(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct other_thread other = { .space = space, .result = 1 };
	struct fixture *fixture = *state;
	pthread_t thread;
	uint64_t value;

	fixture->threads = true;
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), 4 * MIB, RW, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, map_elsewhere, &other),
			 0);
	usleep(50000);
	assert_int_equal(other.result, 1);
	assert_int_equal(gpas_load(space, at(MIB), 8, &value), 0);
	assert_int_equal(gpas_unmap(space, at(0), 4 * MIB), 0);
	assert_int_equal(gpas_commit(space), 0);
	pthread_join(thread, NULL);
	assert_int_equal(other.result, 0);
	assert_int_equal(other.commit_result, -EINVAL);
	assert_region(space, MIB, MIB, MIB, RW);
}

/* Backends see each piece go once, whichever way a group ends. */
static void a_group_retires_what_left_once(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas_backend backend;
	struct ledger ledger;

	for (unsigned commit = 0; commit < 2; commit++) {
		ledger_open(&ledger, 64, 2);
		backend = ledger_backend(&ledger);
		assert_int_equal(gpas_map_backend(space, at(0), 64 * PAGE, RW,
						  &backend, &lazy),
				 0);
		assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), 0);
		assert_int_equal(gpas_begin(space), 0);
		assert_int_equal(gpas_populate(space, at(16 * PAGE), 8 * PAGE),
				 0);
		assert_int_equal(gpas_unmap(space, at(12 * PAGE), 8 * PAGE), 0);
		assert_int_equal(ledger.retires, 0);
		assert_int_equal(
			commit ? gpas_commit(space) : gpas_abort(space), 0);
		assert_true(ledger_pages_are(&ledger, 0, 12, 1, 0));
		assert_true(ledger_pages_are(&ledger, 12, 16, 1, commit));
		assert_true(ledger_pages_are(&ledger, 16, 20, 1, 1));
		assert_true(ledger_pages_are(&ledger, 20, 24, 1, !commit));
		assert_int_equal(gpas_check(space), 0);
		assert_int_equal(gpas_clear(space), 0);
		assert_true(ledger_pages_are(&ledger, 0, 16, 1, 1));
		assert_int_equal(ledger.releases, 1);
		ledger_close(&ledger);
	}
}

/* ---- questions ---------------------------------------------------------- */

static void regions_and_extents_can_be_listed(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_memory *memory = own_memory(MIB);
	struct gpas_region region;
	struct gpas_extent extent;
	struct gpas_device device = counting_device();

	assert_int_equal(gpas_region_next(space, at(0), &region), -ENOENT);
	assert_int_equal(gpas_extent_next(space, at(0), &extent), -ENOENT);
	assert_int_equal(gpas_map_linear(space, at(0x4000), 0x4000,
					 gpas_memory_host(memory), RW, NULL),
			 0);
	assert_int_equal(gpas_map_device(space, at(0x8000), PAGE, &device), 0);
	assert_int_equal(
		gpas_map_linear(space, at(0x9000), PAGE,
				(char *)gpas_memory_host(memory) + 0x5000, RW,
				NULL),
		0);
	assert_int_equal(gpas_region_next(space, at(0), &region), 0);
	assert_int_equal(region.start.value, 0x4000);
	assert_string_equal(region.name, "linear");
	assert_int_equal(gpas_region_next(space, at(0x7fff), &region), 0);
	assert_int_equal(region.start.value, 0x4000);
	assert_int_equal(gpas_region_next(space, at(0x8000), &region), 0);
	assert_int_equal(region.kind, GPAS_REGION_DEVICE);
	assert_int_equal(gpas_region_next(space, at(0x9000), &region), 0);
	assert_int_equal(region.start.value, 0x9000);
	assert_int_equal(gpas_region_next(space, at(0xa000), &region), -ENOENT);
	assert_int_equal(gpas_region_next(space, at(UINT64_MAX), &region),
			 -ENOENT);
	assert_int_equal(gpas_region_find(space, at(UINT64_MAX), &region),
			 -ENOENT);
	assert_int_equal(gpas_extent_next(space, at(0), &extent), 0);
	assert_int_equal(extent.start.value, 0x4000);
	assert_int_equal(extent.size, 0x4000);
	assert_int_equal(gpas_extent_next(space, at(0x6000), &extent), 0);
	assert_int_equal(extent.start.value, 0x6000);
	assert_int_equal(extent.size, 0x2000);
	assert_ptr_equal(gpas_hva_pointer(extent.host),
			 (char *)gpas_memory_host(memory) + 0x2000);
	assert_int_equal(gpas_extent_next(space, at(0x8000), &extent), 0);
	assert_int_equal(extent.start.value, 0x9000);
	assert_int_equal(gpas_extent_next(space, at(0xa000), &extent), -ENOENT);
	assert_int_equal(gpas_extent_next(space, at(UINT64_MAX), &extent),
			 -ENOENT);
	fixture_close(state);
	gpas_memory_put(memory);
}

static void statistics_count_what_is_there(void **state)
{
	struct gpas *space = fixture_space(state, 4 * GIB);
	struct gpas_map_params lazy = { .lazy = true, .granule = 16 * PAGE };
	struct gpas_stats stats;
	struct gpas_device device = counting_device();

	gpas_stats(space, &stats);
	assert_int_equal(stats.table_pages, 1);
	assert_int_equal(
		gpas_map_alloc(space, at(0), GIB + 2 * MIB + PAGE, RW, NULL),
		0);
	assert_int_equal(gpas_map_alloc(space, at(2 * GIB), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_map_device(space, at(3 * GIB), PAGE, &device), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.regions, 3);
	assert_int_equal(stats.mapped, GIB + 3 * MIB + PAGE);
	assert_int_equal(stats.present, GIB + 2 * MIB + PAGE);
	assert_int_equal(stats.leaves[0], 1);
	assert_int_equal(stats.leaves[1], 1);
	assert_int_equal(stats.leaves[2], 1);
	assert_int_equal(stats.table_pages, 4);
	assert_int_equal(stats.slots + stats.traps, 0);
	assert_int_equal(stats.populated, 0);
	assert_int_equal(gpas_fill(space, at(2 * GIB + PAGE), 1, 1, NULL), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.populated, 16 * PAGE);
	assert_int_equal(stats.populations, 1);
	assert_int_equal(stats.faults[GPAS_FAULT_RESUME], 1);
	assert_int_equal(stats.present, GIB + 2 * MIB + 17 * PAGE);
}

static void keep_text(void *ctx, const char *line)
{
	char *text = ctx;
	size_t length = strlen(text);

	(void)snprintf(text + length, 2000 - length, "%s\n", line);
}

static void dumps_say_what_was_asked(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true, .name = "heap" };
	struct gpas_device device = counting_device();
	char text[2000] = "";

	assert_int_equal(
		gpas_map_alloc(space, at(0x10000), 0x1000, GPAS_PROT_RX, NULL),
		0);
	assert_int_equal(gpas_map_alloc(space, at(0x20000), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_map_device(space, at(0x11000), PAGE, &device), 0);
	gpas_dump(space, GPAS_DUMP_REGIONS, keep_text, text);
	assert_non_null(strstr(text, "10000-"));
	assert_non_null(strstr(text, "r-x alloc"));
	assert_non_null(strstr(text, "rw- heap"));
	assert_non_null(strstr(text, "lazy"));
	assert_non_null(strstr(text, "counter"));
	assert_null(strstr(text, "slots"));
	assert_null(strstr(text, "extents"));
	text[0] = '\0';
	gpas_dump(space, GPAS_DUMP_EXTENTS | GPAS_DUMP_SLOTS, keep_text, text);
	assert_null(strstr(text, "heap"));
	assert_non_null(strstr(text, "extents"));
	assert_non_null(strstr(text, "10000-"));
	assert_non_null(strstr(text, "not attached"));
	text[0] = '\0';
	gpas_dump(space, 0, keep_text, text);
	assert_string_equal(text, "");
}

static void the_log_is_silent_when_nobody_listens(void **state)
{
	struct gpas_params params = {
		.size = MIB,
		.format = GPAS_FORMAT_EPT_4,
	};
	struct odd_backend odd = { 0 };
	struct gpas_backend backend = {
		.ctx = &odd,
		.populate = odd_populate,
	};
	struct gpas *space;

	(void)state;
	assert_int_equal(gpas_create(&params, &space), 0);
	assert_int_equal(
		gpas_map_backend(space, at(0), PAGE, RW, &backend, NULL),
		-EINVAL);
	gpas_destroy(space);
}

/* ---- mistakes of predecessors, where no test above is about one --------- */

/* Unmap and protect must not visit every region. */
static void changes_do_not_visit_every_region(void **state)
{
	struct gpas *space = fixture_space(state, 64 * GIB);
	struct gpas_memory *memory = own_memory(PAGE);
	void *host = gpas_memory_host(memory);
	const uint64_t count = SANITIZED ? 2000 : 20000;
	uint64_t last = count * 2 * PAGE;

	for (uint64_t i = 0; i < count; i++) {
		assert_int_equal(gpas_map_linear(space, at(i * 2 * PAGE), PAGE,
						 host, RW, NULL),
				 0);
	}
	for (uint64_t i = 0; i < count; i++) {
		assert_int_equal(
			gpas_map_linear(space, at(last), PAGE, host, RW, NULL),
			0);
		assert_int_equal(
			gpas_protect(space, at(last), PAGE, GPAS_PROT_READ), 0);
		assert_int_equal(gpas_unmap(space, at(last), PAGE), 0);
	}
	fixture_close(state);
	gpas_memory_put(memory);
}

/* One permission is not another's, whatever the way it got there. */
static void empty_permissions_do_no_harm(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas_fault fault;

	assert_int_equal(
		gpas_map_alloc(space, at(0), MIB, GPAS_PROT_NONE, &lazy), 0);
	assert_int_equal(gpas_fault(space, at(0), GPAS_PROT_READ, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(gpas_fault(space, at(0), 0, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(gpas_populate(space, at(0), MIB), 0);
	assert_leaves(space, 256, 0, 0);
	assert_int_equal(gpas_fault(space, at(0), GPAS_PROT_READ, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(gpas_unmap(space, at(PAGE), PAGE), 0);
	assert_int_equal(gpas_protect(space, at(0), PAGE, RWX), 0);
	assert_int_equal(gpas_fault(space, at(0), RWX, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_RESUME);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(creation_refuses_bad_parameters),
		fixture_test(every_format_can_be_spanned),
		fixture_test(containing_never_overflows),
		fixture_test(linear_memory_uses_the_largest_leaves),
		fixture_test(leaf_sizes_can_be_limited),
		fixture_test(linear_mapping_is_refused),
		fixture_test(formats_refuse_what_they_cannot_say),
		fixture_test(extents_keep_the_memory_type),
		fixture_test(the_caller_may_free_linear_memory_after_unmap),
		fixture_test(anonymous_memory_is_zero_and_has_no_descriptor),
		fixture_test(neighbours_share_one_offset),
		fixture_test(memfd_memory_is_shared_through_its_descriptor),
		fixture_test(private_files_keep_stores_to_themselves),
		fixture_test(shared_files_receive_stores_and_keep_them),
		fixture_test(huge_pages_work_or_say_why_not),
		fixture_test(alloc_mapping_is_refused),
		fixture_test(lazy_mapping_takes_no_table),
		fixture_test(one_object_can_be_mapped_at_several_places),
		fixture_test(object_mapping_is_refused),
		fixture_test(device_regions_have_no_leaf),
		fixture_test(device_mapping_is_refused),
		fixture_test(long_names_are_cut),
		fixture_test(backends_may_scatter_their_memory),
		fixture_test(contiguous_pieces_of_a_backend_merge),
		fixture_test(a_backend_that_fails_half_way_leaves_nothing),
		fixture_test(a_backend_refused_in_a_group_is_not_called_later),
		fixture_test(backends_that_break_their_contract_are_refused),
		fixture_test(backend_mapping_is_refused),
		fixture_test(unmapping_splits_regions_and_blocks),
		fixture_test(unmapping_is_refused),
		fixture_test(what_is_mapped_again_is_zero),
		fixture_test(clearing_removes_everything),
		fixture_test(protecting_splits_and_joins),
		fixture_test(no_access_keeps_the_content),
		fixture_test(protecting_is_refused),
		fixture_test(a_group_is_undone_as_a_whole),
		fixture_test(a_failed_call_leaves_the_group_before_it),
		fixture_test(groups_are_opened_and_closed_once),
		fixture_test(other_threads_wait_for_the_group),
		fixture_test(a_group_retires_what_left_once),
		fixture_test(regions_and_extents_can_be_listed),
		fixture_test(statistics_count_what_is_there),
		fixture_test(dumps_say_what_was_asked),
		fixture_test(the_log_is_silent_when_nobody_listens),
		fixture_test(changes_do_not_visit_every_region),
		fixture_test(empty_permissions_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
