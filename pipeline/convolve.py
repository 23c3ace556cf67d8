"""Convolution of an activity map with a dose-voxel kernel by one real FFT.

::

    out[o] = Σ_s K(o − s) · source[s]

The sources lie in one box of the lattice, the results in another, and the kernel reaches across
both. Three properties make it cheap:

* **padding**: the period of the FFT only has to keep apart the offsets that occur (`fft_shape`);
* **pruning**: axis by axis, only lines that hold a source are transformed, and back only those that
  hold a result. In between, (y, z, x) order keeps one y plane together in the processor's cache;
* **symmetry**: K is even in z, y and x, so its spectrum is real and even: the DCT-I of one octant,
  an eighth of the memory and of the time.

Everything is float32: the result is right to about 1e-6 of its maximum. On the CPU by scipy.fft, a
thread per core, each working through whole planes; on the GPU by torch.fft.
"""

from __future__ import annotations

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from models.errors import out_of_memory
from pipeline.cores import available_cores
from pipeline.decay import Nuclide
from pipeline.errors import EngineFailed
from pipeline.kernel_cache import NOT_KEPT, KernelCache
from pipeline.kernels import Shape, Spacing, s_value_per_kev, voxel_kernel

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]
Complex64 = NDArray[np.complex64]
Report = Callable[[float], None]
Offset = tuple[int, int, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The transform of an even kernel for one FFT shape.

    shape: (z, y, x) period of the FFT, all even.
    values: (y, z, x) float32, frequencies 0 ... shape/2 of each axis; times the kernel's unit.
    """

    shape: Shape
    values: Float32


def fft_shape(source: Shape, output: Shape, offset: Offset, reach: Shape) -> Shape:
    """The FFT's period, (z, y, x): even, quick to transform, and without wrap-around.

    source, output: shapes of the two boxes. offset: of the output box from the source box, voxels.
    reach: beyond this offset the kernel is zero.

    Offsets between the boxes run up to ±m. A period of 2m shows every one of them its own kernel
    value or its mirror image; a shorter one will do when m + reach is shorter still, for then
    what wraps around meets zeros.
    """
    needed = [_period(*axis) for axis in zip(source, output, offset, reach, strict=True)]
    z, y = (_quick_even(n, real=False) for n in needed[:2])
    return z, y, _quick_even(needed[2], real=True)


def _period(source: int, output: int, offset: int, reach: int) -> int:
    farthest = max(source - 1 - offset, offset + output - 1)
    # Two boxes far apart still have to fit into the period themselves.
    return max(min(2 * farthest, farthest + reach + 1), source, output, 2)


def _quick_even(needed: int, *, real: bool) -> int:
    length = int(scipy.fft.next_fast_len(needed, real=real))
    return length if length % 2 == 0 else _quick_even(length + 1, real=real)


def spectrum_of(octant: Float32, shape: Shape) -> Spectrum:
    """octant: (z, y, x) of shape/2 + 1 offsets per axis; overwritten. returns: its spectrum."""
    values = scipy.fft.dctn(octant, type=1, workers=available_cores(), overwrite_x=True)
    return Spectrum(shape, np.ascontiguousarray(values.transpose(1, 0, 2)))


def kernel_spectrum(
    of: Nuclide,
    spacing_mm: Spacing,
    shape: Shape,
    kept: KernelCache = NOT_KEPT,
    taken_out: Float32 | None = None,
) -> Spectrum:
    """The S-value kernel's spectrum, mGy/(MBq s); the last few are remembered.

    spacing_mm: (z, y, x). shape: from `fft_shape`. kept: where kernels are kept between processes.
    taken_out: what does not go into the convolution, keV per decay, a corner of the kernel's octant.
    """
    key = (of.name, spacing_mm, shape, b"" if taken_out is None else taken_out.tobytes())
    with _spectra_lock:
        if key in _spectra:
            _spectra.move_to_end(key)
            return _spectra[key]
        octant = voxel_kernel(of, spacing_mm, _octant_of(shape), kept)
        if taken_out is not None:
            z, y, x = np.minimum(octant.shape, taken_out.shape)
            octant[:z, :y, :x] -= np.float32(s_value_per_kev(spacing_mm)) * taken_out[:z, :y, :x]
        spectrum = spectrum_of(octant, shape)
        _spectra[key] = spectrum
        while len(_spectra) > SPECTRA_KEPT:
            _spectra.popitem(last=False)
        return spectrum


def _octant_of(period: Shape) -> Shape:
    z, y, x = (n // 2 + 1 for n in period)
    return z, y, x


# A spectrum of a full-size case is 55-140 MB.
SPECTRA_KEPT = 2
_spectra: OrderedDict[tuple[str, Spacing, Shape, bytes], Spectrum] = OrderedDict()
_spectra_lock = Lock()


def convolve_cpu(
    source: Float32, spectrum: Spectrum, output: Shape, offset: Offset, report: Report | None = None
) -> Float32:
    """The convolution on the output box, by scipy.fft on every core that this process may use.

    source: (z, y, x). spectrum: for the shape that `fft_shape` gives for these boxes.
    output: (z, y, x) shape of the result, which begins `offset` voxels from the source box.
    returns: `output`, kernel's unit times source's unit; rounding may leave values just below 0.
    """
    depth, height, width = spectrum.shape
    planes = np.empty((height, max(source.shape[0], output[0]), width // 2 + 1), np.complex64)
    result = np.empty(output, np.float32)
    rows, columns = _window(offset[1], output[1], height), _window(offset[2], output[2], width)

    def into_frequencies(z: int) -> None:
        # Padded here: rfft(n=...) of scipy 1.17 pads three times more slowly.
        padded = np.zeros((source.shape[1], width), np.float32)
        padded[:, : source.shape[2]] = source[z]
        lines = scipy.fft.rfft(padded, axis=1)
        planes[:, z] = scipy.fft.fft(lines, height, axis=0, overwrite_x=True)

    def times_kernel(y: int) -> None:
        plane = scipy.fft.fft(planes[y, : source.shape[0]], depth, axis=0)
        _multiply(plane, spectrum.values[min(y, height - y)])
        plane = scipy.fft.ifft(plane, axis=0, overwrite_x=True)
        planes[y, : output[0]] = plane[_window(offset[0], output[0], depth)]

    def back_into_space(z: int) -> None:
        lines = scipy.fft.ifft(planes[:, z], axis=0)[rows]
        result[z] = scipy.fft.irfft(lines, width, axis=1, overwrite_x=True)[:, columns]

    with ThreadPoolExecutor(available_cores()) as pool:
        _spread(pool, into_frequencies, range(source.shape[0]), report, 0.0, 0.3)
        _spread(pool, times_kernel, range(height), report, 0.3, 0.7)
        _spread(pool, back_into_space, range(output[0]), report, 0.7, 1.0)
    return result


def _spread(
    pool: ThreadPoolExecutor,
    work: Callable[[int], None],
    items: range,
    report: Report | None,
    start: float,
    end: float,
) -> None:
    for done, _ in enumerate(pool.map(work, items), 1):
        if report is not None and done % 64 == 0:
            report(start + (end - start) * done / len(items))


def _multiply(plane: Complex64, spectrum: Float32) -> None:
    """plane: (z, x) all z frequencies; spectrum: (z, x) those from 0 to the middle, even about it."""
    middle = spectrum.shape[0]
    # Complex times real, as pairs of reals: numpy would first make the reals complex.
    pairs = np.repeat(spectrum, 2, axis=1)
    plane[:middle].view(np.float32)[...] *= pairs
    plane[middle:].view(np.float32)[...] *= pairs[-2:0:-1]


def _window(start: int, length: int, period: int) -> slice | NDArray[np.intp]:
    """Indices start ... start + length of a periodic axis; a plain slice where it does not wrap."""
    first = start % period
    if first + length <= period:
        return slice(first, first + length)
    return np.arange(start, start + length) % period


def convolve_torch(
    source: Float32,
    spectrum: Spectrum,
    output: Shape,
    offset: Offset,
    device: str = "cuda",
    report: Report | None = None,
) -> Float32:
    """The same as `convolve_cpu`, by torch.fft on `device`.

    raises: RuntimeError; `models.errors.out_of_memory` tells whether the device's memory did not suffice.
    """
    import torch

    depth, height, width = spectrum.shape
    reals = torch.from_numpy(source).to(device)
    kernel = torch.from_numpy(spectrum.values).to(device)
    lines = torch.fft.fft(torch.fft.rfft(reals, width, dim=2), height, dim=1)
    result = torch.empty((output[0], height, width // 2 + 1), dtype=torch.complex64, device=device)
    z_window, y_window, x_window = (
        _torch_window(*axis) for axis in zip(offset, output, spectrum.shape, strict=True)
    )
    for start in range(0, height, TORCH_PLANES):
        planes = slice(start, min(start + TORCH_PLANES, height))
        plane = torch.fft.fft(lines[:, planes], depth, dim=0)
        plane *= _torch_octant(kernel, planes, height, depth)
        result[:, planes] = torch.fft.ifft(plane, dim=0)[z_window.to(device)]
        if report is not None:
            report(planes.stop / height)
    del lines
    result = torch.fft.ifft(result, dim=1)[:, y_window.to(device)]
    whole = torch.fft.irfft(result, width, dim=2)[:, :, x_window.to(device)]
    on_host: Float32 = whole.cpu().numpy()
    return on_host


# Bounds the GPU memory that one step takes: 270 x 64 x 513 complex numbers are 71 MB.
TORCH_PLANES = 64


def _torch_octant(kernel: torch.Tensor, planes: slice, height: int, depth: int) -> torch.Tensor:
    """The spectrum of some y planes, mirrored to all z frequencies. returns: (z, planes, x)."""
    import torch

    y = torch.arange(planes.start, planes.stop, device=kernel.device)
    z = torch.arange(depth, device=kernel.device)
    part = kernel[torch.minimum(y, height - y)].transpose(0, 1)
    return part[torch.minimum(z, depth - z)]


def _torch_window(start: int, length: int, period: int) -> torch.Tensor:
    import torch

    return torch.arange(start, start + length) % period


def convolve(
    source: Float32,
    spectrum: Spectrum,
    output: Shape,
    offset: Offset,
    device: str = "cpu",
    report: Report | None = None,
) -> tuple[Float32, str, tuple[str, ...]]:
    """The convolution on a device, and on the CPU when the device cannot.

    device: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto`` (a GPU where there is one).
    returns: as `convolve_cpu`; the device that it ran on; what there is to say about that.
    raises: EngineFailed when the GPU breaks.
    """
    chosen, notes = usable_device(device)
    if chosen != "cpu":
        import torch

        try:
            return convolve_torch(source, spectrum, output, offset, chosen, report), chosen, notes
        except RuntimeError as error:
            if not out_of_memory(error):
                # A CUDA fault leaves the process without a usable GPU: only a new process can go on.
                raise EngineFailed(
                    f"the convolution failed on {chosen}: {error}",
                    'It is tried again in a new process; if it recurs, set [dose] device = "cpu"',
                ) from error
            notes += (f"GPU memory did not suffice on {chosen}: convolved on the CPU",)
            torch.cuda.empty_cache()
    for note in notes:
        logger.warning(note)
    return convolve_cpu(source, spectrum, output, offset, report), "cpu", notes


def usable_device(device: str) -> tuple[str, tuple[str, ...]]:
    """``cpu`` or a CUDA device that answers, and why it is not the one that was asked for."""
    if device == "cpu" or (device == "auto" and not has_cuda_driver()):
        return "cpu", ()
    try:
        import torch
    except ImportError:
        reason = "torch is not installed"
    else:
        if torch.cuda.is_available():
            return ("cuda" if device == "auto" else device), ()
        reason = "torch finds no CUDA device"
    if device == "auto":
        return "cpu", ()
    return "cpu", (f"device {device!r} is not usable ({reason}): convolved on the CPU",)


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver library loads: without it, importing torch (seconds, memory) finds nothing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
