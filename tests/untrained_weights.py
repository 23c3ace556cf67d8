"""Weights that nobody trained, in a folder as shipped ones are: what they compute means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.weights import Manifest, save

# A fresh network's output is this much smaller than a dose rate in its units.
GAIN = 500.0
LIMITS = {"body": (0.01, 100.0), "roi": (0.01, 100.0)}


def write(
    folder: Path,
    *,
    architecture: str = "dblurdosenet",
    nuclide: str = "Lu-177",
    resolution_fwhm_mm: tuple[float, float] = (8.0, 14.0),
    ood: Mapping[str, tuple[float, float]] = LIMITS,
    seed: int = 1,
) -> Manifest:
    """A network of random weights and random BatchNorm statistics; returns its manifest."""
    import torch

    from models.dblurdosenet import build

    torch.manual_seed(seed)
    network = build(architecture, 8).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr,operator]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr,operator]
        network.UNet.outc.conv.weight *= GAIN  # type: ignore[union-attr,operator]
    manifest = Manifest(
        name=folder.name,
        architecture=network.architecture,
        middle=network.middle,
        nuclide=nuclide,
        voxel_mm=(3.0, 1.953125, 1.953125),
        camera={"resolution_fwhm_mm": list(resolution_fwhm_mm)},
        ood=dict(ood),
        version="7",
    )
    return save(folder, network, manifest)


def camera(weights: Path | str, **changes: Any) -> dict[str, Any]:
    """A [[camera]] entry that approves them for the virtual study's gamma camera."""
    entry = {
        "name": "NM1",
        "match": {"Manufacturer": "*"},
        "cnn_weights": str(weights),
        "resolution_fwhm_mm": 11.0,
    }
    return entry | changes
