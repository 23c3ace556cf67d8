"""Volumes of interest as the paper groups them: one class for each organ, one for all lesions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class VoiClass(StrEnum):
    """What the figures of a VOI are averaged with, in the order of the tables."""

    LESION = "lesion"
    SMALL_LESION = "lesion below 2 mL"
    LEFT_KIDNEY = "left kidney"
    RIGHT_KIDNEY = "right kidney"
    HEALTHY_LIVER = "healthy liver"
    SPLEEN = "spleen"
    LUMBAR = "lumbar vertebrae"
    OTHER = "other"


LESIONS = (VoiClass.LESION, VoiClass.SMALL_LESION)
LEAST_LESION_ML = 2.0
"""What is asked of weights is asked of lesions of 2 to 100 mL, as the paper's were."""

HEALTHY_LIVER = "healthy liver"
BODY = "body"
UNIONS = (BODY, "lesions", "field of view")
"""Names of what holds other VOIs: not judged."""

_SAYS = (
    (VoiClass.LESION, r"\b(lesion|tumou?r|metastas[ie]s)"),
    (VoiClass.LUMBAR, r"^l[1-5](\D*l[1-5])?$|\blumbar\b|\bvertebrae l[1-5]$"),
    (VoiClass.LEFT_KIDNEY, r"\bleft kidney\b|\bkidney (left|l)\b"),
    (VoiClass.RIGHT_KIDNEY, r"\bright kidney\b|\bkidney (right|r)\b"),
    (VoiClass.HEALTHY_LIVER, r"\bliver\b"),
    (VoiClass.SPLEEN, r"\bspleen\b"),
)


def voi_class(name: str) -> VoiClass:
    """The class that a VOI's name says: "lesion 3", "kidney_left", "L2", "vertebrae_L4" ..."""
    words = re.sub(r"[\s_]+", " ", name.strip().lower())
    return next((kind for kind, pattern in _SAYS if re.search(pattern, words)), VoiClass.OTHER)


def sized(kind: VoiClass, volume_ml: float) -> VoiClass:
    """The class of a VOI of that volume: lesions smaller than `LEAST_LESION_ML` have one of their own."""
    return VoiClass.SMALL_LESION if kind is VoiClass.LESION and volume_ml < LEAST_LESION_ML else kind


def vois_of_kind(vois: Mapping[str, Mask], kind: VoiClass) -> dict[str, Mask]:
    """The VOIs of one class, by name."""
    return {name: mask for name, mask in vois.items() if voi_class(name) is kind}


def judged_vois(vois: Mapping[str, Mask]) -> dict[str, Mask]:
    """The VOIs as they are judged: none empty, and the liver less its lesions.

    vois: name -> (z, y, x) mask. A VOI "liver" becomes "healthy liver"; where there is one already, that
    remains and "liver" is left out. Of several, as of lobes, each keeps its own name: "healthy liver_left".
    """
    # Their union says as much where it is given instead of, or beside, the lesions one by one.
    lesions = list(vois_of_kind(vois, VoiClass.LESION).values())
    livers = [name for name in vois if voi_class(name) is VoiClass.HEALTHY_LIVER]
    judged: dict[str, Mask] = {}
    for name, mask in vois.items():
        if name.lower() in UNIONS:
            continue
        if voi_class(name) is VoiClass.HEALTHY_LIVER:
            if name != HEALTHY_LIVER and HEALTHY_LIVER in vois:
                continue
            for lesion in lesions:
                mask = mask & ~lesion
            name = HEALTHY_LIVER if name == HEALTHY_LIVER or len(livers) == 1 else f"healthy {name}"
        if mask.any():
            judged[name] = mask
    return judged
