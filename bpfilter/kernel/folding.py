"""What the instructions of one function compute from constants alone. Pure.

An abstract interpretation over all ways that are possible: a register or a private stack slot holds
one constant, an address in a read-only map, or something unknown. What is found holds on every
way, and the verifier, which follows the same values, finds at least as much.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from bpfilter.kernel.bytecode import (
    ADD,
    ALU32,
    ALU64,
    AND,
    ATOMIC,
    CALL,
    END,
    FRAME,
    GOTO,
    JMP,
    JMP32,
    LDX,
    LOAD_CONSTANT,
    MAP,
    MAP_VALUE,
    MEMORY,
    MOV,
    MUL,
    NEG,
    SIZES,
    SOURCE_REGISTER,
    ST,
    STX,
    SUB,
    Instruction,
    successors,
)

Value = int | tuple[int, int] | None
"""A constant, an unsigned 64-bit number; (map, offset) of an address in its value, (STACK, offset)
of one in the frame, (`handle(map)`, 0) of a map itself; None: unknown."""
Constants = Mapping[int, bytes]
"""What the read-only maps hold, by file descriptor."""

STACK = -1
_EQUAL, _UNEQUAL = 0x15, 0x55
_LOOKUP = 1  # bpf_map_lookup_elem()
_ALL32, _ALL64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def handle(number: int) -> int:
    """A map's number in a value that names the map itself, from its descriptor; and back."""
    return -2 - number


def signed(value: int, bits: int = 64) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def private_below(instructions: Iterable[Instruction]) -> int:
    """Stack slots that end at or below this offset are accessed through the frame register only.

    Objects whose address is taken reach upwards from it. If clang did not compute an address in
    two neighbouring instructions, no slot is private.
    """
    lowest, displaced, pending = 0, 0, None
    for each in instructions:
        if pending is not None:
            if each.code != ALU64 | ADD or each.dst != pending:
                return -(1 << 15)
            lowest, pending = min(lowest, each.imm), None
        elif each.code == ALU64 | MOV | SOURCE_REGISTER and each.src == FRAME:
            pending = each.dst
        elif each.src == FRAME and each.kind != LDX:
            return -(1 << 15)
        elif (each.kind == LDX and each.src != FRAME) or (
            each.kind in (ST, STX) and each.dst != FRAME
        ):
            displaced = min(displaced, each.off)
    return lowest + displaced


class State:
    """Values of all registers and stack slots at one place; slots by (offset, bytes)."""

    __slots__ = ("registers", "slots")

    def __init__(self, registers: list[Value], slots: dict[tuple[int, int], Value]) -> None:
        self.registers = registers
        self.slots = slots

    def copy(self) -> State:
        return State(self.registers[:], self.slots.copy())

    def join(self, other: State) -> bool:
        """Keep what both know; whether anything was lost."""
        changed = False
        for number, value in enumerate(self.registers):
            if value is not None and value != other.registers[number]:
                self.registers[number] = None
                changed = True
        for slot in [at for at, value in self.slots.items() if other.slots.get(at) != value]:
            del self.slots[slot]
            changed = True
        return changed


class Folding:
    """One function's instructions, by index, followed from `start`.

    `entries`: the state before every instruction at which a block begins that can be reached.
    """

    def __init__(
        self,
        program: Mapping[int, Instruction],
        start: int,
        constants: Constants,
        single: Container[int],
    ) -> None:
        self.program, self.start = program, start
        self.constants, self.single = constants, single
        self.private = private_below(program.values())
        self.leaders = {start}
        for index, each in program.items():
            if each.code == GOTO or each.branches:
                self.leaders.update((index + 1, index + 1 + each.off))
        self.entries: dict[int, State] = {}
        self._follow()

    def _follow(self) -> None:
        self.entries[self.start] = State([*[None] * FRAME, (STACK, 0)], {})
        pending = [self.start]
        while pending:
            index = pending.pop()
            state = self.entries[index].copy()
            while True:
                after = self.advance(index, state)
                if len(after) == 1 and after[0] not in self.leaders:
                    index = after[0]
                    continue
                for target in after:
                    known = self.entries.get(target)
                    if known is None:
                        self.entries[target] = state.copy()
                        pending.append(target)
                    elif known.join(state) and target not in pending:
                        pending.append(target)
                break

    def advance(self, index: int, state: State) -> tuple[int, ...]:
        """Bring the state from before an instruction to behind it; where it can go on."""
        each = self.program[index]
        code = each.code
        if code & 7 in (JMP, JMP32):
            after = successors(index, each)
            taken = self.decided(each, state) if len(after) == 2 else None
            if code == CALL:
                self._call(each, state)
            return after if taken is None else after[taken : taken + 1]
        registers = state.registers
        if code == LOAD_CONSTANT:
            registers[each.dst] = self._constant(each)
            return (index + 2,)
        if code & 7 in (ALU32, ALU64):
            registers[each.dst] = self.computed(each, state)
        elif code & 7 == LDX:
            registers[each.dst] = self.loaded(each, state)
        else:
            self._store(each, state)
        return (index + 1,)

    def _constant(self, each: Instruction) -> Value:
        low, high = each.imm & _ALL32, each.high & _ALL32
        if each.src == 0:
            return high << 32 | low
        if each.src == MAP and each.imm in self.single:
            return (handle(each.imm), 0)
        return (each.imm, high) if each.src == MAP_VALUE and each.imm in self.constants else None

    def _call(self, each: Instruction, state: State) -> None:
        found = self.found(each, state)
        if each.src or each.imm != _LOOKUP:
            self._forget(state)
        state.registers[0:6] = [found, *[None] * 5]

    def _forget(self, state: State) -> None:
        """Somebody wrote through a pointer that may lead into the frame."""
        for slot in [at for at in state.slots if at[0] + at[1] > self.private]:
            del state.slots[slot]

    def found(self, each: Instruction, state: State) -> tuple[int, int] | None:
        """The address that a lookup returns, if it is of the one element of an array."""
        if each.src or each.imm != _LOOKUP:
            return None
        searched, key = state.registers[1], state.registers[2]
        if not isinstance(searched, tuple) or not isinstance(key, tuple) or key[0] != STACK:
            return None
        if searched[0] >= STACK or state.slots.get((key[1], 4)) != 0:
            return None
        return (handle(searched[0]), 0)

    def decided(self, each: Instruction, state: State) -> bool | None:
        """Whether a branch is taken; None if that is not known."""
        left = state.registers[each.dst]
        right = operand(each, state)
        if isinstance(left, tuple) and right == 0 and each.code in (_EQUAL, _UNEQUAL):
            return each.code == _UNEQUAL
        if not isinstance(left, int) or right is None:
            return None
        bits = 64 if each.kind == JMP else 32
        mask = (1 << bits) - 1
        return compare(each.code & 0xF0, left & mask, right & mask, bits)

    def computed(self, each: Instruction, state: State) -> Value:
        """What an arithmetic instruction leaves in its register."""
        code, dst, src, off, _, _ = each
        operation = code & 0xF0
        wide = code & 7 == ALU64
        if off or operation == END:
            return None
        if operation == MOV and wide and code & SOURCE_REGISTER:
            return state.registers[src]
        left = None if operation == MOV else state.registers[dst]
        right = operand(each, state)
        if isinstance(left, tuple):
            known = wide and right is not None and operation in (ADD, SUB)
            if not known or right is None:
                return None
            change = signed(right)
            return (left[0], left[1] + (change if operation == ADD else -change))
        return evaluate(operation, left, right, wide)

    def loaded(self, each: Instruction, state: State) -> Value:
        """What a load from a constant map or from the frame brings."""
        if each.code & 0xE0 != MEMORY:
            return None
        size = SIZES[each.code & 0x18]
        base = state.registers[each.src]
        if not isinstance(base, tuple):
            return None
        held, at = self.constants.get(base[0], b""), base[1] + each.off
        if base[0] == STACK:
            return state.slots.get((at, size))
        if at < 0 or at + size > len(held):
            return None
        return int.from_bytes(held[at : at + size], "little")

    def _store(self, each: Instruction, state: State) -> None:
        if each.code & 0xE0 == ATOMIC:
            state.registers[each.src] = state.registers[0] = None
        base = state.registers[each.dst]
        if not isinstance(base, tuple):
            self._forget(state)
        if not isinstance(base, tuple) or base[0] != STACK:
            return
        size = SIZES[each.code & 0x18]
        low, high = base[1] + each.off, base[1] + each.off + size
        for slot in [at for at in state.slots if at[0] < high and low < at[0] + at[1]]:
            del state.slots[slot]
        if each.code & 0xE0 == MEMORY:
            value = state.registers[each.src] if each.kind == STX else each.imm & _ALL64
            if isinstance(value, int):
                state.slots[low, size] = value & ((1 << 8 * size) - 1)
            elif value is not None and size == 8:
                state.slots[low, size] = value


def operand(each: Instruction, state: State) -> int | None:
    """The right side of a computation or comparison."""
    if not each.code & SOURCE_REGISTER:
        return each.imm & _ALL64
    value = state.registers[each.src]
    return value if isinstance(value, int) else None


def evaluate(operation: int, left: int | None, right: int | None, wide: bool) -> int | None:
    """The result of an operation, or None; a factor of 0 is enough to know a product."""
    mask = _ALL64 if wide else _ALL32
    bits = 64 if wide else 32
    if operation == MOV:
        return None if right is None else right & mask
    if operation in (AND, MUL) and (
        (right is not None and not right & mask) or (left is not None and not left & mask)
    ):
        return 0
    if left is None:
        return None
    left &= mask
    if operation == NEG:
        return -left & mask
    if right is None:
        return None
    right &= mask
    return _binary(operation, left, right, bits, mask)


def _binary(operation: int, left: int, right: int, bits: int, mask: int) -> int | None:
    shift = right & (bits - 1)
    match operation:
        case 0x00:
            return left + right & mask
        case 0x10:
            return left - right & mask
        case 0x20:
            return left * right & mask
        case 0x40:
            return left | right
        case 0x50:
            return left & right
        case 0x60:
            return left << shift & mask
        case 0x70:
            return left >> shift
        case 0xA0:
            return left ^ right
        case 0xC0:
            return signed(left, bits) >> shift & mask
    return None


def compare(operation: int, left: int, right: int, bits: int) -> bool | None:
    """Whether a comparison of unsigned numbers of so many bits holds."""
    a, b = signed(left, bits), signed(right, bits)
    match operation:
        case 0x10:
            return left == right
        case 0x20:
            return left > right
        case 0x30:
            return left >= right
        case 0x40:
            return bool(left & right)
        case 0x50:
            return left != right
        case 0x60:
            return a > b
        case 0x70:
            return a >= b
        case 0xA0:
            return left < right
        case 0xB0:
            return left <= right
        case 0xC0:
            return a < b
        case 0xD0:
            return a <= b
    return None
