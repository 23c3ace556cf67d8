"""`kill -9` at a moment of a case's life."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from dicomnode.states import State
from tests.chaos.episode import Episode, Outcome

if TYPE_CHECKING:
    from tests.chaos.site import Modality, Site

# As a case passes them.
ORDER = (State.COLLECTING, State.READY, State.COMPUTING, State.ENCODED, State.SENDING, State.DONE)
ASSOCIATION = "in the middle of an association"
# The longest wait within a moment: about as long as the state lasts in this small study.
LONGEST_S: dict[str, float] = {
    ASSOCIATION: 0.03,
    State.COLLECTING: 1.0,
    State.READY: 0.0,
    State.COMPUTING: 3.0,
    State.ENCODED: 0.0,
    State.SENDING: 0.1,
    State.DONE: 0.5,
}
# How often each is drawn.
_WEIGHTS = {
    ASSOCIATION: 5,
    State.COLLECTING: 3,
    State.READY: 2,
    State.COMPUTING: 5,
    State.ENCODED: 2,
    State.SENDING: 3,
    State.DONE: 1,
}
# All results of a case of tests/small_study.py: the gate lets some of it through and no more.
_RESULTS_BYTES = 280_000
# A second kill within the start that follows the first: part of the starts, and how long a start takes.
_TWICE = 0.2
_START_S = 2.5
# A study of another modality at the same time.
_COMPANY = 0.3


def kill(site: Site, episode: Episode) -> Outcome:
    """A node that is killed at a random moment, sometimes again while it starts, and started again."""
    dice = random.Random(episode.seed)
    moment = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    pause_s = dice.uniform(0, LONGEST_S[moment])
    modalities = [site.modality(site.study(episode.name))]
    if dice.random() < _COMPANY:
        modalities.append(site.modality(site.study(f"{episode.name} company")))
    outcome = Outcome(episode, moment, tuple(modalities))
    if killed_at(site, modalities[0], moment, pause_s, modalities[1:]) != moment:
        outcome.detail = "a moment later than was meant"
    if dice.random() < _TWICE:
        site.node.launch()
        time.sleep(dice.uniform(0, _START_S))
        site.node.kill()
        outcome.detail += ", again while it started"
    outcome.drain(site, site.restart())
    return outcome


def killed_at(
    site: Site, modality: Modality, moment: str, pause_s: float, others: list[Modality] | None = None
) -> str:
    """Begin to send, wait for the moment, kill. returns: in which moment it was killed.

    pause_s: how long after the moment began. The modalities go on trying.
    """
    if moment == State.SENDING:
        site.gate.shut_after(int(_RESULTS_BYTES * pause_s / LONGEST_S[moment]))
    for each in (modality, *(others or ())):
        each.start()
    if moment == ASSOCIATION:
        _wait_for_first_file(site, modality.study_uid)
        seen = moment
    else:
        later = ORDER[ORDER.index(State(moment)) :]
        # Far shorter than a tick; without any pause the looking would take a core from the node.
        seen = site.node.reaches(modality.study_uid, *later, pause_s=0.01).state
    time.sleep(pause_s)
    site.node.kill()
    site.gate.open()
    return seen


def _wait_for_first_file(site: Site, study_uid: str) -> None:
    spool = site.node.data_dir / "spool" / study_uid
    deadline = time.monotonic() + 120
    while not (spool.exists() and any(spool.iterdir())):
        assert time.monotonic() < deadline, "nothing arrives"
