"""The log on stderr: one line for each thing that happened."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import logging
from dicomnode.commands.terminal import log_to_stderr
log_to_stderr("INFO")
ae_title = "A\\n2026-01-01 INFO dicomnode: all is well\\x1b[2J\\u2028"
logging.getLogger("dicomnode.network.transport").warning("%s called", ae_title)
logging.getLogger("pynetdicom.dimse").error("KeyError")
for name, text in (
    ("transport", "Association request failed: unable to connect to remote"),
    ("transport", "TCP Initialisation Error: [Errno 111] Connection refused"),
    ("acse", "Association Rejected"),
    ("assoc", "DIMSE timeout reached while waiting for message response"),
):
    logging.getLogger(f"pynetdicom.{name}").error(text)
logging.getLogger("pynetdicom.acse").error("Exception in handler bound to 'evt.EVT_USER_ID'")
logging.getLogger("pynetdicom.events").error("a handler of ours failed")
"""


def test_what_a_peer_sends_begins_no_line_of_its_own() -> None:
    """Nor does pynetdicom put a traceback beside the node's line."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, handler, second = done.stderr.splitlines()
    assert "EVT_USER_ID" in handler
    assert first.endswith(r"A\n2026-01-01 INFO dicomnode: all is well\x1b[2J\u2028 called")
    assert second.endswith("a handler of ours failed")
