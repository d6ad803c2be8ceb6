"""What libbpf hands over before it loads a program; and what happens if that goes wrong."""

from __future__ import annotations

import pytest

from bpfilter.compiler.layout import Outcome
from bpfilter.kernel import preload
from bpfilter.kernel.bytecode import EXIT, Instruction, Program
from bpfilter.kernel.program import Classifier, Options, Trace
from bpfilter.kernel.specialise import Specialised, specialise
from tests.kernel.images import chain, image_of
from tests.kernel.test_punts import TCP, ipv4

OPTIONS = Options(trace=Trace.LAST)


def _decides() -> bool:
    with Classifier.load(image_of(chain()), OPTIONS) as classifier:
        return classifier.run(ipv4(TCP)).outcome is Outcome.DROP


@pytest.mark.kernel
def test_programs_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watched(program: Program, *known: object) -> Specialised:
        made.append((len(program), specialise(program, *known)))
        return made[-1][1]

    monkeypatch.setattr(preload, "specialise", watched)
    assert _decides()
    assert made
    assert all(len(result.instructions) < size / 2 for size, result in made)


@pytest.mark.kernel
def test_what_is_not_understood_is_loaded_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Specialised:
        raise KeyError(7)

    monkeypatch.setattr(preload, "specialise", fails)
    assert _decides()


@pytest.mark.kernel
def test_what_the_kernel_refuses_is_loaded_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> Specialised:
        return Specialised([Instruction(EXIT, 0, 0, 0, 0)], [0], [0], {0: 0})

    monkeypatch.setattr(preload, "specialise", wrong)
    assert _decides()
