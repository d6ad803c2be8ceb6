"""Real packets: what a packet costs through iptables, and through the program and its dispatch.

BPF_PROG_RUN with live frames makes packets of all headers in turn and redirects them into a veth
pair (net/bpf/test_run.c, xdp_test_run_batch); sender and receiver share one core, so the wall time
per packet is the cost of both. Medians and shares; compare within one run only.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from bench.driver import Driver
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
from bpfilter.kernel.syscall import PROG_TEST_RUN, RunAttributes, bpf
from bpfilter.rollout.dispatch import render
from bpfilter.ruleset.read import read_text

_CHAIN = ("filter", "INPUT")
_LIVE_FRAMES = 2
_BATCH = 64
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
        driver = Driver(frames, ifindex=index)
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
    count = _fitting(lambda packets: _flood(network, driver, packets))
    before = network.received()
    times = [_flood(network, driver, count) for _ in range(_ROUNDS)]
    return min(times) / count * 1e9, (network.received() - before) / (_ROUNDS * count)


def _fitting(run: Callable[[int], float]) -> int:
    """How many packets take about `_SECONDS`."""
    count = 2_000
    while True:
        seconds = run(count)
        if seconds >= _SECONDS / 4:
            return max(1_000, int(count * _SECONDS / seconds))
        count *= 4


def _flood(network: Network, driver: Driver, count: int) -> float:
    """Send that many packets; seconds until all were received and judged."""
    data = ctypes.create_string_buffer(driver.frame, len(driver.frame))
    attributes = RunAttributes(
        prog_fd=driver.flood,
        data_size_in=len(driver.frame),
        data_in=ctypes.addressof(data),
        repeat=count,
        flags=_LIVE_FRAMES,
        batch_size=_BATCH,
    )
    with inside(network.sender):
        start = time.perf_counter()
        bpf(PROG_TEST_RUN, attributes, "send packets")
        return time.perf_counter() - start
