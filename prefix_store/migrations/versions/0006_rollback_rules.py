"""Rules by which a traffic split ends by itself, and the reasons of rollbacks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("activations", sa.Column("rollback_if", sa.Text))
    op.add_column("activations", sa.Column("reason", sa.Text))
