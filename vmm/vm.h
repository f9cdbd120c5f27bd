/* SPDX-License-Identifier: MIT */
/*
 * What the files of gpas-vmm share: the options of a run, the machine, and the
 * calls between its parts. Everything about guest memory goes through libgpas'
 * public headers; everything about the processor is behind arch_*().
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <gpas/gpas.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

/* The exit statuses of gpas-vmm; --help documents them. 0 to GUEST_MAX are
 * the guest's own. */
enum status {
	STATUS_GUEST_MAX = 63,
	STATUS_USAGE = 64,
	STATUS_BAD_GUEST = 65,
	STATUS_NO_KVM = 77,
	STATUS_VIOLATION = 100,
	STATUS_CRASH = 101,
	STATUS_HOST = 102,
	STATUS_CHECK = 103,
	STATUS_TIMEOUT = 104,
	STATUS_HALT = 105,
	STATUS_NO_MEMORY = 106,
	STATUS_RESET = 107,
	STATUS_PANIC = 108,
	STATUS_SIGNAL = 128, /* plus the signal's number */
};

/* What the command line asked for. */
struct options {
	const char *guest;
	const char *append;
	const char *kernel; /* boot: a PC that runs this, not a guest */
	const char *initrd; /* boot; may be NULL */
	const char *dtb;    /* boot; may be NULL */
	uint64_t module;    /* boot: bytes that can be plugged in */
	unsigned cpus;
	uint64_t mem;	  /* bytes */
	uint64_t granule; /* bytes; 0: the default, which may grow */
	uint64_t budget;  /* bytes; 0: none */
	enum gpas_lazy lazy;
	bool eager;    /* --lazy off */
	bool carry_on; /* --on-violation continue */
	bool map;
	bool stats;
	bool verbose;
	const char *trace;
	const char *dtb_out;
	const char *restore; /* the file, without its offset */
	uint64_t restore_offset;
	const char *save;
	unsigned timeout_s; /* 0: none */
};

#define VCPU_MAX 16

struct vm;
struct pc;

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	struct gpas_vcpu gpas;
	uint64_t traced_ns; /* in KVM_RUN while tracing */
	pthread_t thread;
	atomic_bool started; /* thread is valid */
};

/* A 16550 without interrupts or input; output goes to stdout. */
struct serial {
	pthread_mutex_t lock;
	uint8_t divisor[2];
	uint8_t interrupt_enable;
	uint8_t line_control;
	uint8_t modem_control;
	uint8_t scratch;
};

struct doorbell {
	struct vm *vm;
	pthread_mutex_t lock;
	uint64_t syncs;
	uint64_t scratch_count;
	uint64_t scratch_width;
	uint8_t scratch[256];
	/* The range of the next command about memory, and what became of the
	 * last one: 0 or -errno. */
	gpas_gpa range_start;
	uint64_t range_size;
	int result;
};

/* The file that RAM comes from. */
struct restore {
	int fd;	       /* -1: none, and size is 0 */
	uint64_t size; /* whole pages */
	struct gpas_file_content content;
};

#define OFFER_MAX 64

/* What the guest can do without, oldest first. */
struct offers {
	pthread_mutex_t lock;
	unsigned count;
	struct gpas_range ranges[OFFER_MAX];
	uint64_t taken; /* bytes */
};

/* Where the guest begins. */
struct entry {
	gpas_gpa start;
	gpas_gpa fdt;
	gpas_gpa boot; /* the region that arch_boot_write filled */
};

/* What the time of a run goes to, in this order. */
enum phase {
	PHASE_KVM = 0, /* open /dev/kvm, create the VM */
	PHASE_MEMORY,  /* the space, its regions, what the guest boots from */
	PHASE_LOAD,    /* the guest's file */
	PHASE_ATTACH,
	PHASE_VCPUS,
	PHASE_TREE,
	PHASE_THREADS,	   /* until vCPU 0 is about to enter the guest */
	PHASE_FIRST_ENTRY, /* until it leaves it for the first time */
	PHASE_RUN,
	PHASE_DESTROY, /* the space */
	PHASE_CLOSE,   /* the VM */
	PHASE_COUNT
};

struct vm {
	const struct options *options;
	int kvm_fd;
	int fd;
	struct gpas *space;
	/* Lines of the library's own that said what went wrong. */
	unsigned long library_errors;
	struct restore restore;
	struct offers offers;
	atomic_bool budget_told;
	gpas_gpa ram_end; /* the first address after the last of the RAM */
	struct vcpu vcpus[VCPU_MAX];
	unsigned vcpu_count;
	struct serial serial;
	struct doorbell doorbell;
	struct entry entry;
	struct pc *pc; /* pc.h; NULL unless options->kernel */
	FILE *trace;
	uint64_t started_ns;
	struct gpas_stats before; /* when the guest was started */
	uint64_t ran_ns;
	/* Nanoseconds of each phase; those up to marked_ns are accounted for.
	 */
	uint64_t phase_ns[PHASE_COUNT];
	uint64_t marked_ns;
	uint64_t attach_kvm_ns; /* of the attaching: KVM's own */
	/* Of vCPU 0, written by its thread: when it first entered the guest,
	 * and when it came back. 0: it did not. */
	uint64_t entered_ns;
	uint64_t left_ns;
	/* The exit status once somebody has decided it, -1 until then. */
	atomic_int status;
	int stop_fd;	/* an eventfd: readable when status is set */
	bool signalled; /* a signal stopped the run */
	/* Violations so far, those skipped and those that ended the run. */
	atomic_ulong violations;
	atomic_ulong denials; /* accesses that the budget forbade */
};

/* ---- vm.c ---------------------------------------------------------------- */

/* Build the machine and load the guest, run it, take everything down. Returns
 * the exit status. */
int vm_run(const struct options *options);

/* The first caller decides the exit status and stops every vCPU. Any thread. */
void vm_stop(struct vm *vm, int status);

/* Map @size bytes of free low memory; *ret says where. 0 or -errno. */
int vm_place(struct vm *vm, const char *name, uint64_t size, gpas_gpa *ret);

/* Say why memory could not be mapped; returns the exit status. */
int map_error(const struct vm *vm, const char *what, int error);

/* One line on stderr, after what the guest has printed so far. */
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t now_ns(void);

/* ---- ram.c --------------------------------------------------------------- */

/* The name of the regions that are the guest's to use. */
#define RAM_NAME "ram"

/* Decide where RAM ends; it has a hole for devices below 4 GiB. Complains by
 * itself, like ram_map; both return 0 or an exit status. */
int ram_size(struct vm *vm);
/* Whatever no other region takes becomes RAM. */
int ram_map(struct vm *vm);
/* More RAM, while the guest runs. 0 or -errno. */
int ram_map_range(struct vm *vm, struct gpas_range range);

enum ram_command {
	RAM_GIVE = 1,  /* back to the host; zeros, or the file's, from now on */
	RAM_TAKE = 2,  /* make it present */
	RAM_OFFER = 3, /* give it back whenever the budget is short */
	RAM_SEAL = 4,  /* a write to it is a violation from now on ... */
	RAM_UNSEAL = 5, /* ... and no more */
};

/* Do what the guest asks with a range; anything may be wrong with it. 0 or
 * -errno: -EINVAL no range of whole pages, -EACCES not all of it is RAM,
 * -ENOSYS no such command, -ENOSPC too many offers, -ENOMEM. */
int ram_command(struct vm *vm, uint64_t what, gpas_gpa start, uint64_t size);
/* gpas_params.pressure; ctx is the struct vm. */
int ram_pressure(void *ctx, struct gpas *space, uint64_t wanted);

/* ---- snapshot.c ---------------------------------------------------------- */

/* Open what --restore names, if it does. Complains by itself; returns 0 or an
 * exit status. */
int restore_open(struct restore *restore, const struct options *options);
void restore_close(struct restore *restore);
/* Have the memory at @start, which the file covers, come from it. */
void restore_params(struct restore *restore, gpas_gpa start,
		    struct gpas_map_params *params);
/* Write RAM to what --save names. No vCPU runs. Complains by itself; returns 0
 * or an exit status. */
int snapshot_save(struct vm *vm);

/* ---- vcpu.c -------------------------------------------------------------- */

int vcpu_create(struct vm *vm, struct vcpu *vcpu, unsigned index);
void vcpu_destroy(struct vcpu *vcpu);
/* The thread of a vCPU; @arg is a struct vcpu. */
void *vcpu_main(void *arg);
/* Make the vCPU leave KVM_RUN soon, if it is there. Any thread. */
void vcpu_kick(struct vcpu *vcpu);
int vcpu_install_kick(void);
/* gpas_kvm_params' callbacks; ctx is the struct vm. */
void vcpus_pause(void *ctx);
void vcpus_resume(void *ctx);

/* ---- device.c ------------------------------------------------------------ */

#define SERIAL_NAME   "serial"
#define DOORBELL_NAME "doorbell"

int devices_add(struct vm *vm);
/* The doorbell alone. 0 or -errno. */
int doorbell_add(struct vm *vm);

/* ---- module.c ------------------------------------------------------------ */

/* Plug the memory module in, or ask the guest for it. Any thread. 0 or -errno:
 * -ENODEV no such machine, -EEXIST it is plugged in, -ENOENT it is not, -EBUSY
 * the guest is ejecting it, or an error of gpas_map_alloc(). */
int module_request(struct vm *vm, bool plugged);
/* Whether it is there, or the guest is still ejecting it. */
bool module_plugged(struct vm *vm);

/* ---- loader.c ------------------------------------------------------------ */

/* Map the guest's file and say where it starts. Complains by itself; returns 0
 * or an exit status. */
int load_guest(struct vm *vm);

/* ---- fdt.c --------------------------------------------------------------- */

/* An upper bound of the tree's size, in bytes. */
uint64_t fdt_bytes(const struct options *options);
/* Describe the machine to the guest at vm->entry.fdt. 0 or -errno. */
int fdt_hand_over(struct vm *vm);

/* ---- picture.c ----------------------------------------------------------- */

void picture_map(struct vm *vm, const char *when);
void picture_stats(struct vm *vm);
/* The phases of a run that is over; looks at nothing but their times. */
void picture_phases(const struct vm *vm);
/* A size for people: "64 KiB", "1 GiB", "1.5 MiB". */
struct size_text {
	char text[24];
};
struct size_text size_text(uint64_t bytes);
const char *prot_text(unsigned prot);

/* ---- trace.c ------------------------------------------------------------- */

int trace_open(struct vm *vm);
void trace_close(struct vm *vm);
/* What is known of an exit before the library deals with it. */
struct trace_note {
	char what[32];
	bool has_gpa;
	bool is_port;
	gpas_gpa gpa;
};

/* Look at a finished KVM_RUN that returned @result, 0 or -errno. */
void trace_look(const struct vcpu *vcpu, int result, struct trace_note *note);
/* Write what became of it, if that is worth a line; @error is the library's. */
void trace_exit(const struct vcpu *vcpu, const struct trace_note *note,
		int error, const struct gpas_exit *exit);
void trace_event(struct vm *vm, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* ---- x86_64.c ------------------------------------------------------------ */

/* Where things are in the guest-physical space of this architecture. */
struct arch_layout {
	gpas_gpa null_page;   /* kept inaccessible */
	gpas_gpa low_ram_end; /* RAM starts after the null page; what exceeds */
	gpas_gpa high_ram;    /* low_ram_end continues here */
	gpas_gpa load_address; /* of flat guests */
	gpas_gpa serial;
	gpas_gpa doorbell;
	uint16_t serial_port; /* 0: no I/O ports */
};

extern const struct arch_layout arch_layout;
extern const uint16_t arch_elf_machine;
extern const char *const arch_name;

/* Ready the VM before its first vCPU. 0 or -errno. */
int arch_vm_init(struct vm *vm);
/* The first GPA that this host's KVM cannot give a guest. */
uint64_t arch_gpa_limit(struct vm *vm);
/* The size of the boot region of a guest whose RAM ends at @end. */
uint64_t arch_boot_bytes(gpas_gpa end);
/* Fill the boot region, which is at @boot. 0 or -errno. */
int arch_boot_write(struct vm *vm, gpas_gpa boot);
/* Put a vCPU at the guest's entry. 0 or -errno. */
int arch_vcpu_init(struct vcpu *vcpu, const struct entry *entry);
/* The address of the current instruction; 0 if KVM will not say. */
uint64_t arch_vcpu_pc(struct vcpu *vcpu);
/* Whether the vCPU halted because of an exception that the guest has no handler
 * for; @text then says which. */
bool arch_vcpu_exception(struct vcpu *vcpu, char *text, size_t size);
/* Registers and the bytes of the current instruction, on stderr. */
void arch_vcpu_dump(struct vcpu *vcpu);

#endif
