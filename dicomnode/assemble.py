"""Stage 2: received objects → a complete, consistent case.

A study is looked at when nothing new has come for `quiet_s`. What is missing is waited for until
`max_wait_s` after the last object; what is unsafe is HELD at once. Both clocks belong to the study:
a peer may open as many associations as it likes.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from dicomnode.config import Assemble
from dicomnode.errors import IllegalTransition, Incomplete, LedgerUnavailable, Rejected
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Identity, Inputs, Instance
from dicomnode.selection import Header, Preferences, choose, digest, read_header
from dicomnode.states import Event, State
from pipeline.camera import Camera
from pipeline.dose_report import administered
from pipeline.errors import InputRejected
from pipeline.spect import describe_spect

log = logging.getLogger(__name__)

_REPORT = "The log holds the traceback: please report it; `dicomnode retry` looks again"


class Assembler:
    """Looks at every COLLECTING case that has gone quiet.

    cameras: of the configuration. data_dir: where the paths of the ledger begin.
    """

    def __init__(
        self, settings: Assemble, cameras: tuple[Camera, ...], ledger: Ledger, data_dir: Path
    ) -> None:
        self._settings = settings
        self._cameras = cameras
        self._ledger = ledger
        self._data_dir = data_dir
        # What a case lacked when it was last looked at: (last_instance_at, what). Reading hundreds of
        # headers at every tick of a long wait would tell nothing new.
        self._waiting: dict[int, tuple[float, Incomplete]] = {}
        # When a case's last object was first seen here: a clock that was set back must not make a case
        # wait until the old time comes round again.
        self._seen: dict[int, tuple[float, float]] = {}

    def tick(self, now: float) -> None:
        """Look at every case that is due; one bad case does not stop the others."""
        for case in self._ledger.cases(State.COLLECTING):
            quiet_s = self._quiet_s(case, now)
            if quiet_s < self._settings.quiet_s:
                continue
            try:
                self._look(case, quiet_s, now)
            except IllegalTransition:
                log.info("case %d: an object arrived while it was assembled", case.id)
            except LedgerUnavailable:
                raise
            except OSError as error:
                log.warning("case %d: cannot read the spool: %s; tried again", case.id, error)
            except Exception as error:  # the worker's loop: the case after this one must not wait for it
                log.exception("case %d: looking at it failed", case.id)
                self._hold(case, Rejected(f"looking at it failed: {error!r}", _REPORT), now)

    def _quiet_s(self, case: Case, now: float) -> float:
        """How long nothing new has come."""
        seen = self._seen.get(case.id)
        if seen is None or seen[0] != case.last_instance_at or seen[1] > now:
            seen = self._seen[case.id] = (case.last_instance_at, now)
        return now - min(seen)

    def _look(self, case: Case, quiet_s: float, now: float) -> None:
        try:
            self._assemble(case, now)
        except Incomplete as missing:
            self._waiting[case.id] = (case.last_instance_at, missing)
            if quiet_s >= self._settings.max_wait_s:
                waited = f"{missing.reason} (waited {self._settings.max_wait_s:g} s)"
                self._hold(case, Rejected(waited, missing.remedy), now)
        except Rejected as unsafe:
            self._hold(case, unsafe, now)

    def _assemble(self, case: Case, now: float) -> None:
        if case.conflict:
            raise Rejected(
                case.conflict,
                "Look at the quarantined object, then `dicomnode retry` computes with the first one",
            )
        waiting = self._waiting.get(case.id)
        if waiting is not None and waiting[0] == case.last_instance_at:
            raise waiting[1]
        instances = self._ledger.instances(case.id)
        _check_files(instances, self._data_dir)
        headers = [read_header(self._data_dir / i.path, i.path) for i in instances]
        inputs = choose(headers, Preferences(self._settings.prefer_ct, self._settings.prefer_spect))
        identity = self._identity(case, inputs, headers)
        sha256 = digest(_uids(inputs, instances))
        counts = f"{len(inputs.ct)} CT slices, {len(inputs.spect)} SPECT object(s)"
        reason = f"{counts}, {len(inputs.rois)} ROI object(s)"
        if self._ledger.assembled(case, now, inputs.to_json(), sha256, identity, reason) is not None:
            log.info("case %d is complete: %s", case.id, reason)
        self._forget(case)

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

    def _hold(self, case: Case, rejected: Rejected, now: float) -> None:
        self._forget(case)
        held = self._ledger.apply(case.id, Event.REJECT, now, reason=rejected.reason, remedy=rejected.remedy)
        log.warning("case %d is HELD: %s", case.id, Rejected(held.reason, held.remedy))

    def _forget(self, case: Case) -> None:
        self._waiting.pop(case.id, None)
        self._seen.pop(case.id, None)


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
