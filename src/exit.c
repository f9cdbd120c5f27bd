/* SPDX-License-Identifier: MIT */
/*
 * What a finished KVM_RUN means for the space.
 *
 * Three facts about KVM shape this file (docs/kvm-notes.md has where each was
 * seen). An MMIO exit is completed from the exit's own data and never
 * re-executed, so after populating memory the library itself must carry out
 * exactly the bytes of the exit. A memory-fault exit is re-executed, so memory
 * is repaired and nothing is carried out. And an instruction fetch from a hole
 * is reported as a failed emulation, without an address.
 */
#include "kvm_abi.h"
#include "space.h"

#include <string.h>

/* The same fault this many times in a row, with nothing changed in between, is
 * an error. The first repeat can be innocent: another vCPU repaired it. */
#define MAX_REPEATS 3

/* However much changes meanwhile, so many failures of KVM_RUN in a row are an
 * error. */
#define MAX_FAILURES 64

/* Notes one more fault at @gpa with the instruction at @pc; whether it is one
 * too many. */
static bool repeats_too_often(struct gpas_vcpu *vcpu, uint64_t gpa, uint64_t pc)
{
	uint64_t now = atomic_load(&vcpu->space->generation);

	if (gpa != vcpu->last_gpa || pc != vcpu->last_pc ||
	    now != vcpu->last_change) {
		vcpu->last_gpa = gpa;
		vcpu->last_pc = pc;
		vcpu->last_change = now;
		vcpu->repeats = 0;
		return false;
	}
	return ++vcpu->repeats >= MAX_REPEATS;
}

static void forget_repeats(struct gpas_vcpu *vcpu)
{
	vcpu->repeats = 0;
	vcpu->failures = 0;
	vcpu->last_gpa = UINT64_MAX;
}

/* ---- MMIO ---------------------------------------------------------- */

/* One MMIO exit on its way: which bytes, and the first thing that went wrong.
 */
struct mmio {
	struct gpas *space;
	uint64_t gpa;
	size_t left;   /* bytes from gpa on; gpa + left may wrap */
	uint8_t *data; /* of gpa */
	bool write;
	bool populated;
	struct gpas_exit *exit;
};

/* The first failure of an exit is the one reported. */
static void report_fault(struct gpas_exit *exit, const struct gpas_fault *fault)
{
	if (exit->kind != GPAS_EXIT_RESUME) {
		return;
	}
	exit->kind = GPAS_EXIT_FAULT;
	exit->retryable = true;
	exit->fault = *fault;
}

static void report_device_error(struct gpas_exit *exit,
				enum gpas_address_kind kind, uint64_t address,
				unsigned size, bool write, int error)
{
	if (exit->kind != GPAS_EXIT_RESUME) {
		return;
	}
	exit->kind =
		error == -ENOENT ? GPAS_EXIT_UNCLAIMED : GPAS_EXIT_DEVICE_ERROR;
	exit->retryable = true;
	exit->error = error;
	exit->address_kind = kind;
	exit->address = address;
	exit->size = size;
	exit->write = write;
}

/* Carries out bytes that are in present memory. 0, or how it failed: the
 * memory may have gone again. */
static int access_memory(const struct mmio *mmio, size_t size)
{
	gpas_gpa gpa = gpas_gpa_at(mmio->gpa);

	return mmio->write
		       ? gpas_write(mmio->space, gpa, mmio->data, size, NULL)
		       : gpas_read(mmio->space, gpa, mmio->data, size, NULL);
}

/* Nothing there to access: reads see all ones, writes go nowhere. */
static void access_nothing(const struct mmio *mmio,
			   const struct gpas_fault *fault, size_t size)
{
	if (!mmio->write) {
		memset(mmio->data, 0xff, size);
	}
	if (fault->kind == GPAS_FAULT_UNMAPPED) {
		count(&mmio->space->stats.unclaimed, 1);
	}
	report_fault(mmio->exit, fault);
}

/* The bytes from mmio->gpa on that share one region and one page. An access
 * does not go on at address 0. */
static size_t piece_size(const struct mmio *mmio,
			 const struct gpas_fault *fault)
{
	uint64_t room = GPAS_PAGE_BYTES - mmio->gpa % GPAS_PAGE_BYTES;

	if (mmio->left > UINT64_MAX - mmio->gpa) {
		return mmio->left; /* no table reaches there: all is nothing */
	}
	if (fault->kind == GPAS_FAULT_DEVICE) {
		room = fault->region_size -
		       (mmio->gpa - fault->region_start.value);
	}
	return room < mmio->left ? (size_t)room : mmio->left;
}

/* Carries out the piece at mmio->gpa and moves on behind it. */
static int access_piece(struct mmio *mmio)
{
	unsigned access = mmio->write ? GPAS_PROT_WRITE : GPAS_PROT_READ;
	struct resolution found;
	size_t size;
	int err = fault_resolve(mmio->space, mmio->gpa, access, 0, &found);

	if (err != 0) {
		return err;
	}
	size = piece_size(mmio, &found.fault);
	if (found.claim != NULL) {
		err = dispatch_claim(mmio->space, &found, mmio->data, size,
				     mmio->write);
		if (err != 0) {
			report_device_error(mmio->exit, GPAS_ADDRESS_GPA,
					    mmio->gpa, (unsigned)size,
					    mmio->write, err);
		}
	} else if (found.fault.kind != GPAS_FAULT_RESUME) {
		access_nothing(mmio, &found.fault, size);
	} else if (access_memory(mmio, size) != 0) {
		return 0; /* another thread took it away again: look again */
	}
	mmio->populated |= found.fault.populated != 0;
	mmio->gpa += size;
	mmio->left -= size;
	mmio->data += size;
	return 0;
}

static int handle_mmio(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	struct kvm_run *run = vcpu->run;
	struct mmio mmio = {
		.space = vcpu->space,
		.gpa = run->mmio.phys_addr,
		.left = run->mmio.len <= 8 ? run->mmio.len : 8,
		.data = run->mmio.data,
		.write = run->mmio.is_write != 0,
		.exit = exit,
	};
	uint64_t failed;
	int err = 0;

	count(&vcpu->space->stats.exits_mmio, 1);
	(void)uffd_take_failure(vcpu->space, &failed);
	while (err == 0 && mmio.left > 0) {
		err = access_piece(&mmio);
	}
	if (mmio.populated) {
		count(&vcpu->space->stats.lazy_mmio, 1);
	}
	return err;
}

/* ---- Memory faults ------------------------------------------------- */

/* A fault at @gpa, of which nothing more is known and which the guest repeats
 * when it is entered again. */
static int repair(struct gpas_vcpu *vcpu, uint64_t gpa, struct gpas_exit *exit)
{
	struct gpas *space = vcpu->space;
	struct resolution found;
	int err = fault_resolve(space, gpa, 0, 0, &found);

	if (err != 0) {
		return err;
	}
	if (found.claim != NULL) {
		claim_put(found.claim);
	}
	if (found.fault.kind != GPAS_FAULT_RESUME) {
		report_fault(exit, &found.fault);
		exit->retryable = false;
		return 0;
	}
	if (found.fault.populated == 0 && repeats_too_often(vcpu, gpa, 0)) {
		space_log(space, GPAS_LOG_ERROR,
			  "the guest keeps faulting at GPA %#llx (region %s) "
			  "although it is present",
			  (unsigned long long)gpa, found.fault.region_name);
		return -ELOOP;
	}
	return 0;
}

static int handle_memory_fault(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	struct abi_memory_fault info;

	memcpy(&info, &vcpu->run->hw, sizeof(info));
	count(&vcpu->space->stats.exits_memory_fault, 1);
	return repair(vcpu, info.gpa, exit);
}

/* ---- Fetches ------------------------------------------------------- */

/*
 * Repairs what the fetch at @gpa needs. Returns 1 when something became
 * present, 0 when it was, or -errno; a refusal is reported in @exit.
 */
static int repair_fetch(struct gpas_vcpu *vcpu, uint64_t gpa,
			struct gpas_exit *exit)
{
	struct resolution found;
	int err = fault_resolve(vcpu->space, gpa, GPAS_PROT_EXEC, 0, &found);

	if (err != 0) {
		return err;
	}
	if (found.claim != NULL) {
		claim_put(found.claim);
	}
	if (found.fault.kind == GPAS_FAULT_RESUME) {
		return found.fault.populated != 0;
	}
	report_fault(exit, &found.fault);
	exit->retryable = false;
	return 0;
}

/* Where the first byte that KVM could not fetch is, or -errno. */
static int find_unread_byte(const struct gpas_vcpu *vcpu,
			    const struct fetch *fetch, uint64_t *gpa)
{
	if (fetch->readable == 0) {
		*gpa = fetch->gpa;
		return 0;
	}
	return arch_translate(vcpu->fd, fetch->pc + fetch->readable, gpa);
}

/*
 * A failed emulation is a fetch from absent memory if KVM could read no more
 * of the instruction than reaches to the end of a page, and the next byte is
 * in a lazy region. Anything else is the embedder's.
 */
static int handle_emulation_error(struct gpas_vcpu *vcpu,
				  struct gpas_exit *exit)
{
	struct fetch fetch;
	uint64_t gpa;
	int err;

	exit->kind = GPAS_EXIT_OTHER;
	if (arch_fetch(vcpu->fd, vcpu->run, &fetch) != 0 ||
	    find_unread_byte(vcpu, &fetch, &gpa) != 0) {
		return 0;
	}
	exit->kind = GPAS_EXIT_RESUME;
	err = repair_fetch(vcpu, gpa, exit);
	if (err < 0 || exit->kind != GPAS_EXIT_RESUME) {
		return err < 0 ? err : 0;
	}
	if (err > 0) {
		count(&vcpu->space->stats.exits_fetch, 1);
	} else if (repeats_too_often(vcpu, gpa, fetch.pc)) {
		exit->kind = GPAS_EXIT_OTHER;
	}
	return 0;
}

/* ---- Deliveries ---------------------------------------------------- */

/* Where data[] has the address, since Linux 6.14. Kernels before have that many
 * words only if they have the address. */
#define DELIVERY_GPA   3
#define DELIVERY_WORDS 5

/*
 * KVM had to emulate an access while an event was being delivered, to a stack
 * or descriptor table without a slot, and cannot. Nobody can repair that: KVM
 * would deliver the event again, find what it remembers of the hole, and enter
 * the guest for ever, whatever slot there is by then. But an emulated processor
 * can claim a delivery that is long over. Then nothing is pending: the access
 * is repeated, finds its memory there, or is an ordinary exit.
 */
static int handle_delivery_error(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	const struct kvm_run *run = vcpu->run;
	uint64_t gpa = run->internal.data[DELIVERY_GPA];
	struct resolution found;
	int err;

	exit->kind = GPAS_EXIT_OTHER;
	if (run->internal.ndata < DELIVERY_WORDS || gpa == UINT64_MAX ||
	    arch_event_pending(vcpu->fd)) {
		return 0;
	}
	err = fault_resolve(vcpu->space, gpa, 0, 0, &found);
	if (err != 0) {
		return err;
	}
	if (found.claim != NULL) {
		claim_put(found.claim);
	}
	if (found.fault.kind == GPAS_FAULT_FAILED) {
		exit->kind = GPAS_EXIT_RESUME;
		report_fault(exit, &found.fault);
		exit->retryable = false;
		return 0;
	}
	if (found.fault.populated != 0) {
		count(&vcpu->space->stats.exits_mmio, 1);
		count(&vcpu->space->stats.lazy_mmio, 1);
		exit->kind = GPAS_EXIT_RESUME;
	} else if (!repeats_too_often(vcpu, gpa, 0)) {
		exit->kind = GPAS_EXIT_RESUME;
	}
	return 0;
}

static int handle_internal_error(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	switch (vcpu->run->internal.suberror) {
	case KVM_INTERNAL_ERROR_EMULATION:
		return handle_emulation_error(vcpu, exit);
	case KVM_INTERNAL_ERROR_DELIVERY_EV:
		return handle_delivery_error(vcpu, exit);
	default:
		exit->kind = GPAS_EXIT_OTHER;
		return 0;
	}
}

/* ---- Ports and registers ------------------------------------------- */

static int handle_io(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	bool write = run->io.direction == KVM_EXIT_IO_OUT;

	for (uint32_t i = 0; i < run->io.count; i++) {
		int err = gpas_device_dispatch(vcpu->space, GPAS_ADDRESS_PORT,
					       run->io.port, data, run->io.size,
					       write);

		if (err != 0) {
			report_device_error(exit, GPAS_ADDRESS_PORT,
					    run->io.port, run->io.size, write,
					    err);
		}
		if (err == -ENOENT) {
			count(&vcpu->space->stats.unclaimed, 1);
		}
		data += run->io.size;
	}
	return 0;
}

static int handle_sysreg(struct gpas_vcpu *vcpu, struct gpas_exit *exit,
			 bool write)
{
	struct kvm_run *run = vcpu->run;
	uint64_t value = run->msr.data;
	int err = gpas_device_dispatch(vcpu->space, GPAS_ADDRESS_SYSREG,
				       run->msr.index, &value, sizeof(value),
				       write);

	run->msr.error = err != 0;
	run->msr.data = value;
	if (err != 0) {
		report_device_error(exit, GPAS_ADDRESS_SYSREG, run->msr.index,
				    sizeof(value), write, err);
	}
	if (err == -ENOENT) {
		count(&vcpu->space->stats.unclaimed, 1);
	}
	return 0;
}

/* ---- Dispatch ------------------------------------------------------ */

static int handle_success(struct gpas_vcpu *vcpu, struct gpas_exit *exit)
{
	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_MMIO:
		return handle_mmio(vcpu, exit);
	case KVM_EXIT_IO:
		return handle_io(vcpu, exit);
	case KVM_EXIT_X86_RDMSR:
		return handle_sysreg(vcpu, exit, false);
	case KVM_EXIT_X86_WRMSR:
		return handle_sysreg(vcpu, exit, true);
	case KVM_EXIT_INTERNAL_ERROR:
		return handle_internal_error(vcpu, exit);
	default:
		exit->kind = GPAS_EXIT_OTHER;
		return 0;
	}
}

/* KVM_RUN itself failed. exit_reason is only of this run if KVM set it. */
static int handle_failure(struct gpas_vcpu *vcpu, int result,
			  struct gpas_exit *exit)
{
	struct kvm_run *run = vcpu->run;
	uint64_t gpa;

	if (result == -EINTR || result == -EAGAIN) {
		exit->kind = GPAS_EXIT_INTERRUPTED;
		return 0;
	}
	if (result == -EFAULT && uffd_take_failure(vcpu->space, &gpa)) {
		return repair(vcpu, gpa, exit);
	}
	if (result == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		return handle_memory_fault(vcpu, exit);
	}
	if (result == -EFAULT && ++vcpu->failures < MAX_FAILURES &&
	    !repeats_too_often(vcpu, 0, 0)) {
		return 0; /* a mapping may have been changing under KVM */
	}
	space_log(vcpu->space, GPAS_LOG_ERROR, "KVM_RUN: %s%s",
		  strerror(-result),
		  result == -EFAULT
			  ? ": the host memory of some mapping is not "
			    "accessible (unmapped, PROT_NONE, or past the end "
			    "of its file); KVM gives no address"
			  : "");
	return result == -EFAULT ? -EFAULT : -EIO;
}

int gpas_kvm_handle_exit(struct gpas_vcpu *vcpu, int result,
			 struct gpas_exit *ret)
{
	uint64_t begun = clock_ns();
	int err;

	__atomic_store_n(&vcpu->running, 0, __ATOMIC_SEQ_CST);
	*ret = (struct gpas_exit){ .kind = GPAS_EXIT_RESUME };
	if (result < 0) {
		err = handle_failure(vcpu, result, ret);
	} else {
		err = handle_success(vcpu, ret);
		if (vcpu->run->exit_reason != KVM_EXIT_INTERNAL_ERROR) {
			forget_repeats(vcpu);
		}
	}
	/* The next failure's reason must not be mistaken for this one's. */
	if (result == -EFAULT) {
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	}
	count(&vcpu->space->stats.handler_ns, clock_ns() - begun);
	return err;
}
