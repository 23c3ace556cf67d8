"""Storage commitment that peers ask of us: N-ACTION → ledger → status (PS3.4 Annex J, as SCP).

The request is put into the ledger and answered; `commitment_answer` looks at the objects and reports. To
commit is to say that an object is durable here and that retention alone will remove it: docs/conformance.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.commitment.message import (
    PUSH_MODEL_SYNTAXES,
    REQUEST_STORAGE_COMMITMENT,
    Malformed,
    Request,
    Status,
    of_a_peer,
    request_of,
    require_few_items,
)
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger

if TYPE_CHECKING:
    from dicomnode.config import AnyRight, Peer
    from dicomnode.network.transport import AcceptedAssociation

log = logging.getLogger(__name__)


class OpenAssociations:
    """Associations over which was asked and that may still be open, by the number of the promise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._associations: dict[int, AcceptedAssociation] = {}

    def put(self, promise_id: int, association: AcceptedAssociation) -> None:
        """Asked over this one."""
        with self._lock:
            self._associations = {n: a for n, a in self._associations.items() if a.is_established}
            self._associations[promise_id] = association

    @contextmanager
    def take(self, promise_id: int) -> Iterator[AcceptedAssociation | None]:
        """The association, if its requestor keeps it open and nothing is asked over it just now.

        Until the block ends its own thread begins no request. It is given out once, and again only when
        it was busy.
        """
        with self._lock:
            association = self._associations.pop(promise_id, None)
        if association is None or not association.is_established:
            yield None
        elif not association.turn.acquire(blocking=False):
            self.put(promise_id, association)
            yield None
        else:
            try:
                yield association
            finally:
                association.turn.release()


# Of one peer: a modality asks once for a study; more is a peer that asks and never listens.
MAX_UNANSWERED = 1000


class CommitmentService:
    """The Storage Commitment SCP.

    flush: tells the ledger of what was received before it is asked about. clock: seconds since the epoch.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        ledger: Ledger,
        flush: Callable[[float], object],
        associations: OpenAssociations,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peers = {peer.ae_title.strip(): peer for peer in peers}
        self._ledger = ledger
        self._flush = flush
        self._associations = associations
        self._clock = clock
        self._stopping = False

    @property
    def right(self) -> AnyRight:
        """What `config.Peer.rights` must hold."""
        return "commit"

    def contexts(self) -> list[PresentationContext]:
        """The peer is the SCU; it may propose to be no SCP."""
        context = build_context(PUSH_MODEL, PUSH_MODEL_SYNTAXES)
        context.scu_role, context.scp_role = True, False
        return [context]

    def handlers(self) -> list[evt.EventHandlerType]:
        """N-ACTION."""
        return [(evt.EVT_N_ACTION, self._on_action)]

    def stop(self) -> None:
        """Requests that come from now on are refused."""
        self._stopping = True

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer one request. returns: status, no Action Reply."""
        ae_title = event.assoc.requestor.ae_title.strip()
        try:
            request = self._read(event, ae_title)
            if self._ledger.unanswered(ae_title) >= MAX_UNANSWERED:
                raise Malformed(
                    f"{MAX_UNANSWERED} of its requests wait to be reported on", Status.RESOURCE_LIMITATION
                )
            # What was acknowledged a moment ago is durable, but the ledger may not have heard of it.
            now = self._clock()
            self._flush(now)
            promised = self._ledger.promise(ae_title, request.transaction_uid, request.objects, now)
            if promised is None:
                text = f"it has asked about other objects in transaction {request.transaction_uid}"
                raise Malformed(text, Status.DUPLICATE_TRANSACTION_UID)
        except Malformed as flaw:
            log.warning("a storage commitment request of %s is refused: %s", ae_title, flaw.reason)
            return flaw.status, None
        except LedgerUnavailable as error:
            log.error("a storage commitment request of %s could not be recorded: %s", ae_title, error)
            return int(Status.RESOURCE_LIMITATION), None
        number, is_new = promised
        self._associations.put(number, cast("AcceptedAssociation", event.assoc))
        again = "" if is_new else " once more"
        log.info("%s asks%s to commit to %d object(s)", ae_title, again, len(request.objects))
        return int(Status.SUCCESS), None

    def _read(self, event: evt.Event, ae_title: str) -> Request:
        command = cast(Any, event.request)
        peer = self._peers.get(ae_title)
        if peer is None or "commit" not in peer.may:
            raise Malformed('its [[peers]] entry does not hold "commit"', Status.NOT_AUTHORIZED)
        if self._stopping:
            raise Malformed("the node is stopping", Status.RESOURCE_LIMITATION)
        if command.RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            text = f"{command.RequestedSOPInstanceUID} is no SOP instance of it"
            raise Malformed(text, Status.NO_SUCH_INSTANCE)
        if event.action_type != REQUEST_STORAGE_COMMITMENT:
            raise Malformed(f"action type {event.action_type} does not exist", Status.NO_SUCH_ACTION)
        require_few_items(command.ActionInformation)
        with of_a_peer():
            return request_of(event.action_information)
