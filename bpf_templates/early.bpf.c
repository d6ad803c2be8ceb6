// SPDX-License-Identifier: GPL-2.0-only
/* TC ingress, before the classifier: drops what the early profile allows. */
#include <linux/pkt_cls.h>
#include "early.h"

char LICENSE[] SEC("license") = "GPL";

SEC("tc")
int early(struct __sk_buff *skb)
{
	return dropped_early(skb) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int capture(struct __sk_buff *skb)
{
	capture_generation(skb);
	return TC_ACT_OK;
}
