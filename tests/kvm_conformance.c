/* SPDX-License-Identifier: MIT */
/*
 * Draws layouts from seeds and lets a guest check every page against a model;
 * see kvm_conformance.h. Standalone: without arguments it runs what continuous
 * integration wants, and exits with 77 where there is no KVM.
 */
#include "kvm_conformance.h"
#include "kvm_abi.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SEED   1
#define DEFAULT_COUNT  200
#define PROGRESS_EVERY 50

/* Rounds of a layout, and how many page runs are tried in each. */
#define ROUNDS	   3
#define FIRST_RUNS 18
#define LATER_RUNS 6

#define OBJECT_BYTES (4 * MIB)
#define BACKEND_POOL (4 * ARENA_BYTES)
#define SLOT_COUNT   1024

struct options {
	uint64_t seed;
	uint64_t count;
	enum gpas_lazy lazy; /* AUTO: each layout its own, where it can be */
	int running;	     /* -1: each layout its own */
	bool verbose;
};

/* ---- Chance and reports -------------------------------------------------- */

/* xorshift64* */
uint64_t draw(struct conf *conf, uint64_t below)
{
	conf->random ^= conf->random >> 12;
	conf->random ^= conf->random << 25;
	conf->random ^= conf->random >> 27;
	return (conf->random * UINT64_C(0x2545f4914f6cdd1d) >> 3) % below;
}

void trace(struct conf *conf, const char *format, ...)
{
	unsigned line = conf->trace_count++ % TRACE_LINES;
	va_list args;

	va_start(args, format);
	(void)vsnprintf(conf->trace[line], sizeof(conf->trace[line]), format,
			args);
	va_end(args);
	if (conf->verbose) {
		(void)fprintf(stderr, "%s\n", conf->trace[line]);
	}
}

/* The layout and the trace are printed by print_failure, where no lock of the
 * space is held. */
void fail(struct conf *conf, const char *format, ...)
{
	va_list args;

	if (conf->failed) {
		return;
	}
	conf->failed = true;
	(void)fprintf(stderr, "FAILED, seed %lu: ", (unsigned long)conf->seed);
	va_start(args, format);
	(void)vfprintf(stderr, format, args);
	va_end(args);
	(void)fprintf(stderr, "\n");
}

static void print_failure(const struct conf *conf)
{
	unsigned first = conf->trace_count > TRACE_LINES
				 ? conf->trace_count - TRACE_LINES
				 : 0;

	(void)fprintf(stderr,
		      "  again: --seed %lu --count 1 --lazy %s --mode %s "
		      "[--verbose]\n  layout:\n",
		      (unsigned long)conf->seed, conf->trap ? "trap" : "absent",
		      conf->running ? "running" : "stopped");
	print_layout(conf);
	(void)fprintf(stderr, "  trace (the last of %u lines):\n",
		      conf->trace_count);
	for (unsigned i = first; i < conf->trace_count; i++) {
		(void)fprintf(stderr, "    %s\n", conf->trace[i % TRACE_LINES]);
	}
	for (unsigned i = 0; i < conf->log_count && i < 8; i++) {
		(void)fprintf(stderr, "  log: %s\n", conf->log[i]);
	}
}

/* The library logs errors only when something is wrong. */
static void log_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct conf *conf = ctx;

	if (level == GPAS_LOG_ERROR && conf->log_count < 8) {
		(void)snprintf(conf->log[conf->log_count++],
			       sizeof(conf->log[0]), "%s", line);
	}
}

/* ---- A layout's world ---------------------------------------------------- */

static uint8_t *reserve(uint64_t bytes)
{
	/* Aligned to 2 MiB, so that blocks are possible. */
	uint64_t size = bytes + 2 * MIB;
	void *host = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return host == MAP_FAILED
		       ? NULL
		       : (uint8_t *)(((uintptr_t)host + 2 * MIB - 1) &
				     ~(uintptr_t)(2 * MIB - 1));
}

/* Host memory is the same for all layouts, and empty at the start of each. */
static bool take_memory(struct conf *conf)
{
	static uint8_t *low, *linear, *backend;

	if (low == NULL) {
		low = reserve(LOW_BYTES);
		linear = reserve(ARENA_BYTES);
		backend = reserve(BACKEND_POOL);
	}
	if (low == NULL || linear == NULL || backend == NULL) {
		return false;
	}
	conf->low = low;
	conf->linear_pool = linear;
	conf->backend_pool = backend;
	return madvise(low, LOW_BYTES, MADV_DONTNEED) == 0 &&
	       madvise(linear, ARENA_BYTES, MADV_DONTNEED) == 0 &&
	       madvise(backend, BACKEND_POOL, MADV_DONTNEED) == 0;
}

static int create_space(struct conf *conf)
{
	static const enum gpas_format_id formats[3] = { GPAS_FORMAT_EPT_4,
							GPAS_FORMAT_EPT_5,
							GPAS_FORMAT_NPT_4 };
	static const unsigned shifts[4] = { 0, 12, 21, 30 };
	struct gpas_params params = {
		.size = 4 * GIB,
		.log = log_line,
		.log_ctx = conf,
	};

	conf->format = formats[draw(conf, 3)];
	params.format = conf->format;
	params.max_leaf_shift = shifts[draw(conf, 4)];
	/* Also across 1 GiB, and high up. All are aligned to 2 MiB. */
	conf->arena = (uint64_t[]){ 16 * MIB, GIB - 32 * MIB,
				    3 * GIB + 2 * MIB }[draw(conf, 3)];
	return gpas_create(&params, &conf->space);
}

static int map_low(struct conf *conf)
{
	struct gpas_device device = { .ctx = conf, .access = doorbell };
	int err = gpas_map_linear(conf->space, gpas_gpa_at(0), LOW_BYTES,
				  conf->low, GPAS_PROT_RWX, NULL);

	machine_fill_boot(&conf->machine, conf->low + BOOT_GPA);
	write_code(conf);
	return err != 0
		       ? err
		       : gpas_map_device(conf->space, gpas_gpa_at(DOORBELL_GPA),
					 PAGE, &device);
}

static int attach(struct conf *conf)
{
	struct gpas_kvm_params params = {
		.vm_fd = conf->machine.vm_fd,
		.slot_first = (uint32_t)draw(conf, 5),
		.slot_count = SLOT_COUNT,
		.lazy = conf->trap ? GPAS_LAZY_TRAP : GPAS_LAZY_ABSENT,
		.pause = spin_pause,
		.resume = spin_resume,
		.ctx = conf,
	};
	int err = gpas_kvm_attach(conf->space, &params);

	if (err == 0) {
		err = gpas_vcpu_init(&conf->vcpu, conf->space,
				     conf->machine.vcpu_fd, conf->machine.run);
	}
	if (err == 0) {
		err = machine_set_level(&conf->machine, 0);
	}
	return err;
}

static bool set_up(struct conf *conf)
{
	int err = machine_open(&conf->machine, BOOT_GPA);

	if (err == 0 && !take_memory(conf)) {
		err = -ENOMEM;
	}
	if (err == 0) {
		err = gpas_memory_create(OBJECT_BYTES, NULL, &conf->object);
	}
	if (err == 0) {
		err = create_space(conf);
	}
	if (err == 0) {
		err = map_low(conf);
	}
	if (err != 0) {
		fail(conf, "setting up: %s", strerror(-err));
	}
	return err == 0;
}

static void tear_down(struct conf *conf)
{
	if (conf->vcpu.space != NULL) {
		gpas_vcpu_fini(&conf->vcpu);
	}
	gpas_destroy(conf->space);
	gpas_memory_put(conf->object);
	machine_close(&conf->machine);
}

/* ---- Rounds -------------------------------------------------------------- */

static void change_beside_guest(struct conf *conf)
{
	spin_start(conf);
	change_layout(conf);
	if (!conf->failed && gpas_check(conf->space) != 0) {
		fail(conf, "gpas_check beside a running guest");
	}
	if (!conf->failed) {
		audit_layout(conf);
	}
	if (!conf->failed) {
		spin_wait(conf);
	}
	spin_stop(conf);
	learn_presence(conf);
}

static void run_rounds(struct conf *conf)
{
	for (int round = 0; round < ROUNDS && !conf->failed; round++) {
		trace(conf, "round %d", round);
		if (round > 0 && conf->running) {
			change_beside_guest(conf);
		} else if (round > 0) {
			change_layout(conf);
		}
		if (!conf->failed) {
			verify_layout(conf);
		}
		if (!conf->failed) {
			probe_layout(conf,
				     round == 0 ? FIRST_RUNS : LATER_RUNS);
		}
		if (!conf->failed) {
			verify_layout(conf);
		}
		if (!conf->failed) {
			audit_layout(conf);
		}
		conf->figures.rounds++;
	}
	if (!conf->failed && conf->log_count != 0) {
		fail(conf, "the library logged an error");
	}
}

static void run_layout(struct conf *conf)
{
	bool attach_first;
	int err = 0;

	conf->random = conf->seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	if (!set_up(conf)) {
		return;
	}
	attach_first = chance(conf, 50);
	if (attach_first) {
		err = attach(conf);
	}
	if (err == 0) {
		draw_layout(conf);
	}
	if (err == 0 && !attach_first) {
		err = attach(conf);
	}
	if (err != 0) {
		fail(conf, "attaching: %s", strerror(-err));
	} else {
		run_rounds(conf);
	}
	conf->figures.layouts++;
	if (conf->failed) {
		print_failure(conf);
	}
}

/* ---- What this KVM does -------------------------------------------------- */

/* A slot whose guest_memfd is closed, made without the library. */
static int set_trap(int vm_fd, uint64_t gpa, void *host)
{
	struct kvm_create_guest_memfd create = {
		.size = PAGE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	struct kvm_userspace_memory_region2 region = {
		.slot = 1,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gpa,
		.memory_size = PAGE,
		.userspace_addr = gpas_hva_of(host).value,
	};
	int fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &create);
	int err;

	if (fd < 0) {
		return -EOPNOTSUPP;
	}
	region.guest_memfd = (__u32)fd;
	err = ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region) != 0 ? -errno
								      : 0;
	(void)close(fd);
	return err;
}

/* Whether a read of a trap is a memory fault at this level. 0 or -errno. */
static int try_trap(struct conf *conf, unsigned level, bool *ret)
{
	struct kvm_regs regs = {
		.rip = CODE_GPA,
		.rbx = DOORBELL_GPA,
		.rdi = 16 * MIB,
	};
	struct kvm_userspace_memory_region low = {
		.memory_size = LOW_BYTES,
		.userspace_addr = gpas_hva_of(conf->low).value,
	};
	void *nothing =
		mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = set_trap(conf->machine.vm_fd, regs.rdi, nothing);

	machine_fill_boot(&conf->machine, conf->low + BOOT_GPA);
	write_code(conf);
	if (err == 0 && (ioctl(conf->machine.vm_fd, KVM_SET_USER_MEMORY_REGION,
			       &low) != 0 ||
			 machine_set_level(&conf->machine, level) != 0 ||
			 machine_set_regs(&conf->machine, &regs) != 0)) {
		err = -errno;
	}
	if (err == 0) {
		*ret = machine_enter(&conf->machine) == -EFAULT &&
		       conf->machine.run->exit_reason == KVM_EXIT_MEMORY_FAULT;
	}
	munmap(nothing, PAGE);
	return err;
}

/* Not by way of the library, which is what is tested. */
static int sees_trap(unsigned level, bool *ret)
{
	struct conf *conf = calloc(1, sizeof(*conf));
	int err =
		conf != NULL ? machine_open(&conf->machine, BOOT_GPA) : -ENOMEM;

	if (err == 0 && !take_memory(conf)) {
		err = -ENOMEM;
	}
	if (err == 0) {
		err = try_trap(conf, level, ret);
	}
	if (conf != NULL) {
		machine_close(&conf->machine);
	}
	free(conf);
	return err;
}

/* ---- All of them --------------------------------------------------------- */

static void add_figures(struct figures *sum, const struct figures *part)
{
	uint64_t *to = (uint64_t *)sum;
	const uint64_t *from = (const uint64_t *)part;

	_Static_assert(sizeof(*sum) % sizeof(*to) == 0, "only counters");
	for (size_t i = 0; i < sizeof(*sum) / sizeof(*to); i++) {
		to[i] += from[i];
	}
}

static double now(void)
{
	struct timespec time;

	(void)clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void print_figures(const struct figures *sum, double seconds)
{
	(void)printf(
		"%lu layouts, %lu regions, %lu rounds, %lu calls, %lu probes, "
		"%lu audits in %.1f s\n"
		"exits: %lu MMIO, %lu memory faults, %lu failed fetches; %lu "
		"denied, %lu unmapped, %lu device calls\n"
		"%lu pages populated; %lu fetches executed without X; guests "
		"came round %lu times and were paused %lu times\n",
		(unsigned long)sum->layouts, (unsigned long)sum->regions,
		(unsigned long)sum->rounds, (unsigned long)sum->operations,
		(unsigned long)sum->probes, (unsigned long)sum->audits, seconds,
		(unsigned long)sum->mmio, (unsigned long)sum->memory_faults,
		(unsigned long)sum->internal_errors, (unsigned long)sum->denied,
		(unsigned long)sum->unmapped, (unsigned long)sum->device_calls,
		(unsigned long)sum->populated_pages,
		(unsigned long)sum->executed_without_x,
		(unsigned long)sum->spins, (unsigned long)sum->pauses);
}

static bool run_one(const struct options *options, uint64_t seed, bool traps,
		    const bool precise[2], struct figures *sum)
{
	struct conf *conf = calloc(1, sizeof(*conf));
	bool failed;

	if (conf == NULL) {
		return false;
	}
	conf->seed = seed;
	conf->verbose = options->verbose;
	conf->trap = options->lazy == GPAS_LAZY_AUTO
			     ? traps && seed % 2 == 0
			     : options->lazy == GPAS_LAZY_TRAP;
	conf->running = options->running < 0 ? seed / 2 % 2 == 0
					     : options->running != 0;
	conf->precise[0] = precise[0];
	conf->precise[1] = precise[1];
	run_layout(conf);
	failed = conf->failed;
	add_figures(sum, &conf->figures);
	tear_down(conf);
	free(conf);
	return !failed;
}

static int run_all(const struct options *options)
{
	struct figures sum = { 0 };
	bool precise[2] = { false, false };
	double begun = now();
	int traps = sees_trap(0, &precise[0]);

	if (traps == 0) {
		traps = sees_trap(3, &precise[1]);
	}
	if (traps != 0 && options->lazy == GPAS_LAZY_TRAP) {
		(void)printf("skipped: no trap slots here: %s\n",
			     strerror(-traps));
		return MACHINE_SKIP;
	}
	(void)printf("traps: %s\n",
		     traps != 0	   ? "none on this kernel"
		     : !precise[1] ? "seen as holes"
		     : precise[0]  ? "seen at every privilege level"
				   : "seen at CPL 3; CPL 0 is emulated");
	for (uint64_t i = 0; i < options->count; i++) {
		if (!run_one(options, options->seed + i, traps == 0, precise,
			     &sum)) {
			return 1;
		}
		/* Where a time limit strikes, this tells slow from stuck. */
		if ((i + 1) % PROGRESS_EVERY == 0) {
			(void)printf("%lu layouts in %.1f s\n",
				     (unsigned long)(i + 1), now() - begun);
			(void)fflush(stdout);
		}
	}
	print_figures(&sum, now() - begun);
	return 0;
}

static void ignore_signal(int number)
{
	(void)number;
}

static int usage(void)
{
	(void)fprintf(stderr, "usage: kvm_conformance [--seed N] [--count N] "
			      "[--lazy trap|absent] [--mode stopped|running] "
			      "[--verbose]\n");
	return 2;
}

static bool parse(int argc, char **argv, struct options *options)
{
	static const struct option names[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "count", required_argument, NULL, 'c' },
		{ "lazy", required_argument, NULL, 'l' },
		{ "mode", required_argument, NULL, 'm' },
		{ "verbose", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (option == 's') {
			options->seed = strtoull(optarg, NULL, 0);
		} else if (option == 'c') {
			options->count = strtoull(optarg, NULL, 0);
		} else if (option == 'l' && strcmp(optarg, "trap") == 0) {
			options->lazy = GPAS_LAZY_TRAP;
		} else if (option == 'l' && strcmp(optarg, "absent") == 0) {
			options->lazy = GPAS_LAZY_ABSENT;
		} else if (option == 'm' && strcmp(optarg, "stopped") == 0) {
			options->running = 0;
		} else if (option == 'm' && strcmp(optarg, "running") == 0) {
			options->running = 1;
		} else if (option == 'v') {
			options->verbose = true;
		} else {
			return false;
		}
	}
	return optind == argc;
}

int main(int argc, char **argv)
{
	struct options options = {
		.seed = DEFAULT_SEED,
		.count = DEFAULT_COUNT,
		.running = -1,
	};
	struct sigaction action = { .sa_handler = ignore_signal };
	struct machine machine;

	if (!parse(argc, argv, &options)) {
		return usage();
	}
	if (machine_open(&machine, BOOT_GPA) == -ENODEV) {
		(void)printf("skipped: no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	(void)sigaction(SIGUSR1, &action, NULL);
	return run_all(&options);
}
