"""A page of headings, texts, tables and drawings, as Markdown or as one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from omnireg.boundary.text import one_line

#: a longer value of a table is cut
_LONGEST = 400
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto } svg { max-width: 100%; height: auto }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; None is an empty one."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Code:
    """Text that keeps its lines."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG, and what Markdown has instead: a file to point to, or the source."""

    svg: str
    title: str
    file: str | None = None
    source: Code | None = None


Block = Heading | Text | Table | Code | Drawing


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown; a drawing with neither file nor source is left out."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def as_html(blocks: Sequence[Block], title: str) -> str:
    """Return the page as one HTML file that needs nothing else."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {one_line(block.text, None)}"
        case Text():
            return block.text
        case Code():
            return f"```{block.language}\n{block.text.rstrip()}\n```"
        case Drawing():
            if block.file:
                return f"![{block.title}]({block.file})"
            return _markdown(block.source) if block.source else ""
        case Table():
            head = [_row(block.columns), _row(["---"] * len(block.columns))]
            return "\n".join([*head, *map(_row, block.rows)])


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(_cell(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{escape(block.text)}</p>"
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Drawing():
            return block.svg[block.svg.index("<svg") :] if "<svg" in block.svg else ""
        case Table():
            head = "".join(f"<th>{escape(column)}</th>" for column in block.columns)
            rows = "".join(f"<tr>{''.join(map(_data, row))}</tr>\n" for row in block.rows)
            return f"<table><tr>{head}</tr>\n{rows}</table>"


def _data(cell: Any) -> str:
    number = isinstance(cell, int | float)
    return f"<td{' class=number' if number else ''}>{escape(_cell(cell))}</td>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value), _LONGEST)
