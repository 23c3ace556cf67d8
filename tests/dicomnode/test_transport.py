"""C-STORE requests are put together here; everything else is pynetdicom's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.sop_class import Verification
from pynetdicom.timer import Timer

from dicomnode.network import outgoing, upper_layer
from dicomnode.network.command_set import c_store_rq
from tests.dicomnode.modality import association, ct_slice, encoded, running_node, send, store

CLASS, INSTANCE = b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.3.4\0"


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(**changes: bytes | None) -> bytes:
    """A C-STORE-RQ; `changes` replace its elements by name, None leaves one out."""
    sound: dict[str, tuple[int, bytes]] = {
        "uid": (0x0002, CLASS),
        "field": (0x0100, b"\1\0"),
        "id": (0x0110, b"\7\0"),
        "priority": (0x0700, b"\0\0"),
        "data": (0x0800, b"\0\0"),
        "instance": (0x1000, INSTANCE),
    }
    values = [(number, changes.get(name, value)) for name, (number, value) in sound.items()]
    body = b"".join(element(number, value) for number, value in values if value is not None)
    return element(0x0000, struct.pack("<L", len(body))) + body


def test_a_sound_request_is_read_as_the_standard_says() -> None:
    request = c_store_rq(command())
    assert request is not None
    assert request.is_valid_request
    assert (request.MessageID, request.Priority) == (7, 0)
    assert (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID) == (CTImageStorage, "1.2.3.4")


@pytest.mark.parametrize(
    "broken",
    [
        command(field=b"\x30\0"),  # C-ECHO-RQ
        command(data=b"\1\1"),  # says that no data set follows
        command(data=None),
        command(uid=None),
        command(instance=b"../../etc/passwd"),
        command(instance=b"1." * 40),
        command(id=None),
        command(id=b"\7\0\0\0"),
        command()[:-3],
        b"",
        b"\x08\0\x16\0\4\0\0\0abcd",  # not group 0000
    ],
)
def test_whatever_else_is_left_to_pynetdicom(broken: bytes) -> None:
    assert c_store_rq(broken) is None


def test_an_echo_between_two_objects_disturbs_neither(tmp_path: Path) -> None:
    """Both ways of putting a message together on one association."""
    first, second = ct_slice(), ct_slice()
    contexts = ((CTImageStorage, ExplicitVRLittleEndian), (Verification, ExplicitVRLittleEndian))
    with running_node(tmp_path) as node, association(node.port, *contexts) as assoc:
        answers = [send(assoc, encoded(first), first.SOPInstanceUID).Status]
        answers.append(assoc.send_c_echo().Status)
        answers.append(send(assoc, encoded(second), second.SOPInstanceUID).Status)
        assert answers == [0, 0, 0]
        assert len(node.files) == 2


def test_a_command_in_the_middle_of_a_data_set_ends_that_association_alone(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        with association(node.port) as assoc:
            value = command(uid=str(CTImageStorage).encode() + b"\0")
            pdv = struct.pack(">LBB", len(value) + 2, assoc.accepted_contexts[0].context_id, 3) + value
            assert assoc.dul.socket is not None
            assert assoc.dul.socket.socket is not None
            assoc.dul.socket.socket.sendall(struct.pack(">BxL", 4, 2 * len(pdv)) + pdv + pdv)
            assoc.dul.join(10)
            assert not assoc.dul.is_alive()
        assert store(node, ct_slice()) == 0
        assert len(node.files) == 1


def test_no_answer_waits_for_the_threads_to_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting, echoing and releasing: whatever comes wakes the thread that must act on it."""
    for module in (upper_layer, outgoing):
        monkeypatch.setattr(module, "IDLE_S", 60.0)
    verification = (Verification, ExplicitVRLittleEndian)
    with running_node(tmp_path) as node, association(node.port, verification) as assoc:
        assert assoc.is_established
        assert assoc.send_c_echo().Status == 0
        assoc.release()
        assert assoc.is_released


def test_a_peer_that_never_pauses_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer that the association's thread looks at begins anew with every PDU, not with every turn."""
    layer = object.__new__(upper_layer.UpperLayer)
    layer._idle_timer = Timer(60)
    told: list[str] = []
    more = iter([True] * 5 + [False])
    monkeypatch.setattr(layer, "_read_one", lambda: told.append("PDU"))
    monkeypatch.setattr(layer, "_follows", lambda: next(more))
    monkeypatch.setattr(layer._idle_timer, "restart", lambda: told.append("timer"))
    layer._read_pdu_data()
    assert told == ["PDU", *["timer", "PDU"] * 5]
