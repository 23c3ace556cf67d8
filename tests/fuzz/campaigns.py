"""What is fuzzed, and what counts as a failure of each."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom.dsutils import decode

from dicomnode.commitment.message import (
    EventType,
    FailureReason,
    Malformed,
    Request,
    of_a_peer,
    report_of,
    report_to_dataset,
    request_of,
    request_to_dataset,
    require_few_items,
)
from dicomnode.ledger import Ledger
from dicomnode.query.identifier import Refused, read, to_query, to_retrieval
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import describe, inspect, study_instance_uid
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin, split_file
from tests.dicomnode.modality import compressed, encoded
from tests.fuzz import mutations
from tests.fuzz.target import HANG_S, Failure, Target
from tests.fuzz.traffic import Traffic, same_uid, slice_for_ever

_C_STORE, _C_FIND, _C_MOVE, _C_GET, _N_ACTION = 0x0001, 0x0020, 0x0021, 0x0010, 0x0130
SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
# What a DICOM file's header names each of them; the first byte of a saved input.
_NATIVE = SYNTAXES[:4]


@dataclass(frozen=True, slots=True)
class Campaign:
    """One kind of input. share: of all inputs of a run."""

    name: str
    what: str
    share: float
    inputs: st.SearchStrategy[bytes]
    check: Callable[[Sequence[bytes]], None]
    """Tries some at the same time. Raises Failure."""


def campaigns(target: Target, traffic: Traffic, folder: Path) -> list[Campaign]:
    """All of them. folder: for the files of those that run in this process."""
    checks = in_process(folder)
    stores = traffic.of(_C_STORE)
    queries = [m for field in (_C_FIND, _C_MOVE, _C_GET, _N_ACTION) for m in traffic.of(field)]
    return [
        Campaign("pdu", "PDUs of an association", 0.2, mutations.associations(traffic), target.send),
        Campaign("command", "command sets of every request", 0.2, mutations.commands(traffic), target.send),
        Campaign("store", "data sets by C-STORE", 0.05, mutations.data_sets(traffic, stores), target.send),
        Campaign("query", "identifiers by C-FIND, C-MOVE, C-GET, N-ACTION", 0.05,
                 mutations.data_sets(traffic, queries), target.send),
        Campaign("header", "data sets, read before they are acknowledged", 0.3,
                 headers(), one_by_one(checks["header"])),
        Campaign("identifier", "identifiers, read and asked of the ledger", 0.1,
                 identifiers(traffic), one_by_one(checks["identifier"])),
        Campaign("commitment", "what a peer asks and reports of storage commitment, read", 0.05,
                 commitments(), one_by_one(checks["commitment"])),
        Campaign("spool", "objects and UIDs, stored and set aside", 0.05,
                 headers(), one_by_one(checks["spool"])),
    ]  # fmt: skip


def one_by_one(check: Callable[[bytes], None]) -> Callable[[Sequence[bytes]], None]:
    """A check of several inputs, in turn."""

    def all_of_them(inputs: Sequence[bytes]) -> None:
        for content in inputs:
            check(content)

    return all_of_them


def in_process(folder: Path) -> dict[str, Callable[[bytes], None]]:
    """The checks that need no node, by the campaign's name."""
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite3'}")
    return {
        "header": check_header,
        "identifier": lambda content: check_identifier(ledger, content),
        "commitment": check_commitment,
        "spool": lambda content: check_spool(folder, content),
    }


def headers() -> st.SearchStrategy[bytes]:
    """A byte that names the transfer syntax, then a changed data set in it."""
    item = Dataset()
    item.PatientID, item.ScheduledProcedureStepID = "Ä", "S"
    dataset = slice_for_ever(
        PatientName="Müller^Jürgen",
        SpecificCharacterSet="ISO_IR 100",
        OtherPatientIDs=["1", "2"],
        OtherPatientIDsSequence=[item],
        RequestAttributesSequence=[item, item],
    )
    bases = []
    for number, syntax in enumerate(SYNTAXES):
        if syntax == DeflatedExplicitVRLittleEndian:
            bases.append(bytes([number]) + _deflated(encoded(dataset)))
        elif syntax in _NATIVE:
            bases.append(bytes([number]) + encoded(dataset, syntax))
        else:
            bases.append(bytes([number]) + encoded(compressed(dataset, syntax), syntax))
    return mutations.mutated(bases)


def _deflated(data: bytes) -> bytes:
    import zlib

    packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packed.compress(data) + packed.flush()


def identifiers(traffic: Traffic) -> st.SearchStrategy[bytes]:
    """A byte that names the transfer syntax, then a changed identifier."""
    bases = []
    for asked in (*traffic.of(_C_FIND), *traffic.of(_C_MOVE), *traffic.of(_C_GET)):
        assert asked.data is not None
        explicit = asked.data[4:6].isalpha()
        bases.append(
            bytes([SYNTAXES.index(ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)])
            + asked.data
        )
    return mutations.mutated(bases)


def commitments() -> st.SearchStrategy[bytes]:
    """A byte that names the transfer syntax, then a changed Action or Event Information (PS3.4 J.3)."""
    uids = [same_uid(name) for name in ("first", "second", "third")]
    request = Request(same_uid("transaction"), tuple((str(CTImageStorage), uid) for uid in uids))
    _, report = report_to_dataset(request, {uids[0]: FailureReason.NO_SUCH_OBJECT_INSTANCE}, "PACS")
    return mutations.mutated(
        [
            bytes([SYNTAXES.index(syntax)]) + encoded(dataset, syntax)
            for dataset in (request_to_dataset(request), report)
            for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        ]
    )


def check_header(content: bytes) -> None:
    """What the receiver does with a data set before it acknowledges it."""
    syntax, data = _syntax(content), memoryview(content)[1:]
    with _no_crash_and_no_hang():
        study_instance_uid(data, syntax)
        with contextlib.suppress(Flawed):
            describe(data, syntax)
        with contextlib.suppress(Flawed):
            inspect(data, syntax)


def check_identifier(ledger: Ledger, content: bytes) -> None:
    """What a query does: read, understood, asked of the ledger."""
    from io import BytesIO

    with _no_crash_and_no_hang(), contextlib.suppress(Refused):
        keys = read(BytesIO(content[1:]), _syntax(content))
        for patient_root in (True, False):
            for combined in (True, False):
                with contextlib.suppress(Refused):
                    query = to_query(keys, patient_root=patient_root, combined=combined)
                    ledger.find(query.question, 10)
                    for one in query.nested:
                        ledger.items(one.sequence, one.told, query.level, [1])
            with contextlib.suppress(Refused):
                ledger.find(to_retrieval(keys, patient_root=patient_root), 10)


def check_commitment(content: bytes) -> None:
    """What the services do with a data set of N-ACTION or N-EVENT-REPORT: every value that they want."""
    from io import BytesIO

    syntax, data = UID(_syntax(content)), BytesIO(content[1:])
    for understood in (request_of, lambda ds: report_of(EventType.SOME_FAILED, ds)):
        with _no_crash_and_no_hang(), contextlib.suppress(Malformed):
            require_few_items(data)
            with of_a_peer():
                understood(decode(data, syntax.is_implicit_VR, syntax.is_little_endian))


def check_spool(folder: Path, content: bytes) -> None:
    """What is stored lies where its UIDs say, what is refused in quarantine, and nothing anywhere else."""
    data_dir = folder / "around" / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    data, syntax = memoryview(content)[1:], _syntax(content)
    # UIDs that nobody has checked.
    uid, study = (bytes(data[n : n + 40]).decode("latin-1") for n in (0, 20))
    origin = Origin(CTImageStorage, uid, syntax, "FUZZER")
    with _no_crash_and_no_hang():
        spool = Spool(data_dir, 0)
        try:
            with contextlib.suppress(ValueError, Flawed):
                path, _ = spool.store(study, origin, data)
                split_file(memoryview(path.read_bytes()))
            note = Note("UNREADABLE", "fuzz", 0xC000, "FUZZER", 0.0, "", uid, study, syntax, "", "")
            spool.set_aside(note, origin, data)
        finally:
            spool.close()
    beside = [path for path in folder.iterdir() if path.name not in ("around", *_LEDGER)]
    beside += [path for path in (folder / "around").iterdir() if path.name != "data"]
    if beside:
        raise Failure("file", f"files where none belong: {beside[:10]}")


_LEDGER = ("ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm")


def _syntax(content: bytes) -> str:
    return str(SYNTAXES[content[0] % len(SYNTAXES)]) if content else str(ExplicitVRLittleEndian)


class _Hang(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@contextmanager
def _no_crash_and_no_hang() -> Iterator[None]:
    """Raises Failure for whatever else the block raises, or when it takes too long."""
    began = time.monotonic()
    watched = threading.current_thread() is threading.main_thread()
    if watched:
        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, 2 * HANG_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pydicom says what it thinks of every input
            yield
    except _Hang:
        raise Failure("hang", traceback.format_exc()) from None
    except Exception:  # noqa: BLE001  whatever it is, it is what is looked for
        raise Failure("crash", traceback.format_exc()) from None
    finally:
        if watched:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - began > HANG_S:
        raise Failure("hang", f"it took {time.monotonic() - began:.1f} s")


def _alarm(*_: object) -> None:
    raise _Hang
