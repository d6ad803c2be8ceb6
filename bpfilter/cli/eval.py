"""`bpfilter eval`: what the loaded program says of every frame of a capture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfilter.analysis.explain import Question
from bpfilter.cli.plan import BackendOption, FamilyOption, RulesetOption, load
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.ir import Entry, FlatChain, Function, OpKind
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.plan import Image
from bpfilter.errors import UsageError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.kernel.config import Reason, Trace
from bpfilter.kernel.program import Classifier, Options, Result
from bpfilter.lab.packets import can_encode, encode
from bpfilter.lab.pcap import read_frames
from bpfilter.ruleset.fields import ALL_STATES, STATES, State
from bpfilter.ruleset.model import RuleRef, Ruleset

LOOPBACK = 1
"""The interface index at which BPF_PROG_RUN receives."""


class EvalChain(StrEnum):
    INPUT = "INPUT"
    FORWARD = "FORWARD"
    OUTPUT = "OUTPUT"
    PREROUTING = "PREROUTING"


class EvalFormat(StrEnum):
    JSONL = "jsonl"


def eval_command(
    pcap: Annotated[Path, typer.Option("--pcap", metavar="FILE", help="pcap or pcapng, Ethernet.")],
    ruleset: RulesetOption = None,
    chain: Annotated[
        EvalChain, typer.Option("--chain", help="The built-in chain; PREROUTING is raw's.")
    ] = EvalChain.INPUT,
    in_interface: Annotated[
        str, typer.Option("--in-interface", metavar="NAME", help="What -i sees; need not exist.")
    ] = "",
    out_interface: Annotated[
        str, typer.Option("--out-interface", metavar="NAME", help="What -o sees.")
    ] = "",
    backend: BackendOption = None,
    family: FamilyOption = None,
    output: Annotated[EvalFormat, typer.Option("--format", help="Output form.")] = EvalFormat.JSONL,
) -> None:
    """Run every frame of a capture through the loaded BPF program; one JSON line per frame.

    Nothing is attached. The connection state is unknown to the program: where it decides, the line
    gives the verdict by state.

    Example: [cyan]bpfilter eval --ruleset rules.v4 --chain INPUT --in-interface eth0 --pcap
    traffic.pcap --format jsonl[/]
    """
    frames = list(read_frames(pcap))
    image = compile_chain_image(load(ruleset, backend, family), chain)
    options = Options(
        chain=chain,
        interfaces={LOOPBACK: in_interface},
        out_interface=out_interface,
        addresses=read_local_table(),
        trace=Trace.LAST,
        counting=False,
    )
    with Classifier.load(image, options) as classifier:
        for index, frame in enumerate(frames):
            line = {"index": index, **describe(classifier.run(frame))}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


def run_question(
    ruleset: Ruleset, question: Question, addresses: Sequence[LocalRoute]
) -> dict[str, Any]:
    """What the loaded program says of the packet; nothing is attached, nothing stays loaded."""
    image = compile_chain_image(ruleset, EvalChain(question.hook[1]))
    options = Options(
        chain=question.hook[1],
        interfaces={LOOPBACK: question.in_interface},
        out_interface=question.out_interface,
        addresses=addresses,
        trace=Trace.LAST,
        counting=False,
    )
    forwarded = question.hook[1] == "FORWARD"
    packet = question.packet(image.slots[0].plan.flat.space)
    if not can_encode(packet, question.family, forwarded=forwarded):
        raise UsageError("no frame can carry this packet", hint="check --length and --ttl")
    frame = encode(packet, question.family, 1, bytes(6), forwarded=forwarded)
    with Classifier.load(image, options) as classifier:
        return describe(classifier.run(frame))


def compile_chain_image(ruleset: Ruleset, chain: EvalChain) -> Image:
    """The image of one built-in chain; UsageError if the ruleset has no such chain."""
    table = "raw" if chain is EvalChain.PREROUTING else "filter"
    plan = compile_ruleset(ruleset, chains=[(table, chain.value)])
    if not plan.chains:
        raise UsageError(
            f"{ruleset.source} has no chain {chain} in table {table}",
            hint="the tables it has: " + (", ".join(ruleset.tables) or "none"),
        )
    return assemble([plan])


def describe(result: Result) -> dict[str, Any]:
    """The outcome of one frame as the line's members."""
    if result.outcome is Outcome.PUNT or result.slot is None or result.function is None:
        return _punt(result)
    flat = result.slot.plan.flat
    if result.outcome is Outcome.RESIDUAL:
        return _residual(result.function, result.final, flat)
    entry = _of_state(result.entries, flat, State.NEW)
    return {"outcome": result.outcome.name, "rule": _rule(entry.rule), "reason": _where(entry.rule)}


def _punt(result: Result) -> dict[str, Any]:
    line: dict[str, Any] = {
        "outcome": "PUNT",
        "rule": None,
        "reason": result.reason.name.lower().replace("_", "-"),
    }
    if result.reason is Reason.RULE and result.slot is not None:
        rules = list(dict.fromkeys(e.rule for e in result.entries if e.kind is OpKind.PUNT))
        treatments = result.slot.plan.treatments
        why = dict.fromkeys(treatments[ref].reason for ref in rules if ref in treatments)
        line["reason"] = "; ".join(["rule", *filter(None, why)])
        line["punted_by"] = [_rule(ref) for ref in rules]
    return line


def _residual(function: Function, final: tuple[int, ...], flat: FlatChain) -> dict[str, Any]:
    """Its dynamic rules in the chain's order; where there are none, the verdict by state."""
    items = sorted({item for _, walk in function.walks for item in walk.items})
    if items:
        rules = list(dict.fromkeys(flat.items[item].rule for item in items))
        why = ", ".join(dict.fromkeys(flat.items[item].reason for item in items))
        return {
            "outcome": "RESIDUAL",
            "rule": _rule(rules[0]),
            "reason": f"dynamic: {why}",
            "residual": [_rule(ref) for ref in rules],
        }
    ends = [flat.entries[index] for index in sorted(set(final))]
    deciding = [entry for entry in ends if entry.states != ALL_STATES]
    verdicts = {state: walk.verdict for state, walk in function.by_state().items()}
    return {
        "outcome": "RESIDUAL",
        "rule": _rule((deciding or ends)[0].rule),
        "reason": "connection state",
        "residual": [_rule(ref) for ref in dict.fromkeys(entry.rule for entry in ends)],
        "by_state": {str(state.name): str(verdicts[state]) for state in STATES},
    }


def _of_state(entries: tuple[Entry, ...], flat: FlatChain, state: State) -> Entry:
    """The final entry in one state."""
    classes = flat.state_classes()
    return next(entry for entry, mask in zip(entries, classes, strict=True) if mask & state)


def _rule(ref: RuleRef) -> dict[str, Any]:
    return {"table": ref.table, "chain": ref.chain, "number": ref.number}


def _where(ref: RuleRef) -> str:
    if ref.number == 0:
        return f"policy of {ref.table}/{ref.chain}"
    return f"rule {ref}"
