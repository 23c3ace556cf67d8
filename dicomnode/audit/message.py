"""Audit messages: the XML of PS3.15 A.5.1, for the events of A.5.3 that the node meets.

A message names patients by their ID, never by name: PS3.15 A.5.3 asks for the one and allows to leave out
the other. Text that comes from outside cannot break the XML, nor begin another line.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

# Characters that XML 1.0 has no way to write.
_UNWRITABLE = re.compile("[^\\t\\n\\r\\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# ParticipantObjectName or a query is mandatory in the schema; names of patients stay out.
_NO_NAME = "not recorded"
_APPLICATION_SERVER = "4"  # A.5.1.2.1


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value of PS3.16, or of the scheme named."""

    value: str
    meaning: str
    scheme: str = "DCM"


# PS3.16 CID 400, 401, 402, 403.
APPLICATION_ACTIVITY = Code("110100", "Application Activity")
BEGIN_TRANSFERRING = Code("110102", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
QUERY = Code("110112", "Query")
SECURITY_ALERT = Code("110113", "Security Alert")
APPLICATION_START = Code("110120", "Application Start")
APPLICATION_STOP = Code("110121", "Application Stop")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
APPLICATION = Code("110150", "Application")
DESTINATION_ROLE = Code("110152", "Destination Role ID")
SOURCE_ROLE = Code("110153", "Source Role ID")
_STUDY_UID = Code("110180", "Study Instance UID")
_SOP_CLASS_UID = Code("110181", "SOP Class UID")
_NODE_ID = Code("110182", "Node ID")
_PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")


class Action(StrEnum):
    """EventActionCode."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(StrEnum):
    """EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. at: seconds since the epoch. description: why, where it failed."""

    what: Code
    action: Action
    at: float
    outcome: Outcome = Outcome.SUCCESS
    kind: Code | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part. user: process, or AE title of another system. address: host name or IP address."""

    user: str
    ae_title: str
    address: str = ""
    role: Code | None = None
    is_requestor: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A study and how many of its objects were meant, by SOP class."""

    uid: str
    instances: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """A C-FIND request: its identifier, encoded as it came or would be sent."""

    sop_class_uid: str
    transfer_syntax_uid: str
    identifier: bytes


@dataclass(frozen=True, slots=True)
class Source:
    """Who writes the message."""

    id: str
    site: str = ""


def message(
    event: Event,
    participants: Sequence[Participant],
    source: Source,
    *,
    studies: Sequence[Study] = (),
    patient_id: str | None = None,
    query: Query | None = None,
    alert: str = "",
) -> str:
    """The message as one line of XML. alert: whom a security alert is about."""
    root = Element("AuditMessage")
    _event(root, event)
    for participant in participants:
        _participant(root, participant)
    _source(root, source)
    for study in studies:
        _study(root, study)
    if patient_id is not None:
        _object(root, _PATIENT_NUMBER, patient_id, type_code="1", role="1")
    if query is not None:
        _query(root, query)
    if alert:
        _alert(root, alert, event.description)
    return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, encoding="unicode")


def _event(root: Element, event: Event) -> None:
    at = datetime.fromtimestamp(event.at, UTC)
    element = SubElement(
        root,
        "EventIdentification",
        EventActionCode=str(event.action),
        EventDateTime=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        EventOutcomeIndicator=str(event.outcome),
    )
    _coded(element, "EventID", event.what)
    if event.kind is not None:
        _coded(element, "EventTypeCode", event.kind)
    if event.description:
        SubElement(element, "EventOutcomeDescription").text = _token(event.description)


def _participant(root: Element, participant: Participant) -> None:
    element = SubElement(
        root,
        "ActiveParticipant",
        UserID=_token(participant.user or participant.address),
        UserIsRequestor="true" if participant.is_requestor else "false",
    )
    if participant.ae_title:
        element.set("AlternativeUserID", _token(f"AETITLES={participant.ae_title}"))  # A.5.2.2
    if participant.address:
        is_ip = re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", participant.address) is not None
        element.set("NetworkAccessPointID", _token(participant.address))
        element.set("NetworkAccessPointTypeCode", "2" if is_ip else "1")
    if participant.role is not None:
        _coded(element, "RoleIDCode", participant.role)


def _source(root: Element, source: Source) -> None:
    element = SubElement(root, "AuditSourceIdentification", AuditSourceID=_token(source.id))
    if source.site:
        element.set("AuditEnterpriseSiteID", _token(source.site))
    SubElement(element, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})


def _study(root: Element, study: Study) -> None:
    element = _object(root, _STUDY_UID, study.uid, type_code="2", role="3")
    if study.instances:
        description = SubElement(element, "ParticipantObjectDescription")
        for sop_class, count in study.instances:
            SubElement(description, "SOPClass", UID=_token(sop_class), NumberOfInstances=str(count))


def _query(root: Element, query: Query) -> None:
    identifier = base64.b64encode(query.identifier).decode()
    element = _object(root, _SOP_CLASS_UID, query.sop_class_uid, type_code="2", role="3", query=identifier)
    _detail(element, "TransferSyntax", query.transfer_syntax_uid)


def _alert(root: Element, about: str, description: str) -> None:
    element = _object(root, _NODE_ID, about, type_code="2", role="13")
    _detail(element, "Alert Description", description)


def _object(
    root: Element, id_type: Code, value: str, *, type_code: str, role: str, query: str = ""
) -> Element:
    element = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_token(value),
        ParticipantObjectTypeCode=type_code,
        ParticipantObjectTypeCodeRole=role,
    )
    _coded(element, "ParticipantObjectIDTypeCode", id_type)
    if query:
        SubElement(element, "ParticipantObjectQuery").text = query
    else:
        SubElement(element, "ParticipantObjectName").text = _NO_NAME
    return element


def _detail(element: Element, kind: str, value: str) -> None:
    encoded = base64.b64encode(value.encode("utf-8", "replace")).decode()
    SubElement(element, "ParticipantObjectDetail", type=kind, value=encoded)


def _coded(parent: Element, name: str, code: Code) -> None:
    attributes = {
        "csd-code": code.value,
        "codeSystemName": code.scheme,
        "originalText": code.meaning,
    }
    SubElement(parent, name, attributes)


def _token(value: str) -> str:
    """An xsd:token: no line breaks, no runs of spaces; nothing that XML cannot write."""
    return " ".join(_UNWRITABLE.sub("?", value).split())
