"""Changes that one edited rule makes to packets of many others, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bpfilter.report.document import Document

_FEW = 3
"""Changes of one kind that are told one by one."""
SHOWN = 3
"""Changes of a group that a report for people shows."""

_Key = tuple[str, str, str, str, int]


def groups(changes: Sequence[Document], rules: Mapping[str, Any]) -> list[Document]:
    """Changes by the edited rule that decides their packets on one side, if they are many.

    `rules`: the edits of the chain. `edit`: what happened to the rule (`added`, `moved`: it decides
    now; `removed`: it did). `changes`: indices of `changes`, the largest first. `traffic`: at most,
    from the counters of all the rules of before together.
    """
    edits = {
        (side, rule["chain"], rule["number"]): kind
        for kind, side in (("moved", "new"), ("added", "new"), ("removed", "old"))
        for rule in rules[kind]
    }
    found: dict[_Key, list[int]] = {}
    for index, change in enumerate(changes):
        for side in ("new", "old"):
            rule = change[side]["rule"]
            if (side, rule["chain"], rule["number"]) in edits:
                verdicts = change["old"]["verdict"], change["new"]["verdict"]
                found.setdefault((*verdicts, side, rule["chain"], rule["number"]), []).append(index)
                break
    return [
        _group(changes, members, side, edits[side, chain, number])
        for (_, _, side, chain, number), members in found.items()
        if len(members) > _FEW
    ]


def _group(changes: Sequence[Document], members: list[int], side: str, edit: str) -> Document:
    chosen = [changes[index] for index in members]
    first = chosen[0]
    others = {_number(each["old" if side == "new" else "new"]["rule"]) for each in chosen}
    return {
        "old": first["old"]["verdict"],
        "new": first["new"]["verdict"],
        "verdict_changes": first["verdict_changes"],
        "side": side,
        "edit": edit,
        "rule": first[side]["rule"],
        "rules": len(others),
        "share_of_headers": sum(each["share_of_headers"] for each in chosen),
        "traffic": _traffic(chosen),
        "changes": members,
    }


def _traffic(changes: Sequence[Document]) -> Document | None:
    by_rule = {_number(each["old"]["rule"]): each["traffic"] for each in changes}
    known = [traffic for traffic in by_rule.values() if traffic is not None]
    if not known or len(known) < len(by_rule):
        return None
    return {"most": sum(each["most"] for each in known), "of": known[0]["of"]}


def _number(rule: Document) -> tuple[str, int]:
    return rule["chain"], rule["number"]


def told(chain: Document) -> Iterator[tuple[str, Document]]:
    """What a report for people tells of a chain, in order: `group` or `change`, and that."""
    grouped = {index for group in chain["groups"] for index in group["changes"]}
    alone = [each for index, each in enumerate(chain["changes"]) if index not in grouped]
    both = [("group", each) for each in chain["groups"]] + [("change", each) for each in alone]
    yield from sorted(
        both, key=lambda each: (not each[1]["verdict_changes"], -each[1]["share_of_headers"])
    )


def sentence(group: Document) -> str:
    """What a group is, for its heading."""
    count = f"{group['rules']} {'rules' if group['rules'] > 1 else 'rule'}"
    if group["side"] == "new":
        how = "moved" if group["edit"] == "moved" else "new"
        return f"a {how} rule now decides packets that {count} decided"
    return f"{count} now decide{'' if group['rules'] > 1 else 's'} packets of a rule that is gone"


def largest(group: Document, chain: Document) -> tuple[Sequence[Document], str]:
    """The largest changes of a group, and a sentence on the others, if there are any."""
    chosen = [chain["changes"][index] for index in group["changes"]]
    more = len(chosen) - SHOWN
    return chosen[:SHOWN], f"and {more} more like these (JSON has all)" if more > 0 else ""


def packets_of(change: Document, rest: str) -> Sequence[str]:
    """A change's packets in a line or a few."""
    within = change["within"]
    return change["packets"] if within is None else [f"{within}, {rest}"]
