/* SPDX-License-Identifier: MIT */
/*
 * Reading a page table: the lock-free walk, extents, and the whole-table walks
 * that count and verify.
 */
#include "pgread.h"

/* Where a descent ended: at a leaf or at an empty entry. */
struct position {
	const uint64_t *node;
	size_t index;
	unsigned level;
	uint64_t entry;
};

/*
 * @gpa is below gpa_end. An acquiring load makes compilers read memory afresh,
 * so what the loop needs is copied to locals.
 */
static inline struct position descend(const struct gpas_pgtable *table,
				      uint64_t gpa)
{
	const struct format_bits is_table = table->format.table;
	const uint64_t address_mask = table->format.addr_mask;
	const unsigned address_shift = table->format.addr_shift;
	unsigned level = table->root_level;
	unsigned shift = format_shift(level);
	struct position at = {
		.node = table->root,
		.index = gpa >> shift,
	};

	at.entry = pt_load(&at.node[at.index]);
	while (level > 0 && format_holds(is_table, at.entry)) {
		uint64_t child = (at.entry & address_mask) << address_shift;

		level--;
		shift -= FORMAT_INDEX_BITS;
		at.node = (const uint64_t *)(uintptr_t)child;
		at.index = gpa >> shift & (FORMAT_NODE_ENTRIES - 1);
		at.entry = pt_load(&at.node[at.index]);
	}
	at.level = level;
	return at;
}

/*
 * The walk of pt_lookup(). An acquiring load makes compilers read memory
 * afresh, so what the loop needs is copied to locals, and the formats in
 * which an entry's address is not shifted have a loop of their own. Returns the
 * entry, and how far it is from the page.
 */
static inline uint64_t walk(const struct gpas_pgtable *table, uint64_t gpa,
			    unsigned address_shift, unsigned *ret_shift)
{
	const struct format_bits is_table = table->format.table;
	const uint64_t address_mask = table->format.addr_mask;
	unsigned shift = format_shift(table->root_level);
	const uint64_t *node = table->root;
	uint64_t entry = pt_load(&node[gpa >> shift]);

	while (shift > GPAS_PAGE_SHIFT && format_holds(is_table, entry)) {
		uint64_t child = (entry & address_mask) << address_shift;

		shift -= FORMAT_INDEX_BITS;
		node = (const uint64_t *)(uintptr_t)child;
		entry = pt_load(
			&node[gpa >> shift & (FORMAT_NODE_ENTRIES - 1)]);
	}
	*ret_shift = shift;
	return entry;
}

int pt_lookup(const struct gpas_pgtable *table, uint64_t gpa,
	      struct gpas_extent *ret)
{
	const struct gpas_format *format = &table->format;
	uint64_t entry;
	unsigned shift;

	if (gpa >= table->gpa_end) {
		return -ENOENT;
	}
	if (format->addr_shift == 0) {
		entry = walk(table, gpa, 0, &shift);
	} else {
		entry = walk(table, gpa, format->addr_shift, &shift);
	}
	if (entry == 0) {
		return -ENOENT;
	}
	ret->size = UINT64_C(1) << shift;
	ret->start.value = gpas_align_down(gpa, ret->size);
	ret->host.value = format_address(format, entry);
	ret->prot = format_prot(format, entry);
	ret->memtype = format_memtype(format, entry);
	ret->leaf_shift = shift;
	return 0;
}

/* Keys come back after so many epochs; the tags that may still have them are
 * cleared then. */
#define KEY_BITS 20u

void pt_forget(struct pt_shortcuts *shortcuts, uint64_t epoch)
{
	uint64_t seen = shortcuts->seen;

	if (epoch >> KEY_BITS != seen >> KEY_BITS) {
		memset(shortcuts->low, 0, sizeof(shortcuts->low));
		memset(shortcuts->high, 0, sizeof(shortcuts->high));
	}
	shortcuts->seen = epoch;
	shortcuts->key = UINT64_C(1) << KEY_BITS |
			 (epoch & ((UINT64_C(1) << KEY_BITS) - 1));
}

/* The node of level 1 that covers @gpa, or NULL: *@found has the answer. */
static uint64_t *find_high(const struct gpas_pgtable *table,
			   struct pt_shortcuts *shortcuts, uint64_t gpa,
			   struct pt_found *found)
{
	const struct format_bits is_table = table->format.table;
	unsigned shift = format_shift(table->root_level);
	uint64_t *node = table->root;

	if (gpa >= table->gpa_end) {
		*found = (struct pt_found){ 0, GPAS_PAGE_SHIFT };
		return NULL;
	}
	found->entry = pt_load(&node[gpa >> shift]);
	while (shift > PT_LOW_SHIFT) {
		if (!format_holds(is_table, found->entry)) {
			found->shift = shift;
			return NULL;
		}
		shift -= FORMAT_INDEX_BITS;
		node = pt_child(&table->format, found->entry);
		found->entry = pt_load(
			&node[gpa >> shift & (FORMAT_NODE_ENTRIES - 1)]);
	}
	shortcuts->high[pt_high_place(gpa)] =
		(struct pt_shortcut){ pt_tag(shortcuts, gpa, PT_HIGH_SHIFT),
				      node };
	return node;
}

struct pt_found pt_find(const struct gpas_pgtable *table,
			struct pt_shortcuts *shortcuts, uint64_t gpa)
{
	const struct pt_shortcut *high = &shortcuts->high[pt_high_place(gpa)];
	uint64_t *node = high->node;
	struct pt_found found;

	if (__builtin_expect(high->tag != pt_tag(shortcuts, gpa, PT_HIGH_SHIFT),
			     0)) {
		node = find_high(table, shortcuts, gpa, &found);
		if (node == NULL) {
			return found;
		}
	}
	found.shift = PT_LOW_SHIFT;
	found.entry =
		pt_load(&node[gpa >> PT_LOW_SHIFT & (FORMAT_NODE_ENTRIES - 1)]);
	if (format_holds(table->format.table, found.entry)) {
		node = pt_child(&table->format, found.entry);
		shortcuts->low[pt_low_place(gpa)] = (struct pt_shortcut){
			pt_tag(shortcuts, gpa, PT_LOW_SHIFT), node
		};
		found.shift = GPAS_PAGE_SHIFT;
		found.entry = pt_load(&node[gpa >> GPAS_PAGE_SHIFT &
					    (FORMAT_NODE_ENTRIES - 1)]);
	}
	return found;
}

/*
 * What the 4 KiB leaf of @gpa's page would be: leaves of any size belong to one
 * extent when these differ by as much as their addresses.
 */
static uint64_t page_value(const struct gpas_format *format,
			   const struct position *at, uint64_t gpa)
{
	uint64_t page = gpas_align_down(gpa, GPAS_PAGE_BYTES);
	uint64_t within = page & (format_bytes(at->level) - 1);

	return (at->entry ^ format->leaf_bits[at->level]) +
	       format_encode_address(format, within);
}

/*
 * Walks on in the leaf's node as long as the leaves follow its rule, up to
 * @end. Returns the end of the last one.
 */
static uint64_t run_end(const struct gpas_pgtable *table,
			const struct position *at, uint64_t gpa, uint64_t end)
{
	size_t entries = pt_node_entries(table, at->level);
	uint64_t step = format_step(&table->format, at->level);
	uint64_t expected = at->entry;
	size_t index = at->index;

	do {
		gpa = (gpa | (format_bytes(at->level) - 1)) + 1;
		expected += step;
		index++;
	} while (gpa < end && index < entries &&
		 pt_load(&at->node[index]) == expected);
	return gpa;
}

int pt_extent_at(const struct gpas_pgtable *table, uint64_t gpa, uint64_t limit,
		 struct gpas_extent *ret)
{
	const struct gpas_format *format = &table->format;
	uint64_t end = table->gpa_end;
	uint64_t page = gpas_align_down(gpa, GPAS_PAGE_BYTES);
	uint64_t stop = gpa;
	struct position at;
	uint64_t first;

	if (gpa >= end) {
		return -ENOENT;
	}
	at = descend(table, gpa);
	if (at.entry == 0) {
		return -ENOENT;
	}
	end = limit < end - gpa ? gpa + limit : end;
	first = page_value(format, &at, page);
	ret->leaf_shift = format_shift(at.level);
	ret->prot = format_prot(format, at.entry);
	ret->memtype = format_memtype(format, at.entry);
	ret->start.value = gpa;
	ret->host.value = format_address(format, first) + (gpa - page);
	do {
		stop = run_end(table, &at, stop, end);
		if (stop >= end) {
			break;
		}
		at = descend(table, stop);
	} while (at.entry != 0 &&
		 page_value(format, &at, stop) ==
			 first + format_encode_address(format, stop - page));
	ret->size = (stop < end ? stop : end) - gpa;
	return 0;
}

int gpas_pgtable_query(const struct gpas_pgtable *table, gpas_gpa gpa,
		       struct gpas_extent *ret)
{
	return pt_lookup(table, gpa.value, ret);
}

void gpas_pgtable_cursor_init(struct gpas_pgtable_cursor *cursor,
			      const struct gpas_pgtable *table, gpas_gpa start,
			      gpas_gpa end)
{
	cursor->table = table;
	cursor->next = start.value;
	cursor->end = end.value < table->gpa_end ? end.value : table->gpa_end;
}

uint64_t pt_next_mapped(const struct gpas_pgtable *table, uint64_t gpa,
			uint64_t end)
{
	while (gpa < end) {
		struct position at = descend(table, gpa);
		unsigned shift = format_shift(at.level);
		size_t last = ((end - 1) >> shift) - (gpa >> shift) + at.index;
		size_t index = at.index;

		if (at.entry != 0) {
			return gpa;
		}
		if (last >= pt_node_entries(table, at.level)) {
			last = pt_node_entries(table, at.level) - 1;
		}
		do {
			index++;
		} while (index <= last && pt_load(&at.node[index]) == 0);
		gpa = ((gpa >> shift) + (index - at.index)) << shift;
	}
	return end;
}

bool gpas_pgtable_cursor_next(struct gpas_pgtable_cursor *cursor,
			      struct gpas_extent *ret)
{
	uint64_t gpa = pt_next_mapped(cursor->table, cursor->next, cursor->end);

	if (gpa >= cursor->end) {
		cursor->next = cursor->end;
		return false;
	}
	if (pt_extent_at(cursor->table, gpa, cursor->end - gpa, ret) != 0) {
		return false;
	}
	cursor->next = gpa + ret->size;
	return true;
}

static void count_node(const struct gpas_pgtable *table, const uint64_t *node,
		       unsigned level, struct gpas_pgtable_stats *ret)
{
	const struct gpas_format *format = &table->format;
	size_t entries = pt_node_entries(table, level);

	ret->table_pages += entries / FORMAT_NODE_ENTRIES;
	for (size_t i = 0; i < entries; i++) {
		uint64_t entry = pt_load(&node[i]);

		if (format_is_table(format, entry, level)) {
			count_node(table, pt_child(format, entry), level - 1,
				   ret);
		} else if (entry != 0) {
			ret->leaves[level]++;
		}
	}
}

void gpas_pgtable_stats(const struct gpas_pgtable *table,
			struct gpas_pgtable_stats *ret)
{
	*ret = (struct gpas_pgtable_stats){ 0 };
	count_node(table, table->root, table->root_level, ret);
}

/* Whether decoding the leaf and encoding it again gives every bit back. */
static bool is_sound_leaf(const struct gpas_pgtable *table, uint64_t entry,
			  unsigned level)
{
	const struct gpas_format *format = &table->format;
	uint64_t address = format_address(format, entry);
	unsigned prot = format_prot(format, entry);
	enum gpas_memtype memtype = format_memtype(format, entry);

	return level <= table->max_leaf_level &&
	       gpas_is_aligned(address, format_bytes(level)) &&
	       pt_check_attr(format, prot, memtype) == 0 &&
	       entry == (format_leaf(format, level, prot, memtype) |
			 format_encode_address(format, address));
}

static bool is_sound_node(const struct gpas_pgtable *table,
			  const uint64_t *node, unsigned level, bool strict)
{
	const struct gpas_format *format = &table->format;
	size_t entries = pt_node_entries(table, level);
	size_t used = 0;

	for (size_t i = 0; i < entries; i++) {
		uint64_t entry = node[i];

		if (entry == 0) {
			continue;
		}
		used++;
		if (!format_is_table(format, entry, level)) {
			if (!is_sound_leaf(table, entry, level)) {
				return false;
			}
		} else if ((entry & ~format->addr_mask) != format->table_bits ||
			   pt_child(format, entry) == NULL ||
			   !is_sound_node(table, pt_child(format, entry),
					  level - 1, strict)) {
			return false;
		}
	}
	return level == table->root_level ||
	       (used > 0 && !(strict && pt_is_mergeable(table, node, level)));
}

int gpas_pgtable_check(const struct gpas_pgtable *table, bool strict)
{
	bool sound =
		is_sound_node(table, table->root, table->root_level, strict);

	return sound ? 0 : -EUCLEAN;
}
