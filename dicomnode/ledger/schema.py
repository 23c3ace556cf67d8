"""The ledger's tables. `ledger` and the migrations alone import this module.

A change here needs a migration: a test compares the migrated database with these tables.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

from dicomnode.attributes import INDEXED, SEQUENCES, UNIQUE_KEY, Attribute, ItemSequence, Kind, Level

# Named constraints, so that SQLite's batch migrations can find them.
METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# An object may be larger than 2 GiB; SQLite's integers know no limit.
_BYTES = Integer().with_variant(BigInteger(), "postgresql")


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
    Column("inputs_removed_at", Float),
    _text("rejection_reason"),
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
    Column("size_bytes", _BYTES, nullable=False),
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
    Column("removed_at", Float),
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
    Column("size_bytes", _BYTES, nullable=False),
    # What the index tells of it; NULL until it has been read.
    Column("attributes_json", Text),
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
    Column("committed_at", Float),
    Column("commit_failure", Integer),
    Column("commit_failures", Integer, nullable=False, server_default="0"),
    # Whether the peer ever took it, or left it untold; sending again forgets nothing of that.
    Column("may_have", Integer, nullable=False, server_default="0"),
    Index("uq_deliveries_result_peer", "result_id", "peer", unique=True),
)

# What collecting cases lack, as PACS are asked for it.
WANTS = Table(
    "wants",
    METADATA,
    Column("case_id", Integer, ForeignKey("cases.id"), primary_key=True),
    Column("as_of", Float, nullable=False),
    _text("lacking"),
    _text("kinds"),
    Column("opened_at", Float, nullable=False),
    Column("next_attempt_at", Float, nullable=False, server_default="0"),
    Column("requests", Integer, nullable=False, server_default="0"),
    Column("settled", Integer, nullable=False, server_default="0"),
)

ENQUIRIES = Table(
    "enquiries",
    METADATA,
    Column("id", Integer, primary_key=True),
    _case_id(),
    Column("peer", String(64), nullable=False),
    Column("at", Float, nullable=False),
    _text("lacking"),
    Column("missing", Integer, nullable=False, server_default="0"),
    Column("came", Integer, nullable=False, server_default="0"),
    Column("outcome", String(16), nullable=False),
    _text("detail"),
)

# Objects that a PACS named and the node lacked then, written down before they are pulled. Whether they have
# come since is seen in `instances`.
OUTSTANDING = Table(
    "outstanding",
    METADATA,
    Column("enquiry_id", Integer, ForeignKey("enquiries.id"), primary_key=True),
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("series_instance_uid", String(64), nullable=False),
)

# Storage commitment that the node asks for.
COMMITMENTS = Table(
    "commitments",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", String(64), nullable=False, unique=True),
    Column("run_id", Integer, ForeignKey("runs.id"), nullable=False, index=True),
    Column("peer", String(64), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("ask_again_at", Float, nullable=False, server_default="0"),
    Column("reported_at", Float),
    Column("outcome", String(16), nullable=False),
    _text("detail"),
)

COMMITMENT_ITEMS = Table(
    "commitment_items",
    METADATA,
    Column("commitment_id", Integer, ForeignKey("commitments.id"), primary_key=True),
    Column("delivery_id", Integer, primary_key=True),
)

# Storage commitment that the node is asked for.
PROMISES = Table(
    "promises",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("peer", String(16), nullable=False),
    Column("transaction_uid", String(64), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("objects_json", Text, nullable=False),
    Column("next_attempt_at", Float, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("ended_at", Float),
    Column("outcome", String(16), nullable=False),
    _text("detail"),
    Index("uq_promises_peer_transaction", "peer", "transaction_uid", unique=True),
    Index("ix_promises_outcome", "outcome"),
)

# What retention took of a case: which series must be sent again before it can be computed again.
REMOVED_SERIES = Table(
    "removed_series",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("case_id", Integer, ForeignKey("cases.id"), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    _text("modality"),
    Column("objects", Integer, nullable=False),
    Column("discarded", Integer, nullable=False, server_default="0"),
    Column("removed_at", Float, nullable=False),
    Index("uq_removed_series_case_series", "case_id", "series_instance_uid", unique=True),
)

# Files that the ledger has given up and that are about to be removed: a crash leaves the row.
REMOVALS = Table(
    "removals",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("path", Text, nullable=False),
    Column("marked_at", Float, nullable=False),
)


# What Query/Retrieve answers from: the entities of its information models, one row each, of everything
# that the node holds. A patient is what the newest of its studies says.


def _indexed(attribute: Attribute) -> list[Column[str] | Column[int]]:
    if attribute.kind is Kind.NUMBER:
        return [Column(attribute.column, Integer)]
    if attribute in UNIQUE_KEY.values() and attribute.level is not Level.PATIENT:
        return [Column(attribute.column, String(64), nullable=False)]
    return [_text(name) for name in attribute.columns]


def _columns(*levels: Level) -> list[Column[str] | Column[int]]:
    return [column for a in INDEXED if a.level in levels for column in _indexed(a)]


HELD_STUDIES = Table(
    "held_studies",
    METADATA,
    Column("id", Integer, primary_key=True),
    *_columns(Level.PATIENT, Level.STUDY),
    Index("uq_held_studies_uid", "study_instance_uid", unique=True),
    Index("ix_held_studies_patient", "patient_id", "issuer_of_patient_id", "id"),
    Index("ix_held_studies_name", "patient_name_alphabetic"),
    Index("ix_held_studies_date", "study_date"),
    Index("ix_held_studies_accession", "accession_number"),
)

HELD_SERIES = Table(
    "held_series",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("held_studies.id"), nullable=False),
    Column("is_result", Integer, nullable=False, server_default="0"),
    *_columns(Level.SERIES),
    Column("edition", Integer, nullable=False, server_default="0"),
    Index("uq_held_series_study_uid", "study_id", "series_instance_uid", unique=True),
    Index("ix_held_series_uid", "series_instance_uid"),
)

HELD_INSTANCES = Table(
    "held_instances",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("series_id", Integer, ForeignKey("held_series.id"), nullable=False, index=True),
    Column("is_result", Integer, nullable=False, server_default="0"),
    *_columns(Level.IMAGE),
    Index("uq_held_instances_uid", "sop_instance_uid", unique=True),
)

# How many instances of which SOP class a series holds: counts without counting.
HELD_CLASSES = Table(
    "held_classes",
    METADATA,
    Column("series_id", Integer, ForeignKey("held_series.id"), primary_key=True),
    Column("sop_class_uid", Text, primary_key=True),
    Column("instances", Integer, nullable=False),
)


def _items(sequence: ItemSequence, *found_by: str) -> Table:
    """The items of a sequence: each a row, with whose it is, in their order."""
    owners = "held_series" if sequence.owner == "series_id" else "held_studies"
    return Table(
        sequence.table,
        METADATA,
        Column("id", Integer, primary_key=True),
        Column(sequence.owner, Integer, ForeignKey(f"{owners}.id"), nullable=False, index=True),
        *(column for attribute in sequence.attributes for column in _indexed(attribute)),
        *(Index(f"ix_{sequence.table}_{name}", name) for name in found_by),
    )


_OTHER_IDS, _REQUESTS = SEQUENCES
HELD_ITEMS = {
    _OTHER_IDS: _items(_OTHER_IDS, "patient_id"),
    _REQUESTS: _items(_REQUESTS, "scheduled_procedure_step_id", "requested_procedure_id", "accession_number"),
}
