"""A real Dask scheduler and two real workers: the same jobs, failures and numbers as on one machine."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dicomnode.computing.child import ChildExecutor
from dicomnode.computing.compute import Computer
from dicomnode.computing.executors import executor_for
from dicomnode.computing.job import Job
from dicomnode.config import Cluster, Config, parse
from dicomnode.errors import Rejected, Transient, Unavailable
from dicomnode.ledger import Ledger
from dicomnode.states import State
from tests.dicomnode.cluster_jobs import die, hang, hangs_first, one_result, reject, square
from tests.dicomnode.test_compute import ready
from tests.ports import free_port

pytest.importorskip("distributed", reason="distributed is not installed: pip install 'dicomnode[dask]'")

ROOT = Path(__file__).parents[2]
# For what takes seconds: machines that test are busy.
WAIT_S = 200.0
pytestmark = pytest.mark.timeout(600)


def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────


class RunningCluster:
    """Scheduler and workers, each a process as an administrator starts it."""

    connect_timeout_s = 60.0

    def __init__(self, folder: Path, tls: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.tls = tls or {}
        self.port = free_port()
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def settings(self) -> dict[str, Any]:
        scheme = "tls" if self.tls else "tcp"
        return {
            "scheduler": f"{scheme}://127.0.0.1:{self.port}",
            "resources": {"GPU": 1},
            "connect_timeout_s": self.connect_timeout_s,
            **self.tls,
        }

    def config(self, data_dir: Path, **dose: Any) -> Config:
        return parse(
            {
                "node": {"data_dir": str(data_dir)},
                "dose": {"executor": "dask", "timeout_s": 300.0, "device": "cpu", **dose},
                "cluster": self.settings,
            }
        )

    def start_scheduler(self) -> None:
        options = [
            "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show", "--no-jupyter",
        ]  # fmt: skip
        if self.tls:
            options += ["--protocol", "tls", "--tls-ca-file", self.tls["ca"]]
            options += ["--tls-cert", self.tls["certificate"], "--tls-key", self.tls["key"]]
        self.scheduler = self._start("scheduler", "dask", "scheduler", *options)
        until(self._listens, "the scheduler listens")

    def start_worker(self) -> None:
        toml = [f'[node]\ndata_dir = "{self.folder}"\n[cluster]\nresources = {{ GPU = 1.0 }}']
        toml += [f'{k} = "{v}"' for k, v in self.settings.items() if isinstance(v, str)]
        (self.folder / "worker.toml").write_text("\n".join(toml))
        config = str(self.folder / "worker.toml")
        self.workers.append(self._start("worker", "dicomnode", "worker", "--config", config))

    def stop_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait(30)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                process.terminate()
        for process in (*self.workers, self.scheduler):
            if process is not None:
                # How long a worker takes to leave its cluster is not what is tested.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                process.wait(60)

    def executor(self, **changes: Any) -> Executor:
        from dicomnode.computing.cluster import ClusterExecutor

        return ClusterExecutor(Cluster.model_validate(self.settings | changes))

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip


@contextmanager
def running(folder: Path, tls: dict[str, str] | None = None, workers: int = 2) -> Iterator[RunningCluster]:
    cluster = RunningCluster(folder, tls)
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.start_worker()
        with cluster.executor() as executor:
            until(lambda: n_workers(executor) == workers, "the workers are there")
        yield cluster
    finally:
        cluster.stop()


def n_workers(executor: Executor) -> int:
    client = executor._connected()  # type: ignore[attr-defined]
    return len(client.scheduler_info(n_workers=-1)["workers"])


def certificates(folder: Path) -> dict[str, str]:
    """A CA and one certificate for all of the cluster."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    folder.mkdir(parents=True, exist_ok=True)
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=cluster CA"
    )
    openssl("req", *ec, "-keyout", "our.key", "-out", "our.csr", "-subj", "/CN=localhost")
    openssl(
        "x509", "-req", "-in", "our.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", "our.pem", "-days", "2"
    )
    names = {"ca": "ca.pem", "certificate": "our.pem", "key": "our.key"}
    return {setting: str(folder / name) for setting, name in names.items()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Over TLS, as in a hospital; the one whose scheduler goes away speaks plain TCP."""
    folder = tmp_path_factory.mktemp("cluster")
    with running(folder, certificates(folder / "certificates")) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster: RunningCluster) -> Iterator[Executor]:
    executor = cluster.executor()
    until(lambda: n_workers(executor) == 2, "both workers are there")
    yield executor
    executor.shutdown(cancel_futures=True)


# ── jobs and their ends ──────────────────────────────────────────────────────────────────────────


def test_results_come_back_from_processes_of_both_workers(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy worker that answers late would be restarted, and is to live on.
    monkeypatch.setattr("dicomnode.computing.cluster.KILL_ANSWER_S", WAIT_S)
    assert list(executor.map(square, [2, 3, 4])) == [4, 9, 16]
    hanging = [executor.submit(hang, str(tmp_path / name)) for name in "ab"]
    where = [until(lambda n=n: read(tmp_path / n), "a job begins") for n in "ab"]
    assert len({worker for _job, worker in where}) == 2, "each worker has one: a job takes its GPU"
    for future in hanging:
        assert future.cancel()
    for job, worker in where:
        until(lambda pid=job: not alive(pid), "the job is killed")
        assert alive(worker), "its worker lives on"
    assert executor.submit(square, 5).result(WAIT_S) == 25


def read(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    job, worker = path.read_text().split()
    return int(job), int(worker)


def test_failures_keep_their_reason_and_a_death_is_named(executor: Executor) -> None:
    with pytest.raises(Rejected) as caught:
        executor.submit(reject).result(WAIT_S)
    assert (caught.value.reason, caught.value.remedy) == ("no calibration for camera X", "add [[camera]]")
    with pytest.raises(Transient, match="memory killer"):
        executor.submit(die, signal.SIGKILL).result(WAIT_S)


def test_a_worker_that_is_killed_is_a_transient_attempt_and_no_job_begins_twice(
    executor: Executor, tmp_path: Path
) -> None:
    future = executor.submit(hang, str(tmp_path / "begun"))
    job, worker = until(lambda: read(tmp_path / "begun"), "the job begins")
    (tmp_path / "begun").unlink()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(Transient, match=r"worker .* lost") as caught:
        future.result(WAIT_S)
    assert not isinstance(caught.value, Unavailable), "it counts: the case may have done it"
    until(lambda: not alive(job), "the job ends with its worker")
    until(lambda: n_workers(executor) == 2, "the nanny starts another worker")
    assert executor.submit(square, 5).result(WAIT_S) == 25
    assert not (tmp_path / "begun").exists(), "it was not begun again"


def test_a_worker_that_hangs_itself_is_restarted_by_its_nanny(executor: Executor, tmp_path: Path) -> None:
    future = executor.submit(hang, str(tmp_path / "begun"))
    job, worker = until(lambda: read(tmp_path / "begun"), "the job begins")
    os.kill(worker, signal.SIGSTOP)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    until(lambda: not alive(worker) and not alive(job), "worker and job are killed")
    until(lambda: n_workers(executor) == 2, "the nanny starts another worker")
    assert sorted(executor.map(square, [1, 2])) == [1, 4]


def test_another_version_on_a_worker_computes_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomnode.computing.cluster.__version__", "99.0")
    with pytest.raises(Unavailable, match=r"has dicomnode .*, this node 99\.0"):
        executor.submit(square, 1).result(WAIT_S)


# ── through the computer ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield ledger
    ledger.close()


def test_two_cases_are_computed_at_once_one_on_each_worker(
    cluster: RunningCluster, executor: Executor, ledger: Ledger, tmp_path: Path
) -> None:
    computer = Computer(cluster.config(tmp_path, at_once=2), ledger, executor, one_result)
    cases = [ready(ledger, study) for study in ("1.1", "1.2")]
    computer.tick(1.0)
    assert {ledger.case(case.id).state for case in cases} == {State.COMPUTING}
    until(lambda: computer.tick(2.0) or all_in(ledger, State.ENCODED), "both are computed")


def all_in(ledger: Ledger, state: State) -> bool:
    return {case.state for case in ledger.cases()} == {state}


def test_a_job_that_hangs_is_killed_after_its_timeout_and_computed_at_the_next_attempt(
    cluster: RunningCluster, executor: Executor, ledger: Ledger, tmp_path: Path
) -> None:
    computer = Computer(cluster.config(tmp_path), ledger, executor, hangs_first)
    case = ready(ledger)
    computer.tick(1.0)
    job, _worker = until(lambda: read(tmp_path / f"begun-{case.id}"), "the job begins")
    until(lambda: executor_knows(executor), "the node knows that it has begun")
    computer.tick(302.0)
    assert ledger.case(case.id).state is State.READY
    assert "killed after 300 s (attempt 1 of 3)" in ledger.attempts(case.id)[0].detail
    until(lambda: not alive(job), "it is killed")
    until(lambda: computer.tick(1000.0) or all_in(ledger, State.ENCODED), "the next attempt succeeds")


def executor_knows(executor: Executor) -> bool:
    return all(future.begun for future in executor._running)  # type: ignore[attr-defined]


def test_a_worker_that_is_killed_fails_one_attempt_of_the_case(
    cluster: RunningCluster, executor: Executor, ledger: Ledger, tmp_path: Path
) -> None:
    computer = Computer(cluster.config(tmp_path), ledger, executor, hangs_first)
    case = ready(ledger)
    computer.tick(1.0)
    _job, worker = until(lambda: read(tmp_path / f"begun-{case.id}"), "the job begins")
    os.kill(worker, signal.SIGKILL)
    until(lambda: computer.tick(2.0) or all_in(ledger, State.READY), "the attempt fails")
    assert ledger.case(case.id).attempts == 1
    assert "lost" in ledger.attempts(case.id)[0].detail
    until(lambda: computer.tick(100.0) or all_in(ledger, State.ENCODED), "the next attempt succeeds")


def test_a_scheduler_that_goes_away_costs_no_attempt_and_work_goes_on_when_it_is_back(
    ledger: Ledger, tmp_path: Path
) -> None:
    with running(tmp_path, workers=1) as cluster:
        # It is called in vain for so long.
        cluster.connect_timeout_s = 5.0
        config = cluster.config(tmp_path, timeout_s=1e6)
        executor = executor_for(config)
        computer = Computer(config, ledger, executor, hangs_first)
        case = ready(ledger)
        computer.tick(1.0)
        job, _worker = until(lambda: read(tmp_path / f"begun-{case.id}"), "the job begins")
        cluster.stop_scheduler()
        until(lambda: computer.tick(2.0) or all_in(ledger, State.READY), "the case is queued again")
        until(lambda: not alive(job), "the job ends with the worker, which has lost its scheduler")
        computer.tick(100.0)
        computer.tick(101.0)
        assert ledger.case(case.id).attempts == 0
        assert [a.outcome for a in ledger.attempts(case.id)] == ["postponed", "postponed"]
        cluster.start_scheduler()
        cluster.start_worker()
        # A scheduler that has just begun may be called in vain once more: the pauses must pass.
        later = itertools.count(1000.0, 10.0)
        until(lambda: computer.tick(next(later)) or all_in(ledger, State.ENCODED), "it is computed")
        executor.shutdown(cancel_futures=True)


def test_the_numbers_are_those_of_this_machine(
    cluster: RunningCluster, executor: Executor, tmp_path: Path
) -> None:
    """A real study by the real job: the same objects to the last bit but for their time of day."""
    import pydicom

    from dicomnode.computing.compute import run
    from tests import small_study

    files = small_study.write(tmp_path / "study")
    config = cluster.config(tmp_path, grid_spacing_mm=[10.0, 10.0, 10.0])
    doses = []
    for name, where in (("there", executor), ("here", ChildExecutor())):
        outcome = where.submit(run, job_for(files, config, tmp_path / name)).result(240)
        doses.append({r.kind: pydicom.dcmread(r.path) for r in outcome.results})
    there, here = doses
    assert set(there) == set(here) == {"SEG", "RTDOSE", "SR"}
    assert there["RTDOSE"].PixelData == here["RTDOSE"].PixelData
    assert there["RTDOSE"].DoseGridScaling == here["RTDOSE"].DoseGridScaling
    assert {k: ds.SOPInstanceUID for k, ds in there.items()} == {
        k: ds.SOPInstanceUID for k, ds in here.items()
    }


def job_for(files: Any, config: Config, out: Path) -> Job:
    from dicomnode.records import Inputs

    inputs = Inputs(ct=tuple(map(str, files.ct)), spect=(str(files.nm),))
    return Job(inputs, config, out, identity="a case")


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


def test_over_tls_only_who_has_a_certificate_of_the_cluster_is_served(
    cluster: RunningCluster, executor: Executor, tmp_path: Path
) -> None:
    assert cluster.settings["scheduler"].startswith("tls://")
    assert executor.submit(square, 3).result(WAIT_S) == 9
    others = certificates(tmp_path / "others")
    with (
        cluster.executor(**others, connect_timeout_s=3.0) as stranger,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        stranger.submit(square, 3)


def test_check_tells_how_many_workers_offer_what_a_job_takes(
    cluster: RunningCluster, executor: Executor, tmp_path: Path
) -> None:
    from dicomnode.commands.check import _cluster

    def finding(**dose: Any) -> tuple[str, str]:
        (found,) = _cluster(cluster.config(tmp_path, **dose), ask=True)
        return found.level, found.text

    level, text = finding()
    assert level == "ok"
    assert text.endswith("2 worker(s) offer GPU = 1")
    assert finding(at_once=3)[0] == "warning"


def test_a_job_whose_node_has_ended_is_killed(
    cluster: RunningCluster, executor: Executor, tmp_path: Path
) -> None:
    gone = cluster.executor()
    gone.submit(hang, str(tmp_path / "begun"))
    job, worker = until(lambda: read(tmp_path / "begun"), "the job begins")
    gone._client.close()  # type: ignore[attr-defined]
    until(lambda: not alive(job), "the job is killed")
    assert alive(worker)
    gone.shutdown(cancel_futures=True)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_a_scheduler_that_is_not_there_is_unavailable_and_named() -> None:
    from dicomnode.computing.cluster import ClusterExecutor

    settings = Cluster(scheduler="tcp://127.0.0.1:9", connect_timeout_s=1.0)
    with ClusterExecutor(settings) as executor, pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        executor.submit(square, 1)
