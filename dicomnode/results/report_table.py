"""The SR as a table for a terminal: what a physicist reads first. Reads nothing but the SR object."""

from __future__ import annotations

from pydicom import Dataset
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dicomnode.results.summary_report import ReportRow, read_table

# One standard deviation, in per cent; only of engines with statistics.
UNCERTAINTY = ("u mean %", "u voxel %")
COLUMNS = ("mL", "g", "MBq", "mean", "max", "min", "SD", "DR10", "DR30", "DR70", "DR90")


def report_table(report: Dataset) -> Group:
    """One table for each algorithm of a report, a line for each measurement group; dose rates in mGy/h.

    Print it with crop=False: on a narrow terminal lines wrap, and no number loses its last digits.
    """
    rows = read_table(report)
    algorithms = sorted({row.algorithm for row in rows})
    title = f"{report.get('SeriesDescription', 'Report')}: dose rates in mGy/h"
    by_name = {name: [row for row in rows if row.algorithm == name] for name in algorithms}
    return Group(*(_table(title, name, of_it) for name, of_it in by_name.items()))


def _table(title: str, algorithm: str, rows: list[ReportRow]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, caption=algorithm)
    table.add_column("region", no_wrap=True)
    uncertain = any(row.voxel_uncertainty is not None for row in rows)
    figures = [_figures(row, uncertain) for row in rows]
    for name in (*COLUMNS, *(UNCERTAINTY if uncertain else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for row, shown in zip(rows, figures, strict=True):
        table.add_row(Text(row.roi), *shown)
    # As wide as it wants to be: a number without its last digits would be another number.
    table.width = Console(width=10_000).measure(table).maximum
    return table


def _figures(row: ReportRow, uncertain: bool) -> list[str]:
    certain = (row.mean_uncertainty, row.voxel_uncertainty) if uncertain else ()
    return [*(_shown(value) for value in _values(row)), *map(_per_cent, certain)]


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
