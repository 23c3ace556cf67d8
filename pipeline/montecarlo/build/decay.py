"""Decay data: Lu-177 of DDEP, all others of ICRP Publication 107.

ICRP 107 (Eckerman and Endo, 2008) by `icrp107-database`: beta spectra, conversion (IE) and Auger electrons,
gamma, X and annihilation photons as they stand; the beta spectrum is brought to the sum of its branches.

Lu-177 (`lu177`): DDEP (LNHB; Monographie BIPM-5) gives end-points and intensities of the beta branches,
gamma rays and the main conversion electrons, transcribed below. What it is completed with:

* beta spectra: `beta.spectrum`; all branches are allowed or first-forbidden non-unique;
* conversion electrons that the transcription leaves out (subshells, N and higher shells, weak gamma rays):
  the ratios of ICRP 107's electrons of the same gamma ray, times DDEP's intensity of the nearest shell or
  of the gamma ray itself;
* X rays and Auger electrons: ICRP 107's, K lines times the ratio of K vacancies (DDEP / ICRP 107), lower
  shells times that of vacancies in all shells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icrp107_database  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np
from scipy.interpolate import PchipInterpolator

from pipeline.montecarlo.build import beta

NUCLIDES = (
    "Lu-177", "Y-90", "I-131", "Tb-161", "Sm-153", "Re-186", "Re-188", "Ho-166", "Er-169", "Sc-47", "Cu-67",
    "Cu-64", "Sr-89", "P-32", "I-123", "I-124", "I-125", "Tc-99m", "In-111", "F-18", "Ga-68",
)  # fmt: skip
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "y": 365.2422 * 86400.0}
KINDS = {"IE": "conversion", "auger": "auger", "gamma": "gamma", "X": "x_ray", "annihilation": "annihilation"}

# DDEP, Lu-177: half-life 6.647 d. End-point, keV, and intensity per decay.
LU177_BETA = ((498.3, 0.793), (385.4, 0.091), (248.6, 0.00012), (177.0, 0.1164))
LU177_GAMMA = (
    (71.6418, 0.001726), (112.9498, 0.0620), (136.7245, 0.00047), (208.3662, 0.1038), (249.6742, 0.002012),
    (321.3159, 0.00216),
)  # fmt: skip
# Conversion electrons per decay by gamma ray and shell.
LU177_CONVERSION = {
    71.6418: {"K": 0.001234, "L": 0.000238},
    112.9498: {"K": 0.0507, "L": 0.0684, "M": 0.01708},
    208.3662: {"K": 0.00571, "L": 0.00098, "M": 0.000224},
}
# Binding energies of hafnium that tell the shells apart: K 65.35 keV, L 9.56-11.27, M 1.66-2.60 keV.
HAFNIUM_SHELL_KEV = {"K": 60.0, "L": 9.0, "M": 1.5, "N": 0.0}

HAFNIUM_K_KEV = 65.3508  # so that the K lines are DDEP's; ICRP 107 has 65.48

Rows = list[tuple[str, float, float]]


def decay_files() -> Iterator[tuple[str, str]]:
    """(name, text) of every file."""
    for nuclide in NUCLIDES:
        emitted = _icrp107(nuclide)
        half_life = emitted["half_life"] * SECONDS[emitted["time_unit"]]
        yield (
            f"decay/{nuclide}_ICRP107.csv",
            _text(nuclide, "ICRP 107", half_life, icrp107(emitted["emissions"])),
        )
    yield "decay/Lu-177_DDEP.csv", _text("Lu-177", "DDEP", 6.647 * SECONDS["d"], lu177())


def icrp107(emissions: dict[str, Any]) -> Rows:
    """Rows of a nuclide of ICRP 107; its energies are MeV."""
    rows: Rows = []
    branches = sum(share for kind in ("beta-", "beta+") for _, share in emissions[kind])
    if emissions["b-spectra"]:
        spectrum = np.array(emissions["b-spectra"]) * [1e3, 1e-3]
        area = PchipInterpolator(*spectrum.T).integrate(0.0, spectrum[-1, 0])  # as it is read again
        rows += [("beta_spectrum", e, branches * density / area) for e, density in spectrum]
    for kind, name in KINDS.items():
        rows += [(name, e * 1e3, share) for e, share in sorted(emissions[kind])]
    return rows


def lu177() -> Rows:
    """Rows of Lu-177 of DDEP, completed as the module says."""
    reference = _icrp107("Lu-177")["emissions"]
    conversion = _lu177_conversion(reference)
    energy = np.linspace(0.0, LU177_BETA[0][0], 501)
    branches = [share * beta.spectrum(72, 177, end, energy) for end, share in LU177_BETA]
    density = np.sum(branches, axis=0)
    total = sum(share for _, share in LU177_BETA)  # 1.0005 by the rounding of the evaluation
    rows: Rows = [("beta_spectrum", float(e), float(d / total)) for e, d in zip(energy, density, strict=True)]
    rows += [("conversion", e, share) for e, share, _, _ in conversion]
    rows += [("gamma", e, share) for e, share in LU177_GAMMA]
    k_ratio = _vacancies(conversion, "K", 1) / _vacancies(conversion, "K", 2)
    all_ratio = _vacancies(conversion, "KLMN", 1) / _vacancies(conversion, "KLMN", 2)
    for kind, name in (("auger", "auger"), ("X", "x_ray")):
        for mev, share in sorted(reference[kind]):
            rows.append((name, mev * 1e3, share * (k_ratio if mev > 0.040 else all_ratio)))
    return rows


def _lu177_conversion(reference: dict[str, Any]) -> list[tuple[float, float, float, str]]:
    """(keV, per decay by DDEP, per decay by ICRP 107, shell) of every line of ICRP 107."""
    lines = []
    for mev, share in reference["IE"]:
        gamma = min((e for e, _ in LU177_GAMMA), key=lambda e: _mismatch(e, mev * 1e3))
        binding = max(gamma - mev * 1e3, 0.0)
        shell = next(name for name, least in HAFNIUM_SHELL_KEV.items() if binding >= least)
        lines.append((mev * 1e3, share, gamma, shell))
    scaled = []
    for kev, share, gamma, shell in lines:
        known = LU177_CONVERSION.get(gamma, {})
        nearest = shell if shell in known else (list(known)[-1] if known else None)
        if nearest is None:
            gammas = {round(mev * 1e3): value for mev, value in reference["gamma"]}
            factor = dict(LU177_GAMMA)[gamma] / gammas[round(gamma)]
        else:
            factor = known[nearest] / sum(s for _, s, g, sh in lines if (g, sh) == (gamma, nearest))
        scaled.append((gamma - HAFNIUM_K_KEV if shell == "K" else kev, share * factor, share, shell))
    return scaled


def _mismatch(gamma_kev: float, electron_kev: float) -> float:
    """How far the binding energy that a gamma ray would imply lies from one of hafnium's, keV."""
    binding = gamma_kev - electron_kev
    shells = (65.35, 11.27, 10.74, 9.56, 2.2, 0.3, 0.0)
    return min(abs(binding - shell) for shell in shells)


def _vacancies(conversion: list[tuple[float, float, float, str]], shells: str, column: int) -> float:
    return sum(float(line[column]) for line in conversion if line[3] in shells)


def _icrp107(nuclide: str) -> dict[str, Any]:
    path = Path(icrp107_database.__path__[0]) / "icrp107" / f"{nuclide}.json"
    data: dict[str, Any] = json.loads(json.loads(path.read_text()))
    return data


def _text(nuclide: str, evaluation: str, half_life_s: float, rows: Rows) -> str:
    about = [f"# nuclide: {nuclide}", f"# evaluation: {evaluation}", f"# half_life_s: {half_life_s:.6g}"]
    body = [f"{kind},{energy:.6g},{value:.6g}" for kind, energy, value in rows]
    return "\n".join([*about, "kind,energy_kev,value", *body]) + "\n"
