"""PENELOPE's material files with the media of the product.

The mean excitation energy of a mixture is a choice, and with it the collision stopping power: PENELOPE
takes its own Bragg sum (69.5 eV for soft tissue), the product the values of ICRU (74.7 eV). The density
effect is another: of lung as a foam, or of the tissue that it is made of. Both sides get the product's
collision stopping powers (ESTAR); PENELOPE scales its inelastic cross sections to those of the material
file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyPenred  # type: ignore[import-not-found]


def write_material(
    path: Path, medium: Mapping[str, Any], density: float, energy_kev: list[float], native: bool
) -> float:
    """Make the material file for a density in g/cm3; returns PENELOPE's own mean excitation energy, eV.

    energy_kev: of the medium's "collision_stopping", MeV cm2/g. native: leave PENELOPE's stopping powers.
    """
    composition = [(int(z), float(share)) for z, share in medium["composition"].items()]
    pyPenred.simulation.materials.create(path.stem, density, composition, str(path))
    lines = path.read_text().splitlines(keepends=True)
    found = re.search(r"Mean excitation energy = *(\S+) eV", "".join(lines))
    assert found is not None
    if not native:
        start = next(i for i, line in enumerate(lines) if "Stopping powers for electrons" in line)
        rows = slice(start + 1, start + 1 + int(lines[start].split("=")[1]))
        lines[rows] = _replaced(lines[rows], np.array(energy_kev), np.array(medium["collision_stopping"]))
        path.write_text("".join(lines))
    return float(found.group(1))


def _replaced(lines: list[str], energy_kev: np.ndarray, stopping: np.ndarray) -> list[str]:
    """PENELOPE's table: eV, electrons' collision and radiative, positrons' collision and radiative stopping
    power."""
    table = np.array([line.split() for line in lines], dtype=float)
    energy = np.log(table[:, 0] / 1e3)
    ratio = np.exp(np.interp(energy, np.log(energy_kev), np.log(stopping))) / table[:, 1]
    # Beyond the table nothing is known: the ratio stays what it is at its end.
    inside = (energy >= np.log(energy_kev[0])) & (energy <= np.log(energy_kev[-1]))
    ratio = np.interp(energy, energy[inside], ratio[inside])
    table[:, 1] *= ratio
    table[:, 3] *= ratio
    return [f" {row[0]:.3E} " + " ".join(f"{value:.5E}" for value in row[1:]) + "\n" for row in table]
