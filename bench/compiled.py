"""One generated ruleset from text to nanoseconds per packet."""

from __future__ import annotations

import time

import numpy as np

from bench.driver import Driver
from bench.frames import frame, headers
from bench.generate import Style, generate
from bench.report import Compiled
from bpfilter.analysis.equivalence import prove
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.plan import Image
from bpfilter.kernel.program import Classifier
from bpfilter.ruleset.read import read_text

_CHAIN = ("filter", "INPUT")
_INTERFACE = 1


def measure(
    style: Style,
    count: int,
    seed: int,
    *,
    packets: int,
    repeat: int,
    rounds: int,
    proving: bool,
    running: bool,
) -> Compiled:
    """Read, plan, prove, load and run one ruleset; the program is freed again."""
    text = generate(style, count, seed)
    start = time.perf_counter()
    ruleset = read_text(text, source=f"{style}-{count}")
    read = time.perf_counter()
    plan = compile_ruleset(ruleset, [_CHAIN])
    image = assemble([plan])
    planned = time.perf_counter()
    chain = plan.chains[_CHAIN]
    proof = prove(ruleset, chain) if proving else None
    load, classify_ns, floor_ns = 0.0, None, None
    if running:
        load, classify_ns, floor_ns = _run(image, seed, packets, repeat, rounds)
    return Compiled(
        style=style.value,
        rules=count,
        entries=len(chain.flat.entries),
        read=read - start,
        plan=planned - read,
        load=load,
        prove=proof.seconds if proof else None,
        proof="-" if proof is None else "holds" if proof.complete and proof.holds else "incomplete",
        table_bytes=chain.tables.nbytes,
        classify_ns=classify_ns,
        floor_ns=floor_ns,
    )


def _run(
    image: Image, seed: int, packets: int, repeat: int, rounds: int
) -> tuple[float, float, float]:
    """(seconds to load, ns per packet without the harness, ns of the harness)."""
    flat = image.slots[0].plan.flat
    frames = [frame(packet) for packet in headers(flat, np.random.default_rng(seed), packets)]
    start = time.perf_counter()
    with Classifier.load(image, interfaces={_INTERFACE: ""}) as classifier:
        loaded = time.perf_counter() - start
        with Driver(frames) as driver:
            total, floor = driver.measure(classifier.program_fd, repeat=repeat, rounds=rounds)
    return loaded, total - floor, floor
