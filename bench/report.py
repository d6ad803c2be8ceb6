"""What a run measured: a table for people, JSON for comparisons."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One ruleset through the compiler and the program; times in seconds unless named otherwise.

    `classify_ns`: one packet through the loaded program, headers changing, the harness floor
    subtracted, in the best round; `median_ns` in the median one; `floor_ns` is that floor, from the
    same run. None where it could not be run.
    """

    style: str
    rules: int
    entries: int
    read: float
    plan: float
    load: float
    prove: float | None
    proof: str
    table_bytes: int
    classify_ns: float | None
    median_ns: float | None
    floor_ns: float | None


@dataclass(frozen=True, slots=True)
class Live:
    """Real packets through a veth pair, generator included: nanoseconds for each."""

    style: str
    rules: int
    path: str
    ns: float
    share: float


def print_compiled(results: Sequence[Compiled], console: Console) -> None:
    """The compiler's table, one line per ruleset, and the goals it is held against."""
    table = Table(title="Rulesets through the compiler and the program")
    for name in ("style", "rules", "entries", "read s", "plan s", "load s", "prove s", "proof"):
        table.add_column(name, justify="left" if name in ("style", "proof") else "right")
    for name in ("tables MiB", "ns/packet", "median", "floor ns"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(
            result.style,
            f"{result.rules}",
            f"{result.entries}",
            f"{result.read:.3f}",
            f"{result.plan:.3f}",
            f"{result.load:.3f}",
            _seconds(result.prove),
            result.proof,
            f"{result.table_bytes / 2**20:.1f}",
            _nanoseconds(result.classify_ns),
            _nanoseconds(result.median_ns),
            _nanoseconds(result.floor_ns),
        )
    console.print(table)
    for line in goals(results):
        console.print(line)


def goals(results: Sequence[Compiled]) -> list[str]:
    """The issue's bounds at 10 000 rules, each with what was measured."""
    lines = []
    for result in results:
        if result.rules == 10_000:
            ns = _nanoseconds(result.classify_ns)
            lines.append(
                f"{result.style} 10 000 rules: "
                f"plan + load {result.plan + result.load:.2f} s (≤ 2), "
                f"proof {_seconds(result.prove)} s (≤ 5), "
                f"tables {result.table_bytes / 2**20:.1f} MiB (≤ 64), {ns} ns per packet (≤ 250)"
            )
    small = {r.style: r for r in results if r.rules == 10}
    for result in results:
        first = small.get(result.style)
        if result.rules == 10_000 and first and first.classify_ns and result.classify_ns:
            ratio = result.classify_ns / first.classify_ns
            bound = " (≤ 4)" if result.style == "acl" else ""
            lines.append(f"{result.style}: 10 000 rules cost {ratio:.1f} times what 10 cost{bound}")
    return lines


def print_live(results: Sequence[Live], console: Console) -> None:
    """Real packets: one line per ruleset and path."""
    table = Table(title="Real packets through a veth pair (ns per packet, generator included)")
    for name in ("style", "rules", "path"):
        table.add_column(name, justify="right" if name == "rules" else "left")
    table.add_column("ns/packet", justify="right")
    table.add_column("delivered to the filter", justify="right")
    for result in results:
        table.add_row(
            result.style, f"{result.rules}", result.path, f"{result.ns:.0f}", f"{result.share:.1%}"
        )
    console.print(table)


def write_json(compiled: Sequence[Compiled], live: Sequence[Live], seed: int) -> Path:
    """Write all results beside those of earlier runs; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    document = {
        "schema_version": 1,
        "time": now.isoformat(timespec="seconds"),
        "seed": seed,
        "host": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "compiled": [asdict(result) for result in compiled],
        "live": [asdict(result) for result in live],
    }
    path = RESULTS / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _nanoseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
