"""Engine mc beside dvk, from push to Orthanc: both doses, and how certain they are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from dicomnode.results.summary_report import read_table
from dicomnode.states import State
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, push

pytestmark = pytest.mark.peers

MONTE_CARLO = """
engines = ["dvk", "mc"]
[montecarlo]
mean_uncertainty = 0.05
time_limit_s = 120.0
uncertainty_map = true
"""
MODELS_DIFFER_BY = 0.03
"""DVK has soft tissue without end, of one density; the Monte Carlo has the body's surface and its density."""


@pytest.fixture(scope="module")
def node(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), pacs.port, extra=MONTE_CARLO)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def test_both_engines_reach_the_pacs_and_agree_within_what_they_state(
    node: Node, pacs: Orthanc, peer_program: Callable[[str], str], tmp_path: Path
) -> None:
    """One RTDOSE each, the map of the uncertainty, and a report that names it."""
    files = small_study.write(tmp_path / "study", "monte carlo")
    uid = files.study.study_instance_uid
    assert len(push(peer_program("storescu"), node.port, files.all)) == len(files.all)
    case = node.reaches(uid, State.DONE, State.HELD, State.FAILED)
    assert case.state is State.DONE, (case.reason, case.remedy)

    moved = [pydicom.dcmread(p) for p in pacs.move(peer_program("movescu"), uid, tmp_path / "moved")]
    doses = {ds.SeriesDescription.split()[1].lower(): ds for ds in moved if ds.Modality == "RTDOSE"}
    assert doses.keys() == {"dvk", "mc"}
    assert len({ds.SOPInstanceUID for ds in moved}) == len(moved) == 5
    (map_,) = (ds for ds in moved if "FloatPixelData" in ds)
    assert map_.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == doses["mc"].SOPInstanceUID

    (report,) = (ds for ds in moved if ds.Modality == "SR")
    cube = {row.algorithm.split()[0]: row for row in read_table(report) if row.roi == "hot cube"}
    dvk, mc = cube["Dose-voxel-kernel"], cube["Monte"]
    assert dvk.mean_uncertainty is None
    assert mc.mean_uncertainty is not None
    assert mc.voxel_uncertainty is not None
    assert 0 < mc.mean_uncertainty < mc.voxel_uncertainty
    assert mc.mean == pytest.approx(dvk.mean, rel=MODELS_DIFFER_BY + 3 * mc.mean_uncertainty / 100)

    report.save_as(tmp_path / "SR.dcm")
    told = subprocess.run(
        [peer_program("dsrdump"), tmp_path / "SR.dcm"], capture_output=True, text=True, check=True
    ).stdout
    assert "range of measurement uncertainty" in told
    assert "Statistical standard uncertainty (k=1) of the mean dose rate" in told
    assert "mc uncertainty (k=1): hot cube: mean" in node.run("show", str(case.id)).stdout
