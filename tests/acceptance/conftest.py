"""One Orthanc and one node for the tests that only push and look."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.harness import Node, Orthanc


@pytest.fixture(scope="session")
def pacs(peer_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(peer_program("Orthanc"), tmp_path_factory.mktemp("pacs"))
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture(scope="module")
def node(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), pacs.port)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seed of the `kill -9` test, also when it passed."""
    kill = sys.modules.get("tests.acceptance.test_kill")
    if kill is not None:
        terminalreporter.write_line(f"kill -9 moments were drawn with KILL_SEED={kill.SEED}")
