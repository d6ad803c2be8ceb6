"""The program of LOCAL_OUT beside the one at the interfaces: filter OUTPUT, exactly, with no mark.

In shadow it foretells what filter OUTPUT does to every packet that leaves by the deployment's
interfaces. When deciding it drops what filter would drop at once: the sender gets the same EPERM.
What is accepted, or left to dynamic rules, runs the original chain as before. It shares the lease,
the generation and the addresses of the main program, and ends with the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from bpfilter.compiler.plan import Image
from bpfilter.kernel.config import Mode
from bpfilter.kernel.options import SHARED, Options, Template
from bpfilter.kernel.output import OutputLinks, plain_drops
from bpfilter.kernel.program import Classifier
from bpfilter.rollout.shadow import Bounds
from bpfilter.rollout.watching import Watch
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef

_SHARED = (
    "native nft has a chain beside filter OUTPUT, which must see what OUTPUT drops: iptables alone"
    " decides there"
)


class Output:
    """Attached, deciding nothing until the main program gets a lease; `close` detaches."""

    def __init__(self, classifier: Classifier, stack: ExitStack, watch: Watch | None) -> None:
        self._classifier = classifier
        self._stack = stack
        self._links: OutputLinks | None = None
        self.watch = watch
        self.trouble: str | None = None

    @classmethod
    def start(
        cls, image: Image, main: Classifier, links: Mapping[str, int], *, revokes: bool
    ) -> Output | None:
        """Beside this program, with its scope and shares; None where there is nothing to do.

        That is: nothing is to be compared and no packet would be dropped. KernelError where this
        kernel lacks the means.
        """
        options = main.options
        names = {index: name for name, index in links.items()}
        with ExitStack() as stack:
            classifier = stack.enter_context(
                Classifier.load(
                    image,
                    Options(
                        mode=Mode.LIVE,
                        interfaces=names,
                        marking=options.marking,
                        leased=True,
                        generation=True,
                        scope_share=options.scope_share,
                        scope_sources=options.scope_sources,
                        shadow_share=options.shadow_share,
                        verify_share=options.verify_share,
                        early=options.early,
                        raw_tables=options.raw_tables,
                        template=Template.OUTPUT,
                        shared={name: main.map_fd(name) for name in SHARED},
                    ),
                )
            )
            if options.marking is not None and not plain_drops(classifier.contents).any():
                return None
            watch = None
            if options.shadow_share or options.verify_share:
                watch = Watch.start(classifier, names, revokes=revokes)
                stack.callback(watch.close)
            elif options.marking is None:
                return None
            output = cls(classifier, stack.pop_all(), watch)
        try:
            output.share_filter(False)
        except BaseException:
            output.close()
            raise
        return output

    def share_filter(self, shared: bool) -> None:
        """Say whether native nft has chains beside filter OUTPUT, before a generation is accepted.

        What is dropped before filter they would not see, so nothing is dropped then: the program
        is detached until they are gone. KernelError if it cannot be attached.
        """
        if self.watch is not None:
            self.watch.share_filter(shared)
        self.trouble = _SHARED if shared and self._classifier.options.marking is not None else None
        if self.trouble is not None:
            self._detach()
        elif self._links is None:
            self._links = OutputLinks(self._classifier)

    def _detach(self) -> None:
        if self._links is not None:
            self._links.close()
            self._links = None

    def counted(self) -> Mapping[tuple[Family, RuleRef], Bounds]:
        """Packets that it dropped, by rule: the original rules do not count them."""
        found: dict[tuple[Family, RuleRef], Bounds] = {}
        for number, cells in self._classifier.counters().items():
            slot = self._classifier.contents.slots[number]
            if slot is None:
                continue
            flat = slot.plan.flat
            for entry, (certain, _) in zip(flat.entries, cells["packets"], strict=True):
                if certain:
                    key = (flat.family, entry.rule)
                    so_far = found.get(key, Bounds(0, 0)).certain + int(certain)
                    found[key] = Bounds(so_far, so_far)
        return found

    def close(self) -> None:
        """Detach and let go."""
        self._detach()
        self._stack.close()
