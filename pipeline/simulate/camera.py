"""A gamma camera with a parallel-hole collimator: where it stands, what it resolves, what it counts.

A point at distance z from the collimator's face is seen with a Gaussian of full width at half maximum ::

    FWHM(z)² = (d · (1 + z / L_eff))² + R_i²,      L_eff = L − 2 / µ

d: width of a hole; L: length of the holes; µ: attenuation of the collimator at the photopeak, so that 2/µ is
how much of the septa's ends photons pass (H. O. Anger, Instrumentation in Nuclear Medicine, 1967; S. R.
Cherry et al., Physics in Nuclear Medicine, 4th ed., eq. 14-6); R_i: resolution of crystal and electronics.
The crystal is taken to begin where the holes end.

A small share of the counts comes through the septa. They have the same centre and are blurred further by a
broad Gaussian, the same at every distance. Share and width of `medium_energy_lu177` are of the order that
Monte Carlo of such collimators finds; they are no measurement of one.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

# XCOM (NIST), lead, total with coherent scattering: 0.9985 cm2/g at 200 keV and 0.4031 at 300 keV; a power
# law between them gives 0.911 at 208.4 keV, times 11.35 g/cm3.
_LEAD_PER_MM = 1.034


class Window(NamedTuple):
    """An energy window, keV."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """keV."""
        return self.high - self.low


class Windows(NamedTuple):
    """The photopeak's window and the two that adjoin it (triple-energy-window method)."""

    lower: Window
    photopeak: Window
    upper: Window


@dataclass(frozen=True, slots=True)
class SpectCamera:
    """One camera with one collimator, set up for one nuclide.

    From a file (`from_toml`); what a file leaves out is as here::

        name = "Camera 2, ME"
        bins = 128                    # pixels across the patient
        slices = 81                   # pixels along the axis that are reconstructed
        pixel_mm = 4.7952
        views = 128                   # all heads together, over 360 degrees
        radius_mm = 250.0             # axis to the collimator's face; or orbit_mm = [...], one number a view
        hole_mm = 2.94                # width of a hole, between its flat sides
        septum_mm = 1.14
        hole_length_mm = 40.64
        intrinsic_fwhm_mm = 3.8
        tew_weight = 0.95             # of the scatter estimate, from a uniform cylinder
        sensitivity_cps_per_bq = 1.0e-5

    name: what messages and manifests call it.
    nuclide: what it is set up for, e.g. ``Lu-177``.
    bins, slices, pixel_mm, views: as above. The first view is from the front, see `view_angles`.
    radius_mm: of rotation, from the axis to the face of the collimator.
    orbit_mm: the same view by view, for heads that follow the body; empty: a circle of radius_mm.
    hole_mm, septum_mm, hole_length_mm: of the collimator.
    effective_length_mm: L_eff; 0: hole_length_mm − 2 / lead_attenuation_per_mm.
    lead_attenuation_per_mm: at the photopeak.
    intrinsic_fwhm_mm: resolution of crystal and electronics.
    penetration_fraction, penetration_fwhm_mm: share of the counts through the septa, and its width.
    photopeak_kev, window_fraction, scatter_window_fraction: centre of the photopeak's window, and the full
        widths of it and of each adjoining window as parts of that energy.
    tew_weight: of the triple-energy-window estimate, as the site found it on a uniform cylinder; 1: Ogawa's.
    energy_resolution: FWHM over energy, at the photopeak; elsewhere it goes with 1 / sqrt(energy).
    sensitivity_cps_per_bq: counts/s in the photopeak's window per Bq in air, of one view.
    """

    name: str
    nuclide: str = "Lu-177"
    bins: int = 128
    slices: int = 81
    pixel_mm: float = 4.7952
    views: int = 128
    radius_mm: float = 250.0
    hole_mm: float = 2.94
    septum_mm: float = 1.14
    hole_length_mm: float = 40.64
    effective_length_mm: float = 0.0
    lead_attenuation_per_mm: float = _LEAD_PER_MM
    intrinsic_fwhm_mm: float = 3.8
    penetration_fraction: float = 0.02
    penetration_fwhm_mm: float = 45.0
    photopeak_kev: float = 208.37
    window_fraction: float = 0.20
    scatter_window_fraction: float = 0.10
    tew_weight: float = 1.0
    energy_resolution: float = 0.10
    sensitivity_cps_per_bq: float = 1.0e-5
    orbit_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """raises: InputRejected, naming the key and what it may be."""
        for field in fields(self):
            if field.name != "orbit_mm":
                self._require_type(field.name, str(field.type))
        self._require_orbit()
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise _refused(self.name, name, getattr(self, name), "Give a number above 0")
        for name in ("penetration_fraction", "effective_length_mm"):
            if getattr(self, name) < 0:
                raise _refused(self.name, name, getattr(self, name), "Give 0 or more")
        for name in _FRACTIONS:
            if getattr(self, name) >= 1:
                raise _refused(self.name, name, getattr(self, name), "Give a part of 1, as 0.1 for 10 %")
        if self.collimator_length_mm <= 0:
            raise _refused(
                self.name, "hole_length_mm", self.hole_length_mm, "Give more than 2 / lead_attenuation_per_mm"
            )

    def _require_orbit(self) -> None:
        remedy = f"Give a list of {self.views} distances above 0, or none"
        given: Any = self.orbit_mm
        if not isinstance(given, list | tuple) or not all(type(v) in (int, float) for v in given):
            raise _refused(self.name, "orbit_mm", given, remedy)
        orbit = tuple(float(v) for v in given)
        if orbit and (len(orbit) != self.views or not min(orbit) > 0 or not math.isfinite(sum(orbit))):
            raise _refused(self.name, "orbit_mm", f"{len(orbit)} numbers from {min(orbit):g} mm", remedy)
        object.__setattr__(self, "orbit_mm", orbit)

    def _require_type(self, name: str, kind: str) -> None:
        value = getattr(self, name)
        if kind == "float" and type(value) is int:
            object.__setattr__(self, name, float(value))
        elif type(value).__name__ != kind:
            article = {"str": "a text", "int": "a whole number", "float": "a number"}[kind]
            raise _refused(self.name, name, value, f"Give {article}")
        elif kind == "float" and not math.isfinite(value):
            raise _refused(self.name, name, value, "Give a finite number")

    @property
    def collimator_length_mm(self) -> float:
        """L_eff of the module's formula."""
        return self.effective_length_mm or self.hole_length_mm - 2.0 / self.lead_attenuation_per_mm

    @overload
    def fwhm_mm(self, distance_mm: float) -> float: ...

    @overload
    def fwhm_mm(self, distance_mm: NDArray[np.floating]) -> NDArray[np.float64]: ...

    def fwhm_mm(self, distance_mm: float | NDArray[np.floating]) -> float | NDArray[np.float64]:
        """Width of a point's image, mm, at distances from the collimator's face; below 0 as at 0."""
        distance = np.maximum(np.asarray(distance_mm, dtype=np.float64), 0.0)
        geometric = self.hole_mm * (1.0 + distance / self.collimator_length_mm)
        width = np.sqrt(geometric**2 + self.intrinsic_fwhm_mm**2)
        return float(width) if width.ndim == 0 else width

    @property
    def windows(self) -> Windows:
        """The three energy windows, keV."""
        low = self.photopeak_kev * (1 - self.window_fraction / 2)
        high = self.photopeak_kev * (1 + self.window_fraction / 2)
        beside = self.photopeak_kev * self.scatter_window_fraction
        return Windows(Window(low - beside, low), Window(low, high), Window(high, high + beside))

    @property
    def view_angles(self) -> NDArray[np.float64]:
        """(views,) θ in radians, evenly over a full turn from 0.

        At θ the camera looks at the axis from the direction (sin θ, −cos θ) of patient (x, y): first from the
        front, then from the patient's left. Its bins count along (cos θ, sin θ), its slices along +z.
        """
        return np.asarray(2.0 * np.pi * np.arange(self.views) / self.views)

    @property
    def radii_mm(self) -> NDArray[np.float64]:
        """(views,) from the axis to the collimator's face."""
        return np.asarray(self.orbit_mm or (self.radius_mm,) * self.views, dtype=np.float64)

    def radius_at(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the axis to the collimator's face, mm, at any angles of `view_angles`."""
        return np.asarray(np.interp(angles, self.view_angles, self.radii_mm, period=2.0 * np.pi))


_POSITIVE = (
    "bins", "slices", "pixel_mm", "views", "radius_mm", "hole_mm", "septum_mm", "hole_length_mm",
    "lead_attenuation_per_mm", "intrinsic_fwhm_mm", "penetration_fwhm_mm", "photopeak_kev",
    "tew_weight", "window_fraction", "scatter_window_fraction", "energy_resolution", "sensitivity_cps_per_bq",
)  # fmt: skip
_FRACTIONS = ("penetration_fraction", "window_fraction", "scatter_window_fraction", "energy_resolution")


def medium_energy_lu177() -> SpectCamera:
    """A camera with 9.5 mm crystal and a medium-energy collimator at the 208 keV of Lu-177.

    Widths of 4.8, 11.1 and 21.9 mm at 0, 10 and 25 cm: those of L_eff = 39.48 mm, which is set. The formula
    with lead's tabulated attenuation gives 38.7 mm and widths of 4.8, 11.2 and 22.3 mm: the figures differ by
    less than cameras of one kind do. The weight of the scatter estimate is that which makes the total of a
    uniform water cylinder, 20 cm wide and long, right when the sensitivity was measured in air.
    """
    return SpectCamera(name="medium energy, Lu-177", effective_length_mm=39.48, tew_weight=0.95)


def from_toml(path: Path) -> SpectCamera:
    """A camera from the keys at the top of a TOML file; see `SpectCamera` for an example.

    raises: InputRejected for a file that cannot be read, an unknown key (naming the nearest), a missing name,
        or a value that a camera cannot have.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRejected(
            f"cannot read the camera file {path} ({error.strerror})", "Check its path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputRejected(f"{path} is not TOML ({error})", "Write one key = value a line") from error
    known = [field.name for field in fields(SpectCamera)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}"
            raise InputRejected(f"{path} sets {key!r}, which a camera does not have", remedy)
    if "name" not in values:
        raise InputRejected(f"{path} does not name its camera", 'Add a line such as name = "Camera 2, ME"')
    return SpectCamera(**values)


def _refused(camera: str, key: str, value: object, remedy: str) -> InputRejected:
    return InputRejected(f"camera {camera!r} cannot have {key} = {value!r}", remedy)
