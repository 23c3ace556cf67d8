"""What the ledger takes and gives: frozen records, one per table.

Times are seconds since the epoch, UTC. Paths are relative to `data_dir`, so that it can be moved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dicomnode.states import Event, State


@dataclass(frozen=True, slots=True)
class Instance:
    """A received object: on disk, acknowledged, to be used."""

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    transfer_syntax_uid: str
    patient_id: str
    issuer_of_patient_id: str
    accession_number: str
    path: str
    size_bytes: int
    peer: str
    """AE title of the caller."""
    received_at: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An object that was refused or set aside, and why."""

    sop_instance_uid: str
    study_instance_uid: str
    peer: str
    defect: str
    reason: str
    status: int
    """DIMSE status that was answered."""
    path: str
    """Relative to data_dir; empty when nothing was kept."""
    received_at: float


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose case it is and what was given."""

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    accession_number: str = ""
    nuclide: str = ""
    administered_activity_bq: float | None = None
    administered_at: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One study on its way."""

    id: int
    study_instance_uid: str
    state: State
    reason: str
    remedy: str
    created_at: float
    updated_at: float
    last_instance_at: float
    attempts: int
    """Failed attempts of the current stage since the inputs last changed."""
    next_attempt_at: float
    inputs_json: str
    """The files that were chosen, by role; written by `assemble`, read by `compute`."""
    inputs_sha256: str
    conflict: str
    """Why the received objects contradict each other; empty when they do not."""
    notified_at: float | None
    identity: Identity


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a case's story."""

    case_id: int
    at: float
    from_state: State | None
    to_state: State
    event: Event
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at computing or sending. outcome: running, ok, failed, rejected, interrupted, stopped."""

    id: int
    case_id: int
    stage: str
    started_at: float
    ended_at: float | None
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class NewResult:
    """An encoded object on disk."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    kind: str
    engine: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewRun:
    """One finished computation: provenance of all its results."""

    inputs_sha256: str
    software_version: str
    config_sha256: str
    calibration_sha256: str
    kernel_sha256: str
    weights_sha256: str
    details_json: str
    """Times of the steps, devices, notes: for people; the node decides nothing by it."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished computation as the ledger keeps it."""

    id: int
    case_id: int
    created_at: float
    predecessor_id: int | None
    delivered_at: float | None
    new: NewRun


@dataclass(frozen=True, slots=True)
class Result:
    """An encoded object with its fixed UIDs."""

    id: int
    run_id: int
    new: NewResult


@dataclass(frozen=True, slots=True)
class Delivery:
    """One result for one destination."""

    id: int
    result_id: int
    peer: str
    delivered_at: float | None
    status: int | None
    """DIMSE status of the last answer; None when there was none."""
    tries: int
    refusals: int
    """Answers that refused the object (a PACS that is down refuses nothing)."""
    detail: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that a case is computed from, by role. Paths as the maker of the record gives them."""

    ct: tuple[str, ...]
    spect: tuple[str, ...]
    rois: tuple[str, ...] = ()
    """RTSTRUCT and SEG."""
    registrations: tuple[str, ...] = ()
    dose_reports: tuple[str, ...] = ()
    """Radiopharmaceutical Radiation Dose SR: the administered activity."""
    notes: tuple[str, ...] = ()
    """What was decided while choosing; goes into the report."""

    def to_json(self) -> str:
        """For the ledger."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Inputs:
        """From the ledger."""
        return cls(**{key: tuple(value) for key, value in json.loads(text).items()})
