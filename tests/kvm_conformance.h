/* SPDX-License-Identifier: MIT */
/*
 * The conformance test: a guest tries every kind of page, and a flat model
 * with one entry a page says what it should come upon.
 *
 * The model is written from what was asked for (the layout and the calls that
 * changed it) and from the documentation, never from the library's answers.
 * What KVM cannot do is stated where the model uses it; the list is in
 * docs/conformance.md.
 */
#ifndef GPAS_TESTS_KVM_CONFORMANCE_H
#define GPAS_TESTS_KVM_CONFORMANCE_H

#include "machine.h"

#include <pthread.h>

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)
#define GIB  (UINT64_C(1) << 30)

/* The arena: where layouts are drawn. */
#define ARENA_PAGES 16384u
#define ARENA_BYTES (ARENA_PAGES * PAGE)
#define BLOCK_PAGES 512u /* of 2 MiB */

#define MAX_REGIONS  64u
#define MAX_MAPPINGS 512u
#define MAX_CALLS    16u
#define TRACE_LINES  256u

/* The guest's own places, below the arena. */
#define LOW_BYTES    (256 * UINT64_C(1024))
#define BOOT_GPA     UINT64_C(0x10000)
#define CODE_GPA     UINT64_C(0x20000)
#define SPIN_GPA     UINT64_C(0x21000) /* struct spin_entry[] */
#define COUNTER_GPA  UINT64_C(0x22000)
#define TAIL_GPA     UINT64_C(0x30000) /* up to LOW_BYTES: not used */
#define DOORBELL_GPA UINT64_C(0x40000)

enum kind {
	KIND_LINEAR,
	KIND_ALLOC,
	KIND_OBJECT,
	KIND_BACKEND,
	KIND_DEVICE
};
#define KIND_COUNT 5

enum access {
	ACCESS_READ,
	ACCESS_WRITE,
	ACCESS_FETCH
};

/* What one map call made. */
struct mapping {
	struct conf *conf;
	enum kind kind;
	uint32_t first; /* page of offset 0 */
	uint32_t pages;
	bool lazy;
	uint64_t granule;
	uint8_t *host;	 /* of offset 0; NULL for devices */
	uint8_t *filled; /* backends: a flag a page */
	unsigned widths; /* devices */
};

/* One page of the arena. */
struct page {
	uint16_t mapping; /* 0: nothing is mapped */
	uint8_t prot;
	bool present; /* memory, and made present */
	bool stable;  /* a running guest uses it: calls leave it alone */
};

struct call {
	const struct mapping *mapping;
	struct gpas_device_access access;
};

/* An address that a running guest reads over and over. */
struct spin_entry {
	uint64_t gpa;
	uint64_t expected;
	uint64_t write_back; /* 1: the guest stores what it read */
	uint64_t unused;
};

struct figures {
	uint64_t layouts, rounds, probes, regions, operations, audits;
	uint64_t mmio, memory_faults, internal_errors;
	uint64_t denied, unmapped, device_calls, populated_pages;
	uint64_t executed_without_x; /* the documented difference */
	uint64_t spins, pauses;
};

struct conf {
	/* What to do. */
	uint64_t seed;
	bool trap;
	bool running;
	bool verbose;
	/* Whether a first touch comes as a memory fault where traps are used,
	 * at privilege levels 0 and 3. A KVM that emulates cannot tell a trap
	 * from a hole. */
	bool precise[2];

	uint64_t random;
	struct machine machine;
	struct gpas *space;
	struct gpas_vcpu vcpu;
	unsigned level; /* the vCPU's privilege level */
	enum gpas_format_id format;
	uint8_t *low;	       /* host memory of the guest's own places */
	uint64_t arena;	       /* GPA */
	uint8_t *linear_pool;  /* ARENA_BYTES, congruent to the arena */
	uint8_t *backend_pool; /* for backends */
	uint64_t backend_used;
	struct gpas_memory *object;

	struct page pages[ARENA_PAGES];
	struct mapping mappings[MAX_MAPPINGS]; /* [0] is not used */
	unsigned mapping_count;

	/* What devices saw. */
	bool rung;
	uint64_t rung_value;
	struct call calls[MAX_CALLS];
	unsigned call_count;

	/* The spinning guest. */
	pthread_t thread;
	bool spinning;
	int stop; /* atomic */
	struct spin_entry spin[32];
	unsigned spin_count;
	char spin_failure[160];

	struct figures figures;
	bool failed;
	char trace[TRACE_LINES][120];
	unsigned trace_count;
	char log[8][256];
	unsigned log_count;
};

/* ---- kvm_conformance.c --------------------------------------------------- */

uint64_t draw(struct conf *conf, uint64_t below);
static inline bool chance(struct conf *conf, unsigned percent)
{
	return draw(conf, 100) < percent;
}
__attribute__((format(printf, 2, 3))) void trace(struct conf *conf,
						 const char *format, ...);
/* Reports the first failure, with everything needed to look into it. */
__attribute__((format(printf, 2, 3))) void fail(struct conf *conf,
						const char *format, ...);

/* ---- kvm_conformance_layout.c: the model and the calls that change it ---- */

/* The page of @gpa, or NULL outside the arena. */
struct page *page_at(struct conf *conf, uint64_t gpa);
const struct mapping *mapping_of(const struct conf *conf,
				 const struct page *page);
/* Where the model has the byte at @gpa, which is in memory. */
uint8_t *host_of(struct conf *conf, uint64_t gpa);
/* The byte at @gpa of lazy memory that was never touched. */
uint8_t initial_byte(struct conf *conf, uint64_t gpa);
uint8_t device_byte(const struct mapping *mapping, uint64_t offset);
/* The 8 bytes of code that report @token: mov $token,%eax; mov %rax,(%rbx). */
uint64_t stub(uint32_t token);
/* A first touch of the page: its granule becomes present. */
void model_populate(struct conf *conf, struct page *page);

/* Draws and maps a layout. */
void draw_layout(struct conf *conf);
/* Some random calls; groups of them now and then. */
void change_layout(struct conf *conf);
/* Compares the library's answers with the model. */
void verify_layout(struct conf *conf);
/* Takes over what a running guest has made present meanwhile. */
void learn_presence(struct conf *conf);
void print_layout(const struct conf *conf);

/* ---- kvm_conformance_probe.c: accesses and their judgement --------------- */

void write_code(struct conf *conf);
int doorbell(void *ctx, struct gpas_device_access *access);
/* Tries all page runs and boundaries. At most @max runs, chosen at random. */
void probe_layout(struct conf *conf, unsigned max);
void audit_layout(struct conf *conf);

/* ---- kvm_conformance_spin.c: a guest that runs meanwhile ----------------- */

void spin_start(struct conf *conf);
void spin_stop(struct conf *conf);
void spin_pause(void *ctx);
void spin_resume(void *ctx);
/* Waits until the guest has come round once more. */
void spin_wait(struct conf *conf);

#endif
