/* SPDX-License-Identifier: MIT */
/*
 * The mirror on a real KVM: attaching and detaching, the embedder's own slots,
 * limits, and random calls against the model, with the audit after each that
 * says whether KVM really has what the library believes.
 */
#include "kvm_model.h"
#include "machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)
#define BOOT UINT64_C(0x10000)

struct fixture {
	struct machine machine;
	struct gpas *space;
	struct gpas_kvm_params params;
	uint8_t *host; /* 64 pages */
	char last[256];
};

static void log_line(void *ctx, enum gpas_log_level level, const char *line)
{
	struct fixture *f = ctx;

	(void)level;
	(void)snprintf(f->last, sizeof(f->last), "%s", line);
}

static void start(struct fixture *f)
{
	struct gpas_params params = {
		.size = UINT64_C(1) << 32,
		.log = log_line,
		.log_ctx = f,
		.log_level = GPAS_LOG_WARNING,
	};

	memset(f, 0, sizeof(*f));
	assert_int_equal(machine_open(&f->machine, BOOT), 0);
	f->params.vm_fd = f->machine.vm_fd;
	assert_int_equal(gpas_create(&params, &f->space), 0);
	f->host = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->host, MAP_FAILED);
}

static void finish(struct fixture *f)
{
	assert_int_equal(gpas_check(f->space), 0);
	gpas_destroy(f->space);
	machine_close(&f->machine);
	munmap(f->host, 64 * PAGE);
}

/* The embedder's own slot ioctl. */
static int own_slot(struct fixture *f, uint32_t id, uint64_t gpa, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = id,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = gpas_hva_of(f->host).value,
	};

	return ioctl(f->machine.vm_fd, KVM_SET_USER_MEMORY_REGION, &region) != 0
		       ? -errno
		       : 0;
}

/* Whether KVM has no slot in the range: then one can be there. */
static bool is_vacant(struct fixture *f, uint64_t gpa, uint64_t size)
{
	int err = own_slot(f, 5000, gpa, size);

	if (err == 0) {
		assert_int_equal(own_slot(f, 5000, 0, 0), 0);
	}
	return err == 0;
}

static int map(struct fixture *f, uint64_t gpa, uint64_t size, unsigned prot)
{
	return gpas_map_linear(f->space, gpas_gpa_at(gpa), size, f->host, prot,
			       NULL);
}

static void map_lazy(struct fixture *f, uint64_t gpa, uint64_t size)
{
	struct gpas_map_params lazy = { .lazy = true };

	assert_int_equal(gpas_map_alloc(f->space, gpas_gpa_at(gpa), size,
					GPAS_PROT_RW, &lazy),
			 0);
}

static uint32_t slots_used(struct fixture *f)
{
	struct gpas_kvm_info info;

	assert_int_equal(gpas_kvm_info(f->space, &info), 0);
	return info.slots_used;
}

/* ---- Attaching ----------------------------------------------------------- */

static void attach_and_detach_leave_nothing(void **state)
{
	struct gpas_kvm_info info;
	struct fixture f;

	(void)state;
	start(&f);
	f.params.slot_first = 7;
	f.params.slot_count = 100;
	assert_int_equal(map(&f, MIB, 16 * PAGE, GPAS_PROT_RW), 0);
	map_lazy(&f, 16 * MIB, 64 * MIB);
	for (unsigned round = 0; round < 3; round++) {
		assert_int_equal(gpas_kvm_info(f.space, &info), -ENOENT);
		assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
		assert_int_equal(gpas_kvm_attach(f.space, &f.params), -EBUSY);
		assert_int_equal(gpas_kvm_info(f.space, &info), 0);
		assert_int_equal(info.slot_first, 7);
		assert_int_equal(info.slot_count, 100);
		assert_false(is_vacant(&f, MIB + 15 * PAGE, 8 * PAGE));
		assert_true(is_vacant(&f, MIB + 16 * PAGE, 8 * PAGE));
		assert_int_equal(is_vacant(&f, 16 * MIB, 2 * MIB),
				 info.lazy == GPAS_LAZY_ABSENT);
		assert_int_equal(gpas_audit(f.space, NULL, NULL), 0);
		assert_int_equal(
			gpas_populate(f.space, gpas_gpa_at(20 * MIB), MIB), 0);
		assert_int_equal(gpas_audit(f.space, NULL, NULL), 0);
		assert_int_equal(gpas_kvm_detach(f.space), 0);
		assert_true(is_vacant(&f, 0, UINT64_C(1) << 31));
	}
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	finish(&f);
}

static void the_slot_range_must_exist(void **state)
{
	struct fixture f;
	int limit;

	(void)state;
	start(&f);
	limit = ioctl(f.machine.vm_fd, KVM_CHECK_EXTENSION,
		      KVM_CAP_NR_MEMSLOTS);
	assert_true(limit > 0);
	f.params.slot_first = (uint32_t)limit;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), -EINVAL);
	f.params.slot_first = 1;
	f.params.slot_count = (uint32_t)limit;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), -EINVAL);
	f.params.slot_first = UINT32_MAX;
	f.params.slot_count = 2;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), -EINVAL);
	/* The very last number works. */
	f.params.slot_first = (uint32_t)limit - 1;
	f.params.slot_count = 1;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	assert_int_equal(map(&f, MIB, PAGE, GPAS_PROT_RW), 0);
	assert_int_equal(slots_used(&f), 1);
	assert_int_equal(map(&f, 2 * MIB, PAGE, GPAS_PROT_RW), -ENOSPC);
	finish(&f);
}

static void traps_are_refused_where_there_are_none(void **state)
{
	struct gpas_kvm_info info;
	struct fixture f;
	int err;

	(void)state;
	start(&f);
	f.params.lazy = GPAS_LAZY_AUTO;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	assert_int_equal(gpas_kvm_info(f.space, &info), 0);
	assert_int_equal(gpas_kvm_detach(f.space), 0);
	print_message("%s: %s\n", gpas_lazy_name(info.lazy), info.lazy_reason);
	f.params.lazy = GPAS_LAZY_TRAP;
	err = gpas_kvm_attach(f.space, &f.params);
	assert_int_equal(err, info.lazy == GPAS_LAZY_TRAP ? 0 : -EOPNOTSUPP);
	if (err == 0) {
		assert_int_equal(gpas_kvm_detach(f.space), 0);
	}
	f.params.lazy = GPAS_LAZY_ABSENT + 1;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), -EINVAL);
	assert_true(is_vacant(&f, 0, UINT64_C(1) << 31));
	/* Where traps are tried out. */
	assert_true(is_vacant(&f, UINT64_C(1) << 35, UINT64_C(1) << 34));
	finish(&f);
}

/* ---- The embedder's own slots -------------------------------------------- */

static void the_embedders_slots_stay(void **state)
{
	struct fixture f;

	(void)state;
	start(&f);
	f.params.slot_first = 10;
	assert_int_equal(own_slot(&f, 3, 8 * MIB, PAGE), 0);
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	assert_int_equal(map(&f, MIB, 16 * PAGE, GPAS_PROT_RW), 0);
	/* A mapping over it is refused by KVM, and undone. */
	assert_int_equal(map(&f, 8 * MIB - PAGE, 4 * PAGE, GPAS_PROT_RW),
			 -EEXIST);
	assert_int_equal(slots_used(&f), 1);
	assert_int_equal(gpas_check(f.space), 0);
	assert_int_equal(gpas_audit(f.space, NULL, NULL), 0);
	/* In a group all of it is undone, slots that were replaced as well. */
	assert_int_equal(gpas_begin(f.space), 0);
	assert_int_equal(gpas_unmap(f.space, gpas_gpa_at(MIB), PAGE), 0);
	assert_int_equal(map(&f, 4 * MIB, PAGE, GPAS_PROT_READ), 0);
	assert_int_equal(map(&f, 8 * MIB, PAGE, GPAS_PROT_RW), 0);
	assert_int_equal(gpas_commit(f.space), -EEXIST);
	assert_int_equal(slots_used(&f), 1);
	assert_false(is_vacant(&f, MIB, PAGE));
	assert_true(is_vacant(&f, 4 * MIB, PAGE));
	assert_int_equal(gpas_audit(f.space, NULL, NULL), 0);
	assert_int_equal(gpas_kvm_detach(f.space), 0);
	assert_false(is_vacant(&f, 8 * MIB, PAGE));
	assert_true(is_vacant(&f, MIB, PAGE));
	assert_int_equal(own_slot(&f, 3, 0, 0), 0);
	finish(&f);
}

static void many_slots_are_accepted(void **state)
{
	const uint64_t count = 1000;
	struct gpas_stats stats;
	struct fixture f;

	(void)state;
	start(&f);
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	assert_int_equal(gpas_begin(f.space), 0);
	for (uint64_t i = 0; i < count; i++) {
		assert_int_equal(
			map(&f, MIB + 2 * i * PAGE, PAGE,
			    i % 3 == 0 ? GPAS_PROT_READ : GPAS_PROT_RW),
			0);
	}
	assert_int_equal(slots_used(&f), 0);
	assert_int_equal(gpas_commit(f.space), 0);
	assert_int_equal(slots_used(&f), count);
	gpas_stats(f.space, &stats);
	assert_int_equal(stats.slot_adds, count);
	assert_false(is_vacant(&f, MIB + 2 * (count - 1) * PAGE, PAGE));
	assert_true(is_vacant(&f, MIB + (2 * count - 1) * PAGE, PAGE));
	assert_int_equal(gpas_clear(f.space), 0);
	assert_int_equal(slots_used(&f), 0);
	assert_true(is_vacant(&f, 0, UINT64_C(1) << 31));
	finish(&f);
}

/* ---- The model ----------------------------------------------------------- */

static bool accepts(void *ctx, struct model *model, int err,
		    const struct model_state *after)
{
	(void)ctx;
	(void)model;
	(void)after;
	return err == 0; /* there are slots enough, and KVM has no reason */
}

static const char *check_kvm(void *ctx, struct model *model)
{
	(void)ctx;
	return gpas_audit(model->space, NULL, NULL) != 0
		       ? "KVM has other slots than the library believes"
		       : NULL;
}

static void run_model(uint64_t seed, unsigned steps)
{
	static struct model model;
	struct model_hooks hooks = { .accepts = accepts, .check = check_kvm };
	struct fixture f;
	bool right = true;

	start(&f);
	f.params.slot_first = (uint32_t)seed % 5;
	f.params.slot_count = 2 * MODEL_PAGES;
	f.params.lazy = seed % 2 == 0 ? GPAS_LAZY_ABSENT : GPAS_LAZY_AUTO;
	assert_int_equal(gpas_kvm_attach(f.space, &f.params), 0);
	model_init(&model, f.space, 2 * MIB - MODEL_PAGES / 2 * PAGE, seed,
		   &hooks);
	for (unsigned i = 0; right && i < steps; i++) {
		right = model_step(&model);
	}
	right = right && model_close(&model);
	if (!right) {
		model_report(&model);
		fail_msg("seed %llu: %s (%s)", (unsigned long long)seed,
			 model.wrong, f.last);
	}
	finish(&f);
	model_fini(&model);
}

/* KVM_SLOTS_SEED=n[,count] runs other seeds than the usual ones. */
static void random_calls_agree_with_the_model(void **state)
{
	const char *chosen = getenv("KVM_SLOTS_SEED");
	time_t end = time(NULL) + 3;
	uint64_t seed = 1;
	uint64_t last = 40;
	char *rest;

	(void)state;
	if (chosen != NULL) {
		seed = strtoull(chosen, &rest, 0);
		last = seed +
		       (*rest == ',' ? strtoull(rest + 1, NULL, 0) - 1 : 0);
		end += 3600;
	}
	for (; seed <= last && time(NULL) < end; seed++) {
		run_model(seed, 40);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attach_and_detach_leave_nothing),
		cmocka_unit_test(the_slot_range_must_exist),
		cmocka_unit_test(traps_are_refused_where_there_are_none),
		cmocka_unit_test(the_embedders_slots_stay),
		cmocka_unit_test(many_slots_are_accepted),
		cmocka_unit_test(random_calls_agree_with_the_model),
	};
	struct machine machine;

	if (machine_open(&machine, BOOT) == -ENODEV) {
		printf("skipped: no usable /dev/kvm\n");
		return MACHINE_SKIP;
	}
	machine_close(&machine);
	return cmocka_run_group_tests_name("memslots of KVM", tests, NULL,
					   NULL);
}
