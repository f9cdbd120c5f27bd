/* SPDX-License-Identifier: MIT */
/*
 * Nested page tables as software objects.
 *
 * A format describes how one architecture encodes second-stage translation:
 * number of levels, index widths, permission and memory-type bits. All formats
 * are data in one binary; a table is created for one of them. Entries are
 * encoded exactly as the hardware would read them, except that the "physical"
 * addresses they hold are host virtual addresses of this process, because that
 * is what a userspace VMM's second stage produces.
 *
 * Levels are numbered from the leaves: level 0 entries map 4 KiB, level 1
 * entries 2 MiB, level 2 entries 1 GiB.
 *
 * A table used through this header alone has no lock: its caller serialises
 * changes and excludes readers while changing. `struct gpas` (space.h) adds
 * regions, transactions and concurrency on top of it.
 */
#ifndef GPAS_PGTABLE_H
#define GPAS_PGTABLE_H

#include <gpas/addr.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The formats the library knows.
 *
 * EPT       Intel SDM volume 3C, chapter 29.3 (EPT), 48 or 57 bits of GPA.
 * NPT       AMD64 APM volume 2, chapter 15.25 and 5.3, 48 bits.
 * ARM64_S2  Arm ARM DDI 0487, chapter D8 (VMSAv8-64 stage 2), 4 KiB granule;
 *           _48 starts at the architecture's level 0, _40 at level 1 with two
 *           concatenated root tables.
 * SVxx_X4   RISC-V privileged architecture, "hgatp" G-stage translation, with
 *           a root of four pages.
 */
enum gpas_format_id {
	GPAS_FORMAT_HOST = 0, /* what this host's processor would use */
	GPAS_FORMAT_EPT_4,
	GPAS_FORMAT_EPT_5,
	GPAS_FORMAT_NPT_4,
	GPAS_FORMAT_ARM64_S2_48,
	GPAS_FORMAT_ARM64_S2_40,
	GPAS_FORMAT_SV39_X4,
	GPAS_FORMAT_SV48_X4,
	GPAS_FORMAT_SV57_X4,
};
#define GPAS_FORMAT_COUNT 9 /* ids are below this */

struct gpas_format;
struct gpas_pgtable;

/*
 * gpas_format_get - the description of a format.
 *
 * Returns a constant that lives as long as the program, or NULL for a number
 * that names no format. GPAS_FORMAT_HOST resolves to NPT on an AMD or Hygon
 * processor, EPT with four levels on other x86, ARM64_S2_48, or SV48_X4.
 */
GPAS_API const struct gpas_format *gpas_format_get(enum gpas_format_id id);

/* The format with this name ("ept-4", "npt-4", "arm64-s2-48", ...), or NULL. */
GPAS_API const struct gpas_format *gpas_format_find(const char *name);

/* The name, the width of a GPA in bits, and the number of table levels. */
GPAS_API const char *gpas_format_name(const struct gpas_format *format);
GPAS_API unsigned gpas_format_gpa_bits(const struct gpas_format *format);
GPAS_API unsigned gpas_format_levels(const struct gpas_format *format);

/*
 * Where table pages come from.
 *
 * alloc returns @pages consecutive 4 KiB pages, aligned to their whole size
 * (@pages is 1, or for a concatenated root 2 or 4), with any content, or NULL
 * when there is no memory. free takes back exactly such a block and cannot
 * fail. Both are called with the table's writer excluded from other writers,
 * never from a reader.
 */
struct gpas_frame_ops {
	void *(*alloc)(void *ctx, size_t pages);
	void (*free)(void *ctx, void *frame, size_t pages);
};

/* How to create a table; all zero is the default. */
struct gpas_pgtable_params {
	enum gpas_format_id format;
	/* The largest leaf to use: 12, 21 or 30; 0 means 30. */
	unsigned max_leaf_shift;
	/* NULL: a pool of mmap'd pages owned by the table. */
	const struct gpas_frame_ops *frame_ops;
	void *frame_ctx;
};

/*
 * One leaf, or a maximal run of leaves, as found in the table.
 *
 * Invariants: start and size are page-aligned, size is not 0; the byte at GPA
 * start + n is at host + n for every n below size. prot is what the table
 * grants; GPAS_PROT_NONE is memory that is present but inaccessible.
 */
struct gpas_extent {
	gpas_gpa start;
	uint64_t size;
	gpas_hva host;
	unsigned prot;
	enum gpas_memtype memtype;
	/* The size of the leaf at start: 12, 21 or 30. */
	unsigned leaf_shift;
};

/* Table pages (the root counts each of its pages) and leaves by level. */
struct gpas_pgtable_stats {
	uint64_t table_pages;
	uint64_t leaves[3];
};

/*
 * gpas_pgtable_create - an empty table.
 *
 * @params may be NULL. Errors: -EINVAL unknown format or leaf size; -ENOMEM.
 */
GPAS_API int gpas_pgtable_create(const struct gpas_pgtable_params *params,
				 struct gpas_pgtable **ret);

/* Frees the table and every page of it. NULL is allowed. */
GPAS_API void gpas_pgtable_destroy(struct gpas_pgtable *table);

GPAS_API const struct gpas_format *gpas_pgtable_format(
	const struct gpas_pgtable *table);

/* The root page (or concatenated pages), as the hardware's root pointer would
 * name it. Valid until the table is destroyed. */
GPAS_API gpas_hva gpas_pgtable_root(const struct gpas_pgtable *table);

/*
 * gpas_pgtable_map - map [start, start + size) to host memory at @host.
 *
 * Uses the largest leaves that the alignment of both addresses allows and
 * merges with what is already mapped around the range where one larger leaf
 * says the same.
 *
 * Errors (nothing has changed): -EINVAL unaligned, empty, overflowing, beyond
 * the format's GPA width, or an unknown @prot or @memtype; -EEXIST part of the
 * range is mapped; -EOPNOTSUPP the format cannot express the permission, the
 * memory type or the host address; -ENOMEM.
 */
GPAS_API int gpas_pgtable_map(struct gpas_pgtable *table, gpas_gpa start,
			      uint64_t size, gpas_hva host, unsigned prot,
			      enum gpas_memtype memtype);

/*
 * gpas_pgtable_unmap - remove every leaf in [start, start + size).
 *
 * Holes are allowed; a leaf that straddles an end of the range is split. The
 * pages that splitting needs are held in reserve, so the call does not fail
 * for lack of memory. Errors (nothing has changed): -EINVAL as for map.
 */
GPAS_API int gpas_pgtable_unmap(struct gpas_pgtable *table, gpas_gpa start,
				uint64_t size);

/*
 * gpas_pgtable_protect - give every leaf in [start, start + size) @prot.
 *
 * Holes are skipped; leaves that straddle an end are split.
 * Errors (nothing has changed): -EINVAL, -EOPNOTSUPP, -ENOMEM as for map.
 */
GPAS_API int gpas_pgtable_protect(struct gpas_pgtable *table, gpas_gpa start,
				  uint64_t size, unsigned prot);

/*
 * gpas_pgtable_query - the leaf that maps @gpa.
 *
 * Returns 0 and the whole leaf in @ret, or -ENOENT when @gpa is not mapped or
 * beyond the format's width (an address never aliases a lower one).
 */
GPAS_API int gpas_pgtable_query(const struct gpas_pgtable *table, gpas_gpa gpa,
				struct gpas_extent *ret);

/*
 * A walk over extents in ascending order. A value on the caller's stack; it
 * needs no closing. Invalid once the table changes.
 */
struct gpas_pgtable_cursor {
	const struct gpas_pgtable *table;
	uint64_t next;
	uint64_t end;
};

/* Starts a walk over [start, end), clipped to the format's width. */
GPAS_API void gpas_pgtable_cursor_init(struct gpas_pgtable_cursor *cursor,
				       const struct gpas_pgtable *table,
				       gpas_gpa start, gpas_gpa end);

/*
 * gpas_pgtable_cursor_next - the next maximal extent, clipped to the walk.
 *
 * Returns true and writes @ret, or false at the end of the walk. An extent
 * joins leaves of any size; leaf_shift speaks of its first leaf.
 */
GPAS_API bool gpas_pgtable_cursor_next(struct gpas_pgtable_cursor *cursor,
				       struct gpas_extent *ret);

/* Counts tables and leaves by walking the table. */
GPAS_API void gpas_pgtable_stats(const struct gpas_pgtable *table,
				 struct gpas_pgtable_stats *ret);

/*
 * gpas_pgtable_check - verify the table's own invariants.
 *
 * No empty table below the root, no full table that one leaf could replace,
 * no bit set that the format does not define. Returns 0, or -EUCLEAN. Note
 * that a table filled through space.h may keep a full table where two regions
 * meet; pass @strict false there.
 */
GPAS_API int gpas_pgtable_check(const struct gpas_pgtable *table, bool strict);

#ifdef __cplusplus
}
#endif

#endif
