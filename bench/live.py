"""Real packets: what a packet costs through iptables, and through the program and its dispatch.

BPF_PROG_RUN with live frames makes packets of all headers in turn and redirects them into a veth
pair (`bpfilter.lab.driver`); sender and receiver share one core, so the time per packet is the cost
of both. Medians and shares; compare within one run only.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from bench.frames import frame, headers
from bench.generate import Style, generate, ruleset_text
from bench.network import FILTERING, SENDING, Network
from bench.report import Live
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import Image, Plan
from bpfilter.compiler.walk import Packet
from bpfilter.demo.network import inside
from bpfilter.kernel.attach import attach
from bpfilter.kernel.config import Mode
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.shadow import Shadow
from bpfilter.lab.driver import Driver
from bpfilter.rollout.dispatch import render
from bpfilter.ruleset.read import read_text

_CHAIN = ("filter", "INPUT")
_SECONDS = 0.3
_ROUNDS = 5
_AFTER = "*security\n:INPUT DROP [0:0]\nCOMMIT\n"
_SHARES = (1.0, 0.05)
_BACKENDS = ("legacy", "nft")


def measure_live(style: Style, sizes: Sequence[int], seed: int, packets: int) -> list[Live]:
    """Every size through an empty filter, both backends of iptables, and the program."""
    results = []
    with Network() as network:
        for count in sizes:
            text = generate(style, count, seed)
            plan = compile_ruleset(read_text(text), [_CHAIN])
            flat = plan.chains[_CHAIN].flat
            chosen = headers(flat, np.random.default_rng(seed), packets)
            with driver_of(network, chosen) as driver:
                for path, ns, share in _paths(network, driver, text, plan):
                    results.append(Live(style.value, count, path, ns, share))
    return results


def _paths(
    network: Network, driver: Driver, text: str, plan: Plan
) -> Iterator[tuple[str, float, float]]:
    network.restore("legacy", ruleset_text([], policy="ACCEPT") + _AFTER)
    yield "empty filter", *send(network, driver)
    network.clear("legacy")
    for backend in _BACKENDS:
        network.restore(backend, text + _AFTER)
        yield f"iptables-{backend}", *send(network, driver)
        image = assemble([plan])
        for share in _SHARES:
            with attached(network, image, shadow_share=share):
                yield f"shadow of {share:.0%} + iptables-{backend}", *send(network, driver)
        chain = plan.chains[_CHAIN]
        dispatch = render(plan.ruleset, chain, image.codes, DEFAULT_MARK, [FILTERING])
        network.restore(backend, dispatch.add, "--noflush")
        with attached(network, image):
            yield f"BPF + iptables-{backend}", *send(network, driver)
        network.clear(backend)


@contextmanager
def driver_of(network: Network, packets: Sequence[Packet]) -> Iterator[Driver]:
    """A driver whose frames, one for each packet, go to the filtering side."""
    with inside(network.filter), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((FILTERING, 0))
        mac: bytes = sock.getsockname()[4]
    frames = [frame(packet, mac) for packet in packets]
    with inside(network.sender):
        index = socket.if_nametoindex(SENDING)
        driver = Driver(frames, [index])
    with driver:
        yield driver


@contextmanager
def attached(network: Network, image: Image, shadow_share: float = 0.0) -> Iterator[None]:
    """The program at the filtering interface: with marks on, or comparing only."""
    with inside(network.filter), ExitStack() as stack:
        index = socket.if_nametoindex(FILTERING)
        options = Options(
            mode=Mode.FORCED,
            interfaces={index: FILTERING},
            marking=None if shadow_share else DEFAULT_MARK,
            shadow_share=shadow_share,
        )
        classifier = stack.enter_context(Classifier.load(image, options))
        if shadow_share:
            stack.enter_context(Shadow.attach(classifier))
        stack.callback(attach(classifier.fd, index).close)
        yield


def send(network: Network, driver: Driver) -> tuple[float, float]:
    """(best ns per packet, share of the packets that arrived)."""
    with inside(network.sender):
        count = driver.fitting(_SECONDS)
    before = network.received()
    with inside(network.sender):
        times = [driver.send(count) for _ in range(_ROUNDS)]
    return min(times), (network.received() - before) / (_ROUNDS * count)
