"""Weights are used as their manifest states them, or not at all."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dicomnode.commands.convert_weights import convert as convert_command
from dicomnode.errors import ConfigurationError
from models import weights
from models.errors import ModelRejected
from models.weights import CARD, MANIFEST, WEIGHTS, Manifest
from tests.models.random_network import ARCHITECTURES, random_network

KNOWN: dict[str, Any] = {
    "name": "test",
    "nuclide": "Lu-177",
    "voxel_mm": (3.0, 1.953125, 1.953125),
    "camera": {"name": "a camera", "resolution_fwhm_mm": [8.0, 14.0]},
}


def manifest(architecture: str = "dblurdosenet", middle: int = 16, **more: Any) -> Manifest:
    return Manifest(architecture=architecture, middle=middle, **KNOWN, **more)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "test"
    weights.save(folder, random_network("dblurdosenet"), manifest(ood={"body": [0.9, 1.1]}))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    copied = tmp_path / "test"
    copied.mkdir()
    for path in saved.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_what_is_saved_is_loaded(architecture: str, middle: int, tmp_path: Path) -> None:
    network = random_network(architecture, middle)
    written = weights.save(tmp_path / "w", network, manifest(architecture, middle, metrics={"lesion": 0.5}))
    found = weights.load(weights.find(tmp_path / "w"))
    assert found.manifest == written
    assert found.manifest.voxel_mm == KNOWN["voxel_mm"]
    assert found.manifest.resolution_fwhm_mm == (8.0, 14.0)
    assert not found.network.training
    for key, value in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[key], value), key
    assert {path.name for path in (tmp_path / "w").iterdir()} == {WEIGHTS, MANIFEST, CARD}
    assert (tmp_path / "w" / WEIGHTS).stat().st_size < 10e6


def test_the_model_card_tells_what_the_manifest_states(saved: Path) -> None:
    card = (saved / CARD).read_text()
    for said in (
        "Lu-177",
        "1.95312 x 1.95312 x 3 mm",
        weights.load(saved).manifest.sha256,
        "a camera",
        "0.9",
    ):
        assert said in card


def test_a_manifest_is_read_without_torch(saved: Path) -> None:
    assert weights.manifest_of(saved) == weights.load(saved).manifest


def test_weights_that_there_are_not_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="no weights 'nothing'"):
        weights.find("nothing")
    with pytest.raises(ModelRejected, match=MANIFEST):
        weights.load(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a service's account, where an administrator put the weights into his own home."""

    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(ModelRejected, match="cannot be looked into: Permission denied") as rejected:
        weights.find(tmp_path / "home")
    assert "right to read" in rejected.value.remedy


def test_all_shipped_weights_load() -> None:
    for name in weights.shipped():
        found = weights.load(weights.find(name))
        assert found.manifest.name == name
        assert (found.folder / WEIGHTS).stat().st_size < 10e6
        assert (found.folder / CARD).is_file()


# ── what does not match ──────────────────────────────────────────────────────────────────────────


def test_one_altered_byte_is_found(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    for read in (weights.load, weights.manifest_of):
        with pytest.raises(ModelRejected, match="not what its manifest states"):
            read(folder)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    said = json.loads((folder / MANIFEST).read_text())
    change(said)
    (folder / MANIFEST).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda said: said.pop("nuclide"), "lacks nuclide"),
        (lambda said: said.update(colour="red"), "unknown colour"),
        (lambda said: said.update(voxel_mm=[3, 2]), "'voxel_mm'"),
        (lambda said: said.update(voxel_mm=[3, 2, 0]), r"voxels of \(3.0, 2.0, 0.0\)"),
        (lambda said: said.update(camera={}), "resolution_fwhm_mm"),
        (lambda said: said.update(camera={"resolution_fwhm_mm": [9, 4]}), "resolution of 9 to 4"),
        (lambda said: said.update(ood={"body": [1, "x"]}), r"ood\.body"),
        (lambda said: said.update(nuclide=177), "'nuclide'"),
        (lambda said: said.update(middle="16"), "'middle'"),
        (lambda said: said.update(metrics=[]), "'metrics'"),
        (lambda said: said.update(sha256="0" * 64), "SHA-256"),
        (lambda said: said.update(architecture="2d"), r"unknown feature\.model_3D.* and \d+ more"),
        (lambda said: said.update(middle=8), "has the shape"),
        (lambda said: said.update(architecture="unet"), "architecture 'unet'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    rewritten(folder, change)
    with pytest.raises(ModelRejected, match=what) as caught:
        weights.load(folder)
    assert caught.value.remedy


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ModelRejected, match="no JSON"):
        weights.load(folder)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(ModelRejected, match="no table"):
        weights.load(folder)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def test_a_network_that_diverged_is_not_written(tmp_path: Path) -> None:
    network = random_network("2d")
    network.UNet.outc.conv.bias.data.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(ModelRejected, match="not finite"):
        weights.save(tmp_path / "w", network, manifest("2d", 0))
    assert not list(tmp_path.iterdir())


def test_a_manifest_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="the network is 2d"):
        weights.save(tmp_path / "w", random_network("2d"), manifest())


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.weights.os.fsync", full)
    with pytest.raises(ModelRejected, match="No space left"):
        weights.save(tmp_path / "w", random_network("2d"), manifest("2d", 0))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_where_it_holds_weights_and_one_says_so(tmp_path: Path) -> None:
    network, other = random_network("2d"), random_network("2d", seed=2)
    weights.save(tmp_path / "w", network, manifest("2d", 0))
    with pytest.raises(ModelRejected, match="there already"):
        weights.save(tmp_path / "w", other, manifest("2d", 0))
    written = weights.save(tmp_path / "w", other, manifest("2d", 0), overwrite=True)
    assert weights.load(tmp_path / "w").manifest.sha256 == written.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(ModelRejected, match="there already"):
        weights.save(tmp_path / "letters", other, manifest("2d", 0), overwrite=True)


# ── checkpoints of others ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_a_checkpoint_becomes_weights(architecture: str, middle: int, tmp_path: Path) -> None:
    state = random_network(architecture, middle).state_dict()
    torch.save(state, tmp_path / "c.pt")
    asked = architecture if architecture == "no-residual" else None
    written = weights.convert(tmp_path / "c.pt", tmp_path / "w", architecture=asked, **KNOWN)
    assert (written.architecture, written.middle) == (architecture, middle)
    for key, value in weights.load(tmp_path / "w").network.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model_state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
    ],
)
def test_usual_wrappings_are_taken_off(wrapped: Callable[[Any], Any], tmp_path: Path) -> None:
    state = random_network("dblurdosenet", 8).state_dict()
    torch.save(wrapped(dict(state)), tmp_path / "c.pt")
    weights.convert(tmp_path / "c.pt", tmp_path / "w", **KNOWN)
    found = weights.load(tmp_path / "w").network.state_dict()
    assert torch.equal(found["UNet.outc.conv.weight"], state["UNet.outc.conv.weight"])


class Command:
    """What an attacker's pickle would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/never-made"),))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"UNet.inc.conv.0.weight": Command()}, "no plain checkpoint"),
        ([1, 2], "no state dict but list"),
        ({}, "no state dict"),
        ({"state_dict": {"UNet.inc.conv.0.weight": 3}}, "of the type int"),
        ({"fc.weight": torch.zeros(3, 3)}, r"no UNet\.inc"),
        ({"UNet.inc.conv.0.weight": torch.zeros(16, 2, 3, 3)}, r"lacks UNet\.inc"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused(content: Any, what: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ModelRejected, match=what):
        weights.convert(tmp_path / "c.pt", tmp_path / "w", **KNOWN)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert not Path("/tmp/never-made").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weights": Command()}, protocol=2))
    (tmp_path / "x.safetensors").write_bytes(b"12345678")
    # What unpicklers stumble over in ways of their own: an empty stack, a length that is cut off.
    (tmp_path / "stack.pt").write_bytes(b"\x80\x02.")
    (tmp_path / "length.pt").write_bytes(b"\x80\x02X\x01")
    for path in (*tmp_path.iterdir(), tmp_path / "missing.pt"):
        with pytest.raises(ModelRejected, match=path.name):
            weights.convert(path, tmp_path / "w", **KNOWN)


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    torch.save(random_network("dblurdosenet", 8).state_dict(), tmp_path / "c.pt")
    arguments: dict[str, Any] = {
        "name": None, "nuclide": "177Lu", "voxel_mm": (3, 2, 2), "camera": "ours", "version": "1",
        "resolution_fwhm_mm": (8, 14), "architecture": None, "source": "", "today": date(2026, 1, 2),
    }  # fmt: skip
    console = Console(record=True, width=120)
    convert_command(tmp_path / "c.pt", tmp_path / "w", console, **arguments)
    assert "1,097,753 parameters" in console.export_text()
    made = weights.load(tmp_path / "w").manifest
    assert (made.name, made.nuclide, made.date) == ("w", "Lu-177", "2026-01-02")
    with pytest.raises(ConfigurationError, match="there already"):
        convert_command(tmp_path / "c.pt", tmp_path / "w", console, **arguments)
