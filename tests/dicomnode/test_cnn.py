"""Engine cnn in the node: what is approved, what the results say of it, and dvk in its place elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from rich.console import Console

from dicomnode.commands.check import Finding, check
from dicomnode.commands.folder import compute_folder
from dicomnode.computing.case_job import ALGORITHMS
from dicomnode.computing.job import Outcome
from dicomnode.config import Config, parse
from dicomnode.errors import ConfigurationError
from dicomnode.results.summary_report import read_table
from dicomnode.virtual_study import StudyFiles
from models.weights import Manifest
from pipeline.errors import InputRejected
from tests import small_study, untrained_weights

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

CNN = ALGORITHMS["cnn"].name


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("weights") / "untrained"
    return folder, untrained_weights.write(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return small_study.write(tmp_path_factory.mktemp("study"), "cnn")


def config(engines: list[str], data_dir: Path, *cameras: dict[str, Any], **tables: Any) -> Config:
    return parse(
        {
            "node": {"data_dir": str(data_dir)},
            "dose": {"engines": engines, "device": "cpu"},
            "receive": {"min_free_gb": 0.0},
            "camera": list(cameras),
            **tables,
        }
    )


def computed(study: StudyFiles, out: Path, settings: Config) -> Outcome:
    return compute_folder(study.folder, out, settings, Console(quiet=True))


def texts(of: Dataset) -> Iterator[str]:
    for item in of.get("ContentSequence", []):
        if item.ValueType == "TEXT":
            yield str(item.TextValue)
        yield from texts(item)


@pytest.fixture(scope="module")
def both(
    study: StudyFiles, weights: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("both")
    settings = config(["dvk", "cnn"], out / "data", untrained_weights.camera(weights[0]))
    return computed(study, out / "results", settings), out / "results"


def test_the_network_gets_a_dose_and_a_section_of_its_own(both: tuple[Outcome, Path]) -> None:
    outcome, out = both
    assert {p.name for p in out.iterdir()} == {
        "SEG.dcm", "RTDOSE-dvk.dcm", "RTDOSE-cnn.dcm", "SR.dcm",
    }  # fmt: skip
    rows = read_table(dcmread(out / "SR.dcm"))
    assert {row.algorithm for row in rows} == {ALGORITHMS["dvk"].name, CNN}
    for algorithm in (ALGORITHMS["dvk"].name, CNN):
        assert {"Body", "Field of view", "hot cube"} == {r.roi for r in rows if r.algorithm == algorithm}
    doses = {name: dcmread(out / f"RTDOSE-{name}.dcm") for name in ("dvk", "cnn")}
    assert "CNN dose rate" in doses["cnn"].SeriesDescription
    grids = [d.pixel_array.shape for d in doses.values()]
    assert grids[0] == grids[1]
    in_gy = [d.pixel_array * float(d.DoseGridScaling) for d in doses.values()]
    assert not np.allclose(*in_gy, rtol=1e-3)
    assert json.loads(outcome.inputs_free_run.details_json)["device"] == {"dvk": "cpu", "cnn": "cpu"}


def test_report_dose_and_ledger_name_the_weights(
    both: tuple[Outcome, Path], weights: tuple[Path, Manifest]
) -> None:
    outcome, out = both
    sha256 = weights[1].sha256
    report = dcmread(out / "SR.dcm")
    told = "\n".join(texts(report))
    assert f"CNN: network weights untrained, version 7, SHA-256 {sha256}" in told
    assert f"weights_sha256={sha256}" in told
    comments = {name: dcmread(out / f"RTDOSE-{name}.dcm").ImageComments for name in ("dvk", "cnn")}
    assert f"Algorithm: {CNN}" in comments["cnn"]
    assert f"SHA-256 of the network weights: {sha256}." in comments["cnn"]
    assert "Network weights: untrained, version 7." in comments["cnn"]
    assert "precision=exact" in comments["cnn"]
    assert sha256 not in comments["dvk"]
    assert outcome.inputs_free_run.weights_sha256 == sha256
    assert len(outcome.inputs_free_run.kernel_sha256.split()) == 2


def test_other_weights_in_the_same_folder_are_another_result(study: StudyFiles, tmp_path: Path) -> None:
    """The configuration names a folder: the UIDs of its numbers must not be those of other numbers."""
    found = []
    folder = tmp_path / "weights"
    for seed in (1, 2):
        untrained_weights.write(tmp_path / f"seed {seed}", seed=seed)
        if folder.is_symlink():
            folder.unlink()
        folder.symlink_to(tmp_path / f"seed {seed}")
        settings = config(["cnn"], tmp_path / "data", untrained_weights.camera(folder))
        outcome = computed(study, tmp_path / f"out {seed}", settings)
        found.append({(r.kind, r.engine): r.sop_instance_uid for r in outcome.results})
    assert found[0].keys() == found[1].keys() == {("SEG", ""), ("RTDOSE", "cnn"), ("SR", "")}
    assert not set(found[0].values()) & set(found[1].values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "no network weights are approved for the camera of this SPECT, which is not listed"),
        ({"cnn_weights": ""}, "no network weights are approved for the camera 'NM1'"),
        ({"resolution_fwhm_mm": 20.0}, "for a resolution of 8 to 14 mm, and the camera 'NM1' has 20 mm"),
    ],
    ids=["not listed", "not approved", "resolution"],
)
def test_dvk_stands_in_its_place_and_the_report_says_why(
    study: StudyFiles,
    weights: tuple[Path, Manifest],
    tmp_path: Path,
    changes: dict[str, Any] | None,
    reason: str,
) -> None:
    cameras = [] if changes is None else [untrained_weights.camera(weights[0], **changes)]
    outcome = computed(study, tmp_path / "out", config(["cnn"], tmp_path / "data", *cameras))
    assert [(r.kind, r.engine) for r in outcome.results] == [("SEG", ""), ("RTDOSE", "dvk"), ("SR", "")]
    (comment,) = (t for t in texts(dcmread(tmp_path / "out" / "SR.dcm")) if "engine cnn was not used" in t)
    assert reason in comment
    assert reason in dcmread(tmp_path / "out" / "RTDOSE-dvk.dcm").ImageComments
    (flag,) = json.loads(outcome.inputs_free_run.details_json)["flags"]
    assert flag == comment
    assert outcome.inputs_free_run.weights_sha256 == ""


def test_a_dose_grid_that_is_too_coarse_leaves_dvk_alone(
    study: StudyFiles, weights: tuple[Path, Manifest], tmp_path: Path
) -> None:
    settings = config(
        ["dvk", "cnn"],
        tmp_path / "data",
        untrained_weights.camera(weights[0]),
        dose={"engines": ["dvk", "cnn"], "device": "cpu", "grid_spacing_mm": [6.0, 4.0, 4.0]},
    )
    outcome = computed(study, tmp_path / "out", settings)
    assert [r.engine for r in outcome.results if r.kind == "RTDOSE"] == ["dvk"]
    assert "6 mm wide" in " ".join(texts(dcmread(tmp_path / "out" / "SR.dcm")))


def test_a_map_of_an_earlier_run_that_nothing_replaces_is_named(
    study: StudyFiles, both: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """The archive still shows the network's map beside the new report, which has none."""
    from dicomnode.commands.folder import _headers
    from dicomnode.computing.case_job import perform
    from dicomnode.computing.job import Job
    from dicomnode.selection import Preferences, choose

    inputs = choose(_headers(study.folder, Console(quiet=True)), Preferences())
    settings = config(["cnn"], tmp_path / "data")
    perform(Job(inputs, settings, tmp_path / "out", "again", predecessors=both[0].results))
    old = {r.engine: r.sop_instance_uid for r in both[0].results if r.kind == "RTDOSE"}
    (told,) = (t for t in texts(dcmread(tmp_path / "out" / "SR.dcm")) if "an earlier run made" in t)
    assert old["cnn"] in told
    assert old["dvk"] not in told


def altered(folder: Path) -> Path:
    untrained_weights.write(folder)
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return folder


@pytest.mark.parametrize("which", ["missing", "altered"])
def test_weights_that_are_missing_or_altered_hold_the_case_and_leave_nothing(
    study: StudyFiles, tmp_path: Path, which: str
) -> None:
    """The physicist approved something that is not there: nobody decides for him what to use instead."""
    folder = altered(tmp_path / "w") if which == "altered" else tmp_path / "none"
    settings = config(["dvk", "cnn"], tmp_path / "data", untrained_weights.camera(folder))
    with pytest.raises(InputRejected, match=r"no weights|not what its manifest states") as rejected:
        computed(study, tmp_path / "out", settings)
    assert rejected.value.remedy
    assert not (tmp_path / "out").exists()


# ── config.toml and `dicomnode check` ────────────────────────────────────────────────────────────


def problem(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(data)
    return str(caught.value)


def test_an_approval_without_a_resolution_is_none() -> None:
    camera = untrained_weights.camera("x")
    del camera["resolution_fwhm_mm"]
    assert "cnn_weights needs resolution_fwhm_mm" in problem({"camera": [camera]})


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_resolution_is_a_length(width: float) -> None:
    entry = untrained_weights.camera("x", resolution_fwhm_mm=width)
    assert "resolution_fwhm_mm must be above 0" in problem({"camera": [entry]})


def test_a_precision_that_there_is_not_is_named() -> None:
    assert 'is none of "exact", "fast"' in problem({"network": {"precision": "half"}})


def looked_at(settings: Config) -> dict[str, Finding]:
    return {f.subject: f for f in check(settings, network=False) if "cnn" in f.subject + f.text}


def test_check_is_content_with_weights_that_hold(tmp_path: Path, weights: tuple[Path, Manifest]) -> None:
    found = looked_at(config(["cnn"], tmp_path, untrained_weights.camera(weights[0])))
    (finding,) = found.values()
    assert (finding.level, finding.subject) == ("ok", '[[camera]] "NM1" cnn_weights')
    assert f"untrained 7 for Lu-177, SHA-256 {weights[1].sha256}" in finding.text


def test_check_names_settings_that_keep_the_network_from_running(
    tmp_path: Path, weights: tuple[Path, Manifest]
) -> None:
    dose = {"engines": ["cnn"], "grid_spacing_mm": [6.0, 4.0, 4.0], "memory_limit_gb": 4.0}
    found = looked_at(config(["cnn"], tmp_path, untrained_weights.camera(weights[0]), dose=dose))
    for subject, text in (("grid_spacing_mm", "6 mm"), ("memory_limit_gb", "4 GB")):
        finding = found[f"[dose] {subject}"]
        assert (finding.level, text in finding.text) == ("warning", True)


def test_check_names_what_is_wrong_with_weights(tmp_path: Path, weights: tuple[Path, Manifest]) -> None:
    untrained_weights.write(tmp_path / "other", architecture="no-residual")
    cases = {
        "no weights": untrained_weights.camera(tmp_path / "none"),
        "not what its manifest states": untrained_weights.camera(altered(tmp_path / "altered")),
        "has 20 mm": untrained_weights.camera(weights[0], resolution_fwhm_mm=20.0),
        "neither the name of shipped weights nor an absolute path": untrained_weights.camera("weights/w"),
        "no correction of DVK's": untrained_weights.camera(tmp_path / "other"),
    }
    for text, entry in cases.items():
        found = [
            f
            for engines in (["cnn"], ["dvk"])
            for f in check(config(engines, tmp_path / "data", entry), network=False)
            if f.subject.startswith("[[camera]]")
        ]
        # Where no case will ask for them, the node must start all the same.
        assert [f.level for f in found] == ["problem", "warning"], text
        assert text in found[0].text
        assert found[0].remedy


def test_check_says_when_no_camera_has_weights(tmp_path: Path) -> None:
    (finding,) = looked_at(config(["cnn"], tmp_path)).values()
    assert (finding.level, finding.subject) == ("warning", "engine cnn")
    assert "leaves every case to dvk" in finding.text
