"""What a proof adds to a plan: the residual functions that the compiler's sampling missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bpfilter.analysis.conditions import Hook
from bpfilter.analysis.equivalence import Proof
from bpfilter.compiler.plan import Plan


def with_proven_functions(plan: Plan, proofs: Mapping[Hook, Proof]) -> Plan:
    """The plan with every function that its proofs list; added ones count as least travelled."""
    chains = {
        key: replace(
            chain, functions=tuple(dict.fromkeys((*chain.functions, *proofs[key].functions)))
        )
        for key, chain in plan.chains.items()
    }
    return replace(plan, chains=chains)
