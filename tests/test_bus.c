/* SPDX-License-Identifier: MIT */
/*
 * Devices of a space: the three kinds of address, claims that overlap, what
 * dispatch finds and reports, and how long a device lives. How an access is
 * cut into pieces is in test_device.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

static gpas_gpa at(uint64_t gpa)
{
	return gpas_gpa_at(gpa);
}

/* Remembers the last access, answers with a pattern of the offset. */
struct probe {
	struct gpas *space;
	struct gpas_device_access last;
	unsigned calls;
	unsigned releases;
	int error;
	/* On an access: remove the device it came to. */
	bool removes;
	enum gpas_address_kind kind;
	uint64_t first;
};

static int probe_access(void *ctx, struct gpas_device_access *access)
{
	struct probe *probe = ctx;

	probe->last = *access;
	probe->calls++;
	if (probe->removes) {
		assert_int_equal(gpas_remove_device(probe->space, probe->kind,
						    probe->first),
				 0);
		assert_int_equal(probe->releases, 0);
	}
	access->value = UINT64_C(0x8877665544332211) + access->offset;
	return probe->error;
}

static void probe_release(void *ctx)
{
	((struct probe *)ctx)->releases++;
}

static struct gpas_device probe_device(struct probe *probe)
{
	struct gpas_device device = {
		.name = "probe",
		.ctx = probe,
		.access = probe_access,
		.release = probe_release,
	};

	return device;
}

/* ---- claims ------------------------------------------------------------- */

static void claims_are_refused(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = { 0 };
	struct gpas_device device = probe_device(&probe);
	struct gpas_device bad = device;
	const enum gpas_address_kind port = GPAS_ADDRESS_PORT;
	const enum gpas_address_kind sysreg = GPAS_ADDRESS_SYSREG;

	assert_int_equal(
		gpas_add_device(space, GPAS_ADDRESS_GPA, 0, 1, &device),
		-EINVAL);
	assert_int_equal(gpas_add_device(space, (enum gpas_address_kind)3, 0, 1,
					 &device),
			 -EINVAL);
	assert_int_equal(gpas_add_device(space, (enum gpas_address_kind) - 1, 0,
					 1, &device),
			 -EINVAL);
	assert_int_equal(gpas_add_device(space, port, 0, 0, &device), -EINVAL);
	assert_int_equal(gpas_add_device(space, port, 0x10000, 1, &device),
			 -EINVAL);
	assert_int_equal(gpas_add_device(space, port, 0xffff, 2, &device),
			 -EINVAL);
	assert_int_equal(gpas_add_device(space, port, 1, UINT64_MAX, &device),
			 -EINVAL);
	assert_int_equal(
		gpas_add_device(space, sysreg, UINT64_C(1) << 32, 1, &device),
		-EINVAL);
	assert_int_equal(gpas_add_device(space, sysreg, UINT32_MAX, 2, &device),
			 -EINVAL);
	assert_int_equal(gpas_add_device(space, port, 0, 1, NULL), -EINVAL);
	bad.access = NULL;
	assert_int_equal(gpas_add_device(space, port, 0, 1, &bad), -EINVAL);
	bad = device;
	bad.widths = 32;
	assert_int_equal(gpas_add_device(space, port, 0, 1, &bad), -EINVAL);
	assert_int_equal(gpas_remove_device(space, port, 0), -ENOENT);
	assert_int_equal(probe.releases, 0);
}

static void claims_do_not_overlap(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = { 0 };
	struct gpas_device device = probe_device(&probe);
	const enum gpas_address_kind port = GPAS_ADDRESS_PORT;

	assert_int_equal(gpas_add_device(space, port, 0x3f8, 8, &device), 0);
	assert_int_equal(gpas_add_device(space, port, 0x3f8, 8, &device),
			 -EEXIST);
	assert_int_equal(gpas_add_device(space, port, 0x3ff, 1, &device),
			 -EEXIST);
	assert_int_equal(gpas_add_device(space, port, 0x3f0, 9, &device),
			 -EEXIST);
	assert_int_equal(gpas_add_device(space, port, 0, 0x10000, &device),
			 -EEXIST);
	assert_int_equal(probe.releases, 0);
	/* Neighbours and other kinds are free. */
	assert_int_equal(gpas_add_device(space, port, 0x400, 1, &device), 0);
	assert_int_equal(gpas_add_device(space, port, 0x3f7, 1, &device), 0);
	assert_int_equal(gpas_add_device(space, port, 0xffff, 1, &device), 0);
	assert_int_equal(
		gpas_add_device(space, GPAS_ADDRESS_SYSREG, 0x3f8, 8, &device),
		0);
	assert_int_equal(gpas_check(space), 0);
	/* Removed by its first number only. */
	assert_int_equal(gpas_remove_device(space, port, 0x3f9), -ENOENT);
	assert_int_equal(gpas_remove_device(space, port, 0x3f8), 0);
	assert_int_equal(probe.releases, 1);
	assert_int_equal(gpas_remove_device(space, port, 0x3f8), -ENOENT);
	assert_int_equal(gpas_add_device(space, port, 0x3f8, 8, &device), 0);
	fixture_close(state);
	assert_int_equal(probe.releases, 6);
}

/* ---- dispatch ----------------------------------------------------------- */

/* Registers are numbers, not bytes: one access is one call of width 8. */
static void check_kind(struct gpas *space, enum gpas_address_kind kind,
		       struct probe *probe)
{
	struct gpas_device device = probe_device(probe);
	unsigned width = kind == GPAS_ADDRESS_SYSREG ? 8 : 4;
	uint64_t mask = width == 8 ? UINT64_MAX : UINT32_MAX;
	uint64_t last = 0x5000 - (kind == GPAS_ADDRESS_SYSREG ? 1 : width);
	uint64_t value = 0;
	int err =
		kind == GPAS_ADDRESS_GPA
			? gpas_map_device(space, at(0x4000), 0x1000, &device)
			: gpas_add_device(space, kind, 0x4000, 0x1000, &device);

	assert_int_equal(err, 0);
	assert_int_equal(
		gpas_device_dispatch(space, kind, 0x4008, &value, width, false),
		0);
	assert_int_equal(value, UINT64_C(0x8877665544332219) & mask);
	assert_int_equal(probe->calls, 1);
	assert_int_equal(probe->last.offset, 8);
	assert_int_equal(probe->last.width, width);
	assert_false(probe->last.write);
	value = 0xdeadbeef;
	assert_int_equal(
		gpas_device_dispatch(space, kind, last, &value, width, true),
		0);
	assert_int_equal(probe->calls, 2);
	assert_int_equal(probe->last.offset, last - 0x4000);
	assert_int_equal(probe->last.value, 0xdeadbeef);
	assert_true(probe->last.write);
	assert_int_equal(
		gpas_device_dispatch(space, kind, 0x5000, &value, width, false),
		-ENOENT);
}

static void dispatch_finds_each_kind(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	static struct probe probes[GPAS_ADDRESS_KIND_COUNT];
	struct gpas_stats stats;

	memset(probes, 0, sizeof(probes));
	for (unsigned kind = 0; kind < GPAS_ADDRESS_KIND_COUNT; kind++) {
		check_kind(space, (enum gpas_address_kind)kind, &probes[kind]);
	}
	gpas_stats(space, &stats);
	assert_int_equal(stats.device_accesses, 6);
	fixture_close(state);
	for (unsigned kind = 0; kind < GPAS_ADDRESS_KIND_COUNT; kind++) {
		assert_int_equal(probes[kind].releases, 1);
	}
}

static void registers_are_accessed_whole(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	static struct probe probe;
	struct gpas_device device = probe_device(&probe);
	const enum gpas_address_kind sysreg = GPAS_ADDRESS_SYSREG;
	uint64_t value = 0;

	memset(&probe, 0, sizeof(probe));
	assert_int_equal(gpas_add_device(space, sysreg, 0x10, 2, &device), 0);
	for (size_t size = 0; size < 8; size++) {
		assert_int_equal(gpas_device_dispatch(space, sysreg, 0x10,
						      &value, size, true),
				 -EINVAL);
	}
	assert_int_equal(
		gpas_device_dispatch(space, sysreg, 0x10, &value, 4, false),
		-EINVAL);
	assert_int_equal(value, UINT32_MAX);
	assert_int_equal(probe.calls, 0);
	assert_int_equal(
		gpas_device_dispatch(space, sysreg, 0x11, &value, 8, false), 0);
	assert_int_equal(probe.last.offset, 1);
	device.widths = GPAS_WIDTH_4;
	assert_int_equal(gpas_add_device(space, sysreg, 0x20, 1, &device), 0);
	assert_int_equal(
		gpas_device_dispatch(space, sysreg, 0x20, &value, 8, false),
		-EINVAL);
	assert_int_equal(value, UINT64_MAX);
}

static void reads_that_fail_yield_ones(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = { .error = -EIO };
	struct gpas_device device = probe_device(&probe);
	static const uint8_t ones[8] = { 0xff, 0xff, 0xff, 0xff,
					 0xff, 0xff, 0xff, 0xff };
	uint8_t data[8];

	device.widths = GPAS_WIDTH_4;
	assert_int_equal(gpas_map_device(space, at(0x4000), 0x1000, &device),
			 0);
	assert_int_equal(
		gpas_map_alloc(space, at(0x5000), 0x1000, GPAS_PROT_RW, NULL),
		0);
	static const struct {
		enum gpas_address_kind kind;
		uint64_t address;
		size_t size;
		int error;
	} cases[] = {
		{ GPAS_ADDRESS_GPA, 0x4000, 4, -EIO },
		{ GPAS_ADDRESS_GPA, 0x4000, 2, -EINVAL },
		{ GPAS_ADDRESS_GPA, 0x4001, 4, -EINVAL },
		{ GPAS_ADDRESS_GPA, 0x4ffc, 8, -EINVAL },
		{ GPAS_ADDRESS_GPA, 0x4ffe, 4, -EINVAL },
		{ GPAS_ADDRESS_GPA, 0x3ffc, 8, -ENOENT },
		{ GPAS_ADDRESS_GPA, 0x5000, 4, -ENOENT },
		{ GPAS_ADDRESS_GPA, 0x6000, 4, -ENOENT },
		{ GPAS_ADDRESS_GPA, UINT64_MAX, 1, -ENOENT },
		{ GPAS_ADDRESS_PORT, 0x80, 1, -ENOENT },
		{ GPAS_ADDRESS_PORT, UINT64_MAX, 1, -ENOENT },
		{ GPAS_ADDRESS_SYSREG, 0x10, 8, -ENOENT },
		{ (enum gpas_address_kind)9, 0x10, 8, -EINVAL },
	};

	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		memset(data, 0, sizeof(data));
		assert_int_equal(gpas_device_dispatch(space, cases[i].kind,
						      cases[i].address, data,
						      cases[i].size, false),
				 cases[i].error);
		assert_memory_equal(data, ones, cases[i].size);
		/* A write leaves its bytes alone. */
		memset(data, 3, sizeof(data));
		assert_int_equal(gpas_device_dispatch(space, cases[i].kind,
						      cases[i].address, data,
						      cases[i].size, true),
				 cases[i].error);
		assert_true(is_all(data, 3, sizeof(data)));
	}
	assert_int_equal(probe.calls, 2);
	fixture_close(state);
}

/* A device that was cut keeps its offsets, and ends where its part ends. */
static void parts_of_a_device_keep_their_offsets(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = { 0 };
	struct gpas_device device = probe_device(&probe);
	uint64_t value;

	assert_int_equal(gpas_map_device(space, at(0x4000), 0x4000, &device),
			 0);
	assert_int_equal(gpas_unmap(space, at(0x5000), 0x1000), 0);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x6010,
					      &value, 8, false),
			 0);
	assert_int_equal(probe.last.offset, 0x2010);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x5010,
					      &value, 8, false),
			 -ENOENT);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x4ff8,
					      &value, 8, false),
			 0);
	assert_int_equal(probe.last.offset, 0xff8);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x4ffc,
					      &value, 8, false),
			 -EINVAL);
	assert_int_equal(probe.calls, 2);
	fixture_close(state);
	assert_int_equal(probe.releases, 1);
}

/* An access may remove its own device, which lives until it returns. */
static void a_device_outlives_its_running_access(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = {
		.space = space,
		.removes = true,
		.kind = GPAS_ADDRESS_SYSREG,
		.first = 0x10,
	};
	struct gpas_device device = probe_device(&probe);
	uint64_t value = 0;

	assert_int_equal(
		gpas_add_device(space, GPAS_ADDRESS_SYSREG, 0x10, 1, &device),
		0);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_SYSREG, 0x10,
					      &value, 8, false),
			 0);
	assert_int_equal(value, UINT64_C(0x8877665544332211));
	assert_int_equal(probe.releases, 1);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_SYSREG, 0x10,
					      &value, 8, false),
			 -ENOENT);
}

/* Device callbacks run without the space's lock. */
static int reentrant_access(void *ctx, struct gpas_device_access *access)
{
	struct probe *probe = ctx;

	probe->calls++;
	if (access->write) {
		return gpas_unmap(probe->space, at(0x4000), 0x1000);
	}
	access->value = 7;
	return gpas_map_alloc(probe->space, at(0x10000), 0x1000, GPAS_PROT_RW,
			      NULL);
}

static void devices_may_change_the_space(void **state)
{
	struct gpas *space = fixture_space(state, GIB);
	struct probe probe = { .space = space };
	struct gpas_device device = probe_device(&probe);
	uint32_t value = 0;

	device.access = reentrant_access;
	assert_int_equal(gpas_map_device(space, at(0x4000), 0x1000, &device),
			 0);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x4000,
					      &value, 4, false),
			 0);
	assert_int_equal(value, 7);
	assert_int_equal(gpas_store(space, at(0x10000), 4, 1), 0);
	assert_int_equal(gpas_device_dispatch(space, GPAS_ADDRESS_GPA, 0x4000,
					      &value, 4, true),
			 0);
	assert_int_equal(probe.releases, 1);
	assert_int_equal(probe.calls, 2);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		fixture_test(claims_are_refused),
		fixture_test(claims_do_not_overlap),
		fixture_test(dispatch_finds_each_kind),
		fixture_test(registers_are_accessed_whole),
		fixture_test(reads_that_fail_yield_ones),
		fixture_test(parts_of_a_device_keep_their_offsets),
		fixture_test(a_device_outlives_its_running_access),
		fixture_test(devices_may_change_the_space),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
