// SPDX-License-Identifier: GPL-2.0-only
/*
 * Feeds a program under test with changing packets: writes the next header from a map into the
 * packet, then tail-calls the program. With `nothing` as the program it measures its own cost.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

/* The least Ethernet frame, and one that has room for IPv6 and TCP. */
#define FRAME4 60
#define FRAME6 78

struct frame {
	__u8 bytes[80];
	__u32 ifindex;
	__u32 pad;
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
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cursor);
} cursors SEC(".maps");

/* Takes turns through the frames and copies one into the packet; its interface, negative if none.
 */
static __always_inline int next_frame(void *data, void *data_end, const int size)
{
	struct cursor *cursor;
	struct frame *frame;
	__u32 zero = 0, at;

	if (data + size > data_end)
		return -1;
	cursor = bpf_map_lookup_elem(&cursors, &zero);
	if (!cursor)
		return -1;
	at = cursor->next;
	cursor->next = at + 1 < cursor->count ? at + 1 : 0;
	frame = bpf_map_lookup_elem(&frames, &at);
	if (!frame)
		return -1;
	__builtin_memcpy(data, frame->bytes, size);
	return frame->ifindex;
}

static __always_inline int run(struct __sk_buff *skb, const int size)
{
	if (next_frame((void *)(long)skb->data, (void *)(long)skb->data_end, size) >= 0)
		bpf_tail_call(skb, &under_test, 0);
	return TC_ACT_SHOT;
}

static __always_inline int send(struct xdp_md *ctx, const int size)
{
	int ifindex = next_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, size);

	return ifindex > 0 ? bpf_redirect(ifindex, 0) : XDP_DROP;
}

SEC("tc")
int drive4(struct __sk_buff *skb)
{
	return run(skb, FRAME4);
}

SEC("tc")
int drive6(struct __sk_buff *skb)
{
	return run(skb, FRAME6);
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_UNSPEC;
}

SEC("tc")
int shot(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_SHOT;
}

SEC("xdp")
int flood4(struct xdp_md *ctx)
{
	return send(ctx, FRAME4);
}

SEC("xdp")
int flood6(struct xdp_md *ctx)
{
	return send(ctx, FRAME6);
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
