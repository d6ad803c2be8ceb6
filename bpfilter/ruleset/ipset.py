"""The ipsets of this network namespace, listed through netlink (pyroute2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family

_FAMILIES = {2: Family.IPV4, 10: Family.IPV6}


@dataclass(frozen=True, slots=True)
class SetInfo:
    """One set. `family` is None for types that have none (hash:mac, list:set)."""

    name: str
    type: str
    family: Family | None
    entries: int
    references: int


def list_sets() -> tuple[SetInfo, ...]:
    """All sets, by name. Raises LiveReadError if the kernel refuses to list them."""
    try:
        with IPSet() as sets:
            messages = list(sets.list())
    except (NetlinkError, OSError) as error:
        raise LiveReadError(
            f"the kernel's ipsets could not be listed: {error}",
            hint="it takes root (CAP_NET_ADMIN) and a kernel with ipset",
        ) from None
    found = [_set_info(message) for message in messages]
    return tuple(sorted(found, key=lambda info: info.name))


def _set_info(message: Any) -> SetInfo:
    get = message.get_attr
    data = get("IPSET_ATTR_DATA")
    members = get("IPSET_ATTR_ADT")
    references = data.get_attr("IPSET_ATTR_REFERENCES") if data else None
    entries = members.get_attrs("IPSET_ATTR_DATA") if members else []
    return SetInfo(
        str(get("IPSET_ATTR_SETNAME")),
        str(get("IPSET_ATTR_TYPENAME")),
        _FAMILIES.get(get("IPSET_ATTR_FAMILY")),
        len(entries),
        int(references or 0),
    )
