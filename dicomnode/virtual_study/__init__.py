"""Studies written as scanners write them: the modality's half of a demonstration or a test.

::

    study.py      identity, injection, UIDs and the attributes that every object of a study shares
    ct.py         CT Image Storage, one file per slice; lossless recompression
    nm.py         NM Image Storage, RECON TOMO, with the variants that cameras write
    pet.py        Positron Emission Tomography Image Storage in BQML
    rtstruct.py   RT Structure Set Storage from masks

Volumes carry the geometry and, in `frame_of_reference_uid`, the Frame of Reference (empty: the study's).
The same `Study` gives the same UIDs and the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode.virtual_study.ct import CtStyle, recompress, write_ct
from dicomnode.virtual_study.nm import NM_VARIANTS, NmStyle, Quantification, tilted, write_nm
from dicomnode.virtual_study.pet import write_pet
from dicomnode.virtual_study.rtstruct import write_rtstruct
from dicomnode.virtual_study.study import Identity, Injection, Study
from pipeline.volume import Volume

__all__ = [
    "NM_VARIANTS",
    "CtStyle",
    "Identity",
    "Injection",
    "NmStyle",
    "Quantification",
    "Study",
    "StudyFiles",
    "recompress",
    "tilted",
    "write_ct",
    "write_nm",
    "write_pet",
    "write_rtstruct",
    "write_study",
]


@dataclass(frozen=True)
class StudyFiles:
    """What was written. ct and pet: one file per slice, in the order of the volume's slices."""

    study: Study
    folder: Path
    ct: list[Path] = field(default_factory=list)
    nm: Path | None = None
    pet: list[Path] = field(default_factory=list)
    rtstruct: Path | None = None

    @property
    def all(self) -> list[Path]:
        """Every file; what shows activity last, so that a transfer that pauses never looks complete."""
        single = [path for path in (self.rtstruct, self.nm) if path is not None]
        return [*self.ct, *single, *self.pet]


def write_study(
    folder: Path,
    study: Study,
    *,
    ct: Volume | None = None,
    spect: Volume | None = None,
    pet: Volume | None = None,
    rois: Mapping[str, NDArray[np.bool_]] | None = None,
    ct_style: CtStyle | None = None,
    nm_style: NmStyle | None = None,
) -> StudyFiles:
    """Write what is given of a study into `folder`, which is made where it does not exist.

    ct: HU. spect, pet: Bq/mL. rois: name to mask on the CT's grid, for an RT Structure Set; needs `ct`.
    Raises ValueError where a volume does not fit the stored type, or rois come without a CT.
    """
    if rois and ct is None:
        raise ValueError("contours are drawn on CT slices: give the CT with the ROIs")
    folder.mkdir(parents=True, exist_ok=True)
    return StudyFiles(
        study,
        folder,
        ct=write_ct(folder, study, ct, style=ct_style or CtStyle()) if ct else [],
        nm=write_nm(folder, study, spect, style=nm_style or NmStyle()) if spect else None,
        pet=write_pet(folder, study, pet) if pet else [],
        rtstruct=write_rtstruct(folder, study, ct.grid, rois) if rois and ct else None,
    )
