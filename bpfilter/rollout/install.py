"""Putting the dispatch of both families in place, and reading back what then stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bpfilter.compiler.mark import MarkField
from bpfilter.rollout import host
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.tables import Standing, Tables


def install(
    prepared: Prepared,
    mark: MarkField,
    interfaces: Sequence[str],
    made: Mapping[Tables, Standing],
) -> tuple[Mapping[Tables, Fingerprint], Mapping[Tables, Standing]]:
    """One transaction per family, none where the same stands already.

    Returns what all tables should be now, ours as they stand and the operator's as they were
    translated, and ours in them. `made`: what an earlier call returned.
    """
    rulesets = prepared.rulesets.values()
    may_translate = bool(host.native_nft()) or host.may_translate(rulesets)
    saves = {tables: tables.save() for tables in prepared.fingerprints}
    dispatches = {
        prepared.tables[family]: prepared.dispatch(
            family, mark, interfaces, translated=may_translate
        )
        for family in prepared.plans
    }
    for tables in prepared.tables.values():
        dispatch = dispatches.get(tables)
        if dispatch is None:
            edited = tables.clear()
        else:
            edited = tables.install(saves[tables], dispatch, made.get(tables))
        if edited:
            saves[tables] = tables.save()
    now = {tables: Fingerprint.of(save) for tables, save in saves.items()}
    translated_from = prepared.fingerprints
    expected = {
        tables: replace(translated_from[tables], whole=found.whole) for tables, found in now.items()
    }
    return expected, {t: Standing.of(save, dispatches.get(t)) for t, save in saves.items()}
