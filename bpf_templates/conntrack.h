/* SPDX-License-Identifier: GPL-2.0-only */
/* What connection tracking says of a packet, read from skb->_nfct. */
#ifndef CONNTRACK_H
#define CONNTRACK_H

#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "kernel_types.h"

#define NFCT_INFO	    7ul /* low bits of skb->_nfct, see enum ip_conntrack_info */
#define IP_CT_RELATED	    1
#define IP_CT_NEW	    2
#define IP_CT_IS_REPLY	    3
#define IP_CT_RELATED_REPLY 4
#define IP_CT_UNTRACKED	    7
#define IPS_SRC_NAT	    (1ul << 4)
#define IPS_DST_NAT	    (1ul << 5)

/* Numbers of State in bpfilter/ruleset/fields.py. */
#define STATE_NEW	  1
#define STATE_ESTABLISHED 2
#define STATE_RELATED	  4
#define STATE_INVALID	  8
#define STATE_UNTRACKED	  16

/* As conntrack_mt of net/netfilter/xt_conntrack.c decides it. */
static __always_inline __u32 state_of(unsigned long nfct)
{
	__u32 info = nfct & NFCT_INFO;

	if (!(nfct & ~NFCT_INFO))
		return info == IP_CT_UNTRACKED ? STATE_UNTRACKED : STATE_INVALID;
	if (info == IP_CT_NEW)
		return STATE_NEW;
	if (info == IP_CT_RELATED || info == IP_CT_RELATED_REPLY)
		return STATE_RELATED;
	return STATE_ESTABLISHED;
}

/* Which bit that is. */
static __always_inline __u32 state_number(unsigned long nfct)
{
	const __u32 state = state_of(nfct);
	__u32 number = 0;

	for (__u32 i = 1; i < MAX_STATES; i++)
		number += state >> i != 0;
	return number;
}

/* Whether nf_nat_packet() of net/netfilter/nf_nat_core.c rewrote it before filter: there only
 * destinations change, by a DNAT of original packets, by an SNAT of replies.
 */
static __always_inline int is_translated(unsigned long nfct)
{
	const struct nf_conn *connection = (const void *)(nfct & ~NFCT_INFO);
	unsigned long status = 0;

	if (!connection || !bpf_core_field_exists(connection->status))
		return 0;
	if (bpf_core_read(&status, sizeof(status), &connection->status))
		return 0;
	return (status & ((nfct & NFCT_INFO) >= IP_CT_IS_REPLY ? IPS_SRC_NAT : IPS_DST_NAT)) != 0;
}

#endif
