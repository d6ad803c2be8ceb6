"""The goals that the project set itself (issue 6), each with what a run measured. Pure.

Every figure is a ratio or a time from one run. A goal that a run has not measured has no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.compare import Row
from bench.paired import LEAST, Pair, keeps, kept_cost
from bench.report import Compiled, Edit


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run measured. `streams`: path → its pairs."""

    rows: Sequence[Row] = ()
    compiled: Sequence[Compiled] = ()
    edits: Sequence[Edit] = ()
    streams: dict[str, list[Pair]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """`bound`: at most, or at least if `rising`; `measured` is None if the run has no figure."""

    what: str
    measured: float | None
    bound: float
    stretch: float
    unit: str = "times"
    rising: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure keeps the bound; None without a figure."""
        return None if self.measured is None else self._keeps(self.bound)

    @property
    def stretched(self) -> bool:
        """Whether the figure keeps the harder bound as well."""
        return self.measured is not None and self._keeps(self.stretch)

    def _keeps(self, bound: float) -> bool:
        assert self.measured is not None
        return self.measured >= bound if self.rising else self.measured <= bound


_STYLES = (("acl", 1.6, 1.4), ("ipc", 2.0, 1.6), ("fw", 3.0, 2.0))
_NAMES = {"acl": "access-list", "ipc": "chain", "fw": "firewall"}


def goals(results: Results) -> list[Goal]:
    """Every goal, in the issue's order."""
    return [*_packet_goals(results.rows), *_stream_goals(results), *_compile_goals(results)]


def _packet_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    for style, must, stretch in _STYLES:
        cost = _one(rows, style, 10_000, "bpf xdp", lambda row: row.ratio_to_xdp_drop)
        yield Goal(f"XDP drop, 10 000 rules, {_NAMES[style]}", cost, must, stretch)
    for style, must, _ in _STYLES:
        growth = _quotient(rows, style, 10_000, style, 10)
        yield Goal(f"growth from 10 to 10 000 rules, {_NAMES[style]}", growth, must, 1.5)
    for count, must, stretch in ((100, 2.5, 3), (1000, 20, 25), (10_000, 200, 300)):
        ratio = _one(rows, "acl", count, "bpf xdp", lambda row: row.ratio_to_iptables)
        gain = _inverse(ratio)
        what = f"faster than iptables-legacy, {_spaced(count)} rules"
        yield Goal(what, gain, must, stretch, rising=True)
    nft = _one(rows, "acl", 1000, "bpf xdp", lambda row: row.ratio_to_nft)
    yield Goal("faster than iptables-nft, 1 000 rules", _inverse(nft), 50, 80, rising=True)
    maps = _paths(rows, "grid", 1000, "nft sets", "bpf xdp")
    yield Goal("faster than nftables maps, grid of 1 000", maps, 2, 3, rising=True)
    small = _one(rows, "acl", 10, "bpf xdp", lambda row: row.ratio_to_iptables)
    yield Goal("faster than iptables-legacy, 10 rules, drop", _inverse(small), 1, 2, rising=True)
    for verdict, what in (("accept", "accept"), ("drop", "late DROP")):
        costs = [
            row.ratio_to_plain
            for row in _rows(rows, "acl", 10_000, "bpf dispatch nft", verdict)
            if row.ratio_to_plain
        ]
        yield Goal(
            f"{what} through the dispatch, 10 000 rules, against the least table",
            max(costs, default=None),
            1.4,
            1.15,
        )
    yield Goal("IPv6 against IPv4, 10 000 rules", _quotient(rows, "acl6", 10_000), 1.5, 1.2)
    block = _one(rows, "blocklist", 100_000, "bpf xdp", lambda row: row.ratio_to_xdp_drop)
    yield Goal("XDP drop, blocklist of 100 000", block, 2.0, 1.5)


def _stream_goals(results: Results) -> Iterator[Goal]:
    """By processor time; no figure where the pairs leave open on which side of it they are."""
    for stage in ("shadow", "canary", "enforce"):
        pairs = next((p for name, p in results.streams.items() if name.startswith(stage)), ())
        told = keeps(pairs, results.streams.get("no filter", ())) is not None
        kept = kept_cost(pairs)
        figure = 100 * kept.median if kept is not None and told else None
        what = f"established TCP in {stage}, against no filter"
        yield Goal(what, figure, 100 * LEAST, 99, "%", rising=True)


def _compile_goals(results: Results) -> Iterator[Goal]:
    compiled = results.compiled
    large = [one for one in compiled if one.rules == 100_000 and one.name in _NAMES]
    worst = [one.classify_ns / 1000 for one in large if one.classify_ns is not None]
    yield Goal("100 000 diverse rules, classification", _most(worst), 1.5, 0.5, "µs")
    sizes = [one.table_bytes / 2**20 for one in large]
    yield Goal("100 000 diverse rules, memory of the kernel", _most(sizes), 512, 128, "MiB")
    yield Goal("100 000 diverse rules, plan", _most(one.planned for one in large), 40, 15, "s")
    blocks = [one for one in compiled if (one.name, one.rules) == ("blocklist", 100_000)]
    size = _most(one.table_bytes / 2**20 for one in blocks)
    yield Goal("blocklist of 100 000, memory of the kernel", size, 32, 32, "MiB")
    yield Goal("blocklist of 100 000, plan", _most(one.planned for one in blocks), 5, 5, "s")
    for count, must, stretch in ((1000, 0.3, 0.1), (10_000, 1.5, 0.6)):
        taken = [
            one.planned + one.load for one in compiled if one.rules == count and one.name in _NAMES
        ]
        what = f"plan and load, {_spaced(count)} rules"
        yield Goal(what, _most(taken), must, stretch, "s")
    edits = [edit for edit in results.edits if edit.rules == 10_000]
    what = "one rule changed of 10 000, until"
    around = _most(edit.around for edit in edits)
    yield Goal(f"{what} programs decide all but what it matches", around, 0.5, 0.1, "s")
    wall = _most(edit.wall for edit in edits)
    yield Goal(f"{what} the new generation decides", wall, 0.5, 0.1, "s")


def _rows(
    rows: Sequence[Row], name: str, count: int, path: str, verdict: str = "drop"
) -> list[Row]:
    return [
        row
        for row in rows
        if (row.name, row.path, row.verdict, row.match) == (name, path, verdict, "random")
        and abs(row.rules - count) <= count // 10
    ]


def _one(
    rows: Sequence[Row], name: str, count: int, path: str, of: Callable[[Row], float | None]
) -> float | None:
    found = _rows(rows, name, count, path)
    return of(found[0]) if found else None


def _quotient(
    rows: Sequence[Row], name: str, count: int, other: str = "acl", least: int = 10_000
) -> float | None:
    """Total costs of an XDP drop, each against its own bare XDP_DROP."""
    above = _one(rows, name, count, "bpf xdp", lambda row: row.ratio_to_xdp_drop)
    below = _one(rows, other, least, "bpf xdp", lambda row: row.ratio_to_xdp_drop)
    return above / below if above and below else None


def _paths(rows: Sequence[Row], name: str, count: int, above: str, below: str) -> float | None:
    first = _one(rows, name, count, above, lambda row: row.ns_per_packet)
    second = _one(rows, name, count, below, lambda row: row.ns_per_packet)
    return first / second if first and second else None


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def _inverse(ratio: float | None) -> float | None:
    return 1 / ratio if ratio else None


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)
