/* SPDX-License-Identifier: MIT */
/*
 * Readers that never wait, and a writer that can wait for them.
 *
 * A reader announces itself in a counter of the processor it runs on before
 * it looks at the table and withdraws when it is done with what it found. A
 * writer that has unlinked something calls readers_wait(): when it returns,
 * every reader that could have seen the unlinked thing has withdrawn.
 *
 * Why it holds: enter is a sequentially consistent increment, and so ordered
 * before the reader's loads; readers_wait reads the counters after the
 * writer's stores. A reader whose increment it misses therefore sees those
 * stores. Two phases keep new readers from holding up a waiting writer: it
 * turns new readers to the other counter, waits for the old one to drain, and
 * does so twice, since a reader may have picked its phase long before it
 * counted itself in.
 */
#ifndef GPAS_SRC_READERS_H
#define GPAS_SRC_READERS_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define READER_STRIPES 16

struct reader_stripe {
	alignas(64) atomic_uint count[2];
};

/*
 * A reader with a slot of its own (a view): it only stores to the slot, odd
 * while it is inside. The ordering that the others get from their increment is
 * the waiting writer's business: it has every thread of the process execute a
 * barrier, by membarrier(2). Where the kernel has none, fence is set and the
 * reader pays for it.
 */
struct reader_slot {
	alignas(64) atomic_uint turn;
	bool fence;
	struct reader_slot *next;
};

struct readers {
	alignas(64) atomic_uint phase;
	/* Counts what readers may have remembered and must forget: bumped by
	 * readers_wait() before it waits. */
	atomic_uint epoch;
	struct reader_stripe stripes[READER_STRIPES];
	struct reader_slot *slots; /* under the space's lock */
};

/* Enters; the result goes to readers_leave. */
atomic_uint *readers_enter(struct readers *readers);

static inline void readers_leave(atomic_uint *ticket)
{
	atomic_fetch_sub_explicit(ticket, 1, memory_order_release);
}

/* Adds and removes a slot. Under the space's lock. */
void readers_add_slot(struct readers *readers, struct reader_slot *slot);
void readers_remove_slot(struct readers *readers, struct reader_slot *slot);

/* Enters and leaves by a slot, on the one thread that uses it. */
static inline void slot_enter(struct reader_slot *slot)
{
	unsigned turn = atomic_load_explicit(&slot->turn, memory_order_relaxed);

	atomic_store_explicit(&slot->turn, turn + 1, memory_order_relaxed);
	if (slot->fence) {
		atomic_thread_fence(memory_order_seq_cst);
	} else {
		atomic_signal_fence(memory_order_seq_cst);
	}
}

static inline void slot_leave(struct reader_slot *slot)
{
	unsigned turn = atomic_load_explicit(&slot->turn, memory_order_relaxed);

	atomic_store_explicit(&slot->turn, turn + 1, memory_order_release);
}

/* Has readers that enter from now on forget what they remember. */
static inline void readers_forget(struct readers *readers)
{
	atomic_fetch_add_explicit(&readers->epoch, 1, memory_order_seq_cst);
}

/* Waits for every reader that entered before the call. One caller at a time;
 * never called by a reader. */
void readers_wait(struct readers *readers);

#endif
