/* SPDX-License-Identifier: MIT */
/*
 * snapshot - count the runs in RAM that is saved and restored.
 *
 * The first page of the largest free stretch says how many runs there were.
 * Every 17th page after it must be as the run before left it, zero if there was
 * none, and gets what this run leaves; the pages between must be zero. pages=N
 * uses so many pages in all, expect=N has the count checked. cpl=3 does it in
 * user mode.
 */
#include "guest.h"

#define MAGIC  0x53544f5053504e53ull
#define STRIDE 17

struct header {
	uint64_t magic;
	uint64_t runs;
};

/* What run @run leaves in page @i. */
static uint64_t pattern(uint64_t run, uint64_t i)
{
	return run == 0 ? 0 : (run << 32 | i) * 0x9e3779b97f4a7c15ull;
}

static volatile uint64_t *word(uint64_t start, uint64_t i, unsigned offset)
{
	return (volatile uint64_t *)(start + i * PAGE_BYTES + offset);
}

/* Both ends of page @i hold what run @run left. */
static bool is_left_by(uint64_t start, uint64_t i, uint64_t run)
{
	return *word(start, i, 0) == pattern(run, i) &&
	       *word(start, i, PAGE_BYTES - 8) == ~pattern(run, i) * (run != 0);
}

static void leave(uint64_t start, uint64_t i, uint64_t run)
{
	*word(start, i, 0) = pattern(run, i);
	*word(start, i, PAGE_BYTES - 8) = ~pattern(run, i);
}

void guest_main(void)
{
	struct range free = largest_free_memory();
	uint64_t pages = arg_number("pages", 1024);
	volatile struct header *header = (volatile struct header *)free.start;
	uint64_t before;

	enter_asked_mode();
	check(pages <= free.size / PAGE_BYTES);
	before = header->magic == MAGIC ? header->runs : 0;
	check(header->magic == MAGIC || header->magic == 0);
	check(arg_number("expect", before) == before);
	for (uint64_t i = 1; i < pages; i++) {
		check(is_left_by(free.start, i, i % STRIDE == 0 ? before : 0));
	}
	for (uint64_t i = STRIDE; i < pages; i += STRIDE) {
		leave(free.start, i, before + 1);
	}
	header->runs = before + 1;
	header->magic = MAGIC;
	say("snapshot: %u pages are as %u runs before left them, at CPL%u\n",
	    pages, before, (uint64_t)privilege_level());
}
