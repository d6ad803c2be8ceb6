"""BPF instructions as Python values, and the functions of a program. Pure.

Source: Documentation/bpf/standardization/instruction-set.rst. Indices count slots, as the kernel
does: a 64-bit constant takes two.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BYTES = 8
_FORMAT = struct.Struct("<BBhi")
_RAW = np.dtype([("code", "u1"), ("registers", "u1"), ("off", "<i2"), ("imm", "<i4")])
FRAME = 10
"""The register that points to the end of the stack frame."""

LD, LDX, ST, STX, ALU32, JMP, JMP32, ALU64 = range(8)
"""Classes, `code & 7`."""

LOAD_CONSTANT, GOTO, CALL, EXIT = 0x18, 0x05, 0x85, 0x95
MEMORY, ATOMIC = 0x60, 0xC0
SOURCE_REGISTER = 0x08
ADD, SUB, MUL, AND, NEG, MOV, END = 0x00, 0x10, 0x20, 0x50, 0x80, 0xB0, 0xD0
"""Operations of ALU32 and ALU64, `code & 0xF0`."""

MAP, MAP_VALUE, FUNCTION = 1, 2, 4
"""What a loaded constant is, by its source register: a map; an address in its value; a function."""
OWN_FUNCTION = 1
"""A call within the program, by its source register."""

SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
"""Bytes of a load or store, by `code & 0x18`."""


class Instruction(NamedTuple):
    """`high`: the upper half of a 64-bit constant, whose instruction takes two slots."""

    code: int
    dst: int
    src: int
    off: int
    imm: int
    high: int = 0

    @property
    def slots(self) -> int:
        return 2 if self.code == LOAD_CONSTANT else 1

    @property
    def kind(self) -> int:
        return self.code & 7

    @property
    def branches(self) -> bool:
        """Goes on at one of two places."""
        return self.code & 7 in (JMP, JMP32) and self.code not in (GOTO, CALL, EXIT)


class Program:
    """Instructions that are decoded when they are asked for: most of a template is not needed."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        codes = np.frombuffer(raw, _RAW)
        source = codes["registers"] >> 4
        own = (codes["code"] == CALL) & (source == OWN_FUNCTION)
        named = (codes["code"] == LOAD_CONSTANT) & (source == FUNCTION)
        at = np.flatnonzero(own | named)
        starts = np.unique(np.append(at + codes["imm"][at] + 1, 0)).tolist()
        self.ends: dict[int, int] = dict(zip(starts, [*starts[1:], len(codes)], strict=True))

    def __len__(self) -> int:
        return len(self._raw) // BYTES

    def function(self, start: int) -> dict[int, Instruction]:
        """The instructions of the function that begins there, by index."""
        raw = self._raw[start * BYTES : self.ends[start] * BYTES]
        found: dict[int, Instruction] = {}
        for index, (code, registers, off, imm) in enumerate(_FORMAT.iter_unpack(raw), start):
            if code:
                found[index] = Instruction(code, registers & 15, registers >> 4, off, imm)
            else:
                found[index - 1] = found[index - 1]._replace(high=imm)
        return found


def encode(instructions: Sequence[Instruction]) -> bytes:
    return b"".join(
        _FORMAT.pack(each.code, each.dst | each.src << 4, each.off, each.imm)
        + (_FORMAT.pack(0, 0, 0, each.high) if each.slots == 2 else b"")
        for each in instructions
    )


def callee(index: int, each: Instruction) -> int | None:
    """Where the function begins that an instruction calls or takes the address of."""
    if (each.code, each.src) in ((CALL, OWN_FUNCTION), (LOAD_CONSTANT, FUNCTION)):
        return index + each.imm + 1
    return None


def successors(index: int, each: Instruction) -> tuple[int, ...]:
    """Where the program can go on, or just before that: for a branch, the next one first."""
    if each.code == EXIT:
        return ()
    if each.code == GOTO:
        return (index + 1 + each.off,)
    return (index + 1, index + 1 + each.off) if each.branches else (index + 1,)
