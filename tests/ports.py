"""Ports for what a test starts, or starts again."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below those that Linux gives to whoever names none (ip_local_port_range): nobody gets one by chance between
# now and its use. Each process of a run has a part of its own.
_FIRST, _EACH, _PARTS = 12000, 1200, 16
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_NEXT = itertools.count(random.SystemRandom().randrange(_EACH))


def free_port() -> int:
    """One on which nobody listens."""
    while True:
        port = _FIRST + _PART * _EACH + next(_NEXT) % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
