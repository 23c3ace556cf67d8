"""C-STORE → durable file → ledger → status: the first stage of the journey.

::

    C-STORE-RQ ── header ── same object already here? ── durable file ── batch for the ledger ──▶ 0x0000
                    └ defect ── quarantine, reason ──▶ failure status

Nothing is answered as stored unless it is on disk and will be used (PS3.4 B.2.3). Nothing is decoded
here, and no UID from the wire becomes a path before it has been checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from dicomnode.audit.message import Action
from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.contexts import NEVER_RESULTS, storage_contexts
from dicomnode.errors import LedgerUnavailable
from dicomnode.reception.defects import SUCCESS, Defect, Flawed
from dicomnode.reception.duplicates import compare
from dicomnode.reception.header import Header, inspect, is_valid_uid, study_instance_uid
from dicomnode.reception.incoming import ANYWHERE, Scratch
from dicomnode.reception.intake import Intake, instance_of
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin

if TYPE_CHECKING:
    from dicomnode.config import Right

log = logging.getLogger(__name__)

_SUCCESS = Dataset()
_SUCCESS.Status = SUCCESS


@dataclass(frozen=True, slots=True)
class _Taken:
    """An accepted object, and whether it was not there before."""

    header: Header
    is_new: bool


class StoreService:
    """The Storage SCP (PS3.4 Annex B). `clock` gives seconds since the epoch."""

    def __init__(
        self,
        spool: Spool,
        intake: Intake,
        clock: Callable[[], float] = time.time,
        max_object_bytes: int = ANYWHERE.limit_bytes,
        audit: Audit = SILENT,
    ) -> None:
        """max_object_bytes: what a deflated object may inflate to."""
        self._scratch = Scratch(spool.data_dir, max_object_bytes)
        self._spool = spool
        self._intake = intake
        self._clock = clock
        self._audit = audit
        self._stopping = False
        # What was warned of over an association is not said again over it.
        self._doubted: WeakKeyDictionary[Association, frozenset[str]] = WeakKeyDictionary()

    @property
    def right(self) -> Right:
        """What `config.Peer.may` must hold."""
        return "store"

    def contexts(self) -> list[PresentationContext]:
        """The storage classes."""
        return storage_contexts()

    def handlers(self) -> list[evt.EventHandlerType]:
        """C-STORE, and the end of an association, which the audit trail tells of."""
        return [(evt.EVT_C_STORE, self._on_store), (evt.EVT_CONN_CLOSE, self._on_end)]

    def stop(self) -> None:
        """Objects that come from now on are refused."""
        self._stopping = True

    def _on_store(self, event: Event) -> Dataset:
        return self.take(event, event.assoc.requestor.ae_title.strip())

    def take(self, event: Event, peer: str) -> Dataset:
        """Answer one C-STORE request, also one within a C-GET of ours. peer: AE title of who sends.

        returns: Status, and ErrorComment when it is refused.
        """
        request = cast(C_STORE, event.request)
        origin = Origin(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(event.context.transfer_syntax),
            peer,
        )
        try:
            whole = memoryview(b"") if request.DataSet is None else request.DataSet.getbuffer()
        except Flawed as flaw:  # too large, or the disk is full
            return self._refuse(flaw, origin, memoryview(b""))
        with whole as data:
            try:
                if self._stopping:
                    raise Flawed(Defect.STOPPING)
                if origin.sop_class_uid != event.context.abstract_syntax:
                    raise Flawed(Defect.SOP_CLASS_MISMATCH, "the presentation context is of another class")
                taken = self._take(origin, data)
            except Flawed as flaw:
                self._tell_refused(event, origin, data)
                return self._refuse(flaw, origin, data)
            except Exception as error:
                # Whatever it was, the peer must hear that it failed.
                log.exception("receiving an object from %s failed", origin.peer)
                self._tell_refused(event, origin, data)
                return self._refuse(Flawed(Defect.INTERNAL, type(error).__name__), origin, data)
        self._tell_taken(event, peer, taken)
        if taken.header.unknown_character_set:
            self._doubt(event.assoc, peer, taken.header)
        return _SUCCESS

    def _doubt(self, assoc: Association, peer: str, header: Header) -> None:
        """Names that nobody can read for certain are accepted, with one line for each character set."""
        doubted, name = self._doubted.get(assoc, frozenset()), header.unknown_character_set
        if name not in doubted:
            self._doubted[assoc] = doubted | {name}
            text = "%s from %s has the Specific Character Set %r, which is unknown: names may be read wrongly"
            log.warning(text, header.sop_instance_uid, peer, name)

    def _tell_taken(self, event: Event, peer: str, taken: _Taken) -> None:
        header, action = taken.header, Action.CREATE if taken.is_new else Action.READ
        study, patient, sop_class = header.study_instance_uid, header.patient_id, header.sop_class_uid
        assoc, party, ours = self._listening_to(event, peer)
        self._audit.received(assoc, party, study, patient, sop_class, action=action, we_asked=ours)

    def _tell_refused(self, event: Event, origin: Origin, data: memoryview) -> None:
        if self._audit.is_kept:
            study = study_instance_uid(data, origin.transfer_syntax_uid)
            assoc, party, ours = self._listening_to(event, origin.peer)
            sop_class = origin.sop_class_uid
            self._audit.received(assoc, party, study, "", sop_class, stored=False, we_asked=ours)

    def _listening_to(self, event: Event, peer: str) -> tuple[Association, Party, bool]:
        """The association, who is at its other end, and whether it is ours; of its end we hear, too."""
        assoc = event.assoc
        if assoc.is_requestor:
            assoc.bind(evt.EVT_CONN_CLOSE, self._on_end)
        return assoc, Party.at_the_other_end(assoc, peer), assoc.is_requestor

    def _on_end(self, event: Event) -> None:
        self._audit.ended(event.assoc)

    def _take(self, origin: Origin, data: memoryview) -> _Taken:
        """Store an object, unless it is here already. Raises Flawed when it cannot be used."""
        header = inspect(data, origin.transfer_syntax_uid, self._scratch)
        if header.sop_class_uid != origin.sop_class_uid:
            raise Flawed(Defect.SOP_CLASS_MISMATCH)
        if header.sop_instance_uid != origin.sop_instance_uid:
            raise Flawed(Defect.SOP_INSTANCE_MISMATCH)
        if self._is_result(header):
            log.info("%s from %s is one of our own results", header.sop_instance_uid, origin.peer)
            return _Taken(header, is_new=False)
        with self._spool.claim(header.sop_instance_uid):
            here = self._spool.find(header.study_instance_uid, header.sop_instance_uid)
            if here is not None:
                self._take_again(here, header, origin, data)
                self._intake.again(header.sop_instance_uid, here)
                return _Taken(header, is_new=False)
            path, size_bytes = self._spool.store(header.study_instance_uid, origin, data)
            relative = self._spool.relative(path)
            self._intake.add(instance_of(header, origin, relative, size_bytes, self._clock()))
        return _Taken(header, is_new=True)

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
        path = self._set_aside(flaw, origin, data) if answer.quarantined else ""
        reason = f"{flaw.reason}; set aside as {path}" if path else flaw.reason
        log.warning("%s from %s refused with 0x%04X: %s", uid, origin.peer, answer.status, reason)
        status = Dataset()
        status.Status = answer.status
        status.ErrorComment = answer.sentence
        return status

    def _set_aside(self, flaw: Flawed, origin: Origin, data: memoryview) -> str:
        """Keep it, with its reason. returns: its path relative to data_dir; empty where there is no room."""
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
        return kept.path
