/* SPDX-License-Identifier: MIT */
/*
 * What "gpas-vmm boot" does with kernels, initrds, command lines and device
 * trees of every kind: good ones end up where the kernel will look for them;
 * whatever is wrong with the others, they are refused with one line that says
 * so. The memory is a space without a KVM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <asm/bootparam.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../vmm/pc.h"

#define RAM_END	   (UINT64_C(64) << 20)
#define KERNEL_GPA UINT64_C(0x1000000)
#define ELF_BYTES  8192
#define ELF_MEMORY 0x3000 /* of its one segment */
#define NOTE_AT	   512
#define NOTE_BYTES 20
#define TEXT_AT	   4096
#define TREE_BYTES 72

/* ---- What the loader needs of the rest of the VMM ------------------------ */

static unsigned told;
static char last_line[512];

void tell(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last_line, sizeof(last_line), format, args);
	va_end(args);
	told++;
}

struct size_text size_text(uint64_t bytes)
{
	struct size_text ret;

	snprintf(ret.text, sizeof(ret.text), "%llu", (unsigned long long)bytes);
	return ret;
}

/* ---- Fixture ------------------------------------------------------------- */

/* A file in memory, and the path by which to open it. */
struct file {
	int fd;
	char path[32];
};

static struct machine {
	struct vm vm;
	struct pc pc;
	struct options options;
	struct file kernel, initrd, tree;
} machine;

static void file_create(struct file *file)
{
	file->fd = memfd_create("test", MFD_CLOEXEC);
	assert_true(file->fd >= 0);
	snprintf(file->path, sizeof(file->path), "/proc/self/fd/%d", file->fd);
}

static void file_write(const struct file *file, const void *bytes, size_t size)
{
	assert_int_equal(ftruncate(file->fd, 0), 0);
	assert_int_equal(pwrite(file->fd, bytes, size, 0), (ssize_t)size);
}

static void file_size(const struct file *file, uint64_t size)
{
	assert_int_equal(ftruncate(file->fd, (off_t)size), 0);
}

static int setup(void **state)
{
	const struct gpas_params params = { .size = 0 };
	const struct gpas_map_params ram = { .name = RAM_NAME, .lazy = true };
	const struct gpas_map_params acpi = { .name = PC_ACPI_NAME };

	(void)state;
	memset(&machine, 0, sizeof(machine));
	machine.vm.options = &machine.options;
	machine.vm.pc = &machine.pc;
	machine.vm.ram_end = gpas_gpa_at(RAM_END);
	machine.options.mem = RAM_END;
	machine.options.append = "console=ttyS0";
	file_create(&machine.kernel);
	file_create(&machine.initrd);
	file_create(&machine.tree);
	machine.options.kernel = machine.kernel.path;
	assert_int_equal(gpas_create(&params, &machine.vm.space), 0);
	assert_int_equal(gpas_map_alloc(machine.vm.space, gpas_gpa_at(0),
					PC_LOW_END, GPAS_PROT_RWX, &ram),
			 0);
	assert_int_equal(gpas_map_alloc(machine.vm.space,
					gpas_gpa_at(PC_ACPI_START),
					PC_ACPI_BYTES, GPAS_PROT_RW, &acpi),
			 0);
	assert_int_equal(
		gpas_map_alloc(machine.vm.space, gpas_gpa_at(PC_HIGH_START),
			       RAM_END - PC_HIGH_START, GPAS_PROT_RWX, &ram),
		0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(gpas_check(machine.vm.space), 0);
	gpas_destroy(machine.vm.space);
	close(machine.kernel.fd);
	close(machine.initrd.fd);
	close(machine.tree.fd);
	return 0;
}

/* Load; a refusal says why in one line, a success says nothing. */
static int load(void)
{
	int status;

	memset(&machine.pc, 0, sizeof(machine.pc));
	told = 0;
	status = linux_load(&machine.vm);
	assert_int_equal(told, status == 0 ? 0 : 1);
	return status;
}

static void refused(const char *why)
{
	assert_int_equal(load(), STATUS_BAD_GUEST);
	if (strstr(last_line, why) == NULL) {
		fail_msg("\"%s\", not \"%s\"", last_line, why);
	}
}

static void read_guest(uint64_t gpa, void *bytes, size_t size)
{
	assert_int_equal(gpas_read(machine.vm.space, gpas_gpa_at(gpa), bytes,
				   size, NULL),
			 0);
}

static void set(uint8_t *bytes, uint64_t offset, unsigned count, uint64_t value)
{
	for (unsigned i = 0; i < count; i++) {
		bytes[offset + i] = (uint8_t)(value >> 8 * i);
	}
}

/* A header, a segment of 4 KiB that gets more memory, a note with the entry. */
static void make_elf(uint8_t bytes[ELF_BYTES])
{
	const Elf64_Ehdr header = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
			     ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_phoff = sizeof(header),
		.e_ehsize = sizeof(header),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 2,
	};
	const Elf64_Phdr segments[2] = {
		{ .p_type = PT_LOAD,
		  .p_offset = TEXT_AT,
		  .p_paddr = KERNEL_GPA,
		  .p_filesz = ELF_BYTES - TEXT_AT,
		  .p_memsz = ELF_MEMORY },
		{ .p_type = PT_NOTE,
		  .p_offset = NOTE_AT,
		  .p_filesz = NOTE_BYTES,
		  .p_memsz = NOTE_BYTES },
	};
	const Elf64_Nhdr note = { .n_namesz = 4, .n_descsz = 4, .n_type = 18 };

	memset(bytes, 0, ELF_BYTES);
	memcpy(bytes, &header, sizeof(header));
	memcpy(bytes + sizeof(header), segments, sizeof(segments));
	memcpy(bytes + NOTE_AT, &note, sizeof(note));
	memcpy(bytes + NOTE_AT + 12, "Xen", 4);
	set(bytes, NOTE_AT + 16, 4, KERNEL_GPA + 0x10);
	for (unsigned i = TEXT_AT; i < ELF_BYTES; i++) {
		bytes[i] = (uint8_t)(i * 7 + i / 256);
	}
}

#define IMAGE_BYTES 65536

/* A bzImage of one sector more than its header. */
static void make_bzimage(uint8_t bytes[IMAGE_BYTES])
{
	memset(bytes, 0, IMAGE_BYTES);
	set(bytes, 0x1f1, 1, 3);
	set(bytes, 0x1f4, 4, (IMAGE_BYTES - 2048) / 16);
	set(bytes, 0x1fe, 2, 0xaa55);
	set(bytes, 0x200, 2, 0x6aeb);
	memcpy(bytes + 0x202, "HdrS", 4);
	set(bytes, 0x206, 2, 0x020f);
	set(bytes, 0x211, 1, 1);
	set(bytes, 0x22c, 4, 0x7fffffff);
	set(bytes, 0x230, 4, 0x200000);
	set(bytes, 0x236, 2, 1);
	set(bytes, 0x238, 4, 255);
	set(bytes, 0x258, 8, KERNEL_GPA);
	set(bytes, 0x260, 4, 0x100000);
	set(bytes, 2048, 4, 0x12345678);
}

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Small, large, and near all powers of two. */
static uint64_t random_value(uint64_t *seed)
{
	uint64_t bit = UINT64_C(1) << next_random(seed) % 64;

	switch (next_random(seed) % 4) {
	case 0:
		return bit - 1;
	case 1:
		return bit + next_random(seed) % 8;
	case 2:
		return 0 - bit;
	default:
		return next_random(seed) >> next_random(seed) % 64;
	}
}

/* What was accepted can be entered, and nothing is where it may not be. */
static void check_accepted(void)
{
	const struct pc *pc = &machine.pc;

	assert_in_range(pc->entry, PC_HIGH_START, RAM_END - 1);
	if (pc->initrd_bytes > 0) {
		assert_true(pc->initrd > pc->entry ||
			    pc->initrd + pc->initrd_bytes <= pc->entry);
		assert_in_range(pc->initrd, PC_HIGH_START,
				RAM_END - pc->initrd_bytes);
		assert_int_equal(pc->initrd % GPAS_PAGE_BYTES, 0);
	}
}

/* ---- ELF ----------------------------------------------------------------- */

static void loads_an_elf_kernel(void **state)
{
	uint8_t bytes[ELF_BYTES], back[ELF_BYTES - TEXT_AT];
	uint32_t magic;

	(void)state;
	make_elf(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.mode, PC_ENTER_PVH);
	assert_int_equal(machine.pc.entry, KERNEL_GPA + 0x10);
	read_guest(KERNEL_GPA, back, sizeof(back));
	assert_memory_equal(back, bytes + TEXT_AT, sizeof(back));
	read_guest(PC_PARAMS_GPA, &magic, sizeof(magic));
	assert_int_equal(magic, 0x336ec578);
}

static void refuses_every_cut_elf(void **state)
{
	uint8_t bytes[ELF_BYTES];

	(void)state;
	make_elf(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	for (uint64_t size = ELF_BYTES; size-- > 0;) {
		file_size(&machine.kernel, size);
		refused(size == 0 ? "empty" : "cannot be booted");
	}
}

static void refuses_hostile_program_headers(void **state)
{
	static uint8_t bytes[2 << 20];
	Elf64_Phdr segment = { .p_type = PT_LOAD, .p_paddr = KERNEL_GPA };

	(void)state;
	make_elf(bytes);
	/* As many as there may be, all over one another: the last one wins. */
	set(bytes, offsetof(Elf64_Ehdr, e_phoff), 8, 1 << 20);
	set(bytes, offsetof(Elf64_Ehdr, e_phnum), 2, 64);
	segment.p_filesz = segment.p_memsz = 1 << 20;
	for (size_t i = 0; i < 64; i++) {
		memcpy(bytes + (1 << 20) + i * sizeof(segment), &segment,
		       sizeof(segment));
	}
	file_write(&machine.kernel, bytes, sizeof(bytes));
	refused("no PVH entry");
	set(bytes, offsetof(Elf64_Ehdr, e_phnum), 2, 65);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	refused("make no sense");
	/* Notes: as many bytes as may be, one more, and none that ends. */
	make_elf(bytes);
	set(bytes, sizeof(Elf64_Ehdr) + sizeof(segment) + 32, 8, 1 << 16);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	assert_int_equal(load(), 0);
	set(bytes, sizeof(Elf64_Ehdr) + sizeof(segment) + 32, 8, (1 << 16) + 1);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	refused("notes are too long");
	make_elf(bytes);
	for (uint64_t length = NOTE_BYTES; length-- > 0;) {
		set(bytes, sizeof(Elf64_Ehdr) + sizeof(segment) + 32, 8,
		    length);
		file_write(&machine.kernel, bytes, ELF_BYTES);
		refused("no PVH entry");
	}
}

/* Where a segment may lie: from 1 MiB to the end of the memory. */
static void knows_where_segments_may_be(void **state)
{
	const unsigned at = sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_paddr);
	const struct {
		uint64_t start;
		const char *says;
	} cases[] = {
		{ PC_HIGH_START, NULL },
		{ PC_HIGH_START - 1, "lies outside" },
		{ 0, "lies outside" },
		{ RAM_END - ELF_MEMORY, NULL },
		{ RAM_END - ELF_MEMORY + 1, "needs memory up to" },
		{ PC_HOLE_START - ELF_MEMORY, "needs memory up to" },
		{ PC_HOLE_START - ELF_MEMORY + 1, "lies outside" },
		{ UINT64_MAX - 1, "lies outside" },
	};
	uint8_t bytes[ELF_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		make_elf(bytes);
		set(bytes, at, 8, cases[i].start);
		set(bytes, NOTE_AT + 16, 4, cases[i].start);
		file_write(&machine.kernel, bytes, sizeof(bytes));
		if (cases[i].says != NULL) {
			refused(cases[i].says);
		} else {
			assert_int_equal(load(), 0);
			assert_int_equal(machine.pc.entry, cases[i].start);
		}
	}
}

/* Fields of the headers and of the note, one to four at a time. */
static void survives_random_elf_files(void **state)
{
	const unsigned header_end = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr);
	uint64_t seed = 0x9e3779b97f4a7c15;
	unsigned accepted = 0;

	(void)state;
	for (unsigned turn = 0; turn < 30000; turn++) {
		uint8_t bytes[ELF_BYTES];
		int status;

		make_elf(bytes);
		for (unsigned i = 0; i <= turn % 4; i++) {
			unsigned at = (unsigned)(next_random(&seed) %
						 (header_end - 4 + NOTE_BYTES));

			at += at < header_end - 4 ? 4
						  : NOTE_AT - (header_end - 4);
			set(bytes, at & ~3u, 1u << next_random(&seed) % 4,
			    random_value(&seed));
		}
		file_write(&machine.kernel, bytes, sizeof(bytes));
		status = load();
		if (status == 0) {
			check_accepted();
			accepted++;
		} else {
			assert_int_equal(status, STATUS_BAD_GUEST);
		}
	}
	assert_in_range(accepted, 1, 29999);
}

/* ---- bzImage ------------------------------------------------------------- */

static void loads_a_bzimage(void **state)
{
	static uint8_t bytes[IMAGE_BYTES];
	struct boot_params params;
	uint32_t word;

	(void)state;
	make_bzimage(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.mode, PC_ENTER_64);
	assert_int_equal(machine.pc.entry, KERNEL_GPA + 0x200);
	read_guest(KERNEL_GPA, &word, sizeof(word));
	assert_int_equal(word, 0x12345678);
	read_guest(PC_PARAMS_GPA, &params, sizeof(params));
	assert_int_equal(params.hdr.setup_data, 0);
	assert_int_equal(params.e820_entries, 3);
	assert_int_equal(params.e820_table[2].addr, PC_HIGH_START);
	assert_int_equal(params.e820_table[2].size, RAM_END - PC_HIGH_START);
}

static void survives_random_bzimages(void **state)
{
	static uint8_t bytes[IMAGE_BYTES];
	uint64_t seed = 0x2545f4914f6cdd1d;
	unsigned accepted = 0;

	(void)state;
	machine.options.initrd = machine.initrd.path;
	for (unsigned turn = 0; turn < 5000; turn++) {
		int status;

		make_bzimage(bytes);
		for (unsigned i = 0; i <= turn % 4; i++) {
			set(bytes, 0x1f1 + next_random(&seed) % 0x78,
			    1u << next_random(&seed) % 4, random_value(&seed));
		}
		file_write(&machine.kernel, bytes, sizeof(bytes));
		file_size(&machine.initrd, 1 + next_random(&seed) % 20000);
		status = load();
		if (status == 0) {
			check_accepted();
			accepted++;
		} else {
			assert_true(status == STATUS_BAD_GUEST ||
				    status == STATUS_USAGE);
		}
	}
	assert_in_range(accepted, 1, 4999);
}

/* ---- What goes with a kernel --------------------------------------------- */

static void fits_an_initrd_to_the_byte(void **state)
{
	const uint64_t kernel_end = KERNEL_GPA + 0x100000;
	static uint8_t bytes[IMAGE_BYTES];

	(void)state;
	make_bzimage(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	machine.options.initrd = machine.initrd.path;
	file_size(&machine.initrd, RAM_END - kernel_end);
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.initrd, kernel_end);
	file_size(&machine.initrd, RAM_END - kernel_end - 1);
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.initrd, kernel_end);
	file_size(&machine.initrd, RAM_END - kernel_end + 1);
	refused("does not fit");
	file_size(&machine.initrd, 1);
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.initrd, RAM_END - GPAS_PAGE_BYTES);
	/* A kernel that wants it below a limit of its own. */
	set(bytes, 0x22c, 4, kernel_end + 0x1fff);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	file_size(&machine.initrd, 0x2000);
	assert_int_equal(load(), 0);
	assert_int_equal(machine.pc.initrd, kernel_end);
	file_size(&machine.initrd, 0x2001);
	refused("does not fit");
}

static void takes_as_long_a_command_line_as_the_kernel(void **state)
{
	static uint8_t bytes[IMAGE_BYTES];
	char line[257], back[257];

	(void)state;
	make_bzimage(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	memset(line, 'x', sizeof(line));
	line[255] = '\0';
	machine.options.append = line;
	assert_int_equal(load(), 0);
	read_guest(PC_CMDLINE_GPA, back, 256);
	assert_string_equal(back, line);
	line[255] = 'x';
	line[256] = '\0';
	assert_int_equal(load(), STATUS_USAGE);
	assert_non_null(strstr(last_line, "longer than the 255 bytes"));
}

static void hands_over_a_device_tree(void **state)
{
	static uint8_t bytes[IMAGE_BYTES];
	uint8_t tree[TREE_BYTES] = {
		0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, TREE_BYTES
	};
	struct setup_data header;
	uint8_t back[TREE_BYTES];
	struct boot_params params;

	(void)state;
	make_bzimage(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	machine.options.dtb = machine.tree.path;
	file_write(&machine.tree, tree, sizeof(tree));
	assert_int_equal(load(), 0);
	read_guest(PC_PARAMS_GPA, &params, sizeof(params));
	assert_int_equal(params.hdr.setup_data, PC_DTB_GPA);
	read_guest(PC_DTB_GPA, &header, sizeof(header));
	assert_int_equal(header.next, 0);
	assert_int_equal(header.type, SETUP_DTB);
	assert_int_equal(header.len, TREE_BYTES);
	read_guest(PC_DTB_GPA + sizeof(header), back, TREE_BYTES);
	assert_memory_equal(back, tree, TREE_BYTES);
	make_elf(bytes);
	file_write(&machine.kernel, bytes, ELF_BYTES);
	refused("no way to pass --dtb");
}

static void refuses_what_is_no_device_tree(void **state)
{
	static uint8_t bytes[IMAGE_BYTES];
	uint8_t tree[TREE_BYTES] = {
		0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, TREE_BYTES
	};

	(void)state;
	make_bzimage(bytes);
	file_write(&machine.kernel, bytes, sizeof(bytes));
	machine.options.dtb = "/proc/self/fd/none";
	refused("No such file");
	machine.options.dtb = machine.tree.path;
	for (uint64_t size = 0; size < TREE_BYTES; size++) {
		file_write(&machine.tree, tree, size);
		refused(size == 0   ? "is empty"
			: size < 40 ? "no device tree"
				    : "the size that it says");
	}
	file_write(&machine.tree, tree, TREE_BYTES);
	file_size(&machine.tree, TREE_BYTES + 1);
	refused("the size that it says");
	file_size(&machine.tree, PC_DTB_MAX);
	refused("larger than");
	file_size(&machine.tree, UINT64_C(1) << 40);
	refused("larger than");
	tree[0] = 0;
	file_write(&machine.tree, tree, TREE_BYTES);
	refused("no device tree");
	/* The largest that there may be. */
	tree[0] = 0xd0;
	tree[5] = 0x00;
	tree[6] = 0xff;
	tree[7] = 0xf0;
	file_write(&machine.tree, tree, TREE_BYTES);
	file_size(&machine.tree, 0xfff0);
	assert_int_equal(load(), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(loads_an_elf_kernel),
		TEST(refuses_every_cut_elf),
		TEST(refuses_hostile_program_headers),
		TEST(knows_where_segments_may_be),
		TEST(survives_random_elf_files),
		TEST(loads_a_bzimage),
		TEST(survives_random_bzimages),
		TEST(fits_an_initrd_to_the_byte),
		TEST(takes_as_long_a_command_line_as_the_kernel),
		TEST(hands_over_a_device_tree),
		TEST(refuses_what_is_no_device_tree),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
