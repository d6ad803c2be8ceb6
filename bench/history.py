"""Runs kept in a file, and the check of one run against a stored baseline.

Ratios are compared, never times: machines differ, and one machine differs from hour to hour. A
path is slower only if its ratio grew by more than a tenth and by more than four deviations of the
two medians together (a normal distribution's deviation is 1.48 times its MAD).
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.compare import Row
from bench.goals import Results, goals

SCHEMA = 2
RESULTS = Path(__file__).parent / "results"
HISTORY = RESULTS / "history.jsonl"
BASELINE = Path(__file__).with_name("baseline.json")
_GROWTH = 1.1
_DEVIATIONS = 4.0
_NORMAL = 1.4826


@dataclass(frozen=True, slots=True)
class Slower:
    """A path whose ratio grew. `key`: name, rules, verdict, match and path."""

    key: str
    before: float
    now: float


def document(results: Results, seed: int) -> dict[str, object]:
    """One run as JSON: rows as the issue asks for them, and all else that was measured."""
    return {
        "schema_version": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "commit": _commit(),
        "host": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "rows": [row.as_dict() for row in results.rows],
        "compiled": [asdict(one) for one in results.compiled],
        "edits": [asdict(edit) for edit in results.edits],
        "streams": {
            path: [asdict(pair) for pair in pairs] for path, pairs in results.streams.items()
        },
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals(results)],
    }


def keep(run: dict[str, object], history: Path = HISTORY) -> None:
    """Append a run to the history, one line of JSON."""
    history.parent.mkdir(exist_ok=True)
    with history.open("a") as file:
        file.write(json.dumps(run) + "\n")


def ratios(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """What is compared with a baseline: ratio, and its deviation as a share of it.

    Drops are held against the bare XDP_DROP of their round, accepted packets against the least
    table of the backend.
    """
    found = {}
    for row in rows:
        ratio = row.ratio_to_xdp_drop if row.verdict == "drop" else row.ratio_to_plain
        if ratio is not None and row.path.startswith("bpf"):
            key = f"{row.name} {row.rules} {row.verdict} {row.match} {row.path}"
            found[key] = (ratio, _NORMAL * row.mad / row.ns_per_packet)
    return found


def regressions(
    now: dict[str, tuple[float, float]], before: dict[str, tuple[float, float]]
) -> Iterator[Slower]:
    """Paths of both runs that became slower, beyond what chance and a changed machine explain."""
    for key, (ratio, share) in now.items():
        if key not in before:
            continue
        old, old_share = before[key]
        noise = math.hypot(share * ratio, old_share * old)
        if ratio > _GROWTH * old and ratio - old > _DEVIATIONS * noise:
            yield Slower(key, old, ratio)


def load_baseline(path: Path = BASELINE) -> dict[str, tuple[float, float]]:
    """The stored ratios; empty if there is no such file."""
    if not path.exists():
        return {}
    return {key: (float(a), float(b)) for key, (a, b) in json.loads(path.read_text()).items()}


def save_baseline(rows: Sequence[Row], path: Path = BASELINE) -> None:
    """Store the ratios of a run; paths that it has not measured keep theirs."""
    kept = {**load_baseline(path), **ratios(rows)}
    rounded = {key: [round(a, 3), round(b, 3)] for key, (a, b) in sorted(kept.items())}
    path.write_text(json.dumps(rounded, indent=1) + "\n")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip()
