"""From a ruleset to its plan document: compile, prove, judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bpfilter.analysis.codes import prove_codes
from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.fates import fates
from bpfilter.analysis.proven import with_proven_functions
from bpfilter.analysis.redundant import redundant
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.plan import Plan
from bpfilter.report.document import Document, plan_document
from bpfilter.report.safe import shown
from bpfilter.ruleset.model import Ruleset


def make_document(
    source: Ruleset,
    read_seconds: float,
    proof_seconds: float,
    say: Callable[[str], object] = lambda _step: None,
    *,
    host: Callable[[Plan], Mapping[str, Any]] | None = None,
    cost: Callable[[Plan], Mapping[str, Any]] | None = None,
) -> Document:
    """Compile, prove and judge a ruleset; `say` is called with the step that begins.

    `host` and `cost` say what the plan meets on this host (`rollout.outlook`) and what packets
    cost there (`rollout.cost`).
    """
    say("compiling")
    started = time.perf_counter()
    plan = compile_ruleset(source)
    compiled = time.perf_counter() - started
    proofs: dict[tuple[str, str], Proof] = {}
    for key, chain in plan.chains.items():
        say(f"proving {key[0]} {key[1]}")
        proofs[key] = prove(source, chain, seconds=proof_seconds)
    proved = time.perf_counter() - started - compiled
    say("judging the rules")
    plan = with_proven_functions(plan, proofs)
    image = assemble([plan])
    prove_codes(image)
    judged = fates(plan, proofs)
    alike = redundant(plan)
    seconds = {
        "read": read_seconds,
        **plan.seconds,
        "plan": compiled,
        "proof": proved,
        "total": read_seconds + time.perf_counter() - started,
    }
    document = plan_document(plan, image, proofs, judged, seconds, alike)
    if host is not None:
        say("looking at this host")
        document["host"] = shown(host(plan))
    if cost is not None:
        say("measuring packets")
        document["cost"] = shown(cost(plan))
    return document
