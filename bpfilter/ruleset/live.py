"""The live ruleset of this network namespace, read whole or not at all."""

from __future__ import annotations

from dataclasses import replace

from bpfilter.errors import LiveReadError, RulesetRefused
from bpfilter.ruleset.faithful import faithful
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.tools import default_backend, find, run, tool


def read_live(family: Family, backend: Backend | None = None) -> Ruleset:
    """Read the rules that are in force, with counters.

    Both backends are looked at: packets pass through the rules of both, so rules in both are a
    LiveReadError that the user has to resolve. Exit code 0 and a COMMIT per table are demanded, and
    that the text restores to the rules that are there.
    """
    return faithful(read_printed(family, backend))


def read_printed(family: Family, backend: Backend | None = None) -> Ruleset:
    """As `read_live`, but nobody has looked whether the text restores to what is there."""
    found = {b: read_backend(family, b) for b in Backend if find(tool(family, b, "save"))}
    if not found:
        raise LiveReadError(
            "no iptables-save is installed", hint="install the distribution's iptables package"
        )
    populated = [b for b, ruleset in found.items() if is_populated(ruleset)]
    if len(populated) > 1:
        legacy, nft = (tool(family, b, "") for b in (Backend.LEGACY, Backend.NFT))
        raise LiveReadError(
            f"both {legacy} and {nft} hold rules, and packets pass through both",
            hint=f"move all rules into one of them (for instance `{legacy}-save | {nft}-restore "
            f"--noflush`) and flush the other",
        )
    if backend is not None:
        if populated and populated[0] is not backend:
            raise LiveReadError(
                f"the rules are in the {populated[0]} backend, {backend} has none",
                hint=f"leave --backend out, or say --backend {populated[0]}",
            )
        if backend not in found:
            raise LiveReadError(
                f"{tool(family, backend, 'save')} is not installed",
                hint="install the distribution's iptables package",
            )
        return found[backend]
    if populated:
        return found[populated[0]]
    default = default_backend()
    return found.get(default) or next(iter(found.values()))


def read_backend(family: Family, backend: Backend) -> Ruleset:
    """One backend's rules. Raises LiveReadError unless the tool printed them whole."""
    name = tool(family, backend, "save")
    code, output, errors = run(name, ["-c"])
    if code != 0:
        raise LiveReadError(
            f"{name} failed with exit code {code}: {errors or 'no message'}",
            hint="run it as root; a table changed by native nft rules cannot be printed whole: "
            "see `nft list ruleset`",
        )
    foreign = [line for line in output.splitlines() if b"incompatible" in line and line[:1] == b"#"]
    if foreign:
        said = foreign[0].decode("utf-8", "backslashreplace").lstrip("# ")
        raise LiveReadError(
            f"{name} cannot print all rules: {said}",
            hint="native nft rules share iptables' tables: move them to a table of their own "
            "(`nft list ruleset` shows them)",
        )
    try:
        ruleset = read_text(output, source=name, family=family, backend=backend, printed=True)
    except RulesetRefused as error:
        raise LiveReadError(
            f"{name} printed what cannot be read whole: {error.message}",
            hint=error.hint or "native nft rules in iptables' tables have this effect",
        ) from None
    return replace(ruleset, family_reason="asked for")


def is_populated(ruleset: Ruleset) -> bool:
    """Whether a ruleset does anything: a rule, a user chain or a policy that is not ACCEPT."""
    return any(
        chain.rules or chain.policy != "ACCEPT"
        for table in ruleset.tables.values()
        for chain in table.chains.values()
    )
