"""Semantic diff of two rulesets: exactly which packets change verdict, and why.

Only packets that a changed rule may hold can be treated differently, so only those are followed
through both rulesets; ten thousand equal rules cost next to nothing. Bounded by time and memory:
past them the changed rules that could not be followed are named.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from bpfilter.analysis.conditions import terms_of
from bpfilter.analysis.cutting import Cut, around, cut, share
from bpfilter.analysis.diagrams import Diagrams, LimitReached, MemoryExhausted, Packets
from bpfilter.analysis.edits import Edits, edits
from bpfilter.analysis.fate_of_packets import Decided, PacketFates
from bpfilter.analysis.hulls import Known
from bpfilter.collection import paused
from bpfilter.compiler.ir import Space
from bpfilter.compiler.scope import closure
from bpfilter.ruleset.fields import (
    ADDRESS_TYPES,
    Family,
    Field,
    Intervals,
    MaskedValue,
    NamePattern,
)
from bpfilter.ruleset.model import Alternatives, Chain, Rule, RuleRef, Ruleset

HOOKS = (
    ("raw", "PREROUTING"),
    ("filter", "INPUT"),
    ("filter", "FORWARD"),
    ("filter", "OUTPUT"),
)
_NODES = 1 << 20
_CACHE = 1 << 18
_SELECTIVE = 256
"""Edited rules that the others are first compared with by their ranges."""
_SLICE = 1.0
_EXAMPLES_TRIED = 64
"""Packets that may end at a rule, looked at one by one before all of them are."""
_FEW = 3
"""Boxes that a person reads without a summary."""
_MOST_CUT = 32
"""Changes that are cut into boxes, the largest: of the others it is said what holds them."""


_EXAMPLES = {
    family: {
        Field.SOURCE: tuple(int(ip_address(text)) for text in sources),
        Field.DESTINATION: (int(ip_address(destination)),),
        Field.PROTOCOL: (6, 17),
        Field.SOURCE_PORT: (40_000,),
        Field.DESTINATION_PORT: (443, 22),
    }
    for family, sources, destination in (
        (Family.IPV4, ("203.0.113.7", "192.0.2.7", "10.0.0.7"), "198.51.100.1"),
        (Family.IPV6, ("2001:db8::7", "fd00::7"), "2001:db8::1"),
    )
}

_HOST = 7
"""In a network of which no address above is."""

_Pair = tuple[str, RuleRef, str, RuleRef]


@dataclass(frozen=True, slots=True)
class Side:
    """How one ruleset treats the packets of a change.

    `passed`: dynamic rules that some of them meet on their way.
    """

    verdict: str
    rule: RuleRef
    passed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Packets that one ruleset treats one way and the other another way.

    `share`: of all header values and connection states. `boxes` describe the packets; with `more`
    they leave some out, or all where changes are many. `within`: where they are more than a few,
    one box that holds all the packets, and others that rules before decide. `example`: a packet
    and its state (one bit of `State`).
    """

    old: Side
    new: Side
    share: float
    boxes: tuple[Cut, ...]
    more: bool
    example: tuple[Mapping[Field, int], int]
    within: Cut | None = None

    @property
    def of_verdict(self) -> bool:
        """Whether the final verdict differs; else what dynamic rules see on the way does."""
        return self.old.verdict != self.new.verdict


@dataclass(frozen=True, slots=True)
class HookDifference:
    """One built-in chain. `changes`: changed verdicts before changed ways, the largest first.

    `dynamic`: dynamic rules that compared packets meet. `newly_unreachable`: rules of the new
    ruleset that decided packets in the old one and decide none now. `undecided`: changed rules
    whose packets could not be followed within the bounds; what they may change is at most what
    they match. Without any the difference is complete: no other packet is treated differently.
    `reach_undecided`: time was over before all rules were looked at that might be unreachable now.
    """

    hook: tuple[str, str]
    space: Space
    edits: Edits
    changes: tuple[Change, ...]
    dynamic: tuple[str, ...]
    newly_unreachable: tuple[RuleRef, ...]
    undecided: tuple[Rule, ...]
    policy_undecided: bool
    reach_undecided: bool
    seconds: float

    @property
    def complete(self) -> bool:
        return not self.undecided and not self.policy_undecided

    @property
    def same(self) -> bool:
        """Proven: no packet is treated differently."""
        return self.complete and not self.changes


def compare(
    old: Ruleset, new: Ruleset, hook: tuple[str, str], *, seconds: float = 4.0, boxes: int = 6
) -> HookDifference | None:
    """Compare one built-in chain; None if neither ruleset has it.

    A ruleset without the chain accepts everything there. Both must be of one family. `seconds`
    bounds the time of following packets; what does not fit is `undecided`.
    """
    start = time.monotonic()
    left, right = _with(old, hook), _with(new, hook)
    if left is None and right is None:
        return None
    left, right = left or _empty(new, hook), right or _empty(old, hook)
    chains = dict.fromkeys(c.name for side in (left, right) for c in _reached(side, hook))
    edited = edits(left.tables[hook[0]], right.tables[hook[0]], chains)
    space = _space(left, right, hook)
    attempt = _Attempt(left, right, hook, space, edited, boxes)
    with paused():
        attempt.run(start + seconds)
    return HookDifference(
        hook,
        space,
        edited,
        tuple(sorted(attempt.changes, key=lambda each: (not each.of_verdict, -each.share))),
        tuple(dict.fromkeys(attempt.dynamic)),
        tuple(dict.fromkeys(attempt.newly_unreachable)),
        tuple(attempt.undecided),
        attempt.policy_undecided,
        attempt.reach_undecided,
        time.monotonic() - start,
    )


class _Attempt:
    def __init__(
        self,
        old: Ruleset,
        new: Ruleset,
        hook: tuple[str, str],
        space: Space,
        edited: Edits,
        boxes: int,
    ) -> None:
        self._old, self._new = old, new
        self._hook, self._space, self._edited = hook, space, edited
        self._boxes = boxes
        self._ranges: Known = {}
        self.changes: list[Change] = []
        self.dynamic: list[str] = []
        self.newly_unreachable: list[RuleRef] = []
        self.undecided: list[Rule] = []
        self.policy_undecided = False
        self.reach_undecided = False

    def run(self, deadline: float) -> None:
        """All changed rules at once; if that is too much, each by itself."""
        gone = list(self._edited.removed)
        come = [*self._edited.added, *self._edited.moved]
        if not gone and not come and not self._edited.policies:
            return
        everything = bool(self._edited.policies)
        halfway = (time.monotonic() + deadline) / 2
        if self._follow(gone, come, everything, halfway):
            return
        self.changes, self.dynamic, self.newly_unreachable = [], [], []
        self.policy_undecided = everything
        alone: list[tuple[list[Rule], list[Rule]]] = [([rule], []) for rule in gone]
        alone += [([], [rule]) for rule in come]
        done: tuple[list[Rule], list[Rule]] = ([], [])
        for left, right in alone:
            slice_end = min(deadline, time.monotonic() + _SLICE)
            if time.monotonic() < deadline and self._follow(left, right, False, slice_end, done):
                done = ([*done[0], *left], [*done[1], *right])
            else:
                self.undecided += [*left, *right]

    def _follow(
        self,
        gone: Sequence[Rule],
        come: Sequence[Rule],
        everything: bool,
        deadline: float,
        done: tuple[Sequence[Rule], Sequence[Rule]] = ((), ()),
    ) -> bool:
        """Compare the packets of these rules but for those of `done`; false if it is too much."""
        so_far = len(self.changes)
        try:
            diagrams = self._diagrams(deadline)
            before = PacketFates(self._old, self._hook, self._space, diagrams)
            after = PacketFates(self._new, self._hook, self._space, diagrams)

            def touched(left: Sequence[Rule], right: Sequence[Rule]) -> Packets:
                held = [before.held(rule) for rule in left] + [after.held(rule) for rule in right]
                return diagrams.union(held) & diagrams.valid

            packets = diagrams.valid if everything else touched(gone, come) & ~touched(*done)
            edited = [*gone, *come]
            few = not everything and len(edited) <= _SELECTIVE
            was = before.decide(packets, before.near(edited, self._ranges) if few else None)
            now = after.decide(packets, after.near(edited, self._ranges) if few else None)
            self._collect(was, now, diagrams)
        except (LimitReached, MemoryExhausted):
            del self.changes[so_far:]
            return False
        try:
            self._unreachable(was, now, after, packets, diagrams)
        except (LimitReached, MemoryExhausted):
            self.reach_undecided = True
        return True

    def _diagrams(self, deadline: float) -> Diagrams:
        names = {Field.FRAGMENT}
        for ruleset in (self._old, self._new):
            names |= {term.field for term in terms_of(_alternatives(ruleset, self._hook))}
        interfaces = len(self._space.interfaces)
        limits = {
            Field.IN_INTERFACE: interfaces,
            Field.OUT_INTERFACE: interfaces,
            Field.SOURCE_TYPE: len(ADDRESS_TYPES),
            Field.DESTINATION_TYPE: len(ADDRESS_TYPES),
        }
        return Diagrams(
            self._space.family,
            names - {Field.STATE},
            limits,
            outcome_bits=0,
            nodes=_NODES,
            cache=_CACHE,
            deadline=deadline,
        )

    def _collect(self, was: Sequence[Decided], now: Sequence[Decided], diagrams: Diagrams) -> None:
        """Compare decision by decision; packets of one pair of rules make one change."""
        found: dict[_Pair, tuple[list[Packets], list[str], list[str]]] = {}
        for left in was:
            rest = left.packets
            for right in now:
                diagrams.check_time()
                both = rest & right.packets
                if not both.satisfiable():
                    continue
                rest = rest & ~both
                if left.verdict == right.verdict and left.passed == right.passed:
                    self.dynamic += left.passed
                else:
                    pair = (left.verdict, left.rule, right.verdict, right.rule)
                    packets, before, after = found.setdefault(pair, ([], [], []))
                    packets.append(both)
                    before += left.passed
                    after += right.passed
                if not rest.satisfiable():
                    break
        sized = []
        for pair, (packets, before, after) in found.items():
            old = Side(pair[0], pair[1], tuple(dict.fromkeys(before)))
            new = Side(pair[2], pair[3], tuple(dict.fromkeys(after)))
            whole = diagrams.union(packets)
            sized.append((share(whole, diagrams), old, new, whole))
        sized.sort(key=lambda each: -each[0])
        for index, (size, old, new, whole) in enumerate(sized):
            most = self._boxes if index < _MOST_CUT else 0
            self._change(old, new, size, whole, most, diagrams)

    def _change(
        self, old: Side, new: Side, size: float, packets: Packets, most: int, diagrams: Diagrams
    ) -> None:
        boxes, rest = cut(packets, diagrams, most)
        example = diagrams.example(_pleasing(packets, diagrams))
        assert example is not None
        more = rest.satisfiable()
        within = around(packets, diagrams) if more or len(boxes) > _FEW else None
        self.changes.append(Change(old, new, size, boxes, more, example, within))

    def _unreachable(
        self,
        was: Sequence[Decided],
        now: Sequence[Decided],
        after: PacketFates,
        packets: Packets,
        diagrams: Diagrams,
    ) -> None:
        """Rules of both rulesets that decided something before, and now nothing."""
        kept = {(r.chain, r.target.words, r.matches): r for r in _rules(self._new, self._hook)}
        deciding = {decided.rule for decided in now}
        for ref in dict.fromkeys(decided.rule for decided in was if decided.rule.number):
            rule = self._old.rule(ref)
            same = kept.get((rule.chain, rule.target.words, rule.matches))
            if same is None or same.ref in deciding:
                continue
            rest = after.held(same) & diagrams.valid & ~packets
            if not _decides(same, rest, after, diagrams):
                self.newly_unreachable.append(same.ref)


def _decides(rule: Rule, packets: Packets, fates: PacketFates, diagrams: Diagrams) -> bool:
    """Whether any of these packets ends at the rule; most often the first that comes does."""
    for _ in range(_EXAMPLES_TRIED):
        example = diagrams.example(packets)
        if example is None:
            return False
        first = fates.first(*example)
        if first is rule:
            return True
        if first is None:
            break
        packets = packets & ~fates.held(first)  # it stands before the rule
    near = fates.near_own(rule)
    return any(decided.rule == rule.ref for decided in fates.decide(packets, near))


def _pleasing(packets: Packets, diagrams: Diagrams) -> Packets:
    """Those of the set with values that read well in an example, as far as there are such."""
    for name, candidates in _EXAMPLES[diagrams.family].items():
        if name in diagrams.fields:
            for value in candidates:
                some = packets & diagrams.values(name, Intervals.single(value))
                if some.satisfiable():
                    packets = some
                    break
            else:
                packets = _inside(packets, name, diagrams)
    return packets


def _inside(packets: Packets, name: Field, diagrams: Diagrams) -> Packets:
    """Without the first value of a field, which in a network is no host's, if others remain."""
    if name not in (Field.SOURCE, Field.DESTINATION):
        return packets
    example = diagrams.example(packets)
    value = 0 if example is None else example[0][name] + _HOST
    some = packets & diagrams.values(name, Intervals.single(value))
    return some if some.satisfiable() else packets


def _with(ruleset: Ruleset, hook: tuple[str, str]) -> Ruleset | None:
    table = ruleset.tables.get(hook[0])
    return ruleset if table is not None and hook[1] in table.chains else None


def _empty(like: Ruleset, hook: tuple[str, str]) -> Ruleset:
    """A ruleset whose only chain is an accepting, empty one."""
    table = like.tables[hook[0]]
    chain = replace(table.chains[hook[1]], rules=(), policy="ACCEPT")
    return replace(like, tables={hook[0]: replace(table, chains={hook[1]: chain})})


def _reached(ruleset: Ruleset, hook: tuple[str, str]) -> Iterator[Chain]:
    yield from closure(ruleset.tables[hook[0]], hook[1])


def _rules(ruleset: Ruleset, hook: tuple[str, str]) -> Iterator[Rule]:
    for chain in _reached(ruleset, hook):
        yield from chain.rules


def _alternatives(ruleset: Ruleset, hook: tuple[str, str]) -> tuple[Alternatives, ...]:
    """Of all matches, each once: rules share what was parsed once."""
    matches = {id(m): m for rule in _rules(ruleset, hook) for m in rule.matches}
    return tuple(match.alternatives or () for match in matches.values())


def _space(old: Ruleset, new: Ruleset, hook: tuple[str, str]) -> Space:
    """The interface names that the rules of either side can tell apart."""
    names: dict[str, None] = {"": None}
    masks: dict[tuple[Field, MaskedValue], None] = {}
    for ruleset in (old, new):
        for term in terms_of(_alternatives(ruleset, hook)):
            if isinstance(term.values, NamePattern) and term.values.text != "+":
                names[term.values.text] = None
            elif isinstance(term.values, MaskedValue):
                masks[(term.field, term.values)] = None
    return Space(old.family, tuple(names), tuple(masks))
