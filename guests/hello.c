/* SPDX-License-Identifier: MIT */
/*
 * hello - prove that the guest runs and can be heard.
 *
 * Prints one line through the serial port's I/O ports and the rest through its
 * memory-mapped registers, then ends. code=N: the exit code, 0 if not given.
 */
#include "guest.h"

#define COM1 0x3f8

static void say_through_ports(const char *text)
{
	for (; *text != '\0'; text++) {
		while ((port_read8(COM1 + 5) & 0x20) == 0) {
		}
		port_write8(COM1, (uint8_t)*text);
	}
}

void guest_main(void)
{
	struct range free = largest_free_memory();
	uint64_t total = 0;

	say_through_ports("hello: this line came through I/O ports\n");
	for (unsigned i = 0; i < machine.memory_count; i++) {
		total += machine.memory[i].size;
	}
	enter_asked_mode();
	say("hello: and this one through memory-mapped registers, at CPL%u\n",
	    (uint64_t)privilege_level());
	say("hello: %u KiB of memory, the largest free stretch is %u KiB at "
	    "%x\n",
	    total / 1024, free.size / 1024, free.start);
	say("hello: bootargs \"%s\"\n", machine.bootargs);
	done((unsigned)arg_number("code", 0));
}
