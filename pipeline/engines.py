"""The dose engines by name."""

from __future__ import annotations

from pipeline.dose_rate import Engine
from pipeline.dvk import dvk_dose_rate
from pipeline.errors import InputRejected
from pipeline.montecarlo.engine import mc_dose_rate
from pipeline.network import cnn_dose_rate

ENGINES: dict[str, Engine] = {"dvk": dvk_dose_rate, "mc": mc_dose_rate, "cnn": cnn_dose_rate}


def engine(name: str) -> Engine:
    """The engine of that name. raises: InputRejected, naming those that there are."""
    if name not in ENGINES:
        raise InputRejected(
            f"there is no dose engine {name!r}", f"[dose] engines may hold: {', '.join(ENGINES)}"
        )
    return ENGINES[name]
