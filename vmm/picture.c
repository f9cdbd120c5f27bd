/* SPDX-License-Identifier: MIT */
/* For people: the memory map as a table with bars, and what a run cost. */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define BAR_CELLS 10

struct size_text size_text(uint64_t bytes)
{
	static const char *const units[] = { "B",   "KiB", "MiB",
					     "GiB", "TiB", "PiB" };
	struct size_text ret;
	double value = (double)bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < 5) {
		value /= 1024;
		unit++;
	}
	snprintf(ret.text, sizeof(ret.text), "%.*f %s",
		 value < 100 && value != (double)(uint64_t)value ? 1 : 0, value,
		 units[unit]);
	return ret;
}

const char *prot_text(unsigned prot)
{
	static const char *const names[] = { "---", "r--", "-w-", "rw-",
					     "--x", "r-x", "-wx", "rwx" };

	return names[prot & GPAS_PROT_RWX];
}

/* ---- The map ------------------------------------------------------------- */

struct bar {
	char text[48];
};

/* How much of @total is present. Some is never drawn as none, nor almost all
 * as all. */
static struct bar bar(uint64_t present, uint64_t total)
{
	double part = (double)present / (double)total;
	int cells = (int)(part * BAR_CELLS);
	struct bar ret;

	if (present > 0 && cells == 0) {
		cells = 1;
	}
	if (present < total && cells == BAR_CELLS) {
		cells = BAR_CELLS - 1;
	}
	snprintf(ret.text, sizeof(ret.text), "[%.*s%.*s] %8s", cells,
		 "##########", BAR_CELLS - cells, "..........",
		 present == 0 ? "-" : size_text(present).text);
	return ret;
}

/* A count, or a dot where there is nothing to count. */
static struct size_text count_text(uint64_t count)
{
	struct size_text ret = { "." };

	if (count != 0) {
		snprintf(ret.text, sizeof(ret.text), "%llu",
			 (unsigned long long)count);
	}
	return ret;
}

struct hex_text {
	char text[20];
};

static struct hex_text hex_text(uint64_t value)
{
	struct hex_text ret;

	snprintf(ret.text, sizeof(ret.text), "0x%llx",
		 (unsigned long long)value);
	return ret;
}

static void picture_region(const struct gpas_region *region)
{
	bool device = region->kind == GPAS_REGION_DEVICE;
	struct bar present = bar(region->present, region->size);

	fprintf(stderr,
		"%12s %12s %9s  %s  %-12s %-4s %-21s %5s %4s %3s %5s "
		"%5s\n",
		hex_text(region->start.value).text,
		hex_text(region->start.value + region->size).text,
		size_text(region->size).text,
		device ? "dev" : prot_text(region->prot), region->name,
		region->lazy ? "lazy" : "", device ? "" : present.text,
		count_text(region->leaves[0]).text,
		count_text(region->leaves[1]).text,
		count_text(region->leaves[2]).text,
		count_text(region->slots).text, count_text(region->traps).text);
}

void picture_map(struct vm *vm, const char *when)
{
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;
	struct gpas_stats stats;

	fflush(stdout);
	gpas_stats(vm->space, &stats);
	fprintf(stderr, "\nMemory %s the run: %s present", when,
		size_text(stats.present).text);
	fprintf(stderr, " of %s mapped; %llu slots, %llu traps, ",
		size_text(stats.mapped).text, (unsigned long long)stats.slots,
		(unsigned long long)stats.traps);
	fprintf(stderr, "%llu table pages\n\n",
		(unsigned long long)stats.table_pages);
	fprintf(stderr,
		"%12s %12s %9s  %s %-12s %-4s %-21s %5s %4s %3s %5s %5s\n",
		"from", "to", "size", "perm", "region", "", "present", "4K",
		"2M", "1G", "slots", "traps");
	while (gpas_region_next(vm->space, at, &region) == 0) {
		picture_region(&region);
		at.value = region.start.value + region.size;
	}
	fputc('\n', stderr);
}

/* ---- What the host holds ------------------------------------------------- */

/* Of the guest's present memory, the bytes that are pages of the host's. */
struct residence {
	uint64_t resident;
	uint64_t shared; /* among them, those that are a file's cached pages */
};

/* Bits of an entry, see Documentation/admin-guide/mm/pagemap.rst. */
#define PAGEMAP_PRESENT	  (UINT64_C(1) << 63)
#define PAGEMAP_FILE_PAGE (UINT64_C(1) << 61)
#define PAGEMAP_BATCH	  512u

static int measure_extent(int fd, const struct gpas_extent *extent,
			  struct residence *residence)
{
	uint64_t first = extent->host.value / GPAS_PAGE_BYTES;
	uint64_t end = first + extent->size / GPAS_PAGE_BYTES;
	uint64_t entries[PAGEMAP_BATCH];

	while (first < end) {
		uint64_t count = end - first;
		ssize_t got;

		count = count < PAGEMAP_BATCH ? count : PAGEMAP_BATCH;
		got = pread(fd, entries, count * sizeof(entries[0]),
			    (off_t)(first * sizeof(entries[0])));
		if (got < (ssize_t)sizeof(entries[0])) {
			return got < 0 ? -errno : -ENODATA;
		}
		count = (uint64_t)got / sizeof(entries[0]);
		for (uint64_t i = 0; i < count; i++) {
			if ((entries[i] & PAGEMAP_PRESENT) == 0) {
				continue;
			}
			residence->resident += GPAS_PAGE_BYTES;
			if ((entries[i] & PAGEMAP_FILE_PAGE) != 0) {
				residence->shared += GPAS_PAGE_BYTES;
			}
		}
		first += count;
	}
	return 0;
}

/* What is not present to the guest is not resident either, so only extents
 * are looked at: guests may have terabytes of nothing. */
static int residence_measure(struct gpas *space, struct residence *ret)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	gpas_gpa at = gpas_base(space);
	struct gpas_extent extent;
	int error = 0;

	*ret = (struct residence){ 0 };
	if (fd < 0) {
		return -errno;
	}
	while (error == 0 && gpas_extent_next(space, at, &extent) == 0) {
		error = measure_extent(fd, &extent, ret);
		at.value = extent.start.value + extent.size;
	}
	close(fd);
	return error;
}

/* ---- Figures ------------------------------------------------------------- */

/* What has been counted since the guest was started. */
#define SINCE(field) ((unsigned long long)(now->field - before->field))

static void picture_faults(const struct vm *vm, const struct gpas_stats *now)
{
	const struct gpas_stats *before = &vm->before;

	fprintf(stderr,
		"  faults      %llu resumed, %llu denied, %llu unmapped, "
		"%llu failed, %llu device\n",
		SINCE(faults[GPAS_FAULT_RESUME]),
		SINCE(faults[GPAS_FAULT_DENIED]),
		SINCE(faults[GPAS_FAULT_UNMAPPED]),
		SINCE(faults[GPAS_FAULT_FAILED]),
		SINCE(faults[GPAS_FAULT_DEVICE]));
	fprintf(stderr,
		"  exits       %llu MMIO (%llu touched lazy memory), "
		"%llu memory fault, %llu fetch\n",
		SINCE(exits_mmio), SINCE(lazy_mmio), SINCE(exits_memory_fault),
		SINCE(exits_fetch));
	if (vm->options->lazy == GPAS_LAZY_UFFD) {
		fprintf(stderr,
			"  userfaults  %llu touches reported, no exits\n",
			SINCE(uffd_faults));
	}
	fprintf(stderr,
		"  devices     %llu accesses served, %llu accesses unclaimed\n",
		SINCE(device_accesses), SINCE(unclaimed));
	fprintf(stderr, "  violations  %lu\n", atomic_load(&vm->violations));
}

static void picture_memory(struct vm *vm, const struct gpas_stats *now)
{
	const struct gpas_stats *before = &vm->before;
	struct residence residence;

	fprintf(stderr,
		"  populated   %s in %llu steps, of %s mapped (%llu%%)\n",
		size_text(now->populated - before->populated).text,
		SINCE(populations), size_text(now->mapped).text,
		now->mapped == 0 ? 0 : SINCE(populated) * 100 / now->mapped);
	fprintf(stderr, "  present     %s", size_text(now->present).text);
	if (residence_measure(vm->space, &residence) == 0) {
		fprintf(stderr, ", of which the host holds %s",
			size_text(residence.resident).text);
	}
	if (residence.shared != 0) {
		fprintf(stderr, " (%s as cached file)",
			size_text(residence.shared).text);
	}
	fputc('\n', stderr);
	if (SINCE(discards) != 0) {
		fprintf(stderr, "  given back  %s in %llu ranges\n",
			size_text(now->discarded - before->discarded).text,
			SINCE(discards));
	}
	if (vm->options->budget != 0) {
		fprintf(stderr, "  budget      %s of %s used",
			size_text(now->charged).text,
			size_text(vm->options->budget).text);
		fprintf(stderr,
			"; short %llu times, %s of offers taken, %lu touches "
			"denied\n",
			SINCE(pressure), size_text(vm->offers.taken).text,
			atomic_load(&vm->denials));
	}
}

static double ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

static void picture_time(const struct vm *vm, const struct gpas_stats *now)
{
	const struct gpas_stats *before = &vm->before;
	uint64_t ioctls = now->kvm_ns - before->kvm_ns;
	uint64_t handler = now->handler_ns - before->handler_ns;
	uint64_t run = now->run_ns - before->run_ns;

	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		run += vm->vcpus[i].traced_ns;
	}
	fprintf(stderr,
		"  slots       %llu added, %llu deleted, %llu pauses; "
		"now %llu slots, %llu traps\n",
		SINCE(slot_adds), SINCE(slot_deletes), SINCE(pauses),
		(unsigned long long)now->slots, (unsigned long long)now->traps);
	fprintf(stderr,
		"  time        %.1f ms: %.1f in KVM_RUN, %.1f in slot ioctls, "
		"%.1f in the library\n\n",
		ms(vm->ran_ns), ms(run), ms(ioctls),
		ms(handler > ioctls ? handler - ioctls : 0));
}

/* Bucket i is what took from 2^(i-1) to 2^i microseconds. */
static struct size_text bucket_text(unsigned bucket)
{
	struct size_text ret;

	if (bucket == GPAS_FAULT_TIME_BUCKETS - 1) {
		snprintf(ret.text, sizeof(ret.text), "from %u us",
			 1u << (bucket - 1));
	} else {
		snprintf(ret.text, sizeof(ret.text), "below %u us",
			 1u << bucket);
	}
	return ret;
}

#define HISTOGRAM_CELLS 40

/* How long making memory present took, from the shortest to the longest. */
static void picture_histogram(const struct vm *vm, const struct gpas_stats *now)
{
	uint64_t counts[GPAS_FAULT_TIME_BUCKETS];
	unsigned first = GPAS_FAULT_TIME_BUCKETS, last = 0;
	uint64_t most = 0, total = 0;

	for (unsigned i = 0; i < GPAS_FAULT_TIME_BUCKETS; i++) {
		counts[i] = now->fault_time[i] - vm->before.fault_time[i];
		total += counts[i];
		most = counts[i] > most ? counts[i] : most;
		if (counts[i] != 0) {
			first = first < i ? first : i;
			last = i;
		}
	}
	if (total == 0) {
		return;
	}
	fprintf(stderr, "  Time for each of the %llu steps\n\n",
		(unsigned long long)total);
	for (unsigned i = first; i <= last; i++) {
		uint64_t cells =
			(counts[i] * HISTOGRAM_CELLS + most - 1) / most;

		fprintf(stderr, "%15s %8llu %3.0f%%  %.*s\n",
			bucket_text(i).text, (unsigned long long)counts[i],
			(double)counts[i] * 100 / (double)total, (int)cells,
			"########################################");
	}
	fputc('\n', stderr);
}

void picture_stats(struct vm *vm)
{
	struct gpas_kvm_info info = { 0 };
	struct gpas_stats now;

	fflush(stdout);
	gpas_stats(vm->space, &now);
	fprintf(stderr, "\nWhat the run took\n\n");
	if (vm->options->eager) {
		fprintf(stderr, "  lazy memory none, as asked for\n");
	} else if (vm->options->lazy == GPAS_LAZY_UFFD) {
		fprintf(stderr, "  lazy memory userfaultfd, as asked for\n");
	} else if (gpas_kvm_info(vm->space, &info) == 0) {
		fprintf(stderr, "  lazy memory %s slots: %s\n",
			gpas_lazy_name(info.lazy), info.lazy_reason);
	}
	picture_faults(vm, &now);
	picture_memory(vm, &now);
	picture_time(vm, &now);
	picture_histogram(vm, &now);
}

/* ---- Phases -------------------------------------------------------------- */

/* What a phase is called, and whether nothing but KVM works in it. */
static const struct {
	const char *name;
	bool is_kvm;
} phases[PHASE_COUNT] = {
	[PHASE_KVM] = { "open KVM, create the VM", true },
	[PHASE_MEMORY] = { "memory, devices, boot data", false },
	[PHASE_LOAD] = { "load the guest", false },
	[PHASE_ATTACH] = { "attach: create slots", false },
	[PHASE_VCPUS] = { "create vCPUs", true },
	[PHASE_TREE] = { "device tree", false },
	[PHASE_THREADS] = { "start threads", false },
	[PHASE_FIRST_ENTRY] = { "enter the guest, to its first exit", true },
	[PHASE_RUN] = { "the rest of the run", false },
	[PHASE_DESTROY] = { "destroy the space", false },
	[PHASE_CLOSE] = { "close the VM", true },
};

/* Of @phase, nanoseconds that are known to be KVM's own. */
static uint64_t kvm_part(const struct vm *vm, enum phase phase)
{
	if (phase == PHASE_ATTACH) {
		return vm->attach_kvm_ns;
	}
	if (phase == PHASE_TREE) {
		return vm->before.kvm_ns - vm->attach_kvm_ns;
	}
	return phases[phase].is_kvm ? vm->phase_ns[phase] : 0;
}

void picture_phases(const struct vm *vm)
{
	uint64_t total = 0, kvm = 0;

	fprintf(stderr, "  Start and end, in microseconds (KVM's own)\n\n");
	for (enum phase i = 0; i < PHASE_COUNT; i++) {
		uint64_t part = kvm_part(vm, i);

		fprintf(stderr, "%12.0f  %s", (double)vm->phase_ns[i] / 1e3,
			phases[i].name);
		if (part != 0) {
			fprintf(stderr, " (%.0f)", (double)part / 1e3);
		}
		fputc('\n', stderr);
		total += vm->phase_ns[i];
		kvm += part;
		if (i == PHASE_FIRST_ENTRY) {
			fprintf(stderr,
				"%12.0f  = from main() to the first exit "
				"(%.0f: %.0f%%)\n",
				(double)total / 1e3, (double)kvm / 1e3,
				(double)kvm * 100 / (double)total);
		}
	}
	fputc('\n', stderr);
}
