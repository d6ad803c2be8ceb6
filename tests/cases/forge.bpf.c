/* SPDX-License-Identifier: GPL-2.0-only */
/* Another tool's program at TC ingress, which writes the whole mark. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int forge(struct __sk_buff *skb)
{
	skb->mark = 0xffffffff;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";
