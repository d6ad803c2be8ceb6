"""A lab host that carries a real ruleset, restored by the real tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bpfilter.errors import LabError, RulesetRefused
from bpfilter.lab.conversation import Stimulus
from bpfilter.lab.topology import Topology
from bpfilter.ruleset.fields import Family, Field
from bpfilter.ruleset.model import Backend, RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.refusal import set_definitions
from bpfilter.ruleset.tools import tool


class UnfaithfulSave(LabError):
    """iptables-save prints rules that iptables-restore would refuse."""


@dataclass(frozen=True, slots=True)
class LabHost:
    """A topology whose firewall holds the ruleset; a context manager."""

    topology: Topology
    family: Family
    backend: Backend

    @classmethod
    def build(
        cls,
        devices: Sequence[str],
        lock: Path,
        ruleset: Ruleset,
        backend: Backend,
        text: bytes,
    ) -> LabHost:
        """Make the namespaces and restore the whole ruleset, its sets created empty.

        LabError if the real tool does not load it.
        """
        topology = Topology(devices, lock)
        host = cls(topology, ruleset.family, backend)
        try:
            sets = set_definitions(ruleset)
            if sets:
                topology.firewall.run("ipset", ["restore"], sets.encode("utf-8", "surrogateescape"))
            host.restore(text)
        except BaseException:
            topology.close()
            raise
        return host

    def restore(self, text: bytes, *options: str) -> None:
        """Feed iptables-restore; LabError with its words if it refuses."""
        self.topology.firewall.run(tool(self.family, self.backend, "restore"), options, text)

    def saved(self) -> Ruleset:
        """The filter table with its counters, as the kernel has it now."""
        save = tool(self.family, self.backend, "save")
        text = self.topology.firewall.run(save, ["-c", "-t", "filter"])
        try:
            saved = read_text(text, source=save, family=self.family, lenient=True)
        except RulesetRefused as error:
            raise UnfaithfulSave(
                f"{save} prints what cannot be restored: {error.message}",
                hint="iptables-nft mixes up rules with several port matches: write them as one",
            ) from None
        rules = list(saved.rules())
        if rules and all(rule.counters is None for rule in rules):
            raise LabError(f"{save} printed no counters", hint="it must know option -c")
        return saved

    def counters(self) -> Mapping[RuleRef, int]:
        """Packets counted by every rule of the filter table, as the kernel has them now."""
        return packets_by_rule(self.saved())

    def join(self, stimuli: Iterable[Stimulus], names: Mapping[int, str]) -> None:
        """Listen to the IPv4 multicast groups that the packets are for."""
        if self.family is not Family.IPV4:
            return
        groups = {
            (packet[Field.DESTINATION], names[packet[Field.IN_INTERFACE]])
            for packet in (stimulus.packet for stimulus in stimuli)
            if packet[Field.DESTINATION] >> 28 == 14
        }
        if groups:
            self.topology.join(sorted(groups))

    def __enter__(self) -> LabHost:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.topology.close()


def packets_by_rule(saved: Ruleset) -> Mapping[RuleRef, int]:
    """Packets counted by every rule."""
    return {r.ref: r.counters.packets for r in saved.rules() if r.counters is not None}
