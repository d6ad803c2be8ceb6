"""Whether iptables-nft-save printed what the kernel really holds.

iptables-nft-save shows a native nft rule that it half understands as a wider one (`ip saddr @set
accept` as `-j ACCEPT`, measured with 1.8.9). So its text is restored in a throwaway namespace, and
`nft list` there must print the same rules as here.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bpfilter.errors import LiveReadError
from bpfilter.ruleset.faithful_legacy import faithful_legacy
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.refusal import set_definitions
from bpfilter.ruleset.tools import PATH, find, tool
from bpfilter.ruleset.writer import write

_CHAIN = re.compile(r"^\tchain (\S+) \{$")
_TIMEOUT = 60.0
_SCRIPT = """
cd "$1" || exit 1
[ -s sets ] && ipset restore < sets
"$2" < rules >&2 || exit 1
shift 2
exec "$@"
"""


def faithful(ruleset: Ruleset) -> Ruleset:
    """The same ruleset if it is all that the kernel holds; LiveReadError names the chain if not.

    Legacy tables: see `faithful_legacy`. Without nft the check is left out, with a warning.
    """
    if not ruleset.tables:
        return ruleset
    if ruleset.backend is not Backend.NFT:
        return faithful_legacy(ruleset)
    nft, unshare = find("nft"), find("unshare")
    restore = find(tool(ruleset.family, Backend.NFT, "restore"))
    if nft is None or unshare is None or restore is None or os.geteuid() != 0:
        warning = "native nft rules in iptables' tables were not looked for (it takes root and nft)"
        return replace(ruleset, warnings=(*ruleset.warnings, warning))
    family = "ip" if ruleset.family is Family.IPV4 else "ip6"
    with tempfile.TemporaryDirectory(prefix="bpfilter-nft-") as directory:
        place = Path(directory)
        (place / "rules").write_bytes(write(ruleset).encode("utf-8", "surrogateescape"))
        (place / "sets").write_text(set_definitions(ruleset))
        here = _list([nft, "-s", "list", "ruleset", family])
        there = _list(
            [
                unshare,
                "--net",
                "sh",
                "-c",
                _SCRIPT,
                "sh",
                directory,
                restore,
                nft,
                "-s",
                "list",
                "ruleset",
                family,
            ]
        )
    for name, chains in there.items():
        for chain in sorted(here.get(name, {}).keys() | chains.keys()):
            if _rules(here.get(name, {}), chain) != _rules(chains, chain):
                raise LiveReadError(
                    f"chain {chain} of table {name} holds native nft rules, or changed just now",
                    hint="iptables-nft-save does not print such rules as they are: move them to a "
                    "table of their own (`nft list ruleset` shows them), or run the command again",
                )
    return ruleset


def _rules(chains: Mapping[str, Sequence[str]], chain: str) -> Sequence[str]:
    """A chain's lines; none for an empty one with policy accept.

    iptables-nft-save prints such a built-in chain also where the kernel has none.
    """
    lines = chains.get(chain, ())
    return () if len(lines) == 1 and lines[0].endswith("policy accept;") else lines


def _list(command: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Table → chain → lines of `nft list ruleset`."""
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, env=environment, timeout=_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise LiveReadError(
            f"nft could not list the rules: {done.stderr.decode('utf-8', 'replace').strip()}",
            hint="run it as root; `nft list ruleset` must work",
        )
    tables: dict[str, dict[str, list[str]]] = {}
    lines: list[str] = []
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        found = _CHAIN.match(line)
        if line.startswith("table "):
            chains = tables.setdefault(line.split()[2], {})
        elif found:
            lines = chains.setdefault(found[1], [])
        elif line.startswith("\t\t"):
            lines.append(line)
    return tables
