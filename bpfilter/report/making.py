"""From a ruleset to its plan document: compile, prove, judge."""

from __future__ import annotations

import time
from collections.abc import Callable

from bpfilter.analysis.codes import prove_codes
from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.fates import fates
from bpfilter.analysis.proven import with_proven_functions
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.report.document import Document, plan_document
from bpfilter.ruleset.model import Ruleset


def make_document(
    source: Ruleset,
    read_seconds: float,
    proof_seconds: float,
    say: Callable[[str], object] = lambda _step: None,
) -> Document:
    """Compile, prove and judge a ruleset; `say` is called with the step that begins."""
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
    seconds = {
        "read": read_seconds,
        **plan.seconds,
        "plan": compiled,
        "proof": proved,
        "total": read_seconds + time.perf_counter() - started,
    }
    return plan_document(plan, image, proofs, judged, seconds)
