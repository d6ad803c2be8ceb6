"""A plan as one JSON-ready document: the single source of every form of the plan report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bpfilter.analysis.describe import describe_counterexample
from bpfilter.analysis.equivalence import Proof
from bpfilter.analysis.fates import Fate, FateKind
from bpfilter.compiler.ir import FlatChain, Function, Walk
from bpfilter.compiler.plan import ChainPlan, Image, Plan
from bpfilter.report.examples import examples
from bpfilter.report.graph import graph_document
from bpfilter.report.safe import printable
from bpfilter.ruleset.fields import STATES
from bpfilter.ruleset.model import Rule, RuleRef
from bpfilter.ruleset.writer import rule_words

SCHEMA_VERSION = 1
FATES = ("native", "residual", "punt", "unreachable", "kept")

Document = dict[str, Any]


def plan_document(
    plan: Plan,
    image: Image,
    proofs: Mapping[tuple[str, str], Proof],
    fates: Mapping[RuleRef, Fate],
    seconds: Mapping[str, float],
    redundant: Mapping[RuleRef, RuleRef] | None = None,
) -> Document:
    """Everything a plan says, in the order of the ruleset. `seconds` are wall-clock times.

    `redundant`: rules that could go, each with the later one that decides their packets alike.

    `cost` and `host` are for the caller to fill in: what was measured, and where it would run.
    """
    ruleset = plan.ruleset
    counts = Counter(str(fate.kind) for fate in fates.values())
    return {
        "schema_version": SCHEMA_VERSION,
        "source": printable(ruleset.source),
        "family": str(ruleset.family),
        "family_reason": ruleset.family_reason,
        "backend": str(ruleset.backend) if ruleset.backend else None,
        "digest": ruleset.digest,
        "rules": len(fates),
        "fates": {kind: counts[FateKind(kind)] for kind in FATES},
        "chains": [
            _chain(plan, image, chain, proofs.get(key)) for key, chain in plan.chains.items()
        ],
        "policies": {
            table.name: {printable(chain.name): chain.policy for chain in table.chains.values()}
            for table in ruleset.tables.values()
        },
        "rule_fates": [
            _rule(rule, fates[rule.ref], (redundant or {}).get(rule.ref))
            for rule in ruleset.rules()
        ],
        "proof": _proof(proofs),
        "sizes": {
            "tables_bytes": sum(chain.tables.nbytes for chain in plan.chains.values()),
            "entries": sum(len(chain.flat.entries) for chain in plan.chains.values()),
            "codes": len(image.codes),
        },
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "graph": graph_document(ruleset),
        "cost": None,
        "host": None,
        "warnings": [printable(text) for text in plan.warnings],
    }


def reference(ref: RuleRef) -> Document:
    return {"table": ref.table, "chain": printable(ref.chain), "number": ref.number}


def _rule(rule: Rule, fate: Fate, alike: RuleRef | None) -> Document:
    if fate.kind is FateKind.UNREACHABLE:
        alike = None
    return {
        **reference(rule.ref),
        "line": rule.line,
        "text": printable(f"-A {rule.chain} {rule_words(rule)}".rstrip()),
        "fate": str(fate.kind),
        "reason": printable(fate.reason),
        "packets": None if rule.counters is None else rule.counters.packets,
        "shadowed_by": [reference(ref) for ref in fate.shadowed_by],
        "redundant_with": None if alike is None else reference(alike),
    }


def _chain(plan: Plan, image: Image, chain: ChainPlan, proof: Proof | None) -> Document:
    tables = chain.tables
    codes = {
        code.function: code.number
        for code in image.codes
        if (code.family, code.table, code.chain) == (plan.family, chain.table, chain.chain)
    }
    met = examples(chain)
    return {
        "table": chain.table,
        "chain": chain.chain,
        "policy": plan.ruleset.tables[chain.table].chains[chain.chain].policy,
        "entries": len(chain.flat.entries),
        "dynamic_items": [
            {**reference(item.rule), "kind": str(item.kind), "reason": item.reason}
            for item in chain.flat.items
        ],
        "fields": [str(axis.field) for axis in tables.axes],
        "state_classes": [state_names(mask) for mask in tables.state_classes],
        "tables_bytes": tables.nbytes,
        "functions": [
            {
                "code": codes.get(function),
                "example": printable(met.get(function, "")),
                **function_document(chain.flat, function),
            }
            for function in chain.functions
        ],
        "proof": None if proof is None else _one_proof(proof, chain.flat),
    }


def state_names(mask: int) -> list[str]:
    return [str(state.name) for state in STATES if mask & state]


def function_document(flat: FlatChain, function: Function) -> Document:
    """A residual function: its verdict, or what it does per group of connection states."""
    uniform = function.uniform
    if uniform is not None and not uniform.items:
        return {"outcome": str(uniform.verdict)}
    return {
        "outcome": "RESIDUAL",
        "by_state": {
            ",".join(state_names(mask)): walk_document(flat, walk) for mask, walk in function.walks
        },
    }


def walk_document(flat: FlatChain, walk: Walk) -> Document:
    return {
        "rules": [reference(flat.items[index].rule) for index in walk.items],
        "then": None if walk.verdict is None else str(walk.verdict),
    }


def _proof(proofs: Mapping[tuple[str, str], Proof]) -> Document:
    return {
        "complete": all(proof.complete for proof in proofs.values()),
        "holds": all(proof.holds for proof in proofs.values()),
        "seconds": round(sum(proof.seconds for proof in proofs.values()), 4),
    }


def _one_proof(proof: Proof, flat: FlatChain) -> Document:
    example = proof.counterexample
    return {
        "counterexample": example and describe_counterexample(example, flat.space),
        "complete": proof.complete,
        "holds": proof.holds,
        "covered": proof.covered,
        "seconds": round(proof.seconds, 4),
    }


def redundant_rules(document: Document) -> Sequence[Document]:
    """Rules that could go, in order; all of them at once."""
    return [rule for rule in document["rule_fates"] if rule["redundant_with"] is not None]


def states_told_apart(chain: Document) -> str:
    """The classes of connection states of a chain of the document, in words."""
    classes = chain["state_classes"]
    return "none" if len(classes) < 2 else " | ".join("+".join(names) for names in classes)


def chains_of(document: Document) -> Sequence[Document]:
    chains: Sequence[Document] = document["chains"]
    return chains


def proof_sentence(document: Document) -> str:
    """What a plan's proof says."""
    proof = document["proof"]
    if not proof["complete"]:
        return "Proof: incomplete. This plan may be shadowed; enforcing it needs --force."
    if not proof["holds"]:
        return "Proof: FAILED. This plan must not be used; please report it."
    return (
        "Proof: every packet gets the same trace of rules from the tables as from the text "
        f"({proof['seconds']:.2f} s)."
    )
