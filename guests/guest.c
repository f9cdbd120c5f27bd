/* SPDX-License-Identifier: MIT */
/* What guests share: start-up, doorbell, printing, bootargs, free memory. */
#include "guest.h"

struct machine machine;

/* ---- Doorbell ------------------------------------------------------------ */

void sync(uint64_t value)
{
	STORE(uint64_t, machine.doorbell + DOORBELL_SYNC, value);
}

int64_t memory_command(uint64_t command, uint64_t start, uint64_t size)
{
	STORE(uint64_t, machine.doorbell + DOORBELL_START, start);
	STORE(uint64_t, machine.doorbell + DOORBELL_SIZE, size);
	STORE(uint64_t, machine.doorbell + DOORBELL_MEMORY, command);
	return LOAD(int64_t, machine.doorbell + DOORBELL_MEMORY);
}

_Noreturn void fail(unsigned line)
{
	for (;;) {
		STORE(uint64_t, machine.doorbell + DOORBELL_FAIL, line);
	}
}

_Noreturn void done(unsigned code)
{
	for (;;) {
		STORE(uint64_t, machine.doorbell + DOORBELL_DONE, code);
	}
}

/* ---- Strings ------------------------------------------------------------- */

void *memset(void *to, int byte, size_t size)
{
	void *at = to;

	__asm__ volatile("rep stosb"
			 : "+D"(at), "+c"(size)
			 : "a"(byte)
			 : "memory");
	return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
	void *at = to;

	__asm__ volatile("rep movsb"
			 : "+D"(at), "+S"(from), "+c"(size)
			 :
			 : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const uint8_t *left = a, *right = b;

	for (size_t i = 0; i < size; i++) {
		if (left[i] != right[i]) {
			return left[i] < right[i] ? -1 : 1;
		}
	}
	return 0;
}

bool starts_with(const char *text, const char *prefix)
{
	while (*prefix != '\0') {
		if (*text++ != *prefix++) {
			return false;
		}
	}
	return true;
}

bool same(const char *a, const char *b)
{
	return starts_with(a, b) && starts_with(b, a);
}

/* ---- Printing ------------------------------------------------------------ */

static void put(char c)
{
	/* Offset 0 is the transmit register; the VMM's port is always ready. */
	STORE(uint8_t, machine.serial, (uint8_t)c);
}

static void put_string(const char *text)
{
	while (*text != '\0') {
		put(*text++);
	}
}

static void put_number(uint64_t value, unsigned base)
{
	char digits[20];
	unsigned count = 0;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value != 0);
	while (count > 0) {
		put(digits[--count]);
	}
}

static void put_argument(char kind, va_list *args)
{
	switch (kind) {
	case 's':
		put_string(va_arg(*args, const char *));
		break;
	case 'u':
		put_number(va_arg(*args, uint64_t), 10);
		break;
	case 'x':
		put_string("0x");
		put_number(va_arg(*args, uint64_t), 16);
		break;
	case 'c':
		put((char)va_arg(*args, int));
		break;
	default:
		put(kind);
		break;
	}
}

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	for (; *format != '\0'; format++) {
		if (*format == '%' && format[1] != '\0') {
			put_argument(*++format, &args);
		} else {
			put(*format);
		}
	}
	va_end(args);
}

/* ---- Bootargs ------------------------------------------------------------ */

/* The value after "name=", ending at a space or the end; NULL if not there. */
static const char *arg_find(const char *name)
{
	const char *word = machine.bootargs;
	size_t length = 0;

	while (name[length] != '\0') {
		length++;
	}
	while (*word != '\0') {
		if (starts_with(word, name) && word[length] == '=') {
			return word + length + 1;
		}
		while (*word != '\0' && *word != ' ') {
			word++;
		}
		while (*word == ' ') {
			word++;
		}
	}
	return NULL;
}

bool arg_is(const char *name, const char *value)
{
	const char *given = arg_find(name);

	if (given == NULL || !starts_with(given, value)) {
		return false;
	}
	while (*value != '\0') {
		value++;
		given++;
	}
	return *given == '\0' || *given == ' ';
}

/* The value of a digit in any base up to 16; 16 when it is none. */
static unsigned digit_of(char c)
{
	if (c >= '0' && c <= '9') {
		return (unsigned)(c - '0');
	}
	if (c >= 'a' && c <= 'f') {
		return (unsigned)(c - 'a') + 10;
	}
	return 16;
}

uint64_t arg_number(const char *name, uint64_t otherwise)
{
	const char *given = arg_find(name);
	unsigned base = 10;
	uint64_t value = 0;

	if (given == NULL) {
		return otherwise;
	}
	if (starts_with(given, "0x")) {
		base = 16;
		given += 2;
	}
	for (; digit_of(*given) < base; given++) {
		value = value * base + digit_of(*given);
	}
	return value;
}

/* ---- The machine --------------------------------------------------------- */

static void add_ranges(const struct fdt_cursor *reg, struct range *ranges,
		       unsigned *count, unsigned max)
{
	for (uint32_t i = 0; i + 16 <= reg->length && *count < max; i += 16) {
		ranges[*count].start = be64(reg->data + i);
		ranges[*count].size = be64(reg->data + i + 8);
		(*count)++;
	}
}

/* Take note of one property of a node at depth 2 or 3. */
static void learn_property(const struct fdt_cursor *at, const char *node,
			   const char *parent)
{
	bool is_reg = same(at->name, "reg") && at->length >= 16;

	if (same(parent, "reserved-memory") && is_reg) {
		add_ranges(at, machine.reserved, &machine.reserved_count, 32);
	} else if (starts_with(node, "memory@") && is_reg) {
		add_ranges(at, machine.memory, &machine.memory_count, 8);
	} else if (same(node, "chosen") && same(at->name, "bootargs")) {
		machine.bootargs = (const char *)at->data;
	} else if (same(node, "chosen") && same(at->name, "gpas,granule") &&
		   at->length == 8) {
		machine.granule = be64(at->data);
	} else if (starts_with(node, "serial@") && is_reg) {
		machine.serial = be64(at->data);
	} else if (starts_with(node, "doorbell@") && is_reg) {
		machine.doorbell = be64(at->data);
	}
}

static bool learn_machine(const void *fdt)
{
	struct fdt_cursor cursor;
	const char *names[4] = { "", "", "", "" };
	enum fdt_token token;

	if (!fdt_open(fdt, &cursor)) {
		return false;
	}
	machine.fdt = fdt;
	machine.bootargs = "";
	while ((token = fdt_next(&cursor)) != FDT_END) {
		if (cursor.depth < 2 || cursor.depth > 3) {
			continue;
		}
		if (token == FDT_BEGIN_NODE) {
			names[cursor.depth] = cursor.name;
		} else if (token == FDT_PROP) {
			learn_property(&cursor, names[cursor.depth],
				       cursor.depth == 3 ? names[2] : "");
		}
	}
	return machine.serial != 0 && machine.doorbell != 0;
}

/* Where the free stretch that begins at @start ends, within @memory. */
static uint64_t free_end(uint64_t start, const struct range *memory)
{
	uint64_t end = memory->start + memory->size;

	for (unsigned i = 0; i < machine.reserved_count; i++) {
		const struct range *used = &machine.reserved[i];

		if (start < used->start + used->size && used->start < end) {
			end = used->start > start ? used->start : start;
		}
	}
	return end;
}

static void consider(uint64_t start, const struct range *memory,
		     struct range *best)
{
	if (start >= memory->start && start < memory->start + memory->size &&
	    free_end(start, memory) - start > best->size) {
		best->start = start;
		best->size = free_end(start, memory) - start;
	}
}

struct range largest_free_memory(void)
{
	struct range best = { 0, 0 };

	for (unsigned i = 0; i < machine.memory_count; i++) {
		const struct range *memory = &machine.memory[i];

		consider(memory->start, memory, &best);
		for (unsigned j = 0; j < machine.reserved_count; j++) {
			const struct range *used = &machine.reserved[j];

			consider(used->start + used->size, memory, &best);
		}
	}
	return best;
}

/* ---- The processor ------------------------------------------------------- */

unsigned privilege_level(void)
{
	uint32_t selector;

	__asm__("mov %%cs, %0" : "=r"(selector));
	return selector & 3;
}

void port_write8(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

uint8_t port_read8(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

void enter_asked_mode(void)
{
	if (arg_number("cpl", 0) == 3) {
		enter_user_mode();
	}
}

void guest_start(const void *fdt);

void guest_start(const void *fdt)
{
	if (!learn_machine(fdt)) {
		__builtin_trap();
	}
	guest_main();
	done(0);
}
