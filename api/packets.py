"""The packets that explanations are about, with what this host knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from bpfilter.analysis.explain import Question
from bpfilter.errors import UsageError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.kernel.way import way_of
from bpfilter.lab.addresses import address_types
from bpfilter.report.asked import hook_of, sample_packet
from bpfilter.rollout.detail import kept_samples
from bpfilter.ruleset.fields import Family, Field

Address = IPv4Address | IPv6Address


def kept_packet(directory: Path, identity: str) -> Question:
    """The packet of a mismatch by its id; UsageError names those that there are."""
    samples = kept_samples(directory)
    if identity in samples:
        return sample_packet(samples[identity])
    known = ", ".join(samples)
    raise UsageError(
        f"there is no mismatch {identity}",
        hint=f"there are: {known}" if known else "there are none",
    )


def at_this_host(
    question: Question, chain: str | None, routes: Sequence[LocalRoute] | None = None
) -> tuple[Question, Sequence[str]]:
    """With its addresses' types by the local table, and where this host would send it.

    The kernel is asked for the way only where neither a chain nor an out-interface was named. The
    notes say what came of that.
    """
    routes = read_local_table() if routes is None else routes
    values = dict(question.fields)
    if question.family is Family.IPV4:
        type_of = address_types(routes)
        values[Field.SOURCE_TYPE] = type_of(values[Field.SOURCE])
        values[Field.DESTINATION_TYPE] = type_of(values[Field.DESTINATION])
    question = replace(question, fields=values)
    if chain is not None or question.out_interface or not question.in_interface:
        return question, ()
    addresses = [_address(question, field) for field in (Field.SOURCE, Field.DESTINATION)]
    way = way_of(addresses[0], addresses[1], question.in_interface)
    if way is None:
        return question, ("this host routes no such packet: it would come to no chain",)
    if way.here:
        return question, ()
    hook = hook_of(None, question.in_interface, way.out_interface)
    return replace(question, hook=hook, out_interface=way.out_interface), ()


def _address(question: Question, field: Field) -> Address:
    width = 4 if question.family is Family.IPV4 else 16
    return ip_address(question.fields[field].to_bytes(width, "big"))
