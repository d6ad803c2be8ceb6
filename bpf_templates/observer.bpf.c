// SPDX-License-Identifier: GPL-2.0-only
/* The lab's eyes: netfilter links just before and just after the filter chains. A packet seen
 * before and not after was dropped by filter. Packets are told apart by the IPv4 ID or the low 16
 * bits of the IPv6 flow label. Verdicts are never touched.
 */
#include <linux/bpf.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "kernel_types.h"

#define NF_ACCEPT    1
#define NFPROTO_IPV4 2

char LICENSE[] SEC("license") = "GPL";

struct seen {
	__u32 before; /* packets */
	__u32 after;
	__u32 mark_before;
	__u32 mark_after;
	__u32 states; /* all that were seen */
	__u32 hook;
	__u32 length; /* skb->len, as iptables counts bytes */
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__uint(key_size, 4);
	__uint(value_size, sizeof(struct seen));
	__uint(map_flags, BPF_F_MMAPABLE);
} seen SEC(".maps");

static __always_inline struct seen *record_of(const struct bpf_nf_ctx *ctx)
{
	struct sk_buff *skb = ctx->skb;
	const unsigned char *header = skb->head + skb->network_header;
	struct iphdr ipv4;
	__u32 label;
	__u32 id;

	if (ctx->state->pf == NFPROTO_IPV4) {
		if (bpf_probe_read_kernel(&ipv4, sizeof(ipv4), header))
			return 0;
		id = bpf_ntohs(ipv4.id);
	} else {
		if (bpf_probe_read_kernel(&label, sizeof(label), header))
			return 0;
		id = bpf_ntohl(label) & 0xffff;
	}
	return bpf_map_lookup_elem(&seen, &id);
}

SEC("netfilter")
int before_filter(struct bpf_nf_ctx *ctx)
{
	struct seen *record = record_of(ctx);

	if (record) {
		record->states |= state_of(ctx->skb->_nfct);
		record->mark_before = ctx->skb->mark;
		record->length = ctx->skb->len;
		record->hook = ctx->state->hook;
		record->before++;
	}
	return NF_ACCEPT;
}

SEC("netfilter")
int after_filter(struct bpf_nf_ctx *ctx)
{
	struct seen *record = record_of(ctx);

	if (record) {
		record->mark_after = ctx->skb->mark;
		record->after++;
	}
	return NF_ACCEPT;
}
