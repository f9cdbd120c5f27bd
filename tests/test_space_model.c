/* SPDX-License-Identifier: MIT */
/*
 * Random operations on a space, compared after each with a flat array that has
 * one entry a page (or, to see leaves of 1 GiB, one entry 2 MiB): regions,
 * extents, leaves, permissions, content, and every call's result.
 *
 * GPAS_SEED chooses the seed, GPAS_ROUNDS the operations for each format. On a
 * failure the seed and the last operations are printed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define UNITS	    4096
#define MAX_MAPS    512
#define TRACE_LINES 64
#define BACKEND_MAX 512

/* What one mapping call made. Content is the first word of each unit. */
struct mapping {
	bool used;
	enum gpas_region_kind kind;
	enum gpas_memtype memtype;
	bool lazy;
	uint64_t granule; /* units */
	uint64_t host;	  /* of its first unit; 0: a backend's, a device's */
	uint64_t units;
	struct gpas_memory *memory; /* the test's own, or NULL */
	struct ledger *ledger;	    /* a backend's, or NULL */
	uint64_t *values;
};

struct unit {
	uint16_t map; /* index of the mapping and 1; 0: nothing */
	uint8_t prot;
	bool present;
	uint32_t offset; /* units from the mapping's start */
};

struct model {
	struct gpas *space;
	struct fixture *fixture;
	uint64_t seed;
	uint64_t random;
	uint64_t base;
	uint64_t unit; /* bytes */
	bool grouped;
	struct unit units[UNITS];
	struct unit saved[UNITS]; /* when the group was opened */
	struct mapping maps[MAX_MAPS];
	char trace[TRACE_LINES][160];
	unsigned traced;
};

/* ---- telling what went wrong -------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void trace(struct model *m,
							const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(m->trace[m->traced++ % TRACE_LINES],
			sizeof(m->trace[0]), format, args);
	va_end(args);
}

__attribute__((noreturn)) static void give_up(struct model *m, const char *what,
					      int line)
{
	unsigned first = m->traced > TRACE_LINES ? m->traced - TRACE_LINES : 0;

	print_error("GPAS_SEED=%" PRIu64 ", %s, unit %#" PRIx64 "\n", m->seed,
		    gpas_format_name(gpas_format(m->space)), m->unit);
	for (unsigned i = first; i < m->traced; i++) {
		print_error("%5u %s\n", i, m->trace[i % TRACE_LINES]);
	}
	print_error("%s\n", what);
	_fail(__FILE__, line);
	abort();
}

#define EXPECT(m, condition)                              \
	do {                                              \
		if (!(condition)) {                       \
			give_up(m, #condition, __LINE__); \
		}                                         \
	} while (0)

/* ---- the array ---------------------------------------------------------- */

static uint64_t draw(struct model *m, uint64_t limit)
{
	return next_random(&m->random) % limit;
}

static gpas_gpa gpa_of(const struct model *m, uint64_t unit)
{
	return gpas_gpa_at(m->base + unit * m->unit);
}

static struct mapping *map_of(struct model *m, uint64_t unit)
{
	unsigned map = m->units[unit].map;

	return map != 0 ? &m->maps[map - 1] : NULL;
}

static bool same_region(const struct model *m, uint64_t left)
{
	const struct unit *a = &m->units[left];
	const struct unit *b = &m->units[left + 1];

	return a->map == b->map && a->prot == b->prot &&
	       a->offset + 1 == b->offset;
}

static uint64_t region_start(const struct model *m, uint64_t unit)
{
	while (unit > 0 && same_region(m, unit - 1)) {
		unit--;
	}
	return unit;
}

static uint64_t region_end(const struct model *m, uint64_t unit)
{
	while (unit + 1 < UNITS && same_region(m, unit)) {
		unit++;
	}
	return unit + 1;
}

static uint64_t host_of(struct model *m, uint64_t unit)
{
	const struct mapping *map = map_of(m, unit);
	uint64_t offset = m->units[unit].offset;

	if (map->ledger != NULL) {
		return gpas_hva_of(ledger_host(map->ledger, offset)).value;
	}
	return map->host + offset * m->unit;
}

static bool same_extent(struct model *m, uint64_t left)
{
	const struct unit *a = &m->units[left];
	const struct unit *b = &m->units[left + 1];

	return a->present && b->present && a->prot == b->prot &&
	       map_of(m, left)->memtype == map_of(m, left + 1)->memtype &&
	       host_of(m, left) + m->unit == host_of(m, left + 1);
}

static uint64_t extent_end(struct model *m, uint64_t unit)
{
	while (unit + 1 < UNITS && same_extent(m, unit)) {
		unit++;
	}
	return unit + 1;
}

/* What a unit holds before anyone wrote to it. */
static uint64_t first_value(const struct mapping *map, uint64_t offset)
{
	return map->ledger == NULL
		       ? 0
		       : UINT64_C(0x0101010101010101) * ledger_byte(offset);
}

static void reset_value(struct model *m, uint64_t unit)
{
	struct mapping *map = map_of(m, unit);
	uint64_t offset = m->units[unit].offset;

	map->values[offset] = first_value(map, offset);
}

/* ---- comparing ---------------------------------------------------------- */

static void compare_region(struct model *m, uint64_t unit,
			   const struct gpas_region *region)
{
	const struct mapping *map = map_of(m, unit);
	uint64_t end = region_end(m, unit);
	uint64_t present = 0;

	for (uint64_t i = unit; i < end; i++) {
		present += m->units[i].present ? m->unit : 0;
	}
	EXPECT(m, region->start.value == gpa_of(m, unit).value);
	EXPECT(m, region->size == (end - unit) * m->unit);
	EXPECT(m, region->prot == m->units[unit].prot);
	EXPECT(m, region->kind == map->kind);
	EXPECT(m, region->lazy == map->lazy);
	EXPECT(m, region->memtype == map->memtype);
	EXPECT(m, region->present == present);
	EXPECT(m, map->host == 0 ||
			  gpas_hva_of(region->host).value == host_of(m, unit));
}

/* Returns the number of regions. */
static uint64_t compare_regions(struct model *m)
{
	struct gpas_region region;
	uint64_t count = 0;
	uint64_t unit = 0;

	while (unit < UNITS) {
		if (m->units[unit].map == 0) {
			unit++;
			continue;
		}
		EXPECT(m, gpas_region_find(m->space, gpa_of(m, unit),
					   &region) == 0);
		compare_region(m, unit, &region);
		unit = region_end(m, unit);
		count++;
	}
	return count;
}

/* Counts the leaves that [start, end) of one region needs at least. */
static void count_leaves(struct model *m, uint64_t start, uint64_t end,
			 uint64_t leaves[3])
{
	uint64_t gpa = gpa_of(m, start).value;
	uint64_t last = gpa + (end - start) * m->unit;
	uint64_t offset = host_of(m, start) - gpa;

	while (gpa < last) {
		unsigned level = 2;

		while (level > 0 &&
		       ((gpa | offset) % (PAGE << 9 * level) != 0 ||
			last - gpa < PAGE << 9 * level)) {
			level--;
		}
		leaves[level]++;
		gpa += PAGE << 9 * level;
	}
}

static void compare_extents(struct model *m, uint64_t leaves[3])
{
	struct gpas_extent extent;
	uint64_t unit = 0;
	uint64_t end;

	while (unit < UNITS) {
		if (!m->units[unit].present) {
			unit++;
			continue;
		}
		end = extent_end(m, unit);
		EXPECT(m, gpas_extent_next(m->space, gpa_of(m, unit),
					   &extent) == 0);
		EXPECT(m, extent.start.value == gpa_of(m, unit).value);
		EXPECT(m, extent.size == (end - unit) * m->unit);
		EXPECT(m, extent.host.value == host_of(m, unit));
		EXPECT(m, extent.prot == m->units[unit].prot);
		EXPECT(m, extent.memtype == map_of(m, unit)->memtype);
		while (unit < end) {
			uint64_t stop = region_end(m, unit);

			stop = stop < end ? stop : end;
			count_leaves(m, unit, stop, leaves);
			unit = stop;
		}
	}
}

static void compare_content(struct model *m, uint64_t step)
{
	for (uint64_t unit = draw(m, step); unit < UNITS; unit += step) {
		const uint64_t *word;

		if (!m->units[unit].present) {
			continue;
		}
		word = gpas_hva_pointer(gpas_hva_at(host_of(m, unit)));
		EXPECT(m,
		       *word == map_of(m, unit)->values[m->units[unit].offset]);
	}
}

static void compare(struct model *m)
{
	struct gpas_stats stats;
	uint64_t leaves[3] = { 0 };
	uint64_t mapped = 0;
	uint64_t present = 0;

	for (uint64_t unit = 0; unit < UNITS; unit++) {
		const struct mapping *map = map_of(m, unit);

		mapped += map != NULL && map->kind != GPAS_REGION_DEVICE;
		present += m->units[unit].present;
	}
	EXPECT(m, gpas_check(m->space) == 0);
	gpas_stats(m->space, &stats);
	EXPECT(m, stats.regions == compare_regions(m));
	compare_extents(m, leaves);
	EXPECT(m, stats.mapped == mapped * m->unit);
	EXPECT(m, stats.present == present * m->unit);
	for (unsigned level = 0; level < 3; level++) {
		EXPECT(m, stats.leaves[level] == leaves[level]);
	}
	compare_content(m, m->traced % 32 == 0 ? 1 : 97);
}

/* ---- mappings ----------------------------------------------------------- */

static bool is_referenced(const struct model *m, unsigned map)
{
	for (uint64_t unit = 0; unit < UNITS; unit++) {
		if (m->units[unit].map == map ||
		    (m->grouped && m->saved[unit].map == map)) {
			return true;
		}
	}
	return false;
}

/* The space has let go of it: from here on a stale use crashes. */
static void map_free(struct model *m, struct mapping *map)
{
	if (map->ledger != NULL) {
		EXPECT(m, map->ledger->releases == 1);
		EXPECT(m, !ledger_is_held(map->ledger));
		EXPECT(m, !map->ledger->broken);
		ledger_close(map->ledger);
		free(map->ledger);
	}
	gpas_memory_put(map->memory);
	free(map->values);
	*map = (struct mapping){ 0 };
}

static void free_unused(struct model *m)
{
	for (unsigned i = 0; i < MAX_MAPS; i++) {
		if (m->maps[i].used && !is_referenced(m, i + 1)) {
			map_free(m, &m->maps[i]);
		}
	}
}

static unsigned find_unused(struct model *m)
{
	unsigned i = 0;

	while (i < MAX_MAPS && m->maps[i].used) {
		i++;
	}
	return i;
}

/* A range that is often small, often aligned, and now and then most of all. */
static void draw_range(struct model *m, uint64_t *start, uint64_t *end)
{
	static const uint64_t sizes[] = { 1, 2, 8, 64, 512, 1024, UNITS };
	uint64_t most = sizes[draw(m, ARRAY_COUNT(sizes))];

	*start = draw(m, UNITS);
	if (draw(m, 3) == 0) {
		*start -= *start % 512;
	}
	*end = *start + 1 + draw(m, most);
	if (draw(m, 3) == 0) {
		*end = (*end + 511) / 512 * 512;
	}
	*end = *end < UNITS ? *end : UNITS;
}

static unsigned draw_prot(struct model *m)
{
	static const unsigned prots[] = { GPAS_PROT_NONE, GPAS_PROT_READ,
					  GPAS_PROT_RW,	  GPAS_PROT_RW,
					  GPAS_PROT_RW,	  GPAS_PROT_RX,
					  GPAS_PROT_RWX };

	return prots[draw(m, ARRAY_COUNT(prots))];
}

static int ignore_access(void *ctx, struct gpas_device_access *access)
{
	(void)ctx;
	(void)access;
	return 0;
}

static int call_alloc(struct model *m, struct mapping *map, uint64_t start,
		      unsigned prot, const struct gpas_map_params *params)
{
	struct gpas_translation translation;
	struct gpas_region region;
	int err = gpas_map_alloc(m->space, gpa_of(m, start),
				 map->units * m->unit, prot, params);

	if (err == 0) {
		EXPECT(m, gpas_region_find(m->space, gpa_of(m, start),
					   &region) == 0);
		map->host = gpas_hva_of(region.host).value;
		EXPECT(m,
		       map->lazy || gpas_translate(m->space, gpa_of(m, start),
						   0, 1, &translation) == 0);
	}
	return err;
}

/* The caller's memory, often congruent to its place in the space. */
static void make_own(struct model *m, struct mapping *map, uint64_t start)
{
	uint64_t gpa = gpa_of(m, start).value;
	uint64_t skew = gpa % (m->unit == PAGE ? 2 * MIB : GIB);

	if (draw(m, 3) == 0) {
		skew = draw(m, 4) * m->unit;
	}
	EXPECT(m, gpas_memory_create(skew + map->units * m->unit, NULL,
				     &map->memory) == 0);
	map->host = gpas_hva_of(gpas_memory_host(map->memory)).value + skew;
}

static int call_own(struct model *m, struct mapping *map, uint64_t start,
		    unsigned prot, const struct gpas_map_params *params)
{
	uint64_t memory = gpas_hva_of(gpas_memory_host(map->memory)).value;

	if (map->kind == GPAS_REGION_LINEAR) {
		return gpas_map_linear(
			m->space, gpa_of(m, start), map->units * m->unit,
			gpas_hva_pointer(gpas_hva_at(map->host)), prot, params);
	}
	return gpas_map_memory(m->space, gpa_of(m, start), map->units * m->unit,
			       prot, map->memory, map->host - memory, params);
}

static int call_backend(struct model *m, struct mapping *map, uint64_t start,
			unsigned prot, const struct gpas_map_params *params)
{
	static const uint64_t pieces[] = { 1, 2, 8, 64, 512 };
	uint64_t piece = pieces[draw(m, ARRAY_COUNT(pieces))];
	struct gpas_backend backend;

	map->ledger = malloc(sizeof(*map->ledger));
	EXPECT(m, map->ledger != NULL);
	ledger_open(map->ledger, (map->units + piece - 1) / piece * piece,
		    piece);
	backend = ledger_backend(map->ledger);
	return gpas_map_backend(m->space, gpa_of(m, start),
				map->units * m->unit, prot, &backend, params);
}

static int call_map(struct model *m, struct mapping *map, uint64_t start,
		    unsigned prot)
{
	const struct gpas_device device = { .access = ignore_access };
	struct gpas_map_params params = {
		.memtype = map->memtype,
		.lazy = map->lazy,
		.granule = map->lazy ? map->granule * m->unit : 0,
	};

	switch (map->kind) {
	case GPAS_REGION_ALLOC:
		params.memory.kind =
			draw(m, 3) == 0 ? GPAS_MEMORY_MEMFD : GPAS_MEMORY_ANON;
		return call_alloc(m, map, start, prot, &params);
	case GPAS_REGION_BACKEND:
		return call_backend(m, map, start, prot, &params);
	case GPAS_REGION_DEVICE:
		return gpas_map_device(m->space, gpa_of(m, start),
				       map->units * m->unit, &device);
	case GPAS_REGION_LINEAR:
	case GPAS_REGION_MEMORY:
	default:
		make_own(m, map, start);
		return call_own(m, map, start, prot, &params);
	}
}

static struct mapping draw_mapping(struct model *m, uint64_t units)
{
	static const uint64_t granules[] = { 1, 4, 16, 512 };
	struct mapping map = {
		.used = true,
		.kind = (enum gpas_region_kind)draw(m, 5),
		.units = units,
		.granule = granules[draw(m, ARRAY_COUNT(granules))],
	};

	if (map.kind == GPAS_REGION_BACKEND &&
	    (m->unit != PAGE || units > BACKEND_MAX)) {
		map.kind = GPAS_REGION_ALLOC;
	}
	map.lazy = (map.kind == GPAS_REGION_ALLOC ||
		    map.kind == GPAS_REGION_BACKEND) &&
		   draw(m, 2) == 0;
	/* Every format knows these two. */
	map.memtype = map.kind == GPAS_REGION_DEVICE || draw(m, 8) == 0
			      ? GPAS_MEM_UNCACHED
			      : GPAS_MEM_WRITE_BACK;
	return map;
}

static void drop_attempt(struct mapping *map)
{
	if (map->ledger != NULL) {
		assert_int_equal(map->ledger->releases, 0);
		assert_false(ledger_is_held(map->ledger));
		ledger_close(map->ledger);
		free(map->ledger);
	}
	gpas_memory_put(map->memory);
	free(map->values);
}

/* ---- operations --------------------------------------------------------- */

/* Whether @err is what was expected, or a failure that was provoked. */
static void expect_result(struct model *m, int err, int expected,
			  unsigned failures)
{
	if (err == -ENOMEM && m->fixture->frames.failures != failures) {
		return;
	}
	if (err != expected) {
		print_error("result %d, expected %d\n", err, expected);
	}
	EXPECT(m, err == expected);
}

static void do_map(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	unsigned index = find_unused(m);
	unsigned prot = draw_prot(m);
	struct mapping map;
	int expected = 0;
	uint64_t start;
	uint64_t end;
	int err;

	draw_range(m, &start, &end);
	if (index == MAX_MAPS) {
		return;
	}
	map = draw_mapping(m, end - start);
	prot = map.kind == GPAS_REGION_DEVICE ? GPAS_PROT_RW : prot;
	for (uint64_t unit = start; unit < end; unit++) {
		expected = m->units[unit].map != 0 ? -EEXIST : expected;
	}
	trace(m,
	      "map kind %d lazy %d granule %" PRIu64 " prot %u [%" PRIu64
	      ", %" PRIu64 ")",
	      map.kind, map.lazy, map.granule, prot, start, end);
	map.values = calloc(map.units, sizeof(*map.values));
	err = call_map(m, &map, start, prot);
	expect_result(m, err, expected, failures);
	if (err != 0) {
		drop_attempt(&map);
		return;
	}
	m->maps[index] = map;
	for (uint64_t unit = start; unit < end; unit++) {
		m->units[unit] = (struct unit){
			.map = (uint16_t)(index + 1),
			.prot = (uint8_t)prot,
			.present = !map.lazy && map.kind != GPAS_REGION_DEVICE,
			.offset = (uint32_t)(unit - start),
		};
		reset_value(m, unit);
	}
}

static void do_unmap(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	uint64_t start;
	uint64_t end;
	int err;

	draw_range(m, &start, &end);
	trace(m, "unmap [%" PRIu64 ", %" PRIu64 ")", start, end);
	err = gpas_unmap(m->space, gpa_of(m, start), (end - start) * m->unit);
	if (m->grouped) {
		expect_result(m, err, 0, failures);
	} else {
		EXPECT(m, err == 0);
	}
	if (err == 0) {
		memset(&m->units[start], 0, (end - start) * sizeof(*m->units));
	}
}

/* -ENOENT for a hole or a device, else 0. */
static int covered(struct model *m, uint64_t start, uint64_t end)
{
	for (uint64_t unit = start; unit < end; unit++) {
		const struct mapping *map = map_of(m, unit);

		if (map == NULL || map->kind == GPAS_REGION_DEVICE) {
			return -ENOENT;
		}
	}
	return 0;
}

/* Half of the time a range of one region, so that calls succeed. */
static void draw_covered(struct model *m, uint64_t *start, uint64_t *end)
{
	uint64_t stop;

	draw_range(m, start, end);
	stop = region_end(m, *start);
	if (draw(m, 2) == 0 && *end > stop) {
		*end = stop;
	}
}

static void do_protect(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	unsigned prot = draw_prot(m);
	uint64_t start;
	uint64_t end;
	int err;

	draw_covered(m, &start, &end);
	trace(m, "protect %u [%" PRIu64 ", %" PRIu64 ")", prot, start, end);
	err = gpas_protect(m->space, gpa_of(m, start), (end - start) * m->unit,
			   prot);
	expect_result(m, err, covered(m, start, end), failures);
	for (uint64_t unit = start; err == 0 && unit < end; unit++) {
		m->units[unit].prot = (uint8_t)prot;
	}
}

static void do_populate(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	uint64_t start;
	uint64_t end;
	int err;

	draw_covered(m, &start, &end);
	trace(m, "populate [%" PRIu64 ", %" PRIu64 ")", start, end);
	err = gpas_populate(m->space, gpa_of(m, start),
			    (end - start) * m->unit);
	expect_result(m, err, covered(m, start, end), failures);
	for (uint64_t unit = start; err == 0 && unit < end; unit++) {
		m->units[unit].present = true;
	}
}

static int discardable(struct model *m, uint64_t start, uint64_t end)
{
	if (m->grouped) {
		return -EBUSY;
	}
	for (uint64_t unit = start; unit < end; unit++) {
		const struct mapping *map = map_of(m, unit);

		if (map == NULL) {
			return -ENOENT;
		}
		if (map->kind != GPAS_REGION_ALLOC &&
		    (map->kind != GPAS_REGION_BACKEND || !map->lazy)) {
			return -EOPNOTSUPP;
		}
	}
	return 0;
}

static void do_discard(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	uint64_t start;
	uint64_t end;
	int err;

	draw_covered(m, &start, &end);
	trace(m, "discard [%" PRIu64 ", %" PRIu64 ")", start, end);
	err = gpas_discard(m->space, gpa_of(m, start), (end - start) * m->unit);
	expect_result(m, err, discardable(m, start, end), failures);
	for (uint64_t unit = start; err == 0 && unit < end; unit++) {
		m->units[unit].present = !map_of(m, unit)->lazy;
		reset_value(m, unit);
	}
}

/* Makes the granule around a unit present, as a first touch does. */
static uint64_t touch(struct model *m, uint64_t unit)
{
	uint64_t granule = map_of(m, unit)->granule * m->unit;
	uint64_t gpa = gpa_of(m, unit).value;
	uint64_t low = gpa - gpa % granule;
	uint64_t start = region_start(m, unit);
	uint64_t end = region_end(m, unit);
	uint64_t from = unit;
	uint64_t to = unit;

	if (m->units[unit].present) {
		return 0;
	}
	while (from > start && !m->units[from - 1].present &&
	       gpa_of(m, from - 1).value >= low) {
		from--;
	}
	while (to < end && !m->units[to].present &&
	       gpa_of(m, to).value < low + granule) {
		m->units[to++].present = true;
	}
	for (uint64_t i = from; i < unit; i++) {
		m->units[i].present = true;
	}
	return (to - from) * m->unit;
}

static void do_fault(struct model *m)
{
	static const unsigned kinds[] = { 0, GPAS_PROT_READ, GPAS_PROT_WRITE,
					  GPAS_PROT_EXEC, GPAS_PROT_RWX };
	unsigned failures = m->fixture->frames.failures;
	unsigned access = kinds[draw(m, ARRAY_COUNT(kinds))];
	uint64_t unit = draw(m, UNITS);
	const struct mapping *map = map_of(m, unit);
	enum gpas_fault_kind expected = GPAS_FAULT_RESUME;
	struct gpas_fault fault;

	trace(m, "fault %" PRIu64 " access %u", unit, access);
	EXPECT(m, gpas_fault(m->space,
			     gpas_gpa_at(gpa_of(m, unit).value + draw(m, PAGE)),
			     access, &fault) == 0);
	if (map == NULL) {
		expected = GPAS_FAULT_UNMAPPED;
	} else if (map->kind == GPAS_REGION_DEVICE) {
		expected = GPAS_FAULT_DEVICE;
	} else if (m->units[unit].prot == 0 ||
		   (access & ~(unsigned)m->units[unit].prot) != 0) {
		expected = GPAS_FAULT_DENIED;
	} else if (fault.kind == GPAS_FAULT_FAILED) {
		EXPECT(m, fault.error == -ENOMEM &&
				  failures != m->fixture->frames.failures);
		return;
	}
	EXPECT(m, fault.kind == expected);
	if (expected == GPAS_FAULT_RESUME) {
		EXPECT(m, fault.populated == touch(m, unit));
	}
}

/* What an accessor returns that wants @access. */
static int access_error(struct model *m, uint64_t unit, unsigned access)
{
	const struct mapping *map = map_of(m, unit);

	if (map == NULL || map->kind == GPAS_REGION_DEVICE) {
		return -ENOENT;
	}
	return (access & ~(unsigned)m->units[unit].prot) != 0 ? -EACCES : 0;
}

/* An access reaches on to the end of its granule, past what is present; unless
 * that failed, when it makes do with what a fault would do. */
static void touch_ahead(struct model *m, uint64_t unit, unsigned failures)
{
	uint64_t granule = map_of(m, unit)->granule;
	uint64_t number = gpa_of(m, unit).value / m->unit;
	uint64_t stop = unit + granule - number % granule;
	uint64_t end = region_end(m, unit);

	if (touch(m, unit) == 0 || failures != m->fixture->frames.failures) {
		return;
	}
	for (stop = stop < end ? stop : end; unit < stop; unit++) {
		m->units[unit].present = true;
	}
}

static void do_load(struct model *m, uint64_t unit)
{
	unsigned failures = m->fixture->frames.failures;
	uint64_t value = 0;
	int err;

	trace(m, "load %" PRIu64, unit);
	err = gpas_load(m->space, gpa_of(m, unit), 8, &value);
	expect_result(m, err, access_error(m, unit, GPAS_PROT_READ), failures);
	if (err == 0) {
		touch_ahead(m, unit, failures);
		EXPECT(m,
		       value == map_of(m, unit)->values[m->units[unit].offset]);
	}
}

/* A store to what an abort would take away is nothing to rely on. */
static void do_access(struct model *m)
{
	unsigned failures = m->fixture->frames.failures;
	uint64_t value = next_random(&m->random);
	uint64_t unit = draw(m, UNITS);
	int err;

	if (draw(m, 2) == 0 ||
	    (m->grouped && (!m->saved[unit].present ||
			    m->saved[unit].map != m->units[unit].map ||
			    !m->units[unit].present))) {
		do_load(m, unit);
		return;
	}
	trace(m, "store %" PRIu64, unit);
	err = gpas_store(m->space, gpa_of(m, unit), 8, value);
	expect_result(m, err, access_error(m, unit, GPAS_PROT_WRITE), failures);
	if (err == 0) {
		touch_ahead(m, unit, failures);
		map_of(m, unit)->values[m->units[unit].offset] = value;
	}
}

static void do_translate(struct model *m)
{
	uint64_t unit = draw(m, UNITS);
	uint64_t within = draw(m, m->unit);
	uint64_t limit =
		draw(m, 2) == 0 ? UINT64_MAX : 1 + draw(m, 64 * m->unit);
	gpas_gpa gpa = gpas_gpa_at(gpa_of(m, unit).value + within);
	struct gpas_translation t;
	uint64_t size;
	int err = gpas_translate(m->space, gpa, 0, limit, &t);

	trace(m, "translate %" PRIu64 " + %#" PRIx64, unit, within);
	EXPECT(m, err == (m->units[unit].present ? 0 : -ENOENT));
	if (err != 0) {
		return;
	}
	size = (extent_end(m, unit) - unit) * m->unit - within;
	EXPECT(m, t.size == (size < limit ? size : limit));
	EXPECT(m, gpas_hva_of(t.host).value == host_of(m, unit) + within);
	EXPECT(m, t.prot == m->units[unit].prot);
}

static void do_begin(struct model *m)
{
	trace(m, "begin");
	EXPECT(m, gpas_begin(m->space) == 0);
	memcpy(m->saved, m->units, sizeof(m->units));
	m->grouped = true;
}

static void do_end(struct model *m)
{
	bool commit = draw(m, 2) == 0;

	trace(m, commit ? "commit" : "abort");
	if (commit) {
		EXPECT(m, gpas_commit(m->space) == 0);
	} else {
		EXPECT(m, gpas_abort(m->space) == 0);
		memcpy(m->units, m->saved, sizeof(m->units));
	}
	m->grouped = false;
}

static void do_something(struct model *m)
{
	uint64_t what = draw(m, 100);

	/* Runs of luck and runs without. */
	if (draw(m, 50) == 0) {
		m->fixture->frames.luck = draw(m, 2) == 0 ? 0 : 30;
	}
	if (what < 25) {
		do_map(m);
	} else if (what < 40) {
		do_unmap(m);
	} else if (what < 55) {
		do_protect(m);
	} else if (what < 62) {
		do_populate(m);
	} else if (what < 67) {
		do_discard(m);
	} else if (what < 77) {
		do_fault(m);
	} else if (what < 90) {
		do_access(m);
	} else if (what < 95) {
		do_translate(m);
	} else if (m->grouped) {
		do_end(m);
	} else {
		do_begin(m);
	}
	if (!m->grouped) {
		free_unused(m);
	}
	compare(m);
}

/* ---- runs --------------------------------------------------------------- */

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

static void run(void **state, enum gpas_format_id id, uint64_t unit)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t rounds =
		from_environment("GPAS_ROUNDS", SANITIZED ? 300 : 1500);
	struct gpas_params params = { .format = id };

	assert_non_null(m);
	m->seed = from_environment("GPAS_SEED", 20240607);
	m->random = m->seed * 2654435761u + (uint64_t)id + unit;
	m->unit = unit;
	/* Across a border of 1 GiB either way. */
	m->base = unit == PAGE ? GIB - 2048 * PAGE : 5 * GIB + 512 * unit;
	params.base = gpas_gpa_at(m->base);
	params.size = UNITS * unit;
	m->space = fixture_open(state, &params);
	m->fixture = *state;
	m->fixture->frames.random = &m->random;
	for (uint64_t round = 0; round < rounds; round++) {
		do_something(m);
	}
	m->fixture->frames.luck = 0;
	if (m->grouped) {
		do_end(m);
		compare(m);
	}
	trace(m, "clear");
	EXPECT(m, gpas_clear(m->space) == 0);
	memset(m->units, 0, sizeof(m->units));
	free_unused(m);
	compare(m);
	fixture_close(state);
	free(m);
}

static void pages_follow_the_model(void **state)
{
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		run(state, (enum gpas_format_id)id, PAGE);
	}
}

static void blocks_follow_the_model(void **state)
{
	for (unsigned id = 1; id < GPAS_FORMAT_COUNT; id++) {
		run(state, (enum gpas_format_id)id, 2 * MIB);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(pages_follow_the_model),
		fixture_test(blocks_follow_the_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
