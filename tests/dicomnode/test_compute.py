"""Claiming, looking in, giving up: an executor of the test's own answers when the test says so."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dicomnode import __version__
from dicomnode.computing.compute import MAX_INTERRUPTIONS, ORPHAN_S, Computer
from dicomnode.computing.job import InputsDamaged, Job, Outcome
from dicomnode.config import Config, parse
from dicomnode.errors import LedgerUnavailable, Transient, Unavailable
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Identity, Inputs, Instance, NewResult, NewRun
from dicomnode.states import Event, State
from pipeline.errors import EngineFailed, InputRejected

RUN = NewRun("", "0.1", "c", "", "k", "", "{}")


class Bench(Executor):
    """Keeps what was submitted; the test sets the results."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.futures: list[Future[Any]] = []
        self.run = RUN

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        self.jobs.append(args[0])
        self.futures.append(Future())
        return self.futures[-1]

    def answer(self, *kinds: str) -> None:
        """The job is done: it has written one file for each kind."""
        out = self.jobs[-1].out
        out.mkdir(parents=True)
        results = []
        for number, kind in enumerate(kinds):
            path = out / f"{kind}.dcm"
            path.write_bytes(b"x")
            uid = f"2.25.{len(self.jobs)}{number}"
            results.append(NewResult(uid, "1.2", "1.3", "1.2.840.10008.1.2.1", kind, "", str(path), 1))
        self.futures[-1].set_result(Outcome(tuple(results), self.run))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse({"node": {"data_dir": str(tmp_path)}, "dose": {"timeout_s": 100.0, "max_attempts": 2}})


@pytest.fixture
def ledger(config: Config) -> Iterator[Ledger]:
    ledger = Ledger.open(config.node.ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def computer(config: Config, ledger: Ledger, bench: Bench) -> Computer:
    return Computer(config, ledger, bench)


def object_of(study: str, number: int, at: float = 0.0) -> Instance:
    return Instance(
        f"{study}.{number}", "1.2", study, f"{study}.0", "CT", "1.2.840.10008.1.2.1", "P", "", "A",
        f"spool/{study}/{number}.dcm", 1, "MODALITY", at,
    )  # fmt: skip


def ready(ledger: Ledger, study: str = "1.2.3", at: float = 0.0) -> Case:
    """A case that was assembled."""
    ledger.add_instances([object_of(study, 1, at)], at)
    case = next(c for c in ledger.cases() if c.study_instance_uid == study)
    return assembled(ledger, case, at, "digest")


def assembled(ledger: Ledger, case: Case, at: float, digest: str) -> Case:
    inputs = Inputs(ct=("spool/ct",), spect=("spool/nm",))
    done = ledger.assembled(ledger.case(case.id), at, inputs.to_json(), digest, Identity("P"), "complete")
    assert done is not None
    return done


def test_a_ready_case_is_claimed_and_its_job_gets_absolute_paths(
    computer: Computer, ledger: Ledger, bench: Bench, config: Config
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    assert ledger.case(case.id).state is State.COMPUTING
    assert bench.jobs[0].inputs.ct == (str(config.node.data_dir / "spool/ct"),)
    assert bench.jobs[0].out.is_relative_to(config.node.data_dir / "results" / str(case.id))


@pytest.mark.parametrize("configured", ["quality", "patient_safety"])
def test_a_job_rejects_for_the_reason_of_its_case_or_else_as_it_is_configured(
    config: Config, ledger: Ledger, bench: Bench, configured: str
) -> None:
    deliver = config.deliver.model_copy(update={"rejection_reason": configured})
    computer = Computer(config.model_copy(update={"deliver": deliver}), ledger, bench)
    case = ready(ledger)
    computer.tick(1.0)
    assert bench.jobs[-1].rejection_reason == configured
    bench.answer("SEG")
    computer.tick(2.0)
    ledger.apply(case.id, Event.RETRY, 3.0, inputs_sha256="", rejection_reason="patient_safety")
    assembled(ledger, case, 4.0, "digest")
    computer.tick(5.0)
    assert bench.jobs[-1].rejection_reason == "patient_safety"


def test_one_case_at_a_time_the_oldest_first(computer: Computer, ledger: Ledger, bench: Bench) -> None:
    first, second = ready(ledger, "1.1"), ready(ledger, "1.2")
    computer.tick(1.0)
    computer.tick(2.0)
    assert len(bench.jobs) == 1
    assert ledger.case(second.id).state is State.READY
    bench.answer("RTDOSE")
    computer.tick(3.0)
    assert ledger.case(first.id).state is State.ENCODED
    assert ledger.case(second.id).state is State.COMPUTING


def test_results_are_registered_with_the_digest_of_their_inputs(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.answer("SEG", "RTDOSE", "SR")
    computer.tick(2.0)
    run = ledger.latest_run(case.id)
    assert run is not None
    assert run.new.inputs_sha256 == "digest"
    results = ledger.results(run.id)
    assert [r.new.kind for r in results] == ["SEG", "RTDOSE", "SR"]
    assert all(not Path(r.new.path).is_absolute() for r in results)


def test_what_a_person_must_not_overlook_stands_in_the_log_with_the_case(
    computer: Computer, ledger: Ledger, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.run = replace(RUN, details_json='{"flags": ["the energy is 3 times DVK\'s"]}')
    bench.answer("RTDOSE")
    computer.tick(2.0)
    assert ("dicomnode.computing.compute", f"case {case.id}: the energy is 3 times DVK's") in [
        (r.name, r.getMessage()) for r in caplog.records if r.levelname == "WARNING"
    ]


def test_a_rejection_holds_the_case_with_its_remedy(computer: Computer, ledger: Ledger, bench: Bench) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].set_exception(
        InputRejected("more activity than was administered", "Check the calibration")
    )
    computer.tick(2.0)
    held = ledger.case(case.id)
    assert (held.state, held.reason, held.remedy) == (
        State.HELD,
        "more activity than was administered",
        "Check the calibration",
    )


@pytest.mark.parametrize(
    "error", [Transient("was killed by SIGKILL"), EngineFailed("CUDA fault"), ValueError("bug")], ids=repr
)
def test_a_failed_attempt_is_repeated_after_a_pause_and_then_given_up(
    error: Exception, computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].set_exception(error)
    computer.tick(2.0)
    again = ledger.case(case.id)
    assert (again.state, again.attempts) == (State.READY, 1)
    computer.tick(again.next_attempt_at - 1)
    assert len(bench.jobs) == 1
    computer.tick(again.next_attempt_at)
    bench.futures[1].set_exception(error)
    computer.tick(again.next_attempt_at + 1)
    failed = ledger.case(case.id)
    assert failed.state is State.FAILED
    assert "attempt 2 of 2" in failed.reason
    assert "dicomnode retry" in failed.remedy


def test_a_job_that_hangs_is_killed_at_its_time_limit(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    computer.tick(100.9)
    assert not bench.futures[0].cancelled()
    computer.tick(101.0)
    assert bench.futures[0].cancelled()
    stumbled = ledger.case(case.id)
    assert stumbled.state is State.READY
    assert "killed after 100 s" in stumbled.reason


def test_a_late_object_stops_the_job_and_its_results_are_never_registered(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    ledger.add_instances([object_of("1.2.3", 2, 5.0)], 5.0)
    assert ledger.case(case.id).state is State.COLLECTING
    computer.tick(6.0)
    assert bench.futures[0].cancelled()
    assert ledger.latest_run(case.id) is None


def test_results_that_come_after_a_late_object_are_dropped(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    """The job ends in the same tick in which the object arrives."""
    case = ready(ledger)
    computer.tick(1.0)
    bench.answer("RTDOSE")
    ledger.add_instances([object_of("1.2.3", 2, 5.0)], 5.0)
    computer.tick(6.0)
    assert ledger.case(case.id).state is State.COLLECTING
    assert ledger.latest_run(case.id) is None


def test_files_that_the_disk_damaged_are_set_aside_before_the_attempt_ends(
    config: Config, ledger: Ledger, bench: Bench
) -> None:
    """Were the ledger away between the two, the job's end would be looked at again."""
    case, told = ready(ledger), []

    def set_aside(paths: Mapping[str, Path], now: float) -> None:
        told.append((dict(paths), now))
        assert [a.outcome for a in ledger.attempts(case.id)] == ["running"]
        ledger.lacks(case.study_instance_uid, "the disk damaged", {"1.9": "quarantine/1.9.broken"}, now)

    computer = Computer(config, ledger, bench, damaged=set_aside)
    computer.tick(1.0)
    assert bench.jobs[0].spooled
    damaged = InputsDamaged("1 of its 2 files", "send it again", ("/data/spool/1.2.3/1.9.dcm",))
    bench.futures[0].set_exception(pickle.loads(pickle.dumps(damaged)))
    computer.tick(2.0)
    assert told == [({"1.9": Path("/data/spool/1.2.3/1.9.dcm")}, 2.0)]
    assert [a.outcome for a in ledger.attempts(case.id)] == ["stopped"]
    assert ledger.case(case.id).state is State.COLLECTING
    assert "the disk damaged" in ledger.case(case.id).conflict
    computer.tick(3.0)
    assert len(bench.jobs) == 1


def test_a_case_with_damaged_files_is_held_also_when_the_ledger_does_not_take_what_it_lacks(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].set_exception(
        InputsDamaged("1 of its 2 files", "send it again", ("/spool/1.2.3/1.dcm",))
    )
    computer.tick(2.0)
    held = ledger.case(case.id)
    assert (held.state, held.reason, held.remedy) == (State.HELD, "1 of its 2 files", "send it again")


def test_after_a_crash_the_case_is_queued_again_and_half_made_files_are_gone(
    computer: Computer, ledger: Ledger, bench: Bench, config: Config
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.jobs[0].out.mkdir(parents=True)
    (bench.jobs[0].out / "RTDOSE-dvk.part").write_bytes(b"half")
    successor = Computer(config, ledger, bench)
    successor.recover(10.0)
    assert ledger.case(case.id).state is State.READY
    assert not bench.jobs[0].out.exists()
    assert [a.outcome for a in ledger.attempts(case.id)] == ["interrupted"]


def test_recovery_keeps_registered_results(
    computer: Computer, ledger: Ledger, bench: Bench, config: Config
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.answer("RTDOSE")
    computer.tick(2.0)
    Computer(config, ledger, bench).recover(10.0)
    run = ledger.latest_run(case.id)
    assert run is not None
    assert all((config.node.data_dir / r.new.path).exists() for r in ledger.results(run.id))


def test_a_case_that_takes_the_node_down_time_and_again_is_held(
    ledger: Ledger, bench: Bench, config: Config
) -> None:
    case = ready(ledger)
    for n in range(MAX_INTERRUPTIONS):
        computer = Computer(config, ledger, bench)
        computer.recover(10.0 * n)
        computer.tick(10.0 * n + 1)
        assert ledger.case(case.id).state is State.COMPUTING
    computer = Computer(config, ledger, bench)
    computer.recover(1000.0)
    computer.tick(1001.0)
    held = ledger.case(case.id)
    assert held.state is State.HELD
    assert "stopped 10 times" in held.reason


def montecarlo(config: Config) -> Config:
    dose = config.dose.model_copy(update={"engines": ("mc",), "timeout_s": 1600.0})
    return config.model_copy(update={"dose": dose})


def test_an_interrupted_monte_carlo_goes_on_from_its_checkpoint(
    config: Config, ledger: Ledger, bench: Bench
) -> None:
    """It lies beside the attempts' folders, outlives them, and goes when the case has its results."""
    case = ready(ledger)
    computer = Computer(montecarlo(config), ledger, bench)
    computer.tick(1.0)
    left = bench.jobs[0].checkpoint
    assert left is not None
    assert left.parent == bench.jobs[0].out.parent
    bench.jobs[0].out.mkdir(parents=True)
    left.write_bytes(b"state")
    computer.stop()
    successor = Computer(montecarlo(config), ledger, bench)
    successor.recover(10.0)
    assert left.exists()
    successor.tick(11.0)
    assert bench.jobs[1].checkpoint == left
    bench.answer("RTDOSE")
    successor.tick(12.0)
    assert ledger.case(case.id).state is State.ENCODED
    assert not left.exists()


def test_a_checkpoint_of_other_inputs_is_removed(config: Config, ledger: Ledger, bench: Bench) -> None:
    case = ready(ledger)
    computer = Computer(montecarlo(config), ledger, bench)
    computer.tick(1.0)
    old = bench.jobs[0].checkpoint
    assert old is not None
    old.parent.mkdir(parents=True)
    old.write_bytes(b"state")
    old.with_name(old.name + ".part").write_bytes(b"half")
    ledger.add_instances([object_of("1.2.3", 2, 5.0)], 5.0)
    computer.tick(6.0)
    assembled(ledger, case, 7.0, "another digest")
    computer.tick(8.0)
    assert bench.jobs[1].checkpoint != old
    assert list(old.parent.glob("*.checkpoint*")) == []


def test_a_rejected_case_keeps_no_checkpoint(config: Config, ledger: Ledger, bench: Bench) -> None:
    """A damaged one is refused like any input: `retry` must not meet it again."""
    case = ready(ledger)
    computer = Computer(montecarlo(config), ledger, bench)
    computer.tick(1.0)
    left = bench.jobs[0].checkpoint
    assert left is not None
    left.parent.mkdir(parents=True)
    left.write_bytes(b"damaged")
    bench.futures[0].set_exception(InputRejected("the checkpoint cannot be read", "Remove it"))
    computer.tick(2.0)
    assert ledger.case(case.id).state is State.HELD
    assert not left.exists()


def test_dvk_needs_no_checkpoint_and_keeps_its_kernels(
    computer: Computer, ledger: Ledger, bench: Bench, config: Config
) -> None:
    ready(ledger)
    computer.tick(1.0)
    assert bench.jobs[0].checkpoint is None
    assert bench.jobs[0].kernel_cache == config.node.data_dir / "cache" / "kernels"


class Refusing(Bench):
    """An executor that cannot make a process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        raise OSError(12, "Cannot allocate memory")


def test_a_process_that_cannot_be_made_is_a_failed_attempt_and_blocks_nothing(
    config: Config, ledger: Ledger
) -> None:
    case = ready(ledger)
    computer = Computer(config, ledger, Refusing())
    computer.tick(1.0)
    computer.tick(2.0)
    stumbled = ledger.case(case.id)
    assert (stumbled.state, stumbled.attempts) == (State.READY, 1)
    assert "Cannot allocate memory" in stumbled.reason


@pytest.mark.parametrize("end", ["results", "rejection", "failure", "time limit"])
def test_a_ledger_that_is_locked_when_a_job_ends_hears_of_it_later(
    end: str, computer: Computer, ledger: Ledger, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the case would stay COMPUTING, with no job, until the next start."""
    case = ready(ledger)
    computer.tick(1.0)
    if end == "results":
        bench.answer("RTDOSE")
    elif end == "rejection":
        bench.futures[0].set_exception(InputRejected("no", "Do"))
    elif end == "failure":
        bench.futures[0].set_exception(Transient("was killed"))
    now = 101.0 if end == "time limit" else 2.0

    def locked(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_decide", locked)
        with pytest.raises(LedgerUnavailable):
            computer.tick(now)
    assert ledger.case(case.id).state is State.COMPUTING
    computer.tick(now + 1)
    expected = {"results": State.ENCODED, "rejection": State.HELD}.get(end, State.READY)
    assert ledger.case(case.id).state is expected


def test_a_full_disk_is_told_as_such(computer: Computer, ledger: Ledger, bench: Bench) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].set_exception(OSError(28, "No space left on device", "/data/results/1/1/SR.part"))
    computer.tick(2.0)
    stumbled = ledger.case(case.id)
    assert "No space left on device: /data/results/1/1/SR.part" in stumbled.reason
    assert "data_dir" in stumbled.remedy
    assert "report" not in stumbled.remedy


def identity_of(config: Config, ledger: Ledger) -> str:
    bench = Bench()
    Computer(config, ledger, bench).tick(1.0)
    return bench.jobs[0].identity


def test_a_rebuilt_ledger_gives_the_same_uids_to_the_same_numbers_and_others_to_others(
    config: Config, ledger: Ledger, tmp_path: Path
) -> None:
    """PACS keeps what it has under a UID: a recalculation with other settings must not reuse it."""
    ready(ledger, "1.1")
    first = identity_of(config, ledger)
    rebuilt = Ledger.open(f"sqlite:///{tmp_path / 'rebuilt.sqlite3'}")
    other = ready(rebuilt, "1.0")
    rebuilt.begin(other.id, Event.CLAIM, "compute", 0.0)
    ready(rebuilt, "1.1")
    assert identity_of(config, rebuilt) == first
    rebuilt.recover(2.0)
    rebuilt.apply(other.id, Event.REJECT, 2.0)
    recalibrated = config.model_copy(update={"dose": config.dose.model_copy(update={"max_attempts": 5})})
    assert identity_of(recalibrated, rebuilt) != first
    rebuilt.close()


def test_the_same_inputs_computed_again_get_other_uids(
    computer: Computer, ledger: Ledger, bench: Bench, config: Config
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.run = replace(RUN, config_sha256=config.sha256, software_version=__version__)
    bench.answer("RTDOSE")
    computer.tick(2.0)
    ledger.apply(case.id, Event.RETRY, 3.0, inputs_sha256="")
    assembled(ledger, case, 4.0, "digest")
    computer.tick(5.0)
    assert bench.jobs[1].identity != bench.jobs[0].identity


def test_a_pause_that_a_set_back_clock_made_endless_is_none(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    ready(ledger, at=1e9)
    computer.tick(1e9)
    bench.futures[0].set_exception(Transient("was killed"))
    computer.tick(1e9 + 1)
    computer.tick(1e9 - 3e7)
    assert len(bench.jobs) == 2


def test_a_rerun_names_what_was_sent_before(computer: Computer, ledger: Ledger, bench: Bench) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.answer("RTDOSE")
    computer.tick(2.0)
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 3.0)
    run = ledger.latest_run(case.id)
    assert run is not None
    ledger.delivered(attempt, run, 4.0)
    ledger.add_instances([object_of("1.2.3", 2, 5.0)], 5.0)
    assembled(ledger, case, 6.0, "another digest")
    computer.tick(7.0)
    assert [r.sop_instance_uid for r in bench.jobs[1].predecessors] == ["2.25.10"]


# ── several at once, and nowhere to compute ──────────────────────────────────────────────────────


def test_a_claim_whose_answer_was_lost_is_taken_up_again(
    computer: Computer, ledger: Ledger, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the database has committed and before it could say so."""
    case = ready(ledger)
    begin = ledger.begin

    def unheard(*args: Any) -> Any:
        begin(*args)
        raise LedgerUnavailable("the ledger does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "begin", unheard)
        with pytest.raises(LedgerUnavailable):
            computer.tick(1.0)
    computer.tick(2.0)
    computer.tick(2.0 + ORPHAN_S - 1)
    assert ledger.case(case.id).state is State.COMPUTING
    computer.tick(2.0 + ORPHAN_S)
    assert len(bench.jobs) == 1
    assert [a.outcome for a in ledger.attempts(case.id)] == ["interrupted", "running"]
    bench.answer("RTDOSE")
    computer.tick(100.0)
    assert ledger.case(case.id).state is State.ENCODED


def test_as_many_cases_at_once_as_are_set(config: Config, ledger: Ledger, bench: Bench) -> None:
    computer = Computer(with_dose(config, at_once=2), ledger, bench)
    cases = [ready(ledger, f"1.{n}") for n in range(3)]
    computer.tick(1.0)
    assert len(bench.jobs) == 2
    bench.answer("RTDOSE")
    computer.tick(2.0)
    assert [ledger.case(case.id).state for case in cases] == [
        State.COMPUTING,
        State.ENCODED,
        State.COMPUTING,
    ]


def with_dose(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"dose": config.dose.model_copy(update=changes)})


class Nowhere(Bench):
    """A cluster whose scheduler does not answer."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        self.jobs.append(args[0])
        raise Unavailable("the scheduler tcp://dose:8786 does not answer", "Start the scheduler")


def test_where_nothing_can_be_computed_no_attempt_counts_and_the_pauses_grow(
    config: Config, ledger: Ledger
) -> None:
    nowhere = Nowhere()
    computer = Computer(config, ledger, nowhere)
    first, second = ready(ledger, "1.1"), ready(ledger, "1.2")
    tried = []
    for now in range(1, 3600):
        before = len(nowhere.jobs)
        computer.tick(float(now))
        if len(nowhere.jobs) > before:
            tried.append(now)
    pauses = [b - a for a, b in pairwise(tried)]
    assert pauses[:5] == [61, 121, 241, 481, 601]
    assert set(pauses[5:]) <= {601}
    case = ledger.case(first.id)
    assert (case.state, case.attempts, case.reason) == (
        State.READY, 0, "the scheduler tcp://dose:8786 does not answer",
    )  # fmt: skip
    assert ledger.case(second.id).state is State.READY
    assert {a.outcome for a in ledger.attempts(first.id)} == {"postponed"}


def test_pauses_do_not_grow_because_the_ledger_cannot_be_told(
    config: Config, ledger: Ledger, bench: Bench, computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is often the ledger's too: the node must go on a minute later, not ten."""
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].set_exception(OSError(errno.ENOSPC, "No space left on device"))

    def full(*_: object, **__: object) -> None:
        raise LedgerUnavailable("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "end", full)
        for now in (2.0, 3.0, 4.0, 5.0, 6.0):
            with pytest.raises(LedgerUnavailable):
                computer.tick(now)
    computer.tick(7.0)
    assert ledger.case(case.id).state is State.READY
    computer.tick(66.0)
    assert len(bench.jobs) == 1
    computer.tick(68.0)
    assert len(bench.jobs) == 2


def test_a_job_that_no_worker_took_up_in_time_waits_and_costs_no_attempt(
    config: Config, ledger: Ledger, bench: Bench, computer: Computer
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[0].begun = False  # type: ignore[attr-defined]
    computer.tick(101.0)
    assert bench.futures[0].cancelled()
    after = ledger.case(case.id)
    assert (after.state, after.attempts) == (State.READY, 0)
    assert "no worker of the cluster took it up within 100 s" in after.reason


def test_when_the_work_comes_back_to_a_node_its_own_job_goes_on(
    ledger: Ledger, bench: Bench, computer: Computer
) -> None:
    mine, others = ready(ledger, "1.1"), ready(ledger, "1.2")
    computer.tick(1.0)
    ledger.begin(others.id, Event.CLAIM, "compute", 1.0)
    bench.jobs[0].out.mkdir(parents=True)
    computer.recover(2.0)
    assert ledger.case(mine.id).state is State.COMPUTING
    assert ledger.case(others.id).state is State.READY
    assert bench.jobs[0].out.exists()


def test_a_case_that_another_node_has_claimed_is_passed_over(
    ledger: Ledger, bench: Bench, computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, free = ready(ledger, "1.1"), ready(ledger, "1.2")
    listed = ledger.cases(State.READY)
    ledger.begin(taken.id, Event.CLAIM, "compute", 1.0)
    monkeypatch.setattr(ledger, "cases", lambda *_: listed)
    computer.tick(1.0)
    assert ledger.case(free.id).state is State.COMPUTING
    assert len(bench.jobs) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_without_room_costs_no_attempt_and_no_other_case_is_tried_in_vain(
    computer: Computer, ledger: Ledger, bench: Bench, number: int
) -> None:
    """Of a full disk no case is FAILED: it goes on by itself when there is room."""
    first, second = ready(ledger, "1.1"), ready(ledger, "1.2")
    for now in (1.0, 1000.0, 2000.0):
        computer.tick(now)
        bench.futures[-1].set_exception(OSError(number, os.strerror(number)))
        computer.tick(now + 1)
        waiting = ledger.case(first.id)
        assert (waiting.state, waiting.attempts) == (State.READY, 0)
        assert os.strerror(number) in waiting.reason
        computer.tick(now + 2)
        assert ledger.case(second.id).state is State.READY
    computer.tick(3000.0)
    bench.answer("SR")
    computer.tick(3001.0)
    assert ledger.case(first.id).state is State.ENCODED


def test_another_fault_of_the_disk_is_a_failed_attempt(
    computer: Computer, ledger: Ledger, bench: Bench
) -> None:
    case = ready(ledger)
    computer.tick(1.0)
    bench.futures[-1].set_exception(OSError(errno.EIO, os.strerror(errno.EIO)))
    computer.tick(2.0)
    assert ledger.case(case.id).attempts == 1
