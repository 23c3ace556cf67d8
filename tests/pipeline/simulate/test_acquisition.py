"""A simulated acquisition: counts, noise, scatter estimate, calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.averaging import averaged
from pipeline.errors import InputRejected
from pipeline.simulate import acquisition, osem
from pipeline.simulate.acquisition import Means, SimulatedSpect, projected, reconstructed, simulated_spect
from pipeline.simulate.camera import medium_energy_lu177
from pipeline.simulate.energy_windows import photopeak_line
from pipeline.simulate.projector import Projector
from pipeline.simulate.scatter import true_attenuation
from pipeline.volume import Grid, Volume

CAMERA = replace(medium_energy_lu177(), bins=48, slices=20, pixel_mm=9.6, views=32, radius_mm=220.0)
BQ_PER_ML = 2.0e5
RADIUS_MM = 108.0  # of the usual calibration phantom of 7 L


def centred(shape: tuple[int, int, int], spacing_mm: float) -> Grid:
    z, y, x = (-spacing_mm * (n - 1) / 2 for n in shape)
    return Grid(shape, (x, y, z), (spacing_mm,) * 3)


GRID = centred((20, 48, 48), 9.6)


def cylinder() -> tuple[Volume, Volume]:
    """Water with activity, along the whole field and a little beyond."""
    grid = centred((60, 56, 56), 4.8)
    y, x = (grid.positions(np.eye(3)[axis][None, :] * np.arange(56)[:, None])[:, 2 - axis] for axis in (1, 2))
    inside = (np.hypot(y[:, None], x[None, :]) < RADIUS_MM).astype(np.float32)
    water = np.broadcast_to(inside, grid.shape).copy()
    return Volume(water * np.float32(BQ_PER_ML), grid, "Bq/mL"), Volume(water, grid, "g/cm3")


def means_of(activity: Volume, density: Volume, seed: int = 1, photons: int = 150_000) -> Means:
    return projected(activity, density, CAMERA, GRID, seed, photons=photons, threads=2)


@pytest.fixture(scope="module")
def means() -> Means:
    return means_of(*cylinder())


@pytest.fixture(scope="module")
def spect(means: Means) -> SimulatedSpect:
    return reconstructed(means, *cylinder(), CAMERA, GRID, 1e7, 1, threads=2)


def middle(image: NDArray[np.float32]) -> float:
    return float(image[6:14, 20:28, 20:28].mean(dtype=np.float64))


def test_a_cylinder_of_water_has_its_activity_concentration(means: Means) -> None:
    """With its true scatter and attenuation the sensitivity in air recovers it."""
    _, density = cylinder()
    attenuation = true_attenuation(averaged(density, GRID), photopeak_line(CAMERA))
    projector = Projector(attenuation, 9.6, CAMERA, penetration=False, threads=2)
    found = osem.osem(means.windows[0], means.scattered, projector, 16, 4)
    assert middle(found / np.float32(GRID.voxel_volume_ml)) == pytest.approx(BQ_PER_ML, rel=0.02)


def test_a_cylinder_has_its_activity_concentration_with_the_estimate_too(spect: SimulatedSpect) -> None:
    """What `tew_weight` is for: Ogawa's formula alone takes three per cent too much."""
    assert middle(spect.image.array) == pytest.approx(BQ_PER_ML, rel=0.02)
    assert spect.image_mbq == pytest.approx(spect.true_mbq, rel=0.05)
    assert spect.image.unit == "Bq/mL"
    assert spect.image.grid.same_as(GRID)


def test_counts_are_those_asked_for(spect: SimulatedSpect) -> None:
    """Within the statistics of a Poisson number; they and the sensitivity make the time."""
    assert abs(spect.counts - 1e7) < 5 * np.sqrt(1e7)
    seen_bq = float(spect.means.windows[0].sum(dtype=np.float64))
    time_s = spect.seconds_per_view
    assert seen_bq * CAMERA.sensitivity_cps_per_bq * time_s == pytest.approx(1e7, rel=1e-5)


def test_noise_is_poisson_s_in_every_window(means: Means) -> None:
    """Over realisations the variance of a pixel is its mean."""
    rng_seeds = range(40)
    scale = 1e5 / float(means.windows[0].sum(dtype=np.float64))
    drawn = np.stack([acquisition.measured_counts(means, 1e5, seed) for seed in rng_seeds]).astype(np.float64)
    for window in range(3):
        expected = means.windows[window].astype(np.float64) * scale
        well = expected > 0.05 * expected.max()
        spread = drawn[:, window].var(axis=0, ddof=1)[well] / expected[well]
        centre = (drawn[:, window].mean(axis=0)[well] - expected[well]) / np.sqrt(expected[well] / 40)
        assert spread.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 39 / spread.size) + 0.02)
        assert abs(centre.mean()) < 5 / np.sqrt(centre.size)
        assert centre.std() == pytest.approx(1.0, abs=0.05)


def test_scatter_and_its_estimate(spect: SimulatedSpect) -> None:
    """TEW finds the scatter, and what unscattered photons leave in the narrow windows."""
    assert 0.15 < spect.scatter_fraction < 0.35
    primary = float(spect.means.primary.sum(dtype=np.float64))
    scattered = float(spect.means.scattered.sum(dtype=np.float64))
    of_primaries = (1.0 - acquisition.air_sensitivity(CAMERA)) * primary
    without_spill = (spect.tew_ratio - of_primaries / scattered) / CAMERA.tew_weight
    assert without_spill == pytest.approx(1.10, abs=0.07)
    assert spect.scatter_estimate.min() >= 0


def test_the_estimate_is_the_trapezium_of_the_narrow_windows() -> None:
    """Ogawa 1991: mean of the counts per keV on both sides, over the width of the photopeak's window."""
    flat = np.stack([np.full((2, 20, 48), value, np.float32) for value in (90.0, 30.0, 10.0)])
    for weight in (1.0, 0.9):
        estimate = acquisition.tew_estimate(flat, replace(CAMERA, tew_weight=weight))
        expected = np.full((2, 20, 48), weight * (30.0 + 10.0) / 0.10 * 0.20 / 2)
        assert estimate == pytest.approx(expected, rel=1e-5)


def test_activity_and_image_go_together(means: Means) -> None:
    """Twice the activity: the same counts in half the time, twice the image."""
    activity, density = cylinder()
    double = activity.with_array(2 * activity.array)
    other = means_of(double, density)
    assert np.allclose(other.windows, 2 * means.windows, rtol=1e-5)
    arguments = (CAMERA, GRID, 1e6, 3)
    first = reconstructed(means, activity, density, *arguments, iterations=1, threads=2)
    second = reconstructed(other, double, density, *arguments, iterations=1, threads=2)
    assert second.seconds_per_view == pytest.approx(first.seconds_per_view / 2, rel=1e-5)
    assert second.image_mbq == pytest.approx(2 * first.image_mbq, rel=0.01)


def test_volumes_on_the_lattice_of_the_primaries_are_taken_as_they_are() -> None:
    """A point stays in its voxel; on another lattice it is shared out, and nothing is lost."""
    fine = acquisition.primary_grid(CAMERA, GRID)
    assert fine.spacing_mm == (4.8, 4.8, 4.8)
    point = np.zeros((30, 40, 40), np.float32)
    point[15, 20, 20] = 1.0
    for at, peak in ((fine.boxed((10, 20, 20), point.shape), 1.0), (centred(point.shape, 3.0), 0.3)):
        found = acquisition.on_lattice(Volume(point, at, "Bq/mL"), fine)
        assert found.array.sum() * fine.voxel_volume_ml == pytest.approx(at.voxel_volume_ml, rel=1e-4)
        assert found.array.max() <= peak


def test_a_seed_makes_an_acquisition() -> None:
    told: list[tuple[str, float]] = []
    images = [
        simulated_spect(
            *cylinder(), CAMERA, GRID, 1e6, seed, photons=5_000, iterations=1, threads=n,
            progress=lambda what, part: told.append((what, part)),
        ).image.array
        for seed, n in ((7, 1), (7, 1), (8, 1))
    ]  # fmt: skip
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert {what for what, _ in told} == {"primaries", "scatter", "reconstruction"}
    assert all(0 <= part <= 1 for _, part in told)


def test_a_wrong_ct_changes_the_image_and_not_the_counts(means: Means) -> None:
    activity, density = cylinder()
    lighter = density.with_array(density.array * np.float32(0.8))
    right, wrong = (
        reconstructed(means, activity, ct, CAMERA, GRID, 1e6, 3, iterations=2, threads=2)
        for ct in (density, lighter)
    )
    assert np.array_equal(right.projections, wrong.projections)
    assert middle(wrong.image.array) < 0.9 * middle(right.image.array)


def refuse(change: Callable[[Volume, Volume], tuple[Volume, Volume]], match: str) -> None:
    with pytest.raises(InputRejected, match=match):
        simulated_spect(*change(*cylinder()), CAMERA, GRID, 1e6, 1, photons=100, iterations=1, threads=1)


def test_impossible_input_is_refused_before_anything_is_computed() -> None:
    refuse(lambda a, d: (a.with_array(a.array * np.float32(np.nan)), d), "not a number")
    refuse(lambda a, d: (a, d.with_array(d.array - np.float32(0.5))), "negative")
    refuse(lambda a, d: (a.with_array(0 * a.array), d), "no activity")
    wide = centred((60, 56, 100), 4.8)
    full = Volume(np.ones(wide.shape, np.float32), wide, "Bq/mL")
    refuse(lambda _a, _d: (full, Volume(full.array, wide, "g/cm3")), "beyond the collimator's face")


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        (centred((20, 48, 48), 4.8), "of 9.6 mm"),
        (centred((24, 48, 48), 9.6), "makes images of"),
        (replace(GRID, direction=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))), "direction cosines"),
    ],
)
def test_grids_that_are_not_the_camera_s_are_refused(grid: Grid, match: str) -> None:
    with pytest.raises(InputRejected, match=match):
        simulated_spect(*cylinder(), CAMERA, grid, 1e6, 1, photons=100)


def test_counts_that_no_acquisition_has_are_refused() -> None:
    with pytest.raises(InputRejected, match="counts are asked for"):
        simulated_spect(*cylinder(), CAMERA, GRID, 0.0, 1, photons=100)
