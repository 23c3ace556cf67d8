"""What the database refuses keeps nothing else out of the ledger; a database that is away refuses nothing."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin
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


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url, busy_timeout_s=0.3)
    change(url, REFUSING)
    yield opened
    opened.close()


def change(url: str, statements: dict[str, str]) -> None:
    """Carry out a dialect's statement behind the ledger's back."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text(statements[engine.dialect.name]))
    engine.dispose()


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
    assert held.reason == (
        "the database did not take 2 objects that were received: "
        "1.2.3.1.2, spool/1.2.3/1.2.3.1.2.dcm; 1.2.3.1.3, spool/1.2.3/1.2.3.1.3.dcm"
    )
    ledger.apply(case_id, Event.RETRY, NOW + 100, conflict="")
    caplog.clear()
    again = Intake(spool, ledger)
    assert again.recover(NOW + 200) == set()
    assert len(errors(caplog)) == 2, "each is tried once at a start"
    assert (ledger.case(case_id).conflict, ledger.case(case_id).state) == ("", State.COLLECTING)
    receive(spool, again, 4, "HOSTILE")
    again.flush(NOW + 300)
    assert "1.2.3.1.4" in ledger.case(case_id).conflict, "of a new one nobody has decided"


def test_what_a_person_decided_of_one_object_holds_for_no_other(ledger: Ledger, spool: Spool) -> None:
    """The second was acknowledged, and the node killed before the ledger heard of it."""
    intake = Intake(spool, ledger)
    receive(spool, intake, 11, "HOSTILE")
    receive(spool, intake, 2)
    (case_id,) = intake.flush(NOW)
    ledger.apply(case_id, Event.RETRY, NOW + 1, conflict="")
    receive(spool, intake, 1, "HOSTILE")
    Intake(spool, ledger).recover(NOW + 2)
    conflict = "the database did not take an object that was received: 1.2.3.1.1, spool/1.2.3/1.2.3.1.1.dcm"
    assert ledger.case(case_id).conflict == conflict
    ledger.apply(case_id, Event.RETRY, NOW + 3, conflict="")
    Intake(spool, ledger).recover(NOW + 4)
    assert ledger.case(case_id).conflict == "", "of both somebody has decided"


def test_objects_that_are_refused_one_after_the_other_are_all_named(ledger: Ledger, spool: Spool) -> None:
    intake = Intake(spool, ledger)
    for number in (1, 2, 3):
        receive(spool, intake, number, "HOSTILE")
        intake.flush(NOW + number)
    (case,) = ledger.cases()
    assert [f"1.2.3.1.{n}, spool/" in case.conflict for n in (1, 2, 3)] == [True, True, True]


def test_many_refused_objects_are_counted_in_the_reason_and_named_in_the_story(
    ledger: Ledger, spool: Spool
) -> None:
    intake = Intake(spool, ledger)
    for number in range(120):
        receive(spool, intake, number, "HOSTILE")
    intake.flush(NOW)
    (case,) = ledger.cases()
    assert case.conflict.startswith("the database did not take 120 objects that were received: 1.2.3.1.0, ")
    assert case.conflict.endswith("; and 115 more, which `dicomnode show` names")
    told = ledger.told_lacking(STUDY, "the database did not take")
    assert {f"1.2.3.1.{n}" for n in range(120)} <= told
    ledger.apply(case.id, Event.RETRY, NOW + 1, conflict="")
    Intake(spool, ledger).recover(NOW + 2)
    assert ledger.case(case.id).conflict == ""


def test_reasons_to_hold_a_case_stand_together_and_do_not_grow_for_ever(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([instance(number=1)], NOW)
    assert ledger.conflict(STUDY, "two patients", NOW)
    ledger.lacks(STUDY, "the database did not take", {"1.2.3.1.2": "spool/2.dcm"}, NOW + 1)
    assert ledger.conflict(STUDY, "two patients", NOW + 2)
    assert ledger.case(case_id).conflict == (
        "two patients; the database did not take an object that was received: 1.2.3.1.2, spool/2.dcm"
    )
    for number in range(100):
        assert ledger.conflict(STUDY, f"reason {number} {'x' * 100}", NOW + 3 + number)
    assert ledger.case(case_id).conflict.startswith("two patients; ")
    assert ledger.case(case_id).conflict.endswith("x; and more")
    assert len(ledger.case(case_id).conflict) < 2300


def test_a_study_of_which_every_object_is_refused_has_a_case_that_is_held(
    ledger: Ledger, spool: Spool
) -> None:
    """A single SPECT of many frames."""
    intake = Intake(spool, ledger)
    receive(spool, intake, 1, "HOSTILE")
    assert intake.flush(NOW) == set()
    (case,) = ledger.cases()
    assert case.study_instance_uid == STUDY
    assert case.identity.patient_id == "", "nothing of the object that the database does not take"
    config = parse({})
    assembler = Assembler(config.assemble, (), ledger, spool.data_dir)
    assembler.tick(NOW + config.assemble.quiet_s + 1)
    held = ledger.case(case.id)
    assert held.state is State.HELD
    assert held.reason.endswith(f"received: {STUDY}.1.1, spool/{STUDY}/{STUDY}.1.1.dcm")
    receive(spool, intake, 2)
    assert intake.flush(NOW + 100) == {case.id}
    assert f"{STUDY}.1.1" in ledger.case(case.id).conflict
    ledger.apply(case.id, Event.RETRY, NOW + 101, conflict="")
    Intake(spool, ledger).recover(NOW + 102)
    assert ledger.case(case.id).conflict == ""


NO_MORE = {"sqlite": "DROP TRIGGER no_case", "postgresql": "ALTER TABLE cases DROP CONSTRAINT no_case"}


def test_a_study_whose_case_the_database_refuses_is_told_of_until_it_is_held(
    ledger: Ledger, spool: Spool, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(
        url,
        {
            "sqlite": "CREATE TRIGGER no_case BEFORE INSERT ON cases BEGIN SELECT RAISE(ABORT, 'none'); END",
            "postgresql": "ALTER TABLE cases ADD CONSTRAINT no_case CHECK (id < 0)",
        },
    )
    intake = Intake(spool, ledger)
    receive(spool, intake, 1)
    intake.flush(NOW)
    intake.flush(NOW + 1)
    object_line, case_line = errors(caplog)
    assert "is held" not in object_line
    assert f"study {STUDY}, and its case could not be opened" in case_line
    assert f"where they are, spool/{STUDY}/{STUDY}.1.1.dcm" in case_line
    assert "told again in 60 s" in case_line
    assert ledger.cases() == []
    for at in (61, 62, 63):
        intake.flush(NOW + at)
    assert len(errors(caplog)) == 3
    assert "told again in 120 s" in errors(caplog)[-1]
    change(url, NO_MORE)
    intake.flush(NOW + 170)
    assert ledger.cases() == [], "it has its time"
    intake.flush(NOW + 182)
    (case,) = ledger.cases()
    assert case.conflict.startswith(f"the database did not take an object that was received: {STUDY}.1.1, ")
    intake.flush(NOW + 1e6)
    assert len(errors(caplog)) == 3
    assert [t.at for t in ledger.story(case.id)] == [NOW + 182] * 2, "told once"


def test_a_study_whose_rows_in_the_index_are_refused_is_held(ledger: Ledger, spool: Spool, url: str) -> None:
    change(
        url,
        {
            "sqlite": "CREATE TRIGGER no_study BEFORE INSERT ON held_studies "
            "BEGIN SELECT RAISE(ABORT, 'none'); END",
            "postgresql": "ALTER TABLE held_studies ADD CONSTRAINT no_study CHECK (id < 0)",
        },
    )
    intake = Intake(spool, ledger)
    receive(spool, intake, 1)
    intake.flush(NOW)
    (case,) = ledger.cases()
    assert f"{STUDY}.1.1, spool/" in case.conflict


def test_a_file_that_cannot_be_read_keeps_no_other_out_and_its_case_is_held(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sector of the disk; what was acknowledged and lost from memory must not be left out unnoticed."""
    lost = Intake(spool, ledger)
    paths = [receive(spool, lost, number) for number in (1, 2, 3)]
    read = Path.read_bytes

    def damaged(self: Path) -> bytes:
        if self == paths[1]:
            raise OSError(errno.EIO, "Input/output error")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", damaged)
        intake = Intake(spool, ledger)
        (case_id,) = intake.recover(NOW)
        assert registered(ledger) == ["1", "3"]
        (line,) = errors(caplog)
        assert line.startswith(f"spool/{STUDY}/{STUDY}.1.2.dcm cannot be read: Input/output error")
        conflict = ledger.case(case_id).conflict
        assert conflict.startswith(f"the disk did not give back an object that was received: {STUDY}.1.2, ")
        ledger.apply(case_id, Event.RETRY, NOW + 1, conflict="")
        intake.again(f"{STUDY}.1.2", paths[1])
        receive(spool, intake, 4)
        intake.flush(NOW + 2)
        assert registered(ledger) == ["1", "3", "4"]
        assert ledger.case(case_id).conflict == "", "of this one a person has decided"
    assert all(path.exists() for path in paths)
    Intake(spool, ledger).recover(NOW + 3)
    assert registered(ledger) == ["1", "2", "3", "4"]


def test_a_file_whose_meta_information_is_damaged_keeps_no_other_out(ledger: Ledger, spool: Spool) -> None:
    lost = Intake(spool, ledger)
    path = receive(spool, lost, 1)
    receive(spool, lost, 2)
    content = bytearray(path.read_bytes())
    content[144:200] = bytes(56)
    path.write_bytes(content)
    Intake(spool, ledger).recover(NOW)
    assert registered(ledger) == ["2"]


def test_a_broken_file_that_cannot_be_moved_keeps_no_other_out(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Intake(spool, ledger)
    receive(spool, lost, 1).write_bytes(b"broken")
    receive(spool, lost, 2)

    def read_only(_self: Spool, _path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Spool, "discard", read_only)
    Intake(spool, ledger).recover(NOW)
    assert registered(ledger) == ["2"]
    assert "Read-only file system" in errors(caplog)[-1]


def test_a_contradiction_that_is_refused_keeps_no_other_out(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_instances(
        [instance(number=1), instance(number=1, study_instance_uid="9.9", sop_instance_uid="9")], NOW
    )
    intake = Intake(spool, ledger)
    intake.note(replace(note(1, "patient DOE-4711 too"), conflict_study_uid=STUDY))
    intake.note(replace(note(2, "another patient"), conflict_study_uid="9.9"))
    told: Callable[..., bool] = Ledger.conflict

    def conflict(self: Ledger, study: str, reason: str, now: float) -> bool:
        if study == STUDY:
            raise RowRefused("not this")
        return told(self, study, reason, now)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "conflict", conflict)
        intake.flush(NOW)
        intake.flush(NOW + 1)
    assert sorted(case.conflict for case in ledger.cases()) == [
        "",
        "another patient; set aside as quarantine/2.dcm",
    ]
    assert len(ledger.quarantined(STUDY)) == 2
    (line,) = errors(caplog)
    assert "its case is not held: not this. It is told again in 60 s" in line
    assert "DOE-4711" not in line
    intake.flush(NOW + 61)
    assert "patient DOE-4711 too; set aside as quarantine/1.dcm" in {c.conflict for c in ledger.cases()}
    assert len(errors(caplog)) == 1


def test_what_the_database_takes_at_last_is_registered_at_the_next_start(
    ledger: Ledger, spool: Spool, url: str
) -> None:
    intake = Intake(spool, ledger)
    receive(spool, intake, 1, "HOSTILE")
    receive(spool, intake, 2)
    intake.flush(NOW)
    undo = {"sqlite": "DROP TRIGGER hostile", "postgresql": "ALTER TABLE instances DROP CONSTRAINT hostile"}
    change(url, undo)
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


def test_a_note_that_cannot_be_read_is_named_once_and_keeps_nothing_out(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quarantine is for people to look into: what they, or a bad disk, leave there must not stop the node."""
    texts = {
        "1": note(1).to_json(),
        "2": "",
        "3": "[]",
        "4": note(4).to_json().replace('"status": 49152', '"status": "0xC000"'),
        "5": note(5).to_json()[:-30],
        "6": note(6).to_json(),
        "7": note(7).to_json(),
        "8": "[" * 100_000,
    }
    for number, content in texts.items():
        (spool.data_dir / "quarantine" / f"{number}.json").write_text(content)
    (spool.data_dir / "quarantine" / "7.json").write_bytes(b"\xff\xfe")
    read = Path.read_text

    def damaged(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if self.name == "6.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(self, encoding, errors)

    monkeypatch.setattr(Path, "read_text", damaged)
    intake = Intake(spool, ledger)
    receive(spool, Intake(spool, ledger), 1)
    intake.recover(NOW)
    intake.adopt(["other"], NOW + 1)
    assert registered(ledger) == ["1"]
    assert [q.path for q in ledger.quarantined(STUDY)] == ["quarantine/1.dcm"]
    lines = errors(caplog)
    assert [line.split(",")[0] for line in lines] == [f"quarantine/{n}.json" for n in (2, 3, 4, 5, 6, 7, 8)]
    assert "which says why 6.dcm beside it was refused, cannot be read: Input/output error. " in lines[4]
    assert "'status' is missing, or not of its kind" in lines[2]


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
