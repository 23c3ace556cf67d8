"""Frames of a reconstructed SPECT lie where PS3.3 puts them, whichever way they are stacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.camera import Calibration, Camera
from pipeline.errors import InputRejected
from pipeline.nm import nm_geometry
from pipeline.spect import read_spect
from tests.pipeline.datasets import item, nm_object, written

CAMERAS = (Camera("Gamma", {"Manufacturer": "ACME"}, calibrations=(Calibration("Lu-177", 10.0),)),)
POSITION = (-47.3, 61.9, -212.7)
ORIENTATIONS = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "reversed columns": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "reversed rows": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "feet first prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "tilted": (0.99998, 0.00632, 0.0, -0.00632, 0.99998, 0.000213),
}


def hot_voxel_position(
    slice_number: int, row: int, column: int, orientation: tuple[float, ...], spacing_mm: float
) -> np.ndarray:
    """PS3.3 C.7.6.2.1.1 in the plane, PS3.3 C.8.4.15 from plane to plane; written out by hand.

    slice_number: from 1. The pixel spacing of the data set is (4.0 between rows, 5.0 between columns).
    """
    xx, xy, xz, yx, yy, yz = orientation
    normal = np.array([xy * yz - xz * yy, xz * yx - xx * yz, xx * yy - xy * yx])
    normal = normal / np.sqrt(np.sum(normal * normal))
    first_row = np.array([xx, xy, xz]) * 5.0 * column
    first_column = np.array([yx, yy, yz]) * 4.0 * row
    return np.array(POSITION) + first_row + first_column + (slice_number - 1) * spacing_mm * normal


@pytest.mark.parametrize("modality", ["NM", "OT"])
@pytest.mark.parametrize("reversed_frames", [False, True])
@pytest.mark.parametrize("spacing_mm", [4.8, -4.8])
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def test_a_hot_voxel_is_found_at_its_place_in_the_patient(
    tmp_path: Path,
    orientation: tuple[float, ...],
    spacing_mm: float,
    reversed_frames: bool,
    modality: str,
) -> None:
    frames, row, column, slice_number = 7, 3, 1, 6
    pixels = np.zeros((frames, 5, 6), dtype=np.int16 if modality == "OT" else np.uint16)
    vector = list(range(1, frames + 1))[:: -1 if reversed_frames else 1]
    pixels[vector.index(slice_number), row, column] = 1000
    dataset = nm_object(
        pixels,
        position=POSITION,
        orientation=orientation,
        spacing_mm=spacing_mm,
        SliceVector=vector,
        Modality=modality,
    )
    image = read_spect(written([dataset], tmp_path), CAMERAS)
    hottest = np.unravel_index(image.activity.array.argmax(), image.activity.array.shape)
    expected = hot_voxel_position(slice_number, row, column, orientation, spacing_mm)
    assert np.allclose(image.activity.grid.positions(hottest), expected, atol=1e-3)
    assert np.count_nonzero(image.activity.array) == 1
    assert min(image.activity.grid.spacing_mm) > 0


def test_slightly_tilted_cosines_are_not_rounded() -> None:
    tilted = nm_geometry(nm_object(orientation=ORIENTATIONS["tilted"])).grid
    assert tilted.direction[2] == ORIENTATIONS["tilted"][:3]
    assert tilted.direction[1] == ORIENTATIONS["tilted"][3:]


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_a_spect_without_a_place_is_refused(keyword: str) -> None:
    dataset = nm_object()
    delattr(dataset.DetectorInformationSequence[0], keyword)
    with pytest.raises(InputRejected, match=f"{dataset.SOPInstanceUID}.* has no {keyword}"):
        nm_geometry(dataset)


def test_a_spect_without_detectors_is_refused() -> None:
    with pytest.raises(InputRejected, match="no ImagePositionPatient"):
        nm_geometry(nm_object(DetectorInformationSequence=[]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, "projections"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]}, "RECON TOMO"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]}, "RECON TOMO"),
        ({"ImageType": ["DERIVED", "PRIMARY", "RECON GATED TOMO", "EMISSION"]}, "ungated"),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, "RECON TOMO"),
        ({"FrameIncrementPointer": [0x00540070, 0x00540080]}, "RECON TOMO"),
        ({"EnergyWindowVector": [1, 1, 2, 2]}, "one energy window"),
        ({"NumberOfSlices": 2}, "RECON TOMO"),
        ({"SliceVector": [1, 2, 2, 3]}, "RECON TOMO"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "RECON TOMO"),
        ({"SpacingBetweenSlices": None}, "Export"),
        ({"Rows": None}, "Export"),
        ({"EnergyWindowVector": 1, "NumberOfFrames": 1}, "RECON TOMO"),
        ({"SpacingBetweenSlices": 0}, "PixelSpacing"),
        ({"FrameOfReferenceUID": None}, "one session"),
    ],
)
def test_what_is_not_one_placed_volume_is_refused_with_a_remedy(values: dict, words: str) -> None:
    with pytest.raises(InputRejected) as failure:
        nm_geometry(nm_object(**values))
    assert words in failure.value.remedy


def test_a_single_frame_is_no_volume() -> None:
    with pytest.raises(InputRejected, match=r"1 frame\(s\)"):
        nm_geometry(nm_object(np.ones((1, 5, 6), dtype=np.uint16)))


def test_several_rows_of_energy_windows_in_the_header_do_not_matter() -> None:
    """Scatter windows are listed although the reconstruction is one volume."""
    windows = [item(EnergyWindowName=name) for name in ("208", "lower", "upper")]
    dataset = nm_object(NumberOfEnergyWindows=3, EnergyWindowInformationSequence=windows)
    assert nm_geometry(dataset).grid.shape == (4, 5, 6)
