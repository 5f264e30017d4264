"""Checkpoints with their families, runs, and scores."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _checkpoints()
    _aliases()
    _modalities()
    _parents()
    _runs()
    _benchmarks()
    _scores()


def downgrade() -> None:
    """Drop every table, those that point at others first."""
    for table in (
        "scores",
        "benchmarks",
        "runs",
        "parents",
        "checkpoint_modalities",
        "aliases",
        "checkpoints",
    ):
        op.drop_table(table)


def _closed(name: str, *states: str) -> sa.Enum:
    return sa.Enum(*states, name=name, native_enum=False, create_constraint=True, length=32)


def _to(column: str, table: str, target: str, ondelete: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}_{target}")
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name, ondelete=ondelete)


def _index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(1000), nullable=False),
        sa.Column(
            "kind", _closed("kind", "base", "finetuned", "merged", "package"), nullable=False
        ),
        sa.Column("fingerprint", sa.String(64), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("strategy", sa.Text(), nullable=True),
        sa.Column("implied", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("notes", sa.Text(), nullable=True),
        _check("checkpoints", "name_length", "length(name) BETWEEN 1 AND 1000"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("name", name=op.f("uq_checkpoints_name")),
    )
    _index("checkpoints", "fingerprint")


def _aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String(1000), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        _check("aliases", "alias_length", "length(alias) BETWEEN 1 AND 1000"),
        _to("checkpoint_id", "aliases", "checkpoints", "CASCADE"),
        sa.PrimaryKeyConstraint("alias", name=op.f("pk_aliases")),
    )
    _index("aliases", "checkpoint_id")


def _modalities() -> None:
    table = "checkpoint_modalities"
    op.create_table(
        table,
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("modality", sa.String(100), nullable=False),
        _to("checkpoint_id", table, "checkpoints", "CASCADE"),
        sa.PrimaryKeyConstraint("checkpoint_id", "modality", name=op.f(f"pk_{table}")),
    )
    _index(table, "modality")


def _parents() -> None:
    roles = _closed("role", "base", "model", "host", "package", "finetuned_from")
    op.create_table(
        "parents",
        sa.Column("child_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.Column("role", roles, nullable=False),
        sa.Column("weight", sa.Double(), nullable=True),
        sa.Column("position", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _check("parents", "not_itself", "child_id <> parent_id"),
        _to("child_id", "parents", "checkpoints", "CASCADE"),
        _to("parent_id", "parents", "checkpoints", "RESTRICT"),
        sa.PrimaryKeyConstraint("child_id", "parent_id", "role", name=op.f("pk_parents")),
    )
    _index("parents", "parent_id")


def _runs() -> None:
    done_has_checkpoint = "(status = 'done') = (checkpoint_id IS NOT NULL)"
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("status", _closed("status", "running", "done", "failed"), nullable=False),
        sa.Column("name", sa.String(1000), nullable=False),
        sa.Column("out", sa.Text(), nullable=False),
        sa.Column("recipe_text", sa.Text(), nullable=False),
        sa.Column("recipe_digest", sa.String(128), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("strategy_distribution", sa.Text(), nullable=True),
        sa.Column("strategy_version", sa.Text(), nullable=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        _check("runs", "done_has_checkpoint", done_has_checkpoint),
        _to("checkpoint_id", "runs", "checkpoints", "RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    for column in ("status", "recipe_digest", "checkpoint_id"):
        _index("runs", column)


def _benchmarks() -> None:
    op.create_table(
        "benchmarks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(1000), nullable=False),
        sa.Column("ability", sa.Text(), nullable=True),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("higher_is_better", sa.Boolean(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        _check("benchmarks", "name_length", "length(name) BETWEEN 1 AND 1000"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_benchmarks")),
        sa.UniqueConstraint("name", name=op.f("uq_benchmarks_name")),
    )


def _scores() -> None:
    key = ("checkpoint_id", "benchmark_id", "conditions")
    largest = "1.7976931348623157e+308"
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("benchmark_id", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(1000), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("n", sa.BigInteger(), nullable=True),
        sa.Column("n_shot", sa.BigInteger(), nullable=True),
        *(
            sa.Column(name, sa.Text(), nullable=True)
            for name in ("filter", "split", "evaluator", "evaluator_version", "source")
        ),
        sa.Column("conditions", sa.String(64), nullable=False),
        sa.Column("partial", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("details", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _check("scores", "value_finite", f"value BETWEEN -{largest} AND {largest}"),
        _check("scores", "stderr_finite", f"stderr BETWEEN 0 AND {largest}"),
        _check("scores", "n_counts", "n >= 0"),
        _check("scores", "n_shot_counts", "n_shot >= 0"),
        _to("checkpoint_id", "scores", "checkpoints", "CASCADE"),
        _to("benchmark_id", "scores", "benchmarks", "RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scores")),
        sa.UniqueConstraint(*key, name=op.f(f"uq_scores_{'_'.join(key)}")),
    )
    _index("scores", "benchmark_id", "metric")
