"""How two boxes share the points of a sphere: the weight of every distance between them.

A source spread evenly over one voxel and a target voxel of the same size s at the offset d: the
displacement p from a source point to a target point has the density of three triangle functions,

    w(p − d) = Π_i max(0, 1 − |p_i − d_i| / s_i)

and W_d(r), its mean over the directions of p at |p| = r, is what a kernel that depends on the distance
alone has to be weighted with. With z = r cos θ and R = r sin θ, x = R cos φ, y = R sin φ::

    W_d(r) = 1/(4π) ∫ dθ sin θ T_z(r cos θ) ∫ dφ T_x(R cos φ) T_y(R sin φ)

Between the kinks of T_x and T_y, which are linear, the integral over φ is elementary. That over θ is done
by Gauss's rule between the kinks of T_z and the radii R at which a kink of T_x, of T_y or a crossing of two
enters. Nothing is sampled.
"""

from __future__ import annotations

from math import acos, asin, cos, pi, sin, sqrt

import numba
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Gauss points between two kinks along θ: with four, W is right to some 1e-5 of itself.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def direction_means(
    spacing: Float64,
    offsets: Float64,
    step: float,
    rule: Float64,
    nodes: Float64,
    weights: Float64,
    out: Float64,
) -> None:
    """out[i] = Σ_j rule[j] W_d(j · step) for d = offsets[i].

    spacing: (z, y, x) mm. offsets: (n, 3) mm, none negative, each component 0 or at least one spacing.
    rule: the radial kernel as weights of W at the radii 0, step, 2 step, ... out: (n,) overwritten.
    """
    for i in range(offsets.shape[0]):
        near = far = 0.0
        for k in range(3):
            near += max(0.0, offsets[i, k] - spacing[k]) ** 2
            far += (offsets[i, k] + spacing[k]) ** 2
        first, last = int(sqrt(near) / step), min(int(sqrt(far) / step) + 1, rule.size - 1)
        total = 0.0
        for j in range(first, last + 1):
            if rule[j] != 0.0:
                total += rule[j] * direction_mean(j * step, offsets[i], spacing, nodes, weights)
        out[i] = total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def direction_mean(r: float, d: Float64, s: Float64, nodes: Float64, weights: Float64) -> float:
    """W_d(r). d, s: offset and spacing, (z, y, x), the unit of r."""
    if r <= 0.0:
        return 1.0 if d[0] == 0.0 and d[1] == 0.0 and d[2] == 0.0 else 0.0
    low, high = max(0.0, d[0] - s[0]), min(r, d[0] + s[0])
    if low >= high:
        return 0.0
    cuts = np.empty(20)
    n = _cuts(r, d, s, low, high, cuts)
    total = 0.0
    for k in range(n - 1):
        # Along θ and not z: near the pole R is linear in θ, but a square root in z.
        above, below = acos(min(1.0, cuts[k + 1] / r)), acos(cuts[k] / r)
        half, middle = (below - above) / 2, (below + above) / 2
        if half > 1e-12:
            for g in range(nodes.size):
                theta = middle + half * nodes[g]
                triangle = 1.0 - abs(r * cos(theta) - d[0]) / s[0]
                radius = r * sin(theta)
                total += half * weights[g] * triangle * _around_z(radius, d, s) * sin(theta)
    # Only the octant of positive coordinates was seen: an axis with d = 0 has its mirror image as well.
    mirrored = 1.0
    for k in range(3):
        if d[k] == 0.0:
            mirrored *= 2.0
    return mirrored * total / (4 * pi)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cuts(r: float, d: Float64, s: Float64, low: float, high: float, cuts: Float64) -> int:
    """Where the integrand over z has a kink, in order, from `low` to `high`; how many."""
    n = _insert(_insert(0, low, cuts), high, cuts)
    if low < d[0] < high:
        n = _insert(n, d[0], cuts)
    for j in range(-1, 3):
        y = 0.0 if j == 2 else d[1] + j * s[1]
        for i in range(-1, 3):
            x = 0.0 if i == 2 else d[2] + i * s[2]
            square = r * r - x * x - y * y
            if x >= 0.0 and y >= 0.0 and low * low < square < high * high:
                n = _insert(n, sqrt(square), cuts)
    return n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _insert(n: int, value: float, ordered: Float64) -> int:
    """Into the first n, which are in order; n + 1."""
    place = n
    while place > 0 and ordered[place - 1] > value:
        ordered[place] = ordered[place - 1]
        place -= 1
    ordered[place] = value
    return n + 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _around_z(radius: float, d: Float64, s: Float64) -> float:
    """∫ T_x(R cos φ) T_y(R sin φ) dφ over the first quadrant.

    In φ, x falls from R to 0 through its kinks while y rises from 0 to R through its own: two sorted
    lists are merged, and between two breaks both triangles are linear.
    """
    if radius <= max(0.0, d[2] - s[2]) or radius <= max(0.0, d[1] - s[1]):
        return 0.0
    x_kink, y_kink = 1, -1  # multiples of s from d
    phi, cosine, sine = 0.0, 1.0, 0.0
    total = 0.0
    while x_kink >= -1 and d[2] + x_kink * s[2] >= radius:
        x_kink -= 1
    while y_kink <= 1 and d[1] + y_kink * s[1] <= 0.0:
        y_kink += 1
    while phi < pi / 2:
        x = d[2] + x_kink * s[2] if x_kink >= -1 else -1.0
        y = d[1] + y_kink * s[1] if y_kink <= 1 else 2 * radius
        at_x = acos(x / radius) if x > 0.0 else pi / 2
        at_y = asin(y / radius) if y < radius else pi / 2
        # x lies in the piece below the last kink passed, y in the one above: -1 or +1 of its centre.
        if at_x <= at_y:
            end, end_cosine = at_x, max(x, 0.0) / radius
            end_sine = sqrt(max(0.0, 1.0 - end_cosine**2))
        else:
            end, end_sine = at_y, y / radius
            end_cosine = sqrt(max(0.0, 1.0 - end_sine**2))
        if -1 <= x_kink <= 0 and 0 <= y_kink <= 1 and end > phi:
            # T_x = a + b cos φ, T_y = e + f sin φ
            sign = 1.0 if x_kink == -1 else -1.0
            a, b = 1.0 - sign * d[2] / s[2], sign * radius / s[2]
            sign = 1.0 if y_kink == 0 else -1.0
            e, f = 1.0 - sign * d[1] / s[1], sign * radius / s[1]
            total += a * e * (end - phi) + a * f * (cosine - end_cosine) + b * e * (end_sine - sine)
            total += b * f * (end_sine**2 - sine**2) / 2
        if at_x <= at_y:
            x_kink -= 1
        if at_y <= at_x:
            y_kink += 1
        phi, cosine, sine = end, end_cosine, end_sine
    return total
