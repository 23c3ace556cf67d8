"""The tests' own arrangements."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.conftest import LONGEST
from tests.ports import free_port

ROOT = Path(__file__).parents[1]


def test_what_begins_first_is_there() -> None:
    """A file that was renamed would be the last one again."""
    assert [path for path in LONGEST if not (ROOT / path).exists()] == []


def test_a_free_port_is_one_that_linux_gives_to_nobody_who_names_none() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(50)}
    assert len(ports) == 50
    assert max(ports) < lowest
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert port not in {free_port() for _ in range(1200)}
