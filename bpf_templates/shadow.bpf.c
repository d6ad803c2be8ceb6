// SPDX-License-Identifier: GPL-2.0-only
/* What became of the packets that the classifier foretold: netfilter links just before and just
 * after the filter chains, and the tracepoint where the kernel frees what it drops. A packet seen
 * before and after was accepted; one seen before and then freed for a netfilter drop was dropped
 * by filter. No verdict is touched.
 */
#define HOOK_NETFILTER
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "classes.h"
#include "config.h"
#include "conntrack.h"
#include "context.h"
#include "kernel_types.h"
#include "lease.h"
#include "maps.h"
#include "prediction.h"

#define NF_ACCEPT	1
#define NF_HOOK_FORWARD 2
#define SAMPLES_BYTES	(256 * 1024)
#define POSSIBLE_ACCEPT 1
#define POSSIBLE_DROP	2
#define ROUTE_POINTER	(~1ul) /* SKB_DST_PTRMASK */

char LICENSE[] SEC("license") = "GPL";

enum skb_drop_reason { SKB_DROP_REASON_NETFILTER_DROP = 8 };

/* Verdict of bpfilter/rollout/comparison.py; OPEN of predictions only. */
enum verdict {
	ACCEPTED,
	DROPPED,
	OPEN,
};

struct shadow {
	__u32 revokes; /* a mismatch ends the lease at once */
};

struct pairs {
	__u64 counts[3][2]; /* by predicted and actual verdict */
};

/* A mismatch; SAMPLE in bpfilter/kernel/shadow.py. */
struct sample {
	__u64 time; /* CLOCK_MONOTONIC ns */
	__u32 device;
	__u32 out_device;
	__u32 entry;
	__u8 slot;
	__u8 state;
	__u8 predicted;
	__u8 actual;
	__u32 bytes;
	__u32 reserved;
	__u64 header[HEADER_BYTES / 8];
};

const volatile struct shadow shadow SEC(".rodata.shadow") = {};

ARRAY(possible, 8, BPF_F_MMAPABLE); /* per node: a byte of POSSIBLE_* for every state class */
ARRAY(pairs, sizeof(struct pairs), BPF_F_MMAPABLE); /* per entry of all slots */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SAMPLES_BYTES);
} samples SEC(".maps");

static __always_inline void keep_sample(const struct prediction *p, __u32 entry, __u32 predicted,
					__u32 actual)
{
	struct sample *s = bpf_ringbuf_reserve(&samples, sizeof(*s), 0);

	add_tally(TALLY_MISMATCHES);
	if (!s) {
		add_tally(TALLY_SAMPLES_LOST);
		return;
	}
	s->time = bpf_ktime_get_ns();
	s->device = p->device;
	s->out_device = p->out_device;
	s->entry = entry;
	s->slot = p->slot;
	s->state = p->state;
	s->predicted = predicted;
	s->actual = actual;
	s->bytes = p->bytes;
	s->reserved = 0;
	for (__u32 i = 0; i < HEADER_BYTES / 8; i++)
		s->header[i] = p->header[i];
	bpf_ringbuf_submit(s, 0);
}

/* The next packet takes the original rules, whoever may still be asleep. */
static __always_inline void revoke_lease(void)
{
	struct runtime *run = (struct runtime *)element(&runtime, 0);

	if (run)
		run->valid_until = 0;
}

/* Whether a chain of native nft may have dropped what iptables' filter accepted. */
static __always_inline int filter_is_shared(void)
{
	const __u64 *flag = element(&tally, SHARED_FILTER);

	return flag && *flag;
}

/* Count what the walk of the packet's own connection state foretold against what happened. */
static __always_inline void settle(const struct prediction *p, const __u32 actual)
{
	__u32 slot = p->slot & (SLOTS - 1);
	__u32 class = class_of_state(slot, p->state);
	const __u8 *verdicts = element(&possible, config.slots[slot].node_base + p->node);
	struct pairs *cell;
	__u32 predicted;
	__u32 entry;

	if (class >= MAX_STATES || !verdicts)
		return;
	entry = p->final[class];
	predicted = verdicts[class] == POSSIBLE_ACCEPT ? ACCEPTED
		    : verdicts[class] == POSSIBLE_DROP ? DROPPED
						       : OPEN;
	if (predicted == ACCEPTED && actual == DROPPED && filter_is_shared()) {
		add_tally(TALLY_FOREIGN);
		return;
	}
	cell = (struct pairs *)element(&pairs, config.slots[slot].counter_base / 2 + entry);
	if (!cell)
		return;
	__sync_fetch_and_add(&cell->counts[predicted][actual], 1);
	if (predicted == OPEN || predicted == actual)
		return;
	keep_sample(p, entry, predicted, actual);
	if (shadow.revokes)
		revoke_lease();
}

/* From the network header on; returns how many bytes were read. */
static __always_inline __u32 read_header(const struct sk_buff *skb, __u64 *header)
{
	__u32 linear = skb->len - skb->data_len;
	__u32 bytes = IPV6_WORDS * 8;

	if (linear < bytes)
		bytes = linear;
	if (bytes < HEADER_LEAST || bytes > IPV6_WORDS * 8)
		return 0;
	if (bpf_probe_read_kernel(header, bytes, skb->head + skb->network_header))
		return 0;
	return bytes;
}

/* Addresses are used again within a second, so an entry counts only for the packet it was made of.
 * What NAT rewrites is left out for packets that it did rewrite.
 */
static __always_inline int other_packet(const struct prediction *p, const struct sk_buff *skb,
					int translated)
{
	__u64 header[IPV6_WORDS] = {};
	const __u32 count = words_of(p->header);
	__u32 known = read_header(skb, header);
	__u64 differ = 0;

	if (known > p->bytes)
		known = p->bytes;
	if (known < HEADER_LEAST)
		return 1;
	for (__u32 i = 0; i < IPV6_WORDS; i++)
		if (i < count && (i + 1) * 8 <= known && !(translated && i))
			differ |= (p->header[i] ^ header[i]) & lasting(count == IPV6_WORDS, i);
	return differ != 0;
}

static __always_inline int rules_differ(struct net *net, const struct prediction *p)
{
	const struct runtime *run = config.generation ? element(&runtime, 0) : 0;

	return run && (run->edits != p->edits || network_differs(net, p->slot >= 2, run));
}

/* Of a packet that the host drops. What was made here has a route before it has a device; a socket
 * it need not have.
 */
static __always_inline struct net *network_of_dropped(const struct sk_buff *skb)
{
	const struct dst_entry *route;

	if (skb->dev)
		return skb->dev->nd_net.net;
	route = bpf_rdonly_cast((const void *)(skb->_skb_refdst & ROUTE_POINTER),
				bpf_core_type_id_kernel(struct dst_entry));
	return route->dev->nd_net.net;
}

static __always_inline void forget(__u64 key, enum tally_name why)
{
	if (!bpf_map_delete_elem(&predictions, &key))
		add_tally(why);
}

/* Of a clone: what was foretold of the packet it was made from, moved to the clone's address. */
static __always_inline struct prediction *take_over(struct sk_buff *skb, __u64 key)
{
	__u64 header[IPV6_WORDS] = {};
	struct prediction *found;
	__u64 content;

	if (read_header(skb, header) < HEADER_LEAST)
		return 0;
	content = content_key(skb->dev->ifindex, header);
	found = bpf_map_lookup_elem(&predictions, &content);
	if (!found)
		return 0;
	if (bpf_map_update_elem(&predictions, &key, found, BPF_ANY))
		return 0;
	bpf_map_delete_elem(&predictions, &content);
	return bpf_map_lookup_elem(&predictions, &key);
}

SEC("netfilter")
int before_filter(struct bpf_nf_ctx *ctx)
{
	struct sk_buff *skb = ctx->skb;
	unsigned long nfct = skb->_nfct;
	__u64 key = (__u64)skb;
	struct prediction *found;
	struct net_device *out;
	int translated;

	found = bpf_map_lookup_elem(&predictions, &key);
	if (!found && device_shared(skb->dev))
		found = take_over(skb, key);
	if (!found)
		return NF_ACCEPT;
	translated = is_translated(nfct);
	if (found->life != LIFE_PREDICTED)
		forget(key, TALLY_QUEUED);
	else if (found->device != device_index(ctx) || other_packet(found, skb, translated))
		forget(key, TALLY_VANISHED);
	else if (translated)
		forget(key, TALLY_TRANSLATED);
	else if ((ctx->state->hook == NF_HOOK_FORWARD) != (found->slot & 1))
		forget(key, TALLY_OTHER_CHAIN);
	else if (rules_differ(network_of(ctx), found))
		forget(key, TALLY_EDITED);
	else {
		found->state = state_number(nfct);
		out = ctx->state->out;
		found->out_device = out ? out->ifindex : 0;
		found->life = LIFE_BEFORE;
	}
	return NF_ACCEPT;
}

SEC("netfilter")
int after_filter(struct bpf_nf_ctx *ctx)
{
	__u64 key = (__u64)ctx->skb;
	struct prediction *found = bpf_map_lookup_elem(&predictions, &key);

	if (!found)
		return NF_ACCEPT;
	if (found->life != LIFE_BEFORE) {
		forget(key, TALLY_VANISHED);
	} else if (rules_differ(network_of(ctx), found)) {
		forget(key, TALLY_EDITED);
	} else {
		settle(found, ACCEPTED);
		bpf_map_delete_elem(&predictions, &key);
	}
	return NF_ACCEPT;
}

/* Sees every packet that the host drops, in all network namespaces: one look-up for most. */
SEC("raw_tp/kfree_skb")
int dropped(struct bpf_raw_tracepoint_args *ctx)
{
	const __u64 reason =
		bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP);
	__u64 key = ctx->args[0];
	struct prediction *found = bpf_map_lookup_elem(&predictions, &key);
	struct sk_buff *skb;

	if (!found)
		return 0;
	skb = bpf_rdonly_cast((const void *)key, bpf_core_type_id_kernel(struct sk_buff));
	if (other_packet(found, skb, found->life != LIFE_BEFORE)) {
		forget(key, found->life == LIFE_BEFORE ? TALLY_QUEUED : TALLY_VANISHED);
	} else if (found->life != LIFE_BEFORE) {
		forget(key, TALLY_BEFORE);
	} else if (ctx->args[2] != reason) {
		forget(key, TALLY_QUEUED);
	} else if (rules_differ(network_of_dropped(skb), found)) {
		forget(key, TALLY_EDITED);
	} else {
		settle(found, DROPPED);
		bpf_map_delete_elem(&predictions, &key);
	}
	return 0;
}
