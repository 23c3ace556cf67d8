"""The main job at its real size: 512 x 512 x 130 pushed by DCMTK, computed, kept by Orthanc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicomnode.demo.patient import FULL_SIZE, write_patient
from dicomnode.results.summary_report import read_table
from dicomnode.states import Event, State
from tests.acceptance.harness import Node, Orthanc, push

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]


def test_a_full_size_study_goes_from_storescu_to_orthanc(
    node: Node, pacs: Orthanc, peer_program: Callable[[str], str], tmp_path: Path
) -> None:
    files = write_patient(tmp_path / "study", FULL_SIZE)
    uid = files.study.study_instance_uid
    assert len(push(peer_program("storescu"), node.port, files.all)) == len(files.all) == 132
    case = node.reaches(uid, State.DONE, State.HELD, State.FAILED, timeout_s=300, pause_s=0.2)
    assert case.state is State.DONE, (case.reason, case.remedy)
    at = {step.event: step.at for step in node.story(case.id)}
    print(f"READY to DONE: {at[Event.DELIVER] - at[Event.COMPLETE]:.1f} s")

    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    moved = [pydicom.dcmread(p) for p in pacs.move(peer_program("movescu"), uid, tmp_path / "moved")]
    by_modality = {ds.Modality: ds for ds in moved}
    dose = by_modality["RTDOSE"]
    assert (dose.NumberOfFrames, dose.BitsAllocated) == (130, 32)
    assert np.allclose(dose.PixelSpacing, 0.9766, atol=1e-3)
    rows = {row.roi: row for row in read_table(by_modality["SR"])}
    highest_mgy_per_h = 1000 * float(dose.pixel_array.max()) * float(dose.DoseGridScaling)
    assert rows["Body"].maximum == pytest.approx(highest_mgy_per_h, rel=1e-6)
    # What a physicist expects after Lu-177 DOTATATE: lesions above spleen and kidneys above liver.
    lesions = [row.mean for name, row in rows.items() if name.startswith("Lesion")]
    assert max(lesions) > rows["Spleen"].mean > rows["Liver without lesions"].dr70 > 0
    assert rows["Left kidney"].mean > rows["Liver without lesions"].dr30
    # 0.08532 Gy/h per MBq/g, if all of its electrons stay in an organ: photons add, edges take.
    kidney = rows["Left kidney"]
    assert kidney.mean == pytest.approx(85.32 * kidney.activity_mbq / kidney.mass_g, rel=0.10)
