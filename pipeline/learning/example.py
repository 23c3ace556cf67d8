"""One example: what the network is given for a patient, what is true of it, and where that is judged.

An example is one file, ``NAME.npz``, that `numpy.load` opens without pickle::

    format              "dicomnode example 1"
    patient_id, family, texture    text; seed: integer
    spacing_mm          (z, y, x) mm;   origin_mm: (x, y, z) mm, LPS, of the centre of voxel [0, 0, 0]
    spect               (z, y, x) Bq/mL, the reconstruction, registered and resampled
    density             (z, y, x) g/cm3
    dvk, truth          (z, y, x) mGy/h, DVK's dose rate of the SPECT, and the true one
    mc_on_spect         (z, y, x) mGy/h, Monte Carlo of the SPECT; may be absent
    spect_again, dvk_again         (M, z, y, x), the same patient with other noise; may be absent
    total_mbq           activity of `spect` in the whole field of view, before it was cut to the body
    total_mbq_again     (M,) likewise
    NAME_scale, NAME_unit          of every map: value = stored number · scale, in that unit (UCUM)
    voi_names           (n,) text;   voi_bits: (n, bytes) masks, packed by `numpy.packbits`
    meta                JSON: how the example was made, and how certain its labels are

Maps are stored as float16 multiples of a scale: a relative rounding of at most 2^-11, a fiftieth of what the
labels' own noise is in a voxel.

**A hospital's own truth** is a folder with one folder for each patient::

    FOLDER/PATIENT/activity.npz    Bq/mL   the true activity concentration     to train
    FOLDER/PATIENT/density.npz     g/cm3                                       always
    FOLDER/PATIENT/spect.npz       Bq/mL   a reconstruction                    to evaluate
    FOLDER/PATIENT/truth.npz       mGy/h   the true dose rate                  to evaluate
    FOLDER/PATIENT/vois/NAME.npz   1       not zero inside the volume of interest

Each of these files holds one volume (`save_volume`, `load_volume`)::

    array               (z, y, x) numbers
    unit                text, as above
    spacing_mm          (3,) z, y, x;   origin_mm: (3,) x, y, z, LPS
    direction           (3, 3), optional: rows are the patient's (x, y, z) along the array's z, y, x
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.volume import Grid, Triple, Volume

FORMAT = "dicomnode example 1"
UNITS = {
    "spect": "Bq/mL",
    "density": "g/cm3",
    "dvk": "mGy/h",
    "truth": "mGy/h",
    "mc_on_spect": "mGy/h",
    "spect_again": "Bq/mL",
    "dvk_again": "mGy/h",
}
_OPTIONAL = ("mc_on_spect", "spect_again", "dvk_again")
_LARGEST = 3e4  # stored; float16 ends at 65504, and small values keep their digits down to 2e-9 of this

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Realisation:
    """The same patient imaged again, with other noise. spect: (z, y, x) Bq/mL; dvk: mGy/h of it."""

    spect: Array
    dvk: Array
    total_mbq: float


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A patient as the network sees him, and the truth. All maps (z, y, x) on `grid`.

    spect: Bq/mL. density: g/cm3. dvk, truth, mc_on_spect: mGy/h at the instant of the SPECT.
    vois: name -> mask: "healthy liver", "lesion 1" and so on, "left kidney", "right kidney", "spleen",
        "L2" to "L5".
    total_mbq: activity of the SPECT in the whole field of view; `grid` is only the box of the body.
    realisations: other noise of the same image, for ensemble noise.
    meta: how it was made: counts, camera, shifts, decays followed and rounds, each VOI's label uncertainty.
    """

    patient_id: str
    family: str
    texture: str
    seed: int
    grid: Grid
    spect: Array
    density: Array
    dvk: Array
    truth: Array
    vois: Mapping[str, Mask]
    total_mbq: float
    mc_on_spect: Array | None = None
    realisations: tuple[Realisation, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        maps = {"spect": self.spect, "density": self.density, "dvk": self.dvk, "truth": self.truth}
        if self.mc_on_spect is not None:
            maps["mc_on_spect"] = self.mc_on_spect
        for k, again in enumerate(self.realisations):
            maps |= {f"spect of realisation {k + 1}": again.spect, f"dvk of realisation {k + 1}": again.dvk}
        for name, array in maps.items():
            _require_map(self.patient_id, name, array, self.grid)
        for name, mask in self.vois.items():
            if mask.shape != self.grid.shape or mask.dtype != np.bool_:
                raise InputRejected(
                    f"VOI {name!r} of example {self.patient_id!r} is {mask.dtype} {mask.shape}, "
                    f"not a mask of {self.grid.shape} (z, y, x) voxels",
                    "Generate the example again",
                )
        if not np.isfinite(self.total_mbq) or self.total_mbq < 0:
            raise InputRejected(f"example {self.patient_id!r} holds {self.total_mbq} MBq")

    def volume(self, name: str) -> Volume:
        """One of the maps with its grid and unit. Raises KeyError for any other name."""
        array = {
            "spect": self.spect,
            "density": self.density,
            "dvk": self.dvk,
            "truth": self.truth,
            "mc_on_spect": self.mc_on_spect,
        }[name]
        if array is None:
            raise KeyError(name)
        return Volume(array, self.grid, UNITS[name])


def save(example: Example, path: Path) -> None:
    """Write an example; the file appears only when it is complete."""
    grid = example.grid
    if not np.allclose(grid.direction, Grid((1, 1, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).direction):
        raise InputRejected(
            f"example {example.patient_id!r} lies on the direction cosines {grid.direction}",
            "Resample it onto an axial grid",
        )
    maps: dict[str, Array] = {
        "spect": example.spect,
        "density": example.density,
        "dvk": example.dvk,
        "truth": example.truth,
    }
    if example.mc_on_spect is not None:
        maps["mc_on_spect"] = example.mc_on_spect
    if example.realisations:
        maps["spect_again"] = np.stack([again.spect for again in example.realisations])
        maps["dvk_again"] = np.stack([again.dvk for again in example.realisations])
    content: dict[str, Any] = {
        "format": FORMAT,
        "patient_id": example.patient_id,
        "family": example.family,
        "texture": example.texture,
        "seed": example.seed,
        "spacing_mm": np.asarray(grid.spacing_mm),
        "origin_mm": np.asarray(grid.origin_mm),
        "total_mbq": example.total_mbq,
        "total_mbq_again": np.asarray([again.total_mbq for again in example.realisations]),
        "voi_names": np.asarray(list(example.vois), dtype=np.str_),
        "voi_bits": _packed(list(example.vois.values()), grid),
        "meta": json.dumps(dict(example.meta)),
    }
    for name, array in maps.items():
        content[name], content[f"{name}_scale"] = _compact(array)
        content[f"{name}_unit"] = UNITS[name]
    _write(path, content)


def load(path: Path) -> Example:
    """Read an example.

    raises: InputRejected for a file that is not one, is cut short, or whose maps do not fit each other.
    """
    content = _read(path)
    try:
        if str(content["format"]) != FORMAT:
            raise InputRejected(
                f"{path} holds {str(content['format'])!r}, not {FORMAT!r}", "Generate it again"
            )
        return _example(path, content)
    except KeyError as error:
        raise InputRejected(
            f"{path} has no {error.args[0]!r}", "It is no example of this software: generate it again"
        ) from error


def described(path: Path) -> dict[str, Any]:
    """What an example says of itself, without its maps: family, texture, spacing_mm (z, y, x), and `meta`.

    raises: InputRejected as `load`.
    """
    content = _read(path, ("format", "family", "texture", "spacing_mm", "meta"))
    if len(content) < 5 or str(content["format"]) != FORMAT:
        raise InputRejected(f"{path} is no {FORMAT!r}", "Generate it again")
    return {
        **json.loads(str(content["meta"])),
        "family": str(content["family"]),
        "texture": str(content["texture"]),
        "spacing_mm": _triple(content["spacing_mm"]),
    }


def _example(path: Path, content: Mapping[str, Any]) -> Example:
    maps = {name: _map(path, content, name) for name in UNITS if name in content or name not in _OPTIONAL}
    shape = maps["spect"].shape
    if len(shape) != 3:
        raise InputRejected(f"the spect in {path} has the shape {shape}, not (z, y, x)", "Generate it again")
    grid = Grid((shape[0], shape[1], shape[2]), _triple(content["origin_mm"]), _triple(content["spacing_mm"]))
    names = [str(name) for name in content["voi_names"]]
    again = zip(
        maps.get("spect_again", ()), maps.get("dvk_again", ()), content["total_mbq_again"], strict=True
    )
    return Example(
        patient_id=str(content["patient_id"]),
        family=str(content["family"]),
        texture=str(content["texture"]),
        seed=int(content["seed"]),
        grid=grid,
        spect=maps["spect"],
        density=maps["density"],
        dvk=maps["dvk"],
        truth=maps["truth"],
        vois=dict(zip(names, _unpacked(path, content["voi_bits"], len(names), grid), strict=True)),
        total_mbq=float(content["total_mbq"]),
        mc_on_spect=maps.get("mc_on_spect"),
        realisations=tuple(Realisation(spect, dvk, float(total)) for spect, dvk, total in again),
        meta=json.loads(str(content["meta"])),
    )


def save_volume(path: Path, volume: Volume) -> None:
    """Write one volume as NPZ with unit, spacing, origin and direction."""
    grid = volume.grid
    _write(
        path,
        {
            "array": volume.array,
            "unit": volume.unit,
            "spacing_mm": np.asarray(grid.spacing_mm),
            "origin_mm": np.asarray(grid.origin_mm),
            "direction": np.asarray(grid.direction),
        },
    )


def load_volume(path: Path, unit: str) -> Volume:
    """Read one volume of NPZ. unit: what it must be in.

    raises: InputRejected for a file that is no such volume, another unit, or numbers that are not finite.
    """
    content = _read(path)
    for key in ("array", "unit", "spacing_mm", "origin_mm"):
        if key not in content:
            raise InputRejected(
                f"{path} has no {key!r}", "A volume file holds array, unit, spacing_mm and origin_mm"
            )
    if str(content["unit"]) != unit:
        raise InputRejected(f"{path} is in {str(content['unit'])!r}", f"Convert it to {unit}")
    array = np.ascontiguousarray(content["array"], dtype=np.float32)
    if array.ndim != 3:
        raise InputRejected(f"the array in {path} has the shape {array.shape}", "It must be (z, y, x)")
    if not np.isfinite(array).all():
        raise InputRejected(
            f"{path} holds {int(np.count_nonzero(~np.isfinite(array)))} voxels that are not finite numbers",
            "Export it again",
        )
    axes = content.get("direction", np.eye(3)[::-1])
    direction = (_triple(axes[0]), _triple(axes[1]), _triple(axes[2]))
    shape = (array.shape[0], array.shape[1], array.shape[2])
    return Volume(
        array, Grid(shape, _triple(content["origin_mm"]), _triple(content["spacing_mm"]), direction), unit
    )


def _require_map(patient_id: str, name: str, array: Array, grid: Grid) -> None:
    if array.shape != grid.shape:
        raise InputRejected(
            f"the {name} of example {patient_id!r} has {array.shape} (z, y, x) voxels, its grid {grid.shape}",
            "All maps of an example must lie on one grid",
        )
    # min() of an array with a NaN is NaN: no temporary array.
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise InputRejected(
            f"the {name} of example {patient_id!r} reaches from {low:g} to {high:g}",
            "Concentrations, densities and dose rates are finite and not negative",
        )


def _compact(array: Array) -> tuple[NDArray[np.float16], float]:
    highest = float(array.max())
    scale = highest / _LARGEST if highest > 0 else 1.0
    return (array / np.float32(scale)).astype(np.float16), scale


def _map(path: Path, content: Mapping[str, Any], name: str) -> Array:
    unit = str(content[f"{name}_unit"])
    if unit != UNITS[name]:
        raise InputRejected(f"the {name} in {path} is in {unit!r}, not {UNITS[name]}", "Generate it again")
    return np.asarray(content[name], dtype=np.float32) * np.float32(content[f"{name}_scale"])


def _packed(masks: list[Mask], grid: Grid) -> NDArray[np.uint8]:
    size = (int(np.prod(grid.shape)) + 7) // 8
    packed = np.zeros((len(masks), size), np.uint8)
    for row, mask in zip(packed, masks, strict=True):
        row[:] = np.packbits(mask, axis=None)
    return packed


def _unpacked(path: Path, bits: NDArray[np.uint8], count: int, grid: Grid) -> list[Mask]:
    voxels = int(np.prod(grid.shape))
    if bits.shape != (count, (voxels + 7) // 8):
        raise InputRejected(
            f"the masks in {path} have the shape {bits.shape}: not {count} VOIs of {grid.shape}",
            "Generate it again",
        )
    return [np.unpackbits(row, count=voxels).astype(np.bool_).reshape(grid.shape) for row in bits]


def _triple(values: Any) -> Triple:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _read(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """All arrays of a file, or those of these names that it has."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if names is None or key in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputRejected(f"{path} cannot be read: {error}", "Delete it and make it again") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Beside the file, then in its place: nobody ever reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
