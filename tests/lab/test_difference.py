"""The semantic diff against the kernel: packets lie in the reported changes exactly when verdicts
of real iptables differ.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bpfilter.analysis.difference import HookDifference, compare
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.ir import Space
from bpfilter.compiler.plan import ChainPlan, Plan
from bpfilter.errors import RulesetRefused
from bpfilter.lab.conversation import Stimulus
from bpfilter.lab.generate import random_ruleset
from bpfilter.lab.host import LabHost
from bpfilter.lab.oracle import Observation, Oracle
from bpfilter.lab.stimuli import choose_stimuli
from bpfilter.lab.topology import device_names
from bpfilter.ruleset.fields import Family, Field
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import write
from tests.analysis.test_difference import holds

pytestmark = pytest.mark.kernel
INPUT = ("filter", "INPUT")
DYNAMIC = ("limit", "recent", "statistic", "string", "physdev", "LOG", "MARK", "mark", "addrtype")
PACKETS = 120
SEEDS = 6


def static_rules(chance: random.Random, family: Family) -> tuple[list[str], list[str]]:
    """Chain and rule lines of a random filter table, REJECT as DROP, dynamic rules left out."""
    text = random_ruleset(chance, family).partition("*filter\n")[2].partition("COMMIT")[0]
    static = [line for line in text.splitlines() if not any(word in line for word in DYNAMIC)]
    lines = [f"{line.partition(' -j REJECT')[0]} -j DROP" if " REJECT" in line else line
             for line in static]  # fmt: skip
    chains = [line for line in lines if line.startswith(":")]
    return chains, [line for line in lines if line.startswith("-A")]


def edited(lines: Sequence[str], more: Sequence[str], chance: random.Random) -> list[str]:
    """One to three rules dropped, moved, turned round, or taken from another ruleset."""
    result = list(lines)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(result) + 1)
        kind = chance.randrange(4)
        if kind == 0 and at < len(result):
            del result[at]
        elif kind == 1 and result:
            result.insert(min(at, len(result) - 1), result.pop(chance.randrange(len(result))))
        elif kind == 2 and at < len(result) and result[at].endswith(("ACCEPT", "DROP")):
            head, _, target = result[at].rpartition(" ")
            result[at] = f"{head} {'DROP' if target == 'ACCEPT' else 'ACCEPT'}"
        elif more:
            result.insert(at, chance.choice(more))
    return result


def pair(seed: int, family: Family) -> tuple[Ruleset, Ruleset]:
    """A random ruleset and the same edited: the first that iptables takes, from this seed on."""
    for number in range(seed * 1000, (seed + 1) * 1000):
        chance = random.Random(number)
        chains, lines = static_rules(chance, family)
        names = [line.split()[0][1:] for line in chains]
        _, others = static_rules(chance, family)
        more = [line for line in others if line.rpartition("-j ")[2] in ("ACCEPT", "DROP")]
        more = [line for line in more if line.split()[1] in names]
        try:
            texts = [
                "\n".join(["*filter", *chains, *rules, "COMMIT", ""])
                for rules in (lines, edited(lines, more, chance))
            ]
            old, new = (read_text(text, family=family) for text in texts)
        except RulesetRefused:
            continue
        if old.digest != new.digest:
            return old, new
    raise AssertionError("no pair")


def classes(space: Space, devices: Sequence[str]) -> Mapping[int, str]:
    return {space.interface_class(name): name for name in devices}


def joint(
    stimuli: Sequence[Stimulus], names: Mapping[int, str], space: Space
) -> Sequence[Stimulus]:
    """The same packets with the interface classes and masks of the diff's space."""
    found = []
    for stimulus in stimuli:
        packet = dict(stimulus.packet)
        packet[Field.IN_INTERFACE] = space.interface_class(names[packet[Field.IN_INTERFACE]])
        packet[Field.OUT_INTERFACE] = 0
        packet[Field.MASKS] = sum(
            (packet[field] & masked.mask == masked.value) << bit
            for bit, (field, masked) in enumerate(space.masks)
        )
        found.append(replace(stimulus, packet=packet))
    return found


def planned(ruleset: Ruleset) -> tuple[Plan, ChainPlan]:
    plan = compile_ruleset(ruleset, [INPUT])
    return plan, plan.chains[INPUT]


def in_kernel(
    ruleset: Ruleset, stimuli: Sequence[Stimulus], space: Space, devices: Sequence[str], lock: Path
) -> Sequence[Observation]:
    names = classes(space, devices)
    image = assemble([planned(ruleset)[0]])
    text = write(ruleset).encode("utf-8", "surrogateescape")
    with (
        LabHost.build(devices, lock, ruleset, Backend.NFT, text) as host,
        Oracle(host.topology, ruleset.family) as oracle,
    ):
        host.join(stimuli, names)
        with oracle.classifying(image, "INPUT", ()) as classifier:
            return oracle.observe(classifier, "INPUT", stimuli, names, names)


def chosen(
    rulesets: Sequence[Ruleset], found: HookDifference, devices: Sequence[str], seed: int
) -> Sequence[Stimulus]:
    """Packets at the edges of both rulesets' rules, in all connection states, numbered anew."""
    stimuli: list[Stimulus] = []
    for ruleset in rulesets:
        chain = planned(ruleset)[1]
        names = classes(chain.flat.space, devices)
        drawn = choose_stimuli(
            chain, np.random.default_rng(seed), PACKETS, in_classes=list(names),
            out_classes=list(names), untracked=False,
        )  # fmt: skip
        stimuli += joint(drawn.chosen, names, found.space)
    return [replace(stimulus, number=number) for number, stimulus in enumerate(stimuli, 1)]


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_packets_lie_in_the_changes_exactly_when_the_kernels_verdicts_differ(
    family: Family, tmp_path: Path
) -> None:
    counts = [compared(seed, family, tmp_path / "lock") for seed in range(SEEDS)]
    assert sum(both for both, _ in counts) > SEEDS * PACKETS
    assert sum(changed for _, changed in counts) > SEEDS


def compared(seed: int, family: Family, lock: Path) -> tuple[int, int]:
    """Of one pair: packets whose two verdicts were seen in the same state, and how many differ."""
    old, new = pair(seed, family)
    found = compare(old, new, INPUT, seconds=30, boxes=64)
    assert found is not None and found.complete
    if found.dynamic or any(change.more for change in found.changes):
        return 0, 0  # boxes that leave packets out say nothing of those
    devices = list(device_names(found.space).values())
    stimuli = chosen((old, new), found, devices, seed)
    was = in_kernel(old, stimuli, found.space, devices, lock)
    now = in_kernel(new, stimuli, found.space, devices, lock)
    both = changed = 0
    for before, after in zip(was, now, strict=True):
        if before.state is None or before.state is not after.state:
            continue
        packet, state = before.stimulus.packet, before.state
        claimed = {
            (change.old.verdict, change.new.verdict)
            for change in found.changes
            if change.of_verdict and any(holds(box, packet, state) for box in change.boxes)
        }
        differs = before.verdict != after.verdict
        assert claimed == ({(before.verdict, after.verdict)} if differs else set()), (seed, packet)
        both += 1
        changed += differs
    return both, changed
