"""Fixtures of the rollout tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rollout.network import Net


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built
