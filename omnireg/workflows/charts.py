"""Charts of what was searched, for people who would rather look than read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from omnireg import plots
from omnireg.errors import ConfigError
from omnireg.workflows.grid import Point
from omnireg.workflows.trials import Trial


class Scored(Protocol):
    """A setting and what it is worth."""

    @property
    def point(self) -> Point:
        """The parameters."""

    @property
    def mean(self) -> float:
        """What they are worth."""


def surface(trials: Sequence[Scored], path: Path, title: str) -> None:
    """Draw the mean over the two parameters with most values, the best of all others.

    Raises:
        ConfigError: matplotlib is missing, nothing varies, or the file cannot be written.
    """
    varied = {name: sorted({_key(t.point[name]) for t in trials}) for name in trials[0].point}
    axes = sorted(varied, key=lambda name: -len(varied[name]))[:2]
    if not axes or len(varied[axes[0]]) < 2:
        raise ConfigError("a plot needs a parameter with more than one value; give --grid")
    across = axes[0]
    up = axes[1] if len(axes) > 1 else across
    columns = [value for _, value in varied[across]]
    rows = [value for _, value in varied[up]] if up != across else [None]
    cells = [
        [
            max(
                (
                    t.mean
                    for t in trials
                    if t.point[across] == column and (row is None or t.point[up] == row)
                ),
                default=float("nan"),
            )
            for column in columns
        ]
        for row in rows
    ]
    with plots.chart(path, 1.5 + 0.9 * len(columns), 1.6 + 0.6 * len(rows)) as (panel,):
        plots.heat_map(
            panel,
            cells,
            rows=["" if row is None else str(row) for row in rows],
            columns=[str(column) for column in columns],
            title=title,
            row_name=up if up != across else "",
            column_name=across,
        )


def curve(trials: Sequence[Trial], path: Path, parameter: str) -> None:
    """Draw every value over the one parameter that varies.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    in_order = sorted(trials, key=lambda t: _key(t.point[parameter]))
    across = [t.point[parameter] for t in in_order]
    if not all(isinstance(value, int | float) for value in across):
        across = [str(value) for value in across]
    names = list(in_order[0].values)
    series = {name or "score": [t.values[name] for t in in_order] for name in names}
    errors = {name or "score": [t.errors.get(name) for t in in_order] for name in names}
    if len(names) > 1:
        series["mean"] = [t.mean for t in in_order]
    with plots.chart(path, 6, 4) as (panel,):
        plots.lines(panel, across, series, errors=errors, x=parameter, y="score")


def _key(value: Any) -> tuple[bool, Any]:
    """Sort numbers before names."""
    number = isinstance(value, int | float)
    return (not number, value if number else str(value))
