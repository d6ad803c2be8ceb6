/* SPDX-License-Identifier: GPL-2.0-only */
/* What the loader patches into read-only data; bpfilter/kernel/config.py mirrors every struct.
 * The verifier sees the values as constants and removes each branch that a ruleset does not use.
 */
#ifndef CONFIG_H
#define CONFIG_H

#include <linux/types.h>

#define SLOTS	       4
#define AXES	       17
#define MAX_GROUPS     8
#define MAX_STATES     5
#define MAX_MASKS      8
#define BLOCK_WORDS    8
#define MAX_CHANGED    64
#define MISSING	       0xffffffffu
#define PUNT_STRIDE    64 /* counts from one CPU to the next */
#define OUTCOME_STRIDE 16

/* Numbers of AXES in bpfilter/compiler/layout.py. */
enum axis_name {
	SOURCE,
	DESTINATION,
	PROTOCOL,
	DESTINATION_PORT,
	SOURCE_PORT,
	TCP_FLAGS,
	ICMP_TYPE,
	IN_INTERFACE,
	OUT_INTERFACE,
	LENGTH,
	TTL,
	TOS,
	MAC_SOURCE,
	PACKET_TYPE,
	SOURCE_TYPE,
	DESTINATION_TYPE,
	MASKS,
};

/* OpKind of bpfilter/compiler/ir.py; the loader turns items that are terminal into OP_LAST_ITEM. */
enum op_kind {
	OP_ACCEPT = 1,
	OP_DROP,
	OP_PUNT,
	OP_SKIP,
	OP_ITEM,
	OP_LAST_ITEM,
};

enum outcome {
	OUTCOME_PUNT,
	OUTCOME_ACCEPT,
	OUTCOME_DROP,
	OUTCOME_RESIDUAL,
	OUTCOMES,
};

enum mode {
	MODE_FORCED,	 /* the chain is given */
	MODE_LIVE_INPUT, /* unicast to a local address takes the first chain, all else is punted */
	MODE_EVAL,	 /* the chain is given, and frames come from BPF_PROG_RUN */
	MODE_LIVE,	 /* unicast to a local address, or forwarded by a known route */
};

enum trace_mode {
	TRACE_OFF,
	TRACE_LAST,  /* one record, of the last packet */
	TRACE_BY_ID, /* records by the IPv4 ID or the low 16 bits of the IPv6 flow label */
};

/* Bits of config.early. */
#define EARLY_DROPS  1 /* programs that drop early share this one's maps */
#define EARLY_LOOKUP 2 /* the kernel can be asked for conntrack entries */

/* Bits of runtime.early. */
#define RUNTIME_EARLY	1 /* the conditions of the early profile hold */
#define RUNTIME_TRACKED 2 /* conntrack is in use: packets with an entry are never dropped early */

/* Bits of interface.known: INTERFACE_KNOWN, and per family ROUTE_* from bit ROUTE_IPV4 or _IPV6;
 * Fact of bpfilter/kernel/routing.py.
 */
#define INTERFACE_KNOWN 1
#define ROUTE_IPV4	8
#define ROUTE_IPV6	16

#define ROUTE_FORWARDS	   1 /* packets from it may be forwarded, by what bpf_fib_lookup knows */
#define ROUTE_SEVERAL	   2 /* it is one of several paths to some destination */
#define ROUTE_BY_ADDRESSES 4 /* of which one is chosen by the addresses */
#define ROUTE_BY_PORTS	   8 /* or by the ports as well */

/* Why a packet was left to the original rules; `Reason` in bpfilter/kernel/config.py. */
enum reason {
	REASON_NONE,
	REASON_RULE,	/* a rule that only iptables can execute */
	REASON_NO_CODE, /* its residual has no code */
	REASON_NO_SLOT, /* the chain or family is not translated */
	REASON_FRAGMENT,
	REASON_OPTIONS,	  /* IPv4 options */
	REASON_TRUNCATED, /* shorter than its headers say */
	REASON_MALFORMED,
	REASON_EXTENSION, /* an IPv6 extension header that is not walked */
	REASON_ETHERTYPE,
	REASON_LEASE,
	REASON_GENERATION, /* the kernel's rules are not those of the plan */
	REASON_OTHERHOST,  /* packet type other than host, broadcast, multicast */
	REASON_VLAN,
	REASON_NOT_LOCAL,   /* not unicast to an address in the local table */
	REASON_TTL,	    /* would expire before FORWARD */
	REASON_INTERFACE,   /* not among the interfaces known at load */
	REASON_NO_ETHERNET, /* a rule asks for the MAC address, there is none */
	REASON_LOOKUP,	    /* a table has no such element: never, if they were loaded whole */
	REASON_LONG_WALK,
	REASON_SCOPE,	  /* outside of what the canary stage takes */
	REASON_SAMPLED,	  /* left to the original rules to be compared */
	REASON_ROUTE,	  /* the route is not settled by bpf_fib_lookup */
	REASON_RAW,	  /* raw PREROUTING has a say */
	REASON_NOT_EARLY, /* may be dropped late only: DHCP, options, other protocols, a shared
			     device */
	REASON_TRACKED,	  /* conntrack has an entry, or cannot be asked */
	REASON_CHANGED,	  /* a rule that can match it was changed since the plan */
	REASONS,
};

struct axis {
	__u32 base; /* in `ids` */
	__u32 classes;
	__u32 combine_base; /* in `ids` */
	__u32 bounds_base;  /* in `bounds` */
	__u32 bounds_count;
	__u32 lists_base; /* of a trie, relative to `base`; 0: it has none */
	__u32 row_base;	  /* in `rows` */
};

/* Addresses as four words, the most significant first; IPv4 uses the last only. */
struct masked {
	__u32 axis;
	__u32 mask[4];
	__u32 value[4];
};

struct slot {
	__u32 used;
	__u32 forward;	 /* the TTL is seen after the decrement */
	__u32 axes_used; /* bit n: axis n; what kind it is follows from its field and family */
	__u32 axes_combine;
	__u32 axes_last; /* of their group */
	__u32 groups;
	__u32 states;
	__u32 stateful; /* some entry does not hold in every state */
	__u32 paired;	/* the rows of the two addresses, the first ones, have two summaries */
	__u32 state_row;
	__u32 ops_base;
	__u32 node_base;
	__u32 counter_base;
	__u32 mask_count;
	__u32 raw_entries;    /* walks that end before it end in raw PREROUTING */
	__u32 plain_node[4];  /* behind the root, by the kind of operation that ends the walk */
	__u32 plain_final[4]; /* that node's code | outcome << 8 */
	struct masked masks[MAX_MASKS];
	struct axis axes[AXES];
};

struct config {
	__u32 mode;
	__u32 forced; /* 0: first chain of the family, 1: second */
	__u32 marking;
	__u32 mark_mask;
	__u32 mark_shift;
	__u32 leased;
	__u32 generation; /* compare it */
	__u32 table_type; /* BTF id of struct xt_table in vmlinux; 0: it is a module's */
	__u32 trace;
	__u32 counting;
	__u32 shadow;	     /* store predictions for comparison */
	__u32 shadow_share;  /* of 65536 packets that are predicted */
	__u32 verify_share;  /* of 65536 decided packets that are left to iptables and compared */
	__u32 scope_share;   /* of 65536 flows that may be decided; 0: all */
	__u32 scope_sources; /* only packets from the networks of `scope` may be decided */
	__u32 early;	     /* EARLY_… */
	__u32 raw_tables;    /* the generation covers the legacy tables on PRE_ROUTING too */
	__u32 summary_words; /* parts of a row */
	__u32 summaries;     /* words of a part, and of a row that has several, before references */
	__u32 tall;	     /* rows have several parts, by reference; else a row is its part */
	__u32 stripes;	     /* blocks of a part */
	__u32 narrow;	     /* references to blocks are u16, else u32 */
	__u32 narrow_parts;  /* those to parts */
	__u32 small_ids;     /* `ids` are u16 with the trie's bits in bits 15 and 14, else u32 */
	__u32 iterations;
	__u32 pitch; /* bytes from one row to the next */
	__u32 ids_count;
	__u32 bounds_count;
	__u32 rows_count;
	__u32 parts_count;
	__u32 blocks_count;
	__u32 ops_count;
	__u32 counter_stride; /* from one CPU to the next */
	__u64 legacy_hook4;   /* address of ipt_do_table, 0 if unknown */
	__u64 legacy_hook6;
	__u64 tracking_hook4; /* address of ipv4_conntrack_in, 0 if unknown */
	__u64 tracking_hook6;
	struct slot slots[SLOTS];
};

#endif
