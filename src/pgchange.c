/* SPDX-License-Identifier: MIT */
/*
 * Changing a page table under its journal: map, unmap and protect.
 *
 * Each change descends from the root by recursion over the part of its range
 * that a node covers. Only four things are ever done to a linked entry, each
 * noted in the journal first: a run of leaves is written over empty entries or
 * over leaves, a node is linked where nothing was, a leaf is replaced by a
 * node of smaller leaves that says the same (split), or the reverse (merge).
 * Clearing is writing a run of nothing; nodes below it drop out as a whole.
 */
#include "pgnode.h"

#include <string.h>

/* What to write, with all that is the same for the whole range. */
struct map_job {
	struct gpas_pgtable *table;
	uint64_t offset; /* host address minus GPA, modulo 2^64 */
	uint64_t leaf[FORMAT_LEAF_LEVELS]; /* an entry but for its address */
	unsigned top_leaf_level; /* the largest leaf both addresses allow */
	struct pt_bounds bounds;
};

struct protect_job {
	struct gpas_pgtable *table;
	uint64_t mask; /* bits that depend on the permission */
	uint64_t bits; /* what they become */
	struct pt_bounds bounds;
};

/* The end of the entry of this level that @gpa is in, or @end if earlier. */
static uint64_t entry_end(uint64_t gpa, uint64_t end, unsigned level)
{
	uint64_t last = gpa | (format_bytes(level) - 1);

	return last < end ? last + 1 : end;
}

static bool is_whole_entry(uint64_t start, uint64_t stop, unsigned level)
{
	return stop - start == format_bytes(level);
}

/*
 * A run's next four values. Each follows from the one four before it, so that
 * a loop over a run is not held up by a chain of additions (measured: half the
 * time, gcc and clang).
 */
struct four {
	uint64_t value[4];
};

static inline struct four first_four(uint64_t first, uint64_t step)
{
	return (struct four){ { first, first + step, first + 2 * step,
				first + 3 * step } };
}

static inline void next_four(struct four *four, uint64_t step)
{
	for (unsigned i = 0; i < 4; i++) {
		four->value[i] += 4 * step;
	}
}

bool pt_is_run(const uint64_t *entries, size_t count, uint64_t first,
	       uint64_t step)
{
	struct four expect = first_four(first, step);
	size_t i = 0;

	for (; i + 4 <= count; i += 4) {
		if (entries[i] != expect.value[0] ||
		    entries[i + 1] != expect.value[1] ||
		    entries[i + 2] != expect.value[2] ||
		    entries[i + 3] != expect.value[3]) {
			return false;
		}
		next_four(&expect, step);
	}
	for (; i < count; i++) {
		if (entries[i] != first + i * step) {
			return false;
		}
	}
	return true;
}

/* Fills entries that no reader can reach yet; compilers make vectors of it. */
static void fill_run(uint64_t *entries, size_t count, uint64_t first,
		     uint64_t step)
{
	for (; count % 8 != 0; count--) {
		*entries++ = first;
		first += step;
	}
	for (; count > 0; count -= 8) {
		for (size_t i = 0; i < 8; i++) {
			entries[i] = first + i * step;
		}
		first += 8 * step;
		entries += 8;
	}
}

/* Overwrites entries that readers may be looking at. */
static void store_run(uint64_t *entries, size_t count, uint64_t first,
		      uint64_t step)
{
	struct four value = first_four(first, step);
	size_t i = 0;

	for (; i + 4 <= count; i += 4) {
		pt_store(&entries[i], value.value[0]);
		pt_store(&entries[i + 1], value.value[1]);
		pt_store(&entries[i + 2], value.value[2]);
		pt_store(&entries[i + 3], value.value[3]);
		next_four(&value, step);
	}
	for (; i < count; i++) {
		pt_store(&entries[i], first + i * step);
	}
}

static bool is_empty_run(const uint64_t *entries, size_t count)
{
	return pt_is_run(entries, count, 0, 0);
}

/* Turns a leaf of @level into one of the level below or above, in place. */
static uint64_t change_level(const struct gpas_format *format, uint64_t leaf,
			     unsigned level, unsigned new_level)
{
	return leaf ^ format->leaf_bits[level] ^ format->leaf_bits[new_level];
}

/* Replaces the leaf by a node of 512 smaller ones that say the same. */
static int split(struct gpas_pgtable *table, uint64_t *entry, unsigned level)
{
	const struct gpas_format *format = &table->format;
	uint64_t *node;
	int error;

	error = journal_run(table, entry, 1, level, 0);
	if (error != 0) {
		return error;
	}
	node = pt_take_frame(table);
	if (node == NULL) {
		return -ENOMEM;
	}
	fill_run(node, FORMAT_NODE_ENTRIES,
		 change_level(format, *entry, level, level - 1),
		 format_step(format, level - 1));
	pt_store(entry, pt_table_entry(format, node));
	return 0;
}

/* Entries so far apart are looked at before the rest: most nodes fail there,
 * at their ends or where a granule is missing. */
#define MERGE_STRIDE 16u

bool pt_is_mergeable(const struct gpas_pgtable *table, const uint64_t *node,
		     unsigned level)
{
	const struct gpas_format *format = &table->format;
	uint64_t first = node[0];
	uint64_t step;

	if (level >= table->max_leaf_level || first == 0 ||
	    format_is_table(format, first, level) ||
	    !gpas_is_aligned(format_address(format, first),
			     format_bytes(level + 1))) {
		return false;
	}
	step = format_step(format, level);
	for (size_t i = FORMAT_NODE_ENTRIES; i > 0; i -= MERGE_STRIDE) {
		if (node[i - 1] != first + (i - 1) * step) {
			return false;
		}
	}
	return pt_is_run(node, FORMAT_NODE_ENTRIES, first, step);
}

/*
 * Replaces the node below the entry, which covers @gpa, by one leaf if that
 * says the same and lies within the bounds.
 */
static int try_merge(struct gpas_pgtable *table, uint64_t *entry,
		     unsigned level, uint64_t gpa, struct pt_bounds bounds)
{
	uint64_t start = gpas_align_down(gpa, format_bytes(level));
	const uint64_t *node = pt_child(&table->format, *entry);
	int error;

	if (start < bounds.start || start + format_bytes(level) > bounds.end ||
	    !pt_is_mergeable(table, node, level - 1)) {
		return 0;
	}
	error = journal_run(table, entry, 1, level, 0);
	if (error != 0) {
		return error;
	}
	pt_store(entry,
		 change_level(&table->format, node[0], level - 1, level));
	return 0;
}

/*
 * How many entries from @start on, all in one node, are leaves of this level;
 * 0 when what comes first needs smaller ones.
 */
static size_t leaf_count(const struct map_job *job, unsigned level,
			 uint64_t start, uint64_t end)
{
	if (level > job->top_leaf_level ||
	    !gpas_is_aligned(start, format_bytes(level))) {
		return 0;
	}
	return (end - start) >> format_shift(level);
}

static uint64_t leaf_entry(const struct map_job *job, unsigned level,
			   uint64_t gpa)
{
	return job->leaf[level] |
	       format_encode_address(&job->table->format, gpa + job->offset);
}

static uint64_t *build(const struct map_job *job, unsigned level,
		       uint64_t start, uint64_t end);

/* Fills the entries of an unlinked node for [start, end), in order. Returns
 * how many entries there are, or fewer when a node below is missing. */
static size_t build_entries(const struct map_job *job, uint64_t *entries,
			    unsigned level, uint64_t start, uint64_t end)
{
	const struct gpas_format *format = &job->table->format;
	size_t done = 0;

	while (start < end) {
		size_t count = leaf_count(job, level, start, end);
		const uint64_t *child;
		uint64_t stop;

		if (count > 0) {
			fill_run(entries + done, count,
				 leaf_entry(job, level, start),
				 format_step(format, level));
			start += count << format_shift(level);
			done += count;
			continue;
		}
		stop = entry_end(start, end, level);
		child = build(job, level - 1, start, stop);
		if (child == NULL) {
			break;
		}
		entries[done++] = pt_table_entry(format, child);
		start = stop;
	}
	return done;
}

/*
 * A complete node for [start, end), not linked anywhere. NULL when there is no
 * page; then nothing is left behind.
 */
static uint64_t *build(const struct map_job *job, unsigned level,
		       uint64_t start, uint64_t end)
{
	size_t from = pt_index(job->table, start, level);
	size_t to = pt_index(job->table, end - 1, level) + 1;
	uint64_t *node = pt_take_frame(job->table);
	size_t done;

	if (node == NULL) {
		return NULL;
	}
	memset(node, 0, from * sizeof(*node));
	done = from + build_entries(job, node + from, level, start, end);
	memset(node + done, 0, (FORMAT_NODE_ENTRIES - done) * sizeof(*node));
	if (done < to) {
		pt_free_tree(job->table, node, level);
		return NULL;
	}
	return node;
}

static int map_run(const struct map_job *job, uint64_t *entries, size_t count,
		   unsigned level, uint64_t gpa)
{
	int error;

	if (!is_empty_run(entries, count)) {
		return -EEXIST;
	}
	error = journal_run(job->table, entries, count, level, 0);
	if (error != 0) {
		return error;
	}
	store_run(entries, count, leaf_entry(job, level, gpa),
		  format_step(&job->table->format, level));
	return 0;
}

/* Links a new node for [start, stop) into an empty entry. */
static int map_fresh(const struct map_job *job, uint64_t *entry, unsigned level,
		     uint64_t start, uint64_t stop)
{
	const uint64_t *node;
	int error;

	error = journal_run(job->table, entry, 1, level, 0);
	if (error != 0) {
		return error;
	}
	node = build(job, level - 1, start, stop);
	if (node == NULL) {
		return -ENOMEM;
	}
	pt_store(entry, pt_table_entry(&job->table->format, node));
	return 0;
}

static int map_node(const struct map_job *job, uint64_t *node, unsigned level,
		    uint64_t start, uint64_t end);

/* Maps [start, stop), which needs smaller leaves than the entry's own. */
static int map_below(const struct map_job *job, uint64_t *entry, unsigned level,
		     uint64_t start, uint64_t stop)
{
	const struct gpas_format *format = &job->table->format;
	int error;

	if (*entry == 0) {
		return map_fresh(job, entry, level, start, stop);
	}
	if (!format_is_table(format, *entry, level)) {
		return -EEXIST;
	}
	error = map_node(job, pt_child(format, *entry), level - 1, start, stop);
	if (error != 0 || level > job->top_leaf_level) {
		return error;
	}
	return try_merge(job->table, entry, level, start, job->bounds);
}

/* Maps [start, end), which is within the linked node. */
static int map_node(const struct map_job *job, uint64_t *node, unsigned level,
		    uint64_t start, uint64_t end)
{
	while (start < end) {
		uint64_t *entry = node + pt_index(job->table, start, level);
		size_t count = leaf_count(job, level, start, end);
		uint64_t stop;
		int error;

		if (count > 0) {
			stop = start + (count << format_shift(level));
			error = map_run(job, entry, count, level, start);
		} else {
			stop = entry_end(start, end, level);
			error = map_below(job, entry, level, start, stop);
		}
		if (error != 0) {
			return error;
		}
		start = stop;
	}
	return 0;
}

int pt_map(struct gpas_pgtable *table, uint64_t start, uint64_t size,
	   uint64_t host, unsigned prot, enum gpas_memtype memtype,
	   struct pt_bounds bounds)
{
	struct map_job job = {
		.table = table,
		.offset = host - start,
		.leaf = { format_leaf(&table->format, 0, prot, memtype) },
		.bounds = bounds,
	};
	int error = pt_reserve(table);

	if (error != 0) {
		return error;
	}
	for (unsigned level = 0; level <= table->max_leaf_level; level++) {
		job.leaf[level] = job.leaf[0] ^ table->format.leaf_bits[0] ^
				  table->format.leaf_bits[level];
		if (gpas_is_aligned(job.offset, format_bytes(level))) {
			job.top_leaf_level = level;
		}
	}
	return map_node(&job, table->root, table->root_level, start,
			start + size);
}

static int unmap_node(struct gpas_pgtable *table, uint64_t *node,
		      unsigned level, uint64_t start, uint64_t end);

/*
 * Unmaps [start, stop), a part of what the entry covers. Then tells whether
 * nothing is left below, so that the entry can be cleared as well.
 */
static int unmap_part(struct gpas_pgtable *table, uint64_t *entry,
		      unsigned level, uint64_t start, uint64_t stop,
		      bool *ret_empty)
{
	uint64_t *node;
	size_t after;
	int error;

	*ret_empty = false;
	if (*entry == 0) {
		return 0;
	}
	if (!format_is_table(&table->format, *entry, level)) {
		error = split(table, entry, level);
		if (error != 0) {
			return error;
		}
	}
	node = pt_child(&table->format, *entry);
	error = unmap_node(table, node, level - 1, start, stop);
	if (error != 0) {
		return error;
	}
	/* What is left is most likely next to what was cleared. */
	after = pt_index(table, stop - 1, level - 1);
	*ret_empty = is_empty_run(node + after, FORMAT_NODE_ENTRIES - after) &&
		     is_empty_run(node, after);
	return 0;
}

/* Clears entries; what is below them drops out. */
static int clear_run(struct gpas_pgtable *table, uint64_t *entries,
		     size_t count, unsigned level)
{
	int error;

	while (count > 0 && entries[0] == 0) {
		entries++;
		count--;
	}
	while (count > 0 && entries[count - 1] == 0) {
		count--;
	}
	if (count == 0) {
		return 0;
	}
	error = journal_any(table, entries, count, level);
	if (error != 0) {
		return error;
	}
	store_run(entries, count, 0, 0);
	return 0;
}

/*
 * Unmaps [start, end), which is within the linked node: first the parts of
 * entries at its two ends, then everything between them in one run, to which
 * an end that became empty belongs.
 */
static int unmap_node(struct gpas_pgtable *table, uint64_t *node,
		      unsigned level, uint64_t start, uint64_t end)
{
	size_t from = pt_index(table, start, level);
	size_t to = pt_index(table, end - 1, level) + 1;
	uint64_t left_stop = entry_end(start, end, level);
	uint64_t right_start = gpas_align_down(end - 1, format_bytes(level));
	bool left_whole = is_whole_entry(start, left_stop, level);
	bool right_whole = gpas_is_aligned(end, format_bytes(level));
	bool empty;
	int error;

	if (to - from > 1 && !right_whole) {
		error = unmap_part(table, node + to - 1, level, right_start,
				   end, &empty);
		if (error != 0) {
			return error;
		}
		to -= !empty;
	}
	if (!left_whole) {
		error = unmap_part(table, node + from, level, start, left_stop,
				   &empty);
		if (error != 0) {
			return error;
		}
		from += !empty;
	}
	return clear_run(table, node + from, to - from, level);
}

int pt_unmap(struct gpas_pgtable *table, uint64_t start, uint64_t size)
{
	int error;

	table->may_draw = true;
	error = unmap_node(table, table->root, table->root_level, start,
			   start + size);
	table->may_draw = false;
	return error;
}

static uint64_t change_prot(const struct protect_job *job, uint64_t leaf)
{
	return (leaf & ~job->mask) | job->bits;
}

/* Gives leaves, among which there may be holes, the new permission. */
static int protect_run(const struct protect_job *job, uint64_t *entries,
		       size_t count, unsigned level)
{
	uint64_t step = format_step(&job->table->format, level);
	uint64_t first = change_prot(job, entries[0]);
	bool is_run = pt_is_run(entries, count, entries[0], step);
	int error;

	if (is_run && first == entries[0]) {
		return 0;
	}
	error = is_run ? journal_run(job->table, entries, count, level, step)
		       : journal_any(job->table, entries, count, level);
	if (error != 0) {
		return error;
	}
	if (is_run) {
		store_run(entries, count, first, step);
		return 0;
	}
	for (size_t i = 0; i < count; i++) {
		if (entries[i] != 0) {
			pt_store(&entries[i], change_prot(job, entries[i]));
		}
	}
	return 0;
}

/* How many of the entries, of which the first is a leaf, are not tables. */
static size_t count_leaves(const struct gpas_format *format,
			   const uint64_t *entries, size_t count,
			   unsigned level)
{
	size_t leaves = 1;

	if (level == 0) {
		return count;
	}
	while (leaves < count &&
	       !format_is_table(format, entries[leaves], level)) {
		leaves++;
	}
	return leaves;
}

static int protect_node(const struct protect_job *job, uint64_t *node,
			unsigned level, uint64_t start, uint64_t end);

/* Protects [start, stop) in the node below the entry. */
static int protect_below(const struct protect_job *job, uint64_t *entry,
			 unsigned level, uint64_t start, uint64_t stop)
{
	uint64_t *node = pt_child(&job->table->format, *entry);
	int error = protect_node(job, node, level - 1, start, stop);

	if (error != 0) {
		return error;
	}
	return try_merge(job->table, entry, level, start, job->bounds);
}

/* Protects [start, stop), a part of what the leaf covers. */
static int protect_part(const struct protect_job *job, uint64_t *entry,
			unsigned level, uint64_t start, uint64_t stop)
{
	int error;

	if (change_prot(job, *entry) == *entry) {
		return 0;
	}
	error = split(job->table, entry, level);
	if (error != 0) {
		return error;
	}
	return protect_below(job, entry, level, start, stop);
}

/* Protects [start, end), which is within the linked node. */
static int protect_node(const struct protect_job *job, uint64_t *node,
			unsigned level, uint64_t start, uint64_t end)
{
	const struct gpas_format *format = &job->table->format;

	while (start < end) {
		uint64_t *entry = node + pt_index(job->table, start, level);
		uint64_t stop = entry_end(start, end, level);
		int error = 0;

		if (format_is_table(format, *entry, level)) {
			error = protect_below(job, entry, level, start, stop);
		} else if (*entry != 0 && !is_whole_entry(start, stop, level)) {
			error = protect_part(job, entry, level, start, stop);
		} else if (*entry != 0) {
			size_t count = (end - start) >> format_shift(level);

			count = count_leaves(format, entry, count, level);
			stop = start + (count << format_shift(level));
			error = protect_run(job, entry, count, level);
		}
		if (error != 0) {
			return error;
		}
		start = stop;
	}
	return 0;
}

int pt_protect(struct gpas_pgtable *table, uint64_t start, uint64_t size,
	       unsigned prot, struct pt_bounds bounds)
{
	struct protect_job job = {
		.table = table,
		.mask = format_prot_mask(&table->format),
		.bits = format_encode_prot(&table->format, prot),
		.bounds = bounds,
	};
	int error = pt_reserve(table);

	if (error != 0) {
		return error;
	}
	return protect_node(&job, table->root, table->root_level, start,
			    start + size);
}
