/* SPDX-License-Identifier: MIT */
/*
 * Benchmarks: rows, each a figure beside its floor of the same run, and curves,
 * figures against what makes them grow. Timing decides nothing: a missed target
 * is printed, not failed.
 */
#ifndef GPAS_TESTS_BENCH_H
#define GPAS_TESTS_BENCH_H

#include <gpas/gpas.h>

#include <sched.h>
#include <stdio.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SERIES_MAX 15

/* Repetitions of one measurement, in ascending order. */
struct series {
	double value[SERIES_MAX];
	unsigned count;
};

void series_add(struct series *series, double value);
double series_min(const struct series *series);
double series_median(const struct series *series);

/* What the command line asks for, and how far it has got. */
struct bench {
	uint64_t size; /* bytes a guest touches; 0: what takes half a second */
	unsigned repetitions; /* of each measurement, 1 to SERIES_MAX */
	bool quick;	      /* less of everything: to see that it works */
	const char *only;     /* groups, by commas; NULL: all */
	const char *vmm;      /* gpas-vmm, and a guest for it */
	const char *hello;
	FILE *json;	   /* NULL: not wanted */
	const char *group; /* the present one */
	cpu_set_t cpus;	   /* the program may run on */
	char *committed;   /* 1 GiB of memory, once somebody needs it */
	unsigned results;
	bool in_curve; /* a point has been printed */
	unsigned targets;
	unsigned missed;
};

/* What a row's target is about; a ratio is of the minimums. */
enum bench_target {
	BENCH_RATIO = 0, /* figure by floor is to be at most this */
	BENCH_SPEED,	 /* floor by figure is to be at least this */
	BENCH_FIGURE,	 /* the figure is to be at most this, in its unit */
};

struct bench_row {
	const char *name;
	const char *unit;
	struct series figure;
	const char *against; /* what the floor is, if there is one */
	struct series floor;
	enum bench_target about;
	double target; /* 0: none */
};

/* Whether @group is wanted; starts it if so. */
bool bench_group(struct bench *bench, const char *group, const char *heading);
void bench_report(struct bench *bench, const struct bench_row *row);
/* What cannot be measured here. */
void bench_skip(struct bench *bench, const char *what, const char *why);

/* A line of a plot. Curves of one plot share what x is; "bytes" is a unit. */
struct bench_curve {
	const char *plot;
	const char *name;
	const char *x;
	const char *unit;
};

void bench_curve_begin(struct bench *bench, const struct bench_curve *curve);
void bench_point(struct bench *bench, const struct bench_curve *curve, double x,
		 const struct series *series);
void bench_curve_end(struct bench *bench);

struct bench_text {
	char text[32];
};

/* "64 KiB". */
struct bench_text bench_bytes(double value);

/* Nanoseconds on a clock that only goes forward. */
double bench_now(void);

/* Ends the program when something that cannot fail did. */
void bench_must(int err, const char *what);

/* Has the calling thread run on the @nth CPU alone (modulo how many there
 * are), or on any again. */
void bench_pin(const struct bench *bench, unsigned nth);
void bench_unpin(const struct bench *bench);

/* Address space that is never touched, from a multiple of 1 GiB on. It is
 * never given back. */
char *bench_reserve(uint64_t size);

/* A space of 4 TiB. */
struct gpas *bench_space(void);

/* Has KVM drop the page tables of a deleted slot only, as gpas-vmm does and
 * gpas/kvm.h advises: without KVM_X86_QUIRK_SLOT_ZAP_ALL. */
void bench_keep_page_tables(int vm_fd);
/* Whether /dev/kvm, which is usable, has trap slots. */
bool bench_has_traps(void);

/* ---- the groups ---------------------------------------------------------- */

void bench_table(struct bench *bench);	 /* bench_table.c */
void bench_reader(struct bench *bench);	 /* bench_reader.c */
void bench_threads(struct bench *bench); /* bench_threads.c */
void bench_growth(struct bench *bench);	 /* bench_growth.c */
void bench_counts(struct bench *bench);	 /* bench_counts.c */
void bench_mirror(struct bench *bench);	 /* bench_mirror.c */
void bench_lazy(struct bench *bench);	 /* bench_lazy.c */
void bench_guest(struct bench *bench);	 /* bench_guest.c */
void bench_start(struct bench *bench);	 /* bench_start.c */
/* What bench_start compares with: a VM by hand, in a process of its own. */
int bench_bare_vm(void);

#endif
