"""pynetdicom's acceptor, made to wait for events instead of polling for them.

pynetdicom 3.0.4 runs two threads per association that look for work every millisecond and read the
socket in pieces of 4 KiB. Here both sleep in the kernel until there is something to do, the socket is
read ahead, and a C-STORE is served and answered in the thread that has received it. Its known
weaknesses are closed here too:

* a PDU has a length and a time (`dicomnode.network.wire`);
* a message has a time for each of its parts and one for the whole.

What comes before an association is `network.listener`'s; PDUs are `network.upper_layer`'s, messages
`network.messages`'s. Only classes of pynetdicom are extended, by inheritance; its version is pinned for that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE, C_STORE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode.audit.trail import Party
from dicomnode.network.command_set import c_store_rsp
from dicomnode.network.messages import DIMSE, Limits, close_data_set, misplaced
from dicomnode.network.upper_layer import UpperLayer, name_of
from dicomnode.network.wire import Connection, Wire
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import study_instance_uid

if TYPE_CHECKING:
    from dicomnode.network.listener import Server

log = logging.getLogger(__name__)

# pynetdicom would write every identifier of a query, with the patient's name, into its log at INFO.
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
# And every PDU and message at DEBUG; they go through handlers, which take time even when nothing is written.
_config.LOG_HANDLER_LEVEL = "none"

# Requests that do not belong to their presentation context; each is a line in the log.
MAX_MISPLACED_REQUESTS = 16


class AcceptedAssociation(Association):
    """An association with parts of our own."""

    dul: UpperLayer
    dimse: DIMSE

    def __init__(self, ae: ApplicationEntity, limits: Limits, wire: Connection, received: bytes) -> None:
        """wire: where it takes place; received: what has come already."""
        super().__init__(ae, MODE_ACCEPTOR)
        self.dul = UpperLayer(self)
        self.dimse = DIMSE(self, limits)
        # The timers belong to the part that was replaced.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout
        self.wire = wire
        self._misplaced = 0
        # Of the thread that serves a request or sends one: two that wait would take each other's answers.
        self.turn = threading.RLock()
        self.set_socket(Wire(self, wire, received))

    def ring(self) -> None:
        """Wake this thread."""
        self.dimse.ring()

    def serve(self, request: C_STORE, context_id: int) -> bool:
        """Serve a C-STORE request in the thread that has received it.

        Two changes of thread less for each object, and they are what it waits for on a busy machine.
        returns: False for what the association's thread must deal with.
        """
        context = self._accepted_cx.get(context_id)
        if context is None or not request.is_valid_request or not self.is_established:
            return False
        if misplaced(request, context) is not None:
            return False
        try:
            attributes = {"request": request, "context": context.as_tuple}
            status = evt.trigger(self, evt.EVT_C_STORE, attributes)
            self.dul.answer(c_store_rsp(request, context_id, cast(Dataset, status)))
        except Exception:
            log.exception("answering %s failed: aborted", self.requestor.ae_title)
            self._abort_nonblocking()  # the blocking one would wait for this very thread
        finally:
            close_data_set(request)
        return True

    def came_in_part(self) -> None:
        """Tell the audit trail of an object whose end will not come."""
        request, audit = self.dimse.under_way, cast("Server", self._server).audit
        if request is None or not audit.is_kept:
            return
        context = self._accepted_cx.get(self.dimse.context_under_way)
        study = ""
        if context is not None and request.DataSet is not None:
            with contextlib.suppress(Flawed), request.DataSet.getbuffer() as data:
                study = study_instance_uid(data, str(context.transfer_syntax[0]))
        sop_class = str(request.AffectedSOPClassUID)
        audit.received(self, Party.calling(self), study, "", sop_class, stored=False)

    def run_reactor(self) -> None:
        """As pynetdicom's; an error of ours ends the association and not only its thread."""
        try:
            super().run_reactor()
        except Exception as error:
            if self.is_established:
                log.exception("serving %s failed: aborted", self.requestor.ae_title)
            else:
                # Up to here nothing but the values of its request is looked at; `Receiver._admit` tells of
                # an error of ours.
                why = f"{type(error).__name__}: {error}"
                log.warning("%s at %s: its request cannot be answered: %s: aborted", *name_of(self), why)
            self._abort_nonblocking()
            self.kill()

    def _bind_defaults(self) -> None:
        bind_interventions(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if self.is_aborted:
            # By us, while this waited: its sender may have lost the right to it, and hears no answer.
            if isinstance(msg, C_STORE):
                close_data_set(msg)
            return
        if not self.turn.acquire(blocking=False):
            self._is_paused = True  # who has the turn waits for that before it sends
            self.turn.acquire()
            self._is_paused = False
        try:
            self._serve_in_turn(msg, context_id)
        finally:
            self.dimse.served(msg)
            self.turn.release()

    def _serve_in_turn(self, msg: Any, context_id: int) -> None:
        if not msg.is_valid_request and getattr(msg, "MessageIDBeingRespondedTo", None) is None:
            # pynetdicom would say nothing, and the peer would wait for its timeout.
            what = type(msg).__name__.replace("_", "-")
            log.warning("%s at %s sent a %s request that lacks something: aborted", *name_of(self), what)
            self.abort()
            return
        context = self._accepted_cx.get(context_id)
        status = misplaced(msg, context) if context is not None and msg.is_valid_request else None
        if context is not None and status is None and isinstance(msg, (C_FIND, C_GET, C_MOVE)):
            self._leave(msg, context)
            return
        if context is None or status is None:
            super()._serve_request(msg, context_id)
            return
        ae_title, address = name_of(self)
        syntax = UID(context.abstract_syntax or "").name
        what = f"{type(msg).__name__.replace('_', '-')} on a context of {syntax}"
        self._misplaced += 1
        if self._misplaced > MAX_MISPLACED_REQUESTS:
            log.warning("%s at %s asked for %s again and again: aborted", ae_title, address, what)
            self._abort_nonblocking()
            return
        log.warning("%s at %s asked for %s: refused with 0x%04X", ae_title, address, what, status)
        answer = type(msg)()
        answer.MessageIDBeingRespondedTo = msg.MessageID
        answer.Status = status
        self.dimse.send_msg(answer, context_id)

    def _leave(self, request: C_FIND | C_GET | C_MOVE, context: PresentationContext) -> None:
        """Leave a request to its handler, which sends the answers too.

        pynetdicom would take apart and put together every object and every match.
        """
        event = {C_FIND: evt.EVT_C_FIND, C_GET: evt.EVT_C_GET, C_MOVE: evt.EVT_C_MOVE}[type(request)]
        attributes = {
            "request": request,
            "context": context.as_tuple,
            "_is_cancelled": lambda message_id: message_id in self.dimse.cancel_req,
        }
        self._is_paused = True  # the handler may send C-STORE requests over this association
        try:
            evt.trigger(self, event, attributes)
        finally:
            self._is_paused = False


def bind_interventions(target: Association | ThreadedAssociationServer) -> None:
    """pynetdicom's default handlers, without those that write every PDU into the log."""
    for event in evt._INTERVENTION_EVENTS:
        target.bind(event, evt.get_default_handler(event))
