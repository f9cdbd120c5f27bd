/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory on a real KVM: every kind of first touch, by traps and by absent
 * slots, at privilege levels 0 and 3; several vCPUs on the same memory; and
 * slots replaced under vCPUs that run.
 *
 * Where KVM emulates (absent slots; on some hosts all of level 0) an access
 * comes as MMIO, elsewhere as a memory fault. The outcome must be the same.
 */
#include "machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)

/* The guest's memory. */
#define LOW_BYTES (256 * UINT64_C(1024))
#define BOOT	  UINT64_C(0x10000)
#define CODE	  UINT64_C(0x20000)
#define SCRATCH	  UINT64_C(0x30000) /* sources and results of the guest */
#define LAZY	  (16 * MIB)	    /* zeros */
#define LAZY_CODE (32 * MIB)	    /* filled with code */
#define DOORBELL  UINT64_C(0xe0000000)
#define REGISTER  0xc0de0010u

#define VCPU_COUNT 3

/* ---- What the guest does ------------------------------------------------- */

/*
 * Each piece of code starts with rdi: where, rsi: SCRATCH, rbx: the doorbell,
 * rcx: a count, and ends with the result in rax. It runs where it was not
 * linked, so it refers to nothing.
 */
#define GUEST(name, text)                                 \
	extern const char name[], name##_end[];           \
	__asm__(".pushsection .rodata\n" #name ":\n" text \
		"\nmov %rax,(%rbx)\n1:jmp 1b\n" #name "_end:\n.popsection\n")

GUEST(guest_load, "mov (%rdi),%rax");
GUEST(guest_store, "movabs $0x1122334455667788,%rax\n"
		   "mov %rax,(%rdi)\n"
		   "xor %eax,%eax\n"
		   "mov (%rdi),%rax");
GUEST(guest_store_byte, "movb $0x5a,(%rdi)\n"
			"movzbl (%rdi),%eax");
GUEST(guest_add, "addq $5,(%rdi)\n"
		 "addq $6,(%rdi)\n"
		 "mov (%rdi),%rax");
GUEST(guest_lock_add, "mov $9,%eax\n"
		      "lock xadd %rax,(%rdi)\n"
		      "add (%rdi),%rax");
GUEST(guest_exchange, "mov $7,%edx\n"
		      "xchg %rdx,(%rdi)\n"
		      "mov (%rdi),%rax\n"
		      "shl $8,%rax\n"
		      "or %rdx,%rax");
GUEST(guest_push, "mov %rsp,%r8\n"
		  "lea 8(%rdi),%rsp\n"
		  "push $0x77\n"
		  "mov %r8,%rsp\n"
		  "mov (%rdi),%rax");
GUEST(guest_push_memory, "mov %rsp,%r8\n"
			 "lea 8(%rsi),%rsp\n"
			 "movq $1,(%rsi)\n"
			 "push (%rdi)\n"
			 "mov %r8,%rsp\n"
			 "mov (%rsi),%rax");
GUEST(guest_call, "mov %rsp,%r8\n"
		  "lea 8(%rdi),%rsp\n"
		  "call 2f\n"
		  "2: lea 2b(%rip),%rax\n"
		  "mov %r8,%rsp\n"
		  "sub (%rdi),%rax");
GUEST(guest_copy_to, "mov $64,%ecx\n"
		     "cld\n"
		     "mov %rdi,%rdx\n"
		     "rep movsb\n"
		     "mov 56(%rdx),%rax");
GUEST(guest_copy_from, "mov $64,%ecx\n"
		       "cld\n"
		       "mov %rsi,%rdx\n"
		       "xchg %rdi,%rsi\n"
		       "rep movsb\n"
		       "mov 56(%rdx),%rax");
GUEST(guest_set, "mov $0x3333333333333333,%rax\n"
		 "mov $8,%ecx\n"
		 "cld\n"
		 "mov %rdi,%rdx\n"
		 "rep stosq\n"
		 "mov 56(%rdx),%rax");
GUEST(guest_vector, "movups (%rsi),%xmm0\n"
		    "movups %xmm0,(%rdi)\n"
		    "mov 8(%rdi),%rax");
GUEST(guest_call_there, "xor %eax,%eax\n"
			"call *%rdi");
GUEST(guest_popcnt, "popcnt (%rdi),%rax");
GUEST(guest_registers, "mov $0xc0de0010,%ecx\n"
		       "rdmsr\n"
		       "inc %eax\n"
		       "wrmsr\n"
		       "rdmsr\n"
		       "shl $32,%rdx\n"
		       "or %rdx,%rax");
/* Stores rax + i to the word of page i at rdi, rcx pages, then looks. */
GUEST(guest_walk, "mov %rdi,%r8\n"
		  "mov %rcx,%r9\n"
		  "mov %rax,%r10\n"
		  "2: mov %rax,(%rdi)\n"
		  "inc %rax\n"
		  "add $4096,%rdi\n"
		  "dec %rcx\n"
		  "jnz 2b\n"
		  "3: cmp %r10,(%r8)\n"
		  "jne 4f\n"
		  "inc %r10\n"
		  "add $4096,%r8\n"
		  "dec %r9\n"
		  "jnz 3b\n"
		  "mov $1,%eax\n"
		  "jmp 5f\n"
		  "4: mov $2,%eax\n"
		  "5:");
/* Counts in a word of each of 8 pages in turn, until (rsi) is not 0. */
GUEST(guest_count, "xor %ecx,%ecx\n"
		   "2: mov %rcx,%rdx\n"
		   "and $7,%edx\n"
		   "shl $12,%rdx\n"
		   "mov %rcx,%rax\n"
		   "shr $3,%rax\n"
		   "cmp %rax,(%rdi,%rdx)\n"
		   "jne 3f\n"
		   "inc %rax\n"
		   "mov %rax,(%rdi,%rdx)\n"
		   "inc %rcx\n"
		   "cmpq $0,(%rsi)\n"
		   "je 2b\n"
		   "mov %rcx,%rax\n"
		   "jmp 4f\n"
		   "3: mov $-1,%rax\n"
		   "4:");

/* ---- The fixture --------------------------------------------------------- */

struct bell {
	atomic_bool rung;
	uint64_t value;
};

struct fixture {
	struct machine machines[VCPU_COUNT];
	struct gpas_vcpu vcpus[VCPU_COUNT];
	unsigned vcpu_count;
	struct gpas *space;
	enum gpas_lazy lazy;
	unsigned level;
	uint8_t *low;
	struct bell bells[VCPU_COUNT];
	uint64_t sysreg;
	pthread_t threads[VCPU_COUNT];
	char last[256];
	/* Of the one vCPU's run: the last exit that was not RESUME. */
	struct gpas_exit exit;
	unsigned faults;
};

static void log_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct fixture *f = ctx;

	if (level <= GPAS_LOG_WARNING) {
		(void)snprintf(f->last, sizeof(f->last), "%s", line);
	}
}

static int ring(void *ctx, struct gpas_device_access *access)
{
	struct fixture *f = ctx;
	struct bell *bell = &f->bells[access->offset / 8 % VCPU_COUNT];

	bell->value = access->value;
	atomic_store(&bell->rung, access->write);
	return 0;
}

static int access_register(void *ctx, struct gpas_device_access *access)
{
	struct fixture *f = ctx;

	if (access->write) {
		f->sysreg = access->value;
	} else {
		access->value = f->sysreg;
	}
	return 0;
}

/* Code that every page of LAZY_CODE holds: at 0x100 it returns 0x42; from
 * the last 3 bytes of a page to the next one it loads a constant. */
static int fill_code(void *ctx, gpas_gpa gpa, void *host, uint64_t size)
{
	static const uint8_t simple[] = { 0xb8, 0x42, 0, 0, 0, 0xc3 };
	static const uint8_t head[] = { 0x48, 0xb8, 0x88 };
	static const uint8_t tail[] = { 0x77, 0x66, 0x55, 0x44,
					0x33, 0x22, 0x11, 0xc3 };

	(void)ctx;
	(void)gpa;
	for (uint64_t at = 0; at < size; at += PAGE) {
		uint8_t *page = (uint8_t *)host + at;

		memset(page, 0x90, PAGE);
		memcpy(page, tail, sizeof(tail));
		memcpy(page + 0x100, simple, sizeof(simple));
		memcpy(page + PAGE - sizeof(head), head, sizeof(head));
	}
	return 0;
}

static void map_guest(struct fixture *f)
{
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas_device bell = { .ctx = f, .access = ring };

	assert_int_equal(gpas_map_linear(f->space, gpas_gpa_at(0), LOW_BYTES,
					 f->low, GPAS_PROT_RWX, NULL),
			 0);
	assert_int_equal(
		gpas_map_device(f->space, gpas_gpa_at(DOORBELL), PAGE, &bell),
		0);
	assert_int_equal(gpas_map_alloc(f->space, gpas_gpa_at(LAZY), 4 * MIB,
					GPAS_PROT_RWX, &lazy),
			 0);
	lazy.filler.fill = fill_code;
	assert_int_equal(gpas_map_alloc(f->space, gpas_gpa_at(LAZY_CODE), MIB,
					GPAS_PROT_RX, &lazy),
			 0);
}

/* ---- Pausing ------------------------------------------------------------- */

static void no_action(int number)
{
	(void)number;
}

/* immediate_exit closes the gap between looking and entering; the signal ends
 * a run that is under way. */
static void pause_vcpus(void *ctx)
{
	struct fixture *f = ctx;

	for (unsigned i = 0; i < f->vcpu_count; i++) {
		__atomic_store_n(&f->machines[i].run->immediate_exit, 1,
				 __ATOMIC_SEQ_CST);
	}
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		while (gpas_vcpu_running(&f->vcpus[i])) {
			pthread_kill(f->threads[i], SIGUSR1);
			usleep(50);
		}
	}
}

static void resume_vcpus(void *ctx)
{
	struct fixture *f = ctx;

	for (unsigned i = 0; i < f->vcpu_count; i++) {
		__atomic_store_n(&f->machines[i].run->immediate_exit, 0,
				 __ATOMIC_SEQ_CST);
	}
}

/* ---- Life ---------------------------------------------------------------- */

static void add_vcpu(struct fixture *f)
{
	unsigned id = f->vcpu_count;
	struct machine *machine = &f->machines[id];

	if (id > 0) {
		assert_int_equal(machine_join(&f->machines[0], id, machine), 0);
	}
	assert_int_equal(gpas_vcpu_init(&f->vcpus[id], f->space,
					machine->vcpu_fd, machine->run),
			 0);
	assert_int_equal(machine_set_level(machine, f->level), 0);
	f->vcpu_count++;
}

/* False: this kernel does not offer @lazy. */
static bool start(struct fixture *f, enum gpas_lazy lazy, unsigned level)
{
	struct gpas_params params = {
		.size = UINT64_C(1) << 32,
		.log = log_line,
		.log_ctx = f,
		.log_level = GPAS_LOG_WARNING,
	};
	struct gpas_kvm_params kvm = { .lazy = lazy,
				       .pause = pause_vcpus,
				       .resume = resume_vcpus,
				       .ctx = f };
	int err;

	memset(f, 0, sizeof(*f));
	f->lazy = lazy;
	f->level = level;
	assert_int_equal(machine_open(&f->machines[0], BOOT), 0);
	f->low = mmap(NULL, LOW_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->low, MAP_FAILED);
	machine_fill_boot(&f->machines[0], f->low + BOOT);
	assert_int_equal(gpas_create(&params, &f->space), 0);
	map_guest(f);
	kvm.vm_fd = f->machines[0].vm_fd;
	err = gpas_kvm_attach(f->space, &kvm);
	if (err == -EOPNOTSUPP && lazy == GPAS_LAZY_TRAP) {
		gpas_destroy(f->space);
		machine_close(&f->machines[0]);
		munmap(f->low, LOW_BYTES);
		return false;
	}
	assert_int_equal(err, 0);
	add_vcpu(f);
	return true;
}

static void finish(struct fixture *f)
{
	assert_int_equal(gpas_check(f->space), 0);
	assert_int_equal(gpas_audit(f->space, NULL, NULL), 0);
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		gpas_vcpu_fini(&f->vcpus[i]);
	}
	gpas_destroy(f->space);
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		machine_close(&f->machines[i]);
	}
	munmap(f->low, LOW_BYTES);
}

static struct gpas_stats stats_of(struct fixture *f)
{
	struct gpas_stats stats;

	gpas_stats(f->space, &stats);
	return stats;
}

/* ---- Running ------------------------------------------------------------- */

struct guest_code {
	const char *start;
	const char *end;
};
#define CODE_OF(name) ((struct guest_code){ name, name##_end })

/* Writes the code to its place and points the vCPU to it. */
static void prepare(struct fixture *f, unsigned id, struct guest_code code,
		    struct kvm_regs regs)
{
	uint64_t at = CODE + id * 1024;

	memcpy(f->low + at, code.start, (size_t)(code.end - code.start));
	regs.rip = at;
	regs.rsi = SCRATCH;
	regs.rbx = DOORBELL + id * 8;
	atomic_store(&f->bells[id].rung, false);
	assert_int_equal(machine_set_regs(&f->machines[id], &regs), 0);
}

/* Runs vCPU @id until it rings. Returns 0, or what stopped it: an error of the
 * library, or a positive KVM exit reason that nobody handles. */
static int run(struct fixture *f, unsigned id)
{
	for (unsigned turns = 0; turns < 200000; turns++) {
		struct gpas_exit exit;
		int err = gpas_vcpu_run(&f->vcpus[id], &exit);

		if (err != 0) {
			return err;
		}
		if (atomic_load(&f->bells[id].rung)) {
			return 0;
		}
		if (exit.kind == GPAS_EXIT_FAULT && exit.retryable) {
			f->exit = exit;
			f->faults++;
		} else if (exit.kind != GPAS_EXIT_RESUME &&
			   exit.kind != GPAS_EXIT_INTERRUPTED) {
			f->exit = exit;
			return (int)f->machines[id].run->exit_reason;
		}
	}
	return -ETIMEDOUT;
}

/* Runs one piece of code on the one vCPU and returns what it found. */
static uint64_t run_at(struct fixture *f, struct guest_code code, uint64_t at)
{
	struct kvm_regs regs = { .rdi = at };
	int err;

	prepare(f, 0, code, regs);
	err = run(f, 0);
	if (err != 0) {
		fail_msg("lazy by %s, level %u, at %#llx: stopped by %d (%s)",
			 gpas_lazy_name(f->lazy), f->level,
			 (unsigned long long)at, err, f->last);
	}
	assert_int_equal(machine_settle(&f->machines[0]), 0);
	return f->bells[0].value;
}

/* ---- First touches ------------------------------------------------------- */

#define WORD UINT64_C(0x1122334455667788)
#define FILL UINT64_C(0x3333333333333333)
#define MARK                                                             \
	UINT64_C(0xa8a7a6a5a4a3a2a1) /* at SCRATCH, and 8 further on ... \
				      */

struct touch {
	const char *name;
	struct guest_code code;
	uint64_t base;
	uint64_t offset; /* from the start of the pages touched */
	uint64_t bytes;	 /* that are touched there */
	uint64_t result;
	/* What the bytes are afterwards; NULL: not looked at. */
	const void *leaves;
};

static const uint64_t word = WORD;
static const uint64_t eleven = 11;
static const uint64_t nine = 9;
static const uint64_t seven = 7;
static const uint64_t pushed = 0x77;
static const uint64_t filled[8] = { FILL, FILL, FILL, FILL,
				    FILL, FILL, FILL, FILL };
static const uint64_t marks[8] = { MARK,     MARK + 1, MARK + 2, MARK + 3,
				   MARK + 4, MARK + 5, MARK + 6, MARK + 7 };

#define TOUCH(what, where, count, value, after)                            \
	{                                                                  \
#what " at " #where, { guest_##what, guest_##what##_end }, \
				       LAZY, where, count, value, after    \
	}

static const struct touch touches[] = {
	TOUCH(load, 0x10, 8, 0, NULL),
	TOUCH(load, 0xffd, 8, 0, NULL),
	TOUCH(store, 0x10, 8, WORD, &word),
	TOUCH(store, 0xff9, 8, WORD, &word),
	TOUCH(store, 0xffd, 8, WORD, &word),
	TOUCH(store, 0xfff, 8, WORD, &word),
	TOUCH(store_byte, 0xfff, 1, 0x5a, "\x5a"),
	TOUCH(add, 0x20, 8, 11, &eleven),
	TOUCH(add, 0xffc, 8, 11, &eleven),
	TOUCH(lock_add, 0x20, 8, 9, &nine),
	TOUCH(lock_add, 0xffc, 8, 9, &nine),
	TOUCH(exchange, 0x20, 8, 0x700, &seven),
	TOUCH(push, 0x20, 8, 0x77, &pushed),
	TOUCH(push, 0xffe, 8, 0x77, &pushed),
	TOUCH(push_memory, 0x20, 8, 0, NULL),
	TOUCH(call, 0x20, 8, 0, NULL),
	TOUCH(call, 0xffb, 8, 0, NULL),
	TOUCH(copy_to, 0x20, 64, MARK + 7, marks),
	TOUCH(copy_to, 0xfe7, 64, MARK + 7, marks),
	TOUCH(copy_from, 0xfe7, 64, 0, NULL),
	TOUCH(set, 0x20, 64, FILL, filled),
	TOUCH(set, 0xfe4, 64, FILL, filled),
	TOUCH(vector, 0x20, 16, MARK + 1, marks),
	TOUCH(vector, 0xff5, 16, MARK + 1, marks),
	{ "fetch",
	  { guest_call_there, guest_call_there_end },
	  LAZY_CODE,
	  0x100,
	  6,
	  0x42,
	  NULL },
	{ "fetch across a border",
	  { guest_call_there, guest_call_there_end },
	  LAZY_CODE,
	  0xffd,
	  10,
	  WORD,
	  NULL },
};
#define TOUCH_COUNT (sizeof(touches) / sizeof(touches[0]))

/* The pages that are present before: none, the first, the second. */
#define BEFORE_COUNT 3

static void check_memory(struct fixture *f, const struct touch *touch,
			 uint64_t at)
{
	uint8_t around[80];
	uint64_t n = touch->bytes;

	assert_int_equal(
		gpas_read(f->space, gpas_gpa_at(at - 8), around, n + 16, NULL),
		0);
	if (touch->leaves == NULL) {
		return;
	}
	assert_memory_equal(around + 8, touch->leaves, n);
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(around[i], 0);
		assert_int_equal(around[8 + n + i], 0);
	}
}

static void try_touch(struct fixture *f, const struct touch *touch,
		      unsigned before)
{
	uint64_t at = touch->base + touch->offset;
	uint64_t populated;
	uint64_t result;

	assert_int_equal(gpas_discard(f->space, gpas_gpa_at(touch->base), MIB),
			 0);
	if (before > 0) {
		assert_int_equal(gpas_populate(f->space,
					       gpas_gpa_at(touch->base +
							   (before - 1) * PAGE),
					       PAGE),
				 0);
	}
	memcpy(f->low + SCRATCH, marks, sizeof(marks));
	populated = stats_of(f).populated;
	result = run_at(f, touch->code, at);
	populated = stats_of(f).populated - populated;
	if (result != touch->result) {
		fail_msg("%s, lazy by %s, level %u, present %u: got %#llx",
			 touch->name, gpas_lazy_name(f->lazy), f->level, before,
			 (unsigned long long)result);
	}
	/* One page, or two where the access straddles, less what was there. */
	assert_int_equal(
		populated / PAGE,
		1 + (touch->offset % PAGE + touch->bytes > PAGE) -
			(before == 1 ||
			 (before == 2 &&
			  touch->offset % PAGE + touch->bytes > PAGE)));
	check_memory(f, touch, at);
}

static void touch_everything(enum gpas_lazy lazy, unsigned level)
{
	struct fixture f;
	struct gpas_stats stats;

	if (!start(&f, lazy, level)) {
		print_message("no trap slots on this kernel\n");
		return;
	}
	for (size_t i = 0; i < TOUCH_COUNT; i++) {
		for (unsigned before = 0; before < BEFORE_COUNT; before++) {
			try_touch(&f, &touches[i], before);
		}
	}
	stats = stats_of(&f);
	print_message("lazy by %s, level %u: %llu memory faults, %llu MMIO, "
		      "%llu fetches\n",
		      gpas_lazy_name(lazy), level,
		      (unsigned long long)stats.exits_memory_fault,
		      (unsigned long long)stats.lazy_mmio,
		      (unsigned long long)stats.exits_fetch);
	if (lazy == GPAS_LAZY_ABSENT) {
		assert_true(stats.lazy_mmio > 0);
		assert_true(stats.exits_fetch > 0);
		assert_int_equal(stats.exits_memory_fault, 0);
	} else if (level == 3) {
		assert_true(stats.exits_memory_fault > 0);
	}
	finish(&f);
}

static void absent_memory_at_level_0(void **state)
{
	(void)state;
	touch_everything(GPAS_LAZY_ABSENT, 0);
}

static void absent_memory_at_level_3(void **state)
{
	(void)state;
	touch_everything(GPAS_LAZY_ABSENT, 3);
}

static void trapped_memory_at_level_0(void **state)
{
	(void)state;
	touch_everything(GPAS_LAZY_TRAP, 0);
}

static void trapped_memory_at_level_3(void **state)
{
	(void)state;
	touch_everything(GPAS_LAZY_TRAP, 3);
}

/* What KVM cannot emulate works on a trap; on an absent slot it is passed to
 * the embedder, and does not go round in circles. */
static void instructions_that_kvm_cannot_emulate(void **state)
{
	static const enum gpas_lazy lazies[] = { GPAS_LAZY_TRAP,
						 GPAS_LAZY_ABSENT };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct kvm_regs regs = { .rdi = LAZY + 64, .rax = 1 };
		struct fixture f;
		int err;

		if (!start(&f, lazies[i], 3)) {
			continue;
		}
		prepare(&f, 0, CODE_OF(guest_popcnt), regs);
		err = run(&f, 0);
		if (lazies[i] == GPAS_LAZY_TRAP) {
			assert_int_equal(err, 0);
			assert_int_equal(f.bells[0].value, 0);
		} else {
			assert_int_equal(err, KVM_EXIT_INTERNAL_ERROR);
			assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
		}
		finish(&f);
	}
}

/* ---- Refusals ------------------------------------------------------------ */

static void writes_to_read_only_memory_are_reported(void **state)
{
	(void)state;
	for (unsigned level = 0; level <= 3; level += 3) {
		struct fixture f;
		uint64_t at = LAZY + 5 * PAGE + 24;
		uint64_t value = 1;

		assert_true(start(&f, GPAS_LAZY_AUTO, level));
		assert_int_equal(gpas_store(f.space, gpas_gpa_at(at), 8, 5), 0);
		assert_int_equal(gpas_protect(f.space, gpas_gpa_at(LAZY), MIB,
					      GPAS_PROT_READ),
				 0);
		assert_int_equal(run_at(&f, CODE_OF(guest_store), at), 5);
		assert_int_equal(f.faults, 1);
		assert_int_equal(f.exit.fault.kind, GPAS_FAULT_DENIED);
		assert_int_equal(f.exit.fault.gpa.value, at);
		assert_int_equal(f.exit.fault.wanted, GPAS_PROT_WRITE);
		assert_int_equal(f.exit.fault.had, GPAS_PROT_READ);
		assert_int_equal(gpas_load(f.space, gpas_gpa_at(at), 8, &value),
				 0);
		assert_int_equal(value, 5);
		/* No access at all: reads see ones. */
		assert_int_equal(gpas_protect(f.space, gpas_gpa_at(LAZY), MIB,
					      GPAS_PROT_NONE),
				 0);
		assert_true(run_at(&f, CODE_OF(guest_load), at) == UINT64_MAX);
		assert_int_equal(f.exit.fault.kind, GPAS_FAULT_DENIED);
		assert_true(run_at(&f, CODE_OF(guest_load), 64 * MIB) ==
			    UINT64_MAX);
		assert_int_equal(f.exit.fault.kind, GPAS_FAULT_UNMAPPED);
		finish(&f);
	}
}

static void registers_reach_their_device(void **state)
{
	struct gpas_device device = { .access = access_register };
	struct fixture f;

	(void)state;
	assert_true(start(&f, GPAS_LAZY_AUTO, 0));
	device.ctx = &f;
	f.sysreg = UINT64_C(0x1234500000006);
	assert_int_equal(gpas_add_device(f.space, GPAS_ADDRESS_SYSREG, REGISTER,
					 1, &device),
			 0);
	assert_true(run_at(&f, CODE_OF(guest_registers), 0) ==
		    UINT64_C(0x1234500000007));
	assert_true(f.sysreg == UINT64_C(0x1234500000007));
	finish(&f);
}

/* ---- Several vCPUs ------------------------------------------------------- */

struct runner {
	struct fixture *f;
	unsigned id;
	int err;
};

static void *run_thread(void *ctx)
{
	struct runner *runner = ctx;

	runner->err = run(runner->f, runner->id);
	return NULL;
}

static void start_threads(struct fixture *f, struct runner *runners)
{
	struct sigaction action = { .sa_handler = no_action };

	assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		runners[i] = (struct runner){ f, i, 0 };
		assert_int_equal(pthread_create(&f->threads[i], NULL,
						run_thread, &runners[i]),
				 0);
	}
}

static void join_threads(struct fixture *f, const struct runner *runners)
{
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		assert_int_equal(pthread_join(f->threads[i], NULL), 0);
	}
	for (unsigned i = 0; i < f->vcpu_count; i++) {
		if (runners[i].err != 0) {
			fail_msg("vCPU %u stopped by %d (%s)", i,
				 runners[i].err, f->last);
		}
	}
}

#define WALK_PAGES 24

/* Each vCPU walks @stride pages from the one before it; 0: the same pages. */
static void walk_together(enum gpas_lazy lazy, unsigned level, uint64_t stride)
{
	struct runner runners[VCPU_COUNT];
	struct fixture f;

	if (!start(&f, lazy, level)) {
		return;
	}
	while (f.vcpu_count < VCPU_COUNT) {
		add_vcpu(&f);
	}
	for (unsigned i = 0; i < VCPU_COUNT; i++) {
		struct kvm_regs regs = {
			.rdi = LAZY + i * (stride * PAGE + 8),
			.rcx = WALK_PAGES,
			.rax = (i + 1) * 1000,
		};

		prepare(&f, i, CODE_OF(guest_walk), regs);
	}
	start_threads(&f, runners);
	join_threads(&f, runners);
	for (unsigned i = 0; i < VCPU_COUNT; i++) {
		assert_int_equal(f.bells[i].value, 1);
		for (unsigned n = 0; n < WALK_PAGES; n++) {
			uint64_t at = LAZY + i * (stride * PAGE + 8) + n * PAGE;
			uint64_t value;

			assert_int_equal(
				gpas_load(f.space, gpas_gpa_at(at), 8, &value),
				0);
			assert_int_equal(value, (i + 1) * 1000 + n);
		}
	}
	assert_int_equal(stats_of(&f).populated,
			 PAGE * (WALK_PAGES + (VCPU_COUNT - 1) * stride));
	finish(&f);
}

static void vcpus_share_first_touches(void **state)
{
	(void)state;
	for (unsigned level = 0; level <= 3; level += 3) {
		walk_together(GPAS_LAZY_ABSENT, level, 0);
		walk_together(GPAS_LAZY_TRAP, level, 0);
		walk_together(GPAS_LAZY_ABSENT, level, WALK_PAGES);
		walk_together(GPAS_LAZY_TRAP, level, WALK_PAGES);
		walk_together(GPAS_LAZY_TRAP, level, 1);
	}
}

/* ---- Slots replaced under running vCPUs ---------------------------------- */

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Changes around what the vCPUs use: the slot of their code and page tables
 * is cut and joined, the lazy region beside their counters comes and goes. */
static void churn(struct fixture *f, unsigned turn)
{
	gpas_gpa cut = gpas_gpa_at(LOW_BYTES - 4 * PAGE);
	gpas_gpa beside = gpas_gpa_at(LAZY + 2 * MIB);
	int err;

	switch (turn % 6) {
	case 0:
		err = gpas_protect(f->space, cut, PAGE, GPAS_PROT_READ);
		break;
	case 1:
		err = gpas_protect(f->space, cut, PAGE, GPAS_PROT_RWX);
		break;
	case 2:
		err = gpas_unmap(f->space, cut, PAGE);
		break;
	case 3:
		err = gpas_map_linear(f->space, cut, PAGE, f->low + cut.value,
				      GPAS_PROT_RWX, NULL);
		break;
	case 4:
		err = gpas_populate(f->space, beside, 16 * PAGE);
		break;
	default:
		err = gpas_discard(f->space, beside, 16 * PAGE);
		break;
	}
	if (err != 0) {
		fail_msg("change %u: %d (%s)", turn % 6, err, f->last);
	}
}

/* Where vCPU @id counts: 8 pages of the lazy region. */
static uint64_t counters_of(unsigned id)
{
	return LAZY + id * 8 * PAGE;
}

static void count_while_slots_change(enum gpas_lazy lazy, unsigned level)
{
	struct runner runners[VCPU_COUNT];
	struct fixture f;
	uint64_t end;
	unsigned turns = 0;

	if (!start(&f, lazy, level)) {
		return;
	}
	add_vcpu(&f);
	for (unsigned i = 0; i < f.vcpu_count; i++) {
		struct kvm_regs regs = { .rdi = counters_of(i) };

		prepare(&f, i, CODE_OF(guest_count), regs);
	}
	start_threads(&f, runners);
	/* On a busy machine the vCPUs may be slow to get going. */
	for (end = now_ms() + 400;
	     now_ms() < end ||
	     (stats_of(&f).pauses == 0 && now_ms() < end + 5000);
	     turns++) {
		churn(&f, turns);
		usleep(300); /* the mutex is not fair: let vCPUs in */
	}
	assert_int_equal(gpas_store(f.space, gpas_gpa_at(SCRATCH), 8, 1), 0);
	join_threads(&f, runners);
	for (unsigned i = 0; i < f.vcpu_count; i++) {
		uint64_t total = 0;

		for (unsigned page = 0; page < 8; page++) {
			gpas_gpa at = gpas_gpa_at(counters_of(i) + page * PAGE);
			uint64_t value;

			assert_int_equal(gpas_load(f.space, at, 8, &value), 0);
			total += value;
		}
		assert_int_equal(f.bells[i].value, total);
		assert_true(total > 0);
	}
	print_message("lazy by %s, level %u: %u changes, %llu pauses\n",
		      gpas_lazy_name(lazy), level, turns,
		      (unsigned long long)stats_of(&f).pauses);
	assert_true(stats_of(&f).pauses > 0);
	finish(&f);
}

static void no_store_is_lost_while_slots_change(void **state)
{
	(void)state;
	count_while_slots_change(GPAS_LAZY_ABSENT, 0);
	count_while_slots_change(GPAS_LAZY_TRAP, 0);
	count_while_slots_change(GPAS_LAZY_ABSENT, 3);
	count_while_slots_change(GPAS_LAZY_TRAP, 3);
}

static void traps_are_announced(void **state)
{
	struct gpas_kvm_info info;
	struct fixture f;

	(void)state;
	assert_true(start(&f, GPAS_LAZY_AUTO, 3));
	assert_int_equal(gpas_kvm_info(f.space, &info), 0);
	print_message("auto chose %s: %s\n", gpas_lazy_name(info.lazy),
		      info.lazy_reason);
	assert_int_equal(run_at(&f, CODE_OF(guest_load), LAZY), 0);
	assert_int_equal(stats_of(&f).exits_memory_fault,
			 info.lazy == GPAS_LAZY_TRAP);
	assert_int_equal(stats_of(&f).lazy_mmio, info.lazy == GPAS_LAZY_ABSENT);
	finish(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(traps_are_announced),
		cmocka_unit_test(absent_memory_at_level_0),
		cmocka_unit_test(absent_memory_at_level_3),
		cmocka_unit_test(trapped_memory_at_level_0),
		cmocka_unit_test(trapped_memory_at_level_3),
		cmocka_unit_test(instructions_that_kvm_cannot_emulate),
		cmocka_unit_test(writes_to_read_only_memory_are_reported),
		cmocka_unit_test(registers_reach_their_device),
		cmocka_unit_test(vcpus_share_first_touches),
		cmocka_unit_test(no_store_is_lost_while_slots_change),
	};
	struct machine machine;

	if (machine_open(&machine, BOOT) == -ENODEV) {
		printf("skipped: no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	return cmocka_run_group_tests_name("lazy memory on KVM", tests, NULL,
					   NULL);
}
