/* SPDX-License-Identifier: MIT */
/* Architectures whose vCPUs the library knows nothing special about: they tell
 * fetches from data accesses by other means, and have no register filter. */
#include "space.h"

void arch_prepare_vm(int vm_fd)
{
	(void)vm_fd;
}

int arch_translate(int vcpu_fd, uint64_t gva, uint64_t *gpa)
{
	(void)vcpu_fd;
	(void)gva;
	(void)gpa;
	return -EOPNOTSUPP;
}

int arch_fetch(int vcpu_fd, const struct kvm_run *run, struct fetch *ret)
{
	(void)vcpu_fd;
	(void)run;
	(void)ret;
	return -EOPNOTSUPP;
}

bool arch_event_pending(int vcpu_fd)
{
	(void)vcpu_fd;
	return false;
}

int arch_deliver_sysregs(int vm_fd, const struct span_set *claims)
{
	(void)vm_fd;
	return claims->count == 0 ? 0 : -EOPNOTSUPP;
}
