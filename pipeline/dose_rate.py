"""What every dose engine is given, what it returns, and what none can compute from.

The engines themselves stand in modules of their own (`pipeline/dvk.py`, `pipeline/montecarlo/engine.py`)
and in one table (`pipeline/engines.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.convolve import Offset
from pipeline.decay import Nuclide
from pipeline.errors import InputRejected
from pipeline.lattice import require_same_frame
from pipeline.volume import Grid, Volume

AIR_BELOW_G_PER_CM3 = 0.1
HOUR_S = 3600.0
BQ_PER_MBQ = 1e6

# Part of a voxel by which two cut-outs of one lattice may differ: well above the rounding of DICOM
# decimal strings, and a shift of no consequence for a dose.
LATTICE_TOLERANCE_VOXELS = 0.01

Progress = Callable[[str, float], None]
Mask = NDArray[np.bool_]
Heterogeneity = Literal["density_scaling", "local_transport"]
Precision = Literal["exact", "fast"]


@dataclass(frozen=True, slots=True)
class MonteCarloSettings:
    """When a Monte Carlo run ends: whichever comes first.

    mean_uncertainty: relative, the mean over a region's voxels of their standard uncertainty; reached
        when every region is there. time_limit_s: wall clock. seed: of the random numbers.
    checkpoint: a file that a stopped run leaves and that the next one goes on from; None: neither.
    """

    mean_uncertainty: float = 0.005
    time_limit_s: float = 1200.0
    seed: int = 1
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Which network engine `cnn` runs, and how.

    weights: name of shipped weights or a folder of one's own; ``""``: none are approved.
    resolution_fwhm_mm: of the SPECT that they are to correct; None: not known, and not compared.
    sha256: of the weights that were approved, or its beginning; ``""``: not compared.
    camera: what messages call it. precision: ``fast`` computes with fewer digits on a GPU.
    """

    weights: str = ""
    resolution_fwhm_mm: float | None = None
    camera: str = ""
    precision: Precision = "exact"
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class WeightsUsed:
    """The network's weights that a map came from. sha256: of their file, hexadecimal."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class DoseRequest:
    """What an engine computes.

    activity: Bq/mL, on any box of the density's lattice. density: g/cm³; its grid is the result's.
    surroundings: g/cm³, what is known of the density beyond the result's grid, on a box of its lattice that
        holds it; None: nothing.
    regions: name -> mask on the density's grid: where the result will be read, and where an engine with
        statistics must become certain enough. Empty: the whole grid. reported: likewise read, but however
        certain they are by then.
    device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
    heterogeneity, kernel_cache: of DVK; see `pipeline/dvk.py`. kernel_cache: a folder that need not be
        there yet; None: kernels are integrated anew.
    network: of the engine `cnn`; None for the others. image: for it, the activity on the image's own grid,
        Bq/mL, where that is known: it need not be seen through the voxels of the density.
    """

    activity: Volume
    density: Volume
    nuclide: Nuclide
    device: str = "cpu"
    regions: Mapping[str, Mask] = field(default_factory=dict)
    reported: Mapping[str, Mask] = field(default_factory=dict)
    heterogeneity: Heterogeneity = "density_scaling"
    kernel_cache: Path | None = None
    montecarlo: MonteCarloSettings = field(default_factory=MonteCarloSettings)
    surroundings: Volume | None = None
    network: NetworkSettings | None = None
    image: Volume | None = None


@dataclass(frozen=True, slots=True)
class RegionUncertainty:
    """Statistical uncertainty of a region's dose rate, relative, one standard deviation.

    of_mean: of the region's mean dose rate. of_voxels: the mean over the region's voxels of theirs.
    """

    name: str
    of_mean: float
    of_voxels: float

    def __str__(self) -> str:
        return f"{self.name}: mean {percent(self.of_mean)}, voxels {percent(self.of_voxels)} on average"


@dataclass(frozen=True, slots=True, eq=False)
class DoseRate:
    """A dose-rate map and where it came from.

    volume: mGy/h on the density's grid, at the instant that the activity holds for.
    engine: its name in `pipeline.engines.ENGINES`. device: what it ran on, ``cpu`` or ``cuda``.
    kernel_sha256: of the data that the numbers rest on: DVK's kernel table and the voxel spacing,
        Monte Carlo's physics and decay data.
    uncertainty: mGy/h, one standard deviation of each voxel; None for an engine without statistics.
    regions: uncertainty of each region of the request, also of those that are only reported; empty for an
        engine without statistics.
    parameters: ``name=value``, what else the result depends on.
    notes: what a reader of the result should know.
    flags: those of the notes that a person must not overlook: the log tells them as well.
    weights: of a network; None for an engine without one.
    """

    volume: Volume
    engine: str
    device: str
    kernel_sha256: str
    uncertainty: Volume | None = None
    regions: tuple[RegionUncertainty, ...] = ()
    parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    weights: WeightsUsed | None = None


class Engine(Protocol):
    """What every engine offers."""

    def __call__(self, request: DoseRequest, progress: Progress = ...) -> DoseRate:
        """The dose-rate map of a request; progress is called with (what is done, 0 ... 1).

        raises: InputRejected for values that cannot be, or grids that do not share a lattice;
            EngineFailed when memory or the device fails.
        """
        ...


def percent(part: float) -> str:
    """A relative uncertainty for people: two significant digits."""
    return f"{100 * part:.0f} %" if part >= 1 else f"{100 * part:.2g} %"


def silent(_what: str, _part: float) -> None:
    """Nobody asked for progress."""


def require_computable(activity: Volume, density: Volume) -> None:
    """raises: InputRejected for what no engine can compute from; see the texts."""
    require_valid(activity, density)
    if not activity.array.any():
        raise InputRejected(
            "the activity map is empty: no voxel holds activity",
            "Check that the right SPECT series was sent and that it overlaps the CT",
        )
    if not (density.array >= AIR_BELOW_G_PER_CM3).any():
        raise InputRejected(
            f"the CT shows no tissue: every density is below {AIR_BELOW_G_PER_CM3} g/cm3",
            "Check the CT's RescaleSlope and RescaleIntercept and [density] curve",
        )


def require_valid(activity: Volume, density: Volume) -> None:
    """raises: InputRejected for values that are not finite or negative."""
    _require_unit(activity, "activity", "Bq/mL")
    _require_unit(density, "density", "g/cm3")
    _require_not_negative(activity, "activity", "Check the SPECT's reconstruction and its rescale values")
    _require_not_negative(density, "density", "Check the CT's pixel data and [density] curve")


def lattice_offset(of: Grid, within: Grid) -> Offset:
    """Where voxel [0, 0, 0] of `of` lies in `within`, voxels (z, y, x); any part may be negative.

    raises: InputRejected when the two do not cut the same lattice.
    """
    require_same_frame(of, within)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in of.shape])).reshape(3, -1).T
    shifts = within.indices(of.positions(corners)) - corners
    offset = np.rint(shifts[0])
    astray = float(np.abs(shifts - offset).max())
    if astray > LATTICE_TOLERANCE_VOXELS:
        raise InputRejected(
            f"activity and density do not share a lattice: spacings {within.spacing_mm} and "
            f"{of.spacing_mm} mm (z, y, x), voxel centres up to {astray:.3g} voxels apart",
            "Resample the SPECT onto the CT's lattice first",
        )
    z, y, x = (int(v) for v in offset)
    return z, y, x


def _require_unit(volume: Volume, what: str, unit: str) -> None:
    if volume.unit != unit:
        raise ValueError(f"{what} must come in {unit}, not {volume.unit}")


def _require_not_negative(volume: Volume, what: str, remedy: str) -> None:
    # min() of an array with a NaN is NaN, and max() finds what is infinite: no temporary arrays.
    lowest, highest = float(volume.array.min()), float(volume.array.max())
    if not np.isfinite(lowest) or not np.isfinite(highest):
        count = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise InputRejected(f"the {what} map holds {count} voxels that are not finite numbers", remedy)
    if lowest < 0:
        count = int(np.count_nonzero(volume.array < 0))
        raise InputRejected(
            f"the {what} map is negative in {count} voxels (lowest {lowest:.4g} {volume.unit})", remedy
        )
