"""The lab as a whole: a ruleset in namespaces of this kernel, judged packet by packet.

Two runs over the same packets. In *shadow* the classifier only records; its answers are compared
with what iptables did. In *cutover*, in fresh namespaces, the dispatch is installed and packets are
marked; what filter lets pass is compared with the first run.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.proven import with_proven_functions
from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.compile import DISPATCHED, assemble, compile_ruleset
from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import ChainPlan, Image, Plan
from bpfilter.compiler.scope import closure_rules
from bpfilter.errors import LabError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.lab import effects
from bpfilter.lab.addresses import asks_for_types, typed, wanted_addresses
from bpfilter.lab.compare import Agreement, Judgement, final_counts, judge, same_in_cutover
from bpfilter.lab.conversation import Stimulus
from bpfilter.lab.explain import explain
from bpfilter.lab.host import LabHost, packets_by_rule
from bpfilter.lab.missed import missed_rules
from bpfilter.lab.oracle import Observation, Oracle
from bpfilter.lab.report import ChainReport, Divergence, Report, Tally
from bpfilter.lab.stimuli import Stimuli, choose_stimuli
from bpfilter.lab.topology import device_names
from bpfilter.ruleset.model import Backend, Rule, RuleRef, Ruleset, StateEffect
from bpfilter.ruleset.writer import write

MOST_DEVICES = 40
_SHOWN = 5
_PROOF_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Marking:
    """What a cutover needs: `restore` is iptables-restore --noflush text."""

    mark: MarkField
    image: Image
    restore: str


Cutover = Callable[[Plan, Sequence[str]], Marking | str]
"""Given the plan and the interfaces: how to cut over, or why that is not possible."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to verify. `text`: what is restored (None: the model written back).

    `prove`: take residual functions and unreachable rules from the proof. `budget`: packets walked
    to find residual functions.
    """

    ruleset: Ruleset
    backend: Backend
    packets: int = 1000
    seed: int = 1
    text: bytes | None = None
    cutover: Cutover | None = None
    prove: bool = True
    chains: tuple[tuple[str, str], ...] = DISPATCHED
    budget: int = 20_000


def verify(request: Request, say: Callable[[str], None] = lambda _line: None) -> Report:
    """Verify a ruleset's INPUT and FORWARD in the lab.

    LabError if the lab cannot be built or the ruleset does not load. Nothing outside the lab's own
    namespaces is touched.
    """
    return _Verification(request, say).run()


@dataclass(slots=True)
class _Run:
    """What one chain showed in one run."""

    observations: list[Observation]
    moved: Mapping[RuleRef, int]
    acted: Mapping[effects.Words, int]


class _Verification:
    def __init__(self, request: Request, say: Callable[[str], None]) -> None:
        self.request = request
        self.say = say
        self.seconds: dict[str, float] = {}
        with self.timed("plan"):
            self.plan = compile_ruleset(request.ruleset, request.chains, budget=request.budget)
        self.proofs: dict[tuple[str, str], Proof] = {}
        if request.prove:
            with self.timed("proof"):
                self.prove()
        self.image = assemble([self.plan])
        self.names = {key: device_names(c.flat.space) for key, c in self.plan.chains.items()}
        names = dict.fromkeys(name for found in self.names.values() for name in found.values())
        self.devices = list(names)[:MOST_DEVICES]
        self.stimuli: dict[tuple[str, str], Stimuli] = {}
        self.divergences: dict[tuple[str, str], list[Divergence]] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.say(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def prove(self) -> None:
        """As a rollout does: residual functions that sampling missed come from the proof."""
        for key, chain in self.plan.chains.items():
            self.proofs[key] = prove(self.plan.ruleset, chain, seconds=_PROOF_SECONDS)
        self.plan = with_proven_functions(self.plan, self.proofs)

    def run(self) -> Report:
        with tempfile.TemporaryDirectory(prefix="bpfilter-lab-") as directory:
            lock = Path(directory) / "xtables.lock"
            shadow = self.shadow(lock)
            with self.timed("cutover"):
                note, cutover = self.cut_over(lock, shadow)
        chains = tuple(
            self.chain_report(chain, shadow[key], cutover.get(key), note)
            for key, chain in self.plan.chains.items()
        )
        ruleset = self.request.ruleset
        return Report(
            ruleset.source,
            ruleset.digest,
            str(ruleset.family),
            str(self.request.backend),
            self.request.seed,
            chains,
            tuple(self.notes()),
            self.seconds,
        )

    def notes(self) -> Iterator[str]:
        for key in self.request.chains:
            if key not in self.plan.chains:
                yield f"the ruleset has no {key[0]} {key[1]}"
        wanted = {name for found in self.names.values() for name in found.values()}
        if len(wanted) > len(self.devices):
            yield f"{len(wanted) - len(self.devices)} interface names got no device"

    def host(self, lock: Path) -> LabHost:
        request = self.request
        text = write(request.ruleset).encode("utf-8", "surrogateescape")
        return LabHost.build(
            self.devices, lock, request.ruleset, request.backend, request.text or text
        )

    def classes(self, chain: ChainPlan) -> Mapping[int, str]:
        found = self.names[chain.table, chain.chain]
        return {index: name for index, name in found.items() if name in self.devices}

    def shadow(self, lock: Path) -> dict[tuple[str, str], _Run]:
        with self.timed("lab"):
            host = self.host(lock)
        runs: dict[tuple[str, str], _Run] = {}
        with host, Oracle(host.topology, self.request.ruleset.family) as oracle:
            with self.timed("packets"):
                addresses = self.choose(host, oracle.untracked)
            for key, chain in self.plan.chains.items():
                with self.timed("shadow"):
                    runs[key] = self.one(host, oracle, chain, self.image, addresses, None)
                    self.divergences[key] = self.explained(
                        host, oracle, chain, addresses, runs[key]
                    )
        return runs

    def choose(self, host: LabHost, untracked: bool) -> tuple[LocalRoute, ...]:
        """Choose the packets of every chain; returns the local table made for them."""
        rng = np.random.default_rng(self.request.seed)
        for key, chain in self.plan.chains.items():
            classes = list(self.classes(chain))
            if not classes:
                raise LabError(
                    f"no interface name of {key[0]} {key[1]} can be given to a device",
                    hint="names are at most 15 bytes, without `/`, `:` and quotes",
                )
            self.stimuli[key] = choose_stimuli(
                chain,
                rng,
                self.request.packets,
                in_classes=classes,
                out_classes=classes,
                untracked=untracked,
            )
        addresses = self.local_table(host)
        for key, stimuli in self.stimuli.items():
            packets = typed(stimuli.chosen, addresses, self.request.ruleset.family)
            self.stimuli[key] = replace(stimuli, chosen=packets)
        return addresses

    def one(
        self,
        host: LabHost,
        oracle: Oracle,
        chain: ChainPlan,
        image: Image,
        addresses: Sequence[LocalRoute],
        mark: MarkField | None,
    ) -> _Run:
        """One chain's packets, in order."""
        classes = self.classes(chain)
        chosen = self.stimuli[chain.table, chain.chain].chosen
        host.join(chosen, classes)
        before = host.saved()
        with oracle.classifying(image, chain.chain, addresses, mark) as classifier:
            observations = oracle.observe(classifier, chain.chain, chosen, classes, classes)
        after = host.saved()
        earlier = packets_by_rule(before)
        counted = {ref: n - earlier.get(ref, 0) for ref, n in packets_by_rule(after).items()}
        acted = effects.moved(effects.packets_by_words(before), effects.packets_by_words(after))
        return _Run(observations, counted, acted)

    def judgements(self, chain: ChainPlan, run: _Run) -> list[Judgement]:
        packets = [observation.stimulus.packet for observation in run.observations]
        references = functions_of(chain.tables, packets)
        return [
            judge(observation, chain.flat, reference)
            for observation, reference in zip(run.observations, references, strict=True)
        ]

    def explained(
        self,
        host: LabHost,
        oracle: Oracle,
        chain: ChainPlan,
        addresses: Sequence[LocalRoute],
        run: _Run,
    ) -> list[Divergence]:
        """The first mismatches of the shadow run; each packet is sent once more, alone."""
        found: list[Divergence] = []
        for observation, judgement in zip(
            run.observations, self.judgements(chain, run), strict=True
        ):
            if judgement.agreement is Agreement.MISMATCH and len(found) < _SHOWN:
                path = self.kernel_path(host, oracle, chain, addresses, observation.stimulus)
                found.append(explain("shadow", judgement.cause, observation, chain, path))
        return found

    def kernel_path(
        self,
        host: LabHost,
        oracle: Oracle,
        chain: ChainPlan,
        addresses: Sequence[LocalRoute],
        stimulus: Stimulus,
    ) -> tuple[str, ...]:
        classes = self.classes(chain)
        before = host.counters()
        with oracle.classifying(self.image, chain.chain, addresses) as classifier:
            oracle.observe(classifier, chain.chain, [stimulus], classes, classes)
        return tuple(
            str(ref) for ref, count in host.counters().items() if count > before.get(ref, 0)
        )

    def cut_over(
        self, lock: Path, shadow: Mapping[tuple[str, str], _Run]
    ) -> tuple[str, dict[tuple[str, str], _Run]]:
        if self.request.cutover is None:
            return "not asked for", {}
        marking = self.request.cutover(self.plan, self.devices)
        if isinstance(marking, str):
            return marking, {}
        runs: dict[tuple[str, str], _Run] = {}
        with self.host(lock) as host:
            host.restore(marking.restore.encode("utf-8", "surrogateescape"), "--noflush")
            with Oracle(host.topology, self.request.ruleset.family) as oracle:
                addresses = self.local_table(host)
                for key, chain in self.plan.chains.items():
                    runs[key] = self.one(
                        host, oracle, chain, marking.image, addresses, marking.mark
                    )
                    self.divergences[key] += self.after_cutover(
                        chain, shadow[key], runs[key], marking.mark
                    )
        return "", runs

    def local_table(self, host: LabHost) -> tuple[LocalRoute, ...]:
        """Make the local table that the packets want, if any rule asks for address types."""
        chosen = [s for stimuli in self.stimuli.values() for s in stimuli.chosen]
        flats = [chain.flat for chain in self.plan.chains.values()]
        if not asks_for_types(flats):
            return ()
        host.topology.add_addresses(wanted_addresses(flats, chosen))
        with host.topology.firewall.inside():
            return read_local_table()

    def compared(self, chain: ChainPlan, first: _Run, second: _Run) -> list[Judgement]:
        rules = self.request.ruleset
        timely = depends_on_time(closure_rules(rules, chain.table, chain.chain))
        settled = not depends_on_time(rules.rules())
        return [
            same_in_cutover(one, other, chain.flat, timely, settled)
            for one, other in zip(first.observations, second.observations, strict=True)
        ]

    def after_cutover(
        self, chain: ChainPlan, first: _Run, second: _Run, mark: MarkField
    ) -> list[Divergence]:
        found: list[Divergence] = []
        judged = zip(second.observations, self.compared(chain, first, second), strict=True)
        for observation, judgement in judged:
            if judgement.agreement is Agreement.MISMATCH and len(found) < _SHOWN:
                found.append(explain("cutover", judgement.cause, observation, chain, ()))
        if not depends_on_time(self.request.ruleset.rules()):
            for words, count, then in effects.differences(first.acted, second.acted):
                cause = f"{' '.join(words)}: {count} packets before, {then} after cutover"
                found.append(Divergence("cutover", cause, {}, "", (), ()))
        return found

    def chain_report(
        self, chain: ChainPlan, shadow: _Run, cutover: _Run | None, note: str
    ) -> ChainReport:
        key = chain.table, chain.chain
        judgements = self.judgements(chain, shadow)
        bounds = final_counts(shadow.observations, chain.flat)
        wrong = list(self.wrong_counters(chain, shadow))
        states = Counter(o.state.name or "" for o in shadow.observations if o.state is not None)
        rules = [rule.ref for rule in closure_rules(self.request.ruleset, *key)]
        hit = {ref for ref in rules if shadow.moved.get(ref)}
        missed = missed_rules(
            chain, shadow.observations, set(rules) - hit, self.proofs.get(key), self.request.ruleset
        )
        return ChainReport(
            f"{chain.table} {chain.chain}",
            tally(judgements),
            dict(states),
            self.stimuli[key].unsendable,
            None if cutover is None else tally(self.compared(chain, shadow, cutover)),
            note,
            len(rules),
            len(hit),
            missed,
            len(bounds),
            (*self.divergences[key], *wrong),
        )

    def wrong_counters(self, chain: ChainPlan, run: _Run) -> Iterator[Divergence]:
        """Rules whose kernel counters moved by what the program's answers do not allow."""
        own = {rule.ref for rule in closure_rules(self.request.ruleset, "filter", "OUTPUT")}
        for ref, bounds in final_counts(run.observations, chain.flat).items():
            moved = run.moved.get(ref, 0)
            # The firewall's own replies may pass through the same user chain.
            over = moved > bounds.possible and ref not in own
            if moved < bounds.certain or over:
                cause = (
                    f"{ref}: iptables counted {moved} packets, the program"
                    f" {bounds.certain} for certain and {bounds.possible} at most"
                )
                yield Divergence("counters", cause, {}, "", (str(ref),), ())


def depends_on_time(rules: Iterable[Rule]) -> bool:
    """Whether some rule keeps state, so that its answer depends on what came before."""
    return any(
        rule.target.effect is not StateEffect.NONE
        or any(match.effect is not StateEffect.NONE for match in rule.matches)
        or any(match.name in _CLOCKED for match in rule.matches)
        for rule in rules
    )


_CLOCKED = frozenset({"time", "set", "socket", "owner", "connbytes", "connmark", "helper"})


def tally(judgements: Sequence[Judgement]) -> Tally:
    """Judgements added up."""
    kinds = Counter(judgement.agreement for judgement in judgements)

    def causes(kind: Agreement) -> Mapping[str, int]:
        return dict(Counter(j.cause for j in judgements if j.agreement is kind))

    return Tally(
        kinds[Agreement.MATCH],
        kinds[Agreement.MISMATCH],
        causes(Agreement.PUNTED),
        causes(Agreement.NOT_COMPARABLE),
    )
