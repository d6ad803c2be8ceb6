/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether a packet goes to INPUT or to FORWARD, and by which device it leaves.
 *
 * Only the out-device must be right: a code is obeyed by the chain it was made for alone, so a
 * packet that takes the other chain after all (NAT), or dies before it (a martian source, L2
 * broadcast), is judged as without us. What the helper leaves out is left out here too: mark-based
 * rules, VRF, lightweight tunnels, and paths that are chosen by more than it is told.
 */
#ifndef ROUTE_H
#define ROUTE_H

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "context.h"
#include "maps.h"
#include "parse.h"
#include "rows.h"

#define AF_INET		   2
#define AF_INET6	   10
#define FIB_SKIP_NEIGHBOUR 4 /* BPF_FIB_LOOKUP_SKIP_NEIGH, since 6.3 */

/* The first eight bytes of an IPv6 header. */
struct flow_words {
	__be32 flow;
	__be16 length;
	__u8 next;
	__u8 hops;
};

/* What user space read of a device, for the packet's family; ROUTE_* bits. */
static __always_inline __u32 route_facts(const struct interface *device, const struct packet *p)
{
	return device->known >> (p->version == 4 ? ROUTE_IPV4 : ROUTE_IPV6);
}

/* Whether the kernel picks among several paths by what the helper is told as well: not by the
 * hash that a network card or the sender left (fib_multipath_hash() of net/ipv4/route.c), not by
 * what an ICMP error carries, not by an extension header's number.
 */
static __always_inline int same_path(context_t *ctx, const struct packet *p, __u32 facts,
				     const struct flow_words *first)
{
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return 0;
	if (p->version == 6 && first->next != p->protocol)
		return 0;
	if (facts & ROUTE_BY_PORTS)
		return !ctx->hash;
	return facts & ROUTE_BY_ADDRESSES;
}

/* Fills p->out; returns an enum reason. Not static: checked once, with a stack of its own. */
__noinline int find_route(context_t *ctx, struct packet *p)
{
	struct bpf_fib_lookup fib = {};
	struct flow_words first = {};
	const struct interface *device;
	__u32 index = device_index(ctx);
	long found;

	if (!p)
		return REASON_LOOKUP;
	device = bpf_map_lookup_elem(&interfaces, &index);
	if (!device || !(route_facts(device, p) & ROUTE_FORWARDS))
		return REASON_ROUTE;
	fib.ifindex = index;
	fib.l4_protocol = p->protocol;
	fib.sport = bpf_htons(p->source_port);
	fib.dport = bpf_htons(p->destination_port);
	if (p->version == 4) {
		fib.family = AF_INET;
		fib.tos = p->tos;
		fib.ipv4_src = bpf_htonl(p->source[3]);
		fib.ipv4_dst = bpf_htonl(p->destination[3]);
	} else {
		if (bpf_skb_load_bytes(ctx, p->network, &first, sizeof(first)))
			return REASON_TRUNCATED;
		fib.family = AF_INET6;
		fib.flowinfo = first.flow & bpf_htonl(0x0fffffff);
		for (__u32 i = 0; i < 4; i++) {
			fib.ipv6_src[i] = bpf_htonl(p->source[i]);
			fib.ipv6_dst[i] = bpf_htonl(p->destination[i]);
		}
	}
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), FIB_SKIP_NEIGHBOUR);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_ROUTE;
	p->out = fib.ifindex;
	device = bpf_map_lookup_elem(&interfaces, &p->out);
	if (!device || !device->known)
		return REASON_INTERFACE;
	if (route_facts(device, p) & ROUTE_SEVERAL &&
	    !same_path(ctx, p, route_facts(device, p), &first))
		return REASON_ROUTE;
	return REASON_NONE;
}

static __always_inline int unicast_host(const struct packet *p)
{
	if (p->packet_type != PACKET_HOST)
		return 0;
	if (p->version == 6)
		return p->destination[0] >> 24 != 0xff;
	return p->destination[3] >> 24 != 0;
}

/* 0: INPUT, 1: FORWARD, in *chain. */
static __always_inline enum reason route(context_t *ctx, struct packet *p, __u32 *chain)
{
	__u32 type = address_type(p, p->destination);

	*chain = 0;
	if (type == RTN_LOCAL)
		return REASON_NONE;
	if (!config.slots[p->version == 4 ? 1 : 3].used)
		return REASON_NOT_LOCAL;
	if (type != RTN_UNICAST || !unicast_host(p))
		return REASON_ROUTE;
	if (p->ttl <= 1)
		return REASON_TTL;
	*chain = 1;
	return find_route(ctx, p);
}

#endif
