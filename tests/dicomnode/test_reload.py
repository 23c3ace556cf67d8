"""SIGHUP: what of a changed config.toml a running node takes up, and what it says of the rest."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicomnode.audit.trail import Audit
from dicomnode.config import Audit as AuditSettings
from dicomnode.config import Config, Peer, Receive, parse
from dicomnode.daemon import Daemon
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import ConfigurationError, Transient
from dicomnode.network.send import Verdict
from dicomnode.reload import reloaded
from dicomnode.states import State
from tests import small_study
from tests.dicomnode.modality import Running, association, ct_slice, encoded, running_node
from tests.dicomnode.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    COMMAND,
    DATA,
    LAST,
    RawPeer,
    pdu,
    pdv,
    raw_peer,
    store_rq,
)
from tests.dicomnode.test_daemon import Clock, HereAndNow, push, run_to_the_end
from tests.ports import free_port

BASE: dict[str, Any] = {
    "peers": [{"name": "PACS", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}],
    "deliver": {"to": ["PACS"]},
}


def test_what_was_settled_at_the_start_waits_and_the_rest_is_taken_up() -> None:
    old = parse(BASE)
    new = parse(
        {
            **BASE,
            "node": {"port": 11113, "log_level": "WARNING"},
            "receive": {"max_pdu": 65536, "max_associations": 7},
            "deliver": {"to": ["PACS"], "timeout_s": 5.0},
            "dose": {"timeout_s": 99.0, "memory_limit_gb": 4.0},
        }
    )
    change = reloaded(old, new)
    assert set(change.taken_up) == {
        "[node] log_level", "[receive] max_associations", "[deliver] timeout_s", "[dose] timeout_s",
    }  # fmt: skip
    assert set(change.at_next_start) == {"[node] port", "[receive] max_pdu", "[dose] memory_limit_gb"}
    held = change.config
    assert (held.node.port, held.receive.max_pdu, held.dose.memory_limit_gb) == (11112, 131072, None)
    assert (held.node.log_level, held.receive.max_associations, held.dose.timeout_s) == ("WARNING", 7, 99.0)


def test_the_same_file_changes_nothing_and_results_keep_their_configuration() -> None:
    change = reloaded(parse(BASE), parse(BASE))
    assert (change.taken_up, change.at_next_start) == ((), ())
    assert change.config.sha256 == parse(BASE).sha256


def test_settings_that_make_no_sense_without_a_restart_are_refused_whole(tmp_path: Path) -> None:
    files = {name: str(tmp_path / name) for name in ("certificate", "key", "ca")}
    peer = {"name": "camera", "ae_title": "CAMERA", "require_tls": True}
    new = parse({"peers": [peer], "tls": {"port": 2762, **files}})
    with pytest.raises(ConfigurationError, match=r"Restart the node: it holds with .*\[tls\] port"):
        reloaded(parse({}), new)


def test_every_name_of_the_table_is_a_setting() -> None:
    from dicomnode.reload import AT_START, LIVE_ALL_THE_SAME

    tables = Config().model_dump()
    for name in (*AT_START, *LIVE_ALL_THE_SAME):
        table, _, setting = name.partition(".")
        assert table in tables
        assert not setting or setting in tables[table], name


# ── associations that are open ───────────────────────────────────────────────────────────────────


SCANNER = Peer(name="scanner", ae_title="SCANNER")
CAMERA = Peer(name="camera", ae_title="CAMERA")


def configure(node: Running, *peers: Peer, **receive: Any) -> None:
    storing = [service for service in node.receiver._services if service.right == "store"]
    node.receiver.configure(peers, Receive(min_free_gb=0, **receive), storing)


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ((CAMERA,), "[[peers]] has no entry with its AE title any more"),
        (
            (CAMERA, SCANNER.model_copy(update={"may": ("echo",)})),
            "[[peers]] 'scanner' may not store any more",
        ),
    ],
    ids=["entry removed", "right taken"],
)
def test_who_has_lost_its_entry_or_a_right_stores_nothing_over_an_association_of_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: tuple[Peer, ...], reason: str
) -> None:
    told = tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=told), "DICOMNODE")
    with running_node(tmp_path, peers=(SCANNER, CAMERA), audit=audit) as node, raw_peer(node.port) as scanner:
        assert scanner.associate() == ASSOCIATE_AC
        instance, data = slice_of("1.2.3.1")
        assert scanner.store(data, instance) == 0
        instance, data = slice_of("1.2.3.2")
        begin(scanner, instance, data)
        with caplog.at_level(logging.WARNING, "dicomnode"):
            configure(node, *left)
        assert scanner.answer()[0] == ABORT
        with contextlib.suppress(ConnectionError):  # it may be closed already
            scanner.send_message(1, store_rq(instance), data)
        assert f"association of 'SCANNER' at 127.0.0.1 aborted: {reason}" in caplog.text
    # Whatever it still sent has been read or thrown away by now.
    assert [path.stem for path in node.files] == ["1.2.3.1"]
    audit.stopped()
    assert f"association aborted: {reason}" in told.read_text()


@pytest.mark.parametrize(
    "entry",
    [
        CAMERA,
        CAMERA.model_copy(update={"name": "gantry", "host": "192.0.2.7"}),
        CAMERA.model_copy(update={"may": ("find", "store", "echo")}),
    ],
    ids=["unchanged", "renamed", "with more rights"],
)
def test_an_object_of_another_peer_that_is_on_its_way_is_received(tmp_path: Path, entry: Peer) -> None:
    with running_node(tmp_path, peers=(SCANNER, CAMERA)) as node, raw_peer(node.port) as camera:
        assert camera.associate(calling="CAMERA") == ASSOCIATE_AC
        with association(node.port) as scanner:
            assert scanner.is_established
            instance, data = slice_of("1.2.3.1")
            begin(camera, instance, data)
            configure(node, entry)
            camera.send(pdu(DATA, pdv(1, LAST, data[100:])))
            assert camera.status() == 0
        assert [path.stem for path in node.files] == ["1.2.3.1"]
        assert camera.store(data, instance) == 0


def test_a_right_that_a_peer_got_and_lost_after_it_called_costs_it_nothing(tmp_path: Path) -> None:
    """The association was never given it."""
    more = CAMERA.model_copy(update={"may": ("echo", "store", "find")})
    with running_node(tmp_path, peers=(CAMERA,)) as node, raw_peer(node.port) as camera:
        assert camera.associate(calling="CAMERA") == ASSOCIATE_AC
        for entry in (more, CAMERA):
            configure(node, entry)
        instance, data = slice_of("1.2.3.1")
        assert camera.store(data, instance) == 0


def test_an_association_that_is_aborted_gives_its_place_back(tmp_path: Path) -> None:
    with (
        running_node(tmp_path, peers=(SCANNER, CAMERA), max_associations=1) as node,
        association(node.port) as scanner,
    ):
        assert scanner.is_established
        for allowed in (False, True):
            with association(node.port, calling="CAMERA") as camera:
                assert camera.is_established is allowed
            configure(node, CAMERA, max_associations=1)


def begin(peer: RawPeer, instance: str, data: bytes) -> None:
    """Send the beginning of an object."""
    peer.send(pdu(DATA, pdv(1, COMMAND | LAST, store_rq(instance)) + pdv(1, 0, data[:100])))


def slice_of(uid: str) -> tuple[str, bytes]:
    return uid, encoded(ct_slice(SOPInstanceUID=uid))


# ── a node that runs ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StandinPacs]:
    with StandinPacs(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def config_of(tmp_path: Path, pacs: StandinPacs) -> Callable[..., Config]:
    port = free_port()

    def make(camera: dict[str, Any] | None, **tables: Any) -> Config:
        peers = [{"name": "PACS", "ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port}]
        if camera is not None:
            peers.append({"name": "camera", "ae_title": "CAMERA", **camera})
        node = {"data_dir": str(tmp_path / "data"), "bind": "127.0.0.1", "port": port}
        return parse(
            {
                "node": node,
                "receive": {"min_free_gb": 0.1},
                "peers": peers,
                "dose": {"device": "cpu"},
                **tables,
            }
        )

    return make


def test_a_peer_that_is_added_is_served_and_one_that_is_removed_is_not(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    daemon = Daemon(config_of(None), Clock(), executor=HereAndNow())
    daemon.start()
    try:
        allowed = []
        for camera in (None, {}, {"may": ["echo"]}, {"may": ["store"]}, None):
            daemon.reload(config_of(camera))
            answers: list[Verdict] = []
            with contextlib.suppress(Transient):  # whom we do not know is rejected
                answers = push(daemon.config, files.ct[:1])
            allowed.append(answers == [Verdict.STORED])
        assert allowed == [False, True, False, True, False]
    finally:
        daemon.stop()


def test_a_destination_that_is_added_gets_what_is_computed_from_then_on(
    config_of: Callable[..., Config], pacs: StandinPacs, tmp_path: Path
) -> None:
    clock = Clock()
    daemon = Daemon(config_of({}), clock, executor=HereAndNow())
    daemon.receiver.start()
    try:
        change = daemon.reload(config_of({}, deliver={"to": ["PACS"]}, assemble={"quiet_s": 5.0}))
        assert set(change.taken_up) == {"[deliver] to", "[assemble] quiet_s"}
        run_to_the_end(daemon, clock, small_study.write(tmp_path / "study"))
        assert daemon.ledger.case(1).state is State.DONE
        assert len(pacs.received) == 3
    finally:
        daemon.stop()


def test_a_job_that_runs_goes_on(config_of: Callable[..., Config], tmp_path: Path) -> None:
    from tests.dicomnode.test_compute import Bench

    clock, bench = Clock(), Bench()
    daemon = Daemon(config_of({}), clock, executor=bench)
    daemon.receiver.start()
    try:
        push(daemon.config, small_study.write(tmp_path / "study").all)
        daemon.tick()
        clock.now += daemon.config.assemble.quiet_s
        daemon.tick()
        assert daemon.ledger.case(1).state is State.COMPUTING
        daemon.reload(config_of({}, encode={"bits": 16}))
        daemon.tick()
        assert len(bench.jobs) == 1
        bench.answer("RTDOSE")
        daemon.tick()
        assert daemon.ledger.runs(1)
    finally:
        daemon.stop()
