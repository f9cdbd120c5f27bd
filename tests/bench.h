/* SPDX-License-Identifier: MIT */
/*
 * Benchmarks: rows of a table, each a figure beside its baseline of the same
 * run. Timing decides nothing: a missed target is printed, not failed.
 */
#ifndef GPAS_TESTS_BENCH_H
#define GPAS_TESTS_BENCH_H

#include <gpas/gpas.h>

#include <stdio.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define SERIES_MAX 16

/* Repetitions of one measurement. */
struct series {
	double value[SERIES_MAX];
	unsigned count;
};

void series_add(struct series *series, double value);
double series_min(const struct series *series);
double series_median(const struct series *series);

/* What the command line asks for, and how far it has got. */
struct bench {
	uint64_t size; /* bytes a guest touches; 0: as many as take 2 s */
	unsigned repetitions;
	const char *only; /* rows whose group begins so; NULL: all */
	FILE *json;	  /* NULL: not wanted */
	unsigned rows;
	unsigned missed;
};

/*
 * One row. Without floor values the target is an absolute figure in @unit,
 * with them it is a ratio of minimums: both are to be at most @target. 0 is no
 * target.
 */
struct bench_row {
	const char *name;
	const char *unit;
	struct series figure;
	struct series floor;
	double target;
};

/* Whether rows of @group are wanted; prints a heading if so. */
bool bench_group(const struct bench *bench, const char *group,
		 const char *heading);
void bench_report(struct bench *bench, const struct bench_row *row);

/* Nanoseconds on a clock that only goes forward. */
double bench_now(void);

/* Ends the program when something that cannot fail did. */
void bench_must(int err, const char *what);

/* ---- the groups ---------------------------------------------------------- */

void bench_table(struct bench *bench);	/* bench_table.c */
void bench_reader(struct bench *bench); /* bench_reader.c */
void bench_guest(struct bench *bench);	/* bench_guest.c */

#endif
