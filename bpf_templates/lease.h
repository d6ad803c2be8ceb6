/* SPDX-License-Identifier: GPL-2.0-only */
/* May the program decide at all: the daemon vouches for it, the kernel's rules are the plan's. */
#ifndef LEASE_H
#define LEASE_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "kernel_types.h"
#include "maps.h"

#define LONGEST_LEASE 60000000000ull
#define NF_LOCAL_IN   1
#define HOOK_ENTRIES  8 /* of LOCAL_IN that are looked at */

/* A value further ahead than the longest lease is a mistake (another time namespace): over. */
static __always_inline int lease_over(const struct runtime *run)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	return now >= run->valid_until || run->valid_until - now > LONGEST_LEASE;
}

#define KNOWS_NFT    1
#define KNOWS_LEGACY 2

/* Changes with every replacement of a legacy table on LOCAL_IN: iptables allocates a new
 * xt_table_info each time. Addresses may be used again, so the sizes take part.
 *
 * The tables' types may live in a module's BTF, so their fields are read by address: a cast would
 * need a type of vmlinux. Where there are no such types the number of hooks stands for them, which
 * at least shows a table that appears.
 */
static __always_inline __u64 legacy_generation(const struct nf_hook_entries *entries, __u64 hook)
{
	const struct nf_hook_entry *entry;
	const struct xt_table_info *info;
	const struct xt_table *table;
	__u64 mixed = 1, sizes;
	__u32 number;

	if (!entries)
		return 0;
	number = entries->num_hook_entries;
	if (!hook || !bpf_core_field_exists(struct xt_table, private))
		return number;
	entry = entries->hooks;
	for (__u32 i = 0; i < HOOK_ENTRIES && i < number; i++, entry++) {
		if ((__u64)entry->hook != hook)
			continue;
		table = entry->priv;
		info = BPF_CORE_READ(table, private);
		/* `size` and `number`, the first two members. */
		if (bpf_core_read(&sizes, sizeof(sizes), &info->size))
			return 0;
		mixed = (mixed + (__u64)info) * 0x9e3779b97f4a7c15ull;
		mixed = (mixed ^ sizes) * 0x9e3779b97f4a7c15ull + i;
	}
	return mixed;
}

/* What the kernel itself says of the rules in this packet's network namespace. */
static __always_inline void observe_generation(struct __sk_buff *skb, struct generation *g)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);
	struct net *net = kernel->dev->nd_net.net;

	if (bpf_core_field_exists(net->nft.base_seq)) {
		g->nft = net->nft.base_seq;
		g->known |= KNOWS_NFT;
	}
	if (config.legacy_hook4 && bpf_core_field_exists(struct xt_table, private))
		g->known |= KNOWS_LEGACY;
	g->legacy[0] = legacy_generation(net->nf.hooks_ipv4[NF_LOCAL_IN], config.legacy_hook4);
	g->legacy[1] = legacy_generation(net->nf.hooks_ipv6[NF_LOCAL_IN], config.legacy_hook6);
}

static __always_inline int generation_differs(struct __sk_buff *skb, const struct runtime *run)
{
	struct generation g = {};

	observe_generation(skb, &g);
	return g.nft != run->nft || g.legacy[0] != run->legacy[0] || g.legacy[1] != run->legacy[1];
}

#endif
