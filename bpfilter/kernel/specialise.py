"""A program without what its constants make superfluous. Pure.

clang compiles templates whose configuration is read from read-only maps. The verifier knows what
those hold and removes branches that are never taken, but every load, mask and comparison of a
constant stays. Here they go: what follows from constants is computed (`folding`), computations
whose result nobody uses are left out, and so are functions that nobody calls.

Guarantees: for every packet and every state of the maps the result does the same as the original;
the order of what stays is kept; an instruction this module does not know stays as it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from bpfilter.kernel.bytecode import (
    ALU32,
    ALU64,
    ATOMIC,
    CALL,
    END,
    EXIT,
    FRAME,
    GOTO,
    JMP32,
    LDX,
    LOAD_CONSTANT,
    MAP_VALUE,
    MOV,
    SIZES,
    SOURCE_REGISTER,
    ST,
    STX,
    Instruction,
    Program,
    callee,
    successors,
)
from bpfilter.kernel.folding import Constants, Folding, State, Value, operand, private_below, signed

_ARGUMENTS, _RESULT = 0b111110, 0b1
_HELPER_ARGUMENTS = {1: 2, 3: 2, 5: 0, 7: 0, 8: 0, 118: 0, 160: 0, 188: 1}
"""Of helpers by number, as far as it pays to know: the others are taken to use all registers."""


@dataclass(frozen=True, slots=True)
class Specialised:
    """`places`, `origins`: of every instruction, its index here and in the original. `functions`:
    where each begins here → where it began there."""

    instructions: list[Instruction]
    places: list[int]
    origins: list[int]
    functions: dict[int, int]


def specialise(program: Program, constants: Constants, single: Container[int] = ()) -> Specialised:
    """`constants`: what read-only maps hold, by descriptor. `single`: arrays of one element."""
    functions: dict[int, dict[int, Instruction]] = {}
    pending = [0]
    while pending:
        start = pending.pop()
        if start in functions:
            continue
        functions[start] = _reduced(Folding(program.function(start), start, constants, single))
        pending += [
            at
            for index, each in functions[start].items()
            if (at := callee(index, each)) is not None
        ]
    return _laid_out(functions)


def _reduced(folding: Folding) -> dict[int, Instruction]:
    """The instructions that stay, by index, as they stay; jumps still name original places."""
    kept = _rewritten(folding)
    _without_unused(kept)
    while _without_stores(kept):
        _without_unused(kept)
    return kept


def _rewritten(folding: Folding) -> dict[int, Instruction]:
    """All that can be reached, with constants in place of what is known."""
    kept: dict[int, Instruction] = {}
    for entry in sorted(folding.entries):
        index, state = entry, folding.entries[entry].copy()
        while True:
            each = folding.program[index]
            changed: Instruction | None = _with_constants(each, folding, state)
            after = folding.advance(index, state)
            if each.branches and len(after) == 1:
                changed = None
                if after[0] != index + 1:
                    changed = Instruction(GOTO, 0, 0, after[0] - index - 1, 0)
            if changed is not None:
                kept[index] = changed
            if len(after) != 1 or after[0] in folding.entries:
                break
            index = after[0]
    return kept


def _with_constants(each: Instruction, folding: Folding, state: State) -> Instruction:
    """The instruction with what is known before it."""
    kind = each.code & 7
    value: Value = None
    if kind in (ALU32, ALU64):
        value = folding.computed(each, state)
    elif kind == LDX:
        value = folding.loaded(each, state)
    elif each.code == CALL:
        found = folding.found(each, state)
        return each if found is None else Instruction(LOAD_CONSTANT, 0, MAP_VALUE, 0, *found)
    elif not each.branches:
        return each
    if isinstance(value, int):
        if value < 1 << 32:
            return Instruction(ALU32 | MOV, each.dst, 0, 0, signed(value, 32))
        if -(1 << 31) <= signed(value) < 0:
            return Instruction(ALU64 | MOV, each.dst, 0, 0, signed(value))
    return each if kind == LDX else _with_operand(each, state)


def _with_operand(each: Instruction, state: State) -> Instruction:
    """With a known right side as part of the instruction."""
    right = operand(each, state)
    if not each.code & SOURCE_REGISTER or right is None or (each.off and not each.branches):
        return each
    if not each.branches and each.code & 0xF0 == END:
        return each
    narrow = each.code & 7 in (ALU32, JMP32)
    value = signed(right & 0xFFFFFFFF, 32) if narrow else signed(right)
    if not -(1 << 31) <= value < 1 << 31:
        return each
    return Instruction(each.code & ~SOURCE_REGISTER, each.dst, 0, each.off, value)


def _without_unused(kept: dict[int, Instruction]) -> None:
    """Remove what computes a register that nobody reads.

    A register is live where an instruction that stays may read it. What only feeds itself, as in a
    loop that counts for nobody, is not live.
    """
    facts = []
    repeated: set[int] = set()
    for index in sorted(kept, reverse=True):
        each = kept[index]
        after = [next_kept(target, kept) for target in successors(index, each)]
        repeated.update(target for target in after if target <= index)
        facts.append((index, _pure(each), *_registers(each), after))
    live = dict.fromkeys(kept, 0)
    unused: list[int] = []
    changed = True
    while changed:
        changed = False
        unused.clear()
        for index, pure, uses, defines, after in facts:
            out = 0
            for target in after:
                out |= live[target]
            if pure and not defines & out:
                unused.append(index)
                now = out
            else:
                now = uses | (out & ~defines)
            if now != live[index]:
                live[index] = now
                changed = changed or index in repeated
    for index in unused:
        del kept[index]


def next_kept(index: int, kept: Container[int]) -> int:
    """The first kept one at or behind a place: what was removed between did nothing."""
    while index not in kept:
        index += 1
    return index


def _pure(each: Instruction) -> bool:
    return each.code & 7 in (ALU32, ALU64, LDX) or each.code == LOAD_CONSTANT


def _registers(each: Instruction) -> tuple[int, int]:
    """Bits of the registers that it reads and that it writes."""
    code = each.code
    kind = code & 7
    source, target = 1 << each.src, 1 << each.dst
    if code == GOTO:
        return 0, 0
    if kind in (ALU32, ALU64):
        used = source if code & SOURCE_REGISTER and code & 0xF0 != END else 0
        return (used if code & 0xF0 == MOV else used | target), target
    if kind == LDX:
        return source, target
    if code == LOAD_CONSTANT:
        return 0, target
    if kind in (ST, STX):
        if kind == STX and code & 0xE0 == ATOMIC:
            return source | target | 1, 0
        return (target | source if kind == STX else target), 0
    if code == EXIT:
        return _RESULT, 0
    if code == CALL:
        count = 5 if each.src else _HELPER_ARGUMENTS.get(each.imm, 5)
        return ((1 << count) - 1) << 1, _ARGUMENTS | _RESULT
    return (target | source if code & SOURCE_REGISTER else target), 0


def _without_stores(kept: dict[int, Instruction]) -> bool:
    """Remove stores to private stack slots that nobody loads; whether there was any."""
    private = private_below(kept[index] for index in sorted(kept))
    loaded: set[int] = set()
    for each in kept.values():
        if each.kind == LDX and each.src == FRAME:
            loaded.update(range(each.off, each.off + SIZES[each.code & 0x18]))
    gone = []
    for index, each in kept.items():
        if each.kind in (ST, STX) and each.dst == FRAME and each.code & 0xE0 != ATOMIC:
            end = each.off + SIZES[each.code & 0x18]
            if end <= private and not loaded.intersection(range(each.off, end)):
                gone.append(index)
    for index in gone:
        del kept[index]
    return bool(gone)


def _laid_out(functions: Mapping[int, Mapping[int, Instruction]]) -> Specialised:
    """All functions one after the other, in the original order, with jumps and calls led anew."""
    bodies = {start: _straightened(start, functions[start]) for start in sorted(functions)}
    places: dict[int, int] = {}
    entries: dict[int, int] = {}
    origins: list[int] = []
    count = 0
    for start, (order, _) in bodies.items():
        entries[start] = count
        origins += order
        for index in order:
            places[index] = count
            count += functions[start][index].slots
    instructions: list[Instruction] = []
    for start, (order, targets) in bodies.items():
        for index in order:
            each, here = functions[start][index], places[index]
            called = callee(index, each)
            if called is not None:
                each = each._replace(imm=entries[called] - here - 1)
            elif index in targets:
                each = each._replace(off=places[targets[index]] - here - 1)
            instructions.append(each)
    begun = {place: start for start, place in entries.items()}
    return Specialised(instructions, [places[index] for index in origins], origins, begun)


def _straightened(start: int, kept: Mapping[int, Instruction]) -> tuple[list[int], dict[int, int]]:
    """What stays of a function, in order, and where its jumps lead; none leads to a bare goto."""

    def end(index: int) -> int:
        seen = set()
        index = next_kept(index, kept)
        while kept[index].code == GOTO and index not in seen:
            seen.add(index)
            index = next_kept(index + 1 + kept[index].off, kept)
        return index

    targets: dict[int, int] = {}
    reached: set[int] = set()
    pending = [next_kept(start, kept)]
    while pending:
        index = pending.pop()
        if index in reached:
            continue
        reached.add(index)
        each = kept[index]
        after = successors(index, each)
        if each.code == GOTO or each.branches:
            targets[index] = end(after[-1])
            pending.append(targets[index])
        if after and each.code != GOTO:
            pending.append(next_kept(after[0], kept))
    order: list[int] = []
    passed: dict[int, int] = {}
    for index in sorted(reached, reverse=True):
        target = targets.get(index)
        if order and target is not None and passed.get(target, target) == order[-1]:
            passed[index] = order[-1]
        else:
            order.append(index)
    return order[::-1], {index: passed.get(at, at) for index, at in targets.items()}
