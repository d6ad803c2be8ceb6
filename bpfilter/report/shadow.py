"""What happened: the shadow report, as one JSON-ready document and its forms for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfilter.lab.packets import decode
from bpfilter.report.asked import PORTED, header_frame
from bpfilter.report.document import Document
from bpfilter.report.markdown import table as markdown_table
from bpfilter.report.safe import markdown, markdown_code, printable
from bpfilter.ruleset.fields import Field

SCHEMA_VERSION = 1
CAUSES = {
    "before": "dropped or consumed before filter (raw, mangle, nat, routing)",
    "queued": "held by a queue in filter, or its end went unnoticed",
    "vanished": "its memory was used again before it was seen",
    "lost": "there was no room to remember it",
    "open": "dynamic rules decide; that the verdict was a possible one was checked",
    "translated": "NAT rewrote it after the prediction",
    "other_chain": "it went to the other chain, as NAT may make it",
    "edited": "the rules were edited while it was on its way",
    "foreign": "a chain of native nft beside filter may have dropped it",
}
"""Why packets say nothing of a prediction."""

_FLAGS = "FSRP.UEW"
_MOST_RULES = 40


def shadow_document(
    status: Mapping[str, Any],
    detail: Mapping[str, Any],
    paths: Mapping[str, Sequence[str]] | None = None,
) -> Document:
    """The report of a daemon's status and its `rollout.detail`.

    `paths`: by the id of a mismatch, the rules by which iptables judges such a packet.
    """
    comparison = detail["comparison"]
    rules = [_rule(rule) for rule in detail["rules"]]
    deciding = [rule for rule in rules if rule["decides"]]
    exercised = sum(bool(rule["seen"]) for rule in deciding)
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": str(detail["stage"]),
        "since": detail["since"],
        "at": detail["at"],
        "seconds": round(detail["at"] - detail["since"], 1),
        "packets": detail["packets"],
        "punted": dict(detail["punted"]),
        "coverage": {"deciding": len(deciding), "exercised": exercised, "rules": rules},
        "comparison": None if comparison is None else _comparison(comparison, paths or {}),
        "gates": list(status.get("gates", ())),
        "promotion": _promotion(status, comparison),
    }


def _rule(rule: Mapping[str, Any]) -> Document:
    seen = rule["matches"] + rule["mismatches"] + rule["open"]
    names = {name: printable(str(rule[name])) for name in ("chain", "text")}
    return {**rule, **names, "seen": seen or rule["predicted"]["packets"]}


def _comparison(found: Mapping[str, Any], paths: Mapping[str, Sequence[str]]) -> Document:
    causes = {
        kind: {
            name: {"packets": n, "why": CAUSES.get(name, name)} for name, n in found[kind].items()
        }
        for kind in ("unseen", "not_comparable")
    }
    samples = [
        {
            **sample,
            "rule": printable(sample["rule"]),
            "via": [printable(ref) for ref in sample["via"]],
            "in": printable(sample["in"]),
            "out": printable(sample["out"]),
            "packet": packet_line(bytes.fromhex(sample["header"])),
            "iptables_path": [printable(step) for step in paths.get(sample["id"], ())],
        }
        for sample in found["samples"]
    ]
    names = ("mechanism", "share", "compared", "matches", "mismatches", "lost_samples")
    return {**{name: found[name] for name in names}, **causes, "samples": samples}


def _promotion(status: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> Document:
    """Whether a stage that decides may come next, and why not."""
    closed = [gate["sentence"] for gate in status.get("gates", ()) if not gate["passed"]]
    if comparison is None:
        return {"allowed": False, "why": ["nothing is compared now"]}
    if comparison["mismatches"] and not any("mismatch" in sentence for sentence in closed):
        closed.append(f"{comparison['mismatches']} packets were judged unlike their prediction")
    return {"allowed": not closed, "why": closed}


def packet_line(header: bytes) -> str:
    """A packet from its network header on, in the manner of tcpdump."""
    try:
        fields, _ = decode(header_frame(header))
    except ValueError:
        return f"packet {header.hex()}"
    from ipaddress import IPv4Address, IPv6Address

    four = header[0] >> 4 == 4
    ends = []
    for address, port in (
        (Field.SOURCE, Field.SOURCE_PORT),
        (Field.DESTINATION, Field.DESTINATION_PORT),
    ):
        host = str(IPv4Address(fields[address]) if four else IPv6Address(fields[address]))
        ported = fields[Field.PROTOCOL] in PORTED
        ends.append(f"{host}.{fields[port]}" if ported else host)
    return f"{'IP' if four else 'IP6'} {ends[0]} > {ends[1]}: {_payload(fields)}"


def _payload(fields: Mapping[Field, int]) -> str:
    protocol, length = fields[Field.PROTOCOL], fields[Field.LENGTH]
    rest = f"length {length}, ttl {fields[Field.TTL]}"
    if protocol == 6:
        bits = fields[Field.TCP_FLAGS]
        letters = "".join(c for bit, c in enumerate(_FLAGS) if bits >> bit & 1)
        return f"Flags [{letters or 'none'}], {rest}"
    if protocol in (1, 58):
        kind = fields[Field.ICMP_TYPE]
        return f"ICMP{'6' if protocol == 58 else ''} type {kind >> 8} code {kind & 255}, {rest}"
    return f"{PORTED.get(protocol, f'protocol {protocol}').upper()}, {rest}"


def rule_name(rule: Mapping[str, Any]) -> str:
    return f"{rule['family']} {rule['table']}/{rule['chain']}/{rule['number']}"


def head(document: Document) -> Sequence[str]:
    """The report's first sentences."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["since"]))
    cover = document["coverage"]
    lines = [
        f"stage {document['stage']} since {since}, {document['seconds']:.0f} s",
        f"{document['packets'] or 0} packets looked at;"
        f" {cover['exercised']} of {cover['deciding']} rules that can decide were exercised",
    ]
    if document["punted"]:
        left = ", ".join(f"{reason} {count}" for reason, count in document["punted"].items())
        lines.append(f"left to iptables: {left}")
    compared = document["comparison"]
    if compared is None:
        return [*lines, "nothing is compared now"]
    judged = compared["matches"] + compared["mismatches"]
    lines.append(
        f"{compared['compared']} predictions ({compared['share']:.0%} of the packets) compared by"
        f" {compared['mechanism']}: {judged} judged, {compared['matches']} as predicted,"
        f" {compared['mismatches']} otherwise"
    )
    return lines


def verdict(document: Document) -> str:
    promotion = document["promotion"]
    if promotion["allowed"]:
        return "nothing stands against the next stage"
    return f"not to be promoted: {'; '.join(promotion['why'])}"


def _causes(compared: Document) -> Iterable[tuple[str, str, int]]:
    for kind, title in (("unseen", "unseen"), ("not_comparable", "not comparable")):
        for each in compared[kind].values():
            if each["packets"]:
                yield title, each["why"], each["packets"]


def render_shadow(document: Document, console: Console, *, every: bool = False) -> None:
    """Print the report; `every`: all rules, otherwise the busiest and those with mismatches."""
    for line in head(document):
        console.print(Text(line))
    compared = document["comparison"]
    if compared is not None and (causes := list(_causes(compared))):
        table = Table("not judged", "why", box=None, pad_edge=False)
        table.add_column("packets", justify="right")
        for title, why, packets in causes:
            table.add_row(title, why, str(packets))
        console.print(table)
    for sample in () if compared is None else compared["samples"]:
        console.print(_sample(sample))
    console.print(_coverage(document["coverage"]["rules"], every))
    for gate in document["gates"]:
        state = ("open", "green") if gate["passed"] else ("closed", "yellow")
        console.print(Text(f"gate {gate['name']}: ").append(*state).append(f", {gate['sentence']}"))
    allowed = document["promotion"]["allowed"]
    console.print(Text(verdict(document), "green" if allowed else "bold yellow"))


def _sample(sample: Mapping[str, Any]) -> Text:
    shown = Text(f"mismatch {sample['id']}: ", "bold red").append(sample["packet"], "")
    way = f"{sample['in']} to {sample['out']}" if sample["out"] else sample["in"]
    shown.append(f"\n  {sample['state']} on {way}")
    program = " > ".join([*sample["via"], sample["rule"]])
    shown.append(f"\n  the program: {program} said {sample['predicted']}")
    shown.append(f"\n  iptables: {sample['actual']}")
    for step in sample["iptables_path"]:
        shown.append(f"\n    {step}")
    return shown


def chosen(rules: Sequence[Mapping[str, Any]], every: bool) -> Sequence[Mapping[str, Any]]:
    """The rules to show: all, or those with mismatches and then the busiest."""
    if every:
        return rules
    ranked = sorted(rules, key=lambda rule: (-rule["mismatches"], -rule["seen"]))
    return [rule for rule in ranked if rule["seen"]][:_MOST_RULES]


def _coverage(rules: Sequence[Mapping[str, Any]], every: bool) -> Table:
    table = Table("rule", box=None, pad_edge=False, title_justify="left")
    table.title = "Rules" if every else "Rules, busiest first"
    for name in ("seen", "matches", "differ", "open"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for rule in chosen(rules, every):
        numbers = [str(rule[name]) for name in ("seen", "matches", "mismatches", "open")]
        table.add_row(Text(rule_name(rule)), *numbers, Text(rule["text"]))
    return table


def shadow_markdown(document: Document) -> str:
    """The report for pull requests."""
    return "\n".join(_markdown(document)) + "\n"


def _markdown(document: Document) -> Iterable[str]:
    yield "# Shadow report"
    yield ""
    for line in head(document):
        yield f"- {markdown(line)}"
    yield ""
    yield f"**{markdown(verdict(document))}**"
    compared = document["comparison"]
    if compared is not None and (causes := list(_causes(compared))):
        rows = ((title, markdown(why), str(packets)) for title, why, packets in causes)
        yield ""
        yield from markdown_table(("not judged", "why", ">packets"), rows)
    for sample in () if compared is None else compared["samples"]:
        yield ""
        yield f"## Mismatch {markdown(sample['id'])}"
        yield ""
        yield f"{markdown_code(sample['packet'])}, {markdown(sample['state'])}:"
        yield f"the program said {sample['predicted']} at {markdown_code(sample['rule'])},"
        yield f"iptables {sample['actual']}."
        for step in sample["iptables_path"]:
            yield f"- {markdown_code(step)}"
    yield ""
    lines: list[Sequence[str]] = []
    for rule in chosen(document["coverage"]["rules"], False):
        numbers = [str(rule[name]) for name in _COLUMNS]
        lines.append([markdown(rule_name(rule)), *numbers, markdown_code(rule["text"])])
    yield from markdown_table(("rule", *(f">{name}" for name in _COLUMNS), "text"), lines)


_COLUMNS = ("seen", "matches", "mismatches", "open")
