/* SPDX-License-Identifier: MIT */
/*
 * A clock chip that can only be read (Motorola MC146818A): a kernel that asks
 * for the date before it knows that it has a better clock would wait long for
 * one that is not there. Ports 0x70, the register's number, and 0x71.
 */
#include "pc.h"

#include <time.h>

#define RTC_PORT	 0x70
#define RTC_INDEX_MASK	 0x7f
#define STATUS_A_DIVIDER 0x26 /* 32.768 kHz; no update in progress */
#define STATUS_B_24H	 0x02 /* 24 hours, BCD */
#define STATUS_D_VALID	 0x80

static uint8_t bcd(int value)
{
	return (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

static uint8_t read_register(uint8_t index)
{
	time_t now = time(NULL);
	struct tm date;

	gmtime_r(&now, &date);
	switch (index) {
	case 0x00:
		return bcd(date.tm_sec);
	case 0x02:
		return bcd(date.tm_min);
	case 0x04:
		return bcd(date.tm_hour);
	case 0x06:
		return bcd(date.tm_wday + 1);
	case 0x07:
		return bcd(date.tm_mday);
	case 0x08:
		return bcd(date.tm_mon + 1);
	case 0x09:
		return bcd(date.tm_year);
	case 0x0a:
		return STATUS_A_DIVIDER;
	case 0x0b:
		return STATUS_B_24H;
	case 0x0d:
		return STATUS_D_VALID;
	case 0x32: /* the century, by custom */
		return bcd(date.tm_year / 100 + 19);
	default:
		return 0;
	}
}

static int rtc_access(void *ctx, struct gpas_device_access *access)
{
	struct pc *pc = ctx;

	if (!access->write) {
		access->value = access->offset == 0
					? UINT8_MAX
					: read_register(pc->rtc_index);
	} else if (access->offset == 0) {
		pc->rtc_index = access->value & RTC_INDEX_MASK;
	}
	return 0;
}

int rtc_add(struct vm *vm)
{
	const struct gpas_device device = {
		.name = "clock",
		.widths = GPAS_WIDTH_1,
		.ctx = vm->pc,
		.access = rtc_access,
	};

	return gpas_add_device(vm->space, GPAS_ADDRESS_PORT, RTC_PORT, 2,
			       &device);
}
