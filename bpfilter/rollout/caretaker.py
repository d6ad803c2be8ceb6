"""Vouches for what an ended daemon left deciding, while its successor translates the rules.

Thousands of rules take seconds to translate and to prove, longer than a lease. What stands was
proven by the daemon that loaded it, so its lease is renewed as long as everything that the record
says of it is found unchanged: rules, interfaces, routes, addresses, the program's own template. A
lease that was revoked stays so. It drops nothing early meanwhile, since nobody looks at the
conditions of that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from bpfilter.errors import BpfilterError
from bpfilter.kernel.addresses import read_local_table
from bpfilter.kernel.arrays import MappedArray
from bpfilter.kernel.attach import Attachment, TcxLink
from bpfilter.kernel.config import RUNTIME
from bpfilter.kernel.described import program_map
from bpfilter.kernel.program import template_digest
from bpfilter.kernel.routing import read_routing
from bpfilter.rollout import checks, pins
from bpfilter.rollout.attached import attached
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.lease import RENEW_SECONDS, Lease
from bpfilter.rollout.record import Record, surroundings, wholes
from bpfilter.rollout.tables import all_tables


@contextmanager
def taking_care(
    record: Record,
    held: Mapping[str, Attachment],
    links: Mapping[str, int],
    seconds: float,
    say: Callable[[str], object],
) -> Iterator[Caretaker]:
    """Renew the lease of the program that `held` these, in a thread, until the context is left.

    Nothing is renewed unless all is as the record says, the version of our template included.
    The lease is revoked at the end unless the caretaker was told to `keep` it.
    """
    caretaker = Caretaker(record, held, links, seconds)
    why = caretaker.obstacle()
    if why is None:
        why = caretaker.begin()
    if why is None:
        say("what stands decides on while the rules are translated again")
    else:
        say(f"what stands does not decide while the rules are translated again: {why}")
    try:
        yield caretaker
    finally:
        caretaker.end()


class _Leased:
    """The running program's lease, in the map that it shares with nobody but us."""

    def __init__(self, runtime: MappedArray) -> None:
        self._runtime = runtime

    def set_lease(self, valid_until: int) -> None:
        self._runtime.cells["early"] = 0
        self._runtime.cells["valid_until"] = valid_until


class Caretaker:
    """Of one program; see `taking_care`."""

    def __init__(
        self,
        record: Record,
        held: Mapping[str, Attachment],
        links: Mapping[str, int],
        seconds: float,
    ) -> None:
        self._record, self._held, self._links, self._seconds = record, held, links, seconds
        self._runtime: MappedArray | None = None
        self._lease: Lease | None = None
        self._kept = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def obstacle(self) -> str | None:
        """Why what stands is not what the record describes, as far as can be told at once."""
        record = self._record
        if record.template != template_digest():
            return "it is of another version"
        if sorted(self._held) != sorted(record.interfaces) or set(self._links) != set(self._held):
            return "the interfaces are others"
        if record.deadline is not None and time.monotonic_ns() >= record.deadline:
            return "it was not confirmed in time"
        return self._changed()

    def _changed(self) -> str | None:
        """What a daemon looks at before each renewal.

        The rules too: not every kernel shows their generation to the program, and the address of a
        legacy table may come back.
        """
        now = {tables: Fingerprint.of(tables.save()) for tables in all_tables()}
        if wholes(now) != self._record.wholes:
            return "the rules changed"
        numbers = set(pins.pinned_links().values())
        foreign = [
            each
            for each in attached(tuple(self._links))
            if not each.our_filter and each.link not in numbers
        ]
        trouble = (
            checks.moved_links(self._links)
            or checks.unfit_links(self._links)
            or checks.foreign_programs(foreign)
            or checks.obstacles(self._record.mark)
        )
        if trouble is not None:
            return str(trouble)
        host = surroundings(frozenset(read_local_table()), read_routing())
        return None if host == self._record.host else "addresses or routes changed"

    def begin(self) -> str | None:
        """Renew now and every second from now on; why not, if the program has no such lease."""
        links = [each for each in self._held.values() if isinstance(each, TcxLink)]
        programs = {pins.link_program(each.fd) for each in links}
        if len(programs) != 1 or len(links) != len(self._held):
            return "the interfaces have several programs"
        descriptor = program_map(programs.pop(), "runtime")
        if descriptor is None:
            return "its program has no lease"
        try:
            self._runtime = MappedArray(descriptor, RUNTIME, 1)
        finally:
            os.close(descriptor)
        if not int(self._runtime.cells["valid_until"][0]):
            return "its lease was revoked"
        lease = Lease(_Leased(self._runtime), self._seconds, self._record.deadline)
        lease.renew()
        self._lease = lease
        # In the network namespace of the thread that starts it.
        self._thread = threading.Thread(target=self._renew, args=(lease,), daemon=True)
        self._thread.start()
        return None

    def _renew(self, lease: Lease) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                unchanged = self._changed() is None
            except (BpfilterError, OSError):
                unchanged = False
            if not unchanged:
                lease.revoke()
                return
            lease.renew()

    def keep(self) -> None:
        """What stands is taken over: it decides on until its successor is in its place."""
        self._kept = True

    def end(self) -> None:
        """No renewal comes after this."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._lease is not None and not self._kept:
            self._lease.revoke()
        if self._runtime is not None:
            self._runtime.close()
