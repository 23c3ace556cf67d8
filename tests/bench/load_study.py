"""Studies of many CT slices and one SPECT, made cheaply: one study is composed, the others are its bytes
with other UIDs and another patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from dicomnode.virtual_study import Identity, Study, write_ct, write_nm
from dicomnode.virtual_study.study import decimals, position
from pipeline.simulate.cube import inside_box
from pipeline.volume import Grid, Volume
from tests.small_study import ellipse

COLUMNS = 512
CT_VOXEL_MM = 0.9766
# A scan of 60 cm; of fewer slices than that takes, each is thicker, and the scan is shorter in the end.
SCAN_MM, THICKEST_MM = 600.0, 4.8
SPECT_GRID = Grid((64, 128, 128), (-304.8, -304.8, -151.2), (4.8, 4.8, 4.8))
LESION_MM, LESION_BQ_PER_ML, BODY_BQ_PER_ML = 30.0, 5e5, 5e3
_CT = "CT"


@dataclass(frozen=True, slots=True)
class Pushed:
    """A modality's study. files: in the order in which it sends them, the SPECT in the middle."""

    ae_title: str
    study: Study
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(path.stat().st_size for path in self.files)


def ct_grid(slices: int) -> Grid:
    """The CT's lattice; its middle slice lies at z = 0."""
    thickness = min(SCAN_MM / slices, THICKEST_MM)
    corner = -CT_VOXEL_MM * (COLUMNS - 1) / 2
    start = -thickness * (slices - 1) / 2
    return Grid((slices, COLUMNS, COLUMNS), (corner, corner, start), (thickness, CT_VOXEL_MM, CT_VOXEL_MM))


def size_bytes(modalities: int, slices: int) -> int:
    """Of all studies, roughly."""
    spect = 2 * int(np.prod(SPECT_GRID.shape))
    return modalities * (slices * (2 * COLUMNS * COLUMNS + 2048) + spect)


def write_studies(folder: Path, modalities: int, slices: int) -> list[Pushed]:
    """A folder for each modality."""
    grid, spect = ct_grid(slices), _activity()
    model = _study(0)
    folder.mkdir(parents=True)
    headers, pixels = _template(folder, model, grid)
    return [_write(folder, number, model, headers, pixels, spect) for number in range(modalities)]


def _study(number: int) -> Study:
    who = Identity(patient_name=f"Load^{number:04d}", patient_id=f"LOAD-{number:04d}")
    return Study(seed=f"load {number:04d}", identity=replace(who, accession_number=f"ACC{number:04d}"))


def _activity() -> Volume:
    """A warm body with a hot lesion beside the middle: it lies in the CT however few slices that has."""
    array = np.where(ellipse(SPECT_GRID, 160, 110), BODY_BQ_PER_ML, 0.0).astype(np.float32)
    array[inside_box(SPECT_GRID, (40.0, 10.0, 0.0), (LESION_MM, LESION_MM, LESION_MM))] = LESION_BQ_PER_ML
    return Volume(array, SPECT_GRID, "Bq/mL")


def _template(folder: Path, study: Study, grid: Grid) -> tuple[list[bytes], bytes]:
    """returns: of each slice of the model study what stands before the pixels; the pixels of all."""
    plane = replace(grid, shape=(1, COLUMNS, COLUMNS))
    noise = np.random.default_rng(2).normal(0.0, 15.0, plane.shape)
    body, spine = ellipse(plane, 170, 120), ellipse(_moved(plane, 0.0, -80.0), 22, 18)
    hu = np.where(body, np.where(spine, 400.0, 30.0) + noise, -1000.0).astype(np.float32)
    (path,) = write_ct(folder, study, Volume(hu, plane, "HU"))
    ds = dcmread(path)
    path.unlink()
    pixels = bytes(ds.PixelData)
    return [_header(ds, study, grid, k, len(pixels)) for k in range(grid.shape[0])], pixels


def _moved(grid: Grid, x_mm: float, y_mm: float) -> Grid:
    x, y, z = grid.origin_mm
    return replace(grid, origin_mm=(x + x_mm, y + y_mm, z))


def _header(ds: Dataset, study: Study, grid: Grid, k: int, pixel_bytes: int) -> bytes:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = study.uid(_CT, k + 1)
    ds.InstanceNumber = k + 1
    ds.ImagePositionPatient = position(grid, k)
    ds.SliceLocation = decimals([float(grid.positions((k, 0, 0))[2])])[0]
    content = BytesIO()
    ds.save_as(content, enforce_file_format=True)
    return content.getvalue()[:-pixel_bytes]


def _write(
    folder: Path, number: int, model: Study, headers: list[bytes], pixels: bytes, spect: Volume
) -> Pushed:
    study, own = _study(number), folder / f"{number:04d}"
    own.mkdir()
    shared = list(_replacements(model, study))
    slices = []
    for k, header in enumerate(headers):
        name = str(study.uid(_CT, k + 1))
        for old, new in [*shared, (str(model.uid(_CT, k + 1)), name)]:
            header = _replaced(header, old, new)
        path = own / f"{_CT}{k + 1:04d}.dcm"
        path.write_bytes(header + pixels)
        slices.append(path)
    middle = len(slices) // 2
    files = (*slices[:middle], write_nm(own, study, spect), *slices[middle:])
    return Pushed(f"MODALITY{number:04d}", study, files)


def _replacements(model: Study, study: Study) -> Iterator[tuple[str, str]]:
    for name in ("study", _CT, "frame of reference"):
        yield str(model.uid(name)), str(study.uid(name))
    for keyword in ("patient_name", "patient_id", "accession_number"):
        yield getattr(model.identity, keyword), getattr(study.identity, keyword)


def _replaced(content: bytes, old: str, new: str) -> bytes:
    """Only the same length keeps the lengths that stand before values true."""
    if len(old) != len(new) or old.encode() not in content:
        raise ValueError(f"{old!r} cannot be replaced by {new!r} in a slice's header")
    return content.replace(old.encode(), new.encode())
