/* SPDX-License-Identifier: MIT */
/*
 * A memory module that is plugged in and taken out while the guest runs, which
 * learns of both through ACPI (version 6.5, 5.6.6, 6.3, 9.11): an interrupt
 * makes it run the code in acpi.c, which reads and writes the registers here.
 *
 * 16-bit registers at PC_MODULE_PORT:
 *   0 state  read: what _STA says
 *   2 event  read: what happened since the last time (table 5.166)
 *   4 eject  write: the guest uses the module no more
 *   6 what   write: the event that what is written next is about
 *   8 code   write: what became of it, as _OST says (table 6.71)
 */
#include "pc.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

/* Linux adds memory in such blocks, larger ones where it has much. */
#define BLOCK_BYTES (UINT64_C(128) << 20)
#define ALIGN_BYTES (UINT64_C(1) << 30)

/* 6.3.7: present, enabled, shown, functioning. */
#define STATE_WORKS 0xf

enum {
	EVENT_CHECK = 1, /* look whether it is there */
	EVENT_EJECT = 3, /* please eject it */
};

enum {
	CODE_SUCCESS = 0,
	CODE_IN_PROGRESS = 0x84,
};

static const char *size_of(const struct module *module, struct size_text *text)
{
	*text = size_text(gpas_range_size(module->range));
	return text->text;
}

/* The interrupt is edge-triggered. */
static void notify(struct module *module, uint16_t event)
{
	struct kvm_irq_level line = { .irq = PC_MODULE_IRQ, .level = 1 };

	module->event = event;
	(void)ioctl(module->vm->fd, KVM_IRQ_LINE, &line);
	line.level = 0;
	(void)ioctl(module->vm->fd, KVM_IRQ_LINE, &line);
}

static int plug(struct module *module)
{
	int error;

	if (module->plugged) {
		return -EEXIST;
	}
	/* Linux would look whether the old module is gone, and find the new. */
	if (module->leaving) {
		return -EBUSY;
	}
	error = ram_map_range(module->vm, module->range);
	if (error == 0) {
		module->plugged = true;
		notify(module, EVENT_CHECK);
	}
	return error;
}

int module_request(struct vm *vm, bool plugged)
{
	struct module *module = vm->pc != NULL ? &vm->pc->module : NULL;
	int error = 0;

	if (module == NULL || gpas_range_is_empty(module->range)) {
		return -ENODEV;
	}
	pthread_mutex_lock(&module->lock);
	if (plugged) {
		error = plug(module);
	} else if (module->plugged) {
		notify(module, EVENT_EJECT);
	} else {
		error = module->leaving ? -EBUSY : -ENOENT;
	}
	pthread_mutex_unlock(&module->lock);
	return error;
}

bool module_plugged(struct vm *vm)
{
	bool plugged;

	if (vm->pc == NULL) {
		return false;
	}
	pthread_mutex_lock(&vm->pc->module.lock);
	plugged = vm->pc->module.plugged || vm->pc->module.leaving;
	pthread_mutex_unlock(&vm->pc->module.lock);
	return plugged;
}

/* ---- Registers ----------------------------------------------------------- */

/* The guest may do this unasked, and to a module that is not there. */
static int eject(struct module *module)
{
	struct gpas_range range = module->range;
	struct size_text text;
	int error;

	if (!module->plugged) {
		return 0;
	}
	error = gpas_unmap(module->vm->space, range.start,
			   gpas_range_size(range));
	if (error == 0) {
		module->plugged = false;
		module->leaving = true;
		tell("module: %s at 0x%llx are taken out",
		     size_of(module, &text),
		     (unsigned long long)range.start.value);
	}
	return error;
}

static void take_code(struct module *module, uint16_t code)
{
	struct size_text text;

	if (code == CODE_IN_PROGRESS) {
		return;
	}
	module->leaving = false;
	if (code != CODE_SUCCESS) {
		tell("module: the guest would not (ACPI code 0x%x)", code);
	} else if (module->about == EVENT_CHECK) {
		tell("module: the guest takes %s at 0x%llx",
		     size_of(module, &text),
		     (unsigned long long)module->range.start.value);
	}
}

static int module_access(void *ctx, struct gpas_device_access *access)
{
	struct module *module = ctx;
	int error = 0;

	pthread_mutex_lock(&module->lock);
	if (!access->write) {
		access->value = 0;
		if (access->offset == 0 && module->plugged) {
			access->value = STATE_WORKS;
		} else if (access->offset == 2) {
			access->value = module->event;
			module->event = 0;
		}
	} else if (access->offset == 4) {
		error = eject(module);
	} else if (access->offset == 6) {
		module->about = (uint16_t)access->value;
	} else if (access->offset == 8) {
		take_code(module, (uint16_t)access->value);
	}
	pthread_mutex_unlock(&module->lock);
	return error;
}

/* ---- Making -------------------------------------------------------------- */

/* After all RAM, where every block can begin. */
static int choose_range(struct vm *vm, struct gpas_range *ret)
{
	uint64_t size = vm->options->module, start = vm->ram_end.value;
	uint64_t limit = arch_gpa_limit(vm);

	if (!gpas_is_aligned(size, BLOCK_BYTES)) {
		tell("--module %s is not a multiple of %s",
		     size_text(size).text, size_text(BLOCK_BYTES).text);
		return STATUS_USAGE;
	}
	if (start < PC_ABOVE_HOLE) {
		start = PC_ABOVE_HOLE;
	}
	if (gpas_align_up(start, ALIGN_BYTES, &start) != 0 ||
	    gpas_range_make(gpas_gpa_at(start), size, ret) != 0 ||
	    ret->end.value > limit ||
	    ret->end.value > gpas_end(vm->space).value) {
		tell("--module %s is more than this processor can address",
		     size_text(size).text);
		return STATUS_USAGE;
	}
	return 0;
}

int module_add(struct vm *vm)
{
	struct module *module = &vm->pc->module;
	const struct gpas_device device = {
		.name = "module",
		.widths = GPAS_WIDTH_2,
		.ctx = module,
		.access = module_access,
	};
	int status = 0, error;

	module->vm = vm;
	pthread_mutex_init(&module->lock, NULL);
	if (vm->options->module != 0) {
		status = choose_range(vm, &module->range);
	}
	if (status != 0 || gpas_range_is_empty(module->range)) {
		return status;
	}
	error = gpas_add_device(vm->space, GPAS_ADDRESS_PORT, PC_MODULE_PORT,
				PC_MODULE_BYTES, &device);
	if (error != 0) {
		tell("the module: %s", strerror(-error));
		return STATUS_HOST;
	}
	return 0;
}
