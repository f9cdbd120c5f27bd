/* SPDX-License-Identifier: MIT */
/*
 * The delivery of an exception as the first to touch lazy memory: the frame is
 * pushed to a stack that is not there. A trap tells the address, and the
 * delivery is repeated. With an absent slot nobody can help
 * (docs/kvm-notes.md); what matters then is that the run ends with an exit
 * instead of never.
 */
#include "machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/mman.h>

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)

#define LOW_BYTES (256 * UINT64_C(1024))
#define BOOT	  UINT64_C(0x10000)
#define CODE	  UINT64_C(0x20000)
#define TABLE	  UINT64_C(0x30000) /* interrupt table, and its pointer */
#define LAZY	  (16 * MIB)
#define DOORBELL  UINT64_C(0xe0000000)
#define STACK	  (LAZY + 0x800)
#define FRAME	  40 /* rip, cs, flags, rsp, ss (Intel SDM 3, 6.14.2) */

/*
 * rsi: TABLE, rdi: STACK, rbx: the doorbell. Points the gate of invalid opcodes
 * (6; SDM 3, 6.14.1) to what follows ud2 and lets it happen, on that stack.
 * Rings with the stack pointer that the frame holds.
 */
extern const char guest[], guest_end[];
__asm__(".pushsection .rodata\n"
	"guest:\n"
	"lea 1f(%rip),%rax\n"
	"mov %ax,96(%rsi)\n"
	"movl $0x8e000008,98(%rsi)\n"
	"shr $16,%rax\n"
	"mov %ax,102(%rsi)\n"
	"movq $0,104(%rsi)\n"
	"movw $511,512(%rsi)\n"
	"mov %rsi,514(%rsi)\n"
	"lidt 512(%rsi)\n"
	"mov %rdi,%rsp\n"
	"ud2\n"
	"1: mov 24(%rsp),%rax\n"
	"mov %rax,(%rbx)\n"
	"2: jmp 2b\n"
	"guest_end:\n"
	".popsection\n");

struct fixture {
	struct machine machine;
	struct gpas *space;
	struct gpas_vcpu vcpu;
	uint8_t *low;
	uint64_t rung; /* what the guest rang with; 0: not yet */
};

static int ring(void *ctx, struct gpas_device_access *access)
{
	struct fixture *f = ctx;

	f->rung = access->value;
	return 0;
}

static void map_guest(struct fixture *f)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas_device bell = { .ctx = f, .access = ring };

	f->low = mmap(NULL, LOW_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->low, MAP_FAILED);
	machine_fill_boot(&f->machine, f->low + BOOT);
	memcpy(f->low + CODE, guest, (size_t)(guest_end - guest));
	assert_int_equal(gpas_map_linear(f->space, gpas_gpa_at(0), LOW_BYTES,
					 f->low, GPAS_PROT_RWX, NULL),
			 0);
	assert_int_equal(
		gpas_map_device(f->space, gpas_gpa_at(DOORBELL), PAGE, &bell),
		0);
	assert_int_equal(gpas_map_alloc(f->space, gpas_gpa_at(LAZY), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
}

static void finish(struct fixture *f)
{
	if (f->vcpu.space != NULL) {
		gpas_vcpu_fini(&f->vcpu);
	}
	gpas_destroy(f->space);
	machine_close(&f->machine);
	munmap(f->low, LOW_BYTES);
}

/* False: this kernel does not offer @lazy. */
static bool start(struct fixture *f, enum gpas_lazy lazy)
{
	struct gpas_params params = { .size = UINT64_C(1) << 32 };
	struct gpas_kvm_params kvm = { .lazy = lazy };
	struct kvm_regs regs = {
		.rip = CODE, .rsi = TABLE, .rdi = STACK, .rbx = DOORBELL
	};
	int err;

	memset(f, 0, sizeof(*f));
	assert_int_equal(machine_open(&f->machine, BOOT), 0);
	assert_int_equal(gpas_create(&params, &f->space), 0);
	map_guest(f);
	kvm.vm_fd = f->machine.vm_fd;
	err = gpas_kvm_attach(f->space, &kvm);
	if (err == -EOPNOTSUPP && lazy == GPAS_LAZY_TRAP) {
		finish(f);
		return false;
	}
	assert_int_equal(err, 0);
	assert_int_equal(gpas_vcpu_init(&f->vcpu, f->space, f->machine.vcpu_fd,
					f->machine.run),
			 0);
	assert_int_equal(machine_set_level(&f->machine, 0), 0);
	assert_int_equal(machine_set_regs(&f->machine, &regs), 0);
	return true;
}

/* Runs until the guest rings or something happens that nobody handles. */
static void run(struct fixture *f, struct gpas_exit *exit)
{
	for (unsigned turns = 0; turns < 1000 && f->rung == 0; turns++) {
		assert_int_equal(gpas_vcpu_run(&f->vcpu, exit), 0);
		if (exit->kind != GPAS_EXIT_RESUME) {
			return;
		}
	}
}

/* Whether the exception arrived, with its frame where it belongs. */
static bool delivered(struct fixture *f)
{
	struct gpas_stats stats;
	uint64_t frame[FRAME / 8];

	gpas_stats(f->space, &stats);
	if (f->rung == 0) {
		return false;
	}
	assert_int_equal(f->rung, STACK);
	assert_int_equal(stats.populated, PAGE);
	assert_int_equal(gpas_read(f->space, gpas_gpa_at(STACK - FRAME), frame,
				   sizeof(frame), NULL),
			 0);
	assert_in_range(frame[0], CODE, CODE + PAGE);
	assert_int_equal(frame[3], STACK);
	assert_int_equal(gpas_check(f->space), 0);
	return true;
}

static void present_stack(void **state)
{
	struct gpas_exit exit;
	struct fixture f;

	(void)state;
	assert_true(start(&f, GPAS_LAZY_ABSENT));
	assert_int_equal(
		gpas_populate(f.space, gpas_gpa_at(STACK & -PAGE), PAGE), 0);
	run(&f, &exit);
	assert_true(delivered(&f));
	finish(&f);
}

/* A KVM that emulates level 0 has no memory faults there: the same as absent.
 */
static void lazy_stack(enum gpas_lazy lazy)
{
	struct gpas_exit exit = { 0 };
	struct gpas_stats stats;
	struct fixture f;
	bool arrived;

	if (!start(&f, lazy)) {
		print_message("no trap slots here\n");
		skip();
	}
	run(&f, &exit);
	arrived = delivered(&f);
	gpas_stats(f.space, &stats);
	print_message("%s slot: %s\n", gpas_lazy_name(lazy),
		      arrived ? "delivered" : "the run ended");
	if (!arrived) {
		assert_int_equal(exit.kind, GPAS_EXIT_OTHER);
		assert_int_equal(stats.exits_memory_fault, 0);
	}
	finish(&f);
}

static void absent_stack(void **state)
{
	(void)state;
	lazy_stack(GPAS_LAZY_ABSENT);
}

static void trapped_stack(void **state)
{
	(void)state;
	lazy_stack(GPAS_LAZY_TRAP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(present_stack),
		cmocka_unit_test(trapped_stack),
		cmocka_unit_test(absent_stack),
	};
	struct machine machine;

	if (machine_open(&machine, BOOT) == -ENODEV) {
		printf("skipped: no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	return cmocka_run_group_tests_name("deliveries on KVM", tests, NULL,
					   NULL);
}
