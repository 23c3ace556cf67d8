"""The demonstration at a small size: the real node in its own process, every artefact it promises."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from matplotlib.image import imread
from pydicom import Dataset, dcmread
from rich.console import Console

from dicomnode.demo import SMALL_SIZE, run
from dicomnode.demo.node import NodeProcess
from dicomnode.demo.picture import Plane, colour_scale, legible, telling_plane
from dicomnode.demo.received import collect, dose_rate_of
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import NodeError
from dicomnode.results.summary_report import read_table
from dicomnode.virtual_study import Identity
from pipeline.errors import InputRejected
from pipeline.rois import Roi
from pipeline.volume import Grid, Volume
from tests import small_study

GRID = Grid((6, 8, 10), (-45.0, -30.0, 100.0), (5.0, 4.0, 3.0))


@dataclass(frozen=True)
class Demonstration:
    folder: Path
    shown: str
    left_running: list[psutil.Process]


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    folder = tmp_path_factory.mktemp("demo")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    shown = io.StringIO()
    # The command line's console takes no markup.
    run(folder, Console(file=shown, width=160, markup=False), SMALL_SIZE, quiet_s=0.5)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    return Demonstration(folder, shown.getvalue(), left)


def report_of(demonstration: Demonstration) -> Dataset:
    return dcmread(demonstration.folder / "results" / "sr.dcm")


def test_the_picture_is_a_png_of_sensible_size_and_many_colours(demonstration: Demonstration) -> None:
    path = demonstration.folder / "dose-rate.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = (imread(path)[..., :3] * 255).astype(np.int64)
    assert min(pixels.shape[:2]) > 1000
    assert len(np.unique(pixels @ [65536, 256, 1])) > 1000


def test_the_report_has_a_row_for_every_region_that_was_drawn(demonstration: Demonstration) -> None:
    rows = {row.roi: row for row in read_table(report_of(demonstration))}
    assert {
        "Body",
        "Liver without lesions",
        "Spleen",
        "Right kidney",
        "Left kidney",
        "Lesion 1 (liver)",
    } <= set(rows)
    assert rows["Lesion 1 (liver)"].mean > rows["Right kidney"].mean > rows["Liver without lesions"].mean > 0


def test_report_and_times_are_shown_and_kept(demonstration: Demonstration) -> None:
    kept = (demonstration.folder / "report.txt").read_text(encoding="utf-8")
    for name in (*(row.roi for row in read_table(report_of(demonstration))), "push the study", "deliver"):
        assert name in kept
        assert name in demonstration.shown
    assert "[" not in demonstration.shown, "no markup is shown as text"


def test_the_map_at_the_pacs_has_the_maximum_that_the_report_tells(demonstration: Demonstration) -> None:
    map_ = dose_rate_of(dcmread(demonstration.folder / "results" / "rtdose.dcm"))
    told = max(row.maximum for row in read_table(report_of(demonstration)))
    assert map_.array.max() == pytest.approx(told, rel=1e-5)


def test_nothing_is_left_but_the_promised_files(demonstration: Demonstration) -> None:
    assert demonstration.left_running == []
    names = {path.name for path in demonstration.folder.iterdir()}
    assert names == {"dose-rate.png", "report.txt", "results", "node.log"}
    assert {path.name for path in (demonstration.folder / "results").iterdir()} == {
        "rtdose.dcm",
        "seg.dcm",
        "sr.dcm",
    }


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


def test_a_case_that_is_held_tells_its_reason_and_remedy(tmp_path: Path) -> None:
    study = small_study.write(tmp_path / "study", spect=None)
    other = Identity(patient_id="SOMEONE-ELSE")
    mixed_up = small_study.write(tmp_path / "other", identity=other, ct=None)
    with (
        StandinPacs(tmp_path / "pacs") as pacs,
        NodeProcess(tmp_path, tmp_path / "node.log", pacs, quiet_s=0.5, tick_s=0.1) as node,
    ):
        node.push([*study.all, *mixed_up.all])
        with pytest.raises(NodeError, match="HELD") as caught:
            node.follow(str(study.study.study_instance_uid), 60.0)
    assert caught.value.remedy
    assert pacs.received == []


def test_a_node_that_does_not_start_is_no_endless_wait(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the node needs a folder")
    node = NodeProcess(
        tmp_path, tmp_path / "node.log", StandinPacs(tmp_path / "pacs", port=11112), quiet_s=0.5
    )
    with pytest.raises(NodeError, match="ended by itself"), node:
        pytest.fail("it must not start")
    assert "data_dir" in (tmp_path / "node.log").read_text()


def test_results_without_a_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="no RTDOSE and no SEG and no SR"):
        collect([], tmp_path / "results")


# ── the picture's choices ────────────────────────────────────────────────────────────────────────


def ramp() -> Volume:
    return Volume(np.arange(480, dtype=np.float32).reshape(GRID.shape), GRID, "mGy/h")


def region(name: str, box: tuple[slice, slice, slice]) -> Roi:
    shape = tuple(part.stop - part.start for part in box)
    return Roi(name, 1, box, np.ones(shape, dtype=bool), GRID.shape, "1.2.3")


def test_a_plane_lies_where_its_voxels_do() -> None:
    plane = Plane(1, -22.0)
    assert plane.index(GRID) == 2
    np.testing.assert_array_equal(plane.of(ramp().array, GRID), ramp().array[:, 2, :])
    assert plane.extent(GRID) == (-46.5, -16.5, 97.5, 127.5)
    assert Plane(0, 105.0).extent(GRID) == (-46.5, -16.5, -32.0, 0.0)


def test_the_plane_shown_crosses_most_of_the_regions() -> None:
    regions = [
        region("A", (slice(0, 3), slice(0, 2), slice(0, 2))),
        region("B", (slice(2, 6), slice(4, 8), slice(4, 8))),
    ]
    assert telling_plane(ramp(), regions, 0) == Plane(0, 110.0)
    assert telling_plane(ramp(), [], 0) == Plane(0, 125.0)


def test_the_colours_span_the_body_and_not_one_hot_voxel() -> None:
    hot = ramp().with_array(np.where(ramp().array == 0, np.float32(1e6), np.float32(2.0)))
    body = region("Body", (slice(1, 6), slice(0, 8), slice(0, 10)))
    assert colour_scale(hot, [body]).vmax == pytest.approx(2.0)


def test_numbers_on_the_colour_bar_do_not_touch() -> None:
    scale = colour_scale(ramp(), [])
    kept = legible(scale, [0, 0.2, 0.5, 1, 2, 5, 100, 400])
    assert kept[0] == 0
    assert kept[-1] == 400
    assert np.diff([float(scale(level)) for level in kept]).min() > 0.05
