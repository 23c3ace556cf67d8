"""Energy spectra of a decay as PENELOPE's sources read them: a histogram, lines as bins of 1 eV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LINE_EV = 1.0
LOWEST_EV = 50.0  # PENELOPE knows no energy below


def histogram(
    lines_kev: Floats, yields: Floats, beta_kev: Floats | None = None, beta_yield: float = 0.0
) -> tuple[Floats, Floats]:
    """Edges (n + 1) in eV and yields per decay (n) of lines and of a beta spectrum.

    beta_kev: energies at equal steps of probability.
    """
    lines = np.maximum(1e3 * np.asarray(lines_kev, float), LOWEST_EV + LINE_EV)
    edges = np.concatenate([lines - LINE_EV / 2, lines + LINE_EV / 2])
    if beta_kev is not None and beta_yield > 0:
        beta_ev = np.maximum(1e3 * beta_kev, LOWEST_EV)
        edges = np.concatenate([edges, beta_ev])
    edges = np.unique(edges)
    content = np.zeros(edges.size - 1)
    if beta_kev is not None and beta_yield > 0:
        below = np.interp(edges, *_increasing(beta_ev))
        content += beta_yield * np.diff(below)
    np.add.at(content, np.searchsorted(edges, lines, side="right") - 1, np.asarray(yields, float))
    return edges, content


def _increasing(energies: Floats) -> tuple[Floats, Floats]:
    """Energies without repetition and the probability below each."""
    probability = np.linspace(0.0, 1.0, energies.size)
    unique, first = np.unique(energies[::-1], return_index=True)
    return unique, probability[::-1][first]


def spectrum_file(edges: Floats, content: Floats) -> str:
    """The text of a FILE_SPECTRUM source: lower edge, probability; −1 ends the last bin."""
    rows = [f"{edge:.4f} {share:.8e}" for edge, share in zip(edges[:-1], content, strict=True)]
    return "\n".join([*rows, f"{edges[-1]:.4f} -1.0"]) + "\n"


def mean_kev(edges: Floats, content: Floats) -> float:
    """keV per decay."""
    return float(np.sum(content * (edges[:-1] + edges[1:]) / 2) / 1e3)
