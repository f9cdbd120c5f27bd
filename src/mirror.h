/* SPDX-License-Identifier: MIT */
/*
 * The mirror: memslots derived from the table.
 *
 * plan.c plans and diffs, mirror.c commits; it reaches KVM only through the
 * small ops table below, so the unit tests drive it with a fake that enforces
 * the kernel's rules. kvm.c has the real one.
 */
#ifndef GPAS_SRC_MIRROR_H
#define GPAS_SRC_MIRROR_H

#include "space.h"

/* One memslot as KVM is told about it. A size of 0 deletes the slot. */
struct slot_desc {
	uint32_t id;
	uint32_t flags; /* KVM_MEM_* for plain slots */
	uint64_t gpa;
	uint64_t size;
	uint64_t host;
	bool trap; /* bound to a guest_memfd that is gone: any access faults */
};

/*
 * The slot ioctls. 0 or -errno; nothing has changed on error.
 *
 * Around a diff with traps in it, prepare obtains what they need before the
 * first slot is touched: for @adds bytes of new ones, and for @deletes bytes
 * of old ones that a rollback would put back. finish ends the diff. Both may
 * be NULL.
 */
struct slot_ops {
	int (*prepare)(void *ctx, uint64_t adds, uint64_t deletes);
	int (*set)(void *ctx, const struct slot_desc *slot);
	void (*finish)(void *ctx);
};

/* KVM's limit on a slot is 2^31 - 1 pages (virt/kvm/kvm_main.c); this is the
 * largest multiple of 1 GiB below it, so that pieces stay block-aligned. */
#define SLOT_MAX_BYTES (UINT64_C(8191) << 30)
/* Traps share one inaccessible reservation of this size. */
#define TRAP_MAX_BYTES (UINT64_C(1) << 40)
/*
 * A trap that a fault has cut is replaced by others, and each slot's cost may
 * grow with its size (docs/kvm-notes.md). Traps are not cut into smaller ones
 * than a grain for speed's sake: where KVM's cost grows, or where it does not.
 */
#define TRAP_GRAIN	(UINT64_C(64) << 20)
#define TRAP_GRAIN_FLAT (UINT64_C(16) << 30)
/* Where it grows, traps are installed in chunks of this size. */
#define TRAP_CHUNK_SIZED (UINT64_C(128) << 20)

/* An installed slot, or one about to be. */
struct slot {
	struct span span; /* first: a span in the set is a slot */
	uint32_t id;
	uint32_t flags;
	uint64_t host; /* of span.start; unused for traps */
	bool trap;
	bool doomed;	   /* to be deleted by the diff being made */
	struct slot *link; /* in the diff's lists, or the spare list */
};

/*
 * A planned difference: slots to delete and slots to add, the latter in
 * ascending order. Invariant: the doomed slots are still in the mirror's set.
 */
struct diff {
	struct slot *deletes;
	struct slot **deletes_end;
	size_t delete_count;
	struct slot *adds;
	struct slot **adds_end;
	size_t add_count;
};

struct mirror {
	const struct slot_ops *ops;
	void *ops_ctx;
	struct gpas_kvm_params params;
	enum gpas_lazy lazy; /* TRAP or ABSENT, never AUTO */
	char lazy_reason[96];
	struct span_set slots;
	size_t trap_count;
	struct slot *spare; /* the reserve of nodes, linked by link */
	size_t spare_count;
	/* Slot numbers: those never used start at next_id; the others that are
	 * free are in the stack, which has room for all of them. */
	uint32_t *free_ids;
	uint32_t free_count;
	uint32_t next_id;
	/* Bytes, powers of two: grain <= chunk <= max. A trap is at most a
	 * chunk, which grows to the maximum when slots run short. */
	uint64_t trap_grain;
	uint64_t trap_chunk;
	uint64_t trap_max;
	struct reservation trap_area; /* real KVM only, as is the next */
	struct trap_file {
		int fd; /* -1: none open */
		uint64_t used;
	} trap_file;
	struct gpas_vcpu *vcpus; /* linked by next */
	_Atomic(int) replacing;	 /* entering vCPUs wait */
	/* A trap could not be created, for a reason that will not pass: see
	 * mirror_update. */
	bool traps_refused;
	bool delivers_sysregs; /* KVM was told of claimed registers */
	/* Set by a failed rollback: the slots KVM has are not known. */
	bool lost;
};

/* Creates the mirror's bookkeeping for [first, first + count) slot numbers. */
int mirror_create(const struct gpas_kvm_params *params,
		  const struct slot_ops *ops, void *ctx, enum gpas_lazy lazy,
		  struct mirror **ret);
void mirror_destroy(struct mirror *mirror);

/* Makes @mirror the space's own and installs what the table asks for. The
 * lock is not held. On error the caller destroys it. */
int mirror_attach(struct gpas *space, struct mirror *mirror);

/* ---- plan.c -------------------------------------------------------- */

/*
 * Plans the difference between the installed slots and what the table asks for
 * in the space's windows, which it sorts and may widen. With @merge no piece is
 * left with more slots than it needs. On error nothing is left to drop.
 */
int diff_make(struct gpas *space, bool merge, struct diff *diff);
/* Forgets a diff that was not carried out. */
void diff_drop(struct mirror *mirror, struct diff *diff);

/* ---- mirror.c ------------------------------------------------------ */

/* A node from the reserve, or NULL without memory; and back. */
struct slot *mirror_take_node(struct mirror *mirror);
void mirror_give_node(struct mirror *mirror, struct slot *slot);

/* Refills the reserve of nodes. 0 or -ENOMEM. */
int mirror_reserve(struct mirror *mirror);

/*
 * Brings the slots of the space's windows in line with its table.
 * @merge also joins neighbouring slots that could be one.
 * All-or-nothing; -ENOTRECOVERABLE (space poisoned) when undoing failed.
 */
int mirror_update(struct gpas *space, bool merge);

/* Deletes every slot. On error the space is poisoned; calling again tries
 * again. */
int mirror_remove_all(struct gpas *space);

/* 0 when the installed slots are exactly what the table asks for. */
int mirror_check(struct gpas *space);

/* Whether some vCPU is in KVM_RUN. */
bool mirror_is_live(const struct mirror *mirror);

/* Sees to it that no vCPU runs until mirror_release_vcpus(). *@paused: whether
 * the embedder's callback was called. -EBUSY: some vCPU runs all the same. */
int mirror_hold_vcpus(struct gpas *space, bool *paused);
void mirror_release_vcpus(struct gpas *space, bool paused);

static inline struct slot *slot_of(struct span *span)
{
	return (struct slot *)span;
}

#endif
