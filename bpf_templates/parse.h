/* SPDX-License-Identifier: GPL-2.0-only */
/* From a frame to the fields that rules can test, as the netfilter hooks will see them.
 * Every length is bounded by the IP header's own, never by the frame's: padding is not payload.
 */
#ifndef PARSE_H
#define PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "context.h"
#include "maps.h"

#define IPV4_FRAGMENT	      0x3fff /* more fragments, or an offset */
#define MAX_EXTENSIONS	      4
#define PROTOCOL_SCTP	      132
#define PROTOCOL_UDPLITE      136
#define EXTENSION_HOP	      0
#define EXTENSION_ROUTING     43
#define EXTENSION_FRAGMENT    44
#define EXTENSION_AUTH	      51
#define EXTENSION_DESTINATION 60

struct packet {
	__u32 source[4]; /* host order words, most significant first; IPv4 in the last */
	__u32 destination[4];
	__u32 network; /* offset of the IP header */
	__u32 id;      /* IPv4 ID, or the flow label's low 16 bits */
	__u32 length;
	__u32 out; /* MODE_LIVE: the device it is forwarded by */
	__u16 source_port;
	__u16 destination_port;
	__u16 icmp_type;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 ttl;
	__u8 tos;
	__u8 version; /* 4, 6; 0 until known */
	__u8 packet_type;
};

struct ports {
	__be16 source;
	__be16 destination;
};

struct mac {
	__be16 words[3];
};

struct extension {
	__u8 next;
	__u8 length; /* in units of eight bytes, the first not counted */
};

/* Ports, flags and types; a header that iptables would find incomplete is left to it. */
static __always_inline enum reason parse_transport(context_t *ctx, struct packet *p, __u32 offset,
						   __u32 available)
{
	__u32 needed = 0;
	struct ports ports;
	__be16 type;

	switch (p->protocol) {
	case IPPROTO_TCP:
		needed = 20;
		break;
	case IPPROTO_UDP:
	case PROTOCOL_UDPLITE:
		needed = 8;
		break;
	case PROTOCOL_SCTP:
	case IPPROTO_DCCP:
		needed = 12;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->protocol == IPPROTO_ICMP) != (p->version == 4))
			return REASON_NONE;
		if (available < 8 || LOAD(ctx, offset, &type))
			return REASON_TRUNCATED;
		p->icmp_type = bpf_ntohs(type);
		return REASON_NONE;
	default:
		return REASON_NONE;
	}
	if (available < needed)
		return REASON_TRUNCATED;
	if (LOAD(ctx, offset, &ports))
		return REASON_TRUNCATED;
	p->source_port = bpf_ntohs(ports.source);
	p->destination_port = bpf_ntohs(ports.destination);
	if (p->protocol == IPPROTO_TCP && LOAD(ctx, offset + 13, &p->tcp_flags))
		return REASON_TRUNCATED;
	return REASON_NONE;
}

static __always_inline __u32 frame_length(context_t *ctx)
{
	const struct runtime *run = config.mode == MODE_EVAL ? element(&runtime, 0) : 0;

	return frame_bytes(ctx) + (run ? run->cut : 0);
}

static __always_inline enum reason parse_ipv4(context_t *ctx, struct packet *p, __u32 network)
{
	struct iphdr header;
	__u32 length;

	if (LOAD(ctx, network, &header))
		return REASON_TRUNCATED;
	if (header.version != 4 || header.ihl < 5)
		return REASON_MALFORMED;
	length = bpf_ntohs(header.tot_len);
	p->version = 4;
	p->id = bpf_ntohs(header.id);
	p->length = length;
	if (header.ihl > 5)
		return REASON_OPTIONS;
	if (length < sizeof(header))
		return REASON_MALFORMED;
	if (network + length > frame_length(ctx))
		return REASON_TRUNCATED;
	if (header.frag_off & bpf_htons(IPV4_FRAGMENT))
		return REASON_FRAGMENT;
	p->source[3] = bpf_ntohl(header.saddr);
	p->destination[3] = bpf_ntohl(header.daddr);
	p->protocol = header.protocol;
	p->ttl = header.ttl;
	p->tos = header.tos;
	return parse_transport(ctx, p, network + sizeof(header), length - sizeof(header));
}

/* Hop-by-hop and destination options are skipped as ipv6_find_hdr does (net/ipv6/exthdrs_core.c);
 * the loop is bounded by MAX_EXTENSIONS.
 */
static __always_inline enum reason skip_extensions(context_t *ctx, struct packet *p, __u32 *offset,
						   __u32 end)
{
	struct extension extension;

	for (__u32 i = 0; i <= MAX_EXTENSIONS; i++) {
		switch (p->protocol) {
		case EXTENSION_HOP:
		case EXTENSION_DESTINATION:
			break;
		case EXTENSION_ROUTING:
		case EXTENSION_FRAGMENT:
		case EXTENSION_AUTH:
			return p->protocol == EXTENSION_FRAGMENT ? REASON_FRAGMENT
								 : REASON_EXTENSION;
		default:
			return REASON_NONE;
		}
		if (*offset + 8 > end || LOAD(ctx, *offset, &extension))
			return REASON_TRUNCATED;
		p->protocol = extension.next;
		*offset += (extension.length + 1) * 8;
		if (*offset > end)
			return REASON_TRUNCATED;
	}
	return REASON_EXTENSION;
}

static __always_inline void words(__u32 *to, const __be32 *from)
{
	to[0] = bpf_ntohl(from[0]);
	to[1] = bpf_ntohl(from[1]);
	to[2] = bpf_ntohl(from[2]);
	to[3] = bpf_ntohl(from[3]);
}

static __always_inline enum reason parse_ipv6(context_t *ctx, struct packet *p, __u32 network)
{
	struct ipv6hdr header;
	__u32 offset = network + sizeof(header);
	enum reason reason;
	__u32 length;

	if (LOAD(ctx, network, &header))
		return REASON_TRUNCATED;
	if (header.version != 6)
		return REASON_MALFORMED;
	p->version = 6;
	p->id = header.flow_lbl[1] << 8 | header.flow_lbl[2];
	length = bpf_ntohs(header.payload_len) + sizeof(header);
	p->length = length;
	/* A jumbogram says 0 and carries its length in an option. */
	if (length > 0xffff || (!header.payload_len && header.nexthdr == EXTENSION_HOP))
		return REASON_MALFORMED;
	if (network + length > frame_length(ctx))
		return REASON_TRUNCATED;
	words(p->source, header.saddr.in6_u.u6_addr32);
	words(p->destination, header.daddr.in6_u.u6_addr32);
	p->protocol = header.nexthdr;
	p->ttl = header.hop_limit;
	p->tos = header.priority << 4 | header.flow_lbl[0] >> 4;
	reason = skip_extensions(ctx, p, &offset, network + length);
	return reason ? reason : parse_transport(ctx, p, offset, network + length - offset);
}

/* Fills *p; returns an enum reason. */
static __always_inline enum reason parse(context_t *ctx, struct packet *p)
{
	__be16 protocol;
	__u32 network;

	if (!p)
		return REASON_LOOKUP;
	network = network_offset(ctx);
	p->network = network;
	p->packet_type = packet_type(ctx);
	if (p->packet_type > PACKET_MULTICAST)
		return REASON_OTHERHOST;
	if (vlan_tagged(ctx))
		return REASON_VLAN;
	if (network != 0 && network != ETH_HLEN)
		return REASON_ETHERTYPE;
	protocol = ether_protocol(ctx);
	if (protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(ctx, p, network);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(ctx, p, network);
	return REASON_ETHERTYPE;
}

#endif
