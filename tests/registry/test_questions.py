"""Leaderboards, comparisons, signatures of failure, SQL, events, and the registry that ships."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Action, Parent, Registry, SubjectType
from tests_support import Run


@pytest.fixture
def scored(registry: Registry) -> Registry:
    """Return a base, two models made of it and their merge, with scores."""
    registry.add_benchmark("MMLU", metric="accuracy", unit="%", ability="knowledge")
    registry.add_benchmark("HarmBench", metric="ASR", higher_is_better=False)
    registry.add_checkpoint("base", kind="base")
    for name in ("vision", "audio"):
        parents = [Parent("base", "finetuned_from")]
        registry.add_checkpoint(name, kind="finetuned", parents=parents)
    inputs = [Parent("vision", "model", 0.5), Parent("audio", "model", 0.5)]
    registry.add_checkpoint("merged", kind="merged", parents=inputs)
    for name, mmlu, asr in (
        ("base", 66.2, 15.9), ("vision", 66.5, 11.4), ("audio", 60.0, 36.0), ("merged", 66.5, 40.0),
    ):  # fmt: skip
        registry.add_score(name, "MMLU", mmlu, metric="accuracy", source="t3")
        registry.add_score(name, "HarmBench", asr, metric="ASR", source="t3")
    return registry


def test_the_best_comes_first_whichever_way_is_better(scored: Registry) -> None:
    """Equal values share a rank; the metric is the benchmark's usual one."""
    board = [(p.rank, p.name, p.value, p.metric) for p in scored.leaderboard("MMLU")]
    assert board[0][0] == board[1][0] == 1
    assert {board[0][1], board[1][1]} == {"vision", "merged"}
    assert board[2:] == [(3, "base", 66.2, "accuracy"), (4, "audio", 60.0, "accuracy")]
    safest = scored.leaderboard("HarmBench", limit=2)
    assert [(p.rank, p.name, p.value) for p in safest] == [(1, "vision", 11.4), (2, "base", 15.9)]


def test_a_checkpoint_stands_once_with_its_best_complete_score(scored: Registry) -> None:
    """A partial score never counts, however high."""
    scored.add_score("audio", "MMLU", 99.0, metric="accuracy", partial=True, source="limit 10")
    scored.add_score("base", "MMLU", 70.0, metric="accuracy", n_shot=5)
    board = [(p.rank, p.name, p.value) for p in scored.leaderboard("MMLU", limit=2)]
    assert board[0] == (1, "base", 70.0)
    assert len({p.name for p in scored.leaderboard("MMLU")}) == 4
    assert scored.leaderboard("MMLU")[-1].value == 60.0


def test_unknown_benchmarks_and_metrics_are_suggested(scored: Registry) -> None:
    """The closest known word is named."""
    with pytest.raises(RegistryError, match=r"no benchmark 'MMUL'.*did you mean 'MMLU'"):
        scored.leaderboard("MMUL")
    with pytest.raises(RegistryError, match=r"nobody has 'acuracy'.*did you mean 'accuracy'"):
        scored.leaderboard("MMLU", metric="acuracy")
    scored.add_benchmark("empty")
    assert scored.leaderboard("empty") == []


def test_a_comparison_knows_which_way_is_better(scored: Registry) -> None:
    """Hand-computed: deltas, retentions, arrows and means."""
    found = scored.compare(["vision", "audio"], against="base")
    asr, mmlu = found.rows
    assert (asr.benchmark, mmlu.benchmark) == ("HarmBench", "MMLU")
    vision = asr.values["vision"]
    assert vision.delta == pytest.approx(-4.5)
    assert vision.retention == pytest.approx(15.9 / 11.4)
    assert vision.better
    assert not asr.values["audio"].better
    assert mmlu.values["vision"].retention == pytest.approx(66.5 / 66.2)
    assert found.mean["vision"].delta == pytest.approx((4.5 + 0.3) / 2)
    assert found.mean["vision"].relative == pytest.approx((4.5 / 15.9 + 0.3 / 66.2) / 2)
    assert found.mean["audio"].delta == pytest.approx((-20.1 - 6.2) / 2)
    same = scored.compare("merged", against="vision", benchmarks=["MMLU"])
    assert same.rows[0].values["merged"].better is None
    assert len(same.rows) == 1


def test_only_what_was_measured_alike_is_compared(scored: Registry) -> None:
    """Shots and splits must agree; of several sources the shared one is taken."""
    scored.add_score("base", "MMLU", 50.0, metric="accuracy", source="t4")
    scored.add_score("audio", "MMLU", 40.0, metric="accuracy", source="t4")
    scored.add_score("vision", "MMLU", 10.0, metric="accuracy", n_shot=5)
    (row,) = scored.compare("vision", against="base", benchmarks=["MMLU"]).rows
    assert (row.reference, row.values["vision"].value) == (66.2, 66.5)
    (row,) = scored.compare("audio", against="base", benchmarks=["MMLU"], source="t4").rows
    for name in ("base", "audio"):
        scored.add_score(name, "mine", 1.0, evaluator="lm-eval", evaluator_version="0.4.13")
    (mine,) = scored.compare("audio", against="base", source="lm-eval 0.4").rows
    assert mine.benchmark == "mine"
    assert (row.reference, row.values["audio"].value) == (50.0, 40.0)
    zero = scored.add_score("base", "zero", 0.0)
    scored.add_score("vision", zero.benchmark, 1.0)
    (row,) = scored.compare("vision", against="base", benchmarks=["zero"]).rows
    assert row.values["vision"].retention is None
    mean = scored.compare("vision", against="base", benchmarks=["zero"]).mean["vision"]
    assert mean.relative is None
    assert scored.compare("vision", against="base", benchmarks=["none"]).rows == ()


def test_signatures_of_failure(scored: Registry, tmp_path: Path) -> None:
    """Each fires on its own evidence, and not just beside it."""
    assert scored.check_scores("vision") == []
    for name, ifeval, code in (("base", 58.2, 54.2), ("vision", 43.2, 1.0), ("audio", 43.1, 0.0)):
        scored.add_score(name, "IFEval", ifeval, metric="accuracy")
        scored.add_score(name, "HumanEval+", code, metric="pass@1")
    assert scored.check_scores("vision") == []
    fired = {s.signature: s for s in scored.check_scores("audio")}
    assert set(fired) == {"instruction_following_collapse", "code_collapse"}
    assert fired["instruction_following_collapse"].observed == pytest.approx(-15.1)
    assert fired["instruction_following_collapse"].threshold == -15.0
    fired_earlier = scored.check_scores("vision", thresholds={"instruction_drop": 10})
    assert [s.signature for s in fired_earlier] == ["instruction_following_collapse"]
    (worse,) = scored.check_scores("merged")
    assert (worse.signature, worse.benchmark) == ("below_every_input", "HarmBench")
    assert worse.observed == pytest.approx(-4.0)
    manifest = tmp_path / "tokens.yaml"
    manifest.write_text(
        "omnireg: 1\ncheckpoints:\n  - {name: vision, details: {training_tokens: 1.4e+12}}\n"
    )
    scored.apply(manifest)
    (idle,) = scored.check_scores("vision")
    assert idle.signature == "no_knowledge_gain"
    assert idle.observed == pytest.approx(0.3 / 66.2)
    with pytest.raises(RegistryError, match="did you mean 'code_floor'"):
        scored.check_scores("vision", thresholds={"code_flor": 1})


def test_sql_answers_and_never_writes(scored: Registry) -> None:
    """Also not by a second statement, a CTE that deletes, or a trick of the dialect."""
    answer = scored.sql("SELECT checkpoint, value FROM v_scores WHERE benchmark = 'MMLU'", limit=2)
    assert answer.columns == ("checkpoint", "value")
    assert len(answer.rows) == 2
    assert answer.truncated
    known = list(scored.items())
    for attack in (
        "DELETE FROM scores",
        "INSERT INTO benchmarks (name, higher_is_better) VALUES ('x', true)",
        "SELECT 1; DELETE FROM scores",
        "SELECT 1; COMMIT; DELETE FROM scores",
        "WITH gone AS (DELETE FROM scores RETURNING id) SELECT * FROM gone",
        "PRAGMA user_version = 3",
        "ATTACH 'other.db' AS other",
        "DROP VIEW v_scores",
        "SELEC 1",
        "",
    ):
        with pytest.raises(RegistryError):
            scored.sql(attack)
    assert list(scored.items()) == known
    assert scored.sql("WITH x AS (SELECT 1 AS one) SELECT one FROM x").rows == ((1,),)
    scored.add_checkpoint("after", kind="base")
    views = ("checkpoints", "aliases", "modalities", "parents", "benchmarks", "scores", "runs")
    for view in (*views, "events"):
        assert scored.sql(f"SELECT * FROM v_{view}").columns


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT {} FROM c"


def test_sql_ends_after_a_time(scored: Registry) -> None:
    """Whether the query finds rows for ever or looks for one; the registry works on."""
    for query, limit in ((ENDLESS.format("count(*)"), 10), (ENDLESS.format("x"), None)):
        with pytest.raises(RegistryError, match=r"took longer than 0\.2 seconds: ask for less"):
            scored.sql(query, limit=limit, timeout=0.2)
    answer = scored.sql(ENDLESS.format("x"), limit=3)
    assert (answer.rows, answer.truncated) == (((1,), (2,), (3,)), True)
    assert scored.sql("SELECT 1 AS one", timeout=None).rows == ((1,),)
    for wrong in (0, -1, float("nan"), float("inf"), "soon"):
        with pytest.raises(RegistryError, match=r"timeout .* is out of range"):
            scored.sql("SELECT 1", timeout=wrong)  # type: ignore[arg-type]
    assert scored.add_checkpoint("after", kind="base").name == "after"


def test_sql_makes_no_huge_values(scored: Registry, path: Path) -> None:
    """Neither one value nor all of them together fill the memory."""
    for query in (
        "SELECT zeroblob(1000000000)",
        "SELECT length(randomblob(1000000000))",
        "SELECT length(group_concat(hex(zeroblob(20000000)))) FROM checkpoints",
    ):
        with pytest.raises(RegistryError, match="makes a value of more than 64 MB"):
            scored.sql(query)
    many = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 20) SELECT"
    with pytest.raises(RegistryError, match="the answer is larger than 512 MB"):
        scored.sql(f"{many} zeroblob(60000000) FROM c")
    scored.add_checkpoint("n", kind="base", notes="x" * 1_000_000)


def test_columns_of_one_name_are_all_kept(scored: Registry) -> None:
    """In JSON the second gets a number, whatever the others are called."""
    answer = scored.sql("SELECT 1 AS a, 2 AS a, 3 AS b")
    assert answer.columns == ("a", "a", "b")
    assert answer.to_json() == [{"a": 1, "a_2": 2, "b": 3}]
    answer = scored.sql("SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a")
    assert list(answer.to_json()[0].values()) == [1, 2, 3, 4]
    assert answer.to_json()[0]["a_2"] == 3


def test_events_say_who_did_what(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first; nothing can take one back."""
    monkeypatch.setenv("OMNIREG_ACTOR", "ada")
    registry.add_checkpoint("m", kind="base", modalities=["text"])
    monkeypatch.setenv("OMNIREG_ACTOR", "grace")
    registry.add_checkpoint("m", kind="base", fingerprint="a" * 64)
    registry.add_alias("m", "n")
    registry.add_score("m", "B", 1.0)
    registry.add_score("m", "B", 2.0, replace=True)
    run = registry.start_run(
        "m", out="o", recipe_text="", recipe_digest="d", strategy="s", engine="stream"
    )
    registry.fail_run(run, "why")
    told = [(e.actor, e.action, e.subject_type) for e in registry.events("m")]
    assert told == [
        ("grace", Action.UPDATE, SubjectType.RUN),
        ("grace", Action.CREATE, SubjectType.RUN),
        ("grace", Action.UPDATE, SubjectType.SCORE),
        ("grace", Action.CREATE, SubjectType.SCORE),
        ("grace", Action.CREATE, SubjectType.ALIAS),
        ("grace", Action.UPDATE, SubjectType.CHECKPOINT),
        ("ada", Action.CREATE, SubjectType.CHECKPOINT),
    ]
    changed = registry.events("m")[2].details or {}
    assert changed["changes"]["value"] == [1.0, 2.0]
    assert registry.events("B")[0].subject_type is SubjectType.BENCHMARK


def test_events_cannot_be_changed(registry: Registry, path: Path) -> None:
    """The database itself refuses."""
    registry.add_checkpoint("m", kind="base")
    with closing(sqlite3.connect(path)) as database:
        for statement in ("UPDATE events SET actor = 'x'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_a_sealed_registry_is_read_by_default_and_written_by_name(
    registry: Registry, path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Reading leaves the file as it is, without side files."""
    registry.add_checkpoint("m", kind="base")
    registry.seal()
    monkeypatch.delenv("OMNIREG_REGISTRY")
    before = path.read_bytes()
    for command in (("list",), ("lineage", "m"), ("export",), ("db", "check"), ("events",)):
        assert run(*command).code == 0
    assert run("sql", "SELECT * FROM v_checkpoints").code == 0
    manifest = path.with_name("m.yaml")
    manifest.write_text("omnireg: 1\ncheckpoints: [{name: n, kind: base}]\n")
    assert run("apply", manifest, "--dry-run").code == 0
    score = ("scores", "add", "m", "B", 1)
    for writing in (("apply", manifest), score, ("db", "upgrade")):
        refused = run(*writing)
        assert refused.code == 1
        assert "ships with the project" in refused.err
        assert "--registry" in refused.err
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("registry.db*")] == ["registry.db"]
    assert run("--registry", path, "apply", manifest).code == 0
    assert [file.name for file in path.parent.glob("registry.db*")] == ["registry.db"]


def test_the_command_line(scored: Registry, path: Path, run: Run) -> None:
    """What people see has arrows; what scripts read has the documented keys."""
    seen = run("compare", "vision", "audio", "--against", "base").out
    assert "11.4↑ (-4.5" in seen
    assert "60↓ (-6.2" in seen
    assert "HarmBench (lower is better)" in seen
    told = json.loads(run("compare", "vision", "--against", "base", "--json").out)
    assert set(told) == {"against", "rows", "mean"}
    assert set(told["rows"][0]) >= {"benchmark", "metric", "reference", "values"}
    assert set(told["rows"][0]["values"]["vision"]) >= {"value", "delta", "retention"}
    assert set(told["mean"]["vision"]) == {"delta", "relative"}
    board = json.loads(run("leaderboard", "MMLU", "--json").out)
    assert set(board[0]) == {"rank", "name", "kind", "value", "metric"}
    assert "vision" in run("leaderboard", "MMLU").out
    clean = run("check", "vision")
    assert (clean.code, clean.out) == (0, "vision: no signature of failure\n")
    fired = run("check", "merged", "--json")
    assert fired.code == 1
    assert set(json.loads(fired.out)[0]) >= {"signature", "benchmark", "observed", "threshold"}
    assert run("check", "vision", "--threshold", "x").code == 1
    rows = json.loads(run("sql", "SELECT name FROM v_checkpoints ORDER BY name", "--json").out)
    assert rows[0] == {"name": "audio"}
    assert "raise --limit" in run("sql", "SELECT 1 UNION SELECT 2", "--limit", 1).err
    cut = run("sql", "SELECT 1 AS a UNION SELECT 2", "--limit", 1, "--json")
    assert (json.loads(cut.out), "raise --limit" in cut.err) == ([{"a": 1}], True)
    late = run("sql", ENDLESS.format("count(*)"), "--timeout", 0.1)
    assert (late.code, late.err.count("\n"), "--timeout" in late.err) == (1, 1, True)
    assert run("sql", "SELECT 1", "--timeout", 0).code == 2


def test_regexp_is_not_answered(tmp_path: Path) -> None:
    """SQLite would run it in Python, where no timeout stops it."""
    with Registry(tmp_path / "r.db") as book:
        book.add_checkpoint("a", kind="base")
        with pytest.raises(RegistryError, match="cannot use regexp"):
            book.sql("select 'a' regexp '(a+)+$'")
