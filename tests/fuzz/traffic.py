"""Valid traffic: one association with every service of the node, captured on its way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from tests.dicomnode.modality import ct_slice
from tests.fuzz.wire import ASSOCIATE_RQ, pdus, values

_CONTEXTS = (
    (Verification, ImplicitVRLittleEndian),
    (CTImageStorage, ExplicitVRLittleEndian),
    (CTImageStorage, ImplicitVRLittleEndian),
    (StudyRootQueryRetrieveInformationModelFind, ExplicitVRLittleEndian),
    (PatientRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian),
    (StudyRootQueryRetrieveInformationModelMove, ExplicitVRLittleEndian),
    (StudyRootQueryRetrieveInformationModelGet, ExplicitVRLittleEndian),
    (StorageCommitmentPushModel, ExplicitVRLittleEndian),
)
_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"


def slice_for_ever(**changes: object) -> Dataset:
    """A CT slice whose UIDs are the same in every run: with a seed the inputs are, too."""
    uids = {
        keyword: same_uid(keyword)
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    return ct_slice(**uids, **changes)


def same_uid(name: str) -> UID:
    """The same for the same name."""
    return generate_uid(entropy_srcs=["fuzz", name])


@dataclass(frozen=True, slots=True)
class Message:
    """A request, as it went over the wire."""

    context_id: int
    command: bytes
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the client sent."""

    stream: bytes
    """All of it, from A-ASSOCIATE-RQ to A-RELEASE-RQ."""
    request: bytes
    """A-ASSOCIATE-RQ."""
    messages: tuple[Message, ...]

    def of(self, command_field: int) -> list[Message]:
        """Requests of a kind (PS3.7 E.1)."""
        wanted = b"\0\0\0\1\2\0\0\0" + command_field.to_bytes(2, "little")
        return [m for m in self.messages if wanted in m.command]


def capture(port: int) -> Traffic:
    """Ask the node for everything that it offers. Raises AssertionError when it does not answer."""
    with _tap(port) as (tapped, sent):
        ae = AE("FUZZER")
        for abstract_syntax, syntax in _CONTEXTS:
            ae.add_requested_context(abstract_syntax, syntax)
        handlers: list[evt.EventHandlerType] = [(evt.EVT_N_EVENT_REPORT, lambda _: (0x0000, None))]
        association = ae.associate("127.0.0.1", tapped, ae_title="DICOMNODE", evt_handlers=handlers)
        assert association.is_established
        dataset = slice_for_ever()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(dataset).Status == 0
        _ask(association, dataset)
        association.release()
    stream = bytes(sent)
    return Traffic(stream, next(p for p in pdus(stream) if p[0] == ASSOCIATE_RQ), tuple(_messages(stream)))


def _ask(peer: Any, dataset: Dataset) -> None:
    for root, level in (
        (StudyRootQueryRetrieveInformationModelFind, "STUDY"),
        (PatientRootQueryRetrieveInformationModelFind, "PATIENT"),
    ):
        assert [status.Status for status, _ in peer.send_c_find(_identifier(dataset, level), root)][-1] == 0
    one = Dataset()
    one.QueryRetrieveLevel, one.StudyInstanceUID = "STUDY", same_uid("nowhere")
    list(peer.send_c_move(one, "NOBODY", StudyRootQueryRetrieveInformationModelMove))
    list(peer.send_c_get(one, StudyRootQueryRetrieveInformationModelGet))
    action, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    action.TransactionUID, action.ReferencedSOPSequence = same_uid("transaction"), Sequence([item])
    peer.send_n_action(action, 1, StorageCommitmentPushModel, _COMMITMENT_INSTANCE)


def _identifier(dataset: Dataset, level: str) -> Dataset:
    keys = Dataset()
    keys.SpecificCharacterSet, keys.QueryRetrieveLevel = "ISO_IR 100", level
    keys.PatientName, keys.PatientID = "Doe*", "P?"
    keys.StudyDate, keys.StudyTime = "20200101-20301231", "-235959"
    keys.StudyInstanceUID = [dataset.StudyInstanceUID, same_uid("other")]
    keys.ModalitiesInStudy, keys.NumberOfStudyRelatedInstances = "CT", None
    item = Dataset()
    item.PatientID, item.IssuerOfPatientID = "P*", "Ä"
    keys.OtherPatientIDs, keys.OtherPatientIDsSequence = "1", Sequence([item])
    keys.RequestAttributesSequence = Sequence([])
    return keys


def _messages(stream: bytes) -> Iterator[Message]:
    command, data, waiting = b"", b"", 0
    for context_id, control, fragment in values(stream):
        if control & 1:
            if command and not data:
                yield Message(waiting, command, None)
            command, data, waiting = fragment, b"", context_id
        else:
            data += fragment
            if control & 2:
                yield Message(context_id, command, data)
                command, data = b"", b""
    if command:
        yield Message(waiting, command, None)


@contextmanager
def _tap(port: int) -> Iterator[tuple[int, bytearray]]:
    """A relay for one connection. yields: its port, and what came from the caller."""
    sent = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        while data := source.recv(65536):
            if kept is not None:
                kept += data
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        caller, _ = listener.accept()
        peer = socket.create_connection(("127.0.0.1", port))
        back = threading.Thread(target=relay, args=(peer, caller, None), daemon=True)
        back.start()
        relay(caller, peer, sent)
        back.join()
        caller.close()
        peer.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield int(listener.getsockname()[1]), sent
    thread.join(10)
    listener.close()
