"""The API is what its OpenAPI document says, whoever calls and whatever is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from bpfilter.api.access import Guard
from bpfilter.api.app import application
from bpfilter.api.audit import Trail
from bpfilter.api.contract import committed
from bpfilter.api.identity import Caller, Role
from bpfilter.api.keeper import Keeper
from bpfilter.api.server import server
from bpfilter.settings import Api

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
MUTATIONS = {
    ("PUT", "/v1/deployment"),
    ("POST", "/v1/deployment/rollback"),
    ("POST", "/v1/deployment/commits/{identity}/confirm"),
    ("POST", "/v1/deployment/commits/{identity}/cancel"),
}
"""What needs the role operate; everything that is not listed here needs read, or nothing."""

OPEN = {"/healthz", "/readyz"}
ADMINISTRATIVE = {"/v1/audit"}
EXAMPLES = settings(
    max_examples=6,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class As(Guard):
    """Everybody has one role."""

    def __init__(self, role: Role) -> None:
        super().__init__(Api())
        self.role = role

    def caller(self, request: Request) -> Caller:
        return Caller("tester", self.role, "test")


class Still(Keeper):
    """A daemon that accepts every wish and does nothing, for a host that must not change."""

    def deploy(self, goal: Any, interfaces: Any, seen: Any = None) -> Any:
        self.check(goal, interfaces)

    def counters(self, family: Any) -> Any:
        return {"rules": [], "backend": None}

    def listing(self, family: Any, table: str) -> str:
        return f"{family} {table}\n"


def app_as(role: Role, place: Path) -> FastAPI:
    def log(_caller: Caller, _what: str, _detail: Any) -> None:
        return None

    directory = place / "state"
    return application(Still(directory), As(role), Trail(directory), log, Api())


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of a real server: its operations go on between requests, in one event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = server(app, seconds_to_finish=1)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


def documented() -> Iterator[tuple[str, str]]:
    for path, methods in json.loads(DOCUMENT.read_text())["paths"].items():
        for method in methods:
            yield method.upper(), path


def test_the_committed_document_is_the_api() -> None:
    assert DOCUMENT.read_text() == committed(), (
        "python -m bpfilter.api.contract > docs/openapi.json"
    )


def test_every_operation_has_an_id_of_its_own_and_refuses_with_problems() -> None:
    document = json.loads(DOCUMENT.read_text())
    assert document["openapi"].startswith("3.1")
    operations = [found for path in document["paths"].values() for found in path.values()]
    names = [found["operationId"] for found in operations]
    assert len(set(names)) == len(names)
    for found in operations:
        assert list(found["responses"]["4XX"]["content"]) == ["application/problem+json"]


@pytest.mark.parametrize("role", [Role.NONE, Role.READ, Role.OPERATE, Role.ADMIN])
def test_nobody_does_what_the_role_forbids(role: Role, tmp_path: Path) -> None:
    with served(app_as(role, tmp_path)) as url, httpx.Client(base_url=url) as client:
        refuses(client, role)
    trail = Trail(tmp_path / "state")
    assert trail.mutations() == () or role >= Role.OPERATE


def refuses(client: httpx.Client, role: Role) -> None:
    for method, path in documented():
        needed = Role.READ
        if path in OPEN:
            needed = Role.NONE
        elif path in ADMINISTRATIVE:
            needed = Role.ADMIN
        elif (method, path) in MUTATIONS:
            needed = Role.OPERATE
        if role >= needed:
            continue
        body = {"stage": "off"} if method == "PUT" else {"protocol": "tcp"}
        words = {"protocol": "tcp", "source": "1.2.3.4", "destination": "1.2.3.5"}
        body = words if path == "/v1/explain" else {} if path != "/v1/deployment" else body
        place = path.replace("{identity}", "x").replace("{family}", "ipv4")
        answer = client.request(method, place, json=body, headers={"If-Match": "*"})
        assert answer.status_code == 403, (method, path, answer.text)


@pytest.mark.kernel
@pytest.mark.parametrize("role", [Role.READ, Role.ADMIN])
def test_what_is_answered_is_what_is_documented(role: Role, tmp_path: Path) -> None:
    """Generated requests, valid and not: no 5xx but the documented, no undocumented answer."""
    with served(app_as(role, tmp_path)) as url:
        conforms(url)


def conforms(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    wanted = [
        checks.CHECKS.get_one(name)
        for name in (
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
    ]
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @EXAMPLES
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            nonlocal tried
            if "text/event-stream" in str(case.headers or {}):
                return
            tried += 1
            answer = case.call()
            assert answer.status_code < 500 or case.path == "/readyz", answer.text
            case.validate_response(answer, checks=wanted)

        one()
    assert tried > 50
