"""The stage that asks: what a study lacks is looked for in PACS and pulled from there.

::

    assemble: quiet, something is missing ─┐                  ┌─ it has more ── C-MOVE or C-GET ─▶ receive
    assemble: quiet, complete ─────────────┴─▶ want ── C-FIND ┴─ it has no more ─▶ settled ─▶ assemble

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


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one peer had, and what became of it."""

    missing: int
    pulled: Pulled
    note: str


class Fetcher:
    """Asks PACS about cases that want it. One thread calls `tick`; `stop` may come from another.

    store: takes an object that comes by C-GET. monotonic: seconds of a clock that only runs forward.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        store: Store,
        monotonic: Callable[[], float] = time.monotonic,
        audit: Audit = SILENT,
    ) -> None:
        self._audit = audit
        self._settings = config.fetch
        self._peers = config.sources()
        self._our_ae_title = config.node.ae_title
        self._ledger = ledger
        self._store = store
        self._monotonic = monotonic
        self._resting = Resting(config.fetch)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._asked: Source | None = None

    def tick(self, now: float) -> None:
        """Ask about every case that is due, the oldest first."""
        if not self._peers:
            return
        for case, want in self._ledger.open_wants():
            if self._stopping.is_set():
                return
            if want.requests >= self._settings.max_requests:
                # What came made another want of it; it has been asked about often enough.
                self._ledger.asked_about(want, 0.0, settled=True, differs="", counts=False)
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
        for peer in self._peers:
            if self._resting.rests(peer.name, now) or self._stopping.is_set():
                continue
            answer = self._ask_peer(peer, case, want, clock())
            if answer is not None:
                answers.append(answer)
                if answer.pulled.completed:
                    break
        if answers or not any(self._resting.rests(peer.name, now) for peer in self._peers):
            self._conclude(case, want, answers, clock())

    def _ask_peer(self, peer: Peer, case: Case, want: Want, now: float) -> _Answer | None:
        """returns: None when the peer did not answer."""
        number = self._ledger.begin_enquiry(case.id, peer.name, want.lacking, now)
        settings, study = self._settings, case.study_instance_uid
        self._audit.asked(Party(peer.ae_title, peer.host), study)
        try:
            with source(
                peer, self._our_ae_title, settings.timeout_s, settings.by, sorted(PULLED), self._store
            ) as asked:
                with self._lock:
                    self._asked = asked
                missing, note = self._missing(asked, case, want)
                pulled = Pulled(0, 0, "")
                for series in missing:
                    pulled += asked.pull(study, series.series_instance_uid, series.uids)
        except LedgerUnavailable:
            raise
        except Transient as error:
            reason = "the node stopped" if self._stopping.is_set() else error.reason
            self._ledger.end_enquiry(number, "unreachable", missing=0, came=0, detail=reason)
            self._resting.rest(peer.name, reason, now)
            return None
        except NodeError as error:  # a living peer wants no association, or does not answer such a query
            log.warning("case %d: %s", case.id, error)
            return self._in_vain(number, error.reason)
        except Exception as error:  # the worker's loop: whatever it answers, it is not asked at once again
            log.exception("case %d: asking %s broke", case.id, peer.name)
            return self._in_vain(number, f"asking {peer.name} broke: {error!r}")
        finally:
            with self._lock:
                self._asked = None
        self._resting.wake(peer.name)
        answer = _Answer(sum(len(series.uids) for series in missing), pulled, note)
        self._record(number, peer, case, answer)
        return answer

    def _in_vain(self, number: int, reason: str) -> _Answer:
        self._ledger.end_enquiry(number, "refused", missing=0, came=0, detail=reason)
        return _Answer(0, Pulled(0, 0, reason), "")

    def _record(self, number: int, peer: Peer, case: Case, answer: _Answer) -> None:
        missing, came = answer.missing, answer.pulled.completed
        detail = "; ".join(text for text in (answer.pulled.trouble, answer.note) if text)
        outcome = "agrees" if not missing else "came" if came >= missing else "partly" if came else "failed"
        self._ledger.end_enquiry(number, outcome, missing=missing, came=came, detail=detail)
        level = logging.WARNING if came < missing else logging.INFO
        text = f": {detail}" if detail else ""
        log.log(
            level, "case %d: %s has %d object(s) more, %d came%s", case.id, peer.name, missing, came, text
        )

    def _conclude(self, case: Case, want: Want, answers: list[_Answer], now: float) -> None:
        """When to ask again, and what assembly must know."""
        left = sum(max(0, answer.missing - answer.pulled.completed) for answer in answers)
        agree = bool(answers) and not any(a.missing or a.pulled.trouble for a in answers)
        enough = want.requests + bool(answers) >= self._settings.max_requests
        pause_s = backoff_s(want.requests + 1, self._settings, spread(case.id))
        self._ledger.asked_about(
            want,
            now + pause_s,
            settled=enough or (agree and not want.lacking),
            differs=f"PACS has {left} object(s) of its series that did not come" if left else "",
            counts=bool(answers),
        )

    # ── what is missing ──────────────────────────────────────────────────────────────────────

    def _missing(self, asked: Source, case: Case, want: Want) -> tuple[list[_Missing], str]:
        """returns: what the peer has of the study and the node needs, and what was left out."""
        held = self._ledger.holdings(case.id)
        missing: list[_Missing] = []
        left_out = 0
        room = self._settings.max_objects
        for series in sorted(asked.series(case.study_instance_uid), key=lambda s: s.objects or 0):
            classes = _wanted_classes(series, held, want)
            if not classes:
                continue
            objects = asked.objects(case.study_instance_uid, series.uid)
            # A peer that does not tell the class is taken at its modality's word.
            uids = [o.uid for o in objects if o.sop_class_uid in classes or not o.sop_class_uid]
            unknown = self._ledger.unknown(case.study_instance_uid, uids)
            if len(unknown) > room:
                left_out += 1
            elif unknown:
                room -= len(unknown)
                missing.append(_Missing(series.uid, tuple(uid for uid in uids if uid in unknown)))
        note = f"{left_out} series left out: more than [fetch] max_objects" if left_out else ""
        return missing, note


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
