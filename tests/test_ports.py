"""A port that a test was given is no other test's, whichever process runs it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ports

ROOT = Path(__file__).parents[1]
TAKE = "from tests import ports; ports._START = int(input()); print(ports.free_port(), flush=True); input()"


def test_two_processes_get_different_ports_and_one_that_ended_gives_its_port_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = ports.free_port()
    monkeypatch.setattr(ports, "_START", mine - ports._FIRST)
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


def test_a_port_on_which_somebody_listens_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not ports._nobody_listens(taken.getsockname()[1])
    assert ports._nobody_listens(ports.free_port())
