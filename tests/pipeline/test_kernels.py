"""Voxel kernels: conservation, consistency between voxel sizes, and independent Monte Carlo."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import qmc

from pipeline import kernels
from pipeline.decay import NUCLIDES, Nuclide, nuclide
from pipeline.errors import InputRejected
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


def by_quasi_random_pairs(of: Nuclide, offset: tuple[int, int, int], spacing: Spacing) -> float:
    """keV per decay: the mean of ρ over pairs of points in two boxes."""
    side = np.asarray(spacing)
    uniform = qmc.Sobol(3, seed=1).random_base2(17)
    triangular = np.where(uniform < 0.5, np.sqrt(2 * uniform) - 1, 1 - np.sqrt(2 * (1 - uniform)))
    distance = np.linalg.norm((np.array(offset) + triangular) * side, axis=1)
    return float(radial_kernel(of).density(distance).mean() * np.prod(side))


def by_quasi_random_shells(of: Nuclide, offset: tuple[int, int, int], spacing: Spacing) -> float:
    """keV per decay: the mean of w over the energy around a point, which no singularity spoils."""
    side = np.asarray(spacing)
    kernel = radial_kernel(of)
    radius = np.concatenate([np.linspace(0, 12, 50_001), np.linspace(12, kernels.REACH_MM, 50_001)[1:]])
    within = kernel.energy_within(radius)
    energy, cosine, turn = qmc.Sobol(3, seed=1).random_base2(18).T
    r, z = np.interp(energy * within[-1], within, radius), 2 * cosine - 1
    sine, phi = np.sqrt(1 - z**2), 2 * np.pi * turn
    points = np.stack([z, sine * np.sin(phi), sine * np.cos(phi)], axis=1) * r[:, None]
    weight = np.prod(np.maximum(0.0, 1 - np.abs(points / side - offset)), axis=1)
    return float(within[-1] * weight.mean())


# The most laborious shape once: the weights of directions are the same for all.
SHAPED = [(nuclide("Lu-177"), (5.0, 1.0, 1.0))] + [
    (of, side) for of in NUCLIDES for side in ((3.0, 0.9766, 0.9766), (4.8, 4.8, 4.8), (2.0, 2.0, 2.0))
]


@pytest.mark.parametrize(("of", "spacing"), SHAPED, ids=lambda value: getattr(value, "name", str(value)))
def test_every_voxel_holds_the_integral_over_pairs_of_points(of: Nuclide, spacing: Spacing) -> None:
    """To 0.1 %, near and far, whatever the shape of the voxel."""
    ours = energies(of, spacing, (12, 42, 42))
    for offset in [(0, 0, 0), (0, 0, 1), (1, 0, 0)]:
        assert ours[offset] == pytest.approx(by_quasi_random_shells(of, offset, spacing), rel=1e-3)
    for offset in [
        (0, 2, 2),
        (2, 0, 0),
        (1, 3, 2),
        (0, 0, 5),
        (2, 4, 4),
        (0, 7, 0),
        (6, 0, 6),
        (10, 10, 10),
        (0, 40, 5),
    ]:
        assert ours[offset] == pytest.approx(by_quasi_random_pairs(of, offset, spacing), rel=1e-3)


@BY_NAME
@pytest.mark.parametrize("spacing", [(3.0, 0.98, 0.98), (5.0, 2.0, 2.0)])
def test_the_rules_of_the_kernel_agree_where_they_hand_over(of: Nuclide, spacing: Spacing) -> None:
    """Just outside the exact part, at 8 voxels and at 48: 0.1 %."""
    kernel, side = radial_kernel(of), max(spacing)
    places = kernels._exact_offsets(spacing, kernel.electron_range_mm)
    exact = kernels._exact(kernel.within, places, spacing)
    three = kernels._by_points(of, spacing, 9 * side, kernels.THREE_POINTS)
    two = kernels._by_points(of, spacing, 48 * side, kernels.TWO_POINTS)
    far = kernels._far(of, spacing, two.shape)
    distance = np.sqrt(kernels._squared_mm2(spacing, two.shape))
    inside = np.all(places < three.shape, axis=1) & (distance[tuple(places.T)] > 3.5 * side)
    inside &= distance[tuple(places.T)] > kernel.electron_range_mm + np.linalg.norm(spacing)
    if inside.any():
        np.testing.assert_allclose(three[tuple(places[inside].T)], exact[inside], rtol=1e-3)
    z, y, x = three.shape
    layer = (distance[:z, :y, :x] > 7.5 * side) & (distance[:z, :y, :x] < 8.5 * side)
    np.testing.assert_allclose(two[:z, :y, :x][layer], three[layer], rtol=1e-3)
    layer = (distance > 47 * side) & (distance < 48 * side)
    np.testing.assert_allclose(far[layer], two[layer], rtol=1e-3)


@BY_NAME
def test_photons_are_smoothed_within_their_noise_and_electrons_not_at_all(of: Nuclide) -> None:
    """Bands of shells keep their energy, to three standard deviations; shells of electrons to the digit."""
    path = files("pipeline").joinpath("data", "point_kernels", f"{of.name}_soft_tissue.csv")
    rows = [line.split(",") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    outer, shell, _within, sigma = np.array(rows[1:], float).T
    kernel = radial_kernel(of)
    ours = np.diff(kernel.energy_within(np.concatenate([[0.0], outer * 10])))
    electrons = outer * 10 <= kernel.electron_range_mm + 1e-9
    np.testing.assert_allclose(ours[electrons], shell[electrons], atol=2e-6)
    for band in np.array_split(np.flatnonzero(~electrons), 8):
        noise = np.sqrt((sigma[band] ** 2).sum())
        assert abs(ours[band].sum() - shell[band].sum()) < 3 * noise + 1e-3 * shell[band].sum()


@BY_NAME
def test_the_electrons_of_the_kernel_are_those_of_the_decay(of: Nuclide) -> None:
    """ICRP 107, to 1 %: the table's electrons, found by continuing the photons to the source."""
    kernel = radial_kernel(of)
    assert kernel.electron_kev == pytest.approx(physics.ELECTRON_KEV[of.name], rel=0.01)
    assert np.all(np.diff(kernel.electrons_within(np.linspace(0, kernel.electron_range_mm, 1000))) >= 0)
    corner = kernels.electron_kernel(of, (3.0, 2.0, 2.0))
    assert octant_total(corner) == pytest.approx(kernel.electron_kev, rel=1e-5)


def test_a_site_can_bring_its_own_table(tmp_path: Path) -> None:
    """With the electrons in a column of their own, they are taken from there."""
    path = tmp_path / "X-1.csv"
    shells = [(0.1 * n, 10.0 if n <= 5 else 0.1, 10.0 - 0.05 if n <= 5 else 0.0) for n in range(1, 501)]
    within = np.cumsum([energy for _, energy, _ in shells])
    lines = [f"{r:.2f},{e},{c:.4f},0.01,{k}" for (r, e, k), c in zip(shells, within, strict=True)]
    path.write_text(
        "# a table\nr_outer_cm,energy_keV_per_decay,cumulative_keV,sigma_keV,electron_keV\n"
        + "\n".join(lines)
    )
    kernel = radial_kernel(Nuclide("X-1", "Xenium", 1.0, "", ""), table=path)
    assert kernel.electron_range_mm == pytest.approx(5.0)
    assert kernel.electron_kev == pytest.approx(5 * 9.95)
    assert float(kernel.energy_within(500.0)) == pytest.approx(within[-1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a table"),
        ("radius,energy\n1,2", "has the columns radius, energy"),
        ("r_outer_cm,energy_keV_per_decay,cumulative_keV,sigma_keV\n1,2,2,x\n", "not a table"),
        ("r_outer_cm,energy_keV_per_decay,cumulative_keV,sigma_keV\n1,2,2,0\n1,2,4,0\n", "do not rise"),
    ],
)
def test_a_table_that_is_none_is_rejected_with_what_it_should_hold(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputRejected, match=reason) as rejected:
        radial_kernel(nuclide("Y-90"), table=path)
    assert "r_outer_cm" in rejected.value.remedy


def test_a_medium_without_a_table_is_rejected() -> None:
    with pytest.raises(InputRejected, match=r"no point kernel of Y-90 in chalk"):
        radial_kernel(nuclide("Y-90"), "chalk")


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
    np.testing.assert_allclose(ours, summed, rtol=2e-3)


def test_a_kernel_of_equal_sides_is_symmetric_in_its_axes() -> None:
    kernel = voxel_kernel(nuclide("I-131"), (2.0, 2.0, 2.0), (12, 12, 12))
    np.testing.assert_allclose(kernel, kernel.transpose(0, 2, 1), rtol=1e-5)
    np.testing.assert_allclose(kernel, kernel.transpose(2, 1, 0), rtol=1e-5)


def test_turning_the_spacing_turns_the_kernel() -> None:
    tall = voxel_kernel(nuclide("Lu-177"), (3.0, 1.0, 1.0), (8, 20, 20))
    wide = voxel_kernel(nuclide("Lu-177"), (1.0, 1.0, 3.0), (20, 20, 8))
    np.testing.assert_allclose(tall, wide.transpose(2, 1, 0), rtol=5e-4)


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
