"""RTDOSE: values, places, words and references, read back by software that did not write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import RTDoseStorage

from dicomnode.results import rtdose
from dicomnode.results.findings import EncodingSettings, Findings, ResultKind
from dicomnode.results.header import ResultIdentity
from pipeline.dose_rate import WeightsUsed
from pipeline.errors import InputRejected
from pipeline.volume import Grid, Volume
from tests.dicomnode.synthetic_findings import (
    DIRECTIONS,
    FRAME,
    HOT,
    NOW,
    RTSTRUCT,
    SETTINGS,
    STUDY,
    ct_headers,
    dose_rate,
    engine_map,
    findings,
    grid,
    montecarlo_map,
    predecessor,
)

IDENTITY = ResultIdentity("2.25.100", "2.25.101", 9001, "Lu-177 DVK dose rate (Gy = Gy/h x 1 h)")


def written(folder: Path, found: Findings, settings: EncodingSettings = SETTINGS, number: int = 0) -> Path:
    """The RTDOSE of that map."""
    path = folder / f"dose{number}.dcm"
    dose = rtdose.build(found, found.maps[number], settings, IDENTITY, NOW)
    pydicom.dcmwrite(path, dose, enforce_file_format=True)
    return path


def settings(**changes: Any) -> EncodingSettings:
    return EncodingSettings(device_uid="2.25.7", **changes)


def frame_positions(dose: pydicom.Dataset, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Patient positions of (frame, row, column), from PS3.3 C.7.6.2.1.1 and C.8.8.3.2, not from our code."""
    row, column = np.array(dose.ImageOrientationPatient).reshape(2, 3)
    offsets = np.array(dose.GridFrameOffsetVector, float)
    between_rows, between_columns = (float(v) for v in dose.PixelSpacing)
    frame, r, c = np.asarray(indices).T
    return (
        np.array(dose.ImagePositionPatient, float)
        + np.outer(c * between_columns, row)
        + np.outer(r * between_rows, column)
        + np.outer(offsets[frame], np.cross(row, column))
    )


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_every_voxel_lies_where_it_was_computed(direction: Any, tmp_path: Path) -> None:
    """The position and value of every voxel survive, whichever way slices, rows and columns run."""
    found = findings(direction)
    dose = pydicom.dcmread(written(tmp_path, found))
    volume = found.maps[0].dose_rate

    indices = np.argwhere(np.ones(dose.pixel_array.shape, bool))
    back = volume.grid.indices(frame_positions(dose, indices))

    assert np.abs(back - np.rint(back)).max() < 1e-6
    expected = volume.array[tuple(np.rint(back).astype(int).T)].astype(np.float64) / 1000.0
    stored = dose.pixel_array.ravel() * float(dose.DoseGridScaling)
    assert np.abs(stored - expected).max() <= 0.5000001 * float(dose.DoseGridScaling)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_simpleitk_finds_the_hot_voxel(direction: Any, tmp_path: Path) -> None:
    """An independent reader puts the hottest voxel at its patient position."""
    found = findings(direction)
    path = written(tmp_path, found)
    image: Any = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)

    z, y, x = (int(v) for v in np.unravel_index(array.argmax(), array.shape))
    position = image.TransformIndexToPhysicalPoint((x, y, z))

    assert np.allclose(position, grid(direction).positions(HOT), atol=1e-3)
    scaling = float(pydicom.dcmread(path, stop_before_pixels=True).DoseGridScaling)
    assert array.max() * scaling == pytest.approx(0.250, rel=1e-6)


def test_offsets_are_relative_and_ascend(tmp_path: Path) -> None:
    """GridFrameOffsetVector begins with 0 and rises by the slice distance also for reversed slices."""
    for direction in DIRECTIONS.values():
        offsets = pydicom.dcmread(written(tmp_path, findings(direction))).GridFrameOffsetVector
        assert [float(v) for v in offsets] == [0.0, 3.0, 6.0, 9.0, 12.0]


def test_a_sheared_grid_is_refused() -> None:
    """Frames along the normal cannot follow slices that drift by more than half a pixel."""
    sheared = Grid((600, 6, 7), (0, 0, 0), (3.0, 1.0, 1.0), ((0.0, 9e-4, 1.0), (0, 1, 0), (1, 0, 0)), FRAME)
    volume = Volume(np.ones(sheared.shape, np.float32), sheared, "mGy/h")
    found = findings()
    with pytest.raises(InputRejected, match="drift"):
        rtdose.build(found, engine_map(sheared, dose_rate=volume), SETTINGS, IDENTITY, NOW)


@pytest.mark.parametrize(("bits", "largest"), [(16, 2**16 - 1), (32, 2**31 - 1)])
@pytest.mark.parametrize("maximum", [3.3e-9, 7.77e-4, 1.0, 123.456789, 9.87e7])
def test_stored_values_fit_and_round_to_the_nearest(bits: int, largest: int, maximum: float) -> None:
    """No stored value exceeds the limit, none is off by more than half a step, for weak and strong maps."""
    map_ = (np.random.default_rng(0).uniform(0, maximum, (4, 5, 6))).astype(np.float32)
    map_[0, 0, 0] = maximum
    quantised = rtdose.quantise(map_, bits)

    assert quantised.stored.max() in (largest - 1, largest)
    assert len(quantised.scaling) <= 16
    step = float(quantised.scaling)
    error = np.abs(quantised.stored * step - map_.astype(np.float64) / 1000.0)
    assert error.max() <= 0.5 * step * (1 + 1e-6)
    assert quantised.step == pytest.approx(1 / largest, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-6])
def test_a_map_that_cannot_be_right_is_refused(value: float) -> None:
    """One voxel that is not finite or is negative holds the case."""
    volume = dose_rate(grid())
    volume.array[2, 2, 2] = value
    with pytest.raises(InputRejected):
        rtdose.quantise(volume.array, 32)


def test_an_empty_map_is_refused() -> None:
    """Zero everywhere is no result."""
    with pytest.raises(InputRejected, match="zero everywhere"):
        rtdose.quantise(np.zeros((2, 3, 4), np.float32), 32)


def test_it_says_everywhere_that_it_is_a_rate(tmp_path: Path) -> None:
    """Worklist, planning system and viewer each show that Gy means Gy/h x 1 h, and at which time."""
    dose = pydicom.dcmread(written(tmp_path, findings()))
    assert dose.SeriesDescription == "Lu-177 DVK dose rate (Gy = Gy/h x 1 h)"
    assert "Gy = Gy/h x 1 h" in dose.DoseComment
    assert "2024-05-06 10:12:13" in dose.DoseComment
    assert len(dose.DoseComment) <= 64
    for words in ("RATE", "2024-05-06 10:12:13", "without decay within the hour", "1.04/density", "ab" * 32):
        assert words in dose.ImageComments


def test_the_longest_engine_name_still_fits() -> None:
    """DoseComment and SeriesDescription keep their 64 characters (VR LO)."""
    for units in ("GY", "RELATIVE"):
        how = settings(dose_units=units)
        longest = engine_map(grid(), "abcdefgh")
        found = findings(maps=(longest,))
        assert len(rtdose.dose_comment(found, longest, how)) <= 64
        assert len(rtdose.series_description(found, longest, how)) <= 64


def test_a_map_with_statistics_says_how_certain_it_is(tmp_path: Path) -> None:
    """In short where a planning system shows it, in full with the number of decays in ImageComments."""
    dose = pydicom.dcmread(written(tmp_path, findings(maps=(montecarlo_map(grid()),))))
    assert dose.DoseComment == "MC dose rate u=1.5 % (Gy = Gy/h x 1 h) at 2024-05-06 10:12:13"
    assert "(k=1): Kidney left: mean 0.3 %, voxels 1.5 % on average." in dose.ImageComments
    assert "electron_decays=1200000" in dose.ImageComments
    assert dose.DoseType == "PHYSICAL"


def test_each_map_names_the_data_and_the_device_of_its_own_engine(tmp_path: Path) -> None:
    """Beside a map of another engine: DVK's kernel is not what a Monte Carlo rests on."""
    both = findings(maps=(engine_map(grid()), montecarlo_map(grid())))
    dvk, mc = (pydicom.dcmread(written(tmp_path, both, number=n)).ImageComments for n in (0, 1))
    assert f"Computed on: cpu. SHA-256 of the kernel: {'ab' * 32}." in dvk
    assert f"Computed on: cuda:0. SHA-256 of the physics and decay data: {'ef' * 32}." in mc
    assert "ef" * 32 not in dvk
    assert "ab" * 32 not in mc


def test_the_map_of_a_network_names_its_weights(tmp_path: Path) -> None:
    """Beside the kernel of the DVK that it corrects."""
    weights = WeightsUsed("lu177-medium", "2", "12" * 32)
    both = findings(maps=(engine_map(grid()), engine_map(grid(), "cnn", weights=weights)))
    dvk, cnn = (pydicom.dcmread(written(tmp_path, both, number=n)).ImageComments for n in (0, 1))
    told = f"Network weights: lu177-medium, version 2. SHA-256 of the network weights: {'12' * 32}."
    assert f"SHA-256 of the kernel: {'ab' * 32}. {told}" in cnn
    assert "network" not in dvk


def test_however_many_notes_there_are_the_sums_stay_and_the_cut_is_told(tmp_path: Path) -> None:
    """VR LT holds 10240 characters (PS3.5 6.2); a network may flag every one of a hundred regions."""
    weights = WeightsUsed("lu177-medium", "2", "12" * 32)
    notes = tuple(f"region {number}: {'judge it before use ' * 8}" for number in range(100))
    found = findings(maps=(engine_map(grid(), "cnn", weights=weights, notes=notes),))
    comments = pydicom.dcmread(written(tmp_path, found)).ImageComments
    assert len(comments) == 10240
    assert "12" * 32 in comments
    assert comments.endswith("The report holds the rest.")


def test_a_map_without_statistics_says_nothing_of_them(tmp_path: Path) -> None:
    """DVK has no statistical uncertainty, and none is made up."""
    dose = pydicom.dcmread(written(tmp_path, findings()))
    assert "u=" not in dose.DoseComment
    assert "uncertainty" not in dose.ImageComments


def test_relative_units_are_a_setting(tmp_path: Path) -> None:
    """A site that forbids Gy for a rate gets RELATIVE and the words that go with it."""
    dose = pydicom.dcmread(written(tmp_path, findings(), settings(dose_units="RELATIVE")))
    assert dose.DoseUnits == "RELATIVE"
    assert "Gy = " not in dose.DoseComment
    assert "1 RELATIVE means 1 Gy/h" in dose.ImageComments


def test_the_dose_module_is_as_decided(tmp_path: Path) -> None:
    """PS3.3 C.8.8.3: the attributes that need no plan, and no plan."""
    dose = pydicom.dcmread(written(tmp_path, findings()))
    assert (dose.SOPClassUID, dose.Modality) == (RTDoseStorage, "RTDOSE")
    assert (dose.DoseUnits, dose.DoseType, dose.DoseSummationType) == ("GY", "PHYSICAL", "PLAN_OVERVIEW")
    assert len(dose.PlanOverviewSequence) == 1
    assert "ReferencedRTPlanSequence" not in dose
    assert dose.FrameIncrementPointer == 0x3004000C
    assert (dose.BitsAllocated, dose.BitsStored, dose.HighBit, dose.PixelRepresentation) == (32, 32, 31, 0)
    assert dose.TissueHeterogeneityCorrection == "IMAGE"
    assert [float(v) for v in dose.PixelSpacing] == [1.25, 0.9765625]
    assert not [element for element in dose.iterall() if element.tag.is_private]


def test_patient_study_and_frame_are_the_cts(tmp_path: Path) -> None:
    """The result lands in the study it came from."""
    dose = pydicom.dcmread(written(tmp_path, findings()))
    ct = findings().ct_headers[0]
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber"):
        assert dose[keyword].value == ct[keyword].value
    assert dose.FrameOfReferenceUID == ct.FrameOfReferenceUID
    assert dose.SeriesInstanceUID != ct.SeriesInstanceUID


@pytest.mark.parametrize(
    ("character_set", "name", "becomes"),
    [
        ("ISO_IR 100", "Müller^Änne", "ISO_IR 100"),
        ("ISO_IR 192", "Žižková^Анна", "ISO_IR 192"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", ["", "ISO 2022 IR 87"]),
        (None, "Doe^Jane", None),
        (None, "Müller^Änne", "ISO_IR 192"),
        ("ISO_IR 101", "Müller^人", "ISO_IR 192"),
    ],
)
def test_names_survive_in_their_alphabet(character_set: Any, name: str, becomes: Any, tmp_path: Path) -> None:
    """The CT's character set is kept where it can hold the text, else UTF-8 is declared."""
    attributes = {"PatientName": name} | ({"SpecificCharacterSet": character_set} if character_set else {})
    dose = pydicom.dcmread(written(tmp_path, findings(ct_headers=ct_headers(**attributes))))
    assert str(dose.PatientName) == name
    assert dose.get("SpecificCharacterSet") == becomes


def test_a_name_read_from_a_file_survives(tmp_path: Path) -> None:
    """A header that came through pydicom holds bytes in the CT's alphabet; they are decoded first."""
    source = ct_headers(PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")[0]
    pydicom.dcmwrite(tmp_path / "ct.dcm", source, implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(tmp_path / "ct.dcm", force=True)
    found = findings(ct_headers=(read,), names=("腎臓",), notes=("右の腎臓",))
    dose = pydicom.dcmread(written(tmp_path, found))
    assert dose.SpecificCharacterSet == "ISO_IR 192"
    assert str(dose.PatientName) == "Müller^Änne"
    assert "右の腎臓" in dose.ImageComments


def test_sources_and_scanners_are_named(tmp_path: Path) -> None:
    """NM, CT and RTSTRUCT stand as sources (DCM 121322), both scanners as equipment (DCM 109101)."""
    found = findings()
    dose = pydicom.dcmread(written(tmp_path, found))
    by_uid = {i.ReferencedSOPInstanceUID: i for i in dose.ReferencedInstanceSequence}
    sources = [h.SOPInstanceUID for h in (*found.spect_headers, *found.ct_headers)]
    assert set(by_uid) == {*sources, RTSTRUCT.sop_instance_uid}
    assert {i.PurposeOfReferenceCodeSequence[0].CodeValue for i in by_uid.values()} == {"121322"}
    equipment = dose.ContributingEquipmentSequence
    assert [i.ManufacturerModelName for i in equipment] == ["ACME NM", "ACME CT"]
    assert {i.PurposeOfReferenceCodeSequence[0].CodeValue for i in equipment} == {"109101"}


def test_a_second_run_names_what_it_replaces(tmp_path: Path) -> None:
    """Only the predecessor of the same kind and engine is replaced, in words and by reference."""
    old = predecessor(ResultKind.RTDOSE, "dvk")
    other = predecessor(ResultKind.SR)
    dose = pydicom.dcmread(written(tmp_path, findings(predecessors=(old, other))))
    replaced = [
        item.ReferencedSOPInstanceUID
        for item in dose.ReferencedInstanceSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == "REPLACED"
    ]
    assert replaced == [old.instance.sop_instance_uid]
    assert f"Replaces {old.instance.sop_instance_uid}." in dose.ImageComments
    assert dose.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99RNT"


def test_references_of_other_studies_stay_out_of_the_common_instance_reference(tmp_path: Path) -> None:
    """PS3.3 C.12.2: ReferencedSeriesSequence lists the result's own study."""
    dose = pydicom.dcmread(written(tmp_path, findings()))
    assert dose.StudyInstanceUID == STUDY
    series = {item.SeriesInstanceUID for item in dose.ReferencedSeriesSequence}
    assert series == {h.SeriesInstanceUID for h in (*findings().ct_headers, *findings().spect_headers)} | {
        RTSTRUCT.series_instance_uid
    }
