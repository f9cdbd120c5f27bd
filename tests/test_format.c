/* SPDX-License-Identifier: MIT */
/*
 * Every format's entries against values worked out by hand from the manuals.
 * The tests read a table's memory with a walk of their own, so nothing of
 * src/format.c is used to judge src/format.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <gpas/pgtable.h>

/* A host address that is a multiple of 1 GiB; the right-hand column below
 * shows it in every entry. RISC-V keeps it shifted right by 2. */
#define HOST UINT64_C(0x00007f1240000000)

/* No entry: the format refuses. */
#define REFUSED UINT64_C(0)

struct golden {
	enum gpas_format_id id;
	const char *name;
	unsigned gpa_bits;
	unsigned levels;
	unsigned root_pages;
	unsigned host_bits;
	/* The bits of a table entry besides its address, and the address. */
	uint64_t table;
	uint64_t address_mask;
	unsigned address_shift;
	/* Write-back leaves of 4 KiB, 2 MiB, 1 GiB by enum gpas_prot. */
	uint64_t leaf[3][8];
	/* RWX leaves of 4 KiB by enum gpas_memtype. */
	uint64_t memtype[GPAS_MEMTYPE_COUNT];
};

/* clang-format off */
#define EPT_LEAVES                                                        \
	.table = 0x7, .address_mask = 0x000ffffffffff000,                 \
	.leaf = {                                                         \
		/*    NONE                R                            */ \
		{ 0x00007f1240000830, 0x00007f1240000031,                 \
		/*    W                   RW                           */ \
		  REFUSED,            0x00007f1240000033,                 \
		/*    X                   RX                           */ \
		  0x00007f1240000034, 0x00007f1240000035,                 \
		/*    WX                  RWX                          */ \
		  REFUSED,            0x00007f1240000037 },               \
		{ 0x00007f12400008b0, 0x00007f12400000b1,                 \
		  REFUSED,            0x00007f12400000b3,                 \
		  0x00007f12400000b4, 0x00007f12400000b5,                 \
		  REFUSED,            0x00007f12400000b7 },               \
		{ 0x00007f12400008b0, 0x00007f12400000b1,                 \
		  REFUSED,            0x00007f12400000b3,                 \
		  0x00007f12400000b4, 0x00007f12400000b5,                 \
		  REFUSED,            0x00007f12400000b7 },               \
	},                                                                \
	/* WB 6, WT 4, WC 1, WP 5, UC 0 in bits 5:3 */                    \
	.memtype = { 0x00007f1240000037, 0x00007f1240000027,              \
		     0x00007f124000000f, 0x00007f124000002f,              \
		     0x00007f1240000007 }

#define ARM64_LEAVES                                                      \
	.table = 0x3, .address_mask = 0x0000fffffffff000,                 \
	.leaf = {                                                         \
		{ 0x00c07f124000073e, 0x00407f124000077f,                 \
		  0x00407f12400007bf, 0x00407f12400007ff,                 \
		  REFUSED,            0x00007f124000077f,                 \
		  REFUSED,            0x00007f12400007ff },               \
		{ 0x00c07f124000073c, 0x00407f124000077d,                 \
		  0x00407f12400007bd, 0x00407f12400007fd,                 \
		  REFUSED,            0x00007f124000077d,                 \
		  REFUSED,            0x00007f12400007fd },               \
		{ 0x00c07f124000073c, 0x00407f124000077d,                 \
		  0x00407f12400007bd, 0x00407f12400007fd,                 \
		  REFUSED,            0x00007f124000077d,                 \
		  REFUSED,            0x00007f12400007fd },               \
	},                                                                \
	/* MemAttr 1111, 1010, 0101, none, 0001; no SH for Device */      \
	.memtype = { 0x00007f12400007ff, 0x00007f12400007eb,              \
		     0x00007f12400007d7, REFUSED,                         \
		     0x00007f12400004c7 }

/* 0x7f1240000000 >> 2 is 0x1fc490000000. */
#define RISCV_LEAVES                                                      \
	.table = 0x1, .address_mask = 0x003ffffffffffc00,                 \
	.address_shift = 2,                                               \
	.leaf = {                                                         \
		{ 0x00001fc4900001d0, 0x00001fc4900000d3,                 \
		  REFUSED,            0x00001fc4900000d7,                 \
		  0x00001fc4900000d9, 0x00001fc4900000db,                 \
		  REFUSED,            0x00001fc4900000df },               \
		{ 0x00001fc4900001d0, 0x00001fc4900000d3,                 \
		  REFUSED,            0x00001fc4900000d7,                 \
		  0x00001fc4900000d9, 0x00001fc4900000db,                 \
		  REFUSED,            0x00001fc4900000df },               \
		{ 0x00001fc4900001d0, 0x00001fc4900000d3,                 \
		  REFUSED,            0x00001fc4900000d7,                 \
		  0x00001fc4900000d9, 0x00001fc4900000db,                 \
		  REFUSED,            0x00001fc4900000df },               \
	},                                                                \
	/* Svpbmt: PMA 0, NC 1, IO 2 in bits 62:61 */                     \
	.memtype = { 0x00001fc4900000df, REFUSED,                         \
		     0x20001fc4900000df, REFUSED,                         \
		     0x40001fc4900000df }

static const struct golden goldens[] = {
	{ GPAS_FORMAT_EPT_4, "ept-4", 48, 4, 1, 52, EPT_LEAVES },
	{ GPAS_FORMAT_EPT_5, "ept-5", 57, 5, 1, 52, EPT_LEAVES },
	{ GPAS_FORMAT_NPT_4, "npt-4", 48, 4, 1, 52,
	  .table = 0x27, .address_mask = 0x000ffffffffff000,
	  .leaf = {
		{ 0x80007f1240000864, 0x80007f1240000065,
		  REFUSED,            0x80007f1240000067,
		  REFUSED,            0x00007f1240000065,
		  REFUSED,            0x00007f1240000067 },
		{ 0x80007f12400008e4, 0x80007f12400000e5,
		  REFUSED,            0x80007f12400000e7,
		  REFUSED,            0x00007f12400000e5,
		  REFUSED,            0x00007f12400000e7 },
		{ 0x80007f12400008e4, 0x80007f12400000e5,
		  REFUSED,            0x80007f12400000e7,
		  REFUSED,            0x00007f12400000e5,
		  REFUSED,            0x00007f12400000e7 },
	  },
	  /* PAT entry 0 is WB, 1 (PWT) is WT, 3 (PCD and PWT) is UC */
	  .memtype = { 0x00007f1240000067, 0x00007f124000006f,
		       REFUSED, REFUSED, 0x00007f124000007f } },
	{ GPAS_FORMAT_ARM64_S2_48, "arm64-s2-48", 48, 4, 1, 48, ARM64_LEAVES },
	{ GPAS_FORMAT_ARM64_S2_40, "arm64-s2-40", 40, 3, 2, 48, ARM64_LEAVES },
	{ GPAS_FORMAT_SV39_X4, "sv39x4", 41, 3, 4, 56, RISCV_LEAVES },
	{ GPAS_FORMAT_SV48_X4, "sv48x4", 50, 4, 4, 56, RISCV_LEAVES },
	{ GPAS_FORMAT_SV57_X4, "sv57x4", 59, 5, 4, 56, RISCV_LEAVES },
};
/* clang-format on */

#define GOLDEN_COUNT (sizeof(goldens) / sizeof(goldens[0]))

static struct gpas_pgtable *create(const struct golden *golden,
				   unsigned max_leaf_shift)
{
	struct gpas_pgtable_params params = {
		.format = golden->id,
		.max_leaf_shift = max_leaf_shift,
	};
	struct gpas_pgtable *table;

	assert_int_equal(gpas_pgtable_create(&params, &table), 0);
	return table;
}

static void destroy(struct gpas_pgtable *table)
{
	assert_int_equal(gpas_pgtable_check(table, true), 0);
	gpas_pgtable_destroy(table);
}

/* The raw entry of this level for @gpa; table entries on the way are held
 * against the golden bits. */
static uint64_t raw_entry(const struct gpas_pgtable *table,
			  const struct golden *golden, uint64_t gpa,
			  unsigned level)
{
	const uint64_t *node = gpas_hva_pointer(gpas_pgtable_root(table));
	unsigned at = golden->levels - 1;
	uint64_t entry = node[gpa >> (12 + 9 * at)];

	while (at > level) {
		at--;
		assert_int_equal(entry & ~golden->address_mask, golden->table);
		node = (const uint64_t *)(uintptr_t)((entry &
						      golden->address_mask)
						     << golden->address_shift);
		entry = node[gpa >> (12 + 9 * at) & 511];
	}
	return entry;
}

static void check_leaf(const struct golden *golden, unsigned level,
		       unsigned prot, enum gpas_memtype memtype,
		       uint64_t expected)
{
	unsigned shift = 12 + 9 * level;
	struct gpas_pgtable *table = create(golden, shift);
	gpas_gpa gpa = gpas_gpa_at(UINT64_C(5) << 30);
	uint64_t size = UINT64_C(1) << shift;
	struct gpas_extent leaf;
	int error;

	error = gpas_pgtable_map(table, gpa, size, gpas_hva_at(HOST), prot,
				 memtype);
	if (expected == REFUSED) {
		assert_int_equal(error, -EOPNOTSUPP);
		destroy(table);
		return;
	}
	assert_int_equal(error, 0);
	assert_int_equal(raw_entry(table, golden, gpa.value, level), expected);
	assert_int_equal(gpas_pgtable_query(table, gpa, &leaf), 0);
	assert_int_equal(leaf.prot, prot);
	assert_int_equal(leaf.memtype, memtype);
	assert_int_equal(leaf.host.value, HOST);
	assert_int_equal(leaf.size, size);
	destroy(table);
}

static void test_leaves(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		for (unsigned level = 0; level < 3; level++) {
			for (unsigned prot = 0; prot < 8; prot++) {
				check_leaf(&goldens[i], level, prot,
					   GPAS_MEM_WRITE_BACK,
					   goldens[i].leaf[level][prot]);
			}
		}
	}
}

static void test_memtypes(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		for (unsigned type = 0; type < GPAS_MEMTYPE_COUNT; type++) {
			check_leaf(&goldens[i], 0, GPAS_PROT_RWX,
				   (enum gpas_memtype)type,
				   goldens[i].memtype[type]);
		}
	}
}

/* Changing the permission in place reaches the same bits as mapping with it,
 * through NONE and back. */
static void test_protect_bits(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		const struct golden *golden = &goldens[i];
		struct gpas_pgtable *table = create(golden, 21);
		gpas_gpa gpa = gpas_gpa_at(0);
		const uint64_t size = 0x200000;

		assert_int_equal(
			gpas_pgtable_map(table, gpa, size, gpas_hva_at(HOST),
					 GPAS_PROT_RWX, GPAS_MEM_WRITE_BACK),
			0);
		for (unsigned step = 0; step < 16; step++) {
			unsigned prot = step % 2 == 0 ? 0 : step / 2;
			uint64_t expected = golden->leaf[1][prot];
			int error =
				gpas_pgtable_protect(table, gpa, size, prot);

			if (expected == REFUSED) {
				assert_int_equal(error, -EOPNOTSUPP);
				continue;
			}
			assert_int_equal(error, 0);
			assert_int_equal(raw_entry(table, golden, 0, 1),
					 expected);
		}
		destroy(table);
	}
}

/* Even an entry that is all address and no address stays distinguishable. */
static void test_parked_zero(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		struct gpas_pgtable *table = create(&goldens[i], 12);
		struct gpas_extent leaf;

		assert_int_equal(gpas_pgtable_map(table, gpas_gpa_at(0), 0x1000,
						  gpas_hva_at(0),
						  GPAS_PROT_NONE,
						  GPAS_MEM_UNCACHED),
				 0);
		assert_int_not_equal(raw_entry(table, &goldens[i], 0, 0), 0);
		assert_int_equal(
			gpas_pgtable_query(table, gpas_gpa_at(0xfff), &leaf),
			0);
		assert_int_equal(leaf.prot, GPAS_PROT_NONE);
		assert_int_equal(leaf.memtype, GPAS_MEM_UNCACHED);
		destroy(table);
	}
}

static void test_root(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		const struct golden *golden = &goldens[i];
		struct gpas_pgtable *table = create(golden, 0);
		uint64_t root = gpas_pgtable_root(table).value;
		uint64_t top = UINT64_C(1) << golden->gpa_bits;
		struct gpas_pgtable_stats stats;

		/* A concatenated root is aligned to all of its pages. */
		assert_int_equal(root % (golden->root_pages * 4096), 0);
		gpas_pgtable_stats(table, &stats);
		assert_int_equal(stats.table_pages, golden->root_pages);

		/* The last page is in the last entry of the last root page. */
		assert_int_equal(
			gpas_pgtable_map(table, gpas_gpa_at(top - 0x1000),
					 0x1000, gpas_hva_at(HOST),
					 GPAS_PROT_RWX, GPAS_MEM_WRITE_BACK),
			0);
		assert_int_equal(raw_entry(table, golden, top - 0x1000, 0),
				 golden->leaf[0][7]);
		assert_int_not_equal(
			((const uint64_t *)(uintptr_t)
				 root)[golden->root_pages * 512 - 1],
			0);
		assert_int_equal(gpas_pgtable_map(table, gpas_gpa_at(top),
						  0x1000, gpas_hva_at(HOST),
						  GPAS_PROT_RWX,
						  GPAS_MEM_WRITE_BACK),
				 -EINVAL);
		assert_int_equal(
			gpas_pgtable_map(table, gpas_gpa_at(top - 0x1000),
					 0x2000, gpas_hva_at(HOST),
					 GPAS_PROT_RWX, GPAS_MEM_WRITE_BACK),
			-EINVAL);
		destroy(table);
	}
}

static int map_at_host(struct gpas_pgtable *table, uint64_t host, uint64_t size)
{
	return gpas_pgtable_map(table, gpas_gpa_at(0), size, gpas_hva_at(host),
				GPAS_PROT_RWX, GPAS_MEM_WRITE_BACK);
}

static void test_host_width(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		struct gpas_pgtable *table = create(&goldens[i], 0);
		uint64_t top = UINT64_C(1) << goldens[i].host_bits;
		struct gpas_extent leaf;

		assert_int_equal(map_at_host(table, top, 0x1000), -EOPNOTSUPP);
		assert_int_equal(map_at_host(table, top - 0x1000, 0x2000),
				 -EOPNOTSUPP);
		assert_int_equal(map_at_host(table, -UINT64_C(0x1000), 0x2000),
				 -EINVAL);
		assert_int_equal(map_at_host(table, 0x800, 0x1000), -EINVAL);
		assert_int_equal(map_at_host(table, top - 0x1000, 0x1000), 0);
		assert_int_equal(
			gpas_pgtable_query(table, gpas_gpa_at(0), &leaf), 0);
		assert_int_equal(leaf.host.value, top - 0x1000);
		destroy(table);
	}
}

static void test_bad_attributes(void **state)
{
	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		struct gpas_pgtable *table = create(&goldens[i], 0);
		gpas_gpa gpa = gpas_gpa_at(0);

		assert_int_equal(gpas_pgtable_map(table, gpa, 0x1000,
						  gpas_hva_at(HOST), 8,
						  GPAS_MEM_WRITE_BACK),
				 -EINVAL);
		assert_int_equal(
			gpas_pgtable_map(table, gpa, 0x1000, gpas_hva_at(HOST),
					 GPAS_PROT_RW, (enum gpas_memtype)5),
			-EINVAL);
		assert_int_equal(gpas_pgtable_protect(table, gpa, 0x1000, 8),
				 -EINVAL);
		destroy(table);
	}
}

static void test_descriptions(void **state)
{
	const struct gpas_format *host = gpas_format_get(GPAS_FORMAT_HOST);

	(void)state;
	for (size_t i = 0; i < GOLDEN_COUNT; i++) {
		const struct gpas_format *format =
			gpas_format_get(goldens[i].id);
		struct gpas_pgtable *table = create(&goldens[i], 0);

		assert_string_equal(gpas_format_name(format), goldens[i].name);
		assert_ptr_equal(gpas_format_find(goldens[i].name), format);
		assert_int_equal(gpas_format_gpa_bits(format),
				 goldens[i].gpa_bits);
		assert_int_equal(gpas_format_levels(format), goldens[i].levels);
		assert_ptr_equal(gpas_pgtable_format(table), format);
		destroy(table);
	}
	assert_int_equal(GOLDEN_COUNT, GPAS_FORMAT_COUNT - 1);
	assert_non_null(host);
	assert_ptr_equal(gpas_format_find(gpas_format_name(host)), host);
	assert_null(gpas_format_get((enum gpas_format_id)GPAS_FORMAT_COUNT));
	assert_null(gpas_format_find("ept"));
	assert_null(gpas_format_find(""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_leaves),
		cmocka_unit_test(test_memtypes),
		cmocka_unit_test(test_protect_bits),
		cmocka_unit_test(test_parked_zero),
		cmocka_unit_test(test_root),
		cmocka_unit_test(test_host_width),
		cmocka_unit_test(test_bad_attributes),
		cmocka_unit_test(test_descriptions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
