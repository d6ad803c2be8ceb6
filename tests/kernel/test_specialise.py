"""Programs are made smaller by their constants, and do the same as before."""

from __future__ import annotations

import random

import numpy as np

from bpfilter.kernel.bytecode import (
    ADD,
    ALU32,
    ALU64,
    CALL,
    EXIT,
    FRAME,
    FUNCTION,
    GOTO,
    LDX,
    LOAD_CONSTANT,
    MAP_VALUE,
    MEMORY,
    MOV,
    OWN_FUNCTION,
    SOURCE_REGISTER,
    STX,
    Instruction,
    Program,
    encode,
)
from bpfilter.kernel.bytecode import MAP as MAP_NUMBER
from bpfilter.kernel.folding import compare, evaluate
from bpfilter.kernel.preload import moved_functions, moved_lines
from bpfilter.kernel.specialise import Specialised, specialise

MAP = 7
HELD = bytes(range(1, 65))
_MASK = (1 << 64) - 1
_JEQ, _JNE = 0x15, 0x55
_WIDTHS = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_RETURN = Instruction(EXIT, 0, 0, 0, 0)


def _set(register: int, value: int) -> Instruction:
    return Instruction(ALU64 | MOV, register, 0, 0, value)


def _copy(register: int, source: int) -> Instruction:
    return Instruction(ALU64 | MOV | SOURCE_REGISTER, register, source, 0, 0)


def _address(register: int, offset: int) -> list[Instruction]:
    return [Instruction(LOAD_CONSTANT, register, MAP_VALUE, 0, MAP, offset)]


def _load(register: int, base: int, offset: int, width: int = 4) -> Instruction:
    return Instruction(LDX | MEMORY | _WIDTHS[width], register, base, offset, 0)


def _store(base: int, offset: int, register: int, width: int = 8) -> Instruction:
    return Instruction(STX | MEMORY | _WIDTHS[width], base, register, offset, 0)


def _specialised(program: list[Instruction]) -> Specialised:
    return specialise(Program(encode(program)), {MAP: HELD})


def test_a_constant_is_loaded_no_more() -> None:
    program = [*_address(1, 4), _load(0, 1, 4), _RETURN]
    value = int.from_bytes(HELD[8:12], "little")
    assert _specialised(program).instructions == [
        Instruction(ALU32 | MOV, 0, 0, 0, value),
        _RETURN,
    ]


def test_a_map_that_is_not_known_is_left_alone() -> None:
    program = [*_address(1, 4), _load(0, 1, 4), _RETURN]
    assert specialise(Program(encode(program)), {MAP + 1: HELD}).instructions == program


def test_a_branch_by_a_constant_goes_with_what_it_skips() -> None:
    program = [
        *_address(2, 0),
        _load(2, 2, 0, 1),
        Instruction(_JEQ, 2, 0, 2, 1),
        _set(0, 5),
        _RETURN,
        _load(0, 1, 0),
        _RETURN,
    ]
    assert _specialised(program).instructions == [_load(0, 1, 0), _RETURN]


def test_a_branch_by_the_packet_stays_with_its_distance() -> None:
    program = [
        _load(3, 1, 0),
        *_address(2, 0),
        _load(4, 2, 0),
        Instruction(_JNE, 3, 0, 2, 9),
        _set(0, 5),
        _RETURN,
        _set(5, 6),
        _set(0, 7),
        _RETURN,
    ]
    assert _specialised(program).instructions == [
        _load(3, 1, 0),
        Instruction(_JNE, 3, 0, 2, 9),
        Instruction(ALU32 | MOV, 0, 0, 0, 5),
        _RETURN,
        Instruction(ALU32 | MOV, 0, 0, 0, 7),
        _RETURN,
    ]


def test_a_constant_is_followed_through_the_stack_but_not_where_others_may_write() -> None:
    def through(*between: Instruction) -> list[Instruction]:
        return [
            *_address(2, 0), _load(2, 2, 0), _store(FRAME, -16, 2), *between,
            _load(0, FRAME, -16, 8), _RETURN,
        ]  # fmt: skip

    value = int.from_bytes(HELD[:4], "little")
    folded = Instruction(ALU32 | MOV, 0, 0, 0, value)
    assert _specialised(through()).instructions == [folded, _RETURN]
    above = [_copy(2, FRAME), Instruction(ALU64 | ADD, 2, 0, 0, -8)]
    call = Instruction(CALL, 0, 0, 0, 26)
    assert _specialised(through(*above, call)).instructions[-2:] == [folded, _RETURN]
    below = [_copy(2, FRAME), Instruction(ALU64 | ADD, 2, 0, 0, -24)]
    kept = _specialised(through(*below, call)).instructions
    assert kept[-2:] == [_load(0, FRAME, -16, 8), _RETURN]
    assert _store(FRAME, -16, 2) in kept


def test_a_lookup_of_the_only_element_becomes_its_address() -> None:
    def looked_up(key: int) -> list[Instruction]:
        return [
            _set(3, key),
            _store(FRAME, -4, 3, 4),
            Instruction(LOAD_CONSTANT, 1, MAP_NUMBER, 0, MAP + 2),
            _copy(2, FRAME),
            Instruction(ALU64 | ADD, 2, 0, 0, -4),
            Instruction(CALL, 0, 0, 0, 1),
            Instruction(_JEQ, 0, 0, 1, 0),
            _load(0, 0, 8),
            _RETURN,
        ]

    def result(key: int, *single: int) -> list[Instruction]:
        return specialise(Program(encode(looked_up(key))), {MAP: HELD}, single).instructions

    address = Instruction(LOAD_CONSTANT, 0, MAP_VALUE, 0, MAP + 2)
    assert result(0, MAP + 2) == [address, _load(0, 0, 8), _RETURN]
    assert Instruction(CALL, 0, 0, 0, 1) in result(1, MAP + 2)
    assert Instruction(CALL, 0, 0, 0, 1) in result(0, MAP)


def _with_functions() -> list[Instruction]:
    """Calls the second function; the first only if a constant were another one."""
    return [
        *_address(7, 0),
        _load(7, 7, 0, 1),
        Instruction(_JEQ, 7, 0, 1, 1),
        Instruction(CALL, 0, OWN_FUNCTION, 0, 4),  # 4 → 9
        Instruction(CALL, 0, OWN_FUNCTION, 0, 5),  # 5 → 11
        Instruction(LOAD_CONSTANT, 2, FUNCTION, 0, 6),  # 6 → 13
        _RETURN,
        _set(0, 1),
        _RETURN,
        _set(0, 2),
        _RETURN,
        _set(0, 3),
        _RETURN,
    ]


def test_functions_that_nobody_calls_go() -> None:
    result = _specialised(_with_functions())
    assert result.instructions == [
        Instruction(CALL, 0, OWN_FUNCTION, 0, 1),
        _RETURN,
        Instruction(ALU32 | MOV, 0, 0, 0, 2),
        _RETURN,
    ]
    assert result.origins == [5, 8, 11, 12]
    assert result.functions == {0: 0, 2: 11}


def test_types_and_lines_move_along() -> None:
    result = _specialised(_with_functions())
    functions = np.array([[0, 70], [9, 71], [11, 72], [13, 73]], np.uint32)
    assert moved_functions(functions, result).tolist() == [[0, 70], [2, 72]]
    lines = np.array([[0, 1], [5, 2], [9, 3], [11, 4]], np.uint32)
    assert moved_lines(lines, result).tolist() == [[0, 2], [2, 4]]


def _run(program: list[Instruction], given: int) -> tuple[int, list[tuple[int, int]]]:
    """What a program returns, and its calls with their first argument: a plain interpreter.

    The only pointers are to the map and to the frame.
    """
    registers: list[object] = [None] * 11
    registers[1], stack = given, bytearray(512)
    calls = []
    slots = [each for each in program for _ in range(each.slots)]
    at = 0
    for _ in range(10_000):
        each = slots[at]
        code, kind = each.code, each.code & 7
        at += each.slots
        if code == EXIT:
            result = registers[0]
            assert isinstance(result, int)
            return result, calls
        if code == LOAD_CONSTANT:
            registers[each.dst] = ("map", each.high)
        elif kind in (ALU32, ALU64):
            wide = kind == ALU64
            right = registers[each.src] if code & SOURCE_REGISTER else each.imm & _MASK
            left = registers[each.dst]
            if code & 0xF0 == MOV and not isinstance(right, int):
                registers[each.dst] = right
            elif isinstance(left, tuple):
                assert isinstance(right, int)
                registers[each.dst] = (left[0], left[1] + right - (right >> 63 << 64))
            else:
                assert left is None or isinstance(left, int)
                assert isinstance(right, int)
                registers[each.dst] = evaluate(code & 0xF0, left, right, wide)
        elif kind == LDX:
            width = {value: key for key, value in _WIDTHS.items()}[code & 0x18]
            base = registers[each.src]
            if each.src == FRAME:
                held, offset = bytes(stack), 512 + each.off
            else:
                assert isinstance(base, tuple)
                held, offset = HELD, base[1] + each.off
            registers[each.dst] = int.from_bytes(held[offset : offset + width], "little")
        elif kind == STX:
            width = {value: key for key, value in _WIDTHS.items()}[code & 0x18]
            value = registers[each.src]
            assert isinstance(value, int)
            offset = 512 + each.off
            stack[offset : offset + width] = value.to_bytes(8, "little")[:width]
        elif code == GOTO:
            at += each.off
        elif code == CALL:
            value = registers[1]
            assert isinstance(value, int)
            calls.append((each.imm, value))
            registers[0] = value * 3 & _MASK
        else:
            left = registers[each.dst]
            right = registers[each.src] if code & SOURCE_REGISTER else each.imm & _MASK
            assert isinstance(left, int)
            assert isinstance(right, int)
            bits = 64 if kind == 5 else 32
            mask = (1 << bits) - 1
            if compare(code & 0xF0, left & mask, right & mask, bits):
                at += each.off
    raise AssertionError("does not end")


_OPERATIONS = (0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0)
_COMPARISONS = (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0)
_SLOTS = (-8, -16, -20, -24)


def _random_program(rng: random.Random) -> list[Instruction]:
    """Forward branches, stack slots, constants and the packet's number in register 6."""
    program = [_copy(6, 1), *(_set(number, rng.randint(-9, 9)) for number in (0, 2, 3, 4, 7, 8))]
    program += [_store(FRAME, offset, rng.choice((2, 3))) for offset in _SLOTS]
    length = rng.randint(5, 40)
    blocks: list[list[Instruction]] = []
    for _ in range(length):
        one, other = rng.choice((0, 2, 3, 4, 7, 8)), rng.choice((0, 2, 3, 4, 6, 7, 8))
        kind = rng.choice(("compute", "compute", "map", "load", "store", "jump", "jump", "call"))
        if kind == "compute":
            code = rng.choice(_OPERATIONS) | rng.choice((ALU32, ALU64)) | rng.choice((0, 8))
            immediate = 0 if code & 8 else rng.randint(-3, 40)
            if code & 0xF0 in (0x60, 0x70, 0xC0):
                code, immediate = code & ~8, rng.randint(0, 31)
            source = other if code & 8 else 0
            blocks.append([Instruction(code, one, source, 0, immediate)])
        elif kind == "map":
            width = rng.choice(tuple(_WIDTHS))
            blocks.append([*_address(9, rng.randint(0, 8)), _load(one, 9, 8, width)])
        elif kind == "load":
            blocks.append([_load(one, FRAME, rng.choice(_SLOTS), rng.choice((1, 4, 8)))])
        elif kind == "store":
            blocks.append([_store(FRAME, rng.choice(_SLOTS), other, rng.choice((4, 8)))])
        elif kind == "call":
            again = [_set(number, number) for number in (2, 3, 4, 5)]
            blocks.append([_copy(1, other), *again, Instruction(CALL, 0, 0, 0, 99), *again])
        else:
            code = rng.choice(_COMPARISONS) | rng.choice((5, 6)) | rng.choice((0, 8))
            source = other if code & 8 else 0
            jump = Instruction(code, one, source, rng.randint(1, 6), rng.randint(-2, 9))
            blocks.append([rng.choice((jump, jump, jump._replace(code=GOTO, dst=0, src=0)))])
    starts = [len(program)]
    for block in blocks:
        starts.append(starts[-1] + sum(each.slots for each in block))
    for number, block in enumerate(blocks):
        for each in block:
            if each.code == GOTO or each.branches:
                target = starts[min(number + each.off, length)]
                off = target - sum(one.slots for one in program) - 1
                imm = 0 if each.code == GOTO or each.code & 8 else each.imm
                program.append(each._replace(off=off, imm=imm))
            else:
                program.append(each)
    return [*program, _RETURN]


def test_random_programs_do_the_same() -> None:
    rng = random.Random(7)
    smaller = 0
    for _ in range(400):
        program = _random_program(rng)
        result = _specialised(program).instructions
        smaller += len(result) < len(program)
        for given in (0, 1, 3, 0x80000000, _MASK, rng.getrandbits(64)):
            assert _run(program, given) == _run(result, given)
    assert smaller > 300
