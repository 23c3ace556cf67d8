"""What the energy of a photon means to a gamma camera: in which window it is counted, and how often.

Energy resolution is Gaussian, its width in keV goes with the root of the energy: the number of scintillation
photons is Poisson distributed. The crystal stops fewer photons of higher energy.

Everything is relative to photons of the photopeak's line in the photopeak's own window, which the camera's
sensitivity counts.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from pipeline.errors import InputRejected
from pipeline.montecarlo import energy
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.decay_data import DecaySource, load_source
from pipeline.montecarlo.materials import WATER
from pipeline.simulate.camera import FWHM_PER_SIGMA, SpectCamera, Window

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Full-energy peak of 9.5 mm of NaI(Tl) for photons that fall on it perpendicularly, by energy in keV: a
# calculation with XCOM's cross sections, photoelectric absorption and Klein-Nishina scattering followed in an
# infinite sheet of 3.667 g/cm3. Between the energies a power law. Cameras differ in the crystal's thickness;
# only ratios to the photopeak's energy are used.
CRYSTAL_PEAK: Final = (
    (80.0, 0.996), (100.0, 0.990), (113.0, 0.973), (125.0, 0.940), (140.5, 0.879), (160.0, 0.782),
    (175.0, 0.705), (187.5, 0.642), (208.4, 0.549), (229.2, 0.471), (249.7, 0.408), (275.0, 0.344),
    (300.0, 0.294), (321.3, 0.261), (364.5, 0.208), (400.0, 0.177),
)  # fmt: skip

SPECTRUM_PER_KEV: Final = 4.0
"""Steps of `spectrum` in a keV."""

# Photons of less chance in every window are followed no further.
_LEAST_CHANCE = 1e-4


def relative_efficiency(kev: Float64 | float) -> Float64:
    """Full-energy detection by the crystal, see `CRYSTAL_PEAK`; a power law beyond its ends too."""
    known, peak = np.log(np.array(CRYSTAL_PEAK)).T
    at = np.log(np.asarray(kev, dtype=np.float64))
    inside = np.interp(at, known, peak)
    first, last = np.diff(peak)[[0, -1]] / np.diff(known)[[0, -1]]
    below, above = np.minimum(at - known[0], 0.0), np.maximum(at - known[-1], 0.0)
    return np.asarray(np.exp(inside + first * below + last * above))


def window_chance(camera: SpectCamera, window: Window, kev: Float64 | float) -> Float64:
    """Chance that a photon of full energy `kev` is measured within a window: Gaussian energy resolution."""
    at = np.asarray(kev, dtype=np.float64)
    sigma = camera.energy_resolution * np.sqrt(camera.photopeak_kev * at) / FWHM_PER_SIGMA
    root = math.sqrt(2.0) * sigma
    return np.asarray(0.5 * (erf((window.high - at) / root) - erf((window.low - at) / root)))


def photopeak_line(camera: SpectCamera) -> float:
    """The energy in keV of the most frequent line in the camera's photopeak window.

    raises: InputRejected where the nuclide has none there.
    """
    decay = load_source(camera.nuclide)
    window = camera.windows.photopeak
    inside = (decay.photon_kev >= window.low) & (decay.photon_kev <= window.high)
    if not inside.any():
        raise InputRejected(
            f"{camera.nuclide} has no photon between {window.low:.0f} and {window.high:.0f} keV",
            f"Correct nuclide or photopeak_kev of the camera {camera.name!r}",
        )
    return float(decay.photon_kev[inside][np.argmax(decay.photon_yield[inside])])


def _ordered(camera: SpectCamera) -> tuple[Window, Window, Window]:
    """Photopeak, lower, upper."""
    windows = camera.windows
    return windows.photopeak, windows.lower, windows.upper


def chances(camera: SpectCamera, main: float, kev: Float64) -> Float64:
    """(3, energies): counts in the windows per photon, relative to the main line's in its own."""
    measured = np.stack([window_chance(camera, window, kev) for window in _ordered(camera)])
    reference = window_chance(camera, camera.windows.photopeak, main) * relative_efficiency(main)
    return np.asarray(measured * relative_efficiency(kev) / reference)


def counts_in_air(camera: SpectCamera) -> Float64:
    """(3,) counts of a source in air in the three windows, by the energy resolution alone.

    Of all lines, per photon of the photopeak's line in its own window.
    """
    decay, main = load_source(camera.nuclide), photopeak_line(camera)
    strong = decay.photon_kev >= camera.windows.lower.low / 2
    counted = chances(camera, main, decay.photon_kev[strong])
    return np.asarray(counted @ decay.photon_yield[strong] / yield_of(decay, main))


def spill(camera: SpectCamera) -> Float64:
    """(3,) counts of the photopeak's line in the three windows, per photon in its own."""
    main = photopeak_line(camera)
    return np.asarray(chances(camera, main, np.array([main]))[:, 0])


def spectrum(camera: SpectCamera, decay: DecaySource) -> tuple[float, Float32, float]:
    """(the photopeak's line, `forced_detection.Detection.spectrum`, its least energy in keV)."""
    main = photopeak_line(camera)
    kev = np.arange(energy.E_MIN_KEV * 5, float(decay.photon_kev.max()) + 1.0, 1.0 / SPECTRUM_PER_KEV)
    counted = chances(camera, main, kev)
    first = int(np.argmax(counted.max(axis=0) > _LEAST_CHANCE))
    mu = _mu_of_water(kev) / _mu_of_water(np.array([main]))
    # A photon of energy E looks at step int((E − least) · per keV): the middle of that step.
    columns = np.vstack([counted, mu])
    middles = 0.5 * (columns[:, first:-1] + columns[:, first + 1 :])
    return main, np.ascontiguousarray(middles.T, np.float32), float(kev[first])


def _mu_of_water(kev: Float64) -> Float64:
    physics = load_physics()
    total = physics.photoelectric[WATER] + physics.incoherent[WATER] + physics.pair[WATER]
    return np.asarray(np.interp(np.log(kev), np.log(physics.energy_kev), total))


def yield_of(decay: DecaySource, kev: float) -> float:
    """Photons of a line per decay."""
    return float(decay.photon_yield[decay.photon_kev == kev].sum())
