"""What this kernel offers: which needs of the program it lacks, and what works without them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpfilter.errors import KernelError

_BTF = Path("/sys/kernel/btf/vmlinux")

NEEDED = {
    "bpf_cast_to_kern_ctx": "reading kernel fields of a packet (Linux 6.2)",
    "bpf_loop": "bounded loops (Linux 5.17)",
}
"""Names in the kernel's BTF without which the program cannot be loaded, and what they are."""

USEFUL = {
    "BPF_TCX_INGRESS": "tcx links (Linux 6.6): clsact filters are used instead",
    "BPF_NETFILTER": "netfilter links (Linux 6.4): no lab, and shadow compares counters",
}
"""Names whose absence costs something, and what."""


@dataclass(frozen=True, slots=True)
class Features:
    """`missing` keeps the program from loading; `lacking` is done without. Both are sentences."""

    missing: tuple[str, ...]
    lacking: tuple[str, ...]

    @property
    def sufficient(self) -> bool:
        """Whether the program can be loaded."""
        return not self.missing


def require(*useful: str) -> None:
    """Raise KernelError with what is missing unless the program can be loaded here.

    `useful`: names of USEFUL that the caller cannot do without.
    """
    features = probe()
    missing = [*features.missing]
    missing += [USEFUL[name] for name in useful if USEFUL[name] in features.lacking]
    if missing:
        raise KernelError(
            "this kernel cannot run the program; it lacks " + "; ".join(missing),
            hint="Linux 6.6 or newer with BTF has all of it",
        )


@cache
def probe() -> Features:
    """Ask the running kernel, once per process; never fails."""
    names = _btf()
    if not names:
        return Features(("BTF: the kernel must be built with CONFIG_DEBUG_INFO_BTF",), ())

    def absent(wanted: dict[str, str]) -> tuple[str, ...]:
        return tuple(what for name, what in wanted.items() if not _named(name, names))

    return Features(absent(NEEDED), absent(USEFUL))


def offers() -> tuple[tuple[str, bool], ...]:
    """What the programs use of a kernel, and whether this one has it."""
    features = probe()
    absent = {*features.missing, *features.lacking}
    has_btf = bool(_btf())
    names = ("BTF (CONFIG_DEBUG_INFO_BTF)", *NEEDED.values(), *USEFUL.values())
    return tuple((what.partition(":")[0], has_btf and what not in absent) for what in names)


def _btf() -> bytes:
    try:
        return _BTF.read_bytes()
    except OSError:
        return b""


def _named(name: str, names: bytes) -> bool:
    return b"\0" + name.encode() + b"\0" in names
