"""Traffic splits, pinned versions, and artifact sizes."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "traffic",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("weight", sa.Integer, nullable=False),
    )
    op.add_column(
        "versions", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.add_column("versions", sa.Column("num_bytes", sa.BigInteger))
    _fill_in_sizes(op.get_bind())


def _fill_in_sizes(connection: sa.Connection) -> None:
    names = ("task", "number", "manifest", "num_bytes")
    versions = sa.table("versions", *(sa.column(name) for name in names))
    for row in connection.execute(sa.select(versions)).all():
        found = (versions.c.task == row.task) & (versions.c.number == row.number)
        size = json.loads(row.manifest)["num_bytes"]
        connection.execute(sa.update(versions).where(found).values(num_bytes=size))
