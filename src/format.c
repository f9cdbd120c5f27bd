/* SPDX-License-Identifier: MIT */
/*
 * The formats: every bit the library puts into a table, beside the place in
 * the manual that defines it. This is the only file in src/ that knows one
 * architecture from another, and apart from the choice for the host it is
 * constant data.
 */
#include "format.h"

#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#define BIT(n) (UINT64_C(1) << (n))

/* Bits [last:first], both inclusive. */
#define BITS(last, first) ((BIT(last) - BIT(first)) + BIT(last))

#define PROT_BIT(prot)	     (1u << (prot))
#define MEMTYPE_BIT(memtype) (1u << (memtype))

/* What every format can say: nothing, R, RW, RX and RWX. */
#define COMMON_PROTS                                           \
	(PROT_BIT(GPAS_PROT_NONE) | PROT_BIT(GPAS_PROT_READ) | \
	 PROT_BIT(GPAS_PROT_RW) | PROT_BIT(GPAS_PROT_RX) |     \
	 PROT_BIT(GPAS_PROT_RWX))

/*
 * Intel EPT: SDM volume 3C, section 29.3.2, "EPT Translation Mechanism".
 *
 * An entry whose bits 2:0 are all clear is not present and its bits 62:0 are
 * ignored, so a parked leaf needs only something that makes it nonzero.
 * Execute-only needs bit 0 of IA32_VMX_EPT_VPID_CAP (appendix A.10); every
 * processor with EPT in use today has it. W without R is a misconfiguration
 * (29.3.3.1). Bit 6, "ignore PAT", stays clear: the guest's own type combines
 * with ours. Accessed and dirty flags are for EPTP bit 6, which stays clear.
 */
#define EPT_READ      BIT(0)		   /* table 29-7, bit 0 */
#define EPT_WRITE     BIT(1)		   /* table 29-7, bit 1 */
#define EPT_EXEC      BIT(2)		   /* table 29-7, bit 2 */
#define EPT_TYPE(n)   ((uint64_t)(n) << 3) /* bits 5:3, 29.3.7.2 */
#define EPT_LARGE     BIT(7)  /* tables 29-3 and 29-5: maps a page */
#define EPT_PARKED    BIT(11) /* ignored, also in a present leaf */
#define EPT_ADDR_MASK BITS(51, 12)

#define EPT(label, bits, depth)                                               \
	{                                                                     \
		.name = label, .levels = depth, .gpa_bits = bits,             \
		.host_bits = 52, .root_pages = 1, .addr_mask = EPT_ADDR_MASK, \
		.table = { EPT_LARGE | EPT_READ, EPT_READ },                  \
		.table_bits = EPT_READ | EPT_WRITE | EPT_EXEC,                \
		.perms = { { EPT_READ, EPT_READ },                            \
			   { EPT_WRITE, EPT_WRITE },                          \
			   { EPT_EXEC, EPT_EXEC } },                          \
		.parked = EPT_PARKED,                                         \
		.leaf_bits = { 0, EPT_LARGE, EPT_LARGE }, .memtype_shift = 3, \
		.memtype_mask = 7,                                            \
		.memtype_bits = { [GPAS_MEM_WRITE_BACK] = EPT_TYPE(6),        \
				  [GPAS_MEM_WRITE_THROUGH] = EPT_TYPE(4),     \
				  [GPAS_MEM_WRITE_COMBINING] = EPT_TYPE(1),   \
				  [GPAS_MEM_WRITE_PROTECTED] = EPT_TYPE(5),   \
				  [GPAS_MEM_UNCACHED] = EPT_TYPE(0) },        \
		.memtype_decode = { [6] = GPAS_MEM_WRITE_BACK,                \
				    [4] = GPAS_MEM_WRITE_THROUGH,             \
				    [1] = GPAS_MEM_WRITE_COMBINING,           \
				    [5] = GPAS_MEM_WRITE_PROTECTED,           \
				    [0] = GPAS_MEM_UNCACHED },                \
		.prots = COMMON_PROTS | PROT_BIT(GPAS_PROT_EXEC),             \
		.memtypes = 0x1f,                                             \
	}

/*
 * AMD nested paging: APM volume 2, section 5.3 for the long-mode entries and
 * 15.25 for what nesting changes.
 *
 * A nested walk is a user access (15.25.5), so U/S is always set. Accessed and
 * dirty are set beforehand so that the walker never has to write (5.4.2). With
 * P clear all other bits are the software's (5.4.1). The memory type is the
 * PAT entry that PAT, PCD and PWT select, with the PAT's reset value (7.8.1):
 * 0 is WB, 1 is WT, 3 is UC; write-combining and write-protect are not in it.
 */
#define NPT_PRESENT   BIT(0)  /* 5.4.1 "Present": here also read */
#define NPT_WRITE     BIT(1)  /* 5.4.1 "Read/Write" */
#define NPT_USER      BIT(2)  /* 5.4.1 "User/Supervisor" */
#define NPT_PWT	      BIT(3)  /* 5.4.1 "Page-Level Writethrough" */
#define NPT_PCD	      BIT(4)  /* 5.4.1 "Page-Level Cache Disable" */
#define NPT_ACCESSED  BIT(5)  /* 5.4.1 "Accessed" */
#define NPT_DIRTY     BIT(6)  /* 5.4.1 "Dirty" */
#define NPT_LARGE     BIT(7)  /* 5.4.1 "Page Size"; in a 4 KiB leaf, PAT */
#define NPT_PARKED    BIT(11) /* 5.4.1 "Available to Software" */
#define NPT_NX	      BIT(63) /* 5.6.1 "No Execute" */
#define NPT_ADDR_MASK BITS(51, 12)

/*
 * arm64 stage 2: Arm ARM DDI 0487, D8.3 "Translation table descriptor formats",
 * D8.4 "Memory access control", D8.5 "Hardware updates to the translation
 * tables", D8.6 "Memory region attributes"; granule 4 KiB, no FEAT_S2FWB.
 *
 * A descriptor with bit 0 clear is invalid and bits 63:1 are the software's.
 * An instruction fetch needs read permission, so X alone cannot be said; S2AP
 * has a write-only encoding. With FEAT_XNX, XN[0] (bit 53) clear means that
 * XN[1] speaks for both exception levels.
 */
#define S2_VALID     BIT(0) /* D8.3, descriptor type */
#define S2_NOT_BLOCK BIT(1) /* D8.3, type: table, or last level's page */
#define S2_ATTR(n)   ((uint64_t)(n) << 2) /* MemAttr[3:0], D8.6 */
#define S2_READ	     BIT(6)		  /* S2AP[0], D8.4 */
#define S2_WRITE     BIT(7)		  /* S2AP[1], D8.4 */
#define S2_INNER     (UINT64_C(3) << 8)	  /* SH[1:0] inner shareable, D8.6 */
#define S2_ACCESSED  BIT(10) /* AF, D8.5: never an access flag fault */
#define S2_XN	     BIT(54) /* XN[1], D8.4 */
#define S2_PARKED    BIT(55) /* 58:55 are for software, D8.3 */
#define S2_ADDR_MASK BITS(47, 12)
#define S2_NORMAL_WB (S2_ATTR(0xf) | S2_INNER) /* outer, inner write-back */
#define S2_NORMAL_WT (S2_ATTR(0xa) | S2_INNER) /* outer, inner through */
#define S2_NORMAL_NC (S2_ATTR(0x5) | S2_INNER) /* outer, inner uncached */
#define S2_DEVICE    S2_ATTR(0x1) /* Device-nGnRE; always outer shareable */

#define ARM64_S2(label, bits, depth, pages)                                    \
	{                                                                      \
		.name = label, .levels = depth, .gpa_bits = bits,              \
		.host_bits = 48, .root_pages = pages,                          \
		.addr_mask = S2_ADDR_MASK,                                     \
		.table = { S2_VALID | S2_NOT_BLOCK, S2_VALID | S2_NOT_BLOCK }, \
		.table_bits = S2_VALID | S2_NOT_BLOCK,                         \
		.perms = { { S2_READ, S2_READ },                               \
			   { S2_WRITE, S2_WRITE },                             \
			   { S2_XN, 0 } },                                     \
		.valid = S2_VALID, .parked = S2_PARKED, .fixed = S2_ACCESSED,  \
		.leaf_bits = { S2_NOT_BLOCK, 0, 0 }, .memtype_shift = 2,       \
		.memtype_mask = 0xf,                                           \
		.memtype_bits = { [GPAS_MEM_WRITE_BACK] = S2_NORMAL_WB,        \
				  [GPAS_MEM_WRITE_THROUGH] = S2_NORMAL_WT,     \
				  [GPAS_MEM_WRITE_COMBINING] = S2_NORMAL_NC,   \
				  [GPAS_MEM_UNCACHED] = S2_DEVICE },           \
		.memtype_decode = { [0xf] = GPAS_MEM_WRITE_BACK,               \
				    [0xa] = GPAS_MEM_WRITE_THROUGH,            \
				    [0x5] = GPAS_MEM_WRITE_COMBINING,          \
				    [0x1] = GPAS_MEM_UNCACHED },               \
		.prots = COMMON_PROTS | PROT_BIT(GPAS_PROT_WRITE),             \
		.memtypes = MEMTYPE_BIT(GPAS_MEM_WRITE_BACK) |                 \
			    MEMTYPE_BIT(GPAS_MEM_WRITE_THROUGH) |              \
			    MEMTYPE_BIT(GPAS_MEM_WRITE_COMBINING) |            \
			    MEMTYPE_BIT(GPAS_MEM_UNCACHED),                    \
	}

/*
 * RISC-V G-stage: privileged architecture, chapter "Hypervisor", section
 * "Guest Physical Address Translation": Sv39, Sv48 and Sv57 with two more bits
 * of address, hence a root of four pages. Entries are those of Sv39 (section
 * "Sv39: Addressing and Memory Protection").
 *
 * A G-stage walk is a user access, so U is set in leaves. A and D are set so
 * that neither the hardware writes nor faults for them (Svade). W without R is
 * reserved. With V clear all other bits are the software's. A pointer to a
 * table has R, W and X clear, and U, A, D and PBMT must be zero.
 */
#define SV_VALID     BIT(0)	  /* V */
#define SV_READ	     BIT(1)	  /* R */
#define SV_WRITE     BIT(2)	  /* W */
#define SV_EXEC	     BIT(3)	  /* X */
#define SV_USER	     BIT(4)	  /* U */
#define SV_ACCESSED  BIT(6)	  /* A */
#define SV_DIRTY     BIT(7)	  /* D */
#define SV_PARKED    BIT(8)	  /* RSW, reserved for software */
#define SV_ADDR_MASK BITS(53, 10) /* PPN: the address shifted right by 2 */
#define SV_PBMT(n)   ((uint64_t)(n) << 61) /* Svpbmt: 0 PMA, 1 NC, 2 IO */

#define SV_X4(label, bits, depth)                                            \
	{                                                                    \
		.name = label, .levels = depth, .gpa_bits = bits,            \
		.host_bits = 56, .root_pages = 4, .addr_mask = SV_ADDR_MASK, \
		.addr_shift = 2,                                             \
		.table = { SV_VALID | SV_READ | SV_WRITE | SV_EXEC,          \
			   SV_VALID },                                       \
		.table_bits = SV_VALID,                                      \
		.perms = { { SV_READ, SV_READ },                             \
			   { SV_WRITE, SV_WRITE },                           \
			   { SV_EXEC, SV_EXEC } },                           \
		.valid = SV_VALID, .parked = SV_PARKED,                      \
		.fixed = SV_USER | SV_ACCESSED | SV_DIRTY,                   \
		.memtype_shift = 61, .memtype_mask = 3,                      \
		.memtype_bits = { [GPAS_MEM_WRITE_BACK] = SV_PBMT(0),        \
				  [GPAS_MEM_WRITE_COMBINING] = SV_PBMT(1),   \
				  [GPAS_MEM_UNCACHED] = SV_PBMT(2) },        \
		.memtype_decode = { [0] = GPAS_MEM_WRITE_BACK,               \
				    [1] = GPAS_MEM_WRITE_COMBINING,          \
				    [2] = GPAS_MEM_UNCACHED },               \
		.prots = COMMON_PROTS | PROT_BIT(GPAS_PROT_EXEC),            \
		.memtypes = MEMTYPE_BIT(GPAS_MEM_WRITE_BACK) |               \
			    MEMTYPE_BIT(GPAS_MEM_WRITE_COMBINING) |          \
			    MEMTYPE_BIT(GPAS_MEM_UNCACHED),                  \
	}

static const struct gpas_format formats[GPAS_FORMAT_COUNT] = {
	[GPAS_FORMAT_EPT_4] = EPT("ept-4", 48, 4),
	[GPAS_FORMAT_EPT_5] = EPT("ept-5", 57, 5),
	[GPAS_FORMAT_NPT_4] = {
		.name = "npt-4", .levels = 4, .gpa_bits = 48,
		.host_bits = 52, .root_pages = 1,
		.addr_mask = NPT_ADDR_MASK,
		.table = { NPT_LARGE | NPT_PRESENT, NPT_PRESENT },
		.table_bits = NPT_PRESENT | NPT_WRITE | NPT_USER |
			      NPT_ACCESSED,
		.perms = { { NPT_PRESENT, NPT_PRESENT },
			   { NPT_WRITE, NPT_WRITE },
			   { NPT_NX, 0 } },
		.parked = NPT_PARKED,
		.fixed = NPT_USER | NPT_ACCESSED | NPT_DIRTY,
		.leaf_bits = { 0, NPT_LARGE, NPT_LARGE },
		.memtype_shift = 3, .memtype_mask = 3,
		.memtype_bits = { [GPAS_MEM_WRITE_BACK] = 0,
				  [GPAS_MEM_WRITE_THROUGH] = NPT_PWT,
				  [GPAS_MEM_UNCACHED] = NPT_PCD | NPT_PWT },
		.memtype_decode = { [0] = GPAS_MEM_WRITE_BACK,
				    [1] = GPAS_MEM_WRITE_THROUGH,
				    [3] = GPAS_MEM_UNCACHED },
		.prots = COMMON_PROTS,
		.memtypes = MEMTYPE_BIT(GPAS_MEM_WRITE_BACK) |
			    MEMTYPE_BIT(GPAS_MEM_WRITE_THROUGH) |
			    MEMTYPE_BIT(GPAS_MEM_UNCACHED),
	},
	[GPAS_FORMAT_ARM64_S2_48] = ARM64_S2("arm64-s2-48", 48, 4, 1),
	[GPAS_FORMAT_ARM64_S2_40] = ARM64_S2("arm64-s2-40", 40, 3, 2),
	[GPAS_FORMAT_SV39_X4] = SV_X4("sv39x4", 41, 3),
	[GPAS_FORMAT_SV48_X4] = SV_X4("sv48x4", 50, 4),
	[GPAS_FORMAT_SV57_X4] = SV_X4("sv57x4", 59, 5),
};

#if defined(__x86_64__) || defined(__i386__)
static enum gpas_format_id host_format(void)
{
	unsigned eax, ebx, ecx, edx;
	char vendor[12];

	if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) {
		return GPAS_FORMAT_EPT_4;
	}
	memcpy(vendor, &ebx, 4);
	memcpy(vendor + 4, &edx, 4);
	memcpy(vendor + 8, &ecx, 4);
	if (memcmp(vendor, "AuthenticAMD", 12) == 0 ||
	    memcmp(vendor, "HygonGenuine", 12) == 0) {
		return GPAS_FORMAT_NPT_4;
	}
	return GPAS_FORMAT_EPT_4;
}
#elif defined(__aarch64__)
static enum gpas_format_id host_format(void)
{
	return GPAS_FORMAT_ARM64_S2_48;
}
#else
static enum gpas_format_id host_format(void)
{
	return GPAS_FORMAT_SV48_X4;
}
#endif

const struct gpas_format *gpas_format_get(enum gpas_format_id id)
{
	unsigned number = (unsigned)id;

	if (number >= GPAS_FORMAT_COUNT) {
		return NULL;
	}
	return &formats[id == GPAS_FORMAT_HOST ? host_format() : id];
}

const struct gpas_format *gpas_format_find(const char *name)
{
	for (unsigned i = 1; i < GPAS_FORMAT_COUNT; i++) {
		if (strcmp(formats[i].name, name) == 0) {
			return &formats[i];
		}
	}
	return NULL;
}

const char *gpas_format_name(const struct gpas_format *format)
{
	return format->name;
}

unsigned gpas_format_gpa_bits(const struct gpas_format *format)
{
	return format->gpa_bits;
}

unsigned gpas_format_levels(const struct gpas_format *format)
{
	return format->levels;
}
