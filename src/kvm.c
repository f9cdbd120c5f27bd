/* SPDX-License-Identifier: MIT */
/*
 * The real KVM behind the mirror: memslot ioctls, trap slots, attaching and
 * detaching, and the vCPUs' way in and out of KVM_RUN.
 */
#include "kvm_abi.h"
#include "mirror.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static int result(int ret)
{
	return ret < 0 ? -errno : 0;
}

/* ---- Slots --------------------------------------------------------- */

static int set_plain(int vm_fd, const struct slot_desc *slot)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->id,
		.flags = slot->flags,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = slot->host,
	};

	return result(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region));
}

/*
 * A trap: a slot bound to a guest_memfd whose descriptor is closed as soon as
 * the diff is done. KVM keeps the slot, finds its file gone on every access,
 * and reports the address. The host address must be inaccessible, because
 * KVM's own accesses (its emulator, paravirtual clocks) go through it.
 */
static int set_trap(struct mirror *mirror, const struct slot_desc *slot)
{
	struct trap_file *file = &mirror->trap_file;
	struct kvm_userspace_memory_region2 region = {
		.slot = slot->id,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = gpas_hva_of(mirror->trap_area.host).value,
		.guest_memfd = (__u32)file->fd,
		.guest_memfd_offset = file->used,
	};
	int err;

	if (file->fd < 0) {
		return -EBADF;
	}
	err = result(ioctl(mirror->params.vm_fd, KVM_SET_USER_MEMORY_REGION2,
			   &region));
	if (err == 0) {
		file->used += slot->size;
	}
	return err;
}

/* One file serves the new traps and, after them, those a rollback puts back. */
static int prepare(void *ctx, uint64_t adds, uint64_t deletes)
{
	struct mirror *mirror = ctx;
	struct kvm_create_guest_memfd create = {
		.size = adds + deletes,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int fd = ioctl(mirror->params.vm_fd, KVM_CREATE_GUEST_MEMFD, &create);

	mirror->trap_file = (struct trap_file){ .fd = fd };
	/* Giving traps up must not fail for lack of a descriptor. */
	return fd < 0 && adds > 0 ? -errno : 0;
}

static int set(void *ctx, const struct slot_desc *slot)
{
	struct mirror *mirror = ctx;

	return slot->trap ? set_trap(mirror, slot)
			  : set_plain(mirror->params.vm_fd, slot);
}

static void finish(void *ctx)
{
	struct mirror *mirror = ctx;

	if (mirror->trap_file.fd >= 0) {
		close(mirror->trap_file.fd);
	}
	mirror->trap_file.fd = -1;
}

static const struct slot_ops kvm_slots = {
	.prepare = prepare,
	.set = set,
	.finish = finish,
};

/* ---- Choosing how lazy memory faults ------------------------------- */

/* Where the probe's slot goes: the first of these powers of two that is free
 * of the embedder's own slots. All are below every processor's GPA width. */
#define PROBE_SHIFT_FIRST 35
#define PROBE_SHIFT_LAST  38

/* Creates a trap of @size bytes and deletes it again. */
static int try_trap(struct mirror *mirror, uint64_t size)
{
	struct slot_desc slot = {
		.id = mirror->params.slot_first,
		.size = size,
		.trap = true,
	};
	int err = prepare(mirror, slot.size, 0);

	if (err != 0) {
		return err;
	}
	err = -EEXIST;
	for (int shift = PROBE_SHIFT_FIRST;
	     err == -EEXIST && shift <= PROBE_SHIFT_LAST; shift++) {
		slot.gpa = UINT64_C(1) << shift;
		err = set(mirror, &slot);
	}
	finish(mirror);
	if (err == 0) {
		slot = (struct slot_desc){ .id = slot.id };
		err = set(mirror, &slot);
	}
	return err;
}

/* The processor time that a trap of @size bytes takes; UINT64_MAX: none could
 * be created. Not the time that passes, most of which is waiting for others. */
static uint64_t trap_ns(struct mirror *mirror, uint64_t size)
{
	struct timespec begun, ended;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begun);
	if (try_trap(mirror, size) != 0) {
		return UINT64_MAX;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended);
	return (uint64_t)(ended.tv_sec - begun.tv_sec) * 1000000000 +
	       (uint64_t)ended.tv_nsec - (uint64_t)begun.tv_nsec;
}

/* A KVM that shadows page tables clears bookkeeping for each page of a slot:
 * a trap of this size takes 10 times what one of a page does, where
 * elsewhere it is once or twice. */
#define SIZED_PROBE_BYTES (UINT64_C(512) << 20)
#define SIZED_PROBE_RATIO 5

/*
 * Chooses how large traps are, so that replacing one costs little: in small
 * chunks where a slot's cost grows with its size, otherwise as few as possible.
 * A clock that misleads costs time later, nothing else.
 */
static void size_traps(struct mirror *mirror)
{
	/* Twice: the first of its kind on a machine takes longer. */
	for (int i = 0; i < 2; i++) {
		uint64_t large = trap_ns(mirror, SIZED_PROBE_BYTES);

		if (large / SIZED_PROBE_RATIO <=
		    trap_ns(mirror, GPAS_PAGE_BYTES)) {
			if (mirror->trap_max > TRAP_GRAIN_FLAT) {
				mirror->trap_grain = TRAP_GRAIN_FLAT;
			}
			return;
		}
	}
	if (mirror->trap_max > TRAP_CHUNK_SIZED) {
		mirror->trap_chunk = TRAP_CHUNK_SIZED;
	}
}

/*
 * Whether a trap slot can really be created: a capability alone has been seen
 * to promise more than the kernel does. Says in @reason what was found.
 */
static int probe_trap(struct mirror *mirror, char *reason, size_t size)
{
	const uint64_t wanted =
		GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	int vm_fd = mirror->params.vm_fd;
	int flags =
		ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS);
	int err;

	if (flags < 0 || ((uint64_t)flags & wanted) != wanted) {
		(void)snprintf(reason, size,
			       "this kernel has no guest_memfd for ordinary "
			       "VMs (Linux 6.18 and later do)");
		return -EOPNOTSUPP;
	}
	err = try_trap(mirror, GPAS_PAGE_BYTES);
	if (err != 0) {
		(void)snprintf(reason, size,
			       "a trap slot could not be created: %s",
			       strerror(-err));
		return -EOPNOTSUPP;
	}
	size_traps(mirror);
	(void)snprintf(reason, size, "a trap slot was created");
	return 0;
}

/* The inaccessible range behind traps: as large as the process has room for. */
static int reserve_traps(struct mirror *mirror)
{
	uint64_t size = TRAP_MAX_BYTES;
	int err;

	do {
		err = reservation_create(size, 0, &mirror->trap_area);
		mirror->trap_max = size;
		mirror->trap_chunk = size;
		size /= 8;
	} while (err != 0 && size >= TRAP_GRAIN);
	return err;
}

static int choose_lazy(struct gpas *space, struct mirror *mirror,
		       enum gpas_lazy wanted)
{
	char *reason = mirror->lazy_reason;
	size_t size = sizeof(mirror->lazy_reason);
	int err;

	mirror->lazy = GPAS_LAZY_ABSENT;
	if (wanted == GPAS_LAZY_ABSENT) {
		(void)snprintf(reason, size, "asked for");
		return 0;
	}
	err = reserve_traps(mirror);
	if (err != 0) {
		(void)snprintf(reason, size,
			       "no address space for a trap's inaccessible "
			       "host range");
	} else {
		uint64_t begun = clock_ns();

		err = probe_trap(mirror, reason, size);
		count(&space->stats.kvm_ns, clock_ns() - begun);
	}
	if (err == 0) {
		mirror->lazy = GPAS_LAZY_TRAP;
	} else if (wanted == GPAS_LAZY_TRAP) {
		space_log(space, GPAS_LOG_ERROR, "no trap slots: %s", reason);
		return err;
	}
	space_log(space, GPAS_LOG_INFO, "lazy memory faults by %s slots: %s",
		  gpas_lazy_name(mirror->lazy), reason);
	return 0;
}

const char *gpas_lazy_name(enum gpas_lazy lazy)
{
	switch (lazy) {
	case GPAS_LAZY_TRAP:
		return "trap";
	case GPAS_LAZY_ABSENT:
		return "absent";
	case GPAS_LAZY_UFFD:
		return "uffd";
	case GPAS_LAZY_AUTO:
		break;
	}
	return "auto";
}

/* ---- Attaching ----------------------------------------------------- */

static int check_slots(struct gpas_kvm_params *params)
{
	int limit =
		ioctl(params->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);

	if (limit < 0) {
		return -errno;
	}
	if (limit == 0) {
		limit = 32; /* kernels without the capability have as many */
	}
	if (params->slot_first >= (uint32_t)limit) {
		return -EINVAL;
	}
	if (params->slot_count == 0) {
		params->slot_count = (uint32_t)limit - params->slot_first;
	}
	return params->slot_count <= (uint32_t)limit - params->slot_first
		       ? 0
		       : -EINVAL;
}

int gpas_kvm_attach(struct gpas *space, const struct gpas_kvm_params *params)
{
	struct gpas_kvm_params checked;
	struct mirror *mirror;
	int err;

	if (params == NULL || params->lazy > GPAS_LAZY_ABSENT) {
		return -EINVAL;
	}
	checked = *params;
	err = check_slots(&checked);
	if (err == 0) {
		err = mirror_create(&checked, &kvm_slots, NULL,
				    GPAS_LAZY_ABSENT, &mirror);
	}
	if (err != 0) {
		return err;
	}
	mirror->ops_ctx = mirror;
	arch_prepare_vm(params->vm_fd);
	err = choose_lazy(space, mirror, params->lazy);
	if (err == 0) {
		err = mirror_attach(space, mirror);
	}
	if (err == 0) {
		err = kvm_deliver_sysregs(space);
		if (err != 0) {
			(void)gpas_kvm_detach(space);
			return err;
		}
	}
	if (err != 0) {
		mirror_destroy(mirror);
	}
	return err;
}

int gpas_kvm_detach(struct gpas *space)
{
	bool locked = space_lock(space);
	struct mirror *mirror = space->mirror;
	int err = 0;

	if (mirror == NULL) {
		err = -ENOENT;
	} else if (!locked || mirror->vcpus != NULL) {
		err = -EBUSY;
	} else {
		err = mirror_remove_all(space);
	}
	if (err == 0) {
		space->mirror = NULL;
		mirror_destroy(mirror);
	}
	space_unlock(space, locked);
	return err;
}

int gpas_kvm_info(struct gpas *space, struct gpas_kvm_info *ret)
{
	bool locked = space_lock(space);
	const struct mirror *mirror = space->mirror;

	if (mirror != NULL) {
		ret->lazy = mirror->lazy;
		ret->slot_first = mirror->params.slot_first;
		ret->slot_count = mirror->params.slot_count;
		ret->slots_used = (uint32_t)mirror->slots.count;
		memcpy(ret->lazy_reason, mirror->lazy_reason,
		       sizeof(ret->lazy_reason));
	}
	space_unlock(space, locked);
	return mirror != NULL ? 0 : -ENOENT;
}

int kvm_deliver_sysregs(struct gpas *space)
{
	const struct span_set *claims = &space->claims[GPAS_ADDRESS_SYSREG];
	struct mirror *mirror = space->mirror;
	int err;

	if (mirror == NULL || mirror->ops != &kvm_slots ||
	    (claims->count == 0 && !mirror->delivers_sysregs)) {
		return 0;
	}
	err = arch_deliver_sysregs(mirror->params.vm_fd, claims);
	if (err == 0) {
		mirror->delivers_sysregs = true;
	}
	return err;
}

/* ---- vCPUs --------------------------------------------------------- */

int gpas_vcpu_init(struct gpas_vcpu *vcpu, struct gpas *space, int vcpu_fd,
		   struct kvm_run *run)
{
	bool locked;
	int err = 0;

	if (run == NULL) {
		return -EINVAL;
	}
	*vcpu = (struct gpas_vcpu){
		.space = space,
		.fd = vcpu_fd,
		.run = run,
	};
	locked = space_lock(space);
	if (space->mirror == NULL) {
		err = -ENOENT;
	} else {
		vcpu->next = space->mirror->vcpus;
		space->mirror->vcpus = vcpu;
	}
	space_unlock(space, locked);
	return err;
}

void gpas_vcpu_fini(struct gpas_vcpu *vcpu)
{
	struct gpas *space = vcpu->space;
	bool locked = space_lock(space);
	struct gpas_vcpu **link = &space->mirror->vcpus;

	while (*link != vcpu) {
		link = &(*link)->next;
	}
	*link = vcpu->next;
	space_unlock(space, locked);
}

bool gpas_vcpu_running(const struct gpas_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST) != 0;
}

/* Enters while nobody replaces slots: whoever does holds the lock. Calls that
 * change something make way for those who wait here (txn_lock). */
static void enter_in_turn(struct gpas_vcpu *vcpu)
{
	struct gpas *space = vcpu->space;
	bool locked;

	atomic_fetch_add(&space->entering, 1);
	locked = space_lock(space);
	__atomic_store_n(&vcpu->running, 1, __ATOMIC_SEQ_CST);
	space_unlock(space, locked);
	atomic_fetch_sub(&space->entering, 1);
}

/*
 * Announce first, then look whether slots are being replaced: the replacing
 * thread does the two in the other order, so one of them sees the other.
 */
void gpas_vcpu_enter(struct gpas_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->running, 1, __ATOMIC_SEQ_CST);
	if (atomic_load(&vcpu->space->mirror->replacing) != 0) {
		__atomic_store_n(&vcpu->running, 0, __ATOMIC_SEQ_CST);
		enter_in_turn(vcpu);
	}
}

int gpas_vcpu_run(struct gpas_vcpu *vcpu, struct gpas_exit *ret)
{
	uint64_t begun = clock_ns();
	int err;

	gpas_vcpu_enter(vcpu);
	err = result(ioctl(vcpu->fd, KVM_RUN, 0));
	count(&vcpu->space->stats.run_ns, clock_ns() - begun);
	return gpas_kvm_handle_exit(vcpu, err, ret);
}
