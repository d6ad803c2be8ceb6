/* SPDX-License-Identifier: GPL-2.0-only */
/* The canary stage: which packets may be decided at all. Whatever it does not narrow is pruned. */
#ifndef SCOPE_H
#define SCOPE_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "parse.h"

#define MIX 0x9e3779b97f4a7c15ull /* 2^64 divided by the golden ratio */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct address_key));
	__uint(value_size, 4);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} scope SEC(".maps"); /* networks whose packets may be decided */

static __always_inline int from_scope(const struct packet *p)
{
	struct address_key key = {.prefix_length = 32 + 128, .family = bpf_htonl(6)};

	if (p->version == 4) {
		key.prefix_length = 32 + 32;
		key.family = bpf_htonl(4);
		key.words[0] = bpf_htonl(p->source[3]);
	} else {
		for (__u32 i = 0; i < 4; i++)
			key.words[i] = bpf_htonl(p->source[i]);
	}
	return bpf_map_lookup_elem(&scope, &key) != 0;
}

static __always_inline __u64 mixed(__u64 value)
{
	value *= MIX;
	value ^= value >> 32;
	value *= MIX;
	return value ^ value >> 29;
}

static __always_inline __u64 side(const __u32 *address, __u16 port)
{
	__u64 high = (__u64)address[0] << 32 | address[1];
	__u64 low = (__u64)address[2] << 32 | address[3];

	return mixed(mixed(high + port) ^ low);
}

/* Sixteen bits that both directions of a flow share: the sum of its sides does not know which is
 * which. Errors of ICMP are flows of their own.
 */
static __always_inline __u32 flow_number(const struct packet *p)
{
	__u64 sides = side(p->source, p->source_port) + side(p->destination, p->destination_port);

	return mixed(sides + p->protocol) >> 48;
}

static __always_inline int in_scope(const struct packet *p)
{
	if (config.scope_sources && !from_scope(p))
		return 0;
	return !config.scope_share || flow_number(p) < config.scope_share;
}

#endif
