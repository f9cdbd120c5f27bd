/* SPDX-License-Identifier: MIT */
/*
 * The PC of "gpas-vmm boot": its chips, its memory, the ports that end a run,
 * and the first state of its processors. Sections are of the Intel SDM, volume
 * 3, unless they name something else.
 */
#include "pc.h"
#include "x86_64.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* The guest says nothing of these pages; they lie above every device. */
#define IDENTITY_MAP_GPA UINT64_C(0xfffbc000)

/* Above this, a turn of an empty loop is no work of a processor's. */
#define SLOW_LOOP_NS 100.0

/* Selectors that the 64-bit boot protocol asks for. */
#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TASK 0x20

static int failed(const char *what, int error)
{
	tell("%s: %s", what, strerror(-error));
	return STATUS_HOST;
}

/* ---- Chips --------------------------------------------------------------- */

static int create_chips(struct vm *vm)
{
	const uint64_t identity_map = IDENTITY_MAP_GPA;
	const struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };

	if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0 ||
	    ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) != 0 ||
	    ioctl(vm->fd, KVM_CREATE_PIT2, &pit) != 0) {
		return -errno;
	}
	return 0;
}

int pc_create(struct vm *vm)
{
	int error;

	vm->pc = calloc(1, sizeof(*vm->pc));
	if (vm->pc == NULL) {
		return failed("the machine", -ENOMEM);
	}
	vm->pc->input_stop = -1;
	error = create_chips(vm);
	if (error != 0) {
		tell("no usable KVM: interrupt controllers: %s",
		     strerror(-error));
		return STATUS_NO_KVM;
	}
	return 0;
}

/* ---- Ports that end the run ---------------------------------------------- */

static void power_off(struct vm *vm)
{
	vm_stop(vm, 0);
}

static void panic(struct vm *vm)
{
	tell("the guest's kernel panicked");
	vm_stop(vm, STATUS_PANIC);
}

static void reset(struct vm *vm)
{
	if (vm->pc->uart.panicked) {
		panic(vm);
		return;
	}
	if (atomic_load(&vm->status) < 0) {
		tell("the guest reset the machine");
	}
	vm_stop(vm, STATUS_RESET);
}

/* ACPI 6.5, 4.8.3: event status (never set), enables, control, timer. */
static int pm_access(void *ctx, struct gpas_device_access *access)
{
	struct vm *vm = ctx;
	uint16_t value = (uint16_t)access->value;

	if (!access->write) {
		switch (access->offset) {
		case 2:
			access->value = vm->pc->pm_enable;
			break;
		case PC_PM_CONTROL:
			access->value = 1; /* SCI_EN: this is ACPI mode */
			break;
		case PC_PM_TIMER: /* 3.579545 MHz */
			access->value = (now_ns() / 1000) * 3579545 / 1000000;
			break;
		default:
			access->value = 0;
			break;
		}
	} else if (access->offset == 2) {
		vm->pc->pm_enable = value;
	} else if (access->offset == PC_PM_CONTROL &&
		   (value & 1 << 13) != 0 && /* SLP_EN, SLP_TYP */
		   (value >> 10 & 7) == PC_SLEEP_TYPE) {
		power_off(vm);
	}
	return 0;
}

/* A keyboard controller that has no keyboard: only "pulse reset". */
static int keyboard_access(void *ctx, struct gpas_device_access *access)
{
	struct vm *vm = ctx;

	if (!access->write) {
		access->value = 0;
	} else if (access->offset == 4 && (access->value & 0xff) == 0xfe) {
		reset(vm);
	}
	return 0;
}

/* Bit 2 resets, bit 1 says how thoroughly. */
static int reset_access(void *ctx, struct gpas_device_access *access)
{
	struct vm *vm = ctx;

	if (!access->write) {
		access->value = 0;
	} else if ((access->value & 4) != 0) {
		reset(vm);
	}
	return 0;
}

static int panic_access(void *ctx, struct gpas_device_access *access)
{
	struct vm *vm = ctx;

	if (!access->write) {
		access->value = 1; /* the one event there is */
	} else if ((access->value & 1) != 0) {
		panic(vm);
	}
	return 0;
}

/* Where a PC has its video memory, there is nothing. */
static int legacy_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	if (!access->write) {
		access->value = UINT64_MAX;
	}
	return 0;
}

static int add_devices(struct vm *vm)
{
	const struct {
		uint64_t first, count;
		struct gpas_device device;
	} ports[] = {
		{ 0x60,
		  5,
		  { "keyboard", GPAS_WIDTH_1, vm, keyboard_access, NULL } },
		{ PC_PANIC_PORT,
		  1,
		  { "panic", GPAS_WIDTH_1, vm, panic_access, NULL } },
		{ PC_PM_PORT,
		  PC_PM_BYTES,
		  { "acpi", GPAS_WIDTH_2 | GPAS_WIDTH_4, vm, pm_access,
		    NULL } },
		{ PC_RESET_PORT,
		  1,
		  { "reset", GPAS_WIDTH_1, vm, reset_access, NULL } },
	};
	const struct gpas_device legacy = { .name = "legacy",
					    .access = legacy_access };
	int error = uart_add(vm, &vm->pc->uart);

	if (error == 0) {
		error = rtc_add(vm);
	}
	if (error == 0) {
		error = doorbell_add(vm);
	}

	for (size_t i = 0; error == 0 && i < sizeof(ports) / sizeof(ports[0]);
	     i++) {
		error = gpas_add_device(vm->space, GPAS_ADDRESS_PORT,
					ports[i].first, ports[i].count,
					&ports[i].device);
	}
	if (error == 0) {
		error = gpas_map_device(vm->space, gpas_gpa_at(PC_LOW_END),
					PC_ROM_START - PC_LOW_END, &legacy);
	}
	return error;
}

/* ---- Memory -------------------------------------------------------------- */

/* Linux looks for firmware tables where a PC has its ROMs, in 16 384 reads. As
 * memory they are no exits. */
static int map_roms(struct vm *vm)
{
	const struct gpas_map_params params = { .name = "roms" };

	return gpas_map_alloc(vm->space, gpas_gpa_at(PC_ROM_START),
			      PC_LEGACY_END - PC_ROM_START, GPAS_PROT_RW,
			      &params);
}

static int put_tables(struct vm *vm)
{
	const struct gpas_map_params params = { .name = PC_ACPI_NAME };
	const gpas_gpa at = gpas_gpa_at(PC_ACPI_START);
	uint8_t *image = malloc(PC_ACPI_BYTES);
	int error = image == NULL ? -ENOMEM : 0;

	if (error == 0) {
		error = gpas_map_alloc(vm->space, at, PC_ACPI_BYTES,
				       GPAS_PROT_RW, &params);
	}
	if (error == 0) {
		size_t size = acpi_build(image, vm->options->cpus,
					 vm->pc->module.range);

		error = gpas_write(vm->space, at, image, size, NULL);
	}
	free(image);
	return error;
}

int pc_build(struct vm *vm)
{
	int status = ram_size(vm), error;

	if (status == 0) {
		status = module_add(vm);
	}
	if (status != 0) {
		return status;
	}
	error = add_devices(vm);
	if (error == 0) {
		error = map_roms(vm);
	}
	if (error == 0) {
		error = put_tables(vm);
	}
	if (error != 0) {
		return failed("the machine", error);
	}
	status = ram_map(vm);
	return status == 0 ? linux_load(vm) : status;
}

/* ---- CPUID --------------------------------------------------------------- */

/* Who the processor is: an APIC ID of its own, one thread to a core, all cores
 * in one package. */
static void personalise(struct kvm_cpuid_entry2 *entry, unsigned index,
			unsigned count)
{
	unsigned shift = 0;

	while (1u << shift < count) {
		shift++;
	}
	switch (entry->function) {
	case 1: /* EBX: APIC ID, logical processors; EDX: more than one */
		entry->ebx = (entry->ebx & 0xffff) | count << 16 | index << 24;
		entry->edx =
			(entry->edx & ~(1u << 28)) | (count > 1 ? 1u << 28 : 0);
		break;
	case 4: /* EAX[31:26]: cores in the package, less one */
		entry->eax = (entry->eax & 0x3fff) | ((1u << shift) - 1) << 26;
		break;
	case 0xb:
	case 0x1f: /* extended topology: threads, cores */
		entry->eax = entry->index == 1 ? shift : 0;
		entry->ebx = entry->index == 0	 ? 1
			     : entry->index == 1 ? count
						 : 0;
		entry->ecx = entry->index |
			     (entry->index < 2 ? (entry->index + 1) << 8 : 0);
		entry->edx = index;
		break;
	case 0x80000008: /* ECX: AMD's core count, less one, and ID width */
		entry->ecx = (count - 1) | shift << 12;
		break;
	case 0x8000001e: /* AMD's extended APIC ID, core and node */
		entry->eax = index;
		entry->ebx = index;
		entry->ecx = 0;
		break;
	default:
		break;
	}
}

static int set_cpuid(struct vcpu *vcpu)
{
	const unsigned room = 256;
	struct kvm_cpuid2 *cpuid;
	unsigned count = vcpu->vm->options->cpus, kept = 0;
	int error = 0;

	cpuid = calloc(1, sizeof(*cpuid) + room * sizeof(cpuid->entries[0]));
	if (cpuid == NULL) {
		return -ENOMEM;
	}
	cpuid->nent = room;
	if (ioctl(vcpu->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) != 0) {
		error = -errno;
	}
	for (unsigned i = 0; error == 0 && i < cpuid->nent; i++) {
		cpuid->entries[kept] = cpuid->entries[i];
		/* The host's own topology, in AMD's newest words. */
		if (cpuid->entries[i].function != 0x80000026) {
			personalise(&cpuid->entries[kept], vcpu->index, count);
			kept++;
		}
	}
	cpuid->nent = kept;
	if (error == 0 && ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) != 0) {
		error = -errno;
	}
	free(cpuid);
	return error;
}

/* ---- Registers ----------------------------------------------------------- */

#define CR0_PE	 (UINT64_C(1) << 0)
#define CR0_ET	 (UINT64_C(1) << 4)
#define CR0_PG	 (UINT64_C(1) << 31)
#define CR4_PAE	 (UINT64_C(1) << 5)
#define EFER_LME (UINT64_C(1) << 8)
#define EFER_LMA (UINT64_C(1) << 10)

#define PTE_TABLE UINT64_C(0x03) /* present, writable (4.5.4) */
#define PTE_2M	  UINT64_C(0x83) /* and a block */

/* Descriptors and an identity map of 4 GiB: root, one second level, four third
 * levels. */
static int put_low_tables(struct vm *vm)
{
	static const uint64_t segments[] = {
		[SELECTOR_CODE / 8] = 0x00af9b000000ffff,
		[SELECTOR_DATA / 8] = 0x00cf93000000ffff,
		[SELECTOR_TASK / 8] = 0x00008b0000000067,
	};
	uint64_t *tables = calloc(6 * 512, sizeof(*tables));
	int error;

	if (tables == NULL) {
		return -ENOMEM;
	}
	tables[0] = (PC_TABLES_GPA + GPAS_PAGE_BYTES) | PTE_TABLE;
	for (uint64_t i = 0; i < 4; i++) {
		tables[512 + i] =
			(PC_TABLES_GPA + (2 + i) * GPAS_PAGE_BYTES) | PTE_TABLE;
	}
	for (uint64_t i = 0; i < UINT64_C(4) * 512; i++) {
		tables[2 * 512 + i] = i << 21 | PTE_2M;
	}
	error = gpas_write(vm->space, gpas_gpa_at(PC_TABLES_GPA), tables,
			   6 * GPAS_PAGE_BYTES, NULL);
	free(tables);
	if (error == 0) {
		error = gpas_write(vm->space, gpas_gpa_at(PC_GDT_GPA), segments,
				   sizeof(segments), NULL);
	}
	return error;
}

static int set_system_registers(struct vcpu *vcpu)
{
	bool wide = vcpu->vm->pc->mode == PC_ENTER_64;
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) != 0) {
		return -errno;
	}
	sregs.cs = x86_segment(SELECTOR_CODE, TYPE_CODE, wide);
	sregs.ds = x86_segment(SELECTOR_DATA, TYPE_DATA, wide);
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.tr = (struct kvm_segment){ .selector = SELECTOR_TASK,
					 .type = TYPE_TSS,
					 .present = 1,
					 .limit = 0x67 };
	sregs.gdt.base = PC_GDT_GPA;
	sregs.gdt.limit = SELECTOR_TASK + 15;
	sregs.idt.base = 0;
	sregs.idt.limit = 0;
	sregs.cr0 = CR0_PE | CR0_ET;
	if (wide) {
		sregs.cr0 |= CR0_PG;
		sregs.cr3 = PC_TABLES_GPA;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
	}
	return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) != 0 ? -errno : 0;
}

/* As firmware leaves the local APIC: the 8259s' interrupts at LINT0, NMIs at
 * LINT1 (11.5.1). */
static int set_local_apic(struct vcpu *vcpu)
{
	const uint32_t external = 0x700, nmi = 0x400;
	struct kvm_lapic_state apic;

	if (ioctl(vcpu->fd, KVM_GET_LAPIC, &apic) != 0) {
		return -errno;
	}
	memcpy(apic.regs + 0x350, &external, sizeof(external));
	memcpy(apic.regs + 0x360, &nmi, sizeof(nmi));
	return ioctl(vcpu->fd, KVM_SET_LAPIC, &apic) != 0 ? -errno : 0;
}

/* Memory is cached unless page tables say otherwise (MTRRs, 12.11.2.1), and
 * string instructions are fast. KVM may not know these registers. */
static void set_msrs(struct vcpu *vcpu)
{
	const struct kvm_msr_entry wanted[] = {
		{ .index = 0x2ff, .data = 0x806 },
		{ .index = 0x1a0, .data = 1 },
	};
	struct kvm_msrs *msrs =
		calloc(1, sizeof(*msrs) + sizeof(struct kvm_msr_entry));

	for (size_t i = 0;
	     msrs != NULL && i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		msrs->nmsrs = 1;
		msrs->entries[0] = wanted[i];
		(void)ioctl(vcpu->fd, KVM_SET_MSRS, msrs);
	}
	free(msrs);
}

int pc_vcpu_init(struct vcpu *vcpu)
{
	struct pc *pc = vcpu->vm->pc;
	struct kvm_regs regs = { .rip = pc->entry, .rflags = 2 };
	int error = set_cpuid(vcpu);

	if (error == 0) {
		error = set_local_apic(vcpu);
	}
	if (error != 0) {
		return error;
	}
	set_msrs(vcpu);
	if (vcpu->index != 0) {
		return 0; /* it waits to be started by the first */
	}
	/* The boot protocol wants the parameters in rsi, PVH in ebx. */
	*(pc->mode == PC_ENTER_64 ? &regs.rsi : &regs.rbx) = PC_PARAMS_GPA;
	error = put_low_tables(vcpu->vm);
	if (error == 0) {
		error = set_system_registers(vcpu);
	}
	if (error == 0 && ioctl(vcpu->fd, KVM_SET_REGS, &regs) != 0) {
		error = -errno;
	}
	return error;
}

/* ---- Running ------------------------------------------------------------- */

static void warn_if_slow(struct vm *vm)
{
	double ns = calibrate_loop_ns(vm);

	if (ns > SLOW_LOOP_NS) {
		tell("this host's KVM emulates kernel mode (%.0f ns for a turn "
		     "of an empty loop): Linux will take very long to boot",
		     ns);
	}
}

int pc_start(struct vm *vm)
{
	warn_if_slow(vm);
	return console_start(vm);
}

/* Registers of the local APIC by offset (11.4.1). */
#define APIC_TPR	   0x080
#define APIC_IN_SERVICE	   0x100
#define APIC_REQUESTED	   0x200
#define APIC_TIMER	   0x320
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_COUNT   0x390

static uint32_t apic_word(const struct kvm_lapic_state *apic, unsigned offset)
{
	uint32_t word;

	memcpy(&word, apic->regs + offset, sizeof(word));
	return word;
}

/* What a processor was doing when time was up: why it does nothing, or cannot
 * stop doing it. */
static void tell_processor(struct vcpu *vcpu)
{
	struct kvm_mp_state state = { 0 };
	struct kvm_lapic_state apic;

	if (ioctl(vcpu->fd, KVM_GET_MP_STATE, &state) != 0 ||
	    ioctl(vcpu->fd, KVM_GET_LAPIC, &apic) != 0) {
		return;
	}
	tell("vCPU %u: %s; priority %x, timer %x: %x of %x", vcpu->index,
	     state.mp_state == KVM_MP_STATE_RUNNABLE ? "runs"
	     : state.mp_state == KVM_MP_STATE_HALTED ? "halted"
						     : "waits to be started",
	     apic_word(&apic, APIC_TPR), apic_word(&apic, APIC_TIMER),
	     apic_word(&apic, APIC_TIMER_COUNT),
	     apic_word(&apic, APIC_TIMER_INITIAL));
	for (unsigned i = 0; i < 8; i++) {
		uint32_t serves = apic_word(&apic, APIC_IN_SERVICE + 16 * i);
		uint32_t wants = apic_word(&apic, APIC_REQUESTED + 16 * i);

		if (serves != 0 || wants != 0) {
			tell("  vectors from %u: in service %08x, requested "
			     "%08x",
			     32 * i, serves, wants);
		}
	}
	arch_vcpu_dump(vcpu);
}

void pc_stop(struct vm *vm)
{
	console_stop(vm);
	if (atomic_load(&vm->status) == STATUS_TIMEOUT &&
	    vm->options->verbose) {
		for (unsigned i = 0; i < vm->vcpu_count; i++) {
			tell_processor(&vm->vcpus[i]);
		}
	}
}

void pc_destroy(struct vm *vm)
{
	free(vm->pc);
	vm->pc = NULL;
}
