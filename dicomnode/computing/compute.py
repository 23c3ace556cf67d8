"""Stage 3: a READY case → results on disk with fixed UIDs, in a killable child process.

The listening process claims a case, starts the job and looks in on it at every tick. Nothing heavy
(torch, scipy, SimpleITK, highdicom) is imported here: `run` imports it in the child.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

from dicomnode import __version__
from dicomnode.audit.trail import SILENT, Audit
from dicomnode.computing.child_process import NO_ROOM
from dicomnode.computing.job import InputsDamaged, Job, Outcome
from dicomnode.config import Config
from dicomnode.errors import IllegalTransition, Rejected, Unavailable
from dicomnode.held_files import SetAside, leave
from dicomnode.ledger import Ledger
from dicomnode.patience import lasts
from dicomnode.privacy import without_identity
from dicomnode.records import Attempt, Case, Inputs, NewResult, NewRun
from dicomnode.results import RESULTS
from dicomnode.states import Event, State
from pipeline.errors import InputRejected, PipelineError

log = logging.getLogger(__name__)

# An attempt that ends with the node is nobody's fault, until it happens time and again.
MAX_INTERRUPTIONS = 10
# After a failed attempt: the machine gets time to recover (memory, a GPU that is used by others).
RETRY_PAUSE_S = 60.0
# Where nothing can be computed at all the pause doubles up to this.
LONGEST_REST_S = 600.0
# A claim that no job of this node belongs to is given up after so long.
ORPHAN_S = 60.0
_ORPHAN = "it was claimed, and nobody computes it"
_CHECKPOINT = ".checkpoint"
_LOOK = "See the log of that time"
_MACHINE = "Look at the disk of [node] data_dir (room, rights) and at the machine's memory"


def run(job: Job) -> Outcome:
    """The job itself, in the child."""
    from dicomnode.computing.case_job import perform

    return perform(job)


@dataclass(slots=True)
class _Running:
    attempt: Attempt
    future: Future[Outcome]
    out: Path
    deadline: float


@dataclass(frozen=True, slots=True)
class _Rest:
    """Nothing could be computed, and no case is claimed for a while. Times: as `steady` gives them."""

    until: float
    pause_s: float


class Computer:
    """Computes [dose] at_once cases at a time.

    executor: runs `work` (the job; tests bring their own) so that `Future.cancel()` stops it.
    steady: seconds of a clock that is never set; None: the times of `tick`. damaged: takes files of the spool
    that are not what came, by SOP Instance UID, and has their case held.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        executor: Executor,
        work: Callable[[Job], Outcome] = run,
        steady: Callable[[], float] | None = None,
        audit: Audit = SILENT,
        damaged: SetAside = leave,
    ) -> None:
        self._audit = audit
        self._set_aside = damaged
        self._config = config
        self._ledger = ledger
        self._executor = executor
        self._work = work
        self._steady = steady
        self._running: list[_Running] = []
        self._resting: _Rest | None = None
        self._orphans: dict[int, float] = {}

    def tick(self, now: float) -> None:
        """Look in on the running jobs, then start the next ones."""
        for running in tuple(self._running):
            self._look_in(running, now)
        self._look_for_orphans(now)
        if not self._rests(now):
            self._start_next(now)

    def configure(self, config: Config) -> None:
        """Other settings from the next job on."""
        self._config = config

    def recover(self, now: float) -> None:
        """After a start: queue what the last run left computing and remove its half-made files.

        Also when the work comes back to this node: its own jobs go on.
        """
        running = {running.attempt.id for running in self._running}
        for case in self._ledger.recover(now, but=running):
            log.info("case %d was computing when the node stopped: queued again", case.id)
        finished = self._ledger.finished_attempts() | running
        for folder in (self._config.node.data_dir / RESULTS).glob("*/*"):
            if _CHECKPOINT in folder.name:
                continue  # the queued case goes on from it
            if not (folder.name.isdigit() and int(folder.name) in finished):
                shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """Kill the running jobs; their cases are queued again at the next start."""
        for running in self._running:
            running.future.cancel()
            shutil.rmtree(running.out, ignore_errors=True)
        self._running.clear()

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    def _start_next(self, now: float) -> None:
        for case in self._ledger.cases(State.READY):
            if len(self._running) >= self._config.dose.at_once or self._rests(now):
                return
            if lasts(case.next_attempt_at, now, RETRY_PAUSE_S * self._config.dose.max_attempts):
                continue
            if self._interrupted_too_often(case):
                self._hold_interrupted(case, now)
                continue
            # A new object came, or another node took the case, since they were listed.
            with contextlib.suppress(IllegalTransition):
                self._start(case, now)

    def _start(self, case: Case, now: float) -> None:
        data_dir = self._config.node.data_dir
        predecessor = self._ledger.predecessor(case.id)
        replaced = () if predecessor is None else tuple(self._ledger.results(predecessor.id))
        takers = self._config.rejection_note_takers()
        rejections = self._ledger.to_reject(case.id, takers)
        inputs = _absolute(Inputs.from_json(case.inputs_json), data_dir)
        identity, checkpoint = self._identity(case), self._checkpoint(case)
        # From here on nothing may fail before the job is `_running`: the case would stay COMPUTING.
        attempt = self._ledger.begin(case.id, Event.CLAIM, "compute", now)
        out = self._case_folder(case.id) / str(attempt.id)
        job = Job(
            inputs=inputs,
            config=self._config,
            out=out,
            identity=identity,
            predecessors=tuple(r.new for r in replaced),
            rejections=rejections,
            rejection_reason=case.rejection_reason or self._config.deliver.rejection_reason,
            kernel_cache=data_dir / "cache" / "kernels",
            spooled=True,
            checkpoint=checkpoint,
        )
        deadline = self._now(now) + self._config.dose.timeout_s
        self._running.append(_Running(attempt, self._submit(job), out, deadline))
        log.info("case %d: attempt %d to compute began", case.id, attempt.id)
        if self._audit.is_kept:
            classes = self._ledger.kept_classes("inputs", case.id)
            self._audit.accessed(case.study_instance_uid, case.identity.patient_id, classes)

    def _submit(self, job: Job) -> Future[Outcome]:
        """Start the job. A process that cannot be made is a failed attempt like any other."""
        try:
            return self._executor.submit(self._work, job)
        except Exception as error:  # noqa: BLE001  the worker's loop: the case is claimed already
            failed: Future[Outcome] = Future()
            failed.set_exception(error)
            return failed

    def _checkpoint(self, case: Case) -> Path | None:
        """Where a Monte Carlo of exactly this input leaves what it has, for the next attempt.

        Those of other inputs, settings or versions are of no more use, and are removed.
        """
        origin = " ".join((case.inputs_sha256, self._config.sha256, __version__))
        name = f"{hashlib.sha256(origin.encode()).hexdigest()[:16]}{_CHECKPOINT}"
        folder = self._case_folder(case.id)
        _remove_checkpoints(folder, but=name)
        return folder / name if "mc" in self._config.dose.engines else None

    def _case_folder(self, case_id: int) -> Path:
        return self._config.node.data_dir / RESULTS / str(case_id)

    def _identity(self, case: Case) -> str:
        """What a result's UIDs are made of: what it is computed from, and the how-manieth of these it is.

        A ledger that was lost and rebuilt so gives the UIDs that the PACS has, as long as inputs,
        configuration and software are the same; and never these UIDs to other numbers.
        """
        origin = (case.inputs_sha256, self._config.sha256, __version__)
        before = sum(
            (run.new.inputs_sha256, run.new.config_sha256, run.new.software_version) == origin
            for run in self._ledger.runs(case.id)
        )
        return " ".join((case.study_instance_uid, *origin, str(before)))

    def _interrupted_too_often(self, case: Case) -> bool:
        story = self._ledger.story(case.id)
        since = max((t.at for t in story if t.event is Event.COMPLETE), default=0.0)
        attempts = [
            a for a in self._ledger.attempts(case.id) if a.stage == "compute" and a.started_at >= since
        ]
        return sum(a.outcome == "interrupted" for a in attempts) >= MAX_INTERRUPTIONS

    def _hold_interrupted(self, case: Case, now: float) -> None:
        reason = f"the node itself stopped {MAX_INTERRUPTIONS} times while it computed this case"
        remedy = "See the system's log for the memory killer or crashes; then `dicomnode retry`"
        self._ledger.apply(case.id, Event.REJECT, now, reason=reason, remedy=remedy)
        log.error("case %d is HELD: %s. %s", case.id, reason, remedy)

    def _now(self, now: float) -> float:
        """For what lasts while the node runs: a clock that is set must not kill a job, or spare it."""
        return now if self._steady is None else self._steady()

    def _rests(self, now: float) -> bool:
        return self._resting is not None and self._now(now) < self._resting.until

    # ── looking in ───────────────────────────────────────────────────────────────────────────

    def _look_in(self, running: _Running, now: float) -> None:
        # The job is let go of only when the ledger knows its end: one that is locked for a while
        # would otherwise keep the case COMPUTING until the next start.
        if running.future.done():
            self._finish(running, now)
        elif self._ledger.case(running.attempt.case_id).state is not State.COMPUTING:
            self._drop(running, "a new object made its inputs outdated")
        elif self._now(now) >= running.deadline:
            self._overdue(running, now)
            self._drop(running, "it took too long")
        else:
            return
        self._running.remove(running)

    def _look_for_orphans(self, now: float) -> None:
        """Queue again what is COMPUTING without a job of ours.

        Its claim was stored although the database did not say so, or was made by a node that had lost the
        work and did not know it yet: such a one has ORPHAN_S to find out, lest two take turns.
        """
        ours = {running.attempt.case_id for running in self._running}
        found = [case.id for case in self._ledger.cases(State.COMPUTING) if case.id not in ours]
        self._orphans = {case_id: self._orphans.get(case_id, self._now(now)) for case_id in found}
        for case_id, since in tuple(self._orphans.items()):
            if self._now(now) - since >= ORPHAN_S and self._ledger.requeue(case_id, now, _ORPHAN):
                log.warning("case %d: %s: it is queued again", case_id, _ORPHAN)

    def _overdue(self, running: _Running, now: float) -> None:
        after = f"{self._config.dose.timeout_s:g} s"
        # On a cluster the time runs from the moment the job was queued.
        if getattr(running.future, "begun", True):
            remedy = "Raise [dose] timeout_s, or set a coarser [dose] grid_spacing_mm"
            self._failed(running.attempt, f"killed after {after}", remedy, now)
        else:
            remedy = "Start workers that have [cluster] resources, or lower [dose] at_once"
            nobody = Unavailable(f"no worker of the cluster took it up within {after}", remedy)
            self._postponed(running.attempt, nobody, now)

    def _drop(self, running: _Running, why: str) -> None:
        running.future.cancel()
        shutil.rmtree(running.out, ignore_errors=True)
        log.warning("case %d: the computation was stopped: %s", running.attempt.case_id, why)

    def _finish(self, running: _Running, now: float) -> None:
        attempt = running.attempt
        try:
            outcome = running.future.result()
        except InputsDamaged as error:
            shutil.rmtree(running.out, ignore_errors=True)
            self._damaged(attempt, error, now)
        except (InputRejected, Rejected) as error:
            shutil.rmtree(running.out, ignore_errors=True)
            self._ledger.end(
                attempt, Event.REJECT, now, outcome="rejected", reason=error.reason, remedy=error.remedy
            )
            # It may be the checkpoint itself that was refused: a person's `retry` begins anew.
            _remove_checkpoints(self._case_folder(attempt.case_id))
            held = self._ledger.case(attempt.case_id)
            text = without_identity(f"{held.reason}. {held.remedy}", held)
            log.warning("case %d is %s: %s", held.id, held.state, text)
        except Unavailable as error:
            shutil.rmtree(running.out, ignore_errors=True)
            self._postponed(attempt, error, now)
        except CancelledError:
            self._failed(attempt, "the computation was cancelled", "", now)
        except Exception as error:  # noqa: BLE001  the worker's loop: whatever it is, the attempt failed
            shutil.rmtree(running.out, ignore_errors=True)
            reason, remedy = _told(error)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                self._postponed(attempt, Unavailable(reason, remedy), now)
            else:
                self._failed(attempt, reason, remedy, now)
        else:
            self._register(attempt, outcome, now)

    def _damaged(self, attempt: Attempt, error: InputsDamaged, now: float) -> None:
        """The case is held for what it lacks now; with its state the attempt ends."""
        log.error("case %d: %s. %s", attempt.case_id, error.reason, error.remedy)
        self._set_aside({Path(path).stem: Path(path) for path in error.paths}, now)
        # Where the ledger did not take it that the case lacks something, it is held all the same.
        self._ledger.end(
            attempt, Event.REJECT, now, outcome="rejected", reason=error.reason, remedy=error.remedy
        )

    def _postponed(self, attempt: Attempt, error: Unavailable, now: float) -> None:
        """Nothing could be computed: no attempt counts, and no other case is claimed in vain."""
        before = 0.0 if self._resting is None else self._resting.pause_s
        pause_s = min(max(RETRY_PAUSE_S, 2 * before), LONGEST_REST_S)
        self._ledger.end(
            attempt, Event.STUMBLE, now, outcome="postponed", reason=error.reason, remedy=error.remedy
        )
        # After the ledger: a full disk is often its disk too, and its silence is no further failure.
        self._resting = _Rest(self._now(now) + pause_s, pause_s)
        log.error("case %d waits: %s. Tried again in %.0f s", attempt.case_id, error, pause_s)

    def _register(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        self._resting = None
        case = self._ledger.case(attempt.case_id)
        new_run = _with_inputs(outcome.inputs_free_run, case.inputs_sha256)
        relative = [_relative(r, self._config.node.data_dir) for r in outcome.results]
        to, notes_to = self._config.deliver.to, self._config.rejection_note_takers()
        registered = self._ledger.register(attempt, new_run, relative, to, now, notes_to)
        if registered is None:
            log.warning("case %d: results came too late and were dropped", attempt.case_id)
        else:
            log.info("case %d: %d results are encoded", attempt.case_id, len(relative))
            for flag in json.loads(new_run.details_json).get("flags", ()):
                log.warning("case %d: %s", attempt.case_id, flag)
            _remove_checkpoints(self._case_folder(attempt.case_id))

    def _failed(self, attempt: Attempt, reason: str, remedy: str, now: float) -> None:
        failed = self._ledger.case(attempt.case_id).attempts + 1
        last = failed >= self._config.dose.max_attempts
        text = f"{reason} (attempt {failed} of {self._config.dose.max_attempts})"
        self._ledger.end(
            attempt,
            Event.GIVE_UP if last else Event.STUMBLE,
            now,
            outcome="failed",
            reason=text,
            remedy=f"{remedy or _LOOK}; then `dicomnode retry`" if last else remedy or _LOOK,
            attempts=failed,
            next_attempt_at=now + RETRY_PAUSE_S * failed,
        )
        log.error("case %d: %s%s", attempt.case_id, text, "" if not last else ": FAILED")


def _remove_checkpoints(folder: Path, but: str = "") -> None:
    """Also what one that was being written left behind."""
    for path in folder.glob(f"*{_CHECKPOINT}*"):
        if path.name != but:
            # One that stays costs room until the case's next attempt, and nothing else.
            with contextlib.suppress(OSError):
                path.unlink()


def _told(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"the machine is at fault: {error.strerror or error}{where}", _MACHINE
    if isinstance(error, PipelineError) or hasattr(error, "remedy"):
        return str(getattr(error, "reason", error)), str(getattr(error, "remedy", ""))
    return f"{type(error).__name__}: {error}", "The log holds the traceback: please report it"


def _absolute(inputs: Inputs, data_dir: Path) -> Inputs:
    def rooted(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(data_dir / p) for p in paths)

    return Inputs(
        rooted(inputs.ct),
        rooted(inputs.spect),
        rooted(inputs.rois),
        rooted(inputs.registrations),
        rooted(inputs.dose_reports),
        inputs.notes,
    )


def _relative(result: NewResult, data_dir: Path) -> NewResult:
    return replace(result, path=str(Path(result.path).relative_to(data_dir)))


def _with_inputs(new_run: NewRun, inputs_sha256: str) -> NewRun:
    return replace(new_run, inputs_sha256=inputs_sha256)
