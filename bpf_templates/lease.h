/* SPDX-License-Identifier: GPL-2.0-only */
/* May the program decide at all: the daemon vouches for it, the kernel's rules are the plan's. */
#ifndef LEASE_H
#define LEASE_H

#include <linux/if_ether.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "context.h"
#include "kernel_types.h"
#include "maps.h"

#define LONGEST_LEASE  60000000000ull
#define NF_PRE_ROUTING 0
#define NF_LOCAL_IN    1
#define HOOK_ENTRIES   32 /* of LOCAL_IN that are looked at */

/* A value further ahead than the longest lease is a mistake (another time namespace): over. The
 * coarse clock moves once per tick, so a lease that was good at this tick still is.
 */
static __always_inline int lease_over(const struct runtime *run)
{
	const __u64 until = *(const volatile __u64 *)&run->valid_until;
	const __u64 vouched = bpf_jiffies64() << 32 | (__u32)until | 1;
	__u64 now;

	if (until && run->vouched == vouched)
		return 0;
	now = clock_now();
	if (now >= until || until - now > LONGEST_LEASE)
		return 1;
	((struct runtime *)run)->vouched = vouched;
	return 0;
}

enum which {
	FAMILY_BOTH,
	FAMILY_IPV4,
	FAMILY_IPV6,
};

#define KNOWS_NFT    1
#define KNOWS_LEGACY 2

struct table_state {
	__u64 address; /* of its xt_table_info, but for a constant */
	__u64 sizes;
};

/* Where x_tables is built in: plain loads. The difference to a fixed address, that of `runtime`,
 * stands for the pointer, for the verifier lets pointers be subtracted, not mixed. Programs that
 * share that map agree.
 */
static __always_inline int built_in_table(void *table_address, struct table_state *state,
					  const struct runtime *run)
{
	const struct xt_table *table = bpf_rdonly_cast(table_address, config.table_type);
	const struct xt_table_info *info = table->private;
	__u64 difference = (__u64)info - (__u64)run;

	barrier_var(difference); /* or clang adds the pointer to a number first */
	state->address = difference;
	state->sizes = (__u64)info->number << 32 | info->size;
	return 0;
}

/* Where it is a module its types are not vmlinux's, so a cast has no type to name. */
static __always_inline int module_table(void *table_address, struct table_state *state)
{
	const struct xt_table *table = table_address;
	const struct xt_table_info *info = BPF_CORE_READ(table, private);

	state->address = (__u64)info;
	/* `size` and `number`, the first two members. */
	return bpf_core_read(&state->sizes, sizeof(state->sizes), &info->size);
}

/* Changes with every replacement of a legacy table on LOCAL_IN: iptables allocates a new
 * xt_table_info each time. Addresses may be used again, so the sizes take part. Where the kernel
 * hides the tables the number of hooks stands for them: it shows at least a table that appears.
 */
static __always_inline __u64 legacy_generation(const struct nf_hook_entries *entries, __u64 hook,
					       const struct runtime *run)
{
	const struct nf_hook_entry *entry;
	struct table_state state;
	__u64 mixed;
	__u32 number;
	int failed;

	if (!entries)
		return 0;
	number = entries->num_hook_entries;
	if (!hook || !bpf_core_field_exists(struct xt_table, private))
		return number;
	mixed = number; /* also shows nat and conntrack, which come and go as hooks of their own */
	entry = entries->hooks;
	for (__u32 i = 0; i < HOOK_ENTRIES && i < number; i++, entry++) {
		if ((__u64)entry->hook != hook)
			continue;
		failed = config.table_type ? built_in_table(entry->priv, &state, run)
					   : module_table(entry->priv, &state);
		if (failed)
			return 0;
		mixed = (mixed + state.address) * 0x9e3779b97f4a7c15ull;
		mixed = (mixed ^ state.sizes) * 0x9e3779b97f4a7c15ull + i;
	}
	return mixed;
}

/* What the kernel itself says of the rules in a network namespace. */
static __always_inline void observe_network(struct net *net, struct generation *g,
					    const enum which which, const struct runtime *run)
{
	if (bpf_core_field_exists(net->nft.base_seq)) {
		g->nft = net->nft.base_seq;
		g->known |= KNOWS_NFT;
	}
	if (config.legacy_hook4 && bpf_core_field_exists(struct xt_table, private))
		g->known |= KNOWS_LEGACY;
	/* Of the other family's tables only when it is asked for: they have no say in this packet.
	 */
	if (which != FAMILY_IPV6)
		g->legacy[0] = legacy_generation(net->nf.hooks_ipv4[NF_LOCAL_IN],
						 config.legacy_hook4, run);
	if (which != FAMILY_IPV4)
		g->legacy[1] = legacy_generation(net->nf.hooks_ipv6[NF_LOCAL_IN],
						 config.legacy_hook6, run);
	/* raw is not on LOCAL_IN. */
	if (config.raw_tables && which != FAMILY_IPV6)
		g->legacy[0] = g->legacy[0] * 0x9e3779b97f4a7c15ull +
			       legacy_generation(net->nf.hooks_ipv4[NF_PRE_ROUTING],
						 config.legacy_hook4, run);
	if (config.raw_tables && which != FAMILY_IPV4)
		g->legacy[1] = g->legacy[1] * 0x9e3779b97f4a7c15ull +
			       legacy_generation(net->nf.hooks_ipv6[NF_PRE_ROUTING],
						 config.legacy_hook6, run);
}

static __always_inline void observe_generation(context_t *ctx, struct generation *g,
					       const enum which which, const struct runtime *run)
{
	observe_network(network_of(ctx), g, which, run);
}

/* Whether the rules of a network namespace are not those that the daemon vouched for. */
static __always_inline int network_differs(struct net *net, int ipv6, const struct runtime *run)
{
	struct generation g = {};

	if (ipv6) {
		observe_network(net, &g, FAMILY_IPV6, run);
		return g.nft != run->nft || g.legacy[1] != run->legacy[1];
	}
	observe_network(net, &g, FAMILY_IPV4, run);
	return g.nft != run->nft || g.legacy[0] != run->legacy[0];
}

static __always_inline int generation_differs(context_t *ctx, const struct runtime *run)
{
	return network_differs(network_of(ctx), ether_protocol(ctx) == bpf_htons(ETH_P_IPV6), run);
}

/* May the program speak at all; checked before the packet is looked at. */
static __always_inline enum reason check_right(context_t *ctx)
{
	const struct runtime *run;

	if (!config.leased && !config.generation)
		return REASON_NONE;
	run = element(&runtime, 0);
	if (!run)
		return REASON_LOOKUP;
	if (config.leased && lease_over(run))
		return REASON_LEASE;
	if (config.generation && generation_differs(ctx, run))
		return REASON_GENERATION;
	return REASON_NONE;
}

#endif
