/* SPDX-License-Identifier: MIT */
/*
 * What starting a guest costs: gpas-vmm with the guest hello, from before its
 * exec until it is reaped, and what its --stats say of it. The floor is this
 * program started anew to do by hand what any VMM must: a VM, a slot, a vCPU,
 * one exit.
 */
#include "bench.h"
#include "machine.h"

#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BOOT	 (UINT64_C(0x10000))
#define LOW	 (64 * GPAS_PAGE_BYTES)
#define CODE	 (UINT64_C(0x1000))
#define DOORBELL (UINT64_C(1) << 30)

/* ---- The floor ----------------------------------------------------------- */

int bench_bare_vm(void)
{
	static const uint8_t store[] = { 0x48, 0x89, 0x03 }; /* to (%rbx) */
	struct kvm_userspace_memory_region slot = { .memory_size = LOW };
	struct kvm_regs regs = { .rip = CODE, .rbx = DOORBELL };
	struct machine machine;
	char *host = mmap(NULL, LOW, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_must(host == MAP_FAILED ? -errno : 0, "memory");
	bench_must(machine_open(&machine, BOOT), "/dev/kvm");
	machine_fill_boot(&machine, host + BOOT);
	memcpy(host + CODE, store, sizeof(store));
	slot.userspace_addr = (uintptr_t)host;
	bench_must(ioctl(machine.vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) != 0
			   ? -errno
			   : 0,
		   "a slot");
	bench_must(machine_set_level(&machine, 0), "the vCPU's mode");
	bench_must(machine_set_regs(&machine, &regs), "its registers");
	bench_must(machine_enter(&machine), "KVM_RUN");
	bench_must(machine.run->exit_reason != KVM_EXIT_MMIO, "the exit");
	machine_close(&machine);
	return 0;
}

/* ---- A process ----------------------------------------------------------- */

struct report {
	char text[8192]; /* what it wrote to stderr */
	size_t size;
};

static void read_all(int fd, struct report *report)
{
	ssize_t got = 1;

	report->size = 0;
	while (got > 0 && report->size < sizeof(report->text) - 1) {
		got = read(fd, report->text + report->size,
			   sizeof(report->text) - 1 - report->size);
		report->size += got > 0 ? (size_t)got : 0;
	}
	report->text[report->size] = '\0';
}

/* Microseconds from before exec until it is reaped; its stderr in @report. */
static double time_process(char **argv, struct report *report)
{
	posix_spawn_file_actions_t actions;
	char *environment[] = { NULL };
	int fds[2];
	double begun;
	int status;
	pid_t pid;

	bench_must(pipe(fds) != 0 ? -errno : 0, "a pipe");
	bench_must(posix_spawn_file_actions_init(&actions), "a process");
	bench_must(posix_spawn_file_actions_adddup2(&actions, fds[1], 2),
		   "a process");
	bench_must(posix_spawn_file_actions_addclose(&actions, fds[0]),
		   "a process");
	bench_must(posix_spawn_file_actions_addopen(&actions, 1, "/dev/null",
						    1 /* O_WRONLY */, 0),
		   "a process");
	begun = bench_now();
	bench_must(
		posix_spawn(&pid, argv[0], &actions, NULL, argv, environment),
		argv[0]);
	close(fds[1]);
	read_all(fds[0], report);
	bench_must(waitpid(pid, &status, 0) < 0 ? -errno : 0, "waiting");
	begun = bench_now() - begun;
	close(fds[0]);
	posix_spawn_file_actions_destroy(&actions);
	if (status != 0) {
		(void)fputs(report->text, stderr);
		bench_must(-ECHILD, argv[0]);
	}
	return begun / 1000;
}

/* ---- Rows ---------------------------------------------------------------- */

#define PHASES 16

struct phase {
	char name[64];
	double last; /* us, of the last repetition */
	struct series us;
	struct series kvm_us; /* of it; empty where gpas-vmm does not say */
};

/*
 * Reads the lines "MICROSECONDS  NAME (KVM'S)" of --stats into @phases, by
 * their order. Returns how many there are.
 */
static unsigned read_phases(char *text, struct phase *phases)
{
	char *at = strstr(text, "Start and end");
	unsigned count = 0;
	char *saved = NULL;

	at = at != NULL ? strtok_r(strchr(at, '\n'), "\n", &saved) : NULL;
	for (; at != NULL && count < PHASES;
	     at = strtok_r(NULL, "\n", &saved)) {
		struct phase *phase = &phases[count];
		char *name;
		double us = strtod(at, &name);
		char *part = strstr(name, " (");

		if (name == at) {
			continue;
		}
		if (part != NULL) {
			series_add(&phase->kvm_us, strtod(part + 2, NULL));
			*part = '\0';
		}
		series_add(&phase->us, us);
		phase->last = us;
		(void)snprintf(phase->name, sizeof(phase->name), "  %s",
			       name + strspn(name, " ="));
		count++;
	}
	return count;
}

static void report_phases(struct bench *bench, const struct phase *phases,
			  unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct bench_row row = {
			.name = phases[i].name,
			.unit = "us",
			.figure = phases[i].us,
			.against = "in ioctls alone",
		};

		if (series_min(&phases[i].kvm_us) < series_min(&phases[i].us)) {
			row.floor = phases[i].kvm_us;
		}
		bench_report(bench, &row);
	}
}

/* Of @whole, what passed before vCPU 0 entered the guest, and what ending the
 * process took. */
static double before_entry(double whole, const struct phase *phases,
			   unsigned count)
{
	bool entered = false;

	for (unsigned i = 0; i < count; i++) {
		bool is_sum = strstr(phases[i].name, "from main()") != NULL;

		entered |= strstr(phases[i].name, "enter the guest") != NULL;
		whole -= entered && !is_sum ? phases[i].last : 0;
	}
	return whole;
}

static void bench_hello(struct bench *bench)
{
	char *run[] = { (char *)bench->vmm, "run", "--stats",
			(char *)bench->hello, NULL };
	char *version[] = { (char *)bench->vmm, "--version", NULL };
	char *bare[] = { "/proc/self/exe", "--bare-vm", NULL };
	struct bench_row whole = {
		.name = "gpas-vmm run hello, exec to exit",
		.unit = "us",
		.against = "a bare VM, exec to exit",
	};
	struct bench_row process = {
		.name = "gpas-vmm --version, exec to exit",
		.unit = "us",
	};
	struct bench_row entry = {
		.name = "gpas-vmm run hello, exec to its 1st instruction",
		.unit = "us",
	};
	struct phase phases[PHASES] = { 0 };
	struct report report;
	char self[512] = { 0 };
	unsigned count = 0;
	double elapsed;

	bench_must(readlink(bare[0], self, sizeof(self) - 1) < 0 ? -errno : 0,
		   bare[0]);
	bare[0] = self;
	for (unsigned n = 0; n < bench->repetitions; n++) {
		series_add(&process.figure, time_process(version, &report));
		series_add(&whole.floor, time_process(bare, &report));
		elapsed = time_process(run, &report);
		series_add(&whole.figure, elapsed);
		count = read_phases(report.text, phases);
		bench_must(count == 0 ? -EBADMSG : 0, "the phases in --stats");
		series_add(&entry.figure, before_entry(elapsed, phases, count));
	}
	bench_report(bench, &process);
	bench_report(bench, &whole);
	bench_report(bench, &entry);
	report_phases(bench, phases, count);
}

void bench_start(struct bench *bench)
{
	struct machine machine;

	if (!bench_group(bench, "start", "Starting a guest")) {
		return;
	}
	if (bench->vmm == NULL || bench->hello == NULL) {
		bench_skip(bench, "gpas-vmm run hello",
			   "--vmm and --hello are not given");
		return;
	}
	if (machine_open(&machine, BOOT) != 0) {
		bench_skip(bench, "gpas-vmm run hello", "no usable /dev/kvm");
		return;
	}
	machine_close(&machine);
	bench_unpin(bench);
	bench_hello(bench);
	bench_pin(bench, 0);
}
