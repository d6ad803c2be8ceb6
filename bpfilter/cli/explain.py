"""`bpfilter explain`: one packet's way through the rules and through the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfilter.analysis.explain import Question, explain
from bpfilter.cli.connection import State
from bpfilter.cli.eval import run_question
from bpfilter.cli.plan import BackendOption, FamilyOption, Format, RulesetOption, load
from bpfilter.errors import UsageError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.kernel.way import way_of
from bpfilter.lab.addresses import address_types
from bpfilter.lab.pcap import read_frames
from bpfilter.report.asked import asked_packet, frame_packet, hook_of, sample_packet
from bpfilter.report.explain import explanation_document, render_explanation
from bpfilter.report.terminal import terminal
from bpfilter.rollout.detail import kept_samples
from bpfilter.rollout.journal import state_directory
from bpfilter.ruleset import fields
from bpfilter.ruleset.fields import ALL_STATES, Family, Field

_DISAGREE = 1


def explain_command(
    packet: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROTOCOL SOURCE DESTINATION]", help="Addresses as A or A:PORT."),
    ] = None,
    in_interface: Annotated[
        str, typer.Option("--in", metavar="NAME", help="The interface it arrives on.")
    ] = "",
    out_interface: Annotated[
        str, typer.Option("--out", metavar="NAME", help="The interface it leaves by.")
    ] = "",
    chain: Annotated[
        str | None, typer.Option(help="INPUT, FORWARD, OUTPUT or PREROUTING (raw's).")
    ] = None,
    state: Annotated[
        list[fields.State] | None,
        typer.Option(
            parser=lambda word: _state(word), metavar="STATE", help="Only in this; repeatable."
        ),
    ] = None,
    flags: Annotated[str | None, typer.Option(help="TCP flags, as SYN,ACK.")] = None,
    icmp_type: Annotated[str | None, typer.Option(help="As echo-request or 3/4.")] = None,
    length: Annotated[int | None, typer.Option(min=20, max=65535, help="Of the packet.")] = None,
    ttl: Annotated[int | None, typer.Option(min=0, max=255, help="As the hook sees it.")] = None,
    tos: Annotated[int | None, typer.Option(min=0, max=255, help="TOS or traffic class.")] = None,
    mac: Annotated[str | None, typer.Option(help="The sender's MAC address.")] = None,
    pcap: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the packet from a capture.")
    ] = None,
    frame: Annotated[int, typer.Option(min=0, help="Its number in the capture, from 0.")] = 0,
    mismatch: Annotated[
        str | None, typer.Option(metavar="ID", help="A mismatch, as `bpfilter report` lists them.")
    ] = None,
    ruleset: RulesetOption = None,
    backend: BackendOption = None,
    family: FamilyOption = None,
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Also load the program and let the kernel run it.")
    ] = False,
    output: Annotated[Format, typer.Option("--format", help="Report form.")] = Format.TEXT,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also rules that do not match, and why not.")
    ] = False,
    directory: State = None,
) -> int:
    """Say how one packet goes through the rules, and how through the program. Changes nothing.

    Against the live rules, or with --ruleset against a file or a plan (`plan --format json`). With
    the live rules and --in alone the kernel is asked where the packet would go. Exit code 1 if
    rules and program disagree.

    Examples: [cyan]bpfilter explain tcp 203.0.113.7:40000 10.0.0.5:22 --in eth0[/]
    · [cyan]bpfilter explain --pcap traffic.pcap --frame 3 --in eth0[/]
    """
    states = sum(set(state)) if state else ALL_STATES
    where: dict[str, Any] = {
        "chain": chain,
        "in_interface": in_interface,
        "out_interface": out_interface,
        "states": states,
    }
    given = [bool(packet), pcap is not None, mismatch is not None]
    if sum(given) != 1:
        raise UsageError(
            "name one packet: PROTOCOL SOURCE DESTINATION, or --pcap, or --mismatch",
            hint="as in `bpfilter explain tcp 203.0.113.7:40000 10.0.0.5:22 --in eth0`",
        )
    if pcap is not None:
        question = frame_packet(_frame(pcap, frame), **where)
    elif mismatch is not None:
        question = sample_packet(_sample(directory or state_directory(), mismatch))
    else:
        words = packet or []
        if len(words) != 3:
            raise UsageError(
                f"a packet is PROTOCOL SOURCE DESTINATION, not {' '.join(words)!r}",
                hint="as in tcp 203.0.113.7:40000 10.0.0.5:22",
            )
        question = asked_packet(
            *words, flags=flags, icmp=icmp_type, length=length, ttl=ttl, tos=tos, mac=mac, **where
        )
    routes: Sequence[LocalRoute] = ()
    notes: Sequence[str] = ()
    if ruleset is None:
        routes = read_local_table()
        question, notes = _live(question, routes, chain)
    source = load(ruleset, backend, family or question.family)
    document = explanation_document(explain(source, question))
    document["notes"] += notes
    if kernel:
        document["kernel"] = run_question(source, question, routes)
    if output is Format.JSON:
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        render_explanation(document, terminal(), verbose=verbose)
    return 0 if document["agree"] else _DISAGREE


def _state(word: str) -> fields.State:
    try:
        return fields.State[word.upper()]
    except KeyError:
        raise typer.BadParameter(f"{word!r} is none of {', '.join(_names())}") from None


def _names() -> Sequence[str]:
    return [str(state.name) for state in fields.STATES]


def _frame(path: Path, number: int) -> bytes:
    frames = list(read_frames(path))
    if number >= len(frames):
        raise UsageError(f"{path} has {len(frames)} frames", hint="they count from 0")
    return frames[number]


def _sample(directory: Path, identity: str) -> Mapping[str, Any]:
    samples = kept_samples(directory)
    if identity in samples:
        return samples[identity]
    known = ", ".join(samples)
    raise UsageError(
        f"there is no mismatch {identity}",
        hint=f"there are: {known}" if known else "there are none",
    )


def _live(
    question: Question, routes: Sequence[LocalRoute], chain: str | None
) -> tuple[Question, Sequence[str]]:
    """With what this host knows of the packet: its addresses' types, and where it goes."""
    values = dict(question.fields)
    if question.family is Family.IPV4:
        type_of = address_types(routes)
        values[Field.SOURCE_TYPE] = type_of(values[Field.SOURCE])
        values[Field.DESTINATION_TYPE] = type_of(values[Field.DESTINATION])
    question = replace(question, fields=values)
    if chain is not None or question.out_interface or not question.in_interface:
        return question, ()
    addresses = [_address(question, field) for field in (Field.SOURCE, Field.DESTINATION)]
    way = way_of(addresses[0], addresses[1], question.in_interface)
    if way is None:
        return question, ("this host routes no such packet: it would come to no chain",)
    if way.here:
        return question, ()
    hook = hook_of(None, question.in_interface, way.out_interface)
    return replace(question, hook=hook, out_interface=way.out_interface), ()


def _address(question: Question, field: Field) -> Any:
    width = 4 if question.family is Family.IPV4 else 16
    return ip_address(question.fields[field].to_bytes(width, "big"))
