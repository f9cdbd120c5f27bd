/* SPDX-License-Identifier: MIT */
/*
 * The benchmark program: options, one table for a person, the same as JSON.
 *
 *   bench [--size MIB] [--repetitions N] [--only GROUP] [--json FILE]
 */
#include "bench.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double bench_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

void bench_must(int err, const char *what)
{
	if (err != 0) {
		(void)fprintf(stderr, "bench: %s: %s\n", what,
			      strerror(err < 0 ? -err : err));
		exit(1);
	}
}

/* ---- Series -------------------------------------------------------------- */

void series_add(struct series *series, double value)
{
	unsigned at = series->count;

	if (at == SERIES_MAX) {
		return;
	}
	while (at > 0 && series->value[at - 1] > value) {
		series->value[at] = series->value[at - 1];
		at--;
	}
	series->value[at] = value;
	series->count++;
}

double series_min(const struct series *series)
{
	return series->count != 0 ? series->value[0] : 0;
}

double series_median(const struct series *series)
{
	return series->count != 0 ? series->value[series->count / 2] : 0;
}

/* ---- The table ----------------------------------------------------------- */

bool bench_group(const struct bench *bench, const char *group,
		 const char *heading)
{
	if (bench->only != NULL &&
	    strncmp(group, bench->only, strlen(bench->only)) != 0) {
		return false;
	}
	printf("\n%s\n%-46s %10s %10s  %-7s %10s %7s %8s\n", heading, "", "min",
	       "median", "", "floor", "ratio", "target");
	return true;
}

static void print_json(struct bench *bench, const struct bench_row *row)
{
	(void)fprintf(bench->json,
		      "%s\n  { \"name\": \"%s\", \"unit\": \"%s\", "
		      "\"min\": %.6g, \"median\": %.6g, \"repetitions\": %u",
		      bench->rows == 0 ? "" : ",", row->name, row->unit,
		      series_min(&row->figure), series_median(&row->figure),
		      row->figure.count);
	if (row->floor.count != 0) {
		(void)fprintf(bench->json,
			      ", \"floor_min\": %.6g, \"floor_median\": %.6g",
			      series_min(&row->floor),
			      series_median(&row->floor));
	}
	if (row->target != 0) {
		(void)fprintf(bench->json, ", \"target\": %.6g", row->target);
	}
	(void)fprintf(bench->json, " }");
}

void bench_report(struct bench *bench, const struct bench_row *row)
{
	double figure = series_min(&row->figure);
	double floor = series_min(&row->floor);
	double judged = row->floor.count != 0 ? figure / floor : figure;
	bool missed = row->target != 0 && judged > row->target;

	printf("%-46s %10.4g %10.4g  %-7s ", row->name, figure,
	       series_median(&row->figure), row->unit);
	if (row->floor.count != 0) {
		printf("%10.4g %6.2fx ", floor, judged);
	} else {
		printf("%10s %7s ", "", "");
	}
	if (row->target != 0) {
		printf("%7.4g%s %s", row->target,
		       row->floor.count != 0 ? "x" : " ",
		       missed ? "MISS" : "ok");
	}
	printf("\n");
	(void)fflush(stdout);
	if (bench->json != NULL) {
		print_json(bench, row);
	}
	bench->rows++;
	bench->missed += missed;
}

/* ---- Options ------------------------------------------------------------- */

static int usage(void)
{
	(void)fprintf(stderr, "usage: bench [--size MIB] [--repetitions N] "
			      "[--only table|reader|map|guest] "
			      "[--json FILE]\n");
	return 2;
}

static int parse(struct bench *bench, int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", required_argument, NULL, 's' },
		{ "repetitions", required_argument, NULL, 'r' },
		{ "only", required_argument, NULL, 'o' },
		{ "json", required_argument, NULL, 'j' },
		{ 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			bench->size = strtoull(optarg, NULL, 0) * MIB;
			break;
		case 'r':
			bench->repetitions = (unsigned)atoi(optarg);
			break;
		case 'o':
			bench->only = optarg;
			break;
		case 'j':
			bench->json = fopen(optarg, "w");
			bench_must(bench->json == NULL ? -errno : 0, optarg);
			break;
		default:
			return usage();
		}
	}
	if (optind != argc || (bench->size & (bench->size - 1)) != 0 ||
	    bench->size > GIB || bench->repetitions > SERIES_MAX) {
		return usage();
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct bench bench = { 0 };
	int status = parse(&bench, argc, argv);

	if (status != 0) {
		return status;
	}
	printf("A ratio is of the minimums, to the baseline in the same row; "
	       "a target is the most it should be.\n");
	if (bench.json != NULL) {
		(void)fprintf(bench.json, "{ \"rows\": [");
	}
	bench_table(&bench);
	bench_reader(&bench);
	bench_guest(&bench);
	printf("\n%u rows, %u beyond their target\n", bench.rows, bench.missed);
	if (bench.json != NULL) {
		(void)fprintf(bench.json, "\n] }\n");
		(void)fclose(bench.json);
	}
	return 0;
}
