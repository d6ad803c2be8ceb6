"""Packets that edited rules can match are left to iptables, each field tried at its bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bpfilter.compiler.changed import MAX_CHANGED, Hull
from bpfilter.compiler.ir import OpKind
from bpfilter.errors import KernelError
from bpfilter.kernel.config import Reason, Trace
from bpfilter.kernel.program import Classifier, Options
from bpfilter.ruleset.fields import Family, Field, Intervals
from tests.kernel.images import chain, image_of
from tests.kernel.test_scope import frame

pytestmark = pytest.mark.kernel
FULL = {Family.IPV4: (1 << 32) - 1, Family.IPV6: (1 << 128) - 1}
FOUR = Hull(Family.IPV4, (0, 0), (0, 0), (0, 255), (0, 65535), (0, 65535))


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    """Decides all UDP and TCP of both families, under a lease."""
    dns = ({Field.DESTINATION_PORT: Intervals.single(53)}, OpKind.ACCEPT)
    image = image_of(chain(dns), chain(dns, family=Family.IPV6))
    with Classifier.load(image, Options(trace=Trace.LAST, leased=True)) as loaded:
        yield loaded


def set_changed(classifier: Classifier, *hulls: Hull) -> None:
    classifier.set_lease(0)
    classifier.set_changed(hulls)
    classifier.set_lease(time.monotonic_ns() + 30_000_000_000)


def address(family: Family, number: int) -> bytes:
    return number.to_bytes(4 if family is Family.IPV4 else 16, "big")


def reason(
    classifier: Classifier,
    family: Family = Family.IPV4,
    protocol: int = 17,
    *,
    source: int = 1,
    destination: int = 2,
    source_port: int = 1000,
    destination_port: int = 53,
) -> Reason:
    near, far = address(family, source), address(family, destination)
    packet = frame(family, protocol, (near, source_port), (far, destination_port))
    return classifier.run(packet).reason


@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("free", [0, 1, 8, 24])
def test_networks_begin_and_end_where_they_say(
    classifier: Classifier, family: Family, side: str, free: int
) -> None:
    width = 32 if family is Family.IPV4 else 128
    first = 0x0A << (width - 8) | 1 << free
    last = first | ((1 << free) - 1)
    mask = FULL[family] >> free << free
    hull = replace(FOUR, family=family, **{side: (first, mask)})
    set_changed(classifier, hull)
    for number, expected in (
        (first - 1, Reason.NONE),
        (first, Reason.CHANGED),
        (last, Reason.CHANGED),
        (last + 1, Reason.NONE),
        (first ^ 1 << (width - 1), Reason.NONE),
    ):
        assert reason(classifier, family, **{side: number}) is expected, hex(number)


@pytest.mark.parametrize("side", ["source_port", "destination_port"])
def test_ports_begin_and_end_where_they_say(classifier: Classifier, side: str) -> None:
    set_changed(classifier, replace(FOUR, **{f"{side}s": (1024, 2047)}))
    for number, expected in (
        (1023, Reason.NONE),
        (1024, Reason.CHANGED),
        (2047, Reason.CHANGED),
        (2048, Reason.NONE),
    ):
        assert reason(classifier, **{side: number}) is expected


def test_protocols_and_families_are_told_apart(classifier: Classifier) -> None:
    set_changed(classifier, replace(FOUR, protocols=(6, 6)))
    assert reason(classifier, protocol=6) is Reason.CHANGED
    assert reason(classifier, protocol=17) is Reason.NONE
    assert reason(classifier, Family.IPV6, protocol=6) is Reason.NONE


def test_all_fields_must_lie_within(classifier: Classifier) -> None:
    hull = replace(FOUR, source=(1, FULL[Family.IPV4]), protocols=(17, 17))
    hull = replace(hull, destination_ports=(53, 53))
    set_changed(classifier, hull)
    assert reason(classifier) is Reason.CHANGED
    assert reason(classifier, source=3) is Reason.NONE
    assert reason(classifier, protocol=6) is Reason.NONE
    assert reason(classifier, destination_port=54) is Reason.NONE


def test_as_many_as_there_is_room_for_and_none_again(classifier: Classifier) -> None:
    hulls = [replace(FOUR, source_ports=(port, port)) for port in range(1, MAX_CHANGED + 1)]
    set_changed(classifier, *hulls)
    assert reason(classifier, source_port=MAX_CHANGED) is Reason.CHANGED
    assert reason(classifier, source_port=MAX_CHANGED + 1) is Reason.NONE
    set_changed(classifier, hulls[0])
    assert reason(classifier, source_port=1) is Reason.CHANGED
    assert reason(classifier, source_port=MAX_CHANGED) is Reason.NONE
    set_changed(classifier)
    assert reason(classifier, source_port=1) is Reason.NONE


def test_more_are_refused(classifier: Classifier) -> None:
    with pytest.raises(KernelError, match="too many"):
        classifier.set_changed([FOUR] * (MAX_CHANGED + 1))
