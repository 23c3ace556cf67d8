"""The stages together in one process: a study in over C-STORE, results at a stand-in PACS; no sleeps."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pydicom
import pytest
from rich.console import Console

from dicomnode.commands.folder import compute_folder
from dicomnode.config import Config, Peer, parse, with_engines
from dicomnode.daemon import Daemon, guarded, next_signal, prepare_data_dir
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import ConfigurationError
from dicomnode.network.send import Outgoing, Verdict, send
from dicomnode.results.summary_report import read_table
from dicomnode.states import Event, State
from dicomnode.virtual_study import StudyFiles
from pipeline.dose_rate import DoseRate, DoseRequest, Progress, RegionUncertainty
from pipeline.dvk import dvk_dose_rate
from pipeline.engines import ENGINES
from tests import small_study
from tests.ports import free_port


class HereAndNow(Executor):
    """The job in this process, while it is submitted: what a child would do, without waiting for one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  it is the future's
            future.set_exception(error)
        return future


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[StandinPacs]:
    with StandinPacs(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def config(tmp_path: Path, pacs: StandinPacs) -> Config:
    return parse(
        {
            "node": {"data_dir": str(tmp_path / "data"), "bind": "127.0.0.1", "port": free_port()},
            "receive": {"min_free_gb": 0.1},
            "peers": [
                {"name": "camera", "ae_title": "CAMERA"},
                {"name": "PACS", "ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port},
            ],
            "deliver": {"to": ["PACS"]},
            "dose": {"device": "cpu"},
        }
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daemon(config: Config, clock: Clock) -> Iterator[Daemon]:
    """Listens, but ticks only when the test says so."""
    daemon = Daemon(config, clock, executor=HereAndNow())
    daemon.receiver.start()
    yield daemon
    daemon.stop()


def push(config: Config, files: list[Path]) -> list[Verdict]:
    answers: list[Verdict] = []
    node = Peer(name="node", ae_title=config.node.ae_title, host="127.0.0.1", port=config.node.port)
    send(
        node,
        [outgoing(path) for path in files],
        "CAMERA",
        30.0,
        lambda _, answer: answers.append(answer.verdict),
    )
    return answers


def outgoing(path: Path) -> Outgoing:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return Outgoing(path, ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID)


def by_modality(pacs: StandinPacs) -> dict[str, pydicom.FileDataset]:
    return {ds.Modality: ds for ds in map(pydicom.dcmread, pacs.files().values())}


def run_to_the_end(daemon: Daemon, clock: Clock, files: StudyFiles) -> None:
    assert push(daemon.config, files.all) == [Verdict.STORED] * len(files.all)
    daemon.tick()
    clock.now += daemon.config.assemble.quiet_s
    # Assembled, claimed; computed, encoded, sent.
    daemon.tick()
    daemon.tick()


def test_a_study_goes_in_and_its_results_come_out(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    run_to_the_end(daemon, clock, files)
    case = daemon.ledger.cases()[0]
    assert case.state is State.DONE
    events = [step.event for step in daemon.ledger.story(case.id)]
    assert events == [Event.INSTANCE, Event.COMPLETE, Event.CLAIM, Event.ENCODE, Event.SEND, Event.DELIVER]
    assert set(by_modality(pacs)) == {"SEG", "RTDOSE", "SR"}


def test_a_folder_gives_the_numbers_that_the_node_gives(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    run_to_the_end(daemon, clock, files)
    sent = by_modality(pacs)
    outcome = compute_folder(files.folder, tmp_path / "out", daemon.config, Console(quiet=True))
    computed = {r.kind: pydicom.dcmread(r.path) for r in outcome.results}
    assert computed["RTDOSE"].PixelData == sent["RTDOSE"].PixelData
    assert computed["RTDOSE"].DoseGridScaling == sent["RTDOSE"].DoseGridScaling
    assert "DVK" in computed["RTDOSE"].SeriesDescription
    assert read_table(computed["SR"]) == read_table(sent["SR"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """For engine mc: DVK's map, known to 3 % in every voxel."""

    def answer(request: DoseRequest, progress: Progress) -> DoseRate:
        map_ = dvk_dose_rate(request, progress)
        return replace(
            map_,
            engine="mc",
            uncertainty=map_.volume.with_array(map_.volume.array * np.float32(0.03)),
            regions=tuple(RegionUncertainty(name, 0.004, 0.03) for name in request.regions),
            parameters=("electron_decays=1000", "seed=1"),
            notes=("the time limit of 1200 s ended the Monte Carlo",),
        )

    monkeypatch.setitem(ENGINES, "mc", answer)


@pytest.mark.usefixtures("stand_in")
def test_a_monte_carlo_is_delivered_with_its_uncertainty(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    """RTDOSE, its uncertainty as a Parametric Map, and per ROI in the SR; `show` tells it too."""
    files = small_study.write(tmp_path / "study")
    config = with_engines(daemon.config, ["dvk", "mc"])
    config = config.model_copy(
        update={"montecarlo": config.montecarlo.model_copy(update={"uncertainty_map": True})}
    )
    outcome = compute_folder(files.folder, tmp_path / "out", config, Console(quiet=True))
    results = {(r.kind, r.engine): pydicom.dcmread(r.path) for r in outcome.results}
    assert list(results) == [
        ("SEG", ""),
        ("RTDOSE", "dvk"),
        ("RTDOSE", "mc"),
        ("UNCERTAINTY", "mc"),
        ("SR", ""),
    ]
    assert "u=3 %" in results["RTDOSE", "mc"].DoseComment
    assert "electron_decays=1000" in results["RTDOSE", "mc"].ImageComments
    assert "the CT; 0 below 0.1 g/cm3" in results["RTDOSE", "mc"].ImageComments
    rows = {(row.roi, row.algorithm[:2]): row for row in read_table(results["SR", ""])}
    assert rows["hot cube", "Mo"].voxel_uncertainty == pytest.approx(3.0)
    assert rows["hot cube", "Mo"].mean_uncertainty == pytest.approx(0.4)
    assert rows["hot cube", "Do"].voxel_uncertainty is None
    comments = [item.TextValue for item in walk(results["SR", ""]) if item.ValueType == "TEXT"]
    assert "MC: the time limit of 1200 s ended the Monte Carlo" in comments
    details = json.loads(outcome.inputs_free_run.details_json)
    assert details["uncertainty"] == {"mc": ["hot cube: mean 0.4 %, voxels 3 % on average"]}


@pytest.mark.usefixtures("stand_in")
def test_numbers_that_chance_made_have_uids_of_their_own(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same inputs and settings again: other numbers never come under a UID that PACS holds."""
    files = small_study.write(tmp_path / "study")
    config = with_engines(daemon.config, ["mc"])

    def uids() -> set[str]:
        outcome = compute_folder(files.folder, tmp_path / "out", config, Console(quiet=True))
        return {r.sop_instance_uid for r in outcome.results}

    first = uids()
    assert uids() == first
    answer = ENGINES["mc"]

    def other(request: DoseRequest, progress: Progress) -> DoseRate:
        map_ = answer(request, progress)
        return replace(map_, volume=map_.volume.with_array(map_.volume.array * np.float32(1.001)))

    monkeypatch.setitem(ENGINES, "mc", other)
    assert uids().isdisjoint(first)


def walk(root: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Every content item of a report."""
    for item in root.get("ContentSequence", []):
        yield item
        yield from walk(item)


def test_the_same_study_again_computes_nothing_and_sends_nothing(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    run_to_the_end(daemon, clock, files)
    run_to_the_end(daemon, clock, files)
    assert len(pacs.received) == 3
    assert len(daemon.ledger.runs(1)) == 1


def test_our_own_results_coming_back_start_no_case(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    run_to_the_end(daemon, clock, files)
    assert push(daemon.config, list(pacs.files().values())) == [Verdict.STORED] * 3
    clock.now += 1000
    daemon.tick()
    assert [case.state for case in daemon.ledger.cases()] == [State.DONE]
    assert len(daemon.ledger.instances(1)) == len(files.all)


def test_an_object_that_arrives_while_pacs_is_down_gives_a_new_result_after_the_old_one(
    daemon: Daemon, clock: Clock, pacs: StandinPacs, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study")
    pacs.stop()
    without_rois = StudyFiles(files.study, files.folder, ct=files.ct, nm=files.nm)
    run_to_the_end(daemon, clock, without_rois)
    assert daemon.ledger.case(1).state is State.SENDING
    assert files.rtstruct is not None
    push(daemon.config, [files.rtstruct])
    pacs.start()
    clock.now += 7200
    for _ in range(3):
        daemon.tick()
    assert daemon.ledger.case(1).state in (State.COLLECTING, State.READY, State.COMPUTING)
    for _ in range(3):
        clock.now += daemon.config.assemble.quiet_s
        daemon.tick()
    assert daemon.ledger.case(1).state is State.DONE
    first, second = daemon.ledger.runs(1)
    assert second.predecessor_id == first.id
    assert len(pacs.received) == 6


def test_what_was_acknowledged_survives_a_ledger_that_never_heard_of_it(
    config: Config, clock: Clock, tmp_path: Path
) -> None:
    """The process ends between the acknowledgement and the batch's commit."""
    files = small_study.write(tmp_path / "study")
    first = Daemon(config, clock, executor=HereAndNow())
    first.receiver.start()
    push(config, files.all)
    first.receiver.stop()
    assert first.ledger.cases() == []
    first.ledger.close()
    second = Daemon(config, clock, executor=HereAndNow())
    second.intake.recover(clock())
    assert len(second.ledger.instances(1)) == len(files.all)
    second.stop()


def test_a_start_and_a_stop_leave_no_thread_behind(config: Config, clock: Clock) -> None:
    before = set(threading.enumerate())
    daemon = Daemon(config, clock, executor=HereAndNow())
    assert daemon.start() == config.node.port
    daemon.stop()
    assert [t.name for t in set(threading.enumerate()) - before] == []


def test_a_data_dir_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"\[node\] data_dir .*file/data cannot be used"):
        prepare_data_dir(parse({"node": {"data_dir": str(tmp_path / "file" / "data")}}))


def test_a_second_node_on_the_same_data_is_refused_and_touches_nothing(config: Config, clock: Clock) -> None:
    first = Daemon(config, clock, executor=HereAndNow())
    first.start()
    half = config.node.data_dir / "spool" / "1.2.3" / "1.2.3.4.dcm.part"
    half.parent.mkdir()
    half.write_bytes(b"being received")
    second = Daemon(config, clock, executor=HereAndNow())
    with pytest.raises(ConfigurationError, match=r"another node uses \[node\] data_dir .*process \d+"):
        second.start()
    assert half.exists()
    first.stop()
    second.start()
    assert not half.exists()
    second.stop()


def test_a_port_that_is_taken_names_the_setting(config: Config, clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", config.node.port)):
        daemon = Daemon(config, clock, executor=HereAndNow())
        with pytest.raises(ConfigurationError, match=rf"\[node\] port {config.node.port} .* cannot be"):
            daemon.start()
        daemon.stop()


def test_a_database_that_is_away_is_told_of_once_and_once_that_it_is_back(
    daemon: Daemon, config: Config, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ticked as the scheduler does, every stage for as long as it is away: two lines, without a traceback."""

    def tick(times: int) -> None:
        for _ in range(times):
            clock.now += 2.5
            for stage in daemon._stages():
                guarded(stage, clock, daemon._outage)

    tick(1)
    ledger = config.node.data_dir / "ledger.sqlite3"
    daemon.ledger.close()  # an open file would be written to wherever it lies
    ledger.rename(ledger.with_name("away"))
    ledger.mkdir()
    caplog.clear()
    tick(20)
    (gone,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert gone.startswith(f"the ledger does not answer: unable to open database file (sqlite:///{ledger})")
    for word in (
        "received and acknowledged all the same",
        "nothing is computed",
        "Check [node] database_url",
    ):
        assert word in gone
    assert "tick" not in gone
    ledger.rmdir()
    ledger.with_name("away").rename(ledger)
    caplog.clear()
    tick(3)
    (back,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert back.startswith("the ledger answers again")


def test_a_stage_that_fails_is_tried_again_and_stops_nothing(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_now: float) -> None:
        raise RuntimeError("a mistake of ours")

    guarded(broken, lambda: 0.0, daemon._outage)
    assert "tried again" in caplog.text
    assert "a mistake of ours" in caplog.text


def test_a_signal_that_does_not_end_the_wait_is_heard_all_the_same() -> None:
    """As one that comes between the last look and the wait: here, to a thread that does not wait for it."""
    signals: SimpleQueue[signal.Signals] = SimpleQueue()
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: signals.put(signal.Signals(number)))
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)
    other.start()
    assert other.ident is not None
    caller = threading.Timer(0.3, signal.pthread_kill, (other.ident, signal.SIGUSR1))
    caller.start()
    try:
        assert next_signal(signals) is signal.SIGUSR1
    finally:
        caller.join()
        done.set()
        signal.signal(signal.SIGUSR1, before)
