"""Child process of the second reader: prints legacy tables as libiptc decodes them, as JSON.

    python -m bpfilter.ruleset.libiptc_child ipv4 filter nat …

python-iptables decodes by redirecting the process's standard output and keeps global state, so it
runs here and nowhere else. Reads only.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import iptc


def main() -> int:
    family, *tables = sys.argv[1:]
    # libiptc's decoding writes to file descriptor 1: keep the real one aside.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    document = {name: _table(family, name) for name in tables}
    json.dump(document, out)
    out.close()
    return 0


def _table(family: str, name: str) -> dict[str, Any]:
    table = iptc.Table(name) if family == "ipv4" else iptc.Table6(name)
    return {chain.name: _chain(chain) for chain in table.chains}


def _chain(chain: Any) -> dict[str, Any]:
    policy = chain.get_policy() if chain.is_builtin() else None
    return {
        "policy": policy.name if policy else None,
        "rules": [_rule(rule) for rule in chain.rules],
    }


def _rule(rule: Any) -> dict[str, Any]:
    target = rule.target
    return {
        "source": rule.src,
        "destination": rule.dst,
        "protocol": rule.protocol,
        "in": rule.in_interface,
        "out": rule.out_interface,
        "fragment": str(rule.fragment) if hasattr(rule, "fragment") else "False",
        "matches": [[match.name, _words(match)] for match in rule.matches],
        "target": target.name if target else None,
        "target words": _words(target) if target else [],
        "goto": bool(target.goto) if target else False,
    }


def _words(extension: Any) -> list[str] | None:
    """The options of a match or target as words; None if libiptc's text cannot be decoded."""
    try:
        parameters = extension.get_all_parameters()
    except (UnicodeDecodeError, ValueError):
        return None
    words: list[str] = []
    for name, values in parameters.items():
        negated = values[:1] == ["!"]
        words += [*values[:negated], f"--{name}", *values[negated:]]
    return words


if __name__ == "__main__":
    sys.exit(main())
