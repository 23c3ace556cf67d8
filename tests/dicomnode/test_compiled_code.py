"""Compiled code always finds a place, whatever the account may not write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dicomnode.computing import compiled_code

# No account can make a folder there, not even root.
NOWHERE = "/proc/nowhere"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Software, home and environment give no place."""
    monkeypatch.setenv(compiled_code.VARIABLE, NOWHERE)
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    monkeypatch.setattr(compiled_code, "_BESIDE_THE_SOFTWARE", Path(NOWHERE))


def test_a_service_keeps_it_where_its_unit_says_else_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert compiled_code.folder_for_service(tmp_path) == tmp_path / "cache" / "numba"
    assert f"NUMBA_CACHE_DIR {NOWHERE} cannot be written" in caplog.text
    monkeypatch.setenv(compiled_code.VARIABLE, str(tmp_path / "unit"))
    assert compiled_code.folder_for_service(tmp_path) == tmp_path / "unit"


def test_a_command_uses_the_data_folder_then_the_accounts_cache_then_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_code.find_place(tmp_path)
    assert os.environ[compiled_code.VARIABLE] == str(tmp_path / "cache" / "numba")
    monkeypatch.setenv(compiled_code.VARIABLE, NOWHERE)
    compiled_code.find_place(Path(NOWHERE))
    own = Path(os.environ[compiled_code.VARIABLE])
    assert own.is_dir()
    assert own.stat().st_mode & 0o777 == 0o700
    own.rmdir()
    monkeypatch.setenv(compiled_code.VARIABLE, NOWHERE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled_code.find_place(Path(NOWHERE))
    assert os.environ[compiled_code.VARIABLE] == str(tmp_path / "dicomnode" / "numba")


def test_numba_chooses_itself_where_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(compiled_code.VARIABLE)
    monkeypatch.setattr(compiled_code, "_BESIDE_THE_SOFTWARE", tmp_path)
    compiled_code.find_place(tmp_path)
    assert compiled_code.VARIABLE not in os.environ
