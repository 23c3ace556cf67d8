"""`kill -9` at twenty moments of a case: what was acknowledged is there, PACS holds one set of results.

Each moment is a study of its own on one node that is killed and started again and again. The moments
of the states are caught by watching the ledger; within a state the instant is random (seed printed).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from dicomnode.states import State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.acceptance.harness import Gate, Node, Orthanc, acknowledged, push, start_push

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]
Find = Callable[[str], str]

SEED = int(os.environ["KILL_SEED"])  # tests/conftest.py draws one where none is given

# As a case passes them.
ORDER = (State.COLLECTING, State.READY, State.COMPUTING, State.ENCODED, State.SENDING, State.DONE)
ASSOCIATION = "in the middle of an association"
# The longest wait within a moment: about as long as the state lasts in this small study.
MOMENTS: list[tuple[str, float]] = [
    *[(ASSOCIATION, 0.3)] * 4,
    *[(State.COLLECTING, 1.0)] * 3,
    *[(State.READY, 0.0)] * 2,
    *[(State.COMPUTING, 3.0)] * 5,
    *[(State.ENCODED, 0.0)] * 2,
    *[(State.SENDING, 0.1)] * 2,
    *[(State.DONE, 0.5)] * 2,
]

# READY and ENCODED last one tick: a busy machine may look too late, and tries another study.
TRIES = 5


@dataclass
class Mortal:
    """A node of its own, and the gate between it and PACS."""

    node: Node
    gate: Gate


@pytest.fixture(scope="module")
def mortal(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    """A slow tick makes the short states long enough to be caught."""
    gate = Gate(pacs.port)
    node = Node(tmp_path_factory.mktemp("mortal"), gate.port, tick_s=0.25)
    node.start()
    print(f"KILL_SEED={SEED}")
    yield Mortal(node, gate)
    gate.open()
    node.stop()


def killed_while_receiving(node: Node, storescu: str, files: StudyFiles, pause_s: float) -> list[Path]:
    """Push, kill while it is under way. returns: what storescu saw acknowledged."""
    process = start_push(storescu, node.port, files.all)
    spool = node.data_dir / "spool" / files.study.study_instance_uid
    deadline = time.monotonic() + 30
    while not (spool.exists() and any(spool.iterdir())):
        assert time.monotonic() < deadline, "nothing arrives"
    time.sleep(pause_s / 10)
    node.kill()
    return acknowledged(process.communicate(timeout=60)[0].decode(errors="replace"), files.all)


def killed_in(mortal: Mortal, storescu: str, files: StudyFiles, state: State, pause_s: float) -> bool:
    """Push, wait for the state, kill. returns: whether it was seen; a case that has passed it lives on."""
    if state is State.SENDING:
        # Anywhere in the 280 kB of its three objects: the gate lets so much through, and no more.
        mortal.gate.shut_after(int(2.8e6 * pause_s))
    assert len(push(storescu, mortal.node.port, files.all)) == len(files.all)
    later = list(ORDER[ORDER.index(state) :])
    case = mortal.node.reaches(files.study.study_instance_uid, *later, pause_s=0.0)
    if case.state is not state:
        return False
    time.sleep(pause_s)
    mortal.node.kill()
    mortal.gate.open()
    return True


@pytest.mark.parametrize(
    ("number", "moment", "longest_s"),
    [(n, moment, longest) for n, (moment, longest) in enumerate(MOMENTS)],
    ids=[f"{n:02d} {moment}" for n, (moment, _) in enumerate(MOMENTS)],
)
def test_a_killed_node_loses_nothing_and_sends_nothing_twice(
    number: int,
    moment: str,
    longest_s: float,
    mortal: Mortal,
    pacs: Orthanc,
    peer_program: Find,
    tmp_path: Path,
) -> None:
    pause_s = random.Random(SEED + number).uniform(0, longest_s)
    print(f"KILL_SEED={SEED} {moment} + {pause_s:.3f} s")
    storescu = peer_program("storescu")
    files = small_study.write(tmp_path / "0", f"kill {SEED} {number}")
    if moment == ASSOCIATION:
        acked = killed_while_receiving(mortal.node, storescu, files, pause_s)
    else:
        for attempt in range(1, TRIES + 1):
            if killed_in(mortal, storescu, files, State(moment), pause_s):
                break
            files = small_study.write(tmp_path / str(attempt), f"kill {SEED} {number} {attempt}")
        else:
            pytest.fail(f"{TRIES} studies passed {moment} unseen")
        acked = files.all
    uid = files.study.study_instance_uid
    mortal.node.start()
    spool = mortal.node.data_dir / "spool" / uid
    kept = {p.name for p in spool.iterdir()}
    for path in acked:
        assert f"{sop_instance_uid(path)}.dcm" in kept, f"{path.name} was acknowledged and is gone"
    assert not [name for name in kept if name.endswith(".part")]
    if moment == ASSOCIATION:
        # The modality saw its association break and sends the study again, as modalities do.
        assert len(push(storescu, mortal.node.port, files.all)) == len(files.all)
    mortal.node.reaches(uid, State.DONE)
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def sop_instance_uid(path: Path) -> str:
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def test_the_moments_are_those_that_were_promised() -> None:
    moments = [moment for moment, _ in MOMENTS]
    assert len(moments) == 20
    for state in State:
        if state not in (State.HELD, State.FAILED):
            assert moments.count(state) >= 2
    assert moments.count(ASSOCIATION) >= 2
