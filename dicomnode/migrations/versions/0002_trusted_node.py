"""What a node needs that a hospital's PACS team lets on its network."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Objects of more than 2 GiB; SQLite's integers know no limit.
    if op.get_context().dialect.name == "postgresql":
        for name in ("instances", "results"):
            op.alter_column(name, "size_bytes", type_=sa.BigInteger())
    # Retention: what was removed, and what is about to be.
    with op.batch_alter_table("cases") as table:
        table.add_column(sa.Column("inputs_removed_at", sa.Float(), nullable=True))
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("removed_at", sa.Float(), nullable=True))
    op.create_table(
        "removed_series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.Text(), server_default="", nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("discarded", sa.Integer(), server_default="0", nullable=False),
        sa.Column("removed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_removed_series_case_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removed_series")),
    )
    op.create_index(
        "uq_removed_series_case_series", "removed_series", ["case_id", "series_instance_uid"], unique=True
    )
    op.create_table(
        "removals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("marked_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removals")),
    )
    # Query/retrieve as SCU: what cases lack, and what PACS were asked for it.
    op.create_table(
        "wants",
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("as_of", sa.Float(), nullable=False),
        sa.Column("lacking", sa.Text(), server_default="", nullable=False),
        sa.Column("kinds", sa.Text(), server_default="", nullable=False),
        sa.Column("differs", sa.Text(), server_default="", nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("next_attempt_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("requests", sa.Integer(), server_default="0", nullable=False),
        sa.Column("settled", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_wants_case_id")),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_wants")),
    )
    op.create_table(
        "enquiries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.Integer(), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("lacking", sa.Text(), server_default="", nullable=False),
        sa.Column("missing", sa.Integer(), server_default="0", nullable=False),
        sa.Column("came", sa.Integer(), server_default="0", nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_enquiries_case_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enquiries")),
    )
    op.create_index(op.f("ix_enquiries_case_id"), "enquiries", ["case_id"], unique=False)
    # Storage commitment: what we ask of others, and what others ask of us.
    with op.batch_alter_table("deliveries") as table:
        table.add_column(sa.Column("committed_at", sa.Float(), nullable=True))
        table.add_column(sa.Column("commit_failure", sa.Integer(), nullable=True))
        table.add_column(sa.Column("commit_failures", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
        sa.Column("ask_again_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("reported_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_commitments_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitments")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_commitments_transaction_uid")),
    )
    op.create_index(op.f("ix_commitments_run_id"), "commitments", ["run_id"], unique=False)
    op.create_table(
        "commitment_items",
        sa.Column("commitment_id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitments.id"], name=op.f("fk_commitment_items_commitment_id")
        ),
        sa.PrimaryKeyConstraint("commitment_id", "delivery_id", name=op.f("pk_commitment_items")),
    )
    op.create_table(
        "promises",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("peer", sa.String(length=16), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
        sa.Column("objects_json", sa.Text(), nullable=False),
        sa.Column("next_attempt_at", sa.Float(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promises")),
    )
    op.create_index("uq_promises_peer_transaction", "promises", ["peer", "transaction_uid"], unique=True)
    op.create_index("ix_promises_outcome", "promises", ["outcome"], unique=False)
    # Query/Retrieve: the index of what the node holds.
    with op.batch_alter_table("results") as table:
        table.add_column(sa.Column("attributes_json", sa.Text(), nullable=True))
    op.create_table(
        "held_studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_name", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_name_alphabetic", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_name_ideographic", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_name_phonetic", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_birth_date", sa.Text(), server_default="", nullable=False),
        sa.Column("patient_sex", sa.Text(), server_default="", nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.Text(), server_default="", nullable=False),
        sa.Column("study_time", sa.Text(), server_default="", nullable=False),
        sa.Column("study_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("accession_number", sa.Text(), server_default="", nullable=False),
        sa.Column("study_id", sa.Text(), server_default="", nullable=False),
        sa.Column("study_description", sa.Text(), server_default="", nullable=False),
        sa.Column("referring_physician_name", sa.Text(), server_default="", nullable=False),
        sa.Column("referring_physician_name_alphabetic", sa.Text(), server_default="", nullable=False),
        sa.Column("referring_physician_name_ideographic", sa.Text(), server_default="", nullable=False),
        sa.Column("referring_physician_name_phonetic", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_studies")),
    )
    op.create_index("ix_held_studies_accession", "held_studies", ["accession_number"], unique=False)
    op.create_index("ix_held_studies_date", "held_studies", ["study_date"], unique=False)
    op.create_index("ix_held_studies_name", "held_studies", ["patient_name_alphabetic"], unique=False)
    op.create_index(
        "ix_held_studies_patient", "held_studies", ["patient_id", "issuer_of_patient_id", "id"], unique=False
    )
    op.create_index("uq_held_studies_uid", "held_studies", ["study_instance_uid"], unique=True)
    op.create_table(
        "held_series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("is_result", sa.Integer(), server_default="0", nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.Text(), server_default="", nullable=False),
        sa.Column("series_number", sa.Integer(), nullable=True),
        sa.Column("series_description", sa.Text(), server_default="", nullable=False),
        sa.Column("series_date", sa.Text(), server_default="", nullable=False),
        sa.Column("series_time", sa.Text(), server_default="", nullable=False),
        sa.Column("series_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("performed_procedure_step_start_date", sa.Text(), server_default="", nullable=False),
        sa.Column("performed_procedure_step_start_time", sa.Text(), server_default="", nullable=False),
        sa.Column("performed_procedure_step_start_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("body_part_examined", sa.Text(), server_default="", nullable=False),
        sa.Column("protocol_name", sa.Text(), server_default="", nullable=False),
        sa.Column("frame_of_reference_uid", sa.Text(), server_default="", nullable=False),
        sa.Column("manufacturer", sa.Text(), server_default="", nullable=False),
        sa.Column("manufacturer_model_name", sa.Text(), server_default="", nullable=False),
        sa.Column("institution_name", sa.Text(), server_default="", nullable=False),
        sa.Column("station_name", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["held_studies.id"], name=op.f("fk_held_series_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_series")),
    )
    op.create_index("ix_held_series_uid", "held_series", ["series_instance_uid"], unique=False)
    op.create_index(
        "uq_held_series_study_uid", "held_series", ["study_id", "series_instance_uid"], unique=True
    )
    op.create_table(
        "held_instances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("is_result", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), server_default="", nullable=False),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("image_type", sa.Text(), server_default="", nullable=False),
        sa.Column("number_of_frames", sa.Integer(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("columns", sa.Integer(), nullable=True),
        sa.Column("bits_allocated", sa.Integer(), nullable=True),
        sa.Column("content_date", sa.Text(), server_default="", nullable=False),
        sa.Column("content_time", sa.Text(), server_default="", nullable=False),
        sa.Column("content_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("acquisition_date", sa.Text(), server_default="", nullable=False),
        sa.Column("acquisition_time", sa.Text(), server_default="", nullable=False),
        sa.Column("acquisition_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("instance_creation_date", sa.Text(), server_default="", nullable=False),
        sa.Column("instance_creation_time", sa.Text(), server_default="", nullable=False),
        sa.Column("instance_creation_time_at", sa.Text(), server_default="", nullable=False),
        sa.Column("dose_units", sa.Text(), server_default="", nullable=False),
        sa.Column("dose_type", sa.Text(), server_default="", nullable=False),
        sa.Column("dose_summation_type", sa.Text(), server_default="", nullable=False),
        sa.Column("dose_comment", sa.Text(), server_default="", nullable=False),
        sa.Column("content_label", sa.Text(), server_default="", nullable=False),
        sa.Column("content_description", sa.Text(), server_default="", nullable=False),
        sa.Column("completion_flag", sa.Text(), server_default="", nullable=False),
        sa.Column("verification_flag", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["held_series.id"], name=op.f("fk_held_instances_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_instances")),
    )
    op.create_index(op.f("ix_held_instances_series_id"), "held_instances", ["series_id"], unique=False)
    op.create_index("uq_held_instances_uid", "held_instances", ["sop_instance_uid"], unique=True)
    op.create_table(
        "held_classes",
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["held_series.id"], name=op.f("fk_held_classes_series_id")),
        sa.PrimaryKeyConstraint("series_id", "sop_class_uid", name=op.f("pk_held_classes")),
    )


def downgrade() -> None:
    op.drop_table("held_classes")
    op.drop_index(op.f("ix_held_instances_series_id"), table_name="held_instances")
    op.drop_index("uq_held_instances_uid", table_name="held_instances")
    op.drop_table("held_instances")
    op.drop_index("ix_held_series_uid", table_name="held_series")
    op.drop_index("uq_held_series_study_uid", table_name="held_series")
    op.drop_table("held_series")
    op.drop_index("ix_held_studies_accession", table_name="held_studies")
    op.drop_index("ix_held_studies_date", table_name="held_studies")
    op.drop_index("ix_held_studies_name", table_name="held_studies")
    op.drop_index("ix_held_studies_patient", table_name="held_studies")
    op.drop_index("uq_held_studies_uid", table_name="held_studies")
    op.drop_table("held_studies")
    with op.batch_alter_table("results") as table:
        table.drop_column("attributes_json")
    if op.get_context().dialect.name == "postgresql":
        for name in ("results", "instances"):
            op.alter_column(name, "size_bytes", type_=sa.Integer())
    op.drop_index(op.f("ix_enquiries_case_id"), table_name="enquiries")
    op.drop_table("enquiries")
    op.drop_table("wants")
    op.drop_index("ix_promises_outcome", table_name="promises")
    op.drop_index("uq_promises_peer_transaction", table_name="promises")
    op.drop_table("promises")
    op.drop_table("commitment_items")
    op.drop_index(op.f("ix_commitments_run_id"), table_name="commitments")
    op.drop_table("commitments")
    with op.batch_alter_table("deliveries") as table:
        table.drop_column("commit_failures")
        table.drop_column("commit_failure")
        table.drop_column("committed_at")
    op.drop_table("removals")
    op.drop_index("uq_removed_series_case_series", table_name="removed_series")
    op.drop_table("removed_series")
    with op.batch_alter_table("runs") as table:
        table.drop_column("removed_at")
    with op.batch_alter_table("cases") as table:
        table.drop_column("inputs_removed_at")
