/* SPDX-License-Identifier: MIT */
/*
 * A KVM without KVM: memslots kept in an array under the kernel's rules, as
 * they were measured (docs/kvm-notes.md), with failures on demand.
 *
 * It also answers what hardware would do with an address, and compares its
 * slots with what regions and extents ask for. Neither knows mirror.c.
 */
#ifndef GPAS_TESTS_FAKE_KVM_H
#define GPAS_TESTS_FAKE_KVM_H

#include "mirror.h"

/* KVM_CAP_NR_MEMSLOTS of x86 without SMM's second address space. */
#define FAKE_SLOT_COUNT 32764
/* Ranges deleted since the last mark that are remembered. */
#define FAKE_HOLE_COUNT 256

/* What an access to an address meets. */
enum fake_kind {
	FAKE_NONE = 0, /* no slot: an MMIO exit */
	FAKE_TRAP,     /* a memory fault exit */
	FAKE_READ_ONLY,
	FAKE_WRITABLE,
};

struct fake_hole {
	uint64_t start;
	uint64_t end;
};

/*
 * Invariant: slots[i] has size 0 or is installed; those that are installed do
 * not overlap; none at top or above is.
 */
struct fake_kvm {
	struct slot_desc *slots; /* FAKE_SLOT_COUNT, by number */
	uint32_t top;
	/* Numbers the library may use; another one breaks the rules. */
	uint32_t first;
	uint32_t count;

	uint64_t calls; /* since the last mark, as are the next two */
	uint64_t adds;
	uint64_t deletes;
	/* The call after the mark that fails (1: the first; 0: none), with
	 * what, and whether all later ones do as well. */
	uint64_t fail_at;
	int fail_with;
	bool fail_on;
	/* And another one, counted from the failure on (0: none). */
	uint64_t again_at;
	int again_with;
	bool has_failed; /* since the last mark */

	/* What prepare fails with from now on, or 0, and what it granted. */
	int refuse_with;
	uint64_t granted; /* bytes of traps */
	/* Not 0 while a vCPU is in the guest: then no slot may be replaced.
	 * NULL: there is none. Where an ioctl failed a slot may come back. */
	const int *running;
	struct fake_hole holes[FAKE_HOLE_COUNT];
	size_t hole_count;
	bool was_replaced;   /* since the last mark: a range left and came */
	const char *mistake; /* something only a broken library does */
};

extern const struct slot_ops fake_kvm_ops; /* ctx: a struct fake_kvm */

void fake_kvm_init(struct fake_kvm *kvm);
void fake_kvm_fini(struct fake_kvm *kvm);

/* Attaches @space with @params (slot_count 0: all numbers). */
int fake_kvm_attach(struct fake_kvm *kvm, struct gpas *space,
		    const struct gpas_kvm_params *params);

/* Starts counting anew and ends a failure that was asked for. */
void fake_kvm_mark(struct fake_kvm *kvm);

/* The first call from now on that fails, and how; with @on, all later too. */
void fake_kvm_fail(struct fake_kvm *kvm, uint64_t nth, int error, bool on);

/* What is at @gpa; *@host (of that byte) only for memory. */
enum fake_kind fake_kvm_translate(const struct fake_kvm *kvm, uint64_t gpa,
				  uint64_t *host);

/* How many slots are installed, of them traps in *@traps (may be NULL). */
size_t fake_kvm_slots(const struct fake_kvm *kvm, size_t *traps);

/* The slot that contains @gpa, or NULL. */
const struct slot_desc *fake_kvm_find(const struct fake_kvm *kvm, uint64_t gpa);

/*
 * Compares every byte of the space with the slots. Returns NULL, or what is
 * wrong, with the address in *@at.
 */
const char *fake_kvm_verify(const struct fake_kvm *kvm, struct gpas *space,
			    enum gpas_lazy lazy, uint64_t *at);

#endif
