"""When a study is looked at, and what follows. The clock is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from dicomnode.assemble import Assembler
from dicomnode.config import Assemble
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Inputs, Instance
from dicomnode.states import Event, State
from dicomnode.virtual_study import StudyFiles
from tests import small_study

SETTINGS = Assemble(quiet_s=60, max_wait_s=3600)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return small_study.write(tmp_path_factory.mktemp("data") / "spool")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield ledger
    ledger.close()


@pytest.fixture
def assembler(ledger: Ledger, files: StudyFiles) -> Assembler:
    return Assembler(SETTINGS, (), ledger, files.folder.parent)


def received(paths: Sequence[Path], data_dir: Path, at: float) -> list[Instance]:
    return [instance(path, data_dir, at) for path in paths]


def instance(path: Path, data_dir: Path, at: float) -> Instance:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return Instance(
        sop_instance_uid=ds.SOPInstanceUID,
        sop_class_uid=ds.SOPClassUID,
        study_instance_uid=ds.StudyInstanceUID,
        series_instance_uid=ds.SeriesInstanceUID,
        modality=ds.Modality,
        transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
        patient_id=ds.PatientID,
        issuer_of_patient_id=ds.get("IssuerOfPatientID", ""),
        accession_number=ds.AccessionNumber,
        path=str(path.relative_to(data_dir)),
        size_bytes=path.stat().st_size,
        peer="MODALITY",
        received_at=at,
    )


def arrive(ledger: Ledger, files: StudyFiles, paths: Sequence[Path], at: float) -> Case:
    ledger.add_instances(received(paths, files.folder.parent, at), at)
    return ledger.cases()[0]


def state(ledger: Ledger) -> State:
    return ledger.cases()[0].state


def test_a_complete_study_is_ready_after_the_quiet_period_and_not_before(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    arrive(ledger, files, files.all, at=100.0)
    assembler.tick(159.9)
    assert state(ledger) is State.COLLECTING
    assembler.tick(160.0)
    case = ledger.cases()[0]
    assert case.state is State.READY
    inputs = Inputs.from_json(case.inputs_json)
    assert (len(inputs.ct), len(inputs.spect), len(inputs.rois)) == (24, 1, 1)
    assert case.identity.nuclide == "Lu-177"
    assert case.identity.administered_activity_bq == pytest.approx(7.4e9)
    assert case.identity.administered_at is not None


def test_every_new_object_begins_the_quiet_period_anew(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    arrive(ledger, files, files.all[:-1], at=100.0)
    arrive(ledger, files, files.all[-1:], at=150.0)
    assembler.tick(160.0)
    assert state(ledger) is State.COLLECTING
    assembler.tick(210.0)
    assert state(ledger) is State.READY


def test_what_is_missing_is_waited_for_and_then_held(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    arrive(ledger, files, files.ct, at=0.0)
    assembler.tick(60.0)
    assembler.tick(3599.0)
    assert state(ledger) is State.COLLECTING
    assembler.tick(3600.0)
    case = ledger.cases()[0]
    assert case.state is State.HELD
    assert "no SPECT" in case.reason
    assert "waited 3600 s" in case.reason
    assert "Send the reconstructed SPECT" in case.remedy


def test_what_was_missing_ends_the_hold_when_it_arrives(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    arrive(ledger, files, files.ct, at=0.0)
    assembler.tick(60.0)
    assembler.tick(3600.0)
    assert files.nm is not None
    arrive(ledger, files, [files.nm], at=90000.0)
    assert state(ledger) is State.COLLECTING
    assembler.tick(90060.0)
    assert state(ledger) is State.READY


def test_headers_are_not_read_again_while_nothing_new_has_come(
    ledger: Ledger, assembler: Assembler, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(ledger, files, files.ct, at=0.0)
    assembler.tick(60.0)
    monkeypatch.setattr("dicomnode.assemble.read_header", lambda *_: pytest.fail("read again"))
    assembler.tick(61.0)
    assert state(ledger) is State.COLLECTING


def test_what_is_unsafe_is_held_at_once(ledger: Ledger, assembler: Assembler, files: StudyFiles) -> None:
    case = arrive(ledger, files, files.all, at=0.0)
    ledger.conflict(case.study_instance_uid, "the same SOP Instance UID came with other pixels", 1.0)
    assembler.tick(61.0)
    case = ledger.cases()[0]
    assert case.state is State.HELD
    assert "other pixels" in case.reason
    assert "dicomnode retry" in case.remedy


def test_a_retry_goes_on_in_spite_of_the_conflict(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    case = arrive(ledger, files, files.all, at=0.0)
    ledger.conflict(case.study_instance_uid, "other pixels", 1.0)
    assembler.tick(61.0)
    ledger.apply(case.id, Event.RETRY, 70.0, conflict="", inputs_sha256="")
    assembler.tick(71.0)
    assert state(ledger) is State.READY


def test_an_unreadable_spool_is_tried_again_and_no_other_case_waits(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    lost = instance(files.ct[0], files.folder.parent, 0.0)
    lost = replace(lost, study_instance_uid="1.2.3", sop_instance_uid="1.2.3.4", path="gone.dcm")
    ledger.add_instances([lost], 0.0)
    ledger.add_instances(received(files.all, files.folder.parent, 0.0), 0.0)
    assembler.tick(60.0)
    states = {case.study_instance_uid: case.state for case in ledger.cases()}
    assert states["1.2.3"] is State.COLLECTING
    assert states[str(files.study.study_instance_uid)] is State.READY
