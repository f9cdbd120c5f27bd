/* SPDX-License-Identifier: MIT */
/* A reader for flattened device trees, just large enough to walk them. */
#include "guest.h"

#define FDT_MAGIC 0xd00dfeedu

uint32_t be32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 |
	       (uint32_t)bytes[2] << 8 | bytes[3];
}

uint64_t be64(const uint8_t *bytes)
{
	return (uint64_t)be32(bytes) << 32 | be32(bytes + 4);
}

bool fdt_open(const void *fdt, struct fdt_cursor *cursor)
{
	const uint8_t *header = fdt;

	if (be32(header) != FDT_MAGIC) {
		return false;
	}
	*cursor = (struct fdt_cursor){
		.at = header + be32(header + 8),
		.strings = (const char *)header + be32(header + 12),
	};
	return true;
}

static const uint8_t *align4(const uint8_t *at)
{
	return (const uint8_t *)(((uintptr_t)at + 3) & ~(uintptr_t)3);
}

static void read_property(struct fdt_cursor *cursor)
{
	cursor->length = be32(cursor->at);
	cursor->name = cursor->strings + be32(cursor->at + 4);
	cursor->data = cursor->at + 8;
	cursor->at = align4(cursor->data + cursor->length);
}

static void read_node(struct fdt_cursor *cursor)
{
	const uint8_t *at = cursor->at;

	cursor->name = (const char *)at;
	while (*at != '\0') {
		at++;
	}
	cursor->at = align4(at + 1);
	cursor->depth++;
}

enum fdt_token fdt_next(struct fdt_cursor *cursor)
{
	for (;;) {
		uint32_t token = be32(cursor->at);

		cursor->at += 4;
		switch (token) {
		case FDT_BEGIN_NODE:
			read_node(cursor);
			return FDT_BEGIN_NODE;
		case FDT_END_NODE:
			cursor->depth--;
			return FDT_END_NODE;
		case FDT_PROP:
			read_property(cursor);
			return FDT_PROP;
		case FDT_NOP:
			break;
		default:
			return FDT_END;
		}
	}
}
