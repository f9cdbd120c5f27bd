/* SPDX-License-Identifier: MIT */
/*
 * The only file of the VMM that knows x86-64: where RAM and devices lie, the
 * tables a vCPU needs to start in 64-bit mode, its registers, and how to show
 * them. Sections are of the Intel SDM, volume 3, unless they name the APM (AMD
 * Architecture Programmer's Manual, volume 2).
 *
 * The boot region: the page-table root, its second and third level, a page
 * with descriptor tables and task state, and two pages of stack.
 *
 * A guest that sets up no exception handlers of its own has the VMM's: each
 * vector halts at an address of its own, on a stack of its own, where the VMM
 * finds out what happened. Without them an exception would be a triple fault,
 * after which some processors have no registers left to show.
 */
#include "x86_64.h"
#include "vm.h"

#include <elf.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define GIB (UINT64_C(1) << 30)

/* Page-table entries (SDM 4.5.4). */
#define PTE_PRESENT  (UINT64_C(1) << 0)
#define PTE_WRITE    (UINT64_C(1) << 1)
#define PTE_USER     (UINT64_C(1) << 2)
#define PTE_ACCESSED (UINT64_C(1) << 5)
#define PTE_DIRTY    (UINT64_C(1) << 6)
#define PTE_BLOCK    (UINT64_C(1) << 7)
#define PTE_TABLE    (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED)
#define PTE_LEAF     (PTE_TABLE | PTE_DIRTY | PTE_BLOCK)
#define PTE_COUNT    512

/* Control registers (SDM 2.5) and EFER (SDM 2.2.1). */
#define CR0_PE	       (UINT64_C(1) << 0)
#define CR0_MP	       (UINT64_C(1) << 1)
#define CR0_ET	       (UINT64_C(1) << 4)
#define CR0_NE	       (UINT64_C(1) << 5)
#define CR0_WP	       (UINT64_C(1) << 16)
#define CR0_PG	       (UINT64_C(1) << 31)
#define CR4_PAE	       (UINT64_C(1) << 5)
#define CR4_OSFXSR     (UINT64_C(1) << 9)
#define CR4_OSXMMEXCPT (UINT64_C(1) << 10)
#define EFER_LME       (UINT64_C(1) << 8)
#define EFER_LMA       (UINT64_C(1) << 10)

/* A 64-bit interrupt gate (SDM 3.5). */
#define TYPE_GATE 14

/* Selectors; start_x86_64.S of the guests relies on them. */
enum {
	SELECTOR_KERNEL_CODE = 0x08,
	SELECTOR_KERNEL_DATA = 0x10,
	SELECTOR_USER_DATA = 0x20,
	SELECTOR_USER_CODE = 0x28,
	SELECTOR_TSS = 0x30,
};

/* Within the descriptor page: GDT, task state, IDT and where its gates lead. */
#define GDT_BYTES    0x40
#define TSS_OFFSET   0x100
#define TSS_BYTES    0x68
#define TSS_IST1     0x24 /* offset of the first stack pointer (SDM 8.7) */
#define TSS_IO_BASE  0x66 /* and of the I/O map's 16-bit offset */
#define VECTOR_COUNT 32	  /* exceptions (SDM 6.3.1) */
#define IDT_OFFSET   0x200
#define IDT_BYTES    (VECTOR_COUNT * 16)
#define STUB_OFFSET  0x400
#define STUB_BYTES   16 /* a hlt and nothing else of each is used */
#define OPCODE_HLT   0xf4

/* The lower page of the stack is for exceptions, the upper for the guest. */
#define STACK_BYTES (2 * GPAS_PAGE_BYTES)

const struct arch_layout arch_layout = {
	.null_page = { 0 },
	.low_ram_end = { 3 * GIB },
	.high_ram = { 4 * GIB },
	.load_address = { 0x100000 },
	.serial = { 0xd0000000 },
	.doorbell = { 0xd0001000 },
	.serial_port = 0x3f8,
};
const uint16_t arch_elf_machine = EM_X86_64;
const char *const arch_name = "x86-64";

/* Some processors need three pages of guest-physical space for themselves;
 * these lie above every device. */
#define TSS_GPA 0xfffbd000

/* Linux 6.12; see Documentation/virt/kvm/api.rst, 7.31. */
#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7)
#endif

/* Has KVM drop the page tables of a deleted slot only, instead of all it has:
 * a fault on a trap slot deletes one. Kernels before 6.12 always drop all. */
static void keep_page_tables(int vm_fd)
{
	struct kvm_enable_cap quirk = {
		.cap = KVM_CAP_DISABLE_QUIRKS2,
		.args = { KVM_X86_QUIRK_SLOT_ZAP_ALL },
	};
	int known = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);

	if (known > 0 && (known & KVM_X86_QUIRK_SLOT_ZAP_ALL) != 0) {
		(void)ioctl(vm_fd, KVM_ENABLE_CAP, &quirk);
	}
}

int arch_vm_init(struct vm *vm)
{
	/* Let every instruction that KVM cannot emulate be an exit. Without
	 * this, KVM gives the guest an exception as well, or instead, also for
	 * a fetch from lazy memory, which the library would have repaired.
	 * Old kernels lack it; then only such fetches fail. */
	struct kvm_enable_cap exits = {
		.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		.args = { 1 },
	};

	(void)ioctl(vm->fd, KVM_ENABLE_CAP, &exits);
	keep_page_tables(vm->fd);
	return ioctl(vm->fd, KVM_SET_TSS_ADDR, TSS_GPA) != 0 ? -errno : 0;
}

static struct kvm_cpuid2 *supported_cpuid(struct vm *vm)
{
	const unsigned count = 256;
	struct kvm_cpuid2 *cpuid;

	cpuid = calloc(1, sizeof(*cpuid) + count * sizeof(cpuid->entries[0]));
	if (cpuid == NULL) {
		return NULL;
	}
	cpuid->nent = count;
	if (ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) != 0) {
		free(cpuid);
		return NULL;
	}
	return cpuid;
}

uint64_t arch_gpa_limit(struct vm *vm)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(vm);
	unsigned width = 36;

	for (unsigned i = 0; cpuid != NULL && i < cpuid->nent; i++) {
		/* MAXPHYADDR: leaf 80000008H, EAX[7:0] (SDM 4.1.4). */
		if (cpuid->entries[i].function == 0x80000008) {
			width = cpuid->entries[i].eax & 0xff;
		}
	}
	free(cpuid);
	/* Identity-mapped: a canonical lower-half address is 47 bits. */
	return UINT64_C(1) << (width < 47 ? width : 47);
}

/* ---- The boot region ----------------------------------------------------- */

/* How many GiB the guest's tables map: everything, and one more, so that a
 * guest can reach beyond its memory without a page fault of its own. */
static uint64_t mapped_gib(gpas_gpa end)
{
	uint64_t top = end.value > 4 * GIB ? end.value : 4 * GIB;

	return (top + GIB - 1) / GIB + 1;
}

/* Page numbers within the boot region. */
struct boot_pages {
	uint64_t second, third, descriptors, stack, end;
};

static struct boot_pages boot_pages(gpas_gpa end)
{
	uint64_t gib = mapped_gib(end);
	struct boot_pages pages = { .second = 1 };

	pages.third = pages.second + (gib + PTE_COUNT - 1) / PTE_COUNT;
	pages.descriptors = pages.third + gib;
	pages.stack = pages.descriptors + 1;
	pages.end = pages.stack + STACK_BYTES / GPAS_PAGE_BYTES;
	return pages;
}

static uint64_t descriptors_gpa(const struct vm *vm, gpas_gpa boot)
{
	return boot.value +
	       boot_pages(vm->ram_end).descriptors * GPAS_PAGE_BYTES;
}

uint64_t arch_boot_bytes(gpas_gpa end)
{
	return boot_pages(end).end * GPAS_PAGE_BYTES;
}

static void fill_page_tables(uint64_t *tables, gpas_gpa boot, gpas_gpa end)
{
	struct boot_pages pages = boot_pages(end);
	uint64_t *second = tables + pages.second * PTE_COUNT;
	uint64_t *third = tables + pages.third * PTE_COUNT;
	uint64_t gib = mapped_gib(end);

	for (uint64_t i = 0; i < pages.third - pages.second; i++) {
		tables[i] =
			(boot.value + (pages.second + i) * GPAS_PAGE_BYTES) |
			PTE_TABLE;
	}
	for (uint64_t i = 0; i < gib; i++) {
		second[i] = (boot.value + (pages.third + i) * GPAS_PAGE_BYTES) |
			    PTE_TABLE;
	}
	for (uint64_t i = 0; i < gib * PTE_COUNT; i++) {
		third[i] = i << 21 | PTE_LEAF;
	}
}

static void fill_descriptors(uint8_t *page, uint64_t page_gpa)
{
	/* Flat segments, accessed bit set (SDM 3.4.5). */
	static const uint64_t segments[] = {
		[SELECTOR_KERNEL_CODE / 8] = 0x00af9b000000ffff,
		[SELECTOR_KERNEL_DATA / 8] = 0x00cf93000000ffff,
		[SELECTOR_USER_DATA / 8] = 0x00cff3000000ffff,
		[SELECTOR_USER_CODE / 8] = 0x00affb000000ffff,
	};
	const uint16_t no_io_map = TSS_BYTES;
	/* The stack's pages follow; this is the end of the first. */
	const uint64_t exception_stack = page_gpa + 2 * GPAS_PAGE_BYTES;
	uint64_t base = page_gpa + TSS_OFFSET;
	/* A 64-bit TSS descriptor takes two entries (SDM 8.2.3). */
	uint64_t tss[2] = {
		(TSS_BYTES - 1) | (base & 0xffffff) << 16 |
			UINT64_C(0x8b) << 40 | (base >> 24 & 0xff) << 56,
		base >> 32,
	};

	memcpy(page, segments, sizeof(segments));
	memcpy(page + SELECTOR_TSS, tss, sizeof(tss));
	memcpy(page + TSS_OFFSET + TSS_IO_BASE, &no_io_map, sizeof(no_io_map));
	memcpy(page + TSS_OFFSET + TSS_IST1, &exception_stack,
	       sizeof(exception_stack));
}

/* A gate for each exception, open to user mode too, with its stub. */
static void fill_gates(uint8_t *page, uint64_t page_gpa)
{
	for (unsigned vector = 0; vector < VECTOR_COUNT; vector++) {
		unsigned stub = STUB_OFFSET + vector * STUB_BYTES;
		uint64_t at = page_gpa + stub;
		/* SDM 6.14.1: 32-bit halves of the address around selector,
		 * stack 1, present, privilege 3, type. */
		uint64_t gate[2] = {
			(at & 0xffff) | SELECTOR_KERNEL_CODE << 16 |
				UINT64_C(1) << 32 |
				(UINT64_C(0xe0) | TYPE_GATE) << 40 |
				(at >> 16 & 0xffff) << 48,
			at >> 32,
		};

		memcpy(page + IDT_OFFSET + vector * sizeof(gate), gate,
		       sizeof(gate));
		page[stub] = OPCODE_HLT;
	}
}

int arch_boot_write(struct vm *vm, gpas_gpa boot)
{
	gpas_gpa end = vm->ram_end;
	struct boot_pages pages = boot_pages(end);
	uint64_t size = arch_boot_bytes(end);
	uint8_t *image = calloc(1, size);
	uint64_t offset = pages.descriptors * GPAS_PAGE_BYTES;
	int error;

	if (image == NULL) {
		return -ENOMEM;
	}
	fill_page_tables((uint64_t *)image, boot, end);
	fill_descriptors(image + offset, boot.value + offset);
	fill_gates(image + offset, boot.value + offset);
	error = gpas_write(vm->space, boot, image, size, NULL);
	free(image);
	return error;
}

/* ---- A vCPU's first state ------------------------------------------------ */

struct kvm_segment x86_segment(uint16_t selector, uint8_t type, bool wide)
{
	bool code = wide && type == TYPE_CODE;

	return (struct kvm_segment){
		.selector = selector,
		.type = type,
		.present = 1,
		.s = 1,
		.g = 1,
		.l = code,
		.db = !code,
		.limit = UINT32_MAX,
	};
}

static int set_system_registers(struct vcpu *vcpu, gpas_gpa boot)
{
	struct boot_pages pages = boot_pages(vcpu->vm->ram_end);
	uint64_t descriptors = boot.value + pages.descriptors * GPAS_PAGE_BYTES;
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) != 0) {
		return -errno;
	}
	sregs.cs = x86_segment(SELECTOR_KERNEL_CODE, TYPE_CODE, true);
	sregs.ds = x86_segment(SELECTOR_KERNEL_DATA, TYPE_DATA, true);
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.tr = (struct kvm_segment){
		.selector = SELECTOR_TSS,
		.type = TYPE_TSS,
		.present = 1,
		.base = descriptors + TSS_OFFSET,
		.limit = TSS_BYTES - 1,
	};
	sregs.gdt.base = descriptors;
	sregs.gdt.limit = GDT_BYTES - 1;
	sregs.idt.base = descriptors + IDT_OFFSET;
	sregs.idt.limit = IDT_BYTES - 1;
	sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	sregs.cr3 = boot.value;
	sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	sregs.efer = EFER_LME | EFER_LMA;
	return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) != 0 ? -errno : 0;
}

int arch_vcpu_init(struct vcpu *vcpu, const struct entry *entry)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(vcpu->vm);
	struct kvm_regs regs = {
		.rip = entry->start.value,
		.rdi = entry->fdt.value,
		.rsp = entry->boot.value + arch_boot_bytes(vcpu->vm->ram_end),
		.rflags = 2, /* bit 1 is always set (SDM 3.4.3, volume 1) */
	};
	int error;

	if (cpuid == NULL) {
		return -ENOMEM;
	}
	/* KVM checks the system registers against the CPUID it was given. */
	error = ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) != 0 ? -errno : 0;
	free(cpuid);
	if (error == 0) {
		error = set_system_registers(vcpu, entry->boot);
	}
	if (error == 0 && ioctl(vcpu->fd, KVM_SET_REGS, &regs) != 0) {
		error = -errno;
	}
	return error;
}

/* ---- Looking at a vCPU --------------------------------------------------- */

uint64_t arch_vcpu_pc(struct vcpu *vcpu)
{
	struct kvm_regs regs;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) != 0) {
		return 0;
	}
	return regs.rip;
}

/* Read guest-virtual memory as far as it is there; returns the bytes read. */
static size_t read_virtual(struct vcpu *vcpu, uint64_t address, uint8_t *bytes,
			   size_t size)
{
	size_t done = 0;

	while (done < size) {
		struct kvm_translation at = { .linear_address =
						      address + done };
		size_t room = GPAS_PAGE_BYTES -
			      (at.linear_address & (GPAS_PAGE_BYTES - 1));
		size_t part = size - done < room ? size - done : room;
		struct gpas_translation host;

		/* Look without populating: a dump changes nothing. */
		if (ioctl(vcpu->fd, KVM_TRANSLATE, &at) != 0 || !at.valid ||
		    gpas_translate(vcpu->vm->space,
				   gpas_gpa_at(at.physical_address), 0, part,
				   &host) != 0) {
			break;
		}
		memcpy(bytes + done, host.host, part);
		done += part;
	}
	return done;
}

static void dump_instruction(struct vcpu *vcpu, uint64_t rip)
{
	uint8_t bytes[15]; /* the longest instruction (SDM 2.3.11, volume 2) */
	char text[3 * sizeof(bytes) + 1] = "";
	size_t count = read_virtual(vcpu, rip, bytes, sizeof(bytes));

	for (size_t i = 0; i < count; i++) {
		snprintf(text + 3 * i, 4, " %02x", bytes[i]);
	}
	tell("  code at rip:%s", count > 0 ? text : " no memory there");
}

static void dump_general(const struct kvm_regs *r)
{
	const struct {
		const char *name;
		uint64_t value;
	} cells[] = {
		{ "rax", r->rax }, { "rbx", r->rbx }, { "rcx", r->rcx },
		{ "rdx", r->rdx }, { "rsi", r->rsi }, { "rdi", r->rdi },
		{ "rbp", r->rbp }, { "rsp", r->rsp }, { "r8 ", r->r8 },
		{ "r9 ", r->r9 },  { "r10", r->r10 }, { "r11", r->r11 },
		{ "r12", r->r12 }, { "r13", r->r13 }, { "r14", r->r14 },
		{ "r15", r->r15 },
	};

	for (size_t i = 0; i < 16; i += 4) {
		tell("  %s %016llx  %s %016llx  %s %016llx  %s %016llx",
		     cells[i].name, (unsigned long long)cells[i].value,
		     cells[i + 1].name, (unsigned long long)cells[i + 1].value,
		     cells[i + 2].name, (unsigned long long)cells[i + 2].value,
		     cells[i + 3].name, (unsigned long long)cells[i + 3].value);
	}
}

/* ---- Exceptions ---------------------------------------------------------- */

/* What an exception leaves on its stack (SDM 6.14.2), the error code apart. */
struct frame {
	uint64_t rip, cs, rflags, rsp, ss;
};

struct exception {
	unsigned vector;
	uint64_t error; /* 0 where there is none */
	struct frame frame;
};

static bool has_error_code(unsigned vector)
{
	/* SDM 6.13: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP. */
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 ||
	       vector == 21;
}

/* Whether the vCPU halted in a gate's stub, and what brought it there. */
static bool find_exception(struct vcpu *vcpu, const struct kvm_regs *regs,
			   struct exception *ret)
{
	struct vm *vm = vcpu->vm;
	uint64_t stubs = descriptors_gpa(vm, vm->entry.boot) + STUB_OFFSET;
	uint64_t offset = regs->rip - stubs;
	gpas_gpa stack = gpas_gpa_at(regs->rsp);

	*ret = (struct exception){ .vector = (unsigned)(offset / STUB_BYTES) };
	if (offset >= (uint64_t)VECTOR_COUNT * STUB_BYTES) {
		return false;
	}
	if (has_error_code(ret->vector)) {
		if (gpas_read(vm->space, stack, &ret->error, 8, NULL) != 0) {
			return false;
		}
		stack.value += 8;
	}
	return gpas_read(vm->space, stack, &ret->frame, sizeof(ret->frame),
			 NULL) == 0;
}

bool arch_vcpu_exception(struct vcpu *vcpu, char *text, size_t size)
{
	static const char *const names[VECTOR_COUNT] = {
		[0] = "divide error",	  [1] = "debug exception",
		[3] = "breakpoint",	  [4] = "overflow",
		[5] = "bound exceeded",	  [6] = "invalid opcode",
		[7] = "no coprocessor",	  [8] = "double fault",
		[10] = "invalid TSS",	  [11] = "segment not present",
		[12] = "stack fault",	  [13] = "general protection fault",
		[14] = "page fault",	  [16] = "x87 error",
		[17] = "alignment check", [18] = "machine check",
		[19] = "SIMD error",
	};
	struct exception exception;
	struct kvm_regs regs;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) != 0 ||
	    !find_exception(vcpu, &regs, &exception)) {
		return false;
	}
	snprintf(text, size, "exception %u, %s, error code 0x%llx",
		 exception.vector,
		 names[exception.vector] != NULL ? names[exception.vector]
						 : "reserved",
		 (unsigned long long)exception.error);
	return true;
}

void arch_vcpu_dump(struct vcpu *vcpu)
{
	struct exception exception;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	unsigned cpl;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) != 0 ||
	    ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) != 0) {
		tell("  KVM does not give the registers");
		return;
	}
	cpl = sregs.ss.dpl;
	if (find_exception(vcpu, &regs, &exception)) {
		regs.rip = exception.frame.rip;
		regs.rflags = exception.frame.rflags;
		regs.rsp = exception.frame.rsp;
		cpl = exception.frame.cs & 3;
	}
	tell("  rip %016llx  rfl %016llx  cpl %u", regs.rip, regs.rflags, cpl);
	dump_general(&regs);
	tell("  cr0 %08llx  cr2 %016llx  cr3 %llx  cr4 %llx  efer %llx",
	     sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer);
	if ((sregs.cr0 & CR0_PG) == 0) {
		/* A shutdown leaves the state undefined on AMD processors
		 * (APM 15.14.3), so KVM resets it. */
		tell("  the processor was reset: these are not the guest's "
		     "registers");
		return;
	}
	dump_instruction(vcpu, regs.rip);
}
