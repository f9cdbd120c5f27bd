/* SPDX-License-Identifier: MIT */
/*
 * ACPI tables for the PC of "gpas-vmm boot": which processors there are, where
 * their interrupt controllers are, how to turn the machine off or reset it, and
 * the memory module that can be plugged in.
 * Sections are of the ACPI specification, version 6.5.
 */
#include "pc.h"

#include <string.h>

#define HEADER_BYTES 36 /* of every table but FACS and RSDP (5.2.6) */
#define RSDP_BYTES   36
#define FADT_BYTES   244
#define FACS_BYTES   64
#define TABLE_ALIGN  64

/*
 * Code (section 20): what to write to sleep in S5, and the panic device, of
 * which Linux has a driver.
 *
 *   Name (\_S5, Package () { 5, 5, 0, 0 })
 *   Scope (\_SB) { Device (PEVT) {
 *     Name (_HID, "QEMU0001")
 *     Name (_CRS, ResourceTemplate () { IO (Decode16, 0x505, 0x505, 1, 1) }) }
 * }
 */
static const uint8_t code[] = {
	/* Name, Package of 4 */
	0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04, 0x0a, PC_SLEEP_TYPE, 0x0a,
	PC_SLEEP_TYPE, 0x00, 0x00,
	/* Scope, Device */
	0x10, 0x2f, '\\', '_', 'S', 'B', '_', 0x5b, 0x82, 0x27, 'P', 'E', 'V',
	'T',
	/* Name, string */
	0x08, '_', 'H', 'I', 'D', 0x0d, 'Q', 'E', 'M', 'U', '0', '0', '0', '1',
	0x00,
	/* Name, Buffer of 10: an I/O port descriptor and the end tag */
	0x08, '_', 'C', 'R', 'S', 0x11, 0x0d, 0x0a, 0x0a, 0x47, 0x01,
	PC_PANIC_PORT & 0xff, PC_PANIC_PORT >> 8, PC_PANIC_PORT & 0xff,
	PC_PANIC_PORT >> 8, 0x01, 0x01, 0x79, 0x00
};

/*
 * The code of a machine with a memory module: the module, and the device whose
 * interrupt says that something is up with it (5.6.9). START, LAST and SIZE are
 * filled in.
 *
 *   Scope (\_SB) {
 *     Device (MODU) {
 *       Name (_HID, EisaId ("PNP0C80"))
 *       Name (_UID, 0)
 *       OperationRegion (REGS, SystemIO, 0x620, 10)
 *       Field (REGS, WordAcc, NoLock, Preserve) {
 *         STAT, 16, EVNT, 16, EJCT, 16, WHAT, 16, CODE, 16 }
 *       Name (_CRS, ResourceTemplate () {
 *         QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed,
 *           Cacheable, ReadWrite, 0, START, LAST, 0, SIZE) })
 *       Method (_STA, 0) { Return (STAT) }
 *       Method (_EJ0, 1) { EJCT = Arg0 }
 *       Method (_OST, 3) { WHAT = Arg0 CODE = Arg1 } }
 *     Device (GEVT) {
 *       Name (_HID, "ACPI0013")
 *       Name (_CRS, ResourceTemplate () {
 *         Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 } })
 *       Method (_EVT, 1) { Notify (MODU, \_SB.MODU.EVNT) } } }
 */
static const uint8_t module_code[] = {
	/* Scope, Device */
	0x10, 0x47, 0x0f, '\\', '_', 'S', 'B', '_', 0x5b, 0x82, 0x48, 0x0a, 'M',
	'O', 'D', 'U',
	/* Name, a compressed identifier; Name, zero */
	0x08, '_', 'H', 'I', 'D', 0x0c, 0x41, 0xd0, 0x0c, 0x80, 0x08, '_', 'U',
	'I', 'D', 0x00,
	/* OperationRegion, Field */
	0x5b, 0x80, 'R', 'E', 'G', 'S', 0x01, 0x0b, PC_MODULE_PORT & 0xff,
	PC_MODULE_PORT >> 8, 0x0a, PC_MODULE_BYTES, 0x5b, 0x81, 0x1f, 'R', 'E',
	'G', 'S', 0x02, 'S', 'T', 'A', 'T', 0x10, 'E', 'V', 'N', 'T', 0x10, 'E',
	'J', 'C', 'T', 0x10, 'W', 'H', 'A', 'T', 0x10, 'C', 'O', 'D', 'E', 0x10,
	/* Name, Buffer of 48: an address space descriptor and the end tag */
	0x08, '_', 'C', 'R', 'S', 0x11, 0x33, 0x0a, 0x30, 0x8a, 0x2b, 0x00,
	0x00, 0x0d, 0x03, 0, 0, 0, 0, 0, 0, 0, 0,
#define MODULE_START_OFFSET 100
	0, 0, 0, 0, 0, 0, 0, 0,
#define MODULE_LAST_OFFSET 108
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
#define MODULE_SIZE_OFFSET 124
	0, 0, 0, 0, 0, 0, 0, 0, 0x79, 0x00,
	/* Methods of the module */
	0x14, 0x0b, '_', 'S', 'T', 'A', 0x00, 0xa4, 'S', 'T', 'A', 'T', 0x14,
	0x0c, '_', 'E', 'J', '0', 0x01, 0x70, 0x68, 'E', 'J', 'C', 'T', 0x14,
	0x12, '_', 'O', 'S', 'T', 0x03, 0x70, 0x68, 'W', 'H', 'A', 'T', 0x70,
	0x69, 'C', 'O', 'D', 'E',
	/* Device; Name, string */
	0x5b, 0x82, 0x44, 0x04, 'G', 'E', 'V', 'T', 0x08, '_', 'H', 'I', 'D',
	0x0d, 'A', 'C', 'P', 'I', '0', '0', '1', '3', 0x00,
	/* Name, Buffer of 11: an interrupt descriptor and the end tag */
	0x08, '_', 'C', 'R', 'S', 0x11, 0x0e, 0x0a, 0x0b, 0x89, 0x06, 0x00,
	0x03, 0x01, PC_MODULE_IRQ, 0x00, 0x00, 0x00, 0x79, 0x00,
	/* Method */
	0x14, 0x1a, '_', 'E', 'V', 'T', 0x01, 0x86, 'M', 'O', 'D', 'U', '\\',
	0x2f, 0x03, '_', 'S', 'B', '_', 'M', 'O', 'D', 'U', 'E', 'V', 'N', 'T'
};

/* Tables under construction. */
struct tables {
	uint8_t *image;
	size_t used;
};

static void put(uint8_t *at, unsigned bytes, uint64_t value)
{
	for (unsigned i = 0; i < bytes; i++) {
		at[i] = (uint8_t)(value >> 8 * i);
	}
}

/* Make the bytes' sum zero (5.2.5.3, 5.2.6). */
static void set_checksum(uint8_t *table, size_t size, unsigned offset)
{
	uint8_t sum = 0;

	table[offset] = 0;
	for (size_t i = 0; i < size; i++) {
		sum = (uint8_t)(sum + table[i]);
	}
	table[offset] = (uint8_t)-sum;
}

static uint64_t gpa_of(const struct tables *tables, const uint8_t *table)
{
	return PC_ACPI_START + (uint64_t)(table - tables->image);
}

/* Room for a table; the caller fills in what follows the header, if any. */
static uint8_t *take(struct tables *tables, size_t size)
{
	uint8_t *table = tables->image + tables->used;

	tables->used += (size + TABLE_ALIGN - 1) / TABLE_ALIGN * TABLE_ALIGN;
	return table;
}

/* 5.2.6 */
static void finish(uint8_t *table, const char *signature, uint8_t revision,
		   size_t size)
{
	memcpy(table, signature, 4);
	put(table + 4, 4, size);
	table[8] = revision;
	memcpy(table + 10, "GPAS  ", 6);
	memcpy(table + 16, "GPAS-VMM", 8);
	put(table + 24, 4, 1);
	memcpy(table + 28, "GPAS", 4);
	put(table + 32, 4, 1);
	set_checksum(table, size, 9);
}

static uint8_t *add_dsdt(struct tables *tables)
{
	size_t size = HEADER_BYTES + sizeof(code);
	uint8_t *table = take(tables, size);

	memcpy(table + HEADER_BYTES, code, sizeof(code));
	finish(table, "DSDT", 2, size);
	return table;
}

static uint8_t *add_module(struct tables *tables, struct gpas_range range)
{
	size_t size = HEADER_BYTES + sizeof(module_code);
	uint8_t *table = take(tables, size);
	uint8_t *at = table + HEADER_BYTES;

	memcpy(at, module_code, sizeof(module_code));
	put(at + MODULE_START_OFFSET, 8, range.start.value);
	put(at + MODULE_LAST_OFFSET, 8, range.end.value - 1);
	put(at + MODULE_SIZE_OFFSET, 8, gpas_range_size(range));
	finish(table, "SSDT", 2, size);
	return table;
}

/* 5.2.10 */
static uint8_t *add_facs(struct tables *tables)
{
	uint8_t *table = take(tables, FACS_BYTES);

	memcpy(table, "FACS", 4);
	put(table + 4, 4, FACS_BYTES);
	table[32] = 2;
	return table;
}

/* 5.2.9. What is not set does not exist. */
static uint8_t *add_fadt(struct tables *tables, uint64_t facs, uint64_t dsdt)
{
	uint8_t *table = take(tables, FADT_BYTES);

	put(table + 36, 4, facs);
	put(table + 40, 4, dsdt);
	put(table + 46, 2, 9); /* SCI_INT, which nothing raises */
	put(table + 56, 4, PC_PM_PORT);
	put(table + 64, 4, PC_PM_PORT + PC_PM_CONTROL);
	put(table + 76, 4, PC_PM_PORT + PC_PM_TIMER);
	table[88] = 4;		   /* PM1_EVT_LEN */
	table[89] = 2;		   /* PM1_CNT_LEN */
	table[91] = 4;		   /* PM_TMR_LEN */
	put(table + 96, 2, 0xfff); /* no C2 */
	put(table + 98, 2, 0xfff); /* no C3 */
	/* IAPC_BOOT_ARCH: legacy devices (the serial port); no keyboard
	 * controller to probe, no VGA, no MSI, no clock chip. */
	put(table + 109, 2, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5);
	/* WBINVD works; no power and no sleep button; the timer has 32 bits;
	 * there is a reset register. */
	put(table + 112, 4, 1 << 0 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 10);
	table[116] = 1; /* the reset register: I/O space, 8 bits, bytes */
	table[117] = 8;
	table[119] = 1;
	put(table + 120, 8, PC_RESET_PORT);
	table[128] = PC_RESET_VALUE;
	put(table + 140, 8, dsdt);
	finish(table, "FACP", 4, FADT_BYTES);
	return table;
}

/* 5.2.12 */
static uint8_t *add_madt(struct tables *tables, unsigned cpus)
{
	size_t size = HEADER_BYTES + 8 + 8 * (size_t)cpus + 12 + 10 + 6;
	uint8_t *table = take(tables, size);
	uint8_t *at = table + HEADER_BYTES;

	put(at, 4, PC_LAPIC_GPA);
	put(at + 4, 4, 1); /* PCAT_COMPAT: there are 8259s as well */
	at += 8;
	for (unsigned i = 0; i < cpus; i++, at += 8) {
		at[0] = 0; /* a processor's local APIC, enabled */
		at[1] = 8;
		at[2] = at[3] = (uint8_t)i;
		put(at + 4, 4, 1);
	}
	at[0] = 1; /* the I/O APIC */
	at[1] = 12;
	at[2] = (uint8_t)cpus;
	put(at + 4, 4, PC_IOAPIC_GPA);
	at += 12;
	at[0] = 2; /* interrupt 9 is active high and level-triggered */
	at[1] = 10;
	at[3] = 9;
	put(at + 4, 4, 9);
	put(at + 8, 2, 0xd);
	at += 10;
	at[0] = 4; /* NMIs arrive at LINT1 of all processors */
	at[1] = 6;
	at[2] = 0xff;
	at[5] = 1;
	finish(table, "APIC", 4, size);
	return table;
}

size_t acpi_build(uint8_t image[PC_ACPI_BYTES], unsigned cpus,
		  struct gpas_range module)
{
	bool has_module = !gpas_range_is_empty(module);
	size_t xsdt_bytes = HEADER_BYTES + (has_module ? 3 : 2) * 8;
	struct tables tables = { .image = image };
	uint8_t *rsdp, *xsdt, *dsdt, *facs, *fadt, *madt;

	memset(image, 0, PC_ACPI_BYTES);
	rsdp = take(&tables, RSDP_BYTES);
	xsdt = take(&tables, xsdt_bytes);
	dsdt = add_dsdt(&tables);
	facs = add_facs(&tables);
	fadt = add_fadt(&tables, gpa_of(&tables, facs), gpa_of(&tables, dsdt));
	madt = add_madt(&tables, cpus);
	put(xsdt + HEADER_BYTES, 8, gpa_of(&tables, fadt));
	put(xsdt + HEADER_BYTES + 8, 8, gpa_of(&tables, madt));
	if (has_module) {
		uint8_t *ssdt = add_module(&tables, module);

		put(xsdt + HEADER_BYTES + 16, 8, gpa_of(&tables, ssdt));
	}
	finish(xsdt, "XSDT", 1, xsdt_bytes);
	/* 5.2.5.3: the first 20 bytes have a sum of their own. */
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "GPAS  ", 6);
	rsdp[15] = 2;
	put(rsdp + 20, 4, RSDP_BYTES);
	put(rsdp + 24, 8, gpa_of(&tables, xsdt));
	set_checksum(rsdp, 20, 8);
	set_checksum(rsdp, RSDP_BYTES, 32);
	return tables.used;
}
