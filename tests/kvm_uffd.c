/* SPDX-License-Identifier: MIT */
/*
 * Guests that touch lazy memory on a real KVM, by every mechanism and at both
 * privilege levels: one or two vCPUs at once, with a filler that fails and is
 * repaired, and with memory given back under them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)

#define BOOT	 (UINT64_C(0x10000))
#define CODE	 (UINT64_C(0x1000))
#define LOW	 (64 * PAGE)
#define TARGET	 (64 * MIB)
#define DOORBELL (UINT64_C(3) << 30)
#define PAGES	 256
#define VCPUS	 2

/*
 * Of each of rcx pages from rdi on: adds the word at 64 to rax and stores the
 * page's address at r8. Then stores rax at rbx.
 */
__asm__(".pushsection .rodata\n"
	"sweep:	mov 64(%rdi), %rdx\n"
	"	add %rdx, %rax\n"
	"	mov %rdi, (%rdi, %r8)\n"
	"	add $4096, %rdi\n"
	"	dec %rcx\n"
	"	jnz sweep\n"
	"	mov %rax, (%rbx)\n"
	"sweep_end:\n"
	".popsection\n");
extern const uint8_t sweep[];
extern const uint8_t sweep_end[];

struct rig;

struct cpu {
	struct rig *rig;
	struct machine machine; /* VM and KVM descriptors are the first's */
	struct gpas_vcpu vcpu;
	pthread_t thread;
	unsigned index;
	unsigned sweeps;
	uint64_t sum;
	int result; /* of the run loop */
	unsigned wrong;
};

struct rig {
	struct gpas *space;
	struct cpu cpus[VCPUS];
	unsigned cpu_count;
	unsigned level;
	_Atomic(int) error;	    /* what the filler returns */
	_Atomic(uint64_t) error_at; /* for the granule with this page */
	_Atomic(unsigned) filled[PAGES];
	_Atomic(unsigned) pending; /* threads that are still sweeping */
	char line[256];
};

/* ---- The filler and the log ---------------------------------------------- */

static uint64_t content(uint64_t page)
{
	return page * page + 7;
}

static uint64_t full_sum(void)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < PAGES; page++) {
		sum += content(page);
	}
	return sum;
}

static int write_content(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	struct rig *rig = ctx;
	uint64_t first = (gpa.value - TARGET) / PAGE;
	uint64_t count = size / PAGE;
	uint64_t bad = atomic_load(&rig->error_at);

	if (rig->error != 0 && bad >= first && bad < first + count) {
		return rig->error;
	}
	for (uint64_t i = 0; i < count; i++) {
		((uint64_t *)host)[i * PAGE / 8 + 8] = content(first + i);
		atomic_fetch_add(&rig->filled[first + i], 1);
	}
	return 0;
}

static void keep_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct rig *rig = ctx;

	(void)level;
	(void)snprintf(rig->line, sizeof(rig->line), "%s", line);
}

/* ---- vCPUs --------------------------------------------------------------- */

static void wake_up(int number)
{
	(void)number;
}

static void pause_cpus(void *ctx)
{
	struct rig *rig = ctx;

	for (unsigned i = 0; i < rig->cpu_count; i++) {
		struct cpu *cpu = &rig->cpus[i];

		__atomic_store_n(&cpu->machine.run->immediate_exit, 1,
				 __ATOMIC_SEQ_CST);
		while (gpas_vcpu_running(&cpu->vcpu)) {
			(void)pthread_kill(cpu->thread, SIGUSR1);
			usleep(20);
		}
	}
}

static void resume_cpus(void *ctx)
{
	struct rig *rig = ctx;

	for (unsigned i = 0; i < rig->cpu_count; i++) {
		__atomic_store_n(&rig->cpus[i].machine.run->immediate_exit, 0,
				 __ATOMIC_SEQ_CST);
	}
}

/* One more vCPU of the first one's VM. */
static void add_cpu(struct rig *rig, struct cpu *cpu)
{
	const unsigned count = 256;
	struct machine *machine = &cpu->machine;
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + count * sizeof(cpuid->entries[0]));

	*machine = rig->cpus[0].machine;
	machine->vcpu_fd = ioctl(machine->vm_fd, KVM_CREATE_VCPU, cpu->index);
	assert_true(machine->vcpu_fd >= 0);
	machine->run = mmap(NULL, machine->run_bytes, PROT_READ | PROT_WRITE,
			    MAP_SHARED, machine->vcpu_fd, 0);
	assert_ptr_not_equal(machine->run, MAP_FAILED);
	assert_non_null(cpuid);
	cpuid->nent = count;
	assert_int_equal(ioctl(machine->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid),
			 0);
	assert_int_equal(ioctl(machine->vcpu_fd, KVM_SET_CPUID2, cpuid), 0);
	free(cpuid);
}

static void start_sweep(const struct cpu *cpu)
{
	struct kvm_regs regs = {
		.rip = CODE,
		.rdi = TARGET,
		.rcx = PAGES,
		.rbx = DOORBELL,
		.r8 = 8 * (uint64_t)cpu->index,
	};

	(void)machine_settle(&cpu->machine);
	assert_int_equal(machine_set_regs(&cpu->machine, &regs), 0);
}

/* Runs until the doorbell or something of note: 1 for the doorbell. */
static int run_cpu(struct cpu *cpu, struct gpas_exit *exit)
{
	int err;

	do {
		err = gpas_vcpu_run(&cpu->vcpu, exit);
	} while (err == 0 && (exit->kind == GPAS_EXIT_RESUME ||
			      exit->kind == GPAS_EXIT_INTERRUPTED));
	if (err != 0 || exit->kind != GPAS_EXIT_FAULT ||
	    exit->fault.gpa.value != DOORBELL) {
		return err;
	}
	memcpy(&cpu->sum, cpu->machine.run->mmio.data, 8);
	return 1;
}

/* ---- Setting up ---------------------------------------------------------- */

static bool attach(struct rig *rig, enum gpas_lazy lazy)
{
	struct gpas_kvm_params kvm = {
		.vm_fd = rig->cpus[0].machine.vm_fd,
		.lazy = lazy == GPAS_LAZY_UFFD ? GPAS_LAZY_AUTO : lazy,
		.pause = pause_cpus,
		.resume = resume_cpus,
		.ctx = rig,
	};

	return gpas_kvm_attach(rig->space, &kvm) == 0;
}

static bool map_all(struct rig *rig, enum gpas_lazy lazy, uint64_t granule)
{
	struct gpas_params params = {
		.size = UINT64_C(4) << 30,
		.log = keep_line,
		.log_ctx = rig,
	};
	struct gpas_map_params map = {
		.lazy = true,
		.granule = granule,
		.mechanism = lazy == GPAS_LAZY_UFFD ? GPAS_LAZY_UFFD
						    : GPAS_LAZY_AUTO,
		.filler = { write_content, rig },
	};
	struct gpas_translation low;

	assert_int_equal(gpas_create(&params, &rig->space), 0);
	assert_int_equal(gpas_map_alloc(rig->space, gpas_gpa_at(0), LOW,
					GPAS_PROT_RWX, NULL),
			 0);
	assert_int_equal(
		gpas_translate(rig->space, gpas_gpa_at(0), 0, LOW, &low), 0);
	machine_fill_boot(&rig->cpus[0].machine, (char *)low.host + BOOT);
	memcpy((char *)low.host + CODE, sweep, (size_t)(sweep_end - sweep));
	return gpas_map_alloc(rig->space, gpas_gpa_at(TARGET), PAGES * PAGE,
			      GPAS_PROT_RWX, &map) == 0;
}

/* False, with a word about it, where the mechanism is not to be had. */
static bool rig_open(struct rig *rig, enum gpas_lazy lazy, unsigned level,
		     unsigned cpus, uint64_t granule)
{
	*rig = (struct rig){ .cpu_count = cpus, .level = level };
	assert_int_equal(machine_open(&rig->cpus[0].machine, BOOT), 0);
	if (!map_all(rig, lazy, granule) || !attach(rig, lazy)) {
		print_message("skipped, no %s: %s\n", gpas_lazy_name(lazy),
			      rig->line);
		gpas_destroy(rig->space);
		machine_close(&rig->cpus[0].machine);
		return false;
	}
	for (unsigned i = 0; i < cpus; i++) {
		struct cpu *cpu = &rig->cpus[i];

		cpu->rig = rig;
		cpu->index = i;
		if (i > 0) {
			add_cpu(rig, cpu);
		}
		assert_int_equal(gpas_vcpu_init(&cpu->vcpu, rig->space,
						cpu->machine.vcpu_fd,
						cpu->machine.run),
				 0);
		assert_int_equal(machine_set_level(&cpu->machine, level), 0);
	}
	return true;
}

static void rig_close(struct rig *rig)
{
	assert_int_equal(gpas_check(rig->space), 0);
	for (unsigned i = rig->cpu_count; i-- > 0;) {
		gpas_vcpu_fini(&rig->cpus[i].vcpu);
	}
	for (unsigned i = 1; i < rig->cpu_count; i++) {
		munmap(rig->cpus[i].machine.run,
		       rig->cpus[i].machine.run_bytes);
		close(rig->cpus[i].machine.vcpu_fd);
	}
	gpas_destroy(rig->space);
	machine_close(&rig->cpus[0].machine);
}

static const enum gpas_lazy mechanisms[] = { GPAS_LAZY_TRAP, GPAS_LAZY_ABSENT,
					     GPAS_LAZY_UFFD };

/* Whether cpu @index's stores are in all pages. */
static void assert_stored(struct rig *rig, unsigned index)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		gpas_gpa gpa = gpas_gpa_at(TARGET + page * PAGE);
		uint64_t value = 0;

		assert_int_equal(gpas_load(rig->space,
					   gpas_gpa_at(gpa.value + 8 * index),
					   8, &value),
				 0);
		assert_int_equal(value, gpa.value);
	}
}

/* ---- Tests --------------------------------------------------------------- */

static void touch_once(enum gpas_lazy lazy, unsigned level)
{
	struct gpas_stats stats;
	struct gpas_exit exit;
	struct rig rig;

	if (!rig_open(&rig, lazy, level, 1, PAGE)) {
		return;
	}
	start_sweep(&rig.cpus[0]);
	assert_int_equal(run_cpu(&rig.cpus[0], &exit), 1);
	assert_int_equal(rig.cpus[0].sum, full_sum());
	assert_stored(&rig, 0);
	/* The server wakes a toucher before it has counted. */
	do {
		gpas_stats(rig.space, &stats);
	} while (lazy == GPAS_LAZY_UFFD && stats.populations < PAGES);
	assert_int_equal(stats.populations, PAGES);
	for (unsigned page = 0; page < PAGES; page++) {
		assert_int_equal(rig.filled[page], 1);
	}
	if (lazy == GPAS_LAZY_UFFD) {
		/* No exit but the doorbell's. */
		assert_int_equal(stats.uffd_faults, PAGES);
		assert_int_equal(stats.exits_mmio, 1);
		assert_int_equal(stats.exits_memory_fault, 0);
		assert_int_equal(stats.traps, 0);
	} else {
		assert_int_equal(stats.uffd_faults, 0);
		assert_true(stats.exits_mmio + stats.exits_memory_fault >=
			    PAGES);
	}
	rig_close(&rig);
}

static void test_touch(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		touch_once(mechanisms[i / 2], i % 2 * 3);
	}
}

/* The guest sees the filler's error as an exit, and goes on when the filler
 * works again. An access that KVM had as MMIO is completed with all ones; any
 * other is repeated. */
static void fail_and_repair(enum gpas_lazy lazy, unsigned level)
{
	uint64_t sum = full_sum();
	struct gpas_exit exit;
	struct rig rig;

	if (!rig_open(&rig, lazy, level, 1, PAGE)) {
		return;
	}
	rig.error_at = 100;
	rig.error = -EREMOTEIO;
	start_sweep(&rig.cpus[0]);
	for (unsigned n = 0; n < 2; n++) {
		assert_int_equal(run_cpu(&rig.cpus[0], &exit), 0);
		assert_int_equal(exit.kind, GPAS_EXIT_FAULT);
		assert_int_equal(exit.fault.kind, GPAS_FAULT_FAILED);
		assert_int_equal(exit.fault.error, -EREMOTEIO);
		assert_int_equal(exit.fault.gpa.value / PAGE,
				 TARGET / PAGE + 100);
		if (exit.retryable) {
			sum += UINT64_MAX - content(100);
			break;
		}
	}
	rig.error = 0;
	assert_int_equal(run_cpu(&rig.cpus[0], &exit), 1);
	assert_int_equal(rig.cpus[0].sum, sum);
	assert_stored(&rig, 0);
	rig_close(&rig);
}

static void test_failing_filler(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		fail_and_repair(mechanisms[i / 2], i % 2 * 3);
	}
}

static void *sweep_often(void *arg)
{
	struct cpu *cpu = arg;
	struct gpas_exit exit;

	for (unsigned n = 0; n < cpu->sweeps && cpu->result >= 0; n++) {
		start_sweep(cpu);
		cpu->result = run_cpu(cpu, &exit);
		if (cpu->result == 0) {
			cpu->result = -EPROTO;
		}
		cpu->wrong += cpu->result == 1 && cpu->sum != full_sum();
	}
	atomic_fetch_sub(&cpu->rig->pending, 1);
	return NULL;
}

static void start_cpus(struct rig *rig, unsigned sweeps)
{
	struct sigaction action = { .sa_handler = wake_up };

	assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
	rig->pending = rig->cpu_count;
	for (unsigned i = 0; i < rig->cpu_count; i++) {
		rig->cpus[i].sweeps = sweeps;
		assert_int_equal(pthread_create(&rig->cpus[i].thread, NULL,
						sweep_often, &rig->cpus[i]),
				 0);
	}
}

static void join_cpus(struct rig *rig)
{
	for (unsigned i = 0; i < rig->cpu_count; i++) {
		pthread_join(rig->cpus[i].thread, NULL);
		if (rig->cpus[i].result != 1) {
			print_error("vCPU %u: %d, %s\n", i, rig->cpus[i].result,
				    rig->line);
		}
		assert_int_equal(rig->cpus[i].result, 1);
		assert_int_equal(rig->cpus[i].wrong, 0);
	}
}

/* Two vCPUs fault on the same granules at once: each comes once, and no store
 * is lost. */
static void fault_together(enum gpas_lazy lazy, unsigned level)
{
	struct rig rig;

	for (unsigned n = 0; n < 4; n++) {
		if (!rig_open(&rig, lazy, level, VCPUS, 4 * PAGE)) {
			return;
		}
		start_cpus(&rig, 1);
		join_cpus(&rig);
		for (unsigned page = 0; page < PAGES; page++) {
			assert_int_equal(rig.filled[page], 1);
		}
		for (unsigned i = 0; i < VCPUS; i++) {
			assert_stored(&rig, i);
		}
		rig_close(&rig);
	}
}

static void test_together(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		fault_together(mechanisms[i / 2], i % 2 * 3);
	}
}

/* Memory is given back while vCPUs sweep over it: the content they read is
 * always the filler's. */
static void discard_under(enum gpas_lazy lazy, unsigned level, unsigned cpus)
{
	struct gpas_stats stats;
	uint64_t at = 0;
	struct rig rig;

	if (!rig_open(&rig, lazy, level, cpus, 4 * PAGE)) {
		return;
	}
	start_cpus(&rig, level == 0 ? 2 : 6);
	while (atomic_load(&rig.pending) > 0) {
		int err;

		at = (at * 5 + 13) % (PAGES / 4);
		err = gpas_discard(rig.space,
				   gpas_gpa_at(TARGET + at * 4 * PAGE),
				   4 * PAGE);
		if (err != 0) {
			print_error("discard: %s, %s\n", strerror(-err),
				    rig.line);
			break;
		}
		usleep(1000);
	}
	join_cpus(&rig);
	gpas_stats(rig.space, &stats);
	assert_true(stats.discards > 0);
	assert_int_equal(stats.discarded, stats.discards * 4 * PAGE);
	rig_close(&rig);
}

static void test_discard(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		discard_under(mechanisms[i / 4], i % 2 * 3, 1 + i / 2 % 2);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_touch),
		cmocka_unit_test(test_failing_filler),
		cmocka_unit_test(test_together),
		cmocka_unit_test(test_discard),
	};
	struct machine machine;

	if (machine_open(&machine, BOOT) != 0) {
		(void)fprintf(stderr, "no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
