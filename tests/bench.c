/* SPDX-License-Identifier: MIT */
/*
 * The benchmark program: options, one table for a person, the same as JSON.
 */
#include "bench.h"

#include <getopt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
	"usage: bench [OPTION...]\n"
	"\n"
	"Measures libgpas and prints a table: the minimum and the median of\n"
	"several repetitions, the floor it is compared with (the same in "
	"plain\n"
	"C, in this program), the ratio of the minimums, and the target.\n"
	"\n"
	"  --only GROUP,...  some of\n"
	"      table    changes of a space that is not attached\n"
	"      reader   translation and access\n"
	"      threads  several readers, readers beside a writer\n"
	"      growth   how cost grows with regions, memory and threads\n"
	"      counts   slot ioctls and table pages: no times\n"
	"      mirror   what keeping KVM in line costs (needs /dev/kvm)\n"
	"      map      mapping 1 TiB lazily (needs /dev/kvm)\n"
	"      guest    a guest that touches lazy memory (needs /dev/kvm)\n"
	"      faults   a fault's cost by region size (needs /dev/kvm)\n"
	"      start    gpas-vmm from exec to exit (needs /dev/kvm)\n"
	"  --quick           few repetitions of small measurements: shows "
	"that\n"
	"                    it works; do not quote such figures\n"
	"  --repetitions N   1 to 15; 9 by default\n"
	"  --size MIB        what the guest touches: a power of two up to "
	"1024\n"
	"  --json FILE       the same for programs, e.g. scripts/plot\n"
	"  --vmm FILE, --hello FILE\n"
	"                    gpas-vmm and its guest hello, for group start\n"
	"  --help\n"
	"\n"
	"The measuring thread stays on one CPU. No figure decides the exit\n"
	"status. See docs/performance.md.\n";

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

/* ---- Surroundings -------------------------------------------------------- */

void bench_pin(const struct bench *bench, unsigned nth)
{
	unsigned left = nth % (unsigned)CPU_COUNT(&bench->cpus);
	unsigned cpu = 0;
	cpu_set_t one;

	while (!CPU_ISSET(cpu, &bench->cpus) || left-- > 0) {
		cpu++;
	}
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	(void)sched_setaffinity(0, sizeof(one), &one);
}

void bench_unpin(const struct bench *bench)
{
	(void)sched_setaffinity(0, sizeof(bench->cpus), &bench->cpus);
}

char *bench_reserve(uint64_t size)
{
	char *host = mmap(NULL, size + GIB, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	bench_must(host == MAP_FAILED ? -errno : 0, "address space");
	return host + (GIB - (uintptr_t)host % GIB);
}

struct gpas *bench_space(void)
{
	struct gpas_params params = { .size = 4 * TIB };
	struct gpas *space;

	bench_must(gpas_create(&params, &space), "a space");
	return space;
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

/* Whether @only, names with commas between them, has @name or is NULL. */
static bool is_listed(const char *only, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = only; at != NULL;) {
		size_t next = strcspn(at, ",");

		if (next == length && strncmp(at, name, length) == 0) {
			return true;
		}
		at = at[next] == ',' ? at + next + 1 : NULL;
	}
	return only == NULL;
}

bool bench_group(struct bench *bench, const char *group, const char *heading)
{
	if (!is_listed(bench->only, group)) {
		return false;
	}
	bench->group = group;
	printf("\n%s\n", heading);
	return true;
}

/* Three digits or more. */
static struct bench_text number(double value)
{
	int digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
	struct bench_text ret;

	if (value < 1) {
		(void)snprintf(ret.text, sizeof(ret.text), "%.3g", value);
	} else {
		(void)snprintf(ret.text, sizeof(ret.text), "%.*f", digits,
			       value);
	}
	return ret;
}

struct bench_text bench_bytes(double value)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	struct bench_text ret;
	unsigned i = 0;

	for (; value >= 1024 && i < ARRAY_COUNT(units) - 1; i++) {
		value /= 1024;
	}
	(void)snprintf(ret.text, sizeof(ret.text), "%g %s", value, units[i]);
	return ret;
}

/* Starts an object of the JSON results. */
static void open_json(struct bench *bench, const char *kind, const char *name)
{
	(void)fprintf(bench->json,
		      "%s\n  { \"kind\": \"%s\", \"group\": \"%s\", "
		      "\"name\": \"%s\"",
		      bench->results++ == 0 ? "" : ",", kind, bench->group,
		      name);
}

static void json_row(struct bench *bench, const struct bench_row *row,
		     double ratio, bool missed)
{
	open_json(bench, "row", row->name);
	(void)fprintf(bench->json,
		      ", \"unit\": \"%s\", \"min\": %.6g, \"median\": %.6g, "
		      "\"repetitions\": %u",
		      row->unit, series_min(&row->figure),
		      series_median(&row->figure), row->figure.count);
	if (row->floor.count != 0) {
		(void)fprintf(bench->json,
			      ", \"floor\": \"%s\", \"floor_min\": %.6g, "
			      "\"floor_median\": %.6g, \"ratio\": %.6g, "
			      "\"is_speed\": %s",
			      row->against, series_min(&row->floor),
			      series_median(&row->floor), ratio,
			      row->about == BENCH_SPEED ? "true" : "false");
	}
	if (row->target != 0) {
		(void)fprintf(bench->json,
			      ", \"target\": %.6g, \"about\": \"%s\", "
			      "\"met\": %s",
			      row->target,
			      row->about == BENCH_RATIO	  ? "ratio"
			      : row->about == BENCH_SPEED ? "speed"
							  : "figure",
			      missed ? "false" : "true");
	}
	(void)fprintf(bench->json, " }");
}

/* What is compared with the target. */
static double judged(const struct bench_row *row)
{
	double figure = series_min(&row->figure);
	double floor = series_min(&row->floor);

	switch (row->about) {
	case BENCH_FIGURE:
		return figure;
	case BENCH_SPEED:
		return floor / figure;
	default:
		return figure / floor;
	}
}

void bench_report(struct bench *bench, const struct bench_row *row)
{
	double figure = series_min(&row->figure);
	double floor = series_min(&row->floor);
	bool has_floor = row->floor.count != 0;
	bool is_speed = row->about == BENCH_SPEED;
	double ratio = is_speed ? floor / figure : figure / floor;
	bool missed =
		row->target != 0 && (is_speed ? judged(row) < row->target
					      : judged(row) > row->target);

	printf("  %-50s %8s %8s %-8s ", row->name, number(figure).text,
	       number(series_median(&row->figure)).text, row->unit);
	if (has_floor) {
		printf("%8s %6.*fx ", number(floor).text, ratio >= 100 ? 0 : 2,
		       ratio);
	} else {
		printf("%16s ", "");
	}
	if (row->target != 0) {
		printf("%2s %g%s %s", is_speed ? ">=" : "<=", row->target,
		       row->about == BENCH_FIGURE ? "" : "x",
		       missed ? "MISS" : "ok");
	}
	printf("%s%s%s\n", has_floor ? "  (" : "",
	       has_floor ? row->against : "", has_floor ? ")" : "");
	(void)fflush(stdout);
	if (bench->json != NULL) {
		json_row(bench, row, ratio, missed);
	}
	bench->targets += row->target != 0;
	bench->missed += missed;
}

void bench_skip(struct bench *bench, const char *what, const char *why)
{
	printf("  %s: skipped, %s\n", what, why);
	if (bench->json != NULL) {
		open_json(bench, "skip", what);
		(void)fprintf(bench->json, ", \"why\": \"%s\" }", why);
	}
}

/* ---- Curves -------------------------------------------------------------- */

void bench_curve_begin(struct bench *bench, const struct bench_curve *curve)
{
	printf("  %s, %s by %s:\n   ", curve->name, curve->unit, curve->x);
	if (bench->json != NULL) {
		open_json(bench, "curve", curve->name);
		(void)fprintf(bench->json,
			      ", \"plot\": \"%s\", \"x\": \"%s\", "
			      "\"unit\": \"%s\", \"points\": [",
			      curve->plot, curve->x, curve->unit);
	}
}

void bench_point(struct bench *bench, const struct bench_curve *curve, double x,
		 const struct series *series)
{
	if (series->count == 0) {
		return;
	}
	if (strcmp(curve->x, "bytes") == 0) {
		printf(" %s: ", bench_bytes(x).text);
	} else {
		printf(" %.0f: ", x);
	}
	printf("%s  ", number(series_min(series)).text);
	(void)fflush(stdout);
	if (bench->json != NULL) {
		(void)fprintf(bench->json, "%s [%.0f, %.6g, %.6g]",
			      bench->in_curve ? "," : "", x, series_min(series),
			      series_median(series));
	}
	bench->in_curve = true;
}

void bench_curve_end(struct bench *bench)
{
	printf("\n");
	if (bench->json != NULL) {
		(void)fprintf(bench->json, " ] }");
	}
	bench->in_curve = false;
}

/* ---- The machine --------------------------------------------------------- */

/* The value of the first line of @file that begins with @key, in @ret. */
static void find_line(const char *file, const char *key, char *ret, size_t size)
{
	FILE *stream = fopen(file, "r");
	char line[256];

	(void)snprintf(ret, size, "unknown");
	while (stream != NULL && fgets(line, sizeof(line), stream) != NULL) {
		char *value = strchr(line, ':');

		if (strncmp(line, key, strlen(key)) == 0 && value != NULL) {
			value += strspn(value, ": \t");
			value[strcspn(value, "\n\"\\")] = '\0';
			(void)snprintf(ret, size, "%s", value);
			break;
		}
	}
	if (stream != NULL) {
		(void)fclose(stream);
	}
}

#ifdef __OPTIMIZE__
#define OPTIMIZED true
#else
#define OPTIMIZED false
#endif

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif

static void describe_machine(struct bench *bench)
{
	double load[1] = { 0 };
	struct utsname host;
	char memory[64];
	char cpu[128];
	char day[32];
	time_t now = time(NULL);

	bench_must(uname(&host) != 0 ? -errno : 0, "uname");
	(void)getloadavg(load, 1);
	find_line("/proc/cpuinfo", "model name", cpu, sizeof(cpu));
	find_line("/proc/meminfo", "MemTotal", memory, sizeof(memory));
	(void)strftime(day, sizeof(day), "%Y-%m-%d", gmtime(&now));
	printf("%s, %d CPUs used, Linux %s, load %.1f; %u repetitions%s\n", cpu,
	       CPU_COUNT(&bench->cpus), host.release, load[0],
	       bench->repetitions, bench->quick ? ", quick" : "");
	if (!OPTIMIZED) {
		printf("This build is not optimized: its figures say "
		       "nothing.\n");
	}
	printf("  %-50s %8s %8s %-8s %8s %7s target (floor)\n", "", "min",
	       "median", "", "floor", "ratio");
	if (bench->json == NULL) {
		return;
	}
	(void)fprintf(bench->json,
		      "{ \"machine\": { \"cpu\": \"%s\", \"cpus\": %d, "
		      "\"memory\": \"%s\", \"kernel\": \"%s\", "
		      "\"load\": %.2f, \"compiler\": \"%s\", "
		      "\"optimized\": %s, \"date\": \"%s\" },\n"
		      "  \"complete\": %s, \"quick\": %s, "
		      "\"repetitions\": %u,\n"
		      "  \"results\": [",
		      cpu, CPU_COUNT(&bench->cpus), memory, host.release,
		      load[0], COMPILER, OPTIMIZED ? "true" : "false", day,
		      bench->only == NULL ? "true" : "false",
		      bench->quick ? "true" : "false", bench->repetitions);
}

/* ---- Options ------------------------------------------------------------- */

static const char *const groups[] = { "table",	"reader", "threads", "growth",
				      "counts", "mirror", "map",     "guest",
				      "faults", "start" };

static int complain(const char *what, const char *which)
{
	(void)fprintf(stderr, "bench: %s: %s; see --help\n", what, which);
	return 2;
}

/* Whether @only names nothing but groups. */
static bool are_groups(const char *only)
{
	size_t found = 0;
	size_t named = 1;

	for (const char *at = only; *at != '\0'; at++) {
		named += *at == ',';
	}
	for (size_t i = 0; i < ARRAY_COUNT(groups); i++) {
		found += is_listed(only, groups[i]);
	}
	return found == named;
}

enum option_id {
	OPTION_SIZE = 256,
	OPTION_REPETITIONS,
	OPTION_ONLY,
	OPTION_QUICK,
	OPTION_JSON,
	OPTION_VMM,
	OPTION_HELLO,
	OPTION_HELP,
	OPTION_BARE,
};

static const struct option options[] = {
	{ "size", required_argument, NULL, OPTION_SIZE },
	{ "repetitions", required_argument, NULL, OPTION_REPETITIONS },
	{ "only", required_argument, NULL, OPTION_ONLY },
	{ "quick", no_argument, NULL, OPTION_QUICK },
	{ "json", required_argument, NULL, OPTION_JSON },
	{ "vmm", required_argument, NULL, OPTION_VMM },
	{ "hello", required_argument, NULL, OPTION_HELLO },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ "bare-vm", no_argument, NULL, OPTION_BARE },
	{ 0 },
};

/* Returns -1, or the status to exit with. */
static int take_option(struct bench *bench, int id)
{
	unsigned long long value = 0;
	char *end = NULL;

	if (id == OPTION_SIZE || id == OPTION_REPETITIONS) {
		value = strtoull(optarg, &end, 10);
		if (end == optarg || *end != '\0' || value == 0) {
			return complain("not a count", optarg);
		}
	}
	switch (id) {
	case OPTION_SIZE:
		bench->size = value * MIB;
		return value > 1024 || (value & (value - 1)) != 0
			       ? complain("not a power of two up to 1024",
					  optarg)
			       : -1;
	case OPTION_REPETITIONS:
		bench->repetitions = (unsigned)value;
		return value > SERIES_MAX ? complain("more than 15", optarg)
					  : -1;
	case OPTION_ONLY:
		bench->only = optarg;
		return are_groups(optarg) ? -1 : complain("not groups", optarg);
	case OPTION_QUICK:
		bench->quick = true;
		return -1;
	case OPTION_JSON:
		bench->json = fopen(optarg, "w");
		return bench->json != NULL ? -1
					   : complain(strerror(errno), optarg);
	case OPTION_VMM:
		bench->vmm = optarg;
		return -1;
	case OPTION_HELLO:
		bench->hello = optarg;
		return -1;
	case OPTION_HELP:
		(void)fputs(help, stdout);
		return 0;
	case OPTION_BARE:
		return bench_bare_vm();
	default:
		return 2;
	}
}

static int parse(struct bench *bench, int argc, char **argv)
{
	int status = -1;
	int id;

	while (status < 0 &&
	       (id = getopt_long(argc, argv, "", options, NULL)) != -1) {
		status = take_option(bench, id);
	}
	if (status < 0 && optind != argc) {
		status = complain("not an option", argv[optind]);
	}
	if (bench->repetitions == 0) {
		bench->repetitions = bench->quick ? 3 : 9;
	}
	return status;
}

int main(int argc, char **argv)
{
	struct bench bench = { 0 };
	int status = parse(&bench, argc, argv);

	if (status >= 0) {
		return status;
	}
	(void)sched_getaffinity(0, sizeof(bench.cpus), &bench.cpus);
	describe_machine(&bench);
	bench_pin(&bench, 0);
	bench_table(&bench);
	bench_reader(&bench);
	bench_threads(&bench);
	bench_growth(&bench);
	bench_counts(&bench);
	bench_mirror(&bench);
	bench_lazy(&bench);
	bench_guest(&bench);
	bench_start(&bench);
	printf("\n%u targets, %u missed\n", bench.targets, bench.missed);
	if (bench.json != NULL) {
		(void)fprintf(bench.json, "\n] }\n");
		bench_must(fclose(bench.json) != 0 ? -errno : 0, "the JSON");
	}
	return 0;
}
