/* SPDX-License-Identifier: MIT */
/*
 * What lazy memory costs a guest: code at CPL 3 touches every page of a region
 * once, in order or at random, on each mechanism. The floor is a plain slot
 * over demand-zero memory; the other baseline is what VMMs classically do: a
 * userfaultfd thread that serves one 4 KiB page per message.
 */
#include "bench.h"
#include "machine.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE GPAS_PAGE_BYTES

/* Where things are in the guest: all below 4 GiB. */
#define BOOT	 (UINT64_C(0x10000))
#define CODE	 (UINT64_C(0x1000))
#define LOW	 (64 * PAGE)
#define TARGET	 GIB
#define DOORBELL (UINT64_C(3) << 30)

/*
 * rdi: the region, rcx: pages to touch, rbx: where to store when done. At
 * random: rsi is the page mask, rax the state of a generator of full period.
 */
__asm__(".pushsection .rodata\n"
	"touch_in_order:\n"
	"1:	mov %rdi, (%rdi)\n"
	"	add $4096, %rdi\n"
	"	dec %rcx\n"
	"	jnz 1b\n"
	"	mov %rax, (%rbx)\n"
	"touch_at_random:\n"
	"1:	imul $0x5851f42d, %rax, %rax\n"
	"	add $0x14057b7f, %rax\n"
	"	and %rsi, %rax\n"
	"	mov %rax, %rdx\n"
	"	shl $12, %rdx\n"
	"	mov %rax, (%rdi, %rdx)\n"
	"	dec %rcx\n"
	"	jnz 1b\n"
	"	mov %rax, (%rbx)\n"
	"touch_end:\n"
	".popsection\n");
extern const uint8_t touch_in_order[];
extern const uint8_t touch_at_random[];
extern const uint8_t touch_end[];

/* ---- The classical handler ----------------------------------------------- */

struct classic {
	int fd;
	int stop_fd;
	pthread_t thread;
};

static void *classic_serve(void *arg)
{
	static uint8_t zeros[GPAS_PAGE_BYTES]
		__attribute__((aligned(GPAS_PAGE_BYTES)));
	struct classic *classic = arg;
	struct pollfd polls[] = {
		{ .fd = classic->fd, .events = POLLIN },
		{ .fd = classic->stop_fd, .events = POLLIN },
	};
	struct uffd_msg message;

	while (poll(polls, 2, -1) > 0 && (polls[1].revents & POLLIN) == 0) {
		struct uffdio_copy copy = {
			.src = (uintptr_t)zeros,
			.len = PAGE,
		};

		if (read(classic->fd, &message, sizeof(message)) !=
		    sizeof(message)) {
			continue;
		}
		copy.dst = message.arg.pagefault.address & ~(PAGE - 1);
		(void)ioctl(classic->fd, UFFDIO_COPY, &copy);
	}
	return NULL;
}

/* False where userfaultfd is not to be had. */
static bool classic_start(struct classic *classic, void *host, uint64_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)host, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	classic->fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (classic->fd < 0) {
		return false;
	}
	classic->stop_fd = eventfd(0, EFD_CLOEXEC);
	bench_must(ioctl(classic->fd, UFFDIO_API, &api) != 0 ? -errno : 0,
		   "UFFDIO_API");
	bench_must(ioctl(classic->fd, UFFDIO_REGISTER, &range) != 0 ? -errno
								    : 0,
		   "UFFDIO_REGISTER");
	bench_must(
		pthread_create(&classic->thread, NULL, classic_serve, classic),
		"a thread");
	return true;
}

static void classic_stop(struct classic *classic)
{
	const uint64_t one = 1;

	bench_must(write(classic->stop_fd, &one, sizeof(one)) != sizeof(one),
		   "an event");
	pthread_join(classic->thread, NULL);
	close(classic->stop_fd);
	close(classic->fd);
}

/* ---- One run ------------------------------------------------------------- */

enum mechanism {
	PLAIN,
	CLASSIC,
	TRAP,
	ABSENT,
	UFFD,
};

struct run {
	enum mechanism mechanism;
	bool at_random;
	uint64_t size;
	uint64_t granule;
	uint64_t granule_max;
	uint64_t faults; /* out */
	struct classic classic;
	void *host; /* of PLAIN and CLASSIC */
};

/* Maps what the guest touches. False: not to be had here. */
static bool map_target(struct gpas *space, struct run *run)
{
	struct gpas_map_params params = {
		.lazy = true,
		.granule = run->granule,
		.granule_max = run->granule_max,
		.mechanism = run->mechanism == UFFD ? GPAS_LAZY_UFFD
						    : GPAS_LAZY_AUTO,
	};

	if (run->mechanism != PLAIN && run->mechanism != CLASSIC) {
		return gpas_map_alloc(space, gpas_gpa_at(TARGET), run->size,
				      GPAS_PROT_RWX, &params) == 0;
	}
	run->host = mmap(NULL, run->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(run->host == MAP_FAILED ? -errno : 0, "memory");
	(void)madvise(run->host, run->size, MADV_NOHUGEPAGE);
	bench_must(gpas_map_linear(space, gpas_gpa_at(TARGET), run->size,
				   run->host, GPAS_PROT_RWX, NULL),
		   "mapping linear memory");
	return run->mechanism == PLAIN ||
	       classic_start(&run->classic, run->host, run->size);
}

static void unmap_target(struct run *run)
{
	if (run->mechanism == CLASSIC) {
		classic_stop(&run->classic);
	}
	if (run->host != NULL) {
		munmap(run->host, run->size);
		run->host = NULL;
	}
}

/* Runs the guest from its first instruction to the doorbell: nanoseconds. */
static double run_guest(const struct machine *machine, struct gpas *space,
			const struct run *run)
{
	const uint8_t *code = run->at_random ? touch_at_random : touch_in_order;
	struct kvm_regs regs = {
		.rip = CODE + (uint64_t)(code - touch_in_order),
		.rdi = TARGET,
		.rsi = run->size / PAGE - 1,
		.rcx = run->size / PAGE,
		.rbx = DOORBELL,
		.rax = 1,
	};
	struct gpas_vcpu vcpu;
	struct gpas_exit exit;
	double begun;

	bench_must(gpas_vcpu_init(&vcpu, space, machine->vcpu_fd, machine->run),
		   "a vCPU");
	bench_must(machine_set_level(machine, 3), "the vCPU's mode");
	bench_must(machine_set_regs(machine, &regs), "the vCPU's registers");
	begun = bench_now();
	do {
		bench_must(gpas_vcpu_run(&vcpu, &exit), "KVM_RUN");
	} while (exit.kind == GPAS_EXIT_RESUME);
	begun = bench_now() - begun;
	bench_must(exit.kind != GPAS_EXIT_FAULT ||
			   exit.fault.gpa.value != DOORBELL,
		   "the guest's end");
	gpas_vcpu_fini(&vcpu);
	return begun;
}

/* One repetition on a new VM: nanoseconds a page, or 0 if it cannot be had. */
static double measure(const struct bench *bench, struct run *run)
{
	struct gpas_params params = { .size = 4 * GIB };
	struct gpas_kvm_params kvm = {
		.lazy = run->mechanism == TRAP ? GPAS_LAZY_TRAP
					       : GPAS_LAZY_ABSENT,
	};
	struct gpas_translation low;
	struct gpas_stats stats;
	struct machine machine;
	struct gpas *space;
	double elapsed = 0;
	bool usable;

	bench_must(machine_open(&machine, BOOT), "/dev/kvm");
	bench_keep_page_tables(machine.vm_fd);
	bench_must(gpas_create(&params, &space), "a space");
	bench_must(
		gpas_map_alloc(space, gpas_gpa_at(0), LOW, GPAS_PROT_RWX, NULL),
		"low memory");
	bench_must(gpas_translate(space, gpas_gpa_at(0), 0, LOW, &low),
		   "low memory");
	machine_fill_boot(&machine, (char *)low.host + BOOT);
	memcpy((char *)low.host + CODE, touch_in_order,
	       (size_t)(touch_end - touch_in_order));
	kvm.vm_fd = machine.vm_fd;
	/* Only the vCPU is pinned: who serves userfaults has a CPU to itself,
	 * if there is one. */
	bench_unpin(bench);
	usable = map_target(space, run) && gpas_kvm_attach(space, &kvm) == 0;
	bench_pin(bench, 0);
	if (usable) {
		elapsed = run_guest(&machine, space, run);
		gpas_stats(space, &stats);
		run->faults = stats.populations;
	}
	unmap_target(run);
	gpas_destroy(space);
	machine_close(&machine);
	return elapsed * (double)PAGE / (double)run->size;
}

/* ---- Touching ------------------------------------------------------------ */

/* The largest size, up to 1 GiB, that the slowest way touches in half a
 * second. */
static uint64_t choose_size(const struct bench *bench)
{
	struct run run = { .mechanism = CLASSIC, .size = 4 * MIB };
	double page = measure(bench, &run);
	uint64_t size = 16 * MIB;

	while (size < GIB && page * (double)(2 * size / PAGE) < 5e8) {
		size *= 2;
	}
	return size;
}

struct way {
	const char *name;
	enum mechanism mechanism;
	uint64_t granule;
	uint64_t granule_max;
	double target[2]; /* in order, at random: to the floor */
};

static const struct way ways[] = {
	{ "plain slot (the floor)", PLAIN, 0, 0, { 0, 0 } },
	{ "classical uffd handler", CLASSIC, 0, 0, { 0, 0 } },
	{ "trap, 64 KiB growing to 64 MiB",
	  TRAP,
	  64 * KIB,
	  64 * MIB,
	  { 1.15, 1.5 } },
	{ "trap, 64 KiB", TRAP, 64 * KIB, 0, { 0, 0 } },
	{ "trap, 2 MiB", TRAP, 2 * MIB, 0, { 0, 1.5 } },
	{ "absent, 64 KiB growing to 64 MiB",
	  ABSENT,
	  64 * KIB,
	  64 * MIB,
	  { 1.15, 1.5 } },
	{ "absent, 64 KiB", ABSENT, 64 * KIB, 0, { 0, 0 } },
	{ "absent, 2 MiB", ABSENT, 2 * MIB, 0, { 0, 1.5 } },
	{ "uffd, 4 KiB", UFFD, 4 * KIB, 0, { 0, 0 } },
	{ "uffd, 4 KiB growing to 2 MiB", UFFD, 4 * KIB, 2 * MIB, { 0, 0 } },
	{ "uffd, 64 KiB", UFFD, 64 * KIB, 0, { 0, 0 } },
};
#define WAYS ARRAY_COUNT(ways)

static void report_way(struct bench *bench, const struct way *way,
		       const struct series *figures, bool at_random)
{
	const struct series *figure = &figures[way - ways];
	struct bench_row row = {
		.unit = "ns/page",
		.figure = *figure,
		.against = "plain slot",
		.target = way->target[at_random],
	};
	char name[96];

	if (figure->count == 0) {
		return;
	}
	(void)snprintf(name, sizeof(name), "%s: %s",
		       at_random ? "random" : "sequential", way->name);
	row.name = name;
	if (way->mechanism != PLAIN) {
		row.floor = figures[PLAIN];
	}
	bench_report(bench, &row);
	if (row.target == 0 || figures[CLASSIC].count == 0) {
		return;
	}
	row.against = "classical handler";
	row.floor = figures[CLASSIC];
	row.about = BENCH_SPEED;
	row.target = 5;
	bench_report(bench, &row);
}

static void touch(struct bench *bench, uint64_t size, bool at_random)
{
	struct series figures[WAYS] = { 0 };

	/* Each round has every way, so that a slow second hits them all. */
	for (unsigned n = 0; n < bench->repetitions; n++) {
		for (size_t i = 0; i < WAYS; i++) {
			struct run run = {
				.mechanism = ways[i].mechanism,
				.at_random = at_random,
				.size = size,
				.granule = ways[i].granule,
				.granule_max = ways[i].granule_max,
			};
			double figure = measure(bench, &run);

			if (figure != 0) {
				series_add(&figures[i], figure);
			}
		}
	}
	for (size_t i = 0; i < WAYS; i++) {
		report_way(bench, &ways[i], figures, at_random);
	}
}

void bench_guest(struct bench *bench)
{
	uint64_t size = bench->size;
	struct machine machine;

	if (!bench_group(bench, "guest",
			 "A guest at CPL 3 touches every page once")) {
		return;
	}
	if (machine_open(&machine, BOOT) != 0) {
		bench_skip(bench, "guests", "no usable /dev/kvm");
		return;
	}
	machine_close(&machine);
	if (size == 0) {
		size = bench->quick ? 4 * MIB : choose_size(bench);
	}
	printf("  (%llu MiB)\n", (unsigned long long)(size / MIB));
	touch(bench, size, false);
	touch(bench, size, true);
}
