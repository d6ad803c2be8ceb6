"""Verifies every ruleset of a folder in the lab, with both backends: one line each, then totals.

    .venv/bin/python scripts/verify_rulesets.py ../shared/rulesets --packets 1000 > report.tsv

Files are named *.v4 or *.v6. Exit code 1 if anything diverged; what iptables refuses, or cannot
load into this kernel, is counted apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from bpfilter.cli.verify import cutover
from bpfilter.errors import BpfilterError, LabError, RulesetRefused
from bpfilter.lab.report import Report
from bpfilter.lab.verify import Request, verify
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_file

COLUMNS = (
    "file", "backend", "result", "seconds", "packets", "agree", "differ", "punted",
    "not comparable", "cutover agree", "cutover differ", "rules", "reached",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packets", type=int, default=1000, help="for each chain")
    options = parser.parse_args()
    print(*COLUMNS, sep="\t")
    results: Counter[str] = Counter()
    for path in sorted(options.folder.glob("*.v[46]")):
        for backend in Backend:
            started = time.monotonic()
            result, figures = attempt(path, backend, options.packets)
            results[result.split(":")[0]] += 1
            seconds = f"{time.monotonic() - started:.1f}"
            print(path.name, backend, result, seconds, *figures, sep="\t", flush=True)
    print(*(f"{result}: {count}" for result, count in results.items()), sep=", ", file=sys.stderr)
    return 1 if results["diverged"] or results["failed"] else 0


def attempt(path: Path, backend: Backend, packets: int) -> tuple[str, tuple[int, ...]]:
    """How it went, and the figures of all chains together."""
    family = Family.IPV4 if path.suffix == ".v4" else Family.IPV6
    try:
        ruleset = read_file(str(path), family=family, backend=backend)
        text = path.read_bytes()
        report = verify(Request(ruleset, backend, packets=packets, text=text, cutover=cutover))
    except RulesetRefused as error:
        return f"refused: {_line(error)}", ()
    except LabError as error:
        return f"not loaded: {_line(error)}", ()
    except BpfilterError as error:
        return f"failed: {_line(error)}", ()
    return ("agrees" if report.holds else "diverged"), figures(report)


def figures(report: Report) -> tuple[int, ...]:
    shadow = [chain.shadow for chain in report.chains]
    after = [chain.cutover for chain in report.chains if chain.cutover is not None]
    return (
        sum(tally.packets for tally in shadow),
        sum(tally.matched for tally in shadow),
        sum(tally.mismatched for tally in shadow),
        sum(sum(tally.punted.values()) for tally in shadow),
        sum(sum(tally.not_comparable.values()) for tally in shadow),
        sum(tally.matched for tally in after),
        sum(tally.mismatched for tally in after),
        sum(chain.rules for chain in report.chains),
        sum(chain.hit for chain in report.chains),
    )


def _line(error: BpfilterError) -> str:
    return " ".join(error.message.split())[:160]


if __name__ == "__main__":
    sys.exit(main())
