"""The C-STORE sub-operations of a retrieval, and what is told of them (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dsutils import encode
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicomnode.network.send import STORED, message_id, said
from dicomnode.query.identifier import UNABLE_TO_PERFORM
from dicomnode.query.objects import Files, Unsendable
from dicomnode.query.replies import Replies
from dicomnode.records import HeldObject

log = logging.getLogger(__name__)

_SUCCESS, _PENDING, _WARNING, _CANCELLED = 0x0000, 0xFF00, 0xB000, 0xFE00
# A value of VR UI has at most 64 KiB in explicit VR; more UIDs than that are not named.
_MAX_LIST_BYTES = 65534


@dataclass(slots=True)
class Progress:
    """Of one retrieval."""

    remaining: int
    completed: int = 0
    failed: list[str] = field(default_factory=list)
    """SOP Instance UIDs."""
    warned: int = 0

    def stored(self, with_warning: bool) -> None:
        """One more has arrived."""
        self.remaining -= 1
        self.warned += with_warning
        self.completed += not with_warning

    def fail(self, sop_instance_uid: str) -> None:
        """One more has not."""
        self.remaining -= 1
        self.failed.append(sop_instance_uid)

    @property
    def ended(self) -> int:
        """How many sub-operations are over."""
        return self.completed + self.warned + len(self.failed)

    @property
    def status(self) -> int:
        """What the final response says when nothing remains."""
        if self.failed and not (self.completed or self.warned):
            return UNABLE_TO_PERFORM
        return _WARNING if self.failed or self.warned else _SUCCESS

    def __str__(self) -> str:
        return f"{self.completed} completed, {len(self.failed)} failed, {self.warned} with a warning"


class Retrieved(Replies):
    """Responses to one C-MOVE or C-GET request."""

    def __init__(self, event: evt.Event) -> None:
        super().__init__(event)
        self._syntax = UID(event.context.transfer_syntax)

    def pending(self, progress: Progress) -> None:
        """One sub-operation more has ended."""
        self._tell(_PENDING, progress, remaining=True)

    def final(self, progress: Progress, *, cancelled: bool = False) -> None:
        """All have ended, or the peer wants no more."""
        status = _CANCELLED if cancelled else progress.status
        self._tell(status, progress, remaining=cancelled, failed=progress.failed)

    def _tell(self, status: int, progress: Progress, *, remaining: bool, failed: Sequence[str] = ()) -> None:
        answer = self.answer(status)
        if remaining:
            answer.NumberOfRemainingSuboperations = progress.remaining
        answer.NumberOfCompletedSuboperations = progress.completed
        answer.NumberOfFailedSuboperations = len(progress.failed)
        answer.NumberOfWarningSuboperations = progress.warned
        if failed:
            answer.Identifier = BytesIO(self._list_of(failed))
        self.send(answer)

    def _list_of(self, failed: Sequence[str]) -> bytes:
        room, named = _MAX_LIST_BYTES, []
        for uid in failed:
            room -= len(uid) + 1
            if room < 0:
                break
            named.append(uid)
        identifier = Dataset()
        identifier.FailedSOPInstanceUIDList = named
        return encode(identifier, self._syntax.is_implicit_VR, self._syntax.is_little_endian) or b""


@dataclass(frozen=True, slots=True)
class Route:
    """An association over which objects are stored. originator: of a C-MOVE, AE title and message ID."""

    assoc: Association
    files: Files
    originator: tuple[str, int] | None = None

    def store(self, held: HeldObject, number: int) -> bool:
        """One sub-operation. returns: whether the peer had a warning. Raises NotStored."""
        accepted = {
            str(context.transfer_syntax[0])
            for context in self.assoc.accepted_contexts
            if context.abstract_syntax == held.sop_class_uid and context.as_scu
        }
        try:
            with self.files.fitting(held, accepted) as path:
                ae_title, request_id = self.originator or (None, None)
                response = self.assoc.send_c_store(
                    path, message_id(number), originator_aet=ae_title, originator_id=request_id
                )
        except Unsendable as error:
            raise NotStored(str(error)) from None
        except (AttributeError, ValueError, OSError, RuntimeError) as error:
            raise NotStored(f"it cannot be sent: {error}") from error
        status = response.get("Status")
        if status is None:
            raise NotStored("the receiver aborted, closed the connection or fell silent")
        if status not in STORED:
            raise NotStored(f"the receiver answered {said(response, STORAGE_SERVICE_CLASS_STATUS)}")
        return bool(status != _SUCCESS)


class NotStored(Exception):
    """A sub-operation has failed. The message says why."""


def perform(
    route: Route, objects: list[HeldObject], progress: Progress, replies: Retrieved, ended: Callable[[], bool]
) -> None:
    """Store the objects one after the other, as long as the association lives and `ended` does not say so.

    After it, `progress` knows of every object but those that `ended` has left.
    """
    for held in objects:
        if ended():
            return
        try:
            if not route.assoc.is_established:
                raise NotStored("the association has ended")
            progress.stored(route.store(held, progress.ended + 1))
        except NotStored as error:
            log.warning("%s was not stored on %s: %s", held.sop_instance_uid, _receiver(route), error)
            progress.fail(held.sop_instance_uid)
        if progress.remaining:
            replies.pending(progress)


def _receiver(route: Route) -> str:
    user = route.assoc.acceptor if route.originator is not None else route.assoc.requestor
    return user.ae_title.strip()
