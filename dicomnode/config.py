"""config.toml → frozen, validated models.

Read once. Every setting has its unit in its name or description, a default where one is safe, and
a one-line reason; the shipped config.toml repeats them and a test keeps the two in step. A wrong
file is reported whole: every problem, each with its key and what to do.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dicomnode.errors import ConfigurationError
from pipeline.activity import Camera
from pipeline.density import SCHNEIDER_2000, checked_curve
from pipeline.errors import InputRejected

AETitle = Annotated[
    str,
    Field(min_length=1, max_length=16, pattern=r"^[^\\\x00-\x1f\x7f]*[^\\\x00-\x20\x7f][^\\\x00-\x1f\x7f]*$"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Millimetres = Annotated[float, Field(gt=0, le=20)]
Right = Literal["echo", "store"]
Engine = Literal["dvk", "mc", "cnn"]

# Reading, resampling, compiling and encoding need their part of an attempt's time.
LARGEST_SHARE_OF_TIMEOUT = 0.75


class Section(BaseModel):
    """A table of config.toml: unknown keys fail, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(Section):
    """[node]: who we are and where our data lies."""

    ae_title: AETitle = Field("DICOMNODE", description="our AE title; peers must call it exactly")
    bind: str = Field("0.0.0.0", description="address to listen on")
    port: Port = Field(11112, description="TCP port to listen on")
    data_dir: Path = Field(Path("/var/lib/dicomnode"), description="spool, results, ledger, quarantine")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in data_dir")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG may log patient data"
    )

    @property
    def ledger_url(self) -> str:
        """The database's URL with its default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir / 'ledger.sqlite3'}"

    @property
    def has_ledger(self) -> bool:
        """Whether the node has made its ledger; of another database than ours that is not known here."""
        return bool(self.database_url) or (self.data_dir / "ledger.sqlite3").exists()


class Peer(Section):
    """[[peers]]: a system that may call us, or that we send to."""

    name: str = Field(min_length=1, description="how messages and [deliver] name it")
    ae_title: AETitle
    host: str = Field("", description="host name or address; needed to send to it")
    port: Port | None = Field(None, description="its port; needed to send to it")
    may: tuple[Right, ...] = Field(("echo", "store"), description="what it may ask of us")
    check_host: bool = Field(False, description="also require that it calls from `host`")


class Receive(Section):
    """[receive]: the listening side."""

    max_pdu: int = Field(131072, ge=4096, le=1048576, description="bytes; larger is faster")
    max_associations: int = Field(50, ge=1, le=1000, description="at the same time, all peers together")
    min_free_gb: float = Field(5.0, ge=0, description="below it objects are refused with 0xA700")
    acse_timeout_s: Seconds = Field(30.0, description="for an association to be negotiated or released")
    dimse_timeout_s: Seconds = Field(60.0, description="for a message that has begun")
    network_timeout_s: Seconds = Field(120.0, description="of silence, then the association is aborted")


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
    plausibility_limit: float = Field(
        1.10, gt=0, description="activity found / administered above which a case is HELD"
    )
    max_outside_ct: float = Field(
        0.5, gt=0, le=1, description="part of the SPECT's activity outside the CT above which a case is HELD"
    )
    max_attempts: int = Field(3, ge=1, description="computing attempts before FAILED")
    timeout_s: Seconds = Field(1800.0, description="an attempt that takes longer is killed")
    memory_limit_gb: float | None = Field(None, gt=0, description="address space of an attempt; unset: none")

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        if len(set(engines)) < len(engines):
            raise ValueError("an engine is named twice")
        return engines


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


class Encode(Section):
    """[encode]: how the results are written."""

    bits: Literal[16, 32] = Field(32, description="stored bits of RTDOSE; 16 for old viewers")
    dose_units: Literal["GY", "RELATIVE"] = Field("GY", description="RELATIVE where GY is not allowed")
    sr: Literal["comprehensive_3d", "enhanced"] = Field("comprehensive_3d", description="SOP class of the SR")
    parametric_map: bool = Field(False, description="also a Parametric Map in mGy/h")
    institution: str = Field("", description="InstitutionName of our equipment items")
    station: str = Field("DICOMNODE", description="StationName of our equipment items")
    uid_root: str = Field(
        "", pattern=r"^(\d+(\.\d+)*\.)?$", description="UID root ending in a dot; empty: 2.25."
    )


class Deliver(Section):
    """[deliver]: sending results."""

    to: tuple[str, ...] = Field((), description="names of [[peers]] that get every result")
    first_retry_s: Seconds = Field(30.0, description="after the first failure; doubles each time")
    max_retry_s: Seconds = Field(3600.0, description="the longest pause between attempts")
    give_up_after_h: float = Field(0.0, ge=0, description="then FAILED; 0: a dead PACS is tried for ever")
    max_refusals: int = Field(5, ge=1, description="refusals of one object by a living PACS before FAILED")
    timeout_s: Seconds = Field(60.0, description="for each answer of the peer")


class Notify(Section):
    """[notify]: who hears that a case is HELD or FAILED."""

    command: tuple[str, ...] = Field((), description="program and arguments; the message comes on stdin")
    email_to: tuple[str, ...] = Field((), description="addresses; needs smtp_host")
    email_from: str = Field("dicomnode@localhost", description="sender address")
    smtp_host: str = Field("", description="mail relay")
    smtp_port: Port = Field(25, description="its port")
    remind_every_h: float = Field(24.0, gt=0, description="as long as nobody has acted")

    @model_validator(mode="after")
    def _mail_needs_relay(self) -> Notify:
        if self.email_to and not self.smtp_host:
            raise ValueError("email_to is set but smtp_host is empty: name the mail relay")
        return self


class Config(Section):
    """The whole of config.toml."""

    node: Node = Node()
    peers: tuple[Peer, ...] = ()
    receive: Receive = Receive()
    assemble: Assemble = Assemble()
    camera: tuple[Camera, ...] = ()
    density: Density = Density()
    dose: Dose = Dose()
    montecarlo: MonteCarlo = MonteCarlo()
    network: Network = Network()
    encode: Encode = Encode()
    deliver: Deliver = Deliver()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _peers_agree(self) -> Config:
        for kind, values in (
            ("name", [p.name for p in self.peers]),
            ("ae_title", [p.ae_title for p in self.peers]),
        ):
            for value in {v for v in values if values.count(v) > 1}:
                raise ValueError(f"two [[peers]] have the {kind} {value!r}: give each its own")
        known = {p.name: p for p in self.peers}
        for name in self.deliver.to:
            if name not in known:
                raise ValueError(f"[deliver] to names {name!r}, {_nearest(name, list(known), 'peer')}")
            if not known[name].host or known[name].port is None:
                raise ValueError(f"[deliver] to names {name!r}, whose [[peers]] entry lacks host or port")
        return self

    @model_validator(mode="after")
    def _montecarlo_ends_in_time(self) -> Config:
        timeout_s, limit_s = self.dose.timeout_s, self.montecarlo.time_limit_s
        if "mc" in self.dose.engines and limit_s > LARGEST_SHARE_OF_TIMEOUT * timeout_s:
            raise ValueError(
                f"[montecarlo] time_limit_s = {limit_s:g} is too close to [dose] timeout_s = {timeout_s:g}, "
                "at which an attempt is killed: "
                f"set time_limit_s to {LARGEST_SHARE_OF_TIMEOUT * timeout_s:g} at most, "
                f"or timeout_s to {math.ceil(limit_s / LARGEST_SHARE_OF_TIMEOUT)} at least"
            )
        return self

    def destinations(self) -> tuple[Peer, ...]:
        """The peers that get every result, in the order of [deliver] to."""
        return tuple(next(p for p in self.peers if p.name == name) for name in self.deliver.to)

    @property
    def sha256(self) -> str:
        """Identifies the settings that a result came from."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load(path: Path) -> Config:
    """Read and validate. Raises ConfigurationError with every problem on a line of its own."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", "Name the file with --config or DICOMNODE_CONFIG"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}", "Save it as UTF-8") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    return parse(data, str(path))


def parse(data: dict[str, Any], source: str = "config.toml") -> Config:
    """Validate a table that was read from `source`."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {problem}" for problem in _problems(error, data))
        raise ConfigurationError(f"{source} has {error.error_count()} problem(s):\n{problems}") from None


def with_engines(config: Config, engines: list[str]) -> Config:
    """The same settings with other engines. raises: ConfigurationError for one that does not exist."""
    changed = config.model_dump()
    changed["dose"]["engines"] = tuple(engines)
    return parse(changed, "--engine")


def _problems(error: ValidationError, data: dict[str, Any]) -> Iterator[str]:
    for item in error.errors():
        where, key = _place(item["loc"], data)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield _unknown(where, key, item["loc"])
        elif item["type"] == "missing":
            yield f"{where} lacks the setting {key!r}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "value_error" else f", not {item['input']!r}"
            yield f"{where} {key}: {message[:1].lower() + message[1:]}{given}" if where else f"{message}"


def _place(loc: tuple[int | str, ...], data: dict[str, Any]) -> tuple[str, str]:
    """('[receive]', 'port') or ('[[peers]] "PACS"', 'port') for a location in the file."""
    if not loc:
        return "", ""
    if len(loc) == 1:
        value = data.get(str(loc[0]))
        return ("config.toml", str(loc[0])) if not isinstance(value, dict) else (f"[{loc[0]}]", "")
    table = str(loc[0])
    rest = list(loc[1:])
    if isinstance(rest[0], int):
        entry = data[table][rest.pop(0)] if isinstance(data.get(table), list) else {}
        name = entry.get("name", "") if isinstance(entry, dict) else ""
        return f"[[{table}]]" + (f' "{name}"' if name else ""), ".".join(map(str, rest))
    return f"[{table}]", ".".join(map(str, rest))


def _unknown(where: str, key: str, loc: tuple[int | str, ...]) -> str:
    """An unknown key, with the nearest one that its table has, or another table."""
    if len(loc) == 1:
        return f"there is no table [{loc[0]}]{_nearest_of(str(loc[0]), list(Config.model_fields), '[{}]')}"
    key = key.rpartition(".")[2]
    known = _known_keys(loc)
    if not difflib.get_close_matches(key, known, n=1):
        for table, field in Config.model_fields.items():
            elsewhere = difflib.get_close_matches(key, _fields(_element(field.annotation)), n=1, cutoff=0.7)
            if elsewhere:
                return f"{where} has no setting {key!r}. Did you mean {elsewhere[0]!r} of [{table}]?"
    return f"{where} has no setting {key!r}{_nearest_of(key, known, '{!r}')}"


def _nearest_of(key: str, known: list[str], shown: str) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f". Did you mean {shown.format(nearest[0])}?" if nearest else f". There are: {', '.join(known)}"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The settings of the table that holds the unknown key at `loc`."""
    model: Any = Config
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        fields = _fields(model)
        if part in fields:
            model = _element(fields[str(part)])
    return list(_fields(model))


def _fields(model: Any) -> dict[str, Any]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return dict(getattr(model, "__annotations__", {}))


def _element(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, or the annotation itself."""
    if isinstance(annotation, str):
        # Dataclasses of `pipeline` keep their annotations as text.
        from pipeline import activity

        return next((v for k, v in vars(activity).items() if k in annotation and isinstance(v, type)), object)
    arguments = [a for a in get_args(annotation) if a is not Ellipsis]
    return arguments[0] if arguments else annotation


def _nearest(name: str, known: list[str], what: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return f"which is no {what}. Did you mean {nearest[0]!r}?"
    return f"which is no {what}. Known: {', '.join(known) or 'none'}"
