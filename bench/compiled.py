"""One generated ruleset from text to nanoseconds per packet."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass

import numpy as np

from bench.frames import frame, headers
from bench.report import Compiled
from bench.workloads import Workload
from bpfilter.analysis.equivalence import prove
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import Image
from bpfilter.errors import RolloutError
from bpfilter.kernel.config import Mode, Reason
from bpfilter.kernel.program import Classifier, Options
from bpfilter.lab.driver import Driver, Timing
from bpfilter.ruleset.read import read_text

_CHAIN = ("filter", "INPUT")
_LOOPBACK = 1
_LEASE = 55 * 10**9
_COUNT = 16


def measure(
    work: Workload,
    seed: int,
    *,
    packets: int,
    repeat: int,
    rounds: int,
    proving: bool,
    running: bool,
) -> Compiled:
    """Read, plan, prove, load and run one ruleset; the program is freed again."""
    start = time.perf_counter()
    ruleset = read_text(work.text, source=work.name, family=work.family)
    read = time.perf_counter()
    plan = compile_ruleset(ruleset, [_CHAIN])
    image = assemble([plan])
    planned = time.perf_counter()
    chain = plan.chains[_CHAIN]
    proof = prove(ruleset, chain) if proving else None
    run = _run(image, seed, packets, repeat, rounds) if running else None
    timing = run.timing if run else None
    return Compiled(
        name=work.name,
        rules=work.rules,
        entries=len(chain.flat.entries),
        read=read - start,
        plan=planned - read,
        load=run.load if run else 0.0,
        prove=proof.seconds if proof else None,
        proof="-" if proof is None else "holds" if proof.complete and proof.holds else "incomplete",
        table_bytes=run.kernel_bytes if run else chain.tables.nbytes,
        process_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        classify_ns=timing.best if timing else None,
        median_ns=timing.median if timing else None,
        floor_ns=timing.floor if timing else None,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    load: float
    kernel_bytes: int
    timing: Timing


def _run(image: Image, seed: int, packets: int, repeat: int, rounds: int) -> _Run:
    """Load and run it as in enforcement: lease, generation check, marks."""
    flat = image.slots[0].plan.flat
    drawn = headers(flat, np.random.default_rng(seed), packets)
    frames = [frame(packet, family=flat.family) for packet in drawn]
    options = Options(
        mode=Mode.FORCED,
        interfaces={_LOOPBACK: "lo"},
        marking=DEFAULT_MARK,
        leased=True,
        generation=True,
    )
    start = time.perf_counter()
    with Classifier.load(image, options) as classifier:
        loaded = time.perf_counter() - start
        classifier.set_generation(classifier.observe_generation())
        classifier.set_lease(time.monotonic_ns() + _LEASE)
        with Driver(frames) as driver:
            timing = driver.measure(classifier.fd, repeat=repeat, rounds=rounds)
        if Reason.LEASE in classifier.punts() or Reason.GENERATION in classifier.punts():
            raise RolloutError(
                "the program did not decide the packets: the lease ran out or rules changed",
                hint="run the benchmark with fewer rounds, and leave the host's rules alone",
            )
        tables = classifier.table_bytes
        counts = _COUNT * classifier.contents.counter_stride * (os.cpu_count() or 1)
    return _Run(loaded, tables + counts, timing)
