"""A result's file: whole after a power cut, and it tells what a disk did to it."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from dicomnode.results.writing import damage, write_durably
from tests.dicomnode.results_on_disk import write_object

RTDOSE = "1.2.840.10008.5.1.4.1.1.481.2"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "RTDOSE.dcm"
    write_durably(pydicom.dcmread(write_object(path, RTDOSE).path), path)
    return path


def test_what_was_written_is_sound_and_dicom(written: Path) -> None:
    assert damage(written, written.stat().st_size) == ""
    ds = pydicom.dcmread(written)
    assert ds.preamble.startswith(b"dicomnode ")
    assert len(ds.preamble) == 128
    assert len(ds.PixelData) == 2000
    assert list(written.parent.iterdir()) == [written]


def test_any_bit_that_turned_is_seen(written: Path) -> None:
    sound = written.read_bytes()
    for position in (*range(500), *range(500, len(sound), 37), len(sound) - 1):
        content = bytearray(sound)
        content[position] ^= 1 << position % 8
        written.write_bytes(content)
        assert damage(written, len(sound)) == "its checksum is not that of its content", position


@pytest.mark.parametrize("more", [-1, 1, -2000])
def test_a_file_of_another_length_is_seen(written: Path, more: int) -> None:
    sound = written.read_bytes()
    written.write_bytes(sound[:more] if more < 0 else sound + bytes(more))
    assert damage(written, len(sound)) == f"{len(sound) + more} bytes of {len(sound)}"


def test_a_file_of_an_earlier_version_is_taken_at_its_length(written: Path) -> None:
    sound = written.read_bytes()
    written.write_bytes(bytes(128) + sound[128:])
    assert damage(written, len(sound)) == ""


def test_a_file_that_is_gone_or_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        damage(tmp_path / "gone.dcm", 1)
    with pytest.raises(IsADirectoryError):
        damage(tmp_path, 1)
