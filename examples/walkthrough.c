/* SPDX-License-Identifier: MIT */
/*
 * A tour of a space, without KVM: three kinds of memory, translation,
 * permissions, and a fault on a lazy page. Prints what each call answers.
 *
 *     cc walkthrough.c $(pkg-config --cflags --libs gpas) -o walkthrough
 */
#include <gpas/gpas.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *prot_text(unsigned prot)
{
	static const char *const names[] = { "---", "r--", "-w-", "rw-",
					     "--x", "r-x", "-wx", "rwx" };

	return names[prot & GPAS_PROT_RWX];
}

/* Every call returns 0 or a negative errno. */
static void must(const char *what, int err)
{
	if (err != 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-err));
		exit(1);
	}
}

static void show_translation(struct gpas *space, uint64_t gpa, unsigned access)
{
	struct gpas_translation at;
	int err = gpas_translate(space, gpas_gpa_at(gpa), access, UINT64_MAX,
				 &at);

	printf("translate 0x%" PRIx64 " for %s: ", gpa, prot_text(access));
	if (err != 0) {
		printf("%s\n", err == -ENOENT	? "nothing present"
			       : err == -EACCES ? "not allowed"
						: strerror(-err));
		return;
	}
	printf("%s, 0x%" PRIx64 " bytes in a row, in a leaf of %u KiB\n",
	       prot_text(at.prot), at.size, 1u << (at.leaf_shift - 10));
}

static void show_fault(struct gpas *space, uint64_t gpa, unsigned access)
{
	static const char *const names[] = { "resume", "device", "denied",
					     "unmapped", "failed" };
	struct gpas_fault fault;

	must("fault", gpas_fault(space, gpas_gpa_at(gpa), access, &fault));
	printf("fault at 0x%" PRIx64 " for %s: %s, 0x%" PRIx64 " bytes new\n",
	       gpa, prot_text(access), names[fault.kind], fault.populated);
}

static void show_region(const struct gpas_region *region)
{
	printf("  0x%" PRIx64 "-0x%" PRIx64 " %s %-8s 0x%" PRIx64 " present\n",
	       region->start.value, region->start.value + region->size,
	       prot_text(region->prot), region->name, region->present);
}

static void show_regions(struct gpas *space)
{
	gpas_gpa at = gpas_base(space);
	struct gpas_region region;

	while (gpas_region_next(space, at, &region) == 0) {
		show_region(&region);
		at.value = region.start.value + region.size;
	}
}

/* Memory of our own at 0x18000, the space's at 0x10000 and, lazy, 0x14000. */
static void map_all(struct gpas *space, void *own)
{
	struct gpas_map_params lazy = {
		.name = "lazy",
		.lazy = true,
		.granule = GPAS_PAGE_BYTES,
	};

	must("map_linear", gpas_map_linear(space, gpas_gpa_at(0x18000), 0x8000,
					   own, GPAS_PROT_RW, NULL));
	must("map_alloc", gpas_map_alloc(space, gpas_gpa_at(0x10000), 0x2000,
					 GPAS_PROT_RW, NULL));
	must("map_alloc", gpas_map_alloc(space, gpas_gpa_at(0x14000), 0x4000,
					 GPAS_PROT_RW, &lazy));
}

static void tour(struct gpas *space, char *own)
{
	char word[6] = "";
	size_t done;

	show_regions(space);
	show_translation(space, 0x10123, GPAS_PROT_READ);
	show_translation(space, 0x18000, GPAS_PROT_WRITE);
	show_translation(space, 0x14000, GPAS_PROT_READ);
	show_translation(space, 0x12000, GPAS_PROT_READ);

	/* What the guest writes is in our own memory, and what we write there
	 * the guest reads. */
	must("write",
	     gpas_write(space, gpas_gpa_at(0x18010), "hello", 5, &done));
	printf("wrote %zu bytes at 0x18010: host memory says \"%s\"\n", done,
	       own + 0x10);

	/* Part of a region becomes read-only: it is split. */
	must("protect",
	     gpas_protect(space, gpas_gpa_at(0x1a000), 0x2000, GPAS_PROT_READ));
	show_translation(space, 0x1a000, GPAS_PROT_READ);
	show_translation(space, 0x1a000, GPAS_PROT_WRITE);
	show_fault(space, 0x1a000, GPAS_PROT_WRITE);

	/* The first touch makes one page present, the second finds it. */
	show_fault(space, 0x15008, GPAS_PROT_WRITE);
	show_fault(space, 0x15010, GPAS_PROT_READ);
	show_fault(space, 0x13000, GPAS_PROT_READ);
	show_translation(space, 0x15008, GPAS_PROT_READ);

	/* Accessors populate by themselves and cross pages. */
	must("write",
	     gpas_write(space, gpas_gpa_at(0x16ffe), "world", 5, NULL));
	must("read", gpas_read(space, gpas_gpa_at(0x16ffe), word, 5, NULL));
	printf("read \"%s\" across a page of lazy memory\n", word);

	must("unmap", gpas_unmap(space, gpas_gpa_at(0x19000), 0x1000));
	show_regions(space);
}

int main(void)
{
	static char own[0x8000] __attribute__((aligned(4096)));
	struct gpas_params params = {
		.base = gpas_gpa_at(0x10000),
		.size = 0x10000,
	};
	struct gpas *space;

	must("create", gpas_create(&params, &space));
	printf("a space of 0x%" PRIx64 " bytes at 0x%" PRIx64 "\n",
	       gpas_size(space), gpas_base(space).value);
	map_all(space, own);
	tour(space, own);
	must("check", gpas_check(space));
	gpas_destroy(space);
	return 0;
}
