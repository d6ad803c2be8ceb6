"""What packets cost, measured by the lab, as the `cost` of a plan document: with a judgement."""

from __future__ import annotations

from bpfilter.lab.cost import Cost, Costs
from bpfilter.report.document import Document

_NOTICEABLE = 0.9
"""Of iptables' time: what takes more than this is not worth the change."""

PATHS = ("no rules", "iptables", "BPF + iptables")


def cost_document(costs: Costs) -> Document:
    """`rules` and for each of the `paths` the ns at these numbers of rules; `own`: see `Costs`.

    `program`: ns of the program alone, at the same numbers.

    `worth`: whether a packet of the host's own traffic, or one that is about any rule alike, takes
    noticeably less.
    """
    rules = sorted(costs.curve)
    found = [costs.curve[count] for count in rules]
    lines = ([costs.floor] * len(rules), [c.iptables for c in found], [c.program for c in found])
    judged = costs.own or found[-1]
    return {
        "chain": costs.chain,
        "backend": str(costs.backend),
        "rules": rules,
        "paths": [
            {"name": name, "ns": [round(ns) for ns in line]}
            for name, line in zip(PATHS, lines, strict=True)
        ],
        "program": [round(c.classify) for c in found],
        "own": None if costs.own is None else _own(costs.own, costs.counted),
        "worth": _worth(judged),
        "sentence": " ".join(_sentences(costs, found[-1])),
    }


def _own(own: Cost, counted: int) -> Document:
    return {"counted": counted, "iptables": round(own.iptables), "program": round(own.program)}


def _worth(cost: Cost) -> bool:
    return cost.program <= _NOTICEABLE * cost.iptables


def _sentences(costs: Costs, spread: Cost) -> list[str]:
    if costs.own is not None:
        whose, judged = "With traffic as the rules' counters tell it", costs.own
    else:
        whose, judged = "If every rule were met alike", spread
    compared = (
        f"a packet takes {judged.iptables:,.0f} ns through iptables-{costs.backend} here and"
        f" {judged.program:,.0f} ns with BPF before it ({costs.floor:,.0f} ns of both are the way"
        f" to {costs.chain} itself and the sender)."
    )
    said = [f"{whose}, {compared}"]
    if _worth(judged):
        said.append(f"That is {1 - judged.program / judged.iptables:.0%} less.")
    else:
        said.append(
            f"Not worth it for speed: iptables needs {judged.iptables - costs.floor:,.0f} ns for"
            f" these rules, the program alone {judged.classify:,.0f}."
        )
        if costs.own is not None and _worth(spread):
            said.append(
                "It would be if traffic met all rules alike:"
                f" {spread.iptables:,.0f} against {spread.program:,.0f} ns."
            )
        said.append("Early dropping may still help against floods.")
    if costs.own is None:
        said.append("The rules have counted too few packets to say what this host's traffic meets.")
    return said
