/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's own types as far as we read them; libbpf relocates every access by BTF. */
#ifndef KERNEL_TYPES_H
#define KERNEL_TYPES_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define KERNEL_TYPE __attribute__((preserve_access_index))

struct netns_nftables {
	unsigned int base_seq;
} KERNEL_TYPE;

struct nf_hook_entry {
	void *hook;
	void *priv;
} KERNEL_TYPE;

struct nf_hook_entries {
	__u16 num_hook_entries;
	struct nf_hook_entry hooks[];
} KERNEL_TYPE;

struct netns_nf {
	struct nf_hook_entries *hooks_ipv4[5];
	struct nf_hook_entries *hooks_ipv6[5];
} KERNEL_TYPE;

struct net {
	struct netns_nf nf;
	struct netns_nftables nft;
} KERNEL_TYPE;

typedef struct {
	struct net *net;
} possible_net_t;

struct list_head {
	struct list_head *next;
} KERNEL_TYPE;

struct net_device {
	int ifindex;
	struct list_head ptype_specific;
	possible_net_t nd_net;
	const unsigned char *dev_addr;
	void *rx_handler; /* of a bridge, bond, macvlan or ipvlan */
	void *vlan_info;  /* VLAN devices on top */
} KERNEL_TYPE;

struct dst_entry {
	struct net_device *dev;
} KERNEL_TYPE;

struct sk_buff {
	struct net_device *dev;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	unsigned int len;
	unsigned int data_len;
	__u32 mark;
	__be16 protocol;
	__u16 network_header;
	__u16 mac_header;
	unsigned char *head;
	unsigned char *data;
} KERNEL_TYPE;

struct xdp_rxq_info {
	struct net_device *dev;
} KERNEL_TYPE;

struct xdp_buff {
	struct xdp_rxq_info *rxq;
} KERNEL_TYPE;

struct xt_table_info {
	unsigned int size;
	unsigned int number;
} KERNEL_TYPE;

struct xt_table {
	struct xt_table_info *private;
} KERNEL_TYPE;

struct nf_hook_state {
	__u8 hook;
	__u8 pf;
	struct net_device *out;
	struct net *net;
} KERNEL_TYPE;

struct nf_conn {
	unsigned long status; /* IPS_* */
} KERNEL_TYPE;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} KERNEL_TYPE;

void *bpf_cast_to_kern_ctx(void *object) __ksym;
void *bpf_rdonly_cast(const void *object, __u32 type) __ksym;

#endif
