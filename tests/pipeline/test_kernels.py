"""Voxel kernels: conservation, consistency between voxel sizes, and independent Monte Carlo."""

import numpy as np
import pytest

from pipeline import kernels
from pipeline.decay import NUCLIDES, Nuclide, nuclide
from pipeline.kernels import (
    MGY_G_PER_MBQ_S_KEV,
    SOFT_TISSUE_G_PER_CM3,
    Spacing,
    kernel_sha256,
    octant_total,
    radial_kernel,
    reach_voxels,
    voxel_kernel,
)
from tests.reference import physics

BY_NAME = pytest.mark.parametrize("of", NUCLIDES, ids=lambda row: row.name)


def energies(of: Nuclide, spacing: Spacing, shape: tuple[int, int, int]) -> np.ndarray:
    """keV per decay and voxel."""
    grams = SOFT_TISSUE_G_PER_CM3 * np.prod(spacing) / 1000
    return voxel_kernel(of, spacing, shape).astype(float) * grams / MGY_G_PER_MBQ_S_KEV


@pytest.mark.parametrize("row", physics.voxel_values(), ids=lambda row: f"{row.of.name}{row.offset}")
def test_voxel_s_values_agree_with_direct_monte_carlo(row: physics.VoxelValue) -> None:
    """Self-voxel within 0.5 %, faces within 1.5 %, the others within three sigma of the simulation."""
    ours = float(voxel_kernel(row.of, (3.0, 3.0, 3.0), (4, 4, 4))[row.offset])
    relative = {(0, 0, 0): 0.005, (0, 0, 1): 0.015}.get(row.offset, 0.0)
    assert abs(ours - row.s_value) <= max(relative * row.s_value, 3 * row.sigma if not relative else 0.0)


@BY_NAME
@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (4.8, 4.8, 4.8), (5.0, 2.0, 2.0), (10.0, 4.0, 6.0)])
def test_the_whole_kernel_holds_the_energy_of_the_table(of: Nuclide, spacing: Spacing) -> None:
    z, y, x = (n + 1 for n in reach_voxels(spacing))
    ours = octant_total(energies(of, spacing, (z, y, x)).astype(np.float32))
    assert ours == pytest.approx(float(radial_kernel(of).energy_within(kernels.REACH_MM)), rel=1e-3)


@BY_NAME
def test_interpolation_keeps_the_energy_of_every_shell_and_never_falls(of: Nuclide) -> None:
    within = radial_kernel(of).energy_within
    assert float(within(0.0)) == 0.0
    assert np.all(np.diff(within(np.linspace(0, kernels.REACH_MM, 200_001))) >= 0)


@BY_NAME
@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (3.0, 0.98, 0.98), (5.0, 2.0, 2.0)])
def test_the_parts_of_the_kernel_join_without_a_step(of: Nuclide, spacing: Spacing) -> None:
    """Where one rule hands over to the next both give the same energy.

    The mean over the last layer is the test of a step; the table's counting noise moves single voxels.
    """
    shape = tuple(int(200 / s) for s in spacing)
    parts = kernels._near(of, spacing), kernels._middle(of, spacing), kernels._far(of, spacing, shape)
    radii = kernels.near_radius_mm(spacing), kernels.middle_radius_mm(spacing)
    for inner, outer, radius in zip(parts[:-1], parts[1:], radii, strict=True):
        z, y, x = np.minimum(inner.shape, outer.shape)
        distance = np.sqrt(kernels._squared_mm2(spacing, (z, y, x)))
        layer = (distance <= radius) & (distance > radius - max(spacing))
        ratio = inner[:z, :y, :x][layer] / outer[:z, :y, :x][layer]
        assert ratio.size > 10
        assert ratio.mean() == pytest.approx(1.0, abs=0.004)
        assert np.abs(ratio - 1).max() < 0.03


@BY_NAME
@pytest.mark.parametrize("coarse", [(3.0, 3.0, 3.0), (3.0, 1.5, 1.5), (1.5, 1.5, 3.0)])
def test_fine_voxels_summed_over_coarse_ones_give_the_coarse_kernel(of: Nuclide, coarse: Spacing) -> None:
    """Per halved axis: of the four pairs of half voxels two lie at 2d, one each at 2d − 1 and 2d + 1."""
    n = 9
    summed = energies(of, (1.5, 1.5, 1.5), (2 * n + 1, 2 * n + 1, 2 * n + 1))
    for axis, spacing in enumerate(coarse):
        pick = np.moveaxis(summed, axis, 0)
        if spacing == 1.5:
            halves = pick[:n]
        else:
            index = 2 * np.arange(n)
            halves = pick[index] + (pick[np.abs(index - 1)] + pick[index + 1]) / 2
        summed = np.moveaxis(halves, 0, axis)
    ours = energies(of, coarse, (n, n, n))
    assert ours[0, 0, 0] == pytest.approx(summed[0, 0, 0], rel=1e-3)
    # Voxels that electrons reach hold 99 % of the energy near the source; there 0.5 %, and beyond,
    # the counting noise of single shells.
    electrons = summed > 1e-3 * summed[0, 0, 0]
    np.testing.assert_allclose(ours[electrons], summed[electrons], rtol=5e-3)
    np.testing.assert_allclose(ours, summed, rtol=0.04)


def test_a_kernel_of_equal_sides_is_symmetric_in_its_axes() -> None:
    kernel = voxel_kernel(nuclide("I-131"), (2.0, 2.0, 2.0), (12, 12, 12))
    np.testing.assert_allclose(kernel, kernel.transpose(0, 2, 1), rtol=0.01)
    np.testing.assert_allclose(kernel, kernel.transpose(2, 1, 0), rtol=0.01)


def test_turning_the_spacing_turns_the_kernel() -> None:
    tall = voxel_kernel(nuclide("Lu-177"), (3.0, 1.0, 1.0), (8, 20, 20))
    wide = voxel_kernel(nuclide("Lu-177"), (1.0, 1.0, 3.0), (20, 20, 8))
    np.testing.assert_allclose(tall, wide.transpose(2, 1, 0), rtol=0.01)


def test_a_larger_shape_only_adds_voxels() -> None:
    small = voxel_kernel(nuclide("Lu-177"), (3.0, 1.0, 1.0), (5, 30, 10))
    large = voxel_kernel(nuclide("Lu-177"), (3.0, 1.0, 1.0), (40, 40, 40))
    np.testing.assert_array_equal(small, large[:5, :30, :10])


def test_beyond_the_tables_the_kernel_is_zero() -> None:
    kernel = voxel_kernel(nuclide("I-131"), (10.0, 10.0, 10.0), (53, 2, 2))
    assert kernel[50, 0, 0] > 0
    assert not kernel[51:].any()
    assert reach_voxels((10.0, 10.0, 10.0)) >= (50, 50, 50)


@pytest.mark.parametrize("sphere", physics.spheres(), ids=lambda row: f"{row.of.name}-{row.mass_g:g}g")
def test_spheres_absorb_what_monte_carlo_finds(sphere: physics.Sphere) -> None:
    ours = physics.sphere_from_shells(sphere.of, sphere.tissue_radius_mm)
    assert ours == pytest.approx(sphere.kev_per_decay, rel=0.015)


@pytest.mark.parametrize("sphere", physics.spheres(), ids=lambda row: f"{row.of.name}-{row.mass_g:g}g")
def test_spheres_of_voxels_absorb_what_monte_carlo_finds(sphere: physics.Sphere) -> None:
    """Voxel kernel and FFT together; 20 voxels per radius, so the steps of the surface matter little."""
    radius = sphere.tissue_radius_mm
    ours = physics.sphere_from_voxels(sphere.of, radius, radius / 20)
    assert ours == pytest.approx(sphere.kev_per_decay, rel=0.015)
    assert ours == pytest.approx(physics.sphere_from_shells(sphere.of, radius), rel=0.007)


@BY_NAME
def test_the_electrons_of_the_table_have_the_energy_of_icrp_107(of: Nuclide) -> None:
    """Between the range of the last electrons and the first photons' interactions C(r) is level.

    Lu-177 electrons end at 1.8 mm, Y-90's at 11 mm; I-131 has 0.6 keV/mm of photons there.
    """
    plateau_mm = {"Lu-177": 1.8, "Y-90": 11.0, "I-131": 2.4}[of.name]
    electrons = float(radial_kernel(of).energy_within(plateau_mm))
    tolerance = {"Lu-177": 0.005, "Y-90": 0.005, "I-131": 0.025}[of.name]
    assert electrons == pytest.approx(physics.ELECTRON_KEV[of.name], rel=tolerance)


def test_a_megabecquerel_of_lutetium_electrons_in_a_gram_gives_85_mgy_per_hour() -> None:
    kev = float(radial_kernel(nuclide("Lu-177")).energy_within(1.8))
    gy_per_h = kev * MGY_G_PER_MBQ_S_KEV * 3600 / 1000
    assert gy_per_h == pytest.approx(0.08532, rel=0.005)


def test_the_kernel_hash_tells_nuclide_and_spacing_apart() -> None:
    spacings: list[Spacing] = [(3.0, 1.0, 1.0), (1.0, 1.0, 3.0), (3.0, 1.0, 1.0000001)]
    hashes = [kernel_sha256(of, spacing) for of in NUCLIDES for spacing in spacings]
    assert len(set(hashes)) == len(hashes)
    assert kernel_sha256(nuclide("177Lu"), spacings[0]) == hashes[0]
