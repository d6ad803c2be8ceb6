"""Clients, however many and however slow, do not delay the renewal of a lease."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from bpfilter.ruleset.model import Backend
from tests.api.test_service import DEPLOYMENT, put, reached, serving
from tests.rollout.network import Net
from tests.rollout.test_stages import load

pytestmark = pytest.mark.kernel
CLIENTS, STREAMS, ASKED_EACH = 200, 80, 3
FOLLOW = b"GET /v1/events HTTP/1.1\r\nHost: d\r\nAccept: text/event-stream\r\n\r\n"
HALF = b"POST /v1/plans HTTP/1.1\r\nHost: d\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


def test_a_storm_of_clients_delays_no_renewal(net: Net, tmp_path: Path) -> None:
    """As the engine itself counts it: no renewal came after half the lease."""
    load(net, Backend.NFT)
    place = str(tmp_path / "api.sock")
    with serving(net, tmp_path) as client, ExitStack() as open_ones:
        assert put(client, stage="shadow", interfaces=["v1"]).status_code == 200
        reached(client, "shadow")
        pool = open_ones.enter_context(ThreadPoolExecutor(CLIENTS))
        streams = [sent(open_ones, place, FOLLOW) for _ in range(STREAMS)]
        slow = [sent(open_ones, place, HALF) for _ in range(8)]

        def ask(_: int) -> set[int]:
            transport = httpx.HTTPTransport(uds=place)
            with httpx.Client(transport=transport, base_url="http://d", timeout=120) as mine:
                return {mine.get(DEPLOYMENT).status_code for _ in range(ASKED_EACH)}

        assert set().union(*pool.map(ask, range(CLIENTS))) == {200}
        heads = [each.recv(64).split(b" ", 2)[1] for each in streams]
        assert heads.count(b"200") >= 32 and set(heads) <= {b"200", b"429"}
        assert len(slow) == 8
        lease = client.get(DEPLOYMENT).json()["lease"]
        assert lease["longest_gap"] > 0 and lease["late_renewals"] == 0, lease


def sent(open_ones: ExitStack, place: str, request: bytes) -> socket.socket:
    """A connection on which this was sent, open until the end."""
    connection = open_ones.enter_context(socket.socket(socket.AF_UNIX))
    connection.settimeout(60)
    connection.connect(place)
    connection.sendall(request)
    return connection
