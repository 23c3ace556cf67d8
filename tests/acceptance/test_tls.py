"""TLS and user identity with DCMTK, OpenSSL and Orthanc, in both directions."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.config import Config, Peer, Tls
from dicomnode.errors import Transient
from dicomnode.ledger import Ledger
from dicomnode.network.identity import hash_password
from dicomnode.network.send import echo
from dicomnode.network.service import Service
from dicomnode.query.find import FindService
from dicomnode.query.retrieve import GetService, MoveService
from dicomnode.states import State
from tests import small_study
from tests.acceptance.harness import MODALITY_AE, NODE_AE, Node, Orthanc, free_port, listens, push, until
from tests.certificates import Authority, Pair
from tests.dicomnode.modality import Running, ct_slice, running_node

pytestmark = pytest.mark.peers
Find = Callable[[str], str]
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Hospital:
    authority: Authority
    node: Pair
    modality: Pair
    pacs: Pair
    stranger: Pair


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    ours = Authority(tmp_path_factory.mktemp("ca"))
    theirs = Authority(tmp_path_factory.mktemp("other"), "Other CA")
    return Hospital(
        ours,
        ours.issue("node", "localhost"),
        ours.issue("nm1", "nm1.hospital.example", bits=2048),
        ours.issue("pacs", "localhost"),
        theirs.issue("nm1", "localhost"),
    )


@pytest.fixture
def node(tmp_path: Path, hospital: Hospital) -> Iterator[Running]:
    """It knows DCMTK's tools by name, certificate and password."""
    tls = Tls(
        port=2762, certificate=hospital.node.certificate, key=hospital.node.key, ca=hospital.authority.ca
    )
    peers = (
        Peer(name="modality", ae_title=MODALITY_AE, certificate_name="nm1.hospital.example"),
        Peer(name="plain", ae_title="PLAIN", may=("echo",)),
        Peer(name="user", ae_title="USER", user="nm1", password_hash=hash_password(PASSWORD)),
    )
    with running_node(tmp_path, peers=peers, tls=tls) as running:
        yield running


def small_file(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def over_tls(pair: Pair, ca: Path) -> list[str]:
    """DCMTK's options."""
    return ["+tls", str(pair.key), str(pair.certificate), "+cf", str(ca)]


def scu(program: str, port: int | None, options: list[str], *files: Path, calling: str = MODALITY_AE) -> str:
    """What DCMTK's SCU said; empty when it failed."""
    assert port is not None
    command = [program, "-v", *options, "-aet", calling, "-aec", "DICOMNODE", "127.0.0.1", str(port)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr if done.returncode == 0 else ""


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_dcmtk_stores_over_tls_with_every_profile_of_bcp_195(
    tmp_path: Path, node: Running, hospital: Hospital, peer_program: Find, profile: str
) -> None:
    """Non-downgrading, plain and extended, with a certificate of its own."""
    dataset = ct_slice()
    file = tmp_path / "slice.dcm"
    small_file(dataset, file)
    options = [*over_tls(hospital.modality, hospital.authority.ca), profile]
    assert scu(peer_program("echoscu"), node.receiver.tls_port, options)
    said = scu(peer_program("storescu"), node.receiver.tls_port, options, file)
    assert "Received Store Response (Success)" in said
    assert [path.stem for path in node.files] == [dataset.SOPInstanceUID]


@dataclass(frozen=True)
class Archive:
    """A node that holds a slice and answers over TLS; it calls back over TLS too."""

    running: Running
    held: Dataset
    options: list[str]
    """Of DCMTK's tools."""
    back_port: int
    """Of storescp, which takes what movescu asks for."""

    def wanted(self, into: Path | None = None) -> list[str]:
        """DCMTK's options for the study that is held, and where answers are written."""
        keys = (
            "-S",
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            f"StudyInstanceUID={self.held.StudyInstanceUID}",
        )
        return [*keys, *(["-od", str(into)] if into else [])]


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, hospital: Hospital, peer_program: Find
) -> Iterator[Archive]:
    back_port = free_port()
    config = Config.model_validate(
        {
            "tls": {
                "port": 2762, "certificate": hospital.node.certificate, "key": hospital.node.key,
                "ca": hospital.authority.ca,
            },
            "peers": [
                {
                    "name": "workstation", "ae_title": MODALITY_AE,
                    "certificate_name": "nm1.hospital.example", "may": ["store", "find", "move", "get"],
                },
                {
                    "name": "storescp", "ae_title": "STORESCP", "host": "127.0.0.1", "port": back_port,
                    "tls": True, "may": [],
                },
            ],
        }
    )  # fmt: skip
    folder, held = tmp_path_factory.mktemp("archive"), ct_slice(StudyDate="20260102")

    def services(ledger: Ledger) -> Sequence[Service]:
        return (
            FindService(ledger, NODE_AE, 100),
            MoveService(ledger, folder, config.query, config.peers, NODE_AE),
            GetService(ledger, folder, config.query),
        )

    with running_node(folder, peers=tuple(config.peers), tls=config.tls, more=services) as running:
        options, file = over_tls(hospital.modality, hospital.authority.ca), folder / "slice.dcm"
        small_file(held, file)
        assert scu(peer_program("storescu"), running.receiver.tls_port, options, file), "it is stored"
        running.intake.flush(1.0)
        yield Archive(running, held, options, back_port)


@contextmanager
def tunnel(port: int | None, hospital: Hospital) -> Iterator[int]:
    """As stunnel, for tools of DCMTK that have no TLS: the port of one connection that goes on over it."""
    context = ssl.create_default_context(cafile=hospital.authority.ca)
    context.load_cert_chain(hospital.modality.certificate, hospital.modality.key)

    def carry(server: socket.socket) -> None:
        plain, _ = server.accept()
        connection = socket.create_connection(("127.0.0.1", port or 0), 30)
        with plain, context.wrap_socket(connection, server_hostname="localhost") as tls:
            while True:
                for one in [tls] if tls.pending() else select.select([plain, tls], [], [], 30)[0]:
                    piece = one.recv(1 << 16)
                    if not piece:
                        return
                    (plain if one is tls else tls).sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as server:
        carrying = threading.Thread(target=carry, args=(server,), daemon=True)
        carrying.start()
        yield int(server.getsockname()[1])
        carrying.join(30)
        assert not carrying.is_alive()


def test_dcmtk_queries_over_tls(tmp_path: Path, archive: Archive, peer_program: Find) -> None:
    options = [*archive.options, *archive.wanted(tmp_path), "-X", "-k", "StudyDate"]
    assert scu(peer_program("findscu"), archive.running.receiver.tls_port, options)
    (match,) = [pydicom.dcmread(path, force=True) for path in tmp_path.iterdir()]
    assert (match.StudyInstanceUID, match.StudyDate) == (archive.held.StudyInstanceUID, "20260102")


@pytest.mark.parametrize("program", ["movescu", "getscu"])
def test_dcmtk_retrieves_over_tls(
    tmp_path: Path, archive: Archive, hospital: Hospital, peer_program: Find, program: str
) -> None:
    """What C-MOVE sends goes over TLS too, to DCMTK's storescp."""
    back = [*over_tls(hospital.pacs, hospital.authority.ca), "-od", str(tmp_path), str(archive.back_port)]
    storescp = subprocess.Popen([peer_program("storescp"), "-aet", "STORESCP", *back])
    special = ["-aem", "STORESCP"] if program == "movescu" else ["-od", str(tmp_path)]
    try:
        until(lambda: listens(archive.back_port), "storescp listens")
        with tunnel(archive.running.receiver.tls_port, hospital) as port:
            assert scu(peer_program(program), port, [*archive.wanted(), *special])
    finally:
        storescp.terminate()
        storescp.wait(60)
    (came,) = [pydicom.dcmread(path, force=True) for path in tmp_path.iterdir()]
    assert came.SOPInstanceUID == archive.held.SOPInstanceUID
    assert came.PixelData == archive.held.PixelData


def test_a_request_to_shut_down_is_refused_and_shuts_nothing_down(
    node: Running, peer_program: Find, caplog: pytest.LogCaptureFixture
) -> None:
    """DCMTK's termscu: its private Shutdown SOP Class stops DCMTK's own servers."""
    caplog.set_level(logging.INFO, "dicomnode")
    scu(peer_program("termscu"), node.port, [], calling="PLAIN")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("dicomnode")]

    until(said, "the log says so")
    (line,) = said()
    # PS3.5 9: a private SOP class has no name but its UID.
    assert line.startswith(
        "'PLAIN' at 127.0.0.1 asked for what the node does not offer: 1.2.276.0.7230010.3.4."
    )
    assert scu(peer_program("echoscu"), node.port, [], calling="PLAIN"), "the node lives on"


def test_dcmtk_is_kept_out_without_the_right_certificate(
    node: Running, hospital: Hospital, peer_program: Find, caplog: pytest.LogCaptureFixture
) -> None:
    """None, another authority's, another peer's, and none because of the plain port."""
    program, ca, port = peer_program("echoscu"), hospital.authority.ca, node.receiver.tls_port
    assert not scu(program, port, [])
    assert not scu(program, port, ["+tla", "+cf", str(ca)])
    assert not scu(program, port, [*over_tls(hospital.stranger, ca)])
    assert not scu(program, port, [*over_tls(hospital.pacs, ca)])
    assert not scu(program, node.port, [])
    assert not scu(program, node.port, over_tls(hospital.modality, ca))
    assert scu(program, port, over_tls(hospital.modality, ca))
    reasons = (
        "no TLS connection", "does not bear the name 'nm1.hospital.example'", "it may call over TLS only",
        "it speaks TLS on the port without TLS",
    )  # fmt: skip
    for reason in reasons:
        until(lambda reason=reason: reason in caplog.text, f"the log says {reason!r}")


def test_dcmtk_gives_user_and_password(tmp_path: Path, node: Running, peer_program: Find) -> None:
    file, program = tmp_path / "slice.dcm", peer_program("storescu")
    small_file(ct_slice(), file)
    assert not scu(program, node.port, [], file, calling="USER")
    assert not scu(program, node.port, ["-usr", "nm1"], file, calling="USER")
    assert not scu(program, node.port, ["-usr", "nm1", "-pwd", "wrong"], file, calling="USER")
    assert scu(program, node.port, ["-usr", "nm1", "-pwd", PASSWORD, "-rsp"], file, calling="USER")


@pytest.mark.parametrize(
    ("option", "agreed"), [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2"), ("-tls1_1", ""), ("-tls1", "")]
)
def test_openssl_agrees_on_nothing_older_than_1_2(
    node: Running, hospital: Hospital, peer_program: Find, option: str, agreed: str
) -> None:
    command = [
        peer_program("openssl"), "s_client", "-connect", f"127.0.0.1:{node.receiver.tls_port}", option,
        "-CAfile", str(hospital.authority.ca), "-cert", str(hospital.modality.certificate),
        "-key", str(hospital.modality.key), "-cipher", "ALL:@SECLEVEL=0", "-brief", "-verify_return_error",
    ]  # fmt: skip
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert (f"Protocol version: {agreed}" in said) if agreed else ("Protocol version" not in said)


def test_we_call_dcmtk_over_tls(tmp_path: Path, hospital: Hospital, peer_program: Find) -> None:
    """It wants our certificate, we want its; another name than the entry's is not spoken with."""
    port = free_port()
    options = over_tls(hospital.pacs, hospital.authority.ca)
    process = subprocess.Popen([peer_program("storescp"), *options, "-od", str(tmp_path), str(port)])
    tls = {
        "ca": hospital.authority.ca, "certificate": hospital.node.certificate, "key": hospital.node.key,
    }  # fmt: skip
    entry = {"name": "PACS", "ae_title": "ANY", "host": "127.0.0.1", "port": port, "tls": True, "may": ()}
    try:
        until(lambda: listens(port), "storescp listens")
        for changes in ({}, {"host": "localhost"}, {"certificate_sha256": hospital.pacs.sha256}):
            echo(Config.model_validate({"tls": tls, "peers": [{**entry, **changes}]}).peers[0], NODE_AE, 60)
        other_name = Config.model_validate({"tls": tls, "peers": [{**entry, "certificate_name": "archive"}]})
        with pytest.raises(Transient, match="does not bear the name"):
            echo(other_name.peers[0], NODE_AE, 60)
        nameless = Config.model_validate({"tls": {"ca": hospital.authority.ca}, "peers": [entry]})
        with pytest.raises(Transient, match="granted no association"):
            echo(nameless.peers[0], NODE_AE, 60)
    finally:
        process.terminate()
        process.wait(60)


def test_a_study_comes_and_its_results_go_over_tls(
    tmp_path: Path, hospital: Hospital, peer_program: Find
) -> None:
    """storescu to the node, the node to Orthanc, which commits; certificates of both sides, then new ones."""
    certificate, key, tls_port = tmp_path / "node.crt", tmp_path / "node.key", free_port()
    ours = {"AET": NODE_AE, "Host": "127.0.0.1", "Port": tls_port, "AllowStorageCommitment": True}
    orthanc = Orthanc(
        peer_program("Orthanc"),
        tmp_path / "pacs",
        modalities={"node": {**ours, "UseDicomTls": True}},
        more={
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(hospital.pacs.certificate),
            "DicomTlsPrivateKey": str(hospital.pacs.key),
            "DicomTlsTrustedCertificates": str(hospital.authority.ca),
            "DicomTlsRemoteCertificateRequired": True,
            "DicomTlsMinimumProtocolVersion": 0,
        },
    )
    certificate.write_bytes(hospital.node.certificate.read_bytes())
    key.write_bytes(hospital.node.key.read_bytes())
    key.chmod(0o600)
    section = f'[tls]\nport = {tls_port}\ncertificate = "{certificate}"\nkey = "{key}"\n'
    section += f'ca = "{hospital.authority.ca}"\n[commitment]\nstay_s = 1.0'
    pacs = "tls = true\nmay = []\ncommitment = true"
    node = Node(tmp_path / "node", orthanc.port, extra=section, pacs_extra=pacs)
    orthanc.start()
    try:
        node.start()
        assert "127.0.0.1:" in node.run("check").stdout
        files = small_study.write(tmp_path / "study", "over TLS")
        options = over_tls(hospital.modality, hospital.authority.ca)
        sent = push(peer_program("storescu"), tls_port, files.all, *options)
        assert sent == list(files.all)
        node.reaches(files.study.study_instance_uid, State.DONE)
        node.says("PACS is asked to commit to 3 object(s)")
        fresh = hospital.authority.issue("fresh node", "localhost")
        certificate.write_bytes(fresh.certificate.read_bytes())
        key.write_bytes(fresh.key.read_bytes())
        assert fingerprint(peer_program("openssl"), tls_port, hospital) == fresh.sha256
        assert scu(peer_program("echoscu"), tls_port, options)
        assert node.stop() == 0
        assert "the files of [tls] have changed and are in use" in node.log()
        assert "Traceback" not in node.log()
    finally:
        node.stop()
        orthanc.stop()


def fingerprint(openssl: str, port: int, hospital: Hospital) -> str:
    """Of the certificate that is shown on a port now."""
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(hospital.authority.ca)]
    shown = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    command = [openssl, "x509", "-noout", "-fingerprint", "-sha256"]
    return subprocess.run(
        command, input=shown.stdout, capture_output=True, text=True, timeout=60, check=True
    ).stdout.partition("=")[2].strip()  # fmt: skip
