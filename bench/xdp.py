"""What an early drop at native XDP costs, beside a program that drops everything.

The early program runs as it does on a host: under a lease, comparing the generation, counting.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bench.frames import headers
from bench.generate import Style, generate
from bench.live import driver_of, send
from bench.network import FILTERING, Network
from bench.report import Live
from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.early import (
    Depth,
    EarlyChain,
    compile_early,
    early_image,
    unconfirmed_states,
)
from bpfilter.compiler.walk import Packet
from bpfilter.demo.network import inside
from bpfilter.kernel.config import Early, EarlyNow, Mode
from bpfilter.kernel.options import Template
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.xdp import XdpMode, attach_xdp
from bpfilter.lab.driver import Driver
from bpfilter.ruleset.fields import Field
from bpfilter.ruleset.read import read_text

_LEASE = 55_000_000_000


def measure_xdp(style: Style, sizes: Sequence[int], seed: int, packets: int) -> list[Live]:
    """Per size: a bare XDP_DROP, then early drops without and with a lookup in conntrack.

    All packets are ones of TCP and UDP that the rules drop.
    """
    results = []
    with Network() as network:
        for count in sizes:
            ruleset = read_text(generate(style, count, seed))
            states = unconfirmed_states(ruleset, expectations=False)
            chain = compile_early(ruleset, "INPUT", Depth.XDP, states=states)
            with driver_of(network, _dropped(chain, seed, packets)) as driver:
                for path, ns, share in _paths(network, driver, chain):
                    results.append(Live(style.value, count, path, ns, share))
    return results


def _dropped(chain: EarlyChain, seed: int, count: int) -> list[Packet]:
    wanted = chain.plan.functions[0]
    drawn = headers(chain.plan.flat, np.random.default_rng(seed), 4 * count)
    functions = functions_of(chain.plan.tables, drawn)
    pairs = zip(drawn, functions, strict=True)
    lookups = (packet for packet, function in pairs if function == wanted)
    return [packet for packet in lookups if packet[Field.PROTOCOL] in (6, 17)][:count]


def _paths(
    network: Network, driver: Driver, chain: EarlyChain
) -> Iterator[tuple[str, float, float]]:
    with _attached(network, driver.drop):
        yield "bare XDP_DROP", *send(network, driver)
    for name, now in (("", EarlyNow.HOLDS), (" + conntrack", EarlyNow.HOLDS | EarlyNow.TRACKED)):
        with _loaded(network, chain) as (program, vouch), _attached(network, program.fd):
            vouch(now)
            before = sum(program.punts().values())
            ns, _ = send(network, driver)
            vouch(now)
            passed = sum(program.punts().values()) - before
            dropped = sum(program.outcomes().values())
            yield f"early drop at XDP{name}", ns, dropped / (dropped + passed)


@contextmanager
def _loaded(
    network: Network, chain: EarlyChain
) -> Iterator[tuple[Classifier, Callable[[EarlyNow], None]]]:
    with inside(network.filter):
        options = Options(
            mode=Mode.FORCED,
            interfaces={socket.if_nametoindex(FILTERING): FILTERING},
            leased=True,
            generation=True,
            template=Template.XDP,
            early=Early.DROPS | Early.LOOKUP,
            raw_entries={(chain.plan.flat.family, "INPUT"): chain.raw_entries},
        )
        with Classifier.load(early_image([chain]), options) as program:
            program.set_generation(program.observe_generation())

            def vouch(now: EarlyNow) -> None:
                program.set_lease(time.monotonic_ns() + _LEASE)
                program.set_early(now)

            yield program, vouch


@contextmanager
def _attached(network: Network, program: int) -> Iterator[None]:
    with inside(network.filter):
        link = attach_xdp(program, socket.if_nametoindex(FILTERING), XdpMode.NATIVE)
        try:
            yield
        finally:
            link.close()
