/* SPDX-License-Identifier: MIT */
/*
 * What is counted rather than timed: the slot ioctls of a change beside the
 * fewest that lead from the slots before to those after, and table pages left
 * over. On the KVM of the unit tests, so it runs anywhere; test_mirror.c also
 * tries, by brute force, every other set of slots.
 */
#include "bench.h"
#include "fake_kvm.h"

#include <stdlib.h>
#include <string.h>

#define PAGE   GPAS_PAGE_BYTES
#define WINDOW 64 /* pages that random calls are about */
#define CALLS  1000
#define HOST   (UINT64_C(1) << 40)

struct counted {
	struct fake_kvm kvm;
	struct gpas *space;
	struct slot_desc old[2 * WINDOW];
	unsigned old_count;
	uint64_t ioctls;
	uint64_t fewest;
};

static void open_counted(struct counted *counted)
{
	const struct gpas_kvm_params params = { .lazy = GPAS_LAZY_ABSENT };

	*counted = (struct counted){ .space = bench_space() };
	fake_kvm_init(&counted->kvm);
	bench_must(fake_kvm_attach(&counted->kvm, counted->space, &params),
		   "attaching");
}

static void close_counted(struct counted *counted)
{
	gpas_destroy(counted->space);
	fake_kvm_fini(&counted->kvm);
}

/* ---- Slots --------------------------------------------------------------- */

static bool is_same(const struct slot_desc *a, const struct slot_desc *b)
{
	return a->gpa == b->gpa && a->size == b->size && a->host == b->host &&
	       a->flags == b->flags && a->trap == b->trap;
}

static bool was_there(const struct counted *counted,
		      const struct slot_desc *slot)
{
	for (unsigned i = 0; i < counted->old_count; i++) {
		if (is_same(&counted->old[i], slot)) {
			return true;
		}
	}
	return false;
}

static void before(struct counted *counted)
{
	counted->old_count = 0;
	for (uint32_t id = 0; id < counted->kvm.top; id++) {
		if (counted->kvm.slots[id].size != 0) {
			counted->old[counted->old_count++] =
				counted->kvm.slots[id];
		}
	}
	fake_kvm_mark(&counted->kvm);
}

/* A slot that is in both needs nothing, any other one ioctl. */
static void after(struct counted *counted)
{
	unsigned kept = 0;
	unsigned now = 0;

	for (uint32_t id = 0; id < counted->kvm.top; id++) {
		if (counted->kvm.slots[id].size != 0) {
			now++;
			kept += was_there(counted, &counted->kvm.slots[id]);
		}
	}
	counted->ioctls += counted->kvm.calls;
	counted->fewest += now - kept + counted->old_count - kept;
}

static void report_ioctls(struct bench *bench, struct counted *counted,
			  const char *name)
{
	struct bench_row row = {
		.name = name,
		.unit = "ioctls",
		.against = "what differs",
		.target = 1,
	};

	series_add(&row.figure, (double)counted->ioctls);
	series_add(&row.floor, (double)counted->fewest);
	bench_report(bench, &row);
	counted->ioctls = 0;
	counted->fewest = 0;
}

static int map_pages(struct counted *counted, uint64_t first, uint64_t count,
		     uint64_t host)
{
	return gpas_map_linear(
		counted->space, gpas_gpa_at(first * PAGE), count * PAGE,
		(void *)(uintptr_t)(host + first * PAGE), GPAS_PROT_RW, NULL);
}

/* The result does not matter: what fails changes nothing. */
static void change_at_random(struct counted *counted, unsigned *random)
{
	uint64_t first = (unsigned)rand_r(random) % WINDOW;
	uint64_t count = 1 + (unsigned)rand_r(random) % (WINDOW - first);
	gpas_gpa start = gpas_gpa_at(first * PAGE);

	switch (rand_r(random) % 4) {
	case 0:
		(void)gpas_unmap(counted->space, start, count * PAGE);
		break;
	case 1:
		(void)gpas_protect(counted->space, start, PAGE,
				   rand_r(random) % 2 == 0 ? GPAS_PROT_READ
							   : GPAS_PROT_RW);
		break;
	default:
		count = count > 8 ? 8 : count;
		(void)map_pages(counted, first, count,
				HOST + (rand_r(random) % 3 == 0 ? GIB : 0));
	}
}

static void count_ioctls(struct bench *bench)
{
	struct counted counted;
	unsigned random = 1;

	open_counted(&counted);
	before(&counted);
	bench_must(map_pages(&counted, 0, WINDOW, HOST), "map");
	after(&counted);
	report_ioctls(bench, &counted, "map 64 pages");
	before(&counted);
	bench_must(gpas_unmap(counted.space, gpas_gpa_at(8 * PAGE), PAGE),
		   "unmap");
	after(&counted);
	report_ioctls(bench, &counted, "unmap a page in the middle");
	before(&counted);
	bench_must(gpas_protect(counted.space, gpas_gpa_at(32 * PAGE), PAGE,
				GPAS_PROT_READ),
		   "protect");
	after(&counted);
	report_ioctls(bench, &counted, "protect a page in the middle");
	for (unsigned i = 0; i < CALLS; i++) {
		before(&counted);
		change_at_random(&counted, &random);
		after(&counted);
	}
	report_ioctls(bench, &counted, "1000 random calls");
	close_counted(&counted);
}

/* ---- Table pages --------------------------------------------------------- */

static void count_table_pages(struct bench *bench)
{
	struct bench_row row = {
		.name = "table left by 1000 random calls, all unmapped",
		.unit = "pages",
		.against = "the root",
		.target = 1,
	};
	struct counted counted;
	struct gpas_stats stats;
	unsigned random = 2;

	open_counted(&counted);
	for (unsigned i = 0; i < CALLS; i++) {
		uint64_t high = (unsigned)rand_r(&random) % 16;

		change_at_random(&counted, &random);
		(void)map_pages(&counted, high << 24, 600, HOST);
		if (i % 3 == 0) {
			bench_must(gpas_unmap(counted.space,
					      gpas_gpa_at((high << 24) * PAGE),
					      600 * PAGE),
				   "unmap");
		}
	}
	bench_must(gpas_unmap(counted.space, gpas_base(counted.space),
			      gpas_size(counted.space)),
		   "unmap");
	gpas_stats(counted.space, &stats);
	series_add(&row.figure, (double)stats.table_pages);
	series_add(&row.floor, 1);
	bench_report(bench, &row);
	close_counted(&counted);
}

void bench_counts(struct bench *bench)
{
	if (bench_group(bench, "counts", "Counts, on the KVM of the tests")) {
		count_ioctls(bench);
		count_table_pages(bench);
	}
}
