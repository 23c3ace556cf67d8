"""From the dose grid onto the network's own lattice, and its answer back, without losing energy.

A network knows voxels of one size and patients that lie one way: rows towards the left, columns towards
the back, slices towards the head. Its lattice therefore runs along those axes of the dose grid that come
nearest to these, whatever their order and sense, over the box of the dose grid. All resampling is one matrix
per axis: where the target is coarser, the mean of the voxels that overlap it by the lengths they share; where
it is finer, linear between centres. Between lattices of one spacing both are the same, and where these
coincide nothing changes: the network must not see a SPECT that is blurred once more (`pipeline.averaging`
takes the mean of the linear interpolant, which is right for what a camera sampled coarsely, and a blur here).

Back, with ρ, D_K, V the density, DVK's dose rate and the voxel volume of the dose grid, with P the
interpolation from the network's lattice among its voxels n of tissue (weights that add up to 1), and with R
the mean of a map over the mass of n, by the transpose of P::

    δ₊ = max(δ, 0),   ν = min(1, max(−δ, 0) / R D_K)        on the network's lattice; δ: its change of DVK
    D  = D_K · (1 − c₋ P ν) + c₊ P δ₊,     0 where ρ <= 0.1 g/cm³

What the network adds is added, what it takes away takes a part of what is there: the result is never
negative, so that nothing has to be cut off. The two constants, near 1, make Σ D ρ V gain and lose exactly
the energy rate that δ₊ and ν carry on the network's lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.dose_rate import AIR_BELOW_G_PER_CM3
from pipeline.lattice import WHOLE_VOXEL_TOLERANCE
from pipeline.volume import Grid, Triple

if TYPE_CHECKING:
    import torch

# Planes of the dose grid that are brought back at a time: bounds what lies in memory at once.
_PLANES = 16

Index = tuple[int, int, int]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the network's lattice and the axis of the dose grid that runs along it.

    of: that axis of the dose grid. reversed: whether it runs the other way. n, spacing_mm: of the dose grid.
    size, width_mm, start_mm: of the network's lattice; start_mm: its low face, from the dose grid's low face,
    both seen along the network's axis.
    """

    of: int
    reversed: bool
    n: int
    spacing_mm: float
    size: int
    width_mm: float
    start_mm: float

    def onto_network(self, start: int, n: int) -> Weights:
        """(size, n): mean over the network's voxels of n voxels of the dose grid's lattice from `start` on.

        Beyond these voxels the weights add up to less than 1: to the part that is covered.
        """
        low = self.n - start - n if self.reversed else start
        centres = (self.start_mm + (np.arange(self.size) + 0.5) * self.width_mm) / self.spacing_mm - low - 0.5
        weights = axis_weights(centres, self.width_mm / self.spacing_mm, n)
        return np.ascontiguousarray(weights[:, ::-1]) if self.reversed else weights

    def onto_dose_grid(self) -> Weights:
        """(n, size): mean over the voxels of the dose grid of what is known on the network's lattice."""
        centres = ((np.arange(self.n) + 0.5) * self.spacing_mm - self.start_mm) / self.width_mm - 0.5
        weights = axis_weights(centres, self.spacing_mm / self.width_mm, self.size)
        return np.ascontiguousarray(weights[::-1]) if self.reversed else weights


@dataclass(frozen=True, slots=True)
class NetworkGrid:
    """The network's lattice over a dose grid. axes: slices, rows, columns. grid: where its voxels lie."""

    axes: tuple[Axis, Axis, Axis]
    grid: Grid

    @property
    def order(self) -> Index:
        """The dose grid's axes in the order of the network's."""
        z, y, x = (axis.of for axis in self.axes)
        return z, y, x

    def onto_network(
        self, array: NDArray[np.float32], start: Index, device: str, outside: float = 0.0
    ) -> torch.Tensor:
        """(z, y, x) float32: the mean over each of the network's voxels.

        array: on a box of the dose grid's lattice, whose first voxel has the index `start` there.
        outside: the value where the array does not reach at all; a voxel that it covers in part has the mean
            of that part, as tissue goes on where a CT ends.
        """
        import torch

        weights = [axis.onto_network(start[axis.of], array.shape[axis.of]) for axis in self.axes]
        covered = [w.sum(axis=1) for w in weights]
        for w, part in zip(weights, covered, strict=True):
            np.divide(w, part[:, None], out=w, where=part[:, None] > 0)
        onto = [torch.from_numpy(w).to(device) for w in weights]
        mean = _shrunk(_on(device, array).permute(self.order), onto)
        if outside != 0.0:
            z, y, x = (torch.from_numpy(part <= 0).to(device) for part in covered)
            mean[z[:, None, None] | y[:, None] | x] = outside
        return mean

    def brought_back(
        self,
        change: torch.Tensor,
        mass_density: torch.Tensor,
        dvk: NDArray[np.float32],
        density: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """DVK's map with what the network changes, on the dose grid.

        change: (z, y, x) mGy/h on the network's lattice, not yet clamped. mass_density: g/cm³ there.
        dvk, density: mGy/h and g/cm³ on the dose grid. returns: mGy/h on the dose grid.
        """
        return _Return(self, change, mass_density, dvk, density).result()


def axis_weights(centres: NDArray[np.floating], width: float, n: int) -> Weights:
    """(targets, n): what each voxel of a target takes of n source voxels along an axis.

    centres, width: of the target voxels, in source index coordinates. The source goes on unchanged up to
    its faces; of a target voxel beyond them only the part inside counts: its weights add up to less than 1.
    """
    low = np.clip(centres - width / 2, -0.5, n - 0.5)[:, None]
    high = np.clip(centres + width / 2, -0.5, n - 0.5)[:, None]
    index = np.arange(n)
    if width >= 1.0:
        shared = np.minimum(high, index + 0.5) - np.maximum(low, index - 0.5)
        return np.ascontiguousarray(np.maximum(shared, 0.0) / width, dtype=np.float32)
    at = np.clip(centres, 0.0, n - 1.0)[:, None]
    weights = np.maximum(1.0 - np.abs(at - index), 0.0) * ((high - low) / width)
    return np.ascontiguousarray(weights, dtype=np.float32)


def network_grid(grid: Grid, voxel_mm: Triple, multiple_of: int) -> NetworkGrid:
    """The network's lattice over the box of a grid.

    voxel_mm: (z, y, x) of the network. multiple_of: what rows and columns must be multiples of; whole voxels
    are added on both sides. A grid of the same spacing keeps its voxels where they are.
    """
    order = _order(grid)
    directions = np.asarray(grid.direction)
    axes = []
    for number, (of, width) in enumerate(zip(order, voxel_mm, strict=True)):
        n, spacing = grid.shape[of], grid.spacing_mm[of]
        own = max(math.ceil(n * spacing / width - WHOLE_VOXEL_TOLERANCE), 1)
        size = own if number == 0 else math.ceil(own / multiple_of) * multiple_of
        # Half the excess on either side, but whole voxels of what was added for the multiple.
        start = (n * spacing - own * width) / 2 - ((size - own) // 2) * width
        backwards = bool(directions[of, 2 - number] < 0)
        axes.append(Axis(of, backwards, n, spacing, size, width, start))
    return NetworkGrid((axes[0], axes[1], axes[2]), _grid(grid, axes))


def _grid(grid: Grid, axes: list[Axis]) -> Grid:
    first, along = np.zeros(3), []
    for axis in axes:
        at = (axis.start_mm + axis.width_mm / 2) / axis.spacing_mm - 0.5
        first[axis.of] = axis.n - 1 - at if axis.reversed else at
        x, y, z = (-c if axis.reversed else c for c in grid.direction[axis.of])
        along.append((x, y, z))
    x, y, z = (float(c) for c in grid.positions(first))
    sizes, widths = [axis.size for axis in axes], [axis.width_mm for axis in axes]
    return replace(
        grid,
        shape=(sizes[0], sizes[1], sizes[2]),
        origin_mm=(x, y, z),
        spacing_mm=(widths[0], widths[1], widths[2]),
        direction=(along[0], along[1], along[2]),
    )


def _order(grid: Grid) -> Index:
    """The grid's axes that come nearest to the patient's z, y and x."""
    along = np.abs(np.asarray(grid.direction)[:, ::-1])  # [axis of the grid, patient's z, y, x]
    best = max(permutations(range(3)), key=lambda order: sum(along[of, k] for k, of in enumerate(order)))
    return best[0], best[1], best[2]


class _Return:
    """The way back of one map; see the module's text."""

    def __init__(
        self,
        lattice: NetworkGrid,
        change: torch.Tensor,
        mass_density: torch.Tensor,
        dvk: NDArray[np.float32],
        density: NDArray[np.float32],
    ) -> None:
        import torch

        self._device = change.device
        self._dose_ml = math.prod(axis.spacing_mm for axis in lattice.axes) / 1000.0
        self._weights = [torch.from_numpy(a.onto_dose_grid()).to(self._device) for a in lattice.axes]
        self._shape = dvk.shape
        self._dvk = _on(self._device, dvk).permute(lattice.order)
        self._density = _on(self._device, density).permute(lattice.order)
        self._order = lattice.order
        self._tissue = (mass_density > AIR_BELOW_G_PER_CM3).float()
        self._change = change * self._tissue
        self._mass_density = mass_density

    def result(self) -> NDArray[np.float32]:
        """(z, y, x) of the dose grid, mGy/h."""
        import torch

        added, taken = self._change.clamp(min=0), (-self._change).clamp(min=0)
        mass, dvk_mass, volume = self._gathered()
        part = torch.where(dvk_mass > 0, taken * mass / dvk_mass.clamp(min=1e-30), 0.0).clamp_(max=1)
        # Of a voxel of the network that reaches beyond the dose grid only the inner part counts.
        own_mass = self._mass_density * volume
        mean_dvk = torch.where(mass > 0, dvk_mass / mass.clamp(min=1e-30), 0.0)
        wanted = _sum(added * own_mass), _sum(part * mean_dvk * own_mass)
        given = _sum(added * mass), _sum(part * dvk_mass)
        more, less = (w / g if g > 0 else 1.0 for w, g in zip(wanted, given, strict=True))
        part.mul_(less).clamp_(max=1)
        return self._combined(added.mul_(more), part)

    def _gathered(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """On the network's lattice: mass (g), mass times DVK, and volume (mL) that fall to each voxel."""
        import torch

        mass, dvk_mass = torch.zeros_like(self._change), torch.zeros_like(self._change)
        for planes in self._slabs():
            density = self._tissue_density(planes)
            share = self._shares(planes)
            weighted = density * share
            for total, of in ((mass, weighted), (dvk_mass, weighted * self._dvk[planes])):
                self._add_back(total, of, planes)
        for total in (mass, dvk_mass):
            total.mul_(self._tissue)
        z, y, x = (w.sum(dim=0) for w in self._weights)
        return mass, dvk_mass, z[:, None, None] * y[:, None] * x * self._dose_ml

    def _combined(self, added: torch.Tensor, part: torch.Tensor) -> NDArray[np.float32]:
        import torch

        result = torch.empty(self._shape, dtype=torch.float32)
        view = result.permute(self._order)
        for planes in self._slabs():
            share = self._shares(planes)
            slab = self._dvk[planes] * (1.0 - self._spread(part, planes) * share).clamp_(min=0)
            slab += self._spread(added, planes) * share
            slab[self._density[planes] <= AIR_BELOW_G_PER_CM3] = 0.0
            view[planes] = slab.cpu()
        array: NDArray[np.float32] = result.numpy()
        return array

    def _slabs(self) -> list[slice]:
        depth = self._dvk.shape[0]
        return [slice(k, min(k + _PLANES, depth)) for k in range(0, depth, _PLANES)]

    def _tissue_density(self, planes: slice) -> torch.Tensor:
        density = self._density[planes]
        return density * (density > AIR_BELOW_G_PER_CM3)

    def _shares(self, planes: slice) -> torch.Tensor:
        """1 over the weights of those voxels of the network that are tissue; 0 where none is."""
        import torch

        weight = self._spread(self._tissue, planes)
        return torch.where(weight > 1e-6, 1.0 / weight.clamp(min=1e-6), 0.0)

    def _spread(self, values: torch.Tensor, planes: slice) -> torch.Tensor:
        """P without its normalisation: from the network's lattice onto some planes of the dose grid."""
        z, y, x = self._weights
        rows = z[planes]
        used = _used(rows)
        wide = values[used] @ x.T
        return _first_axis(rows[:, used], y @ wide)

    def _add_back(self, total: torch.Tensor, values: torch.Tensor, planes: slice) -> None:
        """The transpose of `_spread`, times the volume of a voxel of the dose grid, added to `total`."""
        z, y, x = self._weights
        rows = z[planes]
        used = _used(rows)
        narrow = y.T @ (values @ x)
        total[used] += _first_axis(rows[:, used].T, narrow) * self._dose_ml


def _on(device: str | torch.device, array: NDArray[np.float32]) -> torch.Tensor:
    """The array as a tensor there; on the CPU the same memory. torch knows no steps backwards."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _used(rows: torch.Tensor) -> slice:
    columns = rows.any(dim=0).nonzero()
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _first_axis(matrix: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
    import torch

    product: torch.Tensor = torch.tensordot(matrix, array, dims=([1], [0]))
    return product


def _shrunk(array: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """One matrix product per axis, the axis that shrinks most first."""
    for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        if axis == 0:
            array = _first_axis(weights[0], array)
        elif axis == 1:
            array = weights[1] @ array
        else:
            array = array @ weights[2].T
    return array.contiguous()


def _sum(array: torch.Tensor) -> float:
    import torch

    return float(array.sum(dtype=torch.float64))
