"""Early DROP: programs before netfilter that drop what the early profile allows.

Guarantees: only packets that netfilter would drop, with no effect that anyone could see before,
are dropped, and only while the conditions of `early_conditions` hold: they are looked at when the
drops begin, at every tick, and after any edit of rules, which ends the drops by itself. The
programs share the classifier's lease, generation and addresses; without a lease they pass all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bpfilter.compiler.early import (
    Depth,
    EarlyChain,
    compile_early,
    early_image,
    unconfirmed_states,
)
from bpfilter.errors import KernelError, RolloutError, UsageError
from bpfilter.kernel.attach import TcxLink, attach_first
from bpfilter.kernel.config import Early, EarlyNow, Mode
from bpfilter.kernel.generation import Generation
from bpfilter.kernel.options import SHARED, Template
from bpfilter.kernel.program import Classifier
from bpfilter.kernel.routing import NO_ROUTING
from bpfilter.kernel.syscall import link_update
from bpfilter.kernel.xdp import ForeignXdp, XdpLink, XdpMode, attach_xdp, hides_vlan_tags
from bpfilter.rollout import pins
from bpfilter.rollout.conditions import early_conditions, expectations_possible, lookups_possible
from bpfilter.rollout.shadow import Bounds
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef, Ruleset

Report = Callable[[str], object]
Link = TcxLink | XdpLink
_TEMPLATES = {Depth.TC: Template.EARLY, Depth.XDP: Template.XDP}
NATIVE = (
    "attaching at native XDP may reset the device: for a moment it may lose packets or its link"
)
BLIND = "packet sockets (tcpdump) do not see what XDP drops"
COUNTED = "dropped packets are not counted by conntrack, raw or mangle rules any more"


@dataclass(frozen=True, slots=True)
class EarlyRequest:
    """The early profile of a deployment. `xdp`: at which interfaces XDP is used, and how.

    `accept_sockets`: packet sockets of other processes may miss packets that INPUT drops.
    """

    xdp: Mapping[str, XdpMode] = field(default_factory=dict)
    accept_sockets: bool = False

    @classmethod
    def parse(
        cls, early: bool, xdp: Sequence[str], interfaces: Sequence[str], accept_sockets: bool
    ) -> EarlyRequest | None:
        """From the words of a command line, `xdp` as INTERFACE=MODE; None if nothing is asked."""
        if not early:
            if xdp or accept_sockets:
                raise UsageError(
                    "XDP and packet sockets are matters of early drops", hint="add --early"
                )
            return None
        modes = {}
        for word in xdp:
            name, _, mode = word.partition("=")
            if name not in interfaces or mode not in list(XdpMode):
                raise UsageError(
                    f"--xdp {word}: an interface of the deployment and a mode are wanted",
                    hint=f"as {interfaces[0] if interfaces else 'eth0'}=native, generic or auto",
                )
            modes[name] = XdpMode(mode)
        return cls(modes, accept_sockets)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that `parse` takes, for a command line."""
        pairs = (word for name, mode in self.xdp.items() for word in ("--xdp", f"{name}={mode}"))
        return ("--early", *pairs, *(("--accept-sockets",) if self.accept_sockets else ()))

    def notices(self) -> tuple[str, ...]:
        """What operators will notice, said before anything is attached."""
        found = [COUNTED]
        if self.xdp:
            found.append(BLIND)
        native = [name for name, mode in self.xdp.items() if mode is not XdpMode.GENERIC]
        if native:
            found.append(f"{', '.join(native)}: {NATIVE}")
        return tuple(found)


class EarlyRefused(RolloutError):
    """A condition of the early profile does not hold here; packets are dropped late, as before."""

    problem = "early-refused"


def require_conditions(interfaces: Sequence[str], asked: EarlyRequest) -> None:
    """EarlyRefused if a condition of the early profile does not hold now at these interfaces."""
    for obstacle in early_conditions(interfaces, asked.accept_sockets):
        raise EarlyRefused(f"no early drops: {obstacle.what}", hint=obstacle.hint)


class EarlyDrops:
    """The early programs of one generation; `close` takes them away."""

    def __init__(self, classifier: Classifier, asked: EarlyRequest, report: Report) -> None:
        self._classifier = classifier
        self._asked = asked
        self._report = report
        self._programs: dict[Depth, tuple[Classifier, Sequence[EarlyChain]]] = {}
        self._interfaces: tuple[str, ...] = ()
        self._expected = True
        self._checked: Generation | None = None
        self._stack = ExitStack()
        self._held: dict[str, Link] = {}
        self.links: set[int] = set()
        self.trouble: str | None = None

    @classmethod
    def start(
        cls,
        rulesets: Mapping[Family, Ruleset],
        classifier: Classifier,
        links: Mapping[str, int],
        asked: EarlyRequest,
        report: Report,
        held: Mapping[str, Link] | None = None,
    ) -> EarlyDrops:
        """Load and attach at these interfaces (name → index); nothing is dropped until `vouch`.

        KernelError or CompileError, with nothing left behind, where that is impossible. An
        interface that XDP cannot have is reported, and TC serves it. `held`: the links that other
        early drops released; where they fit, they change programs in place, so that no device is
        reset, and they are closed where they do not.
        """
        made = cls(classifier, asked, report)
        try:
            made._interfaces = tuple(links)
            made._expected = expectations_possible(rulesets.values())
            made._attach(rulesets, links, dict(held or {}))
        except BaseException:
            made.close()
            raise
        return made

    def _attach(
        self, rulesets: Mapping[Family, Ruleset], links: Mapping[str, int], held: dict[str, Link]
    ) -> None:
        try:
            for name, index in links.items():
                link = self._take_over(name, held, rulesets, links)
                if link is None and name in self._asked.xdp:
                    link = self._attach_xdp(name, index, rulesets, links)
                if link is None:
                    link = attach_first(self._program(Depth.TC, rulesets, links).fd, index)
                self._held[name] = link
                self.links.add(pins.link_id(link.fd))
                pins.pin_link(link.fd, name, pins.EARLY)
        finally:
            close_links(held)

    def _take_over(
        self,
        name: str,
        held: dict[str, Link],
        rulesets: Mapping[Family, Ruleset],
        links: Mapping[str, int],
    ) -> Link | None:
        link = held.get(name)
        if link is None or isinstance(link, XdpLink) != (name in self._asked.xdp):
            close_links({name: held.pop(name)} if link is not None else {})
            return None
        depth = Depth.XDP if isinstance(link, XdpLink) else Depth.TC
        program = self._program(depth, rulesets, links)
        try:
            if pins.link_interface(link.fd) == links[name]:
                link_update(link.fd, program.fd)
                return held.pop(name)
        except KernelError:
            pass
        close_links({name: held.pop(name)})
        return None

    def _attach_xdp(
        self,
        name: str,
        index: int,
        rulesets: Mapping[Family, Ruleset],
        links: Mapping[str, int],
    ) -> XdpLink | None:
        if hides_vlan_tags(name):
            self._report(
                f"no XDP at {name}: it takes VLAN tags off frames before XDP"
                f" (`ethtool -K {name} rxvlan off` ends that); TC is used"
            )
            return None
        program = self._program(Depth.XDP, rulesets, links)
        try:
            link = attach_xdp(program.fd, index, self._asked.xdp[name])
        except KernelError as error:
            known = "a foreign program is left alone" if isinstance(error, ForeignXdp) else ""
            self._report(f"no XDP at {name}: {error.message}; {known or error.hint}; TC is used")
            return None
        self._report(f"XDP at {name}, {link.mode}")
        return link

    def release(self) -> Mapping[str, Link]:
        """What holds the programs at the interfaces, for those that take their place."""
        held, self._held = self._held, {}
        return held

    def _program(
        self, depth: Depth, rulesets: Mapping[Family, Ruleset], links: Mapping[str, int]
    ) -> Classifier:
        if depth not in self._programs:
            chains = early_chains(rulesets.values(), depth, expectations=self._expected)
            raw = {(c.plan.flat.family, c.plan.chain): c.raw_entries for c in chains}
            early = Early.DROPS | (Early.LOOKUP if lookups_possible() else Early(0))
            options = replace(
                self._classifier.options,
                mode=Mode.LIVE_INPUT,
                routing=NO_ROUTING,
                interfaces={index: name for name, index in links.items()},
                marking=None,
                shadow_share=0.0,
                template=_TEMPLATES[depth],
                early=early,
                raw_entries=raw,
                shared={name: self._classifier.map_fd(name) for name in SHARED},
            )
            program = Classifier.load(early_image(chains), options)
            self._stack.callback(program.close)
            self._programs[depth] = program, chains
        return self._programs[depth][0]

    def vouch(self, generation: Generation | None) -> str | None:
        """Let the programs drop if all conditions hold; else they pass all, and this says why.

        `generation` is the one under which the rules were found to be those of the plan.
        """
        before, self.trouble = self.trouble, self._why_not(generation)
        if self.trouble is not None:
            self._classifier.set_early(EarlyNow(0))
            if self.trouble != before:
                self._report(f"no early drops: {self.trouble}")
        elif before is not None:
            self._report("early drops again")
        return self.trouble

    def _why_not(self, generation: Generation | None) -> str | None:
        tracks = False
        for program, _ in self._programs.values():
            observed = program.observe_generation()
            if observed != generation:
                return "the kernel's rules are being changed"
            tracks |= observed.tracks
        if not self._expected and expectations_possible(()):
            return "conntrack expectations exist, which were not thought of"
        edited = generation is None or generation != self._checked or not generation.shows_nft
        accept = self._asked.accept_sockets
        for obstacle in early_conditions(self._interfaces, accept, rules=edited):
            return obstacle.what
        self._checked = generation
        tracking = EarlyNow.TRACKED if tracks else EarlyNow(0)
        self._classifier.set_early(EarlyNow.HOLDS | tracking)
        return None

    def counted(self) -> Mapping[tuple[Family, RuleRef], Bounds]:
        """Packets dropped early, by the rule that drops them; see `Bounds`."""
        sums: dict[tuple[Family, RuleRef], Bounds] = {}
        for program, _ in self._programs.values():
            counters = program.counters()
            for number, slot in enumerate(program.contents.slots):
                if slot is None:
                    continue
                flat = slot.plan.flat
                packets = counters[number]["packets"]
                for entry, (certain, some) in zip(flat.entries, packets, strict=True):
                    if certain or some:
                        key = (flat.family, entry.rule)
                        old = sums.get(key, Bounds(0, 0))
                        found = Bounds(int(certain), int(certain + some))
                        sums[key] = Bounds(
                            old.certain + found.certain, old.possible + found.possible
                        )
        return sums

    def dropped(self) -> int:
        """Packets dropped early."""
        programs = (program for program, _ in self._programs.values())
        return sum(sum(program.outcomes().values()) for program in programs)

    def looked_at(self) -> int:
        """Packets that came to the programs."""
        programs = [program for program, _ in self._programs.values()]
        return self.dropped() + sum(sum(program.punts().values()) for program in programs)

    def close(self) -> None:
        """Detach everywhere and let go of the programs."""
        close_links(self.release())
        self._stack.close()


def close_links(links: Mapping[str, Link]) -> None:
    """Detach what these links hold, by interface."""
    for name, link in links.items():
        pins.unpin_link(name, pins.EARLY)
        link.close()


def early_chains(
    rulesets: Iterable[Ruleset], depth: Depth, *, expectations: bool
) -> tuple[EarlyChain, ...]:
    """The ways of all families: to this host, and raw PREROUTING alone for all else."""
    chains = []
    for ruleset in rulesets:
        states = unconfirmed_states(ruleset, expectations=expectations)
        chains.append(compile_early(ruleset, "INPUT", depth, states=states))
        other = compile_early(ruleset, "FORWARD", depth, states=states, whole=False)
        if other.drops:
            chains.append(other)
    return tuple(chains)
