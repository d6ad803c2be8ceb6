"""Reports as one self-contained HTML file: no network, no script, light and dark, for print.

The Content-Security-Policy of the page allows its own style, named by hash, and nothing else.
Everything that others wrote is escaped by Jinja2.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bpfilter.report.difference import (
    ANOTHER_WAY,
    MOST_CHANGES,
    REACH_UNDECIDED,
    REST,
    further,
    touched,
)
from bpfilter.report.document import FATES, Document, redundant_rules, states_told_apart
from bpfilter.report.grouping import largest, packets_of, sentence, told
from bpfilter.report.pictures import Curve, bar, chain_graph, curves, growth, heat
from bpfilter.report.shadow import causes, counted, head, moment, span, unexercised, verdict, way
from bpfilter.report.text import MEANING

_MOST_COUNTED = 500


def plan_page(document: Document) -> str:
    """The plan report of `plan_document`."""
    return _render(
        "plan.html.j2",
        document=document,
        chains=_by_chain(document["rule_fates"]),
        most=max((rule["packets"] or 0 for rule in document["rule_fates"]), default=0),
        meaning=MEANING,
        fates=FATES,
        redundant=redundant_rules(document),
    )


def difference_page(document: Document) -> str:
    """The semantic diff of `difference_document`."""
    return _render(
        "difference.html.j2",
        document=document,
        touched=touched,
        rest=REST,
        another_way=ANOTHER_WAY,
        told=told,
        sentence=sentence,
        largest=largest,
        packets_of=packets_of,
        reach_undecided=REACH_UNDECIDED,
        most_changes=MOST_CHANGES,
        further=further,
    )


def shadow_page(document: Document) -> str:
    """The shadow report of `shadow_document`."""
    rules = document["coverage"]["rules"]
    return _render(
        "shadow.html.j2",
        document=document,
        sentences=head(document),
        verdict=verdict(document),
        causes=causes(document),
        counted=counted(document, _MOST_COUNTED),
        unexercised=unexercised(document),
        ends=_ends(document),
        chains=_by_chain(rules),
        most=max((rule["seen"] for rule in rules), default=0),
    )


def _ends(document: Document) -> dict[str, int]:
    """How predictions ended, as the parts of a bar."""
    compared = document["comparison"] or {}
    sums = {
        kind: sum(each["packets"] for each in compared.get(kind, {}).values())
        for kind in ("not_comparable", "unseen")
    }
    return {
        "match": compared.get("matches", 0),
        "mismatch": compared.get("mismatches", 0),
        "incomparable": sums["not_comparable"],
        "unseen": sums["unseen"],
    }


def _by_chain(rules: Sequence[Document]) -> dict[tuple[str, str], list[Document]]:
    grouped: dict[tuple[str, str], list[Document]] = {}
    for rule in rules:
        grouped.setdefault((rule["table"], rule["chain"]), []).append(rule)
    return grouped


def _curve_lines(cost: Document) -> list[Curve]:
    return [
        Curve(path["name"], list(zip(cost["rules"], path["ns"], strict=True)))
        for path in cost["paths"]
    ]


def _render(template: str, **values: Any) -> str:
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment().get_template(template).render(style=style, policy=policy, **values)


def style_sheet() -> str:
    """The style that all pages share."""
    return (files("bpfilter.report") / "templates" / "style.css").read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Jinja2 with escaping always on and the pictures at hand."""
    made = Environment(
        loader=PackageLoader("bpfilter.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(bar=bar, chain_graph=chain_graph, curves=curves, heat=heat)
    made.globals.update(states_told_apart=states_told_apart)
    made.globals.update(curve_lines=_curve_lines, growth=growth, moment=moment, span=span, way=way)
    made.filters["number"] = lambda value: "?" if value is None else f"{value:,}"
    made.filters["percent"] = lambda part, whole: f"{part / whole if whole else 0:.1%}"
    return made
