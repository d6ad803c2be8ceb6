// SPDX-License-Identifier: GPL-2.0-only
/* LOCAL_OUT, just before filter: nothing after this hook could read a mark before filter does, so
 * what the program decides it does itself. It drops what filter would drop at once, with the error
 * that iptables gives the sender; all else goes on to the original chain. conntrack and NAT have
 * been here, so the packet, its state and its out-interface are those that filter will see.
 */
#define HOOK_NETFILTER
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "changed.h"
#include "classes.h"
#include "config.h"
#include "conntrack.h"
#include "context.h"
#include "lease.h"
#include "maps.h"
#include "parse.h"
#include "prediction.h"
#include "rows.h"
#include "scope.h"
#include "states.h"

#define NF_DROP	    0
#define NF_ACCEPT   1
#define SHARE_WHOLE 65536

char LICENSE[] SEC("license") = "GPL";

ARRAY(drops, 8, BPF_F_MMAPABLE); /* per node and state class: the walk is a DROP and nothing else */

struct judgement {
	struct finals final;
	__u32 slot;
	__u32 node;
	__u32 state; /* number of its bit */
	__u32 class;
	__u32 outcome;
};

static __always_inline enum reason classify(struct bpf_nf_ctx *ctx, const struct packet *p,
					    struct judgement *j, const __u32 slot)
{
	enum reason reason;

	j->slot = slot;
	if (!config.slots[slot].used)
		return REASON_NO_SLOT;
	reason = classify_states(ctx, p, slot, j->final.entries, &j->node);
	if (reason)
		return reason;
	if (j->node == DEAD)
		return REASON_NO_CODE;
	j->outcome = final_of(slot, j->node) >> 8 & 3;
	return j->outcome == OUTCOME_PUNT ? REASON_RULE : REASON_NONE;
}

static __always_inline enum reason decide(struct bpf_nf_ctx *ctx, struct packet *p,
					  struct judgement *j)
{
	enum reason reason = check_right(ctx);

	if (reason)
		return reason;
	reason = parse(ctx, p);
	if (reason)
		return reason;
	if (!in_scope(p))
		return REASON_SCOPE;
	if (concerned_by_change(p))
		return REASON_CHANGED;
	reason = p->version == 4 ? classify(ctx, p, j, 0) : classify(ctx, p, j, 2);
	if (reason)
		return reason;
	j->state = state_number(ctx->skb->_nfct);
	j->class = class_of_state(j->slot, j->state);
	return j->class < MAX_STATES ? REASON_NONE : REASON_LOOKUP;
}

/* Returns 1 if there was no room. Not static: checked once, and with a stack of its own. */
__noinline int remember(struct bpf_nf_ctx *ctx, const struct judgement *j)
{
	struct prediction new = {};
	struct sk_buff *skb = ctx->skb;
	const struct net_device *out = ctx->state->out;
	__u32 linear = skb->len - skb->data_len;
	__u32 bytes = linear < HEADER_BYTES ? linear : HEADER_BYTES;
	__u64 key = (__u64)skb;
	struct prediction *old;

	if (!j || bytes < HEADER_LEAST || bytes > HEADER_BYTES)
		return 1;
	if (bpf_probe_read_kernel(new.header, bytes, skb->head + skb->network_header))
		return 1;
	new.time = bpf_ktime_get_ns();
	new.out_device = out ? out->ifindex : 0;
	new.node = j->node;
	new.slot = j->slot;
	new.life = LIFE_BEFORE;
	new.state = j->state;
	new.bytes = bytes;
	new.edits = edits_now();
	for (__u32 i = 0; i < MAX_STATES; i++)
		new.final[i] = j->final.entries[i];
	add_tally(TALLY_STORED);
	/* A packet whose prediction never came to an end gives way to the next at its address. */
	old = bpf_map_lookup_elem(&predictions, &key);
	if (old)
		add_tally(TALLY_QUEUED);
	if (!bpf_map_update_elem(&predictions, &key, &new, BPF_ANY))
		return 0;
	add_tally(TALLY_LOST);
	return 1;
}

static __always_inline int sampled(struct bpf_nf_ctx *ctx, const struct judgement *j)
{
	const __u32 share = config.shadow ? config.shadow_share : config.verify_share;

	if (!share || (share < SHARE_WHOLE && (bpf_get_prandom_u32() & (SHARE_WHOLE - 1)) >= share))
		return 0;
	return !remember(ctx, j);
}

/* The walk of the packet's own state is a DROP and nothing else; *cell: where that is counted. */
static __always_inline int plainly_dropped(const struct judgement *j, __u32 *cell)
{
	const __u32 slot = j->slot & (SLOTS - 1);
	const __u8 *by_class = element(&drops, config.slots[slot].node_base + j->node);

	if (j->class >= MAX_STATES || !by_class)
		return 0;
	*cell = config.slots[slot].counter_base + 2 * j->final.entries[j->class];
	return by_class[j->class];
}

/* Of the deployment: packets that leave by others are not looked at, like those that come by them.
 */
static __always_inline int known_device(__u32 index)
{
	const struct interface *device = bpf_map_lookup_elem(&interfaces, &index);

	return device && device->known;
}

SEC("netfilter")
int output(struct bpf_nf_ctx *ctx)
{
	const struct net_device *out = ctx->state->out;
	struct judgement j = {};
	struct packet p = {};
	__u32 cell = 0, outcome;
	enum reason reason;
	int drop = 0;

	p.out = out ? out->ifindex : 0;
	if (!known_device(p.out))
		return NF_ACCEPT;
	reason = decide(ctx, &p, &j);
	outcome = j.slot * OUTCOMES + j.outcome;
	if (!reason) {
		drop = plainly_dropped(&j, &cell);
		if (drop)
			outcome = j.slot * OUTCOMES + OUTCOME_DROP;
		/* Behind this nothing is known of *j to the verifier. */
		if (sampled(ctx, &j) && !config.shadow)
			reason = REASON_SAMPLED;
	}
	if (reason) {
		count(&punts, reason, p.length);
		return NF_ACCEPT;
	}
	count(&outcomes, outcome, p.length);
	if (!drop || config.shadow)
		return NF_ACCEPT;
	if (config.counting)
		count(&counters, cell, p.length);
	return NF_DROP;
}
