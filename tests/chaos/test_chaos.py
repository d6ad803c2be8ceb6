"""The short form of `make chaos`, and proof that its accounting notices what is wrong."""

from __future__ import annotations

import pytest

from tests.chaos.book import Book, Kind
from tests.chaos.edits import edits
from tests.chaos.leak import leaks
from tests.chaos.run import BACKENDS, plain, run, wrong

pytestmark = pytest.mark.kernel


def hush(_line: str) -> None:
    """Where a run says what it does."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_iptables_alone_the_book_finds_nothing(backend: str) -> None:
    result = plain(backend, router=True, seconds=1, seed=3, rate=200)
    assert result.good, result
    assert result.tally.accepted > 100
    assert result.tally.dropped > 100
    assert result.decided == 0
    assert result.conversations > 0


@pytest.mark.parametrize(("backend", "verdict"), [("nft", "accept"), ("legacy", "drop")])
def test_a_wrong_dispatch_is_found(backend: str, verdict: str) -> None:
    tally = wrong(backend, verdict, router=False, seconds=1.5, rate=200).tally
    found = tally.wrongly_accepted if verdict == "accept" else tally.wrongly_dropped
    assert found > 10, tally
    assert tally.evidence


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_program_at_output_is_found(backend: str) -> None:
    tally = wrong(backend, "output", router=backend == "legacy", seconds=1, rate=200).tally
    assert tally.wrongly_dropped > 10, tally
    assert not tally.wrongly_accepted, "it can only drop"
    assert all("OUTPUT" in line for line in tally.evidence)


def test_a_packet_that_vanishes_without_its_sender_being_told_is_found() -> None:
    kinds = {name: Kind(name, 4, "udp dropped") for name in ("INPUT", "OUTPUT")}
    book = Book(dict.fromkeys(kinds.values(), False))
    for kind in kinds.values():
        for tell in (True, False):
            number = book.number()
            book.sending(number, kind)
            if tell:
                book.refused(number)
    book.settle(everything=True)
    assert book.tally.untold == 1, "of OUTPUT alone"
    assert not book.tally.clean


@pytest.mark.parametrize(
    ("backend", "acts", "points"),
    [
        ("nft", ("a canary of half the flows",), (12,)),
        ("legacy", ("SIGKILL",), (20,)),
    ],
)
def test_every_packet_gets_its_verdict_whatever_happens(
    backend: str, acts: tuple[str, ...], points: tuple[int, ...]
) -> None:
    result = run(
        backend, router=True, seconds=1, seed=5, rate=200, say=hush, points=points, only=acts
    )
    assert result.good, result
    assert result.decided > 0
    assert result.early > 0
    assert result.points == list(points)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreign_edit_holds_from_the_next_packet_on(backend: str) -> None:
    result = edits(backend, 2, router=False, filler=0, seed=4, rate=100)
    assert result.good, result
    assert len(result.back) == result.edits == 2


def test_going_up_and_down_leaves_nothing() -> None:
    result = leaks("nft", 8)
    assert not result.left, result
    assert result.objects > 8 * 5
