"""Who judges the packets: every way to filter them that is compared, each to be entered in turns.

A contender is made once (programs are loaded, texts rendered) and entered for every round; leaving
it takes its rules and programs away again, so that two never stand at once. Packets that a filter
accepts are dropped behind it, in the security table or where XDP hands them on.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from bench.facebook import facebook
from bench.network import FILTERING, Network
from bench.workloads import Workload
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.early import (
    Depth,
    EarlyChain,
    compile_early,
    early_image,
    unconfirmed_states,
)
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import Image, Plan
from bpfilter.demo.network import inside
from bpfilter.errors import LabError
from bpfilter.kernel.attach import attach
from bpfilter.kernel.config import Early, EarlyNow, Mode
from bpfilter.kernel.options import Template
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.shadow import Shadow
from bpfilter.kernel.xdp import XdpMode, attach_xdp
from bpfilter.lab.driver import Driver
from bpfilter.rollout.dispatch import render
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.read import read_text

CHAIN = ("filter", "INPUT")
BACKENDS = ("legacy", "nft")
MOST_IPTABLES = 10_000
"""Rules up to which iptables takes part: a packet costs it a microsecond for every hundred."""

_AFTER = "*security\n:INPUT DROP [0:0]\nCOMMIT\n"
_LEASE = 55 * 10**9
_EMPTY = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
_ONE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n"

_SHADOWED = (1.0, 0.05)
_MOST_PASSED = 0.02

Entered = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload compiled: for the dispatch, and as an early profile at XDP."""

    work: Workload
    plan: Plan
    image: Image
    early: EarlyChain


def prepare(work: Workload) -> Prepared:
    """Compile a workload; RulesetRefused or CompileError if it cannot be."""
    ruleset = read_text(work.text, source=work.name, family=work.family)
    plan = compile_ruleset(ruleset, [CHAIN])
    states = unconfirmed_states(ruleset, expectations=False)
    early = compile_early(ruleset, "INPUT", Depth.XDP, states=states)
    return Prepared(work, plan, assemble([plan]), early)


@contextmanager
def contenders(
    network: Network, driver: Driver, ready: Prepared, *, dropped: bool
) -> Iterator[dict[str, Entered]]:
    """Path → how to enter it, for packets that the rules drop, or for ones that they accept."""
    work = ready.work
    found: dict[str, Entered] = {}
    with ExitStack() as stack:
        if dropped:
            found["XDP drop"] = lambda: _xdp(network, driver.drop)
            found["TC drop"] = lambda: _tc(network, driver.shot)
        least = _ONE if dropped else _EMPTY
        for backend in BACKENDS:
            found[f"plain {backend}"] = _rules(network, backend, least, work.family)
            if work.rules <= MOST_IPTABLES:
                found[f"iptables-{backend}"] = _rules(network, backend, work.text, work.family)
            found[f"bpf dispatch {backend}"] = stack.enter_context(
                _dispatch(network, ready, backend)
            )
            if not dropped:
                for share in _SHADOWED:
                    found[f"shadow {share:.0%} {backend}"] = stack.enter_context(
                        _shadow(network, ready, backend, share)
                    )
        if work.nft:
            found["nft sets"] = _native(network, work.nft)
        if work.ipset:
            found["ipset legacy"] = _ipset(network, *work.ipset)
        if dropped:
            now = EarlyNow.HOLDS
            xdp = stack.enter_context(_early(network, ready.early, Template.XDP, now))
            tracked = now | EarlyNow.TRACKED
            found["bpf xdp"] = xdp
            found["bpf xdp + conntrack"] = stack.enter_context(
                _early(network, ready.early, Template.XDP, tracked)
            )
            found["bpf tc early"] = stack.enter_context(
                _early(network, ready.early, Template.EARLY, now)
            )
            if shutil.which("bfcli") and work.family is Family.IPV4:
                found["facebook xdp"] = lambda: facebook(network, work)
        yield found


def _rules(network: Network, backend: str, text: str, family: Family) -> Entered:
    @contextmanager
    def entered() -> Iterator[None]:
        network.restore(backend, text + _AFTER, family=family)
        try:
            yield
        finally:
            network.clear(backend, family)

    return entered


def _native(network: Network, text: str) -> Entered:
    @contextmanager
    def entered() -> Iterator[None]:
        network.run("nft", "-f", "-", stdin=text)
        try:
            with _rules(network, "nft", "", Family.IPV4)():
                yield
        finally:
            network.run("nft", "delete", "table", "ip", "bench")

    return entered


def _ipset(network: Network, members: str, rules: str) -> Entered:
    @contextmanager
    def entered() -> Iterator[None]:
        network.run("ipset", "restore", stdin=members)
        try:
            with _rules(network, "legacy", rules, Family.IPV4)():
                yield
        finally:
            network.run("ipset", "destroy", "bench")

    return entered


@contextmanager
def _xdp(network: Network, program: int) -> Iterator[None]:
    with inside(network.filter):
        link = attach_xdp(program, socket.if_nametoindex(FILTERING), XdpMode.NATIVE)
        try:
            yield
        finally:
            link.close()


@contextmanager
def _tc(network: Network, program: int) -> Iterator[None]:
    with inside(network.filter):
        link = attach(program, socket.if_nametoindex(FILTERING))
        try:
            yield
        finally:
            link.close()


@contextmanager
def _dispatch(network: Network, ready: Prepared, backend: str) -> Iterator[Entered]:
    """Mark at TC, obeyed by the dispatch; all else takes the original rules."""
    work, plan = ready.work, ready.plan
    chain = plan.chains[CHAIN]
    dispatch = render(plan.ruleset, chain, ready.image.codes, DEFAULT_MARK, [FILTERING])
    with inside(network.filter):
        index = socket.if_nametoindex(FILTERING)
        options = Options(
            mode=Mode.FORCED,
            interfaces={index: FILTERING},
            marking=DEFAULT_MARK,
            leased=True,
            generation=True,
        )
        classifier = Classifier.load(ready.image, options)

    @contextmanager
    def entered() -> Iterator[None]:
        with _rules(network, backend, work.text, work.family)():
            network.restore(backend, dispatch.add, "--noflush", family=work.family)
            with inside(network.filter):
                classifier.set_generation(classifier.observe_generation())
            classifier.set_lease(time.monotonic_ns() + _LEASE)
            with _tc(network, classifier.fd):
                yield

    with classifier:
        yield entered
        _must_have_decided(classifier)


@contextmanager
def _shadow(network: Network, ready: Prepared, backend: str, share: float) -> Iterator[Entered]:
    """The original rules, with so many packets compared."""
    with inside(network.filter):
        index = socket.if_nametoindex(FILTERING)
        options = Options(
            mode=Mode.FORCED, interfaces={index: FILTERING}, leased=True, shadow_share=share
        )
        classifier = Classifier.load(ready.image, options)

    @contextmanager
    def entered() -> Iterator[None]:
        classifier.set_lease(time.monotonic_ns() + _LEASE)
        with _rules(network, backend, ready.work.text, ready.work.family)(), ExitStack() as stack:
            with inside(network.filter):
                stack.enter_context(Shadow.attach(classifier))
            stack.enter_context(_tc(network, classifier.fd))
            yield

    with classifier:
        yield entered


@contextmanager
def _early(
    network: Network, chain: EarlyChain, template: Template, now: EarlyNow
) -> Iterator[Entered]:
    """Dropped before netfilter, under a lease and while the rules are as they were."""
    with inside(network.filter):
        options = Options(
            mode=Mode.FORCED,
            interfaces={socket.if_nametoindex(FILTERING): FILTERING},
            leased=True,
            generation=True,
            template=template,
            early=Early.DROPS | Early.LOOKUP,
            raw_entries={(chain.plan.flat.family, "INPUT"): chain.raw_entries},
        )
        program = Classifier.load(early_image([chain]), options)

    @contextmanager
    def entered() -> Iterator[None]:
        with inside(network.filter):
            program.set_generation(program.observe_generation())
        program.set_lease(time.monotonic_ns() + _LEASE)
        program.set_early(now)
        with _xdp(network, program.fd) if template is Template.XDP else _tc(network, program.fd):
            yield

    with program:
        yield entered
        _must_have_decided(program)


def _must_have_decided(program: Classifier) -> None:
    """A figure of packets that were only passed on would be another one's."""
    decided, passed = sum(program.outcomes().values()), sum(program.punts().values())
    if passed > _MOST_PASSED * (decided + passed):
        reasons = ", ".join(reason.name.lower() for reason in program.punts())
        raise LabError(
            f"{program.options.template}: {passed} of {decided + passed} packets passed: {reasons}",
            hint="leave the machine's rules alone while this runs; else it is a fault",
        )
