"""What `compute` asks of a child process, and what the child hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicomnode.config import Config, RejectionReason
from dicomnode.errors import Rejected
from dicomnode.records import Inputs, NewResult, NewRun, Rejection


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a child needs. Paths are absolute."""

    inputs: Inputs
    config: Config
    out: Path
    identity: str = ""
    """What sets these results apart from every other: part of their UIDs' origin."""
    predecessors: tuple[NewResult, ...] = ()
    """The results that these replace."""
    rejections: tuple[Rejection, ...] = ()
    """The results that archives are told to reject: of all earlier runs that may be there."""
    rejection_reason: RejectionReason = "quality"
    """What they are told of them."""
    kernel_cache: Path | None = None
    """Where computed voxel kernels are kept for other cases."""
    spooled: bool = False
    """The inputs are files of the spool, which hold a checksum of what came."""
    checkpoint: Path | None = None
    """What a Monte Carlo that is interrupted leaves, and goes on from at the next attempt."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a child hands back: files under `Job.out`, in sending order, and where they came from."""

    results: tuple[NewResult, ...]
    inputs_free_run: NewRun
    """The run with an empty inputs_sha256: the ledger knows that one."""


class InputsDamaged(Rejected):
    """Files of the spool are not what came; nothing may be computed from them.

    paths: absolute.
    """

    def __init__(self, reason: str, remedy: str = "", paths: tuple[str, ...] = ()) -> None:
        super().__init__(reason, remedy)
        self.paths = paths
