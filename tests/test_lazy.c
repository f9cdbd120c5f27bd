/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory beyond the first touch: content on demand, giving back,
 * committing ahead of time, the budget, and what happens when memslots or traps
 * run out. KVM is an array here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"
#include "fake_kvm.h"

#define RW GPAS_PROT_RW

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static struct gpas_fault fault_at(struct gpas *space, uint64_t gpa)
{
	struct gpas_fault fault;

	assert_int_equal(gpas_fault(space, at(gpa), GPAS_PROT_READ, &fault), 0);
	return fault;
}

static struct gpas_stats stats_of(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats;
}

static uint64_t load(struct gpas *space, uint64_t gpa)
{
	uint64_t value = 0;

	assert_int_equal(gpas_load(space, at(gpa), 8, &value), 0);
	return value;
}

static void store(struct gpas *space, uint64_t gpa, uint64_t value)
{
	assert_int_equal(gpas_store(space, at(gpa), 8, value), 0);
}

/* Whether all of [gpa, gpa + size) reads as @byte. */
static bool reads_as(struct gpas *space, uint64_t gpa, uint8_t byte,
		     uint64_t size)
{
	uint8_t page[GPAS_PAGE_BYTES];

	for (uint64_t i = 0; i < size; i += PAGE) {
		assert_int_equal(
			gpas_read(space, at(gpa + i), page, PAGE, NULL), 0);
		if (!is_all(page, byte, PAGE)) {
			return false;
		}
	}
	return true;
}

/* Pages of [gpa, gpa + size) that the host holds memory for. */
static unsigned resident(struct gpas *space, uint64_t gpa, uint64_t size)
{
	static unsigned char pages[4096];
	struct gpas_region region;
	unsigned found = 0;

	assert_true(size / PAGE <= sizeof(pages));
	assert_int_equal(gpas_region_find(space, at(gpa), &region), 0);
	assert_int_equal(
		mincore((char *)region.host + (gpa - region.start.value), size,
			pages),
		0);
	for (uint64_t i = 0; i < size / PAGE; i++) {
		found += pages[i] & 1;
	}
	return found;
}

/* ---- content on demand -------------------------------------------------- */

#define WRITER_PAGES 1024

/* A filler that keeps accounts. Page i of the mapping gets writer_byte(i). */
struct writer {
	uint64_t base; /* GPA of page 0 */
	unsigned calls;
	unsigned fail_at; /* the first call to fail half-way; 0: none */
	int error;
	bool sparse; /* leaves everything as it found it */
	bool broken; /* memory was not zero, or not of the mapping */
	uint64_t largest;
	unsigned char filled[WRITER_PAGES]; /* times */
};

static uint8_t writer_byte(uint64_t page)
{
	return (uint8_t)(1 + page % 199);
}

static int write_content(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	struct writer *writer = ctx;
	uint64_t first = (gpa.value - writer->base) / PAGE;
	bool fails = ++writer->calls >= writer->fail_at && writer->fail_at != 0;
	uint64_t count = fails ? size / PAGE / 2 : size / PAGE;

	if (gpa.value < writer->base || first + size / PAGE > WRITER_PAGES ||
	    !is_all(host, 0, size)) {
		writer->broken = true;
		return -EIO;
	}
	writer->largest = size > writer->largest ? size : writer->largest;
	for (uint64_t i = 0; i < count && !writer->sparse; i++) {
		memset((char *)host + i * PAGE, writer_byte(first + i), PAGE);
		writer->filled[first + i] += !fails;
	}
	return fails ? writer->error : 0;
}

static struct gpas_map_params filled_by(struct writer *writer, uint64_t granule)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = granule,
		.filler = { write_content, writer },
	};

	return params;
}

static bool has_content(struct gpas *space, const struct writer *writer,
			uint64_t page)
{
	return reads_as(space, writer->base + page * PAGE, writer_byte(page),
			PAGE);
}

static void content_is_there_once(void **state)
{
	struct writer writer = { .base = GIB + 3 * PAGE };
	struct gpas_map_params params = filled_by(&writer, 4 * PAGE);
	struct gpas *space = fixture_space(state, 4 * GIB);
	struct iovec vector[4];
	uint64_t seed = 7;
	size_t count;

	assert_int_equal(gpas_map_alloc(space, at(writer.base),
					WRITER_PAGES * PAGE, RW, &params),
			 0);
	assert_int_equal(writer.calls, 0);
	/* By a fault, a populate, buffers, then readers anywhere. */
	assert_int_equal(fault_at(space, writer.base).populated, PAGE);
	assert_int_equal(writer.calls, 1);
	assert_int_equal(
		gpas_populate(space, at(writer.base + 9 * PAGE), 9 * PAGE), 0);
	assert_int_equal(
		gpas_iovec(space,
			   (struct gpas_range){ at(writer.base + 40 * PAGE),
						at(writer.base + 48 * PAGE) },
			   GPAS_PROT_READ, vector, 4, &count),
		0);
	assert_int_equal(*(uint8_t *)vector[0].iov_base, writer_byte(40));
	for (unsigned n = 0; n < 3000; n++) {
		uint64_t page = next_random(&seed) % WRITER_PAGES;

		assert_true(has_content(space, &writer, page));
	}
	for (uint64_t page = 0; page < WRITER_PAGES; page++) {
		assert_true(has_content(space, &writer, page));
		assert_int_equal(writer.filled[page], 1);
	}
	assert_false(writer.broken);
}

/* A guest's first access may be a store: the rest of the page has content. */
static void a_store_keeps_the_rest(void **state)
{
	struct writer writer = { .base = 0 };
	struct gpas_map_params params = filled_by(&writer, PAGE);
	struct gpas *space = fixture_space(state, GIB);
	uint8_t byte = 0xee;

	assert_int_equal(gpas_map_alloc(space, at(0), 4 * PAGE, RW, &params),
			 0);
	assert_int_equal(gpas_write(space, at(PAGE + 5), &byte, 1, NULL), 0);
	assert_int_equal(gpas_read(space, at(PAGE + 6), &byte, 1, NULL), 0);
	assert_int_equal(byte, writer_byte(1));
	assert_int_equal(gpas_read(space, at(PAGE + 5), &byte, 1, NULL), 0);
	assert_int_equal(byte, 0xee);
	assert_int_equal(writer.calls, 1);
}

static void a_failing_filler_is_a_failed_fault(void **state)
{
	struct writer writer = { .fail_at = 1, .error = -EREMOTEIO };
	struct gpas_map_params params = filled_by(&writer, 8 * PAGE);
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_fault fault;
	struct gpas_translation where;
	uint8_t bytes[64];
	size_t done = 77;

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	fault = fault_at(space, 3 * PAGE);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -EREMOTEIO);
	assert_int_equal(fault.populated, 0);
	assert_int_equal(stats_of(space).present, 0);
	assert_int_equal(stats_of(space).faults[GPAS_FAULT_FAILED], 1);
	assert_int_equal(gpas_translate(space, at(3 * PAGE), 0, PAGE, &where),
			 -ENOENT);
	/* Readers get the filler's errno; what came before was transferred. */
	writer.fail_at = 0;
	assert_int_equal(gpas_populate(space, at(0), 8 * PAGE), 0);
	writer.fail_at = 1;
	assert_int_equal(gpas_read(space, at(8 * PAGE - 16), bytes, 64, &done),
			 -EREMOTEIO);
	assert_int_equal(done, 16);
	assert_int_equal(gpas_store(space, at(9 * PAGE), 8, 1), -EREMOTEIO);
	assert_int_equal(gpas_populate(space, at(8 * PAGE), PAGE), -EREMOTEIO);
	assert_int_equal(stats_of(space).present, 8 * PAGE);
	writer.fail_at = 0;
	/* Each next try succeeds, on memory that is zero again. */
	for (uint64_t page = 0; page < 64; page++) {
		assert_true(has_content(space, &writer, page));
		assert_int_equal(writer.filled[page], 1);
	}
	assert_false(writer.broken);
}

/* The second hole of a granule fails: the first is not seen either, and comes
 * back with zeros for a filler that skips what it knows to be zero. */
static void nothing_stays_of_a_partial_fill(void **state)
{
	struct writer writer = { .error = -EIO };
	struct gpas_map_params params = filled_by(&writer, 16 * PAGE);
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	assert_int_equal(gpas_populate(space, at(4 * PAGE), PAGE), 0);
	writer.fail_at = writer.calls + 2;
	assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), -EIO);
	assert_int_equal(stats_of(space).present, PAGE);
	writer.fail_at = 0;
	writer.sparse = true;
	assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), 0);
	assert_false(writer.broken);
	assert_true(reads_as(space, 0, 0, 4 * PAGE));
	assert_true(reads_as(space, 5 * PAGE, 0, 11 * PAGE));
	assert_true(has_content(space, &writer, 4));
}

/* The same when it is the group that is given up. */
static void nothing_stays_of_an_aborted_touch(void **state)
{
	struct writer writer = { 0 };
	struct gpas_map_params params = filled_by(&writer, PAGE);
	struct gpas_map_params zeros = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	assert_int_equal(gpas_map_alloc(space, at(GIB / 2), MIB, RW, &zeros),
			 0);
	assert_int_equal(gpas_begin(space), 0);
	store(space, 2 * PAGE, 4711);
	store(space, GIB / 2, 4711);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(stats_of(space).present, 0);
	assert_int_equal(load(space, GIB / 2), 0);
	assert_true(has_content(space, &writer, 2));
	assert_false(writer.broken);
}

static void growth_asks_for_larger_pieces(void **state)
{
	struct writer writer = { 0 };
	struct gpas_map_params params = filled_by(&writer, PAGE);
	struct gpas *space = fixture_space(state, GIB);

	params.granule_max = 256 * PAGE;
	assert_int_equal(
		gpas_map_alloc(space, at(0), WRITER_PAGES * PAGE, RW, &params),
		0);
	for (uint64_t page = 0; page < WRITER_PAGES; page++) {
		assert_true(has_content(space, &writer, page));
		assert_int_equal(writer.filled[page], 1);
	}
	assert_in_range(writer.calls, 10, 20);
	assert_int_equal(writer.largest, 256 * PAGE);
}

static void fillers_are_refused(void **state)
{
	struct writer writer = { 0 };
	struct gpas_map_params params = filled_by(&writer, 0);
	struct gpas *space = fixture_space(state, GIB);
	int fd = memfd_create("lazy", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, 4 * PAGE), 0);
	params.lazy = false;
	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, &params),
			 -EINVAL);
	params.lazy = true;
	params.memory = (struct gpas_memory_params){
		.kind = GPAS_MEMORY_FILE,
		.fd = fd,
		.shared = true,
	};
	assert_int_equal(gpas_map_alloc(space, at(0), PAGE, RW, &params),
			 -EINVAL);
	assert_int_equal(stats_of(space).regions, 0);
	close(fd);
}

/* ---- files -------------------------------------------------------------- */

#define FILE_PAGES 64

/* A file whose page i holds byte i + 1. */
static int open_file(void)
{
	int fd = memfd_create("lazy", MFD_CLOEXEC);
	uint8_t page[GPAS_PAGE_BYTES];

	assert_true(fd >= 0);
	for (int i = 0; i < FILE_PAGES; i++) {
		memset(page, i + 1, sizeof(page));
		assert_int_equal(pwrite(fd, page, sizeof(page),
					(off_t)(i * sizeof(page))),
				 sizeof(page));
	}
	return fd;
}

static uint8_t file_byte(int fd, uint64_t page)
{
	uint8_t byte = 0xa5;

	assert_int_equal(pread(fd, &byte, 1, (off_t)(page * PAGE)), 1);
	return byte;
}

static uint64_t file_bytes(int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	return (uint64_t)status.st_blocks * 512;
}

static struct gpas_map_params from_file(int fd, uint64_t page, bool shared)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = 2 * PAGE,
		.memory = {
			.kind = GPAS_MEMORY_FILE,
			.fd = fd,
			.fd_offset = page * PAGE,
			.shared = shared,
		},
	};

	return params;
}

/* A snapshot: content from the file, stores stay private, and what is given
 * back starts over as the file. */
static void a_private_file_restores_a_snapshot(void **state)
{
	int fd = open_file();
	struct gpas_map_params params = from_file(fd, 8, false);
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(MIB), 32 * PAGE, RW, &params),
			 0);
	assert_int_equal(stats_of(space).present, 0);
	for (uint64_t page = 0; page < 32; page += 3) {
		assert_true(reads_as(space, MIB + page * PAGE,
				     (uint8_t)(page + 9), PAGE));
	}
	assert_int_equal(gpas_fill(space, at(MIB), 0xee, 4 * PAGE, NULL), 0);
	assert_true(reads_as(space, MIB, 0xee, 4 * PAGE));
	assert_int_equal(file_byte(fd, 8), 9);
	assert_int_equal(gpas_discard(space, at(MIB + PAGE), 2 * PAGE), 0);
	assert_true(reads_as(space, MIB, 0xee, PAGE));
	assert_true(reads_as(space, MIB + PAGE, 10, PAGE));
	assert_true(reads_as(space, MIB + 2 * PAGE, 11, PAGE));
	assert_true(reads_as(space, MIB + 3 * PAGE, 0xee, PAGE));
	assert_int_equal(file_bytes(fd), FILE_PAGES * PAGE);
	close(fd);
}

/* A shared file: stores reach it, and what is given back is punched out. */
static void a_shared_file_is_punched(void **state)
{
	int fd = open_file();
	struct gpas_map_params params = from_file(fd, 8, true);
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(MIB), 32 * PAGE, RW, &params),
			 0);
	store(space, MIB + 4 * PAGE, 0xeeeeeeeeeeeeeeee);
	assert_int_equal(file_byte(fd, 12), 0xee);
	assert_int_equal(gpas_discard(space, at(MIB + 4 * PAGE), 2 * PAGE), 0);
	assert_int_equal(file_bytes(fd), (FILE_PAGES - 2) * PAGE);
	assert_int_equal(file_byte(fd, 12), 0);
	assert_int_equal(file_byte(fd, 14), 15);
	assert_true(reads_as(space, MIB + 4 * PAGE, 0, 2 * PAGE));
	assert_true(reads_as(space, MIB + 6 * PAGE, 15, PAGE));
	/* Unmapping leaves the file alone. */
	assert_int_equal(gpas_unmap(space, at(MIB), 32 * PAGE), 0);
	assert_int_equal(file_byte(fd, 8), 9);
	close(fd);
}

/* ---- giving back -------------------------------------------------------- */

static void discard_kind(void **state, enum gpas_memory_kind kind, bool lazy)
{
	struct gpas_map_params params = {
		.lazy = lazy,
		.granule = lazy ? 4 * PAGE : 0,
		.memory = { .kind = kind },
	};
	struct gpas *space = fixture_space(state, GIB);
	uint64_t present = lazy ? 56 * PAGE : 64 * PAGE;
	struct gpas_stats stats;
	struct gpas_region region;

	assert_int_equal(gpas_map_alloc(space, at(MIB), 64 * PAGE, RW, &params),
			 0);
	assert_int_equal(gpas_fill(space, at(MIB), 0xcd, 64 * PAGE, NULL), 0);
	assert_int_equal(resident(space, MIB, 64 * PAGE), 64);
	assert_int_equal(gpas_discard(space, at(MIB + 10 * PAGE), 8 * PAGE), 0);
	stats = stats_of(space);
	assert_int_equal(stats.present, present);
	assert_int_equal(stats.discards, 1);
	assert_int_equal(stats.discarded, 8 * PAGE);
	assert_int_equal(stats.mapped, 64 * PAGE);
	assert_int_equal(resident(space, MIB, 64 * PAGE), 56);
	assert_int_equal(gpas_region_find(space, at(MIB), &region), 0);
	if (kind == GPAS_MEMORY_MEMFD) {
		assert_int_equal(file_bytes(region.fd), 56 * PAGE);
	}
	assert_true(reads_as(space, MIB + 10 * PAGE, 0, 8 * PAGE));
	assert_true(reads_as(space, MIB, 0xcd, 10 * PAGE));
	assert_true(reads_as(space, MIB + 18 * PAGE, 0xcd, 46 * PAGE));
	assert_int_equal(gpas_check(space), 0);
	/* The same again, of absent memory, and of everything. */
	assert_int_equal(gpas_discard(space, at(MIB), 64 * PAGE), 0);
	assert_int_equal(gpas_discard(space, at(MIB), 64 * PAGE), 0);
	assert_int_equal(stats_of(space).present, lazy ? 0 : 64 * PAGE);
	assert_int_equal(resident(space, MIB, 64 * PAGE), 0);
	store(space, MIB, 1);
	assert_int_equal(load(space, MIB), 1);
	assert_int_equal(load(space, MIB + 8), 0);
}

static void memory_is_given_back(void **state)
{
	discard_kind(state, GPAS_MEMORY_ANON, true);
	discard_kind(state, GPAS_MEMORY_MEMFD, true);
	discard_kind(state, GPAS_MEMORY_ANON, false);
	discard_kind(state, GPAS_MEMORY_MEMFD, false);
}

static void a_discarded_backend_is_asked_again(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 64, 2);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 64 * PAGE, RW, &backend, &lazy),
		0);
	assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), 0);
	assert_int_equal(gpas_discard(space, at(4 * PAGE), 4 * PAGE), 0);
	assert_true(ledger_pages_are(&ledger, 4, 8, 1, 1));
	assert_true(ledger_pages_are(&ledger, 0, 4, 1, 0));
	assert_true(ledger_pages_are(&ledger, 8, 16, 1, 0));
	assert_int_equal(stats_of(space).present, 12 * PAGE);
	assert_true(reads_as(space, 5 * PAGE, ledger_byte(5), PAGE));
	assert_true(ledger_pages_are(&ledger, 4, 8, 2, 1));
	assert_int_equal(gpas_clear(space), 0);
	assert_true(ledger_pages_are(&ledger, 4, 8, 2, 2));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

static void a_filler_is_asked_again(void **state)
{
	struct writer writer = { 0 };
	struct gpas_map_params params = filled_by(&writer, 4 * PAGE);
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	assert_int_equal(gpas_fill(space, at(0), 0xee, 16 * PAGE, NULL), 0);
	assert_int_equal(gpas_discard(space, at(4 * PAGE), 4 * PAGE), 0);
	for (uint64_t page = 4; page < 8; page++) {
		assert_true(has_content(space, &writer, page));
		assert_int_equal(writer.filled[page], 2);
	}
	assert_true(reads_as(space, 8 * PAGE, 0xee, PAGE));
	assert_false(writer.broken);
}

/* One call may give back parts of several regions. */
static void regions_are_crossed(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 8 * PAGE, RW, &lazy), 0);
	assert_int_equal(
		gpas_map_alloc(space, at(8 * PAGE), 8 * PAGE, RW, NULL), 0);
	lazy.memory.kind = GPAS_MEMORY_MEMFD;
	assert_int_equal(
		gpas_map_alloc(space, at(16 * PAGE), 8 * PAGE, RW, &lazy), 0);
	assert_int_equal(gpas_fill(space, at(0), 9, 24 * PAGE, NULL), 0);
	assert_int_equal(
		gpas_protect(space, at(2 * PAGE), PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(
		gpas_protect(space, at(17 * PAGE), PAGE, GPAS_PROT_NONE), 0);
	assert_int_equal(gpas_discard(space, at(PAGE), 20 * PAGE), 0);
	assert_int_equal(stats_of(space).present, (1 + 8 + 3) * PAGE);
	assert_int_equal(gpas_protect(space, at(17 * PAGE), PAGE, RW), 0);
	assert_true(reads_as(space, 0, 9, PAGE));
	assert_true(reads_as(space, PAGE, 0, 20 * PAGE));
	assert_true(reads_as(space, 21 * PAGE, 9, 3 * PAGE));
}

static void discarding_is_refused(void **state)
{
	static uint8_t host[2 * GPAS_PAGE_BYTES]
		__attribute__((aligned(GPAS_PAGE_BYTES)));
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_memory *memory;
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 2, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_memory_create(2 * PAGE, NULL, &memory), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), 2 * PAGE, RW, NULL), 0);
	assert_int_equal(
		gpas_map_linear(space, at(2 * PAGE), 2 * PAGE, host, RW, NULL),
		0);
	assert_int_equal(gpas_map_memory(space, at(8 * PAGE), 2 * PAGE, RW,
					 memory, 0, NULL),
			 0);
	assert_int_equal(gpas_map_backend(space, at(16 * PAGE), 2 * PAGE, RW,
					  &backend, NULL),
			 0);
	assert_int_equal(gpas_fill(space, at(0), 7, 2 * PAGE, NULL), 0);
	assert_int_equal(gpas_discard(space, at(1), PAGE), -EINVAL);
	assert_int_equal(gpas_discard(space, at(0), 0), -EINVAL);
	assert_int_equal(gpas_discard(space, at(0), 2 * GIB), -EINVAL);
	assert_int_equal(gpas_discard(space, at(PAGE), UINT64_MAX - PAGE + 1),
			 -EINVAL);
	assert_int_equal(gpas_discard(space, at(0), 3 * PAGE), -EOPNOTSUPP);
	assert_int_equal(gpas_discard(space, at(8 * PAGE), PAGE), -EOPNOTSUPP);
	assert_int_equal(gpas_discard(space, at(16 * PAGE), PAGE), -EOPNOTSUPP);
	assert_int_equal(gpas_discard(space, at(4 * PAGE), PAGE), -ENOENT);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_discard(space, at(0), PAGE), -EBUSY);
	assert_int_equal(gpas_commit(space), 0);
	assert_true(reads_as(space, 0, 7, 2 * PAGE));
	assert_int_equal(stats_of(space).discards, 0);
	assert_int_equal(stats_of(space).discarded, 0);
	assert_int_equal(gpas_clear(space), 0);
	gpas_memory_put(memory);
	ledger_close(&ledger);
}

static int no_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

static void devices_and_holes_end_a_discard(void **state)
{
	const struct gpas_device device = { .access = no_access };
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 4 * PAGE, RW, &lazy), 0);
	assert_int_equal(gpas_map_device(space, at(4 * PAGE), PAGE, &device),
			 0);
	assert_int_equal(
		gpas_map_alloc(space, at(8 * PAGE), 4 * PAGE, RW, &lazy), 0);
	assert_int_equal(gpas_fill(space, at(0), 7, 4 * PAGE, NULL), 0);
	/* Nothing has gone before the call found out. */
	assert_int_equal(gpas_discard(space, at(0), 5 * PAGE), -EOPNOTSUPP);
	assert_int_equal(gpas_unmap(space, at(4 * PAGE), PAGE), 0);
	assert_int_equal(gpas_discard(space, at(0), 12 * PAGE), -ENOENT);
	assert_int_equal(gpas_discard(space, at(2 * PAGE), 3 * PAGE), -ENOENT);
	assert_true(reads_as(space, 0, 7, 4 * PAGE));
}

/* ---- committing ahead of time ------------------------------------------- */

struct progress {
	unsigned calls;
	unsigned stop_at; /* the call that returns stop; 0: none */
	int stop;
	uint64_t done;
	uint64_t total;
	bool broken; /* it went back, or beyond the total */
};

static int note_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct progress *progress = ctx;

	progress->broken =
		progress->broken || done < progress->done || done > total;
	progress->done = done;
	progress->total = total;
	return ++progress->calls == progress->stop_at ? progress->stop : 0;
}

static int prefault(struct gpas *space, uint64_t gpa, uint64_t size,
		    unsigned threads, struct progress *progress)
{
	struct gpas_prefault_params params = {
		.threads = threads,
		.progress = progress != NULL ? note_progress : NULL,
		.progress_ctx = progress,
	};

	return gpas_prefault(space, at(gpa), size, &params);
}

static void prefaulting_commits(void **state)
{
	static const unsigned threads[] = { 0, 1, 2, 4, 64 };
	struct fixture *fixture = *state;

	fixture->threads = true;
	for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
		struct gpas_map_params params = { .lazy = true };
		struct gpas *space = fixture_space(state, GIB);
		struct progress progress = { 0 };

		params.memory.kind =
			i % 2 == 0 ? GPAS_MEMORY_ANON : GPAS_MEMORY_MEMFD;
		assert_int_equal(
			gpas_map_alloc(space, at(MIB), 16 * MIB, RW, &params),
			0);
		store(space, MIB + 9 * PAGE, 4711);
		assert_int_equal(prefault(space, MIB + PAGE, 15 * MIB,
					  threads[i], &progress),
				 0);
		assert_false(progress.broken);
		assert_int_equal(progress.done, 15 * MIB);
		assert_int_equal(progress.total, 15 * MIB);
		assert_in_range(progress.calls, 1, 5);
		assert_int_equal(resident(space, MIB + PAGE, 15 * MIB), 3840);
		assert_int_equal(load(space, MIB + 9 * PAGE), 4711);
		assert_int_equal(load(space, MIB + 10 * PAGE), 0);
		/* Of what is committed already nothing is left to do. */
		assert_int_equal(
			gpas_prefault(space, at(MIB + PAGE), 15 * MIB, NULL),
			0);
	}
}

static void prefaulting_stops_early(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_map_params params = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct progress progress = { .stop_at = 1, .stop = 42 };

	fixture->threads = true;
	assert_int_equal(gpas_map_alloc(space, at(0), 64 * MIB, RW, &params),
			 0);
	assert_int_equal(prefault(space, 0, 64 * MIB, 1, &progress), 42);
	assert_in_range(progress.done, PAGE, 60 * MIB);
	assert_true(resident(space, 0, 4 * MIB) != 0);
	assert_int_equal(resident(space, 60 * MIB, 4 * MIB), 0);
	progress = (struct progress){ .stop_at = 2, .stop = -ECANCELED };
	assert_int_equal(prefault(space, 0, 64 * MIB, 4, &progress),
			 -ECANCELED);
	assert_int_equal(prefault(space, 0, 64 * MIB, 2, NULL), 0);
	assert_int_equal(resident(space, 48 * MIB, 16 * MIB), 4096);
}

static void prefaulting_is_refused(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_map_params params = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct progress progress = { 0 };
	int fd = open_file();

	fixture->threads = true;
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params), 0);
	assert_int_equal(prefault(space, 0, MIB, 65, &progress), -EINVAL);
	assert_int_equal(prefault(space, 1, MIB, 1, &progress), -EINVAL);
	assert_int_equal(prefault(space, 0, 0, 1, &progress), -EINVAL);
	assert_int_equal(prefault(space, 0, 2 * MIB, 1, &progress), -ENOENT);
	assert_int_equal(prefault(space, MIB, PAGE, 1, &progress), -ENOENT);
	assert_int_equal(progress.calls, 0);
	assert_int_equal(stats_of(space).present, 0);
	/* The file became shorter than what is mapped of it. */
	params = from_file(fd, 0, true);
	assert_int_equal(gpas_map_alloc(space, at(64 * MIB), FILE_PAGES * PAGE,
					RW, &params),
			 0);
	assert_int_equal(ftruncate(fd, 8 * PAGE), 0);
	assert_int_equal(prefault(space, 64 * MIB, 8 * PAGE, 2, NULL), 0);
	assert_int_equal(prefault(space, 64 * MIB, FILE_PAGES * PAGE, 1, NULL),
			 -EFAULT);
	assert_int_equal(prefault(space, 64 * MIB, FILE_PAGES * PAGE, 4, NULL),
			 -EFAULT);
	close(fd);
}

/* Memory a guest may not write is read in; what it may not touch is left. */
static void prefaulting_goes_by_permission(void **state)
{
	struct gpas_map_params params = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	assert_int_equal(
		gpas_protect(space, at(8 * PAGE), 8 * PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(
		gpas_protect(space, at(16 * PAGE), 8 * PAGE, GPAS_PROT_NONE),
		0);
	assert_int_equal(gpas_prefault(space, at(0), 64 * PAGE, NULL), 0);
	assert_int_equal(resident(space, 0, 8 * PAGE), 8);
	assert_int_equal(resident(space, 8 * PAGE, 8 * PAGE), 8);
	assert_int_equal(resident(space, 16 * PAGE, 8 * PAGE), 0);
	assert_int_equal(resident(space, 24 * PAGE, 40 * PAGE), 40);
}

static void prefaulting_asks_the_filler(void **state)
{
	struct writer writer = { .error = -ESTALE };
	struct gpas_map_params params = filled_by(&writer, 4 * PAGE);
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &params),
			 0);
	writer.fail_at = 1;
	assert_int_equal(gpas_prefault(space, at(0), 64 * PAGE, NULL), -ESTALE);
	assert_int_equal(stats_of(space).present, 0);
	writer.fail_at = 0;
	assert_int_equal(gpas_prefault(space, at(0), 64 * PAGE, NULL), 0);
	for (uint64_t page = 0; page < 64; page++) {
		assert_true(has_content(space, &writer, page));
	}
}

/* ---- the budget --------------------------------------------------------- */

/* What the embedder does when it is asked for room. */
struct relief {
	unsigned calls;
	uint64_t wanted; /* by the last call */
	uint64_t from;	 /* what to give back: nothing if size is 0 */
	uint64_t size;
	bool unmaps; /* instead of discarding */
	int answer;
};

static int relieve(void *ctx, struct gpas *space, uint64_t wanted)
{
	struct relief *relief = ctx;

	relief->calls++;
	relief->wanted = wanted;
	if (relief->size == 0) {
		return relief->answer;
	}
	return relief->unmaps
		       ? gpas_unmap(space, at(relief->from), relief->size)
		       : gpas_discard(space, at(relief->from), relief->size);
}

static struct gpas *limited_space(void **state, uint64_t budget,
				  struct relief *relief)
{
	struct gpas_params params = {
		.size = GIB,
		.format = GPAS_FORMAT_EPT_4,
		.budget = budget,
		.pressure = relief != NULL ? relieve : NULL,
		.pressure_ctx = relief,
	};

	return fixture_open(state, &params);
}

static void beyond_the_budget_is_denied(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas *space = limited_space(state, 8 * PAGE, NULL);
	struct gpas_fault fault;
	uint64_t value;

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &lazy), 0);
	store(space, 0, 1);
	store(space, 9 * PAGE, 2);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	fault = fault_at(space, 20 * PAGE);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENOMEM);
	assert_int_equal(gpas_load(space, at(20 * PAGE), 8, &value), -ENOMEM);
	assert_int_equal(gpas_populate(space, at(20 * PAGE), PAGE), -ENOMEM);
	assert_int_equal(gpas_map_alloc(space, at(MIB), PAGE, RW, NULL),
			 -ENOMEM);
	/* Nothing is lost, and the access can be repeated. */
	assert_int_equal(load(space, 0), 1);
	assert_int_equal(load(space, 9 * PAGE), 2);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	assert_int_equal(stats_of(space).regions, 1);
	assert_int_equal(gpas_discard(space, at(0), 4 * PAGE), 0);
	assert_int_equal(fault_at(space, 20 * PAGE).populated, 4 * PAGE);
	assert_int_equal(stats_of(space).pressure, 0);
}

static void pressure_makes_room(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct relief relief = { .size = 4 * PAGE };
	struct gpas *space = limited_space(state, 8 * PAGE, &relief);

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &lazy), 0);
	for (uint64_t granule = 0; granule < 16; granule++) {
		relief.from = granule < 2 ? 0 : (granule - 2) * 4 * PAGE;
		store(space, granule * 4 * PAGE, granule + 1);
		assert_int_equal(relief.calls, granule < 2 ? 0 : granule - 1);
	}
	assert_int_equal(relief.wanted, 4 * PAGE);
	assert_int_equal(stats_of(space).pressure, 14);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	assert_int_equal(load(space, 60 * PAGE), 16);
	/* Unmapping does as well. */
	relief.unmaps = true;
	relief.from = 56 * PAGE;
	store(space, 0, 77);
	assert_int_equal(gpas_load(space, at(56 * PAGE), 8, &relief.wanted),
			 -ENOENT);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
}

static void a_lying_callback_is_not_believed_for_ever(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct relief relief = { 0 };
	struct gpas *space = limited_space(state, 4 * PAGE, &relief);
	struct gpas_fault fault;

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &lazy), 0);
	store(space, 0, 1);
	fault = fault_at(space, 20 * PAGE);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENOMEM);
	assert_in_range(relief.calls, 1, 8);
	assert_int_equal(stats_of(space).pressure, relief.calls);
	/* One that says no is asked once. */
	relief = (struct relief){ .answer = -EPERM };
	fault = fault_at(space, 20 * PAGE);
	assert_int_equal(fault.error, -ENOMEM);
	assert_int_equal(relief.calls, 1);
	assert_int_equal(stats_of(space).charged, 4 * PAGE);
}

static void a_granule_beyond_the_whole_budget(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 16 * PAGE };
	struct relief relief = { .size = 16 * PAGE };
	struct gpas *space = limited_space(state, 8 * PAGE, &relief);
	struct gpas_fault fault;

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * PAGE, RW, &lazy), 0);
	fault = fault_at(space, 20 * PAGE);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENOMEM);
	assert_in_range(relief.calls, 1, 8);
	/* Part of one fits. */
	assert_int_equal(gpas_populate(space, at(0), 8 * PAGE), 0);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
}

/* A granule that has grown too large for what is left is made small again
 * before anybody is asked. */
static void growth_gives_way_to_the_budget(void **state)
{
	struct gpas_map_params lazy = {
		.lazy = true,
		.granule = PAGE,
		.granule_max = 1024 * PAGE,
	};
	struct relief relief = { .answer = -EPERM };
	struct gpas *space = limited_space(state, 100 * PAGE, &relief);

	assert_int_equal(gpas_map_alloc(space, at(0), 1024 * PAGE, RW, &lazy),
			 0);
	for (uint64_t page = 0; page < 100; page++) {
		store(space, page * PAGE, page + 1);
		assert_true(stats_of(space).charged <= 100 * PAGE);
	}
	assert_int_equal(relief.calls, 0);
	assert_int_equal(stats_of(space).charged, 100 * PAGE);
	assert_int_equal(fault_at(space, 100 * PAGE).error, -ENOMEM);
	assert_int_equal(relief.calls, 1);
}

/* Linear memory and objects of the caller's are not counted. */
static void eager_memory_counts(void **state)
{
	static uint8_t host[16 * GPAS_PAGE_BYTES]
		__attribute__((aligned(GPAS_PAGE_BYTES)));
	struct gpas *space = limited_space(state, 8 * PAGE, NULL);
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 16, 4);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_map_alloc(space, at(0), 9 * PAGE, RW, NULL),
			 -ENOMEM);
	assert_int_equal(stats_of(space).charged, 0);
	assert_int_equal(stats_of(space).regions, 0);
	assert_int_equal(
		gpas_map_linear(space, at(MIB), 16 * PAGE, host, RW, NULL), 0);
	assert_int_equal(stats_of(space).charged, 0);
	assert_int_equal(
		gpas_map_backend(space, at(0), 16 * PAGE, RW, &backend, NULL),
		-ENOMEM);
	assert_int_equal(stats_of(space).charged, 0);
	assert_false(ledger_is_held(&ledger));
	assert_int_equal(gpas_map_alloc(space, at(0), 8 * PAGE, RW, NULL), 0);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	/* Eager memory that is given back stays present, and so counted. */
	assert_int_equal(gpas_discard(space, at(0), 4 * PAGE), 0);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	assert_int_equal(gpas_protect(space, at(0), PAGE, GPAS_PROT_NONE), 0);
	assert_int_equal(stats_of(space).charged, 8 * PAGE);
	assert_int_equal(gpas_unmap(space, at(2 * PAGE), 3 * PAGE), 0);
	assert_int_equal(stats_of(space).charged, 5 * PAGE);
	assert_int_equal(gpas_clear(space), 0);
	assert_int_equal(stats_of(space).charged, 0);
	ledger_close(&ledger);
}

/* ---- the account, whatever happens -------------------------------------- */

#define ACCOUNT_PAGES 512

/* Present bytes of regions that own their memory, by the public questions. */
static uint64_t owned_bytes(struct gpas *space)
{
	struct gpas_region region;
	uint64_t gpa = 0;
	uint64_t sum = 0;

	while (gpas_region_next(space, at(gpa), &region) == 0) {
		if (region.kind == GPAS_REGION_ALLOC ||
		    region.kind == GPAS_REGION_BACKEND) {
			sum += region.present;
		}
		gpa = region.start.value + region.size;
		if (gpa >= gpas_end(space).value) {
			break;
		}
	}
	return sum;
}

struct account {
	struct gpas *space;
	uint64_t random;
	uint64_t budget;
	uint8_t *host; /* of linear memory */
	bool grouped;
	uint64_t before; /* charged when the group began */
};

static uint64_t pick(struct account *account, uint64_t bound)
{
	return next_random(&account->random) % bound;
}

static void map_something(struct account *account, gpas_gpa gpa, uint64_t size)
{
	struct gpas_map_params params = { 0 };

	if (pick(account, 4) == 0) {
		(void)gpas_map_linear(account->space, gpa, size, account->host,
				      RW, NULL);
		return;
	}
	params.lazy = pick(account, 3) != 0;
	if (params.lazy) {
		params.granule = PAGE << pick(account, 5);
		params.granule_max = params.granule << pick(account, 4);
	}
	params.memory.kind =
		pick(account, 2) != 0 ? GPAS_MEMORY_MEMFD : GPAS_MEMORY_ANON;
	(void)gpas_map_alloc(account->space, gpa, size, RW, &params);
}

static void change_group(struct account *account)
{
	struct gpas *space = account->space;

	if (!account->grouped) {
		account->before = stats_of(space).charged;
		assert_int_equal(gpas_begin(space), 0);
	} else if (pick(account, 2) != 0) {
		assert_int_equal(gpas_commit(space), 0);
	} else {
		assert_int_equal(gpas_abort(space), 0);
		assert_int_equal(stats_of(space).charged, account->before);
	}
	account->grouped = !account->grouped;
}

static void account_step(struct account *account, struct fixture *fixture)
{
	struct gpas *space = account->space;
	uint64_t start = pick(account, ACCOUNT_PAGES);
	uint64_t pages = 1 + pick(account, ACCOUNT_PAGES - start);
	gpas_gpa gpa = at(start * PAGE);
	uint64_t size = (pick(account, 2) != 0 ? pages : 1 + pages / 16) * PAGE;
	struct gpas_fault fault;

	fixture->frames.luck = pick(account, 4) == 0 ? 3 : 0;
	switch (pick(account, 10)) {
	case 0:
	case 1:
		map_something(account, gpa, size);
		break;
	case 2:
		(void)gpas_unmap(space, gpa, size);
		break;
	case 3:
		(void)gpas_protect(space, gpa, size, pick(account, 4));
		break;
	case 4:
		(void)gpas_discard(space, gpa, size);
		break;
	case 5:
		(void)gpas_populate(space, gpa, size);
		break;
	case 6:
		change_group(account);
		break;
	default:
		(void)gpas_fault(space, gpa, 0, &fault);
		break;
	}
	fixture->frames.luck = 0;
}

static void keep_account(void **state, uint64_t seed, uint64_t budget)
{
	struct fixture *fixture = *state;
	struct gpas_params params = {
		.size = ACCOUNT_PAGES * PAGE,
		.format = GPAS_FORMAT_EPT_4,
		.budget = budget,
	};
	struct account account = { .random = seed, .budget = budget };
	unsigned steps = SANITIZED ? 600 : 3000;

	account.space = fixture_open(state, &params);
	fixture->frames.random = &account.random;
	account.host = aligned_alloc(PAGE, ACCOUNT_PAGES * PAGE);
	assert_non_null(account.host);
	for (unsigned step = 0; step < steps; step++) {
		uint64_t charged;

		account_step(&account, fixture);
		charged = stats_of(account.space).charged;
		if (charged != (budget != 0 ? owned_bytes(account.space) : 0) ||
		    charged > budget) {
			fail_msg("seed %llu, step %u: charged %llu, present "
				 "%llu, budget %llu",
				 (unsigned long long)seed, step,
				 (unsigned long long)charged,
				 (unsigned long long)owned_bytes(account.space),
				 (unsigned long long)budget);
		}
	}
	if (account.grouped) {
		assert_int_equal(gpas_abort(account.space), 0);
	}
	assert_int_equal(gpas_clear(account.space), 0);
	assert_int_equal(stats_of(account.space).charged, 0);
	fixture_close(state);
	free(account.host);
}

static void the_account_is_right_after_every_step(void **state)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		keep_account(state, seed, ACCOUNT_PAGES / 3 * PAGE);
		keep_account(state, seed + 100, 8 * ACCOUNT_PAGES * PAGE);
	}
}

static void without_a_budget_there_is_no_account(void **state)
{
	for (uint64_t seed = 1; seed <= 3; seed++) {
		keep_account(state, seed, 0);
	}
}

/* ---- a file as content --------------------------------------------------- */

/* A file of @size bytes, each its offset's page number plus one. */
static int numbered_file(uint64_t size)
{
	char path[] = "/tmp/gpas-fill-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	for (uint64_t at = 0; at < size; at++) {
		uint8_t byte = (uint8_t)(at / PAGE + 1);

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
	}
	return fd;
}

static bool holds(struct gpas *space, uint64_t gpa, uint64_t size, uint8_t byte)
{
	uint8_t bytes[PAGE];

	assert_int_equal(gpas_read(space, at(gpa), bytes, size, NULL), 0);
	return is_all(bytes, byte, size);
}

/* From an offset that is no page's, on into the file's last page; beyond its
 * end the fault fails and nothing becomes present. */
static void files_fill_lazy_memory(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_file_content content = {
		.fd = numbered_file(4 * PAGE + 10),
		.offset = 100,
		.start = at(MIB),
	};
	struct gpas_map_params params = {
		.lazy = true,
		.granule = PAGE,
		.filler = { gpas_fill_from_file, &content },
	};
	struct gpas_fault fault;

	assert_int_equal(gpas_map_alloc(space, at(MIB), 8 * PAGE, RW, &params),
			 0);
	assert_true(holds(space, MIB + 2 * PAGE, PAGE - 100, 3));
	assert_true(holds(space, MIB + 3 * PAGE - 100, 100, 4));
	/* The last page: what the file has of it, then zeros. */
	assert_true(holds(space, MIB + 3 * PAGE, PAGE - 100, 4));
	assert_true(holds(space, MIB + 4 * PAGE - 100, 10, 5));
	assert_true(holds(space, MIB + 4 * PAGE - 90, 90, 0));
	fault = fault_at(space, MIB + 4 * PAGE);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENODATA);
	assert_int_equal(stats_of(space).present, 2 * PAGE);
	close(content.fd);
}

static void files_that_cannot_fill_say_so(void **state)
{
	struct gpas_file_content content = { .fd = -1, .start = at(MIB) };
	uint8_t page[PAGE] = { 0 };
	int ends[2];

	(void)state;
	assert_int_equal(gpas_fill_from_file(&content, at(MIB), page, PAGE),
			 -EBADF);
	assert_int_equal(gpas_fill_from_file(&content, at(0), page, PAGE),
			 -EINVAL);
	content.offset = (uint64_t)INT64_MAX - PAGE + 1;
	assert_int_equal(gpas_fill_from_file(&content, at(MIB), page, PAGE),
			 -EINVAL);
	content.offset = UINT64_MAX;
	assert_int_equal(
		gpas_fill_from_file(&content, at(MIB + PAGE), page, PAGE),
		-EINVAL);
	assert_int_equal(pipe(ends), 0);
	content = (struct gpas_file_content){ .fd = ends[0] };
	assert_int_equal(gpas_fill_from_file(&content, at(0), page, PAGE),
			 -ESPIPE);
	close(ends[0]);
	close(ends[1]);
}

/* ---- memslots and traps run out ----------------------------------------- */

struct board {
	struct fake_kvm kvm;
	struct gpas *space;
	enum gpas_lazy lazy;
};

static void board_open(struct board *board, void **state, enum gpas_lazy lazy,
		       uint32_t slots)
{
	struct gpas_kvm_params kvm = { .slot_count = slots, .lazy = lazy };
	struct gpas_params params = {
		.size = 4 * GIB,
		.format = GPAS_FORMAT_EPT_4,
		.log_level = GPAS_LOG_WARNING,
	};

	fake_kvm_init(&board->kvm);
	board->space = fixture_open(state, &params);
	board->lazy = lazy;
	assert_int_equal(fake_kvm_attach(&board->kvm, board->space, &kvm), 0);
}

static void board_verify(const struct board *board)
{
	uint64_t gpa = 0;
	const char *wrong =
		fake_kvm_verify(&board->kvm, board->space, board->lazy, &gpa);

	if (wrong != NULL) {
		fail_msg("%#llx: %s", (unsigned long long)gpa, wrong);
	}
}

static void board_close(struct board *board, void **state)
{
	board_verify(board);
	fixture_close(state);
	assert_int_equal(fake_kvm_slots(&board->kvm, NULL), 0);
	fake_kvm_fini(&board->kvm);
}

/* Random touches with a handful of slots never fail. */
static void scatter(void **state, enum gpas_lazy lazy, uint32_t slots)
{
	struct gpas_map_params params = { .lazy = true, .granule = PAGE };
	struct fixture *fixture = *state;
	struct board board;
	uint64_t seed = 5;
	struct gpas_stats stats;

	board_open(&board, state, lazy, slots);
	assert_int_equal(gpas_map_alloc(board.space, at(GIB), GIB, RW, &params),
			 0);
	for (unsigned n = 0; n < 400; n++) {
		uint64_t gpa = GIB + next_random(&seed) % (GIB / PAGE) * PAGE;

		store(board.space, gpa, gpa);
		assert_int_equal(load(board.space, gpa), gpa);
		stats = stats_of(board.space);
		assert_true(stats.slots + stats.traps <= slots);
		if (n % 16 == 0) {
			board_verify(&board);
		}
	}
	assert_true(stats.present > 400 * PAGE);
	assert_int_equal(stats.faults[GPAS_FAULT_FAILED], 0);
	assert_int_equal(fixture->log_level, GPAS_LOG_WARNING);
	assert_non_null(strstr(fixture->log_line, "memslots are short"));
	board_close(&board, state);
}

static void short_slots_make_granules_larger(void **state)
{
	scatter(state, GPAS_LAZY_ABSENT, 8);
	scatter(state, GPAS_LAZY_ABSENT, 64);
	scatter(state, GPAS_LAZY_TRAP, 8);
	scatter(state, GPAS_LAZY_TRAP, 64);
}

/* With enough of them nothing grows. */
static void ample_slots_keep_granules_small(void **state)
{
	struct gpas_map_params params = { .lazy = true, .granule = PAGE };
	struct board board;
	struct gpas_stats stats;

	board_open(&board, state, GPAS_LAZY_ABSENT, 0);
	assert_int_equal(gpas_map_alloc(board.space, at(GIB), GIB, RW, &params),
			 0);
	for (uint64_t n = 0; n < 200; n++) {
		store(board.space, GIB + n * 5 * MIB, n);
	}
	stats = stats_of(board.space);
	assert_int_equal(stats.present, 200 * PAGE);
	assert_int_equal(stats.slots, 200);
	board_close(&board, state);
}

/* A budget that does not allow larger granules: then it is over. */
static void short_slots_and_a_short_budget(void **state)
{
	struct gpas_params params = {
		.size = GIB,
		.format = GPAS_FORMAT_EPT_4,
		.budget = MIB,
	};
	struct gpas_kvm_params attach = { .slot_count = 2,
					  .lazy = GPAS_LAZY_ABSENT };
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct board board = { .lazy = GPAS_LAZY_ABSENT };
	struct gpas_fault fault;

	fake_kvm_init(&board.kvm);
	board.space = fixture_open(state, &params);
	assert_int_equal(fake_kvm_attach(&board.kvm, board.space, &attach), 0);
	assert_int_equal(gpas_map_alloc(board.space, at(0), GIB, RW, &lazy), 0);
	store(board.space, 0, 1);
	store(board.space, 512 * MIB, 2);
	fault = fault_at(board.space, 100 * MIB);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_true(fault.error == -ENOSPC || fault.error == -ENOMEM);
	assert_int_equal(load(board.space, 0), 1);
	assert_int_equal(load(board.space, 512 * MIB), 2);
	/* What is given back can be had elsewhere. */
	assert_int_equal(gpas_discard(board.space, at(0), MIB), 0);
	store(board.space, 100 * MIB, 3);
	assert_int_equal(stats_of(board.space).charged, 2 * PAGE);
	board_close(&board, state);
}

/* The kernel stops granting traps while guests run. */
static void refuse_traps(void **state, int error, uint64_t nth, bool on)
{
	struct gpas_map_params params = { .lazy = true };
	struct fixture *fixture = *state;
	struct gpas_kvm_info info;
	struct board board;

	board_open(&board, state, GPAS_LAZY_TRAP, 0);
	assert_int_equal(gpas_map_alloc(board.space, at(GIB), GIB, RW, &params),
			 0);
	store(board.space, GIB, 1);
	store(board.space, GIB + 100 * MIB, 2);
	/* Of a fault the first call deletes the trap, the second adds one. */
	fake_kvm_fail(&board.kvm, nth, error, on);
	store(board.space, GIB + 800 * MIB, 3);
	assert_true(board.kvm.has_failed);
	fake_kvm_mark(&board.kvm);
	assert_int_equal(gpas_kvm_info(board.space, &info), 0);
	assert_int_equal(info.lazy, GPAS_LAZY_ABSENT);
	assert_non_null(strstr(info.lazy_reason, "refused"));
	assert_int_equal(stats_of(board.space).traps, 0);
	assert_int_equal(fixture->log_level, GPAS_LOG_WARNING);
	assert_non_null(strstr(fixture->log_line, "absent slots from now on"));
	board.lazy = GPAS_LAZY_ABSENT;
	board_verify(&board);
	store(board.space, GIB + 300 * MIB, 4);
	assert_int_equal(load(board.space, GIB), 1);
	assert_int_equal(load(board.space, GIB + 100 * MIB), 2);
	assert_int_equal(load(board.space, GIB + 800 * MIB), 3);
	board_close(&board, state);
}

static void refused_traps_become_absent_slots(void **state)
{
	refuse_traps(state, -EPERM, 2, false);
	refuse_traps(state, -EOPNOTSUPP, 2, false);
	refuse_traps(state, -EMFILE, 3, false);
	refuse_traps(state, -ENFILE, 2, false);
}

/* An error that may pass fails the fault, and traps stay. */
static void a_passing_error_keeps_traps(void **state)
{
	struct gpas_map_params params = { .lazy = true };
	struct board board;
	struct gpas_fault fault;

	board_open(&board, state, GPAS_LAZY_TRAP, 0);
	assert_int_equal(gpas_map_alloc(board.space, at(GIB), GIB, RW, &params),
			 0);
	fake_kvm_fail(&board.kvm, 2, -EINTR, false);
	fault = fault_at(board.space, GIB + 100 * MIB);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -EINTR);
	assert_int_equal(stats_of(board.space).present, 0);
	fake_kvm_mark(&board.kvm);
	board_verify(&board);
	store(board.space, GIB + 100 * MIB, 1);
	assert_true(stats_of(board.space).traps > 0);
	board_close(&board, state);
}

/* How large the mirror makes traps, and what a fault may then cost. */
struct trap_sizes {
	enum gpas_lazy lazy;
	uint64_t grain;
	uint64_t chunk;
	uint64_t most;
};

static void count_ioctls(void **state, const struct trap_sizes *sizes,
			 uint64_t size)
{
	struct gpas_map_params params = { .lazy = true };
	struct gpas_kvm_params kvm = { .lazy = sizes->lazy };
	struct board board = { .lazy = kvm.lazy };
	uint64_t most = 0;
	uint64_t seed = 9;

	fake_kvm_init(&board.kvm);
	board.space = fixture_space(state, 2 * TIB);
	assert_int_equal(fake_kvm_attach(&board.kvm, board.space, &kvm), 0);
	board.space->mirror->trap_grain = sizes->grain;
	board.space->mirror->trap_chunk = sizes->chunk;
	assert_int_equal(gpas_map_alloc(board.space, at(0), size, RW, &params),
			 0);
	for (unsigned n = 0; n < 500; n++) {
		uint64_t gpa = next_random(&seed) % (size / PAGE);

		fake_kvm_mark(&board.kvm);
		(void)fault_at(board.space, gpa * PAGE);
		most = board.kvm.calls > most ? board.kvm.calls : most;
	}
	assert_true(most <= sizes->most);
	board_close(&board, state);
}

/* A fault costs a bounded number of ioctls, however large the region. Cut
 * buddy-wise a trap falls into its halves, log2(size / grain) on either side;
 * one takes it away and three cover the rest. */
static void a_fault_costs_few_ioctls(void **state)
{
	static const uint64_t sizes[] = { 64 * MIB, GIB, 64 * GIB, TIB };
	static const struct trap_sizes traps[] = {
		{ GPAS_LAZY_TRAP, TRAP_GRAIN, TRAP_MAX_BYTES, 4 + 2 * 14 },
		{ GPAS_LAZY_TRAP, TRAP_GRAIN_FLAT, TRAP_MAX_BYTES, 4 + 2 * 6 },
		{ GPAS_LAZY_TRAP, TRAP_GRAIN, TRAP_CHUNK_SIZED, 5 },
		{ GPAS_LAZY_ABSENT, TRAP_GRAIN, TRAP_MAX_BYTES, 1 },
	};

	for (size_t i = 0; i < ARRAY_COUNT(traps); i++) {
		for (size_t k = 0; k < ARRAY_COUNT(sizes); k++) {
			count_ioctls(state, &traps[i], sizes[k]);
		}
	}
}

/* Chunks leave most of the slots free, and give way when slots run short. */
static void chunks_of_traps_do_not_use_slots_up(void **state)
{
	struct gpas_map_params params = { .lazy = true, .granule = PAGE };
	struct board board;

	board_open(&board, state, GPAS_LAZY_TRAP, 40);
	board.space->mirror->trap_chunk = 16 * MIB;
	board.space->mirror->trap_grain = 2 * MIB;
	assert_int_equal(
		gpas_map_alloc(board.space, at(MIB), 3 * GIB, RW, &params), 0);
	assert_in_range(fake_kvm_slots(&board.kvm, NULL), 6, 13);
	board_verify(&board);
	for (uint64_t n = 1; n < 100; n++) {
		store(board.space, n * 31 * MIB, n);
	}
	board_verify(&board);
	assert_true(fake_kvm_slots(&board.kvm, NULL) <= 40);
	for (uint64_t n = 1; n < 100; n++) {
		assert_int_equal(load(board.space, n * 31 * MIB), n);
	}
	board_close(&board, state);
}

/* Nor do they when there are many regions: what is added while a vCPU runs
 * needs no replacement of slots, which nobody here could pause for. */
static void many_regions_in_chunks_leave_slots(void **state)
{
	static char run[1 << 16];
	struct gpas_map_params params = { .lazy = true };
	struct board board;
	struct gpas_vcpu vcpu;

	board_open(&board, state, GPAS_LAZY_TRAP, 64);
	board.space->mirror->trap_chunk = 16 * MIB;
	board.space->mirror->trap_grain = 2 * MIB;
	memset(run, 0, sizeof(run));
	assert_int_equal(gpas_vcpu_init(&vcpu, board.space, -1, (void *)run),
			 0);
	gpas_vcpu_enter(&vcpu);
	for (uint64_t n = 0; n < 12; n++) {
		fake_kvm_mark(&board.kvm);
		assert_int_equal(gpas_map_alloc(board.space, at(n * 300 * MIB),
						256 * MIB, RW,
						n % 4 == 3 ? NULL : &params),
				 0);
		assert_int_equal(board.kvm.deletes, 0);
	}
	vcpu.running = 0;
	gpas_vcpu_fini(&vcpu);
	assert_in_range(fake_kvm_slots(&board.kvm, NULL), 12, 50);
	board_close(&board, state);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(content_is_there_once),
		fixture_test(a_store_keeps_the_rest),
		fixture_test(a_failing_filler_is_a_failed_fault),
		fixture_test(nothing_stays_of_a_partial_fill),
		fixture_test(nothing_stays_of_an_aborted_touch),
		fixture_test(growth_asks_for_larger_pieces),
		fixture_test(fillers_are_refused),
		fixture_test(a_private_file_restores_a_snapshot),
		fixture_test(a_shared_file_is_punched),
		fixture_test(memory_is_given_back),
		fixture_test(a_discarded_backend_is_asked_again),
		fixture_test(a_filler_is_asked_again),
		fixture_test(regions_are_crossed),
		fixture_test(discarding_is_refused),
		fixture_test(devices_and_holes_end_a_discard),
		fixture_test(prefaulting_commits),
		fixture_test(prefaulting_stops_early),
		fixture_test(prefaulting_is_refused),
		fixture_test(prefaulting_goes_by_permission),
		fixture_test(prefaulting_asks_the_filler),
		fixture_test(beyond_the_budget_is_denied),
		fixture_test(pressure_makes_room),
		fixture_test(a_lying_callback_is_not_believed_for_ever),
		fixture_test(a_granule_beyond_the_whole_budget),
		fixture_test(growth_gives_way_to_the_budget),
		fixture_test(eager_memory_counts),
		fixture_test(the_account_is_right_after_every_step),
		fixture_test(without_a_budget_there_is_no_account),
		fixture_test(files_fill_lazy_memory),
		fixture_test(files_that_cannot_fill_say_so),
		fixture_test(short_slots_make_granules_larger),
		fixture_test(ample_slots_keep_granules_small),
		fixture_test(short_slots_and_a_short_budget),
		fixture_test(refused_traps_become_absent_slots),
		fixture_test(a_passing_error_keeps_traps),
		fixture_test(a_fault_costs_few_ioctls),
		fixture_test(chunks_of_traps_do_not_use_slots_up),
		fixture_test(many_regions_in_chunks_leave_slots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
