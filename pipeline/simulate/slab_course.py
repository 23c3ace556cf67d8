"""Where the slabs of each view lie, and how much the response blurs from one to the next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.compiled import F
from pipeline.simulate.camera import FWHM_PER_SIGMA, SpectCamera
from pipeline.simulate.slab_steps import Course, find_contents

Float64 = NDArray[np.float64]
Sides = tuple[float, float, float]

BORDER = 2
"""Empty voxels on every side of an image in y and x."""

# Above 1/4 a three-point kernel turns the finest waves over instead of damping them.
_LARGEST_WEIGHT = 0.25
# Counts blur in from beyond the field, and out and in again: this many σ are followed.
_MARGIN_SIGMAS = 3.0
# By how much an outline may reach beyond the collimator's face: it is drawn with a margin round the body.
_OVERLAP_MM = 20.0


class FineBins(NamedTuple):
    """Bins as wide as voxels, that pixels are made of.

    per_bin, per_slice: of one pixel. across, along: of the field.
    """

    per_bin: int
    per_slice: int
    across: int
    along: int


class Layout(NamedTuple):
    """What lies where; voxels."""

    slices: tuple[int, int]  # of the image that can reach the field
    plane: tuple[int, int]  # (across, z) of the planes
    field_across: int  # where the field begins in the planes
    field_z: int
    image_z: int  # where the image's first slice lies
    slabs: int
    margin: int  # across, by which blur widens the contents


def fine_bins(shape: tuple[int, ...], voxel_mm: tuple[float, ...], camera: SpectCamera) -> FineBins:
    """raises: InputRejected for voxels that are no whole part of a pixel, or lie half a voxel beside it."""
    if len(shape) != 3 or len(voxel_mm) != 3 or min(voxel_mm) <= 0 or voxel_mm[1] != voxel_mm[2]:
        raise InputRejected(
            f"an image of {len(shape)} axes with voxels of {voxel_mm} mm cannot be turned",
            "Give a (z, y, x) image whose voxels are as long in y as in x",
        )
    parts = [camera.pixel_mm / side for side in (voxel_mm[2], voxel_mm[0])]
    per_bin, per_slice = (round(part) for part in parts)
    if min(per_bin, per_slice) < 1 or not np.allclose(parts, (per_bin, per_slice), rtol=1e-4, atol=0):
        raise InputRejected(
            f"voxels of {voxel_mm} mm (z, y, x) are no whole parts of pixels of {camera.pixel_mm} mm",
            f"Put the image on voxels of {camera.pixel_mm} mm, or half or a third of it",
        )
    fine = FineBins(per_bin, per_slice, camera.bins * per_bin, camera.slices * per_slice)
    if (fine.along - shape[0]) % 2:
        raise InputRejected(
            f"{shape[0]} slices cannot be centred on a field of {fine.along}", "Give one slice more or less"
        )
    return fine


def layout_of(
    shape: tuple[int, int, int],
    voxel_mm: tuple[float, float, float],
    camera: SpectCamera,
    radii_mm: Float64,
    support: NDArray[np.bool_],
) -> Layout:
    """How large images and planes are. support: (y, x). radii_mm: (views,)."""
    fine = fine_bins(shape, voxel_mm, camera)
    y, x = np.nonzero(support)
    reach = float(np.hypot(y - (shape[1] - 1) / 2, x - (shape[2] - 1) / 2).max())
    # Along the axis as at its distance: what comes from behind it is weakened by the body.
    along = _margin(camera, float(radii_mm.max()), voxel_mm[0])
    across = _margin(camera, float(radii_mm.max()) + reach * voxel_mm[1], voxel_mm[1])
    # Slices of the image that lie farther from the field than the margin do not count.
    before = (shape[0] - fine.along) // 2
    first = max(0, before - along)
    image_z = first - before + along
    half = int(np.ceil(reach)) + 2
    wide = max(fine.across, 2 * (half + across))
    wide += (wide - fine.across) % 2
    return Layout(
        slices=(first, shape[0] - first),
        plane=(wide, fine.along + 2 * along),
        field_across=(wide - fine.across) // 2,
        field_z=along,
        image_z=image_z + 1,
        slabs=2 * half + shape[1] % 2,
        margin=across,
    )


def _margin(camera: SpectCamera, distance_mm: float, side_mm: float) -> int:
    """Voxels by which the response at a distance widens."""
    return int(np.ceil(_MARGIN_SIGMAS * camera.fwhm_mm(distance_mm) / FWHM_PER_SIGMA / side_mm))


def course_of(
    layout: Layout, voxel_mm: Sides, camera: SpectCamera, radii_mm: Float64, support: NDArray[np.bool_]
) -> Course:
    """The way of every view. raises: InputRejected for a patient beyond the collimator's face."""
    views, slabs = camera.views, layout.slabs
    angles = camera.view_angles
    course = Course(
        cosine=np.cos(angles).astype(np.float32),
        sine=np.sin(angles).astype(np.float32),
        middle_y=F((support.shape[0] - 1) / 2 + BORDER),
        middle_x=F((support.shape[1] - 1) / 2 + BORDER),
        first_depth=F((slabs - 1) / 2),
        middle_across=F((layout.plane[0] - 1) / 2),
        first=np.zeros(views, np.int32),
        last=np.zeros(views, np.int32),
        low=np.zeros((views, slabs), np.int32),
        high=np.zeros((views, slabs), np.int32),
        window_low=np.zeros(views, np.int32),
        window_high=np.full(views, layout.plane[0], np.int32),
        passes=np.zeros((views, slabs + 1), np.int32),
        across=np.zeros((views, slabs + 1), np.float32),
        along=np.zeros((views, slabs + 1), np.float32),
        image_z=layout.image_z,
    )
    find_contents(np.pad(support, BORDER).astype(np.uint8), course)
    filled = course.high > course.low
    course.first[:] = filled.argmax(axis=1)
    course.last[:] = slabs - 1 - filled[:, ::-1].argmax(axis=1)
    course.window_low[:] = np.where(filled, course.low, layout.plane[0]).min(axis=1) - layout.margin
    course.window_high[:] = course.high.max(axis=1) + layout.margin
    np.clip(course.window_low, 0, layout.plane[0], out=course.window_low)
    np.clip(course.window_high, 0, layout.plane[0], out=course.window_high)
    _set_blur(course, voxel_mm, camera, radii_mm)
    return course


def _set_blur(course: Course, voxel_mm: Sides, camera: SpectCamera, radii_mm: Float64) -> None:
    """Fill `passes`, `across` and `along`."""
    height_mm, side_mm = voxel_mm[:2]
    views, slabs = course.low.shape
    depth_mm = (float(course.first_depth) - np.arange(slabs)) * side_mm
    distance = radii_mm[:, None] - depth_mm  # [V, S]
    nearest = distance[np.arange(views), course.first]
    if nearest.min() < -_OVERLAP_MM:
        view = int(nearest.argmin())
        raise InputRejected(
            f"the patient reaches {-nearest[view]:.0f} mm beyond the collimator's face in view {view}",
            f"Set radius_mm greater than {radii_mm[view]:g} mm, or centre the patient on the axis",
        )
    variance = (camera.fwhm_mm(distance) / FWHM_PER_SIGMA) ** 2
    gained = np.zeros((2, views, slabs + 1))  # across and along, mm²
    gained[:, :, :-2] = variance[:, 1:] - variance[:, :-1]
    to_face = variance[np.arange(views), course.first]
    gained[0, :, -1] = to_face + (1 / 6 - _interpolation_variance(course)) * side_mm**2
    gained[1, :, -1] = to_face + height_mm**2 / 6
    weights = np.maximum(gained, 0.0) / (2.0 * np.array((side_mm, height_mm))[:, None, None] ** 2)
    passes = np.maximum(np.ceil(weights.max(axis=0) / _LARGEST_WEIGHT), 1)
    course.passes[:] = passes
    course.across[:] = weights[0] / passes
    course.along[:] = weights[1] / passes


def _interpolation_variance(course: Course) -> Float64:
    """[views] by how much bilinear interpolation widens across the patient, voxels².

    Between two voxels at fraction f the variance is f (1 − f); its mean over places is taken, 1/6 but for the
    views along the voxels' rows.
    """
    step = np.arange(-20, 20)
    slab, across = (float(middle) % 1 + step for middle in (course.first_depth, course.middle_across))
    depth, lateral = slab[:, None], across[None, :]
    result = np.empty(course.cosine.size)
    for view, (c, s) in enumerate(zip(course.cosine, course.sine, strict=True)):
        fy = (course.middle_y + lateral * s - depth * c) % 1
        fx = (course.middle_x + lateral * c + depth * s) % 1
        result[view] = np.mean(s**2 * fy * (1 - fy) + c**2 * fx * (1 - fx))
    return result
