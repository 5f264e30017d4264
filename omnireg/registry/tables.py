"""The tables: every closed state is a named CHECK, every constraint has a predictable name."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from omnireg.registry.columns import Document, Line, Prose, Real, UtcDateTime, Whole, closed
from omnireg.registry.records import Action, Kind, Role, RunStatus, SubjectType

LONGEST_NAME = 1000
LONGEST_DIGEST = 128
LARGEST = 1.7976931348623157e308


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The registry's metadata."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class CheckpointRow(Base):
    """A checkpoint; two names may share one fingerprint, since copies are the same bytes."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        CheckConstraint(f"length(name) BETWEEN 1 AND {LONGEST_NAME}", name="name_length"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Line(LONGEST_NAME), unique=True)
    kind: Mapped[Kind] = mapped_column(closed(Kind, "kind"))
    fingerprint: Mapped[str | None] = mapped_column(Line(64), index=True)
    source: Mapped[str | None] = mapped_column(Prose)
    strategy: Mapped[str | None] = mapped_column(Prose)
    # Known only as somebody's parent: its kind is a guess that the first `add` may correct.
    implied: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    notes: Mapped[str | None] = mapped_column(Prose)
    details: Mapped[dict[str, Any] | None] = mapped_column(Document(none_as_null=True))
    # sha256 by relative name; of the weights too
    files: Mapped[dict[str, Any] | None] = mapped_column(Document(none_as_null=True))

    aliases: Mapped[list["AliasRow"]] = relationship(
        back_populates="checkpoint", cascade="all, delete-orphan", order_by="AliasRow.alias"
    )
    modalities: Mapped[list["ModalityRow"]] = relationship(
        cascade="all, delete-orphan", order_by="ModalityRow.modality"
    )
    parents: Mapped[list["ParentRow"]] = relationship(
        foreign_keys="ParentRow.child_id",
        back_populates="child",
        cascade="all, delete-orphan",
        order_by="(ParentRow.position, ParentRow.parent_id)",
    )


class AliasRow(Base):
    """Another name for a checkpoint."""

    __tablename__ = "aliases"
    __table_args__ = (
        CheckConstraint(f"length(alias) BETWEEN 1 AND {LONGEST_NAME}", name="alias_length"),
    )

    alias: Mapped[str] = mapped_column(Line(LONGEST_NAME), primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), index=True
    )

    checkpoint: Mapped[CheckpointRow] = relationship(back_populates="aliases")


class ModalityRow(Base):
    """A modality that a checkpoint understands."""

    __tablename__ = "checkpoint_modalities"

    checkpoint_id: Mapped[int] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True
    )
    modality: Mapped[str] = mapped_column(Line(100), primary_key=True, index=True)


class ParentRow(Base):
    """An edge of the family graph: a child cannot outlive the record of its parents."""

    __tablename__ = "parents"
    __table_args__ = (CheckConstraint("child_id <> parent_id", name="not_itself"),)

    child_id: Mapped[int] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True
    )
    parent_id: Mapped[int] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="RESTRICT"), primary_key=True, index=True
    )
    role: Mapped[Role] = mapped_column(closed(Role, "role"), primary_key=True)
    weight: Mapped[float | None] = mapped_column(Real)
    position: Mapped[int] = mapped_column(default=0, server_default=text("0"))

    child: Mapped[CheckpointRow] = relationship(foreign_keys=child_id, back_populates="parents")
    parent: Mapped[CheckpointRow] = relationship(foreign_keys=parent_id)


class RunRow(Base):
    """A run exists before its work starts, so a crash leaves a trace."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(
            "(status = 'done') = (checkpoint_id IS NOT NULL)", name="done_has_checkpoint"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[RunStatus] = mapped_column(closed(RunStatus, "status"), index=True)
    name: Mapped[str] = mapped_column(Line(LONGEST_NAME))
    out: Mapped[str] = mapped_column(Prose)
    recipe_text: Mapped[str] = mapped_column(Prose)
    recipe_digest: Mapped[str] = mapped_column(Line(LONGEST_DIGEST), index=True)
    strategy: Mapped[str] = mapped_column(Prose)
    strategy_distribution: Mapped[str | None] = mapped_column(Prose)
    strategy_version: Mapped[str | None] = mapped_column(Prose)
    engine: Mapped[str] = mapped_column(Prose)
    seed: Mapped[int | None] = mapped_column(Whole)
    parameters: Mapped[dict[str, Any]] = mapped_column(Document)
    versions: Mapped[dict[str, Any]] = mapped_column(Document)
    machine: Mapped[str] = mapped_column(Prose)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Prose)
    checkpoint_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="RESTRICT"), index=True
    )

    checkpoint: Mapped[CheckpointRow | None] = relationship()


class PublicationRow(Base):
    """Where a checkpoint was published; a commit is one publication, however often it is seen."""

    __tablename__ = "publications"
    __table_args__ = (UniqueConstraint("repo", "commit"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), index=True
    )
    repo: Mapped[str] = mapped_column(Line(LONGEST_NAME))
    commit: Mapped[str] = mapped_column(Line(64))
    url: Mapped[str] = mapped_column(Prose)
    branch: Mapped[str | None] = mapped_column(Prose)
    published_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    checkpoint: Mapped[CheckpointRow] = relationship()


class BenchmarkRow(Base):
    """A benchmark and its direction."""

    __tablename__ = "benchmarks"
    __table_args__ = (
        CheckConstraint(f"length(name) BETWEEN 1 AND {LONGEST_NAME}", name="name_length"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Line(LONGEST_NAME), unique=True)
    ability: Mapped[str | None] = mapped_column(Prose)
    # What a score has that names no metric.
    metric: Mapped[str | None] = mapped_column(Prose)
    unit: Mapped[str | None] = mapped_column(Prose)
    higher_is_better: Mapped[bool]
    description: Mapped[str | None] = mapped_column(Prose)


class ScoreRow(Base):
    """A score; `conditions` digests what makes it comparable, with absent equal to absent."""

    __tablename__ = "scores"
    __table_args__ = (
        UniqueConstraint("checkpoint_id", "benchmark_id", "conditions"),
        # Infinity passes every comparison with NULL, so the bound is written out.
        CheckConstraint(f"value BETWEEN -{LARGEST} AND {LARGEST}", name="value_finite"),
        CheckConstraint(f"stderr BETWEEN 0 AND {LARGEST}", name="stderr_finite"),
        CheckConstraint("n >= 0", name="n_counts"),
        CheckConstraint("n_shot >= 0", name="n_shot_counts"),
        # In the order of a leaderboard.
        Index(None, "benchmark_id", "metric", "value"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoints.id", ondelete="CASCADE"))
    benchmark_id: Mapped[int] = mapped_column(ForeignKey("benchmarks.id", ondelete="RESTRICT"))
    metric: Mapped[str] = mapped_column(Line(LONGEST_NAME))
    value: Mapped[float] = mapped_column(Real)
    stderr: Mapped[float | None] = mapped_column(Real)
    n: Mapped[int | None] = mapped_column(Whole)
    n_shot: Mapped[int | None] = mapped_column(Whole)
    filter: Mapped[str | None] = mapped_column(Prose)
    split: Mapped[str | None] = mapped_column(Prose)
    evaluator: Mapped[str | None] = mapped_column(Prose)
    evaluator_version: Mapped[str | None] = mapped_column(Prose)
    source: Mapped[str | None] = mapped_column(Prose)
    setup: Mapped[dict[str, Any] | None] = mapped_column(Document(none_as_null=True))
    conditions: Mapped[str] = mapped_column(Line(64))
    partial: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    details: Mapped[dict[str, Any] | None] = mapped_column(Document(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    checkpoint: Mapped[CheckpointRow] = relationship()
    benchmark: Mapped[BenchmarkRow] = relationship()


class AnalysisRow(Base):
    """What an analysis found; `conditions` digests its setup."""

    __tablename__ = "analyses"
    __table_args__ = (UniqueConstraint("checkpoint_id", "kind", "conditions"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoints.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(Line(100))
    against_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), index=True
    )
    setup: Mapped[dict[str, Any]] = mapped_column(Document)
    conditions: Mapped[str] = mapped_column(Line(64))
    result: Mapped[dict[str, Any]] = mapped_column(Document)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    checkpoint: Mapped[CheckpointRow] = relationship(foreign_keys=checkpoint_id)
    against: Mapped[CheckpointRow | None] = relationship(foreign_keys=against_id)


class EventRow(Base):
    """Who changed what, when; triggers refuse to change or delete one."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "subject", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    actor: Mapped[str] = mapped_column(Prose)
    action: Mapped[Action] = mapped_column(closed(Action, "action"))
    subject_type: Mapped[SubjectType] = mapped_column(closed(SubjectType, "subject_type"))
    # A checkpoint's or a benchmark's name; the checkpoint's of an alias, a parent or a score.
    subject: Mapped[str] = mapped_column(Line(LONGEST_NAME))
    details: Mapped[dict[str, Any] | None] = mapped_column(Document(none_as_null=True))
