/* SPDX-License-Identifier: MIT */
/*
 * exec - run code in lazy memory: code just written there, memory that nobody
 * ever touched, and an instruction of which only the first half is present.
 *
 * Untouched memory is zero, and zeros are code: "add %al, (%rax)", two bytes
 * each. With rax pointing at a byte that may change, a walk through a granule
 * of zeros leaves a sum behind that proves how many were executed.
 *
 * cpl=3 does it in user mode.
 */
#include "guest.h"

#define MOV_EAX	     0xb8 /* mov $imm32, %eax */
#define RET	     0xc3
#define LARGEST_WALK (1ull << 20)

/* What the zeros add to; al, their addend, is the low byte of its address. */
static uint8_t sums[512];

static uint64_t call(uint64_t code)
{
	uint64_t (*function)(void) = (uint64_t(*)(void))code;

	return function();
}

/* Code that was written a moment ago, in a granule touched by writing it. */
static void call_written(uint64_t at)
{
	STORE(uint8_t, at, MOV_EAX);
	STORE(uint32_t, at + 1, 0xc0ffee);
	STORE(uint8_t, at + 5, RET);
	check(call(at) == 0xc0ffee);
	STORE(uint32_t, at + 1, 0xdecaf);
	check(call(at) == 0xdecaf);
}

/* Call @code, which may change nothing but rax, flags and what rax points to,
 * with rax = @sum. */
static void call_with_rax(uint64_t code, uint8_t *sum)
{
	uint64_t rax = (uint64_t)sum;

	__asm__ volatile("call *%1" : "+a"(rax) : "r"(code) : "memory", "cc");
}

/* A byte of sums whose address is odd, so that adding its low byte shows. */
static uint8_t *odd_sum(void)
{
	uint8_t *sum = &sums[((uintptr_t)sums & 1) == 0 ? 3 : 2];

	*sum = 0;
	return sum;
}

/* Jump into a granule nobody touched; a return waits right after it. */
static void call_untouched(uint64_t granule, uint64_t bytes)
{
	uint8_t *sum = odd_sum();
	uint64_t adds = bytes / 2;

	STORE(uint8_t, granule + bytes, RET);
	call_with_rax(granule, sum);
	check(*sum == (uint8_t)((uintptr_t)sum * adds));
}

/*
 * "movabs $sum, %rax" of which the last two bytes, zeros, lie in a granule
 * that is not there yet: the fetch itself straddles present and lazy memory.
 */
static void call_straddling(uint64_t granule, uint64_t bytes)
{
	uint8_t *sum = odd_sum();
	uint64_t adds = (bytes - 2) / 2;
	uint64_t address = (uint64_t)sum;

	STORE(uint8_t, granule + bytes, RET);
	STORE(uint8_t, granule - 8, 0x48);
	STORE(uint8_t, granule - 7, 0xb8);
	STORE(uint32_t, granule - 6, (uint32_t)address);
	STORE(uint16_t, granule - 2, (uint16_t)(address >> 32));
	call_with_rax(granule - 8, sum);
	check(*sum == (uint8_t)((uintptr_t)sum * adds));
}

void guest_main(void)
{
	struct range free = largest_free_memory();
	uint64_t unit = machine.granule != 0 ? machine.granule : PAGE_BYTES;
	uint64_t first = (free.start + unit - 1) & ~(unit - 1);

	enter_asked_mode();
	call_written(first + 0x100);
	say("exec: ran the code I wrote\n");
	if (unit > LARGEST_WALK || first + 32 * unit > free.start + free.size) {
		say("exec: %u KiB granules are too large to walk through\n",
		    unit / 1024);
		return;
	}
	call_untouched(first + 8 * unit, unit);
	say("exec: ran %u zero bytes nobody had touched\n", unit);
	call_straddling(first + 24 * unit, unit);
	say("exec: ran an instruction that began in present memory\n");
}
