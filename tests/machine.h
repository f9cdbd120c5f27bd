/* SPDX-License-Identifier: MIT */
/*
 * A virtual machine with one vCPU for tests on a real KVM (x86-64).
 *
 * The guest runs in 64-bit mode, at CPL 0 or 3, with GVA equal to GPA for the
 * low 4 GiB. Its page tables, descriptors and stack are in a boot area that
 * the test maps eagerly: KVM cannot report a page-table walk that runs into
 * absent memory (docs/kvm-notes.md). There is no interrupt table: an exception
 * in the guest is a shutdown.
 */
#ifndef GPAS_TESTS_MACHINE_H
#define GPAS_TESTS_MACHINE_H

#include <gpas/gpas.h>

#include <linux/kvm.h>

/* The exit status of a test that cannot be run here. */
#define MACHINE_SKIP 77

#ifndef KVM_EXIT_MEMORY_FAULT /* Linux 6.8 */
#define KVM_EXIT_MEMORY_FAULT 39
#endif

/* Root, second level, four of the third level, descriptors, stack. */
#define MACHINE_BOOT_BYTES (8 * GPAS_PAGE_BYTES)

struct machine {
	int kvm_fd;
	int vm_fd;
	int vcpu_fd;
	struct kvm_run *run;
	size_t run_bytes;
	uint64_t boot; /* GPA of the boot area */
};

/*
 * Makes the VM and the vCPU; the boot area is to be at @boot. 0, -ENODEV when
 * this machine has no usable /dev/kvm, or -errno. machine_close also takes a
 * zeroed machine and one that did not open.
 */
int machine_open(struct machine *machine, uint64_t boot);
void machine_close(struct machine *machine);

/* Makes one more vCPU, number @id, in @first's VM. The two may be closed in any
 * order. 0 or -errno. */
int machine_join(const struct machine *first, unsigned id, struct machine *ret);

/* Writes the boot area's content to its host memory. */
void machine_fill_boot(const struct machine *machine, void *host);

/* Puts the vCPU into 64-bit mode at privilege level 0 or 3. 0 or -errno. */
int machine_set_level(const struct machine *machine, unsigned level);

/* Sets the registers; flags and the stack pointer are filled in if 0. Nothing
 * may be pending (machine_settle). 0 or -errno. */
int machine_set_regs(const struct machine *machine,
		     const struct kvm_regs *regs);

/* Completes what is pending of the last exit without running the guest, if it
 * needs no more than that. 0, or -EBUSY when another exit came of it, which
 * run describes. */
int machine_settle(const struct machine *machine);

/* KVM_RUN without the library. 0 or -errno. */
int machine_enter(const struct machine *machine);

#endif
