/* SPDX-License-Identifier: GPL-2.0-only */
/* What a program is given at its hook, behind one set of names: TC unless HOOK_XDP or
 * HOOK_NETFILTER is defined. Offsets count from the first byte that the hook shows: the Ethernet
 * header in TC and XDP, the network header in netfilter.
 */
#ifndef CONTEXT_H
#define CONTEXT_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "kernel_types.h"
#include "maps.h"

/* Copies *to from the linear part, or through the helper where a driver left it in fragments.
 * A macro, so that the type's alignment is known: clang would copy unaligned bytes one by one.
 */
#define LOAD_DIRECT(ctx, offset, to, helper)                                      \
	({                                                                        \
		const typeof(*(to)) *from = (void *)(long)(ctx)->data + (offset); \
		int failed = 0;                                                   \
                                                                                  \
		if ((void *)(from + 1) <= (void *)(long)(ctx)->data_end)          \
			*(to) = *from;                                            \
		else                                                              \
			failed = helper(ctx, offset, to, sizeof(*(to))) != 0;     \
		failed;                                                           \
	})

#if defined(HOOK_XDP)

typedef struct xdp_md context_t;

#define LOAD(ctx, offset, to) LOAD_DIRECT(ctx, offset, to, bpf_xdp_load_bytes)

static __always_inline __u32 frame_bytes(context_t *ctx)
{
	return bpf_xdp_get_buff_len(ctx);
}

static __always_inline __u32 network_offset(context_t *ctx)
{
	return ETH_HLEN;
}

static __always_inline __be16 ether_protocol(context_t *ctx)
{
	struct ethhdr header;

	return LOAD(ctx, 0, &header) ? 0 : header.h_proto;
}

static __always_inline int vlan_tagged(context_t *ctx)
{
	return 0;
}

static __always_inline __u32 device_index(context_t *ctx)
{
	return ctx->ingress_ifindex;
}

static __always_inline struct net_device *device_of(context_t *ctx)
{
	struct xdp_buff *kernel = bpf_cast_to_kern_ctx(ctx);

	return kernel->rxq->dev;
}

/* As eth_type_trans() decides it. The device's address is read as a structure of the kernel's:
 * older verifiers take a pointer to bytes for a number, which cannot be followed.
 */
static __always_inline __u32 packet_type(context_t *ctx)
{
	const struct ethhdr *device =
		bpf_rdonly_cast(device_of(ctx)->dev_addr, bpf_core_type_id_kernel(struct ethhdr));
	const unsigned char *own = device->h_dest;
	struct ethhdr header;

	if (LOAD(ctx, 0, &header))
		return PACKET_OTHERHOST;
	if (header.h_dest[0] & 1) {
		for (__u32 i = 0; i < ETH_ALEN; i++)
			if (header.h_dest[i] != 0xff)
				return PACKET_MULTICAST;
		return PACKET_BROADCAST;
	}
	for (__u32 i = 0; i < ETH_ALEN; i++)
		if (header.h_dest[i] != own[i])
			return PACKET_OTHERHOST;
	return PACKET_HOST;
}

#elif defined(HOOK_NETFILTER)

#define NFPROTO_IPV6 10

/* No typedef: CO-RE looks for the kernel's type by the name that an access was made with. */
#define context_t    struct bpf_nf_ctx

/* The packet may lie in fragments beyond the linear part; what does is not read. */
#define LOAD(ctx, offset, to)                                                              \
	({                                                                                 \
		struct sk_buff *skb = (ctx)->skb;                                          \
		__u32 linear = skb->len - skb->data_len;                                   \
                                                                                           \
		(offset) + sizeof(*(to)) > linear ||                                       \
			bpf_probe_read_kernel(to, sizeof(*(to)),                           \
					      skb->head + skb->network_header + (offset)); \
	})

static __always_inline __u32 frame_bytes(context_t *ctx)
{
	return ctx->skb->len;
}

static __always_inline __u32 network_offset(context_t *ctx)
{
	return 0;
}

static __always_inline __be16 ether_protocol(context_t *ctx)
{
	return ctx->state->pf == NFPROTO_IPV6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
}

static __always_inline int vlan_tagged(context_t *ctx)
{
	return 0;
}

static __always_inline struct net_device *device_of(context_t *ctx)
{
	return ctx->skb->dev;
}

static __always_inline __u32 device_index(context_t *ctx)
{
	return ctx->skb->dev->ifindex;
}

static __always_inline __u32 packet_type(context_t *ctx)
{
	return PACKET_HOST;
}

#else

typedef struct __sk_buff context_t;

#define LOAD(ctx, offset, to) LOAD_DIRECT(ctx, offset, to, bpf_skb_load_bytes)

static __always_inline __u32 frame_bytes(context_t *ctx)
{
	return ctx->len;
}

/* 14, or 0 for what is shown without its Ethernet header: looped back multicast on any device,
 * layer 3 devices, and what generic XDP copied (since 6.9 the copy's mac_len is 0).
 */
static __always_inline __u32 network_offset(context_t *ctx)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(ctx);

	return (__u16)(kernel->network_header - (kernel->data - kernel->head));
}

static __always_inline __be16 ether_protocol(context_t *ctx)
{
	return ctx->protocol;
}

static __always_inline int vlan_tagged(context_t *ctx)
{
	return ctx->vlan_present;
}

static __always_inline __u32 device_index(context_t *ctx)
{
	return ctx->ifindex;
}

static __always_inline struct net_device *device_of(context_t *ctx)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(ctx);

	return kernel->dev;
}

/* BPF_PROG_RUN receives on `lo`, whose broadcast address is not Ethernet's. */
static __always_inline __u32 packet_type(context_t *ctx)
{
	struct ethhdr header;
	__u32 all = 0xff;

	if (config.mode == MODE_EVAL && !LOAD(ctx, 0, &header)) {
		for (__u32 i = 0; i < ETH_ALEN; i++)
			all &= header.h_dest[i];
		if (all == 0xff)
			return PACKET_BROADCAST;
	}
	return ctx->pkt_type;
}

#endif

#ifdef HOOK_NETFILTER

/* A packet made here has no device yet. */
static __always_inline struct net *network_of(context_t *ctx)
{
	return ctx->state->net;
}

/* The coarse clock is not for programs at this hook. */
static __always_inline __u64 clock_now(void)
{
	return bpf_ktime_get_ns();
}

#else

static __always_inline struct net *network_of(context_t *ctx)
{
	return device_of(ctx)->nd_net.net;
}

static __always_inline __u64 clock_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

#endif

#endif
