"""Run the revisions on the connection in `config.attributes`; there is no alembic.ini."""

from alembic import context

from omnireg.registry.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    # The caller's transaction holds the whole upgrade, so a failure leaves the old schema.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
