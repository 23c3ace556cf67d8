"""What one patient's tissues hold: the table of `tissue`, and how a patient departs from it.

`ReferenceMakeup` is the patient of the demonstration, close to the table. `VariedMakeup` is a patient for
training and tests: organ means are log-normal, and ratios inside the kidney, textures, the softness of
borders and densities are drawn from wide ranges (densities by the calibration of `pipeline.density`: lung
0.2 to 0.4, fat 0.92 to 0.95, spongiosa 1.1 to 1.3, cortical bone 1.4 to 1.9 g/cm3).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pipeline.simulate.tissue import CORTICAL_BONE_HU, TISSUES, Label

_SPINE = {Label.THORACIC_SPINE, Label.L1, Label.L2, Label.L3, Label.L4, Label.L5}
BONES = {Label.RIB, Label.STERNUM, Label.ILIUM, Label.SACRUM} | _SPINE
_CORTEX = {Label.RIGHT_KIDNEY_CORTEX, Label.LEFT_KIDNEY_CORTEX}
_MEDULLA = {Label.RIGHT_KIDNEY_MEDULLA, Label.LEFT_KIDNEY_MEDULLA}
_PELVIS = {Label.RIGHT_KIDNEY_PELVIS, Label.LEFT_KIDNEY_PELVIS}
_SOLID = {Label.LIVER, Label.SPLEEN, Label.PANCREAS, Label.HEART} | _CORTEX | _MEDULLA

# Standard deviation of the logarithm of the mean between patients: organs that take the peptide up by
# receptors differ most. Kidney, liver, spleen: coefficients of variation of 30 to 50 % are reported for
# residence times and doses per activity (Sandström et al., J Nucl Med 2013;54:33; Wehrmann et al. 2007).
_BETWEEN_PATIENTS: dict[str, float] = {
    "kidney": 0.35, "marrow": 0.4, "LIVER": 0.4, "SPLEEN": 0.45, "PANCREAS": 0.45, "BOWEL": 0.5,
    "STOOL": 0.6, "STOMACH": 0.4, "GALLBLADDER": 0.6,
}  # fmt: skip
_ELSEWHERE = 0.3
_FARTHEST = 2.0  # standard deviations


class Makeup(Protocol):
    """cortical_hu, shell_mm: compact bone and its thickness; the rest by label."""

    @property
    def cortical_hu(self) -> float: ...

    @property
    def shell_mm(self) -> float: ...

    def mean(self, label: Label) -> float:
        """Mean activity concentration, Bq/mL."""

    def hu(self, label: Label) -> float:
        """Mean CT number."""

    def deviation(self, label: Label) -> float:
        """Standard deviation of the logarithm of the uptake inside the organ."""

    def edge_mm(self, label: Label) -> float | None:
        """Width over which the uptake falls at the organ's border; None: as sharp as the CT."""


class ReferenceMakeup:
    """The table, organ means within 50 % of it."""

    cortical_hu = CORTICAL_BONE_HU
    shell_mm = 1.8

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._factors: dict[object, float] = {}

    def mean(self, label: Label) -> float:
        """Mean activity concentration, Bq/mL."""
        tissue = TISSUES[label]
        key = tissue.organ or tissue
        if key not in self._factors:
            self._factors[key] = float(np.exp(np.clip(self._rng.normal(0, 0.2), -0.4, 0.4)))
        return tissue.uptake * self._factors[key]

    def hu(self, label: Label) -> float:
        """Mean CT number."""
        return TISSUES[label].hu

    def deviation(self, label: Label) -> float:
        """Standard deviation of the logarithm of the uptake inside the organ."""
        return TISSUES[label].texture

    def edge_mm(self, label: Label) -> float | None:
        """Every border is as sharp as the CT."""
        return None


class VariedMakeup:
    """A patient drawn from wide ranges; everything is drawn at once, so that it does not depend on use."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.cortical_hu = float(rng.uniform(650, 1450))
        self.shell_mm = float(rng.uniform(1.5, 3.2))
        self._medulla = float(rng.uniform(0.2, 0.6))
        self._pelvis = float(rng.uniform(0.0, 1.5))
        self._lung_hu = float(rng.uniform(-775, -645))
        self._fat_hu = float(rng.uniform(-108, -80))
        self._spongiosa = float(rng.uniform(0.95, 2.1))
        self._factors = _factors(rng)
        least, most = np.log(0.05), np.log(0.40)
        self._deviations = {label: float(np.exp(rng.uniform(least, most))) for label in TISSUES}
        self._edges = {label: float(rng.uniform(0, 3)) for label in TISSUES}
        self._hu_shifts = {label: float(np.clip(rng.normal(0, 5), -10, 10)) for label in TISSUES}

    def mean(self, label: Label) -> float:
        """Mean activity concentration, Bq/mL."""
        if label in _MEDULLA | _PELVIS:
            cortex = TISSUES[Label.LEFT_KIDNEY_CORTEX].uptake * self._factors["kidney"]
            return cortex * (self._medulla if label in _MEDULLA else self._pelvis)
        return TISSUES[label].uptake * self._factors[_key(label)]

    def hu(self, label: Label) -> float:
        """Mean CT number."""
        if label == Label.LUNG:
            return self._lung_hu
        if label == Label.FAT:
            return self._fat_hu
        if label in BONES:
            return float(np.clip(TISSUES[label].hu * self._spongiosa, 145, 470))
        return TISSUES[label].hu + self._hu_shifts[label]

    def deviation(self, label: Label) -> float:
        """Standard deviation of the logarithm of the uptake inside the organ."""
        return self._deviations[label]

    def edge_mm(self, label: Label) -> float | None:
        """0 to 3 mm for organs; bone and thin structures keep the border of the CT."""
        return self._edges[label] if label in _SOLID else 0.0


def _key(label: Label) -> str:
    return TISSUES[label].organ or label.name


def _factors(rng: np.random.Generator) -> dict[str, float]:
    factors: dict[str, float] = {}
    for label in TISSUES:
        key = _key(label)
        if key not in factors:
            spread = _BETWEEN_PATIENTS.get(key, _ELSEWHERE)
            factors[key] = float(np.exp(spread * np.clip(rng.normal(), -_FARTHEST, _FARTHEST)))
    return factors
