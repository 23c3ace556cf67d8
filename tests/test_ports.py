"""A port that a test was given is no other test's, whichever process runs it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ports

ROOT = Path(__file__).parents[1]
TAKE = "from tests import ports; ports._next = int(input()); print(ports.free_port(), flush=True); input()"


def test_two_processes_get_different_ports_and_one_that_ended_gives_its_port_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = ports.free_port()
    monkeypatch.setattr(ports, "_next", mine - ports._FIRST)
    command = [sys.executable, "-c", TAKE]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(f"{mine - ports._FIRST}\n")
        other.stdin.flush()
        theirs = int(other.stdout.readline())
        assert ports.free_port() not in (mine, theirs)
        assert theirs != mine
        assert not ports._claimed(theirs)
        other.stdin.write("\n")
    assert ports._claimed(theirs)


def test_a_port_on_which_somebody_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ports.free_port()
    with socket.create_server(("127.0.0.1", taken)):
        assert not ports._nobody_listens(taken)
        ports._CLAIMS.pop().close()
        monkeypatch.setattr(ports, "_next", taken - ports._FIRST)
        assert ports.free_port() != taken
    assert ports._nobody_listens(taken)


def test_a_free_port_is_one_that_linux_gives_to_nobody_who_names_none() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    given = {ports.free_port() for _ in range(50)}
    assert len(given) == 50
    assert max(given) < lowest
