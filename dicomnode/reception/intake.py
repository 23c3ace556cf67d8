"""What was received, on its way into the ledger.

An object is acknowledged once its file is durable; the ledger hears of it a moment later, in a batch.
Between the two lies only memory, and `recover` finds in the spool what was lost with it. So a
ledger that is locked or gone delays nothing but the computation. An object that the ledger refuses, or whose
file cannot be read again, keeps no other out of it: it is left where it lies and told of, and its case is
held. Where the ledger refuses even that, it is told again, with pauses that double, until it takes it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import LedgerUnavailable, RowRefused
from dicomnode.ledger import Ledger
from dicomnode.patience import backoff_s, lasts
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import Header, inspect
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin, split_file
from dicomnode.records import Instance, Quarantined

log = logging.getLogger(__name__)

# Why a case lacks objects that were acknowledged.
_NOT_TAKEN = "the database did not take"
_NOT_READ = "the disk did not give back"
DAMAGED = "the disk damaged"


@dataclass(frozen=True, slots=True)
class _Pauses:
    """Until a case that the ledger refuses to hold is told of again."""

    first_retry_s: float = 60.0
    max_retry_s: float = 3600.0


_PAUSES = _Pauses()
_NAMED = 20


class Intake:
    """Collects from the associations' threads; whoever ticks calls `flush`."""

    def __init__(self, spool: Spool, ledger: Ledger) -> None:
        self._spool = spool
        self._ledger = ledger
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._instances: list[Instance] = []
        self._notes: list[Note] = []
        self._conflicts: dict[str, str] = {}
        self._again: dict[str, Path] = {}
        # Study and why → what its case lacks: SOP Instance UID → file.
        self._lacking: dict[tuple[str, str], dict[str, str]] = {}
        # SOP Instance UIDs of those that waited already when this node started, or came again.
        self._old: set[str] = set()
        # Study whose case the ledger refuses to hold → how often it has, and when it is told again.
        self._refused: dict[str, tuple[int, float]] = {}
        self.kept_by: LedgerUnavailable | None = None
        """Why the last `flush` could not tell the ledger everything."""

    def waiting(self) -> int:
        """How many objects the ledger has not heard of."""
        return len(self._instances)

    def add(self, instance: Instance) -> None:
        """An object is durable and about to be acknowledged."""
        with self._lock:
            self._instances.append(instance)

    def again(self, sop_instance_uid: str, path: Path) -> None:
        """An object that is on the disk came once more, and is about to be acknowledged.

        The ledger may have given it up, where removing its file has failed: then it is a new one.
        """
        with self._lock:
            self._again[sop_instance_uid] = path

    def note(self, note: Note) -> None:
        """An object was refused."""
        with self._lock:
            self._notes.append(note)
            if note.conflict_study_uid:
                kept = f"; set aside as {note.path}" if note.path else ""
                self._conflicts.setdefault(note.conflict_study_uid, f"{note.reason}{kept}")

    def is_result(self, sop_instance_uid: str) -> bool:
        """Whether it is one of our own results. Raises LedgerUnavailable."""
        return self._ledger.is_result(sop_instance_uid)

    def damaged(self, paths: Mapping[str, Path], now: float) -> None:
        """Acknowledged objects are not whole any more. paths: SOP Instance UID → file.

        Their cases are held, and their files make way for the same objects, sent again. Raises
        LedgerUnavailable: then every file is where it was.
        """
        for uid, path in paths.items():
            aside = self._spool.relative(self._spool.discarded(path))
            self._lacks(path.parent.name, DAMAGED, uid, aside, old=False)
        self.flush(now)
        if self.kept_by is not None:
            raise self.kept_by
        for uid, path in paths.items():
            try:
                with self._spool.claim(uid):
                    self._spool.discard(path)
            except OSError as error:
                # It is damaged all the same, and found again by whoever asks next.
                relative = self._spool.relative(path)
                log.error("%s is damaged and cannot be set aside: %s", relative, error.strerror or error)

    def flush(self, now: float) -> set[int]:
        """Tell the ledger. returns: ids of the cases that got new objects.

        What the ledger does not take now is kept for the next call; nothing is raised for it: `kept_by`
        says why.
        """
        touched: set[int] = set()
        with self._flushing:
            try:
                self._flush_again(now)
                # Objects first: a contradiction needs the case that they make.
                self._flush_instances(now, touched)
                self._flush_lacking(now)
                self._flush_conflicts(now)
                self._flush_notes()
                self.kept_by = None
            except LedgerUnavailable as error:
                self.kept_by = error
                log.debug("%d received objects wait for the ledger: %s", len(self._instances), error)
        return touched

    def recover(self, now: float) -> set[int]:
        """At start: register what was acknowledged but lost from memory. returns: as `flush`.

        Raises LedgerUnavailable: a node that cannot know what it has must not start.
        """
        return self._take_up(self._spool.scan(), now)

    def adopt(self, nodes: Sequence[str], now: float) -> set[int]:
        """As `recover`, for nodes that share the folder, were killed, and have not come back."""
        for node in nodes:
            self._spool.forget_parts(f"*.{node}.part")
        return self._take_up(self._spool.files(), now)

    def _take_up(self, files: Mapping[str, Path], now: float) -> set[int]:
        missing = self._ledger.missing_from(files)
        # Another node may be about to remove what its ledger rows have left already.
        given_up = {removal.path for removal in self._ledger.removals()} if missing else set()
        for uid in sorted(missing):
            if self._spool.relative(files[uid]) not in given_up:
                self._register(files[uid], now)
        if missing:
            log.info("%d objects of the spool were not in the ledger", len(missing))
        for note in self._spool.notes():
            if note.path not in {q.path for q in self._ledger.quarantined(note.study_instance_uid)}:
                self.note(note)
        return self.flush(now)

    def _register(self, path: Path, now: float) -> None:
        """Read a spooled file again; one that cannot be read now stays where it is."""
        try:
            instance = self._read(path, now)
        except FileNotFoundError:
            return  # another node has removed it
        except OSError as error:
            self._unread(path, error)
            return
        if instance is not None:
            with self._lock:
                self._old.add(instance.sop_instance_uid)
            self.add(instance)

    def _read(self, path: Path, now: float) -> Instance | None:
        """returns: None of one that is not whole: it was never acknowledged, so the sender has it."""
        try:
            origin, data = split_file(memoryview(path.read_bytes()))
            header = inspect(data, origin.transfer_syntax_uid)
        except Flawed as flaw:
            log.error("%s is not whole and set aside: %s", self._spool.relative(path), flaw.reason)
            self._spool.discard(path)
            return None
        self._spool.make_durable(path)
        stat = path.stat()
        relative = self._spool.relative(path)
        return instance_of(header, origin, relative, stat.st_size, min(now, stat.st_mtime))

    def _unread(self, path: Path, error: OSError) -> None:
        """It may have been acknowledged: its case must not go on without it unnoticed."""
        study, uid, relative = path.parent.name, path.stem, self._spool.relative(path)
        self._lacks(study, _NOT_READ, uid, relative, old=True)
        log.error(
            "%s cannot be read: %s. It stays where it is and is tried again when it is sent again, and at "
            "the next start: check the disk",
            relative, error.strerror or error,
        )  # fmt: skip

    def _flush_again(self, now: float) -> None:
        with self._lock:
            again = dict(self._again)
        for uid in sorted(self._ledger.missing_from(again)) if again else ():
            self._register(again[uid], now)
        with self._lock:
            for uid in again:
                del self._again[uid]

    def _flush_instances(self, now: float, touched: set[int]) -> None:
        with self._lock:
            batch = tuple(self._instances)
        try:
            self._register_all(batch, now, touched)
        except RowRefused:
            self._register_parts(batch, now, touched)

    def _register_all(self, batch: Sequence[Instance], now: float, touched: set[int]) -> None:
        """In one transaction. batch: those that have waited longest."""
        touched |= self._ledger.add_instances(batch, now)
        self._leave_out(batch)

    def _register_parts(self, batch: Sequence[Instance], now: float, touched: set[int]) -> None:
        """Half by half, until the ones are found that the ledger refuses; each was refused twice then."""
        try:
            self._register_all(batch, now, touched)
        except RowRefused as error:
            if len(batch) == 1:
                self._set_aside(batch[0], error, now)
                return
            middle = len(batch) // 2
            self._register_parts(batch[:middle], now, touched)
            self._register_parts(batch[middle:], now, touched)

    def _leave_out(self, batch: Sequence[Instance]) -> None:
        with self._lock:
            del self._instances[: len(batch)]
            self._old.difference_update(instance.sop_instance_uid for instance in batch)

    def _set_aside(self, instance: Instance, error: RowRefused, now: float) -> None:
        """The object was acknowledged: its file stays, and its case must not go on without it unnoticed."""
        uid, study = instance.sop_instance_uid, instance.study_instance_uid
        old = uid in self._old
        self._leave_out((instance,))
        self._lacks(study, _NOT_TAKEN, uid, instance.path, old=old)
        log.error(
            "%s from %s is set aside: %s. Its file stays where it is, %s. It is tried again when it is sent "
            "again, and at the next start: please report this",
            uid, instance.peer, error.reason, instance.path,
        )  # fmt: skip

    def _lacks(self, study: str, why: str, uid: str, path: str, *, old: bool) -> None:
        with self._lock:
            self._lacking.setdefault((study, why), {})[uid] = path
            if old:
                self._old.add(uid)

    def _flush_lacking(self, now: float) -> None:
        with self._lock:
            lacking = {key: dict(paths) for key, paths in self._lacking.items()}
        for (study, why), paths in sorted(lacking.items()):
            if self._rests(study, now):
                continue
            # What was told of before holds no case again at every start.
            told = self._ledger.told_lacking(study, why) & self._old
            new = {uid: path for uid, path in paths.items() if uid not in told}
            if study in self._refused:
                # Sent again while its case could not be held.
                still = self._ledger.missing_from(new)
                new = {uid: path for uid, path in new.items() if uid in still}
            if new and not self._hold_without(study, why, new, now):
                continue
            with self._lock:
                self._old.difference_update(paths)
                for uid in paths:
                    del self._lacking[study, why][uid]
                if not self._lacking[study, why]:
                    del self._lacking[study, why]

    def _hold_without(self, study: str, why: str, paths: Mapping[str, str], now: float) -> bool:
        """returns: whether the ledger has taken it."""
        try:
            self._ledger.lacks(study, why, paths, now)
        except RowRefused as error:
            pause_s = self._refuse(study, now)
            if self._ledger.with_case((study,)):
                said = "is not held, and may be computed without them"
            else:
                said = "could not be opened: `dicomnode cases` does not show it, and nothing is computed"
            log.error(
                "%s %d object(s) of study %s, and its case %s: %s. It is told again in %.0f s. The files "
                "stay where they are, %s, and are tried again at the next start: please report this",
                why, len(paths), study, said, error.reason, pause_s, _named(paths.values()),
            )  # fmt: skip
            return False
        self._refused.pop(study, None)
        return True

    def _rests(self, study: str, now: float) -> bool:
        _, until = self._refused.get(study, (0, 0.0))
        return lasts(until, now, _PAUSES.max_retry_s)

    def _refuse(self, study: str, now: float) -> float:
        """The ledger refuses to hold a study's case. returns: seconds until it is told again."""
        times = self._refused.get(study, (0, 0.0))[0] + 1
        pause_s = backoff_s(times, _PAUSES)
        self._refused[study] = (times, now + pause_s)
        return pause_s

    def _flush_conflicts(self, now: float) -> None:
        with self._lock:
            conflicts = dict(self._conflicts)
        # A study's first object may have come after the batch was taken: then it is said later.
        due = [study for study in conflicts if not self._rests(study, now)]
        for study in sorted(self._ledger.with_case(due)) if due else ():
            try:
                told = self._ledger.conflict(study, conflicts[study], now)
            except RowRefused as error:
                log.error(
                    "objects of study %s contradict each other, and its case is not held: %s. It is told "
                    "again in %.0f s: look into quarantine before a result of it is used, and please report "
                    "this",
                    study, error.reason, self._refuse(study, now),
                )  # fmt: skip
                continue
            self._refused.pop(study, None)
            if told:
                with self._lock:
                    del self._conflicts[study]

    def _flush_notes(self) -> None:
        while self._notes:
            note = self._notes[0]
            try:
                self._ledger.quarantine(_quarantined(note))
            except RowRefused as error:
                log.error("the ledger does not tell of %s, which was refused: %s", note.path, error)
            with self._lock:
                del self._notes[0]


def instance_of(header: Header, origin: Origin, path: str, size_bytes: int, received_at: float) -> Instance:
    """The ledger's record of an accepted object. path: relative to data_dir."""
    return Instance(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        modality=header.modality,
        transfer_syntax_uid=origin.transfer_syntax_uid,
        patient_id=header.patient_id,
        issuer_of_patient_id=header.issuer_of_patient_id,
        accession_number=header.accession_number,
        path=path,
        size_bytes=size_bytes,
        peer=origin.peer,
        received_at=received_at,
        attributes=header.attributes,
    )


def _named(paths: Collection[str]) -> str:
    """The first few, for a line that is repeated."""
    few = ", ".join(list(paths)[:_NAMED])
    return few if len(paths) <= _NAMED else f"{few} and {len(paths) - _NAMED} more"


def _quarantined(note: Note) -> Quarantined:
    return Quarantined(
        sop_instance_uid=note.sop_instance_uid,
        study_instance_uid=note.study_instance_uid,
        peer=note.peer,
        defect=note.defect,
        reason=note.reason,
        status=note.status,
        path=note.path,
        received_at=note.received_at,
    )
