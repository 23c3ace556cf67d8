"""A right is a right to one service: no request gives a peer more than its [[peers]] entry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom.dsutils import encode

from dicomnode.commitment.report import ReportService
from dicomnode.commitment.scp import CommitmentService, OpenAssociations
from dicomnode.config import Node, Peer, Query, Receive
from dicomnode.contexts import (
    FIND_MODELS,
    GET_MODELS,
    MOVE_MODELS,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    VERIFICATION,
)
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.query.find import FindService
from dicomnode.query.retrieve import GetService, MoveService
from tests.dicomnode.querier import keys
from tests.dicomnode.raw_peer import ASSOCIATE_AC, RawPeer, command, element, uid

# PS3.7 E.1: Command Field.
STORE, GET, FIND, MOVE, ECHO = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030
EVENT_REPORT, ACTION = 0x0100, 0x0130
CLASSES = {
    "echo": (str(VERIFICATION), ECHO),
    "store": (str(CTImageStorage), STORE),
    "find": (str(FIND_MODELS[1]), FIND),
    "move": (str(MOVE_MODELS[1]), MOVE),
    "get": (str(GET_MODELS[0]), GET),
    "commit": (str(PUSH_MODEL), ACTION),
}
IDENTIFIER = encode(keys("STUDY", StudyInstanceUID="1.2.3"), True, True) or b""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A node with one peer for each right, called as the right is."""
    data_dir = tmp_path_factory.mktemp("rights")
    peers = [Peer(name=right, ae_title=right.upper(), may=(right,)) for right in CLASSES if right != "store"]
    peers.append(Peer(name="store", ae_title="STORE", may=("store",), host="127.0.0.1", port=1))
    node = Node(bind="127.0.0.1", data_dir=data_dir, ae_title="DICOMNODE").model_copy(update={"port": 0})
    ledger = Ledger.open(node.ledger_url)
    services = (
        FindService(ledger, "DICOMNODE", 100),
        MoveService(ledger, data_dir, Query(), peers, "DICOMNODE"),
        GetService(ledger, data_dir, Query()),
        CommitmentService(peers, ledger, lambda now: None, OpenAssociations()),
        ReportService(peers, (), ledger),
    )
    receiver = Receiver(node, peers, Receive(), services)
    yield receiver.start()
    receiver.stop(5)
    ledger.close()


def request(field: int, sop_class: str) -> bytes:
    """A command set with whatever any of them needs."""
    is_normalized = field in (EVENT_REPORT, ACTION)
    named = 0x0003 if field == ACTION else 0x0002
    elements = [
        uid(named, sop_class), element(0x0100, field.to_bytes(2, "little")), element(0x0110, b"\7\0"),
        *([element(0x0600, b"STORE ")] if field == MOVE else []),
        *([] if is_normalized else [element(0x0700, b"\0\0")]),
        element(0x0800, b"\1\1" if field == ECHO else b"\0\0"),
        *([uid(0x1000, PUSH_MODEL_INSTANCE)] if field in (STORE, EVENT_REPORT) else []),
        *([uid(0x1001, PUSH_MODEL_INSTANCE), element(0x1008, b"\1\0")] if field == ACTION else []),
        *([element(0x1002, b"\1\0")] if field == EVENT_REPORT else []),
    ]  # fmt: skip
    return command(*elements)


@pytest.mark.parametrize("field", [GET, FIND, MOVE, ECHO, ACTION])
@pytest.mark.parametrize("right", [right for right in CLASSES if right != "store"])
def test_a_context_is_good_for_the_requests_of_its_class_alone(port: int, right: str, field: int) -> None:
    """The class that is named fits the context, the command does not: what may find could move."""
    sop_class, own = CLASSES[right]
    peer = RawPeer(port)
    try:
        assert peer.associate((sop_class, ImplicitVRLittleEndian), calling=right.upper()) == ASSOCIATE_AC
        peer.send_message(1, request(field, sop_class), b"" if field == ECHO else IDENTIFIER)
        status = peer.status()
    finally:
        peer.socket.close()
    assert (status != 0x0211) == (field == own), f"0x{status:04X}"
