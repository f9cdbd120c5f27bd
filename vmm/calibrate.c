/* SPDX-License-Identifier: MIT */
/*
 * How fast this host runs kernel mode: some KVMs without hardware support
 * emulate it, a thousand times slower. A machine of one page counts down a
 * register and halts; the time per turn tells.
 */
#include "pc.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TURNS 20000u
#define RUNS  6

/* 32-bit: mov ecx, TURNS; 1: dec ecx; jnz 1b; hlt */
static const uint8_t program[] = {
	0xb9, TURNS & 0xff, TURNS >> 8 & 0xff, 0x00, 0x00, 0x49, 0x75,
	0xfd, 0xf4,
};

/* Protected mode without paging: real mode is emulated by older processors,
 * and would say nothing. */
static int enter_protected_mode(int vcpu_fd)
{
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) != 0) {
		return -errno;
	}
	sregs.cs = (struct kvm_segment){ .selector = 8,
					 .type = 11,
					 .present = 1,
					 .s = 1,
					 .g = 1,
					 .db = 1,
					 .limit = UINT32_MAX };
	sregs.ds = sregs.cs;
	sregs.ds.type = 3;
	sregs.ds.selector = 16;
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.cr0 |= 1;
	if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) != 0 ||
	    ioctl(vcpu_fd, KVM_SET_REGS, &regs) != 0) {
		return -errno;
	}
	return 0;
}

/* The fastest of several runs: on a busy host the others say little. */
static double run_ns(struct gpas *space, int vcpu_fd, struct kvm_run *run)
{
	uint64_t best = UINT64_MAX;
	struct gpas_vcpu vcpu;
	int error = gpas_vcpu_init(&vcpu, space, vcpu_fd, run);

	if (error != 0) {
		return -1;
	}
	for (int i = 0; error == 0 && i < RUNS; i++) {
		struct gpas_exit exit;
		uint64_t begun;

		error = enter_protected_mode(vcpu_fd);
		begun = now_ns();
		if (error == 0) {
			error = gpas_vcpu_run(&vcpu, &exit);
		}
		if (error == 0 && (exit.kind != GPAS_EXIT_OTHER ||
				   run->exit_reason != KVM_EXIT_HLT)) {
			error = -EIO;
		}
		best = now_ns() - begun < best ? now_ns() - begun : best;
	}
	gpas_vcpu_fini(&vcpu);
	return error == 0 ? (double)best / TURNS : -1;
}

static double with_space(struct vm *vm, struct gpas *space, int vm_fd)
{
	const struct gpas_kvm_params params = { .vm_fd = vm_fd,
						.lazy = GPAS_LAZY_ABSENT };
	int size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	int vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0UL);
	double ns = -1;
	void *run;

	if (vcpu_fd < 0 || size < 0) {
		return ns;
	}
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   vcpu_fd, 0);
	if (run != MAP_FAILED) {
		if (gpas_map_alloc(space, gpas_gpa_at(0), GPAS_PAGE_BYTES,
				   GPAS_PROT_RWX, NULL) == 0 &&
		    gpas_write(space, gpas_gpa_at(0), program, sizeof(program),
			       NULL) == 0 &&
		    gpas_kvm_attach(space, &params) == 0) {
			ns = run_ns(space, vcpu_fd, run);
		}
		munmap(run, (size_t)size);
	}
	close(vcpu_fd);
	return ns;
}

double calibrate_loop_ns(struct vm *vm)
{
	const struct gpas_params params = { 0 };
	int vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0UL);
	struct gpas *space;
	double ns = -1;

	if (vm_fd < 0) {
		return ns;
	}
	if (gpas_create(&params, &space) == 0) {
		ns = with_space(vm, space, vm_fd);
		gpas_destroy(space);
	}
	close(vm_fd);
	return ns;
}
