"""What a PACS has named and what did not come: counted here, and never computed without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt

from dicomnode.assemble import Assembler
from dicomnode.config import Config
from dicomnode.fetch import Fetcher
from dicomnode.ledger import Ledger
from dicomnode.query.scu import Source
from dicomnode.records import Case, Enquiry, Instance, Quarantined
from dicomnode.states import Event, State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.dicomnode.archive_pacs import ArchivePacs
from tests.dicomnode.test_assemble import arrive, received
from tests.dicomnode.test_fetch import Receiving, assembler, config_for, kept

MISSING = 2
LATE = (292.0, 1000.0, 3500.0)
HELD_AT = 3702.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return small_study.write(tmp_path_factory.mktemp("data") / "spool", rois=None)


@dataclass
class Site:
    """A node that lacks the last slices of a CT that looks whole, and a PACS that has them all."""

    ledger: Ledger
    pacs: ArchivePacs
    files: StudyFiles
    config: Config
    stage: Assembler
    case: Case
    missing: list[Instance]

    def configure(self, folder: Path, **fetch: object) -> None:
        self.config = config_for(folder, self.pacs, **fetch)
        self.stage = assembler(self.ledger, self.files, self.config)

    def fetcher(self, flush: Callable[[float], object] = lambda now: None) -> Fetcher:
        receiving = Receiving(self.ledger)
        return Fetcher(self.config, self.ledger, receiving, lambda: 0.0, flush=flush)

    def ask(self, now: float) -> Enquiry:
        self.fetcher().tick(now)
        return self.ledger.enquiries(self.case.id)[-1]

    def state(self, now: float) -> State:
        self.stage.tick(now)
        return self.ledger.case(self.case.id).state

    def is_held(self) -> Case:
        """It waits, and is HELD after `max_wait_s`; it is never computed."""
        for now in LATE:
            assert self.state(now) is State.COLLECTING
        assert self.state(HELD_AT) is State.HELD
        return self.ledger.case(self.case.id)

    def register(self, instances: list[Instance], now: float) -> None:
        self.ledger.add_instances(instances, now)


@pytest.fixture
def site(tmp_path: Path, files: StudyFiles) -> Iterator[Site]:
    """As assembly left it at 170 s: it looks complete, and PACS is about to be asked."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    with ArchivePacs() as pacs:
        pacs.kept = kept(files)
        assert files.nm is not None
        case = arrive(ledger, files, [*files.ct[:-MISSING], files.nm], at=100.0)
        missing = received(files.ct[-MISSING:], files.folder.parent, 172.0)
        config = config_for(tmp_path, pacs, timeout_s=600)
        stage = assembler(ledger, files, config)
        stage.tick(170.0)
        yield Site(ledger, pacs, files, config, stage, case, missing)
    ledger.close()


class Host:
    """Takes every object. It is us, or has our AE title."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        ae = AE("DICOMNODE")
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), ExplicitVRLittleEndian)
        self._server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)]
        )
        assert self._server is not None
        self.port = int(self._server.server_address[1])

    def _take(self, event: evt.Event) -> int:
        self.uids.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.stop()


# ── what PACS says that it sent ──────────────────────────────────────────────────────────────────


def test_what_a_move_sent_to_another_host_did_not_come(site: Site, tmp_path: Path, host: Host) -> None:
    site.pacs.sends_to = host.port
    site.configure(tmp_path, by="move")
    site.stage.tick(170.0)
    enquiry = site.ask(171.0)
    assert len(host.uids) == MISSING, "every sub-operation was completed"
    assert (enquiry.outcome, enquiry.missing, enquiry.came) == ("sent", MISSING, 0)
    held = site.is_held()
    said = "PACS says that it sent 2 object(s) by C-MOVE to DICOMNODE; they did not arrive here"
    assert held.reason.startswith(f"PACS has 2 object(s) of its series that did not come: {said}")
    assert "host and port that PACS has for our AE title" in held.remedy
    assert 'by = "get"' in held.remedy


def test_a_pacs_that_sends_elsewhere_is_asked_a_few_times(site: Site, tmp_path: Path, host: Host) -> None:
    site.pacs.sends_to = host.port
    site.configure(tmp_path, by="move", max_requests=3, first_retry_s=10, max_retry_s=10)
    for now in range(171, 1000, 5):
        assert site.state(float(now)) is State.COLLECTING
        site.ask(float(now))
    assert len(site.pacs.asked_for) == 3
    site.is_held()


def test_what_was_received_is_registered_before_it_is_counted(site: Site, tmp_path: Path, host: Host) -> None:
    """The ledger hears of an object a moment after it was acknowledged."""
    site.pacs.sends_to = host.port
    site.configure(tmp_path, by="move")

    def flush(now: float) -> None:
        site.register([i for i in site.missing if i.sop_instance_uid in host.uids], now)

    site.fetcher(flush).tick(171.0)
    (enquiry,) = site.ledger.enquiries(site.case.id)
    assert (enquiry.outcome, enquiry.missing, enquiry.came, enquiry.detail) == ("came", MISSING, MISSING, "")


def test_what_arrives_after_the_pull_is_waited_for_no_more(site: Site, tmp_path: Path, host: Host) -> None:
    """It went through a router, or another node that shares the ledger took it."""
    site.pacs.sends_to = host.port
    site.configure(tmp_path, by="move")
    assert site.ask(171.0).outcome == "sent"
    site.register(site.missing, 200.0)
    assert site.state(270.0) is State.COLLECTING, "PACS is asked about what is here now"
    assert site.ask(271.0).outcome == "agrees"
    assert site.state(272.0) is State.READY


# ── what is known stays known ────────────────────────────────────────────────────────────────────


def test_a_case_is_not_computed_while_it_is_pulled(site: Site) -> None:
    site.pacs.hangs = threading.Event()
    fetcher = site.fetcher()
    asking = threading.Thread(target=fetcher.tick, args=(171.0,))
    asking.start()
    try:
        assert site.pacs.hangs.wait(30)
        for now in (172.0, *LATE):
            assert site.state(now) is State.COLLECTING
        (open_one,) = site.ledger.enquiries(site.case.id)
        assert (open_one.outcome, open_one.missing) == ("asking", MISSING)
    finally:
        fetcher.stop()
        asking.join(30)
    (enquiry,) = site.ledger.enquiries(site.case.id)
    assert (enquiry.outcome, enquiry.missing, enquiry.came) == ("unreachable", MISSING, 0)
    assert site.is_held().reason.startswith("PACS has 2 object(s) of its series that did not come: the node")


def test_half_of_a_ct_is_not_computed_while_the_rest_is_pulled(site: Site, tmp_path: Path) -> None:
    """Also where counts are not compared."""
    site.configure(tmp_path, check_counts=False)
    number = site.ledger.begin_enquiry(site.case.id, "PACS", "SPECT without CT", 171.0)
    site.ledger.named(number, {"1.2.3": ["1.2.3.1"]})
    assert site.state(300.0) is State.COLLECTING
    site.fetcher().recover()
    assert site.state(301.0) is State.READY, "nobody pulls any more"


@pytest.mark.parametrize("at", ["series", "pull"])
def test_a_node_that_was_killed_while_it_asked_knows_what_it_was_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Source, at, killed)
        with pytest.raises(KeyboardInterrupt):
            site.ask(171.0)
    site.pacs.stop()
    fetcher = site.fetcher()
    fetcher.recover()
    fetcher.tick(180.0)
    outcomes = [(e.outcome, e.missing) for e in site.ledger.enquiries(site.case.id)]
    assert outcomes == [("unreachable", MISSING * (at == "pull")), ("unreachable", 0)]
    if at == "pull":
        site.is_held()
    else:
        assert site.state(292.0) is State.READY
        assert "its counts were not compared: PACS (PACS at " in site.ledger.case(site.case.id).reason


def test_a_pacs_that_falls_silent_after_it_named_what_it_has_does_not_take_it_back(site: Site) -> None:
    """Not even where another object came since, and makes another want of it."""
    site.pacs.withholds = {i.sop_instance_uid for i in site.missing}
    assert site.ask(171.0).outcome == "failed"
    site.pacs.stop()
    site.register(site.missing[:1], 180.0)
    for now in (241.0, 900.0, 3700.0):
        assert site.state(now) is State.COLLECTING
        site.ask(now + 1)
    assert site.state(3790.0) is State.HELD
    held = site.ledger.case(site.case.id)
    assert held.reason.startswith("PACS has 1 object(s) of its series that did not come"), "one came since"


def test_a_held_case_that_is_taken_up_again_still_lacks_them(site: Site) -> None:
    site.pacs.withholds = {i.sop_instance_uid for i in site.missing}
    site.ask(171.0)
    site.is_held()
    site.pacs.stop()
    site.ledger.apply(site.case.id, Event.RETRY, 90_000.0)
    assert site.state(90_001.0) is State.COLLECTING
    assert site.ask(90_002.0).outcome == "unreachable"
    assert site.state(90_130.0) is State.HELD
    site.pacs.start()
    site.pacs.withholds = set()
    site.ledger.apply(site.case.id, Event.RETRY, 95_000.0)
    site.stage.tick(95_001.0)
    assert site.ask(95_002.0).outcome == "came"


def test_a_pacs_that_has_not_answered_yet_is_not_said_to_be_silent(site: Site) -> None:
    number = site.ledger.begin_enquiry(site.case.id, "PACS", "", 171.0)
    held = site.is_held()
    assert held.reason.startswith("PACS is asked about its counts and has not answered yet")
    site.ledger.end_enquiry(number, "unreachable", came=0, detail="")


def test_a_pacs_that_refuses_to_be_asked_has_answered(site: Site) -> None:
    site.pacs.find_status = 0xA900
    assert site.ask(171.0).outcome == "refused"
    assert site.state(292.0) is State.READY
    reason = site.ledger.case(site.case.id).reason
    assert "its counts were not compared: PACS answered C-FIND with 0xA900" in reason
    assert "no PACS answered" not in reason


def test_a_pacs_that_does_not_know_us_has_answered_nothing_and_is_asked_when_it_does(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.pacs.stop()
    site.pacs.knows_us = False
    site.pacs.start()
    assert site.ask(171.0).outcome == "unreachable"
    want = site.ledger.wanted(site.case.id)
    assert want is not None
    assert (want.requests, want.settled) == (0, False), "it was no round"
    assert "Let PACS know DICOMNODE" in caplog.text
    site.pacs.stop()
    site.pacs.knows_us = True
    site.pacs.start()
    assert site.ask(280.0).outcome == "came"


def test_a_case_says_that_pacs_does_not_know_us_where_its_counts_were_not_compared(site: Site) -> None:
    site.pacs.stop()
    site.pacs.knows_us = False
    site.pacs.start()
    site.ask(171.0)
    assert site.state(292.0) is State.READY
    reason = site.ledger.case(site.case.id).reason
    assert "its counts were not compared: PACS (PACS at " in reason
    assert "rejected the association" in reason


def test_that_one_pacs_agrees_says_nothing_of_one_that_does_not_let_us_in(site: Site, tmp_path: Path) -> None:
    """It has the missing slices; the other has what we have."""
    site.pacs.stop()
    site.pacs.knows_us = False
    site.pacs.start()
    with ArchivePacs("NEW") as new:
        here = {i.sop_instance_uid for i in site.missing}
        new.kept = [one for one in site.pacs.kept if one.uid not in here]
        site.config = config_for(tmp_path, site.pacs, new, timeout_s=600)
        site.stage = assembler(site.ledger, site.files, site.config)
        site.state(170.0)
        assert site.ask(171.0).outcome == "agrees"
        assert site.state(175.0) is State.COLLECTING
        assert site.state(292.0) is State.READY
    reason = site.ledger.case(site.case.id).reason
    assert "its counts were not compared: PACS (PACS at " in reason
    assert "rejected the association" in reason


def test_why_a_pacs_rests_is_said_of_cases_that_it_was_not_asked_about(site: Site) -> None:
    other = site.ledger.begin_enquiry(site.case.id, "PACS", "", 100.0)
    site.ledger.end_enquiry(other, "unreachable", came=0, detail="PACS rejected the association")
    assert site.state(292.0) is State.READY
    reason = site.ledger.case(site.case.id).reason
    assert reason.endswith("its counts were not compared: PACS rejected the association")


# ── what cannot be pulled ────────────────────────────────────────────────────────────────────────


def test_a_case_of_which_too_much_is_missing_is_not_computed_without_it(site: Site, tmp_path: Path) -> None:
    site.configure(tmp_path, max_objects=1)
    assert site.ask(171.0).detail == "1 series left out: more than [fetch] max_objects"
    assert site.pacs.asked_for == []
    assert "more than [fetch] max_objects" in site.is_held().reason


def test_a_slice_that_was_refused_when_it_came_is_missing(site: Site) -> None:
    uid, study = site.missing[-1].sop_instance_uid, site.case.study_instance_uid
    site.ledger.quarantine(Quarantined(uid, study, "PACS", "CUT_SHORT", "", 0xC001, "", 171.0))
    site.pacs.kept = [k for k in site.pacs.kept if k.uid != site.missing[0].sop_instance_uid]
    assert "refused when they came" in site.ask(171.0).detail
    assert site.pacs.asked_for == [], "it is not asked for again"
    assert site.is_held().reason.startswith("PACS has 1 object(s)")


def test_a_series_that_a_person_sets_aside_is_waited_for_no_more(site: Site) -> None:
    site.pacs.withholds = {i.sop_instance_uid for i in site.missing}
    site.ask(171.0)
    assert len(site.ledger.outstanding(site.case.id, ["PACS"])) == 1
    assert site.ledger.outstanding(site.case.id, ["OTHER"]) == [], "nobody asks it any more"
    site.ledger.discard(site.case.id, site.missing[0].series_instance_uid, 180.0)
    assert site.ledger.outstanding(site.case.id, ["PACS"]) == []


def test_what_the_first_pacs_did_not_send_may_come_from_the_second(site: Site, tmp_path: Path) -> None:
    site.pacs.withholds = {i.sop_instance_uid for i in site.missing}
    with ArchivePacs("SECOND") as second:
        second.kept = site.pacs.kept
        site.config = config_for(tmp_path, site.pacs, second)
        site.stage = assembler(site.ledger, site.files, site.config)
        site.fetcher().tick(171.0)
    asked = site.ledger.enquiries(site.case.id)
    assert [(e.peer, e.outcome) for e in asked] == [("PACS", "failed"), ("SECOND", "came")]
    assert site.ledger.outstanding(site.case.id, ["PACS", "SECOND"]) == []


def test_a_failure_status_of_a_get_names_its_reason_in_the_case(site: Site) -> None:
    def full(_event: evt.Event, _peer: str) -> Dataset:
        status = Dataset()
        status.Status = 0xA700
        return status

    Fetcher(site.config, site.ledger, full, lambda: 0.0).tick(171.0)
    (enquiry,) = site.ledger.enquiries(site.case.id)
    assert (enquiry.outcome, enquiry.came) == ("failed", 0)
    assert site.is_held().reason.startswith("PACS has 2 object(s) of its series that did not come: PACS ans")
