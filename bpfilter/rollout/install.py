"""Putting the dispatch of both families in place, and reading back what then stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfilter.compiler.mark import MarkField
from bpfilter.errors import RolloutError
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

    Returns what all tables and ours in them are now; `made`: what an earlier call returned.
    RolloutError if the operator's rules are not those that were translated; our chains stand then,
    for the caller to remove.
    """
    rulesets = prepared.rulesets.values()
    translated = bool(host.native_nft()) or host.may_translate(rulesets)
    saves = {tables: tables.save() for tables in prepared.fingerprints}
    dispatches = {
        prepared.tables[family]: prepared.dispatch(family, mark, interfaces, translated=translated)
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
    for tables, fingerprint in now.items():
        if fingerprint.ruleset != prepared.fingerprints[tables].ruleset:
            raise RolloutError(
                f"the {tables.family} rules changed while they were translated", hint="try again"
            )
    return now, {t: Standing.of(save, dispatches.get(t)) for t, save in saves.items()}
