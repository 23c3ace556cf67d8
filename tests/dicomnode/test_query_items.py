"""The items of sequences in the index: from an object's bytes into it, out of it, and how SQL finds them."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import text, update

from dicomnode.attributes import (
    EDITION,
    MAX_ITEMS,
    SEQUENCE_OF,
    SEQUENCES,
    InItem,
    Level,
    Question,
    items_of,
)
from dicomnode.ledger import Ledger
from dicomnode.ledger.schema import HELD_ITEMS, HELD_SERIES
from dicomnode.ledger.search import matching
from dicomnode.query.indexer import Indexer
from dicomnode.query.matching import conditions
from dicomnode.reception.header import describe, inspect
from dicomnode.reception.intake import instance_of
from dicomnode.reception.spool import Origin, Spool
from tests.dicomnode.modality import NOW, ct_slice, encoded
from tests.dicomnode.querier import held_slice, item, other, received, request

REQUESTS, OTHER_IDS = "RequestAttributesSequence", "OtherPatientIDsSequence"
STUDY, SERIES = "1.2.3", "1.2.3.1"
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def told(ledger: Ledger, keyword: str, level: Level = Level.SERIES) -> list[list[dict[str, Any]]]:
    """The items of every entity of a level, in its order."""
    numbers = ledger.find(Question(level), 500)
    found_items = ledger.items(SEQUENCE_OF[keyword], (), level, numbers)
    return [[{k: v for k, v in one.items() if k != "number"} for one in found_items[n]] for n in numbers]


def rows(ledger: Ledger) -> int:
    """How many items there are of whatever."""
    with ledger._read() as connection:
        counts = (connection.execute(text(f"SELECT COUNT(*) FROM {t.name}")) for t in HELD_ITEMS.values())
        return sum(count.scalar_one() for count in counts)


# ── what is read of an object ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_items_are_read_in_every_encoding(syntax: str, undefined: bool) -> None:
    dataset = ct_slice(
        SpecificCharacterSet="ISO_IR 100",
        RequestAttributesSequence=[
            request("S1", "R1", RequestedProcedureDescription="Nachsorge, März"),
            request(" S2 ", "", ScheduledProtocolCodeSequence=[item(CodeValue="1")]),
        ],
        OtherPatientIDsSequence=[other("X-1", "KLINIK", "TEXT")],
    )
    for keyword in (REQUESTS, OTHER_IDS):
        dataset[keyword].is_undefined_length = undefined
        for one in dataset[keyword].value:
            one.is_undefined_length_sequence_item = undefined
    data = memoryview(encoded(dataset, syntax))
    attributes = inspect(data, syntax).attributes
    assert items_of(attributes[REQUESTS]) == [
        {
            "ScheduledProcedureStepID": "S1",
            "RequestedProcedureID": "R1",
            "RequestedProcedureDescription": "Nachsorge, März",
        },
        {"ScheduledProcedureStepID": "S2"},
    ]
    assert items_of(attributes[OTHER_IDS]) == [
        {"PatientID": "X-1", "IssuerOfPatientID": "KLINIK", "TypeOfPatientID": "TEXT"}
    ]
    assert attributes["PatientID"] == "P1", "not that of an item"
    assert describe(data, syntax) == attributes


def test_an_item_may_have_a_character_set_of_its_own() -> None:
    own = item(PatientID="Ж7", SpecificCharacterSet="ISO_IR 144")
    dataset = ct_slice(SpecificCharacterSet="ISO_IR 100", OtherPatientIDsSequence=[own, other("Ü8")])
    found_items = items_of(
        inspect(memoryview(encoded(dataset)), ExplicitVRLittleEndian).attributes[OTHER_IDS]
    )
    assert [one["PatientID"] for one in found_items] == ["Ж7", "Ü8"]


def test_the_retired_attribute_is_items_without_issuer() -> None:
    """An ID that stands in both is told once, with its issuer."""
    dataset = ct_slice(OtherPatientIDs=["A", "B", "B"], OtherPatientIDsSequence=[other("B", "KLINIK")])
    found_items = items_of(
        inspect(memoryview(encoded(dataset)), ExplicitVRLittleEndian).attributes[OTHER_IDS]
    )
    assert found_items == [{"PatientID": "B", "IssuerOfPatientID": "KLINIK"}, {"PatientID": "A"}]


def sequence_bytes(vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sHL", 0x0040, 0x0275, vr, 0, len(value)) + value


def with_sequence(element: bytes) -> memoryview:
    """A slice with these bytes in the place of its request."""
    dataset = ct_slice()
    before, after = Dataset(), Dataset()
    for one in dataset:
        (before if one.tag < 0x00400275 else after).add(one)
    return memoryview(encoded(before) + element + encoded(after))


def test_items_of_unknown_representation_are_read() -> None:
    """PS3.5 6.2.2: what a proxy that does not know the attribute makes of it."""
    inside = Dataset()
    inside.RequestAttributesSequence = [request("S1", "R1")]
    value = encoded(inside, ImplicitVRLittleEndian)[8:]
    attributes = inspect(with_sequence(sequence_bytes(b"UN", value)), ExplicitVRLittleEndian).attributes
    assert items_of(attributes[REQUESTS])[0]["RequestedProcedureID"] == "R1"


@pytest.mark.parametrize(
    "element",
    [
        sequence_bytes(b"UN", b"no items at all."),
        sequence_bytes(b"UN", b"\xfe\xff\x00\xe0\x40\x00\x00\x00" + b"\x40\x00\x09\x00\xf0\x00\x00\x00"),
        sequence_bytes(b"OB", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
        sequence_bytes(b"SQ", b""),
        sequence_bytes(b"SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
    ],
)
def test_what_cannot_be_read_as_items_does_no_harm(element: bytes) -> None:
    attributes = inspect(with_sequence(element), ExplicitVRLittleEndian).attributes
    assert REQUESTS not in attributes
    assert attributes["PatientID"] == "P1"


def test_of_very_many_items_some_are_kept() -> None:
    dataset = ct_slice(OtherPatientIDsSequence=[other(str(n)) for n in range(500)], OtherPatientIDs="x")
    attributes = inspect(memoryview(encoded(dataset)), ExplicitVRLittleEndian).attributes
    assert len(items_of(attributes[OTHER_IDS])) == MAX_ITEMS


# ── what the index holds ─────────────────────────────────────────────────────────────────────────


def test_the_first_object_that_has_items_tells_them(ledger: Ledger) -> None:
    asked = {"RequestAttributesSequence": [request("S1", "R1"), request("S2", "R1")]}
    ledger.add_instances([received(held_slice(STUDY, SERIES, 1))], NOW)
    assert told(ledger, REQUESTS) == [[]]
    ledger.add_instances([received(held_slice(STUDY, SERIES, 2, **asked))], NOW)
    again = {"RequestAttributesSequence": [request("S9", "R9")]}
    ledger.add_instances([received(held_slice(STUDY, SERIES, 3, **again))], NOW)
    ((first, second),) = told(ledger, REQUESTS)
    assert [first["scheduled_procedure_step_id"], second["scheduled_procedure_step_id"]] == ["S1", "S2"]
    assert first["requested_procedure_description"] == ""


def test_items_go_with_the_last_object_of_theirs(ledger: Ledger) -> None:
    asked = {"RequestAttributesSequence": [request("S1", "R1")], "OtherPatientIDs": ["A", "B"]}
    ledger.add_instances([received(held_slice(STUDY, SERIES, n, **asked)) for n in (1, 2)], NOW)
    ledger.add_instances([received(held_slice(STUDY, f"{SERIES}9", 1, **asked))], NOW)
    assert rows(ledger) == 4
    ledger.remove_from_index([f"{SERIES}.1"])
    assert rows(ledger) == 4
    ledger.remove_from_index([f"{SERIES}.2"])
    assert rows(ledger) == 3
    ledger.remove_from_index([f"{SERIES}9.1"])
    assert rows(ledger) == 0


def test_items_are_told_at_the_levels_below_theirs(ledger: Ledger) -> None:
    asked = {"RequestAttributesSequence": [request("S1", "R1")], "OtherPatientIDs": "A"}
    ledger.add_instances([received(held_slice(STUDY, SERIES, n, **asked)) for n in (1, 2)], NOW)
    for level in Level:
        assert [[one["patient_id"] for one in items] for items in told(ledger, OTHER_IDS, level)] == [
            ["A"]
        ] * (2 if level is Level.IMAGE else 1)
    assert len(told(ledger, REQUESTS, Level.IMAGE)) == 2


# ── how SQL finds it ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("keyword", "within", "level"),
    [
        (OTHER_IDS, "PatientID", Level.STUDY),
        (OTHER_IDS, "PatientID", Level.PATIENT),
        (REQUESTS, "ScheduledProcedureStepID", Level.SERIES),
        (REQUESTS, "RequestedProcedureID", Level.SERIES),
        (REQUESTS, "AccessionNumber", Level.IMAGE),
    ],
)
def test_items_are_found_by_an_index(tmp_path: Path, keyword: str, within: str, level: Level) -> None:
    sequence = SEQUENCE_OF[keyword]
    question = Question(level, (InItem(sequence, conditions(sequence.by_keyword[within], "X")),))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    with ledger._read() as connection:
        compiled = matching(question).compile(connection, compile_kwargs={"literal_binds": True})
        plan = "\n".join(row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {compiled}")))
    ledger.close()
    column = sequence.by_keyword[within].column
    assert f"USING INDEX ix_{sequence.table}_{column} ({column}=?)" in plan
    assert "SCAN" not in plan.replace("SCAN LIST", "")


# ── what an older version described ──────────────────────────────────────────────────────────────


def on_disk(data_dir: Path, ledger: Ledger, *datasets: Dataset) -> None:
    spool = Spool(data_dir, 0)
    for dataset in datasets:
        data = memoryview(encoded(dataset))
        origin = Origin(dataset.SOPClassUID, dataset.SOPInstanceUID, ExplicitVRLittleEndian, "SCANNER")
        path, size = spool.store(str(dataset.StudyInstanceUID), origin, data)
        header = inspect(data, ExplicitVRLittleEndian)
        ledger.add_instances([instance_of(header, origin, spool.relative(path), size, NOW)], NOW)
    spool.close()


def outdated(ledger: Ledger) -> None:
    """As the migration leaves it."""
    with ledger._decide() as connection:
        for table in HELD_ITEMS.values():
            connection.execute(table.delete())
        connection.execute(update(HELD_SERIES).values(edition=0))


def test_of_each_series_of_an_older_version_one_object_is_read_again(ledger: Ledger, tmp_path: Path) -> None:
    asked = {"RequestAttributesSequence": [request("S1", "R1")], "OtherPatientIDs": "A"}
    on_disk(
        tmp_path,
        ledger,
        *(held_slice(STUDY, SERIES, n, **asked) for n in (1, 2, 3)),
        held_slice("1.2.4", "1.2.4.1"),
    )
    outdated(ledger)
    before = ledger.attributes(Level.IMAGE, ledger.find(Question(Level.IMAGE), 9))
    assert len(ledger.outdated_series(False, 0, 9)) == 2
    Indexer(ledger, tmp_path).tick(NOW)
    assert [len(items) for items in told(ledger, REQUESTS)] == [1, 0]
    assert [len(items) for items in told(ledger, OTHER_IDS, Level.STUDY)] == [1, 0]
    assert ledger.outdated_series(False, 0, 9) == []
    assert ledger.attributes(Level.IMAGE, ledger.find(Question(Level.IMAGE), 9)) == before
    assert EDITION > 0


def test_a_file_that_has_gone_keeps_no_other_series_from_being_read_again(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"RequestAttributesSequence": [request("S1", "R1")]}
    on_disk(tmp_path, ledger, *(held_slice(f"1.2.{n}", f"1.2.{n}.1", **asked) for n in (1, 2, 3)))
    outdated(ledger)
    gone, broken = (tmp_path / "spool" / f"1.2.{n}" / f"1.2.{n}.1.1.dcm" for n in (1, 2))
    gone.unlink()
    broken.write_bytes(b"broken" * 50)
    indexer = Indexer(ledger, tmp_path)
    with caplog.at_level(logging.WARNING):
        indexer.tick(NOW)
        indexer.tick(NOW + 1)
    assert [len(items) for items in told(ledger, REQUESTS)] == [0, 0, 1]
    assert len(caplog.records) == 2, "each once"
    assert len(ledger.outdated_series(False, 0, 9)) == 2, "the next start looks again"


def test_a_spool_that_is_away_is_waited_for(ledger: Ledger, tmp_path: Path) -> None:
    on_disk(tmp_path, ledger, held_slice(STUDY, SERIES, RequestAttributesSequence=[request("S1", "R1")]))
    outdated(ledger)
    (tmp_path / "spool").rename(tmp_path / "away")
    indexer = Indexer(ledger, tmp_path)
    indexer.tick(NOW)
    assert told(ledger, REQUESTS) == [[]]
    (tmp_path / "away").rename(tmp_path / "spool")
    indexer.tick(NOW + 100_000)
    assert len(told(ledger, REQUESTS)[0]) == 1


def test_a_series_that_was_removed_meanwhile_is_not_made_again(ledger: Ledger) -> None:
    one = received(held_slice(STUDY, SERIES, OtherPatientIDs="A"))
    ledger.add_instances([one], NOW)
    (series_number,) = ledger.find(Question(Level.SERIES), 9)
    ledger.remove_from_index([one.sop_instance_uid])
    study = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, **one.attributes}
    ledger.index_again(series_number, study, is_result=False)
    assert ledger.find(Question(Level.STUDY), 9) == []
    assert rows(ledger) == 0


# ── the table of sequences ───────────────────────────────────────────────────────────────────────


def test_every_sequence_has_its_table() -> None:
    assert set(HELD_ITEMS) == set(SEQUENCES)
    for sequence, table in HELD_ITEMS.items():
        assert {sequence.owner, *(a.column for a in sequence.attributes)} < set(table.columns.keys())
