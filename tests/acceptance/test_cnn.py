"""Engine cnn beside dvk, from push to Orthanc; and dvk alone for a camera that has no approved weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from dicomnode.states import State
from dicomnode.virtual_study import NmStyle
from models.weights import Manifest
from tests import small_study, untrained_weights
from tests.acceptance.harness import Node, Orthanc, push

pytestmark = pytest.mark.peers

pytest.importorskip("torch")
pytest.importorskip("safetensors")

APPROVED, OTHER = "Symbia Intevo", "Infinia"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("weights") / "untrained"
    # Whatever untrained weights give lies outside this range.
    return folder, untrained_weights.write(folder, ood={"body": (50.0, 60.0), "roi": (50.0, 60.0)})


@pytest.fixture(scope="module")
def node(
    pacs: Orthanc, weights: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    settings = f"""
engines = ["dvk", "cnn"]
[[camera]]
name = "room 1"
match = {{ ManufacturerModelName = "{APPROVED}" }}
cnn_weights = "{weights[0]}"
resolution_fwhm_mm = 11.0
[[camera]]
name = "room 2"
match = {{ ManufacturerModelName = "{OTHER}" }}
"""
    node = Node(tmp_path_factory.mktemp("node"), pacs.port, extra=settings)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def results(
    node: Node, pacs: Orthanc, find: Callable[[str], str], folder: Path, model: str
) -> tuple[dict[str, pydicom.FileDataset], int]:
    """What the PACS has of a study from that camera: RTDOSE by engine, and the SR; the case's number."""
    files = small_study.write(folder / "study", model, nm_style=NmStyle(model=model))
    uid = files.study.study_instance_uid
    assert len(push(find("storescu"), node.port, files.all)) == len(files.all)
    case = node.reaches(uid, State.DONE, State.HELD, State.FAILED)
    assert case.state is State.DONE, (case.reason, case.remedy)
    moved = [pydicom.dcmread(p) for p in pacs.move(find("movescu"), uid, folder / "moved")]
    named = {ds.SeriesDescription.split()[1].lower(): ds for ds in moved if ds.Modality == "RTDOSE"}
    (report,) = (ds for ds in moved if ds.Modality == "SR")
    return {**named, "SR": report}, case.id


def said(report: pydicom.Dataset) -> str:
    """Every text of a report."""
    return "\n".join(str(element.value) for element in report.iterall() if element.keyword == "TextValue")


def test_both_doses_reach_the_pacs_and_the_report_names_the_weights(
    node: Node,
    pacs: Orthanc,
    weights: tuple[Path, Manifest],
    peer_program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    found, case = results(node, pacs, peer_program, tmp_path, APPROVED)
    assert found.keys() == {"dvk", "cnn", "SR"}
    sha256 = weights[1].sha256
    assert sha256 in said(found["SR"])
    assert sha256 in found["cnn"].ImageComments
    assert sha256 not in found["dvk"].ImageComments
    # What differs more from DVK than the evaluation saw is told wherever a person looks.
    for told in (said(found["SR"]), found["cnn"].ImageComments, node.run("show", str(case)).stdout):
        assert "expects 50 to 60" in told
    node.says(f"case {case}: the energy that the network finds in the whole map is")


def test_a_camera_without_approved_weights_gets_dvk_alone_and_the_reason(
    node: Node, pacs: Orthanc, peer_program: Callable[[str], str], tmp_path: Path
) -> None:
    found, case = results(node, pacs, peer_program, tmp_path, OTHER)
    assert found.keys() == {"dvk", "SR"}
    reason = "no network weights are approved for the camera 'room 2'"
    assert reason in said(found["SR"])
    node.says(f"case {case}: engine cnn was not used, and dvk stands in its place: {reason}")


def test_check_shows_what_was_approved(node: Node, weights: tuple[Path, Manifest]) -> None:
    told = " ".join(node.run("check").stdout.split())
    assert f"untrained 7 for Lu-177, SHA-256 {weights[1].sha256}" in told
