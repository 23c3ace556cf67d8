"""What training makes small: errors in voxels, and errors of the means in VOIs.

Of an estimate e against the truth t, with s DVK's dose rate smoothed over 3 x 5 x 5 voxels::

    loss = mean [ (e - t)² / c² · (c / (s + c))^p ]  +  w · Σ part · [ k · huber(mean error) + NRMSE² ]
           voxels of tissue                               VOIs of a crop

         +  v · mean [ (e - e')² / 2 (s + c)² ]
                voxels of tissue

c: `loss_floor`; p: `loss_exponent`. p = 0 is the mean squared error of the paper, which the hottest lesion
decides alone; p = 2 is a squared relative error, which the many voxels of little dose decide; p = 1 lies
between, as a chi-square of counts does. The weight does not look at the truth: that is a Monte Carlo's, and a
weight that followed its noise would pull the estimate down.

w: `voi_weight`; part: how much of the VOI lies in the crop; mean error and NRMSE are those of that part,
relative to its true mean. The least squares of voxels alone give every voxel the mean of what it may be:
where an edge may lie here or there the edge stays soft, and what stands inside a lesion's outline is too low
in every lesion. A physicist reads the mean in the outline; so that is asked for too. And there a small or
faint lesion counts as much as a large or hot one. The mean of a whole VOI is known to half a per cent; that
of a few of its voxels is not, and counts as little as they are few.

k: √(n / `USUAL_VOXELS`) of a VOI of n voxels of the examples, within `voi_bounds`. The larger a VOI is
against the resolution, the better the image tells its mean, and the smaller the error that is left to be
found: three per cent in each kidney are a bias, three per cent in a lesion of 2 mL are chance. Bounds of 1 to
1 count all alike, as the shipped weights were made; 0.5 to 4 have been tried (docs/network.md).

v: `noise_weight`; e': the estimate from a second image of the same patient, which differs by the noise of
its counts alone. Half the squared difference of the two is the variance of one, without bias and without the
truth. The first term holds that variance too, but there what is gained in lesions pays for it: a network that
has seen many lesions makes some of noise. Relative to the dose, so that the liver decides and not the hottest
lesion. The errors of both images count in the other terms. 0: one image, as the shipped weights were made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from models import slab

if TYPE_CHECKING:
    from models.dblurdosenet import Network
    from models.samples import Batch
    from models.training import Settings

HUBER = 0.02
"""Relative errors below count by their square: those of a large organ, which is nearly right."""
USUAL_VOXELS = 880
"""Of a VOI whose mean counts once: 10 mL in the examples' voxels of 3 x 1.95 x 1.95 mm."""
_LEAST_DOSE = 1.0  # of a VOI's true mean, in the network's unit: there is no relative error of nothing


def loss_of(network: Network, batch: Batch, settings: Settings, precision: torch.dtype) -> Tensor:
    """The loss of a network on a batch, a scalar.

    Not clamped at zero as the published output is: what falls below would learn nothing.
    """
    with torch.autocast(batch.spect.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        correction = slab.residual(network, batch.spect, batch.density).float()
    estimate = correction + batch.dvk if network.residual else correction
    return error_loss(estimate - batch.truth, batch, settings)


def error_loss(error: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """The loss of an error. error: (N, S, H, W), estimate less truth, in the network's unit of dose."""
    near = F.avg_pool3d(batch.dvk[:, None], (3, 5, 5), 1, (1, 2, 2), count_include_pad=False)[:, 0]
    loss = _of_voxels(error, near, batch, settings)
    if settings.voi_weight:
        loss = loss + settings.voi_weight * _of_vois(error, batch, settings)
    if settings.noise_weight:
        loss = loss + settings.noise_weight * _of_noise(error, near, batch, settings)
    return loss


def _of_voxels(error: Tensor, near: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """near: DVK's dose rate, smoothed."""
    floor = settings.loss_floor
    weight = batch.counts * (floor / (near + floor)) ** settings.loss_exponent
    return ((error / floor) ** 2 * weight).sum() / batch.counts.sum().clamp(min=1)


def _of_noise(error: Tensor, near: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """Relative variance of the estimate: the truth of both images is one, and falls out of the difference."""
    first, second = error.chunk(2)
    counts = batch.counts[: len(first)]
    relative = (first - second) / (sum(near.chunk(2)) / 2 + settings.loss_floor)
    return (relative**2 * counts).sum() / 2 / counts.sum().clamp(min=1)


def _of_vois(error: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """For each crop, summed over its VOIs."""
    crops, most = batch.per_voxel.shape
    which = batch.vois.long() + most * torch.arange(crops, device=error.device)[:, None, None, None]

    def summed(values: Tensor) -> Tensor:
        sums = torch.zeros(crops * most, device=error.device, dtype=torch.float32)
        return sums.index_add_(0, which.flatten(), (values * batch.counts).flatten()).view(crops, most)

    voxels = summed(torch.ones_like(error)).clamp(min=1)
    true_mean = (summed(batch.truth) / voxels).clamp(min=_LEAST_DOSE)
    mean_error = summed(error) / voxels / true_mean
    nrmse_squared = summed(error**2) / voxels / true_mean**2
    of_mean = F.smooth_l1_loss(mean_error, torch.zeros_like(mean_error), reduction="none", beta=HUBER)
    usual = USUAL_VOXELS / settings.in_plane**2
    by_size = (usual * batch.per_voxel).clamp(min=1e-9).rsqrt().clamp(*settings.voi_bounds)
    return ((by_size * of_mean + nrmse_squared) * voxels * batch.per_voxel).sum() / crops
