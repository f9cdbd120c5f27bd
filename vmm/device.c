/* SPDX-License-Identifier: MIT */
/*
 * The guest's devices: a 16550 serial port, at its I/O ports and in a page of
 * memory-mapped registers, and a doorbell through which a test guest reports.
 *
 * The doorbell's 64-bit registers:
 *   0x00 sync   write: a checkpoint; read: how many there were
 *   0x08 fail   write: the source line of a check that failed; ends the run
 *   0x10 done   write: the guest's exit code; ends the run
 *   0x18 count  read: accesses to the scratch area so far
 *   0x20 width  read: bytes of the last one
 *   0x28 start  read, write: a range of RAM in whole pages ...
 *   0x30 size   ... and its size, in bytes
 *   0x38 memory write: what to do with the range: 1 give it back to the host
 *               (it reads as zeros, or as the file that was restored), 2 make
 *               it present, 3 offer it: it may be given back at any time from
 *               now on, until the range is in another command, 4 make writing
 *               to it a violation, 5 allow it again; read: what became of the
 *               last command, 0 or a negative errno
 *   0x40 module write: 1 plug the memory module in, 0 ask for it back, by ACPI;
 *               what became of it is at 0x38; read: 1 while it is plugged in
 *   0x100       scratch area: 256 bytes that remember, in any width
 */
#include "vm.h"

#include <string.h>

/* ---- The serial port (National Semiconductor PC16550D, section 8) -------- */

enum {
	SERIAL_DATA = 0,	     /* divisor latch, low, while DLAB is set */
	SERIAL_INTERRUPT_ENABLE = 1, /* divisor latch, high */
	SERIAL_INTERRUPT_ID = 2,
	SERIAL_LINE_CONTROL = 3,
	SERIAL_MODEM_CONTROL = 4,
	SERIAL_LINE_STATUS = 5,
	SERIAL_MODEM_STATUS = 6,
	SERIAL_SCRATCH = 7,
	SERIAL_REGISTERS = 8,
};

#define LINE_CONTROL_DLAB   0x80
#define LINE_STATUS_EMPTY   0x60 /* the transmitter can take a byte */
#define NO_INTERRUPT	    0x01
#define MODEM_CONTROL_LOOP  0x10
#define MODEM_STATUS_ONLINE 0xb0 /* carrier, ready, clear to send */

static uint8_t serial_modem_status(const struct serial *serial)
{
	uint8_t control = serial->modem_control;

	if ((control & MODEM_CONTROL_LOOP) == 0) {
		return MODEM_STATUS_ONLINE;
	}
	/* Looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD. */
	return (uint8_t)((control & 0x02) << 3 | (control & 0x01) << 5 |
			 (control & 0x04) << 4 | (control & 0x08) << 4);
}

static uint8_t serial_read(const struct serial *serial, uint64_t offset)
{
	bool latch = (serial->line_control & LINE_CONTROL_DLAB) != 0;

	switch (offset) {
	case SERIAL_DATA:
		return latch ? serial->divisor[0] : 0;
	case SERIAL_INTERRUPT_ENABLE:
		return latch ? serial->divisor[1] : serial->interrupt_enable;
	case SERIAL_INTERRUPT_ID:
		return NO_INTERRUPT;
	case SERIAL_LINE_CONTROL:
		return serial->line_control;
	case SERIAL_MODEM_CONTROL:
		return serial->modem_control;
	case SERIAL_LINE_STATUS:
		return LINE_STATUS_EMPTY;
	case SERIAL_MODEM_STATUS:
		return serial_modem_status(serial);
	case SERIAL_SCRATCH:
		return serial->scratch;
	default:
		return UINT8_MAX;
	}
}

static void serial_write(struct serial *serial, uint64_t offset, uint8_t value)
{
	bool latch = (serial->line_control & LINE_CONTROL_DLAB) != 0;

	switch (offset) {
	case SERIAL_DATA:
		if (latch) {
			serial->divisor[0] = value;
		} else if ((serial->modem_control & MODEM_CONTROL_LOOP) == 0) {
			putchar(value);
		}
		break;
	case SERIAL_INTERRUPT_ENABLE:
		if (latch) {
			serial->divisor[1] = value;
		} else {
			serial->interrupt_enable = value & 0x0f;
		}
		break;
	case SERIAL_LINE_CONTROL:
		serial->line_control = value;
		break;
	case SERIAL_MODEM_CONTROL:
		serial->modem_control = value & 0x1f;
		break;
	case SERIAL_SCRATCH:
		serial->scratch = value;
		break;
	default: /* FIFO control, read-only registers, the page's rest */
		break;
	}
}

static int serial_access(void *ctx, struct gpas_device_access *access)
{
	struct serial *serial = ctx;

	pthread_mutex_lock(&serial->lock);
	if (access->write) {
		serial_write(serial, access->offset, (uint8_t)access->value);
	} else {
		access->value = serial_read(serial, access->offset);
	}
	pthread_mutex_unlock(&serial->lock);
	return 0;
}

/* ---- The doorbell -------------------------------------------------------- */

enum {
	DOORBELL_SYNC = 0x00,
	DOORBELL_FAIL = 0x08,
	DOORBELL_DONE = 0x10,
	DOORBELL_COUNT = 0x18,
	DOORBELL_WIDTH = 0x20,
	DOORBELL_START = 0x28,
	DOORBELL_SIZE = 0x30,
	DOORBELL_MEMORY = 0x38,
	DOORBELL_MODULE = 0x40,
	DOORBELL_SCRATCH = 0x100,
};

static void doorbell_done(struct vm *vm, uint64_t code)
{
	if (code > STATUS_GUEST_MAX) {
		tell("the guest's exit code is %llu, which %d stands for",
		     (unsigned long long)code, STATUS_GUEST_MAX);
		code = STATUS_GUEST_MAX;
	}
	vm_stop(vm, (int)code);
}

static void doorbell_write(struct doorbell *bell, uint64_t offset,
			   uint64_t value)
{
	switch (offset) {
	case DOORBELL_SYNC:
		bell->syncs++;
		trace_event(bell->vm, "sync %llu", (unsigned long long)value);
		break;
	case DOORBELL_FAIL:
		tell("a check of the guest failed, in line %llu of its source",
		     (unsigned long long)value);
		vm_stop(bell->vm, STATUS_CHECK);
		break;
	case DOORBELL_DONE:
		doorbell_done(bell->vm, value);
		break;
	case DOORBELL_START:
		bell->range_start = gpas_gpa_at(value);
		break;
	case DOORBELL_SIZE:
		bell->range_size = value;
		break;
	case DOORBELL_MEMORY:
		bell->result = ram_command(bell->vm, value, bell->range_start,
					   bell->range_size);
		break;
	case DOORBELL_MODULE:
		bell->result = module_request(bell->vm, value != 0);
		break;
	default:
		break;
	}
}

static uint64_t doorbell_read(const struct doorbell *bell, uint64_t offset)
{
	switch (offset) {
	case DOORBELL_SYNC:
		return bell->syncs;
	case DOORBELL_COUNT:
		return bell->scratch_count;
	case DOORBELL_WIDTH:
		return bell->scratch_width;
	case DOORBELL_START:
		return bell->range_start.value;
	case DOORBELL_SIZE:
		return bell->range_size;
	case DOORBELL_MEMORY:
		return (uint64_t)(int64_t)bell->result;
	case DOORBELL_MODULE:
		return module_plugged(bell->vm);
	default:
		return UINT64_MAX;
	}
}

static void doorbell_scratch(struct doorbell *bell,
			     struct gpas_device_access *access)
{
	uint8_t *at = bell->scratch + (access->offset - DOORBELL_SCRATCH);

	bell->scratch_count++;
	bell->scratch_width = access->width;
	if (access->write) {
		memcpy(at, &access->value, access->width);
	} else {
		memcpy(&access->value, at, access->width);
	}
}

static int doorbell_access(void *ctx, struct gpas_device_access *access)
{
	struct doorbell *bell = ctx;
	uint64_t scratch_end = DOORBELL_SCRATCH + sizeof(bell->scratch);

	pthread_mutex_lock(&bell->lock);
	if (access->offset >= DOORBELL_SCRATCH &&
	    access->offset + access->width <= scratch_end) {
		doorbell_scratch(bell, access);
	} else if (access->write) {
		doorbell_write(bell, access->offset, access->value);
	} else {
		access->value = doorbell_read(bell, access->offset);
	}
	pthread_mutex_unlock(&bell->lock);
	return 0;
}

/* ---- Putting them in place ----------------------------------------------- */

int doorbell_add(struct vm *vm)
{
	const struct gpas_device doorbell = {
		.name = DOORBELL_NAME,
		.ctx = &vm->doorbell,
		.access = doorbell_access,
	};

	pthread_mutex_init(&vm->doorbell.lock, NULL);
	vm->doorbell.vm = vm;
	return gpas_map_device(vm->space, arch_layout.doorbell, GPAS_PAGE_BYTES,
			       &doorbell);
}

int devices_add(struct vm *vm)
{
	const struct gpas_device serial = {
		.name = SERIAL_NAME,
		.widths = GPAS_WIDTH_1,
		.ctx = &vm->serial,
		.access = serial_access,
	};
	int error;

	pthread_mutex_init(&vm->serial.lock, NULL);
	error = gpas_map_device(vm->space, arch_layout.serial, GPAS_PAGE_BYTES,
				&serial);
	if (error == 0) {
		error = doorbell_add(vm);
	}
	if (error == 0 && arch_layout.serial_port != 0) {
		error = gpas_add_device(vm->space, GPAS_ADDRESS_PORT,
					arch_layout.serial_port,
					SERIAL_REGISTERS, &serial);
	}
	return error;
}
