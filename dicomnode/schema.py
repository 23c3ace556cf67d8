"""The ledger's tables. `ledger` and the migrations alone import this module.

A change here needs a migration: a test compares the migrated database with these tables.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

# Named constraints, so that SQLite's batch migrations can find them.
METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _case_id() -> Column[int]:
    return Column("case_id", Integer, ForeignKey("cases.id"), nullable=False, index=True)


CASES = Table(
    "cases",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_instance_uid", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False, index=True),
    _text("reason"),
    _text("remedy"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("last_instance_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", Float, nullable=False, server_default="0"),
    _text("inputs_json"),
    _text("inputs_sha256"),
    _text("conflict"),
    Column("notified_at", Float),
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("accession_number"),
    _text("nuclide"),
    Column("administered_activity_bq", Float),
    Column("administered_at", Float),
)

INSTANCES = Table(
    "instances",
    METADATA,
    Column("sop_instance_uid", String(64), primary_key=True),
    _case_id(),
    Column("sop_class_uid", String(64), nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    _text("modality"),
    Column("transfer_syntax_uid", String(64), nullable=False),
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("accession_number"),
    Column("path", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    _text("peer"),
    Column("received_at", Float, nullable=False),
    Column("discarded", Integer, nullable=False, server_default="0"),
)

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("id", Integer, primary_key=True),
    _text("sop_instance_uid"),
    Column("study_instance_uid", Text, nullable=False, server_default="", index=True),
    _text("peer"),
    Column("defect", String(64), nullable=False),
    _text("reason"),
    Column("status", Integer, nullable=False),
    _text("path"),
    Column("received_at", Float, nullable=False),
)

TRANSITIONS = Table(
    "transitions",
    METADATA,
    Column("id", Integer, primary_key=True),
    _case_id(),
    Column("at", Float, nullable=False),
    Column("from_state", String(16)),
    Column("to_state", String(16), nullable=False),
    Column("event", String(24), nullable=False),
    _text("reason"),
    _text("remedy"),
)

ATTEMPTS = Table(
    "attempts",
    METADATA,
    Column("id", Integer, primary_key=True),
    _case_id(),
    Column("stage", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", String(16), nullable=False),
    _text("detail"),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", Integer, primary_key=True),
    _case_id(),
    Column("created_at", Float, nullable=False),
    Column("predecessor_id", Integer, ForeignKey("runs.id")),
    Column("withdrawn", Integer, nullable=False, server_default="0"),
    Column("delivered_at", Float),
    Column("inputs_sha256", String(64), nullable=False),
    _text("software_version"),
    _text("config_sha256"),
    _text("calibration_sha256"),
    _text("kernel_sha256"),
    _text("weights_sha256"),
    _text("details_json"),
)

RESULTS = Table(
    "results",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run_id", Integer, ForeignKey("runs.id"), nullable=False, index=True),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("kind", String(24), nullable=False),
    _text("engine"),
    Column("path", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
)

DELIVERIES = Table(
    "deliveries",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("result_id", Integer, ForeignKey("results.id"), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("delivered_at", Float),
    Column("status", Integer),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("refusals", Integer, nullable=False, server_default="0"),
    _text("detail"),
    Index("uq_deliveries_result_peer", "result_id", "peer", unique=True),
)
