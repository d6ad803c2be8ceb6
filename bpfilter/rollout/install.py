"""Putting the dispatch of both families in place, and reading back what then stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfilter.compiler.mark import MarkField
from bpfilter.errors import RolloutError
from bpfilter.rollout import host, ours
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.tables import Tables

Contents = Mapping[str, Sequence[str]]
"""The rules of each chain of ours, in iptables-save's words."""


def install(
    prepared: Prepared,
    mark: MarkField,
    interfaces: Sequence[str],
    made: Mapping[Tables, Contents],
) -> tuple[Mapping[Tables, Fingerprint], Mapping[Tables, Contents]]:
    """One transaction per family; returns what all tables and our chains in them are now.

    `made`: what an earlier call returned. RolloutError if the operator's rules are not those that
    were translated; our chains stand then, for the caller to remove.
    """
    rulesets = prepared.rulesets.values()
    translated = bool(host.native_nft()) or host.may_translate(rulesets)
    for family, tables in prepared.tables.items():
        if family in prepared.plans:
            dispatch = prepared.dispatch(family, mark, interfaces, translated=translated)
            tables.install(dispatch, made.get(tables))
        else:
            tables.clear()
    saves = {tables: tables.save() for tables in prepared.fingerprints}
    now = {tables: Fingerprint.of(save) for tables, save in saves.items()}
    for tables, fingerprint in now.items():
        if fingerprint.ruleset != prepared.fingerprints[tables].ruleset:
            raise RolloutError(
                f"the {tables.family} rules changed while they were translated", hint="try again"
            )
    return now, {tables: ours.contents(save) for tables, save in saves.items()}
