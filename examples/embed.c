/* SPDX-License-Identifier: MIT */
/*
 * The smallest VMM: a VM and a vCPU of its own, a space with lazy memory and
 * one device, and a guest of 22 bytes in 16-bit real mode. x86-64.
 *
 *     cc embed.c $(pkg-config --cflags --libs gpas) -o embed
 */
#include <gpas/gpas.h>

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static const unsigned char guest[] = {
	0xb8, 0x00, 0x20, 0x8e, 0xd8, /* mov $0x2000, %ax; mov %ax, %ds */
	0xc6, 0x06, 0x34, 0x12, 0x2a, /* movb $42, 0x1234: GPA 0x21234 */
	0xa0, 0x34, 0x12,	      /* mov 0x1234, %al */
	0xb9, 0x00, 0xd0, 0x8e, 0xd9, /* mov $0xd000, %cx; mov %cx, %ds */
	0xa2, 0x08, 0x00,	      /* mov %al, 0x8: GPA 0xd0008 */
	0xf4,			      /* hlt */
};

/* The library returns 0 or a negative errno; here so does the host. */
static int host(long result)
{
	return result < 0 ? -errno : 0;
}

static void must(const char *what, int err)
{
	if (err != 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-err));
		exit(1);
	}
}

static int on_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	printf("device: %s at offset %d, value %d\n",
	       access->write ? "write" : "read", (int)access->offset,
	       (int)access->value);
	return 0;
}

static struct gpas *make_space(int vm)
{
	struct gpas_params params = { .size = 1 << 20 };
	struct gpas_map_params lazy = { .name = "ram", .lazy = true };
	struct gpas_device device = { .name = "demo", .access = on_access };
	struct gpas_kvm_params kvm = { .vm_fd = vm };
	gpas_gpa ram = { 0 }, code = { 0x1000 }, mmio = { 0xd0000 };
	struct gpas *space;

	must("create", gpas_create(&params, &space));
	must("attach", gpas_kvm_attach(space, &kvm));
	must("ram", gpas_map_alloc(space, ram, 0xd0000, GPAS_PROT_RWX, &lazy));
	must("device", gpas_map_device(space, mmio, 0x1000, &device));
	must("write", gpas_write(space, code, guest, sizeof(guest), NULL));
	return space;
}

static void start_at(int fd, unsigned long long pc)
{
	struct kvm_regs regs = { .rip = pc, .rflags = 2 };
	struct kvm_sregs sregs;

	must("get registers", host(ioctl(fd, KVM_GET_SREGS, &sregs)));
	sregs.cs.base = sregs.cs.selector = 0;
	must("set registers", host(ioctl(fd, KVM_SET_SREGS, &sregs)));
	must("set registers", host(ioctl(fd, KVM_SET_REGS, &regs)));
}

/* Enters the guest until something is not the library's to deal with. */
static int run_guest(struct gpas *space, int fd, struct kvm_run *run)
{
	struct gpas_vcpu vcpu;
	struct gpas_stats stats;
	struct gpas_exit stop;

	must("vcpu_init", gpas_vcpu_init(&vcpu, space, fd, run));
	do {
		must("vcpu_run", gpas_vcpu_run(&vcpu, &stop));
	} while (stop.kind == GPAS_EXIT_RESUME);
	gpas_vcpu_fini(&vcpu);
	gpas_stats(space, &stats);
	printf("exit reason %u; %d of %d KiB present, in %d slots\n",
	       run->exit_reason, (int)(stats.present >> 10),
	       (int)(stats.mapped >> 10), (int)stats.slots);
	return run->exit_reason == KVM_EXIT_HLT ? 0 : 1;
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	int fd = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = fd < 0 ? -1 : ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	const int prot = PROT_READ | PROT_WRITE;
	struct gpas *space;
	int status;
	void *run;

	if (size < 0) {
		perror("skipped, no usable /dev/kvm");
		return 77;
	}
	run = mmap(NULL, (size_t)size, prot, MAP_SHARED, fd, 0);
	must("mmap", host(run == MAP_FAILED ? -1 : 0));
	space = make_space(vm);
	start_at(fd, 0x1000);
	status = run_guest(space, fd, run);
	gpas_destroy(space);
	return status;
}
