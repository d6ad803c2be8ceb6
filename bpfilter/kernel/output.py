"""The program of LOCAL_OUT: bpf_templates/output.bpf.c, attached just before filter OUTPUT.

It ends with the `OutputLinks`, and with the process: a killed daemon leaves nothing.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import Verdict
from bpfilter.errors import KernelError
from bpfilter.kernel import netfilter
from bpfilter.kernel.arrays import fill
from bpfilter.kernel.netfilter import Hook
from bpfilter.kernel.options import Template
from bpfilter.kernel.pack import Contents
from bpfilter.kernel.probe import require
from bpfilter.kernel.program import Classifier

PRIORITIES = (-1, -2)
"""Behind conntrack, mangle and nat (-100 and below), before filter (0)."""


class OutputLinks:
    """The loaded program at LOCAL_OUT of this thread's network namespace."""

    def __init__(self, classifier: Classifier) -> None:
        """KernelError if this kernel lacks the means or two generations are attached already."""
        require("BPF_NETFILTER")
        if classifier.options.template is not Template.OUTPUT:
            raise KernelError("not the program of LOCAL_OUT", hint="load it with Template.OUTPUT")
        fill(classifier.map_fd("drops"), plain_drops(classifier.contents))
        held = classifier.contents.slots
        families = [slot.plan.flat.family for slot in held if slot is not None]

        def attach(priority: int, stack: ExitStack) -> None:
            for family in families:
                netfilter.closing(
                    stack, netfilter.link(classifier.fd, family, Hook.OUTPUT, priority)
                )

        self._stack = netfilter.link_where_free(PRIORITIES, attach)

    def close(self) -> None:
        """Detach."""
        self._stack.close()


def plain_drops(contents: Contents) -> npt.NDArray[np.uint8]:
    """Per node and state class: 1 where the walk is a DROP and no dynamic rule has a part in it."""
    drops = np.zeros((len(contents.nodes), 8), np.uint8)
    base = 0
    for slot in contents.slots:
        if slot is None:
            continue
        for node, function in slot.transitions.functions.items():
            for index, (_, walk) in enumerate(function.walks):
                drops[base + node, index] = not walk.items and walk.verdict is Verdict.DROP
        base += len(slot.transitions.nodes)
    return drops
