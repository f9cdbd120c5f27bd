/* SPDX-License-Identifier: MIT */
/*
 * The audit: what KVM and the host say is there, against what the space
 * records.
 *
 * KVM has no call that lists memslots, but what it refuses tells. In order, its
 * checks of a request (virt/kvm/kvm_main.c, __kvm_set_memory_region) are: a
 * number in use with another size, host address or kind is -EINVAL; a place
 * that another number covers is -EEXIST; the same slot once more is 0 and
 * changes nothing. So a request for one page, under a number, at a host address
 * that no slot has, is answered
 *
 *   -EINVAL  the number is in use,
 *   -EEXIST  it is not, and some slot covers the page,
 *   0        neither; the slot that this made is deleted again.
 *
 * A slot is proven by three answers: its first and its last page are covered,
 * and asking for it once more is 0. For were the number unused, it would have
 * been refused as an overlap; and were the slot of this size elsewhere, the
 * request would have been a move, refused likewise unless it was the very slot
 * that covers both ends, which puts it where it should be.
 */
#include "kvm_abi.h"
#include "mirror.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

struct audit {
	struct gpas *space;
	const struct gpas_audit_params *params;
	struct gpas_audit done;
	int vm_fd;
	/* Inside the caller's stack: no slot has its page as host address. */
	uint64_t odd_host;
	uint8_t *recorded; /* a bit for each slot number: the space has it */
	uint32_t spare_id; /* a number that is not in use */
	uint64_t anchor;   /* a page that some slot covers */
	bool has_anchor;
};

__attribute__((format(printf, 2, 3))) static void found(struct audit *audit,
							const char *format, ...)
{
	va_list args;

	va_start(args, format);
	space_log_finding(audit->space, "audit", format, args);
	va_end(args);
	audit->done.findings++;
}

/* ---- Asking KVM about slots ---------------------------------------- */

static int request(const struct audit *audit, const struct slot_desc *slot)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->id,
		.flags = slot->flags,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = slot->host,
	};

	return ioctl(audit->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0
		       ? 0
		       : -errno;
}

/* Requests the page at @gpa under number @id; see the file's comment. */
static int request_page(const struct audit *audit, uint32_t id, uint64_t gpa)
{
	return request(audit, &(struct slot_desc){
				      .id = id,
				      .gpa = gpa,
				      .size = GPAS_PAGE_BYTES,
				      .host = audit->odd_host,
			      });
}

static int delete_slot(const struct audit *audit, uint32_t id)
{
	return request(audit, &(struct slot_desc){ .id = id });
}

/* Whether some slot covers the page at @gpa, or -errno. */
static int is_covered(const struct audit *audit, uint64_t gpa)
{
	int err = request_page(audit, audit->spare_id, gpa);

	if (err == -EEXIST) {
		return 1;
	}
	return err == 0 ? delete_slot(audit, audit->spare_id) : err;
}

/* Whether number @id is in use, or -errno. The anchor exists. */
static int is_used(const struct audit *audit, uint32_t id)
{
	int err = request_page(audit, id, audit->anchor);

	return err == -EEXIST ? 0 : err == -EINVAL ? 1 : err;
}

/* A dirty log can be asked to clear no page at all: that tells whether there
 * is one, and changes nothing. */
static bool has_dirty_log(const struct audit *audit, uint32_t id)
{
	struct kvm_clear_dirty_log log = { .slot = id };

	return ioctl(audit->vm_fd, KVM_CLEAR_DIRTY_LOG, &log) == 0;
}

/* ---- Slots --------------------------------------------------------- */

static bool is_recorded(const struct audit *audit, uint32_t id)
{
	uint32_t bit = id - audit->space->mirror->params.slot_first;

	return (audit->recorded[bit / 8] >> bit % 8 & 1) != 0;
}

static int record_numbers(struct audit *audit)
{
	const struct mirror *mirror = audit->space->mirror;
	struct span *span;

	audit->recorded = calloc(mirror->params.slot_count / 8 + 1, 1);
	if (audit->recorded == NULL) {
		return -ENOMEM;
	}
	for (span = mirror->slots.first; span != NULL; span = span->next) {
		uint32_t bit = slot_of(span)->id - mirror->params.slot_first;

		audit->recorded[bit / 8] |= (uint8_t)(1u << bit % 8);
	}
	return 0;
}

/* Finds a number that is not in use, to ask with. */
static int find_spare(struct audit *audit)
{
	const struct mirror *mirror = audit->space->mirror;
	uint32_t id = mirror->params.slot_first;
	uint32_t end = id + mirror->params.slot_count;
	uint64_t gpa = mirror->slots.first != NULL ? mirror->slots.first->start
						   : audit->space->base;

	for (; id < end; id++) {
		int err = is_recorded(audit, id) ? -EINVAL
						 : request_page(audit, id, gpa);

		if (err == 0) {
			err = delete_slot(audit, id);
			audit->spare_id = id;
			return err;
		}
		if (err == -EEXIST) {
			audit->spare_id = id;
			return 0;
		}
		if (err != -EINVAL) {
			return err;
		}
	}
	return -ENOSPC;
}

/* Whether both ends of @slot are covered, or -errno. */
static int ends_covered(const struct audit *audit, const struct slot *slot)
{
	int covered = is_covered(audit, slot->span.start);

	return covered > 0 ? is_covered(audit, slot->span.end - GPAS_PAGE_BYTES)
			   : covered;
}

/* Whether KVM has @slot as it is recorded: 0, -ENOENT, or -EINVAL for one of
 * that number that differs. Its ends are covered. */
static int ask_for(const struct audit *audit, const struct slot *slot)
{
	struct slot_desc desc = {
		.id = slot->id,
		.flags = slot->flags,
		.gpa = slot->span.start,
		.size = slot->span.end - slot->span.start,
		.host = slot->host,
	};
	int err;

	if (!slot->trap) {
		err = request(audit, &desc);
		return err == -EEXIST ? -ENOENT : err;
	}
	/* A slot with a guest_memfd cannot be asked for once more; that it
	 * exists shows in the refusal of another under its number. */
	err = request_page(audit, slot->id, slot->span.start);
	return err == -EINVAL ? 0 : err == -EEXIST ? -ENOENT : err;
}

static int check_slot(struct audit *audit, const struct slot *slot)
{
	unsigned long long gpa = slot->span.start;
	int covered = ends_covered(audit, slot);
	int err;

	if (covered < 0) {
		return covered;
	}
	if (covered == 0) {
		found(audit, "slot %" PRIu32 " does not cover %#llx-%#llx",
		      slot->id, gpa, (unsigned long long)slot->span.end);
		return 0;
	}
	audit->anchor = slot->span.start;
	audit->has_anchor = true;
	if (has_dirty_log(audit, slot->id)) {
		found(audit, "slot %" PRIu32 " at %#llx has a dirty log",
		      slot->id, gpa);
		return 0;
	}
	err = ask_for(audit, slot);
	if (err == -ENOENT || err == -EINVAL) {
		found(audit, "slot %" PRIu32 " at %#llx %s", slot->id, gpa,
		      err == -ENOENT
			      ? "is not the one that covers it"
			      : "has another size, host address or flags");
		return 0;
	}
	audit->done.slots += err == 0;
	return err;
}

/* All numbers that are not recorded are unused. */
static int check_numbers(struct audit *audit)
{
	const struct mirror *mirror = audit->space->mirror;
	uint32_t id = mirror->params.slot_first;
	uint32_t end = id + mirror->params.slot_count;
	int used = 0;

	for (; used >= 0 && id < end; id++) {
		if (is_recorded(audit, id) || id == audit->spare_id) {
			continue;
		}
		used = is_used(audit, id);
		if (used > 0) {
			found(audit,
			      "slot %" PRIu32 " exists; the space has none",
			      id);
		}
		audit->done.numbers += used == 0;
	}
	audit->done.numbers++; /* the spare one */
	return used < 0 ? used : 0;
}

/* Without a slot to run up against, the spare number makes one for a while. */
static int check_numbers_anchored(struct audit *audit)
{
	bool made = false;
	int err = 0;

	if (!audit->has_anchor) {
		audit->anchor = audit->space->base;
		err = request_page(audit, audit->spare_id, audit->anchor);
		made = err == 0;
		err = err == -EEXIST ? 0 : err;
	}
	if (err == 0) {
		err = check_numbers(audit);
	}
	if (made) {
		int undo = delete_slot(audit, audit->spare_id);

		err = err != 0 ? err : undo;
	}
	return err;
}

static int check_slots(struct audit *audit)
{
	struct span *span;
	int err;

	if (mirror_check(audit->space) != 0) {
		found(audit, "the recorded slots do not tile the extents");
	}
	err = record_numbers(audit);
	if (err == 0) {
		err = find_spare(audit);
	}
	span = audit->space->mirror->slots.first;
	for (; err == 0 && span != NULL; span = span->next) {
		err = check_slot(audit, slot_of(span));
	}
	if (err == 0) {
		err = check_numbers_anchored(audit);
	}
	free(audit->recorded);
	return err;
}

/* ---- Asking KVM and the guest about addresses ---------------------- */

static void check_translations(struct audit *audit)
{
	const struct gpas_audit_params *params = audit->params;

	for (size_t i = 0; i < params->translation_count; i++) {
		const struct gpas_audit_translation *want =
			&params->translations[i];
		unsigned long long gva = want->gva.value;
		uint64_t gpa;
		int err = arch_translate(params->vcpu->fd, gva, &gpa);

		audit->done.translations++;
		if (err != 0) {
			found(audit, "KVM cannot translate %#llx: %s", gva,
			      strerror(-err));
		} else if (gpa != want->gpa.value) {
			found(audit, "KVM translates %#llx to %#llx, not %#llx",
			      gva, (unsigned long long)gpa,
			      (unsigned long long)want->gpa.value);
		}
	}
}

/* What a read of the 8 bytes at @gpa should come upon. An emulating KVM sees
 * a trap as it sees a hole. */
static bool is_as_expected(const struct slot *slot, uint64_t gpa,
			   enum gpas_seen seen, uint64_t value)
{
	uint64_t expected;

	if (slot == NULL) {
		return seen == GPAS_SEEN_MMIO;
	}
	if (slot->trap) {
		return seen != GPAS_SEEN_MEMORY;
	}
	memcpy(&expected,
	       gpas_hva_pointer(
		       gpas_hva_at(slot->host + (gpa - slot->span.start))),
	       sizeof(expected));
	return seen == GPAS_SEEN_MEMORY && value == expected;
}

static int probe(struct audit *audit, const struct slot *slot, uint64_t gpa)
{
	static const char *const names[] = { "memory", "an MMIO exit",
					     "a memory fault" };
	enum gpas_seen seen = GPAS_SEEN_MEMORY;
	uint64_t value = 0;
	struct gpas_extent extent;
	int err;

	/* Absent memory in a slot is userfaultfd's: to touch it would mean to
	 * wait for its server, which needs the lock. */
	if (slot != NULL && !slot->trap &&
	    pt_lookup(audit->space->table, gpa, &extent) != 0) {
		return 0;
	}
	err = audit->params->probe(audit->params->ctx, gpas_gpa_at(gpa), &seen,
				   &value);
	if (err != 0) {
		return err == -ENOENT ? 0 : err;
	}
	audit->done.probes++;
	if (!is_as_expected(slot, gpa, seen, value)) {
		found(audit, "the guest saw %s (%#llx) at %#llx, where %s is",
		      names[seen], (unsigned long long)value,
		      (unsigned long long)gpa,
		      slot == NULL ? "nothing"
		      : slot->trap ? "a trap"
				   : "memory");
	}
	return 0;
}

/* Both ends of [start, end), which is covered by @slot, or by nothing. */
static int probe_ends(struct audit *audit, const struct slot *slot,
		      uint64_t start, uint64_t end)
{
	int err;

	if (start >= end) {
		return 0;
	}
	err = probe(audit, slot, start);
	return err == 0 ? probe(audit, slot, end - sizeof(uint64_t)) : err;
}

static int check_probes(struct audit *audit)
{
	const struct gpas *space = audit->space;
	uint64_t at = space->base;
	struct span *span;
	int err = 0;

	for (span = space->mirror->slots.first; err == 0 && span != NULL;
	     span = span->next) {
		err = probe_ends(audit, NULL, at, span->start);
		if (err == 0) {
			err = probe_ends(audit, slot_of(span), span->start,
					 span->end);
		}
		at = span->end;
	}
	return err == 0 ? probe_ends(audit, NULL, at, space->end) : err;
}

/* ---- Host memory --------------------------------------------------- */

/* A stretch of the process's address space, as /proc/self/smaps has it. */
struct host_map {
	uint64_t start;
	uint64_t end;
	bool accessible;
	unsigned long long resident; /* bytes */
};

/* The region whose memory is at @host in the space's reservation, or NULL. */
static const struct region *region_at_host(const struct gpas *space,
					   uint64_t host)
{
	uint64_t gpa = space->base +
		       (host - gpas_hva_of(space->reservation.host).value);
	const struct region *region = region_find(space, gpa);

	return region != NULL && region->backing->kind == GPAS_REGION_ALLOC &&
			       region->backing->host + region->offset +
					       (gpa - region->span.start) ==
				       host
		       ? region
		       : NULL;
}

/*
 * [start, end) of the reservation, where every page is accessible or every one
 * is not: regions of the space's own memory are what decides.
 */
static void check_reserved(struct audit *audit, uint64_t start, uint64_t end,
			   bool accessible)
{
	const struct gpas *space = audit->space;
	uint64_t low = gpas_hva_of(space->reservation.host).value;
	uint64_t at = start;

	while (at < end) {
		const struct region *region = region_at_host(space, at);
		uint64_t gpa = space->base + (at - low);
		const struct region *next = region_from(space, gpa);
		uint64_t stop = space->end;

		if (next != NULL) {
			stop = next->span.start > gpa ? next->span.start
						      : next->span.end;
		}
		if ((region != NULL) != accessible) {
			found(audit,
			      "host memory at %#llx, for GPA %#llx, is %s",
			      (unsigned long long)at, (unsigned long long)gpa,
			      accessible ? "accessible, but no region's"
					 : "a region's, but inaccessible");
			return;
		}
		at = low + (stop - space->base);
	}
}

static void check_host_map(struct audit *audit, const struct host_map *map,
			   const struct reservation *reservation, bool is_trap)
{
	uint64_t low = gpas_hva_of(reservation->host).value;
	uint64_t high = low + reservation->size;
	uint64_t start = map->start > low ? map->start : low;
	uint64_t end = map->end < high ? map->end : high;

	if (reservation->host == NULL || start >= end) {
		return;
	}
	if (!map->accessible && map->resident != 0) {
		found(audit,
		      "%llu bytes are resident in %#llx-%#llx, which is "
		      "to be empty",
		      map->resident, (unsigned long long)start,
		      (unsigned long long)end);
	}
	if (!is_trap) {
		check_reserved(audit, start, end, map->accessible);
	} else if (map->accessible) {
		found(audit, "the traps' host range is accessible at %#llx",
		      (unsigned long long)start);
	}
}

static void host_map_done(struct audit *audit, const struct host_map *map)
{
	const struct gpas *space = audit->space;

	check_host_map(audit, map, &space->reservation, false);
	if (space->mirror != NULL) {
		check_host_map(audit, map, &space->mirror->trap_area, true);
	}
}

/* Where the kernel offers no smaps, maps has all but the resident sizes. */
static int check_host_maps(struct audit *audit)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	struct host_map map = { 0 };
	char line[256];

	file = file != NULL ? file : fopen("/proc/self/maps", "re");
	if (file == NULL) {
		return -errno;
	}
	while (fgets(line, sizeof(line), file) != NULL) {
		unsigned long long start;
		unsigned long long end;
		unsigned long long kib;
		char perms[5];

		if (sscanf(line, "%llx-%llx %4s", &start, &end, perms) == 3) {
			host_map_done(audit, &map);
			map = (struct host_map){
				.start = start,
				.end = end,
				.accessible = perms[0] != '-' ||
					      perms[1] != '-' ||
					      perms[2] != '-',
			};
		} else if (sscanf(line, "Rss: %llu kB", &kib) == 1) {
			map.resident = kib << 10;
		}
	}
	host_map_done(audit, &map);
	(void)fclose(file);
	return 0;
}

#define CHUNK_PAGES 65536u

/* No page of @size bytes at @host, which stand for absent memory at @gpa, is
 * resident. 0 or -errno. */
static int check_not_resident(struct audit *audit, uint64_t host, uint64_t size,
			      uint64_t gpa, unsigned char *pages)
{
	uint64_t resident = 0;

	for (uint64_t at = 0; at < size; at += CHUNK_PAGES * GPAS_PAGE_BYTES) {
		uint64_t bytes = size - at;

		if (bytes > CHUNK_PAGES * GPAS_PAGE_BYTES) {
			bytes = CHUNK_PAGES * GPAS_PAGE_BYTES;
		}
		if (mincore(gpas_hva_pointer(gpas_hva_at(host + at)), bytes,
			    pages) != 0) {
			return -errno;
		}
		for (uint64_t i = 0; i < bytes >> GPAS_PAGE_SHIFT; i++) {
			resident += pages[i] & 1;
		}
	}
	audit->done.host_bytes += size;
	if (resident != 0) {
		found(audit,
		      "%llu pages are resident for absent memory at GPA %#llx",
		      (unsigned long long)resident, (unsigned long long)gpa);
	}
	return 0;
}

/* The absent parts of one lazy region. */
static int check_absent(struct audit *audit, const struct region *region,
			unsigned char *pages)
{
	uint64_t host = region->backing->host + region->offset;
	uint64_t at = region->span.start;
	int err = 0;

	while (err == 0 && at < region->span.end) {
		struct gpas_pgtable_cursor cursor;
		struct gpas_extent extent = { .start = { region->span.end } };

		gpas_pgtable_cursor_init(&cursor, audit->space->table,
					 gpas_gpa_at(at),
					 gpas_gpa_at(region->span.end));
		(void)gpas_pgtable_cursor_next(&cursor, &extent);
		if (extent.start.value > at) {
			err = check_not_resident(
				audit, host + (at - region->span.start),
				extent.start.value - at, at, pages);
		}
		at = extent.start.value + extent.size;
	}
	return err;
}

/* Whether a page of the memory can only have come from the space's doing: a
 * file's pages may be in the page cache anyhow. */
static bool tells_residency(const struct backing *backing)
{
	return backing->lazy && backing->kind == GPAS_REGION_ALLOC &&
	       gpas_memory_kind(backing->memory) != GPAS_MEMORY_FILE;
}

static int check_host(struct audit *audit)
{
	unsigned char *pages = malloc(CHUNK_PAGES);
	struct span *span = audit->space->regions.first;
	int err = pages != NULL ? check_host_maps(audit) : -ENOMEM;

	for (; err == 0 && span != NULL; span = span->next) {
		if (tells_residency(region_of(span)->backing)) {
			err = check_absent(audit, region_of(span), pages);
		}
	}
	free(pages);
	return err;
}

/* ---- The whole ----------------------------------------------------- */

static int audit_kvm(struct audit *audit)
{
	bool paused;
	int err = mirror_hold_vcpus(audit->space, &paused);

	if (err != 0) {
		return err;
	}
	audit->vm_fd = audit->space->mirror->params.vm_fd;
	err = check_slots(audit);
	if (err == 0 && audit->params->vcpu != NULL) {
		check_translations(audit);
	}
	if (err == 0 && audit->params->probe != NULL) {
		err = check_probes(audit);
	}
	mirror_release_vcpus(audit->space, paused);
	return err;
}

int gpas_audit(struct gpas *space, const struct gpas_audit_params *params,
	       struct gpas_audit *ret)
{
	static const struct gpas_audit_params no_params;
	struct audit audit = {
		.space = space,
		.params = params != NULL ? params : &no_params,
	};
	bool locked = space_lock(space);
	int err = 0;

	audit.odd_host =
		gpas_align_down(gpas_hva_of(&audit).value, GPAS_PAGE_BYTES);
	if (!locked) {
		return -EBUSY;
	}
	if (space->poisoned) {
		err = -ENOTRECOVERABLE;
	} else if (space->mirror != NULL) {
		err = audit_kvm(&audit);
	}
	if (err == 0) {
		err = check_host(&audit);
	}
	space_unlock(space, locked);
	if (err != 0) {
		return err;
	}
	if (ret != NULL) {
		*ret = audit.done;
	}
	return audit.done.findings != 0 ? -EUCLEAN : 0;
}
