"""What a site says about its cameras: how to recognise one, and how its counts become activity.

::

    A [Bq/mL] = counts · 10⁶ / (T · S · V)

T: acquisition time in s; S: sensitivity in counts/s per MBq; V: voxel volume in mL. Which T and which S
belong together depends on what a reconstructed voxel's value means, so `Calibration` must say it.

The classes are plain dataclasses that pydantic validates as fields of the configuration: an unknown key
fails, and so does a value that `__post_init__` refuses.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from typing import Literal

from pydicom.dataset import Dataset

from pipeline.dataset import described, items, texts
from pipeline.decay import Nuclide, nuclide
from pipeline.errors import InputRejected

IDENTIFYING = ("Manufacturer", "ManufacturerModelName", "StationName", "DeviceSerialNumber")
# Where reconstructions are told apart: by the algorithm's own attributes, or by the name a site gave.
_RECONSTRUCTION = ("ConvolutionKernel", "ProcessingFunction", "ReconstructionMethod", "SeriesDescription")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Counts to activity, for one nuclide on one camera.

    nuclide: e.g. ``Lu-177``. Sensitivity belongs to a nuclide and its energy window.
    sensitivity_cps_per_mbq: counts/s per MBq, as measured with the same reconstruction.
    collimator: pattern (``*`` and ``?``) of the collimator's name or type; empty: any.
    reconstruction: pattern of the reconstruction's kernel, processing function or series description;
        empty: any. Another reconstruction has another scale.
    valid_from, valid_until: first and last day of acquisition that it holds for, as sensitivity drifts.
    duration: what the value of a reconstructed voxel is. ``summed``: counts of all views, so T is
        views per head x time per view. ``per_view``: mean counts of one view of one head, so T is the
        time per view.
    sensitivity: whether `sensitivity_cps_per_mbq` is of the whole ``system`` or ``per_head``. ``summed``
        needs the system's, ``per_view`` one head's; the other is converted by `heads`.
    heads: number of heads that turned. Needed for that conversion only; a reconstruction does not tell
        it (PS3.3 C.8.4.8.1.3 sets Number of Detectors to 1).
    views_per_head: stops of the gantry. 0: Number of Frames in Rotation. Set it when the camera counts
        the interleaved views of all heads there.
    """

    nuclide: str
    sensitivity_cps_per_mbq: float
    collimator: str = ""
    reconstruction: str = ""
    valid_from: date | None = None
    valid_until: date | None = None
    duration: Literal["summed", "per_view"] = "summed"
    sensitivity: Literal["system", "per_head"] = "system"
    heads: int = 0
    views_per_head: int = 0

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (pydantic reads it from the class)

    def __post_init__(self) -> None:
        _known_nuclide(self.nuclide)
        if not (math.isfinite(self.sensitivity_cps_per_mbq) and self.sensitivity_cps_per_mbq > 0):
            raise ValueError(f"sensitivity_cps_per_mbq must be above 0, not {self.sensitivity_cps_per_mbq}")
        if self.valid_from and self.valid_until and self.valid_from > self.valid_until:
            raise ValueError(f"valid_from {self.valid_from} is later than valid_until {self.valid_until}")
        if self.heads < 0 or self.views_per_head < 0:
            raise ValueError("heads and views_per_head must not be negative")
        if self._converts_heads and self.heads == 0:
            raise ValueError(
                f"duration = {self.duration!r} with sensitivity = {self.sensitivity!r} needs heads, "
                "the number of heads that turned"
            )

    @property
    def _converts_heads(self) -> bool:
        return (self.duration, self.sensitivity) in (("summed", "per_head"), ("per_view", "system"))

    def bq_per_count(self, view_s: float, views: int) -> float:
        """Activity that one count of a voxel stands for, Bq: 10⁶ / (T · S).

        view_s: time per view, s. views: views per head that the image names.
        """
        summed = self.duration == "summed"
        duration_s = view_s * (self.views_per_head or views) if summed else view_s
        sensitivity = self.sensitivity_cps_per_mbq
        if self._converts_heads:
            sensitivity = sensitivity * self.heads if summed else sensitivity / self.heads
        return 1e6 / (duration_s * sensitivity)

    def applies(self, image: Dataset, to: Nuclide, on: date) -> bool:
        """Whether it is meant for this image, nuclide and day of acquisition."""
        detector = next(iter(items(image, "DetectorInformationSequence")), Dataset())
        collimators = texts(detector, "CollimatorGridName") + texts(detector, "CollimatorType")
        reconstructions = tuple(text for keyword in _RECONSTRUCTION for text in texts(image, keyword))
        return (
            nuclide(self.nuclide) == to
            and (self.valid_from or date.min) <= on <= (self.valid_until or date.max)
            and (not self.collimator or _any_matches(self.collimator, collimators))
            and (not self.reconstruction or _any_matches(self.reconstruction, reconstructions))
        )

    @property
    def sha256(self) -> str:
        """Identifies the calibration that a result came from."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()

    def __str__(self) -> str:
        parts = [self.nuclide, self.collimator, self.reconstruction]
        days = f"{self.valid_from or '…'} to {self.valid_until or '…'}"
        return f"{' '.join(filter(None, parts))}, {self.sensitivity_cps_per_mbq:g} cps/MBq, {days}"


@dataclass(frozen=True, slots=True)
class Camera:
    """How a site's camera is recognised, and what its images mean.

    name: what messages call it.
    match: patterns (``*`` and ``?``, upper and lower case alike) by DICOM keyword, of Manufacturer,
        ManufacturerModelName, StationName, DeviceSerialNumber; all must hold.
    rescale_slope_is_bq_per_ml: the camera's RescaleSlope yields Bq/mL; DICOM does not say so for NM.
    reference_time: the instant that the image's activity belongs to; NM objects name none.
    require_corrected: values that CorrectedImage must hold; without attenuation and scatter correction
        counts are not activity.
    nuclide: assumed when the image names none; empty: such an image is refused.
    calibrations: counts to activity; exactly one may apply to an image.
    cnn_weights: the network's weights that a physicist approved for this camera, the name of shipped ones or
        a folder; empty: none, and engine cnn leaves its images to dvk.
    cnn_weights_sha256: of the file that was approved, or its beginning; empty: whatever bears the name.
    resolution_fwhm_mm: of its SPECT at 10 cm from the collimator, for which the weights must hold.
    """

    name: str
    match: dict[str, str]
    rescale_slope_is_bq_per_ml: bool = False
    reference_time: Literal["acquisition_start", "acquisition_middle"] = "acquisition_start"
    require_corrected: tuple[str, ...] = ("ATTN", "SCAT")
    nuclide: str = ""
    calibrations: tuple[Calibration, ...] = field(default=())
    cnn_weights: str = ""
    cnn_weights_sha256: str = ""
    resolution_fwhm_mm: float | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (pydantic reads it from the class)

    def __post_init__(self) -> None:
        unknown = set(self.match) - set(IDENTIFYING)
        if unknown or not self.match:
            given = ", ".join(sorted(unknown)) or "nothing"
            raise ValueError(f"match knows {', '.join(IDENTIFYING)}, and was given {given}")
        if self.nuclide:
            _known_nuclide(self.nuclide)
        digits = self.cnn_weights_sha256
        if digits and not re.fullmatch(r"[0-9a-fA-F]{12,64}", digits):
            raise ValueError(f"cnn_weights_sha256 has 12 to 64 hexadecimal digits, and {digits!r} was given")
        width = self.resolution_fwhm_mm
        if width is not None and not (math.isfinite(width) and width > 0):
            raise ValueError(f"resolution_fwhm_mm must be above 0, not {width}")
        if self.cnn_weights and width is None:
            raise ValueError(
                "cnn_weights needs resolution_fwhm_mm, the measured resolution that they must hold for"
            )

    def recognises(self, image: Dataset) -> bool:
        """Whether the image comes from this camera."""
        return all(
            _any_matches(pattern, texts(image, keyword) or ("",)) for keyword, pattern in self.match.items()
        )

    def calibration_for(self, image: Dataset, of: Nuclide, on: date) -> Calibration:
        """The one calibration that applies. raises: InputRejected for none, and for several."""
        found = [calibration for calibration in self.calibrations if calibration.applies(image, of, on)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise no_calibration(image, of, self)
        raise InputRejected(
            f"{len(found)} calibrations of camera {self.name!r} apply to {described(image)}: "
            + "; ".join(f"({n}) {calibration}" for n, calibration in enumerate(found, 1)),
            "Tell them apart by collimator, reconstruction, valid_from and valid_until in config.toml",
        )


UNLISTED = Camera("not listed", {"Manufacturer": "*"})
"""A camera that the configuration does not name: every setting at its default."""


def camera_of(image: Dataset, cameras: tuple[Camera, ...]) -> Camera:
    """The configured camera that made the image, or `UNLISTED`.

    raises: InputRejected when several recognise it.
    """
    found = [camera for camera in cameras if camera.recognises(image)]
    if len(found) > 1:
        raise InputRejected(
            f"{described(image)} matches {len(found)} cameras: {', '.join(repr(c.name) for c in found)}",
            "Make the match of these [[camera]] entries in config.toml exclude each other",
        )
    return found[0] if found else UNLISTED


def no_calibration(image: Dataset, of: Nuclide, camera: Camera) -> InputRejected:
    """What to add to config.toml, with the values of this image."""
    seen = {keyword: " ".join(texts(image, keyword)) for keyword in IDENTIFYING}
    detector = next(iter(items(image, "DetectorInformationSequence")), Dataset())
    collimator = next(iter(texts(detector, "CollimatorGridName") + texts(detector, "CollimatorType")), "")
    match = ", ".join(f'{keyword} = "{text}"' for keyword, text in seen.items() if text)
    entry = f'nuclide = "{of.name}", sensitivity_cps_per_mbq = (as measured), collimator = "{collimator}"'
    name = " ".join(seen[k] for k in IDENTIFYING[:2]).strip() if camera is UNLISTED else camera.name
    if camera is UNLISTED:
        add = f'add [[camera]] name = "{name}", match = {{ {match} }}, calibrations = [ {{ {entry} }} ]'
    else:
        add = f"add {{ {entry} }} to the calibrations of [[camera]] {name!r}, or correct their dates,"
    return InputRejected(
        f"no calibration for camera {name or 'without a name'!r} with {of.name}"
        f"{f' and collimator {collimator!r}' if collimator else ''}: {described(image)} holds counts",
        f"Measure the sensitivity and {add} in config.toml",
    )


def _any_matches(pattern: str, values: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value.lower(), pattern.lower()) for value in values)


def _known_nuclide(name: str) -> None:
    try:
        nuclide(name)
    except InputRejected as error:
        raise ValueError(str(error)) from None  # pydantic reports ValueError at the setting
