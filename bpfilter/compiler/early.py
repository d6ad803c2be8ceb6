"""The early profile: which packets may be dropped before netfilter sees them. Pure.

A packet's whole way from its arrival to the filter hook becomes one first-match list: raw, mangle
and nat PREROUTING, mangle and filter INPUT (or FORWARD). A walk that ends in DROP means that the
packet is dropped somewhere on this way and that nothing it meets before has an effect, in every
state that a packet without a conntrack entry can have. Whatever could leave a trace, translate the
packet or needs iptables to be decided is PUNT, and so is what a driver shows before GRO otherwise
than netfilter sees it; anything but DROP passes on to where packets are classified in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

from bpfilter.compiler.classify import Classified, classify
from bpfilter.compiler.flatten import flatten_path
from bpfilter.compiler.ir import (
    Action,
    Entry,
    FlatChain,
    Function,
    OpKind,
    Space,
    Treatment,
    Verdict,
    Walk,
)
from bpfilter.compiler.layout import MAX_ENTRIES
from bpfilter.compiler.nat import nat_treatments
from bpfilter.compiler.plan import ChainPlan, Image, Slot
from bpfilter.compiler.scope import ABSENT_INTERFACE, closure_rules, space_of
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.transitions import build_transitions
from bpfilter.ruleset.fields import ALL_STATES, Field, Intervals, State
from bpfilter.ruleset.model import Rule, RuleRef, Ruleset

EARLY_CODE = 1
"""The code of the one function that is dropped early."""

_RAW = ("raw", "PREROUTING")
_PATHS = {
    "INPUT": (
        _RAW,
        ("mangle", "PREROUTING"),
        ("nat", "PREROUTING"),
        ("mangle", "INPUT"),
        ("filter", "INPUT"),
    ),
    "FORWARD": (
        _RAW,
        ("mangle", "PREROUTING"),
        ("nat", "PREROUTING"),
        ("mangle", "FORWARD"),
        ("filter", "FORWARD"),
    ),
}
_FIN, _SYN, _RST, _PSH, _URG = 1, 2, 4, 8, 32


class Depth(StrEnum):
    """Where the program runs."""

    TC = "tc"  # behind GRO: every field is what netfilter sees
    XDP = "xdp"  # before GRO: length, FIN and PSH are not settled yet


@dataclass(frozen=True, slots=True)
class EarlyChain:
    """One way of packets, compiled. Its slot's chain is the last of the way.

    `raw_entries`: walks that end at an entry before this one end in raw PREROUTING: conntrack,
    routing and all else come after it. `whole`: false if only raw PREROUTING is taken over.
    """

    plan: ChainPlan
    raw_entries: int
    whole: bool

    @property
    def drops(self) -> bool:
        """Whether any walk may end in DROP."""
        return any(entry.kind is OpKind.DROP for entry in self.plan.flat.entries)


def unconfirmed_states(ruleset: Ruleset, *, expectations: bool) -> int:
    """The states (bits of `State`) that a packet without a conntrack entry can have here.

    RELATED only where something may create expectations, UNTRACKED where a rule says NOTRACK.
    """
    states = State.NEW | State.INVALID
    if expectations:
        states |= State.RELATED
    if any(_untracks(rule) for rule in closure_rules(ruleset, *_RAW)):
        states |= State.UNTRACKED
    return int(states)


def compile_early(
    ruleset: Ruleset,
    chain: str,
    depth: Depth,
    *,
    states: int,
    whole: bool = True,
) -> EarlyChain:
    """Compile the way of packets to `chain` ("INPUT" or "FORWARD") of one family.

    `states` as `unconfirmed_states` gives them. Without `whole` only raw PREROUTING may drop: for
    packets whose further way is not known. TTLs are those before forwarding. Raises CompileError
    where the ways are longer than a program can hold.
    """
    hooks = tuple(hook for hook in _PATHS[chain] if _exists(ruleset, hook))
    space = space_of(ruleset, hooks)
    taken = hooks if whole else tuple(hook for hook in hooks if hook == _RAW)
    path = [
        _nat(ruleset, hook, space) if hook[0] == "nat" else _way(ruleset, hook, space)
        for hook in taken
    ]
    treatments: dict[RuleRef, Treatment] = {}
    for classified in path:
        treatments |= classified.treatments
    if path:
        policy = None if whole and taken[-1] == ("filter", chain) else OpKind.PUNT
        flat, ends = flatten_path(ruleset, path, policy)
    else:
        rest = Entry({}, ALL_STATES, OpKind.PUNT, 0, RuleRef("filter", chain, 0))
        flat, ends = FlatChain("filter", chain, space, (rest,), ()), ()
    raw_end = ends[0] if taken and taken[0] == _RAW else 0
    entries, raw_end = _settled(flat.entries, raw_end, states, depth, _routed(path, ends, chain))
    flat = replace(flat, table="filter", chain=chain, entries=entries)
    plan = ChainPlan("filter", chain, treatments, flat, build_tables(flat), (_dropped(flat),))
    return EarlyChain(plan, raw_end, whole)


def early_image(chains: Sequence[EarlyChain]) -> Image:
    """The image of an early program: everything but its DROP ends without an answer."""
    return Image(
        tuple(
            Slot(
                each.plan, build_transitions(each.plan.flat, {_dropped(each.plan.flat): EARLY_CODE})
            )
            for each in chains
        ),
        (),
    )


def _routed(path: Sequence[Classified], ends: Sequence[int], chain: str) -> int:
    """The entry from which on forwarding has decremented the TTL; past the end if none has."""
    before = [end for way, end in zip(path, ends, strict=True) if way.chain == "PREROUTING"]
    if chain == "INPUT" or len(before) == len(path):
        return MAX_ENTRIES
    return before[-1] if before else 0


def _exists(ruleset: Ruleset, hook: tuple[str, str]) -> bool:
    return hook[0] in ruleset.tables and hook[1] in ruleset.tables[hook[0]].chains


def _dropped(flat: FlatChain) -> Function:
    return Function(tuple((mask, Walk((), Verdict.DROP)) for mask in flat.state_classes()))


def _way(ruleset: Ruleset, hook: tuple[str, str], space: Space) -> Classified:
    """A chain on the way: what iptables alone can execute is PUNT, NOTRACK goes on.

    UNTRACKED is then among the states that a packet can have.
    """
    classified = classify(ruleset, *hook, space=space)
    treatments = {
        ref: _punted(ruleset.rule(ref), treatment)
        for ref, treatment in classified.treatments.items()
        if ref.table == hook[0]
    }
    return replace(classified, treatments=treatments)


def _punted(rule: Rule, treatment: Treatment) -> Treatment:
    if treatment.action is not Action.ITEM:
        return treatment
    if _untracks(rule) and treatment.static_matches == len(rule.matches):
        return replace(treatment, action=Action.CONTINUE, item=None, reason="untracked")
    return replace(treatment, action=Action.PUNT, item=None)


def _nat(ruleset: Ruleset, hook: tuple[str, str], space: Space) -> Classified:
    treatments = nat_treatments(ruleset, *hook, space, ABSENT_INTERFACE[hook[1]])
    return Classified(*hook, "ACCEPT", space, treatments)


def _untracks(rule: Rule) -> bool:
    target = rule.target
    return target.name == "NOTRACK" or target.words == ("-j", "CT", "--notrack")


def _settled(
    entries: Sequence[Entry], raw_end: int, states: int, depth: Depth, routed: int
) -> tuple[tuple[Entry, ...], int]:
    """The list for the states that count, and without what `depth` does not settle.

    From entry `routed` on the TTL is the one after forwarding.
    """
    result: list[Entry] = []
    places = []
    for index, entry in enumerate(entries):
        places.append(len(result))
        folded = _folded(entry, states)
        if folded is None:
            continue
        if index >= routed:
            folded = _before_forwarding(folded)
        result.extend(_unsettled(folded) if depth is Depth.XDP else (folded,))
    places.append(len(result))
    moved = (
        replace(entry, argument=places[entry.argument]) if entry.kind is OpKind.SKIP else entry
        for entry in result
    )
    return tuple(moved), places[raw_end]


def _before_forwarding(entry: Entry) -> Entry:
    values = entry.box.get(Field.TTL)
    if values is None:
        return entry
    raised = Intervals.of((low + 1, min(high + 1, 255)) for low, high in values)
    return replace(entry, box={**entry.box, Field.TTL: raised})


def _unsettled(entry: Entry) -> Iterator[Entry]:
    """The entry for packets that it holds whatever GRO does, then PUNT for those it may hold.

    Whether a DROP holds a packet that is dropped behind it as well makes no difference.
    """
    if Field.LENGTH not in entry.box and Field.TCP_FLAGS not in entry.box:
        yield entry
        return
    certain, possible = dict(entry.box), dict(entry.box)
    length = possible.pop(Field.LENGTH, None)
    flags = entry.box.get(Field.TCP_FLAGS)
    if flags is not None:
        certain[Field.TCP_FLAGS], possible[Field.TCP_FLAGS] = _flags_behind_gro(flags)
    if length is None and certain[Field.TCP_FLAGS]:
        yield replace(entry, box=certain)
    if entry.kind is not OpKind.DROP and (length is not None or certain != possible):
        yield replace(entry, box=possible, kind=OpKind.PUNT, argument=0)


@cache
def _flags_behind_gro(wanted: Intervals) -> tuple[Intervals, Intervals]:
    """Which TCP flags before GRO are among the wanted ones behind it: certainly, and possibly.

    FIN and PSH of later segments are added to a segment without SYN, RST and URG; others are
    never merged (tcp_gro_receive in net/ipv4/tcp_offload.c).
    """
    certain, possible = [], []
    for flags in range(256):
        merged = not flags & (_SYN | _RST | _URG)
        behind = {flags | more for more in (0, _FIN, _PSH, _FIN | _PSH)} if merged else {flags}
        found = [each in wanted for each in behind]
        if all(found):
            certain.append((flags, flags))
        if any(found):
            possible.append((flags, flags))
    return Intervals.of(certain), Intervals.of(possible)


def _folded(entry: Entry, states: int) -> Entry | None:
    """The entry with as few differences between states as possible; None if it says nothing.

    A packet is dropped if it is in every one of `states`. So what passes it in one of them may
    pass it in all, and a DROP that does not hold in all may be left out; the answer errs to one
    side. States that no packet here can have go with NEW.
    """
    mask = entry.states & states
    if entry.kind is OpKind.SKIP:
        mask |= ALL_STATES & ~states if mask & State.NEW else 0
        return replace(entry, states=mask) if mask else None
    holds = mask == states if entry.kind is OpKind.DROP else bool(mask)
    return replace(entry, states=ALL_STATES) if holds else None
