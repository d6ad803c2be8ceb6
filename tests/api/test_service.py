"""The REST API from outside: from nothing to enforced and back through it alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bpfilter.rollout import wishes
from bpfilter.rollout.asking import ask
from bpfilter.rollout.teardown import remains, stop_daemon, teardown
from bpfilter.rollout.wishes import ChangedMeanwhile
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, entered
from tests.rollout.test_stages import FATES, load, outcome

pytestmark = pytest.mark.kernel
PROGRAM = "from bpfilter.cli.main import main; main()"
DEPLOYMENT = "/v1/deployment"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


@contextmanager
def serving(net: Net, directory: Path, extra: str = "") -> Iterator[httpx.Client]:
    """The API of the firewall namespace."""
    place, state = directory / "api.sock", directory / "state"
    config = directory / "bpfilter.toml"
    config.write_text(f'[api]\nsocket = "{place}"\n{extra}')
    command = [sys.executable, "-c", PROGRAM, "serve", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with entered(net.fw):
        server = subprocess.Popen([*command, "--state", str(state)], env=environment)
    try:
        end = time.monotonic() + 60
        while not place.exists():
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        transport = httpx.HTTPTransport(uds=str(place))
        with httpx.Client(transport=transport, base_url="http://d", timeout=60) as client:
            yield client
    finally:
        server.terminate()
        assert server.wait(30) == 0
        with entered(net.fw):
            stop_daemon(state)
            teardown(state)


def reached(client: httpx.Client, stage: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while True:
        found: dict[str, Any] = client.get(DEPLOYMENT).json()
        if found["stage"] == stage:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def put(client: httpx.Client, **document: Any) -> httpx.Response:
    tag = client.get(DEPLOYMENT).headers["ETag"]
    return client.put(DEPLOYMENT, json=document, headers={"If-Match": tag})


def test_from_nothing_to_enforced_and_back(
    net: Net, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = load(net, Backend.NFT)
    with serving(net, tmp_path, '[daemon]\nlog_format = "json"\n') as client:
        assert client.get(DEPLOYMENT).json()["stage"] == "off"
        assert client.get("/readyz").status_code == 503
        nowhere = {"json": {"stage": "enforce"}, "headers": {"If-Match": "*"}}
        for question in ("", "?dry_run=true"):
            assert client.put(DEPLOYMENT + question, **nowhere).status_code == 422
        dry = client.put(
            DEPLOYMENT + "?dry_run=true",
            json={"stage": "enforce", "interfaces": ["v1"]},
            headers={"If-Match": "*"},
        )
        assert dry.json()["stage"] == "off"
        wanted = {
            "stage": "enforce",
            "interfaces": ["v1"],
            "gates": ["seconds=0"],
            "commit": {"id": "change-1", "seconds": 120},
        }
        assert put(client, **wanted).status_code == 200
        assert reached(client, "enforce")["confirm"]["id"] == "change-1"
        for verb in ("confirm", "cancel", "confirm?dry_run=true", "cancel?dry_run=true"):
            assert client.post(f"{DEPLOYMENT}/commits/other/{verb}").status_code == 409
        dry = client.post(f"{DEPLOYMENT}/commits/change-1/confirm?dry_run=true")
        assert dry.status_code == 200
        assert client.get(DEPLOYMENT).json()["confirm"]["id"] == "change-1", "still to be confirmed"
        assert client.post(f"{DEPLOYMENT}/commits/change-1/confirm").status_code == 200
        assert outcome(net, tables) == (FATES, 0)
        assert client.get("/readyz").status_code == 200
        assert 'bpfilter_stage{stage="enforce"} 1.0' in client.get("/metrics").text
        kinds = [event["kind"] for event in client.get("/v1/events").json()["events"]]
        assert "stage" in kinds and "confirmed" in kinds
        for odd in ("9" * 5000, "²", "-1"):
            headers = {b"Last-Event-ID": odd.encode()}
            assert client.get("/v1/events", headers=headers).json()["events"]
        assert put(client, stage="off").status_code == 200
        reached(client, "off")
        with entered(net.fw):
            assert remains() == ()
        assert outcome(net, tables) == (FATES, 12)
        trail = client.get("/v1/audit").json()["mutations"]
        trail = [each for each in trail if each["detail"] != "other"]
        asked = [(each["what"], each["caller"]) for each in trail]
        assert asked == [
            ("put deployment", "root"),
            ("confirm", "root"),
            ("put deployment", "root"),
        ], "dry runs and refusals by preconditions change nothing"
    lines = capfd.readouterr().err.splitlines()
    logged = [json.loads(line) for line in lines if '"kind": "audit"' in line]
    said = [each["event"] for each in logged if each["detail"] != "other"]
    assert len(said) == 3 and said[1].endswith(": confirm"), "journald gives these their number"


def test_the_shadow_report_comes_in_the_form_that_is_accepted(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    with serving(net, tmp_path) as client:
        assert client.get("/v1/shadow/report").status_code == 409
        assert put(client, stage="shadow", interfaces=["v1"]).status_code == 200
        reached(client, "shadow")
        assert outcome(net, tables) == (FATES, 12)
        found = client.get("/v1/shadow/report").json()
        assert found["comparison"]["matches"] >= 9 and found["promotion"]["allowed"]
        for form, words in (("text/html", "<h1>Shadow report</h1>"), ("text/markdown", "# Shadow")):
            answer = client.get("/v1/shadow/report", headers={"Accept": form})
            assert answer.headers["Content-Type"].startswith(form) and words in answer.text


def test_a_commit_that_is_cancelled_goes_back_at_once(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    with serving(net, tmp_path) as client:
        wanted = {
            "stage": "enforce",
            "interfaces": ["v1"],
            "gates": ["seconds=0"],
            "commit": {"id": "change-2", "seconds": 600},
        }
        tag = client.get(DEPLOYMENT).headers["ETag"]
        assert put(client, **wanted).status_code == 200
        late = client.put(DEPLOYMENT, json=wanted, headers={"If-Match": tag})
        assert late.status_code == 412, "the same ETag serves once"
        reached(client, "enforce")
        numbers = client.get("/v1/counters?family=ipv4").json()["rules"]
        assert "INPUT" in {rule["chain"] for rule in numbers}
        text = client.get("/v1/counters", headers={"Accept": "text/plain"}).text
        assert text.startswith("Chain INPUT (policy ") and "BPF-" not in text
        assert client.get("/v1/history").json()["steps"]
        assert client.post(f"{DEPLOYMENT}/commits/change-2/cancel").status_code == 200
        reached(client, "off")
        with entered(net.fw):
            assert remains() == ()
        assert outcome(net, tables) == (FATES, 12)


def test_of_two_clients_with_one_etag_one_is_refused(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path) as client, ThreadPoolExecutor(4) as pool:
        tag = client.get(DEPLOYMENT).headers["ETag"]

        def change(gate: int) -> int:
            body = {"stage": "shadow", "interfaces": ["v1"], "gates": [f"seconds={gate}"]}
            return client.put(DEPLOYMENT, json=body, headers={"If-Match": tag}).status_code

        assert sorted(pool.map(change, range(4))) == [200, 412, 412, 412]
        reached(client, "shadow")


def test_a_change_by_another_way_is_not_overwritten_unseen(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    state = tmp_path / "state"
    with serving(net, tmp_path) as client:
        assert put(client, stage="shadow", interfaces=["v1"]).status_code == 200
        reached(client, "shadow")
        tag = client.get(DEPLOYMENT).headers["ETag"]
        wish = {"stage": "enforce", "gates": ["seconds=600"]}
        assert ask(state, "goal", wish).done
        late = client.put(DEPLOYMENT, json={"stage": "shadow"}, headers={"If-Match": tag})
        assert late.status_code == 412
        with pytest.raises(ChangedMeanwhile):
            ask(state, "goal", wishes.based_on(wish, "0"))
        assert client.get(DEPLOYMENT).json()["goal"] == "enforce"
        assert put(client, stage="shadow", interfaces=["v1"]).status_code == 200


def test_bodies_are_bounded_in_size_and_time(net: Net, tmp_path: Path) -> None:
    extra = "largest_body = 2048\nrequest_seconds = 0.5\n"
    with serving(net, tmp_path, extra) as client:
        large = client.post("/v1/plans", json={"ruleset": "#" * 4096})
        assert large.status_code == 413
        assert large.headers["content-type"] == "application/problem+json"
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(str(tmp_path / "api.sock"))
            slow.settimeout(30)
            slow.sendall(
                b"POST /v1/plans HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_changes_need_to_say_what_they_are_based_on(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path) as client:
        body = {"stage": "shadow", "interfaces": ["v1"]}
        missing = client.put(DEPLOYMENT, json=body)
        assert missing.status_code == 428
        assert missing.headers["content-type"] == "application/problem+json"
        old = client.put(DEPLOYMENT, json=body, headers={"If-Match": '"0123"'})
        assert (old.status_code, old.json()["type"]) == (412, "/v1/problems/precondition-failed")


@pytest.mark.parametrize(
    "body",
    [
        {"stage": "everything"},
        {"stage": "shadow", "interfaces": ["a/b"]},
        {"stage": "shadow", "unknown": 1},
        {"stage": "canary", "canary": {"share": 0}},
        {"stage": "shadow", "gates": ["nonsense"]},
        [],
    ],
)
def test_a_bad_request_is_a_problem_and_changes_nothing(
    net: Net, tmp_path: Path, body: object
) -> None:
    with serving(net, tmp_path) as client:
        answer = client.put(DEPLOYMENT, json=body, headers={"If-Match": "*"})
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get(DEPLOYMENT).json()["running"] is False


def test_plans_and_diffs_are_operations(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    text = "*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n"
    with serving(net, tmp_path) as client:
        plan = ended(client, client.post("/v1/plans", json={"ruleset": text}))
        assert plan["result"]["fates"]["native"] == 1
        report = f"/v1/plans/{plan['id']}"
        forms = {"text/html": "<!", "text/markdown": "#", "text/plain": "", "*/*": "{"}
        for form, begin in forms.items():
            found = client.get(report, headers={"Accept": form})
            assert found.text.lstrip().startswith(begin), form
            assert "\x1b" not in found.text and "INPUT" in found.text
            assert found.headers["ETag"] == f'"{plan["result"]["digest"]}"'
        assert [each["id"] for each in client.get("/v1/plans").json()["plans"]] == [plan["id"]]
        body = {"stage": "shadow", "interfaces": ["v1"], "plan": plan["id"]}
        assert put(client, **body).status_code == 409, "the live rules are not the plan's"
        diff = ended(client, client.post("/v1/diffs", json={"old": text, "new": text}))
        assert diff["result"]["same"] is True
        again = ended(client, client.post("/v1/plans", json={"plan": plan["id"]}))
        assert again["result"]["digest"] == plan["result"]["digest"] and "source" not in again
        wider = text.replace("-p udp -j ACCEPT", "-j ACCEPT")
        asked = {"old_plan": plan["id"], "new": wider}
        assert ended(client, client.post("/v1/diffs", json=asked))["result"]["same"] is False
        packet = {"protocol": "tcp", "source": "192.0.2.1:9", "destination": "192.0.2.2:22"}
        told = ended(client, client.post("/v1/explain", json={**packet, "plan": plan["id"]}))
        assert told["state"] == "done", told
        for wrong, status in (({"plan": "none"}, 404), ({"plan": diff["id"]}, 404)):
            failed = ended(client, client.post("/v1/plans", json=wrong))
            assert failed["problem"]["status"] == status
        both = ended(client, client.post("/v1/plans", json={"plan": plan["id"], "ruleset": text}))
        assert both["problem"]["status"] == 422
        refused = ended(client, client.post("/v1/plans", json={"ruleset": "*filter\nnonsense\n"}))
        assert refused["problem"]["type"] == "/v1/problems/ruleset-refused"
        assert refused["problem"]["line"] == 2
        live = client.get("/v1/rulesets/ipv4", headers={"Accept": "text/plain"})
        assert "-A INPUT" in live.text and live.headers["ETag"]


def ended(client: httpx.Client, accepted: httpx.Response) -> dict[str, Any]:
    assert accepted.status_code == 202
    end = time.monotonic() + 60
    while True:
        found: dict[str, Any] = client.get(accepted.headers["Location"]).json()
        if found["state"] in ("done", "failed"):
            return found
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_has_no_role_may_not_even_look(net: Net, tmp_path: Path) -> None:
    """A user without a role gets through the socket's mode only if its group lets it."""
    with serving(net, tmp_path) as client:
        assert client.get("/v1/host").status_code == 200
        place = tmp_path / "api.sock"
        place.chmod(0o666)
        tmp_path.chmod(0o755)
        for above in list(tmp_path.parents)[:3]:
            above.chmod(0o755)
        script = (
            "import os, httpx, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
            f"c = httpx.Client(transport=httpx.HTTPTransport(uds={str(place)!r}),"
            " base_url='http://d');"
            "print([c.get('/healthz').status_code, c.get('/v1/deployment').status_code,"
            " c.post('/v1/deployment/rollback').status_code])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert json.loads(done.stdout) == [200, 403, 403], done.stderr


def test_a_packet_is_explained_against_live_rules_and_text(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    words = {"protocol": "udp", "source": "10.99.1.2:5", "destination": "10.99.1.1:4001"}
    with serving(net, tmp_path) as client:
        empty = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
        for extra, last in (({}, "SERVICES"), ({"ruleset": empty}, "INPUT")):
            started = client.post("/v1/explain", json={**words, **extra})
            assert started.status_code == 202
            found: dict[str, Any] = {"state": "waiting"}
            end = time.monotonic() + 60
            while found["state"] not in ("done", "failed") and time.monotonic() < end:
                found = client.get(started.headers["Location"]).json()
                time.sleep(0.05)
            steps = found["result"]["paths"][0]["iptables"]["steps"]
            assert steps[-1]["chain"] == last and found["result"]["agree"]
