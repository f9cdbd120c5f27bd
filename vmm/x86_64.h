/* SPDX-License-Identifier: MIT */
/* What the files about the processor share. */
#ifndef VMM_X86_64_H
#define VMM_X86_64_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

/* Types of segments (SDM 3.4.5.1, 3.5): data RW, code RX, busy 64-bit TSS. */
#define TYPE_DATA 3
#define TYPE_CODE 11
#define TYPE_TSS  11

/* All of memory, at privilege level 0. @wide: 64-bit, if it is code. */
struct kvm_segment x86_segment(uint16_t selector, uint8_t type, bool wide);

#endif
