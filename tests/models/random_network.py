"""Networks whose every number matters: fresh BatchNorm layers have mean 0, variance 1 and weight 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dblurdosenet import Network, build

ARCHITECTURES = [("dblurdosenet", 16), ("dblurdosenet", 8), ("no-residual", 16), ("2d", 0)]


def random_network(architecture: str, middle: int = 16, seed: int = 1) -> Network:
    """With random weights and statistics, BatchNorm's weights of both signs, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = build(architecture, middle).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.7)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.3)
    return network


def windows(volume: Tensor) -> Tensor:
    """(N, S + 10, H, W) -> (N · S, 1, H, W, 11): one window per slice."""
    return volume.unfold(1, 11, 1).flatten(0, 1)[:, None]
