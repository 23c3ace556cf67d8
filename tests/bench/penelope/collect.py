"""From batches to `tests/reference/penelope/*.csv`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.penelope.cases import VOXEL_NUCLIDES
from tests.reference import torso
from tests.reference.slabs import SLABS


@dataclass(frozen=True)
class Merged:
    """All batches of one run and particle: keV per decay and standard deviation by bin."""

    kev: NDArray[np.float64]
    sigma: NDArray[np.float64]
    histories: int
    emitted_kev: float


Batches = dict[tuple[str, str], Merged]


def load_batches(folder: Path, native: bool = False) -> Batches:
    """Merged batches by (case, particle)."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        batch = json.loads(path.read_text())
        if batch["native"] == native:
            found[batch["case"], batch["particle"]].append(batch)
    return {key: _merged(batches) for key, batches in found.items()}


def _merged(batches: Iterable[Mapping[str, Any]]) -> Merged:
    batches = list(batches)
    histories = np.array([batch["histories"] for batch in batches], float)
    share = histories / histories.sum()
    kev = share @ np.array([batch["kev"] for batch in batches])
    variance = share**2 @ np.square([batch["sigma"] for batch in batches])
    return Merged(kev, np.sqrt(variance), int(histories.sum()), batches[0]["emitted_kev"])


def write_references(batches: Batches, inputs: Mapping[str, Any], folder: Path) -> None:
    """Write what there are batches for; says what is missing."""
    _write_slabs(batches, inputs, folder / "slabs.csv")
    _write_torso(batches, inputs, folder / "torso.csv")
    _write_voxels(batches, inputs, folder / "voxels_3mm.csv")


def _provenance(
    title: str, names: Iterable[str], nuclides: Iterable[str], inputs: Mapping[str, Any]
) -> list[str]:
    lines = [
        title,
        f"PENELOPE 2018 Monte Carlo (pyPenred 1.15.2), {date.today()}; made by tests/bench/penelope.",
        "C1 = C2 = 0.05, WCC = WCR = 5 keV; electrons to 5 keV, photons to 2 keV; vacuum around the voxels.",
        "Source spectra (inputs.json): "
        + "; ".join(f"{name}: {inputs['sources'][name]['evaluation']}" for name in nuclides),
        "Electrons and photons of the decay in separate runs; keV per decay, sigma one standard deviation.",
    ]
    for name in names:
        medium = inputs["materials"][name]
        parts = " ".join(f"Z{z} {100 * share:.4g}%" for z, share in medium["composition"].items())
        lines.append(
            f"{name}: {parts} by mass; stopping powers of I = {medium['mean_excitation_ev']:.1f} eV, "
            f"density effect at {medium['density_g_per_cm3']:g} g/cm3"
        )
    return [f"# {line}" for line in lines]


def _pair(batches: Batches, case: str, bins: int) -> tuple[Merged, Merged] | None:
    electrons = batches.get((case, "electron"))
    if electrons is None:
        print(f"{case}: no electrons yet")
        return None
    nothing = Merged(np.zeros(bins), np.zeros(bins), 0, 0.0)
    return electrons, batches.get((case, "gamma"), nothing)


def _write_slabs(batches: Batches, inputs: Mapping[str, Any], path: Path) -> None:
    media = ("soft_tissue", "lung", "cortical_bone", "air")
    lines = _provenance(
        "Energy in layers of 1 mm; tests/reference/slabs.py", media, ("Lu-177", "Y-90"), inputs
    )
    rows = ["medium,source,nuclide,layer,electron_kev,electron_sigma,photon_kev,photon_sigma"]
    for slabs in SLABS:
        pair = _pair(batches, f"slabs/{slabs.name}", slabs.layers)
        if pair is None:
            continue
        electrons, photons = pair
        lines.append(_histories(slabs.name, electrons, photons))
        name = f"{slabs.medium},{slabs.source},{slabs.nuclide}"
        rows += [f"{name},{layer}," + _values(electrons, photons, layer) for layer in range(slabs.layers)]
    path.write_text("\n".join([*lines, *rows]) + "\n")
    print(f"wrote {path}")


def _write_torso(batches: Batches, inputs: Mapping[str, Any], path: Path) -> None:
    media = tuple(dict.fromkeys(medium for _, medium, _ in torso.ORGANS))
    lines = _provenance("Energy in organs; tests/reference/torso.py", media, ("Lu-177",), inputs)
    rows = ["source,organ,electron_kev,electron_sigma,photon_kev,photon_sigma"]
    for source in torso.SOURCES:
        pair = _pair(batches, f"torso/{source}", len(torso.ORGANS))
        if pair is None:
            continue
        lines.append(_histories(f"{source}, Lu-177", *pair))
        rows += [f"{source},{name}," + _values(*pair, index) for index, name in enumerate(torso.NAMES)]
    path.write_text("\n".join([*lines, *rows]) + "\n")
    print(f"wrote {path}")


def _write_voxels(batches: Batches, inputs: Mapping[str, Any], path: Path) -> None:
    lines = _provenance(
        "Source voxel of 3 mm in soft tissue of 1.04 g/cm3, electrons alone: energy along an axis",
        ("icru_soft_tissue",),
        VOXEL_NUCLIDES,
        inputs,
    )
    rows = ["nuclide,offset,electron_kev,electron_sigma"]
    for nuclide in VOXEL_NUCLIDES:
        pair = _pair(batches, f"voxel/soft_{nuclide}", 21)
        if pair is None:
            continue
        electrons = pair[0]
        lines.append(_histories(nuclide, *pair))
        for offset in range(5):  # both sides of the source
            sides = np.array([electrons.kev[10 - offset], electrons.kev[10 + offset]])
            sigma = np.hypot(electrons.sigma[10 - offset], electrons.sigma[10 + offset]) / 2
            rows.append(
                f"{nuclide},{offset},{sides.mean():.6g},{sigma if offset else electrons.sigma[10]:.2g}"
            )
    path.write_text("\n".join([*lines, *rows]) + "\n")
    print(f"wrote {path}")


def _values(electrons: Merged, photons: Merged, index: int) -> str:
    numbers = (electrons.kev[index], electrons.sigma[index], photons.kev[index], photons.sigma[index])
    return ",".join(f"{number:.6g}" if i % 2 == 0 else f"{number:.2g}" for i, number in enumerate(numbers))


def _histories(name: str, electrons: Merged, photons: Merged) -> str:
    return (
        f"# {name}: {electrons.histories:.3g} electrons (emitted {electrons.emitted_kev:.2f} keV per decay), "
        f"{photons.histories:.3g} photons ({photons.emitted_kev:.2f} keV)"
    )
