/* SPDX-License-Identifier: MIT */
#include "fake_kvm.h"

#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

/* virt/kvm/kvm_main.c: KVM_MEM_MAX_NR_PAGES. */
#define MAX_PAGES ((UINT64_C(1) << 31) - 1)
/* MAXPHYADDR is at most 52 bits; a process has 47 bits of its own. */
#define GPA_END	 (UINT64_C(1) << 52)
#define HOST_END ((UINT64_C(1) << 47) - 4096)

void fake_kvm_init(struct fake_kvm *kvm)
{
	*kvm = (struct fake_kvm){ .count = FAKE_SLOT_COUNT };
	kvm->slots = calloc(FAKE_SLOT_COUNT, sizeof(*kvm->slots));
	if (kvm->slots == NULL) {
		abort();
	}
}

void fake_kvm_fini(struct fake_kvm *kvm)
{
	free(kvm->slots);
}

void fake_kvm_mark(struct fake_kvm *kvm)
{
	kvm->calls = 0;
	kvm->adds = 0;
	kvm->deletes = 0;
	kvm->fail_at = 0;
	kvm->again_at = 0;
	kvm->refuse_with = 0;
	kvm->has_failed = false;
	kvm->hole_count = 0;
	kvm->was_replaced = false;
}

void fake_kvm_fail(struct fake_kvm *kvm, uint64_t nth, int error, bool on)
{
	fake_kvm_mark(kvm);
	kvm->fail_at = nth;
	kvm->fail_with = error;
	kvm->fail_on = on;
}

int fake_kvm_attach(struct fake_kvm *kvm, struct gpas *space,
		    const struct gpas_kvm_params *params)
{
	struct gpas_kvm_params checked = *params;
	struct mirror *mirror;
	int err;

	if (checked.slot_count == 0) {
		checked.slot_count = FAKE_SLOT_COUNT - checked.slot_first;
	}
	kvm->first = checked.slot_first;
	kvm->count = checked.slot_count;
	err = mirror_create(&checked, &fake_kvm_ops, kvm, params->lazy,
			    &mirror);
	if (err != 0) {
		return err;
	}
	err = mirror_attach(space, mirror);
	if (err != 0) {
		mirror_destroy(mirror);
	}
	return err;
}

/* ---- The rules ----------------------------------------------------------- */

static void make_mistake(struct fake_kvm *kvm, const char *what)
{
	if (kvm->mistake == NULL) {
		kvm->mistake = what;
	}
}

static bool is_live(const struct fake_kvm *kvm)
{
	return kvm->running != NULL &&
	       __atomic_load_n(kvm->running, __ATOMIC_SEQ_CST) != 0;
}

static bool overlaps(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

/* What kvm_set_memory_region() refuses whatever is installed. */
static bool is_well_formed(const struct slot_desc *slot)
{
	if (((slot->gpa | slot->size | slot->host) & 0xfff) != 0 ||
	    slot->gpa >= GPA_END || slot->size > GPA_END - slot->gpa ||
	    slot->size / GPAS_PAGE_BYTES > MAX_PAGES) {
		return false;
	}
	if (slot->trap) {
		return slot->flags == 0;
	}
	return (slot->flags & ~(uint32_t)KVM_MEM_READONLY) == 0 &&
	       slot->host < HOST_END && slot->size <= HOST_END - slot->host;
}

static bool is_taken(const struct fake_kvm *kvm, const struct slot_desc *slot)
{
	for (uint32_t id = 0; id < kvm->top; id++) {
		const struct slot_desc *other = &kvm->slots[id];

		if (id != slot->id && other->size != 0 &&
		    overlaps(slot->gpa, slot->gpa + slot->size, other->gpa,
			     other->gpa + other->size)) {
			return true;
		}
	}
	return false;
}

static int remove_slot(struct fake_kvm *kvm, uint32_t id)
{
	struct slot_desc *old = &kvm->slots[id];

	if (old->size == 0) {
		return -EINVAL;
	}
	if (is_live(kvm) && kvm->hole_count == FAKE_HOLE_COUNT) {
		make_mistake(kvm, "the fake forgot a deleted range");
	} else if (kvm->hole_count < FAKE_HOLE_COUNT) {
		kvm->holes[kvm->hole_count++] =
			(struct fake_hole){ old->gpa, old->gpa + old->size };
	}
	*old = (struct slot_desc){ 0 };
	return 0;
}

/* A range that comes back after it left was a hole for whoever ran. */
static void look_for_holes(struct fake_kvm *kvm, const struct slot_desc *slot)
{
	for (size_t i = 0; i < kvm->hole_count; i++) {
		if (!overlaps(slot->gpa, slot->gpa + slot->size,
			      kvm->holes[i].start, kvm->holes[i].end)) {
			continue;
		}
		kvm->was_replaced = true;
		if (is_live(kvm) && !kvm->has_failed) {
			make_mistake(kvm, "a running vCPU could see a hole");
		}
	}
}

static int put_slot(struct fake_kvm *kvm, const struct slot_desc *slot)
{
	struct slot_desc *old = &kvm->slots[slot->id];

	if (!is_well_formed(slot)) {
		return -EINVAL;
	}
	/* In place only the GPA may change, and nothing of a guest_memfd. */
	if (old->size != 0 &&
	    (old->trap || slot->trap || old->size != slot->size ||
	     old->host != slot->host || old->flags != slot->flags)) {
		return -EINVAL;
	}
	if (is_taken(kvm, slot)) {
		return -EEXIST;
	}
	if (old->size != 0) {
		make_mistake(kvm, "an installed slot was set again");
	}
	look_for_holes(kvm, slot);
	*old = *slot;
	kvm->top = slot->id < kvm->top ? kvm->top : slot->id + 1;
	return 0;
}

/* What the present call has to fail with, or 0. */
static int demanded_failure(const struct fake_kvm *kvm)
{
	uint64_t nth = kvm->fail_at;

	if (nth == 0) {
		return 0;
	}
	if (kvm->calls == nth || (kvm->fail_on && kvm->calls > nth)) {
		return kvm->fail_with;
	}
	if (kvm->again_at != 0 && kvm->calls == nth + kvm->again_at) {
		return kvm->again_with;
	}
	return 0;
}

/* A trap needs a guest_memfd that is large enough and was made before. */
static int spend(struct fake_kvm *kvm, const struct slot_desc *slot)
{
	if (!slot->trap) {
		return 0;
	}
	if (slot->size > kvm->granted) {
		if (kvm->refuse_with == 0) {
			make_mistake(kvm, "a trap that was not prepared");
		}
		return -EBADF;
	}
	kvm->granted -= slot->size;
	return 0;
}

static int prepare(void *ctx, uint64_t adds, uint64_t deletes)
{
	struct fake_kvm *kvm = ctx;

	if (kvm->granted != 0) {
		make_mistake(kvm, "prepare twice without finish");
	}
	if (kvm->refuse_with != 0) {
		return adds != 0 ? kvm->refuse_with : 0; /* as kvm.c does */
	}
	kvm->granted = adds + deletes;
	return 0;
}

static void finish(void *ctx)
{
	struct fake_kvm *kvm = ctx;

	kvm->granted = 0;
}

static int set(void *ctx, const struct slot_desc *slot)
{
	struct fake_kvm *kvm = ctx;
	int err;

	kvm->calls++;
	if (slot->size == 0) {
		kvm->deletes++;
	} else {
		kvm->adds++;
	}
	if (slot->id < kvm->first || slot->id - kvm->first >= kvm->count) {
		make_mistake(kvm, "a slot number of the embedder's was used");
	}
	err = demanded_failure(kvm);
	if (err != 0) {
		kvm->has_failed = true;
		return err;
	}
	if (slot->id >= FAKE_SLOT_COUNT) {
		return -EINVAL;
	}
	err = spend(kvm, slot);
	if (err != 0) {
		return err;
	}
	return slot->size == 0 ? remove_slot(kvm, slot->id)
			       : put_slot(kvm, slot);
}

const struct slot_ops fake_kvm_ops = {
	.prepare = prepare,
	.set = set,
	.finish = finish,
};

/* ---- What a guest would meet --------------------------------------------- */

const struct slot_desc *fake_kvm_find(const struct fake_kvm *kvm, uint64_t gpa)
{
	for (uint32_t id = 0; id < kvm->top; id++) {
		const struct slot_desc *slot = &kvm->slots[id];

		if (slot->gpa <= gpa && gpa - slot->gpa < slot->size) {
			return slot;
		}
	}
	return NULL;
}

enum fake_kind fake_kvm_translate(const struct fake_kvm *kvm, uint64_t gpa,
				  uint64_t *host)
{
	const struct slot_desc *slot = fake_kvm_find(kvm, gpa);

	if (slot == NULL || slot->trap) {
		return slot == NULL ? FAKE_NONE : FAKE_TRAP;
	}
	*host = slot->host + (gpa - slot->gpa);
	return (slot->flags & KVM_MEM_READONLY) != 0 ? FAKE_READ_ONLY
						     : FAKE_WRITABLE;
}

size_t fake_kvm_slots(const struct fake_kvm *kvm, size_t *traps)
{
	size_t installed = 0;
	size_t trapping = 0;

	for (uint32_t id = 0; id < kvm->top; id++) {
		installed += kvm->slots[id].size != 0;
		trapping += kvm->slots[id].size != 0 && kvm->slots[id].trap;
	}
	if (traps != NULL) {
		*traps = trapping;
	}
	return installed;
}

/* ---- What the space asks for --------------------------------------------- */

/* The installed slots in ascending order of address, and how far they have
 * been compared. */
struct comparison {
	struct slot_desc *slots;
	size_t count;
	size_t next; /* the first slot that ends above what was compared */
	const char *wrong;
	uint64_t at;
};

/* A range that must be met in one way. */
struct expectation {
	uint64_t start;
	uint64_t end;
	enum fake_kind kind;
	uint64_t host; /* of start */
};

static int compare_gpa(const void *a, const void *b)
{
	const struct slot_desc *left = a;
	const struct slot_desc *right = b;

	return left->gpa < right->gpa ? -1 : left->gpa > right->gpa;
}

static const char *judge_slot(const struct slot_desc *slot,
			      const struct expectation *want, uint64_t at)
{
	bool read_only = (slot->flags & KVM_MEM_READONLY) != 0;

	if (want->kind == FAKE_NONE) {
		return "a slot where there should be none";
	}
	if (slot->trap != (want->kind == FAKE_TRAP)) {
		return slot->trap ? "a trap over present memory"
				  : "memory where a trap should be";
	}
	if (slot->trap) {
		return NULL;
	}
	if (read_only != (want->kind == FAKE_READ_ONLY)) {
		return read_only ? "read-only, should be writable"
				 : "writable, should be read-only";
	}
	return slot->host + (at - slot->gpa) != want->host + (at - want->start)
		       ? "a slot with the wrong host address"
		       : NULL;
}

static void expect(struct comparison *c, const struct expectation *want)
{
	uint64_t at = want->start;

	while (c->wrong == NULL && at < want->end) {
		const struct slot_desc *slot;

		while (c->next < c->count &&
		       c->slots[c->next].gpa + c->slots[c->next].size <= at) {
			c->next++;
		}
		slot = c->next < c->count ? &c->slots[c->next] : NULL;
		c->at = at;
		if (slot == NULL || slot->gpa > at) {
			if (want->kind != FAKE_NONE) {
				c->wrong = "no slot where there should be one";
			}
			at = slot != NULL ? slot->gpa : want->end;
			continue;
		}
		c->wrong = judge_slot(slot, want, at);
		at = slot->gpa + slot->size;
	}
}

/* The part of a region from @at on that is met in one way. */
static struct expectation expect_region(struct gpas *space,
					const struct gpas_region *region,
					uint64_t at, enum gpas_lazy lazy)
{
	struct expectation want = {
		.start = at,
		.end = region->start.value + region->size,
	};
	struct gpas_extent extent;
	bool readable = (region->prot & GPAS_PROT_READ) != 0;

	if (gpas_extent_next(space, gpas_gpa_at(at), &extent) != 0) {
		extent.start.value = UINT64_MAX;
	}
	if (extent.start.value > at) {
		want.end = extent.start.value < want.end ? extent.start.value
							 : want.end;
		want.kind = region->lazy && readable && lazy == GPAS_LAZY_TRAP
				    ? FAKE_TRAP
				    : FAKE_NONE;
		return want;
	}
	want.end = at + extent.size < want.end ? at + extent.size : want.end;
	want.host = extent.host.value;
	if ((extent.prot & GPAS_PROT_READ) != 0) {
		want.kind = (extent.prot & GPAS_PROT_WRITE) != 0
				    ? FAKE_WRITABLE
				    : FAKE_READ_ONLY;
	}
	return want;
}

static void expect_space(struct comparison *c, struct gpas *space,
			 enum gpas_lazy lazy)
{
	uint64_t at = gpas_base(space).value;
	uint64_t end = gpas_end(space).value;
	struct gpas_region region;

	while (c->wrong == NULL && at < end) {
		struct expectation want = { .start = at, .end = end };

		if (gpas_region_next(space, gpas_gpa_at(at), &region) != 0) {
			expect(c, &want);
			break;
		}
		if (region.start.value > at) {
			want.end = region.start.value;
		} else {
			want = expect_region(space, &region, at, lazy);
		}
		expect(c, &want);
		at = want.end;
	}
}

const char *fake_kvm_verify(const struct fake_kvm *kvm, struct gpas *space,
			    enum gpas_lazy lazy, uint64_t *at)
{
	struct comparison c = { 0 };

	if (kvm->mistake != NULL) {
		*at = 0;
		return kvm->mistake;
	}
	c.slots = calloc(kvm->top + 1, sizeof(*c.slots));
	if (c.slots == NULL) {
		abort();
	}
	for (uint32_t id = 0; id < kvm->top; id++) {
		if (kvm->slots[id].size != 0) {
			c.slots[c.count++] = kvm->slots[id];
		}
	}
	qsort(c.slots, c.count, sizeof(*c.slots), compare_gpa);
	expect_space(&c, space, lazy);
	if (c.wrong == NULL && c.count > 0 &&
	    (c.slots[0].gpa < gpas_base(space).value ||
	     c.slots[c.count - 1].gpa + c.slots[c.count - 1].size >
		     gpas_end(space).value)) {
		c.wrong = "a slot outside the space";
	}
	free(c.slots);
	*at = c.at;
	return c.wrong;
}
