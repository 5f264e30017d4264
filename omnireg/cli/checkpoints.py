"""``omnireg add``, ``list``, ``show`` and ``lineage``."""

import json
from typing import TYPE_CHECKING, Any

import click

from omnireg.boundary.text import shown
from omnireg.cli.output import Settings, common_options, echo, hint, print_json, print_table
from omnireg.errors import to_type

if TYPE_CHECKING:
    from omnireg.registry import Checkpoint, Run

#: notes and details may be long; --json has all of them
_LONGEST_FACT = 4000
KINDS = ("base", "finetuned", "merged", "package")


@click.command("add")
@click.argument("ref")
@click.option(
    "--name",
    help="Name in the registry [default: what its bytes are known as, the folder's name, the id].",
)
@click.option(
    "--kind", type=click.Choice(KINDS), help="What it is [default: told from the checkpoint]."
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="REF[=ROLE]",
    help="A parent; ROLE is base, model, host, package or finetuned_from.",
)
@click.option(
    "--modality", "modalities", multiple=True, help="What it takes in [default: that of its class]."
)
@common_options
@click.pass_obj
def add_command(
    settings: Settings,
    ref: str,
    name: str | None,
    kind: str | None,
    parents: tuple[str, ...],
    modalities: tuple[str, ...],
) -> None:
    """Record the checkpoint REF: a folder, or a Hub id org/name[@revision].

    Of a Hub checkpoint no weights are downloaded: its fingerprint comes from the Hub.
    """
    from omnireg.recording import add

    with settings.open_registry() as book:
        record = add(book, ref, name=name, kind=kind, parents=parents, modalities=modalities)
    if settings.as_json:
        print_json(record.to_json())
    else:
        echo(f"{record.name}: {record.kind} {(record.fingerprint or '')[:12]}")
        hint(f"next: {to_type('lineage', record.name)}")


@click.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only this kind.")
@click.option("--modality", help="Only those that take this in.")
@click.option("--strategy", help="Only those merged with this.")
@click.option("--parent", metavar="NAME", help="Only children of this checkpoint.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most."
)
@common_options
@click.pass_obj
def list_command(
    settings: Settings,
    kind: str | None,
    modality: str | None,
    strategy: str | None,
    parent: str | None,
    limit: int,
) -> None:
    """List recorded checkpoints, newest first."""
    with settings.open_registry() as book:
        found = book.checkpoints(
            kind=kind, modality=modality, strategy=strategy, parent=parent, limit=limit
        )
    if settings.as_json:
        print_json([record.to_json() for record in found])
        return
    if not found:
        hint("no checkpoint matches")
        return
    columns = ("name", "kind", "modalities", "strategy", "fingerprint", "created (UTC)")
    print_table(columns, [_row(record) for record in found])


def _row(record: "Checkpoint") -> tuple[Any, ...]:
    return (
        record.name,
        str(record.kind),
        ", ".join(record.modalities),
        record.strategy,
        (record.fingerprint or "")[:12],
        f"{record.created_at:%Y-%m-%d %H:%M}",
    )


@click.command("show")
@click.argument("name")
@common_options
@click.pass_obj
def show_command(settings: Settings, name: str) -> None:
    """Show one checkpoint: what it is, its parents, and the run that made it."""
    from omnireg.recording import find_record

    with settings.open_registry() as book:
        record = find_record(book, name)
        run, published = book.run_of(record.name), book.publications(record.name)
    if settings.as_json:
        made = run.to_json() if run else None
        there = [publication.to_json() for publication in published]
        print_json({**record.to_json(), "run": made, "publications": there})
        return
    _print_record(record, run)
    for publication in published:
        echo(_fact("published", f"{publication.repo}@{publication.commit[:12]}"))


def _print_record(record: "Checkpoint", run: "Run | None") -> None:
    facts = record.to_json() | {"parents": None}
    for key, value in facts.items():
        if value:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
            echo(_fact(key, ", ".join(text) if isinstance(text, list) else str(text)))
    for parent in record.parents:
        weight = "" if parent.weight is None else f", weight {parent.weight:g}"
        echo(_fact("parent", f"{parent.name} ({parent.role}{weight})"))
    if run:
        echo(_fact("run", f"{run.id} · {run.strategy} · {run.engine} · {run.status}"))
        echo(_fact("digest", run.recipe_digest))


def _fact(key: str, said: str) -> str:
    """Return a fact, its further lines set in below the first, so that they are no facts."""
    return f"{key:<13}" + shown(said, _LONGEST_FACT).replace("\n", "\n" + " " * 13)


@click.command("lineage")
@click.argument("name")
@click.option(
    "--direction",
    type=click.Choice(["up", "down", "both"]),
    default="both",
    help="Ancestors, descendants or both.",
)
@click.option("--depth", type=click.IntRange(min=0), help="Generations [default: all].")
@click.option(
    "--format",
    "drawing",
    type=click.Choice(["tree", "mermaid", "dot", "svg", "json"]),
    default="tree",
    show_default=True,
    help="How to draw it.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="At most so many in each direction, nearest first.",
)
@click.option(
    "--offset", type=click.IntRange(min=0), default=0, help="Leave out so many nearest ones."
)
@common_options
@click.pass_obj
def lineage_command(
    settings: Settings,
    name: str,
    direction: str,
    depth: int | None,
    drawing: str,
    limit: int,
    offset: int,
) -> None:
    """Show what NAME was made of (up) and what was made of it (down)."""
    from omnireg.recording import find_record
    from omnireg.registry import Drawing, render

    with settings.open_registry() as book:
        family = book.lineage(
            find_record(book, name).name,
            direction=direction,
            depth=depth,
            limit=limit,
            offset=offset,
        )
    if settings.as_json or drawing == "json":
        print_json(family.to_json())
    else:
        echo(render(family, Drawing(drawing)).rstrip("\n"))
    if family.truncated:
        hint(f"there are more: raise --limit, or go on with --offset {offset + limit}")
