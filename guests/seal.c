/* SPDX-License-Identifier: MIT */
/*
 * seal - have memory sealed and unsealed while using it.
 *
 * For rounds=N rounds, some pages of a window of present memory are sealed.
 * Each page is written: what is sealed must keep its content, whether it was
 * sealed once or twice, the rest takes the new one; and a function in the first
 * sealed page must still run. Every write that was dropped is a violation that
 * the VMM reports; seal says how many there must be. Needs --on-violation
 * continue.
 *
 * pages=N is the size of the window. seed=N varies the rounds, cpl=3 does it in
 * user mode.
 */
#include "guest.h"

#define MAX_PAGES 1024

static uint64_t expected[MAX_PAGES];
static bool sealed[MAX_PAGES];
static uint64_t window, dropped;

static uint64_t page_at(uint64_t i)
{
	return window + i * PAGE_BYTES;
}

static void command(uint64_t what, uint64_t first, uint64_t count)
{
	check(memory_command(what, page_at(first), count * PAGE_BYTES) == 0);
	for (uint64_t i = first; i < first + count; i++) {
		sealed[i] = what == MEMORY_SEAL;
	}
}

/* Write a value to each page, somewhere in it. */
static void write_all(uint64_t pages, uint64_t value)
{
	for (uint64_t i = 0; i < pages; i++) {
		STORE(uint64_t, page_at(i) + 2048, value | i);
		if (sealed[i]) {
			dropped++;
		} else {
			expected[i] = value | i;
		}
	}
}

static void check_all(uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		check(LOAD(uint64_t, page_at(i) + 2048) == expected[i]);
	}
}

/* mov $number, %eax; ret */
static void put_function(uint64_t address, uint32_t number)
{
	STORE(uint8_t, address, 0xb8);
	for (unsigned i = 0; i < 4; i++) {
		STORE(uint8_t, address + 1 + i, (uint8_t)(number >> 8 * i));
	}
	STORE(uint8_t, address + 5, 0xc3);
}

static uint32_t call_function(uint64_t address)
{
	return ((uint32_t(*)(void))address)();
}

static void round(uint64_t pages, uint64_t number, uint64_t *state)
{
	uint64_t first = next_random(state) % pages;
	uint64_t count = next_random(state) % (pages - first) + 1;
	uint64_t again = next_random(state) % count;

	put_function(page_at(first), (uint32_t)number);
	command(MEMORY_SEAL, first, count);
	command(MEMORY_SEAL, first + again, count - again);
	check(call_function(page_at(first)) == number);
	write_all(pages, number << 32);
	check_all(pages);
	/* A part of it, then all: what was never sealed may be unsealed. */
	command(MEMORY_UNSEAL, first + again, count - again);
	write_all(pages, number << 32 | 1 << 16);
	check_all(pages);
	command(MEMORY_UNSEAL, 0, pages);
	write_all(pages, number << 32 | 2 << 16);
	check_all(pages);
}

void guest_main(void)
{
	uint64_t pages = arg_number("pages", 16);
	uint64_t rounds = arg_number("rounds", 20);
	uint64_t state = arg_number("seed", 1);
	struct range free = largest_free_memory();

	check(pages > 0 && pages <= MAX_PAGES &&
	      pages <= free.size / PAGE_BYTES);
	window = free.start;
	enter_asked_mode();
	for (uint64_t number = 1; number <= rounds; number++) {
		round(pages, number, &state);
	}
	/* What is not free memory. */
	check(memory_command(MEMORY_SEAL, machine.doorbell, PAGE_BYTES) < 0);
	check(memory_command(MEMORY_UNSEAL, (uint64_t)image_start, PAGE_BYTES) <
	      0);
	say("seal: %u writes to sealed pages were dropped, no other, at "
	    "CPL%u\n",
	    dropped, (uint64_t)privilege_level());
}
