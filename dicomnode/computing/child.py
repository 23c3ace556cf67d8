"""One killable process per job, behind the `concurrent.futures.Executor` interface.

A `ProcessPoolExecutor` breaks as a whole when one worker dies and cannot stop a job that has begun.
Here each job has a process of its own: a hang, a crash, a CUDA fault or the memory killer ends that
job alone, and `Future.cancel()` kills it also while it runs. A Dask client has the same interface.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dicomnode.errors import Rejected, Transient
from pipeline.errors import InputRejected

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

# Imports happen anew in the child: nothing of the listening process (threads, sockets, locks) is in it.
_SPAWN = multiprocessing.get_context("spawn")


class ChildFuture(Future[T]):
    """A future whose process can be killed."""

    process: BaseProcess | None = None

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
        here, there = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=_child,
            args=(there, self._memory_limit_gb, self._environment, fn, args, kwargs),
            daemon=True,
        )
        future: ChildFuture[T] = ChildFuture()
        future.process = process
        process.start()
        there.close()
        with self._lock:
            self._running.add(future)
        threading.Thread(target=self._wait, args=(future, process, here), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or kill them with `cancel_futures`."""
        with self._lock:
            running = list(self._running)
        for future in running:
            if cancel_futures:
                future.cancel()
            if wait and future.process is not None:
                future.process.join()

    def _wait(self, future: ChildFuture[Any], process: BaseProcess, connection: Connection) -> None:
        """Take the child's answer, or find out how it died."""
        answer: tuple[str, Any] | None = None
        # A killed child closes its end of the pipe in the middle of whatever it wrote.
        with contextlib.suppress(EOFError, OSError):
            answer = connection.recv()
        process.join()
        connection.close()
        with self._lock:
            self._running.discard(future)
        # Cancelled between its last breath and now: nobody asks for the answer any more.
        with contextlib.suppress(InvalidStateError):
            if answer is None:
                future.set_exception(_died(process.exitcode))
            elif answer[0] == "result":
                future.set_result(answer[1])
            else:
                future.set_exception(answer[1])


_REMEDY = "See the log above and the system's log (dmesg) of that time"
_MEMORY = (
    "See the system's log (dmesg) of that time; for its need of memory set a coarser [dose] grid_spacing_mm, "
    "[dose] memory_limit_gb below what the machine has, or MemoryMax= of the service higher"
)


def _died(exitcode: int | None) -> Transient:
    """How a process ended that gave no answer."""
    if exitcode is None or exitcode >= 0:
        return Transient(f"the computing process ended without an answer (exit status {exitcode})", _REMEDY)
    name = signal.Signals(-exitcode).name
    if -exitcode == signal.SIGKILL:
        # Whoever it was: the kernel tells the dead one's parent no more than that.
        return Transient(f"the computing process was killed by {name}, perhaps by the memory killer", _MEMORY)
    return Transient(f"the computing process was killed by {name}", _REMEDY)


def _child(
    connection: Connection,
    memory_limit_gb: float | None,
    environment: dict[str, str],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """The child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()
    _offer_to_memory_killer()
    os.environ.update(environment)
    if memory_limit_gb is not None:
        limit = int(memory_limit_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        answer = ("result", fn(*args, **kwargs))
    except MemoryError:
        answer = (
            "error",
            Transient(
                "the computation ran out of memory",
                "Raise [dose] memory_limit_gb or set a coarser grid_spacing_mm",
            ),
        )
    except (InputRejected, Rejected) as error:
        # A person reads the reason in the case; a traceback would tell nothing more.
        answer = ("error", error)
    except Exception as error:
        log.exception("the computation failed")
        answer = ("error", error)
    try:
        connection.send(answer)
    except (TypeError, AttributeError, pickle.PicklingError):
        connection.send(("error", Transient(f"the computation failed: {answer[1]!r}", _REMEDY)))


def _die_with_parent(connection: Connection) -> None:
    """The parent never writes: the pipe ends when the parent does, however it does."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os._exit(70)


def _offer_to_memory_killer() -> None:
    """When memory runs out, the kernel should take the job and not the process that receives."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
