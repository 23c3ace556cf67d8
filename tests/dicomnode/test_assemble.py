"""When a study is looked at, and what follows. The clock is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicomnode.assemble import Assembler
from dicomnode.config import Assemble
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Inputs, Instance
from dicomnode.selection import Header, read_header
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


def stranger(files: StudyFiles, path: str) -> Instance:
    """The only object of another study."""
    other = instance(files.ct[0], files.folder.parent, 0.0)
    return replace(other, study_instance_uid="1.2.3", sop_instance_uid="1.2.3.4", path=path)


def failing(monkeypatch: pytest.MonkeyPatch, path: str, error: Exception) -> None:
    """Reading the object at `path` raises `error`; others are read."""

    def read(file: Path, name: str | None = None) -> Header:
        if name == path:
            raise error
        return read_header(file, name)

    monkeypatch.setattr("dicomnode.assemble.read_header", read)


def states(ledger: Ledger) -> dict[str, Case]:
    return {case.study_instance_uid: case for case in ledger.cases()}


def test_an_unreadable_spool_is_tried_again_and_no_other_case_waits(
    ledger: Ledger, assembler: Assembler, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stranger(files, str(files.ct[0].relative_to(files.folder.parent)).replace("/", "//", 1))
    failing(monkeypatch, other.path, OSError("input/output error"))
    ledger.add_instances([other], 0.0)
    ledger.add_instances(received(files.all, files.folder.parent, 0.0), 0.0)
    assembler.tick(60.0)
    assert states(ledger)["1.2.3"].state is State.COLLECTING
    assert states(ledger)[str(files.study.study_instance_uid)].state is State.READY


def test_a_case_that_breaks_the_reading_is_held_and_no_other_case_waits(
    ledger: Ledger, assembler: Assembler, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stranger(files, str(files.ct[0].relative_to(files.folder.parent)).replace("/", "//", 1))
    failing(monkeypatch, other.path, ValueError("could not convert string to float"))
    ledger.add_instances([other], 0.0)
    ledger.add_instances(received(files.all, files.folder.parent, 0.0), 0.0)
    assembler.tick(60.0)
    held = states(ledger)["1.2.3"]
    assert held.state is State.HELD
    assert "could not convert" in held.reason
    assert f"`dicomnode retry {held.id}`" in held.remedy
    assert states(ledger)[str(files.study.study_instance_uid)].state is State.READY


def test_what_was_missing_and_comes_while_a_case_is_looked_at_keeps_it_from_being_held(
    ledger: Ledger, assembler: Assembler, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(ledger, files, files.ct, at=0.0)
    assembler.tick(60.0)
    rejected = ledger.rejected

    def after_the_rest_has_come(*args: Any) -> Case | None:
        arrive(ledger, files, [p for p in files.all if p not in files.ct], at=3600.0)
        return rejected(*args)

    monkeypatch.setattr(ledger, "rejected", after_the_rest_has_come)
    assembler.tick(3600.0)
    assert state(ledger) is State.COLLECTING
    assembler.tick(3660.0)
    assert state(ledger) is State.READY


def test_files_that_were_removed_by_hand_hold_the_case_and_say_which(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    ledger.add_instances([stranger(files, "spool/gone.dcm")], 0.0)
    assembler.tick(60.0)
    held = ledger.cases()[0]
    assert held.state is State.HELD
    assert held.reason == "1 of 1 received files are gone from data_dir: spool/gone.dcm"
    assert f"send the study again, then `dicomnode retry {held.id}`" in held.remedy


def test_a_clock_that_was_set_back_delays_a_study_by_one_quiet_period(
    ledger: Ledger, assembler: Assembler, files: StudyFiles
) -> None:
    """The objects came while the clock was a year ahead."""
    arrive(ledger, files, files.all, at=1e9 + 3e7)
    assembler.tick(1e9)
    assembler.tick(1e9 + 59)
    assert state(ledger) is State.COLLECTING
    assembler.tick(1e9 + 60)
    assert state(ledger) is State.READY


def test_an_object_is_noticed_by_an_assembly_under_way_though_the_clock_was_set_back(
    ledger: Ledger, assembler: Assembler, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(ledger, files, files.all[:-1], at=1000.0)
    late = received(files.all[-1:], files.folder.parent, 10.0)

    def read(file: Path, name: str | None = None) -> Header:
        ledger.add_instances(late, 10.0)
        return read_header(file, name)

    monkeypatch.setattr("dicomnode.assemble.read_header", read)
    assembler.tick(1060.0)
    assert state(ledger) is State.COLLECTING
