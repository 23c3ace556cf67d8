"""The index: what enters it, what leaves it, that its counts are right, and that SQL uses it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from sqlalchemy import text

from dicomnode.attributes import INDEXED, UNIQUE_KEY, AnyOf, Condition, Level, Like, Question
from dicomnode.ledger import Ledger
from dicomnode.ledger.index import describe_instance
from dicomnode.ledger.search import matching
from dicomnode.query import indexer as indexer_module
from dicomnode.query.indexer import Indexer
from dicomnode.reception.header import inspect
from dicomnode.reception.intake import instance_of
from dicomnode.reception.spool import Spool
from dicomnode.reception.spool_file import Origin
from dicomnode.records import Case, Contents, Identity, NewResult
from dicomnode.states import Event, State
from tests.dicomnode.modality import NOW, ct_slice, encoded
from tests.dicomnode.querier import described
from tests.dicomnode.results_on_disk import run_of

CT, RTDOSE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.2"
STUDY = "1.2.3"


def ten_ticks(indexer: Indexer) -> None:
    """A second after the other."""
    for second in range(10):
        indexer.tick(NOW + second)


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


def entities(ledger: Ledger, level: Level, **conditions: str) -> list[dict[str, Any]]:
    """All entities of a level, as the index tells of them."""
    wanted = tuple(Condition(level, (column,), (AnyOf((value,)),)) for column, value in conditions.items())
    return ledger.attributes(level, ledger.find(Question(level, wanted), 500))


def instances(ledger: Ledger) -> list[str]:
    return [row["sop_instance_uid"] for row in entities(ledger, Level.IMAGE)]


def total(ledger: Ledger, level: Level) -> int:
    numbers = ledger.find(Question(level), 500)
    return sum(c.instances for held in ledger.contents(level, numbers).values() for c in held)


def result(uid: str, described: bool = True) -> NewResult:
    attributes = {
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{uid}.0",
        "SOPInstanceUID": uid,
        "SOPClassUID": RTDOSE,
        "Modality": "RTDOSE",
        "PatientID": "PAT-0001",
        "DoseUnits": "GY",
    }
    path = f"results/{uid}.dcm"
    fixed = (uid, RTDOSE, f"{uid}.0", ExplicitVRLittleEndian, "RTDOSE", "dvk", path, 9)
    return NewResult(*fixed, attributes if described else {})


def computed(ledger: Ledger, case_id: int, now: float, *results: NewResult) -> Case:
    """A case that collects comes to ENCODED with these results."""
    ledger.assembled(ledger.case(case_id), now, "{}", str(now), Identity("PAT-0001"), "complete")
    attempt = ledger.begin(case_id, Event.CLAIM, "compute", now)
    ledger.register(attempt, run_of(str(now)), results, ["PACS"], now)
    return ledger.case(case_id)


def sent(ledger: Ledger, case_id: int, now: float) -> Case:
    """Every result reaches its destination."""
    run = ledger.latest_run(case_id)
    assert run is not None
    attempt = ledger.begin(case_id, Event.SEND, "deliver", now)
    for _, delivery in ledger.deliveries(run.id):
        ledger.answered(delivery, now, status=0, detail="", delivered=True)
    return ledger.delivered(attempt, run, now)


# ── what enters ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_received_object_is_described_from_its_header(ledger: Ledger, syntax: str) -> None:
    dataset = ct_slice(
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
        StudyDate="20240102",
        StudyTime="1030",
        InstanceNumber="007",
        ImageType=["ORIGINAL", "PRIMARY"],
        SeriesDescription=" Lu-177 ",
    )
    header = inspect(memoryview(encoded(dataset, syntax)), syntax)
    origin = Origin(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax, "SCANNER")
    ledger.add_instances([instance_of(header, origin, "spool/x.dcm", 1, NOW)], NOW)
    (row,) = entities(ledger, Level.IMAGE)
    assert row["patient_name"] == "Müller^Jörg"
    assert (row["study_date"], row["study_time"]) == ("20240102", "1030")
    assert (row["instance_number"], row["rows"], row["columns"]) == (7, 4, 6)
    assert row["image_type"] == "ORIGINAL\\PRIMARY"
    assert row["series_description"] == "Lu-177"


def test_what_no_database_takes_does_no_harm(ledger: Ledger) -> None:
    odd = {
        "PatientName": "A\0B",
        "SeriesNumber": "99999999999",
        "StudyDate": "tomorrow",
        "StudyDescription": "x" * 5000,
        "Rows": "many",
    }
    ledger.add_instances([described(STUDY, 1, **odd)], NOW)
    (row,) = entities(ledger, Level.IMAGE)
    assert (row["patient_name"], row["series_number"], row["study_date"], row["rows"]) == (
        "AB",
        None,
        "",
        None,
    )
    assert len(row["study_description"]) == 256


def test_later_objects_fill_in_what_the_first_did_not_say(ledger: Ledger) -> None:
    ledger.add_instances([described(STUDY, 1, PatientName="Doe^J")], NOW)
    later = described(STUDY, 2, PatientName="Other^Name", StudyDescription="SPECT/CT", SeriesNumber="4")
    ledger.add_instances([later], NOW)
    (row,) = entities(ledger, Level.SERIES)
    assert (row["patient_name"], row["study_description"], row["series_number"]) == ("Doe^J", "SPECT/CT", 4)


def test_the_same_object_again_counts_once(ledger: Ledger) -> None:
    one = described(STUDY, 1)
    ledger.add_instances([one], NOW)
    ledger.add_instances([one, described(STUDY, 2)], NOW)
    assert total(ledger, Level.STUDY) == 2


def test_a_patient_is_what_the_newest_study_says(ledger: Ledger) -> None:
    ledger.add_instances([described("1.1", 1, PatientID="P", PatientName="Maiden^Name")], NOW)
    ledger.add_instances([described("1.2", 1, PatientID="P", PatientName="Married^Name")], NOW)
    ledger.add_instances(
        [described("1.3", 1, PatientID="P", IssuerOfPatientID="OTHER", PatientName="Else")], NOW
    )
    names = {row["patient_name"] for row in entities(ledger, Level.PATIENT)}
    assert names == {"Married^Name", "Else"}
    assert total(ledger, Level.PATIENT) == 3


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def test_results_are_found_before_inputs(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, 1), described(STUDY, 2)], NOW)
    computed(ledger, case_id, NOW, result("9.1"))
    assert instances(ledger) == ["9.1", f"{STUDY}.1.1", f"{STUDY}.1.2"]
    held = ledger.held(Question(Level.IMAGE), 10)
    assert held[0].path == "results/9.1.dcm"
    assert len(held) == 3


def test_results_that_new_input_withdraws_are_found_no_more(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, 1)], NOW)
    computed(ledger, case_id, NOW, result("9.1"))
    ledger.add_instances([described(STUDY, 2)], NOW + 1)
    assert "9.1" not in instances(ledger)
    assert total(ledger, Level.STUDY) == 2


def test_a_new_run_takes_the_place_of_the_old_one_until_it_is_withdrawn(
    ledger: Ledger,
) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, 1)], NOW)
    computed(ledger, case_id, NOW, result("9.1"))
    assert sent(ledger, case_id, NOW).state is State.DONE
    ledger.add_instances([described(STUDY, 2)], NOW + 1)
    assert "9.1" in instances(ledger)
    computed(ledger, case_id, NOW + 2, result("9.2"))
    assert "9.2" in instances(ledger)
    assert "9.1" not in instances(ledger)
    ledger.add_instances([described(STUDY, 3)], NOW + 3)
    assert "9.1" in instances(ledger)
    assert "9.2" not in instances(ledger)


def test_what_retention_removes_is_found_no_more(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, n) for n in (1, 2)], NOW)
    ledger.add_instances([described("7.7", 1)], NOW)
    computed(ledger, case_id, NOW, result("9.1"))
    sent(ledger, case_id, NOW)
    ledger.remove_inputs(case_id, State.DONE, NOW)
    assert instances(ledger) == ["9.1", "7.7.1.1"]
    ledger.remove_results(case_id, State.DONE, NOW)
    assert instances(ledger) == ["7.7.1.1"]
    assert [row["study_instance_uid"] for row in entities(ledger, Level.STUDY)] == ["7.7"]


# ── counts ───────────────────────────────────────────────────────────────────────────────────────


STEP = st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_counts_follow_what_is_held(
    steps: list[tuple[bool, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever comes and goes in whatever order."""
    ledger = Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('counts') / 'ledger.sqlite3'}")
    held: set[str] = set()
    for comes, study, series, number in steps:
        one = described(f"1.{study}", number, series=f"1.{study}.{series}", SOPClassUID=f"1.9.{number % 2}")
        if comes:
            ledger.add_instances([one], NOW)
            ledger.index_received([dict(described_of(one))])
            held.add(one.sop_instance_uid)
        else:
            ledger.remove_from_index([one.sop_instance_uid])
            held.discard(one.sop_instance_uid)
    assert set(instances(ledger)) == held
    for level in (Level.STUDY, Level.SERIES):
        assert total(ledger, level) == len(held)
    assert len(entities(ledger, Level.SERIES)) == len({uid.rpartition(".")[0] for uid in held})
    ledger.close()


def described_of(instance: Any) -> dict[str, str]:
    return dict(describe_instance(instance))


def test_contents_say_what_a_study_holds(ledger: Ledger) -> None:
    ledger.add_instances([described(STUDY, n, Modality="CT", SOPClassUID=CT) for n in (1, 2)], NOW)
    (number,) = ledger.find(Question(Level.STUDY), 9)
    (held,) = ledger.contents(Level.STUDY, [number])[number]
    assert (held.modality, held.sop_class_uid, held.instances) == ("CT", CT, 2)
    assert isinstance(held, Contents)


# ── what was here before ─────────────────────────────────────────────────────────────────────────


def emptied(ledger: Ledger) -> None:
    with ledger._decide() as connection:
        items = "held_requests", "held_other_patient_ids"
        for table in (*items, "held_classes", "held_instances", "held_series", "held_studies"):
            connection.execute(text(f"DELETE FROM {table}"))


def test_an_older_ledger_is_read_in_and_broken_files_are_passed_over(ledger: Ledger, tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    uids = [f"{STUDY}.1.{n}" for n in range(1, 6)]
    for uid in uids:
        series = f"{STUDY}.1"
        dataset = ct_slice(StudyInstanceUID=STUDY, SeriesInstanceUID=series, SOPInstanceUID=uid)
        data = memoryview(encoded(dataset))
        origin = Origin(dataset.SOPClassUID, uid, ExplicitVRLittleEndian, "SCANNER")
        path, size = spool.store(STUDY, origin, data)
        header = inspect(data, ExplicitVRLittleEndian)
        ledger.add_instances([instance_of(header, origin, spool.relative(path), size, NOW)], NOW)
    spool.close()
    emptied(ledger)
    (tmp_path / "spool" / STUDY / f"{uids[1]}.dcm").write_bytes(b"")
    (tmp_path / "spool" / STUDY / f"{uids[2]}.dcm").unlink()
    (tmp_path / "spool" / STUDY / f"{uids[3]}.dcm").write_bytes(b"broken" * 50)
    indexer = Indexer(ledger, tmp_path)
    indexer.tick(NOW)
    assert instances(ledger) == [uids[0], uids[4]]
    assert entities(ledger, Level.STUDY)[0]["patient_name"] == "Doe^Jane"
    indexer.tick(NOW)
    assert total(ledger, Level.STUDY) == 2


def test_many_objects_are_read_in_over_several_ticks(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_LOOK_AT", 3)
    monkeypatch.setattr(indexer_module, "_READ_AT_ONCE", 2)
    wanted = [described(STUDY, n) for n in range(1, 9)]
    sqlite_ledger.add_instances(wanted, NOW)
    emptied(sqlite_ledger)
    by_path = {tmp_path / i.path: described_of(i) for i in wanted}
    monkeypatch.setattr(indexer_module, "describe_file", lambda path, _syntax: by_path[path])
    indexer = Indexer(sqlite_ledger, tmp_path)
    for _ in range(5):
        indexer.tick(NOW)
    assert len(instances(sqlite_ledger)) == 8


def test_a_result_that_nobody_described_is_read_once(ledger: Ledger, tmp_path: Path) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, 1)], NOW)
    there, gone = result("9.1", described=False), result("9.2", described=False)
    computed(ledger, case_id, NOW, there, gone)
    assert len(ledger.unread_results(9)) == 2
    dataset = ct_slice(StudyInstanceUID=STUDY, SeriesInstanceUID="9.1.0", SOPInstanceUID="9.1")
    data = memoryview(encoded(dataset))
    spool = Spool(tmp_path, 0)
    path, _ = spool.store(STUDY, Origin(dataset.SOPClassUID, "9.1", ExplicitVRLittleEndian, "N"), data)
    spool.close()
    (tmp_path / "results").mkdir()
    path.rename(tmp_path / there.path)
    (tmp_path / gone.path).write_bytes(b"broken" * 50)
    Indexer(ledger, tmp_path).tick(NOW)
    assert ledger.unread_results(9) == []
    assert instances(ledger) == ["9.1", f"{STUDY}.1.1"]


def test_a_share_that_is_away_for_a_moment_costs_the_index_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (case_id,) = ledger.add_instances([described(STUDY, 1)], NOW)
    emptied(ledger)
    one = result("9.1", described=False)
    computed(ledger, case_id, NOW, one)
    for folder in ("spool", "results"):
        (tmp_path / folder).mkdir()
    looked: list[Path] = []
    files = {tmp_path / described(STUDY, 1).path: described_of(described(STUDY, 1))}
    files[tmp_path / one.path] = dict(result("9.1").attributes)

    def away(path: Path, _syntax: str) -> dict[str, str]:
        looked.append(path)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(indexer_module, "describe_file", away)
    indexer = Indexer(ledger, tmp_path)
    for seconds in range(59):
        indexer.tick(NOW + seconds)
    assert len(looked) == 2, "a pause lasts"
    assert len(caplog.records) == 2
    indexer.tick(NOW + 61)
    indexer.tick(NOW + 62)
    assert len(looked) == 4
    assert len(ledger.unread_results(9)) == 1, "nothing is stored"
    monkeypatch.setattr(indexer_module, "describe_file", lambda path, _syntax: files[path])
    indexer.tick(NOW + 61 + 121)
    assert ledger.unread_results(9) == []
    assert instances(ledger) == ["9.1", f"{STUDY}.1.1"]


class Disk:
    """Files that can be read or not, as a test says; it counts how often each is asked for."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch, files: list[Any]) -> None:
        for folder in ("spool", "results"):
            (data_dir / folder).mkdir(exist_ok=True)
        self.files = {data_dir / i.path: described_of(i) for i in files}
        self.failing: dict[Path, int] = {}
        self.looked: list[Path] = []
        monkeypatch.setattr(indexer_module, "describe_file", self.describe)

    def describe(self, path: Path, _syntax: str) -> dict[str, str]:
        self.looked.append(path)
        if path in self.failing:
            raise OSError(self.failing[path], "it fails")
        return self.files[path]


def unindexed(ledger: Ledger, *uids: str) -> list[Any]:
    """Received objects that came before there was an index. returns: in the order of their UIDs."""
    received = [described(STUDY, int(uid)) for uid in uids]
    ledger.add_instances(received, NOW)
    emptied(ledger)
    return received


def test_files_that_have_gone_are_passed_over_at_once(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a folder that is there; however many they are, the others wait for nothing."""
    monkeypatch.setattr(indexer_module, "_READ_AT_ONCE", 2)
    received = unindexed(sqlite_ledger, *"12345678")
    disk = Disk(tmp_path, monkeypatch, received)
    disk.failing = dict.fromkeys(list(disk.files)[:6], errno.ENOENT)
    indexer = Indexer(sqlite_ledger, tmp_path)
    ten_ticks(indexer)
    assert instances(sqlite_ledger) == [i.sop_instance_uid for i in received[6:]]
    assert len(disk.looked) == 8, "each once"
    assert len(caplog.records) == 6
    indexer.tick(NOW + 4000)
    assert len(disk.looked) == 8
    disk.failing.clear()
    again = Indexer(sqlite_ledger, tmp_path)
    ten_ticks(again)
    assert len(instances(sqlite_ledger)) == 8


def test_files_that_cannot_be_reached_keep_no_other_out(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some are tried again; what goes beyond the memory for them is counted and left to the next start."""
    monkeypatch.setattr(indexer_module, "_READ_AT_ONCE", 2)
    monkeypatch.setattr(indexer_module, "_MOST_MISSED", 2)
    received = unindexed(sqlite_ledger, *"12345678")
    disk = Disk(tmp_path, monkeypatch, received)
    broken = list(disk.files)[:5]
    disk.failing = dict.fromkeys(broken, errno.EIO)
    indexer = Indexer(sqlite_ledger, tmp_path)
    ten_ticks(indexer)
    assert instances(sqlite_ledger) == [i.sop_instance_uid for i in received[5:]]
    (line,) = [r.getMessage() for r in caplog.records if "more files" in r.getMessage()]
    assert line.startswith("3 more files")
    for hour in range(1, 50):
        indexer.tick(NOW + 3700.0 * hour)
    assert [disk.looked.count(path) for path in broken] == [9, 9, 1, 1, 1]
    disk.failing.clear()
    again = Indexer(sqlite_ledger, tmp_path)
    ten_ticks(again)
    assert len(instances(sqlite_ledger)) == 8


def test_a_folder_that_is_away_is_waited_for_and_keeps_the_other_kind_from_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    received = unindexed(ledger, *"1234")
    (case,) = ledger.cases()
    one = result("9.1", described=False)
    computed(ledger, case.id, NOW, one)
    disk = Disk(tmp_path, monkeypatch, received)
    disk.files[tmp_path / one.path] = dict(result("9.1").attributes)
    inputs = [tmp_path / i.path for i in received]
    disk.failing = dict.fromkeys(inputs, errno.ENOENT)
    (tmp_path / "spool").rename(tmp_path / "away")
    indexer = Indexer(ledger, tmp_path)
    for second in range(59):
        indexer.tick(NOW + second)
    assert instances(ledger) == ["9.1"]
    assert disk.looked.count(inputs[0]) == 1, "a pause lasts"
    assert [record.getMessage().startswith(f"{tmp_path / 'spool'} is away") for record in caplog.records] == [
        True
    ]
    for hour in range(1, 100):
        indexer.tick(NOW + 4000.0 * hour)
    assert len(caplog.records) == 1
    (tmp_path / "away").rename(tmp_path / "spool")
    disk.failing.clear()
    indexer.tick(NOW + 4000.0 * 100)
    assert len(instances(ledger)) == 5


REFUSING = {
    "sqlite": "CREATE TRIGGER hostile BEFORE INSERT ON held_instances "
    "WHEN NEW.sop_instance_uid IN ('1.2.3.1.3', '9.1') BEGIN SELECT RAISE(ABORT, 'not this'); END",
    "postgresql": "ALTER TABLE held_instances ADD CONSTRAINT hostile "
    "CHECK (sop_instance_uid NOT IN ('1.2.3.1.3', '9.1'))",
}


def test_an_object_that_the_database_refuses_keeps_no_other_out_of_the_index(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexer_module, "_READ_AT_ONCE", 4)
    received = unindexed(ledger, *"12345678")
    (case,) = ledger.cases()
    one, other = result("9.1", described=False), result("9.2", described=False)
    ledger.add_instances([described("7.7", 1)], NOW)
    (second_case,) = [c for c in ledger.cases() if c.id != case.id]
    computed(ledger, case.id, NOW, one)
    computed(ledger, second_case.id, NOW, other)
    disk = Disk(tmp_path, monkeypatch, received)
    for made in (one, other):
        disk.files[tmp_path / made.path] = dict(result(made.sop_instance_uid).attributes)
    with ledger._decide() as connection:
        connection.execute(text(REFUSING[connection.dialect.name]))
    indexer = Indexer(ledger, tmp_path)
    for second in range(5):
        indexer.tick(NOW + second)
    refused = {i.sop_instance_uid for i in received[2:3]}
    wanted = {"9.2", "7.7.1.1"} | {i.sop_instance_uid for i in received} - refused
    assert set(instances(ledger)) == wanted
    # psycopg, now and then, has a line of its own about the statement that was refused.
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("dicomnode")]
    assert sorted(line.partition(" ")[0] for line in ours) == ["1.2.3.1.3", "9.1"]
    assert len(disk.looked) == 10, "each once"


# ── how SQL finds it ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        (Condition(Level.PATIENT, ("patient_id",), (AnyOf(("P",)),)), "ix_held_studies_patient"),
        (Condition(Level.PATIENT, ("patient_name_alphabetic",), (AnyOf(("doe",)),)), "ix_held_studies_name"),
        (Condition(Level.STUDY, ("accession_number",), (AnyOf(("A",)),)), "ix_held_studies_accession"),
        (Condition(Level.STUDY, ("study_instance_uid",), (AnyOf(("1", "2")),)), "uq_held_studies_uid"),
    ],
)
def test_a_question_of_study_level_goes_by_an_index(
    sqlite_ledger: Ledger, condition: Condition, index: str
) -> None:
    told = plan(sqlite_ledger, Question(Level.STUDY, (condition,)))
    assert f"INDEX {index} (" in told
    assert "SCAN" not in told


def test_no_question_looks_at_every_instance(sqlite_ledger: Ledger) -> None:
    study = Condition(Level.STUDY, ("study_instance_uid",), (AnyOf(("1.2",)),))
    series = Condition(Level.SERIES, ("series_instance_uid",), (AnyOf(("1.2.1",)),))
    modality = Condition(Level.SERIES, ("modality",), (AnyOf(("NM",)),))
    sop_class = Condition(Level.IMAGE, ("sop_class_uid",), (AnyOf((CT,)),))
    name = Condition(Level.PATIENT, ("patient_name_alphabetic",), (Like("*e*"),))
    for question in (
        Question(Level.IMAGE, (study, series)),
        Question(Level.SERIES, (study, modality)),
        Question(Level.STUDY, (modality, sop_class, name)),
        Question(Level.PATIENT, (name,)),
    ):
        told = plan(sqlite_ledger, question)
        assert "SCAN held_instances" not in told
        assert question.level is Level.PATIENT or "SCAN held_series" not in told


def plan(ledger: Ledger, question: Question) -> str:
    """What SQLite says that it would do."""
    with ledger._read() as connection:
        compiled = matching(question).compile(connection, compile_kwargs={"literal_binds": True})
        rows = connection.execute(text(f"EXPLAIN QUERY PLAN {str(compiled).replace(':', chr(92) + ':')}"))
        return "\n".join(row[-1] for row in rows)


def test_every_attribute_has_its_columns_and_every_level_its_unique_key() -> None:
    columns = [column for attribute in INDEXED for column in attribute.columns]
    assert len(columns) == len(set(columns))
    assert all(UNIQUE_KEY[level].level is level for level in Level)
