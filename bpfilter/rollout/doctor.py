"""What stands for and against bpfilter in this network namespace; reads, and changes nothing.

Each finding says what was looked at, what was found, and what to do about it. A check that cannot
be made is a finding too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pyroute2 import IPRoute

from bpfilter.errors import BpfilterError
from bpfilter.kernel.generation import netfilter_hooks
from bpfilter.kernel.libbpf import library
from bpfilter.kernel.probe import probe
from bpfilter.rollout import host, pins
from bpfilter.rollout.attached import attached
from bpfilter.rollout.journal import running, state_directory
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.prepare import find_backend
from bpfilter.rollout.tables import all_tables
from bpfilter.rollout.teardown import remains
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
from bpfilter.ruleset.model import Backend, Ruleset

_LEGACY_HOOKS = frozenset({"ipt_do_table", "ip6t_do_table"})
_OTHER_BPFILTER = pins.FILE_SYSTEM / "bpfilter"
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_PACKET_SOCKETS = Path("/proc/net/packet")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_PERFMON": 38, "CAP_BPF": 39}


class Level(StrEnum):
    """What a finding means."""

    GOOD = "good"
    NOTE = "note"  # works, with a difference worth knowing
    PROBLEM = "problem"  # keeps some stage from being reached


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint`: what to do; empty where nothing needs doing."""

    level: Level
    subject: str
    what: str
    hint: str = ""


def examine(without: Collection[str] = ()) -> tuple[Finding, ...]:
    """Run every check but those of some subjects; one that fails becomes a problem of its own."""
    findings: list[Finding] = []
    for subject, check in _CHECKS:
        if subject in without:
            continue
        try:
            findings += check()
        except BpfilterError as error:
            findings.append(_problem(subject, error.message, error.hint or ""))
        except OSError as error:
            what = f"could not be looked at: {error}"
            findings.append(_problem(subject, what, "run as root in the host's namespaces"))
    return tuple(findings)


def _good(subject: str, what: str) -> Finding:
    return Finding(Level.GOOD, subject, what)


def _note(subject: str, what: str, hint: str = "") -> Finding:
    return Finding(Level.NOTE, subject, what, hint)


def _problem(subject: str, what: str, hint: str) -> Finding:
    return Finding(Level.PROBLEM, subject, what, hint)


def _kernel() -> Iterator[Finding]:
    features = probe()
    for missing in features.missing:
        yield _problem("kernel", f"lacks {missing}", "Linux 6.6 or newer with BTF has all of it")
    for lacking in features.lacking:
        yield _note("kernel", f"lacks {lacking}")
    if features.sufficient:
        yield _good("kernel", f"Linux {platform.release()} can load the programs")


def _library() -> Iterator[Finding]:
    library()
    yield _good("libbpf", "libbpf.so.1 is there")


def _rights() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    held = int(effective.split()[1], 16)
    absent = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if absent and os.geteuid() != 0:
        yield _problem("rights", f"this process lacks {', '.join(absent)}", "run as root")
    elif absent:
        yield _problem("rights", f"root without {', '.join(absent)}", "a container took them away")
    else:
        yield _good("rights", "enough to load programs and to edit rules")


def _lockdown() -> Iterator[Finding]:
    text = _LOCKDOWN.read_text() if _LOCKDOWN.exists() else "[none]"
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        yield _problem(
            "lockdown",
            "confidentiality: programs may not read kernel memory",
            "boot with lockdown=integrity, or without",
        )
    else:
        yield _good("lockdown", mode)


def _jit() -> Iterator[Finding]:
    if _JIT.exists() and _JIT.read_text().strip() == "0":
        hint = "sysctl net.core.bpf_jit_enable=1"
        yield _note("JIT", "BPF programs are interpreted: many times slower", hint)


def _pins() -> Iterator[Finding]:
    if pins.available():
        yield _good("pins", f"a bpf file system is at {pins.FILE_SYSTEM}")
    else:
        yield _note(
            "pins",
            f"no bpf file system at {pins.FILE_SYSTEM}: a new daemon starts over, it cannot adopt",
            f"mount -t bpf bpf {pins.FILE_SYSTEM}",
        )
    if _OTHER_BPFILTER.exists():
        yield _note("pins", f"facebook/bpfilter pins its objects at {_OTHER_BPFILTER}; not ours")


def _generation(backend: Backend) -> Iterator[Finding]:
    if backend is Backend.LEGACY and netfilter_hooks().keys().isdisjoint(_LEGACY_HOOKS):
        yield _note(
            "generation",
            "the kernel hides where its legacy tables are: an edit is seen at the daemon's next"
            " look, not at the next packet",
            "sysctl kernel.kptr_restrict=1 lets root see it",
        )
    else:
        yield _good("generation", "an edit of the rules is seen at the next packet")


def _rules() -> Iterator[Finding]:
    if not all_tables():
        yield _problem("rules", "no iptables tool is installed", "apt-get install iptables")
        return
    backend = find_backend(None)
    rulesets = [read_live(family, backend) for family in Family]
    counts = ", ".join(f"{len(list(each.rules()))} {each.family}" for each in rulesets)
    yield _good("rules", f"iptables-{backend} holds {counts} rules")
    yield from _generation(backend)
    yield from _mark(rulesets)


def _mark(rulesets: Sequence[Ruleset]) -> Iterator[Finding]:
    field = choose((*ruleset_uses(rulesets), *host.mark_uses()))
    yield _good("mark", f"bits {field.mask:#010x} are free for the codes")


def _host() -> Iterator[Finding]:
    for obstacle in host.host_obstacles():
        yield _problem("host", f"{obstacle.what}: no enforcing", obstacle.hint)


def _interfaces() -> Iterator[Finding]:
    with IPRoute() as ipr:
        names = [link.get_attr("IFLA_IFNAME") for link in ipr.link("dump")]
        xdp = {link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_XDP") for link in ipr.link("dump")}
    foreign = [found for found in attached() if not found.our_filter]
    ours = set(pins.pinned_links().values())
    for name in names:
        obstacles = [] if name == "lo" else host.link_obstacles(name)
        for obstacle in obstacles:
            yield _note(f"interface {name}", obstacle.what, obstacle.hint)
        others = [f for f in foreign if f.interface == name and f.link not in ours]
        for found in others:
            yield _problem(
                f"interface {name}",
                f"program {found.program} is attached at its ingress: it could forge marks",
                "enforce other interfaces, or remove it",
            )
        state = xdp.get(name)
        if state is not None and state.get_attr("IFLA_XDP_ATTACHED"):
            yield _note(f"interface {name}", "an XDP program is attached; ours will not replace it")
        if not obstacles and not others and name != "lo":
            yield _good(f"interface {name}", "programs can be attached")


def _sockets() -> Iterator[Finding]:
    lines = _PACKET_SOCKETS.read_text().splitlines()[1:] if _PACKET_SOCKETS.exists() else []
    if lines:
        yield _note(
            "packet sockets",
            f"{len(lines)} are open: they see packets that INPUT drops, and would not see those"
            " that are dropped early",
            "early dropping asks for your consent",
        )


def _leftovers() -> Iterator[Finding]:
    found = running(state_directory())
    if found is not None:
        yield _good("daemon", f"bpfilterd runs as process {found[0]}, stage {found[1]}")
        return
    left = remains()
    if left:
        yield _problem(
            "leftovers", f"without a daemon: {', '.join(left)}", "`bpfilter teardown` removes them"
        )
    else:
        yield _good("leftovers", "nothing of ours is here, and no daemon runs")


_CHECKS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("kernel", _kernel),
    ("libbpf", _library),
    ("rights", _rights),
    ("lockdown", _lockdown),
    ("JIT", _jit),
    ("pins", _pins),
    ("rules", _rules),
    ("host", _host),
    ("interfaces", _interfaces),
    ("packet sockets", _sockets),
    ("leftovers", _leftovers),
)
