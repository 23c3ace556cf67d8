"""A study small enough for a test of the whole path: an elliptic body, a uniform liver, a hot cube.

The numbers that a result must show follow from the arrays: nothing here is tuned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.virtual_study import Identity, Injection, NmStyle, Study, StudyFiles, write_study
from pipeline.simulate.cube import inside_box
from pipeline.volume import Grid, Volume

CT_GRID = Grid((24, 64, 64), (-126.0, -126.0, -60.0), (5.0, 4.0, 4.0))
SPECT_GRID = Grid((30, 40, 40), (-93.6, -93.6, -69.6), (4.8, 4.8, 4.8))
CUBE_CENTRE_MM = (40.0, 10.0, 0.0)
CUBE_MM = (30.0, 30.0, 30.0)
WARM_BQ_PER_ML, HOT_BQ_PER_ML = 1e4, 5e5


def ellipse(grid: Grid, half_x_mm: float, half_y_mm: float) -> NDArray[np.bool_]:
    """(z, y, x): inside an elliptic cylinder along z about the origin."""
    positions = grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.asarray((positions[..., 0] / half_x_mm) ** 2 + (positions[..., 1] / half_y_mm) ** 2 < 1)


def hounsfield(grid: Grid = CT_GRID) -> Volume:
    hu = np.where(ellipse(grid, 100, 80), 30.0, -1000.0).astype(np.float32)
    return Volume(hu, grid, "HU")


def activity(grid: Grid = SPECT_GRID) -> Volume:
    array = np.where(ellipse(grid, 90, 70), WARM_BQ_PER_ML, 0.0).astype(np.float32)
    array[inside_box(grid, CUBE_CENTRE_MM, CUBE_MM)] = HOT_BQ_PER_ML
    return Volume(array, grid, "Bq/mL")


def write(
    folder: Path,
    seed: str = "small",
    *,
    identity: Identity | None = None,
    injection: Injection | None = None,
    nm_style: NmStyle | None = None,
    **parts: Any,
) -> StudyFiles:
    """CT, SPECT and an RT Structure Set with the cube; `parts` replace or (None) leave out."""
    study = Study(seed=seed, identity=identity or Identity(), injection=injection or Injection())
    given: dict[str, Any] = {
        "ct": hounsfield(),
        "spect": activity(),
        "rois": {"hot cube": inside_box(CT_GRID, CUBE_CENTRE_MM, CUBE_MM)},
        "nm_style": nm_style,
    }
    given |= parts
    if given["ct"] is None:
        given["rois"] = None
    return write_study(folder, study, **{k: v for k, v in given.items() if v is not None})
