"""The stage that keeps the node's word: what peers asked it to commit to is looked at, and they are told.

An object is committed to when it is of the class that was asked about and its file, read again from end to
end, is what came (PS3.4 J.3.3); one that is damaged is set aside and its case held. The
report goes over the association of the request while its requestor keeps that open, otherwise over one of
our own to the peer's host and port, with roles reversed; again with pauses that double, across restarts,
until it is taken or `[commitment] report_for_h` is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from pydicom.dataset import Dataset

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.clock import Jumps
from dicomnode.commitment.inspection import Finding, inspect_object
from dicomnode.commitment.message import EventType, FailureReason, Request, report_to_dataset
from dicomnode.commitment.scp import OpenAssociations
from dicomnode.commitment.wire import tell, tell_over
from dicomnode.config import Config, Peer
from dicomnode.errors import LedgerUnavailable, NodeError, Transient
from dicomnode.held_files import SetAside
from dicomnode.ledger import Ledger
from dicomnode.patience import Resting, backoff_s, lasts, spread
from dicomnode.records import Promise

# A requestor that wants the report over another association releases this one at once.
RELEASES_WITHIN_S = 1.0
REPORTS_PER_TICK = 16
# Objects of one request whose files something is wrong with; `dicomnode show` names the damaged ones, all.
MOST_NAMED = 10

log = logging.getLogger(__name__)


class Answerer:
    """Tells who asked. One thread calls `tick`; `stop` may come from another.

    damaged: takes files of received objects that are not what came, by SOP Instance UID. jumps: by how
    much the clock was set ahead; None: it is never set.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        associations: OpenAssociations,
        damaged: SetAside,
        jumps: Jumps | None = None,
        audit: Audit = SILENT,
    ) -> None:
        self._audit = audit
        self._set_aside = damaged
        self._jumps = jumps or Jumps(steady=None)
        self._settings = config.commitment
        self._deliver = config.deliver
        self._data_dir = config.node.data_dir
        self._our_ae_title = config.node.ae_title
        self._peers = {peer.ae_title.strip(): peer for peer in config.peers}
        self._ledger = ledger
        self._associations = associations
        self._resting = Resting(config.deliver)
        self._stopping = threading.Event()

    def tick(self, now: float) -> None:
        """Tell those who are due, the oldest first, a few at a time."""
        told = 0
        for promise in self._ledger.open_promises():
            if self._stopping.is_set() or told == REPORTS_PER_TICK:
                return
            if self._is_due(promise, now):
                self._answer(promise, now)
                told += 1

    def stop(self) -> None:
        """Tell nobody more."""
        self._stopping.set()

    def _is_due(self, promise: Promise, now: float) -> bool:
        if lasts(promise.asked_at + RELEASES_WITHIN_S, now, RELEASES_WITHIN_S):
            return False
        paused = lasts(promise.next_attempt_at, now, self._deliver.max_retry_s)
        return not paused and not self._resting.rests(promise.peer, now)

    def _answer(self, promise: Promise, now: float) -> None:
        request = Request(promise.transaction_uid, self._ledger.promised(promise.id))
        try:
            failed = self._failures(promise, request, now)
            if failed is None:
                return  # the node stops: they are told after its next start
            event, report = report_to_dataset(request, failed, self._our_ae_title)
            if not self._tell_at_once(promise, event, report):
                tell(self._peer(promise), self._our_ae_title, self._deliver.timeout_s, event, report)
        except LedgerUnavailable:
            raise
        except NodeError as error:
            self._not_told(promise, error, now)
        except Exception as error:  # the worker's loop: those who asked later are not to wait for this one
            log.exception("telling %s of storage commitment broke", promise.peer)
            self._not_told(promise, NodeError(f"telling {promise.peer} broke: {error!r}"), now)
        else:
            self._resting.wake(promise.peer)
            self._ledger.told(promise.id, now)
            try:
                self._tell_audit(promise, request, failed)
            except LedgerUnavailable as error:
                log.error("the audit trail lacks what was committed to %s: %s", promise.peer, error)
            self._say(promise, len(request.objects), failed)

    def _tell_at_once(self, promise: Promise, event: EventType, report: Dataset) -> bool:
        """Over the association of the request. returns: False when it is no more, or busy."""
        with self._associations.take(promise.id) as association:
            if association is None:
                return False
            try:
                tell_over(association, promise.peer, event, report)
            except Transient as error:
                log.info("%s did not wait for the report: %s", promise.peer, error)
                return False
        return True

    def _tell_audit(self, promise: Promise, request: Request, failed: Mapping[str, FailureReason]) -> None:
        """What was looked at, of what the node offers to others; of the rest it knows no patient."""
        if not self._audit.is_kept:
            return
        peer = self._peers.get(promise.peer)
        party = Party(promise.peer, "" if peer is None else peer.host)
        committed, not_committed = (
            self._ledger.belongings([uid for _, uid in request.objects if (uid in failed) is wanted])
            for wanted in (False, True)
        )
        self._audit.committed(party, committed, not_committed, we_asked=False)

    def _failures(self, promise: Promise, request: Request, now: float) -> dict[str, FailureReason] | None:
        """SOP Instance UIDs that the node does not take responsibility for, and why; None: it stops."""
        kept = self._ledger.kept([instance for _, instance in request.objects])
        found: dict[str, Finding] = {}
        for sop_class, instance in request.objects:
            if self._stopping.is_set():
                return None
            finding = inspect_object(self._data_dir, kept.get(instance), sop_class)
            if finding is not None:
                found[instance] = finding
        damaged = {
            uid: self._data_dir / finding.damaged.path for uid, finding in found.items() if finding.damaged
        }
        if damaged:
            self._set_aside(damaged, now)
        _name_files(promise, found)
        return {uid: finding.reason for uid, finding in found.items()}

    def _peer(self, promise: Promise) -> Peer:
        peer = self._peers.get(promise.peer)
        if peer is None:
            raise NodeError(
                f"{promise.peer} asked for storage commitment and has no [[peers]] entry any more"
            )
        return peer

    def _not_told(self, promise: Promise, error: NodeError, now: float) -> None:
        limit_s = self._settings.report_for_h * 3600
        if now - promise.asked_at - self._jumps.ahead_s(now) >= limit_s:
            self._ledger.given_up(promise.id, now, error.reason)
            log.error(
                "%s was not told of storage commitment transaction %s within %g h and will not be: %s",
                promise.peer, promise.transaction_uid, self._settings.report_for_h, error,
            )  # fmt: skip
            return
        pause_s = backoff_s(promise.tries + 1, self._deliver, spread(promise.id))
        self._ledger.not_told(promise.id, error.reason, now + pause_s)
        self._resting.rest(promise.peer, error.reason, now)

    @staticmethod
    def _say(promise: Promise, objects: int, failed: Mapping[str, FailureReason]) -> None:
        text = "".join(f"; not to {uid}: {reason.name}" for uid, reason in list(failed.items())[:10])
        level = logging.WARNING if failed else logging.INFO
        count = objects - len(failed)
        log.log(level, "%s was told that we commit to %d object(s)%s", promise.peer, count, text)


def _name_files(promise: Promise, found: Mapping[str, Finding]) -> None:
    """A line for each file that something is wrong with: once, though the peer is told again and again."""
    told = [(u, f) for u, f in found.items() if f.words and (f.damaged or not promise.tries)]
    for uid, finding in told[:MOST_NAMED]:
        log.error("%s asked us to commit to %s, and we do not: %s", promise.peer, uid, finding.words)
    if len(told) > MOST_NAMED:
        log.error("%s asked about %d more objects like that", promise.peer, len(told) - MOST_NAMED)
