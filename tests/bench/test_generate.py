"""Generated rulesets are repeatable, and rulesets that iptables takes as they are."""

from __future__ import annotations

import subprocess

import pytest

from bench.frames import FRAMES, frame
from bench.generate import Style, generate, rules
from bpfilter.compiler.layout import AXES
from bpfilter.ruleset.fields import Family, Field


@pytest.mark.parametrize("style", list(Style))
def test_the_same_seed_gives_the_same_rules(style: Style) -> None:
    assert generate(style, 200, 7) == generate(style, 200, 7)
    assert generate(style, 200, 7) != generate(style, 200, 8)


@pytest.mark.parametrize("style", list(Style))
def test_no_rule_appears_twice(style: Style) -> None:
    lines = [line.rpartition(" -j ")[0] for line in rules(style, 1000, 1)]
    assert len(set(lines)) == 1000


@pytest.mark.kernel
@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_iptables_loads_the_rules_and_prints_them_alike(style: Style, backend: str) -> None:
    text = generate(style, 100, 3)
    script = f"iptables-{backend}-restore && iptables-{backend}-save"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert appended(done.stdout) == appended(text)


def appended(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("-A")]


@pytest.mark.parametrize("protocol", [1, 6, 17, 47])
def test_frames_have_one_length_and_a_right_header_checksum(protocol: int) -> None:
    packet = dict.fromkeys((*AXES, Field.FRAGMENT), 0)
    packet[Field.SOURCE], packet[Field.PROTOCOL] = 0x0A000001, protocol
    encoded = frame(packet)
    assert len(encoded) == FRAMES[Family.IPV4]
    words = [int.from_bytes(encoded[at : at + 2], "big") for at in range(14, 34, 2)]
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
