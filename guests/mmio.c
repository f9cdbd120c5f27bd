/* SPDX-License-Identifier: MIT */
/*
 * mmio - accesses of every width, aligned and not, to a device; and stores
 * across the border of present and lazy memory, which the VMM sees in pieces.
 *
 * cpl=3 does it in user mode.
 */
#include "guest.h"

#define PATTERN 0x8877665544332211ull

static uint64_t scratch(void)
{
	return machine.doorbell + DOORBELL_SCRATCH;
}

static uint64_t scratch_count(void)
{
	return LOAD(uint64_t, machine.doorbell + DOORBELL_COUNT);
}

/* One access of each width at an aligned place reaches the device as such. */
static void aligned_widths(void)
{
	uint64_t at = scratch(), width = machine.doorbell + DOORBELL_WIDTH;
	uint64_t before = scratch_count();

	STORE(uint64_t, at, PATTERN);
	check(LOAD(uint64_t, width) == 8);
	check(LOAD(uint8_t, at) == 0x11);
	check(LOAD(uint64_t, width) == 1);
	check(LOAD(uint16_t, at + 2) == 0x4433);
	check(LOAD(uint64_t, width) == 2);
	check(LOAD(uint32_t, at + 4) == 0x88776655);
	check(LOAD(uint64_t, width) == 4);
	check(LOAD(uint64_t, at) == PATTERN);
	STORE(uint8_t, at + 7, 0xaa);
	STORE(uint16_t, at + 4, 0xbbbb);
	STORE(uint32_t, at, 0xcccccccc);
	check(LOAD(uint64_t, at) == 0xaa77bbbbccccccccull);
	check(scratch_count() == before + 9);
}

/* Unaligned accesses arrive in pieces that add up. */
static void unaligned_widths(void)
{
	uint64_t at = scratch() + 0x40;

	for (unsigned shift = 1; shift < 8; shift++) {
		STORE(uint64_t, at, 0);
		STORE(uint64_t, at + 8, 0);
		STORE(uint64_t, at + shift, PATTERN);
		check(LOAD(uint64_t, at + shift) == PATTERN);
		check(LOAD(uint64_t, at) == PATTERN << (8 * shift));
		check(LOAD(uint64_t, at + 8) == PATTERN >> (64 - 8 * shift));
		check(LOAD(uint32_t, at + shift) == (uint32_t)PATTERN);
		check(LOAD(uint16_t, at + shift) == (uint16_t)PATTERN);
	}
}

/* Read-modify-write instructions: a read and a write for the device. */
static void read_modify_write(void)
{
	uint64_t at = scratch() + 0x80, value = 5;

	STORE(uint64_t, at, 37);
	__asm__ volatile("addq %1, (%0)" : : "r"(at), "r"(value) : "memory");
	check(LOAD(uint64_t, at) == 42);
	__asm__ volatile("xchgq %0, (%1)" : "+r"(value) : "r"(at) : "memory");
	check(value == 42 && LOAD(uint64_t, at) == 5);
}

/* A string instruction: an access for each element. */
static void string_store(void)
{
	uint64_t at = scratch() + 0xc0;

	memset((void *)at, 0x5a, 16);
	check(LOAD(uint64_t, at) == 0x5a5a5a5a5a5a5a5aull);
	check(LOAD(uint64_t, at + 8) == 0x5a5a5a5a5a5a5a5aull);
}

/*
 * Store @width bytes across @border, where memory on one side or both has
 * never been touched, and look at what is there afterwards.
 */
static void store_across(uint64_t border, unsigned before)
{
	uint64_t at = border - before;

	STORE(uint64_t, at, PATTERN);
	check(LOAD(uint64_t, at) == PATTERN);
	check(LOAD(uint64_t, border) == PATTERN >> (8 * before));
	check(LOAD(uint8_t, at - 1) == 0);
	check(LOAD(uint8_t, at + 8) == 0);
}

/* Operations other than a plain store on never-touched memory at a border. */
static void exotic_across(uint64_t border)
{
	uint64_t at = border - 4, value = PATTERN;

	__asm__ volatile("lock addq %1, (%0)"
			 :
			 : "r"(at), "r"(value)
			 : "memory");
	check(LOAD(uint64_t, at) == PATTERN);
	__asm__ volatile("xchgq %0, (%1)" : "+r"(value) : "r"(at) : "memory");
	check(value == PATTERN && LOAD(uint64_t, at) == PATTERN);
}

static void string_across(uint64_t border)
{
	memset((void *)(border - 24), 0x77, 48);
	for (uint64_t at = border - 24; at < border + 24; at += 8) {
		check(LOAD(uint64_t, at) == 0x7777777777777777ull);
	}
	check(LOAD(uint8_t, border - 25) == 0);
	check(LOAD(uint8_t, border + 24) == 0);
}

/* A stack in lazy memory: push, call and return are stores and loads too. */
static void stack_across(uint64_t border)
{
	uint64_t value = PATTERN, popped;

	__asm__ volatile("mov %%rsp, %%rbx\n\t"
			 "mov %1, %%rsp\n\t"
			 "push %2\n\t"
			 "pop %0\n\t"
			 "mov %%rbx, %%rsp"
			 : "=&r"(popped)
			 : "r"(border + 4), "r"(value)
			 : "rbx", "memory");
	check(popped == PATTERN);
	check(LOAD(uint64_t, border - 4) == PATTERN);
}

/*
 * Borders lie every second granule, so that each starts untouched on both
 * sides; touching one side first makes it present|lazy or lazy|present.
 */
static void lazy_borders(uint64_t border, uint64_t step)
{
	for (unsigned before = 1; before < 8; before++) {
		store_across(border, before);
		border += step;
		check(LOAD(uint64_t, border - 64) == 0);
		store_across(border, before);
		border += step;
		check(LOAD(uint64_t, border + 64) == 0);
		store_across(border, before);
		border += step;
	}
	exotic_across(border);
	string_across(border + step);
	stack_across(border + 2 * step);
}

void guest_main(void)
{
	struct range free = largest_free_memory();
	uint64_t unit = machine.granule != 0 ? machine.granule : PAGE_BYTES;
	uint64_t first = (free.start + unit + unit - 1) & ~(unit - 1);

	enter_asked_mode();
	aligned_widths();
	unaligned_widths();
	read_modify_write();
	string_store();
	say("mmio: the device saw every width, whole and in pieces\n");
	if (first + 50 * unit > free.start + free.size) {
		say("mmio: too little memory for %u KiB granules\n",
		    unit / 1024);
		return;
	}
	lazy_borders(first, 2 * unit);
	say("mmio: stores across lazy borders kept every byte\n");
}
