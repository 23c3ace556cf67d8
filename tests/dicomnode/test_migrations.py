"""A ledger of the first version with cases in it, taken up by this one. Everything stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic import command, op
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, MetaData, create_engine, insert, inspect, select

from dicomnode.attributes import Level, Question
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.ledger.database import MIGRATIONS
from dicomnode.records import Inputs
from dicomnode.states import Event, State

CT = "1.2.840.10008.5.1.4.1.1.2"
RTDOSE = "1.2.840.10008.5.1.4.1.1.481.2"
EXPLICIT = "1.2.840.10008.1.2.1"
INPUTS = '{"ct": ["spool/1.2.1/1.2.1.1.dcm"], "spect": ["spool/1.2.1/1.2.1.2.dcm"], "rois": [], '
INPUTS += '"registrations": [], "dose_reports": [], "notes": []}'
# The tables of the first version: a case in each state, and what it wrote of them.
ROWS: dict[str, list[dict[str, Any]]] = {
    "cases": [
        {
            "id": number,
            "study_instance_uid": f"1.2.{number}",
            "state": state,
            "created_at": 10.0,
            "updated_at": 20.0,
            "last_instance_at": 11.0,
            "inputs_json": INPUTS,
            "inputs_sha256": "digest",
            "patient_id": f"PAT-{number}",
        }
        for number, state in enumerate(
            ("COLLECTING", "READY", "COMPUTING", "ENCODED", "SENDING", "DONE", "HELD", "FAILED"), 1
        )
    ],
    "instances": [
        {
            "sop_instance_uid": f"1.2.{case}.{number}",
            "case_id": case,
            "sop_class_uid": CT,
            "study_instance_uid": f"1.2.{case}",
            "series_instance_uid": f"1.2.{case}.0",
            "modality": "CT",
            "transfer_syntax_uid": EXPLICIT,
            "patient_id": f"PAT-{case}",
            "path": f"spool/1.2.{case}/1.2.{case}.{number}.dcm",
            "size_bytes": 5,
            "received_at": 11.0,
        }
        for case in range(1, 9)
        for number in (1, 2)
    ],
    "quarantine": [
        {"defect": "cut_short", "study_instance_uid": "1.2.7", "status": 0xC000, "received_at": 9.0}
    ],
    "transitions": [
        {"case_id": case, "at": at, "to_state": state, "event": event}
        for at, state, event, cases in (
            (11.0, "COLLECTING", "INSTANCE", range(1, 9)),
            (13.0, "ENCODED", "ENCODE", (4, 5, 6)),
            (14.0, "SENDING", "SEND", (5, 6)),
        )
        for case in cases
    ],
    "attempts": [{"case_id": 3, "stage": "compute", "started_at": 12.0, "outcome": "running"}],
    "runs": [
        {"id": case, "case_id": case, "created_at": 13.0, "inputs_sha256": "digest", "delivered_at": at}
        for case, at in ((4, None), (5, None), (6, 15.0))
    ],
    "results": [
        {
            "id": case,
            "run_id": case,
            "sop_instance_uid": f"2.25.{case}",
            "sop_class_uid": RTDOSE,
            "series_instance_uid": f"2.25.{case}0",
            "transfer_syntax_uid": EXPLICIT,
            "kind": "RTDOSE",
            "path": f"results/{case}/1/RTDOSE.dcm",
            "size_bytes": 6,
        }
        for case in (4, 5, 6)
    ],
    "deliveries": [
        {"id": 4, "result_id": 4, "peer": "PACS", "delivered_at": None, "tries": 0},
        {"id": 5, "result_id": 5, "peer": "PACS", "delivered_at": None, "tries": 2},
        {"id": 6, "result_id": 6, "peer": "PACS", "delivered_at": 15.0, "tries": 1},
    ],
}  # fmt: skip


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    yield engine
    engine.dispose()


@contextmanager
def migrating(engine: Engine, to: Callable[..., None], revision: str) -> Iterator[Connection]:
    """A connection on which the migrations have led to `revision`."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        to(config, revision)
        connection.commit()
        yield connection


@pytest.fixture
def before(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """The tables of the first version, filled. returns: every row of them."""
    with migrating(engine, command.upgrade, "0001") as connection:
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in ROWS.items():
            connection.execute(insert(tables.tables[name]), rows)
        connection.commit()
    return rows_of(engine)


def rows_of(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(select(found.tables[name])).all()]
            for name in ROWS
        }


def test_everything_of_the_first_version_is_there_after_the_upgrade(
    url: str, engine: Engine, before: dict[str, list[dict[str, Any]]]
) -> None:
    Ledger.open(url).close()
    for name, rows in rows_of(engine).items():
        assert [
            {key: row[key] for key in old} for row, old in zip(rows, before[name], strict=True)
        ] == before[name]


@pytest.mark.usefixtures("before")
def test_its_cases_go_on_from_where_they_stood(url: str) -> None:
    ledger = Ledger.open(url)
    assert [case.id for case in ledger.recover(100.0)] == [3]
    assert [case.state for case in ledger.cases()] == [
        State.COLLECTING, State.READY, State.READY, State.ENCODED, State.SENDING, State.DONE, State.HELD,
        State.FAILED,
    ]  # fmt: skip
    assert Inputs.from_json(ledger.case(2).inputs_json).ct == ("spool/1.2.1/1.2.1.1.dcm",)
    assert [case.id for case in ledger.to_deliver(["PACS"])] == [4, 5]
    # Nothing of a case that was DONE is asked about again, though its PACS now commits.
    assert ledger.uncommitted("PACS") == []
    run = ledger.latest_run(5)
    assert run is not None
    attempt = ledger.begin(5, None, "deliver", 101.0)
    for _, delivery in ledger.deliveries(run.id):
        ledger.answered(delivery, 101.0, status=0, detail="", delivered=True)
    assert ledger.delivered(attempt, run, 102.0).state is State.DONE
    assert ledger.apply(6, Event.RETRY, 103.0).state is State.COLLECTING
    # The index knows none of them yet: they are read in the background.
    assert [unread.known for unread in ledger.unread_instances("", 100)] == [False] * 16
    assert len(ledger.unread_results(100)) == 3
    ledger.close()


def test_what_a_destination_may_have_is_known_after_the_upgrade(url: str, engine: Engine) -> None:
    """Delivered; untold; refused each time; refused since a person had it sent again; never sent."""
    rows: list[tuple[float | None, int | None, int, int]] = [
        (15.0, 0, 1, 0), (None, None, 2, 0), (None, 0xA900, 2, 2), (None, 0xA900, 2, 1), (None, None, 0, 3)
    ]  # fmt: skip
    with migrating(engine, command.upgrade, "0004") as connection:
        tables = MetaData()
        tables.reflect(connection)
        for name in ("cases", "runs", "results"):
            connection.execute(insert(tables.tables[name]), [row for row in ROWS[name] if row["id"] == 4])
        for number, (at, status, tries, refusals) in enumerate(rows):
            connection.execute(
                insert(tables.tables["deliveries"]).values(
                    result_id=4, peer=f"{number}", delivered_at=at, status=status, tries=tries,
                    refusals=refusals,
                )
            )  # fmt: skip
        connection.commit()
    ledger = Ledger.open(url)
    named = ledger.to_reject(4, [f"{number}" for number in range(len(rows))])
    assert [rejection.peers for rejection in named] == [("0", "1", "3")]
    ledger.close()


@pytest.mark.usefixtures("before")
def test_an_upgrade_that_is_interrupted_begins_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = op.create_table

    def broken(name: str, *columns: Any, **options: Any) -> Any:
        if name == "held_studies":
            raise LedgerUnavailable("the disk is full")
        return create(name, *columns, **options)

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_table", broken)
        with pytest.raises(LedgerUnavailable, match="full"):
            Ledger.open(url)
    ledger = Ledger.open(url)
    assert len(ledger.cases()) == 8
    ledger.close()


def test_the_way_back_keeps_what_the_first_version_knew(
    url: str, engine: Engine, before: dict[str, list[dict[str, Any]]]
) -> None:
    Ledger.open(url).close()
    with migrating(engine, command.downgrade, "0001"):
        pass
    assert rows_of(engine) == before
    assert set(inspect(engine).get_table_names()) == {*ROWS, "alembic_version"}


HELD: dict[str, dict[str, Any]] = {
    "held_studies": {"id": 1, "study_instance_uid": "1.2.1", "patient_id": "PAT-1"},
    "held_series": {"id": 1, "study_id": 1, "series_instance_uid": "1.2.1.0", "modality": "CT"},
    "held_instances": {"id": 1, "series_id": 1, "sop_instance_uid": "1.2.1.1", "sop_class_uid": CT},
    "held_classes": {"series_id": 1, "sop_class_uid": CT, "instances": 1},
}


def held_rows(engine: Engine) -> list[Any]:
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        return [connection.execute(select(found.tables[name])).mappings().all() for name in HELD]


@pytest.mark.usefixtures("before")
def test_an_index_without_sequences_keeps_answering_and_is_read_again(url: str, engine: Engine) -> None:
    with migrating(engine, command.upgrade, "0002") as connection:
        tables = MetaData()
        tables.reflect(connection)
        for name, row in HELD.items():
            connection.execute(insert(tables.tables[name]), row)
        connection.commit()
    before = held_rows(engine)
    ledger = Ledger.open(url)
    assert [unread.path for unread in ledger.outdated_series(False, 0, 9)] == ["spool/1.2.1/1.2.1.1.dcm"]
    assert len(ledger.find(Question(Level.IMAGE), 9)) == 1
    described = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.0", "SOPInstanceUID": "1.2.1.1"}
    told = {"OtherPatientIDsSequence": '[{"PatientID": "A"}]', "PatientName": "Doe^Jane"}
    ledger.index_again(1, described | told, is_result=False)
    assert ledger.outdated_series(False, 0, 9) == []
    (study,) = ledger.attributes(Level.STUDY, ledger.find(Question(Level.STUDY), 9))
    assert (study["patient_id"], study["patient_name"]) == ("PAT-1", "Doe^Jane")
    ledger.close()
    with migrating(engine, command.downgrade, "0002"):
        pass
    (after,), *others = held_rows(engine)
    assert others == before[1:]
    assert after["study_instance_uid"] == "1.2.1"
