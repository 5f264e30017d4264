"""All that is known of how good a checkpoint is, on one page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

from omnireg import plots
from omnireg.boundary.files import write_text
from omnireg.boundary.text import shown
from omnireg.errors import ConfigError
from omnireg.evaluation.abilities import ABILITIES, ability_of
from omnireg.recording import find_record
from omnireg.registry import (
    Analysis,
    Checkpoint,
    Comparison,
    Kind,
    Lineage,
    Registry,
    Role,
    Row,
    Score,
    Signature,
    render,
)
from omnireg.registry import Drawing as Diagram
from omnireg.workflows.pages import (
    Block,
    Code,
    Drawing,
    Heading,
    Table,
    Text,
    as_html,
    as_markdown,
)

OTHER = "other"
#: so many siblings are shown, the best of the newest that share a parent
_MOST_SIBLINGS, _LOOKED_AT = 12, 500


@dataclass(frozen=True)
class AbilityRow:
    """What a checkpoint kept of an ability, against one other.

    Attributes:
        ability: one of :data:`ABILITIES`, another one that was recorded, or ``other``.
        benchmarks: how many benchmarks and metrics say so.
        gain: mean gain in points; losses are negative also where lower is better.
        retention: mean retention, 1 being all of it; None where no reference allows one.
    """

    ability: str
    benchmarks: int
    gain: float
    retention: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class Against:
    """A checkpoint beside one that it is compared with.

    Attributes:
        relation: ``base``, ``parent`` or ``sibling``.
        comparison: on every benchmark that both have.
        abilities: the same by ability.
    """

    relation: str
    comparison: Comparison
    abilities: tuple[AbilityRow, ...]

    @property
    def name(self) -> str:
        """Who it is compared with."""
        return self.comparison.against

    @property
    def retention(self) -> float | None:
        """The mean over the benchmarks."""
        return _mean_retention(self.comparison.rows, self.comparison.names[0])

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return {
            "relation": self.relation,
            "name": self.name,
            "retention": self.retention,
            "abilities": [row.to_json() for row in self.abilities],
            **self.comparison.to_json(),
        }


@dataclass(frozen=True)
class Report:
    """What is known of a checkpoint.

    Attributes:
        record: the checkpoint.
        scores: its scores.
        against: base, parents and siblings that share a benchmark with it.
        signatures: of failure.
        analyses: of its weights and heads.
        lineage: its ancestors.
        more_siblings: how many siblings share a benchmark too, and are weaker than those compared.
    """

    record: Checkpoint
    scores: tuple[Score, ...]
    against: tuple[Against, ...]
    signatures: tuple[Signature, ...]
    analyses: tuple[Analysis, ...]
    lineage: Lineage
    more_siblings: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the sections of ``omnireg report --json``."""
        return {
            "checkpoint": self.record.to_json(),
            "scores": [score.to_json() for score in self.scores],
            "against": [each.to_json() for each in self.against],
            "signatures": [signature.to_json() for signature in self.signatures],
            "analyses": [analysis.to_json() for analysis in self.analyses],
            "lineage": render(self.lineage, Diagram.MERMAID),
        }

    def markdown(self, chart: str | None = None) -> str:
        """Return the report as Markdown; ``chart`` is a file that it points to."""
        return as_markdown(list(self._blocks(chart, drawn=chart is not None)))

    def html(self) -> str:
        """Return the report as one HTML file, with the chart in it where matplotlib is there."""
        return as_html(list(self._blocks(None, drawn=True)), self.record.name)

    def draw(self, path: Any) -> None:
        """Draw retention by ability, against base and parents, into a file.

        Raises:
            ConfigError: nothing can be compared, or matplotlib is missing.
        """
        shown = [each for each in self.against if each.relation != "sibling"] or self.against
        if not shown:
            raise ConfigError(
                f"nothing to draw: {self.record.name} shares no benchmark with its base, parents or"
                " siblings"
            )
        abilities = _in_order({row.ability for each in shown for row in each.abilities})
        series = {
            f"{each.relation} {each.name}": [_retention(each, ability) for ability in abilities]
            for each in shown
        }
        with plots.chart(path, 3 + 0.9 * len(abilities), 4.2) as (axes,):
            plots.bars(
                axes, abilities, series, title=f"{self.record.name}: what was kept",
                y="% of the reference", line=100,
            )  # fmt: skip

    def _blocks(self, chart: str | None, *, drawn: bool) -> Iterator[Block]:
        record = self.record
        yield Heading(record.name, 1)
        yield Table(("", ""), list(_facts(record)))
        yield Heading("What it was made of")
        source = Code(render(self.lineage, Diagram.MERMAID), "mermaid")
        yield Drawing(render(self.lineage, Diagram.SVG), "lineage", source=source)
        yield Heading("What was kept")
        if self.against:
            yield from self._kept(chart, drawn=drawn)
        else:
            yield Text(
                "No benchmark was measured both here and on its base, its parents or its siblings."
            )
        yield Heading("Signatures of failure")
        yield from self._failures()
        yield Heading("Scores")
        if self.scores:
            yield _score_table(self.scores)
        else:
            yield Text("None was recorded.")
        if self.analyses:
            yield Heading("Analyses")
            yield Table(("analysis", "against", "found"), [_found(a) for a in self.analyses])

    def _kept(self, chart: str | None, *, drawn: bool) -> Iterator[Block]:
        abilities = _in_order({row.ability for each in self.against for row in each.abilities})
        columns = ("against", *abilities, "mean")
        rows = [
            [
                f"{each.relation} {each.name}",
                *(_percent(_retention(each, ability)) for ability in abilities),
                _percent(None if each.retention is None else 100 * each.retention),
            ]
            for each in self.against
        ]
        yield Text(
            "Mean retention by ability: its score as a share of the other's, or the other way"
            " round where lower is better."
        )
        yield Table(columns, rows)
        if self.more_siblings:
            yield Text(f"{self.more_siblings} more siblings are not shown: these are the best.")
        if drawn:
            svg = BytesIO()
            try:
                self.draw(svg)
                yield Drawing(svg.getvalue().decode(), "retention by ability", chart)
            except ConfigError:
                yield Text("A chart needs matplotlib: pip install 'omnireg[plots]'.")
        for each in self.against:
            if each.relation == "base":
                yield Heading(f"Against {each.name}, benchmark by benchmark", 3)
                yield _benchmark_table(each.comparison)

    def _failures(self) -> Iterator[Block]:
        if not self.signatures:
            yield Text("None in the scores that are recorded.")
            return
        columns = ("signature", "benchmark", "observed", "threshold", "against")
        yield Table(
            columns,
            [(s.signature, s.benchmark, s.observed, s.threshold, s.against)
             for s in self.signatures],
        )  # fmt: skip


def report(book: Registry, name: str, *, source: str | None = None) -> Report:
    """Put together what the registry knows of a checkpoint.

    Args:
        book: the registry.
        name: the checkpoint.
        source: look at scores alone whose source, or the program that measured them, holds this.

    Raises:
        RegistryError: it is not recorded.
    """
    record = find_record(book, name)
    relations = _relatives(record)
    siblings = [s for s in _best_siblings(book, record, source) if s not in relations]
    relations |= dict.fromkeys(siblings[:_MOST_SIBLINGS], "sibling")
    found = []
    for other, relation in relations.items():
        comparison = book.compare(record.name, against=other, source=source)
        if comparison.rows:
            found.append(Against(relation, comparison, _abilities(comparison)))
    return Report(
        record,
        tuple(s for s in book.scores(record.name) if source is None or source in s.measured_by),
        tuple(found),
        tuple(book.check_scores(record.name)),
        tuple(book.analyses(record.name)),
        book.lineage(record.name, direction="up", depth=3),
        max(len(siblings) - _MOST_SIBLINGS, 0),
    )


def _relatives(record: Checkpoint) -> dict[str, str]:
    """Return base and parents by name, the base first."""
    bases = (Role.BASE, Role.FINETUNED_FROM)
    found = {parent.name: "base" for parent in record.parents if parent.role in bases}
    for parent in record.parents:
        found.setdefault(parent.name, "parent")
    return found


def _best_siblings(book: Registry, record: Checkpoint, source: str | None) -> list[str]:
    """Return siblings that share a benchmark, those first that reach most of this one's scores."""
    siblings = _siblings(book, record)
    if not siblings:
        return []
    rows = book.compare(siblings, against=record.name, source=source).rows
    reached: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.values.items():
            reached.setdefault(name, []).append(value.retention or 0.0)
    return sorted(reached, key=lambda name: -fmean(reached[name]))


def _siblings(book: Registry, record: Checkpoint) -> list[str]:
    """Return others made of the same models, or fine-tuned from the same base."""
    own = _made_of(record)
    if not own:
        return []
    tuned = record.kind is Kind.FINETUNED
    near = book.checkpoints(parent=min(own), limit=_LOOKED_AT)
    return [
        each.name
        for each in near
        if each.name != record.name
        and (each.kind is Kind.FINETUNED) == tuned
        and _made_of(each) == own
    ]


def _made_of(record: Checkpoint) -> frozenset[str]:
    wanted = Role.FINETUNED_FROM if record.kind is Kind.FINETUNED else Role.MODEL
    return frozenset(parent.name for parent in record.parents if parent.role == wanted)


def _abilities(comparison: Comparison) -> tuple[AbilityRow, ...]:
    name = comparison.names[0]
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows:
        ability = row.ability or ability_of(row.benchmark) or OTHER
        groups.setdefault(ability, []).append(row)
    return tuple(
        AbilityRow(
            ability,
            len(groups[ability]),
            fmean(
                row.values[name].delta * (1 if row.higher_is_better else -1)
                for row in groups[ability]
            ),
            _mean_retention(groups[ability], name),
        )
        for ability in _in_order(groups)
    )


def _mean_retention(rows: Sequence[Row], name: str) -> float | None:
    found = [r for row in rows if (r := row.values[name].retention) is not None]
    return fmean(found) if found else None


def _in_order(abilities: Mapping[str, Any] | set[str]) -> list[str]:
    known = [ability for ability in ABILITIES if ability in abilities]
    others = sorted(a for a in abilities if a not in ABILITIES and a != OTHER)
    return [*known, *others, *([OTHER] if OTHER in abilities else [])]


def _retention(each: Against, ability: str) -> float | None:
    row = next((row for row in each.abilities if row.ability == ability), None)
    return None if row is None or row.retention is None else 100 * row.retention


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _facts(record: Checkpoint) -> Iterator[tuple[str, str]]:
    yield "kind", str(record.kind)
    if record.fingerprint:
        yield "fingerprint", record.fingerprint
    if record.modalities:
        yield "modalities", ", ".join(record.modalities)
    if record.strategy:
        yield "strategy", record.strategy
    for parent in record.parents:
        weight = "" if parent.weight is None else f", weight {parent.weight:g}"
        yield f"parent ({parent.role})", f"{parent.name}{weight}"
    yield "recorded", f"{record.created_at:%Y-%m-%d %H:%M} UTC"


def _benchmark_table(comparison: Comparison) -> Table:
    name = comparison.names[0]
    rows = []
    for row in comparison.rows:
        value = row.values[name]
        arrow = "=" if value.better is None else "↑" if value.better else "↓"
        kept = _percent(None if value.retention is None else 100 * value.retention)
        rows.append(
            (
                row.benchmark + ("" if row.higher_is_better else " (lower is better)"),
                row.metric, row.reference, value.value, f"{value.delta:+.4g} {arrow}", kept,
                "partial" if value.partial else "",
            )
        )  # fmt: skip
    return Table(
        ("benchmark", "metric", comparison.against, name, "difference", "retention", ""), rows
    )


def _score_table(scores: Sequence[Score]) -> Table:
    columns = ("benchmark", "metric", "value", "± stderr", "n", "shots", "measured by")
    return Table(
        columns,
        [
            (
                s.benchmark, s.metric + (f" ({s.filter})" if s.filter else ""), s.value, s.stderr,
                f"{s.n} (partial)" if s.partial else s.n, s.n_shot,
                s.measured_by,
            )
            for s in scores
        ],
    )  # fmt: skip


def _found(analysis: Analysis) -> tuple[str, str | None, str]:
    said = {"shift": _moved, "heads": _masked, "tsne": _placed}.get(analysis.kind, ", ".join)
    try:
        told = said(analysis.result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # a manifest may declare an analysis of this kind with whatever it found
        told = ", ".join(analysis.result)
    return analysis.kind, analysis.against, told


def _moved(result: Mapping[str, Any]) -> str:
    return (
        f"Δavg {result['delta_avg']:.4g}, ‖τ‖/‖θ₀‖ {result['relative']:.4g},"
        f" {result['moved']:.1%} of the elements moved"
    )


def _masked(result: Mapping[str, Any]) -> str:
    top = max(result["heads"], key=lambda head: head["kl_true"])
    said = (
        f"{len(result['heads'])} heads; masking head {top['head']} of layer"
        f" {top['layer']} changes answers most (KL {top['kl_true']:.4g})"
    )
    if result["accuracy"] is not None:
        costly = min(result["heads"], key=lambda head: head["accuracy"])
        said += (
            f", head {costly['head']} of layer {costly['layer']} costs most accuracy"
            f" ({result['accuracy']:.4g} → {costly['accuracy']:.4g})"
        )
    return said


def _placed(result: Mapping[str, Any]) -> str:
    return f"at ({result['x']:.4g}, {result['y']:.4g})"


def write(found: Report, out: Path | None, form: str, plot: Path | None) -> str:
    """Return the report's text, having written chart and text where they should go.

    Raises:
        ConfigError: a file cannot be written, or there is nothing to draw.
    """
    if plot is not None:
        found.draw(plot)
    page = found.html() if form == "html" else found.markdown(str(plot) if plot else None)
    text = shown(page)
    if out is not None:
        write_text(out, text)
    return text
