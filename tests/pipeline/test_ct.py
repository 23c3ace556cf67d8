"""CT slices become Hounsfield units at the right place, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.ct import ct_geometry, hounsfield, read_ct
from pipeline.errors import InputRejected
from tests.pipeline.datasets import OTHER_FRAME, ct_series, written

OBLIQUE = (0.6, 0.8, 0.0, -0.48, 0.36, 0.8)


def rejected(headers: list[Dataset]) -> InputRejected:
    with pytest.raises(InputRejected) as failure:
        ct_geometry(headers)
    return failure.value


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), OBLIQUE])
def test_slices_are_sorted_by_position_and_voxels_lie_where_the_standard_says(orientation: tuple) -> None:
    """PS3.3 C.7.6.2.1.1: P = S + X·Δcolumn·j + Y·Δrow·i, for every slice by itself."""
    slices = ct_series(orientation=orientation)
    stack = ct_geometry(slices[::2] + slices[1::2])
    shuffled = slices[::2] + slices[1::2]
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    for z, index in enumerate(stack.order):
        header = shuffled[index]
        i, j = 3, 5  # row, column
        expected = np.array(header.ImagePositionPatient, dtype=float) + x * 1.5 * j + y * 2.0 * i
        assert np.allclose(stack.grid.positions((z, i, j)), expected, atol=1e-6)


def test_hounsfield_units_use_the_rescale_of_each_slice(tmp_path: Path) -> None:
    slices = ct_series(np.full((3, 4, 6), 100, dtype=np.int16))
    slices[1].RescaleSlope, slices[1].RescaleIntercept = 2.0, -1000.0
    seen: list[int] = []
    hu = read_ct(written(slices[::-1], tmp_path), seen.append)
    assert [set(plane.ravel()) for plane in hu.array] == [{-924.0}, {-800.0}, {-924.0}]
    assert seen == [1, 2, 3]
    assert hu.unit == "HU"


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_both_pixel_representations_are_read(tmp_path: Path, dtype: type) -> None:
    pixels = np.arange(5 * 4 * 6, dtype=dtype).reshape(5, 4, 6)
    hu = read_ct(written(ct_series(pixels), tmp_path))
    assert np.array_equal(hu.array, pixels.astype(np.float32) - 1024)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_slices_are_decoded(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 3000, (3, 64, 64)).astype(np.uint16)
    slices = ct_series(pixels)
    for dataset in slices:
        dataset.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(read_ct(written(slices, tmp_path)).array, pixels.astype(np.float32) - 1024)


def test_padding_becomes_air_also_as_an_unsigned_bit_pattern() -> None:
    pixels = np.full((2, 4, 6), 1064, dtype=np.int16)
    pixels[:, 0, 0] = -2000
    plain = ct_series(pixels, PixelPaddingValue=-2000)[0]
    unsigned = ct_series(pixels)[0]
    unsigned.add_new("PixelPaddingValue", "US", 63536)
    for dataset in (plain, unsigned):
        hu = hounsfield(dataset)
        assert hu[0, 0] == -1000.0
        assert hu[1, 1] == 40.0


def test_a_padding_value_that_is_also_a_tissue_is_not_believed() -> None:
    water = ct_series(np.zeros((2, 4, 6), dtype=np.int16), RescaleIntercept=0.0, PixelPaddingValue=0)[0]
    assert np.all(hounsfield(water) == 0.0)


def test_missing_slices_are_named_by_position() -> None:
    slices = ct_series(shape=(9, 4, 6))
    failure = rejected(slices[:3] + slices[5:])
    assert "2 CT slice(s) are missing, at 109.0, 112.0 mm" in failure.reason
    assert failure.remedy


def test_two_slices_at_one_position_are_named() -> None:
    slices = ct_series() + ct_series()[2:3]
    slices[-1].SeriesInstanceUID = slices[0].SeriesInstanceUID
    failure = rejected(slices)
    assert "two CT slices lie at 106.00 mm" in failure.reason
    assert slices[-1].SOPInstanceUID in failure.reason
    assert slices[2].SOPInstanceUID in failure.reason


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Rows", 5),
        ("PixelSpacing", [2.0, 1.6]),
        ("ImageOrientationPatient", [0.9998, 0.02, 0.0, -0.02, 0.9998, 0.0]),
        ("FrameOfReferenceUID", OTHER_FRAME),
        ("SeriesInstanceUID", "1.2.3"),
    ],
)
def test_a_slice_that_does_not_belong_is_named(keyword: str, value: object) -> None:
    slices = ct_series()
    setattr(slices[3], keyword, value)
    failure = rejected(slices)
    assert keyword in failure.reason
    assert slices[3].SOPInstanceUID in failure.reason


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("RescaleSlope", None, "no RescaleSlope"),
        ("RescaleIntercept", None, "no RescaleIntercept"),
        ("RescaleType", "US", "not Hounsfield"),
        ("ImagePositionPatient", None, "no ImagePositionPatient"),
        ("FrameOfReferenceUID", "", "no FrameOfReferenceUID"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2.1", "Enhanced"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4", "no CT image"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "localizer"),
    ],
)
def test_what_is_no_complete_ct_slice_is_refused_with_a_remedy(
    keyword: str, value: object, words: str
) -> None:
    slices = ct_series()
    setattr(slices[1], keyword, value)
    failure = rejected(slices)
    assert words in failure.reason
    assert slices[1].SOPInstanceUID in failure.reason
    assert failure.remedy


def test_a_tilted_gantry_is_refused() -> None:
    slices = ct_series()
    for k, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [-10.0, -20.0 + 0.4 * k, 100.0 + 3.0 * k]
    assert "tilt" in rejected(slices).remedy


def test_rounded_positions_are_tolerated_and_uneven_ones_are_not() -> None:
    slices = ct_series(shape=(30, 4, 6))
    for k, dataset in enumerate(slices):
        dataset.ImagePositionPatient[2] = round(100 + 3.0 * k + 0.02 * (-1) ** k, 2)
    assert ct_geometry(slices).grid.spacing_mm[0] == pytest.approx(3.0, rel=1e-3)
    slices[10].ImagePositionPatient[2] += 0.8
    assert "unevenly" in rejected(slices).reason


def test_one_slice_is_no_volume() -> None:
    assert "1 slice" in rejected(ct_series()[:1]).reason


def test_broken_pixel_data_is_refused_by_name() -> None:
    dataset = ct_series()[0]
    dataset.PixelData = dataset.PixelData[:10]
    with pytest.raises(InputRejected, match=dataset.SOPInstanceUID):
        hounsfield(dataset)


def test_a_file_that_is_not_dicom_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    with pytest.raises(InputRejected, match=r"notes\.txt is not a DICOM file"):
        read_ct([path])
