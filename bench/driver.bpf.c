// SPDX-License-Identifier: GPL-2.0-only
/*
 * Feeds a program under test with changing packets: writes the next header from a map into the
 * packet, then tail-calls the program. With `nothing` as the program it measures its own cost.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#define FRAME 60

struct frame {
	__u8 bytes[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frame);
} frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

struct cursor {
	__u32 next;
	__u32 count;
	__u32 ifindex;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cursor);
} cursors SEC(".maps");

/* Takes turns through the frames and copies one into the packet. */
static __always_inline int next_frame(void *data, void *data_end)
{
	struct cursor *cursor;
	struct frame *frame;
	__u32 zero = 0, at;

	if (data + FRAME > data_end)
		return -1;
	cursor = bpf_map_lookup_elem(&cursors, &zero);
	if (!cursor)
		return -1;
	at = cursor->next;
	cursor->next = at + 1 < cursor->count ? at + 1 : 0;
	frame = bpf_map_lookup_elem(&frames, &at);
	if (!frame)
		return -1;
	__builtin_memcpy(data, frame->bytes, FRAME);
	return cursor->ifindex;
}

SEC("tc")
int drive(struct __sk_buff *skb)
{
	if (next_frame((void *)(long)skb->data, (void *)(long)skb->data_end) >= 0)
		bpf_tail_call(skb, &under_test, 0);
	return TC_ACT_SHOT;
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	int ifindex = next_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end);

	return ifindex > 0 ? bpf_redirect(ifindex, 0) : XDP_DROP;
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
