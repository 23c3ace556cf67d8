"""Items of sequences that Query/Retrieve answers from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Of every series that is there an object is read again, in the background.
    with op.batch_alter_table("held_series") as table:
        table.add_column(sa.Column("edition", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "held_other_patient_ids",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("type_of_patient_id", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["held_studies.id"], name=op.f("fk_held_other_patient_ids_study_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_other_patient_ids")),
    )
    op.create_index(
        op.f("ix_held_other_patient_ids_study_id"), "held_other_patient_ids", ["study_id"], unique=False
    )
    op.create_index(
        "ix_held_other_patient_ids_patient_id", "held_other_patient_ids", ["patient_id"], unique=False
    )
    op.create_table(
        "held_requests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("scheduled_procedure_step_id", sa.Text(), server_default="", nullable=False),
        sa.Column("requested_procedure_id", sa.Text(), server_default="", nullable=False),
        sa.Column("accession_number", sa.Text(), server_default="", nullable=False),
        sa.Column("scheduled_procedure_step_description", sa.Text(), server_default="", nullable=False),
        sa.Column("requested_procedure_description", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["held_series.id"], name=op.f("fk_held_requests_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_requests")),
    )
    op.create_index(op.f("ix_held_requests_series_id"), "held_requests", ["series_id"], unique=False)
    for name in ("scheduled_procedure_step_id", "requested_procedure_id", "accession_number"):
        op.create_index(f"ix_held_requests_{name}", "held_requests", [name], unique=False)


def downgrade() -> None:
    for name in ("accession_number", "requested_procedure_id", "scheduled_procedure_step_id"):
        op.drop_index(f"ix_held_requests_{name}", table_name="held_requests")
    op.drop_index(op.f("ix_held_requests_series_id"), table_name="held_requests")
    op.drop_table("held_requests")
    op.drop_index("ix_held_other_patient_ids_patient_id", table_name="held_other_patient_ids")
    op.drop_index(op.f("ix_held_other_patient_ids_study_id"), table_name="held_other_patient_ids")
    op.drop_table("held_other_patient_ids")
    with op.batch_alter_table("held_series") as table:
        table.drop_column("edition")
