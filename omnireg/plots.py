"""Charts: the only door to matplotlib, which is imported when one is drawn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.boundary.files import replacing
from omnireg.boundary.text import one_line
from omnireg.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: from this share of the range up colours are so light that numbers on them are black
_LIGHT = 0.6
#: maps with more cells have no numbers in them
_READABLE = 200
#: maps of smaller numbers show more places
_LARGE = 0.1
#: longer names are cut
_LONGEST = 48
_NAN = float("nan")
#: equal content is equal bytes, and a dollar sign in a name is one
_EVER: dict[Any, Any] = {
    "svg.hashsalt": "omnireg", "svg.fonttype": "path", "text.parse_math": False
}  # fmt: skip
_ENDINGS = (".png", ".svg", ".pdf", ".jpg", ".webp")
#: what an SVG does not say of itself: when it was made, and links to vocabularies
_SILENT = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def check(path: Path | None) -> None:
    """Refuse a chart that could not be drawn, before the work for it.

    Raises:
        ConfigError: matplotlib is missing, or the file's ending names no format.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib: pip install 'omnireg[plots]'")
    if path is not None and path.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"{path}: name a file that ends in one of {', '.join(_ENDINGS)}")


@contextmanager
def chart(path: Any, width: float, height: float, panels: int = 1) -> Iterator[list["Axes"]]:
    """Yield axes side by side to draw on, and write the figure where it should go.

    Args:
        path: a file whose ending says the format, or an open binary file for SVG.
        width: in inches.
        height: in inches.
        panels: how many axes.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    check(path if isinstance(path, Path) else None)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_EVER):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        yield list(axes)
        if not isinstance(path, Path):
            figure.savefig(path, format="svg", metadata=_SILENT)
            return
        form, drawn = path.suffix.lower().removeprefix("."), BytesIO()
        figure.savefig(drawn, format=form, dpi=150, metadata=_SILENT if form == "svg" else None)
    with replacing(path) as stream:  # drawn before: some formats want to go back in a file
        stream.write(drawn.getbuffer())


def heat_map(
    axes: "Axes",
    cells: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    row_name: str = "",
    column_name: str = "",
    diverging: bool = False,
) -> None:
    """Draw cells as colours, with their numbers where there is room."""
    numbers = [value for line in cells for value in line if value == value]
    bound = max((abs(value) for value in numbers), default=1.0) if diverging else None
    image = axes.imshow(
        cells, aspect="auto", origin="lower", cmap="RdBu" if diverging else "viridis",
        vmin=-bound if bound else None, vmax=bound,
    )  # fmt: skip
    _ticks(axes, "x", columns)
    _ticks(axes, "y", rows)
    axes.set_xlabel(_label(column_name))
    axes.set_ylabel(_label(row_name))
    axes.set_title(_label(title))
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)
    if len(numbers) > _READABLE or not numbers:
        return
    light_from = min(numbers) + _LIGHT * (max(numbers) - min(numbers))
    places = 3 if max(map(abs, numbers)) >= _LARGE else 5
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            dark = not diverging and value <= light_from
            axes.text(
                x, y, "" if value != value else f"{value:.{places}f}", ha="center", va="center",
                fontsize=8 if places == 3 else 6, color="white" if dark else "black",
            )  # fmt: skip


def _ticks(axes: "Axes", which: str, names: Sequence[str]) -> None:
    """Name rows or columns; of many only some."""
    step = max(1, -(-len(names) // 32))
    place = axes.set_xticks if which == "x" else axes.set_yticks
    place(range(0, len(names), step), list(map(_label, names))[::step])


def _label(text: str) -> str:
    return one_line(text, _LONGEST)


def lines(
    axes: "Axes",
    across: Sequence[Any],
    series: Mapping[str, Sequence[float | None]],
    *,
    errors: Mapping[str, Sequence[float | None]] | None = None,
    title: str = "",
    x: str = "",
    y: str = "",
) -> None:
    """Draw one line for each series, with error bars where they are known."""
    for name, values in series.items():
        bars = [e or 0.0 for e in (errors or {}).get(name, ())] or None
        known = [_NAN if value is None else value for value in values]
        axes.errorbar(
            across, known, yerr=bars, marker="o", markersize=3, capsize=2, label=_label(name)
        )
    axes.set_xlabel(_label(x))
    axes.set_ylabel(_label(y))
    axes.set_title(_label(title))
    axes.grid(alpha=0.3)
    if all(isinstance(value, int) for value in across):
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    if len(series) > 1:
        axes.legend(fontsize=8)


def bars(
    axes: "Axes",
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str = "",
    y: str = "",
    line: float | None = None,
) -> None:
    """Draw bars side by side around each group's name; ``line`` marks a value to compare with."""
    width = 0.8 / max(len(series), 1)
    there = [[v[place] is not None for v in series.values()] for place in range(len(groups))]
    for number, (name, values) in enumerate(series.items()):
        places = [
            place + width * (sum(known[:number]) + 0.5 - sum(known) / 2)
            for place, known in enumerate(there)
        ]
        heights = [_NAN if value is None else value for value in values]
        axes.bar(places, heights, width * 0.95, label=_label(name))
    if line is not None:
        axes.axhline(line, color="black", linewidth=0.8)
    axes.set_xticks(
        range(len(groups)), list(map(_label, groups)), rotation=30, ha="right", fontsize=8
    )
    axes.set_ylabel(y)
    axes.set_title(_label(title))
    if len(series) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def points(
    axes: "Axes", places: Mapping[str, tuple[float, float]], *, title: str = "", x: str = "",
    y: str = "",
) -> None:  # fmt: skip
    """Draw named points."""
    for name, (left, up) in places.items():
        axes.scatter([left], [up], s=40)
        axes.annotate(
            _label(name), (left, up), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel(_label(x))
    axes.set_ylabel(_label(y))
    axes.set_title(_label(title))
    axes.margins(0.2)
    axes.grid(alpha=0.3)
