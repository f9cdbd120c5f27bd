/* SPDX-License-Identifier: MIT */
/*
 * A space as the memory of a KVM virtual machine.
 *
 * The embedder keeps its own VM and vCPU file descriptors. Attaching a space
 * to a VM mirrors the space's table into memslots and keeps them in line with
 * every later change. References are to the Linux kernel's
 * Documentation/virt/kvm/api.rst.
 */
#ifndef GPAS_KVM_H
#define GPAS_KVM_H

#include <gpas/space.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvm_run;

/* How to attach; vm_fd is the one field without a default. */
struct gpas_kvm_params {
	int vm_fd; /* the embedder's; used, never closed */
	/* The memslot numbers the space may use: [first, first + count). Count
	 * 0 means up to KVM_CAP_NR_MEMSLOTS. The others stay the embedder's. */
	uint32_t slot_first;
	uint32_t slot_count;
	enum gpas_lazy lazy;
	/*
	 * Stop and restart the other vCPUs around the replacement of a live
	 * slot, which KVM cannot do atomically. pause returns once no vCPU is
	 * inside KVM_RUN (see gpas_vcpu_running); a vCPU in a library call
	 * counts as stopped and cannot re-enter before resume. Both run on the
	 * thread that makes the change, with the space's lock held. Called only
	 * when a vCPU other than the caller's own is in KVM_RUN. Without them
	 * such a change is refused with -EBUSY.
	 */
	void (*pause)(void *ctx);
	void (*resume)(void *ctx);
	void *ctx;
};

/*
 * gpas_kvm_attach - mirror @space into the VM.
 *
 * GPAS_LAZY_AUTO really creates a trap slot to find out whether the kernel
 * offers them, and logs the choice and its reason. On x86 the VM is set to
 * exit on instructions that KVM cannot emulate
 * (KVM_CAP_EXIT_ON_EMULATION_FAILURE), which is how a fetch from absent memory
 * is noticed, instead of raising #UD in the guest. An embedder who owns no
 * assigned devices does well to disable KVM_X86_QUIRK_SLOT_ZAP_ALL
 * (KVM_CAP_DISABLE_QUIRKS2): otherwise every slot that is deleted, and with
 * traps that is one a fault, costs KVM all its page tables.
 *
 * Errors (nothing has changed): -EBUSY already attached; -EINVAL the slot
 * range; -EOPNOTSUPP the kernel lacks the lazy mechanism asked for; -ENOSPC;
 * the errno of an ioctl.
 */
GPAS_API int gpas_kvm_attach(struct gpas *space,
			     const struct gpas_kvm_params *params);

/* gpas_kvm_detach - remove every slot the space installed.
 * Errors: -ENOENT not attached; -EBUSY a vCPU is still registered, or this
 * thread has a group open; the errno of an ioctl that KVM refused, upon which
 * the space is as after -ENOTRECOVERABLE and the call may be repeated. */
GPAS_API int gpas_kvm_detach(struct gpas *space);

/* What attaching decided. */
struct gpas_kvm_info {
	enum gpas_lazy lazy;  /* TRAP or ABSENT */
	char lazy_reason[96]; /* one line for a person */
	uint32_t slot_first;
	uint32_t slot_count;
	uint32_t slots_used;
};

/* -ENOENT: not attached. */
GPAS_API int gpas_kvm_info(struct gpas *space, struct gpas_kvm_info *ret);

/* "trap", "absent" or "uffd"; "auto" before the choice is made. */
GPAS_API const char *gpas_lazy_name(enum gpas_lazy lazy);

/*
 * A vCPU as the library sees it. The memory is the caller's; the fields are
 * the library's. One thread at a time uses a vCPU, except gpas_vcpu_running.
 */
struct gpas_vcpu {
	struct gpas *space;
	int fd;
	struct kvm_run *run;
	struct gpas_vcpu *next;
	int running; /* atomic: in KVM_RUN, or about to be */
	unsigned repeats;
	unsigned failures;
	uint64_t last_gpa;
	uint64_t last_pc;
	uint64_t last_change;
};

/*
 * gpas_vcpu_init - let @space know of a vCPU, as stopped.
 *
 * @run is the vCPU's mapped kvm_run. Errors: -EINVAL no run; -ENOENT the space
 * is not attached.
 */
GPAS_API int gpas_vcpu_init(struct gpas_vcpu *vcpu, struct gpas *space,
			    int vcpu_fd, struct kvm_run *run);
/* Must come before gpas_kvm_detach and gpas_destroy. */
GPAS_API void gpas_vcpu_fini(struct gpas_vcpu *vcpu);

/* Whether the vCPU is in KVM_RUN or about to enter it. Any thread. */
GPAS_API bool gpas_vcpu_running(const struct gpas_vcpu *vcpu);

enum gpas_exit_kind {
	/* Dealt with: enter the guest again. */
	GPAS_EXIT_RESUME = 0,
	/* Not about memory or a claimed device: run->exit_reason is for the
	 * embedder. */
	GPAS_EXIT_OTHER,
	/* KVM_RUN was interrupted by a signal or immediate_exit. */
	GPAS_EXIT_INTERRUPTED,
	/* The guest touched memory it may not, memory that is not there, or
	 * lazy memory that could not be provided: see the fault record. If
	 * retryable is set the access has been completed as a read of all ones
	 * or a dropped write, and the guest may be entered again; otherwise
	 * entering again repeats the fault. */
	GPAS_EXIT_FAULT,
	/* A port or register that no device claims; completed like the above
	 * (a register access raises #GP in the guest). */
	GPAS_EXIT_UNCLAIMED,
	/* A device's access function failed: error has its errno. Completed
	 * like the above. */
	GPAS_EXIT_DEVICE_ERROR,
};

/* What handling an exit found out. */
struct gpas_exit {
	enum gpas_exit_kind kind;
	bool retryable;
	int error;		 /* DEVICE_ERROR: -errno */
	struct gpas_fault fault; /* FAULT */
	/* UNCLAIMED, DEVICE_ERROR: the access. */
	enum gpas_address_kind address_kind;
	uint64_t address;
	unsigned size;
	bool write;
};

/*
 * gpas_kvm_handle_exit - turn a finished KVM_RUN into one of the above.
 *
 * @result is what ioctl(KVM_RUN) returned, as 0 or -errno. Serves
 * KVM_EXIT_MMIO (devices; lazy memory, which it populates before completing
 * exactly the bytes of the exit), KVM_EXIT_MEMORY_FAULT, KVM_EXIT_IO and the
 * register exits for claimed ranges, and what KVM reports of lazy memory as
 * KVM_EXIT_INTERNAL_ERROR: instruction fetches, and accesses that it mistakes
 * for part of an event's delivery.
 *
 * Returns 0 with the outcome in @ret, or the host's error: -EFAULT KVM could
 * not use the host memory behind a mapping; -ELOOP the guest repeats one fault
 * although memory is in place; -EIO KVM_RUN failed; -ENOTRECOVERABLE.
 * Concurrency: on the vCPU's own thread; several vCPUs at once.
 */
GPAS_API int gpas_kvm_handle_exit(struct gpas_vcpu *vcpu, int result,
				  struct gpas_exit *ret);

/*
 * gpas_vcpu_run - enter the guest once and handle the exit.
 *
 * The usual run loop is this call until kind is not GPAS_EXIT_RESUME. An
 * embedder that issues KVM_RUN itself brackets it: gpas_vcpu_enter() before
 * the ioctl, gpas_kvm_handle_exit() after it. Enter waits while another thread
 * replaces live slots. One that has entered and then does not issue the ioctl
 * hands -EINTR to gpas_kvm_handle_exit().
 */
GPAS_API int gpas_vcpu_run(struct gpas_vcpu *vcpu, struct gpas_exit *ret);
GPAS_API void gpas_vcpu_enter(struct gpas_vcpu *vcpu);

/* ---- Auditing ------------------------------------------------------ */

/* What a read by the guest came upon. */
enum gpas_seen {
	GPAS_SEEN_MEMORY = 0,
	GPAS_SEEN_MMIO,	 /* KVM_EXIT_MMIO */
	GPAS_SEEN_FAULT, /* KVM_EXIT_MEMORY_FAULT */
};

/* A guest-virtual address and where the guest's page tables lead it. */
struct gpas_audit_translation {
	gpas_gva gva;
	gpas_gpa gpa;
};

/* What to look at beyond slots and host memory; NULL or all zero: nothing. */
struct gpas_audit_params {
	/* KVM_TRANSLATE on this vCPU must answer each translation as given:
	 * KVM then reads the guest's page tables as the table has them. Give
	 * addresses the guest has used: KVM sets their accessed bits. */
	const struct gpas_vcpu *vcpu;
	const struct gpas_audit_translation *translations;
	size_t translation_count;
	/*
	 * Let a guest read the 8 bytes at @gpa, leave *value as it read them
	 * and *seen as how. Called for the first and last bytes of every slot
	 * and of every stretch between slots, with the space's lock held: use
	 * KVM_RUN itself, leave the exit unhandled. -ENOENT: this address
	 * cannot be tried; any other error ends the audit.
	 */
	int (*probe)(void *ctx, gpas_gpa gpa, enum gpas_seen *seen,
		     uint64_t *value);
	void *ctx;
};

/* How much was looked at, and how much of it was wrong. */
struct gpas_audit {
	uint64_t slots;	       /* installed slots shown to be as recorded */
	uint64_t numbers;      /* slot numbers shown to be unused */
	uint64_t translations; /* KVM_TRANSLATE calls */
	uint64_t probes;       /* reads by the guest */
	uint64_t host_bytes;   /* absent lazy memory looked at for pages */
	uint64_t findings;
};

/*
 * gpas_audit - compare what KVM and the host have with what the space records.
 *
 * Where gpas_check() looks at the space's own records, this asks the others:
 *
 * - KVM, about each slot number of the space. A recorded slot must be there
 *   with its address, size, host address and flags, without a dirty log; every
 *   other number of [slot_first, slot_first + slot_count) must be unused. Of
 *   a trap KVM tells only that it exists and that its ends are covered.
 * - The host, about memory the space owns: no page may be resident where the
 *   table has no leaf or no region is, and what regions map is accessible.
 *   Private and caller's memory, files and backends are not looked at.
 * - KVM_TRANSLATE and the guest, where @params says how.
 *
 * Each finding is logged as an error. Slots are left as they were: all the
 * questions are requests that KVM refuses or that change nothing, except that
 * a page found without its slot is covered for a moment. vCPUs that run are
 * paused by the callbacks given to gpas_kvm_attach(). @params and @ret may be
 * NULL; @ret is also filled in with -EUCLEAN. Takes time in proportion to the
 * slot numbers, the absent lazy memory and the process's mappings.
 *
 * Returns 0 when all is as it should be, -EUCLEAN when it is not. Errors:
 * -EBUSY a vCPU runs and cannot be paused, or this thread has a group open;
 * -ENOSPC all slot numbers are in use, and one is needed to ask with;
 * -ENOTRECOVERABLE; -ENOMEM; the errno of an ioctl or of the probe. Without a
 * VM attached only the host is asked.
 */
GPAS_API int gpas_audit(struct gpas *space,
			const struct gpas_audit_params *params,
			struct gpas_audit *ret);

#ifdef __cplusplus
}
#endif

#endif
