"""``omnireg apply``, ``export``, ``events`` and ``sql``: the registry as text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnireg.cli.files import STDOUT, TextFile
from omnireg.cli.output import Settings, common_options, echo, hint, print_json, print_table, short
from omnireg.errors import to_type

if TYPE_CHECKING:
    from omnireg.registry import Changes, Event

_SIGNS = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("−", "red")}


@click.command("apply")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE…")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@common_options
@click.pass_obj
def apply_command(settings: Settings, files: tuple[Path, ...], dry_run: bool) -> None:
    """Bring the registry to what manifests declare: YAML, or JSON Lines (.jsonl) for bulk.

    All of it or nothing; twice is the same as once. At most 100 changes are listed.
    """
    with settings.open_registry() as book:
        changes = book.apply(*files, dry_run=dry_run)
        where = book.where
    if settings.as_json:
        print_json(changes.to_json())
        return
    _print_changes(changes)
    if dry_run and changes.total:
        here = ("--registry", settings.registry) if settings.registry else ()
        hint(f"nothing was changed; apply it: {to_type(*here, 'apply', *files)}")
    elif changes.total:
        hint(f"applied to {where}")


def _print_changes(changes: "Changes") -> None:
    if not changes.total:
        echo("no changes")
        return
    for event in changes.listed:
        sign, colour = _SIGNS[str(event.action)]
        echo(f"{sign} {short(_described(event))}", fg=colour)
    if changes.total > len(changes.listed):
        echo(f"… and {changes.total - len(changes.listed)} more")
    counts = (
        f"{_SIGNS[action][0]}{number} {kind}{'s' if number > 1 else ''}"
        for action, kinds in changes.counts.items()
        for kind, number in kinds.items()
    )
    echo(", ".join(counts))


def _described(event: "Event") -> str:
    details = dict(event.details or {})
    changed = details.pop("changes", {})
    words = [f"{key} {value}" for key, value in details.items() if value is not None]
    words += [f"{key} {_short(old)} → {_short(new)}" for key, (old, new) in changed.items()]
    return f"{event.subject_type} {event.subject}" + (f": {', '.join(words)}" if words else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@click.command("export")
@click.option(
    "--out",
    type=TextFile(),
    metavar="FILE",
    help="Write to FILE: YAML, or JSON Lines if it ends in .jsonl [default: -, YAML on stdout].",
)
@common_options
@click.pass_obj
def export_command(settings: Settings, out: Path | None) -> None:
    """Write the whole registry as a manifest that ``apply`` reads."""
    from omnireg.registry.declare import exporting

    with settings.open_registry() as book:
        if out not in (None, STDOUT):
            book.export(out)
            hint(f"exported to {out}")
        elif settings.as_json:
            print_json(exporting.document(book.items()))
        else:
            echo(exporting.as_yaml(book.items()), nl=False)


@click.command("events")
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most.")
@common_options
@click.pass_obj
def events_command(settings: Settings, name: str | None, limit: int) -> None:
    """Show who changed what, newest first; of the checkpoint or benchmark NAME if given."""
    with settings.open_registry() as book:
        found = book.events(name, limit=limit)
    if settings.as_json:
        print_json([event.to_json() for event in found])
        return
    if not found and name:
        hint(f"nothing is recorded of {name}")
        return
    columns = ("at (UTC)", "actor", "action", "what")
    rows = [(f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor, str(e.action), _described(e)) for e in found]
    print_table(columns, rows)


@click.command("sql")
@click.argument("query")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Give up after so many seconds.",
)
@common_options
@click.pass_obj
def sql_command(settings: Settings, query: str, limit: int, timeout: float) -> None:
    """Answer a SELECT over the views v_checkpoints, v_scores, v_parents, … and never write."""
    with settings.open_registry() as book:
        answer = book.sql(query, limit=limit, timeout=timeout)
    if settings.as_json:
        print_json(answer.to_json())
    else:
        print_table(answer.columns, answer.rows)
    if answer.truncated:
        hint(f"only the first {limit} rows; raise --limit for more")
