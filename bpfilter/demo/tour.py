"""The demonstration itself: every stage on real packets, told as it happens.

All of it runs in two network namespaces that are removed at the end, also after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bpfilter.analysis.equivalence import prove_all
from bpfilter.analysis.fates import FateKind, fates
from bpfilter.demo.flood import Flooder, enable_gro, flooder, udp_frame
from bpfilter.demo.network import DEVICE, FLOOD4, Network, inside
from bpfilter.demo.traffic import PROBES, Services, run_probes
from bpfilter.errors import LabError
from bpfilter.lab.report import Report
from bpfilter.lab.verify import Cutover, verify
from bpfilter.lab.verify import Request as LabRequest
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.lease import RENEW_SECONDS
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.shadow import ShadowReport, judged
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.rollout.tables import Tables
from bpfilter.rollout.teardown import remains, teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import rule_words

CONFIRM_SECONDS = 3.0
LAB_PACKETS = 200
SHOWN_RULES = 5
FLOOD_PACKETS = 10_000
FLOOD_PORTS = (53, 443, 137, 9)
_EMPTY = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
_TRACKED = "-A INPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
_SINK = f"*security\n:INPUT ACCEPT [0:0]\n-A INPUT -s {FLOOD4} -j DROP\nCOMMIT\n"
"""Drops the measured packets behind filter, so that no socket's cost is measured."""


@dataclass
class Findings:
    """What the summary table shows."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, value: str) -> None:
        self.rows.append((what, value))


def ruleset_text(family: Family) -> str:
    """The demonstration's ruleset of one family, as iptables-save would print it."""
    return files("bpfilter.demo").joinpath(f"server.{family}.rules").read_text()


class Tour:
    """The steps, in order; each prints what it saw and adds to the findings."""

    def __init__(self, console: Console, backend: Backend, state: Path, cutover: Cutover) -> None:
        self.console = console
        self.backend = backend
        self.findings = Findings()
        self._state = state
        self._cutover_for_lab = cutover

    def run(self) -> Findings:
        """All steps. LabError or RolloutError if one does not show what it must."""
        with ExitStack() as stack:
            network = stack.enter_context(Network())
            stack.enter_context(Services(network))
            enable_gro(network)
            flood = stack.enter_context(flooder(network))
            frames = [udp_frame(network, port) for port in FLOOD_PORTS]
            stack.enter_context(inside(network.server))
            tables = {family: Tables(family, self.backend) for family in Family}
            bare = self._baseline(tables, flood, frames)
            self._load(tables)
            expected = self._traffic(network, "through iptables alone")
            plain = self._flood(flood, frames, "through iptables")
            journal = stack.enter_context(Journal(self._state))
            request = Request((DEVICE,), self.backend)
            with Rollout(request, journal, self._event) as rollout:
                self._verify()
                self._shadow(rollout, network, expected)
                self._cutover(rollout, network, expected)
                self._unconfirmed(rollout, network, expected)
                fast = self._confirmed(rollout, network, expected, flood, frames)
            self._costs(bare, plain, fast)
            self._teardown(tables, network, expected)
        return self.findings

    def _event(self, text: str) -> None:
        self.console.print(f"  [dim]{text}[/]")

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self.console.rule(f"[bold]{title}", align="left")
        with self.console.status(title):
            yield

    def _baseline(
        self, tables: Mapping[Family, Tables], flood: Flooder, frames: Sequence[bytes]
    ) -> float:
        with self._step("Namespaces, and what a packet costs without rules"):
            for each in tables.values():
                each.restore(_EMPTY + _TRACKED)
            tables[Family.IPV4].restore(_SINK)
            return self._flood(flood, frames, "with connection tracking and an empty ruleset")

    def _load(self, tables: Mapping[Family, Tables]) -> None:
        with self._step(f"The ruleset, by iptables-{self.backend}"):
            for family, each in tables.items():
                each.restore("*filter\n-F\nCOMMIT\n")
                each.restore(ruleset_text(family))
                rules = sum(1 for _ in read_text(each.save(), family=family).rules())
                self.console.print(f"  {family}: {rules} rules restored")
                self.findings.add(f"rules, {family}", str(rules))

    def _verify(self) -> None:
        with self._step("Verify in the lab: the same packets through iptables and through BPF"):
            for family in Family:
                ruleset = read_text(ruleset_text(family), family=family, source=f"demo {family}")
                request = LabRequest(
                    ruleset, self.backend, packets=LAB_PACKETS, cutover=self._cutover_for_lab
                )
                self._verified(family, verify(request))

    def _verified(self, family: Family, report: Report) -> None:
        packets = sum(chain.shadow.packets for chain in report.chains)
        again = sum(chain.cutover.packets for chain in report.chains if chain.cutover is not None)
        if not report.holds:
            raise LabError(f"the lab found a difference: {report.divergences[:1]}")
        told = f"{packets} packets in shadow, {again} in cutover: no divergence"
        self.console.print(f"  {family}: {told}")
        self.findings.add(f"verified, {family}", told)

    def _flood(
        self, flood: Flooder, frames: Sequence[bytes], how: str, rollout: Rollout | None = None
    ) -> float:
        times = []
        for frame in frames:
            times.append(flood.nanoseconds(frame, FLOOD_PACKETS))
            if rollout is not None and rollout.tick() is not None:
                raise LabError("the lease was revoked while packets were measured")
        took = sum(times) / len(times)
        self.console.print(f"  {took:,.0f} ns per packet {how}")
        return took

    def _traffic(self, network: Network, how: str) -> Mapping[tuple[str, str], bool]:
        results = run_probes(network)
        wanted = {probe.name: probe.wanted for probe in PROBES}
        wrong = [name for name, answered in results.items() if wanted[name[0]] is not answered]
        if wrong:
            raise LabError(f"{how}, {wrong[0]} was not treated as the rules say")
        answered = sum(results.values())
        self.console.print(
            f"  {len(results)} probes {how}: {answered} answered,"
            f" {len(results) - answered} refused, all as the rules say"
        )
        return results

    def _same(self, network: Network, how: str, expected: Mapping[tuple[str, str], bool]) -> None:
        if self._traffic(network, how) != expected:
            raise LabError(f"{how}, probes got other answers than from iptables")

    def _shadow(
        self, rollout: Rollout, network: Network, expected: Mapping[tuple[str, str], bool]
    ) -> None:
        with self._step("Plan, prove, and attach in shadow"):
            prepared = rollout.shadow()
            self._plans(prepared)
            for sentence in prepared.notices():
                self._event(f"notice: {sentence}")
            self._same(network, "in shadow", expected)
            for plan, report in zip(prepared.plans.values(), rollout.compare(), strict=True):
                self._compared(plan.ruleset, report)

    def _plans(self, prepared: Prepared) -> None:
        table = Table("family", *FateKind, "proof", box=None)
        for family, plan in prepared.plans.items():
            output = prepared.outputs[family].chains if family in prepared.outputs else {}
            whole = replace(plan, chains={**plan.chains, **output})
            proofs = prove_all(plan.ruleset, whole.chains.values())
            kinds = [fate.kind for fate in fates(whole, proofs).values()]
            counts = [str(kinds.count(kind)) for kind in FateKind]
            seconds = sum(proof.seconds for proof in proofs.values())
            table.add_row(family, *counts, f"holds, {seconds:.1f} s")
        self.console.print(table)
        self.findings.add("equivalence proof", "holds for both families")

    def _compared(self, ruleset: Ruleset, report: ShadowReport) -> None:
        """Both sides' counters of the busiest rules, and whether all of them fit together."""
        table = Table("rule", "iptables", "program", "what it says", box=None)
        for count in sorted(report.rules, key=lambda each: -each.iptables)[:SHOWN_RULES]:
            bounds, ref = count.bounds, count.rule
            told = str(bounds.certain)
            if bounds.certain != bounds.possible:
                told = f"{bounds.certain} to {bounds.possible}, by state"
            words = rule_words(ruleset.rule(ref)) if ref.number else "the policy"
            name = f"{ruleset.family} {ref.chain}/{ref.number}"
            table.add_row(name, str(count.iptables), told, words)
        self.console.print(table)
        self.console.print(f"  {report}")
        if report.mismatches:
            raise LabError(f"shadow counters disagree at {report.mismatches[0].rule}")
        told = f"0 mismatches in {report.compared} rules with traffic"
        self.findings.add(f"shadow, {ruleset.family}", told)

    def _cutover(
        self, rollout: Rollout, network: Network, expected: Mapping[tuple[str, str], bool]
    ) -> None:
        with self._step(f"Cutover, to be confirmed within {CONFIRM_SECONDS:.0f} s"):
            rollout.enforce(CONFIRM_SECONDS)
            before = self._counted(rollout)
            self._same(network, "decided by BPF", expected)
            self._sides(rollout, before)

    def _counted(self, rollout: Rollout) -> int:
        """Packets that the original rules of filter INPUT judged, both families."""
        if rollout.prepared is None:
            raise LabError("nothing is planned")
        rulesets = rollout.prepared.count().values()
        return sum(judged(ruleset, "filter", "INPUT") for ruleset in rulesets)

    def _sides(self, rollout: Rollout, before: int) -> None:
        counters = rollout.decided()
        original = self._counted(rollout) - before
        self.console.print(
            f"  decided by BPF: {counters} packets; by the original rules: {original}"
        )
        self.findings.add("cutover, decided by BPF", f"{counters} packets, {original} by iptables")

    def _unconfirmed(
        self, rollout: Rollout, network: Network, expected: Mapping[tuple[str, str], bool]
    ) -> None:
        with self._step("Nobody confirms: the kernel reverts by itself"):
            time.sleep(CONFIRM_SECONDS)
            before, decided = self._counted(rollout), rollout.decided()
            self._same(network, "after the deadline", expected)
            original = self._counted(rollout) - before
            if rollout.decided() != decided or not original:
                raise LabError("packets were decided by BPF after the deadline")
            self.console.print(f"  {original} packets, all judged by the original rules")
            self._event(f"daemon: {rollout.tick()}")
            rollout.rollback()
            self.findings.add("unconfirmed cutover", "reverted by the kernel, nothing lost")

    def _confirmed(
        self,
        rollout: Rollout,
        network: Network,
        expected: Mapping[tuple[str, str], bool],
        flood: Flooder,
        frames: Sequence[bytes],
    ) -> float:
        with self._step("Cutover again, confirmed"):
            rollout.shadow()
            rollout.enforce(CONFIRM_SECONDS)
            rollout.confirm()
            time.sleep(RENEW_SECONDS)
            rollout.tick()
            self._same(network, "decided by BPF", expected)
            rollout.tick()
            took = self._flood(flood, frames, "through BPF", rollout)
            self._same(network, "after the flood", expected)
            return took

    def _costs(self, bare: float, plain: float, fast: float) -> None:
        self.findings.add("per packet, whole path", f"{plain:,.0f} ns iptables, {fast:,.0f} ns BPF")
        self.findings.add(
            "per packet, filtering alone",
            f"{plain - bare:,.0f} ns iptables, {fast - bare:,.0f} ns BPF",
        )

    def _teardown(
        self,
        tables: Mapping[Family, Tables],
        network: Network,
        expected: Mapping[tuple[str, str], bool],
    ) -> None:
        with self._step("Rolled back and torn down"):
            for line in teardown():
                self._event(f"removed {line}")
            left = remains()
            if left:
                raise LabError(f"left behind: {', '.join(left)}")
            self._same(network, "through iptables alone again", expected)
            self.findings.add("left behind", "nothing")
