"""Pushed by DCMTK, computed by the running node, delivered into Orthanc, fetched and judged by others."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from dicomnode.results.summary_report import read_table
from dicomnode.states import State
from dicomnode.virtual_study import NM_VARIANTS, NmStyle, StudyFiles, recompress, tilted
from pipeline.simulate.cube import inside_box
from pipeline.volume import Volume
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, acknowledged, push, start_push

pytestmark = pytest.mark.peers
Find = Callable[[str], str]

# Off every axis and off the middle, so that no mirrored or swapped axis can hide.
OFF_CENTRE_MM = (33.0, -21.0, 17.0)


def delivered(pacs: Orthanc, find: Find, files: StudyFiles, into: Path) -> dict[str, pydicom.FileDataset]:
    """The results of a study, found by C-FIND and fetched by C-MOVE: modality → object."""
    uid = files.study.study_instance_uid
    counts = pacs.held(uid)
    assert counts == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    moved = pacs.move(find("movescu"), uid, into)
    objects = [pydicom.dcmread(path) for path in moved]
    return {ds.Modality: ds for ds in objects}


def cube_study(folder: Path, name: str, style: NmStyle) -> StudyFiles:
    """A hot cube in an otherwise cold body; the SPECT's grid is turned for the variant 'tilted'."""
    grid = small_study.SPECT_GRID
    if name == "tilted":
        grid = tilted(grid, 1.7, -0.9)
    array = np.zeros(grid.shape, np.float32)
    array[inside_box(grid, OFF_CENTRE_MM, (24.0, 24.0, 24.0))] = 3e5
    return small_study.write(
        folder, f"cube {name}", spect=Volume(array, grid, "Bq/mL"), nm_style=style, rois=None
    )


def position_of_the_hot_voxels(path: Path) -> NDArray[np.float64]:
    """Their centroid by the formulas of PS3.3 C.7.6.2.1.1 and C.8.4.15, from the file's own attributes."""
    ds = pydicom.dcmread(path)
    detector = ds.DetectorInformationSequence[0]
    row, column = np.array(detector.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    frames, rows, columns = np.nonzero(ds.pixel_array > ds.pixel_array.max() / 2)
    slices = np.asarray(ds.SliceVector)[frames] - 1 if "SliceVector" in ds else frames
    between_rows, between_columns = (float(v) for v in ds.PixelSpacing)
    return np.asarray(
        np.array(detector.ImagePositionPatient, float)
        + columns.mean() * between_columns * row
        + rows.mean() * between_rows * column
        + slices.mean() * float(ds.SpacingBetweenSlices) * normal
    )


def position_of_the_hot_dose(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(centroid of what exceeds half the maximum, voxel size), mm (x, y, z), as SimpleITK reads it."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    where = np.argwhere(array > array.max() / 2).mean(axis=0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(where.tolist())), np.array(
        image.GetSpacing()
    )


@pytest.fixture(scope="module")
def whole(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudyFiles, dict[str, pydicom.FileDataset], Path]:
    """One study, pushed over several associations at once, out of order and with repeats."""
    files = small_study.write(tmp_path_factory.mktemp("whole"), "journey")
    shuffled = random.Random(7).sample(files.all, len(files.all))
    parts = [shuffled[0::3], shuffled[1::3] + shuffled[:4], shuffled[2::3] + shuffled[:2]]
    pushes = [start_push(peer_program("storescu"), node.port, part) for part in parts]
    for process, part in zip(pushes, parts, strict=True):
        output = process.communicate(timeout=120)[0].decode()
        assert len(acknowledged(output, part)) == len(set(part)) or "Failed" not in output, output
    node.reaches(files.study.study_instance_uid, State.DONE)
    into = tmp_path_factory.mktemp("moved")
    return files, delivered(pacs, peer_program, files, into), into


def test_a_study_from_several_associations_gives_one_set_of_results(
    node: Node, whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path]
) -> None:
    files, results, _ = whole
    case = node.case(files.study.study_instance_uid)
    assert case is not None
    assert case.identity.nuclide == "Lu-177"
    assert {ds.PatientID for ds in results.values()} == {files.study.identity.patient_id}
    assert {ds.StudyInstanceUID for ds in results.values()} == {files.study.study_instance_uid}


def activity_within_the_ct_mbq() -> float:
    """The SPECT reaches beyond the CT at both ends, where it is the same from slice to slice."""
    spect, ct = small_study.SPECT_GRID, small_study.CT_GRID
    by_slice = small_study.activity().array.sum(axis=(1, 2), dtype=float)
    missing_slices = spect.shape[0] - ct.shape[0] * ct.spacing_mm[0] / spect.spacing_mm[0]
    return float(by_slice.sum() - missing_slices * by_slice[0]) * spect.voxel_volume_ml / 1e6


def test_the_report_says_what_was_put_in(
    whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path],
) -> None:
    """Activity and volume of the drawn cube, and the dose rate of a cube that absorbs its electrons."""
    _, results, _ = whole
    rows = {row.roi: row for row in read_table(results["SR"])}
    assert set(rows) == {"Body", "Field of view", "hot cube"}
    cube_ml = float(np.prod(small_study.CUBE_MM)) / 1000
    assert rows["hot cube"].volume_ml == pytest.approx(cube_ml, rel=0.2)  # 7 x 8 voxels of 4 mm for 30 mm
    assert rows["Field of view"].activity_mbq == pytest.approx(activity_within_the_ct_mbq(), rel=0.01)
    # All electrons absorbed: 0.08532 Gy/h per MBq/g (ICRP 107); photons add a few per cent, edges take some.
    plateau = 85.32 * small_study.HOT_BQ_PER_ML / 1e6 / 1.04
    assert 0.97 * plateau < rows["hot cube"].dr10 < 1.06 * plateau


def test_rtdose_and_report_agree(whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path]) -> None:
    _, results, _ = whole
    dose = results["RTDOSE"]
    highest = float(dose.pixel_array.max()) * float(dose.DoseGridScaling) * 1000
    rows = {row.roi: row for row in read_table(results["SR"])}
    assert rows["Body"].maximum == pytest.approx(highest, rel=1e-6)


def test_the_results_pass_the_validators(
    whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path], peer_program: Find, tmp_path: Path
) -> None:
    _, results, into = whole
    for path in sorted(into.iterdir()):
        verdict = subprocess.run(
            [peer_program("dcmftest"), path], capture_output=True, text=True, check=False
        )
        assert verdict.stdout.startswith("yes:"), verdict.stdout
    for modality in ("RTDOSE", "SEG", "SR"):
        path = tmp_path / f"{modality}.dcm"
        judged = sixteen_bits(results[modality]) if modality == "RTDOSE" else results[modality]
        judged.save_as(path)
        verdict = subprocess.run(
            [peer_program("dciodvfy"), "-new", path], capture_output=True, text=True, check=False
        )
        errors = [line for line in verdict.stderr.splitlines() if line.startswith("Error")]
        assert not errors, errors
    verdict = subprocess.run(
        [peer_program("dsrdump"), tmp_path / "SR.dcm"], capture_output=True, text=True, check=False
    )
    assert verdict.returncode == 0
    # Its one warning is about itself: this build cannot check texts in UTF-8.
    said = [
        line
        for line in verdict.stderr.splitlines()
        if "does not support this Specific Character Set" not in line
    ]
    assert not said, said


def sixteen_bits(dose: pydicom.FileDataset) -> pydicom.FileDataset:
    """A copy for dciodvfy, which aborts on 32-bit pixels; everything else stays as it is."""
    copy = pydicom.dcmread(dose.filename)
    copy.PixelData = (copy.pixel_array >> 16).astype(np.uint16).tobytes()
    copy.BitsAllocated = copy.BitsStored = 16
    copy.HighBit = 15
    return copy


@pytest.fixture(scope="module")
def variants(
    node: Node, peer_program: Find, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, StudyFiles]:
    """A study for every way in which cameras write a SPECT, all pushed before the first is looked at."""
    styles = NM_VARIANTS | {"tilted": replace(NM_VARIANTS["feet to head"])}
    made = {}
    for name, style in styles.items():
        made[name] = cube_study(tmp_path_factory.mktemp("variant"), name, style)
        push(peer_program("storescu"), node.port, made[name].all)
    return made


@pytest.mark.parametrize("name", [*NM_VARIANTS, "tilted"])
def test_a_hot_cube_appears_where_it_is_for_every_way_of_writing_a_spect(
    name: str,
    variants: dict[str, StudyFiles],
    node: Node,
    pacs: Orthanc,
    peer_program: Find,
    tmp_path: Path,
) -> None:
    files = variants[name]
    assert files.nm is not None
    node.reaches(files.study.study_instance_uid, State.DONE, timeout_s=240)
    dose = delivered(pacs, peer_program, files, tmp_path)["RTDOSE"]
    expected = position_of_the_hot_voxels(files.nm)
    found, voxel = position_of_the_hot_dose(Path(str(dose.filename)))
    assert np.all(np.abs(found - expected) <= voxel / 2), (found, expected)
    # The SPECT's voxels have centres within half of theirs of where the cube was drawn.
    assert np.all(np.abs(expected - OFF_CENTRE_MM) <= 2.4 + 1e-6)


@pytest.mark.parametrize(
    ("syntax", "option"), [(JPEGLSLossless, "-xt"), (JPEG2000Lossless, "-xv")], ids=["JPEG-LS", "JPEG 2000"]
)
def test_a_compressed_ct_gives_the_same_dose_as_an_uncompressed_one(
    syntax: str,
    option: str,
    node: Node,
    pacs: Orthanc,
    peer_program: Find,
    whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path],
    tmp_path: Path,
) -> None:
    files = small_study.write(tmp_path / "study", f"compressed {option}")
    recompress(files.ct, syntax)
    acked = push(peer_program("storescu"), node.port, files.ct, option)
    acked += push(peer_program("storescu"), node.port, [p for p in files.all if p not in files.ct])
    assert len(acked) == len(files.all)
    node.reaches(files.study.study_instance_uid, State.DONE)
    dose = delivered(pacs, peer_program, files, tmp_path / "moved")["RTDOSE"]
    reference = whole[1]["RTDOSE"]
    assert np.array_equal(dose.pixel_array, reference.pixel_array)
    assert dose.DoseGridScaling == reference.DoseGridScaling


def test_dcmsend_and_a_resend_of_the_whole_study_change_nothing(
    node: Node,
    pacs: Orthanc,
    peer_program: Find,
    whole: tuple[StudyFiles, dict[str, pydicom.FileDataset], Path],
) -> None:
    files, _, _ = whole
    subprocess.run(
        [
            peer_program("dcmsend"), "-aet", "MODALITY", "-aec", "DICOMNODE", "127.0.0.1", str(node.port),
            *map(str, files.all),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    case = node.reaches(files.study.study_instance_uid, State.DONE)
    assert [t.to_state for t in node.story(case.id)].count(State.DONE) == 1
    assert pacs.held(files.study.study_instance_uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_a_late_object_makes_a_new_result_that_names_the_old_one(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "late ROIs")
    assert files.rtstruct is not None
    storescu = peer_program("storescu")
    push(storescu, node.port, [p for p in files.all if p != files.rtstruct])
    uid = files.study.study_instance_uid
    node.reaches(uid, State.DONE)
    push(storescu, node.port, [files.rtstruct])
    node.reaches(uid, State.COLLECTING)
    node.reaches(uid, State.DONE)
    assert pacs.held(uid) == {"RTDOSE": 2, "SEG": 2, "SR": 2}
    reports = [
        ds for ds in map(pydicom.dcmread, pacs.move(peer_program("movescu"), uid, tmp_path / "moved"))
        if ds.Modality == "SR"
    ]  # fmt: skip
    first = next(ds for ds in reports if "PredecessorDocumentsSequence" not in ds)
    second = next(ds for ds in reports if ds is not first)
    named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert {row.roi for row in read_table(second)} == {"Body", "Field of view", "hot cube"}
