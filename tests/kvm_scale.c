/* SPDX-License-Identifier: MIT */
/*
 * What a fault costs as regions grow, on a real KVM: from 64 MiB to 1 TiB of
 * lazy memory, by traps and by absent slots. The number of ioctls is bounded,
 * which is asserted; times are printed for a person.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)

#define BOOT	 (UINT64_C(0x10000))
#define CODE	 (UINT64_C(0x1000))
#define LOW	 (64 * PAGE)
#define TARGET	 GIB
#define DOORBELL (512 * MIB)

#define TOUCHES 64  /* by the guest, near the start of the region */
#define FAULTS	200 /* by the VMM, anywhere in it */

/* Stores to rcx pages at random within the rsi + 1 pages from rdi on. */
__asm__(".pushsection .rodata\n"
	"touch:	imul $0x5851f42d, %rax, %rax\n"
	"	add $0x14057b7f, %rax\n"
	"	and %rsi, %rax\n"
	"	mov %rax, %rdx\n"
	"	shl $12, %rdx\n"
	"	mov %rax, (%rdi, %rdx)\n"
	"	dec %rcx\n"
	"	jnz touch\n"
	"	mov %rax, (%rbx)\n"
	"touch_end:\n"
	".popsection\n");
extern const uint8_t touch[];
extern const uint8_t touch_end[];

/* What faults took: how many changes of slots, and how long. */
struct cost {
	uint64_t faults;
	uint64_t ioctls;
	uint64_t most;	/* ioctls of one fault */
	uint64_t first; /* ns of the first fault, of all, of the longest */
	uint64_t total;
	uint64_t longest;
};

static void must(int err, const char *what)
{
	if (err != 0) {
		(void)fprintf(stderr, "kvm_scale: %s: %s\n", what,
			      strerror(err < 0 ? -err : err));
		exit(1);
	}
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t ioctls(struct gpas *space)
{
	struct gpas_stats stats;

	gpas_stats(space, &stats);
	return stats.slot_adds + stats.slot_deletes;
}

static void add_cost(struct cost *cost, uint64_t calls, uint64_t ns)
{
	if (cost->faults++ == 0) {
		cost->first = ns;
	}
	cost->ioctls += calls;
	cost->most = calls > cost->most ? calls : cost->most;
	cost->total += ns;
	cost->longest = ns > cost->longest ? ns : cost->longest;
}

/* The guest touches; a cost is from one entry to the next. */
static void guest_touches(const struct machine *machine, struct gpas *space,
			  uint64_t size, struct cost *cost)
{
	uint64_t window = size < 2 * GIB ? size : 2 * GIB;
	struct kvm_regs regs = {
		.rip = CODE,
		.rdi = TARGET,
		.rsi = window / PAGE - 1,
		.rcx = TOUCHES,
		.rbx = DOORBELL,
	};
	struct gpas_vcpu vcpu;
	struct gpas_exit exit;

	must(gpas_vcpu_init(&vcpu, space, machine->vcpu_fd, machine->run),
	     "a vCPU");
	must(machine_set_level(machine, 3), "the vCPU's mode");
	must(machine_set_regs(machine, &regs), "the vCPU's registers");
	for (;;) {
		uint64_t before = ioctls(space);
		uint64_t begun = now_ns();

		must(gpas_vcpu_run(&vcpu, &exit), "KVM_RUN");
		if (exit.kind != GPAS_EXIT_RESUME) {
			break;
		}
		add_cost(cost, ioctls(space) - before, now_ns() - begun);
	}
	must(exit.kind != GPAS_EXIT_FAULT || exit.fault.gpa.value != DOORBELL,
	     "the guest's end");
	gpas_vcpu_fini(&vcpu);
}

static void vmm_faults(struct gpas *space, uint64_t size, struct cost *cost)
{
	uint64_t random = 88172645463325252;

	for (unsigned n = 0; n < FAULTS; n++) {
		struct gpas_fault fault;
		uint64_t before = ioctls(space);
		uint64_t begun;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		begun = now_ns();
		must(gpas_fault(space, gpas_gpa_at(TARGET + random % size), 0,
				&fault),
		     "a fault");
		must(fault.error, "populating");
		if (fault.populated != 0) {
			add_cost(cost, ioctls(space) - before,
				 now_ns() - begun);
		}
	}
}

static void print_cost(const char *who, const struct cost *cost)
{
	printf("  %s %6.1f %4llu %9.1f %9.1f %9.1f", who,
	       (double)cost->ioctls / (double)cost->faults,
	       (unsigned long long)cost->most, (double)cost->first / 1000,
	       (double)(cost->total - cost->first) /
		       (double)(cost->faults - 1) / 1000,
	       (double)cost->longest / 1000);
}

static unsigned log2_of(uint64_t value)
{
	return 63u - (unsigned)__builtin_clzll(value);
}

/* Whether the ioctls stay within bounds. A trap that a fault cuts falls into
 * its halves on either side, once: down to 16 GiB where large traps cost no
 * more than small ones, elsewhere a chunk into two. Then two pieces remain. */
static bool is_bounded(enum gpas_lazy lazy, uint64_t size,
		       const struct cost *cost)
{
	uint64_t halves = 2 * log2_of(size / (16 * GIB) | 2);
	uint64_t bound = lazy == GPAS_LAZY_TRAP ? halves + 6 : 1;

	if (cost->most <= bound &&
	    cost->ioctls <= cost->faults * (lazy == GPAS_LAZY_TRAP ? 12 : 1)) {
		return true;
	}
	printf("  more than %llu\n", (unsigned long long)bound);
	return false;
}

static struct gpas *open_space(const struct machine *machine,
			       enum gpas_lazy lazy)
{
	struct gpas_params params = { .size = UINT64_C(1) << 42 };
	struct gpas_kvm_params kvm = {
		.vm_fd = machine->vm_fd,
		.lazy = lazy,
	};
	struct gpas_translation low;
	struct gpas *space;

	must(gpas_create(&params, &space), "a space");
	must(gpas_map_alloc(space, gpas_gpa_at(0), LOW, GPAS_PROT_RWX, NULL),
	     "low memory");
	must(gpas_translate(space, gpas_gpa_at(0), 0, LOW, &low), "low memory");
	machine_fill_boot(machine, (char *)low.host + BOOT);
	memcpy((char *)low.host + CODE, touch, (size_t)(touch_end - touch));
	if (gpas_kvm_attach(space, &kvm) != 0) {
		gpas_destroy(space);
		return NULL;
	}
	return space;
}

/* One row. False when a bound was broken. */
static bool measure(enum gpas_lazy lazy, uint64_t size)
{
	struct gpas_map_params map = { .lazy = true };
	struct cost guest = { 0 };
	struct cost vmm = { 0 };
	struct machine machine;
	struct gpas *space;
	bool bounded = true;
	uint64_t begun;

	must(machine_open(&machine, BOOT), "/dev/kvm");
	space = open_space(&machine, lazy);
	printf("%-6s %6llu GiB", gpas_lazy_name(lazy),
	       (unsigned long long)(size / GIB));
	begun = now_ns();
	if (space == NULL || gpas_map_alloc(space, gpas_gpa_at(TARGET), size,
					    GPAS_PROT_RWX, &map) != 0) {
		printf("  not to be had here\n");
	} else {
		printf("  map %8.3f ms", (double)(now_ns() - begun) / 1e6);
		guest_touches(&machine, space, size, &guest);
		vmm_faults(space, size, &vmm);
		print_cost("| guest", &guest);
		print_cost("| VMM", &vmm);
		printf("\n");
		bounded = is_bounded(lazy, size, &guest) &&
			  is_bounded(lazy, size, &vmm);
		must(gpas_check(space), "gpas_check");
	}
	(void)fflush(stdout);
	gpas_destroy(space);
	machine_close(&machine);
	return bounded;
}

int main(void)
{
	static const uint64_t sizes[] = { 64 * MIB, GIB, 16 * GIB, 256 * GIB,
					  1024 * GIB };
	struct machine machine;
	bool bounded = true;

	if (machine_open(&machine, BOOT) != 0) {
		(void)fprintf(stderr, "no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	printf("Cost of a fault by the guest, then by the VMM alone: ioctls on "
	       "average and at most;\nmicroseconds of the first, of the "
	       "others on average, of the longest.\n");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		bounded = measure(GPAS_LAZY_TRAP, sizes[i]) && bounded;
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		bounded = measure(GPAS_LAZY_ABSENT, sizes[i]) && bounded;
	}
	return bounded ? 0 : 1;
}
