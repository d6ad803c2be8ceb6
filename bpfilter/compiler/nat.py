"""Which packets the nat table may translate before the filter hook sees them.

The rules are asked only for a packet that begins a connection (NEW, or RELATED by expectation:
nf_nat_inet_fn in net/netfilter/nf_nat_core.c); whether an established one was translated is known
at the filter hook, where the dispatch asks conntrack. The answer errs on one side only: a packet
that a rule *might* translate is punted, so what a rule says of connection state, and dynamic
matches, never exclude a packet here.
"""

from __future__ import annotations

from collections.abc import Mapping

from bpfilter.compiler.guards import GuardBuilder
from bpfilter.compiler.ir import Action, Guard, Space, Treatment
from bpfilter.compiler.scope import closure, unresolved
from bpfilter.ruleset.fields import ALL_STATES, Field, State
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset, TargetKind

ASKED = int(State.NEW | State.RELATED)
"""The states in which the nat table's rules are consulted."""


def nat_treatments(
    ruleset: Ruleset, table: str, chain: str, space: Space, absent: Field | None
) -> Mapping[RuleRef, Treatment]:
    """Treat the rules of a nat chain as a predicate: PUNT where a packet may be translated.

    JUMP and GOTO are inlined as jumps, RETURN leaves its chain, ACCEPT (in the built-in chain
    only) leaves the predicate; all else is CONTINUE. Empty if the ruleset has no such chain.
    A field that mangle rewrites in between may make the predicate miss a packet: then the dispatch
    finds the connection translated, and the packet takes the original chain all the same.
    """
    if table not in ruleset.tables or chain not in ruleset.tables[table].chains:
        return {}
    builder = GuardBuilder(space, absent)
    chains = closure(ruleset.tables[table], chain)
    return {
        rule.ref: _treat(rule, owner, space, builder) for owner in chains for rule in owner.rules
    }


def _treat(rule: Rule, chain: Chain, space: Space, builder: GuardBuilder) -> Treatment:
    matches = [m for m in rule.matches if not m.dynamic and not unresolved(m, space)]
    exact = len(matches) == len(rule.matches)
    guards = tuple(Guard(guard.box, ASKED) for guard in builder.guards(matches))
    exact = exact and all(
        guard.states == ALL_STATES for match in matches for guard in builder.guards([match])
    )
    target = rule.target
    why = f"nat may translate the packet here ({target.name})"
    if target.kind is TargetKind.EXTENSION and target.alters & {"address", "all"}:
        return Treatment(Action.PUNT, guards, len(matches), why)
    if target.kind in (TargetKind.JUMP, TargetKind.GOTO):
        return Treatment(Action.JUMP, guards, len(matches), target=target.name)
    if target.kind is TargetKind.VERDICT and exact:
        if target.name == "RETURN":
            return Treatment(Action.RETURN, guards, len(matches))
        if target.name == "ACCEPT" and chain.policy is not None:
            return Treatment(Action.ACCEPT, guards, len(matches))
    return Treatment(Action.CONTINUE, guards, len(matches), "cannot translate")
