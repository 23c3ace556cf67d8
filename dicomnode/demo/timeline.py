"""How long a case took, stage by stage, as the node's ledger tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from dicomnode.ledger import Ledger
from dicomnode.records import Case
from dicomnode.states import State


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds of each stage of a delivered case.

    quiet: from the last object to READY. claim: READY to COMPUTING, at most a tick. compute: until the
    results are on disk and registered. deliver: until every destination has them.
    steps: what the computing process did, of which `compute` also holds its start and its end.
    """

    quiet: float
    claim: float
    compute: float
    deliver: float
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def ready_to_done(self) -> float:
        """What a new computer or a new engine could shorten."""
        return self.claim + self.compute + self.deliver

    @property
    def process(self) -> float:
        """Start, imports and end of the computing process, and until a tick notices that end."""
        return self.compute - sum(self.steps.values())


def timeline(ledger: Ledger, case: Case) -> Timeline:
    """The last journey of a case that is DONE."""
    at = {step.to_state: step.at for step in ledger.story(case.id)}
    run = ledger.latest_run(case.id)
    assert run is not None
    return Timeline(
        quiet=at[State.READY] - case.last_instance_at,
        claim=at[State.COMPUTING] - at[State.READY],
        compute=at[State.ENCODED] - at[State.COMPUTING],
        deliver=at[State.DONE] - at[State.ENCODED],
        steps=json.loads(run.new.details_json)["seconds"],
    )
