/* SPDX-License-Identifier: MIT */
/*
 * Host memory objects: each kind, its address, what comes back after it is
 * discarded or retired, and that failures leave nothing behind.
 *
 * The program defines the system calls that the library uses. They count what
 * stays mapped, and they can fail on demand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory.h"

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)
#define TIB  (UINT64_C(1) << 40)

/* Larger than any pool of huge pages on a machine that runs this test, and
 * small enough for the addresses that ThreadSanitizer leaves to a program. */
#define BIG (GIB << 8)

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
#define THREAD_SANITIZED 1
#else
#define THREAD_SANITIZED 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED THREAD_SANITIZED
#endif

/* ---- the system calls ---- */

/* A sanitizer's runtime may come by here before it is ready. */
#define EARLY __attribute__((no_sanitize("address", "thread", "undefined")))

static struct {
	bool counting;
	unsigned calls;
	unsigned fail_at; /* 1: the first call; 0: none */
	int error;
	uint64_t mapped; /* bytes, of mappings whose address the kernel chose */
	unsigned fixed;	 /* mappings over others */
} calls;

/* Whether this call is the one that has to fail. */
EARLY static bool is_doomed(void)
{
	if (!calls.counting || ++calls.calls != calls.fail_at) {
		return false;
	}
	errno = calls.error;
	return true;
}

EARLY void *mmap(void *addr, size_t length, int prot, int flags, int fd,
		 off_t offset)
{
	long result;

	calls.fixed += (flags & MAP_FIXED) != 0;
	if (is_doomed()) {
		/* The worst a kernel does: the old mapping is gone as well. */
		if ((flags & MAP_FIXED) != 0) {
			syscall(SYS_munmap, addr, length);
			errno = calls.error;
		}
		return MAP_FAILED;
	}
	result = syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
	if (result != -1 && (flags & MAP_FIXED) == 0) {
		calls.mapped += length;
	}
	return (void *)result;
}

EARLY int munmap(void *addr, size_t length)
{
	long result = syscall(SYS_munmap, addr, length);

	if (result == 0) {
		calls.mapped -= length;
	}
	return (int)result;
}

EARLY int memfd_create(const char *name, unsigned flags)
{
	return is_doomed() ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}

EARLY int ftruncate(int fd, off_t length)
{
	return is_doomed() ? -1 : (int)syscall(SYS_ftruncate, fd, length);
}

EARLY int fallocate(int fd, int mode, off_t offset, off_t length)
{
	return is_doomed()
		       ? -1
		       : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

EARLY int fcntl(int fd, int command, ...)
{
	va_list list;
	long argument;

	va_start(list, command);
	argument = va_arg(list, long);
	va_end(list);
	return is_doomed() ? -1
			   : (int)syscall(SYS_fcntl, fd, command, argument);
}

static void fail_call(unsigned nth, int error)
{
	calls.calls = 0;
	calls.fail_at = nth;
	calls.error = error;
	calls.counting = true;
}

/* Whether the call that was to fail has been made. */
static bool call_failed(void)
{
	calls.counting = false;
	return calls.calls >= calls.fail_at;
}

/* ---- looking at the process ---- */

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

static unsigned map_lines(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned count = 0;
	int c;

	assert_non_null(maps);
	while ((c = fgetc(maps)) != EOF) {
		count += c == '\n';
	}
	fclose(maps);
	return count;
}

static char *page_of(const void *at)
{
	return (char *)((uintptr_t)at & ~(uintptr_t)(PAGE - 1));
}

static bool is_mapped(const void *at)
{
	unsigned char resident;

	return mincore(page_of(at), PAGE, &resident) == 0;
}

/* A system call can try an address that the process must not touch. */
static bool is_readable(const void *at)
{
	int fd[2];
	bool readable;

	assert_int_equal(pipe(fd), 0);
	readable = write(fd[1], at, 1) == 1;
	close(fd[0]);
	close(fd[1]);
	return readable;
}

static bool is_reserved(const void *at)
{
	return is_mapped(at) && !is_readable(at);
}

static uint64_t resident_bytes(const void *start, uint64_t size)
{
	unsigned char *pages = malloc(size / PAGE);
	uint64_t bytes = 0;

	assert_non_null(pages);
	assert_int_equal(mincore((void *)(uintptr_t)start, size, pages), 0);
	for (uint64_t i = 0; i < size / PAGE; i++) {
		bytes += (pages[i] & 1) != 0 ? PAGE : 0;
	}
	free(pages);
	return bytes;
}

static uint64_t file_blocks(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static bool is_all(const void *start, uint8_t byte, uint64_t size)
{
	const uint8_t *bytes = start;

	return bytes[0] == byte && memcmp(bytes, bytes + 1, size - 1) == 0;
}

/* ---- fixture: every test gives back what it took ---- */

struct before {
	uint64_t mapped;
	unsigned files;
};

static int setup(void **state)
{
	static struct before before;

	before.files = open_files();
	before.mapped = calls.mapped;
	*state = &before;
	return 0;
}

static int teardown(void **state)
{
	const struct before *before = *state;

	calls.counting = false;
	return calls.mapped == before->mapped && open_files() == before->files
		       ? 0
		       : -1;
}

static struct gpas_memory *create(uint64_t size,
				  const struct gpas_memory_params *params)
{
	struct gpas_memory *memory = NULL;

	assert_int_equal(gpas_memory_create(size, params, &memory), 0);
	assert_non_null(memory);
	assert_int_equal(gpas_memory_size(memory), size);
	return memory;
}

/* A file of @pages pages, page i full of the byte i + 1. */
static int numbered_file(unsigned pages)
{
	char name[] = "/tmp/gpas-test-XXXXXX";
	int fd = mkstemp(name);
	uint8_t page[GPAS_PAGE_BYTES];

	assert_true(fd >= 0);
	unlink(name);
	for (unsigned i = 0; i < pages; i++) {
		memset(page, (int)i + 1, sizeof(page));
		assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	}
	return fd;
}

static bool file_page_is(int fd, unsigned index, uint8_t byte)
{
	uint8_t page[GPAS_PAGE_BYTES];

	assert_int_equal(pread(fd, page, sizeof(page), (off_t)(index * PAGE)),
			 sizeof(page));
	return is_all(page, byte, sizeof(page));
}

/* ---- reservations ---- */

static void assert_reservation(uint64_t size, uint64_t gpa)
{
	struct reservation r;
	char *host;

	assert_int_equal(reservation_create(size, gpa, &r), 0);
	host = r.host;
	assert_int_equal(r.size, size);
	assert_int_equal(((uintptr_t)host - gpa) % MEMORY_CONGRUENCE, 0);
	assert_true((char *)r.map_base <= host - PAGE);
	assert_true((char *)r.map_base + r.map_size >= host + size + PAGE);
	assert_true(is_reserved(host - 1));
	assert_true(is_reserved(host));
	assert_true(is_reserved(host + size - 1));
	assert_true(is_reserved(host + size));
	reservation_destroy(&r);
	assert_false(is_mapped(host));
	assert_null(r.map_base);
	reservation_destroy(&r);
}

static void reservations_are_congruent_and_guarded(void **state)
{
	(void)state;
	assert_reservation(PAGE, 0);
	assert_reservation(PAGE, PAGE);
	assert_reservation(2 * MIB, GIB - PAGE);
	assert_reservation(3 * GIB + PAGE, UINT64_C(0xfee00000));
	assert_reservation(PAGE, UINT64_MAX - PAGE + 1);
}

static void reservations_can_be_huge(void **state)
{
	(void)state;
	assert_reservation(BIG, 5 * PAGE);
	if (!THREAD_SANITIZED) {
		assert_reservation(TIB, 5 * PAGE);
		assert_reservation(16 * TIB, 0);
	}
}

static void reservations_beyond_the_address_space_fail(void **state)
{
	struct reservation r = { .size = 1 };

	(void)state;
	assert_int_equal(reservation_create(UINT64_C(1) << 62, 0, &r), -ENOMEM);
	assert_int_equal(reservation_create(UINT64_MAX - PAGE + 1, 0, &r),
			 -ENOMEM);
	assert_int_equal(r.size, 1);
}

static void surplus_addresses_are_given_back(void **state)
{
	struct reservation r;

	(void)state;
	assert_int_equal(reservation_create(2 * MIB, 0, &r), 0);
	assert_int_equal(r.map_size, 2 * MIB + 2 * PAGE);
	reservation_destroy(&r);
}

/* ---- creation ---- */

static void creation_validates(void **state)
{
	struct gpas_memory_params p = { 0 };
	struct gpas_memory *m = NULL;

	(void)state;
	assert_int_equal(gpas_memory_create(0, NULL, &m), -EINVAL);
	assert_int_equal(gpas_memory_create(PAGE + 1, NULL, &m), -EINVAL);
	p.kind = (enum gpas_memory_kind)(GPAS_MEMORY_FILE + 1);
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	p.kind = GPAS_MEMORY_HUGETLB;
	assert_int_equal(gpas_memory_create(2 * MIB + PAGE, &p, &m), -EINVAL);
	p.huge_shift = 22;
	assert_int_equal(gpas_memory_create(4 * MIB, &p, &m), -EINVAL);
	p.huge_shift = 30;
	assert_int_equal(gpas_memory_create(2 * MIB, &p, &m), -EINVAL);
	p.huge_shift = 21;
	assert_int_equal(memory_create_at(2 * MIB, &p, NULL, PAGE, &m),
			 -EINVAL);
	p = (struct gpas_memory_params){ .kind = GPAS_MEMORY_FILE };
	p.fd_offset = 1;
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	p.fd_offset = UINT64_MAX - PAGE + 1;
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	assert_int_equal(memory_create_at(PAGE, NULL, NULL, 1, &m), -EINVAL);
	assert_null(m);
}

static void sizes_beyond_the_address_space_fail(void **state)
{
	static const uint64_t sizes[] = { UINT64_C(1) << 50,
					  INT64_MAX - PAGE + 1,
					  UINT64_C(1) << 63,
					  UINT64_MAX - PAGE + 1 };
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_MEMFD };
	struct gpas_memory *m = NULL;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(gpas_memory_create(sizes[i], NULL, &m),
				 -ENOMEM);
		assert_int_equal(gpas_memory_create(sizes[i], &p, &m), -ENOMEM);
	}
	assert_null(m);
}

static void anonymous_memory_is_zero_and_guarded(void **state)
{
	struct gpas_memory *m = create(4 * PAGE, NULL);
	char *host = gpas_memory_host(m);
	uint64_t offset = 1;

	(void)state;
	assert_int_equal(gpas_memory_kind(m), GPAS_MEMORY_ANON);
	assert_int_equal(gpas_memory_fd(m, &offset), -1);
	assert_int_equal(offset, 0);
	assert_int_equal(gpas_memory_fd(m, NULL), -1);
	assert_true(is_all(host, 0, 4 * PAGE));
	memset(host, 0x77, 4 * PAGE);
	assert_true(is_reserved(host - 1));
	assert_true(is_reserved(host + 4 * PAGE));
	gpas_memory_put(m);
	assert_false(is_mapped(host));
	assert_false(is_mapped(host - 1));
	assert_false(is_mapped(host + 4 * PAGE));
}

static void addresses_suit_large_leaves(void **state)
{
	static const uint64_t gpas[] = { 0, PAGE, 2 * MIB, GIB - 2 * MIB,
					 UINT64_C(0x100000000) };

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		struct gpas_memory *m = NULL;

		assert_int_equal(
			memory_create_at(2 * MIB, NULL, NULL, gpas[i], &m), 0);
		assert_int_equal(((uintptr_t)gpas_memory_host(m) - gpas[i]) %
					 MEMORY_CONGRUENCE,
				 0);
		gpas_memory_put(m);
	}
}

static void large_memory_costs_only_what_is_touched(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };
	const uint64_t size = THREAD_SANITIZED ? BIG : TIB;

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct gpas_memory_params p = { .kind = kinds[i] };
		struct gpas_memory *m = create(size, &p);
		char *host = gpas_memory_host(m);

		memory_piecewise(m);
		host[0] = 1;
		host[size - 1] = 2;
		assert_int_equal(resident_bytes(host, 4 * MIB), PAGE);
		assert_int_equal(resident_bytes(host + size - 4 * MIB, 4 * MIB),
				 PAGE);
		gpas_memory_put(m);
	}
}

static void memfd_memory_is_shared_through_its_descriptor(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_MEMFD };
	struct gpas_memory *m = create(2 * PAGE, &p);
	char *host = gpas_memory_host(m);
	uint64_t offset = 1;
	int fd = gpas_memory_fd(m, &offset);
	char byte = 0;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(offset, 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(lseek(fd, 0, SEEK_END), 2 * PAGE);
	assert_true(is_all(host, 0, 2 * PAGE));
	host[PAGE + 5] = 'x';
	assert_int_equal(pread(fd, &byte, 1, (off_t)PAGE + 5), 1);
	assert_int_equal(byte, 'x');
	assert_int_equal(pwrite(fd, "y", 1, 7), 1);
	assert_int_equal(host[7], 'y');
	gpas_memory_put(m);
}

static void shared_files_receive_stores(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd = numbered_file(4),
					.fd_offset = PAGE,
					.shared = true };
	struct gpas_memory *m = create(2 * PAGE, &p);
	char *host = gpas_memory_host(m);
	uint64_t offset = 0;
	int own = gpas_memory_fd(m, &offset);

	(void)state;
	assert_int_not_equal(own, p.fd);
	assert_int_equal(fcntl(own, F_GETFD), FD_CLOEXEC);
	assert_int_equal(offset, PAGE);
	assert_true(is_all(host, 2, PAGE));
	assert_true(is_all(host + PAGE, 3, PAGE));
	memset(host, 0x42, PAGE);
	gpas_memory_put(m);
	assert_true(file_page_is(p.fd, 0, 1));
	assert_true(file_page_is(p.fd, 1, 0x42));
	assert_true(file_page_is(p.fd, 2, 3));
	close(p.fd);
}

static void private_files_keep_their_content(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd = numbered_file(2) };
	struct gpas_memory *m = create(2 * PAGE, &p);
	char *host = gpas_memory_host(m);
	int fd = dup(p.fd);

	(void)state;
	/* The object does not depend on the caller's descriptor. */
	close(p.fd);
	assert_true(is_all(host + PAGE, 2, PAGE));
	memset(host, 0x42, 2 * PAGE);
	assert_true(file_page_is(fd, 0, 1));
	assert_int_equal(gpas_memory_discard(m, 0, PAGE), 0);
	assert_true(is_all(host, 1, PAGE));
	assert_true(is_all(host + PAGE, 0x42, PAGE));
	memory_retire(m, PAGE, PAGE);
	gpas_memory_put(m);
	assert_true(file_page_is(fd, 1, 2));
	close(fd);
}

static void short_files_are_refused(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd = numbered_file(3) };
	struct gpas_memory *m = NULL;

	(void)state;
	assert_int_equal(gpas_memory_create(4 * PAGE, &p, &m), -ENODATA);
	p.fd_offset = PAGE;
	assert_int_equal(gpas_memory_create(3 * PAGE, &p, &m), -ENODATA);
	p.fd_offset = INT64_MAX - PAGE + 1;
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -ENODATA);
	p.fd_offset = 0;
	assert_int_equal(ftruncate(p.fd, 3 * PAGE - 1), 0);
	assert_int_equal(gpas_memory_create(3 * PAGE, &p, &m), -ENODATA);
	assert_null(m);
	close(p.fd);
}

static void unsuitable_descriptors_are_refused(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE, .fd = -1 };
	struct gpas_memory *m = NULL;
	int fd[2];

	(void)state;
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EBADF);
	assert_int_equal(pipe(fd), 0);
	p.fd = fd[0];
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	close(fd[0]);
	close(fd[1]);
	p.fd = open("/dev/null", O_RDWR);
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	close(p.fd);
	p.fd = open("/tmp", O_RDONLY);
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EINVAL);
	close(p.fd);
	assert_null(m);
}

/* The same file through a descriptor with other access. */
static int reopen(int fd, int flags)
{
	char path[64];
	int result;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	result = open(path, flags);
	assert_true(result >= 0);
	return result;
}

static void access_modes_are_honoured(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE };
	struct gpas_memory *m = NULL;
	int file = numbered_file(1);

	(void)state;
	p.fd = reopen(file, O_RDONLY);
	p.shared = true;
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EACCES);
	p.shared = false;
	m = create(PAGE, &p);
	memset(gpas_memory_host(m), 0, PAGE);
	gpas_memory_put(m);
	close(p.fd);
	p.fd = reopen(file, O_WRONLY);
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EACCES);
	close(p.fd);
	close(file);
}

static void sealed_files_are_not_writable(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.shared = true };
	struct gpas_memory *m = NULL;
	struct reservation r;
	unsigned fixed;

	(void)state;
	p.fd = memfd_create("sealed", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(p.fd, PAGE), 0);
	assert_int_equal(fcntl(p.fd, F_ADD_SEALS, (long)F_SEAL_WRITE), 0);
	assert_int_equal(reservation_create(PAGE, 0, &r), 0);
	assert_int_equal(gpas_memory_create(PAGE, &p, &m), -EACCES);
	fixed = calls.fixed;
	assert_int_equal(memory_create_at(PAGE, &p, r.host, 0, &m), -EACCES);
	assert_int_equal(calls.fixed, fixed);
	assert_true(is_reserved(r.host));
	reservation_destroy(&r);
	close(p.fd);
}

/* ---- lifetime ---- */

static void *get_and_put(void *ctx)
{
	struct gpas_memory *memory = ctx;

	for (int i = 0; i < 20000; i++) {
		gpas_memory_put(gpas_memory_get(memory));
	}
	gpas_memory_put(memory);
	return NULL;
}

static void the_last_put_unmaps(void **state)
{
	enum {
		THREADS = 4
	};
	struct gpas_memory *m = create(PAGE, NULL);
	char *host = gpas_memory_host(m);
	pthread_t threads[THREADS];

	(void)state;
	gpas_memory_put(NULL);
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_create(&threads[i], NULL, get_and_put,
						gpas_memory_get(m)),
				 0);
	}
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	}
	host[0] = 1;
	gpas_memory_put(m);
	assert_false(is_mapped(host));
}

static void objects_leave_a_reservation_as_it_was(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_ANON };
	struct reservation r;
	char *host;

	(void)state;
	assert_int_equal(reservation_create(16 * PAGE, 0, &r), 0);
	host = (char *)r.host + 4 * PAGE;
	for (int round = 0; round < 4; round++) {
		struct gpas_memory *m = NULL;

		p.kind = round % 2 == 0 ? GPAS_MEMORY_ANON : GPAS_MEMORY_MEMFD;
		assert_int_equal(memory_create_at(4 * PAGE, &p, host, 0, &m),
				 0);
		assert_ptr_equal(gpas_memory_host(m), host);
		assert_true(is_all(host, 0, 4 * PAGE));
		memset(host, 0x33, 4 * PAGE);
		assert_true(is_reserved(host - 1));
		assert_true(is_reserved(host + 4 * PAGE));
		memory_retire(m, 0, 4 * PAGE);
		gpas_memory_put(m);
		assert_true(is_reserved(host));
		assert_true(is_reserved(host + 4 * PAGE - 1));
		assert_int_equal(resident_bytes(host, 4 * PAGE), 0);
	}
	reservation_destroy(&r);
}

/* The retired addresses of one object may belong to another before the first
 * has lost its last reference. */
static void put_leaves_a_successor_alone(void **state)
{
	struct gpas_memory *old = NULL;
	struct gpas_memory *new = NULL;
	struct reservation r;

	(void)state;
	assert_int_equal(reservation_create(2 * PAGE, 0, &r), 0);
	assert_int_equal(memory_create_at(2 * PAGE, NULL, r.host, 0, &old), 0);
	memory_retire(old, 0, PAGE);
	assert_int_equal(memory_create_at(PAGE, NULL, r.host, 0, &new), 0);
	memset(r.host, 0x21, PAGE);
	memory_retire(old, PAGE, PAGE);
	gpas_memory_put(old);
	assert_true(is_all(r.host, 0x21, PAGE));
	memory_retire(new, 0, PAGE);
	gpas_memory_put(new);
	assert_true(is_reserved(r.host));
	reservation_destroy(&r);
}

static void fixed_addresses_must_be_aligned(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_HUGETLB };
	struct gpas_memory *m = NULL;
	struct reservation r;

	(void)state;
	assert_int_equal(reservation_create(4 * MIB, 0, &r), 0);
	assert_int_equal(
		memory_create_at(PAGE, NULL, (char *)r.host + 1, 0, &m),
		-EINVAL);
	assert_int_equal(
		memory_create_at(2 * MIB, &p, (char *)r.host + PAGE, 0, &m),
		-EINVAL);
	assert_null(m);
	reservation_destroy(&r);
}

static void neighbours_are_not_disturbed(void **state)
{
	struct gpas_memory *m[3];
	struct reservation r;

	(void)state;
	assert_int_equal(reservation_create(3 * PAGE, 0, &r), 0);
	for (size_t i = 0; i < 3; i++) {
		char *host = (char *)r.host + i * PAGE;

		assert_int_equal(memory_create_at(PAGE, NULL, host, 0, &m[i]),
				 0);
		memset(host, (int)i + 1, PAGE);
	}
	/* One piece of memory now, as far as the kernel is concerned. */
	memory_retire(m[1], 0, PAGE);
	gpas_memory_put(m[1]);
	assert_true(is_all(r.host, 1, PAGE));
	assert_true(is_reserved((char *)r.host + PAGE));
	assert_true(is_all((char *)r.host + 2 * PAGE, 3, PAGE));
	gpas_memory_put(m[0]);
	gpas_memory_put(m[2]);
	reservation_destroy(&r);
}

/* ---- giving memory back ---- */

static void discard_validates(void **state)
{
	struct gpas_memory *m = create(4 * PAGE, NULL);

	(void)state;
	assert_int_equal(gpas_memory_discard(m, 0, 0), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 1, PAGE), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 0, PAGE + 1), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 0, 5 * PAGE), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 4 * PAGE, PAGE), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 8 * PAGE, PAGE), -EINVAL);
	assert_int_equal(
		gpas_memory_discard(m, UINT64_MAX - PAGE + 1, 2 * PAGE),
		-EINVAL);
	assert_int_equal(gpas_memory_discard(m, 3 * PAGE, PAGE), 0);
	gpas_memory_put(m);
}

static void discarded_memory_is_zero_and_free(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct gpas_memory_params p = { .kind = kinds[i] };
		struct gpas_memory *m = create(8 * PAGE, &p);
		char *host = gpas_memory_host(m);

		memory_piecewise(m);
		memset(host, 0x55, 8 * PAGE);
		assert_int_equal(gpas_memory_discard(m, 2 * PAGE, 4 * PAGE), 0);
		assert_int_equal(resident_bytes(host, 8 * PAGE), 4 * PAGE);
		assert_true(is_all(host, 0x55, 2 * PAGE));
		assert_true(is_all(host + 2 * PAGE, 0, 4 * PAGE));
		assert_true(is_all(host + 6 * PAGE, 0x55, 2 * PAGE));
		host[3 * PAGE] = 1;
		gpas_memory_put(m);
	}
}

static void shared_files_are_punched_by_discard_only(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd_offset = PAGE,
					.shared = true };
	struct gpas_memory *m;
	char *host;

	(void)state;
	p.fd = memfd_create("caller", 0);
	assert_int_equal(ftruncate(p.fd, 5 * PAGE), 0);
	m = create(4 * PAGE, &p);
	host = gpas_memory_host(m);
	memset(host, 0x55, 4 * PAGE);
	assert_int_equal(gpas_memory_discard(m, PAGE, PAGE), 0);
	assert_true(file_page_is(p.fd, 1, 0x55));
	assert_true(file_page_is(p.fd, 2, 0));
	memory_retire(m, 2 * PAGE, PAGE);
	assert_true(is_reserved(host + 2 * PAGE));
	assert_true(file_page_is(p.fd, 3, 0x55));
	gpas_memory_put(m);
	assert_true(file_page_is(p.fd, 4, 0x55));
	assert_int_equal(lseek(p.fd, 0, SEEK_END), 5 * PAGE);
	close(p.fd);
}

static void files_that_cannot_be_punched_say_so(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd = numbered_file(1),
					.shared = true };
	struct gpas_memory *m = create(PAGE, &p);

	(void)state;
	fail_call(1, EOPNOTSUPP);
	assert_int_equal(gpas_memory_discard(m, 0, PAGE), -EOPNOTSUPP);
	assert_true(call_failed());
	assert_true(is_all(gpas_memory_host(m), 1, PAGE));
	gpas_memory_put(m);
	close(p.fd);
}

static void retired_memory_is_inaccessible_and_free(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct gpas_memory_params p = { .kind = kinds[i] };
		struct gpas_memory *m = create(8 * PAGE, &p);
		char *host = gpas_memory_host(m);
		int fd = dup(gpas_memory_fd(m, NULL));

		memset(host, 0x55, 8 * PAGE);
		memory_retire(m, 2 * PAGE, 4 * PAGE);
		assert_true(is_reserved(host + 2 * PAGE));
		assert_true(is_reserved(host + 6 * PAGE - 1));
		assert_true(is_all(host, 0x55, 2 * PAGE));
		assert_true(is_all(host + 6 * PAGE, 0x55, 2 * PAGE));
		if (fd >= 0) {
			assert_int_equal(file_blocks(fd), 4 * PAGE / 512);
			assert_true(file_page_is(fd, 3, 0));
			close(fd);
		}
		memory_retire(m, 0, 8 * PAGE);
		assert_true(is_reserved(host));
		gpas_memory_put(m);
		assert_false(is_mapped(host));
	}
}

static void retiring_cannot_fail(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct gpas_memory_params p = { .kind = kinds[i] };
		struct gpas_memory *m = create(2 * PAGE, &p);

		/* A call that fails before it changes anything: this is the
		 * kernel's limit on mappings, not the worst case above. */
		fail_call(2, ENOMEM);
		memory_retire(m, PAGE, PAGE);
		fail_call(1, ENOMEM);
		memory_retire(m, PAGE, PAGE);
		calls.counting = false;
		gpas_memory_put(m);
	}
}

/* ---- failures ---- */

/* Creates one object with every system call failing in turn. */
static void fail_every_call(const struct gpas_memory_params *params,
			    struct reservation *in)
{
	uint64_t mapped = calls.mapped;
	unsigned files = open_files();
	unsigned nth = 1;

	for (;; nth++) {
		struct gpas_memory *m = NULL;
		bool failed;
		int err;

		fail_call(nth, ENOMEM);
		err = memory_create_at(4 * PAGE, params,
				       in != NULL ? in->host : NULL, 0, &m);
		failed = call_failed();
		if (!failed) {
			assert_int_equal(err, 0);
			memory_retire(m, 0, 4 * PAGE);
			gpas_memory_put(m);
			break;
		}
		assert_int_equal(err, -ENOMEM);
		assert_null(m);
		assert_true(calls.mapped == mapped);
		assert_int_equal(open_files(), files);
		if (in != NULL) {
			assert_true(is_reserved(in->host));
		}
	}
	/* Each kind makes at least the call that maps it. */
	assert_true(nth > 1);
	assert_true(calls.mapped == mapped);
	assert_int_equal(open_files(), files);
}

static void failed_creation_leaves_nothing(void **state)
{
	struct gpas_memory_params p[] = {
		{ .kind = GPAS_MEMORY_ANON },
		{ .kind = GPAS_MEMORY_MEMFD },
		{ .kind = GPAS_MEMORY_FILE, .shared = true },
		{ .kind = GPAS_MEMORY_FILE, .shared = false },
	};
	struct reservation r;

	(void)state;
	assert_int_equal(reservation_create(4 * PAGE, 0, &r), 0);
	p[2].fd = numbered_file(4);
	p[3].fd = p[2].fd;
	for (size_t i = 0; i < 4; i++) {
		fail_every_call(&p[i], NULL);
		fail_every_call(&p[i], &r);
	}
	close(p[2].fd);
	reservation_destroy(&r);
}

static void mmap_errors_are_the_documented_ones(void **state)
{
	static const struct {
		int error;
		int expected;
	} cases[] = { { EAGAIN, -ENOMEM },
		      { EPERM, -EACCES },
		      { EACCES, -EACCES },
		      { ENODEV, -EINVAL } };
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_FILE,
					.fd = numbered_file(1) };
	struct gpas_memory *m = NULL;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		/* The first call duplicates the descriptor. */
		fail_call(2, cases[i].error);
		assert_int_equal(gpas_memory_create(PAGE, &p, &m),
				 cases[i].expected);
		assert_true(call_failed());
	}
	close(p.fd);
}

static void running_out_of_descriptors(void **state)
{
	struct gpas_memory_params memfd = { .kind = GPAS_MEMORY_MEMFD };
	struct gpas_memory_params file = { .kind = GPAS_MEMORY_FILE,
					   .fd = numbered_file(1) };
	struct gpas_memory *m = NULL;
	struct rlimit kept, none;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &kept), 0);
	none = kept;
	none.rlim_cur = 3;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(gpas_memory_create(PAGE, &memfd, &m), -EMFILE);
	assert_int_equal(gpas_memory_create(PAGE, &file, &m), -EMFILE);
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(gpas_memory_create(PAGE, &file, &m), -EMFILE);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &kept), 0);
	assert_null(m);
	close(file.fd);
}

static void running_out_of_address_space(void **state)
{
	struct gpas_memory *m = NULL;
	struct rlimit kept, small;

	(void)state;
	if (SANITIZED) {
		skip();
	}
	assert_int_equal(getrlimit(RLIMIT_AS, &kept), 0);
	small = kept;
	small.rlim_cur = 2 * GIB;
	assert_int_equal(setrlimit(RLIMIT_AS, &small), 0);
	assert_int_equal(gpas_memory_create(4 * GIB, NULL, &m), -ENOMEM);
	assert_int_equal(gpas_memory_create(MIB, NULL, &m), 0);
	assert_int_equal(setrlimit(RLIMIT_AS, &kept), 0);
	gpas_memory_put(m);
}

static void many_objects_leave_no_mapping(void **state)
{
	struct gpas_memory_params p = { 0 };
	unsigned before;

	(void)state;
	gpas_memory_put(create(PAGE, NULL));
	before = map_lines();
	for (int i = 0; i < 500; i++) {
		struct gpas_memory *m;

		p.kind = i % 2 == 0 ? GPAS_MEMORY_ANON : GPAS_MEMORY_MEMFD;
		m = create(4 * PAGE, &p);
		memory_retire(m, PAGE, PAGE);
		gpas_memory_put(m);
	}
	/* The process's own allocator may have added a few. */
	assert_true(map_lines() < before + 20);
}

/* ---- huge pages ---- */

#define POOL_FOLDER "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static int pool_read(const char *name, long *ret)
{
	char path[128];
	FILE *file;
	int items;

	snprintf(path, sizeof(path), POOL_FOLDER "%s", name);
	file = fopen(path, "r");
	if (file == NULL) {
		return -errno;
	}
	items = fscanf(file, "%ld", ret);
	fclose(file);
	return items == 1 ? 0 : -EIO;
}

static long pool(const char *name)
{
	long value = -1;

	assert_int_equal(pool_read(name, &value), 0);
	return value;
}

static void pool_resize(long pages)
{
	FILE *file = fopen(POOL_FOLDER "nr_hugepages", "w");

	if (file != NULL) {
		fprintf(file, "%ld", pages);
		fclose(file);
	}
}

static void an_empty_pool_is_a_clear_error(void **state)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_HUGETLB };
	struct gpas_memory *m = NULL;
	struct reservation r;
	unsigned fixed;

	(void)state;
	assert_int_equal(reservation_create(BIG, 0, &r), 0);
	assert_int_equal(gpas_memory_create(BIG, &p, &m), -ENOMEM);
	/* Refused before the reservation is mapped over. */
	fixed = calls.fixed;
	assert_int_equal(memory_create_at(BIG, &p, r.host, 0, &m), -ENOMEM);
	assert_int_equal(calls.fixed, fixed);
	assert_true(is_reserved(r.host));
	p.huge_shift = 30;
	assert_int_equal(gpas_memory_create(BIG, &p, &m), -ENOMEM);
	assert_null(m);
	reservation_destroy(&r);
}

static void a_missing_pool_is_an_empty_one(void **state)
{
	static const int errors[] = { ENODEV, ENOSYS };
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_HUGETLB };
	struct gpas_memory *m = NULL;

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		fail_call(1, errors[i]);
		assert_int_equal(gpas_memory_create(2 * MIB, &p, &m), -ENOMEM);
		assert_true(call_failed());
	}
	assert_null(m);
}

static void use_huge_pages(void)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_HUGETLB };
	struct gpas_memory *m, *more = NULL;
	long free_pages = pool("free_hugepages");
	long reserved = pool("resv_hugepages");
	char *host;

	m = create(4 * MIB, &p);
	host = gpas_memory_host(m);
	assert_int_equal(pool("resv_hugepages"), reserved + 2);
	assert_int_equal(gpas_memory_create(BIG, &p, &more), -ENOMEM);
	assert_int_equal((uintptr_t)host % GIB, 0);
	assert_true(is_reserved(host - 1));
	assert_true(is_reserved(host + 4 * MIB));
	memset(host, 0x66, 4 * MIB);
	assert_int_equal(gpas_memory_discard(m, 0, PAGE), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, PAGE, 2 * MIB), -EINVAL);
	assert_int_equal(gpas_memory_discard(m, 0, 2 * MIB), 0);
	assert_int_equal(pool("free_hugepages"), free_pages - 1);
	assert_true(is_all(host, 0, 2 * MIB));
	assert_true(is_all(host + 2 * MIB, 0x66, 2 * MIB));
	/* All of the first page but a piece, and a piece of the second. */
	memory_retire(m, PAGE, 2 * MIB);
	assert_true(is_all(host, 0, 2 * MIB));
	assert_true(is_all(host + 2 * MIB, 0x66, 2 * MIB));
	assert_int_equal(pool("free_hugepages"), free_pages - 2);
	memory_retire(m, 2 * MIB + PAGE, 2 * MIB - PAGE);
	assert_int_equal(pool("free_hugepages"), free_pages - 1);
	assert_true(is_all(host, 0, 2 * MIB));
	assert_true(is_reserved(host + 2 * MIB));
	gpas_memory_put(m);
	assert_int_equal(pool("free_hugepages"), free_pages);
	assert_int_equal(pool("resv_hugepages"), reserved);
}

static void huge_pages_inside_a_reservation(void)
{
	struct gpas_memory_params p = { .kind = GPAS_MEMORY_HUGETLB };
	long free_pages = pool("free_hugepages");
	struct reservation r;
	char *host;

	assert_int_equal(reservation_create(8 * MIB, 6 * MIB, &r), 0);
	host = (char *)r.host + 2 * MIB;
	for (unsigned nth = 1;; nth++) {
		struct gpas_memory *m = NULL;
		int err;

		fail_call(nth, ENOMEM);
		err = memory_create_at(2 * MIB, &p, host, 0, &m);
		if (!call_failed()) {
			assert_int_equal(err, 0);
			host[0] = 1;
			memory_retire(m, 0, 2 * MIB);
			gpas_memory_put(m);
			break;
		}
		assert_int_equal(err, -ENOMEM);
		assert_true(is_reserved(host));
	}
	assert_true(is_reserved(host));
	assert_int_equal(pool("free_hugepages"), free_pages);
	reservation_destroy(&r);
}

/* What the pool had before this program lent it pages, and the lock that keeps
 * another run of it from counting them. */
static struct {
	int lock; /* -1: not held */
	long pages;
} lent = { .lock = -1 };

static int pool_setup(void **state)
{
	setup(state);
	lent.lock = open(POOL_FOLDER "nr_hugepages", O_RDONLY | O_CLOEXEC);
	if (lent.lock < 0) {
		return 0;
	}
	flock(lent.lock, LOCK_EX);
	lent.pages = pool("nr_hugepages");
	pool_resize(lent.pages + 4);
	return 0;
}

static int pool_teardown(void **state)
{
	if (lent.lock >= 0) {
		pool_resize(lent.pages);
		close(lent.lock);
	}
	return teardown(state);
}

/* Needs root, to lend the pool its pages, or a pool that has some. */
static void huge_pages_are_set_aside(void **state)
{
	(void)state;
	if (lent.lock < 0 ||
	    pool("free_hugepages") - pool("resv_hugepages") < 2) {
		skip();
	}
	use_huge_pages();
	huge_pages_inside_a_reservation();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(reservations_are_congruent_and_guarded),
		TEST(reservations_can_be_huge),
		TEST(reservations_beyond_the_address_space_fail),
		TEST(surplus_addresses_are_given_back),
		TEST(creation_validates),
		TEST(sizes_beyond_the_address_space_fail),
		TEST(anonymous_memory_is_zero_and_guarded),
		TEST(addresses_suit_large_leaves),
		TEST(large_memory_costs_only_what_is_touched),
		TEST(memfd_memory_is_shared_through_its_descriptor),
		TEST(shared_files_receive_stores),
		TEST(private_files_keep_their_content),
		TEST(short_files_are_refused),
		TEST(unsuitable_descriptors_are_refused),
		TEST(access_modes_are_honoured),
		TEST(sealed_files_are_not_writable),
		TEST(the_last_put_unmaps),
		TEST(objects_leave_a_reservation_as_it_was),
		TEST(put_leaves_a_successor_alone),
		TEST(fixed_addresses_must_be_aligned),
		TEST(neighbours_are_not_disturbed),
		TEST(discard_validates),
		TEST(discarded_memory_is_zero_and_free),
		TEST(shared_files_are_punched_by_discard_only),
		TEST(files_that_cannot_be_punched_say_so),
		TEST(retired_memory_is_inaccessible_and_free),
		TEST(retiring_cannot_fail),
		TEST(failed_creation_leaves_nothing),
		TEST(mmap_errors_are_the_documented_ones),
		TEST(running_out_of_descriptors),
		TEST(running_out_of_address_space),
		TEST(many_objects_leave_no_mapping),
		TEST(an_empty_pool_is_a_clear_error),
		TEST(a_missing_pool_is_an_empty_one),
		cmocka_unit_test_setup_teardown(huge_pages_are_set_aside,
						pool_setup, pool_teardown),
	};

	return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
