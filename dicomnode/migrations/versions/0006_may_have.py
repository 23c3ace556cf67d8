"""Which destination may have an object, whatever it answered later: what a rejection note names."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deliveries") as table:
        table.add_column(sa.Column("may_have", sa.Integer(), server_default="0", nullable=False))
    # Unknown: the last answer, or that to a try before a person had it sent again.
    op.execute(
        "UPDATE deliveries SET may_have = 1 WHERE delivered_at IS NOT NULL"
        " OR (tries > 0 AND (status IS NULL OR tries > refusals))"
    )


def downgrade() -> None:
    with op.batch_alter_table("deliveries") as table:
        table.drop_column("may_have")
