/* SPDX-License-Identifier: MIT */
/*
 * A run from beginning to end: the virtual machine, its memory as regions of
 * a space, the guest in it, the wait for its end, and taking it all down.
 *
 * The main thread watches for signals and the time limit; every vCPU has a
 * thread of its own. Whoever has a reason to end the run calls vm_stop().
 */
#include "pc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

void tell(const char *format, ...)
{
	char line[512];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	fflush(stdout);
	fprintf(stderr, "gpas-vmm: %s\n", line);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What happened since the last call was @phase. */
static void pass(struct vm *vm, enum phase phase)
{
	uint64_t now = now_ns();

	vm->phase_ns[phase] += now - vm->marked_ns;
	vm->marked_ns = now;
}

static int host_error(const char *what, int error)
{
	tell("%s: %s", what, strerror(-error));
	return STATUS_HOST;
}

/* ---- KVM ----------------------------------------------------------------- */

static int no_kvm(const char *what)
{
	tell("no usable KVM: %s: %s", what, strerror(errno));
	return STATUS_NO_KVM;
}

static int open_kvm(struct vm *vm)
{
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0) {
		return no_kvm("/dev/kvm");
	}
	if (ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		errno = EPROTO;
		return no_kvm("API version");
	}
	vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0UL);
	if (vm->fd < 0) {
		return no_kvm("creating a virtual machine");
	}
	if (arch_vm_init(vm) != 0) {
		return no_kvm("preparing it");
	}
	return vm->options->kernel != NULL ? pc_create(vm) : 0;
}

/* ---- Memory -------------------------------------------------------------- */

static void on_log(void *ctx, enum gpas_log_level level, const char *line)
{
	struct vm *vm = ctx;

	vm->library_errors += level == GPAS_LOG_ERROR;
	tell("%s%s", level <= GPAS_LOG_WARNING ? "library: " : "", line);
}

int map_error(const struct vm *vm, const char *what, int error)
{
	if (error == -ENOMEM && vm->options->budget != 0) {
		tell("%s: --budget %s is too little to start this guest", what,
		     size_text(vm->options->budget).text);
		return STATUS_NO_MEMORY;
	}
	return host_error(what, error);
}

static int create_space(struct vm *vm)
{
	const struct gpas_params params = {
		.log = on_log,
		.log_ctx = vm,
		.log_level =
			vm->options->verbose ? GPAS_LOG_INFO : GPAS_LOG_WARNING,
		.budget = vm->options->budget,
		.pressure = ram_pressure,
		.pressure_ctx = vm,
	};
	int error = gpas_create(&params, &vm->space);

	return error == 0 ? 0 : host_error("creating the space", error);
}

int vm_place(struct vm *vm, const char *name, uint64_t size, gpas_gpa *ret)
{
	const struct gpas_map_params params = { .name = name };
	gpas_gpa at = arch_layout.null_page;
	uint64_t end = vm->ram_end.value;
	struct gpas_region region;

	if (end > arch_layout.low_ram_end.value) {
		end = arch_layout.low_ram_end.value;
	}
	while (gpas_region_next(vm->space, at, &region) == 0 &&
	       region.start.value - at.value < size) {
		at.value = region.start.value + region.size;
	}
	if (at.value > end || size > end - at.value) {
		return -ENOSPC;
	}
	*ret = at;
	return gpas_map_alloc(vm->space, at, size, GPAS_PROT_RW, &params);
}

/* What the VMM needs in the guest's memory, in the order of wishes. */
static int place_boot(struct vm *vm)
{
	uint64_t boot_bytes = arch_boot_bytes(vm->ram_end);
	int error;

	error = vm_place(vm, "boot", boot_bytes, &vm->entry.boot);
	if (error == 0) {
		error = vm_place(vm, "fdt", fdt_bytes(vm->options),
				 &vm->entry.fdt);
	}
	if (error == -ENOSPC) {
		tell("--mem %s leaves no room for %llu KiB of page tables and "
		     "a device tree",
		     size_text(vm->options->mem).text,
		     (unsigned long long)boot_bytes / 1024);
		return STATUS_BAD_GUEST;
	}
	if (error == 0) {
		error = arch_boot_write(vm, vm->entry.boot);
	}
	return error == 0 ? 0 : map_error(vm, "preparing the boot", error);
}

static int build_memory(struct vm *vm)
{
	const struct gpas_map_params null_page = { .name = "null" };
	int status = ram_size(vm), error;

	if (status != 0) {
		return status;
	}
	error = gpas_map_alloc(vm->space, arch_layout.null_page,
			       GPAS_PAGE_BYTES, GPAS_PROT_NONE, &null_page);
	if (error == 0) {
		error = devices_add(vm);
	}
	if (error != 0) {
		return map_error(vm, "mapping devices", error);
	}
	pass(vm, PHASE_MEMORY);
	status = load_guest(vm);
	pass(vm, PHASE_LOAD);
	if (status == 0) {
		status = place_boot(vm);
	}
	return status == 0 ? ram_map(vm) : status;
}

static int attach(struct vm *vm)
{
	bool uffd = vm->options->lazy == GPAS_LAZY_UFFD;
	const struct gpas_kvm_params params = {
		.vm_fd = vm->fd,
		/* Regions that userfaultfd serves need no other mechanism. */
		.lazy = uffd ? GPAS_LAZY_ABSENT : vm->options->lazy,
		.pause = vcpus_pause,
		.resume = vcpus_resume,
		.ctx = vm,
	};
	int error = gpas_kvm_attach(vm->space, &params);
	struct gpas_stats stats;

	gpas_stats(vm->space, &stats);
	vm->attach_kvm_ns = stats.kvm_ns;
	if (error == -EOPNOTSUPP) {
		tell("no usable KVM: it does not offer --lazy %s",
		     vm->options->lazy == GPAS_LAZY_TRAP ? "trap" : "mmio");
		return STATUS_NO_KVM;
	}
	return error == 0 ? 0 : host_error("attaching to KVM", error);
}

/* ---- vCPUs --------------------------------------------------------------- */

static int add_vcpu(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpus[vm->vcpu_count];
	int error = vcpu_create(vm, vcpu, vm->vcpu_count);

	vm->vcpu_count++;
	if (error == 0) {
		error = vm->pc != NULL ? pc_vcpu_init(vcpu)
				       : arch_vcpu_init(vcpu, &vm->entry);
	}
	return error == 0 ? 0 : host_error("creating a vCPU", error);
}

void vm_stop(struct vm *vm, int status)
{
	const uint64_t one = 1;
	int undecided = -1;

	if (!atomic_compare_exchange_strong(&vm->status, &undecided, status)) {
		return;
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vcpu_kick(&vm->vcpus[i]);
	}
	if (write(vm->stop_fd, &one, sizeof(one)) < 0) {
		tell("eventfd: %s", strerror(errno));
	}
}

/* ---- Running ------------------------------------------------------------- */

static int create(struct vm *vm)
{
	int status = restore_open(&vm->restore, vm->options), error;

	if (status == 0) {
		status = open_kvm(vm);
	}
	pass(vm, PHASE_KVM);
	if (status == 0) {
		status = create_space(vm);
	}
	if (status == 0) {
		status = vm->pc != NULL ? pc_build(vm) : build_memory(vm);
	}
	pass(vm, PHASE_MEMORY);
	if (status == 0) {
		status = attach(vm);
	}
	pass(vm, PHASE_ATTACH);
	for (unsigned i = 0; status == 0 && i < vm->options->cpus; i++) {
		status = add_vcpu(vm);
	}
	pass(vm, PHASE_VCPUS);
	if (status != 0 || vm->pc != NULL) {
		return status;
	}
	error = fdt_hand_over(vm);
	pass(vm, PHASE_TREE);
	return error == 0 ? 0 : host_error("the device tree", error);
}

/* The signals the main thread takes from a descriptor. They are blocked while
 * the run lasts, in every thread. */
static int open_signals(sigset_t *old)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, old);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Milliseconds until the time limit, -1 without one. */
static int time_left_ms(const struct vm *vm)
{
	uint64_t limit = (uint64_t)vm->options->timeout_s * 1000;
	uint64_t passed = (now_ns() - vm->started_ns) / 1000000;

	if (limit == 0) {
		return -1;
	}
	return passed >= limit ? 0 : (int)(limit - passed);
}

/* Wait until somebody stops the run; a signal or the time limit may be it. */
static void supervise(struct vm *vm, int signals)
{
	struct pollfd fds[2] = {
		{ .fd = vm->stop_fd, .events = POLLIN },
		{ .fd = signals, .events = POLLIN },
	};

	while (atomic_load(&vm->status) < 0) {
		struct signalfd_siginfo info;
		int ready = poll(fds, 2, time_left_ms(vm));

		if (ready == 0) {
			tell("the guest ran longer than %u s",
			     vm->options->timeout_s);
			vm_stop(vm, STATUS_TIMEOUT);
		} else if (ready > 0 && (fds[1].revents & POLLIN) != 0 &&
			   read(signals, &info, sizeof(info)) ==
				   (ssize_t)sizeof(info)) {
			tell("stopped by signal %u", info.ssi_signo);
			vm->signalled = true;
			vm_stop(vm, STATUS_SIGNAL + (int)info.ssi_signo);
		}
	}
}

static int start_vcpus(struct vm *vm)
{
	int error = 0;

	for (unsigned i = 0; i < vm->vcpu_count && error == 0; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];

		error = -pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
		vcpu->started = error == 0;
	}
	return error;
}

static void join_vcpus(struct vm *vm)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i].started) {
			pthread_join(vm->vcpus[i].thread, NULL);
			vm->vcpus[i].started = false;
		}
	}
}

/* Split what passed since the vCPUs were started, which have ended. */
static void pass_run(struct vm *vm)
{
	if (vm->entered_ns != 0 && vm->left_ns != 0) {
		vm->phase_ns[PHASE_THREADS] = vm->entered_ns - vm->marked_ns;
		vm->phase_ns[PHASE_FIRST_ENTRY] = vm->left_ns - vm->entered_ns;
		vm->marked_ns = vm->left_ns;
	}
	pass(vm, PHASE_RUN);
}

/* Run the guest to its end, whatever that is; the status is in vm->status. */
static void run(struct vm *vm)
{
	sigset_t old;
	int signals = open_signals(&old), error;

	vm->started_ns = now_ns();
	vm->marked_ns = vm->started_ns;
	error = vm->pc != NULL ? pc_start(vm) : 0;
	if (error == 0) {
		error = start_vcpus(vm);
	}
	if (error != 0) {
		vm_stop(vm, host_error("starting a vCPU", error));
	}
	supervise(vm, signals);
	join_vcpus(vm);
	if (vm->pc != NULL) {
		pc_stop(vm);
	}
	vm->ran_ns = now_ns() - vm->started_ns;
	pass_run(vm);
	if (signals >= 0) {
		close(signals);
	}
	/* A signal that stopped the run often comes twice, as timeout(1) sends
	 * it to the process and to its group: the second may not take away
	 * what is told after the run. */
	if (!vm->signalled) {
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
}

static void run_and_tell(struct vm *vm)
{
	const struct options *options = vm->options;

	if (options->map) {
		picture_map(vm, "before");
	}
	gpas_stats(vm->space, &vm->before);
	run(vm);
	fflush(stdout);
	if (options->map) {
		picture_map(vm, "after");
	}
	if (options->stats) {
		picture_stats(vm);
	}
}

/* The exit status of a run that took place. What the guest's would be gives
 * way to a failure to save. */
static int finish(struct vm *vm)
{
	int status = atomic_load(&vm->status);
	int saved = vm->options->save != NULL ? snapshot_save(vm) : 0;

	return saved != 0 && status <= STATUS_GUEST_MAX ? saved : status;
}

static void destroy(struct vm *vm)
{
	vm->marked_ns = now_ns();
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vcpu_destroy(&vm->vcpus[i]);
	}
	pass(vm, PHASE_CLOSE);
	gpas_destroy(vm->space);
	pass(vm, PHASE_DESTROY);
	restore_close(&vm->restore);
	pc_destroy(vm);
	trace_close(vm);
	if (vm->stop_fd >= 0) {
		close(vm->stop_fd);
	}
	if (vm->fd >= 0) {
		close(vm->fd);
	}
	if (vm->kvm_fd >= 0) {
		close(vm->kvm_fd);
	}
	pass(vm, PHASE_CLOSE);
}

int vm_run(const struct options *options)
{
	struct vm vm = {
		.options = options,
		.kvm_fd = -1,
		.fd = -1,
		.status = -1,
		.stop_fd = eventfd(0, EFD_CLOEXEC),
		.marked_ns = now_ns(),
		.restore = { .fd = -1 },
		.offers = { .lock = PTHREAD_MUTEX_INITIALIZER },
	};
	int status = STATUS_HOST;
	bool ran = false;

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	if (vm.stop_fd < 0 || vcpu_install_kick() != 0) {
		tell("%s", strerror(errno));
	} else if (trace_open(&vm) == 0) {
		status = create(&vm);
	}
	if (status == 0) {
		run_and_tell(&vm);
		status = finish(&vm);
		ran = true;
	}
	destroy(&vm);
	if (ran && options->stats) {
		picture_phases(&vm);
	}
	return status;
}
