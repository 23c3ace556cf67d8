"""A PET/CT as a virtual patient: how much activity, where, and what is told of what was left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.learning import phantom
from pipeline.learning.example import load_volume
from pipeline.learning.phantom import Phantom, Wanted
from pipeline.learning.scene import Patient, given_scene
from pipeline.rois import Roi
from pipeline.simulate.camera import medium_energy_lu177
from pipeline.volume import Grid, Volume

FRAME = "1.2.3"
CT = Grid((60, 40, 48), (-141.0, -117.0, -300.0), (10.0, 6.0, 6.0), frame_of_reference_uid=FRAME)
PET = Grid((70, 30, 36), (-147.0, -121.0, -306.0), (8.5, 8.2, 8.2), frame_of_reference_uid=FRAME)
CENTRE, RADIUS = (30.0, -12.0, 40.0), 36.0
WARM, HOT = 1e3, 5e4


def at(grid: Grid) -> NDArray[np.float64]:
    return grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1))


def ball(grid: Grid, centre: tuple[float, float, float] = CENTRE, radius: float = RADIUS) -> Any:
    return np.linalg.norm(at(grid) - np.asarray(centre), axis=-1) < radius


def within(grid: Grid, half_mm: float) -> Any:
    """An elliptic cylinder along z."""
    return (at(grid)[..., 0] / half_mm) ** 2 + (at(grid)[..., 1] / (0.8 * half_mm)) ** 2 < 1


def hounsfield(grid: Grid = CT) -> Volume:
    return Volume(np.where(within(grid, 120), 14.0, -1000.0).astype(np.float32), grid, "HU")


def tracer(grid: Grid = PET) -> Volume:
    array = np.where(within(grid, 90), WARM, 0.0)
    array[ball(grid)] = HOT
    return Volume(array.astype(np.float32), grid, "Bq/mL")


def roi(name: str, mask: Any, number: int = 1) -> Roi:
    box = crop_box(mask)
    return Roi(name, number, box, np.ascontiguousarray(mask[box]), mask.shape, "1.2.3.4")


def made(
    pet: Volume | None = None, hu: Volume | None = None, rois: tuple[Roi, ...] = (), **wanted: Any
) -> Phantom:
    return phantom.phantom(pet or tracer(), hu or hounsfield(), rois, Wanted(**wanted))


def mbq(volume: Volume, mask: Any = slice(None)) -> float:
    return float(volume.array[mask].sum(dtype=np.float64)) * volume.grid.voxel_volume_ml / 1e6


def test_the_activity_is_what_was_asked_and_lies_where_the_pet_has_it() -> None:
    found = made(activity_mbq=750.0)
    assert mbq(found.activity) == pytest.approx(750.0, rel=1e-5)
    hot = np.where(found.activity.array > 0.5 * found.activity.array.max(), found.activity.array, 0.0)
    centroid = (hot[..., None] * at(found.activity.grid)).sum(axis=(0, 1, 2)) / hot.sum()
    # The ball itself is drawn in voxels of the PET.
    drawn = at(PET)[ball(PET)].mean(axis=0)
    assert_allclose(centroid, drawn, atol=1.0)


def test_what_the_pet_holds_is_told_down_to_the_last_part() -> None:
    told = made().account["activity"]
    parts = sum(told[f"outside_{place}_mbq"] for place in ("ct", "field", "body")) + told["used_mbq"]
    assert parts == pytest.approx(told["pet_mbq"], rel=1e-4)
    assert told["pet_mbq"] == pytest.approx(mbq(tracer()), rel=1e-6)
    assert abs(told["resampling_difference"]) < 1e-4


def test_the_scale_of_the_pet_does_not_matter() -> None:
    """Ga-68's decay until the PET is a common factor."""
    pet = tracer()
    again = made(pet.with_array(pet.array * np.float32(0.25)))
    assert_allclose(again.activity.array, made().activity.array, rtol=1e-5)
    assert again.account["scaling"]["factor"] == pytest.approx(4 * made().account["scaling"]["factor"])


def test_density_is_that_of_the_ct() -> None:
    density = made().density
    assert density.unit == "g/cm3"
    assert density.grid.spacing_mm == CT.spacing_mm
    body = within(density.grid, 120)
    assert_allclose(density.array[body], 1.030, atol=1e-6)
    assert_allclose(density.array[~body], 0.00121, atol=1e-6)


def test_a_long_ct_is_cut_to_a_field_about_the_most_activity() -> None:
    found = made()
    low, high = found.account["field"]["z_mm"]
    assert high - low == pytest.approx(phantom.FIELD_MM)
    assert low < CENTRE[2] - RADIUS
    assert high > CENTRE[2] + RADIUS
    # The CT's own voxels, not others.
    start = CT.indices(found.density.grid.origin_mm)
    assert_allclose(start, np.round(start), atol=1e-6)
    elsewhere = made(centre_mm=-280.0)
    assert elsewhere.account["field"]["z_mm"][0] == pytest.approx(-305.0)


def test_activity_in_the_air_is_left_out_and_told() -> None:
    pet = tracer()
    pet.array[30:34, 2:4, 2:4] = 1e5
    found = made(pet)
    assert mbq(found.activity, ~within(found.activity.grid, 121)) == 0
    beside = 16 * PET.voxel_volume_ml * 0.1
    assert found.account["activity"]["outside_body_mbq"] == pytest.approx(beside, rel=1e-3)
    assert any("outside the body" in note for note in found.notes)


def test_a_factor_holds_in_its_voi_and_that_of_the_smaller_where_two_overlap() -> None:
    rois = (
        roi("Organ", ball(CT, radius=60)),
        roi("lesion", ball(CT, radius=25), 2),
        roi("other", ball(CT, (-60, 0, 40), 20), 3),
    )
    plain = made(rois=rois)
    found = made(rois=rois, rescale={"organ": 0.5, "lesion": 3.0})
    ratio = found.activity.array / np.where(plain.activity.array > 0, plain.activity.array, 1)
    one, lesion, organ = (found.vois[name].mask for name in ("other", "lesion", "Organ"))
    base = ratio[one].mean()
    assert_allclose(ratio[lesion], 3.0 * base, rtol=1e-4)
    assert_allclose(ratio[organ & ~lesion], 0.5 * base, rtol=1e-4)
    assert mbq(found.activity) == pytest.approx(1000.0, rel=1e-5)
    assert found.account["scaling"]["rescaled"] == {"Organ": 0.5, "lesion": 3.0}
    assert found.account["vois"]["lesion"]["mbq"] == pytest.approx(mbq(found.activity, lesion), rel=1e-5)


def test_vois_are_cut_to_the_field_and_named_apart() -> None:
    beyond, across = ball(CT, (0, 0, 270), 20), ball(CT, (0, 0, 100), 250)
    rois = (roi("left/kidney", ball(CT)), roi("left?kidney", across, 2), roi("far", beyond, 3))
    found = made(rois=rois, centre_mm=-100.0)
    assert list(found.vois) == ["left_kidney", "left_kidney (2)"]
    first = round(float(CT.indices(found.density.grid.origin_mm)[0]))
    mask = found.vois["left_kidney (2)"].mask
    assert_array_equal(mask, across[first : first + mask.shape[0]])
    assert any("'left_kidney (2)' is cut" in note for note in found.notes)
    assert any("'far' lies outside" in note for note in found.notes)


def test_a_pet_that_ends_within_the_field_is_told() -> None:
    short = tracer(replace(PET, shape=(30, 30, 36), origin_mm=(-147.0, -121.0, -50.0)))
    assert any("does not reach" in note for note in made(short, centre_mm=0.0).notes)


def test_nearly_transverse_is_laid_straight_and_tilted_is_refused() -> None:
    def turned(degrees: float) -> Grid:
        c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
        return replace(CT, direction=((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))

    grid = made(hu=Volume(hounsfield().array, turned(0.01), "HU")).density.grid
    assert np.array_equal(np.asarray(grid.direction), np.eye(3)[::-1])
    with pytest.raises(InputRejected, match=r"not transverse: its slices lie 3\.00 degrees"):
        made(hu=Volume(hounsfield().array, turned(3.0), "HU"))


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"activity_mbq": 0.0}, "activity of 0.0 MBq"),
        ({"activity_mbq": float("nan")}, "activity of nan MBq"),
        ({"nuclide": "Ga-68"}, "no dose kernel for the nuclide 'Ga-68'"),
        ({"rescale": {"organ": -1.0}}, "factor -1.0 of VOI 'organ'"),
        ({"rescale": {"spleen": 2.0}}, "no VOI 'spleen' in the field. There is 'organ'"),
        ({"rescale": {"organ": 0.0}}, "no activity is left"),
        ({"centre_mm": 900.0}, "900 is not within"),
    ],
)
def test_what_cannot_be_asked_is_told(wanted: dict[str, Any], text: str) -> None:
    with pytest.raises(InputRejected, match=text):
        made(rois=(roi("organ", np.ones(CT.shape, bool)),), **wanted)


def test_a_pet_of_elsewhere_is_refused() -> None:
    with pytest.raises(InputRejected, match="no activity of the PET lies within the CT"):
        made(tracer().with_array(np.zeros(PET.shape, np.float32)))
    with pytest.raises(InputRejected, match="Frame of Reference"):
        made(Volume(tracer().array, replace(PET, frame_of_reference_uid="9.9"), "Bq/mL"))


def test_it_is_written_as_training_reads_it(tmp_path: Path) -> None:
    found = made(rois=(roi("left kidney", ball(CT)),))
    phantom.save(found, tmp_path / "p1", {"radionuclide": "Ga-68"})
    assert_array_equal(load_volume(tmp_path / "p1" / "activity.npz", "Bq/mL").array, found.activity.array)
    told = json.loads((tmp_path / "p1" / "phantom.json").read_text(encoding="utf-8"))
    assert told["name"] == "p1"
    assert told["source"] == {"radionuclide": "Ga-68"}
    assert any("blur" in limit for limit in told["limits"])
    patient = Patient("p1", "train", 1, "given", "given")
    scene = given_scene(tmp_path / "p1", patient, medium_energy_lu177())
    assert mbq(scene.activity) == pytest.approx(1000.0, rel=0.01)
    hot = at(scene.activity.grid)[scene.vois["left kidney"]].mean(axis=0)
    assert_allclose(hot, at(CT)[ball(CT)].mean(axis=0), atol=1.0)
    assert_allclose(np.median(scene.density.array[scene.vois["left kidney"]]), 1.030, atol=1e-3)


def test_only_a_phantom_is_overwritten_and_nothing_is_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = made(activity_mbq=1.0), made(activity_mbq=2.0)
    folder = tmp_path / "p1"
    phantom.save(one, folder, {})
    with pytest.raises(InputRejected, match="there already"):
        phantom.save(other, folder, {})
    phantom.save(other, folder, {}, overwrite=True)
    assert mbq(load_volume(folder / "activity.npz", "Bq/mL")) == pytest.approx(2.0, rel=1e-5)

    rename = Path.rename

    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    def only_aside(path: Path, to: Path) -> Path:
        return full() if path.name == "new" else rename(path, to)

    for where, name, stand_in in ((phantom.json, "dumps", full), (Path, "rename", only_aside)):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, stand_in)
            with pytest.raises(OSError, match="No space"):
                phantom.save(one, folder, {}, overwrite=True)
        assert mbq(load_volume(folder / "activity.npz", "Bq/mL")) == pytest.approx(2.0, rel=1e-5)
        assert [path.name for path in tmp_path.iterdir()] == ["p1"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputRejected, match="is no phantom"):
        phantom.save(one, tmp_path / "mine", {}, overwrite=True)
