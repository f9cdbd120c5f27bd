/* SPDX-License-Identifier: MIT */
/* Announcing readers and waiting for them; readers.h says why it suffices. */
#include "readers.h"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A thread's reader is mapped, not allocated: a signal handler may read. */
#define READER_BYTES (3 * GPAS_PAGE_BYTES)

/* How many places a thread may have. */
#define MAX_PROBES 8u

_Static_assert(sizeof(struct reader) <= READER_BYTES, "it fits");
_Static_assert(READER_PLACES == 64, "a bit each, and 6 bits of a hash");

_Thread_local unsigned char reader_hint;

/* Registering twice is harmless, and a child of fork() has to. */
static bool register_membarrier(void)
{
	return syscall(SYS_membarrier,
		       MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

static bool membarrier(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0,
		       0) == 0;
}

/* ---- A thread's own reader ----------------------------------------------- */

/* Where to look for a thread. Identities are addresses far apart: the product's
 * top bits tell them apart. */
static unsigned probe_place(uintptr_t self, unsigned probe)
{
	uint64_t hash = (self >> 6) * UINT64_C(0x9e3779b97f4a7c15) >> 58;

	return ((unsigned)hash + probe) % READER_PLACES;
}

/* Finds the place of what this thread was given, or else the first in its way
 * that is vacant. READER_PLACES: neither. */
static unsigned find_place(struct readers *readers, uintptr_t self)
{
	for (unsigned probe = 0; probe < MAX_PROBES; probe++) {
		unsigned place = probe_place(self, probe);
		const struct reader *reader = atomic_load_explicit(
			&readers->places[place], memory_order_acquire);

		if (reader == NULL || reader->owner == self) {
			return place;
		}
	}
	return READER_PLACES;
}

static struct reader *create_reader(struct readers *readers, uintptr_t self)
{
	struct reader *reader;

	if (atomic_load_explicit(&readers->no_places, memory_order_relaxed)) {
		return NULL;
	}
	if (!register_membarrier()) {
		atomic_store_explicit(&readers->no_places, true,
				      memory_order_relaxed);
		return NULL;
	}
	reader = mmap(NULL, READER_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (reader == MAP_FAILED) {
		return NULL;
	}
	reader->owner = self;
	return reader;
}

/* Puts a new reader of this thread into a vacant place. */
static struct reader *take_place(struct readers *readers, uintptr_t self,
				 unsigned place)
{
	struct reader *reader = create_reader(readers, self);
	struct reader *none = NULL;

	if (reader == NULL) {
		return NULL;
	}
	atomic_fetch_or_explicit(&readers->taken, UINT64_C(1) << place,
				 memory_order_seq_cst);
	if (!atomic_compare_exchange_strong(&readers->places[place], &none,
					    reader)) {
		/* Somebody was faster; the next call looks again. */
		munmap(reader, READER_BYTES);
		return NULL;
	}
	/* A writer that sees no bit or no reader has stored before this. */
	atomic_thread_fence(memory_order_seq_cst);
	return reader;
}

struct reader *reader_get(struct readers *readers)
{
	uintptr_t self = reader_self();
	unsigned place = find_place(readers, self);
	struct reader *reader;

	if (place == READER_PLACES) {
		return NULL;
	}
	reader = atomic_load_explicit(&readers->places[place],
				      memory_order_acquire);
	if (reader == NULL) {
		reader = take_place(readers, self, place);
	} else if (reader->owner != self || reader_is_inside(reader)) {
		return NULL;
	}
	if (reader != NULL) {
		reader_hint = (unsigned char)place;
	}
	return reader;
}

bool reader_renew(struct reader *reader, const struct readers *readers)
{
	uint64_t now;

	if (reader->fence) {
		atomic_thread_fence(memory_order_seq_cst);
	}
	now = atomic_load_explicit(&readers->epoch, memory_order_acquire);
	if (now == reader->known) {
		return false;
	}
	pt_forget(&reader->shortcuts, now);
	reader->known = now;
	reader->current = reader->fence ? 0 : now;
	return true;
}

void readers_init(struct readers *readers)
{
	atomic_init(&readers->epoch, 1);
}

void readers_fini(struct readers *readers)
{
	for (unsigned i = 0; i < READER_PLACES; i++) {
		struct reader *reader = atomic_load(&readers->places[i]);

		if (reader != NULL) {
			munmap(reader, READER_BYTES);
		}
	}
}

/* ---- Counted ------------------------------------------------------------- */

atomic_uint *readers_enter(struct readers *readers)
{
	int cpu = sched_getcpu();
	unsigned stripe = (cpu < 0 ? 0u : (unsigned)cpu) % READER_STRIPES;
	unsigned phase =
		atomic_load_explicit(&readers->phase, memory_order_relaxed) &
		1u;
	atomic_uint *ticket = &readers->stripes[stripe].count[phase];

	if (!atomic_load_explicit(&readers->counted, memory_order_relaxed)) {
		atomic_store_explicit(&readers->counted, true,
				      memory_order_seq_cst);
	}
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

static void wait_for_counted(struct readers *readers)
{
	if (!atomic_load_explicit(&readers->counted, memory_order_seq_cst)) {
		return;
	}
	for (int turn = 0; turn < 2; turn++) {
		unsigned old = atomic_fetch_xor_explicit(&readers->phase, 1,
							 memory_order_seq_cst);

		wait_for_phase(readers, old & 1u);
	}
}

/* ---- Writers ------------------------------------------------------------- */

void readers_add(struct readers *readers, struct reader *reader)
{
	reader->fence = !register_membarrier();
	reader->next = readers->views;
	readers->views = reader;
}

void readers_remove(struct readers *readers, struct reader *reader)
{
	struct reader **link = &readers->views;

	while (*link != reader) {
		link = &(*link)->next;
	}
	*link = reader->next;
}

static void wait_for_reader(const struct reader *reader, uint64_t epoch)
{
	uint64_t inside;

	do {
		inside = atomic_load_explicit(&reader->inside,
					      memory_order_acquire);
	} while (inside != 0 && inside != epoch && sched_yield() == 0);
}

/* The places that others than the calling thread have taken. */
static uint64_t others_places(struct readers *readers)
{
	uint64_t taken =
		atomic_load_explicit(&readers->taken, memory_order_seq_cst);
	uintptr_t self = reader_self();

	for (unsigned probe = 0; probe < MAX_PROBES && taken != 0; probe++) {
		unsigned place = probe_place(self, probe);
		uint64_t bit = UINT64_C(1) << place;
		const struct reader *reader;

		if ((taken & bit) == 0) {
			continue;
		}
		reader = atomic_load_explicit(&readers->places[place],
					      memory_order_acquire);
		if (reader != NULL && reader->owner == self) {
			return taken & ~bit;
		}
	}
	return taken;
}

/*
 * There never was a membarrier, and the views fence for themselves; or it was
 * there when readers came to rely on it and is denied now, say by a seccomp
 * filter. Then this lasts longer than any processor holds a store back.
 */
static void do_without_membarrier(struct readers *readers)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	bool relied_upon = atomic_load(&readers->taken) != 0;

	for (const struct reader *view = readers->views; view != NULL;
	     view = view->next) {
		relied_upon = relied_upon || !view->fence;
	}
	atomic_store(&readers->no_places, true);
	if (relied_upon) {
		nanosleep(&pause, NULL);
	}
	atomic_thread_fence(memory_order_seq_cst);
}

/* Waits for those who are inside with a reader of their own since before
 * @epoch, the present one. */
static void wait_for_owners(struct readers *readers, uint64_t epoch)
{
	uint64_t places = others_places(readers);

	if (places == 0 && readers->views == NULL) {
		return;
	}
	if (!membarrier() && (!register_membarrier() || !membarrier())) {
		do_without_membarrier(readers);
	}
	for (; places != 0; places &= places - 1) {
		const struct reader *reader = atomic_load_explicit(
			&readers->places[__builtin_ctzll(places)],
			memory_order_seq_cst);

		if (reader != NULL) {
			wait_for_reader(reader, epoch);
		}
	}
	for (const struct reader *view = readers->views; view != NULL;
	     view = view->next) {
		wait_for_reader(view, epoch);
	}
}

void readers_wait(struct readers *readers)
{
	uint64_t epoch = readers_forget(readers);

	atomic_thread_fence(memory_order_seq_cst);
	wait_for_owners(readers, epoch);
	wait_for_counted(readers);
}
