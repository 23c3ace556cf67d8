"""What the virtual scanners write is DICOM that says where and how much, by PS3.3's own formulas."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless
from skimage.draw import polygon2mask

from dicomnode.virtual_study import (
    NM_VARIANTS,
    CtStyle,
    Identity,
    Injection,
    NmStyle,
    Quantification,
    Study,
    StudyFiles,
    recompress,
    tilted,
    write_ct,
    write_nm,
    write_rtstruct,
    write_study,
)
from pipeline.simulate.cube import hot_cube, inside_box, water_block
from pipeline.volume import Grid, Volume

CT = Grid((16, 64, 64), (-126.0, -126.0, -45.0), (6.0, 4.0, 4.0))
SPECT = Grid((20, 48, 48), (-113.0, -112.0, -46.0), (4.7952, 4.7952, 4.7952))
CENTRE, SIDE, HOT = (21.0, -17.0, 9.0), 30.0, 1.5e6
STUDY = Study(seed="test")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    cube = inside_box(CT, CENTRE, (SIDE, SIDE, SIDE))
    ring = inside_box(CT, CENTRE, (80.0, 80.0, 30.0)) & ~cube
    return write_study(
        tmp_path_factory.mktemp("study"),
        STUDY,
        ct=water_block(CT),
        spect=hot_cube(SPECT, CENTRE, SIDE, HOT),
        pet=hot_cube(SPECT, CENTRE, SIDE, HOT),
        rois={"cube": cube, "ring": ring, "empty": np.zeros(CT.shape, dtype=bool)},
    )


def cosines(ds: Dataset) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([float(v) for v in ds.ImageOrientationPatient])
    return values[:3], values[3:]


def nm_values_and_positions(ds: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and the patient position of each, from PS3.3 C.7.6.2.1.1 and C.8.4.15."""
    detector = ds.DetectorInformationSequence[0]
    row, column = cosines(detector)
    first = np.array([float(v) for v in detector.ImagePositionPatient])
    frame, i, j = np.indices(ds.pixel_array.shape)
    positions = (
        first
        + j[..., None] * float(ds.PixelSpacing[1]) * row
        + i[..., None] * float(ds.PixelSpacing[0]) * column
        + frame[..., None] * float(ds.SpacingBetweenSlices) * np.cross(row, column)
    )
    return ds.pixel_array.astype(float), positions


def centroid(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return (values[..., None] * positions).sum(axis=(0, 1, 2)) / values.sum()


@pytest.mark.parametrize("degrees", [0.0, 1.3])
@pytest.mark.parametrize("variant", NM_VARIANTS)
def test_a_hot_cube_lies_where_it_was_put_in_every_nm_variant(
    tmp_path: Path, variant: str, degrees: float
) -> None:
    grid = tilted(SPECT, degrees, -degrees / 2)
    ds = dcmread(write_nm(tmp_path, STUDY, hot_cube(grid, CENTRE, SIDE), style=NM_VARIANTS[variant]))
    assert np.allclose(
        centroid(*nm_values_and_positions(ds)), CENTRE, atol=0.3
    )  # edge voxels are partly filled
    assert np.all(np.abs(ds.pixel_array).reshape(-1).astype(int) >= 0)


def test_the_variants_store_both_signs_and_all_orientations(tmp_path: Path) -> None:
    seen = set()
    for style in NM_VARIANTS.values():
        ds = dcmread(write_nm(tmp_path, STUDY, hot_cube(SPECT, CENTRE, SIDE), style=style))
        row, column = cosines(ds.DetectorInformationSequence[0])
        seen.add((float(ds.SpacingBetweenSlices) > 0, row[0] > 0, column[1] > 0))
    assert len(seen) == 8


def test_tilted_cosines_are_written_unrounded_in_sixteen_characters(tmp_path: Path) -> None:
    grid = tilted(SPECT, 0.7)
    raw = write_nm(tmp_path, STUDY, hot_cube(grid, CENTRE, SIDE))
    values = dcmread(raw).DetectorInformationSequence[0].ImageOrientationPatient
    assert all(len(str(v.original_string)) <= 16 for v in values)
    expected = np.concatenate([grid.direction[2], grid.direction[1]])
    assert np.allclose(np.array(values, dtype=float), expected, atol=1e-12)


def test_tilting_turns_a_grid_about_its_centre() -> None:
    middle = (np.array(SPECT.shape) - 1) / 2
    turned = tilted(SPECT, 2.0, 1.0)
    assert np.allclose(turned.positions(middle), SPECT.positions(middle))
    assert np.degrees(np.arccos(tilted(SPECT, 2.0).direction[0][2])) == pytest.approx(2.0)


@pytest.mark.parametrize("quantification", Quantification)
def test_stored_values_lead_back_to_becquerels_per_millilitre(
    tmp_path: Path, quantification: Quantification
) -> None:
    truth = hot_cube(SPECT, CENTRE, SIDE, HOT)
    style = NmStyle(quantification=quantification)
    ds = dcmread(write_nm(tmp_path, STUDY, truth, style=style))
    stored = ds.pixel_array.astype(float)
    if quantification is Quantification.REAL_WORLD_VALUE:
        mapping = ds.RealWorldValueMappingSequence[0]
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "Bq/ml"
        found = stored * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    elif quantification is Quantification.RESCALE:
        found = stored * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    else:
        rotation = ds.RotationInformationSequence[0]
        seconds = float(rotation.ActualFrameDuration) / 1000 * rotation.NumberOfFramesInRotation
        assert seconds == style.duration_s
        millilitres = 4.7952**3 / 1000
        found = stored / (seconds * style.sensitivity_cps_per_mbq * millilitres) * 1e6
        assert "RealWorldValueMappingSequence" not in ds
        assert "RescaleSlope" not in ds
    tolerance = 0.51 * HOT / stored.max()  # half a stored step
    assert np.allclose(found, truth.array, atol=tolerance, rtol=1e-6)


def test_counts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    style = NmStyle(quantification=Quantification.COUNTS, sensitivity_cps_per_mbq=1e4)
    with pytest.raises(ValueError, match="do not fit"):
        write_nm(tmp_path, STUDY, hot_cube(SPECT, CENTRE, SIDE, HOT), style=style)


def test_negative_activity_needs_signed_pixels(tmp_path: Path) -> None:
    negative = hot_cube(SPECT, CENTRE, SIDE)
    negative.array[0, 0, 0] = -100.0
    with pytest.raises(ValueError, match="signed"):
        write_nm(tmp_path, STUDY, negative)
    ds = dcmread(write_nm(tmp_path, STUDY, negative, style=NmStyle(signed=True)))
    assert ds.PixelRepresentation == 1
    assert ds.pixel_array.min() < 0


def test_the_nm_says_what_was_given_and_how_it_was_corrected(written: StudyFiles) -> None:
    assert written.nm is not None
    ds = dcmread(written.nm)
    given = ds.RadiopharmaceuticalInformationSequence[0]
    assert float(given.RadionuclideTotalDose) == 7400  # MBq in NM, PS3.3 C.8.4.10
    assert given.RadionuclideCodeSequence[0].CodeValue == "447553000"
    assert given.RadiopharmaceuticalStartDateTime == "20260303103000.000000"
    assert ds.AcquisitionDate + ds.AcquisitionTime == "20260304103000.000000"
    assert {"ATTN", "SCAT"} <= set(ds.CorrectedImage)
    assert list(ds.SliceVector) == list(range(1, ds.NumberOfFrames + 1))
    assert ds.FrameIncrementPointer == 0x00540080
    assert list(ds.ImageType)[2] == "RECON TOMO"


def test_defects_can_be_written(tmp_path: Path) -> None:
    study = Study(injection=Injection(nuclide=None), identity=Identity(patient_id="P2"))
    path = write_nm(
        tmp_path, study, hot_cube(SPECT, CENTRE, SIDE), style=NmStyle(position=False, corrected=())
    )
    ds = dcmread(path)
    assert not ds.DetectorInformationSequence[0].ImagePositionPatient
    assert not ds.CorrectedImage
    assert not ds.RadiopharmaceuticalInformationSequence
    assert ds.PatientID == "P2"


@pytest.mark.parametrize("signed", [True, False])
def test_the_ct_reads_back_as_hounsfield_units_in_place(tmp_path: Path, signed: bool) -> None:
    hu = Volume(np.random.default_rng(0).uniform(-1024, 3000, CT.shape).astype(np.float32), CT, "[hnsf'U]")
    for k, path in enumerate(write_ct(tmp_path, STUDY, hu, style=CtStyle(signed=signed))):
        ds = dcmread(path)
        found = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.abs(found - hu.array[k]).max() <= 0.51
        assert np.allclose(np.array(ds.ImagePositionPatient, float), CT.positions((k, 0, 0)))
        assert ds.PixelRepresentation == int(signed)
        assert ds.InstanceNumber == k + 1


def test_a_study_shares_patient_study_and_frame_and_no_instance_uid(written: StudyFiles) -> None:
    objects = [dcmread(path) for path in written.all]
    assert len(objects) == 16 + 20 + 2
    for keyword in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert len({str(ds[keyword].value) for ds in objects}) == 1
    assert len({ds.FrameOfReferenceUID for ds in objects}) == 1
    assert len({ds.SOPInstanceUID for ds in objects}) == len(objects)
    assert len({ds.SeriesInstanceUID for ds in objects}) == 4


def test_the_same_study_gives_the_same_bytes_and_another_seed_other_uids(tmp_path: Path) -> None:
    spect = hot_cube(SPECT, CENTRE, SIDE)
    folders = [tmp_path / name for name in "abc"]
    first, second = (write_study(f, STUDY, spect=spect) for f in folders[:2])
    third = write_study(folders[2], replace(STUDY, seed="other"), spect=spect)
    assert first.nm is not None
    assert second.nm is not None
    assert third.nm is not None
    assert first.nm.read_bytes() == second.nm.read_bytes()
    assert dcmread(first.nm).StudyInstanceUID != dcmread(third.nm).StudyInstanceUID


def test_a_grid_keeps_its_own_frame_of_reference(tmp_path: Path) -> None:
    elsewhere = replace(SPECT, frame_of_reference_uid="1.2.3.4")
    ds = dcmread(write_nm(tmp_path, STUDY, hot_cube(elsewhere, CENTRE, SIDE)))
    assert ds.FrameOfReferenceUID == "1.2.3.4"


def test_the_pet_reads_back_as_becquerels_per_millilitre(written: StudyFiles) -> None:
    truth = hot_cube(SPECT, CENTRE, SIDE, HOT)
    for k, path in enumerate(written.pet):
        ds = dcmread(path)
        assert ds.Units == "BQML"
        found = ds.pixel_array * float(ds.RescaleSlope)
        assert np.allclose(found, truth.array[k], atol=HOT / 32767)
        assert np.allclose(np.array(ds.ImagePositionPatient, float), SPECT.positions((k, 0, 0)))
        given = ds.RadiopharmaceuticalInformationSequence[0]
        assert float(given.RadionuclideTotalDose) == 7.4e9  # Bq in PET, PS3.3 C.8.9.2


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [True, False])
def test_recompression_is_lossless_and_keeps_the_uids(tmp_path: Path, syntax: str, signed: bool) -> None:
    hu = Volume(np.random.default_rng(0).normal(40, 300, (2, 64, 64)).astype(np.float32), CT_PART, "[hnsf'U]")
    files = write_ct(tmp_path, STUDY, hu, style=CtStyle(signed=signed))
    before = [dcmread(path) for path in files]
    pixels = [ds.pixel_array.copy() for ds in before]
    recompress(files, syntax)
    for path, old, values in zip(files, before, pixels, strict=True):
        new = dcmread(path)
        assert new.file_meta.TransferSyntaxUID == syntax
        assert new.SOPInstanceUID == old.SOPInstanceUID
        assert np.array_equal(new.pixel_array, values)


CT_PART = CT.boxed((0, 0, 0), (2, 64, 64))


def filled(ds: Dataset, number: int) -> np.ndarray:
    """The mask that an ROI's contours enclose on the CT's grid, by exclusive or."""
    mask = np.zeros(CT.shape, dtype=bool)
    item = next(i for i in ds.ROIContourSequence if i.ReferencedROINumber == number)
    for contour in item.get("ContourSequence", []):
        points = CT.indices(np.array(contour.ContourData, dtype=float).reshape(-1, 3))
        k = round(float(points[0, 0]))
        mask[k] ^= polygon2mask(CT.shape[1:], points[:, 1:])
    return mask


def test_contours_enclose_the_masks_holes_included(written: StudyFiles) -> None:
    assert written.rtstruct is not None
    ds = dcmread(written.rtstruct)
    names = [item.ROIName for item in ds.StructureSetROISequence]
    assert names == ["cube", "ring", "empty"]
    cube = inside_box(CT, CENTRE, (SIDE, SIDE, SIDE))
    ring = inside_box(CT, CENTRE, (80.0, 80.0, 30.0)) & ~cube
    assert np.array_equal(filled(ds, 1), cube)
    assert np.array_equal(filled(ds, 2), ring)
    assert not filled(ds, 3).any()


def test_contours_refer_to_the_slices_they_lie_on(written: StudyFiles) -> None:
    assert written.rtstruct is not None
    ds = dcmread(written.rtstruct)
    positions = {}
    for path in written.ct:
        slice_ds = dcmread(path, stop_before_pixels=True)
        positions[slice_ds.SOPInstanceUID] = float(slice_ds.ImagePositionPatient[2])
    for contour in ds.ROIContourSequence[0].ContourSequence:
        uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        assert float(contour.ContourData[2]) == pytest.approx(positions[uid])


def test_contours_need_a_ct(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CT"):
        write_study(tmp_path, STUDY, rois={"cube": np.ones(CT.shape, dtype=bool)})


@pytest.mark.peers
def test_the_objects_satisfy_dciodvfy_and_dcmdump(
    written: StudyFiles, tmp_path: Path, peer_program: Callable[[str], str]
) -> None:
    assert written.nm is not None
    assert written.rtstruct is not None
    mask = np.zeros(CT.shape, dtype=bool)
    mask[3:5, :9, :9] = True  # at the edge of the image
    paths = [written.ct[0], written.nm, written.pet[0], written.rtstruct]
    paths.append(write_rtstruct(tmp_path, STUDY, CT, {"edge": mask}))
    for n, style in enumerate(s for s in NM_VARIANTS.values() if s.modality == "NM"):
        counts = replace(style, series=f"NM{n}", quantification=Quantification.COUNTS)
        paths.append(write_nm(tmp_path, STUDY, hot_cube(tilted(SPECT, 1.0), CENTRE, SIDE), style=counts))
    for path in paths:
        report = subprocess.run(
            [peer_program("dciodvfy"), "-new", str(path)], capture_output=True, text=True, check=False
        )
        assert "Error" not in report.stdout + report.stderr, f"{path.name}: {report.stderr}"
        subprocess.run([peer_program("dcmdump"), "-q", str(path)], capture_output=True, check=True)
