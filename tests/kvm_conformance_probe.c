/* SPDX-License-Identifier: MIT */
/*
 * One access at a time: the guest makes it, KVM's exits and the library's
 * answers are judged as they come, and the outcome in the end.
 *
 * Every access is of 8 bytes; a fetch executes 8 bytes of code that ring the
 * doorbell. What is not exact, and why:
 *
 * - A trap under an emulating KVM, or beside a page that makes KVM emulate the
 *   instruction, is seen as a hole: MMIO exits instead of a memory fault.
 * - Memory faults do not say which access it was. Lazy memory behind a trap is
 *   therefore provided also for an access that is denied in the next moment.
 * - KVM cannot enforce no-execute: what is present and readable executes. So
 *   does what a memory fault provided. Only a fetch that found no slot is
 *   checked against X.
 * - Memory with X alone has no slot: it can be neither read nor executed.
 */
#include "kvm_conformance.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACCESS_BYTES 8u
#define MAX_EXITS    12

/* Bytes around an access that must not change. */
#define GUARD_BYTES 8u

/* ---- The guest's code ---------------------------------------------------- */

/* At CODE_GPA, 16 bytes each. rbx is the doorbell. */
static const uint8_t routines[3][16] = {
	/* mov (%rdi),%rax; mov %rax,(%rbx) */
	[ACCESS_READ] = { 0x48, 0x8b, 0x07, 0x48, 0x89, 0x03, 0xeb, 0xfe },
	/* mov %rsi,(%rdi); mov %rax,(%rbx) */
	[ACCESS_WRITE] = { 0x48, 0x89, 0x37, 0x48, 0x89, 0x03, 0xeb, 0xfe },
	/* jmp *%rdi */
	[ACCESS_FETCH] = { 0xff, 0xe7 },
};

void write_code(struct conf *conf)
{
	memcpy(conf->low + CODE_GPA, routines, sizeof(routines));
}

int doorbell(void *ctx, struct gpas_device_access *access)
{
	struct conf *conf = ctx;

	if (access->write) {
		conf->rung_value = access->value;
		__atomic_store_n(&conf->rung, true, __ATOMIC_SEQ_CST);
	}
	return 0;
}

/* ---- What the model says of a page --------------------------------------- */

/* The permission an access of this kind needs. */
static unsigned needed(enum access access)
{
	static const uint8_t prots[3] = { GPAS_PROT_READ, GPAS_PROT_WRITE,
					  GPAS_PROT_EXEC };

	return prots[access];
}

static bool is_device(const struct conf *conf, const struct page *page)
{
	const struct mapping *mapping = mapping_of(conf, page);

	return mapping != NULL && mapping->kind == KIND_DEVICE;
}

static bool is_memory(const struct conf *conf, const struct page *page)
{
	return mapping_of(conf, page) != NULL && !is_device(conf, page);
}

/* Whether the guest makes this access without any exit. */
static bool is_served(const struct page *page, enum access access)
{
	return page != NULL && page->present &&
	       (page->prot & GPAS_PROT_READ) != 0 &&
	       (access != ACCESS_WRITE || (page->prot & GPAS_PROT_WRITE) != 0);
}

static bool is_absent(const struct conf *conf, const struct page *page)
{
	return is_memory(conf, page) && !page->present;
}

static bool is_trapped(const struct conf *conf, const struct page *page)
{
	return conf->trap && is_absent(conf, page) &&
	       (page->prot & GPAS_PROT_READ) != 0;
}

/* ---- One access ---------------------------------------------------------- */

struct probe {
	struct conf *conf;
	enum access access;
	uint64_t gpa;
	uint64_t value; /* to be stored, or the token to be reported */
	/* Of GUARD_BYTES before, the access, and as many behind. */
	uint8_t before[ACCESS_BYTES + 2 * GUARD_BYTES];
	/* By byte of the access: an MMIO exit dealt with it, and what a read
	 * got from that; or what is left in memory by a store. */
	bool exited[ACCESS_BYTES];
	uint8_t got[ACCESS_BYTES];
	bool dropped[ACCESS_BYTES];
	bool absent[ACCESS_BYTES]; /* when the access began */
	unsigned empty_fetches;
	bool ended; /* by a fault that cannot be passed */
};

/* What KVM said, kept from before the library answered. */
struct event {
	int result;
	uint32_t reason;
	uint64_t gpa;
	uint32_t size;
	bool write;
	uint8_t data[8];
	uint32_t suberror;
};

static struct page *page_of(const struct probe *probe, unsigned byte)
{
	return page_at(probe->conf, probe->gpa + byte);
}

static const char *access_name(enum access access)
{
	static const char *const names[3] = { "read", "write", "fetch" };

	return names[access];
}

__attribute__((format(printf, 2, 3))) static void wrong(struct probe *probe,
							const char *format, ...)
{
	char what[160];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	fail(probe->conf, "%s at %#lx, CPL%u: %s", access_name(probe->access),
	     (unsigned long)probe->gpa, probe->conf->level, what);
}

static struct event take_event(const struct conf *conf, int result)
{
	const struct kvm_run *run = conf->machine.run;
	struct event event = { .result = result, .reason = run->exit_reason };

	if (result == 0 && run->exit_reason == KVM_EXIT_MMIO) {
		event.gpa = run->mmio.phys_addr;
		event.size = run->mmio.len;
		event.write = run->mmio.is_write != 0;
		memcpy(event.data, run->mmio.data, sizeof(event.data));
	} else if (result == -EFAULT && run->exit_reason == 39) {
		/* flags, gpa, size (api.rst, KVM_EXIT_MEMORY_FAULT) */
		const uint64_t *words = (const uint64_t *)&run->hw;

		event.gpa = words[1];
	} else if (result == 0) {
		event.suberror = run->internal.suberror;
	}
	return event;
}

static void trace_event(struct conf *conf, const struct event *event,
			const struct gpas_exit *exit)
{
	trace(conf, "    exit %d/%u %#lx +%u %s -> kind %d fault %d %#lx",
	      event->result, event->reason, (unsigned long)event->gpa,
	      event->size, event->write ? "w" : "r", exit->kind,
	      exit->fault.kind, (unsigned long)exit->fault.gpa.value);
}

/* ---- Judging MMIO exits -------------------------------------------------- */

/* The library's answer was a fault of this kind. */
static void expect_fault(struct probe *probe, const struct gpas_exit *exit,
			 enum gpas_fault_kind kind, uint64_t gpa,
			 bool retryable, const struct page *page)
{
	const struct gpas_fault *fault = &exit->fault;

	if (exit->kind != GPAS_EXIT_FAULT || fault->kind != kind ||
	    fault->gpa.value != gpa || exit->retryable != retryable ||
	    fault->wanted != needed(probe->access)) {
		wrong(probe,
		      "answer kind %d, fault %d at %#lx wanting %x%s; expected "
		      "fault %d at %#lx",
		      exit->kind, fault->kind, (unsigned long)fault->gpa.value,
		      fault->wanted, exit->retryable ? ", retryable" : "", kind,
		      (unsigned long)gpa);
	} else if (kind == GPAS_FAULT_DENIED &&
		   (fault->had != page->prot ||
		    fault->region_start.value > gpa ||
		    gpa - fault->region_start.value >= fault->region_size)) {
		wrong(probe, "denied with had %x, region %#lx +%#lx",
		      fault->had, (unsigned long)fault->region_start.value,
		      (unsigned long)fault->region_size);
	}
	probe->conf->figures.denied += kind == GPAS_FAULT_DENIED;
	probe->conf->figures.unmapped += kind == GPAS_FAULT_UNMAPPED;
}

static void expect_resume(struct probe *probe, const struct gpas_exit *exit)
{
	if (exit->kind != GPAS_EXIT_RESUME) {
		wrong(probe, "answer kind %d (fault %d at %#lx), not resume",
		      exit->kind, exit->fault.kind,
		      (unsigned long)exit->fault.gpa.value);
	}
}

/* The widest aligned piece at @offset of the device's widths. */
static unsigned device_piece(unsigned widths, uint64_t offset, unsigned left)
{
	for (unsigned width = 8; width > 0; width /= 2) {
		if ((widths & width) != 0 && offset % width == 0 &&
		    width <= left) {
			return width;
		}
	}
	return 0;
}

/* The device got exactly the pieces that the access is cut into. */
static void expect_calls(struct probe *probe, const struct event *event,
			 const struct mapping *mapping, uint64_t offset)
{
	struct conf *conf = probe->conf;
	unsigned done = 0;
	unsigned i = 0;

	for (; done < event->size; i++) {
		const struct call *call = &conf->calls[i];
		unsigned width = device_piece(mapping->widths, offset + done,
					      event->size - done);
		uint64_t value = 0;

		if (i >= conf->call_count || call->mapping != mapping ||
		    call->access.width != width ||
		    call->access.offset != offset + done ||
		    call->access.write != event->write) {
			wrong(probe, "device call %u of %u is wrong", i,
			      conf->call_count);
			return;
		}
		memcpy(&value, event->data + done, width);
		if (event->write && call->access.value != value) {
			wrong(probe, "device call %u: value %#lx", i,
			      (unsigned long)call->access.value);
		}
		done += width;
	}
	if (i != conf->call_count) {
		wrong(probe, "the device was called %u times, not %u",
		      conf->call_count, i);
	}
}

/* Whether the device's widths can make up the access: KVM's pieces may be of
 * any length. */
static bool is_divisible(const struct mapping *mapping, uint64_t offset,
			 unsigned size)
{
	for (unsigned done = 0; done < size;) {
		unsigned width = device_piece(mapping->widths, offset + done,
					      size - done);

		if (width == 0) {
			return false;
		}
		done += width;
	}
	return true;
}

static void judge_device(struct probe *probe, const struct event *event,
			 const struct gpas_exit *exit, unsigned first)
{
	struct conf *conf = probe->conf;
	const struct mapping *mapping =
		mapping_of(conf, page_at(conf, event->gpa));
	uint64_t offset = event->gpa - conf->arena - mapping->first * PAGE;
	bool possible = is_divisible(mapping, offset, event->size);

	for (unsigned i = 0; i < event->size; i++) {
		probe->got[first + i] =
			possible ? device_byte(mapping, offset + i) : 0xff;
	}
	if (possible) {
		expect_resume(probe, exit);
		expect_calls(probe, event, mapping, offset);
	} else if (exit->kind != GPAS_EXIT_DEVICE_ERROR ||
		   exit->error != -EINVAL || exit->address != event->gpa ||
		   exit->size != event->size || exit->write != event->write ||
		   !exit->retryable || conf->call_count != 0) {
		wrong(probe, "a device without the width: kind %d, %d",
		      exit->kind, exit->error);
	}
}

static void judge_memory(struct probe *probe, const struct event *event,
			 const struct gpas_exit *exit, unsigned first)
{
	struct conf *conf = probe->conf;
	struct page *page = page_at(conf, event->gpa);
	bool denied = (page->prot & needed(probe->access)) == 0;

	for (unsigned i = 0; i < event->size; i++) {
		probe->got[first + i] =
			denied ? 0xff : initial_byte(conf, event->gpa + i);
		probe->dropped[first + i] = denied;
	}
	if (denied) {
		expect_fault(probe, exit, GPAS_FAULT_DENIED, event->gpa, true,
			     page);
	} else if (!probe->absent[first]) {
		wrong(probe, "an exit for memory that is there");
	} else {
		/* KVM may have settled for MMIO before the piece in the other
		 * page made this one present, too. */
		expect_resume(probe, exit);
		if (!page->present) {
			model_populate(conf, page);
		}
	}
}

/* An MMIO exit is for the whole part of the access in one page, once, and only
 * where the guest has no memory of that kind. */
static bool is_due(struct probe *probe, const struct event *event)
{
	const struct conf *conf = probe->conf;
	uint64_t end = event->gpa + event->size;
	uint64_t page_start = event->gpa / PAGE * PAGE;
	uint64_t low = probe->gpa > page_start ? probe->gpa : page_start;
	uint64_t high = probe->gpa + ACCESS_BYTES;
	const struct page *page = page_at(probe->conf, event->gpa);
	bool other_emulated = false;

	high = high < page_start + PAGE ? high : page_start + PAGE;
	if (probe->access == ACCESS_FETCH || event->gpa != low || end != high ||
	    event->write != (probe->access == ACCESS_WRITE) ||
	    probe->exited[event->gpa - probe->gpa]) {
		wrong(probe, "stray MMIO exit at %#lx +%u",
		      (unsigned long)event->gpa, event->size);
		return false;
	}
	if (event->write &&
	    memcmp(event->data,
		   (const uint8_t *)&probe->value + (event->gpa - probe->gpa),
		   event->size) != 0) {
		wrong(probe, "MMIO exit with other bytes");
	}
	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		const struct page *other = page_of(probe, i);

		other_emulated |=
			other != page && !is_served(other, probe->access);
	}
	if (is_trapped(conf, page) && conf->precise[conf->level / 3] &&
	    !other_emulated) {
		wrong(probe, "MMIO exit where a memory fault was due");
	}
	return true;
}

static void judge_mmio(struct probe *probe, const struct event *event,
		       const struct gpas_exit *exit)
{
	const struct page *page = page_at(probe->conf, event->gpa);
	unsigned first;

	probe->conf->figures.mmio++;
	if (!is_due(probe, event)) {
		return;
	}
	first = (unsigned)(event->gpa - probe->gpa);
	for (unsigned i = 0; i < event->size; i++) {
		probe->exited[first + i] = true;
	}
	if (is_device(probe->conf, page)) {
		judge_device(probe, event, exit, first);
	} else if (is_memory(probe->conf, page)) {
		judge_memory(probe, event, exit, first);
	} else {
		memset(probe->got + first, 0xff, event->size);
		expect_fault(probe, exit, GPAS_FAULT_UNMAPPED, event->gpa, true,
			     NULL);
	}
}

/* ---- Judging the other exits --------------------------------------------- */

/* KVM names the page; the access may have begun in the one before. */
static void judge_memory_fault(struct probe *probe, const struct event *event,
			       const struct gpas_exit *exit)
{
	struct conf *conf = probe->conf;
	struct page *page = page_at(conf, event->gpa);

	conf->figures.memory_faults++;
	if (event->gpa % PAGE != 0 || event->gpa > probe->gpa + 7 ||
	    event->gpa + PAGE <= probe->gpa || !is_trapped(conf, page)) {
		wrong(probe, "stray memory fault at %#lx",
		      (unsigned long)event->gpa);
		return;
	}
	expect_resume(probe, exit);
	model_populate(conf, page);
}

/* The first byte that cannot be fetched is in this page. */
static void judge_empty_fetch(struct probe *probe, const struct event *event,
			      const struct gpas_exit *exit)
{
	struct conf *conf = probe->conf;
	unsigned byte = 0;
	struct page *page;

	conf->figures.internal_errors++;
	while (byte < ACCESS_BYTES &&
	       is_served(page_of(probe, byte), ACCESS_FETCH)) {
		byte++;
	}
	if (probe->access != ACCESS_FETCH || byte == ACCESS_BYTES ||
	    event->suberror != KVM_INTERNAL_ERROR_EMULATION) {
		wrong(probe, "stray internal error %u", event->suberror);
		return;
	}
	page = page_of(probe, byte);
	probe->empty_fetches++;
	if (is_trapped(conf, page) && conf->precise[conf->level / 3]) {
		wrong(probe, "internal error where a memory fault was due");
	} else if (!is_memory(conf, page) ||
		   (page->prot & GPAS_PROT_EXEC) == 0) {
		enum gpas_fault_kind kind =
			is_device(conf, page)	? GPAS_FAULT_DEVICE
			: is_memory(conf, page) ? GPAS_FAULT_DENIED
						: GPAS_FAULT_UNMAPPED;

		expect_fault(probe, exit, kind, probe->gpa + byte, false, page);
		probe->ended = true;
	} else if (!page->present) {
		expect_resume(probe, exit);
		model_populate(conf, page);
	} else if (exit->kind == GPAS_EXIT_OTHER) {
		probe->ended = true; /* X alone: nothing KVM can do about it */
	} else {
		expect_resume(probe, exit);
	}
}

static void judge(struct probe *probe, const struct event *event,
		  const struct gpas_exit *exit)
{
	if (event->result == 0 && event->reason == KVM_EXIT_MMIO) {
		judge_mmio(probe, event, exit);
	} else if (event->result == -EFAULT &&
		   event->reason == KVM_EXIT_MEMORY_FAULT) {
		judge_memory_fault(probe, event, exit);
	} else if (event->result == 0 &&
		   event->reason == KVM_EXIT_INTERNAL_ERROR) {
		judge_empty_fetch(probe, event, exit);
	} else {
		wrong(probe, "KVM_RUN %d, exit reason %u", event->result,
		      event->reason);
	}
}

/* ---- The outcome --------------------------------------------------------- */

/* The byte at @gpa as it should be in memory before the access, which is in
 * memory. */
static uint8_t content(struct conf *conf, uint64_t gpa)
{
	return page_at(conf, gpa)->present ? *host_of(conf, gpa)
					   : initial_byte(conf, gpa);
}

/* Two addresses can be one byte of memory. */
static void remember(struct probe *probe)
{
	for (unsigned i = 0; i < sizeof(probe->before); i++) {
		uint64_t gpa = probe->gpa - GUARD_BYTES + i;

		if (is_memory(probe->conf, page_at(probe->conf, gpa))) {
			probe->before[i] = content(probe->conf, gpa);
		}
	}
	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		probe->absent[i] = is_absent(probe->conf, page_of(probe, i));
	}
}

static bool lies_within_store(struct probe *probe, const uint8_t *host)
{
	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		if (is_memory(probe->conf, page_of(probe, i)) &&
		    host_of(probe->conf, probe->gpa + i) == host) {
			return true;
		}
	}
	return false;
}

/* Memory around the access is as it was but for what was stored. */
static void judge_content(struct probe *probe)
{
	struct conf *conf = probe->conf;

	for (unsigned i = 0; i < sizeof(probe->before); i++) {
		uint64_t gpa = probe->gpa - GUARD_BYTES + i;
		unsigned byte = i - GUARD_BYTES;
		struct page *page = page_at(conf, gpa);
		uint8_t expected = probe->before[i];

		if (!is_memory(conf, page) || !page->present) {
			continue;
		}
		if (probe->access == ACCESS_WRITE && byte < ACCESS_BYTES &&
		    !probe->dropped[byte]) {
			expected = (uint8_t)(probe->value >> (8 * byte));
		} else if (probe->access == ACCESS_WRITE &&
			   lies_within_store(probe, host_of(conf, gpa))) {
			continue;
		}
		if (*host_of(conf, gpa) != expected) {
			wrong(probe, "memory at %#lx is %#x, not %#x",
			      (unsigned long)gpa, *host_of(conf, gpa),
			      expected);
			return;
		}
	}
}

/* Each byte came from memory without an exit, or from one exit. */
static void judge_bytes(struct probe *probe)
{
	struct conf *conf = probe->conf;
	uint64_t expected = 0;

	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		uint8_t byte = probe->before[GUARD_BYTES + i];

		if (probe->exited[i]) {
			byte = probe->got[i];
		} else if (!is_served(page_of(probe, i), probe->access)) {
			wrong(probe, "byte %u needed an exit, but had none", i);
			return;
		}
		expected |= (uint64_t)byte << (8 * i);
	}
	if (probe->access != ACCESS_READ) {
		expected = probe->value & UINT32_MAX;
	}
	if (conf->rung_value != expected) {
		wrong(probe, "the guest saw %#lx, not %#lx",
		      (unsigned long)conf->rung_value, (unsigned long)expected);
	}
}

static void judge_outcome(struct probe *probe)
{
	struct conf *conf = probe->conf;

	if (!probe->ended) {
		judge_bytes(probe);
	}
	if (!conf->failed) {
		judge_content(probe);
	}
	if (!conf->failed && !probe->ended && probe->access == ACCESS_FETCH &&
	    ((page_of(probe, 0)->prot & page_of(probe, 7)->prot) &
	     GPAS_PROT_EXEC) == 0) {
		conf->figures.executed_without_x++;
	}
}

/* ---- Making an access ---------------------------------------------------- */

static bool enter_guest(struct probe *probe)
{
	struct conf *conf = probe->conf;
	struct kvm_regs regs = {
		.rip = CODE_GPA + 16 * probe->access,
		.rax = probe->value & UINT32_MAX,
		.rbx = DOORBELL_GPA,
		.rdi = probe->gpa,
		.rsi = probe->value,
	};

	if (machine_set_regs(&conf->machine, &regs) != 0) {
		wrong(probe, "KVM_SET_REGS: %s", strerror(errno));
		return false;
	}
	return true;
}

static void step(struct probe *probe)
{
	struct conf *conf = probe->conf;
	struct gpas_exit exit;
	struct event event;
	int result;
	int err;

	conf->call_count = 0;
	gpas_vcpu_enter(&conf->vcpu);
	result = machine_enter(&conf->machine);
	event = take_event(conf, result);
	err = gpas_kvm_handle_exit(&conf->vcpu, result, &exit);
	if (err != 0) {
		wrong(probe, "gpas_kvm_handle_exit: %s", strerror(-err));
		return;
	}
	if (conf->rung || exit.kind == GPAS_EXIT_INTERRUPTED) {
		return;
	}
	trace_event(conf, &event, &exit);
	judge(probe, &event, &exit);
}

static void make_access(struct probe *probe)
{
	struct conf *conf = probe->conf;
	int exits = 0;

	conf->figures.probes++;
	trace(conf, "  %s %#lx value %#lx CPL%u", access_name(probe->access),
	      (unsigned long)probe->gpa, (unsigned long)probe->value,
	      conf->level);
	conf->rung = false;
	remember(probe);
	if (!enter_guest(probe)) {
		return;
	}
	while (!conf->failed && !conf->rung && !probe->ended) {
		step(probe);
		if (++exits > MAX_EXITS) {
			wrong(probe, "more than %d exits", MAX_EXITS);
		}
	}
	if (!conf->failed) {
		judge_outcome(probe);
	}
}

/* Puts @value where all of the access is in present memory. */
static bool prepare(struct conf *conf, uint64_t gpa, uint64_t value)
{
	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		const struct page *page = page_at(conf, gpa + i);

		if (!is_memory(conf, page) || !page->present) {
			return false;
		}
	}
	for (unsigned i = 0; i < ACCESS_BYTES; i++) {
		*host_of(conf, gpa + i) = (uint8_t)(value >> (8 * i));
	}
	return true;
}

/* Whether a fetch meets code, or a fault before it meets anything else. */
static bool can_fetch(struct probe *probe)
{
	struct conf *conf = probe->conf;
	const struct page *first = page_of(probe, 0);
	const struct page *last = page_of(probe, 7);
	const struct mapping *mapping = mapping_of(conf, first);

	/* Whole in one page: lazy memory must bring its own code. */
	if (first == last && is_absent(conf, first)) {
		probe->gpa &= ~UINT64_C(7);
		probe->value = 0;
		for (unsigned i = 0; i < 4; i++) {
			probe->value |=
				(uint64_t)initial_byte(conf, probe->gpa + 1 + i)
				<< (8 * i);
		}
		return mapping->kind == KIND_BACKEND ||
		       (first->prot & GPAS_PROT_READ) == 0 ||
		       (!conf->trap && (first->prot & GPAS_PROT_EXEC) == 0);
	}
	if (prepare(conf, probe->gpa, stub((uint32_t)probe->value))) {
		return true;
	}
	if (!is_served(first, ACCESS_FETCH)) {
		return !is_absent(conf, first);
	}
	/* The second page gives nothing at all; the code in the first is put
	 * there byte by byte. */
	for (unsigned i = 0; page_of(probe, i) == first; i++) {
		*host_of(conf, probe->gpa + i) =
			(uint8_t)(stub((uint32_t)probe->value) >> (8 * i));
	}
	return !is_served(last, ACCESS_FETCH) && !is_absent(conf, last);
}

static void probe_at(struct conf *conf, enum access access, uint64_t gpa)
{
	struct probe probe = {
		.conf = conf,
		.access = access,
		.gpa = gpa,
		.value = draw(conf, UINT64_MAX),
	};

	if (access == ACCESS_FETCH) {
		probe.value &= UINT32_MAX;
		if (!can_fetch(&probe)) {
			return;
		}
	} else if (access == ACCESS_READ) {
		(void)prepare(conf, gpa, draw(conf, UINT64_MAX));
	}
	make_access(&probe);
}

/* ---- All of a layout ----------------------------------------------------- */

struct target {
	uint64_t gpa;
	enum access access;
};

struct plan {
	struct target *targets;
	size_t count;
	size_t capacity;
};

static void add_target(struct plan *plan, uint64_t gpa, enum access access)
{
	if (plan->count == plan->capacity) {
		plan->capacity = plan->capacity * 2 + 256;
		plan->targets = realloc(
			plan->targets, plan->capacity * sizeof(*plan->targets));
		if (plan->targets == NULL) {
			abort();
		}
	}
	plan->targets[plan->count++] = (struct target){ gpa, access };
}

/* First, last and a random address of the run, and across its beginning. */
static void add_run(struct conf *conf, struct plan *plan, uint32_t first,
		    uint32_t end)
{
	uint64_t low = conf->arena + first * PAGE;
	uint64_t high = conf->arena + end * PAGE;
	uint64_t at = low + draw(conf, end - first) * PAGE +
		      draw(conf, PAGE - ACCESS_BYTES + 1);

	for (int access = ACCESS_READ; access <= ACCESS_FETCH; access++) {
		add_target(plan, low, (enum access)access);
		add_target(plan, at, (enum access)access);
		add_target(plan, high - ACCESS_BYTES, (enum access)access);
		if (first > 0) {
			add_target(plan, low - 1 - draw(conf, 7),
				   (enum access)access);
		}
	}
	/* And across a page boundary inside of it. */
	if (end - first > 1) {
		at = low + (1 + draw(conf, end - first - 1)) * PAGE - 1 -
		     draw(conf, 7);
		add_target(plan, at, (enum access)draw(conf, 3));
	}
}

static bool alike(const struct page *a, const struct page *b)
{
	return a->mapping == b->mapping && a->prot == b->prot &&
	       a->present == b->present;
}

/* Each run with a chance that makes about @max of them. */
static void plan_probes(struct conf *conf, struct plan *plan, unsigned max)
{
	uint32_t first = 0;
	unsigned runs = 1;

	for (uint32_t i = 1; i < ARENA_PAGES; i++) {
		runs += !alike(&conf->pages[i], &conf->pages[i - 1]);
	}
	for (uint32_t i = 1; i <= ARENA_PAGES; i++) {
		if (i < ARENA_PAGES &&
		    alike(&conf->pages[i], &conf->pages[i - 1])) {
			continue;
		}
		if (runs <= max || draw(conf, runs) < max) {
			add_run(conf, plan, first, i);
		}
		first = i;
	}
	for (size_t i = plan->count; i > 1; i--) {
		size_t j = (size_t)draw(conf, i);
		struct target swap = plan->targets[i - 1];

		plan->targets[i - 1] = plan->targets[j];
		plan->targets[j] = swap;
	}
}

void probe_layout(struct conf *conf, unsigned max)
{
	struct plan plan = { 0 };
	unsigned first_level = chance(conf, 50) ? 3 : 0;

	plan_probes(conf, &plan, max);
	for (size_t i = 0; i < plan.count && !conf->failed; i++) {
		if (i == 0 || i == plan.count / 2) {
			conf->level = i == 0 ? first_level : 3 - first_level;
			if (machine_set_level(&conf->machine, conf->level) !=
			    0) {
				fail(conf, "KVM_SET_SREGS: %s",
				     strerror(errno));
				break;
			}
		}
		probe_at(conf, plan.targets[i].access, plan.targets[i].gpa);
	}
	free(plan.targets);
}

/* ---- The audit ----------------------------------------------------------- */

static int audit_probe(void *ctx, gpas_gpa gpa, enum gpas_seen *seen,
		       uint64_t *value)
{
	struct conf *conf = ctx;
	struct machine *machine = &conf->machine;
	const struct kvm_run *run = machine->run;
	struct kvm_regs regs = {
		.rip = CODE_GPA,
		.rbx = DOORBELL_GPA,
		.rdi = gpa.value,
	};
	int err = machine_settle(machine);

	if (err == 0) {
		err = machine_set_regs(machine, &regs);
	}
	if (err != 0) {
		return err;
	}
	do {
		err = machine_enter(machine);
	} while (err == -EINTR);
	if (err == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		*seen = GPAS_SEEN_FAULT;
		return 0;
	}
	if (err != 0 || run->exit_reason != KVM_EXIT_MMIO) {
		return err != 0 ? err : -EIO;
	}
	*seen = run->mmio.is_write ? GPAS_SEEN_MEMORY : GPAS_SEEN_MMIO;
	memcpy(value, run->mmio.data, sizeof(*value));
	return 0;
}

/* With the guest's help only when it does not run, and now and then. */
void audit_layout(struct conf *conf)
{
	const struct gpas_audit_translation at[] = {
		{ gpas_gva_at(CODE_GPA), gpas_gpa_at(CODE_GPA) },
		{ gpas_gva_at(conf->arena), gpas_gpa_at(conf->arena) },
	};
	struct gpas_audit_params params = {
		.vcpu = &conf->vcpu,
		.translations = at,
		.translation_count = 2,
		.probe =
			conf->spinning || chance(conf, 50) ? NULL : audit_probe,
		.ctx = conf,
	};
	int err;

	err = gpas_audit(conf->space, &params, NULL);
	if (!conf->spinning && machine_settle(&conf->machine) != 0) {
		fail(conf, "the audit's last exit does not end");
	}
	conf->figures.audits++;
	if (err != 0) {
		fail(conf, "gpas_audit: %s", strerror(-err));
	}
}
