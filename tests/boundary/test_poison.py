"""Files that others wrote, read by commands: whatever they hold is told in one line, at once."""

import gzip
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnireg.analysis.salience import from_logits, read_run
from omnireg.boundary.documents import parse_json, parse_yaml
from omnireg.cli.score_command import command_score
from omnireg.errors import ConfigError, EvaluationError, OmniregError
from omnireg.evaluation.documents import parse, read_document
from omnireg.evaluation.items import read_items
from omnireg.recipe import parse_recipe, read_recipe
from omnireg.workflows.grid import parse_grid, with_parameters
from omnireg.workflows.trials import Notebook, Trial, numbers
from tests_support import Run

GOOD = "merge_method: average\nmodels: [{model: a}]\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "parameters: {weight: .nan}", "recipe: parameters: nan is no finite number"),
        (GOOD + "parameters: {weight: [1, -.inf]}", "-inf is no finite number"),
        (GOOD + "parameters: {weight: 2001-01-01}", "datetime.date(2001, 1, 1) is no number and"),
        (GOOD + "parameters: {weight: 2001-99-99}", "recipe:3: no valid YAML: '2001-99-99' is no"),
        (GOOD + "parameters: {weight: !!set {a}}", "{'a'} is no number and no text"),
        (GOOD + "parameters: {weight: {1: 2}}", "1 is no word; put the key into quotes"),
        (GOOD + f"parameters: {{weight: {'9' * 400}}}", "is no finite number"),
        (GOOD + f"parameters: {{weight: {'9' * 5000}}}", "is no int"),
        (GOOD + 'parameters: {weight: "\\ud800"}', "is no valid text"),
        (GOOD + f"parameters: {{weight: {'[' * 3000}}}", "is nested too deeply"),
        (GOOD + f"parameters:\n  x:\n    {BOMB.replace(chr(10), chr(10) + '    ')}", "far larger"),
        (GOOD + "omnireg: {notes: 5}", "omnireg.notes: Input should be a valid string"),
        (GOOD + "omnireg: {name: &a [*a]}", "an alias stands inside of what it names"),
        (GOOD + "chat_template: [a]", "chat_template: Input should be a valid string"),
        (GOOD + "base_model: \x00", "unacceptable character"),
        ("merge_method: average\nmodels: [" + "a, " * 5000 + "]", "and 4995 more"),
        ("merge_method: average\nmodels: ['" + "a" * 9000 + "\\n']", "alone is no entry"),
        ("merge_method: average", "give exactly one of models, slices or modules"),
        ("- 1", "is not a recipe"),
    ],
)
def test_a_poisoned_recipe_is_told(text: str, said: str) -> None:
    """On one line that is short enough to be read."""
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_recipe_of_many_models_is_read_at_once() -> None:
    """Ten thousand of them, one listed twice."""
    models = "".join(f"- model: m{number}\n" for number in range(10_000))
    assert len(parse_recipe(f"merge_method: average\nmodels:\n{models}").listed) == 10_000
    with pytest.raises(ConfigError, match="'m7' is listed twice"):
        parse_recipe(f"merge_method: average\nmodels:\n{models}- model: m7\n")


READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": read_recipe,
    "results": read_document,
    "items": read_items,
    "logits": read_run,
    "answers": lambda file: from_logits(_logits(file.parent / "logits"), file),
    "trials": lambda file: Notebook(file, "me"),
}


def _logits(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("original", "layer00-head00"):
        (folder / f"{name}.jsonl").write_text('{"x": ["A", [1, 0]]}\n')
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, reader: str) -> None:
    """A pipe that nobody writes to, a device without an end, a folder."""
    file = tmp_path / "file"
    os.mkfifo(file)
    for said in ("it is a pipe", "it is a device", "it is a folder"):
        with pytest.raises(OmniregError, match=said):
            READERS[reader](file)
        if said == "it is a pipe":
            file.unlink()
            file.symlink_to("/dev/zero")
        elif said == "it is a device":
            file.unlink()
            file.mkdir()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe", b"\x00", b"{", b"[1]", b"5", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 5000,
        b'{"prompt": "\\ud800", "results": "\\ud800", "x": ["\\ud800", [1, 2]]}',
        b'{"recipe": 5, "values": {"a": 1}}', b'{"recipe": "r", "values": {"a": "b"}}',
        b'{"x": ["A", [1e999, 0]]}', b'{"x": ["A", [' + b"9" * 400 + b", 0]]}",
        b'{"x": ["A", null]}',
        b'{"prompt": "p", "media": {"image": "\\u0000"}}', b'{"results": {"t": {"acc": "x"}}}',
    ],
)  # fmt: skip
def test_what_is_no_document_is_told(tmp_path: Path, reader: str, data: bytes) -> None:
    """One line that names the file."""
    file = tmp_path / "file"
    file.write_bytes(data + b"\n")
    with pytest.raises(OmniregError) as caught:
        READERS[reader](file)
    assert "file" in str(caught.value) or "hold no numbers" in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_damaged_archives_of_logits_are_told(tmp_path: Path) -> None:
    """Whatever is wrong with the compression, and however long a line is."""
    file = tmp_path / "original.jsonl.gz"
    whole = gzip.compress(b'{"x": ["A", [1, 0]]}\n' * 50)
    for data in (whole[:20], whole[:15] + b"\x00\xff" * 9 + whole[30:], b"", whole[:-4] + b"aaaa"):
        file.write_bytes(data)
        with pytest.raises(EvaluationError, match=r"cannot read|is empty"):
            read_run(file)
    file.write_bytes(gzip.compress(b"x" * (1 << 27)))
    with pytest.raises(EvaluationError, match="the line is too long"):
        read_run(file)


def test_results_with_failed_measurements_are_imported(tmp_path: Path) -> None:
    """Programs write NaN and Infinity beside what they measured; those are left out."""
    file = tmp_path / "results.json"
    file.write_text(
        '{"results": {"t": {"acc,none": 0.5, "acc_stderr,none": NaN, "ppl,none": Infinity,'
        ' "big,none": ' + "9" * 400 + "}}}"
    )
    (only,) = read_document(file).results
    assert (only.metric, only.value, only.stderr) == ("acc", 0.5, None)


def test_groups_that_hold_each_other_have_an_end() -> None:
    """Also groups of groups of the same groups, and members that are no names."""
    groups = {f"g{n}": [f"g{n + 1}", f"g{n + 1}"] for n in range(60)} | {"g60": ["g0", 5, ["t"]]}
    data = {
        "results": {"g0": {"acc,none": 0.5}},
        "group_subtasks": groups,
        "n-samples": {"g0": {"effective": 3}},
    }
    assert parse(data).results[0].n is None
    data["group_subtasks"] = {"g0": ["a", "b", "a"]}
    data["n-samples"] = {"a": {"effective": 3}, "b": {"effective": 4, "original": 5}}
    assert (parse(data).results[0].n, parse(data).results[0].partial) == (7, True)


def test_lines_of_items_end_where_json_lines_do(tmp_path: Path) -> None:
    """Separators that JSON allows in a string are no ends of lines."""
    file = tmp_path / "items.jsonl"
    asked = {"prompt": "a\u2028b\x85c", "answer": "d"}
    file.write_text(f"{json.dumps(asked, ensure_ascii=False)}\r\n\n", encoding="utf-8")
    (item,) = read_items(file)
    assert (item.prompt, item.answers) == ("a\u2028b\x85c", ("d",))


@pytest.mark.parametrize(
    "option",
    ["p=[", "p=2001-99-99", "p=!!int ''", "p=,,", "p=nan:1:1", "p=0:inf:1", "p=0:1:nan",
     "p=0:1e300:1e-300", "p=*a", "p=\x00", f"p={'9' * 5000}"],
)  # fmt: skip
def test_a_poisoned_grid_is_told(option: str) -> None:
    """Before anything is merged."""
    with pytest.raises(ConfigError, match="--grid p="):
        parse_grid([option])


def test_a_grid_of_values_that_no_recipe_has_is_told() -> None:
    """YAML has dates and NaN, recipes have not."""
    for word in (".nan", "2001-01-01"):
        (value,) = parse_grid([f"p={word}"])["p"]
        with pytest.raises(ConfigError, match="with these parameters: parameters"):
            with_parameters(parse_recipe(GOOD), {"p": value})


def test_trials_come_back(tmp_path: Path) -> None:
    """Also infinite scores; what is noted by another program is told."""
    file = tmp_path / "trials.jsonl"
    Notebook(file, "me").note("r", Trial({"x": 1}, {"": -math.inf}))
    known = Notebook(file, "me").recall("r")
    assert known is not None
    assert known["values"] == {"": -math.inf}
    for said in (10**400, float("nan"), "5", True, {"a": None}):
        with pytest.raises(EvaluationError, match="a number, or one for each modality"):
            numbers(said)  # type: ignore[arg-type]


@pytest.mark.parametrize("printed", ["NaN", "{", "", "[" * 5000, "9" * 5000, '{"a": "\\ud800"}'])
def test_what_a_score_command_prints_is_looked_at(tmp_path: Path, printed: str) -> None:
    """The last line is a number or an object of numbers; bytes that are no text do no harm."""
    script = tmp_path / "score.py"
    script.write_text(
        f"import sys\nsys.stdout.buffer.write(b'\\xff\\n')\nsys.stdout.write({printed!r} + '\\n')\n"
    )
    score = command_score(f"{sys.executable} {script}", None)
    assert score is not None
    with pytest.raises(EvaluationError, match=r"printed .* last; print a number") as caught:
        numbers(score(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_recipe_comes_out_of_a_pipe(tmp_path: Path, run: Run) -> None:
    """``<(…)`` is read to its end; the error is about what it holds."""
    reader, writer = os.pipe()
    os.write(writer, b"merge_metod: average\n")
    os.close(writer)
    done = run("plan", f"/dev/fd/{reader}")
    os.close(reader)
    assert "did you mean 'merge_method'?" in done.err


_words = st.text(st.characters(exclude_categories=[]), max_size=8)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words, inner, max_size=4),
)


def _told(error: Exception) -> None:
    message = str(error)
    message.encode()
    assert "\n" not in message
    assert len(message) < 1000


@settings(derandomize=True, deadline=None, max_examples=300)
@given(value=_values)
def test_json_is_json_or_is_told(value: Any) -> None:
    """What JSON text holds comes back, and can be shown; or one line says why not."""
    text = json.dumps(value)
    try:
        found = parse_json(text, "it", error=ConfigError, unique=True)
    except ConfigError as error:
        _told(error)
        return
    assert found == value
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()


_signs = st.characters(exclude_categories=[]) | st.sampled_from("[]{}:,-&*!|>'\"#%@ \n")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=st.text(_signs))
def test_yaml_is_yaml_or_is_told(text: str) -> None:
    """Any text at all."""
    try:
        parse_yaml(text, "it", error=ConfigError)
    except ConfigError as error:
        _told(error)
