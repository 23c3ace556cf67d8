"""One example from nothing: patient, SPECT, DVK, and the true dose rate by Monte Carlo.

::

    patient ──▶ activity, density ──────────────────────────────▶ Monte Carlo ──▶ truth
                   │ breathing                                        ▲
                   ▼                                                  │ (test patients)
                SPECT: counts, attenuation, scatter, OSEM ──▶ resampled onto the CT ──▶ DVK

`plan` says which patients there are: those that are learnt from (with a crowd of lesions, if asked for) and
those that are looked at while learning come from the families ``trunk`` and ``harmonic``; those that the
result is judged by come from ``stylised``, with a law of texture of their own. A patient's number fixes all
his random choices.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.averaging import averaged
from pipeline.decay import nuclide
from pipeline.dose_rate import BQ_PER_MBQ, DoseRequest, Progress, silent
from pipeline.dvk import dvk_dose_rate
from pipeline.errors import InputRejected, PipelineError
from pipeline.learning.example import Example, Realisation, save
from pipeline.learning.scene import Patient, Scene, drawn_scene
from pipeline.montecarlo.decay_data import load_source
from pipeline.montecarlo.simulate import Limits, simulate
from pipeline.simulate.acquisition import Means, projected, reconstructed
from pipeline.simulate.camera import SpectCamera
from pipeline.volume import Grid, Volume

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
TRAINING_FAMILIES = ("trunk", "harmonic")
TEST_FAMILY = "stylised"
TRAINING_TEXTURE = "mixed"
TEST_TEXTURE = "filaments"
ON_SPECT_SEED = 1 << 24
"""Monte Carlo on the SPECT counts its seeds from here, far from those of any patient's truth."""
OBSTACLE_G_PER_CM3 = 0.03
"""The foam of a mattress and more: what heads keep clear of."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How examples are made.

    decays, test_decays: whose electrons and photons are followed at a time, for a patient to learn from and
        for one to be judged by.
    uncertainty: relative, k=1; further rounds follow until every VOI's mean is so certain; at most `rounds`.
    counts: in the photopeak of all views, drawn between these, evenly in the logarithm.
    clearance_mm: between the patient on his table and the heads, which follow them; likewise, evenly.
    margin_mm: kept around the body.
    realisations: images of a test patient that differ by their noise alone; pair: of any other patient, from
        which the loss takes how much of what is learnt is noise (`models.loss`).
    """

    decays: float = 60e6
    test_decays: float = 250e6
    uncertainty: float = 0.005
    rounds: int = 3
    counts: tuple[float, float] = (3e6, 20e6)
    clearance_mm: tuple[float, float] = (5.0, 30.0)
    margin_mm: float = 32.0
    realisations: int = 3
    pair: int = 2


def plan(train: int, validation: int, test: int, crowded_from: int | None = None) -> list[Patient]:
    """So many patients of each kind; asking for more leaves those that there were as they are.

    crowded_from: number of the first patient to learn from who has a crowd of lesions; None: nobody has.
    """
    patients = []
    for split, count, first in (
        ("train", train, 1000),
        ("validation", validation, 5000),
        ("test", test, 9000),
    ):
        for number in range(count):
            family = _family(split, number, crowded_from)
            texture = TEST_TEXTURE if split == "test" else TRAINING_TEXTURE
            name = f"{split}-{number:03d}-{family}"
            patients.append(Patient(name, split, first + number, family, texture))  # type: ignore[arg-type]
    return patients


def _family(split: str, number: int, crowded_from: int | None) -> str:
    if split == "test":
        return TEST_FAMILY
    family = TRAINING_FAMILIES[number % len(TRAINING_FAMILIES)]
    crowded = split == "train" and crowded_from is not None and number >= crowded_from
    return f"{family}-crowded" if crowded else family


def generate(
    patients: Sequence[Patient],
    folder: Path,
    settings: Settings,
    camera: SpectCamera,
    *,
    device: str = "cpu",
    threads: int | None = None,
    until: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    make: Callable[..., Example] | None = None,
) -> int:
    """Make the examples that are not there yet, as ``folder/SPLIT/PATIENT.npz``.

    Several processes may work on the same folder: each takes what no other is at. until: asked before each
    example whether to stop. make: as `make_example`, which is the default. returns: how many were made.

    raises: what the first patient raised that could not be made, after all others.
    """
    made = 0
    failed: list[PipelineError] = []
    for number, patient in enumerate(patients):
        if until():
            break
        path = example_path(folder, patient)
        if path.exists():
            continue
        with _alone(path) as mine:
            if not mine or path.exists():
                continue
            tell = _scaled(progress, patient.patient_id, number / len(patients), 1 / len(patients))
            began = time.monotonic()
            try:
                example = (make or make_example)(
                    patient,
                    settings,
                    camera,
                    device=device,
                    threads=threads,
                    kernels=folder / "kernels",
                    progress=tell,
                )
            except PipelineError as error:
                log.warning("%s: %s", patient.patient_id, error)
                failed.append(error)
                continue
            save(example, path)
            log.info("%s in %.0f s", patient.patient_id, time.monotonic() - began)
            made += 1
    if failed:
        raise failed[0]
    return made


def example_path(folder: Path, patient: Patient) -> Path:
    """Where a patient's example is."""
    return folder / patient.split / f"{patient.patient_id}.npz"


def make_example(
    patient: Patient,
    settings: Settings,
    camera: SpectCamera,
    *,
    device: str = "cpu",
    threads: int | None = None,
    kernels: Path | None = None,
    progress: Progress = silent,
) -> Example:
    """A virtual patient's example. kernels: a folder for DVK's kernels; device: of every step.

    raises: InputRejected for a family or a texture that there is not.
    """
    progress("patient", 0.0)
    return example_of(
        drawn_scene(patient, camera),
        patient,
        settings,
        camera,
        device=device,
        threads=threads,
        kernels=kernels,
        progress=progress,
    )


def example_of(
    scene: Scene,
    patient: Patient,
    settings: Settings,
    camera: SpectCamera,
    *,
    device: str = "cpu",
    threads: int | None = None,
    kernels: Path | None = None,
    progress: Progress = silent,
) -> Example:
    """The SPECT of a scene, its DVK and its truth.

    device: of all that runs on one; scatter is simulated on the processor.
    """
    began = time.monotonic()
    judges = patient.split == "test"
    box = _box(scene, settings.margin_mm)
    progress("projections", 0.05)
    acquisition = _Acquisition.of(scene, patient, settings, camera, device, threads)
    images = []
    for noise in range(settings.realisations if judges else settings.pair):
        progress("reconstruction", 0.2 + 0.1 * noise)
        images.append(acquisition.image(noise, box, kernels))
    density = scene.density.boxed(box)
    vois = {name: np.ascontiguousarray(mask[box]) for name, mask in scene.vois.items()}
    dose = _Truth(density, vois, settings, patient, camera.nuclide, device, threads)
    progress("Monte Carlo", 0.4)
    truth = dose.of(scene.activity.boxed(box))
    on_spect: _Label | None = None
    if judges:
        progress("Monte Carlo on the SPECT", 0.7)
        on_spect = dose.of(images[0].spect, ON_SPECT_SEED)
    progress("done", 1.0)
    return Example(
        patient_id=patient.patient_id,
        family=patient.family,
        texture=patient.texture,
        seed=patient.seed,
        grid=density.grid,
        spect=images[0].spect.array,
        density=density.array,
        dvk=images[0].dvk.array,
        truth=truth.rate.array,
        vois=vois,
        total_mbq=images[0].total_mbq,
        mc_on_spect=None if on_spect is None else on_spect.rate.array,
        realisations=tuple(Realisation(i.spect.array, i.dvk.array, i.total_mbq) for i in images[1:]),
        meta={
            **acquisition.facts(),
            "true_mbq": scene.activity.integral / BQ_PER_MBQ,
            **truth.facts("", "label_uncertainty"),
            **({} if on_spect is None else on_spect.facts("mc_on_spect_", "mc_on_spect_uncertainty")),
            "seconds": round(time.monotonic() - began, 1),
            **scene.facts,
        },
    )


class _Image(NamedTuple):
    """SPECT (Bq/mL) and DVK's dose rate of it (mGy/h) in the body's box; the activity in the whole field."""

    spect: Volume
    dvk: Volume
    total_mbq: float


@dataclass(frozen=True, slots=True, eq=False)
class _Acquisition:
    """A scene on the camera: all but the noise, which makes one image of it or another."""

    scene: Scene
    patient: Patient
    camera: SpectCamera
    counts: float
    clearance_mm: float
    means: Means
    device: str
    threads: int | None

    @classmethod
    def of(
        cls,
        scene: Scene,
        patient: Patient,
        settings: Settings,
        camera: SpectCamera,
        device: str,
        threads: int | None,
    ) -> _Acquisition:
        """With counts and clearance as the patient's number draws them."""
        rng = np.random.default_rng([patient.seed, 12])
        counts = float(np.exp(rng.uniform(*np.log(settings.counts))))
        clearance = float(rng.uniform(*settings.clearance_mm))
        round_him = replace(camera, orbit_mm=_orbit(scene.resting, scene.spect_grid, camera, clearance))
        means = projected(
            scene.seen,
            scene.attenuating,
            round_him,
            scene.spect_grid,
            patient.seed,
            device=device,
            threads=threads,
        )
        return cls(scene, patient, round_him, counts, clearance, means, device, threads)

    def image(self, noise: int, box: tuple[slice, slice, slice], kernels: Path | None) -> _Image:
        """One realisation, on the CT."""
        scene = self.scene
        seen = reconstructed(
            self.means,
            scene.seen,
            scene.resting,
            self.camera,
            scene.spect_grid,
            self.counts,
            16 * self.patient.seed + noise,
            device=self.device,
            threads=self.threads,
        )
        onto = averaged(seen.image, scene.density.grid)
        of = nuclide(self.camera.nuclide)
        request = DoseRequest(onto, scene.density, of, device=self.device, kernel_cache=kernels)
        return _Image(onto.boxed(box), dvk_dose_rate(request).volume.boxed(box), onto.integral / BQ_PER_MBQ)

    def facts(self) -> dict[str, Any]:
        """For `Example.meta`."""
        camera = self.camera
        return {
            "camera": camera.name,
            "pixel_mm": camera.pixel_mm,
            "views": camera.views,
            "fwhm_mm_at_100_mm": round(camera.fwhm_mm(100.0), 3),
            "radius_mm": [round(float(r), 1) for r in (min(camera.orbit_mm), max(camera.orbit_mm))],
            "clearance_mm": round(self.clearance_mm, 1),
            "counts": self.counts,
            "scatter_fraction": round(self.means.scatter_fraction, 4),
        }


class _Label(NamedTuple):
    """A dose rate by Monte Carlo. uncertainty: of each VOI. decays: electrons' and photons', all rounds."""

    rate: Volume
    uncertainty: dict[str, dict[str, float]]
    decays: tuple[int, int]
    rounds: int

    def facts(self, prefix: str, uncertainty: str) -> dict[str, Any]:
        """For `Example.meta`: by how many decays it was made, and how certain it is."""
        return {
            f"{prefix}electron_decays": self.decays[0],
            f"{prefix}photon_decays": self.decays[1],
            f"{prefix}rounds": self.rounds,
            uncertainty: self.uncertainty,
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """Monte Carlo in one density."""

    density: Volume
    vois: Mapping[str, Mask]
    settings: Settings
    patient: Patient
    nuclide: str
    device: str
    threads: int | None

    def of(self, activity: Volume, first_seed: int = 0) -> _Label:
        """The dose rate, and how certain each VOI's mean is: further rounds until it is enough.

        first_seed: another one for another activity: with the same, the noise of both would be alike.
        """
        decays = self.settings.test_decays if self.patient.split == "test" else self.settings.decays
        total = np.zeros(self.density.grid.shape, np.float64)
        of_mean, of_voxels = dict.fromkeys(self.vois, 0.0), dict.fromkeys(self.vois, 0.0)
        electrons = photons = 0
        for number in range(1, self.settings.rounds + 1):
            run = simulate(
                activity,
                self.density,
                load_source(self.nuclide),
                regions=self.vois,
                limits=Limits(decays=decays),
                seed=first_seed + self.patient.seed * 16 + number,
                device=self.device,
                threads=self.threads,
            )
            total += run.dose_rate.array
            electrons, photons = electrons + run.electron_decays, photons + run.photon_decays
            for region in run.regions:
                of_mean[region.name] += region.uncertainty_of_mean**2
                of_voxels[region.name] += region.mean_voxel_uncertainty**2
            if np.sqrt(max(of_mean.values(), default=0.0)) / number <= self.settings.uncertainty:
                break
        mean = (total / number).astype(np.float32)
        _require_dose(mean, self.patient)
        certainty = {
            name: {
                "of_mean": float(np.sqrt(of_mean[name])) / number,
                "of_voxels": float(np.sqrt(of_voxels[name])) / number,
            }
            for name in self.vois
        }
        self._warn(certainty, number)
        rate = Volume(mean, self.density.grid, "mGy/h")
        return _Label(rate, certainty, (electrons, photons), number)

    def _warn(self, certainty: Mapping[str, Mapping[str, float]], rounds: int) -> None:
        """Of every VOI that is less certain than was asked for."""
        wanted = self.settings.uncertainty
        short = {name: of["of_mean"] for name, of in certainty.items() if of["of_mean"] > wanted}
        if short:
            log.warning(
                "%s: after %d rounds the Monte Carlo is less certain than the %.2g %% asked for in %s: "
                "raise decays or rounds",
                self.patient.patient_id,
                rounds,
                100 * wanted,
                ", ".join(f"{name} ({value:.2%})" for name, value in short.items()),
            )


def _require_dose(dose: NDArray[np.float32], patient: Patient) -> None:
    if not np.isfinite(dose).all() or not dose.any():
        raise InputRejected(
            f"the Monte Carlo of {patient.patient_id} gave {'nothing' if not dose.any() else 'no numbers'}",
            "Check that the activity lies in tissue",
        )


def _box(scene: Scene, margin_mm: float) -> tuple[slice, slice, slice]:
    """The body's box in a slice, and all slices: the network repeats end slices, which are the CT's."""
    grid = scene.density.grid
    spans = []
    for axis in (1, 2):
        hits = np.flatnonzero(scene.body.any(axis=(0, 3 - axis)))
        if not hits.size:
            raise InputRejected("there is no body in the density", "Densities are in g/cm3, air 0.0012")
        margin = int(np.ceil(margin_mm / grid.spacing_mm[axis]))
        spans.append(slice(max(int(hits[0]) - margin, 0), min(int(hits[-1]) + 1 + margin, grid.shape[axis])))
    return slice(0, grid.shape[0]), spans[0], spans[1]


def _orbit(density: Volume, spect: Grid, camera: SpectCamera, clearance_mm: float) -> tuple[float, ...]:
    """mm from the axis, view by view: clear of all that is in the camera's way, patient, arms and table."""
    rows, columns = np.nonzero((density.array > OBSTACLE_G_PER_CM3).any(axis=0))
    x, y, _ = density.grid.positions(np.stack([np.zeros_like(rows), rows, columns], axis=-1)).T
    axis = spect.positions((np.asarray(spect.shape) - 1) / 2)
    angles = camera.view_angles[:, None]
    reach = (np.sin(angles) * (x - axis[0]) - np.cos(angles) * (y - axis[1])).max(axis=1)
    half_voxel = float(np.hypot(*density.grid.spacing_mm[1:])) / 2
    return tuple(float(r) for r in reach + half_voxel + clearance_mm)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process is at this file. The lock ends with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


def _scaled(progress: Progress, patient: str, start: float, part: float) -> Progress:
    return lambda what, done: progress(f"{patient}: {what}", start + part * done)
