"""From the live tables of a network namespace to an image that may be loaded. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from bpfilter.analysis.codes import prove_codes
from bpfilter.analysis.describe import describe_counterexample
from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.kept import Proven
from bpfilter.analysis.proven import with_proven_functions
from bpfilter.compiler.codes import CODES
from bpfilter.compiler.compile import assemble, compile_ruleset, with_functions_met
from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import ChainPlan, Image, Plan
from bpfilter.errors import ProofFailed, RolloutError
from bpfilter.kernel.routing import host_forwards
from bpfilter.rollout import ours
from bpfilter.rollout.apart import apart
from bpfilter.rollout.comparison import RuleKey
from bpfilter.rollout.dispatch import Dispatch, merge, render
from bpfilter.rollout.drift import Fingerprint, rules_of
from bpfilter.rollout.notices import OUTPUT as OUTPUT_NOTICE
from bpfilter.rollout.notices import notices
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.tables import Tables, all_tables
from bpfilter.ruleset.faithful import faithful
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.lexer import lines_of
from bpfilter.ruleset.live import is_populated, read_live, read_printed
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text

OUTPUT = ("filter", "OUTPUT")
LIVE_CHAINS = (("filter", "INPUT"), ("filter", "FORWARD"), OUTPUT)

Proofs = Mapping[tuple[str, str], Proof]
"""By table and chain."""

_LARGE = 2000
"""Entries of a chain from which on its proof gets a process, and memory, of its own."""

_FEW, _FEWER = 1000, 100
"""Packets that rank the residual functions, of the first plan and of those that follow an edit.

The proof lists them all; where it does not come so far, many more are looked at.
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both families' rulesets as they were read, translated and proven.

    `fingerprints`: of both backends, since packets pass through the rules of both.
    """

    backend: Backend
    tables: Mapping[Family, Tables]
    fingerprints: Mapping[Tables, Fingerprint]
    plans: Mapping[Family, Plan]
    image: Image
    kept: tuple[str, ...] = ()
    """Why chains that have rules are left to iptables."""
    outputs: Mapping[Family, Plan] = field(default_factory=dict)
    """filter OUTPUT, which no mark can reach: a program of its own judges it."""
    output: Image | None = None
    texts: Mapping[Tables, str] = field(default_factory=dict)
    """What was translated, and the rules beside it, as `drift.rules_of` gives them."""

    @property
    def rulesets(self) -> Mapping[Family, Ruleset]:
        return {family: plan.ruleset for family, plan in self.plans.items()}

    def chains(self) -> Sequence[tuple[Plan, ChainPlan]]:
        """The plans' chains in the order of the image's slots."""
        return [(plan, chain) for plan in self.plans.values() for chain in plan.chains.values()]

    def narrowed(self, scope: Scope, mark: MarkField) -> Prepared:
        """The same for the chains of a scope, with codes that fit a mark field.

        What finds no code is punted. RolloutError if nothing is left to decide.
        """
        if not scope.chains and mark.max_code >= CODES - 1:
            return self
        kept = {
            family: {key: c for key, c in plan.chains.items() if scope.takes(family, *key)}
            for family, plan in self.plans.items()
        }
        plans = {f: replace(self.plans[f], chains=chains) for f, chains in kept.items() if chains}
        if not plans:
            raise RolloutError(
                f"nothing is translated in {scope} but perhaps OUTPUT",
                hint="name a chain of INPUT or FORWARD; `bpfilter plan` lists the chains",
            )
        image = assemble(list(plans.values()), code_space=mark.max_code + 1)
        prove_codes(image)
        outputs = {f: plan for f, plan in self.outputs.items() if scope.takes(f, *OUTPUT)}
        return replace(self, plans=plans, image=image, outputs=outputs, output=_output(outputs))

    def deciding(self) -> frozenset[RuleKey]:
        """The rules and policies at which a packet's walk can end."""
        return frozenset(
            RuleKey(plan.family, entry.rule)
            for plan in (*self.plans.values(), *self.outputs.values())
            for chain in plan.chains.values()
            for entry in chain.flat.entries
            if entry.kind in (OpKind.ACCEPT, OpKind.DROP, OpKind.ITEM)
        )

    def notices(self) -> Iterator[str]:
        """What an operator will notice, as sentences."""
        yield from self.kept
        yield from notices(self.rulesets.values(), self.backend)
        if self.outputs:
            yield OUTPUT_NOTICE

    def count(self) -> Mapping[Family, Ruleset]:
        """The rulesets as they are now, with their counters and without ours."""
        return {
            family: _read(self.tables[family], self.tables[family].save(counters=True))
            for family in self.plans
        }

    def dispatch(
        self, family: Family, mark: MarkField, interfaces: Sequence[str], *, translated: bool
    ) -> Dispatch:
        """All of one family's dispatch chains; `translated` as in `dispatch.render`."""
        plan = self.plans[family]
        return merge(
            [
                render(
                    plan.ruleset,
                    chain,
                    self.image.codes,
                    mark,
                    interfaces,
                    translated=translated or None,
                )
                for chain in plan.chains.values()
            ]
        )


def find_backend(asked: Backend | None) -> Backend:
    """The backend that holds this namespace's rules.

    LiveReadError if both hold rules of one family or the asked one holds none, RolloutError if
    the families differ or there are no rules.
    """
    return _backend_of([read_live(family, asked) for family in Family])


def _backend_of(live: Sequence[Ruleset]) -> Backend:
    found = {ruleset.backend for ruleset in live if is_populated(ruleset)} - {None}
    if len(found) > 1:
        raise RolloutError(
            "IPv4 rules are in one iptables backend and IPv6 rules in the other",
            hint="move them into one: `ip6tables-legacy-save | ip6tables-nft-restore`",
        )
    backend = found.pop() if found else None
    if backend is None:
        raise RolloutError(
            "there are no iptables rules here", hint="load your rules, then start again"
        )
    return backend


def prepare(
    asked: Backend | None = None,
    *,
    chains: Sequence[tuple[str, str]] = LIVE_CHAINS,
    force: bool = False,
    known: Known | None = None,
) -> Prepared:
    """Read, translate and prove the live ruleset of the current network namespace.

    Families without a filter table are left out. Raises LiveReadError if the text that iptables
    prints is not what the kernel holds, RolloutError if there is nothing to translate, a proof is
    incomplete (unless `force`), or the operator has a chain whose name we would use; ProofFailed
    if a proof fails. `known` remembers the families' plans: those whose rules are the same are
    taken from it.
    """
    live = [read_printed(family, asked) for family in Family]
    backend = _backend_of(live)
    saves = {tables: tables.save() for tables in all_tables()}
    # What is translated was read before the check begins, so that it sees what came in between. A
    # thread works in the network namespace of the one that started it.
    with ThreadPoolExecutor(1) as pool:
        doubts = [pool.submit(faithful, ruleset) for ruleset in live]
        prepared = _prepare(backend, saves, chains, force, known or Known())
        for doubt in doubts:
            doubt.result()
    return prepared


@dataclass(slots=True)
class Known:
    """Each family's plan, proof and digest of the rules, the last that was made."""

    plans: dict[Family, tuple[str, Plan, Proofs]] = field(default_factory=dict)


def _prepare(
    backend: Backend,
    texts: Mapping[Tables, str],
    chains: Sequence[tuple[str, str]],
    force: bool,
    known: Known,
) -> Prepared:
    tables = {family: Tables(family, backend) for family in Family}
    saves = {family: texts[tables[family]] for family in tables if tables[family] in texts}
    strangers = {name: None for save in saves.values() for name in ours.strangers(save)}
    if strangers:
        raise ours.stranger_error(list(strangers))
    kept: list[str] = []
    plans: dict[Family, Plan] = {}
    outputs: dict[Family, Plan] = {}
    for family, save in saves.items():
        if "*filter" not in lines_of(save):
            continue
        plan = _plan(tables[family], save, chains, force, kept, known)
        plans[family], output = _split(plan)
        if output is not None:
            outputs[family] = output
    if not plans:
        raise RolloutError(
            f"iptables-{backend} has no filter table here", hint="load your rules first"
        )
    image = assemble(list(plans.values()))
    prove_codes(image)
    fingerprints = {each: Fingerprint.of(save) for each, save in texts.items()}
    return Prepared(
        backend,
        tables,
        fingerprints,
        plans,
        image,
        tuple(kept),
        outputs,
        _output(outputs),
        {each: rules_of(save) for each, save in texts.items()},
    )


def _plan(
    tables: Tables,
    save: str,
    wanted: Sequence[tuple[str, str]],
    force: bool,
    kept: list[str],
    known: Known,
) -> Plan:
    reached = _reached(tables.family, save, wanted, kept)
    digest = f"{Fingerprint.of(save).ruleset} {tables.backend} {reached} {force}"
    last = known.plans.get(tables.family)
    if last is not None and last[0] == digest:
        return last[1]
    ruleset = _read(tables, save)
    plan = compile_ruleset(ruleset, reached, budget=_FEW if last is None else _FEWER)
    before = {} if last is None else _parts(*last[1:])
    proven = {
        key: _proven(ruleset, chain, before.get(key), force) for key, chain in plan.chains.items()
    }
    chains = {
        key: chain if proven[key].listed else with_functions_met(chain)
        for key, chain in plan.chains.items()
    }
    plan = with_proven_functions(replace(plan, chains=chains), proven)
    known.plans[tables.family] = (digest, plan, proven)
    return plan


def _split(plan: Plan) -> tuple[Plan, Plan | None]:
    """What the program at the interfaces judges, and OUTPUT if it may do more than accept."""
    ingress = {key: chain for key, chain in plan.chains.items() if key != OUTPUT}
    output = plan.chains.get(OUTPUT)
    chain = plan.ruleset.tables["filter"].chains.get("OUTPUT")
    if output is None or chain is None or not (chain.rules or chain.policy == "DROP"):
        return replace(plan, chains=ingress), None
    return replace(plan, chains=ingress), replace(plan, chains={OUTPUT: output})


def _output(outputs: Mapping[Family, Plan]) -> Image | None:
    if not outputs:
        return None
    image = assemble(list(outputs.values()))
    prove_codes(image)
    return image


def _reached(
    family: Family, save: str, chains: Sequence[tuple[str, str]], kept: list[str]
) -> Sequence[tuple[str, str]]:
    """Without FORWARD where no packet gets there; says so if it has rules."""
    if host_forwards(family):
        return chains
    rules = ours.strip(save).partition("*filter\n")[2].partition("COMMIT\n")[0]
    has_rules = any(line.startswith("-A FORWARD ") for line in lines_of(rules))
    if ("filter", "FORWARD") in chains and has_rules:
        kept.append(
            f"{family} FORWARD stays with iptables: this host does not forward"
            " (ip_forward, forwarding); should that change, deploy again"
        )
    return tuple(key for key in chains if key != ("filter", "FORWARD"))


def _read(tables: Tables, save: str) -> Ruleset:
    return read_text(
        ours.strip(save),
        source=f"live {tables.family} ({tables.backend})",
        family=tables.family,
        backend=tables.backend,
    )


def _parts(plan: Plan, proofs: Proofs) -> Mapping[tuple[str, str], Proven]:
    """What a proof after an edit can rest on."""
    return {
        key: Proven(plan.ruleset, chain, proofs[key].parts) for key, chain in plan.chains.items()
    }


def _proven(ruleset: Ruleset, chain: ChainPlan, before: Proven | None, force: bool) -> Proof:
    # Which rules no packet reaches is for reports, and takes a third of a proof's time.
    work = partial(prove, before=before, shadowed=False)
    large = len(chain.flat.entries) >= _LARGE
    proof = apart(work, ruleset, chain) if large else work(ruleset, chain)
    if proof.counterexample is not None:
        example = describe_counterexample(proof.counterexample, chain.flat.space)
        raise ProofFailed(
            f"the tables of {ruleset.family} {chain.table}/{chain.chain} are not the ruleset:"
            f" {example}",
            hint="this is a bug of bpfilter; iptables filters as before, please report it",
        )
    if not proof.complete and not force:
        raise RolloutError(
            f"the proof of {ruleset.family} {chain.table}/{chain.chain} is incomplete:"
            f" {proof.covered}",
            hint="stay in the shadow stage, or enforce it with --force",
        )
    return proof
