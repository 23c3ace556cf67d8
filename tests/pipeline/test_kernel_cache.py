"""Kernels kept on disk: found again, never trusted when damaged, never too many."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import kernel_cache, kernels
from pipeline.decay import nuclide
from pipeline.kernel_cache import KernelCache
from pipeline.kernels import voxel_kernel


class Maker:
    """Makes an array, and counts how often."""

    def __init__(self, value: float = 1.0) -> None:
        self.array, self.times = np.full((2, 3, 4), value, np.float32), 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self.array


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_made_once_is_found_again(tmp_path: Path) -> None:
    cache, maker = KernelCache(tmp_path / "not there yet"), Maker()
    for _ in range(2):
        np.testing.assert_array_equal(cache.array("one", maker), maker.array)
    assert maker.times == 1
    assert [p.suffix for p in (tmp_path / "not there yet").iterdir()] == [".kernel"], (
        "no part of a file is left"
    )


def test_every_description_has_its_own_file(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    assert cache.array("one", Maker(1.0))[0, 0, 0] == 1.0
    assert cache.array("two", Maker(2.0))[0, 0, 0] == 2.0
    assert cache.array("one", Maker(3.0))[0, 0, 0] == 1.0


def test_without_a_folder_nothing_is_kept() -> None:
    maker = Maker()
    KernelCache(None).array("one", maker)
    KernelCache(None).array("one", maker)
    assert maker.times == 2


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "text"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache, maker = KernelCache(tmp_path), Maker()
    cache.array("one", maker)
    path = the_file(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-40] ^= 1
    broken = {"cut short": content[:100], "one bit": content, "empty": b"", "text": b"not a kernel" * 10}[
        damage
    ]
    path.write_bytes(broken)
    np.testing.assert_array_equal(cache.array("one", maker), maker.array)
    assert maker.times == 2
    assert "made again" in caplog.text
    cache.array("one", maker)
    assert maker.times == 2


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    maker = Maker()
    np.testing.assert_array_equal(KernelCache(tmp_path / "file").array("one", maker), maker.array)
    assert "was not kept" in caplog.text


def test_those_not_used_for_the_longest_time_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "FILES_KEPT", 2)
    cache = KernelCache(tmp_path)
    for age, name in ((300, "oldest"), (200, "middle")):
        before = set(tmp_path.iterdir())
        cache.array(name, Maker())
        (new,) = set(tmp_path.iterdir()) - before
        os.utime(new, (new.stat().st_mtime - age,) * 2)
    cache.array("oldest", Maker())  # used again: now "middle" is the one
    cache.array("newest", Maker())
    maker = Maker()
    cache.array("oldest", maker)
    cache.array("newest", maker)
    assert maker.times == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kept_kernel_is_the_one_that_was_integrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, spacing, shape = nuclide("Lu-177"), (4.0, 4.0, 4.0), (5, 6, 7)
    made = voxel_kernel(of, spacing, shape, KernelCache(tmp_path))
    kernels._corner.cache_clear()
    monkeypatch.setattr(kernels, "_integrated", None)
    np.testing.assert_array_equal(voxel_kernel(of, spacing, shape, KernelCache(tmp_path)), made)
