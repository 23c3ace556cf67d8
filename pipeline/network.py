"""Engine `cnn`: DVK's dose rate with what DblurDoseNet adds to it.

::

    D = D_DVK + U-Net(SPECT, density)

DVK is computed on the dose grid itself, with density scaling, as the network was trained. What the network
adds is computed on the lattice that its weights are for (`pipeline.network_grid`) and brought back. The SPECT
is given as a fraction of all the activity of the request, also of what lies outside the density's box.

A network holds for what it was trained for: a nuclide, the resolution of a camera. `unsuitable` says whether
weights that a physicist approved hold for a study; `cnn_dose_rate` compares its result with DVK's and flags
what is outside the range that the weights' evaluation saw.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.averaging import averaged, parallel
from pipeline.constants import AIR_G_PER_CM3
from pipeline.convolve import usable_device
from pipeline.decay import Nuclide
from pipeline.dose_rate import (
    BQ_PER_MBQ,
    DoseRate,
    DoseRequest,
    NetworkSettings,
    Progress,
    WeightsUsed,
    lattice_offset,
    require_valid,
    silent,
)
from pipeline.dvk import dvk_dose_rate
from pipeline.errors import EngineFailed, InputRejected
from pipeline.kernels import kernel_sha256
from pipeline.network_grid import NetworkGrid, network_grid
from pipeline.vois import HEALTHY_LIVER, VoiClass, sized, voi_class
from pipeline.volume import Grid, Volume

if TYPE_CHECKING:
    from models.streaming import Streaming
    from models.weights import Manifest, Weights

LARGEST_SPACING_MM = 5.0
"""Voxel spacing of the dose grid above which density no longer shows what the network was trained to see."""

_SPACING_TOLERANCE_MM = 1e-3
HOW_TO_INSTALL = (
    "Install it: pip install 'dicomnode[gpu]', or dicomnode[cnn] without a GPU; a node can do without: "
    "take cnn out of [dose] engines"
)

# Parts of the progress: DVK, then the network, then the way back.
_DVK_ENDS, _NETWORK_ENDS = 0.2, 0.9

Float32 = NDArray[np.float32]

log = logging.getLogger(__name__)


def unsuitable(settings: NetworkSettings | None, of: Nuclide, grid: Grid) -> str:
    """Why the approved network must not be used for a study; ``""`` when it may.

    grid: that doses are computed on.
    raises: InputRejected when weights are approved that are missing, altered or no correction of DVK, or
        when what runs them is not installed.
    """
    if settings is None or not settings.weights:
        camera = settings.camera if settings is not None and settings.camera else "of this SPECT"
        return f"no network weights are approved for the camera {camera} (cnn_weights of its [[camera]])"
    widest = max(grid.spacing_mm)
    if widest > LARGEST_SPACING_MM + _SPACING_TOLERANCE_MM:
        return (
            f"the voxels of the dose grid are {widest:.3g} mm wide, and the network needs "
            f"{LARGEST_SPACING_MM:g} mm or less"
        )
    manifest = manifest_of(settings.weights)
    reason = unfit(manifest, settings, of.name)
    if not reason:
        # Now, and not after another engine's half hour.
        require_correction(manifest)
        require_installed()
    return reason


def unfit(manifest: Manifest, settings: NetworkSettings, nuclide: str) -> str:
    """Why weights do not hold for a nuclide or a camera's resolution; ``""`` when they do."""
    if nuclide != manifest.nuclide:
        return f"the network weights {manifest.name} are for {manifest.nuclide}, the SPECT is of {nuclide}"
    if not manifest.sha256.startswith(settings.sha256.lower()):
        return (
            f"the network weights {manifest.name} are not those that were approved: their SHA-256 is "
            f"{manifest.sha256}, approved is {settings.sha256}"
        )
    low, high = manifest.resolution_fwhm_mm
    given = settings.resolution_fwhm_mm
    if given is not None and not low <= given <= high:
        return (
            f"the network weights {manifest.name} are for a resolution of {low:g} to {high:g} mm, and the "
            f"camera {settings.camera} has {given:g} mm"
        )
    return ""


def require_correction(manifest: Manifest) -> None:
    """raises: InputRejected for weights whose output is not added to DVK's map."""
    if not manifest.corrects_dvk:
        raise InputRejected(
            f"the network weights {manifest.name} are of the architecture {manifest.architecture}, which "
            "gives a dose rate of its own and no correction of DVK's",
            "Name weights of the architecture dblurdosenet",
        )


def require_installed() -> None:
    """raises: InputRejected where that lacks which runs a network; nothing of it is imported."""
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputRejected(f"engine cnn cannot run: {' and '.join(missing)} not installed", HOW_TO_INSTALL)


def load_weights(name: str) -> Weights:
    """Shipped weights by name, or those in a folder.

    raises: InputRejected when they are missing or altered, or when torch is not installed.
    """
    try:
        from models import weights
        from models.errors import ModelRejected
    except ImportError as error:
        raise _not_installed(error) from error
    try:
        return weights.load(weights.find(name))
    except ImportError as error:
        raise _not_installed(error) from error
    except ModelRejected as error:
        raise InputRejected(error.reason, error.remedy) from error


def _not_installed(error: ImportError) -> InputRejected:
    return InputRejected(f"a network cannot be loaded: {error}", HOW_TO_INSTALL)


def cnn_dose_rate(request: DoseRequest, progress: Progress = silent) -> DoseRate:
    """Dose rate by DVK and the network that corrects it for the SPECT's resolution.

    Without any activity all is zero. request.heterogeneity is not looked at: see the module's text.
    raises: as `pipeline.dose_rate.Engine` says; InputRejected also for weights that are missing, altered, for
        another nuclide, or no correction of DVK.
    """
    from models.errors import out_of_memory

    settings = request.network
    if settings is None or not settings.weights:
        raise InputRejected(
            "no network weights are named for engine cnn", "Set cnn_weights of the camera's [[camera]] entry"
        )
    require_valid(request.activity, request.density)
    weights = load_weights(settings.weights)
    _require_fit(weights, settings, request.nuclide)
    if not request.activity.array.any():
        zero = request.density.with_array(np.zeros_like(request.density.array), "mGy/h")
        return _result(request, weights, zero, "cpu")
    dvk = dvk_dose_rate(
        replace(request, heterogeneity="density_scaling", regions={}, reported={}),
        lambda what, part: progress(f"DVK {what}", _DVK_ENDS * part),
    )
    try:
        found, device, notes = _corrected(request, weights, dvk.volume.array, progress)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            # A CUDA fault leaves the process without a usable GPU: only a new process can go on.
            raise EngineFailed(
                f"the network failed: {error}",
                'It is tried again in a new process; if it recurs, set [dose] device = "cpu"',
            ) from error
        raise EngineFailed(
            f"memory did not suffice for the network on {request.density.grid.shape} (z, y, x) voxels",
            "Set a coarser dose grid, or give the node more memory",
        ) from error
    flags = tuple(_unusual(request, weights.manifest, found, dvk.volume.array))
    progress("dose rate", 1.0)
    return _result(
        request,
        weights,
        request.density.with_array(found, "mGy/h"),
        device,
        tuple(dict.fromkeys((*dvk.notes, *notes))),
        flags,
    )


def manifest_of(name: str) -> Manifest:
    """What weights say of themselves, without loading the network: by name, or those in a folder.

    raises: InputRejected when they are missing or altered.
    """
    from models import weights
    from models.errors import ModelRejected

    try:
        return weights.manifest_of(weights.find(name))
    except ModelRejected as error:
        raise InputRejected(error.reason, error.remedy) from error


def _require_fit(weights: Weights, settings: NetworkSettings, of: Nuclide) -> None:
    """Again, of the file that was read: a folder may have been changed since `unsuitable` looked at it."""
    reason = unfit(weights.manifest, settings, of.name)
    if reason:
        raise InputRejected(reason, "Name weights for that nuclide and camera, or none")
    require_correction(weights.manifest)


def _result(
    request: DoseRequest,
    weights: Weights,
    volume: Volume,
    device: str,
    notes: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
) -> DoseRate:
    settings, manifest = request.network, weights.manifest
    assert settings is not None
    return DoseRate(
        volume=volume,
        engine="cnn",
        device=device,
        kernel_sha256=kernel_sha256(request.nuclide, request.density.grid.spacing_mm),
        parameters=(
            f"weights={manifest.name}",
            f"weights_version={manifest.version}",
            f"weights_sha256={manifest.sha256}",
            f"architecture={manifest.architecture}",
            "voxel_mm=" + " x ".join(f"{mm:.7g}" for mm in manifest.voxel_mm),
            f"precision={settings.precision}",
            "heterogeneity=density_scaling",
        ),
        notes=(*flags, *_note_precision(settings), *notes),
        flags=flags,
        weights=WeightsUsed(manifest.name, manifest.version, manifest.sha256),
    )


def _note_precision(settings: NetworkSettings) -> tuple[str, ...]:
    if settings.precision == "exact":
        return ()
    return ("computed in the fast precision of the network, which rounds more than exact",)


# ── on the network's lattice ─────────────────────────────────────────────────────────────────────


def _corrected(
    request: DoseRequest, weights: Weights, dvk: Float32, progress: Progress
) -> tuple[Float32, str, tuple[str, ...]]:
    """DVK's map with what the network adds, mGy/h on the dose grid; the device; its notes."""
    import torch

    from models.errors import out_of_memory

    chosen, notes = usable_device(request.device)
    notes = tuple(note.replace("convolved on the CPU", "the network ran on the CPU") for note in notes)
    try:
        found, device, more = _on_the_way(request, weights, dvk, chosen, progress)
    except RuntimeError as error:
        if chosen == "cpu" or not out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        found, device, more = _on_the_way(request, weights, dvk, "cpu", progress)
        notes += (f"GPU memory did not suffice on {chosen}: the network ran on the CPU",)
    for note in (*notes, *more):
        log.warning(note)
    return found, device, (*notes, *more)


def _on_the_way(
    request: DoseRequest, weights: Weights, dvk: Float32, device: str, progress: Progress
) -> tuple[Float32, str, tuple[str, ...]]:
    """Onto the network's lattice, through the network, and back."""
    import torch

    from models.scaling import density_input, residual_to_mgy_per_h, spect_input
    from models.streaming import Streaming

    settings, lattice = request.network, lattice_for(request.density.grid, weights.manifest)
    assert settings is not None
    spect, density = _inputs(request, lattice, device)
    total_mbq = request.activity.integral / BQ_PER_MBQ
    streaming = Streaming(weights.network, device, settings.precision)
    residual = _through(
        streaming,
        spect_input(spect, total_mbq),
        density_input(density),
        lambda what, part: progress(what, _DVK_ENDS + (_NETWORK_ENDS - _DVK_ENDS) * part),
    )
    progress("network back onto the dose grid", _NETWORK_ENDS)
    # The GPU's memory may not have sufficed for the network: then nothing more is asked of it.
    used = streaming.device
    change = torch.from_numpy(residual_to_mgy_per_h(residual, total_mbq)).to(used)
    mass_density = torch.from_numpy(density).to(used)
    found = lattice.brought_back(change, mass_density, dvk, request.density.array)
    return found, used, streaming.notes


def lattice_for(grid: Grid, manifest: Manifest) -> NetworkGrid:
    """The lattice of a network over a dose grid."""
    from models.dblurdosenet import DIVISOR

    return network_grid(grid, manifest.voxel_mm, DIVISOR)


def _through(streaming: Streaming, spect: Float32, density: Float32, progress: Progress) -> Float32:
    """The network's output. Where there are fewer slices than it sees at once, the end slices are repeated.

    raises: InputRejected for what no network can be given.
    """
    from models.dblurdosenet import WINDOW
    from models.errors import ModelRejected

    depth = spect.shape[0]
    below = max(WINDOW - depth, 0) // 2
    above = max(WINDOW - depth, 0) - below
    if below or above:
        spect, density = (
            np.pad(array, ((below, above), (0, 0), (0, 0)), mode="edge") for array in (spect, density)
        )
    try:
        return streaming.residual(spect, density, progress)[below : below + depth]
    except ModelRejected as error:
        raise InputRejected(error.reason, error.remedy) from error


def _inputs(request: DoseRequest, lattice: NetworkGrid, device: str) -> tuple[Float32, Float32]:
    """Bq/mL and g/cm³ on the network's lattice, (z, y, x).

    What is known beside the density's box counts; beyond that there is air, and no activity.
    """
    import torch

    result, known = request.density.grid, request.surroundings or request.density
    if request.image is not None and parallel(request.image.grid, lattice.grid):
        # As in training: straight from the image, also where the voxels of the CT are coarse.
        activity = torch.from_numpy(averaged(request.image, lattice.grid).array)
    else:
        start = lattice_offset(request.activity.grid, result)
        activity = lattice.onto_network(request.activity.array, start, device)
    density = lattice.onto_network(
        known.array, lattice_offset(known.grid, result), device, outside=AIR_G_PER_CM3
    )
    return activity.cpu().numpy(), density.cpu().numpy()


# ── how unusual the result is ────────────────────────────────────────────────────────────────────


def _unusual(request: DoseRequest, manifest: Manifest, found: Float32, dvk: Float32) -> Iterator[str]:
    """More than the weights' evaluation saw: energy in the whole map and in each ROI, relative to DVK's."""
    if not {"body", "roi"} <= set(manifest.ood):
        yield (
            f"the network weights {manifest.name} do not state how far their evaluation differed from DVK: "
            "the result was not compared with it"
        )
        return
    density = request.density.array
    expected = _energy(dvk, density)
    # None at all where the activity lies farther off than DVK's kernel reaches.
    ratio = _energy(found, density) / expected if expected > 0 else math.nan
    yield from _flagged(ratio, manifest, "body", "the energy that the network finds in the whole map")
    for name, mask in request.regions.items():
        weight = density[mask]
        expected = float(np.vdot(dvk[mask], weight))
        if expected > 0:
            ratio = float(np.vdot(found[mask], weight)) / expected
            kind = _limited_as(name, int(mask.sum()) * request.density.grid.voxel_volume_ml, manifest)
            yield from _flagged(ratio, manifest, kind, f"the energy that the network finds in {name!r}")


def _limited_as(name: str, volume_ml: float, manifest: Manifest) -> str:
    """Whose range holds for a ROI: its class's, where the evaluation saw enough of it, else any VOI's."""
    kind = sized(voi_class(name), volume_ml)
    # A ROI "liver" holds its lesions too; the class is what is left without them.
    whole_liver = kind is VoiClass.HEALTHY_LIVER and HEALTHY_LIVER not in name.lower()
    return "roi" if whole_liver or str(kind) not in manifest.ood else str(kind)


def _flagged(ratio: float, manifest: Manifest, kind: str, what: str) -> Iterator[str]:
    low, high = manifest.ood[kind]
    if not low <= ratio <= high:
        yield (
            f"{what} is {ratio:.3g} times DVK's; the evaluation of the weights {manifest.name} expects "
            f"{low:.3g} to {high:.3g}: judge it before use"
        )


def _energy(dose_rate: Float32, density: Float32) -> float:
    """Σ dose rate · density; plane by plane, so that float32 sums stay short."""
    return sum(float(np.vdot(d, rho)) for d, rho in zip(dose_rate, density, strict=True))
