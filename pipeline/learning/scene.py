"""What is true of a patient, drawn or given: before any image is made.

The truth is that of the patient as the CT caught him; the camera sees him breathe. Activity is drawn anew on
a finer grid for the camera, so that no image is reconstructed on the lattice that it was made on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.averaging import averaged
from pipeline.density import hu_to_density
from pipeline.errors import InputRejected
from pipeline.learning.example import load_volume
from pipeline.simulate import respiration
from pipeline.simulate.acquisition import primary_grid
from pipeline.simulate.camera import SpectCamera
from pipeline.simulate.patient import VirtualPatient, activity_on, drawn_patient, hu_on, training_grid
from pipeline.simulate.respiration import Breathing
from pipeline.simulate.tissue import Label
from pipeline.volume import Grid, Volume

Split = Literal["train", "validation", "test"]
Mask = NDArray[np.bool_]
LEAST_VOI_ML = 0.5


@dataclass(frozen=True, slots=True)
class Patient:
    """Who is drawn. seed: of the anatomy, and of all that follows."""

    patient_id: str
    split: Split
    seed: int
    family: str
    texture: str


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What is true of a patient.

    activity, density: Bq/mL and g/cm3, as the CT shows him, on the network's lattice.
    spect_grid: of the image. seen: Bq/mL, what the camera sees in the mean of its views, on a fine grid.
    attenuating, resting: g/cm3 on that grid, likewise, and as the CT shows him.
    vois: name -> mask on the density's grid. body: the voxels that an example keeps, and a margin.
    facts: for `Example.meta`.
    """

    activity: Volume
    density: Volume
    spect_grid: Grid
    seen: Volume
    attenuating: Volume
    resting: Volume
    vois: Mapping[str, Mask]
    body: Mask
    facts: Mapping[str, Any]


def drawn_scene(patient: Patient, camera: SpectCamera) -> Scene:
    """A virtual patient as the CT and as the camera see him."""
    grid = training_grid()
    who = drawn_patient(grid, patient.seed, patient.family, patient.texture)
    spect_grid = spect_grid_on(grid, camera, np.random.default_rng([patient.seed, 13]))
    fine = primary_grid(camera, spect_grid)
    moving = averaged(Volume(who.moving, grid, "1"), fine).array
    breath = _against_ct(np.random.default_rng([patient.seed, 11]))
    resting = hu_to_density(hu_on(who.anatomy, fine))
    return Scene(
        activity=who.activity,
        density=hu_to_density(who.hu),
        spect_grid=spect_grid,
        seen=respiration.averaged(activity_on(who.anatomy, fine), breath, moving),
        attenuating=respiration.averaged(resting, breath, moving),
        resting=resting,
        vois=_vois(who),
        body=who.mask("body"),
        facts={
            "breathing_shifts_mm": list(breath.shifts_mm),
            "lesions": [[lesion.name, round(lesion.diameter_mm, 1)] for lesion in who.lesions],
        },
    )


def given_scene(folder: Path, patient: Patient, camera: SpectCamera) -> Scene:
    """A hospital's own truth: ``activity.npz``, ``density.npz`` and what is in ``vois`` (see `example`).

    The density says where the CT is; both are brought onto the network's voxels there.

    raises: InputRejected for files that are missing, or cannot be what they should be.
    """
    activity = load_volume(folder / "activity.npz", "Bq/mL")
    density = load_volume(folder / "density.npz", "g/cm3")
    for volume, name in ((activity, "activity"), (density, "density")):
        if float(volume.array.min()) < 0 or not volume.array.any():
            raise InputRejected(
                f"{folder / name}.npz reaches from {volume.array.min():g} to {volume.array.max():g}",
                "Concentrations and densities are not negative, and not zero everywhere",
            )
    grid = _network_lattice(density.grid)
    _require_seen(folder, grid, camera)
    spect_grid = spect_grid_on(grid, camera, np.random.default_rng([patient.seed, 13]))
    fine = primary_grid(camera, spect_grid)
    vois = {
        path.stem: averaged(_inside(load_volume(path, "1")), grid).array >= 0.5
        for path in sorted((folder / "vois").glob("*.npz"))
    }
    vois = {name: mask for name, mask in vois.items() if _large_enough(mask, grid)}
    if patient.split == "test" and not vois:
        raise InputRejected(
            f"{folder / 'vois'} holds no volume of interest of {LEAST_VOI_ML} mL or more",
            "Add masks: this patient is one of those that the network is judged by",
        )
    on_grid, resting = averaged(density, grid), averaged(density, fine)
    breath = _against_ct(np.random.default_rng([patient.seed, 11]))
    return Scene(
        activity=averaged(activity, grid),
        density=on_grid,
        spect_grid=spect_grid,
        seen=respiration.averaged(averaged(activity, fine), breath),
        attenuating=respiration.averaged(resting, breath),
        resting=resting,
        vois=vois,
        body=on_grid.array > 0.2,
        facts={"breathing_shifts_mm": list(breath.shifts_mm), "source": folder.name},
    )


def _require_seen(folder: Path, grid: Grid, camera: SpectCamera) -> None:
    """raises: InputRejected for a CT longer than the camera's field: beyond, there is truth without image."""
    length, field = grid.shape[0] * grid.spacing_mm[0], camera.slices * camera.pixel_mm
    # A voxel more at either end: where the camera's lattice lies is chance.
    if length > field + 2 * camera.pixel_mm:
        raise InputRejected(
            f"{folder / 'density'}.npz is {length:.0f} mm long, and the field of the camera {camera.name!r} "
            f"{field:.0f} mm",
            "Cut activity, density and VOIs to one field of view along z, or make several patients of it",
        )


def _inside(voi: Volume) -> Volume:
    """1 where a mask is not zero, whatever it holds there."""
    return voi.with_array((voi.array != 0).astype(np.float32))


def _against_ct(rng: np.random.Generator) -> Breathing:
    """A breath whose heights are those above the CT's: not the CT moves, but what the camera sees."""
    breath = respiration.breathing(rng)
    return replace(breath, shifts_mm=tuple(height - breath.ct_shift_mm for height in breath.shifts_mm))


def _vois(who: VirtualPatient) -> dict[str, Mask]:
    """The VOIs that metrics are of. The liver's label is healthy liver: lesions are drawn over it."""
    masks = {"healthy liver": who.mask("liver")}
    masks |= {name: who.mask(name) for name in ("left kidney", "right kidney", "spleen")}
    masks |= {f"L{n}": who.labels == Label[f"L{n}"] for n in range(2, 6)}
    masks |= {f"lesion {k + 1}": who.mask(f"lesion {k + 1}") for k in range(len(who.lesions))}
    return {name: mask for name, mask in masks.items() if _large_enough(mask, who.hu.grid)}


def _large_enough(mask: Mask, grid: Grid) -> bool:
    return float(np.count_nonzero(mask)) * grid.voxel_volume_ml >= LEAST_VOI_ML


def spect_grid_on(ct: Grid, camera: SpectCamera, rng: np.random.Generator) -> Grid:
    """The camera's voxels about the middle of the CT; where its lattice lies on the CT's is chance."""
    shift_mm = rng.uniform(-0.5, 0.5, 3) * camera.pixel_mm
    shape, pixel = (camera.slices, camera.bins, camera.bins), camera.pixel_mm
    middle = ct.positions((np.asarray(ct.shape) - 1) / 2) + shift_mm
    x, y, z = (float(v) for v in middle - (np.asarray(shape[::-1]) - 1) / 2 * pixel)
    return Grid(shape, (x, y, z), (pixel,) * 3, frame_of_reference_uid=ct.frame_of_reference_uid)


def _network_lattice(ct: Grid) -> Grid:
    """The network's voxels in the box of a CT."""
    spacing = training_grid().spacing_mm
    shape = np.maximum(np.floor(np.multiply(ct.shape, ct.spacing_mm) / spacing), 1).astype(int)
    corners = ct.positions(list(product(*[(-0.5, n - 0.5) for n in ct.shape])))
    x, y, z = (float(v) for v in corners.min(axis=0) + np.asarray(spacing[::-1]) / 2)
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (x, y, z),
        spacing,
        frame_of_reference_uid=ct.frame_of_reference_uid,
    )
