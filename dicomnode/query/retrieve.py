"""C-MOVE and C-GET: who asks for what is held (PS3.4 C.4.2, C.4.3).

pynetdicom would take every object apart and put it together again; here files go out as they lie. Its
handlers are therefore not generators: they answer by themselves (`transport.AcceptedAssociation` lets them).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, ParametricMapStorage
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.contexts import GET_MODELS, MOVE_MODELS, SOP_CLASSES, transfer_syntaxes
from dicomnode.errors import LedgerUnavailable, NodeError
from dicomnode.held_files import SetAside, leave
from dicomnode.ledger import Ledger
from dicomnode.network.send import open_association, shorten_pdus
from dicomnode.query.find import SYNTAXES, checked_model
from dicomnode.query.identifier import (
    DESTINATION_UNKNOWN,
    UNABLE_TO_COUNT,
    UNABLE_TO_PERFORM,
    Refused,
    read,
    to_retrieval,
)
from dicomnode.query.objects import FALLBACKS, Files
from dicomnode.query.replies import name_of, refusing
from dicomnode.query.suboperations import Progress, Retrieved, Route, perform
from dicomnode.records import HeldObject

if TYPE_CHECKING:
    from dicomnode.config import Peer, Query, Right

log = logging.getLogger(__name__)

# What the node holds: what it accepts and what it makes.
RETRIEVED_CLASSES = (*SOP_CLASSES, ParametricMapStorage, KeyObjectSelectionDocumentStorage)
_MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte
_CarryOut = Callable[[evt.Event, list[HeldObject], Retrieved], None]


class _Retrieval:
    """What C-MOVE and C-GET have in common. settings: [query]. damaged: see `Files`."""

    models: tuple[UID, UID]

    def __init__(
        self,
        ledger: Ledger,
        data_dir: Path,
        settings: Query,
        audit: Audit = SILENT,
        damaged: SetAside = leave,
    ) -> None:
        self._ledger = ledger
        self._audit = audit
        self._files = Files(data_dir, damaged=damaged)
        self._settings = settings
        self._stopping = False

    def stop(self) -> None:
        """Retrievals end with the object that is under way."""
        self._stopping = True

    def _serve(self, event: evt.Event, carry_out: _CarryOut) -> None:
        """Answer a request, whatever happens."""
        replies = Retrieved(event)
        # Tables C.4-2, C.4-3: without the ledger the matches cannot be counted.
        with refusing(replies, event, without_ledger=UNABLE_TO_COUNT):
            carry_out(event, self._objects(event), replies)

    def _objects(self, event: evt.Event) -> list[HeldObject]:
        request = cast("C_MOVE | C_GET", event.request)
        model = checked_model(request.AffectedSOPClassUID, event.context.abstract_syntax)
        keys = read(request.Identifier, event.context.transfer_syntax)
        question = to_retrieval(keys, patient_root=model == self.models[0])
        objects = self._ledger.held(question, self._settings.max_matches + 1)
        if len(objects) > self._settings.max_matches:
            comment = f"more than {self._settings.max_matches} objects: ask for less at once"
            raise Refused(UNABLE_TO_COUNT, comment)
        return objects

    def _ended(self, event: evt.Event) -> bool:
        # Aborted by us: who asked has lost the right.
        return self._stopping or event.is_cancelled or event.assoc.is_aborted

    def _tell(self, event: evt.Event, to: Party, objects: Sequence[HeldObject], progress: Progress) -> None:
        """The audit trail: whose objects have gone where. They are carried out one after the other."""
        if not self._audit.is_kept:
            return
        over = [held.sop_instance_uid for held in objects[: progress.ended]]
        failed = set(progress.failed)
        try:
            sent, not_sent = (
                self._ledger.belongings([uid for uid in over if (uid in failed) is wanted])
                for wanted in (False, True)
            )
        except LedgerUnavailable as error:
            log.error("the audit trail lacks a %s: %s", name_of(event), error)
            return
        self._audit.retrieved(to, Party.calling(event.assoc), sent, not_sent)

    def _conclude(self, event: evt.Event, progress: Progress, replies: Retrieved, where: str) -> None:
        """The final response. Of a node that stops, what remains has failed."""
        left = progress.remaining > 0
        peer = event.assoc.requestor.ae_title.strip()
        if left and self._stopping:
            log.warning("%s of %s %s: the node is stopping", name_of(event), peer, where)
            raise Refused(UNABLE_TO_PERFORM, "the node is stopping; ask again later")
        level = logging.WARNING if progress.failed else logging.INFO
        end = "done" if not left else "aborted" if event.assoc.is_aborted else "cancelled"
        log.log(level, "%s of %s %s: %s; %s", name_of(event), peer, where, end, progress)
        replies.final(progress, cancelled=left)


class MoveService(_Retrieval):
    """C-MOVE to [[peers]]. The destination of a request is a peer's AE title; it needs a host and a port."""

    models = MOVE_MODELS

    def __init__(
        self,
        ledger: Ledger,
        data_dir: Path,
        settings: Query,
        peers: Sequence[Peer],
        ae_title: str,
        audit: Audit = SILENT,
        damaged: SetAside = leave,
    ) -> None:
        super().__init__(ledger, data_dir, settings, audit, damaged)
        self._destinations = {p.ae_title.strip(): p for p in peers if p.host and p.port is not None}
        self._ae_title = ae_title

    @property
    def right(self) -> Right:
        """What `config.Peer.may` must hold."""
        return "move"

    def contexts(self) -> list[PresentationContext]:
        """Both models."""
        return [build_context(model, SYNTAXES) for model in MOVE_MODELS]

    def handlers(self) -> list[evt.EventHandlerType]:
        """pynetdicom's events."""
        return [(evt.EVT_C_MOVE, lambda event: self._serve(event, self._move))]

    def _move(self, event: evt.Event, objects: list[HeldObject], replies: Retrieved) -> None:
        request = cast(C_MOVE, event.request)
        destination = self._destination(str(request.MoveDestination or "").strip())
        originator = event.assoc.requestor.ae_title.strip(), int(request.MessageID or 0)
        progress = Progress(len(objects))
        for batch in _batches(objects):
            if self._ended(event):
                break
            before = progress.remaining
            try:
                with open_association(
                    destination, self._ae_title, self._settings.timeout_s, _contexts(batch)
                ) as assoc:
                    route = Route(assoc, self._files, originator)
                    perform(route, batch, progress, replies, lambda: self._ended(event))
            except NodeError as error:
                log.warning("C-MOVE to %s: %s", destination.name, error)
                for held in batch[before - progress.remaining :]:
                    progress.fail(held.sop_instance_uid)
        self._tell(event, Party(destination.ae_title, destination.host), objects, progress)
        self._conclude(event, progress, replies, f"to {destination.name}")

    def _destination(self, ae_title: str) -> Peer:
        peer = self._destinations.get(ae_title)
        if peer is None:
            detail = f"no [[peers]] entry with host and port has the AE title {ae_title[:16]!r}"
            raise Refused(DESTINATION_UNKNOWN, "Move Destination is not known here", detail=detail)
        return peer


class GetService(_Retrieval):
    """C-GET: the peer proposes to be SCP of the storage classes (PS3.7 D.3.3.4)."""

    models = GET_MODELS

    @property
    def right(self) -> Right:
        """What `config.Peer.may` must hold."""
        return "get"

    def contexts(self) -> list[PresentationContext]:
        """Both models, and the storage classes of which the peer is SCP."""
        contexts = [build_context(model, SYNTAXES) for model in GET_MODELS]
        for uid in RETRIEVED_CLASSES:
            context = build_context(uid, list(transfer_syntaxes(uid)))
            context.scu_role, context.scp_role = False, True
            contexts.append(context)
        return contexts

    def handlers(self) -> list[evt.EventHandlerType]:
        """pynetdicom's events."""
        return [(evt.EVT_C_GET, lambda event: self._serve(event, self._get))]

    def _get(self, event: evt.Event, objects: list[HeldObject], replies: Retrieved) -> None:
        shorten_pdus(event.assoc.requestor)
        progress = Progress(len(objects))
        route = Route(event.assoc, self._files)
        perform(route, objects, progress, replies, lambda: self._ended(event))
        self._tell(event, Party.calling(event.assoc), objects, progress)
        self._conclude(event, progress, replies, "over its association")


def _batches(objects: list[HeldObject]) -> Iterator[list[HeldObject]]:
    """Objects whose presentation contexts fit into one association."""
    batch: list[HeldObject] = []
    contexts: set[tuple[str, str]] = set()
    for held in objects:
        more = contexts | set(_contexts([held]))
        if len(more) > _MAX_CONTEXTS:
            yield batch
            batch, more = [], set(_contexts([held]))
        batch.append(held)
        contexts = more
    if batch:
        yield batch


def _contexts(objects: Sequence[HeldObject]) -> list[tuple[str, str]]:
    """As they are stored, and what every receiver should take."""
    return sorted(
        {
            (held.sop_class_uid, syntax)
            for held in objects
            for syntax in (held.transfer_syntax_uid, *FALLBACKS)
        }
    )
