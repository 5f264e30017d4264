"""``omnireg analyze``: what checkpoints are like inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnireg.cli.files import check_files
from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
    progress_bar,
)
from omnireg.errors import ConfigError, EvaluationError, to_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omnireg.analysis.salience import Head, Salience
    from omnireg.analysis.shift import Shift

_FILE = click.Path(path_type=Path)
_SHOWN, _COSTLY = 10, 5


@click.group("analyze")
@common_options
def analyze_command() -> None:
    """Look into checkpoints: how far they moved, which heads matter, where they lie."""


@analyze_command.command("shift")
@click.argument("base")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--plot", type=_FILE, help="Draw Δavg by layer and by kind of module here.")
@click.option("--threads", type=click.IntRange(min=1), help="Workers [default: all cores].")
@common_options
@click.pass_obj
def shift_command(
    settings: Settings, base: str, models: tuple[str, ...], plot: Path | None, threads: int | None
) -> None:
    """Show how far each MODEL moved from BASE, and how much they get in each other's way.

    Δavg is mean |θ − θ₀|. Elements that some models move up and others down are in conflict: a
    merge has to let one of them down there.
    """
    from omnireg.workflows.analysing import record_shift

    check_files(plot=plot)
    with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
        found, recorded = record_shift(
            book, base, models, threads=threads,
            tick=lambda done, total: progress("reading", done, total),
        )  # fmt: skip
    if plot is not None:
        _draw_shift(found, plot)
    if settings.as_json:
        print_json(found.to_json())
        return
    _print_shift(found)
    if not recorded:
        hint(f"\nnot recorded, since not all of them are; type: {to_type('add', 'FOLDER')}")


def _print_shift(found: "Shift") -> None:
    columns = ("model", "Δavg", "‖τ‖/‖θ₀‖", "largest", "moved")
    print_table(
        columns, [(m.name, m.delta_avg, m.relative, m.largest, f"{m.moved:.1%}")
                  for m in found.models],
    )  # fmt: skip
    if found.pairs:
        echo()
        rows = [
            (" · ".join(p.models), p.cosine,
             "" if p.sign_agreement is None else f"{p.sign_agreement:.1%}")
            for p in found.pairs
        ]  # fmt: skip
        print_table(("pair", "cosine", "same sign"), rows)
        echo(f"\nelements in conflict: {found.conflict:.1%} of those that any model moves")
    echo()
    modules = sorted(found.models[0].modules, key=lambda m: -found.models[0].modules[m])[:_SHOWN]
    names = tuple(model.name for model in found.models)
    print_table(
        ("Δavg by module", *names),
        [(module, *(m.modules[module] for m in found.models)) for module in modules],
    )


def _draw_shift(found: "Shift", path: Path) -> None:
    from omnireg import plots

    modules = list(found.models[0].modules)
    layers = range(len(found.conflict_by_layer))
    with plots.chart(path, 12, 4.5, panels=3 if found.pairs else 2) as (left, middle, *right):
        plots.lines(
            left, layers, {m.name: m.layers for m in found.models}, title=f"from {found.base}",
            x="layer", y="Δavg",
        )  # fmt: skip
        plots.bars(
            middle, modules, {m.name: [m.modules[k] for k in modules] for m in found.models},
            title="by kind of module", y="Δavg",
        )  # fmt: skip
        for axes in right:
            series = {" · ".join(p.models): p.layers for p in found.pairs}
            series |= {"elements in conflict": found.conflict_by_layer}
            plots.lines(axes, layers, series, title="cosine, and conflict", x="layer")


@analyze_command.command("heads")
@click.argument("model", required=False)
@click.option("--probe", type=_FILE, help="Questions with options: a file of items (.jsonl).")
@click.option("--mask", default="zero", show_default=True, help="How a head is taken out: zero,"
              " uniform.")  # fmt: skip
@click.option("--logits", type=_FILE, metavar="DIR", help="Compute from stored logits instead.")
@click.option("--answers", type=_FILE, help="With --logits: JSON, id → right letter.")
@click.option("--keep", type=_FILE, metavar="DIR", help="Keep answers and logits here.")
@click.option("--layer", "layers", type=int, multiple=True, help="Only this one.")
@click.option("--limit", type=click.IntRange(min=1), help="Use the first items alone.")
@click.option("--chat-template/--no-chat-template", default=None,
              help="Put prompts into the chat template [default: if there is one].")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=8, show_default=True,
              help="Longest answer, in tokens.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True,
              help="Questions at once.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option("--dtype", help="What to compute in [default: what it is stored in].")
@click.option("--kl", type=click.Choice(["true", "lm-extend"]), default="true",
              show_default=True, help="Which divergence to show and draw.")  # fmt: skip
@click.option("--plot", type=_FILE, help="Draw the figures by layer and head here.")
@common_options
@click.pass_obj
def heads_command(
    settings: Settings, /, model: str | None, probe: Path | None, logits: Path | None,
    answers: Path | None, keep: Path | None, layers: tuple[int, ...], kl: str,
    plot: Path | None, chat_template: bool | None, **how: Any,
) -> None:  # fmt: skip
    """Mask each attention head of MODEL in turn and ask the questions of --probe again.

    Heads that were asked before are not asked again, so it can be stopped and goes on. With
    --logits DIR the figures are computed from original.jsonl and layerLL-headHH.jsonl.
    """
    settings.goes_on = logits is None
    check_files(plot=plot)
    recorded = True
    if logits is not None:
        from omnireg.analysis.salience import from_logits

        if model or probe:
            raise ConfigError("--logits needs neither MODEL nor --probe; leave them out")
        found = from_logits(logits, answers)
    elif model is None or probe is None:
        raise ConfigError("name a MODEL and --probe FILE, or --logits DIR")
    elif answers is not None:
        raise EvaluationError("--answers goes with --logits; a file of items has its answers")
    else:
        from omnireg.evaluation.items import read_items
        from omnireg.workflows.analysing import record_heads

        items = read_items(probe)
        with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
            found, recorded = record_heads(
                book, model, items, folder=keep, layers=layers or None, chat=chat_template,
                tick=lambda done, total: progress("masking", done, total), **how,
            )  # fmt: skip
    if plot is not None:
        _draw_heads(found, kl, plot)
    if settings.as_json:
        print_json(found.to_json())
        return
    _print_heads(found, kl)
    if not recorded:
        hint(f"\nnot recorded, since {model} is not; type: {to_type('add', model)}")


def _print_heads(found: "Salience", kl: str) -> None:
    if found.accuracy is not None:
        echo(
            f"unmasked: accuracy {found.accuracy:.4f}, of probabilities {found.prob_accuracy:.4f}"
            f" (n = {found.n})\n"
        )
    by = (lambda h: -h.kl_true) if kl == "true" else (lambda h: h.kl_lm_extend)
    heads = sorted(found.heads, key=by)[:_SHOWN]
    _print_some(heads)
    echo(f"\nthe {len(heads)} heads of {len(found.heads)} that change answers most")
    if found.accuracy is not None:
        echo()
        costly = sorted(found.heads, key=lambda h: h.accuracy or 0.0)[:_COSTLY]
        _print_some(costly)
        echo(f"\nthe {len(costly)} that cost most accuracy")


def _print_some(heads: "Sequence[Head]") -> None:
    columns = ("layer", "head", "accuracy", "prob_accuracy", "KL (true)", "KL (lm-extend)")
    print_table(
        columns,
        [(h.layer, h.head, h.accuracy, h.prob_accuracy, h.kl_true, h.kl_lm_extend) for h in heads],
    )


def _draw_heads(found: "Salience", kl: str, path: Path) -> None:
    from omnireg import plots

    layers = sorted({h.layer for h in found.heads})
    numbers = sorted({h.head for h in found.heads})
    at = {(h.layer, h.head): h for h in found.heads}
    shown = {"KL (true)": "kl_true"} if kl == "true" else {"KL (lm-extend)": "kl_lm_extend"}
    if found.accuracy is not None:
        shown = {"accuracy": "accuracy", "probability accuracy": "prob_accuracy", **shown}
    width, height = 1.5 + 0.28 * max(len(numbers), 8), 1.5 + 0.22 * max(len(layers), 10)
    with plots.chart(path, width * len(shown), height, panels=len(shown)) as panels:
        for axes, (title, name) in zip(panels, shown.items(), strict=True):
            cells = [
                [getattr(at[layer, n], name) if (layer, n) in at else float("nan") for n in numbers]
                for layer in layers
            ]
            plots.heat_map(
                axes, cells, rows=list(map(str, layers)), columns=list(map(str, numbers)),
                title=title, row_name="layer", column_name="head",
            )  # fmt: skip


@analyze_command.command("tsne")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--reference", required=True, metavar="REF", help="What they are compared with.")
@click.option("--method", default="tsne", show_default=True, help="tsne, or pca.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of t-SNE.")
@click.option("--plot", type=_FILE, help="Draw the points here.")
@click.option("--threads", type=click.IntRange(min=1), help="Workers [default: all cores].")
@common_options
@click.pass_obj
def tsne_command(
    settings: Settings, models: tuple[str, ...], reference: str, method: str, seed: int,
    plot: Path | None, threads: int | None,
) -> None:  # fmt: skip
    """Place each MODEL by how far every one of its tensors is from REF: one point each."""
    from omnireg.workflows.analysing import record_map

    check_files(plot=plot)
    with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
        found, recorded = record_map(
            book, models, reference, method=method, seed=seed, threads=threads,
            tick=lambda done, total: progress("reading", done, total),
        )  # fmt: skip
    if plot is not None:
        from omnireg import plots

        with plots.chart(plot, 6, 5) as (axes,):
            plots.points(axes, found.places, title=f"{method}, distances from {found.reference}")
    if settings.as_json:
        print_json(found.to_json())
        return
    rows = [(m["name"], m["x"], m["y"], m["distance"]) for m in found.to_json()["models"]]
    print_table(("model", "x", "y", f"‖θ − {found.reference}‖₂"), rows)
    if found.explained:
        first, second = found.explained
        echo(f"\nx has {first:.1%} of the variance, y {second:.1%}")
    if not recorded:
        hint(f"\nnot recorded, since not all of them are; type: {to_type('add', 'FOLDER')}")
