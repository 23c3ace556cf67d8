"""The runs: geometry as voxels of PENELOPE, where the decays are, what is tallied, how many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.reference import torso
from tests.reference.slabs import LAYER_MM, SLABS, WIDTH_MM, Slabs

VOXEL_NUCLIDES = ("Lu-177", "Y-90", "I-131")
Particle = Literal["electron", "gamma"]


@dataclass(frozen=True)
class Case:
    """One simulation.

    voxels: text of the ASCII voxel file, density factors 1 (PenRed's electrons do not heed them). media:
    (name, density g/cm3) by PENELOPE's material number less one. box_cm: centre and size, (x, y, z) each,
    of the source; source_material: only in voxels of this material (0: all of the box). tally: "depth",
    layers of 1 mm along z, or "material". histories: of a batch."""

    name: str
    nuclide: str
    voxels: str
    media: tuple[tuple[str, float], ...]
    box_cm: tuple[tuple[float, float, float], tuple[float, float, float]]
    source_material: int
    tally: Literal["depth", "material"]
    depth_cm: float
    bins: int
    electrons: int
    photons: int

    def histories(self, particle: Particle) -> int:
        return self.electrons if particle == "electron" else self.photons


def cases() -> Iterator[Case]:
    """All runs, the ones that matter most first."""
    for slabs in SLABS:
        yield _slab_case(slabs)
    for source in torso.SOURCES:
        yield _torso_case(source)
    for nuclide in VOXEL_NUCLIDES:
        yield _voxel_case(nuclide)


def _slab_case(slabs: Slabs) -> Case:
    by_voxel = [
        slabs.material(layer) for layer in range(0, slabs.layers, 10)
    ]  # of 10 mm: nothing changes within
    media = tuple(dict.fromkeys(by_voxel))
    rows = [f"{media.index(medium) + 1} 1.0" for medium in by_voxel]
    first, end = slabs.source_layers
    width = WIDTH_MM / 10
    thickness = (end - first) * LAYER_MM / 10
    yttrium = slabs.nuclide == "Y-90"
    return Case(
        name=f"slabs/{slabs.name}",
        nuclide=slabs.nuclide,
        voxels="\n".join([f"1 1 {len(rows)}", f"{width} {width} 1.0", *rows]) + "\n",
        media=media,
        box_cm=(
            (width / 2, width / 2, (first + end) / 2 * LAYER_MM / 10),
            (width, width, thickness),
        ),
        source_material=0,
        tally="depth",
        depth_cm=slabs.layers * LAYER_MM / 10,
        bins=slabs.layers,
        electrons=500_000 if yttrium else 2_000_000,
        photons=0 if yttrium else 400_000,
    )


def _torso_case(source: str) -> Case:
    label = torso.labels()
    organ = torso.NAMES.index(source)
    rows = [f"{index + 1} 1.0" for index in label.ravel()]
    nz, ny, nx = label.shape
    size = torso.VOXEL_CM
    # The box around the organ; PENELOPE keeps the points in its material.
    low, high = (
        np.array([edge(where) + offset for where in np.nonzero(label == organ)])
        for edge, offset in ((np.min, 0), (np.max, 1))
    )
    centre, extent = (low + high) / 2 * size, (high - low) * size
    return Case(
        name=f"torso/{source}",
        nuclide="Lu-177",
        voxels="\n".join([f"{nx} {ny} {nz}", f"{size} {size} {size}", *rows]) + "\n",
        media=tuple((medium, density) for _, medium, density in torso.ORGANS),
        box_cm=(
            (float(centre[2]), float(centre[1]), float(centre[0])),
            (float(extent[2]), float(extent[1]), float(extent[0])),
        ),
        source_material=organ + 1,
        tally="material",
        depth_cm=0.0,
        bins=len(torso.ORGANS),
        electrons=200_000,
        photons=1_000_000,
    )


def _voxel_case(nuclide: str) -> Case:
    """A source of 3 mm in the midst of one medium, layers of 3 mm: the face neighbours come out with the
    rows."""
    side = 21
    rows = ["1 1.0"] * side**3
    middle = side * 0.3 / 2
    return Case(
        name=f"voxel/soft_{nuclide}",
        nuclide=nuclide,
        voxels="\n".join([f"{side} {side} {side}", "0.3 0.3 0.3", *rows]) + "\n",
        media=(("icru_soft_tissue", 1.04),),
        box_cm=((middle, middle, middle), (0.3, 0.3, 0.3)),
        source_material=0,
        tally="depth",
        depth_cm=side * 0.3,
        bins=side,
        electrons=400_000 if nuclide == "Y-90" else 2_000_000,
        photons=0,
    )
