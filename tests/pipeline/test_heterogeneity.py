"""Electrons in tissue of changing density: conservation, known limits, and who gets what at a border."""

import numpy as np
import pytest

from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRequest, Heterogeneity
from pipeline.dvk import dvk_dose_rate
from pipeline.heterogeneity import electron_energy, electron_reach, ray_kernel, rays_of
from pipeline.kernels import Spacing, electron_kernel, octant_total, radial_kernel
from pipeline.photon_absorption import absorption_relative_to_soft_tissue, compton_part
from pipeline.volume import Grid, Volume

LUTETIUM, YTTRIUM = nuclide("Lu-177"), nuclide("Y-90")
SPACINGS = [(3.0, 3.0, 3.0), (3.0, 0.9766, 0.9766)]
SOFT, LUNG, BONE, AIR = 1.04, 0.26, 1.92, 0.0012
KEV_PER_G_TO_MGY_PER_H = 1.602176634e-16 * 1e3 * 1e3 * 3600


def filled(shape: tuple[int, int, int], value: float) -> np.ndarray:
    return np.full(shape, value, np.float32)


def rate(
    activity: np.ndarray, density: np.ndarray, spacing: Spacing, how: Heterogeneity, of=LUTETIUM
) -> np.ndarray:
    grid = Grid(activity.shape, (0, 0, 0), spacing, frame_of_reference_uid="1.2.3")
    return dvk_dose_rate(
        DoseRequest(
            Volume(activity.astype(np.float32), grid, "Bq/mL"),
            Volume(density.astype(np.float32), grid, "g/cm3"),
            of,
            heterogeneity=how,
        )
    ).volume.array


@pytest.mark.parametrize("of", [LUTETIUM, YTTRIUM], ids=lambda row: row.name)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_ray_leaves_all_its_energy(of, spacing: Spacing) -> None:  # type: ignore[no-untyped-def]
    """Whatever the densities, as long as no ray leaves the grid."""
    reach = [3 * n + 1 for n in electron_reach(of, spacing)]
    shape = tuple(2 * n + 1 for n in reach)
    density = np.random.default_rng(4).uniform(0.4, 2.0, shape).astype(np.float32)
    activity = np.zeros(shape, np.float32)
    activity[tuple(reach)] = 3.0
    given = electron_energy(of, activity, density, spacing)
    assert given.sum(dtype=float) == pytest.approx(3 * radial_kernel(of).electron_kev, rel=1e-5)
    assert given.min() >= -1e-4


def test_what_leaves_the_grid_is_lost() -> None:
    activity, density = filled((3, 3, 3), 1.0), filled((3, 3, 3), LUNG)
    given = electron_energy(YTTRIUM, activity, density, (3.0, 3.0, 3.0))
    assert 0 < given.sum(dtype=float) < 0.5 * 27 * radial_kernel(YTTRIUM).electron_kev


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("density", [LUNG, SOFT, BONE])
def test_uniform_activity_in_one_density_gives_its_energy_over_its_mass(
    spacing: Spacing, density: float
) -> None:
    """Far from the edges; every voxel the same, since all have the same rays."""
    reach = int(np.ceil(1.8 * SOFT / density / min(spacing))) + 1
    shape = (2 * reach + 3,) * 3
    given = electron_energy(LUTETIUM, filled(shape, 1.0), filled(shape, density), spacing)
    inside = given[reach : reach + 3, reach : reach + 3, reach : reach + 3]
    np.testing.assert_allclose(inside, radial_kernel(LUTETIUM).electron_kev, rtol=2e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_rays_of_soft_tissue_are_near_the_exact_kernel(spacing: Spacing) -> None:
    """So that little is left to add: 1 % of what a source keeps, 20 % of what it gives to a face."""
    rays, exact = ray_kernel(LUTETIUM, spacing), electron_kernel(LUTETIUM, spacing)
    assert octant_total(rays) == pytest.approx(octant_total(exact), rel=1e-4)
    assert rays[0, 0, 0] == pytest.approx(exact[0, 0, 0], rel=0.01)
    for face in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert rays[face] == pytest.approx(exact[face], rel=0.2)


def test_rays_fill_the_voxel_evenly() -> None:
    """Mean chord of a box: 4 V / S, and every face sends out its share."""
    rays = rays_of(LUTETIUM, (3.0, 1.0, 2.0))
    volume, surface = 6.0, 2 * (3 * 1 + 3 * 2 + 1 * 2)
    assert rays.chord @ rays.weight == pytest.approx(1.0, rel=1e-5)
    assert rays.weight.sum() == pytest.approx(surface / (4 * volume), rel=1e-5)


@pytest.mark.parametrize("of", [LUTETIUM, YTTRIUM], ids=lambda row: row.name)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_in_soft_tissue_both_ways_give_the_same(of, spacing: Spacing) -> None:  # type: ignore[no-untyped-def]
    """Self and face within 0.5 %: the medium of 1.04 g/cm³ is another soft tissue than the kernel's."""
    activity = np.zeros((21, 31, 31))
    activity[10, 15, 15] = 1e6
    scaled, local = (
        rate(activity, filled(activity.shape, SOFT), spacing, how, of)
        for how in ("density_scaling", "local_transport")
    )
    for place in [(10, 15, 15), (11, 15, 15), (10, 16, 15), (10, 15, 14)]:
        assert local[place] == pytest.approx(scaled[place], rel=5e-3)
    np.testing.assert_allclose(local, scaled, rtol=0, atol=2e-3 * scaled.max())


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_half_space_of_lung_gives_the_soft_tissue_beside_it_a_quarter_of_the_mean_path(
    spacing: Spacing,
) -> None:
    """Of isotropic sources of the density A, each with the mean path G in lung, A G/4 cross the border."""
    shape = (15, 15, 40)
    density, activity = filled(shape, LUNG), np.zeros(shape, np.float32)
    density[:, :, 20:] = SOFT
    activity[:, :, :20] = 1.0
    given = electron_energy(LUTETIUM, activity, density, spacing)[7, 7, 20:].sum(dtype=float)
    kernel = radial_kernel(LUTETIUM)
    r = np.linspace(0, kernel.electron_range_mm, 20_001)
    left = 1 - kernel.electrons_within(r) / kernel.electron_kev
    mean_path = np.trapezoid(left, r) * SOFT / LUNG
    # Four rays to a face: 6 % where the range is several voxels.
    assert given == pytest.approx(kernel.electron_kev * mean_path / 4 / spacing[2], rel=0.08)


def test_density_scaling_does_not_know_of_the_electrons_that_come_out_of_lung() -> None:
    """Activity in lung alone: the first 3 mm of soft tissue get far more, the last of lung less."""
    shape = (15, 15, 20)
    density, activity = filled(shape, LUNG), np.zeros(shape)
    density[:, :, 10:] = SOFT
    activity[:, :, :10] = 1e6
    scaled, local = (
        rate(activity, density, (3.0, 3.0, 3.0), how)[7, 7] for how in ("density_scaling", "local_transport")
    )
    assert local[10] > 2.5 * scaled[10]
    assert local[9] < scaled[9]


def test_air_lets_electrons_pass() -> None:
    """Over a gap of 6 mm of air, in which Lu-177's electrons would end if it were tissue."""
    shape = (21, 21, 20)
    density, activity = filled(shape, SOFT), np.zeros(shape)
    density[:, :, 9:11] = AIR
    activity[:, :, :9] = 1e6
    local = rate(activity, density, (3.0, 3.0, 3.0), "local_transport")[10, 10]
    scaled = rate(activity, density, (3.0, 3.0, 3.0), "density_scaling")[10, 10]
    assert not local[9:11].any()
    assert local[11] > 2 * scaled[11]


@pytest.mark.parametrize("air", [0.0, 1e-5])
def test_activity_in_a_vacuum_gives_the_tissue_around_it_what_it_gives_from_air(air: float) -> None:
    """No more than the noise of rounding: own thickness of next to nothing divides nothing."""
    hollow = np.s_[5:10, 12:21, 12:21]
    activity = filled((15, 33, 33), 0.0)
    activity[6:9, 14:19, 14:19] = 1.0
    energy = []
    for inside in (air, AIR):
        density = filled(activity.shape, SOFT)
        density[hollow] = inside
        energy.append(electron_energy(YTTRIUM, activity, density, (3.0, 0.98, 0.98)))
        energy[-1][hollow] = 0.0
    given, expected = energy
    high = expected > 0.1 * expected.max()
    np.testing.assert_allclose(given[high], expected[high], rtol=0.02)
    assert given.min() > -1e-5 * given.max()


def test_photons_give_lung_their_dose_and_not_their_energy() -> None:
    """Far from the source: the dose of soft tissue, where density scaling gives four times as much."""
    shape = (5, 5, 40)
    density, activity = filled(shape, LUNG), np.zeros(shape)
    activity[2, 2, 0] = 1e6
    local, scaled = (
        rate(activity, density, (3.0, 3.0, 3.0), how)[2, 2, 30]
        for how in ("local_transport", "density_scaling")
    )
    assert scaled / local == pytest.approx(SOFT / LUNG, rel=0.02)


def test_electrons_near_the_edge_of_the_ct_come_from_beyond_it() -> None:
    """Activity on a longer field than the CT's: its end slice goes on."""
    inner = Grid((10, 10, 10), (0, 0, 0), (3.0, 3.0, 3.0), frame_of_reference_uid="1.2.3")
    outer = inner.boxed((-4, -4, -4), (18, 18, 18))
    activity = Volume(filled(outer.shape, 1e6), outer, "Bq/mL")
    result = dvk_dose_rate(
        DoseRequest(
            activity,
            Volume(filled(inner.shape, SOFT), inner, "g/cm3"),
            LUTETIUM,
            heterogeneity="local_transport",
        )
    )
    electrons = radial_kernel(LUTETIUM).electron_kev * 1e6 / SOFT * KEV_PER_G_TO_MGY_PER_H
    assert (result.volume.array > electrons).all()
    assert result.parameters == ("heterogeneity=local_transport",)


def test_bone_absorbs_more_of_soft_photons_and_the_rest_alike() -> None:
    """NIST (Hubbell and Seltzer): μ_en/ρ of bone over soft tissue is 1.0 at 300 keV, 1.5 at 100 keV."""
    lung, soft, bone = absorption_relative_to_soft_tissue(LUTETIUM, np.array([LUNG, SOFT, BONE], np.float32))
    assert lung == pytest.approx(1.0, abs=0.03)
    assert soft == pytest.approx(1.0, abs=0.02)
    assert 1.2 < bone < 1.8


def test_compton_scattering_hands_over_the_tabulated_part() -> None:
    """Attix 1986, appendix: mean fraction of the photon's energy."""
    np.testing.assert_allclose(compton_part(np.array([100.0, 1000.0])), [0.138, 0.440], rtol=5e-3)
