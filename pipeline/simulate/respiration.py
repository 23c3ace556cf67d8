"""Breathing: the camera sees the average over many breaths, the CT one instant.

The height of the diaphragm, towards the head, at phase φ of a cycle of breath (Lujan et al., Med Phys
1999;26:715, with n = 2)::

    h(φ) = A · (3/8 - cos⁴(π φ)),   φ in [0, 1)

The lungs are full at φ = 0; at exhale, where a patient rests most of the time, the diaphragm is high. The
mean of cos⁴ is 3/8: the anatomy as drawn is its time average. The average of images is over instants at equal
distances in time, so that exhale weighs as long as it lasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from pipeline.errors import InputRejected
from pipeline.simulate.fields import Field
from pipeline.volume import Volume

_MEDIAN_MM = 6.0
_SPREAD = 0.6
_LARGEST_MM = 20.0
_MISMATCHED = 0.35  # share of patients whose CT was taken at any phase; the others' at the mean height
_MEAN_OF_COS4 = 3 / 8


@dataclass(frozen=True)
class Breathing:
    """amplitude_mm: peak to peak. shifts_mm: towards the head, at instants equally far apart in time.

    ct_phase: φ of the instant of the CT.
    """

    amplitude_mm: float
    shifts_mm: tuple[float, ...]
    ct_phase: float

    @property
    def ct_shift_mm(self) -> float:
        """How far towards the head organs lie in the CT, against their time average."""
        return float(_height(self.amplitude_mm, np.asarray(self.ct_phase)))


def breathing(rng: np.random.Generator) -> Breathing:
    """A patient's breath: 6 to 8 instants, 0 to 20 mm peak to peak with a median of 6 mm."""
    amplitude = float(min(_MEDIAN_MM * np.exp(_SPREAD * rng.normal()), _LARGEST_MM))
    count = int(rng.integers(6, 9))
    phases = (np.arange(count) + rng.uniform(0, 1)) / count
    at_mean = float(np.arccos(_MEAN_OF_COS4**0.25) / np.pi)
    phase = float(rng.uniform(0, 1))
    mismatched = rng.random() < _MISMATCHED
    shifts = tuple(float(s) for s in _height(amplitude, phases))
    return Breathing(amplitude, shifts, phase if mismatched else at_mean)


def averaged(image: Volume, breath: Breathing, moving: Field | None = None) -> Volume:
    """Activity concentration, density or attenuation averaged over the instants of `breath`.

    image: on a grid whose slices follow the patient's long axis. moving: (z, y, x) share of every voxel
    that moves, 0 to 1 (`VirtualPatient.moving`); None: everything. Shifts are interpolated between slices so
    that the total is kept; what lies in the last slices continues beyond them, as the patient does.
    Raises InputRejected for oblique slices, or a `moving` of another shape.
    """
    return _moved(image, breath.shifts_mm, moving)


def shifted(image: Volume, shift_mm: float, moving: Field | None = None) -> Volume:
    """`image` moved towards the head, as the CT of one instant is; otherwise as `averaged`."""
    return _moved(image, (shift_mm,), moving)


def _height(amplitude_mm: float, phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(amplitude_mm * (_MEAN_OF_COS4 - np.cos(np.pi * phase) ** 4))


def _moved(image: Volume, shifts_mm: tuple[float, ...], moving: Field | None) -> Volume:
    kernel = _kernel(image, shifts_mm)
    if moving is None:
        array = convolve1d(image.array, kernel, axis=0, mode="nearest")
        return image.with_array(np.asarray(array, dtype=np.float32))
    if moving.shape != image.array.shape:
        raise InputRejected(
            f"the map of what breathes has the shape {moving.shape} and its image {image.array.shape}",
            "Draw both on one grid",
        )
    part = image.array * moving
    array = image.array - part
    array += convolve1d(part, kernel, axis=0, mode="nearest")
    return image.with_array(array)


def _kernel(image: Volume, shifts_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Along slices: every shift is shared between the two slices next to it."""
    along = image.grid.direction[0][2]
    if abs(along) < 1 - 1e-6:
        raise InputRejected(
            f"breathing moves organs along the patient, not along slices towards {image.grid.direction[0]}",
            "Resample to axial slices",
        )
    steps = np.asarray(shifts_mm) * along / image.grid.spacing_mm[0]
    reach = int(np.ceil(np.abs(steps).max())) + 1
    offsets = np.arange(-reach, reach + 1)
    shares = np.maximum(0, 1 - np.abs(steps[:, None] - offsets))
    return np.asarray(shares.mean(axis=0))
