"""What the kernel says of a loaded program: BPF_OBJ_GET_INFO_BY_FD of it and of its maps.

Sources: struct bpf_prog_info and struct bpf_map_info in linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

from bpfilter.kernel import syscall
from bpfilter.kernel.config import SLOTS, Config

_PROG_FD_BY_ID, _MAP_FD_BY_ID = 13, 14
_INSTRUCTION = 8
_MOST_MAPS = 64
_INFO_BYTES = 256
_NR_MAPS, _MAP_IDS = 52, 56
_VERIFIED = 216
_CALL, _HELPER = 0x85, 0
_CONSTANTS = ".rodata.config"
_MAP_TYPES = {
    1: "hash",
    2: "array",
    6: "percpu array",
    5: "percpu hash",
    9: "lru hash",
    11: "lpm trie",
}


class _Id(ctypes.Structure):
    """The members of union bpf_attr for BPF_PROG_GET_FD_BY_ID and BPF_MAP_GET_FD_BY_ID."""

    _fields_ = (("id", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32))


def describe_program(fd: int) -> dict[str, Any]:
    """Sizes of a loaded program, the constants patched into it, and its maps.

    `instructions`: after the verifier removed what the constants rule out and rewrote the rest;
    `verified`: instructions that it looked at on the way; `jited_bytes`: 0 without the JIT;
    `helper_calls`: calls to kernel functions among the instructions (0 where the kernel shows
    them to nobody: kernel.kptr_restrict, kernel lockdown). KernelError if it does not answer.
    """
    sizes, numbers = _info(fd)
    jited, translated = struct.unpack_from("=II", sizes, 16)
    constants: dict[str, int] = {}
    maps = []
    for number in numbers:
        descriptor = syscall.bpf(_MAP_FD_BY_ID, _Id(number, 0, 0), "open a map of the program")
        try:
            described = _map(descriptor)
            maps.append(described)
            if described["name"] == _CONSTANTS:
                constants = _constants(descriptor, described["value_bytes"])
        finally:
            os.close(descriptor)
    return {
        "instructions": translated // _INSTRUCTION,
        "verified": struct.unpack_from("=I", sizes, _VERIFIED)[0],
        "jited_bytes": jited,
        "helper_calls": _helper_calls(fd, translated),
        "constants": constants,
        "maps": sorted(maps, key=lambda each: -each["bytes"]),
    }


def program_map(number: int, name: str) -> int | None:
    """A descriptor of a loaded program's map, None if it has none of this name; to be closed.

    KernelError if there is no program of this number any more.
    """
    program = syscall.bpf(_PROG_FD_BY_ID, _Id(number, 0, 0), f"open program {number}")
    try:
        _, numbers = _info(program)
        for each in numbers:
            descriptor = syscall.bpf(_MAP_FD_BY_ID, _Id(each, 0, 0), "open a map of the program")
            if _map(descriptor)["name"] == name:
                return descriptor
            os.close(descriptor)
    finally:
        os.close(program)
    return None


def _info(fd: int) -> tuple[bytes, list[int]]:
    """struct bpf_prog_info, and the numbers of the program's maps."""
    ids = (ctypes.c_uint32 * _MOST_MAPS)()
    asked = bytearray(_INFO_BYTES)
    struct.pack_into("=I", asked, _NR_MAPS, _MOST_MAPS)
    struct.pack_into("=Q", asked, _MAP_IDS, ctypes.addressof(ids))
    sizes = syscall.object_info(fd, _INFO_BYTES, bytes(asked))
    (count,) = struct.unpack_from("=I", sizes, _NR_MAPS)
    return sizes, list(ids)[: min(count, _MOST_MAPS)]


def _map(fd: int) -> dict[str, Any]:
    info = syscall.object_info(fd, 128)
    kind, _, key, value, entries = struct.unpack_from("=5I", info)
    return {
        "name": info[24:40].split(b"\0", 1)[0].decode("ascii", "replace"),
        "type": _MAP_TYPES.get(kind, str(kind)),
        "entries": entries,
        "key_bytes": key,
        "value_bytes": value,
        "bytes": entries * value,
    }


def _constants(fd: int, size: int) -> dict[str, int]:
    raw = syscall.map_lookup(fd, bytes(4), size)
    config = Config.from_buffer_copy(raw)
    named = ((field[0], getattr(config, field[0])) for field in Config._fields_)
    found = {name: value for name, value in named if isinstance(value, int)}
    found["slots"] = SLOTS
    return found


def _helper_calls(fd: int, size: int) -> int:
    code = ctypes.create_string_buffer(size)
    asked = bytearray(_INFO_BYTES)
    struct.pack_into("=I", asked, 20, size)
    struct.pack_into("=Q", asked, 32, ctypes.addressof(code))
    syscall.object_info(fd, _INFO_BYTES, bytes(asked))
    words = (code.raw[at : at + 2] for at in range(0, size, _INSTRUCTION))
    return sum(word[0] == _CALL and word[1] >> 4 == _HELPER for word in words)
