"""What a program may still decide after an edit, until the edited rules are translated. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bpfilter.compiler.changed import MAX_CHANGED, Hull, hulls_of
from bpfilter.compiler.mark import MarkField
from bpfilter.errors import TooMuchEdited
from bpfilter.rollout import ours
from bpfilter.rollout.host import tracks
from bpfilter.rollout.mark import ruleset_uses
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.tables import Standing, Tables
from bpfilter.ruleset.edited import Edit, edit_between, plain

_INCOMPATIBLE = re.compile("^#.*incompatible", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """`hulls`: packets that are left to iptables; `sentence`: what was edited, if anything."""

    hulls: tuple[Hull, ...]
    sentence: str

    def __str__(self) -> str:
        return (
            f"edited: {self.sentence}; iptables decides about packets that they can match, the"
            " program about all others until they are translated"
        )


def meanwhile(
    prepared: Prepared,
    texts: Mapping[Tables, str],
    mark: MarkField,
    made: Mapping[Tables, Standing],
) -> Meanwhile:
    """What the edits between `prepared` and these texts of iptables-save concern.

    `texts`: of all tables that may have been edited. `made`: our chains as we left them.
    TooMuchEdited where a program made of `prepared` is not right for all other packets.
    """
    hulls: dict[Hull, None] = {}
    sentences = []
    for tables, save in texts.items():
        if _INCOMPATIBLE.search(save):
            raise TooMuchEdited("native nft rules stand in iptables' tables")
        text, before = plain(save), prepared.texts[tables]
        edit = edit_between(before, ours.strip(text), tables.family, tables.backend)
        _refuse_moved_jumps(made.get(tables), text, edit)
        if edit is None:
            continue
        if tables.backend is not prepared.backend or tables.family not in prepared.rulesets:
            raise TooMuchEdited(f"{tables.family} rules of iptables-{tables.backend} were edited")
        for use in ruleset_uses([edit.read]):
            if use.bits & mark.mask:
                raise TooMuchEdited(f"an edited {use.user} where our marks are")
        if _begins_tracking(prepared, edit):
            raise TooMuchEdited("an edited rule is the first that asks conntrack")
        hulls.update(dict.fromkeys(hulls_of(edit.rules, tables.family)))
        rules = "one rule" if edit.count == 1 else f"{edit.count} rules"
        sentences.append(f"{rules} of {tables.family} filter")
    if len(hulls) > MAX_CHANGED:
        raise TooMuchEdited(f"rules for {len(hulls)} kinds of packets were edited")
    return Meanwhile(tuple(hulls), " and ".join(sentences))


def _begins_tracking(prepared: Prepared, edit: Edit) -> bool:
    """Where nothing was tracked, our chains need not ask whether NAT changed a packet."""
    if not any(map(tracks, edit.read.rules())):
        return False
    return not any(tracks(rule) for each in prepared.rulesets.values() for rule in each.rules())


def _refuse_moved_jumps(made: Standing | None, text: str, edit: Edit | None) -> None:
    """Our chains hold what they held, and nothing but edited rules stands above the jumps to them.

    A packet with a code matches no edited rule, so it comes to our jump as if that were on top.
    """
    if made is None:
        return
    held = {name: [rule.strip() for rule in rules] for name, rules in made.heads.items()}
    if ours.contents(text) != made.chains or ours.jumps(text) != held:
        raise TooMuchEdited("our chains were edited as well")
    for chain, rules in ours.above(text).items():
        edited = frozenset() if edit is None else edit.lines.get(chain, frozenset())
        if any(f"-A {chain}{rule}" not in edited for rule in rules):
            raise TooMuchEdited(f"rules of {chain} were moved above the jump to ours")
