"""Compiles one built-in chain for the tests of analysis."""

from __future__ import annotations

from bpfilter.compiler.classify import classify
from bpfilter.compiler.flatten import flatten
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.tables import build_tables
from bpfilter.ruleset.model import Ruleset


def compiled(ruleset: Ruleset, chain: str = "INPUT", table: str = "filter") -> ChainPlan:
    """A chain plan without the list of residual functions, which the proof does not read."""
    classified = classify(ruleset, table, chain)
    flat = flatten(ruleset, classified)
    return ChainPlan(table, chain, classified.treatments, flat, build_tables(flat), ())
