/* SPDX-License-Identifier: MIT */
/*
 * What keeping KVM in line costs: the library's own part of a change beside
 * the ioctls in it, batches beside single calls, and slots as they become many.
 * No vCPU runs.
 */
#include "bench.h"
#include "machine.h"

#include <stdlib.h>
#include <sys/ioctl.h>

#define PAGE   GPAS_PAGE_BYTES
#define RW     GPAS_PROT_RW
#define BOOT   (UINT64_C(0x10000))
#define SAMPLE 100
#define BATCH  10000

struct attached {
	struct machine machine;
	struct gpas *space;
	char *host;
};

static void open_attached(struct attached *attached, enum gpas_lazy lazy,
			  char *host)
{
	struct gpas_kvm_params kvm = { .lazy = lazy };

	attached->host = host;
	attached->space = bench_space();
	bench_must(machine_open(&attached->machine, BOOT), "/dev/kvm");
	bench_keep_page_tables(attached->machine.vm_fd);
	kvm.vm_fd = attached->machine.vm_fd;
	bench_must(gpas_kvm_attach(attached->space, &kvm), "attaching");
}

static void close_attached(struct attached *attached)
{
	gpas_destroy(attached->space);
	machine_close(&attached->machine);
}

static uint64_t kvm_ns(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.kvm_ns;
}

/* Every other page, so that no two slots could be one. */
static void map_apart(struct attached *attached, uint64_t i)
{
	bench_must(gpas_map_linear(attached->space, gpas_gpa_at(i * 2 * PAGE),
				   PAGE, attached->host + i * 2 * PAGE, RW,
				   NULL),
		   "map");
}

static void map_beside(struct attached *attached, uint64_t i)
{
	bench_must(gpas_map_linear(attached->space, gpas_gpa_at(i * PAGE), PAGE,
				   attached->host + i * PAGE, RW, NULL),
		   "map");
}

static void unmap_apart(struct attached *attached, uint64_t i)
{
	bench_must(gpas_unmap(attached->space, gpas_gpa_at(i * 2 * PAGE), PAGE),
		   "unmap");
}

/* ---- The library's part -------------------------------------------------- */

/* Cuts the first page off a slot of four: one leaves, two come. */
static void protect_part(struct attached *attached, uint64_t i)
{
	bench_must(gpas_protect(attached->space,
				gpas_gpa_at(GIB + i * 8 * PAGE), PAGE,
				GPAS_PROT_READ),
		   "protect");
}

static void touch_granule(struct attached *attached, uint64_t i)
{
	struct gpas_fault fault;

	bench_must(gpas_fault(attached->space,
			      gpas_gpa_at(2 * GIB + i * 128 * KIB), RW, &fault),
		   "a fault");
}

typedef void changer(struct attached *attached, uint64_t i);

static const struct {
	const char *name;
	changer *change;
} parts[] = {
	{ "map a page", map_apart },
	{ "unmap a page", unmap_apart },
	{ "protect a fourth of a slot", protect_part },
	{ "fault on 64 KiB", touch_granule },
};
#define PARTS ARRAY_COUNT(parts)

/* SAMPLE changes: nanoseconds of each in the library, and in ioctls. */
static void measure_part(struct attached *attached, changer *change,
			 struct bench_row *row)
{
	uint64_t kvm = kvm_ns(attached->space);
	double whole = bench_now();
	double ioctls;

	for (uint64_t i = 0; i < SAMPLE; i++) {
		change(attached, i);
	}
	whole = bench_now() - whole;
	ioctls = (double)(kvm_ns(attached->space) - kvm);
	series_add(&row->figure, (whole - ioctls) / SAMPLE);
	series_add(&row->floor, ioctls / SAMPLE);
}

static void bench_parts(struct bench *bench, enum gpas_lazy lazy, char *host)
{
	const struct gpas_map_params params = { .lazy = true };
	struct bench_row rows[PARTS] = { 0 };
	char names[PARTS][96];
	size_t first = lazy == GPAS_LAZY_TRAP ? PARTS - 1 : 0;

	for (unsigned n = 0; n < bench->repetitions; n++) {
		struct attached attached;

		open_attached(&attached, lazy, host);
		for (uint64_t i = 0; i < SAMPLE; i++) {
			gpas_gpa at = gpas_gpa_at(GIB + i * 8 * PAGE);

			bench_must(gpas_map_linear(attached.space, at, 4 * PAGE,
						   host + at.value, RW, NULL),
				   "map");
		}
		bench_must(gpas_map_alloc(attached.space, gpas_gpa_at(2 * GIB),
					  64 * MIB, RW, &params),
			   "map");
		for (size_t i = first; i < PARTS; i++) {
			measure_part(&attached, parts[i].change, &rows[i]);
		}
		close_attached(&attached);
	}
	for (size_t i = first; i < PARTS; i++) {
		bool is_fault = parts[i].change == touch_granule;

		(void)snprintf(names[i], sizeof(names[i]),
			       "library's part: %s%s", parts[i].name,
			       !is_fault		? ""
			       : lazy == GPAS_LAZY_TRAP ? ", trap"
							: ", absent");
		rows[i].name = names[i];
		rows[i].unit = "ns";
		rows[i].against = "its ioctls";
		bench_report(bench, &rows[i]);
	}
}

/* ---- Batches ------------------------------------------------------------- */

/* BATCH times @change, in one group or not: nanoseconds of each. */
static double map_many(struct attached *attached, changer *change, bool grouped,
		       unsigned count)
{
	double begun = bench_now();

	if (grouped) {
		bench_must(gpas_begin(attached->space), "begin");
	}
	for (uint64_t i = 0; i < count; i++) {
		change(attached, i);
	}
	if (grouped) {
		bench_must(gpas_commit(attached->space), "commit");
	}
	begun = bench_now() - begun;
	bench_must(gpas_clear(attached->space), "clear");
	return begun / count;
}

static void bench_batch(struct bench *bench, char *host, const char *where,
			changer *change)
{
	unsigned count = bench->quick ? BATCH / 20 : BATCH;
	char name[96];
	struct bench_row row = {
		.name = name,
		.unit = "ns/call",
		.against = "single calls",
	};
	struct attached attached;

	(void)snprintf(name, sizeof(name), "map %u %s pages in one group",
		       count, where);
	open_attached(&attached, GPAS_LAZY_ABSENT, host);
	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&row.figure,
			   map_many(&attached, change, true, count));
		series_add(&row.floor,
			   map_many(&attached, change, false, count));
	}
	bench_report(bench, &row);
	close_attached(&attached);
}

/* ---- Many slots ---------------------------------------------------------- */

static const unsigned levels[] = { 100, 1000, 10000, 32000 };
#define LEVELS ARRAY_COUNT(levels)
#define SIDES  4

/* Adds and deletes SAMPLE slots beyond @level: whole and in KVM, each. */
static void measure_level(struct attached *attached, unsigned level,
			  struct series *sides)
{
	for (unsigned side = 0; side < SIDES; side += 2) {
		uint64_t kvm = kvm_ns(attached->space);
		double begun = bench_now();

		for (uint64_t i = level; i < level + SAMPLE; i++) {
			(side == 0 ? map_apart : unmap_apart)(attached, i);
		}
		begun = bench_now() - begun;
		kvm = kvm_ns(attached->space) - kvm;
		series_add(&sides[side], begun / SAMPLE / 1000);
		series_add(&sides[side + 1], (double)kvm / SAMPLE / 1000);
	}
}

static void bench_levels(struct bench *bench, char *host)
{
	static const char *const names[SIDES] = { "add", "add, KVM alone",
						  "delete",
						  "delete, KVM alone" };
	size_t count = bench->quick ? LEVELS - 2 : LEVELS;
	struct series series[LEVELS][SIDES] = { 0 };
	struct attached attached;
	uint64_t slots = 0;

	open_attached(&attached, GPAS_LAZY_ABSENT, host);
	for (size_t i = 0; i < count; i++) {
		bench_must(gpas_begin(attached.space), "begin");
		while (slots < levels[i]) {
			map_apart(&attached, slots++);
		}
		bench_must(gpas_commit(attached.space), "commit");
		for (unsigned n = 0; n < bench->repetitions; n++) {
			measure_level(&attached, levels[i], series[i]);
		}
	}
	for (unsigned side = 0; side < SIDES; side++) {
		const struct bench_curve curve = {
			.plot = "slots",
			.name = names[side],
			.x = "slots",
			.unit = "us",
		};

		bench_curve_begin(bench, &curve);
		for (size_t i = 0; i < count; i++) {
			bench_point(bench, &curve, levels[i], &series[i][side]);
		}
		bench_curve_end(bench);
	}
	close_attached(&attached);
}

void bench_mirror(struct bench *bench)
{
	struct machine machine;
	char *host;

	if (!bench_group(bench, "mirror", "Keeping KVM in line")) {
		return;
	}
	if (machine_open(&machine, BOOT) != 0) {
		bench_skip(bench, "slots", "no usable /dev/kvm");
		return;
	}
	machine_close(&machine);
	host = bench_reserve(4 * GIB);
	bench_parts(bench, GPAS_LAZY_ABSENT, host);
	if (bench_has_traps()) {
		bench_parts(bench, GPAS_LAZY_TRAP, host);
	} else {
		bench_skip(bench, "library's part: fault on 64 KiB, trap",
			   "this kernel has no trap slots");
	}
	bench_batch(bench, host, "scattered", map_apart);
	bench_batch(bench, host, "adjacent", map_beside);
	bench_levels(bench, host);
}
