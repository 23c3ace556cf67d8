"""What PENELOPE is told about media and sources: `tests/reference/penelope/inputs.json`.

python -m tests.bench.penelope.inputs      (with pyPenred's interpreter, icrp107-database beside it)

Media as the product has them. Spectra of ICRP Publication 107, all radiations: both sides of a comparison
take them from the file, so that it tells of transport and not of decay data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from icrp107_database import get_icrp107_spectrum
from scipy.interpolate import PchipInterpolator

from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import MATERIALS

INPUTS = Path(__file__).parents[2] / "reference" / "penelope" / "inputs.json"
NUCLIDES = ("Lu-177", "Y-90", "I-131")
QUANTILES = 1025
FINE = 20001
STRIDE = 7  # of the 512 energies: every 8 %, both ends
# Emissions weaker than this part of the energy of their kind are left out: thousands of Auger lines.
NEGLECTED = 1e-6


def main() -> None:
    INPUTS.parent.mkdir(parents=True, exist_ok=True)
    physics = load_physics()
    content = {
        "stopping_kev": physics.energy_kev[::STRIDE].round(5).tolist(),
        "materials": {
            medium.name: {
                "density_g_per_cm3": medium.density_g_per_cm3,
                "mean_excitation_ev": round(medium.mean_excitation_ev, 3),
                "composition": {str(z): round(share, 8) for z, share in medium.composition.items()},
                "source": medium.source,
                "collision_stopping": [
                    float(f"{s:.6g}") for s in physics.collision_stopping[index][::STRIDE]
                ],
            }
            for index, medium in enumerate(MATERIALS)
        },
        "sources": {name: source(name) for name in NUCLIDES},
    }
    INPUTS.write_text(json.dumps(content, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(f"wrote {INPUTS}")


def source(name: str) -> dict[str, Any]:
    """Beta spectrum, electrons and photons of a nuclide; keV, per decay."""
    beta_kev, beta_yield = _beta(name)
    electron_kev, electron_yield = _lines(name, ("IE", "auger"))
    photon_kev, photon_yield = _lines(name, ("gamma", "X", "annihilation"))
    return {
        "evaluation": "ICRP Publication 107",
        "beta_yield": beta_yield,
        "beta_cdf_kev": beta_kev,  # at equal steps of probability
        "electron_kev": electron_kev,
        "electron_yield": electron_yield,
        "photon_kev": photon_kev,
        "photon_yield": photon_yield,
    }


def _beta(name: str) -> tuple[list[float], float]:
    table = get_icrp107_spectrum(name, "b-spectra")
    # The table is coarse, its values are of a smooth curve.
    energy = np.linspace(0.0, 1e3 * table["energies"].max(), FINE)
    density = np.maximum(PchipInterpolator(1e3 * table["energies"], table["weights"])(energy), 0.0)
    running = np.concatenate([[0.0], np.cumsum(np.diff(energy) * (density[1:] + density[:-1]) / 2)])
    running /= running[-1]
    rising = np.concatenate([[True], np.diff(running) > 0])
    quantiles = np.interp(np.linspace(0, 1, QUANTILES), running[rising], energy[rising])
    return quantiles.round(4).tolist(), float(get_icrp107_spectrum(name, "beta-")["weights"].sum())


def _lines(name: str, kinds: tuple[str, ...]) -> tuple[list[float], list[float]]:
    tables = [get_icrp107_spectrum(name, kind) for kind in kinds]
    energy = np.concatenate([1e3 * table["energies"] for table in tables])
    weight = np.concatenate([table["weights"] for table in tables])
    kept = energy * weight > NEGLECTED * max(float(energy @ weight), 1e-9)
    order = np.argsort(energy[kept])
    return energy[kept][order].round(5).tolist(), weight[kept][order].tolist()


if __name__ == "__main__":
    main()
