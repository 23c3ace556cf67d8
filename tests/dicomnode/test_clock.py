"""The clock is set by hours while the node runs: nothing is taken for complete, late or hung by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.assemble import Assembler
from dicomnode.clock import Jumps
from dicomnode.computing.compute import Computer
from dicomnode.config import Assemble, parse
from dicomnode.deliver import Deliverer
from dicomnode.ledger import Ledger
from dicomnode.notify import due
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import encoded_case, instance
from tests.dicomnode.test_compute import Bench, ready

HOURS = 3600.0


class Clocks:
    """The one on the wall, and one that nobody sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.steady_s = 50.0

    def steady(self) -> float:
        return self.steady_s

    def pass_(self, seconds: float) -> float:
        """returns: what the clock on the wall shows then."""
        self.now += seconds
        self.steady_s += seconds
        return self.now

    def set_by(self, seconds: float) -> float:
        self.now += seconds
        return self.now


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield ledger
    ledger.close()


def test_jumps_ahead_add_up_and_nothing_else_counts(clocks: Clocks, caplog: pytest.LogCaptureFixture) -> None:
    jumps = Jumps(clocks.steady)
    assert jumps.ahead_s(clocks.pass_(5)) == 0
    assert jumps.ahead_s(clocks.pass_(1e6)) == 0
    assert jumps.ahead_s(clocks.set_by(2 * HOURS)) == 2 * HOURS
    assert jumps.ahead_s(clocks.set_by(-5 * HOURS)) == 2 * HOURS
    assert jumps.ahead_s(clocks.set_by(1 * HOURS)) == 3 * HOURS
    assert [r.getMessage() for r in caplog.records] == [
        "the clock was set ahead by 7200 s",
        "the clock was set back by 18000 s",
        "the clock was set ahead by 3600 s",
    ]


@pytest.mark.parametrize("jump_s", [2 * HOURS, -2 * HOURS])
def test_a_study_that_still_arrives_is_not_looked_at_before_it_is_quiet(
    ledger: Ledger, clocks: Clocks, tmp_path: Path, jump_s: float
) -> None:
    """Set ahead, it would be HELD as incomplete; set back, it would wait for hours."""
    jumps = Jumps(clocks.steady)
    assembler = Assembler(Assemble(quiet_s=60, max_wait_s=3600), (), ledger, tmp_path, jumps)
    (case_id,) = ledger.add_instances([instance(at=clocks.now)], clocks.now)
    assembler.tick(clocks.now)
    now = clocks.set_by(jump_s)
    for number in range(2, 5):
        assembler.tick(now)
        assert ledger.case(case_id).state is State.COLLECTING
        now = clocks.pass_(30)
        ledger.add_instances([instance(number=number, at=now)], now)
    assembler.tick(now)
    assembler.tick(clocks.pass_(59))
    assert ledger.case(case_id).state is State.COLLECTING
    assembler.tick(clocks.pass_(1))
    assert ledger.case(case_id).state is State.HELD, "looked at: its files are not there"


def test_a_study_that_was_quiet_when_the_node_started_is_looked_at_at_once(
    ledger: Ledger, clocks: Clocks, tmp_path: Path
) -> None:
    (case_id,) = ledger.add_instances([instance(at=clocks.now)], clocks.now)
    assembler = Assembler(Assemble(quiet_s=60, max_wait_s=3600), (), ledger, tmp_path, Jumps(clocks.steady))
    assembler.tick(clocks.pass_(2 * HOURS))
    assert ledger.case(case_id).state is State.HELD


@pytest.mark.parametrize("jump_s", [5 * HOURS, -5 * HOURS])
def test_a_job_has_its_time_whatever_the_clock_shows(
    ledger: Ledger, clocks: Clocks, tmp_path: Path, jump_s: float
) -> None:
    config = parse({"node": {"data_dir": str(tmp_path)}, "dose": {"timeout_s": 100.0}})
    computer = Computer(config, ledger, Bench(), steady=clocks.steady)
    case = ready(ledger, at=clocks.now)
    computer.tick(clocks.now)
    clocks.set_by(jump_s)
    computer.tick(clocks.pass_(99))
    assert ledger.case(case.id).state is State.COMPUTING
    computer.tick(clocks.pass_(1))
    assert ledger.case(case.id).state is State.READY
    assert "killed after 100 s" in ledger.case(case.id).reason


@pytest.mark.parametrize("jump_s", [5 * HOURS, -5 * HOURS])
def test_the_pause_after_a_failed_attempt_ends_soon_whatever_the_clock_shows(
    ledger: Ledger, clocks: Clocks, tmp_path: Path, jump_s: float
) -> None:
    config = parse({"node": {"data_dir": str(tmp_path)}, "dose": {"timeout_s": 100.0}})
    bench = Bench()
    computer = Computer(config, ledger, bench, steady=clocks.steady)
    ready(ledger, at=clocks.now)
    computer.tick(clocks.now)
    bench.futures[-1].set_exception(OSError(12, "out of memory"))
    computer.tick(clocks.pass_(1))
    clocks.set_by(jump_s)
    computer.tick(clocks.pass_(60))
    assert len(bench.jobs) == 2


def test_a_result_that_a_pacs_has_not_taken_is_not_late_because_the_clock_was_set(
    ledger: Ledger, clocks: Clocks, tmp_path: Path
) -> None:
    peer = {"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": 9}
    deliver = {"to": ["PACS"], "give_up_after_h": 24.0, "first_retry_s": 30.0, "max_retry_s": 600.0}
    config = parse({"node": {"data_dir": str(tmp_path)}, "peers": [peer], "deliver": deliver})
    jumps = Jumps(clocks.steady)
    deliverer = Deliverer(config, ledger, clocks.steady, jumps=jumps)
    case = encoded_case(ledger, tmp_path, ("PACS",), now=clocks.now)
    jumps.tick(clocks.now)
    deliverer.tick(clocks.now)
    clocks.set_by(48 * HOURS)
    jumps.tick(clocks.now)
    for _ in range(3):
        deliverer.tick(clocks.pass_(700))
        assert ledger.case(case.id).state is State.SENDING
    clocks.pass_(24 * HOURS)
    deliverer.tick(clocks.now)
    assert ledger.case(case.id).state is State.FAILED


def test_a_person_is_reminded_also_when_the_clock_was_set_back(ledger: Ledger, clocks: Clocks) -> None:
    settings = parse({"notify": {"command": ["true"]}}).notify
    (case_id,) = ledger.add_instances([instance(at=clocks.now)], clocks.now)
    ledger.apply(case_id, Event.REJECT, clocks.now, reason="no CT")
    ledger.notified(case_id, clocks.now)
    assert due(ledger.cases(), clocks.pass_(1), settings) == []
    assert len(due(ledger.cases(), clocks.set_by(-48 * HOURS), settings)) == 1
