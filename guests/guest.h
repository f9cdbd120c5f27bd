/* SPDX-License-Identifier: MIT */
/*
 * The small world a guest lives in: the device tree it was given, a serial
 * port to talk through and a doorbell to report its result with.
 *
 * Guests are compiled for integer registers only, because some hosts emulate
 * CPL0 code instruction by instruction. Every address is mapped to itself, so
 * a pointer is a guest-physical address.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096ull

struct range {
	uint64_t start;
	uint64_t size;
};

/* What the device tree says about the machine. */
struct machine {
	const void *fdt;
	const char *bootargs; /* "" when there are none */
	uint64_t granule;     /* bytes that become present at once; 0: eager */
	uint64_t serial;      /* GPA of the serial port's registers */
	uint64_t doorbell;    /* GPA of the doorbell's */
	struct range memory[8];
	unsigned memory_count;
	struct range reserved[32];
	unsigned reserved_count;
};

extern struct machine machine;
extern const char image_start[], image_end[];

/* What a guest defines; returning means done(0). */
void guest_main(void);

/* ---- The doorbell: 64-bit registers, and a byte-addressed scratch area. - */
enum {
	DOORBELL_SYNC = 0x00,	 /* w: a checkpoint; r: how many so far */
	DOORBELL_FAIL = 0x08,	 /* w: line of the failed check; ends the run */
	DOORBELL_DONE = 0x10,	 /* w: the guest's exit code; ends the run */
	DOORBELL_COUNT = 0x18,	 /* r: accesses to the scratch area so far */
	DOORBELL_WIDTH = 0x20,	 /* r: bytes of the last one */
	DOORBELL_START = 0x28,	 /* rw: a range of free memory, whole pages */
	DOORBELL_SIZE = 0x30,	 /* rw: its size in bytes */
	DOORBELL_MEMORY = 0x38,	 /* w: a command about the range; r: its result,
				  * 0 or a negative error */
	DOORBELL_SCRATCH = 0x100 /* 256 bytes that remember */
};

enum memory_command {
	MEMORY_GIVE = 1,  /* back to the host; reads as zero afterwards */
	MEMORY_TAKE = 2,  /* have it made present */
	MEMORY_OFFER = 3, /* the host may take it back at any time */
	MEMORY_SEAL = 4,  /* writing is a violation from now on ... */
	MEMORY_UNSEAL = 5 /* ... and no more */
};
#define NO_MEMORY (-12)

/* Returns 0 or a negative error. */
int64_t memory_command(uint64_t command, uint64_t start, uint64_t size);
void sync(uint64_t value);
_Noreturn void fail(unsigned line);
_Noreturn void done(unsigned code);

/* Ends the run as failed, with this line, unless the condition holds. */
#define check(condition) ((condition) ? (void)0 : fail(__LINE__))

/* ---- Talking ------------------------------------------------------------- */

/* Print: %s a string, %u and %x a uint64_t, %c a character, %% itself. */
void say(const char *format, ...);

/* ---- What the guest was told --------------------------------------------- */

/* The bootargs are words "name=value". A number may be 0x hexadecimal. */
bool arg_is(const char *name, const char *value);
uint64_t arg_number(const char *name, uint64_t otherwise);

/* The largest stretch of memory that nothing else occupies. */
struct range largest_free_memory(void);

/* ---- The device tree (devicetree specification, chapter 5) --------------- */

enum fdt_token {
	FDT_BEGIN_NODE = 1,
	FDT_END_NODE = 2,
	FDT_PROP = 3,
	FDT_NOP = 4,
	FDT_END = 9,
};

/* A place in the tree; start with fdt_open and advance with fdt_next. */
struct fdt_cursor {
	const uint8_t *at;
	const char *strings;
	unsigned depth;	     /* of the node we are in; the root is 1 */
	const char *name;    /* of the node or property at the cursor */
	const uint8_t *data; /* the property's value */
	uint32_t length;
};

bool fdt_open(const void *fdt, struct fdt_cursor *cursor);
enum fdt_token fdt_next(struct fdt_cursor *cursor);
uint32_t be32(const uint8_t *bytes);
uint64_t be64(const uint8_t *bytes);

/* ---- The processor ------------------------------------------------------- */

/* Go on at CPL3; there is no way back. */
void enter_user_mode(void);
unsigned privilege_level(void);
void port_write8(uint16_t port, uint8_t value);
uint8_t port_read8(uint16_t port);

/* As the bootargs ask: cpl=3 changes over, anything else stays at CPL0. */
void enter_asked_mode(void);

/* A linear congruential generator; the upper half of the state is random. */
static inline uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 32;
}

/* Exactly one access of the type's width. */
#define LOAD(type, address)	    (*(const volatile type *)(address))
#define STORE(type, address, value) (*(volatile type *)(address) = (value))

/* ---- Strings ------------------------------------------------------------- */
void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);
bool same(const char *a, const char *b);
bool starts_with(const char *text, const char *prefix);

#endif
