"""Tables of the sending side: how results are written, who gets them, who is asked and told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dicomnode.config.section import Port, Seconds, Section, pauses_in_order

# Why results that others replace are rejected: 113001 or 113037 DCM (PS3.16 CID 7010).
RejectionReason = Literal["quality", "patient_safety"]


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
    give_up_after_h: float = Field(
        0.0, ge=0, description="of each round of sending, then FAILED; 0: a dead PACS is tried for ever"
    )
    max_refusals: int = Field(5, ge=1, description="refusals of one object by a living PACS before FAILED")
    timeout_s: Seconds = Field(60.0, description="for each answer of the peer")
    rejection_reason: RejectionReason = Field(
        "quality", description="title of the rejection note that replaced results get: 113001 or 113037 DCM"
    )

    @model_validator(mode="after")
    def _pauses(self) -> Deliver:
        pauses_in_order(self, "first_retry_s", "max_retry_s")
        return self


class Commitment(Section):
    """[commitment]: storage commitment, asked of [[peers]] with `commitment = true` and given to peers."""

    stay_s: Seconds = Field(5.0, description="an association stays open for the report so long")
    ask_again_h: float = Field(6.0, gt=0, description="no report for so long: asked again; doubles each time")
    max_ask_again_h: float = Field(48.0, gt=0, description="the longest wait for a report")
    give_up_after_h: float = Field(168.0, ge=0, description="after delivery, then FAILED; 0: never")
    max_refusals: int = Field(
        5, ge=1, description="refused requests, or failed commitments to one object, before FAILED"
    )
    report_for_h: float = Field(72.0, gt=0, description="a peer that asked us and is away is told so long")

    @model_validator(mode="after")
    def _pauses(self) -> Commitment:
        pauses_in_order(self, "ask_again_h", "max_ask_again_h")
        return self


class Fetch(Section):
    """[fetch]: PACS that are asked for what a study lacks."""

    ask: tuple[str, ...] = Field((), description="names of [[peers]], asked in this order; empty: nobody")
    by: Literal["move", "get"] = Field("move", description="C-MOVE to ourselves, or C-GET")
    check_counts: bool = Field(True, description="before a study is computed, compare its series' counts")
    check_within_s: Seconds = Field(
        120.0, description="PACS that do not answer delay a complete study so long"
    )
    first_retry_s: Seconds = Field(60.0, description="until a study is asked about again; doubles each time")
    max_retry_s: Seconds = Field(1800.0, description="the longest pause")
    max_requests: int = Field(8, ge=1, description="rounds about one study while it collects")
    max_objects: int = Field(5000, ge=1, description="pulled of one study in one round")
    timeout_s: Seconds = Field(600.0, description="for each answer, that to a whole C-MOVE included")

    @model_validator(mode="after")
    def _pauses(self) -> Fetch:
        pauses_in_order(self, "first_retry_s", "max_retry_s")
        return self


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
