"""Contours and segments become masks on the CT's grid, or a sentence that says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contours import polygon_fill
from pipeline.errors import InputRejected
from pipeline.rois import read_rois, rois_of
from pipeline.volume import Grid
from tests.pipeline.datasets import FRAME, OTHER_FRAME, ct_series, segmentation, structure_set, written

CT = Grid((30, 80, 90), (-44.5, -39.5, -43.5), (3.0, 1.0, 1.0), frame_of_reference_uid=FRAME)


def circle(
    z: float, radius: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 200
) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return np.stack([x, y, np.full(points, z)], axis=1)


def square(z: float, half: float) -> np.ndarray:
    return np.array([(-half, -half, z), (half, -half, z), (half, half, z), (-half, half, z)])


def sphere(radius: float, grid: Grid = CT, every: int = 1) -> list[np.ndarray]:
    """Contours on the slices of the grid, as a contouring station writes them."""
    heights = grid.positions([(k, 0, 0) for k in range(0, grid.shape[0], every)])[:, 2]
    return [circle(z, np.sqrt(radius**2 - z**2)) for z in heights if abs(z) < radius]


@pytest.mark.parametrize("radius", [12.0, 20.0, 33.0])
def test_a_contoured_sphere_has_its_volume(radius: float) -> None:
    roi = rois_of([structure_set({"sphere": sphere(radius)})], CT).found[0]
    volume_ml = roi.inside.sum() * CT.voxel_volume_ml
    assert volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)


def test_a_voxel_is_inside_when_its_centre_is() -> None:
    roi = rois_of([structure_set({"disc": [circle(-1.5, 17.3, (2.0, -3.0))]})], CT).found[0]
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in CT.shape], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(CT.positions(indices), -1, 0)
    expected = (np.hypot(x - 2, y + 3) < 17.3 * np.cos(np.pi / 200)) & (np.abs(z + 1.5) < 0.1)
    assert np.array_equal(roi.mask, expected)
    assert roi.values(z).tolist() == [-1.5] * expected.sum()


@given(
    start=st.tuples(st.floats(-2, 12), st.floats(-2, 12)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_areas_have_no_bias_wherever_an_outline_lies(
    start: tuple[float, float], size: tuple[int, int]
) -> None:
    """A box of whole voxels holds that many centres, also when it passes through centres."""
    (r, c), (h, w) = start, size
    box = np.array([(r, c), (r + h, c), (r + h, c + w), (r, c + w)])
    rows = np.sum((np.arange(12) >= r) & (np.arange(12) < r + h))
    columns = np.sum((np.arange(14) >= c) & (np.arange(14) < c + w))
    assert polygon_fill([box], (12, 14)).sum() == rows * columns


def test_inner_contours_and_keyholes_are_holes() -> None:
    outer, inner = square(-1.5, 20.0), square(-1.5, 10.0)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    two, one = rois_of([structure_set({"two": [outer, inner], "keyhole": [keyhole]})], CT).found
    assert two.inside.sum() == 40 * 40 - 20 * 20
    assert one.inside.sum() == pytest.approx(two.inside.sum(), abs=0)


def test_a_contour_that_is_written_twice_counts_once() -> None:
    roi = rois_of([structure_set({"twice": [square(-1.5, 10.0)] * 2})], CT).found[0]
    assert roi.inside.sum() == 400


def test_contours_match_slices_within_half_a_slice() -> None:
    near, far = structure_set({"near": [square(-0.2, 5.0)]}), structure_set({"far": [square(46.0, 5.0)]})
    assert rois_of([near], CT).found[0].box[0] == slice(14, 15)
    rois = rois_of([far], CT)
    assert rois.found == ()
    assert "outside the CT" in rois.problems[0]


def test_contours_drawn_closer_or_further_than_the_slices_keep_the_volume() -> None:
    """Planes of a 1.5 mm image on a 3 mm CT, and every second slice of the CT."""
    fine = replace(CT, shape=(60, 80, 90), spacing_mm=(1.5, 1.0, 1.0), origin_mm=(-44.5, -39.5, -43.5))
    full = rois_of([structure_set({"s": sphere(30.0)})], CT).found[0].inside.sum()
    for contours in (sphere(30.0, fine), sphere(30.0, every=2)):
        roi = rois_of([structure_set({"s": contours})], CT).found[0]
        assert roi.inside.sum() == pytest.approx(full, rel=0.04)


def test_names_numbers_and_sources_are_kept(tmp_path: Path) -> None:
    dataset = structure_set({"Liver": sphere(20.0), "Kidney L": sphere(10.0)})
    rois = read_rois(written([dataset], tmp_path), CT)
    assert [(roi.name, roi.number) for roi in rois.found] == [("Liver", 1), ("Kidney L", 2)]
    assert {roi.source_uid for roi in rois.found} == {dataset.SOPInstanceUID}
    assert rois.problems == ()


@pytest.mark.parametrize(
    ("contours", "kind", "words"),
    [
        ([], "CLOSED_PLANAR", "no contours"),
        ([circle(0.0, 5.0, (500.0, 0.0))], "CLOSED_PLANAR", "outside the CT"),
        ([square(0.0, 5.0)[:1]], "POINT", "POINT enclose no volume"),
        ([circle(0.0, 20.0)[:, [0, 2, 1]]], "CLOSED_PLANAR", "not parallel"),
    ],
)
def test_a_region_that_has_no_mask_is_told_and_the_others_stay(contours: list, kind: str, words: str) -> None:
    bad, good = structure_set({"odd": contours}, kind=kind), structure_set({"good": sphere(10.0)})
    rois = rois_of([bad, good], CT)
    assert [roi.name for roi in rois.found] == ["good"]
    assert "'odd'" in rois.problems[0]
    assert words in rois.problems[0]


def test_a_region_that_reaches_beyond_the_ct_is_kept_and_told() -> None:
    rois = rois_of([structure_set({"arm": [circle(0.0, 20.0, (44.0, 0.0))]})], CT)
    assert rois.found[0].name == "arm"
    assert "beyond the CT" in rois.problems[0]


def test_oblique_grids_are_contoured_in_their_own_planes() -> None:
    turned = replace(CT, direction=((0.0, -0.6, 0.8), (0.0, 0.8, 0.6), (1.0, 0.0, 0.0)))
    corners = turned.positions([(4, 9.5, 9.5), (4, 9.5, 29.5), (4, 19.5, 29.5), (4, 19.5, 9.5)])
    roi = rois_of([structure_set({"box": [corners]})], turned).found[0]
    assert roi.box == (slice(4, 5), slice(10, 20), slice(10, 30))
    assert roi.inside.all()


# ── segmentations ────────────────────────────────────────────────────────────────────────────────

ORIGIN = (-44.5, -39.5, -43.5)


def boxes() -> dict[str, np.ndarray]:
    first, second = np.zeros((2, *CT.shape), dtype=np.uint8)
    first[4:7, 10:20, 30:50] = 1
    second[6:9, 40:41, 50:53] = 1
    second[20] = second[8]  # planes between are left out of the object
    return {"liver": first, "lesion": second}


def test_binary_segments_on_the_grid_of_the_ct_are_copied() -> None:
    segments = boxes()
    rois = rois_of([segmentation(segments, origin=ORIGIN, spacing_mm=(3.0, 1.0, 1.0))], CT)
    assert [(roi.name, roi.number) for roi in rois.found] == [("liver", 1), ("lesion", 2)]
    for roi, array in zip(rois.found, segments.values(), strict=True):
        assert np.array_equal(roi.mask, array.astype(bool))


def test_segments_on_another_lattice_keep_place_and_volume() -> None:
    coarse = np.zeros((20, 20, 20), dtype=np.uint8)
    coarse[5:11, 6:14, 4:12] = 1
    dataset = segmentation({"node": coarse}, origin=(-40.0, -38.0, -40.0), spacing_mm=(4.0, 3.0, 3.0))
    roi = rois_of([dataset], CT).found[0]
    assert roi.inside.sum() * CT.voxel_volume_ml == pytest.approx(coarse.sum() * 0.036, rel=0.05)
    centre = [(s.start + s.stop - 1) / 2 for s in roi.box]
    assert np.allclose(CT.positions(centre), (-40 + 3 * 7.5, -38 + 3 * 9.5, -40 + 4 * 7.5), atol=1.5)


def test_fractional_segments_count_from_one_half() -> None:
    array = np.zeros(CT.shape, dtype=np.uint8)
    array[3:5, 10, 10:14] = (100, 127, 128, 255)
    dataset = segmentation({"f": array}, origin=ORIGIN, spacing_mm=(3.0, 1.0, 1.0), kind="FRACTIONAL")
    assert np.array_equal(rois_of([dataset], CT).found[0].mask, array >= 128)


def test_a_segment_outside_the_ct_is_told() -> None:
    dataset = segmentation(boxes(), origin=(1000.0, 0.0, 0.0), spacing_mm=(3.0, 1.0, 1.0))
    rois = rois_of([dataset], CT)
    assert rois.found == ()
    assert len(rois.problems) == 2


def test_another_frame_of_reference_is_refused() -> None:
    for dataset in (
        structure_set({"s": sphere(10.0)}, frame=OTHER_FRAME),
        segmentation(boxes(), origin=ORIGIN, spacing_mm=(3.0, 1.0, 1.0), frame=OTHER_FRAME),
    ):
        with pytest.raises(InputRejected, match="frame of reference") as failure:
            rois_of([dataset], CT)
        assert failure.value.remedy


def test_an_object_without_regions_is_refused() -> None:
    with pytest.raises(InputRejected, match="no ROIs"):
        rois_of(ct_series()[:1], CT)
    labelled = segmentation(boxes(), origin=ORIGIN, spacing_mm=(3.0, 1.0, 1.0))
    labelled.SegmentationType = "LABELMAP"
    with pytest.raises(InputRejected, match="LABELMAP"):
        rois_of([labelled], CT)
