"""The form that is trained is the same function as the published one: values, gradients and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import slab
from models.dblurdosenet import Network
from models.errors import ModelRejected
from models.fused import norm_act, up_cat
from models.fused import windows as fused_windows
from tests.models.random_network import ARCHITECTURES, random_network, windows

CL = torch.channels_last


def slab_of(slices: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, slices + 10, 32, 16)
    spect = torch.randn(shape, generator=generator, dtype=dtype).abs() * 300
    return spect, 1000 + 200 * torch.randn(shape, generator=generator, dtype=dtype)


def windowed(network: Network, spect: Tensor, density: Tensor) -> Tensor:
    found = network.correction(windows(spect), windows(density))
    return found.view(spect.shape[0], -1, *spect.shape[2:])


def trained(network: Network, correction: Tensor, target: Tensor) -> Network:
    ((correction - target) ** 2).mean().backward()  # type: ignore[no-untyped-call]
    return network


@pytest.mark.parametrize("slices", [1, 6])
@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_in_evaluation_it_equals_the_windows(architecture: str, middle: int, slices: int) -> None:
    network = random_network(architecture, middle)
    inputs = slab_of(slices)
    with torch.no_grad():
        expected = windowed(network, *inputs)
        found = slab.residual(network, *inputs)
    assert found.shape == (2, slices, 32, 16)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_in_training_values_gradients_and_statistics_equal_the_windows(
    architecture: str, middle: int
) -> None:
    """In float64, where a difference would be one of the function and not of rounding."""
    mine = random_network(architecture, middle).double().train()
    theirs = copy.deepcopy(mine)
    inputs = slab_of(3, torch.float64)
    target = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    found, expected = slab.residual(mine, *inputs), windowed(theirs, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    trained(mine, found, target)
    trained(theirs, expected, target)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8, msg=name)
    for (name, a), b in zip(mine.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_in_bfloat16_it_differs_by_rounding(architecture: str, middle: int) -> None:
    """Fused and in PyTorch's own operations, both against float32; the statistics alike."""
    exact = random_network(architecture, middle).train()
    fused, plain = copy.deepcopy(exact), copy.deepcopy(exact)
    inputs = slab_of(2)
    expected = slab.residual(exact, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = slab.residual(fused, *inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slab, "_fused", lambda *_: False)
            usual = slab.residual(plain, *inputs)
    assert found.dtype == torch.bfloat16
    error = (found - expected).norm() / expected.norm()
    assert error < 1.5 * (usual - expected).norm() / expected.norm()
    for (name, a), b in zip(fused.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02, msg=name)


@pytest.mark.parametrize(("architecture", "middle"), ARCHITECTURES)
def test_with_its_norms_held_a_step_is_the_function_that_will_be_run(architecture: str, middle: int) -> None:
    """What is trained at last must be what inference computes: the batch has no say in it, fused or not."""
    network = random_network(architecture, middle).eval()
    inputs = slab_of(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = slab.residual(network, *inputs)
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.eval()
        before = copy.deepcopy(network.state_dict())
        found = slab.residual(network, *inputs)
    assert (found - expected).float().norm() < 0.03 * expected.float().norm()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


# ── the fused operations, each against PyTorch's in float32 from the same bfloat16 values ─────────


def rounded(*shape: int, seed: int = 4) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return x.bfloat16().contiguous(memory_format=CL)


HELD = pytest.mark.parametrize("held", [False, True], ids=["batch", "held"])


def twins(norm: nn.BatchNorm2d | nn.BatchNorm3d, held: bool) -> tuple[nn.Module, nn.Module]:
    """The layer twice, with statistics that are not those of the batch; held: it holds still."""
    torch.manual_seed(5)
    for parameter in (norm.weight, norm.bias):
        parameter.data.normal_()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(4, 12)
    norm.train(not held)
    return norm, copy.deepcopy(norm)


def close(found: Tensor, expected: Tensor) -> None:
    """To a rounding to bfloat16 of the largest value."""
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=2**-8 * expected.abs().max().item())


@HELD
@pytest.mark.parametrize("slope", [0.1, 0.0])
@pytest.mark.parametrize("channels", [16, 24, 128])
def test_batch_norm_with_activation(channels: int, slope: float, held: bool) -> None:
    x, dy = rounded(3, channels, 18, 14), rounded(3, channels, 18, 14, seed=6)
    a, b = x.clone().requires_grad_(), x.float().requires_grad_()
    mine, theirs = twins(nn.BatchNorm2d(channels), held)
    found = norm_act(a, mine, slope)
    expected = functional.leaky_relu(theirs(b), slope)
    close(found, expected)
    found.backward(dy)  # type: ignore[no-untyped-call]
    expected.backward(dy.float())
    for one, other in ((a, b), *zip(mine.parameters(), theirs.parameters(), strict=True)):
        assert one.grad is not None
        assert other.grad is not None
        close(one.grad, other.grad)
    for one, other in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@HELD
@pytest.mark.parametrize(("width", "slices"), [(8, 3), (4, 1)])
def test_the_step_between_the_first_two_convolutions(width: int, slices: int, held: bool) -> None:
    x = rounded(2 * (slices + 8), 3 * width, 13, 9)
    dy = rounded(2 * 3 * slices, 3 * width, 13, 9, seed=7)
    a, b = x.clone().requires_grad_(), x.float().requires_grad_()
    norms = twins(nn.BatchNorm3d(width), held)
    found = fused_windows(a, norms[0], 0.1, 2, slices, slab.seen(slices))
    expected = slab._pooled(norms[1], b, 2, slices, fused=False)
    close(found, expected)
    found.backward(dy)  # type: ignore[no-untyped-call]
    expected.backward(dy.float())  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert b.grad is not None
    # Where two neighbours are equal PyTorch's maximum halves the gradient, pooling gives it to the first.
    apart = ((a.grad.float() - b.grad).abs() > 0.02 * b.grad.abs().max()).float().mean()
    assert apart < 0.05
    close(norms[0].bias.grad, norms[1].bias.grad)  # type: ignore[arg-type]
    for one, other in zip(norms[0].buffers(), norms[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_up_sampling_with_concatenation() -> None:
    low, skip, dy = rounded(2, 32, 5, 4), rounded(2, 16, 10, 8, seed=8), rounded(2, 48, 10, 8, seed=9)
    ours = [t.clone().requires_grad_() for t in (low, skip)]
    theirs = [t.float().requires_grad_() for t in (low, skip)]
    found = up_cat(*ours)
    expected = torch.cat([theirs[1], functional.interpolate(theirs[0], scale_factor=2.0)], dim=1)
    assert torch.equal(found.float(), expected)
    found.backward(dy)  # type: ignore[no-untyped-call]
    expected.backward(dy.float())  # type: ignore[no-untyped-call]
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        close(one.grad, other.grad)


def test_what_is_no_slab_is_refused() -> None:
    network = random_network("dblurdosenet")
    with pytest.raises(ModelRejected, match=r"slab of SPECT"):
        slab.residual(network, torch.zeros(1, 10, 16, 16), torch.zeros(1, 10, 16, 16))
    with pytest.raises(ModelRejected, match=r"slab of SPECT"):
        slab.residual(network, torch.zeros(1, 11, 16, 16), torch.zeros(1, 12, 16, 16))
