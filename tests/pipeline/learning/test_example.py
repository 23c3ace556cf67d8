from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.learning import example as examples
from pipeline.learning.example import Example, load, load_volume, save, save_volume
from pipeline.volume import Grid, Volume
from tests.pipeline.learning import synthetic


def made(again: int = 2) -> Example:
    return replace(synthetic.example(again=again), meta={"counts": 5e6, "shifts": [1.0, -2.0]})


def test_an_example_comes_back_as_it_was(tmp_path: Path) -> None:
    one = made()
    save(one, tmp_path / "deep" / "a.npz")
    back = load(tmp_path / "deep" / "a.npz")
    assert back.grid.same_as(one.grid)
    assert (back.patient_id, back.family, back.texture, back.seed, back.total_mbq) == (
        one.patient_id, one.family, one.texture, one.seed, one.total_mbq
    )  # fmt: skip
    assert back.meta == one.meta
    assert list(back.vois) == list(one.vois)
    assert all(np.array_equal(back.vois[name], mask) for name, mask in one.vois.items())
    assert one.mc_on_spect is not None
    assert back.mc_on_spect is not None
    for mine, its in (
        (one.spect, back.spect),
        (one.density, back.density),
        (one.dvk, back.dvk),
        (one.truth, back.truth),
        (one.mc_on_spect, back.mc_on_spect),
        (one.realisations[1].spect, back.realisations[1].spect),
    ):
        np.testing.assert_allclose(its, mine, rtol=2**-10, atol=1e-7 * float(mine.max()))
    assert back.realisations[0].total_mbq == one.realisations[0].total_mbq
    assert back.volume("truth").unit == "mGy/h"


def test_what_may_be_absent_stays_absent(tmp_path: Path) -> None:
    save(replace(made(0), mc_on_spect=None), tmp_path / "a.npz")
    back = load(tmp_path / "a.npz")
    assert back.mc_on_spect is None
    assert back.realisations == ()
    with pytest.raises(KeyError):
        back.volume("mc_on_spect")


def test_a_region_mean_survives_the_rounding(tmp_path: Path) -> None:
    one = made(0)
    save(one, tmp_path / "a.npz")
    back = load(tmp_path / "a.npz")
    for name, mask in one.vois.items():
        assert back.truth[mask].mean() == pytest.approx(one.truth[mask].mean(), rel=1e-4), name


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="disk full"):
        save(made(0), tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_or_foreign_is_refused_by_name(tmp_path: Path) -> None:
    save(made(0), tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", array=np.zeros(3))
    for name in ("cut.npz", "other.npz", "missing.npz"):
        with pytest.raises(InputRejected, match=name):
            load(tmp_path / name)


def test_pickled_content_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", format=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputRejected, match="cannot be read"):
        load(tmp_path / "evil.npz")


@pytest.mark.parametrize("name", ["spect", "density", "dvk", "truth"])
def test_maps_that_do_not_fit_or_cannot_be_are_refused(name: str) -> None:
    one = made(0)
    array = getattr(one, name)
    with pytest.raises(InputRejected, match=name):
        replace(one, **{name: array[1:]})
    bad = array.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(InputRejected, match=f"the {name} of example"):
        replace(one, **{name: bad})
    bad[0, 0, 0] = -1
    with pytest.raises(InputRejected, match="not negative"):
        replace(one, **{name: bad})


def test_a_voi_of_another_shape_is_refused() -> None:
    one = made(0)
    with pytest.raises(InputRejected, match="'spleen'"):
        replace(one, vois={"spleen": one.vois["spleen"][1:]})


def test_a_volume_comes_back_with_its_place(tmp_path: Path) -> None:
    grid = Grid(
        (2, 3, 4), (1.0, -2.0, 3.5), (3.0, 2.0, 1.0), ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    )
    array = np.arange(24, dtype=np.float32).reshape(grid.shape)
    save_volume(tmp_path / "v.npz", Volume(array, grid, "Bq/mL"))
    back = load_volume(tmp_path / "v.npz", "Bq/mL")
    assert np.array_equal(back.array, array)
    assert back.grid.same_as(grid)


def test_a_volume_without_direction_runs_along_the_patient(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "v.npz", array=np.ones((2, 3, 4)), unit="1", spacing_mm=(3, 2, 1), origin_mm=(0, 0, 0)
    )
    assert load_volume(tmp_path / "v.npz", "1").grid.positions((1, 1, 1)) == pytest.approx((1, 2, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unit": "kBq/mL"}, "is in 'kBq/mL'. Convert it to Bq/mL"),
        ({"array": np.ones((3, 4))}, "must be \\(z, y, x\\)"),
        ({"array": np.full((2, 3, 4), np.inf)}, "24 voxels that are not finite"),
    ],
)
def test_a_volume_that_is_none_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    content = {"array": np.ones((2, 3, 4)), "unit": "Bq/mL", "spacing_mm": (3, 2, 1), "origin_mm": (0, 0, 0)}
    np.savez(tmp_path / "v.npz", **(content | change))
    with pytest.raises(InputRejected, match=said):
        load_volume(tmp_path / "v.npz", "Bq/mL")


def test_every_map_has_a_unit() -> None:
    assert set(examples.UNITS) >= {"spect", "density", "dvk", "truth", "mc_on_spect"}
