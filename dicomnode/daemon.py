"""The daemon: composes the stages, ticks them, stops them in order.

::

    receive → (spool, ledger) → assemble → compute → (results) → deliver
                                                notify ┘

Each stage is a job of one scheduler and meets the others only in the ledger. A tick that lasts is
never overtaken by the next one; a stage that raises is logged and ticked again.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from types import FrameType

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from dicomnode import compiled_code, watchdog
from dicomnode.assemble import Assembler
from dicomnode.child import ChildExecutor
from dicomnode.compute import Computer, run
from dicomnode.config import Config
from dicomnode.deliver import Deliverer
from dicomnode.errors import ConfigurationError, LedgerUnavailable
from dicomnode.intake import Intake
from dicomnode.job import Job, Outcome
from dicomnode.ledger import Ledger
from dicomnode.lock import Lock
from dicomnode.notify import Notifier
from dicomnode.receive import Receiver
from dicomnode.spool import Spool

log = logging.getLogger(__name__)
Clock = Callable[[], float]


class Daemon:
    """The whole node. `start` returns when it listens; `stop` when everything has ended.

    executor and work: where and what a computing job is; tests bring their own.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock = time.time,
        executor: Executor | None = None,
        work: Callable[[Job], Outcome] = run,
    ) -> None:
        self.config = config
        self._clock = clock
        prepare_data_dir(config)
        self._lock = Lock(config.node.data_dir)
        self.ledger = Ledger.open(config.node.ledger_url)
        self._spool = Spool(config.node.data_dir, int(config.receive.min_free_gb * 1e9))
        self.intake = Intake(self._spool, self.ledger)
        self.receiver = Receiver(config.node, config.peers, config.receive, self._spool, self.intake, clock)
        self._assembler = Assembler(config.assemble, config.camera, self.ledger, config.node.data_dir)
        compiled = {compiled_code.VARIABLE: str(compiled_code.folder_for_service(config.node.data_dir))}
        self._executor = executor or ChildExecutor(config.dose.memory_limit_gb, compiled)
        self._computer = Computer(config, self.ledger, self._executor, work)
        self._deliverer = Deliverer(config, self.ledger)
        self._notifier = Notifier(config.notify, self.ledger)
        self._scheduler = self._schedule()

    def start(self) -> int:
        """Recover what the last run left, listen, tick. returns: the port.

        Raises ConfigurationError when data_dir or the port is in use.
        """
        # First: recovery would take the cases from another node's hands.
        self._lock.take()
        now = self._clock()
        self._computer.recover(now)
        self.intake.recover(now)
        port = self._listen()
        self._scheduler.start()
        log.info("data lies in %s", self.config.node.data_dir)
        watchdog.ready()
        return port

    def _listen(self) -> int:
        try:
            return self.receiver.start()
        except OSError as error:
            node = self.config.node
            raise ConfigurationError(
                f"[node] port {node.port} on {node.bind} cannot be used: {error.strerror or error}",
                f"See who has it (`ss -ltnp sport = :{node.port}`), or set another port or bind",
            ) from None

    def stop(self) -> None:
        """Take no more, finish what is being received, leave the rest for the next start."""
        watchdog.stopping()
        log.info("stopping: no new associations, running transfers finish")
        self.receiver.stop()
        self._deliverer.stop()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self._computer.stop()
        self._executor.shutdown(cancel_futures=True)
        self.intake.flush(self._clock())
        self._spool.close()
        self.ledger.close()
        self._lock.release()
        log.info("stopped")

    def tick(self) -> None:
        """Every stage once, in the order of the journey, in this thread: for tests and the demo."""
        for stage in self._stages():
            stage(self._clock())

    def _stages(self) -> tuple[Callable[[float], object], ...]:
        return (
            self.intake.flush,
            self._assembler.tick,
            self._computer.tick,
            self._deliverer.tick,
            self._notifier.tick,
        )

    def _schedule(self) -> BackgroundScheduler:
        stages = self._stages()
        scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(len(stages) + 1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for stage in stages:
            scheduler.add_job(
                guarded, "interval", args=(stage, self._clock), seconds=self.config.assemble.tick_s
            )
        scheduler.add_job(watchdog.alive, "interval", seconds=watchdog.interval_s())
        return scheduler


def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()

    def _stop(number: int, _frame: FrameType | None) -> None:
        log.info("%s received", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    daemon = Daemon(config)
    daemon.start()
    try:
        stop.wait()
    finally:
        daemon.stop()


def prepare_data_dir(config: Config) -> None:
    """Make the folders; readable by the service's account alone (they hold patients' data)."""
    data_dir = config.node.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        for name in ("spool", "quarantine", "results"):
            (data_dir / name).mkdir(exist_ok=True, mode=0o750)
    except OSError as error:
        raise ConfigurationError(
            f"[node] data_dir {data_dir} cannot be used: {error.strerror}",
            "Create it and give it to the account that runs the node",
        ) from None


def guarded(stage: Callable[[float], object], clock: Clock) -> None:
    """A stage's tick: the worker's loop is where a broad except stands."""
    try:
        stage(clock())
    except LedgerUnavailable as error:
        # Every stage says so at every tick: no traceback.
        log.error("%s: %s; it is tried again at the next tick", _name(stage), error)
    except Exception:
        log.exception("%s failed; it is tried again at the next tick", _name(stage))


def _name(stage: Callable[[float], object]) -> str:
    return getattr(stage, "__qualname__", str(stage))
