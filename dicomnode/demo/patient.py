"""The patient of the demonstration: a virtual study with drawn organs and lesions, in DICOM files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode.virtual_study import Injection, Study, StudyFiles, write_study
from pipeline.lattice import coarser
from pipeline.simulate.patient import VirtualPatient, abdominal_ct_grid, virtual_patient
from pipeline.simulate.spect import abdominal_spect_grid, spect_image, surrounding_activity
from pipeline.volume import Grid

SEED = 7
ORGANS = {
    "Liver without lesions": "liver",
    "Spleen": "spleen",
    "Right kidney": "right kidney",
    "Left kidney": "left kidney",
    "Vertebrae L2-L5": "L2-L5",
}


@dataclass(frozen=True, slots=True)
class Size:
    """The voxels of the study's images."""

    ct: Grid
    spect: Grid

    def __str__(self) -> str:
        return f"CT {_voxels(self.ct)}, SPECT {_voxels(self.spect)}"


FULL_SIZE = Size(abdominal_ct_grid(), abdominal_spect_grid())
# The same patient for a test of the whole journey in seconds.
SMALL_SIZE = Size(
    coarser(abdominal_ct_grid(), (7.8, 4.0, 4.0)), coarser(abdominal_spect_grid(), (8.0, 8.0, 8.0))
)


def write_patient(
    folder: Path, size: Size, seed: int = SEED, tell: Callable[[str], None] = lambda _what: None
) -> StudyFiles:
    """A virtual patient's CT, SPECT and RT Structure Set as DICOM files in `folder`. tell: each step."""
    tell("anatomy and CT")
    patient = virtual_patient(size.ct, seed)
    tell("SPECT")
    spect = spect_image(surrounding_activity(patient.anatomy, size.spect), size.spect, seed)
    tell("DICOM files")
    given = Injection(administered_bq=patient.administered_bq, hours_before=patient.hours_after_injection)
    study = Study(seed=f"demo {seed}", injection=given)
    return write_study(folder, study, ct=patient.hu, spect=spect, rois=_drawn(patient))


def _drawn(patient: VirtualPatient) -> dict[str, NDArray[np.bool_]]:
    lesions = {f"Lesion {n} ({lesion.name})": f"lesion {n}" for n, lesion in enumerate(patient.lesions, 1)}
    masks = {name: patient.mask(region) for name, region in (ORGANS | lesions).items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _voxels(grid: Grid) -> str:
    z, y, x = grid.shape
    return f"{x} x {y} x {z}"
