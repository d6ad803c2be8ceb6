// SPDX-License-Identifier: GPL-2.0-only
/* TC ingress: says what the filter chain would do with a packet and writes the answer's code into
 * the mark. It never drops, and what it cannot decide it leaves alone with code 0.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "changed.h"
#include "config.h"
#include "lease.h"
#include "maps.h"
#include "parse.h"
#include "route.h"
#include "rows.h"
#include "scope.h"
#include "shadow.h"
#include "states.h"

char LICENSE[] SEC("license") = "GPL";

struct decision {
	__u32 slot;
	__u32 reason;
	__u32 outcome;
	__u32 code;
	__u32 node;
	__u32 states;
	__u32 final[MAX_STATES];
};

/* Rule counters as iptables would count, for the walks' last rules. */
static __always_inline void count_rules(const struct decision *d, const __u32 slot, __u32 length)
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

static __always_inline enum reason classify(struct __sk_buff *skb, const struct packet *p,
					    struct decision *d, const __u32 slot)
{
	__u32 end;
	int reason;

	d->slot = slot;
	if (!config.slots[slot].used)
		return REASON_NO_SLOT;
	if (config.slots[slot].forward && p->ttl <= 1)
		return REASON_TTL;
	reason = classify_states(skb, p, slot, d->final, &d->node);
	if (reason)
		return reason;
	d->states = config.slots[slot].states;
	if (config.counting)
		count_rules(d, slot, p->length);
	if (d->node == DEAD)
		return REASON_NO_CODE;
	end = final_of(slot, d->node);
	d->code = end & 0xff;
	d->outcome = end >> 8 & 3;
	return d->outcome == OUTCOME_PUNT ? REASON_RULE : REASON_NONE;
}

static __always_inline enum reason decide(struct __sk_buff *skb, struct packet *p,
					  struct decision *d)
{
	enum reason reason = check_right(skb);
	__u32 forwarded = config.forced;

	if (reason)
		return reason;
	reason = parse(skb, p);
	if (reason)
		return reason;
	if (config.mode == MODE_LIVE_INPUT && address_type(p, p->destination) != RTN_LOCAL)
		return REASON_NOT_LOCAL;
	if (!in_scope(p))
		return REASON_SCOPE;
	if (concerned_by_change(p))
		return REASON_CHANGED;
	if (config.mode == MODE_LIVE) {
		reason = route(skb, p, &forwarded);
		if (reason)
			return reason;
	}
	if (p->version == 4)
		return forwarded ? classify(skb, p, d, 1) : classify(skb, p, d, 0);
	return forwarded ? classify(skb, p, d, 3) : classify(skb, p, d, 2);
}

static __always_inline void write_record(struct __sk_buff *skb, const struct packet *p,
					 const struct decision *d)
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
	r->outcome = d->outcome;
	r->states = d->states;
	r->code = d->code;
	r->node = d->node;
	r->length = p->length;
	r->mark = skb->mark;
	for (__u32 i = 0; i < MAX_STATES; i++)
		r->final[i] = d->final[i];
}

SEC("tc")
int classifier(struct __sk_buff *skb)
{
	struct decision d = {};
	struct packet p = {};

	d.reason = decide(skb, &p, &d);
	if (!d.reason && (config.shadow || config.verify_share))
		d.reason = sample(skb, &p, d.slot, d.node, d.final);
	if (d.reason) {
		d.outcome = OUTCOME_PUNT;
		d.code = 0;
		count(&punts, d.reason, p.length);
	} else {
		count(&outcomes, d.slot * OUTCOMES + d.outcome, p.length);
	}
	if (config.marking) {
		/* volatile: clang would narrow the store to a byte, which the verifier refuses. */
		volatile __u32 mark = skb->mark & ~config.mark_mask;

		mark |= d.code << config.mark_shift;
		skb->mark = mark;
	}
	if (config.trace)
		write_record(skb, &p, &d);
	return TC_ACT_UNSPEC;
}

/* Run by the loader through BPF_PROG_RUN, in the network namespace whose rules are meant. */
SEC("tc")
int capture(struct __sk_buff *skb)
{
	__u32 index = 0;
	struct generation *g = bpf_map_lookup_elem(&observed, &index);
	const struct runtime *run = element(&runtime, 0);

	if (!g || !run)
		return TC_ACT_SHOT;
	g->known = 0;
	observe_generation(skb, g, FAMILY_BOTH, run);
	return TC_ACT_OK;
}
