"""What a run measured besides packets, and how all of it is shown: JSON, Markdown, a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bench.compare import Row
    from bench.goals import Goal


@dataclass(frozen=True, slots=True)
class Compiled:
    """One ruleset through the compiler and the program; times in seconds unless named otherwise.

    `table_bytes`: what the kernel holds, counters included. `process_mib`: the most that this
    process has held so far. `classify_ns`: one packet through the loaded program, headers changing,
    the harness floor subtracted, in the best round; `median_ns` in the median one; `floor_ns` is
    that floor, from the same run. None where it could not be run.
    """

    name: str
    rules: int
    entries: int
    read: float
    plan: float
    load: float
    prove: float | None
    proof: str
    table_bytes: int
    process_mib: int
    classify_ns: float | None
    median_ns: float | None
    floor_ns: float | None

    @property
    def planned(self) -> float:
        """Seconds from text to tables."""
        return self.read + self.plan


@dataclass(frozen=True, slots=True)
class Edit:
    """One changed rule, in seconds: `around`: until programs decide all but what it matches.

    `wall`, `processor`: until the new generation decides everything.
    """

    backend: str
    rules: int
    around: float
    wall: float
    processor: float


_PACKETS = ("ruleset", "rules", "packets", "path", "ns", "±", "/ XDP drop", "/ iptables", "/ plain")
_COMPILED = (
    *("ruleset", "rules", "read s", "plan s", "load s", "prove s", "proof"),
    *("kernel MiB", "ns/packet", "median ns"),
)
_GOALS = ("goal", "measured", "must", "stretch", "")


def packet_cells(row: Row) -> tuple[str, ...]:
    """A line of the table of packets."""
    return (
        row.name,
        f"{row.rules}",
        f"{row.verdict}, {row.match}",
        row.path,
        f"{row.ns_per_packet:.0f}",
        f"{row.mad:.0f}",
        _times(row.ratio_to_xdp_drop),
        _times(row.ratio_to_iptables),
        _times(row.ratio_to_plain),
    )


def compiled_cells(one: Compiled) -> tuple[str, ...]:
    """A line of the compiler's table."""
    return (
        one.name,
        f"{one.rules}",
        f"{one.read:.2f}",
        f"{one.plan:.2f}",
        f"{one.load:.2f}",
        "-" if one.prove is None else f"{one.prove:.2f}",
        one.proof,
        f"{one.table_bytes / 2**20:.1f}",
        _whole(one.classify_ns),
        _whole(one.median_ns),
    )


def goal_cells(goal: Goal) -> tuple[str, ...]:
    """A line of the goals."""
    sign = "≥" if goal.rising else "≤"
    verdict = {None: "not measured", True: "met", False: "MISSED"}[goal.met]
    return (
        goal.what,
        "-" if goal.measured is None else f"{goal.measured:.3g} {goal.unit}",
        f"{sign} {goal.bound:g} {goal.unit}",
        f"{sign} {goal.stretch:g} {goal.unit}",
        "stretch" if goal.stretched else verdict,
    )


def markdown(
    rows: Sequence[Row], compiled: Sequence[Compiled], goals: Sequence[Goal], title: str
) -> str:
    """The whole report as Markdown tables, goals first."""
    parts = [f"# {title}", "## Goals", _markdown(_GOALS, map(goal_cells, goals))]
    if rows:
        parts += ["## Packets", _markdown(_PACKETS, map(packet_cells, rows))]
    if compiled:
        parts += ["## Compiler and program", _markdown(_COMPILED, map(compiled_cells, compiled))]
    return "\n\n".join(parts) + "\n"


def show(
    rows: Sequence[Row], compiled: Sequence[Compiled], goals: Sequence[Goal], console: Console
) -> None:
    """The same on a terminal, missed goals in red."""
    if rows:
        _show(console, "Packets through a veth pair", _PACKETS, map(packet_cells, rows))
    if compiled:
        _show(console, "Compiler and program", _COMPILED, map(compiled_cells, compiled))
    styles = {None: "dim", True: "green", False: "bold red"}
    lines = [(goal_cells(goal), styles[goal.met]) for goal in goals]
    table = Table(*_GOALS, title="Goals")
    for cells, style in lines:
        table.add_row(*cells, style=style)
    console.print(table)


def _show(
    console: Console, title: str, heads: Sequence[str], lines: Iterable[tuple[str, ...]]
) -> None:
    table = Table(*heads, title=title)
    for cells in lines:
        table.add_row(*cells)
    console.print(table)


def _markdown(heads: Sequence[str], lines: Iterable[tuple[str, ...]]) -> str:
    rule = "|".join("---" for _ in heads)
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join(["| " + " | ".join(heads) + " |", f"|{rule}|", *body])


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
