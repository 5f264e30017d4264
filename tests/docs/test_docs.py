"""The documentation says what the code says: pages, command lines, navigation and links."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files

import omnireg
from omnireg import HostLayout, Sense
from omnireg.cli import cli
from omnireg.cli.output import Settings
from omnireg.engine.tools import mergekit_tools
from omnireg.hookspecs import Conduct, Result
from omnireg.recipe import Block, Recipe
from omnireg.registry import Registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SHELLS = ("", "bash", "console", "sh", "shell")


def _generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("omnireg_docs_generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after every ``omnireg`` at the start of a command in a shell block."""
    for _, language, block in _FENCE.findall(text):
        if language not in _SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            shell = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            shell.whitespace_split = True
            yield from _simple_commands(list(shell))


def _simple_commands(words: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|&;<>()"):
            if command and command[0] == "omnireg":
                yield command[1:]
            command = []
        elif command or "=" not in word:
            command.append(word)


def _parse(arguments: list[str]) -> None:
    """Parse a command line as click would, without running it."""
    command: click.Command = cli
    parent: click.Context | None = None
    while True:
        context = click.Context(command, parent=parent, obj=Settings(), **command.context_settings)
        command.parse_args(context, arguments)
        if not isinstance(command, click.Group):
            break
        arguments = [*context._protected_args, *context.args]
        _, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, parent = found, context
    if command.name == "mergekit":
        assert context.params["tool"] in mergekit_tools()


def _anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def _pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for node in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages_of(node)


def test_generated_pages_are_up_to_date() -> None:
    """The command line and the strategies are documented as they are now."""
    assert _generate().stale() == [], "run: python docs/generate.py"


def test_a_stale_page_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--check`` exits 1 and names the page; writing the pages makes it exit 0."""
    generate = _generate()
    monkeypatch.setattr(generate, "DOCS", tmp_path / "docs")
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    (tmp_path / "docs" / "explanation").mkdir()
    shutil.copy(ROOT / "registry.db", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "reference/cli.md" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert generate.main(["--chek"]) == 2


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_parse(page: Path) -> None:
    """Every omnireg command line in a shell block has a known command and known options."""
    for arguments in _command_lines(page.read_text(encoding="utf-8")):
        try:
            _parse(list(arguments))
        except click.ClickException as exc:
            pytest.fail(f"omnireg {shlex.join(arguments)}: {exc.format_message()}")


@pytest.mark.parametrize(
    "line",
    ["omnireg mergee a b", "omnireg merge a b --no-such", "omnireg list | omnireg show", "omnireg"],
)
def test_a_wrong_command_line_would_be_noticed(line: str) -> None:
    """An unknown command, option or a missing argument is an error of the parser."""
    (*_, arguments) = _command_lines(f"```bash\n{line}\n```\n")
    with pytest.raises(click.ClickException):
        _parse(arguments)


def test_every_public_name_and_key_is_documented() -> None:
    """The pages of the Python interface, of the recipe and of the hooks leave nothing out."""
    python, recipe, hooks = (
        (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")
        for name in ("python", "recipe", "hooks")
    )
    methods = {name for name, value in vars(Registry).items() if callable(value)}
    assert not [n for n in methods if not n.startswith("_") and f"{n}(" not in python]
    assert not [name for name in omnireg.__all__ if name not in python]
    keys = {*Recipe.model_fields, *Block.model_fields} - {"omnireg"}
    assert not [key for key in keys if f"`{key}`" not in recipe]
    values = (HostLayout, Sense, Conduct, Result)
    fields = {name for value in values for name in value.__dataclass_fields__}
    assert not [name for name in fields if f"`{name}`" not in hooks]


def test_navigation_and_pages_agree() -> None:
    """The configuration loads, every file in it exists, and every page is in it.

    Decisions are listed in their index instead.
    """
    config = load_config(str(ROOT / "mkdocs.yml"))
    listed = list(_pages_of(config.nav))
    found = {file.src_uri for file in get_files(config).documentation_pages()}
    decisions = {uri for uri in found if uri.startswith("explanation/decisions/0")}
    assert set(listed) == found - decisions
    index = (DOCS / "explanation" / "decisions" / "index.md").read_text(encoding="utf-8")
    assert decisions
    assert not [uri for uri in decisions if f"({uri.rpartition('/')[2]})" not in index]
    assert len(listed) == len(set(listed))
    assert config.theme["font"] is False


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_resolve(page: Path) -> None:
    """Every relative link leads to a file, and its anchor to a heading."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link
