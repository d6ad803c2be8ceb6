"""What tells the program that the kernel's rules are not the plan's any more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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

    Modules come, go, and come back elsewhere: their list, which has their addresses, says when.
    """
    modules = Path("/proc/modules")
    return _hooks_among(modules.read_bytes() if modules.exists() else b"")


@lru_cache(maxsize=1)
def _hooks_among(_modules: bytes) -> Mapping[str, int]:
    symbols = Path("/proc/kallsyms").read_bytes()
    found = {match[2].decode(): int(match[1], 16) for match in _HOOK.finditer(symbols)}
    return {name: address for name, address in found.items() if address}
