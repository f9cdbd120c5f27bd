/* SPDX-License-Identifier: MIT */
/*
 * The device tree a guest is given, made from the space's own regions: memory
 * from the ranges that have any, a reserved range for each region that is not
 * free RAM, and a node for each device region. References are to the
 * devicetree specification 0.4.
 */
#include "vm.h"

#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

/* Each libfdt call is made only if all before it succeeded. */
struct tree {
	void *blob;
	int error;
};

static void begin(struct tree *tree, const char *name)
{
	if (tree->error == 0) {
		tree->error = fdt_begin_node(tree->blob, name);
	}
}

static void begin_at(struct tree *tree, const char *name, uint64_t address)
{
	char full[GPAS_NAME_BYTES + 24];

	snprintf(full, sizeof(full), "%s@%llx", name,
		 (unsigned long long)address);
	begin(tree, full);
}

static void end(struct tree *tree)
{
	if (tree->error == 0) {
		tree->error = fdt_end_node(tree->blob);
	}
}

static void string(struct tree *tree, const char *name, const char *value)
{
	if (tree->error == 0) {
		tree->error = fdt_property_string(tree->blob, name, value);
	}
}

static void cell(struct tree *tree, const char *name, uint32_t value)
{
	if (tree->error == 0) {
		tree->error = fdt_property_u32(tree->blob, name, value);
	}
}

static void wide_cell(struct tree *tree, const char *name, uint64_t value)
{
	if (tree->error == 0) {
		tree->error = fdt_property_u64(tree->blob, name, value);
	}
}

static void flag(struct tree *tree, const char *name)
{
	if (tree->error == 0) {
		tree->error = fdt_property(tree->blob, name, NULL, 0);
	}
}

/* "reg" with two cells each for address and size. */
static void reg(struct tree *tree, uint64_t start, uint64_t size)
{
	fdt64_t cells[2] = { cpu_to_fdt64(start), cpu_to_fdt64(size) };

	if (tree->error == 0) {
		tree->error =
			fdt_property(tree->blob, "reg", cells, sizeof(cells));
	}
}

static void wide_addresses(struct tree *tree)
{
	cell(tree, "#address-cells", 2);
	cell(tree, "#size-cells", 2);
}

/* ---- Nodes from regions -------------------------------------------------- */

static bool next_region(struct vm *vm, gpas_gpa *at, struct gpas_region *region)
{
	if (gpas_region_next(vm->space, *at, region) != 0) {
		return false;
	}
	at->value = region->start.value + region->size;
	return true;
}

static bool is_memory(const struct gpas_region *region)
{
	return region->kind != GPAS_REGION_DEVICE;
}

/* Section 3.4: one node for each run of adjacent memory regions. */
static void memory_nodes(struct tree *tree, struct vm *vm)
{
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;
	struct gpas_range run = { { 0 }, { 0 } };
	bool more;

	do {
		more = next_region(vm, &at, &region);
		if (more && !is_memory(&region)) {
			continue;
		}
		if (more && region.start.value == run.end.value) {
			run.end = at;
			continue;
		}
		if (!gpas_range_is_empty(run)) {
			begin_at(tree, "memory", run.start.value);
			string(tree, "device_type", "memory");
			reg(tree, run.start.value, gpas_range_size(run));
			end(tree);
		}
		run = (struct gpas_range){ region.start, at };
	} while (more);
}

/* A region's name as a node's: letters, digits and "-". */
static void node_name(char *name, const char *region_name)
{
	size_t i = 0;

	for (; region_name[i] != '\0' && i + 1 < GPAS_NAME_BYTES; i++) {
		name[i] = region_name[i] == '.' ? '-' : region_name[i];
	}
	name[i] = '\0';
}

/* Section 3.5: what the guest must not use as free memory. */
static void reserved_nodes(struct tree *tree, struct vm *vm)
{
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;

	begin(tree, "reserved-memory");
	wide_addresses(tree);
	flag(tree, "ranges");
	while (next_region(vm, &at, &region)) {
		char name[GPAS_NAME_BYTES];

		if (!is_memory(&region) || strcmp(region.name, RAM_NAME) == 0) {
			continue;
		}
		node_name(name, region.name);
		begin_at(tree, name, region.start.value);
		reg(tree, region.start.value, region.size);
		if (region.prot == GPAS_PROT_NONE) {
			flag(tree, "no-map");
		}
		end(tree);
	}
	end(tree);
}

static void device_nodes(struct tree *tree, struct vm *vm)
{
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;

	while (next_region(vm, &at, &region)) {
		if (is_memory(&region)) {
			continue;
		}
		begin_at(tree, region.name, region.start.value);
		if (strcmp(region.name, SERIAL_NAME) == 0) {
			string(tree, "compatible", "ns16550a");
			cell(tree, "clock-frequency", 1843200);
			cell(tree, "current-speed", 115200);
		} else {
			string(tree, "compatible", "gpas,doorbell");
		}
		reg(tree, region.start.value, region.size);
		end(tree);
	}
}

/* ---- The rest ------------------------------------------------------------ */

/* The granule of the lazy RAM, 0 if there is none. */
static uint64_t ram_granule(struct vm *vm)
{
	gpas_gpa at = gpas_base(vm->space);
	struct gpas_region region;

	while (next_region(vm, &at, &region)) {
		if (region.lazy) {
			return region.granule;
		}
	}
	return 0;
}

/* Section 3.6. gpas,granule is this machine's own: tests look for borders. */
static void chosen_node(struct tree *tree, struct vm *vm)
{
	char path[GPAS_NAME_BYTES + 24];

	snprintf(path, sizeof(path), "/%s@%llx", SERIAL_NAME,
		 (unsigned long long)arch_layout.serial.value);
	begin(tree, "chosen");
	string(tree, "bootargs", vm->options->append);
	string(tree, "stdout-path", path);
	wide_cell(tree, "gpas,granule", ram_granule(vm));
	end(tree);
}

static void cpu_nodes(struct tree *tree, struct vm *vm)
{
	begin(tree, "cpus");
	cell(tree, "#address-cells", 1);
	cell(tree, "#size-cells", 0);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		begin_at(tree, "cpu", i);
		string(tree, "device_type", "cpu");
		cell(tree, "reg", i);
		end(tree);
	}
	end(tree);
}

static void build(struct tree *tree, struct vm *vm)
{
	begin(tree, "");
	wide_addresses(tree);
	string(tree, "compatible", "gpas,vmm");
	string(tree, "model", "gpas-vmm");
	chosen_node(tree, vm);
	cpu_nodes(tree, vm);
	memory_nodes(tree, vm);
	reserved_nodes(tree, vm);
	device_nodes(tree, vm);
	end(tree);
}

uint64_t fdt_bytes(const struct options *options)
{
	uint64_t size = 16384 + strlen(options->append);

	return gpas_align_down(size + GPAS_PAGE_BYTES - 1, GPAS_PAGE_BYTES);
}

static int write_file(const char *path, const void *bytes, size_t size)
{
	FILE *file = fopen(path, "wb");
	bool written;

	if (file == NULL) {
		return -errno;
	}
	written = fwrite(bytes, 1, size, file) == size;
	if (fclose(file) != 0 || !written) {
		return errno != 0 ? -errno : -EIO;
	}
	return 0;
}

static int store(struct vm *vm, const void *blob)
{
	uint64_t room = fdt_bytes(vm->options);
	int error;

	error = gpas_write(vm->space, vm->entry.fdt, blob, fdt_totalsize(blob),
			   NULL);
	if (error == 0) {
		error = gpas_protect(vm->space, vm->entry.fdt, room,
				     GPAS_PROT_READ);
	}
	if (error == 0 && vm->options->dtb_out != NULL) {
		error = write_file(vm->options->dtb_out, blob,
				   fdt_totalsize(blob));
		if (error != 0) {
			tell("%s: %s", vm->options->dtb_out, strerror(-error));
		}
	}
	return error;
}

int fdt_hand_over(struct vm *vm)
{
	int room = (int)fdt_bytes(vm->options);
	struct tree tree = { .blob = malloc((size_t)room) };
	int error;

	if (tree.blob == NULL) {
		return -ENOMEM;
	}
	tree.error = fdt_create(tree.blob, room);
	if (tree.error == 0) {
		tree.error = fdt_finish_reservemap(tree.blob);
	}
	build(&tree, vm);
	if (tree.error == 0) {
		tree.error = fdt_finish(tree.blob);
	}
	if (tree.error != 0) {
		tell("no device tree: %s", fdt_strerror(tree.error));
		error = -ENOSPC;
	} else {
		error = store(vm, tree.blob);
	}
	free(tree.blob);
	return error;
}
