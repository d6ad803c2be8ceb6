/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets that rules can match which were changed since the program was made: iptables decides
 * those, and the program all others, until there is a program of the rules as they are now.
 * bpfilter/kernel/changed.py mirrors the struct.
 */
#ifndef CHANGED_H
#define CHANGED_H

#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "parse.h"

struct changed {
	__u32 version; /* 4 or 6 */
	__u32 protocols[2];
	__u32 source_ports[2]; /* first and last, as the other ranges */
	__u32 destination_ports[2];
	__u32 source[4]; /* as in struct packet, under the mask */
	__u32 source_mask[4];
	__u32 destination[4];
	__u32 destination_mask[4];
	__u32 reserved; /* elements of mapped arrays begin at multiples of eight */
};

ARRAY(changed, sizeof(struct changed), BPF_F_MMAPABLE); /* the first `changed` of `runtime` count */

static __always_inline int within(__u32 value, const __u32 *range)
{
	return value >= range[0] && value <= range[1];
}

static __always_inline __u32 differs(const __u32 *address, const __u32 *mask, const __u32 *value)
{
	__u32 differ = 0;

	for (__u32 i = 0; i < 4; i++)
		differ |= (address[i] & mask[i]) ^ value[i];
	return differ;
}

/* Not static: checked once, not from every way through the parser. */
__noinline int among_changed(const struct packet *p, __u32 count)
{
	if (!p)
		return 1;
	for (__u32 i = 0; i < MAX_CHANGED && i < count; i++) {
		const struct changed *c = element(&changed, i);

		if (!c)
			return 1;
		if (c->version != p->version || !within(p->protocol, c->protocols) ||
		    !within(p->source_port, c->source_ports) ||
		    !within(p->destination_port, c->destination_ports))
			continue;
		if (!differs(p->source, c->source_mask, c->source) &&
		    !differs(p->destination, c->destination_mask, c->destination))
			return 1;
	}
	return 0;
}

static __always_inline int concerned_by_change(const struct packet *p)
{
	const struct runtime *run;

	if (!config.leased)
		return 0;
	run = element(&runtime, 0);
	return !run || (run->changed && among_changed(p, run->changed));
}

#endif
