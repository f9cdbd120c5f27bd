/* SPDX-License-Identifier: MIT */
/*
 * The PC that "gpas-vmm boot" gives to an unmodified Linux kernel: what its
 * files share. The machine has RAM with a PC's holes, KVM's own interrupt
 * controllers and timer, a serial port, ACPI tables that describe these, ports
 * to end the run with, the test guests' doorbell, and perhaps a memory module.
 * No PCI, no disk, no network.
 */
#ifndef VMM_PC_H
#define VMM_PC_H

#include "vm.h"

/* Guest-physical addresses. RAM is [0, PC_LOW_END), [PC_HIGH_START,
 * PC_HOLE_START) and [4 GiB, ...). */
#define PC_LOW_END    0xa0000
#define PC_ROM_START  0xc0000 /* from PC_LOW_END to here reads are all ones */
#define PC_LEGACY_END 0xe0000 /* and to here zeros */
#define PC_ACPI_BYTES 0x20000 /* from PC_LEGACY_END on: memory */
#define PC_ACPI_START PC_LEGACY_END
#define PC_HIGH_START 0x100000
#define PC_HOLE_START UINT64_C(0xc0000000)
#define PC_ABOVE_HOLE UINT64_C(0x100000000)
#define PC_IOAPIC_GPA 0xfec00000
#define PC_LAPIC_GPA  0xfee00000
#define PC_ACPI_NAME  "acpi"

/* Ports. */
#define PC_SERIAL_PORT	0x3f8
#define PC_SERIAL_IRQ	4
#define PC_RESET_PORT	0xcf9
#define PC_RESET_VALUE	0x06
#define PC_PANIC_PORT	0x505
#define PC_PM_PORT	0x600 /* ACPI event block, control block, timer */
#define PC_PM_CONTROL	4     /* offsets from PC_PM_PORT */
#define PC_PM_TIMER	8
#define PC_PM_BYTES	12
#define PC_SLEEP_TYPE	5 /* of S5, soft off */
#define PC_MODULE_PORT	0x620
#define PC_MODULE_BYTES 10
#define PC_MODULE_IRQ	16

/* Where in low memory the kernel finds things before it has its own. */
#define PC_GDT_GPA     0x1000
#define PC_TABLES_GPA  0x2000 /* six pages: identity map of 4 GiB */
#define PC_PARAMS_GPA  0x8000
#define PC_CMDLINE_GPA 0x20000
#define PC_CMDLINE_MAX 0x10000 /* bytes with the NUL */
#define PC_DTB_GPA     0x30000
#define PC_DTB_MAX     0x10000 /* bytes with its header */

/* How to enter the kernel. */
enum pc_entry_mode {
	PC_ENTER_64 = 0, /* the 64-bit boot protocol of bzImage */
	PC_ENTER_PVH,	 /* 32-bit protected mode, no paging */
};

#define UART_RING_BYTES 4096

/* A 16550A with its interrupt. Invariant: irq_level is what KVM was told. */
struct uart {
	struct vm *vm;
	pthread_mutex_t lock;
	uint8_t divisor[2];
	uint8_t interrupt_enable;
	uint8_t fifo_control;
	uint8_t line_control;
	uint8_t modem_control;
	uint8_t scratch;
	bool sent; /* a byte was sent and nobody was told yet */
	bool irq_level;
	/* Received bytes: those of [tail, head), modulo the ring. */
	uint8_t ring[UART_RING_BYTES];
	unsigned head, tail;
	unsigned panic_matched; /* bytes of the panic text seen last */
	bool panicked;
};

/* Memory that comes and goes. Invariant: the range is mapped if and only if
 * plugged is set, and empty in a machine without a module. */
struct module {
	struct vm *vm;
	pthread_mutex_t lock; /* of what follows range */
	struct gpas_range range;
	bool plugged;
	bool leaving;	/* ejected, and the guest is not done with that */
	uint16_t event; /* that the guest has not asked for yet, or 0 */
	uint16_t about; /* the event that the guest's next code is about */
};

struct pc {
	struct uart uart;
	struct module module;
	uint16_t pm_enable;
	_Atomic uint8_t rtc_index;
	enum pc_entry_mode mode;
	uint64_t entry; /* GPA */
	uint64_t initrd;
	uint64_t initrd_bytes;
	pthread_t input;
	bool input_started;
	int input_stop; /* an eventfd */
};

/* ---- pc.c ---------------------------------------------------------------- */

/* Ready the machine's chips; the VM has no vCPU yet. 0 or an exit status. */
int pc_create(struct vm *vm);
/* Map RAM and devices and put the kernel in place. 0 or an exit status. */
int pc_build(struct vm *vm);
/* 0 or -errno. */
int pc_vcpu_init(struct vcpu *vcpu);
/* Begin and end to take input. 0 or -errno. */
int pc_start(struct vm *vm);
void pc_stop(struct vm *vm);
void pc_destroy(struct vm *vm);

/* ---- uart.c -------------------------------------------------------------- */

int uart_add(struct vm *vm, struct uart *uart);
/* Take what fits of @bytes, nothing before the guest's driver is ready; returns
 * how many. Any thread. */
size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t size);

/* ---- module.c ------------------------------------------------------------ */

/* Put the slot for the module into the machine, if --module asks for one; RAM
 * has its size. Complains by itself; 0 or an exit status. */
int module_add(struct vm *vm);

/* ---- rtc.c --------------------------------------------------------------- */

int rtc_add(struct vm *vm);

/* ---- console.c ----------------------------------------------------------- */

/* Pass stdin to the guest from a thread of its own; a terminal is put into raw
 * mode, and back whichever way the process ends. */
int console_start(struct vm *vm);
void console_stop(struct vm *vm);

/* ---- linux_x86_64.c ------------------------------------------------------ */

/* Read kernel and initrd into RAM, with all that the kernel is told. Complains
 * by itself; 0 or an exit status. */
int linux_load(struct vm *vm);

/* ---- bzimage.c ----------------------------------------------------------- */

struct setup_header;

/* How much of a file's beginning bzimage_check looks at. */
#define BZIMAGE_HEAD_BYTES 0x290

/* What a valid bzImage wants. */
struct bzimage {
	uint32_t header_bytes; /* from 0x1f1 on: what to hand to the kernel */
	uint64_t code_offset;  /* in the file */
	uint64_t code_bytes;
	uint64_t load_gpa;
	uint64_t memory_bytes; /* needed from load_gpa on */
	uint64_t initrd_end;   /* the first address it may not occupy */
	uint32_t cmdline_max;  /* without the NUL */
};

/*
 * Judge the first @size bytes of a file of @file_bytes. Returns NULL and fills
 * in @ret, or says what is wrong with it. A file that is no bzImage at all
 * gives bzimage_foreign.
 */
extern const char bzimage_foreign[];
const char *bzimage_check(const uint8_t *head, size_t size, uint64_t file_bytes,
			  struct bzimage *ret);

/* ---- acpi.c -------------------------------------------------------------- */

/* Lay out the tables for @cpus processors in @image, which will be at
 * PC_ACPI_START; the root pointer comes first. @module may be empty. Returns
 * the bytes used. */
size_t acpi_build(uint8_t image[PC_ACPI_BYTES], unsigned cpus,
		  struct gpas_range module);

/* ---- calibrate.c --------------------------------------------------------- */

/* Nanoseconds that one turn of a tiny guest loop in kernel mode takes on this
 * host; negative when it could not be tried. */
double calibrate_loop_ns(struct vm *vm);

#endif
