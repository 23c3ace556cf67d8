"""The body mask holds the patient whole, and nothing of the table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from pipeline.body import body_mask, find_body
from pipeline.errors import InputRejected
from pipeline.lattice import field_of_view
from pipeline.simulate.patient import virtual_patient
from pipeline.simulate.tissue import Label
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


# ── thin chest walls ─────────────────────────────────────────────────────────────────────────────


@dataclass
class Chest:
    """A chest of even wall: lungs on both sides of a mediastinum, arms and a hollow table at will.

    spacing_mm: (z, y, x). half_mm: half-width and half-depth. lungs_along_mm: half-length of the lungs;
    without, they run through all slices, as in a scan of a part of the chest.
    """

    spacing_mm: tuple[float, float, float]
    wall_mm: float
    half_mm: tuple[float, float] = (90.0, 65.0)
    lungs_along_mm: float = np.inf
    lung_hu: float = -800.0
    bottom_mm: float = 100.0
    slices: int = 14
    table_at_mm: float | None = None
    hu: Volume = field(init=False)
    truth: NDArray[np.bool_] = field(init=False)
    table: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        _dz, dy, dx = self.spacing_mm
        n = int(np.ceil(360.0 / dx))
        grid = Grid((self.slices, n, n), (-n * dx / 2, -n * dy / 2, 0.0), self.spacing_mm)
        z, y, x = ((np.arange(k) - k / 2) * d for k, d in zip(grid.shape, self.spacing_mm, strict=True))
        self.z, self.y, self.x = z[:, None, None], y[:, None], x
        array = np.full(grid.shape, -1000.0, np.float32)
        half_x, half_y = self.half_mm
        self.truth = np.broadcast_to(self.oval(half_x, half_y), grid.shape)
        self.table = np.zeros(grid.shape, bool)
        if self.table_at_mm is not None:
            self.add_table(array, self.table_at_mm)
        array[self.truth] = 30.0
        along = np.sqrt(np.clip(1 - (self.z / self.lungs_along_mm) ** 2, 0, None))
        inner = self.oval((half_x - self.wall_mm) * along, (half_y - self.wall_mm) * along)
        array[inner & (np.abs(self.x) > 15.0)] = self.lung_hu
        array += np.random.default_rng(1).normal(0.0, 15.0, grid.shape).astype(np.float32)
        self.hu = Volume(array, grid, "HU")

    def oval(
        self, half_x: ArrayLike, half_y: ArrayLike, x_mm: float = 0.0, y_mm: float = 0.0
    ) -> NDArray[np.bool_]:
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.divide(self.x - x_mm, half_x) ** 2 + np.divide(self.y - y_mm, half_y) ** 2 < 1
        return np.asarray(inside)

    def add_table(self, array: NDArray[np.float32], top_mm: float) -> None:
        """A shell of 3 mm, filled with foam, as wide as the field less 10 mm on each side."""
        outer = (np.abs(self.x) < 160) & (self.y > top_mm) & (self.y < top_mm + 35)
        core = (np.abs(self.x) < 157) & (self.y > top_mm + 3) & (self.y < top_mm + 32)
        self.table[:] = outer
        array[:, outer], array[:, core] = 0.0, -930.0

    def error(self) -> float:
        return float((body_mask(self.hu) ^ self.truth).sum() / self.truth.sum())


@pytest.mark.parametrize("wall_mm", [6.0, 8.0, 10.0, 12.0])
@pytest.mark.parametrize(
    "spacing_mm",
    [(1.25, 0.77, 0.77), (3.0, 0.98, 0.98), (5.0, 1.37, 1.37), (2.0, 1.52, 1.52), (3.0, 2.67, 2.67)],
    ids=lambda s: f"{s[1]:g} mm, slices of {s[0]:g} mm",
)
def test_lungs_behind_a_thin_chest_wall_belong_to_the_body(
    spacing_mm: tuple[float, float, float], wall_mm: float
) -> None:
    """Children and cachectic patients; also where the lungs run through every slice of the scan."""
    assert Chest(spacing_mm, wall_mm).error() < 0.01
    assert Chest(spacing_mm, wall_mm, lungs_along_mm=4 * spacing_mm[0]).error() < 0.01


@pytest.mark.parametrize("wall_mm", [6.0, 10.0])
@pytest.mark.parametrize("gap_mm", [-2.0, 0.0, 5.0])
def test_a_child_on_a_table_wider_than_itself_is_told_from_the_table(wall_mm: float, gap_mm: float) -> None:
    """The table holds more space than the child; when it touches, its upper sheet alone may remain."""
    child = Chest((3.0, 0.98, 0.98), wall_mm, (70.0, 50.0), table_at_mm=50.0 + gap_mm)
    body = body_mask(child.hu)
    assert body[child.truth].mean() > 0.999
    assert (body & ~child.truth).sum() < 0.03 * child.truth.sum()
    deep = child.table & (child.y > 50.0 + gap_mm + 8.0)
    assert not (body & deep & ~child.truth).any()


def test_emphysema_behind_a_thin_wall_is_no_table() -> None:
    """Lighter than foam and thinly walled, but its lungs end within the scan."""
    assert Chest((3.0, 0.98, 0.98), 6.0, lungs_along_mm=18.0, lung_hu=-930.0).error() < 0.01


def test_emphysema_that_cannot_be_told_from_a_table_holds_the_study() -> None:
    """Thinly walled, as light as foam, through the whole scan: rather a person looks than lungs are lost."""
    with pytest.raises(InputRejected, match="implausibly small"):
        body_mask(Chest((3.0, 0.98, 0.98), 6.0, lung_hu=-930.0).hu)


def test_gas_behind_a_thin_abdominal_wall_belongs_to_the_body() -> None:
    assert Chest((3.0, 1.37, 1.37), 6.0, lungs_along_mm=15.0, lung_hu=-1000.0).error() < 0.01


def test_a_gap_of_a_pixel_in_the_chest_wall_loses_no_lung() -> None:
    chest = Chest((3.0, 0.98, 0.98), 8.0)
    column = int(np.abs(chest.x - 40.0).argmin())
    chest.hu.array[3, : chest.hu.grid.shape[1] // 2, column] = -800.0
    body = body_mask(chest.hu)
    assert (body[3] & chest.truth[3]).sum() > 0.95 * chest.truth[3].sum()


def test_lungs_that_fall_out_of_the_body_hold_the_study() -> None:
    """A wall that is open in every slice, as where the field of view cuts the chest."""
    chest = Chest((3.0, 0.98, 0.98), 6.0)
    chest.hu.array[:, (np.abs(chest.y) < 30)[:, 0]] = np.where(
        np.abs(chest.x) > 75, -1000.0, chest.hu.array[:, (np.abs(chest.y) < 30)[:, 0]]
    )
    with pytest.raises(
        InputRejected, match=r"implausibly small: .* mL as light as lung or hollow: .* [0-4]\d% of all"
    ):
        body_mask(chest.hu)


# ── the virtual patient ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [1, 5])
def test_the_virtual_patients_body_is_found_to_one_per_cent_and_nothing_of_its_table(seed: int) -> None:
    grid = Grid((44, 240, 240), (-239.0, -215.0, -193.5), (9.0, 2.0, 2.0))
    patient = virtual_patient(grid, seed)
    body, truth = body_mask(patient.hu), patient.mask("body")
    assert body.sum() == pytest.approx(truth.sum(), rel=0.01)
    assert (body ^ truth).sum() < 0.01 * truth.sum()
    assert not body[patient.labels == Label.TABLE].any()


# ── arms ─────────────────────────────────────────────────────────────────────────────────────────


def with_arms(x_mm: float, radius_mm: float = 26.0, **chest: float) -> tuple[Chest, NDArray[np.bool_]]:
    made = Chest((3.0, 1.37, 1.37), 10.0, **chest)  # type: ignore[arg-type]
    arms = made.oval(radius_mm, radius_mm, x_mm) | made.oval(radius_mm, radius_mm, -x_mm)
    arms = np.broadcast_to(arms, made.truth.shape) & ~made.truth
    made.hu.array[arms] = 40.0
    return made, arms


def test_arms_apart_from_the_trunk_are_not_the_body_and_are_told() -> None:
    chest, arms = with_arms(130.0, table_at_mm=70.0)
    found = find_body(chest.hu)
    assert (found.mask ^ chest.truth).sum() < 0.02 * chest.truth.sum()
    assert found.apart is not None
    assert (found.apart ^ arms).sum() < 0.03 * arms.sum()
    assert not (found.apart & found.mask).any()


def test_a_table_is_no_tissue_apart() -> None:
    assert find_body(Chest((3.0, 1.37, 1.37), 10.0, table_at_mm=70.0).hu).apart is None
    assert find_body(scan()).apart is None


def test_small_things_beside_the_patient_are_not_told() -> None:
    chest, _arms = with_arms(130.0, radius_mm=6.0)
    assert find_body(chest.hu).apart is None


def test_an_arm_on_the_trunk_belongs_to_the_body_with_the_air_that_it_encloses() -> None:
    """As documented: an airway that the scan cuts looks the same."""
    chest, arms = with_arms(112.0)
    ring = chest.oval(14.0, 14.0, 112.0)
    chest.hu.array[:, ring] = -1000.0
    found = find_body(chest.hu)
    assert found.apart is None
    assert (found.mask ^ (chest.truth | arms)).sum() < 0.02 * chest.truth.sum()
    assert found.mask[:, ring].all()


def test_one_of_three_like_regions_is_held_with_its_numbers() -> None:
    plane = np.full(y_mm.shape, -1000.0, np.float32)
    for x in (-120.0, 0.0, 120.0):
        plane[(x_mm - x) ** 2 + y_mm**2 < 50**2] = 20.0
    with pytest.raises(InputRejected, match=r"beside it lie \d+ mL of other tissue .* 3\d% of all that"):
        body_mask(Volume(np.repeat(plane[None], 12, axis=0), GRID, "HU"))


# ── one region, noise, coarse grids, other input ─────────────────────────────────────────────────


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
