/* SPDX-License-Identifier: MIT */
/* What the library must know of an x86-64 vCPU: where it fetches from, and how
 * to have model-specific registers delivered. */
#include "kvm_abi.h"
#include "space.h"

#include <string.h>
#include <sys/ioctl.h>

/* The longest x86 instruction (Intel SDM 2.3.11). */
#define INSTRUCTION_BYTES 15

/*
 * Without this a fetch from a hole makes KVM raise #UD in the guest, at CPL3
 * even instead of the exit. Kernels before 5.14 lack it.
 */
void arch_prepare_vm(int vm_fd)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		.args = { 1 },
	};

	(void)ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
}

int arch_translate(int vcpu_fd, uint64_t gva, uint64_t *gpa)
{
	struct kvm_translation translation = { .linear_address = gva };

	if (ioctl(vcpu_fd, KVM_TRANSLATE, &translation) != 0) {
		return -errno;
	}
	if (!translation.valid) {
		return -ENOENT;
	}
	*gpa = translation.physical_address;
	return 0;
}

/* How many bytes of the instruction the emulator had, where it says so
 * (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES). */
static unsigned fetched_bytes(const struct kvm_run *run)
{
	const uint64_t flag =
		KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;

	if (run->emulation_failure.ndata < 3 ||
	    (run->emulation_failure.flags & flag) == 0) {
		return 0;
	}
	return run->emulation_failure.insn_size;
}

int arch_fetch(int vcpu_fd, const struct kvm_run *run, struct fetch *ret)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) != 0 ||
	    ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) != 0) {
		return -errno;
	}
	ret->readable = fetched_bytes(run);
	if (ret->readable >= INSTRUCTION_BYTES) {
		return -ENOENT; /* all of it was there */
	}
	/* In 64-bit mode the base of CS counts as zero (Intel SDM 3.4.4). */
	ret->pc = sregs.cs.l ? regs.rip : sregs.cs.base + regs.rip;
	return arch_translate(vcpu_fd, ret->pc, &ret->gpa);
}

bool arch_event_pending(int vcpu_fd)
{
	struct kvm_vcpu_events events;

	return ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &events) == 0 &&
	       (events.exception.injected != 0 ||
		events.interrupt.injected != 0 || events.nmi.injected != 0);
}

/* ---- Registers ----------------------------------------------------- */

#define BITMAP_BYTES (KVM_MSR_FILTER_MAX_BITMAP_SIZE)
#define RANGE_MSRS   (BITMAP_BYTES * 8u)

/* Splits the claims into the filter's ranges: all accesses there are denied to
 * KVM and so come to us. -ENOSPC: more ranges than the filter has. */
static int fill_filter(struct kvm_msr_filter *filter,
		       const struct span_set *claims, uint8_t *none_allowed)
{
	size_t used = 0;

	for (const struct span *span = claims->first; span != NULL;
	     span = span->next) {
		for (uint64_t at = span->start; at < span->end;
		     at += RANGE_MSRS) {
			uint64_t left = span->end - at;

			if (used == KVM_MSR_FILTER_MAX_RANGES) {
				return -ENOSPC;
			}
			filter->ranges[used++] = (struct kvm_msr_filter_range){
				.flags = KVM_MSR_FILTER_READ |
					 KVM_MSR_FILTER_WRITE,
				.base = (__u32)at,
				.nmsrs =
					(__u32)(left < RANGE_MSRS ? left
								  : RANGE_MSRS),
				.bitmap = none_allowed,
			};
		}
	}
	return 0;
}

int arch_deliver_sysregs(int vm_fd, const struct span_set *claims)
{
	uint8_t none_allowed[BITMAP_BYTES] = { 0 };
	struct kvm_msr_filter filter = {
		.flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
	};
	struct kvm_enable_cap exits = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args = { KVM_MSR_EXIT_REASON_FILTER },
	};
	int err = fill_filter(&filter, claims, none_allowed);

	if (err != 0) {
		return err;
	}
	if (ioctl(vm_fd, KVM_ENABLE_CAP, &exits) != 0 ||
	    ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &filter) != 0) {
		return -errno;
	}
	return 0;
}
