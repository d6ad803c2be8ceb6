"""`make fuzz`: random rulesets through real iptables and through the program, packet by packet.

    python -m bpfilter.cli.fuzz --rulesets 200 --packets 200 --seed 1

Everything follows from the seed. A divergence is reduced to the smallest ruleset that still shows
one before it is reported.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from bpfilter.cli.run import run_app
from bpfilter.compiler import tables, tries
from bpfilter.errors import BpfilterError, LabError, RulesetRefused
from bpfilter.kernel import pack
from bpfilter.lab.generate import random_ruleset
from bpfilter.lab.host import UnfaithfulSave
from bpfilter.lab.report import Report
from bpfilter.lab.verify import Request, verify
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.refusal import ask_kernel

_BUDGET = 2000
_LARGE = ((tables, "UNPAIRED_WORDS", 0), (tries, "TABLES_ALONE", -1), (pack, "ALONE", 0))
_PROGRESS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """One random ruleset and where it is tried."""

    text: str
    family: Family
    backend: Backend
    chain: str
    seed: int


def make_case(seed: int, number: int) -> Case:
    """The case of this number; equal arguments give equal cases."""
    source = random.Random(f"{seed}/{number}")
    family = source.choice(list(Family))
    backend = source.choice(list(Backend))
    chain = source.choice(("INPUT", "INPUT", "FORWARD"))
    text = random_ruleset(source, family)
    return Case(text, family, backend, chain, source.randrange(1 << 30))


@dataclass(slots=True)
class Tally:
    """What became of the rulesets of one run, and how many packets were compared."""

    refused: int = 0
    lab_failures: int = 0
    divergences: int = 0
    packets: int = 0

    def __str__(self) -> str:
        return (
            f"{self.refused} refused, {self.lab_failures} lab failures,"
            f" {self.packets} packets compared, {self.divergences} divergences"
        )


def try_case(case: Case, packets: int) -> Report | None:
    """The lab's report; None if iptables refuses the ruleset, or cannot load it.

    LabError if the lab fails with a ruleset that iptables does load.
    """
    try:
        ruleset = read_text(case.text, family=case.family, backend=case.backend)
    except RulesetRefused as error:
        typer.echo(f"left out: {_first_line(error)}")
        return None
    try:
        return verify(
            Request(
                ruleset,
                case.backend,
                packets=packets,
                seed=case.seed,
                text=case.text.encode(),
                cutover=cutover,
                prove=False,
                chains=(("filter", case.chain),),
                budget=_BUDGET,
            )
        )
    except UnfaithfulSave as error:
        typer.echo(f"left out: {_first_line(error)}")
        return None
    except LabError as error:
        said = ask_kernel(case.text.encode(), ruleset, case.backend)
        if said is None or not (said.refusal or said.warning):
            raise
        typer.echo(f"left out: {_first_line(error)}")
        return None


def fails(case: Case, packets: int) -> bool:
    """Whether the case diverges, or makes the product fail; a failing lab says nothing of that."""
    try:
        report = try_case(case, packets)
    except LabError:
        return False
    except Exception:
        return True
    return report is not None and not report.holds


def smallest(case: Case, packets: int) -> Case:
    """The case with every rule and match taken away that the failure does not need."""
    changed = True
    while changed:
        changed = False
        for text in _smaller(case.text):
            candidate = Case(text, case.family, case.backend, case.chain, case.seed)
            if fails(candidate, packets):
                case, changed = candidate, True
                break
    return case


def _smaller(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if line.startswith("-A"):
            yield "\n".join(lines[:index] + lines[index + 1 :])
    for index, line in enumerate(lines):
        if line.startswith("-A"):
            parts = line.split(" -m ")
            for left_out in range(1, len(parts) - 1):
                shorter = " -m ".join(parts[:left_out] + parts[left_out + 1 :])
                yield "\n".join([*lines[:index], shorter, *lines[index + 1 :]])


def fuzz_command(
    rulesets: Annotated[int, typer.Option(min=1, help="How many rulesets.")] = 200,
    packets: Annotated[int, typer.Option(min=1, help="Packets for each.")] = 200,
    seed: Annotated[int, typer.Option(help="Names the whole run.")] = 1,
    first: Annotated[int, typer.Option(min=0, help="The number of the first ruleset.")] = 0,
    large: Annotated[bool, typer.Option(help="Lay tables out as those of large sets are.")] = False,
) -> int:
    """Random rulesets: real iptables against the program.

    Exit code 1 if they ever differ, or if the lab fails: what it did not compare is not known.
    """
    started = time.monotonic()
    for module, name, value in _LARGE if large else ():
        setattr(module, name, value)
    tally = Tally()
    for number in range(first, first + rulesets):
        _count(tally, number, make_case(seed, number), packets)
        if number % _PROGRESS == _PROGRESS - 1:
            took = time.monotonic() - started
            typer.echo(f"{number + 1 - first} rulesets: {tally}, {took:.0f} s")
    typer.echo(f"{rulesets} rulesets: {tally}; seed {seed}")
    return 1 if tally.divergences or tally.lab_failures else 0


def _count(tally: Tally, number: int, case: Case, packets: int) -> None:
    """Try one case, add it to the tally, and show what went wrong."""
    try:
        report = try_case(case, packets)
    except LabError as error:
        tally.lab_failures += 1
        typer.echo(f"ruleset {number}: the lab failed: {_first_line(error)}")
        return
    except BpfilterError as error:
        tally.divergences += 1
        typer.echo(f"ruleset {number}: {_first_line(error)}")
        _show(case, packets)
        return
    if report is None:
        tally.refused += 1
        return
    tally.packets += sum(chain.shadow.matched for chain in report.chains)
    if not report.holds:
        tally.divergences += 1
        typer.echo(f"ruleset {number} diverges:")
        _show(case, packets)


def _show(case: Case, packets: int) -> None:
    case = smallest(case, packets)
    typer.echo(f"# {case.family} {case.backend} {case.chain}, packet seed {case.seed}")
    typer.echo(case.text)
    try:
        report = try_case(case, packets)
    except BpfilterError as error:
        typer.echo(_first_line(error))
        return
    for divergence in report.divergences if report else ():
        typer.echo(f"{divergence.run}: {divergence.cause}")
        typer.echo(f"  packet in state {divergence.state}: {dict(divergence.packet)}")
        typer.echo(f"  by the program: {' → '.join(divergence.program_path)}")
        typer.echo(f"  by iptables: {' → '.join(divergence.kernel_path)}")


def _first_line(error: BpfilterError) -> str:
    return error.message.split("\n", 1)[0]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(fuzz_command)

if __name__ == "__main__":
    sys.exit(run_app(app, "fuzz"))
