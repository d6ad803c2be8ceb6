"""The daemon's configuration: every source, and an error that says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfilter.settings import Settings, SettingsError, load


def written(directory: Path, text: str, **drop_ins: str) -> Path:
    file = directory / "bpfilter.toml"
    file.write_text(text)
    (directory / "bpfilter.d").mkdir()
    for name, content in drop_ins.items():
        (directory / "bpfilter.d" / f"{name}.toml").write_text(content)
    return file


def test_without_any_source_the_defaults_decide_nothing() -> None:
    assert Settings().deployment.stage == "off"
    assert Settings().api.tcp is None


def test_drop_ins_and_then_the_environment_win(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "[deployment]\nstage = 'shadow'\nlease_seconds = 7.0\n[deployment.gates]\npackets = 5\n",
        a="[deployment]\nlease_seconds = 8.0\n",
        b="[deployment]\nlease_seconds = 9.0\n",
    )
    found = load(file, {"BPFILTER_DEPLOYMENT__GATES__PACKETS": "6", "PATH": "/bin"})
    assert found.deployment.stage == "shadow"
    assert found.deployment.lease_seconds == 9.0
    assert found.deployment.gates.packets == 6


def test_a_variable_that_is_no_toml_is_a_string(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    assert load(file, {"BPFILTER_DEPLOYMENT__STAGE": "enforce"}).deployment.stage == "enforce"


def test_a_file_without_a_directory_is_a_credential_of_systemd(tmp_path: Path) -> None:
    text = "[api.tcp]\naddress = '::'\ncertificate = 'cert.pem'\nkey = '/etc/key.pem'\n"
    file = written(tmp_path, text)
    found = load(file, {"CREDENTIALS_DIRECTORY": "/run/credentials/bpfilterd.service"}).api.tcp
    assert found is not None
    assert found.certificate == Path("/run/credentials/bpfilterd.service/cert.pem")
    assert found.key == Path("/etc/key.pem")
    with pytest.raises(SettingsError, match=r"api\.tcp\.certificate: .*no directory"):
        load(file, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[deployment]\nstaeg = 'off'\n", "bpfilter.toml: deployment.staeg: there is no such"),
        ("[deployment]\nlease_seconds = 90\n", "bpfilter.toml: deployment.lease_seconds:"),
        ("[deployment]\nstage = \n", "line 2"),
        ("[deployment.canary]\nsources = ['10.0.0.1/8']\n", "deployment.canary.sources.0"),
        ("deployment = 3\n", "deployment: "),
    ],
)
def test_an_error_names_the_file_and_the_key_or_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text), {})
    assert says in caught.value.message


def test_the_last_source_that_sets_a_bad_key_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "[api]\nlargest_body = 2048\n", z="[api]\nlargest_body = 'much'\n")
    with pytest.raises(SettingsError, match=r"z\.toml: api\.largest_body"):
        load(file, {})
    with pytest.raises(SettingsError, match="environment variable BPFILTER_API__LARGEST_BODY"):
        load(file, {"BPFILTER_API__LARGEST_BODY": "more"})


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "absent.toml", {})


@given(st.binary(max_size=200))
def test_no_bytes_give_anything_but_settings_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "bpfilter.toml"
    file.write_bytes(data)
    try:
        load(file, {})
    except SettingsError as error:
        assert str(file) in error.message


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=5), below),
    max_leaves=4,
)


@given(
    st.sampled_from(["DEPLOYMENT", "API", "DAEMON", "API__ROLES"]),
    st.sampled_from(["STAGE", "SHARE", "SOCKET", "TCP", "READ_USERS", "GATES", "PROBE", ""]),
    _values,
)
def test_no_variable_gives_anything_but_settings_or_a_typed_error(
    section: str, key: str, value: object
) -> None:
    try:
        load(Path("/etc/bpfilter/bpfilter.toml"), {f"BPFILTER_{section}__{key}": str(value)})
    except SettingsError as error:
        assert error.hint
