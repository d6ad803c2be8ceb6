"""The daemon's configuration: TOML files, drop-ins and the environment, checked as a whole.

Sources, later ones win: /etc/bpfilter/bpfilter.toml, /etc/bpfilter/bpfilter.d/*.toml in order of
their names, environment variables `BPFILTER_<SECTION>__<KEY>` whose value is TOML (a bare word is
taken as a string). Nothing is read from anywhere else, and an unknown key is an error: a misspelt
safety setting must not be ignored.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from bpfilter.errors import BpfilterError

FILE = Path("/etc/bpfilter/bpfilter.toml")
ENVIRONMENT = "BPFILTER_"
_CREDENTIALS = "CREDENTIALS_DIRECTORY"

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class SettingsError(BpfilterError):
    """The configuration cannot be used; the message names file and key, or file and line."""

    exit_code = 64
    problem = "settings-invalid"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Daemon(_Section):
    """`[daemon]`: where the daemon keeps its things, and how it ends.

    `on_stop`: `teardown` removes all of ours; `hand-over` leaves deciding programs to the next
    daemon, or to the end of their lease.
    """

    state_directory: Path = Path("/var/lib/bpfilterd")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console", "journal"] = "auto"
    on_stop: Literal["teardown", "hand-over"] = "teardown"


class Roles(_Section):
    """`[api.roles]`: who may do what on the unix socket, by user and group names or numbers.

    root is always admin. Whoever can open the socket but is named nowhere has no role.
    """

    read_users: tuple[str | int, ...] = ()
    read_groups: tuple[str | int, ...] = ("bpfilter",)
    operate_users: tuple[str | int, ...] = ()
    operate_groups: tuple[str | int, ...] = ()
    admin_users: tuple[str | int, ...] = ("root",)
    admin_groups: tuple[str | int, ...] = ()


class Tcp(_Section):
    """`[api.tcp]`: the API over TCP, always with TLS; without this section there is none.

    Callers are known by a client certificate (`client_ca`, roles by common name) or by a bearer
    token (`tokens`: a file of `name role sha256-hex` lines). A file without a directory is a
    credential that systemd passes (LoadCredential=, systemd.exec(5)). `hosts`: DNS names by which
    browsers may ask for the dashboard; literal addresses they may always use.
    """

    address: str
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    certificate: Path
    key: Path
    client_ca: Path | None = None
    certificate_roles: Mapping[str, Literal["read", "operate", "admin"]] = {}
    tokens: Path | None = None
    hosts: tuple[str, ...] = ()

    @field_validator("certificate", "key", "client_ca", "tokens")
    @classmethod
    def _credential(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None or path.is_absolute():
            return path
        directory = (info.context or {}).get(_CREDENTIALS)
        if directory is None:
            raise ValueError(f"{path} has no directory, and systemd passes no credentials")
        return Path(directory) / path


class Api(_Section):
    """`[api]`: the REST API, a process beside the daemon unless `enabled` is false."""

    enabled: bool = True
    socket: Path = Path("/run/bpfilterd/api.sock")
    socket_group: str = "bpfilter"
    roles: Roles = Roles()
    tcp: Tcp | None = None
    largest_body: Annotated[int, Field(ge=1024, le=256 << 20)] = 16 << 20
    request_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    event_clients: Annotated[int, Field(ge=1, le=10_000)] = 64


class Gates(_Section):
    """`[deployment.gates]`: what a stage must have shown before the next one."""

    packets: Annotated[int, Field(ge=0)] = 1000
    seconds: Seconds = 60.0
    rules_exercised: Share = 0.0
    punted: Share = 0.2
    unseen: Share = 0.01


class Probe(_Section):
    """`[deployment.probe]`: a command that must keep succeeding; never run by a shell."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    every: Annotated[float, Field(ge=0.5)] = 5.0
    timeout: Annotated[float, Field(gt=0, le=60)] = 3.0


class Canary(_Section):
    """`[deployment.canary]`: what the canary stage decides; all conditions together."""

    interfaces: tuple[str, ...] = ()
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    share: Share = 1.0


class Deployment(_Section):
    """`[deployment]`: the stage to reach at start, and how."""

    stage: Literal["off", "shadow", "canary", "enforce"] = "off"
    interfaces: tuple[str, ...] = ("auto",)
    backend: Literal["legacy", "nft"] | None = None
    policy: Literal["follow", "hold"] = "follow"
    lease_seconds: Annotated[float, Field(ge=1, le=30)] = 5.0
    confirm_within: Annotated[float, Field(gt=0, le=86_400)] | None = 120.0
    early_drop: bool = False
    xdp: Mapping[str, Literal["native", "generic", "auto"]] = {}
    shadow_share: Share = 1.0
    verify_share: Share = 0.001
    accept_state_reset: bool = False
    protect: tuple[str, ...] = ()
    gates: Gates = Gates()
    canary: Canary = Canary()
    probe: Probe | None = None


class Settings(_Section):
    """The whole configuration; every value has a safe default."""

    daemon: Daemon = Daemon()
    api: Api = Api()
    deployment: Deployment = Deployment()


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    values: Mapping[str, Any]


def load(file: Path = FILE, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration; a missing main file means defaults.

    SettingsError names the file and line of a syntax error, the file and key of a bad value.
    """
    environment = os.environ if environment is None else environment
    sources = [*_files(file), *_variables(environment)]
    merged: dict[str, Any] = {}
    for source in sources:
        _merge(merged, source.values)
    try:
        return Settings.model_validate(merged, context=environment)
    except ValidationError as error:
        raise _explained(error, sources) from None


def _files(file: Path) -> Iterator[_Source]:
    drop_ins = file.parent / f"{file.stem}.d"
    for path in (file, *sorted(drop_ins.glob("*.toml"))):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if path != FILE and path == file:
                raise SettingsError(
                    f"{path}: no such file", hint="name a file that exists"
                ) from None
            continue
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}", hint="make it readable") from None
        yield _Source(str(path), _parsed(path, data))


def _parsed(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}:{line}: not UTF-8", hint="TOML files are UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}", hint="see https://toml.io for the syntax") from None
    except RecursionError:
        raise SettingsError(
            f"{path}: nested too deep", hint="at most three levels are used"
        ) from None


def _variables(environment: Mapping[str, str]) -> Iterator[_Source]:
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT) or "__" not in name:
            continue
        keys = name.removeprefix(ENVIRONMENT).lower().split("__")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        yield _Source(f"environment variable {name}", nested)


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            below = into.get(key)
            if not isinstance(below, dict):
                below = into[key] = {}
            _merge(below, value)
        else:
            into[key] = value


def _explained(error: ValidationError, sources: Sequence[_Source]) -> SettingsError:
    found = error.errors()[0]
    location = tuple(part for part in found["loc"] if isinstance(part, (str, int)))
    key = ".".join(str(part) for part in location)
    names = [source.name for source in sources if _holds(source.values, location)]
    what = "there is no such setting" if found["type"] == "extra_forbidden" else found["msg"]
    return SettingsError(
        f"{names[-1] if names else 'the configuration'}: {key}: {what}",
        hint="`bpfilterd --check-config` checks the files without starting anything",
    )


def _holds(values: Any, location: Sequence[str | int]) -> bool:
    for part in location:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            return isinstance(part, int) or not isinstance(values, Mapping)
    return True
