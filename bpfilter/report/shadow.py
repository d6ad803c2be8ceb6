"""What happened: the shadow report as one JSON-ready document, the source of its every form."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from bpfilter.lab.packets import decode
from bpfilter.report.asked import PORTED, header_frame
from bpfilter.report.document import Document
from bpfilter.report.safe import printable
from bpfilter.ruleset.fields import Field

SCHEMA_VERSION = 2
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

PUNTED = {
    "rule": "the plan punts a rule that they may reach",
    "no_code": "their residual found no code in the mark field",
    "no_slot": "their chain or family is not translated",
    "fragment": "fragments",
    "options": "IPv4 options",
    "truncated": "shorter than their headers say",
    "malformed": "malformed headers",
    "extension": "IPv6 extension headers that are not walked",
    "ethertype": "neither IPv4 nor IPv6",
    "lease": "the programs had no lease at that moment",
    "generation": "the rules were just being edited",
    "otherhost": "addressed to another host's MAC",
    "vlan": "VLAN tagged",
    "not_local": "neither for this host nor settled to be forwarded: broadcast, multicast",
    "ttl": "their TTL ends here",
    "interface": "an interface that came after the program",
    "no_ethernet": "a rule asks for a MAC address and they have none",
    "lookup": "a table had no such element",
    "long_walk": "too many steps",
    "scope": "outside of the canary's scope",
    "sampled": "left to iptables on purpose, to be compared",
    "route": "the route is not settled by the kernel's look-up",
    "raw": "raw PREROUTING has a say",
    "not_early": "may be dropped late only",
    "tracked": "conntrack has an entry, or cannot be asked",
}
"""What packets that the program leaves to iptables have in common, by `kernel.config.Reason`."""

_FLAGS = "FSRP.UEW"
_MOST_POINTS = 200


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
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": str(detail["stage"]),
        "since": detail["since"],
        "at": detail["at"],
        "seconds": round(detail["at"] - detail["since"], 1),
        "packets": detail["packets"],
        "interfaces": [printable(name) for name in status.get("interfaces", ())],
        "punted": {
            reason: {"packets": count, "why": PUNTED.get(reason, reason)}
            for reason, count in detail["punted"].items()
        },
        "coverage": _coverage(rules, detail["since"], detail["at"]),
        "comparison": None if comparison is None else _comparison(comparison, rules, paths or {}),
        "counters": _counters(detail.get("counters"), rules),
        "gates": list(status.get("gates", ())),
        "waivers": [_waiver(each, detail["at"]) for each in status.get("waivers", ())],
        "promotion": _promotion(status, comparison),
    }


def _rule(rule: Mapping[str, Any]) -> Document:
    seen = rule["matches"] + rule["mismatches"] + rule["open"]
    names = {name: printable(str(rule[name])) for name in ("chain", "text")}
    return {**rule, **names, "seen": seen or rule["predicted"]["packets"]}


def _coverage(rules: Sequence[Document], since: float, until: float) -> Document:
    """`over_time`: (seconds since the stage began, rules exercised by then), at most 200 points."""
    deciding = [rule for rule in rules if rule["decides"]]
    times = sorted(
        max(rule["first_seen"] - since, 0.0) for rule in deciding if rule["first_seen"] is not None
    )
    steps = [[round(time, 1), count] for count, time in enumerate(times, start=1)]
    every = max(1, -(-len(steps) // _MOST_POINTS))
    kept = steps[::-every][::-1]
    return {
        "deciding": len(deciding),
        "exercised": sum(bool(rule["seen"]) for rule in deciding),
        "over_time": [*kept, [round(until - since, 1), len(times)]] if kept else [],
        "rules": list(rules),
    }


def _comparison(
    found: Mapping[str, Any], rules: Sequence[Document], paths: Mapping[str, Sequence[str]]
) -> Document:
    causes = {
        kind: {
            name: {"packets": n, "why": CAUSES.get(name, name)} for name, n in found[kind].items()
        }
        for kind in ("unseen", "not_comparable")
    }
    texts = {rule_name(rule): rule["text"] for rule in rules}
    samples = [
        {
            **sample,
            "rule": printable(sample["rule"]),
            "via": [printable(ref) for ref in sample["via"]],
            "in": printable(sample["in"]),
            "out": printable(sample["out"]),
            "packet": packet_line(bytes.fromhex(sample["header"])),
            "program_path": [
                f"{ref} {texts.get(family + ' ' + ref, '')}".rstrip()
                for family in [str(sample["family"])]
                for ref in map(printable, (*sample["via"], sample["rule"]))
            ],
            "iptables_path": [printable(step) for step in paths.get(sample["id"], ())],
        }
        for sample in found["samples"]
    ]
    names = ("mechanism", "share", "compared", "matches", "mismatches", "lost_samples")
    return {**{name: found[name] for name in names}, **causes, "samples": samples}


def _counters(found: Mapping[str, Any] | None, rules: Sequence[Document]) -> Document | None:
    """The daemon's comparison of per-rule counters, each rule with its text."""
    if found is None:
        return None
    texts = {rule_name(rule): rule["text"] for rule in rules}
    chains = []
    for chain in found["chains"]:
        each = [{**rule, "chain": printable(rule["chain"])} for rule in chain["rules"]]
        for rule in each:
            rule["text"] = texts.get(rule_name({**chain, **rule}), "")
        chains.append({**chain, "rules": each})
    return {"at": found["at"], "chains": chains}


def _waiver(waiver: Mapping[str, Any], now: float) -> Document:
    reason = printable(waiver["reason"])
    return {**waiver, "reason": reason, "rule": printable(waiver["rule"]),
            "over": now >= waiver["expires"]}  # fmt: skip


def _promotion(status: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> Document:
    """Whether a stage that decides may come next, and why not."""
    closed = [gate["sentence"] for gate in status.get("gates", ()) if not gate["passed"]]
    if comparison is None:
        return {"allowed": False, "why": ["nothing is compared now"]}
    if comparison["mismatches"] and not any("mismatch" in sentence for sentence in closed):
        count = comparison["mismatches"]
        packets = "1 packet was" if count == 1 else f"{count:,} packets were"
        closed.append(f"{packets} judged unlike their prediction")
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
    cover = document["coverage"]
    lines = [
        f"stage {document['stage']} since {moment(document['since'])}, {span(document['seconds'])}",
        f"{document['packets'] or 0:,} packets looked at;"
        f" {cover['exercised']:,} of {cover['deciding']:,} rules that can decide were exercised",
    ]
    compared = document["comparison"]
    if compared is None:
        return [*lines, "nothing is compared now"]
    judged = compared["matches"] + compared["mismatches"]
    lines.append(
        f"{compared['compared']:,} predictions ({compared['share']:.0%} of the packets) compared by"
        f" {compared['mechanism']}: {judged:,} judged, {compared['matches']:,} as predicted,"
        f" {compared['mismatches']:,} otherwise"
    )
    return lines


def verdict(document: Document) -> str:
    """Whether the next stage may come."""
    promotion, cover = document["promotion"], document["coverage"]
    if promotion["allowed"]:
        return (
            f"nothing stands against the next stage; {cover['exercised']:,} of"
            f" {cover['deciding']:,} rules were exercised"
        )
    return f"not to be promoted: {'; '.join(promotion['why'])}"


def moment(at: float) -> str:
    """Wall-clock seconds as local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def span(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`: the two largest units."""
    whole = int(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[tuple[int, str]] = []
    for name, size in units:
        count, whole = divmod(whole, size)
        if count or parts or name == "s":
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count or len(parts) == 1)


def causes(document: Document) -> Sequence[tuple[str, str, int]]:
    """(what, why, packets) of all that says nothing of a prediction, or had none; largest first."""
    compared = document["comparison"] or {}
    found = [
        (title, each["why"], each["packets"])
        for kind, title in (("unseen", "unseen"), ("not_comparable", "not comparable"))
        for each in compared.get(kind, {}).values()
    ]
    found += [("punted", each["why"], each["packets"]) for each in document["punted"].values()]
    return sorted((each for each in found if each[2]), key=lambda each: -each[2])


def busiest(rules: Sequence[Document], most: int) -> Sequence[Document]:
    """Those with mismatches, then those that saw most packets; none that saw nothing."""
    ranked = sorted(rules, key=lambda rule: (-rule["mismatches"], -rule["seen"]))
    return [rule for rule in ranked if rule["seen"]][:most]


def unexercised(document: Document) -> Sequence[Document]:
    """Rules that can decide and have not, in iptables' order."""
    rules = document["coverage"]["rules"]
    return [rule for rule in rules if rule["decides"] and not rule["seen"]]


def counted(document: Document, most: int) -> Sequence[Document]:
    """Rules by both counts: those out of bounds first, then the busiest; with their `name`."""
    counters = document["counters"]
    rules = [
        {**rule, "name": rule_name({**chain, **rule})}
        for chain in (() if counters is None else counters["chains"])
        for rule in chain["rules"]
        if rule["iptables"] or not rule["holds"]
    ]
    return sorted(rules, key=lambda rule: (rule["holds"], -rule["iptables"]))[:most]


def way(sample: Document) -> str:
    """The interfaces of a mismatch."""
    return f"{sample['in']} to {sample['out']}" if sample["out"] else str(sample["in"])
