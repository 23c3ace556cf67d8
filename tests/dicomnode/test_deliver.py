"""The stage that sends, against PACS in this process. Time is an argument; nobody sleeps."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, RTDoseStorage
from pynetdicom import evt

from dicomnode import deliver as deliver_module
from dicomnode.config import Config, Deliver
from dicomnode.deliver import Deliverer
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.network.send import Outgoing
from dicomnode.patience import backoff_s, spread
from dicomnode.records import Case, Delivery
from dicomnode.results.writing import write_durably
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import (
    case_for,
    compute_again,
    config_for,
    encoded_case,
    half_sent,
    instance,
    rows,
    statements,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandinPacs, StandinPacs]]:
    folder = tmp_path_factory.mktemp("pacs")
    with StandinPacs(folder / "a", "PACS_A") as first, StandinPacs(folder / "b", "PACS_B") as second:
        yield first, second


@pytest.fixture
def pacs(both: tuple[StandinPacs, StandinPacs]) -> StandinPacs:
    both[0].forget()
    return both[0]


@pytest.fixture
def second(both: tuple[StandinPacs, StandinPacs]) -> StandinPacs:
    both[1].forget()
    return both[1]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


def deliverer(config: Config, ledger: Ledger) -> Deliverer:
    """One for which no time passes during a tick."""
    return Deliverer(config, ledger, monotonic=lambda: 0.0)


def uids(ledger: Ledger, case: Case) -> list[str]:
    run = ledger.latest_run(case.id)
    assert run is not None
    return [result.new.sop_instance_uid for result in ledger.results(run.id)]


# ── the good way ─────────────────────────────────────────────────────────────────────────────────


def test_a_case_is_done_when_every_destination_has_every_object(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, second: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs, second)
    deliverer(config_for(tmp_path, pacs, second), ledger).tick(20.0)
    assert ledger.case(case.id).state is State.DONE
    assert pacs.received == second.received == uids(ledger, case)
    assert all(d.delivered_at == 20.0 and d.status == 0 and d.tries == 1 for d in rows(ledger, case))
    assert [t.event for t in ledger.story(case.id)][-2:] == [Event.SEND, Event.DELIVER]
    assert [(a.stage, a.outcome) for a in ledger.attempts(case.id)][-1] == ("deliver", "ok")


def test_a_case_that_is_done_is_not_sent_again(ledger: Ledger, tmp_path: Path, pacs: StandinPacs) -> None:
    case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs), ledger)
    stage.tick(20.0)
    stage.tick(30.0)
    assert len(pacs.received) == 3


def test_a_warning_counts_as_delivered_and_is_logged(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, caplog: pytest.LogCaptureFixture
) -> None:
    pacs.status = lambda _sop_class, _uid: 0xB000
    case = case_for(ledger, tmp_path, pacs)
    deliverer(config_for(tmp_path, pacs), ledger).tick(20.0)
    assert ledger.case(case.id).state is State.DONE
    assert "0xB000 Coercion of Data Elements" in caplog.text
    assert {d.status for d in rows(ledger, case)} == {0xB000}


def test_without_a_destination_the_results_stay_here_and_the_story_says_so(
    ledger: Ledger, tmp_path: Path
) -> None:
    case = case_for(ledger, tmp_path)
    deliverer(config_for(tmp_path), ledger).tick(20.0)
    assert ledger.case(case.id).state is State.DONE
    assert "no destination is configured" in ledger.story(case.id)[-1].reason


def test_a_person_may_have_everything_sent_again_as_the_same_objects(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs), ledger)
    stage.tick(20.0)
    ledger.resend(case.id, 25.0, [pacs.ae_title])
    stage.tick(30.0)
    assert pacs.received == 2 * uids(ledger, case)
    assert ledger.case(case.id).state is State.DONE


# ── a destination that is away ───────────────────────────────────────────────────────────────────


def test_a_pacs_that_is_down_does_not_stop_the_other_and_gets_its_objects_later(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, down: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, down, pacs)
    stage = deliverer(config_for(tmp_path, down, pacs), ledger)
    stage.tick(20.0)
    waiting = ledger.case(case.id)
    assert waiting.state is State.SENDING
    assert waiting.attempts == 1
    assert "DOWN (DOWN at 127.0.0.1" in waiting.reason
    assert len(pacs.received) == 3
    assert {d.tries for d in rows(ledger, case) if d.peer == "DOWN"} == {0}
    with down:
        stage.tick(waiting.next_attempt_at)
    assert ledger.case(case.id).state is State.DONE
    assert down.received == uids(ledger, case)
    assert len(pacs.received) == 3


def test_nothing_is_tried_before_its_time(ledger: Ledger, tmp_path: Path, down: StandinPacs) -> None:
    case = case_for(ledger, tmp_path, down)
    stage = deliverer(config_for(tmp_path, down), ledger)
    stage.tick(20.0)
    with down:
        stage.tick(ledger.case(case.id).next_attempt_at - 0.001)
        assert down.associations == 0


def test_a_clock_that_was_set_back_ends_every_pause(
    ledger: Ledger, tmp_path: Path, down: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, down)
    stage = deliverer(config_for(tmp_path, down), ledger)
    stage.tick(1e9)
    assert ledger.case(case.id).next_attempt_at > 1e9
    with down:
        stage.tick(1e9 - 3e7)
    assert ledger.case(case.id).state is State.DONE


def test_pauses_double_from_attempt_to_attempt(ledger: Ledger, tmp_path: Path, down: StandinPacs) -> None:
    case = case_for(ledger, tmp_path, down)
    stage = deliverer(config_for(tmp_path, down, first_retry_s=30.0, max_retry_s=100.0), ledger)
    now, pauses = 20.0, []
    for _ in range(4):
        stage.tick(now)
        following = ledger.case(case.id).next_attempt_at
        pauses.append(following - now)
        now = following
    spreading = 1 + 0.1 * spread(case.id)
    assert pauses == pytest.approx([30 * spreading, 60 * spreading, 100 * spreading, 100 * spreading])
    assert ledger.case(case.id).attempts == 4


def test_a_dead_pacs_is_not_asked_for_every_case_that_waits(
    ledger: Ledger, tmp_path: Path, down: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = deliver_module.send

    def counted(peer: object, files: list[Outgoing], *rest: object) -> None:
        calls.append(len(files))
        real(peer, files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(deliver_module, "send", counted)
    cases = [case_for(ledger, tmp_path, down, study=f"1.2.{n}") for n in range(3, 9)]
    stage = deliverer(config_for(tmp_path, down, first_retry_s=30.0), ledger)
    for now in (20.0, 21.0, 22.0, 49.9):
        stage.tick(now)
    assert len(calls) == 1
    assert [ledger.case(c.id).state for c in cases] == [State.SENDING] + [State.ENCODED] * 5
    stage.tick(50.0)
    assert len(calls) == 2


WEEK_S = 7 * 86400


def test_a_week_without_pacs_loses_nothing_and_ends_without_a_storm(
    ledger: Ledger, tmp_path: Path, down: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls, real = 0.0, [], deliver_module.send

    def counted(*asked: Any) -> None:
        calls.append(now)
        real(*asked)

    monkeypatch.setattr(deliver_module, "send", counted)
    cases = [case_for(ledger, tmp_path, down, study=f"1.2.{n}") for n in range(3, 43)]
    settings = Deliver(first_retry_s=30.0, max_retry_s=3600.0, give_up_after_h=0.0)
    stage = deliverer(config_for(tmp_path, down, **settings.model_dump(exclude={"to", "timeout_s"})), ledger)
    # Looked at often where pauses double and on the last day; each look costs the ledger's answer for forty.
    first, days, last = range(30, 1000, 30), range(1800, 6 * 86400, 3600), range(6 * 86400, WEEK_S, 900)
    for now in map(float, (*first, *days, *last)):
        stage.tick(now)

    # One call for all forty, and a pause that doubles; then one each hour.
    assert [b - a for a, b in pairwise(calls)][:5] == [30.0, 60.0, 120.0, 240.0, 480.0]
    assert all(3600 <= b - a <= 5400 for a, b in pairwise(calls[8:]))
    assert 7 * 24 - 2 <= len(calls) <= 7 * 24 + 8
    assert sum(case.attempts for case in ledger.cases()) == len(calls)
    assert {case.state for case in ledger.cases()} <= {State.ENCODED, State.SENDING}
    assert not ledger.cases(State.FAILED)

    with down:
        back, at_once = now, []
        while ledger.cases(State.ENCODED) or ledger.cases(State.SENDING):
            now, before = now + 60.0, down.associations
            stage.tick(now)
            at_once.append(down.associations - before)
            assert now - back <= 2.2 * settings.max_retry_s
        assert max(at_once) <= deliver_module.CASES_PER_TICK
        assert sorted(down.received) == sorted(uid for case in cases for uid in uids(ledger, case))
        assert down.associations == len(cases)
    assert {d.tries for case in cases for d in rows(ledger, case)} == {1}


def test_an_attempt_at_a_dead_pacs_is_one_line_of_the_log(
    ledger: Ledger, tmp_path: Path, down: StandinPacs, caplog: pytest.LogCaptureFixture
) -> None:
    case = case_for(ledger, tmp_path, down)
    with caplog.at_level(logging.INFO, "dicomnode"):
        deliverer(config_for(tmp_path, down, first_retry_s=30.0), ledger).tick(20.0)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("dicomnode")]
    assert line.startswith("DOWN (DOWN at 127.0.0.1")
    assert f"; tried again in 30 s; case {case.id} waits. Check that it runs" in line


def test_a_person_who_asks_to_resend_does_not_wait_for_the_pause_to_end(
    ledger: Ledger, tmp_path: Path, down: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, down)
    stage = deliverer(config_for(tmp_path, down, first_retry_s=3600.0), ledger)
    stage.tick(20.0)
    with down:
        ledger.resend(case.id, 30.0, ["DOWN"])
        stage.tick(30.0)
    assert ledger.case(case.id).state is State.DONE


def test_a_pacs_that_is_back_gets_a_few_cases_a_tick_one_association_each(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    for n in range(3, 9):
        case_for(ledger, tmp_path, pacs, study=f"1.2.{n}")
    stage = deliverer(config_for(tmp_path, pacs), ledger)
    stage.tick(20.0)
    assert pacs.associations == deliver_module.CASES_PER_TICK
    stage.tick(21.0)
    assert len(ledger.cases(State.DONE)) == 6
    assert pacs.associations == 6


def test_an_abort_in_the_middle_sends_again_only_what_is_not_recorded(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    segmentation, dose, report = uids(ledger, case)
    pacs.status = lambda sop_class, _uid: None if sop_class == RTDoseStorage else 0x0000
    stage = deliverer(config_for(tmp_path, pacs), ledger)
    stage.tick(20.0)
    assert [(d.tries, d.delivered_at) for d in rows(ledger, case)] == [(1, 20.0), (1, None), (0, None)]
    pacs.status = lambda _sop_class, _uid: 0x0000
    stage.tick(ledger.case(case.id).next_attempt_at)
    assert pacs.received == [segmentation, dose, report]
    assert ledger.case(case.id).state is State.DONE


def test_a_crash_between_the_answer_and_its_record_sends_the_same_object_again(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    config = config_for(tmp_path, pacs)
    recorded = Ledger.answered

    def crash(self: Ledger, delivery: Delivery, *rest: object, **named: object) -> None:
        if len(pacs.received) == 2:
            raise LedgerUnavailable("the disk is gone")
        recorded(self, delivery, *rest, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "answered", crash)
        with pytest.raises(LedgerUnavailable):
            deliverer(config, ledger).tick(20.0)
    ledger.recover(25.0)
    deliverer(config, ledger).tick(30.0)
    segmentation, dose, report = uids(ledger, case)
    assert pacs.received == [segmentation, dose, dose, report]
    assert ledger.case(case.id).state is State.DONE
    assert [a.outcome for a in ledger.attempts(case.id)][-2:] == ["interrupted", "ok"]


def test_give_up_after_h_ends_the_waiting(ledger: Ledger, tmp_path: Path, down: StandinPacs) -> None:
    case = case_for(ledger, tmp_path, down)
    stage = deliverer(config_for(tmp_path, down, give_up_after_h=2.0), ledger)
    stage.tick(20.0)
    assert ledger.case(case.id).state is State.SENDING
    stage.tick(20.0 + 2 * 3600)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "not delivered within 2 h" in failed.reason
    assert f"dicomnode retry {case.id} --resend" in failed.remedy


# ── a destination that refuses ───────────────────────────────────────────────────────────────────


def test_a_refused_object_is_tried_again_a_few_times_and_then_a_person_is_asked(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    pacs.status = lambda sop_class, _uid: 0xA900 if sop_class == RTDoseStorage else 0x0000
    case = case_for(ledger, tmp_path, pacs)
    dose = uids(ledger, case)[1]
    stage = deliverer(config_for(tmp_path, pacs, max_refusals=3), ledger)
    now = 20.0
    for _ in range(2):
        stage.tick(now)
        now = ledger.case(case.id).next_attempt_at
        assert ledger.case(case.id).state is State.SENDING
    stage.tick(now)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert f"PACS_A refused RTDOSE {dose} 3 times: 0xA900 Data Set Does Not Match SOP Class" in failed.reason
    assert "administrator of PACS_A" in failed.remedy
    assert len(pacs.received) == 2


def test_after_the_cause_is_removed_a_person_resends_and_the_case_is_done(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    pacs.status = lambda _sop_class, _uid: 0x0124
    case = case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs, max_refusals=1), ledger)
    stage.tick(20.0)
    assert "Let PACS_A accept this SOP class from DICOMNODE" in ledger.case(case.id).remedy
    pacs.forget()
    ledger.resend(case.id, 25.0, ["PACS_A"])
    stage.tick(25.0)
    assert ledger.case(case.id).state is State.DONE


def test_an_object_whose_class_is_not_accepted_fails_while_the_others_are_delivered(
    ledger: Ledger, tmp_path: Path
) -> None:
    with StandinPacs(tmp_path / "old", "OLD", sop_classes=(RTDoseStorage, Comprehensive3DSRStorage)) as old:
        case = case_for(ledger, tmp_path, old)
        deliverer(config_for(tmp_path, old, max_refusals=1), ledger).tick(20.0)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "no presentation context accepted" in failed.reason
    assert [d.delivered_at for d in rows(ledger, case)] == [None, 20.0, 20.0]
    assert rows(ledger, case)[0].tries == 0


# ── a destination that takes nothing at the moment ───────────────────────────────────────────────


def full(_sop_class: str, _uid: str) -> int:
    return 0xA700


def test_a_weekend_with_a_full_pacs_fails_no_case_and_ends_by_itself(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, caplog: pytest.LogCaptureFixture
) -> None:
    pacs.status = full
    cases = [case_for(ledger, tmp_path, pacs, study=f"1.2.{n}") for n in range(3, 13)]
    stage = deliverer(config_for(tmp_path, pacs, max_refusals=1, max_retry_s=3600.0), ledger)
    calls, now = [], 0.0
    for now in map(float, (*range(30, 1000, 30), *range(1800, 60 * 3600, 900))):
        before = pacs.associations
        stage.tick(now)
        calls += [now] * (pacs.associations - before)
    # One association for all that wait, and a pause that doubles; then one each hour.
    assert [b - a for a, b in pairwise(calls)][:5] == [30.0, 60.0, 120.0, 240.0, 480.0]
    assert all(3600 <= b - a <= 5400 for a, b in pairwise(calls[8:]))
    assert {case.state for case in ledger.cases()} <= {State.ENCODED, State.SENDING}
    assert {d.refusals for case in cases for d in rows(ledger, case)} == {0}
    waiting = ledger.cases(State.SENDING)[0]
    assert "out of resources: it answered 0xA700" in waiting.reason
    assert waiting.remedy == "Make room on PACS_A"
    assert caplog.text.count("Make room on PACS_A") == 1
    pacs.forget()
    at_once = []
    while ledger.cases(State.ENCODED) or ledger.cases(State.SENDING):
        now, before = now + 60.0, pacs.associations
        stage.tick(now)
        at_once.append(pacs.associations - before)
    assert max(at_once) <= deliver_module.CASES_PER_TICK
    assert sorted(pacs.received) == sorted(uid for case in cases for uid in uids(ledger, case))


def test_a_pacs_that_rejects_us_waits_with_our_ae_title_in_the_remedy_until_it_knows_us(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StandinPacs(tmp_path / "strict", "STRICT", required_calling_aet="OTHER") as strict:
        case = case_for(ledger, tmp_path, strict)
        later = case_for(ledger, tmp_path, strict, study="1.2.4")
        stage = deliverer(config_for(tmp_path, strict, max_refusals=1), ledger)
        for now in range(20, 7200, 10):
            stage.tick(float(now))
        port = strict.port
    waiting = ledger.case(case.id)
    assert waiting.state is State.SENDING
    assert "rejected the association" in waiting.reason
    assert "Let STRICT know DICOMNODE" in waiting.remedy
    assert caplog.text.count("Let STRICT know DICOMNODE") == 1
    with StandinPacs(tmp_path / "strict", "STRICT", port=port):
        for now in range(7200, 15000, 10):
            stage.tick(float(now))
    assert {ledger.case(c.id).state for c in (case, later)} == {State.DONE}


def test_of_a_pacs_that_takes_one_object_of_two_no_object_fails_and_what_it_took_is_not_sent_again(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    """Its last megabytes hold reports, and no dose."""
    pacs.status = lambda sop_class, _uid: 0xA700 if sop_class == RTDoseStorage else 0x0000
    cases = [case_for(ledger, tmp_path, pacs, study=f"1.2.{n}") for n in range(3, 6)]
    stage = deliverer(config_for(tmp_path, pacs, max_refusals=1, first_retry_s=30.0), ledger)
    for now in range(20, 4000, 10):
        stage.tick(float(now))
    assert {case.state for case in ledger.cases()} == {State.SENDING}
    assert sorted(pacs.received) == sorted(uid for c in cases for uid in uids(ledger, c)[::2])
    # It rests, longer each time, although it took something.
    assert pacs.associations < 12
    pacs.forget()
    for now in range(4000, 12000, 10):
        stage.tick(float(now))
    assert sorted(pacs.received) == sorted(uids(ledger, case)[1] for case in cases)
    assert {case.state for case in ledger.cases()} == {State.DONE}


def test_an_object_that_a_pacs_has_never_room_for_keeps_no_other_case_from_it(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    odd = case_for(ledger, tmp_path, pacs)
    too_large = uids(ledger, odd)[1]
    pacs.status = lambda _sop_class, uid: 0xA700 if uid == too_large else 0x0000
    stage = deliverer(config_for(tmp_path, pacs, first_retry_s=30.0, max_retry_s=600.0), ledger)
    for hour in range(4):
        for now in range(7200 * hour, 7200 * hour + 3600, 20):
            stage.tick(float(now))
        other = case_for(ledger, tmp_path, pacs, study=f"1.2.{10 + hour}")
        # The rest is over, and both are due.
        stage.tick(7200.0 * hour + 5000.0)
        assert ledger.case(other.id).state is State.DONE
    assert ledger.case(odd.id).state is State.SENDING


def test_a_pacs_that_stays_full_is_given_up_when_the_hospital_says_so_with_the_remedy(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    pacs.status = full
    case = case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs, give_up_after_h=2.0), ledger)
    for now in range(0, 5 * 3600, 60):
        stage.tick(float(now))
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "not delivered within 2 h: PACS_A (" in failed.reason
    assert failed.remedy == f"Make room on PACS_A; then `dicomnode retry {case.id} --resend`"


def test_what_a_full_pacs_says_of_the_patient_is_not_logged(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def comment(event: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xA700, "no room for PAT-0001"
        return answer

    with StandinPacs(tmp_path / "full", "FULL", handlers=[(evt.EVT_C_STORE, comment)]) as pacs:
        case = case_for(ledger, tmp_path, pacs)
        with caplog.at_level(logging.INFO, "dicomnode"):
            deliverer(config_for(tmp_path, pacs), ledger).tick(20.0)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("dicomnode")]
    assert line.startswith("FULL (FULL at 127.0.0.1")
    assert "PAT-0001" not in line + ledger.case(case.id).reason
    assert "no room for PAT-0001" in rows(ledger, case)[0].detail


# ── what else may happen ─────────────────────────────────────────────────────────────────────────


def test_a_destination_that_was_removed_fails_clearly_after_the_others_were_served(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = encoded_case(ledger, tmp_path, ("GONE", pacs.ae_title))
    config = config_for(tmp_path, pacs)
    deliverer(config, ledger).tick(20.0)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "'GONE', which [deliver] to no longer names" in failed.reason
    assert len(pacs.received) == 3
    ledger.resend(case.id, 25.0, config.deliver.to)
    deliverer(config, ledger).tick(30.0)
    assert ledger.case(case.id).state is State.DONE


def test_a_result_file_that_is_gone_fails_with_its_path(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    run = ledger.latest_run(case.id)
    assert run is not None
    lost = ledger.results(run.id)[1].new.path
    (tmp_path / lost).unlink()
    deliverer(config_for(tmp_path, pacs), ledger).tick(20.0)
    assert ledger.case(case.id).state is State.FAILED
    assert lost in ledger.case(case.id).reason


def test_an_object_that_arrives_during_sending_leads_to_a_later_result(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)

    def and_a_late_slice(_sop_class: str, _uid: str) -> int:
        ledger.add_instances([instance(number=2, at=21.0)], 21.0)
        return 0x0000

    pacs.status = and_a_late_slice
    config = config_for(tmp_path, pacs)
    deliverer(config, ledger).tick(20.0)
    assert ledger.case(case.id).state is State.COLLECTING
    first = ledger.latest_run(case.id)
    compute_again(ledger, tmp_path, case.id, config.deliver.to, 30.0, inputs="more")
    pacs.status = lambda _sop_class, _uid: 0x0000
    deliverer(config, ledger).tick(40.0)
    later = ledger.latest_run(case.id)
    assert first is not None
    assert later is not None
    assert later.predecessor_id == first.id
    assert ledger.case(case.id).state is State.DONE
    assert len(set(pacs.received)) == 6


def test_stop_lets_the_object_under_way_finish_and_the_rest_for_the_next_start(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    config = config_for(tmp_path, pacs)
    stage = deliverer(config, ledger)

    def and_stop(_sop_class: str, _uid: str) -> int:
        stage.stop()
        return 0x0000

    pacs.status = and_stop
    stage.tick(20.0)
    assert len(pacs.received) == 1
    assert ledger.case(case.id).state is State.SENDING
    assert ledger.attempts(case.id)[-1].outcome == "interrupted"
    pacs.status = lambda _sop_class, _uid: 0x0000
    deliverer(config, ledger).tick(21.0)
    assert pacs.received == uids(ledger, case)


def test_a_case_that_cannot_be_sent_does_not_keep_the_others_waiting(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, caplog: pytest.LogCaptureFixture
) -> None:
    first = case_for(ledger, tmp_path, pacs)
    other = case_for(ledger, tmp_path, pacs, study="1.2.4")
    stage = deliverer(config_for(tmp_path, pacs), ledger)

    def move_on(_sop_class: str, _uid: str) -> int:
        # While the first is sent, a person takes up the second again.
        if ledger.case(other.id).state is State.ENCODED:
            ledger.apply(other.id, Event.RETRY, 20.0)
        return 0x0000

    pacs.status = move_on
    with caplog.at_level(logging.ERROR):
        stage.tick(20.0)
    assert ledger.case(first.id).state is State.DONE
    assert ledger.case(other.id).state is State.COLLECTING
    assert f"case {other.id} was not sent" in caplog.text


def test_whatever_breaks_is_one_failed_attempt_of_one_case(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = case_for(ledger, tmp_path, pacs)
    other = case_for(ledger, tmp_path, pacs, study="1.2.4")
    real = deliver_module.send

    def broken(peer: object, files: list[Outgoing], *rest: object) -> None:
        if f"/{first.id}/" in str(files[0].path):
            raise ZeroDivisionError
        real(peer, files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(deliver_module, "send", broken)
    deliverer(config_for(tmp_path, pacs), ledger).tick(20.0)
    assert ledger.case(first.id).next_attempt_at > 20.0
    assert ledger.attempts(first.id)[-1].outcome == "failed"
    assert ledger.case(other.id).state is State.DONE


# ── back-off ─────────────────────────────────────────────────────────────────────────────────────


def test_the_pause_doubles_up_to_its_limit_however_long_it_lasts() -> None:
    settings = Deliver(first_retry_s=30.0, max_retry_s=3600.0)
    pauses = [backoff_s(n, settings) for n in (1, 2, 3, 7, 8, 100_000)]
    assert pauses == [30.0, 60.0, 120.0, 1920.0, 3600.0, 3600.0]
    assert backoff_s(1, settings, jitter=1.0) == pytest.approx(33.0)


def test_cases_are_spread_over_the_tenth() -> None:
    jitters = sorted(spread(n) for n in range(1, 101))
    gaps = [b - a for a, b in pairwise(jitters)]
    assert 0.0 <= jitters[0] < jitters[-1] < 1.0
    assert max(gaps) < 0.02


def test_cases_that_wait_for_a_destination_that_rests_cost_the_ledger_nothing_more(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, down: StandinPacs
) -> None:
    """Another destination is there, and a new case goes to it past all that wait."""
    stage = deliverer(config_for(tmp_path, pacs, down), ledger)
    peers = (pacs.ae_title, down.ae_title)
    stage._resting.rest(down.ae_title, "it is down", 20.0)
    counts = []
    for number in range(50):
        half_sent(ledger, tmp_path, peers, f"1.2.{number}", 10.0)
        if number in (0, 49):
            with statements() as asked:
                stage.tick(21.0)
            counts.append(len(asked))
    assert counts[0] == counts[1] <= 4
    assert pacs.received == []
    late = case_for(ledger, tmp_path, pacs, study="1.3")
    stage.tick(22.0)
    assert ledger.case(late.id).state is State.DONE
    assert {case.state for case in ledger.cases() if case.id != late.id} == {State.SENDING}


def test_one_failed_call_spares_the_ledger_in_the_same_tick_too(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, down: StandinPacs
) -> None:
    stage = deliverer(config_for(tmp_path, pacs, down), ledger)
    counts = []
    for number in range(30):
        half_sent(ledger, tmp_path, (pacs.ae_title, down.ae_title), f"1.2.{number}", 10.0)
        if number in (9, 29):
            # Its pause is over, the first case finds it down still, and all others wait for it.
            stage._resting.wake(down.ae_title)
            with statements() as asked:
                stage.tick(20.0 + number)
            counts.append(len(asked))
            assert sum(case.attempts == 2 for case in ledger.cases()) == len(counts)
    assert counts[0] == counts[1]


# ── what the disk did to a result ────────────────────────────────────────────────────────────────


def test_a_dose_that_the_disk_damaged_reaches_no_pacs(
    ledger: Ledger, tmp_path: Path, both: tuple[StandinPacs, StandinPacs]
) -> None:
    pacs, other_pacs = both
    case = case_for(ledger, tmp_path, pacs, other_pacs)
    run = ledger.latest_run(case.id)
    assert run is not None
    dose = next(r.new for r in ledger.results(run.id) if r.new.kind == "RTDOSE")
    file = tmp_path / dose.path
    sound = file.read_bytes()
    ds = pydicom.dcmread(file)
    write_durably(ds, file)
    assert file.stat().st_size == dose.size_bytes, "as the node writes them"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    stage = deliverer(config_for(tmp_path, pacs, other_pacs), ledger)
    stage.tick(20.0)
    assert dose.sop_instance_uid not in pacs.received + other_pacs.received
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert f"the file of RTDOSE {dose.sop_instance_uid} is damaged (its checksum" in failed.reason
    assert "restore the file, then `dicomnode retry 1 --resend`" in failed.remedy
    assert "compute again: `dicomnode retry 1`" in failed.remedy
    # Restored, it goes.
    file.write_bytes(sound)
    ledger.resend(case.id, 30.0, [pacs.ae_title])
    stage.tick(40.0)
    assert ledger.case(case.id).state is State.DONE
    assert pacs.received.count(dose.sop_instance_uid) == 1


def test_a_result_that_cannot_be_read_for_a_moment_waits_and_goes(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that hiccups, or file descriptors that an association storm used up."""
    case = case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs), ledger)

    def hiccup(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(deliver_module, "damage", hiccup)
        stage.tick(20.0)
    waiting = ledger.case(case.id)
    assert waiting.state is State.SENDING
    assert "cannot be read (Input/output error): results/" in waiting.reason
    stage.tick(4000.0)
    assert ledger.case(case.id).state is State.DONE
    assert sorted(pacs.received) == sorted(uids(ledger, case))


def test_results_whose_file_system_is_away_wait_for_it(
    ledger: Ledger, tmp_path: Path, pacs: StandinPacs
) -> None:
    case = case_for(ledger, tmp_path, pacs)
    stage = deliverer(config_for(tmp_path, pacs), ledger)
    results = tmp_path / "results"
    elsewhere = results.rename(tmp_path / "elsewhere")
    stage.tick(20.0)
    waiting = ledger.case(case.id)
    assert waiting.state is State.SENDING
    assert waiting.reason == f"{results} is away"
    elsewhere.rename(results)
    stage.tick(4000.0)
    assert ledger.case(case.id).state is State.DONE
