"""One fault and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.site import Modality, Site

# A case that is not DONE after so long, with nothing wrong any more, is stuck.
STUCK_S = 180.0


class Kind(StrEnum):
    """What is done to the site."""

    KILL = "kill -9"
    DISK_FULL = "disk full"
    OUTAGE = "PACS outage"


@dataclass(frozen=True, slots=True)
class Episode:
    """number: within the run. seed: of everything that is random in it."""

    number: int
    kind: Kind
    run_seed: int

    @property
    def name(self) -> str:
        """Decides the UIDs of its studies, so that a run can be told from every other."""
        return f"chaos {self.run_seed} {self.number}"

    @property
    def seed(self) -> str:
        return f"{self.run_seed} {self.number} {self.kind}"


@dataclass
class Outcome:
    """What happened, and how long it took until every case was DONE again."""

    episode: Episode
    detail: str
    modalities: tuple[Modality, ...]
    recovery_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    def drain(self, site: Site, began: float) -> None:
        """Wait until all of it is acknowledged and DONE. began: when the fault was over (monotonic)."""
        for modality in self.modalities:
            if not modality.finished(STUCK_S):
                self.findings.append(f"{modality.study_uid}: not everything was acknowledged")
        for modality in self.modalities:
            if not site.done(modality.study_uid, STUCK_S):
                self.findings.append(f"{modality.study_uid}: stuck")
        self.recovery_s = time.monotonic() - began
