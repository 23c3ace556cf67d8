"""The stage that makes sure of it: a destination has the results, and commits to keep them.

Storage Commitment Push Model as SCU (PS3.4 Annex J)::

    every result delivered to a peer ── N-ACTION ──▶ waiting ── N-EVENT-REPORT ──▶ all committed ──▶ DONE
                                                        │  └─ some failed ──▶ sent again, asked again
                                                        └─ no report for hours ──▶ asked again

The report may come over the association of the request or over one of the peer's own, days later; it is
recorded by `commitment_report`. What was asked is in the ledger before it is asked, so that no end of the
node loses a report. Nothing is polled: a case that waits is looked at again when its wait is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice, takewhile

from pydicom.dataset import Dataset
from pynetdicom import evt

from dicomnode.clock import Jumps, running
from dicomnode.commitment.message import Request, words
from dicomnode.commitment.report import ReportService
from dicomnode.commitment.wire import Dialogue, RequestRefused, requesting
from dicomnode.config import Config, Peer
from dicomnode.errors import LedgerUnavailable, Transient
from dicomnode.ledger import Ledger
from dicomnode.network.send import NothingAccepted
from dicomnode.patience import Resting, backoff_s, lasts, spread
from dicomnode.records import Commitment, Delivery, Result, Uncommitted

REQUESTS_PER_ASSOCIATION = 16

log = logging.getLogger(__name__)


class Committer:
    """Asks for what is due. One thread calls `tick`; `stop` may come from another.

    reports: takes those that come at once. monotonic: seconds of a clock that only runs forward. jumps: by
    how much the other one was set ahead; None: it is never set.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        reports: ReportService,
        monotonic: Callable[[], float] = time.monotonic,
        jumps: Jumps | None = None,
    ) -> None:
        self._jumps = jumps or Jumps(steady=None)
        self._settings = config.commitment
        self._deliver = config.deliver
        self._peers = [peer for peer in config.destinations() if peer.commitment]
        self._committing = config.committing()
        self._our_ae_title = config.node.ae_title
        self._ledger = ledger
        self._reports = reports
        self._monotonic = monotonic
        self._resting = Resting(config.deliver)
        self._stopping = threading.Event()

    def tick(self, now: float) -> None:
        """Look at every destination that is asked to commit; ask where it is due."""
        for peer in self._peers:
            if self._stopping.is_set():
                return
            waiting = [i for i in self._ledger.uncommitted(peer.name) if not self._is_settled(i, now)]
            # What waits costs no query of its own: the ledger is asked of those alone whose wait is over.
            if not self._resting.rests(peer.name, now):
                due = list(islice((i for i in waiting if self._is_due(i, now)), REQUESTS_PER_ASSOCIATION))
                if due:
                    self._ask(peer, due, now)

    def stop(self) -> None:
        """Ask for nothing more."""
        self._stopping.set()

    # ── what is due ──────────────────────────────────────────────────────────────────────────

    def _is_settled(self, item: Uncommitted, now: float) -> bool:
        """Whether nothing is to be asked about the case; what else there is to do with it is done here."""
        if item.outdated:
            # Nobody waits for a commitment to results that will be replaced.
            if not item.lacking:
                self._ledger.settle(item.case_id, item.run_id, now, self._committing)
            return True
        if item.failed:
            self._send_again(item, now)
            return True
        limit_h = self._settings.give_up_after_h
        if limit_h and now - item.since - self._jumps.ahead_s(now) >= limit_h * 3600:
            self._too_late(item, now)
            return True
        return False

    def _is_due(self, item: Uncommitted, now: float) -> bool:
        """Whether the peer is to be asked now."""
        if self._waits(item, now):
            return False
        # "asking": the node ended while it asked once more.
        return item.last_outcome not in ("refused", "asking") or not self._refused_for_good(item, now)

    def _waits(self, item: Uncommitted, now: float) -> bool:
        """Whether the last request still has time, or its failure is too fresh."""
        if item.last_outcome not in ("waiting", "refused", "unanswered", "incomplete"):
            # "asking": the node ended while it asked.
            return False
        longest_s = max(self._settings.max_ask_again_h * 3600, self._deliver.max_retry_s)
        return lasts(item.ask_again_at, now, longest_s)

    def _missing(self, item: Uncommitted) -> list[tuple[Result, Delivery]]:
        return [
            (result, delivery)
            for result, delivery in self._ledger.deliveries(item.run_id)
            if delivery.peer == item.peer and delivery.committed_at is None
        ]

    def _send_again(self, item: Uncommitted, now: float) -> None:
        """Some objects could not be committed to: they are sent and asked about again, a few times."""
        failed = [(r, d) for r, d in self._missing(item) if d.commit_failure is not None]
        if not failed:
            # Committed to meanwhile, by a report on another transaction.
            return
        said = ", ".join(f"{r.new.kind} {words(d.commit_failure or 0)}" for r, d in failed)
        reason = f"{item.peer} did not commit to {said}"
        tries = max(delivery.commit_failures for _, delivery in failed)
        if tries >= self._settings.max_refusals:
            self._give_up(item, now, f"{reason}, after {tries} times", _remedy_of_failure(item))
            return
        pause_s = backoff_s(tries, self._deliver, spread(item.case_id))
        self._ledger.send_uncommitted_again(item, now, reason, now + pause_s)
        log.warning("case %d: %s; sent again in %.0f s", item.case_id, reason, pause_s)

    def _refused_for_good(self, item: Uncommitted, now: float) -> bool:
        refused = _tail(self._ledger.commitments(item.run_id, item.peer), "refused")
        if len(refused) < self._settings.max_refusals:
            return False
        text = f"{item.peer} refused {len(refused)} times to be asked for storage commitment"
        self._give_up(item, now, f"{text}: {refused[0].detail}", self._remedy_of_refusal(item))
        return True

    def _too_late(self, item: Uncommitted, now: float) -> None:
        asked = self._ledger.commitments(item.run_id, item.peer)
        last = self._resting.reason(item.peer) or (asked[-1].detail if asked else "")
        text = f"{item.peer} did not commit to the results within {self._settings.give_up_after_h:g} h"
        self._give_up(item, now, f"{text}: {last or 'no report came'}", self._remedy_of_silence(item))

    def _give_up(self, item: Uncommitted, now: float, reason: str, remedy: str) -> None:
        if self._ledger.give_up(item.case_id, now, reason, remedy):
            log.error("case %d is FAILED: %s. %s", item.case_id, reason, remedy)

    def _remedy_of_refusal(self, item: Uncommitted) -> str:
        return (
            f"Let {item.peer} take storage commitment requests from {self._our_ae_title}, or set "
            f"commitment = false for it; then {_again(item)}"
        )

    def _remedy_of_silence(self, item: Uncommitted) -> str:
        return (
            f"Let {item.peer} report to {self._our_ae_title} at our host and port, in the SCP role, or set "
            f"commitment = false for it; then {_again(item)}"
        )

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def _ask(self, peer: Peer, due: list[Uncommitted], now: float) -> None:
        """Over one association, so that a PACS that is back after a week is not stormed."""
        clock = running(now, self._monotonic)

        def on_event(event: evt.Event) -> tuple[int, Dataset | None]:
            return self._reports.answer(event, peer.ae_title.strip())

        try:
            with requesting(peer, self._our_ae_title, self._deliver.timeout_s, on_event) as dialogue:
                for item in due:
                    self._ask_for(item, dialogue, clock)
                dialogue.wait(self._settings.stay_s)
        except LedgerUnavailable:
            raise
        except Transient as error:
            self._resting.rest(peer.name, error.reason, clock(), remedy=error.remedy)
        except NothingAccepted as error:
            for item in filter(self._missing, due):
                self._refused(item, self._begin(item, clock())[1], error.reason, clock())
        except Exception as error:  # the worker's loop: it must not be asked again at every tick
            log.exception("asking %s for storage commitment broke", peer.name)
            self._resting.rest(peer.name, f"asking {peer.name} broke: {error!r}", clock())
        else:
            self._resting.wake(peer.name)

    def _ask_for(self, item: Uncommitted, dialogue: Dialogue, clock: Callable[[], float]) -> None:
        if not self._missing(item):
            # A late report on an earlier request has come since the item was listed.
            return
        request, number = self._begin(item, clock())
        try:
            dialogue.request(request)
        except RequestRefused as refused:
            self._refused(item, number, refused.reason, clock())
        except Transient as error:
            # It may have heard us: its report would count.
            pause_s = backoff_s(1, self._deliver)
            self._ledger.asked(number, "unanswered", error.reason, clock() + pause_s)
            raise
        else:
            asked = self._ledger.commitments(item.run_id, item.peer)
            self._ledger.asked(
                number, "waiting", "", clock() + self._wait_s(1 + len(_tail(asked, "waiting")))
            )
            log.info(
                "case %d: %s is asked to commit to %d object(s)",
                item.case_id,
                item.peer,
                len(request.objects),
            )

    def _begin(self, item: Uncommitted, now: float) -> tuple[Request, int]:
        """Put the transaction into the ledger. returns: it, and its number."""
        missing = self._missing(item)
        request = Request.new((r.new.sop_class_uid, r.new.sop_instance_uid) for r, _ in missing)
        ids = [delivery.id for _, delivery in missing]
        return request, self._ledger.ask(item.run_id, item.peer, request.transaction_uid, ids, now)

    def _refused(self, item: Uncommitted, number: int, reason: str, now: float) -> None:
        asked = self._ledger.commitments(item.run_id, item.peer)
        pause_s = backoff_s(1 + len(_tail(asked, "refused")), self._deliver, spread(item.case_id))
        self._ledger.asked(number, "refused", reason, now + pause_s)
        if not self._refused_for_good(item, now):
            log.warning("case %d: %s; asked again in %.0f s", item.case_id, reason, pause_s)

    def _wait_s(self, times: int) -> float:
        """How long a report is waited for, after so many requests without one."""
        hours = self._settings.ask_again_h * 2.0 ** min(times - 1, 60)
        return min(hours, self._settings.max_ask_again_h) * 3600


def _tail(asked: Sequence[Commitment], outcome: str) -> list[Commitment]:
    """The last requests in a row that came to this; one that is under way does not count."""
    done = [c for c in reversed(asked) if c.outcome != "asking"]
    return list(takewhile(lambda c: c.outcome == outcome, done))


def _again(item: Uncommitted) -> str:
    return f"`dicomnode retry {item.case_id} --resend`"


def _remedy_of_failure(item: Uncommitted) -> str:
    return (
        f"Ask the administrator of {item.peer} for the reason; its log names the object; then {_again(item)}"
    )
