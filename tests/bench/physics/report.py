"""What a section of docs/physics.md is made of: text, tables, figures; and how sections are told to run."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

mpl.use("Agg")
DPI = 110
WIDTH = 110
COLOURS = 192


@dataclass(frozen=True)
class Effort:
    """How long a section may take.

    quick: fewer histories and smaller grids; the figures are then worth a look and no more.
    device: of the Monte Carlo runs.
    """

    quick: bool = False
    device: str = "cpu"

    def decays(self, full: float) -> float:
        """Decays of a Monte Carlo run that has `full` of them when there is time."""
        return full / 20 if self.quick else full


@dataclass
class Section:
    """A chapter of the page.

    figures: PNG bytes by file name, shown in `text` by `![...](physics/NAME)`.
    """

    title: str
    text: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)

    def say(self, paragraph: str) -> None:
        self.text += [textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False), ""]

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.text += [
            "| " + " | ".join(head) + " |",
            "|" + " --- |" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
        ]

    def figure(self, name: str, caption: str, drawing: Figure) -> None:
        target = io.BytesIO()
        # No software version or date in the file: the same numbers give the same bytes.
        drawing.savefig(target, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
        self.figures[name] = small(target.getvalue())
        self.text += [f"![{caption}](physics/{name})", ""]

    def markdown(self) -> str:
        return "\n".join([f"## {self.title}", "", *self.text]).rstrip() + "\n"

    def write_figures(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.figures.items():
            (folder / name).write_bytes(content)


def small(png: bytes) -> bytes:
    """The picture with a palette: a third of the bytes, and nobody sees it."""
    target = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(target, "PNG", optimize=True)
    return target.getvalue()


Maker = Callable[[Effort], Section]


def per_cent(ratio: float, digits: int = 2) -> str:
    """A ratio as its distance from 1, "+0.12 %"."""
    return f"{100 * (ratio - 1):+.{digits}f} %"
