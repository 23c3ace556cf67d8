"""The daemon: composes the stages, ticks them, stops them in order.

::

    receive → (spool, ledger) → assemble → compute → (results) → deliver
                                                notify ┘

Each stage is a job of one scheduler and meets the others only in the ledger. A tick that lasts is
never overtaken by the next one; a stage that raises is logged and ticked again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor
from queue import Empty, SimpleQueue

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from dicomnode import watchdog
from dicomnode.assemble import Assembler
from dicomnode.audit.trail import Audit
from dicomnode.clock import Jumps
from dicomnode.commitment.answer import Answerer
from dicomnode.commitment.ask import Committer
from dicomnode.commitment.report import ReportService
from dicomnode.commitment.scp import CommitmentService, OpenAssociations
from dicomnode.computing.compute import Computer, run
from dicomnode.computing.executors import executor_for
from dicomnode.computing.job import Job, Outcome
from dicomnode.config import Config
from dicomnode.deliver import Deliverer
from dicomnode.durable import sync_folder
from dicomnode.errors import ConfigurationError, LedgerUnavailable, RowRefused
from dicomnode.fetch import Fetcher
from dicomnode.ledger import Ledger
from dicomnode.lock import Lock
from dicomnode.network.receive import Receiver
from dicomnode.network.service import Service
from dicomnode.notify import Notifier
from dicomnode.outage import Outage
from dicomnode.privacy import FOLDER_MODE, UMASK
from dicomnode.query.find import FindService
from dicomnode.query.indexer import Indexer
from dicomnode.query.retrieve import GetService, MoveService
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import QUARANTINE, SPOOL, Spool
from dicomnode.reception.store import StoreService
from dicomnode.reload import Reloaded, reloaded
from dicomnode.results import RESULTS
from dicomnode.retention import Retention
from dicomnode.work import Work

log = logging.getLogger(__name__)
Clock = Callable[[], float]
# How late a signal may be heard.
LOOK_S = 1.0


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
        self._lock = Lock(config.node.data_dir, config.node.name)
        self.ledger = Ledger.open(config.node.ledger_url)
        self._spool = Spool(
            config.node.data_dir, int(config.receive.min_free_gb * 1e9), node=config.node.name
        )
        self.intake = Intake(self._spool, self.ledger)
        self._outage = Outage(self.ledger.where, self.ledger.probe, self.intake.waiting)
        self._audit = Audit(config.audit, config.node.ae_title, clock)
        self._asked_over = OpenAssociations()
        self._reports = self._new_reports()
        self.receiver = Receiver(
            config.node, config.peers, config.receive, self._services(), clock, config.tls, self._audit
        )
        # What lasts is measured by a clock that nobody sets; a test has one clock for everything.
        steady = time.monotonic if clock is time.time else None
        self._jumps = Jumps(steady)
        self._assembler = Assembler(
            config.assemble, config.camera, self.ledger, config.node.data_dir, self._jumps, config.fetch
        )
        self._executor = executor or executor_for(config)
        self._computer = Computer(
            config, self.ledger, self._executor, work, steady, self._audit, self.intake.damaged
        )
        self._indexer = Indexer(self.ledger, config.node.data_dir)
        self._make_stages()
        self._work = Work(self.ledger, self.intake, config.node.data_dir, self._recover, self._computer.stop)
        self._scheduler = self._schedule()

    def _new_reports(self) -> ReportService:
        config = self.config
        return ReportService(config.peers, config.committing(), self.ledger, self._clock, self._audit)

    def _make_stages(self) -> None:
        """Those that keep nothing that a reload must keep."""
        config = self.config
        self._deliverer = Deliverer(config, self.ledger, audit=self._audit, jumps=self._jumps)
        self._committer = Committer(config, self.ledger, self._reports, jumps=self._jumps)
        self._answerer = Answerer(
            config, self.ledger, self._asked_over, self.intake.damaged, self._jumps, self._audit
        )
        self._fetcher = Fetcher(
            config,
            self.ledger,
            lambda event, peer: self._storing.take(event, peer),
            audit=self._audit,
            flush=self.intake.flush,
        )
        self._notifier = Notifier(config.notify, self.ledger)
        self._retention = Retention(
            config.retention,
            self.ledger,
            self._spool,
            audit=self._audit,
            jumps=self._jumps,
            flush=self.intake.flush,
        )

    def reload(self, config: Config) -> Reloaded:
        """Take up what can be taken up of other settings. Raises ConfigurationError, and changes nothing."""
        change = reloaded(self.config, config)
        self.config = config = change.config
        logging.getLogger().setLevel(config.node.log_level)
        self._spool.configure(int(config.receive.min_free_gb * 1e9))
        self._reports = self._new_reports()
        self.receiver.configure(config.peers, config.receive, self._services())
        self._assembler.configure(config.assemble, config.camera, config.fetch)
        self._computer.configure(config)
        old = self._stoppable()
        self._make_stages()
        for stage in old:
            stage.stop()
        return change

    def _stoppable(self) -> tuple[Fetcher, Deliverer, Committer, Answerer, Retention]:
        """Stages whose `stop` lets what is under way end in order, and has nothing more begun."""
        return self._fetcher, self._deliverer, self._committer, self._answerer, self._retention

    def start(self) -> int:
        """Recover what the last run left, listen, tick. returns: the port; 0 of one that does not listen.

        Raises ConfigurationError when data_dir or the port is in use.
        """
        # First: recovery would take the cases from another node's hands.
        self._lock.take()
        now = self._clock()
        if "work" in self.config.node.roles:
            # Before the intake, which would take for new what was about to be removed.
            self._work.take(now)
        self.intake.recover(now)
        port = self._listen() if "receive" in self.config.node.roles else 0
        self._scheduler.start()
        log.info("data lies in %s", self.config.node.data_dir)
        self._audit.started()
        watchdog.ready()
        return port

    def _recover(self, now: float) -> None:
        """The work came to this node: what the last one left is gone on with."""
        self._retention.recover(now)
        self._computer.recover(now)
        self._fetcher.recover()

    def _listen(self) -> int:
        try:
            return self.receiver.start()
        except OSError as error:
            node, tls = self.config.node, self.config.tls
            ports = f"[node] port {node.port}" + (f" or [tls] port {tls.port}" if tls.port else "")
            raise ConfigurationError(
                f"{ports} on {node.bind} cannot be used: {error.strerror or error}",
                f"See who has it (`ss -ltnp sport = :{node.port}`), or set another port or bind",
            ) from None

    def stop(self) -> None:
        """Take no more, finish what is being received, leave the rest for the next start."""
        watchdog.stopping()
        log.info("stopping: no new associations, running transfers finish")
        self.receiver.stop()
        for stage in self._stoppable():
            stage.stop()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self._computer.stop()
        self._executor.shutdown(cancel_futures=True)
        self.intake.flush(self._clock())
        self._spool.close()
        self.ledger.close()
        self._lock.release()
        self._audit.stopped()
        log.info("stopped")

    def _services(self) -> tuple[Service, ...]:
        """What peers may ask for, beside C-ECHO."""
        flush, damaged = self.intake.flush, self.intake.damaged
        peers, node = self.config.peers, self.config.node
        # C-GET of our own brings objects to it too.
        self._storing = StoreService(
            self._spool,
            self.intake,
            self._clock,
            int(self.config.receive.max_object_gb * 1e9),
            self._audit,
        )
        return (
            self._storing,
            FindService(self.ledger, self.config.node.ae_title, self.config.query.max_matches, self._audit),
            MoveService(
                self.ledger, node.data_dir, self.config.query, peers, node.ae_title, self._audit, damaged
            ),
            GetService(self.ledger, node.data_dir, self.config.query, self._audit, damaged),
            CommitmentService(peers, self.ledger, flush, self._asked_over, self._clock),
            self._reports,
        )

    def tick(self) -> None:
        """Every stage once, in the order of the journey, in this thread: for tests and the demo."""
        for stage in self._stages():
            stage(self._clock())

    def _stages(self) -> tuple[Callable[[float], object], ...]:
        if "work" not in self.config.node.roles:
            return (self._register,)
        working = map(self._work.of, self._working_stages())
        return (self._jumps.tick, self._register, self._work.tick, *working)

    def _register(self, now: float) -> None:
        """Tell the ledger what was received. Raises LedgerUnavailable, for whoever ticks."""
        self.intake.flush(now)
        if self.intake.kept_by is not None:
            raise self.intake.kept_by

    def _working_stages(self) -> tuple[Callable[[float], object], ...]:
        """What one node at a time does of those that share a ledger."""
        return (
            self._indexer.tick,
            self._assembler.tick,
            self._computer.tick,
            # Of these a reload makes new ones.
            *map(
                self._latest, ("_fetcher", "_deliverer", "_committer", "_answerer", "_notifier", "_retention")
            ),
        )

    def _latest(self, name: str) -> Callable[[float], object]:
        """The tick of the stage that has this name whenever it is called."""

        def tick(now: float) -> object:
            return getattr(self, name).tick(now)

        tick.__qualname__ = f"{type(getattr(self, name)).__name__}.tick"
        return tick

    def _schedule(self) -> BackgroundScheduler:
        stages = self._stages()
        scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(len(stages) + 1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for stage in stages:
            scheduler.add_job(
                guarded,
                "interval",
                args=(stage, self._clock, self._outage),
                seconds=self.config.assemble.tick_s,
            )
        scheduler.add_job(watchdog.alive, "interval", seconds=watchdog.interval_s())
        return scheduler


def serve(config: Config, read_again: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT; take up what `read_again` gives at SIGHUP."""
    # A handler interrupts this very thread, which may hold the lock of an Event; a SimpleQueue has none.
    signals: SimpleQueue[signal.Signals] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: signals.put(signal.Signals(number)))
    # Also for what others create: SQLite its journals, a computing child its files.
    os.umask(UMASK)
    daemon = Daemon(config)
    daemon.start()
    try:
        while (received := next_signal(signals)) is signal.SIGHUP:
            log.info("SIGHUP received")
            _reload(daemon, read_again)
        log.info("%s received", received.name)
    finally:
        daemon.stop()


def next_signal(signals: SimpleQueue[signal.Signals]) -> signal.Signals:
    """Wait for the next one, in the main thread.

    Not for ever at once: one that comes as the wait is about to begin, or in another thread, does not end it,
    and its handler has to wait until this thread does anything. A busy node would not stop, or not reload.
    """
    while True:
        with contextlib.suppress(Empty):
            return signals.get(timeout=LOOK_S)


def _reload(daemon: Daemon, read_again: Callable[[], Config]) -> None:
    """A mistake in the file must not stop a node that works."""
    try:
        change = daemon.reload(read_again())
    except ConfigurationError as error:
        log.error("the settings of before hold: %s", error)
        watchdog.status("listening; config.toml is wrong, the settings of before hold")
        return
    except Exception:
        log.exception("reading config.toml again failed: the settings of before hold")
        return
    log.info("config.toml read again; taken up: %s", ", ".join(change.taken_up) or "nothing")
    if change.at_next_start:
        log.warning("not taken up before the next start: %s", ", ".join(change.at_next_start))
    watchdog.status("listening")


def prepare_data_dir(config: Config) -> None:
    """Make the folders; readable by the service's account alone (they hold patients' data)."""
    data_dir = config.node.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        for name in (SPOOL, QUARANTINE, RESULTS):
            (data_dir / name).mkdir(exist_ok=True, mode=FOLDER_MODE)
        # With SQLite the ledger's first transaction would do it; a database server does not.
        sync_folder(data_dir)
    except OSError as error:
        raise ConfigurationError(
            f"[node] data_dir {data_dir} cannot be used: {error.strerror}",
            "Create it and give it to the account that runs the node",
        ) from None


def guarded(stage: Callable[[float], object], clock: Clock, outage: Outage) -> None:
    """A stage's tick: the worker's loop is where a broad except stands."""
    try:
        stage(clock())
    except LedgerUnavailable as error:
        if not isinstance(error, RowRefused):
            outage.failed(_name(stage), error)
            return
        log.error("%s; it is tried again at the next tick", error)
    except Exception:
        log.exception("%s failed; it is tried again at the next tick", _name(stage))
    outage.ended_without(_name(stage))


def _name(stage: Callable[[float], object]) -> str:
    return getattr(stage, "__qualname__", str(stage))
