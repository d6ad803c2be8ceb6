"""One packet's explanation as a JSON-ready document, and its form for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bpfilter.analysis.describe import describe_value
from bpfilter.analysis.explain import Explanation, Lookup, Missed, StatePath, Step
from bpfilter.compiler.ir import Action, Entry, FlatChain, OpKind
from bpfilter.report.document import (
    Document,
    function_document,
    reference,
    state_names,
    walk_document,
)
from bpfilter.report.safe import printable
from bpfilter.ruleset.fields import Field, State
from bpfilter.ruleset.model import RuleRef, Ruleset
from bpfilter.ruleset.writer import rule_words

SCHEMA_VERSION = 1
_SIDE_BY_SIDE = 100
_COLOURS = {"ACCEPT": "green", "DROP": "red", "PUNT": "yellow"}
_ALWAYS = (Field.PROTOCOL, Field.SOURCE, Field.SOURCE_PORT, Field.DESTINATION)


def explanation_document(found: Explanation) -> Document:
    """Everything that is known of the packet's two ways; `agree` unless bpfilter is wrong."""
    ruleset, flat = found.ruleset, found.chain.flat
    return {
        "schema_version": SCHEMA_VERSION,
        "source": printable(ruleset.source),
        "digest": ruleset.digest,
        "family": str(ruleset.family),
        "table": flat.table,
        "chain": flat.chain,
        "packet": _packet(found),
        "agree": found.agree,
        "paths": [_path(found, path) for path in found.paths],
        "lookups": [_lookup(found, lookup) for lookup in found.lookups],
        "function": {"known": found.known, **function_document(flat, found.function)},
        "notes": _notes(found),
    }


def _packet(found: Explanation) -> Document:
    asked = found.question
    names = {"in-interface": asked.in_interface, "out-interface": asked.out_interface}
    said: Document = {k: printable(name) for k, name in names.items() if name}
    for field, value in found.packet.items():
        interface = field in (Field.IN_INTERFACE, Field.OUT_INTERFACE)
        if interface or field in (Field.MASKS, Field.STATE) or not (value or field in _ALWAYS):
            continue
        said[str(field)] = describe_value(field, value, found.chain.flat.space)
    return said


def _path(found: Explanation, path: StatePath) -> Document:
    flat = found.chain.flat
    rules = [{**reference(i.rule), "verdicts": sorted(i.verdicts)} for i in path.items]
    return {
        "states": state_names(path.states),
        "iptables": {
            "steps": [_step(found, step) for step in path.steps],
            "dynamic_rules": rules,
            "verdict": None if path.verdict is None else str(path.verdict),
        },
        "program": {
            "entries": [_entry(flat, index) for index in path.entries],
            **walk_document(flat, path.walk),
        },
        "agree": path.agree,
    }


def _step(found: Explanation, step: Step) -> Document:
    return {
        **reference(step.rule),
        "text": rule_text(found.ruleset, step.rule),
        "effect": _effect(found, step.rule),
        "passed_over": [_missed(found.ruleset, missed) for missed in step.missed],
    }


def _missed(ruleset: Ruleset, missed: Missed) -> Document:
    because = "" if missed.match is None else printable(" ".join(missed.match.words))
    return {**reference(missed.rule), "text": rule_text(ruleset, missed.rule), "because": because}


def rule_text(ruleset: Ruleset, ref: RuleRef) -> str:
    """The rule's words as iptables-save writes them; a policy as `-P CHAIN VERDICT`."""
    if ref.number == 0:
        policy = ruleset.tables[ref.table].chains[ref.chain].policy
        return printable(f"-P {ref.chain} {policy}")
    return printable(f"-A {ref.chain} {rule_words(ruleset.rule(ref))}".rstrip())


def _effect(found: Explanation, ref: RuleRef) -> str:
    """What a matched rule does, in words."""
    if ref.number == 0:
        return str(found.ruleset.tables[ref.table].chains[ref.chain].policy)
    treatment = found.chain.treatments[ref]
    if treatment.action is Action.ITEM and treatment.item is not None:
        ends = "/".join(sorted(treatment.item.verdicts))
        may = f", may end in {ends}" if ends else ""
        return f"iptables evaluates it ({printable(treatment.item.reason)}){may}"
    return {
        Action.ACCEPT: "ACCEPT",
        Action.DROP: "DROP",
        Action.RETURN: "goes back to the caller",
        Action.JUMP: f"goes into {printable(treatment.target or '')}",
        Action.GOTO: f"goes on in {printable(treatment.target or '')}",
        Action.CONTINUE: "counts, goes on",
        Action.PUNT: f"the program leaves it to iptables: {printable(treatment.reason)}",
    }[treatment.action]


def _entry(flat: FlatChain, index: int) -> Document:
    entry: Entry = flat.entries[index]
    does: Document = {
        "entry": index,
        "does": entry.kind.name.lower(),
        "rule": reference(entry.rule),
    }
    if entry.kind is OpKind.SKIP:
        does["to"] = entry.argument
    return does


def _lookup(found: Explanation, lookup: Lookup) -> Document:
    axis, space = lookup.axis, found.chain.flat.space
    interface = {
        Field.IN_INTERFACE: found.question.in_interface,
        Field.OUT_INTERFACE: found.question.out_interface,
    }.get(axis.field)
    value = interface or describe_value(axis.field, lookup.value, space)
    return {
        "field": str(axis.field),
        "value": printable(value),
        "table": axis.kind.name.lower(),
        "class": lookup.found,
        "classes": axis.classes,
        "row": lookup.row,
    }


def _notes(found: Explanation) -> list[str]:
    notes = []
    other = [name for name in ("raw", "mangle", "nat") if name in found.ruleset.tables]
    if other and found.chain.table == "filter":
        notes.append(f"only filter is followed; the ruleset also has {', '.join(other)}")
    if not found.known:
        notes.append("this function has no code in the plan: the program leaves it to iptables")
    if len(found.paths) > 1:
        notes.append("the program does not know the connection state: the dispatch asks for it")
    return notes


def render_explanation(document: Document, console: Console, *, verbose: bool = False) -> None:
    """Print both ways side by side where there is room, else one below the other.

    `verbose`: with every rule that was looked at and did not match, and why.
    """
    fields = " ".join(f"{name} {value}" for name, value in document["packet"].items())
    console.print(Text(f"{document['table']} {document['chain']}: ", "bold").append(fields, ""))
    console.print(Text(f"by {document['source']}, {document['family']}", "dim"))
    for path in document["paths"]:
        console.print()
        console.print(_state_title(path["states"]))
        rules, program = _rules(path["iptables"], verbose), _program(path["program"])
        if console.width >= _SIDE_BY_SIDE:
            both = Table("iptables", "program", box=None, pad_edge=False, expand=True)
            both.columns[0].ratio = both.columns[1].ratio = 1
            both.add_row(rules, program)
            console.print(both)
        else:
            for name, side in (("iptables", rules), ("program", program)):
                console.print(Text(f"  {name}", "bold"))
                console.print(Padding(side, (0, 0, 0, 4), expand=False))
        if not path["agree"]:
            console.print(Text("they DISAGREE: please report this with the ruleset", "bold red"))
    console.print()
    console.print(_lookups(document["lookups"]))
    console.print(Text(f"function: {_function(document['function'])}"))
    if "kernel" in document:
        ran = document["kernel"]
        console.print(
            Text(f"the loaded program, run by the kernel: {ran['outcome']}, {ran['reason']}")
        )
    for note in document["notes"]:
        console.print(Text(f"note: {note}", "dim"))


def _state_title(states: Sequence[str]) -> Text:
    every = len(states) == len(State)
    return Text(
        "in any connection state" if every else f"in state {', '.join(states)}", "bold cyan"
    )


def _rules(side: Document, verbose: bool) -> RenderableType:
    lines: list[Text] = []
    for step in side["steps"]:
        lines += _passed_over(step["passed_over"], verbose)
        name = f"{step['table']}/{step['chain']}/{step['number']}"
        effect = step["effect"]
        lines.append(Text(f"{name} ", "bold").append(step["text"], ""))
        lines.append(Text("  → ").append(effect, _COLOURS.get(effect, "")))
    may_end = any(rule["verdicts"] for rule in side["dynamic_rules"])
    if may_end and side["verdict"] is not None:
        verdict = side["verdict"]
        lines.append(Text("unless those end it: ").append(verdict, _COLOURS.get(verdict, "")))
    return Group(*lines)


def _passed_over(missed: Sequence[Document], verbose: bool) -> Iterator[Text]:
    if verbose:
        for each in missed:
            name = f"{each['table']}/{each['chain']}/{each['number']}"
            yield Text(f"{name} {each['text']}\n  does not match: {each['because']}", "dim")
    elif missed:
        rules = "rule does" if len(missed) == 1 else "rules do"
        yield Text(f"{len(missed)} {rules} not match", "dim")


def _program(side: Document) -> RenderableType:
    lines: list[Text] = []
    for entry in side["entries"]:
        rule = entry["rule"]
        to = f" to {entry['to']}" if "to" in entry else ""
        name = f"{rule['table']}/{rule['chain']}/{rule['number']}"
        lines.append(Text(f"entry {entry['entry']}: {entry['does']}{to} ({name})"))
    items = "".join(f"{r['table']}/{r['chain']}/{r['number']}, then " for r in side["rules"])
    end = side["then"] or "whatever the last rule says"
    lines.append(Text(f"outcome: {items}").append(end, _COLOURS.get(end, "")))
    return Group(*lines)


def _lookups(lookups: Sequence[Document]) -> Table:
    table = Table("field", "value", "table", box=None, pad_edge=False, title_justify="left")
    table.title = "What the program looks up"
    for name in ("class", "row"):
        table.add_column(name, justify="right")
    for each in lookups:
        row = "" if each["row"] is None else str(each["row"])
        number = f"{each['class']} of {each['classes']}"
        table.add_row(each["field"], Text(each["value"]), each["table"], number, row)
    return table


def _function(function: Document) -> str:
    if "by_state" not in function:
        return str(function["outcome"])
    parts = []
    for states, walk in function["by_state"].items():
        rules = "".join(f"{r['table']}/{r['chain']}/{r['number']}, " for r in walk["rules"])
        parts.append(f"{states}: {rules}{walk['then'] or 'its last rule decides'}")
    return "; ".join(parts)
