"""The loaded program gives the answer that a plain reading of the flat chain gives."""

from __future__ import annotations

import pytest

from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.transitions import outcome_of
from bpfilter.kernel.config import Reason, Trace
from bpfilter.kernel.program import Classifier, Options
from bpfilter.ruleset.fields import Family, Field
from tests.kernel.frames import coherent, frame
from tests.kernel.images import RandomChains, expected, image_of

pytestmark = pytest.mark.kernel


def addresses_for(packets, family):
    """Routes that give each packet's addresses the types its fields name."""
    from bpfilter.kernel.addresses import LocalRoute

    width = 4 if family is Family.IPV4 else 16
    routes = {}
    for packet in packets:
        for address, kind in (
            (Field.SOURCE, Field.SOURCE_TYPE),
            (Field.DESTINATION, Field.DESTINATION_TYPE),
        ):
            key = packet[address].to_bytes(width, "big")
            if key in routes:
                packet[kind] = routes[key].kind
            else:
                routes[key] = LocalRoute(family, key, 8 * width, packet[kind])
    return tuple(routes.values())


def fixed_type(address: int, family: Family) -> bool:
    return family is Family.IPV4 and (address in (0, 0xFFFFFFFF) or address >> 28 == 14)


def check(seed: int, family: Family, entries: int, packets: int, name: str = "INPUT") -> None:
    chains = RandomChains(seed, family, name)
    flat = chains.chain(entries)
    out_class = chains.random.randrange(4)
    made = []
    while len(made) < packets:
        packet = coherent(chains.packet(flat), flat.space, out_class)
        if name == "FORWARD":
            packet[Field.TTL] = min(max(packet[Field.TTL], 1), 254)
        if not any(fixed_type(packet[f], family) for f in (Field.SOURCE, Field.DESTINATION)):
            made.append(packet)
    routes = addresses_for(made, family)
    answers = [expected(flat, packet) for packet in made]
    functions = list(dict.fromkeys(function for function, _ in answers))
    coded = {f: n for n, f in enumerate(functions[:200], 1) if outcome_of(f) is not Outcome.PUNT}
    names = ("", "eth0", "eth1", "wg0")
    options = Options(
        chain=name, interfaces={1: "x"}, out_interface=("zz", *names[1:])[out_class],
        addresses=routes, trace=Trace.LAST,
    )  # fmt: skip
    with Classifier.load(image_of(flat, codes=[coded]), options) as classifier:
        for packet, (function, final) in zip(made, answers, strict=True):
            classifier.set_interface(1, names[packet[Field.IN_INTERFACE]])
            wire = dict(packet)
            if name == "FORWARD":
                wire[Field.TTL] += 1
            result = classifier.run(frame(wire, family))
            assert result.final == final, (packet, result.reason)
            if function in coded:
                assert (result.outcome, result.code) == (outcome_of(function), coded[function])
                assert result.function == function
            elif outcome_of(function) is Outcome.PUNT:
                assert (result.outcome, result.reason) == (Outcome.PUNT, Reason.RULE)
            else:
                assert (result.outcome, result.reason) == (Outcome.PUNT, Reason.NO_CODE)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("seed", range(8))
def test_small_random_chains_are_walked_as_written(seed: int, family: Family) -> None:
    check(seed, family, 12, 150)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("entries", [63, 64, 65, 511, 513, 4095, 4097, 9000])
def test_chains_of_any_length_are_walked_as_written(entries: int, family: Family) -> None:
    check(entries, family, entries, 60)


@pytest.mark.parametrize("family", list(Family))
def test_paired_rows_are_walked_as_written(family: Family, monkeypatch) -> None:
    monkeypatch.setattr("bpfilter.compiler.tables.UNPAIRED_WORDS", 0)
    check(41, family, 900, 60)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("most", [1 << 16, 0])
@pytest.mark.parametrize("entries", [12, 900, 5000])
def test_rows_of_references_to_parts_are_walked_as_written(
    entries: int, most: int, family: Family, monkeypatch
) -> None:
    """References of two bytes, and of four."""
    monkeypatch.setattr("bpfilter.kernel.pack.ALONE", 0)
    monkeypatch.setattr("bpfilter.kernel.pack.NARROW", most)
    monkeypatch.setattr("bpfilter.compiler.tables.UNPAIRED_WORDS", 0)
    check(47, family, entries, 60)


@pytest.mark.parametrize("small", [1 << 14, 0])
@pytest.mark.parametrize("entries", [10, 900])
def test_lists_in_tries_are_read_as_written(small: int, entries: int, monkeypatch) -> None:
    monkeypatch.setattr("bpfilter.compiler.tries.TABLES_ALONE", -1)
    monkeypatch.setattr("bpfilter.kernel.pack.SMALL", small)
    check(43, Family.IPV4, entries, 100)


@pytest.mark.parametrize("family", list(Family))
def test_forward_sees_the_ttl_after_the_decrement(family: Family) -> None:
    for seed in range(3):
        check(100 + seed, family, 20, 100, "FORWARD")


@pytest.mark.parametrize("family", list(Family))
def test_wide_tables_are_read_like_narrow_ones(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class ids and block references that do not fit 16 bits, as in very large rulesets."""
    monkeypatch.setattr("bpfilter.kernel.pack.SMALL", 0)
    monkeypatch.setattr("bpfilter.kernel.pack.NARROW", 0)
    check(200, family, 600, 100)
