"""What comparing finds and does when the program is wrong, decides, or cannot be watched."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from bpfilter.compiler.ir import OpKind
from bpfilter.kernel.arrays import MappedArray
from bpfilter.kernel.config import Reason
from bpfilter.kernel.program import Classifier
from bpfilter.rollout.comparison import Mechanism, Verdict
from bpfilter.rollout.evidence import sentence, summary
from bpfilter.rollout.guards import Guards, inspect
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.fields import State
from bpfilter.ruleset.model import Backend, RuleRef
from tests.rollout.network import FW4, Net, entered
from tests.rollout.watched import (
    ACCEPTED,
    BACKENDS,
    DROPPED,
    load,
    said_and_was,
    sound,
    watched,
)

pytestmark = pytest.mark.kernel


@BACKENDS
def test_a_sampled_packet_is_left_to_iptables_while_enforcing(net: Net, backend: Backend) -> None:
    load(net, backend)
    with watched(net, verify_share=1.0) as found:
        net.send(4001, 5)
        net.send(4004, 5)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.punted[Reason.SAMPLED] >= 10
    assert said_and_was(comparison, 4) == {ACCEPTED: 5}


def corrupt(classifier: Classifier, rule: RuleRef, kind: OpKind) -> None:
    """Let the loaded program end at this rule with another operation."""
    slot = classifier.contents.slots[0]
    assert slot is not None
    entries = [i for i, entry in enumerate(slot.plan.flat.entries) if entry.rule == rule]
    ops = classifier.contents.ops
    mapped = MappedArray(classifier.map_fd("ops"), np.dtype([("op", "<u4")]), len(ops))
    mapped.cells["op"][entries] = kind << 28
    mapped.close()


@BACKENDS
def test_a_wrong_program_is_caught_with_the_right_rule_and_harms_nobody(
    net: Net, backend: Backend
) -> None:
    load(net, backend)
    with watched(net) as found, net.udp(net.fw, port=4001) as server:
        corrupt(found.classifier, RuleRef("filter", "INPUT", 4), OpKind.DROP)
        net.send(4001, 7)
        for _ in range(7):
            assert server.recvfrom(10)[0] == b"x"
        comparison = found.comparison()
        assert found.watch.mismatches == 7
    assert comparison.mismatches == 7
    assert said_and_was(comparison, 4) == {("DROP", "ACCEPT"): 7}
    sample = comparison.samples[0]
    assert sample.key.rule == RuleRef("filter", "INPUT", 4)
    assert (sample.predicted, sample.actual) == (Verdict.DROP, Verdict.ACCEPT)
    assert sample.state is State.NEW
    assert sample.interface == "v1"
    assert sample.header[16:20] == socket.inet_aton(FW4)
    assert int.from_bytes(sample.header[22:24], "big") == 4001
    assert abs(sample.at - time.time()) < 60
    found_by = inspect(Guards(), comparison, (), time.time())
    assert found_by is not None
    assert "filter/INPUT/4 said DROP, iptables ACCEPT: 45" in str(found_by)
    document = json.loads(json.dumps(summary(comparison)))
    assert document["mismatches"] == len(document["samples"]) == 7
    assert "7 otherwise" in sentence(document)


def test_more_mismatches_than_the_ring_holds_are_counted_all_the_same(net: Net) -> None:
    load(net)
    with watched(net) as found:
        corrupt(found.classifier, RuleRef("filter", "INPUT", 4), OpKind.DROP)
        for _ in range(3):
            net.send(4001, 100)
        comparison = found.comparison()
    assert comparison.mismatches == 300
    assert len(comparison.samples) + comparison.lost_samples == 300
    assert comparison.lost_samples > 0


def test_a_mismatch_ends_the_lease_in_the_kernel(net: Net) -> None:
    load(net)
    with watched(net, verify_share=0.5, revokes=True) as found:
        corrupt(found.classifier, RuleRef("filter", "INPUT", 4), OpKind.DROP)
        for _ in range(4):
            net.send(4001, 20)
        punted = found.classifier.punts()
        comparison = found.comparison()
    assert comparison.mismatches == 1, "the first that was sampled"
    assert punted[Reason.LEASE] >= 80 - 30


@BACKENDS
def test_counters_take_over_where_packets_cannot_be_compared(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    said: list[str] = []
    with (
        watched(net),
        watched(net),
        entered(net.fw),
        Journal(tmp_path / "state") as journal,
        Rollout(Request(("v1",)), journal, said.append) as rollout,
    ):
        rollout.shadow()
        net.send(4001, 5)
        net.send(4003, 5)
        comparison = rollout.comparison()
    assert comparison is not None
    assert comparison.mechanism is Mechanism.COUNTERS
    assert any("counters are compared instead" in line for line in said)
    assert comparison.mismatches == 0
    assert said_and_was(comparison, 4) == {ACCEPTED: 5}
    assert said_and_was(comparison, 6) == {DROPPED: 5}
