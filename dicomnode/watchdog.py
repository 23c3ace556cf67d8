"""What systemd wants to know: sd_notify(3) over the datagram socket of NOTIFY_SOCKET.

Without that variable, which is everywhere but under systemd, nothing is sent.
"""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """The node listens."""
    notify("READY=1", "STATUS=listening")


def alive() -> None:
    """The scheduler turns; silence for WatchdogSec lets systemd restart the node."""
    notify("WATCHDOG=1")


def stopping() -> None:
    """The node ends by itself."""
    notify("STOPPING=1", "STATUS=stopping")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    notify(f"STATUS={' '.join(text.split())}")


def interval_s() -> float:
    """How often to say `alive`: three times per WatchdogSec; once a minute when nobody listens."""
    watched_us = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(watched_us) / 3e6 if watched_us.isdecimal() and int(watched_us) and for_us else 60.0


def notify(*assignments: str) -> bool:
    """Send assignments as one message. returns: whether systemd was there to get it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        # An abstract socket: its name begins with a zero byte, unix(7).
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError:
        return False
    return True
