"""One time point from images to numbers: invariants, and numbers worked out here from the radial tables.

Most cases lie in a block of soft tissue of 1.04 g/cm³ exactly, so that the tables hold without scaling.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.acquisition import Administration
from pipeline.activity import Conversion, Rule
from pipeline.camera import Camera
from pipeline.decay import Nuclide, nuclide
from pipeline.dose_rate import DoseRate, DoseRequest, MonteCarloSettings, Progress, RegionUncertainty
from pipeline.dosimetry import Dosimetry, DosimetrySettings, Region, RegionKind, compute_dosimetry
from pipeline.dvk import dvk_dose_rate
from pipeline.engines import ENGINES
from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.registration import Registration
from pipeline.rois import Roi
from pipeline.simulate.cube import hot_cube, inside_box
from pipeline.spect import SpectImage, describe_spect, read_spect
from pipeline.volume import Grid, Triple, Volume
from tests.pipeline import datasets

LUTETIUM, YTTRIUM = nuclide("Lu-177"), nuclide("Y-90")
NOON = datetime(2026, 3, 4, 12, 0)
# Soft tissue at 0 HU, 2.04 g/cm³ at 1000 HU.
CURVE = ((-1000.0, 0.0), (0.0, 1.04), (1000.0, 2.04))
SETTINGS = DosimetrySettings(CURVE)
KEV_PER_G_IN_MGY = 1.602176634e-16 * 1e3 * 1e3
UNKNOWN = Administration()

CT = Grid((30, 40, 40), (-78.0, -58.0, 210.0), (4.0, 4.0, 4.0), frame_of_reference_uid="1.2.3")
CENTRE = (2.0, 22.0, 270.0)  # of voxel [15, 20, 20]


def block(grid: Grid = CT, margin: int = 0) -> Volume:
    """Water, with `margin` voxels of air round it within each slice."""
    hu = np.full(grid.shape, -1000.0, np.float32)
    inner = slice(margin, -margin or None)
    hu[:, inner, inner] = 0.0
    return Volume(hu, grid, "HU")


def emission(activity: Volume, of: Nuclide = LUTETIUM, at: datetime = NOON) -> SpectImage:
    conversion = Conversion(Rule.REAL_WORLD_VALUE, 1.0)
    return SpectImage(activity, at, of, Administration(), conversion, "test", ())


def uniform(bq_per_ml: float, grid: Grid = CT) -> Volume:
    return Volume(np.full(grid.shape, bq_per_ml, np.float32), grid, "Bq/mL")


def voxel_source(index: tuple[int, int, int], mbq: float, grid: Grid = CT) -> Volume:
    array = np.zeros(grid.shape, np.float32)
    array[index] = mbq * 1e6 / grid.voxel_volume_ml
    return Volume(array, grid, "Bq/mL")


def roi(name: str, mask: NDArray[np.bool_]) -> Roi:
    box = crop_box(mask)
    return Roi(name, 1, box, mask[box], (mask.shape[0], mask.shape[1], mask.shape[2]), "1.2.9")


def computed(
    activity: Volume, hu: Volume | None = None, *rois: Roi, settings: DosimetrySettings = SETTINGS
) -> Dosimetry:
    return compute_dosimetry(hu or block(), emission(activity), rois, UNKNOWN, settings)


def rate(of: Dosimetry) -> Volume:
    return of.maps[0].volume


def named(of: Dosimetry, name: str) -> Region:
    return next(region for region in of.regions if region.name == name)


def energy_kev_per_decay(of: Dosimetry, mbq: float) -> float:
    """Σ dose rate · mass over all voxels, per decay."""
    mass_g = of.density.array.astype(np.float64) * of.density.grid.voxel_volume_ml
    mgy_g_per_h = float((rate(of).array * mass_g).sum())
    return mgy_g_per_h / KEV_PER_G_IN_MGY / (mbq * 1e6 * 3600)


def shells(of: Nuclide) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean radius (mm) and energy (keV per decay) of the shells of the table, read here by ourselves."""
    text = files("pipeline").joinpath("data", "point_kernels", f"{of.name}_soft_tissue.csv").read_text()
    rows = [line.split(",") for line in text.splitlines() if line[:1].isdigit()]
    outer, energy = 10 * np.array([float(r[0]) for r in rows]), np.array([float(r[1]) for r in rows])
    return (outer + np.concatenate([[0.0], outer[:-1]])) / 2, energy


def directions(n: int = 4000) -> NDArray[np.float64]:
    """(n, 3) unit vectors, evenly over the sphere (a Fibonacci spiral)."""
    cosine = 1 - (2 * np.arange(n) + 1) / n
    angle = np.arange(n) * np.pi * (3 - np.sqrt(5))
    sine = np.sqrt(1 - cosine**2)
    return np.stack([cosine, sine * np.sin(angle), sine * np.cos(angle)], axis=1)


# ── energy and dose rate ─────────────────────────────────────────────────────────────────────────


def test_a_uniform_block_gets_all_electrons_and_those_photons_that_come_from_within_it() -> None:
    """1 MBq/g: what reaches a point is what a point source there would leave inside the block."""
    found = computed(uniform(1.04e6))
    radius, energy = shells(LUTETIUM)
    box = np.array([15.0, 20.0, 20.0]) * 4.0  # from the centre's voxel to the near faces, less half a voxel
    low, high = -(box + 2.0), np.array([15.0, 20.0, 20.0]) * 4.0 - 2.0
    points = radius[:, None, None] * directions()
    share = np.mean(np.all((points > low) & (points < high), axis=-1), axis=-1)
    expected = float(energy @ share) * KEV_PER_G_IN_MGY * 1e6 * 3600
    at_centre = float(rate(found).array[15, 20, 20])
    assert at_centre == pytest.approx(expected, rel=2e-3)
    # ICRP 107: the electrons alone give 85.32 mGy/h; photons of a block of 3 kg add a few per cent.
    assert 1.01 * 85.32 < at_centre < 1.08 * 85.32


def test_double_activity_gives_double_dose_rate_everywhere() -> None:
    once, twice = computed(hot_cube(CT, CENTRE, 30.0)), computed(hot_cube(CT, CENTRE, 30.0, 2e6))
    np.testing.assert_allclose(rate(twice).array, 2 * rate(once).array, rtol=1e-5)
    assert named(twice, "Body").statistics["dvk"].mean == pytest.approx(
        2 * named(once, "Body").statistics["dvk"].mean, rel=1e-5
    )


@pytest.mark.parametrize("of", [LUTETIUM, YTTRIUM], ids=lambda of: of.name)
def test_the_energy_absorbed_is_that_which_decays_leave(of: Nuclide) -> None:
    """Σ dose rate · mass = activity · what the table leaves inside the block."""
    found = compute_dosimetry(block(), emission(voxel_source((15, 20, 20), 3.0), of), (), UNKNOWN, SETTINGS)
    radius, energy = shells(of)
    points = radius[:, None, None] * directions()
    low, high = np.array([-62.0, -82.0, -82.0]), np.array([58.0, 78.0, 78.0])
    expected = energy @ np.mean(np.all((points > low) & (points < high), axis=-1), axis=-1)
    assert energy_kev_per_decay(found, 3.0) == pytest.approx(expected, rel=2e-3)


def test_the_density_moves_dose_but_no_energy() -> None:
    """Bone beside soft tissue: half the dose rate for twice the mass, the energy as before."""
    hu = block()
    hu.array[:, :, 22:] = 1040.0 - 40.0
    source = voxel_source((15, 20, 20), 3.0)
    water, bone = computed(source), computed(source, hu)
    np.testing.assert_allclose(
        rate(bone).array[:, :, 22:] * (2.04 / 1.04), rate(water).array[:, :, 22:], rtol=1e-5, atol=1e-6
    )
    assert energy_kev_per_decay(bone, 3.0) == pytest.approx(energy_kev_per_decay(water, 3.0), rel=1e-5)


# ── what lies outside the CT ─────────────────────────────────────────────────────────────────────


LONG = Grid((60, 40, 40), (-78.0, -58.0, 90.0), (4.0, 4.0, 4.0), frame_of_reference_uid="1.2.3")


def two_sources() -> Volume:
    """1 MBq well inside the CT, 3 MBq 60 mm below its first slice."""
    inside, outside = voxel_source((45, 20, 20), 1.0, LONG), voxel_source((15, 20, 20), 3.0, LONG)
    return Volume(inside.array + outside.array, LONG, "Bq/mL")


PART_OF_A_PATIENT = replace(SETTINGS, max_outside_ct=0.8)


def test_activity_outside_the_ct_still_gives_its_photon_dose_inside() -> None:
    both = computed(two_sources(), settings=PART_OF_A_PATIENT)
    alone = computed(voxel_source((45, 20, 20), 1.0, LONG))
    photons = (rate(both).array - rate(alone).array)[:6, 18:23, 18:23].mean(axis=(1, 2))
    radius, energy = shells(LUTETIUM)
    for z, found in enumerate(photons):
        # 60 mm and more from the source: energy of the shells nearby, over their mass.
        distance = 60.0 + 4.0 * z
        near = np.abs(radius - distance) < 8.0
        ends = radius[near][0] - 2.5, radius[near][-1] + 2.5
        mass_g = 1.04e-3 * 4 / 3 * np.pi * (ends[1] ** 3 - ends[0] ** 3)
        expected = 3e6 * 3600 * KEV_PER_G_IN_MGY * energy[near].sum() / mass_g
        assert found == pytest.approx(expected, rel=0.06)


def test_the_results_say_how_much_lies_outside_the_ct() -> None:
    found = computed(two_sources(), settings=PART_OF_A_PATIENT)
    assert found.resampling.total_mbq == pytest.approx(4.0, rel=1e-4)
    assert found.resampling.outside_ct_mbq == pytest.approx(3.0, rel=1e-4)
    assert any("3 MBq (75.0% of the SPECT's activity) lie outside the CT" in note for note in found.notes)
    assert named(found, "Body").statistics["dvk"].activity_mbq == pytest.approx(1.0, rel=1e-4)


def test_what_lies_outside_counts_in_the_plausibility() -> None:
    given = Administration("Lu-177", 5e6, NOON)
    found = compute_dosimetry(block(), emission(two_sources()), (), given, PART_OF_A_PATIENT)
    assert found.plausibility is not None
    assert found.plausibility.fraction == pytest.approx(0.8, rel=1e-4)


def test_a_study_with_most_of_its_activity_outside_the_ct_is_held_with_both_numbers() -> None:
    with pytest.raises(
        InputRejected, match=r"1 MBq lie inside the CT and 3 MBq \(75\.0%\) outside; at most 50"
    ) as failure:
        computed(two_sources())
    assert "one session" in failure.value.remedy


# ── what the SPECT does not see ──────────────────────────────────────────────────────────────────


SHORT = Grid((15, 40, 40), (-78.0, -58.0, 210.0), (4.0, 4.0, 4.0), frame_of_reference_uid="1.2.3")


def test_an_roi_beyond_the_spects_field_is_named_with_its_unseen_part() -> None:
    """Its activity is not known there: a dose rate without that note would look like a cold organ."""
    half, whole = np.zeros(CT.shape, bool), np.zeros(CT.shape, bool)
    half[13:17, 10:20, 10:20] = True
    whole[4:9, 10:20, 10:20] = True
    found = computed(uniform(1e5, SHORT), block(), roi("half seen", half), roi("seen", whole))
    text = " ".join(found.notes)
    assert "50.0% of the ROI 'half seen' lie outside the SPECT's field of view" in text
    assert "50.0% of the body lie outside the SPECT's field of view" in text
    assert "'seen'" not in text


def test_the_field_of_view_is_the_body_that_both_images_show_less_air() -> None:
    """Not the table, though tissue-dense and inside the field; not the air of a cavity."""
    hu = block(margin=8)
    hu.array[:, 35, 8:32] = -200.0  # the table
    hu.array[5:10, 18:22, 18:22] = -1000.0  # the cavity
    everywhere = np.ones(CT.shape, bool)
    found = computed(uniform(1e5, SHORT), hu, roi("whole CT", everywhere))  # so that the box holds the table
    expected = np.zeros(CT.shape, bool)
    expected[:15, 8:32, 8:32] = True
    expected[5:10, 18:22, 18:22] = False
    region = named(found, "Field of view")
    assert region.kind is RegionKind.FIELD_OF_VIEW
    assert region.statistics["dvk"].voxels == expected.sum()
    np.testing.assert_array_equal(region.mask, expected)


def test_a_field_without_any_of_the_body_is_rejected() -> None:
    beside = Grid((30, 6, 6), (-78.0, -58.0, 210.0), (4.0, 4.0, 4.0), frame_of_reference_uid="1.2.3")
    with pytest.raises(InputRejected, match="holds no part of the body"):
        computed(uniform(1e5, beside), block(margin=10))


# ── a dose grid of the SPECT's field ─────────────────────────────────────────────────────────────

SEEN = Grid((12, 24, 20), (-30.0, -34.0, 226.0), (4.0, 4.0, 4.0), frame_of_reference_uid="1.2.3")
OF_THE_FIELD = replace(SETTINGS, grid_field="spect")


def spheres_in_the_field(grid: Grid = SEEN) -> Volume:
    """One near a face of the field, so that its dose reaches beyond."""
    activity = uniform(2e4, grid)
    activity.array[2:4, 3:6, 3:6] = 1e6
    activity.array[-2:, 10:14, 10:14] = 5e5
    return activity


def inhomogeneous() -> Volume:
    hu = block(margin=4)
    hu.array[:, 14:18, 14:30] = 800.0
    hu.array[4:12, 22:30, 8:16] = -700.0
    return hu


@pytest.mark.parametrize(
    "of_both",
    [
        {},
        {"heterogeneity": "local_transport"},
        {"grid_spacing_mm": (8.0, 8.0, 8.0)},
    ],
    ids=["density scaling", "local transport", "coarser"],
)
def test_within_the_spects_field_the_dose_rates_are_those_of_the_larger_grid(
    of_both: dict[str, object],
) -> None:
    """Tissue and activity round it count as before: 1e-5 of the largest, the convolution's rounding."""
    large, small = (
        computed(spheres_in_the_field(), inhomogeneous(), settings=replace(settings, **of_both))  # type: ignore[arg-type]
        for settings in (SETTINGS, OF_THE_FIELD)
    )
    assert rate(small).array.size < 0.5 * rate(large).array.size
    there = rate(large).grid.indices(rate(small).grid.origin_mm).round().astype(int)
    box = tuple(slice(low, low + n) for low, n in zip(there, rate(small).array.shape, strict=True))
    expected = rate(large).array[box]
    assert expected.max() == rate(large).array.max()
    np.testing.assert_allclose(rate(small).array, expected, atol=1e-5 * expected.max(), rtol=0)
    assert named(small, "Field of view").statistics["dvk"].activity_mbq == pytest.approx(
        named(large, "Field of view").statistics["dvk"].activity_mbq, rel=1e-6
    )


def test_the_spects_field_ends_the_grid_where_the_body_goes_on() -> None:
    """The grid is the box of those voxels whose centres the SPECT covers."""
    found = computed(spheres_in_the_field(), settings=OF_THE_FIELD)
    assert rate(found).grid.shape == SEEN.shape
    np.testing.assert_allclose(rate(found).grid.origin_mm, SEEN.origin_mm)
    share = 1 - np.prod(SEEN.shape) / np.prod(CT.shape)
    assert f"{share:.1%} of the body lie outside the dose grid" in " ".join(found.notes)
    assert "outside the SPECT's field of view" not in " ".join(found.notes)
    assert found.flags == ()


def test_activity_of_the_field_outside_the_ct_counts_with_a_small_grid_too() -> None:
    large, small = (
        compute_dosimetry(block(), emission(two_sources()), (), UNKNOWN, replace(PART_OF_A_PATIENT, **more))  # type: ignore[arg-type]
        for more in ({}, {"grid_field": "spect"})
    )
    assert small.resampling == large.resampling
    assert small.resampling.outside_ct_mbq > 0
    assert rate(small).grid.same_as(rate(large).grid)  # this SPECT covers the whole CT
    np.testing.assert_array_equal(rate(small).array, rate(large).array)


def test_rois_that_the_grid_cuts_are_named_and_flagged() -> None:
    """Their figures are of a part; one without any part in it has none, and no row that looks like a zero."""
    inside, half, beyond = (np.zeros(CT.shape, bool) for _ in range(3))
    inside[8:12, 12:20, 16:24] = True
    half[12:20, 12:20, 16:24] = True  # the field ends with slice 15
    beyond[20:24, 12:20, 16:24] = True
    drawn = (roi("beyond", beyond), roi("half", half), roi("inside", inside))
    found = computed(spheres_in_the_field(), block(), *drawn, settings=OF_THE_FIELD)
    assert [r.name for r in found.regions] == ["Body", "Field of view", "half", "inside"]
    assert named(found, "half").statistics["dvk"].voxels == half.sum() / 2
    assert named(found, "inside").statistics["dvk"].voxels == inside.sum()
    told = " ".join(found.flags)
    assert "all of the ROI 'beyond' lie outside the dose grid" in told
    assert "50.0% of the ROI 'half' lie outside the dose grid" in told
    assert "'inside'" not in told
    assert set(found.flags) <= set(found.notes)


def test_a_field_that_misses_every_roi_still_gives_the_bodys_figures() -> None:
    beyond = np.zeros(CT.shape, bool)
    beyond[20:24, 12:20, 16:24] = True
    found = computed(spheres_in_the_field(), block(), roi("beyond", beyond), settings=OF_THE_FIELD)
    assert [r.name for r in found.regions] == ["Body", "Field of view"]
    assert named(found, "Body").statistics["dvk"].mean > 0


# ── regions and places ───────────────────────────────────────────────────────────────────────────


def test_the_figures_of_an_roi_are_those_of_the_map_inside_it() -> None:
    """DR10 is the dose rate that the hottest 10 % get at least: few voxels, high value."""
    hu = block(margin=5)
    hu.array[:, 5:20, 5:35] = 500.0
    mask = inside_box(CT, CENTRE, (50.0, 34.0, 42.0))
    found = computed(hot_cube(CT, (10.0, 20.0, 262.0), 40.0), hu, roi("VOI", mask))
    region = named(found, "VOI")
    values = np.sort(rate(found).array[region.mask].astype(np.float64))[::-1]
    figures = region.statistics["dvk"]
    n, ml = values.size, 0.064
    assert (figures.voxels, n) == (mask.sum(), mask.sum())
    assert figures.volume_ml == pytest.approx(n * ml)
    assert figures.mass_g == pytest.approx(found.density.array[region.mask].sum(dtype=float) * ml, rel=1e-6)
    assert figures.mass_g == pytest.approx(
        ml * ((mask & (hu.array == 500)).sum() * 1.54 + (mask & (hu.array == 0)).sum() * 1.04), rel=1e-5
    )
    assert figures.activity_mbq == pytest.approx(
        found.activity.array[region.mask].sum(dtype=float) * ml / 1e6, rel=1e-6
    )
    assert (figures.maximum, figures.minimum) == (values[0], values[-1])
    assert figures.mean == pytest.approx(values.sum() / n)
    assert figures.sd == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / n))
    for percent, dr in ((10, figures.dr10), (30, figures.dr30), (70, figures.dr70), (90, figures.dr90)):
        hottest = n * percent // 100
        assert values[hottest + 1] <= dr <= values[hottest - 1]
    assert figures.maximum > figures.dr10 > figures.dr30 > figures.dr70 > figures.dr90 > figures.minimum


FLIPPED = replace(
    CT,
    origin_mm=(78.0, -58.0, 330.0),
    direction=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
)


@pytest.mark.parametrize("grid", [CT, FLIPPED], ids=["head first", "both axes reversed"])
def test_the_bodys_box_keeps_every_voxel_at_its_place(grid: Grid) -> None:
    place = tuple(float(v) for v in grid.positions((11, 17, 25)))
    hu = block(grid, margin=9)
    found = computed(voxel_source((11, 17, 25), 5.0, grid), hu)
    assert rate(found).grid.shape == (30, 22, 22)
    hottest = np.unravel_index(int(rate(found).array.argmax()), rate(found).array.shape)
    np.testing.assert_allclose(rate(found).grid.positions(hottest), place, atol=1e-6)
    for volume in (found.density, found.activity):
        assert volume.grid == rate(found).grid
    at = tuple(int(v) for v in hottest)
    # The mean of the interpolated activity over a voxel of its own lattice is 3/4 of it per axis.
    assert found.activity.array[at] * 0.064 / 1e6 == pytest.approx(5.0 * 0.75**3, rel=1e-5)


def test_an_roi_outside_the_body_widens_the_box() -> None:
    mask = np.zeros(CT.shape, bool)
    mask[3, 2, 37] = True
    found = computed(uniform(1e5), block(margin=9), roi("mark", mask))
    region = named(found, "mark")
    (index,) = np.argwhere(region.mask)
    np.testing.assert_allclose(rate(found).grid.positions(index), CT.positions((3, 2, 37)), atol=1e-6)
    assert region.statistics["dvk"].mean == 0.0  # it lies in air


def with_arms() -> Volume:
    """A trunk of 22 x 22 voxels and two arms of 6 x 6, apart from it by three of air."""
    hu = block(margin=9)
    hu.array[:, 17:23, 0:6] = hu.array[:, 17:23, 34:40] = 0.0
    return hu


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, grid_spacing_mm=(8.0, 8.0, 8.0))])
def test_arms_are_in_the_map_but_not_in_the_bodys_figures_and_the_results_say_so(
    settings: DosimetrySettings,
) -> None:
    found = computed(uniform(1e5), with_arms(), settings=settings)
    trunk = computed(uniform(1e5), block(margin=9), settings=settings)
    (note,) = (note for note in found.notes if "apart from the body" in note)
    assert note.startswith(f"tissue of {2 * 30 * 36 * 0.064:.0f} mL lies apart from the body (arms?)")
    assert rate(found).grid.shape[2] * rate(found).grid.spacing_mm[2] == 160.0
    middle = rate(found).grid.shape[0] // 2, rate(found).grid.shape[1] // 2
    assert rate(found).array[middle[0], middle[1], 1] > 0.0
    figures = named(found, "Body").statistics["dvk"]
    assert figures.volume_ml == pytest.approx(named(trunk, "Body").statistics["dvk"].volume_ml)
    assert not any("apart from the body" in note for note in trunk.notes)


# ── moved and tilted SPECT ───────────────────────────────────────────────────────────────────────


def total_mbq(activity: Volume) -> float:
    return float(activity.array.sum(dtype=float)) * activity.grid.voxel_volume_ml / 1e6


def centroid(volume: Volume) -> NDArray[np.float64]:
    indices = np.moveaxis(np.indices(volume.grid.shape), 0, -1)
    weights = volume.array.astype(np.float64) ** 2  # the hot cube, not its photons
    return np.asarray((volume.grid.positions(indices) * weights[..., None]).sum((0, 1, 2)) / weights.sum())


def turned(degrees: float) -> NDArray[np.float64]:
    """(3, 3): about the patient's x axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z


def turned_grid(grid: Grid, rotation: NDArray[np.float64]) -> Grid:
    """About the middle of its box."""
    middle = grid.positions((np.array(grid.shape) - 1) / 2)
    z, y, x = (triple(rotation @ axis) for axis in np.asarray(grid.direction))
    return replace(grid, origin_mm=triple(rotation @ (grid.origin_mm - middle) + middle), direction=(z, y, x))


FIELD = Grid((36, 40, 40), (-92.0, -72.0, 190.0), (4.8, 4.8, 4.8), frame_of_reference_uid="1.2.3")


@pytest.mark.parametrize("degrees", [0.0, 0.7, 6.0])
def test_a_tilted_spect_keeps_place_and_activity(degrees: float) -> None:
    place = (10.0, 30.0, 250.0)
    straight, activity = (
        hot_cube(FIELD, place, 24.0),
        hot_cube(turned_grid(FIELD, turned(degrees)), place, 24.0),
    )
    mbq, found = total_mbq(activity), computed(activity)
    np.testing.assert_allclose(centroid(rate(found)), place, atol=0.3)
    assert named(found, "Body").statistics["dvk"].activity_mbq == pytest.approx(mbq, rel=5e-3)
    # Electrons and near photons stay in the block wherever the lattice points.
    assert energy_kev_per_decay(found, mbq) == pytest.approx(
        energy_kev_per_decay(computed(straight), total_mbq(straight)), rel=5e-3
    )


def test_a_registered_spect_lands_where_the_registration_says() -> None:
    place, shift = np.array([10.0, 30.0, 250.0]), np.array([31.0, -12.0, 7.5])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned(4.0), shift
    # Where the SPECT's own frame has what the CT's frame has on FIELD: x = R⁻¹ (x' − t).
    back = turned(-4.0)
    own = replace(
        FIELD,
        origin_mm=triple(back @ (np.asarray(FIELD.origin_mm) - shift)),
        direction=tuple(triple(back @ axis) for axis in np.asarray(FIELD.direction)),  # type: ignore[arg-type]
        frame_of_reference_uid="1.2.4",
    )
    activity = hot_cube(own, triple(back @ (place - shift)), 24.0)
    assert activity.array.any()
    moved = Registration(matrix, "1.2.4", "1.2.3").move(activity)
    np.testing.assert_allclose(centroid(rate(computed(moved))), place, atol=0.3)
    with pytest.raises(InputRejected, match="do not share a Frame of Reference"):
        computed(activity)


# ── the coarse dose grid ─────────────────────────────────────────────────────────────────────────


FINE = Grid((44, 60, 60), (-59.0, -59.0, 0.0), (3.0, 2.0, 2.0), frame_of_reference_uid="1.2.3")
COARSE = (5.0, 5.0, 5.0)


def coarse(spacing_mm: Triple = COARSE) -> DosimetrySettings:
    return replace(SETTINGS, grid_spacing_mm=spacing_mm)


def smooth_source() -> Volume:
    """A blob of 30 mm full width, as a camera shows an organ."""
    grid = Grid((30, 26, 26), (-60.0, -60.0, -4.0), (4.8, 4.8, 4.8), frame_of_reference_uid="1.2.3")
    offsets = grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1)) - (5.0, -4.0, 66.0)
    blob = np.exp(-4 * np.log(2) * (offsets**2).sum(axis=-1) / 30.0**2)
    return Volume((1e6 * blob).astype(np.float32), grid, "Bq/mL")


def test_a_coarser_dose_grid_keeps_roi_means_to_3_and_energy_to_1_per_cent() -> None:
    distance = FINE.positions(np.moveaxis(np.indices(FINE.shape), 0, -1)) - (5.0, -4.0, 66.0)
    organ = roi("organ", (distance**2).sum(axis=-1) < 22.0**2)
    fine = computed(smooth_source(), block(FINE, 4), organ)
    rough = computed(smooth_source(), block(FINE, 4), organ, settings=coarse())
    assert rate(rough).grid.spacing_mm == COARSE
    exact, near = (named(of, "organ").statistics["dvk"] for of in (fine, rough))
    assert near.mean == pytest.approx(exact.mean, rel=0.03)
    assert near.volume_ml == pytest.approx(exact.volume_ml, rel=0.05)
    assert near.activity_mbq == pytest.approx(exact.activity_mbq, rel=0.05)
    energies = [(rate(of).array * of.density.array).sum(dtype=float) for of in (fine, rough)]
    volumes = [rate(of).grid.voxel_volume_ml for of in (fine, rough)]
    assert energies[1] * volumes[1] == pytest.approx(energies[0] * volumes[0], rel=0.01)
    np.testing.assert_allclose(centroid(rate(rough)), centroid(rate(fine)), atol=0.5)


def test_tissue_at_the_end_slices_stays_tissue_on_a_coarser_grid() -> None:
    """The coarse lattice sticks out of the CT there: air would thin the tissue and raise its dose rate."""
    around = uniform(1e5, FINE.boxed((-9, -9, -9), (62, 78, 78)))  # 57 % of it outside the CT
    found = computed(around, block(FINE), settings=replace(coarse(), max_outside_ct=0.6))
    assert rate(found).grid.shape == (27, 24, 24)
    np.testing.assert_allclose(found.density.array, 1.04, rtol=1e-5)
    profile = rate(found).array[:, 12, 12]
    assert profile.max() == pytest.approx(profile[13], rel=0.01)


def test_the_lungs_belong_to_the_body_on_a_coarse_grid_too() -> None:
    """Behind a chest wall of 14 mm, less than three voxels of the dose grid."""
    hu = block(FINE, 4)
    hu.array[:, 11:49, 11:28] = -750.0
    found = computed(smooth_source(), hu, settings=coarse())
    exact = computed(smooth_source(), hu)
    volumes = [named(of, "Body").statistics["dvk"].volume_ml for of in (found, exact)]
    assert volumes[1] == pytest.approx(52 * 52 * 44 * 0.012)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.06)


def test_an_roi_on_a_coarser_grid_holds_the_voxels_that_it_fills_by_half() -> None:
    mask = np.zeros(FINE.shape, bool)
    mask[10:30, 20:40, 20:40] = True
    found = computed(smooth_source(), block(FINE, 4), roi("cube", mask), settings=coarse((3.0, 4.0, 4.0)))
    region = named(found, "cube")
    assert region.mask.sum() == 20 * 10 * 10
    at = rate(found).grid.positions(np.argwhere(region.mask)).mean(axis=0)
    np.testing.assert_allclose(at, FINE.positions(np.argwhere(mask)).mean(axis=0), atol=1e-6)


def test_an_roi_smaller_than_a_voxel_of_the_dose_grid_is_rejected_by_name() -> None:
    mask = np.zeros(FINE.shape, bool)
    mask[20, 30, 30] = True
    with pytest.raises(InputRejected, match="ROI 'dot' is smaller than a voxel of the dose grid"):
        computed(smooth_source(), block(FINE, 4), roi("dot", mask), settings=coarse((12.0, 12.0, 12.0)))


# ── the administered activity ────────────────────────────────────────────────────────────────────


def given(mbq: float, hours_before: float, name: str = "Lu-177") -> Administration:
    return Administration(name, mbq * 1e6, NOON - timedelta(hours=hours_before))


def with_given(administered: Administration, limit: float = 1.10) -> Dosimetry:
    """10 MBq in the image."""
    source = emission(voxel_source((15, 20, 20), 10.0))
    return compute_dosimetry(block(), source, (), administered, replace(SETTINGS, plausibility_limit=limit))


def test_after_one_half_life_half_of_it_is_expected() -> None:
    found = with_given(given(40.0, 6.647 * 24))
    assert found.plausibility is not None
    assert found.plausibility.expected_bq == pytest.approx(20e6)
    assert found.plausibility.fraction == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    "unknown", [Administration(), Administration("Lu-177", 4e7), Administration("Lu-177", None, NOON)]
)
def test_without_activity_or_time_there_is_no_check_and_a_note(unknown: Administration) -> None:
    found = with_given(unknown)
    assert found.plausibility is None
    assert any("the activity was not checked against it" in note for note in found.notes)


@pytest.mark.parametrize(
    ("administered", "reason"),
    [
        (given(40.0, 24.0, "I-131"), "I-131 was administered, but the SPECT is of Lu-177"),
        (given(40.0, 24.0, "^68^Gallium"), r"\^68\^Gallium was administered, but the SPECT is of Lu-177"),
        (given(18.0, 6.647 * 24), r"10 MBq found, 111\.1% of the 9 MBq left of 18 MBq after 159\.5 h"),
        (given(40.0, -2.0), r"the image is 2\.00 h earlier than the administration"),
        (given(40.0e6, 24.0), r"administered activity of 4e\+07 MBq is not possible"),
    ],
    ids=["other nuclide", "nuclide without kernel", "too much", "earlier", "Bq as MBq"],
)
def test_what_cannot_be_is_rejected_with_its_numbers(administered: Administration, reason: str) -> None:
    with pytest.raises(InputRejected, match=reason) as rejected:
        with_given(administered)
    assert rejected.value.remedy


def test_the_limit_is_the_sites() -> None:
    assert with_given(given(18.0, 6.647 * 24), limit=1.2).plausibility is not None


def test_next_to_nothing_found_is_told_with_its_numbers() -> None:
    """It may be excretion; it may be a sensitivity in another unit."""
    little, some = with_given(given(1200.0, 0.0)), with_given(given(800.0, 0.0))
    assert any(
        "little of the administered" in n and "10 MBq found, 0.8% of the 1200" in n for n in little.notes
    )
    assert not any("little of the administered" in note for note in some.notes)


def test_a_density_curve_in_another_unit_is_refused() -> None:
    """In mg/cm³ every dose rate would be a thousand times too low."""
    mg_per_cm3 = replace(SETTINGS, curve=((-1000.0, 1.2), (0.0, 1040.0), (1000.0, 2040.0)))
    with pytest.raises(InputRejected, match=r"point \[0\.0, 1040\.0\] is not in g/cm3"):
        computed(uniform(1e5), settings=mg_per_cm3)


def test_the_time_of_administration_changes_no_dose_rate() -> None:
    """The image's activity holds for its own instant: whatever happened before is in it already."""
    early, late = with_given(given(4000.0, 400.0)), with_given(given(40.0, 1.0))
    np.testing.assert_array_equal(rate(early).array, rate(late).array)


# ── the reference time ───────────────────────────────────────────────────────────────────────────


def from_disk(folder: Path, **settings: str) -> tuple[SpectImage, Dosimetry]:
    """60 views of 20 s from 10:15:30 on, in Bq/mL, 24 h after 7400 MBq."""
    pixels = np.zeros((30, 40, 40), np.uint16)
    pixels[15, 20, 20] = 1000
    image = datasets.nm_object(
        pixels,
        position=CT.origin_mm,
        spacing_mm=4.0,
        PixelSpacing=[4.0, 4.0],
        RealWorldValueMappingSequence=[datasets.in_bq_per_ml(1e5)],
    )
    path = folder / "nm.dcm"
    image.save_as(path, enforce_file_format=True)
    camera = Camera("any", {"Manufacturer": "*"}, **settings)  # type: ignore[arg-type]
    spect = read_spect([path], (camera,))
    hu = block(replace(CT, frame_of_reference_uid=datasets.FRAME))
    return spect, compute_dosimetry(hu, spect, (), spect.administration, SETTINGS)


def test_start_and_middle_differ_in_the_instant_alone(tmp_path: Path) -> None:
    """A SPECT's counts are of its whole duration: neither setting decays them, each only names an instant."""
    first, start = from_disk(tmp_path, reference_time="acquisition_start")
    second, middle = from_disk(tmp_path, reference_time="acquisition_middle")
    assert start.reference_time == first.reference_time == datetime(2024, 3, 5, 10, 15, 30)
    assert middle.reference_time - start.reference_time == timedelta(minutes=10)
    np.testing.assert_array_equal(first.activity.array, second.activity.array)
    np.testing.assert_array_equal(rate(start).array, rate(middle).array)
    assert start.plausibility is not None
    assert middle.plausibility is not None
    assert start.plausibility.expected_bq == pytest.approx(7.4e9 * 2 ** (-1 / 6.647))
    ratio = middle.plausibility.expected_bq / start.plausibility.expected_bq
    assert ratio == pytest.approx(2 ** (-600 / (6.647 * 86400)))


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ({"DecayCorrection": "ADMIN"}, "DecayCorrection of NM .* is 'ADMIN'"),
        ({"DecayCorrectionDateTime": "20240304101530"}, "was decay-corrected to 2024-03-04 10:15"),
    ],
)
def test_a_spect_corrected_to_the_administration_is_refused(says: dict[str, str], reason: str) -> None:
    """Taken for the scan's own activity, it is 11 % too high after a day and 2.1 times after a week."""
    image = datasets.nm_object(RealWorldValueMappingSequence=[datasets.in_bq_per_ml(1.0)])
    for keyword, value in says.items():
        setattr(image, keyword, value)
    with pytest.raises(InputRejected, match=reason):
        describe_spect([image], ())


def test_a_spect_corrected_to_its_own_start_is_taken() -> None:
    image = datasets.nm_object(
        RealWorldValueMappingSequence=[datasets.in_bq_per_ml(1.0)],
        DecayCorrection="START",
        DecayCorrectionDateTime="20240305101600",
    )
    assert describe_spect([image], ()).reference_time == datetime(2024, 3, 5, 10, 15, 30)


def test_a_point_in_the_file_becomes_its_dose_rate_at_its_place(tmp_path: Path) -> None:
    """1e8 Bq/mL in 0.064 mL: the block's voxel gets what the source leaves in itself."""
    _spect, found = from_disk(tmp_path)
    assert found.resampling.total_mbq == pytest.approx(6.4, rel=1e-6)
    hottest = np.unravel_index(int(rate(found).array.argmax()), rate(found).array.shape)
    np.testing.assert_allclose(rate(found).grid.positions(hottest), CENTRE, atol=1e-6)
    # Where the CT has the SPECT's lattice, the interpolation leaves 3/4 of it per axis and 1/8 on each side.
    assert found.activity.array[15, 20, 20] == pytest.approx(1e8 * 0.75**3, rel=1e-5)


# ── telling ──────────────────────────────────────────────────────────────────────────────────────


def test_progress_never_goes_back_and_notes_are_not_repeated() -> None:
    told: list[float] = []
    source = replace(emission(uniform(1e5)), notes=("a note",))
    found = compute_dosimetry(block(), source, (), UNKNOWN, SETTINGS, lambda _what, part: told.append(part))
    assert told == sorted(told)
    assert 0.0 <= told[0] <= told[-1] <= 1.0
    assert len(set(found.notes)) == len(found.notes)
    assert "a note" in found.notes


# ── engines with statistics ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[DoseRequest]:
    """What engine mc is asked; it answers with DVK's map, known to 3 % in every voxel of every region."""
    asked: list[DoseRequest] = []

    def stand_in(request: DoseRequest, progress: Progress = lambda _what, _part: None) -> DoseRate:
        asked.append(request)
        map_ = dvk_dose_rate(request, progress)
        regions = tuple(
            RegionUncertainty(name, 0.001 * number, 0.03) for number, name in enumerate(request.regions, 1)
        )
        uncertainty = map_.volume.with_array(map_.volume.array * np.float32(0.03))
        return replace(map_, engine="mc", uncertainty=uncertainty, regions=regions)

    monkeypatch.setitem(ENGINES, "mc", stand_in)
    return asked


BOTH = replace(SETTINGS, engines=("dvk", "mc"))


def cube_of(start: int) -> NDArray[np.bool_]:
    mask = np.zeros(CT.shape, dtype=bool)
    mask[start : start + 4, 10:16, 10:16] = True
    return mask


def test_an_engine_with_statistics_is_asked_for_the_rois(requests: list[DoseRequest]) -> None:
    """Also where two objects name theirs alike; each region gets the figures of its own mask."""
    drawn = (roi("Liver", cube_of(4)), roi("Kidney", cube_of(10)), roi("Liver", cube_of(20)))
    found = computed(uniform(1e5), block(), *drawn, settings=BOTH)
    asked = requests[0]
    assert asked.regions.keys() == {"Liver", "Kidney", "Liver (2)"}
    assert asked.regions["Liver (2)"].shape == asked.density.grid.shape
    np.testing.assert_array_equal(np.flatnonzero(asked.regions["Liver (2)"].any(axis=(1, 2))), range(20, 24))
    by_region = [region.uncertainty.get("mc") for region in found.regions]
    assert [None if u is None else u.of_mean for u in by_region] == [None, None, 0.001, 0.002, 0.003]
    assert all("dvk" not in region.uncertainty for region in found.regions)


def test_without_rois_the_field_of_view_decides(requests: list[DoseRequest]) -> None:
    """Not the body: most of it holds so little dose that no run would end."""
    found = computed(uniform(1e5), settings=BOTH)
    assert requests[0].regions.keys() == {"Field of view"}
    assert named(found, "Field of view").uncertainty["mc"].of_voxels == 0.03
    assert named(found, "Body").uncertainty == {}


def test_an_engine_may_look_beyond_the_body(requests: list[DoseRequest]) -> None:
    """The density all round goes along, though the result ends with the body's box."""
    hu = block(margin=5)
    found = computed(voxel_source((15, 20, 20), 3.0), hu, settings=BOTH)
    asked = requests[0]
    assert asked.surroundings is not None
    assert asked.surroundings.grid.same_as(CT)
    assert asked.density.grid.shape == found.density.grid.shape == (30, 30, 30)


def test_an_engine_may_look_beyond_the_spects_field(requests: list[DoseRequest]) -> None:
    found = computed(spheres_in_the_field(), settings=replace(BOTH, grid_field="spect"))
    asked = requests[0]
    assert asked.surroundings is not None
    assert asked.surroundings.grid.same_as(CT)
    assert asked.density.grid.shape == found.density.grid.shape == SEEN.shape


def test_an_engines_numbers_do_not_depend_on_those_beside_it(requests: list[DoseRequest]) -> None:
    """What lies around the result's box counts for electrons on rays, whoever else is asked."""
    local = replace(BOTH, heterogeneity="local_transport")
    hu, spect = block(margin=5), voxel_source((15, 4, 20), 3.0)  # in the air beside the body
    both = computed(spect, hu, settings=local)
    alone = computed(spect, hu, settings=replace(local, engines=("dvk",)))
    assert alone.maps[0].engine == both.maps[0].engine == "dvk"
    assert alone.maps[0].volume.array.any()
    np.testing.assert_array_equal(alone.maps[0].volume.array, both.maps[0].volume.array)


def test_the_settings_of_the_engines_reach_them(requests: list[DoseRequest], tmp_path: Path) -> None:
    wanted = MonteCarloSettings(0.01, 60.0, 3, tmp_path / "left")
    settings = replace(BOTH, kernel_cache=tmp_path, montecarlo=wanted)
    computed(uniform(1e5), settings=settings)
    asked = requests[0]
    assert (asked.montecarlo, asked.kernel_cache, asked.heterogeneity) == (
        wanted,
        tmp_path,
        "density_scaling",
    )
