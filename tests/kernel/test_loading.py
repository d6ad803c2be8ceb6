"""Loading fails with sentences, leaves nothing behind, and the two languages agree on structs."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import struct
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

import bpfilter.kernel.program as program
from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.layout import AXES, MAX_GROUPS, Outcome
from bpfilter.errors import CompileError, KernelError, VerifierRejected
from bpfilter.kernel import config, probe, syscall
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.kernel.pack import OP_LAST_ITEM, pack
from bpfilter.kernel.program import TEMPLATES, Classifier, Options, possible_cpus
from bpfilter.ruleset.fields import Family, Field, Intervals
from tests.kernel.images import RandomChains, chain, image_of
from tests.kernel.test_punts import TCP, UDP, ipv4

SOURCES = Path(__file__).resolve().parent.parent.parent / "bpf_templates"
HEADER = (SOURCES / "config.h").read_text()


def enumeration(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} \{{(.*?)\}};", HEADER, re.S).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    values, following = {}, 0
    for word in filter(None, (part.strip() for part in body.split(","))):
        key, _, value = word.partition("=")
        following = int(value) if value else following
        values[key.strip()] = following
        following += 1
    return values


@pytest.mark.parametrize(
    ("name", "prefix", "mirror"),
    [
        ("reason", "REASON_", config.Reason),
        ("mode", "MODE_", config.Mode),
        ("trace_mode", "TRACE_", config.Trace),
        ("outcome", "OUTCOME_", Outcome),
        ("op_kind", "OP_", OpKind),
    ],
)
def test_numbers_are_the_same_in_both_languages(
    name: str, prefix: str, mirror: type[IntEnum]
) -> None:
    written = {
        key.removeprefix(prefix): value
        for key, value in enumeration(name).items()
        if key.startswith(prefix)
    }
    if mirror is OpKind:
        assert written.pop("LAST_ITEM") == OP_LAST_ITEM
    assert written == {member.name: member.value for member in mirror}


def test_axes_have_the_same_order_in_both_languages() -> None:
    assert list(enumeration("axis_name")) == [field.name for field in AXES]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", config.SLOTS),
        ("MAX_STATES", config.MAX_STATES),
        ("MAX_MASKS", config.MAX_MASKS),
        ("PUNT_STRIDE", config.PUNT_STRIDE),
        ("OUTCOME_STRIDE", config.OUTCOME_STRIDE),
        ("MAX_GROUPS", MAX_GROUPS),
        ("AXES", len(AXES)),
    ],
)
def test_limits_are_the_same_in_both_languages(name: str, value: int) -> None:
    assert int(re.search(rf"#define {name}\s+(\d+)", HEADER).group(1)) == value


@pytest.mark.kernel
def test_this_kernel_has_what_the_program_needs() -> None:
    features = probe.probe()
    assert features.sufficient
    assert features.missing == ()


def test_a_kernel_without_the_needs_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.NEEDED, "no_such_function", "a thing that does not exist")
    probe.probe.cache_clear()
    try:
        with pytest.raises(KernelError, match="a thing that does not exist"):
            probe.require()
    finally:
        probe.probe.cache_clear()


def test_missing_templates_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "TEMPLATES", tmp_path)
    with pytest.raises(KernelError, match=r"classifier\.bpf\.o cannot be opened") as caught:
        Classifier.load(image_of(chain()))
    assert "make templates" in str(caught.value.hint)


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bpf.o"
    path.write_bytes(b"not an ELF file")
    with pytest.raises(KernelError, match=r"x\.bpf\.o cannot be opened"):
        BpfObject(path)


@pytest.mark.kernel
def test_templates_of_another_version_are_refused() -> None:
    class Smaller(config.Masked):
        pass

    with (
        BpfObject(TEMPLATES / "classifier.bpf.o") as loaded,
        pytest.raises(KernelError, match="this version writes"),
    ):
        loaded.set_constants(".rodata.config", Smaller())


@pytest.mark.kernel
def test_the_verifiers_last_lines_are_in_the_error() -> None:
    before = descriptors()
    with BpfObject(TEMPLATES / "classifier.bpf.o") as loaded:
        constants = config.Config(summary_words=9, tall=1, pitch=128, rows_count=9)
        constants.slots[0].used = 1
        constants.slots[0].states = 1
        constants.slots[0].stateful = 1
        loaded.set_constants(".rodata.config", constants)
        loaded.skip_program("capture")
        with pytest.raises(VerifierRejected) as caught:
            loaded.load()
    assert "processed" in caught.value.log
    assert len(caught.value.log.splitlines()) <= 25
    assert descriptors() == before


def descriptors() -> list[str]:
    """This process's BPF objects: others load programs meanwhile."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sorted(link for link in links if "bpf" in link)


def programs() -> set[int]:
    """Ids of all loaded classifiers."""

    class Next(ctypes.Structure):
        _fields_ = (
            ("start", ctypes.c_uint32),
            ("next", ctypes.c_uint32),
            ("flags", ctypes.c_uint32),
        )

    found, current = set(), 0
    while True:
        attr = Next(start=current)
        try:
            syscall.bpf(11, attr, "walk programs")
        except syscall.KernelCallFailed:
            return found
        current = attr.next
        found.add(current)


@pytest.mark.kernel
def test_closing_leaves_no_program() -> None:
    with Classifier.load(image_of(chain())) as classifier:
        (number,) = np.frombuffer(syscall.object_info(classifier.fd), "<u4")[1:2]
        assert int(number) in programs()
    assert int(number) not in programs()


def test_two_chains_cannot_take_one_slot() -> None:
    with pytest.raises(CompileError, match="filter/INPUT and filter/OUTPUT"):
        pack(image_of(chain(), chain(name="OUTPUT")), config.Config())


@pytest.mark.kernel
def test_the_largest_image_is_far_from_the_verifiers_limit() -> None:
    """Both chains of both families, every field, five states; a million instructions is the end."""
    chains = []
    for family in Family:
        for name in ("INPUT", "FORWARD"):
            flat = RandomChains(3, family, name).chain(40)
            fields = [
                dataclasses.replace(
                    flat.entries[0], box={field: Intervals.single(1)}, states=1 << number % 5
                )
                for number, field in enumerate(AXES)
            ]
            chains.append(dataclasses.replace(flat, entries=(*fields, *flat.entries)))
    options = Options(mode=config.Mode.LIVE_INPUT, leased=True, generation=True)
    with Classifier.load(image_of(*chains), options) as classifier:
        info = syscall.object_info(classifier.fd)
        (verified,) = struct.unpack_from("=I", info, 216)
        assert 0 < verified < 200_000


@pytest.mark.kernel
@pytest.mark.parametrize("family", list(Family))
def test_verification_does_not_depend_on_the_size_of_the_ruleset(family: Family) -> None:
    counts = []
    for size in (100, 5000):
        entries = [
            ({Field.SOURCE: Intervals.single(number << 8)}, OpKind.ACCEPT) for number in range(size)
        ]
        with Classifier.load(image_of(chain(*entries, family=family))) as classifier:
            counts += struct.unpack_from("=I", syscall.object_info(classifier.fd), 216)
    assert counts[1] < 2 * counts[0]


@pytest.mark.kernel
def test_counters_tell_certain_from_possible() -> None:
    ssh = {Field.PROTOCOL: Intervals.single(6), Field.DESTINATION_PORT: Intervals.single(22)}
    flat = chain((ssh, OpKind.ACCEPT))
    established = dataclasses.replace(flat.entries[0], box={}, states=6)
    flat = dataclasses.replace(flat, entries=(established, *flat.entries))
    with Classifier.load(image_of(flat), Options()) as classifier:
        classifier.run(ipv4(UDP))
        classifier.run(ipv4(TCP[:2] + b"\0\x16" + TCP[4:], 6))
        counts = classifier.counters()[0]
        assert counts["packets"].tolist() == [[0, 2], [0, 1], [0, 1]]
        assert counts["bytes"].tolist() == [[0, 68], [0, 40], [0, 28]]
        assert classifier.punts() == {config.Reason.NO_CODE: 1}
        assert classifier.outcomes() == {(0, Outcome.ACCEPT): 1}


@pytest.mark.kernel
def test_per_cpu_values_are_as_many_as_the_kernel_has() -> None:
    assert possible_cpus() >= 1
