"""The views that readers may rely on; a migration finds none and leaves the current ones."""

from sqlalchemy import Connection, text

_JOINED = {"sqlite": "group_concat(modality, ', ')", "postgresql": "string_agg(modality, ', ')"}
VIEWS = {
    "v_checkpoints": """
        SELECT c.name, c.kind, c.fingerprint, c.source, c.strategy,
          (SELECT {joined} FROM (SELECT modality FROM checkpoint_modalities
            WHERE checkpoint_id = c.id ORDER BY modality) AS m) AS modalities,
          c.created_at, c.notes, c.details
        FROM checkpoints c""",
    "v_aliases": """
        SELECT a.alias, c.name AS checkpoint
        FROM aliases a JOIN checkpoints c ON c.id = a.checkpoint_id""",
    "v_modalities": """
        SELECT c.name AS checkpoint, m.modality
        FROM checkpoint_modalities m JOIN checkpoints c ON c.id = m.checkpoint_id""",
    "v_parents": """
        SELECT c.name AS child, p.name AS parent, e.role, e.weight, e.position
        FROM parents e JOIN checkpoints c ON c.id = e.child_id
          JOIN checkpoints p ON p.id = e.parent_id""",
    "v_benchmarks": """
        SELECT name, ability, metric, unit, higher_is_better, description FROM benchmarks""",
    "v_scores": """
        SELECT c.name AS checkpoint, c.kind, b.name AS benchmark, b.ability, s.metric, s.value,
          b.unit, b.higher_is_better, s.stderr, s.n, s.n_shot, s.filter, s.split, s.evaluator,
          s.evaluator_version, s.source, s.setup, s.partial, s.details, s.created_at
        FROM scores s JOIN checkpoints c ON c.id = s.checkpoint_id
          JOIN benchmarks b ON b.id = s.benchmark_id""",
    "v_runs": """
        SELECT r.id, r.status, r.name, c.name AS checkpoint, r.out, r.strategy,
          r.strategy_distribution, r.strategy_version, r.engine, r.seed, r.recipe_digest,
          r.recipe_text, r.machine, r.started_at, r.finished_at, r.error
        FROM runs r LEFT JOIN checkpoints c ON c.id = r.checkpoint_id""",
    "v_publications": """
        SELECT c.name AS checkpoint, p.repo, p."commit", p.url, p.branch, p.published_at
        FROM publications p JOIN checkpoints c ON c.id = p.checkpoint_id""",
    "v_analyses": """
        SELECT c.name AS checkpoint, a.kind, o.name AS against, a.setup, a.result, a.created_at
        FROM analyses a JOIN checkpoints c ON c.id = a.checkpoint_id
          LEFT JOIN checkpoints o ON o.id = a.against_id""",
    "v_events": """
        SELECT id, at, actor, action, subject_type, subject, details FROM events""",
}


def create(connection: Connection) -> None:
    """Create every view."""
    for name in VIEWS:
        connection.execute(text(statement(name, connection)))


def statement(name: str, connection: Connection) -> str:
    """Return what creates a view."""
    return f"CREATE VIEW {name} AS {VIEWS[name].format(joined=_JOINED[connection.dialect.name])}"


def drop(connection: Connection) -> None:
    """Drop every view there is, so that tables can be rebuilt."""
    for name in reversed(VIEWS):
        connection.execute(text(f"DROP VIEW IF EXISTS {name}"))
