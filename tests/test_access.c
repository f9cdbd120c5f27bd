/* SPDX-License-Identifier: MIT */
/*
 * Accessors: translation and its limits, copies that cross leaves, regions and
 * lazy holes, how far they come on errors, buffers, and atomic accesses.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fail.h"

#define RW   GPAS_PROT_RW
#define READ GPAS_PROT_READ

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* ---- translation -------------------------------------------------------- */

static void assert_translation(struct gpas *space, uint64_t gpa, uint64_t limit,
			       const void *host, uint64_t size)
{
	struct gpas_translation t;

	assert_int_equal(gpas_translate(space, at(gpa), 0, limit, &t), 0);
	assert_ptr_equal(t.host, host);
	assert_int_equal(t.size, size);
}

/* For every format: at each byte offset the host address is that of the byte,
 * and the length is what remains, not the size of region or leaf. */
static void translation_is_exact_at_every_offset(void **state)
{
	static const uint64_t offsets[] = { 0,	  1,	2,    3,    4,	  7,
					    8,	  63,	511,  512,  1024, 2047,
					    2048, 3000, 4088, 4094, 4095 };
	const uint64_t start = 2 * MIB - 2 * PAGE;
	const uint64_t size = 4 * MIB + 5 * PAGE;
	struct gpas_memory *memory;
	char *host;

	assert_int_equal(gpas_memory_create(8 * MIB, NULL, &memory), 0);
	host = gpas_memory_host(memory);
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_params params = {
			.size = GIB,
			.format = (enum gpas_format_id)id,
		};
		struct gpas *space = fixture_open(state, &params);

		assert_int_equal(gpas_map_linear(space, at(start), size,
						 host + start, GPAS_PROT_RWX,
						 NULL),
				 0);
		for (uint64_t page = start; page < start + size; page += PAGE) {
			for (size_t i = 0; i < ARRAY_COUNT(offsets); i++) {
				uint64_t gpa = page + offsets[i];
				uint64_t left = start + size - gpa;

				assert_translation(space, gpa, UINT64_MAX,
						   host + gpa, left);
				assert_translation(space, gpa, 1, host + gpa,
						   1);
				assert_translation(space, gpa, 8, host + gpa,
						   left < 8 ? left : 8);
				assert_translation(space, gpa, left, host + gpa,
						   left);
				assert_translation(space, gpa, left / 2 + 1,
						   host + gpa, left / 2 + 1);
			}
		}
	}
	fixture_close(state);
	gpas_memory_put(memory);
}

static void translation_ends_where_anything_changes(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_translation t;
	struct gpas_map_params uncached = { .memtype = GPAS_MEM_UNCACHED };
	char *host;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(MIB), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(2 * MIB), MIB, READ, NULL),
			 0);
	assert_int_equal(
		gpas_map_alloc(space, at(3 * MIB), MIB, READ, &uncached), 0);
	assert_int_equal(gpas_translate(space, at(0), 0, 1, &t), 0);
	host = t.host;
	/* Regions that share one offset are one stretch. */
	assert_translation(space, 17, UINT64_MAX, host + 17, 2 * MIB - 17);
	assert_translation(space, MIB - 1, UINT64_MAX, host + MIB - 1, MIB + 1);
	assert_translation(space, 2 * MIB - 1, UINT64_MAX, host + 2 * MIB - 1,
			   1);
	assert_translation(space, 2 * MIB, UINT64_MAX, host + 2 * MIB, MIB);
	assert_translation(space, 3 * MIB, UINT64_MAX, host + 3 * MIB, MIB);
	assert_int_equal(gpas_protect(space, at(MIB), PAGE, GPAS_PROT_NONE), 0);
	assert_translation(space, 0, UINT64_MAX, host, MIB);
	assert_translation(space, MIB, UINT64_MAX, host + MIB, PAGE);
	assert_int_equal(gpas_unmap(space, at(MIB + PAGE), PAGE), 0);
	assert_translation(space, MIB, UINT64_MAX, host + MIB, PAGE);
	assert_int_equal(gpas_translate(space, at(MIB + PAGE), 0, 1, &t),
			 -ENOENT);
}

static void translation_checks_access(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas_translation t = { .size = 77 };
	struct gpas_stats stats;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, GPAS_PROT_RX, NULL),
			 0);
	assert_int_equal(gpas_map_alloc(space, at(MIB), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_translate(space, at(0), GPAS_PROT_WRITE, 1, &t),
			 -EACCES);
	assert_int_equal(gpas_translate(space, at(0), RW, 1, &t), -EACCES);
	assert_int_equal(gpas_translate(space, at(0), 8, 1, &t), -EINVAL);
	assert_int_equal(gpas_translate(space, at(0), 0, 0, &t), -EINVAL);
	assert_int_equal(gpas_translate(space, at(MIB), READ, 1, &t), -ENOENT);
	assert_int_equal(gpas_translate(space, at(GIB), 0, 1, &t), -ENOENT);
	assert_int_equal(
		gpas_translate(space, at(UINT64_MAX), 0, UINT64_MAX, &t),
		-ENOENT);
	assert_int_equal(t.size, 77); /* written on success only */
	assert_int_equal(gpas_translate(space, at(0), GPAS_PROT_RX, 1, &t), 0);
	assert_int_equal(t.prot, GPAS_PROT_RX);
	gpas_stats(space, &stats);
	assert_int_equal(stats.populated, 0);
}

/* ---- copies ------------------------------------------------------------- */

/* 4 MiB of memory in one eager, one lazy, one linear and one scattered region
 * side by side, from 1 MiB on. */
struct patchwork {
	struct gpas *space;
	struct gpas_memory *memory;
	struct ledger ledger;
};

static void patchwork_open(void **state, struct patchwork *p,
			   enum gpas_format_id format)
{
	struct gpas_params params = { .size = GIB, .format = format };
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas_backend backend;

	p->space = fixture_open(state, &params);
	assert_int_equal(gpas_memory_create(MIB, NULL, &p->memory), 0);
	ledger_open(&p->ledger, 256, 1);
	backend = ledger_backend(&p->ledger);
	assert_int_equal(gpas_map_alloc(p->space, at(MIB), MIB, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(p->space, at(2 * MIB), MIB, RW, &lazy),
			 0);
	assert_int_equal(gpas_map_linear(p->space, at(3 * MIB), MIB,
					 gpas_memory_host(p->memory), RW, NULL),
			 0);
	assert_int_equal(gpas_map_backend(p->space, at(4 * MIB), MIB, RW,
					  &backend, &lazy),
			 0);
}

static void patchwork_close(void **state, struct patchwork *p)
{
	fixture_close(state);
	assert_true(ledger_pages_are(&p->ledger, 0, 256, 1, 1));
	ledger_close(&p->ledger);
	gpas_memory_put(p->memory);
}

static void copies_cross_leaves_and_regions(void **state)
{
	struct patchwork p;
	uint8_t *out = malloc(4 * MIB);
	uint8_t *in = malloc(4 * MIB);
	uint64_t seed = 5;
	size_t done = 0;

	for (size_t i = 0; i < 4 * MIB; i++) {
		out[i] = (uint8_t)next_random(&seed);
	}
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		patchwork_open(state, &p, (enum gpas_format_id)id);
		assert_int_equal(
			gpas_write(p.space, at(MIB), out, 4 * MIB, &done), 0);
		assert_int_equal(done, 4 * MIB);
		assert_int_equal(
			gpas_read(p.space, at(MIB), in, 4 * MIB, &done), 0);
		assert_int_equal(done, 4 * MIB);
		assert_memory_equal(in, out, 4 * MIB);
		for (unsigned n = 0; n < 500; n++) {
			uint64_t from = next_random(&seed) % (4 * MIB);
			uint64_t size = next_random(&seed) % (4 * MIB - from);

			size %= n % 2 == 0 ? 64 : 8192;
			memset(in, 0, size);
			assert_int_equal(gpas_read(p.space, at(MIB + from), in,
						   size, NULL),
					 0);
			assert_int_equal(memcmp(in, out + from, size), 0);
		}
		assert_int_equal(gpas_fill(p.space, at(MIB + 3), 0x77,
					   4 * MIB - 5, &done),
				 0);
		assert_int_equal(done, 4 * MIB - 5);
		assert_int_equal(gpas_read(p.space, at(MIB), in, 4 * MIB, NULL),
				 0);
		assert_memory_equal(in, out, 3);
		assert_true(is_all(in + 3, 0x77, 4 * MIB - 5));
		assert_memory_equal(in + 4 * MIB - 2, out + 4 * MIB - 2, 2);
		patchwork_close(state, &p);
	}
	free(in);
	free(out);
}

static void small_stores_at_every_offset_land_where_they_should(void **state)
{
	struct patchwork p;
	uint8_t *shadow = calloc(1, 4 * MIB);
	uint8_t *in = malloc(4 * MIB);
	uint64_t seed = 9;

	patchwork_open(state, &p, GPAS_FORMAT_NPT_4);
	assert_int_equal(gpas_fill(p.space, at(MIB), 0, 4 * MIB, NULL), 0);
	for (unsigned n = 0; n < 20000; n++) {
		uint64_t page = next_random(&seed) % 1023 * PAGE;
		uint64_t from = page + PAGE - 16 + next_random(&seed) % 32;
		uint8_t bytes[8];
		size_t size = 1 + next_random(&seed) % 8;

		memset(bytes, (int)(n % 255) + 1, sizeof(bytes));
		memcpy(shadow + from, bytes, size);
		assert_int_equal(
			gpas_write(p.space, at(MIB + from), bytes, size, NULL),
			0);
	}
	assert_int_equal(gpas_read(p.space, at(MIB), in, 4 * MIB, NULL), 0);
	assert_memory_equal(in, shadow, 4 * MIB);
	patchwork_close(state, &p);
	free(in);
	free(shadow);
}

static void nothing_is_transferred_by_empty_copies(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	size_t done = 9;
	uint8_t byte = 1;

	assert_int_equal(gpas_read(space, at(0), &byte, 0, &done), 0);
	assert_int_equal(done, 0);
	assert_int_equal(gpas_write(space, at(UINT64_MAX), &byte, 0, NULL), 0);
	assert_int_equal(gpas_fill(space, at(0), 0, 0, NULL), 0);
}

static int failing_populate(void *ctx, uint64_t offset, uint64_t *size,
			    void **host)
{
	(void)offset;
	(void)size;
	(void)host;
	return *(const int *)ctx;
}

static int read_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	access->value = 0;
	return 0;
}

/* What can follow accessible memory, and the error it gives. */
static void put_obstacle(struct gpas *space, unsigned which, int *error)
{
	static const struct gpas_device device = { .access = read_access };
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas_backend backend = {
		.ctx = error,
		.populate = failing_populate,
	};

	switch (which) {
	case 0: /* nothing at all */
		*error = -ENOENT;
		break;
	case 1:
		assert_int_equal(gpas_map_device(space, at(MIB), PAGE, &device),
				 0);
		*error = -ENOENT;
		break;
	case 2:
		assert_int_equal(gpas_map_alloc(space, at(MIB), PAGE,
						GPAS_PROT_NONE, NULL),
				 0);
		*error = -EACCES;
		break;
	case 3:
		assert_int_equal(gpas_map_alloc(space, at(MIB), PAGE,
						GPAS_PROT_EXEC, &lazy),
				 0);
		*error = -EACCES;
		break;
	default:
		assert_int_equal(gpas_map_backend(space, at(MIB), PAGE, RW,
						  &backend, &lazy),
				 0);
		*error = -EIO;
		break;
	}
}

static void errors_say_how_far_it_came(void **state)
{
	static uint8_t bytes[2 * GPAS_PAGE_BYTES];

	for (unsigned which = 0; which < 5; which++) {
		struct gpas *space = fixture_space(state, GIB);
		size_t done;
		int error = 0;

		assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL),
				 0);
		put_obstacle(space, which, &error);
		for (uint64_t left = 0; left <= PAGE + 1; left += 241) {
			done = 99;
			assert_int_equal(gpas_read(space, at(MIB - left), bytes,
						   left + 1, &done),
					 error);
			assert_int_equal(done, left);
			done = 99;
			assert_int_equal(gpas_write(space, at(MIB - left),
						    bytes, left + 8, &done),
					 error);
			assert_int_equal(done, left);
			assert_int_equal(gpas_fill(space, at(MIB - left), 5,
						   left + 3, &done),
					 error);
			assert_int_equal(done, left);
			/* What was transferred is not undone. */
			assert_int_equal(gpas_read(space, at(MIB - left), bytes,
						   left, &done),
					 0);
			assert_true(left == 0 || is_all(bytes, 5, left));
		}
		assert_int_equal(gpas_check(space), 0);
	}
}

static void copies_that_overflow_are_refused(void **state)
{
	struct gpas *space = fixture_space(state, 0);
	size_t done = 9;
	uint8_t byte = 0;

	assert_int_equal(gpas_read(space, at(UINT64_MAX), &byte, 2, &done),
			 -EINVAL);
	assert_int_equal(done, 0);
	assert_int_equal(gpas_write(space, at(PAGE), &byte, SIZE_MAX, &done),
			 -EINVAL);
	assert_int_equal(gpas_fill(space, at(PAGE), 0, SIZE_MAX, &done),
			 -EINVAL);
	/* The last bytes of 64 bits are only not mapped. */
	assert_int_equal(gpas_read(space, at(UINT64_MAX - 1), &byte, 1, &done),
			 -ENOENT);
	assert_int_equal(
		gpas_read(space, at(UINT64_C(1) << 48), &byte, 1, NULL),
		-ENOENT);
}

static void permissions_hold_for_every_accessor(void **state)
{
	static const unsigned prots[] = { GPAS_PROT_NONE, GPAS_PROT_READ,
					  GPAS_PROT_RW,	  GPAS_PROT_RX,
					  GPAS_PROT_RWX,  GPAS_PROT_EXEC };
	struct gpas *space = fixture_space(state, GIB);

	for (unsigned n = 0; n < 2 * ARRAY_COUNT(prots); n++) {
		unsigned prot = prots[n / 2];
		struct gpas_map_params map = { .lazy = n % 2 == 0 };
		int can_read = prot & READ ? 0 : -EACCES;
		int can_write = prot & GPAS_PROT_WRITE ? 0 : -EACCES;
		uint64_t value = 0;
		struct iovec vector;
		size_t count;
		struct gpas_range range = { at(0), at(8) };

		assert_int_equal(gpas_map_alloc(space, at(0), MIB, prot, &map),
				 0);
		assert_int_equal(gpas_read(space, at(0), &value, 8, NULL),
				 can_read);
		assert_int_equal(gpas_load(space, at(0), 8, &value), can_read);
		assert_int_equal(gpas_write(space, at(0), &value, 8, NULL),
				 can_write);
		assert_int_equal(gpas_fill(space, at(0), 0, 8, NULL),
				 can_write);
		assert_int_equal(gpas_store(space, at(0), 8, 0), can_write);
		assert_int_equal(
			gpas_compare_exchange(space, at(0), 8, &value, 0),
			can_read == 0 && can_write == 0 ? 1 : -EACCES);
		for (unsigned access = 0; access < 8; access++) {
			/* Memory without any permission is no one's to name. */
			bool can = (access & ~prot) == 0 &&
				   (prot != GPAS_PROT_NONE || n % 2 == 1);

			assert_int_equal(gpas_iovec(space, range, access,
						    &vector, 1, &count),
					 can ? 0 : -EACCES);
			assert_int_equal(count, can ? 1 : 0);
		}
		assert_int_equal(gpas_unmap(space, at(0), MIB), 0);
	}
}

/* ---- lazy memory -------------------------------------------------------- */

static void accessors_populate_what_they_touch(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas_region region;
	uint8_t bytes[16];
	uint64_t value = 7;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_read(space, at(4 * PAGE - 8), bytes, 16, NULL),
			 0);
	assert_true(is_all(bytes, 0, 16));
	assert_int_equal(gpas_region_find(space, at(0), &region), 0);
	assert_int_equal(region.present, 8 * PAGE);
	assert_int_equal(gpas_load(space, at(32 * PAGE), 1, &value), 0);
	assert_int_equal(value, 0);
	assert_int_equal(gpas_store(space, at(48 * PAGE), 1, 3), 0);
	assert_int_equal(
		gpas_compare_exchange(space, at(64 * PAGE), 1, &value, 3), 1);
	assert_int_equal(gpas_fill(space, at(80 * PAGE + 1), 3, 1, NULL), 0);
	assert_int_equal(gpas_region_find(space, at(0), &region), 0);
	assert_int_equal(region.present, 24 * PAGE);
	assert_int_equal(gpas_check(space), 0);
}

/* The thread that has a group open may access, too. */
static void accessors_populate_within_a_group(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas_stats stats;

	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_fill(space, at(PAGE), 3, PAGE, NULL), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.present, 4 * PAGE);
	assert_int_equal(gpas_commit(space), 0);
	assert_int_equal(gpas_fill(space, at(PAGE), 3, MIB - PAGE, NULL), 0);
	gpas_stats(space, &stats);
	assert_int_equal(stats.present, MIB);
}

/* ---- buffers ------------------------------------------------------------ */

static void buffers_describe_a_range(void **state)
{
	struct patchwork p;
	struct gpas_range range = { at(MIB + 5), at(5 * MIB - 3) };
	struct iovec vector[400];
	uint64_t total = 0;
	size_t count = 0;
	uint8_t byte;

	patchwork_open(state, &p, GPAS_FORMAT_SV39_X4);
	assert_int_equal(gpas_iovec(p.space, range, RW, vector, 400, &count),
			 0);
	/* Own memory, the caller's, and 256 scattered pages; lazy memory gets
	 * present a granule at a time. */
	assert_true(count >= 1 + 1 + 256);
	assert_true(count <= 1 + 64 + 1 + 256);
	for (size_t i = 0; i < count; i++) {
		total += vector[i].iov_len;
		memset(vector[i].iov_base, (int)(i % 250), vector[i].iov_len);
	}
	assert_int_equal(total, 4 * MIB - 8);
	assert_int_equal(gpas_read(p.space, range.start, &byte, 1, NULL), 0);
	assert_int_equal(byte, 0);
	assert_int_equal(
		gpas_read(p.space, at(range.end.value - 1), &byte, 1, NULL), 0);
	assert_int_equal(byte, (count - 1) % 250);
	/* All present now: the first two regions share one offset. */
	assert_int_equal(gpas_iovec(p.space, range, RW, vector, 400, &count),
			 0);
	assert_int_equal(count, 1 + 1 + 256);
	assert_int_equal(vector[0].iov_len, 2 * MIB - 5);
	assert_ptr_equal(vector[1].iov_base, gpas_memory_host(p.memory));
	patchwork_close(state, &p);
}

static void buffers_may_not_reach_the_end(void **state)
{
	struct patchwork p;
	struct gpas_range range = { at(3 * MIB), at(5 * MIB) };
	struct iovec vector[3] = { { 0 } };
	size_t count = 9;

	patchwork_open(state, &p, GPAS_FORMAT_EPT_4);
	assert_int_equal(gpas_populate(p.space, at(4 * MIB), MIB), 0);
	assert_int_equal(gpas_iovec(p.space, range, READ, vector, 3, &count),
			 -E2BIG);
	assert_int_equal(count, 3);
	assert_int_equal(vector[0].iov_len, MIB);
	assert_ptr_equal(vector[2].iov_base, ledger_host(&p.ledger, 1));
	assert_int_equal(gpas_iovec(p.space, range, READ, vector, 0, &count),
			 -E2BIG);
	assert_int_equal(count, 0);
	range.end = range.start;
	assert_int_equal(gpas_iovec(p.space, range, READ, NULL, 0, &count), 0);
	assert_int_equal(count, 0);
	range.end = at(3 * MIB - 1);
	assert_int_equal(gpas_iovec(p.space, range, READ, vector, 3, &count),
			 -EINVAL);
	assert_int_equal(count, 0);
	range = (struct gpas_range){ at(3 * MIB), at(4 * MIB) };
	assert_int_equal(gpas_iovec(p.space, range, 8, vector, 3, &count),
			 -EINVAL);
	assert_int_equal(count, 0);
	range = (struct gpas_range){ at(0), at(4 * MIB) };
	assert_int_equal(gpas_iovec(p.space, range, READ, vector, 3, &count),
			 -ENOENT);
	assert_int_equal(count, 0);
	range = (struct gpas_range){ at(5 * MIB - PAGE), at(5 * MIB + 1) };
	count = 9;
	assert_int_equal(gpas_iovec(p.space, range, READ, vector, 3, &count),
			 -ENOENT);
	assert_int_equal(count, 0);
	patchwork_close(state, &p);
}

/* ---- atomic accesses ---------------------------------------------------- */

static uint64_t mask_of(unsigned width)
{
	return width == 8 ? UINT64_MAX : (UINT64_C(1) << width * 8) - 1;
}

static void atomics_have_their_width(void **state)
{
	const uint64_t pattern = UINT64_C(0xf1e2d3c4b5a69788);

	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		struct gpas_params params = {
			.size = GIB,
			.format = (enum gpas_format_id)id,
		};
		struct gpas *space = fixture_open(state, &params);

		assert_int_equal(
			gpas_map_alloc(space, at(0), 2 * PAGE, RW, NULL), 0);
		for (unsigned width = 1; width <= 8; width *= 2) {
			for (uint64_t gpa = PAGE - 16; gpa < PAGE + 16;
			     gpa += width) {
				uint8_t around[48];
				uint64_t value = 0;

				assert_int_equal(gpas_fill(space, at(PAGE - 24),
							   0x11, 48, NULL),
						 0);
				assert_int_equal(gpas_store(space, at(gpa),
							    width, pattern),
						 0);
				assert_int_equal(gpas_load(space, at(gpa),
							   width, &value),
						 0);
				assert_int_equal(value,
						 pattern & mask_of(width));
				assert_int_equal(gpas_read(space, at(PAGE - 24),
							   around, 48, NULL),
						 0);
				memset(around + (gpa - (PAGE - 24)), 0x11,
				       width);
				assert_true(is_all(around, 0x11, 48));
			}
		}
	}
}

static void comparing_and_exchanging_tells_what_it_saw(void **state)
{
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, NULL), 0);
	for (unsigned width = 1; width <= 8; width *= 2) {
		const uint64_t mask = mask_of(width);
		const uint64_t old = UINT64_C(0x1122334455667788) & mask;
		const uint64_t new = UINT64_C(0x99aabbccddeeff01);
		const gpas_gpa gpa = at(PAGE - width);
		uint64_t expected = old ^ 1;
		uint64_t value = 0;

		assert_int_equal(gpas_fill(space, at(0), 0x3c, PAGE, NULL), 0);
		assert_int_equal(gpas_store(space, gpa, width, old), 0);
		assert_int_equal(gpas_compare_exchange(space, gpa, width,
						       &expected, new),
				 0);
		assert_int_equal(expected, old);
		assert_int_equal(gpas_load(space, gpa, width, &value), 0);
		assert_int_equal(value, old);
		assert_int_equal(gpas_compare_exchange(space, gpa, width,
						       &expected, new),
				 1);
		assert_int_equal(gpas_load(space, gpa, width, &value), 0);
		assert_int_equal(value, new &mask);
		assert_int_equal(
			gpas_load(space, at(PAGE - width - 1), 1, &value), 0);
		assert_int_equal(value, 0x3c);
	}
}

static void atomics_are_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	uint64_t value = 55;

	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, NULL), 0);
	for (unsigned width = 0; width <= 17; width++) {
		bool known =
			width == 1 || width == 2 || width == 4 || width == 8;

		for (uint64_t gpa = 0; gpa < 16; gpa++) {
			bool fine = known && gpa % width == 0;

			if (fine) {
				continue;
			}
			assert_int_equal(
				gpas_load(space, at(gpa), width, &value),
				-EINVAL);
			assert_int_equal(gpas_store(space, at(gpa), width, 1),
					 -EINVAL);
			assert_int_equal(gpas_compare_exchange(space, at(gpa),
							       width, &value,
							       1),
					 -EINVAL);
		}
	}
	assert_int_equal(value, 55);
	assert_int_equal(gpas_load(space, at(PAGE), 8, &value), -ENOENT);
	assert_int_equal(gpas_store(space, at(PAGE), 8, 1), -ENOENT);
	assert_int_equal(gpas_compare_exchange(space, at(PAGE), 8, &value, 1),
			 -ENOENT);
	assert_int_equal(gpas_load(space, at(UINT64_MAX - 7), 8, &value),
			 -ENOENT);
	assert_int_equal(value, 55);
}

/* ---- signal handlers ----------------------------------------------------- */

/* Memory that a reader stumbles over, and what goes on meanwhile. */
static struct {
	struct gpas *space;
	void *host;
	unsigned calls;
	int err;
	uint64_t value;
	atomic_bool inside;
	atomic_bool removed; /* gpas_unmap has returned */
	bool too_early;
} stumble;

static void read_in_handler(int signal)
{
	struct gpas_translation t;

	(void)signal;
	stumble.calls++;
	stumble.err = gpas_load(stumble.space, at(MIB), 8, &stumble.value);
	stumble.inside = true;
	while (gpas_translate(stumble.space, at(0), 0, 1, &t) == 0) {
		sched_yield();
	}
	/* It is out of the table; but whoever removes it waits for this thread,
	 * however often the handler has been in and out. */
	for (unsigned i = 0; i < 1000; i++) {
		sched_yield();
	}
	stumble.too_early = stumble.removed;
	(void)mprotect(stumble.host, PAGE, PROT_READ | PROT_WRITE);
}

static void *remove_under_handler(void *arg)
{
	while (!stumble.inside) {
		sched_yield();
	}
	(void)gpas_unmap(stumble.space, at(0), PAGE);
	stumble.removed = true;
	return arg;
}

/* The thread is inside, announced, when the signal comes. */
static void a_handler_may_read_what_its_thread_is_reading(void **state)
{
	struct sigaction act = { .sa_handler = read_in_handler };
	struct fixture *fixture = *state;
	struct gpas *space = fixture_space(state, GIB);
	struct sigaction before;
	pthread_t thread;
	uint64_t value = 1;

	fixture->threads = true;
	stumble.space = space;
	stumble.host =
		mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(stumble.host, MAP_FAILED);
	assert_int_equal(
		gpas_map_linear(space, at(0), PAGE, stumble.host, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(MIB), PAGE, RW, NULL), 0);
	assert_int_equal(gpas_store(space, at(MIB), 8, 7), 0);
	assert_int_equal(
		pthread_create(&thread, NULL, remove_under_handler, NULL), 0);
	assert_int_equal(sigaction(SIGSEGV, &act, &before), 0);
	assert_int_equal(gpas_load(space, at(0), 8, &value), 0);
	assert_int_equal(sigaction(SIGSEGV, &before, NULL), 0);
	pthread_join(thread, NULL);
	assert_int_equal(value, 0);
	assert_int_equal(stumble.calls, 1);
	assert_int_equal(stumble.err, 0);
	assert_int_equal(stumble.value, 7);
	assert_false(stumble.too_early);
	munmap(stumble.host, PAGE);
}

#if defined(__x86_64__) && !THREAD_SANITIZED
/* What the handler that comes after every instruction asks, and found wrong. */
static struct {
	struct gpas *space;
	unsigned long steps;
	unsigned long wrong;
} step;

static void ask_in_handler(int signal)
{
	struct gpas_translation t;
	uint64_t value;

	(void)signal;
	step.steps++;
	step.wrong += gpas_translate(step.space, at(MIB), RW, 8, &t) != -EACCES;
	step.wrong += gpas_load(step.space, at(MIB), 8, &value) != 0;
	step.wrong += gpas_store(step.space, at(MIB), 8, 1) != -EACCES;
	step.wrong += gpas_translate(step.space, at(3 * MIB), 0, 8, &t) == 0;
}

/* The trap flag: SIGTRAP after each instruction from here on. */
static inline void single_step(bool on)
{
	if (on) {
		__asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" ::
					 : "memory", "cc");
	} else {
		__asm__ volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" ::
					 : "memory", "cc");
	}
}

/* A handler that reads comes between any two instructions of a call, and
 * neither is mistaken: with what is remembered or without. */
static void handlers_may_read_between_any_two_instructions(void **state)
{
	struct sigaction act = { .sa_handler = ask_in_handler };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_translation t = { 0 }, rest = { 0 }, none;
	int err[6] = { 0 };
	struct sigaction before;
	uint64_t value;

	step.space = space;
	assert_int_equal(gpas_map_alloc(space, at(0), 4 * PAGE, RW, NULL), 0);
	assert_int_equal(gpas_map_alloc(space, at(MIB), 4 * PAGE, READ, NULL),
			 0);
	assert_int_equal(sigaction(SIGTRAP, &act, &before), 0);
	for (unsigned round = 0; round < 4; round++) {
		single_step(true);
		err[0] |= gpas_translate(space, at(0), RW, 8, &t);
		err[1] |= gpas_translate(space, at(PAGE), 0, UINT64_MAX, &rest);
		err[2] |= gpas_load(space, at(0), 8, &value);
		err[3] |= gpas_write(space, at(0), &value, 8, NULL);
		err[4] |= gpas_store(space, at(MIB), 8, 1) != -EACCES;
		err[5] |=
			gpas_translate(space, at(MIB), RW, 8, &none) != -EACCES;
		single_step(false);
		/* And with nothing remembered. */
		assert_int_equal(
			gpas_map_alloc(space, at(2 * MIB), PAGE, RW, NULL), 0);
		assert_int_equal(gpas_unmap(space, at(2 * MIB), PAGE), 0);
	}
	assert_int_equal(sigaction(SIGTRAP, &before, NULL), 0);
	for (size_t i = 0; i < ARRAY_COUNT(err); i++) {
		assert_int_equal(err[i], 0);
	}
	assert_true(step.steps > 100);
	assert_int_equal(step.wrong, 0);
	assert_int_equal(t.prot, RW);
	assert_int_equal(rest.prot, RW);
	assert_int_equal(rest.size, 3 * PAGE);
	assert_int_equal(gpas_translate(space, at(MIB), RW, 8, &t), -EACCES);
}
#endif

int main(void)
{
	static const struct CMUnitTest tests[] = {
#if defined(__x86_64__) && !THREAD_SANITIZED
		fixture_test(handlers_may_read_between_any_two_instructions),
#endif
		fixture_test(translation_is_exact_at_every_offset),
		fixture_test(translation_ends_where_anything_changes),
		fixture_test(translation_checks_access),
		fixture_test(copies_cross_leaves_and_regions),
		fixture_test(
			small_stores_at_every_offset_land_where_they_should),
		fixture_test(nothing_is_transferred_by_empty_copies),
		fixture_test(errors_say_how_far_it_came),
		fixture_test(copies_that_overflow_are_refused),
		fixture_test(permissions_hold_for_every_accessor),
		fixture_test(accessors_populate_what_they_touch),
		fixture_test(accessors_populate_within_a_group),
		fixture_test(buffers_describe_a_range),
		fixture_test(buffers_may_not_reach_the_end),
		fixture_test(atomics_have_their_width),
		fixture_test(comparing_and_exchanging_tells_what_it_saw),
		fixture_test(atomics_are_refused),
		fixture_test(a_handler_may_read_what_its_thread_is_reading),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
