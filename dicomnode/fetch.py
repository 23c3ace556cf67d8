"""The stage that asks: what a study lacks is looked for in PACS and pulled from there.

::

    assemble: quiet, something is missing ─┐                  ┌─ it has more ── C-MOVE or C-GET ─▶ receive
    assemble: quiet, complete ─────────────┴─▶ want ── C-FIND ┴─ it has no more ─▶ settled ─▶ assemble

What a PACS has and the node lacks is in the ledger before it is pulled, and whether it came is seen there
and nowhere else: a PACS that sends to another host with our AE title says of everything that it was sent.

Guards against loops. Only studies are asked for of which a peer sent us something, and only while their
case collects. Of a series that nothing came of, CT, NM and PET objects alone are pulled; of one that came
in part, what else a computation reads. None of these classes is one that the node makes, so that its own
results never come this way. What was refused, set aside or is here is not asked for again; each study is
asked about `[fetch] max_requests` times, with pauses that double.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydicom.uid import (
    CTImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
    RTStructureSetStorage,
    SpatialRegistrationStorage,
)

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.clock import running
from dicomnode.config import Config, Peer
from dicomnode.errors import LedgerUnavailable, NodeError, Transient
from dicomnode.ledger import Ledger
from dicomnode.patience import Resting, backoff_s, lasts, spread
from dicomnode.query.scu import FoundSeries, Pulled, Source, Store, source
from dicomnode.records import Case, Held, Want

_CT = frozenset({str(CTImageStorage)})
_SPECT = frozenset({str(NuclearMedicineImageStorage), str(PositronEmissionTomographyImageStorage)})
# Series of which nothing came: by kind, the modalities to look into (GE writes OT) and the classes to pull.
_KINDS = {
    "CT": (("CT",), _CT),
    "SPECT": (("NM", "PT", "OT", "ST"), _SPECT),
}
# None of them is made by the node (SEG, RT Dose and reports are).
PULLED = frozenset(
    {
        *_CT,
        *_SPECT,
        str(RTStructureSetStorage),
        str(SpatialRegistrationStorage),
        str(RadiopharmaceuticalRadiationDoseSRStorage),
    }
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Missing:
    """Objects of a series that a peer has and the node lacks."""

    series_instance_uid: str
    uids: tuple[str, ...]
    sop_classes: tuple[str, ...]
    """Of those whose class the peer tells."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a peer has of a study and the node lacks."""

    to_pull: list[_Missing]
    named: dict[str, list[str]]
    """All of it: Series Instance UID → SOP Instance UIDs."""
    left_out: int
    """Series that hold too many objects to be pulled."""
    not_asked_for: int
    """Objects that came before and did not become part of the case."""

    def __str__(self) -> str:
        notes = []
        if self.left_out:
            notes.append(f"{self.left_out} series left out: more than [fetch] max_objects")
        if self.not_asked_for:
            notes.append(
                f"{self.not_asked_for} object(s) not asked for: they were refused when they came, or are "
                "here under another study"
            )
        return "; ".join(notes)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one peer had, and what became of it."""

    missing: int
    came: int
    trouble: str


class Fetcher:
    """Asks PACS about cases that want it. One thread calls `tick`; `stop` may come from another.

    store: takes an object that comes by C-GET. monotonic: seconds of a clock that only runs forward.
    flush: has the ledger hear of what was received so far.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        store: Store,
        monotonic: Callable[[], float] = time.monotonic,
        audit: Audit = SILENT,
        flush: Callable[[float], object] = lambda now: None,
    ) -> None:
        self._audit = audit
        self._settings = config.fetch
        self._peers = config.sources()
        self._our_ae_title = config.node.ae_title
        self._ledger = ledger
        self._store = store
        self._monotonic = monotonic
        self._flush = flush
        self._resting = Resting(config.fetch)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._asked: Source | None = None
        self._left_open = False

    def recover(self) -> None:
        """Close the enquiries that a node left open when it was stopped. Raises LedgerUnavailable."""
        self._ledger.close_enquiries("the node stopped")

    def tick(self, now: float) -> None:
        """Ask about every case that is due, the oldest first."""
        if not self._peers:
            return
        if self._left_open:
            self._ledger.close_enquiries("the ledger did not answer while it was asked")
            self._left_open = False
        for case, want in self._ledger.open_wants():
            if self._stopping.is_set():
                return
            if want.requests >= self._settings.max_requests:
                # What came made another want of it; it has been asked about often enough.
                self._ledger.asked_about(want, 0.0, settled=True, counts=False)
            elif not lasts(want.next_attempt_at, now, self._settings.max_retry_s):
                self._ask(case, want, now)

    def stop(self) -> None:
        """Ask no more: a C-MOVE may take minutes, and what has come by then is kept."""
        self._stopping.set()
        with self._lock:
            if self._asked is not None:
                self._asked.abort()

    def _ask(self, case: Case, want: Want, now: float) -> None:
        """One round: peer after peer, until one has sent something."""
        clock = running(now, self._monotonic)
        answers: list[_Answer] = []
        unheard = False
        for peer in self._peers:
            if self._resting.rests(peer.name, now) or self._stopping.is_set():
                unheard = True
                continue
            answer = self._ask_peer(peer, case, want, clock)
            if answer is None:
                unheard = True
                continue
            answers.append(answer)
            if answer.came:
                break
        if answers or not any(self._resting.rests(peer.name, now) for peer in self._peers):
            self._conclude(case, want, answers, unheard, clock())

    def _ask_peer(self, peer: Peer, case: Case, want: Want, clock: Callable[[], float]) -> _Answer | None:
        """returns: None when the peer did not answer."""
        number = self._ledger.begin_enquiry(case.id, peer.name, want.lacking, clock())
        self._audit.asked(Party(peer.ae_title, peer.host), case.study_instance_uid)
        try:
            answer = self._enquire(number, peer, case, want, clock)
        except LedgerUnavailable:
            self._left_open = True
            raise
        except Transient as error:
            reason = "the node stopped" if self._stopping.is_set() else error.reason
            self._break_off(number, "unreachable", reason, clock())
            self._resting.rest(peer.name, reason, clock(), remedy=error.remedy)
            return None
        except NodeError as error:  # a living peer does not answer such a query
            log.warning("case %d: %s", case.id, error)
            return self._break_off(number, "refused", error.reason, clock())
        except Exception as error:  # the worker's loop: whatever it answers, it is not asked at once again
            log.exception("case %d: asking %s broke", case.id, peer.name)
            return self._break_off(number, "refused", f"asking {peer.name} broke: {error!r}", clock())
        finally:
            with self._lock:
                self._asked = None
        self._resting.wake(peer.name)
        return answer

    def _enquire(
        self, number: int, peer: Peer, case: Case, want: Want, clock: Callable[[], float]
    ) -> _Answer:
        """Look and pull. Raises NodeError, Transient."""
        settings, party = self._settings, Party(peer.ae_title, peer.host)
        with source(
            peer, self._our_ae_title, settings.timeout_s, settings.by, sorted(PULLED), self._store
        ) as asked:
            with self._lock:
                self._asked = asked
            found = self._missing(asked, party, case, want)
            # A pull may last, fail, or end with the node: what is missing is known from here on.
            self._ledger.named(number, found.named)
            pulled = self._pull(asked, party, case, found, clock)
        return self._record(number, peer, case, found, pulled, clock())

    def _pull(
        self, asked: Source, party: Party, case: Case, found: _Found, clock: Callable[[], float]
    ) -> Pulled:
        """Have it sent. Raises Transient."""
        pulled = Pulled(0, 0, "")
        if not found.to_pull:
            return pulled
        study, patient = case.study_instance_uid, case.identity.patient_id
        classes = [uid for series in found.to_pull for uid in series.sop_classes]
        self._audit.fetching(party, study, patient, classes)
        wanted = [uid for series in found.to_pull for uid in series.uids]
        try:
            for series in found.to_pull:
                pulled += asked.pull(study, series.series_instance_uid, series.uids)
        finally:
            self._flush(clock())
            left = len(self._ledger.absent(case.id, wanted))
            if left:
                text = f"{left} of {len(wanted)} object(s) did not come; the log says why"
                self._audit.not_fetched(party, study, patient, text)
        return pulled

    def _record(
        self, number: int, peer: Peer, case: Case, found: _Found, pulled: Pulled, now: float
    ) -> _Answer:
        """The peer has answered to the end. What came is counted here, not there."""
        missing, came = self._counted(number, now)
        unseen = self._unseen(peer, pulled) if came < min(missing, pulled.completed) else ""
        detail = "; ".join(text for text in (pulled.trouble, unseen, str(found)) if text)
        short = "sent" if unseen else "partly" if came else "failed"
        outcome = "agrees" if not missing else "came" if came == missing else short
        self._ledger.end_enquiry(number, outcome, came=came, detail=detail)
        level = logging.WARNING if came < missing else logging.INFO
        text = f": {detail}" if detail else ""
        log.log(
            level, "case %d: %s has %d object(s) more, %d came%s", case.id, peer.name, missing, came, text
        )
        return _Answer(missing, came, pulled.trouble)

    def _unseen(self, peer: Peer, pulled: Pulled) -> str:
        by = f"C-MOVE to {self._our_ae_title}" if self._settings.by == "move" else "C-GET"
        return f"{peer.name} says that it sent {pulled.completed} object(s) by {by}; they did not arrive here"

    def _break_off(self, number: int, outcome: str, reason: str, now: float) -> _Answer:
        """The enquiry ended early; what it has named stays named."""
        missing, came = self._counted(number, now)
        self._ledger.end_enquiry(number, outcome, came=came, detail=reason)
        return _Answer(missing, came, reason)

    def _counted(self, number: int, now: float) -> tuple[int, int]:
        """returns: how many objects an enquiry has named, and how many of them are here."""
        self._flush(now)
        return self._ledger.counted(number)

    def _conclude(self, case: Case, want: Want, answers: list[_Answer], unheard: bool, now: float) -> None:
        """When to ask again, and whether at all. unheard: a PACS did not answer, and may have more."""
        agree = bool(answers) and not unheard and not any(a.missing or a.trouble for a in answers)
        enough = want.requests + bool(answers) >= self._settings.max_requests
        pause_s = backoff_s(want.requests + 1, self._settings, spread(case.id))
        settled = enough or (agree and not want.lacking)
        self._ledger.asked_about(want, now + pause_s, settled=settled, counts=bool(answers))

    # ── what is missing ──────────────────────────────────────────────────────────────────────

    def _missing(self, asked: Source, party: Party, case: Case, want: Want) -> _Found:
        """What the peer has of the study and the node needs."""
        held = self._ledger.holdings(case.id)
        to_pull: list[_Missing] = []
        named: dict[str, list[str]] = {}
        left_out = not_asked_for = 0
        room = self._settings.max_objects
        for series in sorted(asked.series(case.study_instance_uid), key=lambda s: s.objects or 0):
            classes = _wanted_classes(series, held, want)
            if not classes:
                continue
            self._audit.asked(party, case.study_instance_uid, series.uid)
            objects = asked.objects(case.study_instance_uid, series.uid)
            # A peer that does not tell the class is taken at its modality's word.
            uids = [o.uid for o in objects if o.sop_class_uid in classes or not o.sop_class_uid]
            absent = self._ledger.absent(case.id, uids)
            unknown = self._ledger.unknown(case.study_instance_uid, absent)
            named.setdefault(series.uid, []).extend(sorted(absent))
            not_asked_for += len(absent) - len(unknown)
            if len(unknown) > room:
                left_out += 1
            elif unknown:
                room -= len(unknown)
                told = tuple(o.sop_class_uid for o in objects if o.uid in unknown and o.sop_class_uid)
                to_pull.append(_Missing(series.uid, tuple(uid for uid in uids if uid in unknown), told))
        return _Found(to_pull, named, left_out, not_asked_for)


def _wanted_classes(series: FoundSeries, held: dict[str, Held], want: Want) -> frozenset[str]:
    """The SOP classes to be pulled of a series; none when there is nothing to look for in it."""
    here = held.get(series.uid)
    if here is not None:
        agrees = series.objects is not None and series.objects <= here.objects
        return frozenset() if agrees or here.discarded else here.sop_classes & PULLED
    had = frozenset().union(*(h.sop_classes for h in held.values() if not h.discarded))
    wanted: frozenset[str] = frozenset()
    for kind, (modalities, classes) in _KINDS.items():
        if series.modality in modalities and (kind in want.kinds or not had & classes):
            wanted |= classes
    return wanted
