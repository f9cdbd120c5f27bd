/* SPDX-License-Identifier: MIT */
/*
 * --trace: a line for each exit that a served device access does not explain.
 * Columns: microseconds since the guest was started, vCPU, KVM's exit, address
 * and access, and what became of it.
 */
#include "vm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39 /* newer than Debian 12's header */
#endif

int trace_open(struct vm *vm)
{
	if (vm->options->trace == NULL) {
		return 0;
	}
	vm->trace = fopen(vm->options->trace, "w");
	if (vm->trace == NULL) {
		tell("%s: %s", vm->options->trace, strerror(errno));
		return -errno;
	}
	setvbuf(vm->trace, NULL, _IOLBF, BUFSIZ);
	fprintf(vm->trace, "# us, vCPU, exit, address and access, outcome\n");
	return 0;
}

void trace_close(struct vm *vm)
{
	if (vm->trace != NULL && fclose(vm->trace) != 0) {
		tell("%s: %s", vm->options->trace, strerror(errno));
	}
	vm->trace = NULL;
}

static unsigned long long since_start_us(const struct vm *vm)
{
	return (now_ns() - vm->started_ns) / 1000;
}

void trace_event(struct vm *vm, const char *format, ...)
{
	va_list args;

	if (vm->trace == NULL) {
		return;
	}
	flockfile(vm->trace);
	fprintf(vm->trace, "%10llu  -  ", since_start_us(vm));
	va_start(args, format);
	vfprintf(vm->trace, format, args);
	va_end(args);
	fputc('\n', vm->trace);
	funlockfile(vm->trace);
}

/* The guest-physical address of an exit, where it has one. */
static bool exit_gpa(const struct kvm_run *run, gpas_gpa *ret)
{
	uint64_t memory_fault[2]; /* flags, gpa */

	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		ret->value = run->mmio.phys_addr;
		return true;
	case KVM_EXIT_MEMORY_FAULT:
		/* That union member is newer than Debian 12's header. */
		memcpy(memory_fault, run->padding, sizeof(memory_fault));
		ret->value = memory_fault[1];
		return true;
	default:
		return false;
	}
}

static void exit_text(const struct kvm_run *run, char *text, size_t size)
{
	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		snprintf(text, size, "mmio %s %u",
			 run->mmio.is_write ? "write" : "read", run->mmio.len);
		break;
	case KVM_EXIT_MEMORY_FAULT:
		snprintf(text, size, "memory-fault");
		break;
	case KVM_EXIT_IO:
		snprintf(text, size, "port %s %u",
			 run->io.direction == KVM_EXIT_IO_OUT ? "write"
							      : "read",
			 run->io.size);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		snprintf(text, size, "internal-error %u",
			 run->internal.suberror);
		break;
	case KVM_EXIT_SHUTDOWN:
		snprintf(text, size, "shutdown");
		break;
	case KVM_EXIT_HLT:
		snprintf(text, size, "halt");
		break;
	default:
		snprintf(text, size, "exit %u", run->exit_reason);
		break;
	}
}

static const char *outcome_text(int error, const struct gpas_exit *exit)
{
	static const char *const faults[GPAS_FAULT_KIND_COUNT] = {
		[GPAS_FAULT_RESUME] = "resumed",
		[GPAS_FAULT_DEVICE] = "device",
		[GPAS_FAULT_DENIED] = "denied",
		[GPAS_FAULT_UNMAPPED] = "unmapped",
		[GPAS_FAULT_FAILED] = "failed",
	};

	if (error != 0) {
		return strerror(-error);
	}
	switch (exit->kind) {
	case GPAS_EXIT_RESUME:
		return "resumed";
	case GPAS_EXIT_FAULT:
		return faults[exit->fault.kind];
	case GPAS_EXIT_UNCLAIMED:
		return "unclaimed";
	case GPAS_EXIT_DEVICE_ERROR:
		return "device error";
	case GPAS_EXIT_INTERRUPTED:
		return "interrupted";
	default:
		return "not about memory";
	}
}

void trace_look(const struct vcpu *vcpu, int result, struct trace_note *note)
{
	const struct kvm_run *run = vcpu->run;

	*note = (struct trace_note){ .what = "signal" };
	if (result == -EINTR || result == -EAGAIN) {
		return;
	}
	exit_text(run, note->what, sizeof(note->what));
	note->is_port = run->exit_reason == KVM_EXIT_IO;
	note->has_gpa = exit_gpa(run, &note->gpa);
}

void trace_exit(const struct vcpu *vcpu, const struct trace_note *note,
		int error, const struct gpas_exit *exit)
{
	struct vm *vm = vcpu->vm;
	bool served = error == 0 && exit->kind == GPAS_EXIT_RESUME;
	bool fault = error == 0 && exit->kind == GPAS_EXIT_FAULT;
	gpas_gpa gpa = fault ? exit->fault.gpa : note->gpa;
	struct gpas_region region = { .kind = GPAS_REGION_ALLOC, .name = "-" };
	char where[24] = "-";

	if (note->has_gpa || fault) {
		(void)gpas_region_find(vm->space, gpa, &region);
		snprintf(where, sizeof(where), "0x%llx",
			 (unsigned long long)gpa.value);
	}
	if (served && (note->is_port || region.kind == GPAS_REGION_DEVICE)) {
		return;
	}
	fprintf(vm->trace, "%10llu  %u  %-16s  %-14s  %-12s  %s\n",
		since_start_us(vm), vcpu->index, note->what, where, region.name,
		outcome_text(error, exit));
}
