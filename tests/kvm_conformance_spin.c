/* SPDX-License-Identifier: MIT */
/*
 * A guest that runs while calls change the space around what it uses: it reads
 * a list of addresses over and over, compares, and stores some of the values
 * back. What it sees must stay right whatever happens beside it, also when its
 * slots have to be replaced.
 */
#include "kvm_conformance.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Behind the routines for single accesses. */
#define SPIN_CODE_GPA (CODE_GPA + 0x100)
#define WAIT_ROUNDS   200000 /* of 50 us */

/* r12: the list, r13: how many, r14: the counter, rbx: the doorbell. */
__asm__(".section .rodata\n"
	"spin_code:\n"
	"0:	mov %r12, %rsi\n"
	"	mov %r13, %rcx\n"
	"1:	mov (%rsi), %rdi\n"
	"	mov (%rdi), %rax\n"
	"	cmp 8(%rsi), %rax\n"
	"	jne 3f\n"
	"	testb $1, 16(%rsi)\n"
	"	jz 2f\n"
	"	mov %rax, (%rdi)\n"
	"2:	add $32, %rsi\n"
	"	dec %rcx\n"
	"	jnz 1b\n"
	"	incq (%r14)\n"
	"	jmp 0b\n"
	"3:	mov %rsi, (%rbx)\n" /* the entry that was wrong */
	"	jmp .\n"
	"spin_code_end:\n"
	"	.text\n");
extern const uint8_t spin_code[];
extern const uint8_t spin_code_end[];

static uint64_t counter(const struct conf *conf)
{
	return __atomic_load_n((uint64_t *)(conf->low + COUNTER_GPA),
			       __ATOMIC_RELAXED);
}

/* ---- What it uses -------------------------------------------------------- */

static bool is_readable_memory(const struct conf *conf, const struct page *page)
{
	const struct mapping *mapping = mapping_of(conf, page);

	return mapping != NULL && mapping->kind != KIND_DEVICE &&
	       (page->prot & GPAS_PROT_READ) != 0;
}

static uint8_t expected_byte(struct conf *conf, uint64_t gpa)
{
	const struct page *page = page_at(conf, gpa);
	const struct mapping *mapping = mapping_of(conf, page);

	if (mapping == NULL) {
		return 0xff;
	}
	if (mapping->kind == KIND_DEVICE) {
		return device_byte(mapping,
				   gpa - conf->arena - mapping->first * PAGE);
	}
	return page->present ? *host_of(conf, gpa) : initial_byte(conf, gpa);
}

/* Both pages can be used, and what is present gets a value. */
static void choose(struct conf *conf, uint64_t gpa)
{
	struct page *first = page_at(conf, gpa);
	struct page *last = page_at(conf, gpa + 7);
	struct spin_entry *entry = &conf->spin[conf->spin_count];

	if (first != last && (!is_readable_memory(conf, first) ||
			      !is_readable_memory(conf, last))) {
		return;
	}
	if (first->mapping != 0 && first == last &&
	    mapping_of(conf, first)->kind != KIND_DEVICE &&
	    !is_readable_memory(conf, first)) {
		return;
	}
	for (unsigned i = 0; i < 8; i++) {
		struct page *page = page_at(conf, gpa + i);

		page->stable = true;
		if (page->present) {
			*host_of(conf, gpa + i) = (uint8_t)draw(conf, 256);
		}
	}
	*entry = (struct spin_entry){
		.gpa = gpa,
		.write_back = is_readable_memory(conf, first) &&
			      (first->prot & last->prot & GPAS_PROT_WRITE) != 0,
	};
	conf->spin_count++;
}

static void choose_all(struct conf *conf)
{
	unsigned wanted = 4 + (unsigned)draw(conf, 20);
	bool nothing = chance(conf, 30);

	conf->spin_count = 0;
	for (unsigned tries = 0; tries < 200 && conf->spin_count < wanted;
	     tries++) {
		const struct mapping *near =
			&conf->mappings[1 +
					draw(conf, conf->mapping_count - 1)];
		uint64_t page = near->first + draw(conf, near->pages);
		uint64_t gpa = conf->arena + page * PAGE + draw(conf, 512) * 8;
		const struct mapping *mapping =
			mapping_of(conf, page_at(conf, gpa));

		/* An exit every time round: one such address is enough. */
		if (mapping == NULL || mapping->kind == KIND_DEVICE) {
			if (nothing ||
			    (mapping != NULL && (mapping->widths & 15) == 0)) {
				continue;
			}
			nothing = true;
		} else if (chance(conf, 25) && page + 1 < ARENA_PAGES) {
			gpa = conf->arena + (page + 1) * PAGE - 1 -
			      draw(conf, 7);
		}
		choose(conf, gpa);
	}
	/* Two addresses may be one byte: the values are what is left. */
	for (unsigned i = 0; i < conf->spin_count; i++) {
		struct spin_entry *entry = &conf->spin[i];

		for (unsigned b = 0; b < 8; b++) {
			entry->expected |=
				(uint64_t)expected_byte(conf, entry->gpa + b)
				<< (8 * b);
		}
		trace(conf, "  spin %#lx expects %#lx%s",
		      (unsigned long)entry->gpa, (unsigned long)entry->expected,
		      entry->write_back != 0 ? ", stores" : "");
	}
}

/* ---- The thread ---------------------------------------------------------- */

static void report_ring(struct conf *conf)
{
	uint64_t index =
		(conf->rung_value - SPIN_GPA) / sizeof(struct spin_entry);
	struct kvm_regs regs = { 0 };

	(void)ioctl(conf->machine.vcpu_fd, KVM_GET_REGS, &regs);
	(void)snprintf(conf->spin_failure, sizeof(conf->spin_failure),
		       "the running guest read %#llx at %#lx, not %#lx",
		       (unsigned long long)regs.rax,
		       (unsigned long)conf->spin[index % 32].gpa,
		       (unsigned long)conf->spin[index % 32].expected);
}

/* Only addresses without a mapping may fault. */
static bool is_acceptable(struct conf *conf, const struct gpas_exit *exit)
{
	const struct page *page = page_at(conf, exit->fault.gpa.value);

	return exit->kind == GPAS_EXIT_RESUME ||
	       exit->kind == GPAS_EXIT_INTERRUPTED ||
	       (exit->kind == GPAS_EXIT_FAULT && exit->retryable &&
		exit->fault.kind == GPAS_FAULT_UNMAPPED && page != NULL &&
		page->stable && page->mapping == 0);
}

static void *spin(void *ctx)
{
	struct conf *conf = ctx;

	while (__atomic_load_n(&conf->stop, __ATOMIC_SEQ_CST) == 0) {
		struct gpas_exit exit;
		int err = gpas_vcpu_run(&conf->vcpu, &exit);

		if (err != 0 || !is_acceptable(conf, &exit)) {
			(void)snprintf(
				conf->spin_failure, sizeof(conf->spin_failure),
				"running guest: error %d, kind %d, fault %d at "
				"%#lx, exit reason %u",
				err, exit.kind, exit.fault.kind,
				(unsigned long)exit.fault.gpa.value,
				conf->machine.run->exit_reason);
			break;
		}
		if (__atomic_load_n(&conf->rung, __ATOMIC_SEQ_CST)) {
			report_ring(conf);
			break;
		}
	}
	return NULL;
}

static void enter(struct conf *conf)
{
	struct kvm_regs regs = {
		.rip = SPIN_CODE_GPA,
		.rbx = DOORBELL_GPA,
		.r12 = SPIN_GPA,
		.r13 = conf->spin_count,
		.r14 = COUNTER_GPA,
	};

	memcpy(conf->low + SPIN_CODE_GPA, spin_code,
	       (size_t)(spin_code_end - spin_code));
	memcpy(conf->low + SPIN_GPA, conf->spin, sizeof(conf->spin));
	memset(conf->low + COUNTER_GPA, 0, sizeof(uint64_t));
	conf->level = chance(conf, 50) ? 3 : 0;
	if (machine_set_level(&conf->machine, conf->level) != 0 ||
	    machine_set_regs(&conf->machine, &regs) != 0) {
		fail(conf, "the vCPU's registers: %s", strerror(errno));
	}
}

void spin_start(struct conf *conf)
{
	choose_all(conf);
	if (conf->spin_count == 0) {
		return;
	}
	enter(conf);
	conf->rung = false;
	conf->stop = 0;
	conf->spin_failure[0] = '\0';
	conf->spinning = true;
	if (pthread_create(&conf->thread, NULL, spin, conf) != 0) {
		conf->spinning = false;
		fail(conf, "pthread_create");
		return;
	}
	spin_wait(conf);
}

void spin_wait(struct conf *conf)
{
	uint64_t begun = counter(conf);
	unsigned rounds = 0;

	while (conf->spinning && counter(conf) == begun) {
		usleep(50);
		if (++rounds > WAIT_ROUNDS || conf->spin_failure[0] != '\0') {
			fail(conf, "the running guest is stuck%s%s",
			     conf->spin_failure[0] != '\0' ? ": " : "",
			     conf->spin_failure);
			return;
		}
	}
}

void spin_stop(struct conf *conf)
{
	struct gpas_exit exit;

	if (!conf->spinning) {
		return;
	}
	__atomic_store_n(&conf->stop, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&conf->machine.run->immediate_exit, 1,
			 __ATOMIC_SEQ_CST);
	while (pthread_tryjoin_np(conf->thread, NULL) != 0) {
		(void)pthread_kill(conf->thread, SIGUSR1);
		usleep(50);
	}
	conf->spinning = false;
	conf->figures.spins += counter(conf);
	/* Ends the last instruction; its pieces still need answers. */
	while (machine_settle(&conf->machine) == -EBUSY) {
		(void)gpas_kvm_handle_exit(&conf->vcpu, 0, &exit);
	}
	if (conf->spin_failure[0] != '\0') {
		fail(conf, "%s", conf->spin_failure);
	}
}

void spin_pause(void *ctx)
{
	struct conf *conf = ctx;

	conf->figures.pauses++;
	__atomic_store_n(&conf->machine.run->immediate_exit, 1,
			 __ATOMIC_SEQ_CST);
	while (gpas_vcpu_running(&conf->vcpu)) {
		(void)pthread_kill(conf->thread, SIGUSR1);
		usleep(20);
	}
}

void spin_resume(void *ctx)
{
	struct conf *conf = ctx;

	__atomic_store_n(&conf->machine.run->immediate_exit, 0,
			 __ATOMIC_SEQ_CST);
}
