/* SPDX-License-Identifier: MIT */
/*
 * The guest's RAM: what no other region takes of its memory, how it becomes
 * present, and what the guest may ask to be done with it. A guest gives ranges
 * back, has them made present, or offers them: memory it can do without, which
 * is taken away when the budget is short. It may also seal them against
 * writing.
 */
#include "vm.h"

#include <errno.h>
#include <string.h>

/* With no --granule, touches in sequence or close together make lazy memory
 * present in ever larger steps. The host commits at once what userfaultfd makes
 * present, so there the steps stay smaller. */
#define GRANULE_DEFAULT	 (UINT64_C(64) << 10)
#define GRANULE_MAX	 (UINT64_C(64) << 20)
#define UFFD_GRANULE_MAX (UINT64_C(2) << 20)

/* ---- Mapping ------------------------------------------------------------- */

int ram_size(struct vm *vm)
{
	uint64_t size = vm->options->mem;
	uint64_t low = arch_layout.low_ram_end.value;
	uint64_t limit = arch_gpa_limit(vm);

	vm->ram_end = gpas_gpa_at(size);
	if (limit > gpas_end(vm->space).value) {
		limit = gpas_end(vm->space).value;
	}
	if (size > low &&
	    gpas_gpa_add(arch_layout.high_ram, size - low, &vm->ram_end)) {
		limit = 0;
	}
	if (vm->ram_end.value > limit) {
		tell("--mem %s is more than this processor can address",
		     size_text(size).text);
		return STATUS_USAGE;
	}
	return 0;
}

static void choose_granules(const struct options *options,
			    struct gpas_map_params *params)
{
	bool uffd = options->lazy == GPAS_LAZY_UFFD;

	params->lazy = true;
	params->mechanism = uffd ? GPAS_LAZY_UFFD : GPAS_LAZY_AUTO;
	params->granule = options->granule;
	if (options->granule == 0) {
		params->granule = GRANULE_DEFAULT;
		params->granule_max = uffd ? UFFD_GRANULE_MAX : GRANULE_MAX;
	}
}

/* Map RAM, the file's or zeros; a range is wholly one or the other. */
static int map_piece(struct vm *vm, struct gpas_range range, bool restored)
{
	struct gpas_map_params params = { .name = RAM_NAME };

	if (!vm->options->eager) {
		choose_granules(vm->options, &params);
	}
	if (restored) {
		restore_params(&vm->restore, range.start, &params);
	}
	return gpas_map_alloc(vm->space, range.start, gpas_range_size(range),
			      GPAS_PROT_RWX, &params);
}

int ram_map_range(struct vm *vm, struct gpas_range range)
{
	struct gpas_range file = { { 0 }, { vm->restore.size } };
	struct gpas_range rest = range;
	int error = 0;

	file = gpas_range_intersect(range, file);
	if (!gpas_range_is_empty(file)) {
		error = map_piece(vm, file, true);
		rest.start = file.end;
	}
	if (error == 0 && !gpas_range_is_empty(rest)) {
		error = map_piece(vm, rest, false);
	}
	return error;
}

/* What no other region takes of [start, end) becomes RAM. */
static int map_between(struct vm *vm, gpas_gpa start, gpas_gpa end)
{
	gpas_gpa at = start;
	int error = 0;

	while (error == 0 && at.value < end.value) {
		struct gpas_region region;
		gpas_gpa next = end, after = end;

		if (gpas_region_next(vm->space, at, &region) == 0 &&
		    region.start.value < end.value) {
			next = region.start;
			after.value = region.start.value + region.size;
		}
		if (next.value > at.value) {
			error = ram_map_range(vm,
					      (struct gpas_range){ at, next });
		}
		at = after;
	}
	return error;
}

static int map_all(struct vm *vm)
{
	gpas_gpa low_end = arch_layout.low_ram_end;
	int error;

	if (vm->ram_end.value <= low_end.value) {
		return map_between(vm, arch_layout.null_page, vm->ram_end);
	}
	error = map_between(vm, arch_layout.null_page, low_end);
	if (error == 0) {
		error = map_between(vm, arch_layout.high_ram, vm->ram_end);
	}
	return error;
}

int ram_map(struct vm *vm)
{
	const struct options *options = vm->options;
	unsigned long said = vm->library_errors;
	int error = map_all(vm);

	if (error == 0) {
		return 0;
	}
	if (error == -ENOMEM && options->eager && options->budget != 0) {
		tell("--budget %s is less than --lazy off makes present at "
		     "once, all of --mem %s",
		     size_text(options->budget).text,
		     size_text(options->mem).text);
		return STATUS_NO_MEMORY;
	}
	if (options->lazy == GPAS_LAZY_UFFD && error != -ENOMEM) {
		if (vm->library_errors == said) {
			tell("no usable userfaultfd: %s", strerror(-error));
		}
		return STATUS_NO_KVM;
	}
	tell("mapping the memory: %s", strerror(-error));
	return STATUS_HOST;
}

/* ---- What the guest asks for --------------------------------------------- */

/* Whether the guest may dispose of it: all of it is RAM. */
static bool is_ram(struct vm *vm, struct gpas_range range)
{
	gpas_gpa at = range.start;

	while (at.value < range.end.value) {
		struct gpas_region region;

		if (gpas_region_find(vm->space, at, &region) != 0 ||
		    strcmp(region.name, RAM_NAME) != 0) {
			return false;
		}
		at.value = region.start.value + region.size;
	}
	return true;
}

static void remove_offer(struct offers *offers, unsigned index)
{
	offers->count--;
	memmove(&offers->ranges[index], &offers->ranges[index + 1],
		(offers->count - index) * sizeof(offers->ranges[0]));
}

/* A later word about a range outdates an offer of it. Where that would leave
 * two pieces and there is no room for both, the second is no offer any more. */
static void forget_offers(struct offers *offers, struct gpas_range range)
{
	for (unsigned i = offers->count; i-- > 0;) {
		struct gpas_range *offer = &offers->ranges[i];
		struct gpas_range before = { offer->start, range.start };
		struct gpas_range after = { range.end, offer->end };

		if (!gpas_range_overlaps(*offer, range)) {
			continue;
		}
		if (before.start.value < before.end.value) {
			*offer = before;
			if (after.start.value < after.end.value &&
			    offers->count < OFFER_MAX) {
				offers->ranges[offers->count++] = after;
			}
		} else if (after.start.value < after.end.value) {
			*offer = after;
		} else {
			remove_offer(offers, i);
		}
	}
}

/* A range that adjoins the newest offer becomes part of it. */
static int add_offer(struct offers *offers, struct gpas_range range)
{
	struct gpas_range *newest = NULL;

	if (offers->count > 0) {
		newest = &offers->ranges[offers->count - 1];
	}
	if (newest != NULL && newest->end.value == range.start.value) {
		newest->end = range.end;
	} else if (newest != NULL && newest->start.value == range.end.value) {
		newest->start = range.start;
	} else if (offers->count == OFFER_MAX) {
		return -ENOSPC;
	} else {
		offers->ranges[offers->count++] = range;
	}
	return 0;
}

static int command(struct vm *vm, uint64_t what, struct gpas_range range)
{
	uint64_t size = gpas_range_size(range);

	switch (what) {
	case RAM_GIVE:
		return gpas_discard(vm->space, range.start, size);
	case RAM_TAKE:
		return gpas_populate(vm->space, range.start, size);
	case RAM_OFFER:
		return add_offer(&vm->offers, range);
	case RAM_SEAL:
		return gpas_protect(vm->space, range.start, size, GPAS_PROT_RX);
	case RAM_UNSEAL:
		return gpas_protect(vm->space, range.start, size,
				    GPAS_PROT_RWX);
	default:
		return -ENOSYS;
	}
}

int ram_command(struct vm *vm, uint64_t what, gpas_gpa start, uint64_t size)
{
	struct gpas_range range;
	int error;

	if (gpas_range_make(start, size, &range) != 0 || size == 0 ||
	    !gpas_is_aligned(start.value | size, GPAS_PAGE_BYTES)) {
		return -EINVAL;
	}
	if (!is_ram(vm, range)) {
		return -EACCES;
	}
	pthread_mutex_lock(&vm->offers.lock);
	forget_offers(&vm->offers, range);
	error = command(vm, what, range);
	pthread_mutex_unlock(&vm->offers.lock);
	return error;
}

/* ---- The budget ---------------------------------------------------------- */

/* Give back to the host what was offered first, @wanted bytes of it. */
static uint64_t take_offers(struct vm *vm, uint64_t wanted)
{
	struct offers *offers = &vm->offers;
	uint64_t freed = 0;

	pthread_mutex_lock(&offers->lock);
	while (freed < wanted && offers->count > 0) {
		struct gpas_range range = offers->ranges[0];

		if (gpas_range_size(range) > wanted - freed) {
			range.end.value = range.start.value + (wanted - freed);
		}
		forget_offers(offers, range);
		if (gpas_discard(vm->space, range.start,
				 gpas_range_size(range)) == 0) {
			freed += gpas_range_size(range);
		}
	}
	offers->taken += freed;
	pthread_mutex_unlock(&offers->lock);
	return freed;
}

int ram_pressure(void *ctx, struct gpas *space, uint64_t wanted)
{
	struct vm *vm = ctx;

	(void)space;
	if (take_offers(vm, wanted) > 0) {
		return 0;
	}
	if (!atomic_exchange(&vm->budget_told, true)) {
		tell("--budget %s is used up: %s more are denied, and the "
		     "guest offers nothing",
		     size_text(vm->options->budget).text,
		     size_text(wanted).text);
	}
	return -ENOMEM;
}
