"""Resampling keeps activity and mass, places, and whole voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.averaging import overlap_weights
from pipeline.errors import InputRejected
from pipeline.grid import (
    CONSERVED_WITHIN,
    activity_onto,
    activity_within,
    image_of,
    resample,
    resample_nearest,
    volume_of,
)
from pipeline.lattice import active_box, coarser, crop_box, field_of_view, lengthened, recut, union_grid
from pipeline.volume import Grid, Volume

CT = Grid((40, 64, 60), (-60.0, -62.0, -58.0), (3.0, 2.0, 2.0), frame_of_reference_uid="1.2")
SPECT = Grid((36, 40, 40), (-95.0, -93.0, -84.0), (4.8, 4.8, 4.8), frame_of_reference_uid="1.2")


def turned(grid: Grid, degrees: float, about: int = 0) -> Grid:
    """The grid with its axes turned in the patient; about: 0 = x, 1 = y, 2 = z."""
    angle = np.radians(degrees)
    a, b = [i for i in range(3) if i != about]
    rotation = np.eye(3)
    rotation[a, a] = rotation[b, b] = np.cos(angle)
    rotation[a, b], rotation[b, a] = -np.sin(angle), np.sin(angle)
    z, y, x = (tuple(float(v) for v in rotation @ np.array(axis)) for axis in grid.direction)
    return replace(grid, direction=(z, y, x))


def blob(grid: Grid, centre_mm: tuple[float, float, float], sigma_mm: float, peak: float = 1e5) -> Volume:
    """A Gaussian of activity, Bq/mL."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    squared = ((grid.positions(indices) - np.array(centre_mm)) ** 2).sum(axis=-1)
    return Volume((peak * np.exp(-squared / 2 / sigma_mm**2)).astype(np.float32), grid, "Bq/mL")


def centroid(volume: Volume) -> np.ndarray:
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in volume.grid.shape], indexing="ij"), axis=-1)
    weights = volume.array[..., None].astype(np.float64)
    return (volume.grid.positions(indices) * weights).sum(axis=(0, 1, 2)) / weights.sum()


def total(volume: Volume) -> float:
    return float(volume.array.sum(dtype=np.float64)) * volume.grid.voxel_volume_ml


def test_simpleitk_images_keep_place_and_values() -> None:
    volume = blob(turned(SPECT, 12.0), (0, 0, 0), 12.0)
    image = image_of(volume)
    index = (3, 5, 7)  # z, y, x
    assert np.allclose(image.TransformIndexToPhysicalPoint(index[::-1]), volume.grid.positions(index))
    back = volume_of(image, "Bq/mL", "1.2")
    assert back.grid.same_as(volume.grid)
    assert np.array_equal(back.array, volume.array)


@given(phase=st.floats(0, 1), width=st.floats(0.1, 4.0), n=st.integers(1, 12))
def test_weights_share_out_every_source_voxel_completely(phase: float, width: float, n: int) -> None:
    """Over targets that tile the whole axis, Σ weight · width is the length of each source voxel."""
    targets = -0.5 + width * (phase - 1 + np.arange(int(n / width) + 3))
    weights = overlap_weights(targets, width, n)
    assert np.allclose(weights.sum(axis=0) * width, 1.0, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("spacing", [(3.0, 2.0, 2.0), (3.0, 4.8, 4.8), (7.0, 6.1, 9.0)])
def test_activity_is_conserved_onto_finer_and_coarser_lattices(degrees: float, spacing: tuple) -> None:
    """Even that of a single hot voxel, which sampling at voxel centres would miss by several per cent."""
    array = np.zeros(SPECT.shape, dtype=np.float32)
    array[18, 20, 19] = 1e6
    spect = Volume(array, turned(SPECT, degrees), "Bq/mL")
    found, report = activity_onto(
        spect, coarser(replace(CT, spacing_mm=(1.0, 1.0, 1.0), shape=(120, 128, 120)), spacing)
    )
    assert abs(report.common_difference) <= CONSERVED_WITHIN
    assert total(found) == pytest.approx(total(spect), rel=CONSERVED_WITHIN)


@settings(max_examples=15, deadline=None)
@given(
    centre=st.tuples(st.floats(-90, 80), st.floats(-90, 80), st.floats(-80, 80)),
    degrees=st.floats(-20, 20),
    about=st.integers(0, 2),
)
@example(centre=(48.0, 59.0, 0.0), degrees=16.0, about=2)
@example(centre=(53.0, 0.0, 50.0), degrees=19.125, about=1)
@example(centre=(29.73, 23.57, 54.9), degrees=-18.47, about=0)
@example(centre=(-66.53, -17.88, 5.59), degrees=-2.55, about=0)
def test_the_common_volume_keeps_its_activity_wherever_the_ct_cuts_it(
    centre: tuple[float, float, float], degrees: float, about: int
) -> None:
    spect = blob(turned(SPECT, degrees, about), centre, 8.0)
    floor = Volume(spect.array + np.float32(100), spect.grid, "Bq/mL")  # so that something lies in the CT
    _, report = activity_onto(floor, CT)
    assert abs(report.common_difference) <= CONSERVED_WITHIN
    assert report.within_ct_mbq + report.outside_ct_mbq == pytest.approx(report.total_mbq)


def test_activity_outside_the_ct_is_reported_and_stays_on_the_union() -> None:
    """Nothing is renormalised: half of a source on the CT's face counts half inside."""
    face_x = CT.positions((0, 0, -0.5))[0]
    spect = blob(SPECT, (face_x, 0.0, 0.0), 8.0)
    lattice = union_grid(CT, active_box(spect))
    found, report = activity_onto(spect, lattice, CT)
    assert report.outside_ct_mbq == pytest.approx(report.total_mbq / 2, rel=0.02)
    assert total(found) / 1e6 == pytest.approx(report.total_mbq, rel=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 0.2, 7.0])
def test_a_hot_spot_stays_where_it_is_in_the_patient(degrees: float) -> None:
    centre = (11.3, -7.7, 5.9)
    spect = blob(turned(SPECT, degrees), centre, 9.0)
    found = resample(spect, CT)
    assert np.allclose(centroid(found), centre, atol=0.05)


def test_a_uniform_concentration_stays_what_it_is() -> None:
    spect = Volume(np.full(SPECT.shape, 7.0, dtype=np.float32), turned(SPECT, 5.0), "Bq/mL")
    assert np.allclose(resample(spect, CT).array, 7.0, rtol=1e-5)


def test_a_finer_lattice_gets_linear_interpolation() -> None:
    """A ramp is reproduced exactly, flipped and transposed axes included."""
    flipped = replace(
        SPECT, direction=((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0)), origin_mm=(90, -90, 90)
    )
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in flipped.shape], indexing="ij"), axis=-1)
    ramp = flipped.positions(indices) @ (1.0, 2.0, -0.5) + 500
    found = resample(Volume(ramp.astype(np.float32), flipped, "HU"), CT)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in CT.shape], indexing="ij"), axis=-1)
    inside = field_of_view(flipped.boxed((1, 1, 1), tuple(n - 2 for n in flipped.shape)), CT)
    assert inside.mean() > 0.5
    assert np.allclose(
        found.array[inside], (CT.positions(indices) @ (1.0, 2.0, -0.5) + 500)[inside], rtol=1e-5
    )


def test_mass_is_conserved_onto_a_coarser_dose_grid() -> None:
    rng = np.random.default_rng(3)
    density = Volume(rng.uniform(0.2, 1.9, CT.shape).astype(np.float32), CT, "g/cm3")
    coarse = resample(density, coarser(CT, (5.0, 4.4, 4.4)))
    assert total(coarse) == pytest.approx(total(density), rel=1e-5)


def test_a_coarser_lattice_covers_the_same_box_and_never_refines() -> None:
    coarse = coarser(CT, (2.0, 4.8, 4.8))
    assert coarse.spacing_mm == (3.0, 4.8, 4.8)
    assert field_of_view(coarse, CT).all()
    centre = [(n - 1) / 2 for n in CT.shape]
    assert np.allclose(coarse.indices(CT.positions(centre)), [(n - 1) / 2 for n in coarse.shape])


def test_the_union_keeps_the_ct_voxels_and_covers_the_other_field() -> None:
    union = union_grid(CT, turned(SPECT, 4.0))
    offset = union.indices(CT.origin_mm)
    assert np.allclose(offset, np.round(offset), atol=1e-6)
    assert field_of_view(union, turned(SPECT, 4.0)).all()
    assert field_of_view(union, CT).all()
    assert union_grid(CT, CT).same_as(CT)


def test_the_active_box_leaves_out_the_empty_rim_only() -> None:
    spect = blob(SPECT, (0.0, 0.0, 0.0), 10.0)
    spect.array[spect.array < 1e-3] = 1e-3  # what OSEM leaves in an empty corner
    box = active_box(spect)
    assert np.prod(box.shape) < 0.4 * np.prod(SPECT.shape)
    assert activity_within(spect, box) > (1 - 1e-4) * total(spect)


def test_recutting_copies_whole_voxels_and_fills_the_rest() -> None:
    rng = np.random.default_rng(4)
    density = Volume(rng.random(CT.shape).astype(np.float32), CT, "g/cm3")
    union = union_grid(CT, SPECT)
    wide = recut(density, union, outside=0.0012)
    assert np.array_equal(recut(wide, CT).array, density.array)
    assert np.count_nonzero(wide.array == np.float32(0.0012)) == np.prod(union.shape) - np.prod(CT.shape)
    with pytest.raises(ValueError, match="lattice"):
        recut(density, SPECT)


@pytest.mark.parametrize("upwards", [True, False])
def test_end_slices_are_repeated_as_far_as_another_grid_reaches(upwards: bool) -> None:
    whole = blob(CT, (0, 0, 0), 30.0)
    if not upwards:
        (x, y, z), (along_z, *rest) = CT.positions([CT.shape[0] - 1, 0, 0]), CT.direction
        grid = replace(CT, origin_mm=(x, y, z), direction=((0.0, 0.0, -along_z[2]), *rest))
        whole = Volume(whole.array[::-1].copy(), grid, whole.unit)
    short = whole.boxed((slice(10, 30), slice(0, 64), slice(0, 60)))
    longer = lengthened(short, CT)
    assert longer.grid.same_as(whole.grid)
    assert np.array_equal(longer.array[10:30], short.array)
    assert np.array_equal(longer.array[0], short.array[0])
    assert np.array_equal(longer.array[-1], short.array[-1])
    assert lengthened(whole, short.grid) is whole


def test_labels_keep_their_values() -> None:
    labels = Volume((np.indices(SPECT.shape).sum(axis=0) % 3).astype(np.float32), turned(SPECT, 3.0), "1")
    assert set(np.unique(resample_nearest(labels, CT).array)) == {0.0, 1.0, 2.0}


def test_a_box_around_a_mask_has_the_margin_that_the_grid_allows() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[0, 2:4, 3] = True
    assert crop_box(mask, (1, 1, 1)) == (slice(0, 2), slice(1, 5), slice(2, 5))
    with pytest.raises(ValueError, match="empty"):
        crop_box(np.zeros((2, 2, 2), dtype=bool))


def test_different_frames_of_reference_are_rejected() -> None:
    with pytest.raises(InputRejected, match="Frame of Reference") as failure:
        activity_onto(blob(replace(SPECT, frame_of_reference_uid="9.9"), (0, 0, 0), 9.0), CT)
    assert "Spatial Registration" in failure.value.remedy


def test_a_spect_beside_the_ct_is_rejected() -> None:
    far = replace(SPECT, origin_mm=(500.0, 500.0, 500.0))
    with pytest.raises(InputRejected, match="no activity lies within the CT"):
        activity_onto(Volume(np.ones(far.shape, dtype=np.float32), far, "Bq/mL"), CT)


def test_counts_are_not_taken_for_activity() -> None:
    with pytest.raises(ValueError, match="Bq/mL"):
        activity_onto(Volume(np.ones(SPECT.shape, dtype=np.float32), SPECT, "1"), CT)
