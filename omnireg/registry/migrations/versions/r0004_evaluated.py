"""What else a score depends on, and what analyses found."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BEFORE = ("checkpoint", "alias", "parent", "benchmark", "score", "run", "publication")


def upgrade() -> None:
    """Add the column and the table, and let events be about its rows."""
    op.add_column("scores", sa.Column("setup", sa.JSON(), nullable=True))
    op.create_table(
        "analyses",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("against_id", sa.Integer(), nullable=True),
        sa.Column("setup", sa.JSON(), nullable=False),
        sa.Column("conditions", sa.String(64), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name=op.f("fk_analyses_checkpoint_id_checkpoints"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["against_id"],
            ["checkpoints.id"],
            name=op.f("fk_analyses_against_id_checkpoints"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_analyses")),
        sa.UniqueConstraint(
            "checkpoint_id",
            "kind",
            "conditions",
            name=op.f("uq_analyses_checkpoint_id_kind_conditions"),
        ),
    )
    op.create_index(op.f("ix_analyses_against_id"), "analyses", ["against_id"])
    _allow(*_BEFORE, "analysis")


def downgrade() -> None:
    """Take it all back, the events about analyses too."""
    _free_events()
    op.execute("DELETE FROM events WHERE subject_type = 'analysis'")
    _allow(*_BEFORE)
    op.drop_table("analyses")
    op.drop_column("scores", "setup")


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _free_events() -> None:
    if _is_sqlite():
        for change in ("update", "delete"):
            op.execute(f"DROP TRIGGER IF EXISTS events_no_{change}")
        return
    op.execute("DROP TRIGGER IF EXISTS events_no_change ON events")


def _keep_events() -> None:
    if _is_sqlite():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON events"
                " BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
            )
        return
    op.execute(
        "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events"
        " FOR EACH STATEMENT EXECUTE FUNCTION omnireg_refuse_change()"
    )


def _allow(*subjects: str) -> None:
    """Replace the CHECK of what an event is about."""
    _free_events()
    listed = ", ".join(f"'{subject}'" for subject in subjects)
    with op.batch_alter_table("events") as table:
        table.drop_constraint(op.f("ck_events_subject_type"), type_="check")
        table.create_check_constraint(op.f("ck_events_subject_type"), f"subject_type IN ({listed})")
    _keep_events()
