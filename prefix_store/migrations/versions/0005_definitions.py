"""Each version's definition: how it is asked."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("versions", sa.Column("definition", sa.Text))
    _fill_in_definitions(op.get_bind())


def _fill_in_definitions(connection: sa.Connection) -> None:
    """Give every version the definition by which it was asked before: its task's."""
    names = ("task", "number", "manifest", "definition")
    versions = sa.table("versions", *(sa.column(name) for name in names))
    tasks = sa.table("tasks", sa.column("name"), sa.column("profile"))
    query = sa.select(versions, tasks.c.profile).join(tasks, tasks.c.name == versions.c.task)
    for row in connection.execute(query).all():
        found = (versions.c.task == row.task) & (versions.c.number == row.number)
        definition = _definition(json.loads(row.profile), json.loads(row.manifest))
        statement = sa.update(versions).where(found).values(definition=json.dumps(definition))
        connection.execute(statement)


def _definition(profile: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    fields = {name: profile[name] for name in ("template", "chat", "defaults") if name in profile}
    return fields | ({"prompt": manifest["prompt"]} if "prompt" in manifest else {})
