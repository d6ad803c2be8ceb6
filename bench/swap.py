"""How long packets are punted after an edit: those that it concerns, and all others.

`python -m bench.swap [RULES]` prints one JSON line per backend: medians of the time until programs
decide again all but what the edited rule matches, and until the new generation decides everything,
with the processor time of that (ours and that of the tools we run), in seconds. Needs root.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.generate import Style, generate
from bench.network import FILTERING, Network
from bench.report import Edit
from bpfilter.demo.network import inside
from bpfilter.errors import RolloutError
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.request import Request
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.model import Backend

_EDITS = 5


def swaps(backend: Backend, rules: int) -> Edit:
    """Medians over a few edits, each of which inserts a rule at the top."""
    around, wall, cpu = [], [], []
    with Network() as net, tempfile.TemporaryDirectory() as directory:
        net.restore(backend, generate(Style.ACL, rules, 1))
        journal = Journal(Path(directory) / "state")
        request = Request((FILTERING,), backend, lease_seconds=60.0)
        with inside(net.filter), Rollout(request, journal, lambda _line: None) as rollout:
            rollout.watched = rollout.follows = True
            rollout.shadow()
            rollout.enforce()
            for number in range(_EDITS):
                edit = f"*filter\n-I INPUT -s 10.0.0.{number} -j DROP\nCOMMIT\n"
                net.restore(backend, edit, "--noflush")
                began, spent = time.monotonic(), _spent()
                if (trouble := rollout.tick()) is not None:
                    raise RolloutError(trouble)
                around.append(time.monotonic() - began)
                rollout.swap()
                wall.append(time.monotonic() - began)
                cpu.append(_spent() - spent)
    return Edit(backend, rules, *(round(median(times), 3) for times in (around, wall, cpu)))


def _spent() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__)
    parser.add_argument("rules", nargs="?", type=int, default=1000)
    for backend in Backend:
        print(json.dumps(asdict(swaps(backend, parser.parse_args().rules))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
