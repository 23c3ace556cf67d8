"""Training: settings on top, the loop below, nothing else to look at.

What the paper does not have: a loss that also asks for the means in VOIs (`models.loss`); slabs of
neighbouring slices, whose windows share the extractor's work (`models.slab`); AdamW with a cosine schedule
that ends with the budget; a moving average of the weights, which is what training returns; BatchNorm that
holds still in the last quarter, so that training and inference are then the same function; flips; a jitter of
the activity, to which dose is proportional.

A batch follows from seed and step alone (`models.samples`): an interrupted training goes on as if it had not
been.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.dblurdosenet import DIVISOR, Network, build
from models.errors import ModelRejected
from models.loss import error_loss, loss_of
from models.samples import Batch, Sample, draw

Array = NDArray[np.floating[Any]]


LEAST_SLAB = 3  # slices: what the loss smooths DVK over


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. The end is after so many `steps` or `seconds` of training: one of the two.

    learning_rate: at its highest. last_layer: times that for the last layer, whose output is hundreds of the
        unit of dose. warm_up: part of the training in which the rate rises to its highest.
    batch, slab, crop: slabs a step; output slices of a slab; its height and width, voxels.
    in_plane: so many voxels of a sample, along rows and along columns, make one of the network's.
    margin: voxels along the cut edges of a crop that do not count: there the convolutions see zeros.
    hot: part of the crops that is centred where there is dose, drawn in proportion to its square root.
    average: decay of the moving average of the weights. hold_norm: part of the training after which BatchNorm
        holds still.
    activity_jitter: standard deviation of the logarithm of a factor common to SPECT, DVK and truth.
    loss_exponent, loss_floor, voi_weight, voi_bounds, noise_weight: p, c, w, the bounds of k, and v of
        `models.loss`; c in the network's unit of dose.
    started_from: name and sha256 of the weights that this training began with; empty: it began with none.
    mix: part of what was learnt in the weights that come of it; the rest are those that it began with.
        Between the two lie networks that are nearly as good at what is new and lose less of what was known
        (Wortsman et al., CVPR 2022, doi 10.1109/CVPR52688.2022.00780).
    precision: of the convolutions; ``auto`` is bf16 where the device computes with it, else fp32.
    log_every, validate_every: steps. validation_crops: of each patient.
    save_every_s, look_every_s: wall clock, between checkpoints and between looks for new samples.
    loaders: threads that make batches ahead. memory_gb: of samples; those beyond are left out.
    """

    steps: int | None = None
    seconds: float | None = None
    seed: int = 1
    learning_rate: float = 1e-3
    last_layer: float = 100.0
    warm_up: float = 0.02
    weight_decay: float = 1e-3
    clip_norm: float = 1.0
    batch: int = 1
    slab: int = 16
    crop: int = 128
    in_plane: int = 1
    margin: int = 12
    hot: float = 0.7
    flips: bool = True
    activity_jitter: float = 0.2
    average: float = 0.998
    hold_norm: float = 0.75
    loss_exponent: float = 1.0
    loss_floor: float = 100.0
    voi_weight: float = 0.1
    voi_bounds: tuple[float, float] = (1.0, 1.0)
    noise_weight: float = 0.0
    started_from: str = ""
    mix: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    log_every: int = 20
    validate_every: int = 400
    validation_crops: int = 4
    save_every_s: float = 60.0
    look_every_s: float = 60.0
    loaders: int = 1
    memory_gb: float = 5.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ModelRejected("training has no end, or two of them", "Set steps or seconds, not both")
        if not 0 < self.mix <= 1 or (self.mix < 1 and not self.started_from):
            raise ModelRejected(
                f"a mix of {self.mix:g} of what is learnt with what training began with",
                "Take more than 0 and at most 1, and weights to start from",
            )
        for name in ("loss_exponent", "voi_weight", "noise_weight", "weight_decay", "activity_jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ModelRejected(f"{name} of {getattr(self, name):g}", "Take 0 or a positive number")
        low, high = self.voi_bounds
        if not 0 < low <= high < math.inf:
            raise ModelRejected(
                f"voi_bounds of {low:g} and {high:g}", "Take two positive numbers, the lower one first"
            )
        for name in ("learning_rate", "loss_floor", "memory_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ModelRejected(f"{name} of {getattr(self, name):g}", "Take a positive number")
        if self.crop % DIVISOR or self.crop <= 2 * self.margin or self.slab < LEAST_SLAB or self.batch < 1:
            raise ModelRejected(
                f"crops of {self.crop} voxels with margins of {self.margin}, slabs of {self.slab} slices and "
                f"batches of {self.batch} cannot be trained with",
                f"crop must be a multiple of {DIVISOR} and more than two margins, slab at least "
                f"{LEAST_SLAB}, batch at least 1",
            )


class Trained(NamedTuple):
    """network: with the averaged weights. finished: False where the run was paused before its end."""

    network: Network
    step: int
    elapsed_s: float
    finished: bool


Validation = tuple[float, float]
Tell = Callable[[dict[str, float]], None]
More = Callable[[set[str]], Iterable[Sample]]
"""New samples, given the names of those that are known."""


def train(
    network: Network,
    samples: Iterable[Sample],
    settings: Settings,
    folder: Path,
    *,
    device: str = "cpu",
    validation: Sequence[Sample] = (),
    more: More | None = None,
    pause_after_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = lambda _entry: None,
) -> Trained:
    """Train a network, or go on from ``folder/checkpoint.npz``.

    network: as `fresh` makes it, or trained before; is changed. samples: as `sample` makes them.
    validation: likewise, looked at and not learnt from.
    more: asked now and then for samples that came since.
    pause_after_s: after so long this call leaves a checkpoint and returns; the next goes on.
    tell: is given what is also written to ``folder/log.jsonl``, a line at a time.

    raises: ModelRejected without samples, for a checkpoint of another training, and when the loss is no
        number any more; the last checkpoint then stands.
    """
    run = _Run(network, settings, folder, torch.device(device))
    known = _Known(samples, settings.memory_gb, more)
    if not known.samples:
        raise ModelRejected("there is nothing to learn from", "Generate examples first")
    run.resume()
    if not run.mixed:
        _until(run, known, validation, pause_after_s, clock, tell)
        if run.progress() >= 1:
            run.mix()
        if validation:
            run.log_validation(validation, tell)
        run.save()
    return Trained(run.average.eval(), run.step, run.elapsed, run.progress() >= 1)


def _until(
    run: _Run,
    known: _Known,
    validation: Sequence[Sample],
    pause_after_s: float,
    clock: Callable[[], float],
    tell: Tell,
) -> None:
    """Step after step until the end or the pause; batches are drawn ahead."""
    settings, opened = run.settings, clock()
    began = opened - run.elapsed
    save, look = _Every(settings.save_every_s, clock), _Every(settings.look_every_s, clock)
    measured, losses = (opened, run.step), []
    with ThreadPoolExecutor(settings.loaders) as pool:
        ahead = deque(
            pool.submit(draw, known.samples, settings, run.step + k) for k in range(settings.loaders)
        )
        while (progress := run.progress()) < 1 and clock() - opened < pause_after_s:
            batch = ahead.popleft().result()
            ahead.append(pool.submit(draw, known.samples, settings, run.step + settings.loaders))
            losses.append(run.learn(batch, progress))
            now = clock()
            run.elapsed = now - began
            if run.step % settings.log_every == 0:
                speed = (run.step - measured[1]) / max(now - measured[0], 1e-9)
                run.log(losses, progress, speed, len(known.samples), tell)
                measured, losses = (now, run.step), []
            if validation and run.step % settings.validate_every == 0:
                run.log_validation(validation, tell)
            if save.due(now):
                run.save()
            if look.due(now):
                known.look()
        for coming in ahead:
            coming.cancel()


class _Every:
    """What is done now and then, on the wall clock."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock, self._last = seconds, clock, clock()

    def due(self, now: float) -> bool:
        """Whether it is time again; if so, from now on counts anew."""
        if now - self._last < self._seconds:
            return False
        self._last = self._clock()
        return True


def fresh(architecture: str, middle: int = 16, seed: int = 1) -> Network:
    """A network to be trained. With residual it begins as DVK itself: its last layer is zero."""
    torch.manual_seed(seed)
    network = build(architecture, middle)
    if network.residual:
        for parameter in last_layer(network).parameters():
            nn.init.zeros_(parameter)
    return network


def last_layer(network: Network) -> nn.Module:
    """The 1x1 convolution that makes the dose."""
    found: nn.Module = network.get_submodule("UNet.outc.conv")
    return found


# --------------------------------------------------------------------------------------- the loop's body


class _Run:
    """Weights, their average, the optimiser, and how far they have come."""

    def __init__(self, network: Network, settings: Settings, folder: Path, device: torch.device) -> None:
        self.settings, self.folder, self.device = settings, folder, device
        self.network = network.to(device)
        self.average = copy.deepcopy(self.network).eval()
        self.began = copy.deepcopy(self.average).state_dict()
        self.optimiser = _optimiser(self.network, settings)
        self.precision = _precision(settings.precision, device)
        self.step, self.elapsed, self.held, self.mixed = 0, 0.0, False, False

    def progress(self) -> float:
        """How much of the training is done, 0 ... 1 and beyond."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.elapsed / max(self.settings.seconds or 0.0, 1e-9)

    def learn(self, batch: Batch, progress: float) -> float:
        """One step. returns: its loss."""
        self._hold_norm(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = group["times"] * rate(self.settings, progress)
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_of(self.network, _on(batch, self.device), self.settings, self.precision)
        value = loss.item()
        if not np.isfinite(value):
            raise ModelRejected(
                f"the loss of step {self.step + 1} is {value}",
                f"Lower the learning rate, or train with precision fp32; the last good state is in "
                f"{self.folder / CHECKPOINT}",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._follow()
        return value

    def _hold_norm(self, progress: float) -> None:
        """BatchNorm normalises by its batch at first, then by what it has found in the mean of many."""
        self.network.train()
        if progress < self.settings.hold_norm:
            return
        if not self.held:
            for own, mean in zip(self.network.buffers(), self.average.buffers(), strict=True):
                own.copy_(mean)
            self.held = True
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.eval()

    @torch.no_grad()
    def _follow(self) -> None:
        """The average moves quickly at first."""
        part = 1 - min(self.settings.average, self.step / (self.step + 10))
        mine = [*self.average.parameters(), *self.average.buffers()]
        for mean, own in zip(mine, [*self.network.parameters(), *self.network.buffers()], strict=True):
            if mean.is_floating_point():
                mean.lerp_(own, part)
            else:
                mean.copy_(own)

    @torch.no_grad()
    def mix(self) -> None:
        """The last thing: the averaged weights, mixed with those that the training began with."""
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(self.began[name], 1 - self.settings.mix)
        self.mixed = True

    def log(self, losses: list[float], progress: float, steps_per_s: float, samples: int, tell: Tell) -> None:
        """A line of the log."""
        voxels = self.settings.batch * self.settings.slab * self.settings.crop**2
        entry = {
            "step": self.step,
            "elapsed_s": round(self.elapsed, 2),
            "progress": round(progress, 5),
            "learning_rate": rate(self.settings, progress),
            "loss": float(np.mean(losses)),
            "voxels_per_s": round(steps_per_s * voxels),
            "samples": samples,
        }
        self._write(entry, tell)

    def log_validation(self, validation: Sequence[Sample], tell: Tell) -> None:
        """The averaged weights' loss on held-back patients, and DVK's own."""
        own, dvk = validate(self.average, validation, self.settings, self.device, self.precision)
        self._write(
            {"step": self.step, "elapsed_s": round(self.elapsed, 2), "validation": own, "dvk": dvk}, tell
        )

    def _write(self, entry: dict[str, float], tell: Tell) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        tell(entry)

    def save(self) -> None:
        """Leave a checkpoint; it replaces the last one only when it is whole."""
        content: dict[str, Any] = {
            "settings": _lasting(self.settings),
            "architecture": f"{self.network.architecture} {self.network.middle}",
            "step": self.step,
            "elapsed": self.elapsed,
            "held": self.held,
            "mixed": self.mixed,
        }
        content |= {f"weights/{k}": v.cpu().numpy() for k, v in self.network.state_dict().items()}
        content |= {f"average/{k}": v.cpu().numpy() for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimiser.state.get(parameter, {})
            content |= {f"{key}/{name}": moments[key].cpu().numpy() for key in MOMENTS if key in moments}
        path = self.folder / CHECKPOINT
        try:
            _replace(path, lambda file: np.savez(file, **content))
        except OSError as error:
            raise ModelRejected(
                f"{path} cannot be written: {error}", "Make room; the last checkpoint stands: train again"
            ) from error

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one.

        raises: ModelRejected for one of another training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CHECKPOINT
        if not path.exists():
            (self.folder / LOG).unlink(missing_ok=True)
            return
        content = read_checkpoint(path)
        _require_same(path, content, self)
        self.network.load_state_dict(_part(content, "weights"))
        self.average.load_state_dict(_part(content, "average"))
        self.step, self.elapsed = int(content["step"]), float(content["elapsed"])
        self.held, self.mixed = bool(content["held"]), bool(content["mixed"])
        for name, parameter in self.network.named_parameters():
            if f"{MOMENTS[0]}/{name}" in content:
                moments = {
                    key: torch.from_numpy(content[f"{key}/{name}"]).to(self.device) for key in MOMENTS[:2]
                }
                self.optimiser.state[parameter] = {
                    **moments, MOMENTS[2]: torch.from_numpy(content[f"{MOMENTS[2]}/{name}"])
                }  # fmt: skip
        _cut_log(self.folder / LOG, self.step)


@dataclass(slots=True)
class _Known:
    """The samples so far, in the order of their names."""

    first: Iterable[Sample]
    memory_gb: float
    more: More | None
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._take(self.first)

    def look(self) -> None:
        """Ask for new ones."""
        if self.more is not None and sum(s.gb for s in self.samples) < self.memory_gb:
            self._take(self.more({s.name for s in self.samples}))

    def _take(self, new: Iterable[Sample]) -> None:
        taken = list(self.samples)
        for one in new:  # read one at a time, and none beyond what the memory holds
            if taken and sum(s.gb for s in taken) + one.gb > self.memory_gb:
                break
            taken.append(one)
        # Another list: the one that a batch is being drawn from does not change under it.
        self.samples = sorted(taken, key=lambda s: s.name)


def rate(settings: Settings, progress: float) -> float:
    """The learning rate: up in a line, down in a cosine to nothing at the end."""
    if progress < settings.warm_up:
        return settings.learning_rate * (0.01 + 0.99 * progress / settings.warm_up)
    part = (progress - settings.warm_up) / (1 - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(part, 1.0))))


@torch.no_grad()
def validate(
    network: Network,
    samples: Sequence[Sample],
    settings: Settings,
    device: torch.device,
    precision: torch.dtype,
) -> Validation:
    """Mean loss over the same crops each time: the network's, and that of DVK alone."""
    network.eval()
    own: list[float] = []
    dvk: list[float] = []
    plain = replace(settings, batch=1, flips=False, activity_jitter=0.0)
    for number in range(settings.validation_crops * len(samples)):
        one = samples[number % len(samples)]
        batch = _on(draw([one], plain, -1 - number), device)
        own.append(loss_of(network, batch, settings, precision).item())
        dvk.append(error_loss(batch.dvk - batch.truth, batch, settings).item())
    return float(np.mean(own)), float(np.mean(dvk))


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


# --------------------------------------------------------------------------------- optimiser and checkpoint

CHECKPOINT, LOG = "checkpoint.npz", "log.jsonl"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def _optimiser(network: Network, settings: Settings) -> torch.optim.AdamW:
    last = set(last_layer(network).parameters())
    others = [p for p in network.parameters() if p not in last]
    groups = [
        {"params": others, "times": 1.0},
        {"params": list(last_layer(network).parameters()), "times": settings.last_layer, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # What merely emulates bf16 is slower with it than with fp32.
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("amx_bf16") or capable.get("avx512_bf16") else torch.float32


PASSING = (
    "log_every", "validate_every", "validation_crops", "save_every_s", "look_every_s", "loaders", "memory_gb"
)  # fmt: skip


def _lasting(settings: Settings) -> str:
    """What a continued training must have in common with its beginning: all settings but the passing ones."""
    return json.dumps({key: value for key, value in asdict(settings).items() if key not in PASSING})


def _require_same(path: Path, content: dict[str, NDArray[Any]], run: _Run) -> None:
    network = f"{run.network.architecture} {run.network.middle}"
    for what, theirs, ours in (
        ("network", str(content["architecture"]), network),
        ("settings", str(content["settings"]), _lasting(run.settings)),
    ):
        if theirs != ours:
            raise ModelRejected(
                f"{path} is of a training with another {what}: {theirs}, now {ours}",
                "Train as it was begun, or remove the checkpoint to begin anew",
            )


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a checkpoint. raises: ModelRejected for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelRejected(f"{path} cannot be read: {error}", "Remove it to begin anew") from error
    for key in ("architecture", "settings", "step", "elapsed", "held", "mixed"):
        if key not in content:
            raise ModelRejected(f"{path} has no {key!r}", "It is no checkpoint: remove it to begin anew")
    return content


def averaged_network(content: dict[str, NDArray[Any]]) -> Network:
    """The network of a checkpoint with its averaged weights, in eval mode. content: `read_checkpoint`'s."""
    architecture, middle = str(content["architecture"]).split()
    network = build(architecture, int(middle))
    network.load_state_dict(_part(content, "average"))
    return network.eval()


def _part(content: dict[str, NDArray[Any]], of: str) -> dict[str, Tensor]:
    prefix = f"{of}/"
    return {
        key.removeprefix(prefix): torch.from_numpy(a) for key, a in content.items() if key.startswith(prefix)
    }


def _cut_log(path: Path, step: int) -> None:
    """Lines of steps that were done after the checkpoint and will be done again."""
    if path.exists():
        kept = [json.dumps(entry) for entry in read_log(path) if entry["step"] <= step]
        _replace(path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode()))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place and move it there whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_log(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a log: of training with "loss", of validation with "validation" and "dvk".

    A line that is cut off, as where the power went, ends it.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry: dict[str, float] = json.loads(line)
        except ValueError:
            return
        yield entry
