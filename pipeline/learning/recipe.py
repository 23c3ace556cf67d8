"""From nothing to weights: generate, train, evaluate, publish.

::

    OUT/train, OUT/validation, OUT/test    examples, one file a patient                 generate
    OUT/networks/ARCHITECTURE/             checkpoint.npz, log.jsonl                    train
    OUT/evaluation.json, evaluation.md     the tables; figures/ beside them             evaluate
    OUT/weights/NAME/                      weights, manifest and model card             publish

Each stage can be run by itself, in a process of its own, and goes on where it was interrupted. Training looks
for new examples while it runs, so that generation may go on beside it. Of a machine that keeps nothing only
``networks`` need be kept: the same patients are made again from their numbers.

The hours are shared out: 45 % for generation, 45 % for training, the rest for what remains.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models import training
from models.samples import Sample, sample
from models.scaling import density_input, dose_target, spect_input
from pipeline.cores import available_cores
from pipeline.dose_rate import HOUR_S, Progress, silent
from pipeline.errors import InputRejected
from pipeline.learning import generate as generating
from pipeline.learning.example import Example, described, load
from pipeline.learning.scene import Patient, Split, given_scene
from pipeline.simulate.camera import SpectCamera
from pipeline.vois import judged_vois

if TYPE_CHECKING:
    from models.dblurdosenet import Network
    from pipeline.learning.results import Evaluation

log = logging.getLogger(__name__)

Stage = Literal["generate", "train", "evaluate", "publish"]
STAGES: tuple[Stage, ...] = get_args(Stage)
GENERATING, TRAINING = 0.45, 0.45
LEAST_TO_TRAIN = 2
GOING_ON = 0.5
"""Of the learning rate: for weights that training goes on from."""
OWN_OPTIONS = ("steps", "seconds", "started_from", "mix")
"""Settings of the loop that a recipe has fields of its own for."""
HELD_BACK = 5
"""Of a hospital's own patients one in so many is judged, and one in so many looked at while training."""
GIVEN = "patients.json"
"""In the folder of a training: a hospital's patients in the order in which they came."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make, and of what.

    hours: for all stages together. train, validation, test: virtual patients of each kind, as many as there
        is time for. crowded_from: number of the first to learn from who has a crowd of lesions; None: nobody.
    data: a hospital's own truth instead of virtual patients (see `example`); None: virtual patients.
    architectures: each is trained; the first one's weights are published. name: of the published weights.
    steps: of training, for each architecture, in place of its share of the hours: an equal budget anywhere.
    start_from: folder of weights to go on from, in place of nothing: for more of the same, or for a camera of
        one's own. mix: part of what is learnt then in the weights that are judged and published.
    device: of all that can use one. threads: of the processor, in each process; None: all.
    workers: processes that generate at once.
    pause_s: this call ends after so long, whatever is done by then; None: it does not.
    chosen: only these of the patients are generated, first and end in the order of `patients_of`.
    learning: settings of the loop by name (`training.Settings`), in place of the usual ones.
    """

    hours: float = 2.0
    train: int = 200
    validation: int = 2
    test: int = 5
    crowded_from: int | None = None
    data: Path | None = None
    architectures: tuple[str, ...] = ("dblurdosenet",)
    middle: int = 16
    steps: int | None = None
    start_from: Path | None = None
    mix: float = 1.0
    name: str = "dblurdosenet-lu177"
    device: str = "cpu"
    threads: int | None = None
    workers: int = 1
    pause_s: float | None = None
    chosen: tuple[int, int] | None = None
    software: str = ""
    generate: generating.Settings = field(default_factory=generating.Settings)
    learning: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise InputRejected(f"a recipe of {self.hours:g} hours", "Give it more than none")
        if self.start_from is not None and len(self.architectures) != 1:
            raise InputRejected(
                f"weights to start from, and {len(self.architectures)} architectures to train",
                "Name the one architecture of these weights",
            )
        if self.start_from is None and self.mix != 1:
            raise InputRejected("a mix, and no weights to start from", "Name them too, or leave the mix out")
        if not 0 < self.mix <= 1:
            raise InputRejected(f"a mix of {self.mix:g}", "Take more than 0 of what is learnt, and at most 1")
        loop = {one.name for one in fields(training.Settings)} - set(OWN_OPTIONS)
        if unknown := sorted(set(self.learning) - loop):
            raise InputRejected(
                f"{unknown[0]!r} is no setting of the training", f"Take one of {', '.join(sorted(loop))}"
            )
        if self.data is not None and not self.data.is_dir():
            raise InputRejected(
                f"there is no folder {self.data}", "Name the folder that holds one per patient"
            )

    @property
    def loop(self) -> training.Settings:
        """How each network is trained: its share of the hours, and larger batches where a GPU computes."""
        seconds = None if self.steps else TRAINING * self.hours * HOUR_S / len(self.architectures)
        budget = training.Settings(steps=self.steps, seconds=seconds)
        if self.device == "cpu":
            # Four times as many patients in the same time, and kernels as wide as the camera's response.
            usual = replace(budget, in_plane=2, crop=80, margin=8, batch=2)
        else:
            usual = replace(budget, batch=16, loaders=8, memory_gb=20.0)
        return replace(usual, **self.learning)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A recipe at work in a folder. today: ISO date; clock: seconds."""

    recipe: Recipe
    camera: SpectCamera
    folder: Path
    today: str
    machine: str = ""
    progress: Progress = silent
    tell: Callable[[str], None] = log.info
    clock: Callable[[], float] = time.monotonic


def run(work: Work, stages: Sequence[str] = STAGES) -> None:
    """The stages, one after the other; what is there already is kept.

    raises: InputRejected for a stage that there is not, or one that lacks what an earlier one makes.
    """
    steps: dict[str, Callable[[Work, Callable[[], float]], None]] = {
        "generate": generate,
        "train": train,
        "evaluate": evaluate,
        "publish": publish,
    }
    unknown = [stage for stage in stages if stage not in steps]
    if unknown:
        raise InputRejected(f"there is no stage {unknown[0]!r}", f"Use {', '.join(STAGES)}")
    began = work.clock()
    pause = work.recipe.pause_s

    def left() -> float:
        return float("inf") if pause is None else pause - (work.clock() - began)

    for stage in STAGES:
        if stage in stages:
            if left() <= 0:
                work.tell(f"paused before {stage}: call again to go on")
                return
            work.tell(f"stage {stage}")
            # Of a call that is to end early, generation leaves training its part.
            part = GENERATING if stage == "generate" and "train" in stages else 1.0
            steps[stage](work, lambda part=part: part * left())  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- generate


def patients_of(recipe: Recipe, folder: Path) -> list[Patient]:
    """Who is made, in that order: first some to begin with, then those that judge, then all others."""
    if recipe.data is not None:
        return given_patients(recipe.data, folder)
    by_split: dict[str, list[Patient]] = {"train": [], "validation": [], "test": []}
    for patient in generating.plan(recipe.train, recipe.validation, recipe.test, recipe.crowded_from):
        by_split[patient.split].append(patient)
    first, others = by_split["train"][:8], by_split["train"][8:]
    return first + by_split["validation"] + by_split["test"] + others


def given_patients(data: Path, folder: Path) -> list[Patient]:
    """A hospital's patients: one in five is judged, and one in five only looked at while training.

    folder: keeps who came first, so that whom training has seen is never judged by, whoever is added.
    raises: InputRejected for a folder with fewer than four.
    """
    names = sorted(path.parent.name for path in data.glob("*/activity.npz"))
    if len(names) < LEAST_TO_TRAIN + 2:
        raise InputRejected(
            f"{data} holds {len(names)} patients with an activity.npz",
            "Training needs four at least: two to learn from, one to look at and one to judge by",
        )
    splits: dict[int, Split] = {0: "test", 1: "validation"}
    return [
        Patient(name, splits.get(k % HELD_BACK, "train"), 20_000 + k, "given", "given")
        for k, name in enumerate(_known_first(names, folder))
        if name in names
    ]


def _known_first(names: Sequence[str], folder: Path) -> list[str]:
    """Those of earlier calls in the order in which they came, then the new ones; written down."""
    path = folder / GIVEN
    try:
        known: list[str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = []
    except ValueError as error:
        raise InputRejected(
            f"{path} cannot be read: {error}",
            "Restore it, or begin in an empty folder: it says who is judged by",
        ) from error
    ordered = [*known, *(name for name in names if name not in known)]
    if ordered != known:
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(ordered), encoding="utf-8")
        part.replace(path)
    return ordered


def generate(work: Work, left: Callable[[], float]) -> None:
    """Make the examples that are missing, until generation's share of the hours is over."""
    recipe = work.recipe
    first, end = recipe.chosen or (0, None)
    chosen = patients_of(recipe, work.folder)[first:end]
    seconds = min(GENERATING * recipe.hours * HOUR_S, left())
    began = work.clock()
    if recipe.workers == 1:
        made = _generated(
            recipe, work.camera, work.folder, chosen, lambda: work.clock() - began >= seconds, work.progress
        )
    else:
        made = _generated_at_once(work, chosen, seconds)
    there = sum(generating.example_path(work.folder, patient).exists() for patient in chosen)
    work.tell(f"{made} examples made, {there} of {len(chosen)} are there")


def _generated(
    recipe: Recipe,
    camera: SpectCamera,
    folder: Path,
    patients: Sequence[Patient],
    until: Callable[[], bool],
    progress: Progress = silent,
) -> int:
    make = generating.make_example if recipe.data is None else partial(given_example, recipe.data)
    return generating.generate(
        patients,
        folder,
        recipe.generate,
        camera,
        device=recipe.device,
        threads=recipe.threads,
        until=until,
        progress=progress,
        make=make,
    )


def _generated_at_once(work: Work, patients: Sequence[Patient], seconds: float) -> int:
    """Several processes; each takes what no other is at."""
    recipe = replace(
        work.recipe, threads=work.recipe.threads or max(1, available_cores() // work.recipe.workers)
    )
    # Neither CUDA nor numba's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    until = time.time() + seconds
    with ProcessPoolExecutor(recipe.workers, mp_context=context) as pool:
        jobs = [
            pool.submit(_worker, recipe, work.camera, work.folder, list(patients), until)
            for _ in range(recipe.workers)
        ]
        return sum(job.result() for job in jobs)


def _worker(recipe: Recipe, camera: SpectCamera, folder: Path, patients: list[Patient], until: float) -> int:
    return _generated(recipe, camera, folder, patients, lambda: time.time() >= until)


def given_example(
    data: Path, patient: Patient, settings: generating.Settings, camera: SpectCamera, **how: Any
) -> Example:
    """A hospital's patient as an example. how: as `generate.example_of`."""
    scene = given_scene(data / patient.patient_id, patient, camera)
    return generating.example_of(scene, patient, settings, camera, **how)


# ---------------------------------------------------------------------------------------------------- train


def train(work: Work, left: Callable[[], float]) -> None:
    """Train each architecture, or go on with it, until its share of the hours is used.

    raises: InputRejected without examples; ModelRejected for maps that do not fit, naming the file.
    """
    import torch

    recipe = work.recipe
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    folder = work.folder / "train"
    there = len(list(folder.glob("*.npz")))
    if there < LEAST_TO_TRAIN:
        raise InputRejected(
            f"{folder} holds {there} examples", f"Generate {LEAST_TO_TRAIN} or more: --stage generate"
        )
    taken = partial(new_samples, in_plane=recipe.loop.in_plane, images=2 if recipe.loop.noise_weight else 1)
    validation = list(taken(work.folder / "validation", set()))
    for architecture in recipe.architectures:
        network, settings = _beginning(work, architecture)
        work.tell(f"training {architecture} on {there} patients")
        trained = training.train(
            network,
            taken(folder, set()),
            settings,
            network_folder(work.folder, architecture),
            device=recipe.device,
            validation=validation,
            more=partial(taken, folder),
            pause_after_s=max(left(), 1.0),
            clock=work.clock,
            tell=lambda entry: work.tell(said(entry)),
        )
        if not trained.finished:
            work.tell(f"paused at step {trained.step}: call again to go on")
            return


def _beginning(work: Work, architecture: str) -> tuple[Network, training.Settings]:
    """A network that knows nothing, or one that goes on from weights, and the settings of the loop.

    What was trained has found its BatchNorm statistics, which are held from the first step, and its rate is a
    part of the highest: it is to be moved on, not shaken.

    raises: InputRejected for weights of another architecture, nuclide or voxel size; ModelRejected for those
        that cannot be read.
    """
    from models import weights

    recipe, settings = work.recipe, work.recipe.loop
    if recipe.start_from is None:
        return training.fresh(architecture, recipe.middle, settings.seed), settings
    found = weights.load(recipe.start_from)
    known = found.manifest
    settings = replace(settings, in_plane=_in_plane_of(work.folder, known.voxel_mm, settings.in_plane))
    voxel = _voxel_of(work.folder, settings.in_plane)
    for what, theirs, ours in (
        ("architecture", known.architecture, architecture),
        ("nuclide", known.nuclide, work.camera.nuclide),
        ("voxel size", _said_mm(known.voxel_mm), _said_mm(voxel)),
    ):
        if theirs != ours:
            raise InputRejected(
                f"the weights {known.name} are of the {what} {theirs}, and {ours} is to be trained",
                "Start from others, or from nothing",
            )
    going_on = _going_on(settings, recipe.learning)
    return found.network, replace(
        going_on, started_from=f"{known.name}, sha256 {known.sha256}", mix=recipe.mix
    )


def _going_on(settings: training.Settings, asked: Mapping[str, Any]) -> training.Settings:
    """The usual settings for a network that was trained before, but for those that somebody asked for."""
    usual: dict[str, Any] = {"learning_rate": settings.learning_rate * GOING_ON, "hold_norm": 0.0}
    return replace(settings, **{name: value for name, value in usual.items() if name not in asked})


def _in_plane_of(folder: Path, voxel_mm: Sequence[float], usual: int) -> int:
    """So many of the examples' voxels make one of the weights', whatever the device would take by itself."""
    merged = voxel_mm[1] / _voxel_of(folder, 1)[1]
    return round(merged) if math.isclose(merged, round(merged), rel_tol=1e-3) and merged > 0.5 else usual


def _said_mm(voxel: Sequence[float]) -> str:
    return " x ".join(f"{side:.4g}" for side in voxel) + " mm"


def network_folder(folder: Path, architecture: str) -> Path:
    """Where an architecture's checkpoint and log are."""
    return folder / "networks" / architecture


def new_samples(folder: Path, known: set[str], in_plane: int = 1, images: int = 2) -> Iterator[Sample]:
    """Examples of a folder that are not known yet, as the network learns from them."""
    for path in sorted(folder.glob("*.npz")):
        if path.name not in known:
            yield sample_of(load(path), path, in_plane, images)


def sample_of(example: Example, path: Path, in_plane: int = 1, images: int = 2) -> Sample:
    """An example in the network's units. path: for errors; its name is the sample's.

    in_plane: voxels of the example, along rows and along columns, that make one of the network's. images: at
        most so many are kept, one or two: the second is memory that only a `noise_weight` makes use of.
    """
    if not example.total_mbq > 0:
        raise InputRejected(f"{path} holds no activity", "Remove it")
    # Relative to the activity of the SPECT's whole field, of which an example keeps the body's box. Its other
    # image is one of the same activity: with its own total the truth of the two would differ.
    scaled = [
        (
            spect_input(_merged(spect, in_plane), example.total_mbq),
            dose_target(_merged(dvk, in_plane), example.total_mbq),
        )
        for spect, dvk in [
            (example.spect, example.dvk),
            *((again.spect, again.dvk) for again in example.realisations[: images - 1]),
        ]
    ]
    return sample(
        path.name,
        scaled[0][0],
        density_input(_merged(example.density, in_plane)),
        scaled[0][1],
        dose_target(_merged(example.truth, in_plane), example.total_mbq),
        [_merged(mask.astype(np.float32), in_plane) >= 0.5 for mask in judged_vois(example.vois).values()],
        scaled[1] if scaled[1:] else None,
    )


def _merged(array: NDArray[np.float32], parts: int) -> NDArray[np.float32]:
    """Means over so many rows and columns; what is left over at the end is cut off."""
    if parts == 1:
        return array
    z, y, x = array.shape[0], array.shape[1] // parts, array.shape[2] // parts
    blocks = array[:, : y * parts, : x * parts].reshape(z, y, parts, x, parts)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)


def said(entry: dict[str, float]) -> str:
    """A line of the training's log, for people."""
    if "validation" in entry:
        own, dvk = entry["validation"], entry["dvk"]
        return f"step {entry['step']}: validation {own:.4g}, {own / max(dvk, 1e-30):.1%} of DVK's {dvk:.4g}"
    return (
        f"step {entry['step']}: {entry['progress']:.1%}, loss {entry['loss']:.4g}, "
        f"{entry['voxels_per_s'] / 1e3:.0f} thousand voxels/s"
    )


# ------------------------------------------------------------------------------------- evaluate and publish


def evaluate(work: Work, left: Callable[[], float]) -> None:
    """Judge every trained network on the test patients: evaluation.json, evaluation.md and figures.

    raises: InputRejected without test examples or without a checkpoint.
    """
    from pipeline.learning import evaluation, report, results

    methods = evaluation.classical_methods()
    for architecture in _trained(work):
        checkpoint = training.read_checkpoint(network_folder(work.folder, architecture) / training.CHECKPOINT)
        network, voxel = training.averaged_network(checkpoint), _voxel_mm(work.folder, checkpoint)
        name = results.NETWORK_NAMES[architecture]
        methods[name] = evaluation.network_method(network.to(work.recipe.device), voxel, work.recipe.device)
    pictures = _Pictures(work)
    found = evaluation.evaluate(_examples(work.folder / "test"), methods, work.progress, pictures.of)
    results.save(found, work.folder / "evaluation.json")
    pictures.of_all(found)
    main = results.NETWORK_NAMES[_trained(work)[0]]
    text = report.evaluation_section(found, work.today, work.machine, main, pictures.made)
    (work.folder / "evaluation.md").write_text(text, encoding="utf-8")
    work.tell(report.targets_table(found, main))


def publish(work: Work, left: Callable[[], float]) -> None:
    """Weights, manifest and model card of the first architecture.

    raises: InputRejected before evaluation: no weights without an account of how good they are.
    """
    from models import weights
    from pipeline.learning import comparison, facts, report, results

    path = work.folder / "evaluation.json"
    if not path.exists():
        raise InputRejected(f"there is no {path}", "Evaluate first: --stage evaluate")
    recipe, architecture = work.recipe, _trained(work)[0]
    method = results.NETWORK_NAMES[architecture]
    found = results.load(path)
    folder = network_folder(work.folder, architecture)
    told = [described(example) for example in sorted((work.folder / "train").glob("*.npz"))]
    checkpoint = training.read_checkpoint(folder / training.CHECKPOINT)
    network = training.averaged_network(checkpoint)
    trained = facts.training_facts(told, checkpoint, training.read_log(folder / training.LOG))
    trained |= _before(recipe, trained)
    manifest = weights.Manifest(
        name=recipe.name,
        architecture=architecture,
        middle=network.middle,
        nuclide=work.camera.nuclide,
        voxel_mm=_voxel_mm(work.folder, checkpoint),
        camera=facts.camera_facts(told, work.camera),
        training=trained,
        metrics=report.manifest_metrics(found, method),
        ood=comparison.energy_limits(found, method),
        date=work.today,
        software=recipe.software,
    )
    again = f"dicomnode train {work.folder.name} {_budget(recipe, trained)}"
    target = work.folder / "weights" / recipe.name
    weights.save(
        target,
        network,
        manifest,
        lambda finished: report.model_card(finished, found, network.parameters_in_all, again, method),
        overwrite=True,
    )
    work.tell(f"weights in {target}")


def _before(recipe: Recipe, trained: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights that training began with say of their own training, and what all of it comes to, where
    they say that they began with nothing, or what went before them."""
    from models import weights

    begun = trained["settings"].get("started_from", "")
    if not begun or recipe.start_from is None:
        return {}
    known = weights.load(recipe.start_from).manifest
    if f"{known.name}, sha256 {known.sha256}" != begun:
        return {}
    earlier = known.training
    from_nothing = "steps" in earlier and not earlier.get("settings", {}).get("started_from")
    in_all = {
        f"{what}_in_all": round(trained[what] + earlier.get(f"{what}_in_all", earlier.get(what, 0)), 2)
        for what in ("steps", "hours")
        if from_nothing or f"{what}_in_all" in earlier
    }
    return in_all | {"before": {"name": known.name, "sha256": known.sha256, "training": dict(earlier)}}


def _budget(recipe: Recipe, trained: Mapping[str, Any]) -> str:
    """The options that train the network as it was trained, whatever this call was given."""
    settings = trained["settings"]
    begun, _, sha256 = settings.get("started_from", "").partition(", sha256 ")
    start = f" --start-from {begun}" if begun else ""
    if settings.get("mix", 1) != 1:
        start += f" --mix {settings['mix']:g}"
    start += (
        "".join(f" --setting {one}" for one in _unusual(settings, begun, recipe.device))
        + f" --device {recipe.device}"
    )
    # The name may be another's as soon as these are published in its place.
    start += f"   # from {begun} of sha256 {sha256}" if begun else ""
    if settings.get("seconds") is None:
        return f"--steps {settings['steps']}{start}"
    hours = float(settings["seconds"]) * len(recipe.architectures) / TRAINING / HOUR_S
    return f"--hours {round(hours, 2):g}{start}"


def _unusual(trained: Mapping[str, Any], begun: str, device: str) -> list[str]:
    """Those settings that training would not have had by itself, as NAME=VALUE."""
    usual = Recipe(steps=1, device=device).loop
    if begun:
        usual = _going_on(usual, {})
    changed = (
        (name, trained[name])
        for name, value in asdict(usual).items()
        if name in trained and name not in OWN_OPTIONS and json.loads(json.dumps(value)) != trained[name]
    )
    return [f"{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in changed]


def _trained(work: Work) -> list[str]:
    found = [
        name
        for name in work.recipe.architectures
        if (network_folder(work.folder, name) / training.CHECKPOINT).exists()
    ]
    if not found:
        raise InputRejected(f"nothing has been trained in {work.folder}", "Train first: --stage train")
    return found


def _examples(folder: Path) -> Iterator[Example]:
    for path in sorted(folder.glob("*.npz")):
        yield load(path)


def _voxel_mm(folder: Path, checkpoint: Mapping[str, NDArray[Any]]) -> tuple[float, float, float]:
    """Of a network, (z, y, x): of the examples, merged as in training. Raises InputRejected for none."""
    return _voxel_of(folder, json.loads(str(checkpoint["settings"])).get("in_plane", 1))


def _voxel_of(folder: Path, in_plane: int) -> tuple[float, float, float]:
    """Of a folder's examples, so many rows and columns of which make one. Raises InputRejected for none."""
    for path in sorted(folder.glob("*/*.npz")):
        z, y, x = described(path)["spacing_mm"]
        return z, in_plane * y, in_plane * x
    raise InputRejected(f"{folder} holds no example", "Generate some first: --stage generate")


@dataclass(slots=True, eq=False)
class _Pictures:
    """Figures of the first test patient, of all, and of the training; none where there is no matplotlib."""

    work: Work
    made: list[str] = field(default_factory=list)
    _missing: bool = False

    def of(self, example: Example, maps: Mapping[str, NDArray[np.float32]]) -> None:
        """The first patient's maps."""
        from pipeline.learning import figures

        if self.made or self._missing:
            return
        scene = figures.Scene(
            example.patient_id,
            example.grid,
            example.truth,
            example.spect,
            example.density,
            maps,
            example.vois,
        )
        for draw in (figures.slices, figures.profiles, figures.histograms):
            self._draw(draw.__name__, partial(draw, scene))

    def of_all(self, found: Evaluation) -> None:
        """Errors of every VOI, and how the loss went."""
        from pipeline.learning import figures

        self._draw("errors", partial(figures.errors, found))
        for architecture in _trained(self.work):
            lines = training.read_log(network_folder(self.work.folder, architecture) / training.LOG)
            draw = partial(figures.loss_curve, list(lines), title=architecture)
            self._draw(f"loss-{architecture}", draw)

    def _draw(self, name: str, draw: Callable[[Path], None]) -> None:
        if self._missing:
            return
        folder = self.work.folder / "figures"
        folder.mkdir(exist_ok=True)
        try:
            draw(folder / f"{name}.png")
        except ImportError as error:
            self._missing = True
            self.work.tell(f"no figures: {error}")
            return
        self.made.append(f"figures/{name}.png")


def smaller(recipe: Recipe) -> Recipe:
    """For a few hours on a processor: fewer decays at a time; further rounds follow where they are needed."""
    return replace(recipe, generate=replace(recipe.generate, decays=30e6, test_decays=100e6))
