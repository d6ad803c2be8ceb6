/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet's fields to the rows of its classes: steps 1 to 3 of bpfilter/compiler/layout.py.
 * Slot and axis are constants in every call, so that the verifier prunes unused axes.
 */
#ifndef ROWS_H
#define ROWS_H

#include <linux/if_ether.h>
#include "maps.h"
#include "parse.h"

#define MAX_HALVINGS   20 /* 2^20 bounds: more than two per entry */
#define LIST_INTERVALS 8
#define RTN_UNICAST    1
#define RTN_LOCAL      2
#define RTN_BROADCAST  3
#define RTN_MULTICAST  5
#define AXIS(slot, n)  (config.slots[slot].axes[n])

struct bound {
	__u64 high;
	__u64 low;
};

struct selection {
	__u32 row[MAX_GROUPS];
};

/* inet_addr_type() of net/ipv4/fib_frontend.c; for IPv6 the local table alone. */
static __always_inline __u32 address_type(const struct packet *p, const __u32 *address)
{
	struct address_key key = {.prefix_length = 32 + 128};
	const __u32 *type;

	if (p->version == 4) {
		if (address[3] == 0 || address[3] == 0xffffffff)
			return RTN_BROADCAST;
		if (address[3] >> 28 == 14)
			return RTN_MULTICAST;
		key.prefix_length = 32 + 32;
		key.family = bpf_htonl(4);
		key.words[0] = bpf_htonl(address[3]);
	} else {
		key.family = bpf_htonl(6);
		for (__u32 i = 0; i < 4; i++)
			key.words[i] = bpf_htonl(address[i]);
	}
	type = bpf_map_lookup_elem(&addresses, &key);
	return type ? *type : RTN_UNICAST;
}

static __always_inline __u32 mask_bits(const struct packet *p, const __u32 slot)
{
	__u32 bits = 0;

#pragma unroll
	for (__u32 i = 0; i < MAX_MASKS; i++) {
		const volatile struct masked *m = &config.slots[slot].masks[i];
		const __u32 *address;
		__u32 differ = 0;

		if (i >= config.slots[slot].mask_count)
			break;
		address = m->axis == SOURCE ? p->source : p->destination;
		for (__u32 word = 0; word < 4; word++)
			differ |= (address[word] & m->mask[word]) ^ m->value[word];
		bits |= (differ == 0) << i;
	}
	return bits;
}

static __always_inline __u32 id_at(const void *numbers, __u32 index)
{
	return number_at(numbers, index, config.ids_count, config.small_ids);
}

static __always_inline __u32 plain_id(const void *numbers, __u32 index)
{
	return config.small_ids ? ((const __u16 *)numbers)[index] : ((const __u32 *)numbers)[index];
}

/* Numbers `index` … of a list: its starts are counted without branches, and lie in one cache line
 * with the classes.
 */
static __always_inline __u32 list_class(const void *numbers, __u32 index, __u32 low)
{
	__u32 interval = 0;

	barrier_var(index);
	if (config.ids_count < 2 * LIST_INTERVALS || index > config.ids_count - 2 * LIST_INTERVALS)
		return MISSING;
#pragma unroll
	for (__u32 i = 1; i < LIST_INTERVALS; i++) {
		__u32 difference = plain_id(numbers, index + i) - low - 1;

		barrier_var(difference); /* or clang makes a branch of it */
		interval += difference >> 31;
	}
	return plain_id(numbers, index + LIST_INTERVALS + interval);
}

static __always_inline __u32 trie4_class(const void *numbers, const __u32 slot, const __u32 n,
					 __u32 address)
{
	const __u32 pointer = config.small_ids ? 1u << 15 : 1u << 31;
	const __u32 list = AXIS(slot, n).lists_base ? pointer >> 1 : 0;
	const __u32 base = AXIS(slot, n).base;
	__u32 found = id_at(numbers, base + (address >> 16));
	__u32 low = address & 0xffff;

	if (found == MISSING || !(found & pointer))
		return found;
	if (!(found & list)) {
		found = id_at(numbers, base + 65536 + (found & ~pointer) * 256 + (low >> 8));
		low &= 0xff;
		if (found == MISSING || !(found & pointer))
			return found;
		if (!(found & list))
			return id_at(numbers, base + 65536 + (found & ~pointer) * 256 + low);
	}
	return list_class(numbers,
			  base + AXIS(slot, n).lists_base +
				  (found & ~(pointer | list)) * (2 * LIST_INTERVALS),
			  low);
}

/* 1 if a < b. Without branches: the verifier would follow both sides at every halving. */
static __always_inline __u64 below(__u64 a, __u64 b)
{
	return ((~a & b) | ((~a | b) & (a - b))) >> 63;
}

/* Binary search by halves: the count is a constant, so the verifier walks one path. */
static __always_inline __u32 bounds6_class(const void *numbers, const __u32 slot, const __u32 n,
					   const __u32 *address)
{
	const __u64 high = (__u64)address[0] << 32 | address[1];
	const __u64 low = (__u64)address[2] << 32 | address[3];
	__u32 count = AXIS(slot, n).bounds_count;
	__u32 first = AXIS(slot, n).bounds_base;
	const struct bound *all = element(&bounds, 0);
	const struct bound *bound;
	__u32 found = 0;

	if (!all)
		return MISSING;
	for (__u32 i = 0; i < MAX_HALVINGS && count > 1; i++) {
		__u32 half = count / 2;
		__u32 index = first + found + half;
		__u64 borrow;

		barrier_var(index);
		if (index >= config.bounds_count)
			return MISSING;
		bound = &all[index];
		borrow = below(low, bound->low);
		borrow = below(high, bound->high) | below(high - bound->high, borrow);
		/* Multiplied, not masked: the verifier forks on masks of 0 and -1. */
		barrier_var(borrow);
		found += half * (__u32)(borrow ^ 1);
		count -= half;
	}
	return id_at(numbers, AXIS(slot, n).base + found);
}

static __always_inline __u32 mac_class(context_t *ctx, const struct packet *p, const void *numbers,
				       const __u32 slot)
{
	struct mac address;
	const __u32 *value;
	__u64 key = slot;

	if (LOAD(ctx, ETH_ALEN, &address))
		return MISSING;
	for (__u32 i = 0; i < 3; i++)
		key = key << 16 | bpf_ntohs(address.words[i]);
	value = bpf_map_lookup_elem(&macs, &key);
	return id_at(numbers, AXIS(slot, MAC_SOURCE).base + (value ? *value : 0));
}

/* The classes of interface names; MISSING for a device that was not known at load. */
static __always_inline __u32 in_class(context_t *ctx, const __u32 slot)
{
	__u32 index = device_index(ctx);
	const struct interface *known = bpf_map_lookup_elem(&interfaces, &index);

	return known && known->known ? known->in_class[slot] : MISSING;
}

static __always_inline __u32 out_class(const struct packet *p, const __u32 slot)
{
	const struct runtime *run;

	if (config.mode == MODE_LIVE) {
		const struct interface *out = bpf_map_lookup_elem(&interfaces, &p->out);

		return out && out->known ? out->in_class[slot] : MISSING;
	}
	run = element(&runtime, 0);

	return run ? run->out_class[slot] : MISSING;
}

static __always_inline __u32 axis_value(context_t *ctx, const struct packet *p, const __u32 slot,
					const __u32 n)
{
	switch (n) {
	case PROTOCOL:
		return p->protocol;
	case DESTINATION_PORT:
		return p->destination_port;
	case SOURCE_PORT:
		return p->source_port;
	case TCP_FLAGS:
		return p->tcp_flags;
	case ICMP_TYPE:
		return p->icmp_type;
	case IN_INTERFACE:
		return in_class(ctx, slot);
	case OUT_INTERFACE:
		return out_class(p, slot);
	case LENGTH:
		return p->length;
	case TTL:
		return p->ttl - config.slots[slot].forward;
	case TOS:
		return p->tos;
	case PACKET_TYPE:
		return p->packet_type;
	case SOURCE_TYPE:
		return address_type(p, p->source);
	case DESTINATION_TYPE:
		return address_type(p, p->destination);
	case MASKS:
		return mask_bits(p, slot);
	}
	return MISSING;
}

static __always_inline __u32 axis_class(context_t *ctx, const struct packet *p, const void *numbers,
					const __u32 slot, const __u32 n)
{
	__u32 value;

	if (n == SOURCE || n == DESTINATION) {
		const __u32 *address = n == SOURCE ? p->source : p->destination;

		if (slot < 2)
			return trie4_class(numbers, slot, n, address[3]);
		return bounds6_class(numbers, slot, n, address);
	}
	if (n == MAC_SOURCE)
		return mac_class(ctx, p, numbers, slot);
	value = axis_value(ctx, p, slot, n);
	return value == MISSING ? MISSING : id_at(numbers, AXIS(slot, n).base + value);
}

static __always_inline enum reason missing(const __u32 n)
{
	return n == IN_INTERFACE || n == OUT_INTERFACE ? REASON_INTERFACE : REASON_LOOKUP;
}

/* The number of one row per group of axes, in order. */
static __always_inline int select_of(context_t *ctx, const struct packet *p, const __u32 slot,
				     struct selection *selected)
{
	/* Read once: what the verifier knows to be constant still costs a load each time. */
	const __u32 used = config.slots[slot].axes_used;
	const __u32 combine = config.slots[slot].axes_combine;
	const __u32 last = config.slots[slot].axes_last;
	const void *numbers = element(&ids, 0);
	__u32 combined = 0;
	__u32 group = 0;

	if (!p || !selected || !numbers)
		return REASON_LOOKUP;
#pragma unroll
	for (__u32 n = 0; n < AXES; n++) {
		__u32 id;

		if (!(used & 1 << n))
			continue;
		if (n == MAC_SOURCE && p->network != ETH_HLEN)
			return REASON_NO_ETHERNET;
		id = axis_class(ctx, p, numbers, slot, n);
		if (id == MISSING)
			return missing(n);
		if (combine & 1 << n) {
			id = id_at(numbers, AXIS(slot, n).combine_base +
						    combined * AXIS(slot, n).classes + id);
			if (id == MISSING)
				return REASON_LOOKUP;
		}
		combined = id;
		if (!(last & 1 << n))
			continue;
		if (group >= MAX_GROUPS)
			return REASON_LOOKUP;
		selected->row[group++] = AXIS(slot, n).row_base + id;
	}
	return REASON_NONE;
}

#endif
