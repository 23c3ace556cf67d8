"""What is removed, when, in which order, and what is never removed. The clock is an argument."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from rich.console import Console

from dicomnode.assemble import Assembler
from dicomnode.clock import Jumps
from dicomnode.commands.show import case_story, removal_list
from dicomnode.config import Assemble
from dicomnode.config import Retention as Settings
from dicomnode.errors import NodeError
from dicomnode.ledger import Ledger
from dicomnode.ledger.rejections import NOTE
from dicomnode.reception.header import inspect
from dicomnode.reception.intake import Intake, instance_of
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin
from dicomnode.records import Case, Identity, NewResult, Quarantined
from dicomnode.retention import CASES_PER_TICK, DAY_S, Planned, Retention
from dicomnode.states import Event, State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.dicomnode.modality import ct_slice, encoded
from tests.dicomnode.results_on_disk import compute_again, instance, rows, run_of
from tests.postgres import PostgresServer

EXPLICIT = "1.2.840.10008.1.2.1"
START = 1_700_000_000.0
LATER = START + 40 * DAY_S


class Monotonic:
    """Seconds that only run forward; as far as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A data_dir with its ledger and spool, and objects and cases in it."""

    def __init__(self, data_dir: Path, url: str = "") -> None:
        self.data_dir = data_dir
        self.ledger = Ledger.open(url or f"sqlite:///{data_dir / 'ledger.sqlite3'}")
        self.spool = Spool(data_dir, 0)
        (data_dir / "results").mkdir()
        self.monotonic = Monotonic()

    def close(self) -> None:
        self.spool.close()
        self.ledger.close()

    def receive(self, study: str, number: int, at: float = START) -> Path:
        """One CT slice, durable and registered."""
        uid = f"{study}.1.{number}"
        ds = ct_slice(StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", SOPInstanceUID=uid)
        data = memoryview(encoded(ds))
        path, size = self.spool.store(study, Origin(str(ds.SOPClassUID), uid, EXPLICIT, "CAMERA"), data)
        os.utime(path, (at, at))
        one = replace(instance(study, number, at, path=self.spool.relative(path)), size_bytes=size)
        self.ledger.add_instances([one], at)
        return path

    def encoded(self, study: str, at: float = START, peers: tuple[str, ...] = ("PACS",)) -> Case:
        """Two slices, and results that wait to be sent."""
        for number in (1, 2):
            self.receive(study, number, at)
        case = next(c for c in self.ledger.cases() if c.study_instance_uid == study)
        return compute_again(self.ledger, self.data_dir, case.id, peers, at)

    def done(self, study: str, at: float = START) -> Case:
        """As `encoded`, and delivered."""
        return self.deliver(self.encoded(study, at), at)

    def deliver(self, case: Case, at: float) -> Case:
        run = self.ledger.latest_run(case.id)
        assert run is not None
        happened = Event.SEND if case.state is State.ENCODED else None
        attempt = self.ledger.begin(case.id, happened, "deliver", at)
        for _, delivery in self.ledger.deliveries(run.id):
            self.ledger.answered(delivery, at, status=0, detail="", delivered=True)
        return self.ledger.delivered(attempt, run, at)

    def retention(self, **settings: float) -> Retention:
        return Retention(Settings(**settings), self.ledger, self.spool, self.monotonic)

    def files(self, folder: str) -> list[str]:
        paths = (self.data_dir / folder).rglob("*")
        return sorted(str(p.relative_to(self.data_dir)) for p in paths if p.is_file())

    def recovered(self) -> list[Case]:
        """What the next start makes of what a crash left."""
        spool = Spool(self.data_dir, 0)
        Retention(Settings(), self.ledger, spool).recover(LATER + 10)
        Intake(spool, self.ledger).recover(LATER + 10)
        spool.close()
        return self.ledger.cases()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def text_of(renderable: Any) -> str:
    console = Console(width=240)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


# ── by age ───────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_removed_unless_a_setting_says_so(store: Store) -> None:
    store.done("1.2.3")
    store.retention().tick(LATER * 10)
    assert (len(store.files("spool")), len(store.files("results"))) == (2, 3)


def test_inputs_go_by_their_age_and_the_case_keeps_its_row_story_and_results(store: Store) -> None:
    case = store.done("1.2.3")
    story = store.ledger.story(case.id)
    retention = store.retention(inputs_days=30)
    retention.tick(START + 30 * DAY_S - 1)
    assert len(store.files("spool")) == 2
    store.monotonic.now = 60
    retention.tick(START + 30 * DAY_S)
    assert store.files("spool") == []
    assert not (store.data_dir / "spool" / "1.2.3").exists()
    assert len(store.files("results")) == 3
    after = store.ledger.case(case.id)
    assert (after.state, after.inputs_removed_at) == (State.DONE, START + 30 * DAY_S)
    assert store.ledger.story(case.id) == story
    assert store.ledger.instances(case.id) == []
    assert store.ledger.removals() == []
    shown = text_of(case_story(store.ledger, after))
    assert "inputs removed" in shown
    assert "2 removed" in shown
    assert "1.2.3.1" in shown


def test_results_go_by_their_own_age_and_are_known_when_they_come_back(store: Store) -> None:
    case = store.done("1.2.3")
    run = store.ledger.latest_run(case.id)
    assert run is not None
    results = store.ledger.results(run.id)
    uids = [result.new.sop_instance_uid for result in results]
    # Of a node that was killed while it took a rejection note apart.
    (store.data_dir / results[0].new.path).with_name("KO-part-1.dcm").write_bytes(b"DOE^JOHN")
    store.retention(results_days=30).tick(LATER)
    assert (len(store.files("spool")), store.files("results")) == (2, [])
    assert not (store.data_dir / "results" / str(case.id)).exists()
    assert all(store.ledger.is_result(uid) for uid in uids)
    assert "files removed" in text_of(case_story(store.ledger, case))
    with pytest.raises(NodeError, match="results of case 1 were removed on 20"):
        store.ledger.resend(case.id, LATER, ["PACS"])


def test_what_was_set_aside_goes_by_its_age_unless_an_open_case_speaks_of_it(store: Store) -> None:
    store.receive("1.2.9", 1)
    store.done("1.2.3")
    origin = Origin("1.2.840.10008.5.1.4.1.1.2", "1.2.3.7", EXPLICIT, "CAMERA")
    for study in ("1.2.3", "1.2.9", "1.2.77"):
        note = Note("OTHER_CONTENT", "r", 0xC030, "CAMERA", START, "1", "1.2", study, EXPLICIT, "", "")
        kept, is_new = store.spool.set_aside(note, origin, memoryview(study.encode()))
        assert is_new
        store.ledger.quarantine(
            Quarantined("1.2", study, "CAMERA", "OTHER_CONTENT", "r", 0xC030, kept.path, START)
        )
    broken = store.data_dir / "quarantine" / "1.2.3.broken"
    broken.write_bytes(b"half")
    os.utime(broken, (START, START))
    store.retention(quarantine_days=30).tick(LATER)
    (left,) = store.ledger.quarantined("1.2.9")
    assert store.files("quarantine") == [left.path, left.path.replace(".dcm", ".json")]
    # That something was refused, and why, stays in the case's story.
    assert [(q.defect, q.path) for q in store.ledger.quarantined("1.2.3")] == [("OTHER_CONTENT", "")]
    assert len(store.recovered()) == 2


def test_nothing_younger_than_the_minimum_goes_whatever_the_days_say(store: Store) -> None:
    store.done("1.2.3")
    retention = store.retention(inputs_days=0.01, minimum_age_h=48)
    retention.tick(START + 2 * DAY_S - 1)
    assert len(store.files("spool")) == 2
    assert [p.what for p in retention.plan(START + 2 * DAY_S)] == ["inputs"]


@pytest.mark.parametrize("state", sorted(set(State) - {State.DONE}))
def test_what_is_under_way_held_failed_or_undelivered_stays(store: Store, state: State) -> None:
    make_case(store, state)
    retention = store.retention(inputs_days=1, results_days=1, quota_gb=1e-9)
    assert retention.plan(LATER) == []
    retention.tick(LATER)
    assert len(store.files("spool")) == 2


def make_case(store: Store, state: State) -> None:
    """A case in that state, by the events that lead there."""
    if state in (State.ENCODED, State.SENDING):
        case = store.encoded("1.2.3")
        if state is State.SENDING:
            store.ledger.begin(case.id, Event.SEND, "deliver", START)
        return
    for number in (1, 2):
        store.receive("1.2.3", number)
    path = {
        State.COLLECTING: (),
        State.READY: (Event.COMPLETE,),
        State.COMPUTING: (Event.COMPLETE, Event.CLAIM),
        State.HELD: (Event.REJECT,),
        State.FAILED: (Event.COMPLETE, Event.CLAIM, Event.GIVE_UP),
    }[state]
    for event in path:
        store.ledger.apply(1, event, START)
    assert store.ledger.case(1).state is state


def test_a_done_case_of_which_a_destination_lacks_something_stays(store: Store) -> None:
    case = store.encoded("1.2.3")
    store.ledger.begin(case.id, Event.SEND, "deliver", START)
    store.ledger.apply(case.id, Event.DELIVER, START)  # as if a destination had been forgotten
    assert store.ledger.case(case.id).state is State.DONE
    assert store.retention(inputs_days=1, results_days=1, quota_gb=1e-9).plan(LATER) == []
    assert store.ledger.remove_inputs(case.id, State.DONE, LATER) == []
    assert store.ledger.remove_results(case.id, State.DONE, LATER) == []


@pytest.mark.parametrize("rule", ["inputs_days", "results_days", "quota_gb"])
def test_what_was_meant_for_nobody_stays_until_a_destination_has_it(store: Store, rule: str) -> None:
    """[deliver] to was empty: no delivery is open, for there is none. The node has the only copy."""
    case = store.deliver(store.encoded("1.2.3", peers=()), START)
    assert store.ledger.case(case.id).state is State.DONE
    retention = store.retention(**{rule: 1e-9 if rule == "quota_gb" else 30})
    assert retention.remove_due(LATER) == []
    assert (len(store.files("spool")), len(store.files("results"))) == (2, 3)
    assert store.ledger.remove_inputs(case.id, State.DONE, LATER) == []
    assert store.ledger.remove_results(case.id, State.DONE, LATER) == []
    store.ledger.resend(case.id, LATER, ("PACS",))
    store.deliver(store.ledger.case(case.id), LATER)
    assert retention.remove_due(LATER + 31 * DAY_S)


def test_a_result_of_several_that_was_meant_for_nobody_keeps_the_others(store: Store) -> None:
    """A PACS had one of three when it was taken out of [deliver] to, and a person sent again: to nobody."""
    case = store.encoded("1.2.3")
    store.ledger.begin(case.id, Event.SEND, "deliver", START)
    first = rows(store.ledger, case)[0]
    store.ledger.answered(first, START, status=0, detail="", delivered=True)
    store.ledger.apply(case.id, Event.GIVE_UP, START)
    case = store.deliver(store.ledger.resend(case.id, START, ()), START)
    assert case.state is State.DONE
    assert store.retention(inputs_days=30, results_days=30, quota_gb=1e-9).plan(LATER) == []


def test_what_was_meant_for_nobody_goes_with_the_results_that_replaced_it(store: Store) -> None:
    case = store.deliver(store.encoded("1.2.3", peers=()), START)
    store.receive("1.2.3", 3)
    store.deliver(compute_again(store.ledger, store.data_dir, case.id, ("PACS",), START, "more"), START)
    assert len(store.files("results")) == 6
    store.retention(results_days=30).tick(LATER)
    assert store.files("results") == []


def test_a_rejection_note_that_nobody_takes_keeps_nothing(store: Store) -> None:
    (case_id,) = store.ledger.add_instances([instance("1.2.3", at=START)], START)
    store.ledger.assembled(
        store.ledger.case(case_id), START, "{}", "inputs", Identity("PAT-0001"), "complete"
    )
    attempt = store.ledger.begin(case_id, Event.CLAIM, "compute", START)
    dose = NewResult("1.2.3.4.5", "1.2.840.10008.5.1.4.1.1.481.2", "1.9", "1.2", "RTDOSE", "dvk", "x.dcm", 1)
    note = replace(dose, sop_instance_uid="1.2.3.4.6", sop_class_uid=NOTE, kind="KO", path="y.dcm")
    store.ledger.register(attempt, run_of(), [note, dose], ("PACS",), START, notes_to=())
    store.deliver(store.ledger.case(case_id), START)
    assert [p.what for p in store.retention(results_days=30).plan(LATER)] == ["results"]


def test_failed_cases_go_by_an_age_of_their_own(store: Store) -> None:
    make_case(store, State.FAILED)
    retention = store.retention(inputs_days=1, failed_days=30)
    assert retention.plan(START + 29 * DAY_S) == []
    retention.tick(START + 30 * DAY_S)
    assert store.files("spool") == []
    assert store.ledger.case(1).state is State.FAILED


def test_a_case_that_moves_on_between_plan_and_removal_stays(store: Store) -> None:
    case = store.done("1.2.3")
    store.receive("1.2.3", 3, LATER)
    assert store.ledger.case(case.id).state is State.COLLECTING
    assert store.ledger.remove_inputs(case.id, State.DONE, LATER) == []
    assert len(store.files("spool")) == 3


def test_results_that_were_withdrawn_go_with_the_others(store: Store) -> None:
    case = store.encoded("1.2.3")
    store.receive("1.2.3", 3)
    assert store.ledger.latest_run(case.id) is None
    store.deliver(compute_again(store.ledger, store.data_dir, case.id, ("PACS",), START, "more"), START)
    assert len(store.files("results")) == 6
    store.retention(results_days=1).tick(LATER)
    assert store.files("results") == []


def test_the_ledger_on_postgresql_decides_the_same(tmp_path: Path, postgres_server: PostgresServer) -> None:
    store = Store(tmp_path, postgres_server.new_database())
    case, other = store.done("1.2.3"), store.encoded("1.2.4")
    store.deliver(store.encoded("1.2.5", peers=()), START)
    retention = store.retention(inputs_days=30, results_days=30, quarantine_days=30, quota_gb=1e-9)
    assert {(p.what, p.holding and p.holding.case_id) for p in retention.plan(LATER)} == {
        ("inputs", case.id),
        ("results", case.id),
    }
    retention.tick(LATER)
    assert store.ledger.case(case.id).inputs_removed_at == LATER
    assert {path.split("/")[1] for path in store.files("spool")} == {"1.2.4", "1.2.5"}
    assert {path.split("/")[1] for path in store.files("results")} == {str(other.id), "3"}
    assert [(s.objects, s.discarded) for s in store.ledger.removed_series(case.id)] == [(2, False)]
    assert store.ledger.removals() == []
    store.close()


# ── by quota ─────────────────────────────────────────────────────────────────────────────────────


def test_the_quota_takes_the_inputs_that_were_done_first_and_stops_below_it(store: Store) -> None:
    for number in range(10):
        store.done(f"1.2.{number}", START + number)
    kept = store.ledger.kept_bytes()
    quota = kept / 1.01
    # 1 % too much: the inputs of as many cases go as it takes to come down to nine tenths, and of no more.
    retention = store.retention(quota_gb=quota / 1e9)
    planned = retention.plan(LATER)
    assert {p.what for p in planned} == {"inputs"}
    sizes = [p.size_bytes for p in planned]
    assert kept - sum(sizes) <= 0.9 * quota < kept - sum(sizes[:-1])
    retention.tick(LATER)
    removed = [c.inputs_removed_at is not None for c in store.ledger.cases()]
    assert removed == [number < len(planned) for number in range(10)]
    assert store.ledger.kept_bytes() == kept - sum(sizes)
    assert retention.plan(LATER) == []


def test_results_follow_when_all_inputs_do_not_suffice(store: Store) -> None:
    for number in range(3):
        store.done(f"1.2.{number}", START + number)
    results = store.ledger.removable_cases("results", State.DONE, LATER, 9)[0].size_bytes
    # Nine tenths of it hold the results of one case, and no more.
    retention = store.retention(quota_gb=1.2 * results / 1e9)
    assert [p.what for p in retention.plan(LATER)] == ["inputs"] * 3 + ["results"] * 2


def test_a_quota_that_cannot_be_kept_is_said_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    make_case(store, State.HELD)
    retention = store.retention(quota_gb=1e-9)
    for _ in range(3):
        retention.tick(LATER)
        store.monotonic.now += 60
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "quota_gb = 1e-09" in record.getMessage()
    assert "HELD" in record.getMessage()


# ── when ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_long_plan_is_carried_out_in_several_ticks(store: Store) -> None:
    for number in range(CASES_PER_TICK + 2):
        store.done(f"1.2.{number}")
    retention = store.retention(inputs_days=1)
    retention.tick(LATER)
    assert len(store.files("spool")) == 4
    retention.tick(LATER)
    assert store.files("spool") == []


def test_it_looks_once_a_minute(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    retention = store.retention(inputs_days=1)
    looked: list[float] = []

    def plan(now: float) -> list[Planned]:
        looked.append(now)
        return []

    monkeypatch.setattr(retention, "plan", plan)
    for second in range(121):
        store.monotonic.now = second
        retention.tick(START + second)
    assert looked == [START, START + 60, START + 120]


def test_a_clock_that_is_set_ahead_makes_nothing_old(store: Store) -> None:
    store.done("1.2.3")
    settings = Settings(inputs_days=30)
    jumps = Jumps(store.monotonic)
    retention = Retention(settings, store.ledger, store.spool, store.monotonic, jumps=jumps)
    retention.tick(START)
    store.monotonic.now = 60
    retention.tick(LATER)
    assert len(store.files("spool")) == 2
    # By the clock that nobody sets, thirty days have passed.
    store.monotonic.now = 30 * DAY_S
    retention.tick(LATER + 30 * DAY_S)
    assert store.files("spool") == []
    removed_at = store.ledger.case(1).inputs_removed_at
    assert removed_at == LATER + 30 * DAY_S


def test_stop_ends_a_tick_after_the_case_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.done(f"1.2.{number}")
    retention = store.retention(inputs_days=1)
    remove = store.spool.remove

    def and_stop(paths: list[str]) -> None:
        remove(paths)
        retention.stop()

    monkeypatch.setattr(store.spool, "remove", and_stop)
    retention.tick(LATER)
    assert len(store.files("spool")) == 4


def test_the_list_for_a_person_says_what_and_why(store: Store) -> None:
    store.done("1.2.3")
    planned = store.retention(inputs_days=30).plan(LATER)
    shown = text_of(removal_list(planned, dry_run=True))
    assert "inputs" in shown
    assert "DONE for more than [retention] inputs_days = 30" in shown
    assert "would be removed" in shown
    assert len(store.files("spool")) == 2
    assert text_of(removal_list([], dry_run=True)).strip() == "nothing is due"


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────


class Crash(BaseException):
    """The process ends here."""


def crash_before(store: Store, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """End at the step-th change of the disk or the ledger that a removal makes."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Crash
            return function(*args, **kwargs)

        return call

    for name in ("remove_inputs", "remove_results", "gone"):
        monkeypatch.setattr(store.ledger, name, counted(getattr(store.ledger, name)))
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr("dicomnode.reception.spool.sync_folder", counted(lambda folder: None))


# remove_inputs, 2 x unlink, rmdir, sync, gone; remove_results, 3 x unlink, 2 x rmdir, sync, gone.
LAST_STEP = 14


@pytest.mark.parametrize("step", range(LAST_STEP + 1))
def test_a_crash_at_any_step_leaves_nothing_that_the_next_start_does_not_finish(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    case = store.done("1.2.3")
    story = store.ledger.story(case.id)
    with monkeypatch.context() as patched:
        crash_before(store, patched, step)
        if step < LAST_STEP:
            with pytest.raises(Crash):
                store.retention(inputs_days=1, results_days=1).tick(LATER)
        else:
            store.retention(inputs_days=1, results_days=1).tick(LATER)
    (after,) = store.recovered()
    # Nothing came to life again: no object was taken for a new one.
    assert after.state is State.DONE
    assert store.ledger.story(case.id) == story
    assert store.ledger.removals() == []
    rows = store.ledger.instances(case.id)
    assert store.files("spool") == [row.path for row in rows]
    assert len(rows) == (2 if step == 0 else 0)
    run = store.ledger.latest_run(case.id)
    assert run is not None
    assert len(store.files("results")) == (3 if run.removed_at is None else 0)


def test_a_file_that_was_given_up_and_came_again_elsewhere_survives_the_next_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = store.done("1.2.3")
    with monkeypatch.context() as patched:
        patched.setattr(store.spool, "remove", lambda paths: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            store.retention(inputs_days=1).tick(LATER)
    # Another receiver on the same folder has it again, under the same name.
    path = store.receive("1.2.3", 1, LATER + 5)
    store.recovered()
    assert store.files("spool") == [store.spool.relative(path)]
    assert [i.path for i in store.ledger.instances(case.id)] == [store.spool.relative(path)]


def test_a_file_that_the_disk_does_not_let_go_of_is_removed_by_a_later_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.done("1.2.3")
    retention = store.retention(inputs_days=1)
    with monkeypatch.context() as patched:
        patched.setattr(store.spool, "remove", lambda paths: (_ for _ in ()).throw(OSError("I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            retention.tick(LATER)
    assert len(store.ledger.removals()) == 2
    retention.tick(LATER)
    assert len(store.ledger.removals()) == 2, "not at every tick"
    store.monotonic.now += 60
    retention.tick(LATER)
    assert store.files("spool") == []
    assert store.ledger.removals() == []


def test_an_object_that_is_acknowledged_before_its_old_file_went_is_kept_and_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = store.done("1.2.3")
    intake = Intake(store.spool, store.ledger)
    retention = Retention(
        Settings(inputs_days=1), store.ledger, store.spool, store.monotonic, flush=intake.flush
    )
    with monkeypatch.context() as patched:
        patched.setattr(store.spool, "remove", lambda paths: (_ for _ in ()).throw(OSError("I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            retention.tick(LATER)
    here = store.spool.find("1.2.3", "1.2.3.1.1")
    assert here is not None, "a sender is told that it is here"
    intake.again("1.2.3.1.1", here)
    store.monotonic.now += 60
    retention.tick(LATER)
    assert [i.sop_instance_uid for i in store.ledger.instances(case.id)] == ["1.2.3.1.1"]
    assert store.files("spool") == [store.spool.relative(here)]
    assert store.ledger.case(case.id).state is State.COLLECTING


def test_an_object_that_another_node_has_stored_in_the_place_of_an_old_one_is_not_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are still on their way when this node takes the work over."""
    store.done("1.2.3")
    with monkeypatch.context() as patched:
        patched.setattr(store.spool, "remove", lambda paths: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            store.retention(inputs_days=1).tick(LATER)
    path = store.data_dir / "spool" / "1.2.3" / "1.2.3.1.1.dcm"
    os.utime(path, (LATER + 1, LATER + 1))
    Retention(Settings(), store.ledger, store.spool).recover(LATER + 2)
    assert store.files("spool") == [store.spool.relative(path)]
    assert store.ledger.removals() == []


def test_what_was_removed_takes_no_memory(store: Store) -> None:
    store.done("1.2.3")
    store.retention(inputs_days=1).tick(LATER)
    assert store.spool._study_of == {}


# ── what comes again ─────────────────────────────────────────────────────────────────────────────


def test_an_object_that_comes_again_after_its_removal_is_a_new_one(store: Store) -> None:
    store.done("1.2.3")
    assert store.spool.find("1.2.3", "1.2.3.1.1") is not None
    store.retention(inputs_days=1).tick(LATER)
    assert store.spool.find("1.2.3", "1.2.3.1.1") is None
    store.receive("1.2.3", 1, LATER)
    assert store.spool.find("1.2.3", "1.2.3.1.1") is not None
    assert store.ledger.case(1).state is State.COLLECTING


def test_an_object_that_comes_again_during_its_removal_waits_and_is_a_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.done("1.2.3")
    asked, found = threading.Event(), []
    remove = store.spool.remove

    def receiver() -> None:
        asked.set()
        with store.spool.claim("1.2.3.1.1"):
            found.append(store.spool.find("1.2.3", "1.2.3.1.1"))

    thread = threading.Thread(target=receiver)

    def meanwhile(paths: list[str]) -> None:
        thread.start()
        assert asked.wait(10)
        remove(paths)

    monkeypatch.setattr(store.spool, "remove", meanwhile)
    store.retention(inputs_days=1).tick(LATER)
    thread.join(10)
    assert found == [None]


def test_an_empty_folder_that_goes_under_an_object_on_its_way_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.done("1.2.3")
    make, calls = store.spool._make_folder, []

    def then_removed(folder: Path) -> None:
        make(folder)
        calls.append(folder)
        if len(calls) == 1:
            store.retention(inputs_days=1).tick(LATER)

    monkeypatch.setattr(store.spool, "_make_folder", then_removed)
    path = store.receive("1.2.3", 3, LATER)
    assert path.exists()
    assert len(calls) == 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return small_study.write(tmp_path_factory.mktemp("study"))


def push(store: Store, files: list[Path], at: float) -> None:
    """As the receiving side does, without a network."""
    batch = []
    for file in files:
        meta = pydicom.filereader.read_file_meta_info(file)
        content = file.read_bytes()
        start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
        data = memoryview(content)[start:]
        origin = Origin(
            str(meta.MediaStorageSOPClassUID),
            str(meta.MediaStorageSOPInstanceUID),
            str(meta.TransferSyntaxUID),
            "CAMERA",
        )
        header = inspect(data, origin.transfer_syntax_uid)
        path, size = store.spool.store(header.study_instance_uid, origin, data)
        batch.append(instance_of(header, origin, store.spool.relative(path), size, at))
    store.ledger.add_instances(batch, at)


def delivered_study(store: Store, study: StudyFiles) -> tuple[Case, Assembler]:
    """A real study, assembled, computed, delivered; and its inputs removed."""
    assembler = Assembler(Assemble(quiet_s=60, max_wait_s=3600), (), store.ledger, store.data_dir)
    push(store, study.all, START)
    assembler.tick(START + 60)
    case = store.ledger.case(1)
    assert case.state is State.READY
    attempt = store.ledger.begin(1, Event.CLAIM, "compute", START)
    dose = NewResult("1.2.3.4.5", "1.2.840.10008.5.1.4.1.1.481.2", "1.9", "1.2", "RTDOSE", "dvk", "x.dcm", 1)
    store.ledger.register(attempt, run_of(case.inputs_sha256), [dose], ("PACS",), START)
    store.deliver(store.ledger.case(1), START)
    store.retention(inputs_days=1).tick(LATER)
    assert store.files("spool") == []
    return store.ledger.case(1), assembler


def test_a_late_object_never_makes_a_result_from_a_part_of_the_study(store: Store, study: StudyFiles) -> None:
    case, assembler = delivered_study(store, study)
    push(store, study.ct, LATER)
    assembler.tick(LATER + 60)
    assert store.ledger.case(case.id).state is State.COLLECTING
    assembler.tick(LATER + 3600)
    held = store.ledger.case(case.id)
    assert held.state is State.HELD
    missing = len(study.all) - len(study.ct)
    assert f"{missing} of the {len(study.all)} objects that retention removed on 20" in held.reason
    assert "Send the whole study again" in held.remedy


def test_the_whole_study_sent_again_is_what_was_delivered(store: Store, study: StudyFiles) -> None:
    case, assembler = delivered_study(store, study)
    push(store, study.all, LATER)
    assembler.tick(LATER + 60)
    again = store.ledger.case(case.id)
    assert again.state is State.DONE
    assert "those of the delivered results" in again.reason


def test_a_late_object_that_no_result_is_made_from_changes_nothing(store: Store, study: StudyFiles) -> None:
    case, assembler = delivered_study(store, study)
    text = instance(case.study_instance_uid, 9, LATER, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.11")
    store.ledger.add_instances([text], LATER)
    assembler.tick(LATER + 60)
    after = store.ledger.case(case.id)
    assert after.state is State.DONE
    assert "nothing that a result is made from has come" in after.reason


def test_a_series_that_will_not_come_again_is_set_aside_by_a_person(store: Store, study: StudyFiles) -> None:
    case, assembler = delivered_study(store, study)
    rest = [file for file in study.all if file != study.rtstruct]
    push(store, rest, LATER)
    assembler.tick(LATER + 3660)
    assert store.ledger.case(case.id).state is State.HELD
    (structures,) = [s for s in store.ledger.removed_series(case.id) if s.modality == "RTSTRUCT"]
    assert store.ledger.discard(case.id, structures.series_instance_uid, LATER + 3700) == 1
    store.ledger.apply(case.id, Event.RETRY, LATER + 3700)
    assembler.tick(LATER + 7300)
    assert store.ledger.case(case.id).state is State.READY


def test_a_series_that_was_discarded_stays_discarded_when_it_comes_again(store: Store) -> None:
    case = store.done("1.2.3")
    store.ledger.discard(case.id, "1.2.3.1", START)
    store.retention(inputs_days=1).tick(LATER)
    store.receive("1.2.3", 1, LATER)
    assert store.ledger.instances(case.id) == []
