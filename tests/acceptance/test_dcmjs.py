"""A third DICOM implementation as client of the running node: dcmjs-dimse, over plain TCP and over TLS.

It shares no code with DCMTK or pynetdicom. npm installs it, as package-lock.json has it, into a cache of
the user's; where neither the cache nor a registry has it, these tests are skipped with the reason. Without
node or npm they are skipped, or fail under REQUIRE_PEERS=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicomnode.network.identity import hash_password
from tests.acceptance.harness import NODE_AE, Node, Orthanc, free_port, listens, until
from tests.certificates import Authority
from tests.dicomnode.modality import ct_slice

pytestmark = pytest.mark.peers
Find = Callable[[str], str]

HERE = Path(__file__).parent / "dcmjs"
CLIENT_AE, PROBE_AE, USER_AE, STORE_AE = "DCMJS", "PROBE", "USER", "ARCHIVE"
CLIENT_NAME, PASSWORD = "dcmjs.hospital.example", "correct horse"
PENDING, SUCCESS = 0xFF00, 0x0000
WAYS = ("plain", "tls")


# ── the client ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Client:
    """dcmjs/scu.js."""

    node: str
    modules: Path
    port: int
    tls: dict[str, str] = field(default_factory=dict)
    calling: str = CLIENT_AE

    def __call__(self, what: str, **wanted: object) -> dict[str, Any]:
        """One association. returns: what came of it."""
        peer = {"host": "127.0.0.1", "port": self.port, "calling": self.calling, "called": NODE_AE}
        request = {"do": what, **peer, "tls": self.tls or None, **wanted}
        done = subprocess.run(
            [self.node, str(HERE / "scu.js"), json.dumps(request)],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "NODE_PATH": str(self.modules)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="session")
def modules(peer_program: Find) -> Path:
    """The folder node_modules with the client in it."""
    npm, _ = peer_program("npm"), peer_program("node")
    version = json.loads((HERE / "package.json").read_text())["dependencies"]["dcmjs-dimse"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dicomnode-tests"
    there = cache / f"dcmjs-dimse-{version}"
    if not there.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            problem = _install(npm, Path(folder))
            if problem:
                pytest.skip(f"npm could not install dcmjs-dimse {version}: {problem}")
            # Another process of these tests may have been as quick.
            if not there.exists():
                shutil.copytree(folder, there.with_suffix(".new"), dirs_exist_ok=True)
                there.with_suffix(".new").rename(there)
    return there / "node_modules"


def _install(npm: str, folder: Path) -> str:
    """returns: why not; empty when it is there."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "no answer from the registry within 120 s"
    # Its first lines name what went wrong and where; then comes advice.
    return "" if done.returncode == 0 else " ".join(done.stderr.splitlines()[:5])


# ── the node and an archive that it may send to ──────────────────────────────────────────────────


@dataclass(frozen=True)
class Hospital:
    """Who trusts whom."""

    ca: Path
    mine: dict[str, str]
    strangers: dict[str, str]
    tls_port: int
    archive_port: int
    node: Node


@pytest.fixture(scope="module")
def hospital(modules: Path, pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    ours = Authority(tmp_path_factory.mktemp("ca"))
    theirs = Authority(tmp_path_factory.mktemp("other"), "Other CA")
    server, client = ours.issue("node", "localhost"), ours.issue("dcmjs", CLIENT_NAME, bits=2048)
    stranger = theirs.issue("dcmjs", CLIENT_NAME)
    tls_port, archive_port = free_port(), free_port()
    everything = 'may = ["echo", "store", "find", "move", "get"]'
    extra = f"""
[tls]
port = {tls_port}
certificate = "{server.certificate}"
key = "{server.key}"
ca = "{ours.ca}"
[[peers]]
name = "dcmjs"
ae_title = "{CLIENT_AE}"
{everything}
[[peers]]
name = "probe"
ae_title = "{PROBE_AE}"
may = ["echo"]
[[peers]]
name = "user"
ae_title = "{USER_AE}"
user = "nm1"
password_hash = "{hash_password(PASSWORD)}"
[[peers]]
name = "archive"
ae_title = "{STORE_AE}"
host = "127.0.0.1"
port = {archive_port}
may = []
"""
    node = Node(tmp_path_factory.mktemp("node"), pacs.port, extra)
    node.start()
    mine = {"ca": str(ours.ca), "certificate": str(client.certificate), "key": str(client.key)}
    foreign = {"ca": str(ours.ca), "certificate": str(stranger.certificate), "key": str(stranger.key)}
    yield Hospital(ours.ca, mine, foreign, tls_port, archive_port, node)
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def over(way: str, hospital: Hospital, modules: Path, calling: str = CLIENT_AE) -> Client:
    program = shutil.which("node")
    assert program is not None
    if way == "plain":
        return Client(program, modules, hospital.node.port, calling=calling)
    return Client(program, modules, hospital.tls_port, hospital.mine, calling)


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, hospital: Hospital, modules: Path) -> Client:
    return over(request.param, hospital, modules)


@dataclass(frozen=True)
class Sent:
    """A study that the client has stored in the node. files: by SOP Instance UID."""

    study: str
    series: str
    patient: str
    files: dict[str, Path]


@pytest.fixture
def sent(client: Client, tmp_path: Path) -> Sent:
    """A CT of three slices, which the client sends and the node acknowledges."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    patient = f"JS{study[-8:]}"
    files = {}
    for number in range(3):
        ds = ct_slice(
            StudyInstanceUID=study, SeriesInstanceUID=series, FrameOfReferenceUID=frame, PatientID=patient,
            InstanceNumber=number + 1, ImagePositionPatient=[0, 0, 2 * number],
        )  # fmt: skip
        files[str(ds.SOPInstanceUID)] = written(ds, tmp_path / f"{number}.dcm")
    told = client("store", files=[str(path) for path in files.values()])
    assert [answer["status"] for answer in told["responses"]] == [SUCCESS] * 3, told
    assert told["released"]
    assert told["errors"] == []
    return Sent(study, series, patient, files)


def written(ds: Dataset, path: Path) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def indexed(client: Client, sent: Sent, objects: int = 3) -> dict[str, Any]:
    """The study as the node tells of it, once its ledger has heard of all objects."""

    def found() -> dict[str, Any] | None:
        keys = {"StudyInstanceUID": sent.study, "PatientID": "", "NumberOfStudyRelatedInstances": ""}
        matches = client("find", level="Study", keys=keys)["matches"]
        return matches[0] if matches and matches[0]["NumberOfStudyRelatedInstances"] == objects else None

    match = until(found, "the study is found with all its objects", pause_s=0.1)
    assert isinstance(match, dict)
    return match


def same_pixels(sent: Sent, came: list[Path]) -> None:
    """Whatever another implementation has written: the objects that were sent, and no other."""
    objects = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, came)}
    assert objects.keys() == sent.files.keys()
    for uid, path in sent.files.items():
        original = pydicom.dcmread(path)
        assert objects[uid].PixelData == original.PixelData
        assert objects[uid].ImagePositionPatient == original.ImagePositionPatient
        assert objects[uid].PatientID == original.PatientID


# ── what it does ─────────────────────────────────────────────────────────────────────────────────


def test_it_echoes(client: Client) -> None:
    told = client("echo")
    assert told["established"]
    assert [answer["status"] for answer in told["responses"]] == [SUCCESS]
    assert told["released"]
    assert told["errors"] == []


def test_what_it_stores_lies_in_the_spool(hospital: Hospital, sent: Sent) -> None:
    spooled = list((hospital.node.data_dir / "spool" / sent.study).glob("*.dcm"))
    same_pixels(sent, spooled)


def test_it_finds_what_it_has_stored_at_each_level(client: Client, sent: Sent) -> None:
    study = indexed(client, sent)
    assert study["PatientID"] == sent.patient
    keys = {"StudyInstanceUID": sent.study, "SeriesInstanceUID": "", "Modality": ""}
    series = client("find", level="Series", keys=keys)
    assert [match["SeriesInstanceUID"] for match in series["matches"]] == [sent.series]
    assert series["matches"][0]["Modality"] == "CT"
    assert [answer["status"] for answer in series["responses"]] == [PENDING, SUCCESS]
    keys = {"StudyInstanceUID": sent.study, "SeriesInstanceUID": sent.series, "SOPInstanceUID": ""}
    images = client("find", level="Image", keys=keys)
    assert {match["SOPInstanceUID"] for match in images["matches"]} == sent.files.keys()
    nobody = client("find", level="Study", keys={"PatientID": "NOBODY", "StudyInstanceUID": ""})
    assert nobody["matches"] == []
    assert [answer["status"] for answer in nobody["responses"]] == [SUCCESS]


def test_it_gets_a_study_and_a_single_object(client: Client, sent: Sent, tmp_path: Path) -> None:
    """C-GET: role selection, and C-STORE requests of the node's over the client's association."""
    indexed(client, sent)
    into = tmp_path / "study"
    into.mkdir()
    told = client("get", level="Study", uids=[sent.study], into=str(into))
    assert told["responses"][-1] == {"status": SUCCESS, "completed": 3, "failed": 0}
    same_pixels(sent, list(into.iterdir()))
    one, only = next(iter(sent.files)), tmp_path / "one"
    only.mkdir()
    told = client("get", level="Image", uids=[sent.study, sent.series, one], into=str(only))
    assert told["stored"] == [one]


def test_it_moves_a_study_to_a_third_party(
    client: Client, hospital: Hospital, sent: Sent, peer_program: Find, tmp_path: Path
) -> None:
    indexed(client, sent)
    into = tmp_path / "archive"
    into.mkdir()
    command = [peer_program("storescp"), "-aet", STORE_AE, "-od", str(into), str(hospital.archive_port)]
    archive = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(hospital.archive_port), "storescp listens")
        told = client("move", level="Study", uids=[sent.study], to=STORE_AE)
    finally:
        archive.terminate()
        archive.wait(30)
    assert told["responses"][-1] == {"status": SUCCESS, "completed": 3, "failed": 0}
    same_pixels(sent, list(into.iterdir()))


# ── what it may not do ───────────────────────────────────────────────────────────────────────────


def test_a_move_to_nobody_is_refused(client: Client, sent: Sent) -> None:
    indexed(client, sent)
    told = client("move", level="Study", uids=[sent.study], to="NOBODY")
    assert told["responses"][-1]["status"] == 0xA801  # PS3.4 table C.4-2: Move Destination unknown


def test_a_peer_that_may_only_echo_finds_nothing(hospital: Hospital, modules: Path) -> None:
    probe = over("plain", hospital, modules, PROBE_AE)
    assert probe("echo")["responses"] == [{"status": SUCCESS}]
    told = probe("find", level="Study", keys={"StudyInstanceUID": ""})
    assert told["matches"] == []
    assert SUCCESS not in [answer["status"] for answer in told["responses"]]
    hospital.node.says(f"{PROBE_AE!r} at 127.0.0.1 asked to find")


def test_an_unknown_client_is_rejected(hospital: Hospital, modules: Path) -> None:
    told = over("plain", hospital, modules, "NOBODY")("echo")
    assert not told["established"]
    assert "rejected" in " ".join(told["errors"])


def test_only_the_right_certificate_gets_in(hospital: Hospital, modules: Path) -> None:
    client = over("tls", hospital, modules)
    for wrong in ({"ca": str(hospital.ca)}, hospital.strangers):
        told = client("echo", tls=wrong)
        assert not told["established"]
        assert told["responses"] == []
    assert client("echo")["established"]


def test_a_user_needs_the_password(hospital: Hospital, modules: Path) -> None:
    """User identity with username and passcode (PS3.7 D.3.3.7)."""
    client = over("tls", hospital, modules, USER_AE)
    assert client("echo", user={"name": "nm1", "password": PASSWORD})["responses"] == [{"status": SUCCESS}]
    for user in ({"name": "nm1", "password": "wrong"}, None):
        assert not client("echo", user=user)["established"]
