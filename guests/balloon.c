/* SPDX-License-Identifier: MIT */
/*
 * balloon - give memory back to the host, and live within a budget.
 *
 * mode=rounds  (default) For rounds=N rounds, write to pages of a window of
 *              free memory and give ranges of it back: what was given back
 *              must be zero, the rest as written. Then give back what is not
 *              the guest's to give, which must change nothing.
 * mode=offer   Use more memory than the budget, offering each piece after use:
 *              it must be as written or, if the host took it, zero.
 * mode=take    Ask for memory until the budget denies it. Nothing may be lost,
 *              and after giving some back there must be memory again.
 * mode=greedy  The same, by touching it. Needs accesses that can be passed
 *              over: --lazy mmio and --on-violation continue.
 *
 * pages=N is the size of the window. seed=N varies the rounds, cpl=3 does it in
 * user mode.
 */
#include "guest.h"

#define MAX_PAGES 8192
#define PIECE	  16ull /* pages that are given, taken or offered at once */

/* What the first word of each page of the window holds; the last word holds
 * the complement, unless the page is zero. */
static uint64_t expected[MAX_PAGES];
static uint64_t window;

static uint64_t page_at(uint64_t i)
{
	return window + i * PAGE_BYTES;
}

static void put_page(uint64_t i, uint64_t value)
{
	STORE(uint64_t, page_at(i), value);
	STORE(uint64_t, page_at(i) + PAGE_BYTES - 8, ~value);
	expected[i] = value;
}

static bool page_holds(uint64_t i, uint64_t value)
{
	uint64_t last = value == 0 ? 0 : ~value;

	return LOAD(uint64_t, page_at(i)) == value &&
	       LOAD(uint64_t, page_at(i) + PAGE_BYTES - 8) == last;
}

static void check_pages(uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		check(page_holds(i, expected[i]));
	}
}

/* A command about pages of the window, which must succeed. */
static void give(uint64_t first, uint64_t count)
{
	check(memory_command(MEMORY_GIVE, page_at(first), count * PAGE_BYTES) ==
	      0);
	for (uint64_t i = first; i < first + count; i++) {
		expected[i] = 0;
	}
}

/* ---- Rounds -------------------------------------------------------------- */

/* What is not whole pages of free memory cannot be given, taken or offered. */
static void try_what_is_forbidden(uint64_t pages)
{
	const uint64_t ranges[][2] = {
		{ window, 0 },
		{ window, 100 },
		{ window + 8, PAGE_BYTES },
		{ window, PAGE_BYTES + 1 },
		{ window, 0 - PAGE_BYTES },
		{ 0 - PAGE_BYTES, PAGE_BYTES },
		{ 0 - PAGE_BYTES, 2 * PAGE_BYTES },
		{ 1ull << 51, PAGE_BYTES },
		{ window, 1ull << 40 },
		{ 0, PAGE_BYTES },
		{ machine.doorbell, PAGE_BYTES },
		{ machine.serial, PAGE_BYTES },
		{ (uint64_t)image_start, PAGE_BYTES },
		{ (uint64_t)expected & ~(PAGE_BYTES - 1), PAGE_BYTES },
		{ (uint64_t)machine.fdt & ~(PAGE_BYTES - 1), PAGE_BYTES },
	};

	for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		for (uint64_t what = 0; what < 5; what++) {
			check(memory_command(what, ranges[i][0], ranges[i][1]) <
			      0);
		}
	}
	check(memory_command(0, window, PAGE_BYTES) < 0);
	check(memory_command(~0ull, window, PAGE_BYTES) < 0);
	check_pages(0, pages);
}

static void rounds(uint64_t pages)
{
	uint64_t state = arg_number("seed", 1), given = 0;
	uint64_t count = arg_number("rounds", 100);

	for (uint64_t round = 1; round <= count; round++) {
		uint64_t first = next_random(&state) % pages;
		uint64_t size = next_random(&state) % (pages - first) + 1;
		uint64_t stride = next_random(&state) % 7 + 1;

		for (uint64_t i = round % stride; i < pages; i += stride) {
			check(page_holds(i, expected[i]));
			put_page(i, round << 32 | i);
		}
		give(first, size);
		given += size;
		check_pages(round % 5, round % 5 == 0 ? pages : pages / 5);
		sync(round);
	}
	check_pages(0, pages);
	try_what_is_forbidden(pages);
	say("balloon: gave %u pages back in %u rounds, zero ever after, at "
	    "CPL%u\n",
	    given, count, (uint64_t)privilege_level());
}

/* ---- A budget ------------------------------------------------------------ */

static void offer_all(uint64_t pages)
{
	uint64_t lost = 0;

	for (uint64_t first = 0; first + PIECE <= pages; first += PIECE) {
		for (uint64_t i = first; i < first + PIECE; i++) {
			check(page_holds(i, 0));
			put_page(i, i + 1);
		}
		check_pages(first, first + PIECE);
		check(memory_command(MEMORY_OFFER, page_at(first),
				     PIECE * PAGE_BYTES) == 0);
	}
	for (uint64_t i = pages; i-- > 0;) {
		if (LOAD(uint64_t, page_at(i)) == 0) {
			expected[i] = 0;
			lost++;
		}
		check(page_holds(i, expected[i]));
		if (i % PIECE == 0) {
			check(memory_command(MEMORY_OFFER, page_at(i),
					     PIECE * PAGE_BYTES) == 0);
		}
	}
	check(lost > 0 && lost < pages);
	say("balloon: used %u pages, of which the host took %u that I had "
	    "offered, at CPL%u\n",
	    pages, lost, (uint64_t)privilege_level());
}

/* Use the piece of pages from @first on. False when there is no memory. */
static bool take_piece(uint64_t first)
{
	int64_t result =
		memory_command(MEMORY_TAKE, page_at(first), PIECE * PAGE_BYTES);

	if (result != 0) {
		check(result == NO_MEMORY);
		return false;
	}
	for (uint64_t i = first; i < first + PIECE; i++) {
		check(page_holds(i, 0));
		put_page(i, i + 1);
	}
	return true;
}

/* The same, without asking: a write that went nowhere reads as all ones. */
static bool touch_piece(uint64_t first)
{
	for (uint64_t i = first; i < first + PIECE; i++) {
		put_page(i, i + 1);
		if (LOAD(uint64_t, page_at(i)) == ~0ull) {
			for (uint64_t undo = first; undo <= i; undo++) {
				expected[undo] = 0;
			}
			return false;
		}
	}
	return true;
}

static void run_out(uint64_t pages, bool (*use)(uint64_t first))
{
	uint64_t at = 0, denied = 0, lowest = 0;

	while (denied < 3) {
		check(at + PIECE <= pages);
		if (use(at)) {
			at += PIECE;
			continue;
		}
		denied++;
		check_pages(lowest, at);
		/* Half of what there is, so that there are more denials. */
		give(lowest, (at - lowest) / 2 / PIECE * PIECE);
		lowest += (at - lowest) / 2 / PIECE * PIECE;
		check(use(at));
		at += PIECE;
	}
	check_pages(lowest, at);
	say("balloon: denied %u times, went on after giving back, nothing was "
	    "lost, at CPL%u\n",
	    denied, (uint64_t)privilege_level());
}

void guest_main(void)
{
	bool in_rounds = !(arg_is("mode", "offer") || arg_is("mode", "take") ||
			   arg_is("mode", "greedy"));
	uint64_t pages = arg_number("pages", in_rounds ? 256 : MAX_PAGES);
	struct range free = largest_free_memory();

	check(pages <= MAX_PAGES && pages <= free.size / PAGE_BYTES);
	window = free.start;
	enter_asked_mode();
	if (in_rounds) {
		rounds(pages);
	} else if (arg_is("mode", "offer")) {
		offer_all(pages);
	} else {
		run_out(pages,
			arg_is("mode", "take") ? take_piece : touch_piece);
	}
}
