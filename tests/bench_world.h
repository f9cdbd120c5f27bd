/* SPDX-License-Identifier: MIT */
/*
 * What readers are measured on: a space and a table written by hand that map
 * the same, and loops over pseudo-random addresses in them.
 */
#ifndef GPAS_TESTS_BENCH_WORLD_H
#define GPAS_TESTS_BENCH_WORLD_H

#include "bench.h"
#include "bench_floor.h"

#define WORLD_PIECES 1024
/* Regions of one page that world_map_pages() makes lie two pages apart. */
#define WORLD_REGION_SHIFT 13

struct world {
	struct gpas *space;
	struct gpas_view *view;
	struct floor floor;
	char *host;
	uint64_t seed;
	uint64_t offset;  /* of the GPAs that are used */
	uint64_t mask;	  /* of what is added to it */
	uint64_t regions; /* not 0: their first bytes are used instead */
	bool dependent;	  /* the next address depends on the last answer */
	size_t block;	  /* bytes an access has */
	unsigned iterations;
	char *buffer; /* 1 MiB */
};

void world_open(struct world *world, uint64_t seed);
void world_close(struct world *world);

/* 1 GiB of committed memory in leaves of 4 KiB, as one region or with the first
 * 16 MiB as WORLD_PIECES regions. */
void world_map(struct bench *bench, struct world *world, bool in_pieces);

/* @count regions of one page, all of them the page at @host. */
void world_map_pages(struct world *world, unsigned count, char *host);

/* world->iterations steps; what comes back is only to keep the work alive. */
typedef uint64_t world_loop(struct world *world);

/* Nanoseconds a step. */
double world_time(struct world *world, world_loop *run);

/* In the floor's table, or in memory without any. */
world_loop loop_walk_bare, loop_load_bare, loop_store_bare;
world_loop loop_copy_out, loop_copy_in;
/* By the plain calls. */
world_loop loop_translate, loop_translate_all, loop_load, loop_store;
world_loop loop_read_blocks, loop_write_blocks;
/* By the view. */
world_loop loop_translate_view, loop_load_view, loop_store_view;
world_loop loop_read_view, loop_write_view;

#endif
