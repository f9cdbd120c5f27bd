/* SPDX-License-Identifier: MIT */
/*
 * A page table as an object: its life, its pages and their reserve, the checks
 * of what callers pass, and the public calls that change it.
 */
#include "pgnode.h"

#include <stdlib.h>
#include <string.h>

void *pt_take_frame(struct gpas_pgtable *table)
{
	void *frame = frames_alloc(&table->frames, 1);

	if (frame == NULL && table->may_draw && table->reserve_count > 0) {
		frame = table->reserve[--table->reserve_count];
	}
	return frame;
}

void pt_give_frame(struct gpas_pgtable *table, void *frame)
{
	if (table->reserve_count < table->reserve_size) {
		table->reserve[table->reserve_count++] = frame;
	} else {
		frames_free(&table->frames, frame, 1);
	}
}

void pt_free_tree(struct gpas_pgtable *table, uint64_t *node, unsigned level)
{
	const struct gpas_format *format = &table->format;

	for (size_t i = 0; i < FORMAT_NODE_ENTRIES && level > 0; i++) {
		if (format_is_table(format, node[i], level)) {
			pt_free_tree(table, pt_child(format, node[i]),
				     level - 1);
		}
	}
	pt_give_frame(table, node);
}

int pt_reserve(struct gpas_pgtable *table)
{
	while (table->reserve_count < table->reserve_size) {
		void *frame = frames_alloc(&table->frames, 1);

		if (frame == NULL) {
			return -ENOMEM;
		}
		table->reserve[table->reserve_count++] = frame;
	}
	return 0;
}

int pt_check_range(const struct gpas_pgtable *table, uint64_t start,
		   uint64_t size)
{
	if (size == 0 || !gpas_is_aligned(start | size, GPAS_PAGE_BYTES) ||
	    start >= table->gpa_end || size > table->gpa_end - start) {
		return -EINVAL;
	}
	return 0;
}

int pt_check_attr(const struct gpas_format *format, unsigned prot,
		  enum gpas_memtype memtype)
{
	unsigned number = (unsigned)memtype;

	if (prot > GPAS_PROT_RWX || number >= GPAS_MEMTYPE_COUNT) {
		return -EINVAL;
	}
	if (!(format->prots >> prot & 1) || !(format->memtypes >> number & 1)) {
		return -EOPNOTSUPP;
	}
	return 0;
}

int pt_check_host(const struct gpas_format *format, uint64_t host,
		  uint64_t size)
{
	uint64_t limit = UINT64_C(1) << format->host_bits;

	if (!gpas_is_aligned(host, GPAS_PAGE_BYTES) ||
	    size > UINT64_MAX - host) {
		return -EINVAL;
	}
	return host + size <= limit ? 0 : -EOPNOTSUPP;
}

/* The unit of leaf sizes is a level; -EINVAL for what no level has. */
static int find_leaf_level(unsigned shift, unsigned *ret)
{
	for (unsigned level = 0; level < FORMAT_LEAF_LEVELS; level++) {
		if (shift == 0 || shift == format_shift(level)) {
			*ret = shift == 0 ? FORMAT_LEAF_LEVELS - 1 : level;
			return 0;
		}
	}
	return -EINVAL;
}

/* The pages that a table has from the start. */
static int take_pages(struct gpas_pgtable *table)
{
	size_t pages = table->format.root_pages;

	if (journal_init(table) != 0) {
		return -ENOMEM;
	}
	table->root = frames_alloc(&table->frames, pages);
	if (table->root == NULL) {
		return -ENOMEM;
	}
	memset(table->root, 0, pages << GPAS_PAGE_SHIFT);
	return pt_reserve(table);
}

/* The permissions' bits are disjoint, so their conditions add up. */
static void combine_grants(struct gpas_pgtable *table)
{
	for (unsigned prot = 0; prot <= GPAS_PROT_RWX; prot++) {
		for (unsigned i = 0; i < 3; i++) {
			if (prot >> i & 1) {
				table->grants[prot].mask |=
					table->format.perms[i].mask;
				table->grants[prot].value |=
					table->format.perms[i].value;
			}
		}
	}
}

int gpas_pgtable_create(const struct gpas_pgtable_params *params,
			struct gpas_pgtable **ret)
{
	static const struct gpas_pgtable_params defaults = { 0 };
	const struct gpas_format *format;
	struct gpas_pgtable *table;
	unsigned leaf_level;

	params = params == NULL ? &defaults : params;
	format = gpas_format_get(params->format);
	if (format == NULL ||
	    find_leaf_level(params->max_leaf_shift, &leaf_level) != 0) {
		return -EINVAL;
	}
	table = calloc(1, sizeof(*table));
	if (table == NULL) {
		return -ENOMEM;
	}
	table->format = *format;
	table->public_format = format;
	combine_grants(table);
	table->gpa_end = UINT64_C(1) << format->gpa_bits;
	table->root_level = format->levels - 1;
	table->max_leaf_level = leaf_level;
	table->reserve_size = 2 * table->root_level + format->root_pages;
	frames_init(&table->frames, params->frame_ops, params->frame_ctx,
		    format->host_bits);
	if (take_pages(table) != 0) {
		gpas_pgtable_destroy(table);
		return -ENOMEM;
	}
	*ret = table;
	return 0;
}

/* Frees the root and everything below it. */
static void free_root(struct gpas_pgtable *table)
{
	const struct gpas_format *format = &table->format;
	size_t count = pt_node_entries(table, table->root_level);

	for (size_t i = 0; i < count; i++) {
		if (format_is_table(format, table->root[i],
				    table->root_level)) {
			pt_free_tree(table, pt_child(format, table->root[i]),
				     table->root_level - 1);
		}
	}
	frames_free(&table->frames, table->root, format->root_pages);
}

void gpas_pgtable_destroy(struct gpas_pgtable *table)
{
	if (table == NULL) {
		return;
	}
	journal_fini(table);
	if (table->root != NULL) {
		free_root(table);
	}
	while (table->reserve_count > 0) {
		frames_free(&table->frames,
			    table->reserve[--table->reserve_count], 1);
	}
	frames_fini(&table->frames);
	free(table);
}

const struct gpas_format *gpas_pgtable_format(const struct gpas_pgtable *table)
{
	return table->public_format;
}

gpas_hva gpas_pgtable_root(const struct gpas_pgtable *table)
{
	return gpas_hva_of(table->root);
}

/* Ends a public call: there are no readers, so it is final at once. */
static int finish(struct gpas_pgtable *table, size_t mark, int error)
{
	if (error != 0) {
		pt_undo(table, mark);
	}
	pt_settle(table);
	return error;
}

/* On its own a table has no regions: everything may merge. */
static struct pt_bounds no_bounds(const struct gpas_pgtable *table)
{
	struct pt_bounds bounds = { 0, table->gpa_end };

	return bounds;
}

int gpas_pgtable_map(struct gpas_pgtable *table, gpas_gpa start, uint64_t size,
		     gpas_hva host, unsigned prot, enum gpas_memtype memtype)
{
	size_t mark = pt_mark(table);
	int error = pt_check_range(table, start.value, size);

	if (error == 0) {
		error = pt_check_attr(&table->format, prot, memtype);
	}
	if (error == 0) {
		error = pt_check_host(&table->format, host.value, size);
	}
	if (error != 0) {
		return error;
	}
	return finish(table, mark,
		      pt_map(table, start.value, size, host.value, prot,
			     memtype, no_bounds(table)));
}

int gpas_pgtable_unmap(struct gpas_pgtable *table, gpas_gpa start,
		       uint64_t size)
{
	size_t mark = pt_mark(table);
	int error = pt_check_range(table, start.value, size);

	if (error != 0) {
		return error;
	}
	return finish(table, mark, pt_unmap(table, start.value, size));
}

int gpas_pgtable_protect(struct gpas_pgtable *table, gpas_gpa start,
			 uint64_t size, unsigned prot)
{
	size_t mark = pt_mark(table);
	int error = pt_check_range(table, start.value, size);

	if (error == 0) {
		error = pt_check_attr(&table->format, prot,
				      GPAS_MEM_WRITE_BACK);
	}
	if (error != 0) {
		return error;
	}
	return finish(
		table, mark,
		pt_protect(table, start.value, size, prot, no_bounds(table)));
}
