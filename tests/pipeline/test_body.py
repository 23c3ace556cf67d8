"""The body mask holds the patient whole, and nothing of the table."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.body import body_mask
from pipeline.errors import InputRejected
from pipeline.lattice import field_of_view
from pipeline.volume import Grid, Volume

GRID = Grid((12, 200, 200), (-199.0, -199.0, 0.0), (3.0, 2.0, 2.0), frame_of_reference_uid="1.2")
y_mm, x_mm = np.meshgrid(GRID.positions([(0, i, 0) for i in range(200)])[:, 1],
                   GRID.positions([(0, 0, i) for i in range(200)])[:, 0], indexing="ij")  # fmt: skip
TRUNK = (x_mm / 150) ** 2 + (y_mm / 100) ** 2 <= 1
LUNGS = ((x_mm - 60) / 35) ** 2 + (y_mm / 50) ** 2 <= 1
TRACHEA = x_mm**2 + (y_mm + 40) ** 2 <= 9**2


def scan(*, table_y: float = 125.0, body: bool = True) -> Volume:
    """A trunk with lungs and an airway that leaves both ends of the scan, over a table with a thin shell."""
    plane = np.full(y_mm.shape, -1000.0, dtype=np.float32)
    table = (np.abs(x_mm) < 180) & (y_mm > table_y) & (y_mm < table_y + 40)
    shell = table & ~((np.abs(x_mm) < 176) & (y_mm > table_y + 4) & (y_mm < table_y + 36))
    plane[table], plane[shell] = -900.0, 100.0
    if body:
        plane[TRUNK] = 40.0
        plane[LUNGS], plane[TRACHEA] = -800.0, -1000.0
    return Volume(np.repeat(plane[None], GRID.shape[0], axis=0), GRID, "HU")


def test_the_body_with_its_lungs_and_airways_and_without_the_table() -> None:
    """Also where the airway is cut by the ends of the scan."""
    mask = body_mask(scan())
    assert np.array_equal(mask, np.repeat(TRUNK[None], GRID.shape[0], axis=0))


def test_a_table_that_touches_the_skin_leaves_at_most_its_shell_near_the_skin() -> None:
    mask = body_mask(scan(table_y=98.0))
    stray = mask & ~TRUNK
    assert mask[:, TRUNK].all()
    assert stray.sum() < 0.01 * mask.sum()
    assert not mask[:, y_mm > 120].any()


def test_only_the_largest_region_is_the_body() -> None:
    hu = scan()
    hu.array[:, 5:15, 5:15] = 40.0  # a hand beside the patient that the field cuts off, a bottle
    assert not body_mask(hu)[:, :20, :20].any()


def test_noise_in_the_air_and_in_the_lungs_changes_nothing_of_size() -> None:
    hu = scan()
    noisy = hu.with_array(
        hu.array + np.random.default_rng(0).normal(0, 60, hu.array.shape).astype(np.float32)
    )
    volume = body_mask(noisy).sum() / body_mask(hu).sum()
    assert volume == pytest.approx(1.0, abs=0.002)


def test_a_coarse_grid_gives_the_same_body() -> None:
    hu = scan()
    coarse_grid = Grid((12, 50, 50), (-196.0, -196.0, 0.0), (3.0, 8.0, 8.0), frame_of_reference_uid="1.2")
    blocks = hu.array.reshape(12, 50, 4, 50, 4).mean(axis=(2, 4))
    coarse = body_mask(Volume(blocks, coarse_grid, "HU"))
    fine_ml = body_mask(hu).sum() * GRID.voxel_volume_ml
    assert coarse.sum() * coarse_grid.voxel_volume_ml == pytest.approx(fine_ml, rel=0.03)


def test_a_scan_without_a_patient_is_refused() -> None:
    with pytest.raises(InputRejected, match="no body") as failure:
        body_mask(scan(body=False))
    assert failure.value.remedy


def test_the_field_of_view_is_where_voxel_centres_lie_in_the_other_box() -> None:
    field = Grid((2, 10, 20), (-19.0, -9.0, 3.0), (6.0, 2.0, 2.0), frame_of_reference_uid="1.2")
    mask = field_of_view(field, GRID)
    inside_xy = (np.abs(x_mm) <= 20) & (np.abs(y_mm) <= 10)
    z = np.arange(12) * 3.0
    expected = ((z >= 0) & (z <= 12))[:, None, None] & inside_xy
    assert np.array_equal(mask, expected)
