"""What every table of config.toml is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

AETitle = Annotated[
    str,
    Field(min_length=1, max_length=16, pattern=r"^[^\\\x00-\x1f\x7f]*[^\\\x00-\x20\x7f][^\\\x00-\x1f\x7f]*$"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Millimetres = Annotated[float, Field(gt=0, le=20)]
Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of config.toml: unknown keys fail, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def pauses_in_order(table: Section, first: str, longest: str) -> None:
    """Raises ValueError where the longest of the pauses that double is shorter than the first."""
    first_value, longest_value = getattr(table, first), getattr(table, longest)
    if longest_value < first_value:
        raise ValueError(
            f"{longest} = {longest_value:g} is below {first} = {first_value:g}, from which pauses double: "
            f"raise {longest}, or lower {first}"
        )
