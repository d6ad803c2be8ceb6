"""Who calls: the kernel's word on the unix socket, digests for tokens."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from bpfilter.api.identity import Access, Peer, Role, caller_of_token, peer_of, read_tokens
from bpfilter.settings import Roles, SettingsError


def peer_with_groups(groups: list[int]) -> frozenset[int]:
    """The groups the kernel reports of a child that took these supplementary groups."""
    here, there = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen(1)
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            there.recv(1)
        os._exit(0)
    connection, _ = listener.accept()
    try:
        return peer_of(connection).groups
    finally:
        here.send(b"x")
        os.waitpid(child, 0)
        for each in (here, there, listener, connection):
            each.close()


def test_a_peer_is_the_process_at_the_other_end() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer = peer_of(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert os.getgid() in peer.groups


@pytest.mark.kernel
def test_supplementary_groups_count_also_when_there_are_many() -> None:
    groups = list(range(5000, 5600))
    assert peer_with_groups(groups) >= set(groups)


def test_roles_come_from_user_and_any_group_and_the_highest_wins() -> None:
    access = Access.of(Roles(read_groups=(7001,), operate_groups=(7002,), admin_users=(7003,)))

    def role(uid: int, *groups: int) -> Role:
        return access.caller(Peer(1, uid, frozenset(groups))).role

    assert role(7000) is Role.NONE
    assert role(7000, 7001) is Role.READ
    assert role(7000, 7001, 7002) is Role.OPERATE
    assert role(7003, 7001) is Role.ADMIN
    assert role(0) is Role.ADMIN


def test_names_this_host_does_not_know_grant_nothing() -> None:
    assert Access.of(Roles(read_groups=("no-such-group-here",))).groups == ()


def test_a_token_is_known_by_its_digest_only(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"open sesame").hexdigest()
    file = tmp_path / "tokens"
    file.write_text(f"# fleet\nansible operate {digest}\n")
    tokens = read_tokens(file)
    caller = caller_of_token(tokens, "open sesame")
    assert caller is not None and (caller.name, caller.role) == ("ansible", Role.OPERATE)
    assert caller_of_token(tokens, "open sesam") is None
    assert caller_of_token(tokens, "\udcff") is None


@pytest.mark.parametrize("line", ["a operate", "a boss " + "0" * 64, "a read xyz", "a read 00"])
def test_a_bad_token_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"\n{line}\n")
    with pytest.raises(SettingsError, match="tokens:2: not"):
        read_tokens(file)
