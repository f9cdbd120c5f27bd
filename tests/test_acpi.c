/* SPDX-License-Identifier: MIT */
/*
 * The ACPI tables of "gpas-vmm boot", read as an operating system reads them:
 * from the root pointer on, with lengths and checksums, for every number of
 * processors, with and without a memory module.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../vmm/pc.h"

#define HEADER_BYTES 36
#define MADT_CPU     0

static uint8_t image[PC_ACPI_BYTES];

static uint64_t number(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++) {
		value |= (uint64_t)at[i] << 8 * i;
	}
	return value;
}

static void check_sum(const uint8_t *at, uint64_t size)
{
	uint8_t sum = 0;

	for (uint64_t i = 0; i < size; i++) {
		sum = (uint8_t)(sum + at[i]);
	}
	assert_int_equal(sum, 0);
}

/* The table at @gpa, which must be whole, and nobody else's. */
static const uint8_t *table_at(uint64_t gpa, const char *signature,
			       uint64_t *end)
{
	const uint8_t *table;
	uint64_t size;

	assert_in_range(gpa, PC_ACPI_START,
			PC_ACPI_START + PC_ACPI_BYTES - HEADER_BYTES);
	assert_true(gpa >= *end);
	table = image + (gpa - PC_ACPI_START);
	assert_memory_equal(table, signature, 4);
	size = number(table + 4, 4);
	assert_in_range(size, HEADER_BYTES,
			PC_ACPI_START + PC_ACPI_BYTES - gpa);
	check_sum(table, size);
	*end = gpa + size;
	return table;
}

static void check_fadt(const uint8_t *fadt)
{
	uint64_t none = 0;

	table_at(number(fadt + 40, 4), "DSDT", &none);
	assert_int_equal(number(fadt + 140, 8), number(fadt + 40, 4));
	assert_int_equal(number(fadt + 64, 4), PC_PM_PORT + PC_PM_CONTROL);
	assert_int_equal(number(fadt + 120, 8), PC_RESET_PORT);
	/* FACS is aligned and has no checksum. */
	assert_int_equal(number(fadt + 36, 4) % 64, 0);
	assert_memory_equal(image + (number(fadt + 36, 4) - PC_ACPI_START),
			    "FACS", 4);
}

static void check_madt(const uint8_t *madt, unsigned cpus)
{
	uint64_t size = number(madt + 4, 4), at = HEADER_BYTES + 8;
	unsigned found = 0;

	for (; at < size; at += madt[at + 1]) {
		assert_true(madt[at + 1] >= 2);
		if (madt[at] == MADT_CPU) {
			assert_int_equal(madt[at + 3], found);
			found++;
		}
	}
	assert_int_equal(at, size);
	assert_int_equal(found, cpus);
}

/* The one QWord address space descriptor (ACPI 6.5, 6.4.3.5.1). */
static void check_ssdt(const uint8_t *ssdt, struct gpas_range module)
{
	static const uint8_t head[] = { 0x8a, 0x2b, 0x00, 0x00 };
	uint64_t size = number(ssdt + 4, 4);
	unsigned found = 0;

	for (uint64_t at = HEADER_BYTES; at + 46 <= size; at++) {
		if (memcmp(ssdt + at, head, sizeof(head)) == 0) {
			assert_int_equal(number(ssdt + at + 14, 8),
					 module.start.value);
			assert_int_equal(number(ssdt + at + 22, 8),
					 module.end.value - 1);
			assert_int_equal(number(ssdt + at + 38, 8),
					 gpas_range_size(module));
			found++;
		}
	}
	assert_int_equal(found, 1);
}

static void check_tables(unsigned cpus, struct gpas_range module)
{
	bool has_module = !gpas_range_is_empty(module);
	size_t used = acpi_build(image, cpus, module);
	uint64_t end = PC_ACPI_START;
	const uint8_t *xsdt;

	assert_in_range(used, HEADER_BYTES, PC_ACPI_BYTES);
	assert_memory_equal(image, "RSD PTR ", 8);
	check_sum(image, 20);
	check_sum(image, 36);
	xsdt = table_at(number(image + 24, 8), "XSDT", &end);
	assert_int_equal(number(xsdt + 4, 4),
			 HEADER_BYTES + (has_module ? 24 : 16));
	check_fadt(table_at(number(xsdt + HEADER_BYTES, 8), "FACP", &end));
	check_madt(table_at(number(xsdt + HEADER_BYTES + 8, 8), "APIC", &end),
		   cpus);
	if (has_module) {
		check_ssdt(table_at(number(xsdt + HEADER_BYTES + 16, 8), "SSDT",
				    &end),
			   module);
	}
	assert_true(end <= PC_ACPI_START + used);
	/* An operating system may take all that follows. */
	for (size_t i = used; i < PC_ACPI_BYTES; i++) {
		assert_int_equal(image[i], 0);
	}
}

static void describes_every_machine(void **state)
{
	const struct gpas_range none = { { 0 }, { 0 } };
	const struct gpas_range module = { { UINT64_C(0x123400000000) },
					   { UINT64_C(0x567800000000) } };

	(void)state;
	for (unsigned cpus = 1; cpus <= VCPU_MAX; cpus++) {
		memset(image, 0xff, sizeof(image));
		check_tables(cpus, none);
		memset(image, 0xff, sizeof(image));
		check_tables(cpus, module);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(describes_every_machine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
