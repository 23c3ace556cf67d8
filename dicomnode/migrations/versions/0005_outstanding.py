"""Which objects a PACS named that have not come: until now their number, as it stood after a pull."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Numbers name no objects: every collecting case is asked about anew.
    op.execute("DELETE FROM wants")
    with op.batch_alter_table("wants") as table:
        table.drop_column("differs")
    op.create_table(
        "outstanding",
        sa.Column("enquiry_id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["enquiry_id"], ["enquiries.id"], name=op.f("fk_outstanding_enquiry_id")),
        sa.PrimaryKeyConstraint("enquiry_id", "sop_instance_uid", name=op.f("pk_outstanding")),
    )


def downgrade() -> None:
    op.drop_table("outstanding")
    with op.batch_alter_table("wants") as table:
        table.add_column(sa.Column("differs", sa.Text(), server_default="", nullable=False))
