"""Sending packets for real and reading what the kernel did with each.

The frames enter by the peer's end of a veth; the classifier sits at TC ingress, the observer just
before and just after the filter chains. A packet that was seen before and not after was dropped by
filter; one that was never seen before it was taken by something else.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import Image
from bpfilter.errors import LabError
from bpfilter.kernel.addresses import LocalRoute
from bpfilter.kernel.config import Mode, Trace
from bpfilter.kernel.observer import Hook, Observer
from bpfilter.kernel.program import Classifier, Options, Result
from bpfilter.lab import conntrack
from bpfilter.lab.conversation import UNTRACKED_NUMBERS, Stimulus, master_of, prepare
from bpfilter.lab.netns import Namespace
from bpfilter.lab.packets import encode
from bpfilter.lab.topology import Topology
from bpfilter.ruleset.fields import Family, Field, State
from bpfilter.ruleset.tools import find

_ROUNDS = 200
_ROUND_SECONDS = 0.005
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened to one packet.

    `program`: the classifier's record, None if the packet did not come to it. `before`, `after`:
    how often it was seen at either side of the chain under test. `states`: bits of `State`. `mark`:
    the packet's mark behind filter. `elsewhere`: it came to another built-in chain instead.
    """

    stimulus: Stimulus
    program: Result | None
    before: int
    after: int
    states: int
    mark: int
    elsewhere: bool = False

    @property
    def state(self) -> State | None:
        """The one connection state that the packet had, if it came to the filter chain once."""
        single = self.before == 1 and self.states and not self.states & (self.states - 1)
        return State(self.states) if single else None

    @property
    def verdict(self) -> str:
        """ACCEPT if it left the filter chain, else DROP."""
        return "ACCEPT" if self.after else "DROP"


class Oracle:
    """Observes one family's INPUT and FORWARD in a topology; a context manager."""

    def __init__(self, topology: Topology, family: Family) -> None:
        self._topology = topology
        self._family = family
        self._stack = ExitStack()
        try:
            self.untracked = _exempt(topology.firewall, family)
            with topology.firewall.inside():
                hooks = (Hook.INPUT, Hook.FORWARD)
                self._observer = self._stack.enter_context(Observer.attach([family], hooks))
            self._wires = {name: self._wire(name) for name in topology.devices}
        except BaseException:
            self._stack.close()
            raise

    def _wire(self, name: str) -> socket.socket:
        with self._topology.peer.inside():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._stack.enter_context(wire)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            wire.bind((f"p{list(self._topology.devices).index(name) + 1}", 0))
        return wire

    @contextmanager
    def classifying(
        self,
        image: Image,
        chain: str,
        addresses: Sequence[LocalRoute],
        marking: MarkField | None = None,
    ) -> Iterator[Classifier]:
        """The classifier at every device's ingress, told which chain it is for."""
        devices = self._topology.devices.values()
        options = Options(
            mode=Mode.FORCED,
            chain=chain,
            interfaces={device.index: device.name for device in devices},
            addresses=addresses,
            marking=marking,
            trace=Trace.BY_ID,
        )
        with self._topology.firewall.inside():
            classifier = Classifier.load(image, options)
            try:
                for device in devices:
                    classifier.attach(device.index)
            except BaseException:
                classifier.close()
                raise
        try:
            yield classifier
        finally:
            with self._topology.firewall.inside():
                classifier.close()

    def observe(
        self,
        classifier: Classifier,
        chain: str,
        stimuli: Sequence[Stimulus],
        in_names: Mapping[int, str],
        out_names: Mapping[int, str],
    ) -> list[Observation]:
        """Send the packets in order and say what happened to each.

        `in_names`, `out_names`: the device for every class of interface names. Packets are grouped
        by their out-interface, for the route is changed from group to group.
        """
        self._observer.clear()
        classifier.clear_records()
        self._connect(stimuli)
        forwarded = chain == "FORWARD"
        groups: dict[int, list[Stimulus]] = {}
        for stimulus in stimuli:
            key = stimulus.packet[Field.OUT_INTERFACE] if forwarded else 0
            groups.setdefault(key, []).append(stimulus)
        if not forwarded:
            self._topology.to_input(self._family)
        for key, group in groups.items():
            if forwarded:
                self._topology.to_forward(self._family, out_names[key])
                classifier.set_out_interface(out_names[key])
            self._send(group, in_names, forwarded)
            self._settle(classifier, group)
        return self._collect(classifier, chain, stimuli)

    def _connect(self, stimuli: Sequence[Stimulus]) -> None:
        entries = [
            entry for stimulus in stimuli for entry in prepare(stimulus, self._family).connections
        ]
        if entries:
            conntrack.create(self._topology.firewall, [master_of(self._family), *entries])

    def _send(
        self, stimuli: Sequence[Stimulus], in_names: Mapping[int, str], forwarded: bool
    ) -> None:
        for count, stimulus in enumerate(stimuli):
            how = prepare(stimulus, self._family)
            name = in_names[stimulus.packet[Field.IN_INTERFACE]]
            frame = encode(
                stimulus.packet,
                self._family,
                stimulus.number,
                self._topology.devices[name].mac,
                forwarded=forwarded,
                corrupt=how.corrupt,
                quoted=how.quoted,
                shape=stimulus.shape,
            )
            try:
                self._wires[name].send(frame)
            except OSError as error:
                raise LabError(
                    f"a frame of {len(frame)} bytes cannot be sent: {error.strerror}",
                    hint="free memory, or verify with fewer packets",
                ) from None
            if count % _BATCH == _BATCH - 1:
                time.sleep(0.001)

    def _settle(self, classifier: Classifier, stimuli: Sequence[Stimulus]) -> None:
        """Wait until every packet has come to the classifier, then for the rest of its way."""
        waiting = [stimulus.number for stimulus in stimuli]
        for _ in range(_ROUNDS):
            waiting = [number for number in waiting if classifier.record(number) is None]
            if not waiting:
                break
            time.sleep(_ROUND_SECONDS)
        time.sleep(_ROUND_SECONDS)

    def _collect(
        self, classifier: Classifier, chain: str, stimuli: Sequence[Stimulus]
    ) -> list[Observation]:
        records = self._observer.records()
        hook = Hook[chain]
        found = []
        for stimulus in stimuli:
            seen = records[stimulus.number]
            came = int(seen["before"])
            found.append(
                Observation(
                    stimulus,
                    classifier.record(stimulus.number),
                    came if int(seen["hook"]) == hook else 0,
                    int(seen["after"]),
                    int(seen["states"]),
                    int(seen["mark_after"]),
                    came > 0 and int(seen["hook"]) != hook,
                )
            )
        return found

    def close(self) -> None:
        """Detach the observer."""
        with self._topology.firewall.inside():
            self._stack.close()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exempt(namespace: Namespace, family: Family) -> bool:
    """Keep the numbers of `UNTRACKED_NUMBERS` from conntrack; false without nft(8)."""
    if find("nft") is None:
        return False
    low, high = UNTRACKED_NUMBERS
    table, field = ("ip", "ip id") if family is Family.IPV4 else ("ip6", "ip6 flowlabel")
    text = f"""table {table} bpflab {{
 chain first {{
  type filter hook prerouting priority -400
  {field} {low}-{high} notrack
 }}
}}
"""
    namespace.run("nft", ["-f", "-"], text.encode())
    return True
