/* SPDX-License-Identifier: MIT */
/*
 * smash - wild accesses; it is for the VMM to survive them.
 *
 * seed=N, count=N (2000 if not given), cpl=3 for user mode. Afterwards the
 * guest ends as end= says: done (the default); fault, an exception; triple, an
 * exception without any handler in place; fetch, a jump to where no memory is;
 * hang; halt.
 *
 * It spares only what it stands on: its own data, the boot tables, and the
 * registers of the doorbell and the serial port.
 */
#include "guest.h"

#define GIB (1ull << 30)

static uint64_t state;
static uint64_t sum; /* of what was read, so that the reads happen */

static uint64_t pick(uint64_t limit)
{
	return (next_random(&state) << 32 | next_random(&state)) % limit;
}

static bool near(uint64_t address, uint64_t start, uint64_t end)
{
	return address + 16 > start && address < end;
}

/* Whether a wild store there would end the guest rather than test the VMM. */
static bool must_spare(uint64_t address)
{
	if (near(address, machine.serial, machine.serial + 16) ||
	    near(address, machine.doorbell, machine.doorbell + 0x40) ||
	    near(address, (uint64_t)image_start, (uint64_t)image_end)) {
		return true;
	}
	/* The lowest reserved range above page 0 holds the page tables. */
	for (unsigned i = 0; i < machine.reserved_count; i++) {
		const struct range *used = &machine.reserved[i];

		if (used->start != 0 &&
		    near(address, used->start, used->start + used->size)) {
			return true;
		}
	}
	return false;
}

/* An address of a kind that has been trouble somewhere. */
static uint64_t wild_address(void)
{
	uint64_t edge;

	switch (pick(8)) {
	case 0:
		return pick(4 * GIB);
	case 1:
		edge = machine.doorbell + (pick(3) - 1) * PAGE_BYTES;
		break;
	case 2:
		edge = machine.serial + (pick(3) - 1) * PAGE_BYTES;
		break;
	case 3:
		edge = pick(3) * 0x1000 + 16;
		break;
	case 4:
		edge = 4 * GIB - 64;
		break;
	case 5:
		edge = (uint64_t)image_start + pick(16) * PAGE_BYTES;
		break;
	default: {
		const struct range *memory =
			&machine.memory[pick(machine.memory_count)];

		edge = memory->start +
		       pick(memory->size / PAGE_BYTES + 1) * PAGE_BYTES;
		break;
	}
	}
	return (edge < 16 ? 16 : edge) + pick(32) - 16;
}

static void wild_load(uint64_t address)
{
	switch (pick(4)) {
	case 0:
		sum += LOAD(uint8_t, address);
		break;
	case 1:
		sum += LOAD(uint16_t, address);
		break;
	case 2:
		sum += LOAD(uint32_t, address);
		break;
	default:
		sum += LOAD(uint64_t, address);
		break;
	}
}

static void wild_store(uint64_t address)
{
	uint64_t value = pick(UINT64_MAX);

	switch (pick(6)) {
	case 0:
		STORE(uint8_t, address, value);
		break;
	case 1:
		STORE(uint16_t, address, value);
		break;
	case 2:
		STORE(uint32_t, address, value);
		break;
	case 3:
		__asm__ volatile("xchgq %0, (%1)"
				 : "+r"(value)
				 : "r"(address)
				 : "memory");
		break;
	case 4:
		__asm__ volatile("addq %0, (%1)"
				 :
				 : "r"(value), "r"(address)
				 : "memory", "cc");
		break;
	default:
		STORE(uint64_t, address, value);
		break;
	}
}

/* An interrupt descriptor table without a single entry. */
static void drop_handlers(void)
{
	static const struct __attribute__((packed)) {
		uint16_t limit;
		uint64_t base;
	} empty = { 0, 0 };

	__asm__ volatile("lidt %0" : : "m"(empty));
}

static void end(void)
{
	if (arg_is("end", "triple") || arg_is("end", "fault")) {
		/* Not covered by the page tables. */
		sum += LOAD(uint64_t, 0x7f0000000000ull);
	} else if (arg_is("end", "fetch")) {
		void (*nowhere)(void) = (void (*)(void))(4 * GIB - 0x10000);

		nowhere();
	} else if (arg_is("end", "hang")) {
		for (;;) {
			__asm__ volatile("pause");
		}
	} else if (arg_is("end", "halt")) {
		__asm__ volatile("hlt");
	}
}

void guest_main(void)
{
	uint64_t count = arg_number("count", 2000), stores = 0;

	state = arg_number("seed", 1) * 0x9e3779b97f4a7c15ull;
	if (arg_is("end", "triple")) {
		drop_handlers();
	}
	enter_asked_mode();
	for (uint64_t i = 0; i < count; i++) {
		uint64_t address = wild_address();

		if (pick(2) == 0 || must_spare(address)) {
			wild_load(address);
		} else {
			wild_store(address);
			stores++;
		}
	}
	say("smash: %u wild accesses, %u of them stores\n", count, stores);
	end();
}
