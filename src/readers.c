/* SPDX-License-Identifier: MIT */
/* Striped reader counters; readers.h says why they suffice. */
#include "readers.h"

#include <sched.h>

atomic_uint *readers_enter(struct readers *readers)
{
	int cpu = sched_getcpu();
	unsigned stripe = (cpu < 0 ? 0u : (unsigned)cpu) % READER_STRIPES;
	unsigned phase =
		atomic_load_explicit(&readers->phase, memory_order_relaxed) &
		1u;
	atomic_uint *ticket = &readers->stripes[stripe].count[phase];

	atomic_fetch_add_explicit(ticket, 1, memory_order_seq_cst);
	/* The increment orders the loads that follow on x86; elsewhere a
	 * sequentially consistent read-modify-write alone does not. */
	atomic_thread_fence(memory_order_seq_cst);
	return ticket;
}

static void wait_for_phase(struct readers *readers, unsigned phase)
{
	for (size_t i = 0; i < READER_STRIPES; i++) {
		atomic_uint *count = &readers->stripes[i].count[phase];

		while (atomic_load_explicit(count, memory_order_seq_cst) != 0) {
			sched_yield();
		}
	}
}

void readers_wait(struct readers *readers)
{
	atomic_thread_fence(memory_order_seq_cst);
	for (int turn = 0; turn < 2; turn++) {
		unsigned old = atomic_fetch_xor_explicit(&readers->phase, 1,
							 memory_order_seq_cst);

		wait_for_phase(readers, old & 1u);
	}
}
