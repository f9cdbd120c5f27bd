/* SPDX-License-Identifier: MIT */
/*
 * How one architecture encodes a nested page table, as data.
 *
 * This header hides nothing from the page table's own files: their hot loops
 * work on entries directly. Everybody else sees an opaque struct gpas_format.
 *
 * An entry is one of
 *   empty   zero;
 *   table   points to a node one level down, at levels above 0 only;
 *   leaf    maps memory, at levels 0 to 2; one that refuses every access is
 *           *parked*: invalid for the hardware, yet not zero, and with its
 *           address and memory type still in place.
 * In every format a leaf's output address can be advanced by plain addition,
 * so a run of leaves is an arithmetic progression.
 */
#ifndef GPAS_SRC_FORMAT_H
#define GPAS_SRC_FORMAT_H

#include <gpas/pgtable.h>

#define FORMAT_INDEX_BITS   9u
#define FORMAT_NODE_ENTRIES 512u
#define FORMAT_LEAF_LEVELS  3u
#define FORMAT_MAX_LEVELS   5u

/* A condition on an entry: it holds when (entry & mask) == value. */
struct format_bits {
	uint64_t mask;
	uint64_t value;
};

/*
 * Invariants: addr_mask, the permissions' masks, valid, parked, fixed, the
 * memory type's bits and leaf_bits are pairwise disjoint; a parked leaf of any
 * level fails the table condition; the first root_pages * 512 entries of a
 * root cover exactly gpa_bits.
 */
struct gpas_format {
	/* Where an entry keeps an address, and how far right it is moved. */
	uint64_t addr_mask;
	unsigned addr_shift;
	/* Above level 0: tells a pointer to a table from everything else. */
	struct format_bits table;
	/* Read, write, execute, in the order of enum gpas_prot. A permission
	 * is granted when its condition holds; denying it gives the bits under
	 * the mask the opposite value. */
	struct format_bits perms[3];
	/* A leaf's memory type, and the way back from its field. */
	unsigned memtype_shift;
	unsigned memtype_mask;
	uint8_t memtype_decode[16];
	uint64_t memtype_bits[GPAS_MEMTYPE_COUNT];
	/* Set in each accessible leaf, in each parked one, in each leaf. */
	uint64_t valid;
	uint64_t parked;
	uint64_t fixed;
	/* What tells a leaf of this level from a table, on top of the above. */
	uint64_t leaf_bits[FORMAT_LEAF_LEVELS];
	/* All bits of a table entry besides the address. */
	uint64_t table_bits;
	/* Geometry: table levels, widths in bits, concatenated root pages. */
	unsigned levels;
	unsigned gpa_bits;
	unsigned host_bits;
	unsigned root_pages;
	/* Bit n is set when enum gpas_prot n, or gpas_memtype n, can be said.
	 */
	uint8_t prots;
	uint8_t memtypes;
	const char *name;
};

/* The address bits that one entry of this level leaves to lower levels. */
static inline unsigned format_shift(unsigned level)
{
	return GPAS_PAGE_SHIFT + FORMAT_INDEX_BITS * level;
}

/* The bytes that one entry of this level covers. */
static inline uint64_t format_bytes(unsigned level)
{
	return UINT64_C(1) << format_shift(level);
}

/* The difference between two neighbouring leaves of one run. */
static inline uint64_t format_step(const struct gpas_format *format,
				   unsigned level)
{
	return format_bytes(level) >> format->addr_shift;
}

static inline unsigned format_holds(struct format_bits bits, uint64_t entry)
{
	return (entry & bits.mask) == bits.value;
}

static inline bool format_is_table(const struct gpas_format *format,
				   uint64_t entry, unsigned level)
{
	return level > 0 && format_holds(format->table, entry);
}

static inline uint64_t format_encode_address(const struct gpas_format *format,
					     uint64_t address)
{
	return address >> format->addr_shift;
}

static inline uint64_t format_address(const struct gpas_format *format,
				      uint64_t entry)
{
	return (entry & format->addr_mask) << format->addr_shift;
}

/* All bits that depend on the permission. */
static inline uint64_t format_prot_mask(const struct gpas_format *format)
{
	return format->perms[0].mask | format->perms[1].mask |
	       format->perms[2].mask | format->valid | format->parked;
}

static inline uint64_t format_encode_prot(const struct gpas_format *format,
					  unsigned prot)
{
	uint64_t bits = prot == GPAS_PROT_NONE ? format->parked : format->valid;

	for (unsigned i = 0; i < 3; i++) {
		const struct format_bits *perm = &format->perms[i];

		bits |= (prot >> i) & 1 ? perm->value
					: perm->mask & ~perm->value;
	}
	return bits;
}

/* What a leaf grants; a parked leaf fails all three conditions. */
static inline unsigned format_prot(const struct gpas_format *format,
				   uint64_t entry)
{
	return format_holds(format->perms[0], entry) |
	       format_holds(format->perms[1], entry) << 1 |
	       format_holds(format->perms[2], entry) << 2;
}

static inline enum gpas_memtype format_memtype(const struct gpas_format *format,
					       uint64_t entry)
{
	uint64_t field =
		(entry >> format->memtype_shift) & format->memtype_mask;

	return (enum gpas_memtype)format->memtype_decode[field];
}

/* A leaf without its address: permission, memory type, level. */
static inline uint64_t format_leaf(const struct gpas_format *format,
				   unsigned level, unsigned prot,
				   enum gpas_memtype memtype)
{
	return format->leaf_bits[level] | format->fixed |
	       format->memtype_bits[memtype] | format_encode_prot(format, prot);
}

#endif
