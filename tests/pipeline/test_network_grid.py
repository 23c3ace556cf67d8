"""The way onto the network's lattice and back: what it keeps, on any grid that a CT may have."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRequest
from pipeline.dvk import dvk_dose_rate
from pipeline.network_grid import axis_weights, network_grid
from pipeline.volume import Grid, Triple, Volume
from tests.pipeline.network_scene import VOXEL_MM, Scene, energy, scene, turned

torch = pytest.importorskip("torch")

SAME: Triple = VOXEL_MM
GRIDS: list[Triple] = [
    SAME,
    (3.0, 0.9765625, 0.9765625),
    (1.5, 1.5, 1.5),
    (2.5, 1.27, 1.27),
    (5.0, 1.4, 1.4),
    (3.0, 4.0, 4.0),
    (5.0, 5.0, 5.0),
]
TURNS = [
    ((0, 1, 2), ()),
    ((0, 1, 2), (0,)),
    ((0, 1, 2), (1, 2)),
    ((1, 0, 2), (0,)),
    ((2, 1, 0), (1,)),
    ((1, 2, 0), (0, 2)),
]


def seen(of: Scene) -> tuple[np.ndarray, np.ndarray]:
    """SPECT and density on the network's lattice."""
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    spect, density = (lattice.onto_network(v.array, (0, 0, 0), "cpu") for v in (of.activity, of.density))
    return spect.numpy(), density.numpy()


def dvk_of(of: Scene) -> np.ndarray:
    return dvk_dose_rate(DoseRequest(of.activity, of.density, nuclide("Lu-177"))).volume.array


def change_on_lattice(of: Scene, share: float = 0.4) -> np.ndarray:
    """What a network that sharpens would add, mGy/h: the SPECT less a blurred SPECT; negative in places."""
    from scipy.ndimage import gaussian_filter

    spect, density = seen(of)
    per_bq_ml = 85.32 / 1e6  # mGy/h for the electrons of 1 Bq/mL in 1 g/cm3 (ICRP 107)
    sharper = spect - gaussian_filter(spect, (1.5, 2.5, 2.5))
    return (share * per_bq_ml * sharper / np.maximum(density, 0.2)).astype(np.float32)


def brought_back(of: Scene, change: np.ndarray, dvk: np.ndarray) -> np.ndarray:
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    density = torch.from_numpy(seen(of)[1])
    return lattice.brought_back(torch.from_numpy(change), density, dvk, of.density.array)


# ── weights along an axis ────────────────────────────────────────────────────────────────────────


def test_a_lattice_onto_itself_changes_nothing() -> None:
    np.testing.assert_array_equal(axis_weights(np.arange(7.0), 1.0, 7), np.eye(7))


@pytest.mark.parametrize(("width", "n"), [(2.0, 12), (1.3, 13), (0.6, 10), (1.0, 9)])
def test_what_is_constant_stays_so_and_beyond_the_source_only_what_it_covers_counts(
    width: float, n: int
) -> None:
    centres = np.arange(-2.0, n + 2.0, width)
    total = axis_weights(centres, width, n).sum(axis=1)
    covered = np.clip(centres + width / 2, -0.5, n - 0.5) - np.clip(centres - width / 2, -0.5, n - 0.5)
    np.testing.assert_allclose(total, covered / width, atol=1e-6)


def test_onto_a_coarser_lattice_every_source_voxel_counts_once() -> None:
    weights = axis_weights(np.arange(0.35, 12.0, 1.7), 1.7, 12)
    np.testing.assert_allclose(weights[:, 1:-1].sum(axis=0) * 1.7, 1.0, atol=1e-6)


def test_onto_a_finer_lattice_a_slope_stays_a_slope() -> None:
    centres = np.arange(0.1, 8.0, 0.4)
    np.testing.assert_allclose(axis_weights(centres, 0.4, 9) @ np.arange(9.0), centres, atol=1e-5)


# ── the lattice ──────────────────────────────────────────────────────────────────────────────────


def test_a_grid_of_the_networks_own_spacing_keeps_its_voxels() -> None:
    of = scene(SAME)
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    assert all(n % 16 == 0 for n in lattice.grid.shape[1:])
    start = np.rint(lattice.grid.indices(of.density.grid.origin_mm)).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, of.density.grid.shape, strict=True))
    np.testing.assert_allclose(seen(of)[0][box], of.activity.array, rtol=1e-5)


@pytest.mark.parametrize("spacing", GRIDS, ids=str)
def test_activity_and_mass_are_kept(spacing: Triple) -> None:
    of = scene(spacing)
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    inside = np.array([axis.onto_network(0, axis.n).sum(axis=1) for axis in lattice.axes], dtype=object)
    covered = inside[0][:, None, None] * inside[1][:, None] * inside[2]
    for array, volume in zip(seen(of), (of.activity, of.density), strict=True):
        found = float((array * covered).sum(dtype=np.float64)) * lattice.grid.voxel_volume_ml
        expected = float(volume.array.sum(dtype=np.float64)) * volume.grid.voxel_volume_ml
        assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("order", "backwards"), TURNS)
def test_the_network_sees_the_patient_the_same_way_however_the_voxels_are_stored(
    order: tuple[int, int, int], backwards: tuple[int, ...]
) -> None:
    of = scene((5.0, 1.4, 1.4))
    other = Scene(turned(of.activity, order, backwards), turned(of.density, order, backwards), {})
    for one, two in zip(seen(of), seen(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * one.max())
    lattices = [network_grid(v.density.grid, VOXEL_MM, 16).grid for v in (of, other)]
    assert lattices[0].same_as(lattices[1])


def test_a_box_of_activity_longer_than_the_density_is_seen_as_far_as_the_lattice_reaches() -> None:
    of = scene((3.0, 4.0, 4.0))
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    longer = np.pad(of.activity.array, ((4, 2), (3, 1), (0, 5)))
    found = lattice.onto_network(longer, (-4, -3, 0), "cpu").numpy()
    inner = (slice(None), slice(20, 60), slice(20, 60))
    np.testing.assert_allclose(found[inner], seen(of)[0][inner], rtol=1e-5)


def test_beside_what_is_known_there_is_what_was_asked_for() -> None:
    grid = Grid((4, 10, 10), (0.0, 0.0, 0.0), VOXEL_MM)
    found = network_grid(grid, VOXEL_MM, 16).onto_network(
        np.ones(grid.shape, np.float32), (0, 0, 0), "cpu", 0.5
    )
    assert found.shape == (4, 16, 16)
    np.testing.assert_array_equal(np.unique(found.numpy()), [0.5, 1.0])
    assert int((found == 1.0).sum()) == 400


# ── and back ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spacing", GRIDS, ids=str)
def test_without_a_change_the_map_is_dvks(spacing: Triple) -> None:
    of = scene(spacing)
    dvk = dvk_of(of)
    found = brought_back(of, np.zeros_like(seen(of)[0]), dvk)
    np.testing.assert_array_equal(found, np.where(of.density.array > 0.1, dvk, 0.0))


def test_on_the_networks_own_grid_the_change_is_added_as_it_is_and_cut_off_at_zero() -> None:
    of = scene(SAME)
    dvk, change = dvk_of(of), change_on_lattice(of, share=3.0)
    found = brought_back(of, change, dvk)
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    start = np.rint(lattice.grid.indices(of.density.grid.origin_mm)).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, dvk.shape, strict=True))
    expected = np.where(of.density.array > 0.1, np.maximum(dvk + change[box], 0.0), 0.0)
    assert (expected[of.density.array > 0.1] == 0).any(), "some of it must have been cut off"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.parametrize("spacing", GRIDS, ids=str)
def test_energy_and_the_means_of_regions_change_as_on_the_networks_own_grid(spacing: Triple) -> None:
    """What the network adds, against what it gives on its own lattice, both relative to the whole."""
    of = scene(spacing)
    dvk, change = dvk_of(of), change_on_lattice(of)
    found = brought_back(of, change, dvk)
    lattice = network_grid(of.density.grid, VOXEL_MM, 16)
    spect, density = seen(of)
    own_dvk = dvk_dose_rate(
        DoseRequest(
            Volume(spect, lattice.grid, "Bq/mL"), Volume(density, lattice.grid, "g/cm3"), nuclide("Lu-177")
        )
    ).volume.array
    own = np.where(density > 0.1, np.maximum(own_dvk + change, 0.0), 0.0)
    parts = [axis.onto_network(0, axis.n).sum(axis=1) for axis in lattice.axes]
    covered = parts[0][:, None, None] * parts[1][:, None] * parts[2]

    own_density = Volume((density * covered).astype(np.float32), lattice.grid, "g/cm3")
    whole = energy(own, own_density)
    assert energy(found, of.density) == pytest.approx(whole, rel=3e-3)
    added = energy(found, of.density) - energy(dvk * (of.density.array > 0.1), of.density)
    assert added / whole == pytest.approx((whole - energy(own_dvk, own_density)) / whole, abs=1e-3)

    for name, mask in of.regions.items():
        share = lattice.onto_network(mask.astype(np.float32), (0, 0, 0), "cpu").numpy() * covered
        on_own, of_dvk = (float((m * share).sum() / share.sum()) for m in (own, own_dvk))
        difference = float((found[mask] - dvk[mask]).mean()) - (on_own - of_dvk)
        assert abs(difference) < 0.01 * on_own, name


def test_no_dose_rate_becomes_negative_and_air_gets_none() -> None:
    of = scene((2.5, 1.27, 1.27))
    dvk = dvk_of(of)
    wild = np.random.default_rng(3).normal(0.0, 10 * dvk.max(), seen(of)[0].shape).astype(np.float32)
    found = brought_back(of, wild, dvk)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert not found[of.density.array <= 0.1].any()


@pytest.mark.parametrize(("order", "backwards"), TURNS[1:])
def test_the_result_is_the_same_however_the_voxels_are_stored(
    order: tuple[int, int, int], backwards: tuple[int, ...]
) -> None:
    of = scene((5.0, 1.4, 1.4))
    dvk, change = dvk_of(of), change_on_lattice(of)
    expected = turned(Volume(brought_back(of, change, dvk), of.density.grid, "mGy/h"), order, backwards)
    other = Scene(turned(of.activity, order, backwards), turned(of.density, order, backwards), {})
    turned_dvk = turned(Volume(dvk, of.density.grid, "mGy/h"), order, backwards).array
    found = brought_back(other, change, turned_dvk)
    np.testing.assert_allclose(found, expected.array, rtol=0, atol=1e-5 * dvk.max())
