"""Reports as Markdown, for pull requests: GitHub's tables, everything foreign escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bpfilter.report.difference import (
    ANOTHER_WAY,
    MOST_CHANGES,
    REACH_UNDECIDED,
    REST,
    further,
    touched,
)
from bpfilter.report.document import (
    FATES,
    Document,
    proof_sentence,
    redundant_rules,
    states_told_apart,
)
from bpfilter.report.grouping import largest, packets_of, sentence, told
from bpfilter.report.safe import markdown, markdown_code
from bpfilter.report.text import MEANING

_MOST = 50


def plan_markdown(document: Document) -> str:
    """The plan report of `plan_document`."""
    return "\n".join(_plan(document)) + "\n"


def difference_markdown(document: Document) -> str:
    """The semantic diff of `difference_document`."""
    return "\n".join(_difference(document)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """A table whose cells are Markdown already; a `>` before a heading aligns right."""
    yield f"| {' | '.join(name.lstrip('>') for name in head)} |"
    yield f"| {' | '.join('---:' if name.startswith('>') else '---' for name in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plan(document: Document) -> Iterable[str]:
    yield f"# Plan of {markdown_code(document['source'])}"
    yield ""
    backend = document["backend"] or "backend not stated"
    yield (
        f"{document['family']}, {backend}, {document['rules']} rules, "
        f"digest `{document['digest'][:12]}`"
    )
    yield ""
    yield f"**{proof_sentence(document)}**"
    yield ""
    for warning in document["warnings"]:
        yield f"> {markdown(warning)}\n"
    total = max(document["rules"], 1)
    yield from table(
        ("fate", ">rules", ">share", "meaning"),
        (
            (fate, f"{count:,}", f"{count / total:.1%}", MEANING[fate])
            for fate in FATES
            for count in [document["fates"][fate]]
        ),
    )
    yield ""
    yield from table(
        ("chain", "policy", ">entries", ">tables", "states told apart"),
        (
            (
                f"`{chain['table']} {chain['chain']}`",
                chain["policy"],
                f"{chain['entries']:,}",
                f"{chain['tables_bytes'] / 1024:.0f} KiB",
                markdown(states_told_apart(chain)),
            )
            for chain in document["chains"]
        ),
    )
    yield from _attention(document)
    yield from _redundant(redundant_rules(document))
    yield from _host(document)


def _attention(document: Document) -> Iterable[str]:
    odd = [rule for rule in document["rule_fates"] if rule["fate"] in ("punt", "unreachable")]
    if not odd:
        return
    yield "\n## Rules to look at\n"
    yield from table(
        ("rule", "fate", "text", "reason"),
        (
            (
                markdown_code(f"{rule['table']} {rule['chain']} {rule['number']}"),
                rule["fate"],
                markdown_code(rule["text"]),
                markdown(rule["reason"]),
            )
            for rule in odd[:_MOST]
        ),
    )
    if len(odd) > _MOST:
        yield f"\nand {len(odd) - _MOST} more"


def _redundant(rules: Sequence[Document]) -> Iterable[str]:
    if not rules:
        return
    yield "\n## Redundant rules\n"
    yield "They could go, all at once: a later rule decides the same packets alike.\n"
    yield from table(
        ("rule", "text", "decided alike by"),
        (
            (
                markdown_code(f"{rule['table']} {rule['chain']} {rule['number']}"),
                markdown_code(rule["text"]),
                markdown(_place(rule["redundant_with"])),
            )
            for rule in rules[:_MOST]
        ),
    )
    if len(rules) > _MOST:
        yield f"\nand {len(rules) - _MOST:,} more"


def _host(document: Document) -> Iterable[str]:
    cost, host = document["cost"], document["host"]
    if cost is not None:
        yield "\n## What a packet costs\n"
        yield markdown(cost["sentence"])
        yield ""
        own = cost["own"]
        extra = [] if own is None else [">own traffic"]
        last = [] if own is None else [cost["paths"][0]["ns"][-1], own["iptables"], own["program"]]
        yield from table(
            ("path", *(f">{rules:,} rules" for rules in cost["rules"]), *extra),
            (
                (
                    markdown(path["name"]),
                    *(f"{ns:,} ns" for ns in [*path["ns"], *last[at : at + 1]]),
                )
                for at, path in enumerate(cost["paths"])
            ),
        )
    if host is not None:
        yield "\n## On this host\n"
        yield from table(
            ("level", "subject", "found", "what to do"),
            (
                tuple(markdown(finding[key]) for key in ("level", "subject", "what", "hint"))
                for finding in host["findings"]
            ),
        )
        yield "\n### Hooks\n"
        yield from table(
            ("where", "what for", "in stages"),
            (
                tuple(markdown(hook[key]) for key in ("where", "what", "stages"))
                for hook in host["hooks"]
            ),
        )
        yield ""
        yield from table(
            ("interface", "kind", "what programs do there"),
            (
                (markdown_code(each["name"]), markdown(each["kind"]), markdown(each["why"]))
                for each in host["interfaces"]
            ),
        )
        missing = [each["name"] for each in host["features"] if not each["there"]]
        yield f"\nKernel features: {markdown(', '.join(missing) or 'none')} missing"
        for sentence in host["notices"]:
            yield f"\n> {markdown(sentence)}"
        if host["dispatch"]:
            yield f"\nDispatch, mark field `{host['mark']}`:\n"
            yield from (f"    {line}" for line in host["dispatch"].splitlines())


def _difference(document: Document) -> Iterable[str]:
    old, new = document["old"]["source"], document["new"]["source"]
    yield f"# {markdown_code(old)} → {markdown_code(new)}"
    yield ""
    if document["same"]:
        yield "**No packet changes verdict:** proven for every header and connection state."
    else:
        count = document["changed_verdicts"]
        yield f"**{count} change{'' if count == 1 else 's'} of verdict** ({document['family']})"
    for chain in document["chains"]:
        edits = chain["rules"]
        edited = any(edits[kind] for kind in ("added", "removed", "moved", "policies"))
        if edited or not chain["same"]:
            yield f"\n## {chain['table']} {chain['chain']}"
            yield from _chain_difference(chain)


def _chain_difference(chain: Document) -> Iterable[str]:
    for told_as, each in list(told(chain))[:MOST_CHANGES]:
        yield from _group(each, chain) if told_as == "group" else _change(each)
    rules = [
        (sign, rule)
        for kind, sign in (("added", "+"), ("removed", "-"), ("moved", "~"))
        for rule in chain["rules"][kind]
    ]
    if rules:
        yield ""
        yield from table(
            ("edit", "rule", "text"),
            (
                (sign, markdown(_place(rule)), markdown_code(rule["text"]))
                for sign, rule in rules[:_MOST]
            ),
        )
    for line in further(chain):
        yield f"\n{markdown(line[:1].upper() + line[1:])}."
    for rule in chain["newly_unreachable"]:
        place = markdown(_place(rule))
        yield f"\nNo packet reaches {place} any more: {markdown_code(rule['text'])}"
    if chain["reach_undecided"]:
        yield f"\n{REACH_UNDECIDED.capitalize()}."
    for rule in chain["undecided"]:
        yield f"\nNot followed, it interferes with too many rules: {markdown_code(rule['text'])}"
    if chain["same"]:
        yield "\nWithout effect on any packet."


def _heading(old: str, new: str, of_verdict: bool) -> str:
    by = "" if of_verdict else f", {ANOTHER_WAY}"
    return f"\n### {markdown(old)} → {markdown(new)}{by}\n"


def _change(change: Document) -> Iterable[str]:
    old, new = change["old"], change["new"]
    yield _heading(old["verdict"], new["verdict"], change["verdict_changes"])
    yield from (f"- {markdown(line)}" for line in packets_of(change, REST))
    yield f"\nFor example {markdown(change['example'])}\n"
    if (traffic := touched(change)) is not None:
        yield f"Traffic: {markdown(traffic)}\n"
    yield from table(
        ("", "rule", "text"),
        (
            (name, markdown(_place(side["rule"])), markdown_code(side["rule"]["text"]))
            for name, side in (("was", old), ("is now", new))
        ),
    )


def _group(group: Document, chain: Document) -> Iterable[str]:
    yield _heading(group["old"], group["new"], group["verdict_changes"])
    told_of = sentence(group)
    rule = f"{markdown(_place(group['rule']))} {markdown_code(group['rule']['text'])}"
    yield f"{told_of[:1].upper()}{told_of[1:]}: {rule}\n"
    if (traffic := touched(group)) is not None:
        yield f"Traffic: {markdown(traffic)}\n"
    other, its = ("old", "was") if group["side"] == "new" else ("new", "is now")
    chosen, more = largest(group, chain)
    yield from table(
        ("packets", its, "text", "for example"),
        (
            (
                "; ".join(markdown(line) for line in packets_of(change, REST)),
                markdown(_place(change[other]["rule"])),
                markdown_code(change[other]["rule"]["text"]),
                markdown(change["example"]),
            )
            for change in chosen
        ),
    )
    if more:
        yield f"\n{more[:1].upper()}{more[1:]}."


def _place(rule: Document) -> str:
    return f"{rule['chain']} {rule['number'] or 'policy'}"
