"""The tables of version 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    at = sa.DateTime(timezone=True)
    op.create_table(
        "tasks",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("active_seq", sa.Integer),
        sa.Column("since_seq", sa.Integer, nullable=False),
        sa.Column("created_at", at, nullable=False),
        sa.Column("updated_at", at, nullable=False),
        sa.Column("deleted_at", at),
    )
    op.create_table(
        "versions",
        sa.Column("task", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("created_at", at, nullable=False),
        sa.Column("deleted_at", at),
    )
    op.create_table(
        "activations",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("task", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("parent", sa.Integer),
        sa.Column("at", at, nullable=False),
        sa.Column("by", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("activations_of_a_task", "activations", ["task", "seq"])
