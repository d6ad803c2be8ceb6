"""bpf(2): map elements, test runs, links and pins. Constants are those of linux/bpf.h.

Every call raises KernelError with the name of the errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpfilter.errors import KernelError

MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_GET_NEXT = 1, 2, 3, 4
OBJ_PIN, OBJ_GET, PROG_TEST_RUN, OBJ_GET_INFO = 6, 7, 10, 15
MAP_UPDATE_BATCH = 26
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
RAW_TRACEPOINT_OPEN, MAP_LOOKUP_AND_DELETE = 17, 21

MAP_TYPE_HASH = 1
BPF_NETFILTER = 45
BPF_TCX_INGRESS = 46

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _number() -> int:
    try:
        return _NUMBERS[platform.machine()]
    except KeyError:
        raise KernelError(
            f"the number of bpf(2) on {platform.machine()} is not known",
            hint="run on x86_64, aarch64, riscv64, ppc64le or s390x",
        ) from None


class _Attr(ctypes.Structure):
    """Base of the members of union bpf_attr."""


class _Element(_Attr):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _Batch(_Attr):
    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _RawTracepoint(_Attr):
    _fields_ = (("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class RunAttributes(_Attr):
    """The members of union bpf_attr for BPF_PROG_TEST_RUN."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _Object(_Attr):
    _fields_ = (
        ("pathname", ctypes.c_uint64),
        ("bpf_fd", ctypes.c_uint32),
        ("file_flags", ctypes.c_uint32),
    )


class _Info(_Attr):
    _fields_ = (
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    )


class _Link(_Attr):
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("words", ctypes.c_uint32 * 8),
    )


class _LinkUpdate(_Attr):
    _fields_ = (
        ("link_fd", ctypes.c_uint32),
        ("new_prog_fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("old_prog_fd", ctypes.c_uint32),
    )


def bpf(command: int, attr: ctypes.Structure, doing: str, hint: str | None = None) -> int:
    """The system call; `doing` completes "cannot …" in the error."""
    result = int(_libc().syscall(_number(), command, ctypes.byref(attr), ctypes.sizeof(attr)))
    if result < 0:
        number = ctypes.get_errno()
        raise KernelCallFailed(doing, number, hint)
    return result


class KernelCallFailed(KernelError):
    """A bpf(2) call failed; `errno` tells why."""

    def __init__(self, doing: str, number: int, hint: str | None = None) -> None:
        self.errno = number
        name = errno.errorcode.get(number, str(number))
        if hint is None and number == errno.EPERM:
            hint = "run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
        super().__init__(f"cannot {doing}: {name} ({os.strerror(number)})", hint=hint)


def _bytes(value: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(value, len(value))


def map_update(fd: int, key: bytes, value: bytes, *, flags: int = 0) -> None:
    """Set one element."""
    k, v = _bytes(key), _bytes(value)
    bpf(
        MAP_UPDATE,
        _Element(fd, 0, ctypes.addressof(k), ctypes.addressof(v), flags),
        "write a map element",
    )


def map_lookup(fd: int, key: bytes, size: int) -> bytes:
    """One element; per-CPU maps give all CPUs' values, each rounded up to 8 bytes, as `size`."""
    k, v = _bytes(key), ctypes.create_string_buffer(size)
    bpf(
        MAP_LOOKUP,
        _Element(fd, 0, ctypes.addressof(k), ctypes.addressof(v), 0),
        "read a map element",
    )
    return v.raw


def map_keys(fd: int, key_bytes: int, most: int) -> list[bytes]:
    """Up to `most` keys of a hash map that others may be changing."""
    keys: list[bytes] = []
    following = ctypes.create_string_buffer(key_bytes)
    while len(keys) < most:
        key = _bytes(keys[-1]) if keys else None
        address = 0 if key is None else ctypes.addressof(key)
        element = _Element(fd, 0, address, ctypes.addressof(following), 0)
        try:
            bpf(MAP_GET_NEXT, element, "list a map")
        except KernelCallFailed as error:
            if error.errno == errno.ENOENT:
                break
            raise
        keys.append(following.raw)
    return keys


def map_take(fd: int, key: bytes, size: int) -> bytes | None:
    """Remove one element of a hash map and return its value; None if there is none."""
    k, v = _bytes(key), ctypes.create_string_buffer(size)
    element = _Element(fd, 0, ctypes.addressof(k), ctypes.addressof(v), 0)
    try:
        bpf(MAP_LOOKUP_AND_DELETE, element, "take a map element")
    except KernelCallFailed as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return v.raw


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Set many elements of an array or hash map."""
    if count:
        k, v = _bytes(keys), _bytes(values)
        attr = _Batch(0, 0, ctypes.addressof(k), ctypes.addressof(v), count, fd, 0, 0)
        bpf(MAP_UPDATE_BATCH, attr, "fill a map")


@dataclass(frozen=True, slots=True)
class Ran:
    """What BPF_PROG_TEST_RUN gave: return value, ns per run, the context afterwards."""

    retval: int
    duration: int
    context: bytes


def run_program(fd: int, frame: bytes, *, repeat: int = 1, context: bytes = b"") -> Ran:
    """Run a TC program on a frame, as received on `lo` of this thread's network namespace.

    Raises KernelCallFailed with errno EINVAL for frames that the kernel finds too short.
    """
    data, ctx, out = _bytes(frame), _bytes(context), ctypes.create_string_buffer(len(context))
    attr = RunAttributes(
        prog_fd=fd,
        data_size_in=len(frame),
        data_in=ctypes.addressof(data),
        repeat=repeat,
        ctx_size_in=len(context),
        ctx_size_out=len(context),
        ctx_in=ctypes.addressof(ctx) if context else 0,
        ctx_out=ctypes.addressof(out) if context else 0,
    )
    bpf(PROG_TEST_RUN, attr, "run the program")
    return Ran(attr.retval, attr.duration, out.raw)


def pin(fd: int, path: Path) -> None:
    """Keep a map, program or link alive under a name of a bpf file system."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, _Object(ctypes.addressof(name), fd, 0), f"pin {path}")


def open_pin(path: Path) -> int:
    """A file descriptor of a pinned object; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(OBJ_GET, _Object(ctypes.addressof(name), 0, 0), f"open pin {path}")


def object_info(fd: int, size: int = 256, asked: bytes = b"") -> bytes:
    """struct bpf_prog_info, bpf_map_info or bpf_link_info; the id is its second u32, type first.

    For links: type, id, prog_id. `asked`: the structure as it is given, where its members say what
    else to write and where to.
    """
    buffer = ctypes.create_string_buffer(asked, size)
    bpf(
        OBJ_GET_INFO,
        _Info(fd, size, ctypes.addressof(buffer)),
        "ask for a BPF object's description",
    )
    return buffer.raw


def link_create(
    fd: int, target: int, kind: int, words: tuple[int, ...] = (), flags: int = 0
) -> int:
    """A BPF link; `words` are what follows `flags` in union bpf_attr, as u32."""
    padded = (ctypes.c_uint32 * 8)(*words)
    return bpf(LINK_CREATE, _Link(fd, target, kind, flags, padded), "attach the program")


def raw_tracepoint_open(fd: int, name: str) -> int:
    """Run a program at a raw tracepoint of the host until the returned descriptor is closed."""
    text = ctypes.create_string_buffer(name.encode())
    attr = _RawTracepoint(ctypes.addressof(text), fd, 0)
    return bpf(RAW_TRACEPOINT_OPEN, attr, f"attach to the tracepoint {name}")


def link_update(link: int, program: int) -> None:
    """Put another program in a link's place: each packet meets the one or the other."""
    bpf(LINK_UPDATE, _LinkUpdate(link, program, 0, 0), "replace the attached program")


def to_loopback(frame: bytes) -> bytes:
    """BPF_PROG_RUN receives on `lo`, whose address is all zero: else unicast is OTHERHOST."""
    return frame if frame[:1] and frame[0] & 1 else bytes(6) + frame[6:]


def shortest(frame: bytes) -> int:
    """Bytes below which BPF_PROG_RUN refuses a frame."""
    return 54 if frame[12:14] == b"\x86\xdd" else 34
