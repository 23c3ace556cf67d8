"""DIMSE messages of an accepted association: put together, bounded, and only where they belong.

C-STORE requests are put together here and served in the thread that has received them; everything else
is pynetdicom's, within a size. pynetdicom believes the SOP class that a request names, whatever its
presentation context was agreed upon for: a peer that may only find could move. `misplaced` closes that.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from pydicom.uid import UID
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import (
    C_CANCEL,
    C_ECHO,
    C_FIND,
    C_GET,
    C_MOVE,
    C_STORE,
    N_ACTION,
    N_EVENT_REPORT,
)
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicomnode.contexts import FIND_MODELS, GET_MODELS, MOVE_MODELS, PUSH_MODEL, VERIFICATION
from dicomnode.network.command_set import LAST_COMMAND_FRAGMENT, c_store_rq

if TYPE_CHECKING:
    from dicomnode.network.transport import AcceptedAssociation
    from dicomnode.network.upper_layer import UpperLayer

# PS3.8 table 9-10: an invalid PDU. The association is aborted (AA-1, AA-8) and the peer told so.
INVALID_PDU = "Evt19"
# How long a thread sleeps when nothing wakes it: the grain of the timeouts, not a latency.
IDLE_S = 0.1
# Of messages other than C-STORE, which pynetdicom puts together in memory.
MAX_OTHER_MESSAGE_BYTES = 1 << 25
# Of their command sets, which pydicom takes apart: of each item of eight bytes it makes most of a kilobyte.
MAX_COMMAND_SET_BYTES = 1 << 16
# There is no asynchronous operations window: a peer waits for its answers. C-CANCEL does not count here.
MAX_WAITING_MESSAGES = 32
# PS3.7 Annex C.
_SOP_CLASS_NOT_SUPPORTED = 0x0122
_UNRECOGNIZED_OPERATION = 0x0211
# PS3.4 A.4, C.6.1.3, C.6.2.3, J.3.5: what each SOP class consists of. One that is not here has no requests.
_REQUESTS_OF: dict[str, tuple[type, ...]] = {
    VERIFICATION: (C_ECHO,),
    **dict.fromkeys(FIND_MODELS, (C_FIND,)),
    **dict.fromkeys(MOVE_MODELS, (C_MOVE,)),
    **dict.fromkeys(GET_MODELS, (C_GET,)),
    PUSH_MODEL: (N_ACTION, N_EVENT_REPORT),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may take."""

    part_s: float
    """Until the next part of a message that has begun."""
    message_s: float
    """From a message's beginning to its end."""
    data_set: Callable[[], BytesIO]
    """Makes what a C-STORE's data set is written into."""


class Waiting(queue.Queue[Any]):
    """Messages that have come, (context ID, message), for one who waits for some of them.

    (None, None) wakes: the association has ended, or may have.
    """

    def take(self, is_wanted: Callable[[Any], bool], timeout_s: float | None) -> Any:
        """The first whose message is wanted, within that time; the others stay. (None, None): none came."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self.not_empty:
            while True:
                for number, item in enumerate(self.queue):
                    if is_wanted(item[1]):
                        del self.queue[number]
                        return item
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None, None
                self.not_empty.wait(left)

    def answer(
        self, is_answer: Callable[[Any], bool], timeout_s: float | None, serve: Callable[[Any, int], None]
    ) -> Any:
        """What was waited for, within that time in all, however many reports are served in between."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return self.take(is_answer, 0)
            context_id, message = self.take(lambda m: is_answer(m) or is_report(m), left)
            if not is_report(message):
                return context_id, message
            serve(message, context_id)


class Messages(Waiting):
    """Complete messages for the association's thread; C-STORE requests are served on the spot."""

    def __init__(self, assoc: AcceptedAssociation) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        context_id, message = item
        if isinstance(message, C_STORE) and self._assoc.serve(message, context_id):
            return
        if message is not None and self.qsize() >= MAX_WAITING_MESSAGES:
            raise ValueError(f"{self.qsize()} requests before it has waited for an answer")
        super().put(item, block, timeout)


class DIMSE(DIMSEServiceProvider):
    """Sleeps until a message, a release or an abort arrives."""

    def __init__(self, assoc: AcceptedAssociation, limits: Limits) -> None:
        super().__init__(assoc)
        self.msg_queue = Messages(assoc)
        self._limits = limits
        self._store: C_STORE | None = None
        self._store_context = self._store_bytes = 0
        self._other_bytes = self._command_bytes = 0
        self._begun_s: float | None = None
        self._last_s = 0.0
        # Message IDs of the queries and retrievals that have come and are not answered to the end.
        self._cancellable: set[int | None] = set()

    def late(self) -> str:
        """Why a message that has begun is given up; empty while it has time, or when there is none."""
        if self._begun_s is None:
            return ""
        now = time.monotonic()
        if now - self._last_s > self._limits.part_s:
            return f"no next part of a message within {self._limits.part_s:g} s ([receive] dimse_timeout_s)"
        if now - self._begun_s > self._limits.message_s:
            return f"a message of more than {self._limits.message_s:g} s ([receive] message_timeout_s)"
        return ""

    @property
    def under_way(self) -> C_STORE | None:
        """The C-STORE request whose data set has come in part."""
        return self._store

    @property
    def context_under_way(self) -> int:
        """Its presentation context's ID."""
        return self._store_context

    def in_part(self) -> str:
        """What has come in part, and how much of it; empty between messages."""
        if self._store is not None:
            return f"{self._store.AffectedSOPInstanceUID} came in part only, {self._store_bytes} bytes of it"
        if self.message is not None:
            return f"a message came in part only, {self._other_bytes} bytes of it"
        return ""

    def forget(self) -> None:
        """Let go of a message that will not be finished."""
        self._begun_s = None
        self.message = None
        if self._store is not None:
            close_data_set(self._store)
            self._store = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Put C-STORE requests together here; leave every other message to pynetdicom.

        Decoding a command set into a pydicom data set takes longer than writing a slice.
        """
        values = primitive.presentation_data_value_list
        for number, (context_id, fragment) in enumerate(values):
            if self.message is not None or not self._take(context_id, fragment):
                del values[:number]
                self._receive_other(primitive)
                break
        self._last_s = time.monotonic()
        if self._store is None and self.message is None:
            self._begun_s = None
        elif self._begun_s is None:
            self._begun_s = self._last_s

    def _receive_other(self, primitive: P_DATA) -> None:
        """As pynetdicom does it; what it raises is for `UpperLayer` to tell, and every request has its turn.

        pynetdicom makes a thread for each N-EVENT-REPORT: a peer could have as many as it likes.
        """
        if self.message is None:
            self._other_bytes = self._command_bytes = 0
        fragments = [fragment for _, fragment in primitive.presentation_data_value_list]
        self._other_bytes += sum(map(len, fragments))
        self._command_bytes += sum(len(fragment) for fragment in fragments if fragment[0] & 1)
        if self._command_bytes > MAX_COMMAND_SET_BYTES:
            raise ValueError(f"a command set of more than {MAX_COMMAND_SET_BYTES} bytes")
        if self._other_bytes > MAX_OTHER_MESSAGE_BYTES:
            raise ValueError(f"a message of more than {MAX_OTHER_MESSAGE_BYTES} bytes that is no C-STORE")
        if self.message is None:
            self.message = DIMSEMessage()
        if not self.message.decode_msg(primitive):
            return
        message, self.message = self.message, None
        request = message.message_to_primitive()
        if isinstance(request, C_CANCEL):
            # Of what waits or is served; for any other it comes too late.
            if request.MessageIDBeingRespondedTo in self._cancellable:
                self.cancel_req[cast(int, request.MessageIDBeingRespondedTo)] = request
            return
        if isinstance(request, C_FIND | C_GET | C_MOVE):
            self._cancellable.add(request.MessageID)
        self.msg_queue.put((cast(int, message.context_id), request))

    def served(self, request: Any) -> None:
        """Forget whether it was cancelled: the next request may have its Message ID."""
        if (message_id := getattr(request, "MessageID", None)) is not None:
            self._cancellable.discard(message_id)
            self.cancel_req.pop(message_id, None)

    def _take(self, context_id: int, fragment: bytes) -> bool:
        """Part of a C-STORE request. returns: False when it is not."""
        control = fragment[0]
        if self._store is None:
            if control & LAST_COMMAND_FRAGMENT != LAST_COMMAND_FRAGMENT:
                return False
            self._store, self._store_context = c_store_rq(fragment[1:]), context_id
            if self._store is None:
                return False
            self._store.DataSet = self._limits.data_set()
            self._store_bytes = 0
            return True
        if control & 1 or context_id != self._store_context:
            raise ValueError("a command or another context's data came in the middle of a data set")
        data = cast(BytesIO, self._store.DataSet)
        self._store_bytes += data.write(fragment[1:])
        if control & 2:
            request, self._store = self._store, None
            self.msg_queue.put((context_id, request))
        return True

    def send_msg(self, primitive: Any, context_id: int) -> None:
        with self.whole_message():
            super().send_msg(primitive, context_id)

    def whole_message(self) -> AbstractContextManager[None]:
        """Send the P-DATA of one message: what another thread answers meanwhile goes after it."""
        return cast("UpperLayer", self.assoc.dul).outgoing.message()

    def get_msg(self, block: bool = False) -> Any:
        if block:
            messages = cast(Messages, self.msg_queue)
            return messages.answer(_is_answer, self.dimse_timeout, self.assoc._serve_request)
        with contextlib.suppress(queue.Empty):
            return self.msg_queue.get(timeout=IDLE_S)
        return None, None

    def ring(self) -> None:
        """Wake the thread that waits in `get_msg`."""
        self.msg_queue.put((None, None))


def is_report(message: Any) -> bool:
    """Whether it is an N-EVENT-REPORT request: a response names what it answers (PS3.7 10.1.1.1)."""
    return isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is None


def _is_answer(message: Any) -> bool:
    """Or the news that none will come. A request of the peer's waits for the association's own thread."""
    return message is None or message.MessageIDBeingRespondedTo is not None or message.MessageID is None


def close_data_set(request: C_STORE) -> None:
    """Let its memory or file go, now and not when its last reader is forgotten."""
    if request.DataSet is not None:
        with contextlib.suppress(BufferError):  # a view of it is still held
            request.DataSet.close()


@functools.lru_cache(maxsize=1024)
def _is_storage(abstract_syntax: str) -> bool:
    # pynetdicom looks through its tables of classes for each request.
    return uid_to_service_class(UID(abstract_syntax)) is StorageServiceClass


def misplaced(request: Any, context: PresentationContext) -> int | None:
    """The status for a request that its presentation context was not agreed upon for; None when it was."""
    named = getattr(request, "AffectedSOPClassUID", None) or getattr(request, "RequestedSOPClassUID", None)
    abstract_syntax = str(context.abstract_syntax or "")
    is_storage = _is_storage(abstract_syntax)
    if not isinstance(request, C_STORE if is_storage else _REQUESTS_OF.get(abstract_syntax, ())):
        return _UNRECOGNIZED_OPERATION
    # Of a C-STORE its service says so, with the status that Storage has for it.
    is_store = isinstance(request, C_STORE)
    if (is_store and not context.as_scp) or (not is_store and named != abstract_syntax):
        return _SOP_CLASS_NOT_SUPPORTED
    return None
