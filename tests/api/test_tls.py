"""The API over TCP: TLS always, callers by certificate or by token, and nobody else."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bpfilter.ruleset.model import Backend
from tests.api.test_service import DEPLOYMENT, serving
from tests.cli.calling import bpfilter
from tests.rollout.network import FW4, Net, entered

pytestmark = pytest.mark.kernel
PORT = 8443
SECRET = "correct horse battery staple"
OTHERS = "somebody else's token"
RULES = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
COMMIT
"""


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


def openssl(*words: str, cwd: Path) -> None:
    subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True)


def authority(directory: Path) -> None:
    """`ca.pem`, and signed by it `server` for the firewall's address, `operator`, `stranger`."""
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        *new, "-days", "1", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem",
        cwd=directory,
    )  # fmt: skip
    for name in ("server", "operator", "stranger"):
        openssl(
            *new, "-days", "1", "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", f"subjectAltName=IP:{FW4}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            cwd=directory,
        )  # fmt: skip
        both = (directory / f"{name}.pem").read_text() + (directory / f"{name}.key").read_text()
        (directory / f"{name}.both").write_text(both)


def configured(directory: Path, *, tokens: bool) -> str:
    lines = [
        "[api.tcp]",
        f'address = "{FW4}"',
        f"port = {PORT}",
        f'certificate = "{directory}/server.pem"',
        f'key = "{directory}/server.key"',
        f'client_ca = "{directory}/ca.pem"',
    ]
    if tokens:
        digest = hashlib.sha256(SECRET.encode()).hexdigest()
        (directory / "tokens").write_text(f"reader read {digest}\n")
        lines.append(f'tokens = "{directory}/tokens"')
    return "\n".join([*lines, "[api.tcp.certificate_roles]", 'operator = "operate"', ""])


def asked(directory: Path, certificate: str | None = None, token: str | None = None) -> int:
    """The status of one question from inside the firewall's namespace."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if certificate is not None:
        context.load_cert_chain(directory / f"{certificate}.both")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with httpx.Client(verify=context, base_url=f"https://{FW4}:{PORT}", headers=headers) as client:
        return client.get(DEPLOYMENT).status_code


def test_only_known_certificates_and_tokens_are_answered(net: Net, tmp_path: Path) -> None:
    authority(tmp_path)
    net.iptables(Backend.NFT).restore(RULES)
    with serving(net, tmp_path, configured(tmp_path, tokens=True)), entered(net.fw):
        assert asked(tmp_path, certificate="operator") == 200
        assert asked(tmp_path, token=SECRET) == 200
        assert asked(tmp_path) == 401
        assert asked(tmp_path, certificate="stranger") == 401
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://{FW4}:{PORT}{DEPLOYMENT}")
        assert {asked(tmp_path, token=OTHERS) for _ in range(10)} == {401}
        assert asked(tmp_path, token=OTHERS) == 429, "guessing is slowed down"


def test_without_tokens_no_connection_is_made_without_a_certificate(
    net: Net, tmp_path: Path
) -> None:
    authority(tmp_path)
    net.iptables(Backend.NFT).restore(RULES)
    with serving(net, tmp_path, configured(tmp_path, tokens=False)), entered(net.fw):
        assert asked(tmp_path, certificate="operator") == 200
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            asked(tmp_path)


def test_the_command_line_works_over_tls_as_far_as_its_role_goes(net: Net, tmp_path: Path) -> None:
    authority(tmp_path)
    net.iptables(Backend.NFT).restore(RULES)
    url = ("--url", f"https://{FW4}:{PORT}", "--ca", str(tmp_path / "ca.pem"))
    (tmp_path / "secret").write_text(SECRET + "\n")
    token = ("--token-file", str(tmp_path / "secret"))
    with serving(net, tmp_path, configured(tmp_path, tokens=True)) as client, entered(net.fw):
        counted = bpfilter("counters", "--format", "json", *url, *token)
        assert counted.returncode == 0, counted.stderr
        rules = json.loads(counted.stdout)["rules"]
        assert [rule["number"] for rule in rules if rule["chain"] == "INPUT"]
        deploy = ("deploy", "-i", "v1", "--stage", "enforce", "--gate", "seconds=0")
        forbidden = bpfilter(*deploy, *url, *token)
        assert forbidden.returncode == 1 and "role" in forbidden.stderr
        certified = (*deploy, *url, "--cert", str(tmp_path / "operator.both"))
        assert bpfilter(*certified, "--dry-run").returncode == 2
        assert bpfilter(*certified, "--backend", "nft").returncode == 64
        words = ("--confirm-within", "60", "--confirm-id", "by-url")
        deployed = bpfilter(*certified, *words)
        assert deployed.returncode == 0 and "stage enforce" in deployed.stdout, deployed.stderr
        confirm = ("confirm", "by-url", *url, "--cert", str(tmp_path / "operator.both"))
        assert bpfilter(*confirm).returncode == 0
        assert client.get(DEPLOYMENT).json()["stage"] == "enforce"
        refused = bpfilter("rollback", *url, *token)
        assert refused.returncode == 1 and "role" in refused.stderr
        cert = ("--cert", str(tmp_path / "operator.both"))
        assert bpfilter("rollback", *url, *cert).returncode == 0
        trail = client.get("/v1/audit").json()["mutations"]
        done = [(each["caller"], each["what"]) for each in trail]
        changes = ("put deployment", "confirm", "rollback")
        assert done == [("operator", what) for what in changes]
        assert SECRET not in json.dumps(trail)
