"""C-FIND over a million instances: 2,000 studies of 500, in SQLite or PostgreSQL.

The index is filled by SQL; then each question is asked often, once of the ledger alone (matching, attributes
and counts, as C-FIND does it) and once over an association, until the last response. Medians and the
slowest are printed as a Markdown table.

    python -m tests.bench.query_bench [--write docs/bench-query.md] [--url postgresql://...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from sqlalchemy import Connection, insert

from dicomnode.attributes import BY_KEYWORD, SEQUENCE_OF, Level
from dicomnode.ledger import Ledger
from dicomnode.ledger.schema import HELD_CLASSES, HELD_INSTANCES, HELD_ITEMS, HELD_SERIES, HELD_STUDIES
from dicomnode.query.answers import Encoder
from dicomnode.query.identifier import Query, read, to_query
from tests.bench.machine import machine
from tests.dicomnode.modality import encoded
from tests.dicomnode.querier import PATIENT_ROOT, STUDY_ROOT, answering_node, associated, keys

STUDIES, INSTANCES = 2000, 500
SERIES = (("CT", "1.2.840.10008.5.1.4.1.1.2", 497), ("NM", "1.2.840.10008.5.1.4.1.1.20", 2))
DOSE = ("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", 1)
SURNAMES = ("Adams", "Brown", "Chen", "Doe", "Eriksson", "Fischer", "García", "Haddad", "Ivanova", "Müller")
LIMIT_MS = 100.0
_FIRST_DAY = date(2018, 1, 1)


@dataclass(frozen=True, slots=True)
class Row:
    """One question and what it took."""

    name: str
    matches: int
    ledger_ms: list[float]
    association_ms: list[float]


def questions(studies: int = STUDIES) -> dict[str, tuple[str, Dataset]]:
    """What is asked: name → model and Identifier. studies: how many there are."""
    some = studies * 7 // 20
    surname = SURNAMES[some // 200 % len(SURNAMES)]
    even = some // 2 * 2
    like = f"N?{f'{even:06d}'[1:4]}*"
    counted = {"ModalitiesInStudy": "", "NumberOfStudyRelatedInstances": "", "StudyDescription": ""}
    study = {"StudyInstanceUID": "", "PatientName": "", "PatientID": "", "StudyDate": "", **counted}
    series = {"StudyInstanceUID": uid(some), "SeriesInstanceUID": "", "Modality": ""}
    image = {"StudyInstanceUID": uid(some), "SOPInstanceUID": "", "InstanceNumber": ""}

    def ask(
        level: str, base: dict[str, str], model: str = STUDY_ROOT, **values: object
    ) -> tuple[str, Dataset]:
        return model, keys(level, "", **{**base, **values})

    return {
        "STUDY by PatientID": ask("STUDY", study, PatientID=f"P{even:06d}"),
        f"STUDY by PatientName `{surname}^Jane00*`": ask("STUDY", study, PatientName=f"{surname}^Jane00*"),
        "STUDY by PatientName `*ane01?3*`": ask("STUDY", study, PatientName="*ane01?3*"),
        "STUDY by StudyDate, one week": ask("STUDY", study, StudyDate="20190301-20190307"),
        "STUDY by StudyDate, one month, and ModalitiesInStudy": ask(
            "STUDY", study, StudyDate="20190301-20190331", ModalitiesInStudy="NM"
        ),
        "STUDY by AccessionNumber": ask("STUDY", study, AccessionNumber=f"A{some:07d}"),
        "STUDY by OtherPatientIDs": ask("STUDY", study, OtherPatientIDs=f"N{even:06d}"),
        f"STUDY by OtherPatientIDs `{like}`": ask("STUDY", study, OtherPatientIDs=like),
        "STUDY by OtherPatientIDsSequence, ID and issuer": ask(
            "STUDY", study, OtherPatientIDsSequence=item(PatientID=f"N{even:06d}", IssuerOfPatientID="NATION")
        ),
        "PATIENT by OtherPatientIDs": ask(
            "PATIENT", {"PatientID": ""}, PATIENT_ROOT, OtherPatientIDs=f"N{even:06d}"
        ),
        "STUDY by StudyInstanceUID": ask("STUDY", study, StudyInstanceUID=uid(some)),
        "PATIENT by PatientName `müller^jane01*`": ask(
            "PATIENT",
            {"PatientID": "", "NumberOfPatientRelatedStudies": ""},
            PATIENT_ROOT,
            PatientName="müller^jane01*",
        ),
        "SERIES of a study": ask("SERIES", series, NumberOfSeriesRelatedInstances=""),
        "SERIES of a study by RequestAttributesSequence": ask(
            "SERIES",
            series,
            RequestAttributesSequence=item(ScheduledProcedureStepID=f"S{some:07d}", RequestedProcedureID=""),
        ),
        "IMAGE of a series, 497": ask("IMAGE", image, SeriesInstanceUID=f"{uid(some)}.1"),
        "IMAGE of a series, RTDOSE with dose keys": ask(
            "IMAGE",
            image,
            SeriesInstanceUID=f"{uid(some)}.3",
            DoseUnits="GY",
            DoseType="",
            DoseComment="DVK*",
        ),
        f"STUDY, all {studies:,}": ask("STUDY", study),
    }


def item(**values: str) -> list[Dataset]:
    """A sequence as a key."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return [made]


def uid(study: int) -> str:
    """A Study Instance UID."""
    return f"1.2.826.0.1.3680043.10.543.{study + 1000000}"


def main() -> int:
    """Fill, ask, print. returns: 1 when a study-level question took too long."""
    arguments = _arguments()
    with _database(arguments.url) as (url, folder, name):
        fill(url, arguments.studies)
        rows = measure(url, folder, arguments.rounds, arguments.studies)
    text = report(rows, arguments, name)
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")
    narrow = [row for row in rows if row.name.startswith(("STUDY by", "PATIENT by"))]
    return int(any(statistics.median(row.ledger_ms) > LIMIT_MS for row in narrow))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="C-FIND over a million instances")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--url", default="", help="an empty PostgreSQL database; without it SQLite")
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-query.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    return parser.parse_args()


@contextmanager
def _database(url: str) -> Iterator[tuple[str, Path, str]]:
    with tempfile.TemporaryDirectory(prefix="query-bench-") as folder:
        path = Path(folder)
        yield url or f"sqlite:///{path / 'ledger.sqlite3'}", path, "PostgreSQL" if url else "SQLite"


# ── a ledger with a million instances ────────────────────────────────────────────────────────────


def fill(url: str, studies: int) -> None:
    """An index as it would be after so many studies."""
    ledger = Ledger.open(url)
    try:
        for start in range(0, studies, 20):
            with ledger._batch() as connection:
                for number in range(start, min(start + 20, studies)):
                    _study(connection, number)
    finally:
        ledger.close()


def _study(connection: Connection, number: int) -> None:
    surname = SURNAMES[number // 200 % len(SURNAMES)]
    values = {
        "PatientID": f"P{number // 2 * 2:06d}",
        "IssuerOfPatientID": "HOSPITAL",
        "PatientName": f"{surname}^Jane{number:05d}",
        "PatientBirthDate": f"19{number % 90 + 10}0304",
        "PatientSex": "FM"[number % 2],
        "StudyInstanceUID": uid(number),
        "StudyDate": f"{_FIRST_DAY + timedelta(days=number % 730):%Y%m%d}",
        "StudyTime": f"{number % 24:02d}1500",
        "AccessionNumber": f"A{number:07d}",
        "StudyDescription": "Lu-177 PSMA SPECT/CT, 24 h",
        "ReferringPhysicianName": "Referrer^R",
    }
    study_id = connection.execute(insert(HELD_STUDIES).values(**_stored(values))).inserted_primary_key
    assert study_id is not None
    ids = {"PatientID": f"N{number // 2 * 2:06d}", "IssuerOfPatientID": "NATION", "TypeOfPatientID": "TEXT"}
    _item(connection, "OtherPatientIDsSequence", study_id[0], ids)
    for place, (modality, sop_class, count) in enumerate((*SERIES, DOSE), start=1):
        key = _series(connection, study_id[0], f"{uid(number)}.{place}", modality, sop_class, count)
        if modality != "RTDOSE":
            ids = {"ScheduledProcedureStepID": f"S{number:07d}", "RequestedProcedureID": f"R{number:07d}"}
            _item(connection, "RequestAttributesSequence", key, ids)


def _item(connection: Connection, keyword: str, owner: int, values: dict[str, str]) -> None:
    sequence = SEQUENCE_OF[keyword]
    row: dict[str, Any] = {sequence.owner: owner}
    for attribute in sequence.attributes:
        row |= attribute.stored(values.get(attribute.keyword, ""))
    connection.execute(insert(HELD_ITEMS[sequence]).values(**row))


def _series(
    connection: Connection, study_id: int, series_uid: str, modality: str, sop_class: str, count: int
) -> int:
    """returns: its row."""
    own = {
        "SeriesInstanceUID": series_uid,
        "Modality": modality,
        "SeriesNumber": "3",
        "SeriesDescription": f"{modality} of the abdomen",
    }
    is_result = int(modality == "RTDOSE")
    values: dict[str, Any] = _stored(own) | {"study_id": study_id, "is_result": is_result}
    key = connection.execute(insert(HELD_SERIES).values(**values)).inserted_primary_key
    assert key is not None
    dose = {"DoseUnits": "GY", "DoseType": "PHYSICAL", "DoseComment": "DVK dose rate"} if is_result else {}
    rows = []
    for n in range(1, count + 1):
        image = {
            "SOPInstanceUID": f"{series_uid}.{n}",
            "SOPClassUID": sop_class,
            "InstanceNumber": str(n),
            **dose,
        }
        rows.append(_stored(image) | {"series_id": key[0], "is_result": is_result})
    connection.execute(insert(HELD_INSTANCES), rows)
    connection.execute(
        insert(HELD_CLASSES).values(series_id=key[0], sop_class_uid=sop_class, instances=count)
    )
    return int(key[0])


def _stored(values: dict[str, str]) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for keyword, value in values.items():
        stored |= BY_KEYWORD[keyword].stored(value)
    return stored


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


def measure(url: str, folder: Path, rounds: int, studies: int) -> list[Row]:
    """Every question, `rounds` times after one that does not count."""
    rows = []
    with answering_node(folder, url=url) as node:
        for name, (model, identifier) in questions(studies).items():
            query = understood(model, identifier)
            count = answered(node.ledger, query)
            ledger_ms = [_ms(lambda q=query: answered(node.ledger, q)) for _ in range(rounds)]  # type: ignore[misc]
            with associated(node.port, model) as assoc:

                def ask(assoc: Any = assoc, identifier: Dataset = identifier, model: str = model) -> None:
                    list(assoc.send_c_find(identifier, UID(model)))

                ask()
                association_ms = [_ms(ask) for _ in range(min(rounds, 5))]
            rows.append(Row(name, count, ledger_ms, association_ms))
            print(f"{name}: {count}", file=sys.stderr)
    return rows


def understood(model: str, identifier: Dataset) -> Query:
    """The question, as C-FIND makes it of a request."""
    request = read(BytesIO(encoded(identifier)), ExplicitVRLittleEndian)
    return to_query(request, patient_root=model == PATIENT_ROOT, combined=False)


def answered(ledger: Ledger, query: Query) -> int:
    """Everything that C-FIND asks of the ledger. returns: how many matches."""
    encoder = Encoder(query, "", implicit=False)
    numbers = ledger.find(query.question, 20001)
    for start in range(0, len(numbers), 200):
        some = numbers[start : start + 200]
        ledger.attributes(query.level, some)
        if encoder.needs_contents:
            ledger.contents(Level(query.level), some)
        for one in query.nested:
            ledger.items(one.sequence, one.told, query.level, some)
    return len(numbers)


def _ms(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def report(rows: list[Row], arguments: argparse.Namespace, database: str) -> str:
    """The page."""
    instances = arguments.studies * INSTANCES
    lines = [
        "# Queries",
        "",
        f"C-FIND over {instances:,} instances in {arguments.studies:,} studies of {INSTANCES} "
        f"(497 CT, 2 NM, 1 RTDOSE), index in {database}; {arguments.rounds} times each, after one that does "
        f"not count. {arguments.date}; {arguments.machine}, load average {os.getloadavg()[0]:.0f}. "
        "Written by `python -m tests.bench.query_bench`.",
        "",
        "*Ledger*: matching, attributes and counts, by SQL. *Association*: from the request to the last "
        "response, with pynetdicom as the SCU in the same process, which has the larger share of it. "
        f"The aim: a question of study level within {LIMIT_MS:.0f} ms.",
        "",
        "| question | matches | ledger, median ms | slowest ms | association, median ms |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        figures = statistics.median(row.ledger_ms), max(row.ledger_ms), statistics.median(row.association_ms)
        lines.append(f"| {row.name} | {row.matches} | " + " | ".join(f"{f:.1f}" for f in figures) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
