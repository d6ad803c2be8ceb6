"""The parts of a plan report that are about the host and its packets, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfilter.report.document import Document

_LEVELS = {"good": "green", "note": "yellow", "problem": "bold red"}


def render_host(host: Document, console: Console, *, verbose: bool = False) -> None:
    """What stands for and against it, where programs would go; `verbose`: the dispatch as well."""
    console.print(Text(f"On this host (Linux {host['kernel']})", style="italic"))
    table = Table.grid(padding=(0, 2))
    for found in host["findings"]:
        level = found["level"]
        if level != "good" or verbose:
            words = Text(f"{found['subject']}: ", "bold").append(found["what"], "not bold")
            if found["hint"]:
                words.append(f"\n→ {found['hint']}", "not bold dim")
            table.add_row(Text(level, _LEVELS[level]), words)
    good = sum(found["level"] == "good" for found in host["findings"])
    if good and not verbose:
        table.add_row(Text("good", _LEVELS["good"]), f"{good} more, which --verbose lists")
    console.print(table)
    console.print()
    table = Table("hook", "what for", box=None, pad_edge=False)
    table.add_column("in stages", no_wrap=True)
    for hook in host["hooks"]:
        table.add_row(Text(hook["where"]), hook["what"], hook["stages"])
    console.print(table)
    console.print()
    table = Table("interface", "kind", "what programs do there", box=None, pad_edge=False)
    for each in host["interfaces"]:
        table.add_row(Text(each["name"]), Text(each["kind"]), Text(each["why"]))
    console.print(table)
    console.print()
    missing = [each["name"] for each in host["features"] if not each["there"]]
    if missing:
        console.print(Text(f"this kernel lacks {', '.join(missing)}", "yellow"))
    for sentence in host["notices"]:
        console.print(Text(f"you will notice: {sentence}"))
    console.print(Text(_dispatch(host)))
    if verbose and host["dispatch"]:
        console.print(Text(host["dispatch"].rstrip()))


def render_cost(cost: Document, console: Console) -> None:
    """What packets cost, over the number of rules."""
    console.print(Text(f"What a packet costs in {cost['chain']}", style="italic"))
    table = Table("path", box=None, pad_edge=False)
    for rules in cost["rules"]:
        table.add_column(f"{rules:,} rules", justify="right")
    own = cost["own"]
    if own is not None:
        table.add_column("own traffic", justify="right")
    last = [] if own is None else [cost["paths"][0]["ns"][-1], own["iptables"], own["program"]]
    for at, path in enumerate(cost["paths"]):
        table.add_row(path["name"], *(f"{ns:,} ns" for ns in [*path["ns"], *last[at : at + 1]]))
    table.add_row("the program alone", *(f"{ns:,} ns" for ns in cost["program"]))
    console.print(table)
    console.print(Text(cost["sentence"], "green" if cost["worth"] else "yellow"))


def _dispatch(host: Document) -> str:
    if host["mark"] is None:
        return "no bits of the mark are free: it can be shadowed, not enforced"
    rules = sum(line.startswith(("-A", "-I")) for line in (host["dispatch"] or "").splitlines())
    return f"mark field {host['mark']}; the dispatch would have {rules} rules (--verbose)"
