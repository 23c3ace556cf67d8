"""What the virtual patient is made of: labels, CT numbers and uptake.

CT numbers are those of an unenhanced scan at 120-130 kV (the CT of a SPECT/CT), HU.

Uptake is Bq/mL about 24 h after 7.4 GBq of Lu-177 DOTATATE. It is chosen so that the organ doses it
leads to are the usual ones. With all electrons absorbed, 1 MBq/g gives 0.0853 Gy/h; over an effective
mean life of 72 h a kidney at 0.55 MBq/mL receives 0.55 / exp(-24/72) · 0.0853 · 72 = 4.7 Gy per cycle
(0.6 Gy/GBq). A spleen at 0.7 MBq/mL receives about 6 Gy, normal liver at 0.12 MBq/mL about 1 Gy, a
tumour at 3 MBq/mL 30 to 40 Gy. The kidneys then hold about 1 % of the administered activity each and
the body about a fifth of it: two thirds have left by the urine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

ADMINISTERED_BQ = 7.4e9
HOURS_AFTER_INJECTION = 24.0


class Label(IntEnum):
    """Codes of the label image; lesion k (from 0) is FIRST_LESION + k, its necrotic core included."""

    AIR = 0
    TABLE = 1
    SKIN = 2
    FAT = 3
    MUSCLE = 4
    LUNG = 5
    LUNG_VESSEL = 6
    HEART = 7
    VESSEL = 8
    STOMACH = 9
    GAS = 10
    BOWEL = 11
    STOOL = 12
    PANCREAS = 13
    GALLBLADDER = 14
    LIVER = 20
    SPLEEN = 21
    RIGHT_KIDNEY_CORTEX = 30
    RIGHT_KIDNEY_MEDULLA = 31
    RIGHT_KIDNEY_PELVIS = 32
    LEFT_KIDNEY_CORTEX = 33
    LEFT_KIDNEY_MEDULLA = 34
    LEFT_KIDNEY_PELVIS = 35
    CARTILAGE = 40
    RIB = 41
    STERNUM = 42
    ILIUM = 43
    SACRUM = 44
    DISC = 45
    CANAL = 46
    THORACIC_SPINE = 50
    L1 = 51
    L2 = 52
    L3 = 53
    L4 = 54
    L5 = 55
    FIRST_LESION = 100


_RIGHT_KIDNEY = (Label.RIGHT_KIDNEY_CORTEX, Label.RIGHT_KIDNEY_MEDULLA, Label.RIGHT_KIDNEY_PELVIS)
_LEFT_KIDNEY = (Label.LEFT_KIDNEY_CORTEX, Label.LEFT_KIDNEY_MEDULLA, Label.LEFT_KIDNEY_PELVIS)

REGIONS: dict[str, tuple[Label, ...]] = {
    "liver": (Label.LIVER,),  # without its lesions
    "spleen": (Label.SPLEEN,),
    "right kidney": _RIGHT_KIDNEY,
    "left kidney": _LEFT_KIDNEY,
    "kidneys": _RIGHT_KIDNEY + _LEFT_KIDNEY,
    "lungs": (Label.LUNG, Label.LUNG_VESSEL),
    "L2-L5": (Label.L2, Label.L3, Label.L4, Label.L5),
}


@dataclass(frozen=True)
class Tissue:
    """hu: mean CT number. uptake: Bq/mL. texture: standard deviation of the uptake's logarithm.

    organ: tissues of one organ are higher or lower together from patient to patient; empty: on its own.
    """

    hu: float
    uptake: float
    texture: float = 0.1
    organ: str = ""


_KIDNEY_CORTEX = Tissue(32, 0.62e6, 0.12, "kidney")
_KIDNEY_MEDULLA = Tissue(30, 0.28e6, 0.15, "kidney")
_KIDNEY_PELVIS = Tissue(5, 0.20e6, 0.20, "kidney")
_SPINE = Tissue(170, 0.022e6, 0.25, "marrow")

TISSUES: dict[Label, Tissue] = {
    Label.SKIN: Tissue(10, 0.006e6),
    Label.FAT: Tissue(-104, 0.003e6, 0.2),
    Label.MUSCLE: Tissue(54, 0.008e6, 0.15),
    Label.LUNG: Tissue(-830, 0.006e6, 0.2),
    Label.LUNG_VESSEL: Tissue(20, 0.015e6),
    Label.HEART: Tissue(42, 0.018e6, 0.1),
    Label.VESSEL: Tissue(42, 0.020e6),
    Label.STOMACH: Tissue(38, 0.035e6, 0.2),
    Label.GAS: Tissue(-960, 0.0),
    Label.BOWEL: Tissue(36, 0.045e6, 0.4),
    Label.STOOL: Tissue(0, 0.015e6, 0.3),
    Label.PANCREAS: Tissue(40, 0.070e6, 0.2),
    Label.GALLBLADDER: Tissue(8, 0.015e6),
    Label.LIVER: Tissue(58, 0.12e6, 0.12),
    Label.SPLEEN: Tissue(50, 0.70e6, 0.10),
    Label.RIGHT_KIDNEY_CORTEX: _KIDNEY_CORTEX,
    Label.RIGHT_KIDNEY_MEDULLA: _KIDNEY_MEDULLA,
    Label.RIGHT_KIDNEY_PELVIS: _KIDNEY_PELVIS,
    Label.LEFT_KIDNEY_CORTEX: _KIDNEY_CORTEX,
    Label.LEFT_KIDNEY_MEDULLA: _KIDNEY_MEDULLA,
    Label.LEFT_KIDNEY_PELVIS: _KIDNEY_PELVIS,
    Label.CARTILAGE: Tissue(110, 0.006e6),
    Label.RIB: Tissue(230, 0.018e6, 0.25, "marrow"),
    Label.STERNUM: Tissue(160, 0.020e6, 0.25, "marrow"),
    Label.ILIUM: Tissue(220, 0.022e6, 0.25, "marrow"),
    Label.SACRUM: Tissue(170, 0.022e6, 0.25, "marrow"),
    Label.DISC: Tissue(85, 0.004e6),
    Label.CANAL: Tissue(28, 0.006e6),
    **dict.fromkeys((Label.THORACIC_SPINE, Label.L1, Label.L2, Label.L3, Label.L4, Label.L5), _SPINE),
}

CORTICAL_BONE_HU = 640.0
LESION_HU = 44.0
NECROSIS_HU = 22.0
