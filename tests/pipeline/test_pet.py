"""PET slices: units slice by slice, and the instant that decay correction refers to."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.acquisition import administration
from pipeline.activity import Rule
from pipeline.camera import Camera
from pipeline.decay import decay_factor, nuclide
from pipeline.errors import InputRejected
from pipeline.pet import pet_geometry
from pipeline.spect import SpectImage, describe_spect, read_spect
from tests.pipeline.datasets import in_bq_per_ml, pet_series, written

PIXELS = np.full((3, 4, 6), 10, dtype=np.int16)
SLOPES = (1.0, 2.0, 3.0)
Y90 = nuclide("Y-90")
MIDDLE = Camera("PET", {"Manufacturer": "*"}, reference_time="acquisition_middle")


def read(folder: Path, *cameras: Camera, **values: object) -> SpectImage:
    slices = pet_series(PIXELS, SLOPES, **values)
    return read_spect(written(slices[::-1], folder), cameras)


def test_every_slice_has_its_own_slope(tmp_path: Path) -> None:
    image = read(tmp_path)
    assert [plane.max() for plane in image.activity.array] == [10.0, 20.0, 30.0]
    assert image.conversion.rule is Rule.PET_UNITS
    assert image.nuclide == Y90
    assert image.reference_time == datetime(2024, 3, 5, 10, 15, 30)


def test_a_real_world_value_mapping_comes_before_units(tmp_path: Path) -> None:
    image = read(tmp_path, Units="CNTS", RealWorldValueMappingSequence=[in_bq_per_ml(7.0, "kBq/ml")])
    assert np.allclose(image.activity.array, 70000.0)


def test_a_mapping_to_suv_beside_units_of_activity_does_not_matter(tmp_path: Path) -> None:
    image = read(tmp_path, RealWorldValueMappingSequence=[in_bq_per_ml(0.001, "g/ml{SUVbw}")])
    assert image.conversion.rule is Rule.PET_UNITS


def test_the_administered_activity_of_a_pet_is_in_bq() -> None:
    assert administration(pet_series(PIXELS, SLOPES)[0]).activity_bq == 2.0e9


def test_activity_corrected_to_the_administration_is_decayed_to_the_acquisition(tmp_path: Path) -> None:
    start, admin = read(tmp_path), read(tmp_path, DecayCorrection="ADMIN")
    assert admin.reference_time == start.reference_time
    assert admin.activity_bq == pytest.approx(start.activity_bq * decay_factor(Y90, 2 * 3600), rel=1e-5)
    assert any("2.00 h" in note for note in admin.notes)


def test_the_middle_of_the_acquisition_can_be_the_reference(tmp_path: Path) -> None:
    middle = read(tmp_path, MIDDLE)
    assert middle.reference_time == datetime(2024, 3, 5, 10, 25, 30)
    assert middle.activity_bq == pytest.approx(read(tmp_path).activity_bq * decay_factor(Y90, 600), rel=1e-5)
    uncorrected = read(tmp_path, MIDDLE, DecayCorrection="NONE")
    assert uncorrected.activity_bq == pytest.approx(read(tmp_path).activity_bq)


def test_a_series_time_after_the_acquisition_is_not_believed(tmp_path: Path) -> None:
    """Derived series carry the time of the derivation."""
    assert read(tmp_path, SeriesTime="170000").activity_bq == read(tmp_path).activity_bq


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Units": "CNTS"}, "BQML"),
        ({"Units": "GML"}, "BQML"),
        ({"SeriesType": ["GATED", "IMAGE"]}, "GATED"),
        ({"SeriesType": ["DYNAMIC", "IMAGE"]}, "DYNAMIC"),
        ({"DecayCorrection": None}, "DecayCorrection"),
        ({"DecayCorrection": "OTHER"}, "OTHER"),
        ({"CorrectedImage": ["DECY", "ATTN"]}, "SCAT"),
        ({"AcquisitionTime": None}, "AcquisitionTime"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.130"}, "Enhanced"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(values: dict, words: str) -> None:
    slices = pet_series(PIXELS, SLOPES, **values)
    with pytest.raises(InputRejected, match=words) as failure:
        describe_spect(slices, ()) if "SOPClassUID" not in values else pet_geometry(slices)
    assert failure.value.remedy


def test_beds_at_different_times_need_decay_correction() -> None:
    slices = pet_series(PIXELS, SLOPES, DecayCorrection="NONE")
    slices[2].AcquisitionTime = "103530"
    with pytest.raises(InputRejected, match="1200 s without decay correction"):
        describe_spect(slices, ())


def test_correction_to_an_unknown_administration_is_refused() -> None:
    slices = pet_series(PIXELS, SLOPES, DecayCorrection="ADMIN")
    for dataset in slices:
        del dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
        dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "081530"
    with pytest.raises(InputRejected, match="RadiopharmaceuticalStartDateTime"):
        describe_spect(slices, ())


def test_slices_of_different_units_or_missing_slices_are_refused() -> None:
    slices = pet_series(PIXELS, SLOPES)
    slices[1].Units = "CNTS"
    with pytest.raises(InputRejected, match="differ in Units"):
        pet_geometry(slices)
    five = pet_series(np.zeros((5, 4, 6), dtype=np.int16), (1.0,) * 5)
    with pytest.raises(InputRejected, match="1 PET slice"):
        pet_geometry(five[:2] + five[3:])
