"""What the commands print on, and where their log goes."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

from rich.console import Console

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# A pipe has no width of its own: eighty columns would cut the tables.
out = Console(markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


# What pynetdicom says of a peer that the node calls and that is not ready for it, whose name it leaves out.
_REPEATED = (
    "Association Rejected", "Result: ", "Reason: ", "Association Aborted", "ACSE timeout reached",
    "No accepted presentation contexts", "Connection closed while waiting", "DIMSE timeout reached",
)  # fmt: skip


def _is_told_by_nobody_else(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_REPEATED)


class _OneLine(logging.Formatter):
    """What comes from outside, an AE title say, cannot begin a line of its own, nor steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, without the traceback that may follow."""
        record.message = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], record.message)
        return super().formatMessage(record)


def log_to_stderr(level: str) -> None:
    """From this level on; other packages speak when they warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # Their INFO is our DEBUG: an association and a font are no news.
    for name in ("alembic", "pynetdicom", "matplotlib", "highdicom"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    if logging.getLevelName(level) > logging.DEBUG:
        # Tracebacks of what peers have sent or broken off; of each the node has a line that names the peer.
        # So has it of a peer that it calls and that cannot be reached ("transport").
        for name in ("dul", "dimse", "utils", "pdu_primitives", "transport"):
            logging.getLogger(f"pynetdicom.{name}").setLevel(logging.CRITICAL)
        for name in ("acse", "assoc"):
            logging.getLogger(f"pynetdicom.{name}").addFilter(_is_told_by_nobody_else)
        # It shows the value that it finds wrong, which may be a patient's; the warnings say the same again,
        # and Python remembers each of them for ever.
        logging.getLogger("pydicom").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
    # It warns of every tick that a long stage skips, which is what it was asked to do.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
