"""What a decay emits: beta spectrum, discrete electrons, photons.

Read from `pipeline/data/montecarlo/decay/NUCLIDE_EVALUATION.csv`, one file for one nuclide of one
evaluation; the first file of a nuclide in `DEFAULT_EVALUATION`, else its only one, is what the product
uses. A nuclide is added by adding a file (and a line of the manifest): nothing here names nuclides.

A file begins with ``# key: value`` lines (nuclide, evaluation, half_life_s, comment) and has the columns
kind, energy_kev, value:

* ``beta_spectrum``: density of the energy spectrum of all branches, per keV and decay, ascending energies,
  zero at its end;
* ``conversion``, ``auger``: electrons, per decay;  ``gamma``, ``x_ray``, ``annihilation``: photons, per
  decay.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.errors import InputRejected
from pipeline.montecarlo import energy
from pipeline.montecarlo.data import manifest, shipped

Float64 = NDArray[np.float64]

PROBABILITIES = 2049
DEFAULT_EVALUATION = "DDEP"  # where a nuclide has several
ELECTRONS = ("conversion", "auger")
PHOTONS = ("gamma", "x_ray", "annihilation")


@dataclass(frozen=True, slots=True)
class DecaySource:
    """Emissions of one decay.

    evaluation: whose numbers they are.
    beta_cdf_kev: [2049] energies at equidistant probabilities 0 to 1 of the spectrum of all beta branches,
    for linear
        interpolation; zeros when there are none. beta_yield: beta particles per decay.
    electron_kev, electron_yield: conversion and Auger electrons, keV and per decay.
    photon_kev, photon_yield: gamma, X and annihilation photons.
    Lines below 1 keV, which no table reaches, stand as one line of their mean energy.
    mean_electron_kev, mean_photon_kev: energy per decay, beta particles among the electrons.
    """

    nuclide: str
    evaluation: str
    half_life_s: float
    beta_cdf_kev: Float64
    beta_yield: float
    electron_kev: Float64
    electron_yield: Float64
    photon_kev: Float64
    photon_yield: Float64
    mean_electron_kev: float
    mean_photon_kev: float


def nuclides() -> tuple[str, ...]:
    """The nuclides that there are data for."""
    return tuple(sorted(_evaluations()))


@cache
def load_source(name: str, evaluation: str | None = None) -> DecaySource:
    """The emissions of nuclide `name` (``Lu-177``, ``177Lu``, ``lu177``).

    evaluation: another than the product's own (``ICRP107``), for comparisons.
    raises: InputRejected for a nuclide or evaluation that there is no file of, naming what is near.
    """
    known = _evaluations()
    nuclide = {_spelling(each): each for each in known}.get(_spelling(name))
    if nuclide is None:
        near = difflib.get_close_matches(
            _spelling(name), [_spelling(each) for each in known], n=3, cutoff=0.5
        )
        names = [each for spelling in near for each in known if _spelling(each) == spelling]
        meant = f"Did you mean {' or '.join(names)}? " if names else ""
        raise InputRejected(
            f"there are no decay data for the nuclide {name!r}", f"{meant}There are {', '.join(known)}"
        )
    available = known[nuclide]
    chosen = evaluation or (DEFAULT_EVALUATION if DEFAULT_EVALUATION in available else available[0])
    if chosen not in available:
        raise InputRejected(
            f"there are no data of {chosen} for {nuclide}", f"There are {', '.join(available)}"
        )
    return parse_source(shipped(f"decay/{nuclide}_{chosen}.csv").decode("utf-8"))


def read_source(path: Path) -> DecaySource:
    """The emissions in a file of a user's own. raises: InputRejected when it is not of this form."""
    try:
        return parse_source(path.read_text(encoding="utf-8"))
    except (OSError, KeyError, ValueError) as error:
        raise InputRejected(
            f"{path} holds no decay data: {error}", "Write it as the shipped ones are"
        ) from error


def parse_source(text: str) -> DecaySource:
    """The emissions that the text of a file means."""
    lines = [line for line in text.splitlines() if line]
    about = dict(line[1:].strip().split(": ", 1) for line in lines if line.startswith("#"))
    rows = [line.split(",") for line in lines if not line.startswith("#")][1:]
    beta = _column(rows, ("beta_spectrum",))
    electrons, photons = (_merged_below_grid(_column(rows, kinds)) for kinds in (ELECTRONS, PHOTONS))
    cdf, beta_yield, beta_kev = _inverse_distribution(beta)
    return DecaySource(
        nuclide=about["nuclide"],
        evaluation=about["evaluation"],
        half_life_s=float(about["half_life_s"]),
        beta_cdf_kev=cdf,
        beta_yield=beta_yield,
        electron_kev=electrons[0],
        electron_yield=electrons[1],
        photon_kev=photons[0],
        photon_yield=photons[1],
        mean_electron_kev=beta_kev + float(electrons[0] @ electrons[1]),
        mean_photon_kev=float(photons[0] @ photons[1]),
    )


def _column(rows: list[list[str]], kinds: tuple[str, ...]) -> Float64:
    """[2, n]: energies and values of the rows of `kinds`, ascending in energy."""
    found = sorted((float(row[1]), float(row[2])) for row in rows if row[0] in kinds)
    return np.array(found, dtype=np.float64).reshape(-1, 2).T


def _merged_below_grid(lines: Float64) -> Float64:
    low = lines[0] < energy.E_MIN_KEV
    total = lines[1, low].sum()
    if total <= 0:
        return lines[:, ~low]
    mean = lines[0, low] @ lines[1, low] / total
    return np.column_stack([[mean, total], lines[:, ~low]])


def _inverse_distribution(beta: Float64) -> tuple[Float64, float, float]:
    """Energies at equidistant probabilities, the integral, and ∫ E of the spectrum."""
    if beta.shape[1] == 0:
        return np.zeros(PROBABILITIES), 0.0, 0.0
    # Dense in energy where spectra are steep: at both ends.
    fine = beta[0, -1] * 0.5 * (1 - np.cos(np.linspace(0, np.pi, 20001)))
    density = PchipInterpolator(beta[0], beta[1])
    below = density.antiderivative()(fine)
    below = np.maximum.accumulate(below - below[0])
    first_moment = float(np.trapezoid(density(fine) * fine, fine))
    levels = np.linspace(0.0, below[-1], PROBABILITIES)
    inverse = np.interp(levels, below, fine)
    # Straight lines between the levels overstate the mean by 1e-5 to 2e-4, most where a weak branch reaches
    # far.
    inverse *= first_moment / below[-1] / np.trapezoid(inverse, dx=1 / (PROBABILITIES - 1))
    return inverse, float(below[-1]), first_moment


def _evaluations() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(manifest()):
        match = re.fullmatch(r"decay/(.+)_(.+)\.csv", path)
        if match:
            found[match[1]] = (*found.get(match[1], ()), match[2])
    return found


def _spelling(name: str) -> str:
    """Letters then digits then m: one form for ``99mTc``, ``Tc-99m``, ``TC 99M``."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(\d+m?)([a-z]+)$", r"\2\1", text)
