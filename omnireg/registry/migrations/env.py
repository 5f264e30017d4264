"""Run the revisions on the connection in `config.attributes`; there is no alembic.ini."""

from alembic import context

from omnireg.registry import views
from omnireg.registry.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    # The caller's transaction holds the whole upgrade, so a failure leaves the old schema.
    transactional_ddl=True,
)
with context.begin_transaction():
    views.drop(connection)
    context.run_migrations()
    if context.get_context().get_current_revision() == context.get_head_revision():
        views.create(connection)
