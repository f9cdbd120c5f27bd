/* SPDX-License-Identifier: MIT */
/* For people: the memory map as a table with bars, and what a run cost. */
#include "vm.h"

#include <string.h>

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

/* ---- Figures ------------------------------------------------------------- */

static void picture_counts(const struct vm *vm, const struct gpas_stats *now)
{
	const struct gpas_stats *before = &vm->before;

#define SINCE(field) ((unsigned long long)(now->field - before->field))
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
	fprintf(stderr,
		"  devices     %llu accesses served, %llu accesses unclaimed\n",
		SINCE(device_accesses), SINCE(unclaimed));
	fprintf(stderr, "  violations  %lu\n", atomic_load(&vm->violations));
	fprintf(stderr,
		"  populated   %s in %llu steps, of %s mapped (%llu%%)\n",
		size_text(now->populated - before->populated).text,
		SINCE(populations), size_text(now->mapped).text,
		now->mapped == 0 ? 0 : SINCE(populated) * 100 / now->mapped);
	fprintf(stderr,
		"  slots       %llu added, %llu deleted, %llu pauses; "
		"now %llu slots, %llu traps\n",
		SINCE(slot_adds), SINCE(slot_deletes), SINCE(pauses),
		(unsigned long long)now->slots, (unsigned long long)now->traps);
#undef SINCE
}

static double ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

void picture_stats(struct vm *vm)
{
	struct gpas_kvm_info info = { 0 };
	struct gpas_stats now;
	uint64_t ioctls, handler, run;

	fflush(stdout);
	gpas_stats(vm->space, &now);
	ioctls = now.kvm_ns - vm->before.kvm_ns;
	handler = now.handler_ns - vm->before.handler_ns;
	run = now.run_ns - vm->before.run_ns;
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		run += vm->vcpus[i].traced_ns;
	}
	fprintf(stderr, "\nWhat the run took\n\n");
	if (vm->options->eager) {
		fprintf(stderr, "  lazy memory none, as asked for\n");
	} else if (gpas_kvm_info(vm->space, &info) == 0) {
		fprintf(stderr, "  lazy memory %s slots: %s\n",
			gpas_lazy_name(info.lazy), info.lazy_reason);
	}
	picture_counts(vm, &now);
	fprintf(stderr,
		"  time        %.1f ms: %.1f in KVM_RUN, %.1f in slot ioctls, "
		"%.1f in the library\n\n",
		ms(vm->ran_ns), ms(run), ms(ioctls),
		ms(handler > ioctls ? handler - ioctls : 0));
}
