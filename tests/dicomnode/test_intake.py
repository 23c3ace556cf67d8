"""What the database refuses keeps nothing else out of the ledger; a database that is away refuses nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import create_engine, text

from dicomnode.assemble import Assembler
from dicomnode.config import parse
from dicomnode.errors import LedgerUnavailable, RowRefused
from dicomnode.ledger import Ledger
from dicomnode.reception.header import inspect
from dicomnode.reception.intake import Intake, instance_of
from dicomnode.reception.spool import Note, Origin, Spool
from dicomnode.records import Instance, Quarantined
from dicomnode.states import Event, State
from tests.dicomnode.modality import NOW, ct_slice, encoded
from tests.dicomnode.results_on_disk import instance
from tests.postgres import PostgresServer

STUDY = "1.2.3"
_SYNTAX = str(ExplicitVRLittleEndian)
# What a driver or a database would refuse one day, a constraint refuses in this test.
REFUSING = {
    "sqlite": "CREATE TRIGGER hostile BEFORE INSERT ON instances WHEN NEW.patient_id = 'HOSTILE' "
    "BEGIN SELECT RAISE(ABORT, 'not this'); END",
    "postgresql": "ALTER TABLE instances ADD CONSTRAINT hostile CHECK (patient_id <> 'HOSTILE')",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url, busy_timeout_s=0.3)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text(REFUSING[engine.dialect.name]))
    engine.dispose()
    yield opened
    opened.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, 0)
    yield opened
    opened.close()


def receive(spool: Spool, intake: Intake, number: int, patient_id: str = "PAT-0001") -> Path:
    """An object is stored and acknowledged. returns: its file."""
    dataset = ct_slice(StudyInstanceUID=STUDY, SOPInstanceUID=f"{STUDY}.1.{number}", PatientID=patient_id)
    data = memoryview(encoded(dataset))
    origin = Origin(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), _SYNTAX, "SCANNER")
    path, size = spool.store(STUDY, origin, data)
    intake.add(
        instance_of(inspect(data, origin.transfer_syntax_uid), origin, spool.relative(path), size, NOW)
    )
    return path


def registered(ledger: Ledger) -> list[str]:
    (case,) = ledger.cases()
    return sorted(i.sop_instance_uid.rpartition(".")[2] for i in ledger.instances(case.id))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_one_object_that_the_database_refuses_keeps_no_other_out(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(spool, ledger)
    paths = [receive(spool, intake, n, "HOSTILE" if n in (3, 7) else "PAT-0001") for n in range(1, 9)]
    assert len(intake.flush(NOW)) == 1
    assert registered(ledger) == ["1", "2", "4", "5", "6", "8"]
    first, second = errors(caplog)
    assert first.startswith(f"{STUDY}.1.3 from SCANNER is set aside: the ledger does not take a value")
    assert f"spool/{STUDY}/{STUDY}.1.3.dcm" in first
    assert f"{STUDY}.1.7" in second
    assert "HOSTILE" not in caplog.text, "an identifier may be a patient's"
    assert all(path.exists() for path in paths), "what was acknowledged stays"
    tried: list[int] = []
    monkeypatch.setattr(Ledger, "add_instances", lambda _self, batch, _now: tried.append(len(batch)) or set())
    intake.flush(NOW + 1)
    assert tried == [0], "it is not tried at every tick"


def test_a_case_whose_object_was_refused_is_held_once(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """No dose is computed from the rest unnoticed; a person who has decided is not asked at every start."""
    intake = Intake(spool, ledger)
    for number in (1, 2, 3):
        receive(spool, intake, number, "HOSTILE" if number > 1 else "PAT-0001")
    (case_id,) = intake.flush(NOW)
    config = parse({})
    assembler = Assembler(config.assemble, (), ledger, spool.data_dir)
    assembler.tick(NOW + config.assemble.quiet_s + 1)
    held = ledger.case(case_id)
    assert held.state is State.HELD
    assert held.reason.startswith("the database did not take an object that was received: 1.2.3.1.2, spool/")
    ledger.apply(case_id, Event.RETRY, NOW + 100, conflict="")
    caplog.clear()
    again = Intake(spool, ledger)
    assert again.recover(NOW + 200) == set()
    assert len(errors(caplog)) == 2, "each is tried once at a start"
    assert (ledger.case(case_id).conflict, ledger.case(case_id).state) == ("", State.COLLECTING)
    receive(spool, again, 4, "HOSTILE")
    again.flush(NOW + 300)
    assert "1.2.3.1.4" in ledger.case(case_id).conflict, "of a new one nobody has decided"


def test_a_study_of_which_nothing_else_came_is_held_when_something_does(ledger: Ledger, spool: Spool) -> None:
    intake = Intake(spool, ledger)
    receive(spool, intake, 1, "HOSTILE")
    assert intake.flush(NOW) == set()
    assert ledger.cases() == []
    receive(spool, intake, 2)
    (case_id,) = intake.flush(NOW + 1)
    assert f"{STUDY}.1.1" in ledger.case(case_id).conflict


def test_what_the_database_takes_at_last_is_registered_at_the_next_start(
    ledger: Ledger, spool: Spool, url: str
) -> None:
    intake = Intake(spool, ledger)
    receive(spool, intake, 1, "HOSTILE")
    receive(spool, intake, 2)
    intake.flush(NOW)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    undo = {"sqlite": "DROP TRIGGER hostile", "postgresql": "ALTER TABLE instances DROP CONSTRAINT hostile"}
    with engine.begin() as connection:
        connection.execute(text(undo[engine.dialect.name]))
    engine.dispose()
    assert len(Intake(spool, ledger).recover(NOW + 10)) == 1
    assert registered(ledger) == ["1", "2"]


def test_a_database_that_goes_away_meanwhile_sets_nothing_aside(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(spool, ledger)
    for number in range(1, 9):
        receive(spool, intake, number, "HOSTILE" if number == 3 else "PAT-0001")
    added: Callable[..., set[int]] = Ledger.add_instances
    calls: list[int] = []

    def once_in_a_while(self: Ledger, batch: Sequence[Instance], now: float) -> set[int]:
        calls.append(len(batch))
        if len(calls) % 2 == 0:
            raise LedgerUnavailable("locked")
        return added(self, batch, now)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add_instances", once_in_a_while)
        for _ in range(3):
            intake.flush(NOW)
    assert not any("is set aside" in line for line in errors(caplog))
    intake.flush(NOW)
    assert registered(ledger) == ["1", "2", "4", "5", "6", "7", "8"]
    assert sum("is set aside" in line for line in errors(caplog)) == 1


def test_a_locked_database_is_waited_for(
    ledger: Ledger, spool: Spool, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLITE_BUSY, or a lock of another node that is held beyond the timeout."""
    intake = Intake(spool, ledger)
    receive(spool, intake, 1)
    intake.flush(NOW)
    receive(spool, intake, 2)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SELECT * FROM cases FOR UPDATE")
        assert intake.flush(NOW + 1) == set()
        connection.rollback()
    engine.dispose()
    assert errors(caplog) == [], "whoever ticks says it, once"
    assert intake.kept_by is not None
    assert "locked" in intake.kept_by.reason or "lock timeout" in intake.kept_by.reason
    assert len(intake.flush(NOW + 2)) == 1
    assert registered(ledger) == ["1", "2"]


def note(number: int, reason: str = "") -> Note:
    return Note(
        "UNREADABLE", reason, 0xC000, "SCANNER", NOW, "", "", STUDY, "", "", f"quarantine/{number}.dcm"
    )


def test_a_note_that_is_refused_keeps_no_other_out(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(spool, ledger)
    for number in (1, 2, 3):
        intake.note(note(number))
    told: Callable[..., None] = Ledger.quarantine

    def quarantine(self: Ledger, item: Quarantined) -> None:
        if item.path == "quarantine/2.dcm":
            raise RowRefused("not this")
        told(self, item)

    monkeypatch.setattr(Ledger, "quarantine", quarantine)
    intake.flush(NOW)
    intake.flush(NOW)
    assert [q.path for q in ledger.quarantined(STUDY)] == ["quarantine/1.dcm", "quarantine/3.dcm"]
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize(
    "changes", [{"sop_class_uid": "1." * 40}, {"series_instance_uid": None}], ids=["too long", "null"]
)
def test_postgresql_says_what_it_refuses_without_the_values(
    postgres_server: PostgresServer, changes: dict[str, str]
) -> None:
    ledger = Ledger.open(postgres_server.new_database())
    with pytest.raises(RowRefused) as refused:
        ledger.add_instances([instance(patient_id="DOE-4711", **changes)], NOW)
    assert "DOE-4711" not in str(refused.value)
    ledger.close()


def test_an_index_that_takes_no_more_is_a_refusal(postgres_server: PostgresServer) -> None:
    """PostgreSQL's driver calls it an OperationalError, as it does a server that is away."""
    ledger = Ledger.open(postgres_server.new_database())
    endless = "".join(chr(0x20000 + number * 7919 % 40000) for number in range(5000))
    with pytest.raises(RowRefused, match="index row"):
        ledger.quarantine(Quarantined("", endless, "SCANNER", "UNREADABLE", "", 0xC000, "", NOW))
    ledger.close()


@pytest.mark.parametrize("text", ["A\ud800B", "\udcffPATIENT"])
def test_half_a_character_is_refused_by_sqlite_and_keeps_nothing_else_out(
    tmp_path: Path, spool: Spool, text: str
) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    intake = Intake(spool, ledger)
    intake.add(instance(number=1, patient_id=text))
    intake.add(instance(number=2))
    (case_id,) = intake.flush(NOW)
    assert [i.sop_instance_uid for i in ledger.instances(case_id)] == ["1.2.3.1.2"]
    ledger.close()
