/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory beyond the first touch: fillers, giving memory back, prefaulting,
 * the budget, and regions served through userfaultfd.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fail.h"

#define RW GPAS_PROT_RW

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

static uint64_t present_bytes(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.present;
}

static uint64_t load(struct gpas *space, uint64_t gpa)
{
	uint64_t value = UINT64_MAX;

	assert_int_equal(gpas_load(space, at(gpa), 8, &value), 0);
	return value;
}

/* ---- fillers ------------------------------------------------------------ */

/* Writes each page's GPA into its first word, sparsely: the rest has to be
 * zero already. Fails at the page of @fail_gpa. */
struct writer {
	atomic_uint calls;
	uint64_t fail_gpa;
	bool saw_dirt;
};

static int write_pages(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	struct writer *writer = ctx;

	writer->calls++;
	writer->saw_dirt = writer->saw_dirt || !is_all(host, 0, size);
	for (uint64_t i = 0; i < size; i += PAGE) {
		uint64_t *word = (uint64_t *)(void *)((char *)host + i);

		if (gpa.value + i == writer->fail_gpa) {
			return -EREMOTEIO;
		}
		*word = gpa.value + i + 1;
	}
	return 0;
}

static struct gpas_map_params filled_by(struct writer *writer)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = 4 * PAGE,
		.filler = { write_pages, writer },
	};

	return params;
}

static void fillers_supply_the_content(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct writer writer = { .fail_gpa = UINT64_MAX };
	struct gpas_map_params params = filled_by(&writer);

	assert_int_equal(
		gpas_map_alloc(space, at(MIB + PAGE), MIB, RW, &params), 0);
	assert_int_equal(writer.calls, 0);
	for (uint64_t gpa = MIB + PAGE; gpa < 2 * MIB + PAGE; gpa += PAGE) {
		assert_int_equal(load(space, gpa), gpa + 1);
	}
	assert_int_equal(writer.calls, 65);
	assert_int_equal(gpas_store(space, at(MIB + PAGE), 8, 5), 0);
	assert_int_equal(gpas_populate(space, at(MIB + PAGE), MIB), 0);
	assert_int_equal(writer.calls, 65);
	assert_int_equal(load(space, MIB + PAGE), 5);
	/* What was given back is filled again. */
	assert_int_equal(gpas_discard(space, at(MIB + PAGE), PAGE), 0);
	assert_int_equal(load(space, MIB + PAGE), MIB + PAGE + 1);
	assert_int_equal(writer.calls, 66);
	assert_false(writer.saw_dirt);
}

static void fillers_are_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct writer writer = { 0 };
	struct gpas_map_params params = filled_by(&writer);

	params.lazy = false;
	params.granule = 0;
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params),
			 -EINVAL);
	params = filled_by(&writer);
	params.memory.kind = GPAS_MEMORY_FILE;
	params.memory.shared = true;
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params),
			 -EINVAL);
}

/* Memory that a failed call had filled arrives zeroed the next time, too. */
static void a_filler_that_fails_leaves_nothing(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct writer writer = { .fail_gpa = 9 * PAGE };
	struct gpas_map_params params = filled_by(&writer);
	struct gpas_fault fault;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params), 0);
	assert_int_equal(gpas_fault(space, at(10 * PAGE), RW, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -EREMOTEIO);
	assert_int_equal(present_bytes(space), 0);
	/* Two holes: the first is filled before the second one fails. */
	assert_int_equal(load(space, 4 * PAGE), 4 * PAGE + 1);
	assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), -EREMOTEIO);
	assert_int_equal(present_bytes(space), 4 * PAGE);
	writer.fail_gpa = UINT64_MAX;
	assert_int_equal(gpas_populate(space, at(0), 16 * PAGE), 0);
	assert_int_equal(load(space, 9 * PAGE), 9 * PAGE + 1);
	assert_false(writer.saw_dirt);
}

/* What can be provided is accessed up to the piece that cannot. */
static void an_access_gets_as_far_as_it_can(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct writer writer = { .fail_gpa = 33 * PAGE };
	struct gpas_map_params params = filled_by(&writer);
	static uint8_t bytes[64 * GPAS_PAGE_BYTES];
	size_t done = 0;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params), 0);
	assert_int_equal(gpas_read(space, at(0), bytes, sizeof(bytes), &done),
			 -EREMOTEIO);
	assert_int_equal(done, 32 * PAGE);
}

/* ---- giving back -------------------------------------------------------- */

static void discarding_gives_memory_back(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };
	struct gpas *space = fixture_space(state, GIB);

	for (unsigned n = 0; n < 4; n++) {
		struct gpas_map_params params = { .lazy = n / 2 == 0 };
		struct gpas_region region;
		struct gpas_stats before;
		struct gpas_stats after;
		unsigned char resident[256];

		gpas_stats(space, &before);
		params.memory.kind = kinds[n % 2];
		assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &params),
				 0);
		assert_int_equal(gpas_fill(space, at(0), 0x77, MIB, NULL), 0);
		assert_int_equal(gpas_discard(space, at(PAGE), MIB - 2 * PAGE),
				 0);
		assert_int_equal(present_bytes(space),
				 params.lazy ? 2 * PAGE : MIB);
		assert_int_equal(gpas_region_find(space, at(0), &region), 0);
		assert_int_equal(region.size, MIB);
		assert_int_equal(mincore(region.host, MIB, resident), 0);
		assert_int_equal(resident[1] & 1, 0);
		assert_int_equal(resident[255] & 1, 1);
		assert_int_equal(load(space, PAGE), 0);
		assert_int_equal(load(space, MIB - PAGE - 8), 0);
		assert_int_equal(load(space, PAGE - 8) & 0xff, 0x77);
		assert_int_equal(load(space, MIB - PAGE) & 0xff, 0x77);
		gpas_stats(space, &after);
		assert_int_equal(after.discards, before.discards + 1);
		assert_int_equal(after.discarded,
				 before.discarded + MIB - 2 * PAGE);
		assert_int_equal(gpas_check(space), 0);
		assert_int_equal(gpas_clear(space), 0);
	}
}

static int no_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

static void refuse(struct gpas *space, uint64_t gpa, uint64_t size, int error)
{
	char *before = space_text(space);
	char *after;

	assert_int_equal(gpas_discard(space, at(gpa), size), error);
	after = space_text(space);
	assert_string_equal(before, after);
	free(before);
	free(after);
}

static void discarding_is_refused(void **state)
{
	const struct gpas_device device = { .access = no_access };
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct gpas_memory *memory;
	struct ledger ledger;

	assert_int_equal(gpas_memory_create(MIB, NULL, &memory), 0);
	ledger_open(&ledger, 16, 1);
	backend = ledger_backend(&ledger);
	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, &lazy), 0);
	assert_int_equal(gpas_fill(space, at(0), 1, MIB, NULL), 0);
	assert_int_equal(gpas_map_linear(space, at(MIB), MIB / 2,
					 gpas_memory_host(memory), RW, NULL),
			 0);
	assert_int_equal(
		gpas_map_memory(space, at(2 * MIB), MIB, RW, memory, 0, NULL),
		0);
	assert_int_equal(gpas_map_device(space, at(3 * MIB), MIB, &device), 0);
	assert_int_equal(gpas_map_backend(space, at(4 * MIB), 16 * PAGE, RW,
					  &backend, NULL),
			 0);
	refuse(space, 1, PAGE, -EINVAL);
	refuse(space, 0, 0, -EINVAL);
	refuse(space, GIB, PAGE, -EINVAL);
	refuse(space, 0, MIB + PAGE, -EOPNOTSUPP);
	refuse(space, MIB + MIB / 2 - PAGE, 2 * PAGE, -EOPNOTSUPP);
	refuse(space, MIB + MIB / 2, PAGE, -ENOENT);
	refuse(space, 2 * MIB, PAGE, -EOPNOTSUPP);
	refuse(space, 3 * MIB, PAGE, -EOPNOTSUPP);
	refuse(space, 4 * MIB, PAGE, -EOPNOTSUPP);
	refuse(space, 5 * MIB, PAGE, -ENOENT);
	assert_int_equal(gpas_begin(space), 0);
	refuse(space, 0, PAGE, -EBUSY);
	assert_int_equal(gpas_commit(space), 0);
	assert_int_equal(load(space, 0) & 0xff, 1);
	fixture_close(state);
	ledger_close(&ledger);
	gpas_memory_put(memory);
}

static void lazy_backends_give_back_and_provide_again(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 4 * PAGE };
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_backend backend;
	struct ledger ledger;

	ledger_open(&ledger, 16, 2);
	backend = ledger_backend(&ledger);
	assert_int_equal(
		gpas_map_backend(space, at(0), 16 * PAGE, RW, &backend, &lazy),
		0);
	assert_int_equal(gpas_populate(space, at(0), 8 * PAGE), 0);
	assert_int_equal(gpas_discard(space, at(4 * PAGE), 8 * PAGE), 0);
	assert_int_equal(present_bytes(space), 4 * PAGE);
	assert_true(ledger_pages_are(&ledger, 4, 8, 1, 1));
	assert_int_equal(load(space, 5 * PAGE) & 0xff, ledger_byte(5));
	assert_true(ledger_pages_are(&ledger, 4, 8, 2, 1));
	fixture_close(state);
	assert_true(ledger_pages_are(&ledger, 0, 4, 1, 1));
	assert_false(ledger_is_held(&ledger));
	assert_int_equal(ledger.releases, 1);
	ledger_close(&ledger);
}

/* ---- prefaulting -------------------------------------------------------- */

struct progress {
	unsigned calls;
	uint64_t last;
	uint64_t total;
	int answer;
};

static int note_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct progress *progress = ctx;

	progress->calls++;
	assert_true(done >= progress->last && done <= total);
	progress->last = done;
	progress->total = total;
	return progress->answer;
}

static void prefaulting_commits_the_pages(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct fixture *fixture = *state;

	fixture->threads = true;
	for (unsigned threads = 0; threads < 5; threads++) {
		struct gpas_map_params lazy = { .lazy = threads % 2 == 0 };
		struct progress progress = { 0 };
		struct gpas_prefault_params params = {
			.threads = threads,
			.progress = note_progress,
			.progress_ctx = &progress,
		};
		static unsigned char resident[16 * MIB / GPAS_PAGE_BYTES];
		struct gpas_region region;

		assert_int_equal(
			gpas_map_alloc(space, at(PAGE), 16 * MIB, RW, &lazy),
			0);
		assert_int_equal(
			gpas_prefault(space, at(PAGE), 16 * MIB, &params), 0);
		assert_true(progress.calls > 0);
		assert_int_equal(progress.last, 16 * MIB);
		assert_int_equal(progress.total, 16 * MIB);
		assert_int_equal(gpas_region_find(space, at(PAGE), &region), 0);
		assert_int_equal(region.present, 16 * MIB);
		assert_int_equal(mincore(region.host, 16 * MIB, resident), 0);
		for (size_t i = 0; i < sizeof(resident); i++) {
			assert_int_equal(resident[i] & 1, 1);
		}
		assert_int_equal(gpas_clear(space), 0);
	}
}

static void prefaulting_is_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct gpas_prefault_params params = { .threads = 65 };
	struct progress progress = { .answer = 7 };

	assert_int_equal(gpas_map_alloc(space, at(0), 64 * MIB, RW, NULL), 0);
	assert_int_equal(gpas_prefault(space, at(0), MIB, &params), -EINVAL);
	assert_int_equal(gpas_prefault(space, at(1), MIB, NULL), -EINVAL);
	assert_int_equal(gpas_prefault(space, at(0), 0, NULL), -EINVAL);
	assert_int_equal(gpas_prefault(space, at(63 * MIB), 2 * MIB, NULL),
			 -ENOENT);
	params = (struct gpas_prefault_params){
		.progress = note_progress,
		.progress_ctx = &progress,
	};
	assert_int_equal(gpas_prefault(space, at(0), 64 * MIB, &params), 7);
	assert_true(progress.last < 64 * MIB);
	/* Without access there is nothing to commit, and no error. */
	assert_int_equal(gpas_protect(space, at(0), MIB, GPAS_PROT_NONE), 0);
	assert_int_equal(gpas_prefault(space, at(0), 2 * MIB, NULL), 0);
}

/* ---- the budget --------------------------------------------------------- */

struct pressure {
	unsigned calls;
	uint64_t wanted;
	uint64_t give_back; /* GPA of what it discards; none: UINT64_MAX */
	int answer;
};

static int relieve(void *ctx, struct gpas *space, uint64_t wanted)
{
	struct pressure *pressure = ctx;

	pressure->calls++;
	pressure->wanted = wanted;
	if (pressure->give_back != UINT64_MAX) {
		assert_int_equal(
			gpas_discard(space, at(pressure->give_back), 256 * KIB),
			0);
		pressure->give_back += 256 * KIB;
	}
	return pressure->answer;
}

static uint64_t charged(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.charged;
}

static struct gpas *budgeted_space(void **state, struct pressure *pressure)
{
	struct gpas_params params = {
		.size = GIB,
		.format = GPAS_FORMAT_EPT_4,
		.budget = MIB,
		.pressure = relieve,
		.pressure_ctx = pressure,
	};

	return fixture_open(state, &params);
}

static void the_budget_is_kept(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 64 * KIB };
	struct pressure pressure = { .give_back = UINT64_MAX,
				     .answer = -ENOMEM };
	struct gpas *space = budgeted_space(state, &pressure);
	struct gpas_fault fault;
	uint64_t value;

	assert_int_equal(gpas_map_alloc(space, at(0), MIB + PAGE, RW, NULL),
			 -ENOMEM);
	assert_int_equal(charged(space), 0);
	assert_int_equal(gpas_map_alloc(space, at(0), 8 * MIB, RW, &lazy), 0);
	for (uint64_t gpa = 0; gpa < MIB; gpa += 64 * KIB) {
		assert_int_equal(gpas_store(space, at(gpa), 8, gpa), 0);
	}
	assert_int_equal(charged(space), MIB);
	assert_int_equal(pressure.calls, 0);
	assert_int_equal(gpas_fault(space, at(MIB), RW, &fault), 0);
	assert_int_equal(fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(fault.error, -ENOMEM);
	assert_int_equal(pressure.calls, 1);
	assert_int_equal(pressure.wanted, 64 * KIB);
	assert_int_equal(gpas_load(space, at(MIB), 8, &value), -ENOMEM);
	assert_int_equal(charged(space), MIB);
	/* Room is made by anything that leaves. */
	assert_int_equal(gpas_unmap(space, at(0), 64 * KIB + PAGE), 0);
	assert_int_equal(charged(space), MIB - 64 * KIB - PAGE);
	assert_int_equal(load(space, MIB), 0);
	assert_int_equal(charged(space), MIB - PAGE);
	assert_int_equal(gpas_begin(space), 0);
	assert_int_equal(gpas_unmap(space, at(PAGE), 8 * MIB - PAGE), 0);
	assert_int_equal(charged(space), 0);
	assert_int_equal(gpas_abort(space), 0);
	assert_int_equal(charged(space), MIB - PAGE);
	assert_int_equal(gpas_clear(space), 0);
	assert_int_equal(charged(space), 0);
}

static void pressure_makes_room(void **state)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = 64 * KIB };
	struct pressure pressure = { .give_back = 0 };
	struct gpas *space = budgeted_space(state, &pressure);
	struct gpas_stats stats;

	assert_int_equal(gpas_map_alloc(space, at(0), 8 * MIB, RW, &lazy), 0);
	for (uint64_t gpa = 0; gpa < 8 * MIB; gpa += PAGE) {
		assert_int_equal(gpas_store(space, at(gpa), 8, gpa), 0);
		assert_true(charged(space) <= MIB);
	}
	assert_int_equal(pressure.calls, 28);
	gpas_stats(space, &stats);
	assert_int_equal(stats.pressure, 28);
	assert_int_equal(stats.charged, stats.present);
	/* A callback that claims success without any is not asked for ever. */
	pressure = (struct pressure){ .give_back = UINT64_MAX };
	assert_int_equal(gpas_store(space, at(0), 8, 1), -ENOMEM);
	assert_true(pressure.calls > 0 && pressure.calls < 100);
}

static void without_a_budget_nothing_is_charged_wrongly(void **state)
{
	struct gpas *space = fixture_space(state, GIB);

	assert_int_equal(gpas_map_alloc(space, at(0), MIB, RW, NULL), 0);
	assert_int_equal(gpas_clear(space), 0);
	assert_int_equal(charged(space), 0);
}

/* ---- userfaultfd -------------------------------------------------------- */

/* False where the host does not allow it. */
static bool map_served(struct gpas *space, enum gpas_memory_kind kind,
		       struct writer *writer)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = PAGE,
		.mechanism = GPAS_LAZY_UFFD,
	};
	int err;

	params.memory.kind = kind;
	if (writer != NULL) {
		params.filler.fill = write_pages;
		params.filler.ctx = writer;
	}
	err = gpas_map_alloc(space, at(MIB), MIB, RW, &params);
	if (err != 0) {
		print_message("no userfaultfd: %d\n", err);
		assert_true(err == -EPERM || err == -ENOSYS || err == -EACCES);
		assert_int_equal(present_bytes(space), 0);
	}
	return err == 0;
}

static void touches_of_served_memory_are_seen(void **state)
{
	static const enum gpas_memory_kind kinds[] = { GPAS_MEMORY_ANON,
						       GPAS_MEMORY_MEMFD };
	struct gpas *space = fixture_space(state, GIB);
	struct fixture *fixture = *state;

	fixture->threads = true;
	for (unsigned n = 0; n < 4; n++) {
		struct writer writer = { .fail_gpa = UINT64_MAX };
		struct gpas_region region;
		volatile uint64_t *word;
		bool fills = n / 2 != 0;

		if (!map_served(space, kinds[n % 2], fills ? &writer : NULL)) {
			return;
		}
		assert_int_equal(gpas_region_find(space, at(MIB), &region), 0);
		assert_int_equal(region.present, 0);
		/* From the host's side, as a vCPU does. */
		word = (uint64_t *)(void *)((char *)region.host + 5 * PAGE);
		assert_int_equal(*word, fills ? MIB + 5 * PAGE + 1 : 0);
		assert_int_equal(present_bytes(space), PAGE);
		*word = 44;
		assert_int_equal(load(space, MIB + 5 * PAGE), 44);
		/* And from the space's, unmapped in part and given back. */
		assert_int_equal(load(space, MIB + 9 * PAGE),
				 fills ? MIB + 9 * PAGE + 1 : 0);
		assert_int_equal(gpas_unmap(space, at(MIB + 7 * PAGE), PAGE),
				 0);
		assert_int_equal(gpas_discard(space, at(MIB), 7 * PAGE), 0);
		assert_int_equal(present_bytes(space), PAGE);
		assert_int_equal(*word, fills ? MIB + 5 * PAGE + 1 : 0);
		assert_int_equal(gpas_populate(space, at(MIB), 7 * PAGE), 0);
		assert_int_equal(gpas_check(space), 0);
		assert_false(writer.saw_dirt);
		assert_int_equal(gpas_unmap(space, at(MIB), MIB), 0);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(fillers_supply_the_content),
		fixture_test(fillers_are_refused),
		fixture_test(a_filler_that_fails_leaves_nothing),
		fixture_test(an_access_gets_as_far_as_it_can),
		fixture_test(discarding_gives_memory_back),
		fixture_test(discarding_is_refused),
		fixture_test(lazy_backends_give_back_and_provide_again),
		fixture_test(prefaulting_commits_the_pages),
		fixture_test(prefaulting_is_refused),
		fixture_test(the_budget_is_kept),
		fixture_test(pressure_makes_room),
		fixture_test(without_a_budget_nothing_is_charged_wrongly),
		fixture_test(touches_of_served_memory_are_seen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
