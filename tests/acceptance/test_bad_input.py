"""What a person reads when something is wrong: in the log, in `show`, in the held case; nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dicomnode.states import State
from dicomnode.virtual_study import Identity, Injection, StudyFiles
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, push

pytestmark = pytest.mark.peers
Find = Callable[[str], str]
Spoil = Callable[[StudyFiles, Path], list[Path]]


def altered(path: Path, **attributes: object) -> None:
    ds = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)


def nm_of(files: StudyFiles) -> Path:
    assert files.nm is not None
    return files.nm


def without_ct(files: StudyFiles, _folder: Path) -> list[Path]:
    return [nm_of(files)]


def without_spect(files: StudyFiles, _folder: Path) -> list[Path]:
    return files.ct


def missing_slice(files: StudyFiles, _folder: Path) -> list[Path]:
    return [p for p in files.all if p != files.ct[9]]


def other_frame_of_reference(files: StudyFiles, _folder: Path) -> list[Path]:
    altered(nm_of(files), FrameOfReferenceUID=generate_uid())
    return files.all


def another_spect(files: StudyFiles, folder: Path) -> list[Path]:
    twin = folder / "twin.dcm"
    twin.write_bytes(nm_of(files).read_bytes())
    altered(twin, SeriesInstanceUID=generate_uid(), SOPInstanceUID=generate_uid())
    return [*files.all, twin]


def counts(files: StudyFiles, _folder: Path) -> list[Path]:
    altered(nm_of(files), RealWorldValueMappingSequence=None)
    return files.all


def no_nuclide(files: StudyFiles, _folder: Path) -> list[Path]:
    altered(nm_of(files), RadiopharmaceuticalInformationSequence=pydicom.Sequence())
    return files.all


def uncorrected(files: StudyFiles, _folder: Path) -> list[Path]:
    altered(nm_of(files), CorrectedImage=["DECY"])
    return files.all


def no_position(files: StudyFiles, _folder: Path) -> list[Path]:
    ds = pydicom.dcmread(nm_of(files))
    del ds.DetectorInformationSequence[0].ImagePositionPatient
    ds.save_as(nm_of(files), enforce_file_format=True)
    return files.all


def empty_image(files: StudyFiles, _folder: Path) -> list[Path]:
    ds = pydicom.dcmread(nm_of(files))
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(nm_of(files), enforce_file_format=True)
    return files.all


def two_patients(files: StudyFiles, _folder: Path) -> list[Path]:
    altered(nm_of(files), PatientID="SOMEBODY-ELSE")
    return files.all


CASES: list[tuple[str, Spoil, str, str]] = [
    ("SPECT without CT", without_ct, "SPECT without CT", "Send the CT"),
    ("CT without SPECT", without_spect, "no SPECT", "Send the reconstructed SPECT"),
    ("a missing slice", missing_slice, "missing", ""),
    ("mixed frames of reference", other_frame_of_reference, "mixed frames of reference", "Registration"),
    ("two SPECT candidates", another_spect, "2 SPECT series fit", "prefer_spect"),
    ("no calibration", counts, "no calibration for camera", "[[camera]]"),
    ("no nuclide", no_nuclide, "names no radionuclide", "[[camera]]"),
    ("an uncorrected SPECT", uncorrected, "lacks ATTN and SCAT", "require_corrected"),
    ("no position", no_position, "ImagePositionPatient", ""),
    ("an empty image", empty_image, "is empty: every voxel is 0", ""),
    ("two patients", two_patients, "two patients under one Study Instance UID", "discard"),
]


@pytest.fixture(scope="module")
def studies(
    node: Node, peer_program: Find, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[StudyFiles, list[Path]]]:
    """Every bad study, all pushed before the first is looked at. name → (study, what was pushed)."""
    made = {}
    for name, spoil, _, _ in CASES:
        folder = tmp_path_factory.mktemp("bad")
        files = small_study.write(folder / "study", name, rois=None)
        pushed = spoil(files, folder)
        assert len(push(peer_program("storescu"), node.port, pushed)) == len(pushed)
        made[name] = files, pushed
    return made


@pytest.mark.parametrize(
    ("name", "reason", "remedy"), [(n, r, m) for n, _, r, m in CASES], ids=[c[0] for c in CASES]
)
def test_a_bad_study_is_held_with_reason_and_remedy_and_nothing_is_lost(
    name: str,
    reason: str,
    remedy: str,
    studies: dict[str, tuple[StudyFiles, list[Path]]],
    node: Node,
    pacs: Orthanc,
) -> None:
    files, pushed = studies[name]
    uid = files.study.study_instance_uid
    case = node.reaches(uid, State.HELD, State.DONE, State.FAILED)
    assert case.state is State.HELD, case
    assert reason in case.reason
    assert case.remedy
    assert remedy in case.remedy
    shown = " ".join(node.run("show", str(case.id)).stdout.split())
    assert " ".join(case.reason.split()) in shown
    assert " ".join(case.remedy.split()) in shown
    node.says(f"case {case.id} is HELD: {case.reason}")
    assert len(list((node.data_dir / "spool" / uid).glob("*.dcm"))) == len(pushed)
    assert pacs.held(uid) == {}


def test_a_held_case_goes_on_by_itself_when_what_it_lacked_arrives(
    studies: dict[str, tuple[StudyFiles, list[Path]]], node: Node, peer_program: Find
) -> None:
    files, _ = studies["SPECT without CT"]
    uid = files.study.study_instance_uid
    node.reaches(uid, State.HELD)
    push(peer_program("storescu"), node.port, files.ct)
    node.reaches(uid, State.DONE)


def test_a_person_sets_the_wrong_series_aside_and_the_case_is_done(
    studies: dict[str, tuple[StudyFiles, list[Path]]], node: Node
) -> None:
    """The way out of a tie that the message names: discard, then retry."""
    files, pushed = studies["two SPECT candidates"]
    uid = files.study.study_instance_uid
    case = node.reaches(uid, State.HELD)
    twin = pydicom.dcmread(pushed[-1], stop_before_pixels=True)
    said = node.run("discard", str(case.id), "--series", twin.SeriesInstanceUID)
    assert "1 object(s) of that series are set aside" in " ".join(said.stdout.split()), said
    assert node.run("retry", str(case.id)).returncode == 0
    node.reaches(uid, State.DONE)


def test_more_activity_than_was_administered_is_held(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "too much", injection=Injection(administered_bq=2e7), rois=None)
    push(peer_program("storescu"), node.port, files.all)
    case = node.reaches(files.study.study_instance_uid, State.HELD, State.DONE)
    assert "more activity than was administered" in case.reason
    assert "sensitivity" in case.remedy
    assert pacs.held(files.study.study_instance_uid) == {}


@pytest.mark.parametrize("value", [np.nan, -1.0], ids=["NaN", "negative"])
def test_activity_that_cannot_be_is_held(
    value: float, node: Node, peer_program: Find, tmp_path: Path
) -> None:
    """A mapping whose intercept makes every voxel impossible: the pixels of NM are integers."""
    files = small_study.write(tmp_path / "study", f"impossible {value}", rois=None)
    ds = pydicom.dcmread(nm_of(files))
    ds.RealWorldValueMappingSequence[0].RealWorldValueIntercept = -1e5 if value < 0 else float("nan")
    ds.save_as(nm_of(files), enforce_file_format=True)
    push(peer_program("storescu"), node.port, files.all)
    case = node.reaches(files.study.study_instance_uid, State.HELD, State.DONE)
    assert case.state is State.HELD
    assert ("negative" if value < 0 else "RealWorldValueIntercept") in case.reason


def test_another_modality_and_an_unknown_caller_are_refused_at_the_door(
    node: Node, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "refused", rois=None)
    refused = subprocess.run(
        [
            peer_program("storescu"), "-aet", "STRANGER", "-aec", "DICOMNODE",
            "127.0.0.1", str(node.port), files.ct[0],
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "Calling AE Title Not Recognized" in refused.stderr
    node.says("'STRANGER'")
    called = subprocess.run(
        [peer_program("echoscu"), "-aet", "MODALITY", "-aec", "WRONG", "127.0.0.1", str(node.port)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Called AE Title Not Recognized" in called.stderr
    # Magnetic resonance is no storage class of ours.
    altered(files.ct[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    assert push(peer_program("storescu"), node.port, [files.ct[0]]) == []
    assert not (node.data_dir / "spool" / files.study.study_instance_uid).exists()


def test_a_message_that_contradicts_another_is_quarantined_and_the_case_held(
    node: Node, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "contradiction", rois=None)
    uid = files.study.study_instance_uid
    storescu = peer_program("storescu")
    push(storescu, node.port, files.all)
    node.reaches(uid, State.DONE)
    ds = pydicom.dcmread(files.ct[3])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(files.ct[3], enforce_file_format=True)
    assert push(storescu, node.port, [files.ct[3]]) == []
    case = node.reaches(uid, State.HELD)
    assert "quarantine" in node.run("show", str(case.id)).stdout
    assert node.run("retry", str(case.id)).returncode == 0
    node.reaches(uid, State.DONE)


def test_identity_follows_the_study(node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path) -> None:
    """A name beyond ASCII comes back as it went in."""
    who = Identity(patient_name="Müller^Jürgen=山田^太郎", patient_id="ÄÖ-7", accession_number="A-77")
    files = small_study.write(tmp_path / "study", "umlaut", identity=who, rois=None)
    push(peer_program("storescu"), node.port, files.all)
    node.reaches(files.study.study_instance_uid, State.DONE)
    for path in pacs.move(peer_program("movescu"), files.study.study_instance_uid, tmp_path / "moved"):
        ds = pydicom.dcmread(path)
        assert (str(ds.PatientName), ds.PatientID, ds.AccessionNumber) == (
            who.patient_name, who.patient_id, who.accession_number,
        )  # fmt: skip
