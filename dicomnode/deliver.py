"""The stage that sends: ENCODED → SENDING → DONE, or FAILED.

A case whose destinations are asked for storage commitment is DONE when they have committed; `commitment`
asks them, and has sent again here what they could not commit to.

Each object goes to each destination, and each answer is recorded at once, so that a crash sends
again only what is not recorded, under the same UIDs (a PACS takes that as the object it has).

Patience. A destination that cannot be reached, rejects associations or is out of resources is tried again
with a pause that doubles; meanwhile it rests for every case, so that cases do not queue up at a dead PACS,
nor all storm it when it is back. A living one that refuses an object is asked a few times, then a person is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.clock import Jumps, running
from dicomnode.config import Config, Peer
from dicomnode.errors import LedgerUnavailable, NodeError, Transient
from dicomnode.held_files import folder_away
from dicomnode.ledger import Ledger
from dicomnode.network.iocm import NO_SUCH_INSTANCE
from dicomnode.network.send import Answer, Outgoing, Verdict, send
from dicomnode.patience import Resting, backoff_s, lasts, spread
from dicomnode.privacy import without_identity
from dicomnode.records import Attempt, Case, Delivery, Result, Run
from dicomnode.results.notes_apart import taken_apart
from dicomnode.results.writing import damage
from dicomnode.states import Event, State

CASES_PER_TICK = 4

# After these answers a destination needs an object no more.
_SETTLED = (Verdict.STORED, Verdict.NEEDLESS)

# One result and how it stands with one destination.
Item = tuple[Result, Delivery]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Hopeless:
    """Why sending again would not help, and what would."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Flaw:
    """Why a result is not sent. is_final: waiting does not mend it."""

    reason: str
    is_final: bool


_Flaws = dict[int, _Flaw]
"""By the id of the result; of those that have none, nothing."""


class _Stopped(Exception):
    """The node is asked to stop between two objects."""


class Deliverer:
    """Sends what is due. One thread calls `tick`; `stop` may come from another.

    monotonic: seconds of a clock that only runs forward, for what happens during a tick. jumps: of the
    clock that `tick` is told; None: it is never set.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        monotonic: Callable[[], float] = time.monotonic,
        audit: Audit = SILENT,
        jumps: Jumps | None = None,
    ) -> None:
        self._audit = audit
        self._jumps = jumps
        self._settings = config.deliver
        self._destinations = {peer.name: peer for peer in config.destinations()}
        self._our_ae_title = config.node.ae_title
        self._data_dir = config.node.data_dir
        self._ledger = ledger
        self._monotonic = monotonic
        self._committing = config.committing()
        self._resting = Resting(config.deliver)
        self._stopping = threading.Event()

    def tick(self, now: float) -> None:
        """Try the cases that are due, a few at a time: of those that failed as often the oldest first.

        So one at which a destination fails each time does not keep the others from it for ever.
        """
        tried, lacking = 0, cache(self._ledger.open_destinations)
        for case in sorted(self._ledger.to_deliver(self._committing), key=lambda case: case.attempts):
            if self._stopping.is_set() or tried == CASES_PER_TICK:
                return
            if lasts(case.next_attempt_at, now, self._settings.max_retry_s):
                continue
            if _is_asked_for(case) or not self._all_rest(case, lacking, now):
                tried += self._try(case, now)

    def stop(self) -> None:
        """Let the object that is under way finish, then send nothing more."""
        self._stopping.set()

    def deliver(self, case: Case, now: float) -> bool:
        """One attempt at a case. returns: False when all that it waits for is resting."""
        run = self._ledger.latest_run(case.id)
        if run is None:
            raise NodeError(f"case {case.id} is {case.state} without results", "Please report this bug")
        waiting = _by_peer(_open(self._ledger.deliveries(run.id)))
        asked = _is_asked_for(case)
        awake = {name: items for name, items in waiting.items() if asked or not self._rests(name, now)}
        if waiting and not awake:
            return False
        clock = running(now, self._monotonic)
        happened = Event.SEND if case.state is State.ENCODED else None
        attempt = self._ledger.begin(case.id, happened, "deliver", now)
        try:
            for name, items in awake.items():
                if name in self._destinations:
                    self._send(case, self._destinations[name], items, clock)
        except _Stopped:
            self._ledger.end(attempt, None, clock(), outcome="interrupted", reason="the node stopped")
        except LedgerUnavailable:
            raise
        except Exception as error:  # the worker's loop: whatever it is, this attempt failed
            log.exception("case %d: sending broke", case.id)
            self._stumble(case, f"sending broke: {error!r}", attempt, clock())
        else:
            self._conclude(case, run, attempt, clock())
        return True

    def _try(self, case: Case, now: float) -> bool:
        """As `deliver`; a case that cannot be sent does not keep the others waiting."""
        try:
            return self.deliver(case, now)
        except LedgerUnavailable:
            raise
        except NodeError as error:
            log.error("case %d was not sent: %s", case.id, error)
            return True

    # ── sending ──────────────────────────────────────────────────────────────────────────────

    def _send(self, case: Case, peer: Peer, items: list[Item], clock: Callable[[], float]) -> None:
        """Send to one destination what it lacks; one that takes nothing at the moment rests."""
        try:
            self._send_in_order(case, peer, items, clock)
        except LedgerUnavailable:
            # No fault of the peer.
            raise
        except Transient as error:
            self._resting.rest(peer.name, error.reason, clock(), f"; case {case.id} waits", error.remedy)
        else:
            self._resting.wake(peer.name)

    def _send_in_order(self, case: Case, peer: Peer, items: list[Item], clock: Callable[[], float]) -> None:
        """A rejection note comes first, and without it nothing else goes to a destination: it would hold two
        contradictory doses unmarked. The other way round it holds none that is valid, for a moment.
        """
        left = [item for item in items if _is_note(item)]
        sent: set[int] = set()
        while notes := [item for item in left if item[0].id not in sent]:
            self._send_items(case, peer, notes, clock)
            sent |= {result.id for result, _ in notes}
            # Taking one apart brought more.
            now_open = _by_peer(_open(self._ledger.deliveries(notes[0][0].run_id)))
            left = [item for item in now_open.get(peer.name, []) if _is_note(item)]
        rest = [item for item in items if not _is_note(item)]
        if rest and not left:
            self._send_items(case, peer, rest, clock)

    def _send_items(self, case: Case, peer: Peer, items: list[Item], clock: Callable[[], float]) -> None:
        """Send what is still on disk, as it was written. Raises Transient."""
        taken: set[str] = set()
        by_uid = {result.new.sop_instance_uid: (result, delivery) for result, delivery in items}

        def on_answer(file: Outgoing, answer: Answer) -> None:
            item = by_uid[file.sop_instance_uid]
            if answer.verdict is not Verdict.NEEDLESS or not self._took_apart(case, item, answer, clock()):
                self._record(case, item, answer, clock())
            if answer.verdict is Verdict.STORED:
                taken.add(file.sop_instance_uid)
            if self._stopping.is_set():
                raise _Stopped

        files = [self._outgoing(result) for result, _ in items if self._flaw(result) is None]
        party, patient = Party(peer.ae_title, peer.host), case.identity.patient_id
        study = case.study_instance_uid
        self._audit.sending(party, study, patient, [file.sop_class_uid for file in files])
        try:
            send(peer, files, self._our_ae_title, self._settings.timeout_s, on_answer)
        finally:
            stored = [file.sop_class_uid for file in files if file.sop_instance_uid in taken]
            others = [file.sop_class_uid for file in files if file.sop_instance_uid not in taken]
            self._audit.sent(party, study, patient, stored)
            self._audit.sent(party, study, patient, others, failure="not taken; the log says why")

    def _took_apart(self, case: Case, item: Item, answer: Answer, now: float) -> bool:
        """Have a note for each object go in the place of one of which the destination took nothing.

        returns: False for a note of a single object: with that there is nothing to do there. Raises Transient
        when they cannot be written.
        """
        new, delivery = item[0].new, item[1]
        try:
            notes = taken_apart(new, self._data_dir)
        except OSError as error:
            # Without its Error Comment, which may name the patient: this becomes the reason of other cases.
            why = error.strerror or error
            raise Transient(
                f"{delivery.peer} took nothing of {new.kind} {new.sop_instance_uid} "
                f"(0x{answer.status or 0:04X}); a note for each object cannot be written: {why}",
                "Look at the disk of [node] data_dir (room, rights)",
            ) from error
        if not notes:
            return False
        detail = f"{answer.text}; {len(notes)} notes of one object each in its place"
        self._ledger.taken_apart(item, notes, now, status=answer.status or 0, detail=detail)
        text = f"case {case.id}: {delivery.peer} took nothing of {new.kind} {new.sop_instance_uid}: {detail}"
        log.warning(without_identity(text, case))
        return True

    def _record(self, case: Case, item: Item, answer: Answer, now: float) -> None:
        result, delivery = item
        refused = answer.verdict is Verdict.REFUSED
        self._ledger.answered(
            delivery,
            now,
            status=answer.status,
            detail=answer.text,
            delivered=answer.verdict in _SETTLED,
            refused=refused,
            sent=not (refused and answer.status is None),
            keeps=answer.verdict is not Verdict.NEEDLESS,
        )
        name, uid = result.new.kind, result.new.sop_instance_uid
        # An error comment is the peer's: it may name the patient.
        text = f": {without_identity(answer.text, case)}" if answer.text else ""
        log.log(
            _level(answer), "case %d: %s %s %s %s%s", case.id, delivery.peer, answer.verdict, name, uid, text
        )

    def _outgoing(self, result: Result) -> Outgoing:
        new = result.new
        return Outgoing(
            self._data_dir / new.path, new.sop_class_uid, new.sop_instance_uid, new.transfer_syntax_uid
        )

    def _flaw(self, result: Result) -> _Flaw | None:
        """Why the file of a result is not to be sent; None when it is what was written."""
        new = result.new
        named = f"the file of {new.kind} {new.sop_instance_uid}"
        try:
            found = damage(self._data_dir / new.path, new.size_bytes)
        except FileNotFoundError:
            if folder := folder_away(self._data_dir, new.path):
                return _Flaw(f"{folder} is away", is_final=False)
            return _Flaw(f"{named} is gone: {new.path}", is_final=True)
        except OSError as error:
            why = error.strerror or str(error)
            return _Flaw(f"{named} cannot be read ({why}): {new.path}", is_final=False)
        return _Flaw(f"{named} is damaged ({found}): {new.path}", is_final=True) if found else None

    # ── what follows ─────────────────────────────────────────────────────────────────────────

    def _conclude(self, case: Case, run: Run, attempt: Attempt, now: float) -> None:
        items = self._ledger.deliveries(run.id)
        left = _open(items)
        flaws = {result.id: flaw for result, _ in left if (flaw := self._flaw(result))}
        if not left:
            nobody = "no destination is configured: the results stay in data_dir/results"
            case = self._ledger.delivered(attempt, run, now, "" if items else nobody, self._committing)
            text = f": {case.reason}" if case.state is State.SENDING else ""
            log.info("case %d is %s: every destination has every result%s", case.id, case.state, text)
        elif hopeless := self._hopeless(case, left, flaws, now):
            self._ledger.end(
                attempt, Event.GIVE_UP, now, outcome="failed", reason=hopeless.reason, remedy=hopeless.remedy
            )
            text = without_identity(f"{hopeless.reason}. {hopeless.remedy}", case)
            log.error("case %d is FAILED: %s", case.id, text)
        else:
            reason = "; ".join(dict.fromkeys(self._trouble(item, flaws) for item in left))
            remedies = (self._resting.remedy(delivery.peer) for _, delivery in left)
            remedy = "; ".join(dict.fromkeys(filter(None, remedies)))
            # Of a destination that rests the log has a line, however many cases wait for it.
            is_told = all(self._resting.reason(delivery.peer) is not None for _, delivery in left)
            level = logging.DEBUG if is_told else logging.WARNING
            self._stumble(case, reason, attempt, now, remedy, level)

    def _stumble(
        self,
        case: Case,
        reason: str,
        attempt: Attempt,
        now: float,
        remedy: str = "",
        level: int = logging.WARNING,
    ) -> None:
        pause_s = backoff_s(case.attempts + 1, self._settings, jitter=spread(case.id))
        self._ledger.end(
            attempt,
            Event.STUMBLE,
            now,
            outcome="failed",
            reason=reason,
            remedy=remedy,
            attempts=case.attempts + 1,
            next_attempt_at=now + pause_s,
        )
        text = without_identity(reason, case)
        log.log(level, "case %d: %s; tried again in %.0f s", case.id, text, pause_s)

    def _trouble(self, item: Item, flaws: _Flaws) -> str:
        result, delivery = item
        resting = self._resting.reason(delivery.peer)
        if resting is not None:
            return resting
        if flaw := flaws.get(result.id):
            return flaw.reason
        return f"{delivery.peer} did not take {result.new.kind}: {delivery.detail or 'not sent'}"

    def _hopeless(self, case: Case, left: list[Item], flaws: _Flaws, now: float) -> _Hopeless | None:
        """The first reason for which another attempt would be in vain."""
        again = f"`dicomnode retry {case.id} --resend`"
        for result, delivery in left:
            new = result.new
            if delivery.peer not in self._destinations:
                return _Hopeless(
                    f"{new.kind} is meant for {delivery.peer!r}, which [deliver] to no longer names",
                    f"Name it again, or send to the destinations that are configured now: {again}",
                )
            if (flaw := flaws.get(result.id)) and flaw.is_final:
                return _Hopeless(
                    flaw.reason,
                    f"Check the disk; restore the file, then {again}; or compute again: "
                    f"`dicomnode retry {case.id}`",
                )
            if delivery.refusals >= self._settings.max_refusals:
                is_note = _is_note((result, delivery))
                or_not = (
                    ", or set its rejection_notes = false and reload the node (SIGHUP)" if is_note else ""
                )
                return _Hopeless(
                    f"{delivery.peer} refused {new.kind} {new.sop_instance_uid} "
                    f"{delivery.refusals} times: {delivery.detail}",
                    f"{_remedy(delivery, self._our_ae_title)}{or_not}; then {again}",
                )
        return self._too_late(case, left, flaws, now, again)

    def _too_late(
        self, case: Case, left: list[Item], flaws: _Flaws, now: float, again: str
    ) -> _Hopeless | None:
        limit_h = self._settings.give_up_after_h
        if not limit_h:
            return None
        # A clock that was set ahead makes nothing late.
        ahead_s = 0.0 if self._jumps is None else self._jumps.ahead_s(now)
        for item, *_ in _by_peer(left).values():
            if now - self._begun(case, item, now) - ahead_s >= limit_h * 3600:
                remedy = self._resting.remedy(item[1].peer) or "Bring the destination back"
                return _Hopeless(
                    f"not delivered within {limit_h:g} h: {self._trouble(item, flaws)}",
                    f"{remedy}; then {again}",
                )
        return None

    def _begun(self, case: Case, item: Item, now: float) -> float:
        """When this round of sending to a destination began.

        That had everything when it was asked to commit: what it then could not commit to, perhaps days
        later, is sent again from the first attempt after its report.
        """
        result, delivery = item
        asked = self._ledger.commitments(result.run_id, delivery.peer)
        failed = [c.reported_at for c in asked if c.outcome == "failed" and c.reported_at is not None]
        if failed:
            attempts = [a.started_at for a in self._ledger.attempts(case.id) if a.stage == "deliver"]
            return min((at for at in attempts if at >= max(failed)), default=now)
        return max(t.at for t in self._ledger.story(case.id) if t.event in (Event.SEND, Event.RESEND))

    # ── resting destinations ─────────────────────────────────────────────────────────────────

    def _all_rest(self, case: Case, lacking: Callable[[], dict[int, frozenset[str]]], now: float) -> bool:
        """Whether all that a case waits for is resting. lacking: asks the ledger, once a tick for all."""
        if not any(self._rests(name, now) for name in self._destinations):
            return False
        left = lacking().get(case.id, frozenset())
        return bool(left) and all(self._rests(name, now) for name in left)

    def _rests(self, name: str, now: float) -> bool:
        return name in self._destinations and self._resting.rests(name, now)


def _is_asked_for(case: Case) -> bool:
    """RESEND sets the count of attempts to 0: a person who asks does not wait for a pause to end."""
    return case.state is State.SENDING and case.attempts == 0


def _open(items: Iterable[Item]) -> list[Item]:
    return [(result, delivery) for result, delivery in items if delivery.delivered_at is None]


def _by_peer(items: Iterable[Item]) -> dict[str, list[Item]]:
    grouped: dict[str, list[Item]] = {}
    for result, delivery in items:
        grouped.setdefault(delivery.peer, []).append((result, delivery))
    return grouped


def _is_note(item: Item) -> bool:
    return item[0].new.sop_class_uid == KeyObjectSelectionDocumentStorage


def _level(answer: Answer) -> int:
    """How loud an answer is told."""
    if answer.verdict is Verdict.OUT_OF_RESOURCES:
        # The destination rests, and that is a line of its own, without one for each object.
        return logging.DEBUG
    if answer.verdict is Verdict.NEEDLESS and answer.status == NO_SUCH_INSTANCE:
        # Deleted there, or hidden from the note by a merge: only a person can tell.
        return logging.ERROR
    return logging.WARNING if answer.text else logging.INFO


def _remedy(delivery: Delivery, our_ae_title: str) -> str:
    """What a person can do about a refusal, PS3.4 Table B.2-1."""
    status = delivery.status
    if status is None:
        return f"Let {delivery.peer} know {our_ae_title} and accept this SOP class and transfer syntax"
    if status in (0x0122, 0x0124):
        return f"Let {delivery.peer} accept this SOP class from {our_ae_title}"
    return f"Ask the administrator of {delivery.peer} for the reason; its log names the object"
