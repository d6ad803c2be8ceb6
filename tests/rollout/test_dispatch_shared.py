"""The dispatch of public rulesets is taken by real iptables, replaced in place, removed whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfilter.compiler.compile import DISPATCHED, assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.rollout import ours
from bpfilter.rollout.dispatch import merge, render
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.rollout.network import Net, entered, run
from tests.rollout.test_dispatch import without_dates

pytestmark = pytest.mark.kernel


def test_every_dispatch_loads_and_leaves_no_trace(net: Net, shared_rulesets: list[Path]) -> None:
    """Every other ruleset, backends by turns; those that iptables refuses are left out."""
    for turn, path in enumerate(shared_rulesets[::2]):
        family = Family.IPV4 if path.suffix == ".v4" else Family.IPV6
        backend = list(Backend)[turn % 2]
        tables = net.iptables(backend, family)
        with entered(net.fw):
            text = path.read_text(errors="surrogateescape")
            if run(f"{tables.prefix}-restore", data=text).returncode != 0:
                continue
        before = tables.save()
        ruleset = read_text(before, family=family)
        if "filter" in ruleset.tables:
            plan = compile_ruleset(ruleset, DISPATCHED, budget=1000)
            codes = assemble([plan]).codes
            made = merge(
                [
                    render(ruleset, c, codes, DEFAULT_MARK, ["eth0", "v1"])
                    for c in plan.chains.values()
                ]
            )
            tables.restore(made.add, "--noflush")
            first = tables.save()
            assert without_dates(ours.strip(first)) == without_dates(before), path.name
            tables.restore(ours.edit(first, made.chains, made.jumps), "--noflush")
            assert sorted(without_dates(tables.save())) == sorted(without_dates(first)), path.name
            tables.restore(made.remove, "--noflush")
            assert without_dates(tables.save()) == without_dates(before), path.name
        tables.empty()
