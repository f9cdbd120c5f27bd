/* SPDX-License-Identifier: MIT */
/*
 * ACPI tables for the PC of "gpas-vmm boot": which processors there are, where
 * their interrupt controllers are, and how to turn the machine off or reset it.
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
 * The only code (section 20): what to write to sleep in S5, and the panic
 * device, of which Linux has a driver.
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

size_t acpi_build(uint8_t image[PC_ACPI_BYTES], unsigned cpus)
{
	struct tables tables = { .image = image };
	uint8_t *rsdp, *xsdt, *dsdt, *facs, *fadt, *madt;

	memset(image, 0, PC_ACPI_BYTES);
	rsdp = take(&tables, RSDP_BYTES);
	xsdt = take(&tables, HEADER_BYTES + 2 * 8);
	dsdt = add_dsdt(&tables);
	facs = add_facs(&tables);
	fadt = add_fadt(&tables, gpa_of(&tables, facs), gpa_of(&tables, dsdt));
	madt = add_madt(&tables, cpus);
	put(xsdt + HEADER_BYTES, 8, gpa_of(&tables, fadt));
	put(xsdt + HEADER_BYTES + 8, 8, gpa_of(&tables, madt));
	finish(xsdt, "XSDT", 1, HEADER_BYTES + 2 * 8);
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
