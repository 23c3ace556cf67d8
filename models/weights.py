"""Weights on disk: a folder with what they are, where they come from and how good they were found.

::

    models/shipped/NAME/
        weights.safetensors   the state dict, float32, under the authors' keys
        manifest.json         `Manifest`: SHA-256 of the above, nuclide, voxel size, camera, training, figures
        MODEL_CARD.md         the same for people

Weights are only used after their sum, keys, shapes and values have been held against the manifest.
safetensors holds numbers and nothing that could run; a pickled checkpoint is opened by `convert` alone,
which a person asks for, and there with PyTorch's unpickler for plain tensors.

torch and safetensors are imported where they are needed: a manifest can be read without either.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelRejected

if TYPE_CHECKING:
    from torch import Tensor

    from models.dblurdosenet import Network

SHIPPED = Path(__file__).parent / "shipped"
WEIGHTS, MANIFEST, CARD = "weights.safetensors", "manifest.json", "MODEL_CARD.md"
SPARE = "Install the folder again, or train or convert the weights anew"

# What a checkpoint wraps the state dict in, and what data-parallel training puts before each key.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a file of weights.

    name: of the folder. architecture: of `models.dblurdosenet.ARCHITECTURES`; middle: width of its extractor.
    nuclide: such as Lu-177. voxel_mm: (z, y, x) of the voxels that the network is to be given.
    camera: for whose images the weights hold: ``resolution_fwhm_mm`` [low, high] is read by the node, the
        rest (name, collimator, reconstruction ...) by people.
    training: data, recipe, seed. metrics: what the evaluation found. ood: name -> [low, high], the ratio of
        the network's energy to DVK's that the evaluation lets expect: ``body``, ``roi`` (any VOI), and
        classes of `pipeline.vois`; empty where unknown.
    version, date (ISO), software: of the weights and of what made them. sha256: of weights.safetensors.
    """

    name: str
    architecture: str
    middle: int
    nuclide: str
    voxel_mm: tuple[float, float, float]
    camera: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    ood: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    version: str = "1"
    date: str = ""
    software: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "architecture", "nuclide", "version", "date", "software", "sha256"):
            if not isinstance(getattr(self, name), str):
                raise ModelRejected(f"'{name}' of a manifest is no text")
        if not isinstance(self.middle, int):
            raise ModelRejected(f"'middle' of a manifest is {self.middle!r}, not a whole number")
        voxel = _numbers(self.voxel_mm, 3, "voxel_mm")
        if min(voxel) <= 0:
            raise ModelRejected(f"voxels of {voxel} mm (z, y, x)", "Give three lengths above zero")
        object.__setattr__(self, "voxel_mm", voxel)
        for name in ("camera", "training", "metrics", "ood"):
            if not isinstance(getattr(self, name), Mapping):
                raise ModelRejected(f"'{name}' of a manifest is no table of names and values")
        low, high = self.resolution_fwhm_mm
        if not 0 <= low <= high:
            raise ModelRejected(f"a resolution of {low:g} to {high:g} mm", "Give the lower limit first")
        limits = {kind: _numbers(pair, 2, f"ood.{kind}") for kind, pair in self.ood.items()}
        object.__setattr__(self, "ood", limits)

    @property
    def corrects_dvk(self) -> bool:
        """Whether the network's output is added to DVK's map; else it is a dose rate of its own."""
        return self.architecture != "no-residual"

    @property
    def resolution_fwhm_mm(self) -> tuple[float, float]:
        """Lowest and highest planar FWHM of a point source in air, 10 cm from the collimator, mm."""
        low, high = _numbers(self.camera.get("resolution_fwhm_mm"), 2, "camera.resolution_fwhm_mm")
        return low, high


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A network in evaluation mode, on the CPU, with what is known of it and the folder it came from."""

    network: Network
    manifest: Manifest
    folder: Path


# ── finding and reading ──────────────────────────────────────────────────────────────────────────


def shipped() -> tuple[str, ...]:
    """Names of the weights that come with the software."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")))


def find(name_or_path: str | Path) -> Path:
    """The folder of shipped weights by name, or of any by path.

    raises: ModelRejected where there is neither.
    """
    if str(name_or_path) in shipped():
        return SHIPPED / str(name_or_path)
    folder = Path(name_or_path).expanduser()
    try:
        there = (folder / MANIFEST).is_file()
    except OSError as error:
        raise ModelRejected(
            f"{folder} cannot be looked into: {error.strerror}", "Give this account the right to read it"
        ) from None
    if there:
        return folder
    known = ", ".join(shipped()) or "none"
    raise ModelRejected(
        f"there are no weights '{name_or_path}'",
        f"Give the name of shipped weights ({known}) or a folder with {WEIGHTS} and {MANIFEST}",
    )


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a folder, its SHA-256 held against the file of weights.

    raises: ModelRejected for what is missing, cannot be read or does not match.
    """
    return _checked(folder)[0]


def load(folder: Path) -> Weights:
    """The network in a folder, in evaluation mode.

    raises: ModelRejected for what is missing, cannot be read, or does not match the manifest: the sum of the
        file, the keys and shapes of the architecture, a value that is not a finite number.
    """
    from models.dblurdosenet import build

    manifest, content = _checked(folder)
    network = build(manifest.architecture, manifest.middle)
    _put(_tensors(content, folder / WEIGHTS), network, str(folder / WEIGHTS))
    return Weights(network.eval(), manifest, folder)


def _checked(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest and the bytes of the weights: read once, so that what was summed is what is used."""
    path = folder / MANIFEST
    try:
        said = json.loads(_read(path))
    except ValueError as error:
        raise ModelRejected(f"{path} is no JSON: {error}", SPARE) from None
    manifest = _manifest(said, path)
    content = _read(folder / WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.sha256:
        raise ModelRejected(
            f"{folder / WEIGHTS} is not what its manifest states: its SHA-256 is {found}, and "
            f"{manifest.sha256 or 'none'} is stated",
            SPARE,
        )
    return manifest, content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}", SPARE) from None


def _manifest(said: Any, path: Path) -> Manifest:
    """raises: ModelRejected naming the file and what is wrong in it."""
    if not isinstance(said, dict):
        raise ModelRejected(f"{path} holds no table of names and values", SPARE)
    known = {one.name for one in fields(Manifest)}
    needed = {"name", "architecture", "middle", "nuclide", "voxel_mm", "camera", "sha256"}
    for problem, names in (("lacks", needed - set(said)), ("holds the unknown", set(said) - known)):
        if names:
            raise ModelRejected(f"{path} {problem} {', '.join(sorted(names))}", SPARE)
    try:
        return Manifest(**said)
    except ModelRejected as error:
        raise ModelRejected(f"{path}: {error.reason}", error.remedy or SPARE) from None


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    try:
        return read(content)
    except SafetensorError as error:
        raise ModelRejected(f"{path} is no safetensors file: {error}", SPARE) from None


def _put(state: Mapping[str, Tensor], network: Network, where: str) -> None:
    """Into the network what fits it exactly.

    raises: ModelRejected for keys that are missing or unknown, shapes that differ, types that are no numbers
        of the kind expected, values that are not finite, variances below zero.
    """
    expected = network.state_dict()
    for problem, keys in (
        ("lacks", [k for k in expected if k not in state]),
        ("holds the unknown", [k for k in state if k not in expected]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelRejected(f"{where} {problem} {keys[0]}{more}", _for(network))
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise ModelRejected(f"{key} in {where} has the shape {shapes}", _for(network))
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ModelRejected(f"{key} in {where} is of the type {tensor.dtype}", _for(network))
        if not bool(tensor.isfinite().all()):
            raise ModelRejected(f"{key} in {where} holds values that are not finite numbers", SPARE)
        if key.endswith("running_var") and bool((tensor < 0).any()):
            raise ModelRejected(f"{key} in {where} holds variances below zero", SPARE)
    network.load_state_dict(dict(state))


def _for(network: Network) -> str:
    return f"It must hold the weights of the architecture {network.architecture}, {network.middle} channels"


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def save(
    folder: Path,
    network: Network,
    manifest: Manifest,
    card: Callable[[Manifest], str] | None = None,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write weights, manifest and model card; the folder is there completely or not at all.

    manifest: its sha256 is filled in. card: makes MODEL_CARD.md from the finished manifest; None: what the
    manifest itself states. overwrite: a folder of weights of that name is replaced.
    returns: the manifest as it was written.

    raises: ModelRejected for a network that does not match the manifest or holds values that are not finite,
        a folder that is there already, and where nothing can be written.
    """
    if (manifest.architecture, manifest.middle) != (network.architecture, network.middle):
        raise ModelRejected(
            f"the manifest states {manifest.architecture} with {manifest.middle} channels, the network is "
            f"{network.architecture} with {network.middle}",
            "Give the manifest of this network",
        )
    _require_place(folder, overwrite)
    content = _content(network)
    finished = replace(manifest, sha256=hashlib.sha256(content).hexdigest())
    files = {
        WEIGHTS: content,
        MANIFEST: (json.dumps(asdict(finished), indent=2, ensure_ascii=False) + "\n").encode(),
        CARD: (card or model_card)(finished).encode(),
    }
    try:
        _publish(folder, files)
    except OSError as error:
        raise ModelRejected(
            f"the weights cannot be written to {folder}: {error.strerror}", "Name another folder"
        ) from error
    return finished


def _require_place(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    # Nothing but weights is ever replaced: a mistyped folder would be lost.
    if not overwrite or not (folder / MANIFEST).is_file():
        raise ModelRejected(f"{folder} is there already", "Name another folder, or remove this one first")


def _content(network: Network) -> bytes:
    from safetensors.torch import save as written

    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    for key, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ModelRejected(
                f"{key} holds values that are not finite numbers",
                "The training diverged: take an earlier checkpoint",
            )
    content: bytes = written({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return content


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Beside its place first, then by renaming."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made, old = work / "new", work / "old"
        made.mkdir()
        for name, content in files.items():
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
    except OSError:
        if not folder.exists() and (work / "old").exists():
            (work / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def model_card(manifest: Manifest) -> str:
    """What the manifest states, as Markdown."""
    z, y, x = manifest.voxel_mm
    lines = [
        f"# {manifest.name}",
        "",
        f"Weights of the architecture {manifest.architecture} for {manifest.nuclide}, version "
        f"{manifest.version}, {manifest.date or 'undated'}; voxels of {x:g} x {y:g} x {z:g} mm.",
        "",
        f"SHA-256 of {WEIGHTS}: `{manifest.sha256}`. Made by {manifest.software or 'unknown software'}.",
    ]
    for title, table in (
        ("Camera", manifest.camera),
        ("Training", manifest.training),
        ("Figures", manifest.metrics),
        ("Energy against DVK in the evaluation", manifest.ood),
    ):
        lines += ["", f"## {title}", ""]
        lines += [f"- {name}: {_told(value)}" for name, value in table.items()] or ["Not stated."]
    return "\n".join(lines) + "\n"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_told(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# ── checkpoints of others ────────────────────────────────────────────────────────────────────────


def convert(
    checkpoint: Path, folder: Path, *, architecture: str | None = None, overwrite: bool = False, **known: Any
) -> Manifest:
    """A checkpoint (PyTorch's pickle, or safetensors) as a folder of weights.

    The checkpoint is a state dict with the authors' keys, bare or under `state_dict`, `model_state_dict`,
    `model` or `net`, its keys with or without the `module.` of data-parallel training. Width and, but for
    ``no-residual``, architecture are read from it.

    architecture: None: as the keys tell. known: fields of `Manifest` beside architecture, middle and sha256.
    returns: the manifest as it was written.

    raises: ModelRejected for what is no plain state dict of one of the architectures, and as `save` does.
    """
    from models.dblurdosenet import build, middle_of

    state = _state(_opened(checkpoint), checkpoint)
    try:
        middle = middle_of(state)
    except ModelRejected as error:
        raise ModelRejected(f"{checkpoint}: {error.reason}", error.remedy) from None
    network = build(architecture or ("dblurdosenet" if middle else "2d"), middle)
    _put(_completed(state, network), network, str(checkpoint))
    manifest = Manifest(architecture=network.architecture, middle=network.middle, **known)
    return save(folder, network, manifest, overwrite=overwrite)


def _opened(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        return _tensors(_read(path), path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}", "Name another file") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  an unpickler stumbles over foreign bytes in every way there is
        first = str(error).partition("\n")[0]
        raise ModelRejected(
            f"{path} is no plain checkpoint of tensors: {type(error).__name__}: {first}",
            "Save it again with torch.save(model.state_dict(), FILE): no code is run for a pickle",
        ) from None


def _state(found: Any, path: Path) -> dict[str, Tensor]:
    """raises: ModelRejected for what is no table of tensors."""
    import torch

    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not found:
        raise ModelRejected(
            f"{path} holds no state dict but {type(found).__name__}", "Save it with model.state_dict()"
        )
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ModelRejected(
                f"{path} holds {key!r} of the type {type(value).__name__} among its tensors",
                "Save the state dict alone: torch.save(model.state_dict(), FILE)",
            )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    state: dict[str, Tensor] = found
    return state


def _completed(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Counters of batches, which old versions of PyTorch did not write and which nothing here reads."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return {**counters, **state}


def _numbers(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """`count` finite numbers. raises: ModelRejected naming the entry."""
    good = isinstance(value, list | tuple) and len(value) == count
    if not good or not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
        raise ModelRejected(f"'{name}' of a manifest is {value!r}, not {count} numbers")
    return tuple(float(v) for v in value)
