"""The note that rejects replaced results (IHE IOCM): what it says, whom it reaches, and when."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import highdicom as hd
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RTDoseStorage,
    generate_uid,
)

from dicomnode.commands.show import _delivered
from dicomnode.computing import case_job
from dicomnode.computing.job import Job
from dicomnode.config import Config, parse
from dicomnode.deliver import Deliverer
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Delivery, Identity, NewResult, Rejection, Result
from dicomnode.results import encode, notes_apart, rejection
from dicomnode.results.findings import Findings, InstanceReference, Predecessor, ResultKind
from dicomnode.results.header import ResultIdentity
from dicomnode.results.notes_apart import taken_apart
from dicomnode.results.writing import uid_source, write_durably
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import instance, run_of, write_object
from tests.dicomnode.synthetic_findings import NOW, SETTINGS, STUDY, ct_headers, findings

CLASSES = {
    ResultKind.SEG: "1.2.840.10008.5.1.4.1.1.66.4",
    ResultKind.RTDOSE: "1.2.840.10008.5.1.4.1.1.481.2",
    ResultKind.PM: "1.2.840.10008.5.1.4.1.1.30",
    ResultKind.SR: "1.2.840.10008.5.1.4.1.1.88.34",
}
REJECTED = tuple(
    Predecessor(InstanceReference(uid, f"1.2.3.8.{n}", f"1.2.3.9.{n}", STUDY), kind)
    for n, (kind, uid) in enumerate(CLASSES.items())
)


def rejecting() -> Findings:
    ct = ct_headers(PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    return findings(rejected=(REJECTED,), ct_headers=ct)


Reason = Literal["quality", "patient_safety"]


def note_of(folder: Path, reason: Reason = "quality") -> pydicom.FileDataset:
    settings = dataclasses.replace(SETTINGS, rejection_reason=reason)
    objects = encode.encode(rejecting(), settings, folder, NOW, uid_source("", STUDY))
    assert objects[0].kind is ResultKind.REJECTION
    return pydicom.dcmread(objects[0].path)


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reason", "code", "meaning"),
    [
        ("quality", "113001", "Rejected for Quality Reasons"),
        ("patient_safety", "113037", "Rejected for Patient Safety Reasons"),
    ],
)
def test_its_title_is_the_reason_that_is_configured(
    tmp_path: Path, reason: Reason, code: str, meaning: str
) -> None:
    note = note_of(tmp_path, reason)
    (title,) = note.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning) == (code, "DCM", meaning)
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert note.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    assert note.Modality == "KO"


def test_it_names_every_rejected_object_in_its_tree_and_in_its_evidence(tmp_path: Path) -> None:
    note = note_of(tmp_path)
    named = [item for item in note.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    assert [(item.ValueType, item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in named] == [
        ("IMAGE", "1.2.3.8.0"),
        ("COMPOSITE", "1.2.3.8.1"),
        ("IMAGE", "1.2.3.8.2"),
        ("COMPOSITE", "1.2.3.8.3"),
    ]
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == STUDY
    evidence = {
        (series.SeriesInstanceUID, sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    }
    instances = [one.instance for one in REJECTED]
    assert evidence == {(i.series_instance_uid, i.sop_class_uid, i.sop_instance_uid) for i in instances}
    document = hd.ko.KeyObjectSelectionDocument.from_dataset(note)
    assert document.resolve_reference("1.2.3.8.1") == (STUDY, "1.2.3.9.1", "1.2.3.8.1")


def test_patient_and_study_are_those_of_the_ct(tmp_path: Path) -> None:
    ct, note = rejecting().ct_headers[0], note_of(tmp_path)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert note[keyword].value == ct[keyword].value


def test_without_anything_to_reject_there_is_no_note_and_the_others_keep_their_uids(tmp_path: Path) -> None:
    uids = uid_source("", STUDY)
    plain = encode.encode(findings(), SETTINGS, tmp_path / "a", NOW, uids)
    for rejected in ((REJECTED,), (REJECTED, REJECTED[:1], REJECTED[1:])):
        folder = tmp_path / f"{len(rejected)}"
        with_notes = encode.encode(findings(rejected=rejected), SETTINGS, folder, NOW, uids)
        others = with_notes[len(rejected) :]
        assert [o.kind for o in with_notes] == [ResultKind.REJECTION] * len(rejected) + [
            o.kind for o in plain
        ]
        assert [o.sop_instance_uid for o in others] == [o.sop_instance_uid for o in plain]
        read = [pydicom.dcmread(o.path, stop_before_pixels=True) for o in with_notes]
        for keyword in ("SeriesNumber", "SOPInstanceUID", "SeriesInstanceUID"):
            assert len({ds[keyword].value for ds in read}) == len(with_notes)
        named = [[ref.ReferencedSOPInstanceUID for ref in sops(ds)] for ds in read[: len(rejected)]]
        assert named == [[p.instance.sop_instance_uid for p in each] for each in rejected]


def sops(note: pydicom.Dataset) -> list[pydicom.Dataset]:
    items = [item for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    return [item.ReferencedSOPSequence[0] for item in items]


@pytest.mark.peers
@pytest.mark.parametrize("reason", ["quality", "patient_safety"])
def test_software_of_others_finds_no_fault_in_it(
    peer_program: Callable[[str], str], tmp_path: Path, reason: Reason
) -> None:
    path = Path(str(note_of(tmp_path, reason).filename))
    verified = run(peer_program("dciodvfy"), "-new", path)
    assert verified.returncode == 0, verified.stderr
    assert "Error" not in verified.stdout + verified.stderr
    rendered = run(peer_program("dsrdump"), path)
    # DCMTK 3.6.7 says this of itself for every document with a template.
    of_itself = "W: Check for template constraints not yet supported"
    assert (rendered.returncode, rendered.stderr.replace(of_itself, "").strip()) == (0, "")
    assert "Key Object Selection Document" in rendered.stdout
    assert "Rejected for" in rendered.stdout


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )


# ── whom it reaches, and when ────────────────────────────────────────────────────────────────────


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[StandinPacs]:
    """Takes rejection notes."""
    with StandinPacs(tmp_path / "archive", "ARCHIVE") as archive:
        yield archive


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[StandinPacs]:
    """Takes none."""
    with StandinPacs(tmp_path / "viewer", "VIEWER") as viewer:
        yield viewer


def config_for(data_dir: Path, archive: StandinPacs, *others: StandinPacs) -> Config:
    peers = [
        {"name": p.ae_title, "ae_title": p.ae_title, "host": p.host, "port": p.port}
        | {"rejection_notes": p is archive}
        for p in (archive, *others)
    ]
    deliver = {"to": [p["name"] for p in peers], "timeout_s": 30.0, "max_refusals": 2, "first_retry_s": 1.0}
    return parse({"node": {"data_dir": str(data_dir)}, "peers": peers, "deliver": deliver})


def new_run(ledger: Ledger, config: Config, now: float) -> tuple[Case, dict[tuple[str, ...], list[str]]]:
    """Another object arrives and the case is computed again. returns: whom notes are for, what they name."""
    number = int(now)
    (case_id,) = ledger.add_instances([instance("1.2.3", number, now)], now)
    ledger.assembled(ledger.case(case_id), now, "{}", f"inputs {number}", Identity("PAT-0001"), "complete")
    attempt = ledger.begin(case_id, Event.CLAIM, "compute", now)
    takers = config.rejection_note_takers()
    rejections = ledger.to_reject(case_id, takers)
    notes = [
        # Named as `encode` does.
        note_on(config, f"results/{case_id}/{attempt.id}/KO{f'-{n}' if n > 1 else ''}.dcm", rejection)
        for n, rejection in enumerate(rejections, start=1)
    ]
    results = [
        *notes,
        *(
            written(config, f"results/{case_id}/{attempt.id}/{kind}.dcm", kind, sop_class)
            for kind, sop_class in (("RTDOSE", RTDoseStorage), ("SR", CLASSES[ResultKind.SR]))
        ),
    ]
    ledger.register(attempt, run_of(f"inputs {number}"), results, config.deliver.to, now, takers)
    return ledger.case(case_id), {r.peers: [one.sop_instance_uid for one in r.results] for r in rejections}


def replaced(ledger: Ledger, config: Config) -> Case:
    """A case whose first results were delivered and whose second are to be, with the note on the first."""
    case, _ = new_run(ledger, config, 10)
    stage(config, ledger).tick(20)
    new_run(ledger, config, 30)
    return case


def written(config: Config, path: str, kind: str, sop_class: str) -> NewResult:
    file = write_object(config.node.data_dir / path, sop_class)
    syntax = str(ExplicitVRLittleEndian)
    size_bytes = file.path.stat().st_size
    return NewResult(file.sop_instance_uid, sop_class, "1.2.3.9", syntax, kind, "", path, size_bytes)


def note_on(config: Config, path: str, on: Rejection) -> NewResult:
    kind_of = {sop_class: kind for kind, sop_class in CLASSES.items()}
    named = tuple(
        Predecessor(
            InstanceReference(r.sop_class_uid, r.sop_instance_uid, r.series_instance_uid, STUDY),
            kind_of[r.sop_class_uid],
        )
        for r in on.results
    )
    identity = ResultIdentity(generate_uid(), generate_uid(), 1, rejection.series_description())
    note = rejection.build(findings(rejected=(named,)), 0, SETTINGS, identity, NOW)
    file = config.node.data_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(note, file)
    uids = identity.sop_instance_uid, note.SOPClassUID, identity.series_instance_uid
    syntax, size_bytes = str(ExplicitVRLittleEndian), file.stat().st_size
    return NewResult(*uids, syntax, "KO", "", path, size_bytes, only_for=on.peers)


def stage(config: Config, ledger: Ledger) -> Deliverer:
    return Deliverer(config, ledger, monotonic=lambda: 0.0)


def kinds(pacs: StandinPacs) -> list[str]:
    return [uid_kind(pacs.files()[uid]) for uid in pacs.received]


def uid_kind(path: Path) -> str:
    sop_class = pydicom.dcmread(path, stop_before_pixels=True, force=True).SOPClassUID
    return {KeyObjectSelectionDocumentStorage: "KO", RTDoseStorage: "RTDOSE"}.get(sop_class, "SR")


def test_a_first_result_rejects_nothing_and_a_second_one_the_first(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, viewer: StandinPacs
) -> None:
    config = config_for(tmp_path, archive, viewer)
    _, rejected = new_run(ledger, config, 10)
    assert rejected == {}
    stage(config, ledger).tick(20)
    first = list(archive.received)
    case, rejected = new_run(ledger, config, 30)
    assert rejected == {("ARCHIVE",): first}
    stage(config, ledger).tick(40)
    assert ledger.case(case.id).state is State.DONE
    # The note comes before what replaces the first results; who takes no notes gets none.
    assert kinds(archive) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"]
    assert kinds(viewer) == ["RTDOSE", "SR", "RTDOSE", "SR"]


def test_a_third_result_rejects_the_second_only(ledger: Ledger, tmp_path: Path, archive: StandinPacs) -> None:
    config = config_for(tmp_path, archive)
    for now in (10, 30):
        new_run(ledger, config, now)
        stage(config, ledger).tick(now + 10)
    _, rejected = new_run(ledger, config, 50)
    assert rejected == {("ARCHIVE",): archive.received[-2:]}


def test_what_a_note_did_not_reach_is_rejected_by_the_next(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case, _ = new_run(ledger, config, 10)
    stage(config, ledger).tick(20)
    first = list(archive.received)
    new_run(ledger, config, 30)
    archive.status = refusing(KeyObjectSelectionDocumentStorage)
    for now in (40, 50):
        stage(config, ledger).tick(now)
    assert ledger.case(case.id).state is State.FAILED
    _, rejected = new_run(ledger, config, 60)
    assert rejected == {("ARCHIVE",): first}


def refusing(sop_class: str) -> Callable[[str, str], int]:
    return lambda asked, _uid: 0xA900 if asked == sop_class else 0x0000


def test_without_its_note_no_second_dose_reaches_the_archive(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, viewer: StandinPacs
) -> None:
    config = config_for(tmp_path, archive, viewer)
    case = replaced(ledger, config)
    archive.status = refusing(KeyObjectSelectionDocumentStorage)
    deliverer = stage(config, ledger)
    deliverer.tick(40)
    assert len(archive.files()) == 2
    assert kinds(viewer) == ["RTDOSE", "SR", "RTDOSE", "SR"]
    archive.status = lambda _sop_class, _uid: 0x0000
    deliverer.tick(50)
    assert ledger.case(case.id).state is State.DONE
    assert [uid_kind(p) for p in archive.files().values()].count("RTDOSE") == 2


def test_an_archive_that_refuses_the_note_for_good_asks_a_person_who_may_do_without(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case = replaced(ledger, config)
    archive.status = refusing(KeyObjectSelectionDocumentStorage)
    for now in (40, 50):
        stage(config, ledger).tick(now)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "set its rejection_notes = false" in failed.remedy
    assert "retry 1 --resend" in failed.remedy
    without = config_for(tmp_path, archive)
    without = without.model_copy(
        update={"peers": tuple(p.model_copy(update={"rejection_notes": False}) for p in without.peers)}
    )
    ledger.resend(case.id, 60, without.deliver.to, without.rejection_note_takers())
    stage(without, ledger).tick(70)
    assert ledger.case(case.id).state is State.DONE


def test_what_a_person_said_holds_until_the_note_and_the_new_results_are_there(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case, _ = new_run(ledger, config, 10)
    stage(config, ledger).tick(20)
    ledger.apply(case.id, Event.RETRY, 25, rejection_reason="patient_safety")
    new_run(ledger, config, 30)
    archive.status = refusing(RTDoseStorage)
    stage(config, ledger).tick(40)
    assert ledger.case(case.id).rejection_reason == "patient_safety"
    archive.status = lambda _sop_class, _uid: 0x0000
    stage(config, ledger).tick(50)
    done = ledger.case(case.id)
    assert (done.state, done.rejection_reason) == (State.DONE, "")


# ── what it names, to whom ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def second(tmp_path: Path) -> Iterator[StandinPacs]:
    """Takes rejection notes too."""
    with StandinPacs(tmp_path / "second", "SECOND") as second:
        yield second


def both_take_notes(data_dir: Path, archive: StandinPacs, second: StandinPacs) -> Config:
    config = config_for(data_dir, archive, second)
    peers = tuple(p.model_copy(update={"rejection_notes": True}) for p in config.peers)
    return config.model_copy(update={"peers": peers})


def test_what_an_archive_refused_is_not_named_to_it(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    archive.status = refusing(RTDoseStorage)
    case, _ = new_run(ledger, config, 10)
    for now in (20, 30):
        stage(config, ledger).tick(now)
    assert ledger.case(case.id).state is State.FAILED
    _, rejected = new_run(ledger, config, 40)
    assert rejected == {("ARCHIVE",): archive.received}
    assert kinds(archive) == ["SR"]


def test_what_an_archive_left_untold_is_named_to_it_also_when_it_refused_it_later(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case, _ = new_run(ledger, config, 10)
    run = ledger.latest_run(case.id)
    assert run is not None
    dose, report = (result.new.sop_instance_uid for result in ledger.results(run.id))
    archive.status = lambda asked, _uid: None if asked == RTDoseStorage else 0xA900
    stage(config, ledger).tick(20)
    archive.status = lambda _sop_class, _uid: 0xA900
    for now in (30, 40):
        stage(config, ledger).tick(now)
    assert ledger.case(case.id).state is State.FAILED
    _, rejected = new_run(ledger, config, 50)
    assert rejected == {("ARCHIVE",): [dose]}
    assert report not in rejected["ARCHIVE",]


def test_what_an_archive_took_and_refused_when_it_was_sent_again_is_named_to_it(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case, _ = new_run(ledger, config, 10)
    stage(config, ledger).tick(20)
    ledger.resend(case.id, 30, config.deliver.to, config.rejection_note_takers())
    archive.status = lambda _sop_class, _uid: 0xA900
    for now in (30, 40):
        stage(config, ledger).tick(now)
    assert ledger.case(case.id).state is State.FAILED
    _, rejected = new_run(ledger, config, 50)
    assert rejected == {("ARCHIVE",): archive.received}


def test_each_archive_gets_a_note_of_what_it_may_have_and_none_without_that(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, second: StandinPacs
) -> None:
    config = both_take_notes(tmp_path, archive, second)
    second.status = lambda _sop_class, _uid: 0xA900
    case, _ = new_run(ledger, config, 10)
    for now in (20, 30):
        stage(config, ledger).tick(now)
    first = list(archive.received)
    # The second has nothing, then a part, then the same as the first.
    second.status = refusing(RTDoseStorage)
    _, rejected = new_run(ledger, config, 40)
    assert rejected == {("ARCHIVE",): first}
    for now in (50, 60):
        stage(config, ledger).tick(now)
    assert (kinds(archive)[2:], kinds(second)) == (["KO", "RTDOSE", "SR"], ["SR"])
    second.status = lambda _sop_class, _uid: 0x0000
    _, rejected = new_run(ledger, config, 70)
    assert rejected == {("ARCHIVE",): archive.received[-2:], ("SECOND",): second.received}
    stage(config, ledger).tick(80)
    assert ledger.case(case.id).state is State.DONE
    assert kinds(archive)[5:] == kinds(second)[1:] == ["KO", "RTDOSE", "SR"]
    notes = [pacs.received[-3] for pacs in (archive, second)]
    assert notes[0] != notes[1]
    # Sent again, each goes where it went.
    ledger.resend(case.id, 90, config.deliver.to, config.rejection_note_takers())
    stage(config, ledger).tick(100)
    assert [pacs.received[-3] for pacs in (archive, second)] == notes
    _, rejected = new_run(ledger, config, 110)
    assert rejected == {("ARCHIVE", "SECOND"): archive.received[-2:]}


def test_the_job_says_of_each_note_whom_it_is_for(tmp_path: Path) -> None:
    found = findings(rejected=(REJECTED, REJECTED[:1]))
    written = encode.encode(found, SETTINGS, tmp_path, NOW, uid_source("", STUDY))
    job = SimpleNamespace(rejections=(Rejection(("A", "B"), ()), Rejection(("C",), ())))
    results = case_job._new_results(cast(Job, job), written)
    assert [r.sop_instance_uid for r in results] == [w.sop_instance_uid for w in written]
    assert [r.only_for for r in results] == [("A", "B"), ("C",), *[None] * (len(results) - 2)]


# ── what dcm4chee-arc answers to a note ──────────────────────────────────────────────────────────


def answering(status: int) -> Callable[[str, str], int]:
    return lambda asked, _uid: status if asked == KeyObjectSelectionDocumentStorage else 0x0000


def test_a_note_whose_answer_was_lost_is_there_already_and_the_new_results_follow(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(tmp_path, archive)
    case = replaced(ledger, config)
    archive.status = lambda asked, _uid: None if asked == KeyObjectSelectionDocumentStorage else 0x0000
    stage(config, ledger).tick(40)
    archive.status = answering(0xA770)
    stage(config, ledger).tick(50)
    assert ledger.case(case.id).state is State.DONE
    assert kinds(archive) == ["RTDOSE", "SR", "RTDOSE", "SR"]
    assert "0xA770 it has this rejection note already" in caplog.text


class Dcm4chee:
    """It takes a note whole or not at all, as dcm4chee-arc does. Set `status` of a PACS to it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.lost: set[str] = set()
        """What somebody has deleted there."""
        self.hidden: set[str] = set()
        """What was rejected there for a reason of its own, which no note of ours replaces."""
        self.rejected: set[str] = set()
        """By our notes; the same reason again changes nothing."""
        self.answers: list[int] = []
        """To notes."""

    def __call__(self, sop_class: str, uid: str) -> int:
        if sop_class != KeyObjectSelectionDocumentStorage:
            return 0x0000
        named = self.named(uid)
        answer = 0xA772 if named & self.lost else 0xA774 if named & self.hidden else 0x0000
        if not answer:
            self.rejected |= named
        self.answers.append(answer)
        return answer

    def named(self, uid: str) -> set[str]:
        notes = map(pydicom.dcmread, self.data_dir.glob("results/**/KO*.dcm"))
        (note,) = (note for note in notes if note.SOPInstanceUID == uid)
        return {sop.ReferencedSOPInstanceUID for sop in sops(note)}


@pytest.mark.parametrize(
    ("status", "words"),
    [(0xA772, "it lacks an object that the rejection note names"), (0xA774, "is rejected there already")],
)
def test_what_an_archive_has_is_rejected_beside_what_it_lacks_or_has_rejected(
    ledger: Ledger,
    tmp_path: Path,
    archive: StandinPacs,
    caplog: pytest.LogCaptureFixture,
    status: int,
    words: str,
) -> None:
    config = config_for(tmp_path, archive)
    case = replaced(ledger, config)
    dose, report = archive.received
    archive.status = dcm4chee = Dcm4chee(tmp_path)
    (dcm4chee.lost if status == 0xA772 else dcm4chee.hidden).add(dose)
    stage(config, ledger).tick(40)
    assert dcm4chee.answers == [status, status, 0x0000]
    assert dcm4chee.rejected == {report}
    assert ledger.case(case.id).state is State.DONE
    assert kinds(archive) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"], "in that order"
    (line,) = [r for r in caplog.records if "took nothing of KO" in r.getMessage()]
    assert line.levelname == "WARNING"
    assert words in line.getMessage()
    assert "2 notes of one object each in its place" in line.getMessage()
    # What the archive does not keep, nobody asks it to commit to.
    notes = [d for r, d in deliveries(ledger, case) if r.new.kind == "KO"]
    assert [(d.status, d.delivered_at, d.committed_at) for d in notes] == [
        (status, 40, 40),
        (status, 40, 40),
        (0x0000, 40, None),
    ]
    shown = [_delivered(d) for d in notes]
    assert [text.startswith("nothing of it taken 19") for text in shown] == [True, True, False]
    assert words in shown[0]
    # Sent again, it comes to the same; and the next run's note names the second results alone.
    ledger.resend(case.id, 50, config.deliver.to, config.rejection_note_takers())
    stage(config, ledger).tick(60)
    assert ledger.case(case.id).state is State.DONE
    assert len(deliveries(ledger, case)) == 5
    _, rejected = new_run(ledger, config, 70)
    assert rejected == {("ARCHIVE",): archive.received[-2:]}


def deliveries(ledger: Ledger, case: Case) -> list[tuple[Result, Delivery]]:
    run = ledger.latest_run(case.id)
    assert run is not None
    return ledger.deliveries(run.id)


def with_a_part_refused(ledger: Ledger, config: Config, archive: StandinPacs) -> Case:
    """A case that FAILED: of its note, which was taken apart, the archive took one part of two."""
    case = replaced(ledger, config)
    answers = iter((0xA774, 0x0000, 0xA900, 0xA900))
    archive.status = lambda asked, _uid: next(answers) if asked == KeyObjectSelectionDocumentStorage else 0
    for now in (40, 50):
        stage(config, ledger).tick(now)
    return case


def test_a_note_that_was_taken_apart_is_settled_when_all_its_parts_are(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case = with_a_part_refused(ledger, config, archive)
    first = archive.received[:2]
    assert kinds(archive) == ["RTDOSE", "SR", "KO"], "no second dose"
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "ARCHIVE refused KO" in failed.reason
    _, rejected = new_run(ledger, config, 60)
    assert rejected == {("ARCHIVE",): first}


def test_taking_a_note_apart_is_repeated_where_the_ledger_could_not_be_told(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, archive)
    case = replaced(ledger, config)
    archive.status = dcm4chee = Dcm4chee(tmp_path)
    dcm4chee.lost = set(archive.received[:1])

    def gone(*_: object, **__: object) -> None:
        raise LedgerUnavailable("the ledger is gone")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "taken_apart", gone)
        with pytest.raises(LedgerUnavailable):
            stage(config, ledger).tick(40)
    written_before = {path: path.read_bytes() for path in tmp_path.glob("results/**/KO*.dcm")}
    stage(config, ledger).tick(50)
    assert {path: path.read_bytes() for path in tmp_path.glob("results/**/KO*.dcm")} == written_before
    assert ledger.case(case.id).state is State.DONE
    assert kinds(archive) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"]


def test_of_two_archives_each_gets_the_parts_that_it_needs(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, second: StandinPacs
) -> None:
    config = both_take_notes(tmp_path, archive, second)
    case = replaced(ledger, config)
    dose, report = archive.received
    archive.status, second.status = first, other = Dcm4chee(tmp_path), Dcm4chee(tmp_path)
    first.lost, other.lost = {dose}, {report}
    stage(config, ledger).tick(40)
    assert ledger.case(case.id).state is State.DONE
    assert (first.rejected, other.rejected) == ({report}, {dose})
    assert kinds(archive) == kinds(second) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"]


def test_archives_that_got_a_note_each_do_not_get_each_others_parts(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, second: StandinPacs
) -> None:
    config = both_take_notes(tmp_path, archive, second)
    second.status = refusing(RTDoseStorage)
    case, _ = new_run(ledger, config, 10)
    for now in (20, 30):
        stage(config, ledger).tick(now)
    dose, report = archive.received
    assert second.received == [report]
    _, rejected = new_run(ledger, config, 40)
    assert rejected == {("ARCHIVE",): [dose, report], ("SECOND",): [report]}
    archive.status, second.status = first, other = Dcm4chee(tmp_path), Dcm4chee(tmp_path)
    first.lost = {dose}
    stage(config, ledger).tick(50)
    assert ledger.case(case.id).state is State.DONE
    assert (first.rejected, other.rejected) == ({report}, {report})
    assert other.answers == [0x0000]


@pytest.mark.parametrize("is_sent_again", [False, True])
def test_a_part_that_a_person_gave_up_is_named_by_the_next_note(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs, is_sent_again: bool
) -> None:
    config = config_for(tmp_path, archive)
    case = with_a_part_refused(ledger, config, archive)
    first = archive.received[:2]
    if is_sent_again:
        # The whole is refused too; a resend without notes deletes its delivery, but not the taken part's.
        answers = iter((0xA900, 0xA770, 0xA900) * 2)
        archive.status = lambda asked, _: next(answers) if asked == KeyObjectSelectionDocumentStorage else 0
        ledger.resend(case.id, 55, config.deliver.to, config.rejection_note_takers())
        for now in (55, 58):
            stage(config, ledger).tick(now)
    assert ledger.case(case.id).state is State.FAILED
    ledger.resend(case.id, 60, config.deliver.to, ())
    stage(config, ledger).tick(70)
    assert ledger.case(case.id).state is State.DONE
    second = archive.received[-2:]
    _, rejected = new_run(ledger, config, 80)
    assert rejected == {("ARCHIVE",): [*first, *second]}


def test_a_disk_without_room_for_the_parts_keeps_nothing_from_other_destinations(
    ledger: Ledger,
    tmp_path: Path,
    archive: StandinPacs,
    viewer: StandinPacs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_for(tmp_path, archive, viewer)
    case = replaced(ledger, config)
    archive.status = dcm4chee = Dcm4chee(tmp_path)
    dcm4chee.lost = set(archive.received[:1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(notes_apart, "write_durably", full)
        stage(config, ledger).tick(40)
    waiting = ledger.case(case.id)
    assert waiting.state is State.SENDING
    assert "(0xA772); a note for each object cannot be written: No space left on device" in waiting.reason
    assert "it lacks an object" not in waiting.reason, "its comment may name a patient"
    assert kinds(viewer) == ["RTDOSE", "SR", "RTDOSE", "SR"]
    assert kinds(archive) == ["RTDOSE", "SR"]
    stage(config, ledger).tick(50)
    assert ledger.case(case.id).state is State.DONE
    assert kinds(archive) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"]


@pytest.mark.peers
def test_a_note_that_was_taken_apart_says_of_each_object_what_it_said_of_all(
    peer_program: Callable[[str], str], tmp_path: Path
) -> None:
    path = Path(str(note_of(tmp_path).filename))
    whole = pydicom.dcmread(path)
    syntax, place = str(ExplicitVRLittleEndian), path.relative_to(tmp_path)
    new = NewResult(
        whole.SOPInstanceUID, whole.SOPClassUID, whole.SeriesInstanceUID, syntax, "KO", "", str(place), 1
    )
    parts = taken_apart(new, tmp_path)
    read = [pydicom.dcmread(tmp_path / part.path) for part in parts]
    assert [[ref.ReferencedSOPInstanceUID for ref in sops(note)] for note in read] == [
        [one.instance.sop_instance_uid] for one in REJECTED
    ]
    for note, part, one in zip(read, parts, REJECTED, strict=True):
        (study,) = note.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        (sop,) = series.ReferencedSOPSequence
        assert series.SeriesInstanceUID == one.instance.series_instance_uid
        assert sop.ReferencedSOPInstanceUID == one.instance.sop_instance_uid
        assert note.ConceptNameCodeSequence == whole.ConceptNameCodeSequence
        assert (part.sop_instance_uid, part.size_bytes) == (
            note.SOPInstanceUID,
            (tmp_path / part.path).stat().st_size,
        )
        verified = run(peer_program("dciodvfy"), "-new", tmp_path / part.path)
        assert "Error" not in verified.stdout + verified.stderr
    assert len({(n.SOPInstanceUID, n.InstanceNumber) for n in (whole, *read)}) == 1 + len(REJECTED)
    assert {n.SeriesInstanceUID for n in read} == {whole.SeriesInstanceUID}
    assert taken_apart(parts[0], tmp_path) == (), "it names one object"


def test_an_archive_out_of_resources_gets_note_and_results_when_it_has_room(
    ledger: Ledger, tmp_path: Path, archive: StandinPacs
) -> None:
    config = config_for(tmp_path, archive)
    case = replaced(ledger, config)
    archive.status = answering(0xA700)
    deliverer = stage(config, ledger)
    for now in range(40, 400, 10):
        deliverer.tick(now)
    assert ledger.case(case.id).state is State.SENDING
    assert kinds(archive) == ["RTDOSE", "SR"]
    archive.status = answering(0x0000)
    for now in range(400, 8000, 20):
        deliverer.tick(now)
    assert kinds(archive) == ["RTDOSE", "SR", "KO", "RTDOSE", "SR"]
