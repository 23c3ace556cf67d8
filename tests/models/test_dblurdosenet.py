"""The architecture, held against the published one: sizes, names, and what is done at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.dblurdosenet import build, middle_of
from models.errors import ModelRejected
from tests.models.random_network import ARCHITECTURES, random_network

# Input and output channels of the two convolutions of each block, as published.
BLOCKS = {
    "UNet.down.0.maxpool_conv.1.conv": (16, 32, 32),
    "UNet.down.1.maxpool_conv.1.conv": (32, 64, 64),
    "UNet.down.2.maxpool_conv.1.conv": (64, 128, 128),
    "UNet.down.3.maxpool_conv.1.conv": (128, 128, 128),
    "UNet.up.0.conv.conv": (256, 128, 64),
    "UNet.up.1.conv.conv": (128, 64, 32),
    "UNet.up.2.conv.conv": (64, 32, 16),
    "UNet.up.3.conv.conv": (32, 16, 16),
}


def batch_norm(key: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{key}.{name}", (channels,)
    yield f"{key}.num_batches_tracked", ()


def published(middle: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of the authors' checkpoints."""
    yield "feature.model_3D.0.weight", (middle // 2, 2, 7, 7, 5)
    yield from batch_norm("feature.model_3D.1", middle // 2)
    yield "feature.model_3D.4.weight", (middle, middle // 2, 7, 7, 3)
    yield from batch_norm("feature.model_3D.5", middle)
    yield "feature.model_3D.7.weight", (middle, middle, 7, 7, 3)
    yield "feature.model_3D.7.bias", (middle,)
    for key, (a, b, c) in {"UNet.inc.conv": (middle, 16, 16), **BLOCKS}.items():
        yield f"{key}.0.weight", (b, a, 3, 3)
        yield from batch_norm(f"{key}.1", b)
        yield f"{key}.3.weight", (c, b, 3, 3)
        yield from batch_norm(f"{key}.4", c)
    yield "UNet.outc.conv.weight", (1, 16, 1, 1)
    yield "UNet.outc.conv.bias", (1,)


@pytest.mark.parametrize(("middle", "count"), [(16, 1_143_233), (8, 1_097_753)])
def test_it_has_the_published_number_of_parameters(middle: int, count: int) -> None:
    assert build("dblurdosenet", middle).parameters_in_all == count


@pytest.mark.parametrize("middle", [16, 8])
def test_its_state_dict_has_the_authors_keys_and_shapes(middle: int) -> None:
    state = build("dblurdosenet", middle).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == dict(published(middle))


@pytest.mark.parametrize("middle", [16, 8])
def test_a_checkpoint_of_the_authors_loads_and_tells_its_width(middle: int) -> None:
    state = {key: torch.rand(shape) for key, shape in published(middle)}
    assert middle_of(state) == middle
    build("dblurdosenet", middle_of(state)).load_state_dict(state)


def test_the_2d_ablation_is_the_unet_alone() -> None:
    keys = [key for key in build("2d").state_dict() if key.startswith("UNet.")]
    assert keys == list(build("2d").state_dict())
    assert middle_of(build("2d").state_dict()) == 0


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_the_dose_is_the_correction_added_to_dvk(architecture: str, middle: int) -> None:
    network = random_network(architecture, middle)
    torch.manual_seed(2)
    spect, density = torch.rand(2, 1, 32, 16, 11) * 300, torch.rand(2, 1, 32, 16, 11) * 1500
    density[:, :, :8, :, 5] = 100.0
    dvk = torch.rand(2, 1, 32, 16) - 0.5
    with torch.no_grad():
        # Half of it below zero, so that something is clamped and something is not.
        network.UNet.outc.conv.bias -= network.correction(spect, density).median()
        correction = network.correction(spect, density)
        dose = network(spect, density, dvk)
    expected = (correction + dvk if architecture != "no-residual" else correction).clamp(min=0)
    assert torch.equal(dose[:, :, 8:], expected.masked_fill(density[..., 5] <= 100, 0)[:, :, 8:])
    assert not dose[:, :, :8].any(), "air has no dose"
    assert 0 < (dose[:, :, 8:] > 0).float().mean() < 1


def test_the_2d_ablation_sees_the_middle_slice_alone() -> None:
    network = random_network("2d")
    spect, density = torch.rand(1, 1, 16, 16, 11), torch.rand(1, 1, 16, 16, 11)
    others = spect.clone()
    others[..., torch.arange(11) != 5] += 1
    with torch.no_grad():
        assert torch.equal(network.correction(spect, density), network.correction(others, density))


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ModelRejected, match="architecture 'unet'"):
        build("unet")
    with pytest.raises(ModelRejected, match="12 middle channels"):
        build("dblurdosenet", 12)
    with pytest.raises(ModelRejected, match=r"UNet\.inc"):
        middle_of({"fc.weight": torch.zeros(3, 3)})
    with pytest.raises(ModelRejected, match="U-Net for 8"):
        middle_of(
            {
                "UNet.inc.conv.0.weight": torch.zeros(16, 8, 3, 3),
                "feature.model_3D.4.weight": torch.zeros(16, 8, 7, 7, 3),
            }
        )
