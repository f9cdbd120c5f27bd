/* SPDX-License-Identifier: MIT */
/*
 * fdt - find memory and the serial port in the device tree, as a guest would
 * that knows nothing else, and use both.
 *
 * memory=BYTES: what the memory must add up to.
 */
#include "guest.h"

/* Copy what /chosen/stdout-path says; it names the node to talk through. */
static bool find_stdout(char *path, size_t size)
{
	struct fdt_cursor at;
	bool chosen = false;
	enum fdt_token token;

	check(fdt_open(machine.fdt, &at));
	while ((token = fdt_next(&at)) != FDT_END) {
		if (token == FDT_BEGIN_NODE) {
			chosen = at.depth == 2 && same(at.name, "chosen");
		} else if (token == FDT_PROP && chosen && at.length <= size &&
			   same(at.name, "stdout-path")) {
			memcpy(path, at.data, at.length);
			return true;
		}
	}
	return false;
}

/* The first address in the reg of the node "/name"; it must say it is
 * compatible with @compatible. */
static uint64_t node_address(const char *name, const char *compatible)
{
	struct fdt_cursor at;
	bool here = false, fits = false;
	uint64_t address = 0;
	enum fdt_token token;

	check(fdt_open(machine.fdt, &at));
	while ((token = fdt_next(&at)) != FDT_END) {
		if (token == FDT_BEGIN_NODE) {
			here = at.depth == 2 && same(at.name, name);
		} else if (token == FDT_PROP && here) {
			if (same(at.name, "reg")) {
				address = be64(at.data);
			} else if (same(at.name, "compatible")) {
				fits = same((const char *)at.data, compatible);
			}
		}
	}
	check(fits);
	return address;
}

static void print_at(uint64_t serial, const char *text)
{
	for (; *text != '\0'; text++) {
		while ((LOAD(uint8_t, serial + 5) & 0x20) == 0) {
		}
		STORE(uint8_t, serial, (uint8_t)*text);
	}
}

static bool is_reserved(uint64_t address)
{
	for (unsigned i = 0; i < machine.reserved_count; i++) {
		const struct range *used = &machine.reserved[i];

		if (address - used->start < used->size) {
			return true;
		}
	}
	return false;
}

/* The first and the last page of a range work as memory. */
static void try_memory(const struct range *memory)
{
	uint64_t last = memory->start + memory->size - PAGE_BYTES;

	if (!is_reserved(memory->start)) {
		STORE(uint64_t, memory->start, 0xf1257);
		check(LOAD(uint64_t, memory->start) == 0xf1257);
	}
	if (!is_reserved(last)) {
		STORE(uint64_t, last, 0x1a57);
		check(LOAD(uint64_t, last) == 0x1a57);
	}
}

void guest_main(void)
{
	char path[32];
	uint64_t serial, total = 0;

	enter_asked_mode();
	check(find_stdout(path, sizeof(path)) && path[0] == '/');
	serial = node_address(path + 1, "ns16550a");
	check(serial == machine.serial);
	print_at(serial, "fdt: found the serial port\n");
	say("fdt: %s is at %x\n", path, serial);
	check(machine.memory_count > 0);
	for (unsigned i = 0; i < machine.memory_count; i++) {
		say("fdt: memory at %x, %u KiB\n", machine.memory[i].start,
		    machine.memory[i].size / 1024);
		try_memory(&machine.memory[i]);
		total += machine.memory[i].size;
	}
	check(total == arg_number("memory", total));
	check(is_reserved((uint64_t)image_start));
	check(is_reserved((uint64_t)machine.fdt));
	say("fdt: %u reserved ranges, mine among them\n",
	    (uint64_t)machine.reserved_count);
}
