"""The PACS of the demo and the tests does what these rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import RTDoseStorage

from dicomnode.config import Peer
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import Transient
from dicomnode.network.send import Answer, Outgoing, Verdict, echo, send
from tests.dicomnode.results_on_disk import write_object


def peer_of(pacs: StandinPacs, ae_title: str = "") -> Peer:
    return Peer(name="PACS", ae_title=ae_title or pacs.ae_title, host=pacs.host, port=pacs.port)


def verdicts(pacs: StandinPacs, *files: Outgoing) -> list[Verdict]:
    heard: list[Answer] = []
    send(peer_of(pacs), files, "NODE", 5.0, lambda _file, answer: heard.append(answer))
    return [answer.verdict for answer in heard]


def test_what_it_stores_is_the_object_with_its_file_meta(tmp_path: Path) -> None:
    file = write_object(tmp_path / "a.dcm", RTDoseStorage)
    with StandinPacs(tmp_path / "pacs") as pacs:
        assert verdicts(pacs, file) == [Verdict.STORED]
        held = dcmread(pacs.files()[file.sop_instance_uid])
    assert held == dcmread(file.path)
    assert held.file_meta.TransferSyntaxUID == file.transfer_syntax_uid


def test_it_keeps_its_objects_and_its_port_while_it_is_down(tmp_path: Path) -> None:
    file = write_object(tmp_path / "a.dcm", RTDoseStorage)
    pacs = StandinPacs(tmp_path / "pacs").start()
    port = pacs.port
    verdicts(pacs, file)
    pacs.stop()
    with pytest.raises(Transient):
        echo(peer_of(pacs), "NODE", 5.0)
    with pacs:
        assert pacs.port == port
        assert list(pacs.files()) == [file.sop_instance_uid]
        echo(peer_of(pacs), "NODE", 5.0)


def test_a_refused_object_is_not_kept(tmp_path: Path) -> None:
    file = write_object(tmp_path / "a.dcm", RTDoseStorage)
    with StandinPacs(tmp_path / "pacs", status=lambda _sop_class, _uid: 0xA900) as pacs:
        assert verdicts(pacs, file) == [Verdict.REFUSED]
        assert pacs.files() == {}
        assert pacs.received == []


def test_it_answers_to_its_own_name_only(tmp_path: Path) -> None:
    with (
        StandinPacs(tmp_path / "pacs") as pacs,
        pytest.raises(Exception, match="Called AE title not recognised"),
    ):
        echo(peer_of(pacs, "OTHER"), "NODE", 5.0)


def test_a_repeat_is_counted_and_kept_once(tmp_path: Path) -> None:
    file = write_object(tmp_path / "a.dcm", RTDoseStorage)
    with StandinPacs(tmp_path / "pacs") as pacs:
        verdicts(pacs, file, file)
        assert pacs.received == [file.sop_instance_uid] * 2
        assert len(pacs.files()) == 1
