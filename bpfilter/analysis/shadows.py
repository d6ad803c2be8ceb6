"""Which earlier rules take the packets of a rule, looked for among those whose ranges meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from bpfilter.analysis.conditions import Scene, static_part
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.hulls import Hulls
from bpfilter.analysis.meaning import RulePackets
from bpfilter.compiler.ir import Treatment
from bpfilter.ruleset.model import Chain, Rule, RuleRef

_MAX_PRUNED = 16
_MAX_COVER = 16
"""More earlier rules than this are not put together to see whether they cover a rule."""


class Flow(Protocol):
    """What is known of a built-in chain's rules (`reach.Reach`)."""

    scene: Scene
    chains: Mapping[str, Chain]
    treatments: Mapping[RuleRef, Treatment]
    diagrams: Diagrams
    callers: dict[str, list[Rule]]

    @property
    def held(self) -> RulePackets: ...

    def takes(self, rule: Rule) -> Packets:
        """The packets that certainly do not go on behind a rule."""


class Shadows:
    """Answers for one built-in chain; ranges are computed once per chain that is asked about."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._hulls: dict[str, Hulls] = {}

    def cover(self, rule: Rule, packets: Packets) -> bool:
        """Whether a few earlier rules of its chain take all the given packets of a rule.

        Sound, not complete: true only if one rule does, or no more than _MAX_COVER meet it.
        """
        hulls = self._of_chain(rule.chain)
        rules = self._flow.chains[rule.chain].rules
        row = rule.number - 1
        if any(
            not self._flow.takes(rules[index]).imp_strict(packets).satisfiable()
            for index in hulls.enclosing(row).tolist()
        ):
            return True
        earlier = hulls.earlier(row)
        if len(earlier) > _MAX_COVER:
            return False
        for index in earlier.tolist():
            packets = self._flow.takes(rules[index]).imp_strict(packets)
        return not packets.satisfiable()

    def of(self, rule: Rule) -> tuple[RuleRef, ...]:
        """The rules that keep every packet from a rule; its own chain's first.

        None if no packet can match the rule, whatever stands before it.
        """
        packets = self._flow.held.of(rule) & self._flow.diagrams.valid
        if not packets.satisfiable():
            return ()
        found: dict[RuleRef, Rule] = {}
        self._collect(rule, packets, found)
        needed = self._needed(found, packets)
        return tuple(sorted(needed, key=lambda ref: (ref.chain != rule.chain, ref)))

    def _collect(self, place: Rule, packets: Packets, found: dict[RuleRef, Rule]) -> None:
        """Add the rules that keep `packets` from a place, in its chain and before jumps to it."""
        flow = self._flow
        flow.diagrams.check_time()
        rules = flow.chains[place.chain].rules
        hulls = self._of_chain(place.chain)
        row = place.number - 1
        for index in hulls.enclosing(row).tolist():
            if not flow.takes(rules[index]).imp_strict(packets).satisfiable():
                found[rules[index].ref] = rules[index]
                return
        for index in hulls.earlier(row).tolist():
            if not packets.satisfiable():
                return
            rest = flow.takes(rules[index]).imp_strict(packets)
            if rest != packets:
                found[rules[index].ref] = rules[index]
                packets = rest
        for caller in flow.callers.get(place.chain, ()):
            held = packets & flow.held.of(caller)
            if held.satisfiable():
                self._collect(caller, held, found)

    def _of_chain(self, name: str) -> Hulls:
        found = self._hulls.get(name)
        if found is None:
            flow = self._flow
            rules = flow.chains[name].rules
            parts = [static_part(r, flow.treatments[r.ref], flow.scene.space) for r in rules]
            taking = [flow.takes(rule).satisfiable() for rule in rules]
            found = Hulls(parts, flow.scene.space.family, np.array(taking, dtype=np.bool_))
            self._hulls[name] = found
        return found

    def _needed(self, found: Mapping[RuleRef, Rule], packets: Packets) -> list[RuleRef]:
        """Leave out rules without which the others still take all the packets."""
        if not 1 < len(found) <= _MAX_PRUNED:
            return list(found)
        union = self._flow.diagrams.union
        takes = {ref: self._flow.takes(rule) & packets for ref, rule in found.items()}
        whole = union(list(takes.values()))
        for ref in found:
            others = [part for other, part in takes.items() if other != ref]
            if union(others) == whole:
                del takes[ref]
        return list(takes)
