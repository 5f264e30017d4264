"""Charts of what was searched, for people who would rather look than read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnireg.errors import ConfigError
from omnireg.workflows.calibrating import Trial

#: from this share of the range up colours are so light that numbers on them are black
_LIGHT = 0.6


def heat_map(trials: Sequence[Trial], path: Path, title: str) -> None:
    """Draw the mean over the two parameters with most values, the best of all others.

    Raises:
        ConfigError: matplotlib is missing, nothing varies, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("a plot needs matplotlib: pip install 'omnireg[plots]'") from exc
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
    figure = Figure(figsize=(1.5 + 0.9 * len(columns), 1.6 + 0.6 * len(rows)), layout="constrained")
    plot = figure.subplots()
    image = plot.imshow(cells, aspect="auto", origin="lower", cmap="viridis")
    plot.set_xticks(range(len(columns)), [str(column) for column in columns])
    plot.set_xlabel(across)
    plot.set_yticks(range(len(rows)), ["" if row is None else str(row) for row in rows])
    plot.set_ylabel(up if up != across else "")
    plot.set_title(title)
    numbers = [value for line in cells for value in line if value == value]
    light_from = min(numbers) + _LIGHT * (max(numbers) - min(numbers))
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            light = value > light_from
            plot.text(
                x, y, f"{value:.3f}", ha="center", va="center", fontsize=8,
                color="black" if light else "white",
            )  # fmt: skip
    figure.colorbar(image, ax=plot)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot write {path}: {exc}") from exc


def _key(value: Any) -> tuple[bool, Any]:
    """Sort numbers before names."""
    number = isinstance(value, int | float)
    return (not number, value if number else str(value))
