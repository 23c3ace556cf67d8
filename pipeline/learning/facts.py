"""What manifest and model card state of training: read from what was made, not from what was asked for.

Examples say of themselves how they were made (`Example.meta`); what those of an earlier version do not say is
"not stated". The network's log and checkpoint say what it learnt from, and how.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.dose_rate import HOUR_S
from pipeline.errors import InputRejected
from pipeline.simulate.camera import SpectCamera

NOT_STATED = "not stated"
RESOLUTION_AT_MM = 100.0
RESOLUTION_TOLERANCE = 0.10
"""Of the FWHM, either way: by so much may a camera differ from the one that was simulated."""

Told = Sequence[Mapping[str, Any]]
"""What each example says of itself, see `example.described`."""


def camera_facts(examples: Told, camera: SpectCamera) -> dict[str, Any]:
    """The camera that the SPECT of these examples was simulated with.

    camera: by its name the same. Its resolution is that at 10 cm, as a physicist measures it.
    raises: InputRejected for examples of another camera.
    """
    fwhm = camera.fwhm_mm(RESOLUTION_AT_MM)
    others = {str(one["camera"]) for one in examples if one.get("camera", camera.name) != camera.name}
    widths = [one["fwhm_mm_at_100_mm"] for one in examples if "fwhm_mm_at_100_mm" in one]
    if others or any(not math.isclose(width, fwhm, rel_tol=1e-3) for width in widths):
        seen = ", ".join(sorted(others)) or f"{camera.name} with another collimator"
        raise InputRejected(
            f"the examples were made with the camera {seen}, and this one is {camera.name}",
            "Publish with the camera that they were made with: --camera FILE",
        )
    low, high = (round(fwhm * (1 + part), 2) for part in (-RESOLUTION_TOLERANCE, RESOLUTION_TOLERANCE))
    return {
        "name": camera.name,
        **{key: stated(examples, key) for key in ("pixel_mm", "views", "radius_mm", "clearance_mm")},
        "counts": stated(examples, "counts"),
        "scatter_fraction": stated(examples, "scatter_fraction"),
        "fwhm_mm_at_100_mm": round(fwhm, 2),
        "resolution_fwhm_mm": [low, high],
        "resolution_tolerance": (
            f"{RESOLUTION_TOLERANCE:.0%} of the FWHM at 10 cm; one collimator was simulated, none else tried"
        ),
    }


def training_facts(
    examples: Told, checkpoint: Mapping[str, Any], log: Iterable[Mapping[str, float]]
) -> dict[str, Any]:
    """What the weights of a checkpoint were trained on, and how.

    examples: of the folder that was learnt from; patients are those that the training had in memory at its
    end, as its log says.
    """
    settings = json.loads(str(checkpoint["settings"]))
    steps = int(checkpoint["step"])
    seen = [int(entry["samples"]) for entry in log if "samples" in entry]
    of_vois = [of for one in examples for of in (one.get("label_uncertainty") or {}).values()]
    certain = [float(of["of_mean"]) for of in of_vois if "of_mean" in of]
    return {
        "patients": seen[-1] if seen else NOT_STATED,
        "examples": len(examples),
        "families": sorted({str(one["family"]) for one in examples}),
        "textures": sorted({str(one["texture"]) for one in examples}),
        "electron_decays": stated(examples, "electron_decays"),
        "photon_decays": stated(examples, "photon_decays"),
        "rounds": stated(examples, "rounds"),
        "largest_label_uncertainty": float(f"{max(certain):.3g}") if certain else NOT_STATED,
        "steps": steps,
        "voxels": steps * settings["batch"] * settings["slab"] * settings["crop"] ** 2,
        "hours": round(float(checkpoint["elapsed"]) / HOUR_S, 2),
        "settings": settings,
    }


def stated(examples: Told, key: str) -> Any:
    """What examples say of one thing: a number, or from where to where it reaches; or that they do not."""
    saying = [one[key] for one in examples if one.get(key) is not None]
    numbers = [float(n) for value in saying for n in (value if isinstance(value, list) else [value])]
    if not numbers:
        return NOT_STATED
    low, high = (float(f"{n:.6g}") for n in (min(numbers), max(numbers)))
    if len(saying) < len(examples):
        return f"{low:g} to {high:g} in {len(saying)} of {len(examples)} examples, else {NOT_STATED}"
    return low if low == high else [low, high]
