"""What a study lacks is asked of PACS, and no more than that. Time is an argument; nobody sleeps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    NuclearMedicineImageStorage,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)
from pynetdicom import evt

from dicomnode.assemble import Assembler
from dicomnode.audit.trail import Audit
from dicomnode.config import Assemble, Config, parse
from dicomnode.config import Audit as AuditSettings
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import ConfigurationError
from dicomnode.fetch import PULLED, Fetcher
from dicomnode.ledger import Ledger
from dicomnode.query import scu as query_scu
from dicomnode.records import Case, Enquiry, Instance, Quarantined
from dicomnode.states import Event, State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.dicomnode.archive_pacs import ArchivePacs, Kept
from tests.dicomnode.results_on_disk import encoded_case, instance
from tests.dicomnode.test_assemble import arrive, received

CT, NM, RTS = str(CTImageStorage), str(NuclearMedicineImageStorage), str(RTStructureSetStorage)
STUDY = "1.2.3"
LACKS_CT = ("SPECT without CT: none came", ("CT",))


@pytest.fixture
def pacs() -> Iterator[ArchivePacs]:
    with ArchivePacs() as pacs:
        yield pacs


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


def config_for(data_dir: Path, *pacs: Any, **fetch: object) -> Config:
    peers = [{"name": p.ae_title, "ae_title": p.ae_title, "host": "127.0.0.1", "port": p.port} for p in pacs]
    settings = {"ask": [p.ae_title for p in pacs], "by": "get", "timeout_s": 30.0, **fetch}
    return parse({"node": {"data_dir": str(data_dir)}, "peers": peers, "fetch": settings})


class Receiving:
    """Where C-GET brings objects: the ledger hears of them at once."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.now = 0.0
        self.came: list[tuple[str, str]] = []

    def __call__(self, event: evt.Event, peer: str) -> Dataset:
        ds = event.dataset
        self.came.append((str(ds.SOPInstanceUID), peer))
        self.ledger.add_instances([spect(str(ds.SOPInstanceUID), ds, at=self.now)], self.now)
        status = Dataset()
        status.Status = 0x0000
        return status


def spect(uid: str = "1.2.3.9.1", ds: Dataset | None = None, at: float = 10.0, **changes: str) -> Instance:
    """A received object; the SPECT of the study when nothing else is said."""
    fields = {
        "series_instance_uid": "1.2.3.9",
        "sop_class_uid": NM,
        "modality": "NM",
        "path": f"spool/{uid}.dcm",
    }
    if ds is not None:
        fields |= {
            "study_instance_uid": str(ds.StudyInstanceUID),
            "series_instance_uid": str(ds.SeriesInstanceUID),
            "sop_class_uid": str(ds.SOPClassUID),
            "modality": str(ds.Modality),
        }
    return instance(STUDY, at=at, sop_instance_uid=uid, **(fields | changes))


def slices(count: int, series: str = "1.2.3.5", modality: str = "CT", sop_class: str = CT) -> list[Kept]:
    return [Kept(STUDY, series, modality, sop_class, f"{series}.{n}") for n in range(1, count + 1)]


def collecting(ledger: Ledger, *instances: Instance) -> Case:
    ledger.add_instances(instances or (spect(),), 10.0)
    return ledger.cases()[0]


def lacks(
    ledger: Ledger, case: Case, lacking: str = LACKS_CT[0], kinds: tuple[str, ...] = LACKS_CT[1]
) -> None:
    """What assembly says of it."""
    assert ledger.want(ledger.case(case.id), 100.0, lacking, kinds) is not None


def ask(
    ledger: Ledger, config: Config, now: float = 100.0, store: Receiving | None = None
) -> tuple[Fetcher, Receiving]:
    receiving = store or Receiving(ledger)
    receiving.now = now
    fetcher = Fetcher(config, ledger, receiving, monotonic=lambda: 0.0)
    fetcher.tick(now)
    return fetcher, receiving


def enquiries(ledger: Ledger, case: Case) -> list[Enquiry]:
    return ledger.enquiries(case.id)


# ── what is asked for ────────────────────────────────────────────────────────────────────────────


def test_a_missing_ct_is_found_and_pulled(ledger: Ledger, tmp_path: Path, pacs: ArchivePacs) -> None:
    pacs.kept = slices(3)
    case = collecting(ledger)
    lacks(ledger, case)
    _, receiving = ask(ledger, config_for(tmp_path, pacs))
    assert receiving.came == [(k.uid, "PACS") for k in pacs.kept]
    (enquiry,) = enquiries(ledger, case)
    assert (enquiry.peer, enquiry.at, enquiry.lacking) == ("PACS", 100.0, LACKS_CT[0])
    assert (enquiry.outcome, enquiry.missing, enquiry.came) == ("came", 3, 3)


def test_every_query_and_the_beginning_of_a_transfer_are_in_the_audit_trail(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept += slices(3)
    case = collecting(ledger)
    lacks(ledger, case)
    file = tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=file), "DICOMNODE", lambda: 100.0)
    Fetcher(config_for(tmp_path, pacs), ledger, Receiving(ledger), lambda: 0.0, audit).tick(100.0)
    audit.stopped()
    told = [line for line in file.read_text().splitlines() if "110120" not in line and "110121" not in line]
    assert ["110112" in line for line in told] == [True, True, False], "C-FIND of series, of objects"
    assert "110102" in told[2]
    assert 'NumberOfInstances="3"' in told[2]
    assert case.identity.patient_id in told[2]


def test_what_did_not_come_is_a_failure_in_the_audit_trail(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept += slices(3)
    lacks(ledger, collecting(ledger))
    file = tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=file), "DICOMNODE", lambda: 100.0)

    def full(_event: evt.Event, _peer: str) -> Dataset:
        status = Dataset()
        status.Status = 0xA700
        return status

    Fetcher(config_for(tmp_path, pacs), ledger, full, lambda: 0.0, audit).tick(100.0)
    audit.stopped()
    (failure,) = [line for line in file.read_text().splitlines() if "110104" in line]
    assert 'EventOutcomeIndicator="4"' in failure
    assert "3 of 3 object(s) did not come" in failure


def test_of_a_series_that_came_in_part_only_the_rest_is_pulled(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept = slices(4)
    here = [spect(f"1.2.3.5.{n}", series_instance_uid="1.2.3.5", sop_class_uid=CT) for n in (1, 3)]
    case = collecting(ledger, spect(), *here)
    lacks(ledger, case, "", ())
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.asked_for == [["1.2.3.5.2", "1.2.3.5.4"]]


def test_results_never_come_this_way_and_nothing_that_no_computation_reads(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    """Also of a lost ledger, which does not know the results any more."""
    pacs.kept = [
        *slices(1, "1.2.3.6", "SEG", str(SegmentationStorage)),
        *slices(1, "1.2.3.7", "RTDOSE", str(RTDoseStorage)),
        *slices(1, "1.2.3.8", "SR", str(Comprehensive3DSRStorage)),
        *slices(1, "1.2.3.10", "RTSTRUCT", RTS),
        Kept(STUDY, "1.2.3.5", "CT", "1.2.840.10008.5.1.4.1.1.7", "1.2.3.5.99"),  # Secondary Capture
        *slices(2),
    ]
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.asked_for == [["1.2.3.5.1", "1.2.3.5.2"]]
    assert PULLED.isdisjoint({SegmentationStorage, RTDoseStorage, Comprehensive3DSRStorage})


def test_a_study_is_asked_about_only_where_somebody_sent_something_of_it(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept = [replace(k, study="1.2.999") for k in slices(3)]
    encoded_case(ledger, tmp_path, (), study="1.2.4")
    case = collecting(ledger)
    lacks(ledger, ledger.find_case(STUDY))
    ask(ledger, config_for(tmp_path, pacs))
    assert {study for _, study, _ in pacs.queries} == {STUDY}
    assert pacs.asked_for == []
    assert ledger.enquiries(case.id) == []


@pytest.mark.parametrize("why", ["discarded", "refused before", "our own result"])
def test_what_was_set_aside_or_refused_is_not_asked_for_again(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, why: str
) -> None:
    pacs.kept = slices(3)
    case = collecting(ledger, spect(), spect("1.2.3.5.1", series_instance_uid="1.2.3.5", sop_class_uid=CT))
    expected = [["1.2.3.5.2", "1.2.3.5.3"]]
    if why == "discarded":
        ledger.discard(case.id, "1.2.3.5", 11.0)
        expected = []
    elif why == "refused before":
        refused = Quarantined("1.2.3.5.2", STUDY, "PACS", "CUT_SHORT", "", 0xC001, "", 11.0)
        ledger.quarantine(refused)
        expected = [["1.2.3.5.3"]]
    else:
        other = encoded_case(ledger, tmp_path, (), study="1.2.4")
        run = ledger.latest_run(other.id)
        assert run is not None
        pacs.kept.append(Kept(STUDY, "1.2.3.5", "CT", CT, ledger.results(run.id)[0].new.sop_instance_uid))
    lacks(ledger, case, "", ())
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.asked_for == expected


def test_where_counts_agree_no_object_is_asked_about(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept = [*slices(1, "1.2.3.9", "NM", NM), *slices(2)]
    here = [spect(f"1.2.3.5.{n}", series_instance_uid="1.2.3.5", sop_class_uid=CT) for n in (1, 2)]
    case = collecting(ledger, spect(), *here)
    lacks(ledger, case, "", ())
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.queries == [("SERIES", STUDY, "")]
    want = ledger.wanted(case.id)
    assert want is not None
    assert want.settled
    assert [e.outcome for e in enquiries(ledger, case)] == ["agrees"]


@pytest.mark.parametrize("silent_about", ["tells_counts", "tells_classes"])
def test_a_pacs_that_tells_neither_counts_nor_classes_will_do(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, silent_about: str
) -> None:
    setattr(pacs, silent_about, False)
    pacs.kept = slices(3)
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs))
    assert enquiries(ledger, case)[0].came == 3


def test_a_spect_is_looked_for_where_cameras_put_it(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    """GE Xeleris writes Modality OT."""
    pacs.kept = slices(1, "1.2.3.9", "OT", NM)
    case = collecting(ledger, spect("1.2.3.5.1", series_instance_uid="1.2.3.5", sop_class_uid=CT))
    lacks(ledger, case, "no SPECT: CT", ("SPECT",))
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.asked_for == [["1.2.3.9.1"]]


def test_many_objects_are_asked_for_in_several_requests(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_scu, "UIDS_PER_REQUEST", 2)
    pacs.kept = slices(3)
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs))
    assert [len(uids) for uids in pacs.asked_for] == [2, 1]
    assert enquiries(ledger, case)[0].came == 3


def test_more_than_the_configured_number_of_objects_is_left(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept = [*slices(3), *slices(30, "1.2.3.6")]
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs, max_objects=10))
    (enquiry,) = enquiries(ledger, case)
    assert (enquiry.came, enquiry.detail) == (3, "1 series left out: more than [fetch] max_objects")


# ── how often, and whom ──────────────────────────────────────────────────────────────────────────


def test_a_study_is_asked_about_a_few_times_with_pauses_that_double(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    case = collecting(ledger)
    lacks(ledger, case)
    config = config_for(tmp_path, pacs, first_retry_s=100, max_retry_s=300, max_requests=4)
    asked_at = []
    for now in range(100, 2000, 10):
        before = len(pacs.queries)
        # A fetcher of its own each time: the pauses are in the ledger and outlive a restart.
        ask(ledger, config, float(now))
        if len(pacs.queries) > before:
            asked_at.append(now)
    assert [b - a for a, b in pairwise(asked_at)] == pytest.approx([110, 210, 310], abs=15)
    want = ledger.wanted(case.id)
    assert want is not None
    assert want.settled


def test_what_comes_makes_the_study_asked_about_anew_but_not_more_often(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    case = collecting(ledger)
    config = config_for(tmp_path, pacs, first_retry_s=1, max_retry_s=1, max_requests=3)
    for number in range(6):
        pacs.kept += slices(1, f"1.2.3.5{number}", "CT")
        lacks(ledger, case)
        ask(ledger, config, 100.0 + 10 * number)
    assert len(pacs.asked_for) == 3
    want = ledger.wanted(case.id)
    assert want is not None
    assert want.settled


def test_a_case_that_goes_on_is_asked_about_no_more(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    case = collecting(ledger)
    lacks(ledger, case)
    assert ledger.apply(case.id, Event.REJECT, 50.0).state is State.HELD
    ask(ledger, config_for(tmp_path, pacs))
    assert pacs.queries == []


def test_the_second_pacs_is_asked_where_the_first_has_nothing_or_is_down(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    down = ArchivePacs("DOWN").start()
    down.stop()
    with ArchivePacs("EMPTY") as empty:
        pacs.kept = slices(2)
        case = collecting(ledger)
        lacks(ledger, case)
        ask(ledger, config_for(tmp_path, down, empty, pacs))
    outcomes = [(e.peer, e.outcome) for e in enquiries(ledger, case)]
    assert outcomes == [("DOWN", "unreachable"), ("EMPTY", "agrees"), ("PACS", "came")]


def test_a_pacs_that_is_down_rests_and_its_silence_counts_for_nothing(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept = slices(2)
    pacs.stop()
    case = collecting(ledger)
    lacks(ledger, case)
    fetcher, _ = ask(ledger, config_for(tmp_path, pacs, first_retry_s=60), 100.0)
    for now in range(101, 160, 5):
        fetcher.tick(float(now))
    assert [e.outcome for e in enquiries(ledger, case)] == ["unreachable"]
    want = ledger.wanted(case.id)
    assert want is not None
    assert (want.requests, want.settled) == (0, False)
    pacs.start()
    fetcher.tick(170.0)
    assert enquiries(ledger, case)[-1].outcome == "came"


def test_an_answer_that_breaks_the_reading_is_not_asked_for_at_every_tick(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs.kept = slices(2)
    case = collecting(ledger)
    lacks(ledger, case)
    with monkeypatch.context() as patched:
        patched.setattr(query_scu, "_series_of", lambda ds: int(float("inf")))
        fetcher, _ = ask(ledger, config_for(tmp_path, pacs, first_retry_s=60), 100.0)
        fetcher.tick(101.0)
    (enquiry,) = enquiries(ledger, case)
    assert enquiry.outcome == "refused"
    assert "OverflowError" in enquiry.detail
    fetcher.tick(170.0)
    assert enquiries(ledger, case)[-1].outcome == "came"


@pytest.mark.parametrize(
    ("find_status", "said"), [(0xC000, "0xC000"), (0xA700, "0xA700"), (0xA900, "0xA900")]
)
def test_a_pacs_that_does_not_answer_the_query_is_named_with_its_status(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, find_status: int, said: str
) -> None:
    pacs.find_status = find_status
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs))
    (enquiry,) = enquiries(ledger, case)
    assert enquiry.outcome == "refused"
    assert f"PACS answered C-FIND with {said}" in enquiry.detail


def test_a_pacs_without_query_retrieve_is_named(ledger: Ledger, tmp_path: Path) -> None:
    with StandinPacs(tmp_path / "plain", "PACS") as plain:
        case = collecting(ledger)
        lacks(ledger, case)
        ask(ledger, config_for(tmp_path, plain))
    (enquiry,) = enquiries(ledger, case)
    assert (enquiry.outcome, "accepted no presentation context" in enquiry.detail) == ("refused", True)


def test_a_move_names_us_and_its_failure_is_told(ledger: Ledger, tmp_path: Path, pacs: ArchivePacs) -> None:
    pacs.kept = slices(2)
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs, by="move"))
    assert pacs.destinations == ["DICOMNODE"]
    (enquiry,) = enquiries(ledger, case)
    assert enquiry.outcome == "failed"
    assert "PACS answered C-MOVE with 0xA801" in enquiry.detail


def test_a_pacs_that_answers_without_end_is_cut_off(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_scu, "MOST_MATCHES", 10)
    pacs.kept = slices(50)
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path, pacs))
    assert "more than 10 matches" in enquiries(ledger, case)[0].detail


def test_uids_that_are_none_are_ignored(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Kept(STUDY, "1.2.3.5", "CT", CT, "1.2..3")
    pacs.kept = [bad, *slices(1), Kept(STUDY, "1.2.", "CT", CT, "1.2.77")]
    case = collecting(ledger)
    lacks(ledger, case)
    with caplog.at_level(logging.INFO, "dicomnode"):
        ask(ledger, config_for(tmp_path, pacs))
    assert pacs.asked_for == [["1.2.3.5.1"]]


def test_a_node_that_stops_does_not_wait_for_a_pacs_that_takes_its_time(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs
) -> None:
    pacs.kept, pacs.hangs = slices(2), threading.Event()
    case = collecting(ledger)
    lacks(ledger, case)
    fetcher = Fetcher(config_for(tmp_path, pacs, timeout_s=600), ledger, Receiving(ledger))
    asking = threading.Thread(target=fetcher.tick, args=(100.0,))
    asking.start()
    assert pacs.hangs.wait(30)
    fetcher.stop()
    asking.join(30)
    assert not asking.is_alive()
    assert [(e.outcome, e.detail) for e in enquiries(ledger, case)] == [("unreachable", "the node stopped")]


def test_nobody_is_asked_where_nobody_is_configured(ledger: Ledger, tmp_path: Path) -> None:
    case = collecting(ledger)
    lacks(ledger, case)
    ask(ledger, config_for(tmp_path))
    assert enquiries(ledger, case) == []


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"name": "PACS", "ae_title": "PACS"}, "lacks host or port"),
        ({"name": "PAX", "ae_title": "PACS", "host": "h", "port": 104}, "which is no peer"),
        ({"name": "PACS", "ae_title": "P", "host": "h", "port": 104, "may": ["echo"]}, 'may not "store"'),
    ],
)
def test_who_is_asked_must_be_reachable_and_by_move_able_to_send(peer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse({"peers": [peer], "fetch": {"ask": ["PACS"]}})


# ── with assembly ────────────────────────────────────────────────────────────────────────────────

SETTINGS = Assemble(quiet_s=60, max_wait_s=3600)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return small_study.write(tmp_path_factory.mktemp("data") / "spool", rois=None)


def kept(files: StudyFiles) -> list[Kept]:
    """What a PACS has that has the whole study."""
    objects = received(files.all, files.folder.parent, 0.0)
    return [
        Kept(i.study_instance_uid, i.series_instance_uid, i.modality, i.sop_class_uid, i.sop_instance_uid)
        for i in objects
    ]


def assembler(ledger: Ledger, files: StudyFiles, config: Config) -> Assembler:
    return Assembler(SETTINGS, (), ledger, files.folder.parent, fetch=config.fetch)


def test_a_complete_study_goes_on_when_pacs_agrees(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    pacs.kept = kept(files)
    config = config_for(tmp_path, pacs)
    stage = assembler(ledger, files, config)
    case = arrive(ledger, files, files.all, at=100.0)
    stage.tick(170.0)
    assert ledger.case(case.id).state is State.COLLECTING
    ask(ledger, config, 171.0)
    stage.tick(172.0)
    assert ledger.case(case.id).state is State.READY
    assert ledger.wanted(case.id) is None


def test_pacs_that_do_not_answer_delay_a_complete_study_and_do_not_stop_it(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    pacs.stop()
    config = config_for(tmp_path, pacs, check_within_s=120)
    stage = assembler(ledger, files, config)
    case = arrive(ledger, files, files.all, at=100.0)
    stage.tick(170.0)
    ask(ledger, config, 171.0)
    stage.tick(289.0)
    assert ledger.case(case.id).state is State.COLLECTING
    stage.tick(291.0)
    ready = ledger.case(case.id)
    assert ready.state is State.READY
    assert "its counts were not compared: PACS (PACS at " in ready.reason
    assert "cannot be reached" in ready.reason


def test_a_study_of_which_pacs_has_more_than_it_sends_is_held_and_not_computed(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    """Slices cut off at an end leave a CT that looks whole."""
    pacs.kept = kept(files)
    here = [*files.ct[:-2], *([files.nm] if files.nm else [])]
    pacs.withholds = {i.sop_instance_uid for i in received(files.ct[-2:], files.folder.parent, 0.0)}
    config = config_for(tmp_path, pacs)
    stage = assembler(ledger, files, config)
    case = arrive(ledger, files, here, at=100.0)
    stage.tick(170.0)
    ask(ledger, config, 171.0)
    for now in (172.0, 500.0, 3600.0):
        stage.tick(now)
        assert ledger.case(case.id).state is State.COLLECTING
    stage.tick(3701.0)
    held = ledger.case(case.id)
    assert held.state is State.HELD
    assert held.reason.startswith("PACS has 2 object(s) of its series that did not come")
    assert "check_counts = false" in held.remedy


def test_without_comparing_counts_a_complete_study_is_not_asked_about(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    config = config_for(tmp_path, pacs, check_counts=False)
    case = arrive(ledger, files, files.all, at=100.0)
    assembler(ledger, files, config).tick(170.0)
    assert ledger.case(case.id).state is State.READY


def test_a_study_without_its_ct_is_asked_for_after_the_quiet_period(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    pacs.kept = kept(files)
    config = config_for(tmp_path, pacs)
    stage = assembler(ledger, files, config)
    assert files.nm is not None
    case = arrive(ledger, files, [files.nm], at=100.0)
    stage.tick(150.0)
    assert ledger.wanted(case.id) is None
    stage.tick(170.0)
    want = ledger.wanted(case.id)
    assert want is not None
    assert (want.lacking, want.kinds) == ("SPECT without CT: none came", {"CT"})
    stage.tick(175.0)
    assert ledger.wanted(case.id) == want, "it is said once"


def test_a_held_study_that_a_person_takes_up_again_is_asked_about_before_it_is_held(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    config = config_for(tmp_path, pacs)
    stage = assembler(ledger, files, config)
    assert files.nm is not None
    case = arrive(ledger, files, [files.nm], at=100.0)
    stage.tick(170.0)
    ask(ledger, config, 171.0)
    stage.tick(4000.0)
    assert ledger.case(case.id).state is State.HELD
    ledger.apply(case.id, Event.RETRY, 90_000.0)
    stage.tick(90_001.0)
    assert ledger.case(case.id).state is State.COLLECTING
    ask(ledger, config, 90_002.0)
    stage.tick(90_003.0)
    assert ledger.case(case.id).state is State.HELD
    assert len(enquiries(ledger, case)) == 2


def test_a_restart_between_question_and_answer_loses_nothing(
    ledger: Ledger, tmp_path: Path, pacs: ArchivePacs, files: StudyFiles
) -> None:
    pacs.kept = kept(files)
    config = config_for(tmp_path, pacs)
    case = arrive(ledger, files, files.all, at=100.0)
    assembler(ledger, files, config).tick(170.0)
    ask(ledger, config, 171.0)
    again = assembler(ledger, files, config)
    again.tick(172.0)
    assert ledger.case(case.id).state is State.READY
