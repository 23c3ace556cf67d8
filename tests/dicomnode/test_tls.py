"""TLS as listener and as caller: who may, with what, and what is said when not."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from dicomnode.audit.trail import Audit
from dicomnode.config import Config, Peer, Tls
from dicomnode.errors import ConfigurationError, Transient
from dicomnode.network import identity as identity_module
from dicomnode.network.identity import MAX_WAITING, IdentityCheck, Offered, hash_password
from dicomnode.network.send import echo, rejection
from dicomnode.tls import (
    TLS_1_2_CIPHERS,
    ServerCertificates,
    TlsConnection,
    client_context,
    server_context,
)
from tests.certificates import Authority, Pair
from tests.dicomnode.modality import ct_slice, encoded, running_node, send

HASH = hash_password("correct horse")


@dataclass(frozen=True)
class Hospital:
    """Its authority, the node's certificate, a modality's, and those of somebody else."""

    authority: Authority
    node: Pair
    modality: Pair
    other: Authority
    stranger: Pair

    def tls(self, **changes: object) -> Tls:
        settings = {
            "port": 2762, "certificate": self.node.certificate, "key": self.node.key, "ca": self.authority.ca,
            "handshake_timeout_s": 30.0,
        }  # fmt: skip
        return Tls.model_validate({**settings, **changes})

    def client(self, pair: Pair | None = None, **changes: object) -> ssl.SSLContext:
        """A caller's context; without a certificate when `pair` is None."""
        files = {"certificate": pair.certificate, "key": pair.key} if pair else {}
        return client_context(Tls.model_validate({"ca": self.authority.ca, **files, **changes}))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    ours = Authority(tmp_path_factory.mktemp("ca"))
    theirs = Authority(tmp_path_factory.mktemp("other"), "Other CA")
    return Hospital(
        ours, ours.issue("node", "localhost"), ours.issue("nm1", "nm1.hospital.example"),
        theirs, theirs.issue("nm1", "localhost"),
    )  # fmt: skip


@contextmanager
def calling(
    port: int, context: ssl.SSLContext | None, calling: str = "SCANNER", **identity: bytes
) -> Iterator[Association]:
    """An association over TLS; identity: user and password."""
    ae = AE(calling)
    ae.acse_timeout = ae.connection_timeout = 30
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    items = []
    if identity:
        item = UserIdentityNegotiation()
        item.user_identity_type, item.positive_response_requested = 2 if "password" in identity else 1, True
        item.primary_field, item.secondary_field = identity["user"], identity.get("password", b"")
        items.append(item)
    tls = (context, "localhost") if context is not None else None
    assoc = ae.associate("127.0.0.1", port, ae_title="DICOMNODE", tls_args=tls, ext_neg=items)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


# ── listening ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_objects_come_over_tls_byte_for_byte(tmp_path: Path, hospital: Hospital, version: str) -> None:
    """Both versions, records that split PDUs and PDUs that split records; the plain port goes on."""
    dataset = ct_slice(Rows=300, Columns=200, PixelData=bytes(range(256)) * 468 + bytes(192))
    context = hospital.client(hospital.modality)
    if version == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with running_node(tmp_path, tls=hospital.tls()) as node:
        assert node.receiver.tls_port is not None
        with calling(node.receiver.tls_port, context) as assoc:
            wire = assoc.dul.socket.socket  # type: ignore[union-attr]
            assert isinstance(wire, ssl.SSLSocket)
            assert wire.version() == f"TLSv{version}"
            for _ in range(3):
                data = ct_slice(PixelData=dataset.PixelData, Rows=300, Columns=200)
                assert send(assoc, encoded(data), data.SOPInstanceUID).Status == 0
        with calling(node.port, None) as assoc:
            assert send(assoc, encoded(dataset), dataset.SOPInstanceUID).Status == 0
        assert len(node.files) == 4
        assert (
            node.spool.path(dataset.StudyInstanceUID, dataset.SOPInstanceUID)
            .read_bytes()
            .endswith(encoded(dataset))
        )


@pytest.mark.parametrize(
    "cipher", [*TLS_1_2_CIPHERS, "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"]
)
def test_only_suites_with_ecdhe_and_gcm_are_agreed_upon(hospital: Hospital, cipher: str) -> None:
    """RFC 9325 4.2; those of RSA need a certificate with an RSA key."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(cipher)
    pair = (
        hospital.authority.issue("rsa node", bits=2048)
        if "RSA-" in cipher and "ECDSA" not in cipher
        else hospital.node
    )
    tls = hospital.tls(require_client_certificate=False, certificate=pair.certificate, key=pair.key)
    assert agreed(server_context(tls), client) == ("TLSv1.2" if cipher in TLS_1_2_CIPHERS else None)


def agreed(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """The version that two contexts agree upon, without a network."""
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(one, two, server_side=True),
        client.wrap_bio(two, one, server_hostname="localhost"),
    ]
    open_ends = {1: ends[1], 0: ends[0]}
    for _ in range(8):
        for number, end in list(open_ends.items()):
            try:
                end.do_handshake()
                del open_ends[number]
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return None
    return ends[1].version() if not open_ends else None


def test_old_versions_are_not_spoken(hospital: Hospital) -> None:
    """TLS 1.0 and 1.1 are deprecated (RFC 8996)."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.minimum_version, client.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    assert agreed(server_context(hospital.tls(require_client_certificate=False)), client) is None
    only_1_3 = server_context(hospital.tls(require_client_certificate=False, minimum_version="1.3"))
    newer = hospital.client()
    assert agreed(only_1_3, newer) == "TLSv1.3"
    newer.maximum_version = ssl.TLSVersion.TLSv1_2
    assert agreed(only_1_3, newer) is None


def test_who_shows_no_certificate_or_another_authoritys_gets_no_association(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutual authentication is the default; one line says why."""
    with running_node(tmp_path, tls=hospital.tls()) as node, caplog.at_level(logging.WARNING, "dicomnode"):
        port = node.receiver.tls_port
        assert port is not None
        for context in (hospital.client(), hospital.client(hospital.stranger)):
            with calling(port, context) as assoc:
                assert not assoc.is_established
        with calling(port, hospital.client(hospital.modality)) as assoc:
            assert assoc.is_established
        with calling(port, None) as assoc:
            assert not assoc.is_established
    lines = [r.getMessage() for r in caplog.records if r.name == "dicomnode.network.listener"]
    assert lines.pop() == "127.0.0.1: no TLS connection: WRONG_VERSION_NUMBER"
    assert len(lines) == 2
    assert "127.0.0.1: no TLS connection: " in lines[0]
    assert "certificate" in lines[0].lower()


def test_a_revoked_certificate_is_refused(hospital: Hospital) -> None:
    revoked = hospital.authority.issue("stolen")
    tls = hospital.tls(crl=hospital.authority.revoke(revoked))
    client = hospital.client(revoked)
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # of 1.3 the client hears with the first data
    assert agreed(server_context(tls), client) is None
    assert agreed(server_context(tls), hospital.client(hospital.modality)) == "TLSv1.3"


def test_without_client_certificates_there_is_encryption_alone(tmp_path: Path, hospital: Hospital) -> None:
    """Where a site cannot do more; a certificate that is shown is checked all the same."""
    with running_node(tmp_path, tls=hospital.tls(require_client_certificate=False)) as node:
        port = node.receiver.tls_port
        assert port is not None
        with calling(port, hospital.client()) as assoc:
            assert assoc.is_established
        with calling(port, hospital.client(hospital.stranger)) as assoc:
            assert not assoc.is_established


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ({"certificate_name": "NM1.hospital.example"}, ""),
        ({"certificate_name": "nm1"}, ""),
        ({"certificate_name": "nm2"}, "does not bear the name 'nm2'"),
        ({"certificate_sha256": "its own"}, ""),
        ({"certificate_sha256": "00" * 32}, "has the fingerprint"),
    ],
)
def test_a_peer_must_show_its_own_certificate(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture, wish: dict[str, str], text: str
) -> None:
    """Any certificate of the hospital would otherwise do to call oneself anything."""
    if wish.get("certificate_sha256") == "its own":
        wish = {"certificate_sha256": hospital.modality.sha256}
    peer = Peer(name="scanner", ae_title="SCANNER", **wish)  # type: ignore[arg-type]
    with running_node(tmp_path, peers=(peer,), tls=hospital.tls()) as node, caplog.at_level(30, "dicomnode"):
        assert node.receiver.tls_port is not None
        with calling(node.receiver.tls_port, hospital.client(hospital.modality)) as assoc:
            assert (assoc.is_established, rejection(assoc) is not None) == (not text, bool(text))
        with calling(node.port, None) as assoc:
            assert rejection(assoc), "there is no certificate on the plain port"
    assert text in caplog.text
    assert "it may call over TLS only" in caplog.text


def test_require_tls_closes_the_plain_port_to_that_peer_alone(tmp_path: Path, hospital: Hospital) -> None:
    peers = (Peer(name="a", ae_title="SCANNER", require_tls=True), Peer(name="b", ae_title="OLD"))
    with (
        running_node(tmp_path, peers=peers, tls=hospital.tls()) as node,
        calling(node.port, None) as refused,
        calling(node.port, None, "OLD") as old,
    ):
        assert rejection(refused)
        assert old.is_established


def test_only_tls_listens_on_no_other_port(tmp_path: Path, hospital: Hospital) -> None:
    with running_node(tmp_path, tls=hospital.tls(only=True)) as node:
        assert node.port == node.receiver.tls_port
        with calling(node.port, hospital.client(hospital.modality)) as assoc:
            assert assoc.is_established


def test_new_files_are_taken_up_and_bad_ones_are_not(
    tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Certificates end; nobody restarts a node for that."""
    certificate, key = tmp_path / "node.crt", tmp_path / "node.key"
    certificate.write_bytes(hospital.node.certificate.read_bytes())
    key.write_bytes(hospital.node.key.read_bytes())
    certificates = ServerCertificates(hospital.tls(certificate=certificate, key=key))
    first = certificates.context()
    assert certificates.context() is first
    fresh = hospital.authority.issue("fresh node", "localhost")
    with caplog.at_level(logging.INFO, "dicomnode"):
        certificate.write_bytes(fresh.certificate.read_bytes())
        assert certificates.context() is first, "the key is not there yet"
        assert certificates.context() is first
        assert caplog.text.count("key does not match certificate") == 1
        key.write_bytes(fresh.key.read_bytes())
        second = certificates.context()
        assert second is not first
        certificate.write_text("no certificate")
        os.utime(certificate, (1, 1))
        assert certificates.context() is second
        certificate.unlink()
        assert certificates.context() is second
    assert "cannot be read" in caplog.text
    assert "have changed and are in use" in caplog.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"certificate": "missing"}, "certificate .*missing cannot be read: No such file"),
        ({"key": "modality"}, "key does not match certificate"),
        ({"ca": "text"}, "ca .* cannot be used: .*It must be a PEM file"),
        ({"key": "encrypted"}, "key .* is encrypted"),
    ],
)
def test_files_that_cannot_be_used_keep_the_node_from_starting(
    tmp_path: Path, hospital: Hospital, changes: dict[str, str], text: str
) -> None:
    (tmp_path / "text").write_text("words")
    hospital.node.encrypt_key(tmp_path / "encrypted")
    paths = {"modality": hospital.modality.key}
    settings = {k: paths.get(v, tmp_path / v) for k, v in changes.items()}
    with pytest.raises(ConfigurationError, match=text):
        ServerCertificates(hospital.tls(**settings))


# ── calling ──────────────────────────────────────────────────────────────────────────────────────


def pacs(port: int, tls: Tls, **changes: object) -> Peer:
    """A PACS that is called over TLS."""
    settings = {"name": "PACS", "ae_title": "DICOMNODE", "host": "127.0.0.1", "port": port}
    settings |= {"tls": True, "may": ()}
    return Config.model_validate({"peers": [{**settings, **changes}], "tls": tls.model_dump()}).peers[0]


def test_we_call_over_tls_and_check_who_answers(tmp_path: Path, hospital: Hospital) -> None:
    """Authority, name or fingerprint; each failure says what is wrong and is tried again later."""
    ours = hospital.tls(port=None, certificate=hospital.modality.certificate, key=hospital.modality.key)
    with running_node(tmp_path, tls=hospital.tls()) as node:
        port = node.receiver.tls_port
        assert port is not None
        echo(pacs(port, ours), "SCANNER", 30)
        echo(pacs(port, ours, host="localhost"), "SCANNER", 30)
        echo(pacs(port, ours, certificate_name="node"), "SCANNER", 30)
        echo(pacs(port, ours, certificate_sha256=hospital.node.sha256), "SCANNER", 30)
        for wrong, text in (
            ({"certificate_name": "pacs.hospital.example"}, "does not bear the name 'pacs.hospital.example'"),
            ({"certificate_sha256": "00" * 32}, "has the fingerprint"),
        ):
            with pytest.raises(Transient, match=text):
                echo(pacs(port, ours, **wrong), "SCANNER", 30)
        with pytest.raises(Transient, match=r"no TLS connection: .*certificate"):
            echo(pacs(port, ours.model_copy(update={"ca": hospital.other.ca})), "SCANNER", 30)
        with pytest.raises(Transient, match="no TLS connection"):
            echo(pacs(node.port, ours), "SCANNER", 30)


# ── user identity ────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_user_name_costs_as_much_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time would tell which user names there are, and whether a password is remembered as right."""
    costs: list[tuple[int, int, int]] = []
    scrypt = identity_module._scrypt

    def counted(password: bytes, n: int, r: int, p: int, salt: bytes) -> bytes:
        costs.append((n, r, p))
        return scrypt(password, n, r, p, salt)

    monkeypatch.setattr(identity_module, "_scrypt", counted)
    check = IdentityCheck()
    peer = Peer(name="scanner", ae_title="SCANNER", user="nm1", password_hash=HASH)
    for user, password, said in (
        (b"nm1", b"Tr0ub4dor", "wrong password"),
        (b"nm2", b"Tr0ub4dor", "another user name"),
        (b"nm1", b"correct horse", ""),
        (b"nm2", b"correct horse", "another user name"),
    ):
        costs.clear()
        assert said in check.refusal(peer, Offered(2, user, password))
        assert len(costs) == 1, (user, password)
        assert costs[0] == tuple(int(part) for part in HASH.split("$")[1:4])
    costs.clear()
    assert check.refusal(peer, Offered(2, b"nm1", b"correct horse")) == ""
    assert not costs, "what was right is remembered"
    assert "another user name" in check.refusal(peer, Offered(1, b"nm2", b""))
    assert not costs, "and without a password there is nothing to hash"


@pytest.mark.parametrize(
    ("entry", "identity", "reason"),
    [
        ({"user": "nm1"}, {"user": b"nm1"}, ""),
        ({"user": "nm1"}, {"user": b"nm1", "password": b"whatever"}, ""),
        ({"user": "nm1"}, {"user": b"nm2"}, "another user name"),
        ({"user": "nm1"}, {}, "gives no user name"),
        ({"user": "nm1", "password_hash": HASH}, {"user": b"nm1", "password": b"correct horse"}, ""),
        (
            {"user": "nm1", "password_hash": HASH},
            {"user": b"nm1", "password": b"Tr0ub4dor"},
            "wrong password",
        ),
        ({"user": "nm1", "password_hash": HASH}, {"user": b"nm1"}, "gives no password"),
        ({}, {"user": b"anybody", "password": b"anything"}, ""),
    ],
)
def test_a_user_is_checked_where_its_peer_names_one(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    entry: dict[str, str],
    identity: dict[str, bytes],
    reason: str,
) -> None:
    """PS3.7 D.3.3.7: a positive response when asked for one; the log never shows a password."""
    peer = Peer(name="scanner", ae_title="SCANNER", **entry)  # type: ignore[arg-type]
    with running_node(tmp_path, peers=(peer,)) as node, caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with calling(node.port, None, **identity) as assoc:
                answer = rejection(assoc)
                assert (answer is not None) == bool(reason)
                if answer is not None:
                    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 1)
                elif entry:
                    assert assoc.acceptor.user_identity is not None
                    assert assoc.acceptor.user_identity.server_response == b""
                else:
                    assert assoc.acceptor.user_identity is None
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("dicomnode"))
    assert reason in ours
    for secret in ("correct horse", "Tr0ub4dor", "anything"):
        assert secret not in ours


def test_a_flood_of_passwords_does_not_wait_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that waits is an association; who was right before is not among them."""
    peer = Peer(name="scanner", ae_title="SCANNER", user="nm1", password_hash=HASH)
    check, right, wrong = IdentityCheck(), Offered(2, b"nm1", b"correct horse"), Offered(2, b"nm1", b"x")
    assert check.refusal(peer, right) == ""
    go_on, asked = threading.Event(), threading.Semaphore(0)

    def slow(*_: object) -> bytes:
        asked.release()
        assert go_on.wait(20)
        return b""

    monkeypatch.setattr("dicomnode.network.identity._scrypt", slow)
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        waiting = [pool.submit(check.refusal, peer, wrong) for _ in range(MAX_WAITING)]
        assert all(asked.acquire(timeout=20) for _ in waiting)
        assert "too many" in check.refusal(peer, wrong)
        assert check.refusal(peer, right) == ""
        go_on.set()
        assert {future.result() for future in waiting} == {"it gives a wrong password"}
    assert check.refusal(peer, wrong) == "it gives a wrong password"


def test_too_many_new_passwords_are_congestion_and_no_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PS3.8 table 9-21: 2, 3, 1. Over in a second; a sender counts rejections for good."""
    alerts: list[str] = []
    monkeypatch.setattr(Audit, "refused", lambda _audit, _party, reason, **_: alerts.append(reason))
    peer = Peer(name="scanner", ae_title="SCANNER", user="nm1", password_hash=HASH)
    with running_node(tmp_path, peers=(peer,)) as node:
        waiting = node.receiver._identity._waiting
        for _ in range(MAX_WAITING):
            assert waiting.acquire(blocking=False)
        with calling(node.port, None, user=b"nm1", password=b"correct horse") as assoc:
            answer = rejection(assoc)
            assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 1)
        assert alerts == []
        waiting.release(MAX_WAITING)
        with calling(node.port, None, user=b"nm1", password=b"correct horse") as assoc:
            assert assoc.is_established
        with calling(node.port, None, user=b"nm1", password=b"Tr0ub4dor") as assoc:
            assert rejection(assoc).result == 1
    assert alerts == ["[[peers]] 'scanner': it gives a wrong password"]


def test_we_give_our_user_and_password_where_the_peer_wants_them(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("correct horse\n")
    (tmp_path / "wrong").write_text("Tr0ub4dor\n")
    known = Peer(name="node", ae_title="NODE", user="dicomnode", password_hash=HASH)
    with running_node(tmp_path / "data", peers=(known,)) as node:
        here = Peer(
            name="PACS", ae_title="DICOMNODE", host="127.0.0.1", port=node.port, send_user="dicomnode",
            send_password_file=secret,
        )  # fmt: skip
        echo(here, "NODE", 30)
        with pytest.raises(Transient, match="rejected the association"):
            echo(here.model_copy(update={"send_password_file": tmp_path / "wrong"}), "NODE", 30)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            echo(here.model_copy(update={"send_password_file": tmp_path / "gone"}), "NODE", 30)


# ── the connection itself ────────────────────────────────────────────────────────────────────────


def test_what_came_with_the_last_record_is_read_without_waiting(hospital: Hospital) -> None:
    """The socket is silent then, and the transport must know."""
    ours, theirs = socket.socketpair()
    client = hospital.client(hospital.modality)
    with ours, theirs:
        server = TlsConnection(ours, server_context(hospital.tls()))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        caller = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            caller.do_handshake()
        theirs.sendall(outgoing.read())
        agreed_ = threading.Thread(target=server.handshake, args=(30,))
        agreed_.start()
        incoming.write(theirs.recv(65536))
        caller.do_handshake()
        theirs.sendall(outgoing.read())
        agreed_.join(30)
        caller.write(b"a" * 40000)
        caller.write(b"b" * 10)
        theirs.sendall(outgoing.read())
        buffer = memoryview(bytearray(100))
        assert server.recv_into(buffer) == 100
        assert server.pending()
        rest = memoryview(bytearray(100000))
        assert server.recv_into(rest) == 39910
        assert bytes(rest[39900:39910]) == b"b" * 10
        assert not server.pending()
        theirs.shutdown(socket.SHUT_WR)
        assert server.recv_into(buffer) == 0
