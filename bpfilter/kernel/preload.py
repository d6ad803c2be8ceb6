"""The last step before the kernel sees a program: its instructions are specialised.

libbpf calls a program handler when it has resolved everything: functions are appended, fields of
kernel structures located, maps created. Source: libbpf.h, libbpf_register_prog_handler().
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import numpy as np

from bpfilter.kernel.bytecode import BYTES, Program, encode
from bpfilter.kernel.folding import Constants
from bpfilter.kernel.specialise import Specialised, specialise

Single = Callable[[], Container[int]]
Records = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_TYPE_TC, _TYPE_XDP, _ATTACH_XDP = 3, 6, 37
_FRAGMENTS = 1 << 5  # BPF_F_XDP_HAS_FRAGS
_PREPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
_loading = threading.local()


class NotSpecialised(Exception):
    """A program was not understood; its cause says where."""


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of bpf.h, as far as it is needed."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
    )


class _Handler(ctypes.Structure):
    """struct libbpf_prog_handler_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("cookie", ctypes.c_long),
        ("prog_setup_fn", ctypes.c_void_p),
        ("prog_prepare_load_fn", _PREPARE),
        ("prog_attach_fn", ctypes.c_void_p),
    )


class _Session:
    """One object's loading in this thread; keeps what libbpf points to alive."""

    def __init__(
        self, lib: ctypes.CDLL, constants: Callable[[], Constants], single: Single
    ) -> None:
        self.lib, self.constants, self.single = lib, constants, single
        self.memory: list[ctypes.Array[ctypes.c_char]] = []
        self.failure: Exception | None = None

    def prepare(self, program: int, options: _LoadOptions) -> None:
        constants = self.constants()
        if not constants:
            return
        count = self.lib.bpf_program__insn_cnt(program)
        raw = ctypes.string_at(self.lib.bpf_program__insns(program), count * BYTES)
        result = specialise(Program(raw), constants, self.single())
        functions = _records(options.func_info, options.func_info_cnt, options.func_info_rec_size)
        lines = _records(options.line_info, options.line_info_cnt, options.line_info_rec_size)
        image = encode(result.instructions)
        if self.lib.bpf_program__set_insns(program, image, len(image) // BYTES):
            return
        if len(functions):
            moved = moved_functions(functions, result)
            options.func_info, options.func_info_cnt = self._kept(moved)
        if len(lines):
            moved = moved_lines(lines, result)
            options.line_info, options.line_info_cnt = self._kept(moved)

    def _kept(self, records: Records) -> tuple[int, int]:
        raw = records.tobytes()
        held = ctypes.create_string_buffer(raw, len(raw))
        self.memory.append(held)
        return ctypes.addressof(held), len(records)


def _records(address: int | None, count: int, size: int) -> Records:
    """One row per record, its words; the first says which instruction it is about."""
    raw = ctypes.string_at(address, count * size) if address else b""
    return np.frombuffer(raw, np.uint32).reshape(count if raw else 0, -1).copy()


def moved_functions(records: Records, result: Specialised) -> Records:
    """What BTF says of the functions that stay, at their new places."""
    rows = np.searchsorted(records[:, 0], list(result.functions.values()))
    return _placed(records, rows, np.array(list(result.functions)))


def _placed(records: Records, rows: Numbers, places: Numbers) -> Records:
    moved: Records = records[rows]
    moved[:, 0] = places
    return moved


def moved_lines(records: Records, result: Specialised) -> Records:
    """Source lines at their new places: each where its first instruction that stays stands."""
    rows = np.searchsorted(records[:, 0], result.origins, side="right") - 1
    places = np.array(result.places)
    begins = np.isin(places, list(result.functions))
    begins[1:] |= rows[1:] != rows[:-1]
    return _placed(records, rows[begins], places[begins])


def _prepare(program: int, options: int, cookie: int) -> int:
    given = _LoadOptions.from_address(options)
    given.prog_flags |= cookie
    session: _Session | None = getattr(_loading, "session", None)
    if session is not None:
        try:
            session.prepare(program, given)
        except Exception as error:  # libbpf is between us and who loads
            session.failure = error
            return -1
    return 0


_callback = _PREPARE(_prepare)
_handlers = [
    (b"tc", _TYPE_TC, 0, 0),
    (b"xdp.frags", _TYPE_XDP, _ATTACH_XDP, _FRAGMENTS),
]
_registered: list[_Handler] = []


def register(lib: ctypes.CDLL) -> None:
    """Have libbpf call us for the sections of our templates; once, before an object is opened."""
    for section, kind, attach, flags in _handlers:
        handler = _Handler(ctypes.sizeof(_Handler), flags, None, _callback, None)
        _registered.append(handler)
        lib.libbpf_register_prog_handler(section, kind, attach, ctypes.byref(handler))


@contextmanager
def specialised(
    lib: ctypes.CDLL, constants: Callable[[], Constants], single: Single
) -> Iterator[None]:
    """Programs that this thread loads inside are specialised by these constants and arrays.

    They are asked for when the maps exist; see `specialise`. NotSpecialised if that fails.
    """
    session = _Session(lib, constants, single)
    _loading.session = session
    try:
        yield
    finally:
        _loading.session = None
        if session.failure is not None:
            raise NotSpecialised from session.failure
