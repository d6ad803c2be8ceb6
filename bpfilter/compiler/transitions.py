"""From residual functions and their codes to the trie that the program follows while it walks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bpfilter.compiler.ir import PUNTED, FlatChain, Function, Verdict, Walk
from bpfilter.compiler.layout import Outcome, Transitions

ROOT = 1
_COLUMN = {Verdict.ACCEPT: 0, Verdict.DROP: 1, Verdict.PUNT: 2}
_FINAL = 3
_OUTCOMES = {
    Walk((), Verdict.ACCEPT): Outcome.ACCEPT,
    Walk((), Verdict.DROP): Outcome.DROP,
    PUNTED: Outcome.PUNT,
}


def outcome_of(function: Function) -> Outcome:
    """What the classifier says of a packet with this residual function."""
    uniform = function.uniform
    return Outcome.RESIDUAL if uniform is None else _OUTCOMES.get(uniform, Outcome.RESIDUAL)


@dataclass(slots=True)
class _Trie:
    """Nodes as rows of four; row 0 is dead, row 1 the root."""

    nodes: list[list[int]] = field(default_factory=lambda: [[0] * 4, [0] * 4])
    edges: dict[tuple[int, int], int] = field(default_factory=dict)

    def fresh(self) -> int:
        self.nodes.append([0] * 4)
        return len(self.nodes) - 1

    def walk(self, node: int, walk: Walk) -> int:
        for item in walk.items:
            if (node, item) not in self.edges:
                self.edges[(node, item)] = self.fresh()
            node = self.edges[(node, item)]
        if walk.verdict is None:
            return node
        column = _COLUMN[walk.verdict]
        if not self.nodes[node][column]:
            self.nodes[node][column] = self.fresh()
        return self.nodes[node][column]


def build_transitions(flat: FlatChain, codes: Mapping[Function, int]) -> Transitions:
    """The trie whose final nodes hold `code | outcome << 8` of the given functions.

    A packet whose function is not among them ends at node 0 and is punted. The function that is
    PUNT in every state is always known: it ends at a node of its own, with code 0.
    """
    trie = _Trie()
    functions: dict[int, Function] = {}
    punt = Function(tuple((mask, PUNTED) for mask in flat.state_classes()))
    for function, code in [*codes.items(), (punt, 0)]:
        node = ROOT
        for _, walk in function.walks:
            node = trie.walk(node, walk)
        outcome = outcome_of(function)
        trie.nodes[node][_FINAL] = 0 if outcome is Outcome.PUNT else code | outcome << 8
        functions[node] = function
    return Transitions(np.array(trie.nodes, np.uint32), trie.edges, functions)
