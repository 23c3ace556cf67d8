"""Stored values become Bq/mL by the first rule that holds, and never by a guess."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset

from pipeline.acquisition import acquisition_start, administration, nuclide_of, rotation_of
from pipeline.activity import Rule, without_undershoot
from pipeline.camera import UNLISTED, Calibration, Camera, camera_of
from pipeline.dataset import seconds_between
from pipeline.decay import decay_factor, nuclide
from pipeline.errors import InputRejected
from pipeline.plausibility import plausibility
from pipeline.spect import SpectImage, describe_spect, read_spect
from tests.pipeline.datasets import (
    code,
    in_bq_per_ml,
    item,
    nm_object,
    radiopharmaceutical,
    written,
)

LU177 = nuclide("Lu-177")
VOXEL_ML = 4.8 * 4.0 * 5.0 / 1000
CALIBRATED = Camera("Gamma", {"Manufacturer": "acme"}, calibrations=(Calibration("Lu-177", 10.0),))


def read(dataset: Dataset, folder: Path, *cameras: Camera) -> SpectImage:
    return read_spect(written([dataset], folder), cameras)


def rejected(dataset: Dataset, *cameras: Camera) -> InputRejected:
    with pytest.raises(InputRejected) as failure:
        describe_spect([dataset], cameras)
    assert failure.value.remedy
    return failure.value


# ── rule 1 ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("unit", "scale"), [("Bq/ml", 1), ("Bq/mL", 1), ("kBq/ml", 1e3), ("MBq/ml", 1e6)])
def test_a_real_world_value_in_activity_per_volume_comes_first(
    tmp_path: Path, unit: str, scale: float
) -> None:
    """Before the RescaleSlope and before any calibration."""
    mapping = in_bq_per_ml(2.5, unit, intercept=0.5)
    dataset = nm_object(RealWorldValueMappingSequence=[mapping], RescaleSlope=99.0, RescaleIntercept=0.0)
    image = read(dataset, tmp_path, CALIBRATED)
    assert np.allclose(image.activity.array, 3.0 * scale)
    assert image.conversion.rule is Rule.REAL_WORLD_VALUE
    assert image.calibration_sha256 is None


@pytest.mark.parametrize("unit", ["mBq/ml", "g/ml", "Bq", "{counts}", "BQML"])
def test_a_real_world_value_in_another_unit_is_refused(unit: str) -> None:
    """A calibration does not help: the stored values are no plain counts."""
    dataset = nm_object(RealWorldValueMappingSequence=[in_bq_per_ml(1.0, unit)])
    assert unit in rejected(dataset, CALIBRATED).reason


def test_two_mappings_to_activity_are_refused() -> None:
    twice = [in_bq_per_ml(1.0), in_bq_per_ml(2.0)]
    assert "2 ways" in rejected(nm_object(RealWorldValueMappingSequence=twice), CALIBRATED).reason


def test_a_mapping_by_table_or_beyond_its_range_is_refused(tmp_path: Path) -> None:
    table = item(
        RealWorldValueLUTData=[0.0, 1.0], MeasurementUnitsCodeSequence=[code("Bq/ml", "UCUM", "Bq/ml")]
    )
    assert "look-up table" in rejected(nm_object(RealWorldValueMappingSequence=[table])).reason
    mapping = in_bq_per_ml(1.0)
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, 5
    mapping["RealWorldValueFirstValueMapped"].VR = mapping["RealWorldValueLastValueMapped"].VR = "US"
    dataset = nm_object(np.full((4, 5, 6), 6, dtype=np.uint16), RealWorldValueMappingSequence=[mapping])
    with pytest.raises(InputRejected, match="covers, 0 to 5"):
        read(dataset, tmp_path)


# ── rules 3 and 4 ────────────────────────────────────────────────────────────────────────────────


def test_the_rescale_slope_counts_only_where_the_configuration_says_so(tmp_path: Path) -> None:
    camera = Camera("Gamma", {"ManufacturerModelName": "gamma*"}, rescale_slope_is_bq_per_ml=True)
    image = read(nm_object(RescaleSlope=3.0, RescaleIntercept=1.0), tmp_path, camera)
    assert np.allclose(image.activity.array, 4.0)
    assert image.conversion.rule is Rule.RESCALE_SLOPE
    assert "RescaleSlope" in rejected(nm_object(), camera).reason
    assert "no calibration" in rejected(nm_object(RescaleSlope=3.0)).reason


@pytest.mark.parametrize(
    ("settings", "counts_per_mbq"),
    [
        # 60 stops of 20 s, two heads of 5 cps/MBq each: every MBq gives 60 · 20 · 2 · 5 counts in all,
        ({"sensitivity_cps_per_mbq": 10.0}, 12000.0),
        ({"sensitivity_cps_per_mbq": 5.0, "sensitivity": "per_head", "heads": 2}, 12000.0),
        # and 20 · 5 counts in one view of one head.
        ({"sensitivity_cps_per_mbq": 5.0, "sensitivity": "per_head", "duration": "per_view"}, 100.0),
        ({"sensitivity_cps_per_mbq": 10.0, "duration": "per_view", "heads": 2}, 100.0),
        # A camera that lists the 120 interleaved views of both heads is told so.
        ({"sensitivity_cps_per_mbq": 10.0, "views_per_head": 30}, 6000.0),
    ],
)
def test_counts_become_activity_by_duration_and_sensitivity(
    tmp_path: Path, settings: dict, counts_per_mbq: float
) -> None:
    camera = Camera("Gamma", {"Manufacturer": "ACME"}, calibrations=(Calibration("177Lu", **settings),))
    counts = 600
    image = read(nm_object(np.full((4, 5, 6), counts, dtype=np.uint16)), tmp_path, camera)
    assert np.allclose(image.activity.array, counts / counts_per_mbq * 1e6 / VOXEL_ML, rtol=1e-6)
    assert image.activity_bq == pytest.approx(4 * 5 * 6 * counts / counts_per_mbq * 1e6)
    assert image.conversion.rule is Rule.CALIBRATION
    assert len(image.calibration_sha256 or "") == 64


def test_a_rescale_slope_of_counts_is_part_of_the_counts(tmp_path: Path) -> None:
    plain = read(nm_object(), tmp_path, CALIBRATED).activity_bq
    scaled = read(nm_object(RescaleSlope=0.5, RescaleIntercept=0.0), tmp_path, CALIBRATED).activity_bq
    assert scaled == pytest.approx(plain / 2)
    assert "BQML" in rejected(nm_object(RescaleSlope=0.5, RescaleType="BQML"), CALIBRATED).reason


def test_no_calibration_says_what_to_add_with_the_values_of_the_image() -> None:
    failure = rejected(nm_object(StationName="NM1"))
    assert "no calibration for camera 'ACME Gamma 2' with Lu-177" in failure.reason
    for text in (
        "[[camera]]",
        'ManufacturerModelName = "Gamma 2"',
        'StationName = "NM1"',
        'collimator = "MELP"',
    ):
        assert text in failure.remedy


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("I-131", 10.0),
        Calibration("Lu-177", 10.0, collimator="HE*"),
        Calibration("Lu-177", 10.0, reconstruction="*OSEM 8i*"),
        Calibration("Lu-177", 10.0, valid_from=date(2024, 3, 6)),
        Calibration("Lu-177", 10.0, valid_until=date(2024, 3, 4)),
    ],
)
def test_a_calibration_for_something_else_is_not_used(calibration: Calibration) -> None:
    camera = Camera("Gamma", {"Manufacturer": "ACME"}, calibrations=(calibration,))
    dataset = nm_object(SeriesDescription="AC SC OSEM 16i4s")
    assert "no calibration" in rejected(dataset, camera).reason
    assert "'Gamma'" in rejected(dataset, camera).remedy


def test_dates_of_validity_are_inclusive_and_patterns_select() -> None:
    day = date(2024, 3, 5)
    fitting = Calibration("Lu-177", 7.0, "me?p", "*osem 16i*", valid_from=day, valid_until=day)
    other = Calibration("Lu-177", 8.0, "MELP", "*OSEM 4i*")
    camera = Camera("Gamma", {"Manufacturer": "ACME"}, calibrations=(other, fitting))
    facts = describe_spect([nm_object(SeriesDescription="AC SC OSEM 16i4s")], (camera,))
    assert facts.conversions[0].calibration is fitting


def test_two_fitting_calibrations_are_both_named() -> None:
    camera = Camera(
        "Gamma",
        {"Manufacturer": "ACME"},
        calibrations=(Calibration("Lu-177", 7.25), Calibration("Lu-177", 8.5, "MELP")),
    )
    reason = rejected(nm_object(), camera).reason
    assert "7.25" in reason
    assert "8.5" in reason


def test_two_cameras_that_recognise_an_image_are_both_named() -> None:
    twin = Camera("Twin", {"Manufacturer": "AC*"})
    reason = rejected(nm_object(), CALIBRATED, twin).reason
    assert "'Gamma'" in reason
    assert "'Twin'" in reason
    assert camera_of(nm_object(Manufacturer="Else"), (CALIBRATED, twin)) is UNLISTED


def test_the_hash_tells_calibrations_apart() -> None:
    assert Calibration("Lu-177", 7.0).sha256 == Calibration("Lu-177", 7.0).sha256
    assert Calibration("Lu-177", 7.0).sha256 != Calibration("Lu-177", 7.0, valid_from=date(2024, 1, 1)).sha256


# ── the settings themselves ──────────────────────────────────────────────────────────────────────


def test_the_configuration_validates_cameras_by_pydantic() -> None:
    camera = TypeAdapter(Camera).validate_python(
        {
            "name": "Gamma",
            "match": {"Manufacturer": "ACME"},
            "require_corrected": ["ATTN"],
            "calibrations": [
                {"nuclide": "Lu-177", "sensitivity_cps_per_mbq": 9, "valid_from": date(2024, 1, 1)}
            ],
        }
    )
    assert camera.require_corrected == ("ATTN",)
    assert camera.calibrations == (Calibration("Lu-177", 9.0, valid_from=date(2024, 1, 1)),)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"sensitivty": 9}, "sensitivty"),
        ({"sensitivity_cps_per_mbq": 0}, "above 0"),
        ({"sensitivity_cps_per_mbq": float("nan")}, "above 0"),
        ({"nuclide": "Tc-99m"}, "Tc-99m"),
        ({"duration": "total"}, "per_view"),
        ({"sensitivity": "per_head"}, "needs heads"),
        ({"duration": "per_view"}, "needs heads"),
        ({"valid_from": date(2025, 1, 1), "valid_until": date(2024, 1, 1)}, "later than"),
        ({"heads": -1}, "negative"),
    ],
)
def test_an_unknown_key_or_a_bad_value_of_a_calibration_is_reported(change: dict, place: str) -> None:
    entry = {"nuclide": "Lu-177", "sensitivity_cps_per_mbq": 9.0} | change
    data = {"name": "Gamma", "match": {"Manufacturer": "ACME"}, "calibrations": [entry]}
    with pytest.raises(ValidationError, match=place):
        TypeAdapter(Camera).validate_python(data)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"colour": "grey"}, "colour"),
        ({"match": {}}, "was given nothing"),
        ({"match": {"PatientName": "X"}}, "PatientName"),
        ({"reference_time": "whenever"}, "reference_time"),
        ({"nuclide": "Tc-99m"}, "Tc-99m"),
    ],
)
def test_an_unknown_key_or_a_bad_value_of_a_camera_is_reported(change: dict, place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        TypeAdapter(Camera).validate_python({"name": "Gamma", "match": {"Manufacturer": "ACME"}} | change)


# ── what the header says of the scan ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "scheme", "name"),
    [
        ("447553000", "SCT", "Lu-177"),
        ("C-101ED", "SRT", "Lu-177"),
        ("C-162A7", "SRT", "Y-90"),
        ("1368003", "SCT", "I-131"),
    ],
)
def test_the_nuclide_is_read_by_code(value: str, scheme: str, name: str) -> None:
    dataset = nm_object(RadiopharmaceuticalInformationSequence=[radiopharmaceutical((value, scheme, "x"))])
    assert nuclide_of(dataset, UNLISTED).name == name
    assert administration(dataset).nuclide_name == name


def test_a_wrong_a_missing_and_a_double_nuclide_are_refused_by_name() -> None:
    technetium = radiopharmaceutical(("C-163A8", "SRT", "^99m^Technetium"))
    assert "Technetium" in rejected(nm_object(RadiopharmaceuticalInformationSequence=[technetium])).reason
    nameless = nm_object(RadiopharmaceuticalInformationSequence=[item(RadionuclideCodeSequence=[])])
    assert "names no radionuclide" in rejected(nameless).reason
    assert nuclide_of(nameless, Camera("C", {"Manufacturer": "*"}, nuclide="Y-90")).name == "Y-90"
    both = [radiopharmaceutical(), radiopharmaceutical(("C-162A7", "SRT", "^90^Yttrium"))]
    assert "447553000" in rejected(nm_object(RadiopharmaceuticalInformationSequence=both)).reason


def test_the_administered_activity_of_an_nm_object_is_in_mbq() -> None:
    given = administration(nm_object())
    assert given.activity_bq == pytest.approx(7.4e9)
    assert given.administered_at == datetime(2024, 3, 4, 10, 15, 30)


def test_an_administration_that_is_not_told_is_left_out_and_never_guessed() -> None:
    assert administration(Dataset()).activity_bq is None
    time_only = radiopharmaceutical(RadiopharmaceuticalStartTime="081500", RadionuclideTotalDose=0.0)
    given = administration(nm_object(RadiopharmaceuticalInformationSequence=[time_only]))
    assert given.administered_at is None
    assert given.activity_bq is None


@pytest.mark.parametrize("corrected", [["ATTN"], ["SCAT", "UNIF"], None])
def test_attenuation_and_scatter_must_be_corrected_unless_configured(corrected: list[str] | None) -> None:
    dataset = nm_object(CorrectedImage=corrected)
    assert "lacks" in rejected(dataset, CALIBRATED).reason
    lenient = Camera(
        "G", {"Manufacturer": "ACME"}, require_corrected=(), calibrations=CALIBRATED.calibrations
    )
    assert describe_spect([dataset], (lenient,)).camera is lenient


def test_the_reference_time_is_the_start_or_the_middle_of_the_acquisition_across_midnight() -> None:
    dataset = nm_object(AcquisitionTime="235500.5")
    start = datetime(2024, 3, 5, 23, 55, 0, 500000)
    assert describe_spect([dataset], (CALIBRATED,)).reference_time == start
    middle = Camera(
        "G",
        {"Manufacturer": "ACME"},
        reference_time="acquisition_middle",
        calibrations=CALIBRATED.calibrations,
    )
    # 60 stops of 20 s: the middle is 10 minutes later, on the next day.
    assert describe_spect([dataset], (middle,)).reference_time == start + timedelta(minutes=10)
    assert describe_spect([dataset], (middle,)).reference_time.day == 6


def test_time_zones_are_respected() -> None:
    dataset = nm_object(TimezoneOffsetFromUTC="+0200")
    assert acquisition_start(dataset) == datetime(2024, 3, 5, 8, 15, 30, tzinfo=UTC)
    assert administration(dataset).administered_at == datetime(2024, 3, 4, 8, 15, 30, tzinfo=UTC)
    naive = datetime(2024, 3, 5, 10, 15, 30)
    assert seconds_between(naive, acquisition_start(dataset)) == 0.0


@pytest.mark.parametrize(
    ("date_", "time"), [("", "101530"), ("20240305", ""), ("20240305", "251530"), ("2024", "1")]
)
def test_a_missing_or_impossible_time_is_refused(date_: str, time: str) -> None:
    dataset = nm_object()
    for keyword, text in (("AcquisitionDate", date_), ("AcquisitionTime", time)):
        dataset.add_new(keyword, "LO", text)  # as a text: pydicom warns of such a time
    rejected(dataset, CALIBRATED)


def test_the_duration_must_be_there_and_agree() -> None:
    turns = [item(NumberOfFramesInRotation=60, ActualFrameDuration=d) for d in (20000, 20000, 15000)]
    assert rotation_of(nm_object(RotationInformationSequence=turns[:2])).duration_s == 1200.0
    assert "rotations" in rejected(nm_object(RotationInformationSequence=turns), CALIBRATED).reason
    assert "Rotation" in rejected(nm_object(RotationInformationSequence=[]), CALIBRATED).reason


# ── values that cannot be activity ───────────────────────────────────────────────────────────────


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="every voxel is 0"):
        read(nm_object(np.zeros((4, 5, 6), dtype=np.uint16)), tmp_path, CALIBRATED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    array = np.ones((3, 3, 3), dtype=np.float32)
    array[1, 1, 1] = value
    with pytest.raises(InputRejected, match=r"1 voxels .* not finite"):
        without_undershoot(array, nm_object())


def test_slight_undershoot_counts_as_zero_and_is_told() -> None:
    array = np.ones((10, 10, 10), dtype=np.float32)
    array[0, 0, 0] = -0.5
    clean, note = without_undershoot(array, nm_object())
    assert clean.min() == 0.0
    assert clean.sum() == 999.0
    assert "1 voxels are negative, down to -0.5" in note


def test_negative_activity_is_refused_with_count_and_minimum(tmp_path: Path) -> None:
    pixels = np.ones((4, 5, 6), dtype=np.int16)
    pixels[0, 0, :3] = -7
    with pytest.raises(InputRejected, match="3 voxels are negative, down to") as failure:
        read(nm_object(pixels), tmp_path, CALIBRATED)
    assert failure.value.remedy


# ── plausibility ─────────────────────────────────────────────────────────────────────────────────


def test_the_fraction_is_of_the_decayed_administered_activity() -> None:
    found = plausibility(3.0e9, 7.4e9, 24.0, LU177)
    assert found.expected_bq == pytest.approx(7.4e9 * decay_factor(LU177, 86400))
    assert found.fraction == pytest.approx(3.0 / 7.4 * 2 ** (1 / 6.647))


def test_more_activity_than_was_administered_is_refused_with_numbers_and_causes() -> None:
    with pytest.raises(InputRejected, match="more activity than was administered: 9000 MBq") as failure:
        plausibility(9.0e9, 7.4e9, 4.0, LU177)
    assert "sensitivity" in failure.value.remedy
    assert plausibility(7.9e9, 7.4e9, 0.0, LU177).fraction < 1.10


@pytest.mark.parametrize("administered", [0.0, -1.0, float("nan"), 7.4e15])
def test_an_impossible_administered_activity_is_refused(administered: float) -> None:
    """7.4e15 Bq is 7.4 GBq written in Bq where MBq belongs."""
    with pytest.raises(InputRejected, match="not possible"):
        plausibility(1e9, administered, 4.0, LU177)


def test_an_image_before_the_administration_is_refused() -> None:
    with pytest.raises(InputRejected, match="earlier than the administration"):
        plausibility(1e9, 7.4e9, -1.0, LU177)
