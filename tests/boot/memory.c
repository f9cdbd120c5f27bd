/* SPDX-License-Identifier: MIT */
/*
 * What a Linux that gpas-vmm booted does with memory that changes under it. The
 * guest's shell runs it; it asks the VMM through the doorbell (vmm/device.c).
 *
 *   memory plug MIB   have a module plugged in, use it, have it taken out;
 * twice memory seal       have a page of its own code sealed, write to it,
 * unseal it
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES     4096
#define DOORBELL_GPA   0xd0001000
#define DOORBELL_START (0x28 / 8)
#define DOORBELL_SIZE  (0x30 / 8)
#define DOORBELL_DO    (0x38 / 8)
#define DOORBELL_PLUG  (0x40 / 8)
#define DO_SEAL	       4
#define DO_UNSEAL      5
#define ABOVE_HOLE     UINT64_C(0x100000000)

static volatile uint64_t *doorbell;

__attribute__((noreturn)) static void fail(const char *what)
{
	printf("memory: FAILED: %s (%s)\n", what, strerror(errno));
	exit(1);
}

static void check(int good, const char *what)
{
	if (!good) {
		fail(what);
	}
}

static void open_doorbell(void)
{
	int fd = open("/dev/mem", O_RDWR | O_SYNC);
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			  fd, DOORBELL_GPA);

	check(page != MAP_FAILED, "/dev/mem");
	doorbell = page;
}

/* The guest-physical address of a page that is present. */
static uint64_t gpa_of(const volatile void *at)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;
	off_t offset = (off_t)((uintptr_t)at / PAGE_BYTES * sizeof(entry));

	check(pread(fd, &entry, sizeof(entry), offset) == sizeof(entry) &&
		      (entry >> 63) != 0,
	      "pagemap");
	close(fd);
	return (entry & ((UINT64_C(1) << 55) - 1)) * PAGE_BYTES;
}

/* ---- A module ------------------------------------------------------------ */

static long total_kib(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	long kib = -1;

	check(file != NULL && fscanf(file, "MemTotal: %ld kB", &kib) == 1,
	      "/proc/meminfo");
	fclose(file);
	return kib;
}

/* The time limit of the run ends this if nothing else does. */
static void wait_for_total(long kib)
{
	const struct timespec pause = { .tv_nsec = 20000000 };

	for (long now = -1, last = -1; now != kib; last = now) {
		now = total_kib();
		if (now != last) {
			printf("memory: %ld KiB, to be %ld\n", now, kib);
		}
		nanosleep(&pause, NULL);
	}
}

/* User memory may come from the module alone, and does so first. */
static void use(size_t bytes)
{
	size_t count = bytes / sizeof(uint64_t), step = PAGE_BYTES / 8;
	size_t in_module = 0, bad = 0;
	uint64_t *words = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(words != MAP_FAILED, "mmap");
	for (size_t i = 0; i < count; i += step) {
		bad += words[i] != 0 || words[i + step - 1] != 0;
		words[i] = i;
		words[i + step - 1] = ~i;
	}
	for (size_t i = 0; i < count; i += step) {
		bad += words[i] != i || words[i + step - 1] != ~i;
		in_module += gpa_of(words + i) >= ABOVE_HOLE;
	}
	munmap(words, bytes);
	check(bad == 0, "content");
	check(in_module > 0, "nothing came from the module");
	printf("memory: %zu of %zu pages came from the module\n", in_module,
	       count / step);
}

static void plug(long mib)
{
	const char policy[] = "/sys/devices/system/memory/auto_online_blocks";
	FILE *file = fopen(policy, "w");

	/* Only what may be moved goes there, so that it can be emptied. */
	check(file != NULL && fputs("online_movable", file) >= 0 &&
		      fclose(file) == 0,
	      policy);
	for (int round = 1; round <= 2; round++) {
		long before = total_kib();

		doorbell[DOORBELL_PLUG] = 1;
		check(doorbell[DOORBELL_DO] == 0, "plugging in");
		wait_for_total(before + mib * 1024);
		printf("memory: %ld MiB more\n", mib);
		use((size_t)mib << 19);
		doorbell[DOORBELL_PLUG] = 0;
		check(doorbell[DOORBELL_DO] == 0, "asking for it");
		wait_for_total(before);
		while (doorbell[DOORBELL_PLUG] != 0) {
			usleep(20000);
		}
		printf("memory: %ld MiB less\n", mib);
	}
	doorbell[DOORBELL_PLUG] = 0;
	check((int64_t)doorbell[DOORBELL_DO] == -ENOENT, "asked for nothing");
	printf("memory: plug passed\n");
}

/* ---- A sealed page ------------------------------------------------------- */

/* A page with a function in it: mov $0x11223344, %eax; ret. */
extern uint8_t sealed_page[PAGE_BYTES];
__asm__(".pushsection .text\n"
	".balign 4096\n"
	"sealed_page: .byte 0xb8, 0x44, 0x33, 0x22, 0x11, 0xc3\n"
	".skip 4090, 0xcc\n"
	".popsection\n");

static uint32_t call_it(void)
{
	uint32_t (*function)(void);
	const void *at = sealed_page;

	memcpy(&function, &at, sizeof(function));
	return function();
}

/* Store a byte at @at; returns the address of the instruction after it. */
static uintptr_t store(volatile uint8_t *at, uint8_t value)
{
	uintptr_t next;

	__asm__ volatile("movb %2, (%1)\n"
			 "1: leaq 1b(%%rip), %0\n"
			 : "=&r"(next)
			 : "r"(at), "q"(value)
			 : "memory");
	return next;
}

static void ask(uint64_t gpa, uint64_t what)
{
	doorbell[DOORBELL_START] = gpa;
	doorbell[DOORBELL_SIZE] = PAGE_BYTES;
	doorbell[DOORBELL_DO] = what;
	check(doorbell[DOORBELL_DO] == 0, "the doorbell");
}

static void seal(void)
{
	uintptr_t next;
	uint64_t gpa;

	check(mprotect(sealed_page, PAGE_BYTES,
		       PROT_READ | PROT_WRITE | PROT_EXEC) == 0,
	      "mprotect");
	store(sealed_page + 100, 0); /* a page of its own from now on */
	gpa = gpa_of(sealed_page);
	check(call_it() == 0x11223344, "the function");
	ask(gpa, DO_SEAL);
	check(call_it() == 0x11223344, "the function in a sealed page");
	next = store(sealed_page + 1, 0x55);
	printf("memory: wrote to 0x%llx before 0x%llx\n",
	       (unsigned long long)gpa + 1, (unsigned long long)next);
	check(gpa_of(sealed_page) == gpa, "the page moved");
	check(call_it() == 0x11223344, "a sealed page was written");
	ask(gpa, DO_UNSEAL);
	store(sealed_page + 1, 0x66);
	check(gpa_of(sealed_page) == gpa, "the page moved");
	check(call_it() == 0x11223366, "an unsealed page was not written");
	printf("memory: seal passed\n");
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	open_doorbell();
	if (argc == 3 && strcmp(argv[1], "plug") == 0) {
		plug(atol(argv[2]));
	} else if (argc == 2 && strcmp(argv[1], "seal") == 0) {
		seal();
	} else {
		errno = EINVAL;
		fail("arguments");
	}
	return 0;
}
