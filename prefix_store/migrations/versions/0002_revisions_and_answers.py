"""Task revisions, and stored answers to idempotent requests."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("revision", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "answers",
        sa.Column("principal", sa.String(255), primary_key=True),
        sa.Column("route", sa.String(64), primary_key=True),
        sa.Column("task", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("request_digest", sa.String(71), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
