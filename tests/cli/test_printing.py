"""What is printed: no odd character reaches a terminal, and nothing that cannot leave is lost."""

import ast
import json
import logging
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import omnireg.cli
from omnireg.boundary.text import brief, is_plain, json_text, one_line, shown
from omnireg.cli import output
from omnireg.cli.output import print_json
from omnireg.errors import ConfigError, RegistryError
from omnireg.registry import Parent, Registry
from omnireg.workflows.pages import Block, Heading, Table, as_html, as_markdown
from tests_support import Outcome, Run, is_odd

ODD = {
    "escape": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "C1": "\x9b31mred",
    "next line": "\x85",
    "return": "good\rbad",
    "backspace": "bad\b\b\bgood",
    "delete": "\x7f",
    "override": "\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "mark": "\u200f",
    "arabic mark": "\u061c",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
}
LOOKING = [
    ("list",),
    ("show", "mine"),
    ("scores", "mine"),
    ("report", "mine"),
    ("report", "mine", "--format", "html"),
    ("report", "mine", "--source", ""),
    ("events",),
    ("events", "mine"),
    ("lineage", "mine"),
    ("lineage", "mine", "--format", "mermaid"),
    ("lineage", "mine", "--format", "dot"),
    ("lineage", "mine", "--format", "svg"),
    ("lineage", "mine", "--format", "json"),
    ("leaderboard", "known"),
    ("compare", "mine", "--against", "base"),
    ("export",),
    ("check", "mine"),
    ("sql", "select * from v_checkpoints"),
    ("sql", "select * from v_scores"),
    ("sql", "select * from v_parents"),
    ("apply", "m.yaml", "--dry-run"),
]
WITH_JSON = [each for each in LOOKING if each[-1] not in ("html", "mermaid", "dot", "svg")]


def odd_in(done: Outcome) -> list[str]:
    """Return the odd characters that a command printed."""
    return [character for character in {*done.out, *done.err} if is_odd(character)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a bit of everything in it."""
    place = tmp_path_factory.mktemp("template") / "r.db"
    with Registry(place) as book:
        book.add_checkpoint("base", kind="base")
        book.add_checkpoint(
            "mine", kind="finetuned", source="s", modalities=["image"], notes="n",
            strategy="average", parents=[Parent("base", "finetuned_from")],
        )  # fmt: skip
        book.add_checkpoint("child", kind="merged", parents=[Parent("mine", "model")])
        book.add_benchmark("known", unit="u", description="d")
        for owner, value in (("mine", 0.25), ("base", 0.5)):
            book.add_score(owner, "known", value, source="s", evaluator="e")
        book.add_analysis("mine", "other", {"a": 1}, against="base")
        book.add_publication("mine", "org/name", "abc", url="u")
        run = book.start_run(
            "mine", out="out", recipe_text="t", recipe_digest="ab" * 32, strategy="average",
            engine="stream",
        )  # fmt: skip
        book.finish_run(run, name="mine", kind="finetuned", fingerprint="cd" * 32)
    return place


#: columns with text of any kind, with JSON, and with names
_FREE = {
    "checkpoints": ("notes", "source"),
    "benchmarks": ("unit", "description"),
    "scores": ("source", "evaluator", "evaluator_version", "filter", "split"),
    "publications": ("url",),
    "runs": ("recipe_text", "machine", "error", "out"),
}
_JSON = {
    "checkpoints": ("details",),
    "scores": ("setup", "details"),
    "analyses": ("setup", "result"),
    "runs": ("parameters", "versions"),
}
_NAMES = {
    "checkpoints": ("strategy",),
    "benchmarks": ("ability",),
    "scores": ("metric",),
    "publications": ("repo", "commit", "branch"),
    "runs": ("strategy", "engine"),
}


def recorded(template: Path, folder: Path, text: str, name: str | None = None) -> str:
    """Make a registry that holds a text wherever text goes; return its path.

    Names are put below the rules for them, as an older program or another one may have done.
    """
    place = str(shutil.copy(template, folder / "r.db"))
    document = json.dumps({text: text, "a": [text]})
    with sqlite3.connect(place) as connection:
        for said, tables in ((text, _FREE), (document, _JSON), (name, _NAMES)):
            for table, columns in tables.items() if said is not None else ():
                given = ", ".join(f'"{column}" = ?' for column in columns)
                connection.execute(f"UPDATE {table} SET {given}", [said] * len(columns))
        if name is not None:
            connection.execute("UPDATE checkpoints SET name = ? WHERE name = 'child'", [name])
            connection.execute(
                "INSERT INTO events (at, actor, action, subject_type, subject, details)"
                " SELECT at, ?, action, subject_type, ?, ? FROM events LIMIT 1",
                [name, name, document],
            )
    connection.close()
    return place


def write_manifest(file: Path, text: str) -> None:
    """Write a manifest of one checkpoint with notes."""
    data = {"omnireg": 1, "checkpoints": [{"name": "new", "kind": "base", "notes": text}]}
    file.write_text(yaml.safe_dump(data))


# texts


@pytest.mark.parametrize("text", ODD.values(), ids=list(ODD))
def test_escapes_and_plainness_agree(text: str) -> None:
    """What is not plain shows as escapes, which are plain; JSON keeps its value."""
    assert not is_plain(text)
    assert any(map(is_odd, text))
    for safe in (shown(text), one_line(text), brief(one_line(text))):
        assert not any(map(is_odd, safe))
    document = json.dumps({text: text}, ensure_ascii=False)
    assert not any(map(is_odd, json_text(document)))
    assert json.loads(json_text(document)) == {text: text}


@given(st.characters())
def test_one_definition_of_odd(character: str) -> None:
    """Unicode's own tables and ours name the same characters."""
    assert (shown(character) != character) == is_odd(character)


@given(st.text(max_size=3000), st.integers(50, 500))
def test_a_brief_message_is_brief(text: str, longest: int) -> None:
    """Its beginning and its end are kept, and a short one is as it was."""
    said = brief(text, longest=longest, word=longest)
    assert len(said) <= longest + 60
    if len(text) <= longest:
        assert said == text
    else:
        assert said[: longest // 5] == text[: longest // 5]


def test_a_long_value_leaves_room_for_what_to_do() -> None:
    """Of a long name in the middle its beginning is shown; words around it stay."""
    said = brief(f"no checkpoint {'x' * 100_000!r}: see `omnireg list`")
    assert said.startswith("no checkpoint 'xxx")
    assert said.endswith("see `omnireg list`")
    assert "(100003 characters)" in said
    assert len(said) < 300


@pytest.mark.parametrize(("text", "line"), [("a\nb\tc", r"a\nb\tc"), ("a", "a"), ("\x1b", r"\x1b")])
def test_a_value_on_one_line(text: str, line: str) -> None:
    """Its breaks and tabs are escapes too."""
    assert one_line(text) == line


# commands


@pytest.mark.parametrize("text", ODD.values(), ids=list(ODD))
def test_no_command_prints_odd_characters(
    template: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Whatever is stored, in names as well."""
    write_manifest(tmp_path / "m.yaml", text)
    monkeypatch.setenv("OMNIREG_REGISTRY", recorded(template, tmp_path, text, f"n{text}"))
    for command in LOOKING:
        done = run(*command)
        assert odd_in(done) == [], command
        assert (done.code, done.err) == (0, "") or command[0] == "apply", done


def test_json_holds_the_values(
    template: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As escapes, and never cut."""
    text = "".join(ODD.values()) + "é" * 100_000
    write_manifest(tmp_path / "m.yaml", "short")
    monkeypatch.setenv("OMNIREG_REGISTRY", recorded(template, tmp_path, text))
    for command in WITH_JSON:
        done = run("--json", *command)
        assert odd_in(done) == [], command
        found = json.loads(done.out)
        if command[0] in ("show", "scores", "export"):
            assert text in texts_in(found), command


def texts_in(value: object) -> list[str]:
    """Return every text in a JSON value."""
    if isinstance(value, dict):
        return [each for item in value.items() for part in item for each in texts_in(part)]
    if isinstance(value, list):
        return [each for part in value for each in texts_in(part)]
    return [value] if isinstance(value, str) else []


TEXTS = st.text(
    st.one_of(
        st.sampled_from("".join(ODD.values()) + "\n\t|`#[/]*<>&\"'\\"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=40,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=TEXTS, name=TEXTS.filter(str.strip))
def test_whatever_is_stored_is_printed_safely(
    template: Path, run: Run, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    """By every command that looks, as text and as JSON; a value never makes lines of its own."""
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("OMNIREG_REGISTRY", recorded(template, Path(folder), text, f"n{name}"))
        quick = [each for each in LOOKING[:-1] if each[0] != "report"]
        for command in quick:
            assert odd_in(run(*command)) == [], command
        for command in filter(WITH_JSON.__contains__, quick):
            done = run("--json", *command)
            assert odd_in(done) == [], command
            assert done.out == "" or json.loads(done.out) is not None
        listed = run("list")
        assert listed.out.count("\n") == 4 or len(name) > 20


def test_an_export_says_what_is_stored(template: Path, tmp_path: Path, run: Run) -> None:
    """Odd characters are escapes of YAML: what is exported and applied exports the same."""
    text = "".join(ODD.values()) + "a\nb\tc: d # é"
    exported = run("--registry", recorded(template, tmp_path, text), "export")
    assert odd_in(exported) == []
    found = yaml.safe_load(exported.out)
    assert found["checkpoints"][1]["notes"] == text
    (tmp_path / "e.yaml").write_text(exported.out)
    for kind in ("yaml", "jsonl"):
        assert run("--registry", f"{kind}.db", "apply", "e.yaml").code == 0
        assert run("--registry", f"{kind}.db", "export", "--out", f"f.{kind}").code == 0
        written = (tmp_path / f"f.{kind}").read_text()
        assert not any(map(is_odd, written))
    assert run("--registry", "yaml.db", "export").out == exported.out
    assert run("--registry", "j.db", "apply", "f.jsonl").code == 0
    assert run("--registry", "j.db", "export").out == exported.out


def test_long_values_do_not_flood(
    template: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tables and on pages they are cut, in JSON they are not."""
    monkeypatch.setenv("OMNIREG_REGISTRY", recorded(template, tmp_path, "x" * 100_000))
    for command in LOOKING[:-1]:
        if command[0] != "export":
            assert len(run(*command).out) < 30_000, command
    assert "(100000 characters)" in run("scores", "mine").out
    assert "x" * 100_000 in run("--json", "show", "mine").out


def test_further_lines_of_notes_are_no_facts(tmp_path: Path, run: Run) -> None:
    """They are set in below the first."""
    with Registry(tmp_path / "registry.db") as book:
        book.add_checkpoint("a", kind="base", notes="one\nfingerprint  abc")
    assert "notes        one\n             fingerprint  abc\n" in run("show", "a").out


def test_a_value_of_a_table_is_one_line(run: Run) -> None:
    """Breaks, tabs and what rich takes for markup or emoji are shown as they are."""
    with Registry() as book:
        book.upgrade()
    done = run("sql", "select 'a' || char(10) || 'b[/x]:heart:' as 'c[bold]', char(9) as d")
    assert r"a\nb[/x]:heart:" in done.out
    assert "c[bold]" in done.out
    assert done.out.count("\n") == 2


def test_a_page_cuts_no_table(tmp_path: Path) -> None:
    """A value with breaks stays in its cell, a heading is one line."""
    blocks: list[Block] = [
        Heading("a\nb"),
        Table(("a", "b\nc"), [("x\ny", "|"), ("z" * 1000, None)]),
    ]
    page = as_markdown(blocks)
    assert page.splitlines()[0] == r"## a\nb"
    assert [line.count(" | ") for line in page.splitlines()[2:]] == [1, 1, 1, 1]
    assert "(1000 characters)" in page
    assert r"x\ny" in as_html(blocks, "t")


# what is wrong


@pytest.mark.parametrize(
    "command",
    [
        "show A",
        "scores A",
        "lineage A",
        "apply A",
        "plan A",
        "sql A",
        "A",
        "merge a b --no-such-optionA",
        "list --kind A",
        "mergekit A",
        "list --registry A://A",
        "list --registry A/A",
        "export --out nowhere/A",
        "strategies show A",
        "scores add a b 1 --metric A",
        "add A",
        "pull A/A",
    ],
)
def test_what_is_typed_is_repeated_safely(run: Run, command: str) -> None:
    """In errors of ours and in click's, whatever a shell passed on."""
    for text in (*ODD.values(), "\udcff"):
        done = run(*(word.replace("A", f"a{text}") for word in command.split(" ")))
        assert odd_in(done) == [], text
        assert done.code in (1, 2)
        assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["show", "apply", "plan", "sql", "nonsense", "list --kind"])
def test_an_error_does_not_flood(run: Run, command: str) -> None:
    """It repeats the beginning of what was too long, and still says what to do."""
    done = run(*command.split(), "x" * 100_000)
    assert done.code in (1, 2)
    assert 0 < len(done.err) < 5000


def test_an_error_is_one_line(run: Run) -> None:
    """Also about a name with line breaks."""
    assert run("apply", "a\nb: good").err.count("\n") == 1


def test_warnings_go_through_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, and a traceback below its own."""
    told = output._Told()
    told.setFormatter(logging.Formatter("%(message)s"))
    record = logging.LogRecord("omnireg", logging.INFO, "f", 1, "a\n%s", ("\x1b[31m",), None)
    told.handle(record)
    try:
        raise ValueError("b\x1b")
    except ValueError:
        record.exc_info = sys.exc_info()
    told.handle(record)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [r"INFO: a\n\x1b[31m"] * 2
    assert said[2].startswith("Traceback")
    assert said[-1] == r"ValueError: b\x1b"


def test_only_the_door_prints() -> None:
    """No other module of the command line knows another way to the terminal."""
    others = {"echo", "secho", "style", "prompt", "confirm", "echo_via_pager"}
    for file in Path(str(omnireg.cli.__file__)).parent.glob("*.py"):
        if file.name == "output.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id != "click") or (node.attr not in others), file
                assert (node.attr, node.value.id) != ("write", "stdout"), file
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert "Console" not in [each.name for each in node.names], file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", file


def test_names_that_turn_the_reading_order(tmp_path: Path) -> None:
    """Refused like control characters, for checkpoints, aliases and benchmarks."""
    with Registry(tmp_path / "r.db") as book:
        book.add_checkpoint("plain שלום é", kind="base")
        for text in ODD.values():
            for attempt in (
                lambda name: book.add_checkpoint(name, kind="base"),
                lambda name: book.add_benchmark(name),
                lambda name: book.add_alias("plain שלום é", name),
            ):
                with pytest.raises(RegistryError, match="control character, or one that turns"):
                    attempt(f"a{text}b")


# JSON


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("around", "where"),
    [
        (lambda n: n, "the answer"),
        (lambda n: {"a": [1, {"b": n}]}, "a[1].b"),
        (lambda n: [{"a": 1.0}, (2, n)], "[1][1]"),
    ],
)
def test_json_has_no_infinity(
    number: float, around: Callable[[float], object], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it stands is said, and nothing is printed."""
    with pytest.raises(ConfigError, match=re.escape(f"no word for {number} ({where})")):
        print_json(around(number))
    assert capsys.readouterr().out == ""


def test_an_infinite_answer(tmp_path: Path, run: Run) -> None:
    """A table shows it; as JSON it is one line that says so."""
    with Registry(tmp_path / "registry.db") as book:
        book.add_checkpoint("a", kind="base")
    assert "inf" in run("sql", "select 9e999 as a").out
    done = run("--json", "sql", "select 9e999 as a")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "[0].a" in done.err


def test_json_of_half_a_character(capsys: pytest.CaptureFixture[str]) -> None:
    """An escape, from which the same text is read."""
    print_json({"a": "\udcff"})
    assert json.loads(capsys.readouterr().out) == {"a": "\udcff"}


def test_json_that_is_too_deep(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no traceback."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deeply"):
        print_json(deep)
    while deep:  # freed by hand: a deep list is freed by a deep recursion
        deep = deep.pop()  # type: ignore[assignment]
