"""The semantic diff as one JSON-ready document, and its form for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from rich.console import Console
from rich.text import Text

from bpfilter.analysis.difference import Change, HookDifference, Side
from bpfilter.compiler.ir import Space
from bpfilter.report.document import Document, reference
from bpfilter.report.examples import packet_line
from bpfilter.report.grouping import groups, largest, packets_of, sentence, told
from bpfilter.report.safe import printable
from bpfilter.report.terminal import indented
from bpfilter.report.words import box_words, field_words, state_words
from bpfilter.ruleset.fields import Family, Field, Intervals
from bpfilter.ruleset.model import Rule, RuleRef, Ruleset
from bpfilter.ruleset.writer import rule_words

SCHEMA_VERSION = 1
_PLEASING = {
    family: {
        Field.SOURCE: int(ip_address(source)),
        Field.DESTINATION: int(ip_address(destination)),
        Field.PROTOCOL: 17,
        Field.SOURCE_PORT: 40_000,
        Field.DESTINATION_PORT: 9,
    }
    for family, source, destination in (
        (Family.IPV4, "192.0.2.1", "198.51.100.1"),
        (Family.IPV6, "2001:db8::1", "2001:db8::2"),
    )
}
_RARE = (Field.PACKET_TYPE, Field.SOURCE_TYPE, Field.DESTINATION_TYPE, Field.MAC_SOURCE)
_COLOURS = {"ACCEPT": "green", "DROP": "red"}


def difference_document(
    old: Ruleset,
    new: Ruleset,
    found: Sequence[HookDifference],
    judged: Mapping[tuple[str, str], int | None] | None = None,
) -> Document:
    """Everything a semantic diff says. `same`: proven that no packet is treated differently.

    `judged`: packets that came to each built-in chain so far, where the old rules have counters;
    None if that is not known.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "family": str(old.family),
        "old": {"source": printable(old.source), "digest": old.digest},
        "new": {"source": printable(new.source), "digest": new.digest},
        "same": all(each.same for each in found),
        "complete": all(each.complete for each in found),
        "changed_verdicts": sum(change.of_verdict for each in found for change in each.changes),
        "chains": [_chain(old, new, each, (judged or {}).get(each.hook, 0)) for each in found],
    }


def _chain(old: Ruleset, new: Ruleset, found: HookDifference, judged: int | None) -> Document:
    edits = found.edits
    changes = [_change(old, new, each, found, judged) for each in found.changes]
    rules = {
        "added": [_rule(rule) for rule in edits.added],
        "removed": [_rule(rule) for rule in edits.removed],
        "moved": [_rule(rule) for rule in edits.moved],
        "policies": list(edits.policies),
    }
    return {
        "table": found.hook[0],
        "chain": found.hook[1],
        "same": found.same,
        "complete": found.complete,
        "changes": changes,
        "groups": groups(changes, rules),
        "rules": rules,
        "newly_unreachable": [_named(new, ref) for ref in found.newly_unreachable],
        "dynamic": [printable(text.partition("\n")[0]) for text in found.dynamic],
        "undecided": [_rule(rule) for rule in found.undecided],
        "policy_undecided": found.policy_undecided,
        "reach_undecided": found.reach_undecided,
        "seconds": round(found.seconds, 4),
    }


def _change(
    old: Ruleset, new: Ruleset, change: Change, found: HookDifference, judged: int | None
) -> Document:
    packet, state = change.example
    before = _side(old, change.old)
    most = before["rule"]["packets"]
    return {
        "verdict_changes": change.of_verdict,
        "packets": [box_words(box, found.space) for box in change.boxes],
        "within": None if change.within is None else box_words(change.within, found.space),
        "more": change.more,
        "share_of_headers": change.share,
        "example": f"{_example(packet, found.space)}, state {state_words(state)}",
        "traffic": None if most is None or judged == 0 else {"most": most, "of": judged},
        "old": before,
        "new": _side(new, change.new),
    }


def _example(packet: Mapping[Field, int], space: Space) -> str:
    """The packet as a line, with pleasing values in the fields that may have any."""
    whole = {**dict.fromkeys(Field, 0), **_PLEASING[space.family], **packet}
    rest = [
        f"{name} {field_words(name, Intervals.single(whole[name]), space)}"
        for name in _RARE
        if packet.get(name)
    ]
    return printable(", ".join([packet_line(whole, space), *rest]))


def _side(ruleset: Ruleset, side: Side) -> Document:
    rule = _named(ruleset, side.rule)
    texts = [printable(text.partition("\n")[0]) for text in side.passed]
    # A target that ends the walk, as REJECT, is a dynamic rule and the deciding one.
    after = [text for text in texts if rule["text"] != f"-A {rule['chain']} {text}"]
    return {"verdict": side.verdict, "rule": rule, "after": after}


def _named(ruleset: Ruleset, ref: RuleRef) -> Document:
    table = ruleset.tables.get(ref.table)
    chain = None if table is None else table.chains.get(ref.chain)
    if ref.number == 0 or chain is None:
        policy = "ACCEPT" if chain is None else chain.policy
        counters = None if chain is None else chain.counters
        packets = None if counters is None else counters.packets
        return {**reference(ref), "text": f"-P {printable(ref.chain)} {policy}", "packets": packets}
    return _rule(chain.rules[ref.number - 1])


def _rule(rule: Rule) -> Document:
    return {
        **reference(rule.ref),
        "text": printable(f"-A {rule.chain} {rule_words(rule)}".rstrip()),
        "packets": None if rule.counters is None else rule.counters.packets,
    }


REST = "but for those of them that other rules decide"
"""Said of `within`, which holds packets of which nothing changes."""


REACH_UNDECIDED = "not all rules were looked at that may be unreachable now"
"""Said where time was over."""


MOST_CHANGES = 20
"""Changes and groups of them that a report for people shows, the largest."""


def further(chain: Document) -> Iterator[str]:
    """What is behind the first MOST_CHANGES, in a few sentences."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for kind, each in list(told(chain))[MOST_CHANGES:]:
        if kind == "group":
            kinds[each["old"], each["new"], _place(each["rule"])] += len(each["changes"])
        else:
            verdicts = each["old"]["verdict"], each["new"]["verdict"]
            kinds[(*verdicts, _place(each["new"]["rule"]))] += 1
    listed = kinds.most_common(MOST_CHANGES)
    for (old, new, rule), count in listed:
        yield f"and {count} more: {old} → {new}, now by {rule} (JSON has all)"
    if others := kinds.total() - sum(count for _, count in listed):
        yield f"and {others} others (JSON has all)"


def touched(change: Document) -> str | None:
    """How much traffic so far a change or group would have touched; None if nothing counted."""
    traffic = change["traffic"]
    if traffic is None:
        return None
    most, of = traffic["most"], traffic["of"]
    if not most:
        return "no packet so far: none has met the rule that decides these now"
    part = f"{most / of:.1%}" if of and most >= of / 1000 else "under 0.1%"
    share = "" if of is None else f" of {of:,} ({part})"
    return f"at most {most:,} packets{share} so far: those that the rule of before decided"


def render_difference(document: Document, console: Console) -> None:
    """Print the diff: what changes first, then what was edited without effect."""
    console.print(
        Text(f"{document['old']['source']} → {document['new']['source']}", style="bold"),
        Text(f" ({document['family']})"),
        sep="",
    )
    for chain in document["chains"]:
        _render_chain(chain, console)
    if document["same"]:
        console.print(
            Text("no packet changes verdict", style="bold green"),
            Text(": proven for every header and connection state of the chains above"),
            sep="",
        )


def _render_chain(chain: Document, console: Console) -> None:
    rules = chain["rules"]
    edited = sum(len(rules[kind]) for kind in ("added", "removed", "moved", "policies"))
    if not edited and chain["same"]:
        return
    console.print(Text(f"\n{chain['table']} {chain['chain']}", style="bold"))
    for told_as, each in list(told(chain))[:MOST_CHANGES]:
        if told_as == "group":
            _render_group(each, chain, console)
        else:
            _render_change(each, console)
    for line in further(chain):
        indented(console, line, 2, "bold")
    for kind, sign, style in (("added", "+", "green"), ("removed", "-", "red"), ("moved", "~", "")):
        for rule in rules[kind][:_MOST]:
            indented(console, f"{sign} {rule['number']:>5}  {rule['text']}", 2, style)
        if len(rules[kind]) > _MOST:
            indented(console, f"{sign}        and {len(rules[kind]) - _MOST} more {kind}", 2)
    for name in rules["policies"]:
        indented(console, f"± policy of {name}", 2)
    for rule in chain["newly_unreachable"]:
        indented(console, f"no packet reaches rule {_place(rule)} any more: {rule['text']}", 2)
    for text in chain["dynamic"][:_MOST]:
        indented(console, f"on the way, the same on both sides: {text}", 2, "dim")
    if chain["reach_undecided"]:
        indented(console, REACH_UNDECIDED, 2, "yellow")
    for rule in chain["undecided"]:
        indented(
            console, f"not followed, it interferes with too many rules: {rule['text']}", 2, "yellow"
        )
    if chain["policy_undecided"]:
        indented(console, "the packets that reach the policy were not followed", 2, "yellow")
    if chain["same"]:
        indented(console, "without effect on any packet", 2, "green")


_MOST = 20


ANOTHER_WAY = "by another way: dynamic rules see other packets"
"""Said of a change that leaves the verdict as it was."""


def _render_group(group: Document, chain: Document, console: Console) -> None:
    """The edited rule, then the largest of its changes with the rules on the other side."""
    _render_verdicts(group["old"], group["new"], group["verdict_changes"], console)
    indented(console, f"{sentence(group)}:", 4)
    words, other, its = ("now", "old", "was") if group["side"] == "new" else ("was", "new", "now")
    indented(console, f"{words}: {_place(group['rule'])}  {group['rule']['text']}", 4)
    if (traffic := touched(group)) is not None:
        indented(console, traffic, 4, "dim")
    chosen, more = largest(group, chain)
    for change in chosen:
        rule = change[other]["rule"]
        indented(console, f"- {its}: {_place(rule)}  {rule['text']}", 4)
        for line in packets_of(change, REST):
            indented(console, line, 6)
        indented(console, f"for example {change['example']}", 6, "dim")
    if more:
        indented(console, more, 4)


def _render_verdicts(old: str, new: str, of_verdict: bool, console: Console) -> None:
    head = Text("  ")
    head.append(old, _COLOURS.get(old, "cyan"))
    head.append(" → ")
    head.append(new, _COLOURS.get(new, "cyan"))
    if not of_verdict:
        head.append(f" {ANOTHER_WAY}")
    console.print(head)


def _render_change(change: Document, console: Console) -> None:
    old, new = change["old"], change["new"]
    _render_verdicts(old["verdict"], new["verdict"], change["verdict_changes"], console)
    if change["within"] is not None:
        indented(console, change["within"], 4)
        indented(console, REST, 4, "dim")
    else:
        for words in change["packets"]:
            indented(console, words, 4)
    indented(console, f"for example {change['example']}", 4, "dim")
    if (traffic := touched(change)) is not None:
        indented(console, traffic, 4, "dim")
    both = [text for text in old["after"] if text in new["after"]]
    for name, side in (("was", old), ("now", new)):
        indented(console, f"{name}: {_place(side['rule'])}  {side['rule']['text']}", 4)
        for text in side["after"]:
            if text not in both:
                indented(console, f"after {text}", 9, "dim")
    for text in both:
        indented(console, f"before and now after {text}", 4, "dim")


def _place(rule: Any) -> str:
    return f"{rule['chain']} {rule['number'] or 'policy'}"
