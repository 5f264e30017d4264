"""What no registry may hold, by whichever door it comes: refused at once, in one line."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Parent, Registry, rules
from omnireg.registry.declare import reading
from tests_support import Run

BOMB = "&a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{{indent}}{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcde", "bcdef", strict=True)
)
HEAD = "omnireg: 1\ncheckpoints:\n- name: m\n  kind: base\n"


def bomb(indent: int) -> str:
    """Return YAML that stands for millions of words."""
    return f"a: {BOMB.format(indent=' ' * indent)}"


POISON = {
    "half a character": (r'  details: {d: "\ud800"}', r"m.yaml:5: no valid YAML: '\ud800' is no"),
    "half a character in text": (r'  notes: "\udc00"', r"m.yaml:5: no valid YAML: '\udc00' is no"),
    "half a character as a key": (r'  details: {"\ud800": 1}', "is no valid text"),
    "no number": ("  details: {d: .nan}", "m.yaml:5: details: what it holds cannot be stored"),
    "no end": ("  details: {d: -.inf}", "cannot be stored as JSON"),
    "a NUL": (r'  details: {d: "a\0"}', "holds a NUL character"),
    "a month that is none": (
        "  created_at: 2001-99-99",
        "m.yaml:5: no valid YAML: '2001-99-99' is",
    ),
    "a month in details": ("  details: {d: 2001-99-99}", "m.yaml:5: no valid YAML: '2001-99-99'"),
    "a list as a time": ("  created_at: [1]", "m.yaml:5: created_at: Input should be a valid date"),
    "the year 0": ("  created_at: '0000-01-01'", "m.yaml:5: created_at: Input should be a valid"),
    "the year 1": ("  created_at: 0001-01-01", "use the years 1900 to 9998"),
    "before the year 1": ("  created_at: 0001-01-01T00:00:00+10:00", "is out of range"),
    "the year 9999": ("  created_at: 9999-12-31T23:59:59-10:00", "is out of range"),
    "the year 10000": ("  created_at: '10000-01-01'", "m.yaml:5: created_at: Input should be"),
    "5000 digits": (f"  details: {{d: {'9' * 5000}}}", "is no int"),
    "5000 digits in base 16": (f"  details: {{d: 0x{'f' * 5000}}}", "is too large a number"),
    "5000 digits as a kind": (f"  notes: 0x{'f' * 5000}", "is too large a number"),
    "deep": (f"  details: {{d: {'[' * 3000}}}", "is nested too deeply: write it flat"),
    "deeper than allowed": (f"  details: {{d: {'[' * 70}{']' * 70}}}", "nested too deeply"),
    "a set": ("  details: {d: !!set {x}}", "Object of type set is not JSON serializable"),
    "bytes": ("  details: {d: !!binary aGk=}", "Object of type bytes is not JSON serializable"),
    "a word that is no truth value": ("  absent: !!bool maybe", "'maybe' is no bool"),
    "a number without digits": ('  details: {d: !!int ""}', "'' is no int"),
    "one key in two forms": ("  details: {d: {1: a, 0x1: b}}", "the key '0x1' stands here twice"),
    "code": ("  notes: !!python/object:os.system x", "could not determine a constructor"),
    "itself": ("  details: &a {d: *a}", "an alias stands inside of what it names"),
    "millions of words": (f"  details:\n    {bomb(4)}", "is far larger than it looks"),
    "a megabyte": (f"  details: {{d: '{'x' * 1_000_000}'}}", "bytes as JSON is too large"),
    "a long text": (f"  notes: '{'x' * 1_000_001}'", "is too long: use at most 1,000,000"),
    "a number as text": ("  notes: 5", "m.yaml:5: notes: Input should be a valid string"),
    "a list as details": ("  details: [1]", "m.yaml:5: details: Input should be a valid dict"),
    "a long wrong word": (f"  strategy: a\n  kind: '{'x' * 100_000}'", "stands here twice"),
}


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_manifest_is_refused_at_once(
    registry: Registry, path: Path, name: str, backend: str
) -> None:
    """One line with file and line, and nothing of it is recorded."""
    text, said = POISON[name]
    manifest = path.with_name("m.yaml")
    manifest.write_text(f"{HEAD}{text}\n", encoding="utf-8")
    with pytest.raises(RegistryError) as caught:
        registry.apply(manifest)
    message = str(caught.value).replace(f"{path.parent}{os.sep}", "")
    assert said in message
    assert "\n" not in message
    assert len(message) < 500
    assert not registry.exists() or not list(registry.items())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"checkpoint": {"name": "\ud800", "kind": "base"}}', "Invalid JSON"),
        (r'{"checkpoint": {"name": "m", "details": {"d": "\ud800"}}}', "Invalid JSON"),
        ('{"checkpoint": {"name": "m", "details": {"d": NaN}}}', "not JSON compliant"),
        ('{"checkpoint": {"name": "m", "details": {"d": 1e999}}}', "not JSON"),
        (f'{{"checkpoint": {{"name": "m", "details": {{"d": {"9" * 5000}}}}}}}', "out of range"),
        (f'{{"checkpoint": {{"name": "m", "details": {{"d": {"[" * 300}', "recursion limit"),
        ('{"checkpoint": {"name": "m", "name": "n"}}', "the key 'name' stands twice"),
        ('{"checkpoint": {"name": "m"}, "checkpoint": null}', "'checkpoint' stands"),
        ('{"score": {"checkpoint": "m", "benchmark": "B", "value": 1, "n": 1e400}}', "n: Input"),
        ('{"run": {"seed": 99999999999999999999}}', "run.name: Field required"),
        ("[1]", "Input should be an object"),
        ('{"checkpoint"', "Invalid JSON"),
    ],
)  # fmt: skip
def test_a_poisoned_line_is_refused(path: Path, line: str, said: str) -> None:
    """JSON Lines are looked at as closely as YAML."""
    manifest = path.with_name("m.jsonl")
    manifest.write_text(f'\ufeff{{"omnireg": 1}}\n{line}\n', encoding="utf-8")
    with Registry(path) as registry, pytest.raises(RegistryError) as caught:
        registry.apply(manifest)
    assert "m.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_without_an_end_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it fills the memory."""
    monkeypatch.setattr(reading, "_LONGEST_LINE", 1000)
    manifest = path.with_name("m.jsonl")
    manifest.write_text('{"omnireg": 1}\n' + "x" * 2000)
    with Registry(path) as registry, pytest.raises(RegistryError, match=r"m\.jsonl:2: the line is"):
        registry.apply(manifest)


@pytest.mark.parametrize("name", ["m.yaml", "m.jsonl"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, run: Run, name: str) -> None:
    """A pipe that nobody writes to, a device without an end, a folder, a file of another kind."""
    (tmp_path / "folder").mkdir()
    for place, said in (("pipe", "it is a pipe"), ("folder", "it is a folder")):
        (tmp_path / place / name).parent.mkdir(exist_ok=True)
        if place == "pipe":
            os.mkfifo(tmp_path / place / name)
        else:
            (tmp_path / place / name).mkdir()
        refused = run("apply", tmp_path / place / name)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert said in refused.err
    (tmp_path / name).symlink_to("/dev/zero")
    assert "it is a device" in run("apply", tmp_path / name).err
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"omnireg: 1\nx: \xff\xfe\n")
    assert "m." in run("apply", tmp_path / name).err


def test_pipes_of_a_shell_are_files(tmp_path: Path) -> None:
    """``<(…)`` and ``/dev/stdin`` work for manifests."""
    command = [sys.executable, "-m", "omnireg", "--registry", str(tmp_path / "r.db"), "apply"]
    manifest = "omnireg: 1\ncheckpoints: [{name: m, kind: base}]\n"
    done = subprocess.run(
        [*command, "/dev/stdin"], input=manifest, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reader, writer = os.pipe()
    thread = threading.Thread(target=_write, args=(writer, manifest.encode()))
    thread.start()
    done = subprocess.run(
        [*command, f"/dev/fd/{reader}"], pass_fds=[reader], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    thread.join()
    os.close(reader)
    assert (done.returncode, done.stdout) == (0, "no changes\n")


def _write(writer: int, data: bytes) -> None:
    os.write(writer, data)
    os.close(writer)


# calls

HALF = "a\ud800b"
_RUN: dict[str, Any] = {
    "name": "m", "out": "o", "recipe_text": "t", "recipe_digest": "d", "strategy": "s",
    "engine": "stream",
}  # fmt: skip


def _starting(field: str) -> Callable[[Registry, Any], Any]:
    return lambda r, text: r.start_run(**{**_RUN, field: text})


CALLS: dict[str, Callable[[Registry, Any], Any]] = {
    "name": lambda r, text: r.add_checkpoint(text, kind="base"),
    "source": lambda r, text: r.add_checkpoint("n", kind="base", source=text),
    "notes": lambda r, text: r.add_checkpoint("n", kind="base", notes=text),
    "strategy": lambda r, text: r.add_checkpoint("n", kind="base", strategy=text),
    "modality": lambda r, text: r.add_checkpoint("n", kind="base", modalities=[text]),
    "parent": lambda r, text: r.add_checkpoint("n", kind="base", parents=[Parent(text)]),
    "kind": lambda r, text: r.add_checkpoint("n", kind=text),
    "fingerprint": lambda r, text: r.add_checkpoint("n", kind="base", fingerprint=text),
    "alias": lambda r, text: r.add_alias("m", text),
    "benchmark": lambda r, text: r.add_benchmark(text),
    "unit": lambda r, text: r.add_benchmark("B", unit=text),
    "scored benchmark": lambda r, text: r.add_score("m", text, 1),
    "metric": lambda r, text: r.add_score("m", "B", 1, metric=text),
    "split": lambda r, text: r.add_score("m", "B", 1, split=text),
    "setup": lambda r, text: r.add_score("m", "B", 1, setup={"a": [text]}),
    "details": lambda r, text: r.add_score("m", "B", 1, details={text: 1}),
    "kind of analysis": lambda r, text: r.add_analysis("m", text, {}),
    "result": lambda r, text: r.add_analysis("m", "k", {"a": {"b": text}}),
    "setup of an analysis": lambda r, text: r.add_analysis("m", "k", {}, setup={"a": text}),
    "repo": lambda r, text: r.add_publication("m", text, "c", url="u"),
    "commit": lambda r, text: r.add_publication("m", "r", text, url="u"),
    "url": lambda r, text: r.add_publication("m", "r", "c", url=text),
    "branch": lambda r, text: r.add_publication("m", "r", "c", url="u", branch=text),
    **{
        field: _starting(field)
        for field in ("out", "recipe_text", "recipe_digest", "strategy", "engine", "machine",
                      "strategy_version")
    },
    "parameters": lambda r, text: r.start_run(**_RUN, parameters={"a": text}),
    "versions": lambda r, text: r.start_run(**_RUN, versions={"a": text}),
    "searched": lambda r, text: r.find(text),
    "searched strategy": lambda r, text: r.checkpoints(strategy=text),
    "searched modality": lambda r, text: r.checkpoints(modality=text),
    "events": lambda r, text: r.events(text),
    "leaderboard": lambda r, text: r.leaderboard(text),
    "query": lambda r, text: r.sql(f"SELECT '{text}'"),
}  # fmt: skip


@pytest.mark.parametrize("text", [HALF, "a\0b"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_takes_no_poison(registry: Registry, call: str, text: str) -> None:
    """Half characters and NUL are told, and nothing is recorded."""
    registry.add_checkpoint("m", kind="base")
    before, events = list(registry.items()), len(registry.events(limit=None))
    with pytest.raises(RegistryError) as caught:
        CALLS[call](registry, text)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)
    assert (list(registry.items()), len(registry.events(limit=None))) == (before, events)


def test_texts_are_texts(registry: Registry) -> None:
    """Anything else is told instead of being written as Python shows it; a path is its text."""
    for wrong in (5, b"bytes", ["a"]):
        with pytest.raises(RegistryError, match=r"notes .* is no text"):
            registry.add_checkpoint("m", kind="base", notes=wrong)  # type: ignore[arg-type]
    assert rules.text(Path("a") / "b", "out") == str(Path("a") / "b")
    registry.add_checkpoint("m", kind="base")
    with pytest.raises(RegistryError, match="is no mapping"):
        registry.add_analysis("m", "k", [1])  # type: ignore[arg-type]


def test_an_error_of_any_kind_is_recorded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run fails whatever its message holds, and whoever runs it."""
    monkeypatch.setenv("OMNIREG_ACTOR", os.fsdecode(b"ada\xff\nx"))
    run = registry.start_run(**_RUN)
    failed = registry.fail_run(run, f"{HALF}\0{'x' * 2_000_000}")
    assert len(failed.error or "") <= rules.LONGEST_TEXT
    assert registry.events()[0].actor == "ada\\udcff\\nx"


def test_times_are_in_years_that_all_programs_know() -> None:
    """Whatever the time zone."""
    assert rules.moment(datetime(2024, 1, 1)) == datetime(2024, 1, 1, tzinfo=UTC)
    for wrong in (datetime(1, 1, 1), datetime(9999, 12, 31), datetime(1899, 12, 31)):
        with pytest.raises(RegistryError, match="is out of range"):
            rules.moment(wrong)
