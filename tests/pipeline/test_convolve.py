"""The FFT convolution against summation by hand, on every device that there is."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline import convolve as module
from pipeline.convolve import (
    Offset,
    Spectrum,
    convolve,
    convolve_cpu,
    convolve_torch,
    fft_shape,
    kernel_spectrum,
    spectrum_of,
)
from pipeline.decay import nuclide
from pipeline.errors import EngineFailed
from pipeline.kernels import Shape, reach_voxels, voxel_kernel

LUTETIUM = nuclide("Lu-177")
SPACING = (3.0, 2.0, 2.5)

# source shape, output shape, offset of the output box from the source box
BOXES: dict[str, tuple[Shape, Shape, Offset]] = {
    "the same box": ((9, 12, 10), (9, 12, 10), (0, 0, 0)),
    "output inside the sources": ((9, 14, 13), (5, 6, 7), (2, 3, 4)),
    "sources inside the output": ((5, 6, 7), (9, 14, 13), (-2, -3, -4)),
    "overlapping askew": ((6, 9, 8), (8, 7, 11), (3, -5, 2)),
    "far apart": ((4, 5, 6), (5, 4, 3), (20, -31, 17)),
    "one voxel": ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "one source to a plane": ((1, 1, 1), (1, 15, 9), (2, -7, 3)),
}
EVERY_BOX = pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES.keys())


def random_source(shape: Shape) -> np.ndarray:
    return np.random.default_rng(5).random(shape, dtype=np.float32)


def directly(source: np.ndarray, octant: np.ndarray, output: Shape, offset: Offset) -> np.ndarray:
    """out[o] = Σ_s K(|o + offset − s|) source[s], in float64."""
    result = np.zeros(output)
    for place in np.ndindex(*source.shape):
        away = [np.abs(np.arange(n) + o - s) for n, o, s in zip(output, offset, place, strict=True)]
        result += float(source[place]) * octant[np.ix_(*away)]
    return result


def prepared(boxes: tuple[Shape, Shape, Offset]) -> tuple[np.ndarray, Spectrum, np.ndarray]:
    source, output, offset = boxes
    period = fft_shape(source, output, offset, reach_voxels(SPACING))
    values = random_source(source)
    octant = voxel_kernel(LUTETIUM, SPACING, (60, 60, 60)).astype(float)
    return values, kernel_spectrum(LUTETIUM, SPACING, period), directly(values, octant, output, offset)


def by_torch_on_the_cpu(source: np.ndarray, spectrum: Spectrum, output: Shape, offset: Offset) -> np.ndarray:
    pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    return convolve_torch(source, spectrum, output, offset, "cpu")


@EVERY_BOX
@pytest.mark.parametrize("engine", [convolve_cpu, by_torch_on_the_cpu])
def test_the_fft_gives_what_summation_gives(
    boxes: tuple[Shape, Shape, Offset], engine: Callable[..., np.ndarray]
) -> None:
    """To 1e-5 of the largest value that the sources can cause, which is their own voxel's."""
    source, spectrum, expected = prepared(boxes)
    result = engine(source, spectrum, boxes[1], boxes[2])
    own_voxel = float(source.max() * voxel_kernel(LUTETIUM, SPACING, (1, 1, 1))[0, 0, 0])
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * max(own_voxel, expected.max()))


@pytest.mark.gpu
@EVERY_BOX
def test_the_gpu_gives_what_the_cpu_gives(boxes: tuple[Shape, Shape, Offset]) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    source, spectrum, _ = prepared(boxes)
    cpu = convolve_cpu(source, spectrum, boxes[1], boxes[2])
    gpu, used, notes = convolve(source, spectrum, boxes[1], boxes[2], "cuda")
    assert (used, notes) == ("cuda", ())
    np.testing.assert_allclose(gpu, cpu, rtol=0, atol=1e-5 * float(source.max() * spectrum.values.max()))


def test_a_point_source_reproduces_the_kernel() -> None:
    shape: Shape = (15, 31, 21)
    source = np.zeros(shape, np.float32)
    source[7, 15, 10] = 1.0
    period = fft_shape(shape, shape, (0, 0, 0), reach_voxels(SPACING))
    result = convolve_cpu(source, kernel_spectrum(LUTETIUM, SPACING, period), shape, (0, 0, 0))
    kernel = voxel_kernel(LUTETIUM, SPACING, (8, 16, 11))
    for quarter in (result[7:, 15:, 10:], result[7::-1, 15::-1, 10::-1], result[7:, 15::-1, 10:]):
        np.testing.assert_allclose(quarter, kernel, rtol=0, atol=1e-6 * kernel[0, 0, 0])


def test_what_wraps_around_meets_zeros_when_the_kernel_ends_early() -> None:
    """A long field and a short kernel: the period is shorter than twice the field."""
    rng = np.random.default_rng(1)
    source, output, offset, reach = (40, 3, 3), (40, 3, 3), (0, 0, 0), (4, 4, 4)
    period = fft_shape(source, output, offset, reach)
    assert period[0] < 2 * 39
    octant = np.zeros(tuple(n // 2 + 1 for n in period), np.float32)
    octant[:5] = rng.random((5, *octant.shape[1:]), dtype=np.float32)
    values = random_source(source)
    expected = directly(values, np.pad(octant, ((0, 40), (0, 0), (0, 0))).astype(float), output, offset)
    result = convolve_cpu(values, spectrum_of(octant.copy(), period), output, offset)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("source", [1, 2, 7, 130])
@pytest.mark.parametrize("output", [1, 3, 130])
@pytest.mark.parametrize("offset", [-200, -5, 0, 64, 300])
@pytest.mark.parametrize("reach", [1, 20, 170, 1000])
def test_the_period_keeps_every_offset_apart(source: int, output: int, offset: int, reach: int) -> None:
    """Whatever offset occurs, the periodic even kernel holds there the value of that offset."""
    period = fft_shape((source,) * 3, (output,) * 3, (offset,) * 3, (reach,) * 3)[0]
    assert period % 2 == 0
    assert period >= max(source, output)
    for d in (offset - source + 1, offset, offset + output - 1):
        folded = min(d % period, -d % period)
        assert folded == abs(d) or min(folded, abs(d)) > reach


def test_spectra_are_remembered_and_the_oldest_is_dropped() -> None:
    first = kernel_spectrum(LUTETIUM, SPACING, (8, 8, 8))
    assert kernel_spectrum(LUTETIUM, SPACING, (8, 8, 8)) is first
    for n in range(module.SPECTRA_KEPT):
        kernel_spectrum(LUTETIUM, SPACING, (10, 10, 10 + 2 * n))
    assert kernel_spectrum(LUTETIUM, SPACING, (8, 8, 8)) is not first


def test_progress_rises_to_one() -> None:
    source = random_source((64, 4, 4))
    spectrum = kernel_spectrum(
        LUTETIUM, SPACING, fft_shape(source.shape, source.shape, (0, 0, 0), (170,) * 3)
    )
    parts: list[float] = []
    convolve_cpu(source, spectrum, source.shape, (0, 0, 0), parts.append)
    assert parts == sorted(parts)
    assert 0 < parts[0] < parts[-1] == 1.0


def test_auto_without_a_gpu_is_the_cpu_and_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert module.usable_device("auto") == ("cpu", ())


def test_a_gpu_that_is_not_there_is_replaced_by_the_cpu_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    source, spectrum, expected = prepared(BOXES["the same box"])
    result, used, notes = convolve(source, spectrum, source.shape, (0, 0, 0), "cuda")
    assert used == "cpu"
    assert "torch finds no CUDA device" in notes[0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.fixture
def a_gpu_that_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    def install(error: Exception) -> None:
        def broken(*_args: object) -> np.ndarray:
            raise error

        monkeypatch.setattr(module, "usable_device", lambda device: (device, ()))
        monkeypatch.setattr(module, "convolve_torch", broken)

    return install


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("RuntimeError", "cuFFT error: CUFFT_ALLOC_FAILED"),
    ],
)
def test_a_gpu_out_of_memory_falls_back_to_the_cpu_and_says_so(
    a_gpu_that_raises: Callable[[Exception], None], caplog: pytest.LogCaptureFixture, kind: str, text: str
) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    a_gpu_that_raises({"RuntimeError": RuntimeError, "OutOfMemoryError": torch.OutOfMemoryError}[kind](text))
    source, spectrum, expected = prepared(BOXES["the same box"])
    result, used, notes = convolve(source, spectrum, source.shape, (0, 0, 0), "cuda")
    assert used == "cpu"
    assert notes == ("GPU memory did not suffice on cuda: convolved on the CPU",)
    assert notes[0] in caplog.text
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * expected.max())


def test_a_gpu_fault_fails_the_attempt_for_a_new_process_to_repeat(
    a_gpu_that_raises: Callable[[Exception], None],
) -> None:
    pytest.importorskip("torch", reason="torch is an extra: pip install .[gpu]")
    a_gpu_that_raises(RuntimeError("CUDA error: an illegal memory access was encountered"))
    source, spectrum, _ = prepared(BOXES["the same box"])
    with pytest.raises(EngineFailed, match="illegal memory access"):
        convolve(source, spectrum, source.shape, (0, 0, 0), "cuda")
