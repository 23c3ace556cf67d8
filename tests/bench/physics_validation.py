"""Make docs/physics.md and its figures: the physics against published and independent numbers.

python -m tests.bench.physics_validation                    all of it (an hour on two cores)
python -m tests.bench.physics_validation --only slabs,torso these sections; the others stay as they are
python -m tests.bench.physics_validation --quick --dry      a look: prints, writes nothing
"""

from __future__ import annotations

import argparse
import datetime
import re
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tests.bench.machine import machine
from tests.bench.physics.report import Effort, Maker, Section

PAGE = Path(__file__).parents[2] / "docs" / "physics.md"

# Sections in the order of the page; each is the function `section(effort)` of its module.
SECTIONS = (
    "stopping",
    "attenuation",
    "voxels",
    "spheres",
    "slabs",
    "torso",
    "interfaces",
    "heterogeneity",
    "patient",
    "kernels",
    "convolution",
    "devices",
    "speed",
)

HEAD = """# The physics against reference numbers

Made by `python -m tests.bench.physics_validation` (`make physics`). No parameter of the product is fitted
to any of these numbers. Each section says when and on what it was made."""

TAIL = """## What the figures do not say

- The references are Monte Carlo too, of a code with its own approximations; a measurement in a body does
  not exist.
- Decay data differ more than transport does. Lu-177 here emits 0.56 keV more conversion electrons a decay, of
  the outer shells, than the reference lists; I-131 here is ICRP 107's, the reference's DDEP's, whose tables
  were not at hand: its source voxel misses the 0.5 % that was aimed at by 0.3 %. With the same spectrum on
  both sides what is left is within the statistics.
- DVK's kernel is that of homogeneous soft tissue. Scaling to the voxel's density gives the mass its due,
  but electrons and photons do not see what lies between source and target: the slabs and the patient
  above show by how much that errs.
- Beyond 50 cm the kernels are zero, as their tables end there; Monte Carlo has no such end but the
  grid's.
- Dose inside a voxel is an average. For Lu-177 nearly all electrons stop in the voxel they start in: the
  map is as blurred as the activity map is.
- Media are decided by density alone: contrast agents, implants and the table have none of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the histories, smaller grids")
    parser.add_argument("--device", default="cpu", help="of the Monte Carlo runs: cpu, cuda, auto")
    parser.add_argument("--dry", action="store_true", help="print; write nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help="write this page and its figures beside it")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for name in names:
        section, seconds = _made(name, Effort(options.quick, options.device))
        made = f"{datetime.date.today()}, {machine()}, {options.device}, {seconds:.0f} s"
        section.say(f"*Made {made}{', quick' if options.quick else ''}.*")
        print(section.markdown())
        if not options.dry:
            # Read anew: another run may have made other sections meanwhile.
            kept = _sections_of(options.page) | {name: section.markdown()}
            section.write_figures(options.page.parent / options.page.stem)
            options.page.write_text(_page(kept), encoding="utf-8")


def _made(name: str, effort: Effort) -> tuple[Section, float]:
    make: Maker = import_module(f"tests.bench.physics.{name}").section
    started = time.monotonic()
    return make(effort), time.monotonic() - started


def _page(sections: Mapping[str, str]) -> str:
    bodies = [f"<!-- {name} -->\n{sections[name].rstrip()}" for name in SECTIONS if name in sections]
    return "\n\n".join([HEAD, *bodies, "<!-- end -->\n" + TAIL]) + "\n"


def _sections_of(page: Path) -> dict[str, str]:
    """The sections that the page has, by their names."""
    if not page.exists():
        return {}
    parts = re.split(r"<!-- (\w+) -->\n", page.read_text(encoding="utf-8"))
    return {name: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name in SECTIONS}


if __name__ == "__main__":
    main()
