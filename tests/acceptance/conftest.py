"""One Orthanc and one node for the tests that only push and look."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.harness import SHARED_KERNELS, Node, Orthanc


@pytest.fixture(scope="session", autouse=True)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What each node would make anew in its own data folder: compiled code, which outlives test runs, and
    kernels, which a change of the code must not."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NUMBA_CACHE_DIR", str(request.config.cache.mkdir("numba")))
        environment.setenv(SHARED_KERNELS, str(tmp_path_factory.mktemp("kernels")))
        yield


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
