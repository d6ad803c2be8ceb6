/* SPDX-License-Identifier: GPL-2.0-only */
/* All maps. Sizes of 1 are set by the loader. Arrays are mapped and filled by it before attaching.
 */
#ifndef MAPS_H
#define MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"

#define ARRAY(name, size, flags)                  \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, 1);           \
		__uint(key_size, 4);              \
		__uint(value_size, size);         \
		__uint(map_flags, flags);         \
	} name SEC(".maps")

/* One element, sized by the loader and indexed by us: `config` has the bounds, so that an access
 * costs a comparison where a lookup costs a trip through memory.
 */
#define WHOLE(name) ARRAY(name, 64, BPF_F_MMAPABLE)

#define HASH(name, key, value)                   \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, 1);          \
		__uint(key_size, key);           \
		__uint(value_size, value);       \
	} name SEC(".maps")

struct address_key {
	__u32 prefix_length; /* of `words`: 32 (family) more than the address prefix */
	__u32 family;	     /* 4 or 6, in network order so that it comes first */
	__u32 words[4];	     /* network order; IPv4 in the first */
};

struct interface {
	__u32 known; /* INTERFACE_KNOWN, ROUTE_* */
	__u32 in_class[SLOTS];
};

struct runtime {
	__u64 valid_until; /* CLOCK_MONOTONIC ns */
	__u64 legacy[2];   /* generation of the legacy tables, IPv4 and IPv6 */
	__u32 nft;	   /* generation of nf_tables */
	__u32 cut;	   /* MODE_EVAL: bytes that BPF_PROG_RUN had no room for */
	__u32 out_class[SLOTS];
	__u32 early; /* the early profile's conditions hold: packets may be dropped before netfilter
		      */
	__u16 changed; /* how many elements of the map `changed` count */
	__u16 edits;   /* changes with every writing of them */
	__u64 vouched; /* the program's: at this tick this lease was good */
};

struct generation {
	__u64 legacy[2];
	__u32 nft;
	__u32 known; /* which of them this kernel shows */
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct record {
	__u32 hits;
	__u8 slot;
	__u8 reason;
	__u8 outcome;
	__u8 states;
	__u32 code;
	__u32 node;
	__u32 length;
	__u32 mark; /* after us */
	__u32 final[MAX_STATES];
	__u32 reserved;
};

WHOLE(ids);					/* u32, or u16 */
WHOLE(bounds);					/* u64 high, low */
WHOLE(rows);					/* tops and references, `pitch` apart; or parts */
WHOLE(blocks);					/* u64 × 8; then parts, PART_SIZE apart */
WHOLE(ops);					/* u32 */
ARRAY(nodes, 16, BPF_F_MMAPABLE);		/* u32 × 4 */
HASH(edges, 8, 4);				/* node << 32 | item → node */
HASH(macs, 8, 4);				/* slot << 48 | address → value */
ARRAY(interfaces, sizeof(struct interface), 0); /* by ifindex; a hash where those are large */
ARRAY(runtime, sizeof(struct runtime), BPF_F_MMAPABLE);
ARRAY(observed, sizeof(struct generation), 0);
ARRAY(trace, sizeof(struct record), BPF_F_MMAPABLE);
/* Counts: one row per possible CPU, so that reading them takes no system call. */
ARRAY(counters, sizeof(struct count), BPF_F_MMAPABLE); /* 2 × entry: certain; + 1: only possible */
ARRAY(punts, sizeof(struct count), BPF_F_MMAPABLE);    /* by reason */
ARRAY(outcomes, sizeof(struct count), BPF_F_MMAPABLE); /* slot × OUTCOMES + outcome */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct address_key));
	__uint(value_size, 4);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} addresses SEC(".maps"); /* RTN_* of the local table */

const volatile struct config config SEC(".rodata.config") = {};

static __always_inline const void *element(void *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

/* Number `index` of `count` in `ids` or `ops`; MISSING past the end. */
static __always_inline __u32 number_at(const void *numbers, __u32 index, const __u32 count,
				       const __u32 small)
{
	barrier_var(index);
	if (index >= count)
		return MISSING;
	return small ? ((const __u16 *)numbers)[index] : ((const __u32 *)numbers)[index];
}

/* This CPU's row of counts: Classifier in bpfilter/kernel/program.py reads them. */
static __always_inline void count(void *map, __u32 index, __u32 bytes)
{
	struct count *cell;

	if (map == &counters)
		index += bpf_get_smp_processor_id() * config.counter_stride;
	else if (map == &punts)
		index += bpf_get_smp_processor_id() * PUNT_STRIDE;
	else
		index += bpf_get_smp_processor_id() * OUTCOME_STRIDE;
	cell = bpf_map_lookup_elem(map, &index);
	if (cell) {
		cell->packets++;
		cell->bytes += bytes;
	}
}

#endif
