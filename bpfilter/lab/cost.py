"""What a packet costs on this kernel through iptables, and through the program: real packets.

The ruleset is restored by real iptables in a namespace of its own and packets that its rules are
about are sent through it; then the dispatch is added and the program attached, and the same packets
are sent again. What filter accepts is dropped right behind it, so that no socket has a part. Sender
and receiver share one core: every figure is the cost of both, and figures of one run only compare.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfilter.compiler.compile import DISPATCHED, compile_ruleset
from bpfilter.compiler.ir import Entry, FlatChain, OpKind
from bpfilter.compiler.plan import ChainPlan, Plan
from bpfilter.compiler.sample import Sampler
from bpfilter.compiler.scope import closure_rules
from bpfilter.errors import LabError
from bpfilter.kernel.config import Mode, Reason
from bpfilter.kernel.program import Classifier, Options
from bpfilter.lab import conntrack
from bpfilter.lab.addresses import unroutable
from bpfilter.lab.conversation import (
    TRACKED_NUMBERS,
    Stimulus,
    likely_state,
    master_of,
    prepare,
)
from bpfilter.lab.driver import Driver, take_by_napi
from bpfilter.lab.host import LabHost
from bpfilter.lab.packets import can_encode, encode
from bpfilter.lab.topology import device_names
from bpfilter.lab.verify import MOST_DEVICES, Cutover, Marking
from bpfilter.ruleset.fields import Family, Field, State
from bpfilter.ruleset.model import Backend, RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import write

_LENGTH = {Family.IPV4: 60 - 14, Family.IPV6: 78 - 14}
_AFTER = "*security\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n"
_BARE = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
_PACKETS = 512
_TRIES = 20
_MISSES = 0.1
_SECONDS, _ROUNDS = 0.15, 5
_REPEAT, _RUNS, _LEASE = 5_000, 20, 50 * 10**9
_MOST_SILENT = 0.01
_LOOPBACK = 1
"""Its index; what BPF_PROG_RUN gives to a program arrives there (net/bpf/test_run.c)."""
_NO_MAC = bytes(6)
"""Its address."""
_SHARES = (1 / 64, 1 / 16, 1 / 4)
_LEAST_RULES, _WHOLE_CHAIN = 8, 8
_ENOUGH = 1000
"""Packets that a ruleset must have counted before they say what its traffic is like."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds for a packet through iptables alone, and with the program before it.

    `classify`: of the program alone, run by BPF_PROG_RUN with the harness subtracted; every packet
    then arrives on the interface that most arrive on.
    """

    iptables: float
    program: float
    classify: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of one chain. `floor`: a packet through no rules at all.

    `curve`: by number of rules, packets spread evenly over the rules. `own`: of the whole ruleset
    with packets as its counters say; `counted`: so many packets they had counted.
    """

    chain: str
    backend: Backend
    floor: float
    curve: Mapping[int, Cost]
    own: Cost | None
    counted: int


def measure(
    plan: Plan,
    backend: Backend,
    cutover: Cutover,
    say: Callable[[str], object] = lambda _line: None,
) -> Costs:
    """Measure the plan's busier chain of INPUT and FORWARD; takes some seconds.

    LabError if the lab cannot be built, the rules do not load there, or no cutover is possible.
    """
    key = _busier(plan)
    whole = replace(plan, chains={key: plan.chains[key]})
    with tempfile.TemporaryDirectory(prefix="bpfilter-cost-") as directory:
        lab = _Lab(key, backend, cutover, Path(directory) / "xtables.lock")
        curve: dict[int, Cost] = {}
        for count, ruleset in _cuts(plan.ruleset, key):
            say(f"measuring packets through {count} rules")
            part = compile_ruleset(ruleset, [key])
            curve[count] = lab.cost(part, _even(part.chains[key].flat), _MISSES)
        say("measuring packets through all rules")
        chain = whole.chains[key]
        curve[len(_closure(plan.ruleset, key))] = lab.cost(whole, _even(chain.flat), _MISSES)
        weights = _weights(chain.flat, plan.ruleset)
        counted = sum(weights)
        own = lab.cost(whole, weights) if counted >= _ENOUGH else None
        say("measuring packets through no rules")
        floor = lab.floor(whole)
    return Costs(key[1], backend, floor, curve, own, counted)


def _busier(plan: Plan) -> tuple[str, str]:
    """The chain that counted more packets, else the one with more entries."""
    found = {key: chain for key, chain in plan.chains.items() if key in DISPATCHED}
    if not found:
        raise LabError("there is no INPUT and no FORWARD to measure", hint="measure another plan")

    def rank(key: tuple[str, str]) -> tuple[int, int]:
        flat = found[key].flat
        return sum(_weights(flat, plan.ruleset)), len(flat.entries)

    return max(found, key=rank)


def _closure(ruleset: Ruleset, key: tuple[str, str]) -> Sequence[RuleRef]:
    return [rule.ref for rule in closure_rules(ruleset, *key)]


def _cuts(ruleset: Ruleset, key: tuple[str, str]) -> Iterator[tuple[int, Ruleset]]:
    """The same ruleset with the ends of its long chains cut off, by the number of rules left."""
    last = _LEAST_RULES
    whole = len(_closure(ruleset, key))
    for share in _SHARES:
        table = ruleset.tables["filter"]
        chains = {
            name: replace(
                chain, rules=chain.rules[: max(_WHOLE_CHAIN, int(share * len(chain.rules)))]
            )
            for name, chain in table.chains.items()
        }
        tables = {**ruleset.tables, "filter": replace(table, chains=chains)}
        text = write(replace(ruleset, tables=tables))
        cut = read_text(text, source=ruleset.source, family=ruleset.family, backend=ruleset.backend)
        count = len(_closure(cut, key))
        if 2 * last <= count and 2 * count <= whole:
            yield count, cut
            last = count


def _even(flat: FlatChain) -> Sequence[int]:
    """Every rule at which packets end weighs the same, whatever stands before it."""
    return [int(_ends(flat, entry)) for entry in flat.entries]


def _weights(flat: FlatChain, ruleset: Ruleset) -> Sequence[int]:
    """Packets that each rule has counted, shared among the entries that it became."""
    entries = [entry.rule if _ends(flat, entry) else None for entry in flat.entries]
    copies = {ref: entries.count(ref) for ref in dict.fromkeys(entries)}
    return [0 if ref is None else _counted(ruleset, ref) // copies[ref] for ref in entries]


def _ends(flat: FlatChain, entry: Entry) -> bool:
    if entry.kind is OpKind.ITEM:
        return flat.items[entry.argument].terminal
    return entry.kind in (OpKind.ACCEPT, OpKind.DROP)


def _counted(ruleset: Ruleset, ref: RuleRef) -> int:
    chain = ruleset.tables[ref.table].chains[ref.chain]
    counters = chain.counters if ref.number == 0 else chain.rules[ref.number - 1].counters
    return 0 if counters is None else counters.packets


class _Lab:
    """Measures one chain, in namespaces that are made anew for every ruleset."""

    def __init__(
        self, key: tuple[str, str], backend: Backend, cutover: Cutover, lock: Path
    ) -> None:
        self._key = key
        self._backend = backend
        self._cutover = cutover
        self._lock = lock

    def cost(self, plan: Plan, weights: Sequence[int], misses: float = 0.0) -> Cost:
        """Both ways, with packets drawn by the weights of the chain's entries."""
        chain = plan.chains[self._key]
        names = _names(chain)
        marking = self._cutover(plan, list(names.values()))
        if isinstance(marking, str):
            raise LabError(f"packets cannot be measured: {marking}", hint="see `bpfilter plan`")
        packets = _stimuli(chain, weights, names, misses)
        text = write(_without_security(plan.ruleset)) + _AFTER
        with self._host(plan, names, text) as host, self._traffic(host, packets, names) as driver:
            alone = _best(host, driver)
            host.restore(marking.restore.encode("utf-8", "surrogateescape"), "--noflush")
            with self._attached(host, marking, names):
                both = _best(host, driver)
            return Cost(alone, both, self._classify(host, marking, packets, names))

    def floor(self, plan: Plan) -> float:
        """Packets through empty chains that accept."""
        chain = plan.chains[self._key]
        names = _names(chain)
        packets = _stimuli(chain, _even(chain.flat), names, _MISSES)
        with (
            self._host(plan, names, _BARE + _AFTER) as host,
            self._traffic(host, packets, names) as driver,
        ):
            return _best(host, driver)

    def _host(self, plan: Plan, names: Mapping[int, str], text: str) -> LabHost:
        raw = text.encode("utf-8", "surrogateescape")
        return LabHost.build(list(names.values()), self._lock, plan.ruleset, self._backend, raw)

    @contextmanager
    def _traffic(
        self, host: LabHost, packets: Sequence[Stimulus], names: Mapping[int, str]
    ) -> Iterator[Driver]:
        """A driver that sends these packets, in the connection states that they should have."""
        topology, forwarded = host.topology, self._key[1] == "FORWARD"
        with topology.firewall.inside():
            for name in names.values():
                take_by_napi(name)
        if forwarded:
            topology.to_forward(host.family, _out(names))
        how = [prepare(stimulus, host.family) for stimulus in packets]
        connections = [each for preparation in how for each in preparation.connections]
        if connections:
            conntrack.create(topology.firewall, [master_of(host.family), *connections])
        devices = [topology.devices[names[s.packet[Field.IN_INTERFACE]]] for s in packets]
        frames = [
            encode(stimulus.packet, host.family, stimulus.number, device.mac, forwarded=forwarded,
                   corrupt=preparation.corrupt)
            for stimulus, preparation, device in zip(packets, how, devices, strict=True)
        ]  # fmt: skip
        with Driver(frames, [device.peer for device in devices]) as driver:
            yield driver

    def _classify(
        self,
        host: LabHost,
        marking: Marking,
        packets: Sequence[Stimulus],
        names: Mapping[int, str],
    ) -> float:
        frames = [
            encode(s.packet, host.family, s.number, _NO_MAC, forwarded=self._key[1] == "FORWARD")
            for s in packets
        ]
        arriving = Counter(names[s.packet[Field.IN_INTERFACE]] for s in packets)
        options = Options(
            mode=Mode.FORCED,
            chain=self._key[1],
            interfaces={_LOOPBACK: arriving.most_common(1)[0][0]},
            marking=marking.mark,
            leased=True,
            generation=True,
        )
        with (
            host.topology.firewall.inside(),
            Classifier.load(marking.image, options) as classifier,
            Driver(frames) as driver,
        ):
            _vouch(host, classifier)
            classifier.set_out_interface(_out(names))
            return driver.measure(classifier.fd, repeat=_REPEAT, rounds=_RUNS).best

    @contextmanager
    def _attached(
        self, host: LabHost, marking: Marking, names: Mapping[int, str]
    ) -> Iterator[None]:
        devices = host.topology.devices.values()
        options = Options(
            mode=Mode.FORCED,
            chain=self._key[1],
            interfaces={device.index: device.name for device in devices},
            marking=marking.mark,
            leased=True,
            generation=True,
        )
        with host.topology.firewall.inside():
            classifier = Classifier.load(marking.image, options)
        try:
            with host.topology.firewall.inside():
                for device in devices:
                    classifier.attach(device.index)
            _vouch(host, classifier)
            classifier.set_out_interface(_out(names))
            yield
            _must_have_spoken(classifier)
        finally:
            with host.topology.firewall.inside():
                classifier.close()


def _vouch(host: LabHost, classifier: Classifier) -> None:
    """As a daemon does: what is checked of that for each packet is a part of its cost."""
    with host.topology.firewall.inside():
        classifier.set_generation(classifier.observe_generation())
    classifier.set_lease(time.monotonic_ns() + _LEASE)


def _must_have_spoken(classifier: Classifier) -> None:
    """A figure of packets that were left to iptables for want of a lease would be another one's."""
    punted = classifier.punts()
    silent = sum(punted.get(reason, 0) for reason in (Reason.LEASE, Reason.GENERATION))
    every = sum(punted.values()) + sum(classifier.outcomes().values())
    if silent > _MOST_SILENT * every:
        raise LabError(
            f"the program had no right to decide {silent} of {every} packets that were measured",
            hint="measure again: something edited the lab's rules, or it took too long",
        )


def _best(host: LabHost, driver: Driver) -> float:
    """ns per packet in the best of some rounds: what the code costs, whoever else is busy."""
    with host.topology.peer.inside():
        count = driver.fitting(_SECONDS)
        return float(min(driver.send(count) for _ in range(_ROUNDS)))


def _names(chain: ChainPlan) -> Mapping[int, str]:
    """A device for each class of interface names, as far as there can be one."""
    names = device_names(chain.flat.space)
    if not names:
        raise LabError("no interface name of the rules can be given to a device", hint="see verify")
    return dict(list(names.items())[:MOST_DEVICES])


def _out(names: Mapping[int, str]) -> str:
    """The device that forwarded packets leave by."""
    return next(iter(names.values()))


def _without_security(ruleset: Ruleset) -> Ruleset:
    tables = {name: table for name, table in ruleset.tables.items() if name != "security"}
    return replace(ruleset, tables=tables)


def _stimuli(
    chain: ChainPlan, weights: Sequence[int], names: Mapping[int, str], misses: float
) -> Sequence[Stimulus]:
    """Packets drawn from the entries by their weights, a share from none; all of one length."""
    flat, family = chain.flat, chain.flat.family
    sampler = Sampler.of(flat, np.random.default_rng(1))
    choice = random.Random(1)
    forwarded = chain.chain == "FORWARD"
    out = next(iter(names))
    drawn: list[Stimulus] = []
    for entry in choice.choices(flat.entries, weights, k=_PACKETS * _TRIES):
        if len(drawn) == _PACKETS:
            break
        box = {} if choice.random() < misses else entry.box
        packet = sampler.packet(box)
        if packet is None:
            continue
        fixed = {Field.LENGTH: _LENGTH[family], Field.PACKET_TYPE: 0, Field.FRAGMENT: 0}
        if packet[Field.IN_INTERFACE] not in names:
            fixed[Field.IN_INTERFACE] = out
        if forwarded:
            fixed[Field.OUT_INTERFACE] = out
        packet = {**packet, **fixed}
        routable = unroutable(packet, family, forwarded=forwarded) is None
        if routable and can_encode(packet, family, forwarded=forwarded):
            state = likely_state(packet, State(entry.states), family)
            low, _ = TRACKED_NUMBERS
            drawn.append(Stimulus(low + len(drawn), packet, state))
    if not drawn:
        raise LabError("no packet could be made that these rules are about", hint="see verify")
    return drawn
