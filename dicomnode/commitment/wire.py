"""Storage commitment over an association that the node opens (PS3.4 Annex J).

As SCU it sends N-ACTION and stays a while: some PACS report at once, over the same association. As SCP
it opens one to a modality that asked, in the SCP role, and sends N-EVENT-REPORT.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.status import STORAGE_COMMITMENT_SERVICE_CLASS_STATUS

from dicomnode.commitment.message import (
    REQUEST_STORAGE_COMMITMENT,
    EventType,
    Request,
    request_to_dataset,
)
from dicomnode.config import Peer
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomnode.errors import NodeError, Transient
from dicomnode.network.send import message_id, open_association, said

# One context for each, so that the peer may choose.
_CONTEXTS = [(str(PUSH_MODEL), str(ImplicitVRLittleEndian)), (str(PUSH_MODEL), str(ExplicitVRLittleEndian))]

OnEvent = Callable[[evt.Event], tuple[int, Dataset | None]]
"""Handler of an N-EVENT-REPORT. returns: its status, and no Event Reply."""


class RequestRefused(NodeError):
    """A living peer answered with a failure. status: the DIMSE status."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Dialogue:
    """An association over which `peer` is asked."""

    def __init__(self, association: Association, peer: Peer, reports: _Reports) -> None:
        self._association = association
        self._peer = peer
        self._reports = reports
        self._asked = self._taken = 0

    def request(self, request: Request) -> None:
        """N-ACTION. Raises RequestRefused, and Transient when there is no answer."""
        self._asked += 1
        ds = request_to_dataset(request)
        try:
            response, _ = self._association.send_n_action(
                ds,
                REQUEST_STORAGE_COMMITMENT,
                PUSH_MODEL,
                PUSH_MODEL_INSTANCE,
                msg_id=message_id(self._asked),
            )
        except RuntimeError as error:
            raise Transient(f"{self._peer.name} ended the association: {error}") from error
        _require_success(response, self._peer.name, "N-ACTION")
        self._taken += 1

    def wait(self, stay_s: float) -> None:
        """Stay until every request was reported on, so long at most, or until the peer hangs up."""
        self._reports.wait(self._taken, stay_s)


@contextmanager
def requesting(peer: Peer, our_ae_title: str, timeout_s: float, on_event: OnEvent) -> Iterator[Dialogue]:
    """An association to ask over. on_event: answers reports that come at once, in another thread.

    Raises NothingAccepted, and Transient when the peer cannot be reached or wants no association.
    """
    reports = _Reports(on_event)
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_N_EVENT_REPORT, reports.take),
        (evt.EVT_RELEASED, reports.end),
        (evt.EVT_ABORTED, reports.end),
        (evt.EVT_CONN_CLOSE, reports.end),
    ]
    with open_association(peer, our_ae_title, timeout_s, _CONTEXTS, handlers=handlers) as association:
        yield Dialogue(association, peer, reports)


def tell(peer: Peer, our_ae_title: str, timeout_s: float, event: EventType, report: Dataset) -> None:
    """Report to a peer that asked us, over an association of our own in the SCP role.

    Raises NodeError when it is not taken.
    """
    with open_association(peer, our_ae_title, timeout_s, _CONTEXTS, as_scp=[str(PUSH_MODEL)]) as association:
        tell_over(association, peer.name, event, report)


def tell_over(association: Association, name: str, event: EventType, report: Dataset) -> None:
    """Report over an association that is there already. Raises NodeError when it is not taken."""
    try:
        response, _ = association.send_n_event_report(report, int(event), PUSH_MODEL, PUSH_MODEL_INSTANCE)
    except (RuntimeError, ValueError) as error:  # it ended, or the role was not agreed upon
        raise Transient(f"{name} cannot be told on this association: {error}") from error
    _require_success(response, name, "N-EVENT-REPORT")


def _require_success(response: Dataset, name: str, command: str) -> None:
    status = response.get("Status")
    if status is None:
        raise Transient(f"{name} did not answer {command}: it aborted or fell silent")
    if status == 0x0000:
        return
    if STORAGE_COMMITMENT_SERVICE_CLASS_STATUS.get(status, ("", ""))[0] == "Warning":
        return
    text = said(response, STORAGE_COMMITMENT_SERVICE_CLASS_STATUS)
    raise RequestRefused(f"{name} answered {command} with {text}", status)


class _Reports:
    """Takes reports while another thread waits for them."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._came = 0
        self._ended = False
        self._changed = threading.Condition()

    def take(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer one."""
        try:
            return self._on_event(event)
        finally:
            with self._changed:
                self._came += 1
                self._changed.notify_all()

    def end(self, _event: evt.Event) -> None:
        """No more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, count: int, timeout_s: float) -> None:
        """Until so many have come, or no more can, or that time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._came >= count or self._ended, timeout_s)
