"""What the Debian package does to a host: `make package-test` runs this on dist/bpfilter_*.deb.

The host is a minimal Debian 12 without compiler, pip and network, under this machine's kernel and
without systemd running; tests/package/booted.py boots it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package.built import LATER, installed, plain_root
from tests.package.debian import Root

PLACES = ("usr", "etc", "var/lib", "lib")
WITHOUT = ("setpriv", "--inh-caps=-all", "--bounding-set")
UNIT = "/lib/systemd/system/bpfilterd.service"
CONFIGURATION = "/etc/bpfilter/bpfilter.toml"
ENFORCE = """
set -eu
ip link add v1 type veth peer name p1
ip addr add 10.99.1.1/24 dev v1
ip link set v1 up; ip link set p1 up; ip link set lo up
iptables -A INPUT -p udp --dport 5000 -j ACCEPT
iptables -A INPUT -p udp --dport 5001 -j DROP
bpfilter deploy --interface v1 --stage enforce
iptables-save | grep -q BPF-INPUT
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Debian without the package."""
    return plain_root(tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="module")
def base(plain: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """Debian with the package installed; tests do not write into it."""
    with installed(plain, tmp_path_factory.mktemp("installed")) as root:
        yield root


@pytest.fixture
def host(base: Root, tmp_path: Path) -> Iterator[Root]:
    """A host of the test's own with the package installed."""
    with base.copied(tmp_path) as root:
        yield root


def files(root: Root) -> set[str]:
    """Everything below the places where packages put files."""
    return {
        str(path.relative_to(root.directory))
        for place in PLACES
        for path in (root.directory / place).rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


def test_it_installs_without_compiler_and_network_and_apt_agrees(base: Root) -> None:
    assert base.run("sh", "-c", "command -v cc gcc clang pip").returncode != 0
    assert base.call("dpkg-query", "-Wf", "${db:Status-Status}", "bpfilter") == "installed"
    assert base.call("apt-get", "check").count("E:") == 0
    assert base.call("dpkg", "--verify", "bpfilter") == ""


def test_the_commands_work_from_anywhere(base: Root) -> None:
    assert base.call("bpfilter", "--version").split()[-1] == "0.1.0"
    planned = base.call("bpfilter", "plan", "--ruleset", "/usr/share/doc/bpfilter/example.rules")
    assert "Proof: every packet gets the same trace of rules" in planned
    assert "good" in base.call("bpfilterd", "--check-config")
    assert base.call("sh", "-c", "cd /tmp; PATH=/usr/bin bpfilter --help")


def test_the_shipped_programs_load(base: Root) -> None:
    words = ["plan", "--ruleset", "/usr/share/doc/bpfilter/example.rules", "--program"]
    assert "verified" in base.call("bpfilter", *words)


def test_every_library_that_python_finds_by_name_is_there(base: Root) -> None:
    said = base.run("bpfilter", "doctor", "--format", "json")
    assert "libbpf.so.1 is there" in said.stdout, said.stderr
    script = "import iptc; print([c.name for c in iptc.Table(iptc.Table.FILTER).chains])"
    assert "INPUT" in base.call("/usr/lib/bpfilter/bin/python3", "-c", script)


def test_systemd_finds_the_unit_enabled_and_its_group(base: Root) -> None:
    assert "bpfilter:" in base.call("getent", "group", "bpfilter")
    wants = f"{base.directory}/etc/systemd/system/multi-user.target.wants/bpfilterd.service"
    assert Path(wants).is_symlink()
    assert (base.directory / UNIT.lstrip("/")).exists()


def test_nothing_is_world_writable_and_nothing_belongs_to_anyone_but_root(base: Root) -> None:
    listed = base.call("dpkg", "--listfiles", "bpfilter").split()
    for name in listed:
        status = (base.directory / name.lstrip("/")).lstat()
        assert status.st_uid == status.st_gid == 0, name
        assert not status.st_mode & 0o002 or (status.st_mode & 0o170000) == 0o120000, name


def test_an_upgrade_keeps_the_configuration_and_leaves_no_old_file(host: Root) -> None:
    edited = host.directory / CONFIGURATION.lstrip("/")
    edited.write_text(edited.read_text() + "# edited\n")
    host.call("apt-get", "install", "--yes", "/root/later.deb")
    assert host.call("dpkg-query", "-Wf", "${Version}", "bpfilter") == LATER
    assert edited.read_text().endswith("# edited\n")
    assert not list((host.directory / "usr/lib/bpfilter").rglob("fuzz.cpython*"))


def test_removal_ends_what_is_deployed_and_says_that_nothing_is_left(host: Root) -> None:
    said = host.call("sh", "-c", f"{ENFORCE} dpkg --remove bpfilter; iptables-save; ls /sys/fs/bpf")
    after = said[said.index("Removing bpfilter") :]
    assert "nothing of ours is left in this network namespace" in after
    assert "-A INPUT -p udp -m udp --dport 5001 -j DROP" in after
    assert "-j BPF-" not in after and ":BPF-" not in after
    assert "bpfilterd" not in after.splitlines()[-1]


def test_removal_is_refused_where_teardown_cannot_run(host: Root) -> None:
    script = host.directory / "usr/lib/bpfilter/bin/bpfilter"
    script.chmod(0o644)
    assert host.run("dpkg", "--remove", "bpfilter").returncode != 0
    script.chmod(0o755)
    assert host.call("bpfilter", "--version")


def test_an_image_is_built_without_privileges_and_the_package_leaves_it(host: Root) -> None:
    said = host.call(*WITHOUT, "-bpf,-sys_admin,-net_admin", "dpkg", "--remove", "bpfilter")
    assert "no CAP_NET_ADMIN, so nothing to tear down from here" in said
    assert not (host.directory / "usr/lib/bpfilter").exists()


def test_removal_keeps_the_configuration_and_a_purge_keeps_nothing(plain: Root, host: Root) -> None:
    (host.directory / "var/lib/bpfilterd").mkdir()
    (host.directory / "var/lib/bpfilterd/journal.sqlite").write_text("")
    host.call("dpkg", "--remove", "bpfilter")
    assert (host.directory / CONFIGURATION.lstrip("/")).exists()
    host.call("dpkg", "--purge", "bpfilter")
    ours = {name for name in files(host) - files(plain) if "bpfilter" in name}
    assert ours == set()
