"""What the dispatch costs by verdict: accepted and late dropped packets, beside the least rules.

`python -m bench.verdicts [RULES]` prints one JSON line per backend and verdict: ns per packet
(sender included) through the program and its dispatch, and through an empty filter table (accepted)
or one rule that drops all (dropped), in turns, with their ratio. Needs root and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from bench.frames import headers
from bench.generate import Style, generate
from bench.live import attached, driver_of, send
from bench.network import FILTERING, Network
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.lab.driver import Driver
from bpfilter.rollout.dispatch import render
from bpfilter.ruleset.read import read_text

_CHAIN = ("filter", "INPUT")
_ROUNDS = 5
_AFTER = "*security\n:INPUT DROP [0:0]\nCOMMIT\n"
_LEAST = {
    "ACCEPT": "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
    "DROP": "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n",
}


def ratios(backend: str, verdict: str, rules: int) -> dict[str, object]:
    """Medians of rounds in turns; every rule and the policy give the verdict."""
    text = re.sub(r"-j \w+", f"-j {verdict}", generate(Style.ACL, rules, 1))
    text = re.sub(r":INPUT \w+", f":INPUT {verdict}", text)
    plan = compile_ruleset(read_text(text), [_CHAIN])
    image = assemble([plan])
    chain = plan.chains[_CHAIN]
    dispatch = render(plan.ruleset, chain, image.codes, DEFAULT_MARK, [FILTERING])
    chosen = headers(chain.flat, np.random.default_rng(1), 1024)
    ours, least = [], []
    with Network() as network, driver_of(network, chosen) as driver:
        for _ in range(_ROUNDS):
            with _loaded(network, backend, _LEAST[verdict]):
                least.append(_cost(network, driver))
            with _loaded(network, backend, text):
                network.restore(backend, dispatch.add, "--noflush")
                with attached(network, image):
                    ours.append(_cost(network, driver))
    return {
        "backend": backend,
        "verdict": verdict,
        "rules": rules,
        "ns_per_packet": round(median(ours)),
        "ns_least_rules": round(median(least)),
        "ratio": round(median(o / n for o, n in zip(ours, least, strict=True)), 2),
    }


@contextmanager
def _loaded(network: Network, backend: str, text: str) -> Iterator[None]:
    network.restore(backend, text + _AFTER)
    try:
        yield
    finally:
        network.clear(backend)


def _cost(network: Network, driver: Driver) -> float:
    return send(network, driver)[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verdicts", description=__doc__)
    parser.add_argument("rules", nargs="?", type=int, default=10_000)
    rules = parser.parse_args().rules
    for backend in ("legacy", "nft"):
        for verdict in _LEAST:
            print(json.dumps(ratios(backend, verdict, rules)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
