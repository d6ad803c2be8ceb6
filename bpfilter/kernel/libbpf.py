"""Binding of libbpf.so.1: open an object file, size its maps, patch its constants, load it.

What libbpf prints goes into the errors raised here, never to the terminal.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

from bpfilter.errors import KernelError, VerifierRejected
from bpfilter.kernel import preload

LOG_BYTES = 1 << 20
_LOG_LINES = 25
_ARRAY = 2  # BPF_MAP_TYPE_ARRAY
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_messages = threading.local()


def _collect(level: int, pattern: bytes, arguments: int) -> int:
    if level == 0:
        text = ctypes.create_string_buffer(1024)
        _libc().vsnprintf(text, len(text), pattern, ctypes.c_void_p(arguments))
        lines: list[str] = getattr(_messages, "lines", [])
        lines.append(text.value.decode("utf-8", "replace").rstrip())
        _messages.lines = lines[-_LOG_LINES:]
    return 0


_collector = _PRINT(_collect)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1; raises KernelError with the package to install where it is missing."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(
            f"libbpf.so.1 cannot be loaded: {error}",
            hint="install libbpf 1.0 or newer (Debian: apt-get install libbpf1)",
        ) from None
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
    size = ctypes.c_size_t
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, (text, pointer)),
        ("bpf_object__load", ctypes.c_int, (pointer,)),
        ("bpf_object__close", None, (pointer,)),
        ("bpf_object__find_map_by_name", pointer, (pointer, text)),
        ("bpf_object__find_program_by_name", pointer, (pointer, text)),
        ("bpf_object__next_program", pointer, (pointer, pointer)),
        ("bpf_program__name", text, (pointer,)),
        ("bpf_program__fd", ctypes.c_int, (pointer,)),
        ("bpf_program__set_autoload", ctypes.c_int, (pointer, ctypes.c_bool)),
        ("bpf_program__set_type", ctypes.c_int, (pointer, ctypes.c_int)),
        ("bpf_program__set_expected_attach_type", ctypes.c_int, (pointer, ctypes.c_int)),
        ("bpf_program__set_log_buf", ctypes.c_int, (pointer, pointer, size)),
        ("bpf_object__next_map", pointer, (pointer, pointer)),
        ("bpf_map__type", ctypes.c_int, (pointer,)),
        ("bpf_map__max_entries", number, (pointer,)),
        ("bpf_map__fd", ctypes.c_int, (pointer,)),
        ("bpf_map__reuse_fd", ctypes.c_int, (pointer, ctypes.c_int)),
        ("bpf_map__set_max_entries", ctypes.c_int, (pointer, number)),
        ("bpf_map__set_type", ctypes.c_int, (pointer, ctypes.c_int)),
        ("bpf_map__set_value_size", ctypes.c_int, (pointer, number)),
        ("bpf_map__value_size", number, (pointer,)),
        ("bpf_map__initial_value", pointer, (pointer, ctypes.POINTER(size))),
        ("libbpf_set_print", pointer, (_PRINT,)),
        ("libbpf_register_prog_handler", ctypes.c_int, (text, ctypes.c_int, ctypes.c_int, pointer)),
        ("bpf_program__insns", pointer, (pointer,)),
        ("bpf_program__insn_cnt", size, (pointer,)),
        ("bpf_program__set_insns", ctypes.c_int, (pointer, text, size)),
        ("ring_buffer__new", pointer, (ctypes.c_int, _SAMPLE, pointer, pointer)),
        ("ring_buffer__consume", ctypes.c_int, (pointer,)),
        ("ring_buffer__free", None, (pointer,)),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    lib.libbpf_set_print(_collector)
    preload.register(lib)
    return lib


class BpfObject:
    """One opened object file; closing it drops its maps and programs that nothing else holds."""

    def __init__(self, path: Path) -> None:
        """Raises KernelError if the file is missing or no BPF object."""
        self._lib = library()
        self._name = path.name
        self._logs: dict[str, ctypes.Array[ctypes.c_char]] = {}
        self._constants: dict[str, bytes] = {}
        _messages.lines = []
        self._object = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise self._error("cannot be opened", ctypes.get_errno())

    @classmethod
    def loaded(cls, path: Path, prepare: Callable[[BpfObject], object]) -> BpfObject:
        """Open an object, `prepare` it (sizes, constants, types), load it; or leave nothing."""
        opened = cls(path)
        try:
            prepare(opened)
            opened.load()
        except BaseException:
            opened.close()
            raise
        return opened

    def set_map(
        self,
        name: str,
        *,
        max_entries: int | None = None,
        value_size: int | None = None,
        kind: int | None = None,
    ) -> None:
        """Size a map before loading, or change its type; an empty map gets one element."""
        handle = self._map(name)
        if kind is not None:
            self._lib.bpf_map__set_type(handle, kind)
        if max_entries is not None:
            self._lib.bpf_map__set_max_entries(handle, max(max_entries, 1))
        if value_size is not None:
            self._lib.bpf_map__set_value_size(handle, value_size)

    def reuse_map(self, name: str, fd: int) -> None:
        """Share a map that exists already, before loading; its own size and type are taken."""
        failed = self._lib.bpf_map__reuse_fd(self._map(name), fd)
        if failed:
            raise self._error(f"cannot share the map {name}", -failed)

    def set_constants(self, name: str, value: ctypes.Structure) -> None:
        """Write a read-only section that holds one struct, before loading."""
        size = ctypes.c_size_t()
        memory = self._lib.bpf_map__initial_value(self._map(name), ctypes.byref(size))
        if not memory or size.value != ctypes.sizeof(value):
            raise KernelError(
                f"{self._name}: section {name} has {size.value} bytes, "
                f"this version writes {ctypes.sizeof(value)}",
                hint="the compiled templates are of another version: run make templates",
            )
        ctypes.memmove(memory, ctypes.byref(value), ctypes.sizeof(value))
        self._constants[name] = bytes(value)

    def skip_program(self, name: str) -> None:
        """Do not load this program."""
        self._lib.bpf_program__set_autoload(self._program(name), False)

    def set_type(self, name: str, kind: int, attach: int) -> None:
        """Say what a program is, where this libbpf does not know its section's name."""
        self._lib.bpf_program__set_type(self._program(name), kind)
        self._lib.bpf_program__set_expected_attach_type(self._program(name), attach)

    def load(self, *, specialised: bool = True) -> None:
        """Create the maps and load the programs; VerifierRejected carries the last log lines.

        `specialised`: by the constants that were set; NotSpecialised if that fails.
        """
        _messages.lines = []
        for name, handle in self._programs():
            log = ctypes.create_string_buffer(LOG_BYTES)
            self._logs[name] = log
            self._lib.bpf_program__set_log_buf(handle, log, LOG_BYTES)
        held = self._held if specialised else dict
        with preload.specialised(self._lib, held, self._single):
            failed = self._lib.bpf_object__load(self._object)
        logs = [log.value.decode("utf-8", "replace") for log in self._logs.values()]
        self._logs = {}
        if failed:
            said = next((log for log in logs if log), "")
            if said:
                raise VerifierRejected(
                    f"{self._name}: the kernel refuses the program ({_errno_name(-failed)})",
                    log="\n".join(said.splitlines()[-_LOG_LINES:]),
                    hint="please report this with `uname -r`; nothing was attached",
                )
            raise self._error("cannot be loaded", -failed)

    def _held(self) -> dict[int, bytes]:
        """What the read-only maps hold that were written here."""
        return {self.map_fd(name): value for name, value in self._constants.items()}

    def _single(self) -> set[int]:
        """The arrays that have one element: its address is known when the program is loaded."""
        found, handle = set(), self._lib.bpf_object__next_map(self._object, None)
        while handle:
            kind, count = self._lib.bpf_map__type(handle), self._lib.bpf_map__max_entries(handle)
            if (kind, count) == (_ARRAY, 1):
                found.add(int(self._lib.bpf_map__fd(handle)))
            handle = self._lib.bpf_object__next_map(self._object, handle)
        return found

    def map_fd(self, name: str) -> int:
        return int(self._lib.bpf_map__fd(self._map(name)))

    def program_fd(self, name: str) -> int:
        return int(self._lib.bpf_program__fd(self._program(name)))

    def close(self) -> None:
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _map(self, name: str) -> int:
        handle = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not handle:
            raise self._error(f"has no map {name}", None)
        return int(handle)

    def _program(self, name: str) -> int:
        handle = self._lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not handle:
            raise self._error(f"has no program {name}", None)
        return int(handle)

    def _programs(self) -> Iterator[tuple[str, int]]:
        handle = self._lib.bpf_object__next_program(self._object, None)
        while handle:
            yield self._lib.bpf_program__name(handle).decode(), handle
            handle = self._lib.bpf_object__next_program(self._object, handle)

    def _error(self, what: str, number: int | None) -> KernelError:
        said = "; ".join(getattr(_messages, "lines", [])[-3:])
        why = f" ({_errno_name(number)})" if number else ""
        return KernelError(
            f"{self._name} {what}{why}" + (f": {said}" if said else ""),
            hint="loading BPF needs root or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
            if number in (1, 13)
            else "make templates compiles the objects; bpfilter needs Linux 6.6 with BTF",
        )


class RingBuffer:
    """The reading end of a BPF_MAP_TYPE_RINGBUF map; one reader per map."""

    def __init__(self, fd: int) -> None:
        self._lib = library()
        self._read: list[bytes] = []
        self._callback = _SAMPLE(self._take)  # libbpf keeps only its address
        self._ring = self._lib.ring_buffer__new(fd, self._callback, None, None)
        if not self._ring:
            number = ctypes.get_errno()
            raise KernelError(
                f"the ring of samples cannot be read ({_errno_name(number)})",
                hint="free memory, then start again",
            )

    def _take(self, context: int, data: int, size: int) -> int:
        self._read.append(ctypes.string_at(data, size))
        return 0

    def consume(self) -> list[bytes]:
        """What was written since the last call."""
        self._lib.ring_buffer__consume(self._ring)
        read, self._read = self._read, []
        return read

    def close(self) -> None:
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
