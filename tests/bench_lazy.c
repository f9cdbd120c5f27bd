/* SPDX-License-Identifier: MIT */
/*
 * What huge lazy regions cost once KVM is attached: mapping one, and a fault
 * in it.
 */
#include "bench.h"
#include "machine.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#define BOOT   (UINT64_C(0x10000))
#define FAULTS 32

/* ---- What an embedder is advised to do ----------------------------------- */

#ifndef KVM_CAP_DISABLE_QUIRKS2
#define KVM_CAP_DISABLE_QUIRKS2 213
#endif
#define QUIRK_SLOT_ZAP_ALL (1 << 7) /* Linux 6.12 */

void bench_keep_page_tables(int vm_fd)
{
	struct kvm_enable_cap quirk = {
		.cap = KVM_CAP_DISABLE_QUIRKS2,
		.args = { QUIRK_SLOT_ZAP_ALL },
	};
	int known = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);

	if (known > 0 && (known & QUIRK_SLOT_ZAP_ALL) != 0) {
		(void)ioctl(vm_fd, KVM_ENABLE_CAP, &quirk);
	}
}

/* ---- Mapping ------------------------------------------------------------- */

/* A space of 8 TiB on a VM without a vCPU that runs. */
static int open_lazy(struct machine *machine, struct gpas **space,
		     enum gpas_lazy lazy)
{
	struct gpas_params params = { .size = 8 * TIB };
	struct gpas_kvm_params kvm = { .lazy = lazy };

	bench_must(gpas_create(&params, space), "a space");
	bench_must(machine_open(machine, BOOT), "/dev/kvm");
	bench_keep_page_tables(machine->vm_fd);
	kvm.vm_fd = machine->vm_fd;
	return gpas_kvm_attach(*space, &kvm);
}

bool bench_has_traps(void)
{
	struct machine machine;
	struct gpas *space;
	bool ret = open_lazy(&machine, &space, GPAS_LAZY_TRAP) == 0;

	gpas_destroy(space);
	machine_close(&machine);
	return ret;
}

/* Maps @size bytes, at that GPA, lazily or from @host if that is not NULL:
 * microseconds, or 0 where the processor's GPAs do not reach so far. */
static double map_large(enum gpas_lazy lazy, uint64_t size, void *host)
{
	struct gpas_map_params map = { .lazy = true };
	gpas_gpa start = gpas_gpa_at(size);
	struct machine machine;
	struct gpas *space;
	double elapsed;
	int err;

	bench_must(open_lazy(&machine, &space, lazy), "attaching");
	elapsed = bench_now();
	if (host != NULL) {
		err = gpas_map_linear(space, start, size, host, GPAS_PROT_RWX,
				      NULL);
	} else {
		err = gpas_map_alloc(space, start, size, GPAS_PROT_RWX, &map);
	}
	elapsed = bench_now() - elapsed;
	bench_must(err == -EINVAL ? 0 : err, "map");
	gpas_destroy(space);
	machine_close(&machine);
	return err == 0 ? elapsed / 1000 : 0;
}

static void bench_map(struct bench *bench, bool has_traps)
{
	char names[2][64];
	struct bench_row absent = {
		.name = names[0],
		.unit = "us",
		.about = BENCH_FIGURE,
		.target = 20,
	};
	struct bench_row trap = {
		.name = names[1],
		.unit = "us",
		.against = "a plain slot of that size",
		.target = 1.1,
	};
	void *host = bench_reserve(TIB);
	uint64_t size = TIB;

	while (map_large(GPAS_LAZY_ABSENT, size, host) == 0) {
		size /= 2;
	}
	(void)snprintf(names[0], sizeof(names[0]),
		       "map %s lazily, absent slots",
		       bench_bytes((double)size).text);
	(void)snprintf(names[1], sizeof(names[1]), "map %s lazily, traps",
		       bench_bytes((double)size).text);
	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&absent.figure,
			   map_large(GPAS_LAZY_ABSENT, size, NULL));
		if (has_traps) {
			series_add(&trap.figure,
				   map_large(GPAS_LAZY_TRAP, size, NULL));
			series_add(&trap.floor,
				   map_large(GPAS_LAZY_TRAP, size, host));
		}
	}
	bench_report(bench, &absent);
	if (has_traps) {
		bench_report(bench, &trap);
	} else {
		bench_skip(bench, trap.name, "this kernel has no trap slots");
	}
}

/* ---- Faulting ------------------------------------------------------------ */

/* Of FAULTS faults anywhere in @size bytes: microseconds that the first took,
 * and each of the others. Nothing where GPAs do not reach so far. */
static void measure_faults(enum gpas_lazy lazy, uint64_t size,
			   struct series *first, struct series *others)
{
	struct gpas_map_params map = { .lazy = true };
	double t[FAULTS + 1];
	struct machine machine;
	struct gpas *space;
	uint64_t x = 88172645463325252;
	int err;

	bench_must(open_lazy(&machine, &space, lazy), "attaching");
	err = gpas_map_alloc(space, gpas_gpa_at(size), size, GPAS_PROT_RWX,
			     &map);
	t[0] = bench_now();
	for (unsigned i = 0; err == 0 && i < FAULTS; i++) {
		gpas_gpa gpa = gpas_gpa_at(size + (x >> 16 & (size - 1)));
		struct gpas_fault fault;

		bench_must(gpas_fault(space, gpa, GPAS_PROT_RW, &fault),
			   "a fault");
		bench_must(fault.error, "populating");
		x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
		t[i + 1] = bench_now();
	}
	if (err == 0) {
		series_add(first, (t[1] - t[0]) / 1000);
		series_add(others, (t[FAULTS] - t[1]) / (FAULTS - 1) / 1000);
	}
	bench_must(err == -EINVAL ? 0 : err, "map");
	gpas_destroy(space);
	machine_close(&machine);
}

#define SIZES 8

static void bench_sizes(struct bench *bench, enum gpas_lazy lazy)
{
	unsigned sizes = bench->quick ? 3 : SIZES;
	unsigned repetitions = bench->repetitions < 3 ? bench->repetitions : 3;
	struct series series[SIZES][2] = { 0 };
	char name[64];

	for (unsigned i = 0; i < sizes; i++) {
		for (unsigned n = 0; n < repetitions; n++) {
			measure_faults(lazy, 64 * MIB << 2 * i, &series[i][0],
				       &series[i][1]);
		}
	}
	for (unsigned side = 0; side < 2; side++) {
		const struct bench_curve curve = {
			.plot = "faults",
			.name = name,
			.x = "bytes",
			.unit = "us",
		};

		(void)snprintf(name, sizeof(name), "%s, %s",
			       gpas_lazy_name(lazy),
			       side == 0 ? "the first" : "the others");
		bench_curve_begin(bench, &curve);
		for (unsigned i = 0; i < sizes; i++) {
			bench_point(bench, &curve, (double)(64 * MIB << 2 * i),
				    &series[i][side]);
		}
		bench_curve_end(bench);
	}
}

/* Whether there is a KVM for the group that has just begun. */
static bool has_kvm(struct bench *bench)
{
	struct machine machine;
	bool ret = machine_open(&machine, BOOT) == 0;

	if (ret) {
		machine_close(&machine);
	} else {
		bench_skip(bench, "huge regions", "no usable /dev/kvm");
	}
	return ret;
}

void bench_lazy(struct bench *bench)
{
	if (bench_group(bench, "map", "Mapping lazily, attached to KVM") &&
	    has_kvm(bench)) {
		bench_map(bench, bench_has_traps());
	}
	if (bench_group(bench, "faults",
			"A fault on 64 KiB by region size (minimums)") &&
	    has_kvm(bench)) {
		bench_sizes(bench, GPAS_LAZY_ABSENT);
		if (bench_has_traps()) {
			bench_sizes(bench, GPAS_LAZY_TRAP);
		}
	}
}
