"""Ports for what a test starts, or starts again."""

from __future__ import annotations

import random
import socket

# Below those that Linux gives to whoever names none (ip_local_port_range): nobody gets one by chance between
# now and its use.
_FIRST, _PORTS = 12000, 19200
# Where the search goes on: what was given to this process is not asked for again.
_next = random.SystemRandom().randrange(_PORTS)
# What holds the ports that this process was given, until it ends.
_CLAIMS: list[socket.socket] = []


def free_port() -> int:
    """One on which nobody listens, and that no other test on this machine is given as long as we run."""
    global _next
    for _ in range(_PORTS):
        port, _next = _FIRST + _next, (_next + 1) % _PORTS
        if _claimed(port):
            if _nobody_listens(port):
                return port
            _CLAIMS.pop().close()
    raise OSError(f"no port between {_FIRST} and {_FIRST + _PORTS} is free")


def _claimed(port: int) -> bool:
    """Whether it was nobody's and is ours now: an abstract address goes with its process, however it ends."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0dicomnode test port {port}")
    except OSError:
        claim.close()
        return False
    _CLAIMS.append(claim)
    return True


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
