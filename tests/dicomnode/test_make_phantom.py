"""`dicomnode make-phantom` on a PET/CT in DICOM: what it writes, what it tells, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pydicom import Dataset, dcmread
from rich.console import Console

from dicomnode.commands.make_phantom import make_phantom
from dicomnode.errors import ConfigurationError
from dicomnode.virtual_study import CtStyle, Identity, Injection, Study, StudyFiles, write_ct, write_study
from pipeline.errors import InputRejected
from pipeline.learning import scene as scenes
from pipeline.learning.example import load_volume
from pipeline.simulate.camera import medium_energy_lu177
from pipeline.volume import Grid, Volume
from tests.pipeline.datasets import code, spatial_registration

CT = Grid((24, 40, 48), (-141.0, -117.0, -57.5), (5.0, 6.0, 6.0))
PET = Grid((32, 30, 36), (-143.5, -120.0, -62.0), (4.0, 8.2, 8.2))
CENTRE, RADIUS = (30.0, -12.0, 5.0), 32.0
HOT, WARM = 4e4, 1e3
PATIENT = Identity(patient_name="Muster^Maria", patient_id="HX-4711")
STUDY = Study(seed="phantom", identity=PATIENT, injection=Injection(hours_before=1.0))


def at(grid: Grid) -> Any:
    return grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1))


def ball(grid: Grid) -> Any:
    return np.linalg.norm(at(grid) - np.asarray(CENTRE), axis=-1) < RADIUS


def within(grid: Grid, half_mm: float) -> Any:
    return (at(grid)[..., 0] / half_mm) ** 2 + (at(grid)[..., 1] / (0.8 * half_mm)) ** 2 < 1


def change(files: list[Path], how: Callable[[Dataset], None]) -> None:
    for path in files:
        dataset = dcmread(path)
        how(dataset)
        dataset.save_as(path)


def as_gallium(dataset: Dataset) -> None:
    item = dataset.RadiopharmaceuticalInformationSequence[0]
    item.RadionuclideCodeSequence = [code("C-131A3", "SRT", "^68^Gallium")]


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    hu = np.where(within(CT, 120), 14.0, -1000.0)
    hu[ball(CT)] = 100.0
    tracer = np.where(within(PET, 90), WARM, 0.0)
    tracer[ball(PET)] = HOT
    written = write_study(
        tmp_path / "study",
        STUDY,
        ct=Volume(hu.astype(np.float32), CT, "HU"),
        pet=Volume(tracer.astype(np.float32), PET, "Bq/mL"),
        rois={"left kidney": ball(CT), "empty": np.zeros(CT.shape, bool)},
    )
    change(written.pet, as_gallium)
    return written


def run(files: StudyFiles, **given: Any) -> tuple[Path, str]:
    words = StringIO()
    console = Console(file=words, width=400)
    folder = make_phantom(files.folder, files.folder.parent / "out", console, **given)
    return folder, words.getvalue()


def refused(files: StudyFiles, text: str, kind: type[Exception] = InputRejected, **given: Any) -> str:
    with pytest.raises(kind, match=text) as told:
        run(files, **given)
    assert not (files.folder.parent / "out").exists()
    return str(told.value)


def account(folder: Path) -> Any:
    return json.loads((folder / "phantom.json").read_text(encoding="utf-8"))


def test_a_pet_ct_becomes_a_patient_that_training_takes(files: StudyFiles) -> None:
    folder, words = run(files, name="p 1", activity_mbq=800.0)
    assert folder == files.folder.parent / "out" / "p 1"
    activity = load_volume(folder / "activity.npz", "Bq/mL")
    density = load_volume(folder / "density.npz", "g/cm3")
    mask = load_volume(folder / "vois" / "left kidney.npz", "1").array == 1
    total = activity.array.sum(dtype=np.float64) * activity.grid.voxel_volume_ml
    assert total == pytest.approx(800e6, rel=1e-5)
    assert activity.grid.same_as(replace(CT, frame_of_reference_uid=""))
    hot = np.where(activity.array > 0.5 * activity.array.max(), activity.array, 0.0)
    centroid = (hot[..., None] * at(activity.grid)).sum(axis=(0, 1, 2)) / hot.sum()
    assert_allclose(centroid, at(PET)[ball(PET)].mean(axis=0), atol=1.5)
    assert_allclose(density.array[ball(CT)], 1.076, atol=1e-6)
    assert_allclose(density.array[within(CT, 120) & ~ball(CT)], 1.030, atol=1e-6)
    assert np.mean(mask == ball(CT)) > 0.999
    patient = scenes.Patient("p 1", "train", 1, "given", "given")
    scene = scenes.given_scene(folder, patient, medium_energy_lu177())
    assert scene.activity.array.sum() * scene.activity.grid.voxel_volume_ml == pytest.approx(8e8, rel=0.02)
    assert list(scene.vois) == ["left kidney"]
    assert "^68^Gallium, 1 h after the injection" in words
    assert "scaled to 800 MBq of Lu-177" in words
    assert "'empty' (2)" in words


def test_the_account_says_what_was_done_and_names_nobody(files: StudyFiles) -> None:
    folder, _ = run(files, rescale=["Left Kidney=0.5"], nuclide="177Lu")
    told = account(folder)
    assert told["source"]["radionuclide"] == "^68^Gallium"
    assert told["source"]["hours_after_injection"] == 1.0
    assert told["scaling"]["rescaled"] == {"left kidney": 0.5}
    assert told["scaling"]["nuclide"] == "Lu-177"
    assert len(told["limits"]) == 3
    everything = folder.name + "".join(p.read_text() for p in (folder / "phantom.json", folder / "data.toml"))
    dates = STUDY.acquired.strftime("%Y%m%d"), STUDY.acquired.strftime("%Y-%m-%d")
    for secret in ("muster", "maria", "4711", "acc0001", "1.2.826", "2.25", *dates):
        assert secret not in everything.lower()


def test_a_voi_named_after_the_patient_is_called_by_its_number(tmp_path: Path) -> None:
    """Names of VOIs become names of files, which promise to name nobody."""
    hu = np.where(within(CT, 120), 14.0, -1000.0).astype(np.float32)
    tracer = np.where(within(PET, 90), WARM, 0.0).astype(np.float32)
    written = write_study(
        tmp_path / "study",
        STUDY,
        ct=Volume(hu, CT, "HU"),
        pet=Volume(tracer, PET, "Bq/mL"),
        rois={"MUSTER liver": ball(CT), "spleen": ball(CT)},
    )
    change(written.pet, as_gallium)
    folder, words = run(written)
    assert sorted(path.stem for path in (folder / "vois").iterdir()) == ["ROI 1", "spleen"]
    assert "muster" not in (folder / "phantom.json").read_text(encoding="utf-8").lower()
    assert "a VOI whose name holds a name or number of the patient is called ROI 1" in words
    assert "muster" not in words.lower()


def test_without_a_name_the_same_images_give_the_same_pseudonym(files: StudyFiles) -> None:
    folder, _ = run(files)
    assert folder.name.startswith("pet-")
    with pytest.raises(InputRejected, match="there already"):
        run(files)
    assert run(files, overwrite=True, activity_mbq=2.0)[0] == folder
    assert account(folder)["scaling"]["activity_mbq"] == 2.0


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"name": "../x"}, ConfigurationError, "no folder's name"),
        ({"name": "muster_01"}, InputRejected, "holds a name or number of the patient"),
        ({"name": "HX-4711"}, InputRejected, "holds a name or number of the patient"),
        ({"rescale": ["kidney"]}, ConfigurationError, "names no VOI and factor"),
        ({"rescale": ["kidney=much"]}, ConfigurationError, "names no VOI and factor"),
        ({"rescale": ["a=1", "a=2"]}, ConfigurationError, "'a' twice"),
        ({"rescale": ["spleen=2"]}, InputRejected, "no VOI 'spleen' in the field. There is 'left kidney'"),
        ({"series": ["1.2.3"]}, InputRejected, "no series 1.2.3"),
        ({"nuclide": "Ga-68"}, InputRejected, "no dose kernel for the nuclide 'Ga-68'"),
    ],
)
def test_what_cannot_be_asked_is_told(
    files: StudyFiles, given: dict[str, Any], kind: type[Exception], text: str
) -> None:
    told = refused(files, text, kind, **given)
    assert "muster" not in told.lower().replace("muster_01", "")


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("Units", "GML", "Units of .* is GML, not BQML"),
        ("CorrectedImage", ["DECY", "SCAT"], "no PET with attenuation correction"),
        ("DecayCorrection", "OTHER", "DecayCorrection of .* is 'OTHER'"),
        ("SeriesType", ["GATED", "IMAGE"], "is of SeriesType GATED"),
        ("RescaleIntercept", "-4000", "voxels are negative"),
        ("FrameOfReferenceUID", "1.2.3", "share no Frame of Reference UID"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.130", "no PET: .*Enhanced multi-frame"),
        ("PatientID", "somebody else", "different Patient IDs, 25 and 32"),
    ],
)
def test_a_pet_that_is_no_truth_is_refused(files: StudyFiles, keyword: str, value: Any, text: str) -> None:
    change(files.pet, lambda dataset: setattr(dataset, keyword, value))
    refused(files, text)


def test_beds_without_decay_correction_are_refused(files: StudyFiles) -> None:
    def uncorrected(dataset: Dataset) -> None:
        dataset.DecayCorrection = "NONE"
        if int(dataset.InstanceNumber) > 16:
            dataset.AcquisitionTime = "104500"

    change(files.pet, uncorrected)
    refused(files, "acquired over 900 s without decay correction")


def test_a_pet_without_scatter_correction_is_told(files: StudyFiles) -> None:
    change(files.pet, lambda dataset: setattr(dataset, "CorrectedImage", ["DECY", "ATTN"]))
    _, words = run(files)
    assert "does not say SCAT" in words


def test_a_missing_series_and_a_missing_slice_are_told(files: StudyFiles, tmp_path: Path) -> None:
    files.pet[7].unlink()
    refused(files, "1 PET slice.* missing")
    for path in files.pet:
        path.unlink(missing_ok=True)
    refused(files, "no PET: the folder holds 24 CT, 1 RTSTRUCT")
    for path in files.ct:
        path.unlink()
    (files.folder / "notes.txt").write_text("no DICOM")
    refused(files, "no PET")


def test_of_two_ct_a_person_names_one(files: StudyFiles) -> None:
    hu = Volume(np.where(within(CT, 120), 14.0, -1000.0).astype(np.float32), CT, "HU")
    write_ct(files.folder, STUDY, hu, style=CtStyle(series="CT2", description="thin"))
    told = refused(files, "2 CT series fit")
    assert "--series" in told
    uid = STUDY.uid("CT2")
    assert uid in told
    folder, _ = run(files, series=[uid])
    assert load_volume(folder / "density.npz", "g/cm3").array.max() == pytest.approx(1.030)


def test_the_pet_without_attenuation_correction_is_left_aside(files: StudyFiles) -> None:
    for number, path in enumerate(files.pet):
        dataset = dcmread(path)
        dataset.CorrectedImage = ["DECY", "SCAT"]
        dataset.SeriesInstanceUID = STUDY.uid("NAC")
        dataset.SOPInstanceUID = STUDY.uid("NAC", number)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(files.folder / f"nac{number}.dcm")
    _, words = run(files)
    assert "1 PET series without attenuation correction left aside" in words


def test_a_spatial_registration_brings_the_pet_to_the_ct(files: StudyFiles) -> None:
    straight, _ = run(files, name="p1")
    ct_frame = str(dcmread(files.ct[0]).FrameOfReferenceUID)

    def moved(dataset: Dataset) -> None:
        dataset.FrameOfReferenceUID = "1.2.3"
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x + 50.0, y, z - 20.0]

    change(files.pet, moved)
    matrix = np.eye(4)
    matrix[:3, 3] = (-50.0, 0.0, 20.0)
    dataset = spatial_registration(matrix, "1.2.3", ct_frame)
    dataset.PatientID = PATIENT.patient_id
    dataset.save_as(files.folder / "reg.dcm", enforce_file_format=True)
    brought, _ = run(files, name="p2")
    first, second = (load_volume(folder / "activity.npz", "Bq/mL").array for folder in (straight, brought))
    assert_allclose(first, second, rtol=1e-4, atol=1e-3 * float(first.max()))


def test_a_prone_feet_first_patient_lies_where_he_lay(files: StudyFiles) -> None:
    """The CT turned round: rows and columns run the other way, the patient does not."""
    straight, _ = run(files, name="p1")

    def turned(dataset: Dataset) -> None:
        rows, columns = dataset.Rows, dataset.Columns
        pixels = np.ascontiguousarray(dataset.pixel_array[::-1, ::-1])
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x + (columns - 1) * 6.0, y + (rows - 1) * 6.0, z]
        dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        dataset.PixelData = pixels.tobytes()

    change(files.ct, turned)
    again, _ = run(files, name="p2")
    for name in ("activity", "density", "vois/left kidney"):
        unit = {"activity": "Bq/mL", "density": "g/cm3"}.get(name, "1")
        one, other = (load_volume(folder / f"{name}.npz", unit) for folder in (straight, again))
        assert one.grid.same_as(other.grid)
        assert_allclose(one.array, other.array, rtol=1e-4, atol=1e-3)
