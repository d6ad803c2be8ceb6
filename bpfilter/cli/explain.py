"""`bpfilter explain`: one packet's way through the rules and through the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfilter.analysis.explain import explain
from bpfilter.api.packets import at_this_host, kept_packet
from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, of_host
from bpfilter.cli.eval import run_question
from bpfilter.cli.plan import BackendOption, FamilyOption, Format, RulesetOption, load
from bpfilter.cli.remote import refuse_local, sent
from bpfilter.errors import UsageError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.lab.pcap import read_frames
from bpfilter.report.asked import asked_packet, frame_packet
from bpfilter.report.document import Document
from bpfilter.report.explain import explanation_document, render_explanation
from bpfilter.report.terminal import terminal
from bpfilter.rollout.journal import state_directory
from bpfilter.ruleset import fields
from bpfilter.ruleset.fields import ALL_STATES

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
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> int:
    """Say how one packet goes through the rules, and how through the program. Changes nothing.

    Against the live rules, or with --ruleset against a file or a plan (`plan --format json`). With
    the live rules and --in alone the kernel is asked where the packet would go. With --url, and
    for who is not root, the REST API explains. Exit code 1 if rules and program disagree.

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
    words = packet or []
    if packet and len(words) != 3:
        raise UsageError(
            f"a packet is PROTOCOL SOURCE DESTINATION, not {' '.join(words)!r}",
            hint="as in tcp 203.0.113.7:40000 10.0.0.5:22",
        )
    daemon = of_host(url, token_file, ca, cert, rules=ruleset is None)
    if daemon is not None:
        refuse_local({"--kernel": kernel}, "`bpfilter eval` runs frames on the host itself")
        wanted = {
            **dict(zip(("protocol", "source", "destination"), words, strict=False)),
            "frame": None if pcap is None else _frame(pcap, frame).hex(),
            "mismatch": mismatch,
            "in_interface": in_interface or None,
            "out_interface": out_interface or None,
            "chain": chain,
            "states": [str(each.name) for each in state or ()],
            "flags": flags,
            "icmp_type": icmp_type,
            "length": length,
            "ttl": ttl,
            "tos": tos,
            "mac": mac,
            "ruleset": sent(ruleset),
            "family": family,
            "backend": backend,
        }
        with terminal(stderr=True).status("explaining") as status:
            return _show(daemon.operate("/v1/explain", wanted, status.update), output, verbose)
    if pcap is not None:
        question = frame_packet(_frame(pcap, frame), **where)
    elif mismatch is not None:
        question = kept_packet(directory or state_directory(), mismatch)
    else:
        question = asked_packet(
            *words, flags=flags, icmp=icmp_type, length=length, ttl=ttl, tos=tos, mac=mac, **where
        )
    routes: Sequence[LocalRoute] = ()
    notes: Sequence[str] = ()
    if ruleset is None:
        routes = read_local_table()
        question, notes = at_this_host(question, chain, routes)
    source = load(ruleset, backend, family or question.family)
    document = explanation_document(explain(source, question))
    document["notes"] += notes
    if kernel:
        document["kernel"] = run_question(source, question, routes)
    return _show(document, output, verbose)


def _show(document: Document, output: Format, verbose: bool) -> int:
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
