"""One killable process per job, behind the `concurrent.futures.Executor` interface.

A `ProcessPoolExecutor` breaks as a whole when one worker dies and cannot stop a job that has begun.
Here each job has a process of its own: a hang, a crash, a CUDA fault or the memory killer ends that
job alone, and `Future.cancel()` kills it also while it runs. A Dask client has the same interface.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dicomnode.computing import child_process
from dicomnode.computing.child_process import REMEDY
from dicomnode.errors import Transient

P = ParamSpec("P")
T = TypeVar("T")


class ChildFuture(Future[T]):
    """A future whose process can be killed."""

    process: subprocess.Popen[bytes] | None = None

    def cancel(self) -> bool:
        """Kill the job, also while it runs. returns: False when it had ended already."""
        # The executor never marks a future as running, because a running one refuses to be cancelled.
        cancelled = super().cancel()
        if cancelled and self.process is not None:
            self.process.kill()
        return cancelled


class ChildExecutor(Executor):
    """Runs each submitted call in a new process of its own.

    memory_limit_gb: address space that a job may take; None: no limit.
    environment: variables that a job finds beside those of this process, or in their stead.
    """

    def __init__(
        self, memory_limit_gb: float | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._memory_limit_gb = memory_limit_gb
        self._environment = dict(environment or {})
        self._running: set[ChildFuture[Any]] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ChildFuture[T]:
        """Start `fn` (importable by name; arguments and result picklable) in a process."""
        call = pickle.dumps((fn, args, kwargs))
        here, there = Pipe()
        future: ChildFuture[T] = ChildFuture()
        with there:
            # Not multiprocessing's spawn, which imports the main module anew (the command line, half a
            # second of each job) and ends with a traceback when its parent was killed meanwhile.
            future.process = process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", child_process.__name__, str(there.fileno())),
                    *([] if self._memory_limit_gb is None else [str(self._memory_limit_gb)]),
                ],
                env=os.environ | {"PYTHONPATH": _import_path()} | self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
            )
        with self._lock:
            self._running.add(future)
        threading.Thread(target=self._wait, args=(future, process, here, call), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or kill them with `cancel_futures`."""
        with self._lock:
            running = list(self._running)
        for future in running:
            if cancel_futures:
                future.cancel()
            if wait and future.process is not None:
                future.process.wait()

    def _wait(
        self, future: ChildFuture[Any], process: subprocess.Popen[bytes], connection: Connection, call: bytes
    ) -> None:
        """Tell the child what to do and take its answer, or find out how it died."""
        answer: tuple[str, Any] | None = None
        try:
            with connection:
                connection.send_bytes(call)
                answer = connection.recv()
        except (EOFError, OSError):
            pass  # A killed child closes its end of the socket in the middle of whatever it read or wrote.
        except Exception as error:  # noqa: BLE001
            # Such as an exception of a library that pickle takes apart and cannot put together again.
            failed = Transient(f"the computation's answer cannot be read: {error!r}", REMEDY)
            answer = ("error", failed)
        process.wait()
        with self._lock:
            self._running.discard(future)
        # Cancelled between its last breath and now: nobody asks for the answer any more.
        with contextlib.suppress(InvalidStateError):
            if answer is None:
                future.set_exception(_died(process.returncode))
            elif answer[0] == "result":
                future.set_result(answer[1])
            else:
                future.set_exception(answer[1])


_MEMORY = (
    "See the system's log (dmesg) of that time; for its need of memory set a coarser [dose] grid_spacing_mm, "
    "[dose] memory_limit_gb below what the machine has, or MemoryMax= of the service higher"
)


def _import_path() -> str:
    """The child finds what its parent finds; '' is where the parent stands."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def _died(exitcode: int) -> Transient:
    """How a process ended that gave no answer."""
    if exitcode >= 0:
        return Transient(f"the computing process ended without an answer (exit status {exitcode})", REMEDY)
    name = signal.Signals(-exitcode).name
    if -exitcode == signal.SIGKILL:
        # Whoever it was: the kernel tells the dead one's parent no more than that.
        return Transient(f"the computing process was killed by {name}, perhaps by the memory killer", _MEMORY)
    return Transient(f"the computing process was killed by {name}", REMEDY)
