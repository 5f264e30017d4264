"""Publications in a session."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.records import Publication, whole
from omnireg.registry.tables import CheckpointRow, PublicationRow


def record(
    session: Session, owner: CheckpointRow, repo: str, commit: str, url: str, branch: str | None
) -> PublicationRow:
    """Record that a commit holds a checkpoint; the same commit again is the same publication.

    Raises:
        RegistryError: the commit is recorded as another checkpoint's.
    """
    repo, commit = rules.name(repo, "repo"), rules.name(commit, "commit", 64)
    known = session.scalars(
        select(PublicationRow).where(PublicationRow.repo == repo, PublicationRow.commit == commit)
    ).one_or_none()
    if known is not None:
        if known.checkpoint_id != owner.id:
            raise RegistryError(
                f"{repo}@{commit[:12]} is recorded as {known.checkpoint.name!r}, not {owner.name!r}"
            )
        return known
    row = PublicationRow(
        checkpoint=owner,
        repo=repo,
        commit=commit,
        url=rules.text(url, "url"),
        branch=rules.optional_text(branch, "branch"),
    )
    session.add(row)
    session.flush()
    return row


def of(session: Session, owner: CheckpointRow) -> list[Publication]:
    """Return the publications of a checkpoint, newest first."""
    rows = session.scalars(
        select(PublicationRow)
        .where(PublicationRow.checkpoint_id == owner.id)
        .order_by(PublicationRow.id.desc())
    )
    return [to_publication(row) for row in rows]


def to_publication(row: PublicationRow) -> Publication:
    """Return the frozen value of a row."""
    return whole(
        Publication(
            row.checkpoint.name, row.repo, row.commit, row.url, row.published_at, row.branch
        )
    )
