"""What electron transport looks up: soft losses along the path, deflections, and hard events.

Class II (Berger 1963): collisions that transfer more than `HARD_COLLISION_KEV`, and photons above
`HARD_PHOTON_KEV`, are followed one by one; what lies below is a continuous loss and an accumulated
deflection.

* Møller cross section (Møller 1932; Salvat, PENELOPE-2018 manual, NEA/MBDAV/R(2019)1, section 3.2): of an
  electron of kinetic energy E, with ε = W/E for an energy transfer W, γ = 1 + E/mc²::

      dσ/dε = (2π rₑ² mc² / β²E) [1/ε² + 1/(1−ε)² + ((γ−1)/γ)² − (2γ−1)/γ² · 1/(ε(1−ε))],   ε ≤ 1/2

* Bremsstrahlung: the shape in k of formula 3BN (Koch and Motz, Rev Mod Phys 31:920, 1959) with the factor of
  Elwert (1939) at the tip; its integral ∫ k dσ is normalised to the radiative stopping power.
* Deflection by soft collisions, added to the elastic transport coefficients of the data: close ones by the
  kinematics of Møller's cross section from the mean excitation energy I up to the cut; distant ones by one
  generalised oscillator at I (Liljequist 1983), whose recoil energies Q < I contribute ∫ Q dQ/Q · 1/I = 1
  beside the logarithm of the close ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.constants import ELECTRON_REST_KEV, FINE_STRUCTURE
from pipeline.montecarlo.compiled import F
from pipeline.montecarlo.data import PhysicsData

Float64 = NDArray[np.float64]

# Largest part of its energy that an electron loses in one step by soft collisions.
STEP_LOSS = 0.15
HARD_COLLISION_KEV = 20.0
HARD_PHOTON_KEV = 10.0

# 2π rₑ² mc², keV cm²: classical electron radius 2.8179403e-13 cm (CODATA 2018).
MOLLER_KEV_CM2 = 2.0 * np.pi * 2.8179403262e-13**2 * ELECTRON_REST_KEV
KEV_PER_MEV = 1e3
# Nuclear charge in the factor of Elwert: tissue radiates by oxygen and carbon.
ELWERT_CHARGE = 7.0
PHOTON_NODES = 65
# Of integrals over energy transfers and photon energies: the tables are within 2e-5 of those of 2000 points.
INTEGRATION_POINTS = 128


class ElectronTables(NamedTuple):
    """Of M materials on the common grid of N energies; "per keV" is per keV of soft loss.

    resolution: cm; an electron whose remaining range is shorter than this ends where it is.
    contained_below: keV; an electron below it whose range ends within its voxel leaves all its energy there
        (0: never). It is where radiation out of the voxel no longer counts.
    step: greatest soft loss in a step, part of the energy.
    """

    resolution: np.float32
    contained_below: np.float32
    step: np.float32
    soft_stopping: NDArray[np.float32]  # [M, N] keV cm2/g, collisions and photons below the cuts
    deflection: NDArray[np.float32]  # [M, N] ∫ G1/S dE from the lowest energy
    second_deflection: NDArray[np.float32]  # [M, N] ∫ G2/S dE
    hard: NDArray[np.float32]  # [M, N] hard events per keV
    hard_bound: NDArray[np.float32]  # [1, N] none of the materials has more in the step that begins here
    collision_share: NDArray[np.float32]  # [M, N] of the hard events, those that are collisions
    csda_range: NDArray[np.float32]  # [M, N] g/cm2
    photon_energy: NDArray[np.float32]  # [N, K] ln(k/cut)/ln(E/cut) at equidistant probabilities


def electron_tables(
    physics: PhysicsData,
    materials: NDArray[np.integer],
    *,
    resolution_cm: float,
    contained_below_kev: float,
    step: float = STEP_LOSS,
) -> ElectronTables:
    """Tables of every material of the data; the bound of hard events is that of `materials` (indices)."""
    energy = physics.energy_kev
    electrons = physics.electrons_per_gram[:, None]
    excitation = np.array([m.mean_excitation_ev for m in physics.materials])[:, None] / 1e3
    soft_photons, photons_per_kev, photon_energy = _bremsstrahlung(energy)
    radiative = physics.radiative_stopping * KEV_PER_MEV
    collisions, loss = moller_above(energy, HARD_COLLISION_KEV)
    soft = physics.collision_stopping * KEV_PER_MEV - electrons * loss + radiative * soft_photons
    first, second = soft_collision_transport(energy, excitation)
    hard_collisions, hard_photons = electrons * collisions / soft, radiative * photons_per_kev / soft
    hard = hard_collisions + hard_photons
    return ElectronTables(
        resolution=F(resolution_cm),
        contained_below=F(contained_below_kev),
        step=F(step),
        soft_stopping=_float32(soft),
        deflection=_float32(
            _running_integral((physics.elastic_transport + electrons * first) / soft, energy)
        ),
        second_deflection=_float32(
            _running_integral((physics.elastic_second_transport + electrons * second) / soft, energy)
        ),
        hard=_float32(hard),
        hard_bound=_float32(_bound(hard[materials].max(axis=0), energy, step))[None, :],
        collision_share=_float32(hard_collisions / np.maximum(hard, 1e-30)),
        csda_range=_float32(physics.csda_range),
        photon_energy=_float32(photon_energy),
    )


def moller_above(energy: Float64, cut: float) -> tuple[Float64, Float64]:
    """(cross section, cm²; ∫ W dσ, keV cm²) per electron of collisions that transfer more than `cut`.

    The integrals of Møller's formula in closed form; 0 below twice the cut.
    """
    gamma = 1.0 + energy / ELECTRON_REST_KEV
    scale = MOLLER_KEV_CM2 / (1.0 - gamma**-2)
    least = np.minimum(cut / energy, 0.5)
    a, b = ((gamma - 1.0) / gamma) ** 2, (2.0 * gamma - 1.0) / gamma**2
    number = 1.0 / least - 1.0 / (1.0 - least) + a * (0.5 - least) - b * np.log((1.0 - least) / least)

    def transfer(e: Float64 | float) -> Float64:
        return np.asarray(np.log(e) + 1.0 / (1.0 - e) + np.log(1.0 - e) * (1.0 + b) + a * np.square(e) / 2.0)

    return scale / energy * np.maximum(number, 0.0), scale * np.maximum(transfer(0.5) - transfer(least), 0.0)


def soft_collision_transport(energy: Float64, excitation: Float64) -> tuple[Float64, Float64]:
    """Transport cross sections ∫ (1 − P₁) dσ and ∫ (1 − P₂) dσ per electron, cm², of transfers below the cut.

    energy: [N] keV. excitation: [M, 1] keV. returns: two of [M, N].
    """
    gamma = 1.0 + energy / ELECTRON_REST_KEV
    scale = MOLLER_KEV_CM2 / (1.0 - gamma**-2)
    momentum_squared = energy * (energy + 2.0 * ELECTRON_REST_KEV)
    most = np.minimum(HARD_COLLISION_KEV, energy / 2.0)
    part = (np.arange(INTEGRATION_POINTS) + 0.5)[:, None, None] / INTEGRATION_POINTS
    span = np.log(np.maximum(most / excitation, 1.0))
    w = excitation * np.exp(part * span)  # [points, M, N]
    e = w / energy
    a, b = ((gamma - 1.0) / gamma) ** 2, (2.0 * gamma - 1.0) / gamma**2
    density = 1.0 / e**2 + 1.0 / (1.0 - e) ** 2 + a - b / (e * (1.0 - e))
    # dσ = scale/E · density · dε,  dε = e · d ln e
    weight = scale / energy * density * e * span / INTEGRATION_POINTS
    cosine = np.sqrt(
        (energy - w) * (energy + 2 * ELECTRON_REST_KEV) / (energy * (energy - w + 2 * ELECTRON_REST_KEV))
    )
    first = (weight * (1.0 - cosine)).sum(axis=0)
    second = (weight * 1.5 * (1.0 - cosine**2)).sum(axis=0)
    # Distant: 1 − cos θ = Q·mc²/p²c² for a recoil energy Q, and dσ = scale · dQ/(Q·I) up to Q = I.
    distant = scale * ELECTRON_REST_KEV / momentum_squared
    return first + distant, second + 3.0 * distant


def bremsstrahlung_shape(energy: Float64, photon: Float64) -> Float64:
    """k dσ/dk of formula 3BN with Elwert's factor, in units of α Z² rₑ²; energies keV, photon < energy."""
    k = photon / ELECTRON_REST_KEV
    e0 = 1.0 + energy / ELECTRON_REST_KEV
    e1 = e0 - k
    p0, p1 = np.sqrt(e0**2 - 1.0), np.sqrt(e1**2 - 1.0)
    l0, l1 = 2.0 * np.log(e0 + p0), 2.0 * np.log(e1 + p1)
    log = 2.0 * np.log((e0 * e1 + p0 * p1 - 1.0) / k)
    product, both = e0 * e1, p0 * p1
    inner = (product + p0**2) / p0**3 * l0 - (product + p1**2) / p1**3 * l1 + 2.0 * k * product / both**2
    shape = 4.0 / 3.0 - 2.0 * product * (p1**2 + p0**2) / both**2
    shape = shape + l0 * e1 / p0**3 + l1 * e0 / p1**3 - l1 * l0 / both
    shape = shape + log * (
        8.0 * product / (3.0 * both) + k**2 / both**3 * (product**2 + both**2) + k / (2.0 * both) * inner
    )
    charge = 2.0 * np.pi * ELWERT_CHARGE * FINE_STRUCTURE
    elwert = (p0 / e0 * -np.expm1(-charge * e0 / p0)) / (p1 / e1 * -np.expm1(-charge * e1 / p1))
    return np.asarray(p1 / p0 * shape * elwert)


def _bremsstrahlung(energy: Float64) -> tuple[Float64, Float64, Float64]:
    """Share of the radiative loss below the cut; photons above it per keV of radiative loss; their energies.

    returns: [N], [N], [N, PHOTON_NODES] of ln(k/cut)/ln(E/cut) at equidistant probabilities.
    """
    soft, number = np.ones_like(energy), np.zeros_like(energy)
    nodes = np.tile(np.linspace(0.0, 1.0, PHOTON_NODES), (len(energy), 1))
    middle = (np.arange(INTEGRATION_POINTS) + 0.5) / INTEGRATION_POINTS
    edges = np.linspace(0.0, 1.0, INTEGRATION_POINTS + 1)
    for i, e in enumerate(energy):
        if e <= HARD_PHOTON_KEV * 1.001:
            continue
        span = np.log(e / HARD_PHOTON_KEV)
        hard = bremsstrahlung_shape(e, HARD_PHOTON_KEV * np.exp(middle * span))
        below = HARD_PHOTON_KEV * middle
        loss_above = (hard * HARD_PHOTON_KEV * np.exp(middle * span)).sum() * span / INTEGRATION_POINTS
        loss_below = bremsstrahlung_shape(e, below).sum() * HARD_PHOTON_KEV / INTEGRATION_POINTS
        soft[i] = loss_below / (loss_below + loss_above)
        number[i] = hard.sum() * span / INTEGRATION_POINTS / (loss_below + loss_above)
        running = np.concatenate([[0.0], np.cumsum(hard)])
        nodes[i] = np.interp(np.linspace(0.0, 1.0, PHOTON_NODES), running / running[-1], edges)
    return soft, number, nodes


def _running_integral(values: Float64, energy: Float64) -> Float64:
    """∫ values dE from the lowest energy, by the trapezium in ln E (values · E is the smoother one)."""
    per_log = values * energy
    slabs = 0.5 * (per_log[:, 1:] + per_log[:, :-1]) * np.diff(np.log(energy))
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(slabs, axis=1)], axis=1)


def _bound(rate: Float64, energy: Float64, step: float) -> Float64:
    """The greatest rate that an electron meets in the step that begins at each energy, one bin to spare."""
    first = np.searchsorted(energy, energy * (1.0 - step)) - 2
    last = np.arange(len(energy)) + 2
    return np.array([rate[max(a, 0) : b].max() for a, b in zip(first, last, strict=True)])


def _float32(values: Float64) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
