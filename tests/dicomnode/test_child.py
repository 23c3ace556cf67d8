"""A job may do what it wants: only its own future hears of it."""

import errno
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from multiprocessing import Pipe
from pathlib import Path

import pytest

from dicomnode.computing import child_process
from dicomnode.computing.child import ChildExecutor
from dicomnode.errors import Rejected, Transient


def square(x: int) -> int:
    return x * x


def reject() -> None:
    raise Rejected("no calibration for camera X", "add [[camera]]")


def raise_unpicklable() -> None:
    error = ValueError("has a lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


class TwoReasonsError(Exception):
    def __init__(self, one: str, *, other: str) -> None:
        super().__init__(one)
        self.other = other


def raise_one_way() -> None:
    raise TwoReasonsError("pickled", other="and not put together again")


def find_no_room() -> None:
    raise OSError(errno.ENOSPC, "no room")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def leave() -> None:
    os._exit(3)


def hang(started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    signal.pause()


def allocate(size: int) -> int:
    return len(bytearray(size))


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the child never started"
        os.sched_yield()
    return int(path.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_result_comes_back_from_another_process() -> None:
    with ChildExecutor() as executor:
        assert list(executor.map(square, [2, 3])) == [4, 9]


def test_a_job_finds_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code goes where the service may write: where its unit says, if it may there."""
    monkeypatch.setenv("NODE_SET", "by a person")
    monkeypatch.delenv("NODE_UNSET", raising=False)
    with ChildExecutor(environment={"NODE_SET": "by the node", "NODE_UNSET": "by the node"}) as executor:
        assert list(executor.map(os.getenv, ["NODE_SET", "NODE_UNSET"])) == ["by the node", "by the node"]
    assert "NODE_UNSET" not in os.environ


def test_an_exception_keeps_its_reason_and_remedy() -> None:
    with ChildExecutor() as executor, pytest.raises(Rejected) as caught:
        executor.submit(reject).result()
    assert (caught.value.reason, caught.value.remedy) == ("no calibration for camera X", "add [[camera]]")


def test_an_exception_that_cannot_travel_is_still_told() -> None:
    with ChildExecutor() as executor, pytest.raises(Transient, match="has a lock"):
        executor.submit(raise_unpicklable).result()


def test_an_exception_that_travels_one_way_only_is_still_told() -> None:
    with ChildExecutor() as executor, pytest.raises(Transient, match=r"cannot be read: .*'other'"):
        executor.submit(raise_one_way).result()


def test_a_job_that_finds_no_room_says_so_in_one_place(capfd: pytest.CaptureFixture[str]) -> None:
    """The node tells of it and waits for room; a traceback in its log would tell of a defect."""
    with ChildExecutor() as executor, pytest.raises(OSError, match="no room") as caught:
        executor.submit(find_no_room).result()
    assert caught.value.errno == errno.ENOSPC
    assert capfd.readouterr().err == ""


def test_a_job_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update under a running service."""
    module = tmp_path / "module_of_yesterday.py"
    module.write_text("def job(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    job = importlib.import_module(module.stem).job
    module.unlink()
    with ChildExecutor() as executor, pytest.raises(ModuleNotFoundError, match=module.stem):
        executor.submit(job).result()


def test_a_child_whose_parent_is_killed_before_it_says_what_to_do_ends_without_a_word() -> None:
    here, there = Pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", child_process.__name__, str(there.fileno())],
        pass_fds=[there.fileno()],
        stderr=subprocess.PIPE,
    )
    there.close()
    here.close()
    assert child.communicate()[1] == b""
    assert child.returncode == child_process.PARENT_DIED


@pytest.mark.parametrize(("number", "text"), [(signal.SIGKILL, "memory killer"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_death_by_signal_is_transient_and_named(number: int, text: str) -> None:
    with ChildExecutor() as executor, pytest.raises(Transient, match=text):
        executor.submit(die, number).result()


def test_an_exit_without_an_answer_is_transient() -> None:
    with ChildExecutor() as executor, pytest.raises(Transient, match="exit status 3"):
        executor.submit(leave).result()


def test_a_job_over_its_memory_limit_is_told_so_and_another_still_runs() -> None:
    with ChildExecutor(memory_limit_gb=2.0) as executor:
        too_large = executor.submit(allocate, 4_000_000_000)
        with pytest.raises(Transient, match="ran out of memory"):
            too_large.result()
        assert executor.submit(square, 5).result() == 25


def test_cancel_kills_a_job_that_hangs(tmp_path: Path) -> None:
    with ChildExecutor() as executor:
        future = executor.submit(hang, str(tmp_path / "pid"))
        pid = wait_for(tmp_path / "pid")
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        assert future.process is not None
        future.process.wait()
        assert not alive(pid)
        assert not future.cancel() or future.cancelled()


def test_a_parent_that_is_killed_as_it_is_answered_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever notices first, the job that answers or the thread that watches: here, the job."""
    here, there = Pipe()
    socket = os.dup(there.fileno())
    there.close()
    here.send_bytes(pickle.dumps((square, (2,), {})))
    here.close()

    def leave_with(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(child_process, "_die_with_parent", lambda connection: None)
    monkeypatch.setattr(child_process, "_offer_to_memory_killer", lambda: None)
    monkeypatch.setattr(os, "_exit", leave_with)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            child_process.main(socket, None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == child_process.PARENT_DIED
