/* SPDX-License-Identifier: MIT */
/*
 * The space's insides, shared by the files that implement it:
 * space.c (life and questions), txn.c (regions under a journal, commit and
 * undo), map.c (mapping calls), fault.c (lazy memory), access.c (readers),
 * mirror.c and kvm.c (memslots), exit.c (vCPU exits), check.c (inspection).
 */
#ifndef GPAS_SRC_SPACE_H
#define GPAS_SRC_SPACE_H

#include <gpas/kvm.h>
#include <gpas/space.h>

#include "device.h"
#include "memory.h"
#include "pgtable.h"
#include "readers.h"
#include "span.h"

#include <pthread.h>
#include <stdarg.h>

/*
 * What a mapping call created, shared by the regions it was split into.
 * Invariant: refs is the number of regions (in the set, the journal or the
 * graveyard) that point here.
 */
struct backing {
	atomic_size_t refs;
	struct backing *next; /* in the space's list of expired ones */
	enum gpas_region_kind kind;
	enum gpas_memtype memtype;
	bool lazy;
	uint64_t granule;     /* bytes, the smallest unit of presence */
	uint64_t granule_max; /* bytes, what sequential faults may grow it to */
	uint64_t granule_now;
	uint64_t fault_low; /* GPA range that the last fault populated */
	uint64_t fault_high;
	uint64_t host; /* HVA of offset 0; 0 for devices and backends */
	struct gpas_memory *memory; /* a reference, or NULL */
	uint64_t memory_offset;	    /* of offset 0 */
	struct gpas_backend ops;    /* kind BACKEND */
	struct gpas_filler filler;  /* kind ALLOC */
	/* Served through userfaultfd: the GPA of offset 0, and the list of the
	 * space's backings that are. */
	bool uffd;
	uint64_t uffd_gpa;
	struct backing *uffd_next;
	struct claim *claim; /* kind DEVICE: a reference */
	char name[GPAS_NAME_BYTES];
};

/* A range of GPAs with one backing and one permission. */
struct region {
	/* First: a span in the set is a region. */
	alignas(64) struct span span;
	struct backing *backing;
	uint64_t offset; /* of span.start in the backing */
	unsigned prot;
	/* Its insertion was undone: what a backend had provided for it was
	 * taken back piece by piece. */
	bool undone;
};

enum change_kind {
	CHANGE_INSERT,	 /* region was inserted */
	CHANGE_REMOVE,	 /* region .. other, linked by next, were removed */
	CHANGE_SPLIT,	 /* other was split off the end of region */
	CHANGE_JOIN,	 /* other was joined to the end of region */
	CHANGE_PROT,	 /* region's permission was prot */
	CHANGE_POPULATE, /* a backend provided [start, end) of region */
};

/* How to undo one step on the region set. */
struct change {
	enum change_kind kind;
	unsigned prot;
	struct region *region;
	struct region *other;
	uint64_t start;
	uint64_t end;
};

/* A range whose slots may no longer agree with the table. */
struct window {
	uint64_t start;
	uint64_t end;
};

struct mirror;

struct gpas {
	uint64_t base;
	uint64_t end;
	struct gpas_pgtable *table;
	const struct gpas_format *format;
	unsigned max_leaf_shift;
	void (*log)(void *ctx, enum gpas_log_level level, const char *line);
	void *log_ctx;
	enum gpas_log_level log_level;

	/* Everything below is under the lock, except what says otherwise. */
	pthread_mutex_t lock;
	/* The thread that has a group open, or 0. Read without the lock, which
	 * is safe: only that thread can find itself there. */
	_Atomic(uintptr_t) group_owner;
	bool poisoned;
	/* Counts changes of regions or table; read without the lock. */
	_Atomic(uint64_t) generation;

	struct span_set regions;
	struct span_set claims[GPAS_ADDRESS_KIND_COUNT]; /* GPA: unused */
	struct reservation reservation; /* host NULL: one a region */

	/* Slots are short: the least unit that faults make present, or 0. Read
	 * without the lock. */
	_Atomic(uint64_t) slot_floor;

	/* The open transaction. */
	struct change *changes;
	size_t change_count;
	size_t change_capacity;
	struct window *windows;
	size_t window_count;
	size_t window_capacity;
	bool wait_for_readers;
	bool merge; /* slots are short: join those of the windows */
	uint64_t settled_charge; /* what charged was when the journal was empty
				  */
	/* Memory that left the space in this transaction may still occupy its
	 * place in the reservation: new memory goes elsewhere. */
	bool reservation_busy;
	struct region *graveyard; /* linked by span.next */
	struct backing *expired;  /* to be released once unlocked */
	struct region *spare;	  /* like the graveyard: for splits */
	size_t spare_count;

	/* Bytes present in regions of kind ALLOC and BACKEND. */
	uint64_t charged;
	uint64_t budget;   /* 0: no limit, and charged is not kept */
	uint64_t short_of; /* bytes the last refused populate wanted; or 0 */
	int (*pressure)(void *ctx, struct gpas *space, uint64_t wanted);
	void *pressure_ctx;

	struct uffd *uffd; /* NULL: no region asked for it yet */
	struct backing *uffd_backings;

	/* vCPUs that wait for the lock to enter the guest. Lock-free. */
	_Atomic(int) entering;
	struct mirror *mirror; /* NULL: not attached */
	struct gpas_stats stats;
	struct readers readers; /* lock-free */
};

/* ---- txn.c: changes of regions and table as one -------------------- */

/* What a call does: taking calls first refill the reserve and fail with
 * -ENOMEM when they cannot; releasing calls go on with what is there. */
enum txn_mode {
	TXN_TAKE,
	TXN_RELEASE,
	TXN_CLEAR, /* also allowed in a poisoned space */
};

/* Where a call's own changes begin, inside a group or alone. */
struct txn {
	struct gpas *space;
	bool grouped;
	size_t change_mark;
	size_t table_mark;
	size_t window_mark;
	uint64_t charge_mark;
};

/* Takes the lock (unless this thread's group holds it). 0, or an error with
 * nothing held. */
int txn_open(struct gpas *space, enum txn_mode mode, struct txn *txn);

/* The two steps of txn_open, for a call that looks before it knows whether it
 * has anything to change; if not, it goes on to space_unlock. On error nothing
 * is held. */
bool txn_lock(struct gpas *space);
int txn_begin(struct gpas *space, enum txn_mode mode, bool locked,
	      struct txn *txn);

/* Ends a call that so far returned @err: undoes its changes if that is an
 * error; outside a group brings KVM in line, waits for readers, frees what
 * dropped out, and unlocks. Returns the call's final result. */
int txn_close(struct txn *txn, int err);

/* Unlocks after txn_conclude, and then releases what expired: the embedder's
 * release functions run without the lock. */
void txn_unlock(struct txn *txn);

/* txn_close without the unlocking, for a call outside any group that has more
 * to do once its changes are final. */
int txn_conclude(struct txn *txn, int err);

/* Whether the calling thread has a group open, and so the lock. */
static inline bool space_owns_group(const struct gpas *space)
{
	return atomic_load_explicit(&space->group_owner,
				    memory_order_relaxed) ==
	       (uintptr_t)pthread_self();
}

/* Locks for a call that only looks; pairs with space_unlock. */
bool space_lock(struct gpas *space);
void space_unlock(struct gpas *space, bool locked);

/* Inserts a new region of @backing (whose first reference it takes over). */
int txn_insert(struct gpas *space, struct backing *backing, uint64_t start,
	       uint64_t end, unsigned prot, struct region **ret);
/* Removes [start, end) from the regions, splitting at the ends. */
int txn_remove(struct gpas *space, uint64_t start, uint64_t end);
/* Sets the permission of [start, end), which regions cover wholly, splitting
 * and joining. *@first is the region that contains @start, before and after. */
int txn_set_prot(struct gpas *space, struct region **first, uint64_t start,
		 uint64_t end, unsigned prot);
/* Takes the present bytes of [start, end), which are about to leave the table,
 * off the budget's account. */
void txn_discharge(struct gpas *space, uint64_t start, uint64_t end);
/* Makes sure that the note can be taken; then takes note that a backend
 * provided [start, end) of @region. */
int txn_expect_populate(struct gpas *space);
void txn_note_populate(struct gpas *space, struct region *region,
		       uint64_t start, uint64_t end);
/* Records that the slots of [start, end) need another look. */
int txn_touch(struct gpas *space, uint64_t start, uint64_t end);

/* Gives a reference back; the last one releases. The lock is not held. */
void backing_put(struct backing *backing);
/* The same under the lock: the release waits for the unlock. */
void backing_expire(struct gpas *space, struct backing *backing);

/* Whether present bytes of @backing count against the budget. */
static inline bool is_charged(const struct backing *backing)
{
	return backing->kind == GPAS_REGION_ALLOC ||
	       backing->kind == GPAS_REGION_BACKEND;
}

static inline struct region *region_of(struct span *span)
{
	return (struct region *)span;
}

static inline struct region *region_find(const struct gpas *space, uint64_t gpa)
{
	return region_of(span_find(&space->regions, gpa));
}

/* The first region that ends above @gpa. */
static inline struct region *region_from(const struct gpas *space, uint64_t gpa)
{
	return region_of(span_from(&space->regions, gpa));
}

/* ---- fault.c ------------------------------------------------------- */

/* Makes [start, end) of @region present, where nothing is. */
int populate_hole(struct gpas *space, struct region *region, uint64_t start,
		  uint64_t end);
/* Makes the absent parts of [start, end) of @region present, inside a
 * transaction. Adds what became present to *@populated. */
int populate_range(struct gpas *space, struct region *region, uint64_t start,
		   uint64_t end, uint64_t *populated);

/*
 * gpas_fault, and for a device region also a reference to its claim, the
 * region's size and the offset of @gpa in it, so that an access needs one
 * lookup.
 */
struct resolution {
	struct gpas_fault fault;
	struct claim *claim;
	uint64_t device_offset;
	uint64_t device_size;
};

/* @ahead: how many bytes from @gpa on the caller is about to access: as much of
 * them as lies in the region becomes present in the same step. */
int fault_resolve(struct gpas *space, uint64_t gpa, unsigned access,
		  uint64_t ahead, struct resolution *ret);

/* The claim of a device region at @gpa, as part of @ret. */
void resolve_claim(const struct region *region, uint64_t gpa,
		   struct resolution *ret);

/* ---- uffd.c --- */

/* Has the missing pages of @backing, which begins at @gpa, reported and served;
 * starts the server when it is the first. Under the lock. */
int uffd_add(struct gpas *space, struct backing *backing, uint64_t gpa);
/* Forgets a backing that is about to be released. Under the lock. */
void uffd_remove(struct gpas *space, struct backing *backing);
/* Installs the pages of [offset, offset + size), content and all, and wakes who
 * waits for them. Under the lock. */
int uffd_provide(struct gpas *space, const struct backing *backing,
		 uint64_t offset, uint64_t size);
/* Ends the server. Not under the lock. */
void uffd_stop(struct gpas *space);
/*
 * A page that could not be provided was made inaccessible, so that KVM_RUN
 * comes back to say so. Makes one such page missing again and tells its GPA.
 * False when there is none. Any thread.
 */
bool uffd_take_failure(struct gpas *space, uint64_t *gpa);
/* Makes the failed pages in [host, host + size) missing again. Any thread. */
void uffd_forget_failures(struct gpas *space, uint64_t host, uint64_t size);

/* ---- bus.c --------------------------------------------------------- */

/* Carries out one access on the claim in @found and gives the claim back. */
int dispatch_claim(struct gpas *space, struct resolution *found, void *data,
		   size_t size, bool write);

/* ---- kvm.c and its architecture's file ----------------------------- */

/* Whether KVM delivers an interrupt or exception once more when the vCPU is
 * entered. False also where KVM cannot say. */
bool arch_event_pending(int vcpu_fd);

/* Asks KVM to deliver the registers that devices claim. 0 or -errno. */
int kvm_deliver_sysregs(struct gpas *space);
int arch_deliver_sysregs(int vm_fd, const struct span_set *claims);

/*
 * Where the vCPU fetches its next instruction: the GPA of its first byte, and
 * how many bytes of it KVM could read from there. -errno when it cannot be
 * told (no such translation, or not on this architecture).
 */
struct fetch {
	uint64_t pc;
	uint64_t gpa;
	unsigned readable;
};
int arch_fetch(int vcpu_fd, const struct kvm_run *run, struct fetch *ret);
/* Settings of the VM that the library's exits depend on, where it has them. */
void arch_prepare_vm(int vm_fd);
int arch_translate(int vcpu_fd, uint64_t gva, uint64_t *gpa);

/* ---- space.c ------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) void space_log(struct gpas *space,
						     enum gpas_log_level level,
						     const char *format, ...);
/* Log what is wrong with the space; @check is the name of who found it. */
__attribute__((format(printf, 3, 0))) void space_log_finding(struct gpas *space,
							     const char *check,
							     const char *format,
							     va_list args);

/* 0 when [start, start + size) is aligned, not empty and inside. */
int space_check_range(const struct gpas *space, gpas_gpa start, uint64_t size);

uint64_t clock_ns(void);

/* Adds to a counter that only changes under the lock. */
static inline void count_locked(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter,
			 __atomic_load_n(counter, __ATOMIC_RELAXED) + n,
			 __ATOMIC_RELAXED);
}

/* Adds to any other counter of the statistics, from any thread. */
static inline void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

#endif
