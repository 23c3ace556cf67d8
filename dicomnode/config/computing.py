"""Tables of the computing side: which study is complete, and what is computed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dicomnode.config.section import Millimetres, Seconds, Section
from pipeline.density import SCHNEIDER_2000, checked_curve
from pipeline.errors import InputRejected

Engine = Literal["dvk", "mc", "cnn"]


class Assemble(Section):
    """[assemble]: when a study is complete and which series are used."""

    quiet_s: Seconds = Field(60.0, description="no new object for so long: the study is looked at")
    max_wait_s: Seconds = Field(3600.0, description="wait for a missing series or slice, then HELD")
    tick_s: Seconds = Field(1.0, description="how often the stages look for work")
    prefer_ct: tuple[str, ...] = Field((), description="SeriesDescription patterns that win a tie, in order")
    prefer_spect: tuple[str, ...] = Field((), description="the same for SPECT and PET series")

    @model_validator(mode="after")
    def _waits_in_order(self) -> Assemble:
        if self.max_wait_s < self.quiet_s:
            raise ValueError("max_wait_s must not be shorter than quiet_s")
        return self


class Density(Section):
    """[density]: Hounsfield units to mass density."""

    curve: tuple[tuple[float, float], ...] = Field(
        SCHNEIDER_2000, description="[[HU, g/cm3], ...] ascending; straight lines between"
    )

    @field_validator("curve")
    @classmethod
    def _valid(cls, curve: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        try:
            checked_curve(curve)
        except InputRejected as error:
            raise ValueError(error.reason) from None
        return curve


class Dose(Section):
    """[dose]: what is computed and on what."""

    engines: tuple[Engine, ...] = Field(("dvk",), min_length=1, description="one RTDOSE each")
    heterogeneity: Literal["density_scaling", "local_transport"] = Field(
        "density_scaling", description="how dvk takes tissue densities into account"
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    grid_spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = Field(
        None, description="(z, y, x) of the dose grid; unset: the CT's own"
    )
    grid_field: Literal["ct", "spect"] = Field(
        "ct", description="what the dose grid holds: the patient as far as the CT, or the SPECT's field, goes"
    )
    plausibility_limit: float = Field(
        1.10, gt=0, description="activity found / administered above which a case is HELD"
    )
    max_outside_ct: float = Field(
        0.5, gt=0, le=1, description="part of the SPECT's activity outside the CT above which a case is HELD"
    )
    executor: Literal["local", "dask"] = Field("local", description="where: here, or on [cluster]")
    at_once: int = Field(1, ge=1, le=64, description="cases computed at the same time")
    max_attempts: int = Field(3, ge=1, description="computing attempts before FAILED")
    timeout_s: Seconds = Field(1800.0, description="an attempt that takes longer is killed")
    memory_limit_gb: float | None = Field(None, gt=0, description="address space of an attempt; unset: none")

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        if len(set(engines)) < len(engines):
            raise ValueError("an engine is named twice")
        return engines


class Cluster(Section):
    """[cluster]: the Dask cluster that computes, where [dose] executor is "dask"."""

    scheduler: str = Field("", pattern=r"^((tcp|tls)://\S+:\d+)?$", description="tcp://HOST:8786 or tls://")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {"GPU": 1.0}, description="what a job takes of a worker, and what `dicomnode worker` offers"
    )
    ca: Path | None = Field(None, description="PEM, who signs the cluster's certificates; needed for tls://")
    certificate: Path | None = Field(None, description="PEM, ours within the cluster")
    key: Path | None = Field(None, description="PEM, its private key")
    connect_timeout_s: Seconds = Field(10.0, description="for the scheduler to answer")

    @model_validator(mode="after")
    def _tls_whole(self) -> Cluster:
        given = [name for name in ("ca", "certificate", "key") if getattr(self, name) is not None]
        if given and len(given) < 3:
            raise ValueError("ca, certificate and key go together: set all of them, or none")
        if self.scheduler.startswith("tls:") != bool(given) and self.scheduler:
            raise ValueError("a scheduler at tls:// needs ca, certificate and key, and they need tls://")
        return self


class MonteCarlo(Section):
    """[montecarlo]: when engine mc ends, whichever comes first, and what it tells."""

    mean_uncertainty: float = Field(
        0.005, gt=0, description="of the voxels of every ROI, k=1, relative; 0.005 is 0.5 %"
    )
    time_limit_s: Seconds = Field(
        1200.0, allow_inf_nan=False, description="then the result goes out with what it has reached"
    )
    seed: int = Field(1, ge=0, le=2**31 - 1, description="of the random numbers")
    uncertainty_map: bool = Field(False, description="also a Parametric Map of the uncertainty in mGy/h")

    @field_validator("mean_uncertainty")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if value >= 0.5:
            raise ValueError(f"it is a fraction, 0.005 means 0.5 %; {value:g} would be {value:.0%}")
        return value


class Network(Section):
    """[network]: how engine cnn runs; which weights it may use stands in each [[camera]]."""

    precision: Literal["exact", "fast"] = Field(
        "exact", description="fast: fewer digits, and the results say so"
    )
