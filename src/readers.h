/* SPDX-License-Identifier: MIT */
/*
 * Readers that never wait, and a writer that can wait for them.
 *
 * A reader announces itself before it looks at the table and withdraws when it
 * is done with what it found. A writer that has unlinked something calls
 * readers_wait(): when it returns, every reader that could have seen the
 * unlinked thing has withdrawn.
 *
 * A thread's own struct reader makes announcing two plain stores: inside is the
 * epoch at which it entered, or 0. The ordering of that store before the walk
 * is made by the writer, who begins a new epoch, has every thread of the
 * process execute a barrier, by membarrier(2), and waits for those who are
 * inside since an earlier epoch. A view holds one; a thread that calls without
 * a view is given one at its first call, and finds it again by its identity.
 *
 * Who has none (the kernel knows no membarrier, there are too many threads, no
 * memory, or a signal handler interrupted its own thread inside) counts itself
 * in, in a counter of the processor it runs on. Entering is then a sequentially
 * consistent increment, and so ordered before the reader's loads;
 * readers_wait() reads the counters after the writer's stores. A reader whose
 * increment it misses therefore sees those stores. Two phases keep new readers
 * from holding up a waiting writer: it turns new readers to the other counter,
 * waits for the old one to drain, and does so twice, since a reader may have
 * picked its phase long before it counted itself in.
 */
#ifndef GPAS_SRC_READERS_H
#define GPAS_SRC_READERS_H

#include "pgread.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define READER_STRIPES 16
#define READER_PLACES  64

struct reader_stripe {
	alignas(64) atomic_uint count[2];
};

/*
 * One thread's. Only that thread uses it; a writer looks at inside alone.
 * Invariant: what is remembered was found since known began. current is known,
 * or 0 if each entering has to be ordered by a fence, as views have to where
 * the kernel has no membarrier.
 */
struct reader {
	alignas(64) _Atomic(uint64_t) inside;
	uint64_t current;
	uintptr_t owner; /* the thread, where it was given by a place */
	uint64_t known;
	bool fence;
	struct reader *next; /* of the views, under the space's lock */
	struct pt_shortcuts shortcuts;
};

/*
 * Invariants: a place that was taken stays taken, by a reader whose owner
 * never changes; its bit in taken is set before. A thread that ends
 * leaves its reader to the next one with its identity, else unused.
 */
struct readers {
	/* What readers remember is good until this changes, which
	 * readers_wait() has happen before it waits. Never 0. */
	alignas(64) _Atomic(uint64_t) epoch;
	atomic_bool no_places; /* the kernel has no membarrier */
	_Atomic(struct reader *) places[READER_PLACES];

	alignas(64) _Atomic(uint64_t) taken; /* bit n: place n */
	atomic_bool counted; /* set before anyone counts itself in */
	atomic_uint phase;
	struct reader *views; /* under the space's lock */
	struct reader_stripe stripes[READER_STRIPES];
};

/* @readers is zero. */
void readers_init(struct readers *readers);

/* Frees what threads were given. Nobody reads any more. */
void readers_fini(struct readers *readers);

/* ---- Entering with a reader of one's own --------------------------------- */

/*
 * Where this thread found its place the last time: a hint, good or bad, for
 * any space. Its address is a number that no other living thread has.
 */
extern _Thread_local unsigned char reader_hint
	__attribute__((tls_model("initial-exec")));

static inline uintptr_t reader_self(void)
{
	return (uintptr_t)&reader_hint;
}

/* This thread's reader, which is not inside. It may be given one now. NULL: it
 * has to be counted. */
struct reader *reader_get(struct readers *readers);

/* Acquiring: what a thread before with this identity wrote is known. */
static inline bool reader_is_inside(const struct reader *reader)
{
	return atomic_load_explicit(&reader->inside, memory_order_acquire) != 0;
}

/* The same, or NULL if it takes longer to tell. */
static inline struct reader *reader_get_quickly(const struct readers *readers)
{
	struct reader *reader = atomic_load_explicit(
		&readers->places[reader_hint % READER_PLACES],
		memory_order_acquire);

	return reader != NULL && reader->owner == reader_self() &&
			       !reader_is_inside(reader)
		       ? reader
		       : NULL;
}

static inline void reader_leave(struct reader *reader)
{
	atomic_store_explicit(&reader->inside, 0, memory_order_release);
}

/* Enters. Returns whether there is nothing to forget; if there is,
 * reader_renew() comes next. */
static inline bool reader_enter(struct reader *reader,
				const struct readers *readers)
{
	uint64_t now =
		atomic_load_explicit(&readers->epoch, memory_order_acquire);

	atomic_store_explicit(&reader->inside, now, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	/* Once more: a writer may have missed the store, and gone on. */
	return atomic_load_explicit(&readers->epoch, memory_order_acquire) ==
	       reader->current;
}

/* Inside: forgets what is not of this epoch. Returns whether that was all. */
bool reader_renew(struct reader *reader, const struct readers *readers);

/* ---- Entering counted ---------------------------------------------------- */

/* Enters; the result goes to readers_leave. */
atomic_uint *readers_enter(struct readers *readers);

static inline void readers_leave(atomic_uint *ticket)
{
	atomic_fetch_sub_explicit(ticket, 1, memory_order_release);
}

/* ---- For writers, under the space's lock --------------------------------- */

/* Adds and removes a view's reader. */
void readers_add(struct readers *readers, struct reader *reader);
void readers_remove(struct readers *readers, struct reader *reader);

/* Has readers that enter from now on forget what they remember: begins a new
 * epoch, and returns it. */
static inline uint64_t readers_forget(struct readers *readers)
{
	uint64_t epoch =
		atomic_load_explicit(&readers->epoch, memory_order_relaxed);

	atomic_store_explicit(&readers->epoch, epoch + 1, memory_order_release);
	return epoch + 1;
}

/* Waits for every reader that entered before the call. One caller at a time;
 * never called by a reader. */
void readers_wait(struct readers *readers);

#endif
