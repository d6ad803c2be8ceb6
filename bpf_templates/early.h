/* SPDX-License-Identifier: GPL-2.0-only */
/* Drops before netfilter what the early profile allows (bpfilter/compiler/early.py), and nothing
 * else: whatever it does not drop passes on unchanged. Included by the XDP and the TC program.
 *
 * Slots: the first chain of a family is the way of packets for this host, the second one of all
 * others. A walk that ends in raw PREROUTING ends before conntrack and routing, so that what those
 * would do does not matter.
 */
#ifndef EARLY_H
#define EARLY_H

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "changed.h"
#include "config.h"
#include "context.h"
#include "lease.h"
#include "maps.h"
#include "parse.h"
#include "rows.h"
#include "scope.h"
#include "states.h"

#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define NO_ENTRY    (-2) /* -ENOENT */

#define KNOWS_UNTRACKED 4 /* conntrack has no hooks here */

/* struct bpf_ct_opts of net/netfilter/nf_conntrack_bpf.c, as far as all kernels have it. */
struct ct_options {
	__s32 network; /* -1: that of the packet's device */
	__s32 error;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};

#ifdef HOOK_XDP
#define CT_LOOKUP bpf_xdp_ct_lookup
#else
#define CT_LOOKUP bpf_skb_ct_lookup
#endif

struct nf_conn *CT_LOOKUP(context_t *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size,
			  struct ct_options *options, __u32 options_size) __ksym __weak;
void bpf_ct_release(struct nf_conn *entry) __ksym __weak;

struct decision {
	__u32 slot;
	__u32 reason;
	__u32 node;
	__u32 states;
	__u32 final[MAX_STATES];
};

static __always_inline enum reason may_drop(context_t *ctx)
{
	const struct runtime *run = element(&runtime, 0);

	if (!run)
		return REASON_LOOKUP;
	if (config.leased && (!(run->early & RUNTIME_EARLY) || lease_over(run)))
		return REASON_LEASE;
	if (config.generation && generation_differs(ctx, run))
		return REASON_GENERATION;
	return REASON_NONE;
}

static __always_inline int conntrack_used(void)
{
	const struct runtime *run = element(&runtime, 0);

	return !run || run->early & RUNTIME_TRACKED;
}

/* Frames of this device may go to a bridge, a bond, or a VLAN, whose tag XDP does not see. */
static __always_inline int device_shared(context_t *ctx)
{
	struct net_device *device = device_of(ctx);

	if (device->rx_handler)
		return 1;
	return bpf_core_field_exists(device->vlan_info) && device->vlan_info;
}

/* Packet sockets of DHCP see what iptables drops. */
static __always_inline int dhcp(const struct packet *p)
{
	return p->protocol == IPPROTO_UDP &&
	       (p->source_port == DHCP_SERVER || p->source_port == DHCP_CLIENT ||
		p->destination_port == DHCP_SERVER || p->destination_port == DHCP_CLIENT);
}

/* The kernel answers unknown options before netfilter sees them. */
static __always_inline int extended(context_t *ctx, const struct packet *p)
{
	__u8 next;

	if (p->version == 4)
		return 0;
	return LOAD(ctx, (p->network & 15) + offsetof(struct ipv6hdr, nexthdr), &next) ||
	       next != p->protocol;
}

#define LOOK_UP(member, options) \
	CT_LOOKUP(ctx, &tuple, sizeof(tuple.member), options, sizeof(*(options)))

/* A packet without an entry can be NEW or INVALID, and RELATED or UNTRACKED where the tables say
 * so. With one it may be of any state, and even dropping it changes the entry.
 */
static __always_inline enum reason tracked(context_t *ctx, const struct packet *p)
{
	struct ct_options options = {.network = -1, .protocol = p->protocol};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *entry;

	if (!(config.early & EARLY_LOOKUP))
		return REASON_TRACKED;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return REASON_TRACKED;
	if (p->version == 4) {
		tuple.ipv4.saddr = bpf_htonl(p->source[3]);
		tuple.ipv4.daddr = bpf_htonl(p->destination[3]);
		tuple.ipv4.sport = bpf_htons(p->source_port);
		tuple.ipv4.dport = bpf_htons(p->destination_port);
		entry = LOOK_UP(ipv4, &options);
	} else {
		for (__u32 i = 0; i < 4; i++) {
			tuple.ipv6.saddr[i] = bpf_htonl(p->source[i]);
			tuple.ipv6.daddr[i] = bpf_htonl(p->destination[i]);
		}
		tuple.ipv6.sport = bpf_htons(p->source_port);
		tuple.ipv6.dport = bpf_htons(p->destination_port);
		entry = LOOK_UP(ipv6, &options);
	}
	if (entry) {
		bpf_ct_release(entry);
		return REASON_TRACKED;
	}
	return options.error == NO_ENTRY ? REASON_NONE : REASON_TRACKED;
}

/* Rule counters: the walks of all states end in DROP, maybe at several rules. */
static __always_inline void count_drops(const struct decision *d, const __u32 slot, __u32 length)
{
	const __u32 states = config.slots[slot].states;
	const __u32 base = config.slots[slot].counter_base;
	__u32 different = 0;

	for (__u32 i = 1; i < MAX_STATES && i < states; i++)
		different |= d->final[i] ^ d->final[0];
	if (!different) {
		count(&counters, base + 2 * d->final[0], length);
		return;
	}
	for (__u32 i = 0; i < MAX_STATES && i < states; i++) {
		__u32 counted = 0;

		for (__u32 j = 0; j < i; j++)
			counted |= d->final[j] == d->final[i];
		if (!counted)
			count(&counters, base + 2 * d->final[i] + 1, length);
	}
}

static __always_inline enum reason classify(context_t *ctx, const struct packet *p,
					    struct decision *d, const __u32 slot)
{
	const __u32 states = config.slots[slot].states;
	__u32 past_raw = 0;
	int reason;

	d->slot = slot;
	if (!config.slots[slot].used)
		return REASON_NO_SLOT;
	reason = classify_states(ctx, p, slot, d->final, &d->node);
	if (reason)
		return reason;
	d->states = states;
	if (d->node == DEAD)
		return REASON_NO_CODE;
	if ((final_of(slot, d->node) >> 8 & 3) != OUTCOME_DROP)
		return REASON_RULE;
	for (__u32 i = 0; i < MAX_STATES && i < states; i++)
		past_raw |= d->final[i] >= config.slots[slot].raw_entries;
	if (past_raw && conntrack_used()) {
		reason = tracked(ctx, p);
		if (reason)
			return reason;
	}
	if (config.counting)
		count_drops(d, slot, p->length);
	return REASON_NONE;
}

static __always_inline enum reason decide(context_t *ctx, struct packet *p, struct decision *d)
{
	enum reason reason = may_drop(ctx);
	int here;

	if (reason)
		return reason;
	reason = parse(ctx, p);
	if (reason)
		return reason;
	if (device_shared(ctx) || dhcp(p) || extended(ctx, p))
		return REASON_NOT_EARLY;
	if (!in_scope(p))
		return REASON_SCOPE;
	if (concerned_by_change(p))
		return REASON_CHANGED;
	if (config.verify_share && (bpf_get_prandom_u32() & 0xffff) < config.verify_share)
		return REASON_SAMPLED;
	if (config.mode == MODE_LIVE_INPUT)
		here = p->packet_type == PACKET_HOST &&
		       address_type(p, p->destination) == RTN_LOCAL;
	else
		here = !config.forced;
	if (p->version == 4)
		return here ? classify(ctx, p, d, 0) : classify(ctx, p, d, 1);
	return here ? classify(ctx, p, d, 2) : classify(ctx, p, d, 3);
}

static __always_inline void write_record(const struct packet *p, const struct decision *d)
{
	__u32 index = config.trace == TRACE_BY_ID ? p->id : 0;
	struct record *r;

	if (config.trace == TRACE_BY_ID && !p->version)
		return;
	r = bpf_map_lookup_elem(&trace, &index);
	if (!r)
		return;
	r->hits++;
	r->slot = d->slot;
	r->reason = d->reason;
	r->outcome = d->reason ? OUTCOME_PUNT : OUTCOME_DROP;
	r->states = d->states;
	r->code = 0;
	r->node = d->node;
	r->length = p->length;
	r->mark = 0;
	for (__u32 i = 0; i < MAX_STATES; i++)
		r->final[i] = d->final[i];
}

/* Whether this packet is dropped here and now. */
static __always_inline int dropped_early(context_t *ctx)
{
	struct decision d = {};
	struct packet p = {};

	d.reason = decide(ctx, &p, &d);
	if (d.reason)
		count(&punts, d.reason, p.length);
	else
		count(&outcomes, d.slot * OUTCOMES + OUTCOME_DROP, p.length);
	if (config.trace)
		write_record(&p, &d);
	return !d.reason;
}

/* Whether a function is known and surely not among the hooks. */
static __always_inline int lacks_hook(const struct nf_hook_entries *entries, __u64 hook)
{
	const struct nf_hook_entry *entry;
	__u32 number;

	if (!hook)
		return 0;
	if (!entries)
		return 1;
	number = entries->num_hook_entries;
	if (number > HOOK_ENTRIES)
		return 0;
	entry = entries->hooks;
	for (__u32 i = 0; i < HOOK_ENTRIES && i < number; i++, entry++)
		if ((__u64)entry->hook == hook)
			return 0;
	return 1;
}

/* Run by the loader through BPF_PROG_RUN, in the network namespace whose rules are meant. */
static __always_inline void capture_generation(context_t *ctx)
{
	__u32 index = 0;
	struct generation *g = bpf_map_lookup_elem(&observed, &index);
	const struct runtime *run = element(&runtime, 0);
	struct net *net = network_of(ctx);

	if (!g || !run)
		return;
	g->known = 0;
	observe_generation(ctx, g, FAMILY_BOTH, run);
	if (lacks_hook(net->nf.hooks_ipv4[NF_PRE_ROUTING], config.tracking_hook4) &&
	    lacks_hook(net->nf.hooks_ipv6[NF_PRE_ROUTING], config.tracking_hook6))
		g->known |= KNOWS_UNTRACKED;
}

#endif
