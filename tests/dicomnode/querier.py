"""A node that answers queries, for the tests: objects without pixels to ask about, and services over them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from dicomnode.audit.trail import SILENT, Audit
from dicomnode.config import Node, Peer, Query, Receive
from dicomnode.contexts import FIND_MODELS, GET_MODELS, MOVE_MODELS
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.network.service import Service
from dicomnode.query.find import FindService
from dicomnode.query.retrieve import GetService, MoveService
from dicomnode.reception.header import inspect
from dicomnode.reception.intake import instance_of
from dicomnode.reception.spool import Origin
from dicomnode.records import Instance
from tests.dicomnode.modality import NOW, ct_slice, encoded
from tests.dicomnode.results_on_disk import instance

PATIENT_ROOT, STUDY_ROOT = FIND_MODELS
NODE_AE, QUERIER_AE = "DICOMNODE", "QUERIER"
Response = tuple[Dataset, Dataset | None]


def described(study: str, number: int, *, series: str = "", **attributes: str) -> Instance:
    """A received object with attributes for the index, by keyword."""
    own = {
        "patient_id": attributes.get("PatientID", "P1"),
        "issuer_of_patient_id": attributes.get("IssuerOfPatientID", ""),
        "accession_number": attributes.get("AccessionNumber", ""),
        "modality": attributes.get("Modality", "CT"),
        "series_instance_uid": series or f"{study}.1",
        "sop_instance_uid": f"{series or study + '.1'}.{number}",
        "path": f"spool/{study}/{series or study + '.1'}.{number}.dcm",
    }
    if "SOPClassUID" in attributes:
        own["sop_class_uid"] = attributes["SOPClassUID"]
    made = instance(study, number, **own)
    return replace(made, attributes=attributes)


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def request(step: str, procedure: str, **more: object) -> Dataset:
    """A requested procedure, with an attribute of which the index knows nothing."""
    own = {"ScheduledProcedureStepID": step, "RequestedProcedureID": procedure}
    return item(**own, RequestedProcedurePriority="HIGH", **more)


def other(patient_id: str, issuer: str = "", kind: str = "") -> Dataset:
    return item(PatientID=patient_id, IssuerOfPatientID=issuer, TypeOfPatientID=kind)


def held_slice(study: str, series: str, number: int = 1, **values: object) -> Dataset:
    return ct_slice(
        StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=f"{series}.{number}", **values
    )


def received(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Instance:
    """The object as the node registers it."""
    header = inspect(memoryview(encoded(dataset, syntax)), syntax)
    origin = Origin(dataset.SOPClassUID, dataset.SOPInstanceUID, syntax, "SCANNER")
    return instance_of(header, origin, f"spool/{dataset.SOPInstanceUID}.dcm", 1, NOW)


@dataclass
class Running:
    """A node that listens."""

    port: int
    ledger: Ledger
    data_dir: Path
    finding: FindService
    services: Sequence[Service]
    receiver: Receiver


@contextmanager
def answering_node(
    data_dir: Path,
    instances: Sequence[Instance] = (),
    peers: Sequence[Peer] = (),
    url: str = "",
    audit: Audit = SILENT,
    **query: object,
) -> Iterator[Running]:
    """On a free port of the loopback interface; QUERIER may ask for everything."""
    node = Node(bind="127.0.0.1", data_dir=data_dir, ae_title=NODE_AE).model_copy(update={"port": 0})
    querier = Peer(name="querier", ae_title=QUERIER_AE, may=("echo", "find", "move", "get"))
    settings = Query().model_copy(update=query)
    ledger = Ledger.open(url or node.ledger_url)
    ledger.add_instances(instances, 0.0)
    finding = FindService(ledger, NODE_AE, settings.max_matches, audit)
    everyone = (querier, *peers)
    services = (
        finding,
        MoveService(ledger, data_dir, settings, everyone, NODE_AE),
        GetService(ledger, data_dir, settings),
    )
    receiver = Receiver(node, everyone, Receive(), services)
    try:
        yield Running(receiver.start(), ledger, data_dir, finding, services, receiver)
    finally:
        receiver.stop(5)
        ledger.close()


@contextmanager
def associated(
    port: int, *models: str, extended: bytes = b"", max_pdu: int = 16382, syntax: str = ""
) -> Iterator[Association]:
    """An association for queries."""
    ae = AE(QUERIER_AE)
    ae.maximum_pdu_size = max_pdu
    for model in models or (*FIND_MODELS, *MOVE_MODELS, *GET_MODELS):
        ae.add_requested_context(UID(model), syntax or None)
    items: list[Any] = []
    if extended:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = UID(models[0]), extended
        items.append(item)
    assoc = ae.associate(
        "127.0.0.1", port, ae_title=NODE_AE, ext_neg=items, evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)]
    )
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def _at_once(event: evt.Event) -> None:
    """Without it every request waits 40 ms for Nagle's algorithm."""
    wire = cast(Any, event.assoc.dul.socket).socket
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keys(level: str, character_set: str = "", **values: object) -> Dataset:
    """An Identifier."""
    identifier = Dataset()
    if character_set:
        identifier.SpecificCharacterSet = character_set
    identifier.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(identifier, keyword, value)
    return identifier


def found(port: int, identifier: Dataset, model: str = STUDY_ROOT, **options: Any) -> list[Response]:
    """Every response to a C-FIND. options: of the association."""
    with associated(port, model, **options) as assoc:
        return list(assoc.send_c_find(identifier, UID(model)))


def matches(responses: Sequence[Response]) -> list[Mapping[str, object]]:
    """What the pending responses say, by keyword."""
    return [{e.keyword: e.value for e in answer} for _, answer in responses if answer is not None]
