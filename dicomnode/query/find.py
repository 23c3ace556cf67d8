"""C-FIND: who asks what is held (PS3.4 C.4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.contexts import FIND_MODELS
from dicomnode.ledger import Ledger
from dicomnode.query.answers import Encoder
from dicomnode.query.identifier import (
    MAX_BYTES,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    Query,
    Refused,
    read,
    to_query,
)
from dicomnode.query.replies import Replies, refusing

if TYPE_CHECKING:
    from dicomnode.config import Right

log = logging.getLogger(__name__)

SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.4 Tables C.4-1: pending, all keys supported or not; cancelled.
_SUCCESS, _PENDING, _PENDING_SOME_KEYS, _CANCELLED = 0x0000, 0xFF00, 0xFF01, 0xFE00
# Rows in one step: a slow peer keeps no transaction open, and a large answer no memory.
_CHUNK = 200
# PS3.4 C.5.1.1: bytes of the extended negotiation. The second is combined date and time matching.
_EXTENDED_BYTES = 5
_COMBINED = 1


class FindService:
    """Query, in the Patient Root and the Study Root model. ae_title: where what is found is retrieved."""

    def __init__(self, ledger: Ledger, ae_title: str, max_matches: int, audit: Audit = SILENT) -> None:
        self._ledger = ledger
        self._audit = audit
        self._ae_title = ae_title
        self._max_matches = max_matches
        self._stopping = False

    @property
    def right(self) -> Right:
        """What `config.Peer.may` must hold."""
        return "find"

    def contexts(self) -> list[PresentationContext]:
        """Both models."""
        return [build_context(model, SYNTAXES) for model in FIND_MODELS]

    def handlers(self) -> list[evt.EventHandlerType]:
        """pynetdicom's events."""
        return [(evt.EVT_C_FIND, self._on_find), (evt.EVT_SOP_EXTENDED, self._on_extended)]

    def stop(self) -> None:
        """Queries end with the match that is under way."""
        self._stopping = True

    def _on_extended(self, event: evt.Event) -> dict[str, bytes]:
        """Of what a peer proposes we do combined date and time matching (PS3.4 C.5.1.1.2)."""
        proposed = cast(Any, event).app_info
        return {uid: extended_answer(asked) for uid, asked in proposed.items() if uid in FIND_MODELS}

    def _on_find(self, event: evt.Event) -> None:
        """Answer a request, whatever happens."""
        replies = Replies(event)
        peer = event.assoc.requestor.ae_title.strip()
        with refusing(replies, event, without_ledger=OUT_OF_RESOURCES):
            query = self._understood(event)
            numbers = self._numbers(query)
            log.info("%s queried level %s: %d matches", peer, query.level, len(numbers))
            replies.send(replies.answer(self._matches(event, replies, query, numbers)))
        self._tell(event, replies.failure)

    def _tell(self, event: evt.Event, failure: str) -> None:
        request = cast(C_FIND, event.request)
        asked = b"" if request.Identifier is None else request.Identifier.getvalue()[:MAX_BYTES]
        model, syntax = str(request.AffectedSOPClassUID), str(event.context.transfer_syntax)
        self._audit.queried(Party.calling(event.assoc), None, model, syntax, asked, failure=failure)

    def _understood(self, event: evt.Event) -> Query:
        request = cast(C_FIND, event.request)
        model = checked_model(request.AffectedSOPClassUID, event.context.abstract_syntax)
        asked = event.assoc.requestor.sop_class_extended.get(model, b"")
        keys = read(request.Identifier, event.context.transfer_syntax)
        return to_query(keys, patient_root=model == FIND_MODELS[0], combined=is_combined(asked))

    def _numbers(self, query: Query) -> list[int]:
        numbers = self._ledger.find(query.question, self._max_matches + 1)
        if len(numbers) > self._max_matches:
            comment = f"more than {self._max_matches} matches: narrow the query"
            raise Refused(OUT_OF_RESOURCES, comment)
        return numbers

    def _matches(self, event: evt.Event, replies: Replies, query: Query, numbers: list[int]) -> int:
        """Send every match. returns: the status of the final response."""
        status = _PENDING if query.complete else _PENDING_SOME_KEYS
        syntax = UID(event.context.transfer_syntax)
        encoder = Encoder(query, self._ae_title, implicit=syntax.is_implicit_VR)
        for start in range(0, len(numbers), _CHUNK):
            for identifier in self._identifiers(encoder, query, numbers[start : start + _CHUNK]):
                if event.is_cancelled:
                    return _CANCELLED
                if self._stopping:
                    raise Refused(OUT_OF_RESOURCES, "the node is stopping; ask again later")
                if not event.assoc.is_established:
                    return _SUCCESS  # to nobody
                replies.match(status, identifier)
        return _SUCCESS

    def _identifiers(self, encoder: Encoder, query: Query, numbers: list[int]) -> Iterator[bytes]:
        level = query.level
        rows = self._ledger.attributes(level, numbers)
        contents = self._ledger.contents(level, numbers) if encoder.needs_contents else {}
        items = {
            one.keyword: self._ledger.items(one.sequence, one.told, level, numbers) for one in query.nested
        }
        for row in rows:
            number = row["number"]
            own = {keyword: found[number] for keyword, found in items.items()}
            yield encoder.encode(row, contents.get(number, ()), own)


def extended_answer(asked: bytes) -> bytes:
    """Which of the extended behaviours that a peer proposes we have."""
    full = bytes(number == _COMBINED and is_combined(asked) for number in range(_EXTENDED_BYTES))
    return full[: max(1, len(asked))]


def is_combined(asked: bytes) -> bool:
    """Whether combined date and time matching was proposed, and so agreed upon."""
    return asked[_COMBINED : _COMBINED + 1] == b"\1"


def checked_model(sop_class_uid: str | None, abstract_syntax: str) -> UID:
    """The information model of a request. Raises Refused when it came in another presentation context."""
    if sop_class_uid != abstract_syntax:
        raise Refused(SOP_CLASS_NOT_SUPPORTED, "the presentation context is of another SOP class")
    return UID(abstract_syntax)
