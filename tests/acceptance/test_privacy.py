"""What a whole case leaves behind: who may read it, what log and audit trail say, what retention takes."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pydicom
import pytest

from dicomnode.states import Event, State
from dicomnode.virtual_study import Identity, StudyFiles
from tests import small_study
from tests.acceptance.harness import NODE_AE, Node, Orthanc, push, until
from tests.dicomnode.test_audit import checked, codes, instances, objects, participants

pytestmark = pytest.mark.peers
Find = Callable[[str], str]

WHO = Identity(
    patient_name="Zzyzxova^Unmistakable",
    patient_id="ZZ-UNMISTAKABLE-4711",
    issuer_of_patient_id="ISSUER",
    birth_date="19440229",
    accession_number="ACCUNMISTAK",
)
NEVER_IN_THE_LOG = ("Zzyzxova", "Unmistakable", "ZZ-UNMISTAKABLE", "19440229", "ACCUNMISTAK")


@pytest.fixture(scope="module")
def private(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node under the most careless umask, with an audit trail, a notification, and rejection notes."""
    folder = tmp_path_factory.mktemp("private")
    told = folder / "told.txt"
    extra = f"""
[[peers]]
name = "viewer"
ae_title = "FINDSCU"
may = ["echo", "find"]
[audit]
file = "{folder / "audit.log"}"
[notify]
command = ["sh", "-c", "cat >> {told}; env >> {told}"]
[retention]
inputs_days = 1
"""
    node = Node(folder, pacs.port, extra=extra, pacs_extra="rejection_notes = true")
    before = os.umask(0)
    try:
        node.start()
    finally:
        os.umask(before)
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log()


@pytest.fixture(scope="module")
def journey(
    private: Node, pacs: Orthanc, peer_program: Find, tmp_path_factory: pytest.TempPathFactory
) -> StudyFiles:
    """A case that is DONE, and DONE again after a late structure set; one that is HELD; and refusals."""
    storescu = peer_program("storescu")
    files = small_study.write(tmp_path_factory.mktemp("study"), "private", identity=WHO)
    uid = files.study.study_instance_uid
    assert files.rtstruct is not None
    push(storescu, private.port, [f for f in files.all if f != files.rtstruct])
    private.reaches(uid, State.DONE)
    push(storescu, private.port, [files.rtstruct])
    private.reaches(uid, State.COLLECTING, State.READY, State.COMPUTING)
    private.reaches(uid, State.DONE)
    held = small_study.write(tmp_path_factory.mktemp("held"), "held", identity=WHO, spect=None)
    push(storescu, private.port, held.all)
    private.reaches(held.study.study_instance_uid, State.HELD)
    push(storescu, private.port, files.ct[:1])
    push(storescu, private.port, [contradicting(files.ct[1])])
    private.reaches(uid, State.HELD)
    query(peer_program("findscu"), private, "FINDSCU")
    query(peer_program("findscu"), private, "STRANGER")
    told = private.folder / "told.txt"
    until(lambda: told.exists() and told.read_text().count("is HELD") == 2, "both are told of")
    # Written by a thread of its own; Security Alert and Query are of the last two associations.
    audited = private.folder / "audit.log"
    until(lambda: all(code in audited.read_text() for code in ("110112", "110113")), "the trail tells of all")
    return files


def contradicting(path: Path) -> Path:
    """The same SOP Instance UID with other pixels."""
    ds = pydicom.dcmread(path)
    ds.PixelData = bytes(len(ds.PixelData))
    changed = path.with_name("contradicting.dcm")
    ds.save_as(changed)
    return changed


def query(findscu: str, node: Node, caller: str) -> None:
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"PatientID={WHO.patient_id}", "-k", "PatientName"]
    command = [findscu, "-S", "-aet", caller, "-aec", NODE_AE, "127.0.0.1", str(node.port), *keys]
    subprocess.run(command, capture_output=True, timeout=60, check=False)


def test_every_file_and_folder_is_the_service_accounts_alone(private: Node, journey: StudyFiles) -> None:
    """Under umask 0, SQLite's journals included."""
    paths = [private.data_dir, *private.data_dir.rglob("*"), private.folder / "audit.log"]
    names = {path.name for path in paths}
    assert {"ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm", "spool", "results"} <= names
    open_to_others = {str(path): oct(path.stat().st_mode) for path in paths if path.stat().st_mode & 0o077}
    assert open_to_others == {}


def test_the_log_and_the_notification_name_no_patient(private: Node, journey: StudyFiles) -> None:
    told = (private.folder / "told.txt").read_text()
    assert "Zzyzx" not in told
    for text in (private.log(), told):
        assert [word for word in NEVER_IN_THE_LOG if word in text] == []
    assert "is HELD" in private.log()
    assert "STRANGER" in private.log()


def test_the_audit_trail_names_patients_by_their_id_and_by_nothing_else(
    private: Node, journey: StudyFiles
) -> None:
    text = (private.folder / "audit.log").read_text(encoding="utf-8")
    for word in ("Zzyzxova", "19440229", "ACCUNMISTAK"):
        assert word not in text
    assert WHO.patient_id in text


def trail(node: Node) -> list[ElementTree.Element]:
    lines = (node.folder / "audit.log").read_text(encoding="utf-8").splitlines()
    return [checked(line.partition(" - ")[2]) for line in lines]


def test_the_audit_trail_tells_what_happened_in_one_message_each(private: Node, journey: StudyFiles) -> None:
    messages = trail(private)
    assert codes(messages[0])["EventTypeCode"] == "110120"
    uid = journey.study.study_instance_uid
    came = [m for m in messages if codes(m)["EventID"] == "110104" and objects(m).get("110180") == uid]
    from_modality = [m for m in came if participants(m)[0][0] == "AETITLES=MODALITY"]
    first = from_modality[0]
    assert sum(map(int, instances(first).values())) == len(journey.all) - 1
    assert objects(first)["2"] == WHO.patient_id
    # The late structure set; the slice that was there; the one that contradicts it.
    rest = [(codes(m)["EventActionCode"], codes(m)["EventOutcomeIndicator"]) for m in from_modality[1:]]
    assert rest == [("C", "0"), ("R", "0"), ("C", "4")]
    to_pacs = [m for m in came if participants(m)[1][0] == "AETITLES=ORTHANC"]
    # First results; note; second results.
    assert [sum(map(int, instances(m).values())) for m in to_pacs] == [3, 1, 3]
    accessed = [m for m in messages if codes(m)["EventID"] == "110103"]
    assert len(accessed) == 2


def test_the_audit_trail_tells_who_asked_and_who_was_refused(private: Node, journey: StudyFiles) -> None:
    messages = trail(private)
    (asked,) = [m for m in messages if codes(m)["EventID"] == "110112"]
    assert participants(asked)[0] == ("AETITLES=FINDSCU", "110153", "true")
    identifier = asked.find(".//ParticipantObjectQuery")
    assert identifier is not None
    assert WHO.patient_id.encode() in base64.b64decode(identifier.text or "")
    (alert,) = [m for m in messages if codes(m)["EventID"] == "110113"]
    assert participants(alert)[1][0] == "AETITLES=STRANGER"
    assert objects(alert) == {"110182": "127.0.0.1"}


def test_the_replaced_results_are_rejected_in_the_pacs(
    pacs: Orthanc, journey: StudyFiles, peer_program: Find, tmp_path: Path
) -> None:
    uid = journey.study.study_instance_uid
    assert pacs.held(uid) == {"RTDOSE": 2, "SEG": 2, "SR": 2, "KO": 1}
    found = [pydicom.dcmread(p) for p in pacs.move(peer_program("movescu"), uid, tmp_path)]
    (note,) = [ds for ds in found if ds.Modality == "KO"]
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    named = {
        sop.ReferencedSOPInstanceUID
        for series in note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    }
    (report,) = [ds for ds in found if ds.Modality == "SR" and ds.SOPInstanceUID not in named]
    assert len(named) == 3
    assert {ds.SOPInstanceUID for ds in found if ds.Modality == "RTDOSE"} & named
    assert note.PatientName == report.PatientName == WHO.patient_name
    assert subprocess.run([peer_program("dcmftest"), str(found[0].filename)], check=False).returncode == 0


def test_the_check_warns_of_a_folder_that_everybody_can_read(private: Node, journey: StudyFiles) -> None:
    assert "every account" not in private.run("check", "--config-only").stdout
    (private.data_dir / "spool").chmod(0o755)
    try:
        shown = private.run("check", "--config-only").stdout
    finally:
        (private.data_dir / "spool").chmod(0o700)
    assert "every account of this machine can look into" in shown
    assert "chmod o-rwx" in shown


def test_inputs_that_are_old_go_and_a_late_object_makes_no_result_from_the_rest(
    private: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "retention")
    uid = files.study.study_instance_uid
    push(peer_program("storescu"), private.port, files.all)
    case = private.reaches(uid, State.DONE)
    # The node would do by itself, once a minute, what the command does.
    assert private.stop() == 0
    assert private.run("retention", "--dry-run").stdout == "nothing is due\n"
    make_older(private, case.id, days=2)
    assert "inputs_days = 1" in private.run("retention", "--dry-run").stdout
    assert (private.data_dir / "spool" / uid).exists()
    removed = private.run("retention")
    assert "were removed" in removed.stdout, removed.stderr
    assert not (private.data_dir / "spool" / uid).exists()
    private.start()
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    shown = private.run("show", str(case.id)).stdout
    assert "inputs removed" in shown
    push(peer_program("storescu"), private.port, files.ct)
    held = private.reaches(uid, State.HELD)
    assert "objects that retention removed on" in held.reason
    push(peer_program("storescu"), private.port, files.all)
    private.reaches(uid, State.DONE)
    assert [t.event for t in private.story(case.id)].count(Event.CLAIM) == 1
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def make_older(node: Node, case_id: int, days: float) -> None:
    with sqlite3.connect(node.data_dir / "ledger.sqlite3", timeout=30) as ledger:
        ledger.execute("UPDATE cases SET updated_at = updated_at - ? WHERE id = ?", (days * 86400, case_id))
