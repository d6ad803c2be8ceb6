"""How verbs reach the daemon of a network namespace: by its journal, or by the REST API.

Without `--url` the journal is used by who may read it (root), else the API's unix socket. Over
`https://` a bearer token comes from a file or the environment, never from the command line, which
other users can see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx
import typer

from bpfilter.errors import BpfilterError, UsageError
from bpfilter.report.document import Document
from bpfilter.report.mismatches import iptables_paths
from bpfilter.report.shadow import shadow_document
from bpfilter.rollout.asking import ask
from bpfilter.rollout.counters import counters
from bpfilter.rollout.detail import ask_detail
from bpfilter.rollout.journal import GONE, Journal, Stage, running, state_directory
from bpfilter.rollout.live import read_operators
from bpfilter.rollout.status import STATUS
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text

TOKEN = "BPFILTER_TOKEN"
SOCKET = Path("/run/bpfilterd/api.sock")
_SECONDS = 60.0
_POLL_SECONDS = 0.1

State = Annotated[Path | None, typer.Option(help="Directory of the journal, default by namespace.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="BPFILTER_URL", help="The REST API: unix:///run/… or https://host:8443."
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(help=f"File with the bearer token; default: ${TOKEN}.")
]
Ca = Annotated[Path | None, typer.Option("--ca", help="Certificates that the server's rests on.")]
Cert = Annotated[Path | None, typer.Option("--cert", help="Our certificate and key, in one file.")]


class ApiRefused(BpfilterError):
    """The REST API refused; its problem document says why."""


class Daemon(Protocol):
    """What verbs ask of a namespace's daemon, there or not."""

    def status(self) -> Mapping[str, Any]:
        """As `read_status`: the stage (off if there is no daemon) and what belongs to it."""

    def detail(self) -> Mapping[str, Any]:
        """As `rollout.detail`; RolloutError or ApiRefused where no daemon runs."""

    def report(self) -> Document:
        """The shadow report; errors as `detail`."""

    def events(self, after: int = 0) -> Sequence[Mapping[str, Any]]:
        """Events with `id`, `at`, `kind` and `sentence`, those behind `after`, oldest first."""

    def counters(self, families: Sequence[Family]) -> Mapping[str, Any]:
        """As `rollout.counters`, of one family or of both."""

    def confirm(self, identity: str) -> str:
        """Confirm a stage; a sentence."""

    def rollback(self) -> str:
        """Back to off; a sentence."""


class Local:
    """By the journal, in this network namespace."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def status(self) -> Mapping[str, Any]:
        return read_status(self.directory)

    def detail(self) -> Mapping[str, Any]:
        return ask_detail(self.directory)

    def report(self) -> Document:
        detail = self.detail()
        return shadow_document(self.status(), detail, iptables_paths(detail, read_operators))

    def events(self, after: int = 0) -> Sequence[Mapping[str, Any]]:
        try:
            with Journal(self.directory, create=False) as journal:
                return [
                    {"id": e.number, "at": e.at, "kind": e.kind, "sentence": e.sentence}
                    for e in journal.events()
                    if e.number > after
                ]
        except GONE:
            return []

    def counters(self, families: Sequence[Family]) -> Mapping[str, Any]:
        return counters(self.directory, tuple(families))

    def confirm(self, identity: str) -> str:
        return ask(self.directory, "confirm", {"id": identity}).sentence

    def rollback(self) -> str:
        return ask(self.directory, "rollback", {}).sentence


def read_status(directory: Path) -> Mapping[str, Any]:
    """The journal's last word, and who keeps it; stage off if there is no daemon."""
    alive = running(directory)
    found: dict[str, Any] = {"pid": None, "stage": Stage.OFF, "in_force": False}
    try:
        with Journal(directory, create=False) as journal:
            found |= dict(journal.document(STATUS) or {}) if alive is not None else {}
    except GONE:
        return found
    if alive is not None:
        found["pid"], found["stage"] = alive
    return found


class Remote:
    """By the REST API."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def status(self) -> Mapping[str, Any]:
        found = self._get("/v1/deployment")
        return {"in_force": False, **found, "pid": found.get("pid")}

    def detail(self) -> Mapping[str, Any]:
        return self._get("/v1/shadow")

    def report(self) -> Document:
        return dict(self._get("/v1/shadow/report"))

    def events(self, after: int = 0) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self._get(f"/v1/events?after={after}")["events"]
        return found

    def counters(self, families: Sequence[Family]) -> Mapping[str, Any]:
        asked = f"?family={families[0]}" if len(families) == 1 else ""
        return self._get(f"/v1/counters{asked}")

    def confirm(self, identity: str) -> str:
        return str(self._post(f"/v1/deployment/commits/{identity}/confirm")["result"])

    def rollback(self) -> str:
        return str(self._post("/v1/deployment/rollback")["result"])

    def deploy(self, wanted: Mapping[str, Any], *, dry_run: bool = False) -> None:
        """Ask for a deployment, if it is still the one that is there now."""
        tag = self._send("GET", "/v1/deployment").headers.get("ETag", "")
        query = "?dry_run=true" if dry_run else ""
        self._ask("PUT", f"/v1/deployment{query}", wanted, {"If-Match": tag})

    def operate(
        self, path: str, wanted: Mapping[str, Any], say: Callable[[str], object]
    ) -> Document:
        """Start an operation and wait for its result; ApiRefused with what prevented it."""
        started = self._ask("POST", path, {k: v for k, v in wanted.items() if v is not None})
        while True:
            found = self._get(f"/v1/operations/{started['id']}")
            if found["state"] == "done":
                return dict(found["result"])
            if found["state"] == "failed":
                raise _refused(found["problem"], "the operation failed")
            say(found["progress"] or found["state"])
            time.sleep(_POLL_SECONDS)

    def rules(self, family: Family) -> Ruleset:
        """The live rules there."""
        found = self._get(f"/v1/rulesets/{family}")
        answer = self._send("GET", f"/v1/rulesets/{family}", headers={"Accept": "text/plain"})
        backend = found["backend"] and Backend(found["backend"])
        source = f"live {family} of {self._client.base_url.host}"
        return read_text(answer.text, source=source, family=family, backend=backend)

    def host(self) -> Sequence[Mapping[str, Any]]:
        """What `bpfilter doctor` finds there."""
        found: Sequence[Mapping[str, Any]] = self._get("/v1/host")["findings"]
        return found

    def _get(self, path: str) -> Mapping[str, Any]:
        return self._ask("GET", path)

    def _post(self, path: str) -> Mapping[str, Any]:
        return self._ask("POST", path)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        told = {"Accept": "application/json", **(headers or {})}
        try:
            return self._client.request(method, path, json=body, headers=told)
        except httpx.HTTPError as error:
            raise ApiRefused(
                f"the API cannot be reached: {error or type(error).__name__}",
                hint="`bpfilter serve` serves it; check --url",
            ) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        answer = self._send(method, path, body, headers)
        try:
            found: Mapping[str, Any] = answer.json()
        except ValueError:
            raise ApiRefused(
                f"what answers at {self._client.base_url} is no bpfilter API", hint="check --url"
            ) from None
        if answer.is_success:
            return found
        raise _refused(found, answer.reason_phrase)


def _refused(problem: Mapping[str, Any], otherwise: str) -> ApiRefused:
    return ApiRefused(
        str(problem.get("detail") or problem.get("title") or otherwise),
        hint=str(problem["hint"]) if problem.get("hint") else None,
    )


def of_host(
    url: str | None,
    token_file: Path | None,
    ca: Path | None,
    cert: Path | None,
    *,
    rules: bool,
) -> Remote | None:
    """The API of the host that is asked about; None if that is this one and we may look ourselves.

    `rules`: live rules are asked for, which only root can read.
    """
    if url is not None:
        return Remote(_client(url, token_file, ca, cert))
    if rules and os.geteuid() != 0 and SOCKET.exists():
        return Remote(_client(f"unix://{SOCKET}", None, None, None))
    return None


def connect(
    url: str | None,
    directory: Path | None,
    token_file: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
) -> Daemon:
    """The way that the options ask for; UsageError if they make no sense."""
    if url is None:
        if directory is None and os.geteuid() != 0 and SOCKET.exists():
            return Remote(_client(f"unix://{SOCKET}", None, None, None))
        return Local(directory or state_directory())
    if directory is not None:
        raise UsageError("--url and --state exclude each other", hint="leave one out")
    return Remote(_client(url, token_file, ca, cert))


def _client(url: str, token_file: Path | None, ca: Path | None, cert: Path | None) -> httpx.Client:
    if url.startswith("unix://"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix://"))
        return httpx.Client(transport=transport, base_url="http://bpfilter", timeout=_SECONDS)
    if not url.startswith("https://"):
        raise UsageError(f"--url {url}: neither unix:// nor https://", hint="tokens need TLS")
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert)
        token = os.environ.get(TOKEN) if token_file is None else token_file.read_text().strip()
    except OSError as error:
        raise UsageError(f"--ca, --cert or --token-file: {error}", hint="PEM files") from None
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, verify=context, headers=headers, timeout=_SECONDS)
