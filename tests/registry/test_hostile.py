"""Whatever a file or a foreign hand holds: it is recorded and comes back, or is told in one line.

``OMNIREG_EXAMPLES=5000 pytest tests/registry/test_hostile.py`` looks at more of it.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from omnireg.errors import ConfigError, RegistryError
from omnireg.recipe import Block, parse_recipe
from omnireg.registry import Drawing, Parent, Registry, render, rules
from omnireg.registry.declare import exporting
from omnireg.registry.tables import Base

EXAMPLES = int(os.environ.get("OMNIREG_EXAMPLES", "0"))


def many(usual: int) -> settings:
    """Return how many examples are looked at, always the same ones."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=EXAMPLES or usual,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# what people, programs and foul play put into documents

_signs = st.characters(exclude_categories=()) | st.sampled_from(
    ["\0", "\x1b", "\x85", "\u2028", "\ufeff", "\ud800", "\udfff", "\u202e", "😀", "\r", "\n", "\t"]
)
_words = st.text(_signs, max_size=12) | st.sampled_from(
    ["", " ", "~", "null", "yes", "1", "1e3", "0x1", "1_0", "-", "- a", ": ", "#", "<<", "=", "!x",
     "&a", "*a", "2001-01-01", "2001-99-99", ".nan", "a: b", "'", '"', "\\", "a" * 1001]
)  # fmt: skip
_numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324])
)
_moments = st.dates() | st.datetimes(timezones=st.none() | st.timezones())
_plain = st.none() | st.booleans() | _numbers | _words | _moments | st.binary(max_size=4)
_keys = _words | st.integers() | st.booleans() | st.none()


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(_keys, inner, max_size=4)
        | st.builds(_deep, inner, st.sampled_from([3, 60, 63, 64, 65, 90]))
    )


def _deep(value: Any, levels: int) -> Any:
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


odd = st.recursive(_plain, _nested, max_leaves=12)
_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from("\x85\u2028\ufeff\u202e\x1b\r\n\t 😀'\"\\:#-"),
    max_size=8,
)
#: what JSON can hold, without what no registry does
facts = st.dictionaries(
    _texts,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | _texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    ),
    max_size=4,
)


def _often(usual: Any) -> st.SearchStrategy[Any]:
    """Return something that is mostly as it should be."""
    proper = usual if isinstance(usual, st.SearchStrategy) else st.sampled_from(usual)
    return st.integers(0, 39).flatmap(lambda chance: odd if chance == 39 else proper)


_names = st.sampled_from(["a", "b", "c", "d/e", "ä😀"])
_times = st.sampled_from(["2024-01-01", "2024-01-01T01:02:03.4+05:00", "1999-12-31T23:59:59Z"])


def _item(needed: dict[str, Any], more: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {key: _often(value) for key, value in needed.items()},
        optional={key: _often(value) for key, value in more.items()},
    )


_conditions = {
    "n_shot": st.integers(0, 9), "filter": _texts, "split": _texts, "evaluator": _texts,
    "evaluator_version": _texts, "source": _texts, "setup": facts,
}  # fmt: skip
_SECTIONS: dict[str, st.SearchStrategy[Any]] = {
    "benchmark": _item(
        {"name": ["B", "C"]},
        {"ability": _texts, "metric": ["acc"], "unit": _texts, "higher_is_better": st.booleans(),
         "description": _texts},
    ),
    "checkpoint": _item(
        {"name": _names, "kind": ["base", "merged"]},
        {"fingerprint": ["a" * 64, "B" * 8], "source": _texts, "strategy": _texts, "notes": _texts,
         "details": facts, "created_at": _times, "modalities": st.lists(_names, max_size=2),
         "aliases": st.lists(st.sampled_from(["x", "y"]), max_size=2),
         "parents": st.lists(_item({"name": _names}, {"role": ["base", "model"],
                                                      "weight": st.floats(-1, 1)}), max_size=2)},
    ),
    "run": _item(
        {"name": _names, "out": _texts, "machine": _texts, "started_at": _times,
         "status": ["running", "failed"], "recipe_text": _texts, "recipe_digest": ["d"],
         "strategy": _texts, "engine": ["stream"]},
        {"seed": st.integers(0, 9), "parameters": facts, "versions": facts, "error": _texts,
         "finished_at": _times},
    ),
    "score": _item(
        {"checkpoint": _names, "benchmark": ["B", "C"], "value": st.floats(-9, 9)},
        {"metric": ["acc", "f1"], "n": st.integers(0, 9), "stderr": st.floats(0, 1),
         "partial": st.booleans(), "details": facts, "created_at": _times, **_conditions},
    ),
    "analysis": _item(
        {"checkpoint": _names, "kind": ["shift", "mine"], "result": facts},
        {"against": _names, "setup": facts},
    ),
}  # fmt: skip
#: what others hang on, so that more manifests are sound
_BEFORE = [
    ("benchmark", {"name": "B"}),
    ("benchmark", {"name": "C", "metric": "acc"}),
    *(("checkpoint", {"name": name, "kind": "base"}) for name in ("a", "b", "c", "d/e", "ä😀")),
]
items = st.sampled_from(list(_SECTIONS)).flatmap(
    lambda kind: st.tuples(st.just(kind), _SECTIONS[kind])
)


def _as_yaml(declared: list[tuple[str, Any]]) -> bytes:
    return yaml.safe_dump(exporting.document(declared)).encode("utf-8", "surrogatepass")


def _as_json(declared: list[tuple[str, Any]]) -> bytes:
    return json.dumps(exporting.document(declared), default=str, skipkeys=True).encode()


def _as_lines(declared: list[tuple[str, Any]]) -> bytes:
    lines = [{"omnireg": 1}, *({kind: fields} for kind, fields in declared)]
    return "\n".join(json.dumps(line, default=str, skipkeys=True) for line in lines).encode()


_FORMS: dict[str, Callable[[list[tuple[str, Any]]], bytes]] = {
    "m.yaml": _as_yaml, "m.json": _as_json, "m.jsonl": _as_lines,
}  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry with a little of everything, to be copied."""
    path = tmp_path_factory.mktemp("known") / "registry.db"
    with Registry(path) as registry:
        _record(registry)
        registry.seal()
    return path


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry with nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "registry.db"
    with Registry(path) as registry:
        registry.upgrade()
        registry.seal()
    return path


def _record(registry: Registry) -> None:
    registry.add_checkpoint(
        "base", kind="base", fingerprint="a" * 64, source="x", notes="n", modalities=["image"]
    )
    registry.add_checkpoint("v", kind="finetuned", parents=[Parent("base", "finetuned_from", 0.5)])
    registry.add_alias("base", "first")
    run = registry.start_run(
        "m", out="o", recipe_text="t", recipe_digest="d", strategy="s", engine="stream", seed=1,
        parameters={"a": 1}, versions={"b": "2"},
    )  # fmt: skip
    parents = [Parent("base", "base"), Parent("v", "model", 1.0)]
    registry.finish_run(run, name="m", kind="merged", fingerprint="b" * 64, parents=parents)
    registry.add_benchmark("K", metric="acc", unit="%", ability="k", description="d")
    for name in ("base", "v", "m"):
        registry.add_score(
            name, "K", 1.0, metric="acc", n=3, stderr=0.1, n_shot=1, filter="f", split="s",
            evaluator="e", evaluator_version="1", source="s", setup={"a": 1}, details={"x": 1},
        )  # fmt: skip
    registry.add_analysis("m", "shift", {"x": 1}, against="base", setup={"y": 2})
    registry.add_publication("m", "o/r", "c" * 40, url="u", branch="main")


@contextlib.contextmanager
def _copied(known: Path) -> Iterator[tuple[Path, Registry]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry.db"
        shutil.copy(known, path)
        with Registry(path) as registry:
            yield path, registry


def _told(error: Exception) -> None:
    """Make sure that a message is one line that any terminal can show."""
    message = str(error)
    message.encode()
    assert "\n" not in message
    assert len(message) < 2000


READINGS: tuple[Callable[[Registry], Any], ...] = (
    lambda r: [c.to_json() for c in r.checkpoints()],
    lambda r: [c.to_json() for c in r.checkpoints(modality="image")],
    lambda r: r.find("m").to_json(),
    lambda r: r.find("first").to_json(),
    lambda r: [c.to_json() for c in r.by_fingerprint("b" * 64)],
    lambda r: [s.to_json() for s in r.scores("m")],
    lambda r: r.lineage("m").to_json(),
    lambda r: [render(r.lineage("base"), drawing) for drawing in Drawing],
    lambda r: [p.to_json() for p in r.leaderboard("K")],
    lambda r: r.compare("m", against="base").to_json(),
    lambda r: [s.to_json() for s in r.check_scores("m")],
    lambda r: [b.to_json() for b in r.benchmarks()],
    lambda r: [a.to_json() for a in r.analyses("m")],
    lambda r: [run.to_json() for run in r.runs()],
    lambda r: [p.to_json() for p in r.publications("m")],
    lambda r: [e.to_json() for e in r.events(limit=None)],
    lambda r: exporting.document(r.items()),
    lambda r: exporting.as_yaml(r.items()),
    lambda r: list(exporting.lines(r.items())),
)


def _shown(value: Any) -> None:
    """Make sure that a value can be printed, as text and as JSON."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@many(150)
@given(declared=st.lists(items, max_size=5), form=st.sampled_from(list(_FORMS)))
def test_a_manifest_is_recorded_and_comes_back_or_changes_nothing(
    known: Path, empty: Path, declared: list[tuple[str, Any]], form: str
) -> None:
    """All of it can be read, applied again and moved elsewhere; or one line says what is wrong."""
    with _copied(known) as (path, registry):
        manifest = path.with_name(form)
        manifest.write_bytes(_FORMS[form]([*_BEFORE[: 2 + 5 * (len(declared) % 3 > 0)], *declared]))
        before = list(registry.items())
        try:
            registry.apply(manifest)
        except RegistryError as error:
            event("refused")
            _told(error)
            assert list(registry.items()) == before
            return
        event("recorded")
        assert registry.check() == []
        assert not registry.apply(manifest).total
        for reading in READINGS:
            _shown(reading(registry))
        for again in ("again.yaml", "again.jsonl"):
            registry.export(path.with_name(again))
            with _copied(empty) as (_, other):
                other.apply(path.with_name(again))
                assert list(other.items()) == list(registry.items())


@many(300)
@given(details=st.dictionaries(_keys, odd, max_size=4))
def test_details_come_back_as_they_were_stored(details: dict[Any, Any]) -> None:
    """What is accepted once is accepted again, unchanged, also out of YAML and JSON Lines."""
    try:
        stored = rules.document(details, "details")
    except RegistryError as error:
        _told(error)
        return
    _shown(stored)
    assert rules.document(stored, "details") == stored
    declared = [("checkpoint", {"name": "n", "kind": "base", "details": stored})]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (
            ("m.yaml", exporting.as_yaml(declared)), ("m.jsonl", "".join(exporting.lines(declared)))
        ):  # fmt: skip
            manifest = Path(folder) / name
            manifest.write_text(text, encoding="utf-8")
            assert _declared(manifest) == stored


def _declared(manifest: Path) -> Any:
    from omnireg.registry.declare.reading import read

    ((item, _),) = read([manifest])
    return item.details  # type: ignore[attr-defined]


_parameters = st.dictionaries(st.sampled_from(["weight", "density", "x"]), odd, max_size=2)
_models = st.lists(
    st.fixed_dictionaries({"model": _often(_names)}, optional={"parameters": _often(facts)}),
    min_size=1, max_size=3, unique_by=repr,
)  # fmt: skip
_slices = st.lists(
    st.fixed_dictionaries({"sources": st.just([{"model": "a", "layer_range": [0, 2]}])}),
    min_size=1, max_size=2,
)  # fmt: skip
_parts = st.fixed_dictionaries(
    {"merge_method": _often(["average", "ties"])},
    optional={
        "models": _often(_models), "slices": _often(_slices), "base_model": _often(_names),
        "dtype": _often(["bfloat16"]), "parameters": _often(facts) | _parameters,
        "tokenizer": _often([{"source": "union"}]), "chat_template": _often(_texts),
        "omnireg": _often([{"name": "x", "notes": "y"}, {"output": "host"}]),
    },
)  # fmt: skip
_recipes = (
    _parts.map(lambda parts: yaml.safe_dump({"models": [{"model": "a"}], **parts}))
    | _parts.map(lambda parts: json.dumps(parts, default=str, skipkeys=True))
    | _parts.map(yaml.safe_dump)
    | st.integers(1, 3000).map(lambda levels: "[" * levels + "{a: " * levels)
    | st.integers(1, 3000).map(lambda levels: "models:" + "\n- " * levels)
    | odd.map(lambda value: json.dumps(value, default=str, skipkeys=True))
    | st.text(max_size=40)
    | st.text("[]{}:,-&*!|>'\"#%@ \na1.~<?=", max_size=40)
)


@many(400)
@given(text=_recipes)
def test_a_recipe_is_one_or_is_told(text: str) -> None:
    """A recipe has a digest, and what is written of it is the same recipe."""
    try:
        recipe = parse_recipe(text)
    except ConfigError as error:
        _told(error)
        return
    event("a recipe")
    recipe.model_dump_json().encode()
    plain = recipe.model_copy(update={"omnireg": Block()})
    assert parse_recipe(yaml.safe_dump(recipe.without_block())).digest == plain.digest


# rows that a foreign hand edited

_COLUMNS = [column for table in Base.metadata.sorted_tables for column in table.columns]
_VALUES = (
    "NULL", "'abc'", "x'ff00'", "x'7b7d'", "5", "-1", "1.5", "9e999", "'2001-99-99'",
    "'0001-01-01 00:00:00.000000'", "''", "'a' || char(10) || 'b'", "'x' || char(0) || 'y'",
    "cast(x'ff' AS TEXT)", "cast(x'eda080' AS TEXT)", "'{'", "'[1]'", "'null'", "'[[[['",
    """'{"d": "\\ud800"}'""", """'{"a": NaN}'""", """'{"a": 1e999}'""", "9223372036854775807",
    f"'{'[' * 3000}{']' * 3000}'", "'base'", "'B'",
)  # fmt: skip


@many(120)
@given(column=st.sampled_from(_COLUMNS), value=st.sampled_from(_VALUES), last=st.booleans())
def test_an_edited_row_is_told_and_found(known: Path, column: Any, value: str, last: bool) -> None:
    """Reading ends in values or in one line, and the check finds why."""
    with _copied(known) as (path, registry):
        if not edited(path, column, value, last):
            return
        problems = registry.check()
        for problem in problems:
            _told(RegistryError(problem))
        said = [message for message in map(partial(_reads, registry), READINGS) if message]
        assert problems or all(any(word in told for word in _NOT_THERE) for told in said)


#: what a renamed row ends in; nothing is wrong with it
_NOT_THERE = ("no checkpoint", "no benchmark", "nobody has")


def _reads(registry: Registry, reading: Callable[[Registry], Any]) -> str | None:
    """Return what a reading ends in: nothing where its values can be shown, else one line."""
    try:
        found = reading(registry)
    except RegistryError as error:
        _told(error)
        return str(error)
    _shown(found)
    return None


def edited(path: Path, column: Any, value: str, last: bool = True) -> bool:
    """Put an SQL value into a column of one row, past all checks; return whether it went in."""
    table, which = column.table.name, "max" if last else "min"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute("DROP TRIGGER events_no_update")
        if value == "NULL" and not column.nullable:
            database.execute("PRAGMA writable_schema = ON")
            database.execute(
                "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = ?",
                (table,),
            )
            database.execute("PRAGMA writable_schema = RESET")
        try:
            changed = database.execute(
                f'UPDATE "{table}" SET "{column.name}" = {value}'
                f' WHERE rowid = (SELECT {which}(rowid) FROM "{table}")'
            ).rowcount
        except sqlite3.Error:
            return False
    return bool(changed)
