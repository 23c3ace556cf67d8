"""Radial point kernels: the energy that a decay leaves around itself in a homogeneous medium.

C(r), the energy deposited within r, is tabulated (`data/point_kernels/README.md`). It is interpolated
monotonically, so that every shell keeps exactly the energy that its table gives it. Two things are
added to a table:

* **photons beyond the electrons.** Single shells there carry 1-3 % of counting noise, while dC/dr is a
  smooth curve: a polynomial of √r is fitted to ln dC/dr, weighted with the shells' uncertainty, and
  scaled to hold the energy of the shells. No shell's neighbourhood is left with more than 0.5 %.
* **photons among the electrons.** A table that tells them apart has a column for it. For the others dC/dr
  of the photons is continued to the source as a constant: their fluence falls as r⁻², and what is
  absorbed on such a short way (X rays below 10 keV) belongs to the electrons' share in any case, as
  it scales with density like theirs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.decay import Nuclide
from pipeline.errors import InputRejected

Float64 = NDArray[np.float64]

SOFT_TISSUE = "soft_tissue"
SOFT_TISSUE_G_PER_CM3 = 1.04

# Where the shipped tables end, and every kernel made from them.
REACH_MM = 500.0

# The CSDA range in soft tissue of the most energetic beta particle (ICRP 107: 0.50, 2.28, 0.81 MeV; NIST
# ESTAR), rounded up to where the tables show no electron any more. Others: as Y-90's, the longest here.
ELECTRON_RANGE_MM = {"Lu-177": 1.8, "Y-90": 11.5, "I-131": 3.2}
LONGEST_ELECTRON_RANGE_MM = 11.5

# Degree of the polynomial of √r: from here on χ² of all three tables no longer falls.
PHOTON_DEGREE = 10
COLUMNS = ("r_outer_cm", "energy_keV_per_decay", "cumulative_keV", "sigma_keV")
ELECTRON_COLUMN = "electron_keV"


@dataclass(frozen=True, slots=True, eq=False)
class RadialKernel:
    """Energy around a point source in a homogeneous medium.

    within: C(r), radius in mm -> keV per decay deposited within it; rises monotonically.
    electrons_within: the share of the electrons of the decay in C(r); constant beyond their range.
    electron_range_mm: beyond it there are photons only. reach_mm: the table ends; nothing beyond.
    sha256: of the table's file.
    """

    within: PchipInterpolator
    electrons_within: PchipInterpolator
    electron_range_mm: float
    reach_mm: float
    sha256: str

    def energy_within(self, r_mm: Float64 | float) -> Float64:
        """C(r), keV per decay; constant beyond the reach."""
        inside: Float64 = self.within(np.minimum(r_mm, self.reach_mm))
        return inside

    @property
    def electron_kev(self) -> float:
        """Energy of the electrons of one decay."""
        return float(self.electrons_within(self.electron_range_mm))

    def density(self, r_mm: Float64) -> Float64:
        """ρ(r), keV per decay and mm³, for r > 0; zero beyond the reach."""
        inside = np.clip(r_mm, 0.0, self.reach_mm)
        rho = self.within(inside, 1) / (4 * np.pi * inside**2)
        return np.where(r_mm <= self.reach_mm, rho, 0.0)


@cache
def radial_kernel(of: Nuclide, medium: str = SOFT_TISSUE, table: Path | None = None) -> RadialKernel:
    """The tabulated point kernel of a nuclide.

    medium: as the table's file is named. table: a site's own file instead of a shipped one.
    raises: InputRejected when there is no such table, or it cannot be read.
    """
    if table is not None:
        try:
            return parse(table.read_bytes(), of.name)
        except OSError as error:
            raise InputRejected(
                f"the point kernel {table} cannot be read: {error}", "Correct its path"
            ) from error
    folder = files("pipeline").joinpath("data", "point_kernels")
    name = f"{of.name}_{medium}.csv"
    for found in (folder.joinpath(name), folder.joinpath("mc", name)):
        if found.is_file():
            return parse(found.read_bytes(), of.name)
    raise InputRejected(
        f"there is no point kernel of {of.name} in {medium.replace('_', ' ')}",
        f"Make one with: dicomnode make-kernel {of.name}",
    )


def parse(text: bytes, nuclide_name: str) -> RadialKernel:
    """A table: lines of comment (#), one of column names, then one per shell from the source outwards.

    Columns r_outer_cm, energy_keV_per_decay, cumulative_keV, sigma_keV; where known, electron_keV: the
    part of the shell that electrons of the decay left, without photons and bremsstrahlung.
    raises: InputRejected for anything else.
    """
    names, rows = _rows(text)
    outer, shell, within, sigma = rows[:4]
    edges = np.concatenate([[0.0], outer * 10.0])
    if ELECTRON_COLUMN in names:
        electrons = rows[names.index(ELECTRON_COLUMN)]
        last = float(edges[1:][electrons > 0].max())
    else:
        electrons = None
        last = ELECTRON_RANGE_MM.get(nuclide_name, LONGEST_ELECTRON_RANGE_MM)
    start = int(np.searchsorted(edges, last - 1e-9))
    total = np.concatenate([[0.0], within])
    if start > len(shell) - 3 * PHOTON_DEGREE or not np.all(shell[start:] > 0):
        photon_edges, photons = edges[start:], total[start:] - total[start]
    else:
        photon_edges, photons = _smoothed(edges[start:], shell[start:], sigma[start:])
    near = edges[: start + 1]
    at_start = photons[1] / (photon_edges[1] - photon_edges[0]) * near
    shares = (
        np.cumsum(np.concatenate([[0.0], electrons[:start]]))
        if electrons is not None
        else total[: start + 1] - at_start
    )
    return RadialKernel(
        PchipInterpolator(
            np.concatenate([near, photon_edges[1:]]),
            np.concatenate([total[: start + 1], total[start] + photons[1:]]),
        ),
        PchipInterpolator(near, np.maximum.accumulate(shares)),
        float(edges[start]),
        float(edges[-1]),
        hashlib.sha256(text).hexdigest(),
    )


def _rows(text: bytes) -> tuple[list[str], Float64]:
    """Column names; (columns, shells)."""
    columns = f"{', '.join(COLUMNS)} and, where known, {ELECTRON_COLUMN}"
    remedy = f"Write the columns {columns}, shells from the source outwards"
    try:
        lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
        names = [name.strip() for name in lines[0].split(",")]
        rows = np.array([line.split(",") for line in lines[1:]], float).T
    except (ValueError, IndexError) as error:
        raise InputRejected(f"the point kernel is not a table: {error}", remedy) from error
    if tuple(names[:4]) != COLUMNS or rows.shape[0] != len(names) or rows.shape[1] < 2:
        raise InputRejected(f"the point kernel has the columns {', '.join(names)}", remedy)
    if not np.all(np.isfinite(rows)) or np.any(np.diff(rows[0]) <= 0) or np.any(np.diff(rows[2]) < 0):
        raise InputRejected("the point kernel's radii or its cumulative energy do not rise", remedy)
    return names, rows


def _smoothed(edges: Float64, energy: Float64, sigma: Float64) -> tuple[Float64, Float64]:
    """Shells of photons alone -> radii (mm) and the smooth energy within them, from 0 at the first."""
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2

    def place(r: Float64) -> Float64:
        low, high = np.sqrt(edges[0]), np.sqrt(edges[-1])
        return np.asarray((2 * np.sqrt(r) - low - high) / (high - low))

    weight = energy / np.maximum(sigma, 1e-3 * energy)
    fit = chebyshev.chebfit(place(middle), np.log(energy / width), PHOTON_DEGREE, w=weight)
    count = int(np.log(edges[-1] / edges[0]) / PHOTON_STEP) + 2
    radius = np.geomspace(edges[0], edges[-1], count)
    radius[0], radius[-1] = edges[0], edges[-1]
    # Simpson's rule on the smooth curve.
    ends, middles = (
        np.exp(chebyshev.chebval(place(r), fit)) for r in (radius, (radius[1:] + radius[:-1]) / 2)
    )
    part = np.diff(radius) * (ends[:-1] + 4 * middles + ends[1:]) / 6
    within = np.concatenate([[0.0], np.cumsum(part)])
    return radius, within * (energy.sum() / within[-1])


# Relative width of the steps in which the smooth curve is kept.
PHOTON_STEP = 0.01
