"""The body in a CT: the largest connected region above −400 HU, without the table, holes filled.

Found on a coarser lattice of some 4 mm in plane, then drawn by the exact threshold within one of its voxels:

1. What tissue encloses in a transverse slice is filled: lungs behind the thinnest chest wall, bowel gas.
   A table's hollow shell is closed too: an enclosed space is the table's if it runs the whole length of the
   scan, is lighter than lung, and has walls thinner than some 10 mm round more than half of it. All three.
   Emphysema, a gas-filled bowel and a child's chest have one or two of them.
2. An opening takes off what is thinner than some 10 mm: the table's shell, tubes, sheets, but also fingers.
3. The region with the most tissue is the body. Others of size are `Body.apart`: arms, or legs.

A table that touches the skin leaves a rim of a coarse voxel at most. Air that an arm encloses against the
trunk within one slice is filled, for lungs of which the scan cuts the airway must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.volume import Volume

BODY_HU = -400.0

APART_FROM = 0.02
"""Part of the body's volume from which on another region of tissue is one of size."""

PLAUSIBLE_FROM = 0.5
"""Least part that the body must be of all that looks like tissue or lung."""

_COARSE_MM = 4.0
# Foam and air lie below, lungs above unless emphysema is severe.
_LIGHTER_THAN_LUNG_HU = -880.0
_LUNG_HU = (-850.0, -500.0)
_WHOLE_LENGTH = 0.9
_THICK_WALLED = 0.5
# One coarse voxel in plane: a table's sheets lie along z, so slices need no thickness across.
_DISC = ndimage.generate_binary_structure(2, 1)[None]
_CROSS = ndimage.generate_binary_structure(3, 1)

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """mask: (z, y, x) on the CT's grid, the body. apart: likewise, other tissue of size; None for none."""

    mask: Mask
    apart: Mask | None


def body_mask(hu: Volume) -> Mask:
    """(z, y, x) on the CT's grid: whether a voxel belongs to the body. As `find_body`."""
    return find_body(hu).mask


def find_body(hu: Volume) -> Body:
    """The body, and what tissue of size lies apart from it.

    hu: z must be the axis across transverse slices. raises: InputRejected when there is no body, or when
    it is implausibly small for the tissue and lung that the CT shows.
    """
    tissue = hu.array > BODY_HU
    factors = [max(1, round(_COARSE_MM / spacing)) for spacing in hu.grid.spacing_mm[1:]]
    coarse = _mostly(tissue, factors)
    sampled = _sampled(hu.array, factors)
    thick = ndimage.binary_opening(coarse, _DISC)
    solid, hollow = _filled(coarse, thick, sampled)
    # Solid and thick: nothing is lost of a filled body, and all of an empty shell.
    labels, _ = ndimage.label(ndimage.binary_opening(solid, _DISC))
    core = _largest(labels, coarse)
    near = ndimage.binary_dilation(core, _CROSS)
    apart = _of_size(labels, thick & ~near, APART_FROM * int(core.sum()))
    voxel_ml = hu.grid.voxel_volume_ml * factors[0] * factors[1]
    _require_plausible(core, apart, (_lung_like(sampled) | hollow) & ~near, voxel_ml)
    body = _drawn(tissue, core, near, factors)
    if not apart.any():
        return Body(body, None)
    # Dilated in plane alone: beyond the last slice of an arm lies no arm.
    others = _refined(ndimage.binary_dilation(apart, _DISC), factors, tissue.shape)
    return Body(body, tissue & others & ~body)


# ── on the coarse lattice ────────────────────────────────────────────────────────────────────────


def _mostly(mask: Mask, factors: list[int]) -> Mask:
    """Blocks of (1, *factors) of which at least half is set; the rest at the far edges counts as unset."""
    fy, fx = factors
    z, y, x = mask.shape
    counts = np.zeros((z, -(-y // fy), -(-x // fx)), np.uint16)
    for of_y in range(fy):
        for of_x in range(fx):
            part = mask[:, of_y::fy, of_x::fx]
            counts[:, : part.shape[1], : part.shape[2]] += part
    return np.asarray(2 * counts >= fy * fx)


def _sampled(array: NDArray[np.float32], factors: list[int]) -> NDArray[np.float32]:
    """The value near the middle of each block."""
    middle = [
        np.minimum(np.arange(0, n, f) + f // 2, n - 1) for n, f in zip(array.shape[1:], factors, strict=True)
    ]
    return array[:, middle[0][:, None], middle[1]]


def _filled(tissue: Mask, thick: Mask, sampled: NDArray[np.float32]) -> tuple[Mask, Mask]:
    """Tissue with all that it encloses in a slice, but the table's inside; and that inside."""
    solid, hollow = tissue.copy(), np.zeros_like(tissue)
    for plane in solid:
        _fill_holes(plane)
    labels, _ = ndimage.label(solid & ~tissue)
    walls = tissue & ndimage.binary_dilation(thick, _DISC)
    for box, hole in _long_holes(labels):
        if np.median(sampled[box][hole]) < _LIGHTER_THAN_LUNG_HU:
            border = ndimage.binary_dilation(hole, _DISC) & tissue[box]
            if walls[box][border].mean() < _THICK_WALLED:
                hollow[box] |= hole
    return solid & ~hollow, hollow


def _long_holes(labels: Labels) -> Iterator[tuple[tuple[slice, ...], Mask]]:
    """(box, mask in it) of each region along the whole scan; the box one voxel wider within the slice."""
    nz, ny, nx = labels.shape
    for number, (z, y, x) in enumerate(ndimage.find_objects(labels), start=1):
        if z.stop - z.start >= _WHOLE_LENGTH * nz:
            wider = [slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in ((y, ny), (x, nx))]
            yield (z, *wider), labels[z, wider[0], wider[1]] == number


def _largest(labels: Labels, tissue: Mask) -> Mask:
    """The region with the most tissue: a table, if its inside was filled, has less than a child."""
    amounts = np.bincount(labels[tissue], minlength=2)
    amounts[0] = 0
    if not amounts.any():
        raise InputRejected(
            f"the CT shows no body: nothing thicker than {2 * _COARSE_MM:g} mm lies above {BODY_HU:g} HU",
            "Check the rescale intercept of the CT and that the series is one of a patient",
        )
    return np.asarray(labels == amounts.argmax())


def _of_size(labels: Labels, tissue: Mask, voxels: float) -> Mask:
    """The regions with at least so much thick tissue: the shell of a table has none."""
    amounts = np.bincount(labels[tissue], minlength=int(labels.max()) + 1)
    amounts[0] = 0
    return np.asarray((amounts >= voxels)[labels] & tissue) if amounts.any() else np.zeros_like(tissue)


def _lung_like(sampled: NDArray[np.float32]) -> Mask:
    return np.asarray(
        ndimage.binary_opening((sampled > _LUNG_HU[0]) & (sampled < _LUNG_HU[1]), _DISC), dtype=bool
    )


def _require_plausible(core: Mask, apart: Mask, light: Mask, voxel_ml: float) -> None:
    """Lungs that fell out of the body, or a part of the patient taken for the whole, must not pass.

    light: outside the body, as light as lung, or taken for the inside of a table: of a child's size, at most.
    """
    body_ml, apart_ml, light_ml = (float(mask.sum()) * voxel_ml for mask in (core, apart, light))
    share = body_ml / (body_ml + apart_ml + light_ml)
    if share < PLAUSIBLE_FROM:
        raise InputRejected(
            f"the body found in the CT, {body_ml:.0f} mL, is implausibly small: beside it lie "
            f"{apart_ml:.0f} mL of other tissue and {light_ml:.0f} mL as light as lung or hollow: "
            f"it is {share:.0%} of all that ({PLAUSIBLE_FROM:.0%} at least is expected)",
            "Check that the CT's field of view holds the whole trunk, and look at the CT for objects beside "
            "the patient; reconstruct the CT with a wider field, or send another CT series",
        )


# ── on the CT's grid ─────────────────────────────────────────────────────────────────────────────


def _drawn(tissue: Mask, core: Mask, near: Mask, factors: list[int]) -> Mask:
    """The body by the exact threshold in the rim of one coarse voxel about the core's surface."""
    fy, fx = factors
    _, y, x = crop_box(near)
    fine = slice(y.start * fy, y.stop * fy), slice(x.start * fx, x.stop * fx)
    body = np.zeros_like(tissue)
    part, of_tissue = body[:, *fine], tissue[:, *fine]
    # Two voxels deep all is body: a chest wall with a gap of a pixel must not lose the lung behind it.
    near, inside = near[:, y, x], ndimage.binary_erosion(core, _DISC, iterations=2)[:, y, x]
    for plane, here, close, within in zip(part, of_tissue, near, inside, strict=True):
        plane[:] = _refined(close, factors, here.shape)
        plane &= here
        plane |= _refined(within, factors, here.shape)
        _fill_holes(plane)
    return body


def _refined(mask: Mask, factors: list[int], shape: tuple[int, ...]) -> Mask:
    fine = mask.repeat(factors[0], axis=-2).repeat(factors[1], axis=-1)
    return np.asarray(fine[..., : shape[-2], : shape[-1]])


def _fill_holes(plane: Mask) -> None:
    """Fill, in place, the background that does not reach the edge of the slice."""
    labels, count = ndimage.label(~plane)
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    plane |= ~outside[labels]
