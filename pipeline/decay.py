"""Radionuclides that the node computes, and their decay.

::

    A(t) = A(0) · 2^(−t / T½)

Half-lives: ICRP Publication 107 (2008). Codes: PS3.16 CID 18, in SNOMED CT (SCT) and in the older
SNOMED-RT style (SRT), both of which cameras still write. The table is our own so that a half-life
never depends on what a header happens to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import InputRejected

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@dataclass(frozen=True, slots=True)
class Nuclide:
    """One row of the table.

    name: element and mass number, ``Lu-177``; also the stem of the kernel table's file name.
    element: the element in full, as it stands in code meanings.
    half_life_s: physical half-life, s.
    sct_code, srt_code: code values under the schemes SCT and SRT.
    """

    name: str
    element: str
    half_life_s: float
    sct_code: str
    srt_code: str

    @property
    def code_meaning(self) -> str:
        """As PS3.16 CID 18 spells it: ``^177^Lutetium``."""
        return f"^{self.name.partition('-')[2]}^{self.element}"


NUCLIDES: tuple[Nuclide, ...] = (
    Nuclide("Lu-177", "Lutetium", 6.647 * DAY_S, "447553000", "C-101ED"),
    Nuclide("Y-90", "Yttrium", 64.10 * HOUR_S, "14691008", "C-162A7"),
    Nuclide("I-131", "Iodine", 8.0207 * DAY_S, "1368003", "C-114B1"),
)


def nuclide(name: str) -> Nuclide:
    """The nuclide that `name` means.

    name: any usual spelling (``Lu-177``, ``177Lu``, ``LU177``, ``Lutetium-177``, ``^177^Lutetium``)
        or a code value of SCT or SRT.
    raises: InputRejected for a name or code that is not in the table.
    """
    found = _BY_SPELLING.get(_spelling(name))
    if found is None:
        known = ", ".join(row.name for row in NUCLIDES)
        raise InputRejected(
            f"there is no dose kernel for the nuclide {name!r}",
            f"The node computes {known}. Correct the radionuclide of the study or of the configuration",
        )
    return found


def decay_factor(of: Nuclide, seconds: float) -> float:
    """Activity after `seconds` over activity now; above 1 when `seconds` is negative."""
    return float(2.0 ** (-seconds / of.half_life_s))


def _spelling(name: str) -> str:
    """Letters then digits, nothing else: one form for ``177-Lu`` and ``LU 177``."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(\d+)([a-z]+)$", r"\2\1", text)


def _spellings(row: Nuclide) -> tuple[str, ...]:
    return row.name, row.code_meaning, row.sct_code, row.srt_code


_BY_SPELLING = {_spelling(text): row for row in NUCLIDES for text in _spellings(row)}
