"""N-EVENT-REPORT → ledger → status: what a PACS says about objects that it was asked to keep.

It may come over the association on which it was asked, or over one that the PACS opens, minutes or days
later; the transaction is in the ledger, so that a restart in between loses nothing. What is not ours to
take changes nothing, is answered with the status that PS3.7 10.1.1.1.8 gives for it, and is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.commitment.message import (
    PUSH_MODEL_SYNTAXES,
    Malformed,
    Report,
    Status,
    of_a_peer,
    report_of,
    require_few_items,
    words,
)
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.records import Commitment

if TYPE_CHECKING:
    from dicomnode.config import AnyRight, Peer

log = logging.getLogger(__name__)


class ReportService:
    """Takes the reports of peers that are configured with `commitment = true` (PS3.4 J.3.3).

    peers: all of the configuration. committing: names of those that are asked to commit.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        committing: Sequence[str],
        ledger: Ledger,
        clock: Callable[[], float] = time.time,
        audit: Audit = SILENT,
    ) -> None:
        self._audit = audit
        self._peers = {peer.ae_title.strip(): peer for peer in peers}
        self._committing = tuple(committing)
        self._ledger = ledger
        self._clock = clock

    @property
    def right(self) -> AnyRight:
        """What `config.Peer.rights` must hold."""
        return "report"

    def contexts(self) -> list[PresentationContext]:
        """The peer is the SCP although it opens the association (PS3.4 J.3.3.1)."""
        context = build_context(PUSH_MODEL, PUSH_MODEL_SYNTAXES)
        context.scu_role, context.scp_role = False, True
        return [context]

    def handlers(self) -> list[evt.EventHandlerType]:
        """N-EVENT-REPORT."""
        return [(evt.EVT_N_EVENT_REPORT, self.on_event)]

    def stop(self) -> None:
        """A report is a single transaction: nothing is left half done."""

    def on_event(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer a report that comes over an association of the peer's. returns: status, no reply."""
        return self.answer(event, event.assoc.requestor.ae_title.strip())

    def answer(self, event: evt.Event, ae_title: str) -> tuple[int, Dataset | None]:
        """Answer a report. ae_title: who says it."""
        peer = self._peers.get(ae_title)
        name = peer.name if peer is not None else ae_title
        try:
            report = self._read(event)
            status = self._take(report, name, event, ae_title)
        except Malformed as flaw:
            log.warning("a storage commitment report of %s is refused: %s", name, flaw.reason)
            status = flaw.status
        except LedgerUnavailable as error:
            log.error("a storage commitment report of %s could not be recorded: %s", name, error)
            status = int(Status.PROCESSING_FAILURE)
        return status, None

    def _read(self, event: evt.Event) -> Report:
        request = cast(Any, event.request)
        if request.AffectedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            text = f"{request.AffectedSOPInstanceUID} is no SOP instance of it"
            raise Malformed(text, Status.NO_SUCH_INSTANCE)
        require_few_items(request.EventInformation)
        with of_a_peer():
            return report_of(event.event_type or 0, event.event_information)

    def _take(self, report: Report, peer: str, event: evt.Event, ae_title: str) -> int:
        before = self._ledger.reported(
            report.transaction_uid,
            peer,
            report.committed,
            report.failed,
            self._clock(),
            self._committing,
        )
        if before is None:
            # Nothing is told of whether another peer was asked for it.
            log.warning(
                "%s reports on transaction %s, which it was not asked for", peer, report.transaction_uid
            )
            return int(Status.INVALID_ARGUMENT)
        if before.has_ended:
            log.warning(
                "%s reports again on transaction %s (%s)", peer, report.transaction_uid, before.outcome
            )
            return int(Status.SUCCESS)
        try:
            self._tell(report, before, event, ae_title)
        except LedgerUnavailable as error:  # the report itself is recorded
            log.error("the audit trail lacks a storage commitment report of %s: %s", peer, error)
        said = ", ".join(f"{uid} {words(reason)}" for uid, reason in report.failed.items())
        log.log(
            logging.WARNING if said else logging.INFO,
            "%s committed to %d object(s) of transaction %s%s",
            peer, len(report.committed), report.transaction_uid, f"; not to {said}" if said else "",
        )  # fmt: skip
        return int(Status.SUCCESS)

    def _tell(self, report: Report, commitment: Commitment, event: evt.Event, ae_title: str) -> None:
        """The audit trail: what it says of our results, whatever else it names."""
        if not self._audit.is_kept:
            return
        results = self._ledger.results_of(commitment.run_id)
        committed = [one for uid, one in results.items() if uid in report.committed]
        failed = [one for uid, one in results.items() if uid in report.failed]
        party = Party.at_the_other_end(event.assoc, ae_title)
        self._audit.committed(party, committed, failed, we_asked=True)
