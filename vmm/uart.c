/* SPDX-License-Identifier: MIT */
/*
 * The PC's serial port: a 16550A whose interrupt goes to KVM's interrupt
 * controllers (National Semiconductor PC16550D, section 8). Sending takes no
 * time. What is received waits in a ring, larger than the chip's; while the
 * guest does not want interrupts for it, the chip takes nothing, so that a
 * driver that clears the chip before it starts loses nothing either.
 *
 * A kernel that panics says so on its console, and may then reset the machine:
 * the port notices the words, so that the run's exit status can tell.
 */
#include "pc.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
	UART_DATA = 0,		   /* divisor latch, low, while DLAB is set */
	UART_INTERRUPT_ENABLE = 1, /* divisor latch, high */
	UART_INTERRUPT_ID = 2,	   /* written: FIFO control */
	UART_LINE_CONTROL = 3,
	UART_MODEM_CONTROL = 4,
	UART_LINE_STATUS = 5,
	UART_MODEM_STATUS = 6,
	UART_SCRATCH = 7,
	UART_REGISTERS = 8,
};

#define ENABLE_RECEIVED	     0x01
#define ENABLE_SENT	     0x02
#define ID_NONE		     0x01
#define ID_SENT		     0x02
#define ID_RECEIVED	     0x04
#define ID_FIFOS	     0xc0
#define FIFO_ENABLE	     0x01
#define FIFO_CLEAR_RECEIVED  0x02
#define LINE_CONTROL_DLAB    0x80
#define LINE_STATUS_RECEIVED 0x01
#define LINE_STATUS_EMPTY    0x60 /* the transmitter can take a byte */
#define MODEM_CONTROL_OUT2   0x08 /* lets the interrupt through */
#define MODEM_CONTROL_LOOP   0x10
#define MODEM_STATUS_ONLINE  0xb0 /* carrier, ready, clear to send */

static const char panic_text[] = "Kernel panic - not syncing";

static bool is_latch(const struct uart *uart)
{
	return (uart->line_control & LINE_CONTROL_DLAB) != 0;
}

static uint8_t interrupt_id(const struct uart *uart)
{
	if ((uart->interrupt_enable & ENABLE_RECEIVED) != 0 &&
	    uart->head != uart->tail) {
		return ID_RECEIVED;
	}
	if ((uart->interrupt_enable & ENABLE_SENT) != 0 && uart->sent) {
		return ID_SENT;
	}
	return ID_NONE;
}

/* Tell KVM when the line changes: its edge is what the guest sees. */
static void update_line(struct uart *uart)
{
	bool level = interrupt_id(uart) != ID_NONE &&
		     (uart->modem_control & MODEM_CONTROL_OUT2) != 0;
	struct kvm_irq_level line = { .irq = PC_SERIAL_IRQ, .level = level };

	if (level != uart->irq_level) {
		uart->irq_level = level;
		(void)ioctl(uart->vm->fd, KVM_IRQ_LINE, &line);
	}
}

/* ---- Receiving ----------------------------------------------------------- */

static bool push(struct uart *uart, uint8_t byte)
{
	unsigned next = (uart->head + 1) % UART_RING_BYTES;

	if (next == uart->tail) {
		return false;
	}
	uart->ring[uart->head] = byte;
	uart->head = next;
	return true;
}

static uint8_t pop(struct uart *uart)
{
	uint8_t byte = 0;

	if (uart->head != uart->tail) {
		byte = uart->ring[uart->tail];
		uart->tail = (uart->tail + 1) % UART_RING_BYTES;
	}
	return byte;
}

size_t uart_receive(struct uart *uart, const uint8_t *bytes, size_t size)
{
	size_t done = 0;
	bool wanted;

	pthread_mutex_lock(&uart->lock);
	wanted = (uart->interrupt_enable & ENABLE_RECEIVED) != 0;
	while (wanted && done < size && push(uart, bytes[done])) {
		done++;
	}
	update_line(uart);
	pthread_mutex_unlock(&uart->lock);
	return done;
}

/* ---- Sending ------------------------------------------------------------- */

static void watch_for_panic(struct uart *uart, uint8_t byte)
{
	/* Its first letter does not occur again, so a mismatch can only be the
	 * beginning of a new match. */
	if (byte != (uint8_t)panic_text[uart->panic_matched]) {
		uart->panic_matched = 0;
	}
	if (byte == (uint8_t)panic_text[uart->panic_matched]) {
		uart->panic_matched++;
	}
	if (uart->panic_matched == sizeof(panic_text) - 1) {
		uart->panicked = true;
		uart->panic_matched = 0;
	}
}

static void transmit(struct uart *uart, uint8_t byte)
{
	if ((uart->modem_control & MODEM_CONTROL_LOOP) != 0) {
		(void)push(uart, byte);
	} else {
		watch_for_panic(uart, byte);
		/* A reader that does not read must not keep the run from
		 * ending. */
		while (write(STDOUT_FILENO, &byte, 1) < 0 && errno == EINTR &&
		       atomic_load(&uart->vm->status) < 0) {
		}
	}
	uart->sent = true;
}

/* ---- Registers ----------------------------------------------------------- */

static uint8_t modem_status(const struct uart *uart)
{
	uint8_t control = uart->modem_control;

	if ((control & MODEM_CONTROL_LOOP) == 0) {
		return MODEM_STATUS_ONLINE;
	}
	/* Looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD. */
	return (uint8_t)((control & 0x02) << 3 | (control & 0x01) << 5 |
			 (control & 0x04) << 4 | (control & 0x08) << 4);
}

static uint8_t read_interrupt_id(struct uart *uart)
{
	uint8_t id = interrupt_id(uart);

	if (id == ID_SENT) {
		uart->sent = false; /* reading it is the acknowledgement */
	}
	if ((uart->fifo_control & FIFO_ENABLE) != 0) {
		id |= ID_FIFOS;
	}
	return id;
}

static uint8_t uart_read(struct uart *uart, uint64_t offset)
{
	switch (offset) {
	case UART_DATA:
		return is_latch(uart) ? uart->divisor[0] : pop(uart);
	case UART_INTERRUPT_ENABLE:
		return is_latch(uart) ? uart->divisor[1]
				      : uart->interrupt_enable;
	case UART_INTERRUPT_ID:
		return read_interrupt_id(uart);
	case UART_LINE_CONTROL:
		return uart->line_control;
	case UART_MODEM_CONTROL:
		return uart->modem_control;
	case UART_LINE_STATUS:
		return LINE_STATUS_EMPTY |
		       (uart->head != uart->tail ? LINE_STATUS_RECEIVED : 0);
	case UART_MODEM_STATUS:
		return modem_status(uart);
	default:
		return uart->scratch;
	}
}

static void set_interrupt_enable(struct uart *uart, uint8_t value)
{
	/* Enabling it with an empty transmitter is a reason to interrupt. */
	if ((value & ~uart->interrupt_enable & ENABLE_SENT) != 0) {
		uart->sent = true;
	}
	uart->interrupt_enable = value & 0x0f;
}

static void uart_write(struct uart *uart, uint64_t offset, uint8_t value)
{
	switch (offset) {
	case UART_DATA:
		if (is_latch(uart)) {
			uart->divisor[0] = value;
		} else {
			/* The line falls while the byte is under way. */
			uart->sent = false;
			update_line(uart);
			transmit(uart, value);
		}
		break;
	case UART_INTERRUPT_ENABLE:
		if (is_latch(uart)) {
			uart->divisor[1] = value;
		} else {
			set_interrupt_enable(uart, value);
		}
		break;
	case UART_INTERRUPT_ID:
		uart->fifo_control = value;
		if ((value & FIFO_CLEAR_RECEIVED) != 0) {
			uart->tail = uart->head;
		}
		break;
	case UART_LINE_CONTROL:
		uart->line_control = value;
		break;
	case UART_MODEM_CONTROL:
		uart->modem_control = value & 0x1f;
		break;
	case UART_SCRATCH:
		uart->scratch = value;
		break;
	default: /* read-only registers */
		break;
	}
}

static int uart_access(void *ctx, struct gpas_device_access *access)
{
	struct uart *uart = ctx;

	pthread_mutex_lock(&uart->lock);
	if (access->write) {
		uart_write(uart, access->offset, (uint8_t)access->value);
	} else {
		access->value = uart_read(uart, access->offset);
	}
	update_line(uart);
	pthread_mutex_unlock(&uart->lock);
	return 0;
}

int uart_add(struct vm *vm, struct uart *uart)
{
	const struct gpas_device device = {
		.name = SERIAL_NAME,
		.widths = GPAS_WIDTH_1,
		.ctx = uart,
		.access = uart_access,
	};

	uart->vm = vm;
	pthread_mutex_init(&uart->lock, NULL);
	return gpas_add_device(vm->space, GPAS_ADDRESS_PORT, PC_SERIAL_PORT,
			       UART_REGISTERS, &device);
}
