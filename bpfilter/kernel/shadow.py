"""What became of the packets that the classifier foretold, one by one: bpf_templates/shadow.bpf.c.

Netfilter links just before and just after filter, and the tracepoint of dropped packets. They never
change a verdict and live as long as the `Shadow`, in the network namespace of the thread that
attached them; a killed process leaves nothing. Need Linux 6.4. Links cannot be updated and a
priority holds one, so a second generation takes the second pair of priorities.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import IntEnum
from types import TracebackType

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import FlatChain, Verdict, Walk
from bpfilter.errors import KernelError
from bpfilter.kernel import netfilter, syscall
from bpfilter.kernel.arrays import MappedArray, fill
from bpfilter.kernel.classes import CLASSES, state_classes
from bpfilter.kernel.config import MAX_STATES
from bpfilter.kernel.libbpf import BpfObject, RingBuffer
from bpfilter.kernel.netfilter import Hook
from bpfilter.kernel.options import Template
from bpfilter.kernel.pack import Contents
from bpfilter.kernel.probe import require
from bpfilter.kernel.program import TEMPLATES, Classifier

PRIORITIES = ((-1, 1), (-2, 2))
"""Before and after filter (NF_IP_PRI_FILTER is 0); generations take what is free."""

SHARED = (
    "ids",
    "bounds",
    "rows",
    "blocks",
    "ops",
    "nodes",
    "edges",
    "macs",
    "interfaces",
    "runtime",
    "observed",
    "trace",
    "counters",
    "punts",
    "outcomes",
    "addresses",
    "predictions",
    "tally",
    ".rodata.config",
)
"""Maps of the classifier that the programs here use too, or at least declare."""

_HOOKS = (Hook.INPUT, Hook.FORWARD)
_ACCEPT, _DROP = 1, 2
_MISSES_OFFSET = 208


class Tally(IntEnum):
    """Counters of the programs; `Shadow.sweep` adds to VANISHED and QUEUED."""

    STORED = 0
    BEFORE = 1
    QUEUED = 2
    VANISHED = 3
    LOST = 4
    TRANSLATED = 5
    OTHER_CHAIN = 6
    EDITED = 7
    FOREIGN = 8
    MISMATCHES = 9
    SAMPLES_LOST = 10


PREDICTION = np.dtype(
    [
        ("time", "<u8"),
        ("device", "<u4"),
        ("out_device", "<u4"),
        ("node", "<u4"),
        ("final", "<u4", (MAX_STATES,)),
        ("slot", "u1"),
        ("life", "u1"),
        ("state", "u1"),
        ("bytes", "u1"),
        ("reserved", "<u4"),
        ("header", "u1", (64,)),
    ]
)
"""What is remembered of a packet. `life`: 0 until it is seen just before filter."""

SAMPLE = np.dtype(
    [
        ("time", "<u8"),
        ("device", "<u4"),
        ("out_device", "<u4"),
        ("entry", "<u4"),
        ("slot", "u1"),
        ("state", "u1"),
        ("predicted", "u1"),
        ("actual", "u1"),
        ("bytes", "<u4"),
        ("reserved", "<u4"),
        ("header", "u1", (64,)),
    ]
)
"""A mismatch. `state`: number of the bit of `State`; verdicts: 0 ACCEPT, 1 DROP."""


class _Shadow(ctypes.Structure):
    _fields_ = (("revokes", ctypes.c_uint32),)


class Shadow:
    """Attached links and what they counted; a context manager."""

    def __init__(self, loaded: BpfObject, classifier: Classifier) -> None:
        self._stack = ExitStack()
        self._stack.callback(loaded.close)
        self._dropped = loaded.program_fd("dropped")
        self._contents = classifier.contents
        self._predictions = classifier.map_fd("predictions")
        self._room = classifier.options.room
        self._swept = {Tally.VANISHED: 0, Tally.QUEUED: 0}
        entries = max(self._contents.counters // 2, 1)
        self._tally = self._mapped(loaded.map_fd("tally"), np.dtype([("n", "<u8")]), len(Tally) + 1)
        self._pairs = self._mapped(
            loaded.map_fd("pairs"), np.dtype([("n", "<u8", (3, 2))]), entries
        )
        self._ring = RingBuffer(loaded.map_fd("samples"))
        self._stack.callback(self._ring.close)

    @classmethod
    def attach(cls, classifier: Classifier, *, revokes: bool = False) -> Shadow:
        """Settle what this classifier foretells, in this thread's network namespace.

        Of the program of LOCAL_OUT at that hook, of all others at LOCAL_IN and FORWARD.

        `revokes`: the kernel itself ends the classifier's lease with the first mismatch, so that
        the next packet takes the original rules. It stays ended until somebody renews it.

        To be called before the classifier is attached anywhere, and closed after. KernelError if
        this kernel lacks the means or two generations are attached already; leaves nothing then.
        """
        require("BPF_NETFILTER")
        loaded = BpfObject.loaded(
            TEMPLATES / "shadow.bpf.o", lambda opened: _prepare(opened, classifier, revokes)
        )
        try:
            fill(loaded.map_fd("possible"), _possible(classifier.contents))
            shadow = cls(loaded, classifier)
        except BaseException:
            loaded.close()
            raise
        try:
            output = classifier.options.template is Template.OUTPUT
            shadow._attach(loaded, (Hook.OUTPUT,) if output else _HOOKS)
        except BaseException:
            shadow.close()
            raise
        return shadow

    def _attach(self, loaded: BpfObject, hooks: Sequence[Hook]) -> None:
        families = {slot.plan.flat.family for slot in self._contents.slots if slot is not None}
        # The program of LOCAL_OUT is just before filter itself.
        begin = [] if Hook.OUTPUT in hooks else ["before_filter"]

        def attach(priorities: tuple[int, int], stack: ExitStack) -> None:
            before, after = priorities
            # What settles comes before what begins: no packet is seen before only.
            for name, priority in (("after_filter", after), *((name, before) for name in begin)):
                fd = loaded.program_fd(name)
                for family in families:
                    for hook in hooks:
                        netfilter.closing(stack, netfilter.link(fd, family, hook, priority))
                if name == "after_filter":
                    dropped = loaded.program_fd("dropped")
                    netfilter.closing(stack, syscall.raw_tracepoint_open(dropped, "kfree_skb"))

        self._stack.push(netfilter.link_where_free(PRIORITIES, attach))

    def _mapped(self, fd: int, dtype: np.dtype[np.void], entries: int) -> MappedArray:
        mapped = MappedArray(fd, dtype, entries)
        self._stack.callback(mapped.close)
        return mapped

    def tally(self) -> Mapping[Tally, int]:
        """The counters now, with what was swept."""
        cells = self._tally.cells["n"][: len(Tally)]
        return {name: int(cells[name]) + self._swept.get(name, 0) for name in Tally}

    @property
    def mismatches(self) -> int:
        """Packets whose verdict the prediction excluded; read without a system call."""
        return int(self._tally.cells["n"][Tally.MISMATCHES])

    @property
    def lost(self) -> int:
        """Predictions that found no room; read without a system call."""
        return int(self._tally.cells["n"][Tally.LOST])

    def share_filter(self, shared: bool) -> None:
        """Say whether others have chains at the priority of filter: their drops look like its own.

        What is predicted ACCEPT and dropped then counts as FOREIGN.
        """
        self._tally.cells["n"][len(Tally)] = shared

    def missed(self) -> int:
        """Drops anywhere on the host that the tracepoint did not report to us.

        The kernel runs no program within itself: drops in an interrupt that came while it looked at
        another drop are passed over (bpf_prog_info.recursion_misses). A packet of ours among them
        counts as queued.
        """
        (missed,) = struct.unpack_from("=Q", syscall.object_info(self._dropped), _MISSES_OFFSET)
        return int(missed)

    def pairs(self, slot: int) -> npt.NDArray[np.uint64]:
        """[entries, 3, 2]: packets by deciding entry, predicted (ACCEPT, DROP, open), actual."""
        held = self._contents.slots[slot]
        if held is None:
            return np.zeros((0, 3, 2), np.uint64)
        base = self._contents.counter_bases[slot] // 2
        return self._pairs.cells["n"][base : base + len(held.plan.tables.ops)].copy()

    def samples(self) -> npt.NDArray[np.void]:
        """Mismatches since the last call, as many as the ring had room for: `SAMPLE`."""
        return np.frombuffer(b"".join(self._ring.consume()), SAMPLE)

    def sweep(self, now: int, seconds: float) -> None:
        """Forget packets of which nothing was seen for so long before `now` (CLOCK_MONOTONIC ns).

        They were consumed on their way without a trace, or wait in a queue; they count as vanished
        or queued. Without this they would fill the room.
        """
        oldest = now - int(seconds * 1e9)
        for key in syscall.map_keys(self._predictions, 8, self._room):
            try:
                raw = syscall.map_lookup(self._predictions, key, PREDICTION.itemsize)
            except syscall.KernelCallFailed as error:
                if error.errno == errno.ENOENT:  # settled meanwhile
                    continue
                raise
            (time,) = struct.unpack_from("=Q", raw)
            if time < oldest:
                self._forget(key)

    def _forget(self, key: bytes) -> None:
        taken = syscall.map_take(self._predictions, key, PREDICTION.itemsize)
        if taken is not None:
            life = int(np.frombuffer(taken, PREDICTION)["life"][0])
            self._swept[Tally.QUEUED if life else Tally.VANISHED] += 1

    def close(self) -> None:
        """Detach everything; what was counted is gone."""
        self._stack.close()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def possible_verdicts(flat: FlatChain, walk: Walk) -> int:
    """Bit 0: the walk can end in ACCEPT, bit 1: in DROP. Both for what only iptables executes."""
    if walk.verdict is Verdict.PUNT:
        return _ACCEPT | _DROP
    names = {name for index in walk.items for name in flat.items[index].verdicts}
    if walk.verdict is not None:
        names.add(walk.verdict)
    return _ACCEPT * ("ACCEPT" in names) | _DROP * ("DROP" in names)


def _prepare(loaded: BpfObject, classifier: Classifier, revokes: bool) -> None:
    contents = classifier.contents
    if not (classifier.options.shadow_share or classifier.options.verify_share):
        raise KernelError(
            "the program remembers nothing that could be compared",
            hint="load it with a shadow_share or a verify_share",
        )
    for name in SHARED:
        loaded.reuse_map(name, classifier.map_fd(name))
    loaded.set_map("possible", max_entries=len(contents.nodes))
    loaded.set_map("pairs", max_entries=max(contents.counters // 2, 1))
    loaded.set_constants(".rodata.shadow", _Shadow(revokes=revokes))
    loaded.set_constants(CLASSES, state_classes(contents))
    netfilter.as_netfilter(loaded, ("before_filter", "after_filter"))


def _possible(contents: Contents) -> npt.NDArray[np.uint8]:
    """Per node at which a packet's walks can end, and state class: `possible_verdicts`."""
    possible = np.zeros((len(contents.nodes), 8), np.uint8)
    base = 0
    for slot in contents.slots:
        if slot is None:
            continue
        for node, function in slot.transitions.functions.items():
            for index, (_, walk) in enumerate(function.walks):
                possible[base + node, index] = possible_verdicts(slot.plan.flat, walk)
        base += len(slot.transitions.nodes)
    return possible
