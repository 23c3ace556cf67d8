"""Associations and C-STORE over real sockets: who may, what is stored, what comes twice."""

from __future__ import annotations

import copy
import logging
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode.audit.trail import Audit
from dicomnode.commands.terminal import log_to_stderr
from dicomnode.config import Audit as AuditSettings
from dicomnode.conformance import page as conformance
from dicomnode.contexts import COMPRESSED, SOP_CLASSES, transfer_syntaxes
from dicomnode.network.admission import addresses, unmapped
from dicomnode.network.send import rejection
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from dicomnode.states import Event, State
from tests.dicomnode.modality import (
    NOW,
    association,
    compressed,
    ct_slice,
    encoded,
    running_node,
    send,
    store,
)

ECHO = (Verification, ImplicitVRLittleEndian)
STORE = (CTImageStorage, ExplicitVRLittleEndian)


# ── associations ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("STRANGER", "DICOMNODE", 3),
        ("SCANNER", "OTHERNODE", 7),
        ("ELSEWHERE", "DICOMNODE", 3),
    ],
    ids=["unknown calling AE", "wrong called AE", "known AE from a wrong host"],
)
def test_who_may_not_is_rejected_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, calling: str, called: str, reason: int
) -> None:
    """PS3.8 9.3.4: permanent, by the service user, with the reason; one line names the peer."""
    with running_node(tmp_path) as node, caplog.at_level(logging.WARNING, "dicomnode"):
        with association(node.port, calling=calling, called=called) as assoc:
            answer = rejection(assoc)
            assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, reason)
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("dicomnode")]
        assert [calling in message for message in ours] == [True]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no socket of this machine takes IPv4 and IPv6")
def test_on_a_socket_for_both_families_a_caller_over_ipv4_has_its_ipv4_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`check_host` holds it against [[peers]] host, and log and audit trail name it as every other system."""
    told = tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=told), "DICOMNODE")
    with running_node(tmp_path, bind="::", audit=audit) as node, caplog.at_level(logging.INFO, "dicomnode"):
        with association(node.port, ECHO, calling="HERE") as assoc:
            assert assoc.send_c_echo().Status == 0
        with association(node.port, calling="ELSEWHERE") as assoc:
            assert assoc.is_rejected
    audit.stopped()
    for text in (caplog.text, told.read_text()):
        assert "127.0.0.1" in text
        assert "::ffff:" not in text


@pytest.mark.parametrize(
    ("shown", "address"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("camera.example", "camera.example"),
        ("", ""),
    ],
)
def test_an_ipv4_address_has_one_form_and_others_stay_as_they_are(shown: str, address: str) -> None:
    assert unmapped(shown) == address


def test_a_host_that_is_written_in_its_ipv6_form_is_the_same_host() -> None:
    assert addresses("::ffff:127.0.0.1") == addresses("127.0.0.1") == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("calling", "accepted"),
    [
        ("SCANNER", {Verification, CTImageStorage}),
        ("HERE", {Verification, CTImageStorage}),
        ("PROBE", {Verification}),
        ("STORE_ONLY", {CTImageStorage}),
    ],
)
def test_a_peer_gets_the_contexts_that_it_has_a_right_to(
    tmp_path: Path, calling: str, accepted: set[str]
) -> None:
    """The others are refused as abstract syntaxes that are not supported."""
    with running_node(tmp_path) as node, association(node.port, ECHO, STORE, calling=calling) as assoc:
        assert {context.abstract_syntax for context in assoc.accepted_contexts} == accepted
        assert {context.result for context in assoc.rejected_contexts} <= {3}


def test_echo_is_answered(tmp_path: Path) -> None:
    """C-ECHO gets 0x0000."""
    with running_node(tmp_path) as node, association(node.port, ECHO) as assoc:
        assert assoc.send_c_echo().Status == 0


def test_above_the_limit_associations_are_rejected_for_now(tmp_path: Path) -> None:
    """Transient, local limit exceeded; silent connections do not count."""
    with running_node(tmp_path, max_associations=1) as node:
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(5)]
        with association(node.port) as first, association(node.port) as second:
            assert first.is_established
            answer = second.acceptor.primitive
            assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
        for connection in silent:
            connection.close()


def test_a_port_probe_leaves_no_thread_behind(tmp_path: Path) -> None:
    """Monitoring connects and closes every minute; pynetdicom alone would wait for the ACSE timeout."""
    with running_node(tmp_path, acse_timeout_s=600) as node:
        socket.create_connection(("127.0.0.1", node.port)).close()
        with association(node.port, ECHO) as assoc:
            assert assoc.is_established
        for thread in threading.enumerate():
            if thread.name.startswith("AcceptorThread"):
                thread.join(30)
                assert not thread.is_alive()


def test_a_pdu_of_absurd_length_ends_the_connection(tmp_path: Path) -> None:
    """No memory is set aside for what a header merely claims."""
    with running_node(tmp_path) as node:
        with socket.create_connection(("127.0.0.1", node.port), 30) as connection:
            connection.sendall(b"\x01\x00\xff\xff\xff\xff")
            assert connection.recv(64) == bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 6)), "A-ABORT, invalid value"
            assert connection.recv(64) == b""
        assert store(node, ct_slice()) == 0


def test_every_class_is_accepted_in_every_syntax_that_can_be_decoded(tmp_path: Path) -> None:
    """What the conformance page promises is what is negotiated."""
    assert {RLELossless, JPEGLSLossless} <= set(COMPRESSED)
    with running_node(tmp_path) as node:
        for sop_class in SOP_CLASSES:
            offers = [(sop_class, syntax) for syntax in transfer_syntaxes(sop_class)]
            with association(node.port, *offers) as assoc:
                assert len(assoc.accepted_contexts) == len(offers)


def test_the_conformance_page_is_up_to_date() -> None:
    """`python -m dicomnode.conformance` writes it."""
    page = conformance.PAGE.read_text(encoding="utf-8")
    assert conformance.updated(page) == page


# ── storing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_is_acknowledged_is_on_disk_byte_for_byte(tmp_path: Path, syntax: str) -> None:
    """As a file that any toolkit reads, and in the ledger with the next tick."""
    dataset = ct_slice(AccessionNumber="A1", IssuerOfPatientID="HOSPITAL")
    with running_node(tmp_path) as node:
        assert store(node, dataset, syntax) == 0
        (path,) = node.files
        assert path == node.spool.path(dataset.StudyInstanceUID, dataset.SOPInstanceUID)
        assert path.read_bytes().endswith(encoded(dataset, syntax))
        read = dcmread(path)
        assert read.file_meta.TransferSyntaxUID == syntax
        assert read.file_meta.SourceApplicationEntityTitle == "SCANNER"
        assert read.SOPInstanceUID == dataset.SOPInstanceUID
        (case,) = node.intake.flush(NOW)
        (instance,) = node.ledger.instances(case)
        assert (tmp_path / instance.path, instance.size_bytes) == (path, path.stat().st_size)
        assert (instance.patient_id, instance.issuer_of_patient_id) == ("P1", "HOSPITAL")
        assert (instance.accession_number, instance.modality) == ("A1", "CT")
        assert (instance.peer, instance.received_at) == ("SCANNER", NOW)


def test_four_associations_at_once_lose_nothing(tmp_path: Path) -> None:
    """Peers open several for one study."""
    study = generate_uid()
    slices = [ct_slice(StudyInstanceUID=study, InstanceNumber=k) for k in range(40)]

    def push(share: list[Dataset]) -> list[int]:
        with association(node.port) as assoc:
            return [int(send(assoc, encoded(d), d.SOPInstanceUID).Status) for d in share]

    with running_node(tmp_path) as node, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(push, [slices[start::4] for start in range(4)]))
        assert [status for share in answers for status in share] == [0] * 40
        (case,) = node.intake.flush(NOW)
        assert {i.sop_instance_uid for i in node.ledger.instances(case)} == {d.SOPInstanceUID for d in slices}


def test_a_message_in_many_small_pieces_is_put_together(tmp_path: Path) -> None:
    """The smallest PDU that the Standard knows, several values in one PDU, a large object."""
    dataset = ct_slice(Rows=300, Columns=200, PixelData=bytes(range(256)) * 468 + bytes(192))
    with running_node(tmp_path, max_pdu=4096) as node:
        assert store(node, dataset) == 0
        assert node.files[0].read_bytes().endswith(encoded(dataset))


def test_an_unknown_character_set_is_one_line_for_each_association(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It spoils a name, and no object: those are accepted."""
    dataset = ct_slice(SpecificCharacterSet="ISO_IR 100")
    plain, uid = encoded(dataset), str(dataset.SOPInstanceUID)
    strange = [plain.replace(b"ISO_IR 100", name) for name in (b"BOGUS     ", b"BOGUS     ", b"BOGUS\\x   ")]
    with running_node(tmp_path) as node:
        for _ in range(2):
            with association(node.port) as assoc:
                for data in (plain, *strange):
                    assert send(assoc, data, uid).Status == 0x0000
    lines = [line for line in caplog.messages if "Specific Character Set" in line]
    assert [line.partition("Set ")[2].partition(",")[0] for line in lines] == ["'BOGUS'", r"'BOGUS\\x'"] * 2
    assert all(uid in line and "SCANNER" in line for line in lines)


def test_what_storescu_proposes_beside_what_it_sends_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a peer that gets nothing at all is."""
    caplog.set_level(logging.INFO)
    mr = ("1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian)
    with running_node(tmp_path) as node:
        with association(node.port, (CTImageStorage, ExplicitVRLittleEndian), mr) as assoc:
            assert len(assoc.accepted_contexts) == 1
        assert "does not offer" not in caplog.text
        with association(node.port, mr):
            pass
    assert "does not offer: MR Image Storage" in caplog.text


def test_a_peer_that_dies_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """No half object, no answer, and the next peer is served."""
    with running_node(tmp_path) as node:
        with association(node.port) as assoc:
            # A P-DATA-TF that announces more than it brings, then silence.
            assoc.dul.socket.socket.sendall(b"\x04\0\0\0\x10\0" + bytes(100))
            assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        assert store(node, ct_slice()) == 0
        assert len(node.files) == 1


# ── the same object again ────────────────────────────────────────────────────────────────────────


def test_an_object_that_is_on_disk_and_that_the_ledger_gave_up_is_a_new_one(tmp_path: Path) -> None:
    """Retention could not remove its file: the sender hears that it is here, and so it must be known."""
    with running_node(tmp_path) as node:
        dataset = ct_slice()
        assert store(node, dataset) == 0
        node.intake.flush(1.0)
        (case,) = node.ledger.cases()
        for event in (Event.COMPLETE, Event.CLAIM, Event.GIVE_UP):
            node.ledger.apply(case.id, event, 2.0)
        assert len(node.ledger.remove_inputs(case.id, State.FAILED, 3.0)) == 1
        assert store(node, dataset) == 0
        assert node.intake.flush(4.0) == {case.id}
        assert [i.sop_instance_uid for i in node.ledger.instances(case.id)] == [dataset.SOPInstanceUID]


def test_the_same_object_again_changes_nothing(tmp_path: Path) -> None:
    """A sender that lost our answer sends again."""
    dataset = ct_slice()
    with running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, dataset)) == (0, 0)
        assert len(node.files) == 1
        assert len(node.intake.flush(NOW)) == 1
        assert store(node, dataset) == 0
        assert node.intake.flush(NOW) == set(), "no case is touched"


def test_coerced_demographics_are_accepted_and_logged_without_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A PACS sends with its own spelling: the first object stays, the log names the attributes."""
    dataset = ct_slice()
    coerced = copy.deepcopy(dataset)
    coerced.PatientName, coerced.AccessionNumber = "Roe^Richard", "4711"
    with running_node(tmp_path) as node, caplog.at_level(logging.INFO, "dicomnode"):
        assert (store(node, dataset), store(node, coerced)) == (0, 0)
        assert dcmread(node.files[0]).PatientName == "Doe^Jane"
    assert "AccessionNumber, PatientName" in caplog.text
    assert "Roe" not in caplog.text
    assert "4711" not in caplog.text


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_same_pixels_in_another_transfer_syntax_are_the_same_object(tmp_path: Path, syntax: str) -> None:
    """A PACS may compress, or the modality was asked again."""
    dataset = ct_slice()
    again = compressed(dataset, syntax) if syntax in COMPRESSED else copy.deepcopy(dataset)
    if syntax == ExplicitVRBigEndian:
        again.PixelData = b"".join(
            dataset.PixelData[k + 1 : k + 2] + dataset.PixelData[k : k + 1] for k in range(0, 48, 2)
        )
    with running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, again, syntax)) == (0, 0)
        assert len(node.files) == 1
        assert node.kept == []


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": bytes(48)},
        {"ImagePositionPatient": [0, 0, 1]},
        {"PixelSpacing": [1, 1.5]},
        {"RescaleSlope": 2},
        {"SeriesInstanceUID": "1.2.3.4"},
        {"ImageType": ["DERIVED", "SECONDARY"]},
        {"SliceVector": [2, 1]},
        {"TimezoneOffsetFromUTC": "+0200"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_content_under_the_same_uid_is_refused_and_holds_the_case(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """One of the two is wrong, and only a person can tell which."""
    dataset = ct_slice()
    other = copy.deepcopy(dataset)
    for keyword, value in changes.items():
        setattr(other, keyword, value)
    with running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, other)) == (0, 0xC030)
        (case,) = node.intake.flush(NOW)
        assert next(iter(changes)) in node.ledger.case(case).conflict
        (row,) = node.ledger.quarantined(dataset.StudyInstanceUID)
        assert (row.defect, row.status) == ("OTHER_CONTENT", 0xC030)
        assert node.ledger.case(case).conflict.endswith(f"; set aside as {row.path}")
        assert node.files[0].read_bytes().endswith(encoded(dataset)), "the first one stays"


def test_the_same_object_in_another_study_is_refused(tmp_path: Path) -> None:
    """The ledger knows an object once: taking it twice would lose it from one of the studies."""
    dataset = ct_slice()
    moved = copy.deepcopy(dataset)
    moved.StudyInstanceUID = generate_uid()
    with running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, moved)) == (0, 0xC031)
        (case,) = node.intake.flush(NOW)
        assert "another study" in node.ledger.case(case).conflict


def test_one_object_on_four_associations_at_once_is_stored_once(tmp_path: Path) -> None:
    """Whoever comes first stores it, the others find it; another content is told apart."""
    dataset = ct_slice()
    other = copy.deepcopy(dataset)
    other.PixelData = bytes(48)
    with running_node(tmp_path) as node, ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(lambda d: store(node, d), [dataset, dataset, dataset, other]))
        assert answers in ([0, 0, 0, 0xC030], [0, 0xC030, 0xC030, 0xC030])
        assert len(node.files) == 1


def test_our_own_result_is_accepted_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PACS that forwards everything sends our results back to us."""
    monkeypatch.setattr(Intake, "is_result", lambda *_: True)
    with running_node(tmp_path) as node:
        assert store(node, ct_slice(SOPClassUID=RTDoseStorage)) == 0
        assert (node.files, node.kept, node.intake.flush(NOW)) == ([], [], set())


def test_no_log_at_the_default_level_names_a_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither ours nor pynetdicom's, of an object that is stored, sent again and refused."""
    log_to_stderr("INFO")
    dataset = ct_slice(PatientName="Quixote^Alonso", PatientID="LAMANCHA-1605")
    broken = copy.deepcopy(dataset)
    broken.PixelData = bytes(2)
    with caplog.at_level(logging.INFO), running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, dataset), store(node, broken)) == (0, 0, 0xC021)
        with association(node.port, (RTStructureSetStorage, ExplicitVRLittleEndian)) as assoc:
            assert assoc.is_established
    assert "refused with 0xC021" in caplog.text
    assert "Quixote" not in caplog.text
    assert "LAMANCHA" not in caplog.text


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_stop_lets_a_running_object_finish_and_refuses_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has begun is stored and answered; no new association; nothing later is taken."""
    begun, go_on = threading.Event(), threading.Event()
    original = Spool.store

    def slow(*arguments: object) -> tuple[Path, int]:
        begun.set()
        assert go_on.wait(10)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Spool, "store", slow)
    with running_node(tmp_path) as node, ThreadPoolExecutor(2) as pool:
        late = AE("SCANNER")
        late.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        waiting = late.associate("127.0.0.1", node.port, ae_title="DICOMNODE")
        first = pool.submit(store, node, ct_slice())
        assert begun.wait(10)
        stopped = pool.submit(node.receiver.stop, 10)
        while not node.receiver.stopping:
            threading.Event().wait(0.01)
        dataset = ct_slice()
        assert send(waiting, encoded(dataset), dataset.SOPInstanceUID).Status == 0xA702
        go_on.set()
        assert first.result(10) == 0
        assert stopped.result(20)
        assert len(node.files) == 1
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", node.port), 1)


def test_the_listening_process_stays_small() -> None:
    """Neither torch nor the libraries of the computation come in by the back door."""
    code = "import sys, dicomnode.network.receive, dicomnode.reception.intake; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in modules.stdout.split()}
    assert not loaded & {"torch", "scipy", "highdicom", "SimpleITK", "matplotlib", "skimage"}
