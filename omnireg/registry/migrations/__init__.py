"""The registry's schema history, run by Alembic on a connection it is handed."""
