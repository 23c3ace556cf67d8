"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests import postgres

# Program → Debian package. Under REQUIRE_PEERS=1 (continuous integration) a missing one is a failure.
PEER_PROGRAMS = {
    "Orthanc": "orthanc",
    "storescu": "dcmtk",
    "dcmsend": "dcmtk",
    "findscu": "dcmtk",
    "movescu": "dcmtk",
    "getscu": "dcmtk",
    "echoscu": "dcmtk",
    "termscu": "dcmtk",
    "dcmqrscp": "dcmtk",
    "storescp": "dcmtk",
    "dcmdump": "dcmtk",
    "dsrdump": "dcmtk",
    "dcmftest": "dcmtk",
    "dciodvfy": "dicom3tools",
    "gdcminfo": "libgdcm-tools",
    "openssl": "openssl",
    "node": "nodejs",
    "npm": "npm",
}


# A change is judged by the same moments and inputs as the one before it; KILL_SEED=random draws others, here,
# before any worker starts, so that all of them and the summary have the same.
DRAWN = os.environ.get("KILL_SEED") == "random"
if DRAWN:
    os.environ["KILL_SEED"] = str(random.SystemRandom().randrange(1, 10**6))
os.environ.setdefault("KILL_SEED", "20260131")

# A machine that tests is busy: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "suite",
    derandomize=not DRAWN,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

# Tests are small and several processes run them: threads of torch and OpenBLAS that wait for work would only
# take the cores from each other. Before either is loaded.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# pytest-xdist tells its workers the width of a terminal; the commands' output must not depend on it.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def peer_program() -> Callable[[str], str]:
    """Path of a program that no one here wrote; skips, or fails under REQUIRE_PEERS=1, without it."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            text = f"{name} is not installed: apt-get install {PEER_PROGRAMS[name]}"
            if os.environ.get("REQUIRE_PEERS") == "1":
                pytest.fail(text)
            pytest.skip(text)
        return path

    return find


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """PostgreSQL; skips, or fails under REQUIRE_PEERS=1, where it is not installed."""
    reason = postgres.missing()
    if reason and os.environ.get("REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    yield from postgres.running()


# A file runs in one process, and one that takes minutes must not be the last to begin. The longest first.
LONGEST = (
    "tests/acceptance/test_kill.py",
    "tests/dicomnode/test_cluster.py",
    "tests/acceptance/test_chaos.py",
    "tests/acceptance/test_bad_input.py",
    "tests/acceptance/test_journey.py",
    "tests/acceptance/test_fetch.py",
    "tests/acceptance/test_disk.py",
    "tests/acceptance/test_trouble.py",
    "tests/acceptance/test_privacy.py",
    "tests/acceptance/test_full_size.py",
    "tests/acceptance/",
    "tests/pipeline/learning/test_recipe.py",
    "tests/pipeline/simulate/",
    "tests/dicomnode/test_demo.py",
    "tests/pipeline/learning/",
    "tests/dicomnode/test_hostile.py",
    "tests/dicomnode/test_ledger.py",
    "tests/dicomnode/test_power_loss.py",
    "tests/dicomnode/test_fuzz.py",
    "tests/dicomnode/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first (`make test` keeps pytest-xdist from another order)."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What was imported lives as long as the process: looking for garbage need not go through it."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests met real peers, so that a run that skipped them cannot pass for one."""
    met = [r for r in terminalreporter.stats.get("passed", []) if "peers" in r.keywords]
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "peers" in r.keywords]
    terminalreporter.write_line(
        f"tests against software no one here wrote: {len(met)} ran, {len(skipped)} skipped"
    )
    drawn = "drawn" if DRAWN else "fixed"
    terminalreporter.write_line(f"random moments and inputs: KILL_SEED={os.environ['KILL_SEED']} ({drawn})")
