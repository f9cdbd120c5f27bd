/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages of the boot area. */
enum {
	BOOT_ROOT,
	BOOT_SECOND,
	BOOT_THIRD,
	BOOT_DESCRIPTORS = BOOT_THIRD + 4,
	BOOT_STACK,
};

/* Present, writable, user, accessed (Intel SDM 3, 4.5.4); a 2 MiB leaf also
 * has the dirty and the page-size bit. */
#define TABLE_BITS 0x27u
#define LEAF_BITS  0xe7u

/* Where Intel's processors want three pages for themselves: clear of anything
 * a test maps. */
#define TSS_ADDRESS 0xfffbd000ul

/* Selectors, with the privilege level they are for. */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_DATA   0x23
#define USER_CODE   0x2b
#define TASK	    0x30

static int set_cpuid(const struct machine *machine)
{
	const unsigned count = 256;
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + count * sizeof(cpuid->entries[0]));
	int err = 0;

	if (cpuid == NULL) {
		return -ENOMEM;
	}
	cpuid->nent = count;
	if (ioctl(machine->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) != 0 ||
	    ioctl(machine->vcpu_fd, KVM_SET_CPUID2, cpuid) != 0) {
		err = -errno;
	}
	free(cpuid);
	return err;
}

static int open_vcpu(struct machine *machine, unsigned long id)
{
	int bytes = ioctl(machine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	machine->vcpu_fd = ioctl(machine->vm_fd, KVM_CREATE_VCPU, id);
	if (bytes < 0 || machine->vcpu_fd < 0) {
		return -errno;
	}
	machine->run_bytes = (size_t)bytes;
	machine->run = mmap(NULL, machine->run_bytes, PROT_READ | PROT_WRITE,
			    MAP_SHARED, machine->vcpu_fd, 0);
	if (machine->run == MAP_FAILED) {
		machine->run = NULL;
		return -errno;
	}
	return set_cpuid(machine);
}

int machine_open(struct machine *machine, uint64_t boot)
{
	int err;

	*machine = (struct machine){
		.vm_fd = -1,
		.vcpu_fd = -1,
		.boot = boot,
	};
	machine->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (machine->kvm_fd < 0) {
		return -ENODEV;
	}
	machine->vm_fd = ioctl(machine->kvm_fd, KVM_CREATE_VM, 0);
	if (machine->vm_fd < 0) {
		machine_close(machine);
		return -ENODEV;
	}
	(void)ioctl(machine->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS);
	err = open_vcpu(machine, 0);
	if (err != 0) {
		machine_close(machine);
	}
	return err;
}

int machine_join(const struct machine *first, unsigned id, struct machine *ret)
{
	int err;

	*ret = (struct machine){
		.kvm_fd = dup(first->kvm_fd),
		.vm_fd = dup(first->vm_fd),
		.vcpu_fd = -1,
		.boot = first->boot,
	};
	err = ret->kvm_fd < 0 || ret->vm_fd < 0 ? -errno : open_vcpu(ret, id);
	if (err != 0) {
		machine_close(ret);
	}
	return err;
}

static void close_fd(int fd)
{
	if (fd > 0) {
		close(fd);
	}
}

void machine_close(struct machine *machine)
{
	if (machine->run != NULL) {
		munmap(machine->run, machine->run_bytes);
	}
	close_fd(machine->vcpu_fd);
	close_fd(machine->vm_fd);
	close_fd(machine->kvm_fd);
	*machine = (struct machine){ 0 };
}

/* ---- The guest's tables -------------------------------------------------- */

void machine_fill_boot(const struct machine *machine, void *host)
{
	uint64_t *tables = host;
	uint64_t *third = tables + BOOT_THIRD * 512;
	uint8_t *page = (uint8_t *)host + BOOT_DESCRIPTORS * GPAS_PAGE_BYTES;
	uint64_t task =
		machine->boot + BOOT_DESCRIPTORS * GPAS_PAGE_BYTES + 0x100;
	/* Flat segments, accessed (SDM 3, 3.4.5), and a 64-bit task state
	 * segment (8.2.3), which is a must though nothing uses it. */
	const uint64_t descriptors[8] = {
		[KERNEL_CODE / 8] = 0x00af9b000000ffff,
		[KERNEL_DATA / 8] = 0x00cf93000000ffff,
		[USER_DATA / 8] = 0x00cff3000000ffff,
		[USER_CODE / 8] = 0x00affb000000ffff,
		[TASK / 8] = 0x67 | (task & 0xffffff) << 16 |
			     UINT64_C(0x8b) << 40 | (task >> 24 & 0xff) << 56,
	};

	memset(host, 0, MACHINE_BOOT_BYTES);
	tables[0] =
		(machine->boot + BOOT_SECOND * GPAS_PAGE_BYTES) | TABLE_BITS;
	for (uint64_t i = 0; i < 4; i++) {
		tables[BOOT_SECOND * 512 + i] =
			(machine->boot + (BOOT_THIRD + i) * GPAS_PAGE_BYTES) |
			TABLE_BITS;
	}
	for (uint64_t i = 0; i < 2048; i++) {
		third[i] = i << 21 | LEAF_BITS;
	}
	memcpy(page, descriptors, sizeof(descriptors));
}

/* ---- The vCPU's state ---------------------------------------------------- */

static struct kvm_segment segment(unsigned selector, bool code)
{
	return (struct kvm_segment){
		.selector = (__u16)selector,
		.dpl = selector & 3,
		.type = code ? 11 : 3,
		.present = 1,
		.s = 1,
		.g = 1,
		.l = code,
		.db = !code,
		.limit = UINT32_MAX,
	};
}

int machine_set_level(const struct machine *machine, unsigned level)
{
	uint64_t page = machine->boot + BOOT_DESCRIPTORS * GPAS_PAGE_BYTES;
	struct kvm_sregs sregs;

	if (ioctl(machine->vcpu_fd, KVM_GET_SREGS, &sregs) != 0) {
		return -errno;
	}
	sregs.cs = segment(level == 0 ? KERNEL_CODE : USER_CODE, true);
	sregs.ss = segment(level == 0 ? KERNEL_DATA : USER_DATA, false);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss;
	sregs.tr = (struct kvm_segment){
		.selector = TASK,
		.type = 11,
		.present = 1,
		.base = page + 0x100,
		.limit = 0x67,
	};
	sregs.gdt.base = page;
	sregs.gdt.limit = 63;
	sregs.idt.base = 0;
	sregs.idt.limit = 0;
	sregs.cr0 = 0x80010033; /* PG WP NE ET MP PE */
	sregs.cr3 = machine->boot;
	sregs.cr4 = 0x620;  /* PAE OSFXSR OSXMMEXCPT */
	sregs.efer = 0x500; /* LMA LME */
	return ioctl(machine->vcpu_fd, KVM_SET_SREGS, &sregs) != 0 ? -errno : 0;
}

int machine_set_regs(const struct machine *machine, const struct kvm_regs *regs)
{
	struct kvm_regs all = *regs;

	all.rflags |= 2; /* always set (SDM 1, 3.4.3) */
	if (all.rsp == 0) {
		all.rsp = machine->boot + MACHINE_BOOT_BYTES;
	}
	return ioctl(machine->vcpu_fd, KVM_SET_REGS, &all) != 0 ? -errno : 0;
}

int machine_enter(const struct machine *machine)
{
	return ioctl(machine->vcpu_fd, KVM_RUN, 0) != 0 ? -errno : 0;
}

int machine_settle(const struct machine *machine)
{
	int err;

	machine->run->immediate_exit = 1;
	err = machine_enter(machine);
	machine->run->immediate_exit = 0;
	return err == -EINTR ? 0 : err == 0 ? -EBUSY : err;
}
