"""`kill -9` in each state of a case: what was acknowledged is there, PACS holds one set of results.

Each moment is a study of its own on one node that is killed and started again and again. The moments
of the states are caught by watching the ledger; within a state the instant is random (seed printed).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from dicomnode.states import State
from tests.acceptance.harness import Orthanc
from tests.chaos import kills
from tests.chaos.episode import STUCK_S
from tests.chaos.kills import ASSOCIATION, LONGEST_S
from tests.chaos.site import Modality, Site, running
from tests.chaos.verdict import judge

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]

SEED = int(os.environ["KILL_SEED"])  # tests/conftest.py draws one where none is given

# Two of each in every run of the suite; `make chaos` draws two hundred.
MOMENTS: list[str] = [
    moment
    for moment in (ASSOCIATION, *(s for s in State if s not in (State.HELD, State.FAILED)))
    for _ in range(2)
]

# READY and ENCODED last one tick: a busy machine may look too late, and tries another study.
TRIES = 10


@pytest.fixture(scope="module")
def site(
    pacs: Orthanc, peer_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A slow tick makes the short states long enough to be caught."""
    peer_program("storescu")
    print(f"KILL_SEED={SEED}")
    with running(tmp_path_factory.mktemp("mortal"), pacs, tick_s=0.25) as site:
        yield site


def killed_in(site: Site, moment: str, number: int, pause_s: float) -> Modality:
    """Send studies until the node was killed in that moment of one."""
    for attempt in range(TRIES):
        modality = site.modality(site.study(f"kill {SEED} {number} {attempt}"))
        if kills.killed_at(site, modality, moment, pause_s) == moment:
            return modality
        site.restart()
        assert modality.finished(STUCK_S)
    pytest.fail(f"{TRIES} studies passed {moment} unseen")


@pytest.mark.parametrize(
    ("number", "moment"), list(enumerate(MOMENTS)), ids=[f"{n:02d} {m}" for n, m in enumerate(MOMENTS)]
)
def test_a_killed_node_loses_nothing_and_sends_nothing_twice(
    number: int, moment: str, site: Site, pacs: Orthanc
) -> None:
    pause_s = random.Random(SEED + number).uniform(0, LONGEST_S[moment])
    print(f"KILL_SEED={SEED} {moment} + {pause_s:.3f} s")
    modality = killed_in(site, moment, number, pause_s)
    site.restart()
    assert modality.finished(STUCK_S)
    assert site.done(modality.study_uid, STUCK_S)
    verdict = judge(site, {modality.study_uid: modality.acked})
    assert (verdict.lost, verdict.duplicates, verdict.findings) == (0, 0, [])
    assert verdict.acknowledged == len(modality.files.all)
    assert pacs.held(modality.study_uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
