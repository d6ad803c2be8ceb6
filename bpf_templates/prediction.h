/* SPDX-License-Identifier: GPL-2.0-only */
/* What the program foretold of a packet, remembered until filter has judged it. The classifier
 * writes predictions, shadow.bpf.c settles them; the loader gives both the same maps.
 */
#ifndef PREDICTION_H
#define PREDICTION_H

#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "kernel_types.h"
#include "maps.h"

#define HEADER_BYTES 64
#define IPV4_WORDS \
	4 /* u64 of a header that are compared: 12 bytes behind IPv4's, 8 behind IPv6's */
#define IPV6_WORDS   6
#define HEADER_LEAST 20

enum life {
	LIFE_PREDICTED,
	LIFE_BEFORE, /* seen just before filter */
};

struct prediction {
	__u64 time; /* CLOCK_MONOTONIC ns of the last step */
	__u32 device;
	__u32 out_device;
	__u32 node;
	__u32 final[MAX_STATES];
	__u8 slot;
	__u8 life;
	__u8 state;  /* number of the bit */
	__u8 bytes;  /* of the header that are known, from the network header on */
	__u32 edits; /* of `runtime`, when it was made */
	__u64 header[HEADER_BYTES / 8];
};

struct finals {
	__u32 entries[MAX_STATES];
};

/* Indices of `tally`; Tally in bpfilter/kernel/shadow.py. */
enum tally_name {
	TALLY_STORED,
	TALLY_BEFORE, /* Unseen of bpfilter/rollout/comparison.py, in order */
	TALLY_QUEUED,
	TALLY_VANISHED,
	TALLY_LOST,
	TALLY_TRANSLATED, /* Incomparable */
	TALLY_OTHER_CHAIN,
	TALLY_EDITED,
	TALLY_FOREIGN,
	TALLY_MISMATCHES,
	TALLY_SAMPLES_LOST,
	SHARED_FILTER, /* no count: others have chains at the priority of filter */
	TALLIES,
};

HASH(predictions, sizeof(__u64),
     sizeof(struct prediction)); /* by key_of_packet() or content_key() */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TALLIES);
	__uint(key_size, 4);
	__uint(value_size, 8);
	__uint(map_flags, BPF_F_MMAPABLE);
} tally SEC(".maps");

static __always_inline void add_tally(enum tally_name name)
{
	__u32 index = name;
	__u64 *cell = bpf_map_lookup_elem(&tally, &index);

	if (cell)
		__sync_fetch_and_add(cell, 1);
}

static __always_inline __u32 edits_now(void)
{
	const struct runtime *run = config.leased ? element(&runtime, 0) : 0;

	return run ? run->edits : 0;
}

static __always_inline __u32 words_of(const __u64 *header)
{
	return *(const __u8 *)header >> 4 == 6 ? IPV6_WORDS : IPV4_WORDS;
}

/* The bits of a header's word that no hop on the way to filter changes: not TOS, TTL, checksum. */
static __always_inline __u64 lasting(int ipv6, const __u32 word)
{
	if (word == 0)
		return ipv6 ? bpf_cpu_to_be64(0xf00fffffffffff00)
			    : bpf_cpu_to_be64(0xff00ffffffffffff);
	if (word == 1 && !ipv6)
		return bpf_cpu_to_be64(0x00ff0000ffffffff);
	return ~0ull;
}

/* Of a packet that protocol handlers beside IP will get, IP gets a clone: another skb. Its own
 * content names it then; such keys are odd, addresses are even.
 */
static __always_inline __u64 content_key(__u32 device, const __u64 *header)
{
	const __u32 count = words_of(header);
	__u64 mixed = device;

	for (__u32 i = 0; i < IPV6_WORDS; i++) {
		if (i < count)
			mixed ^= header[i] & lasting(count == IPV6_WORDS, i);
		mixed *= 0x9e3779b97f4a7c15ull;
		mixed ^= mixed >> 29;
	}
	return mixed | 1;
}

/* Whether packet sockets bound to the device, or other handlers of one device, share its packets:
 * deliver_ptype_list_skb() of net/core/dev.c, then skb_share_check() in ip_rcv_core().
 */
static __always_inline int device_shared(struct net_device *device)
{
	const void *first = device->ptype_specific.next;
	const void *head = &device->ptype_specific;
	__u64 difference = (__u64)first - (__u64)head;

	barrier_var(difference);
	return difference != 0;
}

#endif
