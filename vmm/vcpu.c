/* SPDX-License-Identifier: MIT */
/*
 * A vCPU and its thread: entering the guest, and what each kind of exit means
 * for the run. Also how vCPUs are interrupted: KVM's immediate_exit flag makes
 * the next KVM_RUN return at once, and a signal ends one that is in progress,
 * so that whoever sets the flag first and sends the signal next never misses.
 */
#include "vm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KICK_SIGNAL SIGUSR1

/* A guest can offend thousands of times a second; nobody reads that much. */
#define VIOLATIONS_SHOWN 20

/* ---- Interrupting -------------------------------------------------------- */

static void on_kick(int signal)
{
	(void)signal; /* it has done its work by interrupting KVM_RUN */
}

int vcpu_install_kick(void)
{
	struct sigaction action = { .sa_handler = on_kick };

	return sigaction(KICK_SIGNAL, &action, NULL) != 0 ? -errno : 0;
}

static void set_immediate_exit(struct vcpu *vcpu, uint8_t value)
{
	__atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

void vcpu_kick(struct vcpu *vcpu)
{
	set_immediate_exit(vcpu, 1);
	if (vcpu->started) {
		pthread_kill(vcpu->thread, KICK_SIGNAL);
	}
}

void vcpus_pause(void *ctx)
{
	struct vm *vm = ctx;

	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];

		if (vcpu->started &&
		    pthread_equal(vcpu->thread, pthread_self())) {
			continue;
		}
		if (gpas_vcpu_running(&vcpu->gpas)) {
			vcpu_kick(vcpu);
		}
		while (gpas_vcpu_running(&vcpu->gpas)) {
			sched_yield();
		}
	}
}

void vcpus_resume(void *ctx)
{
	/* A paused vCPU waits in gpas_vcpu_run(), which the library ends. */
	(void)ctx;
}

/* ---- Exits --------------------------------------------------------------- */

static const char *access_text(unsigned wanted)
{
	switch (wanted) {
	case GPAS_PROT_READ:
		return "read from";
	case GPAS_PROT_WRITE:
		return "write to";
	case GPAS_PROT_EXEC:
		return "instruction fetch from";
	default:
		return "access to";
	}
}

static void tell_violation(struct vcpu *vcpu, const struct gpas_fault *fault)
{
	unsigned long long gpa = fault->gpa.value;
	unsigned long long pc = arch_vcpu_pc(vcpu);
	const char *what = access_text(fault->wanted);

	if (fault->kind == GPAS_FAULT_UNMAPPED) {
		tell("violation: %s 0x%llx, where nothing is mapped "
		     "(rip 0x%llx)",
		     what, gpa, pc);
	} else {
		tell("violation: %s 0x%llx in '%s', which allows %s "
		     "(rip 0x%llx)",
		     what, gpa, fault->region_name, prot_text(fault->had), pc);
	}
}

/* The guest did what its memory does not allow. */
static void on_violation(struct vcpu *vcpu, const struct gpas_exit *exit)
{
	struct vm *vm = vcpu->vm;
	unsigned long before = atomic_fetch_add(&vm->violations, 1);
	bool stop = !vm->options->carry_on || !exit->retryable;

	if (before < VIOLATIONS_SHOWN || stop) {
		tell_violation(vcpu, &exit->fault);
	} else if (before == VIOLATIONS_SHOWN) {
		tell("violation: further ones are only counted");
	}
	if (stop) {
		if (vm->options->carry_on) {
			tell("the guest cannot carry on after that");
		}
		vm_stop(vm, STATUS_VIOLATION);
	}
}

/* The budget is used up. An access that KVM repeats cannot be passed over. */
static void on_denial(struct vcpu *vcpu, const struct gpas_exit *exit)
{
	struct vm *vm = vcpu->vm;
	unsigned long before = atomic_fetch_add(&vm->denials, 1);
	bool stop = !vm->options->carry_on || !exit->retryable;

	if (before < VIOLATIONS_SHOWN || stop) {
		tell("denied: no memory for 0x%llx in '%s' within --budget "
		     "(rip 0x%llx)",
		     (unsigned long long)exit->fault.gpa.value,
		     exit->fault.region_name,
		     (unsigned long long)arch_vcpu_pc(vcpu));
	} else if (before == VIOLATIONS_SHOWN) {
		tell("denied: further ones are only counted");
	}
	if (stop) {
		if (vm->options->carry_on) {
			tell("the guest cannot carry on after that");
		}
		vm_stop(vm, STATUS_NO_MEMORY);
	}
}

static void on_fault(struct vcpu *vcpu, const struct gpas_exit *exit)
{
	if (exit->fault.kind != GPAS_FAULT_FAILED) {
		on_violation(vcpu, exit);
	} else if (exit->fault.error == -ENOMEM &&
		   vcpu->vm->options->budget != 0) {
		on_denial(vcpu, exit);
	} else {
		tell("cannot provide 0x%llx in '%s': %s",
		     (unsigned long long)exit->fault.gpa.value,
		     exit->fault.region_name, strerror(-exit->fault.error));
		vm_stop(vcpu->vm, STATUS_HOST);
	}
}

static void crash(struct vcpu *vcpu, const char *why)
{
	tell("the guest crashed: %s (vCPU %u)", why, vcpu->index);
	arch_vcpu_dump(vcpu);
	vm_stop(vcpu->vm, STATUS_CRASH);
}

static const char *suberror_text(unsigned suberror)
{
	switch (suberror) {
	case KVM_INTERNAL_ERROR_EMULATION:
		return ", an instruction it cannot emulate";
	case KVM_INTERNAL_ERROR_DELIVERY_EV:
		return ", an exception or interrupt met absent memory";
	default:
		return "";
	}
}

/* An exit that is about neither memory nor a device. */
static void on_other(struct vcpu *vcpu)
{
	char why[96];

	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_HLT:
		if (arch_vcpu_exception(vcpu, why, sizeof(why))) {
			crash(vcpu, why);
			break;
		}
		tell("the guest halted with nothing to wake it");
		vm_stop(vcpu->vm, STATUS_HALT);
		break;
	case KVM_EXIT_SHUTDOWN:
		crash(vcpu, "triple fault");
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		snprintf(why, sizeof(why), "KVM internal error %u%s",
			 vcpu->run->internal.suberror,
			 suberror_text(vcpu->run->internal.suberror));
		crash(vcpu, why);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		snprintf(why, sizeof(why), "KVM cannot enter it, reason 0x%llx",
			 (unsigned long long)vcpu->run->fail_entry
				 .hardware_entry_failure_reason);
		crash(vcpu, why);
		break;
	default:
		snprintf(why, sizeof(why), "unexpected KVM exit %u",
			 vcpu->run->exit_reason);
		crash(vcpu, why);
		break;
	}
}

static void on_exit_kind(struct vcpu *vcpu, const struct gpas_exit *exit)
{
	switch (exit->kind) {
	case GPAS_EXIT_RESUME:
	case GPAS_EXIT_INTERRUPTED:
	case GPAS_EXIT_UNCLAIMED: /* read as all ones; the library counts */
		break;
	case GPAS_EXIT_FAULT:
		on_fault(vcpu, exit);
		break;
	case GPAS_EXIT_DEVICE_ERROR:
		tell("a device failed at 0x%llx: %s",
		     (unsigned long long)exit->address, strerror(-exit->error));
		vm_stop(vcpu->vm, STATUS_HOST);
		break;
	case GPAS_EXIT_OTHER:
		on_other(vcpu);
		break;
	}
}

static void on_host_error(struct vcpu *vcpu, int error)
{
	tell("KVM failed at rip 0x%llx: %s%s",
	     (unsigned long long)arch_vcpu_pc(vcpu), strerror(-error),
	     error == -ELOOP ? " (the guest repeats one fault although its "
			       "memory is in place)"
			     : "");
	vm_stop(vcpu->vm, STATUS_HOST);
}

/* The first entry of vCPU 0 ends the start-up (enum phase). */
static void note_entry(struct vcpu *vcpu, uint64_t *ns)
{
	if (vcpu->index == 0 && *ns == 0) {
		*ns = now_ns();
	}
}

/* Like gpas_vcpu_run(), with a look at the exit before the library has it. */
static int run_traced(struct vcpu *vcpu, struct gpas_exit *exit)
{
	uint64_t begun = now_ns();
	struct trace_note note;
	int result, error;

	gpas_vcpu_enter(&vcpu->gpas);
	result = ioctl(vcpu->fd, KVM_RUN, 0) != 0 ? -errno : 0;
	vcpu->traced_ns += now_ns() - begun;
	trace_look(vcpu, result, &note);
	error = gpas_kvm_handle_exit(&vcpu->gpas, result, exit);
	trace_exit(vcpu, &note, error, exit);
	return error;
}

void *vcpu_main(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vm *vm = vcpu->vm;

	for (;;) {
		struct gpas_exit exit = { 0 };
		int error;

		/* In this order: who stops the VM sets status first. */
		set_immediate_exit(vcpu, 0);
		if (atomic_load(&vm->status) >= 0) {
			return NULL;
		}
		note_entry(vcpu, &vm->entered_ns);
		error = vm->trace != NULL ? run_traced(vcpu, &exit)
					  : gpas_vcpu_run(&vcpu->gpas, &exit);
		note_entry(vcpu, &vm->left_ns);
		if (error != 0) {
			on_host_error(vcpu, error);
		} else {
			on_exit_kind(vcpu, &exit);
		}
	}
}

/* ---- Making and unmaking ------------------------------------------------- */

int vcpu_create(struct vm *vm, struct vcpu *vcpu, unsigned index)
{
	int size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	int error;

	*vcpu = (struct vcpu){ .vm = vm, .index = index, .fd = -1 };
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (vcpu->fd < 0 || size < 0) {
		return -errno;
	}
	vcpu->run_bytes = (size_t)size;
	vcpu->run = mmap(NULL, vcpu->run_bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return -errno;
	}
	error = gpas_vcpu_init(&vcpu->gpas, vm->space, vcpu->fd, vcpu->run);
	if (error != 0) {
		munmap(vcpu->run, vcpu->run_bytes);
		vcpu->run = NULL;
	}
	return error;
}

void vcpu_destroy(struct vcpu *vcpu)
{
	if (vcpu->run != NULL) {
		gpas_vcpu_fini(&vcpu->gpas);
		munmap(vcpu->run, vcpu->run_bytes);
	}
	if (vcpu->fd >= 0) {
		close(vcpu->fd);
	}
}
