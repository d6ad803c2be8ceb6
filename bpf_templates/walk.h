/* SPDX-License-Identifier: GPL-2.0-only */
/* The walks through the entries that hold the packet: steps 3 to 5 of bpfilter/compiler/layout.py,
 * once per class of connection states.
 */
#ifndef WALK_H
#define WALK_H

#include "maps.h"

#define DEAD 0 /* the node of residuals without a code */
#define ROOT 1

struct walk {
	const __u64 *rows[MAX_GROUPS];
	const __u64 *state_row;
	__u64 summary; /* candidates left in summary word `cursor` */
	__u64 leaf;    /* candidates left in leaf word `word` */
	__u32 cursor;
	__u32 word;
	__u32 position; /* entries before it are passed over */
	__u32 node;
	__u32 start; /* the node at which this state's walk began */
	__u32 entry; /* where it ended */
	__u32 ended;
};

/* De Bruijn: one path for the verifier, where a cascade of tests would have 64. */
static const __u8 bit_numbers[64] = {
	0,  1,	2,  53, 3,  7,	54, 27, 4,  38, 41, 8,	34, 55, 48, 28, 62, 5,	39, 46, 44, 42,
	22, 9,	24, 35, 59, 56, 49, 18, 29, 11, 63, 52, 6,  26, 37, 40, 33, 47, 61, 45, 43, 21,
	23, 58, 17, 10, 51, 25, 36, 32, 60, 20, 57, 16, 50, 31, 19, 15, 30, 14, 13, 12,
};

static __always_inline __u32 lowest_bit(__u64 word)
{
	return bit_numbers[(word & -word) * 0x022fdd63cc95386dull >> 58];
}

static __always_inline __u64 and_summary(const struct walk *w, const __u32 slot, __u32 cursor)
{
	const __u32 groups = config.slots[slot].groups;
	__u64 word = ~0ull;

	if (config.slots[slot].stateful)
		word = w->state_row[cursor];
	for (__u32 i = 0; i < groups; i++)
		word &= w->rows[i][cursor];
	return word;
}

static __always_inline __u64 row_leaf(const __u64 *row, __u32 word)
{
	const __u32 *references = (const __u32 *)(row + config.summary_words);
	const __u64 *block = element(&blocks, references[word / BLOCK_WORDS]);

	return block ? block[word % BLOCK_WORDS] : 0;
}

/* `word` is below stripes * BLOCK_WORDS. */
static __always_inline __u64 and_leaf(const struct walk *w, const __u32 slot, __u32 word)
{
	const __u32 groups = config.slots[slot].groups;
	__u64 leaf = ~0ull;

	if (config.slots[slot].stateful)
		leaf = row_leaf(w->state_row, word);
	for (__u32 i = 0; i < groups; i++)
		leaf &= row_leaf(w->rows[i], word);
	return leaf;
}

static __always_inline __u32 node_after(const __u32 slot, __u32 node, __u32 kind)
{
	const __u32 *row = element(&nodes, config.slots[slot].node_base + node);

	return row ? row[(kind - OP_ACCEPT) & 3] : DEAD;
}

static __always_inline __u32 node_behind_item(const __u32 slot, __u32 node, __u32 item)
{
	__u64 key = (__u64)(config.slots[slot].node_base + node) << 32 | item;
	const __u32 *next;

	if (node == DEAD)
		return DEAD;
	next = bpf_map_lookup_elem(&edges, &key);
	return next ? *next : DEAD;
}

/* Go on at an entry; what was read of earlier ones is dropped. Returns 1 if it is out of range. */
static __always_inline int skip_to(struct walk *w, const __u32 slot, __u32 position)
{
	__u32 word = position / 64;
	__u32 cursor = word / 64;

	w->position = position;
	if (word == w->word) {
		w->leaf &= ~0ull << (position % 64);
		return 0;
	}
	w->leaf = 0;
	if (cursor != w->cursor) {
		barrier_var(cursor);
		if (cursor >= config.summary_words)
			return 1;
		w->cursor = cursor;
		w->summary = and_summary(w, slot, cursor);
	}
	w->summary &= ~0ull << (word % 64);
	return 0;
}

/* Find the next leaf word with candidates. Returns 1 if there is none. */
static __always_inline int next_leaf(struct walk *w, const __u32 slot)
{
	__u64 summary = w->summary;
	__u64 leaf;
	__u32 word;

	if (!summary) {
		__u32 cursor = w->cursor + 1;

		barrier_var(cursor);
		if (cursor >= config.summary_words)
			return 1;
		w->cursor = cursor;
		w->summary = and_summary(w, slot, cursor);
		return 0;
	}
	word = w->cursor * 64 + lowest_bit(summary);
	w->summary = summary & (summary - 1);
	barrier_var(word);
	if (word >= config.stripes * BLOCK_WORDS)
		return 1;
	leaf = and_leaf(w, slot, word);
	if (word == w->position / 64)
		leaf &= ~0ull << (w->position % 64);
	w->word = word;
	w->leaf = leaf;
	return 0;
}

/* Execute the operation of the next entry that holds the packet. Returns 1 at the walk's end. */
static __always_inline int next_entry(struct walk *w, const __u32 slot)
{
	__u64 leaf = w->leaf;
	__u32 entry = w->word * 64 + lowest_bit(leaf);
	__u32 op = number_at(&ops, config.slots[slot].ops_base + entry);
	__u32 argument = op & 0x0fffffff;
	__u32 kind = op >> 28;

	w->leaf = leaf & (leaf - 1);
	if (kind == OP_SKIP)
		return skip_to(w, slot, argument);
	if (kind == OP_ITEM || kind == OP_LAST_ITEM) {
		w->node = node_behind_item(slot, w->node, argument);
		if (kind == OP_ITEM)
			return 0;
	} else {
		/* A walk that meets PUNT runs the original rules from their start. */
		w->node = node_after(slot, kind == OP_PUNT ? w->start : w->node, kind);
	}
	w->entry = entry;
	w->ended = 1;
	return 1;
}

static __always_inline long step(struct walk *w, const __u32 slot)
{
	if (!w->leaf && next_leaf(w, slot))
		return 1;
	if (!w->leaf)
		return 0;
	return next_entry(w, slot);
}

static long step0(__u32 index, void *walk)
{
	return step(walk, 0);
}

static long step1(__u32 index, void *walk)
{
	return step(walk, 1);
}

static long step2(__u32 index, void *walk)
{
	return step(walk, 2);
}

static long step3(__u32 index, void *walk)
{
	return step(walk, 3);
}

static __always_inline void steps(struct walk *w, const __u32 slot)
{
	switch (slot) {
	case 0:
		bpf_loop(config.iterations, step0, w, 0);
		break;
	case 1:
		bpf_loop(config.iterations, step1, w, 0);
		break;
	case 2:
		bpf_loop(config.iterations, step2, w, 0);
		break;
	case 3:
		bpf_loop(config.iterations, step3, w, 0);
		break;
	}
}

/* All states' walks; `final` gets the entry at which each ends, `w->node` the node after the last.
 */
static __always_inline enum reason walk_states(struct walk *w, const __u32 slot, __u32 *final)
{
	const __u32 states = config.slots[slot].states;
	__u32 node = ROOT;

	for (__u32 state = 0; state < MAX_STATES && state < states; state++) {
		if (config.slots[slot].stateful) {
			w->state_row = element(&rows, config.slots[slot].state_row + state);
			if (!w->state_row)
				return REASON_LOOKUP;
		}
		w->start = w->node = node;
		w->position = w->cursor = w->word = 0;
		w->leaf = 0;
		w->ended = 0;
		w->summary = and_summary(w, slot, 0);
		/* Most packets' walks are one step long. */
		if (!step(w, slot))
			steps(w, slot);
		if (!w->ended)
			return REASON_LONG_WALK;
		final[state] = w->entry;
		node = w->node;
	}
	return REASON_NONE;
}

#endif
