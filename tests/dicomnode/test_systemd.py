"""The shipped unit, judged by systemd itself where it is present."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "dicomnode.service"
# systemd calls 0 to 2 "SAFE" and "OK"; every point above is a door left open.
HIGHEST_EXPOSURE = 2.0


@pytest.fixture
def analyze() -> str:
    path = shutil.which("systemd-analyze")
    if path is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    return path


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with programs that exist here: `verify` looks for them."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?<==)/opt/\S+/dicomnode", "/bin/true", UNIT.read_text()))
    return copy


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_no_fault(analyze: str, unit: Path) -> None:
    done = run(analyze, "verify", str(unit))
    # It complains of missing pieces of this machine, too; what it says of our unit names it.
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []


def test_systemd_judges_the_exposure_as_low(analyze: str, unit: Path) -> None:
    done = run(analyze, "security", "--offline=yes", "--no-pager", str(unit))
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250: no security --offline")
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert overall is not None, done.stderr
    assert float(overall[1]) <= HIGHEST_EXPOSURE


def test_a_pacs_that_is_down_does_not_keep_the_node_from_starting() -> None:
    (before,) = settings()["ExecStartPre"]
    assert before.endswith("dicomnode check --config-only")


def test_the_memory_killer_takes_the_child_and_the_node_lives() -> None:
    assert settings()["OOMPolicy"] == ["continue"]


def test_a_gpu_can_be_used_and_machine_code_can_be_compiled() -> None:
    unit = settings()
    assert "char-nvidia* rw" in unit["DeviceAllow"]
    assert not {"PrivateDevices", "MemoryDenyWriteExecute"} & unit.keys()


def test_the_data_folder_of_the_unit_is_the_default_of_the_configuration() -> None:
    from dicomnode.config import Node

    assert Node().data_dir == Path("/var/lib") / settings()["StateDirectory"][0]
