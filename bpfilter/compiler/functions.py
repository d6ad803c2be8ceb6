"""Which residual functions packets can meet: found by walking packets, never invented.

A function that is missed costs acceleration (its packets are punted), not correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.guards import intersect
from bpfilter.compiler.ir import PUNTED, Box, FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.compiler.layout import ChainTables
from bpfilter.compiler.sample import Sampler, grown, near_misses
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.walk import Packet

_STATIC_BUDGET = 3000
"""Packets that are enough where only connection states tell functions apart."""

_CHUNK = 512
_PATIENCE = 3
"""Chunks without a new function after which the search ends; more where there are many."""
_HITS = 3
_KEPT = 3
"""Packets kept of each function, as the stock to be changed."""

_SIMPLE = {
    OpKind.ACCEPT: Walk((), Verdict.ACCEPT),
    OpKind.DROP: Walk((), Verdict.DROP),
    OpKind.PUNT: PUNTED,
}


def enumerate_functions(
    flat: FlatChain,
    rng: np.random.Generator,
    budget: int,
    tables: ChainTables | None = None,
) -> list[tuple[Function, int]]:
    """The distinct functions met, most frequent first, with how many packets met each.

    `budget` bounds the packets walked. `tables` are the chain's own if they exist already.
    """
    classes = flat.state_classes()
    dynamic = any(entry.kind is OpKind.ITEM for entry in flat.entries)
    if not dynamic and len(classes) == 1:
        counts = Counter(entry.kind for entry in flat.entries if entry.kind in _SIMPLE)
        return [
            (Function(((classes[0], _SIMPLE[kind]),)), count)
            for kind, count in counts.most_common()
        ]
    search = _Search(flat, tables or build_tables(flat), Sampler.of(flat, rng))
    search.run(budget if dynamic else min(budget, _STATIC_BUDGET))
    return search.found.most_common()


class _Search:
    """First the boxes and their intersections in order, then changes to packets already met."""

    def __init__(self, flat: FlatChain, tables: ChainTables, sampler: Sampler) -> None:
        self._flat = flat
        self._tables = tables
        self._sampler = sampler
        self._corpus: list[Packet] = []
        self.found: Counter[Function] = Counter()

    def run(self, budget: int) -> None:
        """Walk at most that many packets; ends early when nothing new turns up any more."""
        systematic = self._systematic(budget * 2 // 3)
        while budget > 0 and (chunk := list(islice(systematic, min(_CHUNK, budget)))):
            self._meet(chunk)
            budget -= len(chunk)
        idle = 0
        while budget > 0 and idle < _PATIENCE + len(self.found) // 8:
            chunk = list(islice(self._random(), min(_CHUNK, budget)))
            idle = 0 if self._meet(chunk) else idle + 1
            budget -= len(chunk)

    def _meet(self, packets: list[Packet | None]) -> bool:
        """Walk packets; whether any met a new function."""
        before = len(self.found)
        whole = [packet for packet in packets if packet is not None]
        for packet, function in zip(whole, functions_of(self._tables, whole), strict=True):
            self.found[function] += 1
            if self.found[function] <= _KEPT:
                self._corpus.append(packet)
        return len(self.found) > before

    def _systematic(self, budget: int) -> Iterator[Packet | None]:
        sampler = self._sampler
        boxes, special = _distinct_boxes(self._flat, sampler)
        intersections = _intersections(special, boxes, budget)
        share = budget // 4
        yield from islice((sampler.packet(box) for box in boxes * _HITS), share)
        yield from islice((sampler.packet(box) for box in intersections), budget // 2)
        yield from islice(near_misses(sampler, [*special, *boxes]), share)

    def _random(self) -> Iterator[Packet | None]:
        sampler = self._sampler
        intersections = grown(sampler, self._flat, _CHUNK)
        while True:
            yield sampler.mutate(sampler.random.choice(self._corpus))
            yield sampler.packet({})
            yield next(intersections, None)


def _distinct_boxes(flat: FlatChain, sampler: Sampler) -> tuple[list[Box], list[Box]]:
    """All distinct boxes in random order, and those of entries that shape functions.

    The latter are of items, skips, punts and entries that not every state obeys.
    """
    boxes: dict[tuple[tuple[str, object], ...], Box] = {}
    special: dict[tuple[tuple[str, object], ...], Box] = {}
    universal = flat.entries[-1].states
    for entry in flat.entries:
        key = tuple((field.value, values.ranges) for field, values in entry.box.items())
        boxes[key] = entry.box
        if entry.kind not in (OpKind.ACCEPT, OpKind.DROP) or entry.states != universal:
            special[key] = entry.box
    every = list(boxes.values())
    sampler.random.shuffle(every)
    return every, list(special.values())


def _intersections(special: list[Box], boxes: list[Box], limit: int) -> Iterator[Box]:
    """Boxes of two, then of more entries: each special box with every other, breadth first.

    `limit` bounds how many intersections are tried in all.
    """
    frontier = special
    tried = 0
    seen: set[tuple[tuple[str, object], ...]] = set()
    while frontier:
        deeper: list[Box] = []
        for box in frontier:
            for other in boxes:
                tried += 1
                if tried > 4 * limit:
                    return
                both = intersect(box, other)
                if both is None or both is box:
                    continue
                key = tuple(sorted((field.value, v.ranges) for field, v in both.items()))
                if key not in seen:
                    seen.add(key)
                    deeper.append(both)
                    yield both
        frontier = deeper
