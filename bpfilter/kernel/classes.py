"""Which of a chain's walks is that of a connection state: bpf_templates/classes.h."""

from __future__ import annotations

import ctypes

from bpfilter.kernel.config import MAX_STATES, SLOTS
from bpfilter.kernel.pack import Contents

CLASSES = ".rodata.classes"


class Classes(ctypes.Structure):
    """struct classes."""

    _fields_ = (("of_state", (ctypes.c_uint8 * 8) * SLOTS),)


def state_classes(contents: Contents) -> Classes:
    """By slot and number of the state's bit; MAX_STATES for bits that are no state."""
    classes = Classes()
    for number, slot in enumerate(contents.slots):
        for bit in range(8):
            classes.of_state[number][bit] = MAX_STATES
        if slot is None:
            continue
        for index, mask in enumerate(slot.plan.tables.state_classes):
            for bit in range(MAX_STATES):
                if mask >> bit & 1:
                    classes.of_state[number][bit] = index
    return classes
