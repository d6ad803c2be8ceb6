"""What the program must not judge it leaves to the original rules, and says why."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.layout import Outcome
from bpfilter.kernel.config import Reason, Trace
from bpfilter.kernel.program import Classifier, Options
from bpfilter.ruleset.fields import Family, Field, Intervals
from tests.kernel.images import chain, image_of

pytestmark = pytest.mark.kernel

MACS = bytes(6) + bytes.fromhex("020000000002")
UDP = struct.pack("!HHHH", 5353, 53, 8, 0)
TCP = struct.pack("!HHIIBBHHH", 5353, 53, 1, 2, 0x50, 2, 0, 0, 0)


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    """Accepts port 53 of any protocol, drops the rest, in both families."""
    dns = ({Field.DESTINATION_PORT: Intervals.single(53)}, OpKind.ACCEPT)
    image = image_of(chain(dns), chain(dns, family=Family.IPV6))
    with Classifier.load(image, Options(trace=Trace.LAST)) as loaded:
        yield loaded


def ipv4(
    payload: bytes = UDP,
    protocol: int = 17,
    *,
    length: int | None = None,
    first: int = 0x45,
    fragment: int = 0,
    padding: int = 40,
) -> bytes:
    length = 20 + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBHII", first, 0, length, 1, fragment, 64, protocol, 0, 1, 2)
    return MACS + b"\x08\0" + head + payload + bytes(padding)


def ipv6(
    payload: bytes = UDP, following: int = 17, *, length: int | None = None, padding: int = 40
) -> bytes:
    length = len(payload) if length is None else length
    head = struct.pack("!IHBB", 6 << 28, length, following, 64) + bytes(15) + b"\1" + bytes(16)
    return MACS + b"\x86\xdd" + head + payload + bytes(padding)


def options(following: int, units: int = 0) -> bytes:
    """A hop-by-hop or destination options header of (units + 1) * 8 bytes."""
    return struct.pack("!BB", following, units) + bytes(6 + 8 * units)


PUNTED = {
    "first fragment": (ipv4(fragment=0x2000), Reason.FRAGMENT),
    "later fragment": (ipv4(fragment=1), Reason.FRAGMENT),
    "reserved bit is no fragment": (ipv4(fragment=0x8000), None),
    "do not fragment is no fragment": (ipv4(fragment=0x4000), None),
    "options": (ipv4(bytes(4) + UDP, first=0x46), Reason.OPTIONS),
    "header shorter than a header": (ipv4(first=0x44), Reason.MALFORMED),
    "version 5": (ipv4(first=0x55), Reason.MALFORMED),
    "total length below the header": (ipv4(length=19), Reason.MALFORMED),
    "total length beyond the frame": (ipv4(length=100), Reason.TRUNCATED),
    "padding is not payload": (ipv4(length=24), Reason.TRUNCATED),
    "TCP header cut short": (ipv4(TCP, 6, length=39), Reason.TRUNCATED),
    "whole TCP header": (ipv4(TCP, 6), None),
    "UDP header cut short": (ipv4(length=27), Reason.TRUNCATED),
    "ICMP cut short": (ipv4(bytes(8), 1, length=27), Reason.TRUNCATED),
    "SCTP cut short": (ipv4(bytes(12), 132, length=31), Reason.TRUNCATED),
    "DCCP cut short": (ipv4(bytes(12), 33, length=31), Reason.TRUNCATED),
    "UDP-Lite cut short": (ipv4(bytes(8), 136, length=27), Reason.TRUNCATED),
    "empty GRE is judged": (ipv4(b"", 47), None),
    "ICMPv6 in IPv4 is judged": (ipv4(b"", 58), None),
    "ARP": (MACS + b"\x08\x06" + bytes(46), Reason.ETHERTYPE),
    "IPv6 fragment": (ipv6(bytes(8) + UDP, 44), Reason.FRAGMENT),
    "routing header": (ipv6(options(17) + UDP, 43), Reason.EXTENSION),
    "authentication header": (ipv6(options(17) + UDP, 51), Reason.EXTENSION),
    "hop-by-hop options are walked": (ipv6(options(17) + UDP, 0), None),
    "long destination options are walked": (ipv6(options(17, 3) + UDP, 60), None),
    "four headers are walked": (
        ipv6(options(60) + options(60) + options(60) + options(17) + UDP, 0),
        None,
    ),
    "five headers are not": (
        ipv6(options(60) + options(60) + options(60) + options(60) + options(17) + UDP, 0),
        Reason.EXTENSION,
    ),
    "options past the end": (ipv6(bytes((17, 9)) + bytes(6) + UDP, 0), Reason.TRUNCATED),
    "options that leave no UDP header": (ipv6(options(17) + UDP[:7], 0), Reason.TRUNCATED),
    "fragment behind options": (ipv6(options(44) + bytes(8) + UDP, 0), Reason.FRAGMENT),
    "payload length beyond the frame": (ipv6(length=200), Reason.TRUNCATED),
    "jumbogram": (ipv6(options(17) + UDP, 0, length=0), Reason.MALFORMED),
    "no next header is judged": (ipv6(b"", 59), None),
    "version 4 in an IPv6 frame": (
        MACS + b"\x86\xdd" + b"\x45" + bytes(60),
        Reason.MALFORMED,
    ),
}


@pytest.mark.parametrize("name", PUNTED)
def test_odd_packets(classifier: Classifier, name: str) -> None:
    frame, reason = PUNTED[name]
    result = classifier.run(frame)
    if reason is None:
        assert result.reason is Reason.NONE
        assert result.outcome in (Outcome.ACCEPT, Outcome.DROP)
    else:
        assert (result.outcome, result.reason, result.code) == (Outcome.PUNT, reason, 0)


@pytest.mark.parametrize("size", [0, 5, 13, 14, 33])
def test_frames_too_short_to_run_are_truncated(classifier: Classifier, size: int) -> None:
    for frame in (ipv4(), ipv6()):
        assert classifier.run(frame[:size]).reason is Reason.TRUNCATED


def test_ports_behind_extension_headers_are_found(classifier: Classifier) -> None:
    assert classifier.run(ipv6(options(60) + options(17) + UDP, 0)).outcome is Outcome.ACCEPT
    other = struct.pack("!HHHH", 53, 54, 8, 0)
    assert classifier.run(ipv6(options(60) + options(17) + other, 0)).outcome is Outcome.DROP


def test_frames_longer_than_a_test_run_takes_keep_their_length() -> None:
    box = {Field.LENGTH: Intervals.single(9000, 65535)}
    image = image_of(chain((box, OpKind.ACCEPT)))
    with Classifier.load(image, Options(trace=Trace.LAST)) as classifier:
        for size, outcome in (
            (8999, Outcome.DROP),
            (9000, Outcome.ACCEPT),
            (65535, Outcome.ACCEPT),
        ):
            assert classifier.run(ipv4(UDP + bytes(size - 28))).outcome is outcome


def test_no_frame_of_noise_breaks_the_program(classifier: Classifier) -> None:
    rng = random.Random(7)
    for _ in range(3000):
        frame = bytearray(rng.choice((ipv4(), ipv4(TCP, 6), ipv6(), ipv6(options(17) + UDP, 0))))
        for _ in range(rng.randrange(1, 5)):
            frame[rng.randrange(12, len(frame))] = rng.randrange(256)
        result = classifier.run(bytes(frame[: rng.choice((len(frame), rng.randrange(60, 90)))]))
        assert result.reason not in (Reason.LOOKUP, Reason.LONG_WALK, Reason.NO_CODE)


def test_a_family_without_a_chain_is_punted() -> None:
    with Classifier.load(image_of(chain()), Options(trace=Trace.LAST)) as classifier:
        assert classifier.run(ipv6()).reason is Reason.NO_SLOT
        assert classifier.run(ipv4()).outcome is Outcome.DROP


@pytest.mark.parametrize("largest", [7, 4095, 4096, 1 << 30])
def test_devices_that_were_not_known_at_load_are_punted(largest: int) -> None:
    flat = chain(
        ({Field.IN_INTERFACE: Intervals.single(1)}, OpKind.ACCEPT), interfaces=("", "eth0")
    )
    options = Options(trace=Trace.LAST, interfaces={largest: "eth7"})
    with Classifier.load(image_of(flat), options) as classifier:
        assert classifier.run(ipv4()).reason is Reason.INTERFACE
        classifier.set_interface(1, "eth0")
        assert classifier.run(ipv4()).outcome is Outcome.ACCEPT
        classifier.set_interface(1, "eth1")
        assert classifier.run(ipv4()).outcome is Outcome.DROP


def test_forward_punts_what_would_expire() -> None:
    image = image_of(chain(name="FORWARD"))
    with Classifier.load(image, Options(chain="FORWARD", trace=Trace.LAST)) as classifier:
        for ttl, reason in ((0, Reason.TTL), (1, Reason.TTL), (2, Reason.NONE)):
            frame = bytearray(ipv4())
            frame[22] = ttl
            assert classifier.run(bytes(frame)).reason is reason


def test_both_chains_of_both_families_live_in_one_program() -> None:
    kinds = {
        (Family.IPV4, "INPUT"): OpKind.ACCEPT,
        (Family.IPV4, "FORWARD"): OpKind.DROP,
        (Family.IPV6, "INPUT"): OpKind.DROP,
        (Family.IPV6, "FORWARD"): OpKind.ACCEPT,
    }
    chains = [
        chain(
            ({Field.PROTOCOL: Intervals.single(99)}, OpKind.PUNT),
            family=family,
            name=name,
            policy=kind,
        )
        for (family, name), kind in kinds.items()
    ]
    for name in ("INPUT", "FORWARD"):
        with Classifier.load(image_of(*chains), Options(chain=name, trace=Trace.LAST)) as loaded:
            for family, frame in ((Family.IPV4, ipv4()), (Family.IPV6, ipv6())):
                assert loaded.run(frame).outcome.name == kinds[family, name].name
