"""Why rules were not reached by any packet of a run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bpfilter.analysis.equivalence import Proof
from bpfilter.analysis.unconditional import certainly_unreachable
from bpfilter.compiler.batch import matching_bits, state_bits
from bpfilter.compiler.coverage import passed_entries
from bpfilter.compiler.ir import Action
from bpfilter.compiler.plan import ChainPlan
from bpfilter.lab.oracle import Observation
from bpfilter.lab.report import UNREACHABLE, Missed
from bpfilter.lab.topology import device_names
from bpfilter.ruleset.fields import NamePattern
from bpfilter.ruleset.model import Match, RuleRef, Ruleset


def missed_rules(
    chain: ChainPlan,
    observations: Sequence[Observation],
    missing: Iterable[RuleRef],
    proof: Proof | None,
    ruleset: Ruleset,
) -> tuple[Missed, ...]:
    """Each rule whose counters did not move, with the reason, in the ruleset's order."""
    wanted = sorted(missing)
    if not wanted:
        return ()
    shadowed: Mapping[RuleRef, tuple[RuleRef, ...]]
    if proof is not None and proof.listed:
        shadowed = proof.unreachable
    else:
        shadowed = certainly_unreachable(ruleset, (chain.table, chain.chain))
    passed = _passed(chain, observations)
    names = set(device_names(chain.flat.space).values())
    return tuple(
        Missed(str(ref), _reason(ref, chain, ruleset, shadowed, passed, names)) for ref in wanted
    )


def _passed(chain: ChainPlan, observations: Sequence[Observation]) -> frozenset[RuleRef]:
    """Rules whose static part some packet met, in the state that it had."""
    came = [o for o in observations if o.state is not None]
    states = state_bits(chain.tables)
    entries = chain.flat.entries
    found: set[RuleRef] = set()
    packets = [observation.stimulus.packet for observation in came]
    for observation, bits in zip(came, matching_bits(chain.tables, packets), strict=True):
        for mask, held in zip(chain.tables.state_classes, states, strict=True):
            if observation.state is not None and mask & observation.state:
                found |= {entries[i].rule for i in passed_entries(chain.flat, bits & held)}
    return frozenset(found)


def _reason(
    ref: RuleRef,
    chain: ChainPlan,
    ruleset: Ruleset,
    shadowed: Mapping[RuleRef, tuple[RuleRef, ...]],
    passed: frozenset[RuleRef],
    names: set[str],
) -> str:
    if ref in shadowed:
        by = ", ".join(map(str, shadowed[ref][:3]))
        return f"{UNREACHABLE}: " + (f"shadowed by {by}" if by else "no packet can match it")
    rule = ruleset.rule(ref)
    treatment = chain.treatments.get(ref)
    if ref in passed and treatment is not None and treatment.action in (Action.ITEM, Action.PUNT):
        return f"its dynamic part never held ({treatment.reason})"
    for match in rule.matches:
        for pattern in _patterns(match):
            if not any(pattern.matches(name) for name in names):
                return f"no device can bear the name {pattern.text}"
    if treatment is not None and treatment.action in (Action.ITEM, Action.PUNT):
        return f"no packet came to its dynamic part ({treatment.reason})"
    if treatment is not None and treatment.action is Action.CONTINUE:
        return "it only counts, so no packet was made for it"
    return "no packet came to it: it needs what the lab does not send, or a rule before took it"


def _patterns(match: Match) -> Iterable[NamePattern]:
    for conjunction in match.alternatives or ():
        for term in conjunction:
            if isinstance(term.values, NamePattern) and not term.negated:
                yield term.values
