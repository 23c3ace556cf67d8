"""The SR as a table for a terminal: what a physicist reads first. Reads nothing but the SR object."""

from __future__ import annotations

from pydicom import Dataset
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dicomnode.summary_report import ReportRow, read_table

# One standard deviation, in per cent; only of engines with statistics.
UNCERTAINTY = ("u mean %", "u voxel %")
COLUMNS = ("mL", "g", "MBq", "mean", "max", "min", "SD", "DR10", "DR30", "DR70", "DR90")


def report_table(report: Dataset) -> Table:
    """One line for each measurement group of a report; dose rates in mGy/h."""
    rows = read_table(report)
    algorithms = sorted({row.algorithm for row in rows})
    title = f"{report.get('SeriesDescription', 'Report')}: dose rates in mGy/h"
    table = Table(title=title, box=SIMPLE_HEAD, caption="" if len(algorithms) > 1 else algorithms[0])
    table.add_column("region", no_wrap=True)
    if len(algorithms) > 1:
        table.add_column("algorithm", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    uncertain = any(row.voxel_uncertainty is not None for row in rows)
    for name in UNCERTAINTY if uncertain else ():
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        names = [row.roi] if len(algorithms) == 1 else [row.roi, row.algorithm]
        certain = (row.mean_uncertainty, row.voxel_uncertainty) if uncertain else ()
        figures = [*(_shown(value) for value in _values(row)), *map(_per_cent, certain)]
        table.add_row(*map(Text, names), *figures)
    return table


def _values(row: ReportRow) -> tuple[float, ...]:
    rates = (row.mean, row.maximum, row.minimum, row.sd, row.dr10, row.dr30, row.dr70, row.dr90)
    return (row.volume_ml, row.mass_g, row.activity_mbq, *rates)


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _shown(value: float) -> str:
    """Three or more significant digits, never an exponent that hides the size of a number."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2e}"
