"""What the ledger takes and gives: frozen records, one per table.

Times are seconds since the epoch, UTC. Paths are relative to `data_dir`, so that it can be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from dicomnode.config import RejectionReason
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
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False, metadata={"column": False})
    """What the index keeps of it, by keyword; not read back."""


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
    inputs_removed_at: float | None = None
    """When retention removed what was received; None while it is there."""
    rejection_reason: Literal["", RejectionReason] = ""
    """What a person said of the results that the next ones replace; empty: as [deliver] says."""


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
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False, metadata={"column": False})
    """What the index keeps of it, by keyword; not read back. Empty: it is read from the file later."""
    only_for: tuple[str, ...] | None = field(default=None, compare=False, metadata={"column": False})
    """Of a rejection note: the destinations that may have what it names; not read back. None: any."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a rejection note has to name, and the destinations that may have exactly this of it."""

    peers: tuple[str, ...]
    results: tuple[NewResult, ...]


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
    removed_at: float | None = None
    """When retention removed the files of its results; their UIDs stay known."""


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
    committed_at: float | None = None
    """When the destination said that it keeps the object (storage commitment)."""
    commit_failure: int | None = None
    """FailureReason of its last report (PS3.3 C.14), until the object is sent again."""
    commit_failures: int = 0
    may_have: int = 0
    """1: the destination took it, or may have without an answer."""


@dataclass(frozen=True, slots=True)
class Want:
    """What PACS are asked about a case that collects."""

    case_id: int
    as_of: float
    """The case's last_instance_at: a later object makes another want of it."""
    lacking: str
    """In words; empty where only counts are compared."""
    kinds: frozenset[str]
    """"CT", "SPECT": of which it has none."""
    opened_at: float
    next_attempt_at: float
    requests: int
    """Rounds in which a PACS answered."""
    settled: bool
    """No PACS has more of it, or it was asked often enough."""


@dataclass(frozen=True, slots=True)
class Enquiry:
    """What one PACS was asked about a case, and what came of it."""

    id: int
    case_id: int
    peer: str
    at: float
    lacking: str
    missing: int
    """Objects that it has and the node lacked."""
    came: int
    """Of them, those that were here when it ended, whatever the PACS says that it sent."""
    outcome: str
    """asking; agrees: it has nothing more; came; partly; failed; sent: it says so, and they did not come;
    refused; unreachable."""
    detail: str


@dataclass(frozen=True, slots=True)
class Held:
    """What the node has of a series."""

    sop_classes: frozenset[str]
    objects: int
    discarded: bool
    """A person set it aside."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A storage commitment transaction that the node began (PS3.4 Annex J)."""

    id: int
    transaction_uid: str
    run_id: int
    peer: str
    asked_at: float
    ask_again_at: float
    """When to ask again if no report has come."""
    reported_at: float | None
    outcome: str
    """asking; waiting, of the report; refused, the request; unanswered; committed, all of it; failed, some
    of it; incomplete, the report was; withdrawn, by a person who had the results sent again."""
    detail: str

    @property
    def has_ended(self) -> bool:
        """Whether a further report changes nothing."""
        return self.outcome in ("committed", "failed", "incomplete", "withdrawn")


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """The results of a run that a destination has, but has not committed to keep."""

    case_id: int
    run_id: int
    peer: str
    since: float
    """When the last of them was delivered."""
    outdated: bool
    """Objects arrived since the results were encoded."""
    lacking: bool
    """Another destination lacks some of them."""
    failed: bool
    """The peer reported that it could not commit to one of them."""
    last_outcome: str
    """Of its last transaction; empty when it was not asked yet."""
    ask_again_at: float


@dataclass(frozen=True, slots=True)
class Promise:
    """A storage commitment transaction that a peer began."""

    id: int
    peer: str
    """AE title."""
    transaction_uid: str
    asked_at: float
    next_attempt_at: float
    tries: int
    """Reports that did not reach the peer."""
    ended_at: float | None
    outcome: str
    """open, told, or given up."""
    detail: str


@dataclass(frozen=True, slots=True)
class Belonging:
    """Whose an object is."""

    study_instance_uid: str
    patient_id: str
    sop_class_uid: str


Kept = Literal["inputs", "results"]
"""What is kept of a case: received objects, and what was computed from them."""


@dataclass(frozen=True, slots=True)
class RemovedSeries:
    """A series that retention took off the disk, with what it must hold to be whole again."""

    case_id: int
    series_instance_uid: str
    modality: str
    objects: int
    discarded: bool
    """A person had set it aside: it is not asked for, and not used when it comes again."""
    removed_at: float


@dataclass(frozen=True, slots=True)
class Holding:
    """What the node keeps of a case that has come to its end."""

    what: Kept
    case_id: int
    study_instance_uid: str
    state: State
    since: float
    """When it came to its end."""
    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Removal:
    """A file that the ledger has given up and that may still lie on the disk."""

    id: int
    path: str
    marked_at: float


@dataclass(frozen=True, slots=True)
class Unread:
    """An object on disk that the index may lack."""

    sop_instance_uid: str
    path: str
    transfer_syntax_uid: str
    known: bool
    """Whether the index has it already."""
    number: int = 0
    """Of a result, or of a series that is read again, in the ledger."""


@dataclass(frozen=True, slots=True)
class HeldObject:
    """An object that the node holds, as the ledger knows its file. path: relative to data_dir."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    size_bytes: int
    study_instance_uid: str
    """Of a received object; empty of one of our own results."""

    @property
    def is_result(self) -> bool:
        """It is one of our own results."""
        return not self.study_instance_uid


@dataclass(frozen=True, slots=True)
class Contents:
    """The instances of one SOP class in one series."""

    study: int
    series: int
    modality: str
    sop_class_uid: str
    instances: int


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

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.ct, *self.spect, *self.rois, *self.registrations, *self.dose_reports)

    def to_json(self) -> str:
        """For the ledger."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Inputs:
        """From the ledger."""
        return cls(**{key: tuple(value) for key, value in json.loads(text).items()})
