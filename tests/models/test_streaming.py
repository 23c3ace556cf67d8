"""Inference over a volume equals one window per slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.dblurdosenet import Network
from models.errors import ModelRejected
from models.streaming import Streaming
from tests.models.random_network import ARCHITECTURES, random_network, windows

Float32 = NDArray[np.float32]
TOLERANCE = 1e-4  # of the largest residual


def volume(depth: int = 13, height: int = 32, width: int = 48) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(7)
    spect = rng.gamma(0.5, 300, (depth, height, width)).astype(np.float32)
    return spect, rng.normal(1000, 200, spect.shape).astype(np.float32)


def one_window_per_slice(network: Network, spect: Float32, density: Float32) -> Float32:
    """Ends repeated five times; the plane filled up to multiples of 16 with zeros."""
    _, height, width = spect.shape
    inputs = []
    for array in (spect, density):
        filled = functional.pad(torch.from_numpy(array), (0, -width % 16, 0, -height % 16))
        filled = torch.cat([filled[:1]] * 5 + [filled] + [filled[-1:]] * 5)
        inputs.append(windows(filled[None]))
    with torch.no_grad():
        found: Float32 = network.correction(*inputs)[:, 0, :height, :width].numpy()
    return found


def largest_difference(found: Float32, expected: Float32) -> NDArray[np.float32]:
    """Slice by slice, as part of the largest residual."""
    difference: NDArray[np.float32] = np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max()
    return difference


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_every_slice_equals_its_window(architecture: str, middle: int) -> None:
    """Also the first and the last five, whose windows reach beyond the volume."""
    network = random_network(architecture, middle)
    found = Streaming(network).residual(*volume())
    assert found.dtype == np.float32
    assert largest_difference(found, one_window_per_slice(network, *volume())).max() <= TOLERANCE


def test_the_least_volume() -> None:
    network, inputs = random_network("dblurdosenet"), volume(11, 16, 16)
    found = Streaming(network).residual(*inputs)
    assert largest_difference(found, one_window_per_slice(network, *inputs)).max() <= TOLERANCE


def test_sides_that_are_no_multiples_of_sixteen() -> None:
    network, inputs = random_network("dblurdosenet"), volume(11, 19, 37)
    found = Streaming(network).residual(*inputs)
    assert found.shape == (11, 19, 37)
    assert largest_difference(found, one_window_per_slice(network, *inputs)).max() <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_it_does_not_matter_how_many_slices_go_at_once(batch: int) -> None:
    network = random_network("dblurdosenet", 8)
    found = Streaming(network, batch=batch).residual(*volume())
    assert largest_difference(found, one_window_per_slice(network, *volume())).max() <= TOLERANCE


def test_fast_is_near_and_not_exact() -> None:
    network = random_network("dblurdosenet")
    exact = one_window_per_slice(network, *volume())
    found = Streaming(network, precision="fast").residual(*volume())
    difference = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert TOLERANCE < difference < 0.1


def test_a_network_in_training_is_used_with_its_running_statistics() -> None:
    network = random_network("dblurdosenet", 8)
    expected = Streaming(network).residual(*volume())
    network.train()
    np.testing.assert_array_equal(Streaming(network).residual(*volume()), expected)
    assert network.training, "it is left as it was"


def test_progress_runs_from_nothing_to_everything() -> None:
    told: list[tuple[str, float]] = []
    Streaming(random_network("2d")).residual(*volume(), lambda what, part: told.append((what, part)))
    parts = [part for _what, part in told]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert len(parts) == 14
    assert {what for what, _part in told} == {"network"}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(which: int, value: float) -> None:
    inputs = volume()
    inputs[which][3, 4, 5] = value
    with pytest.raises(ModelRejected, match=f"{('SPECT', 'density')[which]} .* 1 voxels"):
        Streaming(random_network("2d")).residual(*inputs)


@pytest.mark.parametrize("shape", [(10, 32, 32), (11, 15, 32), (11, 32, 8)])
def test_a_volume_smaller_than_the_field_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ModelRejected, match="smaller than the network's field"):
        Streaming(random_network("dblurdosenet")).residual(*volume(*shape))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ModelRejected, match="do not fit"):
        Streaming(random_network("2d")).residual(volume()[0], volume(14)[1])
    with pytest.raises(ModelRejected, match="precision 'half'"):
        Streaming(random_network("2d"), precision="half")  # type: ignore[arg-type]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def short_of_memory(streaming: Streaming, monkeypatch: pytest.MonkeyPatch, enough: int) -> list[Any]:
    """A GPU that has room for `enough` slices; it computes on the CPU."""
    tried: list[tuple[str, int]] = []
    run = streaming._run

    def attempt(device: str, batch: int, *rest: Any) -> Float32:
        tried.append((device, batch))
        if device != "cpu" and batch > enough:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run("cpu", batch, *rest)

    monkeypatch.setattr(streaming, "_run", attempt)
    return tried


def test_a_gpu_short_of_memory_gets_fewer_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = Streaming(random_network("2d"), "cuda")
    tried = short_of_memory(streaming, monkeypatch, enough=4)
    found = streaming.residual(*volume())
    np.testing.assert_allclose(
        found, Streaming(random_network("2d")).residual(*volume()), rtol=1e-4, atol=1e-4
    )
    assert tried == [("cuda", 16), ("cuda", 4)]
    assert streaming.device == "cuda"
    assert "did not suffice for 16 slices at once; computed on cuda" in streaming.notes[0]


def test_then_the_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = Streaming(random_network("2d"), "cuda")
    tried = short_of_memory(streaming, monkeypatch, enough=0)
    streaming.residual(*volume())
    assert tried[-1] == ("cpu", 1)
    assert streaming.device == "cpu"
    assert "computed on cpu" in streaming.notes[0]


def test_a_batch_that_was_asked_for_fails_openly(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = Streaming(random_network("2d"), "cuda", batch=8)
    short_of_memory(streaming, monkeypatch, enough=4)
    with pytest.raises(torch.OutOfMemoryError):
        streaming.residual(*volume())


def test_other_failures_of_the_device_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = Streaming(random_network("2d"), "cuda")

    def broken(*_arguments: Any) -> Float32:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(streaming, "_run", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        streaming.residual(*volume())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same() -> None:
    """TF32 stays off, and the process's own setting is left as it was."""
    network = random_network("dblurdosenet")
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    found = Streaming(network, "cuda").residual(*volume())
    assert largest_difference(found, one_window_per_slice(network, *volume())).max() <= TOLERANCE
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]
