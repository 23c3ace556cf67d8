"""Query/retrieve as SCU: C-FIND, C-MOVE and C-GET in the Study Root model (PS3.4 Annex C).

What a peer answers is read with suspicion: no UID is used before it has been checked, and a peer that
answers without end is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.status import QR_FIND_SERVICE_CLASS_STATUS, QR_MOVE_SERVICE_CLASS_STATUS

from dicomnode.config import Peer
from dicomnode.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE, transfer_syntaxes
from dicomnode.errors import NodeError, Transient
from dicomnode.network.send import open_association, said
from dicomnode.reception.header import is_valid_uid

MOST_MATCHES = 20_000
# Instance UIDs in one request: a list of thousands is more than some PACS take.
UIDS_PER_REQUEST = 100

_SYNTAXES = (str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian))
_PENDING = (0xFF00, 0xFF01)

log = logging.getLogger(__name__)

Store = Callable[[evt.Event, str], Dataset]
"""(C-STORE, AE title of who sends) → status: how an object of a C-GET is taken."""


class QueryRefused(NodeError):
    """A living peer answered a query with a failure."""


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """A series that a peer has."""

    uid: str
    modality: str
    objects: int | None
    """NumberOfSeriesRelatedInstances; None where the peer does not tell (PS3.4 Table C.6-3: optional)."""


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object that a peer has."""

    uid: str
    sop_class_uid: str
    """Empty where the peer does not tell."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a C-MOVE or C-GET has come to."""

    completed: int
    failed: int
    trouble: str
    """The final status in words; empty for 0x0000."""

    def __add__(self, other: Pulled) -> Pulled:
        trouble = "; ".join(dict.fromkeys(t for t in (self.trouble, other.trouble) if t))
        return Pulled(self.completed + other.completed, self.failed + other.failed, trouble)


class Source:
    """A peer that is asked over one association."""

    def __init__(self, association: Association, peer: Peer, our_ae_title: str, by: str) -> None:
        self._association = association
        self._peer = peer
        self._our_ae_title = our_ae_title
        self._by = by

    def abort(self) -> None:
        """End the association from another thread; whoever waits for an answer hears of it at once."""
        self._association.abort(block=False)
        self._association.dimse.msg_queue.put((None, None))

    def series(self, study_instance_uid: str) -> list[FoundSeries]:
        """Every series of a study. Raises QueryRefused, Transient."""
        keys = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": "", "Modality": ""}
        found = self._find("SERIES", keys | {"NumberOfSeriesRelatedInstances": None})
        with self._readable():
            return [_series_of(ds) for ds in found if is_valid_uid(_text(ds, "SeriesInstanceUID"))]

    def objects(self, study_instance_uid: str, series_instance_uid: str) -> list[FoundObject]:
        """Every object of a series. Raises QueryRefused, Transient."""
        keys = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
        found = self._find("IMAGE", keys | {"SOPInstanceUID": "", "SOPClassUID": ""})
        with self._readable():
            pairs = [(_text(ds, "SOPInstanceUID"), _text(ds, "SOPClassUID")) for ds in found]
        return [FoundObject(uid, sop_class) for uid, sop_class in pairs if is_valid_uid(uid)]

    def pull(self, study_instance_uid: str, series_instance_uid: str, uids: Sequence[str]) -> Pulled:
        """Have these objects of a series sent to us. Raises Transient when the peer stops answering."""
        total = Pulled(0, 0, "")
        for start in range(0, len(uids), UIDS_PER_REQUEST):
            query = Dataset()
            query.QueryRetrieveLevel = "IMAGE"
            query.StudyInstanceUID = UID(study_instance_uid)
            query.SeriesInstanceUID = UID(series_instance_uid)
            query.SOPInstanceUID = list(uids[start : start + UIDS_PER_REQUEST])
            total += self._pull(query)
        return total

    def _find(self, level: str, keys: dict[str, Any]) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        found: list[Dataset] = []
        for response, match in self._answers(lambda: self._association.send_c_find(query, STUDY_ROOT_FIND)):
            status = self._status(response, "C-FIND")
            if status in _PENDING:
                if match is not None:
                    found.append(match)
                if len(found) > MOST_MATCHES:
                    raise QueryRefused(f"{self._peer.name} answers with more than {MOST_MATCHES} matches")
            elif status != 0x0000:
                raise QueryRefused(self._said("C-FIND", response, QR_FIND_SERVICE_CLASS_STATUS))
        return found

    def _pull(self, query: Dataset) -> Pulled:
        command = "C-MOVE" if self._by == "move" else "C-GET"
        completed = failed = 0
        trouble = ""
        for response, _ in self._answers(lambda: self._send_pull(query)):
            status = self._status(response, command)
            # A warning is a sub-operation whose object was stored all the same.
            completed = _count(response, "Completed", completed) + _count(response, "Warning", 0)
            failed = _count(response, "Failed", failed)
            if status not in (*_PENDING, 0x0000):
                trouble = self._said(command, response, QR_MOVE_SERVICE_CLASS_STATUS)
        return Pulled(completed, failed, trouble)

    def _send_pull(self, query: Dataset) -> Iterator[tuple[Dataset, Dataset | None]]:
        if self._by == "move":
            return self._association.send_c_move(query, self._our_ae_title, STUDY_ROOT_MOVE)
        return self._association.send_c_get(query, STUDY_ROOT_GET)

    def _answers(
        self, send: Callable[[], Iterator[tuple[Dataset, Dataset | None]]]
    ) -> Iterator[tuple[Dataset, Dataset | None]]:
        try:
            yield from send()
        except ValueError as error:
            raise QueryRefused(
                f"{self._peer.name} accepted no presentation context for it: {error}"
            ) from error
        except RuntimeError as error:
            raise Transient(f"{self._peer.name} ended the association: {error}") from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Look at matches. pydicom decodes a value when it is asked for, and raises whatever it leads to."""
        try:
            yield
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:200]
            raise QueryRefused(f"{self._peer.name} answers what cannot be read: {why}") from error

    def _status(self, response: Dataset, command: str) -> int:
        status = response.get("Status")
        if status is None:
            raise Transient(f"{self._peer.name} did not answer {command}: it aborted or fell silent")
        return int(status)

    def _said(self, command: str, response: Dataset, table: dict[int, tuple[str, str]]) -> str:
        return f"{self._peer.name} answered {command} with {said(response, table)}"


@contextmanager
def source(
    peer: Peer, our_ae_title: str, timeout_s: float, by: str, sop_classes: Iterable[str], store: Store
) -> Iterator[Source]:
    """An association to ask over. sop_classes, store: what may come by C-GET, and who takes it.

    Raises NothingAccepted, and Transient when the peer cannot be reached or wants no association.
    """
    model = STUDY_ROOT_MOVE if by == "move" else STUDY_ROOT_GET
    contexts = [(str(uid), syntax) for uid in (STUDY_ROOT_FIND, model) for syntax in _SYNTAXES]
    as_scp: list[str] = []
    handlers: list[evt.EventHandlerType] = []
    if by == "get":
        as_scp = [str(uid) for uid in sop_classes]
        # One context for each, so that the peer sends every object as it has it.
        contexts += [(uid, str(syntax)) for uid in as_scp for syntax in transfer_syntaxes(uid)]
        handlers = [(evt.EVT_C_STORE, lambda event: store(event, peer.ae_title.strip()))]
    with open_association(
        peer, our_ae_title, timeout_s, contexts[:128], as_scp=as_scp, handlers=handlers
    ) as association:
        yield Source(association, peer, our_ae_title, by)


def _series_of(ds: Dataset) -> FoundSeries:
    try:
        objects = int(ds.NumberOfSeriesRelatedInstances)
    except (AttributeError, TypeError, ValueError):
        objects = None
    return FoundSeries(_text(ds, "SeriesInstanceUID"), _text(ds, "Modality").upper(), objects)


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()


def _count(response: Dataset, what: str, before: int) -> int:
    value = response.get(f"NumberOf{what}Suboperations")
    return before if value is None else int(value)
