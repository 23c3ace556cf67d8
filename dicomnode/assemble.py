"""Stage 2: received objects → a complete, consistent case.

A study is looked at when nothing new has come for `quiet_s`. What is missing is waited for until
`max_wait_s` after the last object; what is unsafe is HELD at once. Both clocks belong to the study:
a peer may open as many associations as it likes.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dicomnode.clock import Jumps
from dicomnode.comparison import Comparison
from dicomnode.config import Assemble, Fetch
from dicomnode.errors import Incomplete, LedgerUnavailable, Rejected
from dicomnode.ledger import Ledger
from dicomnode.privacy import without_identity
from dicomnode.reception.intake import DAMAGED
from dicomnode.records import Case, Identity, Inputs, Instance, RemovedSeries
from dicomnode.selection import INPUT_CLASSES, Header, Preferences, choose, digest, read_header
from dicomnode.states import State
from pipeline.camera import Camera
from pipeline.dose_report import administered
from pipeline.errors import InputRejected
from pipeline.spect import describe_spect

log = logging.getLogger(__name__)

_LOOK = "Look at the file that the reason names; then `dicomnode retry` computes without it"
_SEND_AGAIN = "Check the disk and have what the reason names sent again; then `dicomnode retry`"
_REPORT = "The log holds the traceback: please report it; `dicomnode retry` looks again"


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The inputs of a case, and what was found on the way."""

    inputs: Inputs
    sha256: str
    identity: Identity
    reason: str


class Assembler:
    """Looks at every COLLECTING case that has gone quiet.

    cameras: of the configuration. data_dir: where the paths of the ledger begin. jumps: of the clock that
    `tick` is told; None: it is never set. fetch: whether PACS are asked for what is missing, and compared
    with before a case goes on; None: they are not.
    """

    def __init__(
        self,
        settings: Assemble,
        cameras: tuple[Camera, ...],
        ledger: Ledger,
        data_dir: Path,
        jumps: Jumps | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self._settings = settings
        self._comparison = Comparison(fetch or Fetch(), ledger)
        self._cameras = cameras
        self._ledger = ledger
        self._data_dir = data_dir
        # What a case lacked when it was last looked at: (last_instance_at, what). Reading hundreds of
        # headers at every tick of a long wait would tell nothing new.
        self._waiting: dict[int, tuple[float, Incomplete]] = {}
        # What was chosen of a case that waits for PACS to be compared with.
        self._chosen: dict[int, tuple[float, _Chosen]] = {}
        self._jumps = jumps or Jumps(steady=None)
        # (last_instance_at, since when nothing new has come) of each case, the latter by the steady clock:
        # one that was set back must not make a case wait until the old time comes round again, and one that
        # was set ahead must not end the wait for objects that are on their way.
        self._seen: dict[int, tuple[float, float]] = {}

    def configure(self, settings: Assemble, cameras: tuple[Camera, ...], fetch: Fetch | None = None) -> None:
        """Other settings from the next look on; what a case lacked is looked at again."""
        self._settings = settings
        self._cameras = cameras
        self._comparison = Comparison(fetch or Fetch(), self._ledger)
        self._waiting.clear()
        self._chosen.clear()

    def tick(self, now: float) -> None:
        """Look at every case that is due; one bad case does not stop the others."""
        for case in self._ledger.cases(State.COLLECTING):
            quiet_s = self._quiet_s(case, now)
            if quiet_s < self._settings.quiet_s:
                continue
            try:
                self._look(case, quiet_s, now)
            except LedgerUnavailable:
                raise
            except OSError as error:
                log.warning("case %d: cannot read the spool: %s; tried again", case.id, error)
            except Exception as error:  # the worker's loop: the case after this one must not wait for it
                log.exception("case %d: looking at it failed", case.id)
                self._hold(case, Rejected(f"looking at it failed: {error!r}", _REPORT), now)

    def _quiet_s(self, case: Case, now: float) -> float:
        """How long nothing new has come."""
        steady = self._jumps.steady(now)
        age_s = max(0.0, now - case.last_instance_at - self._jumps.ahead_s(now))
        seen = self._seen.get(case.id)
        if seen is None or seen[0] != case.last_instance_at or seen[1] > steady:
            seen = self._seen[case.id] = (case.last_instance_at, steady - age_s)
        return steady - seen[1]

    def _look(self, case: Case, quiet_s: float, now: float) -> None:
        try:
            self._assemble(case, now)
        except Incomplete as missing:
            if quiet_s >= self._settings.max_wait_s and not self._comparison.is_asking(case, now):
                waited = f"{missing.reason} (waited {self._settings.max_wait_s:g} s)"
                self._hold(case, Rejected(waited, missing.remedy), now)
        except Rejected as unsafe:
            self._hold(case, unsafe, now)

    def _assemble(self, case: Case, now: float) -> None:
        if case.conflict:
            damaged = case.conflict.startswith(DAMAGED)
            raise Rejected(case.conflict, _SEND_AGAIN if damaged else _LOOK)
        chosen = self._chosen_of(case, now)
        note = None if chosen is None else self._comparison.outcome(case, now)
        if chosen is None or note is None:
            return
        reason = f"{chosen.reason}; {note}" if note else chosen.reason
        inputs, sha256 = chosen.inputs.to_json(), chosen.sha256
        complete = self._ledger.assembled(case, now, inputs, sha256, chosen.identity, reason)
        if complete is not None:
            log.info("case %d is complete: %s", case.id, reason)
        self._forget(case, goes_on=complete is not None)

    def _chosen_of(self, case: Case, now: float) -> _Chosen | None:
        """What the case is to be computed from. returns: None when it needs no computing. Raises Rejected."""
        as_of = case.last_instance_at
        waiting, before = self._waiting.get(case.id), self._chosen.get(case.id)
        if waiting is not None and waiting[0] == as_of:
            raise waiting[1]
        if before is not None and before[0] == as_of:
            return before[1]
        try:
            chosen = self._choose(case, now)
        except Incomplete as missing:
            self._waiting[case.id] = (as_of, missing)
            self._comparison.lacks(case, missing, now)
            raise
        if chosen is not None:
            self._chosen[case.id] = (as_of, chosen)
        return chosen

    def _choose(self, case: Case, now: float) -> _Chosen | None:
        """The same, from the files."""
        instances = self._ledger.instances(case.id)
        if case.inputs_removed_at is not None and self._rest_is_missing(case, instances, now):
            return None
        _check_files(instances, self._data_dir)
        headers = [read_header(self._data_dir / i.path, i.path) for i in instances]
        inputs = choose(headers, Preferences(self._settings.prefer_ct, self._settings.prefer_spect))
        identity = self._identity(case, inputs, headers)
        sha256 = digest(_uids(inputs, instances))
        counts = f"{len(inputs.ct)} CT slices, {len(inputs.spect)} SPECT object(s)"
        return _Chosen(inputs, sha256, identity, f"{counts}, {len(inputs.rois)} ROI object(s)")

    def _identity(self, case: Case, inputs: Inputs, headers: list[Header]) -> Identity:
        """Whose case it is and what was given.

        What the SPECT's header decides (units, calibration, nuclide, times) is decided here already: a
        person hears of it before the node computes.
        """
        spect = [h for h in headers if h.path in inputs.spect]
        try:
            facts = describe_spect([h.dataset for h in spect], self._cameras)
            reports = [h.dataset for h in headers if h.path in inputs.dose_reports]
            given = administered(facts.administration, reports)
        except InputRejected as error:
            raise Rejected(error.reason, error.remedy) from None
        at = given.administered_at
        return Identity(
            patient_id=spect[0].text("PatientID"),
            issuer_of_patient_id=spect[0].text("IssuerOfPatientID") or case.identity.issuer_of_patient_id,
            accession_number=spect[0].text("AccessionNumber") or case.identity.accession_number,
            nuclide=facts.nuclide.name,
            administered_activity_bq=given.activity_bq,
            administered_at=None if at is None else _epoch(at),
        )

    def _rest_is_missing(self, case: Case, instances: list[Instance], now: float) -> bool:
        """Whether retention removed some of the study and it did not come again.

        A result must never be made from the part that came. returns: True when nothing came that a result
        is made from, and the case is DONE as before. Raises Incomplete when something did.
        """
        removed = self._ledger.removed_series(case.id)
        missing = _missing_again(instances, removed)
        if not missing:
            return False
        run = self._ledger.latest_run(case.id)
        delivered = run is not None and run.delivered_at is not None and case.inputs_sha256 != ""
        if delivered and not any(i.sop_class_uid in INPUT_CLASSES for i in instances):
            reason = "nothing that a result is made from has come since the inputs were removed"
            self._ledger.nothing_new(case, now, reason)
            self._forget(case, goes_on=True)
            return True
        objects = sum(series.objects for series in removed if not series.discarded)
        day = datetime.fromtimestamp(max(series.removed_at for series in removed)).date()
        raise Incomplete(
            f"{missing} of the {objects} objects that retention removed on {day} have not come again",
            "Send the whole study again; a series that will not come is set aside with `dicomnode discard`, "
            "then `dicomnode retry`",
        )

    def _hold(self, case: Case, rejected: Rejected, now: float) -> None:
        held = self._ledger.rejected(case, now, rejected.reason, rejected.remedy)
        if held is None:
            # It may have been what was missing; the case is looked at again when it is quiet.
            log.info("case %d: an object arrived while it was looked at", case.id)
            return
        self._forget(case, goes_on=False)
        log.warning(
            "case %d is HELD: %s", case.id, without_identity(str(Rejected(held.reason, held.remedy)), held)
        )

    def _forget(self, case: Case, *, goes_on: bool) -> None:
        self._waiting.pop(case.id, None)
        self._chosen.pop(case.id, None)
        self._seen.pop(case.id, None)
        self._comparison.forget(case, goes_on=goes_on)


def _missing_again(instances: list[Instance], removed: list[RemovedSeries]) -> int:
    """How many objects the series that were removed still lack."""
    here = Counter(i.series_instance_uid for i in instances)
    lacking = (
        series.objects - here[series.series_instance_uid] for series in removed if not series.discarded
    )
    return sum(max(0, count) for count in lacking)


def _check_files(instances: list[Instance], data_dir: Path) -> None:
    """Raises Rejected when received files are gone: a person has moved or removed them."""
    gone = [i.path for i in instances if not (data_dir / i.path).exists()]
    if gone:
        raise Rejected(
            f"{len(gone)} of {len(instances)} received files are gone from data_dir: {gone[0]}",
            "Bring them back or send the study again, then `dicomnode retry`",
        )


def _epoch(at: datetime) -> float:
    # Without an offset the time is that of the site, which is the time of this machine.
    return at.astimezone().timestamp()


def _uids(inputs: Inputs, instances: list[Instance]) -> list[str]:
    used = {*inputs.ct, *inputs.spect, *inputs.rois, *inputs.registrations, *inputs.dose_reports}
    return [i.sop_instance_uid for i in instances if i.path in used]
