/* SPDX-License-Identifier: MIT */
/* Typed addresses and ranges: the edges of 64 bits, and that types differ. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <gpas/addr.h>

#define TOP UINT64_MAX

/* Which of the three a value is; anything else does not compile. */
#define KIND(x) _Generic((x), gpas_gpa : 1, gpas_gva : 2, gpas_hva : 3)

_Static_assert(KIND((gpas_gpa){ 0 }) == 1, "a GPA is its own type");
_Static_assert(KIND((gpas_gva){ 0 }) == 2, "a GVA is its own type");
_Static_assert(KIND((gpas_hva){ 0 }) == 3, "an HVA is its own type");
_Static_assert(_Generic((gpas_gpa){ 0 }, uint64_t : 0, default : 1),
	       "a GPA is no integer");
_Static_assert(sizeof(gpas_gpa) == 8 && sizeof(gpas_gva) == 8 &&
		       sizeof(gpas_hva) == 8,
	       "one word each");

static struct gpas_range range(uint64_t start, uint64_t end)
{
	struct gpas_range made = { gpas_gpa_at(start), gpas_gpa_at(end) };

	return made;
}

static void test_add(void **state)
{
	gpas_gpa sum = { 42 };

	(void)state;
	assert_int_equal(gpas_gpa_add(gpas_gpa_at(TOP), 0, &sum), 0);
	assert_int_equal(sum.value, TOP);
	assert_int_equal(gpas_gpa_add(gpas_gpa_at(0), TOP, &sum), 0);
	assert_int_equal(sum.value, TOP);
	sum.value = 42;
	assert_int_equal(gpas_gpa_add(gpas_gpa_at(TOP), 1, &sum), -EINVAL);
	assert_int_equal(gpas_gpa_add(gpas_gpa_at(1), TOP, &sum), -EINVAL);
	assert_int_equal(sum.value, 42);
}

static void test_align(void **state)
{
	uint64_t up = 42;

	(void)state;
	assert_true(gpas_is_aligned(0, UINT64_C(1) << 63));
	assert_true(gpas_is_aligned(7, 1));
	assert_false(gpas_is_aligned(0x1800, 0x1000));
	assert_int_equal(gpas_align_down(0x1fff, 0x1000), 0x1000);
	assert_int_equal(gpas_align_down(TOP, UINT64_C(1) << 63),
			 UINT64_C(1) << 63);
	assert_int_equal(gpas_align_up(0, 0x1000, &up), 0);
	assert_int_equal(up, 0);
	assert_int_equal(gpas_align_up(0x1001, 0x1000, &up), 0);
	assert_int_equal(up, 0x2000);
	assert_int_equal(gpas_align_up(TOP - 0xfff, 0x1000, &up), 0);
	assert_int_equal(up, TOP - 0xfff);
	assert_int_equal(gpas_align_up(TOP, 1, &up), 0);
	assert_int_equal(up, TOP);
	up = 42;
	assert_int_equal(gpas_align_up(TOP - 0xffe, 0x1000, &up), -EINVAL);
	assert_int_equal(gpas_align_up(TOP, 0x1000, &up), -EINVAL);
	assert_int_equal(up, 42);
}

static void test_range_make(void **state)
{
	struct gpas_range made = range(1, 2);

	(void)state;
	assert_int_equal(gpas_range_make(gpas_gpa_at(TOP), 0, &made), 0);
	assert_true(gpas_range_is_empty(made));
	assert_int_equal(gpas_range_make(gpas_gpa_at(0), TOP, &made), 0);
	assert_int_equal(gpas_range_size(made), TOP);
	made = range(1, 2);
	assert_int_equal(gpas_range_make(gpas_gpa_at(TOP), 1, &made), -EINVAL);
	assert_int_equal(gpas_range_make(gpas_gpa_at(0x1000), TOP, &made),
			 -EINVAL);
	assert_int_equal(made.start.value, 1);
	assert_int_equal(made.end.value, 2);
}

static void test_contains(void **state)
{
	struct gpas_range outer = range(0x1000, 0x3000);

	(void)state;
	assert_false(gpas_range_contains(outer, gpas_gpa_at(0xfff)));
	assert_true(gpas_range_contains(outer, gpas_gpa_at(0x1000)));
	assert_true(gpas_range_contains(outer, gpas_gpa_at(0x2fff)));
	assert_false(gpas_range_contains(outer, gpas_gpa_at(0x3000)));
	assert_false(gpas_range_contains(range(5, 5), gpas_gpa_at(5)));

	assert_true(gpas_range_contains_range(outer, outer));
	assert_true(gpas_range_contains_range(outer, range(0x3000, 0x3000)));
	assert_false(gpas_range_contains_range(outer, range(0x3001, 0x3001)));
	assert_false(gpas_range_contains_range(outer, range(0x2000, 0x3001)));
	assert_false(gpas_range_contains_range(outer, range(0xfff, 0x2000)));
}

static void test_overlap(void **state)
{
	struct gpas_range a = range(0x1000, 0x3000);
	struct gpas_range both;

	(void)state;
	assert_false(gpas_range_overlaps(a, range(0x3000, 0x4000)));
	assert_false(gpas_range_overlaps(a, range(0, 0x1000)));
	assert_false(gpas_range_overlaps(a, range(0x2000, 0x2000)));
	assert_true(gpas_range_overlaps(a, range(0x2fff, 0x4000)));
	assert_true(gpas_range_overlaps(a, range(0, TOP)));

	both = gpas_range_intersect(a, range(0x2000, TOP));
	assert_int_equal(both.start.value, 0x2000);
	assert_int_equal(both.end.value, 0x3000);
	both = gpas_range_intersect(range(0, 0x1800), a);
	assert_int_equal(both.start.value, 0x1000);
	assert_int_equal(both.end.value, 0x1800);
	assert_true(gpas_range_is_empty(
		gpas_range_intersect(a, range(0x4000, 0x5000))));
	assert_true(gpas_range_is_empty(
		gpas_range_intersect(range(0x4000, 0x5000), a)));
}

static void test_pointer(void **state)
{
	int object = 0;

	(void)state;
	assert_ptr_equal(gpas_hva_pointer(gpas_hva_of(&object)), &object);
	assert_int_equal(gpas_hva_of(NULL).value, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_add),
		cmocka_unit_test(test_align),
		cmocka_unit_test(test_range_make),
		cmocka_unit_test(test_contains),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_pointer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
