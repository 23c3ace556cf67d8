"""The body in a CT: the largest connected region above −400 HU, without the table, holes filled.

The table is taken off by an opening of some 4 mm on a coarser lattice (about 4 mm in plane): what is
thinner than 8 mm, as the shell of a table, disappears, and what remains connected is the body. The mask
is then the exact threshold within one coarse voxel of it. A table that touches the skin therefore leaves
at most a rim of that width; a blanket or a tube that lies on the skin likewise.

Holes are filled in each transverse slice, so that lungs, trachea and bowel gas belong to the body even
where the scan cuts an airway. Air that an arm encloses against the trunk within one slice is filled too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import InputRejected
from pipeline.volume import Volume

BODY_HU = -400.0
_OPENING_MM = 4.0
Mask = NDArray[np.bool_]


def body_mask(hu: Volume) -> Mask:
    """(z, y, x) on the CT's grid: whether a voxel belongs to the body.

    hu: z must be the axis across transverse slices. raises: InputRejected when there is no body.
    """
    tissue = hu.array > BODY_HU
    factors = [max(1, round(_OPENING_MM / spacing)) for spacing in hu.grid.spacing_mm[1:]]
    core = _largest(ndimage.binary_opening(_mostly(tissue, factors), _disc()))
    if core is None:
        raise InputRejected(
            f"the CT shows no body: nothing thicker than {2 * _OPENING_MM:g} mm lies above {BODY_HU:g} HU",
            "Check the rescale intercept of the CT and that the series is one of a patient",
        )
    near = ndimage.binary_dilation(core, ndimage.generate_binary_structure(3, 1))
    body = tissue & _refined(near, factors, tissue.shape)
    for plane in body:
        _fill_holes(plane)
    return body


def _disc() -> Mask:
    """One coarse voxel in plane: thin sheets lie along the table, so slices need no thickness across."""
    return np.asarray(ndimage.generate_binary_structure(2, 1)[None])


def _mostly(mask: Mask, factors: list[int]) -> Mask:
    """Blocks of (1, *factors) of which at least half is set; the rest at the far edges counts as unset."""
    fy, fx = factors
    padding = [(0, 0)] + [(0, -n % f) for n, f in zip(mask.shape[1:], factors, strict=True)]
    padded = np.pad(mask, padding)
    z, y, x = padded.shape
    rows = padded.reshape(z, y // fy, fy, x).sum(axis=2, dtype=np.uint8)
    counts = rows.reshape(z, y // fy, x // fx, fx).sum(axis=3, dtype=np.uint16)
    return np.asarray(2 * counts >= fy * fx)


def _refined(mask: Mask, factors: list[int], shape: tuple[int, ...]) -> Mask:
    fine = mask.repeat(factors[0], axis=1).repeat(factors[1], axis=2)
    return np.asarray(fine[:, : shape[1], : shape[2]])


def _largest(mask: Mask) -> Mask | None:
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _fill_holes(plane: Mask) -> None:
    """Fill, in place, the background that does not reach the edge of the slice."""
    labels, count = ndimage.label(~plane)
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    plane |= ~outside[labels]
