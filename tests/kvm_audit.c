/* SPDX-License-Identifier: MIT */
/*
 * The audit on a real KVM: silent on a sound space, and not on one whose slots
 * or host memory were tampered with behind the library's back.
 */
#include "machine.h"
#include "mirror.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE	GPAS_PAGE_BYTES
#define MIB	(UINT64_C(1) << 20)
#define BOOT	UINT64_C(0x10000)
#define CODE	UINT64_C(0x20000)
#define RAM	(4 * MIB)
#define LAZY	(16 * MIB)
#define NUMBERS 64

/* mov (%rdi),%rax; mov %rax,(%rbx); jmp . */
static const uint8_t read_code[] = { 0x48, 0x8b, 0x07, 0x48,
				     0x89, 0x03, 0xeb, 0xfe };
#define RESULT_GPA UINT64_C(0xe0000000)

struct fixture {
	struct machine machine;
	struct gpas *space;
	struct gpas_vcpu vcpu;
	uint8_t *low; /* [0, 256 KiB) of the guest */
	uint8_t *ram; /* 64 pages at RAM, of them 8 read-only */
	char last[256];
};

static void log_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct fixture *fixture = ctx;

	(void)level;
	(void)snprintf(fixture->last, sizeof(fixture->last), "%s", line);
}

static void *host_memory(size_t bytes)
{
	void *host = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(host, MAP_FAILED);
	return host;
}

static void map_everything(struct fixture *fixture)
{
	struct gpas *space = fixture->space;
	struct gpas_map_params lazy = { .lazy = true };

	assert_int_equal(gpas_map_linear(space, gpas_gpa_at(0), 64 * PAGE,
					 fixture->low, GPAS_PROT_RWX, NULL),
			 0);
	assert_int_equal(gpas_map_linear(space, gpas_gpa_at(RAM), 64 * PAGE,
					 fixture->ram, GPAS_PROT_RW, NULL),
			 0);
	assert_int_equal(gpas_protect(space, gpas_gpa_at(RAM + 8 * PAGE),
				      8 * PAGE, GPAS_PROT_READ),
			 0);
	assert_int_equal(gpas_map_alloc(space, gpas_gpa_at(LAZY), 4 * MIB,
					GPAS_PROT_RWX, &lazy),
			 0);
	assert_int_equal(gpas_populate(space, gpas_gpa_at(LAZY + MIB), PAGE),
			 0);
}

static int setup(void **state)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));
	struct gpas_params params = {
		.size = 1 << 30,
		.log = log_line,
		.log_ctx = fixture,
	};
	struct gpas_kvm_params kvm = { .slot_first = 3, .slot_count = NUMBERS };

	assert_non_null(fixture);
	assert_int_equal(machine_open(&fixture->machine, BOOT), 0);
	fixture->low = host_memory(64 * PAGE);
	fixture->ram = host_memory(64 * PAGE);
	machine_fill_boot(&fixture->machine, fixture->low + BOOT);
	memcpy(fixture->low + CODE, read_code, sizeof(read_code));
	assert_int_equal(gpas_create(&params, &fixture->space), 0);
	map_everything(fixture);
	kvm.vm_fd = fixture->machine.vm_fd;
	assert_int_equal(gpas_kvm_attach(fixture->space, &kvm), 0);
	assert_int_equal(gpas_vcpu_init(&fixture->vcpu, fixture->space,
					fixture->machine.vcpu_fd,
					fixture->machine.run),
			 0);
	assert_int_equal(machine_set_level(&fixture->machine, 0), 0);
	*state = fixture;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;

	assert_int_equal(gpas_check(fixture->space), 0);
	gpas_vcpu_fini(&fixture->vcpu);
	gpas_destroy(fixture->space);
	machine_close(&fixture->machine);
	munmap(fixture->low, 64 * PAGE);
	munmap(fixture->ram, 64 * PAGE);
	free(fixture);
	return 0;
}

/* ---- Tampering ----------------------------------------------------------- */

static struct kvm_userspace_memory_region recorded(struct fixture *fixture,
						   uint64_t gpa)
{
	struct span *span = span_find(&fixture->space->mirror->slots, gpa);
	const struct slot *slot = slot_of(span);

	assert_non_null(slot);
	return (struct kvm_userspace_memory_region){
		.slot = slot->id,
		.flags = slot->flags,
		.guest_phys_addr = span->start,
		.memory_size = span->end - span->start,
		.userspace_addr = slot->host,
	};
}

static void set_slot(struct fixture *fixture,
		     struct kvm_userspace_memory_region region)
{
	assert_int_equal(ioctl(fixture->machine.vm_fd,
			       KVM_SET_USER_MEMORY_REGION, &region),
			 0);
}

static void delete_slot(struct fixture *fixture, uint32_t id)
{
	set_slot(fixture, (struct kvm_userspace_memory_region){ .slot = id });
}

static uint64_t audit(struct fixture *fixture)
{
	struct gpas_audit result = { 0 };
	int err = gpas_audit(fixture->space, NULL, &result);

	if (err != 0 && err != -EUCLEAN) {
		print_error("audit: %s (%s)\n", strerror(-err), fixture->last);
	}
	assert_true(err == 0 || err == -EUCLEAN);
	assert_int_equal(err == -EUCLEAN, result.findings != 0);
	return result.findings;
}

/* The slot at @gpa is replaced by @wrong: found; put back: fine again. */
static void expect_found(struct fixture *fixture, uint64_t gpa,
			 const struct kvm_userspace_memory_region *wrong)
{
	struct kvm_userspace_memory_region right = recorded(fixture, gpa);

	delete_slot(fixture, right.slot);
	if (wrong != NULL) {
		set_slot(fixture, *wrong);
	}
	assert_in_range(audit(fixture), 1, 3);
	/* Asking leaves things as they are, also wrong ones. */
	assert_in_range(audit(fixture), 1, 3);
	if (wrong != NULL) {
		delete_slot(fixture, wrong->slot);
	}
	set_slot(fixture, right);
	assert_int_equal(audit(fixture), 0);
}

static void test_sound(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_audit result;
	struct gpas_stats stats;

	gpas_stats(fixture->space, &stats);
	assert_int_equal(gpas_audit(fixture->space, NULL, &result), 0);
	assert_int_equal(result.slots, stats.slots + stats.traps);
	assert_int_equal(result.numbers, NUMBERS - result.slots);
	assert_int_equal(result.host_bytes, 4 * MIB - PAGE);
	assert_int_equal(gpas_audit(fixture->space, NULL, NULL), 0);
}

static void test_slot_gone(void **state)
{
	expect_found(*state, RAM, NULL);
	expect_found(*state, 0, NULL);
}

static void test_slot_differs(void **state)
{
	struct fixture *fixture = *state;
	struct kvm_userspace_memory_region wrong = recorded(fixture, RAM);

	wrong.memory_size -= PAGE;
	expect_found(fixture, RAM, &wrong);
	wrong = recorded(fixture, RAM);
	wrong.userspace_addr += PAGE;
	expect_found(fixture, RAM, &wrong);
	wrong = recorded(fixture, RAM);
	wrong.flags = KVM_MEM_READONLY;
	expect_found(fixture, RAM, &wrong);
	wrong = recorded(fixture, RAM);
	wrong.guest_phys_addr -= PAGE;
	expect_found(fixture, RAM, &wrong);
	wrong = recorded(fixture, RAM + 8 * PAGE);
	wrong.flags = 0;
	expect_found(fixture, RAM + 8 * PAGE, &wrong);
	/* The place is right, the number is not. */
	wrong = recorded(fixture, RAM);
	wrong.slot = 3 + NUMBERS - 1;
	expect_found(fixture, RAM, &wrong);
}

static void test_foreign_slot(void **state)
{
	struct fixture *fixture = *state;
	struct kvm_userspace_memory_region region = {
		.slot = 3 + NUMBERS / 2,
		.guest_phys_addr = 512 * MIB,
		.memory_size = PAGE,
		.userspace_addr = gpas_hva_of(fixture->ram).value,
	};

	set_slot(fixture, region);
	assert_int_equal(audit(fixture), 1);
	delete_slot(fixture, region.slot);
	/* The first number that the audit would ask with is no different. */
	region.slot = (uint32_t)fixture->space->mirror->next_id;
	set_slot(fixture, region);
	assert_int_equal(audit(fixture), 1);
	delete_slot(fixture, region.slot);
	/* A number outside the space's is the embedder's. */
	region.slot = 3 + NUMBERS;
	set_slot(fixture, region);
	assert_int_equal(audit(fixture), 0);
	delete_slot(fixture, region.slot);
}

static void test_dirty_log(void **state)
{
	struct fixture *fixture = *state;
	struct kvm_userspace_memory_region region = recorded(fixture, RAM);

	region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	set_slot(fixture, region);
	assert_int_equal(audit(fixture), 1);
	region.flags &= ~(__u32)KVM_MEM_LOG_DIRTY_PAGES;
	set_slot(fixture, region);
	assert_int_equal(audit(fixture), 0);
}

static void test_trap_gone(void **state)
{
	struct fixture *fixture = *state;
	struct kvm_userspace_memory_region region;

	if (fixture->space->mirror->lazy != GPAS_LAZY_TRAP) {
		skip();
	}
	region = recorded(fixture, LAZY + 2 * MIB);
	delete_slot(fixture, region.slot);
	assert_int_equal(audit(fixture), 1);
	/* What the space believes to have is gone: only this brings it back. */
	fixture->space->mirror->lost = true;
	fixture->space->poisoned = true;
	assert_int_equal(gpas_audit(fixture->space, NULL, NULL),
			 -ENOTRECOVERABLE);
	assert_int_equal(gpas_clear(fixture->space), 0);
	assert_int_equal(audit(fixture), 0);
}

static void test_nothing_mapped(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_audit result;

	assert_int_equal(gpas_clear(fixture->space), 0);
	assert_int_equal(gpas_audit(fixture->space, NULL, &result), 0);
	assert_int_equal(result.slots, 0);
	assert_int_equal(result.numbers, NUMBERS);
}

static void test_resident_hole(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_region region;
	volatile uint8_t *host;

	assert_int_equal(
		gpas_region_find(fixture->space, gpas_gpa_at(LAZY), &region),
		0);
	host = region.host;
	host[3 * MIB] = 1;
	assert_int_equal(audit(fixture), 1);
	assert_non_null(strstr(fixture->last, "1 pages are resident"));
	assert_int_equal(
		madvise((char *)region.host + 3 * MIB, PAGE, MADV_DONTNEED), 0);
	assert_int_equal(audit(fixture), 0);
}

/*
 * Gives the page at @host back, and the 2 MiB around it, all of which are
 * reserved: where transparent huge pages are always on, khugepaged may have
 * made one huge page of it meanwhile (seen on Linux 7.3).
 */
static void give_back(char *host)
{
	uint64_t block = gpas_align_down((uintptr_t)host, 2 * MIB);

	assert_int_equal(madvise(gpas_hva_pointer(gpas_hva_at(block)), 2 * MIB,
				 MADV_DONTNEED),
			 0);
}

static void test_reservation(void **state)
{
	struct fixture *fixture = *state;
	char *host = fixture->space->reservation.host;

	assert_int_equal(
		mprotect(host + 512 * MIB, PAGE, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(audit(fixture), 1);
	host[512 * MIB] = 1;
	assert_int_equal(mprotect(host + 512 * MIB, PAGE, PROT_NONE), 0);
	assert_int_equal(audit(fixture), 1); /* still resident */
	give_back(host + 512 * MIB);
	assert_int_equal(audit(fixture), 0);
	assert_int_equal(mprotect(host + LAZY + MIB, PAGE, PROT_NONE), 0);
	assert_in_range(audit(fixture), 1, 2);
	assert_int_equal(
		mprotect(host + LAZY + MIB, PAGE, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(audit(fixture), 0);
}

static void test_refusals(void **state)
{
	struct fixture *fixture = *state;

	assert_int_equal(gpas_begin(fixture->space), 0);
	assert_int_equal(gpas_audit(fixture->space, NULL, NULL), -EBUSY);
	assert_int_equal(gpas_abort(fixture->space), 0);
	gpas_vcpu_enter(&fixture->vcpu);
	assert_int_equal(gpas_audit(fixture->space, NULL, NULL), -EBUSY);
	__atomic_store_n(&fixture->vcpu.running, 0, __ATOMIC_SEQ_CST);
	for (uint64_t i = 0; i < 2 * NUMBERS; i++) {
		int err = gpas_map_linear(
			fixture->space, gpas_gpa_at(64 * MIB + 2 * i * PAGE),
			PAGE, fixture->ram, GPAS_PROT_RW, NULL);

		if (err != 0) {
			assert_int_equal(err, -ENOSPC);
			break;
		}
	}
	assert_int_equal(gpas_audit(fixture->space, NULL, NULL), -ENOSPC);
}

/* ---- The guest's own view ------------------------------------------------ */

static int probe(void *ctx, gpas_gpa gpa, enum gpas_seen *seen, uint64_t *value)
{
	struct fixture *fixture = ctx;
	struct machine *machine = &fixture->machine;
	struct kvm_run *run = machine->run;
	struct kvm_regs regs = {
		.rip = CODE,
		.rdi = gpa.value,
		.rbx = RESULT_GPA,
	};
	int err;

	(void)machine_settle(machine);
	if (machine_set_regs(machine, &regs) != 0) {
		return -EIO;
	}
	err = machine_enter(machine);
	if (err == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		*seen = GPAS_SEEN_FAULT;
		return 0;
	}
	if (err != 0 || run->exit_reason != KVM_EXIT_MMIO) {
		return err != 0 ? err : -EIO;
	}
	*seen = run->mmio.is_write ? GPAS_SEEN_MEMORY : GPAS_SEEN_MMIO;
	memcpy(value, run->mmio.data, sizeof(*value));
	return 0;
}

static void test_guest_probe(void **state)
{
	struct fixture *fixture = *state;
	struct kvm_userspace_memory_region right = recorded(fixture, RAM);
	struct gpas_audit_params params = { .probe = probe, .ctx = fixture };
	struct gpas_audit result;

	for (size_t i = 0; i < 64 * PAGE / 8; i++) {
		((uint64_t *)fixture->ram)[i] = i * 7919 + 1;
	}
	assert_int_equal(gpas_audit(fixture->space, &params, &result), 0);
	assert_true(result.probes >= 2 * result.slots);
	delete_slot(fixture, right.slot);
	assert_int_equal(gpas_audit(fixture->space, &params, &result),
			 -EUCLEAN);
	assert_int_equal(result.findings, 3); /* the slot and its two ends */
	set_slot(fixture, right);
	assert_int_equal(gpas_audit(fixture->space, &params, &result), 0);
	(void)machine_settle(&fixture->machine);
}

static void test_translate(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_audit_translation at[] = {
		{ gpas_gva_at(CODE), gpas_gpa_at(CODE) },
		{ gpas_gva_at(RAM + 8), gpas_gpa_at(RAM + 8) },
	};
	struct gpas_audit_params params = {
		.vcpu = &fixture->vcpu,
		.translations = at,
		.translation_count = 2,
	};
	struct gpas_audit result;

	assert_int_equal(gpas_audit(fixture->space, &params, &result), 0);
	assert_int_equal(result.translations, 2);
	at[1].gpa = gpas_gpa_at(RAM);
	assert_int_equal(gpas_audit(fixture->space, &params, &result),
			 -EUCLEAN);
	at[1] = (struct gpas_audit_translation){ gpas_gva_at(UINT64_C(1) << 40),
						 gpas_gpa_at(0) };
	assert_int_equal(gpas_audit(fixture->space, &params, &result),
			 -EUCLEAN);
	assert_int_equal(result.findings, 1);
}

static void test_not_attached(void **state)
{
	struct fixture *fixture = *state;
	struct gpas_audit result;

	gpas_vcpu_fini(&fixture->vcpu);
	assert_int_equal(gpas_kvm_detach(fixture->space), 0);
	assert_int_equal(gpas_audit(fixture->space, NULL, &result), 0);
	assert_int_equal(result.slots + result.numbers, 0);
	assert_int_equal(result.host_bytes, 4 * MIB - PAGE);
	assert_int_equal(
		gpas_kvm_attach(fixture->space,
				&(struct gpas_kvm_params){
					.vm_fd = fixture->machine.vm_fd }),
		0);
	assert_int_equal(gpas_vcpu_init(&fixture->vcpu, fixture->space,
					fixture->machine.vcpu_fd,
					fixture->machine.run),
			 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_sound),	   TEST(test_slot_gone),
		TEST(test_slot_differs),   TEST(test_foreign_slot),
		TEST(test_dirty_log),	   TEST(test_trap_gone),
		TEST(test_nothing_mapped), TEST(test_resident_hole),
		TEST(test_reservation),	   TEST(test_refusals),
		TEST(test_guest_probe),	   TEST(test_translate),
		TEST(test_not_attached),
	};
	struct machine machine;

	if (machine_open(&machine, BOOT) != 0) {
		(void)fprintf(stderr, "no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
