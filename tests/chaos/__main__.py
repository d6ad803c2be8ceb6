"""`make chaos` and `make leak`. Exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import bpffs
from tests.chaos.edits import Edited, edits
from tests.chaos.leak import Leaks, leaks, process_leaks
from tests.chaos.run import BACKENDS, Result, run

WORLDS = ("host", "router")


def main() -> int:
    chosen = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves the contexts
    bpffs.mount()
    good = True
    with tempfile.TemporaryDirectory(prefix="bpfilter-chaos-") as directory:
        os.environ["XTABLES_LOCKFILE"] = str(Path(directory) / "xtables.lock")
        for result in chosen.do(chosen):
            print(result, flush=True)
            good &= result.good
    return 0 if good else 1


def _run(chosen: argparse.Namespace) -> Iterator[Result]:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {line}", flush=True)

    points = None if chosen.points is None else range(1, chosen.points + 1)
    for world in chosen.world or WORLDS:
        for backend in chosen.backend or BACKENDS:
            say(f"{world} iptables-{backend}, seed {chosen.seed}")
            yield run(
                backend,
                router=world == "router",
                seconds=60 * chosen.minutes,
                seed=chosen.seed,
                rate=chosen.rate,
                say=say,
                points=points,
            )


def _edits(chosen: argparse.Namespace) -> Iterator[Edited]:
    for world in chosen.world or WORLDS[:1]:
        for backend in chosen.backend or BACKENDS:
            yield edits(
                backend,
                chosen.count,
                router=world == "router",
                filler=chosen.rules,
                seed=chosen.seed,
                rate=chosen.rate,
            )


def _leak(chosen: argparse.Namespace) -> Iterator[Leaks]:
    """In portions, each with its result, so that a run that is cut short has told something."""
    for backend in chosen.backend or BACKENDS:
        for done in range(0, chosen.cycles, chosen.portion):
            cycles = min(chosen.portion, chosen.cycles - done)
            yield leaks(backend, cycles)
            yield process_leaks(backend, max(1, cycles // 10))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=1)
    common.add_argument("--rate", type=int, default=400, help="packets per second")
    common.add_argument("--backend", choices=BACKENDS, action="append")
    common.add_argument("--world", choices=WORLDS, action="append")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("run", parents=[common], help="acts in random order, deaths at points")
    verb.add_argument("--minutes", type=float, default=2.0, help="of random acts, per world")
    verb.add_argument("--points", type=int, help="die at so many points only (default: all)")
    verb.set_defaults(do=_run)
    verb = verbs.add_parser("edits", parents=[common], help="edits of rules while enforcing")
    verb.add_argument("--count", type=int, default=250, help="per world and backend")
    verb.add_argument("--rules", type=int, default=1000, help="per family")
    verb.set_defaults(do=_edits)
    verb = verbs.add_parser("leak", parents=[common], help="cycles up and down")
    verb.add_argument("--cycles", type=int, default=500, help="per backend")
    verb.add_argument("--portion", type=int, default=100, help="cycles between results")
    verb.set_defaults(do=_leak)
    return parser


if __name__ == "__main__":
    sys.exit(main())
