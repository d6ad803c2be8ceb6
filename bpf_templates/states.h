/* SPDX-License-Identifier: GPL-2.0-only */
/* The walks of all classes of connection states, one after the other, through the steps of walk.h.
 */
#ifndef STATES_H
#define STATES_H

#include "rows.h"
#include "walk.h"

/* A walk in line ends after so many; the few that go further go on with bpf_loop(). Fewer where
 * each of several states has a walk, for the verifier goes them all.
 */
#define QUICK_STEPS	  16
#define QUICK_STATE_STEPS 6

/* Rows of a walk in line: what the stack has room for, and all that most chains have. */
#define QUICK_GROUPS 4

/* Nobody takes the address of what quick steps work on: clang keeps it in registers. */
static __always_inline void quick_steps(struct walk *w, const __u32 slot)
{
	const __u32 limit = config.slots[slot].states == 1 ? QUICK_STEPS : QUICK_STATE_STEPS;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < QUICK_STEPS && i < limit; i++)
		if (step(w, slot, QUICK_GROUPS))
			return;
}

static __always_inline void many_steps(struct walk *w, const __u32 slot)
{
	switch (slot) {
	case 0:
		bpf_loop(config.iterations, step0, w, 0);
		break;
	case 1:
		bpf_loop(config.iterations, step1, w, 0);
		break;
	case 2:
		bpf_loop(config.iterations, step2, w, 0);
		break;
	case 3:
		bpf_loop(config.iterations, step3, w, 0);
		break;
	}
}

/* Always 0, which the verifier cannot know: else it would follow the loop for every position that
 * counting up from a known start can reach.
 */
static volatile __u32 zero;

/* Where a packet's walks have come to. */
struct trip {
	__u32 node;
	__u32 entry; /* at which the last walk ended */
	/* Where a walk that did not end in line has got to, as in struct walk. */
	__u32 begun;
	__u32 reached;
	__u32 position;
};

/* Go on where the steps in line have stopped, if they have begun. */
static __always_inline void go_on(struct walk *w, const struct trip *trip)
{
	if (!trip->begun)
		return;
	w->node = trip->reached;
	w->position = trip->position;
}

/* Everything before the candidates that are left has been looked at. */
static __always_inline int stop(struct trip *trip, const struct walk *w)
{
	__u32 passed = (w->cursor + 1) * PART_ENTRIES;

	if (w->summary)
		passed = w->cursor * PART_ENTRIES + lowest_bit(w->summary) * 64;
	trip->begun = 1;
	trip->reached = w->node;
	trip->position = passed > w->position ? passed : w->position;
	return REASON_LONG_WALK;
}

/* One state's walk; REASON_LONG_WALK if it did not come to an end: the long walk goes on with it.
 */
static __always_inline int walk_of(const struct selection *selected, struct trip *trip, __u32 state,
				   const __u32 slot, const int quick)
{
	const __u32 most = quick ? QUICK_GROUPS : MAX_GROUPS;
	const __u32 groups = config.slots[slot].groups;
	struct walk w;

	if (!selected || !trip)
		return REASON_LOOKUP;
	if (quick)
		trip->begun = 0;
	if (groups > most)
		return REASON_LONG_WALK;
	w.selected = selected;
	w.state = state;
	w.blocks = element(&blocks, 0);
	if (!w.blocks)
		return REASON_LOOKUP;
#pragma unroll
	for (__u32 i = 0; i < MAX_GROUPS; i++)
		w.parts[i] = w.blocks;
	w.state_part = w.blocks;
	w.start = w.node = trip->node;
	w.position = zero;
	w.entry = MISSING;
	if (quick) {
		if (seek(&w, slot, w.position, most))
			return REASON_LOOKUP;
		quick_steps(&w, slot);
	} else {
		/* The first step seeks. */
		go_on(&w, trip);
		w.summary = 0;
		w.cursor = w.position / PART_ENTRIES - 1;
		many_steps(&w, slot);
	}
	if (w.entry == MISSING)
		return stop(trip, &w);
	trip->node = w.node;
	trip->entry = w.entry;
	return REASON_NONE;
}

/* Return an enum reason; not static, as select0() … are not. */
#define WALK(slot)                                                                                 \
	__noinline int quick_walk##slot(const struct selection *selected, struct trip *trip,       \
					__u32 state)                                               \
	{                                                                                          \
		return walk_of(selected, trip, state, slot, 1);                                    \
	}                                                                                          \
	__noinline int long_walk##slot(const struct selection *selected, struct trip *trip,        \
				       __u32 state)                                                \
	{                                                                                          \
		return walk_of(selected, trip, state, slot, 0);                                    \
	}                                                                                          \
	static __always_inline int walk##slot(const struct selection *selected, struct trip *trip, \
					      __u32 state)                                         \
	{                                                                                          \
		int reason = quick_walk##slot(selected, trip, state);                              \
                                                                                                   \
		return reason == REASON_LONG_WALK ? long_walk##slot(selected, trip, state)         \
						  : reason;                                        \
	}

WALK(0)
WALK(1)
WALK(2)
WALK(3)

static __always_inline int long_walk(const __u32 slot, const struct selection *selected,
				     struct trip *trip, __u32 state)
{
	switch (slot) {
	case 0:
		return long_walk0(selected, trip, state);
	case 1:
		return long_walk1(selected, trip, state);
	case 2:
		return long_walk2(selected, trip, state);
	default:
		return long_walk3(selected, trip, state);
	}
}

static __always_inline int walk(const __u32 slot, const struct selection *selected,
				struct trip *trip, __u32 state)
{
	switch (slot) {
	case 0:
		return walk0(selected, trip, state);
	case 1:
		return walk1(selected, trip, state);
	case 2:
		return walk2(selected, trip, state);
	default:
		return walk3(selected, trip, state);
	}
}

/* The rows and the first state's walk in one: every call and return costs more than a step. */
#define FIRST(slot)                                                               \
	__noinline int first##slot(context_t *ctx, const struct packet *p,        \
				   struct selection *selected, struct trip *trip) \
	{                                                                         \
		int reason = select_of(ctx, p, slot, selected);                   \
                                                                                  \
		return reason ? reason : walk_of(selected, trip, 0, slot, 1);     \
	}

FIRST(0)
FIRST(1)
FIRST(2)
FIRST(3)

static __always_inline int first_walk(const __u32 slot, context_t *ctx, const struct packet *p,
				      struct selection *selected, struct trip *trip)
{
	switch (slot) {
	case 0:
		return first0(ctx, p, selected, trip);
	case 1:
		return first1(ctx, p, selected, trip);
	case 2:
		return first2(ctx, p, selected, trip);
	default:
		return first3(ctx, p, selected, trip);
	}
}

/* Rows and all states' walks: `final` gets the entry at which each ends, `node` the node after the
 * last. An enum reason.
 */
static __always_inline int classify_states(context_t *ctx, const struct packet *p, const __u32 slot,
					   __u32 *final, __u32 *node)
{
	const __u32 states = config.slots[slot].states;
	struct selection selected = {};
	struct trip trip = {.node = ROOT};
	int reason = first_walk(slot, ctx, p, &selected, &trip);

	if (reason == REASON_LONG_WALK)
		reason = long_walk(slot, &selected, &trip, 0);
	if (reason)
		return reason;
	final[0] = trip.entry;
	for (__u32 state = 1; state < MAX_STATES && state < states; state++) {
		reason = walk(slot, &selected, &trip, state);
		if (reason)
			return reason;
		final[state] = trip.entry;
	}
	*node = trip.node;
	return REASON_NONE;
}

#endif
