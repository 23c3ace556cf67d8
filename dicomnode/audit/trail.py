"""Who did what with whose data: audit messages after PS3.15 A.5, to syslog, to a file, or to both.

The node's parts say what happens, in one line each; here it becomes a message for every association and
study, not for every slice. Without an [audit] destination nothing is done at all, and a destination that
fails stops nothing (`syslog`).
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dicomnode.audit import message as m
from dicomnode.audit.message import Action, Event, Outcome, Participant, Query, Source, Study, message
from dicomnode.audit.syslog import (
    DEFAULT_PORTS,
    SEVERITY_NOTICE,
    SEVERITY_WARNING,
    FileSink,
    Sender,
    Sink,
    StreamSink,
    UdpSink,
    header,
)
from dicomnode.audit.turned_away import TurnedAway
from dicomnode.config import Audit as Settings
from dicomnode.contexts import STUDY_ROOT_FIND
from dicomnode.records import Belonging
from dicomnode.tls import TLS_1_2_CIPHERS

MESSAGE_ID = "DICOM+RFC3881"
STOP_TIMEOUT_S = 5.0
_IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Party:
    """Another system: its AE title, and the address or host name it is at."""

    ae_title: str
    address: str

    @classmethod
    def calling(cls, association: Any) -> Party:
        """Who requested an association of pynetdicom."""
        requestor = association.requestor
        return cls(str(requestor.ae_title).strip(), str(requestor.address or ""))

    @classmethod
    def at_the_other_end(cls, association: Any, ae_title: str) -> Party:
        """Whoever we speak with over an association, be it ours or its own."""
        other = association.requestor if association.is_acceptor else association.acceptor
        return cls(ae_title, str(other.address or ""))


@dataclass(frozen=True, slots=True)
class _Group:
    """What one message speaks of: the same study and patient, done to the same end."""

    party: Party
    study_instance_uid: str
    patient_id: str
    action: Action
    outcome: Outcome
    we_asked: bool


class Audit:
    """What the node's parts call. Every method may be called from any thread, returns at once, raises nothing
    of its destinations.
    """

    def __init__(self, settings: Settings, ae_title: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ae_title = ae_title
        self._host = socket.gethostname()
        self._source = Source(settings.source_id or f"{ae_title}@{self._host}", settings.site_id)
        self._senders = [Sender(sink) for sink in _sinks(settings)]
        self._received: dict[object, Counter[tuple[_Group, str]]] = {}
        self._turned_away = TurnedAway()
        self._lock = threading.Lock()

    @property
    def is_kept(self) -> bool:
        """Whether anybody is told: what a message needs is then worth looking up."""
        return bool(self._senders)

    # ── the node itself ──────────────────────────────────────────────────────────────────────

    def started(self) -> None:
        """The node listens (A.5.3.1)."""
        self._application(m.APPLICATION_START)

    def stopped(self) -> None:
        """The node has ended (A.5.3.1); what waits is sent."""
        with self._lock:
            open_ones = list(self._received)
        for association in open_ones:
            self.ended(association)
        self._tell_counted(float("inf"))
        self._application(m.APPLICATION_STOP)
        for sender in self._senders:
            sender.stop(STOP_TIMEOUT_S)

    def _application(self, kind: m.Code) -> None:
        event = Event(m.APPLICATION_ACTIVITY, Action.EXECUTE, self._clock(), kind=kind)
        self._tell(event, [self._ourselves(m.APPLICATION)])

    # ── associations ─────────────────────────────────────────────────────────────────────────

    def refused(self, party: Party, reason: str, *, restricted: bool = False) -> None:
        """An association or a request was refused (A.5.3.11).

        restricted: a peer that is known asked for what it has no right to, or has lost a right to what it
        does; else who it is was in doubt.
        """
        kind = m.RESTRICTED_FUNCTION if restricted else m.NODE_AUTHENTICATION
        self._alert(party, reason, kind, Outcome.MINOR_FAILURE if restricted else Outcome.SERIOUS_FAILURE)

    def turned_away(self, party: Party, reason: str) -> None:
        """An association was refused because the node has no room for it or is stopping (A.5.3.11).

        The first of an address at once; those of the next minute are counted, in one message.
        """
        self._tell_counted(self._clock())
        if self._turned_away.is_first(party, reason, self._clock()):
            self._alert(party, reason, m.NODE_AUTHENTICATION, Outcome.MINOR_FAILURE)

    def _tell_counted(self, now: float) -> None:
        for party, reason in self._turned_away.over(now):
            self._alert(party, reason, m.NODE_AUTHENTICATION, Outcome.MINOR_FAILURE)

    def _alert(self, party: Party, reason: str, kind: m.Code, outcome: Outcome) -> None:
        event = Event(m.SECURITY_ALERT, Action.EXECUTE, self._clock(), outcome, kind, reason)
        reporting = self._ourselves(None, is_requestor=True)
        self._tell(event, [reporting, _other(party)], alert=party.address or party.ae_title)

    def received(
        self,
        association: object,
        party: Party,
        study_instance_uid: str,
        patient_id: str,
        sop_class_uid: str,
        *,
        action: Action = Action.CREATE,
        stored: bool = True,
        we_asked: bool = False,
    ) -> None:
        """An object came by C-STORE. The message follows when its association ends (A.5.3.7).

        action: READ where the node has the very object already. we_asked: by C-GET.
        """
        if not self._senders:
            return
        outcome = Outcome.SUCCESS if stored else Outcome.MINOR_FAILURE
        group = _Group(party, study_instance_uid, patient_id, action, outcome, we_asked)
        with self._lock:
            is_new = association not in self._received
            self._received.setdefault(association, Counter())[group, sop_class_uid] += 1
        if is_new:
            self._end_the_dead()

    def ended(self, association: object) -> None:
        """An association has ended, however it did: what it brought is told."""
        with self._lock:
            counts = self._received.pop(association, None)
        if not counts:
            return
        studies: dict[_Group, list[tuple[str, int]]] = {}
        for (group, sop_class), count in sorted(counts.items(), key=lambda item: item[0][1]):
            studies.setdefault(group, []).append((sop_class, count))
        for group, instances in studies.items():
            why = "" if group.outcome is Outcome.SUCCESS else "not taken; the log names object and reason"
            event = Event(m.INSTANCES_TRANSFERRED, group.action, self._clock(), group.outcome, None, why)
            source = _other(group.party, m.SOURCE_ROLE, is_requestor=not group.we_asked)
            self._tell(
                event,
                [source, self._ourselves(m.DESTINATION_ROLE, is_requestor=group.we_asked)],
                studies=[Study(group.study_instance_uid, instances)] if group.study_instance_uid else (),
                patient_id=group.patient_id or None,
            )

    def _end_the_dead(self) -> None:
        """Associations are threads. One whose end nobody told of is told of now."""
        with self._lock:
            dead = [a for a in self._received if isinstance(a, threading.Thread) and not a.is_alive()]
        for association in dead:
            self.ended(association)

    def fetching(
        self, party: Party, study_instance_uid: str, patient_id: str, sop_classes: Iterable[str]
    ) -> None:
        """A C-MOVE or C-GET of ours begins (A.5.3.3). What comes is told as it is received."""
        event = Event(m.BEGIN_TRANSFERRING, Action.EXECUTE, self._clock())
        self._incoming(event, party, study_instance_uid, patient_id, sop_classes)

    def not_fetched(self, party: Party, study_instance_uid: str, patient_id: str, failure: str) -> None:
        """Something of it did not come (A.5.3.7)."""
        event = Event(
            m.INSTANCES_TRANSFERRED, Action.CREATE, self._clock(), Outcome.MINOR_FAILURE, None, failure
        )
        self._incoming(event, party, study_instance_uid, patient_id, ())

    def _incoming(
        self,
        event: Event,
        party: Party,
        study_instance_uid: str,
        patient_id: str,
        sop_classes: Iterable[str],
    ) -> None:
        source = _other(party, m.SOURCE_ROLE)
        destination = self._ourselves(m.DESTINATION_ROLE, is_requestor=True)
        study = Study(study_instance_uid, sorted(Counter(sop_classes).items()))
        self._tell(event, [source, destination], studies=[study], patient_id=patient_id)

    # ── what leaves the node ─────────────────────────────────────────────────────────────────

    def sending(
        self, party: Party, study_instance_uid: str, patient_id: str, sop_classes: Iterable[str]
    ) -> None:
        """Objects of a study are about to be sent (A.5.3.3)."""
        if counts := Counter(sop_classes):
            event = Event(m.BEGIN_TRANSFERRING, Action.EXECUTE, self._clock())
            self._outgoing(event, party, study_instance_uid, patient_id, counts, None)

    def sent(
        self,
        party: Party,
        study_instance_uid: str,
        patient_id: str,
        sop_classes: Iterable[str],
        *,
        failure: str = "",
        asked_by: Party | None = None,
    ) -> None:
        """Objects of a study were sent, or, with `failure`, were not (A.5.3.7).

        asked_by: whose C-MOVE or C-GET it was; None when the node sends by itself.
        """
        counts = Counter(sop_classes)
        if counts:
            outcome = Outcome.MINOR_FAILURE if failure else Outcome.SUCCESS
            event = Event(m.INSTANCES_TRANSFERRED, Action.CREATE, self._clock(), outcome, None, failure)
            self._outgoing(event, party, study_instance_uid, patient_id, counts, asked_by)

    def retrieved(
        self, party: Party, asked_by: Party, objects: Iterable[Belonging], failed: Iterable[Belonging]
    ) -> None:
        """A C-MOVE or C-GET has ended: a message for each study and outcome (A.5.3.7)."""
        for ones, failure in ((objects, ""), (failed, "not sent; the log names object and reason")):
            for (study, patient), classes in _by_study(ones).items():
                self.sent(party, study, patient, classes, failure=failure, asked_by=asked_by)

    def _outgoing(
        self,
        event: Event,
        party: Party,
        study_instance_uid: str,
        patient_id: str,
        counts: Mapping[str, int],
        asked_by: Party | None,
    ) -> None:
        source = self._ourselves(m.SOURCE_ROLE, is_requestor=asked_by is None)
        destination = _other(party, m.DESTINATION_ROLE, is_requestor=asked_by == party)
        third = [] if asked_by in (None, party) else [_other(asked_by, is_requestor=True)]
        study = Study(study_instance_uid, sorted(counts.items()))
        self._tell(event, [source, destination, *third], studies=[study], patient_id=patient_id)

    def queried(
        self,
        asking: Party | None,
        answering: Party | None,
        sop_class_uid: str,
        transfer_syntax_uid: str,
        identifier: bytes,
        *,
        failure: str = "",
    ) -> None:
        """A C-FIND: of a peer (`answering` is None) or of ours (`asking` is None) (A.5.3.10)."""
        outcome = Outcome.MINOR_FAILURE if failure else Outcome.SUCCESS
        event = Event(m.QUERY, Action.EXECUTE, self._clock(), outcome, None, failure)
        source = (
            self._ourselves(m.SOURCE_ROLE, is_requestor=True)
            if asking is None
            else _other(asking, m.SOURCE_ROLE, is_requestor=True)
        )
        destination = (
            self._ourselves(m.DESTINATION_ROLE)
            if answering is None
            else _other(answering, m.DESTINATION_ROLE)
        )
        query = Query(sop_class_uid, transfer_syntax_uid, identifier)
        self._tell(event, [source, destination], query=query)

    def asked(self, answering: Party, study_instance_uid: str, series_instance_uid: str = "") -> None:
        """A C-FIND of ours, for what another system has of a study, or of one of its series."""
        level = "IMAGE" if series_instance_uid else "SERIES"
        identifier = _element(0x0008, 0x0052, level) + _element(0x0020, 0x000D, study_instance_uid)
        if series_instance_uid:
            identifier += _element(0x0020, 0x000E, series_instance_uid)
        self.queried(None, answering, STUDY_ROOT_FIND, _IMPLICIT_LITTLE_ENDIAN, identifier)

    # ── what the node does with it ───────────────────────────────────────────────────────────

    def committed(
        self, party: Party, objects: Iterable[Belonging], failed: Iterable[Belonging], *, we_asked: bool
    ) -> None:
        """Storage commitment, of which PS3.15 has no event of its own: objects were looked at (A.5.3.6).

        party: whom we asked, or who asked us; the other of the two commits.
        """
        for ones, is_failure in ((objects, False), (failed, True)):
            outcome = Outcome.MINOR_FAILURE if is_failure else Outcome.SUCCESS
            text = f"storage commitment: {'not committed to' if is_failure else 'committed to'}"
            for (study, patient), classes in _by_study(ones).items():
                self._tell(
                    Event(m.INSTANCES_ACCESSED, Action.READ, self._clock(), outcome, None, text),
                    [self._ourselves(None, is_requestor=we_asked), _other(party, is_requestor=not we_asked)],
                    studies=[Study(study, sorted(Counter(classes).items()))],
                    patient_id=patient,
                )

    def accessed(self, study_instance_uid: str, patient_id: str, sop_classes: Iterable[str]) -> None:
        """A computation begins to read a study (A.5.3.6)."""
        event = Event(m.INSTANCES_ACCESSED, Action.READ, self._clock())
        self._own(event, study_instance_uid, patient_id, sop_classes)

    def deleted(self, study_instance_uid: str, patient_id: str, sop_classes: Iterable[str]) -> None:
        """Retention removed objects of a study (A.5.3.8)."""
        event = Event(m.STUDY_DELETED, Action.DELETE, self._clock())
        self._own(event, study_instance_uid, patient_id, sop_classes)

    def _own(
        self, event: Event, study_instance_uid: str, patient_id: str, sop_classes: Iterable[str]
    ) -> None:
        study = Study(study_instance_uid, sorted(Counter(sop_classes).items()))
        ourselves = self._ourselves(None, is_requestor=True)
        self._tell(event, [ourselves], studies=[study], patient_id=patient_id)

    # ── telling ──────────────────────────────────────────────────────────────────────────────

    def _ourselves(self, role: m.Code | None, *, is_requestor: bool = False) -> Participant:
        return Participant(str(os.getpid()), self._ae_title, self._host, role, is_requestor)

    def _tell(
        self,
        event: Event,
        participants: list[Participant],
        *,
        studies: Iterable[Study] = (),
        patient_id: str | None = None,
        query: Query | None = None,
        alert: str = "",
    ) -> None:
        if not self._senders:
            return
        self._tell_counted(self._clock())
        text = message(
            event,
            participants,
            self._source,
            studies=tuple(studies),
            patient_id=patient_id,
            query=query,
            alert=alert,
        )
        severity = SEVERITY_NOTICE if event.outcome is Outcome.SUCCESS else SEVERITY_WARNING
        head = header(event.at, severity, MESSAGE_ID, self._host, "dicomnode")
        for sender in self._senders:
            sender.put(head, text)


def _other(party: Party, role: m.Code | None = None, *, is_requestor: bool = False) -> Participant:
    return Participant(party.ae_title, party.ae_title, party.address, role, is_requestor)


def _by_study(objects: Iterable[Belonging]) -> dict[tuple[str, str], list[str]]:
    """(Study Instance UID, Patient ID) → SOP classes."""
    studies: dict[tuple[str, str], list[str]] = {}
    for one in objects:
        studies.setdefault((one.study_instance_uid, one.patient_id), []).append(one.sop_class_uid)
    return studies


def _element(group: int, number: int, value: str) -> bytes:
    """In implicit VR little endian (PS3.5 7.1.3)."""
    encoded = value.encode("ascii", "replace")
    encoded += b"\0" * (len(encoded) % 2)
    return struct.pack("<HHL", group, number, len(encoded)) + encoded


def _sinks(settings: Settings) -> list[Sink]:
    sinks: list[Sink] = []
    if settings.file is not None:
        sinks.append(FileSink(settings.file))
    if settings.syslog_host:
        transport = settings.syslog_transport
        port = settings.syslog_port or DEFAULT_PORTS[transport]
        if transport == "udp":
            sinks.append(UdpSink(settings.syslog_host, port))
        else:
            context = (lambda: tls_context(settings)) if transport == "tls" else None
            sinks.append(StreamSink(settings.syslog_host, port, context))
    return sinks


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Of RFC 5425 with PS3.15 B.12: TLS 1.2 or newer, the collector's certificate checked with its name.

    Read at each connection, so that a new certificate needs no restart. Raises OSError.
    """
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(TLS_1_2_CIPHERS))
    if settings.certificate is not None and settings.key is not None:
        # A key that has a password is an error, and no question on the terminal.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    return context


SILENT = Audit(Settings(), "")
"""For parts that nobody gave an audit trail: tells nobody anything."""
