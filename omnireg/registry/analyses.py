"""What analyses found, in a session."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from omnireg.registry import rules
from omnireg.registry.records import Analysis, whole
from omnireg.registry.tables import AnalysisRow, CheckpointRow, now


def record(
    session: Session,
    owner: CheckpointRow,
    kind: str,
    against: CheckpointRow | None,
    setup: Mapping[str, Any],
    result: Mapping[str, Any],
) -> AnalysisRow:
    """Record a result; of the same analysis with the same setup, the new result is kept."""
    kind = rules.name(kind, "kind of analysis", 100)
    said = rules.document(setup, "setup")
    found = rules.document(result, "result", rules.LARGEST_RESULT)
    told = {"against": against.name if against else None, "setup": said}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    row = session.scalars(
        select(AnalysisRow).where(
            AnalysisRow.checkpoint_id == owner.id,
            AnalysisRow.kind == kind,
            AnalysisRow.conditions == digest,
        )
    ).one_or_none()
    if row is None:
        row = AnalysisRow(
            checkpoint=owner, kind=kind, against=against, setup=said, conditions=digest,
            result=found,
        )  # fmt: skip
        session.add(row)
    elif row.result != found:
        row.result, row.created_at = found, now()
    session.flush()
    return row


def of(session: Session, owner: CheckpointRow, kind: str | None) -> list[Analysis]:
    """Return the analyses of a checkpoint, newest first."""
    query = (
        select(AnalysisRow)
        .options(joinedload(AnalysisRow.checkpoint), joinedload(AnalysisRow.against))
        .where(AnalysisRow.checkpoint_id == owner.id)
        .order_by(AnalysisRow.created_at.desc(), AnalysisRow.id.desc())
    )
    if kind is not None:
        query = query.where(AnalysisRow.kind == rules.asked(kind, "kind of analysis"))
    return [to_analysis(row) for row in session.scalars(query)]


def to_analysis(row: AnalysisRow) -> Analysis:
    """Return the frozen value of a row."""
    return whole(
        Analysis(
            row.checkpoint.name,
            row.kind,
            row.result,
            row.created_at,
            row.against.name if row.against else None,
            row.setup,
        )
    )
