"""The process of one job, which `child` starts: ``python -m dicomnode.computing.child_process FD LIMIT_GB``.

Nothing of the listening process (threads, sockets, locks, its command line's modules) is in it. It takes the
call from the socket, does it, and answers there with ``("result", ...)`` or ``("error", ...)``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import resource
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dicomnode.errors import Rejected, Transient
from pipeline.errors import InputRejected

log = logging.getLogger(__name__)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""The disk is full, its quota used up, or it was mounted read-only after an error: no fault of the case, nor
of any other that would be tried meanwhile. The log has one line of it, the node's."""

REMEDY = "See the log above and the system's log (dmesg) of that time"
PARENT_DIED = 70


def main(socket: int, memory_limit_gb: float | None) -> None:
    """The process's whole life.

    socket: its file descriptor. memory_limit_gb: address space that the job may take; None: no limit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(socket) as connection:
        try:
            call = connection.recv_bytes()
        except (EOFError, OSError):
            # Killed between starting this process and telling it what to do.
            os._exit(PARENT_DIED)
        threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()
        _offer_to_memory_killer()
        if memory_limit_gb is not None:
            limit = int(memory_limit_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        answer = _answer(call)
        try:
            told = pickle.dumps(answer)
        except (TypeError, AttributeError, pickle.PicklingError):
            told = pickle.dumps(("error", Transient(f"the computation failed: {answer[1]!r}", REMEDY)))
        try:
            connection.send_bytes(told)
        except OSError:
            # Killed as it is answered.
            os._exit(PARENT_DIED)


def _answer(call: bytes) -> tuple[str, Any]:
    try:
        fn, args, kwargs = pickle.loads(call)
        return "result", fn(*args, **kwargs)
    except MemoryError:
        return "error", Transient(
            "the computation ran out of memory",
            "Raise [dose] memory_limit_gb or set a coarser grid_spacing_mm",
        )
    except (InputRejected, Rejected) as error:
        # A person reads the reason in the case; a traceback would tell nothing more.
        return "error", error
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno in NO_ROOM):
            log.exception("the computation failed")
        return "error", error


def _die_with_parent(connection: Connection) -> None:
    """The parent writes no more than the call: the socket ends when the parent does, however it does."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os._exit(PARENT_DIED)


def _offer_to_memory_killer() -> None:
    """When memory runs out, the kernel should take the job and not the process that receives."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
