"""Association → durable file → ledger → status: the first stage of the journey.

::

    A-ASSOCIATE-RQ ── peer known? called by our name? ──▶ contexts by the peer's rights
    C-STORE-RQ ── header ── same object already here? ── durable file ── batch for the ledger ──▶ 0x0000
                    └ defect ── quarantine, reason ──▶ failure status

Nothing is answered as stored unless it is on disk and will be used (PS3.4 B.2.3). Nothing is decoded
here, and no UID from the wire becomes a path before it has been checked.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicomnode.contexts import NEVER_RESULTS, echo_contexts, storage_contexts
from dicomnode.defects import SUCCESS, Defect, Flawed
from dicomnode.duplicates import compare
from dicomnode.errors import LedgerUnavailable
from dicomnode.header import Header, inspect, is_valid_uid, study_instance_uid
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.intake import Intake, instance_of
from dicomnode.spool import Note, Origin, Spool
from dicomnode.transport import POLL_S, Server

if TYPE_CHECKING:
    from dicomnode.config import Node, Peer, Receive

log = logging.getLogger(__name__)

# A-ASSOCIATE-RJ result, source, reason (PS3.8 table 9-21).
_CALLING_NOT_RECOGNIZED = (1, 1, 3)
_CALLED_NOT_RECOGNIZED = (1, 1, 7)
_LIMIT_EXCEEDED = (2, 3, 2)
_SUCCESS = Dataset()
_SUCCESS.Status = SUCCESS


class Receiver:
    """The listening side. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        node: Node,
        peers: Sequence[Peer],
        receive: Receive,
        spool: Spool,
        intake: Intake,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._peers = {peer.ae_title.strip(): peer for peer in peers}
        self._receive = receive
        self._spool = spool
        self._intake = intake
        self._clock = clock
        self._server: Server | None = None
        self._running = 0
        self._stopping = False
        self._changed = threading.Condition()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: nothing more is accepted."""
        return self._stopping

    def start(self) -> int:
        """Listen, in threads of its own. returns: the port. Raises OSError when it is taken."""
        ae = AE(self._node.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = self._receive.max_pdu
        ae.acse_timeout = self._receive.acse_timeout_s
        ae.dimse_timeout = self._receive.dimse_timeout_s
        ae.network_timeout = self._receive.network_timeout_s
        # pynetdicom counts silent connections too; `_admit` counts associations.
        ae.maximum_associations = 1_000_000
        self._server = Server(
            ae,
            (self._node.bind, self._node.port),
            echo_contexts(),
            [(evt.EVT_REQUESTED, self._admit), (evt.EVT_C_STORE, self._on_store)],
        )
        listen = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="receive", daemon=True
        )
        listen.start()
        port = self._server.server_address[1]
        log.info("listening as %s on %s:%d", self._node.ae_title, self._node.bind, port)
        return port

    def stop(self, timeout_s: float = 30.0) -> bool:
        """No new associations; running C-STOREs finish and are answered, then peers are aborted.

        returns: False when something still ran after `timeout_s`.
        """
        if self._server is None:
            return True
        end = time.monotonic() + timeout_s
        self._stopping = True
        self._server.shutdown()
        with self._changed:
            idle = self._changed.wait_for(lambda: self._running == 0, timeout_s)
        open_associations = self._server.active_associations
        for assoc in open_associations:
            assoc.abort(block=False)
        for assoc in open_associations:
            assoc.join(max(0.0, end - time.monotonic()))
        self._server = None
        return idle and not any(assoc.is_alive() for assoc in open_associations)

    # ── associations ─────────────────────────────────────────────────────────────────────────

    def _admit(self, event: Event) -> None:
        """Reject the association, or give it the contexts that its peer has a right to."""
        assoc = event.assoc
        request = cast(A_ASSOCIATE, assoc.requestor.primitive)
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        where = f"{calling!r} at {assoc.requestor.address}"
        refusal = self._refusal(assoc, calling, called)
        if refusal is not None:
            reason, code = refusal
            log.warning("association from %s rejected: %s", where, reason)
            assoc.acse.send_reject(*code)
            assoc.kill()
            return
        assoc.acceptor.supported_contexts = self._contexts(self._peers[calling])

    def _refusal(
        self, assoc: Association, calling: str, called: str
    ) -> tuple[str, tuple[int, int, int]] | None:
        if called != self._node.ae_title.strip():
            return f"it calls {called!r}, our AE title is {self._node.ae_title!r}", _CALLED_NOT_RECOGNIZED
        peer = self._peers.get(calling)
        if peer is None:
            return "no [[peers]] entry has its AE title", _CALLING_NOT_RECOGNIZED
        if peer.check_host and assoc.requestor.address not in _addresses(peer.host):
            return f"[[peers]] {peer.name!r} may call from {peer.host!r} only", _CALLING_NOT_RECOGNIZED
        assert self._server is not None
        established = sum(other.is_established for other in self._server.active_associations)
        if self._stopping or established >= self._receive.max_associations:
            return f"{established} associations are open ([receive] max_associations)", _LIMIT_EXCEEDED
        return None

    @staticmethod
    def _contexts(peer: Peer) -> list[PresentationContext]:
        echo = echo_contexts() if "echo" in peer.may else []
        return echo + (storage_contexts() if "store" in peer.may else [])

    # ── C-STORE ──────────────────────────────────────────────────────────────────────────────

    def _on_store(self, event: Event) -> Dataset:
        """Answer one C-STORE request. returns: Status, and ErrorComment when it is refused."""
        request = cast(C_STORE, event.request)
        origin = Origin(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(event.context.transfer_syntax),
            event.assoc.requestor.ae_title.strip(),
        )
        content = request.DataSet
        with memoryview(b"") if content is None else content.getbuffer() as data, self._one_more():
            try:
                if self._stopping:
                    raise Flawed(Defect.STOPPING)
                if origin.sop_class_uid != event.context.abstract_syntax:
                    raise Flawed(Defect.SOP_CLASS_MISMATCH, "the presentation context is of another class")
                self._take(origin, data)
            except Flawed as flaw:
                return self._refuse(flaw, origin, data)
            except Exception as error:
                # Whatever it was, the peer must hear that it failed.
                log.exception("receiving an object from %s failed", origin.peer)
                return self._refuse(Flawed(Defect.INTERNAL, type(error).__name__), origin, data)
        return _SUCCESS

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        """What `stop` waits for."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self, origin: Origin, data: memoryview) -> None:
        """Store an object, unless it is here already. Raises Flawed when it cannot be used."""
        header = inspect(data, origin.transfer_syntax_uid)
        if header.sop_class_uid != origin.sop_class_uid:
            raise Flawed(Defect.SOP_CLASS_MISMATCH)
        if header.sop_instance_uid != origin.sop_instance_uid:
            raise Flawed(Defect.SOP_INSTANCE_MISMATCH)
        if self._is_result(header):
            log.info("%s from %s is one of our own results", header.sop_instance_uid, origin.peer)
            return
        with self._spool.claim(header.sop_instance_uid):
            here = self._spool.find(header.study_instance_uid, header.sop_instance_uid)
            if here is not None:
                self._take_again(here, header, origin, data)
                return
            path, size_bytes = self._spool.store(header.study_instance_uid, origin, data)
            relative = self._spool.relative(path)
            self._intake.add(instance_of(header, origin, relative, size_bytes, self._clock()))

    def _is_result(self, header: Header) -> bool:
        if header.sop_class_uid in NEVER_RESULTS:
            return False
        try:
            return self._intake.is_result(header.sop_instance_uid)
        except LedgerUnavailable as error:
            raise Flawed(Defect.LEDGER_UNAVAILABLE) from error

    @staticmethod
    def _take_again(here: Path, header: Header, origin: Origin, data: memoryview) -> None:
        """The same SOP Instance UID came before: accept the same object, refuse another one."""
        study = here.parent.name
        if study != header.study_instance_uid:
            raise Flawed(Defect.OTHER_STUDY, f"study {study}", conflict_study_uid=study)
        difference = compare(here, origin, data)
        if difference.content:
            raise Flawed(Defect.OTHER_CONTENT, ", ".join(difference.content), conflict_study_uid=study)
        if difference.other:
            attributes = ", ".join(difference.other)
            log.info("%s came again from %s with other %s", here.stem, origin.peer, attributes)

    def _refuse(self, flaw: Flawed, origin: Origin, data: memoryview) -> Dataset:
        """Keep what is to be kept of a refused object, and say why."""
        answer = flaw.answer
        uid = origin.sop_instance_uid if is_valid_uid(origin.sop_instance_uid) else "an object without a UID"
        log.warning("%s from %s refused with 0x%04X: %s", uid, origin.peer, answer.status, flaw.reason)
        if answer.quarantined:
            self._set_aside(flaw, origin, data)
        status = Dataset()
        status.Status = answer.status
        status.ErrorComment = answer.sentence[:64]  # LO
        return status

    def _set_aside(self, flaw: Flawed, origin: Origin, data: memoryview) -> None:
        note = Note(
            defect=flaw.defect,
            reason=flaw.reason,
            status=flaw.answer.status,
            peer=origin.peer,
            received_at=self._clock(),
            sop_class_uid=origin.sop_class_uid,
            sop_instance_uid=origin.sop_instance_uid,
            study_instance_uid=study_instance_uid(data, origin.transfer_syntax_uid),
            transfer_syntax_uid=origin.transfer_syntax_uid,
            conflict_study_uid=flaw.conflict_study_uid,
            path="",
        )
        kept, is_new = self._spool.set_aside(note, origin, data)
        if is_new:
            self._intake.note(kept)


def _addresses(host: str) -> set[str]:
    """Every address of a host; none when its name cannot be resolved."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
