"""Scatter in the patient: against an analog simulation, against the projector, against what is plausible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.averaging import averaged
from pipeline.errors import InputRejected
from pipeline.montecarlo.compiled import TWO_PI, F, compiled
from pipeline.montecarlo.energy import interpolate, place_on_grid
from pipeline.montecarlo.geometry import Geometry, isotropic, rotate, voxel_geometry, voxel_index
from pipeline.montecarlo.materials import material_map
from pipeline.montecarlo.photon_tables import PhotonTables, photon_tables
from pipeline.montecarlo.photons import compton, fly
from pipeline.montecarlo.random_numbers import first_draw, stream_key, uniform
from pipeline.simulate import energy_windows, scatter
from pipeline.simulate.camera import SpectCamera, medium_energy_lu177
from pipeline.simulate.projector import Projector
from pipeline.volume import Grid, Volume

CAMERA = replace(medium_energy_lu177(), bins=48, slices=40, pixel_mm=9.6, views=16, radius_mm=240.0)
CENTRE = (0.0, 0.0, 0.0)


def centred(shape: tuple[int, int, int], spacing_mm: float) -> Grid:
    z, y, x = (-spacing_mm * (n - 1) / 2 for n in shape)
    return Grid(shape, (x, y, z), (spacing_mm,) * 3)


def coordinates(grid: Grid) -> list[NDArray[np.float64]]:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij"))


def torso(spacing_mm: float = 4.8) -> tuple[Volume, Volume]:
    """Water in an elliptic cylinder of 24 x 34 cm, an adult's abdomen; 1e4 Bq/mL in 30 cm of its length."""
    grid = centred((80, 56, 76), spacing_mm)
    z, y, x = coordinates(grid)
    inside = (y / 120) ** 2 + (x / 170) ** 2 < 1
    return (
        Volume((inside * (np.abs(z) < 150) * 1e4).astype(np.float32), grid, "Bq/mL"),
        Volume(inside.astype(np.float32), grid, "g/cm3"),
    )


@pytest.fixture(scope="module")
def in_torso() -> scatter.Scatter:
    return scatter.simulated_scatter(
        *torso(), CAMERA, CENTRE, seed=1, photons=100_000, views=16, primary_every=1, threads=2
    )


@compiled
def follow_analog(
    geometry: Geometry,
    tables: PhotonTables,
    middle: int,
    kev: np.float32,
    key: np.uint64,
    left_with: NDArray[np.float32],
) -> None:
    """Energies with which photons from the grid's middle leave it, 0 for the absorbed: nothing is forced."""
    for number in range(left_with.size):
        iz, iy, ix, fz, fy, fx = middle, middle, middle, F(0.5), F(0.5), F(0.5)
        u, v, w, counter = isotropic(first_draw(number), key)
        energy = kev
        while energy > F(50.0):
            place = place_on_grid(energy)
            inside, iz, iy, ix, fz, fy, fx, counter = fly(
                geometry, tables, place, iz, iy, ix, fz, fy, fx, u, v, w, counter, key
            )
            if not inside:
                left_with[number] = energy
                break
            material = int(geometry.material[voxel_index(geometry, iz, iy, ix)])
            r, counter = uniform(counter, key)
            if r < interpolate(tables.photoelectric[material], place):
                break
            cosine, energy, counter = compton(tables, material, energy, counter, key)
            azimuth, counter = uniform(counter, key)
            u, v, w = rotate(u, v, w, cosine, TWO_PI * azimuth)


def test_forced_detection_counts_what_leaves_a_sphere_in_all_directions() -> None:
    """The view from every direction is the same, so that all that escapes, over 4π, is one view's counts."""
    grid = centred((31, 31, 31), scatter.VOXEL_MM)
    z, y, x = coordinates(grid)
    # Soft edges: the transport's own voxels, so that both simulations see one geometry.
    radius = np.sqrt(z**2 + y**2 + x**2)
    density = np.clip((100 - radius) / scatter.VOXEL_MM + 0.5, 0, 1).astype(np.float32)
    point = np.zeros(grid.shape, np.float32)
    point[15, 15, 15] = 1.0
    corner = -scatter.VOXEL_MM / 2  # of voxels: the transport's lattice is then this one
    activity, body = Volume(point, grid, "Bq/mL"), Volume(density, grid, "g/cm3")
    found = scatter.simulated_scatter(
        activity, body, CAMERA, (corner,) * 3, seed=1, photons=60_000, views=16, primary_every=1, threads=2
    )
    side = scatter.VOXEL_MM / 10
    geometry = voxel_geometry(material_map(density), density, (side, side, side))
    tables = photon_tables(scatter.without_coherent(), geometry, electron_cutoff_kev=0.0)
    scattered, unscattered = np.zeros(3), 0.0
    main = energy_windows.photopeak_line(CAMERA)
    windows = CAMERA.windows.photopeak, CAMERA.windows.lower, CAMERA.windows.upper
    reference = energy_windows.window_chance(CAMERA, windows[0], main) * energy_windows.relative_efficiency(
        main
    )
    for kev, share in ((208.366, 1.0), (249.674, 0.002012 / 0.1038), (321.316, 0.00216 / 0.1038)):
        left_with = np.zeros(300_000, np.float32)
        follow_analog(geometry, tables, 15, F(kev), stream_key(5, 0), left_with)
        changed = left_with[(left_with > 0) & (left_with < np.float32(kev))].astype(np.float64)
        for k, window in enumerate(windows):
            counts = energy_windows.window_chance(
                CAMERA, window, changed
            ) * energy_windows.relative_efficiency(changed)
            scattered[k] += share * counts.sum() / left_with.size / reference
        if kev == main:
            unscattered = np.count_nonzero(left_with == np.float32(kev)) / left_with.size
    total = grid.voxel_volume_ml
    assert found.primary_bq / total == pytest.approx(unscattered, rel=0.01)
    forced = found.windows.sum(axis=(1, 2, 3), dtype=np.float64) / CAMERA.views / total
    assert forced[:2] == pytest.approx(scattered[:2], rel=0.02)
    assert forced[2] == pytest.approx(scattered[2], rel=0.08)  # only 4 % of the photons can come here


def test_nothing_scatters_in_vacuum() -> None:
    activity, density = torso()
    nothing = density.with_array(np.zeros_like(density.array))
    found = scatter.simulated_scatter(
        activity, nothing, CAMERA, CENTRE, seed=1, photons=20_000, views=4, primary_every=1, threads=2
    )
    assert not found.windows.any()
    total = float(activity.array.sum(dtype=np.float64)) * activity.grid.voxel_volume_ml
    assert found.primary_bq == pytest.approx(total, rel=0.01)


def test_unscattered_photons_are_the_projector_s(in_torso: scatter.Scatter) -> None:
    """One absolute scale: the projector's views hold what the simulation counts before any collision."""
    activity, density = torso()
    grid = centred((80, 96, 96), 4.8)
    bq = averaged(activity, grid).array * np.float32(grid.voxel_volume_ml)
    mu = scatter.true_attenuation(averaged(density, grid), energy_windows.photopeak_line(CAMERA))
    views = Projector(mu, 4.8, replace(CAMERA, penetration_fraction=0.0), threads=2).forward(bq)
    assert in_torso.primary_bq == pytest.approx(views.sum(dtype=np.float64) / CAMERA.views, rel=0.02)
    by_view = in_torso.primary.sum(axis=(1, 2)) / views.sum(axis=(1, 2))
    assert by_view == pytest.approx(np.ones(CAMERA.views), abs=0.02)
    smooth = gaussian_filter(views, (0, 1, 1), mode="nearest")  # as the simulation's cells, here of one pixel
    assert np.abs(in_torso.primary - smooth).mean() < 0.03 * smooth.mean()


def test_scatter_fraction_of_an_abdomen(in_torso: scatter.Scatter) -> None:
    """Between a fifth and a third at 208 keV in a window of 20 %."""
    scattered = float(in_torso.windows[0].sum(dtype=np.float64)) / CAMERA.views
    assert 0.20 < scattered / (scattered + in_torso.primary_bq) < 0.35


def test_double_activity_gives_double_scatter_and_threads_do_not_matter() -> None:
    activity, density = torso()
    double = activity.with_array(2 * activity.array)
    first, second = (
        scatter.simulated_scatter(a, density, CAMERA, CENTRE, seed=4, photons=3_000, views=4, threads=n)
        for a, n in ((activity, 1), (double, 2))
    )
    assert np.array_equal(2 * first.windows, second.windows)
    other = scatter.simulated_scatter(activity, density, CAMERA, CENTRE, seed=5, photons=3_000, views=4)
    assert not np.array_equal(first.windows, other.windows)


def test_windows_share_out_what_the_energy_resolution_spreads() -> None:
    """A line is measured in all windows that touch it; every photon somewhere."""
    kev = np.array([150.0, 208.366, 249.674])
    windows = CAMERA.windows
    everything = windows.photopeak._replace(low=0.0, high=1e4)
    assert energy_windows.window_chance(CAMERA, everything, kev) == pytest.approx(np.ones(3))
    inside = energy_windows.window_chance(CAMERA, windows.photopeak, 208.366)
    # ± 10 % at a FWHM of 10 %: ± 2.355 σ.
    assert inside == pytest.approx(0.9815, abs=2e-4)
    air = energy_windows.counts_in_air(CAMERA)
    assert air[0] == pytest.approx(1.0, abs=1e-3)
    assert np.all(air[1:] > 0.005)
    assert np.all(air[1:] < 0.03)


def test_the_crystal_stops_fewer_photons_of_higher_energy() -> None:
    kev = np.linspace(100.0, 500.0, 81)
    assert np.all(np.diff(energy_windows.relative_efficiency(kev)) < 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, d: (a.with_array(a.array * np.float32(np.nan)), d), "not a number"),
        (lambda a, d: (a, d.with_array(-d.array)), "density has .* negative"),
        (lambda a, d: (a.with_array(0 * a.array), d), "no activity"),
        (lambda a, d: (a.with_array(a.array, "Bq"), d), "is in Bq"),
        (lambda a, d: (a, d.boxed((slice(0, 80), slice(20, 36), slice(0, 76)))), "beside the density"),
        (lambda a, d: (a, Volume(d.array, replace(d.grid, frame_of_reference_uid="1.2"), d.unit)), "Frame"),
    ],
)
def test_impossible_patients_are_refused(
    change: Callable[[Volume, Volume], tuple[Volume, Volume]], message: str
) -> None:
    activity, density = change(*torso())
    with pytest.raises(InputRejected, match=message):
        scatter.simulated_scatter(activity, density, CAMERA, CENTRE, seed=1, photons=100)


def test_a_camera_set_beside_every_line_is_refused() -> None:
    camera: SpectCamera = replace(CAMERA, photopeak_kev=180.0)
    with pytest.raises(InputRejected, match="no photon between"):
        scatter.simulated_scatter(*torso(), camera, CENTRE, seed=1, photons=100)
