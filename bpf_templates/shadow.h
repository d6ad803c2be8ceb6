/* SPDX-License-Identifier: GPL-2.0-only */
/* The classifier's part in comparing: which packets are compared, and remembering what it said. */
#ifndef SHADOW_H
#define SHADOW_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "context.h"
#include "parse.h"
#include "prediction.h"

#define SHARE_WHOLE 65536

/* A packet whose prediction never came to an end gives way to the next at its address. */
static __always_inline int replace_prediction(__u64 key, const struct prediction *new)
{
	struct prediction *old = bpf_map_lookup_elem(&predictions, &key);

	if (old)
		add_tally(old->life == LIFE_BEFORE ? TALLY_QUEUED : TALLY_VANISHED);
	return bpf_map_update_elem(&predictions, &key, new, BPF_ANY) != 0;
}

/* Returns 1 if there was no room. Not static: checked once, and with a stack of its own. */
__noinline int remember(context_t *ctx, const struct packet *p, __u32 slot, __u32 node,
			const struct finals *final)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);
	struct prediction new = {};
	__u64 key = (__u64)skb;
	__u32 bytes;
	int failed;

	if (!p || !final || frame_bytes(ctx) < p->network + HEADER_LEAST)
		return 1;
	bytes = frame_bytes(ctx) - p->network;
	if (bytes > HEADER_BYTES)
		bytes = HEADER_BYTES;
	if (bytes < HEADER_LEAST || bpf_skb_load_bytes(ctx, p->network, new.header, bytes))
		return 1;
	new.time = bpf_ktime_get_coarse_ns();
	new.device = device_index(ctx);
	new.node = node;
	new.slot = slot;
	new.bytes = bytes;
	new.edits = edits_now();
	for (__u32 i = 0; i < MAX_STATES; i++)
		new.final[i] = final->entries[i];
	if (device_shared(skb->dev))
		key = content_key(new.device, new.header);
	add_tally(TALLY_STORED);
	failed = bpf_map_update_elem(&predictions, &key, &new, BPF_NOEXIST);
	if (failed)
		failed = replace_prediction(key, &new);
	if (failed)
		add_tally(TALLY_LOST);
	return failed;
}

/* Remember what was said of a sampled packet, if anything was. Where decisions are carried out, the
 * sampled packet is left to the original rules: REASON_SAMPLED.
 */
static __always_inline enum reason sample(context_t *ctx, const struct packet *p, __u32 slot,
					  __u32 node, const __u32 *final)
{
	const __u32 share = config.shadow ? config.shadow_share : config.verify_share;

	if (share < SHARE_WHOLE && (bpf_get_prandom_u32() & (SHARE_WHOLE - 1)) >= share)
		return REASON_NONE;
	if (remember(ctx, p, slot, node, (const struct finals *) final) || config.shadow)
		return REASON_NONE;
	return REASON_SAMPLED;
}

#endif
