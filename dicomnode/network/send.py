"""The Storage SCU: encoded objects from disk to one peer over one association (PS3.4 Annex B).

Memory. pynetdicom can send a file without decoding it, but puts all of its PDUs in a queue without
an end, so that a 140 MB map lies in memory whole and the wait for the answer begins before its first
byte has left. Here the queue holds a few PDUs (`_Window`): the file is read as fast as the network
takes it.

Who is at fault. A peer that answers with a failure or does not accept a presentation context has
*refused* the object: waiting will not help. A peer that cannot be connected to, aborts, falls silent, is
out of resources or wants no association with us takes no object at all, and may in a minute or when
somebody has seen to it: `Transient`.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association, ServiceUser
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification, UserIdentityNegotiation
from pynetdicom.presentation import build_context, build_role
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, VERIFICATION_SERVICE_CLASS_STATUS

from dicomnode.config import Peer
from dicomnode.contexts import VERIFICATION
from dicomnode.errors import NodeError, Transient
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.network import iocm
from dicomnode.network.answers import Answers
from dicomnode.network.identity import USERNAME, USERNAME_AND_PASSCODE, password_to_send
from dicomnode.tls import caller

# pynetdicom offers this as a module global only. It is set once, here, and concerns objects that are sent
# by their path: results, and what a peer retrieves.
_config.STORE_SEND_CHUNKED_DATASET = True

# Warnings of PS3.4 Table B.2-1: the object is stored.
STORED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})

# A peer may take PDUs of any length (0) or of many megabytes; a shorter one is always allowed.
LARGEST_PDU_BYTES = 131072
WINDOW_PDUS = 8


class Verdict(StrEnum):
    """What became of an object."""

    STORED = "STORED"
    """The peer has it."""
    REFUSED = "REFUSED"
    """The peer is alive and does not take it."""
    NEEDLESS = "NEEDLESS"
    """A rejection note that names what the peer lacks or has rejected: it takes nothing of the note."""
    OUT_OF_RESOURCES = "OUT OF RESOURCES"
    """The peer is alive and can store nothing at the moment: no fault of the object."""
    UNANSWERED = "UNANSWERED"
    """It was sent and no answer came: the peer may have it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An object on disk, a DICOM file with its meta information."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer said to one object."""

    verdict: Verdict
    status: int | None
    """DIMSE status; None when the object was not sent or no answer came."""
    text: str
    """The status in words, with the peer's own comment; empty for 0x0000."""


def send(
    peer: Peer,
    files: Sequence[Outgoing],
    our_ae_title: str,
    timeout_s: float,
    on_answer: Callable[[Outgoing, Answer], None],
) -> None:
    """Store `files` on `peer`; `on_answer` hears of each as soon as its answer is there.

    Raises Transient when the peer cannot be reached, rejects the association or stops answering; the
    objects that `on_answer` did not hear of were not sent then. The same, after all were sent, when it was
    out of resources for one of them.
    """
    if not files:
        return
    lacking: list[Answer] = []

    def heard(file: Outgoing, answer: Answer) -> None:
        if answer.verdict is Verdict.OUT_OF_RESOURCES:
            lacking.append(answer)
        on_answer(file, answer)

    contexts = sorted({(file.sop_class_uid, file.transfer_syntax_uid) for file in files})
    try:
        with open_association(peer, our_ae_title, timeout_s, contexts) as association:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            for number, file in enumerate(files, start=1):
                if (file.sop_class_uid, file.transfer_syntax_uid) in accepted:
                    _store(association, peer, file, number, heard)
                else:
                    on_answer(file, Answer(Verdict.REFUSED, None, _no_context(file)))
    except NothingAccepted:
        for file in files:
            on_answer(file, Answer(Verdict.REFUSED, None, _no_context(file)))
    if lacking:
        raise _out_of_resources(peer, lacking[0])


def echo(peer: Peer, our_ae_title: str, timeout_s: float) -> None:
    """C-ECHO. Raises NodeError with the reason when the peer does not answer it with success."""
    contexts = [(str(VERIFICATION), str(ImplicitVRLittleEndian))]
    with open_association(peer, our_ae_title, timeout_s, contexts) as association:
        response = association.send_c_echo()
    status = response.get("Status")
    if status is None:
        raise Transient(f"{_name(peer)} did not answer C-ECHO within {timeout_s:g} s")
    if status != 0x0000:
        text = said(response, VERIFICATION_SERVICE_CLASS_STATUS)
        raise NodeError(f"{_name(peer)} answered C-ECHO with {text}")


def _store(
    association: Association,
    peer: Peer,
    file: Outgoing,
    number: int,
    on_answer: Callable[[Outgoing, Answer], None],
) -> None:
    if not association.is_established:
        raise Transient(f"{_name(peer)} ended the association before everything was sent")
    try:
        answer = _judge(association.send_c_store(file.path, msg_id=message_id(number)), file.sop_class_uid)
    except (AttributeError, ValueError, OSError, InvalidDicomError) as error:
        answer = Answer(Verdict.REFUSED, None, f"{file.path.name} cannot be read: {error}")
    except RuntimeError as error:  # the association ended since the check above
        raise Transient(f"{_name(peer)} ended the association: {error}") from error
    on_answer(file, answer)
    if answer.verdict is Verdict.UNANSWERED:
        raise Transient(f"{_name(peer)} {answer.text} while {file.path.name} was sent")


def _judge(response: Dataset, sop_class_uid: str) -> Answer:
    status = response.get("Status")
    if status is None:
        return Answer(Verdict.UNANSWERED, None, "aborted, closed the connection or fell silent")
    if status == 0x0000:
        return Answer(Verdict.STORED, status, "")
    if own := iocm.words(status, sop_class_uid):
        text = said(response, {status: ("", own)})
        if status == iocm.DUPLICATE_REJECTION_NOTE:
            return Answer(Verdict.STORED, status, text)
        return Answer(Verdict.NEEDLESS if status in iocm.NEEDLESS else Verdict.REFUSED, status, text)
    text = said(response, STORAGE_SERVICE_CLASS_STATUS)
    if status & 0xFF00 == 0xA700:  # PS3.4 Table B.2-1
        return Answer(Verdict.OUT_OF_RESOURCES, status, text)
    return Answer(Verdict.STORED if status in STORED else Verdict.REFUSED, status, text)


def _out_of_resources(peer: Peer, answer: Answer) -> Transient:
    """Without the peer's comment, which may name the patient."""
    status = answer.status or 0xA700
    # What the Standard gives a meaning is a lack of room; the rest of 0xA7xx is each peer's own.
    remedy = f"Make room on {peer.name}" if status <= 0xA702 else f"Look into the log of {peer.name}"
    return Transient(f"{_name(peer)} is out of resources: it answered 0x{status:04X} to C-STORE", remedy)


def said(response: Dataset, table: Mapping[int, tuple[str, str]]) -> str:
    """What a response with a status says: '0xA700 Refused: Out of Resources: disk full'.

    table: of its service class (pynetdicom.status).
    """
    status = int(response.Status)
    words = table.get(status, ("", "unknown status"))[1]
    comment = str(response.get("ErrorComment", "") or "").strip()
    return f"0x{status:04X} {words}".strip() + (f": {comment}" if comment else "")


def message_id(number: int) -> int:
    """Of the request with that number, from 1 on, of an association: 16 bits (PS3.7 Table 9.1-1)."""
    return (number - 1) % 65535 + 1


def _no_context(file: Outgoing) -> str:
    return (
        f"no presentation context accepted for SOP class {file.sop_class_uid} "
        f"in transfer syntax {file.transfer_syntax_uid}"
    )


def _name(peer: Peer) -> str:
    return f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"


class NothingAccepted(NodeError):
    """A living peer accepted none of the presentation contexts: waiting will not help."""


@contextmanager
def open_association(
    peer: Peer,
    our_ae_title: str,
    timeout_s: float,
    contexts: Sequence[tuple[str, str]],
    *,
    as_scp: Sequence[str] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
) -> Iterator[Association]:
    """An established association, released at the end and aborted when the block raises.

    contexts: (abstract syntax, transfer syntax). as_scp: abstract syntaxes of which we propose to be
    the SCP (PS3.7 D.3.3.4). handlers: pynetdicom's, for requests of the peer; they run in the
    association's own thread, while this one waits for answers.
    Raises NothingAccepted; Transient when nobody answers, or a peer rejects the association: a wrong AE
    title or a licence that ran out says nothing of what it would be for, and is mended one day.
    """
    answers = Answers(peer.name)
    association, connected = _associate(peer, our_ae_title, timeout_s, contexts, as_scp, handlers, answers)
    if not association.is_established:
        raise _why_not(association, connected, peer, timeout_s)
    try:
        _pace(association)
        yield association
    except BaseException:
        association.abort()
        raise
    answers.release()


def _associate(
    peer: Peer,
    our_ae_title: str,
    timeout_s: float,
    contexts: Sequence[tuple[str, str]],
    as_scp: Sequence[str],
    handlers: Sequence[evt.EventHandlerType],
    answers: Answers,
) -> tuple[Association, bool]:
    """Ask for an association. returns: it, established or not, and whether TCP connected."""
    if not peer.host or peer.port is None:
        raise NodeError(f"peer {peer.name} has no address", 'Give its [[peers]] entry "host" and "port"')
    ae = AE(our_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = timeout_s
    # Silence is bounded by the socket's own timeout; sending a large object is no silence.
    ae.network_timeout = None

    tls = caller(peer) if peer.tls else None
    connected = threading.Event()

    def tune(event: evt.Event) -> None:
        connected.set()
        answers.attend(event.assoc)
        wire = cast(Any, event.assoc.dul.socket).socket
        # Without it Nagle's algorithm waits 40 ms for an acknowledgement in every message.
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.settimeout(timeout_s)

    try:
        association = ae.associate(
            peer.host,
            peer.port,
            contexts=[build_context(sop_class, syntax) for sop_class, syntax in contexts],
            ae_title=peer.ae_title,
            ext_neg=[*(build_role(uid, scp_role=True) for uid in as_scp), *_identity(peer)],
            tls_args=tls[:2] if tls else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, tune), *handlers],
        )
    except OSError as error:  # the name does not resolve
        raise Transient(f"{_name(peer)} cannot be reached: {error.strerror or error}") from error
    if tls and tls[2]:
        raise Transient(
            f"{_name(peer)}: no TLS connection: {tls[2][0]}",
            "Check its port, its certificate against [tls] ca, and certificate_name of its [[peers]] entry",
        )
    return association, connected.is_set()


def _identity(peer: Peer) -> list[UserIdentityNegotiation]:
    """Our user name, and password, for peers that want one (PS3.7 D.3.3.7)."""
    if not peer.send_user:
        return []
    identity, password = UserIdentityNegotiation(), password_to_send(peer)
    identity.user_identity_type = USERNAME_AND_PASSCODE if password else USERNAME
    identity.primary_field = peer.send_user.encode()
    identity.secondary_field = password
    return [identity]


def _why_not(association: Association, connected: bool, peer: Peer, timeout_s: float) -> NodeError:
    """Why there is no association: nothing for us with a living peer, or nobody there."""
    if answer := rejection(association):
        reason = f"{_name(peer)} rejected the association: {answer.reason_str}"
        ours = association.requestor.ae_title.strip()
        # PS3.8 Table 9-21: 1 rejected-permanent, 2 rejected-transient.
        for_good = f"Let {peer.name} know {ours}; check that it is {peer.ae_title}, and its licence"
        return Transient(reason, for_good if answer.result == 1 else "")
    if association.rejected_contexts:
        return NothingAccepted(f"{_name(peer)} accepted no presentation context")
    if connected:
        text = f"takes the connection but granted no association within {timeout_s:g} s"
        over = ", and over TLS that it accepts our certificate" if peer.tls else ", and without TLS"
        return Transient(f"{_name(peer)} {text}", f"Check that a DICOM service listens on that port{over}")
    return Transient(
        f"{_name(peer)} cannot be reached: nothing takes the connection",
        "Check that it runs, its host and port in [[peers]], and the firewall",
    )


def rejection(association: Association) -> Any:
    """What a peer said that wants no association: A-ASSOCIATE with result, source, diagnostic; else None.

    pynetdicom asks whether TCP has connected when the connection may be over already: a peer that rejects at
    once is then taken for one that cannot be reached, and its answer is left unread.
    """
    if association.is_rejected:
        return association.acceptor.primitive
    unread = association.dul.peek_next_pdu()
    return unread if isinstance(unread, A_ASSOCIATE) and unread.result in (1, 2) else None


def _pace(association: Association) -> None:
    """Let no more of an object be read than the network has taken."""
    association.dul.to_provider_queue = _Window(association.dul)
    shorten_pdus(association.acceptor)


def shorten_pdus(peer: ServiceUser) -> None:
    """Send it no longer ones than LARGEST_PDU_BYTES, whatever it takes. peer: who is at the other end."""
    for item in peer.user_information:
        if isinstance(item, MaximumLengthNotification):
            asked = item.maximum_length_received or LARGEST_PDU_BYTES
            item.maximum_length_received = min(asked, LARGEST_PDU_BYTES)


class _Window(queue.Queue[Any]):
    """The PDUs between the reader of the file and the thread that owns the socket: few."""

    def __init__(self, dul: Any) -> None:
        super().__init__(maxsize=WINDOW_PDUS)
        self._dul = dul

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Wait for room as long as the connection lives; then let the PDU go, nobody will send it."""
        while self._dul.is_alive():
            try:
                return super().put(item, block, timeout or 0.2)
            except queue.Full:
                continue
        return None
