/* SPDX-License-Identifier: MIT */
/* Striped reader counters; readers.h says why they suffice. */
#include "readers.h"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

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

/* Registering twice is harmless, and a child of fork() has to. */
static bool register_membarrier(void)
{
	return syscall(SYS_membarrier,
		       MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

void readers_add_slot(struct readers *readers, struct reader_slot *slot)
{
	atomic_init(&slot->turn, 0);
	slot->fence = !register_membarrier();
	slot->next = readers->slots;
	readers->slots = slot;
}

void readers_remove_slot(struct readers *readers, struct reader_slot *slot)
{
	struct reader_slot **link = &readers->slots;

	while (*link != slot) {
		link = &(*link)->next;
	}
	*link = slot->next;
}

/* Waits for the readers that are inside by a slot of their own. */
static void wait_for_slots(struct readers *readers)
{
	if (readers->slots == NULL) {
		return;
	}
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) !=
	    0) {
		atomic_thread_fence(memory_order_seq_cst);
	}
	for (struct reader_slot *slot = readers->slots; slot != NULL;
	     slot = slot->next) {
		unsigned seen =
			atomic_load_explicit(&slot->turn, memory_order_acquire);

		while ((seen & 1u) != 0 &&
		       atomic_load_explicit(&slot->turn,
					    memory_order_acquire) == seen) {
			sched_yield();
		}
	}
}

void readers_wait(struct readers *readers)
{
	readers_forget(readers);
	atomic_thread_fence(memory_order_seq_cst);
	wait_for_slots(readers);
	for (int turn = 0; turn < 2; turn++) {
		unsigned old = atomic_fetch_xor_explicit(&readers->phase, 1,
							 memory_order_seq_cst);

		wait_for_phase(readers, old & 1u);
	}
}
