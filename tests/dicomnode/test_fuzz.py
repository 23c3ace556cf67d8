"""The short form of `make fuzz`, and every input that once failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz.campaigns import in_process
from tests.fuzz.target import Failure, Target
from tests.fuzz.traffic import capture
from tests.fuzz.wire import RELEASE, command_elements, command_set, message, pdus

# The same inputs in every run: a test judges the change, not a draw. `make fuzz` looks for new ones.
SEED = int(os.environ.get("FUZZ_SEED", "20261123"))
INPUTS = 2000
# Over the wire a hundred cost as much as a thousand in this process: fewer of them than in the long form.
ON_THE_WIRE = ("pdu", "command", "store", "query")
HERE = ("header", "identifier", "commitment", "spool")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("target"))
    target.start()
    yield target
    target.stop()


@pytest.mark.parametrize("names", [ON_THE_WIRE, HERE], ids=["on the wire", "in this process"])
def test_no_input_crashes_hangs_or_leaks(names: tuple[str, ...], tmp_path: Path) -> None:
    inputs = 400 if names == ON_THE_WIRE else 2 * (INPUTS - 200)
    catches, _, _ = fuzz.run(inputs, SEED, tmp_path, names)
    found = [f"{path}: {text}" for catch in catches for text, path in catch.failures.items()]
    assert not found, (
        f"python -m tests.fuzz --seed {SEED} --inputs {inputs} --only {' '.join(names)}: {found}"
    )
    assert sum(catch.inputs for catch in catches) >= 0.4 * inputs


@pytest.mark.parametrize("path", sorted(fuzz.FOUND.glob("*.bin")), ids=lambda path: path.stem)
def test_what_failed_once_does_not_fail_again(path: Path, target: Target, tmp_path: Path) -> None:
    campaign = path.name.partition("-")[0]
    content = path.read_bytes()
    if campaign in HERE:
        in_process(tmp_path)[campaign](content)
    else:
        # What is told by a thread that ends may come late.
        for _ in range(3):
            target.send([content])
        target.echo()
        target.look()


# ── that a failure would be seen ─────────────────────────────────────────────────────────────────


def test_a_crash_a_hang_and_a_file_are_seen(tmp_path: Path) -> None:
    """The node is killed; it is stopped so that it cannot answer; a file appears beside data_dir."""
    target = Target(tmp_path)
    target.start()
    (target.around / "stray").write_text("x")
    with pytest.raises(Failure, match=r"file: .*stray"):
        target.nothing_outside()
    assert target._process is not None
    target._process.kill()
    target._process.wait()
    with pytest.raises(Failure, match="crash: the node died"):
        target.look()


def test_captured_traffic_holds_every_request_and_is_taken_apart_without_loss(target: Target) -> None:
    traffic = capture(target.port)
    assert b"".join(pdus(traffic.stream)) == traffic.stream
    for field in (0x0030, 0x0001, 0x0020, 0x0021, 0x0010, 0x0130):
        assert traffic.of(field), f"0x{field:04X}"
    for sent in traffic.messages:
        assert command_set(command_elements(sent.command)) == sent.command
    # Put together again it is what the node takes.
    target.send(
        [
            traffic.request
            + b"".join(message(m.context_id, m.command, m.data) for m in traffic.messages)
            + RELEASE
        ]
    )
