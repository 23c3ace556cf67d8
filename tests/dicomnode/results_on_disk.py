"""Cases at the point where they are sent: results on disk, fixed in the ledger. For several tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
    generate_uid,
)
from sqlalchemy import Engine, event

from dicomnode.config import Config, parse
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.ledger import Ledger
from dicomnode.network.send import Outgoing
from dicomnode.records import Case, Delivery, Identity, Instance, NewResult, NewRun
from dicomnode.states import Event

KINDS = {"SEG": SegmentationStorage, "RTDOSE": RTDoseStorage, "SR": Comprehensive3DSRStorage}


def write_object(path: Path, sop_class_uid: str, size_bytes: int = 2000) -> Outgoing:
    """A file that a PACS takes: identifiers and some bytes of pixel data."""
    ds = Dataset()
    ds.SOPClassUID = UID(sop_class_uid)
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = ds.SeriesInstanceUID = "1.2.3"
    ds.PatientID = "PAT-0001"
    ds.PixelData = bytes(size_bytes)
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return Outgoing(path, str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ExplicitVRLittleEndian))


def config_for(data_dir: Path, *pacs: StandinPacs, **deliver: object) -> Config:
    """The node's settings with the given destinations, named after their AE titles."""
    peers = [{"name": p.ae_title, "ae_title": p.ae_title, "host": p.host, "port": p.port} for p in pacs]
    settings = {"to": [p.ae_title for p in pacs], "timeout_s": 30.0, **deliver}
    return parse({"node": {"data_dir": str(data_dir)}, "peers": peers, "deliver": settings})


def instance(study: str = "1.2.3", number: int = 1, at: float = 0.0, **changes: str) -> Instance:
    """A received object; `changes` replace its fields."""
    fields = {
        "sop_instance_uid": f"{study}.1.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "study_instance_uid": study,
        "series_instance_uid": f"{study}.1",
        "modality": "CT",
        "transfer_syntax_uid": str(ExplicitVRLittleEndian),
        "patient_id": "PAT-0001",
        "issuer_of_patient_id": "HOSPITAL",
        "accession_number": "ACC-7",
        "path": f"spool/{number}.dcm",
        "peer": "CAMERA",
    }
    return Instance(**(fields | changes), size_bytes=100, received_at=at)


def run_of(inputs_sha256: str = "inputs") -> NewRun:
    """A run's provenance."""
    return NewRun(inputs_sha256, "0.1.0", "config", "calibration", "kernel", "", "{}")


def encoded_case(
    ledger: Ledger, data_dir: Path, peers: tuple[str, ...], now: float = 10.0, study: str = "1.2.3"
) -> Case:
    """A case whose results (SEG, RTDOSE, SR) lie under `data_dir` and wait to be sent to `peers`."""
    (case_id,) = ledger.add_instances([instance(study, at=now)], now)
    return compute_again(ledger, data_dir, case_id, peers, now)


def case_for(ledger: Ledger, data_dir: Path, *pacs: StandinPacs, study: str = "1.2.3") -> Case:
    """A case whose results wait to be sent to these PACS."""
    return encoded_case(ledger, data_dir, tuple(p.ae_title for p in pacs), study=study)


def rows(ledger: Ledger, case: Case) -> list[Delivery]:
    """The deliveries of a case's latest results."""
    run = ledger.latest_run(case.id)
    assert run is not None
    return [delivery for _result, delivery in ledger.deliveries(run.id)]


def compute_again(
    ledger: Ledger, data_dir: Path, case_id: int, peers: tuple[str, ...], now: float, inputs: str = "inputs"
) -> Case:
    """Take a case that collects to ENCODED with new results."""
    ledger.assembled(ledger.case(case_id), now, "{}", inputs, Identity("PAT-0001"), "complete")
    attempt = ledger.begin(case_id, Event.CLAIM, "compute", now)
    results = []
    for kind, sop_class_uid in KINDS.items():
        path = f"results/{case_id}/{attempt.id}/{kind}.dcm"
        file = write_object(data_dir / path, sop_class_uid)
        new = (file.sop_instance_uid, file.sop_class_uid, "1.2.3.9", file.transfer_syntax_uid)
        results.append(
            NewResult(*new, kind=kind, engine="dvk", path=path, size_bytes=file.path.stat().st_size)
        )
    ledger.register(attempt, run_of(inputs), results, peers, now)
    return ledger.case(case_id)


def half_sent(ledger: Ledger, data_dir: Path, peers: tuple[str, ...], study: str, at: float) -> Case:
    """A case whose results the first of `peers` has; the others could not be reached. It is due again."""
    case = encoded_case(ledger, data_dir, peers, at, study)
    attempt = ledger.begin(case.id, Event.SEND, "deliver", at)
    for delivery in rows(ledger, case):
        if delivery.peer == peers[0]:
            ledger.answered(delivery, at, status=0, detail="", delivered=True)
    ledger.end(attempt, Event.STUMBLE, at, outcome="failed", attempts=1, next_attempt_at=at)
    return ledger.case(case.id)


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is asked of any database."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", note)
