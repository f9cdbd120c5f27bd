/* SPDX-License-Identifier: MIT */
/*
 * A Linux kernel in guest memory, and what it wants to be told: a bzImage by
 * the 64-bit boot protocol (the kernel's Documentation/arch/x86/boot.rst), an
 * ELF vmlinux by PVH (Xen's public/arch-x86/hvm/start_info.h). Everything goes
 * through gpas_write(), which makes the memory present.
 */
#include "pc.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES	(UINT64_C(1) << 20)
#define LOADER_TYPE	0xff /* none of those with a number */
#define ENTRY_64_OFFSET 0x200
#define NOTE_PVH_ENTRY	18 /* XEN_ELFNOTE_PHYS32_ENTRY */
#define NOTES_MAX_BYTES (UINT64_C(1) << 16)
#define SEGMENTS_MAX	64
#define PVH_MAGIC	0x336ec578
#define PVH_VERSION	1

/* An open file that is to be read once. */
struct file {
	const char *path;
	int fd;
	uint64_t bytes;
};

/* How PVH hands over; the layout is Xen's. */
struct pvh_start {
	uint32_t magic, version, flags, module_count;
	uint64_t modules, cmdline, rsdp, memory_map;
	uint32_t memory_map_count, reserved;
};
struct pvh_module {
	uint64_t address, size, cmdline, reserved;
};
struct pvh_memory {
	uint64_t address, size;
	uint32_t type, reserved;
};

/* What there is to tell the kernel, whichever way it is told. */
struct handover {
	struct boot_e820_entry map[E820_MAX_ENTRIES_ZEROPAGE];
	unsigned map_count;
	uint64_t kernel_end; /* GPA */
	uint64_t initrd_end; /* the first GPA it may not occupy */
	uint32_t cmdline_max;
};

/* ---- Files --------------------------------------------------------------- */

static int refuse(const struct file *file, const char *why)
{
	tell("%s cannot be booted: %s", file->path, why);
	return STATUS_BAD_GUEST;
}

static int open_file(struct file *file, const char *path)
{
	struct stat status;

	*file = (struct file){ .path = path };
	file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (file->fd < 0 || fstat(file->fd, &status) != 0) {
		tell("%s: %s", path, strerror(errno));
		return STATUS_BAD_GUEST;
	}
	if (!S_ISREG(status.st_mode)) {
		return refuse(file, "it is not a regular file");
	}
	if (status.st_size == 0) {
		return refuse(file, "it is empty");
	}
	file->bytes = (uint64_t)status.st_size;
	return 0;
}

/* All of [offset, offset + size), or fewer bytes where the file ends. */
static ssize_t read_at(const struct file *file, uint64_t offset, void *buffer,
		       size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t part = pread(file->fd, (char *)buffer + done,
				     size - done, (off_t)(offset + done));

		if (part < 0 && errno != EINTR) {
			return -errno;
		}
		if (part == 0) {
			break;
		}
		done += part > 0 ? (size_t)part : 0;
	}
	return (ssize_t)done;
}

/* Copy [offset, offset + size) of the file to @gpa. */
static int copy_file(struct vm *vm, const struct file *file, uint64_t offset,
		     uint64_t size, uint64_t gpa)
{
	void *buffer = malloc(COPY_BYTES);
	int error = buffer == NULL ? -ENOMEM : 0;

	for (uint64_t done = 0; error == 0 && done < size;) {
		uint64_t left = size - done;
		size_t part = left < COPY_BYTES ? left : COPY_BYTES;
		ssize_t got = read_at(file, offset + done, buffer, part);

		if (got != (ssize_t)part) {
			error = got < 0 ? (int)got : -ENODATA;
			break;
		}
		error = gpas_write(vm->space, gpas_gpa_at(gpa + done), buffer,
				   part, NULL);
		done += part;
	}
	free(buffer);
	if (error != 0) {
		tell("%s: %s", file->path,
		     error == -ENODATA ? "it became shorter"
				       : strerror(-error));
		return error == -ENODATA ? STATUS_BAD_GUEST : STATUS_HOST;
	}
	return 0;
}

static int put(struct vm *vm, uint64_t gpa, const void *bytes, size_t size)
{
	int error = gpas_write(vm->space, gpas_gpa_at(gpa), bytes, size, NULL);

	if (error != 0) {
		tell("writing to 0x%llx: %s", (unsigned long long)gpa,
		     strerror(-error));
		return STATUS_HOST;
	}
	return 0;
}

/* ---- The memory map ------------------------------------------------------ */

static void add_to_map(struct handover *to, uint64_t start, uint64_t size,
		       uint32_t type)
{
	struct boot_e820_entry *last = &to->map[to->map_count];

	if (to->map_count > 0 && last[-1].type == type &&
	    last[-1].addr + last[-1].size == start) {
		last[-1].size += size;
	} else if (to->map_count < E820_MAX_ENTRIES_ZEROPAGE) {
		*last = (struct boot_e820_entry){ start, size, type };
		to->map_count++;
	}
}

/* From the space's regions: what is not RAM is none of the kernel's. */
static void describe_memory(struct vm *vm, struct handover *to)
{
	struct gpas_region region;
	gpas_gpa at = gpas_base(vm->space);

	while (gpas_region_next(vm->space, at, &region) == 0) {
		uint32_t type = strcmp(region.name, RAM_NAME) == 0	 ? 1
				: strcmp(region.name, PC_ACPI_NAME) == 0 ? 3
									 : 2;

		add_to_map(to, region.start.value, region.size, type);
		at = gpas_gpa_at(region.start.value + region.size);
	}
}

/* The end of the RAM that begins at 1 MiB. */
static uint64_t low_ram_end(const struct vm *vm)
{
	return vm->ram_end.value < PC_HOLE_START ? vm->ram_end.value
						 : PC_HOLE_START;
}

/* ---- Command line and initrd --------------------------------------------- */

static int put_cmdline(struct vm *vm, const struct handover *to)
{
	const char *text = vm->options->append;
	size_t length = strlen(text);

	if (length > to->cmdline_max || length >= PC_CMDLINE_MAX) {
		tell("--append is longer than the %u bytes this kernel takes",
		     to->cmdline_max < PC_CMDLINE_MAX ? to->cmdline_max
						      : PC_CMDLINE_MAX - 1);
		return STATUS_USAGE;
	}
	return put(vm, PC_CMDLINE_GPA, text, length + 1);
}

/* As high as it may be, so that the kernel has its room. */
static int put_initrd(struct vm *vm, const struct handover *to)
{
	uint64_t end = low_ram_end(vm);
	struct file file;
	int status;

	if (vm->options->initrd == NULL) {
		return 0;
	}
	status = open_file(&file, vm->options->initrd);
	if (status == 0) {
		if (end > to->initrd_end) {
			end = to->initrd_end & ~(GPAS_PAGE_BYTES - 1);
		}
		if (end < to->kernel_end || file.bytes > end - to->kernel_end) {
			tell("%s does not fit into --mem %s beside the kernel",
			     file.path, size_text(vm->options->mem).text);
			status = STATUS_BAD_GUEST;
		}
	}
	if (status == 0) {
		vm->pc->initrd = (end - file.bytes) & ~(GPAS_PAGE_BYTES - 1);
		vm->pc->initrd_bytes = file.bytes;
		if (vm->pc->initrd < to->kernel_end) {
			vm->pc->initrd = to->kernel_end;
		}
		status = copy_file(vm, &file, 0, file.bytes, vm->pc->initrd);
	}
	if (file.fd >= 0) {
		close(file.fd);
	}
	return status;
}

/* ---- Device tree --------------------------------------------------------- */

/* What a tree begins with (Devicetree Specification 0.4, 5.2), big-endian. */
#define DTB_MAGIC	 UINT32_C(0xd00dfeed)
#define DTB_HEADER_BYTES 40

static uint32_t big_endian(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 |
	       (uint32_t)bytes[2] << 8 | bytes[3];
}

static int check_dtb(const struct file *file)
{
	uint8_t head[DTB_HEADER_BYTES];
	const char *why = NULL;

	if (file->bytes > PC_DTB_MAX - sizeof(struct setup_data)) {
		why = "is larger than a device tree may be here, 64 KiB";
	} else if (read_at(file, 0, head, sizeof(head)) !=
			   (ssize_t)sizeof(head) ||
		   big_endian(head) != DTB_MAGIC) {
		why = "is no device tree blob";
	} else if (big_endian(head + 4) != file->bytes) {
		why = "has not the size that it says it has";
	}
	if (why != NULL) {
		tell("%s %s", file->path, why);
		return STATUS_BAD_GUEST;
	}
	return 0;
}

/* The only element of the list of setup data. @ret gets its GPA, or 0. */
static int put_dtb(struct vm *vm, uint64_t *ret)
{
	struct setup_data header = { .type = SETUP_DTB };
	struct file file;
	int status;

	*ret = 0;
	if (vm->options->dtb == NULL) {
		return 0;
	}
	status = open_file(&file, vm->options->dtb);
	if (status == 0) {
		status = check_dtb(&file);
	}
	if (status == 0) {
		header.len = (uint32_t)file.bytes;
		status = put(vm, PC_DTB_GPA, &header, sizeof(header));
	}
	if (status == 0) {
		status = copy_file(vm, &file, 0, file.bytes,
				   PC_DTB_GPA + sizeof(header));
		*ret = PC_DTB_GPA;
	}
	if (file.fd >= 0) {
		close(file.fd);
	}
	return status;
}

/* ---- bzImage ------------------------------------------------------------- */

static int put_params(struct vm *vm, const uint8_t *head,
		      const struct bzimage *image, const struct handover *to)
{
	struct boot_params params = { 0 };
	uint64_t dtb;
	int status = put_dtb(vm, &dtb);

	if (status != 0) {
		return status;
	}
	memcpy(&params.hdr, head + offsetof(struct boot_params, hdr),
	       image->header_bytes < sizeof(params.hdr) ? image->header_bytes
							: sizeof(params.hdr));
	params.hdr.type_of_loader = LOADER_TYPE;
	params.hdr.loadflags &= (uint8_t) ~(CAN_USE_HEAP | QUIET_FLAG);
	params.hdr.cmd_line_ptr = PC_CMDLINE_GPA;
	params.hdr.ramdisk_image = (uint32_t)vm->pc->initrd;
	params.hdr.ramdisk_size = (uint32_t)vm->pc->initrd_bytes;
	params.hdr.setup_data = dtb;
	params.acpi_rsdp_addr = PC_ACPI_START;
	params.e820_entries = (uint8_t)to->map_count;
	memcpy(params.e820_table, to->map,
	       to->map_count * sizeof(params.e820_table[0]));
	return put(vm, PC_PARAMS_GPA, &params, sizeof(params));
}

static int does_not_fit(struct vm *vm, const struct file *file, uint64_t end)
{
	if (end <= low_ram_end(vm)) {
		return 0;
	}
	tell("%s needs memory up to %s, more than --mem %s", file->path,
	     size_text(end).text, size_text(vm->options->mem).text);
	return STATUS_BAD_GUEST;
}

static int load_bzimage(struct vm *vm, const struct file *file,
			const uint8_t *head, const struct bzimage *image,
			struct handover *to)
{
	int status =
		does_not_fit(vm, file, image->load_gpa + image->memory_bytes);

	to->kernel_end = image->load_gpa + image->memory_bytes;
	to->kernel_end =
		(to->kernel_end + GPAS_PAGE_BYTES - 1) & ~(GPAS_PAGE_BYTES - 1);
	to->initrd_end = image->initrd_end;
	to->cmdline_max = image->cmdline_max;
	vm->pc->mode = PC_ENTER_64;
	vm->pc->entry = image->load_gpa + ENTRY_64_OFFSET;
	if (status == 0) {
		status = copy_file(vm, file, image->code_offset,
				   image->code_bytes, image->load_gpa);
	}
	if (status == 0) {
		status = put_initrd(vm, to);
	}
	if (status == 0) {
		status = put_cmdline(vm, to);
	}
	return status == 0 ? put_params(vm, head, image, to) : status;
}

/* ---- ELF by PVH ---------------------------------------------------------- */

static uint64_t align4(uint64_t value)
{
	return (value + 3) & ~UINT64_C(3);
}

/* Look for the entry point among notes; 0 if it is not there. */
static uint64_t entry_in_notes(const uint8_t *notes, uint64_t size)
{
	Elf64_Nhdr note;

	for (uint64_t at = 0; size - at >= sizeof(note);) {
		uint64_t name = at + sizeof(note), text, next;
		uint32_t entry;

		memcpy(&note, notes + at, sizeof(note));
		text = name + align4(note.n_namesz);
		next = text + align4(note.n_descsz);
		if (next > size) {
			break;
		}
		if (note.n_type == NOTE_PVH_ENTRY && note.n_namesz == 4 &&
		    memcmp(notes + name, "Xen", 4) == 0 &&
		    note.n_descsz >= sizeof(entry)) {
			memcpy(&entry, notes + text, sizeof(entry));
			return entry;
		}
		at = next;
	}
	return 0;
}

static int read_notes(const struct file *file, const Elf64_Phdr *segment,
		      uint64_t *entry)
{
	uint8_t *notes;

	if (segment->p_filesz > NOTES_MAX_BYTES) {
		return refuse(file, "its notes are too long");
	}
	notes = malloc(segment->p_filesz + 1);
	if (notes != NULL &&
	    read_at(file, segment->p_offset, notes, segment->p_filesz) ==
		    (ssize_t)segment->p_filesz) {
		uint64_t found = entry_in_notes(notes, segment->p_filesz);

		*entry = found != 0 ? found : *entry;
	}
	free(notes);
	return 0;
}

static int load_segment(struct vm *vm, const struct file *file,
			const Elf64_Phdr *segment, struct handover *to)
{
	uint64_t start = segment->p_paddr, end;
	int status;

	if (segment->p_memsz < segment->p_filesz) {
		return refuse(file, "a segment is larger than its memory");
	}
	if (start < PC_HIGH_START || start > PC_HOLE_START ||
	    segment->p_memsz > PC_HOLE_START - start) {
		return refuse(file, "a segment lies outside [1 MiB, 3 GiB)");
	}
	end = start + segment->p_memsz;
	status = does_not_fit(vm, file, end);
	if (status == 0 && segment->p_filesz > 0) {
		status = copy_file(vm, file, segment->p_offset,
				   segment->p_filesz, start);
	}
	end = (end + GPAS_PAGE_BYTES - 1) & ~(GPAS_PAGE_BYTES - 1);
	to->kernel_end = end > to->kernel_end ? end : to->kernel_end;
	return status;
}

static int load_segments(struct vm *vm, const struct file *file,
			 const Elf64_Ehdr *elf, struct handover *to)
{
	int status = 0;

	for (unsigned i = 0; status == 0 && i < elf->e_phnum; i++) {
		uint64_t at = elf->e_phoff + i * sizeof(Elf64_Phdr);
		Elf64_Phdr segment;

		if (read_at(file, at, &segment, sizeof(segment)) !=
		    (ssize_t)sizeof(segment)) {
			return refuse(file, "its program headers are cut off");
		}
		if (segment.p_type != PT_LOAD && segment.p_type != PT_NOTE) {
			continue;
		}
		if (segment.p_offset > file->bytes ||
		    segment.p_filesz > file->bytes - segment.p_offset) {
			return refuse(file, "a segment is cut off");
		}
		status = segment.p_type == PT_NOTE
				 ? read_notes(file, &segment, &vm->pc->entry)
				 : load_segment(vm, file, &segment, to);
	}
	return status;
}

static int put_start_info(struct vm *vm, const struct handover *to)
{
	struct {
		struct pvh_start start;
		struct pvh_module initrd;
		struct pvh_memory map[E820_MAX_ENTRIES_ZEROPAGE];
	} info = { .start = { .magic = PVH_MAGIC, .version = PVH_VERSION } };
	const uint64_t base = PC_PARAMS_GPA;

	info.start.cmdline = PC_CMDLINE_GPA;
	info.start.rsdp = PC_ACPI_START;
	info.start.memory_map =
		base + (uint64_t)((char *)info.map - (char *)&info);
	info.start.memory_map_count = to->map_count;
	for (unsigned i = 0; i < to->map_count; i++) {
		info.map[i].address = to->map[i].addr;
		info.map[i].size = to->map[i].size;
		info.map[i].type = to->map[i].type;
	}
	if (vm->pc->initrd_bytes > 0) {
		info.start.module_count = 1;
		info.start.modules = base + sizeof(info.start);
		info.initrd.address = vm->pc->initrd;
		info.initrd.size = vm->pc->initrd_bytes;
	}
	return put(vm, base, &info, sizeof(info));
}

static int load_elf(struct vm *vm, const struct file *file, const uint8_t *head,
		    struct handover *to)
{
	Elf64_Ehdr elf;
	int status;

	memcpy(&elf, head, sizeof(elf));
	if (elf.e_ident[EI_CLASS] != ELFCLASS64 ||
	    elf.e_ident[EI_DATA] != ELFDATA2LSB || elf.e_machine != EM_X86_64) {
		return refuse(file, "it is not an ELF file for x86-64");
	}
	if (elf.e_phnum == 0 || elf.e_phnum > SEGMENTS_MAX ||
	    elf.e_phentsize != sizeof(Elf64_Phdr) ||
	    elf.e_phoff > file->bytes) {
		return refuse(file, "its program headers make no sense");
	}
	if (vm->options->dtb != NULL) {
		return refuse(file, "PVH has no way to pass --dtb");
	}
	vm->pc->mode = PC_ENTER_PVH;
	to->initrd_end = PC_HOLE_START;
	to->cmdline_max = 2047; /* Linux' COMMAND_LINE_SIZE */
	status = load_segments(vm, file, &elf, to);
	if (status == 0 && (vm->pc->entry < PC_HIGH_START ||
			    vm->pc->entry >= to->kernel_end)) {
		return refuse(file, "it has no PVH entry point");
	}
	if (status == 0) {
		status = put_initrd(vm, to);
	}
	if (status == 0) {
		status = put_cmdline(vm, to);
	}
	return status == 0 ? put_start_info(vm, to) : status;
}

/* ---- Either -------------------------------------------------------------- */

static int load_kernel(struct vm *vm, const struct file *file)
{
	uint8_t head[BZIMAGE_HEAD_BYTES] = { 0 };
	ssize_t size = read_at(file, 0, head, sizeof(head));
	struct handover to = { 0 };
	struct bzimage image;
	const char *why;

	if (size < 0) {
		return refuse(file, strerror((int)-size));
	}
	describe_memory(vm, &to);
	if (memcmp(head, ELFMAG, SELFMAG) == 0) {
		return load_elf(vm, file, head, &to);
	}
	why = bzimage_check(head, (size_t)size, file->bytes, &image);
	if (why != NULL) {
		return refuse(file, why);
	}
	return load_bzimage(vm, file, head, &image, &to);
}

int linux_load(struct vm *vm)
{
	struct file file;
	int status = open_file(&file, vm->options->kernel);

	if (status == 0) {
		status = load_kernel(vm, &file);
	}
	if (file.fd >= 0) {
		close(file.fd);
	}
	return status;
}
