"""The ruleset that a stored plan document was made of."""

from __future__ import annotations

import json
from pathlib import Path

from bpfilter.errors import UsageError
from bpfilter.report.document import Document
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text


def ruleset_of(document: Document, source: str) -> Ruleset:
    """The rules of a plan document, without counters; UsageError unless they have its digest."""
    try:
        lines: list[str] = []
        for table, chains in document["policies"].items():
            lines.append(f"*{table}")
            lines += [f":{name} {policy or '-'} [0:0]" for name, policy in chains.items()]
            lines += [rule["text"] for rule in document["rule_fates"] if rule["table"] == table]
            lines.append("COMMIT")
        family, backend = Family(document["family"]), document["backend"]
        digest = document["digest"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(
            f"{source} is no plan document", hint="`bpfilter plan --format json` makes one"
        ) from None
    text = "".join(f"{line}\n" for line in lines)
    found = read_text(text, source=source, family=family, backend=backend and Backend(backend))
    if found.digest != digest:
        raise UsageError(
            f"{source} does not hold the rules that it was made of",
            hint="make it again with this version: `bpfilter plan --format json`",
        )
    return found


def read_plan(path: Path) -> Ruleset | None:
    """The rules of a stored plan; None if the file is no JSON object. UsageError as above."""
    try:
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return None
            file.seek(0)
            document = json.load(file)
    except OSError:
        return None
    except ValueError as error:
        raise UsageError(
            f"{path} is no plan document: {error}", hint="`bpfilter plan --format json` makes one"
        ) from None
    return ruleset_of(document, str(path))
