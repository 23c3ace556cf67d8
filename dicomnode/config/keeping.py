"""Tables of what is kept: for how long, and what is written down about it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dicomnode.config.section import Days, Port, Section


class Retention(Section):
    """[retention]: what is removed of cases that have come to their end, and when."""

    inputs_days: Days = Field(0.0, description="received objects of DONE cases; 0: kept for ever")
    results_days: Days = Field(0.0, description="results of DONE cases; 0: kept for ever")
    quarantine_days: Days = Field(0.0, description="objects that were set aside; 0: kept for ever")
    failed_days: Days = Field(0.0, description="inputs and results of FAILED cases; 0: kept for ever")
    quota_gb: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="of spool, results and quarantine; 0: none"
    )
    minimum_age_h: float = Field(24.0, ge=1, allow_inf_nan=False, description="nothing younger is removed")


class Audit(Section):
    """[audit]: messages after PS3.15 A.5 on who did what with whose data."""

    file: Path | None = Field(None, description="one message a line; unset: no file")
    syslog_host: str = Field("", description="audit record repository; empty: none")
    syslog_port: Port | None = Field(None, description="unset: 514 for udp, 601 for tcp, 6514 for tls")
    syslog_transport: Literal["udp", "tcp", "tls"] = Field("udp", description="RFC 5426, 6587, 5425")
    ca: Path | None = Field(None, description="PEM, who signs the repository's certificate; unset: system")
    certificate: Path | None = Field(None, description="PEM, ours, where the repository asks for one")
    key: Path | None = Field(None, description="PEM, its private key")
    source_id: str = Field("", description="AuditSourceID; empty: AE title @ host name")
    site_id: str = Field("", description="AuditEnterpriseSiteID; empty: none")

    @model_validator(mode="after")
    def _whole(self) -> Audit:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both, or neither")
        return self
