"""The shadow report as Markdown, for pull requests and tickets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bpfilter.report.document import Document
from bpfilter.report.markdown import table
from bpfilter.report.safe import markdown, markdown_code
from bpfilter.report.shadow import (
    busiest,
    causes,
    counted,
    head,
    moment,
    rule_name,
    unexercised,
    verdict,
    way,
)

_MOST = 50
_COLUMNS = ("seen", "matches", "mismatches", "open")


def shadow_markdown(document: Document) -> str:
    """The report of `shadow_document`."""
    return "\n".join(_shadow(document)) + "\n"


def _shadow(document: Document) -> Iterable[str]:
    yield "# Shadow report"
    yield ""
    yield f"**{markdown(verdict(document))}**"
    yield ""
    for line in head(document):
        yield f"- {markdown(line)}"
    yield from _gates(document)
    for sample in (document["comparison"] or {}).get("samples", ()):
        yield from _sample(sample)
    if found := causes(document):
        yield "\n## Not judged\n"
        rows = ((title, markdown(why), f"{packets:,}") for title, why, packets in found)
        yield from table(("what", "why", ">packets"), rows)
    yield "\n## Rules, busiest first\n"
    yield from table(
        ("rule", *(f">{name}" for name in _COLUMNS), "text"),
        (
            (
                markdown_code(rule_name(rule)),
                *(f"{rule[name]:,}" for name in _COLUMNS),
                markdown_code(rule["text"]),
            )
            for rule in busiest(document["coverage"]["rules"], _MOST)
        ),
    )
    yield from _without(unexercised(document))
    yield from _counters(counted(document, _MOST))


def _gates(document: Document) -> Iterable[str]:
    if document["gates"]:
        yield "\n## Gates\n"
        yield from table(
            ("gate", "state", "what there is"),
            (
                (
                    markdown_code(gate["name"]),
                    "open" if gate["passed"] else "**closed**",
                    markdown(gate["sentence"]),
                )
                for gate in document["gates"]
            ),
        )
    if document["waivers"]:
        yield "\n## Waivers\n"
        yield from table(
            ("rule", "predicted", "was", "until", "reason"),
            (
                (
                    markdown_code(waiver["rule"]),
                    waiver["predicted"],
                    waiver["actual"],
                    moment(waiver["expires"]) + (", over" if waiver["over"] else ""),
                    markdown(waiver["reason"]),
                )
                for waiver in document["waivers"]
            ),
        )


def _sample(sample: Document) -> Iterable[str]:
    yield f"\n## Mismatch {markdown(sample['id'])}\n"
    where = f"{markdown(sample['state'])} on {markdown_code(way(sample))}"
    yield f"{markdown_code(sample['packet'])}, {where}\n"
    for who, said, path in (
        ("the program", sample["predicted"], sample["program_path"]),
        ("iptables", sample["actual"], sample["iptables_path"]),
    ):
        yield f"- {who}: **{said}**"
        yield from (f"  - {markdown_code(step)}" for step in path)


def _without(rules: Sequence[Document]) -> Iterable[str]:
    if not rules:
        return
    yield "\n## Rules that saw no packet yet\n"
    yield from table(
        ("rule", "text"),
        ((markdown_code(rule_name(r)), markdown_code(r["text"])) for r in rules[:_MOST]),
    )
    if len(rules) > _MOST:
        yield f"\nand {len(rules) - _MOST:,} more"


def _counters(rows: Sequence[Document]) -> Iterable[str]:
    if not rows:
        return
    yield "\n## Counters of rules\n"
    yield from table(
        ("rule", ">at least", ">at most", ">iptables counted", ""),
        (
            (
                markdown_code(row["name"]),
                *(f"{row[name]:,}" for name in ("least", "most", "iptables")),
                "fits" if row["holds"] else "**does not fit**",
            )
            for row in rows
        ),
    )
