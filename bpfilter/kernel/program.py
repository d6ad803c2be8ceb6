"""The classifier: an image loaded into the kernel, to be run on frames or attached.

Loading changes nothing on the host until `attach`. Closing drops everything that is not pinned.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType

import numpy as np

from bpfilter.compiler.changed import MAX_CHANGED, Hull
from bpfilter.compiler.ir import Entry, Function
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.plan import Image, Slot
from bpfilter.errors import VerifierRejected
from bpfilter.kernel import netfilter, syscall
from bpfilter.kernel.arrays import MappedArray, fill
from bpfilter.kernel.attach import AttachKind, Attachment, attach
from bpfilter.kernel.changed import changed_cells
from bpfilter.kernel.classes import CLASSES, state_classes
from bpfilter.kernel.config import (
    COUNT,
    GENERATION,
    OUTCOME_STRIDE,
    PUNT_STRIDE,
    RECORD,
    RUNTIME,
    SLOTS,
    EarlyNow,
    Reason,
    Trace,
)
from bpfilter.kernel.generation import Generation
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.kernel.options import Options as Options
from bpfilter.kernel.options import Template, config_of
from bpfilter.kernel.pack import Contents, pack, slot_number
from bpfilter.kernel.preload import NotSpecialised
from bpfilter.kernel.probe import require
from bpfilter.kernel.routing import Device, Routing

TEMPLATES = Path(__file__).resolve().parent.parent / "_templates"
RECORDS = 1 << 16
_SKB_BYTES = 192
_LONGEST_RUN = 3520
_LARGEST_INTERFACE_ARRAY = 4096
_SKB_MARK = 8
_FRAME = bytes.fromhex("ffffffffffff0200000000010800") + bytes(64)


@dataclass(frozen=True, slots=True)
class Result:
    """The classifier's answer for one packet.

    `final`: for every class of states, in order, the entry at which the walk ended; empty if no
    walk was made. `function` is None where the residual has no code, or nothing was classified.
    """

    outcome: Outcome
    reason: Reason
    code: int = 0
    slot: Slot | None = None
    node: int = 0
    final: tuple[int, ...] = ()
    mark: int = 0
    hits: int = 0

    @property
    def function(self) -> Function | None:
        return None if self.slot is None else self.slot.transitions.functions.get(self.node)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The final entries themselves."""
        if self.slot is None:
            return ()
        return tuple(self.slot.plan.flat.entries[index] for index in self.final)


def _template(kind: Template) -> Path:
    return TEMPLATES / f"{kind}.bpf.o"


def template_digest() -> str:
    """SHA-256 of the compiled classifier: whose maps have the layout that this module knows."""
    return hashlib.sha256(_template(Template.CLASSIFIER).read_bytes()).hexdigest()


class Classifier:
    """A loaded image; a context manager."""

    def __init__(self, loaded: BpfObject, contents: Contents, options: Options) -> None:
        self._object = loaded
        self.table_bytes = contents.nbytes
        self.contents = contents.without_tables()
        self.options = options
        self._stack = ExitStack()
        self._stack.callback(loaded.close)
        self._runtime = self._mapped("runtime", RUNTIME, 1)
        self._counts = {
            name: self._mapped(name, COUNT, count)
            for name, count in _count_cells(contents, options).items()
        }
        self._records = self._mapped("trace", RECORD, _record_count(options.trace))

    @classmethod
    def load(cls, image: Image, options: Options | None = None) -> Classifier:
        """Load an image; raises KernelError or VerifierRejected, and leaves nothing behind then.

        If a program cannot be specialised, or this kernel refuses what became of it, it is loaded
        as clang made it.
        """
        options = options or Options()
        require()
        try:
            return cls._loaded(image, options, specialised=True)
        except (NotSpecialised, VerifierRejected):
            return cls._loaded(image, options, specialised=False)

    @classmethod
    def _loaded(cls, image: Image, options: Options, *, specialised: bool) -> Classifier:
        config = config_of(options)
        contents = pack(image, config)
        for chain, entries in options.raw_entries.items():
            slot = config.slots[slot_number(*chain)]
            slot.raw_entries, slot.forward = entries, 0
        loaded = BpfObject(_template(options.template))
        try:
            _size_maps(loaded, contents, options)
            for name, descriptor in options.shared.items():
                loaded.reuse_map(name, descriptor)
            loaded.set_constants(".rodata.config", config)
            if options.template is Template.OUTPUT:
                loaded.set_constants(CLASSES, state_classes(contents))
                loaded.set_map("drops", max_entries=len(contents.nodes))
                netfilter.as_netfilter(loaded, [options.template])
            if options.template is not Template.OUTPUT and not options.generation:
                loaded.skip_program("capture")
            loaded.load(specialised=specialised)
            _fill_maps(loaded, contents, options)
            return cls(loaded, contents, options)
        except BaseException:
            loaded.close()
            raise

    @property
    def fd(self) -> int:
        """The program's file descriptor, valid until `close`."""
        return self._object.program_fd(self.options.template)

    def map_fd(self, name: str) -> int:
        """A map's file descriptor, valid until `close`."""
        return self._object.map_fd(name)

    def run(self, frame: bytes) -> Result:
        """Classify an Ethernet frame as if received on ifindex 1; needs `trace=Trace.LAST`.

        The kernel refuses frames below 34 (IPv4) or 54 (IPv6) bytes: they are `TRUNCATED`.
        """
        self._runtime.cells["cut"] = max(len(frame) - _LONGEST_RUN, 0)
        data = syscall.to_loopback(frame[:_LONGEST_RUN])
        try:
            ran = syscall.run_program(self.fd, data, context=bytes(self._context_bytes))
        except syscall.KernelCallFailed as error:
            if error.errno == errno.EINVAL and len(frame) < syscall.shortest(frame):
                return Result(Outcome.PUNT, Reason.TRUNCATED)
            raise
        mark = struct.unpack_from("=I", ran.context, _SKB_MARK)[0] if ran.context else 0
        return self._result(self._records.cells[0], mark)

    @property
    def _context_bytes(self) -> int:
        return 0 if self.options.template is Template.XDP else _SKB_BYTES

    def run_many(self, frames: Iterable[bytes]) -> list[Result]:
        """`run` for each frame, in order."""
        return [self.run(frame) for frame in frames]

    def record(self, number: int) -> Result | None:
        """The last packet with this IPv4 ID or flow label, with `trace=Trace.BY_ID`."""
        cell = self._records.cells[number]
        return self._result(cell, int(cell["mark"])) if cell["hits"] else None

    def clear_records(self) -> None:
        """Forget all records."""
        self._records.cells[:] = np.zeros(1, RECORD)

    def _result(self, cell: np.void, mark: int) -> Result:
        reason = Reason(int(cell["reason"]))
        states = int(cell["states"])
        slot = self.contents.slots[int(cell["slot"])] if states else None
        return Result(
            Outcome(int(cell["outcome"])),
            reason,
            int(cell["code"]),
            slot,
            int(cell["node"]),
            tuple(int(entry) for entry in cell["final"][:states]),
            mark,
            int(cell["hits"]),
        )

    def measure(self, frames: Sequence[bytes], repeat: int = 1000) -> float:
        """Mean ns per packet over the frames, each run `repeat` times in the kernel."""
        times = [
            syscall.run_program(self.fd, syscall.to_loopback(frame), repeat=repeat).duration
            for frame in frames
        ]
        return sum(times) / len(times)

    def attach(self, index: int, kind: AttachKind | None = None) -> Attachment:
        """Attach to an interface; `close` detaches unless it was detached before.

        See `attach.attach`; the attachment's own `close` may be called first.
        """
        attachment = attach(self.fd, index, kind)
        self._stack.callback(attachment.close)
        return attachment

    def set_lease(self, valid_until: int) -> None:
        """The program decides until then: CLOCK_MONOTONIC ns. 0 takes the lease away.

        A time more than 60 s ahead counts as over.
        """
        self._runtime.cells["valid_until"] = valid_until

    def set_interface(self, index: int, name: str) -> None:
        """The device `index` bears this name, from the next packet on."""
        _write_interface(self.map_fd("interfaces"), self.contents, index, Device(name, {}))

    def set_routing(self, before: Routing, now: Routing) -> None:
        """In mode LIVE, from the next packet on; packets on their way may meet half of it."""
        interfaces = self.map_fd("interfaces")
        for index in before.devices.keys() - now.devices.keys():
            syscall.map_update(interfaces, struct.pack("=I", index), bytes(4 + 4 * SLOTS))
        for index, device in now.devices.items():
            if before.devices.get(index) != device:
                _write_interface(interfaces, self.contents, index, device)

    def set_out_interface(self, name: str) -> None:
        """What `-o` sees from the next packet on."""
        for index, slot in enumerate(self.contents.slots):
            if slot is not None:
                chosen = slot.plan.flat.space.interface_class(name)
                self._runtime.cells["out_class"][0, index] = chosen

    def observe_generation(self) -> Generation:
        """The rules' present generation in this thread's network namespace."""
        syscall.run_program(self._object.program_fd("capture"), _FRAME)
        raw = syscall.map_lookup(self.map_fd("observed"), bytes(4), GENERATION.itemsize)
        (seen,) = np.frombuffer(raw, GENERATION)
        known = int(seen["known"])
        return Generation(
            int(seen["nft"]),
            (int(seen["legacy"][0]), int(seen["legacy"][1])),
            shows_nft=bool(known & 1),
            shows_legacy=bool(known & 2),
            tracks=not known & 4,
        )

    def set_generation(self, generation: Generation) -> None:
        """The program decides only while the rules are of this generation.

        Early drops end until `set_early`: their conditions are to be looked at anew.
        """
        self.set_early(EarlyNow(0))
        self._runtime.cells["nft"] = generation.nft
        self._runtime.cells["legacy"][0] = generation.legacy

    def set_early(self, now: EarlyNow) -> None:
        """Whether early programs that share `runtime` may drop, from the next packet on."""
        self._runtime.cells["early"] = now

    def set_changed(self, hulls: Sequence[Hull]) -> None:
        """Leave these packets to the original rules, in place of those that were named before.

        Not to be called under a lease: a packet may meet half of it. What was foretold before is
        not compared any more.
        """
        self._runtime.cells["changed"] = 0
        self._runtime.cells["edits"] += 1
        fill(self.map_fd("changed"), changed_cells(hulls))
        self._runtime.cells["changed"] = len(hulls)

    def punts(self) -> dict[Reason, int]:
        """Packets left to the original rules, by reason; reasons that did not occur are absent."""
        totals = self._totals("punts", len(Reason))
        return {
            reason: int(totals["packets"][reason]) for reason in Reason if totals["packets"][reason]
        }

    def outcomes(self) -> dict[tuple[int, Outcome], int]:
        """Packets decided, by slot and outcome."""
        packets = self._totals("outcomes", SLOTS * len(Outcome))["packets"]
        return {
            (index // len(Outcome), Outcome(index % len(Outcome))): int(count)
            for index, count in enumerate(packets)
            if count
        }

    def counters(self) -> Mapping[int, np.ndarray[tuple[int, ...], np.dtype[np.void]]]:
        """Per slot, an array [entries, 2] of packets and bytes.

        Column 0: packets whose walk ends at the entry in every state. Column 1: those that end
        there in some states only; which, iptables decides.
        """
        totals = self._totals("counters", self.contents.counters)
        result: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.void]]] = {}
        for index, slot in enumerate(self.contents.slots):
            if slot is not None:
                base = self.contents.counter_bases[index]
                size = 2 * len(slot.plan.tables.ops)
                result[index] = totals[base : base + size].reshape(-1, 2)
        return result

    def _totals(self, name: str, entries: int) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
        """The sums over all CPUs' rows."""
        cells = self._counts[name].cells.reshape(possible_cpus(), -1)[:, :entries]
        totals = np.zeros(entries, COUNT)
        for column in COUNT.names or ():
            totals[column] = cells[column].sum(axis=0)
        return totals

    def _mapped(self, name: str, dtype: np.dtype[np.void], entries: int) -> MappedArray:
        mapped = MappedArray(self.map_fd(name), dtype, entries)
        self._stack.callback(mapped.close)
        return mapped

    def close(self) -> None:
        """Let go of the program and its maps; what is attached or pinned stays."""
        self._stack.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def possible_cpus() -> int:
    """How many rows a map of counts has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def _record_count(trace: Trace) -> int:
    return RECORDS if trace is Trace.BY_ID else 1


def _size_maps(loaded: BpfObject, contents: Contents, options: Options) -> None:
    for name in ("ids", "bounds", "rows", "blocks", "ops"):
        loaded.set_map(name, value_size=max(getattr(contents, name).nbytes, 8))
    loaded.set_map("nodes", max_entries=len(contents.nodes))
    loaded.set_map("edges", max_entries=len(contents.edges[0]))
    loaded.set_map("macs", max_entries=len(contents.macs[0]))
    _size_interfaces(loaded, _devices(options))
    loaded.set_map("addresses", max_entries=max(2 * len(options.addresses), 1024))
    loaded.set_map("scope", max_entries=len(options.scope_sources))
    loaded.set_map("changed", max_entries=MAX_CHANGED if options.leased else 1)
    loaded.set_map("trace", max_entries=_record_count(options.trace))
    if options.template in (Template.CLASSIFIER, Template.OUTPUT):
        compared = options.shadow_share > 0 or options.verify_share > 0
        loaded.set_map("predictions", max_entries=options.room if compared else 1)
    for name, count in _count_cells(contents, options).items():
        loaded.set_map(name, max_entries=count)


def _count_cells(contents: Contents, options: Options) -> dict[str, int]:
    """How many counts each map of them holds: a row per possible CPU."""
    strides = {
        "counters": contents.counter_stride if options.counting else 1,
        "punts": PUNT_STRIDE,
        "outcomes": OUTCOME_STRIDE,
    }
    return {name: possible_cpus() * max(stride, 1) for name, stride in strides.items()}


def _devices(options: Options) -> Mapping[int, Device]:
    named = {index: Device(name, {}) for index, name in (options.interfaces or {}).items()}
    return {**named, **options.routing.devices}


def _size_interfaces(loaded: BpfObject, interfaces: Mapping[int, Device]) -> None:
    """An array is quicker; hosts that made many interfaces have indices too large for one."""
    size = max([*interfaces, 63]) + 1
    if size <= _LARGEST_INTERFACE_ARRAY:
        loaded.set_map("interfaces", max_entries=size)
    else:
        loaded.set_map(
            "interfaces", kind=syscall.MAP_TYPE_HASH, max_entries=max(2 * len(interfaces), 64)
        )


def _fill_maps(loaded: BpfObject, contents: Contents, options: Options) -> None:
    for name in ("ids", "bounds", "rows", "blocks", "ops", "nodes"):
        fill(loaded.map_fd(name), getattr(contents, name))
    for name in ("edges", "macs"):
        keys, values = getattr(contents, name)
        syscall.map_update_batch(loaded.map_fd(name), keys.tobytes(), values.tobytes(), len(keys))
    if "runtime" not in options.shared:
        fill(loaded.map_fd("runtime"), _first_runtime(contents, options))
    for index, device in _devices(options).items():
        _write_interface(loaded.map_fd("interfaces"), contents, index, device)
    if "addresses" not in options.shared:
        for route in options.addresses:
            syscall.map_update(loaded.map_fd("addresses"), route.key, struct.pack("=I", route.kind))
    for network in options.scope_sources:
        syscall.map_update(loaded.map_fd("scope"), _network_key(network), struct.pack("=I", 1))


def _first_runtime(
    contents: Contents, options: Options
) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    runtime = np.zeros(1, RUNTIME)
    for index, slot in enumerate(contents.slots):
        if slot is not None:
            space = slot.plan.flat.space
            runtime["out_class"][0, index] = space.interface_class(options.out_interface)
    return runtime


def _network_key(network: IPv4Network | IPv6Network) -> bytes:
    """Key of `addresses` and `scope`: see struct address_key."""
    head = struct.pack("=I", 32 + network.prefixlen) + struct.pack("!I", network.version)
    return head + network.network_address.packed.ljust(16, b"\0")


def _write_interface(fd: int, contents: Contents, index: int, device: Device) -> None:
    classes = [
        slot.plan.flat.space.interface_class(device.name) if slot else 0 for slot in contents.slots
    ]
    syscall.map_update(fd, struct.pack("=I", index), struct.pack("=5I", device.known, *classes))
