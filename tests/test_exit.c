/* SPDX-License-Identifier: MIT */
/*
 * What becomes of a vCPU's exits: hand-made kvm_run structures, a KVM that is
 * an array, and for every MMIO access the outcome worked out byte by byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_kvm.h"
#include "kvm_abi.h"

#define PAGE GPAS_PAGE_BYTES
#define MIB  (UINT64_C(1) << 20)
/* The border between the two pages that straddling accesses cross. */
#define BORDER (16 * PAGE)
/* Where port data lies in the run page. */
#define IO_OFFSET 2048

/* A device that is a page of bytes. */
struct store {
	uint8_t bytes[PAGE];
	unsigned calls;
	struct gpas_device_access last;
	int fails_with;
};

struct fixture {
	struct fake_kvm kvm;
	struct gpas *space;
	enum gpas_lazy lazy;
	struct gpas_vcpu vcpu;
	struct kvm_run *run;
	struct gpas_exit exit;
	struct store stores[2];
	uint8_t *host; /* pages for linear mappings */
};

static int store_access(void *ctx, struct gpas_device_access *access)
{
	struct store *store = ctx;

	store->calls++;
	store->last = *access;
	if (store->fails_with != 0) {
		return store->fails_with;
	}
	if (access->write) {
		memcpy(&store->bytes[access->offset], &access->value,
		       access->width);
	} else {
		memcpy(&access->value, &store->bytes[access->offset],
		       access->width);
	}
	return 0;
}

static void start(struct fixture *f, enum gpas_lazy lazy)
{
	struct gpas_params params = { .size = 64 * MIB,
				      .format = GPAS_FORMAT_EPT_4 };
	struct gpas_kvm_params kvm = { .lazy = lazy };

	memset(f, 0, sizeof(*f));
	f->lazy = lazy;
	fake_kvm_init(&f->kvm);
	assert_int_equal(gpas_create(&params, &f->space), 0);
	assert_int_equal(fake_kvm_attach(&f->kvm, f->space, &kvm), 0);
	f->run = calloc(1, 2 * PAGE);
	f->host = aligned_alloc(PAGE, 8 * PAGE);
	assert_non_null(f->run);
	assert_non_null(f->host);
	assert_int_equal(gpas_vcpu_init(&f->vcpu, f->space, -1, f->run), 0);
	assert_int_equal(gpas_vcpu_init(&f->vcpu, f->space, -1, NULL), -EINVAL);
}

static void finish(struct fixture *f)
{
	uint64_t at;
	const char *what = fake_kvm_verify(&f->kvm, f->space, f->lazy, &at);

	if (what != NULL) {
		fail_msg("slots at %#llx: %s", (unsigned long long)at, what);
	}
	assert_int_equal(gpas_check(f->space), 0);
	gpas_vcpu_fini(&f->vcpu);
	gpas_destroy(f->space);
	assert_int_equal(fake_kvm_slots(&f->kvm, NULL), 0);
	fake_kvm_fini(&f->kvm);
	free(f->run);
	free(f->host);
}

static struct gpas_stats stats_of(struct fixture *f)
{
	struct gpas_stats stats;

	gpas_stats(f->space, &stats);
	return stats;
}

/* ---- Exits --------------------------------------------------------------- */

static int handle(struct fixture *f, int result)
{
	int err;

	gpas_vcpu_enter(&f->vcpu);
	assert_true(gpas_vcpu_running(&f->vcpu));
	memset(&f->exit, 0xa5, sizeof(f->exit));
	err = gpas_kvm_handle_exit(&f->vcpu, result, &f->exit);
	assert_false(gpas_vcpu_running(&f->vcpu));
	return err;
}

static int mmio(struct fixture *f, uint64_t gpa, unsigned length, bool write,
		const void *data)
{
	memset(&f->run->mmio, 0x5e, sizeof(f->run->mmio));
	f->run->exit_reason = KVM_EXIT_MMIO;
	f->run->mmio.phys_addr = gpa;
	f->run->mmio.len = length;
	f->run->mmio.is_write = write;
	if (write) {
		memcpy(f->run->mmio.data, data, length < 8 ? length : 8);
	}
	return handle(f, 0);
}

static int memory_fault(struct fixture *f, uint64_t gpa)
{
	struct abi_memory_fault info = { .gpa = gpa, .size = PAGE };

	f->run->exit_reason = KVM_EXIT_MEMORY_FAULT;
	memcpy(&f->run->hw, &info, sizeof(info));
	return handle(f, -EFAULT);
}

/* KVM thinks that it delivers an event, and cannot emulate an access at @gpa.
 */
static int delivery_error(struct fixture *f, uint64_t gpa, uint32_t words)
{
	f->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	f->run->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
	f->run->internal.ndata = words;
	f->run->internal.data[3] = gpa;
	return handle(f, 0);
}

static int port(struct fixture *f, uint16_t number, uint8_t size,
		uint32_t count, bool out)
{
	f->run->exit_reason = KVM_EXIT_IO;
	f->run->io.direction = out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	f->run->io.port = number;
	f->run->io.size = size;
	f->run->io.count = count;
	f->run->io.data_offset = IO_OFFSET;
	return handle(f, 0);
}

static uint8_t *port_data(struct fixture *f)
{
	return (uint8_t *)f->run + IO_OFFSET;
}

static int sysreg(struct fixture *f, uint32_t index, bool write, uint64_t data)
{
	f->run->exit_reason = write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
	f->run->msr.index = index;
	f->run->msr.data = data;
	f->run->msr.error = 7;
	return handle(f, 0);
}

/* ---- A page of every kind ------------------------------------------------ */

enum kind {
	DEVICE,
	DEVICE_NARROW, /* widths 1 and 2 */
	PRESENT,
	LAZY,
	READ_ONLY,
	NO_ACCESS,
	EXEC_ONLY,
	HOLE,
	KIND_COUNT,
};

static uint8_t pattern(unsigned side, uint64_t offset)
{
	return (uint8_t)(0x30 + 0x40 * side + offset * 7);
}

static void map_side(struct fixture *f, unsigned side, enum kind kind)
{
	gpas_gpa gpa = gpas_gpa_at(BORDER - PAGE + side * PAGE);
	uint8_t *host = f->host + 2 * side * PAGE;
	struct gpas_map_params lazy = { .lazy = true, .granule = PAGE };
	struct gpas_device device = {
		.ctx = &f->stores[side],
		.access = store_access,
		.widths = kind == DEVICE_NARROW ? 3 : 0,
	};
	static const unsigned prots[] = {
		[PRESENT] = GPAS_PROT_RW,
		[READ_ONLY] = GPAS_PROT_READ,
		[NO_ACCESS] = GPAS_PROT_NONE,
		[EXEC_ONLY] = GPAS_PROT_EXEC,
	};
	int err;

	for (uint64_t i = 0; i < PAGE; i++) {
		host[i] = pattern(side, i);
		f->stores[side].bytes[i] = pattern(side, i);
	}
	if (kind == HOLE) {
		return;
	}
	if (kind == DEVICE || kind == DEVICE_NARROW) {
		err = gpas_map_device(f->space, gpa, PAGE, &device);
	} else if (kind == LAZY) {
		err = gpas_map_alloc(f->space, gpa, PAGE, GPAS_PROT_RW, &lazy);
	} else {
		err = gpas_map_linear(f->space, gpa, PAGE, host, prots[kind],
				      NULL);
	}
	assert_int_equal(err, 0);
}

/* What the byte at @offset holds now. */
static uint8_t byte_at(struct fixture *f, unsigned side, enum kind kind,
		       uint64_t offset)
{
	gpas_gpa gpa = gpas_gpa_at(BORDER - PAGE + side * PAGE + offset);
	uint8_t byte = 0;

	if (kind == DEVICE || kind == DEVICE_NARROW) {
		return f->stores[side].bytes[offset];
	}
	if (kind == LAZY) {
		assert_int_equal(gpas_read(f->space, gpa, &byte, 1, NULL), 0);
		return byte;
	}
	return f->host[2 * side * PAGE + offset];
}

/* What becomes of an access to a page of this kind. */
struct outcome {
	bool served;
	enum gpas_exit_kind exit;
	enum gpas_fault_kind fault;
};

static struct outcome outcome_of(enum kind kind, bool write)
{
	static const struct outcome denied = { false, GPAS_EXIT_FAULT,
					       GPAS_FAULT_DENIED };
	static const struct outcome unmapped = { false, GPAS_EXIT_FAULT,
						 GPAS_FAULT_UNMAPPED };
	static const struct outcome served = { true, GPAS_EXIT_RESUME,
					       GPAS_FAULT_RESUME };

	switch (kind) {
	case HOLE:
		return unmapped;
	case NO_ACCESS:
	case EXEC_ONLY:
		return denied;
	case READ_ONLY:
		return write ? denied : served;
	default:
		return served;
	}
}

/* Checks one page's bytes of an access: @length of them from @offset on, which
 * are @data in the exit. */
static void check_side(struct fixture *f, unsigned side, enum kind kind,
		       uint64_t offset, unsigned length, bool write,
		       const uint8_t *data)
{
	struct outcome outcome = outcome_of(kind, write);

	for (unsigned i = 0; i < length; i++) {
		uint8_t before = kind == LAZY ? 0 : pattern(side, offset + i);
		uint8_t now = byte_at(f, side, kind, offset + i);

		if (!write) {
			assert_int_equal(data[i],
					 outcome.served ? before : 0xff);
		}
		assert_int_equal(now,
				 write && outcome.served ? data[i] : before);
	}
	/* The bytes on either side of it stay. */
	if (offset > 0) {
		assert_int_equal(byte_at(f, side, kind, offset - 1),
				 kind == LAZY ? 0 : pattern(side, offset - 1));
	}
	if (offset + length < PAGE) {
		assert_int_equal(byte_at(f, side, kind, offset + length),
				 kind == LAZY ? 0
					      : pattern(side, offset + length));
	}
}

/* One access of @length bytes, of which @below are below the border. */
static void try_access(struct fixture *f, const enum kind *kinds,
		       unsigned below, unsigned length, bool write)
{
	static const uint8_t data[8] = { 0xd1, 0xd2, 0xd3, 0xd4,
					 0xd5, 0xd6, 0xd7, 0xd8 };
	const uint8_t *bytes = f->run->mmio.data;
	struct outcome outcome;

	map_side(f, 0, kinds[0]);
	map_side(f, 1, kinds[1]);
	assert_int_equal(mmio(f, BORDER - below, length, write, data), 0);
	check_side(f, 0, kinds[0], PAGE - below, below, write, bytes);
	check_side(f, 1, kinds[1], 0, length - below, write, bytes + below);
	for (unsigned i = length; i < 8; i++) {
		assert_int_equal(bytes[i], 0x5e);
	}
	/* The first page that refuses decides. */
	outcome = outcome_of(kinds[below > 0 ? 0 : 1], write);
	if (outcome.served && below > 0 && length > below) {
		outcome = outcome_of(kinds[1], write);
	}
	assert_int_equal(f->exit.kind, outcome.exit);
	if (outcome.exit == GPAS_EXIT_FAULT) {
		assert_int_equal(f->exit.fault.kind, outcome.fault);
		assert_int_equal(f->exit.fault.wanted, write ? 2 : 1);
		assert_true(f->exit.retryable);
	}
	assert_int_equal(gpas_clear(f->space), 0);
}

static void mmio_bytes_go_where_they_belong(void **state)
{
	struct fixture f;

	(void)state;
	for (unsigned pair = 0; pair < KIND_COUNT * KIND_COUNT; pair++) {
		enum kind kinds[2] = { pair / KIND_COUNT, pair % KIND_COUNT };

		start(&f, pair % 2 == 0 ? GPAS_LAZY_TRAP : GPAS_LAZY_ABSENT);
		for (unsigned length = 1; length <= 8; length++) {
			for (unsigned below = 0; below <= length; below++) {
				try_access(&f, kinds, below, length, false);
				try_access(&f, kinds, below, length, true);
			}
		}
		finish(&f);
	}
}

static void mmio_populates_once_and_counts(void **state)
{
	uint64_t value = UINT64_C(0x1122334455667788);
	struct gpas_map_params lazy = { .lazy = true };
	struct gpas_stats stats;
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(MIB), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
	/* Across two granules: both become present, in one exit. */
	assert_int_equal(mmio(&f, MIB + 16 * PAGE - 3, 8, true, &value), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(mmio(&f, MIB + 16 * PAGE - 3, 8, false, NULL), 0);
	assert_memory_equal(f.run->mmio.data, &value, 8);
	stats = stats_of(&f);
	assert_int_equal(stats.populated, 32 * PAGE);
	assert_int_equal(stats.exits_mmio, 2);
	assert_int_equal(stats.lazy_mmio, 1);
	assert_int_equal(stats.unclaimed, 0);
	assert_int_equal(mmio(&f, 4 * MIB, 4, false, NULL), 0);
	assert_int_equal(stats_of(&f).unclaimed, 1);
	finish(&f);
}

static void the_fault_record_names_the_region(void **state)
{
	struct gpas_map_params named = { .name = "firmware" };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	assert_int_equal(gpas_map_linear(f.space, gpas_gpa_at(MIB), 4 * PAGE,
					 f.host, GPAS_PROT_RX, &named),
			 0);
	assert_int_equal(mmio(&f, MIB + PAGE + 5, 2, true, "ab"), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	assert_int_equal(f.exit.fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(f.exit.fault.gpa.value, MIB + PAGE + 5);
	assert_int_equal(f.exit.fault.wanted, GPAS_PROT_WRITE);
	assert_int_equal(f.exit.fault.had, GPAS_PROT_RX);
	assert_int_equal(f.exit.fault.region_start.value, MIB);
	assert_int_equal(f.exit.fault.region_size, 4 * PAGE);
	assert_string_equal(f.exit.fault.region_name, "firmware");
	finish(&f);
}

/* ---- Devices ------------------------------------------------------------- */

static void widths_are_kept(void **state)
{
	uint64_t value = UINT64_C(0x8877665544332211);
	struct gpas_device device = { .access = store_access, .widths = 4 };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	device.ctx = &f.stores[0];
	assert_int_equal(
		gpas_map_device(f.space, gpas_gpa_at(MIB), PAGE, &device), 0);
	assert_int_equal(mmio(&f, MIB + 8, 8, true, &value), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(f.stores[0].calls, 2);
	assert_int_equal(f.stores[0].last.offset, 12);
	assert_int_equal(f.stores[0].last.width, 4);
	assert_int_equal(f.stores[0].last.value, 0x88776655);
	for (unsigned length = 1; length <= 8; length++) {
		unsigned calls = f.stores[0].calls;

		if (length % 4 == 0) {
			continue;
		}
		assert_int_equal(mmio(&f, MIB, length, false, NULL), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
		assert_int_equal(f.exit.error, -EINVAL);
		assert_true(f.exit.retryable);
		assert_int_equal(f.exit.address_kind, GPAS_ADDRESS_GPA);
		assert_int_equal(f.exit.address, MIB);
		assert_int_equal(f.exit.size, length);
		assert_false(f.exit.write);
		assert_int_equal(f.run->mmio.data[length - 1], 0xff);
		assert_int_equal(f.stores[0].calls, calls);
	}
	finish(&f);
}

static void a_failing_device_is_reported(void **state)
{
	struct gpas_device device = { .access = store_access };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	device.ctx = &f.stores[0];
	f.stores[0].fails_with = -EIO;
	assert_int_equal(
		gpas_map_device(f.space, gpas_gpa_at(MIB), PAGE, &device), 0);
	assert_int_equal(mmio(&f, MIB + 4, 4, false, NULL), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	assert_int_equal(f.exit.error, -EIO);
	assert_true(f.exit.retryable);
	assert_memory_equal(f.run->mmio.data, "\xff\xff\xff\xff\x5e", 5);
	assert_int_equal(mmio(&f, MIB + 4, 4, true, "abcd"), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	assert_true(f.exit.write);
	finish(&f);
}

/* Half a device that is left after an unmap knows its old offsets. */
static void a_cut_device_keeps_its_offsets(void **state)
{
	struct gpas_device device = { .access = store_access };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	device.ctx = &f.stores[0];
	f.stores[0].fails_with = -EIO; /* the store is one page only */
	assert_int_equal(
		gpas_map_device(f.space, gpas_gpa_at(MIB), 4 * PAGE, &device),
		0);
	assert_int_equal(gpas_unmap(f.space, gpas_gpa_at(MIB + PAGE), PAGE), 0);
	assert_int_equal(mmio(&f, MIB + 2 * PAGE + 8, 4, false, NULL), 0);
	assert_int_equal(f.stores[0].last.offset, 2 * PAGE + 8);
	f.stores[0].calls = 0;
	assert_int_equal(mmio(&f, MIB + PAGE - 4, 8, false, NULL), 0);
	assert_int_equal(f.stores[0].calls, 1);
	assert_int_equal(f.stores[0].last.width, 4);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	finish(&f);
}

/* ---- Memory that cannot be had ------------------------------------------- */

static int populate_nothing(void *ctx, uint64_t offset, uint64_t *size,
			    void **host)
{
	(void)ctx;
	(void)offset;
	(void)size;
	(void)host;
	return -ENODATA;
}

static void a_failing_backend_is_reported(void **state)
{
	struct gpas_backend backend = { .populate = populate_nothing };
	struct gpas_map_params lazy = { .lazy = true };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	assert_int_equal(gpas_map_backend(f.space, gpas_gpa_at(MIB), MIB,
					  GPAS_PROT_RW, &backend, &lazy),
			 0);
	assert_int_equal(mmio(&f, MIB + 1, 3, false, NULL), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	assert_int_equal(f.exit.fault.kind, GPAS_FAULT_FAILED);
	assert_int_equal(f.exit.fault.error, -ENODATA);
	assert_true(f.exit.retryable);
	assert_memory_equal(f.run->mmio.data, "\xff\xff\xff\x5e", 4);
	assert_int_equal(memory_fault(&f, MIB), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	assert_int_equal(f.exit.fault.error, -ENODATA);
	assert_false(f.exit.retryable);
	finish(&f);
}

static void a_failing_ioctl_fails_the_access(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(MIB), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
	fake_kvm_fail(&f.kvm, 2, -ENOMEM, false);
	assert_int_equal(mmio(&f, MIB, 8, true, "12345678"), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	assert_int_equal(f.exit.fault.error, -ENOMEM);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(mmio(&f, MIB, 8, false, NULL), 0);
	assert_memory_equal(f.run->mmio.data, "\0\0\0\0\0\0\0\0", 8);
	/* Poisoned: what is present is still served. */
	fake_kvm_fail(&f.kvm, 2, -ENOMEM, true);
	assert_int_equal(mmio(&f, MIB + MIB / 2, 8, false, NULL),
			 -ENOTRECOVERABLE);
	assert_int_equal(memory_fault(&f, MIB + MIB / 2), -ENOTRECOVERABLE);
	assert_int_equal(mmio(&f, MIB, 8, true, "12345678"), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	fake_kvm_mark(&f.kvm);
	assert_int_equal(gpas_clear(f.space), 0);
	finish(&f);
}

/* ---- Memory faults ------------------------------------------------------- */

static void a_memory_fault_is_repaired(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	uint64_t host = 0;
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(MIB), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
	assert_int_equal(fake_kvm_translate(&f.kvm, MIB + 5 * PAGE, &host),
			 FAKE_TRAP);
	assert_int_equal(memory_fault(&f, MIB + 5 * PAGE), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(fake_kvm_translate(&f.kvm, MIB + 5 * PAGE, &host),
			 FAKE_WRITABLE);
	assert_int_equal(stats_of(&f).exits_memory_fault, 1);
	assert_int_equal(stats_of(&f).populated, 16 * PAGE);
	/* Another vCPU's fault on it just resumes. */
	assert_int_equal(memory_fault(&f, MIB + 6 * PAGE), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(stats_of(&f).populated, 16 * PAGE);
	finish(&f);
}

static void other_memory_faults_are_reported(void **state)
{
	static const uint64_t wild[] = {
		8 * MIB,	   64 * MIB,	      UINT64_C(1) << 48,
		UINT64_C(1) << 63, UINT64_MAX - 4095, UINT64_MAX,
	};
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	map_side(&f, 0, NO_ACCESS);
	assert_int_equal(memory_fault(&f, BORDER - PAGE), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	assert_int_equal(f.exit.fault.kind, GPAS_FAULT_DENIED);
	assert_int_equal(f.exit.fault.wanted, 0);
	assert_false(f.exit.retryable);
	for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
		assert_int_equal(memory_fault(&f, wild[i]), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
		assert_int_equal(f.exit.fault.kind, GPAS_FAULT_UNMAPPED);
		assert_int_equal(f.exit.fault.gpa.value, wild[i]);
		assert_false(f.exit.retryable);
	}
	finish(&f);
}

static void one_fault_is_not_repeated_for_ever(void **state)
{
	struct fixture f;
	unsigned turns = 0;
	int err = 0;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	map_side(&f, 0, PRESENT);
	map_side(&f, 1, PRESENT);
	while (err == 0 && turns++ < 16) {
		err = memory_fault(&f, BORDER);
	}
	assert_int_equal(err, -ELOOP);
	assert_in_range(turns, 2, 8);
	/* While other things happen, faults may well come again. */
	assert_int_equal(memory_fault(&f, BORDER - PAGE), 0);
	for (turns = 0; turns < 32; turns++) {
		assert_int_equal(memory_fault(&f, BORDER - turns % 2), 0);
	}
	for (turns = 0; turns < 32; turns++) {
		assert_int_equal(memory_fault(&f, BORDER), 0);
		assert_int_equal(
			gpas_protect(f.space, gpas_gpa_at(BORDER), PAGE,
				     turns % 2 ? GPAS_PROT_RW : GPAS_PROT_READ),
			0);
	}
	for (turns = 0; turns < 32; turns++) {
		assert_int_equal(memory_fault(&f, BORDER), 0);
		assert_int_equal(mmio(&f, 8 * MIB, 1, false, NULL), 0);
	}
	finish(&f);
}

/* ---- KVM_RUN that failed ------------------------------------------------- */

static void a_failure_without_an_address_is_retried_a_little(void **state)
{
	struct fixture f;
	unsigned turns = 0;
	int err = 0;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	map_side(&f, 0, DEVICE);
	f.run->exit_reason = KVM_EXIT_MMIO; /* of the run before */
	f.run->mmio.phys_addr = BORDER - PAGE;
	f.run->mmio.len = 4;
	while (err == 0 && turns++ < 128) {
		err = handle(&f, -EFAULT);
		assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	}
	assert_int_equal(err, -EFAULT);
	assert_in_range(turns, 2, 8);
	assert_int_equal(f.stores[0].calls, 0);
	/* With changes all the time it takes longer, but not for ever. */
	assert_int_equal(mmio(&f, BORDER - PAGE, 1, false, NULL), 0);
	for (turns = 0, err = 0; err == 0 && turns < 1000; turns++) {
		err = handle(&f, -EFAULT);
		map_side(&f, 1, PRESENT);
		assert_int_equal(gpas_unmap(f.space, gpas_gpa_at(BORDER), PAGE),
				 0);
	}
	assert_int_equal(err, -EFAULT);
	finish(&f);
}

/* A memory fault's reason is used once: KVM leaves it when the next failure
 * sets none. */
static void an_access_mistaken_for_a_delivery_is_repaired(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	uint64_t host = 0;
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(MIB), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
	/* Older kernels give no address: nothing can be done. */
	assert_int_equal(delivery_error(&f, MIB, 4), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
	assert_int_equal(delivery_error(&f, UINT64_MAX, 5), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
	assert_int_equal(stats_of(&f).populated, 0);

	assert_int_equal(delivery_error(&f, MIB + 5 * PAGE + 8, 5), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(fake_kvm_translate(&f.kvm, MIB + 5 * PAGE, &host),
			 FAKE_WRITABLE);
	assert_int_equal(stats_of(&f).lazy_mmio, 1);
	/* Another vCPU was there first. */
	assert_int_equal(delivery_error(&f, MIB + 6 * PAGE, 5), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(stats_of(&f).lazy_mmio, 1);
	finish(&f);
}

static void other_accesses_mistaken_so_are_tried_again(void **state)
{
	static const enum kind kinds[] = { DEVICE, PRESENT, NO_ACCESS, HOLE };
	struct gpas_backend backend = { .populate = populate_nothing };
	struct gpas_map_params lazy = { .lazy = true };

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct fixture f;
		unsigned turns = 0;

		start(&f, GPAS_LAZY_ABSENT);
		map_side(&f, 0, kinds[i]);
		do {
			assert_int_equal(delivery_error(&f, BORDER - 8, 5), 0);
			turns++;
		} while (f.exit.kind == GPAS_EXIT_RESUME && turns < 16);
		assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
		assert_in_range(turns, 2, 8);
		assert_int_equal(f.stores[0].calls, 0);
		/* It was the access itself that counted. */
		assert_int_equal(mmio(&f, 8 * MIB, 1, false, NULL), 0);
		assert_int_equal(delivery_error(&f, BORDER - 8, 5), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
		/* What cannot be had is said at once. */
		assert_int_equal(gpas_map_backend(f.space, gpas_gpa_at(MIB),
						  MIB, GPAS_PROT_RW, &backend,
						  &lazy),
				 0);
		assert_int_equal(delivery_error(&f, MIB, 5), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
		assert_int_equal(f.exit.fault.error, -ENODATA);
		assert_false(f.exit.retryable);
		finish(&f);
	}
}

static void a_stale_reason_is_not_believed(void **state)
{
	struct gpas_map_params lazy = { .lazy = true };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	assert_int_equal(gpas_map_alloc(f.space, gpas_gpa_at(MIB), MIB,
					GPAS_PROT_RW, &lazy),
			 0);
	assert_int_equal(memory_fault(&f, MIB), 0);
	assert_int_equal(handle(&f, -EFAULT), 0);
	assert_int_equal(stats_of(&f).exits_memory_fault, 1);
	finish(&f);
}

static void an_interrupted_run_touches_nothing(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	map_side(&f, 0, DEVICE);
	assert_int_equal(mmio(&f, BORDER - PAGE, 4, true, "abcd"), 0);
	assert_int_equal(f.stores[0].calls, 1);
	/* exit_reason and mmio are still those of the exit before. */
	assert_int_equal(handle(&f, -EINTR), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_INTERRUPTED);
	assert_int_equal(handle(&f, -EAGAIN), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_INTERRUPTED);
	assert_int_equal(handle(&f, -EINVAL), -EIO);
	assert_int_equal(handle(&f, -ENOEXEC), -EIO);
	assert_int_equal(f.stores[0].calls, 1);
	finish(&f);
}

static void other_exits_are_passed_on(void **state)
{
	static const uint32_t reasons[] = {
		KVM_EXIT_UNKNOWN,      KVM_EXIT_HLT,
		KVM_EXIT_SHUTDOWN,     KVM_EXIT_FAIL_ENTRY,
		KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_INTERNAL_ERROR,
		KVM_EXIT_DEBUG,	       UINT32_MAX,
	};
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_TRAP);
	for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
		f.run->exit_reason = reasons[i];
		assert_int_equal(handle(&f, 0), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
		assert_int_equal(f.run->exit_reason, reasons[i]);
	}
	/* A failed emulation, but this vCPU cannot be asked where. */
	f.run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	f.run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
	assert_int_equal(handle(&f, 0), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_OTHER);
	finish(&f);
}

/* ---- What a guest must not be able to do --------------------------------- */

static void absurd_lengths_are_cut(void **state)
{
	static const unsigned lengths[] = { 9, 16, 255, UINT32_MAX };
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	map_side(&f, 0, PRESENT);
	map_side(&f, 1, PRESENT);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		assert_int_equal(mmio(&f, BORDER - 4, lengths[i], false, NULL),
				 0);
		assert_int_equal(f.run->mmio.len, lengths[i]);
		assert_int_equal(f.run->mmio.is_write, 0);
		assert_int_equal(f.run->mmio.data[7], pattern(1, 3));
		assert_int_equal(
			mmio(&f, BORDER - 4, lengths[i], true, "abcdefgh"), 0);
		assert_int_equal(f.host[2 * PAGE + 3], 'h');
		assert_int_equal(f.host[2 * PAGE + 4], pattern(1, 4));
		f.host[2 * PAGE + 3] = pattern(1, 3);
	}
	assert_int_equal(mmio(&f, BORDER - 4, 0, false, NULL), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(f.run->mmio.data[0], 0x5e);
	finish(&f);
}

static void absurd_addresses_reach_nothing(void **state)
{
	static const uint64_t wild[] = {
		64 * MIB,
		UINT64_C(1) << 48,
		(UINT64_C(1) << 48) + BORDER,
		UINT64_C(1) << 52,
		UINT64_C(1) << 63,
		UINT64_MAX - 7,
		UINT64_MAX - 3,
		UINT64_MAX,
	};
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	memset(f.host, 0x77, PAGE);
	assert_int_equal(gpas_map_linear(f.space, gpas_gpa_at(0), PAGE, f.host,
					 GPAS_PROT_RW, NULL),
			 0);
	for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
		assert_int_equal(mmio(&f, wild[i], 8, false, NULL), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
		assert_int_equal(f.exit.fault.kind, GPAS_FAULT_UNMAPPED);
		assert_memory_equal(f.run->mmio.data,
				    "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
		assert_int_equal(mmio(&f, wild[i], 8, true, "12345678"), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_FAULT);
	}
	for (size_t i = 0; i < PAGE; i++) {
		assert_int_equal(f.host[i], 0x77);
	}
	finish(&f);
}

/* ---- Ports and registers ------------------------------------------------- */

static void add_store(struct fixture *f, enum gpas_address_kind kind,
		      uint64_t first, uint64_t count)
{
	struct gpas_device device = { .ctx = &f->stores[0],
				      .access = store_access };

	assert_int_equal(gpas_add_device(f->space, kind, first, count, &device),
			 0);
}

static void ports_are_dispatched(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	add_store(&f, GPAS_ADDRESS_PORT, 0x3f8, 8);
	for (unsigned size = 1; size <= 4; size *= 2) {
		memcpy(port_data(&f), "wxyz", 4);
		assert_int_equal(port(&f, 0x3f8, (uint8_t)size, 1, true), 0);
		assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
		assert_int_equal(f.stores[0].last.width, size);
		memset(port_data(&f), 0x5e, 8);
		assert_int_equal(port(&f, 0x3f8, (uint8_t)size, 1, false), 0);
		assert_memory_equal(port_data(&f), "wxyz", size);
		assert_int_equal(port_data(&f)[size], 0x5e);
	}
	/* A string of them goes to one port, in order. */
	f.stores[0].calls = 0;
	memcpy(port_data(&f), "abcdefgh", 8);
	assert_int_equal(port(&f, 0x3fa, 2, 4, true), 0);
	assert_int_equal(f.stores[0].calls, 4);
	assert_memory_equal(&f.stores[0].bytes[2], "gh", 2);
	memset(port_data(&f), 0x5e, 16);
	assert_int_equal(port(&f, 0x3fa, 2, 5, false), 0);
	assert_memory_equal(port_data(&f), "ghghghghgh\x5e", 11);
	assert_int_equal(port(&f, 0x3fa, 2, 0, false), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	finish(&f);
}

static void ports_of_nobody_read_as_ones(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	add_store(&f, GPAS_ADDRESS_PORT, 0x3f8, 8);
	memset(port_data(&f), 0, 16);
	assert_int_equal(port(&f, 0x80, 4, 2, false), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_UNCLAIMED);
	assert_int_equal(f.exit.address_kind, GPAS_ADDRESS_PORT);
	assert_int_equal(f.exit.address, 0x80);
	assert_int_equal(f.exit.size, 4);
	assert_true(f.exit.retryable);
	assert_memory_equal(port_data(&f), "\xff\xff\xff\xff\xff\xff\xff\xff",
			    8);
	assert_int_equal(port_data(&f)[8], 0);
	assert_int_equal(stats_of(&f).unclaimed, 2);
	/* Over the end of the range: refused, and not half done. */
	f.stores[0].calls = 0;
	assert_int_equal(port(&f, 0x3ff, 2, 1, false), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	assert_int_equal(f.exit.error, -EINVAL);
	assert_int_equal(f.stores[0].calls, 0);
	assert_memory_equal(port_data(&f), "\xff\xff", 2);
	f.stores[0].fails_with = -ENXIO;
	assert_int_equal(port(&f, 0x3f8, 1, 3, true), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	assert_int_equal(f.exit.error, -ENXIO);
	assert_true(f.exit.write);
	finish(&f);
}

static void registers_are_dispatched(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, GPAS_LAZY_ABSENT);
	add_store(&f, GPAS_ADDRESS_SYSREG, 0x4b564d00, 16);
	assert_int_equal(sysreg(&f, 0x4b564d00, true, 0x1234567812345678), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	assert_int_equal(f.run->msr.error, 0);
	assert_int_equal(f.stores[0].last.width, 8);
	assert_int_equal(sysreg(&f, 0x4b564d00, false, 0), 0);
	assert_int_equal(f.run->msr.error, 0);
	assert_true(f.run->msr.data == UINT64_C(0x1234567812345678));
	/* The last one is as wide as the others. */
	assert_int_equal(sysreg(&f, 0x4b564d0f, true, 1), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_RESUME);
	/* Nobody's: the guest gets #GP. */
	assert_int_equal(sysreg(&f, 0x4b564d10, false, 0), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_UNCLAIMED);
	assert_int_equal(f.exit.address_kind, GPAS_ADDRESS_SYSREG);
	assert_int_equal(f.exit.address, 0x4b564d10);
	assert_int_equal(f.run->msr.error, 1);
	f.stores[0].fails_with = -EPERM;
	assert_int_equal(sysreg(&f, 0x4b564d01, true, 5), 0);
	assert_int_equal(f.exit.kind, GPAS_EXIT_DEVICE_ERROR);
	assert_int_equal(f.exit.error, -EPERM);
	assert_int_equal(f.run->msr.error, 1);
	finish(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mmio_bytes_go_where_they_belong),
		cmocka_unit_test(mmio_populates_once_and_counts),
		cmocka_unit_test(the_fault_record_names_the_region),
		cmocka_unit_test(widths_are_kept),
		cmocka_unit_test(a_failing_device_is_reported),
		cmocka_unit_test(a_cut_device_keeps_its_offsets),
		cmocka_unit_test(a_failing_backend_is_reported),
		cmocka_unit_test(a_failing_ioctl_fails_the_access),
		cmocka_unit_test(a_memory_fault_is_repaired),
		cmocka_unit_test(other_memory_faults_are_reported),
		cmocka_unit_test(one_fault_is_not_repeated_for_ever),
		cmocka_unit_test(
			a_failure_without_an_address_is_retried_a_little),
		cmocka_unit_test(an_access_mistaken_for_a_delivery_is_repaired),
		cmocka_unit_test(other_accesses_mistaken_so_are_tried_again),
		cmocka_unit_test(a_stale_reason_is_not_believed),
		cmocka_unit_test(an_interrupted_run_touches_nothing),
		cmocka_unit_test(other_exits_are_passed_on),
		cmocka_unit_test(absurd_lengths_are_cut),
		cmocka_unit_test(absurd_addresses_reach_nothing),
		cmocka_unit_test(ports_are_dispatched),
		cmocka_unit_test(ports_of_nobody_read_as_ones),
		cmocka_unit_test(registers_are_dispatched),
	};

	return cmocka_run_group_tests_name("exit", tests, NULL, NULL);
}
