"""Bearer tokens: shown once, stored as hashes, gone when they are revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfilter.api.identity import Role, caller_of_token, read_tokens
from bpfilter.api.tokens import TokenFile, add_token, revoke_token
from bpfilter.cli.main import run
from bpfilter.errors import UsageError
from bpfilter.settings import SettingsError


def test_a_token_is_known_from_when_it_is_made_until_it_is_revoked(tmp_path: Path) -> None:
    place = tmp_path / "tokens"
    other = add_token(place, "other", Role.READ)
    file = TokenFile(place)
    secret = add_token(place, "ops", Role.OPERATE)
    caller = caller_of_token(file.tokens(), secret)
    assert caller is not None and (caller.name, caller.role) == ("ops", Role.OPERATE)
    assert secret not in place.read_text() and place.stat().st_mode & 0o777 == 0o600
    revoke_token(place, "ops")
    assert caller_of_token(file.tokens(), secret) is None
    assert caller_of_token(file.tokens(), other) is not None
    place.write_text("nonsense\n")
    assert file.tokens() == (), "a file that cannot be read lets nobody in"


def test_a_name_is_used_once_and_is_a_word(tmp_path: Path) -> None:
    place = tmp_path / "tokens"
    add_token(place, "ops", Role.READ)
    for name in ("ops", "two words", "a#b", ""):
        with pytest.raises(UsageError):
            add_token(place, name, Role.ADMIN)
    with pytest.raises(UsageError):
        revoke_token(place, "nobody")
    assert [token.name for token in read_tokens(place)] == ["ops"]


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "tokens"
    add_token(place, "ops", Role.READ)
    place.chmod(0o666)
    with pytest.raises(SettingsError, match="others than its owner"):
        read_tokens(place)


def test_the_verb_prints_the_token_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "tokens"
    assert run(["token", "scraper", "--tokens", str(place)]) == 0
    secret = capsys.readouterr().out.strip()
    assert caller_of_token(read_tokens(place), secret) is not None
    assert run(["token", "scraper", "--tokens", str(place)]) == 64
    assert run(["token", "scraper", "--tokens", str(place), "--revoke"]) == 0
    assert read_tokens(place) == ()
