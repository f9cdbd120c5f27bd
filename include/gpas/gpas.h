/* SPDX-License-Identifier: MIT */
/* Everything libgpas offers. */
#ifndef GPAS_GPAS_H
#define GPAS_GPAS_H

#include <gpas/addr.h>
#include <gpas/device.h>
#include <gpas/kvm.h>
#include <gpas/memory.h>
#include <gpas/pgtable.h>
#include <gpas/space.h>

#endif
