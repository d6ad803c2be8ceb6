"""What a plan would meet on this host: hooks, mark field, dispatch, risks. Changes nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from bpfilter.analysis.codes import prove_codes
from bpfilter.compiler.compile import assemble
from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import Plan
from bpfilter.errors import BpfilterError
from bpfilter.kernel.probe import offers
from bpfilter.kernel.routing import host_forwards
from bpfilter.kernel.shadow import PRIORITIES
from bpfilter.rollout import host
from bpfilter.rollout.dispatch import INGRESS_CHAINS, merge, render
from bpfilter.rollout.doctor import Finding, Level, examine
from bpfilter.rollout.interfaces import Interface, survey
from bpfilter.rollout.management import Connection, losses
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.notices import OUTPUT as OUTPUT_NOTICE
from bpfilter.rollout.notices import notices
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
from bpfilter.ruleset.model import Backend, Ruleset

_MANAGERS = {
    "DOCKER": "Docker", "KUBE-": "kube-proxy", "CALI": "Calico", "CILIUM": "Cilium",
    "f2b-": "fail2ban", "fail2ban-": "fail2ban", "ufw-": "ufw", "ufw6-": "ufw",
    "LIBVIRT_": "libvirt", "FLANNEL": "flannel", "ISTIO_": "Istio", "CNI-": "CNI plugins",
    "sshuttle": "sshuttle", "ts-": "Tailscale", "nixos-fw": "NixOS", "PVEFW-": "Proxmox",
}  # fmt: skip
"""Prefixes of chains by which programs that edit rules themselves are known."""
_EVERY_STAGE = "shadow, canary, enforce"
_DECIDING = "canary, enforce"
_FORWARD = ("filter", "FORWARD")


def outlook(plan: Plan, operator: Sequence[Connection] = ()) -> Mapping[str, Any]:
    """JSON values: `findings`, `interfaces`, `hooks`, `features`, `notices`, `mark`, `dispatch`.

    Of the current network namespace, as if programs were attached to every suitable interface.
    `mark` and `dispatch` are None where no bits are free, which is a finding then. `operator`:
    connections that must not be lost. Strings may hold what rules and interfaces are called.
    """
    around = [each for each in survey() if each.kind != "loopback"]
    chosen = [each.name for each in around if each.automatic]
    rulesets = _rulesets(plan)
    findings = [*_risks(plan, rulesets), *_management(plan, operator, chosen)]
    findings += [each for each in examine(without=("rules",)) if not _plain_interface(each)]
    mark: MarkField | None = None
    text = None
    try:
        mark = choose((*ruleset_uses(rulesets), *host.mark_uses()))
        text = _dispatch(plan, mark, chosen, rulesets)
    except BpfilterError as error:
        findings.append(Finding(Level.PROBLEM, "mark", error.message, error.hint or ""))
    order = list(Level)[::-1]
    sentences = list(notices([plan.ruleset], plan.ruleset.backend or Backend.NFT))
    if not host_forwards(plan.family) and _FORWARD in plan.chains:
        sentences.append(
            "FORWARD stays with iptables: this host does not forward (ip_forward, forwarding)"
        )
    if _judges_output(plan):
        sentences.append(OUTPUT_NOTICE)
    return {
        "kernel": platform.release(),
        "features": [{"name": name, "there": there} for name, there in offers()],
        "findings": [asdict(each) for each in sorted(findings, key=lambda f: order.index(f.level))],
        "interfaces": [
            {"name": each.name, "kind": each.kind, "attached": each.automatic, "why": each.why}
            for each in around
        ],
        "hooks": list(_hooks(plan, around)),
        "mark": None if mark is None else f"{mark.mask:#010x}",
        "dispatch": text,
        "notices": sentences,
    }


def _plain_interface(found: Finding) -> bool:
    """What `interfaces` says already."""
    return found.level is Level.GOOD and found.subject.startswith("interface ")


def _rulesets(plan: Plan) -> Sequence[Ruleset]:
    """The plan's rules, and the other family's on this host: both use the one mark."""
    other = next(family for family in Family if family is not plan.family)
    try:
        return (plan.ruleset, read_live(other))
    except BpfilterError:
        return (plan.ruleset,)


def _dispatch(
    plan: Plan, mark: MarkField, interfaces: Sequence[str], rulesets: Sequence[Ruleset]
) -> str | None:
    """As `rollout.install` would write it; None if no chain of the plan has a dispatch."""
    taken = INGRESS_CHAINS if host_forwards(plan.family) else INGRESS_CHAINS[:1]
    chains = {key: c for key, c in plan.chains.items() if key in [("filter", n) for n in taken]}
    image = assemble([replace(plan, chains=chains)], code_space=mark.max_code + 1)
    prove_codes(image)
    translated = bool(host.native_nft()) or host.may_translate(rulesets)
    parts = [
        render(plan.ruleset, chain, image.codes, mark, interfaces, translated=translated or None)
        for chain in chains.values()
    ]
    return merge(parts).add if parts and interfaces else None


def _judges_output(plan: Plan) -> bool:
    table = plan.ruleset.tables.get("filter")
    chain = None if table is None else table.chains.get("OUTPUT")
    return chain is not None and (bool(chain.rules) or chain.policy == "DROP")


def _hooks(plan: Plan, around: Sequence[Interface]) -> Iterator[dict[str, str]]:
    names = [each.name for each in around if each.automatic]
    link = "tcx link" if dict(offers()).get("tcx links (Linux 6.6)") else "clsact filter"
    if names:
        yield {
            "where": f"TC ingress of {', '.join(names)} ({link})",
            "what": "the program that classifies",
            "stages": _EVERY_STAGE,
        }
    (before, after), _ = PRIORITIES
    yield {
        "where": f"netfilter LOCAL_IN and FORWARD, priorities {before} and {after}",
        "what": "links that see what filter does, to compare",
        "stages": _EVERY_STAGE,
    }
    yield {
        "where": "tracepoint skb/kfree_skb",
        "what": "tells which packets filter dropped, to compare",
        "stages": _EVERY_STAGE,
    }
    if _judges_output(plan):
        yield {
            "where": f"netfilter LOCAL_OUT, priority {before}",
            "what": "a link that judges OUTPUT and drops at once what filter would",
            "stages": _EVERY_STAGE,
        }
    yield {
        "where": "iptables filter INPUT and FORWARD, rule 1",
        "what": "jumps to the dispatch",
        "stages": _DECIDING,
    }


def _management(
    plan: Plan, operator: Sequence[Connection], interfaces: Sequence[str]
) -> Iterator[Finding]:
    mine = [each for each in operator if each.family is plan.family]
    lost = losses([plan], mine, interfaces)
    for loss in lost:
        yield Finding(
            Level.PROBLEM, "your connection", str(loss), "let a rule accept it before anything else"
        )
    for each in mine:
        if each not in [loss.connection for loss in lost]:
            yield Finding(Level.GOOD, "your connection", f"no rule drops {each} for certain")
    if not operator:
        yield Finding(
            Level.NOTE,
            "your connection",
            "no SSH connection was found that could be lost",
            "name what must stay reachable: `bpfilter deploy --protect ADDRESS:PORT`",
        )


def _risks(plan: Plan, rulesets: Sequence[Ruleset]) -> Iterator[Finding]:
    yield from _managers(plan.ruleset)
    if host.may_translate(rulesets):
        yield Finding(
            Level.NOTE,
            "NAT",
            "addresses may be translated here: such connections, and all but TCP and UDP, run the"
            " original rules",
        )
    yield Finding(
        Level.NOTE,
        "fragments",
        "fragments run the original rules: all of them in INPUT, and in FORWARD where conntrack"
        " puts them together",
    )
    sets = sorted({word for rule in plan.ruleset.rules() for word in _sets(rule.matches)})
    if sets:
        names = ", ".join(sets[:5]) + (f" and {len(sets) - 5} more" if len(sets) > 5 else "")
        yield Finding(
            Level.NOTE,
            "ipset",
            f"sets change at run time, so iptables goes on asking them: {names}",
        )


def _sets(matches: Sequence[Any]) -> Iterator[str]:
    for match in matches:
        words = list(match.words)
        if match.name == "set" and "--match-set" in words:
            yield words[words.index("--match-set") + 1]


def _managers(ruleset: Ruleset) -> Iterator[Finding]:
    found: dict[str, int] = {}
    for table in ruleset.tables.values():
        for chain in table.chains:
            for prefix, name in _MANAGERS.items():
                if chain.startswith(prefix):
                    found[name] = found.get(name, 0) + 1
                    break
    for name, count in found.items():
        yield Finding(
            Level.NOTE,
            name,
            f"{count} chain{'s' * (count != 1)} of {name}: it edits rules by itself, and until an"
            " edit is translated and proven iptables decides alone",
            "`--policy follow` (the default) goes on by itself; never edit these chains for us",
        )
