"""One generation of the loaded program at the ingress of the chosen interfaces."""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bpfilter.compiler.changed import Hull
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import ChainPlan, Image
from bpfilter.errors import BpfilterError, KernelError
from bpfilter.kernel.addresses import LocalRoute, read_local_table
from bpfilter.kernel.attach import Attachment, TcxLink, attach
from bpfilter.kernel.config import Early, Mode, Reason
from bpfilter.kernel.generation import Generation
from bpfilter.kernel.options import NOT_EARLY
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.routing import Routing, RoutingEvents, read_routing
from bpfilter.kernel.syscall import MAP_DELETE, KernelCallFailed, bpf, link_update, map_update
from bpfilter.rollout import host, pins
from bpfilter.rollout.attached import Attached, attached
from bpfilter.rollout.comparison import Comparison, together
from bpfilter.rollout.early import EarlyDrops, EarlyRequest, Link, Report, close_links
from bpfilter.rollout.guards import Guards, inspect
from bpfilter.rollout.output import Output
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.shadow import Bounds, Counted
from bpfilter.rollout.trouble import Trouble
from bpfilter.rollout.waivers import Waiver
from bpfilter.rollout.watching import Watch, start_if_possible
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef, Ruleset

_WALKED = (Reason.RULE, Reason.NO_CODE)


class _Element(ctypes.Structure):
    """The members of union bpf_attr for BPF_MAP_DELETE_ELEM."""

    _fields_ = (("map", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("key", ctypes.c_uint64))


class Program:
    """Loaded without a lease, so it decides nothing until it gets one."""

    def __init__(
        self,
        classifier: Classifier,
        links: Mapping[str, int],
        addresses: Sequence[LocalRoute],
        routing: Routing,
        events: RoutingEvents,
        early: EarlyRequest | None = None,
    ) -> None:
        self._asked = early
        self._classifier = classifier
        self.links = links
        self._addresses = frozenset(addresses)
        self.routing = routing
        self._events = events
        self.generation: Generation | None = None
        self.watch: Watch | None = None
        self.unwatched: str | None = None
        self.output: Output | None = None
        self.unjudged: str | None = None
        self._numbers: set[int] = set()
        self._attachments: dict[str, Attachment] = {}
        self._pinned = False
        self._stack = ExitStack()
        self._stack.callback(classifier.close)
        self.early: EarlyDrops | None = None
        self._stack.callback(events.close)

    @classmethod
    def load(
        cls,
        image: Image,
        links: Mapping[str, int],
        mark: MarkField | None,
        scope: Scope | None = None,
        *,
        output: Image | None = None,
        share: float = 0.0,
        early: EarlyRequest | None = None,
        sure: bool = False,
        legacy: bool = False,
    ) -> Program:
        """Load for these interfaces (name → index); without a mark field it only counts.

        It decides only in the scope (default: everything), and only while the kernel's rules are
        of the generation of this moment. `share` of the packets is compared with iptables'
        verdicts: see `watch`, or `unwatched`, which says why that is impossible here. `early`: as
        `drop_early` shall do it. `sure`: whatever mismatch there is while deciding is an error,
        so the kernel itself ends the lease with the first. `legacy`: edits of raw, which legacy
        iptables does not show at INPUT, are to be noticed as well.
        """
        scope = scope or Scope()
        events = RoutingEvents()
        addresses, routing = read_local_table(), read_routing()
        options = Options(
            mode=Mode.LIVE,
            routing=routing,
            addresses=addresses,
            marking=mark,
            leased=True,
            generation=True,
            shadow_share=share if mark is None else 0.0,
            verify_share=share if mark is not None else 0.0,
            scope_share=scope.threshold,
            scope_sources=scope.sources,
            early=NOT_EARLY if early is None else Early.DROPS,
            raw_tables=legacy,
        )
        try:
            classifier = Classifier.load(image, options)
        except BaseException:
            events.close()
            raise
        program = cls(classifier, links, addresses, routing, events, early)
        try:
            revokes = sure and mark is not None
            program._compare(share, revokes=revokes)
            program._judge_output(output, revokes=revokes)
            program.accept(program.observe())
        except BaseException:
            program.close()
            raise
        return program

    def _judge_output(self, image: Image | None, *, revokes: bool) -> None:
        if image is None:
            return
        try:
            self.output = Output.start(image, self._classifier, self.links, revokes=revokes)
        except KernelError as error:
            self.unjudged = f"OUTPUT is left to iptables: {error.message}"
        if self.output is not None:
            self._stack.callback(self.output.close)

    def _compare(self, share: float, *, revokes: bool) -> None:
        """Before the program is attached and before the generation is observed: see `Watch`."""
        if not share:
            return
        names = {index: name for name, index in self.links.items()}
        started = start_if_possible(self._classifier, names, revokes=revokes)
        if isinstance(started, str):
            self.unwatched = started
        else:
            self.watch = started
            self._stack.callback(started.close)

    def attach(self, held: Mapping[str, Attachment] | None = None) -> None:
        """Attach at every interface's TC ingress, in the place of the program that `held` these.

        Links change programs in place: each packet meets the one or the other. What is held at
        other interfaces is detached. KernelError detaches all.
        """
        held = dict(held or {})
        try:
            for name, index in self.links.items():
                attachment = self._take_over(held.pop(name, None), index)
                self._attachments[name] = attachment
                if isinstance(attachment, TcxLink):
                    self._numbers.add(pins.link_id(attachment.fd))
                    self._pinned |= pins.pin_link(attachment.fd, name)
        except BaseException:
            self._detach()
            raise
        finally:
            for name, attachment in held.items():
                attachment.close()
                pins.unpin_link(name)

    def _take_over(self, held: Attachment | None, index: int) -> Attachment:
        if isinstance(held, TcxLink) and pins.link_interface(held.fd) == index:
            try:
                link_update(held.fd, self._classifier.fd)
                return held
            except KernelCallFailed as error:
                if error.errno != errno.ENOLINK:
                    held.close()
                    raise
        if held is not None:
            held.close()
        return attach(self._classifier.fd, index)

    def release(self) -> Mapping[str, Attachment]:
        """What holds this program at its interfaces, for the program that takes its place."""
        held, self._attachments = self._attachments, {}
        self._pinned = False
        return held

    def release_early(self) -> Mapping[str, Link]:
        """As `release`, of the programs that drop early."""
        return {} if self.early is None else self.early.release()

    @staticmethod
    def pinned() -> Mapping[str, Attachment]:
        """What holds the program of a daemon that ended, by interface."""
        return {name: TcxLink(descriptor) for name, descriptor in pins.open_links().items()}

    def drop_early(
        self, rulesets: Mapping[Family, Ruleset], report: Report, held: Mapping[str, Link]
    ) -> None:
        """Attach programs that drop early, if that was asked for; they begin with `vouch_early`.

        They take the place of those that `held` these, and of what an ended daemon left. What
        prevents them is reported; packets are dropped late then.
        """
        if self._asked is None or not held:
            close_links(held)
            pins.detach_early()
        if self._asked is None:
            return
        try:
            self.early = EarlyDrops.start(
                rulesets, self._classifier, self.links, self._asked, report, held
            )
        except BpfilterError as error:
            report(f"no early drops: {error.message}")
        else:
            self._stack.callback(self.early.close)

    @property
    def told(self) -> tuple[frozenset[LocalRoute], Routing]:
        """The host's addresses and routing as the program knows them."""
        return self._addresses, self.routing

    def vouch_early(self) -> str | None:
        """Look at the conditions of early drops, once the rules are known to be the plan's."""
        return None if self.early is None else self.early.vouch(self.generation)

    @property
    def watches(self) -> Sequence[Watch]:
        """What compares packets: at the interfaces, and of OUTPUT."""
        output = None if self.output is None else self.output.watch
        return [watch for watch in (self.watch, output) if watch is not None]

    def inspect(self, guards: Guards, waivers: Sequence[Waiver]) -> Trouble | None:
        """What `guards` say of verdicts that were mispredicted, or could not be remembered."""
        if not any(watch.mismatches or watch.lost for watch in self.watches):
            return None
        seen = self.comparison()
        return None if seen is None else inspect(guards, seen, waivers, time.time())

    def comparison(self) -> Comparison | None:
        """All that was compared packet by packet; None where that is impossible."""
        if self.watch is None:
            return None
        return together([watch.comparison() for watch in self.watches])

    def poll(self) -> None:
        """Take note of what was compared since the last call."""
        for watch in self.watches:
            watch.poll()

    def attached(self) -> bool:
        """Whether the program is still at all its interfaces."""
        found = attached(tuple(self.links))
        return {each.interface for each in found if self._ours(each)} == set(self.links)

    def foreign(self) -> tuple[Attached, ...]:
        """Programs of others at the same interfaces: they could forge or overwrite marks."""
        early = self.early.links if self.early is not None else set()
        found = attached(tuple(self.links))
        return tuple(each for each in found if not self._ours(each) and each.link not in early)

    def _ours(self, found: Attached) -> bool:
        return found.our_filter or found.link in self._numbers

    def observe(self) -> Generation:
        """The generation of the kernel's rules now."""
        return self._classifier.observe_generation()

    def unedited(self, now: Generation) -> tuple[Backend, ...]:
        """Backends without any edit since the accepted generation.

        nf_tables counts its transactions; the address of a legacy table may come back.
        """
        accepted = self.generation
        if accepted is None or not (accepted.shows_nft and now.shows_nft):
            return ()
        return (Backend.NFT,) if accepted.nft == now.nft else ()

    def accept(self, generation: Generation) -> None:
        """From now on decide while the kernel's rules are of this generation."""
        shared = host.shared_hooks() if self.watches or self.output else frozenset()
        if self.watch is not None:
            self.watch.share_filter(not shared.isdisjoint({"input", "forward"}))
        if self.output is not None:
            self.output.share_filter("output" in shared)
        self._classifier.set_generation(generation)
        self.generation = generation

    def punt(self, hulls: Sequence[Hull]) -> None:
        """Leave these packets to iptables, in place of those that were named before.

        It decides nothing until its lease is renewed, so that no packet meets half of them.
        """
        self.set_lease(0)
        self._classifier.set_changed(hulls)

    def refresh_addresses(self) -> bool:
        """Tell the program the host's local addresses of now; true if they had changed.

        It decides nothing until its lease is renewed, so that no packet meets half of them.
        """
        now = frozenset(read_local_table())
        if now == self._addresses:
            return False
        self.set_lease(0)
        descriptor = self._classifier.map_fd("addresses")
        for route in self._addresses - now:
            key = ctypes.create_string_buffer(route.key, len(route.key))
            attributes = _Element(descriptor, 0, ctypes.addressof(key))
            bpf(MAP_DELETE, attributes, "forget an address")
        for route in now - self._addresses:
            map_update(descriptor, route.key, struct.pack("=I", route.kind))
        self._addresses = now
        return True

    def remarks(self) -> Sequence[str]:
        """What is not done here, and why."""
        watching = f"{self.unwatched}; counters are compared instead"
        untrusted = self.routing.untrusted.items()
        left = [f"{family} FORWARD is left to iptables: {why}" for family, why in untrusted]
        left += [] if self.unjudged is None else [self.unjudged]
        if self.output is not None and self.output.trouble is not None:
            left.append(self.output.trouble)
        return left if self.unwatched is None else [watching, *left]

    def refresh(self) -> Sequence[str]:
        """Tell the program the host's addresses and routing of now; says what had changed."""
        changed = (("addresses", self.refresh_addresses()), ("routing", self.refresh_routing()))
        return [f"the host's {what} changed: the program knows it" for what, did in changed if did]

    def refresh_routing(self) -> bool:
        """Tell the program the devices and routes of now; true if they had changed.

        As with addresses, it decides nothing until its lease is renewed.
        """
        if not self._events.changed():
            return False
        now = read_routing()
        if now == self.routing:
            return False
        self.set_lease(0)
        self._classifier.set_routing(self.routing, now)
        self.routing = now
        return True

    def set_lease(self, valid_until: int) -> None:
        """See `Classifier.set_lease`."""
        self._classifier.set_lease(valid_until)

    def decided(self) -> int:
        """Packets that got a code, of all chains."""
        return sum(n for (_, kind), n in self._classifier.outcomes().items() if kind)

    def punted(self) -> Mapping[Reason, int]:
        """Packets left to the original rules, by reason."""
        return self._classifier.punts()

    def counted(self, chain: ChainPlan) -> Counted:
        """What was counted of one chain since loading."""
        slots = self._classifier.contents.slots
        slot = next(i for i, held in enumerate(slots) if held is not None and held.plan is chain)
        packets = self._classifier.counters()[slot]["packets"]
        entries = [Bounds(int(certain), int(certain + some)) for certain, some in packets]
        outcomes = self._classifier.outcomes()
        decided = sum(outcomes.get((slot, kind), 0) for kind in Outcome if kind)
        punts = self._classifier.punts()
        walked = decided + sum(punts.get(reason, 0) for reason in _WALKED)
        return Counted(entries, decided, walked)

    def all_counts(
        self,
    ) -> tuple[Mapping[tuple[int, int], Bounds], Mapping[tuple[Family, RuleRef], Bounds]]:
        """`rule_counts`, and the packets dropped early, or by LOCAL_OUT's program, by rule."""
        early = {} if self.early is None else self.early.counted()
        output = {} if self.output is None else self.output.counted()
        both = {
            rule: Bounds(
                sum(side[rule].certain for side in (early, output) if rule in side),
                sum(side[rule].possible for side in (early, output) if rule in side),
            )
            for rule in {**early, **output}
        }
        return self.rule_counts(), both

    def rule_counts(self) -> Mapping[tuple[int, int], Bounds]:
        """Packets by slot and entry since loading, those that were counted at all."""
        return {
            (slot, entry): Bounds(int(certain), int(certain + some), int(cells["bytes"][entry, 0]))
            for slot, cells in self._classifier.counters().items()
            for entry, (certain, some) in enumerate(cells["packets"])
            if certain or some
        }

    def close(self) -> None:
        """Detach everywhere and let go of the program and its maps."""
        self._detach()
        self._stack.close()

    def _detach(self) -> None:
        if self._pinned:
            pins.unpin()
        self._pinned = False
        for attachment in self._attachments.values():
            attachment.close()
        self._attachments = {}
