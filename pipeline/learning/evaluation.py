"""DVK, Monte Carlo on the SPECT, and networks against the truth of one patient after the other.

::

    evaluation.py   an example, all methods -> errors of every VOI
    results.py      what is kept of them: a few kB of JSON for a patient
    comparison.py   what a class of VOIs has in common, and where a network is worse than DVK
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.dose_rate import AIR_BELOW_G_PER_CM3, HOUR_S, Progress, silent
from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.learning import metrics
from pipeline.learning.example import Example, Realisation
from pipeline.learning.metrics import DOSE_RATE_LEVELS
from pipeline.learning.results import DVK, MC, Evaluation, Figures, NoiseResult, PatientResult, VoiResult
from pipeline.vois import BODY, HEALTHY_LIVER, VoiClass, judged_vois, sized, voi_class
from pipeline.volume import Grid, Triple

if TYPE_CHECKING:
    from models.dblurdosenet import Network
    from pipeline.network_grid import NetworkGrid

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Method = Callable[[Example], Array | None]
"""An example -> its dose rate in mGy/h on the example's grid; None where the example has no such map."""

Look = Callable[[Example, Mapping[str, Array]], None]

NGY_PER_MGY = 1e6
SPHERE_MM = (8.0, 15.0)
"""Least and largest radius of the spheres in which ensemble noise is measured."""


# ── methods ────────────────────────────────────────────────────────────────────────────────


def classical_methods() -> dict[str, Method]:
    """What needs no network: the maps that an example brings along."""
    return {DVK: lambda example: example.dvk, MC: lambda example: example.mc_on_spect}


def network_method(
    network: Network, voxel_mm: Triple, device: str = "cpu", precision: Literal["exact", "fast"] = "exact"
) -> NetworkMethod:
    """A network as a method, by the node's own way onto its lattice and back.

    voxel_mm: (z, y, x) that it was trained for.
    raises (when called): InputRejected for an example that the network cannot be run on.
    """
    from models.errors import ModelRejected
    from models.streaming import Streaming

    streaming = Streaming(network, device, precision)

    def run(spect: Array, density: Array) -> Array:
        try:
            output: Array = streaming.residual(spect, density)
        except ModelRejected as error:
            raise InputRejected(error.reason, error.remedy) from error
        return output

    return NetworkMethod(run, network.residual, voxel_mm, device)


@dataclass(frozen=True, slots=True, eq=False)
class NetworkMethod:
    """A network as a `Method`.

    run: (SPECT, density) in the network's scaling, (z, y, x) -> its output. residual: whether that is added
        to DVK's map or is the dose rate itself. voxel_mm: (z, y, x) that it was trained for.
    """

    run: Callable[[Array, Array], Array]
    residual: bool
    voxel_mm: Triple
    device: str = "cpu"

    def __call__(self, example: Example) -> Array:
        """mGy/h on the example's grid. All zero where there is no activity: the output is per activity."""
        import torch

        from models.scaling import density_input, residual_to_mgy_per_h, spect_input

        if not example.total_mbq > 0:
            return np.zeros(example.grid.shape, np.float32)
        lattice = self._lattice(example)
        spect, density, dvk = (
            lattice.onto_network(map_, (0, 0, 0), self.device)
            for map_ in (example.spect, example.density, example.dvk)
        )
        # Relative to the activity of the whole field of view, not of the box that an example keeps.
        scaled = spect_input(spect.cpu().numpy(), example.total_mbq)
        output = self.run(scaled, density_input(density.cpu().numpy()))
        change = torch.from_numpy(residual_to_mgy_per_h(output, example.total_mbq)).to(self.device)
        rate: Array = lattice.brought_back(
            change if self.residual else change - dvk, density, example.dvk, example.density
        )
        return rate

    def bare_for_zero(self, example: Example) -> tuple[float, float] | None:
        """What the network itself would add for a SPECT of zero in the example's density, in tissue.

        returns: its highest size over DVK's highest, and its mean size over DVK's mean; None without a dose
        rate to compare with.
        """
        from models.scaling import density_input, residual_to_mgy_per_h

        lattice = self._lattice(example)
        density, dvk = (
            lattice.onto_network(map_, (0, 0, 0), self.device).cpu().numpy()
            for map_ in (example.density, example.dvk)
        )
        tissue = density >= AIR_BELOW_G_PER_CM3
        if not dvk[tissue].any():
            return None
        output = self.run(np.zeros_like(density), density_input(density))
        change = np.abs(residual_to_mgy_per_h(output, example.total_mbq)[tissue])
        return (
            float(change.max() / dvk[tissue].max()),
            float(change.mean(dtype=np.float64) / dvk[tissue].mean(dtype=np.float64)),
        )

    def _lattice(self, example: Example) -> NetworkGrid:
        from models.dblurdosenet import DIVISOR
        from pipeline.network_grid import network_grid

        return network_grid(example.grid, self.voxel_mm, DIVISOR)


def zero_for_zero(method: Method, example: Example) -> bool:
    """Whether a method gives all zero for the same patient without activity.

    A network is then not asked: what it would have said is `NetworkMethod.bare_for_zero`.
    """
    nothing = np.zeros(example.grid.shape, np.float32)
    empty = replace(example, spect=nothing, dvk=nothing, mc_on_spect=nothing, total_mbq=0.0, realisations=())
    found = method(empty)
    return found is not None and not found.any()


# ── judging ────────────────────────────────────────────────────────────────────────────────


def evaluate(
    examples: Iterable[Example],
    methods: Mapping[str, Method],
    progress: Progress = silent,
    look: Look = lambda _example, _maps: None,
) -> Evaluation:
    """Judge every example; they are asked for one at a time, so that one at a time is in memory.

    methods: DVK must be among them. progress: called with (patient, how many before him). look: called with
    each example and the maps of all methods, mGy/h, for pictures.
    raises: InputRejected without examples.
    """
    patients = []
    for number, example in enumerate(examples):
        progress(f"patient {example.patient_id}", float(number))
        patients.append(judge(example, methods, look))
    if not patients:
        raise InputRejected("there is no example to evaluate on", "Name a folder that holds some")
    return Evaluation(tuple(methods), tuple(patients))


def judge(
    example: Example, methods: Mapping[str, Method], look: Look = lambda _example, _maps: None
) -> PatientResult:
    """All VOIs of one patient by all methods. raises: ValueError where DVK is not among the methods."""
    if DVK not in methods:
        raise ValueError("every method is compared with DVK: give it too")
    maps = estimates(example, methods)
    look(example, maps)
    again = [estimates(_imaged_again(example, other), methods) for other in example.realisations]
    vois = judged_vois(example.vois)
    results, skipped = [], []
    for name, mask in vois.items():
        try:
            results.append(_judged_voi(example, name, mask, maps, again))
        except InputRejected as why:
            skipped.append(f"{name}: {why}")
    return PatientResult(
        patient=example.patient_id,
        zero_for_zero={name: zero_for_zero(method, example) for name, method in methods.items()},
        bare_for_zero={
            name: bare
            for name, method in methods.items()
            if isinstance(method, NetworkMethod) and (bare := method.bare_for_zero(example)) is not None
        },
        family=example.family,
        total_mbq=example.total_mbq,
        vois=tuple(results),
        body_energy=_body_energy(example, maps),
        noise=_noise(example.grid, vois, maps, again),
        skipped=tuple(skipped),
    )


def estimates(example: Example, methods: Mapping[str, Method]) -> dict[str, Array]:
    """The maps of all methods that have one. raises: InputRejected for one that is not finite."""
    found: dict[str, Array] = {}
    for name, method in methods.items():
        map_ = method(example)
        if map_ is None:
            continue
        if not np.isfinite(map_).all():
            raise InputRejected(
                f"{name} gave {int(np.count_nonzero(~np.isfinite(map_)))} voxels that are not finite numbers "
                f"for {example.patient_id}",
                "Check the weights and the example",
            )
        found[name] = map_
    return found


def _imaged_again(example: Example, other: Realisation) -> Example:
    return replace(
        example,
        spect=other.spect,
        dvk=other.dvk,
        total_mbq=other.total_mbq,
        mc_on_spect=None,
        realisations=(),
    )


def _judged_voi(
    example: Example,
    name: str,
    mask: Mask,
    maps: Mapping[str, Array],
    again: Sequence[Mapping[str, Array]],
) -> VoiResult:
    box = crop_box(mask)
    inside = mask[box]
    truth, density = example.truth[box][inside], example.density[box][inside]
    dvk_energy = float(np.dot(maps[DVK][box][inside].astype(np.float64), density))
    by_method = {}
    for method, map_ in maps.items():
        values = map_[box][inside]
        repeated = [other[method][box][inside] for other in again if method in other]
        by_method[method] = _figures(values, truth, density, dvk_energy, repeated, example.total_mbq)
    volume_ml = truth.size * example.grid.voxel_volume_ml
    return VoiResult(
        name=name,
        kind=sized(voi_class(name), volume_ml),
        volume_ml=volume_ml,
        true_mean=_per_mbq(float(truth.mean(dtype=np.float64)), example.total_mbq),
        label_uncertainty=label_uncertainty(example, name),
        by_method=by_method,
        label_noise=_stated(example, "label_uncertainty", name, "of_voxels"),
        mc_uncertainty=_stated(example, "mc_on_spect_uncertainty", name, "of_mean"),
        mc_noise=_stated(example, "mc_on_spect_uncertainty", name, "of_voxels"),
    )


def _figures(
    values: Array,
    truth: Array,
    density: Array,
    dvk_energy: float,
    repeated: Sequence[Array],
    total_mbq: float,
) -> Figures:
    signed = metrics.signed_mean_error(values, truth)
    nrmse = metrics.nrmse(values, truth)
    dr10, dr30, dr70, dr90 = (metrics.dose_rate_at_error(values, truth, x) for x in DOSE_RATE_LEVELS)
    energy = float(np.dot(values.astype(np.float64), density))
    others = tuple((metrics.mean_error(other, truth), metrics.nrmse(other, truth)) for other in repeated)
    return Figures(
        mean=_per_mbq(float(values.mean(dtype=np.float64)), total_mbq),
        ratio=1.0 + signed,
        mean_error=abs(signed),
        nrmse=nrmse,
        dr10=dr10,
        dr30=dr30,
        dr70=dr70,
        dr90=dr90,
        energy_over_dvk=energy / dvk_energy if dvk_energy > 0 else None,
        repeated=((abs(signed), nrmse), *others) if others else (),
    )


def label_uncertainty(example: Example, voi: str) -> float:
    """Relative standard uncertainty of the truth's mean in a VOI; 0 where the example does not say.

    Read from ``meta["label_uncertainty"]``: VOI -> {"of_mean": ..., "of_voxels": ...}.
    """
    return _stated(example, "label_uncertainty", voi, "of_mean")


def _stated(example: Example, of: str, voi: str, what: str) -> float:
    """From ``meta[of]``, as `label_uncertainty` says; 0 where nothing is stated."""
    of_vois = example.meta.get(of) or {}
    # Healthy liver may have been asked for under the organ's own name.
    known = of_vois.get(voi) or (of_vois.get("liver") if voi == HEALTHY_LIVER else None)
    return float(known.get(what, 0.0)) if known else 0.0


def _per_mbq(mgy_per_h: float, total_mbq: float) -> float:
    """mGy/h -> nGy/(MBq s)."""
    return mgy_per_h * NGY_PER_MGY / HOUR_S / total_mbq if total_mbq > 0 else 0.0


def _body_energy(example: Example, maps: Mapping[str, Array]) -> dict[str, float]:
    body = example.vois.get(BODY)
    if body is None:
        body = example.density >= AIR_BELOW_G_PER_CM3
    density = np.where(body, example.density, np.float32(0))
    energies = {
        name: float(np.einsum("zyx,zyx->", map_, density, dtype=np.float64)) for name, map_ in maps.items()
    }
    return {name: e / energies[DVK] for name, e in energies.items()} if energies[DVK] > 0 else {}


def _noise(
    grid: Grid, vois: Mapping[str, Mask], maps: Mapping[str, Array], again: Sequence[Mapping[str, Array]]
) -> tuple[NoiseResult, ...]:
    """In a sphere of the healthy liver and of the spleen, where the patient was imaged more than once."""
    if not again:
        return ()
    found = []
    for name, mask in vois.items():
        if voi_class(name) not in (VoiClass.HEALTHY_LIVER, VoiClass.SPLEEN):
            continue
        sphere = noise_sphere(mask, grid)
        if sphere is None:
            continue
        voxels, radius = sphere
        by_method = {
            method: metrics.ensemble_noise([map_[voxels], *(other[method][voxels] for other in again)])
            for method, map_ in maps.items()
            if all(method in other for other in again) and map_[voxels].any()
        }
        found.append(NoiseResult(name, radius, 1 + len(again), by_method))
    return tuple(found)


def noise_sphere(mask: Mask, grid: Grid) -> tuple[Mask, float] | None:
    """The sphere that lies deepest inside a VOI, and its radius in mm; None where the VOI is too thin.

    mask: (z, y, x). returns: a mask of the same shape; a radius within `SPHERE_MM`.
    """
    from scipy.ndimage import distance_transform_edt

    box = crop_box(mask, (1, 1, 1))
    depth = distance_transform_edt(np.pad(mask[box], 1), sampling=grid.spacing_mm)[1:-1, 1:-1, 1:-1]
    deepest = np.unravel_index(int(np.argmax(depth)), depth.shape)
    # The transform measures to the nearest voxel outside; the surface lies half a voxel before it.
    radius = min(float(depth[deepest]) - min(grid.spacing_mm) / 2, SPHERE_MM[1])
    if radius < SPHERE_MM[0]:
        return None
    distance2 = sum(
        ((np.arange(n) - at) * spacing).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
        for axis, (n, at, spacing) in enumerate(zip(depth.shape, deepest, grid.spacing_mm, strict=True))
    )
    sphere = np.zeros(mask.shape, bool)
    sphere[box] = distance2 <= radius**2
    return sphere, radius
