"""What a computation found: everything that `encode` needs to write a case's results.

`compute` makes one `Findings`, `encode` turns it into DICOM objects. Nothing here touches a
network, a database or a clock, and all of it can be pickled to cross a process boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pipeline.decay import Nuclide
from pipeline.dose_rate import RegionUncertainty, WeightsUsed
from pipeline.errors import InputRejected
from pipeline.histogram import RegionKind, RoiStatistics
from pipeline.volume import Volume


class ResultKind(StrEnum):
    """The objects that a case ends in, in the order in which they are written."""

    SEG = "SEG"
    RTDOSE = "RTDOSE"
    PM = "PM"
    UNCERTAINTY = "UNCERTAINTY"
    SR = "SR"
    REJECTION = "KO"


@dataclass(frozen=True, slots=True)
class InstanceReference:
    """A DICOM object, named completely enough to stand in an evidence sequence."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A result of an earlier run over the same study that this run replaces."""

    instance: InstanceReference
    kind: ResultKind
    engine: str = ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which software and which data all numbers came from; hashes are hexadecimal SHA-256.

    What is an engine's own stands in its `EngineMap`.
    """

    software_version: str
    config_sha256: str
    calibration_text: str
    calibration_sha256: str | None = None

    def described(self) -> Iterator[tuple[str, str]]:
        """(what, value) pairs in the order in which a person reads them."""
        yield "Software", f"dicomnode {self.software_version}"
        yield "Calibration", self.calibration_text
        yield "SHA-256 of the configuration", self.config_sha256
        if self.calibration_sha256:
            yield "SHA-256 of the calibration", self.calibration_sha256


@dataclass(frozen=True, slots=True, eq=False)
class EngineMap:
    """One dose-rate map.

    engine: short lower-case name, ``dvk``; it becomes part of file names and descriptions.
    dose_rate: mGy/h at the reference time, on the dose grid.
    parameters: one text per setting that changes the numbers, ``density_scaling=1.04/rho``.
    heterogeneity: what was done about tissue densities, in words.
    tissue_correction: the same as Defined Terms (PS3.3 C.8.8.3): IMAGE, ROI_OVERRIDE, WATER.
    uncertainty: mGy/h, one standard deviation of each voxel; of an engine with statistics.
    device: what it was computed on.
    data_name: what `kernel_sha256` is the hash of, in words.
    weights: of an engine with a network.
    """

    engine: str
    dose_rate: Volume
    algorithm_name: str
    algorithm_version: str
    parameters: tuple[str, ...]
    kernel_sha256: str
    heterogeneity: str
    notes: tuple[str, ...] = ()
    tissue_correction: tuple[str, ...] = ("IMAGE",)
    uncertainty: Volume | None = None
    device: str = "cpu"
    data_name: str = "kernel"
    weights: WeightsUsed | None = None

    def described(self) -> Iterator[tuple[str, str]]:
        """(what, value) pairs of where this map came from."""
        yield "Computed on", self.device
        yield f"SHA-256 of the {self.data_name}", self.kernel_sha256
        if self.weights is not None:
            yield "Network weights", f"{self.weights.name}, version {self.weights.version}"
            yield "SHA-256 of the network weights", self.weights.sha256

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,8}", self.engine):
            raise ValueError(f"an engine's name is 1-8 lower-case letters or digits, not {self.engine!r}")
        if self.dose_rate.unit != "mGy/h":
            raise ValueError(f"a dose-rate map is in mGy/h, not {self.dose_rate.unit}")
        if self.uncertainty is not None and not self.uncertainty.grid.same_as(self.dose_rate.grid):
            raise ValueError("a dose-rate map and its uncertainty lie on different grids")


@dataclass(frozen=True, slots=True, eq=False)
class RoiFindings:
    """One region and its numbers.

    mask: (z, y, x) bool on the dose grid, at least one voxel. Leave a region that lies outside the
        grid out, and say so in `Findings.notes`.
    statistics: by engine; volume, mass and activity are the same in all.
    source: the RTSTRUCT or SEG that the region came with.
    uncertainty: statistical, by engine; of those that have statistics.
    """

    name: str
    kind: RegionKind
    mask: NDArray[np.bool_]
    statistics: dict[str, RoiStatistics]
    source: InstanceReference | None = None
    uncertainty: dict[str, RegionUncertainty] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.dtype != np.bool_:
            raise TypeError(f"the mask of {self.name!r} is {self.mask.dtype}, not bool")
        if not self.mask.any():
            raise InputRejected(
                f"the region {self.name!r} holds no voxel of the dose grid",
                "Draw it inside the CT, or remove it from the study",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Everything from compute to encode.

    ct_headers: one per slice, without pixels; patient, study and frame of reference come from here.
    spect_headers: one NM, or the slices of one PET series, without pixels.
    reference_time: the instant to which activity and dose rate belong.
    fraction_found: activity in the field of view / administered activity decayed to reference_time.
    notes: one sentence each, for the reader of the report.
    other_sources: registrations, RTSTRUCTs, SEGs and reports that were used.
    predecessors: results of an earlier run that these replace.
    rejected: of each rejection note the results of earlier runs that it tells archives to reject.
    """

    ct_headers: tuple[Dataset, ...]
    spect_headers: tuple[Dataset, ...]
    nuclide: Nuclide
    reference_time: datetime
    maps: tuple[EngineMap, ...]
    rois: tuple[RoiFindings, ...]
    provenance: Provenance
    administered_bq: float | None = None
    administered_at: datetime | None = None
    fraction_found: float | None = None
    notes: tuple[str, ...] = ()
    other_sources: tuple[InstanceReference, ...] = ()
    predecessors: tuple[Predecessor, ...] = ()
    rejected: tuple[tuple[Predecessor, ...], ...] = ()

    def __post_init__(self) -> None:
        if not (self.ct_headers and self.spect_headers and self.maps and self.rois):
            raise ValueError("findings need CT and SPECT headers, at least one map and one region")
        engines = [m.engine for m in self.maps]
        if len(set(engines)) != len(engines):
            raise ValueError(f"two maps of one engine: {engines}")
        grid = self.maps[0].dose_rate.grid
        if any(not m.dose_rate.grid.same_as(grid) for m in self.maps):
            raise ValueError("the maps do not lie on one dose grid")
        for roi in self.rois:
            if roi.mask.shape != grid.shape or set(roi.statistics) != set(engines):
                raise ValueError(f"the region {roi.name!r} does not belong to these maps")
        self._require_frame_of_reference(grid.frame_of_reference_uid)

    def _require_frame_of_reference(self, uid: str) -> None:
        ct = str(self.ct_headers[0].get("FrameOfReferenceUID", ""))
        if uid != ct:
            raise ValueError(f"the dose grid's frame of reference {uid!r} is not the CT's, {ct!r}")

    def least_certain(self, engine: str) -> RegionUncertainty | None:
        """The ROI (without any, the field of view) in which an engine's voxels are least certain.

        returns: None for an engine without statistics.
        """
        kinds = {roi.kind for roi in self.rois}
        of = RegionKind.ROI if RegionKind.ROI in kinds else RegionKind.FIELD_OF_VIEW
        found = [roi.uncertainty[engine] for roi in self.rois if roi.kind is of and engine in roi.uncertainty]
        return max(found, key=lambda region: region.of_voxels, default=None)

    def replaced(self, kind: ResultKind, engine: str = "") -> tuple[InstanceReference, ...]:
        """What a new result of this kind and engine replaces."""
        return tuple(p.instance for p in self.predecessors if (p.kind, p.engine) == (kind, engine))


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """How results are written; `bits` to `uid_root` are the settings of ``[encode]``.

    device_uid: identifies this installation in every report for good (DCM 121012); two
        installations never share one.
    uid_root: ends in a dot; empty for 2.25.
    series_number: of the SEG; the other results count on from it.
    rejection_reason: of the results that these replace, where archives are told so.
    uncertainty_map: whether an engine with statistics also gets a Parametric Map of its uncertainty.
    """

    device_uid: str
    bits: Literal[16, 32] = 32
    dose_units: Literal["GY", "RELATIVE"] = "GY"
    sr: Literal["comprehensive_3d", "enhanced"] = "comprehensive_3d"
    parametric_map: bool = False
    institution: str = ""
    station: str = "DICOMNODE"
    uid_root: str = ""
    manufacturer: str = "dicomnode"
    model_name: str = "dicomnode"
    serial_number: str = "1"
    series_number: int = 9000
    uncertainty_map: bool = False
    rejection_reason: Literal["quality", "patient_safety"] = "quality"
