/* SPDX-License-Identifier: MIT */
/*
 * The mirror: its slots, and carrying out the differences that plan.c makes.
 */
#include "mirror.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Nodes held back for a release call: an unmap can cut one slot and one trap,
 * and a trap is re-covered by up to two per power of two. */
#define SPARE_SLOTS 96

/* ---- Nodes and numbers --------------------------------------------- */

int mirror_reserve(struct mirror *mirror)
{
	while (mirror->spare_count < SPARE_SLOTS) {
		struct slot *slot = malloc(sizeof(*slot));

		if (slot == NULL) {
			return -ENOMEM;
		}
		slot->link = mirror->spare;
		mirror->spare = slot;
		mirror->spare_count++;
	}
	return 0;
}

struct slot *mirror_take_node(struct mirror *mirror)
{
	struct slot *slot = mirror->spare;

	if (slot == NULL) {
		return malloc(sizeof(*slot));
	}
	mirror->spare = slot->link;
	mirror->spare_count--;
	return slot;
}

void mirror_give_node(struct mirror *mirror, struct slot *slot)
{
	if (mirror->spare_count >= SPARE_SLOTS) {
		free(slot);
		return;
	}
	slot->link = mirror->spare;
	mirror->spare = slot;
	mirror->spare_count++;
}

/* A free slot number. The limit was checked: there is one. */
static uint32_t take_id(struct mirror *mirror)
{
	if (mirror->free_count > 0) {
		return mirror->free_ids[--mirror->free_count];
	}
	return mirror->next_id++;
}

static void give_id(struct mirror *mirror, uint32_t id)
{
	mirror->free_ids[mirror->free_count++] = id;
}

int mirror_create(const struct gpas_kvm_params *params,
		  const struct slot_ops *ops, void *ctx, enum gpas_lazy lazy,
		  struct mirror **ret)
{
	struct mirror *mirror = calloc(1, sizeof(*mirror));

	if (mirror == NULL) {
		return -ENOMEM;
	}
	mirror->ops = ops;
	mirror->ops_ctx = ctx;
	mirror->trap_max = TRAP_MAX_BYTES;
	mirror->trap_chunk = TRAP_MAX_BYTES;
	mirror->trap_grain = TRAP_GRAIN;
	mirror->trap_file.fd = -1;
	mirror->params = *params;
	mirror->lazy = lazy;
	mirror->next_id = params->slot_first;
	mirror->free_ids =
		malloc(params->slot_count * sizeof(*mirror->free_ids));
	if (mirror->free_ids == NULL || mirror_reserve(mirror) != 0) {
		mirror_destroy(mirror);
		return -ENOMEM;
	}
	*ret = mirror;
	return 0;
}

void mirror_destroy(struct mirror *mirror)
{
	struct slot *slot;
	struct span *span;

	while ((slot = mirror->spare) != NULL) {
		mirror->spare = slot->link;
		free(slot);
	}
	while ((span = mirror->slots.first) != NULL) {
		span_remove(&mirror->slots, span);
		free(slot_of(span));
	}
	if (mirror->trap_area.host != NULL) {
		reservation_destroy(&mirror->trap_area);
	}
	free(mirror->free_ids);
	free(mirror);
}

/* ---- Commit -------------------------------------------------------- */

static int set_slot(struct gpas *space, const struct slot *slot, bool present)
{
	struct mirror *mirror = space->mirror;
	struct slot_desc desc = { .id = slot->id };
	uint64_t begun = clock_ns();
	int err;

	if (present) {
		desc.flags = slot->flags;
		desc.gpa = slot->span.start;
		desc.size = slot->span.end - slot->span.start;
		desc.host = slot->host;
		desc.trap = slot->trap;
	}
	err = mirror->ops->set(mirror->ops_ctx, &desc);
	count(&space->stats.kvm_ns, clock_ns() - begun);
	count(present ? &space->stats.slot_adds : &space->stats.slot_deletes,
	      1);
	if (err != 0) {
		space_log(
			space, GPAS_LOG_ERROR,
			"KVM refused to %s slot %u (GPA %#llx, %#llx bytes, "
			"flags %#x%s): %s",
			present ? "add" : "delete", slot->id,
			(unsigned long long)slot->span.start,
			(unsigned long long)(slot->span.end - slot->span.start),
			slot->flags, slot->trap ? ", trap" : "",
			strerror(-err));
	}
	return err;
}

static void poison(struct gpas *space)
{
	space->poisoned = true;
	space->mirror->lost = true;
	space_log(space, GPAS_LOG_ERROR,
		  "KVM refused to undo a failed change of its memslots: the "
		  "space accepts only clear, detach and destroy from now on");
}

/* Whether an errno says that this kernel or process gets no traps, rather
 * than that something went wrong this once. */
static bool refuses_traps(int err)
{
	return err == -EOPNOTSUPP || err == -EPERM || err == -ENODEV ||
	       err == -ENOSYS || err == -EMFILE || err == -ENFILE;
}

/* Carries out the diff's ioctls. On error those done are undone again. */
static int issue(struct gpas *space, struct diff *diff)
{
	struct slot *deleted = diff->deletes;
	struct slot *added = diff->adds;
	struct slot *slot;
	int err = 0;

	while (deleted != NULL &&
	       (err = set_slot(space, deleted, false)) == 0) {
		deleted = deleted->link;
	}
	while (err == 0 && added != NULL &&
	       (err = set_slot(space, added, true)) == 0) {
		added = added->link;
	}
	if (err == 0) {
		return 0;
	}
	if (added != NULL && added->trap && refuses_traps(err)) {
		space->mirror->traps_refused = true;
	}
	for (slot = diff->adds; slot != added; slot = slot->link) {
		if (set_slot(space, slot, false) != 0) {
			poison(space);
			return -ENOTRECOVERABLE;
		}
	}
	for (slot = diff->deletes; slot != deleted; slot = slot->link) {
		if (set_slot(space, slot, true) != 0) {
			poison(space);
			return -ENOTRECOVERABLE;
		}
	}
	return err;
}

static uint64_t trap_bytes(const struct slot *slot)
{
	uint64_t bytes = 0;

	for (; slot != NULL; slot = slot->link) {
		bytes += slot->trap ? slot->span.end - slot->span.start : 0;
	}
	return bytes;
}

/* Obtains what the diff's traps need, before any slot is touched. */
static int prepare_traps(struct gpas *space, const struct diff *diff)
{
	struct mirror *mirror = space->mirror;
	uint64_t begun;
	uint64_t adds = trap_bytes(diff->adds);
	uint64_t deletes = trap_bytes(diff->deletes);
	int err;

	if (mirror->ops->prepare == NULL || adds + deletes == 0) {
		return 0;
	}
	begun = clock_ns();
	err = mirror->ops->prepare(mirror->ops_ctx, adds, deletes);
	count(&space->stats.kvm_ns, clock_ns() - begun);
	mirror->traps_refused = refuses_traps(err);
	return err;
}

/* Prepares, issues and ends. */
static int carry_out(struct gpas *space, struct diff *diff)
{
	struct mirror *mirror = space->mirror;
	int err = prepare_traps(space, diff);

	if (err != 0) {
		return err;
	}
	err = issue(space, diff);
	if (mirror->ops->finish != NULL) {
		uint64_t begun = clock_ns();

		mirror->ops->finish(mirror->ops_ctx);
		count(&space->stats.kvm_ns, clock_ns() - begun);
	}
	return err;
}

/* The numbers for the new slots; those of the slots that go may serve. */
static void number_adds(struct mirror *mirror, struct diff *diff)
{
	struct slot *reuse = diff->deletes;

	for (struct slot *slot = diff->adds; slot != NULL; slot = slot->link) {
		if (reuse != NULL) {
			slot->id = reuse->id;
			reuse = reuse->link;
		} else {
			slot->id = take_id(mirror);
		}
	}
}

/* Gives back the numbers that number_adds took beyond the reused ones. */
static void unnumber_adds(struct mirror *mirror, struct diff *diff)
{
	size_t reused = diff->delete_count;

	for (struct slot *slot = diff->adds; slot != NULL; slot = slot->link) {
		if (reused > 0) {
			reused--;
		} else {
			give_id(mirror, slot->id);
		}
	}
}

/* Publishes a diff that KVM accepted in the set of installed slots. */
static void diff_apply(struct mirror *mirror, struct diff *diff)
{
	size_t reused = diff->add_count;
	struct slot *next;

	for (struct slot *slot = diff->deletes; slot != NULL; slot = next) {
		next = slot->link;
		span_remove(&mirror->slots, &slot->span);
		mirror->trap_count -= slot->trap;
		if (reused > 0) {
			reused--;
		} else {
			give_id(mirror, slot->id);
		}
		mirror_give_node(mirror, slot);
	}
	for (struct slot *slot = diff->adds; slot != NULL; slot = next) {
		next = slot->link;
		(void)span_insert(&mirror->slots, &slot->span);
		mirror->trap_count += slot->trap;
	}
}

bool mirror_is_live(const struct mirror *mirror)
{
	const struct gpas_vcpu *vcpu;

	for (vcpu = mirror->vcpus; vcpu != NULL; vcpu = vcpu->next) {
		if (gpas_vcpu_running(vcpu)) {
			return true;
		}
	}
	return false;
}

/* Whether memory (or a trap) that is there before and after would be gone in
 * between: some new slot overlaps one that goes. */
static bool replaces(const struct mirror *mirror, const struct diff *diff)
{
	for (const struct slot *slot = diff->adds; slot != NULL;
	     slot = slot->link) {
		const struct span *span =
			span_from(&mirror->slots, slot->span.start);

		if (diff->deletes != NULL && span != NULL &&
		    span->start < slot->span.end) {
			return true;
		}
	}
	return false;
}

void mirror_release_vcpus(struct gpas *space, bool paused)
{
	struct mirror *mirror = space->mirror;

	atomic_store(&mirror->replacing, 0);
	if (paused && mirror->params.resume != NULL) {
		mirror->params.resume(mirror->params.ctx);
	}
}

/* How long a vCPU may take from announcing itself to seeing that it must not
 * enter: a few instructions, unless its thread is not scheduled. */
#define RETREAT_NS UINT64_C(2000000000)

/* Whether no vCPU runs, once those that were just about to have retreated. */
static bool all_stopped(const struct mirror *mirror)
{
	uint64_t begun = clock_ns();

	while (mirror_is_live(mirror)) {
		if (clock_ns() - begun > RETREAT_NS) {
			return false;
		}
		sched_yield();
	}
	return true;
}

int mirror_hold_vcpus(struct gpas *space, bool *paused)
{
	struct mirror *mirror = space->mirror;

	*paused = false;
	atomic_store(&mirror->replacing, 1);
	if (!mirror_is_live(mirror)) {
		return 0;
	}
	if (mirror->params.pause == NULL) {
		atomic_store(&mirror->replacing, 0);
		space_log(
			space, GPAS_LOG_ERROR,
			"refused: a vCPU runs while memslots are to be "
			"replaced or audited, and there is no pause callback");
		return -EBUSY;
	}
	*paused = true;
	count(&space->stats.pauses, 1);
	mirror->params.pause(mirror->params.ctx);
	if (all_stopped(mirror)) {
		return 0;
	}
	mirror_release_vcpus(space, true);
	space_log(space, GPAS_LOG_ERROR,
		  "refused: the pause callback returned while a vCPU runs");
	return -EBUSY;
}

static int commit(struct gpas *space, struct diff *diff)
{
	struct mirror *mirror = space->mirror;
	bool hold = replaces(mirror, diff);
	bool paused = false;
	int err = hold ? mirror_hold_vcpus(space, &paused) : 0;

	if (err != 0) {
		diff_drop(mirror, diff);
		return err;
	}
	number_adds(mirror, diff);
	err = carry_out(space, diff);
	if (err == 0) {
		diff_apply(mirror, diff);
	} else {
		unnumber_adds(mirror, diff);
		diff_drop(mirror, diff);
	}
	if (hold) {
		mirror_release_vcpus(space, paused);
	}
	return err;
}

static bool fits(const struct mirror *mirror, const struct diff *diff)
{
	return mirror->slots.count + diff->add_count - diff->delete_count <=
	       mirror->params.slot_count;
}

/* Replans with the slots of the whole space merged, and large traps from now
 * on. */
static int diff_squeeze(struct gpas *space, struct diff *diff)
{
	int err;

	space->mirror->trap_chunk = space->mirror->trap_max;
	diff_drop(space->mirror, diff);
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
	err = diff_make(space, true, diff);
	if (err == 0 && !fits(space->mirror, diff)) {
		space_log(space, GPAS_LOG_ERROR,
			  "no memslot left: %zu in use, %zu more wanted, %u "
			  "allowed",
			  space->mirror->slots.count,
			  diff->add_count - diff->delete_count,
			  space->mirror->params.slot_count);
		diff_drop(space->mirror, diff);
		err = -ENOSPC;
	}
	return err;
}

/* Makes and carries out one diff. */
static int update(struct gpas *space, bool merge)
{
	bool live = mirror_is_live(space->mirror);
	bool can_hold = !live || space->mirror->params.pause != NULL;
	struct diff diff;
	int err;

	/* Joining for tidiness is not worth stopping anybody for. */
	err = diff_make(space, space->merge ? can_hold : merge && !live, &diff);
	if (err == 0 && !fits(space->mirror, &diff)) {
		err = diff_squeeze(space, &diff);
	}
	if (err == 0) {
		err = commit(space, &diff);
	}
	return err;
}

/* Lazy memory faults by absent slots from now on, everywhere. */
static void give_up_traps(struct gpas *space)
{
	struct mirror *mirror = space->mirror;

	mirror->traps_refused = false;
	mirror->lazy = GPAS_LAZY_ABSENT;
	(void)snprintf(mirror->lazy_reason, sizeof(mirror->lazy_reason),
		       "a trap slot was refused while running");
	space_log(space, GPAS_LOG_WARNING,
		  "%s: lazy memory faults by absent slots from now on",
		  mirror->lazy_reason);
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
}

int mirror_update(struct gpas *space, bool merge)
{
	struct mirror *mirror = space->mirror;
	int err;

	if (mirror->lost) {
		return mirror_remove_all(space);
	}
	err = update(space, merge);
	if (mirror->slots.count < mirror->params.slot_count / 2) {
		atomic_store(&space->slot_floor, 0);
	}
	if (mirror->traps_refused && err != -ENOTRECOVERABLE) {
		give_up_traps(space);
		err = update(space, merge);
		if (err != 0) {
			mirror->lazy =
				GPAS_LAZY_TRAP; /* they are still there */
		}
	}
	return err;
}

int mirror_attach(struct gpas *space, struct mirror *mirror)
{
	bool locked = space_lock(space);
	int err = 0;

	if (space->mirror != NULL || !locked) {
		err = -EBUSY;
	} else {
		space->mirror = mirror;
		space->windows[0] = (struct window){ space->base, space->end };
		space->window_count = 1;
		err = mirror_update(space, false);
		space->window_count = 0;
		if (err != 0) {
			space->mirror = NULL;
			space->poisoned = false;
		}
	}
	space_unlock(space, locked);
	return err;
}

/* With slots lost track of, every number that was ever used may be one. */
static int remove_lost(struct mirror *mirror)
{
	struct slot_desc desc = { 0 };

	for (uint32_t id = mirror->params.slot_first; id < mirror->next_id;
	     id++) {
		int err;

		desc.id = id;
		err = mirror->ops->set(mirror->ops_ctx, &desc);
		if (err != 0 && err != -EINVAL) { /* EINVAL: no such slot */
			return err;
		}
	}
	return 0;
}

int mirror_remove_all(struct gpas *space)
{
	struct mirror *mirror = space->mirror;
	struct span *span;
	int err = mirror->lost ? remove_lost(mirror) : 0;

	for (span = mirror->slots.first; err == 0 && span != NULL;
	     span = span->next) {
		if (!mirror->lost) {
			err = set_slot(space, slot_of(span), false);
		}
	}
	if (err != 0) {
		poison(space);
		return err;
	}
	while ((span = mirror->slots.first) != NULL) {
		span_remove(&mirror->slots, span);
		free(slot_of(span));
	}
	mirror->trap_count = 0;
	mirror->free_count = 0;
	mirror->next_id = mirror->params.slot_first;
	mirror->lost = false;
	space->poisoned = false;
	return 0;
}

int mirror_check(struct gpas *space)
{
	struct diff diff;
	bool wrong;

	/* Inside a group the slots lag behind on purpose. */
	if (space->mirror == NULL || space->mirror->lost ||
	    space->window_count != 0) {
		return 0;
	}
	space->windows[0] = (struct window){ space->base, space->end };
	space->window_count = 1;
	wrong = diff_make(space, false, &diff) != 0;
	space->window_count = 0;
	if (!wrong) {
		wrong = diff.add_count != 0 || diff.delete_count != 0;
		diff_drop(space->mirror, &diff);
	}
	return wrong || span_check(&space->mirror->slots) != 0 ? -EUCLEAN : 0;
}
