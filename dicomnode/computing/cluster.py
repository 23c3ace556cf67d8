"""Jobs on a Dask cluster, each in a killable process of its own on the worker's machine.

::

    node: ClusterExecutor.submit ──▶ scheduler ──▶ worker: `supervised` ──▶ ChildExecutor ──▶ the job
          Future.cancel() ─── kill ─────────────────▶ worker ─────────────────── SIGKILL ───────┘
                          └── no answer? restart ──▶ nanny ── SIGKILL ──▶ worker

Dask runs tasks in threads, which nobody can stop, and runs a task again by itself where its worker
was lost, although the first run may still be writing. So the worker's thread only waits for a child
process (the same as on one machine), and a job that has begun never begins again: the node hears
that its worker was lost, and decides.
"""

from __future__ import annotations

import logging
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import dask
from distributed import Client, Event, KilledWorker, get_worker
from distributed import Future as DaskFuture
from distributed.comm.core import CommClosedError
from distributed.security import Security

from dicomnode import __version__
from dicomnode.computing.child import ChildExecutor, ChildFuture
from dicomnode.config import Cluster
from dicomnode.errors import Transient, Unavailable

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

# How often the node looks where its jobs are: a worker that is lost is noticed within it.
WATCH_S = 2.0
# A worker that does not answer a request to kill a job for so long is restarted by its nanny.
KILL_ANSWER_S = 10.0
RESTART_S = 30.0
_LOST = "See the log of that worker and its machine's memory; the case is tried again"
_SCHEDULER = "Start the scheduler, or correct [cluster] scheduler; cases wait until it answers"


# ── on the worker ────────────────────────────────────────────────────────────────────────────────

_CHILDREN: dict[str, ChildFuture[Any]] = {}


def supervised(
    token: str,
    version: str,
    memory_limit_gb: float | None,
    call: bytes,
) -> Any:
    """A worker's task: run the job in a process of its own and wait for it.

    call: function and arguments, pickled, so that Dask does not look for tasks of its own in them.
    """
    where = get_worker().address
    if version != __version__:
        raise Unavailable(
            f"the worker {where} has dicomnode {__version__}, this node {version}", "Install the same version"
        )
    begun = Event(token)
    if begun.is_set():
        raise Transient("the worker that computed it was lost", _LOST)
    begun.set()
    fn, args, kwargs = pickle.loads(call)
    with ChildExecutor(memory_limit_gb) as executor:
        child = executor.submit(fn, *args, **kwargs)
        _CHILDREN[token] = child
        try:
            return _wait(child, token)
        finally:
            _CHILDREN.pop(token, None)


def _wait(child: ChildFuture[Any], token: str) -> Any:
    """The job's answer. A job that nobody waits for any more (its node has ended) is killed."""
    tasks = get_worker().state.tasks
    while True:
        try:
            return child.result(WATCH_S)
        except TimeoutError:
            task = tasks.get(token)
            if not child.done() and (task is None or task.state != "executing"):
                child.cancel()


def kill(token: str) -> bool:
    """On the worker's event loop, which no job can block: end a job. returns: whether it ran here."""
    child = _CHILDREN.get(token)
    return child is not None and child.cancel()


# ── on the node ──────────────────────────────────────────────────────────────────────────────────


class ClusterFuture(Future[T]):
    """A future whose job can be killed wherever it runs."""

    def __init__(self, end: Callable[[ClusterFuture[Any]], None]) -> None:
        super().__init__()
        self._end = end
        self.token = f"dicomnode-{uuid.uuid4().hex}"
        self.task: DaskFuture | None = None
        self.worker = ""
        """Address of the worker that was last seen to have it; empty: none."""
        self.begun = False

    def cancel(self) -> bool:
        """Kill the job, also while it runs. returns: False when it had ended already."""
        cancelled = super().cancel()
        if cancelled and self.task is not None:
            # A worker that does not answer must not keep the caller waiting.
            threading.Thread(target=self._end, args=(self,), name="kill", daemon=True).start()
        return cancelled


class ClusterExecutor(Executor):
    """Runs each submitted call on a worker of the cluster. Connects at the first `submit`.

    memory_limit_gb: address space that a job may take; None: no limit.
    """

    def __init__(self, settings: Cluster, memory_limit_gb: float | None = None) -> None:
        self._settings = settings
        self._memory_limit_gb = memory_limit_gb
        self._client: Client | None = None
        self._running: set[ClusterFuture[Any]] = set()
        self._changed = threading.Condition()
        self._watcher: threading.Thread | None = None
        self._ended = threading.Event()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ClusterFuture[T]:
        """Queue `fn` (importable by name on every worker). Raises Unavailable without a scheduler."""
        future: ClusterFuture[T] = ClusterFuture(self._kill)
        call = pickle.dumps((fn, args, kwargs))
        with _reaching(self._settings.scheduler):
            client = self._connected()
            future.task = client.submit(
                supervised, future.token, __version__, self._memory_limit_gb, call,
                key=future.token, pure=False, retries=0, resources=self._settings.resources or None,
            )  # fmt: skip
        with self._changed:
            self._running.add(future)
            self._changed.notify_all()
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="cluster", daemon=True)
                self._watcher.start()
        future.task.add_done_callback(lambda task: self._finish(future, task))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs, or kill them with `cancel_futures`; then leave the cluster."""
        with self._changed:
            running = list(self._running)
        for future in running:
            if cancel_futures and Future.cancel(future):
                self._kill(future)
            elif wait:
                with suppress(CancelledError, Exception):
                    future.result()
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join(WATCH_S + KILL_ANSWER_S)
        if self._client is not None:
            with suppress(OSError, TimeoutError, RuntimeError):
                self._client.close(timeout=5)
            self._client = None

    def _connected(self) -> Client:
        """The connection, made anew when the scheduler was away."""
        if self._client is not None and self._client.status == "running":
            return self._client
        if self._client is not None:
            with suppress(OSError, TimeoutError, RuntimeError):
                self._client.close(timeout=1)
        timeout_s = self._settings.connect_timeout_s
        # Nothing of our own threads ends with it: no reconnecting behind our back for half a minute.
        with dask.config.set({"distributed.comm.timeouts.connect": f"{timeout_s}s"}):
            self._client = Client(
                self._settings.scheduler,
                timeout=timeout_s,
                security=security(self._settings),
                set_as_default=False,
                name="dicomnode",
            )
        return self._client

    # ── how a job ends ───────────────────────────────────────────────────────────────────────────

    def _finish(self, future: ClusterFuture[Any], task: DaskFuture) -> None:
        """The task has ended; in a thread of the client."""
        try:
            result = task.result()
        except BaseException as error:  # noqa: BLE001  it is the future's
            self._close(future, _told(error, future))
        else:
            self._close(future, None, result)

    def _close(self, future: ClusterFuture[Any], error: BaseException | None, result: Any = None) -> None:
        with self._changed:
            self._running.discard(future)
        # Cancelled, or found to be lost, before: nobody asks for the answer any more.
        with suppress(InvalidStateError):
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _kill(self, future: ClusterFuture[Any]) -> None:
        """End a job on whichever worker has it, and the worker where it does not answer."""
        with self._changed:
            self._running.discard(future)
        client = self._client
        if client is None or future.task is None:
            return
        with suppress(OSError, TimeoutError, RuntimeError, CancelledError, ValueError):
            worker = _worker_of(client, future.token) or future.worker
            if worker and not _answers(client, worker, future.token):
                log.warning("the worker %s does not answer: its nanny restarts it", worker)
                client.restart_workers([worker], timeout=RESTART_S, raise_for_error=False)
            future.task.cancel()
            future.task.release()
            Event(future.token, client=client).clear()

    # ── where the jobs are ───────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """Notice a worker that was lost with a job that had begun, also where no other takes it up."""
        while not self._ended.wait(WATCH_S):
            with self._changed:
                running, client = list(self._running), self._client
            if not running or client is None or client.status != "running":
                continue
            # The scheduler may end at any moment: the tasks themselves tell of that.
            with suppress(OSError, TimeoutError, RuntimeError, CancelledError):
                for future in running:
                    self._look_for(client, future)

    def _look_for(self, client: Client, future: ClusterFuture[Any]) -> None:
        worker = _worker_of(client, future.token)
        lost = future.begun and worker != future.worker
        if lost and future.task is not None and not future.task.done():
            log.warning("the worker %s was lost with a job", future.worker)
            self._close(future, Transient(f"the worker {future.worker} was lost while it computed", _LOST))
            self._kill(future)
            return
        future.worker = worker
        future.begun = future.begun or bool(worker and Event(future.token, client=client).is_set())


def workers(settings: Cluster) -> list[str]:
    """Addresses of the workers that offer what a job takes. Raises Unavailable without a scheduler."""
    with ClusterExecutor(settings) as executor, _reaching(settings.scheduler):
        known = executor._connected().scheduler_info(n_workers=-1)["workers"]
    return [
        address
        for address, worker in known.items()
        if all(worker["resources"].get(name, 0) >= amount for name, amount in settings.resources.items())
    ]


def security(settings: Cluster) -> Security | None:
    """TLS in both directions, where [cluster] names its files."""
    if settings.ca is None:
        return None
    return Security(
        require_encryption=True,
        tls_ca_file=str(settings.ca),
        tls_client_cert=str(settings.certificate),
        tls_client_key=str(settings.key),
        tls_worker_cert=str(settings.certificate),
        tls_worker_key=str(settings.key),
        tls_min_version=771,  # TLS 1.2, as it stands in the protocol: RFC 5246 A.1
    )


def _worker_of(client: Client, token: str) -> str:
    """The worker that has the task; empty when none has."""
    return next((address for address, tokens in client.processing().items() if token in tokens), "")


def _answers(client: Client, worker: str, token: str) -> bool:
    """Whether a worker says what became of our request to kill."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError, TimeoutError, RuntimeError, CancelledError, ValueError):
            client.run(kill, token, workers=[worker], on_error="ignore")
            answered.set()

    threading.Thread(target=ask, name="kill", daemon=True).start()
    return answered.wait(KILL_ANSWER_S)


@contextmanager
def _reaching(scheduler: str) -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, CommClosedError, RuntimeError, ValueError) as error:
        raise Unavailable(f"the scheduler {scheduler} does not answer: {error}", _SCHEDULER) from error


def _told(error: BaseException, future: ClusterFuture[Any]) -> BaseException:
    """What happened, as the node's own failures."""
    if isinstance(error, KilledWorker):
        return Transient(f"the worker {error.last_worker.address} was lost while it computed", _LOST)
    if isinstance(error, (CancelledError, CommClosedError, TimeoutError)):
        what = "while it computed" if future.begun else "before it was begun"
        return Unavailable(f"the scheduler was lost {what}: {error}", _SCHEDULER)
    return error
