"""`bpfilter deploy`: start the daemon for this network namespace or lead it on, or look first.

Exit codes: 0 done, 1 failed, 2 `--dry-run` and there is a change to make, 64 usage.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfilter.cli.connection import Ca, Cert, Remote, TokenFile, Url, connect
from bpfilter.cli.remote import deploy_by_api, own_peers, refuse_local
from bpfilter.cli.running import show, start, wait_for
from bpfilter.errors import UsageError
from bpfilter.report.terminal import terminal
from bpfilter.rollout.asking import ask
from bpfilter.rollout.early import EarlyRequest, require_conditions
from bpfilter.rollout.goal import Goal, Policy
from bpfilter.rollout.guards import probe_of
from bpfilter.rollout.interfaces import within
from bpfilter.rollout.journal import Stage, running, state_directory
from bpfilter.rollout.management import own_connections, protected
from bpfilter.rollout.prepare import prepare
from bpfilter.rollout.scope import Scope, parse_chain, parse_network
from bpfilter.ruleset.model import Backend

_VERIFY_SHARE = 0.1


def deploy_command(
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", "-i", help="Name, pattern (eth*) or auto; repeatable."),
    ] = None,
    stage: Annotated[Stage, typer.Option(help="How far to go.")] = Stage.SHADOW,
    backend: Annotated[Backend | None, typer.Option(help="Default: the one with rules.")] = None,
    confirm_within: Annotated[
        float | None, typer.Option(min=1.0, help="Roll back unless confirmed in so many seconds.")
    ] = None,
    confirm_id: Annotated[
        str | None, typer.Option(help="The id to confirm; default: one is made up.")
    ] = None,
    canary_interface: Annotated[
        list[str] | None, typer.Option(help="Canary: decide at these interfaces; repeatable.")
    ] = None,
    canary_source: Annotated[
        list[str] | None, typer.Option(help="Canary: packets from these networks; repeatable.")
    ] = None,
    canary_share: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Canary: percent of the flows.")
    ] = 100.0,
    canary_chain: Annotated[
        list[str] | None, typer.Option(help="Canary: as ipv4:filter/INPUT; repeatable.")
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="As seconds=60 or exercised=0.5; repeatable.")
    ] = None,
    waive: Annotated[
        list[str] | None, typer.Option(help="RULE,PREDICTED,ACTUAL,EXPIRES,REASON; repeatable.")
    ] = None,
    policy: Annotated[
        Policy, typer.Option(help="When the rules change: follow them, or hold.")
    ] = Policy.FOLLOW,
    probe: Annotated[
        str | None, typer.Option(help="Command that must succeed; words as in a shell, no shell.")
    ] = None,
    verify_share: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Percent of packets to verify for good.")
    ] = _VERIFY_SHARE,
    protect: Annotated[
        list[str] | None, typer.Option(help="ADDRESS:PORT that must not be locked out; repeatable.")
    ] = None,
    accept_lockout: Annotated[
        bool, typer.Option(help="Also if the plan drops the operator's own connection.")
    ] = False,
    accept_state_reset: Annotated[
        bool, typer.Option(help="Legacy: our edits may reset limits that decide verdicts.")
    ] = False,
    early: Annotated[
        bool, typer.Option("--early", help="Drop before netfilter what leaves no trace there.")
    ] = False,
    xdp: Annotated[
        list[str] | None, typer.Option(help="Drop early at XDP: IF=native, generic or auto.")
    ] = None,
    accept_sockets: Annotated[
        bool,
        typer.Option("--accept-sockets", help="Packet sockets may miss what is dropped early."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Shadow, canary or enforce the live iptables rules of this network namespace.

    Where the daemon runs already it goes on from its stage to this one. With --url, and for who is
    not root, the REST API is asked.
    """
    console = terminal()
    directory = state or state_directory()
    if stage is Stage.OFF:
        raise UsageError("--stage takes shadow, canary or enforce", hint="`bpfilter rollback`")
    scope = Scope(
        tuple(canary_interface or ()),
        tuple(map(parse_network, canary_source or ())),
        canary_share / 100,
        tuple(map(parse_chain, canary_chain or ())),
    )
    if stage is not Stage.CANARY and not scope.everything:
        raise UsageError(f"--canary… narrows {scope}", hint="add --stage canary")
    daemon = connect(url, state, token_file, ca, cert)
    if isinstance(daemon, Remote):
        refuse_local(
            {
                "--backend": backend,
                "--probe": probe,
                "--canary-chain": canary_chain,
                "--early": early,
                "--xdp": xdp,
                "--verify-share": verify_share != _VERIFY_SHARE,
            },
            "set it in the service's [deployment] section, or deploy as root on the host",
        )
        number = confirm_id or secrets.token_hex(4)
        commit = {"id": number, "seconds": confirm_within}
        canary = {name: scope.document()[name] for name in ("interfaces", "sources", "share")}
        change = deploy_by_api(
            daemon,
            {
                "stage": stage,
                "interfaces": interface or [],
                "commit": None if confirm_within is None else commit,
                "canary": canary if stage is Stage.CANARY else None,
                "gates": gate or [],
                "waivers": waive or [],
                "policy": policy,
                "accept_state_reset": accept_state_reset,
                "accept_lockout": accept_lockout,
                "protect": [*own_peers(url), *(protect or ())],
            },
            console,
            dry_run=dry_run,
        )
        if dry_run:
            raise typer.Exit(2 if change else 0)
        if confirm_within is not None:
            console.print(f"confirm within {confirm_within:.0f} s: bpfilter confirm {number}")
        return
    operator = [*own_connections(os.getpid()), *map(protected, protect or ())]
    number = confirm_id or secrets.token_hex(4)
    wanted: dict[str, Any] = {
        "stage": stage,
        "confirm_within": confirm_within,
        "confirm_id": number if confirm_within is not None else "",
        "scope": scope.document(),
        "gates": gate or [],
        "waivers": waive or [],
        "policy": policy,
        "accept_reset": accept_state_reset,
        "operator": [found.words for found in operator],
        "accept_lockout": accept_lockout,
    }
    Goal.of(wanted)
    drops = EarlyRequest.parse(early, xdp or (), interface or (), accept_sockets)
    present = running(directory)
    begins = present is None or present[1] is Stage.OFF
    chosen: tuple[str, ...] = ()
    if interface and begins:
        chosen = tuple(within(interface, scope))
    if drops is not None and begins and not dry_run:
        require_conditions(chosen, drops)
        for sentence in drops.notices():
            console.print(f"[cyan]notice[/] {sentence}")
    if dry_run:
        if not interface:
            raise UsageError("--interface is missing", hint="name the interface to attach to")
        prepared = prepare(backend)
        show(console, prepared, interface, stage, operator)
        raise typer.Exit(0 if present is not None and present[1] is stage else 2)
    if present is not None:
        request = {
            "interfaces": interface,
            "backend": backend,
            "verify_share": verify_share / 100,
            "probe": None if probe is None else asdict(probe_of(probe)),
            "early": None if drops is None else asdict(drops),
        }
        console.print(ask(directory, "goal", {**wanted, "request": request}).sentence)
        wait_for(directory, stage, console, None)
    else:
        if not interface:
            raise UsageError("--interface is missing", hint="name the interface to attach to")
        words = [word for name in interface for word in ("--interface", name)]
        words += ["--goal", json.dumps(wanted), "--verify-share", str(verify_share)]
        words += ["--backend", backend] if backend is not None else []
        words += ["--probe", probe] if probe is not None else []
        words += drops.words if drops is not None else []
        start(directory, words, stage, console)
    if confirm_within is not None:
        console.print(f"confirm within {confirm_within:.0f} s: bpfilter confirm {number}")
