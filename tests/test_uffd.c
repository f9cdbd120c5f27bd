/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory served through userfaultfd: whoever touches the host memory, with
 * or without the library, finds it there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fail.h"
#include "fake_kvm.h"

#define RW GPAS_PROT_RW

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static struct gpas_stats stats_of(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats;
}

/* The host address behind @gpa, present or not. */
static void *host_of(struct gpas *space, uint64_t gpa)
{
	struct gpas_region region;

	assert_int_equal(gpas_region_find(space, at(gpa), &region), 0);
	return (char *)region.host + (gpa - region.start.value);
}

/* What a thread does that knows nothing of the library. */
static uint64_t touch(const void *host)
{
	return __atomic_load_n((const uint64_t *)host, __ATOMIC_RELAXED);
}

static void put(void *host, uint64_t value)
{
	__atomic_store_n((uint64_t *)host, value, __ATOMIC_RELAXED);
}

/*
 * Waits until the server has nothing under way: it wakes a toucher before the
 * table and the counters know of the page. Returns how many granules became
 * present.
 */
static uint64_t populations(struct gpas *space, uint64_t expected)
{
	for (unsigned n = 0; n < 5000; n++) {
		if (stats_of(space).populations >= expected) {
			break;
		}
		usleep(1000);
	}
	return stats_of(space).populations;
}

static bool is_present(struct gpas *space, uint64_t gpa)
{
	struct gpas_translation found;

	return gpas_translate(space, at(gpa), 0, PAGE, &found) == 0;
}

static uint64_t load(struct gpas *space, uint64_t gpa)
{
	uint64_t value = 0;

	assert_int_equal(gpas_load(space, at(gpa), 8, &value), 0);
	return value;
}

static struct gpas_map_params served(enum gpas_memory_kind kind)
{
	struct gpas_map_params params = {
		.lazy = true,
		.mechanism = GPAS_LAZY_UFFD,
		.memory = { .kind = kind },
	};

	return params;
}

/* A space with @pages pages served from @gpa on. */
static struct gpas *open_served(void **state, uint64_t gpa, uint64_t pages,
				const struct gpas_map_params *params)
{
	struct fixture *fixture = *state;
	struct gpas *space = fixture_space(state, 4 * GIB);

	fixture->threads = true;
	assert_int_equal(
		gpas_map_alloc(space, at(gpa), pages * PAGE, RW, params), 0);
	return space;
}

/* A filler with accounts; word 0 of each page is its GPA and one. */
struct writer {
	_Atomic(int) error;
	_Atomic(unsigned) calls;
	_Atomic(unsigned) filled[1024]; /* by page of the space */
};

static int write_content(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	struct writer *writer = ctx;
	int error = atomic_load(&writer->error);

	atomic_fetch_add(&writer->calls, 1);
	for (uint64_t i = 0; i < size && error == 0; i += PAGE) {
		*(uint64_t *)(void *)((char *)host + i) = gpa.value + i + 1;
		atomic_fetch_add(&writer->filled[(gpa.value + i) / PAGE % 1024],
				 1);
	}
	return error;
}

/* ---- touching ----------------------------------------------------------- */

static void pages_come_one_by_one(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };

	for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
		struct gpas_map_params params = served(kinds[i]);
		struct gpas *space;
		char *host;

		params.granule = 4 * KIB;
		space = open_served(state, MIB, 64, &params);
		host = host_of(space, MIB);
		assert_int_equal(stats_of(space).present, 0);
		assert_int_equal(touch(host + 3 * PAGE), 0);
		put(host + 9 * PAGE + 8, 4711);
		assert_int_equal(populations(space, 2), 2);
		assert_true(is_present(space, MIB + 3 * PAGE));
		assert_true(is_present(space, MIB + 9 * PAGE));
		assert_int_equal(stats_of(space).present, 2 * PAGE);
		assert_int_equal(stats_of(space).uffd_faults, 2);
		/* The library's readers find what the thread stored. */
		assert_int_equal(load(space, MIB + 9 * PAGE + 8), 4711);
		assert_int_equal(load(space, MIB + 12 * PAGE), 0);
		/* And what they made present needs no fault any more. */
		assert_int_equal(stats_of(space).uffd_faults, 2);
		assert_int_equal(touch(host + 12 * PAGE), 0);
		assert_int_equal(stats_of(space).uffd_faults, 2);
		assert_int_equal(gpas_check(space), 0);
	}
}

struct toucher {
	pthread_t thread;
	const char *host;
	uint64_t pages;
	uint64_t seed;
	unsigned wrong;
};

static void *touch_all(void *arg)
{
	struct toucher *toucher = arg;

	for (uint64_t n = 0; n < toucher->pages; n++) {
		uint64_t page = (n + toucher->seed) * 7 % toucher->pages;

		toucher->wrong += touch(toucher->host + page * PAGE) !=
				  MIB + page * PAGE + 1;
	}
	return NULL;
}

/* Several threads race for every page: each is provided once. */
static void threads_share_pages(void **state)
{
	static const uint64_t granules[] = { 4 * KIB, 64 * KIB };

	for (size_t i = 0; i < 2 * ARRAY_COUNT(granules); i++) {
		struct writer writer = { 0 };
		struct gpas_map_params params = served(
			i % 2 == 0 ? GPAS_MEMORY_ANON : GPAS_MEMORY_MEMFD);
		struct toucher touchers[4] = { 0 };
		struct gpas *space;

		params.granule = granules[i / 2];
		params.filler = (struct gpas_filler){ write_content, &writer };
		space = open_served(state, MIB, 512, &params);
		for (size_t t = 0; t < ARRAY_COUNT(touchers); t++) {
			touchers[t].host = host_of(space, MIB);
			touchers[t].pages = 512;
			touchers[t].seed = t / 2;
			assert_int_equal(pthread_create(&touchers[t].thread,
							NULL, touch_all,
							&touchers[t]),
					 0);
		}
		for (size_t t = 0; t < ARRAY_COUNT(touchers); t++) {
			pthread_join(touchers[t].thread, NULL);
			assert_int_equal(touchers[t].wrong, 0);
		}
		for (uint64_t page = 256; page < 768; page++) {
			assert_int_equal(writer.filled[page], 1);
		}
		assert_int_equal(stats_of(space).present, 512 * PAGE);
	}
}

/* A page another process put into the file is mapped, not replaced. */
static void existing_pages_are_mapped(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_MEMFD);
	struct gpas *space = open_served(state, MIB, 64, &params);
	struct gpas_region region;
	char *other;

	assert_int_equal(gpas_region_find(space, at(MIB), &region), 0);
	other = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		     region.fd, (off_t)region.fd_offset);
	assert_ptr_not_equal(other, MAP_FAILED);
	put(other + 5 * PAGE, 55);
	put(other + 6 * PAGE, 66);
	put(other + 40 * PAGE, 77);
	assert_int_equal(touch((char *)region.host + 5 * PAGE), 55);
	assert_int_equal(load(space, MIB + 6 * PAGE), 66);
	assert_int_equal(gpas_populate(space, at(MIB), 64 * PAGE), 0);
	assert_int_equal(touch((char *)region.host + 40 * PAGE), 77);
	put((char *)region.host + 41 * PAGE, 88);
	assert_int_equal(touch(other + 41 * PAGE), 88);
	munmap(other, 64 * PAGE);
}

/* ---- failing ------------------------------------------------------------ */

static sigjmp_buf escape;

static void escape_fault(int number)
{
	(void)number;
	siglongjmp(escape, 1);
}

/* Whether touching @host ends in a signal. */
static bool touch_faults(const void *host)
{
	struct sigaction action = { .sa_handler = escape_fault };
	struct sigaction segv;
	struct sigaction bus;
	bool faulted;

	assert_int_equal(sigaction(SIGSEGV, &action, &segv), 0);
	assert_int_equal(sigaction(SIGBUS, &action, &bus), 0);
	faulted = sigsetjmp(escape, 1) != 0;
	if (!faulted) {
		(void)touch(host);
	}
	assert_int_equal(sigaction(SIGSEGV, &segv, NULL), 0);
	assert_int_equal(sigaction(SIGBUS, &bus, NULL), 0);
	return faulted;
}

static void a_filler_fails_the_toucher(void **state)
{
	struct writer writer = { .error = -EREMOTEIO };
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space;
	struct gpas_fault fault;
	uint64_t value;
	char *host;

	params.granule = 4 * KIB;
	params.filler = (struct gpas_filler){ write_content, &writer };
	space = open_served(state, MIB, 64, &params);
	host = host_of(space, MIB);
	assert_int_equal(gpas_load(space, at(MIB), 8, &value), -EREMOTEIO);
	assert_int_equal(gpas_fault(space, at(MIB), 0, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -EREMOTEIO);
	assert_int_equal(stats_of(space).present, 0);
	/* Those went through the library, this one does not. */
	writer.error = 0;
	assert_int_equal(touch(host), MIB + 1);
	writer.error = -EIO;
	assert_true(touch_faults(host + 7 * PAGE));
	assert_false(is_present(space, MIB + 7 * PAGE));
	assert_int_equal(stats_of(space).present, PAGE);
	assert_int_equal(gpas_check(space), 0);
}

/* Once the filler works again the library can be used on the page that
 * failed. */
static void a_failed_page_can_be_had_later(void **state)
{
	struct writer writer = { .error = -EIO };
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas_translation found;
	struct gpas *space;
	char *host;

	params.granule = 4 * KIB;
	params.filler = (struct gpas_filler){ write_content, &writer };
	space = open_served(state, MIB, 64, &params);
	host = host_of(space, MIB);
	assert_true(touch_faults(host + 7 * PAGE));
	writer.error = 0;
	assert_int_equal(gpas_populate(space, at(MIB + 7 * PAGE), PAGE), 0);
	assert_int_equal(
		gpas_translate(space, at(MIB + 7 * PAGE), 0, PAGE, &found), 0);
	assert_false(touch_faults(found.host));
	assert_int_equal(load(space, MIB + 7 * PAGE), MIB + 7 * PAGE + 1);
	assert_int_equal(touch(host + 8 * PAGE), MIB + 8 * PAGE + 1);
}

/* However many pages fail, nobody waits for ever. */
static void many_pages_can_fail(void **state)
{
	struct writer writer = { .error = -EIO };
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space;
	char *host;

	params.granule = 4 * KIB;
	params.filler = (struct gpas_filler){ write_content, &writer };
	space = open_served(state, MIB, 256, &params);
	host = host_of(space, MIB);
	alarm(20);
	for (uint64_t page = 0; page < 256; page += 2) {
		assert_true(touch_faults(host + page * PAGE));
	}
	alarm(0);
}

/* ---- giving back, taking away ------------------------------------------- */

static void discarded_pages_come_again(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };

	for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
		struct writer writer = { 0 };
		struct gpas_map_params params = served(kinds[i]);
		struct gpas *space;
		char *host;

		params.granule = 4 * KIB;
		params.filler = (struct gpas_filler){ write_content, &writer };
		space = open_served(state, MIB, 64, &params);
		host = host_of(space, MIB);
		for (uint64_t page = 0; page < 64; page++) {
			put(host + page * PAGE, page);
		}
		assert_int_equal(
			gpas_discard(space, at(MIB + 8 * PAGE), 8 * PAGE), 0);
		assert_int_equal(stats_of(space).present, 56 * PAGE);
		assert_int_equal(stats_of(space).discarded, 8 * PAGE);
		assert_int_equal(touch(host + 7 * PAGE), 7);
		assert_int_equal(touch(host + 8 * PAGE), MIB + 8 * PAGE + 1);
		assert_int_equal(load(space, MIB + 9 * PAGE),
				 MIB + 9 * PAGE + 1);
		assert_int_equal(touch(host + 16 * PAGE), 16);
		assert_int_equal(stats_of(space).present, 58 * PAGE);
		assert_int_equal(writer.filled[256 + 8], 2);
		assert_int_equal(writer.filled[256 + 10], 1);
	}
}

struct worker {
	pthread_t thread;
	struct gpas *space;
	char *host;
	uint64_t pages;
	_Atomic(bool) stop;
	uint64_t touched;
};

static void *keep_touching(void *arg)
{
	struct worker *worker = arg;
	uint64_t random = 99;

	while (!atomic_load(&worker->stop)) {
		uint64_t page = next_random(&random) % worker->pages;

		put(worker->host + page * PAGE, page);
		worker->touched++;
	}
	return NULL;
}

/* Regions come and go, and the pages a thread works on are discarded, all the
 * while. */
static void others_come_and_go(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space = open_served(state, MIB, 128, &params);
	struct worker workers[2] = { 0 };
	unsigned rounds = SANITIZED ? 50 : 300;

	for (size_t i = 0; i < 2; i++) {
		workers[i].space = space;
		workers[i].host = host_of(space, MIB);
		workers[i].pages = 128;
		assert_int_equal(pthread_create(&workers[i].thread, NULL,
						keep_touching, &workers[i]),
				 0);
	}
	for (unsigned n = 0; n < rounds; n++) {
		uint64_t gpa = 16 * MIB + n % 4 * MIB;

		params.memory.kind =
			n % 2 == 0 ? GPAS_MEMORY_ANON : GPAS_MEMORY_MEMFD;
		assert_int_equal(
			gpas_map_alloc(space, at(gpa), 64 * PAGE, RW, &params),
			0);
		put((char *)host_of(space, gpa) + n % 64 * PAGE, n + 1);
		assert_int_equal(load(space, gpa + n % 64 * PAGE), n + 1);
		assert_int_equal(
			gpas_discard(space, at(MIB + n % 64 * PAGE), 64 * PAGE),
			0);
		assert_int_equal(gpas_unmap(space, at(gpa), 64 * PAGE), 0);
	}
	for (size_t i = 0; i < 2; i++) {
		atomic_store(&workers[i].stop, true);
		pthread_join(workers[i].thread, NULL);
		assert_true(workers[i].touched > 0);
	}
	assert_int_equal(stats_of(space).regions, 1);
	assert_int_equal(gpas_check(space), 0);
}

/* A part of a region goes, the rest is served on. */
static void the_rest_of_a_region_is_served(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space;
	char *host;

	params.granule = 16 * PAGE;
	space = open_served(state, MIB, 64, &params);
	host = host_of(space, MIB);
	put(host, 1);
	assert_int_equal(gpas_unmap(space, at(MIB + 20 * PAGE), 8 * PAGE), 0);
	put(host + 19 * PAGE, 19);
	put(host + 28 * PAGE, 28);
	assert_int_equal(stats_of(space).present, (16 + 4 + 4) * PAGE);
	assert_true(touch_faults(host + 21 * PAGE));
	/* What is mapped into the gap is ordinary. */
	assert_int_equal(
		gpas_map_alloc(space, at(MIB + 20 * PAGE), 8 * PAGE, RW, NULL),
		0);
	assert_int_equal(load(space, MIB + 21 * PAGE), 0);
	assert_int_equal(load(space, MIB + 19 * PAGE), 19);
	assert_int_equal(load(space, MIB + 28 * PAGE), 28);
}

static void permission_is_kept(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space;
	char *host;

	params.granule = 4 * KIB;
	space = open_served(state, MIB, 64, &params);
	host = host_of(space, MIB);
	put(host + PAGE, 1);
	assert_int_equal(gpas_protect(space, at(MIB), 8 * PAGE, GPAS_PROT_READ),
			 0);
	assert_int_equal(touch(host + 2 * PAGE), 0);
	assert_int_equal(gpas_store(space, at(MIB + 2 * PAGE), 8, 1), -EACCES);
	assert_int_equal(gpas_store(space, at(MIB + 3 * PAGE), 8, 1), -EACCES);
	assert_int_equal(load(space, MIB + PAGE), 1);
	assert_int_equal(gpas_protect(space, at(MIB), 8 * PAGE, GPAS_PROT_NONE),
			 0);
	assert_false(is_present(space, MIB + 4 * PAGE));
	assert_int_equal(gpas_protect(space, at(MIB), 64 * PAGE, RW), 0);
	assert_int_equal(load(space, MIB + PAGE), 1);
	put(host + 4 * PAGE, 4);
	assert_int_equal(load(space, MIB + 4 * PAGE), 4);
	assert_int_equal(stats_of(space).regions, 1);
}

static void an_aborted_group_leaves_content(void **state)
{
	struct writer writer = { 0 };
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas *space;

	params.granule = 4 * KIB;
	params.filler = (struct gpas_filler){ write_content, &writer };
	space = open_served(state, MIB, 64, &params);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_populate(space, at(MIB), 2 * PAGE), 0);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(stats_of(space).present, 0);
	assert_int_equal(load(space, MIB + PAGE), MIB + PAGE + 1);
	assert_int_equal(touch(host_of(space, MIB)), MIB + 1);
	/* One that maps such a region and is given up. */
	assert_int_equal(gpas_begin(space), 0);
	params.filler.fill = NULL;
	assert_int_equal(gpas_map_alloc(space, at(64 * MIB), MIB, RW, &params),
			 0);
	assert_int_equal(load(space, 64 * MIB), 0);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(stats_of(space).regions, 1);
}

static void prefaulting_works_here_too(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_MEMFD);
	struct gpas_prefault_params two = { .threads = 2 };
	struct gpas *space = open_served(state, MIB, 2048, &params);
	uint64_t faults;

	assert_int_equal(gpas_prefault(space, at(MIB), 2048 * PAGE, &two), 0);
	faults = stats_of(space).uffd_faults;
	for (uint64_t page = 0; page < 2048; page++) {
		put((char *)host_of(space, MIB) + page * PAGE, page);
	}
	assert_int_equal(stats_of(space).uffd_faults, faults);
	assert_int_equal(stats_of(space).present, 2048 * PAGE);
}

/* ---- beside the other mechanisms ---------------------------------------- */

static void mix(void **state, enum gpas_lazy lazy)
{
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas_map_params other = { .lazy = true };
	struct gpas_kvm_params attach = { .lazy = lazy };
	struct gpas *space = open_served(state, MIB, 256, &params);
	const struct slot_desc *slot;
	struct fake_kvm kvm;
	uint64_t host;
	char *memory;

	fake_kvm_init(&kvm);
	assert_int_equal(gpas_map_alloc(space, at(64 * MIB), MIB, RW, &other),
			 0);
	assert_int_equal(fake_kvm_attach(&kvm, space, &attach), 0);
	memory = host_of(space, MIB);
	/* One slot from the start, where nothing is present. */
	slot = fake_kvm_find(&kvm, MIB);
	assert_non_null(slot);
	assert_int_equal(slot->size, 256 * PAGE);
	assert_int_equal(fake_kvm_translate(&kvm, MIB + 9 * PAGE, &host),
			 FAKE_WRITABLE);
	assert_int_equal(host, gpas_hva_of(memory + 9 * PAGE).value);
	assert_int_equal(fake_kvm_translate(&kvm, 64 * MIB, &host),
			 lazy == GPAS_LAZY_TRAP ? FAKE_TRAP : FAKE_NONE);
	/* No touch there changes a slot, while the others' do. */
	fake_kvm_mark(&kvm);
	put(memory + 9 * PAGE, 1);
	assert_int_equal(gpas_discard(space, at(MIB), 64 * PAGE), 0);
	put(memory + 9 * PAGE, 1);
	assert_int_equal(kvm.calls, 0);
	assert_int_equal(load(space, 64 * MIB), 0);
	assert_true(kvm.calls > 0);
	assert_int_equal(fake_kvm_translate(&kvm, 64 * MIB, &host),
			 FAKE_WRITABLE);
	assert_int_equal(
		gpas_protect(space, at(MIB), 16 * PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(fake_kvm_translate(&kvm, MIB, &host), FAKE_READ_ONLY);
	assert_int_equal(
		gpas_protect(space, at(MIB), 16 * PAGE, GPAS_PROT_NONE), 0);
	assert_int_equal(fake_kvm_translate(&kvm, MIB, &host), FAKE_NONE);
	assert_int_equal(gpas_check(space), 0);
	assert_null(kvm.mistake);
	fixture_close(state);
	assert_int_equal(fake_kvm_slots(&kvm, NULL), 0);
	fake_kvm_fini(&kvm);
}

static void mechanisms_mix(void **state)
{
	mix(state, GPAS_LAZY_TRAP);
	mix(state, GPAS_LAZY_ABSENT);
}

/* ---- refusals ----------------------------------------------------------- */

static void nonsense_is_refused(void **state)
{
	struct gpas_map_params params = served(GPAS_MEMORY_HUGETLB);
	struct gpas_backend backend;
	struct ledger ledger;
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), 2 * MIB, RW, &params),
			 -EOPNOTSUPP);
	params = served(GPAS_MEMORY_FILE);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params),
			 -EOPNOTSUPP);
	params = served(GPAS_MEMORY_ANON);
	ledger_open(&ledger, 8, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 8 * PAGE, RW, &backend, &params),
		-EOPNOTSUPP);
	ledger_close(&ledger);
	params.lazy = false;
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params),
			 -EINVAL);
	assert_int_equal(stats_of(space).regions, 0);
}

/* In a process without privileges: what it is told. Returns 0 when it is as it
 * should be. */
static int try_unprivileged(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_map_params params = served(GPAS_MEMORY_ANON);
	struct gpas_map_params other = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	uint64_t value = 1;
	int err;

	if (setgid(65534) != 0 || setuid(65534) != 0) {
		return 77;
	}
	err = gpas_map_alloc(space, at(0), MIB, RW, &params);
	if (err == 0) {
		return 77; /* the sysctl allows it to everyone */
	}
	if ((err != -EPERM && err != -EACCES) || fixture->log_lines != 1 ||
	    fixture->log_level != GPAS_LOG_ERROR ||
	    strstr(fixture->log_line, "/dev/userfaultfd: Permission denied") ==
		    NULL ||
	    strstr(fixture->log_line, "system call: Operation not permitted") ==
		    NULL ||
	    strstr(fixture->log_line, "vm.unprivileged_userfaultfd") == NULL) {
		return 1;
	}
	if (stats_of(space).regions != 0 || gpas_check(space) != 0 ||
	    gpas_map_alloc(space, at(0), MIB, RW, &other) != 0 ||
	    gpas_load(space, at(0), 8, &value) != 0 || value != 0) {
		return 2;
	}
	return 0;
}

static void a_refusal_says_what_to_do(void **state)
{
	pid_t child;
	int status = 0;

	if (THREAD_SANITIZED || getuid() != 0) {
		skip();
	}
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		_exit(try_unprivileged(state));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Whether this process may use userfaultfd at all. */
static bool is_available(void)
{
	struct gpas_params params = { .size = GIB };
	struct gpas_map_params map = served(GPAS_MEMORY_ANON);
	struct gpas *space;
	int err = gpas_create(&params, &space);

	if (err == 0) {
		err = gpas_map_alloc(space, at(0), MIB, RW, &map);
		gpas_destroy(space);
	}
	return err == 0;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(pages_come_one_by_one),
		fixture_test(threads_share_pages),
		fixture_test(existing_pages_are_mapped),
		fixture_test(a_filler_fails_the_toucher),
		fixture_test(a_failed_page_can_be_had_later),
		fixture_test(many_pages_can_fail),
		fixture_test(discarded_pages_come_again),
		fixture_test(others_come_and_go),
		fixture_test(the_rest_of_a_region_is_served),
		fixture_test(permission_is_kept),
		fixture_test(an_aborted_group_leaves_content),
		fixture_test(prefaulting_works_here_too),
		fixture_test(mechanisms_mix),
		fixture_test(nonsense_is_refused),
		fixture_test(a_refusal_says_what_to_do),
	};

	if (!is_available()) {
		(void)fprintf(stderr, "no userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
