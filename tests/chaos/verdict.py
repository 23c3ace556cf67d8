"""What must hold after an episode, and of everything at the end of a run.

* Every acknowledged object lies in the spool and is whole (nothing is removed by retention here).
* PACS holds exactly the results that the ledger names: those of the case's newest run, and of earlier runs
  only what was sent before new input replaced it.
* The case is DONE, every result is delivered, no attempt is open, nothing half-written lies about; no fault
  was taken for a failure of the computation.
* The ledger can be written at once, and is sound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom import Dataset

from dicomnode.ledger import Ledger
from dicomnode.reception.defects import Flawed
from dicomnode.reception.spool_file import split_file
from dicomnode.records import Case
from dicomnode.states import State

if TYPE_CHECKING:
    from tests.acceptance.harness import Orthanc
    from tests.chaos.site import Site

# A tick of a stage may be writing; a transaction that somebody forgot lasts.
_BUSY_S = 10.0


@dataclass
class Verdict:
    """Counted over the studies that were looked at."""

    cases: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicates: int = 0
    """Results in PACS that the ledger does not name, or of which there are two sets."""
    superseded: int = 0
    """Runs that were sent and then replaced, because objects came later."""
    findings: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Count another one's too."""
        self.cases += other.cases
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.duplicates += other.duplicates
        self.superseded += other.superseded
        self.findings += other.findings


def judge(site: Site, studies: Mapping[str, Collection[str]]) -> Verdict:
    """studies: Study Instance UID → the SOP Instance UIDs that were acknowledged."""
    verdict = Verdict()
    ledger = Ledger(f"sqlite:///{site.node.data_dir / 'ledger.sqlite3'}")
    try:
        cases = {case.study_instance_uid: case for case in ledger.cases()}
        for study_uid, acked in studies.items():
            verdict.add(_study(site, ledger, cases.get(study_uid), study_uid, acked))
    finally:
        ledger.close()
    verdict.findings += [f"half-written: {path}" for path in site.node.data_dir.rglob("*.part")]
    verdict.findings += _database(site)
    return verdict


def _study(site: Site, ledger: Ledger, case: Case | None, study_uid: str, acked: Collection[str]) -> Verdict:
    verdict = Verdict(cases=1, acknowledged=len(acked))
    for uid in acked:
        problem = _kept(site, study_uid, uid)
        if problem:
            verdict.lost += 1
            verdict.findings.append(f"{uid} of {study_uid}: {problem}")
    if case is None or case.state is not State.DONE:
        state = "unknown" if case is None else f"{case.state}: {case.reason}"
        verdict.findings.append(f"{study_uid} is {state}")
        return verdict
    for attempt in ledger.attempts(case.id):
        if attempt.outcome == "running":
            verdict.findings.append(f"case {case.id}: attempt {attempt.id} is open")
        elif attempt.stage == "compute" and attempt.outcome == "failed":
            verdict.findings.append(f"case {case.id}: computing failed: {attempt.detail}")
    runs = ledger.runs(case.id)
    sent = {r.new.sop_instance_uid for run in runs[:-1] for r in ledger.results(run.id)}
    newest = {r.new.sop_instance_uid for r in ledger.results(runs[-1].id)} if runs else set()
    undelivered = [d for _, d in ledger.deliveries(runs[-1].id) if d.delivered_at is None] if runs else []
    verdict.findings += [f"case {case.id}: delivery {d.id} is open" for d in undelivered]
    in_pacs = list(results_in(site.orthanc, study_uid))
    unknown = [uid for uid in in_pacs if uid not in newest | sent]
    verdict.duplicates = len(unknown) + len(in_pacs) - len(set(in_pacs))
    verdict.superseded = int(bool(sent & set(in_pacs)))
    verdict.findings += [f"case {case.id}: PACS has {uid}, the ledger not" for uid in unknown]
    if not newest or not newest <= set(in_pacs):
        verdict.findings.append(f"case {case.id}: PACS lacks {len(newest - set(in_pacs)) or 'all'} results")
    return verdict


def _kept(site: Site, study_uid: str, sop_instance_uid: str) -> str:
    """Why an acknowledged object cannot be used; empty when it can."""
    path = site.node.data_dir / "spool" / study_uid / f"{sop_instance_uid}.dcm"
    try:
        origin, _ = split_file(memoryview(path.read_bytes()))
    except FileNotFoundError:
        return "acknowledged and gone"
    except Flawed as flaw:
        return f"acknowledged and not whole: {flaw.reason}"
    return "" if origin.sop_instance_uid == sop_instance_uid else "another object lies in its place"


def results_in(orthanc: Orthanc, study_uid: str) -> list[str]:
    """SOP Instance UIDs that PACS has of a study, by C-FIND."""
    found: list[Dataset] = []
    for series in orthanc.find("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=""):
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series.SeriesInstanceUID}
        found += orthanc.find("IMAGE", SOPInstanceUID="", **keys)
    return [str(instance.SOPInstanceUID) for instance in found]


def _database(site: Site) -> list[str]:
    """What is wrong with the ledger's file."""
    path = site.node.data_dir / "ledger.sqlite3"
    with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            return [f"a transaction is open in the ledger: {error}"]
        (sound,) = connection.execute("PRAGMA quick_check").fetchone()
    return [] if sound == "ok" else [f"the ledger is damaged: {sound}"]
