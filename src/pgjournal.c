/* SPDX-License-Identifier: MIT */
/*
 * The journal is a stack of pages. A record trails the copied entries it may
 * have, so that the stack can be read from its top downwards; copy and record
 * are in one page, and a copy that does not fit is cut into several records.
 */
#include "pgnode.h"

#include <string.h>

/*
 * Flags of a record.
 * COPIED  count old entries precede the record.
 * GARBAGE it holds nodes to free: among the old entries, or in value if UNDONE.
 * UNDONE  the old entries are back in place. The record stays if it, or a
 *         record below it, holds a node that the undoing made garbage.
 */
enum record_flags {
	RECORD_COPIED = 1,
	RECORD_GARBAGE = 2,
	RECORD_UNDONE = 4,
};

struct record {
	uint64_t *entries;
	uint64_t value; /* of the first entry, if not COPIED */
	uint64_t step;
	uint32_t count;
	uint16_t level;
	uint16_t flags;
};

#define RECORD_WORDS (sizeof(struct record) / sizeof(uint64_t))
#define PAGE_WORDS   (GPAS_PAGE_BYTES / sizeof(uint64_t) - 2)

/* A copy of fewer entries than this is not worth the end of a page. */
#define MIN_COPIED_WORDS 8u

struct journal_page {
	struct journal_page *prev;
	size_t prev_used; /* words used in prev */
	uint64_t words[PAGE_WORDS];
};

/* A position while reading downwards; normally not at the bottom of a page. */
struct place {
	struct journal_page *page;
	size_t base;
	size_t used;
};

_Static_assert(sizeof(struct journal_page) == GPAS_PAGE_BYTES, "one page");

static int push_page(struct gpas_pgtable *table)
{
	struct journal *journal = &table->journal;
	struct journal_page *page = pt_take_frame(table);

	if (page == NULL) {
		return -ENOMEM;
	}
	page->prev = journal->top;
	page->prev_used = journal->used;
	if (page->prev != NULL) {
		journal->base += PAGE_WORDS;
	}
	journal->top = page;
	journal->used = 0;
	return 0;
}

/* Takes off the top page, which is not the only one. */
static void pop_page(struct gpas_pgtable *table)
{
	struct journal *journal = &table->journal;
	struct journal_page *page = journal->top;

	journal->top = page->prev;
	journal->used = page->prev_used;
	journal->base -= PAGE_WORDS;
	pt_give_frame(table, page);
}

int journal_init(struct gpas_pgtable *table)
{
	return push_page(table);
}

void journal_fini(struct gpas_pgtable *table)
{
	if (table->journal.top != NULL) {
		pt_settle(table);
		pt_give_frame(table, table->journal.top);
	}
}

/* Makes room for a record after @words of copy. */
static int make_room(struct gpas_pgtable *table, size_t words)
{
	const struct journal *journal = &table->journal;

	if (journal->used + words + RECORD_WORDS <= PAGE_WORDS) {
		return 0;
	}
	return push_page(table);
}

/* There is room. Returns the record; its copy goes right before it. */
static struct record *push_record(struct journal *journal, size_t words)
{
	uint64_t *at = journal->top->words + journal->used + words;

	journal->used += words + RECORD_WORDS;
	return (struct record *)(void *)at;
}

int journal_run(struct gpas_pgtable *table, uint64_t *entries, size_t count,
		unsigned level, uint64_t step)
{
	bool garbage = format_is_table(&table->format, *entries, level);
	int error = make_room(table, 0);

	if (error != 0) {
		return error;
	}
	*push_record(&table->journal, 0) = (struct record){
		.entries = entries,
		.value = *entries,
		.step = step,
		.count = (uint32_t)count,
		.level = (uint16_t)level,
		.flags = garbage ? RECORD_GARBAGE : 0,
	};
	table->journal.garbage += garbage;
	return 0;
}

static bool has_tables(const struct gpas_pgtable *table,
		       const uint64_t *entries, size_t count, unsigned level)
{
	for (size_t i = 0; i < count && level > 0; i++) {
		if (format_is_table(&table->format, entries[i], level)) {
			return true;
		}
	}
	return false;
}

/* Copies as many of the entries as fit into the top page. */
static size_t copy_some(struct gpas_pgtable *table, uint64_t *entries,
			size_t count, unsigned level)
{
	struct journal *journal = &table->journal;
	size_t room = PAGE_WORDS - RECORD_WORDS - journal->used;
	size_t words = count < room ? count : room;
	bool garbage = has_tables(table, entries, words, level);

	memcpy(journal->top->words + journal->used, entries,
	       words * sizeof(*entries));
	*push_record(journal, words) = (struct record){
		.entries = entries,
		.count = (uint32_t)words,
		.level = (uint16_t)level,
		.flags = RECORD_COPIED | (garbage ? RECORD_GARBAGE : 0),
	};
	journal->garbage += garbage;
	return words;
}

int journal_any(struct gpas_pgtable *table, uint64_t *entries, size_t count,
		unsigned level)
{
	uint64_t step = format_step(&table->format, level);

	if (count == 1 || (!format_is_table(&table->format, *entries, level) &&
			   pt_is_run(entries, count, *entries, step))) {
		return journal_run(table, entries, count, level, step);
	}
	while (count > 0) {
		size_t least =
			count < MIN_COPIED_WORDS ? count : MIN_COPIED_WORDS;
		int error = make_room(table, least);
		size_t copied;

		if (error != 0) {
			return error;
		}
		copied = copy_some(table, entries, count, level);
		entries += copied;
		count -= copied;
	}
	return 0;
}

static struct place top_place(const struct journal *journal)
{
	struct place place = { journal->top, journal->base, journal->used };

	return place;
}

/* The old entries that precede a COPIED record. */
static const uint64_t *copied_entries(const struct record *record)
{
	return (const uint64_t *)(const void *)record - record->count;
}

/* Moves down over one record and returns it. */
static struct record *step_down(struct place *place)
{
	uint64_t *at = place->page->words + place->used - RECORD_WORDS;
	struct record *record = (struct record *)(void *)at;

	place->used -= RECORD_WORDS;
	if (record->flags & RECORD_COPIED) {
		place->used -= record->count;
	}
	if (place->used == 0 && place->page->prev != NULL) {
		place->used = place->page->prev_used;
		place->base -= PAGE_WORDS;
		place->page = place->page->prev;
	}
	return record;
}

/* Forgets the records above @place. */
static void cut_back(struct gpas_pgtable *table, struct place place)
{
	while (table->journal.top != place.page) {
		pop_page(table);
	}
	table->journal.used = place.used;
}

static void restore(const struct record *record)
{
	const uint64_t *copy = copied_entries(record);
	uint64_t value = record->value;

	for (size_t i = 0; i < record->count; i++) {
		if (record->flags & RECORD_COPIED) {
			value = copy[i];
		}
		pt_store(&record->entries[i], value);
		value += record->step;
	}
}

/*
 * Puts the old entries back. What they replace can be a table only if the
 * record is of one entry; a failed call may also have left the entry alone.
 */
static void undo_record(struct gpas_pgtable *table, struct record *record)
{
	struct journal *journal = &table->journal;
	uint64_t dropped = *record->entries;
	bool copied = record->flags & RECORD_COPIED;

	if (record->flags & RECORD_UNDONE) {
		return;
	}
	restore(record);
	journal->garbage -= (record->flags & RECORD_GARBAGE) != 0;
	record->flags =
		(uint16_t)(RECORD_UNDONE | (copied ? RECORD_COPIED : 0));
	if (record->count == 1 && dropped != *record->entries &&
	    format_is_table(&table->format, dropped, record->level)) {
		record->value = dropped;
		record->flags |= RECORD_GARBAGE;
		journal->garbage++;
	}
}

/* The nodes that this record holds can be seen by nobody any more. */
static void free_garbage(struct gpas_pgtable *table,
			 const struct record *record)
{
	const struct gpas_format *format = &table->format;
	bool in_copy = (record->flags & (RECORD_COPIED | RECORD_UNDONE)) ==
		       RECORD_COPIED;
	const uint64_t *values =
		in_copy ? copied_entries(record) : &record->value;
	size_t count = in_copy ? record->count : 1;

	for (size_t i = 0; i < count; i++) {
		if (format_is_table(format, values[i], record->level)) {
			pt_free_tree(table, pt_child(format, values[i]),
				     record->level - 1u);
		}
	}
}

size_t pt_mark(const struct gpas_pgtable *table)
{
	return table->journal.base + table->journal.used;
}

void pt_undo(struct gpas_pgtable *table, size_t mark)
{
	struct place place = top_place(&table->journal);
	bool keep = false;

	while (place.base + place.used > mark) {
		struct record *record = step_down(&place);

		undo_record(table, record);
		keep = keep || (record->flags & RECORD_GARBAGE);
		if (!keep) {
			cut_back(table, place);
		}
	}
}

bool pt_has_garbage(const struct gpas_pgtable *table)
{
	return table->journal.garbage > 0;
}

void pt_settle(struct gpas_pgtable *table)
{
	struct journal *journal = &table->journal;
	struct place place = top_place(journal);

	while (journal->garbage > 0) {
		const struct record *record = step_down(&place);

		if (record->flags & RECORD_GARBAGE) {
			free_garbage(table, record);
			journal->garbage--;
		}
	}
	while (journal->top->prev != NULL) {
		pop_page(table);
	}
	journal->used = 0;
}
