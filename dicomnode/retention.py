"""The stage that removes what is old enough, or more than the quota allows, of cases at their end.

::

    decide ── one transaction: rows go, files are named ──▶ files go, durably ──▶ their names go
                                                     └ a crash: the next start goes on from here

The ledger first, then the files. The other way round it would offer what is gone; this way a crash leaves
files that nothing speaks of, and the ledger has their names. A case keeps its row and its story, and its
results their UIDs: they are known when a PACS sends them back. An object that comes after the others of its
study were removed is a new one; the case then waits for the rest (`assemble`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicomnode.audit.trail import SILENT, Audit
from dicomnode.clock import Jumps
from dicomnode.config import Retention as Settings
from dicomnode.ledger import Ledger
from dicomnode.reception.spool import QUARANTINE, SPOOL, Spool
from dicomnode.records import Holding, Kept, Removal
from dicomnode.results import RESULTS
from dicomnode.states import State

log = logging.getLogger(__name__)

DAY_S = 86400.0
# Nothing is in a hurry here, and adding up what a large ledger keeps takes a second.
LOOK_EVERY_S = 60.0
# A tick stays short, so that a node that stops does not wait for it.
CASES_PER_TICK = 20
# Below this part of the quota removing ends: not one case for every case that comes.
LOW_WATER = 0.9
# A plan that is longer goes on when this much of it is carried out.
LONGEST_PLAN = 1000


@dataclass(frozen=True, slots=True)
class Planned:
    """Something that is to go, and why."""

    what: Literal["inputs", "results", "quarantine"]
    why: str
    objects: int
    size_bytes: int
    holding: Holding | None = None
    """The case that it belongs to; None for what was set aside."""
    numbers: tuple[int, ...] = ()
    """Of what was set aside, in the ledger."""
    strays: tuple[str, ...] = ()
    """Broken files in quarantine, of which the ledger knows nothing."""


class Retention:
    """Removes what is due. One thread calls `tick`; `stop` may come from another.

    monotonic: seconds of a clock that only runs forward. jumps: by how much the other one was set ahead.
    flush: tells the ledger of what was acknowledged so far.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        monotonic: Callable[[], float] = time.monotonic,
        audit: Audit = SILENT,
        jumps: Jumps | None = None,
        flush: Callable[[float], object] = lambda now: None,
    ) -> None:
        self._audit = audit
        self._flush = flush
        self._jumps = jumps or Jumps(steady=None)
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._monotonic = monotonic
        self._next_look: float | None = None
        self._above_quota = False
        self._told_of_quota = False
        self._stopping = threading.Event()

    def recover(self, now: float) -> None:
        """Finish what a crash, or a disk that did not let go of a file, has interrupted."""
        removals = self._ledger.removals()
        if removals:
            log.info("%d files that were given up still lie there: they are removed", len(removals))
        for removal in removals:
            # One claim at a time, whoever else holds several.
            with self._spool.claim(Path(removal.path).stem):
                # What was acknowledged before the claim is known to the ledger after this.
                self._flush(now)
                if not self._is_anew(removal):
                    self._spool.remove(self._with_strays([removal.path]))
                self._ledger.gone([removal])

    def tick(self, now: float) -> None:
        """Remove what is due, a few cases at a time."""
        monotonic = self._monotonic()
        if self._next_look is not None and monotonic < self._next_look:
            return
        self._next_look = monotonic + LOOK_EVERY_S
        self.recover(now)
        # A clock that was set ahead would make everything old at once.
        planned = self.plan(now - self._jumps.ahead_s(now))
        for item in planned[:CASES_PER_TICK]:
            if self._stopping.is_set():
                return
            self._remove(item, now)
        if len(planned) > CASES_PER_TICK:
            self._next_look = None

    def stop(self) -> None:
        """Finish the case that is being removed, and no more."""
        self._stopping.set()

    def plan(self, now: float) -> list[Planned]:
        """Everything that is due, in the order in which it goes."""
        planned = [*self._by_age(now), *self._quarantined(now)]
        planned += self._by_quota(now, planned)
        return planned

    def remove_due(self, now: float) -> list[Planned]:
        """All of `plan` at once, for a person who asks. returns: what has gone."""
        self.recover(now)
        planned = self.plan(now)
        for item in planned:
            self._remove(item, now)
        return planned

    # ── what is due ──────────────────────────────────────────────────────────────────────────

    def _by_age(self, now: float) -> Iterator[Planned]:
        settings = self._settings
        rules: tuple[tuple[Kept, State, str, float], ...] = (
            ("inputs", State.DONE, "inputs_days", settings.inputs_days),
            ("results", State.DONE, "results_days", settings.results_days),
            ("inputs", State.FAILED, "failed_days", settings.failed_days),
            ("results", State.FAILED, "failed_days", settings.failed_days),
        )
        for what, state, name, days in rules:
            if days:
                until = now - self._at_least(days)
                for holding in self._ledger.removable_cases(what, state, until, LONGEST_PLAN):
                    yield _planned(holding, f"{state} for more than [retention] {name} = {days:g}")

    def _quarantined(self, now: float) -> Iterator[Planned]:
        days = self._settings.quarantine_days
        if not days:
            return
        until = now - self._at_least(days)
        rows = self._ledger.removable_quarantine(until)
        strays = [p for p in self._quarantine().glob("*.broken") if p.stat().st_mtime <= until]
        if rows or strays:
            paths = [self._spool.data_dir / path for _, path in rows] + strays
            yield Planned(
                "quarantine",
                f"set aside more than [retention] quarantine_days = {days:g} ago",
                len(paths),
                sum(_size(path) for path in paths),
                numbers=tuple(number for number, _ in rows),
                strays=tuple(self._spool.relative(path) for path in strays),
            )

    def _by_quota(self, now: float, planned: Sequence[Planned]) -> Iterator[Planned]:
        """Inputs of the cases that were DONE first, then results: those are what is asked for."""
        quota = self._settings.quota_gb * 1e9
        if not quota:
            return
        kept = self._ledger.kept_bytes() + sum(_size(p) for p in self._quarantine().iterdir())
        kept -= sum(item.size_bytes for item in planned)
        goal = LOW_WATER * quota if self._above_quota else quota
        self._above_quota = kept > goal
        why = f"{kept / 1e9:.2f} GB are kept, more than [retention] quota_gb = {self._settings.quota_gb:g}"
        going = {(item.what, item.holding.case_id) for item in planned if item.holding is not None}
        kinds: tuple[Kept, ...] = ("inputs", "results") if self._above_quota else ()
        for what in kinds:
            for holding in self._ledger.removable_cases(
                what, State.DONE, now - self._minimum_s(), LONGEST_PLAN
            ):
                if kept <= LOW_WATER * quota:
                    self._told_of_quota = False
                    return
                if (what, holding.case_id) not in going:
                    kept -= holding.size_bytes
                    yield _planned(holding, why)
        self._tell_of_quota(kept, quota)

    def _tell_of_quota(self, kept: float, quota: float) -> None:
        """Once: what is left is under way, held, failed or too young."""
        if kept > quota and not self._told_of_quota:
            log.warning(
                "what is kept takes %.2f GB, more than [retention] quota_gb = %g, and no more of it may be "
                "removed: see to HELD and FAILED cases and to what is not delivered (`dicomnode cases`), or "
                "raise quota_gb",
                kept / 1e9,
                self._settings.quota_gb,
            )
        self._told_of_quota = kept > quota

    def _at_least(self, days: float) -> float:
        return max(days * DAY_S, self._minimum_s())

    def _minimum_s(self) -> float:
        return self._settings.minimum_age_h * 3600

    def _quarantine(self) -> Path:
        return self._spool.data_dir / QUARANTINE

    # ── removing ─────────────────────────────────────────────────────────────────────────────

    def _remove(self, item: Planned, now: float) -> None:
        if item.holding is None:
            self._finish(self._ledger.remove_quarantined(item.numbers, now))
            self._spool.remove(item.strays)
            log.info("%d objects removed from quarantine: %s", item.objects, item.why)
            return
        case = self._ledger.case(item.holding.case_id)
        classes = self._ledger.kept_classes(item.holding.what, case.id) if self._audit.is_kept else []
        if item.what == "inputs":
            removed = self._remove_inputs(item.holding, now)
        else:
            removed = self._ledger.remove_results(item.holding.case_id, item.holding.state, now)
            self._finish(removed)
        if removed:
            self._audit.deleted(case.study_instance_uid, case.identity.patient_id, classes)
            size_mb = item.size_bytes / 1e6
            number, what = item.holding.case_id, "received objects" if item.what == "inputs" else "results"
            log.info("case %d: %d %s (%.1f MB) removed: %s", number, len(removed), what, size_mb, item.why)

    def _remove_inputs(self, holding: Holding, now: float) -> list[Removal]:
        """Claimed meanwhile: an object that is sent again is either the old one, before, or a new one."""
        with self._spool.claim_all(self._ledger.received_uids(holding.case_id)):
            removed = self._ledger.remove_inputs(holding.case_id, holding.state, now)
            self._finish(removed)
        return removed

    def _is_anew(self, removal: Removal) -> bool:
        """Whether an object that came again lies in the place of a received one that was given up."""
        if not removal.path.startswith(f"{SPOOL}/"):
            return False
        try:
            written_at = (self._spool.data_dir / removal.path).stat().st_mtime
        except FileNotFoundError:
            return False
        # Another receiver's ledger rows may still be on their way.
        return written_at > removal.marked_at or bool(self._ledger.in_use([removal.path]))

    def _with_strays(self, paths: Sequence[str]) -> list[str]:
        """Files that were given up, and what lies beside results, all of which go at once: a node that was
        killed while it took a rejection note apart left parts of which the ledger never heard.
        """
        results = f"{RESULTS}/"
        folders = {(self._spool.data_dir / path).parent for path in paths if path.startswith(results)}
        beside = (self._spool.relative(file) for folder in folders for file in folder.glob("*"))
        return sorted({*paths, *beside})

    def _finish(self, removals: Sequence[Removal]) -> None:
        """Remove files that were given up, and then their names."""
        if removals:
            self._spool.remove(self._with_strays([removal.path for removal in removals]))
            self._ledger.gone(removals)


def _planned(holding: Holding, why: str) -> Planned:
    return Planned(holding.what, why, holding.objects, holding.size_bytes, holding)


def _size(path: Path) -> int:
    """0 of a file that has gone meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
