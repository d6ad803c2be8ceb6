"""Canary: by source network and by a share of flows, no flow ever split."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network

import pytest

from bpfilter.compiler.ir import OpKind
from bpfilter.kernel.config import Reason, Trace
from bpfilter.kernel.program import Classifier, Options
from bpfilter.ruleset.fields import Family, Field, Intervals
from tests.kernel.images import chain, image_of
from tests.kernel.test_punts import MACS

pytestmark = pytest.mark.kernel
FLOWS = 2000


@contextmanager
def scoped(share: int, *sources: IPv4Network | IPv6Network) -> Iterator[Classifier]:
    dns = ({Field.DESTINATION_PORT: Intervals.single(53)}, OpKind.ACCEPT)
    image = image_of(chain(dns), chain(dns, family=Family.IPV6))
    options = Options(trace=Trace.LAST, scope_share=share, scope_sources=sources)
    with Classifier.load(image, options) as loaded:
        yield loaded


def frame(family: Family, protocol: int, near: tuple[bytes, int], far: tuple[bytes, int]) -> bytes:
    ports = struct.pack("!HH", near[1], far[1])
    body = {6: ports + struct.pack("!IIBBHHH", 1, 2, 0x50, 2, 0, 0, 0)}.get(
        protocol, ports + struct.pack("!HH", 8, 0)
    )
    if family is Family.IPV6:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return MACS + b"\x86\xdd" + head + near[0] + far[0] + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    return MACS + b"\x08\0" + head + near[0] + far[0] + body


def flows(family: Family) -> Iterator[tuple[bytes, bytes]]:
    """Clients of one network towards a few services, as traffic mostly is; both directions."""
    rng = random.Random(7)
    width = 4 if family is Family.IPV4 else 16
    for _ in range(FLOWS):
        protocol = rng.choice((6, 17))
        client = bytes([10] * (width - 2)) + rng.randbytes(2), rng.randrange(32768, 61000)
        server = bytes([10] * (width - 1)) + b"\1", rng.choice((22, 53, 80, 443))
        yield frame(family, protocol, client, server), frame(family, protocol, server, client)


@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("percent", [10, 50])
def test_a_share_of_flows_is_decided_and_each_flow_wholly(family: Family, percent: int) -> None:
    with scoped(65536 * percent // 100) as classifier:
        chosen = 0
        for there, back in flows(family):
            inside = classifier.run(there).reason is not Reason.SCOPE
            assert (classifier.run(back).reason is not Reason.SCOPE) == inside
            chosen += inside
    # Four standard deviations of so many independent draws.
    deviation = (FLOWS * percent / 100 * (1 - percent / 100)) ** 0.5
    assert abs(chosen - FLOWS * percent / 100) < 4 * deviation


def test_pings_and_their_replies_are_one_flow() -> None:
    def ping(kind: int, near: bytes, far: bytes) -> bytes:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 1, 0)
        return MACS + b"\x08\0" + head + near + far + struct.pack("!BBHHH", kind, 0, 0, 1, 1)

    with scoped(32768) as classifier:
        seen = set()
        for number in range(64):
            near, far = bytes([10, 0, 0, number]), bytes([10, 0, 0, 200])
            reasons = (
                classifier.run(ping(8, near, far)).reason,
                classifier.run(ping(0, far, near)).reason,
            )
            assert reasons[0] is reasons[1]
            seen.add(reasons[0])
        assert seen == {Reason.SCOPE, Reason.NONE}


def test_only_packets_from_the_named_networks_are_decided() -> None:
    with scoped(0, IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1::/32")) as classifier:
        for family, source, reason in (
            (Family.IPV4, bytes([10, 1, 2, 3]), Reason.NONE),
            (Family.IPV4, bytes([10, 2, 2, 3]), Reason.SCOPE),
            (Family.IPV6, bytes.fromhex("fd000001") + bytes(12), Reason.NONE),
            (Family.IPV6, bytes.fromhex("fd000002") + bytes(12), Reason.SCOPE),
            (Family.IPV6, bytes([10, 1, 2, 3]) + bytes(12), Reason.SCOPE),
        ):
            packet = frame(family, 17, (source, 1), (bytes(len(source)), 53))
            assert classifier.run(packet).reason is reason
