// SPDX-License-Identifier: GPL-2.0-only
/* XDP: drops what the early profile allows before the kernel makes a packet of it. */
#define HOOK_XDP
#include "early.h"

char LICENSE[] SEC("license") = "GPL";

SEC("xdp.frags")
int xdp(struct xdp_md *ctx)
{
	return dropped_early(ctx) ? XDP_DROP : XDP_PASS;
}

SEC("xdp.frags")
int capture(struct xdp_md *ctx)
{
	capture_generation(ctx);
	return XDP_PASS;
}
