"""What tells the program that the kernel's rules are not the plan's any more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HOOK = re.compile(rb"^([0-9a-f]+) \w (ip6?t_do_table)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Generation:
    """State of the rules in one network namespace; every edit changes it.

    `nft` counts transactions of nf_tables. `legacy` stands for the tables on LOCAL_IN of
    iptables-legacy and ip6tables-legacy. Kernels may hide one or the other (`shows_nft`,
    `shows_legacy`): edits there are noticed only by reading the rules again.
    """

    nft: int
    legacy: tuple[int, int]
    shows_nft: bool = True
    shows_legacy: bool = True


def legacy_hooks() -> Mapping[str, int]:
    """Kernel addresses of the legacy tables' hook functions, by name; absent ones are left out.

    Read anew for every program: modules come, go, and come back elsewhere.
    """
    symbols = Path("/proc/kallsyms").read_bytes()
    found = {match[2].decode(): int(match[1], 16) for match in _HOOK.finditer(symbols)}
    return {name: address for name, address in found.items() if address}
