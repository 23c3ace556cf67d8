"""Every defect gets its status, whatever the transfer syntax; nothing refused is used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from dicomnode.contexts import NEVER_RESULTS, SOP_CLASSES
from dicomnode.reception.defects import ANSWERS, Defect, Flawed
from dicomnode.reception.header import inspect, is_valid_uid
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from tests.dicomnode.modality import association, compressed, ct_slice, encoded, running_node, send, store

# Typed anew: (status, kept) of every defect.
TABLE = {
    "UNREADABLE": (0xC000, True),
    "CUT_SHORT": (0xC001, True),
    "SOP_INSTANCE_UID": (0xC010, True),
    "STUDY_INSTANCE_UID": (0xC011, True),
    "SERIES_INSTANCE_UID": (0xC012, True),
    "SOP_CLASS_MISMATCH": (0xA900, True),
    "SOP_INSTANCE_MISMATCH": (0xA901, True),
    "NO_PIXEL_DATA": (0xA902, True),
    "PIXEL_DESCRIPTION": (0xA903, True),
    "PIXEL_DATA_LENGTH": (0xC020, True),
    "PIXEL_DATA_CUT_SHORT": (0xC021, True),
    "PIXEL_DATA_FRAMES": (0xC022, True),
    "OTHER_CONTENT": (0xC030, True),
    "OTHER_STUDY": (0xC031, True),
    "DISK_FULL": (0xA700, False),
    "LEDGER_UNAVAILABLE": (0xA701, False),
    "STOPPING": (0xA702, False),
    "TOO_LARGE": (0xA703, False),
    "INTERNAL": (0x0110, True),
}

# What a peer may send: (data set, bytes made of it) → the defect.
BROKEN: list[tuple[Defect, str, Dataset, Callable[[bytes], bytes]]] = [
    (Defect.UNREADABLE, "text", ct_slice(), lambda _: b"no DICOM at all, only a sentence of text"),
    (Defect.UNREADABLE, "a whole file", ct_slice(), lambda data: bytes(128) + b"DICM" + data),
    (Defect.UNREADABLE, "file meta", ct_slice(), lambda data: b"\2\0\x10\0UI\2\x001\0" + data),
    (
        Defect.UNREADABLE,
        "bad nested item",
        ct_slice(),
        lambda data: data.replace(b"\xfe\xff\0\xe0", b"\xfe\xff\1\xe0"),
    ),
    (Defect.CUT_SHORT, "half a header", ct_slice(PixelData=None), lambda data: data + b"\x28\0"),
    (Defect.CUT_SHORT, "nothing", ct_slice(), lambda data: data[:5]),
    (Defect.SOP_INSTANCE_UID, "missing", ct_slice(SOPInstanceUID=None), bytes),
    (Defect.STUDY_INSTANCE_UID, "missing", ct_slice(StudyInstanceUID=None), bytes),
    (Defect.STUDY_INSTANCE_UID, "path", ct_slice(), lambda data: _study(data, b"../../../etc/cron.d/x")),
    (Defect.STUDY_INSTANCE_UID, "empty component", ct_slice(), lambda data: _study(data, b"1..2")),
    (Defect.SERIES_INSTANCE_UID, "missing", ct_slice(SeriesInstanceUID=None), bytes),
    (Defect.SOP_CLASS_MISMATCH, "a structure set", ct_slice(SOPClassUID=RTStructureSetStorage), bytes),
    (Defect.NO_PIXEL_DATA, "missing", ct_slice(PixelData=None), bytes),
    (Defect.PIXEL_DESCRIPTION, "no Rows", ct_slice(Rows=None), bytes),
    (Defect.PIXEL_DESCRIPTION, "frames", ct_slice(), lambda data: _frames(data, b"-1")),
    (Defect.PIXEL_DATA_LENGTH, "too long", ct_slice(Rows=3), bytes),
    (Defect.PIXEL_DATA_CUT_SHORT, "too few rows", ct_slice(Rows=5), bytes),
    (Defect.PIXEL_DATA_CUT_SHORT, "cut", ct_slice(), lambda data: data[:-1]),
    (Defect.PIXEL_DATA_CUT_SHORT, "frames announced", ct_slice(), lambda data: _frames(data, b"2")),
]


def _study(data: bytes, value: bytes) -> bytes:
    start = data.index(b"\x20\0\x0d\0UI")
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    value += b"\0" * (len(value) % 2)
    return data[: start + 6] + len(value).to_bytes(2, "little") + value + data[start + 8 + length :]


def _frames(data: bytes, value: bytes) -> bytes:
    start = data.index(b"\x28\0\x10\0US")
    value += b" " * (len(value) % 2)
    return data[:start] + b"\x28\0\x08\0IS" + len(value).to_bytes(2, "little") + value + data[start:]


def test_the_table_is_the_one_that_was_decided() -> None:
    """A status changes in two places or in none."""
    assert {str(d): (a.status, a.quarantined) for d, a in ANSWERS.items()} == TABLE
    assert set(ANSWERS) == set(Defect)


def test_every_status_is_a_failure_with_a_sentence_that_fits() -> None:
    """A Warning would tell the sender that the object is stored; Error Comment is an LO."""
    for answer in ANSWERS.values():
        assert answer.status >> 8 in (0x01, 0xA7, 0xA9) or answer.status >> 12 == 0xC
        assert 0 < len(answer.sentence) <= 64


@pytest.mark.parametrize(
    ("defect", "how", "dataset", "spoil"), BROKEN, ids=[f"{b[0]}-{b[1]}" for b in BROKEN]
)
def test_a_broken_object_gets_its_status_and_is_kept_with_its_reason(
    tmp_path: Path,
    defect: Defect,
    how: str,
    dataset: Dataset,
    spoil: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Over a real association; nothing of it reaches the spool, the reason reaches disk and ledger."""
    uid = dataset.get("SOPInstanceUID", "1.2.3")
    data = spoil(encoded(dataset))
    with running_node(tmp_path) as node:
        with association(node.port) as assoc:
            response = send(assoc, data, uid)
            good = ct_slice()
            assert send(assoc, encoded(good), good.SOPInstanceUID).Status == 0, "the association lives on"
        node.intake.flush(0.0)
        assert (response.Status, response.ErrorComment) == (TABLE[defect][0], ANSWERS[defect].sentence)
        assert [path.stem for path in node.files] == [good.SOPInstanceUID]
        (kept,) = node.kept
        assert kept.read_bytes().endswith(data)
        note = json.loads(kept.with_suffix(".json").read_text())
        assert (note["defect"], note["status"]) == (defect, TABLE[defect][0])
        assert note["answered"] == f"0x{TABLE[defect][0]:04X}"
        assert datetime.fromisoformat(note["received"]).timestamp() == int(note["received_at"])
        assert note["reason"].startswith(ANSWERS[defect].sentence)
        (told,) = [r.getMessage() for r in caplog.records if "refused with" in r.getMessage()]
        assert told.endswith(f"; set aside as {note['path']}")
        (row,) = node.ledger.quarantined(note["study_instance_uid"])
        assert (row.defect, row.path, row.peer) == (defect, note["path"], "SCANNER")


def test_uids_of_the_request_must_be_those_of_the_data_set(tmp_path: Path) -> None:
    """An object filed under another's UID would be found under the wrong one."""
    with running_node(tmp_path) as node, association(node.port) as assoc:
        assert send(assoc, encoded(ct_slice()), "1.2.3").Status == TABLE["SOP_INSTANCE_MISMATCH"][0]
        dataset = ct_slice()
        answer = send(assoc, encoded(dataset), dataset.SOPInstanceUID, RTStructureSetStorage)
        assert answer.Status == TABLE["SOP_CLASS_MISMATCH"][0]
        assert node.files == []


def test_compressed_pixel_data_must_be_whole() -> None:
    """Its delimiter and one fragment per frame; the codestream itself is not decoded."""
    dataset = compressed(ct_slice(), RLELossless)
    data = encoded(dataset, RLELossless)
    inspect(memoryview(data), RLELossless)
    for cut in (1, 8, 20):
        assert _defect(data[:-cut], RLELossless) is Defect.PIXEL_DATA_CUT_SHORT
    assert _defect(_frames(data, b"2"), RLELossless) is Defect.PIXEL_DATA_FRAMES
    assert _defect(data, ExplicitVRLittleEndian) is Defect.UNREADABLE
    assert _defect(encoded(ct_slice()), RLELossless) is Defect.UNREADABLE


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_no_part_of_an_object_passes_for_the_whole(syntax: str) -> None:
    """Cut anywhere, nested items included, an image is refused."""
    data = encoded(ct_slice(), syntax)
    assert inspect(memoryview(data), syntax).patient_id == "P1"
    for end in range(len(data)):
        assert _defect(data[:end], syntax) is not None, f"cut at {end} of {len(data)}"


def test_a_deflated_object_is_read_and_must_be_whole() -> None:
    """PS3.5 A.5; also one that claims to be deflated and is not."""
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(encoded(ct_slice())) + stream.flush()
    assert inspect(memoryview(data), DeflatedExplicitVRLittleEndian).modality == "CT"
    assert _defect(data[:-5], DeflatedExplicitVRLittleEndian) is Defect.CUT_SHORT
    assert _defect(encoded(ct_slice()), DeflatedExplicitVRLittleEndian) is not None


def test_deep_nesting_is_refused_before_the_stack_is_exhausted() -> None:
    """A hostile data set ends as a refused one."""
    opening = b"\x08\0\x32\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    assert _defect(opening * 5000, ExplicitVRLittleEndian) is Defect.UNREADABLE


@pytest.mark.parametrize(
    "text", ["", ".", "..", "1.", ".1", "1..2", "1/2", "../1", "1.2\n", "1.2 ", "1" * 65, "1.2a", "１.2"]
)
def test_what_is_no_uid_is_none(text: str) -> None:
    """Digits, dots, no empty component, 64 characters."""
    assert not is_valid_uid(text)


@pytest.mark.parametrize("text", ["1", "1.2.840", "2.25." + "9" * 39, "1" * 64])
def test_what_is_a_uid_is_one(text: str) -> None:
    """Up to 64 characters."""
    assert is_valid_uid(text)


def test_a_full_disk_is_answered_as_out_of_resources(tmp_path: Path) -> None:
    """And nothing half-written is left."""
    with running_node(tmp_path, free=100) as node:
        assert store(node, ct_slice()) == TABLE["DISK_FULL"][0]
        assert (node.files, node.kept) == ([], [])


def test_an_error_of_the_node_itself_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens, no peer takes the object for stored."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with running_node(tmp_path) as node:
        monkeypatch.setattr(Spool, "store", broken)
        assert store(node, ct_slice()) == TABLE["INTERNAL"][0]
        assert len(node.kept) == 1


def test_without_a_ledger_a_possible_result_is_refused_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be our own object coming back; of other classes it never is, and is taken."""
    from dicomnode.errors import LedgerUnavailable

    def gone(*_: object) -> bool:
        raise LedgerUnavailable("gone")

    dose = ct_slice(SOPClassUID=RTDoseStorage)
    with running_node(tmp_path) as node:
        monkeypatch.setattr(Intake, "is_result", gone)
        assert store(node, dose) == TABLE["LEDGER_UNAVAILABLE"][0]
        for sop_class in sorted(NEVER_RESULTS):
            assert store(node, ct_slice(SOPClassUID=sop_class)) == 0, sop_class.name


def test_only_what_the_node_writes_needs_the_ledger_to_be_taken() -> None:
    """Typed again: of the classes that are accepted, those that results are of."""
    written = {SegmentationStorage, RTDoseStorage, EnhancedSRStorage, Comprehensive3DSRStorage}
    assert frozenset(SOP_CLASSES) - NEVER_RESULTS == written
    assert RTStructureSetStorage in NEVER_RESULTS


def test_a_bad_object_sent_again_and_again_is_kept_once(tmp_path: Path) -> None:
    """A sender that retries for ever fills neither the disk nor the ledger."""
    dataset = ct_slice(Rows=5)
    with running_node(tmp_path) as node:
        for _ in range(3):
            assert store(node, dataset) == TABLE["PIXEL_DATA_CUT_SHORT"][0]
        node.intake.flush(0.0)
        assert len(node.kept) == 1
        assert len(node.ledger.quarantined(dataset.StudyInstanceUID)) == 1


def _defect(data: bytes, syntax: str) -> Defect | None:
    try:
        inspect(memoryview(data), syntax)
    except Flawed as flaw:
        return flaw.defect
    return None
