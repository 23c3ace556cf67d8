"""C-MOVE and C-GET: what arrives, in which transfer syntax, and every status with its counts."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RTDoseStorage,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from dicomnode.config import Peer, Receive
from dicomnode.contexts import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.network.messages import DIMSE
from dicomnode.query import objects
from dicomnode.query.objects import FALLBACKS, Files, Unsendable
from dicomnode.query.retrieve import MoveService
from dicomnode.reception.header import inspect
from dicomnode.reception.intake import instance_of
from dicomnode.reception.spool import Spool
from dicomnode.reception.spool_file import Origin
from dicomnode.records import HeldObject, Instance
from dicomnode.results.writing import write_durably
from tests.dicomnode.modality import NOW, compressed, ct_slice, encoded
from tests.dicomnode.querier import NODE_AE, QUERIER_AE, Running, answering_node, associated, keys

STUDY, SERIES = "1.2.3", "1.2.3.1"
UIDS = [f"1.2.3.1.{n}" for n in (1, 2, 3)]
STUDY_MOVE, STUDY_GET = STUDY_ROOT_MOVE, STUDY_ROOT_GET


def deflated(data: bytes) -> bytes:
    """PS3.5 A.5: without a header of its own."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def spooled(data_dir: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Instance:
    """The object as the node receives it: on disk, with its record."""
    spool = Spool(data_dir, 0)
    plain = encoded(dataset, syntax)
    data = memoryview(deflated(plain) if UID(syntax).is_deflated else plain)
    header = inspect(data, syntax)
    origin = Origin(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax, "SCANNER")
    path, size = spool.store(header.study_instance_uid, origin, data)
    spool.close()
    return instance_of(header, origin, spool.relative(path), size, NOW)


def slices(data_dir: Path) -> list[Instance]:
    made = [ct_slice(StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=uid) for uid in UIDS]
    return [
        spooled(data_dir, made[0]),
        spooled(data_dir, made[1], ImplicitVRLittleEndian),
        spooled(data_dir, compressed(made[2], JPEGLSLossless), JPEGLSLossless),
    ]


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StandinPacs]:
    with StandinPacs(tmp_path / "pacs", "ARCHIVE") as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, pacs: StandinPacs) -> Iterator[Running]:
    archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
    speechless = Peer(name="speechless", ae_title="SPEECHLESS", may=("echo",))
    with answering_node(
        tmp_path, slices(tmp_path), (archive, speechless), max_matches=100, timeout_s=5.0
    ) as running:
        yield running


def moved(node: Running, destination: str = "ARCHIVE", level: str = "STUDY", **values: Any) -> list[Any]:
    """Every response to a C-MOVE, with its Identifier."""
    asked = keys(level, **{"StudyInstanceUID": STUDY, **values})
    with associated(node.port, STUDY_MOVE) as assoc:
        return list(assoc.send_c_move(asked, destination, UID(STUDY_MOVE), msg_id=7))


def counts(status: Dataset) -> tuple[int, int, int]:
    """Completed, failed, with a warning."""
    return (
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )


def test_a_move_stores_every_object_as_it_lies_and_counts(node: Running, pacs: StandinPacs) -> None:
    answers = moved(node)
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0x0000]
    assert [status.NumberOfRemainingSuboperations for status, _ in answers[:2]] == [2, 1]
    assert counts(answers[-1][0]) == (3, 0, 0)
    assert "NumberOfRemainingSuboperations" not in answers[-1][0]
    assert pacs.associations == 1
    syntaxes = {uid: dcmread(path).file_meta.TransferSyntaxUID for uid, path in pacs.files().items()}
    expected = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless]
    assert syntaxes == dict(zip(UIDS, expected, strict=True))


def test_the_destination_hears_who_asked(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    def note(event: evt.Event) -> None:
        command = event.message.command_set
        if "MoveOriginatorMessageID" in command:
            title = command.MoveOriginatorApplicationEntityTitle
            heard.append((str(title).strip(), command.MoveOriginatorMessageID))

    with StandinPacs(tmp_path / "pacs", "ARCHIVE", handlers=[(evt.EVT_DIMSE_RECV, note)]) as pacs:
        archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
        with answering_node(tmp_path, slices(tmp_path), (archive,)) as node:
            moved(node, level="IMAGE", SeriesInstanceUID=SERIES, SOPInstanceUID=UIDS[:2])
    assert heard == [(QUERIER_AE, 7)] * 2


def test_some_failures_and_warnings_make_a_warning_with_a_list(node: Running, pacs: StandinPacs) -> None:
    answer = {UIDS[0]: 0xA700, UIDS[1]: 0xB007, UIDS[2]: 0x0000}
    pacs.status = lambda _class, uid: answer[uid]
    status, identifier = moved(node)[-1]
    assert status.Status == 0xB000
    assert counts(status) == (1, 1, 1)
    assert identifier.FailedSOPInstanceUIDList == UIDS[0]


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_file_that_is_gone_or_damaged_fails_alone(node: Running, pacs: StandinPacs, is_gone: bool) -> None:
    path = node.data_dir / "spool" / STUDY / f"{UIDS[1]}.dcm"
    content = path.read_bytes()
    path.unlink()
    if not is_gone:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status, identifier = moved(node)[-1]
    assert (status.Status, counts(status)) == (0xB000, (2, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == UIDS[1]
    assert sorted(pacs.files()) == [UIDS[0], UIDS[2]]


def test_nothing_stored_is_a_failure(node: Running, pacs: StandinPacs) -> None:
    pacs.status = lambda _class, _uid: 0xA700
    status, identifier = moved(node)[-1]
    assert (status.Status, counts(status)) == (0xA702, (0, 3, 0))
    assert list(identifier.FailedSOPInstanceUIDList) == UIDS


def test_a_destination_that_is_down_is_a_failure(node: Running, pacs: StandinPacs) -> None:
    pacs.stop()
    ((status, identifier),) = moved(node)
    assert (status.Status, counts(status)) == (0xA702, (0, 3, 0))
    assert list(identifier.FailedSOPInstanceUIDList) == UIDS


def test_a_destination_that_hangs_up_fails_the_rest(node: Running, pacs: StandinPacs) -> None:
    pacs.status = lambda _class, uid: None if uid == UIDS[1] else 0x0000
    status, identifier = moved(node)[-1]
    assert (status.Status, counts(status)) == (0xB000, (1, 2, 0))
    assert list(identifier.FailedSOPInstanceUIDList) == UIDS[1:]


def test_a_class_that_the_destination_does_not_take_fails(tmp_path: Path) -> None:
    with StandinPacs(tmp_path / "pacs", "ARCHIVE", sop_classes=(RTDoseStorage,)) as pacs:
        archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
        with answering_node(tmp_path, slices(tmp_path), (archive,)) as node:
            ((status, _),) = moved(node)
    assert (status.Status, counts(status)) == (0xA702, (0, 3, 0))


@pytest.mark.parametrize(
    ("destination", "values", "status"),
    [
        ("NOBODY", {}, 0xA801),
        ("SPEECHLESS", {}, 0xA801),
        ("ARCHIVE", {"StudyInstanceUID": ""}, 0xA900),
        ("ARCHIVE", {"level": "SERIES"}, 0xA900),
        ("ARCHIVE", {"level": "PATIENT", "PatientID": "P1"}, 0xA900),
        ("ARCHIVE", {"StudyInstanceUID": "7.7.7"}, 0x0000),
    ],
)
def test_what_cannot_be_moved_is_said(
    node: Running, pacs: StandinPacs, destination: str, values: dict[str, str], status: int
) -> None:
    ((answer, _),) = moved(node, destination, **values)
    assert answer.Status == status
    assert pacs.received == []


@pytest.mark.parametrize("destination", ["NOBODY", "SPEECHLESS"])
def test_a_destination_that_is_not_known_is_told_without_our_settings(
    node: Running, caplog: pytest.LogCaptureFixture, destination: str
) -> None:
    ((answer, _),) = moved(node, destination)
    assert answer.ErrorComment == "Move Destination is not known here"
    assert f"no [[peers]] entry with host and port has the AE title '{destination}'" in caplog.text


def test_too_many_objects_are_refused(tmp_path: Path, pacs: StandinPacs) -> None:
    archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
    with answering_node(tmp_path, slices(tmp_path), (archive,), max_matches=2) as node:
        ((answer, _),) = moved(node)
    assert answer.Status == 0xA701


def test_a_cancelled_move_says_what_is_left(
    node: Running, pacs: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()
    receive = DIMSE.receive_primitive

    def listening(self: DIMSE, primitive: Any) -> None:
        receive(self, primitive)
        if self.cancel_req:
            heard.set()

    monkeypatch.setattr(DIMSE, "receive_primitive", listening)
    pacs.status = lambda _class, uid: 0x0000 if uid == UIDS[0] or heard.wait(20) else 0xA700
    answers = []
    with associated(node.port, STUDY_MOVE) as assoc:
        for answer in assoc.send_c_move(keys("STUDY", StudyInstanceUID=STUDY), "ARCHIVE", UID(STUDY_MOVE), 7):
            if not answers:
                assoc.send_c_cancel(7, query_model=UID(STUDY_MOVE))
            answers.append(answer)
    status = answers[-1][0]
    assert status.Status == 0xFE00
    assert (status.NumberOfRemainingSuboperations, counts(status)) == (1, (2, 0, 0))


def test_a_node_that_stops_ends_a_move(tmp_path: Path, pacs: StandinPacs) -> None:
    archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
    with answering_node(tmp_path, slices(tmp_path), (archive,)) as node:
        mover = next(s for s in node.services if isinstance(s, MoveService))

        def stop(_class: str, _uid: str) -> int:
            mover.stop()
            return 0x0000

        pacs.status = stop
        status, _ = moved(node)[-1]
    assert status.Status == 0xA702
    assert "stopping" in status.ErrorComment
    assert pacs.received == UIDS[:1]


def test_a_peer_that_loses_the_right_during_its_move_gets_no_more_moved(
    tmp_path: Path, pacs: StandinPacs
) -> None:
    archive = Peer(name="archive", ae_title="ARCHIVE", host=pacs.host, port=pacs.port, may=())
    with answering_node(tmp_path, slices(tmp_path), (archive,)) as node:

        def lose(_class: str, _uid: str) -> int:
            node.receiver.configure((archive,), Receive(), node.services)
            return 0x0000

        pacs.status = lose
        assert [status.get("Status") for status, _ in moved(node)] == [None]
    assert pacs.received == UIDS[:1]


# ── C-GET ────────────────────────────────────────────────────────────────────────────────────────


def got(
    node: Running,
    syntaxes: list[str],
    status: Callable[[str], int] = lambda _uid: 0x0000,
    roles: bool = True,
    **values: Any,
) -> tuple[list[Any], dict[str, tuple[str, Dataset]]]:
    """Every response to a C-GET, and what came: UID → transfer syntax and object."""
    came: dict[str, tuple[str, Dataset]] = {}

    def keep(event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        came[uid] = str(event.context.transfer_syntax), event.dataset
        return status(uid)

    ae = AE(QUERIER_AE)
    ae.add_requested_context(STUDY_GET)
    for syntax in syntaxes:
        ae.requested_contexts = [*ae.requested_contexts, build_context(CTImageStorage, syntax)]
    assoc = ae.associate(
        "127.0.0.1",
        node.port,
        ae_title=NODE_AE,
        ext_neg=[build_role(CTImageStorage, scp_role=True)] if roles else [],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    answers = list(assoc.send_c_get(keys("STUDY", **{"StudyInstanceUID": STUDY, **values}), UID(STUDY_GET)))
    assoc.release()
    return answers, came


def test_a_get_stores_over_its_own_association(node: Running) -> None:
    answers, came = got(node, [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless])
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0x0000]
    assert counts(answers[-1][0]) == (3, 0, 0)
    expected = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless]
    assert [came[uid][0] for uid in UIDS] == expected


def test_what_the_peer_does_not_take_compressed_is_decompressed(node: Running) -> None:
    answers, came = got(node, [ImplicitVRLittleEndian])
    assert counts(answers[-1][0]) == (3, 0, 0)
    assert {syntax for syntax, _ in came.values()} == {ImplicitVRLittleEndian}
    first, *others = [came[uid][1].PixelData for uid in UIDS]
    assert others == [first, first]
    assert list((node.data_dir / "cache" / "retrieve").iterdir()) == []


def test_a_peer_that_takes_none_gets_none(node: Running) -> None:
    for arguments in ({"syntaxes": [ExplicitVRLittleEndian], "roles": False}, {"syntaxes": []}):
        ((status, identifier),) = [a for a in got(node, **arguments)[0] if a[0].Status != 0xFF00]  # type: ignore[arg-type]
        assert (status.Status, counts(status)) == (0xA702, (0, 3, 0))
        assert list(identifier.FailedSOPInstanceUIDList) == UIDS


def test_what_the_peer_refuses_is_counted(node: Running) -> None:
    answers, _ = got(node, [ExplicitVRLittleEndian], lambda uid: 0xA700 if uid == UIDS[1] else 0xB000)
    status, identifier = answers[-1]
    assert (status.Status, counts(status)) == (0xB000, (0, 1, 2))
    assert identifier.FailedSOPInstanceUIDList == UIDS[1]


def test_a_peer_that_may_get_may_not_store(node: Running) -> None:
    ae = AE(QUERIER_AE)
    ae.add_requested_context(CTImageStorage)
    ae.add_requested_context(STUDY_GET)
    assoc = ae.associate("127.0.0.1", node.port, ae_title=NODE_AE)
    assert [c.abstract_syntax for c in assoc.accepted_contexts] == [STUDY_GET]
    assoc.release()


def test_after_a_get_the_association_serves_the_next_request(node: Running) -> None:
    with associated(node.port, STUDY_GET, STUDY_MOVE) as assoc:
        for _ in range(2):
            answers = list(assoc.send_c_get(keys("STUDY", StudyInstanceUID="7.7"), UID(STUDY_GET)))
            assert [status.Status for status, _ in answers] == [0x0000]


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def held(instance: Instance) -> HeldObject:
    return HeldObject(**{field.name: getattr(instance, field.name) for field in fields(HeldObject)})


def test_a_file_in_an_accepted_syntax_is_not_touched(tmp_path: Path) -> None:
    first = slices(tmp_path)[0]
    with Files(tmp_path, lambda: NOW).fitting(held(first), [ExplicitVRLittleEndian]) as path:
        assert path == tmp_path / first.path


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    dataset = ct_slice(StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=UIDS[0])
    big = held(spooled(tmp_path, dataset, ExplicitVRBigEndian))
    files, explicit = Files(tmp_path, lambda: NOW), [str(ExplicitVRLittleEndian)]
    for accepted, word in (([], "no presentation context"), (explicit, "Big Endian")):
        with pytest.raises(Unsendable, match=word), files.fitting(big, accepted):
            pass
    broken_off = compressed(dataset, JPEGLSLossless)
    broken_off.PixelData = encapsulate([b"no image"])
    broken = held(spooled(tmp_path, broken_off, JPEGLSLossless))
    with (
        pytest.raises(Unsendable, match="cannot be converted"),
        files.fitting(broken, [ExplicitVRLittleEndian]),
    ):
        pass


def a_result(data_dir: Path) -> HeldObject:
    dose = ct_slice(StudyInstanceUID=STUDY, SOPClassUID=RTDoseStorage, SOPInstanceUID=UIDS[0])
    dose.file_meta = FileMetaDataset()
    dose.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = data_dir / "results" / "RTDOSE.dcm"
    path.parent.mkdir(parents=True)
    write_durably(dose, path)
    size_bytes = path.stat().st_size
    where = str(path.relative_to(data_dir))
    return HeldObject(UIDS[0], RTDoseStorage, ExplicitVRLittleEndian, where, size_bytes, "")


@pytest.mark.parametrize(
    ("what", "remedy"), [("input", "have it sent again"), ("result", "`dicomnode retry` its case")]
)
def test_what_the_disk_damaged_is_given_to_nobody(tmp_path: Path, what: str, remedy: str) -> None:
    one = held(slices(tmp_path)[0]) if what == "input" else a_result(tmp_path)
    set_aside: list[str] = []

    def put_aside(paths: Mapping[str, Path], now: float) -> None:
        assert now == NOW
        set_aside.extend(map(str, paths.values()))

    files = Files(tmp_path, lambda: NOW, put_aside)
    path = tmp_path / one.path
    for accepted in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        with files.fitting(one, [accepted]) as sound:
            assert dcmread(sound).SOPInstanceUID == one.sop_instance_uid
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for accepted in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        with pytest.raises(Unsendable) as refused, files.fitting(one, [accepted]):
            pass
        assert f"its file {one.path} is damaged (its checksum is not that of" in str(refused.value)
        assert str(refused.value).count(remedy) == 1
    # A received one makes way for the same object, sent again.
    assert set_aside == ([str(path)] * 2 if what == "input" else [])


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    one = held(slices(tmp_path)[0])
    (tmp_path / one.path).unlink()
    (tmp_path / one.path).mkdir()
    with pytest.raises(Unsendable, match=r"cannot be read \(Is a directory\): check the disk"):
        Files(tmp_path, lambda: NOW).fitting(one, FALLBACKS).__enter__()


def test_a_file_that_is_lost_is_told_from_a_folder_that_is_away(tmp_path: Path) -> None:
    one = held(slices(tmp_path)[0])
    files = Files(tmp_path, lambda: NOW)
    (tmp_path / one.path).unlink()
    with pytest.raises(Unsendable, match="is gone: bring it back, or have it sent again"):
        files.fitting(one, FALLBACKS).__enter__()
    spool = tmp_path / Path(one.path).parts[0]
    spool.rename(tmp_path / "elsewhere")
    with pytest.raises(Unsendable) as refused:
        files.fitting(one, FALLBACKS).__enter__()
    assert str(refused.value) == f"{spool} is away: ask for it again when that is back"


@pytest.mark.parametrize(
    "syntax",
    [DeflatedExplicitVRLittleEndian, JPEGLSLossless, ExplicitVRLittleEndian],
    ids=["deflated", "JPEG", "plain"],
)
def test_what_is_too_large_when_it_is_decoded_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: UID
) -> None:
    """A few kilobytes of a deflated stream may stand for gigabytes in the process that receives."""
    dataset = ct_slice(StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=UIDS[0])
    dataset.PixelData = bytes(len(dataset.PixelData))
    written = compressed(dataset, syntax) if syntax.is_encapsulated else dataset
    there = held(spooled(tmp_path, written, syntax))
    files = Files(tmp_path, lambda: NOW)
    decoded = len(encoded(dataset))
    monkeypatch.setattr("dicomnode.query.objects.LARGEST_BYTES", decoded * 2)
    with files.fitting(there, [ImplicitVRLittleEndian]) as path:
        assert dcmread(path).PixelData == dataset.PixelData
    monkeypatch.setattr("dicomnode.query.objects.LARGEST_BYTES", len(dataset.PixelData) // 2)
    with (
        pytest.raises(Unsendable, match="too large to be converted"),
        files.fitting(there, [ImplicitVRLittleEndian]),
    ):
        pass


def test_a_conversion_waits_for_its_turn_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "TURN_WITHIN_S", 0.0)
    ours = held(slices(tmp_path)[2])
    files = Files(tmp_path, lambda: NOW)
    with objects._turn, pytest.raises(Unsendable, match="ask for it again later"):
        files.fitting(ours, FALLBACKS).__enter__()
    with files.fitting(ours, FALLBACKS) as path:
        assert dcmread(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_what_a_killed_node_left_of_conversions_goes_a_day_later(tmp_path: Path) -> None:
    left, busy = (tmp_path / "cache" / "retrieve" / name / "object.dcm" for name in ("old", "new"))
    for path, at in ((left, NOW - 90000), (busy, NOW - 60)):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        os.utime(path.parent, (at, at))
    Files(tmp_path, lambda: NOW)
    assert (left.exists(), busy.exists()) == (False, True)
