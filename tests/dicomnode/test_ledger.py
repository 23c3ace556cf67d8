"""The ledger: what is recorded, what follows from it, and what it does when the database fails."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from dicomnode.errors import ConfigurationError, IllegalTransition, LedgerUnavailable, NodeError
from dicomnode.ledger import Ledger
from dicomnode.ledger.schema import METADATA
from dicomnode.records import Attempt, Case, Identity, Instance, NewResult, Quarantined, Run
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import instance, run_of

STUDY = "1.2.3"


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.sqlite3'}"


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(url_of(tmp_path))
    yield opened
    opened.close()


def received(ledger: Ledger, *instances: Instance, now: float = 0.0) -> Case:
    (case_id,) = ledger.add_instances(instances or [instance()], now)
    return ledger.case(case_id)


def ready(ledger: Ledger, case: Case, now: float, inputs: str = "inputs") -> Case:
    done = ledger.assembled(ledger.case(case.id), now, "{}", inputs, Identity("PAT-0001", "H"), "complete")
    assert done is not None
    return done


def result(uid: str) -> NewResult:
    return NewResult(uid, "1.2.840.10008.5.1.4.1.1.481.2", "1.9", "1.2", "RTDOSE", "dvk", f"{uid}.dcm", 1)


def computed(
    ledger: Ledger,
    case: Case,
    now: float,
    uid: str,
    peers: tuple[str, ...] = ("PACS",),
    inputs: str = "inputs",
) -> Run:
    ready(ledger, case, now, inputs)
    attempt = ledger.begin(case.id, Event.CLAIM, "compute", now)
    run = ledger.register(attempt, run_of(inputs), [result(uid)], peers, now)
    assert run is not None
    return run


def accept_all(ledger: Ledger, run: Run, now: float) -> None:
    for _result, delivery in ledger.deliveries(run.id):
        ledger.answered(delivery, now, status=0, detail="", delivered=True)


def sent(ledger: Ledger, run: Run, now: float) -> Case:
    attempt = ledger.begin(run.case_id, Event.SEND, "deliver", now)
    accept_all(ledger, run, now)
    return ledger.delivered(attempt, run, now)


def events(ledger: Ledger, case: Case) -> list[tuple[Event, State]]:
    return [(t.event, t.to_state) for t in ledger.story(case.id)]


# ── the database ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def declared(url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database of the same kind with the tables of the code."""
    sqlite = url.startswith("sqlite")
    other = "sqlite://" if sqlite else request.getfixturevalue("postgres_server").new_database()
    engine = create_engine(other.replace("postgresql:", "postgresql+psycopg:"))
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


def test_the_migrations_lead_to_exactly_the_tables_of_the_code(
    ledger: Ledger, url: str, declared: Engine
) -> None:
    migrated = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with migrated.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    # Alembic's own comparison leaves out defaults, foreign keys' names and primary keys.
    ours, theirs = inspect(declared), inspect(migrated)
    for table in METADATA.tables:
        for of in ("columns", "indexes", "foreign_keys", "unique_constraints", "pk_constraint"):
            assert repr(getattr(ours, f"get_{of}")(table)) == repr(getattr(theirs, f"get_{of}")(table))
    migrated.dispose()


def test_opening_again_keeps_everything(ledger: Ledger, url: str) -> None:
    case = received(ledger)
    again = Ledger.open(url)
    assert again.case(case.id) == case
    again.close()


def test_the_folder_is_made_and_a_percent_sign_or_a_space_in_it_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "100 % new" / "deep"
    opened = Ledger.open(url_of(folder))
    opened.close()
    assert (folder / "ledger.sqlite3").exists()


def test_decisions_are_written_at_full_and_batches_at_normal(sqlite_ledger: Ledger) -> None:
    """FULL is 2 and NORMAL is 1, sqlite.org/pragma.html#pragma_synchronous."""
    ledger, levels = sqlite_ledger, {}
    for name, transaction in (("decide", ledger._decide), ("batch", ledger._batch)):
        with transaction() as connection:
            levels[name] = connection.execute(text("PRAGMA synchronous")).scalar_one()
            assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    assert levels == {"decide": 2, "batch": 1}


@pytest.mark.parametrize(
    "wrong", ["nonsense", "nosuchdatabase://x", "mysql+nosuchdriver://x", "oracle://me:secret@here/x"]
)
def test_a_wrong_url_names_the_setting(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="database_url") as told:
        Ledger.open(wrong)
    assert "secret" not in str(told.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LedgerUnavailable, match=r"file/sub cannot be made"):
        Ledger.open(url_of(tmp_path / "file" / "sub"))


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerUnavailable, match="damaged"):
        Ledger.open(url_of(tmp_path))


def test_a_database_of_a_newer_version_is_not_touched(ledger: Ledger, url: str) -> None:
    with ledger._decide() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="version of the software"):
        Ledger.open(url)


def test_a_locked_database_is_unavailable_after_the_busy_timeout(
    sqlite_ledger: Ledger, tmp_path: Path
) -> None:
    received(sqlite_ledger)
    impatient = Ledger.open(url_of(tmp_path), busy_timeout_s=0.05)
    holder = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        impatient.add_instances([instance(number=2)], 1.0)
    assert len(impatient.cases()) == 1, "readers do not wait for a writer"
    holder.execute("ROLLBACK")
    holder.close()
    assert impatient.add_instances([instance(number=2)], 1.0) == {1}
    impatient.close()


def test_a_database_whose_folder_is_gone_is_unavailable(tmp_path: Path) -> None:
    """Also for connections that are open: SQLite itself would write on to the deleted file."""
    ledger = Ledger.open(url_of(tmp_path / "data"))
    received(ledger)
    shutil.rmtree(tmp_path / "data")
    for use in (ledger.cases, lambda: ledger.add_instances([instance(number=2)], 1.0)):
        with pytest.raises(LedgerUnavailable, match="unable to open"):
            use()
    ledger.close()


def test_a_transaction_that_fails_leaves_nothing_behind(ledger: Ledger) -> None:
    case = received(ledger)
    before = ledger.story(case.id)
    with pytest.raises(IllegalTransition):
        ledger.begin(case.id, Event.CLAIM, "compute", 1.0)
    assert ledger.story(case.id) == before
    assert ledger.attempts(case.id) == []


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


def test_the_first_object_opens_a_case_with_its_identity(ledger: Ledger) -> None:
    case = received(ledger, now=5.0)
    assert case.state is State.COLLECTING
    assert case.study_instance_uid == STUDY
    assert case.identity == Identity("PAT-0001", "HOSPITAL", "ACC-7")
    assert events(ledger, case) == [(Event.INSTANCE, State.COLLECTING)]
    assert ledger.story(case.id)[0].from_state is None


def test_a_batch_of_two_studies_touches_two_cases(ledger: Ledger) -> None:
    assert len(ledger.add_instances([instance("1.2.3"), instance("1.2.4")], 0.0)) == 2
    assert len(ledger.cases()) == 2


def test_objects_come_back_as_they_were_given_in_the_order_of_arrival(ledger: Ledger) -> None:
    given = [instance(number=n, at=10.0 - n) for n in range(3)]
    case = received(ledger, *given)
    assert ledger.instances(case.id) == given[::-1]
    assert ledger.instance(given[0].sop_instance_uid) == given[0]
    assert ledger.instance("9.9") is None


def test_an_object_that_is_known_changes_nothing(ledger: Ledger) -> None:
    case = received(ledger)
    assert ledger.add_instances([instance(at=9.0, patient_id="OTHER")], 9.0) == set()
    assert ledger.case(case.id) == case
    assert ledger.instances(case.id) == [instance()]


def test_the_same_object_twice_in_a_batch_is_one(ledger: Ledger) -> None:
    case = received(ledger, instance(), instance())
    assert len(ledger.instances(case.id)) == 1


def test_an_empty_batch_is_nothing(ledger: Ledger) -> None:
    assert ledger.add_instances([], 0.0) == set()


def test_missing_from_finds_what_the_spool_has_and_the_ledger_lost(ledger: Ledger) -> None:
    """More than one chunk of parameters is asked for."""
    received(ledger, *[instance(number=n) for n in range(700)])
    asked = [f"{STUDY}.1.{n}" for n in range(1200)]
    assert ledger.missing_from(asked) == set(asked[700:])


def test_many_batches_of_a_collecting_case_are_one_row_of_its_story(ledger: Ledger) -> None:
    case = received(ledger)
    for n in range(2, 6):
        ledger.add_instances([instance(number=n)], float(n))
    assert events(ledger, case) == [(Event.INSTANCE, State.COLLECTING)]


def test_a_discarded_series_is_known_but_not_used(ledger: Ledger) -> None:
    other = instance(number=2, series_instance_uid="1.2.3.77")
    case = received(ledger, instance(), other)
    assert ledger.discard(case.id, "1.2.3.77", 5.0) == 1
    assert ledger.instances(case.id) == [instance()]
    assert ledger.instance(other.sop_instance_uid) == other
    assert ledger.missing_from([other.sop_instance_uid]) == set()


def test_quarantine_is_remembered_by_study(ledger: Ledger) -> None:
    item = Quarantined("1.1", STUDY, "CAMERA", "truncated", "pixel data cut short", 0xC000, "q/1.dcm", 3.0)
    ledger.quarantine(item)
    assert ledger.quarantined(STUDY) == [item]
    assert ledger.quarantined("9.9") == []


def test_a_contradiction_stands_in_the_case_or_asks_to_be_told_again(ledger: Ledger) -> None:
    assert ledger.conflict(STUDY, "two Patient IDs", 1.0) is False
    case = received(ledger)
    assert ledger.conflict(STUDY, "two Patient IDs", 2.0) is True
    assert ledger.case(case.id).conflict == "two Patient IDs"


def test_our_own_results_are_recognised(ledger: Ledger) -> None:
    computed(ledger, received(ledger), 1.0, "1.5")
    assert ledger.is_result("1.5")
    assert not ledger.is_result("1.6")


# ── cases ────────────────────────────────────────────────────────────────────────────────────────


def test_a_case_is_found_by_number_uid_or_the_end_of_its_uid(ledger: Ledger) -> None:
    case = received(ledger, instance("1.2.345"))
    received(ledger, instance("1.9.345"))
    assert ledger.find_case("1") == ledger.find_case("1.2.345") == ledger.find_case("2.345") == case
    with pytest.raises(ConfigurationError, match="more than one case matches"):
        ledger.find_case(".345")
    with pytest.raises(ConfigurationError, match="no case matches '%'"):
        ledger.find_case("%")
    with pytest.raises(ConfigurationError, match="there is no case 99"):
        ledger.case(99)


def test_cases_are_listed_by_state_oldest_first(ledger: Ledger) -> None:
    first, second = received(ledger), received(ledger, instance("1.2.4"))
    ledger.apply(second.id, Event.REJECT, 1.0, reason="no CT")
    assert [c.id for c in ledger.cases()] == [first.id, second.id]
    assert [c.id for c in ledger.cases(State.HELD, State.FAILED)] == [second.id]


def test_the_story_tells_every_transition_with_time_reason_and_remedy(ledger: Ledger) -> None:
    case = received(ledger)
    ledger.apply(case.id, Event.REJECT, 1.0, reason="no CT", remedy="push it")
    ledger.apply(case.id, Event.RETRY, 2.0, reason="a person")
    run = computed(ledger, case, 3.0, "1.5")
    sent(ledger, run, 4.0)
    story = ledger.story(case.id)
    assert [(t.at, t.from_state, t.event, t.to_state) for t in story[1:]] == [
        (1.0, State.COLLECTING, Event.REJECT, State.HELD),
        (2.0, State.HELD, Event.RETRY, State.COLLECTING),
        (3.0, State.COLLECTING, Event.COMPLETE, State.READY),
        (3.0, State.READY, Event.CLAIM, State.COMPUTING),
        (3.0, State.COMPUTING, Event.ENCODE, State.ENCODED),
        (4.0, State.ENCODED, Event.SEND, State.SENDING),
        (4.0, State.SENDING, Event.DELIVER, State.DONE),
    ]
    assert (story[1].reason, story[1].remedy) == ("no CT", "push it")


def test_reason_and_remedy_of_a_case_last_as_long_as_its_state(ledger: Ledger) -> None:
    case = received(ledger)
    held = ledger.apply(case.id, Event.REJECT, 1.0, reason="no CT", remedy="push it")
    assert (held.reason, held.remedy) == ("no CT", "push it")
    taken_up = ledger.apply(case.id, Event.RETRY, 2.0)
    assert (taken_up.reason, taken_up.remedy) == ("", "")


def test_a_person_who_was_told_is_told_anew_when_the_case_is_held_again(ledger: Ledger) -> None:
    case = received(ledger)
    ledger.apply(case.id, Event.REJECT, 1.0, reason="no CT")
    ledger.notified(case.id, 2.0)
    assert ledger.case(case.id).notified_at == 2.0
    ledger.add_instances([instance(number=2)], 3.0)
    assert ledger.apply(case.id, Event.REJECT, 4.0, reason="no CT").notified_at is None


def test_an_assembly_is_void_when_an_object_arrived_meanwhile(ledger: Ledger) -> None:
    case = received(ledger, now=1.0)
    # Received before the newest of the first batch, registered after it.
    ledger.add_instances([instance(number=2, at=-5.0)], 2.0)
    assert ledger.assembled(case, 3.0, "{}", "inputs", Identity(), "complete") is None
    assert ledger.case(case.id).state is State.COLLECTING


def test_an_assembly_keeps_inputs_and_identity(ledger: Ledger) -> None:
    case = received(ledger)
    identity = Identity("PAT-0001", "HOSPITAL", "ACC-7", "Lu-177", 7.4e9, 1.7e9)
    done = ledger.assembled(case, 3.0, '{"ct": []}', "digest", identity, "complete")
    assert done is not None
    assert (done.inputs_json, done.inputs_sha256, done.identity) == ('{"ct": []}', "digest", identity)


@pytest.mark.parametrize(("inputs", "state"), [("inputs", State.DONE), ("others", State.READY)])
def test_inputs_that_were_delivered_already_are_not_computed_again(
    ledger: Ledger, inputs: str, state: State
) -> None:
    case = received(ledger)
    sent(ledger, computed(ledger, case, 1.0, "1.5"), 2.0)
    ledger.add_instances([instance(number=2)], 3.0)
    assert ready(ledger, case, 4.0, inputs).state is state


def test_a_person_who_begins_again_gets_the_same_inputs_computed_again(ledger: Ledger) -> None:
    case = received(ledger)
    sent(ledger, computed(ledger, case, 1.0, "1.5"), 2.0)
    ledger.apply(case.id, Event.RETRY, 3.0, inputs_sha256="")
    assert ready(ledger, case, 4.0).state is State.READY


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────


def claimed(ledger: Ledger, case: Case, now: float = 1.0) -> Attempt:
    ready(ledger, case, now)
    return ledger.begin(case.id, Event.CLAIM, "compute", now)


def test_an_attempt_that_fails_is_closed_with_what_follows(ledger: Ledger) -> None:
    case = received(ledger)
    attempt = claimed(ledger, case)
    after = ledger.end(
        attempt, Event.STUMBLE, 2.0, outcome="failed", reason="no memory", attempts=1, next_attempt_at=60.0
    )
    assert after is not None
    assert (after.state, after.attempts, after.next_attempt_at) == (State.READY, 1, 60.0)
    assert ledger.attempts(case.id) == [
        Attempt(attempt.id, case.id, "compute", 1.0, 2.0, "failed", "no memory")
    ]


def test_an_attempt_is_closed_once(ledger: Ledger) -> None:
    attempt = claimed(ledger, received(ledger))
    assert ledger.end(attempt, Event.STUMBLE, 2.0, outcome="failed") is not None
    assert ledger.end(attempt, Event.GIVE_UP, 3.0, outcome="failed") is None
    assert ledger.case(attempt.case_id).state is State.READY


def test_a_late_object_stops_the_computation_whose_results_then_count_for_nothing(ledger: Ledger) -> None:
    case = received(ledger)
    attempt = claimed(ledger, case)
    ledger.add_instances([instance(number=2)], 2.0)
    assert ledger.case(case.id).state is State.COLLECTING
    stopped = ledger.attempts(case.id)[0]
    assert (stopped.outcome, stopped.ended_at) == ("stopped", 2.0)
    assert ledger.register(attempt, run_of(), [result("1.5")], ["PACS"], 3.0) is None
    assert ledger.runs(case.id) == []
    assert not ledger.is_result("1.5")


def test_a_further_attempt_leaves_the_state_as_it_is(ledger: Ledger) -> None:
    run = computed(ledger, received(ledger), 1.0, "1.5")
    first = ledger.begin(run.case_id, Event.SEND, "deliver", 2.0)
    ledger.end(first, Event.STUMBLE, 3.0, outcome="failed", reason="down", attempts=1, next_attempt_at=9.0)
    before = len(ledger.story(run.case_id))
    ledger.begin(run.case_id, None, "deliver", 9.0)
    assert len(ledger.story(run.case_id)) == before
    assert ledger.case(run.case_id).state is State.SENDING


def test_an_attempt_whose_end_could_not_be_written_is_closed_by_the_next(ledger: Ledger) -> None:
    """A disk that is full lets nothing be written, also not that sending broke off for it."""
    run = computed(ledger, received(ledger), 1.0, "1.5")
    other = computed(ledger, received(ledger, instance("1.2.4")), 1.0, "1.6")
    first = ledger.begin(run.case_id, Event.SEND, "deliver", 2.0)
    ledger.begin(other.case_id, Event.SEND, "deliver", 2.0)
    second = ledger.begin(run.case_id, None, "deliver", 9.0)
    closed, open_ = ledger.attempts(run.case_id)[-2:]
    assert (closed.id, closed.outcome, closed.ended_at) == (first.id, "interrupted", 9.0)
    assert "the ledger did not answer" in closed.detail
    assert (open_.id, open_.outcome) == (second.id, "running")
    assert ledger.attempts(other.case_id)[-1].outcome == "running"
    assert ledger.end(first, Event.STUMBLE, 10.0, outcome="failed") is None


def test_a_start_queues_what_the_last_run_left_computing_and_sending(ledger: Ledger) -> None:
    computing = received(ledger)
    claimed(ledger, computing)
    sending = computed(ledger, received(ledger, instance("1.2.4")), 1.0, "1.5")
    ledger.begin(sending.case_id, Event.SEND, "deliver", 2.0)
    assert [c.id for c in ledger.recover(9.0)] == [computing.id]
    assert ledger.case(computing.id).state is State.READY
    assert ledger.case(computing.id).attempts == 0
    assert ledger.case(sending.case_id).state is State.SENDING
    for case_id in (computing.id, sending.case_id):
        assert ledger.attempts(case_id)[-1].outcome == "interrupted"
    assert ledger.recover(10.0) == []


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_registered_with_its_provenance_its_results_and_who_gets_them(ledger: Ledger) -> None:
    case = received(ledger)
    run = computed(ledger, case, 1.0, "1.5", peers=("A", "B", "A"))
    assert run.new == run_of()
    assert [(r.new, d.peer, d.delivered_at) for r, d in ledger.deliveries(run.id)] == [
        (result("1.5"), "A", None),
        (result("1.5"), "B", None),
    ]
    assert ledger.latest_run(case.id) == run
    assert ledger.case(case.id).state is State.ENCODED


def test_a_late_object_withdraws_results_of_which_nothing_was_sent(ledger: Ledger) -> None:
    case = received(ledger)
    computed(ledger, case, 1.0, "1.5")
    ledger.add_instances([instance(number=2)], 2.0)
    assert ledger.case(case.id).state is State.COLLECTING
    assert ledger.latest_run(case.id) is None
    assert ledger.predecessor(case.id) is None
    assert computed(ledger, case, 3.0, "1.6", inputs="more").predecessor_id is None


def test_an_object_that_arrives_while_results_are_sent_makes_them_outdated(ledger: Ledger) -> None:
    case = received(ledger)
    run = computed(ledger, case, 1.0, "1.5")
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 2.0)
    ledger.add_instances([instance(number=2, at=1.5)], 3.0)
    accept_all(ledger, run, 4.0)
    assert ledger.delivered(attempt, run, 4.0).state is State.COLLECTING
    assert events(ledger, case)[-1] == (Event.DELIVER_OUTDATED, State.COLLECTING)
    assert computed(ledger, case, 5.0, "1.6", inputs="more").predecessor_id == run.id


def test_a_clock_that_is_set_back_hides_no_object_that_arrives_while_results_are_sent(ledger: Ledger) -> None:
    case = received(ledger)
    run = computed(ledger, case, 1000.0, "1.5")
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 1001.0)
    ledger.add_instances([instance(number=2, at=500.0)], 500.0)
    assert events(ledger, case)[-1] == (Event.INSTANCE, State.SENDING)
    accept_all(ledger, run, 501.0)
    assert ledger.delivered(attempt, run, 502.0).state is State.COLLECTING


def test_a_remedy_names_commands_that_can_be_typed_as_they_stand(ledger: Ledger) -> None:
    case = received(ledger)
    remedy = "`dicomnode show` tells: `dicomnode discard` one, then `dicomnode retry`, or `dicomnode retry 7`"
    held = ledger.apply(case.id, Event.REJECT, 1.0, reason="r", remedy=remedy)
    assert held.remedy == (
        f"`dicomnode show {case.id}` tells: `dicomnode discard {case.id} --series UID` one, "
        f"then `dicomnode retry {case.id}`, or `dicomnode retry 7`"
    )
    assert ledger.story(case.id)[-1].remedy == held.remedy


def test_the_predecessor_is_the_newest_run_that_may_have_left_the_node(ledger: Ledger) -> None:
    case = received(ledger)
    first = computed(ledger, case, 1.0, "1.5")
    sent(ledger, first, 2.0)
    ledger.add_instances([instance(number=2)], 3.0)
    computed(ledger, case, 4.0, "1.6", inputs="second")
    ledger.add_instances([instance(number=3)], 5.0)
    assert computed(ledger, case, 6.0, "1.7", inputs="third").predecessor_id == first.id


@pytest.mark.parametrize("left", [True, False])
def test_a_result_that_no_byte_of_left_the_node_is_nobodys_predecessor(ledger: Ledger, left: bool) -> None:
    case = received(ledger)
    run = computed(ledger, case, 1.0, "1.5")
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 2.0)
    ((_result, delivery),) = ledger.deliveries(run.id)
    ledger.answered(delivery, 2.0, status=None, detail="x", delivered=False, refused=True, sent=left)
    ledger.end(attempt, Event.GIVE_UP, 3.0, outcome="failed", reason="refused")
    ((_result, delivery),) = ledger.deliveries(run.id)
    assert (delivery.tries, delivery.refusals) == (int(left), 1)
    assert ledger.predecessor(case.id) == (run if left else None)


def test_a_case_is_not_done_while_a_delivery_is_open(ledger: Ledger) -> None:
    run = computed(ledger, received(ledger), 1.0, "1.5")
    attempt = ledger.begin(run.case_id, Event.SEND, "deliver", 2.0)
    accept_all(ledger, run, 3.0)
    ledger.resend(run.case_id, 3.5, ["PACS"])
    assert ledger.delivered(attempt, run, 4.0).state is State.SENDING
    assert ledger.attempts(run.case_id)[-1].outcome == "ok"


def test_resend_opens_the_deliveries_to_the_peers_of_now(ledger: Ledger) -> None:
    run = computed(ledger, received(ledger), 1.0, "1.5", peers=("A", "GONE"))
    attempt = ledger.begin(run.case_id, Event.SEND, "deliver", 2.0)
    ledger.answered(ledger.deliveries(run.id)[0][1], 2.0, status=0, detail="", delivered=True)
    ledger.end(attempt, Event.GIVE_UP, 3.0, outcome="failed", reason="GONE is gone")
    assert ledger.resend(run.case_id, 4.0, ["A", "NEW"]).state is State.SENDING
    assert [(d.peer, d.delivered_at) for _r, d in ledger.deliveries(run.id)] == [("A", None), ("NEW", None)]


def test_resend_without_results_says_what_to_do(ledger: Ledger) -> None:
    with pytest.raises(NodeError, match="no results to send"):
        ledger.resend(received(ledger).id, 1.0, ["PACS"])


# ── several writers ──────────────────────────────────────────────────────────────────────────────


def write_many(url: str, series: int) -> None:
    ledger = Ledger.open(url)
    for n in range(20):
        ledger.add_instances([instance(number=100 * series + n)], float(n))
    ledger.close()


def test_threads_and_processes_write_at_the_same_time_and_lose_nothing(ledger: Ledger, url: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        *(threading.Thread(target=write_many, args=(url, n)) for n in (1, 2)),
        *(context.Process(target=write_many, args=(url, n)) for n in (3, 4)),
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    (case,) = ledger.cases()
    assert len(ledger.instances(case.id)) == 80


def test_of_two_that_claim_a_case_one_gets_it(ledger: Ledger) -> None:
    case = received(ledger)
    ready(ledger, case, 1.0)
    outcomes: list[str] = []
    gate = threading.Barrier(2)

    def claim() -> None:
        gate.wait(10)
        try:
            ledger.begin(case.id, Event.CLAIM, "compute", 2.0)
            outcomes.append("claimed")
        except IllegalTransition:
            outcomes.append("refused")

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == ["claimed", "refused"]
    assert len(ledger.attempts(case.id)) == 1
