"""The Storage SCU against a PACS in this process: what was stored, what was refused, who is at fault."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    RTDoseStorage,
    SegmentationStorage,
)
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.transport import AssociationSocket

from dicomnode.config import Peer
from dicomnode.contexts import VERIFICATION
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import NodeError, Transient
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID
from dicomnode.network import send as send_module
from dicomnode.network.send import Answer, Outgoing, Verdict, echo, send
from tests.dicomnode.results_on_disk import write_object

TIMEOUT_S = 30.0


@pytest.fixture
def files(tmp_path: Path) -> list[Outgoing]:
    classes = [SegmentationStorage, RTDoseStorage, Comprehensive3DSRStorage]
    return [write_object(tmp_path / "out" / f"{n}.dcm", uid) for n, uid in enumerate(classes)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandinPacs]:
    with StandinPacs(tmp_path_factory.mktemp("pacs")) as pacs:
        yield pacs


@pytest.fixture
def pacs(running: StandinPacs) -> StandinPacs:
    running.forget()
    return running


def peer_of(pacs: StandinPacs) -> Peer:
    return Peer(name="PACS", ae_title=pacs.ae_title, host=pacs.host, port=pacs.port)


def answers(peer: Peer, files: list[Outgoing], timeout_s: float = TIMEOUT_S) -> list[Answer]:
    """The answers in sending order; Transient is raised through."""
    heard: list[Answer] = []
    send(peer, files, "NODE", timeout_s, lambda _file, answer: heard.append(answer))
    return heard


def test_every_object_arrives_unchanged_in_order_over_one_association(
    pacs: StandinPacs, files: list[Outgoing]
) -> None:
    assert [a.verdict for a in answers(peer_of(pacs), files)] == [Verdict.STORED] * 3
    assert pacs.received == [f.sop_instance_uid for f in files]
    assert pacs.associations == 1
    for file in files:
        assert dcmread(pacs.files()[file.sop_instance_uid]) == dcmread(file.path)


def test_nothing_to_send_opens_no_association(pacs: StandinPacs) -> None:
    assert answers(peer_of(pacs), []) == []
    assert pacs.associations == 0


def test_only_what_is_sent_is_proposed_and_without_nagle_delay(
    pacs: StandinPacs, files: list[Outgoing], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    pace = send_module._pace

    def spy(association: Association) -> None:
        wire = association.dul.socket.socket  # type: ignore[union-attr]
        nodelay = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        seen.append((len(association.requestor.requested_contexts), nodelay))
        pace(association)

    monkeypatch.setattr(send_module, "_pace", spy)
    answers(peer_of(pacs), [files[0], files[1], files[1]])
    ((contexts, nodelay),) = seen
    assert contexts == 2
    assert nodelay


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_the_storage_warnings_of_the_standard_mean_stored(
    pacs: StandinPacs, files: list[Outgoing], status: int
) -> None:
    pacs.status = lambda _sop_class, _uid: status
    (answer,) = answers(peer_of(pacs), files[:1])
    assert (answer.verdict, answer.status) == (Verdict.STORED, status)
    assert answer.text.startswith(f"0x{status:04X} ")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0x0122, "SOP Class Not Supported"),
        (0xA900, "Does Not Match SOP Class"),
        (0xC001, "Cannot Understand"),
        (0xB123, ""),
    ],
)
def test_any_other_status_means_refused_and_is_told_in_words(
    pacs: StandinPacs, files: list[Outgoing], status: int, words: str
) -> None:
    pacs.status = lambda _sop_class, _uid: status
    (answer,) = answers(peer_of(pacs), files[:1])
    assert (answer.verdict, answer.status) == (Verdict.REFUSED, status)
    assert words in answer.text


def test_a_refused_object_does_not_stop_the_next(pacs: StandinPacs, files: list[Outgoing]) -> None:
    pacs.status = lambda sop_class, _uid: 0xA900 if sop_class == RTDoseStorage else 0x0000
    heard = answers(peer_of(pacs), files)
    assert [a.verdict for a in heard] == [Verdict.STORED, Verdict.REFUSED, Verdict.STORED]


def test_a_class_that_the_peer_does_not_accept_is_refused_and_the_rest_is_sent(
    tmp_path: Path, files: list[Outgoing]
) -> None:
    with StandinPacs(tmp_path / "old", sop_classes=(RTDoseStorage,)) as pacs:
        heard = answers(peer_of(pacs), files)
    assert [a.verdict for a in heard] == [Verdict.REFUSED, Verdict.STORED, Verdict.REFUSED]
    assert heard[0].status is None
    assert f"no presentation context accepted for SOP class {SegmentationStorage}" in heard[0].text


def test_a_peer_that_accepts_no_context_refuses_everything(tmp_path: Path, files: list[Outgoing]) -> None:
    with StandinPacs(tmp_path / "old", sop_classes=(RTDoseStorage,)) as pacs:
        (answer,) = answers(peer_of(pacs), files[:1])
    assert answer.verdict is Verdict.REFUSED
    assert "no presentation context" in answer.text


def test_a_peer_that_does_not_know_us_refuses_no_object_and_its_reason_is_told(
    tmp_path: Path, files: list[Outgoing]
) -> None:
    heard: list[Answer] = []
    with (
        StandinPacs(tmp_path / "strict", required_calling_aet="SOMEONE") as pacs,
        pytest.raises(Transient, match="Calling AE title not recognised") as trouble,
    ):
        send(peer_of(pacs), files, "NODE", TIMEOUT_S, lambda _f, answer: heard.append(answer))
    assert heard == []
    assert "Let PACS know NODE" in trouble.value.remedy


@pytest.mark.parametrize("status", [0xA700, 0xA702, 0xA770, 0xA7FF])
def test_a_peer_out_of_resources_is_in_trouble_and_the_next_object_is_offered_all_the_same(
    pacs: StandinPacs, files: list[Outgoing], status: int
) -> None:
    pacs.status = lambda sop_class, _uid: status if sop_class == RTDoseStorage else 0x0000
    heard: list[Answer] = []
    with pytest.raises(Transient, match=f"out of resources: it answered 0x{status:04X}") as trouble:
        send(peer_of(pacs), files, "NODE", TIMEOUT_S, lambda _f, answer: heard.append(answer))
    assert [a.verdict for a in heard] == [Verdict.STORED, Verdict.OUT_OF_RESOURCES, Verdict.STORED]
    assert (heard[1].status, "Out of Resources" in heard[1].text) == (status, True)
    assert ("Make room on PACS" in trouble.value.remedy) == (status <= 0xA702)


@pytest.mark.parametrize(
    ("status", "of_a_note", "of_another"),
    [
        (0xA770, Verdict.STORED, Verdict.OUT_OF_RESOURCES),
        (0xA771, Verdict.REFUSED, Verdict.REFUSED),
        (0xA772, Verdict.NEEDLESS, Verdict.OUT_OF_RESOURCES),
        (0xA773, Verdict.REFUSED, Verdict.OUT_OF_RESOURCES),
        (0xA774, Verdict.NEEDLESS, Verdict.OUT_OF_RESOURCES),
        (0xA775, Verdict.REFUSED, Verdict.OUT_OF_RESOURCES),
        (0xA776, Verdict.REFUSED, Verdict.OUT_OF_RESOURCES),
        (0xA777, Verdict.REFUSED, Verdict.REFUSED),
        (0xA778, Verdict.REFUSED, Verdict.REFUSED),
        (0xA779, Verdict.REFUSED, Verdict.REFUSED),
    ],
)
def test_the_statuses_of_dcm4chee_speak_of_the_object(
    pacs: StandinPacs, tmp_path: Path, status: int, of_a_note: Verdict, of_another: Verdict
) -> None:
    pacs.status = lambda _sop_class, _uid: status
    for sop_class, verdict in ((KeyObjectSelectionDocumentStorage, of_a_note), (RTDoseStorage, of_another)):
        file = write_object(tmp_path / f"{sop_class}.dcm", sop_class)
        heard: list[Answer] = []

        def hear(_file: Outgoing, answer: Answer, to: list[Answer] = heard) -> None:
            to.append(answer)

        with contextlib.suppress(Transient):
            send(peer_of(pacs), [file], "NODE", TIMEOUT_S, hear)
        assert [(a.verdict, a.status) for a in heard] == [(verdict, status)]
        assert ("Out of Resources" in heard[0].text) == (verdict is Verdict.OUT_OF_RESOURCES)


def test_a_rejection_is_heard_however_quick_the_peer_is(
    tmp_path: Path, files: list[Outgoing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the thread that asks runs again when the peer's answer has closed the connection."""
    made = AssociationSocket.__init__

    class Late(threading.Event):
        def __init__(self, assoc: Association) -> None:
            super().__init__()
            self._assoc = assoc

        def wait(self, timeout: float | None = None) -> bool:
            assert super().wait(timeout)
            self._assoc.dul.join(TIMEOUT_S)
            return not self._assoc.dul.is_alive()

    def make(self: AssociationSocket, assoc: Association, *args: Any, **kwargs: Any) -> None:
        made(self, assoc, *args, **kwargs)
        self._ready = Late(assoc)

    monkeypatch.setattr(AssociationSocket, "__init__", make)
    with (
        StandinPacs(tmp_path / "strict", required_calling_aet="OTHER") as pacs,
        pytest.raises(Transient, match="rejected the association"),
    ):
        answers(peer_of(pacs), files[:1])


def test_a_peer_that_is_down_is_unreachable_and_no_object_is_answered(files: list[Outgoing]) -> None:
    heard: list[Answer] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer = Peer(name="PACS", ae_title="X", host="127.0.0.1", port=unused.getsockname()[1])
        with pytest.raises(Transient, match=r"PACS .* cannot be reached"):
            send(peer, files, "NODE", TIMEOUT_S, lambda _f, answer: heard.append(answer))
    assert heard == []


def test_a_name_that_does_not_resolve_is_unreachable(files: list[Outgoing]) -> None:
    peer = Peer(name="PACS", ae_title="X", host="no-such-host.invalid", port=104)
    with pytest.raises(Transient, match="cannot be reached"):
        answers(peer, files)


def test_a_peer_that_accepts_the_connection_and_says_nothing_is_unreachable(files: list[Outgoing]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = Peer(name="PACS", ae_title="X", host="127.0.0.1", port=mute.getsockname()[1])
        with pytest.raises(Transient, match=r"granted no association within 0\.3 s"):
            answers(peer, files, timeout_s=0.3)


def test_an_abort_in_the_middle_tells_what_was_stored_and_what_is_unknown(
    pacs: StandinPacs, files: list[Outgoing]
) -> None:
    pacs.status = lambda sop_class, _uid: None if sop_class == RTDoseStorage else 0x0000
    heard: list[Answer] = []
    with pytest.raises(Transient, match="aborted"):
        send(peer_of(pacs), files, "NODE", TIMEOUT_S, lambda _f, answer: heard.append(answer))
    assert [a.verdict for a in heard] == [Verdict.STORED, Verdict.UNANSWERED]


def test_a_peer_that_stops_reading_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    """The association stands, the window is full, and nothing moves: no thread waits for ever."""
    large = write_object(tmp_path / "large.dcm", RTDoseStorage, 64_000_000)
    thaw = threading.Event()
    heard: list[Answer] = []

    def freeze(event: evt.Event) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            thaw.wait(60)

    with StandinPacs(tmp_path / "pacs", handlers=[(evt.EVT_PDU_RECV, freeze)]) as pacs:
        try:
            with pytest.raises(Transient):
                send(peer_of(pacs), [large], "NODE", 0.5, lambda _f, answer: heard.append(answer))
        finally:
            thaw.set()
    assert [a.verdict for a in heard] == [Verdict.UNANSWERED]


def test_an_answer_is_left_to_the_one_who_waits_for_it(pacs: StandinPacs) -> None:
    """pynetdicom's thread of the association looks for requests of the peer and would drop the answer."""
    verification = [(str(VERIFICATION), "1.2.840.10008.1.2")]
    with send_module.open_association(peer_of(pacs), "NODE", TIMEOUT_S, verification) as association:
        association.dimse.msg_queue.put((1, "the answer"))  # type: ignore[arg-type]
        assert association.dimse.get_msg(block=False) == (None, None)
        assert association.dimse.get_msg(block=True) == (1, "the answer")


def test_the_association_names_this_software(pacs: StandinPacs) -> None:
    verification = [(str(VERIFICATION), "1.2.840.10008.1.2")]
    with send_module.open_association(peer_of(pacs), "NODE", TIMEOUT_S, verification) as association:
        assert association.requestor.implementation_class_uid == IMPLEMENTATION_CLASS_UID


def test_a_large_object_is_streamed_from_disk(tmp_path: Path) -> None:
    """The peer lets the node see one window of PDUs at a time, not the file."""
    large = write_object(tmp_path / "large.dcm", RTDoseStorage, 64_000_000)
    sizes: list[int] = []
    put = send_module._Window.put

    def measured(window: send_module._Window, item: object, *args: object, **kwargs: object) -> None:
        sizes.append(window.qsize())
        put(window, item, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, StandinPacs(tmp_path / "pacs") as pacs:
        patch.setattr(send_module._Window, "put", measured)
        assert answers(peer_of(pacs), [large])[0].verdict is Verdict.STORED
        assert pacs.files()[large.sop_instance_uid].stat().st_size > 64_000_000
    assert len(sizes) > 64_000_000 // send_module.LARGEST_PDU_BYTES
    assert max(sizes) <= send_module.WINDOW_PDUS


def test_a_peer_that_takes_pdus_of_any_length_gets_short_ones(tmp_path: Path) -> None:
    """Maximum length 0 means no limit, PS3.8 D.1: the file must not become one PDU."""
    large = write_object(tmp_path / "large.dcm", RTDoseStorage, 3_000_000)
    lengths: list[int] = []
    watch = (evt.EVT_PDU_RECV, lambda event: lengths.append(event.pdu.pdu_length))
    with StandinPacs(tmp_path / "pacs", max_pdu=0, handlers=[watch]) as pacs:
        assert answers(peer_of(pacs), [large])[0].verdict is Verdict.STORED
    assert max(lengths) <= send_module.LARGEST_PDU_BYTES


def test_a_file_that_is_no_dicom_is_refused_by_us_and_the_next_is_sent(
    pacs: StandinPacs, files: list[Outgoing]
) -> None:
    files[0].path.write_bytes(b"not DICOM")
    heard = answers(peer_of(pacs), files[:2])
    assert [a.verdict for a in heard] == [Verdict.REFUSED, Verdict.STORED]
    assert "cannot be read" in heard[0].text


def test_an_error_of_the_listener_is_raised_and_the_association_ends(
    pacs: StandinPacs, files: list[Outgoing]
) -> None:
    def fail(_file: Outgoing, _answer: Answer) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        send(peer_of(pacs), files, "NODE", TIMEOUT_S, fail)
    assert len(pacs.received) == 1


def test_echo_answers_or_says_why_not(pacs: StandinPacs) -> None:
    echo(peer_of(pacs), "NODE", TIMEOUT_S)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer = Peer(name="PACS", ae_title="X", host="127.0.0.1", port=unused.getsockname()[1])
        with pytest.raises(Transient, match="cannot be reached"):
            echo(peer, "NODE", TIMEOUT_S)


def test_echo_to_a_peer_without_an_address_names_the_setting() -> None:
    with pytest.raises(NodeError, match="has no address"):
        echo(Peer(name="CAMERA", ae_title="CAM"), "NODE", TIMEOUT_S)
