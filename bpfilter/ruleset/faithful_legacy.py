"""Whether iptables-legacy-save printed what the kernel really holds.

It leaves out what it takes for the default, `!` and all: `! --sport 0:65535` and `! -i +`, which
match no packet, are not printed, and the rule reads as one that matches every packet (measured with
1.8.9). So its text is restored in a throwaway namespace, and the kernel's own tables are compared.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bpfilter.errors import LiveReadError
from bpfilter.ruleset.blob import Blob, BlobRule, Extension, open_socket, read_blob
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.refusal import set_definitions
from bpfilter.ruleset.tools import PATH, find, tool
from bpfilter.ruleset.writer import write

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, linux/sched.h
_SHARED_BY_ALL = frozenset({"IDLETIMER", "LED"})
"""Targets whose state no namespace keeps apart: a second copy would touch the host's."""
_SCRIPT = """
cd "$1" || exit 1
[ -s sets ] && ipset restore < sets
"$2" < rules >&2 || exit 1
echo restored
read end
"""


def faithful_legacy(ruleset: Ruleset) -> Ruleset:
    """The same ruleset if it is what the kernel holds; LiveReadError names the first rule that is
    not.

    Where the comparison cannot be made, a warning says why: without root, where the text does not
    restore (objects that it needs are missing in a new namespace), and for extensions that another
    version of iptables loaded in another revision.
    """
    shared = sorted({rule.target.name for rule in ruleset.rules()} & _SHARED_BY_ALL)
    if shared:
        return _unchecked(ruleset, f"target {shared[0]} exists once for all network namespaces")
    restore = find(tool(ruleset.family, Backend.LEGACY, "restore"))
    unshare = find("unshare")
    if restore is None or unshare is None or os.geteuid() != 0:
        return _unchecked(ruleset, "it takes root, unshare and iptables-legacy-restore")
    revisions: set[str] = set()
    with (
        open_socket(ruleset.family) as here,
        _restored(ruleset, restore, unshare) as there,
    ):
        if isinstance(there, str):
            return _unchecked(ruleset, f"its text cannot be restored elsewhere: {there}")
        for table in ruleset.tables:
            held = read_blob(here, ruleset.family, table)
            printed = read_blob(there, ruleset.family, table)
            revisions |= _compare(table, held, printed)
    notes = tuple(
        f"{name} was loaded by another version of iptables: its options were taken as printed"
        for name in sorted(revisions)
    )
    return replace(ruleset, warnings=(*ruleset.warnings, *notes))


def _unchecked(ruleset: Ruleset, why: str) -> Ruleset:
    warning = f"what iptables-legacy-save printed was not compared with the kernel's rules: {why}"
    return replace(ruleset, warnings=(*ruleset.warnings, warning))


@contextmanager
def _restored(ruleset: Ruleset, restore: str, unshare: str) -> Iterator[socket.socket | str]:
    """A socket in a throwaway namespace that holds the ruleset; what the tool said if it fails."""
    with tempfile.TemporaryDirectory(prefix="bpfilter-legacy-") as directory:
        place = Path(directory)
        (place / "rules").write_bytes(write(ruleset).encode("utf-8", "surrogateescape"))
        (place / "sets").write_text(set_definitions(ruleset))
        lock = str(place / "lock")
        environment = {**os.environ, "PATH": PATH, "LC_ALL": "C", "XTABLES_LOCKFILE": lock}
        with subprocess.Popen(
            [unshare, "--net", "sh", "-c", _SCRIPT, "sh", directory, restore],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as shell:
            assert shell.stdout is not None
            if shell.stdout.readline() != b"restored\n":
                said = shell.communicate()[1].decode("utf-8", "replace").strip()
                yield " / ".join(said.splitlines()) or "no message"
                return
            try:
                with _socket_in(shell.pid, ruleset) as there:
                    yield there
            finally:
                shell.communicate()


def _socket_in(pid: int, ruleset: Ruleset) -> socket.socket:
    """A socket opened in a process's network namespace, by a thread that enters it and ends."""
    opened: list[socket.socket] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
            if libc.setns(namespace.fileno(), _NEW_NETWORK) == 0:
                opened.append(open_socket(ruleset.family))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if not opened:
        raise LiveReadError(
            "a network namespace of our own cannot be entered", hint="run it as root"
        )
    return opened[0]


def _compare(table: str, held: Blob, printed: Blob) -> set[str]:
    """LiveReadError at the first difference; the extensions that stand there in two revisions."""
    revisions: set[str] = set()
    for chain in sorted(held.keys() | printed.keys()):
        ours, theirs = printed.get(chain, ()), held.get(chain, ())
        if len(ours) != len(theirs):
            count = max(len(theirs) - 1, 0)
            raise _differs(f"chain {chain} of table {table} holds {count} rules in the kernel")
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True), 1):
            if one == other:
                continue
            what = f"rule {number} of" if number < len(ours) else "the policy of"
            what = f"{what} chain {chain} of table {table}"
            revisions |= _same_but_revision(what, one, other)
    return revisions


def _same_but_revision(what: str, held: BlobRule, printed: BlobRule) -> set[str]:
    """The extensions of two rules that differ in nothing but their revisions."""
    if held.header != printed.header:
        raise _differs(f"{what}: addresses, interfaces or protocol")
    parts = [*zip(held.matches, printed.matches, strict=False), (held.target, printed.target)]
    revisions: set[str] = set()
    for one, other in parts:
        if one == other:
            continue
        if not isinstance(one, Extension) or not isinstance(other, Extension):
            raise _differs(f"{what}: its target")
        if one.name != other.name or one.revision == other.revision:
            raise _differs(f"{what}: {one.name}")
        revisions.add(one.name)
    if len(held.matches) != len(printed.matches):
        raise _differs(f"{what}: its matches")
    return revisions


def _differs(what: str) -> LiveReadError:
    return LiveReadError(
        f"iptables-legacy-save does not print the rules as the kernel holds them: {what}",
        hint="`! --sport 0:65535` and `! -i +` match no packet and are not printed: delete such a "
        "rule, or write it in another way; if the rules changed just now, run the command again",
    )
