"""Free facts on checkpoints, the usual metric of benchmarks, and events."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_EVENTS = "events are append-only"


def upgrade() -> None:
    """Add columns, the table of events and the leaderboard's index."""
    op.add_column("checkpoints", sa.Column("details", sa.JSON(), nullable=True))
    op.add_column("benchmarks", sa.Column("metric", sa.Text(), nullable=True))
    op.drop_index(op.f("ix_scores_benchmark_id_metric"), "scores")
    op.create_index(
        op.f("ix_scores_benchmark_id_metric_value"), "scores", ["benchmark_id", "metric", "value"]
    )
    _events()


def downgrade() -> None:
    """Take it all back."""
    op.drop_table("events")
    if not _is_sqlite():
        op.execute("DROP FUNCTION omnireg_refuse_change()")
    op.drop_index(op.f("ix_scores_benchmark_id_metric_value"), "scores")
    op.create_index(op.f("ix_scores_benchmark_id_metric"), "scores", ["benchmark_id", "metric"])
    op.drop_column("benchmarks", "metric")
    op.drop_column("checkpoints", "details")


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _closed(name: str, *states: str) -> sa.Enum:
    return sa.Enum(*states, name=name, native_enum=False, create_constraint=True, length=32)


def _events() -> None:
    subjects = ("checkpoint", "alias", "parent", "benchmark", "score", "run")
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", _closed("action", "create", "update", "delete"), nullable=False),
        sa.Column("subject_type", _closed("subject_type", *subjects), nullable=False),
        sa.Column("subject", sa.String(1000), nullable=False),
        sa.Column("details", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_subject_id"), "events", ["subject", "id"])
    if _is_sqlite():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON events"
                f" BEGIN SELECT RAISE(ABORT, '{_EVENTS}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION omnireg_refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{_EVENTS}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events"
        " FOR EACH STATEMENT EXECUTE FUNCTION omnireg_refuse_change()"
    )
