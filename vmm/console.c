/* SPDX-License-Identifier: MIT */
/*
 * What is typed goes to the guest: a thread reads stdin and hands it to the
 * serial port. A terminal is put into raw mode meanwhile, so that the guest has
 * every key; Ctrl-A x ends the run, Ctrl-A m plugs the memory module in or asks
 * for it, Ctrl-A Ctrl-A is one Ctrl-A.
 *
 * The terminal gets its mode back when the run ends, and also when a signal
 * ends the process: that needs the one mutable object of this file that is not
 * part of the machine.
 */
#include "pc.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x01 /* Ctrl-A */

static struct termios saved;
static volatile sig_atomic_t is_raw;

static void restore(void)
{
	if (is_raw) {
		is_raw = 0;
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	}
}

/* Ways to die that nothing else takes care of. */
static const int deadly[] = {
	SIGHUP, SIGQUIT, SIGABRT, SIGSEGV, SIGBUS,  SIGFPE,
	SIGILL, SIGPIPE, SIGALRM, SIGUSR2, SIGTRAP, SIGSYS,
	SIGIO,	SIGPWR,	 SIGXCPU, SIGXFSZ, SIGPROF, SIGVTALRM,
};

static void on_deadly(int signal)
{
	restore(); /* tcsetattr() is async-signal-safe */
	raise(signal);
}

static void go_raw(void)
{
	struct sigaction action = { .sa_handler = on_deadly,
				    .sa_flags = (int)SA_RESETHAND };
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &saved) != 0) {
		return; /* no terminal */
	}
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++) {
		sigaction(deadly[i], &action, NULL);
	}
	raw = saved;
	cfmakeraw(&raw);
	raw.c_oflag |= OPOST; /* stderr's lines still begin at the left */
	is_raw = 1;
	atexit(restore);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void toggle_module(struct vm *vm)
{
	int error = module_request(vm, !module_plugged(vm));

	if (error != 0) {
		tell("module: %s", error == -ENODEV ? "there is none; see "
						      "--module"
						    : strerror(-error));
	}
}

/* Take escapes out of what was typed and obey them; returns the bytes that
 * remain, or -1 when the run is to end. */
static ssize_t filter(struct vm *vm, uint8_t *bytes, ssize_t size,
		      bool *escaped)
{
	ssize_t kept = 0;

	for (ssize_t i = 0; i < size; i++) {
		uint8_t byte = bytes[i];

		if (*escaped && (byte == 'x' || byte == 'X')) {
			return -1;
		}
		if (*escaped && (byte == 'm' || byte == 'M')) {
			*escaped = false;
			toggle_module(vm);
			continue;
		}
		if (byte == ESCAPE && !*escaped) {
			*escaped = true;
			continue;
		}
		*escaped = false;
		bytes[kept++] = byte;
	}
	return kept;
}

/* False when the run ends before the guest has taken everything. */
static bool deliver(struct vm *vm, const uint8_t *bytes, size_t size)
{
	struct pollfd stop = { .fd = vm->pc->input_stop, .events = POLLIN };
	size_t done = uart_receive(&vm->pc->uart, bytes, size);

	while (done < size) {
		/* The guest is slower than the typist, or does not listen yet;
		 * look again soon. */
		if (poll(&stop, 1, 10) > 0) {
			return false;
		}
		done += uart_receive(&vm->pc->uart, bytes + done, size - done);
	}
	return true;
}

static void *input_main(void *arg)
{
	struct vm *vm = arg;
	struct pollfd fds[2] = {
		{ .fd = vm->pc->input_stop, .events = POLLIN },
		{ .fd = STDIN_FILENO, .events = POLLIN },
	};
	bool escaped = false;

	for (;;) {
		uint8_t bytes[256];
		ssize_t size;

		if (poll(fds, 2, -1) < 0 && errno != EINTR) {
			return NULL;
		}
		if (fds[0].revents != 0) {
			return NULL;
		}
		if (fds[1].revents == 0) {
			continue;
		}
		size = read(STDIN_FILENO, bytes, sizeof(bytes));
		if (size == 0 || (size < 0 && errno != EINTR)) {
			return NULL; /* nobody will type any more */
		}
		if (size > 0 && is_raw) {
			size = filter(vm, bytes, size, &escaped);
			if (size < 0) {
				tell("stopped from the keyboard");
				vm_stop(vm, STATUS_SIGNAL + SIGINT);
				return NULL;
			}
		}
		if (size > 0 && !deliver(vm, bytes, (size_t)size)) {
			return NULL;
		}
	}
}

int console_start(struct vm *vm)
{
	struct pc *pc = vm->pc;
	int error;

	pc->input_stop = eventfd(0, EFD_CLOEXEC);
	if (pc->input_stop < 0) {
		return -errno;
	}
	/* A background job that changes the terminal's mode would be stopped.
	 */
	if (isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == getpgrp()) {
		go_raw();
	}
	error = -pthread_create(&pc->input, NULL, input_main, vm);
	pc->input_started = error == 0;
	return error;
}

void console_stop(struct vm *vm)
{
	struct pc *pc = vm->pc;
	const uint64_t one = 1;

	if (pc->input_started) {
		if (write(pc->input_stop, &one, sizeof(one)) < 0) {
			tell("eventfd: %s", strerror(errno));
		}
		pthread_join(pc->input, NULL);
		pc->input_started = false;
	}
	if (pc->input_stop >= 0) {
		close(pc->input_stop);
		pc->input_stop = -1;
	}
	restore();
}
