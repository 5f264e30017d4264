"""Write the reference pages that follow from the code: ``python docs/generate.py [--check]``."""

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from omnireg.cli import COMMANDS, cli
from omnireg.cli.merge_options import MERGEKIT
from omnireg.cli.output import DefaultGroup, Settings, common_options
from omnireg.cli.plugins import _described
from omnireg.plugins.host import PluginHost
from omnireg.registry import Registry
from omnireg.registry.declare.manifest import schema

DOCS = Path(__file__).parent
_ROOT = DOCS.parent
_DECISIONS = DOCS / "explanation" / "decisions"
_TREE, _TREE_END = "<!-- modules: written by docs/generate.py -->", "<!-- end of modules -->"
_NOTE = "<!-- Written by docs/generate.py from the code. Do not edit. -->"
_USUAL = {"help", "version"}


def cli_page() -> str:
    """Return the page of every command, its arguments and its options."""
    common = _common()
    root = click.Context(cli, info_name="omnireg")
    parts = [
        _NOTE,
        "# Command line",
        "Data goes to stdout; progress, hints, warnings and errors go to stderr. "
        "Exit codes: 0 done, 1 it failed (one line `error: …`), 2 wrong usage, 130 interrupted, "
        "143 asked to end (SIGTERM).",
        "Control characters and characters that turn the reading order are printed as escapes such "
        "as `\\x1b` and `\\u202e`, in JSON and YAML as those of the format. Tables and pages cut "
        "values of more than 400 characters; JSON and exports hold all of them.",
        "## Options of every command",
        "They may stand right after `omnireg` or at the end of the line.",
        _options(common),
    ]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _sections(command, root, 2, {option.name for option in common})
    return "\n\n".join(parts) + "\n"


def strategies_page() -> str:
    """Return the page of omnireg's own strategies and their parameters."""
    parts = [
        _NOTE,
        "# Strategies",
        "The merge methods that come with omnireg. mergekit's own methods can be used too: type"
        " `omnireg strategies` for all of them. What each one computes is in"
        " [Methods](../explanation/methods.md).",
        "Scopes: `shared` is one value for the whole merge and stands in the top-level"
        " `parameters:`. `input` and `non_base` may also stand under one model; `non_base` leaves"
        " the base out. A value may be a number, a list (a gradient over the layers), or a list of"
        " `{filter, value}`, as in mergekit.",
    ]
    strategies = PluginHost().methods().values()
    for strategy in strategies:
        if strategy.origin.distribution == "omnireg":
            parts += _strategy(_described(strategy), strategy.load())
    return "\n\n".join(parts) + "\n"


def manifest_schema() -> str:
    """Return the JSON schema of manifests."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def cost_page() -> str:
    """Return what modality extension costs, as the shipped registry has it."""
    with Registry(DOCS.parent / "registry.db") as book:
        return "\n\n".join(_costs(book)) + "\n"


def _costs(book: Registry) -> Iterator[str]:
    yield _NOTE
    yield "# What modality extension costs"
    yield (
        "Scores of arXiv 2506.01872 as `registry.db` holds them, each beside the model it was made"
        " of: ↑ better, ↓ worse, = equal, whichever way a benchmark counts. Ask for any of them:"
        ' `omnireg --registry registry.db compare NAME --against REF --source "Table 3"`.'
    )
    yield "## Extending one language model (Table 3)"
    yield (
        "Seeing adds knowledge (MMLU-Pro) and costs reasoning and instructions. The 72B model loses"
        " less of MATH and GPQA than the 7B ones, and more of IFEval and of HumanEval+ at one try."
        " LLaVA-OneVision's 0 on HumanEval+ is a lost ability, or answers that were not recognised;"
        " the paper does not say."
    )
    for base, extended in _EXTENDED.items():
        yield _compared(book, extended, base, "Table 3")
    yield "## Merging them back (Tables 4 and 5)"
    yield (
        "Merged language models keep most of the base's; weighting by Δavg keeps what was learned"
        " about video better than the plain average does. What the base loses in reasoning comes"
        " back only in part."
    )
    yield _compared(book, _MERGED, "Qwen/Qwen2-7B-Instruct", "Table 4")
    yield _compared(
        book, ["lm-extend/weighted-text-vl-video-si", "lm-extend/average-text-vl-video-si"],
        "Qwen/Qwen2-VL-7B-Instruct", "Table 5",
    )  # fmt: skip
    yield "## What fine-tuning costs against what merging costs (Table 7)"
    yield _compared(book, ["Qwen/Qwen2.5-Omni-7B"], "Qwen2.5-7B", "Table 7")
    yield _compared(
        book, ["lm-extend/weighted-text-vl-video-si"], "Qwen/Qwen2-7B-Instruct", "Table 7"
    )  # fmt: skip
    yield (
        "In points the merged model loses less than half of what omni-modal fine-tuning loses"
        " (the paper's appendix rounds the means to −6.3 and −2.6). As a share of the reference the"
        " two are close. The base of the fine-tuned model is another one, and its figures are"
        " probably copied from its README: see the notes in `docs/manifests`."
    )


def _compared(book: Registry, names: Sequence[str], against: str, source: str) -> str:
    """Return a table of models beside their reference, with the means of their differences."""
    found = book.compare(names, against=against, source=source)
    rows = [
        [
            row.benchmark + ("" if row.higher_is_better else " (lower is better)"),
            row.metric,
            f"{row.reference:g}",
            *(_difference(row.values.get(name)) for name in found.names),
        ]
        for row in found.rows
    ]
    means = [f"{found.mean[name].delta:+.4g}" if name in found.mean else "" for name in found.names]
    shares = [
        f"{found.mean[name].relative:+.1%}" if name in found.mean else "" for name in found.names
    ]
    rows += [["**mean gain, points**", "", "", *means], ["**of the reference**", "", "", *shares]]
    return _table(("benchmark", "metric", against, *found.names), rows)


def _difference(value: Any) -> str:
    if value is None:
        return "–"
    arrow = "=" if value.better is None else "↑" if value.better else "↓"
    return f"{value.value:g} {arrow} {value.delta:+.4g}"


#: base → what extends it
_EXTENDED = {
    "Qwen/Qwen2-7B-Instruct": [
        "Qwen/Qwen2-VL-7B-Instruct", "lmms-lab/LLaVA-Video-7B-Qwen2",
        "lmms-lab/llava-onevision-qwen2-7b-si",
    ],
    "Qwen/Qwen2-72B-Instruct": ["Qwen/Qwen2-VL-72B-Instruct"],
    "lmsys/vicuna-7b-v1.5": ["llava-hf/llava-1.5-7b-hf"],
    "Qwen/Qwen-7B-Chat": ["Qwen/Qwen2-Audio-7B-Instruct"],
}  # fmt: skip
_MERGED = [
    "lm-extend/average-vl-video", "lm-extend/average-text-vl-video-si",
    "lm-extend/weighted-text-vl-video-si",
]  # fmt: skip


#: path below docs/ → what stands in it
def decisions_page() -> str:
    """Return the index of the decisions, newest first."""
    files = sorted(_DECISIONS.glob("0*.md"), reverse=True)
    rows = "\n".join(_decision(file) for file in files)
    return (
        f"{_NOTE}\n\n# Decisions\n\nWhat was decided, and why. A decision is never rewritten: a"
        " later one supersedes it. To add one, copy the last file, number it, and run"
        " `python docs/generate.py`.\n\n"
        f"| no. | decision | date | status |\n| --- | --- | --- | --- |\n{rows}\n"
    )


def _decision(file: Path) -> str:
    title, status, *_ = (line for line in file.read_text(encoding="utf-8").splitlines() if line)
    number, _, what = title.removeprefix("# ").partition(". ")
    date, _, state = status.partition(" · ")
    return f"| {number} | [{what}]({file.name}) | {date} | {state} |"


def contributing_page() -> str:
    """Return CONTRIBUTING.md with its table of modules as their docstrings say."""
    text = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(_TREE)
    _, _, after = rest.partition(_TREE_END)
    packages = sorted((_ROOT / "omnireg").glob("*/__init__.py"))
    modules = sorted(m for m in (_ROOT / "omnireg").glob("*.py") if not m.name.startswith("__"))
    rows = [f"| `omnireg/{file.parent.name}/` | {_first_sentence(file)} |" for file in packages]
    rows += [f"| `omnireg/{file.name}` | {_first_sentence(file)} |" for file in modules]
    table = "\n".join(["| path | what is there |", "| --- | --- |", *rows])
    return f"{before}{_TREE}\n{table}\n{_TREE_END}{after}"


def _first_sentence(module: Path) -> str:
    said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(said.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph)[0].replace("``", "`")


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/strategies.md": strategies_page,
    "reference/manifest.schema.json": manifest_schema,
    "explanation/modality-extension.md": cost_page,
    "explanation/decisions/index.md": decisions_page,
    "../CONTRIBUTING.md": contributing_page,
}


def stale() -> list[str]:
    """Return the generated pages that differ from what the code says now."""
    return [
        name
        for name, page in PAGES.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != page()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` return 1 if any of them is stale."""
    if list(arguments) == ["--check"]:
        found = stale()
        if found:
            click.echo(f"stale: {', '.join(found)}; run: python docs/generate.py", err=True)
        return int(bool(found))
    if arguments:
        click.echo("usage: python docs/generate.py [--check]", err=True)
        return 2
    for name, page in PAGES.items():
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(page(), encoding="utf-8")
    return 0


def _common() -> list[click.Option]:
    decorated: Any = common_options(lambda: None)
    return list(reversed(decorated.__click_params__))


def _sections(
    command: click.Command, parent: click.Context, level: int, common: set[str | None]
) -> Iterator[str]:
    context = click.Context(command, info_name=command.name, parent=parent, obj=Settings())
    yield f"{'#' * level} {context.command_path}"
    yield "```text\n" + "\n".join(_usage(command, context)) + "\n```"
    yield _prose(command.help or "")
    options = [p for p in command.params if isinstance(p, click.Option)]
    own = [p for p in options if p.name not in common and p.name not in _USUAL]
    yield from _option_tables(command, own)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            if not child.hidden:
                yield from _sections(child, context, level + 1, common)


def _usage(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield how to type a command; of a group also what it does without a subcommand's name."""
    if isinstance(command, DefaultGroup):
        usual = command.commands[command.default]
        yield " ".join([context.command_path, *usual.collect_usage_pieces(context)])
    yield " ".join([context.command_path, *command.collect_usage_pieces(context)])


def _option_tables(command: click.Command, own: list[click.Option]) -> Iterator[str]:
    foreign = [option for option in own if option in MERGEKIT]
    ours = [option for option in own if option not in MERGEKIT]
    if ours:
        yield _options(ours)
    if foreign:
        yield (
            "Options of mergekit's that it reads with `--engine mergekit`, or where it plans the"
            " merge itself (slices, modules, tokenizer surgery, adapters):"
        )
        yield _options(foreign)


def _options(options: Iterable[click.Option]) -> str:
    return _table(("option", "meaning"), ((_flags(o), _meaning(o)) for o in options))


def _flags(option: click.Option) -> str:
    flags = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return f"`{flags}`"
    kind = option.type
    if option.metavar:
        value = option.metavar
    elif isinstance(kind, click.Choice):
        value = "|".join(str(choice) for choice in kind.choices)
    else:
        value = kind.name.upper().replace(" RANGE", "")
    return f"`{flags} {value}`"


def _meaning(option: click.Option) -> str:
    extra = []
    # like click, which shows only the defaults it is asked to
    if option.show_default and isinstance(option.default, str | int) and not option.is_flag:
        extra.append(f"default: {option.default}")
    if option.multiple:
        extra.append("may be repeated")
    note = f" [{'; '.join(extra)}]" if extra else ""
    return _one_line(option.help or "") + note


def _strategy(described: dict[str, Any], method: Any) -> list[str]:
    names = ("name", "scope", "type", "default", "description")
    rows = ([_cell(p, name) for name in names] for p in described["parameters"])
    return [
        f"## {described['name']}",
        f"{described['pretty_name']}. Reference: <{described['reference']}>.",
        _prose(inspect.getdoc(type(method)) or ""),
        _table(names, rows),
    ]


def _cell(parameter: dict[str, Any], key: str) -> str:
    value = parameter[key]
    if key == "default":
        if parameter["required"]:
            return "required"
        value = str(value).lower() if isinstance(value, bool) else value
        return "" if value is None else f"`{value}`"
    return f"`{value}`" if key in ("name", "type") else str(value or "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _prose(text: str) -> str:
    return re.sub(r"``([^`]*)``", r"`\1`", inspect.cleandoc(text))


def _one_line(text: str) -> str:
    return " ".join(_prose(text).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
