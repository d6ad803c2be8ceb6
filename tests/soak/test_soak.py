"""The short form of `make soak`."""

from __future__ import annotations

import pytest

from bpfilter.ruleset.model import Backend
from tests.soak.soak import describe, faults, soak

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(("backend", "gro"), [(Backend.NFT, True), (Backend.LEGACY, False)])
def test_mixed_traffic_is_attributed_without_mismatch(backend: Backend, gro: bool) -> None:
    comparison = soak(backend, 25_000, gro=gro)
    assert faults(comparison) == [], describe(comparison)
