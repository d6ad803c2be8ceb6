"""Public rulesets agree with the kernel; scripts/verify_rulesets.py takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfilter.errors import LabError, RulesetRefused
from bpfilter.lab.verify import Request, verify
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_file

PACKETS = 100
EVERY = 17
LARGEST = 30_000
"""Bytes; the larger ones take several seconds each."""


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend))
def test_public_rulesets_agree_with_the_kernel(
    shared_rulesets: list[Path], backend: Backend
) -> None:
    small = [path for path in shared_rulesets if path.stat().st_size < LARGEST]
    for path in small[list(Backend).index(backend) :: EVERY]:
        family = Family.IPV4 if path.suffix == ".v4" else Family.IPV6
        try:
            ruleset = read_file(str(path), family=family, backend=backend)
            request = Request(
                ruleset, backend, packets=PACKETS, text=path.read_bytes(), cutover=cutover
            )
            report = verify(request)
        except (RulesetRefused, LabError):
            continue  # of another kernel: extensions that this one lacks
        assert report.holds, (path.name, report.divergences)
