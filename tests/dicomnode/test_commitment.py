"""Storage commitment as SCU: a case is DONE when the PACS commits. Time is an argument; nobody sleeps."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicomnode.audit.trail import Audit
from dicomnode.clock import Jumps
from dicomnode.commitment import wire as commitment_wire
from dicomnode.commitment.ask import Committer
from dicomnode.commitment.report import ReportService
from dicomnode.config import Audit as AuditSettings
from dicomnode.config import Config, Receive, parse
from dicomnode.deliver import Deliverer
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import ConfigurationError
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.records import Case, Commitment
from dicomnode.states import Event, State
from tests.dicomnode.committing_pacs import ALL, SOME_FAILED, Asked, CommittingPacs, report, send_report
from tests.dicomnode.results_on_disk import case_for, compute_again, half_sent, instance, rows, statements

H = 3600.0
INSTANCE = "1.2.840.10008.1.20.1.1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[CommittingPacs]:
    with CommittingPacs(tmp_path / "pacs") as pacs:
        yield pacs


def config_for(data_dir: Path, *pacs: StandinPacs, **commitment: object) -> Config:
    """Destinations named by their AE titles; a CommittingPacs is asked to commit."""
    peers = [
        {
            "name": p.ae_title,
            "ae_title": p.ae_title,
            "host": p.host,
            "port": p.port,
            "commitment": isinstance(p, CommittingPacs),
        }
        for p in pacs
    ]
    settings = {"stay_s": 0.01, "max_refusals": 3, **commitment}
    deliver = {
        "to": [p.ae_title for p in pacs],
        "timeout_s": 30.0,
        "first_retry_s": 30.0,
        "max_retry_s": 100.0,
    }
    return parse(
        {
            "node": {"data_dir": str(data_dir), "bind": "127.0.0.1"},
            "peers": peers,
            "deliver": deliver,
            "commitment": settings,
        }
    )


class Stages:
    """Deliverer and Committer of one run of the node; the clock of reports is the last tick's."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self.now = 0.0
        self.config = config
        self.reports = ReportService(config.peers, config.committing(), ledger, lambda: self.now)
        self.deliverer = Deliverer(config, ledger, monotonic=lambda: 0.0)
        self.committer = Committer(config, ledger, self.reports, monotonic=lambda: 0.0)

    def tick(self, now: float) -> None:
        self.now = now
        self.deliverer.tick(now)
        self.committer.tick(now)

    def report(self, ds: Any, event_type: int = ALL, ae_title: str = "PACS", instance: str = INSTANCE) -> int:
        """What a report is answered with."""
        request = SimpleNamespace(AffectedSOPInstanceUID=instance, EventInformation=None)
        event = SimpleNamespace(request=request, event_type=event_type, event_information=ds)
        return self.reports.answer(event, ae_title)[0]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Site:
    """A node's ledger and folder, and the PACS that it asks to commit."""

    ledger: Ledger
    data_dir: Path
    pacs: CommittingPacs

    def computed(self, *others: StandinPacs) -> Case:
        """A case with results for the PACS, and for others too."""
        return case_for(self.ledger, self.data_dir, self.pacs, *others)

    def config(self, *others: StandinPacs, **commitment: object) -> Config:
        return config_for(self.data_dir, self.pacs, *others, **commitment)

    def stages(self, *others: StandinPacs, **commitment: object) -> Stages:
        return Stages(self.config(*others, **commitment), self.ledger)

    def waiting(self, *others: StandinPacs, **commitment: object) -> tuple[Case, Stages]:
        """Such a case, which was sent and asked about at 20 s."""
        case, stages = self.computed(*others), self.stages(*others, **commitment)
        stages.tick(20.0)
        return case, stages

    def state(self, case: Case) -> State:
        return self.ledger.case(case.id).state


@pytest.fixture
def site(ledger: Ledger, tmp_path: Path, pacs: CommittingPacs) -> Site:
    return Site(ledger, tmp_path, pacs)


def transactions(ledger: Ledger, case: Case) -> list[Commitment]:
    run = ledger.latest_run(case.id)
    assert run is not None
    return ledger.commitments(run.id)


# ── the good way ─────────────────────────────────────────────────────────────────────────────────


def test_a_case_is_done_when_the_pacs_has_committed_to_every_object(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    waiting = ledger.case(case.id)
    assert (waiting.state, waiting.reason) == (State.SENDING, "waits for storage commitment of PACS")
    (asked,) = pacs.asked
    run = ledger.latest_run(case.id)
    assert run is not None
    results = [(r.new.sop_class_uid, r.new.sop_instance_uid) for r in ledger.results(run.id)]
    assert (list(asked.objects), asked.action_type, asked.instance) == (results, 1, INSTANCE)
    stages.now = 30.0
    assert stages.report(report(asked)) == 0x0000
    assert site.state(case) is State.DONE
    assert {d.committed_at for d in rows(ledger, case)} == {30.0}
    assert [t.event for t in ledger.story(case.id)][-3:] == [Event.SEND, Event.AWAIT, Event.DELIVER]
    assert ledger.story(case.id)[-1].reason == "PACS committed to keeping every result"


def test_a_report_over_the_association_of_the_request_is_waited_for(site: Site, pacs: CommittingPacs) -> None:
    pacs.at_once = True
    case, _ = site.waiting(stay_s=5.0)
    assert site.state(case) is State.DONE
    assert pacs.answers_at_once == [0x0000]


def test_a_report_may_come_before_the_answer_to_the_request(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    """The PACS waits for the report's status before it answers N-ACTION."""
    pacs.before_it_answers = True
    case, _ = site.waiting()
    assert site.state(case) is State.DONE
    assert pacs.answers_at_once == [0x0000]
    assert [t.outcome for t in transactions(ledger, case)] == ["committed"]


def test_a_report_after_a_restart_and_two_days_counts(site: Site, pacs: CommittingPacs) -> None:
    case, _ = site.waiting(ask_again_h=72, max_ask_again_h=72)
    again = site.stages(ask_again_h=72, max_ask_again_h=72)
    again.tick(48 * H)
    assert len(pacs.asked) == 1
    assert again.report(report(pacs.asked[0])) == 0x0000
    assert site.state(case) is State.DONE


def test_while_it_waits_nothing_is_sent_asked_or_written(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    before = (ledger.story(case.id), ledger.attempts(case.id), pacs.associations)
    for now in range(21, 3600, 60):
        stages.tick(float(now))
    assert (ledger.story(case.id), ledger.attempts(case.id), pacs.associations) == before


def test_a_pacs_that_is_not_asked_needs_not_commit(site: Site, tmp_path: Path, pacs: CommittingPacs) -> None:
    with StandinPacs(tmp_path / "plain", "PLAIN") as plain:
        case, stages = site.waiting(plain)
        stages.report(report(pacs.asked[0]))
    assert site.state(case) is State.DONE


def test_each_of_two_pacs_is_asked_and_both_must_commit(
    site: Site, tmp_path: Path, pacs: CommittingPacs
) -> None:
    with CommittingPacs(tmp_path / "archive", "ARCHIVE") as archive:
        case, stages = site.waiting(archive)
        stages.report(report(pacs.asked[0]))
        assert site.state(case) is State.SENDING
        stages.report(report(archive.asked[0]), ae_title="ARCHIVE")
    assert site.state(case) is State.DONE


def test_a_pacs_is_asked_as_soon_as_it_has_everything_though_another_is_down(
    site: Site, pacs: CommittingPacs, down: StandinPacs
) -> None:
    case, stages = site.waiting(down)
    stages.report(report(pacs.asked[0]))
    assert site.state(case) is State.SENDING
    with down:
        stages.tick(200.0)
    assert site.state(case) is State.DONE
    assert len(pacs.asked) == 1


def test_a_pacs_that_is_no_longer_asked_holds_nothing_up(site: Site, ledger: Ledger) -> None:
    case, _ = site.waiting()
    settings = site.config().model_dump()
    settings["peers"][0]["commitment"] = False
    Stages(parse(settings), ledger).tick(30.0)
    assert site.state(case) is State.DONE


# ── what a PACS may do instead ───────────────────────────────────────────────────────────────────


def test_what_was_not_committed_is_sent_and_asked_about_again(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    lost = pacs.asked[0].objects[1]
    assert stages.report(report(pacs.asked[0], {lost[1]: 0x0112}), SOME_FAILED) == 0x0000
    stages.tick(30.0)
    assert "RTDOSE 0x0112 no such object" in ledger.case(case.id).reason
    stages.tick(70.0)
    assert pacs.received[3:] == [lost[1]]
    assert pacs.asked[1].objects == (lost,)
    assert pacs.asked[1].transaction != pacs.asked[0].transaction
    stages.report(report(pacs.asked[1]))
    assert site.state(case) is State.DONE
    assert [t.outcome for t in transactions(ledger, case)] == ["failed", "committed"]


def test_what_is_sent_again_days_later_has_its_own_time(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    """[deliver] give_up_after_h: not from the first sending, which was a success."""
    case = site.computed()
    settings = site.config(give_up_after_h=0).model_dump()
    settings["deliver"]["give_up_after_h"] = 2
    stages = Stages(parse(settings), ledger)
    stages.tick(20.0)
    stages.now = late = 100 * H
    lost = pacs.asked[0].objects[1]
    stages.report(report(pacs.asked[0], {lost[1]: 0x0112}), SOME_FAILED)
    stages.tick(late)
    pacs.status = lambda _sop_class, _uid: 0xA700
    first = late + 3 * H  # the node was off
    for now in (first, first + 1.9 * H):
        stages.tick(now)
        assert site.state(case) is State.SENDING
    stages.tick(first + 2.1 * H)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert failed.reason.startswith("not delivered within 2 h: PACS (PACS at 127.0.0.1")


def test_an_object_that_is_never_committed_to_fails_the_case_with_reason_and_remedy(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case = site.computed()
    stages = site.stages(max_refusals=2)
    for number in range(2):
        stages.tick(100.0 * number + 20)
        asked = pacs.asked[-1]
        stages.report(report(asked, {asked.objects[0][1]: 0x0110}), SOME_FAILED)
        stages.tick(100.0 * number + 21)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "PACS did not commit to SEG 0x0110 processing failure, after 2 times" in failed.reason
    assert f"`dicomnode retry {case.id} --resend`" in failed.remedy
    ledger.resend(case.id, 400.0, ["PACS"])
    stages.tick(400.0)
    stages.report(report(pacs.asked[-1]))
    assert site.state(case) is State.DONE


def test_a_pacs_that_never_reports_is_asked_again_with_a_wait_that_doubles(
    site: Site, pacs: CommittingPacs
) -> None:
    case = site.computed()
    stages = site.stages(ask_again_h=1, max_ask_again_h=3)
    asked_at = []
    for half_hour in range(20):
        before = len(pacs.asked)
        stages.tick(10.0 + half_hour * H / 2)
        if len(pacs.asked) > before:
            asked_at.append(half_hour / 2)
    assert asked_at == [0.0, 1.0, 3.0, 6.0, 9.0]
    assert stages.report(report(pacs.asked[1])) == 0x0000, "a late report counts"
    assert site.state(case) is State.DONE


def test_after_the_longest_time_without_a_report_the_case_fails(site: Site, ledger: Ledger) -> None:
    case, stages = site.waiting(give_up_after_h=12)
    stages.tick(20.0 + 13 * H)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert failed.reason == "PACS did not commit to the results within 12 h: no report came"
    assert "in the SCP role" in failed.remedy


def test_a_pacs_that_refuses_the_request_is_asked_a_few_times(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    pacs.action_status = 0x0110
    case = site.computed()
    stages = site.stages()
    for now in (20.0, 30.0, 60.0, 130.0, 140.0, 250.0):
        stages.tick(now)
    assert len(pacs.asked) == 3
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert failed.reason.startswith("PACS refused 3 times to be asked for storage commitment")
    assert "0x0110 Processing Failure" in failed.reason
    assert "set commitment = false" in failed.remedy


def test_a_pacs_that_rejects_us_is_asked_until_it_knows_us(
    site: Site, ledger: Ledger, pacs: CommittingPacs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, stages = site.computed(), site.stages(max_refusals=1)
    stages.deliverer.tick(20.0)
    pacs.stop()
    with StandinPacs(tmp_path / "strict", "PACS", port=pacs.port, required_calling_aet="OTHER"):
        for now in range(20, 4000, 10):
            stages.tick(float(now))
    assert site.state(case) is State.SENDING
    assert ledger.case(case.id).attempts == 0
    assert caplog.text.count("Let PACS know DICOMNODE") == 1
    pacs.start()
    stages.tick(4200.0)
    assert len(pacs.asked) == 1


def test_a_pacs_without_storage_commitment_is_named(ledger: Ledger, tmp_path: Path) -> None:
    with StandinPacs(tmp_path / "plain", "PACS") as plain:
        case = case_for(ledger, tmp_path, plain)
        settings = config_for(tmp_path, plain, max_refusals=1).model_dump()
        settings["peers"][0]["commitment"] = True
        stages = Stages(parse(settings), ledger)
        stages.tick(20.0)
        stages.tick(21.0)
    assert "accepted no presentation context" in ledger.case(case.id).reason
    assert ledger.case(case.id).state is State.FAILED


def test_a_pacs_that_is_down_rests_and_no_case_is_the_worse_for_it(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case = site.computed()
    config = site.config()
    stages = Stages(config, ledger)
    stages.deliverer.tick(20.0)
    pacs.stop()
    for now in range(20, 400, 5):
        stages.tick(float(now))
    assert transactions(ledger, case) == []
    pacs.start()
    stages.tick(500.0)
    stages.report(report(pacs.asked[0]))
    assert site.state(case) is State.DONE


def test_a_pacs_that_aborts_instead_of_answering_rests_and_is_asked_again(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    pacs.aborts = True
    case = site.computed()
    stages = site.stages()
    for now in (20.0, 30.0, 40.0):
        stages.tick(now)
    assert [t.outcome for t in transactions(ledger, case)] == ["unanswered"]
    pacs.aborts = False
    stages.tick(60.0)
    assert len(pacs.asked) == 2
    stages.report(report(pacs.asked[0]))
    assert site.state(case) is State.DONE, "it may have heard the first request all the same"


def test_a_request_that_breaks_is_not_repeated_at_every_tick(
    site: Site, ledger: Ledger, pacs: CommittingPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = site.computed()
    stages = site.stages()
    with monkeypatch.context() as patched:
        patched.setattr(commitment_wire, "request_to_dataset", lambda request: int(float("inf")))
        for now in (20.0, 21.0, 22.0):
            stages.tick(now)
    assert len(transactions(ledger, case)) == 1
    stages.tick(60.0)
    assert len(pacs.asked) == 1


def test_a_report_that_does_not_name_every_object_leaves_the_rest_to_be_asked_about(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    named = [pacs.asked[0].objects[0][1]]
    assert stages.report(report(pacs.asked[0], names=named)) == 0x0000
    assert transactions(ledger, case)[0].outcome == "incomplete"
    stages.tick(20.0 + 7 * H)
    assert [o[1] for o in pacs.asked[1].objects] == [o[1] for o in pacs.asked[0].objects[1:]]


# ── a node that ends, an object that comes, a person who acts ────────────────────────────────────


def test_a_late_report_that_comes_before_the_next_request_leaves_nothing_to_ask_for(
    site: Site, ledger: Ledger, pacs: CommittingPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, stages = site.waiting(ask_again_h=1.0)
    listed = ledger.uncommitted("PACS")
    assert stages.report(report(pacs.asked[0])) == 0x0000
    monkeypatch.setattr(ledger, "uncommitted", lambda peer: listed)
    stages.tick(20.0 + 2 * H)
    assert len(pacs.asked) == len(transactions(ledger, case)) == 1
    assert site.state(case) is State.DONE


def test_a_node_that_ended_between_ledger_and_request_asks_at_once_and_takes_either_report(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case = site.computed()
    stages = site.stages()
    stages.deliverer.tick(20.0)
    run = ledger.latest_run(case.id)
    assert run is not None
    ledger.ask(run.id, "PACS", "2.25.1", [d.id for d in rows(ledger, case)], 20.0)
    stages.tick(21.0)
    (asked,) = pacs.asked
    ds = report(asked)
    ds.TransactionUID = "2.25.1"
    assert stages.report(ds) == 0x0000
    assert site.state(case) is State.DONE


def test_a_new_object_does_not_wait_for_a_commitment_to_results_that_it_outdates(
    site: Site, ledger: Ledger, tmp_path: Path, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    ledger.add_instances([instance(number=2, at=30.0)], 30.0)
    stages.tick(31.0)
    assert site.state(case) is State.COLLECTING
    compute_again(ledger, tmp_path, case.id, ("PACS",), 40.0, "new inputs")
    stages.tick(50.0)
    assert stages.report(report(pacs.asked[0])) == 0x0000
    assert site.state(case) is State.SENDING, "that was about the old results"
    stages.report(report(pacs.asked[1]))
    assert site.state(case) is State.DONE


def test_an_object_that_comes_while_another_pacs_is_down_waits_for_that(
    site: Site, ledger: Ledger, down: StandinPacs
) -> None:
    case, stages = site.waiting(down)
    ledger.add_instances([instance(number=2, at=30.0)], 30.0)
    stages.tick(31.0)
    assert site.state(case) is State.SENDING


def test_when_a_person_sends_again_a_report_on_what_was_before_changes_nothing(
    site: Site, ledger: Ledger, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    ledger.resend(case.id, 30.0, ["PACS"])
    assert stages.report(report(pacs.asked[0])) == 0x0000
    assert {d.committed_at for d in rows(ledger, case)} == {None}
    stages.tick(40.0)
    stages.report(report(pacs.asked[1]))
    assert site.state(case) is State.DONE


def test_a_clock_that_is_set_back_makes_nobody_wait_for_the_old_time(
    site: Site, pacs: CommittingPacs
) -> None:
    site.computed()
    stages = site.stages(give_up_after_h=0)
    stages.tick(1e6 * H)
    stages.tick(20.0)
    assert len(pacs.asked) == 2


def test_a_clock_that_is_set_ahead_fails_no_case(site: Site, ledger: Ledger) -> None:
    case, stages = site.waiting(give_up_after_h=12)
    steady = [20.0]
    jumps = Jumps(lambda: steady[0])
    jumps.tick(20.0)
    committer = Committer(stages.config, ledger, stages.reports, monotonic=lambda: 0.0, jumps=jumps)
    steady[0] = 50.0
    committer.tick(50.0 + 100 * H)
    assert site.state(case) is State.SENDING


# ── reports that are not ours to take: answered, logged, nothing changes ─────────────────────────


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda ds: delattr(ds, keyword)


def with_value(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda ds: setattr(ds, keyword, value)


@pytest.mark.parametrize(
    ("change", "call", "status", "said"),
    [
        (with_value("TransactionUID", "2.25.999"), {}, 0x0115, "2.25.999, which it was not asked for"),
        (with_value("TransactionUID", "2.25.999"), {"ae_title": "STRANGER"}, 0x0115, "STRANGER reports"),
        (None, {"ae_title": "OTHER"}, 0x0115, "OTHER reports on transaction"),
        (None, {"event_type": 3}, 0x0113, "event type 3 does not exist"),
        (None, {"event_type": 0}, 0x0113, "event type 0 does not exist"),
        (None, {"instance": "1.2.3"}, 0x0112, "1.2.3 is no SOP instance"),
        (without("TransactionUID"), {}, 0x0115, "Transaction UID is missing"),
        (with_value("TransactionUID", "../../etc"), {}, 0x0115, "Transaction UID is missing or not"),
        (without("ReferencedSOPSequence"), {}, 0x0115, "it names no object"),
        (lambda ds: ds.ReferencedSOPSequence[0].clear(), {}, 0x0115, "referenced SOP Class or Instance"),
    ],
    ids=[
        "unknown transaction", "unknown transaction and peer", "wrong peer", "event type", "no event type",
        "instance", "no transaction UID", "bad transaction UID", "no objects", "object without UID",
    ],
)  # fmt: skip
def test_such_a_report_is_answered_with_its_status_logged_and_changes_nothing(
    site: Site,
    ledger: Ledger,
    tmp_path: Path,
    pacs: CommittingPacs,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Dataset], None] | None,
    call: dict[str, Any],
    status: int,
    said: str,
) -> None:
    case = site.computed()
    with StandinPacs(tmp_path / "other", "OTHER") as other:
        stages = site.stages(other)
        stages.tick(20.0)
    ds = report(pacs.asked[0])
    if change is not None:
        change(ds)
    before = (ledger.case(case.id), rows(ledger, case), transactions(ledger, case))
    with caplog.at_level(logging.WARNING, "dicomnode"):
        assert stages.report(ds, **call) == status
    assert said in caplog.text
    assert (ledger.case(case.id), rows(ledger, case), transactions(ledger, case)) == before


def test_a_data_set_that_cannot_be_read_is_answered(site: Site) -> None:
    class Broken:
        request = SimpleNamespace(AffectedSOPInstanceUID=INSTANCE, EventInformation=None)
        event_type = 1

        @property
        def event_information(self) -> Dataset:
            raise EOFError("the data set ends")

    stages = site.stages()
    assert stages.reports.answer(Broken(), "PACS") == (0x0115, None)  # type: ignore[arg-type]


def test_the_same_report_again_is_taken_and_changes_nothing(
    site: Site, ledger: Ledger, pacs: CommittingPacs, caplog: pytest.LogCaptureFixture
) -> None:
    case, stages = site.waiting()
    stages.report(report(pacs.asked[0]))
    before = (ledger.case(case.id), rows(ledger, case), ledger.story(case.id))
    failing = {uid: 0x0110 for _, uid in pacs.asked[0].objects}
    assert stages.report(report(pacs.asked[0], failing), SOME_FAILED) == 0x0000
    assert "reports again" in caplog.text
    assert (ledger.case(case.id), rows(ledger, case), ledger.story(case.id)) == before


def test_when_the_ledger_does_not_answer_the_pacs_hears_of_a_failure(
    site: Site, ledger: Ledger, tmp_path: Path, pacs: CommittingPacs
) -> None:
    site.computed()
    stages = site.stages()
    stages.tick(20.0)
    ledger.close()
    (tmp_path / "ledger.sqlite3").rename(tmp_path / "gone")
    assert stages.report(report(pacs.asked[0])) == 0x0110


# ── over a real socket ───────────────────────────────────────────────────────────────────────────


@contextmanager
def listening(stages: Stages) -> Iterator[int]:
    node = stages.config.node.model_copy(update={"port": 0})
    receiver = Receiver(node, stages.config.peers, Receive(), [stages.reports])
    try:
        yield receiver.start()
    finally:
        receiver.stop(5)


def test_the_pacs_reports_over_an_association_of_its_own_in_the_scp_role(
    site: Site, pacs: CommittingPacs
) -> None:
    case, stages = site.waiting()
    with listening(stages) as port:
        assert send_report(port, report(pacs.asked[0]), role=False) is None
        assert send_report(port, report(pacs.asked[0])) == 0x0000
    assert site.state(case) is State.DONE


def test_what_a_pacs_committed_to_is_in_the_audit_trail(
    site: Site, ledger: Ledger, tmp_path: Path, pacs: CommittingPacs
) -> None:
    """Instances Accessed (PS3.15 A.5.3.6), of what it was asked about alone."""
    case = site.computed()
    config, file = site.config(), tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=file), "DICOMNODE")
    stages = Stages(config, ledger)
    stages.reports = ReportService(config.peers, config.committing(), ledger, lambda: 20.0, audit)
    stages.tick(20.0)
    (asked,) = pacs.asked
    refused = asked.objects[0][1]
    more = Asked(asked.transaction, (*asked.objects, (asked.objects[0][0], "1.2.3.4.5.6")), 1, INSTANCE)
    with listening(stages) as port:
        assert send_report(port, report(more, {refused: 0x0110}), SOME_FAILED) == 0x0000
        assert send_report(port, report(asked)) == 0x0000, "again, and of no more consequence"
    audit.stopped()
    committed, failed = (line for line in file.read_text().splitlines() if "110103" in line)
    assert 'EventOutcomeIndicator="0"' in committed
    assert 'EventOutcomeIndicator="4"' in failed
    for line in (committed, failed):
        assert "AETITLES=PACS" in line
        assert f'ParticipantObjectID="{case.study_instance_uid}"' in line
    counted = sum(map(int, re.findall(r'NumberOfInstances="(\d+)"', committed + failed)))
    assert counted == len(asked.objects)


def test_a_peer_that_is_not_asked_may_not_report(site: Site, tmp_path: Path, pacs: CommittingPacs) -> None:
    with StandinPacs(tmp_path / "plain", "PLAIN") as plain:
        stages = site.stages(plain)
        site.computed()
        stages.tick(20.0)
        with listening(stages) as port:
            assert send_report(port, report(pacs.asked[0]), calling="PLAIN") is None


def test_only_a_destination_can_be_asked_to_commit() -> None:
    peer = {"name": "scanner", "ae_title": "CT", "commitment": True}
    with pytest.raises(ConfigurationError, match=r"commitment = true, but \[deliver\] to does not name it"):
        parse({"peers": [peer]})


def test_cases_that_wait_cost_the_ledger_nothing_more(
    ledger: Ledger, tmp_path: Path, pacs: CommittingPacs, down: StandinPacs
) -> None:
    """While the PACS rests, and another destination is down; in whatever way they wait."""
    stages = Stages(config_for(tmp_path, pacs, down), ledger)
    stages.committer._resting.rest("PACS", "it is down", 20.0)
    outcomes = ("waiting", "refused", "unanswered", "asking", "outdated")
    counts = []
    for number in range(50):
        study, outcome = f"1.2.{number}", outcomes[number % 5]
        case = half_sent(ledger, tmp_path, ("PACS", "DOWN"), study, 10.0)
        run = ledger.latest_run(case.id)
        assert run is not None
        ids = [delivery.id for delivery in rows(ledger, case) if delivery.peer == "PACS"]
        asked = ledger.ask(run.id, "PACS", f"2.25.{number}", ids, 11.0)
        if outcome == "outdated":
            ledger.add_instances([instance(study, 2, 12.0)], 12.0)
        elif outcome != "asking":
            ledger.asked(asked, outcome, "", 12.0)
        if number in (4, 49):
            with statements() as said:
                stages.committer.tick(21.0)
            counts.append(len(said))
    assert counts[0] == counts[1] <= 3
    assert pacs.asked == []
