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
#define TARGET (4 * TIB)
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

/* Maps 1 TiB lazily, or @host if that is not NULL: microseconds. */
static double map_large(enum gpas_lazy lazy, void *host)
{
	struct gpas_map_params map = { .lazy = true };
	gpas_gpa start = gpas_gpa_at(TARGET);
	struct machine machine;
	struct gpas *space;
	double elapsed;

	bench_must(open_lazy(&machine, &space, lazy), "attaching");
	elapsed = bench_now();
	if (host != NULL) {
		bench_must(gpas_map_linear(space, start, TIB, host,
					   GPAS_PROT_RWX, NULL),
			   "map");
	} else {
		bench_must(
			gpas_map_alloc(space, start, TIB, GPAS_PROT_RWX, &map),
			"map");
	}
	elapsed = bench_now() - elapsed;
	gpas_destroy(space);
	machine_close(&machine);
	return elapsed / 1000;
}

static void bench_map(struct bench *bench, bool has_traps)
{
	struct bench_row absent = {
		.name = "map 1 TiB lazily, absent slots",
		.unit = "us",
		.about = BENCH_FIGURE,
		.target = 20,
	};
	struct bench_row trap = {
		.name = "map 1 TiB lazily, traps",
		.unit = "us",
		.against = "a plain slot of 1 TiB",
		.target = 1.1,
	};
	void *host = bench_reserve(TIB);

	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&absent.figure, map_large(GPAS_LAZY_ABSENT, NULL));
		if (has_traps) {
			series_add(&trap.figure,
				   map_large(GPAS_LAZY_TRAP, NULL));
			series_add(&trap.floor,
				   map_large(GPAS_LAZY_TRAP, host));
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
 * and each of the others. */
static void measure_faults(enum gpas_lazy lazy, uint64_t size,
			   struct series *first, struct series *others)
{
	struct gpas_map_params map = { .lazy = true };
	struct machine machine;
	struct gpas *space;
	double sum = 0;
	uint64_t x = 1;

	bench_must(open_lazy(&machine, &space, lazy), "attaching");
	bench_must(gpas_map_alloc(space, gpas_gpa_at(TARGET), size,
				  GPAS_PROT_RWX, &map),
		   "map");
	for (unsigned i = 0; i < FAULTS; i++) {
		struct gpas_fault fault;
		double begun;

		x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
		begun = bench_now();
		bench_must(
			gpas_fault(space,
				   gpas_gpa_at(TARGET + (x >> 16 & (size - 1))),
				   GPAS_PROT_RW, &fault),
			"a fault");
		begun = bench_now() - begun;
		if (i == 0) {
			series_add(first, begun / 1000);
		} else {
			sum += begun / 1000;
		}
	}
	series_add(others, sum / (FAULTS - 1));
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
