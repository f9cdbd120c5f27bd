/* SPDX-License-Identifier: MIT */
/* Accounts of what the library takes; fail.h says which. */
#include "fail.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- running out -------------------------------------------------------- */

static _Thread_local struct {
	bool armed;
	bool all;
	unsigned left; /* calls until the one that fails */
	unsigned failed;
} plan;

static atomic_ullong mapped_bytes;

static bool is_doomed(void)
{
	if (!plan.armed || (!plan.all && (plan.left == 0 || --plan.left > 0))) {
		return false;
	}
	plan.failed++;
	return true;
}

void fail_nth(unsigned nth)
{
	plan.all = false;
	plan.left = nth;
	plan.failed = 0;
	plan.armed = true;
}

void fail_all(void)
{
	plan.all = true;
	plan.failed = 0;
	plan.armed = true;
}

unsigned fail_stop(void)
{
	plan.armed = false;
	return plan.failed;
}

uint64_t fail_mapped_bytes(void)
{
	return mapped_bytes;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_mmap64(void *address, size_t size, int prot, int flags, int fd,
		    off_t offset);
int __real_munmap(void *address, size_t size);
int __real_memfd_create(const char *name, unsigned flags);
int __real_ftruncate64(int fd, off_t size);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_mmap64(void *address, size_t size, int prot, int flags, int fd,
		    off_t offset);
int __wrap_munmap(void *address, size_t size);
int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_ftruncate64(int fd, off_t size);

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

void *__wrap_malloc(size_t size)
{
	return is_doomed() ? no_memory() : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return is_doomed() ? no_memory() : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	return is_doomed() ? no_memory() : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
	return is_doomed() ? no_memory()
			   : __real_aligned_alloc(alignment, size);
}

void *__wrap_mmap64(void *address, size_t size, int prot, int flags, int fd,
		    off_t offset)
{
	void *map;

	if (is_doomed()) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	map = __real_mmap64(address, size, prot, flags, fd, offset);
	if (map != MAP_FAILED && (flags & MAP_FIXED) == 0) {
		mapped_bytes += size;
	}
	return map;
}

int __wrap_munmap(void *address, size_t size)
{
	int err = __real_munmap(address, size);

	if (err == 0) {
		mapped_bytes -= size;
	}
	return err;
}

int __wrap_memfd_create(const char *name, unsigned flags)
{
	if (is_doomed()) {
		errno = EMFILE;
		return -1;
	}
	return __real_memfd_create(name, flags);
}

int __wrap_ftruncate64(int fd, off_t size)
{
	if (is_doomed()) {
		errno = ENOMEM;
		return -1;
	}
	return __real_ftruncate64(fd, size);
}

/* ---- table pages -------------------------------------------------------- */

static bool is_unlucky(struct frame_meter *meter)
{
	if (meter->exhausted) {
		return true;
	}
	return meter->luck != 0 &&
	       next_random(meter->random) % meter->luck == 0;
}

static void *metered_alloc(void *ctx, size_t pages)
{
	struct frame_meter *meter = ctx;
	void *frame;

	if (is_unlucky(meter)) {
		meter->failures++;
		return NULL;
	}
	frame = aligned_alloc(pages * PAGE, pages * PAGE);
	if (frame != NULL) {
		memset(frame, 0xa5, pages * PAGE);
		meter->live += (long)pages;
	}
	return frame;
}

static void metered_free(void *ctx, void *frame, size_t pages)
{
	struct frame_meter *meter = ctx;

	memset(frame, 0xdd, pages * PAGE);
	free(frame);
	meter->live -= (long)pages;
}

const struct gpas_frame_ops metered_frames = { metered_alloc, metered_free };

/* ---- a backend ---------------------------------------------------------- */

uint8_t ledger_byte(uint64_t page)
{
	return (uint8_t)(1 + page % 199);
}

void *ledger_host(const struct ledger *ledger, uint64_t page)
{
	uint64_t pieces = ledger->pages / ledger->piece;
	uint64_t piece = pieces - 1 - page / ledger->piece;
	uint64_t at = piece * ledger->piece + page % ledger->piece;

	return (char *)gpas_memory_host(ledger->memory) + at * PAGE;
}

static bool is_inside(struct ledger *ledger, uint64_t offset, uint64_t size)
{
	bool inside = size != 0 && offset % PAGE == 0 && size % PAGE == 0 &&
		      offset / PAGE < ledger->pages &&
		      size / PAGE <= ledger->pages - offset / PAGE;

	ledger->broken = ledger->broken || !inside;
	return inside;
}

static int ledger_populate(void *ctx, uint64_t offset, uint64_t *size,
			   void **host)
{
	struct ledger *ledger = ctx;
	uint64_t page = offset / PAGE;
	uint64_t left = (ledger->piece - page % ledger->piece) * PAGE;

	if (!is_inside(ledger, offset, *size)) {
		return -EIO;
	}
	if (++ledger->calls == ledger->fail_at) {
		return ledger->error;
	}
	*size = *size < left ? *size : left;
	*host = ledger_host(ledger, page);
	for (uint64_t i = 0; i < *size / PAGE; i++) {
		ledger->provided[page + i]++;
		ledger->broken = ledger->broken || ledger->held[page + i];
		ledger->held[page + i] = true;
		memset((char *)*host + i * PAGE, ledger_byte(page + i), PAGE);
	}
	return 0;
}

static void ledger_retire(void *ctx, uint64_t offset, uint64_t size)
{
	struct ledger *ledger = ctx;

	ledger->retires++;
	if (!is_inside(ledger, offset, size)) {
		return;
	}
	for (uint64_t page = offset / PAGE; page < (offset + size) / PAGE;
	     page++) {
		ledger->retired[page]++;
		ledger->held[page] = false;
		memset(ledger_host(ledger, page), 0xdd, PAGE);
	}
}

static void ledger_release(void *ctx)
{
	struct ledger *ledger = ctx;

	ledger->releases++;
}

void ledger_open(struct ledger *ledger, uint64_t pages, uint64_t piece)
{
	assert_true(pages <= LEDGER_PAGES && pages % piece == 0);
	*ledger = (struct ledger){ .pages = pages, .piece = piece };
	assert_int_equal(
		gpas_memory_create(pages * PAGE, NULL, &ledger->memory), 0);
}

void ledger_close(struct ledger *ledger)
{
	assert_false(ledger->broken);
	gpas_memory_put(ledger->memory);
}

struct gpas_backend ledger_backend(struct ledger *ledger)
{
	struct gpas_backend backend = {
		.ctx = ledger,
		.populate = ledger_populate,
		.retire = ledger_retire,
		.release = ledger_release,
	};

	return backend;
}

bool ledger_is_held(const struct ledger *ledger)
{
	for (uint64_t page = 0; page < ledger->pages; page++) {
		if (ledger->held[page]) {
			return true;
		}
	}
	return false;
}

bool ledger_pages_are(const struct ledger *ledger, uint64_t from, uint64_t to,
		      unsigned provided, unsigned retired)
{
	for (uint64_t page = from; page < to; page++) {
		if (ledger->provided[page] != provided ||
		    ledger->retired[page] != retired) {
			print_error("page %u: provided %u, retired %u times\n",
				    (unsigned)page, ledger->provided[page],
				    ledger->retired[page]);
			return false;
		}
	}
	return true;
}

/* ---- fixture ------------------------------------------------------------ */

static unsigned open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL) {
		count++;
	}
	closedir(dir);
	return count;
}

/* A sanitizer's own mappings come and go: then it answers for leaks. */
static unsigned map_lines(void)
{
	static char text[4096];
	unsigned count = 0;
	ssize_t got;
	int fd;

	if (SANITIZED) {
		return 0;
	}
	fd = open("/proc/self/maps", O_RDONLY);
	assert_true(fd >= 0);
	while ((got = read(fd, text, sizeof(text))) > 0) {
		for (ssize_t i = 0; i < got; i++) {
			count += text[i] == '\n';
		}
	}
	close(fd);
	return count;
}

int fixture_setup(void **state)
{
	static struct fixture fixture;

	fixture = (struct fixture){
		.files = open_files(),
		.mapped = mapped_bytes,
		.map_lines = map_lines(),
	};
	*state = &fixture;
	return 0;
}

static void keep_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct fixture *fixture = ctx;

	fixture->log_lines++;
	fixture->log_level = level;
	(void)snprintf(fixture->log_line, sizeof(fixture->log_line), "%s",
		       line);
}

struct gpas *fixture_open(void **state, const struct gpas_params *params)
{
	struct fixture *fixture = *state;
	struct gpas_params all = *params;

	fixture_close(state);
	if (all.frame_ops == NULL) {
		all.frame_ops = &metered_frames;
		all.frame_ctx = &fixture->frames;
	}
	if (all.log == NULL) {
		all.log = keep_line;
		all.log_ctx = fixture;
	}
	assert_int_equal(gpas_create(&all, &fixture->space), 0);
	assert_non_null(fixture->space);
	return fixture->space;
}

struct gpas *fixture_space(void **state, uint64_t size)
{
	struct gpas_params params = {
		.size = size,
		.format = GPAS_FORMAT_EPT_4,
	};

	return fixture_open(state, &params);
}

/* Returns whether the space was sound. */
static bool close_space(struct fixture *fixture)
{
	bool sound = true;

	(void)fail_stop();
	if (fixture->space != NULL) {
		fixture->frames.exhausted = false;
		fixture->frames.luck = 0;
		sound = gpas_check(fixture->space) == 0;
		if (!sound) {
			print_error("%s\n", fixture->log_line);
		}
		gpas_destroy(fixture->space);
		fixture->space = NULL;
	}
	if (fixture->frames.live != 0) {
		print_error("%ld table pages leaked\n", fixture->frames.live);
		sound = false;
	}
	return sound;
}

void fixture_close(void **state)
{
	assert_true(close_space(*state));
}

int fixture_teardown(void **state)
{
	struct fixture *fixture = *state;
	bool sound = close_space(fixture);

	if (mapped_bytes != fixture->mapped) {
		print_error("%lld bytes stay mapped\n",
			    (long long)(mapped_bytes - fixture->mapped));
		sound = false;
	}
	if (open_files() != fixture->files) {
		print_error("descriptors: %u before, %u after\n",
			    fixture->files, open_files());
		sound = false;
	}
	if (!fixture->threads && map_lines() != fixture->map_lines) {
		print_error("lines of /proc/self/maps: %u before, %u after\n",
			    fixture->map_lines, map_lines());
		sound = false;
	}
	return sound ? 0 : -1;
}

/* ---- looking ------------------------------------------------------------ */

struct text {
	char *bytes;
	size_t size;
};

static void append_line(void *ctx, const char *line)
{
	struct text *text = ctx;
	size_t more = strlen(line);

	text->bytes = realloc(text->bytes, text->size + more + 2);
	assert_non_null(text->bytes);
	memcpy(text->bytes + text->size, line, more);
	memcpy(text->bytes + text->size + more, "\n", 2);
	text->size += more + 1;
}

char *space_text(struct gpas *space)
{
	struct text text = { 0 };
	struct gpas_stats stats;
	char gauges[256];

	gpas_dump(space, GPAS_DUMP_REGIONS | GPAS_DUMP_EXTENTS, append_line,
		  &text);
	gpas_stats(space, &stats);
	(void)snprintf(gauges, sizeof(gauges),
		       "regions %llu mapped %llu present %llu tables %llu "
		       "leaves %llu %llu %llu",
		       (unsigned long long)stats.regions,
		       (unsigned long long)stats.mapped,
		       (unsigned long long)stats.present,
		       (unsigned long long)stats.table_pages,
		       (unsigned long long)stats.leaves[0],
		       (unsigned long long)stats.leaves[1],
		       (unsigned long long)stats.leaves[2]);
	append_line(&text, gauges);
	return text.bytes;
}

bool is_all(const void *start, uint8_t byte, uint64_t size)
{
	const uint8_t *bytes = start;

	return bytes[0] == byte && memcmp(bytes, bytes + 1, size - 1) == 0;
}

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}
