/* SPDX-License-Identifier: MIT */
/*
 * sweep - touch every page of the largest free stretch of memory.
 *
 * Each page is read (it must be zero), written with a pattern of its own and,
 * in a second pass, read again. order=forward, backward or random sweeps all
 * of it that way; without, each order gets a third. cpl=3 sweeps in user mode.
 * seed=N varies the random order. pages=N stops after so many pages.
 */
#include "guest.h"

#define PATTERN 0x5eed5eed00000001ull

/* Page @i of the stretch must be zero; give it its pattern. */
static inline void first_touch(uint64_t start, uint64_t i)
{
	volatile uint64_t *page = (volatile uint64_t *)(start + i * PAGE_BYTES);

	check(*page == 0);
	*page = PATTERN + i;
}

static inline void second_look(uint64_t start, uint64_t i)
{
	volatile uint64_t *page = (volatile uint64_t *)(start + i * PAGE_BYTES);

	check(*page == PATTERN + i);
}

static void sweep_forward(uint64_t start, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		first_touch(start, i);
	}
	for (uint64_t i = 0; i < pages; i++) {
		second_look(start, i);
	}
}

static void sweep_backward(uint64_t start, uint64_t pages)
{
	for (uint64_t i = pages; i-- > 0;) {
		first_touch(start, i);
	}
	for (uint64_t i = pages; i-- > 0;) {
		second_look(start, i);
	}
}

/*
 * Every number below @count (a power of two) once, in a disorderly sequence: a
 * linear congruential generator has full period modulo a power of two when its
 * multiplier is 1 modulo 4 and its increment is odd (Knuth, 3.2.1.2).
 */
static inline uint64_t next_index(uint64_t i, uint64_t count)
{
	return (i * 0x9e3779b1ull + 0x7f4a7c15ull) & (count - 1);
}

static void sweep_random(uint64_t start, uint64_t pages)
{
	uint64_t count = 1, i, first;

	while (count < pages) {
		count *= 2;
	}
	first = arg_number("seed", 1) & (count - 1);
	i = first;
	do {
		if (i < pages) {
			first_touch(start, i);
		}
		i = next_index(i, count);
	} while (i != first);
	do {
		if (i < pages) {
			second_look(start, i);
		}
		i = next_index(i, count);
	} while (i != first);
}

static const struct order {
	const char *name;
	void (*sweep)(uint64_t start, uint64_t pages);
} orders[] = {
	{ "forward", sweep_forward },
	{ "backward", sweep_backward },
	{ "random", sweep_random },
};

static void run(const struct order *order, uint64_t start, uint64_t pages)
{
	say("sweep: %u pages from %x, %s ... ", pages, start, order->name);
	order->sweep(start, pages);
	say("zero at first, then the pattern\n");
	sync(pages);
}

void guest_main(void)
{
	struct range free = largest_free_memory();
	uint64_t pages = arg_number("pages", free.size / PAGE_BYTES);
	uint64_t start = free.start;
	bool asked = false;

	if (pages > free.size / PAGE_BYTES) {
		pages = free.size / PAGE_BYTES;
	}
	enter_asked_mode();
	for (unsigned i = 0; i < 3; i++) {
		if (arg_is("order", orders[i].name)) {
			run(&orders[i], start, pages);
			asked = true;
		}
	}
	for (unsigned i = 0; i < 3 && !asked; i++) {
		uint64_t part = i < 2 ? pages / 3 : pages - 2 * (pages / 3);

		run(&orders[i], start, part);
		start += part * PAGE_BYTES;
	}
	say("sweep: all %u pages are right, at CPL%u\n", pages,
	    (uint64_t)privilege_level());
}
