"""Patients that several tests look at: drawing one takes seconds, so each is drawn once a process."""

from __future__ import annotations

from functools import cache

from pipeline.simulate.patient import VirtualPatient, drawn_patient
from pipeline.volume import Grid

# Coarse, and as wide as the field of a CT.
GRID = Grid((98, 100, 125), (-248.0, -183.5, -193.5), (4.0,) * 3)
TRAINED = ("trunk", "harmonic")


@cache
def drawn(family: str, seed: int, texture: str = "multiscale") -> VirtualPatient:
    return drawn_patient(GRID, seed, family, texture)
