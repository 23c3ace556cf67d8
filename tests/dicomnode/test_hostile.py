"""Hostile and broken peers: a good one is served meanwhile, and nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import re
import resource
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from dicomnode.contexts import SOP_CLASSES
from dicomnode.network.listener import MAX_WAITING
from tests.acceptance.harness import until
from tests.certificates import Authority
from tests.dicomnode.modality import Running, ct_slice, encoded, running_node
from tests.dicomnode.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RQ,
    COMMAND,
    CT,
    DATA,
    ECHO,
    LAST,
    REJECT,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    associate_rq,
    command,
    echo_rq,
    element,
    pdu,
    pdv,
    raw_peer,
    raw_peers,
    store_rq,
    uid,
)
from tests.dicomnode.test_tls import Hospital, calling

OUR_THREADS = re.compile(r"AcceptorThread|process_request_thread|DUL|Thread-\d")
FINISH_S = 15.0
# SOP Instance UIDs of what a good peer has stored.
GOOD: set[str] = set()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    pair = authority.issue("node", "localhost")
    return Hospital(authority, pair, pair, authority, pair)


@contextmanager
def node(tmp_path: Path, hospital: Hospital, **receive: object) -> Iterator[Running]:
    """Both ports, and little patience."""
    settings = {"acse_timeout_s": 1.0, "network_timeout_s": 1.5, "dimse_timeout_s": 1.0} | receive
    tls = hospital.tls(handshake_timeout_s=1.0)
    with running_node(tmp_path, tls=tls, **settings) as running:
        serve_both(running, hospital)
        yield running


def serve_both(running: Running, hospital: Hospital) -> None:
    """A good peer stores an object over each port, within a time that no timeout of the node explains."""
    ports = ((running.port, None), (running.receiver.tls_port, hospital.client(hospital.node)))
    for port, tls in ports:
        assert port is not None
        peer = RawPeer(port, tls, timeout_s=FINISH_S)
        assert peer.associate() == ASSOCIATE_AC
        dataset = ct_slice()
        assert peer.store(encoded(dataset), dataset.SOPInstanceUID) == 0
        GOOD.add(dataset.SOPInstanceUID)
        peer.send(pdu(RELEASE_RQ, bytes(4)))
        assert peer.answer()[0] == 6
        peer.socket.close()


OTHERS: set[threading.Thread] = set()


@pytest.fixture(scope="module", autouse=True)
def _of_other_tests() -> None:
    """What other files have left in this process (a cluster's client, say) is not counted."""
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def threads() -> int:
    """Those that serve connections."""
    return sum(
        bool(OUR_THREADS.search(thread.name)) for thread in threading.enumerate() if thread not in OTHERS
    )


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]


@contextmanager
def undisturbed(running: Running, hospital: Hospital, growth_mb: float = 60) -> Iterator[None]:
    """While the block does harm a good peer is served; afterwards everything is as before."""
    until(lambda: threads() == 0, "threads of good peers end", FINISH_S)
    before, files, memory = descriptors(), set(running.files), resident_mb()
    yield
    serve_both(running, hospital)
    until(lambda: threads() == 0, f"threads end: {[t.name for t in threading.enumerate()]}", FINISH_S)
    until(lambda: descriptors() <= before, "descriptors are closed", FINISH_S)
    assert resident_mb() - memory < growth_mb
    stored = {path.stem for path in set(running.files) - files}
    assert stored == GOOD & stored, "nothing but the good peer's objects"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ── before an association ────────────────────────────────────────────────────────────────────────


def test_a_silent_client_on_either_port_ends_after_its_time(tmp_path: Path, hospital: Hospital) -> None:
    """The TLS handshake has a time of its own and is nobody else's business."""
    with node(tmp_path, hospital) as running:
        assert running.receiver.tls_port is not None
        with undisturbed(running, hospital), raw_peers([running.port, running.receiver.tls_port]) as silent:
            serve_both(running, hospital)
            with raw_peer(running.receiver.tls_port, hospital.client(hospital.node)) as agreed:
                assert agreed.answer() == (0, b""), "TLS alone is no association"
            assert [peer.answer() for peer in silent] == [(0, b""), (0, b"")]


def test_a_thousand_silent_sockets_keep_nobody_out(
    tmp_path: Path, hospital: Hospital, many_descriptors: None
) -> None:
    """The oldest give way: neither threads nor memory grow with their number."""
    with node(tmp_path, hospital, acse_timeout_s=30) as running:
        assert running.receiver.tls_port is not None
        with undisturbed(running, hospital):
            with raw_peers([running.port, running.receiver.tls_port] * 500):
                serve_both(running, hospital)
                until(lambda: threads() <= 2 * MAX_WAITING, "only so many wait", FINISH_S)
            until(lambda: threads() == 0, "they end with their connections", FINISH_S)


def test_probes_of_a_load_balancer_are_no_news(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Connect and close; agree on TLS and close. Not a line in the log, not a thread."""
    with node(tmp_path, hospital) as running, undisturbed(running, hospital):
        port = running.receiver.tls_port
        assert port is not None
        with caplog.at_level(logging.INFO, "dicomnode"):
            for _ in range(50):
                RawPeer(running.port).socket.close()
                RawPeer(port).socket.close()
            for _ in range(5):
                RawPeer(port, hospital.client(hospital.node)).socket.close()
            until(lambda: threads() == 0, "probes end", FINISH_S)
        assert caplog.messages == []


GARBAGE = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", 1),
    "TLS on the plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1),
    "zeros": (bytes(64), 1),
    "P-DATA": (pdu(DATA, pdv(1, 3, echo_rq())), 2),
    "A-RELEASE-RQ": (pdu(RELEASE_RQ, bytes(4)), 2),
    "an absurd length": (pdu(ASSOCIATE_RQ, b"", 0xFFFFFFFF), 6),
    "a request of one megabyte": (pdu(ASSOCIATE_RQ, b"", 1 << 20), 6),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "TLS"])
def test_what_is_no_request_for_an_association_is_aborted_at_once(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture, name: str, over_tls: bool
) -> None:
    """A-ABORT by the service provider with its reason (PS3.8 table 9-26), and one line."""
    data, reason = GARBAGE[name]
    with node(tmp_path, hospital, acse_timeout_s=30) as running, undisturbed(running, hospital):
        port = running.receiver.tls_port if over_tls else running.port
        assert port is not None
        with raw_peer(port, hospital.client(hospital.node) if over_tls else None) as peer:
            peer.send(data)
            assert peer.answer() == (ABORT, bytes((0, 0, 2, reason)))
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert lines[0].startswith("127.0.0.1: ")


def test_a_request_that_cannot_be_decoded_is_aborted(tmp_path: Path, hospital: Hospital) -> None:
    """Lengths that contradict each other, items that are none."""
    sound = associate_rq(CT)
    broken = [
        sound[:2] + struct.pack(">L", len(sound) - 6 - 20) + sound[6:-20],
        pdu(ASSOCIATE_RQ, sound[6:74] + b"\xff" * 40),
        pdu(ASSOCIATE_RQ, sound[6:74] + b"\x20\x00\xff\xff" + bytes(20)),
        pdu(ASSOCIATE_RQ, b""),
        pdu(ASSOCIATE_RQ, bytes(68)),
    ]
    with node(tmp_path, hospital) as running, undisturbed(running, hospital):
        for request in broken:
            with raw_peer(running.port) as peer:
                peer.send(request)
                assert peer.last() in (ABORT, REJECT, 0)


def test_half_a_request_and_then_nothing(tmp_path: Path, hospital: Hospital) -> None:
    request = associate_rq(CT)
    with (
        node(tmp_path, hospital) as running,
        undisturbed(running, hospital),
        raw_peers([running.port] * 5) as peers,
    ):
        for size, peer in zip((1, 5, 6, 7, len(request) - 1), peers, strict=True):
            peer.send(request[:size])
        serve_both(running, hospital)
        assert [peer.answer()[0] for peer in peers] == [0] * 5


def test_bytes_that_trickle_in_do_not_prolong_a_request(tmp_path: Path, hospital: Hospital) -> None:
    """The whole request has its time, not each byte."""
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        trickle(peer, associate_rq(*[CT] * 100), pause_s=0.1)


def trickle(peer: RawPeer, data: bytes, pause_s: float) -> None:
    """Byte by byte, until the node has had enough."""
    closed = threading.Event()
    for k in range(len(data)):
        try:
            peer.send(data[k : k + 1])
        except OSError:
            closed.set()
        if closed.wait(pause_s):
            return
    raise AssertionError("the node has read it to its end")


# ── associations ─────────────────────────────────────────────────────────────────────────────────


def test_128_contexts_are_negotiated(tmp_path: Path, hospital: Hospital) -> None:
    offers = [(sop_class, ExplicitVRLittleEndian) for sop_class in SOP_CLASSES]
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        peer.send(associate_rq(*(offers * 20)[:127], ECHO))
        kind, body = peer.answer()
        assert kind == ASSOCIATE_AC
        assert body.count(b"\x21\x00") >= 128
        peer.send_message(255, echo_rq())
        assert peer.status() == 0


def test_one_peer_alone_cannot_take_every_place(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Transient, local limit exceeded; a place is free again when an association ends, however it ends."""
    with (
        node(tmp_path, hospital, max_associations_per_peer=2) as running,
        raw_peers([running.port] * 3) as peers,
    ):
        assert [peer.associate() for peer in peers] == [ASSOCIATE_AC, ASSOCIATE_AC, REJECT]
        with raw_peer(running.port) as other:
            assert other.associate(ECHO, calling="PROBE") == ASSOCIATE_AC
        peers[0].die()

        def served() -> bool:
            with raw_peer(running.port) as again:
                return again.associate() == ASSOCIATE_AC

        until(served, "a place is free again", FINISH_S)
    assert "'SCANNER' at 127.0.0.1 rejected: 2 associations of it are open" in caplog.text


def test_an_association_that_never_ends_is_aborted(tmp_path: Path, hospital: Hospital) -> None:
    """Also in the middle of a PDU, and when a release is never followed by closing."""
    with (
        node(tmp_path, hospital) as running,
        undisturbed(running, hospital),
        raw_peers([running.port] * 3) as peers,
    ):
        assert [peer.associate() for peer in peers] == [ASSOCIATE_AC] * 3
        peers[1].send(pdu(DATA, bytes(100), 1000))
        peers[2].send(pdu(RELEASE_RQ, bytes(4)))
        serve_both(running, hospital)
        assert [peer.last() for peer in peers] in ([ABORT, 0, 6], [ABORT, ABORT, 6])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(associate_rq(CT), id="a second request"),
        pytest.param(pdu(99, bytes(10)), id="an unknown PDU"),
        pytest.param(pdu(DATA, b"", 0xFFFFFFFF), id="an absurd length"),
        pytest.param(pdu(RELEASE_RQ, b"", 0x7FFFFFFF), id="an absurd length of a release"),
        pytest.param(pdu(DATA, struct.pack(">LBB", 0xFFFFFFF0, 1, 3) + bytes(50)), id="an absurd value"),
        pytest.param(pdu(DATA, struct.pack(">LB", 1, 1)), id="a value without its header"),
        pytest.param(pdu(DATA, b"\0\0"), id="half a value"),
        pytest.param(pdu(2, bytes(100)), id="an acceptance"),
        pytest.param(random.Random(1).randbytes(3000), id="noise"),
        pytest.param(pdu(DATA, pdv(1, 3, random.Random(2).randbytes(300))), id="noise as command"),
        pytest.param(pdu(DATA, pdv(1, 3, command(element(0x0100, b"\x77\x77")))), id="an unknown command"),
        pytest.param(pdu(DATA, pdv(1, 3, command())), id="an empty command"),
        pytest.param(pdu(DATA, pdv(1, 3, echo_rq(field=b"\x21\0"))), id="a move without a destination"),
        pytest.param(pdu(DATA, pdv(1, 3, b"")), id="no command"),
        pytest.param(pdu(DATA, pdv(1, 3, store_rq("1.2.3")[:-9])), id="a command cut short"),
        pytest.param(pdu(DATA, pdv(1, 2, b"data")), id="data without a command"),
        pytest.param(
            pdu(DATA, pdv(1, 3, store_rq("1.2.3"))) + pdu(DATA, pdv(3, 2, b"data")),
            id="another context's data",
        ),
        pytest.param(pdu(DATA, pdv(1, 3, store_rq("1.2.3"))) * 2, id="a command instead of data"),
        pytest.param(pdu(DATA, pdv(77, 3, echo_rq())), id="a context that is not there"),
        pytest.param(pdu(DATA, pdv(1, 3, echo_rq())) * 200, id="requests without waiting for answers"),
    ],
)
def test_what_breaks_the_protocol_ends_that_association_alone(
    tmp_path: Path, hospital: Hospital, data: bytes
) -> None:
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        with_errors = False
        try:
            peer.send(data)
            last = peer.last()
        except ConnectionError:
            with_errors, last = True, 0
        assert last in (ABORT, DATA, 0), with_errors


def test_a_command_set_with_a_wrong_group_length_is_read_all_the_same(
    tmp_path: Path, hospital: Hospital
) -> None:
    """Its elements say where they end; toolkits are as lenient."""
    dataset = ct_slice()
    request = command(
        uid(0x0002, CTImageStorage), element(0x0100, b"\1\0"), element(0x0110, b"\7\0"),
        element(0x0700, b"\0\0"), element(0x0800, b"\0\0"), uid(0x1000, dataset.SOPInstanceUID), length=9999,
    )  # fmt: skip
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        peer.associate()
        peer.send_message(1, request, encoded(dataset))
        assert peer.status() == 0


def test_cancels_without_end_are_nobodys_concern(tmp_path: Path, hospital: Hospital) -> None:
    cancel = command(element(0x0100, b"\xff\x0f"), element(0x0120, b"\7\0"), element(0x0800, b"\1\1"))
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        peer.associate(ECHO)
        peer.send(pdu(DATA, pdv(1, 3, cancel)) * 100)
        peer.send_message(1, echo_rq())
        assert peer.status() == 0


FIND_RQ = command(
    uid(0x0002, "1.2.840.10008.5.1.4.1.2.2.1"),
    element(0x0100, b"\x20\0"),
    element(0x0110, b"\7\0"),
    element(0x0700, b"\0\0"),
    element(0x0800, b"\0\0"),
)


@pytest.mark.parametrize(
    ("context", "request_", "status"),
    [
        (ECHO, store_rq("1.2.3"), 0x0211),
        (ECHO, store_rq("1.2.3", VERIFICATION), 0x0211),
        (ECHO, echo_rq("1.2.840.10008.5.1.4.1.2.2.2"), 0x0122),
        (ECHO, FIND_RQ, 0x0211),
        (CT, echo_rq(), 0x0211),
        (CT, echo_rq(CTImageStorage), 0x0211),
        (CT, store_rq("1.2.3", "1.2.840.10008.5.1.4.1.1.20"), 0xA900),
    ],
)
def test_a_request_belongs_to_its_context(
    tmp_path: Path, hospital: Hospital, context: tuple[str, str], request_: bytes, status: int
) -> None:
    """What may echo may not store, move or find by naming another class."""
    has_data = request_.endswith(store_rq("1.2.3")[-16:]) or request_ is FIND_RQ
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        before = running.files
        assert peer.associate(context) == ASSOCIATE_AC
        peer.send_message(1, request_, encoded(ct_slice()) if has_data else b"")
        assert peer.status() == status
        assert running.files == before


def test_a_command_set_of_items_without_end_is_no_request(tmp_path: Path, hospital: Hospital) -> None:
    """Of 16 MB pydicom would make gigabytes."""
    bomb = (
        echo_rq() + struct.pack("<HHL", 0x0008, 0x1115, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000
    )
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        assert peer.associate(ECHO) == ASSOCIATE_AC
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(bomb), 60000):
                peer.send(pdu(DATA, pdv(1, COMMAND, bomb[start : start + 60000])))
        assert peer.last() in (ABORT, 0)


def test_requests_that_do_not_belong_end_an_association_when_there_are_many(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """pynetdicom makes a thread for each N-EVENT-REPORT, and each is a line in the log."""
    report = command(
        uid(0x0002, VERIFICATION),
        element(0x0100, b"\x00\x01"),
        element(0x0110, b"\7\0"),
        element(0x0800, b"\1\1"),
        uid(0x1000, "1.2.3"),
        element(0x1002, b"\1\0"),
    )
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        assert peer.associate(ECHO) == ASSOCIATE_AC
        try:
            for _ in range(2000):
                peer.send(pdu(DATA, pdv(1, 3, report)))
            assert peer.last() == ABORT
        except ConnectionError:
            assert "again and again" in caplog.text
    assert len(caplog.messages) < 100


def test_what_a_peer_may_not_is_refused_and_told_once(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Abstract syntax not supported, and a line that names the peer and what it asked for."""
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        assert peer.associate(ECHO, CT, calling="PROBE") == ASSOCIATE_AC
    assert (
        caplog.messages.count("'PROBE' at 127.0.0.1 asked to store (CT Image Storage), which it may not") == 1
    )


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


def test_a_peer_that_dies_in_the_middle_of_a_slice_leaves_nothing(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process killed, its machine gone, its patience at an end: nothing but one line for each."""
    data = encoded(ct_slice()) + bytes(3_000_000)
    ends: dict[str, Callable[[RawPeer], None]] = {
        "it reset the connection": RawPeer.die,
        "it closed the connection": lambda peer: peer.socket.shutdown(socket.SHUT_WR),
        "it aborted the association": lambda peer: peer.send(pdu(ABORT, bytes(4))),
        "no next part of a message within 1 s ([receive] dimse_timeout_s): aborted": lambda _peer: None,
    }
    with (
        node(tmp_path, hospital) as running,
        undisturbed(running, hospital),
        raw_peers([running.port] * len(ends)) as peers,
    ):
        for number, (peer, end) in enumerate(zip(peers, ends.values(), strict=True), start=1):
            assert peer.associate() == ASSOCIATE_AC
            peer.send(pdu(DATA, pdv(1, 3, store_rq(f"1.2.3.{number}"))))
            for start in range(0, 2_400_000, 60000):
                peer.send(pdu(DATA, pdv(1, 0, data[start : start + 60000])))
            end(peer)
        serve_both(running, hospital)
        assert peers[-1].last() in (ABORT, 0), "it fell silent"
    for number, reason in enumerate(ends, start=1):
        lines = [line for line in caplog.messages if f"1.2.3.{number} " in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"SCANNER at 127.0.0.1: {reason}; 1.2.3.{number} came in part only, ")
        # What a reset finds on its way is lost.
        assert number == 1 or lines[0].endswith(" 2400000 bytes of it")


def test_a_peer_that_ends_between_two_messages_is_no_news(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """storescu --abort does so after every transfer."""
    with node(tmp_path, hospital) as running, raw_peers([running.port] * 2) as peers:
        for peer in peers:
            dataset = ct_slice()
            assert peer.associate() == ASSOCIATE_AC
            assert peer.store(encoded(dataset), dataset.SOPInstanceUID) == 0
        peers[0].socket.shutdown(socket.SHUT_WR)
        peers[1].send(pdu(ABORT, bytes(4)))
        until(lambda: threads() == 0, "threads end", FINISH_S)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("pause_s", [0.05, 0.4], ids=["within a PDU", "between PDUs"])
def test_a_message_that_trickles_in_is_given_up(tmp_path: Path, hospital: Hospital, pause_s: float) -> None:
    """Every part in time, and yet the whole takes too long."""
    with (
        node(tmp_path, hospital, message_timeout_s=2.0) as running,
        undisturbed(running, hospital),
        raw_peer(running.port) as peer,
    ):
        assert peer.associate() == ASSOCIATE_AC
        peer.send(pdu(DATA, pdv(1, 3, store_rq("1.2.3"))))
        if pause_s < 0.1:
            trickle(peer, pdu(DATA, pdv(1, 0, bytes(1000))), pause_s)
            return
        enough = threading.Event()
        for _ in range(100):
            try:
                peer.send(pdu(DATA, pdv(1, 0, bytes(100))))
            except OSError:
                return
            enough.wait(pause_s)
        raise AssertionError("the node reads on for ever")


def test_an_object_above_the_limit_is_refused_and_takes_no_memory(tmp_path: Path, hospital: Hospital) -> None:
    """The association goes on: the next object of usual size is stored."""
    with (
        node(tmp_path, hospital, max_object_gb=0.05) as running,
        undisturbed(running, hospital),
        raw_peer(running.port) as peer,
    ):
        assert peer.associate() == ASSOCIATE_AC
        assert peer.store(bytes(150_000_000)) == 0xA703
        assert peer.store(b"not DICOM") == 0xC000
        assert not list(tmp_path.glob("tmp*"))


def test_a_large_object_lies_on_disk_and_not_in_memory(tmp_path: Path, hospital: Hospital) -> None:
    dataset = ct_slice(Rows=8000, Columns=8000, PixelData=bytes(128_000_000))
    data, uid_ = encoded(dataset), str(dataset.SOPInstanceUID)
    del dataset
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        highest = Highest()
        assert peer.store(data, uid_) == 0
        assert highest.growth_mb() < 60
        (path,) = [path for path in running.files if path.stem == uid_]
        assert path.stat().st_size > len(data)


class Highest:
    """How much memory was resident at most since it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak_mb()

    def growth_mb(self) -> float:
        return self._peak_mb() - self._before

    @staticmethod
    def _peak_mb() -> float:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3  # type: ignore[index]


def test_a_deflated_object_that_inflates_without_end_is_refused(tmp_path: Path, hospital: Hospital) -> None:
    """A quarter of a megabyte that stands for a quarter of a gigabyte; memory stays as it was."""
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    beginning = encoded(ct_slice(PixelData=None)) + struct.pack(
        "<HH2sxxL", 0x7FE0, 0x10, b"OW", 4_000_000_000
    )
    bomb = (
        stream.compress(beginning)
        + b"".join(stream.compress(bytes(1 << 24)) for _ in range(16))
        + stream.flush()
    )
    with (
        node(tmp_path, hospital, max_object_gb=0.1) as running,
        undisturbed(running, hospital),
        raw_peer(running.port) as peer,
    ):
        assert peer.associate((CTImageStorage, DeflatedExplicitVRLittleEndian)) == ASSOCIATE_AC
        highest = Highest()
        assert peer.store(bomb) == 0xA703
        assert highest.growth_mb() < 60


def test_sequences_nested_without_end_are_refused(tmp_path: Path, hospital: Hospital) -> None:
    """Neither the stack nor the time of the node is exhausted."""
    begin = struct.pack("<HH2sxxL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with node(tmp_path, hospital) as running, undisturbed(running, hospital), raw_peer(running.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        assert peer.store(begin * 100_000) == 0xC000


@pytest.mark.parametrize(
    "evil", ["../../etc/passwd", "..", "/etc/passwd", "1.2/../../3", "1.2.3\n", "a" * 64, "1" * 65, "1..2"]
)
def test_no_uid_becomes_a_path_before_it_is_one(tmp_path: Path, hospital: Hospital, evil: str) -> None:
    """In the command, in the object, and as study: nothing is written outside, and the peer hears why."""
    sound = str(generate_uid())
    objects = [
        (evil, dataset_with(SOPInstanceUID=evil.encode())),
        (sound, dataset_with(SOPInstanceUID=sound.encode(), StudyInstanceUID=evil.encode())),
        (sound, dataset_with(SOPInstanceUID=sound.encode(), SeriesInstanceUID=evil.encode())),
    ]
    outside = set(tmp_path.parent.rglob("*"))
    with node(tmp_path / "data", hospital) as running:
        before = running.files
        for instance, data in objects:
            with raw_peer(running.port) as peer:
                assert peer.associate() == ASSOCIATE_AC
                peer.send_message(1, store_rq(instance), data)
                kind, body = peer.answer()
                assert kind in (DATA, ABORT)
                assert kind == ABORT or b"\0\0\0\x09\2\0\0\0\0\0" not in body, "it was stored"
        assert running.files == before
    ours = {path for path in tmp_path.parent.rglob("*") if tmp_path / "data" in (path, *path.parents)}
    assert set(tmp_path.parent.rglob("*")) - outside - ours == set()


def dataset_with(**uids: bytes) -> bytes:
    """A slice whose UIDs are these bytes, whatever they are."""
    dataset = ct_slice()
    for keyword in uids:
        setattr(dataset, keyword, "1.2.826.999")
    data = encoded(dataset)
    for keyword, value in uids.items():
        value += b"\0" * (len(value) % 2)
        tag = dataset[keyword].tag
        head = struct.pack("<HH", tag.group, tag.element) + b"UI"
        start = data.index(head)
        end = start + 8 + int.from_bytes(data[start + 6 : start + 8], "little")
        data = data[:start] + head + struct.pack("<H", len(value)) + value + data[end:]
    return data


@pytest.mark.parametrize(
    "character_set", ["ISO_IR 999", "\\\\\\", "ISO 2022 IR 87\\ISO_IR 192", "GB18030", "x" * 16, "\x1b$B"]
)
def test_a_wrong_character_set_spoils_a_name_and_no_object(
    tmp_path: Path, hospital: Hospital, character_set: str
) -> None:
    """PatientName may be unreadable; the dose is still this patient's."""
    dataset = ct_slice()
    data = encoded(dataset)
    value = character_set.encode().ljust(len(character_set) + len(character_set) % 2)
    element_ = struct.pack("<HH2sH", 8, 5, b"CS", len(value)) + value
    name = b"\xff\xfe\x1b$B\x81" + b"Jane"
    at = data.index(struct.pack("<HH", 0x10, 0x10))
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    data = (
        element_
        + data[:at]
        + struct.pack("<HH2sH", 0x10, 0x10, b"PN", len(name))
        + name
        + data[at + 8 + length :]
    )
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        assert peer.store(data, dataset.SOPInstanceUID) == 0
        assert running.intake.flush(1.0)


def test_data_after_the_last_part_of_one_message_belong_to_the_next(
    tmp_path: Path, hospital: Hospital
) -> None:
    """PS3.8 9.3.5 allows any number of values in a P-DATA-TF."""
    first, second = ct_slice(), ct_slice()
    with node(tmp_path, hospital) as running, raw_peer(running.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        both = b"".join(
            pdv(1, 3, store_rq(d.SOPInstanceUID)) + pdv(1, LAST, encoded(d)) for d in (first, second)
        )
        peer.send(pdu(DATA, both))
        assert (peer.status(), peer.status()) == (0, 0)


def test_good_peers_over_tls_are_served_while_all_this_goes_on(tmp_path: Path, hospital: Hospital) -> None:
    """A real toolkit beside silent, half-spoken and noisy connections on both ports."""
    noise = random.Random(3)
    with node(tmp_path, hospital) as running:
        port = running.receiver.tls_port
        assert port is not None
        with undisturbed(running, hospital), raw_peers([running.port, port] * 20) as peers:
            for peer in peers[::3]:
                peer.send(noise.randbytes(noise.randrange(1, 400)))
            with calling(port, hospital.client(hospital.node)) as assoc:
                assert assoc.is_established
