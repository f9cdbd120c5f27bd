/* SPDX-License-Identifier: MIT */
/*
 * What a test gives the library to live on, with accounts kept: memory and
 * descriptors that can run out at a chosen call, table pages, a backend that
 * knows what it provided, and a fixture that proves that all of it came back.
 *
 * The calls are intercepted by the linker (--wrap), so a test's own allocations
 * go through here as well, while those of the C library do not.
 */
#ifndef GPAS_TESTS_FAIL_H
#define GPAS_TESTS_FAIL_H

#include <gpas/gpas.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE GPAS_PAGE_BYTES
#define KIB  (UINT64_C(1) << 10)
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)
#define TIB  (UINT64_C(1) << 40)

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
#define THREAD_SANITIZED 1
#else
#define THREAD_SANITIZED 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED THREAD_SANITIZED
#endif

/* ---- running out -------------------------------------------------------- */

/* The @nth call from now on that takes something from the host fails (1: the
 * next one), or every call. Calls of this thread only. */
void fail_nth(unsigned nth);
void fail_all(void);

/* Ends it. Returns how many calls failed. */
unsigned fail_stop(void);

/* Bytes of host address space mapped and not unmapped. */
uint64_t fail_mapped_bytes(void);

/* ---- table pages -------------------------------------------------------- */

struct frame_meter {
	long live;	   /* pages handed out and not taken back */
	bool exhausted;	   /* no page is to be had */
	unsigned luck;	   /* one call in so many fails at random; 0: none */
	uint64_t *random;  /* state of the generator for luck */
	unsigned failures; /* calls that failed for one of these two */
};

/* ctx is a struct frame_meter. Pages come with garbage in them, and are
 * overwritten when they are given back. */
extern const struct gpas_frame_ops metered_frames;

/* ---- a backend ---------------------------------------------------------- */

#define LEDGER_PAGES 2048

/*
 * A backend of @pages pages. Pieces of @piece pages lie in reverse order, so
 * that neighbouring pieces are never contiguous. Page i is filled with
 * ledger_byte(i) when it is provided and with 0xdd when it is retired.
 */
struct ledger {
	struct gpas_memory *memory;
	uint64_t pages;
	uint64_t piece;
	unsigned calls;	  /* of populate */
	unsigned fail_at; /* the call to fail, from 1 on; 0: none */
	int error;	  /* what it returns */
	unsigned retires;
	unsigned releases;
	/* A call named a range outside the mapping, or asked for what is held
	 */
	bool broken;
	bool held[LEDGER_PAGES]; /* provided, and not retired since */
	unsigned char provided[LEDGER_PAGES]; /* times */
	unsigned char retired[LEDGER_PAGES];
};

void ledger_open(struct ledger *ledger, uint64_t pages, uint64_t piece);
void ledger_close(struct ledger *ledger);
struct gpas_backend ledger_backend(struct ledger *ledger);
uint8_t ledger_byte(uint64_t page);
void *ledger_host(const struct ledger *ledger, uint64_t page);
/* Whether a page is held. */
bool ledger_is_held(const struct ledger *ledger);
/* Whether pages [from, to) were provided and retired that often each. */
bool ledger_pages_are(const struct ledger *ledger, uint64_t from, uint64_t to,
		      unsigned provided, unsigned retired);

/* ---- fixture ------------------------------------------------------------ */

struct fixture {
	struct gpas *space;
	struct frame_meter frames;
	unsigned log_lines;
	enum gpas_log_level log_level; /* of the last line */
	char log_line[256];
	uint64_t mapped;
	unsigned files;
	unsigned map_lines;
	bool threads; /* whose stacks the C library may keep mapped */
};

int fixture_setup(void **state);

/* Checks and destroys the space, then compares everything with how it was. */
int fixture_teardown(void **state);

/*
 * Opens the fixture's space, after checking and destroying one it has. Frames
 * are metered and lines logged are kept unless @params says otherwise.
 */
struct gpas *fixture_open(void **state, const struct gpas_params *params);

/* A space of @size bytes at 0 in the EPT format. */
struct gpas *fixture_space(void **state, uint64_t size);
void fixture_close(void **state);

#define fixture_test(function)                                   \
	cmocka_unit_test_setup_teardown(function, fixture_setup, \
					fixture_teardown)

/* ---- looking ------------------------------------------------------------ */

/* The regions, extents and gauges as text; to be freed. */
char *space_text(struct gpas *space);

/* Whether all @size bytes from @start on are @byte. */
bool is_all(const void *start, uint8_t byte, uint64_t size);

/* xorshift64*: never 0. */
uint64_t next_random(uint64_t *state);

#endif
