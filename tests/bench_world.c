/* SPDX-License-Identifier: MIT */
#include "bench_world.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE GPAS_PAGE_BYTES

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* The next of a pseudo-random sequence of GPAs. */
static inline uint64_t next_gpa(const struct world *world, uint64_t *x)
{
	*x = *x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	if (world->regions != 0) {
		return (*x >> 32) * world->regions >> 32 << WORLD_REGION_SHIFT;
	}
	return world->offset + (*x >> 24 & world->mask);
}

/* Makes the next address wait for @answer, without changing it. */
static inline void depend(const struct world *world, uint64_t *x,
			  uint64_t answer)
{
	if (world->dependent) {
		__asm__("and $0, %0" : "+r"(answer));
		*x ^= answer;
	}
}

/* ---- Loops --------------------------------------------------------------- */

uint64_t loop_walk_bare(struct world *world)
{
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		uint64_t host = floor_walk(&world->floor, next_gpa(world, &x));

		sum += host;
		depend(world, &x, host);
	}
	return sum;
}

uint64_t loop_translate(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_translate(world->space, at(next_gpa(world, &x)),
				     GPAS_PROT_READ, 1, &found);
		sum += (uintptr_t)found.host;
		depend(world, &x, (uintptr_t)found.host);
	}
	return sum;
}

uint64_t loop_translate_all(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_translate(world->space, at(next_gpa(world, &x)),
				     GPAS_PROT_READ, UINT64_MAX, &found);
		sum += found.size;
	}
	return sum;
}

uint64_t loop_translate_view(struct world *world)
{
	struct gpas_translation found = { 0 };
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_translate(world->view, at(next_gpa(world, &x)),
					  GPAS_PROT_READ, 1, &found);
		sum += (uintptr_t)found.host;
		depend(world, &x, (uintptr_t)found.host);
	}
	return sum;
}

static uint64_t *bare_word(struct world *world, uint64_t *x)
{
	return (uint64_t *)(uintptr_t)floor_walk(&world->floor,
						 next_gpa(world, x));
}

uint64_t loop_load_bare(struct world *world)
{
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		sum += __atomic_load_n(bare_word(world, &x), __ATOMIC_ACQUIRE);
	}
	return sum;
}

uint64_t loop_store_bare(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		__atomic_store_n(bare_word(world, &x), x, __ATOMIC_RELEASE);
	}
	return x;
}

uint64_t loop_load(struct world *world)
{
	uint64_t value = 0;
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_load(world->space, at(next_gpa(world, &x)), 8,
				&value);
		sum += value;
	}
	return sum;
}

uint64_t loop_load_view(struct world *world)
{
	uint64_t value = 0;
	uint64_t x = world->seed;
	uint64_t sum = 0;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_load(world->view, at(next_gpa(world, &x)), 8,
				     &value);
		sum += value;
	}
	return sum;
}

uint64_t loop_store(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_store(world->space, at(next_gpa(world, &x)), 8, x);
	}
	return x;
}

uint64_t loop_store_view(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_store(world->view, at(next_gpa(world, &x)), 8,
				      x);
	}
	return x;
}

uint64_t loop_copy_out(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		memcpy(world->buffer, world->host + next_gpa(world, &x),
		       world->block);
		__asm__ volatile("" ::"r"(world->buffer) : "memory");
	}
	return x;
}

uint64_t loop_copy_in(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		memcpy(world->host + next_gpa(world, &x), world->buffer,
		       world->block);
		__asm__ volatile("" ::"r"(world->host) : "memory");
	}
	return x;
}

uint64_t loop_read_blocks(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_read(world->space, at(next_gpa(world, &x)),
				world->buffer, world->block, NULL);
	}
	return x;
}

uint64_t loop_write_blocks(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_write(world->space, at(next_gpa(world, &x)),
				 world->buffer, world->block, NULL);
	}
	return x;
}

uint64_t loop_read_view(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_read(world->view, at(next_gpa(world, &x)),
				     world->buffer, world->block, NULL);
	}
	return x;
}

uint64_t loop_write_view(struct world *world)
{
	uint64_t x = world->seed;

	for (unsigned i = 0; i < world->iterations; i++) {
		(void)gpas_view_write(world->view, at(next_gpa(world, &x)),
				      world->buffer, world->block, NULL);
	}
	return x;
}

/* ---- Worlds -------------------------------------------------------------- */

double world_time(struct world *world, world_loop *run)
{
	static volatile uint64_t sink;
	double begun;

	/* Nothing that was touched the last time is to be touched again. */
	world->seed = world->seed * UINT64_C(2862933555777941757) + 3037000493;
	begun = bench_now();
	sink = run(world);
	(void)sink;
	return (bench_now() - begun) / world->iterations;
}

void world_open(struct world *world, uint64_t seed)
{
	*world = (struct world){ .seed = seed, .space = bench_space() };
	bench_must(gpas_view_open(world->space, &world->view), "a view");
	bench_must(floor_open(&world->floor, 1024), "the floor's tables");
	floor_clear(&world->floor);
	world->buffer = aligned_alloc(PAGE, MIB);
	bench_must(world->buffer == NULL ? -ENOMEM : 0, "memory");
	memset(world->buffer, 1, MIB);
}

void world_close(struct world *world)
{
	gpas_view_close(world->view);
	gpas_destroy(world->space);
	floor_close(&world->floor);
	free(world->buffer);
}

/* One page off every larger leaf. */
static char *committed(struct bench *bench)
{
	if (bench->committed == NULL) {
		char *host = bench_reserve(2 * GIB);

		bench_must(mprotect(host, 2 * GIB, PROT_READ | PROT_WRITE) != 0
				   ? -errno
				   : 0,
			   "memory");
		(void)madvise(host, 2 * GIB, MADV_NOHUGEPAGE);
		bench->committed = host + PAGE;
		for (uint64_t i = 0; i < GIB; i += PAGE) {
			bench->committed[i] = 1;
		}
	}
	return bench->committed;
}

void world_map(struct bench *bench, struct world *world, bool in_pieces)
{
	uint64_t size = in_pieces ? 16 * KIB : GIB;

	world->host = committed(bench);
	for (uint64_t gpa = 0; gpa < GIB; gpa += size) {
		if (gpa == WORLD_PIECES * 16 * KIB) {
			size = GIB - gpa;
		}
		bench_must(gpas_map_linear(world->space, at(gpa), size,
					   world->host + gpa, GPAS_PROT_RW,
					   NULL),
			   "map");
	}
	floor_map(&world->floor, 0, GIB, (uintptr_t)world->host, 12);
}

void world_map_pages(struct world *world, unsigned count, char *host)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t gpa = i << WORLD_REGION_SHIFT;

		bench_must(gpas_map_linear(world->space, at(gpa), PAGE, host,
					   GPAS_PROT_RW, NULL),
			   "map");
		floor_map(&world->floor, gpa, PAGE, (uintptr_t)host, 12);
	}
	world->regions = count;
}
