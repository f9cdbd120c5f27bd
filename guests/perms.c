/* SPDX-License-Identifier: MIT */
/*
 * perms - do what memory forbids, one offence after the other.
 *
 * A VMM that stops at violations ends the run at the first; one that carries
 * on drops the write, answers the read with all ones, and the guest verifies
 * that this is what happened. try=NAME commits a single offence (see the
 * table); cpl=3 does it in user mode.
 */
#include "guest.h"

static const uint64_t constant = 0x600dc0de600dc0deull;

/* A write to @address must leave what is there alone. */
static void write_is_dropped(uint64_t address)
{
	uint64_t before = LOAD(uint64_t, address);

	STORE(uint64_t, address, ~before);
	check(LOAD(uint64_t, address) == before);
}

static void write_text(void)
{
	write_is_dropped((uint64_t)image_start);
}

static void write_rodata(void)
{
	write_is_dropped((uint64_t)&constant);
	check(LOAD(uint64_t, &constant) == 0x600dc0de600dc0deull);
}

static void write_fdt(void)
{
	write_is_dropped((uint64_t)machine.fdt);
}

/* The VMM keeps page 0 inaccessible, to catch null pointers. */
static void read_null(void)
{
	volatile uint64_t null_page = 0;

	check(LOAD(uint64_t, null_page + 8) == UINT64_MAX);
	check(LOAD(uint8_t, null_page + 3) == UINT8_MAX);
}

static void write_null(void)
{
	volatile uint64_t null_page = 0;

	STORE(uint32_t, null_page + 0x10, 0x12345678);
}

/* The first address after the last of the memory. */
static uint64_t memory_end(void)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < machine.memory_count; i++) {
		const struct range *memory = &machine.memory[i];

		if (memory->start + memory->size > end) {
			end = memory->start + memory->size;
		}
	}
	return end;
}

static void read_unmapped(void)
{
	check(LOAD(uint64_t, memory_end()) == UINT64_MAX);
	check(LOAD(uint16_t, memory_end() + PAGE_BYTES) == UINT16_MAX);
}

static void write_unmapped(void)
{
	STORE(uint64_t, memory_end(), 1);
	check(LOAD(uint64_t, memory_end()) == UINT64_MAX);
}

static void call_unmapped(void)
{
	void (*nowhere)(void) = (void (*)(void))memory_end();

	nowhere();
}

static const struct offence {
	const char *name;
	const char *what;
	void (*commit)(void);
	bool fatal; /* nobody can carry on after it: only when asked for */
} offences[] = {
	{ "text", "write to my own code", write_text, false },
	{ "rodata", "write to my own constants", write_rodata, false },
	{ "fdt", "write to the device tree", write_fdt, false },
	{ "null-read", "read the inaccessible page 0", read_null, false },
	{ "null-write", "write to page 0", write_null, false },
	{ "unmapped-read", "read beyond the memory", read_unmapped, false },
	{ "unmapped-write", "write beyond the memory", write_unmapped, false },
	{ "unmapped-call", "call beyond the memory", call_unmapped, true },
};
#define OFFENCE_COUNT (sizeof(offences) / sizeof(offences[0]))

static void commit(const struct offence *offence)
{
	say("perms: %s\n", offence->what);
	offence->commit();
}

void guest_main(void)
{
	bool asked = false;

	enter_asked_mode();
	for (unsigned i = 0; i < OFFENCE_COUNT; i++) {
		if (arg_is("try", offences[i].name)) {
			commit(&offences[i]);
			asked = true;
		}
	}
	for (unsigned i = 0; i < OFFENCE_COUNT && !asked; i++) {
		if (!offences[i].fatal) {
			commit(&offences[i]);
		}
	}
	say("perms: nothing was harmed\n");
}
