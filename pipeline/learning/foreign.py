"""A folder of somebody else's truth, read as examples: `dicomnode evaluate --data FOLDER`.

Two kinds of thing may lie in it, and both are read::

    FOLDER/NAME.npz                    an example of this software (`pipeline.learning.example`)
    FOLDER/PATIENT/truth.*             mGy/h   the true dose rate, at the instant of the SPECT
    FOLDER/PATIENT/spect.*             Bq/mL   the reconstruction, registered
    FOLDER/PATIENT/density.*           g/cm3
    FOLDER/PATIENT/vois/NAME.*         not zero inside the volume of interest
    FOLDER/PATIENT/mc_on_spect.*       mGy/h   optional: Monte Carlo of the SPECT
    FOLDER/PATIENT/dvk.*               mGy/h   optional: else computed by the node's engine
    FOLDER/data.toml                   below; also FOLDER/PATIENT/data.toml, which goes before

``.*`` is ``.npz`` (one volume: `example.load_volume`), ``.nii`` or ``.nii.gz``. All volumes of a patient lie
on one grid: same shape, voxel size and place, whatever the order and sense of their axes. NPZ says its unit;
NIfTI has no field for it, so data.toml must::

    nuclide = "Lu-177"                 # optional
    total_mbq = 5123.0                 # optional: where the SPECT's field is larger than these volumes
    [units]
    truth = "mGy/h"
    spect = "Bq/mL"
    density = "g/cm3"

NIfTI positions are RAS and become LPS; voxels are then laid in the order (z, y, x), feet to head, front to
back, the patient's right to his left, by exchanging and reversing axes. An oblique grid stays oblique.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decay import nuclide as nuclide_named
from pipeline.dose_rate import BQ_PER_MBQ, DoseRequest
from pipeline.errors import InputRejected
from pipeline.learning import nifti
from pipeline.learning.example import Example, load, load_volume
from pipeline.volume import Grid, Triple, Volume

UNITS = {"truth": "mGy/h", "spect": "Bq/mL", "density": "g/cm3", "mc_on_spect": "mGy/h", "dvk": "mGy/h"}
REQUIRED = ("truth", "spect", "density")
ENDINGS = (".npz", ".nii.gz", ".nii")
SETTINGS_FILE = "data.toml"
KNOWN_SETTINGS = ("nuclide", "total_mbq", "units")

SAME_PLACE_MM = 0.05
"""NIfTI positions are single precision, and some writers round them."""

PLAUSIBLE_DENSITY = (0.2, 25.0)
"""g/cm³: the highest density of a volume lies between these, or its unit is another."""

PLAUSIBLE_ENERGY = (0.2, 5.0)
"""Energy of the truth over that of DVK; beyond, the unit of one is not what it says."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Source:
    """One patient that a folder holds. path: an example, or the folder of his volumes."""

    name: str
    path: Path

    @property
    def is_example(self) -> bool:
        """Whether it is one file of this software."""
        return self.path.suffix == ".npz"


def sources(folder: Path) -> list[Source]:
    """The patients of a folder, in the order of their names.

    raises: InputRejected where the folder is missing, holds none, or a patient lacks a required file.
    """
    if not folder.is_dir():
        raise InputRejected(f"there is no folder {folder}", "Name a folder of patients with --data")
    examples = [Source(path.stem, path) for path in folder.glob("*.npz") if not path.name.startswith(".")]
    patients = [Source(path.name, path) for path in folder.iterdir() if path.is_dir() and _has_volumes(path)]
    found = sorted([*examples, *patients], key=lambda source: source.name)
    if not found:
        raise InputRejected(
            f"{folder} holds no patient",
            "It must hold examples (NAME.npz) or folders with truth, spect, density and vois as NPZ or NIfTI",
        )
    for source in patients:
        for name in REQUIRED:
            _required(source.path, name)
        _voi_files(source.path)
    return found


def read(
    source: Source, nuclide: str = "Lu-177", device: str = "cpu", kernel_cache: Path | None = None
) -> Example:
    """One patient. nuclide: where data.toml names none. device, kernel_cache: of DVK.

    raises: InputRejected, naming the file, for one that is missing or cannot be read, for another unit or
        grid, for numbers that are not finite or negative, and for a truth that cannot be of that SPECT.
    """
    if source.is_example:
        return load(source.path)
    settings = _settings(source.path)
    files = {name: _required(source.path, name) for name in REQUIRED}
    files |= {name: path for name in UNITS if (path := _file(source.path, name)) is not None}
    volumes = {name: _volume(path, name, settings) for name, path in files.items()}
    _require_one_grid(files, volumes)
    _require_plausible(files, volumes)
    vois = _vois(source.path, files["truth"], volumes["truth"].grid)
    given = nuclide_named(str(settings.get("nuclide", nuclide)))
    if "dvk" not in volumes:
        request = DoseRequest(
            volumes["spect"], volumes["density"], given, device=device, kernel_cache=kernel_cache
        )
        volumes["dvk"] = _dvk(request, files["spect"])
    _require_same_energy(files["truth"], volumes)
    on_spect = volumes.get("mc_on_spect")
    return Example(
        patient_id=source.name,
        family=source.path.parent.name,
        texture="",
        seed=0,
        grid=volumes["truth"].grid,
        spect=volumes["spect"].array,
        density=volumes["density"].array,
        dvk=volumes["dvk"].array,
        truth=volumes["truth"].array,
        vois=vois,
        total_mbq=_total_mbq(source.path, settings, volumes["spect"]),
        mc_on_spect=None if on_spect is None else on_spect.array,
        meta={"nuclide": given.name, "files": {name: path.name for name, path in files.items()}},
    )


def read_all(
    found: Sequence[Source], nuclide: str = "Lu-177", device: str = "cpu", kernel_cache: Path | None = None
) -> Iterator[Example]:
    """One patient after the other; only one is in memory."""
    for source in found:
        yield read(source, nuclide, device, kernel_cache)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def _has_volumes(folder: Path) -> bool:
    return any(_file(folder, name) is not None for name in UNITS)


def _file(folder: Path, name: str) -> Path | None:
    found = [path for ending in ENDINGS if (path := folder / f"{name}{ending}").exists()]
    if len(found) > 1:
        raise InputRejected(
            f"{folder} holds {name} more than once: {', '.join(path.name for path in found)}", "Keep one"
        )
    return found[0] if found else None


def _required(folder: Path, name: str) -> Path:
    path = _file(folder, name)
    if path is None:
        raise InputRejected(
            f"{folder} has no {name}{ENDINGS[0]} and no {name}{ENDINGS[1]}",
            f"Add the patient's {name} in {UNITS[name]}, or remove that folder",
        )
    return path


def _voi_files(folder: Path) -> dict[str, Path]:
    found = {
        path.name.removesuffix(ending): path
        for ending in ENDINGS
        for path in sorted((folder / "vois").glob(f"*{ending}"))
    }
    if not found:
        raise InputRejected(
            f"{folder / 'vois'} holds no volume of interest",
            f"Add masks, such as {folder / 'vois' / 'left kidney.nii.gz'}",
        )
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """Of the data set, then of the patient."""
    merged: dict[str, Any] = {}
    for path in (folder.parent / SETTINGS_FILE, folder / SETTINGS_FILE):
        if not path.exists():
            continue
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputRejected(f"{path} cannot be read: {error}", "Correct it") from error
        unknown = [key for key in content if key not in KNOWN_SETTINGS]
        if unknown or not isinstance(content.get("units", {}), Mapping):
            raise InputRejected(
                f"{path} has no setting {unknown[0]!r}" if unknown else f"[units] of {path} is no table",
                f"It may hold {', '.join(KNOWN_SETTINGS)}",
            )
        merged |= content | {"units": {**merged.get("units", {}), **content.get("units", {})}}
    return merged


def _total_mbq(folder: Path, settings: Mapping[str, Any], spect: Volume) -> float:
    inside = spect.integral / BQ_PER_MBQ
    given = settings.get("total_mbq", inside)
    # The volumes hold a part of the field: more than that in it cannot be.
    if not isinstance(given, int | float) or not given >= 0.999 * inside:
        raise InputRejected(
            f"total_mbq of {folder / SETTINGS_FILE} is {given}, and the SPECT alone holds {inside:.5g} MBq",
            "Give the activity of the SPECT's whole field of view in MBq, or leave it out",
        )
    return float(given)


# ── volumes ──────────────────────────────────────────────────────────────────────────────────────


def _volume(path: Path, name: str, settings: Mapping[str, Any]) -> Volume:
    unit = UNITS[name]
    if path.suffix == ".npz":
        volume = load_volume(path, unit)
    else:
        _require_unit(path, name, settings.get("units", {}))
        volume = nifti.read(path, unit)
    _require_values(path, volume)
    return nifti.laid_axial(volume)


def _require_unit(path: Path, name: str, units: Mapping[str, Any]) -> None:
    unit = units.get(name)
    if unit is None:
        where = path.parent.parent / SETTINGS_FILE
        raise InputRejected(
            f"nothing says the unit of {path}",
            f'Where it is so, write {name} = "{UNITS[name]}" under [units] of {where}',
        )
    if unit != UNITS[name]:
        raise InputRejected(f"{path} is in {unit!r}", f"Convert it to {UNITS[name]}")


def _vois(folder: Path, truth: Path, grid: Grid) -> dict[str, Mask]:
    vois = {}
    for name, path in _voi_files(folder).items():
        volume = nifti.laid_axial(load_volume(path, "1") if path.suffix == ".npz" else nifti.read(path, "1"))
        _require_values(path, volume)
        _require_grid(path, volume.grid, truth, grid)
        vois[name] = volume.array != 0
        if not vois[name].any():
            raise InputRejected(f"{path} is zero everywhere", "Remove that volume of interest, or draw it")
    return vois


def _dvk(request: DoseRequest, spect: Path) -> Volume:
    from pipeline.dvk import dvk_dose_rate

    try:
        return dvk_dose_rate(request).volume
    except InputRejected as error:
        raise InputRejected(f"DVK of {spect}: {error.reason}", error.remedy) from error


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def _require_values(path: Path, volume: Volume) -> None:
    # min() of an array with a NaN is NaN: no temporary array for the common case.
    low, high = float(volume.array.min()), float(volume.array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise InputRejected(f"{path} holds {count} voxels that are not finite numbers", "Export it again")
    if low < 0:
        count = int(np.count_nonzero(volume.array < 0))
        remedy = "Set noise below zero to zero; CT numbers must be converted to g/cm3"
        raise InputRejected(f"{path} is negative in {count} voxels (lowest {low:.4g} {volume.unit})", remedy)


def _require_one_grid(files: Mapping[str, Path], volumes: Mapping[str, Volume]) -> None:
    for name, volume in volumes.items():
        _require_grid(files[name], volume.grid, files["truth"], volumes["truth"].grid)


def _require_grid(path: Path, grid: Grid, truth: Path, expected: Grid) -> None:
    if grid.shape != expected.shape:
        raise InputRejected(
            f"{path} has {grid.shape} (z, y, x) voxels, {truth.name} has {expected.shape}",
            f"Resample it onto the grid of {truth.name}",
        )
    if not grid.same_as(expected, SAME_PLACE_MM):
        raise InputRejected(
            f"{path} lies elsewhere than {truth.name}: first voxel at {_mm(grid.origin_mm)} and "
            f"{_mm(expected.origin_mm)} mm (x, y, z), spacing {_mm(grid.spacing_mm)} and "
            f"{_mm(expected.spacing_mm)} mm (z, y, x)",
            f"Resample it onto the grid of {truth.name}",
        )


def _require_plausible(files: Mapping[str, Path], volumes: Mapping[str, Volume]) -> None:
    for name in ("truth", "spect"):
        if not volumes[name].array.any():
            raise InputRejected(
                f"{files[name]} is zero everywhere", "Export it again, or remove that patient"
            )
    low, high = PLAUSIBLE_DENSITY
    highest = float(volumes["density"].array.max())
    if not low <= highest <= high:
        raise InputRejected(
            f"the highest density in {files['density']} is {highest:.4g} g/cm3", "Convert it to g/cm3"
        )


def _require_same_energy(truth: Path, volumes: Mapping[str, Volume]) -> None:
    density = volumes["density"].array
    true, dvk = (
        float(np.einsum("zyx,zyx->", volumes[name].array, density, dtype=np.float64))
        for name in ("truth", "dvk")
    )
    low, high = PLAUSIBLE_ENERGY
    if not low * dvk <= true <= high * dvk:
        raise InputRejected(
            f"the energy rate of {truth} is {true / dvk if dvk > 0 else np.inf:.3g} times that of DVK",
            "Check the units of truth and spect, the voxel size, the nuclide, and that both are of one time",
        )


def _mm(values: Triple) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
