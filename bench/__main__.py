"""`python -m bench`: measures the compiler and the program, prints tables, writes JSON."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from bench.compiled import measure
from bench.generate import Style
from bench.live import measure_live
from bench.report import Compiled, Live, print_compiled, print_live, write_json
from bench.xdp import measure_xdp
from bpfilter.errors import BpfilterError

_SIZES = "10,100,1000,10000"
_LIVE_SIZES = "10,100,1000"


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of rules, comma separated.")] = _SIZES,
    styles: Annotated[str, typer.Option(help="Of acl, fw, ipc.")] = "acl,fw,ipc",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal rulesets and packets.")] = 1,
    packets: Annotated[int, typer.Option(help="Distinct headers that take turns.")] = 1024,
    repeat: Annotated[int, typer.Option(help="Packets in one measured run.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Runs, taking turns with the harness.")] = 60,
    proof: Annotated[bool, typer.Option(help="Prove every plan.")] = True,
    live: Annotated[bool, typer.Option(help="Send real packets through a veth pair.")] = True,
    live_sizes: Annotated[str, typer.Option(help="Numbers of rules there.")] = _LIVE_SIZES,
    quick: Annotated[bool, typer.Option(help="Few rules, few runs.")] = False,
) -> None:
    """Measure planning, loading, proving and classification, then iptables against BPF."""
    console = Console()
    console.width = max(console.width, 120)
    if quick:
        sizes, live_sizes, rounds = "10,1000", "100", 15
    root = os.geteuid() == 0
    if not root:
        console.print("not root: nothing is loaded or sent, the compiler alone is measured")
    compiled: list[Compiled] = []
    for style in map(Style, styles.split(",")):
        for count in map(int, sizes.split(",")):
            console.print(f"{style} {count} …", end="\r")
            result = measure(
                style,
                count,
                seed,
                packets=packets,
                repeat=repeat,
                rounds=rounds,
                proving=proof,
                running=root,
            )
            compiled.append(result)
    print_compiled(compiled, console)
    sent: list[Live] = []
    if live and root:
        sent = measure_live(Style.ACL, [int(size) for size in live_sizes.split(",")], seed, packets)
        sent += measure_xdp(Style.ACL, [int(size) for size in sizes.split(",")], seed, packets)
        print_live(sent, console)
    console.print(f"written to {write_json(compiled, sent, seed)}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except BpfilterError as error:
        Console(stderr=True).print(f"[bold red]bench[/]: {error}")
        raise SystemExit(error.exit_code) from None
