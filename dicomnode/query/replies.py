"""Responses to a request, sent by whoever serves it; also when it cannot be served."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.pdu_primitives import P_DATA

from dicomnode.errors import LedgerUnavailable
from dicomnode.network.command_set import c_find_rsp, data_fragments
from dicomnode.network.messages import DIMSE
from dicomnode.network.send import LARGEST_PDU_BYTES
from dicomnode.query.identifier import UNABLE_TO_PROCESS, Refused

log = logging.getLogger(__name__)

# What a P-DATA-TF holds beside two fragments: lengths, context IDs, control headers (PS3.8 9.3.5).
_OVERHEAD_BYTES = 12


class Replies:
    """Responses to one C-FIND, C-MOVE or C-GET request."""

    def __init__(self, event: evt.Event) -> None:
        self.assoc = event.assoc
        self.context_id = int(event.context.context_id or 0)
        self.request: Any = event.request
        self.failure = ""
        """Why the request was refused; empty when it was not."""

    def answer(self, status: int) -> Any:
        """A response, to be filled in and sent."""
        answer = type(self.request)()
        answer.MessageIDBeingRespondedTo = self.request.MessageID
        answer.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        answer.Status = status
        return answer

    def send(self, answer: Any) -> None:
        """Nothing, where the peer has gone."""
        if self.assoc.is_established:
            self.assoc.dimse.send_msg(answer, self.context_id)

    def refuse(self, refused: Refused) -> None:
        """The failure, with what the peer's log should say of it (PS3.7 C.5)."""
        self.failure = f"refused with 0x{refused.status:04X}: {refused.reason}"
        answer = self.answer(refused.status)
        answer.ErrorComment = refused.comment
        if refused.offending is not None:
            answer.OffendingElement = [refused.offending]
        self.send(answer)

    def match(self, status: int, identifier: bytes) -> None:
        """A pending C-FIND response, in as few PDUs as the peer takes."""
        command = c_find_rsp(str(self.request.AffectedSOPClassUID), self.request.MessageID, status)
        room = (self.assoc.dimse.maximum_pdu_size or LARGEST_PDU_BYTES) - _OVERHEAD_BYTES
        if len(command) + len(identifier) <= room:
            self._send_values([command, *data_fragments(identifier, room)])
            return
        with cast(DIMSE, self.assoc.dimse).whole_message():
            for value in (command, *data_fragments(identifier, room)):
                self._send_values([value])

    def _send_values(self, values: list[bytes]) -> None:
        primitive: Any = P_DATA()
        primitive.presentation_data_value_list = [[self.context_id, value] for value in values]
        self.assoc.dul.send_pdu(primitive)


@contextmanager
def refusing(replies: Replies, event: evt.Event, *, without_ledger: int) -> Iterator[None]:
    """Answer a request with a failure, whatever happens while it is served.

    without_ledger: the status where the database does not answer.
    """
    name, peer = name_of(event), event.assoc.requestor.ae_title.strip()
    try:
        yield
    except Refused as refused:
        log.warning("%s of %s refused with 0x%04X: %s", name, peer, refused.status, refused.reason)
        replies.refuse(refused)
    except LedgerUnavailable as error:
        log.error("%s of %s cannot be answered: %s", name, peer, error)
        replies.refuse(Refused(without_ledger, "the database does not answer; ask again later"))
    except Exception as error:
        # Whatever it was, the peer must hear that it failed.
        log.exception("%s of %s failed", name, peer)
        replies.refuse(
            Refused(UNABLE_TO_PROCESS, "the node failed; see its log", detail=type(error).__name__)
        )


def name_of(event: evt.Event) -> str:
    """C-FIND, C-MOVE or C-GET."""
    return event.event.name.removeprefix("EVT_").replace("_", "-")
