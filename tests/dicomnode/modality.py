"""A modality for the tests: small objects, a node to send them to, and bytes that no toolkit would send."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from dicomnode.audit.trail import SILENT, Audit
from dicomnode.config import Node, Peer, Receive, Tls
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.network.service import Service
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from dicomnode.reception.store import StoreService

NOW = 1_700_000_000.0
ROOMY = 1 << 50


def ct_slice(**changes: object) -> Dataset:
    """A CT slice of 4 x 6 pixels with a nested sequence."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "P1", "Doe^Jane"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99TEST", "nested"
    dataset.ProcedureCodeSequence = Items([code])
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.Rows, dataset.Columns = [1, 1], 4, 6
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.PixelData = np.arange(24, dtype="<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set's bytes as they go over the wire."""
    uid = UID(syntax)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = uid.is_implicit_VR, uid.is_little_endian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def compressed(dataset: Dataset, syntax: str) -> Dataset:
    """The same object in another transfer syntax."""
    other = copy.deepcopy(dataset)
    other.file_meta = FileMetaDataset()
    other.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    other.compress(syntax, generate_instance_uid=False)
    return other


@dataclass
class Running:
    """A node that listens, with everything behind it."""

    receiver: Receiver
    spool: Spool
    intake: Intake
    ledger: Ledger
    port: int
    data_dir: Path

    @property
    def files(self) -> list[Path]:
        """Every file of the spool, half-written ones too."""
        return sorted(path for path in (self.data_dir / "spool").rglob("*") if path.is_file())

    @property
    def kept(self) -> list[Path]:
        """Every object in quarantine."""
        return sorted((self.data_dir / "quarantine").glob("*.dcm"))


PEERS = (
    Peer(name="scanner", ae_title="SCANNER"),
    Peer(name="probe", ae_title="PROBE", may=("echo",)),
    Peer(name="silent", ae_title="STORE_ONLY", may=("store",)),
    Peer(name="elsewhere", ae_title="ELSEWHERE", host="192.0.2.1", check_host=True),
    Peer(name="here", ae_title="HERE", host="127.0.0.1", check_host=True),
)


@contextmanager
def running_node(
    data_dir: Path,
    free: int = ROOMY,
    peers: tuple[Peer, ...] = PEERS,
    tls: Tls | None = None,
    audit: Audit = SILENT,
    more: Callable[[Ledger], Sequence[Service]] = lambda _ledger: (),
    bind: str = "127.0.0.1",
    **receive: object,
) -> Iterator[Running]:
    """A node on a free port of the loopback interface, and on another one when `tls` names a port.

    more: services beside storing.
    """
    node = Node(bind=bind, data_dir=data_dir).model_copy(update={"port": 0})
    settings = Receive(min_free_gb=0, network_timeout_s=30, acse_timeout_s=30).model_copy(update=receive)
    spool = Spool(data_dir, 0, free=lambda _: free)
    ledger = Ledger.open(node.ledger_url)
    intake = Intake(spool, ledger)
    intake.recover(NOW)
    storing = StoreService(spool, intake, lambda: NOW, int(settings.max_object_gb * 1e9), audit)
    services = [storing, *more(ledger)]
    tls = tls.model_copy(update={"port": 0}) if tls is not None else None
    receiver = Receiver(node, peers, settings, services, lambda: NOW, tls, audit)
    port = receiver.start()
    try:
        yield Running(receiver, spool, intake, ledger, port, data_dir)
    finally:
        receiver.stop(5)
        ledger.close()


@contextmanager
def association(
    port: int, *contexts: tuple[str, str], calling: str = "SCANNER", called: str = "DICOMNODE"
) -> Iterator[Association]:
    """An association with one presentation context per (SOP class, transfer syntax)."""
    ae = AE(calling)
    for sop_class, syntax in contexts or ((CTImageStorage, ExplicitVRLittleEndian),):
        ae.add_requested_context(sop_class, syntax)
    assoc = ae.associate("127.0.0.1", port, ae_title=called)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def send(assoc: Association, data: bytes, sop_instance: str, sop_class: str = CTImageStorage) -> C_STORE:
    """C-STORE these bytes on the first accepted context. returns: the response."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_instance
    request.DataSet = io.BytesIO(data)
    assoc._reactor_checkpoint.clear()
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    assert isinstance(response, C_STORE), "no answer came"
    return response


def store(node: Running, dataset: Dataset, syntax: str = ExplicitVRLittleEndian, **association_: str) -> int:
    """Send one data set on an association of its own. returns: the status."""
    with association(node.port, (dataset.SOPClassUID, syntax), **association_) as assoc:
        response = send(assoc, encoded(dataset, syntax), dataset.SOPInstanceUID, dataset.SOPClassUID)
    return int(response.Status)
