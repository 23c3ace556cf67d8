"""One batch of histories in PENELOPE: configuration, run, tallies. Runs in pyPenred's own environment."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyPenred  # type: ignore[import-not-found]
from numpy.typing import NDArray

from tests.bench.penelope.cases import Case, Particle
from tests.bench.penelope.media import write_material
from tests.bench.penelope.spectrum import histogram, mean_kev, spectrum_file

ELECTRON_CUTOFF_EV = 5e3
PHOTON_CUTOFF_EV = 2e3
ELASTIC = 0.05  # C1, C2
SOFT_EV = 5e3  # WCC, WCR
ENCLOSURE = ("air", 1.20479e-3)  # PENELOPE wants one around its voxels; it is 1 µm thick here


def run_batch(
    case: Case, particle: Particle, seed: int, inputs: Mapping[str, Any], folder: Path, native: bool
) -> dict[str, Any]:
    """Follow one batch; returns keV per decay and standard deviations by tally bin, with what they were made
    by.

        folder: where PENELOPE reads and writes its files; exists, is emptied by nobody.
    """
    edges, content = _spectrum(inputs["sources"][case.nuclide], particle)
    (folder / "spectrum.dat").write_text(spectrum_file(edges, content))
    (folder / "voxels.dat").write_text(case.voxels)
    own_excitation = {
        name: write_material(
            folder / _material_file(name, density),
            inputs["materials"][name],
            density,
            inputs["stopping_kev"],
            native,
        )
        for name, density in sorted({*case.media, ENCLOSURE})
    }
    histories = case.histories(particle)
    before = Path.cwd()
    os.chdir(folder)  # PENELOPE writes its reports where it is
    try:
        pyPenred.simulation.setConfigurationLog("configuration.log")
        pyPenred.simulation.setSimulationLog("simulation.log")
        simulation = pyPenred.simulation.create()
        simulation.configFromString(_configuration(case, particle, seed, histories))
        started = time.monotonic()
        simulation.simulate()
        seconds = time.monotonic() - started
        kev, sigma = _tally(case)
    finally:
        os.chdir(before)
    per_decay = float(content.sum())
    return {
        "case": case.name,
        "particle": particle,
        "seed": seed,
        "histories": histories,
        "particles_per_decay": per_decay,
        "emitted_kev": mean_kev(edges, content),
        "kev": (kev * per_decay).tolist(),
        "sigma": (sigma * per_decay).tolist(),
        "seconds": round(seconds, 1),
        "native": native,
        "own_excitation_ev": own_excitation,
    }


def run_to_file(
    case: Case, particle: Particle, seed: int, inputs: Mapping[str, Any], path: Path, native: bool
) -> None:
    """`run_batch` in a folder of its own; the result as JSON at `path`."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_batch(case, particle, seed, inputs, Path(folder), native)
    path.write_text(json.dumps(result))
    total = sum(result["kev"])
    print(
        f"{path.stem}: {result['seconds']:.0f} s, {total:.2f} of {result['emitted_kev']:.2f} keV", flush=True
    )


def _spectrum(
    source: Mapping[str, Any], particle: Particle
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if particle == "gamma":
        return histogram(np.array(source["photon_kev"]), np.array(source["photon_yield"]))
    return histogram(
        np.array(source["electron_kev"]),
        np.array(source["electron_yield"]),
        np.array(source["beta_cdf_kev"]),
        source["beta_yield"],
    )


def _configuration(case: Case, particle: Particle, seed: int, histories: int) -> str:
    (x, y, z), (dx, dy, dz) = case.box_cm
    lines = [
        f"sources/generic/s/nhist {histories}",
        f'sources/generic/s/kpar "{particle}"',
        'sources/generic/s/direction/type "SOLID_ANGLE"',
        *(f"sources/generic/s/direction/{k} {v}" for k, v in {"u": 0.0, "v": 0.0, "w": 1.0}.items()),
        *(
            f"sources/generic/s/direction/{k} {v}"
            for k, v in {"theta0": 0.0, "theta1": 180.0, "phi0": 0.0, "dphi": 360.0}.items()
        ),
        'sources/generic/s/energy/type "FILE_SPECTRUM"',
        'sources/generic/s/energy/filename "spectrum.dat"',
        'sources/generic/s/spatial/type "BOX"',
        *(f"sources/generic/s/spatial/size/{k} {v}" for k, v in {"dx": dx, "dy": dy, "dz": dz}.items()),
        *(f"sources/generic/s/spatial/position/{k} {v}" for k, v in {"x": x, "y": y, "z": z}.items()),
        *([f"sources/generic/s/source-material {case.source_material}"] if case.source_material else []),
        'geometry/type "VOXEL"',
        'geometry/filename "voxels.dat"',
        "geometry/ascii true",
        "geometry/enclosure-margin 1e-4",
        f"geometry/enclosure-material {len(case.media) + 1}",
        f"simulation/seedPair {seed}",
        "simulation/threads 1",
        "simulation/dump-interval 1e9",
    ]
    for number, (name, density) in enumerate((*case.media, ENCLOSURE), 1):
        values = {
            "number": number,
            "eabs/electron": ELECTRON_CUTOFF_EV,
            "eabs/positron": ELECTRON_CUTOFF_EV,
            "eabs/gamma": PHOTON_CUTOFF_EV,
            "C1": ELASTIC,
            "C2": ELASTIC,
            "WCC": SOFT_EV,
            "WCR": SOFT_EV,
            "filename": f'"{_material_file(name, density)}"',
        }
        lines += [f"materials/m{number}/{key} {value}" for key, value in values.items()]
    return "\n".join(lines + _tally_lines(case)) + "\n"


def _material_file(name: str, density: float) -> str:
    return f"{name}_{density:g}.mat"


def _tally_lines(case: Case) -> list[str]:
    if case.tally == "material":
        return ['tallies/t/type "EDEP_MAT"', f"tallies/t/nmat {case.bins}"]
    (x, y, _), (dx, dy, _) = case.box_cm
    limits = {
        "x": (x - dx / 2, x + dx / 2, 1),
        "y": (y - dy / 2, y + dy / 2, 1),
        "z": (0.0, case.depth_cm, case.bins),
    }
    lines = ['tallies/t/type "SPATIAL_DOSE_DISTRIB"', "tallies/t/print-xyz true"]
    for axis, (low, high, n) in limits.items():
        lines += [f"tallies/t/{axis}min {low}", f"tallies/t/{axis}max {high}", f"tallies/t/n{axis} {n}"]
    return lines


def _tally(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """keV per history and its standard deviation, by bin; PENELOPE prints eV and two standard deviations."""
    energy, error = (-3, -2) if case.tally == "depth" else (1, 2)
    (path,) = Path().glob("t-th0-*.dat")
    rows = [
        line.split()
        for line in path.read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    table = np.array(rows, dtype=float)[: case.bins]
    return table[:, energy] / 1e3, table[:, error] / 2e3
