"""`make chaos`: see `python -m tests.chaos --help`. Exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import BACKENDS, Result, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of random acts, per world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=400, help="packets per second")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--world", choices=("host", "router"), action="append")
    parser.add_argument("--points", type=int, help="die at so many points only (default: all)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves the contexts
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {line}", flush=True)

    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="bpfilter-chaos-") as directory:
        os.environ["XTABLES_LOCKFILE"] = str(Path(directory) / "xtables.lock")
        for world in chosen.world or ("host", "router"):
            for backend in chosen.backend or BACKENDS:
                say(f"{world} iptables-{backend}, seed {chosen.seed}")
                points = None if chosen.points is None else range(1, chosen.points + 1)
                result = run(
                    backend,
                    router=world == "router",
                    seconds=60 * chosen.minutes,
                    seed=chosen.seed,
                    rate=chosen.rate,
                    say=say,
                    points=points,
                )
                results.append(result)
                print(result, flush=True)
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
