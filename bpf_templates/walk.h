/* SPDX-License-Identifier: GPL-2.0-only */
/* A walk through the entries that hold the packet: steps 3 to 5 of bpfilter/compiler/layout.py. */
#ifndef WALK_H
#define WALK_H

#include "maps.h"
#include "rows.h"

#define DEAD 0 /* the node of residuals without a code */
#define ROOT 1

#define PART_BLOCKS  8 /* of one summary word */
#define PART_ENTRIES (PART_BLOCKS * BLOCK_WORDS * 64)
#define PART_BYTES   (8 * config.summaries + (config.narrow ? 2 : 4) * PART_BLOCKS)
#define PART_SIZE    (PART_BYTES > 32 ? 64 : 32) /* as _pitch() of bpfilter/kernel/pack.py */

/* Functions that take `most` look at so many rows; the chain has no more groups of classes. */
struct walk {
	const struct selection *selected;
	const __u64 *parts[MAX_GROUPS]; /* of the rows, at `cursor` */
	const __u64 *state_part;
	const void *blocks;
	__u64 summary; /* candidates left in part `cursor` */
	__u32 state;
	__u32 cursor;
	__u32 position; /* entries before it are passed over */
	__u32 node;
	__u32 start; /* the node at which this state's walk began */
	__u32 entry; /* where it ended; MISSING: nowhere yet */
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

static __always_inline const __u64 *row_at(const void *all, __u32 index)
{
	barrier_var(index);
	return index < config.rows_count ? all + (__u64)index * config.pitch : 0;
}

/* What the summaries of the rows' parts have in common. */
static __always_inline __u64 and_summary(const struct walk *w, const __u32 slot, const __u32 most)
{
	const __u32 groups = config.slots[slot].groups;
	const __u32 paired = config.slots[slot].paired;
	__u64 word = ~0ull;

	if (config.slots[slot].stateful)
		word = w->state_part[0];
	if (paired) {
		const __u64 *source = w->parts[0], *destination = w->parts[1];

		word &= source[0] | destination[0] | (source[1] & destination[1]);
	}
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++)
		if (i >= 2 * paired && i < most && i < groups)
			word &= w->parts[i][0];
	return word;
}

/* The part of 64 leaf words of a row; one that is not there is a row without entries. */
static __always_inline const __u64 *part_of(const void *all, const void *rows, __u32 row,
					    __u32 cursor)
{
	const __u64 *found = row_at(rows, row);
	const void *references;
	__u32 index;

	if (!found || !config.tall)
		return found;
	references = found + config.summaries;
	index = config.narrow_parts ? ((const __u16 *)references)[cursor]
				    : ((const __u32 *)references)[cursor];
	barrier_var(index);
	if (index >= config.parts_count)
		return 0;
	return all + (__u64)config.blocks_count * (BLOCK_WORDS * 8) + (__u64)index * PART_SIZE;
}

/* Without the leaf words before the one of the position, which lies in the same part. */
static __always_inline __u64 unpassed(const struct walk *w, __u64 summary)
{
	return summary & ~0ull << (w->position / 64 % 64);
}

/* Of a chain whose rows have several parts: which of them are in all tops. */
static __always_inline __u64 common_top(const void *all, const struct walk *w, const __u32 slot,
					const __u32 most)
{
	const __u32 groups = config.slots[slot].groups;
	const __u32 paired = config.slots[slot].paired;
	const __u64 *row, *other;
	__u64 top = ~0ull;

	if (config.slots[slot].stateful) {
		row = row_at(all, config.slots[slot].state_row + w->state);
		top = row ? row[0] : 0;
	}
	if (paired) {
		row = row_at(all, w->selected->row[0]);
		other = row_at(all, w->selected->row[1]);
		if (!row || !other)
			return 0;
		top &= row[0] | other[0] | (row[1] & other[1]);
	}
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++) {
		if (i < 2 * paired || i >= most || i >= groups)
			continue;
		row = row_at(all, w->selected->row[i]);
		top &= row ? row[0] : 0;
	}
	return top;
}

/* Go on with the first part at or after `cursor` that may hold an entry. Returns 1 if there is
 * none.
 */
static __always_inline int seek(struct walk *w, const __u32 slot, __u32 cursor, const __u32 most)
{
	const __u32 groups = config.slots[slot].groups;
	const void *all = element(&rows, 0);
	const __u64 *part;

	if (!all)
		return 1;
	if (config.tall) {
		__u64 top = cursor < 64 ? common_top(all, w, slot, most) & ~0ull << cursor : 0;

		if (!top)
			return 1;
		cursor = lowest_bit(top);
	}
	barrier_var(cursor);
	if (cursor >= config.summary_words)
		return 1;
	w->cursor = cursor;
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++) {
		if (i >= most || i >= groups)
			continue;
		part = part_of(w->blocks, all, w->selected->row[i], cursor);
		if (!part)
			return 1;
		w->parts[i] = part;
	}
	if (config.slots[slot].stateful) {
		part = part_of(w->blocks, all, config.slots[slot].state_row + w->state, cursor);
		if (!part)
			return 1;
		w->state_part = part;
	}
	w->summary = and_summary(w, slot, most);
	if (cursor == w->position / PART_ENTRIES)
		w->summary = unpassed(w, w->summary);
	return 0;
}

/* The block of a part's leaf words; one that is not there is a row without entries. */
static __always_inline const __u64 *part_block(const void *all, const __u64 *part, __u32 block)
{
	const void *references = part + config.summaries;
	__u32 index = config.narrow ? ((const __u16 *)references)[block]
				    : ((const __u32 *)references)[block];

	barrier_var(index);
	if (index >= config.blocks_count)
		return 0;
	return all + (__u64)index * (BLOCK_WORDS * 8);
}

static __always_inline __u32 node_after(const __u32 slot, __u32 node, __u32 kind)
{
	const __u32 *row;

	if (node == ROOT)
		return config.slots[slot].plain_node[kind & 3];
	row = element(&nodes, config.slots[slot].node_base + node);
	return row ? row[(kind - OP_ACCEPT) & 3] : DEAD;
}

/* `code | outcome << 8` of a node that walks end at; 0, PUNT, of any other. */
static __always_inline __u32 final_of(const __u32 slot, __u32 node)
{
	const __u32 *row;

	if (node == config.slots[slot].plain_node[OP_ACCEPT])
		return config.slots[slot].plain_final[OP_ACCEPT];
	if (node == config.slots[slot].plain_node[OP_DROP])
		return config.slots[slot].plain_final[OP_DROP];
	row = element(&nodes, config.slots[slot].node_base + node);
	return row ? row[3] : 0;
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

/* Go on at an entry: in the next step, if it is in another part. */
static __always_inline int skip_to(struct walk *w, const __u32 slot, __u32 position,
				   const __u32 most)
{
	w->position = position;
	if (config.tall && w->cursor != position / PART_ENTRIES) {
		w->cursor = position / PART_ENTRIES - 1;
		w->summary = 0;
	} else {
		w->summary = unpassed(w, and_summary(w, slot, most));
	}
	return 0;
}

/* Execute the operation of an entry that holds the packet. Returns 1 at the walk's end. */
static __always_inline int operate(struct walk *w, const __u32 slot, __u32 entry, const __u32 most)
{
	const void *all = element(&ops, 0);
	__u32 op = all ? number_at(all, config.slots[slot].ops_base + entry, config.ops_count, 0)
		       : MISSING;
	__u32 argument = op & 0x0fffffff;
	__u32 kind = op >> 28;

	if (kind == OP_SKIP)
		return skip_to(w, slot, argument, most);
	if (kind == OP_ITEM || kind == OP_LAST_ITEM) {
		w->node = node_behind_item(slot, w->node, argument);
		if (kind == OP_ITEM)
			return skip_to(w, slot, entry + 1, most);
	} else {
		/* A walk that meets PUNT runs the original rules from their start. */
		w->node = node_after(slot, kind == OP_PUNT ? w->start : w->node, kind);
	}
	w->entry = entry;
	return 1;
}

/* Whether two rows' blocks have an entry in common. */
static __always_inline int meet(const __u64 *left, const __u64 *right)
{
	__u64 any = 0;

#pragma unroll
	for (__u32 i = 0; i < BLOCK_WORDS; i++)
		any |= left[i] & right[i];
	return any != 0;
}

static __always_inline __u64 and_words(const __u64 **block, const __u32 slot, __u32 word,
				       const __u32 most)
{
	const __u32 groups = config.slots[slot].groups;
	__u64 leaf = ~0ull;

	if (config.slots[slot].stateful)
		leaf = block[MAX_GROUPS][word];
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++)
		if (i < most && i < groups)
			leaf &= block[i][word];
	return leaf;
}

/* Which words of the blocks have an entry in common, as bits. Without branches: they would be hard
 * to predict.
 */
static __always_inline __u32 common_words(const __u64 **block, const __u32 slot, const __u32 most)
{
	__u32 common = 0;

#pragma unroll
	for (__u32 i = 0; i < BLOCK_WORDS; i++) {
		__u64 leaf = and_words(block, slot, i, most);

		leaf |= -leaf;
		barrier_var(leaf); /* or clang makes a branch of it */
		common |= (__u32)(leaf >> 63) << i;
	}
	return common;
}

/* Look through the next block (eight leaf words, a byte of the summary) that may hold an entry: one
 * reference per row serves all its words. Returns 1 at the walk's end.
 */
static __always_inline long step(struct walk *w, const __u32 slot, const __u32 most)
{
	const __u32 groups = config.slots[slot].groups;
	const __u64 *block[MAX_GROUPS + 1];
	__u32 first, place, number, word;
	__u64 summary = w->summary;
	__u32 byte, found;
	__u64 leaf;

	if (!summary)
		return seek(w, slot, w->cursor + 1, most);
	first = lowest_bit(summary) & ~7u;
	byte = summary >> first & 0xff;
	w->summary = summary & ~(0xffull << first);
	place = first / 8;
	barrier_var(place);
	if (place >= config.stripes)
		return 1;
	number = w->cursor * PART_BLOCKS + place;
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++) {
		block[i] = w->blocks; /* what clang may copy must have a value */
		if (i >= most || i >= groups)
			continue;
		block[i] = part_block(w->blocks, w->parts[i], place);
		if (!block[i])
			return 1;
		/* Mostly the two addresses, which leave nothing of most blocks. */
		if (i == 1 && byte & (byte - 1) && !meet(block[0], block[1]))
			return 0;
	}
	block[MAX_GROUPS] = w->blocks;
	if (config.slots[slot].stateful) {
		block[MAX_GROUPS] = part_block(w->blocks, w->state_part, place);
		if (!block[MAX_GROUPS])
			return 1;
	}
	/* In short lists one word is all there is. */
	found = byte & (byte - 1) ? common_words(block, slot, most) & byte : byte;
	if (!found)
		return 0;
	word = lowest_bit(found) & 7;
	leaf = and_words(block, slot, word, most);
	word += number * BLOCK_WORDS;
	w->summary = summary & ~0ull << (word % 64) << 1;
	if (word == w->position / 64)
		leaf &= ~0ull << (w->position % 64);
	if (!leaf)
		return 0;
	return operate(w, slot, word * 64 + lowest_bit(leaf), most);
}

static long step0(__u32 index, void *walk)
{
	return step(walk, 0, MAX_GROUPS);
}

static long step1(__u32 index, void *walk)
{
	return step(walk, 1, MAX_GROUPS);
}

static long step2(__u32 index, void *walk)
{
	return step(walk, 2, MAX_GROUPS);
}

static long step3(__u32 index, void *walk)
{
	return step(walk, 3, MAX_GROUPS);
}

#endif
