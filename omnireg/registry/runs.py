"""Runs in a session: running, then done with a checkpoint or failed with a reason."""

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.checkpoints import by_name
from omnireg.registry.recording import Facts, record, refuse_alias
from omnireg.registry.records import Kind, Run, RunStatus, whole
from omnireg.registry.tables import LONGEST_DIGEST, CheckpointRow, RunRow, now


def start(
    session: Session,
    name: str,
    *,
    recipe_digest: str,
    seed: int | None,
    parameters: Mapping[str, Any] | None,
    versions: Mapping[str, str] | None,
    machine: str | None,
    **texts: str | None,
) -> RunRow:
    """Record that work on a checkpoint begins."""
    row = RunRow(
        status=RunStatus.RUNNING,
        name=rules.name(name),
        seed=rules.count(seed, "seed"),
        parameters=rules.document(parameters or {}, "parameters"),
        versions=rules.document(versions or {}, "versions"),
        machine=rules.text(machine or platform.node() or "unknown", "machine"),
        recipe_digest=rules.text(recipe_digest, "recipe_digest", LONGEST_DIGEST),
        **{field: value and rules.text(value, field) for field, value in texts.items()},
    )
    session.add(row)
    session.flush()
    return row


def finish(session: Session, run_id: int, said: Facts) -> CheckpointRow:
    """Record the checkpoint that a run made, its parents and the run's end, or none of them."""
    run = get(session, run_id)
    if run.status is not RunStatus.RUNNING:
        raise RegistryError(
            f"run {run_id} is already {run.status}: start another run to record this result"
        )
    made = replace(said, strategy=said.strategy or run.strategy)
    run.checkpoint = record(session, made, create_parents=True)
    run.status, run.finished_at = RunStatus.DONE, now()
    _close_interrupted(session, run)
    session.flush()
    return run.checkpoint


def _close_interrupted(session: Session, done: RunRow) -> None:
    """End earlier runs into the same folder: it is made by one at a time, so they were killed."""
    if done.out is None:
        return
    interrupted = select(RunRow).where(
        RunRow.status == RunStatus.RUNNING,
        RunRow.out == done.out,
        RunRow.machine == done.machine,
        RunRow.id < done.id,
    )
    for run in session.scalars(interrupted):
        run.status, run.finished_at = RunStatus.FAILED, now()
        run.error = f"interrupted; run {done.id} finished its work"


def fail(session: Session, run_id: int, error: str) -> RunRow:
    """Record why a run stopped; the first reason stays."""
    run = get(session, run_id)
    if run.status is RunStatus.DONE:
        raise RegistryError(f"run {run_id} is done and cannot fail: see `omnireg show {run.name}`")
    if run.status is RunStatus.RUNNING:
        printable = error.replace("\0", "").encode(errors="backslashreplace").decode()
        printable = printable[-rules.LONGEST_TEXT :]
        run.status, run.finished_at, run.error = RunStatus.FAILED, now(), printable
        session.flush()
    return run


def get(session: Session, run_id: int) -> RunRow:
    """Return a run by its number."""
    if row := session.get(RunRow, rules.count(run_id, "run")):
        return row
    raise RegistryError(f"no run {run_id}: start one first")


def latest(
    session: Session,
    *,
    status: RunStatus | None = None,
    checkpoint: CheckpointRow | None = None,
    limit: int | None = None,
) -> list[Run]:
    """Return runs, newest first."""
    query = select(RunRow).options(joinedload(RunRow.checkpoint)).order_by(RunRow.id.desc())
    if status is not None:
        query = query.where(RunRow.status == status)
    if checkpoint is not None:
        query = query.where(RunRow.checkpoint_id == checkpoint.id)
    return [to_run(row) for row in session.scalars(query.limit(rules.limit(limit)))]


def refuse_taken(
    session: Session,
    name: str,
    kind: Kind | None,
    fingerprint: str | None,
    recipe_digest: str | None,
    plugin: str | None,
) -> None:
    """Refuse a name whose recorded bytes differ, or may differ, from what is to be made."""
    refuse_alias(session, rules.name(name))
    row = by_name(session, name)
    if row is None or row.implied:
        return
    if kind is not None and row.kind is not kind:
        raise RegistryError(f"{name!r} is recorded as {row.kind}, not {kind}: use another --name")
    if row.fingerprint in (None, fingerprint) or _made_by(session, row, recipe_digest, plugin):
        return
    raise RegistryError(
        f"the name {name!r} is taken by a checkpoint with other bytes: use another --name"
        + (", or --no-record while trying" if recipe_digest else "")
    )


def to_run(row: RunRow) -> Run:
    """Return the frozen value of a row."""
    return whole(
        Run(
            id=row.id,
            status=row.status,
            name=row.name,
            out=row.out,
            recipe_text=row.recipe_text,
            recipe_digest=row.recipe_digest,
            strategy=row.strategy,
            engine=row.engine,
            machine=row.machine,
            started_at=row.started_at,
            strategy_distribution=row.strategy_distribution,
            strategy_version=row.strategy_version,
            seed=row.seed,
            parameters=row.parameters,
            versions=row.versions,
            finished_at=row.finished_at,
            error=row.error,
            checkpoint=row.checkpoint.name if row.checkpoint else None,
        )
    )


def _made_by(
    session: Session, row: CheckpointRow, recipe_digest: str | None, plugin: str | None
) -> bool:
    if recipe_digest is None:
        return False
    made = select(RunRow.id).where(
        RunRow.checkpoint_id == row.id, RunRow.recipe_digest == recipe_digest
    )
    if plugin is not None:
        made = made.where(RunRow.strategy_version == plugin)
    return session.scalars(made.limit(1)).first() is not None
