"""Alembic environment: runs migrations on a given connection, within its transaction."""

from alembic import context

from prefix_store.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
