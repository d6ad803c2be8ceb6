/* SPDX-License-Identifier: GPL-2.0-only */
/* Which of a chain's walks is that of a connection state: known once conntrack has seen the packet.
 */
#ifndef CLASSES_H
#define CLASSES_H

#include <linux/types.h>
#include "config.h"

struct classes {
	__u8 of_state[SLOTS][8]; /* by the number of the state's bit; MAX_STATES: none */
};

const volatile struct classes classes SEC(".rodata.classes") = {};

static __always_inline __u32 class_of_state(__u32 slot, __u32 state)
{
	return classes.of_state[slot & (SLOTS - 1)][state & 7];
}

#endif
