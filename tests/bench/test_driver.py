"""The benchmark's driver feeds a program all frames in turn."""

from __future__ import annotations

import numpy as np
import pytest

from bench.frames import frame, headers
from bench.generate import Style, generate
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.walk import walk
from bpfilter.kernel.config import Mode
from bpfilter.kernel.program import Classifier, Options
from bpfilter.lab.driver import Driver
from bpfilter.ruleset.read import read_text

pytestmark = pytest.mark.kernel


def test_every_frame_is_judged_once_per_turn() -> None:
    plan = compile_ruleset(read_text(generate(Style.FW, 40, 5)), [("filter", "INPUT")])
    flat = plan.chains[("filter", "INPUT")].flat
    packets = headers(flat, np.random.default_rng(5), 50)
    options = Options(mode=Mode.FORCED, interfaces={1: "lo"})
    with Classifier.load(assemble([plan]), options) as classifier:
        with Driver([frame(packet) for packet in packets]) as driver:
            driver.measure(classifier.fd, repeat=150, rounds=1)
        (counters,) = classifier.counters().values()
    expected = np.zeros(len(flat.entries), int)
    for packet in packets:
        expected[walk(flat, packet, 1)[1]] += 3
    assert (counters["packets"][:, 0] == expected).all()
