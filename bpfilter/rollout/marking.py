"""How the lab cuts over to a plan: as a rollout would on this host, were the lab the host."""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.compiler.compile import assemble
from bpfilter.compiler.plan import Plan
from bpfilter.errors import RolloutError
from bpfilter.lab.verify import Marking
from bpfilter.rollout.dispatch import merge, render
from bpfilter.rollout.mark import choose, ruleset_uses


def cutover(plan: Plan, interfaces: Sequence[str]) -> Marking | str:
    """The dispatch that a rollout would install, or why it would install none."""
    if not plan.chains:
        return "there is no chain to take over"
    try:
        mark = choose(ruleset_uses([plan.ruleset]))
        image = assemble([plan], code_space=mark.max_code + 1)
        dispatch = merge(
            [
                render(plan.ruleset, chain, image.codes, mark, interfaces)
                for chain in plan.chains.values()
            ]
        )
    except RolloutError as error:
        return error.message
    return Marking(mark, image, dispatch.add)
