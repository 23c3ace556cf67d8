"""Voxel S values of 3 mm and MIRD Pamphlet 17: kernels and Monte Carlo."""

from __future__ import annotations

import csv
from itertools import permutations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.decay import NUCLIDES, Nuclide
from pipeline.kernels import SOFT_TISSUE_G_PER_CM3, s_value_per_kev, voxel_kernel
from pipeline.montecarlo.sampling import Emission
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import Deposits, deposits, lines_of_reference, reference_source, source_of
from tests.reference import physics

REFERENCE = Path(__file__).parents[2] / "reference" / "penelope" / "voxels_3mm.csv"
SIDE_MM = 3.0
SPACING = (SIDE_MM, SIDE_MM, SIDE_MM)
# Voxels about the source in Monte Carlo: 12 cm, so that what is scattered back is there.
VOXELS = 41
DECAYS = (1e7, 1e7)

TEXT = """PENELOPE Monte Carlo of a uniform 3 mm source voxel in soft tissue (ICRU four-component, 1.04
g/cm³): every tabulated offset with a standard deviation below 3 %. Shipped kernels: integrated
from the radial tables. Monte Carlo: the product's own, the same voxel in the same medium.
"Its lines": with the conversion lines that the reference lists. "Others": largest distance in
standard deviations of both simulations, and the mean difference."""


def section(effort: Effort) -> Section:
    page = Section("Voxel S values, 3 mm")
    rows, points = [], []
    for of in NUCLIDES:
        kernel = voxel_kernel(of, SPACING, (4, 4, 4)).astype(float)
        rows.append((of.name, "kernel", *_row(of, kernel, np.zeros_like(kernel))))
        values, errors = monte_carlo_octant(source_of(of.name), effort)
        rows.append((of.name, "Monte Carlo", *_row(of, values, errors)))
        listed = lines_of_reference(of.name)
        if listed is not None:
            values, errors = monte_carlo_octant(listed, effort)
            rows.append((of.name, "Monte Carlo, its lines", *_row(of, values, errors)))
        points += [_mird17(*point) for point in physics.mird17_points() if point[0] is of]
    page.say(TEXT)
    page.table(("", "", "self", "face", "others", "largest", "mean"), rows)
    _same_spectrum(page, effort)
    page.say("Source voxels of MIRD Pamphlet 17, S in mGy/(MBq s). It rests on EGS4 with older decay data.")
    page.table(("", "voxel", "MIRD 17", "kernel", "difference"), points)
    return page


def _same_spectrum(page: Section, effort: Effort) -> None:
    """Electrons alone with the spectrum that PENELOPE ran with: transport without decay data."""
    rows = []
    for name, references in read_references().items():
        shape = (21, 21, 21)
        activity = np.zeros(shape)
        activity[10, 10, 10] = 1.0
        run = deposits(
            np.full(shape, SOFT_TISSUE_G_PER_CM3), activity, SPACING, reference_source(name),
            (effort.decays(DECAYS[0]), 0.0), medium="icru_soft_tissue", device=effort.device,
        )  # fmt: skip
        found = []
        for offset in (0, 1):
            kev, sigma = references[offset]
            index = tuple(np.array(sorted(_faces(offset))).T)
            ours = run.electrons[index].mean()
            ours_sigma = np.sqrt((run.electron_sigma[index] ** 2).sum()) / len(index[0])
            error = np.hypot(sigma, ours_sigma)
            found.append(f"{per_cent(ours / kev)} ± {100 * error / kev:.2f} %")
        rows.append((name, *found))
    if rows:
        page.say(
            "Electrons alone, the same spectrum (ICRP 107) on both sides: what remains is transport. "
            "PENELOPE as for the slabs below."
        )
        page.table(("", "self", "face"), rows)


def _faces(offset: int) -> set[tuple[int, ...]]:
    """Voxels at this offset along any axis from the middle of 21."""
    middle = (10, 10, 10)
    return {
        tuple(m + sign * offset * (axis == a) for a, m in enumerate(middle))
        for axis in range(3)
        for sign in (-1, 1)
    }


def read_references() -> dict[str, dict[int, tuple[float, float]]]:
    """nuclide -> offset along an axis -> (keV per decay of electrons, standard deviation)."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    if REFERENCE.exists():
        with REFERENCE.open() as file:
            for row in csv.DictReader(line for line in file if not line.startswith("#")):
                value = float(row["electron_kev"]), float(row["electron_sigma"])
                found.setdefault(row["nuclide"], {})[int(row["offset"])] = value
    return found


def monte_carlo_octant(source: Emission, effort: Effort) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(4, 4, 4) S values, mGy/(MBq s), and their standard deviations, by Monte Carlo."""
    shape = (VOXELS, VOXELS, VOXELS)
    activity = np.zeros(shape)
    activity[(VOXELS // 2,) * 3] = 1.0
    electrons, photons = DECAYS
    run = deposits(
        np.full(shape, SOFT_TISSUE_G_PER_CM3), activity, SPACING, source,
        (effort.decays(electrons), effort.decays(photons)), medium="icru_soft_tissue", device=effort.device,
    )  # fmt: skip
    return _octant(run)


def _octant(run: Deposits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over all mirror images and exchanges of axes of each offset."""
    values, errors = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    middle = VOXELS // 2
    for offset in product(range(4), repeat=3):
        images = {
            tuple(middle + sign * step for sign, step in zip(signs, order, strict=True))
            for order in permutations(offset)
            for signs in product((-1, 1), repeat=3)
        }
        index = tuple(np.array(sorted(images)).T)
        values[offset] = run.total[index].mean()
        errors[offset] = np.sqrt((run.sigma[index] ** 2).sum()) / len(images)
    scale = s_value_per_kev(SPACING)
    return values * scale, errors * scale


def _row(of: Nuclide, octant: NDArray[np.float64], error: NDArray[np.float64]) -> tuple[str, ...]:
    values = {row.offset: row for row in physics.voxel_values() if row.of is of}
    ratio = {at: octant[at] / row.s_value for at, row in values.items()}
    sigma = {at: float(np.hypot(row.sigma, error[at]) / row.s_value) for at, row in values.items()}
    others = [at for at in values if at not in ((0, 0, 0), (0, 0, 1))]
    largest = max(abs(ratio[at] - 1) / sigma[at] for at in others)
    mean = float(np.mean([ratio[at] for at in others]))
    near = (f"{per_cent(ratio[at])} ± {100 * sigma[at]:.2f} %" for at in ((0, 0, 0), (0, 0, 1)))
    return (*near, f"{len(others)}", f"{largest:.1f} σ", per_cent(mean, 1))


def _mird17(of: Nuclide, side: float, s_value: float) -> tuple[str, ...]:
    ours = float(voxel_kernel(of, (side, side, side), (1, 1, 1))[0, 0, 0])
    return of.name, f"{side:g} mm", f"{s_value:g}", f"{ours:.4g}", per_cent(ours / s_value, 1)
