"""What tells the program that the kernel's rules are not the plan's any more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_HOOK = re.compile(rb"^([0-9a-f]+) \w (ip6?t_do_table|ipv[46]_conntrack_in)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Generation:
    """State of the rules in one network namespace; every edit changes it.

    `nft` counts transactions of nf_tables. `legacy` stands for the tables on LOCAL_IN of
    iptables-legacy and ip6tables-legacy. Kernels may hide one or the other (`shows_nft`,
    `shows_legacy`): edits there are noticed only by reading the rules again. `tracks`: conntrack
    may be in use; false only where an early program saw that it has no hooks.
    """

    nft: int
    legacy: tuple[int, int]
    shows_nft: bool = True
    shows_legacy: bool = True
    tracks: bool = field(default=True, compare=False)


def netfilter_hooks() -> Mapping[str, int]:
    """Kernel addresses of hook functions of legacy tables and conntrack, absent ones left out.

    Read anew for every program: modules come, go, and come back elsewhere.
    """
    symbols = Path("/proc/kallsyms").read_bytes()
    found = {match[2].decode(): int(match[1], 16) for match in _HOOK.finditer(symbols)}
    return {name: address for name, address in found.items() if address}
