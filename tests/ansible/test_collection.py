"""The Ansible collection against several hosts, each a network namespace with an API of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from threading import Thread
from typing import Any

import httpx
import pytest

from bpfilter.rollout.teardown import remains
from bpfilter.ruleset.model import Backend
from tests.api.test_service import serving
from tests.rollout.network import PEER4, Iptables, Net, entered
from tests.rollout.test_stages import FATES, load, outcome

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
ENFORCE = {"stage": "enforce", "interfaces": ["v1"], "gates": ["seconds=0"]}


@dataclass(frozen=True)
class Host:
    net: Net
    tables: Iptables
    socket: Path


class Fleet:
    """Hosts a and b, and Ansible with the collection of this tree."""

    def __init__(self, directory: Path, hosts: Mapping[str, Host]) -> None:
        self.hosts, self._directory = hosts, directory
        place = directory / "collections/ansible_collections/bpfilter"
        place.mkdir(parents=True)
        (place / "host").symlink_to(ROOT / "ansible")
        lines = [
            f"{name} ansible_connection=local bpfilter_socket={host.socket}"
            f" ansible_python_interpreter={sys.executable}"
            for name, host in hosts.items()
        ]
        (directory / "inventory").write_text("\n".join(lines) + "\n")

    def document(self, *modules: str) -> str:
        return self._call("ansible-doc", "--json", *modules)

    def run(self, program: str, *words: str, code: int = 0) -> str:
        return self._call(program, "-i", "inventory", *words, code=code)

    def _call(self, program: str, *words: str, code: int = 0) -> str:
        command = [str(Path(sys.executable).parent / program), *words]
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self._directory / "collections"),
            "ANSIBLE_HOME": str(self._directory / "home"),
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            command, cwd=self._directory, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def module(self, host: str, name: str, *words: str, code: int = 0, **options: Any) -> Any:
        """One module's result on a host."""
        options["socket"] = str(self.hosts[host].socket)
        arguments = ["-m", f"bpfilter.host.{name}", "-a", json.dumps(options), *words]
        said = self.run("ansible", host, *arguments, code=code)
        found = json.loads(said[said.index("=> {") + 3 : said.rindex("}") + 1])
        return {**found, "said": said}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        hosts = {}
        for name in ("a", "b"):
            directory = tmp_path / name
            directory.mkdir()
            net = stack.enter_context(Net())
            tables = load(net, Backend.NFT)
            stack.enter_context(serving(net, directory))
            hosts[name] = Host(net, tables, directory / "api.sock")
        yield Fleet(tmp_path, hosts)


def test_from_nothing_to_enforced_and_back(fleet: Fleet) -> None:
    host = fleet.hosts["a"]
    assert fleet.module("a", "bpfilter_info")["stage"] == "off"
    assert fleet.module("a", "bpfilter_plan")["proven"]
    checked = fleet.module("a", "bpfilter_deployment", "--check", "--diff", **ENFORCE)
    assert checked["changed"] and '+    "stage": "enforce"' in checked["said"]
    assert fleet.module("a", "bpfilter_info")["stage"] == "off"
    done = fleet.module("a", "bpfilter_deployment", **ENFORCE, commit_id="c-1", commit_seconds=60)
    assert (done["changed"], done["stage"]) == (True, "enforce")
    assert fleet.module("a", "bpfilter_deployment", confirm="c-1")["changed"]
    assert not fleet.module("a", "bpfilter_deployment", confirm="c-1")["changed"]
    assert not fleet.module("a", "bpfilter_deployment", **ENFORCE)["changed"]
    assert not fleet.module("a", "bpfilter_deployment", "--check", **ENFORCE)["changed"]
    assert outcome(host.net, host.tables) == (FATES, 0)
    assert fleet.module("a", "bpfilter_deployment", stage="off")["changed"]
    assert not fleet.module("a", "bpfilter_deployment", stage="off")["changed"]
    assert outcome(host.net, host.tables) == (FATES, 12)
    with entered(host.net.fw):
        assert remains() == ()


def test_refusals_are_sentences(fleet: Fleet) -> None:
    refused = fleet.module("a", "bpfilter_deployment", stage="shadow", code=2)
    assert "interfaces" in refused["msg"]
    late = fleet.module("a", "bpfilter_deployment", confirm="never", code=2)
    assert "no bpfilterd runs" in late["msg"]


def test_the_staged_playbook_brings_all_hosts_to_enforce_and_is_idempotent(fleet: Fleet) -> None:
    variables = {"bpfilter_interfaces": ["v1"], "bpfilter_gates": ["seconds=0"]}
    extra = json.dumps({**variables, "bpfilter_batches": [1]})
    words = ("bpfilter.host.staged", "-e", extra)
    fleet.run("ansible-playbook", *words)
    for host in fleet.hosts.values():
        assert outcome(host.net, host.tables) == (FATES, 0)
    again = fleet.run("ansible-playbook", *words)
    assert "changed=0" in again and "changed=1" not in again


def test_a_canary_is_as_idempotent_as_any_stage(fleet: Fleet) -> None:
    host = fleet.hosts["a"]
    canary = {**ENFORCE, "stage": "canary", "canary": {"sources": ["192.0.2.0/24"], "share": 0.5}}
    assert fleet.module("a", "bpfilter_deployment", **canary)["changed"]
    assert not fleet.module("a", "bpfilter_deployment", **canary)["changed"]
    assert outcome(host.net, host.tables) == (FATES, 12), "nothing comes from there"
    wider = {**canary, "canary": {"sources": [f"{PEER4}/32"]}}
    checked = fleet.module("a", "bpfilter_deployment", "--check", "--diff", **wider)
    assert checked["changed"] and PEER4 in checked["said"]
    assert fleet.module("a", "bpfilter_deployment", **wider)["changed"]
    assert outcome(host.net, host.tables) == (FATES, 0)
    wrong = {**canary, "canary": {"sources": ["192.0.2.1/24"]}}
    assert "host bits" in fleet.module("a", "bpfilter_deployment", **wrong, code=2)["msg"]
    assert fleet.module("a", "bpfilter_deployment", stage="off")["changed"]


def test_the_staged_playbook_goes_by_way_of_a_canary(fleet: Fleet) -> None:
    variables = {"bpfilter_interfaces": ["v1"], "bpfilter_gates": ["seconds=0"]}
    canary = {"bpfilter_canary": {"share": 0.5}, "bpfilter_canary_seconds": 1}
    words = ("bpfilter.host.staged", "-e", json.dumps({**variables, **canary}))
    fleet.run("ansible-playbook", *words)
    for host in fleet.hosts.values():
        assert outcome(host.net, host.tables) == (FATES, 0)
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(host.socket)), base_url="http://d"
        ) as client:
            events = client.get("/v1/events").json()["events"]
        stages = [event["sentence"].split(",")[0] for event in events if event["kind"] == "stage"]
        assert stages == ["stage canary", "stage enforce"]
    again = fleet.run("ansible-playbook", *words)
    assert "changed=0" in again and "changed=1" not in again


def test_a_mismatch_on_one_host_keeps_all_others_where_they_are(fleet: Fleet) -> None:
    """What one host's API says of it is altered on its way; a wrong program cannot be deployed."""
    variables = {"bpfilter_interfaces": ["v1"], "bpfilter_gates": ["seconds=0"]}
    words = ("bpfilter.host.staged", "-e", json.dumps({**variables, "bpfilter_batches": [1]}))
    with telling_of_a_mismatch(fleet.hosts["b"].socket):
        stopped = fleet.run("ansible-playbook", *words, code=2)
    assert "judged unlike its prediction" in stopped
    for name in ("a", "b"):
        assert fleet.module(name, "bpfilter_info")["stage"] == "shadow"


@contextmanager
def telling_of_a_mismatch(place: Path) -> Iterator[None]:
    """The API behind this socket, with a mismatch in its deployment."""
    real = place.with_suffix(".real")
    place.rename(real)
    client = httpx.Client(transport=httpx.HTTPTransport(uds=str(real)), base_url="http://d")

    class Altering(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            told = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            body = self.rfile.read(length)
            found = client.request(self.command, self.path, content=body, headers=told)
            document = found.json()
            if self.path == "/v1/deployment" and self.command == "GET":
                document["comparison"] = {**(document.get("comparison") or {}), "mismatches": 1}
            data = json.dumps(document).encode()
            self.send_response(found.status_code)
            self.send_header("ETag", found.headers.get("ETag", ""))
            self.send_header("Content-Type", found.headers["Content-Type"])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = answer

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with UnixStreamServer(str(place), Altering) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            client.close()
            place.unlink()
            real.rename(place)


def test_every_option_of_a_module_is_documented(fleet: Fleet) -> None:
    names = [f"bpfilter.host.bpfilter_{name}" for name in ("info", "plan", "deployment")]
    documents = json.loads(fleet.document(*names))
    for name in names:
        document = documents[name]
        assert {"socket", "timeout"} <= set(document["doc"]["options"]), name
        assert document["return"] and document["examples"]
    wrong = fleet.module("a", "bpfilter_deployment", stage="off", colour="red", code=2)
    known = set(documents[names[2]]["doc"]["options"])
    said = wrong["msg"].rpartition("Supported parameters include: ")[2].rstrip(".")
    assert {word.split(" ")[0] for word in said.split(", ")} == known
